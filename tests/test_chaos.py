"""A minute of chaos, and what longer nights have found: python tests/chaos.py --seconds 600 --trace."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import time
from pathlib import Path

import pytest
from chaos import spend_night
from support import Workspace, is_running, own_processes, wait_until


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_chaos_for_60_seconds(tmp_path: Path) -> None:
    seed = int(os.environ.get("ORCHESTRATE_CHAOS_SEED") or random.SystemRandom().getrandbits(32))
    print(f"ORCHESTRATE_CHAOS_SEED={seed}")
    figures = spend_night(tmp_path, seed, seconds=60)
    print(json.dumps(figures))
    assert figures["complete"], f"not complete with ORCHESTRATE_CHAOS_SEED={seed}: {figures['violations']}"
    assert figures["violations"] == [], f"ORCHESTRATE_CHAOS_SEED={seed}"
    assert all(figures["workers"].values()), f"a stream without a worker, ORCHESTRATE_CHAOS_SEED={seed}"


@pytest.mark.slow
@pytest.mark.parametrize("folder", ["pids", "logs"])
def test_the_run_outlives_the_removal_of_its_folders_at_any_moment(workspace: Workspace, folder: str) -> None:
    streams = ("Stream-A", "Stream-B", "Stream-C", "Stream-D")
    for stream in streams:
        workspace.database.add_stream(stream, tasks=6)
    workspace.play("next say=done")
    run = workspace.popen("start", stderr=subprocess.STDOUT)
    removals, pause = 0, 0.01
    while run.poll() is None and removals < 60:
        path = workspace.state / folder
        if path.is_dir():
            removals += 1
            shutil.rmtree(path, ignore_errors=True)
        pause = (pause * 1.7) % 0.15  # no rhythm that the orchestrator could be in step with
        time.sleep(pause)
    out, _ = run.communicate(timeout=60)
    assert run.returncode == 0, out
    assert "  all complete: 4 streams, 24 tasks\n" in out
    assert own_processes(workspace.root) == []


@pytest.mark.parametrize("content", ["", "stranger", "1"])
def test_a_worker_that_is_taken_over_has_its_pid_file_again(workspace: Workspace, content: str) -> None:
    workspace.database.add_stream("Stream-A")
    workspace.play("sleep=60")
    first = workspace.popen("start")
    pid = workspace.wait_for_worker("Stream-A")
    first.kill()
    first.wait()
    with subprocess.Popen(["sleep", "600"]) as stranger:
        path = workspace.state / "pids" / "Stream-A.pid"
        path.write_text(str(stranger.pid) if content == "stranger" else content)
        workspace.popen("start")
        wait_until(lambda: workspace.events("worker_adopted"), "the worker to be taken over")
        lives = is_running(stranger.pid)
        stranger.kill()
    assert (workspace.pid("Stream-A"), lives) == (pid, True)
    assert workspace.starts() == ["Stream-A"]
