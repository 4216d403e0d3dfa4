"""Hostile content and hostile places: what comes from the database, a worker or the disk is data, never obeyed."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any, Callable

import pytest
from support import NO_POLL, Workspace, assert_harmless
from test_terminal import open_terminal

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


HOSTILE = f"{EVERYTHING} {MARKUP}"


def prepare_hostile(workspace: Workspace) -> str:
    """Fill a project with hostile ids, names, titles, reasons and output; return the id of the main stream."""
    text, stream = HOSTILE, f"S {HOSTILE}"
    workspace.database.add_stream(stream, tasks=2, streamName=f"name {text}")
    workspace.database.add_stream("blocked", streamName=MARKUP)
    workspace.database.execute(
        "UPDATE tasks SET status = 'blocked', blocked_reason = ?, title = ? WHERE id = 'TASK-3'", text, text
    )
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
    workspace.write_lines(**lines)
    workspace.play(" ".join(f"print={name}" for name in lines) + " exit=1")
    return stream.replace("\0", "\ufffd")  # as the store gives it: a NUL can stand in no argument


SHOWN = [["status"], ["status", "--dashboard"], ["status", "--json"], ["logs", "--no-follow", "-n", "500"]]


def test_hostile_text_is_shown_and_never_obeyed(workspace: Workspace) -> None:
    """Ids, names, titles, reasons, plain output, every kind of event: in a run, and in all that shows it."""
    stream = prepare_hostile(workspace)
    out = workspace.complete("--max-restarts", "1", "--exit-on-blocked", code=1)
    assert_harmless(out)
    assert "␛[31;1mEVIL" in out
    assert MARKUP in out
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


@pytest.mark.parametrize(
    "words", [["start", "--max-restarts", "0", "--exit-on-blocked"], *SHOWN], ids=["start", *(w[-1] for w in SHOWN)]
)
def test_on_a_terminal_only_our_own_sequences_arrive(workspace: Workspace, words: list[str]) -> None:
    """Colours and the board's cursor movements are ours; a title, a clipboard, a link or a C1 character is not."""
    prepare_hostile(workspace)
    if words[0] != "start":
        assert workspace.run("start", "--max-restarts", "0", "--exit-on-blocked").returncode == 1
    with open_terminal(workspace, (80, 25), *words) as terminal:
        assert terminal.wait_for_end() in (0, 1)
        shown = terminal.raw.decode("utf-8", "replace")
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
    workspace.complete("--exit-on-blocked", "--notify", "true", code=1)
    assert workspace.states() == {"A": "complete", "B": "complete", "C": "blocked"}
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
    assert done.stdout.count("    Why: ") == 1
    assert "Argument list too long" in done.stdout.split("    Why: ")[1]
    assert workspace.starts() == ["A"]
    for words in (["status"], ["status", "--json"], ["logs", "--no-follow"], ["stop"]):
        assert workspace.run(*words).returncode == 0, words


@pytest.mark.parametrize(
    ("content", "said"),
    [("x" * 1_000_000, "Argument list too long"), (None, "can't be read: [Errno 21] Is a directory")],
)
def test_a_prompt_template_that_no_process_can_be_given_fails_at_once(
    workspace: Workspace, content: str | None, said: str
) -> None:
    workspace.database.add_stream("A")
    workspace.state.mkdir(mode=0o700)
    template = workspace.state / "worker-prompt.md"
    template.mkdir() if content is None else template.write_text(content)
    done = workspace.run("start", "--max-restarts", "2", *NO_POLL)
    assert (done.returncode, [e["verdict"] for e in workspace.events("worker_ended")]) == (1, ["failed"])
    assert said in done.stdout


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
    workspace.play("facts all")
    workspace.complete()
    assert not [value for value in workspace.facts()["env"].values() if "evil" in value]


# ── The state folder ──────────────────────────────────────────────────────────────────────────────────────────────────


COMMANDS: list[list[str]] = [["start"], ["start", "--detach"], ["stop"], ["stop", "A"]]


def prepare_state(workspace: Workspace) -> None:
    """Make a state folder as the program makes it, with a stream that could be worked on."""
    workspace.database.add_stream("A")
    for folder in (workspace.state, workspace.state / "pids", workspace.state / "logs"):
        folder.mkdir(mode=0o700)


def describe(path: Path) -> dict[str, tuple[int, bytes]]:
    """The mode and the content of a file, or of everything in a folder, itself included; nothing where nothing is."""
    paths = [inner for inner in [path, *sorted(path.rglob("*"))] if os.path.lexists(inner)]
    return {str(inner): (inner.lstat().st_mode, inner.read_bytes() if inner.is_file() else b"") for inner in paths}


def lead_elsewhere(path: Path, victim: Path) -> None:
    """Let a link to somebody's folder, or to a file in it, stand where a folder or a file of ours belongs."""
    victim.mkdir(mode=0o755)
    for name, text in (("A.pid", "1\n"), ("A.log", "precious\n"), ("file", "12345\n")):
        (victim / name).write_text(text)
        (victim / name).chmod(0o644)
    is_folder = path.is_dir()
    for inner in [*path.rglob("*"), path] if is_folder else ():
        inner.rmdir()
    path.symlink_to(victim if is_folder else victim / "file")


def open_to_everybody(folder: Path, _: Path) -> None:
    """Let others write there: a journal, a link, a PID. Closing it now would not make it trustworthy."""
    folder.chmod(0o777)


def give_away(folder: Path, _: Path) -> None:
    """Let the folder be another user's."""
    if os.geteuid():
        pytest.skip("only root can make a folder another user's")
    os.chown(folder, 54321, 54321)


@pytest.mark.parametrize("name", ["", "pids", "logs"])
@pytest.mark.parametrize("spoil", [lead_elsewhere, open_to_everybody, give_away])
def test_a_state_folder_that_is_a_link_or_others_have_power_over_is_refused(
    workspace: Workspace, tmp_path: Path, name: str, spoil: Callable[[Path, Path], None]
) -> None:
    prepare_state(workspace)
    folder, victim = workspace.state / name, tmp_path / "victim"
    spoil(folder, victim)
    for words in COMMANDS:
        check_state_attack(workspace, folder, victim, words)


FILES = [
    "events.jsonl", "orchestrator.pid", ".gitignore", "logs/A.log", "logs/A.jsonl", "logs/.rendered.json",
    "logs/orchestrator.log", "pids/A.pid", "pids/A.stop",
]  # fmt: skip


def check_state_attack(workspace: Workspace, path: Path, victim: Path, words: list[str]) -> None:
    """Run a command with something hostile in a path's place; it must be refused in clear words, and nobody harmed."""
    before = describe(path), describe(victim)
    done = workspace.run(*words, timeout=15)
    assert (describe(path), describe(victim)) == before, f"{words} has written through {path.name}: {done}"
    assert (done.returncode, done.stderr[:8]) == (2, "[ERROR] "), done
    assert str(path) in done.stderr
    assert len(done.stderr.splitlines()) >= 2, "no remedy"
    assert "Traceback" not in done.stderr
    assert workspace.starts() == []


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize(
    ("spoil", "commands"),
    [
        (lead_elsewhere, COMMANDS),
        (lambda path, victim: path.symlink_to(victim), [["start"]]),
        (lambda path, _: os.mkfifo(path), [["start"]]),
        (lambda path, _: path.mkdir(), [["start"]]),
    ],
    ids=["link", "dangling link", "pipe", "folder"],
)
def test_a_state_file_that_is_no_file_is_refused_and_harms_and_hangs_nothing(
    workspace: Workspace, tmp_path: Path, name: str, spoil: Callable[[Path, Path], None], commands: list[list[str]]
) -> None:
    """What a link leads to stays as it was, or is not made; a pipe that nobody reads would hold up who opens it."""
    prepare_state(workspace)
    path, victim = workspace.state / name, tmp_path / "victim"
    spoil(path, victim)
    for words in commands:
        check_state_attack(workspace, path, victim, words)


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
