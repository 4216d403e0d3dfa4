"""What the tests share: a project with a real Task Copilot database, and a worker that is a real process.

The worker is a script that plays `claude`. It does what its stream's *part* says, one word after another:

    next       complete the next open task          begin   set the next open task to in_progress
    all        complete every open task             block   set every open task to blocked
    exit=N     exit with N                          die=N   kill itself with signal N
    sleep=S    sleep for S seconds                  hang    sleep for ever, SIGTERM ignored
    say=TEXT   print a line                         spawn   leave a child behind, in the same group
    setsid     leave a child behind, in a session of its own
    stubborn   leave a child behind, in the same group, SIGTERM ignored
    bare       leave a child behind, in the same group, its environment empty
    daemon     leave a grandchild behind, in a session of its own, its parent gone
    until=NAME wait until the project has this file
    burn=S     use CPU time for S seconds
    print=NAME print a line of lines.json: a text as it is, anything else as JSON
    limit=S    report a usage limit that ends in S seconds, as the CLI does, and exit with 1
    cost=USD   report a result with this cost
    flood=MB   print so many megabytes of x without a newline
    raw=HEX    print these bytes
    facts      write its arguments, its environment and what it was started with to facts.json
    survivors  note which of the children that this stream's workers left behind still live
    write=FILE write the stream's name into a file of the folder that it works in
    git=WORDS  run git there; a comma stands for a space
    sh=FILE    run a shell script of the project there
    commit=FILE the same as write=FILE, and commit that file

A part is `default` or that of the stream in `parts.json` of the project; a list of parts gives one to each attempt,
the last one to all that follow. The worker notes its start and its end in `worker-times.txt`, so that a test can see
that two never overlap.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import sqlite3
import subprocess
import sys
import threading
import time
from contextlib import closing, suppress
from pathlib import Path
from typing import Any, Callable, Iterable, Mapping

SCRIPT = Path(__file__).resolve().parent.parent / "orchestrate.py"
LAUNCHER = SCRIPT.parent / "tests" / "launch.py"

# How the tests call the program: what its hints begin with.
PROGRAM = f"{sys.executable} {SCRIPT}"

# Longer than any test: whatever goes on without it was noticed by itself.
NO_POLL = ("--poll-interval", "600")

# The program as a module, so that a script can stand between its import and its start.
PATHS = [str(SCRIPT.parent), str(SCRIPT.parent / "tests")]
IMPORT = f"import os, signal, sys\nsys.path[:0] = {PATHS}\nimport orchestrate\n"
RUN = "orchestrate.run_script()\n"

# The schema of Task Copilot's server 2.7.0, as far as a stream's tasks need it.
SCHEMA = """
CREATE TABLE tasks (
    id TEXT PRIMARY KEY, prd_id TEXT, parent_id TEXT, title TEXT NOT NULL, description TEXT, assigned_agent TEXT,
    status TEXT NOT NULL DEFAULT 'pending', blocked_reason TEXT, notes TEXT, metadata TEXT DEFAULT '{}',
    created_at TEXT NOT NULL, updated_at TEXT NOT NULL,
    archived INTEGER DEFAULT 0, archived_at TEXT, archived_by_initiative_id TEXT);
CREATE TABLE migrations (version INTEGER PRIMARY KEY, applied_at TEXT NOT NULL);
CREATE INDEX idx_tasks_status ON tasks(status);
INSERT INTO migrations VALUES (10, '2026-01-01T00:00:00.000Z');
"""

# -S: it needs the standard library alone, and its start shall be short and no part of what coverage measures.
WORKER = r"""#!{python} -S
import json, os, pathlib, signal, sqlite3, sys, time

stream = os.environ["ORCHESTRATE_STREAM"]
# Held open, since a test may rename it.
project = pathlib.Path(f"/proc/{{os.getpid()}}/fd/{{os.open(os.environ['ORCHESTRATE_PROJECT'], os.O_RDONLY)}}")
database = pathlib.Path(os.environ["TASK_DB_PATH"], os.environ["WORKSPACE_ID"], "tasks.db")
NOW = "strftime('%Y-%m-%dT%H:%M:%fZ')"
MINE = ("CASE WHEN json_valid(metadata) THEN json_extract(metadata, '$.streamId') END = ? "
        "AND status NOT IN ('completed', 'cancelled')")


def note(word):
    with open(project / "worker-times.txt", "a") as file:
        file.write(json.dumps([stream, word, os.getpid(), time.monotonic()]) + "\n")


def query(statement, *values):
    connection = sqlite3.connect(database, timeout=20, isolation_level=None)
    try:
        return connection.execute(statement, values).fetchall()
    finally:
        connection.close()


def change(status, limit):
    query(f"UPDATE tasks SET status = ?, updated_at = {{NOW}} WHERE id IN "
          f"(SELECT id FROM tasks WHERE {{MINE}} ORDER BY created_at, id LIMIT ?)", status, stream, limit)


def put(content):
    while content:
        content = content[os.write(1, content):]


def leave_daemon():
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            note(f"daemon {{os.getpid()}}")
            os.execvp("sleep", ["sleep", "3600"])
        os._exit(0)
    os.wait()
    while not any(word.startswith("daemon ") for word in my_notes()):
        time.sleep(0.02)


def my_notes():
    notes = [json.loads(line) for line in (project / "worker-times.txt").read_text().splitlines()]
    return [word for name, word, _, _ in notes if name == stream]


def find_survivors():
    import site

    site.main()  # what -S has left out
    import psutil

    pids = [int(word.split()[1]) for word in my_notes() if word.split()[0] in ("spawn", "setsid", "daemon", "bare")]
    return [pid for pid in pids if psutil.pid_exists(pid) and psutil.Process(pid).status() != "zombie"]


def start(words, **options):
    import subprocess  # as long to import as all else, and few parts need it

    return subprocess.Popen(words, **options)


def act(word, value, **more):
    if word == "next":
        change("completed", 1)
    elif word == "all":
        change("completed", -1)
    elif word == "begin":
        change("in_progress", 1)
    elif word == "block":
        query(f"UPDATE tasks SET blocked_reason = ? WHERE {{MINE}}", value or "needs a key", stream)
        change("blocked", -1)
    elif word == "say":
        print(value, flush=True)
    elif word == "sleep":
        time.sleep(float(value))
    elif word == "print":
        line = json.loads((project / "lines.json").read_text())[value]
        print(line if isinstance(line, str) else json.dumps(line), flush=True)
    elif word == "limit":
        info = {{"status": "rejected", "resetsAt": int(time.time() + float(value)), "rateLimitType": "five_hour"}}
        print(json.dumps({{"type": "rate_limit_event", "rate_limit_info": info}}), flush=True)
        act("cost", "0", is_error=True, api_error_status=429, result="You've hit your session limit · resets soon")
        act("exit", "1")
    elif word == "cost":
        result = {{"type": "result", "subtype": "success", "is_error": False, "num_turns": 2, "result": "Done."}}
        print(json.dumps({{**result, "total_cost_usd": float(value), **more}}, ensure_ascii=False), flush=True)
    elif word == "burn":
        end = time.monotonic() + float(value)
        while time.monotonic() < end:
            pass
    elif word == "hang":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        time.sleep(3600)
    elif word in ("spawn", "setsid"):
        child = start(["sleep", "3600"], start_new_session=word == "setsid")
        note(f"{{word}} {{child.pid}}")
    elif word in ("stubborn", "bare"):
        if word == "stubborn":
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        child = start(["sleep", "3600"], env={{}} if word == "bare" else None)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        note(f"{{word}} {{child.pid}}")
    elif word == "daemon":
        leave_daemon()
    elif word == "until":
        while not (project / value).exists():
            time.sleep(0.02)
    elif word == "flood":
        for _ in range(int(value)):
            put(b"x" * 1000000)
    elif word == "raw":
        put(bytes.fromhex(value))
    elif word in ("write", "commit"):
        pathlib.Path(value).parent.mkdir(parents=True, exist_ok=True)
        pathlib.Path(value).write_text(stream + "\n")
        if word == "commit":
            act("git", f"add,{{value}}")
            act("git", f"commit,--quiet,-m,{{stream}}:_{{value}}")
    elif word == "git":
        if start(["git", *value.split(",")]).wait():
            raise SystemError(f"git {{value}} failed")
    elif word == "sh":
        if start(["sh", "-e", str(project / value)]).wait():
            sys.exit(3)
    elif word == "facts":
        facts = {{"argv": sys.argv[1:], "env": dict(os.environ), "cwd": os.getcwd(), "pid": os.getpid(),
                  "sid": os.getsid(0), "pgid": os.getpgrp(), "stdin": os.fstat(0).st_rdev,
                  "out": os.fstat(1).st_ino, "err": os.fstat(2).st_ino}}
        (project / "facts.json").write_text(json.dumps(facts))
    elif word == "survivors":
        note(f"survivors {{find_survivors()}}")
    elif word == "exit":
        note("end")
        sys.exit(int(value))
    elif word == "die":
        os.kill(os.getpid(), int(value))
    else:
        sys.exit(f"unknown word in a part: {{word}}")


note("start")
with open(project / "argv.txt", "a") as file:
    file.write(json.dumps([stream, sys.argv[1:]]) + "\n")
parts = json.loads((project / "parts.json").read_text())
part = parts.get(stream, parts["default"])
if isinstance(part, list):
    counter = project / f"attempts-{{stream.encode().hex()[:80]}}"
    done = int(counter.read_text() or 0) if counter.exists() else 0  # a kill may have left it empty
    counter.write_text(str(done + 1))
    part = part[min(done, len(part) - 1)]
for word in part.split():
    act(*(word.split("=", 1) + [""])[:2])
note("end")
"""


def replace(value: Any, **changes: Any) -> Any:
    """Return a value with other fields: a named tuple of the program's, or a dataclass of the tests' own."""
    return value._replace(**changes) if hasattr(value, "_replace") else dataclasses.replace(value, **changes)


def wait_until(condition: Callable[[], Any], what: str, seconds: float = 20) -> Any:
    """Return the first true value of a condition; fail with `what` was waited for after a generous deadline."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        value = condition()
        if value:
            return value
        time.sleep(0.02)
    raise AssertionError(f"not within {seconds} s: {what}")


class TaskDatabase:
    """A Task Copilot database in WAL mode, written to by this process as by any other server."""

    def __init__(self, path: Path, schema: str = SCHEMA) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        with closing(sqlite3.connect(path)) as connection:
            connection.execute("PRAGMA journal_mode = WAL")
            connection.executescript(schema)
        self._count = 0

    def execute(self, statement: str, *values: object) -> list[Any]:
        """Run one statement in a transaction of its own."""
        with closing(sqlite3.connect(self.path, timeout=20)) as connection, connection:
            return connection.execute(statement, values).fetchall()

    def add_task(self, stream: str | None, status: str = "pending", **metadata: object) -> str:
        """Add a task, newer than all before it, and return its id."""
        self._count += 1
        task_id = f"TASK-{self._count}"
        values = metadata if stream is None else {"streamId": stream, **metadata}
        self.add_row(task_id, status, json.dumps(values))
        return task_id

    def add_row(self, task_id: str, status: str, metadata: str | None) -> None:
        """Add a task with its metadata as text."""
        moment = f"2026-01-01T00:{self._count // 60:02}:{self._count % 60:02}.000Z"
        self.execute(
            "INSERT INTO tasks (id, title, status, metadata, created_at, updated_at) VALUES (?, ?, ?, ?, ?, ?)",
            task_id,
            f"Title of {task_id}",
            status,
            metadata,
            moment,
            moment,
        )

    def add_stream(self, stream: str, phase: str | None = None, tasks: int = 1, **metadata: object) -> None:
        """Add a stream of pending tasks."""
        given: dict[str, Any] = {
            "streamName": f"{stream} name",
            **({"streamPhase": phase} if phase else {}),
            **metadata,
        }
        for _ in range(tasks):
            self.add_task(stream, **given)

    def add_streams(self, *streams: str, **given: Any) -> None:
        """Add streams that differ in nothing but their names."""
        for stream in streams:
            self.add_stream(stream, **given)

    def set_status(self, status: str, stream: str) -> None:
        """Set every task of a stream to a status."""
        self.execute("UPDATE tasks SET status = ? WHERE json_extract(metadata, '$.streamId') = ?", status, stream)


class Workspace:
    """A project folder with its database, its worker script, and the orchestrator as a command."""

    def __init__(self, folder: Path, schema: str = SCHEMA) -> None:
        self.root = self._begun_as = folder / "my-project"
        self.home = folder / "home"
        self.bin = folder / "bin"
        for path in (self.root / ".claude", self.home, self.bin):
            path.mkdir(parents=True)
        self.database = TaskDatabase(self.home / ".claude" / "tasks" / "my-project" / "tasks.db", schema)
        self.claude = self.bin / "claude"
        self.claude.write_text(WORKER.format(python=sys.executable))
        self.claude.chmod(0o755)
        self.play()
        self._started: list[subprocess.Popen[str]] = []

    def play(self, default: str = "all", **parts: str | list[str]) -> None:
        """Give the workers their parts. An underscore in a stream's name stands for a dash."""
        named = {name.replace("_", "-"): part for name, part in parts.items()}
        (self.root / "parts.json").write_text(json.dumps({"default": default, **named}))

    def write_lines(self, **lines: object) -> None:
        """Give the workers the lines for `print=NAME`."""
        (self.root / "lines.json").write_text(json.dumps(lines))

    def write_script(self, text: str) -> Path:
        """Write a script beside the project."""
        path = self.root.parent / "script.py"
        path.write_text(text)
        return path

    def write_pid(self, stream: str, text: str) -> Path:
        """Write a PID file as an earlier run may have left it."""
        path = self.state / "pids" / f"{stream}.pid"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    def make_repository(self, *files: str) -> None:
        """Make the project a git repository with one commit of these files, and give every git here an identity."""
        self.git("init", "--quiet", "--initial-branch=main", ".")
        (self.root / ".git" / "info" / "exclude").write_text("/*.txt\n/parts.json\n/attempts-*\n")  # the tests' own
        for name in files or ("README.md",):
            (self.root / name).parent.mkdir(parents=True, exist_ok=True)
            (self.root / name).write_text(f"{name}\n")
            self.git("add", "--force", name)
        self.git("commit", "--quiet", "-m", "Begin")

    def rename(self, name: str) -> Path:
        """Rename the project, and return what it was called."""
        before, self.root = self.root, self.root.parent / name
        self.root.parent.mkdir(exist_ok=True)
        before.rename(self.root)
        return before

    def git(self, *words: str, cwd: Path | None = None) -> str:
        """Run git in the project, and return what it prints."""
        done = subprocess.run(
            ["git", *words], cwd=cwd or self.root, env=self.environment(), check=True, stdout=subprocess.PIPE, text=True
        )
        return done.stdout

    def log(self, stream: str) -> list[str]:
        """The lines of a stream's log, without their times."""
        return unstamp((self.state / "logs" / f"{stream}.log").read_text(encoding="utf-8"))

    def argv(self, stream: str) -> list[list[str]]:
        """The arguments of each worker of a stream."""
        rows = [json.loads(line) for line in (self.root / "argv.txt").read_text().splitlines()]
        return [words for name, words in rows if name == stream]

    def facts(self) -> Any:
        """What a worker has noted about itself with `facts`."""
        return json.loads((self.root / "facts.json").read_text())

    def open_gate(self, name: str) -> None:
        """Let the workers go on that wait with `await=NAME`."""
        (self.root / name).touch()

    @property
    def state(self) -> Path:
        """The orchestrator's folder."""
        return self.root / ".claude" / "orchestrator"

    def environment(self, **more: str) -> dict[str, str]:
        """A clean environment with a home and a PATH of its own."""
        base = {"HOME": str(self.home), "PATH": f"{self.bin}:{os.environ['PATH']}", "IS_SANDBOX": "1"}
        for role in ("AUTHOR", "COMMITTER"):
            base.update({f"GIT_{role}_NAME": "A Tester", f"GIT_{role}_EMAIL": "tester@example.org"})
        measured = {name: value for name, value in os.environ.items() if name.startswith("COVERAGE_")}
        return {**base, "LANG": "C.UTF-8", **measured, **more}

    def popen(self, *words: str, env: Mapping[str, str] | None = None, **options: Any) -> subprocess.Popen[str]:
        """Start the command line as a process that the fixture ends, should the test not do it."""
        process = subprocess.Popen(
            [*options.pop("prefix", ()), sys.executable, str(options.pop("script", LAUNCHER)), *words],
            cwd=options.pop("cwd", self.root),
            env=self.environment(**(env or {})),
            stdin=options.pop("stdin", subprocess.DEVNULL),
            stdout=options.pop("stdout", subprocess.PIPE),
            stderr=options.pop("stderr", subprocess.PIPE),
            text=True,
            encoding="utf-8",
            **options,
        )
        self._started.append(process)
        return process

    def run(self, *words: str, timeout: float = 60, **options: Any) -> subprocess.CompletedProcess[str]:
        """Run the command line to its end."""
        process = self.popen(*words, **options)
        try:
            out, err = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            raise
        return subprocess.CompletedProcess(words, process.returncode, out, err)

    def check(self, *words: str, code: int = 0, **options: Any) -> str:
        """Run the command line to its end with this exit code and nothing on stderr, and return its stdout."""
        done = self.run(*words, **options)
        assert (done.returncode, done.stderr) == (code, ""), f"{words}: {done}"
        return done.stdout

    def start(self, *words: str, wait: Iterable[str] = (), **options: Any) -> Run:
        """Start an orchestrator that polls only every ten minutes, and wait for the workers of these streams."""
        process = self.popen("start", *NO_POLL, *words, **{"stderr": subprocess.STDOUT, **options})
        run = Run(self, process)
        run.pids.update({stream: self.wait_for_worker(stream) for stream in wait})
        return run

    def complete(self, *words: str, **options: Any) -> str:
        """Run such an orchestrator to its end, with an exit code, and return its stdout; see check."""
        return self.check("start", *NO_POLL, *words, **options)

    def status(self, **options: Any) -> dict[str, Any]:
        """What `status --json` says."""
        status: dict[str, Any] = json.loads(self.run("status", "--json", **options).stdout)
        return status

    def states(self, **options: Any) -> dict[str, str]:
        """The state of each stream, as `status --json` has it."""
        return {stream["id"]: stream["state"] for stream in self.status(**options)["streams"]}

    def events(self, *kinds: str, **facts: object) -> list[dict[str, Any]]:
        """The journal, what was moved to the archive included, or its events of these kinds and with these facts."""
        paths = [*sorted(self.root.glob(".archive/orchestration/journal/*")), self.state / "events.jsonl"]
        text = "".join(path.read_text(encoding="utf-8") for path in paths if path.exists())
        lines = text[: text.rfind("\n") + 1].splitlines()  # what has no end yet is being written
        events = [json.loads(line) for line in lines]
        named = [event for event in events if not kinds or event["event"] in kinds]
        return [event for event in named if facts.items() <= event.items()]

    def times(self) -> list[tuple[str, str, int, float]]:
        """What the workers noted: stream, word, PID, monotonic time."""
        path = self.root / "worker-times.txt"
        return [tuple(json.loads(line)) for line in path.read_text().splitlines()] if path.exists() else []

    def starts(self, stream: str | None = None) -> list[str]:
        """The streams whose workers started, in order."""
        return [name for name, word, _, _ in self.times() if word == "start" and stream in (None, name)]

    def children(self) -> list[int]:
        """The processes that the workers noted to have left behind."""
        words = [word.split() for _, word, _, _ in self.times()]
        return [int(word[1]) for word in words if word[0] in ("spawn", "setsid", "daemon", "bare", "stubborn")]

    def pid(self, stream: str) -> int:
        """The PID in a stream's PID file; 0 without one."""
        path = self.state / "pids" / f"{stream}.pid"
        try:
            return int(path.read_text())
        except (FileNotFoundError, ValueError):
            return 0

    def left_behind(self, stream: str) -> dict[str, int]:
        """The children that a stream's workers left behind, by the word of the part: their PIDs."""
        words = [word.split() for name, word, _, _ in self.times() if name == stream]
        return {word[0]: int(word[1]) for word in words if word[0] in ("spawn", "setsid", "daemon", "bare")}

    def wait_for_worker(self, stream: str) -> int:
        """Wait for a worker that has begun to work, and return its PID."""
        wait_until(lambda: self.pid(stream) and stream in self.starts(), f"a worker of {stream}")
        return self.pid(stream)

    def wait_for_children(self, count: int) -> list[int]:
        """Wait until the workers have left so many processes behind, and return these."""
        wait_until(lambda: len(self.children()) == count, f"{count} children of the workers")
        return self.children()

    def wait_for_event(self, kind: str, count: int = 1, **facts: object) -> dict[str, Any]:
        """Wait until the journal has so many events of a kind and with these facts, and return the last of them."""
        wait_until(lambda: len(self.events(kind, **facts)) >= count, f"{count} times {kind} {facts}")
        return self.events(kind, **facts)[-1]

    def living(self, stream: str) -> list[int]:
        """The living processes whose environment says that they belong to a stream."""
        found = own_processes(self.root)
        return [process.pid for process in found if process.info["environ"]["ORCHESTRATE_STREAM"] == stream]

    def close(self) -> None:
        """End whatever the test has left running."""
        for process in self._started:
            if process.poll() is None:
                process.kill()
            process.communicate()
        from psutil import NoSuchProcess

        def find_left() -> list[Any]:
            return [*own_processes(self.root), *own_processes(self._begun_as), *left_behind(self.children())]

        for process in find_left():
            with suppress(NoSuchProcess):  # it has just ended by itself
                process.kill()
        wait_until(lambda: not find_left(), "the end of what was left")


class Run:
    """An orchestrator at work: what it has said so far, stdout and stderr in one, and the workers waited for."""

    def __init__(self, workspace: Workspace, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.pid = process.pid
        self.pids: dict[str, int] = {}
        self.text = ""
        self._workspace = workspace
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        with suppress(ValueError):  # closed by the fixture
            for line in self.process.stdout or ():
                self.text += line

    @property
    def goes_on(self) -> bool:
        """Whether it has not ended yet."""
        return self.process.poll() is None

    def wait_to_say(self, words: str, count: int = 1) -> None:
        """Wait until it has said something, so many times."""
        wait_until(lambda: self.text.count(words) >= count, words)

    def finish(self, *gates: str, code: int = 0, seconds: float = 20) -> str:
        """Open the gates that its workers wait at, and wait for its end with this code; return all that it said."""
        for name in gates:
            self._workspace.open_gate(name)
        ended = self.process.wait(timeout=seconds)
        self._reader.join(timeout=30)
        assert not self._reader.is_alive(), "somebody else holds its output open"
        assert ended == code, self.text
        return self.text

    def end(self, signum: int, code: int, seconds: float = 20) -> str:
        """Send it a signal, and wait for its end with this code; return all that it said."""
        self.process.send_signal(signum)
        return self.finish(code=code, seconds=seconds)

    def kill(self) -> None:
        """End it as `kill -9` does."""
        self.process.kill()
        self.process.wait()


_STAMP = re.compile(r"^(\S+ +│ )?\d{4}-\d\d-\d\d \d\d:\d\d:\d\d[+-]\d\d:\d\d(  |$)")


def unstamp(text: str) -> list[str]:
    """Return the lines of a log, or of `logs`, without their times; each must have one."""
    lines = text.rstrip("\n").split("\n") if text else []
    assert [line for line in lines if not _STAMP.match(line)] == []
    return [_STAMP.sub(r"\1", line) for line in lines]


# Control characters but the newline, in both ranges; and the marks that turn the direction of text.
_OBEYED = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def assert_harmless(text: str) -> None:
    """Check that nothing in a text would be obeyed by a terminal: the newline is the only control character in it."""
    assert sorted(set(_OBEYED.findall(text))) == []


def own_processes(root: Path) -> list[Any]:
    """Return the living processes whose environment names this project."""
    import psutil

    found = []
    for process in psutil.process_iter(["environ", "status"]):
        environ = process.info["environ"] or {}
        if environ.get("ORCHESTRATE_PROJECT") == str(root) and process.info["status"] != psutil.STATUS_ZOMBIE:
            found.append(process)
    return found


def left_behind(pids: list[int]) -> list[Any]:
    """Return those of these processes that live and are what workers leave behind, with any environment or none."""
    import psutil

    found = []
    for pid in pids:
        with suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
            process = psutil.Process(pid)
            if process.cmdline() == ["sleep", "3600"]:
                found.append(process)
    return found


def is_running(pid: int) -> bool:
    """Whether a process lives; a zombie does not."""
    import psutil

    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def hasten(workspace: Workspace, **constants: str) -> Path:
    """Make a copy of the program with other constants, where the real ones would take minutes."""
    source = SCRIPT.read_text(encoding="utf-8")
    for name, value in constants.items():
        head, found, tail = source.partition(f"\n{name} = ")
        assert found, name
        source = head + found + value + "  #" + tail
    script = workspace.root / "orchestrate.py"
    script.write_text(source, encoding="utf-8")
    return script
