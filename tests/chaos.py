"""A night of chaos: six streams over the three phases, and faults drawn at random from a seed.

    python tests/chaos.py --seconds 600 --seed N [--trace]

While the night lasts no stream runs out of tasks before its time: a worker that completes one adds another, in the same
transaction. Each worker looks around as it starts and writes what must not be to `violations.txt`: another worker of
its stream, what the last one left running, a stream that has to be over before its own. When time is up the faults end,
everything is unblocked and started once more, and the run must come to its end. The seed decides which faults come in
which order and what the workers do; what they meet is up to the machine. The last line is a JSON object with figures.
"""

from __future__ import annotations

import argparse
import contextlib
import heapq
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any, Callable

import psutil
from support import Workspace, is_running, own_processes, wait_until

# Each stream with its phase, and the share of the night after which it gets no more tasks.
STREAMS = {
    "F-1": ("foundation", 0.12),
    "F-2": ("foundation", 0.25),
    "P-1": ("parallel", 0.7),
    "P-2": ("parallel", 0.75),
    "P-3": ("parallel", 0.75),
    "I-1": ("integration", 1.0),
}
EARLIER = {
    "F-1": [],
    "F-2": ["F-1"],
    **{stream: ["F-1", "F-2"] for stream in ("P-1", "P-2", "P-3")},
    "I-1": ["F-1", "F-2", "P-1", "P-2", "P-3"],
}
SETTLE = 120  # seconds that the run has to come to its end once the faults are over
START = ("start", "--max-restarts", "100000", "--finish-grace", "1")

# What a worker of this night does beyond the words of support.WORKER; put behind its first note.
WATCH = r"""
import fcntl, psutil, uuid

plain_act = act
EARLIER = json.loads((project / "earlier.json").read_text())[stream]
OPEN = "status NOT IN ('completed', 'cancelled') AND json_extract(metadata, '$.streamId')"


def violate(what):
    with open(project / "violations.txt", "a") as file:
        file.write(f"{stream}, worker {os.getpid()}: {what}\n")


def look_around():
    for process in psutil.process_iter(["environ", "cmdline"]):
        environ = process.info["environ"] or {}
        if environ.get("ORCHESTRATE_PROJECT") != str(project) or process.pid == os.getpid():
            continue
        other = environ.get("ORCHESTRATE_STREAM")
        what = f"process {process.pid} of {other} ({environ.get('ORCHESTRATE_RUN')}, {process.info['cmdline']})"
        if other == stream:
            violate(f"{what} lived when this worker, {os.environ['ORCHESTRATE_RUN']}, had started")
        elif other in EARLIER:
            violate(f"{what} lived, and its stream had to be over")
    for other in EARLIER:
        (count,) = query(f"SELECT COUNT(*) FROM tasks WHERE {OPEN} = ?", other)[0]
        if count:
            violate(f"{other} had {count} open tasks")


def hold_lock():
    # No child inherits it, but for the instant between fork and exec: a dead holder's lock is soon free.
    file = open(project / f"lock-{stream}", "a+")
    for _ in range(250):
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read()
            if holder and psutil.pid_exists(int(holder)) and psutil.Process(int(holder)).status() != "zombie":
                return violate(f"worker {holder} held the stream's lock") or file
            time.sleep(0.02)
        else:
            file.truncate(0)
            file.write(str(os.getpid()))
            file.flush()
            return file
    return violate("somebody held the stream's lock") or file


def work():
    connection = sqlite3.connect(database, timeout=60, isolation_level=None)
    connection.execute("BEGIN IMMEDIATE")
    rows = connection.execute(f"SELECT id FROM tasks WHERE {MINE} ORDER BY created_at, id LIMIT 1", [stream]).fetchall()
    for row in rows:
        connection.execute(f"UPDATE tasks SET status = 'completed', updated_at = {NOW} WHERE id = ?", row)
        if (project / f"more-{stream}").exists():
            values = [f"TASK-{uuid.uuid4()}", "More", json.dumps({"streamId": stream})]
            connection.execute(f"INSERT INTO tasks (id, title, metadata, created_at, updated_at) "
                               f"VALUES (?, ?, ?, {NOW}, {NOW})", values)
    connection.execute("COMMIT")
    connection.close()


def act(word, value, **more):
    if word == "work":
        work()
    elif word == "deaf":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    elif word == "linger":
        if not query(f"SELECT 1 FROM tasks WHERE {MINE} LIMIT 1", stream):
            plain_act("hang", "")
    else:
        plain_act(word, value, **more)


lock = hold_lock()
look_around()
"""

LOCKER = """
import sqlite3, sys, time
connection = sqlite3.connect(sys.argv[1], timeout=20, isolation_level=None)
connection.execute("BEGIN EXCLUSIVE")
time.sleep(float(sys.argv[2]))
connection.execute("ROLLBACK")
"""

GARBAGE = (
    b'{"version": 1, "event": "worker_sta',
    b"\n",
    b"\x00\xff\xfe\x80 no UTF-8\n",
    b"[1, 2]\nnull\n3\n",
    b'{"event": "worker_ended", "stream": "P-1"}\n',
    b'{"event": "worker_started", "stream": ["P-1"], "pid": "x", "clock": NaN}\n',
    b'{"event": "state", "stream": "P-2", "state": "HAPPY", "reason": 1, "clock": 1}\n',
    b'{"event": "start_requested", "stream": 5}\n',
    b'{"event": "run_started"}\n',
    b"[" * 5000 + b"\n",
)


def draw_part(rng: random.Random) -> str:
    """Return what one worker does: a task or two, a child perhaps, and an end of some kind."""
    words = []
    for word, chance in (("deaf", 0.15), ("spawn", 0.15), ("setsid", 0.15)):
        words += [word] if rng.random() < chance else []
    for _ in range(rng.choice((1, 1, 2, 4))):
        words += [f"sleep={rng.uniform(0.05, 0.8):.2f}", "work", "say=done"]
    ends = ("exit=0", "exit=1", "die=9", "die=15", "die=11", "linger", "sleep=2")
    return " ".join([*words, *rng.choices(ends, (6, 4, 2, 1, 1, 1, 1))])


class Night:
    """One run under faults, from its start to its verdict."""

    def __init__(self, workspace: Workspace, seed: int, seconds: float, trace: bool = False) -> None:
        self.workspace = workspace
        self.seed = seed
        self.seconds = seconds
        self.trace = trace
        self.random = random.Random(seed)
        self.begin = time.monotonic()
        self.faults: Counter[str] = Counter()
        self.violations: list[str] = []
        self.starts = 0
        self.run: subprocess.Popen[str] | None = None
        self.outputs: dict[int, Path] = {}
        self.helpers: list[subprocess.Popen[bytes]] = []
        self.strangers: list[subprocess.Popen[bytes]] = []
        self.stopped: dict[str, int] = {}
        # Task Copilot's is WAL, where a lock keeps out the writers alone; in the other one it keeps out readers too.
        self.journal_mode = self.random.choice(("wal", "delete"))
        self._spell: list[str] = []
        self._spell_ends = 0.0
        self._due: list[tuple[float, int, Callable[[], None]]] = []

    # ── The frame ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def play(self) -> dict[str, Any]:
        """Live through the night, and return its figures."""
        try:
            self.prepare()
            self.start()
            while self.clock() < self.seconds:
                self.step(self.seconds)
            is_complete = self.settle()
            self.inspect()
        finally:
            for process in [*self.helpers, *self.strangers]:
                process.kill()
                process.wait()
        starts = Counter(self.workspace.starts())
        return {
            "seed": self.seed,
            "seconds": self.seconds,
            "took": round(self.clock(), 1),
            "journal_mode": self.journal_mode,
            "faults": dict(sorted(self.faults.items())),
            "workers": {stream: starts[stream] for stream in STREAMS},
            "orchestrators": self.starts,
            "complete": is_complete,
            "violations": self.violations,
        }

    def prepare(self) -> None:
        """Lay out the streams, their workers' parts and the strangers."""
        self.workspace.git("init", "--quiet", ".")  # without a commit: all work in one folder
        self.workspace.database.execute(f"PRAGMA journal_mode = {self.journal_mode}")
        for stream, (phase, _) in STREAMS.items():
            self.workspace.database.add_stream(stream, phase, tasks=3)
            (self.workspace.root / f"more-{stream}").touch()
        parts = {stream: [draw_part(self.random) for _ in range(int(self.seconds) + 100)] for stream in STREAMS}
        self.workspace.play("work", **parts)  # type: ignore[arg-type]
        (self.workspace.root / "earlier.json").write_text(json.dumps(EARLIER))
        before, first_note, after = self.workspace.claude.read_text().partition('\nnote("start")\n')
        assert after, "support.WORKER has no first note, and nothing would be watched"
        before = before.replace(" -S\n", "\n", 1)  # it needs psutil
        self.workspace.claude.write_text(f"{before}{first_note}{WATCH}{after}")
        for _ in range(2):
            self.strangers.append(subprocess.Popen(["sleep", "36000"], start_new_session=True))

    def step(self, until: float) -> None:
        """Let one fault happen, and wait a little; what is due meanwhile is done."""
        name = self.draw_fault()
        pause = self.clock() + self.random.uniform(0.02, 0.8)
        said = getattr(self, name)()
        if said:
            self.faults[name] += 1
            self.say(f"{name}: {said}")
        while True:
            self.do_what_is_due()
            self.watch()
            if self.clock() >= min(pause, until):
                return
            time.sleep(0.05)

    def draw_fault(self) -> str:
        """Draw a fault from those of the present spell: where all come at once, each hides what the others do."""
        if self.clock() >= self._spell_ends:
            self._spell = self.random.sample(list(FAULTS), len(FAULTS) // 2)
            self._spell_ends = self.clock() + self.random.uniform(4, 12)
            self.say(f"a spell of {', '.join(self._spell)}")
        return self.random.choices(self._spell, [FAULTS[name] for name in self._spell])[0]

    def do_what_is_due(self) -> None:
        """Open the gates of streams whose time is over, and do what was put off until now."""
        for stream, (_, share) in STREAMS.items():
            gate = self.workspace.root / f"more-{stream}"
            if self.clock() >= share * self.seconds and gate.exists():
                gate.unlink()
                self.say(f"{stream} gets no more tasks")
        while self._due and self._due[0][0] <= self.clock():
            heapq.heappop(self._due)[2]()

    def later(self, least: float, most: float, what: Callable[[], None]) -> None:
        """Put something off for a time that is drawn, in seconds."""
        heapq.heappush(self._due, (self.clock() + self.random.uniform(least, most), self.random.getrandbits(32), what))

    def clock(self) -> float:
        """Seconds since the night began."""
        return time.monotonic() - self.begin

    def say(self, text: str) -> None:
        """Say what is done, where that was asked for."""
        if self.trace:
            print(f"{self.clock():7.2f}  {text}", flush=True)

    def violate(self, what: str) -> None:
        """Take note of something that must not be."""
        self.violations.append(f"{self.clock():.2f}: {what}")
        self.say(f"VIOLATION {what}")

    # ── The orchestrator ──────────────────────────────────────────────────────────────────────────────────────────────

    def spawn(self) -> subprocess.Popen[str]:
        """Start an orchestrator; what it says goes to a file of its own."""
        self.starts += 1
        self.stopped.clear()
        interval = self.random.choice(("1", "30"))
        path = self.workspace.root / f"start-{self.starts}.txt"
        with path.open("w") as output:
            words = (*START, "--poll-interval", interval)
            process = self.workspace.popen(*words, stdout=output, stderr=subprocess.STDOUT)
        self.outputs[process.pid] = path
        return process

    def start(self) -> None:
        """Start the orchestrator where none runs."""
        if self.run is None:
            self.run = self.spawn()
            self.say(f"started orchestrator {self.starts} (PID {self.run.pid})")

    def watch(self) -> None:
        """Notice an orchestrator that ended unasked, two workers of one stream, and one of a stopped stream."""
        self.check_stopped()
        if self.run is not None and self.run.poll() is not None:
            said = self.describe_end(self.run)
            if not self.has_mended(said):
                self.violate(f"the orchestrator ended by itself: {said}")
            self.run = None
            self.start()
        leaders: dict[str, psutil.Process] = {}
        for process in self.leaders():
            other = leaders.setdefault(process.info["environ"]["ORCHESTRATE_STREAM"], process)
            if other is not process and is_running(other.pid) and is_running(process.pid):
                self.violate(f"two workers of one stream: PID {other.pid} and {process.pid}")

    def has_mended(self, said: str) -> bool:
        """Whether what was said is that a killed writer has left a rollback journal; then do what its server would.

        It can't be in WAL mode, which Task Copilot uses. A reader that may not write has to wait for the next writer.
        """
        if self.journal_mode == "wal" or "attempt to write a readonly database" not in said:
            return False
        self.workspace.database.execute("SELECT COUNT(*) FROM tasks")
        self.faults["hot_journal"] += 1
        self.say("a writer was killed as it wrote; the next one has mended that")
        return True

    def check_stopped(self) -> None:
        """Notice a worker of a stream that is stopped."""
        starts = Counter(self.workspace.starts() if self.stopped else ())
        for stream in [stream for stream, count in self.stopped.items() if starts[stream] > count]:
            self.violate(f"{stream} was stopped, and a worker started")
            del self.stopped[stream]

    def describe_end(self, process: subprocess.Popen[str]) -> str:
        """Return how a process that we started ended, with its last words."""
        words = self.outputs[process.pid].read_text(errors="replace").splitlines()[-4:]
        return f"exit code {process.returncode}; last words: {words}"

    def end_run(self, signum: int, codes: tuple[int, ...]) -> None:
        """End the orchestrator by a signal, and see that it ends as it must."""
        if self.run is not None:
            self.run.send_signal(signum)
            self.expect_end(self.run, codes)
        self.run = None

    def expect_end(self, process: subprocess.Popen[str], codes: tuple[int, ...]) -> None:
        """See that a process ends in time, and with one of these codes."""
        try:
            process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            self.violate(f"process {process.pid} did not end")
            process.kill()
            process.wait()
        else:
            if process.returncode not in codes:
                self.violate(f"process {process.pid}: {self.describe_end(process)}, and not {codes}")

    def is_ready(self) -> bool:
        """Wait for an orchestrator that has just started to hold the lock; return whether one runs."""
        run = self.run
        if run is None:
            return False
        try:
            wait_until(lambda: run.poll() is not None or self.holds_lock(run.pid), "the orchestrator's lock", 30)
        except AssertionError as error:
            self.violate(f"{error} (PID {run.pid})")
        return run.poll() is None

    def holds_lock(self, pid: int) -> bool:
        """Whether the file that is locked by the project's orchestrator names this process."""
        lock = self.workspace.state / "orchestrator.pid"
        return lock.exists() and lock.read_text().strip() == str(pid)

    def has_cleared_marks(self) -> bool:
        """Whether a start that is under way can no longer take back the stop of a stream."""
        if self.run is None:
            return True
        path = self.workspace.state / "events.jsonl"
        journal = path.read_bytes() if self.is_ready() and path.exists() else b""
        _, _, since = journal.rpartition(b'"event": "run_started", ')
        is_mine = f'"pid": {self.run.pid},'.encode() in since.partition(b"\n")[0]
        return is_mine and any(f'"event": "{kind}"'.encode() in since for kind in ("state", "worker_started"))

    def command(self, *words: str) -> str:
        """Run a command that must exit with 0, and return what it said."""
        try:
            done = self.workspace.run(*words, timeout=90)
        except subprocess.TimeoutExpired:
            self.violate(f"{words} did not end")
            return ""
        if done.returncode and self.has_mended(done.stderr):
            return self.command(*words)
        if done.returncode:
            self.violate(f"{words}: exit code {done.returncode}: {done.stdout[-500:]} {done.stderr[-500:]}")
        return str(done.stdout)

    def processes(self, stream: str) -> list[str]:
        """Return what lives of a stream's workers."""
        found = [p for p in own_processes(self.workspace.root) if p.info["environ"]["ORCHESTRATE_STREAM"] == stream]
        return [f"{process.pid} {process.info['environ'].get('ORCHESTRATE_RUN')}" for process in found]

    def leaders(self) -> list[Any]:
        """Return the workers that live."""
        return [p for p in own_processes(self.workspace.root) if self.is_leader(p)]

    @staticmethod
    def is_leader(process: Any) -> bool:
        """Whether a process is a worker itself, and not what a worker has started."""
        return bool(process.info["environ"].get("ORCHESTRATE_RUN", "").endswith(f".{process.pid}"))

    # ── The faults: each returns what it did, or nothing where there was nothing to do ────────────────────────────────

    def kill_orchestrator(self) -> str:
        """End the orchestrator with SIGKILL, and start another."""
        if self.run is None:
            return ""
        pid = self.run.pid
        self.end_run(signal.SIGKILL, (-signal.SIGKILL,))
        lost = self.damage_pid_file() if self.random.random() < 0.4 else ""
        self.later(0, self.random.choice((0, 0.5, 3)), self.start)
        return f"{pid} {lost}"

    def terminate_orchestrator(self) -> str:
        """End the orchestrator with SIGTERM, and start another."""
        if self.run is None:
            return ""
        pid = self.run.pid
        self.end_run(signal.SIGTERM, (143, -signal.SIGTERM))
        self.later(0, self.random.choice((0, 0.5, 3)), self.start)
        return str(pid)

    def kill_worker(self) -> str:
        """End a worker, but nothing that it started, with SIGKILL."""
        return self.kill_one(self.leaders())

    def kill_grandchild(self) -> str:
        """End what a worker started with SIGKILL."""
        return self.kill_one([p for p in own_processes(self.workspace.root) if not self.is_leader(p)])

    def kill_one(self, processes: list[Any]) -> str:
        """End one of these processes with SIGKILL."""
        if not processes:
            return ""
        process = self.random.choice(processes)
        try:
            process.kill()
        except psutil.NoSuchProcess:
            return ""
        return f"{process.pid} of {process.info['environ']['ORCHESTRATE_STREAM']}"

    def suspend(self) -> str:
        """Stop the orchestrator or a worker with SIGSTOP for a second."""
        pids = [process.pid for process in self.leaders()]
        if self.run is not None:
            pids += [self.run.pid] * max(len(pids), 1)
        if not pids:
            return ""
        pid = self.random.choice(pids)
        self.help("/bin/sh", "-c", 'kill -STOP "$0" && sleep 1; kill -CONT "$0"', str(pid))
        return f"{pid}{' (orchestrator)' if self.run is not None and pid == self.run.pid else ''}"

    def lock_database(self) -> str:
        """Keep the database locked by another process for up to four seconds."""
        seconds = self.random.choice((0.3, 1, 2, 4))
        if any(LOCKER in helper.args and helper.poll() is None for helper in self.helpers):  # type: ignore[operator]
            return ""
        self.help(sys.executable, "-c", LOCKER, str(self.workspace.database.path), str(seconds))
        return f"{seconds} s"

    def help(self, *words: str) -> None:
        """Start a process that does something for a while and ends by itself."""
        self.helpers = [helper for helper in self.helpers if helper.poll() is None]
        self.helpers.append(subprocess.Popen(words, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL))

    def damage_log(self) -> str:
        """Empty, halve, rename or remove the log or the raw output of a stream."""
        paths = sorted(path for kind in ("*.log", "*.jsonl") for path in (self.workspace.state / "logs").glob(kind))
        if not paths:
            return ""
        path, how = self.random.choice(paths), self.random.choice(("empty", "halve", "rename", "remove"))
        if how == "remove":
            path.unlink()
        elif how == "rename":
            path.rename(path.with_name(f"{path.name}.1"))
        else:
            os.truncate(path, path.stat().st_size // 2 if how == "halve" else 0)
        return f"{how} {path.name}"

    def damage_journal(self) -> str:
        """Append garbage to the journal, half a line among it."""
        garbage, path = self.random.choice(GARBAGE), self.workspace.state / "events.jsonl"
        if not path.exists():
            return ""
        with path.open("ab") as file:
            file.write(garbage)
        return repr(garbage[:60])

    def damage_pid_file(self) -> str:
        """Remove a PID file, empty it, or let it name a stranger or nobody."""
        folder = self.workspace.state / "pids"
        every = [folder / f"{stream}.pid" for stream in STREAMS]
        path = self.random.choice([path for path in every if path.exists()] or every)
        stranger = str(self.random.choice(self.strangers).pid)
        content = self.random.choice((None, None, "", "1\n", "-1\n", "x", *[f"{stranger}\n"] * 6))
        if not path.parent.is_dir():
            return ""
        if content is not None:
            path.write_text(content)
        elif path.exists():
            path.unlink()
        return f"{path.name} {content!r}"

    def choose_stream(self) -> str:
        """Choose a stream: one that has a worker, more often than not."""
        busy = [process.info["environ"]["ORCHESTRATE_STREAM"] for process in self.leaders()]
        return self.random.choice(busy if busy and self.random.random() < 0.8 else list(STREAMS))

    def stop_stream(self) -> str:
        """Stop a stream, and start it again after a while."""
        stream = self.choose_stream()
        is_settled = self.has_cleared_marks()
        self.command("stop", stream, "--timeout", self.random.choice(("0.5", "2")))
        left = self.processes(stream)
        if is_settled:
            self.stopped[stream] = len(self.workspace.starts(stream))
            if left:
                self.violate(f"{stream} was stopped, and there live {left}")
        self.later(0, 3, lambda: self.start_stream(stream))
        return stream

    def start_stream(self, stream: str) -> None:
        """Start a stream again beside the orchestrator; where none runs, the next one starts it."""
        if not self.is_ready():
            return
        self.check_stopped()
        self.stopped.pop(stream, None)
        self.command("start", stream)
        self.say(f"start {stream}")

    def stop_all(self) -> str:
        """Stop everything, and start again."""
        self.is_ready()
        self.command("stop", "--timeout", self.random.choice(("0.5", "2")))
        if self.run is not None:
            self.expect_end(self.run, (143, -signal.SIGTERM, -signal.SIGKILL))
        self.run = None
        left = [(p.pid, p.info["environ"].get("ORCHESTRATE_RUN")) for p in own_processes(self.workspace.root)]
        if left:
            self.violate(f"all was stopped, and there live {left}")
        self.later(0, self.random.choice((0, 1)), self.start)
        return "all"

    def start_twice(self) -> str:
        """Start two at once, beside the one that runs or not: one goes on, and the others exit with 75."""
        running = [] if self.run is None else [self.run]
        rivals = [*running, self.spawn(), self.spawn()]
        try:
            wait_until(lambda: sum(rival.poll() is None for rival in rivals) < 2, "one orchestrator alone", 60)
        except AssertionError as error:
            self.violate(str(error))
        living = [rival for rival in rivals if rival.poll() is None]
        for rival in rivals:
            said = self.describe_end(rival)
            if rival not in living and rival.returncode != 75 and not self.has_mended(said):
                self.violate(f"start: {said}, and not 75")
        for rival in living[1:]:
            rival.kill()
            rival.wait()
        self.run = living[0] if living else None
        if not living and not self.has_mended(str([self.describe_end(rival) for rival in rivals])):
            self.violate("of those that were started none runs")
        self.start()
        return f"{len(rivals)} rivals"

    def block(self) -> str:
        """Block what is open of a stream, and unblock it after a while."""
        stream = self.choose_stream()
        self.workspace.database.execute(
            "UPDATE tasks SET status = 'blocked', blocked_reason = 'chaos' WHERE status IN ('pending', 'in_progress') "
            "AND json_extract(metadata, '$.streamId') = ?",
            stream,
        )
        self.later(0.2, 3, self.unblock)
        return stream

    def unblock(self) -> None:
        """Unblock every task."""
        self.workspace.database.execute("UPDATE tasks SET status = 'pending' WHERE status = 'blocked'")

    def remove_folder(self) -> str:
        """Remove the folder of the PID files and stop marks, or that of the logs: at once, or file by file."""
        folder = self.workspace.state / self.random.choice(("pids", "logs"))
        if not folder.is_dir():
            return ""
        how = self.random.choice(("at once", "file by file"))
        if how == "at once":
            folder = folder.rename(self.workspace.root / f"removed-{self.random.getrandbits(32):x}")
        shutil.rmtree(folder, ignore_errors=True)
        return f"{folder.name} {how}"

    def clean(self) -> str:
        """Delete the whole state, as a worker's `git clean -fdx` does; who runs puts it back."""
        is_running = self.run is not None and self.has_cleared_marks()
        if not is_running:
            self.stopped.clear()
        with contextlib.suppress(subprocess.CalledProcessError):  # somebody has written meanwhile
            self.workspace.git("clean", "-fdxq", "--", ".claude/orchestrator")
        journal, run = self.workspace.state / "events.jsonl", self.run
        if is_running and run is not None:
            try:
                wait_until(lambda: run.poll() is not None or journal.exists(), "the journal, put back", 30)
            except AssertionError as error:
                self.violate(str(error))
        return "with an orchestrator" if is_running else "without one"

    # ── The end ───────────────────────────────────────────────────────────────────────────────────────────────────────

    def settle(self) -> bool:
        """End the faults, start everything once more, and return whether the run came to its end."""
        self.say("the faults are over")
        for helper in self.helpers:
            helper.wait(timeout=60)
        while self._due:
            heapq.heappop(self._due)[2]()
        self.do_what_is_due()
        self.unblock()
        if self.is_ready():
            done = self.workspace.run("start", *STREAMS, timeout=90)
            if done.returncode and "has just ended" not in done.stderr:  # all was complete at that moment
                self.violate(f"start: exit code {done.returncode}: {done.stdout} {done.stderr}")
        else:
            self.start()
        assert self.run is not None
        try:
            code = self.run.wait(timeout=SETTLE)
        except subprocess.TimeoutExpired:
            self.violate(f"not complete after {SETTLE} s: {self.workspace.run('status', '--json').stdout}")
            return False
        if code:
            self.violate(f"the run did not come to its end: {self.describe_end(self.run)}")
        return code == 0

    def inspect(self) -> None:
        """See that nothing is left, and that nothing happened which must not."""
        open_tasks = "SELECT COUNT(*) FROM tasks WHERE status NOT IN ('completed', 'cancelled')"
        if self.workspace.database.execute(open_tasks) != [(0,)]:
            self.violate("tasks are open")
        self.command("status", "--check")
        left = [(p.pid, p.info["environ"].get("ORCHESTRATE_RUN")) for p in own_processes(self.workspace.root)]
        if left:
            self.violate(f"all is over, and there live {left}")
        for stranger in self.strangers:
            if stranger.poll() is not None:
                self.violate(f"the stranger {stranger.pid} was ended: {stranger.returncode}")
        path = self.workspace.root / "violations.txt"
        for line in path.read_text().splitlines() if path.exists() else ():
            self.violate(line)
        for what in find_overlaps(self.workspace.times()):
            self.violate(what)


def find_overlaps(times: list[tuple[str, str, int, float]]) -> list[str]:
    """Return each worker that started while another of its stream was at work, as far as they noted their ends."""
    spans: list[tuple[str, int, float, float]] = []
    begun: dict[int, float] = {}
    for stream, word, pid, at in times:
        if word == "start":
            begun[pid] = at
        elif word == "end" and pid in begun:
            spans.append((stream, pid, begun.pop(pid), at))
    return [
        f"{stream}: a worker started at {start:.3f}, while worker {pid} was at work from {first:.3f} to {last:.3f}"
        for stream, word, other, start in times
        for name, pid, first, last in spans
        if word == "start" and stream == name and other != pid and first <= start < last
    ]


# Each fault with its weight.
FAULTS = {
    "kill_orchestrator": 7,
    "terminate_orchestrator": 3,
    "kill_worker": 10,
    "kill_grandchild": 5,
    "suspend": 8,
    "lock_database": 5,
    "damage_log": 6,
    "damage_journal": 5,
    "damage_pid_file": 9,
    "stop_stream": 8,
    "stop_all": 2,
    "start_twice": 2,
    "block": 4,
    "clean": 1,
    "remove_folder": 2,
}


def spend_night(folder: Path, seed: int, seconds: float, trace: bool = False) -> dict[str, Any]:
    """Spend a night of chaos in an empty folder, leave no process behind, and return the night's figures."""
    workspace = Workspace(folder)
    try:
        return Night(workspace, seed, seconds, trace).play()
    finally:
        workspace.close()


def main() -> int:
    """Run one night from the command line; the exit code is 1 if anything happened that must not."""
    parser = argparse.ArgumentParser(description="One run under faults, drawn at random from a seed.")
    parser.add_argument("--seconds", type=float, default=60, help="how long faults happen (60)")
    parser.add_argument("--seed", type=int, default=None, help="which faults (a random number)")
    parser.add_argument("--trace", action="store_true", help="say each fault with its time")
    options = parser.parse_args()
    seed = random.SystemRandom().getrandbits(32) if options.seed is None else options.seed
    print(f"seed {seed}", flush=True)
    folder = Path(tempfile.mkdtemp(prefix="chaos-"))
    figures = spend_night(folder, seed, options.seconds, options.trace)
    if figures["violations"]:
        print(f"what it left: {folder}")
    else:
        shutil.rmtree(folder)
    print(json.dumps(figures))
    return 1 if figures["violations"] else 0


if __name__ == "__main__":
    sys.exit(main())
