"""Measures what the orchestrator costs, each time beside a floor that is measured in the same run.

    python tests/benchmarks/run.py                all rows, about ten minutes
    python tests/benchmarks/run.py chain status   these alone
    python tests/benchmarks/run.py --quick        three rounds in place of nine, and shorter ones
    python tests/benchmarks/run.py --check        exit code 1 where a target is missed

It prints a table in Markdown, and leaves no process and no file behind. Ours and the floor take turns, and their
medians are compared, so that what else the machine does falls on both. The workers are real processes that commit to
a real SQLite database in WAL mode, which another connection holds open, as Task Copilot's servers do; the floor's
workers are the same command in the same environment. The project is a git repository. Memory is what the system holds
for the process (RSS). CPU time is that of the process alone.

Two things are measured once, not nine times: CPU over 60 s, which is a sum over some hundreds of ticks, and the poll
loop of 30 s.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import pty
import random
import shutil
import signal
import sqlite3
import statistics
import struct
import subprocess
import sys
import tempfile
import termios
import threading
import time
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Iterator, Sequence

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import psutil
from support import SCRIPT, Workspace, wait_until

HERE = Path(__file__).resolve().parent

# Completes its stream after some seconds. It notes when its first instruction ran, and when its last one does.
WORKER = """#!{python}
import time
began = time.monotonic()
import os, sqlite3
time.sleep({seconds})
stream, base = os.environ["ORCHESTRATE_STREAM"], os.environ["TASK_DB_PATH"]
connection = sqlite3.connect(os.path.join(base, os.environ["WORKSPACE_ID"], "tasks.db"), timeout=20)
with connection:
    connection.execute(
        "UPDATE tasks SET status = 'completed', updated_at = strftime('%Y-%m-%dT%H:%M:%fZ') "
        "WHERE json_extract(metadata, '$.streamId') = ?", [stream])
connection.close()
with open(os.path.join(os.environ["ORCHESTRATE_PROJECT"], "times.txt"), "a") as file:
    file.write(f"{{stream}} {{began}} {{time.monotonic()}}\\n")
os._exit(0)
"""
QUIET_WORKER = "#!/bin/sh\nexec sleep 3600\n"

# Runs the worker for one stream after another: the floor of a run.
BARE_LOOP = """
import os, subprocess, sys
for stream in sys.argv[2:]:
    subprocess.Popen([sys.argv[1]], env={**os.environ, "ORCHESTRATE_STREAM": stream}).wait()
"""

# The same, with five threads: the floor of a run in parallel.
BARE_POOL = """
import os, subprocess, sys
from multiprocessing.pool import ThreadPool
def run(stream):
    subprocess.Popen([sys.argv[1]], env={**os.environ, "ORCHESTRATE_STREAM": stream}).wait()
ThreadPool(5).map(run, sys.argv[2:], 1)
"""

# The original's loop: start what is ready, sleep for 30 s, look again.
POLL_LOOP = """
import os, subprocess, sys, time
for stream in sys.argv[2:]:
    worker = subprocess.Popen([sys.argv[1]], env={**os.environ, "ORCHESTRATE_STREAM": stream})
    while worker.poll() is None:
        time.sleep(30)
"""

PACKAGES = "import click, psutil, sqlite3, rich.console, rich.table, rich.text"
FEW_PACKAGES = "import click, sqlite3"
MEGABYTE = 1 << 20


@dataclass(frozen=True)
class Scale:
    """How much is measured."""

    rounds: int = 9
    idle: float = 60.0  # seconds
    events: int = 10_000
    megabytes: int = 200
    polls: bool = True


QUICK = Scale(rounds=3, idle=16.0, events=1_000, megabytes=20, polls=False)


@dataclass(frozen=True)
class Row:
    """A line of the table. `value` is what the target, the most that it may be, is about."""

    what: str
    ours: str
    floor: str
    value: float
    target: float | None
    unit: str = "ratio"

    @property
    def is_met(self) -> bool:
        return self.target is None or self.value <= self.target

    def format(self) -> str:
        """Return the line."""
        ratio = f"{self.value:.2f}" if self.unit == "ratio" else "-"
        limit = (
            "-" if self.target is None else f"<= {self.target:g}" + ("" if self.unit == "ratio" else f" {self.unit}")
        )
        verdict = "-" if self.target is None else "yes" if self.is_met else "NO"
        return f"| {self.what} | {self.ours} | {self.floor} | {ratio} | {limit} | {verdict} |"


def compare(what: str, ours: Sequence[float], floor: Sequence[float], target: float | None) -> Row:
    """Return a row about two series of seconds."""
    mine, least = statistics.median(ours), statistics.median(floor)
    return Row(what, format_seconds(mine), format_seconds(least), mine / least, target)


def cost(what: str, value: float, unit: str, target: float | None) -> Row:
    """Return a row about a figure that has no floor."""
    return Row(what, f"{value:.2f} {unit}", "-", value, target, unit)


def format_seconds(seconds: float) -> str:
    """Return a time as people read it."""
    return f"{seconds:.2f} s" if seconds >= 1 else f"{seconds * 1000:.1f} ms"


def percentile(values: Sequence[float], share: float) -> float:
    """Return the value below which this share of the values lies."""
    return sorted(values)[min(int(len(values) * share), len(values) - 1)]


class Bench:
    """A workspace whose database stays open, as by a server."""

    def __init__(self, folder: Path) -> None:
        self.workspace = Workspace(folder)
        self.workspace.make_repository()
        self.connection = sqlite3.connect(self.workspace.database.path, timeout=20, isolation_level=None)

    def play(self, script: str, seconds: float = 0) -> None:
        """Give the worker its script."""
        self.workspace.claude.write_text(script.format(python=sys.executable, seconds=seconds))

    def add_streams(self, count: int, tasks: int = 1, status: str = "pending", phase: str = "parallel") -> list[str]:
        """Add streams, and return their ids."""
        ids = [f"Stream-{number}" for number in range(1, count + 1)]
        moment = "2026-01-01T00:00:00.000Z"
        rows = [
            (f"TASK-{i}-{n}", f"Title of task {n}", status, json.dumps(
                {"streamId": i, "streamName": f"{i} name", "streamPhase": phase, "files": [f"src/{i}/{n}.ts"]}
            ), moment, moment)
            for i in ids
            for n in range(tasks)
        ]  # fmt: skip
        names = "id, title, status, metadata, created_at, updated_at"
        self.connection.execute("BEGIN")
        self.connection.executemany(f"INSERT INTO tasks ({names}) VALUES (?, ?, ?, ?, ?, ?)", rows)
        self.connection.execute("COMMIT")
        return ids

    def set_status(self, status: str, stream: str | None = None) -> None:
        """Set the tasks of a stream, or all, to a status."""
        where, values = ("WHERE json_extract(metadata, '$.streamId') = ?", [stream]) if stream else ("", [])
        self.connection.execute(f"UPDATE tasks SET status = ? {where}", [status, *values])

    def reset(self) -> None:
        """Make everything as it was before a run."""
        self.set_status("pending")
        self._times.write_text("")
        shutil.rmtree(self.workspace.state, ignore_errors=True)

    @property
    def _times(self) -> Path:
        return self.workspace.root / "times.txt"

    def times(self) -> list[tuple[str, float, float]]:
        """Return what the workers noted: stream, first instruction, last instruction."""
        lines = self._times.read_text().splitlines() if self._times.exists() else []
        return [(name, float(first), float(last)) for name, first, last in map(str.split, lines)]

    def gaps(self) -> list[float]:
        """Return the time from each worker's last instruction to the first one of the next."""
        times = sorted(self.times(), key=lambda entry: entry[1])
        return [after[1] - before[2] for before, after in zip(times, times[1:])]

    def time_command(self, words: Sequence[str]) -> float:
        """Run a command to its end, and return the seconds that it took."""
        begin = time.perf_counter()
        subprocess.run(words, env=self.environment, cwd=self.workspace.root, check=True, stdout=subprocess.DEVNULL)
        return time.perf_counter() - begin

    @property
    def environment(self) -> dict[str, str]:
        """The environment of our commands; the floor's workers find in it what they need."""
        path = self.workspace.database.path
        return self.workspace.environment(
            WORKSPACE_ID=path.parent.name,
            TASK_DB_PATH=str(path.parent.parent),
            ORCHESTRATE_PROJECT=str(self.workspace.root),
            PYTHON=sys.executable,  # of the two wrappers
        )

    def start(self, *words: str) -> float:
        """Run the orchestrator to its end, and return the seconds."""
        return self.time_command([sys.executable, str(SCRIPT), "start", *words])

    def loop(self, script: str, streams: Sequence[str]) -> float:
        """Run a loop over the workers of streams, and return the seconds."""
        return self.time_command([sys.executable, "-c", script, str(self.workspace.claude), *streams])

    def wait_for_workers(self, count: int) -> None:
        """Wait until so many workers have a PID file."""
        pids = self.workspace.state / "pids"
        wait_until(lambda: len(list(pids.glob("*.pid"))) == count, f"{count} workers", 60)

    def close(self) -> None:
        """End all processes."""
        self.workspace.close()
        self.connection.close()


@contextmanager
def bench() -> Iterator[Bench]:
    """Give a bench in a folder that is gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="orchestrate-benchmark-") as folder, closing(Bench(Path(folder))) as made:
        yield made


class Screen:
    """A terminal of 100 columns and 30 rows that somebody reads; `frames` are the dashboards that were drawn on it."""

    def __init__(self) -> None:
        self._master, self.slave = pty.openpty()
        fcntl.ioctl(self.slave, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 100, 0, 0))
        self.frames = 0
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        try:
            while True:
                self.frames += os.read(self._master, 1 << 16).count(b"STREAM STATUS")
        except OSError:  # closed
            return

    def wait_for_frames(self, count: int) -> None:
        """Wait until so many dashboards were drawn."""
        wait_until(lambda: self.frames >= count, f"{count} frames", 60)

    def close(self) -> None:
        """Hang up."""
        os.close(self.slave)


def read_cpu(process: psutil.Process) -> float:
    """Return the CPU seconds of a process, its children's not included: to the nanosecond where Linux tells."""
    path = Path(f"/proc/{process.pid}/schedstat")
    return int(path.read_text().split()[0]) / 1e9 if path.exists() else sum(process.cpu_times()[:2])


def run_child(*words: object) -> tuple[float, int]:
    """Measure something in a process of its own; return the seconds, and the most memory in bytes."""
    argv = [sys.executable, str(HERE / "child.py"), *map(str, words)]
    out = json.loads(subprocess.run(argv, check=True, stdout=subprocess.PIPE).stdout)
    return out["seconds"], out["peak"]


def measure_chain(scale: Scale) -> list[Row]:
    """Thirty foundation streams in a row."""
    ours: list[float] = []
    floor: list[float] = []
    our_gaps: list[float] = []
    floor_gaps: list[float] = []
    with bench() as here:
        here.play(WORKER)
        streams = here.add_streams(30, phase="foundation")
        for _ in range(scale.rounds):
            here.reset()
            floor.append(here.loop(BARE_LOOP, streams))
            floor_gaps += here.gaps()
            here.reset()
            ours.append(here.start())
            our_gaps += here.gaps()
    late = [percentile(gaps, 0.99) for gaps in (our_gaps, floor_gaps)]
    return [
        compare("30 foundation streams, whole run", ours, floor, 1.6),
        compare("exit to next worker, median", our_gaps, floor_gaps, 2),
        compare("exit to next worker, p99", [late[0]], [late[1]], 5),
        cost("exit to next worker, median", statistics.median(our_gaps) * 1000, "ms", 50),
    ]


def measure_parallel(scale: Scale) -> list[Row]:
    """Twenty parallel streams of one second, five at once."""
    with bench() as here:
        here.play(WORKER, seconds=1)
        streams, ours, floor = here.add_streams(20), [], []
        for _ in range(scale.rounds):
            here.reset()
            floor.append(here.loop(BARE_POOL, streams))
            here.reset()
            ours.append(here.start("--no-worktrees", "--max-workers", "5"))
    what = "20 parallel streams of 1 s, 5 at once"
    return [compare(what, ours, [4.0], 1.1), compare(f"{what}, beside a bare pool", ours, floor, None)]


def measure_unblock(scale: Scale) -> list[Row]:
    """From the commit that unblocks a stream to the first instruction of its worker."""
    chance = random.Random(9)
    delays = []
    with bench() as here:
        here.play(WORKER)
        streams = here.add_streams(scale.rounds + 1, status="blocked")
        run = here.workspace.popen("start", "--no-worktrees", stdout=subprocess.DEVNULL)
        wait_until(lambda: here.workspace.events("run_waiting"), "a run that waits")
        for stream in streams[:-1]:
            time.sleep(chance.uniform(0.5, 1.0))  # at any moment between two ticks
            begin = time.monotonic()
            here.set_status("pending", stream)
            name, first, _ = wait_until(lambda: here.times()[len(delays) :], "a worker")[0]
            assert name == stream
            delays.append(first - begin)
        run.terminate()
        run.wait()
    worst = max(delays) * 1000
    median = statistics.median(delays) * 1000
    return [
        Row("commit that unblocks to worker, worst", f"{worst:.0f} ms (median {median:.0f})", "-", worst, 600, "ms")
    ]


def measure_idle(scale: Scale) -> list[Row]:
    """CPU and memory of the orchestrator beside five quiet workers, with and without the board."""
    with ExitStack() as stack:
        here, there = stack.enter_context(bench()), stack.enter_context(bench())
        screen = stack.enter_context(closing(Screen()))
        processes = []
        for place, out in ((here, screen.slave), (there, subprocess.DEVNULL)):
            place.play(QUIET_WORKER)
            place.add_streams(20, tasks=50)
            run = place.workspace.popen(
                "start", "--no-worktrees", stdout=out, stderr=out, env={"TERM": "xterm-256color"}
            )
            place.wait_for_workers(5)
            processes.append(psutil.Process(run.pid))
        time.sleep(3)
        sizes = [process.memory_info().rss for process in processes]
        before = [read_cpu(process) for process in processes]
        time.sleep(scale.idle)
        shares = [100 * (read_cpu(p) - b) / scale.idle for p, b in zip(processes, before)]
        cause_events([here, there], scale.events)
        growths = [process.memory_info().rss - size for process, size in zip(processes, sizes)]
    rows = []
    for word, share, size, growth, limits in zip(("on", "off"), shares, sizes, growths, ((0.5, 50), (0.2, 40))):
        rows += [
            cost(f"CPU, 5 quiet workers, board {word}", share, "%", limits[0]),
            cost(f"memory, board {word}", size / MEGABYTE, "MB", limits[1]),
            cost(f"its growth after {scale.events:,} events, board {word}", growth / MEGABYTE, "MB", 2),
        ]
    return rows


def cause_events(benches: Sequence[Bench], count: int) -> None:
    """Let the workers have said so many things, a hundred at a time, and a tenth as many requests have come."""
    block = {"type": "text", "text": "I have read the file, and go on with the next one."}
    said = json.dumps({"type": "assistant", "message": {"content": [block]}}) + "\n"
    times = {"version": 1, "time": "2026-01-01T00:00:00.000Z", "clock": time.monotonic()}
    asked = json.dumps({**times, "event": "start_requested", "stream": "Stream-1"}) + "\n"
    for _ in range(count // 100):
        for place in benches:
            for raw in (place.workspace.state / "logs").glob("*.jsonl"):
                with raw.open("a") as file:
                    file.write(20 * said)
            with (place.workspace.state / "events.jsonl").open("a") as file:
                file.write(10 * asked)  # each one is drawn: more of them would only queue
        time.sleep(0.25)
    time.sleep(2)


def measure_commands(scale: Scale) -> list[Row]:
    """The commands that look, with 20 streams and 1,000 tasks."""
    script = [sys.executable, str(SCRIPT)]
    module = f"import sys; sys.path.insert(0, {str(SCRIPT.parent)!r}); import orchestrate; orchestrate.main(['--help'])"
    commands: list[tuple[str, list[str], str, float | None]] = [
        ("status", [*script, "status"], PACKAGES, 1.9),
        ("check-streams, of an installed copy", ["./.claude/orchestrator/check-streams"], PACKAGES, 1.5),
        ("status --json", [*script, "status", "--json"], FEW_PACKAGES, 2.8),
        ("stop, nothing to stop", [*script, "stop"], FEW_PACKAGES, 2.8),
        ("--help", [*script, "--help"], FEW_PACKAGES, 2.8),
        ("--help, installed as a module: compiled before", [sys.executable, "-c", module], FEW_PACKAGES, 1.3),
    ]
    rows = []
    with bench() as here:
        here.play(WORKER)
        here.add_streams(20, tasks=50)
        here.time_command([*script, "generate"])
        for what, words, packages, target in commands:
            ours, floor = [], []
            here.time_command(words)  # and so what is kept of its compilation is there
            for _ in range(2 * scale.rounds + 1):
                floor.append(here.time_command([sys.executable, "-c", packages]))
                ours.append(here.time_command(words))
            rows.append(compare(what, ours, floor, target))
    return rows


def measure_read(scale: Scale) -> list[Row]:
    """A hundred thousand tasks in a thousand streams."""
    ours, floor = [], []
    with bench() as here:
        here.add_streams(1000, tasks=100)
        here.connection.execute(
            "UPDATE tasks SET status = CASE WHEN rowid % 100 < 60 THEN 'completed' "
            "WHEN rowid % 100 < 97 THEN 'pending' "
            "WHEN rowid % 100 < 99 THEN 'in_progress' ELSE 'blocked' END"
        )
        for _ in range(scale.rounds):
            floor.append(run_child("query", here.workspace.database.path))
            ours.append(run_child("read", here.workspace.database.path))
    return [
        compare("reading 100,000 tasks, 1,000 streams", [s for s, _ in ours], [s for s, _ in floor], 1.2),
        cost("its peak memory", statistics.median(peak for _, peak in ours) / MEGABYTE, "MB", 80),
    ]


def measure_watch(scale: Scale) -> list[Row]:
    """One refresh of `watch-status`, beside an orchestrator with five workers."""
    with bench() as here, closing(Screen()) as screen:
        here.play(QUIET_WORKER)
        here.add_streams(20, tasks=50)
        here.workspace.popen("start", "--no-worktrees", stdout=subprocess.DEVNULL)
        here.wait_for_workers(5)
        watch = here.workspace.popen("status", "--watch", "0.1", stdout=screen.slave, env={"TERM": "xterm-256color"})
        screen.wait_for_frames(3)
        process, costs = psutil.Process(watch.pid), []
        for _ in range(scale.rounds):
            begin, frames = read_cpu(process), screen.frames
            screen.wait_for_frames(frames + 10)
            costs.append((read_cpu(process) - begin) / (screen.frames - frames) * 1000)
    return [cost("a refresh of watch-status, 20 streams", statistics.median(costs), "ms", 15)]


def make_events(path: Path, size: int) -> None:
    """Write a file of a worker's events: words, a call of a tool, and its result, which the CLI writes twice."""
    words = " ".join(f"word-{number}" for number in range(60))
    content = "\n".join(f'{number:4}\tconst value{number} = compute("{number}");' for number in range(60))
    call = {"type": "tool_use", "id": "toolu_1", "name": "Bash", "input": {"command": "npm test -- --watch=false"}}
    result = {"type": "tool_result", "tool_use_id": "toolu_1", "content": content, "is_error": False}
    tokens = {f"{kind}_tokens": 1234 for kind in ("input", "output", "cache_read_input", "cache_creation_input")}
    about = {"id": "msg_1", "role": "assistant", "model": "claude-model", "stop_reason": None, "usage": tokens}
    events: list[dict[str, Any]] = [
        {"type": "assistant", "message": {**about, "content": [{"type": "text", "text": words}]}},
        {"type": "assistant", "message": {**about, "content": [call]}},
        {"type": "user", "message": {"content": [result]}, "tool_use_result": {"stdout": content, "stderr": ""}},
    ]
    ids = {"parent_tool_use_id": None, "session_id": "0" * 36, "uuid": "1" * 36}
    block = "".join(json.dumps({**event, **ids}) + "\n" for event in events)
    with path.open("w") as file:
        for _ in range(size // len(block)):
            file.write(block)


def measure_render(scale: Scale) -> list[Row]:
    """A large file of events, into a log."""
    ours, floor = [], []
    with tempfile.TemporaryDirectory(prefix="orchestrate-benchmark-") as folder:
        raw, log = Path(folder, "raw.jsonl"), Path(folder, "it.log")
        make_events(raw, scale.megabytes * 1_000_000)
        for _ in range(scale.rounds):
            floor.append(run_child("parse", raw))
            ours.append(run_child("render", raw, log))
            log.unlink()
    return [
        compare(f"rendering {scale.megabytes} MB of events", [s for s, _ in ours], [s for s, _ in floor], 1.5),
        cost("its peak memory", statistics.median(peak for _, peak in ours) / MEGABYTE, "MB", 64),
    ]


def measure_tick(scale: Scale) -> list[Row]:
    """A tick in which nothing happens, with more and more streams."""
    times = {}
    for count in (10, 100, 1000):
        with bench() as here:
            here.play(QUIET_WORKER)
            here.add_streams(count, tasks=10)
            argv = [sys.executable, str(HERE / "child.py"), "tick", str(here.workspace.root)]
            argv += [str(here.workspace.database.path), str(10 * scale.rounds)]
            done = subprocess.run(argv, env=here.environment, check=True, stdout=subprocess.PIPE)
            times[count] = json.loads(done.stdout)["seconds"] * 1000
    rows = [cost(f"a tick, {count:,} streams", value, "ms", 30) for count, value in times.items()]
    for less, more in ((10, 100), (100, 1000)):
        what = f"growth of a tick, {less} to {more:,} streams"
        rows.append(Row(what, f"{times[more]:.2f} ms", f"{times[less]:.2f} ms", times[more] / times[less], 10))
    return rows


def measure_poll(scale: Scale) -> list[Row]:
    """From the end of a phase to the first instruction of the next one, beside a loop that polls every 30 s."""
    ours: list[float] = []
    floor: list[float] = []
    with bench() as here:
        here.play(WORKER)
        for phase in ("foundation", "parallel", "integration"):
            here.connection.execute("UPDATE tasks SET id = id || '-', metadata = replace(metadata, 'Stream-', 'S-')")
            here.add_streams(1, phase=phase)
        for _ in range(scale.rounds):
            here.reset()
            here.start("--no-worktrees")
            ours += here.gaps()
        if not scale.polls:
            return [Row("a phase change", format_seconds(statistics.median(ours)), "30 s (not measured)", 0, None, "")]
        here.reset()
        here.loop(POLL_LOOP, ["Stream-1", "S-1"])
        floor += here.gaps()
    mine = statistics.median(ours)
    what = "a phase change; beside it, a loop that polls every 30 s, and a worker that ends at once"
    return [Row(what, format_seconds(mine), format_seconds(floor[0]), mine / floor[0], None)]


MEASURES: dict[str, Callable[[Scale], list[Row]]] = {
    "chain": measure_chain,
    "parallel": measure_parallel,
    "unblock": measure_unblock,
    "idle": measure_idle,
    "commands": measure_commands,
    "read": measure_read,
    "watch": measure_watch,
    "render": measure_render,
    "tick": measure_tick,
    "poll": measure_poll,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print the table, and return the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("rows", nargs="*", metavar="ROW", help=f"of {', '.join(MEASURES)}; none: all of them")
    parser.add_argument("--quick", action="store_true", help="fewer and shorter rounds")
    parser.add_argument("--check", action="store_true", help="exit with 1 where a target is missed")
    options = parser.parse_args(argv)
    unknown = set(options.rows) - set(MEASURES)
    if unknown:
        parser.error(f"there is no row {', '.join(sorted(unknown))}")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that nothing is left behind
    rows: list[Any] = []
    print("| what | ours | floor | ratio | target | met |\n| --- | --- | --- | --- | --- | --- |", flush=True)
    for name in options.rows or MEASURES:
        measured = MEASURES[name](QUICK if options.quick else Scale())
        print("\n".join(row.format() for row in measured), flush=True)
        rows += measured
    return int(options.check and not all(row.is_met for row in rows))


if __name__ == "__main__":
    sys.exit(main())
