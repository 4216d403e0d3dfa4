"""`logs --since`, logs that are still to come, and what a run tells GitHub Actions."""

from __future__ import annotations

import re
import signal
import time
from pathlib import Path

import click
import pytest
from support import Workspace, wait_until

from orchestrate import LogFollower, StreamState, format_annotation, read_moment

NOON = time.mktime((2026, 11, 23, 12, 0, 0, 0, 0, -1))


def stamp(wall: float) -> str:
    """Return a moment as it stands in a log: in UTC."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(wall))


def write_worker(name: str, begin: float, end: float | None) -> str:
    """Return what a worker leaves in a log."""
    lines = [f"──── {stamp(begin)} · Stream-A (a name) · parallel · attempt 1 · PID 7 · /project", f"{name} says"]
    if end is not None:
        lines += [f"──── {stamp(end)} · ended after 5m 00s, 2 turns, $0.10: exit code 1", f"after {name}"]
    return "".join(f"{line}\n" for line in lines)


def write_log(folder: Path, now: float = NOON) -> Path:
    """Write the log of three workers: from 60 to 50 and from 40 to 30 minutes ago, and since 20 minutes ago."""
    path = folder / "Stream-A.log"
    ago = [now - 60 * minutes for minutes in (60, 50, 40, 30, 20)]
    text = write_worker("one", *ago[:2]) + write_worker("two", *ago[2:4]) + write_worker("three", ago[4], None)
    path.write_text(text, encoding="utf-8")
    return path


ONE, TWO, THREE = ["one says"], ["two says"], ["three says"]
AFTER_ONE, AFTER_TWO = ["after one"], ["after two"]


@pytest.mark.parametrize(
    ("minutes", "said"),
    [
        (600, ONE + AFTER_ONE + TWO + AFTER_TWO + THREE),
        (60, ONE + AFTER_ONE + TWO + AFTER_TWO + THREE),
        (55, ONE + AFTER_ONE + TWO + AFTER_TWO + THREE),
        (50, ONE + AFTER_ONE + TWO + AFTER_TWO + THREE),
        (45, AFTER_ONE + TWO + AFTER_TWO + THREE),
        (40, TWO + AFTER_TWO + THREE),
        (35, TWO + AFTER_TWO + THREE),
        (25, AFTER_TWO + THREE),
        (20, THREE),
        (10, THREE),
        (-10, THREE),
    ],
)
def test_a_log_begins_with_the_worker_that_ran_then(tmp_path: Path, minutes: int, said: list[str]) -> None:
    follower = LogFollower(write_log(tmp_path), 1, NOON - 60 * minutes)
    assert [line.rstrip("\n") for line in follower.read() if not line.startswith("────")] == said
    follower.close()


@pytest.mark.parametrize(
    "forged", ["9999-99-99 99:99:99", "2026-02-30 00:00:00", "2026-01-01 ::::::::", "0000-01-01 00:00:00"]
)
def test_a_line_that_a_worker_made_to_look_like_a_mark_is_a_line(tmp_path: Path, forged: str) -> None:
    path = write_log(tmp_path)
    with path.open("a", encoding="utf-8") as log:
        log.write(f"──── {forged} · Stream-A · forged\nstill three\n")
    follower = LogFollower(path, 1, NOON - 60 * 10)
    assert "still three\n" in follower.read()
    follower.close()


def test_a_log_with_bytes_and_without_marks_is_shown_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.log"
    path.write_bytes(b"\xff\xfe no mark\n" * 3)
    follower = LogFollower(path, 1, NOON)
    assert len(follower.read()) == 3
    follower.close()


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("30s", NOON - 30),
        ("30m", NOON - 1800),
        ("2h", NOON - 7200),
        ("1d", NOON - 86400),
        ("0s", NOON),
        ("10:05", NOON - 6900),
        ("10:05:30", NOON - 6870),
        ("14:05", NOON + 7500),
        ("2026-11-23T11:00", NOON - 3600),
        ("2026-11-23 11:00:00", NOON - 3600),
        ("2026-11-23", NOON - 43200),
        ("1970-01-02T00:00:00Z", 86400),
        ("1970-01-02T02:00:00+02:00", 86400),
    ],
)
def test_read_moment(text: str, moment: float) -> None:
    assert read_moment(text, NOON) == moment


BAD = ["soon", "30", "-5m", "2h30m", "25:00", "2026-13-01", "1.5h", "½h", " ", "%H:%M", "9" * 400 + "d"]


@pytest.mark.parametrize("text", BAD)
def test_what_is_no_time_is_a_usage_error(text: str) -> None:
    with pytest.raises(click.UsageError):
        read_moment(text, NOON)


@pytest.mark.parametrize(
    "words", [("--since", "soon"), ("--since", ""), ("--since", "9" * 400 + "d"), ("--since", "2h", "--raw")]
)
def test_logs_since_is_checked_before_anything_is_shown(workspace: Workspace, words: tuple[str, ...]) -> None:
    workspace.database.add_stream("Stream-A")
    done = workspace.run("logs", *words, "--no-follow", timeout=20)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("[ERROR] --since ")
    assert "Traceback" not in done.stderr


def test_logs_since_shows_the_worker_that_ran_then(workspace: Workspace) -> None:
    workspace.database.add_stream("Stream-A")
    workspace.database.add_stream("Stream-B")
    (workspace.state / "logs").mkdir(parents=True, mode=0o700)
    workspace.state.chmod(0o700)
    write_log(workspace.state / "logs", time.time())
    shown = workspace.run("logs", "--since", "35m", "--no-follow", "Stream-A").stdout.splitlines()
    assert [line for line in shown if not line.startswith("────")] == TWO + AFTER_TWO + THREE
    shown = workspace.run("logs", "--since", "35m", "--no-follow").stdout.splitlines()
    assert [line for line in shown if "────" not in line] == [f"Stream-A │ {line}" for line in TWO + AFTER_TWO + THREE]
    moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(time.time() - 35 * 60))
    shown = workspace.run("logs", "--since", moment, "--no-follow", "Stream-A").stdout.splitlines()
    assert [line for line in shown if not line.startswith("────")] == TWO + AFTER_TWO + THREE


def test_a_log_that_is_still_to_come_is_waited_for(workspace: Workspace) -> None:
    workspace.database.add_stream("Stream-A")
    path = workspace.state / "logs" / "Stream-A.log"
    follower = workspace.popen("logs", "Stream-A")
    assert follower.stdout is not None
    assert follower.stderr is not None
    assert follower.stderr.readline() == f"Stream-A has no log yet: {path}\n"
    workspace.play("say=hello all")
    assert workspace.run("start").returncode == 0
    assert "attempt 1" in follower.stdout.readline()
    assert follower.stdout.readline() == "hello\n"
    follower.send_signal(signal.SIGINT)
    _, err = follower.communicate(timeout=20)
    assert (follower.returncode, err) == (130, "")


def test_a_log_that_does_not_exist_is_not_waited_for_without_following(workspace: Workspace) -> None:
    workspace.database.add_stream("Stream-A")
    done = workspace.run("logs", "Stream-A", "--no-follow")
    assert (done.returncode, done.stdout) == (0, "")
    assert done.stderr.splitlines()[0].startswith("Stream-A has no log yet: ")


# ── GitHub Actions ────────────────────────────────────────────────────────────────────────────────────────────────────

ACTIONS = {"GITHUB_ACTIONS": "true"}


def test_an_annotation_escapes_what_github_would_obey() -> None:
    event = {"event": "state", "stream": "A%,:\n::b", "state": "FAILED", "reason": "100%: a, b\r\n::error::x\x1b[2J"}
    line = format_annotation(event)
    assert line == "::error title=A%25%2C%3A␊%3A%3Ab failed::100%25: a, b␍␊::error::x␛[2J"
    assert "\n" not in line


@pytest.mark.parametrize("state", [state.name for state in StreamState if state is not StreamState.FAILED])
def test_only_a_failure_is_annotated(state: str) -> None:
    assert format_annotation({"event": "state", "stream": "A", "state": state, "reason": "x"}) == ""
    assert format_annotation({"event": "run_ended", "reason": "x", "exit_code": 1}) == ""


def fail(workspace: Workspace) -> None:
    workspace.database.add_stream("Stream-B")
    workspace.play("say=50%:,done exit=1")


def test_a_failure_is_annotated_on_github(workspace: Workspace) -> None:
    fail(workspace)
    done = workspace.run("start", "--max-restarts", "0", env=ACTIONS)
    assert done.returncode == 1
    annotations = [line for line in done.stdout.splitlines() if line.startswith("::")]
    (reason,) = (event["reason"] for event in workspace.events("state") if event["state"] == "FAILED")
    assert annotations == [f"::error title=Stream-B failed::{reason.replace('%', '%25')}"]
    assert "50%25:,done" in annotations[0]


@pytest.mark.parametrize("env", [{}, {"GITHUB_ACTIONS": "false"}, {"GITHUB_ACTIONS": ""}])
def test_nothing_is_annotated_elsewhere(workspace: Workspace, env: dict[str, str]) -> None:
    fail(workspace)
    done = workspace.run("start", "--max-restarts", "0", env=env)
    assert (done.returncode, "::error" in done.stdout + done.stderr) == (1, False)


def test_json_is_not_annotated(workspace: Workspace) -> None:
    fail(workspace)
    done = workspace.run("start", "--max-restarts", "0", "--json", env=ACTIONS)
    assert all(line.startswith("{") for line in done.stdout.splitlines())
    assert "::error" not in done.stderr


def test_a_worker_can_not_annotate(workspace: Workspace) -> None:
    """Whatever a worker says, or a stream is called, begins no line of the run's own."""
    workspace.database.add_stream("::error::x")
    workspace.play("say=::error::y exit=1")
    done = workspace.run("start", "--max-restarts", "0", env=ACTIONS)
    assert [line for line in done.stdout.splitlines() if line.startswith("::error")] == [
        line for line in done.stdout.splitlines() if line.startswith("::error title=%3A%3Aerror%3A%3Ax failed::")
    ]
    wait_until(lambda: workspace.events("run_ended"), "the end")


def test_logs_where_there_is_nothing_to_follow_says_why(workspace: Workspace) -> None:
    done = workspace.run("logs")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("[ERROR] No streams found in Task Copilot database\n")
    named = workspace.run("logs", "Nope")
    assert (named.returncode, "there is no stream 'Nope'; there is none in this project" in named.stderr) == (2, True)
    workspace.database.path.unlink()
    assert workspace.run("logs").stderr.startswith("[ERROR] Task Copilot database not found: ")


def test_logs_of_all_streams_before_any_has_one_says_so(workspace: Workspace) -> None:
    workspace.database.add_stream("A")
    done = workspace.run("logs", "--no-follow")
    assert (done.returncode, done.stdout) == (0, "")
    assert done.stderr == f"A has no log yet: {workspace.state / 'logs' / 'A.log'}\n"


def test_a_worker_that_was_stopped_without_an_orchestrator_has_an_end_in_its_log(workspace: Workspace) -> None:
    workspace.database.add_stream("A")
    workspace.play("hang")
    process = workspace.popen("start")
    workspace.wait_for_worker("A")
    process.send_signal(signal.SIGINT)
    process.wait(20)
    assert workspace.run("stop", "--timeout", "0").returncode == 0
    last = workspace.run("logs", "--no-follow", "A").stdout.splitlines()[-1]
    assert re.fullmatch(r"──── \S+ \S+ · ended after \d+s: by the user", last), last
