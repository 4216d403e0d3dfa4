"""Whole runs with real processes: phases, restarts, coming and going."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support import IMPORT, PROGRAM, RUN, SCRIPT, Run, Workspace, is_running, own_processes, wait_until

from orchestrate import WORKER_RULES, Cause, History, Limits, Phase, Record, StopReason, StreamState, pack


def spans(workspace: Workspace, stream: str) -> list[tuple[float, float]]:
    """Return start and end of each worker of a stream that ended by itself, in monotonic seconds."""
    times = [(word, at) for name, word, _, at in workspace.times() if name == stream and word in ("start", "end")]
    starts, ends = ([at for word, at in times if word == kind] for kind in ("start", "end"))
    return list(zip(starts, ends))


def test_phases_run_in_order_and_each_as_the_guide_says(workspace: Workspace) -> None:
    workspace.database.add_streams("F-2", "F-10", phase="foundation", tasks=2)
    workspace.database.add_stream("P-1", tasks=2)
    workspace.database.add_stream("P-2", "parallel", tasks=2)
    workspace.database.add_stream("I", "integration", tasks=2)
    workspace.play("sleep=0.5 all")
    assert "  all complete: 5 streams, 10 tasks" in workspace.complete().splitlines()
    (f2,), (f10,), (p1,), (p2,), (i,) = (spans(workspace, name) for name in ("F-2", "F-10", "P-1", "P-2", "I"))
    assert f2[1] <= f10[0], "foundation streams ran at the same time"
    assert f10[1] <= min(p1[0], p2[0]), "parallel began before the foundation was over"
    assert max(p1[0], p2[0]) < min(p1[1], p2[1]), "parallel streams did not overlap"
    assert max(p1[1], p2[1]) <= i[0], "integration began before parallel was over"
    assert own_processes(workspace.root) == []


def test_a_prompt_of_the_projects_own_replaces_the_guides(workspace: Workspace) -> None:
    workspace.database.add_stream("Stream-B", streamName="api")
    workspace.state.mkdir(mode=0o700)
    (workspace.state / "worker-prompt.md").write_text("Do {stream.id}, which is {stream.name}, and no {other}.")
    workspace.play("facts all")
    workspace.complete("--no-worktrees")
    told = f"Do Stream-B, which is api, and no {{other}}.\n{WORKER_RULES}- Ports "
    assert workspace.facts()["argv"][-1].startswith(told)


def test_a_worker_gets_what_the_contract_says(workspace: Workspace) -> None:
    workspace.database.add_stream("Stream-B", "parallel", streamName="api-implementation")
    workspace.play("facts all")
    session = "CLAUDECODE CLAUDE_CODE_ENTRYPOINT CLAUDE_CODE_EXECPATH CLAUDE_CODE_SSE_PORT CLAUDE_CODE_CHILD_SESSION "
    session += "CLAUDE_CODE_CHILD_NOTES_DIR CLAUDE_CODE_SESSION_ID CLAUDE_CODE_SESSION_KIND "
    session += "CLAUDE_CODE_MESSAGING_SOCKET CLAUDE_CODE_MESSAGING_TOKEN CLAUDE_PID CLAUDE_EFFORT CLAUDE_PROJECT_DIR "
    session += "CLAUDE_CODE_SESSION_ATTENDED AI_AGENT TRACEPARENT TRACESTATE"
    own = ("KEPT", "CLAUDE_CODE_OAUTH_TOKEN", "CLAUDE_CODE_SESSION_ACCESS_TOKEN", "CLAUDE_CODE_MAX_RETRIES")
    nested = dict.fromkeys((*session.split(), *own), "1")
    workspace.complete(env=nested)
    facts = workspace.facts()
    guide = (SCRIPT.parent / "tests" / "worker-prompt.txt").read_text()
    flags = ["--print", "--dangerously-skip-permissions", "--output-format", "stream-json", "--verbose", "-p"]
    env = facts["env"]
    port = int(env["ORCHESTRATE_PORT"])
    ports = f"- Ports {port} to {port + 9} are yours alone; the first is in $ORCHESTRATE_PORT\n"
    assert facts["argv"] == [*flags, f"{guide}{WORKER_RULES}{ports}"]
    status = workspace.root.stat()
    assert env["ORCHESTRATE_ROOT"] == f"{status.st_dev}:{status.st_ino}"
    assert {key for key in nested if key in env} == set(own)
    assert env["CLAUDE_CODE_PRINT_BG_WAIT_CEILING_MS"] == "0"
    assert (env["ORCHESTRATE_PROJECT"], env["ORCHESTRATE_STREAM"]) == (str(workspace.root), "Stream-B")
    assert env["ORCHESTRATE_RUN"].endswith(f".{facts['pid']}")
    assert (env["WORKSPACE_ID"], env["TASK_DB_PATH"]) == ("my-project", str(workspace.home / ".claude/tasks"))
    assert facts["pid"] == facts["sid"] == facts["pgid"] != os.getsid(0)
    assert (facts["cwd"], facts["stdin"]) == (str(workspace.root), Path(os.devnull).stat().st_rdev)
    assert facts["out"] == facts["err"] == (workspace.state / "logs" / "Stream-B.jsonl").stat().st_ino


def test_how_long_subagents_are_waited_for_is_the_users_own_word_where_there_is_one(workspace: Workspace) -> None:
    workspace.database.add_stream("A")
    workspace.play("facts all")
    workspace.complete(env={"CLAUDE_CODE_PRINT_BG_WAIT_CEILING_MS": "1200000"})
    assert workspace.facts()["env"]["CLAUDE_CODE_PRINT_BG_WAIT_CEILING_MS"] == "1200000"


def test_text_output_is_the_guides_exact_command(workspace: Workspace) -> None:
    workspace.database.add_stream("A")
    workspace.complete("--output-format", "text")
    ((*flags, _),) = workspace.argv("A")
    assert flags == ["--print", "--dangerously-skip-permissions", "-p"]


NONSENSE = {"type": "result", "is_error": True, "result": "bad \ud800\x00", "total_cost_usd": "much", "num_turns": None}


@pytest.mark.parametrize(
    ("part", "reason"), [("next", "exit code 0, 1 task open"), ("print=nonsense next exit=1", "exit code 1: bad ?")]
)
def test_a_worker_that_leaves_a_task_open_is_restarted_whatever_it_says(
    workspace: Workspace, part: str, reason: str
) -> None:
    workspace.database.add_stream("A", tasks=2)
    workspace.write_lines(nonsense=NONSENSE)
    workspace.play(A=[part, "next"])
    assert f"Restarting worker for A (1/10) in 1s: {reason}" in workspace.complete()
    assert len(workspace.starts()) == 2


def test_a_restarted_worker_is_told_so(workspace: Workspace) -> None:
    workspace.database.add_stream("Stream-A", tasks=2)
    workspace.play(Stream_A=["begin die=9", "all"])
    workspace.complete()
    first, second = (words[-1] for words in workspace.argv("Stream-A"))
    assert "restart" not in first
    assert second == f"{first.rstrip()}\n" + (
        "\n## This is a restart\n"
        "- This is attempt 2 on Stream-A. The last worker ended: killed by SIGKILL\n"
        "- Look at what it has left (git status, git log) before you change anything\n"
        "- These tasks stand in_progress and are now yours to finish:\n"
        "  - TASK-1: Title of TASK-1\n"
    )


def test_a_failed_parallel_stream_lets_its_siblings_finish_and_integration_does_not_start(workspace: Workspace) -> None:
    workspace.database.add_streams("P-1", "P-2")
    workspace.database.add_stream("I", "integration")
    workspace.play("exit=1", P_2="sleep=1.5 all")
    assert "    Why: waits for P-1\n" in workspace.complete("--max-restarts", "0", code=1)
    assert sorted(workspace.starts()) == ["P-1", "P-2"]
    assert workspace.run("status", "--check").returncode == 1


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_ends_the_orchestrator_and_leaves_the_workers(workspace: Workspace, signum: int, code: int) -> None:
    workspace.database.add_streams("A", "B")
    workspace.play("sleep=60 all")
    run = workspace.start(wait="AB", stderr=subprocess.PIPE)
    out = run.end(signum, code, seconds=10)
    assert run.process.communicate()[1] == ""
    assert out.splitlines()[-1] == f"Orchestrator ended; 2 workers left running. Stop: {PROGRAM} stop"
    assert all(is_running(pid) for pid in run.pids.values())


def test_nohup_stays_in_force(workspace: Workspace) -> None:
    workspace.database.add_stream("A")
    workspace.play("sleep=1 all")
    run = workspace.start(wait="A", preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN))
    run.end(signal.SIGHUP, 0)


def test_stop_takes_everything_down_and_nothing_comes_back(workspace: Workspace) -> None:
    workspace.database.add_streams("A", "B", "C")
    workspace.play("spawn setsid sleep=60", B="setsid hang")
    run = workspace.start(wait="ABC")
    pids = [*run.pids.values(), *workspace.wait_for_children(5)]
    workspace.check("stop", "--timeout", "1")
    run.finish(code=143, seconds=5)
    assert [pid for pid in pids if is_running(pid)] == []
    assert own_processes(workspace.root) == []
    assert list((workspace.state / "pids").glob("*.pid")) == []
    assert len(workspace.starts()) == 3
    again = workspace.run("stop")
    assert (again.returncode, again.stdout) == (0, "Nothing to stop.\n")


def test_start_clears_the_failure_of_a_stream_beside_a_running_orchestrator(workspace: Workspace) -> None:
    workspace.database.add_streams("A", "B")
    workspace.play(A="sleep=60", B=["exit=1", "all"])
    workspace.start("--max-restarts", "0")
    workspace.wait_for_event("worker_ended", verdict="failed")
    workspace.run("start", "B").check_returncode()
    workspace.wait_for_event("worker_ended", verdict="complete")


def test_a_worker_that_does_not_exit_after_its_last_task_is_stopped(workspace: Workspace) -> None:
    workspace.database.add_stream("F", "foundation")
    workspace.database.add_stream("P")
    workspace.play("all", F="all sleep=60")
    out = workspace.complete("--finish-grace", "0.5")
    assert "Stopping the worker of F: it was done, and did not exit by itself" in out
    assert workspace.starts() == ["F", "P"]


def test_exit_on_blocked_ends_the_run(workspace: Workspace) -> None:
    workspace.database.add_stream("A")
    workspace.play("block=why")
    text = workspace.complete("--exit-on-blocked", code=1)
    assert "    Why: why (TASK-1)\n    claude 'task_update TASK-1: status pending, notes: YOUR ANSWER'\n" in text


@pytest.mark.parametrize("presses", [1, 2])
def test_stop_on_exit_stops_the_workers_first_and_a_second_signal_kills(workspace: Workspace, presses: int) -> None:
    workspace.database.add_stream("A")
    workspace.play("sleep=60" if presses == 1 else "hang")
    run = workspace.start("--stop-on-exit", wait="A")
    if presses == 2:
        run.process.send_signal(signal.SIGINT)
        workspace.wait_for_event("worker_stopping")
        assert is_running(run.pids["A"])
    run.end(signal.SIGINT, 130, seconds=8)
    assert own_processes(workspace.root) == []


def test_detach_returns_when_the_orchestrator_runs(workspace: Workspace) -> None:
    workspace.database.add_stream("A")
    workspace.play("sleep=1 all")
    done = workspace.run("start", "--detach")
    assert done.returncode == 0
    pid = int((workspace.state / "orchestrator.pid").read_text())
    assert f"(PID {pid})" in done.stdout
    workspace.wait_for_event("run_ended")
    wait_until(lambda: not is_running(pid), "the end of the orchestrator")
    assert "all complete: 1 stream, 1 task" in (workspace.state / "logs" / "orchestrator.log").read_text()


def test_state_is_closed_to_others_and_kept_out_of_git(workspace: Workspace) -> None:
    workspace.database.add_stream("A")
    workspace.git("init", "--quiet")
    assert workspace.run("start").returncode == 0
    modes = {path: oct(path.stat().st_mode & 0o777) for path in workspace.state.rglob("*")}
    assert {mode for path, mode in modes.items() if path.is_dir()} == {"0o700"}
    assert {mode for path, mode in modes.items() if path.is_file()} == {"0o600"}
    assert workspace.state / "events.jsonl" in modes
    assert "orchestrator" not in workspace.git("status", "--porcelain")


def test_a_second_orchestrator_is_refused_even_when_the_state_folder_was_removed(workspace: Workspace) -> None:
    workspace.database.add_stream("A")
    workspace.play("sleep=60")
    run = workspace.start(wait="A")
    second = workspace.run("start")
    assert second.returncode == 75
    assert second.stderr.startswith(f"[ERROR] An orchestrator already runs for this project (PID {run.pid})\n")
    shutil.rmtree(workspace.state)
    wait_until(lambda: (workspace.state / "orchestrator.pid").exists(), "the folder to be made anew")
    wait_until(lambda: workspace.run("start").returncode == 75, "a second start to be refused")
    assert run.goes_on
    assert workspace.starts() == ["A"]


def test_a_flood_of_output_does_not_keep_the_orchestrator_from_ending(workspace: Workspace) -> None:
    workspace.database.add_stream("A")
    workspace.claude.write_text('#!/bin/sh\necho "[\\"A\\", \\"start\\", 1, 1]" > worker-times.txt\nexec yes\n')
    run = workspace.start(wait="A")
    raw = workspace.state / "logs" / "A.jsonl"
    wait_until(lambda: raw.stat().st_size > 20_000_000, "the flood")
    run.end(signal.SIGINT, 130, seconds=5)
    workspace.run("stop").check_returncode()
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
    workspace.database.add_stream("A")
    workspace.claude.write_text(f"#!{sys.executable}{ESCAPEE}")
    workspace.start()
    path = workspace.root / "escapee"
    escapee = int(wait_until(lambda: path.exists() and path.read_text(), "the child"))
    workspace.check("stop", "--timeout", "1")
    assert not is_running(escapee)


@pytest.mark.parametrize("reader", ["head -1", "true"])
def test_the_run_goes_on_when_nobody_reads_its_output(workspace: Workspace, reader: str) -> None:
    workspace.database.add_streams("A", "B", phase="foundation")
    workspace.play("sleep=0.5 all")
    command = f"{sys.executable} {SCRIPT} start | {reader}; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(
        ["/bin/bash", "-c", command],
        cwd=workspace.root, env=workspace.environment(), capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert workspace.starts() == ["A", "B"]
    assert "LineReporter says no more" in workspace.events("warning")[0]["message"]


def test_a_failed_foundation_ends_the_run_though_a_later_stream_is_blocked(workspace: Workspace) -> None:
    workspace.database.add_stream("F", "foundation")
    workspace.database.add_stream("P")
    workspace.database.set_status("blocked", "P")
    workspace.play("exit=1")
    assert "F failed" in workspace.complete("--max-restarts", "0", code=1, timeout=30)


# ── From outside ──────────────────────────────────────────────────────────────────────────────────────────────────────


def watch(workspace: Workspace, **options: Any) -> Run:
    """Look at the project again and again."""
    return Run(workspace, workspace.popen("status", "--watch", "0.1", env={"PYTHONUNBUFFERED": "1"}, **options))


def wait_for_status(shown: Run, words: str) -> None:
    """Wait until the last status that was shown begins with these words."""
    wait_until(lambda: shown.text.rpartition("Status: ")[2].startswith(words), words)


def test_who_watches_believes_the_journal_that_is_there(workspace: Workspace) -> None:
    workspace.database.add_stream("A")
    workspace.play(A="exit=1")
    workspace.complete("--max-restarts", "0", code=1)
    journal = workspace.state / "events.jsonl"
    whole = journal.read_bytes()
    shown = watch(workspace)
    for content in (whole, None, whole, b"", whole):
        if content is None:
            journal.unlink()
        else:
            journal.write_bytes(content)
        state, words, attempts = ("failed", "Failed: gave up", 1) if content else ("idle", "Not running", 0)
        wait_for_status(shown, words)
        (stream,) = workspace.status()["streams"]
        assert (stream["state"], stream["attempt"]) == (state, attempts)


def test_who_watches_reads_the_database_anew_each_time(workspace: Workspace) -> None:
    """It may be overwritten behind the back of SQLite, which then counts no change."""
    blind = "orchestrate.TaskStore.changed = lambda self: False\n"
    workspace.database.add_stream("A")
    shown = watch(workspace, script=workspace.write_script(IMPORT + blind + RUN))
    shown.wait_to_say("Status: Not running")
    workspace.database.set_status("completed", "A")
    assert shown.finish().endswith("All complete: 1 stream.\n")


def fill(values: Any) -> Any:
    """Return a value of the model in which no field has its default."""
    samples: dict[type, Any] = {int: 7, float: 7.5, str: "日本", bool: True}
    named: dict[str, Any] = {
        "stopping": StopReason.USER,
        "state": StreamState.FAILED,
        "cause": Cause.LIMIT,
        "fewest": 3,
        "streams": frozenset("ab"),
        "phase": Phase.PARALLEL,
        "said": frozenset(["x"]),
        "seen": {"a.py": [1, 2]},
        "strays": {"a.py": ("A", "B")},
    }
    if isinstance(values, History):
        named.update(limits=fill(Limits()), records={"A": fill(Record())})
    plain = values._asdict()
    changes = {name: named[name] if name in named else samples[type(plain[name])] for name in plain}
    assert all(changes[name] != plain[name] for name in plain)
    return values._replace(**changes)


def test_an_event_that_says_all_that_is_known_loses_no_field() -> None:
    history = fill(History())
    event = json.loads(json.dumps({"event": "journal_folded", "known": pack(history)}))
    assert History().after(event) == history


def test_a_fact_of_another_version_costs_no_other_one() -> None:
    known = {"spent": 2.5, "records": {"A": {"attempts": 3, "state": "DREAMING", "number": "x", "mood": 1}}}
    history = History().after({"event": "journal_folded", "known": known})
    assert (history.spent, history.record("A")) == (2.5, Record(attempts=3))
