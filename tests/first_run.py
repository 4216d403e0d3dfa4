"""The main job on a fresh machine: `python tests/first_run.py`, about 15 seconds.

It makes a throw-away project with a database in Task Copilot's schema, and runs the real orchestrator on it. The
workers are scripts that play `claude`: they take their tasks one by one, and one of them crashes on the way.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from support import SCRIPT, Workspace, own_processes

STREAMS = (
    ("Stream-A", "foundation", "core-types", 4, "next sleep=0.6 next sleep=0.6 next sleep=0.6 next"),
    (
        "Stream-B",
        "parallel",
        "api-implementation",
        5,
        ["next sleep=0.9 next sleep=0.9 next exit=1", "sleep=1 next sleep=0.8 next"],
    ),
    ("Stream-C", "parallel", "ui-components", 4, "begin sleep=1.2 next sleep=1.2 next sleep=1.2 next sleep=1 next"),
    ("Stream-D", "integration", "tests-and-docs", 3, "sleep=0.8 next sleep=0.8 next sleep=0.8 next"),
)


def main() -> int:
    """Run the project, show what became of it, and return the orchestrator's exit code."""
    with tempfile.TemporaryDirectory() as folder:
        workspace = Workspace(Path(folder).resolve())
        for stream, phase, name, tasks, _ in STREAMS:
            workspace.database.add_stream(stream, phase, tasks, streamName=name)
        workspace.play(**{stream.replace("-", "_"): part for stream, _, _, _, part in STREAMS})
        command = [sys.executable, str(SCRIPT)]
        environment = workspace.environment(TERM=os.environ.get("TERM", "dumb"))
        code = subprocess.call([*command, "start"], cwd=workspace.root, env=environment)
        subprocess.call([*command, "status"], cwd=workspace.root, env=environment)
        for process in own_processes(workspace.root):  # after Ctrl+C workers go on; here they have nowhere to go
            process.kill()
    return code


if __name__ == "__main__":
    sys.exit(main())
