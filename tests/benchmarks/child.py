"""What `run.py` measures inside a process of its own, so that its time and its memory are its own.

`python child.py WHAT ARGUMENTS` prints one JSON object: the seconds of CPU time that it took (another process that
runs beside it says nothing about it), and the most memory that the process ever had, in bytes.
"""

from __future__ import annotations

import json
import os
import resource
import sqlite3
import sys
import time
from pathlib import Path
from typing import Any, Callable

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

Call = Callable[[], object]


def read_peak() -> int:
    """Return the most memory that this process ever had, in bytes."""
    status = Path("/proc/self/status")
    if status.exists():  # getrusage would count what the parent had when it forked
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def render(raw: str, log: str) -> Call:
    """Render a file of a worker's events into a log."""
    import orchestrate

    transcript = orchestrate.Transcript(Path(raw), orchestrate.Appender(Path(log)).append, 0, 0)

    def run() -> None:
        while not transcript.pump():
            pass

    return run


def parse(raw: str) -> Call:
    """Parse each line of a file of a worker's events: the floor of `render`."""

    def run() -> None:
        with Path(raw).open("rb") as file:
            for line in file:
                json.loads(line)

    return run


def read(database: str) -> Call:
    """Read all streams."""
    import orchestrate

    return lambda: orchestrate.TaskStore(Path(database)).read()


def query(database: str) -> Call:
    """Run the bare SQL pass, the program's own statement: the floor of `read`."""
    from orchestrate import TaskStore

    statement = TaskStore._QUERY.format(is_active="NOT coalesce(archived, 0)")
    return lambda: sqlite3.connect(f"file:{database}?mode=ro", uri=True).execute(statement).fetchall()


def tick(root: str, database: str, rounds: str) -> Call:
    """Start the workers, then do ticks in which nothing happens; the time is the median of one."""
    import orchestrate

    project, clock = orchestrate.Project(Path(root)), orchestrate.Clock()
    state, store = orchestrate.StateFolder(project), orchestrate.TaskStore(Path(database))
    state.make()
    state.acquire()
    command = orchestrate.read_command("claude", "stream-json", Path(root))
    table = orchestrate.WorkerTable(project, Path(database), command, os.environ, clock, False)
    run = orchestrate.Orchestrator(state, store, table, orchestrate.Limits(), clock, [])
    run.begin()

    def measure() -> float:
        for _ in range(10):
            run.step()
        times = []
        for _ in range(int(rounds)):
            begin = time.process_time()
            run.step()
            times.append(time.process_time() - begin)
        return sorted(times)[len(times) // 2]

    return measure


WHATS: dict[str, Callable[..., Call]] = {
    "render": render,
    "parse": parse,
    "read": read,
    "query": query,
    "tick": tick,
}


def main(what: str, *arguments: str) -> None:
    """Measure one thing. What it needs is made ready before."""
    call: Any = WHATS[what](*arguments)
    begin = time.process_time()
    result = call()
    seconds = result if isinstance(result, float) else time.process_time() - begin
    json.dump({"seconds": seconds, "peak": read_peak()}, sys.stdout)


if __name__ == "__main__":
    main(*sys.argv[1:])
