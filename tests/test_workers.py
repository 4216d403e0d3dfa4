"""Workers as processes: their trees, their prompts, and what they print."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import tracemalloc
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Callable, Iterator

import psutil
import pytest
from support import SCRIPT, Workspace, is_running, unstamp, wait_until

from orchestrate import (
    LINE_BYTES,
    UNWRITTEN_LINES,
    WORKER_RULES,
    Appender,
    Journal,
    Project,
    Record,
    Stream,
    Tail,
    Task,
    Transcript,
    discover_workers,
    format_prompt,
    shorten,
    signal_tree,
)

Open = Callable[..., Any]


@pytest.fixture
def follow(tmp_path: Path) -> Iterator[Open]:
    """Follow the raw output from a start on; what is rendered begins at a position."""
    with contextlib.ExitStack() as stack:

        def follow(start: int = 0, position: int = 0) -> Transcript:
            transcript = Transcript(tmp_path / "raw", Appender(tmp_path / "log").append, start, position)
            stack.callback(transcript.finish)
            return transcript

        yield follow


@pytest.fixture
def tail(tmp_path: Path) -> Iterator[Open]:
    """Read lines of the log as they come; a call returns a function that returns what is new."""
    with contextlib.ExitStack() as stack:

        def open_tail(**options: Any) -> Callable[[], list[str]]:
            opened = stack.enter_context(contextlib.closing(Tail(tmp_path / "log", **{"follows": True, **options})))
            return lambda: [line for _, line in opened.read()]

        yield open_tail


def append(path: Path, content: bytes) -> None:
    with path.open("ab") as file:
        file.write(content)


def line(**event: Any) -> bytes:
    return json.dumps(event).encode() + b"\n"


def said(text: str) -> bytes:
    return line(type="assistant", message={"content": [{"type": "text", "text": text}]})


def test_a_transcript_renders_each_line_once_as_the_output_grows(tmp_path: Path, follow: Open) -> None:
    transcript = follow()
    assert transcript.pump()
    append(tmp_path / "raw", said("one") + b"plain\n" + said("two\n")[:20])
    transcript.pump()
    assert unstamp((tmp_path / "log").read_text()) == ["one", "plain"]
    append(tmp_path / "raw", said("two\n")[20:] + b"no newline")
    transcript.pump()
    transcript.finish()
    assert unstamp((tmp_path / "log").read_text()) == ["one", "plain", "two", "no newline"]


@pytest.mark.parametrize(
    ("servers", "names"),
    [
        ([{"name": "task-copilot", "status": "failed"}, {"name": "b", "status": "failed"}], ["task-copilot", "b"]),
        ([{"name": "a", "status": "connected"}, {"name": "b", "status": "pending"}, {"name": "c"}, "failed", None], []),
        ([{"name": "x\x1b[31m\n\u202e[red]", "status": "failed"}], ["x␛[31m �[red]"]),
        ([{"status": "failed"}, {"name": ["a"], "status": "failed"}], ["None", "['a']"]),
        ({"name": "a", "status": "failed"}, []),
        ("failed", []),
        (None, []),
    ],
)
def test_a_transcript_names_the_mcp_servers_that_failed_to_start(
    tmp_path: Path, follow: Open, servers: object, names: list[str]
) -> None:
    append(tmp_path / "raw", line(type="system", subtype="init", model="m", mcp_servers=servers))
    transcript = follow()
    transcript.pump()
    log = (tmp_path / "log").read_text(encoding="utf-8") if (tmp_path / "log").exists() else ""
    assert unstamp(log) == [f"  MCP server {name} failed to start: the worker lacks its tools" for name in names]


def test_a_transcript_goes_on_where_another_one_stopped(tmp_path: Path, follow: Open) -> None:
    first = follow()
    append(tmp_path / "raw", said("one") + line(type="result", num_turns=3, total_cost_usd=0.5) + b"half")
    first.pump()
    append(tmp_path / "raw", b" a line\n")
    second = follow(0, first.position)
    second.pump()
    assert unstamp((tmp_path / "log").read_text()) == ["one", "half a line"]
    ending = second.read_ending(0, 0)
    assert (ending.turns, ending.cost) == (3, 0.5)


def test_what_can_not_be_written_is_kept_and_written_once_when_it_can(tmp_path: Path) -> None:
    log = Appender(tmp_path / "gone" / "log")
    for text in ("one", "two"):
        log.append([text])
        assert isinstance(log.trouble, FileNotFoundError)
    assert log.unwritten == ["one", "two"]
    (tmp_path / "gone").mkdir()
    log.path.write_text("half a li")
    log.append(["three"])
    log.flush()
    assert log.path.read_text() == "half a li\none\ntwo\nthree\n"
    assert (log.unwritten, log.trouble) == ([], None)


def test_what_is_kept_has_a_bound(tmp_path: Path) -> None:
    log = Appender(tmp_path / "gone" / "log")
    for _ in range(4):
        log.append(["x"] * (UNWRITTEN_LINES // 2))
    log.flush()
    assert len(log.unwritten) == UNWRITTEN_LINES


def test_a_journal_writes_later_what_it_could_not_write(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "gone" / "events.jsonl")
    for number in (1, 2):
        journal.add({"event": "warning", "message": number})
        assert isinstance(journal.trouble, FileNotFoundError)
    (tmp_path / "gone").mkdir()
    journal.path.write_text('{"event": "half a li')
    journal.flush()
    journal.flush()
    assert journal.trouble is None
    events = Journal(journal.path).read()
    assert [event["message"] for event in events] == [1, 2]


def test_what_does_not_fit_is_appended_wholly_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    script = """if True:
        import resource, signal, sys
        from pathlib import Path
        import orchestrate
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (10, resource.RLIM_INFINITY))
        for text in ("1234567", "890", "9"):
            file = orchestrate.Appender(Path(sys.argv[1]))
            file.append([text])
            if file.trouble:
                print(file.trouble.strerror)
        resource.setrlimit(resource.RLIMIT_FSIZE, (20, resource.RLIM_INFINITY))
        file.append(["890"])
    """
    words = [sys.executable, "-c", script, str(path)]
    done = subprocess.run(words, capture_output=True, text=True, check=True, cwd=SCRIPT.parent)
    assert done.stdout == f"{os.strerror(errno.EFBIG)}\n"
    assert path.read_text() == "1234567\n9\n890\n"


def test_a_signal_goes_to_the_very_process_or_to_nobody() -> None:
    with subprocess.Popen(["sleep", "600"]) as child:
        gone = psutil.Process(child.pid)
        gone._ident = (child.pid, 1.0)  # started at another time: the PID is another one's by now
        signal_tree({child.pid: gone}, signal.SIGKILL)
        time.sleep(0.1)  # a signal would have ended it
        assert child.poll() is None
        process = psutil.Process(child.pid)
        signal_tree({child.pid: process}, signal.SIGTERM)
        assert child.wait(timeout=20) == -signal.SIGTERM
        signal_tree({child.pid: process}, signal.SIGTERM)


def test_a_transcript_shows_tools_and_errors_and_obeys_nothing(tmp_path: Path, follow: Open) -> None:
    transcript = follow()
    tools = [
        {"type": "tool_use", "name": "Bash", "input": {"command": "npm test\n\x1b[31m"}},
        {"type": "tool_use", "name": "mcp__task-copilot__task_update", "input": {"id": "TASK-12"}},
    ]
    append(tmp_path / "raw", line(type="assistant", message={"content": tools}))
    result = {"type": "tool_result", "is_error": True, "content": "Exit code 1"}
    append(tmp_path / "raw", line(type="user", message={"content": [result]}))
    append(
        tmp_path / "raw",
        b'{"type": "assistant", "message": null}\n{"type": 7}\n[1]\n{"type": "unheard-of"}\n\xff\x00\n',
    )
    transcript.pump()
    assert unstamp((tmp_path / "log").read_text()) == [
        "Bash  npm test ␛[31m",
        "task_update  TASK-12",
        "  error: Exit code 1",
        '{"type": 7}',
        "[1]",
        "\ufffd\x00",
    ]


def test_a_line_has_the_time_of_its_event_where_that_tells_one_else_that_of_its_reading(
    tmp_path: Path, follow: Open
) -> None:
    told = [{"timestamp": "2026-01-02T03:04:05.678Z"}, {}, {"timestamp": "9999-99-99"}, {"timestamp": ["x"]}]
    told.append({"timestamp": "2926-01-02T03:04:05Z"})
    for facts in told:
        append(tmp_path / "raw", line(type="assistant", message={"content": [{"type": "text", "text": "x"}]}, **facts))
    before = time.time()
    follow().pump()
    times = [text.partition("  ")[0] for text in (tmp_path / "log").read_text().splitlines()]
    moments = [datetime.fromisoformat(text).timestamp() for text in times]
    assert moments[0] == datetime(2026, 1, 2, 3, 4, 5, tzinfo=timezone.utc).timestamp()
    assert all(int(before) <= moment <= time.time() for moment in moments[1:])


def test_an_endless_line_costs_bounded_memory(tmp_path: Path, follow: Open) -> None:
    transcript = follow()
    with (tmp_path / "raw").open("wb") as file:
        for _ in range(100):
            file.write(b"x" * (1 << 20))
        file.write(b"\n" + said("after"))
    tracemalloc.start()
    while not transcript.pump():
        pass
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 8 * LINE_BYTES
    assert unstamp((tmp_path / "log").read_text()) == [f"(a line of {100 << 20:,} bytes: see raw)", "after"]


def test_a_tail_survives_truncation_rotation_and_removal(tmp_path: Path, tail: Open) -> None:
    path = tmp_path / "log"
    append(path, b"one\ntwo\nthree\n")
    read = tail(lines=2)
    assert read() == ["two", "three"]
    path.write_bytes(b"cut\n")
    assert read() == ["cut"]
    append(path, b"late")
    assert read() == []
    append(path, b" line\n")
    path.rename(tmp_path / "log.1")
    append(tmp_path / "log.1", b"to the old file\n")
    append(path, b"to the new file\n")
    assert read() == ["late line", "to the old file", "to the new file"]
    path.unlink()
    assert read() == []
    append(path, b"there again\n")
    assert read() == ["there again"]


@pytest.mark.parametrize("content", [b"new\n", b"TWO\n", b"TWO\nand more\n", b"TWO\nTHREE\nFOUR\n"])
def test_what_is_rewritten_is_read_anew_whatever_its_size(tmp_path: Path, tail: Open, content: bytes) -> None:
    (tmp_path / "log").write_bytes(b"two\n")
    read = tail()
    assert read() == ["two"]
    (tmp_path / "log").write_bytes(content)
    os.utime(tmp_path / "log", (1, 1))  # another time than before, however coarse the file system's are
    assert read() == content.decode().splitlines()
    assert read() == []


def test_a_tail_that_follows_no_name_goes_on_with_what_was_renamed(tmp_path: Path, tail: Open) -> None:
    append(tmp_path / "log", b"one\n")
    read = tail(follows=False)
    assert read() == ["one"]
    (tmp_path / "log").rename(tmp_path / "log.1")
    append(tmp_path / "log", b"somebody else's\n")
    append(tmp_path / "log.1", b"two\n")
    assert read() == ["two"]


@pytest.mark.parametrize(("lines", "shown"), [(0, []), (1, ["c"]), (3, ["a", "b", "c"]), (9, ["a", "b", "c"])])
def test_a_tail_begins_with_so_many_lines(tmp_path: Path, tail: Open, lines: int, shown: list[str]) -> None:
    append(tmp_path / "log", b"a\nb\nc\n")
    assert tail(lines=lines)() == shown


def test_a_tail_finds_the_last_lines_of_a_large_log(tmp_path: Path, tail: Open) -> None:
    append(tmp_path / "log", b"".join(b"%d %s\n" % (number, b"x" * 999) for number in range(2000)))
    assert [text.split()[0] for text in tail(lines=700)()] == [str(number) for number in range(1300, 2000)]


def test_a_prompt_template_gets_the_streams_words_and_nothing_else() -> None:
    template = "- {stream.id} {stream.name} {stream.phase} {other} {0}"
    prompt = format_prompt(template, Stream("Stream-B", "{stream.id}\0"), Record())
    assert prompt == f"\n- Stream-B {{stream.id}}\ufffd parallel {{other}} {{0}}\n{WORKER_RULES}"


def test_a_restart_is_told_how_the_last_worker_ended_and_what_it_left() -> None:
    tasks = (Task("TASK-1", "Write it", "in_progress", ""), Task("TASK-2", "Ask", "blocked", "why"))
    record = Record(attempts=2, last_ending="exit code 1")
    prompt = format_prompt("Work.\n", Stream("S", "s", named_tasks=tasks), record)
    assert prompt.endswith("  - TASK-1: Write it\n")
    assert "This is attempt 3 on S. The last worker ended: exit code 1" in prompt
    assert "TASK-2" not in prompt


TREE = """
import os, subprocess, sys, time
for options in ({}, {"start_new_session": True}, {"env": {}}, {"env": {}, "start_new_session": True}):
    print(subprocess.Popen(["sleep", "600"], **options).pid, flush=True)
if os.fork() == 0:  # a daemon: a session of its own, and its parents are dead
    os.setsid()
    child = subprocess.Popen(["sleep", "600"])
    print(child.pid, flush=True)
    os._exit(0)
os.wait()
print("ready", flush=True)
time.sleep(600)
"""


def test_the_tree_of_a_worker_is_found_however_its_parts_were_started(workspace: Workspace) -> None:
    marks = {"ORCHESTRATE_PROJECT": str(workspace.root), "ORCHESTRATE_STREAM": "Stream-A"}
    script = 'export ORCHESTRATE_RUN="run.$$"; exec "$@"'
    worker = subprocess.Popen(
        ["/bin/sh", "-c", script, "sh", sys.executable, "-c", TREE],
        env=workspace.environment(**marks), stdout=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    assert worker.stdout is not None
    printed = list(iter(worker.stdout.readline, "ready\n"))
    children = [int(text) for text in printed]
    found = discover_workers(Project(workspace.root), [])
    assert found.workers["Stream-A"].pid == worker.pid
    assert set(found.trees["Stream-A"]) == {worker.pid, *children}
    worker.kill()
    worker.wait()
    left = discover_workers(Project(workspace.root), [])
    assert left.workers["Stream-A"].pid == 0, "a leftover was taken for a worker"
    assert left.workers["Stream-A"].ending is not None
    signal_tree(found.trees["Stream-A"], 9)
    wait_until(lambda: not any(map(is_running, children)), "their end")
    worker.stdout.close()


@pytest.mark.parametrize("content", ["", "garbage", "-5", "0", "1", "99999999999999999999", "12 13", "\xff"])
def test_a_pid_file_without_a_worker_is_stale(tmp_path: Path, content: str) -> None:
    project = Project(tmp_path)
    project.pids.mkdir(parents=True)
    project.file("S", ".pid").write_text(content, encoding="latin-1")
    found = discover_workers(project, ["S"])
    assert found.stale == {project.file("S", ".pid"): "it holds no worker's PID"}
    assert found.workers == {}


def test_a_pid_file_of_another_program_is_stale(tmp_path: Path) -> None:
    project = Project(tmp_path)
    project.pids.mkdir(parents=True)
    project.file("S", ".pid").write_text(f"{os.getppid()}\n")
    assert discover_workers(project, ["S"]).stale == {
        project.file("S", ".pid"): f"process {os.getppid()} is another program"
    }


def test_a_worker_in_the_middle_of_an_exec_is_found(workspace: Workspace) -> None:
    """For that instant it has no environment: a stop that came then left it alive."""
    script = workspace.bin / "again"
    script.write_text('#!/bin/sh\nexec "$0"\n')
    script.chmod(0o755)
    marks = {"ORCHESTRATE_PROJECT": str(workspace.root), "ORCHESTRATE_STREAM": "A"}
    process = subprocess.Popen([str(script)], env=workspace.environment(**marks), start_new_session=True)
    try:
        found = [list(discover_workers(Project(workspace.root), ["A"]).trees.get("A", ())) for _ in range(600)]
    finally:
        process.kill()
        process.wait()
    assert found.count([process.pid]) > 597  # it does nothing else; where a scan looks but once, 7 to 36 miss it


def test_a_pid_file_of_another_program_whose_session_cannot_be_seen_is_stale(tmp_path: Path) -> None:
    """As in a container that somebody entered from outside: its processes have the session 0."""
    alone = ["unshare", "--user", "--map-root-user", "--pid", "--fork", "--mount-proc"]
    if (
        shutil.which(alone[0]) is None
        or subprocess.run([*alone, "true"], check=False, stderr=subprocess.DEVNULL).returncode
    ):
        pytest.skip("no PID namespaces here")
    code = """if True:
        import os, sys
        from pathlib import Path
        from orchestrate import Project, discover_workers
        project, pid = Project(Path(sys.argv[1])), sys.argv[2]
        project.pids.mkdir(parents=True)
        project.file("S", ".pid").write_text(pid)
        print(os.getsid(int(pid)), discover_workers(project, ["S"]).stale[project.file("S", ".pid")], sep=": ")
    """
    lines = 'sleep 60 & "$@" $!; kill $!'
    words = [*alone, "sh", "-c", lines, "sh", sys.executable, "-c", code, str(tmp_path)]
    done = subprocess.run(words, cwd=SCRIPT.parent, check=True, stdout=subprocess.PIPE, text=True, timeout=60)
    assert done.stdout == "0: process 2 is another program\n"


@pytest.mark.parametrize(
    ("text", "length", "shown"),
    [
        ("  npm \n test\t", 8, "npm test"),
        ("npm run test", 12, "npm run test"),
        ("npm run tests", 12, "npm run …"),
        ("npm run tests", 9, "npm run …"),
        ("npm run tests", 8, "npm …"),
        ("abcdefghijkl", 10, "abcdefgh …"),
        ("", 10, ""),
    ],
)
def test_a_text_is_shortened_to_whole_words_in_one_line(text: str, length: int, shown: str) -> None:
    assert shorten(text, length) == shown
    assert len(shown) <= length
