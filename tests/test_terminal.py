"""The live pictures in a pseudo-terminal, read by an emulator: what stands on the screen, and what is left of it."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import termios
from pathlib import Path
from typing import Any, Callable, Iterator

import psutil
import pyte
import pytest
from support import PROGRAM, SCRIPT, Workspace, is_running, wait_until

NO_POLL = ("--poll-interval", "0.2")


class Terminal:
    """A terminal whose screen can be read, with the command line in its foreground."""

    def __init__(self, workspace: Workspace, columns: int, rows: int, *words: str, **options: Any) -> None:
        self.workspace = workspace
        self.master, self.slave = pty.openpty()
        self.screen = pyte.HistoryScreen(columns, rows, history=10_000, ratio=0.01)
        self._stream = pyte.ByteStream(self.screen)
        self.raw = b""
        self.resize(columns, rows)
        self.modes = termios.tcgetattr(self.slave)
        slave = self.slave
        ends = {"stdin": slave, "stdout": slave, "stderr": slave, **options}
        env = {"TERM": "xterm-256color", **ends.pop("env", {})}

        def take_terminal() -> None:
            os.setsid()
            fcntl.ioctl(slave, termios.TIOCSCTTY, 0)

        ends.setdefault("preexec_fn", take_terminal)
        self.process = workspace.popen(*words, env=env, **ends)

    def resize(self, columns: int, rows: int) -> None:
        """Give the window another size; the system tells the process."""
        fcntl.ioctl(self.slave, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        self.screen.resize(rows, columns)

    def read(self) -> str:
        """Take what was written, and return the screen."""
        while select.select([self.master], [], [], 0)[0]:
            data = os.read(self.master, 65536)
            self.raw += data
            self._stream.feed(data)
        return "\n".join(line.rstrip() for line in self.screen.display)

    def read_all(self) -> str:
        """Return the screen below what has scrolled out of it."""
        shown = self.read()
        above = ["".join(line[x].data for x in range(len(line))).rstrip() for line in self.screen.history.top]
        return "\n".join([*above, shown])

    def wait_for(self, condition: Callable[[], Any] | str, what: str = "") -> Any:
        """Wait for words on the screen, or for a condition, reading all the time."""
        if isinstance(condition, str):
            words = condition
            return wait_until(lambda: words in self.read(), f"{words!r} in\n{self.read()}\n")
        return wait_until(lambda: (self.read(), condition())[1], what)

    def wait_for_end(self) -> int:
        """Wait for the process's end, and return its exit code."""
        self.wait_for(lambda: self.process.poll() is not None, "the end")
        self.read()
        assert self.process.returncode is not None
        return self.process.returncode

    def press(self, keys: bytes) -> None:
        """Type."""
        os.write(self.master, keys)

    def has_cursor(self) -> bool:
        """Whether the cursor is shown."""
        self.read()
        return not self.screen.cursor.hidden

    def is_stopped(self) -> bool:
        """Whether the process is stopped, as by Ctrl+Z."""
        return bool(psutil.Process(self.process.pid).status() == psutil.STATUS_STOPPED)

    def close(self) -> None:
        """Close the window."""
        for descriptor in (self.slave, self.master):
            os.close(descriptor)


@contextlib.contextmanager
def open_terminal(workspace: Workspace, size: tuple[int, int], *words: str, **options: Any) -> Iterator[Terminal]:
    terminal = Terminal(workspace, *size, *words, **options)
    try:
        yield terminal
    finally:
        terminal.process.kill()
        terminal.process.wait()
        terminal.close()


def add_streams(workspace: Workspace, part: str = "say=hello until=gate all") -> None:
    """Add one stream that is complete at once, three that wait for a gate, and one behind them."""
    workspace.database.add_stream("Stream-A", "foundation")
    for stream in ("Stream-B", "Stream-C", "Stream-D"):
        workspace.database.add_stream(stream, tasks=2)
    workspace.database.add_stream("Stream-E", "integration")
    workspace.play(part, Stream_A="all", Stream_E="all")


def count_boards(text: str) -> int:
    return len(re.findall(r"── my-project · \d+/\d+ tasks", text))


# ── The board ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("size", [(80, 24), (60, 10)])
def test_the_board_stays_within_the_window_and_leaves_only_lines(workspace: Workspace, size: tuple[int, int]) -> None:
    add_streams(workspace)
    boards = []
    with open_terminal(workspace, size, "start", *NO_POLL) as terminal:

        def look() -> bool:
            boards.append(count_boards(terminal.read_all()))
            return len(workspace.starts()) == 4 and "hello" in terminal.read()

        wait_until(look, "the workers")
        terminal.wait_for("3 of 5 workers")
        screen = terminal.read()
        if size == (80, 24):
            captions = [line.strip() for line in screen.split("\n") if line.strip().isupper()]
            assert captions == ["FOUNDATION", "PARALLEL", "INTEGRATION"]
            assert " · hello" in screen
        else:
            assert "Stream-B" in screen
        workspace.open_gate("gate")
        assert terminal.wait_for_end() == 0
        assert set(boards) <= {0, 1}
        everything = terminal.read_all()
        assert count_boards(everything) == 0
        assert "PARALLEL" not in everything
        assert terminal.has_cursor()
        assert "  all complete: 5 streams, 8 tasks" in everything.split("\n")
        last = "".join(everything.rstrip().split("\n")[-2:])  # the terminal folds it, perhaps at its blank
        assert last.replace(" ", "").endswith(f"Clean up: {PROGRAM} clean".replace(" ", ""))
        assert termios.tcgetattr(terminal.slave) == terminal.modes


@pytest.mark.parametrize(
    "sizes", [((80, 24), (100, 30)), ((100, 30), (60, 12)), ((80, 24), (80, 10)), ((60, 10), (200, 50))]
)
def test_a_resize_leaves_no_remains_of_the_board(
    workspace: Workspace, sizes: tuple[tuple[int, int], tuple[int, int]]
) -> None:
    add_streams(workspace)
    before, after = sizes
    with open_terminal(workspace, before, "start", *NO_POLL) as terminal:
        terminal.wait_for("3 of 5 workers")
        terminal.wait_for(" · hello" if before[0] >= 80 else "Stream-B")
        terminal.resize(*after)

        def has_settled() -> bool:
            titles = [line for line in terminal.read().split("\n") if "── my-project" in line]
            return len(titles) == 1 and len(titles[0]) == after[0]

        terminal.wait_for(has_settled, f"one board, as wide as the window\n{terminal.read()}")
        workspace.open_gate("gate")
        assert terminal.wait_for_end() == 0
        assert count_boards(terminal.read()) == 0, terminal.read()


def test_ctrl_c_takes_the_board_away_and_says_who_is_left(workspace: Workspace) -> None:
    add_streams(workspace)
    with open_terminal(workspace, (80, 24), "start", *NO_POLL) as terminal:
        terminal.wait_for("3 of 5 workers")
        pids = [workspace.wait_for_worker(stream) for stream in ("Stream-B", "Stream-C", "Stream-D")]
        terminal.press(b"\x03")
        assert terminal.wait_for_end() == 130
        lines = [line for line in terminal.read_all().split("\n") if line]
        assert count_boards("\n".join(lines)) == 0
        last = "".join(lines[-2:])  # the terminal folds it, perhaps at its blank
        said = f"Orchestrator ended; 3 workers left running. Stop: {PROGRAM} stop"
        assert last.replace(" ", "") == said.replace(" ", "")
        assert terminal.has_cursor()
        assert termios.tcgetattr(terminal.slave) == terminal.modes
        assert all(is_running(pid) for pid in pids)


def test_ctrl_z_stops_the_board_with_the_cursor_shown_and_fg_brings_it_back(workspace: Workspace) -> None:
    add_streams(workspace)
    with open_terminal(workspace, (80, 24), "start", *NO_POLL) as terminal:
        for _ in range(2):
            terminal.wait_for("3 of 5 workers")
            assert not terminal.has_cursor()
            terminal.press(b"\x1a")
            terminal.wait_for(terminal.is_stopped, "the process to stop")
            assert terminal.has_cursor()
            assert count_boards(terminal.read_all()) == 0
            assert termios.tcgetattr(terminal.slave) == terminal.modes
            os.kill(terminal.process.pid, signal.SIGCONT)
        terminal.wait_for("3 of 5 workers")
        workspace.open_gate("gate")
        assert terminal.wait_for_end() == 0


def test_a_board_in_an_ascii_terminal_is_ascii(workspace: Workspace) -> None:
    add_streams(workspace)
    with open_terminal(workspace, (100, 24), "start", *NO_POLL, env={"PYTHONIOENCODING": "ascii"}) as terminal:
        terminal.wait_for("3 of 5 workers")
        terminal.wait_for("hello")
        assert terminal.raw.isascii()
        assert "?" not in terminal.read()
        assert "-- my-project . " in terminal.read()
        workspace.open_gate("gate")
        assert terminal.wait_for_end() == 0


# ── watch-status ──────────────────────────────────────────────────────────────────────────────────────────────────────


def watch(workspace: Workspace, size: tuple[int, int] = (80, 40), **options: Any) -> Any:
    return open_terminal(workspace, size, "status", "--watch", "0.2", **options)


def test_watch_ends_with_ctrl_c_and_leaves_the_terminal_as_it_was(workspace: Workspace) -> None:
    workspace.database.add_stream("Stream-A")
    with watch(workspace) as terminal:
        terminal.wait_for("STREAM STATUS")
        terminal.wait_for(lambda: not termios.tcgetattr(terminal.slave)[3] & termios.ECHO, "keys that are not echoed")
        terminal.press(b"x\r ")
        terminal.press(b"\x03")
        assert terminal.wait_for_end() == 130
        assert termios.tcgetattr(terminal.slave) == terminal.modes
        assert terminal.has_cursor()
        assert "Traceback" not in terminal.read_all()


def test_watch_ends_by_itself_with_a_closing_word(workspace: Workspace) -> None:
    workspace.database.add_stream("Stream-A")
    workspace.database.add_stream("Stream-B")
    with watch(workspace) as terminal:
        terminal.wait_for("STREAM STATUS")
        workspace.database.execute("UPDATE tasks SET status = 'completed'")
        assert terminal.wait_for_end() == 0
        assert b"\x1b[?1049h" in terminal.raw  # the alternate screen, which is left
        assert terminal.raw.count(b"\x1b[?1049l") == 1
        assert terminal.raw.rstrip().endswith(b"All complete: 2 streams.")
        assert termios.tcgetattr(terminal.slave) == terminal.modes
        assert terminal.has_cursor()


def test_watch_shows_what_a_worker_does(workspace: Workspace) -> None:
    add_streams(workspace)
    run = workspace.popen("start", *NO_POLL)
    with watch(workspace, (80, 60)) as terminal:
        terminal.wait_for("Last: hello (")
        workspace.open_gate("gate")
        assert terminal.wait_for_end() == 0
        assert "All complete: 5 streams." in terminal.read()
    assert run.wait(timeout=20) == 0


def test_watch_heeds_ctrl_z(workspace: Workspace) -> None:
    workspace.database.add_stream("Stream-A")
    with watch(workspace) as terminal:
        terminal.wait_for("Data: Task Copilot")
        terminal.press(b"\x1a")
        terminal.wait_for(terminal.is_stopped, "the process to stop")
        assert terminal.has_cursor()
        shell = termios.tcgetattr(terminal.slave)
        termios.tcsetattr(terminal.slave, termios.TCSANOW, terminal.modes)  # as most shells do
        os.kill(terminal.process.pid, signal.SIGCONT)
        terminal.wait_for(lambda: terminal.screen.cursor.hidden, "the picture to be live again")
        terminal.press(b"\x03")
        assert terminal.wait_for_end() == 130
        assert shell == terminal.modes, "a shell that restores nothing has no echo while the watch is stopped"


@pytest.mark.parametrize("stdin", [subprocess.DEVNULL, subprocess.PIPE])
def test_watch_needs_no_terminal_to_read_from(workspace: Workspace, stdin: int) -> None:
    workspace.database.add_stream("Stream-A")
    with watch(workspace, stdin=stdin) as terminal:
        terminal.wait_for("STREAM STATUS")
        workspace.database.set_status("completed", "Stream-A")
        assert terminal.wait_for_end() == 0
        assert "All complete: 1 stream." in terminal.read()


def test_watch_needs_no_stdin_at_all(workspace: Workspace) -> None:
    workspace.database.add_stream("Stream-A")
    workspace.database.set_status("completed", "Stream-A")
    with watch(workspace, preexec_fn=lambda: os.close(0)) as terminal:
        assert terminal.wait_for_end() == 0, terminal.read()


def test_watch_on_a_terminal_that_is_not_its_own_shows_the_picture(workspace: Workspace) -> None:
    """As with `watch-status </dev/pts/3 >/dev/pts/3` from a daemon: there is no foreground to be in."""
    workspace.database.add_stream("Stream-A")
    workspace.database.set_status("completed", "Stream-A")
    with watch(workspace, preexec_fn=os.setsid) as terminal:
        assert terminal.wait_for_end() == 0, terminal.read()
        assert "All complete: 1 stream." in terminal.read()


BACKGROUND = """
import os, signal, sys, time
child = os.fork()
if child == 0:
    os.setpgid(0, 0)  # a job in the background: this process, the shell, stays in front
    os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
with open("background.pid", "w") as file:
    file.write(f"{child}\\n")
signal.signal(signal.SIGTTOU, signal.SIG_IGN)
while True:
    pid, status = os.waitpid(child, os.WUNTRACED | os.WNOHANG)
    if pid:
        break
    for name, group in (("fg", child), ("bg", os.getpid())):
        if os.path.exists(name):
            os.remove(name)
            os.tcsetpgrp(0, group)
            os.kill(child, signal.SIGCONT)
    time.sleep(0.02)
sys.exit(99 if os.WIFSTOPPED(status) else os.WEXITSTATUS(status))
"""


@contextlib.contextmanager
def in_background(workspace: Workspace, tmp_path: Path, *words: str) -> Iterator[Terminal]:
    """Open a terminal whose shell has the command line as a job in the background."""
    script = tmp_path / "background.py"
    script.write_text(BACKGROUND)
    with open_terminal(workspace, (80, 40), str(SCRIPT), *words, script=script) as terminal:
        yield terminal


def test_watch_in_the_background_draws_nothing_and_is_not_stopped_for_touching_the_terminal(
    workspace: Workspace, tmp_path: Path
) -> None:
    workspace.database.add_stream("Stream-A")
    with in_background(workspace, tmp_path, "status", "--watch", "600") as terminal:
        terminal.wait_for((workspace.root / "background.pid").exists, "the job")
        assert termios.tcgetattr(terminal.slave) == terminal.modes
        workspace.open_gate("fg")
        terminal.wait_for("STREAM STATUS")
        terminal.wait_for(lambda: not termios.tcgetattr(terminal.slave)[3] & termios.ECHO, "keys that are not echoed")
        workspace.open_gate("bg")
        terminal.wait_for(lambda: b"\x1b[?1049l" in terminal.raw, "the picture to go")
        workspace.database.set_status("completed", "Stream-A")
        workspace.open_gate("fg")
        assert terminal.wait_for_end() == 0
        assert "All complete: 1 stream." in terminal.read()


def test_a_start_in_the_background_draws_no_board_over_what_is_typed_until_it_is_in_front(
    workspace: Workspace, tmp_path: Path
) -> None:
    add_streams(workspace)
    with in_background(workspace, tmp_path, "start", *NO_POLL) as terminal:
        terminal.wait_for(lambda: len(workspace.starts()) == 4, "the workers")
        terminal.wait_for("Started worker for Stream-D")
        assert b"\x1b[?25l" not in terminal.raw  # nobody has hidden the cursor
        assert count_boards(terminal.read_all()) == 0
        workspace.open_gate("fg")
        terminal.wait_for("3 of 5 workers")
        workspace.open_gate("bg")
        terminal.wait_for(lambda: count_boards(terminal.read_all()) == 0, "the board to go")
        assert terminal.has_cursor()
        workspace.open_gate("gate")
        assert terminal.wait_for_end() == 0
        assert "all complete: 5 streams, 8 tasks" in terminal.read_all()


@pytest.mark.parametrize("size", [(60, 12), (200, 50)])
def test_watch_is_right_at_once_after_a_resize(workspace: Workspace, size: tuple[int, int]) -> None:
    """With an interval of ten minutes: the resize alone draws it anew."""
    add_streams(workspace)
    with open_terminal(workspace, (100, 30), "status", "--watch", "600") as terminal:
        terminal.wait_for("Data: Task Copilot")
        terminal.resize(*size)

        def is_whole() -> bool:
            lines = terminal.read().rstrip().split("\n")
            is_boxed = len(lines[0]) == min(size[0], 73) and lines[0].startswith("╔═")
            return is_boxed and lines[-1].startswith("Data: Task Copilot") and terminal.read().count("╔") == 1

        terminal.wait_for(is_whole, f"one whole picture\n{terminal.read()}")
        terminal.press(b"\x03")
        assert terminal.wait_for_end() == 130
        assert terminal.raw.rstrip().endswith(b"\x1b[?1049l")  # pyte has no alternate screen


def test_watch_in_a_small_window_is_told_shorter(workspace: Workspace) -> None:
    add_streams(workspace)
    with watch(workspace, (60, 16)) as terminal:
        terminal.wait_for("STREAM STATUS")
        terminal.wait_for("Data: Task Copilot")
        terminal.resize(100, 50)
        terminal.wait_for("Quick Actions")
        assert terminal.read().count("STREAM STATUS") == 1
        terminal.press(b"\x03")
        assert terminal.wait_for_end() == 130
