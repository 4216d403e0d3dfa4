"""Whole runs with real processes: phases, restarts, coming and going."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Iterator

import pytest
from support import SCRIPT, Workspace, is_running, own_processes, wait_until

import orchestrate
from orchestrate import Onlooker, Project, StreamState, TaskStore, read_streams

# Longer than any test: whatever goes on without it was noticed by itself.
NO_POLL = ("--poll-interval", "600")


def spans(workspace: Workspace, stream: str) -> list[tuple[float, float]]:
    """Return start and end of each worker of a stream that ended by itself, in monotonic seconds."""
    times = [(word, at) for name, word, _, at in workspace.times() if name == stream and word in ("start", "end")]
    starts, ends = ([at for word, at in times if word == kind] for kind in ("start", "end"))
    return list(zip(starts, ends))


def alive_streams(workspace: Workspace) -> set[str]:
    return {process.info["environ"]["ORCHESTRATE_STREAM"] for process in own_processes(workspace.root)}


def test_phases_run_in_order_and_each_as_the_guide_says(workspace: Workspace) -> None:
    for stream, phase in (
        ("F-2", "foundation"),
        ("F-10", "foundation"),
        ("P-1", None),
        ("P-2", "parallel"),
        ("I", "integration"),
    ):
        workspace.database.add_stream(stream, phase, tasks=2)
    workspace.play("sleep=0.5 all")
    done = workspace.run("start", *NO_POLL)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[-1] == "all complete: 5 streams, 10 tasks"
    (f2,), (f10,), (p1,), (p2,), (i,) = (spans(workspace, name) for name in ("F-2", "F-10", "P-1", "P-2", "I"))
    assert f2[1] <= f10[0], "foundation streams ran at the same time"
    assert f10[1] <= min(p1[0], p2[0]), "parallel began before the foundation was over"
    assert max(p1[0], p2[0]) < min(p1[1], p2[1]), "parallel streams did not overlap"
    assert max(p1[1], p2[1]) <= i[0], "integration began before parallel was over"
    assert own_processes(workspace.root) == []


def test_a_worker_gets_what_the_contract_says(workspace: Workspace) -> None:
    workspace.database.add_stream("Stream-B", "parallel", streamName="api-implementation")
    workspace.claude.write_text(
        f"#!{sys.executable}\n"
        "import json, os, sys, sqlite3\n"
        "env = dict(os.environ)\n"
        "facts = {'argv': sys.argv[1:], 'env': env, 'cwd': os.getcwd(), 'pid': os.getpid(), 'sid': os.getsid(0),\n"
        "         'pgid': os.getpgrp(), 'stdin': os.fstat(0).st_rdev,\n"
        "         'out': os.fstat(1).st_ino, 'err': os.fstat(2).st_ino}\n"
        "open('facts.json', 'w').write(json.dumps(facts))\n"
        "db = sqlite3.connect(os.path.join(env['TASK_DB_PATH'], env['WORKSPACE_ID'], 'tasks.db'))\n"
        "db.execute(\"UPDATE tasks SET status = 'completed'\")\n"
        "db.commit()\n"
    )
    session = "CLAUDECODE CLAUDE_CODE_ENTRYPOINT CLAUDE_CODE_EXECPATH CLAUDE_CODE_SSE_PORT CLAUDE_CODE_CHILD_SESSION "
    session += "CLAUDE_CODE_CHILD_NOTES_DIR CLAUDE_CODE_SESSION_ID CLAUDE_CODE_SESSION_KIND "
    session += "CLAUDE_CODE_MESSAGING_SOCKET CLAUDE_CODE_MESSAGING_TOKEN CLAUDE_PID CLAUDE_EFFORT CLAUDE_PROJECT_DIR "
    session += "CLAUDE_CODE_SESSION_ATTENDED AI_AGENT TRACEPARENT TRACESTATE"
    own = ("KEPT", "CLAUDE_CODE_OAUTH_TOKEN", "CLAUDE_CODE_SESSION_ACCESS_TOKEN", "CLAUDE_CODE_MAX_RETRIES")
    nested = dict.fromkeys((*session.split(), *own), "1")
    assert workspace.run("start", env=nested).returncode == 0
    facts = json.loads((workspace.root / "facts.json").read_text())
    guide = (SCRIPT.parent / "tests" / "worker-prompt.txt").read_text()
    flags = ["--print", "--dangerously-skip-permissions", "--output-format", "stream-json", "--verbose", "-p"]
    assert facts["argv"] == [*flags, guide]
    env = facts["env"]
    assert {key for key in nested if key in env} == set(own)
    assert env["CLAUDE_CODE_PRINT_BG_WAIT_CEILING_MS"] == "0"
    assert (env["ORCHESTRATE_PROJECT"], env["ORCHESTRATE_STREAM"]) == (str(workspace.root), "Stream-B")
    assert env["ORCHESTRATE_RUN"].endswith(f".{facts['pid']}")
    assert (env["WORKSPACE_ID"], env["TASK_DB_PATH"]) == ("my-project", str(workspace.home / ".claude/tasks"))
    assert facts["pid"] == facts["sid"] == facts["pgid"] != os.getsid(0)
    assert (facts["cwd"], facts["stdin"]) == (str(workspace.root), Path(os.devnull).stat().st_rdev)
    assert facts["out"] == facts["err"] == (workspace.state / "logs" / "Stream-B.jsonl").stat().st_ino


def test_how_long_subagents_are_waited_for_is_the_users_own_word_where_there_is_one(workspace: Workspace) -> None:
    workspace.database.add_stream("Stream-A")
    workspace.claude.write_text('#!/bin/sh\necho "$CLAUDE_CODE_PRINT_BG_WAIT_CEILING_MS" > ceiling.txt\n')
    environment = {"CLAUDE_CODE_PRINT_BG_WAIT_CEILING_MS": "1200000"}
    workspace.run("start", "--max-restarts", "0", env=environment)
    assert (workspace.root / "ceiling.txt").read_text() == "1200000\n"


def test_text_output_is_the_guides_exact_command(workspace: Workspace) -> None:
    workspace.database.add_stream("Stream-A")
    workspace.claude.write_text('#!/bin/sh\nprintf "%s\\n" "$#" "$1" "$2" "$3" > words.txt\n')
    workspace.run("start", "--output-format", "text", "--max-restarts", "0")
    argv = (workspace.root / "words.txt").read_text().split()
    assert argv == ["4", "--print", "--dangerously-skip-permissions", "-p"]


def test_a_worker_that_always_fails_is_restarted_so_often_and_no_more(workspace: Workspace) -> None:
    workspace.database.add_stream("Stream-A", "foundation")
    workspace.database.add_stream("Stream-B", "parallel")
    workspace.play("exit=3")
    done = workspace.run("start", "--max-restarts", "2", *NO_POLL)
    assert done.returncode == 1
    assert workspace.starts() == ["Stream-A"] * 3
    ends = workspace.events("worker_ended")
    assert [(end["exit_code"], end["verdict"]) for end in ends] == [(3, "restart"), (3, "restart"), (3, "failed")]
    assert 0.9 <= ends[0]["delay"] <= 1.1
    assert 1.8 <= ends[1]["delay"] <= 2.2
    assert done.stdout.splitlines()[-2:] == [
        "Stream-A failed: gave up after 2 restarts without a completed task; last: exit code 3",
        "Stream-B never ran: it waits for Stream-A",
    ]
    log = (workspace.state / "logs" / "Stream-A.log").read_text()
    assert "Restarting worker for Stream-A (1/2) in 1s: exit code 3" in log
    assert "Restarting worker for Stream-A (2/2) in 2s: exit code 3" in log


def test_exit_code_0_with_open_tasks_is_no_success(workspace: Workspace) -> None:
    workspace.database.add_stream("Stream-A", tasks=2)
    workspace.play(Stream_A=["next", "next"])
    done = workspace.run("start", *NO_POLL)
    assert done.returncode == 0
    assert "Restarting worker for Stream-A (1/10) in 1s: exit code 0, 1 task open" in done.stdout
    assert len(workspace.starts()) == 2


def test_a_restarted_worker_is_told_so(workspace: Workspace) -> None:
    workspace.database.add_stream("Stream-A", tasks=2)
    prompts = workspace.root / "prompts.txt"
    text = workspace.claude.read_text().replace(
        'note("start")', f"note('start'); open({str(prompts)!r}, 'a').write(sys.argv[-1] + '\\n====\\n')"
    )
    workspace.claude.write_text(text)
    workspace.play(Stream_A=["begin die=9", "all"])
    assert workspace.run("start", *NO_POLL).returncode == 0
    first, second, _ = prompts.read_text().split("\n====\n")
    assert "restart" not in first
    assert second == f"{first.rstrip()}\n" + (
        "\n## This is a restart\n"
        "- This is attempt 2 on Stream-A. The last worker ended: killed by SIGKILL\n"
        "- Look at what it has left (git status, git log) before you change anything\n"
        "- These tasks stand in_progress and are now yours to finish:\n"
        "  - TASK-1: Title of TASK-1\n"
    )


def test_a_failed_parallel_stream_lets_its_siblings_finish_and_integration_does_not_start(workspace: Workspace) -> None:
    workspace.database.add_stream("P-1", tasks=1)
    workspace.database.add_stream("P-2", tasks=1)
    workspace.database.add_stream("I", "integration")
    workspace.play("exit=1", P_2="sleep=1.5 all")
    done = workspace.run("start", "--max-restarts", "0", *NO_POLL)
    assert done.returncode == 1
    assert workspace.starts() == ["P-1", "P-2"] or workspace.starts() == ["P-2", "P-1"]
    assert "I never ran: it waits for P-1" in done.stdout
    assert workspace.run("status", "--check").returncode == 1


def test_a_second_start_exits_75_and_names_the_first(workspace: Workspace) -> None:
    workspace.database.add_stream("Stream-A")
    workspace.play("sleep=60 all")
    first = workspace.popen("start")
    workspace.wait_for_worker("Stream-A")
    second = workspace.run("start")
    assert second.returncode == 75
    assert second.stderr.startswith(f"[ERROR] An orchestrator already runs for this project (PID {first.pid})\n")
    assert workspace.starts() == ["Stream-A"]


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_ends_the_orchestrator_and_leaves_the_workers(workspace: Workspace, signum: int, code: int) -> None:
    workspace.database.add_stream("Stream-A")
    workspace.database.add_stream("Stream-B")
    workspace.play("sleep=60 all")
    run = workspace.popen("start")
    pids = [workspace.wait_for_worker(stream) for stream in ("Stream-A", "Stream-B")]
    run.send_signal(signum)
    out, err = run.communicate(timeout=10)
    assert (run.returncode, err) == (code, "")
    assert out.splitlines()[-1] == "Orchestrator ended; 2 workers left running. Stop: python orchestrate.py stop"
    assert all(is_running(pid) for pid in pids)


def test_nohup_stays_in_force(workspace: Workspace) -> None:
    workspace.database.add_stream("Stream-A")
    workspace.play("sleep=1 all")
    run = workspace.popen("start", preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN))
    workspace.wait_for_worker("Stream-A")
    run.send_signal(signal.SIGHUP)
    assert run.wait(timeout=20) == 0


@pytest.mark.parametrize("lose_pid_file", [False, True])
def test_start_after_a_kill_takes_the_workers_over(workspace: Workspace, lose_pid_file: bool) -> None:
    workspace.database.add_stream("Stream-A")
    workspace.play("say=hello setsid until=go all")
    first = workspace.popen("start")
    pid = workspace.wait_for_worker("Stream-A")
    first.kill()
    first.wait()
    if lose_pid_file:
        (workspace.state / "pids" / "Stream-A.pid").unlink()
    second = workspace.popen("start", *NO_POLL)
    wait_until(lambda: workspace.events("worker_adopted"), "the worker to be taken over")
    workspace.open_gate("go")
    out, _ = second.communicate(timeout=60)
    assert second.returncode == 0
    assert f"Took over the worker of Stream-A that still runs (PID {pid})" in out
    assert workspace.starts() == ["Stream-A"]
    assert own_processes(workspace.root) == []
    assert (workspace.state / "logs" / "Stream-A.log").read_text().splitlines().count("hello") == 1


def test_what_happened_while_no_orchestrator_ran_is_judged_by_the_database(workspace: Workspace) -> None:
    workspace.database.add_stream("Stream-A")
    workspace.database.add_stream("Stream-B")
    workspace.play("sleep=1 all", Stream_B=["sleep=1 exit=0", "all"])
    first = workspace.popen("start")
    pids = [workspace.wait_for_worker(stream) for stream in ("Stream-A", "Stream-B")]
    first.kill()
    first.wait()
    wait_until(lambda: not any(map(is_running, pids)), "the workers' end")
    done = workspace.run("start", *NO_POLL)
    assert done.returncode == 0
    assert workspace.starts("Stream-A") == ["Stream-A"]
    assert workspace.starts("Stream-B") == ["Stream-B", "Stream-B"]


def test_stop_takes_everything_down_and_nothing_comes_back(workspace: Workspace) -> None:
    for stream in ("Stream-A", "Stream-B", "Stream-C"):
        workspace.database.add_stream(stream)
    workspace.play("spawn setsid sleep=60", Stream_B="setsid hang")
    run = workspace.popen("start")
    pids = [workspace.wait_for_worker(stream) for stream in ("Stream-A", "Stream-B", "Stream-C")]
    wait_until(lambda: len(workspace.times()) == 8, "the workers' children")
    children = [int(word.split()[1]) for _, word, _, _ in workspace.times() if " " in word]
    stopped = workspace.run("stop", "--timeout", "1")
    assert (stopped.returncode, stopped.stderr) == (0, "")
    assert run.wait(timeout=5) == 143
    assert [pid for pid in [*pids, *children] if is_running(pid)] == []
    assert own_processes(workspace.root) == []
    assert list((workspace.state / "pids").glob("*.pid")) == []
    assert len(workspace.starts()) == 3
    again = workspace.run("stop")
    assert (again.returncode, again.stdout) == (0, "Nothing to stop.\n")


def test_a_stopped_stream_stays_stopped_until_start(workspace: Workspace) -> None:
    workspace.database.add_stream("Stream-A")
    workspace.database.add_stream("Stream-B")
    workspace.play(Stream_A="sleep=2 all", Stream_B=["sleep=60", "all"])
    run = workspace.popen("start", *NO_POLL)
    pid = workspace.wait_for_worker("Stream-B")
    workspace.wait_for_worker("Stream-A")
    stopped = workspace.run("stop", "Stream-B")
    assert (stopped.returncode, stopped.stdout) == (0, f"Stream-B stopped (PID {pid}).\n")
    assert not is_running(pid)
    assert (workspace.state / "pids" / "Stream-B.stop").exists()
    wait_until(lambda: workspace.events("run_waiting"), "the run to wait for Stream-B")
    assert workspace.starts("Stream-B") == ["Stream-B"]
    assert "Stopped: by the user" in workspace.run("status").stdout
    started = workspace.run("start", "Stream-B")
    assert (started.returncode, started.stdout) == (
        0,
        f"Left to the orchestrator that runs (PID {run.pid}): Stream-B\n",
    )
    assert run.wait(timeout=20) == 0
    assert workspace.starts("Stream-B") == ["Stream-B", "Stream-B"]


def test_start_clears_the_failure_of_a_stream_beside_a_running_orchestrator(workspace: Workspace) -> None:
    workspace.database.add_stream("Stream-A")
    workspace.database.add_stream("Stream-B")
    workspace.play(Stream_A="sleep=60", Stream_B=["exit=1", "all"])
    workspace.popen("start", "--max-restarts", "0", *NO_POLL)
    wait_until(lambda: [e for e in workspace.events("worker_ended") if e["verdict"] == "failed"], "the failure")
    assert workspace.run("start", "Stream-B").returncode == 0
    wait_until(lambda: [e for e in workspace.events("worker_ended") if e["verdict"] == "complete"], "its completion")


def test_what_a_worker_leaves_behind_is_stopped_before_the_stream_goes_on(workspace: Workspace) -> None:
    workspace.database.add_stream("Stream-A", tasks=2)
    workspace.play(Stream_A=["spawn setsid next exit=1", "all"])
    done = workspace.run("start", *NO_POLL)
    assert done.returncode == 0
    assert "Stopping processes of Stream-A: the worker ended and left them running" in done.stdout
    children = [int(word.split()[1]) for _, word, _, _ in workspace.times() if " " in word]
    assert len(children) == 2
    assert [pid for pid in children if is_running(pid)] == []
    assert done.stdout.index("Stopping processes") < done.stdout.index("attempt 2")


def test_a_worker_that_does_not_exit_after_its_last_task_is_stopped(workspace: Workspace) -> None:
    workspace.database.add_stream("F", "foundation")
    workspace.database.add_stream("P")
    workspace.play("all", F="all sleep=60")
    done = workspace.run("start", "--finish-grace", "0.5", *NO_POLL)
    assert done.returncode == 0
    assert "Stopping the worker of F: its tasks are complete, and it did not exit by itself" in done.stdout
    assert workspace.starts() == ["F", "P"]


def test_a_vanished_stream_loses_its_worker_and_new_streams_are_picked_up(workspace: Workspace) -> None:
    workspace.database.add_stream("Stream-A")
    workspace.database.add_stream("Stream-B")
    workspace.play(Stream_A="sleep=60", Stream_B="sleep=2 all")
    run = workspace.popen("start", *NO_POLL)
    pid = workspace.wait_for_worker("Stream-A")
    workspace.wait_for_worker("Stream-B")
    workspace.database.execute("UPDATE tasks SET archived = 1 WHERE json_extract(metadata, '$.streamId') = 'Stream-A'")
    workspace.database.add_stream("Stream-New")
    wait_until(lambda: "Stream-New" in workspace.starts(), "a worker of the new stream")
    wait_until(lambda: not is_running(pid), "the end of the vanished stream's worker")
    out, _ = run.communicate(timeout=20)
    assert run.returncode == 0
    assert "Stopping the worker of Stream-A: its stream is no longer in the database" in out


def test_a_blocked_stream_waits_for_a_person_at_no_cost(workspace: Workspace) -> None:
    workspace.database.add_stream("Stream-A")
    workspace.play(Stream_A=["block=needs_a_key", "all"])
    run = workspace.popen("start", "--max-restarts", "0", *NO_POLL)
    waiting = wait_until(lambda: workspace.events("run_waiting"), "the run to wait")
    assert waiting[0]["reason"] == "Stream-A is blocked: needs_a_key (TASK-1)"
    assert "Blocked: needs_a_key (TASK-1)" in workspace.run("status").stdout
    workspace.database.set_status("pending", "Stream-A")
    assert run.wait(timeout=20) == 0
    assert len(workspace.starts()) == 2


def test_exit_on_blocked_ends_the_run(workspace: Workspace) -> None:
    workspace.database.add_stream("Stream-A")
    workspace.play("block=why")
    done = workspace.run("start", "--exit-on-blocked")
    assert (done.returncode, done.stdout.splitlines()[-1]) == (1, "Stream-A blocked: why (TASK-1)")


@pytest.mark.parametrize("presses", [1, 2])
def test_stop_on_exit_stops_the_workers_first_and_a_second_signal_kills(workspace: Workspace, presses: int) -> None:
    workspace.database.add_stream("Stream-A")
    workspace.play("sleep=60" if presses == 1 else "hang")
    run = workspace.popen("start", "--stop-on-exit")
    pid = workspace.wait_for_worker("Stream-A")
    run.send_signal(signal.SIGINT)
    if presses == 2:
        wait_until(lambda: workspace.events("worker_stopping"), "the polite attempt")
        assert is_running(pid)
        run.send_signal(signal.SIGINT)
    assert run.wait(timeout=8) == 130
    assert own_processes(workspace.root) == []


def test_detach_returns_when_the_orchestrator_runs(workspace: Workspace) -> None:
    workspace.database.add_stream("Stream-A")
    workspace.play("sleep=1 all")
    done = workspace.run("start", "--detach")
    assert done.returncode == 0
    pid = int((workspace.state / "orchestrator.pid").read_text())
    assert f"(PID {pid})" in done.stdout
    wait_until(lambda: workspace.events("run_ended"), "the end of the run")
    wait_until(lambda: not is_running(pid), "the end of the orchestrator")
    assert "all complete: 1 stream, 1 task" in (workspace.state / "logs" / "orchestrator.log").read_text()


def test_the_loop_survives_a_database_that_is_gone_for_a_while(workspace: Workspace) -> None:
    workspace.database.add_stream("Stream-A", tasks=2)
    workspace.play(Stream_A=["next sleep=1 exit=1", "all"])
    run = workspace.popen("start", "--poll-interval", "0.2")
    workspace.wait_for_worker("Stream-A")
    hidden = workspace.database.path.parent.with_name("hidden")
    workspace.database.path.parent.rename(hidden)
    wait_until(lambda: workspace.events("database_unreadable"), "that it is said")
    wait_until(lambda: not is_running(workspace.pid("Stream-A") or 1 << 22), "the worker's end")
    hidden.rename(workspace.database.path.parent)
    assert run.wait(timeout=20) == 0
    assert workspace.events("database_readable")
    assert len(workspace.starts()) == 2


def test_a_zombie_is_never_taken_for_a_worker(workspace: Workspace) -> None:
    """The worker of a killed orchestrator whose parent (this test) does not reap it."""
    workspace.database.add_stream("Stream-A")
    environ = {"ORCHESTRATE_PROJECT": str(workspace.root), "ORCHESTRATE_STREAM": "Stream-A", "ORCHESTRATE_RUN": "x.1"}
    zombie = subprocess.Popen(["true"], env=workspace.environment(**environ))
    wait_until(lambda: not is_running(zombie.pid), "the zombie")
    (workspace.state / "pids").mkdir(parents=True)
    (workspace.state / "pids" / "Stream-A.pid").write_text(f"{zombie.pid}\n")
    assert "(PID" not in workspace.run("status").stdout
    done = workspace.run("start")
    assert done.returncode == 0
    assert f"Removed stale PID file Stream-A.pid: process {zombie.pid} is gone" in done.stdout
    assert workspace.starts() == ["Stream-A"]
    zombie.wait()


def test_a_stranger_with_the_pid_of_a_worker_is_left_alone(workspace: Workspace) -> None:
    workspace.database.add_stream("Stream-A")
    stranger = subprocess.Popen(["sleep", "60"])
    (workspace.state / "pids").mkdir(parents=True)
    (workspace.state / "pids" / "Stream-A.pid").write_text(f"{stranger.pid}\n")
    assert workspace.run("stop", "Stream-A").returncode == 0
    done = workspace.run("start")
    assert done.returncode == 0
    assert workspace.starts() == ["Stream-A"]
    assert stranger.poll() is None
    stranger.kill()
    stranger.wait()


def test_state_is_closed_to_others_and_kept_out_of_git(workspace: Workspace) -> None:
    workspace.database.add_stream("Stream-A")
    subprocess.run(["git", "init", "-q"], cwd=workspace.root, check=True)
    assert workspace.run("start").returncode == 0
    modes = {path.relative_to(workspace.state): oct(path.stat().st_mode & 0o777) for path in workspace.state.rglob("*")}
    assert {mode for path, mode in modes.items() if (workspace.state / path).is_dir()} == {"0o700"}
    assert {mode for path, mode in modes.items() if (workspace.state / path).is_file()} == {"0o600"}
    assert Path("events.jsonl") in modes
    git = subprocess.run(
        ["git", "status", "--porcelain"], cwd=workspace.root, check=True, capture_output=True, text=True
    )
    assert "orchestrator" not in git.stdout


def test_a_stream_id_that_is_a_path_stays_inside_the_folder(workspace: Workspace) -> None:
    for stream in ("../../etc/x", "-rf", "a/b", "", "orchestrator", "[red]x[/]\x1b[31m\n"):
        workspace.database.add_stream(stream)
    done = workspace.run("start", "--max-workers", "2")
    assert done.returncode == 0
    assert sorted(workspace.starts()) == sorted(
        ["../../etc/x", "-rf", "a/b", "", "orchestrator", "[red]x[/]\x1b[31m\n"]
    )
    assert "\x1b" not in done.stdout
    inside = {path.name for path in (workspace.state / "logs").iterdir()}
    assert {"..%2F..%2Fetc%2Fx.log", "-rf.log", "a%2Fb.log", "%.log", "%6Frchestrator.log"} <= inside | {
        "..%2F..%2Fetc%2Fx.log"
    }


def test_a_second_orchestrator_is_refused_even_when_the_state_folder_was_removed(workspace: Workspace) -> None:
    workspace.database.add_stream("Stream-A")
    workspace.play("sleep=60")
    run = workspace.popen("start")
    workspace.wait_for_worker("Stream-A")
    shutil.rmtree(workspace.state)
    wait_until(lambda: (workspace.state / "orchestrator.pid").exists(), "the folder to be made anew")
    wait_until(lambda: workspace.run("start").returncode == 75, "a second start to be refused")
    assert run.poll() is None
    assert workspace.starts() == ["Stream-A"]


def test_what_others_write_into_the_journal_can_not_break_the_run(workspace: Workspace) -> None:
    workspace.database.add_stream("Stream-A")
    workspace.play("sleep=2 all")
    workspace.state.mkdir()
    journal = workspace.state / "events.jsonl"
    garbage = [
        '{"event": "state", "stream": "Stream-A", "state": "BLOCKED", "reason": "", "clock": NaN}',
        "[1]",
        "{",
        "half",
    ]
    journal.write_text("\n".join(garbage))
    run = workspace.popen("start")
    workspace.wait_for_worker("Stream-A")
    with journal.open("a") as file:
        file.write('{"event": "start_requested"}\n{"event": "start_requested", "stream": "Stream-A"}\n\xff\n')
    assert run.wait(timeout=20) == 0
    lines = journal.read_text().splitlines()
    assert lines[3] == "half"
    assert json.loads(lines[4])["event"] == "run_started"


def test_a_flood_of_output_does_not_keep_the_orchestrator_from_ending(workspace: Workspace) -> None:
    workspace.database.add_stream("Stream-A")
    workspace.claude.write_text('#!/bin/sh\necho "[\\"Stream-A\\", \\"start\\", 1, 1]" > worker-times.txt\nexec yes\n')
    run = workspace.popen("start")
    workspace.wait_for_worker("Stream-A")
    raw = workspace.state / "logs" / "Stream-A.jsonl"
    wait_until(lambda: raw.stat().st_size > 20_000_000, "the flood")
    run.send_signal(signal.SIGINT)
    assert run.wait(timeout=5) == 130
    assert workspace.run("stop").returncode == 0
    assert own_processes(workspace.root) == []


ESCAPEE = """
import os, signal, subprocess, sys, time
code = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(1, flush=True); time.sleep(600)"
child = subprocess.Popen([sys.executable, "-c", code], env={}, start_new_session=True, stdout=subprocess.PIPE)
child.stdout.readline()
open("escapee", "w").write(str(child.pid))
time.sleep(600)
"""


def test_stop_ends_a_child_that_has_left_session_and_environment_and_ignores_sigterm(workspace: Workspace) -> None:
    workspace.database.add_stream("Stream-A")
    workspace.claude.write_text(f"#!{sys.executable}{ESCAPEE}")
    workspace.popen("start")
    path = workspace.root / "escapee"
    escapee = int(wait_until(lambda: path.exists() and path.read_text(), "the child"))
    stopped = workspace.run("stop", "--timeout", "1")
    assert (stopped.returncode, stopped.stderr) == (0, "")
    assert not is_running(escapee)


@pytest.mark.parametrize("reader", ["head -1", "true"])
def test_the_run_goes_on_when_nobody_reads_its_output(workspace: Workspace, reader: str) -> None:
    for stream in ("Stream-A", "Stream-B"):
        workspace.database.add_stream(stream, "foundation")
    workspace.play("sleep=0.5 all")
    command = f"{sys.executable} {SCRIPT} start | {reader}; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(
        ["/bin/bash", "-c", command],
        cwd=workspace.root, env=workspace.environment(), capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert workspace.starts() == ["Stream-A", "Stream-B"]
    assert "LineReporter says no more" in workspace.events("warning")[0]["message"]


def test_a_failed_foundation_ends_the_run_though_a_later_stream_is_blocked(workspace: Workspace) -> None:
    workspace.database.add_stream("F", "foundation")
    workspace.database.add_stream("P")
    workspace.database.set_status("blocked", "P")
    workspace.play("exit=1")
    done = workspace.run("start", "--max-restarts", "0", timeout=30)
    assert done.returncode == 1
    assert "F failed" in done.stdout


def test_a_worker_that_reports_nonsense_is_restarted_like_any_other(workspace: Workspace) -> None:
    workspace.database.add_stream("Stream-A", tasks=2)
    nonsense = {
        "type": "result",
        "is_error": True,
        "result": "bad \ud800\x00",
        "total_cost_usd": "much",
        "num_turns": None,
    }
    (workspace.root / "lines.json").write_text(json.dumps({"nonsense": nonsense}))
    workspace.play(Stream_A=["print=nonsense next exit=1", "all"])
    done = workspace.run("start", *NO_POLL)
    assert done.returncode == 0, done.stderr
    assert "Restarting worker for Stream-A (1/10) in 1s: exit code 1: bad ?" in done.stdout


# ── From outside ──────────────────────────────────────────────────────────────────────────────────────────────────────


@contextlib.contextmanager
def open_onlooker(workspace: Workspace, kind: type[TaskStore] = TaskStore) -> Iterator[Onlooker]:
    with contextlib.closing(kind(workspace.database.path)) as store:
        yield Onlooker(Project(workspace.root), store, read_streams(store), ())


def test_an_onlooker_believes_the_journal_that_is_there(workspace: Workspace) -> None:
    workspace.database.add_stream("A")
    workspace.play(A="exit=1")
    assert workspace.run("start", "--max-restarts", "0").returncode == 1
    journal = workspace.state / "events.jsonl"
    whole = journal.read_bytes()
    with open_onlooker(workspace) as onlooker:

        def look() -> tuple[StreamState, int]:
            snapshot, standings = onlooker.look()
            return standings["A"].state, snapshot.history.record("A").attempts

        assert look() == (StreamState.FAILED, 1)
        journal.unlink()
        assert look() == (StreamState.IDLE, 0)
        journal.write_bytes(whole)
        assert look() == (StreamState.FAILED, 1)
        journal.write_bytes(b"")
        assert look() == (StreamState.IDLE, 0)
        journal.write_bytes(whole)
        assert look() == (StreamState.FAILED, 1)


class BlindStore(TaskStore):
    """One whose database was overwritten behind the back of SQLite, which then counts no change."""

    def changed(self) -> bool:
        return False


def test_an_onlooker_reads_all_anew_from_time_to_time(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    workspace.database.add_stream("A")
    for interval, expected in ((600, StreamState.IDLE), (0, StreamState.COMPLETE)):
        monkeypatch.setattr(orchestrate, "POLL_INTERVAL", interval)
        workspace.database.set_status("pending", "A")
        with open_onlooker(workspace, BlindStore) as onlooker:
            workspace.database.set_status("completed", "A")
            assert onlooker.look()[1]["A"].state is expected
