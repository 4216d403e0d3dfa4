"""The command line: what people type, what they read, and the exit codes."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from support import PROGRAM, SCRIPT, Workspace, own_processes, unstamp, wait_until

WRAPPERS = {"PYTHON": sys.executable}


def test_a_missing_package_is_one_line_with_the_command_that_installs_it(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-S", "-E", str(SCRIPT), "status"],
        cwd=tmp_path,
        env={"PATH": "/usr/bin:/bin", "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (2, "")
    error, line = done.stderr.splitlines()
    assert error == f"[ERROR] orchestrate needs click, rich, psutil, which {sys.executable} lacks. Install with:"
    assert "pip install -q click rich psutil" in line


def test_the_file_says_what_it_needs_for_uv() -> None:
    block = re.search(r"(?m)^# /// script\n((?:#.*\n)+?)# ///$", SCRIPT.read_text(encoding="utf-8"))
    assert block is not None
    assert '# requires-python = ">=3.8"\n' in block[1]
    assert re.findall(r'"(\w+)>=', block[1].splitlines()[1]) == ["click", "rich", "psutil"]


def test_no_database_names_every_path_and_the_remedy(workspace: Workspace) -> None:
    done = workspace.run("start", env={"WORKSPACE_ID": "elsewhere"})
    assert (done.returncode, done.stdout) == (2, "")
    base = workspace.home / ".claude" / "tasks"
    assert done.stderr.startswith(f"[ERROR] Task Copilot database not found: {base}/elsewhere/tasks.db\n")
    assert re.search(rf"also tried: {base}/[0-9a-f]{{12}}/tasks.db\nRun /protocol .*--db", done.stderr)
    assert not workspace.state.exists()


def test_a_project_of_the_next_claude_copilot_is_told_so(workspace: Workspace) -> None:
    (workspace.root / ".copilot").mkdir()
    (workspace.root / ".copilot" / "tasks.db").touch()
    for command in ("start", "status"):
        done = workspace.run(command, env={"WORKSPACE_ID": "elsewhere"})
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.endswith("tasks.db, and is not supported yet: use Claude Copilot 2.\n")
        assert "/protocol" not in done.stderr


def test_no_streams_is_an_error_with_a_remedy(workspace: Workspace) -> None:
    workspace.database.add_task(None)
    done = workspace.run("start")
    assert done.returncode == 2
    assert done.stderr.splitlines()[0] == "[ERROR] No streams found in Task Copilot database"
    assert len(done.stderr.splitlines()) == 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("start", "Stream-X"), "there is no stream 'Stream-X'; there is Stream-A, Stream-B"),
        (("stop", "Stream-X"), "there is no stream 'Stream-X'; there is Stream-A, Stream-B"),
        (("logs", "Steam-B"), "there is no stream 'Steam-B'; there is Stream-A, Stream-B"),
        (("status", "stream-a"), "there is no stream 'stream-a'; there is Stream-A"),
        (("start", "--phase", "integration"), "no stream is in the integration phase"),
        (("start", "--phase", "foundation", "Stream-B"), "not in the foundation phase: Stream-B"),
        (("start", "--max-workers", "0"), "Invalid value for '--max-workers': 0 is not in the range x>=1."),
        (("start", "--claude", "'"), '--claude "\'": No closing quotation'),
        (("start", "--claude", ""), "--claude is empty"),
        (("frobnicate",), "No such command 'frobnicate'."),
        (("start", "--phase", "later"), "Invalid value for '--phase'"),
    ],
)
def test_wrong_usage_exits_2_with_one_clear_error(workspace: Workspace, words: tuple[str, ...], message: str) -> None:
    workspace.database.add_stream("Stream-A")
    workspace.database.add_stream("Stream-B")
    done = workspace.run(*words)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"[ERROR] {message}")
    assert "Traceback" not in done.stderr
    assert workspace.starts() == []


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"streamPhase": "later"}, 'task TASK-1 has the unknown phase "later"'),
        ({"streamDependencies": ["Nowhere"]}, "it depends on Nowhere, and no stream has that id"),
        (
            {"streamDependencies": ["Stream-A"]},
            "its dependencies form a cycle: Stream-A (parallel) -> Stream-A (parallel)",
        ),
    ],
)
def test_streams_that_can_not_run_are_an_error_before_anything_starts(
    workspace: Workspace, metadata: dict[str, object], message: str
) -> None:
    workspace.database.add_stream("Stream-A", **metadata)  # type: ignore[arg-type]
    workspace.database.add_stream("Stream-B")
    done = workspace.run("start")
    assert (done.returncode, done.stderr.splitlines()[0]) == (2, f"[ERROR] Stream-A: {message}")
    assert workspace.starts() == []


def test_a_selection_that_waits_for_others_is_an_error_that_names_them(workspace: Workspace) -> None:
    workspace.database.add_stream("Stream-A", "foundation")
    workspace.database.add_stream("Stream-B")
    done = workspace.run("start", "Stream-B")
    assert done.returncode == 2
    assert done.stderr == (
        "[ERROR] Stream-B can't start: it waits for Stream-A, not part of this run\n"
        f"Complete them first, or start them too: {PROGRAM} start Stream-A Stream-B\n"
    )
    assert workspace.run("start", "Stream-A").returncode == 0
    assert workspace.run("start", "--phase", "parallel").returncode == 0
    assert workspace.starts() == ["Stream-A", "Stream-B"]


def test_a_claude_that_is_missing_or_not_executable_is_said_before_anything_starts(workspace: Workspace) -> None:
    workspace.database.add_stream("Stream-A")
    done = workspace.run("start", "--claude", "no-such-claude --model x")
    assert (done.returncode, done.stderr.splitlines()[0]) == (2, "[ERROR] no-such-claude: command not found")
    workspace.claude.chmod(0o644)
    done = workspace.run("start", "--claude", "../bin/claude")
    assert done.returncode == 2
    assert re.fullmatch(
        r"\[ERROR\] .*/bin/claude is not executable\nMake it so: chmod \+x .*/bin/claude\n", done.stderr
    )
    assert not workspace.state.exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root is refused by claude")
def test_claude_as_root_outside_a_sandbox_is_said_before_anything_starts(workspace: Workspace) -> None:
    workspace.database.add_stream("Stream-A")
    done = workspace.run("start", env={"IS_SANDBOX": "yes"})
    assert (done.returncode, done.stderr.splitlines()[0]) == (
        2,
        "[ERROR] claude refuses --dangerously-skip-permissions for root",
    )
    assert "export IS_SANDBOX=1" in done.stderr
    assert workspace.run("start", "--claude", "nice claude", env={"IS_SANDBOX": "yes"}).returncode == 0


def test_claude_may_carry_flags_and_a_launcher(workspace: Workspace) -> None:
    workspace.database.add_stream("Stream-A")
    (workspace.bin / "claude").write_text('#!/bin/sh\necho "$(nice) $1 $2 $3" > words.txt\n')
    workspace.run("start", "--max-restarts", "0", "--claude", "nice -n 5 claude --model 'opus 4'")
    assert (workspace.root / "words.txt").read_text().split() == ["5", "--model", "opus", "4", "--print"]


def test_options_have_environment_variables_and_stand_before_or_behind_the_command(workspace: Workspace) -> None:
    workspace.database.add_stream("Stream-A")
    elsewhere = {"cwd": "/", "env": {"ORCHESTRATE_START_DRY_RUN": "1"}}
    for words in (("--project", str(workspace.root), "start"), ("start", "--project", str(workspace.root))):
        done = workspace.run(*words, **elsewhere)
        assert done.returncode == 0
        assert f"Project   {workspace.root}\n" in done.stdout
    assert workspace.starts() == []


def test_the_variables_of_a_worker_are_no_options(workspace: Workspace, tmp_path: Path) -> None:
    workspace.database.add_stream("Stream-A")
    done = workspace.run("status", env={"ORCHESTRATE_PROJECT": str(tmp_path), "ORCHESTRATE_STREAM": "x"})
    assert "MY-PROJECT - WORKER STATUS" in done.stdout


def test_dry_run_shows_the_plan_and_starts_nothing(workspace: Workspace) -> None:
    workspace.database.add_stream("Stream-A", "foundation", tasks=2)
    workspace.database.add_stream("Stream-B")
    done = workspace.run("start", "--dry-run")
    assert done.returncode == 0
    assert done.stdout == (
        f"Project   {workspace.root}\n"
        f"Database  {workspace.database.path}\n"
        "Command   claude --print --dangerously-skip-permissions --output-format stream-json --verbose -p PROMPT\n"
        "Worktrees none: it lies in no git repository\n"
        "foundation  Stream-A  0/2  starts at once, or as soon as a worker is free\n"
        "parallel    Stream-B  0/1  Waiting for Stream-A\n"
    )
    assert (workspace.starts(), workspace.state.exists()) == ([], False)


def test_json_events_are_json_alone(workspace: Workspace) -> None:
    workspace.database.add_stream("Stream-A", "foundation")
    done = workspace.run("start", "--json")
    events = [json.loads(line) for line in done.stdout.splitlines()]
    assert [e["event"] for e in events if e["event"] != "state"] == [
        "run_started",
        "worker_starting",
        "worker_started",
        "worker_ended",
        "run_ended",
    ]
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", event["time"]) for event in events)
    journal = workspace.events()
    assert journal[0].pop("known") == {"project": str(workspace.root)}  # what was before: for the journal alone
    assert events == journal


def test_status_json_is_for_programs(workspace: Workspace) -> None:
    workspace.database.add_stream("Stream-A", "foundation", tasks=3)
    workspace.play("next sleep=60")
    run = workspace.popen("start")
    pid = workspace.wait_for_worker("Stream-A")
    wait_until(lambda: json.loads(workspace.run("status", "--json").stdout)["streams"][0]["percent"], "progress")
    status = json.loads(workspace.run("status", "--json").stdout)
    assert (status["version"], status["project"], status["orchestrator_pid"]) == (1, str(workspace.root), run.pid)
    (stream,) = status["streams"]
    assert (stream["state"], stream["pid"], stream["percent"], stream["attempt"]) == ("working", pid, 33, 1)
    assert stream["tasks"] == {"total": 3, "pending": 2, "in_progress": 0, "blocked": 0, "completed": 1, "cancelled": 0}


def test_status_check_answers_with_its_exit_code(workspace: Workspace) -> None:
    workspace.database.add_stream("Stream-A")
    assert workspace.run("status", "--check").returncode == 3
    workspace.database.set_status("completed", "Stream-A")
    assert workspace.run("status", "--check").returncode == 0
    assert workspace.run("status", "--check", "--db", "/nowhere/tasks.db").returncode == 4
    assert workspace.run("status", "--db", "/nowhere/tasks.db").returncode == 2


def test_status_of_some_streams_shows_those_alone(workspace: Workspace) -> None:
    workspace.database.add_stream("Stream-A")
    workspace.database.add_stream("Stream-B")
    done = workspace.run("status", "Stream-B")
    assert "Stream-B" in done.stdout
    assert "Stream-A" not in done.stdout


def test_status_in_a_pipe_has_no_colour_and_cuts_nothing(workspace: Workspace) -> None:
    name = "a name that is wider than a terminal " * 4
    workspace.database.add_stream("Stream-A", streamName=name.strip())
    done = workspace.run("status")
    assert name.strip() in done.stdout
    assert "\x1b" not in done.stdout


@pytest.mark.parametrize("through_link", [False, True])
def test_the_wrappers_call_the_renderer_from_anywhere(workspace: Workspace, tmp_path: Path, through_link: bool) -> None:
    workspace.database.add_stream("Stream-A", tasks=2)
    folder = SCRIPT.parent
    if through_link:
        folder = tmp_path / "a folder with spaces"
        folder.mkdir()
        for name in ("check-streams", "watch-status"):
            (folder / f"{name}-2").symlink_to(SCRIPT.parent / name)
            (folder / name).symlink_to(f"{name}-2")
    environment = workspace.environment(PYTHON=sys.executable)
    once = subprocess.run(
        [str(folder / "check-streams"), "--project", str(workspace.root)],
        cwd="/", env=environment, capture_output=True, text=True, encoding="utf-8", check=True,
    )  # fmt: skip
    assert "MY-PROJECT - STREAM STATUS" in once.stdout
    assert "0/2 (0%)" in once.stdout
    with subprocess.Popen(
        [str(folder / "watch-status"), "0.1"],
        cwd=workspace.root, env=environment, stdout=subprocess.PIPE, text=True, encoding="utf-8",
    ) as live:  # fmt: skip
        assert live.stdout is not None
        assert any("0/2 (0%)" in line for line in live.stdout)
        workspace.database.execute("UPDATE tasks SET status = 'completed' WHERE id = 'TASK-1'")
        assert any("1/2 (50%)" in line for line in live.stdout)
        live.send_signal(signal.SIGINT)
        live.stdout.read()
    assert live.returncode == 130


def test_logs_shows_the_last_lines_and_follows_until_ctrl_c(workspace: Workspace) -> None:
    workspace.database.add_stream("Stream-A")
    workspace.play("say=one say=two sleep=0.5 say=three all")
    assert workspace.run("start").returncode == 0
    done = workspace.run("logs", "Stream-A", "--no-follow", "-n", "100")
    words = [line for line in unstamp(done.stdout) if line in ("one", "two", "three")]
    assert words == ["one", "two", "three"]
    assert "attempt 1" in done.stdout.splitlines()[0]
    last = workspace.run("logs", "Stream-A", "--no-follow", "-n", "2").stdout.splitlines()
    assert len(last) == 2
    assert last == done.stdout.splitlines()[-2:]
    follower = workspace.popen("logs", "Stream-A", "-n", "1")
    path = workspace.state / "logs" / "Stream-A.log"
    assert follower.stdout is not None
    assert follower.stdout.readline().rstrip("\n") == last[-1]
    with path.open("a") as log:
        log.write("more\x1b[31m\n")
    assert follower.stdout.readline() == "more␛[31m\n"
    path.rename(path.with_suffix(".1"))
    path.write_text("from the new file\n")
    assert follower.stdout.readline() == "from the new file\n"
    follower.send_signal(signal.SIGINT)
    assert follower.wait(timeout=10) == 130


def test_logs_of_several_streams_name_each_line(workspace: Workspace) -> None:
    workspace.database.add_stream("Stream-A")
    workspace.database.add_stream("Stream-B")
    workspace.play("say=hello all")
    assert workspace.run("start").returncode == 0
    lines = unstamp(workspace.run("logs", "--no-follow").stdout)
    assert {"Stream-A │ hello", "Stream-B │ hello"} <= set(lines)
    raw = workspace.run("logs", "Stream-B", "--raw", "--no-follow").stdout
    assert raw == "hello\n"


def test_a_reader_that_goes_away_is_no_error(workspace: Workspace) -> None:
    workspace.database.add_stream("Stream-A")
    done = subprocess.run(
        f"{sys.executable} {SCRIPT} status | true; exit ${{PIPESTATUS[0]}}",
        shell=True, executable="/bin/bash", cwd=workspace.root, env=workspace.environment(),
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.stderr == ""


def test_help_has_examples_for_every_command(workspace: Workspace) -> None:
    assert "Examples:" in workspace.run("--help").stdout
    assert workspace.run("start", "--help").stdout.count(f"{PROGRAM} start") >= 3


def test_without_a_command_there_is_the_help_with_the_commands_in_the_order_of_work(workspace: Workspace) -> None:
    text = workspace.check(env={"COLUMNS": "60"})
    assert text == workspace.check("--help", env={"COLUMNS": "60"}) == workspace.check("-h", env={"COLUMNS": "60"})
    commands = text.split("Commands:\n")[1]
    names = re.findall(r"(?m)^  (\w+) ", commands)
    assert names == "generate doctor start status logs stop timeline merge clean demo".split()  # noqa: SIM905
    assert re.findall(r"[^.]\n  \w", commands) == []  # each summary is a whole sentence
    assert "..." not in commands
    assert workspace.check("-V") == workspace.check("--version")


def test_nothing_is_left_behind(workspace: Workspace) -> None:
    workspace.database.add_stream("Stream-A")
    assert workspace.run("start").returncode == 0
    assert own_processes(workspace.root) == []
    assert (workspace.state / "orchestrator.pid").read_text() == ""
    assert list((workspace.state / "pids").iterdir()) == []


@pytest.mark.parametrize(
    "words", [("start", "--json", "--detach"), ("start", "--json", "--dry-run"), ("status", "--json", "--watch")]
)
def test_json_is_never_mixed_with_what_is_for_people(workspace: Workspace, words: tuple[str, ...]) -> None:
    workspace.database.add_stream("Stream-A")
    assert (workspace.run(*words).returncode, workspace.run(*words).stdout) == (2, "")


def test_the_variable_of_json_has_its_name(workspace: Workspace) -> None:
    workspace.database.add_stream("Stream-A")
    assert json.loads(workspace.run("status", env={"ORCHESTRATE_STATUS_JSON": "1"}).stdout)["version"] == 1


@pytest.mark.parametrize("number", ["nan", "inf", "-1"])
def test_a_number_that_is_none_is_wrong_usage(workspace: Workspace, number: str) -> None:
    workspace.database.add_stream("Stream-A")
    for words in (("status", "--watch", number), ("start", "--finish-grace", number), ("stop", "--timeout", number)):
        done = workspace.run(*words)
        assert (done.returncode, "Traceback" in done.stderr) == (2, False)


def test_a_state_folder_that_can_not_be_made_is_an_error_without_a_traceback(workspace: Workspace) -> None:
    workspace.database.add_stream("Stream-A")
    workspace.state.write_text("a file")
    for words in (("start",), ("start", "--detach")):
        done = workspace.run(*words)
        assert done.returncode == 2
        assert re.match(r"\[ERROR\] .*orchestrator.*\n.+\n", done.stderr)
        assert "Traceback" not in done.stderr


def test_a_dry_run_shows_what_start_would_do_with_a_stopped_and_a_failed_stream(workspace: Workspace) -> None:
    for stream in ("A", "B"):
        workspace.database.add_stream(stream)
    workspace.play("exit=1", B="sleep=60")
    run = workspace.popen("start", "--max-restarts", "0", "--exit-on-blocked")
    wait_until(lambda: workspace.starts() and len(workspace.starts()) == 2, "both workers")
    assert workspace.run("stop", "B").returncode == 0
    assert run.wait(timeout=30) == 1
    lines = workspace.run("start", "--dry-run").stdout.splitlines()[-2:]
    assert [line.split("; in ")[0] for line in lines] == [
        f"parallel    {stream}  0/1  starts at once, or as soon as a worker is free" for stream in ("A", "B")
    ]
    assert "B  0/1  Stopped: by the user" in workspace.run("start", "--dry-run", "A").stdout


def test_check_says_no_such_project_only_where_there_is_none(workspace: Workspace) -> None:
    assert workspace.run("status", "--check").returncode == 4  # no streams
    workspace.database.path.write_bytes(b"no database" * 1000)
    done = workspace.run("status", "--check")
    assert (done.returncode, "file is not a database" in done.stderr) == (2, True)


# ── The first minute ──────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("command", ["start", "status", "stop", "logs", "timeline", "merge", "clean"])
def test_a_folder_that_is_no_project_is_said_to_be_none(workspace: Workspace, tmp_path: Path, command: str) -> None:
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    done = workspace.run(command, cwd=folder)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        f"[ERROR] {folder} is no project: there is no .git, .claude or .mcp.json\n"
        "Go to the project's folder with cd, or name it with --project DIR.\n"
    )
    assert list(folder.iterdir()) == []
    assert workspace.run("status", "--check", cwd=folder).returncode == 4
    findings = json.loads(workspace.run("doctor", "--json", cwd=folder).stdout)
    assert ("Project", "error") in [(check["subject"], check["level"]) for check in findings["checks"]]


def test_a_folder_that_is_gone_is_said_to_be(workspace: Workspace, tmp_path: Path) -> None:
    script = f'mkdir gone; cd gone; rmdir "$PWD"; exec {sys.executable} {SCRIPT} status'
    done = subprocess.run(
        ["sh", "-c", script], cwd=tmp_path, env=workspace.environment(), stderr=subprocess.PIPE, text=True, timeout=60
    )
    assert done.returncode == 2
    assert done.stderr == "[ERROR] The folder that you are in is gone.\nGo to the project's folder with cd.\n"


def test_a_start_waits_for_a_locked_database_and_says_so_once(workspace: Workspace) -> None:
    workspace.database.add_stream("A")
    writer = sqlite3.connect(workspace.database.path, isolation_level=None)
    writer.execute("PRAGMA journal_mode = DELETE")
    writer.execute("BEGIN EXCLUSIVE")
    process = workspace.popen("start")
    assert process.stderr is not None
    line = f"The database is locked; waiting for whoever writes to it: {workspace.database.path}\n"
    assert process.stderr.readline() == line
    assert process.poll() is None
    writer.execute("COMMIT")
    writer.close()
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, "")
    assert workspace.starts() == ["A"]


@pytest.mark.parametrize("is_named", [True, False])
def test_a_stream_is_not_left_to_a_run_that_never_gets_to_what_it_waits_for(
    workspace: Workspace, is_named: bool
) -> None:
    """`start STREAM` starts no other: it waits for what runs or is part of the run, and names the rest."""
    workspace.database.add_stream("F", "foundation")
    workspace.database.add_streams("A", "B")
    workspace.database.add_stream("I", "integration")
    workspace.database.set_status("completed", "F")
    workspace.play("until=gate all")
    run = workspace.start(*(["A"] if is_named else []), wait="A")
    done = workspace.run("start", "I")
    if is_named:
        assert done.returncode == 2
        assert done.stderr == (
            "[ERROR] I can't start: it waits for B, not part of this run\n"
            f"Complete them first, or start them too: {PROGRAM} start B I\n"
        )
        assert not workspace.events("start_requested")
    else:
        assert (done.returncode, done.stderr) == (0, "")
    run.finish("gate")
    assert sorted(workspace.starts()) == (["A"] if is_named else ["A", "B", "I"])


def test_a_hint_names_the_program_as_it_was_called_and_the_project_that_it_was_given(workspace: Workspace) -> None:
    workspace.database.add_stream("A")
    workspace.play("until=gate all")
    workspace.start(wait="A").kill()
    assert workspace.run("generate").returncode == 0
    named = ["--project", str(workspace.root), "--db", str(workspace.database.path)]
    script = ".claude/orchestrator/orchestrate.py"
    called = {
        f"{sys.executable} {script} status": f"{sys.executable} {script} start --poll-interval 600",
        f"{sys.executable} {SCRIPT} status {shlex.join(named)}": (
            f"{PROGRAM} {shlex.join(named)} start --poll-interval 600"
        ),
        "./.claude/orchestrator/check-streams": f"{sys.executable} {script} start --poll-interval 600",
    }
    for line, hint in called.items():
        done = subprocess.run(
            ["/bin/sh", "-c", line], cwd=workspace.root, env=workspace.environment(), capture_output=True, text=True,
            encoding="utf-8", check=True,
        )  # fmt: skip
        hints = [text.partition("To go on: ")[2] for text in done.stdout.splitlines() if "To go on: " in text]
        # From Python 3.10 on it knows how it was called; any python3 will do for an installed copy.
        assert hints in ([hint], [hint.replace(f"{sys.executable} .claude", "python3 .claude")])
    workspace.open_gate("gate")


def test_who_is_blocked_is_told_how_to_answer(workspace: Workspace) -> None:
    workspace.database.add_stream("A", tasks=2)
    workspace.play("next block=which_one?")
    run = workspace.start()
    answer = "claude 'task_update TASK-2: status pending, notes: YOUR ANSWER'"
    run.wait_to_say(f"Waiting: A is blocked: which_one? (TASK-2)\n{' ' * 29}{answer}\n")
    assert workspace.events("run_waiting")[0]["answers"] == [answer]
    for words in (["status"], ["status", "--dashboard"]):
        assert f"  To answer: {answer}\n" in workspace.check(*words)
    workspace.play("all")
    workspace.database.execute("UPDATE tasks SET status = 'pending' WHERE id = 'TASK-2'")
    assert re.search(r"✓ A complete in \d+s, 2 attempts\n", run.finish())


def test_a_stream_whose_name_looks_like_an_option_is_named_so_that_it_can_be_pasted(workspace: Workspace) -> None:
    workspace.database.add_stream("-x")
    workspace.play("exit=1")
    text = workspace.complete("--max-restarts", "0", code=1)
    assert f"    {PROGRAM} logs --no-follow -- -x\n    {PROGRAM} start -- -x\n" in text
    assert "attempt 1" in workspace.check("logs", "--no-follow", "--", "-x")


def test_the_way_to_go_on_has_the_options_of_the_run(workspace: Workspace) -> None:
    workspace.database.add_streams("A", "B")
    workspace.claude.rename(workspace.root.parent / "my claude")
    words = ["start", "--claude", "'../my claude'", "--max-restarts", "0"]
    workspace.play("until=gate exit=1")
    run = workspace.popen(*words)
    workspace.wait_for_worker("A")
    run.send_signal(signal.SIGINT)
    run.wait(20)
    again = shlex.join(words)
    for shown in ("status", "check"):
        text = workspace.check("status", *(["--dashboard"] if shown == "check" else []))
        assert f"  To go on: {PROGRAM} {again}\n" in text
    workspace.open_gate("gate")
    go_on = [f"{sys.executable} {SCRIPT} {again}"]
    done = subprocess.run(
        ["/bin/sh", "-c", *go_on], cwd=workspace.root, env=workspace.environment(), capture_output=True, text=True,
        encoding="utf-8", check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (1, "")
    assert done.stdout.endswith(f"\nGo on: {PROGRAM} {again}\n")
    assert workspace.check("timeline").endswith(f"\nGo on: {PROGRAM} {again}\n")


def test_a_run_that_goes_on_with_other_options_than_it_had_says_so(workspace: Workspace) -> None:
    workspace.database.add_stream("A", "foundation")
    workspace.play("until=gate all")
    words = ("start", "--budget", "5", "--max-workers", "2")
    for given in (words, (*words, "--detach")):
        first = workspace.popen(*given)
        workspace.wait_for_worker("A")
        if "--detach" in given:
            assert first.wait(20) == 0
            assert workspace.run("stop").returncode == 0
        else:
            first.kill()
            first.wait()
    assert workspace.events("warning") == []  # in the background it is the same run
    second = workspace.popen("start")
    workspace.wait_for_worker("A")
    said = f"the interrupted run had other options; to go on with them: {PROGRAM} {shlex.join(words)}"
    wait_until(lambda: [event["message"] for event in workspace.events("warning")] == [said], "the warning")
    workspace.open_gate("gate")
    out, _ = second.communicate(timeout=30)
    assert second.returncode == 0, out
    assert f"! Warning: {said}\n" in out
    assert "other options" not in workspace.check("start")  # that one has come to its end
