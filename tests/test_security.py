"""Hostile content and hostile places: what comes from the database, a worker or the disk is data, never obeyed."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import select
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Callable

import pytest
from support import SCRIPT, Workspace

NO_POLL = ("--poll-interval", "600")

# What a terminal would obey: colours, a title, the clipboard, a link, a report of itself, and what hides a line.
ESCAPES = {
    "CSI": "\x1b[31;1mEVIL\x1b[2J\x1b[10A",
    "title": "\x1b]0;EVIL\x07",
    "link": "\x1b]8;;http://evil.example\x1b\\EVIL\x1b]8;;\x1b\\",
    "clipboard": "\x1b]52;c;RVZJTA==\x07",
    "DCS": '\x1bP$q"p\x1b\\EVIL\x1bP+q544e\x1b\\',
    "APC and PM": "\x1b_EVIL\x1b\\\x1b^EVIL\x1b\\",
    "C1": "\x9b31mEVIL\x9d0;EVIL\x9c\x90EVIL\x9c\x85",
    "overwriting": "good\rEVIL\x08\x08\x7f\x0b\x0c\x07\x00",
    "direction": "\u202eLIVE\u202c\u2066x\u2069",
    "reset": "\x1bc\x1b(0\x0e",
}
EVERYTHING = " ".join(ESCAPES.values())
MARKUP = "[red]x[/] [bold][link=http://evil.example]y[/link] [/] :bomb: [on red"

# Control characters but the newline, in both ranges; and the marks that turn the direction of text.
_OBEYED = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def assert_harmless(text: str) -> None:
    """Check that nothing in a text would be obeyed by a terminal."""
    assert sorted(set(_OBEYED.findall(text))) == []


def hostile_text() -> str:
    return f"{EVERYTHING} {MARKUP}"


def fit(text: str) -> str:
    """A text as the store gives it: a NUL can stand in no argument."""
    return text.replace("\0", "\ufffd")


def prepare_hostile(workspace: Workspace) -> str:
    """Fill a project with hostile ids, names, titles, reasons and output; return the id of the main stream."""
    stream = f"S {hostile_text()}"
    workspace.database.add_stream(stream, tasks=2, streamName=f"name {hostile_text()}")
    workspace.database.add_stream("blocked", streamName=MARKUP)
    workspace.database.execute(
        "UPDATE tasks SET status = 'blocked', blocked_reason = ?, title = ? WHERE id = 'TASK-3'",
        hostile_text(),
        hostile_text(),
    )
    text = hostile_text()
    tools = [{"type": "text", "text": text}, {"type": "tool_use", "name": text, "input": {"command": text, text: text}}]
    failure = [{"type": "tool_result", "is_error": True, "content": [{"text": text}]}]
    denials = [{"tool_name": text, "tool_input": {text: text}}]
    result = {"type": "result", "subtype": text, "is_error": True, "result": text, "permission_denials": denials}
    limit = {"status": "allowed_warning", "rateLimitType": text, "utilization": 0.9}
    lines = {
        "init": {"type": "system", "subtype": "init", "cwd": text, "session_id": text},
        "plain": text,
        "tools": {"type": "assistant", "message": {"content": tools}},
        "failure": {"type": "user", "message": {"content": failure}},
        "retry": {"type": "system", "subtype": "api_retry", "error": text, "attempt": text, "error_status": text},
        "limit": {"type": "rate_limit_event", "rate_limit_info": limit},
        "result": result,
    }
    (workspace.root / "lines.json").write_text(json.dumps(lines))
    workspace.play(" ".join(f"print={name}" for name in lines) + " exit=1")
    return fit(stream)


SHOWN = [["status"], ["status", "--dashboard"], ["status", "--json"], ["logs", "--no-follow", "-n", "500"]]


def test_hostile_text_is_shown_and_never_obeyed(workspace: Workspace) -> None:
    """Ids, names, titles, reasons, plain output, every kind of event: in a run, and in all that shows it."""
    stream = prepare_hostile(workspace)
    done = workspace.run("start", "--max-restarts", "1", "--exit-on-blocked", *NO_POLL)
    assert (done.returncode, done.stderr) == (1, "")
    assert_harmless(done.stdout)
    assert "␛[31;1mEVIL" in done.stdout
    assert MARKUP in done.stdout
    assert workspace.starts() == [stream, stream]
    for words in [*SHOWN, ["start", "--dry-run"]]:
        shown = workspace.run(*words)
        assert (shown.returncode, "Traceback" in shown.stderr) == (0, False), words
        assert_harmless(shown.stdout)
        assert words[-1] == "--json" or MARKUP in shown.stdout, words


def test_hostile_text_as_json_is_one_object_a_line_and_harmless(workspace: Workspace) -> None:
    """A JSON line on a terminal is no way in either: a C1 character in it is escaped like any other."""
    stream = prepare_hostile(workspace)
    done = workspace.run("start", "--json", "--max-restarts", "0", "--exit-on-blocked", *NO_POLL)
    events = [json.loads(line) for line in done.stdout.split("\n") if line]
    assert stream in {event.get("stream") for event in events}
    assert_harmless(done.stdout)


def run_on_terminal(workspace: Workspace, *words: str) -> str:
    """Run a command on a terminal of its own, and return what that got."""
    main, side = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, str(SCRIPT), *words],
        cwd=workspace.root,
        env=workspace.environment(TERM="xterm-256color"),
        stdin=side,
        stdout=side,
        stderr=side,
        start_new_session=True,
    )
    os.close(side)
    content = b""
    deadline = time.monotonic() + 60
    with contextlib.suppress(OSError):  # the other end is closed: all is read
        while time.monotonic() < deadline:
            if select.select([main], [], [], 0.2)[0]:
                block = os.read(main, 65536)
                content += block
                if not block:
                    break
    os.close(main)
    assert process.wait(timeout=20) in (0, 1)
    return content.decode("utf-8", "replace")


@pytest.mark.parametrize(
    "words", [["start", "--max-restarts", "0", "--exit-on-blocked"], *SHOWN], ids=["start", *(w[-1] for w in SHOWN)]
)
def test_on_a_terminal_only_our_own_sequences_arrive(workspace: Workspace, words: list[str]) -> None:
    """Colours and the board's cursor movements are ours; a title, a clipboard, a link or a C1 character is not."""
    prepare_hostile(workspace)
    if words[0] != "start":
        assert workspace.run("start", "--max-restarts", "0", "--exit-on-blocked").returncode == 1
    shown = run_on_terminal(workspace, *words)
    assert "EVIL" in shown
    rest = re.sub(r"\x1b\[[0-9;?]*[mKABGHJhl]", "", shown)  # colours, the cursor, the board
    assert "\x1b" not in rest
    assert sorted(set(re.findall("[\x80-\x9f\u202a-\u202e\u2066-\u2069\x00\x07\x08\x0b\x0c\x0e\x7f]", rest))) == []
    assert "\x1b[31;1mEVIL" not in shown
    assert "\x1b[10A" not in shown


@pytest.mark.parametrize(
    "name", [EVERYTHING, MARKUP, "../../etc/passwd", "--help-me", "x" * 100_000], ids=["escapes", "markup", 2, 3, 4]
)
@pytest.mark.parametrize("command", ["start", "stop", "logs", "status"])
def test_an_unknown_name_is_wrong_usage_and_shown_harmless(workspace: Workspace, command: str, name: str) -> None:
    workspace.database.add_stream("A")
    done = workspace.run(command, "--", name.replace("\0", ""))
    assert (done.returncode, done.stdout, done.stderr.splitlines()[0][:7]) == (2, "", "[ERROR]")
    assert_harmless(done.stderr)
    assert "Traceback" not in done.stderr
    assert not list(workspace.root.glob("**/*.stop"))


# ── Sizes ─────────────────────────────────────────────────────────────────────────────────────────────────────────────

LONG = "n" * 1_000_000


@pytest.mark.slow
def test_names_titles_and_reasons_of_a_megabyte_cost_nothing_but_room(workspace: Workspace) -> None:
    workspace.database.add_stream("A", tasks=2, streamName=LONG)
    workspace.database.add_stream("B", streamName="word " * 200_000)
    workspace.database.execute("UPDATE tasks SET title = ?", LONG)
    workspace.play(A=["next begin exit=1", "block all exit=0", "all"], B="all")
    workspace.database.add_stream("C")
    workspace.database.execute("UPDATE tasks SET status = 'blocked', blocked_reason = ? WHERE id = 'TASK-4'", LONG)
    done = workspace.run("start", "--exit-on-blocked", "--notify", "true", *NO_POLL)
    assert (done.returncode, done.stderr) == (1, "")
    states = json.loads(workspace.run("status", "--json").stdout)["streams"]
    assert {s["id"]: s["state"] for s in states} == {"A": "complete", "B": "complete", "C": "blocked"}
    assert workspace.run("status").returncode == workspace.run("logs", "--no-follow").returncode == 0


@pytest.mark.parametrize("length", [30_000, 1_000_000])
def test_an_id_that_no_process_can_be_given_fails_its_stream_alone_and_at_once(
    workspace: Workspace, length: int
) -> None:
    """Linux allows 128 KiB an argument, and the id stands in the prompt five times; and a variable as much."""
    workspace.database.add_stream("i" * length)
    workspace.database.add_stream("A")
    done = workspace.run("start", "--max-restarts", "2", *NO_POLL)
    assert (done.returncode, "Traceback" in done.stderr) == (1, False), done.stderr
    ends = [(e["stream"][:1], e["verdict"]) for e in workspace.events("worker_ended")]
    assert sorted(ends) == [("A", "complete"), ("i", "failed")], "a retry can't help"
    assert "Argument list too long" in done.stdout.splitlines()[-1]
    assert workspace.starts() == ["A"]
    for words in (["status"], ["status", "--json"], ["logs", "--no-follow"], ["stop"]):
        assert workspace.run(*words).returncode == 0, words


def test_a_prompt_template_that_no_process_can_be_given_fails_at_once(workspace: Workspace) -> None:
    workspace.database.add_stream("A")
    workspace.state.mkdir(mode=0o700)
    (workspace.state / "worker-prompt.md").write_text("x" * 1_000_000)
    done = workspace.run("start", "--max-restarts", "2", *NO_POLL)
    assert (done.returncode, [e["verdict"] for e in workspace.events("worker_ended")]) == (1, ["failed"])
    assert "Argument list too long" in done.stdout


# ── .mcp.json ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def server(environment: Any) -> str:
    return json.dumps({"mcpServers": {"task-copilot": {"command": "true", "env": environment}}})


@pytest.mark.parametrize(
    "content",
    [
        "[" * 100_000,
        '{"mcpServers": ' + '{"a": ' * 50_000,
        "\ud800".encode("utf-8", "surrogatepass"),
        server([1, 2]),
        server("text"),
        server({"WORKSPACE_ID": EVERYTHING}),
        server({"WORKSPACE_ID": "a\0b"}),
        server({"WORKSPACE_ID": "\ud800"}),
        server({"WORKSPACE_ID": "w" * 1_000_000}),
        server({"WORKSPACE_ID": "../" * 2000}),
        server({"TASK_DB_PATH": EVERYTHING}),
        server({"TASK_DB_PATH": "~nobody/\n/x"}),
        server({"TASK_DB_PATH": "\0"}),
        server({"TASK_DB_PATH": "p/" * 100_000}),
        server({"WORKSPACE_ID": "${" * 50_000}),
        server({"WORKSPACE_ID": "${HOME:-" * 20_000}),
    ],
    ids=range(16),
)
def test_a_hostile_mcp_json_is_a_clear_error(workspace: Workspace, content: Any) -> None:
    workspace.database.add_stream("A")
    path = workspace.root / ".mcp.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    done = workspace.run("start", timeout=15)
    assert (done.returncode, done.stdout, "Traceback" in done.stderr) == (2, "", False), done.stderr[-2000:]
    assert done.stderr.startswith("[ERROR] ")
    assert_harmless(done.stderr)
    assert workspace.starts() == []


def test_an_mcp_json_gives_workers_nothing_but_the_place_of_the_database(workspace: Workspace) -> None:
    """Its other variables are the server's: one that could make a worker run another program does not reach it."""
    workspace.database.add_stream("A")
    (workspace.root / ".mcp.json").write_text(server({"LD_PRELOAD": "/evil.so", "PATH": "/evil", "BASH_ENV": "/evil"}))
    workspace.claude.write_text(
        f"#!{sys.executable}\nimport json, os\nopen('env.json', 'w').write(json.dumps(dict(os.environ)))\n"
    )
    workspace.run("start", "--max-restarts", "0", *NO_POLL)
    env = json.loads((workspace.root / "env.json").read_text())
    assert not [value for value in env.values() if "evil" in value]


# ── The state folder ──────────────────────────────────────────────────────────────────────────────────────────────────


def assert_refused(done: subprocess.CompletedProcess[str], path: Path) -> None:
    """Check that a command was refused with one clear error about a path, and nothing of a traceback."""
    assert (done.returncode, done.stderr[:8]) == (2, "[ERROR] "), (done.returncode, done.stdout, done.stderr)
    assert str(path) in done.stderr
    assert len(done.stderr.splitlines()) >= 2, "no remedy"
    assert "Traceback" not in done.stderr


COMMANDS: list[list[str]] = [["start"], ["start", "--detach"], ["stop"], ["stop", "A"]]


def prepare_state(workspace: Workspace) -> None:
    """Make a state folder as the program makes it, with a stream that could be worked on."""
    workspace.database.add_stream("A")
    for folder in (workspace.state, workspace.state / "pids", workspace.state / "logs"):
        folder.mkdir(mode=0o700)


def describe(folder: Path) -> dict[str, tuple[int, bytes]]:
    """The mode and the content of everything in a folder, itself included."""
    paths = [folder, *sorted(folder.rglob("*"))]
    return {str(path): (path.lstat().st_mode, path.read_bytes() if path.is_file() else b"") for path in paths}


@pytest.mark.parametrize("name", ["", "pids", "logs"])
def test_a_state_folder_that_is_a_link_is_refused_and_what_it_leads_to_is_unharmed(
    workspace: Workspace, tmp_path: Path, name: str
) -> None:
    prepare_state(workspace)
    victim = tmp_path / "victim"
    victim.mkdir()
    victim.chmod(0o755)
    (victim / "A.pid").write_text("1\n")
    (victim / "A.log").write_text("precious\n")
    link = workspace.state / name if name else workspace.state
    for path in [*link.rglob("*"), link]:
        path.rmdir()
    link.symlink_to(victim)
    before = describe(victim)
    for words in COMMANDS:
        check_state_attack(workspace, link, words, lambda: describe(victim) == before)


@pytest.mark.parametrize("name", ["", "pids", "logs"])
def test_a_state_folder_that_others_can_write_to_is_refused(workspace: Workspace, name: str) -> None:
    """What lies in it may be anybody's: a journal, a link, a PID. Closing it now would not make it trustworthy."""
    prepare_state(workspace)
    folder = workspace.state / name if name else workspace.state
    folder.chmod(0o777)
    for words in COMMANDS:
        check_state_attack(workspace, folder, words, folder.is_dir)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make a folder another user's")
@pytest.mark.parametrize("name", ["", "pids", "logs"])
def test_a_state_folder_of_another_user_is_refused(workspace: Workspace, name: str) -> None:
    prepare_state(workspace)
    folder = workspace.state / name if name else workspace.state
    os.chown(folder, 54321, 54321)
    assert_refused(workspace.run("start"), folder)
    assert workspace.starts() == []
    os.chown(folder, 0, 0)


FILES = [
    "events.jsonl", "orchestrator.pid", ".gitignore", "logs/A.log", "logs/A.jsonl", "logs/.rendered.json",
    "logs/orchestrator.log", "pids/A.pid", "pids/A.stop",
]  # fmt: skip


def check_state_attack(workspace: Workspace, path: Path, words: list[str], is_unharmed: Callable[[], bool]) -> None:
    """Run a command with something hostile in the place of a file; it must be refused, and nobody harmed."""
    done = workspace.run(*words, timeout=15)
    assert is_unharmed(), f"{words} has written through {path.name}: {done.stdout}{done.stderr}"
    assert_refused(done, path)
    assert workspace.starts() == []


@pytest.mark.parametrize("name", FILES)
def test_a_state_file_that_is_a_link_is_refused_and_what_it_leads_to_is_unharmed(
    workspace: Workspace, tmp_path: Path, name: str
) -> None:
    prepare_state(workspace)
    victim = tmp_path / "victim.txt"
    victim.write_text("12345\n")
    victim.chmod(0o644)
    link = workspace.state / name
    link.symlink_to(victim)
    for words in COMMANDS:
        check_state_attack(
            workspace, link, words, lambda: (victim.read_text(), victim.stat().st_mode & 0o777) == ("12345\n", 0o644)
        )


@pytest.mark.parametrize("name", FILES)
def test_a_dangling_link_makes_no_file_elsewhere(workspace: Workspace, tmp_path: Path, name: str) -> None:
    prepare_state(workspace)
    victim = tmp_path / "not-there"
    (workspace.state / name).symlink_to(victim)
    check_state_attack(workspace, workspace.state / name, ["start"], lambda: not victim.exists())


def make_pipe(path: Path) -> None:
    os.mkfifo(path)


def make_folder(path: Path) -> None:
    path.mkdir()


@pytest.mark.parametrize("make", [make_pipe, make_folder])
@pytest.mark.parametrize("name", FILES)
def test_a_state_file_that_is_no_file_is_refused_and_hangs_nothing(
    workspace: Workspace, name: str, make: Callable[[Path], None]
) -> None:
    """A pipe that nobody reads would hold up whoever opens it."""
    prepare_state(workspace)
    path = workspace.state / name
    make(path)
    check_state_attack(workspace, path, ["start"], path.exists)


def test_the_programs_own_folder_and_files_are_no_others_business(workspace: Workspace) -> None:
    """A loose umask changes nothing, and a folder that `generate` or git made is closed, not refused."""
    workspace.database.add_stream("A")
    workspace.state.mkdir()
    workspace.state.chmod(0o755)
    (workspace.state / "orchestrate.py").write_text("")
    done = workspace.run("start", *NO_POLL, preexec_fn=lambda: os.umask(0))
    assert done.returncode == 0, done.stderr
    for path in [workspace.state, *workspace.state.rglob("*")]:
        wanted = 0o700 if path.is_dir() else 0o644 if path.name == "orchestrate.py" else 0o600
        assert path.name == "orchestrate.py" or path.stat().st_mode & 0o777 == wanted, path
