"""The first minutes with the program: a demo without Claude, an installation, and a look at what a run needs."""

from __future__ import annotations

import fcntl
import hashlib
import importlib.metadata
import json
import os
import re
import shlex
import shutil
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any, Callable, Iterator

import psutil
import pytest
from support import (
    PROGRAM,
    SCRIPT,
    TaskDatabase,
    Workspace,
    hasten,
    is_running,
    own_processes,
    unstamp,
    wait_until,
)
from test_terminal import open_terminal

# ── The demo ──────────────────────────────────────────────────────────────────────────────────────────────────────────

# What a person has set up at home, and must neither hinder the demo nor be asked by it.
HOSTILE_GIT = """\
[commit]
    gpgSign = true
[user]
    useConfigOnly = true
[core]
    hooksPath = {folder}/hooks
[init]
    templateDir = {folder}/template
    defaultBranch = elsewhere
[merge]
    ff = only
"""
HOOK = "#!/bin/sh\necho \"$0\" >> '{folder}/hooks-that-ran'\nexit 1\n"

# The guide's example: the streams, their phases and tasks.
DEMO = [
    ("Stream-A", "foundation", 4),
    ("Stream-B", "parallel", 5),
    ("Stream-C", "parallel", 4),
    ("Stream-D", "integration", 3),
]
DEMO_TEXT = """\
A project with 4 streams and 16 tasks: PROJECT
Its workers are simulated: no Claude runs, and their costs are made up.
To watch it from another terminal:
  PROJECT/.claude/orchestrator/watch-status 1

Started worker for Stream-A (attempt 1, PID N)
Stream-A complete in N
Started worker for Stream-B (attempt 1, PID N)
Started worker for Stream-C (attempt 1, PID N)
Restarting worker for Stream-B (1/3) in N: exit code 1: Error: connection reset by peer (this was arranged)
Started worker for Stream-B (attempt 2, PID N)
Stream-C blocked: what does an error look like? Stream-B has to say (TASK-ca4297d7)
Started worker for Stream-C (attempt 2, PID N)
Stream-B complete in N, 2 attempts
Stream-C complete in N, 2 attempts
Started worker for Stream-D (attempt 1, PID N)
Stream-D complete in N
REPORT

What was arranged: a worker of Stream-B crashed, and another one went on.
Stream-C was blocked by a question, and went on once Stream-B had answered it.
Each worked on a branch of its own; Stream-D has merged them.

Look around:
  cd PROJECT
  python3 .claude/orchestrator/orchestrate.py status
  python3 .claude/orchestrator/orchestrate.py logs Stream-B --no-follow
  python3 .claude/orchestrator/orchestrate.py timeline --html night.html
  git log --graph --oneline

In a project of your own, with streams in Task Copilot:
  PY SCRIPT generate DIR
  cd DIR
  python3 .claude/orchestrator/orchestrate.py doctor
  python3 .claude/orchestrator/orchestrate.py start
"""


class Demo:
    """A demo of its own home and temporary folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.temporary = folder / "tmp"
        self.environment = {
            **{name: value for name, value in os.environ.items() if name.startswith("COVERAGE_")},
            "HOME": str(folder / "home"),
            "TMPDIR": str(self.temporary),
            "PATH": os.environ["PATH"],
            "LANG": "C.UTF-8",
        }

    def make_home(self) -> None:
        """Make the home of somebody whose git is set up in a way that could hinder a demo."""
        for name in ("home", "tmp", "hooks", "template/hooks"):
            (self.folder / name).mkdir(parents=True)
        (self.folder / "home" / ".gitconfig").write_text(HOSTILE_GIT.format(folder=self.folder))
        for path in ("hooks/pre-commit", "hooks/commit-msg", "template/hooks/post-commit", "template/hooks/post-merge"):
            (self.folder / path).write_text(HOOK.format(folder=self.folder))
            (self.folder / path).chmod(0o755)

    def popen(self, *words: str, until: str = "", **options: Any) -> subprocess.Popen[str]:
        """Start `demo`, and read what it says up to a line with this text."""
        env = {**self.environment, **options.pop("env", {})}
        ends = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
        command = [sys.executable, str(SCRIPT), "demo", *words]
        process = subprocess.Popen(command, cwd="/", env=env, text=True, encoding="utf-8", **ends)
        assert process.stdout is not None
        assert not until or any(until in line for line in process.stdout)
        return process

    def left(self) -> list[Path]:
        """What lies in the temporary folder."""
        return sorted(self.temporary.iterdir())

    def events(self, *kinds: str) -> list[dict[str, Any]]:
        """The events of these kinds in the journal of the one demo there."""
        (top,) = self.left()
        lines = (top / "my-project/.claude/orchestrator/events.jsonl").read_text().split("\n")[:-1]
        return [event for event in map(json.loads, lines) if event["event"] in kinds]

    def processes(self) -> list[str]:
        """The command lines of the processes whose environment or arguments name the temporary folder."""
        found = []
        for process in psutil.process_iter(["environ", "cmdline", "status"]):
            info = process.info
            words = [*(info["environ"] or {}).values(), *(info["cmdline"] or ())]
            mine = process.pid != os.getpid() and info["status"] != psutil.STATUS_ZOMBIE
            if mine and any(str(self.temporary) in word for word in words):
                found.append(" ".join(info["cmdline"] or ()))
        return found


@pytest.fixture
def demo(tmp_path: Path) -> Iterator[Demo]:
    """A demo that has not begun; whatever the test starts by it has to be over."""
    demo = Demo(tmp_path.resolve())
    demo.make_home()
    yield demo
    wait_until(lambda: not demo.processes(), "the end of all that the demo started")


class Kept(Demo):
    """A demo that was left where it is, by `--keep`, at its end."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.code, self.out, self.err, self.leftovers = json.loads((folder / "done.json").read_text())
        (top,) = self.left()
        self.project = top / "my-project"
        self.state = self.project / ".claude" / "orchestrator"
        self.database = top / "tasks" / "my-project" / "tasks.db"

    def shell(self, command: str, **options: Any) -> subprocess.CompletedProcess[str]:
        """Run what the demo has printed, as a person would, from another folder."""
        return subprocess.run(
            ["sh", "-c", command], cwd=options.pop("cwd", "/"), env=self.environment, capture_output=True, text=True,
            encoding="utf-8", check=True, **options,
        )  # fmt: skip

    def git(self, *words: str) -> str:
        """Run git in the project."""
        return self.shell(shlex.join(["git", *words]), cwd=self.project).stdout


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Kept:
    """One demo for all who look at it, in all processes of pytest: the first one runs it, the others wait."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base).resolve() / "kept-demo"
    with folder.with_name("kept-demo.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.exists():
            demo = Demo(folder)
            demo.make_home()
            process = demo.popen("--keep")
            out, err = process.communicate(timeout=100)
            (folder / "done.json").write_text(json.dumps([process.returncode, out, err, demo.processes()]))
    return Kept(folder)


def mask(text: str, project: Path) -> str:
    """Return what a demo printed without what changes from run to run."""
    text = re.sub(r"(?ms)^── my-project · .*^  ✓ complete .*?\n", "REPORT\n", text)
    text = re.sub(r"(?m)^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\S+  \S ", "", text)
    text = re.sub(r"PID \d+", "PID N", re.sub(r" in (\d+m )?\d+s\b", " in N", text))
    python, script = shlex.quote(sys.executable), str(SCRIPT)
    return text.replace(str(project), "PROJECT").replace(python, "PY").replace(script, "SCRIPT")


def test_a_demo_says_what_happens_where_it_lies_and_what_to_type_next_and_no_process_outlives_it(kept: Kept) -> None:
    assert (kept.code, kept.err, kept.leftovers) == (0, "", [])
    assert sorted(mask(kept.out, kept.project).splitlines()) == sorted(DEMO_TEXT.splitlines())
    assert "  all complete: 4 streams, 16 tasks\n" in kept.out
    before, _, behind = DEMO_TEXT.partition("Stream-B complete")  # what runs side by side may end in another order
    said = mask(kept.out, kept.project)
    assert said.startswith(before.rpartition("Started worker for Stream-B (attempt 2")[0][:300])
    assert said.endswith(behind[behind.index("Started worker for Stream-D") :])


def test_a_worker_of_the_demo_crashes_once_one_is_blocked_once_and_the_others_need_one_attempt(kept: Kept) -> None:
    ends: dict[str, list[tuple[str, int, int]]] = {}
    for end in kept.events("worker_ended"):
        ends.setdefault(end["stream"], []).append((end["verdict"], end["exit_code"], end["restarts"]))
    assert [[verdict for verdict, _, _ in ends[f"Stream-{name}"]] for name in "AD"] == [["complete"]] * 2
    assert [end[:2] for end in ends["Stream-B"]] == [("restart", 1), ("complete", 0)]
    assert [end[::2] for end in ends["Stream-C"]] == [("blocked", 0), ("complete", 0)]  # going on costs no restart
    crash = next(end for end in kept.events("worker_ended") if end["stream"] == "Stream-B")
    assert crash["reason"] == "exit code 1: Error: connection reset by peer (this was arranged)"
    starts = [event for event in kept.events("worker_started") if event["stream"] == "Stream-B"]
    assert [(start["attempt"], start["completed"]) for start in starts] == [(1, 0), (2, 1)]
    (blocked,) = [event for event in kept.events("state") if event["state"] == "BLOCKED"]
    assert blocked["stream"] == "Stream-C"
    assert blocked["reason"].startswith("what does an error look like? Stream-B has to say (TASK-")
    assert kept.events("run_ended")[0]["exit_code"] == 0
    assert kept.events("warning", "trouble", "stale_pid_file", "worker_killed") == []


def test_the_workers_of_the_demo_are_launched_as_real_ones_are(kept: Kept) -> None:
    log = (kept.state / "logs" / "Stream-C.log").read_text(encoding="utf-8")
    log = "\n".join(unstamp(log))
    assert re.search(r"(?m)^──── Stream-C \(ui-components\) · parallel · attempt 2 · PID \d+ · /", log)
    assert "\nWrite  src/lay-out-the-pages.txt\n" in log
    raw = [json.loads(line) for line in (kept.state / "logs" / "Stream-C.jsonl").read_text().splitlines()]
    assert [event["type"] for event in raw if event["type"] != "assistant"] == ["system", "result"] * 2
    folders = {event["stream"]: event["folder"] for event in kept.events("worker_started")}
    trees = kept.project / ".claude" / "worktrees"
    assert folders == {
        "Stream-A": str(kept.project),
        "Stream-B": str(trees / "Stream-B"),
        "Stream-C": str(trees / "Stream-C"),
        "Stream-D": str(kept.project),
    }


def test_the_database_of_the_demo_has_the_guides_example_in_the_real_schema(kept: Kept) -> None:
    with closing(sqlite3.connect(kept.database)) as connection:
        rows = connection.execute(
            "SELECT json_extract(metadata, '$.streamId'), json_extract(metadata, '$.streamPhase'), count(*), "
            "sum(status = 'completed'), sum(archived), count(blocked_reason) FROM tasks GROUP BY 1 ORDER BY 1"
        ).fetchall()
        columns = {row[1] for row in connection.execute("PRAGMA table_info(tasks)")}
        assert connection.execute("SELECT MAX(version) FROM migrations").fetchone() == (10,)
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    assert rows == [(*stream, stream[-1], 0, 0) for stream in DEMO]
    assert {"id", "prd_id", "assigned_agent", "status", "blocked_reason", "metadata", "archived_at"} <= columns


def test_the_integration_worker_of_the_demo_has_merged_every_branch(kept: Kept) -> None:
    assert kept.git("branch", "--merged", "main", "--format=%(refname:short)").split() == [
        "main",
        "stream/Stream-B",
        "stream/Stream-C",
    ]
    assert kept.git("log", "--merges", "--reverse", "--format=%s").splitlines() == [
        "Merge stream/Stream-B",
        "Merge stream/Stream-C",
    ]
    assert len(list((kept.project / "src").iterdir())) == 16
    assert kept.git("status", "--porcelain", "--untracked-files=no") == ""


def test_what_a_person_has_set_up_for_git_neither_runs_in_a_demo_nor_signs_for_it(kept: Kept) -> None:
    assert not (kept.folder / "hooks-that-ran").exists()
    signatures, names = zip(*(line.split(" ", 1) for line in kept.git("log", "--format=%G? %an").splitlines()))
    assert (set(signatures), set(names)) == ({"N"}, {"Demo"})


def test_every_command_that_a_demo_prints_works_as_it_stands(kept: Kept) -> None:
    lines = kept.out.split("Look around:\n")[1].split("\n\n")[0].splitlines()
    enter, status, logs, timeline, log = [line.strip() for line in lines]
    assert "│ tests-and-docs\n      [███████████████] 3/3 │ Complete" in kept.shell(f"{enter} && {status}").stdout
    assert "Restarting worker for Stream-B (1/3)" in kept.shell(f"{enter} && {logs}").stdout
    assert kept.shell(f"{enter} && {timeline}").stdout == "Wrote night.html\n"
    assert "Stream-C" in (kept.project / "night.html").read_text(encoding="utf-8")
    (kept.project / "night.html").unlink()
    assert "Merge stream/Stream-C" in kept.shell(f"{enter} && {log}").stdout
    watch = kept.out.split("To watch it from another terminal:\n")[1].splitlines()[0].strip()
    with subprocess.Popen(
        ["sh", "-c", f"exec env {watch}"], cwd="/", env=kept.environment, stdout=subprocess.PIPE, text=True,
        encoding="utf-8",
    ) as live:  # fmt: skip
        assert live.stdout is not None
        assert "16 completed" in live.stdout.read()
    assert live.returncode == 0


def test_the_commands_for_a_project_of_ones_own_work_as_they_stand(kept: Kept, tmp_path: Path) -> None:
    lines = kept.out.split("with streams in Task Copilot:\n")[1].splitlines()
    generate, enter, doctor, start = [line.strip() for line in lines]
    (tmp_path / "DIR").mkdir()
    kept.shell(f"{generate} && {enter} && {{ {doctor} || [ $? = 1 ]; }} && {start} --help", cwd=tmp_path)


def test_a_demo_needs_no_git_heeds_no_variables_of_a_task_copilot_and_leaves_nothing(demo: Demo) -> None:
    (demo.folder / "bin").mkdir()
    for name in ("sh", "ps"):
        (demo.folder / "bin" / name).symlink_to(str(shutil.which(name)))
    misled = {"TASK_DB_PATH": str(demo.folder / "elsewhere"), "WORKSPACE_ID": "other", "PATH": str(demo.folder / "bin")}
    process = demo.popen(env=misled)
    out, err = process.communicate(timeout=100)
    assert (process.returncode, err, demo.left()) == (0, "", [])
    (project,) = set(re.findall(r"16 tasks: (.*)", out))
    named = f" --db {Path(project).parent}/tasks/my-project/tasks.db"
    text = mask(out.replace(named, " --db DB"), Path(project))
    assert "  PROJECT/.claude/orchestrator/watch-status 1 --db DB\n" in text
    assert "Warning: No worktrees, all streams work in PROJECT: it lies in no git repository\n" in text
    assert "It lay in PROJECT, and is removed now.\n`demo --keep` leaves it.\n\nIn a project of your own, " in text
    assert "  all complete: 4 streams, 16 tasks\n" in out
    assert not (demo.folder / "elsewhere").exists()


@pytest.mark.parametrize(
    ("words", "number", "code", "left"),
    [((), signal.SIGINT, 130, 0), ((), signal.SIGTERM, 143, 0), ((), signal.SIGHUP, 129, 0),
     (("--keep",), signal.SIGINT, 130, 1)],
)  # fmt: skip
def test_a_demo_that_is_interrupted_leaves_no_process_and_no_folder_that_was_not_to_be_kept(
    demo: Demo, words: tuple[str, ...], number: signal.Signals, code: int, left: int
) -> None:
    process = demo.popen(*words, until="Started worker for Stream-A")
    process.send_signal(number)
    rest = process.communicate(timeout=30)[0]
    assert (process.returncode, len(demo.left()), demo.processes()) == (code, left, [])
    end = r"Stopping the worker of Stream-A: the orchestrator ends\nOrchestrator ended; 0 workers left running.\n"
    assert re.search(end + ("$" if left else r"/.*/my-project is removed\.\n$"), rest)


def test_a_demo_whose_reader_has_gone_can_be_interrupted_and_leaves_nothing(demo: Demo) -> None:
    process = demo.popen(until="Started worker for Stream-A", stderr=subprocess.DEVNULL)
    assert process.stdout is not None
    process.stdout.close()
    wait_until(lambda: "Stream-B" in [event["stream"] for event in demo.events("worker_started")], "the next")
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=30) == 130
    assert (demo.left(), demo.processes()) == ([], [])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_demo_that_is_interrupted_while_it_is_made_leaves_nothing(demo: Demo, number: signal.Signals) -> None:
    (demo.folder / "bin").mkdir()
    git, begun, gate = demo.folder / "bin" / "git", demo.folder / "begun", demo.folder / "gate"
    git.write_text(f"#!/bin/sh\ntouch '{begun}'\nwhile [ ! -e '{gate}' ]; do sleep 0.1; done\nexit 1\n")
    git.chmod(0o755)
    process = demo.popen(env={"PATH": f"{git.parent}:{os.environ['PATH']}"})
    wait_until(begun.exists, "the demo's first git")
    process.send_signal(number)
    gate.touch()
    process.communicate(timeout=30)
    assert (process.returncode in (-number, 128 + number), demo.left()) == (True, [])


@pytest.mark.parametrize("setting", ["core.excludesFile={folder}/ignored", "core.autocrlf=sometimes"])
def test_no_setting_of_git_keeps_a_demo_from_its_first_task(demo: Demo, setting: str) -> None:
    (demo.folder / "ignored").write_text("*.txt\nsrc/\n")
    name, _, value = setting.format(folder=demo.folder).partition("=")
    config = str(demo.folder / "home" / ".gitconfig")
    subprocess.run(["git", "config", "--file", config, name, value], check=True)
    process = demo.popen()
    assert process.stdout is not None
    line = next(line for line in process.stdout if "Stream-A complete" in line or "Restarting" in line or "ERR" in line)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=30)
    assert "Stream-A complete" in line


def test_on_a_terminal_a_demo_is_a_live_board_that_ctrl_c_takes_down(workspace: Workspace) -> None:
    temporary = workspace.home / "tmp"
    temporary.mkdir()
    with open_terminal(workspace, (60, 24), "demo", env={"TMPDIR": str(temporary)}) as terminal:
        board = terminal.wait_for(lambda: "● Stream-A" in terminal.read() and terminal.read(), "the board")
        assert re.search(r"(?m)^── my-project · \d+/16 tasks · \d+s( · \$\d.\d\d)? · 1 of 5 workers ─+$", board)
        assert re.search(r"(?m)^  ○ Stream-D  \[░░░░░░\] 0/3  Waiting for Stream-", board)
        terminal.press(b"\x03")
        assert terminal.wait_for_end() == 130
        assert "● Stream-A" not in terminal.read()
        assert list(temporary.iterdir()) == []


# ── The installation ──────────────────────────────────────────────────────────────────────────────────────────────────

# The words of the guide.
GENERATED = """\
Headless Orchestration Scripts Generated

Created files:
- .claude/orchestrator/orchestrate.py (main orchestrator)
- .claude/orchestrator/check-streams (status dashboard)
- .claude/orchestrator/watch-status (live monitoring)

Subdirectories:
- .claude/orchestrator/pids/ (process tracking)
- .claude/orchestrator/logs/ (worker logs)

Next steps:
1. Start orchestration: python .claude/orchestrator/orchestrate.py start
2. Monitor progress: ./.claude/orchestrator/watch-status
3. Check status: python .claude/orchestrator/orchestrate.py status
"""
BEHIND = """
In Claude Code: /orchestration generate, /orchestration status
Check what a run needs: python3 .claude/orchestrator/orchestrate.py doctor
"""
FILES = (
    ".claude/orchestrator/orchestrate.py",
    ".claude/orchestrator/check-streams",
    ".claude/orchestrator/watch-status",
    ".claude/commands/orchestration.md",
)
SLASH, CHECK = FILES[3], FILES[1]


def describe(*outcomes: str) -> str:
    """Return what `generate` prints where it did not create everything."""
    return "".join(f"{outcome:<9} {name}\n" for outcome, name in zip(outcomes, FILES)) + BEHIND


def describe_kept(name: str) -> str:
    """Return what `generate` warns of."""
    return f"Warning: {name} was changed by a person and is left as it is; --force overwrites it\n"


def photograph(folder: Path) -> dict[str, object]:
    """Return what lies in a folder, with every mode, time and content."""
    photo: dict[str, object] = {}
    for path in sorted(folder.rglob("*")):
        status = path.lstat()
        content = path.read_bytes() if path.is_file() else os.readlink(path) if path.is_symlink() else ""
        photo[str(path.relative_to(folder))] = (status.st_mode, status.st_mtime_ns, status.st_ino, content)
    return photo


def generate(workspace: Workspace, *words: str, **options: Any) -> tuple[str, str]:
    """Install, and return what is said and what is warned of."""
    done = workspace.run("generate", *words, **options)
    assert done.returncode == 0
    return done.stdout, done.stderr


@pytest.fixture
def installed(workspace: Workspace) -> Workspace:
    """A project with an installation."""
    assert generate(workspace) == (GENERATED + BEHIND, "")
    return workspace


def make_newer(folder: Path) -> Path:
    """Make a newer version of the program, in which each installed file differs."""
    text = SCRIPT.read_text(encoding="utf-8")
    for old, new in (
        ("#!/bin/sh\n", "#!/bin/sh\n# newer\n"),
        ("Say what the two words above do.", "Say what they do."),
        ('VERSION = "', 'VERSION = "9'),
    ):
        assert old in text
        text = text.replace(old, new, 1)
    path = folder / "newer" / "orchestrate.py"
    path.parent.mkdir(exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def without_interpreter(path: Path) -> str:
    """Return the text of an installed file without the one thing that it has noted: the interpreter."""
    text = path.read_text(encoding="utf-8")
    assert text.count(sys.executable) == 1
    return text.replace(sys.executable, "").replace("python=\n", "python=''\n")


def test_the_first_installation_says_the_guides_words_and_holds_its_files(installed: Workspace) -> None:
    for name in ("orchestrate.py", "check-streams", "watch-status"):
        assert without_interpreter(installed.state / name) == (SCRIPT.parent / name).read_text(encoding="utf-8")
        assert (installed.state / name).stat().st_mode & 0o777 == 0o755
    for folder in (installed.state, installed.state / "pids", installed.state / "logs"):
        assert folder.stat().st_mode & 0o777 == 0o700
    assert (installed.root / SLASH).stat().st_mode & 0o777 == 0o644
    digests = {name: hashlib.sha256((installed.root / name).read_bytes()).hexdigest() for name in FILES}
    record = (installed.state / ".generated").read_text()  # one for sha256sum
    assert record == "".join(f"{digests[name]}  {name}\n" for name in FILES)


def test_what_is_installed_stays_out_of_git_but_for_the_slash_command(installed: Workspace) -> None:
    installed.make_repository()
    assert installed.git("status", "--porcelain", "--untracked-files=all") == f"?? {SLASH}\n"


def test_the_slash_command_runs_what_is_installed_and_never_starts_a_run(installed: Workspace) -> None:
    text = (installed.root / SLASH).read_text(encoding="utf-8")
    assert re.match(r"---\ndescription: .+\nargument-hint: generate \| status\n---\n", text)
    assert "$ARGUMENTS" in text
    called = set(re.findall(r"python3 \.claude/orchestrator/orchestrate\.py ([^`\n]+)`", text))
    assert called == {"generate", "doctor", "start --dry-run", "status", "logs STREAM --no-follow"}
    assert {"## generate", "## status"} <= set(text.splitlines())
    installed.database.add_stream("STREAM")
    for words in called - {"generate"}:
        done = installed.run(*words.split(), script=installed.state / "orchestrate.py")
        assert done.returncode in (0, 1), words


def test_a_second_installation_changes_nothing(installed: Workspace) -> None:
    before = photograph(installed.root)
    assert generate(installed) == (describe(*["Unchanged"] * 4), "")
    after = photograph(installed.root)
    ours = {".claude/orchestrator", ".claude/orchestrator/.generated"}  # rewritten with the same content
    assert {name for name in before if before[name] != after[name]} <= ours
    assert set(before) == set(after)


def test_what_a_person_has_changed_is_left_alone_until_force(installed: Workspace) -> None:
    ours = {name: (installed.root / name).read_text(encoding="utf-8") for name in FILES}
    for name, text in ours.items():
        (installed.root / name).write_text(f"{text}# mine\n", encoding="utf-8")
    for _ in range(2):
        assert generate(installed) == (describe(*["Kept"] * 4), "".join(describe_kept(name) for name in FILES))
        for name, text in ours.items():
            assert (installed.root / name).read_text(encoding="utf-8") == f"{text}# mine\n"
    (installed.root / CHECK).write_text(ours[CHECK])
    assert generate(installed, "--force") == (describe("Updated", "Unchanged", "Updated", "Updated"), "")
    assert {name: (installed.root / name).read_text(encoding="utf-8") for name in FILES} == ours


def test_what_a_person_has_removed_is_created_again(installed: Workspace) -> None:
    (installed.root / CHECK).unlink()
    shutil.rmtree(installed.state / "pids")
    assert generate(installed) == (describe("Unchanged", "Created", "Unchanged", "Unchanged"), "")
    assert (installed.state / "pids").is_dir()


def test_an_older_version_of_ours_is_updated_but_not_what_was_changed_in_it(installed: Workspace) -> None:
    with (installed.root / SLASH).open("a") as file:
        file.write("mine\n")
    expected = describe("Updated", "Updated", "Updated", "Kept"), describe_kept(SLASH)
    assert generate(installed, script=make_newer(installed.bin)) == expected
    assert (installed.root / CHECK).read_text().startswith("#!/bin/sh\n# newer\n")
    assert (installed.state / "orchestrate.py").stat().st_mode & 0o777 == 0o755


def test_a_change_to_the_script_survives_its_own_generate_and_a_newer_version(installed: Workspace) -> None:
    script = installed.state / "orchestrate.py"
    text = script.read_text(encoding="utf-8").replace("\nPOLL_INTERVAL = 30 ", "\nPOLL_INTERVAL = 10 ")  # the guide
    script.write_text(text, encoding="utf-8")
    generate(installed, script=script)  # as /orchestration generate does
    assert generate(installed, script=make_newer(installed.bin))[1] == describe_kept(FILES[0])
    assert script.read_text(encoding="utf-8") == text


def test_a_change_that_a_person_has_taken_back_is_no_change(installed: Workspace) -> None:
    path = installed.root / CHECK
    ours = path.read_text()
    path.write_text(f"{ours}# mine\n")
    generate(installed)
    path.write_text(ours)
    assert generate(installed, script=make_newer(installed.bin)) == (describe(*["Updated"] * 4), "")


def test_an_installation_touches_nothing_else_and_somebody_elses_slash_command_with_force_alone(
    workspace: Workspace,
) -> None:
    names = ["CLAUDE.md", ".claude/commands/protocol.md", ".claude/orchestrator/logs/Stream-A.log", ".gitignore"]
    for name in (*names, SLASH):
        (workspace.root / name).parent.mkdir(parents=True, exist_ok=True)
        (workspace.root / name).write_text("somebody else's\n")
    before = {name: state for name, state in photograph(workspace.root).items() if (workspace.root / name).is_file()}
    assert generate(workspace) == (GENERATED + BEHIND, describe_kept(SLASH))
    after = photograph(workspace.root)
    assert {name for name in before if before[name] != after.get(name)} == set()
    generate(workspace, "--force")
    after = photograph(workspace.root)
    assert {name for name in before if before[name] != after.get(name)} == {SLASH}


def test_what_a_link_leads_to_is_never_written(workspace: Workspace) -> None:
    precious, nowhere = workspace.home / "precious", workspace.home / "nowhere"
    precious.write_text("precious\n")
    for path, target in ((workspace.root / SLASH, precious), (workspace.root / CHECK, nowhere)):
        path.parent.mkdir(parents=True, mode=0o700)
        path.symlink_to(target)
    assert generate(workspace)[1] == describe_kept(SLASH)
    assert (workspace.root / SLASH).is_symlink()
    assert ((workspace.root / CHECK).is_symlink(), nowhere.exists()) == (False, False)
    generate(workspace, "--force")
    assert ((workspace.root / SLASH).is_symlink(), precious.read_text()) == (False, "precious\n")


@pytest.mark.parametrize("name", [".claude", ".claude/orchestrator", ".claude/commands", SLASH])
def test_what_stands_in_the_way_is_named_and_left(workspace: Workspace, name: str) -> None:
    path = workspace.root / name
    if name == ".claude":
        path.rmdir()
    if name == SLASH:
        path.mkdir(parents=True)
    else:
        path.write_text("in the way\n")
    done = workspace.run("generate", str(workspace.root))
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(r"\[ERROR\] .*\.claude.*\n.+\n", done.stderr)
    assert path.is_dir() if name == SLASH else path.read_text() == "in the way\n"


def test_an_installation_of_others_is_refused(installed: Workspace) -> None:
    installed.state.chmod(0o777)
    before = photograph(installed.root)
    done = installed.run("generate", "--force")
    assert done.returncode == 2
    assert done.stderr.startswith(f"[ERROR] {installed.state} can be written by others\n")
    assert photograph(installed.root) == before


@pytest.mark.parametrize("folder", ["missing", "parts.json", ""])
def test_a_folder_that_is_none_is_wrong_usage(workspace: Workspace, folder: str) -> None:
    done = workspace.run("generate", folder)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("[ERROR] Invalid value for '[DIR]': Directory ")
    assert not (workspace.root / "missing").exists()
    assert not workspace.state.exists()


@pytest.mark.parametrize("name", ["a folder with spaces", 'it\'s "$HOME"', "-x", "漢字"])
def test_the_installation_works_in_any_folder_without_project_from_anywhere(workspace: Workspace, name: str) -> None:
    root = workspace.root / name
    root.mkdir()
    assert workspace.run("generate", "--", name).returncode == 0
    database = TaskDatabase(workspace.home / ".claude" / "tasks" / name / "tasks.db")
    database.add_stream("Stream-A", tasks=2)
    database.set_status("completed", "Stream-A")
    script = root / ".claude" / "orchestrator" / "orchestrate.py"
    done = workspace.run("status", "--json", script=script, cwd="/")
    assert json.loads(done.stdout)["project"] == str(root)
    once = subprocess.run(
        [str(root / CHECK)], cwd=workspace.home, env=workspace.environment(PYTHON=sys.executable), capture_output=True,
        text=True, encoding="utf-8", check=True,
    )  # fmt: skip
    assert "2/2 (100%)" in once.stdout


def test_the_installed_watch_status_is_live_from_anywhere(installed: Workspace) -> None:
    installed.database.add_stream("Stream-A", tasks=2)
    with subprocess.Popen(
        [str(installed.state / "watch-status"), "0.1"], cwd="/", env=installed.environment(PYTHON=sys.executable),
        stdout=subprocess.PIPE, text=True, encoding="utf-8",
    ) as live:  # fmt: skip
        assert live.stdout is not None
        assert any("0/2 (0%)" in line for line in live.stdout)
        installed.database.set_status("completed", "Stream-A")
        assert "2/2 (100%)" in live.stdout.read()  # and ends, for all is complete
    assert live.returncode == 0


def test_the_installed_copy_runs_the_project_and_installs_it_elsewhere(installed: Workspace, tmp_path: Path) -> None:
    installed.database.add_stream("Stream-A")
    script = installed.state / "orchestrate.py"
    assert installed.run("start", script=script, cwd="/").returncode == 0
    assert installed.starts() == ["Stream-A"]
    other = tmp_path / "other"
    other.mkdir()
    assert generate(installed, str(other), script=script, cwd="/") == (
        GENERATED + BEHIND.replace("python3 .claude", f"cd {other} && python3 .claude"),
        "",
    )
    assert without_interpreter(other / FILES[0]) == SCRIPT.read_text(encoding="utf-8")


def test_an_installed_package_installs_itself_too(workspace: Workspace) -> None:
    site = workspace.bin / "site-packages"
    site.mkdir()
    shutil.copy(SCRIPT, site)
    done = subprocess.run(
        [sys.executable, "-c", "import sys, orchestrate; sys.exit(orchestrate.main())", "generate"],
        cwd=workspace.root, env=workspace.environment(PYTHONPATH=str(site), PYTHONDONTWRITEBYTECODE="1"),
        capture_output=True, text=True, encoding="utf-8", check=True,
    )  # fmt: skip
    assert done.stdout == GENERATED + BEHIND
    assert [path.name for path in site.iterdir()] == ["orchestrate.py"]
    assert "Stream" not in workspace.run("status", script=workspace.state / "orchestrate.py", cwd="/").stdout


def test_an_installation_beside_a_running_orchestrator_disturbs_nothing(installed: Workspace) -> None:
    installed.database.add_stream("Stream-A")
    installed.play("until=gate all")
    run = installed.popen("start", script=installed.state / "orchestrate.py")
    installed.wait_for_worker("Stream-A")
    assert generate(installed, script=make_newer(installed.bin)) == (describe(*["Updated"] * 4), "")
    installed.open_gate("gate")
    assert run.wait(timeout=30) == 0


# ── The doctor ────────────────────────────────────────────────────────────────────────────────────────────────────────

CLAUDE = """\
#!/bin/sh
case $1 in
    --version) echo "2.1.330 (Claude Code)" ;;
    --help) echo "-p, --print --dangerously-skip-permissions --verbose --output-format <format> (text, stream-json)" ;;
esac
"""


def give_server(**server: object) -> Callable[[Workspace], object]:
    """Write `.mcp.json` with this task-copilot server."""
    text = json.dumps({"mcpServers": {"task-copilot": server}})
    return lambda workspace: (workspace.root / ".mcp.json").write_text(text, encoding="utf-8")


def add_streams(*streams: str, **metadata: Any) -> Callable[[Workspace], object]:
    """Add streams of one task each."""
    return lambda workspace: [workspace.database.add_stream(stream, **metadata) for stream in streams]


def execute(*statements: str) -> Callable[[Workspace], object]:
    """Change the database."""
    return lambda workspace: [workspace.database.execute(statement) for statement in statements]


@pytest.fixture
def healthy(workspace: Workspace) -> Workspace:
    """A project in which everything that a run needs is as it should be."""
    workspace.claude.write_text(CLAUDE)
    (workspace.root / "server.js").write_text("serve()\n")
    give_server(command="sh", args=["server.js"])(workspace)
    workspace.make_repository(".claude/commands/continue.md")
    workspace.git("add", ".mcp.json", "server.js")
    workspace.git("commit", "--quiet", "-m", "Server")
    (workspace.root / "parts.json").unlink()  # else the worktrees would lack it
    workspace.database.add_stream("Stream-A", "foundation", tasks=2)
    workspace.database.add_stream("Stream-B")
    return workspace


def examine(workspace: Workspace, *words: str, **options: Any) -> tuple[int, dict[str, dict[str, Any]]]:
    """Return the exit code of `doctor --json`, and its findings by their subjects."""
    done = workspace.run("doctor", "--json", *words, **options)
    assert done.stderr == ""
    report = json.loads(done.stdout)
    levels = [check["level"] for check in report["checks"]]
    assert report["ready"] is (done.returncode == 0) is ("error" not in levels)
    return done.returncode, {check["subject"]: check for check in report["checks"]}


def is_root() -> bool:
    return os.geteuid() == 0


def test_a_healthy_project_is_a_line_each_and_exit_code_0(healthy: Workspace) -> None:
    packages = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("click", "rich", "psutil"))
    user = "root, in a sandbox (IS_SANDBOX)" if is_root() else f"user {os.geteuid()}"
    done = healthy.run("doctor")
    assert (done.returncode, done.stderr) == (0, "")
    if "from 2.38 on" in done.stdout:  # an old git on this machine is a warning
        pytest.skip("git is older than 2.38")
    text = re.sub(r"[\d.]+ GiB free", "N GiB free", done.stdout)
    assert (
        text
        == f"""\
✓ Python        {sys.version.split()[0]} ({sys.executable}); {packages}
✓ Claude        2.1.330 (Claude Code) ({healthy.claude}), run as {user}
✓ Project       {healthy.root}; N GiB free
✓ Git           {healthy.git("--version").strip()}, main
✓ Orchestrator  none runs
✓ Task Copilot  task-copilot, from .mcp.json (sh server.js); /continue: {healthy.root}/.claude/commands/continue.md
✓ Database      {healthy.database.path}; version 10
✓ Streams       2 streams: 1 foundation, 1 parallel; 0 of 3 tasks completed

Ready. Start: {PROGRAM} start
"""
    )


def add_strays(workspace: Workspace) -> None:
    workspace.database.add_task(None)
    workspace.database.add_task(None, "completed")
    workspace.database.add_row("odd", "pending", "not JSON")


def age_claude(workspace: Workspace) -> None:
    workspace.claude.write_text(CLAUDE.replace("2.1.330", "0.9.1").replace(", stream-json", ""))


def forbid_wal(workspace: Workspace) -> None:
    workspace.database.execute("PRAGMA journal_mode = DELETE")
    workspace.database.path.parent.chmod(0o500)


def ruin(workspace: Workspace, name: str) -> None:
    """Do what a row says: in a shell that stands in the project, or with the workspace."""
    how = ROWS[name][0]
    if callable(how):
        how(workspace)
    else:
        env = workspace.environment(
            CLAUDE=str(workspace.claude),
            BIN=str(workspace.bin),
            STATE=str(workspace.state),
            DB=str(workspace.database.path),
        )
        subprocess.run(["sh", "-ec", how], cwd=workspace.root, env=env, check=True)


SERVER = "Install Task Copilot (npm install && npm run build in its folder), or correct .mcp.json."
STREAMS = "Correct the tasks' metadata (streamPhase, streamDependencies), then start again."
PROTOCOL = "Run /protocol in Claude Code to initialize Task Copilot for this project, or name the file with --db."
UNREADABLE = "Look at {database}: is it Task Copilot's database, and free to read?"
INSTALL = "Install Claude Code (npm install -g @anthropic-ai/claude-code) or add it to PATH; --claude CMD names another"
# What is broken, the subject, the level (`doctor`: an error that `start` does not look for), what is found, the remedy.
REPOSITORY = "git init && git add --all && git commit -m Begin; then each parallel stream has its own worktree."
USERS_ALONE = ("forbidden project", "forbidden database", "forbidden folder of the database")  # root may write anywhere

# How it is broken, the subject, the level (`doctor`: an error that `start` does not look for), what is found, and the
# remedy.
ROWS: dict[str, tuple[str | Callable[[Workspace], object], str, str, str, str | None]] = {
    "no claude": ("rm $CLAUDE", "Claude", "error", "no-such-claude: command not found", f"{INSTALL} command."),
    "forbidden claude": ("chmod 644 $CLAUDE", "Claude", "error", "{claude} is not executable",
        "Make it so: chmod +x {claude}"),
    "old claude": (age_claude, "Claude", "doctor", "{claude} (0.9.1 (Claude Code)) is too old: it has no stream-json",
        "Run: claude update"),
    "silent claude": (r"printf '#!/bin/sh\nexit 1\n' > $CLAUDE", "Claude", "warning", "{claude} does not answer --help",
        "Whether workers can use it is not known; try it by hand."),
    "no sandbox": (":", "Claude", "error", "claude refuses --dangerously-skip-permissions for root",
        "Run as another user, or in a sandbox of your own say so: export IS_SANDBOX=1"),
    "file for state": ("touch $STATE", "Project", "error", "{state} is no folder of its own",
        "Look at what it is, and remove it."),
    "file for logs": ("mkdir -m 700 $STATE; touch $STATE/logs", "Project", "error",
        "{state}/logs is no folder of its own", "Look at what it is, and remove it."),
    "state of others": ("mkdir $STATE; chmod 777 $STATE", "Project", "error", "{state} can be written by others",
        "Look at what they put there, then: chmod go-w {state}"),
    "forbidden project": ("chmod 500 .claude", "Project", "error", "{root}/.claude is not writable",
        "Let its owner allow it: chmod u+wx {root}/.claude"),
    "no repository": ("rm -rf .git", "Git", "warning",
        "no worktrees, all streams would work in one folder: it lies in no git repository", REPOSITORY),
    "no commits": ("rm -rf .git; git init -q", "Git", "warning",
        "no worktrees, all streams would work in one folder: its git repository has no commit yet", REPOSITORY),
    "a change": ("echo changed > server.js", "Git", "warning",
        "{git}, main; Uncommitted changes: the streams branch from the last commit, without server.js",
        "Commit what the workers need."),
    "broken repository": ("echo '[core' > .git/config", "Git", "doctor",
        "git rev-parse: fatal: bad config line 1 in file .git/config", "Run: git status"),
    "no git": ("ln -s $(command -v sh) $(command -v ps) $BIN", "Git", "doctor", "git: command not found",
        "Install git, or start with --no-worktrees."),
    "stale files": (
        "umask 77; mkdir -p $STATE/pids; echo 99999999 > $STATE/pids/Stream-A.pid; echo what > $STATE/pids/Old.pid",
        "Orchestrator", "warning",
        "PID files without a worker: Old.pid: it holds no worker's PID; Stream-A.pid: process 99999999 is gone",
        "Nothing to do: `start` removes them, as does `clean`."),
    "no server": ("rm .mcp.json; git commit -qam x", "Task Copilot", "warning",
        "no task-copilot server in {root}/.mcp.json, or in ~/.claude.json",
        "Without its tools a worker can't complete a task: run /setup-project in Claude Code."),
    "no program of the server": (give_server(command="no-such-node", args=["server.js"]), "Task Copilot", "error",
        "the task-copilot server of .mcp.json can't be started: there is no no-such-node", SERVER),
    "no file of the server": (give_server(command="sh", args=["dist/index.js"]), "Task Copilot", "error",
        "the task-copilot server of .mcp.json can't be started: there is no dist/index.js", SERVER),
    "broken .mcp.json": ("printf '{' > .mcp.json", "Task Copilot", "error",
        "{root}/.mcp.json can't be read: Expecting property name enclosed in double quotes: line 1 column 2 (char 1)",
        "Repair it, or name the database with --db."),
    "loud .mcp.json": (give_server(command="sh\x1b[31m\x07", args=["a\u202eb\nc"]), "Task Copilot", "error",
        "the task-copilot server of .mcp.json can't be started: there is no sh\x1b[31m\x07", SERVER),
    "no /continue": ("rm .claude/commands/continue.md; git commit -qam x", "Task Copilot", "warning",
        "; no /continue in .claude/commands",
        "The prompt begins with /continue: run /setup-project, or write your own."),
    "no database": ("rm $DB", "Database", "error",
        "Task Copilot database not found: {database}\nalso tried: {fallback}", PROTOCOL),
    "forbidden database": ("chmod 400 $DB", "Database", "doctor",
        "{database} is not writable: workers could complete no task", "chmod u+w {database}"),
    "forbidden folder of the database": (forbid_wal, "Database", "doctor",
        "{database.parent} is not writable: workers could complete no task", "chmod u+w {database.parent}"),
    "other name": ("cp $DB $(dirname $DB)/other.db", "Database", "warning",
        "a Task Copilot server reads tasks.db, not other.db, in its folder", "Name the file tasks.db."),
    "garbage": ("yes garbage | head -c 8000 > $DB", "Database", "error", "SQLite query failed: file is not a database",
        UNREADABLE),
    "no table": (execute("DROP TABLE tasks"), "Streams", "error", "SQLite query failed: no such table: tasks",
        UNREADABLE),
    "newer schema": (execute("UPDATE migrations SET version = 11"), "Database", "warning", "; version 11",
        "This program was tried with versions up to 10: look for a newer one."),
    "no schema": (execute("DROP TABLE migrations"), "Database", "ok", "; without a version", None),
    "empty schema": (execute("DELETE FROM migrations"), "Database", "ok", "; without a version", None),
    "other column": (execute("DROP TABLE migrations", "CREATE TABLE migrations (name TEXT)"), "Database", "ok",
        "; without a version", None),
    "word for a version": (execute("DROP TABLE migrations", "CREATE TABLE migrations AS SELECT 'x' AS version"),
        "Database", "ok", "; without a version", None),
    "no streams": (execute("UPDATE tasks SET metadata = '{}', status = 'completed'"), "Streams", "error",
        "No streams found in Task Copilot database",
        "Work with @agent-ta to organize tasks into streams: each task's metadata needs a streamId."),
    "unknown phase": (add_streams("Stream-C", phase="later"), "Streams", "error",
        'Stream-C: task TASK-4 has the unknown phase "later"', STREAMS),
    "circle": (add_streams("Stream-C", streamDependencies=["Stream-C"]), "Streams", "error",
        "Stream-C: its dependencies form a cycle: Stream-C (parallel) -> Stream-C (parallel)", STREAMS),
    "unknown dependency": (add_streams("Stream-C", streamDependencies=["Nowhere"]), "Streams", "error",
        "Stream-C: it depends on Nowhere, and no stream has that id", STREAMS),
    "many streams": (add_streams("C", "D", "E", "F", "G"), "Streams", "warning", "7 streams: 1 foundation, 6 parallel",
        "More than 5 parallel streams are hard to merge: split them into phases."),
    "strays": (add_strays, "Streams", "warning",
        "; 0 of 3 tasks completed; 1 open task without a stream; 1 task skipped: the metadata is not valid JSON",
        "Correct their metadata (streamId, streamName, streamPhase): no worker gets what has no stream."),
}  # fmt: skip

# With which words and variables the program is called then.
CALLED = {
    "no claude": "--claude no-such-claude",
    "forbidden claude": "--claude {claude}",
    "no sandbox": "IS_SANDBOX=0",
    "no git": "PATH={bin}",
    "other name": "--db {database.parent}/other.db",
}


@pytest.mark.parametrize("name", ROWS)
def test_doctor_names_what_is_wrong_and_its_remedy_and_start_says_the_same(healthy: Workspace, name: str) -> None:
    if name in USERS_ALONE if is_root() else name == "no sandbox":
        pytest.skip("root may write anywhere, and is alone in being refused by claude")
    _, subject, level, found, remedy = ROWS[name]
    fallback = hashlib.md5(str(healthy.root).encode()).hexdigest()[:12]
    names: dict[str, Any] = {
        "claude": healthy.claude, "state": healthy.state, "root": healthy.root, "database": healthy.database.path,
        "git": healthy.git("--version").strip(), "bin": healthy.bin,
        "fallback": healthy.database.path.parent.parent / fallback / "tasks.db",
    }  # fmt: skip
    ruin(healthy, name)
    words = CALLED.get(name, "").format(**names).split()
    env = dict(word.split("=") for word in words if "=" in word)
    words = [] if env else words
    try:
        code, checks = examine(healthy, *words, env=env)
        started = healthy.run("start", "--max-restarts", "0", *words, env=env) if level == "error" else None
    finally:
        for folder in (healthy.root / ".claude", healthy.database.path.parent):
            folder.chmod(0o755)
    check = checks[subject]
    is_fatal = level in ("error", "doctor")
    check["found"] = re.sub(r"\n +", "\n", check["found"])
    if not is_fatal and found.format(**names) in check["found"]:
        check["found"] = found  # beside what is as it should be
    assert check == {
        "subject": subject,
        "level": "error" if is_fatal else level,
        "found": found.format(**names) if is_fatal else found,
        "remedy": remedy and remedy.format(**names),
    }
    assert code == is_fatal
    if started is not None:
        said = f"[ERROR] {found}\n{remedy}\n".format(**names)
        said = said.replace("\x1b", "␛").replace("\x07", "␇").replace("\nalso tried", "\n        also tried")
        assert (started.returncode, started.stdout, started.stderr) == (2, "", said)


def test_a_remedy_stands_under_what_is_wrong(healthy: Workspace) -> None:
    for name in ("no file of the server", "unknown phase", "file for logs", "many streams", "strays"):
        ruin(healthy, name)
    code, checks = examine(healthy)
    done = healthy.run("doctor")
    assert (done.returncode, code) == (1, 1)
    lines = []
    for name, check in checks.items():
        symbol = {"ok": "✓", "warning": "!", "error": "✗"}[check["level"]]
        lines += [f"{symbol} {name:<12}  {check['found']}", *([" " * 16 + check["remedy"]] if check["remedy"] else [])]
    lines += ["", "A run would fail: 3 errors (1 warning)."]
    expected = [re.sub(r"[\d.]+ GiB", "N GiB", line) for line in lines]
    assert re.sub(r"[\d.]+ GiB", "N GiB", done.stdout).splitlines() == expected


def test_control_sequences_of_others_are_shown_and_never_obeyed(healthy: Workspace) -> None:
    ruin(healthy, "loud .mcp.json")
    healthy.claude.write_text(CLAUDE.replace("2.1.330", "2\x1b]0;title\x07\u202e"))
    healthy.database.add_stream("S\x1b[31m", "later\x07")
    done = healthy.run("doctor")
    assert done.returncode == 1
    assert re.findall(r"[^\n\x20-\x7e\xa0-\uffff]|[\u202a-\u202e]", done.stdout) == []
    assert "there is no sh␛[31m␇\n" in done.stdout


def test_on_a_narrow_terminal_no_line_is_wider_than_it(healthy: Workspace) -> None:
    ruin(healthy, "no file of the server")
    with open_terminal(healthy, (60, 60), "doctor") as terminal:
        assert terminal.wait_for_end() == 1
        lines = terminal.read().rstrip().splitlines()
    assert [line for line in lines if not re.match(r"[✓!✗] [\w/ ]{12}  \S| {16}\S|$|A run would fail: ", line)] == []
    start = next(number for number, line in enumerate(lines) if line.startswith("✗ Task Copilot"))
    assert lines[start : start + 5] == [
        "✗ Task Copilot  the task-copilot server of .mcp.json can't",
        "                be started: there is no dist/index.js",
        "                Install Task Copilot (npm install && npm run",
        "                build in its folder), or correct .mcp.json.",
        "✓ Database      " + lines[start + 4][16:],
    ]


def test_doctor_changes_nothing_on_disk(healthy: Workspace) -> None:
    ruin(healthy, "stale files")
    top = healthy.root.parent
    healthy.run("doctor")  # whoever reads a database in WAL mode leaves its -shm and -wal behind
    before = photograph(top)
    for words in (("doctor",), ("doctor", "--json")):
        assert healthy.run(*words).returncode == 0
        after = photograph(top)
        changed = {name for name in {*before, *after} if before.get(name) != after.get(name)}
        assert {name for name in changed if not name.endswith(("-shm", "-wal", "tasks/my-project"))} == set()


def test_doctor_beside_an_orchestrator_names_it_and_lets_it_be(healthy: Workspace) -> None:
    worker = healthy.bin / "worker"
    worker.write_text("#!/bin/sh\nexec sleep 1000\n")
    worker.chmod(0o755)
    run = healthy.popen("start", "--claude", str(worker))
    wait_until(lambda: healthy.pid("Stream-A"), "a worker")
    code, checks = examine(healthy)
    found = f"An orchestrator already runs for this project (PID {run.pid})"
    remedy = f"Watch it: {PROGRAM} status\nEnd it: {PROGRAM} stop"
    assert code == 1
    assert checks["Orchestrator"] == {"subject": "Orchestrator", "level": "error", "found": found, "remedy": remedy}
    indent = " " * 16
    assert f"\n{indent}Watch it: {PROGRAM} status\n{indent}End it: {PROGRAM} stop\n" in healthy.run("doctor").stdout
    second = healthy.run("start")
    assert (second.returncode, second.stderr) == (75, f"[ERROR] {found}\n{remedy}\n")
    pid = healthy.pid("Stream-A")
    run.send_signal(signal.SIGINT)
    run.wait(timeout=20)
    code, checks = examine(healthy)
    assert code == 0
    assert checks["Orchestrator"] == {
        "subject": "Orchestrator",
        "level": "warning",
        "found": f"workers of an earlier run: Stream-A (PID {pid})",
        "remedy": f"Take them over: {PROGRAM} start\nEnd them: {PROGRAM} stop",
    }
    assert is_running(pid)
    assert healthy.run("stop").returncode == 0
    assert own_processes(healthy.root) == []


def test_a_claude_that_hangs_holds_the_doctor_up_for_a_moment_only(healthy: Workspace) -> None:
    healthy.claude.write_text("#!/bin/sh\nexec sleep 1000\n")
    code, checks = examine(healthy, script=hasten(healthy, CLAUDE_TIMEOUT="0.3"), timeout=30)
    assert (code, checks["Claude"]["found"]) == (0, f"{healthy.claude} does not answer --help")


def test_a_launcher_of_claude_is_asked_too(healthy: Workspace) -> None:
    _, checks = examine(healthy, "--claude", f"nice -n 5 {shlex.quote(str(healthy.claude))}")
    assert checks["Claude"]["found"].startswith(f"2.1.330 (Claude Code) ({shutil.which('nice')}), run as ")
    assert (checks["Claude"]["level"], checks["Claude"]["remedy"]) == ("ok", None)


def test_a_launcher_has_what_it_has_in_a_run(healthy: Workspace) -> None:
    launcher = healthy.root.parent / "in-a-box"
    wanted = '[ -d "$ORCHESTRATE_PROJECT" ] && [ -f "$TASK_DB_PATH/$WORKSPACE_ID/tasks.db" ]'
    launcher.write_text(f'#!/bin/sh\n{wanted} && exec {shlex.quote(str(healthy.claude))} "$@"\n')
    launcher.chmod(0o755)
    _, checks = examine(healthy, "--claude", str(launcher))
    assert checks["Claude"]["found"].startswith(f"2.1.330 (Claude Code) ({launcher}), run as ")


@pytest.mark.parametrize(
    ("settings", "is_there"),
    [
        ('{"mcpServers": {"task-copilot": {}}}', True),
        ('{"projects": {"ROOT": {"mcpServers": {"task-copilot": {}}}}}', True),
        ('{"projects": {"/elsewhere": {"mcpServers": {"task-copilot": {}}}}}', False),
        ('{"mcpServers": null, "projects": {"ROOT": {}}}', False),
        ('{"projects": null}', False),
        ("[]", False),
        ("5", False),
        ("[" * 100_000, False),
    ],
    ids=["all", "this", "other", "none", "null", "list", "number", "deep"],
)
def test_a_server_of_the_user_is_one_too(workspace: Workspace, settings: str, is_there: bool) -> None:
    (workspace.home / ".claude.json").write_text(settings.replace("ROOT", str(workspace.root)))
    check = examine(workspace)[1]["Task Copilot"]
    none = f"no task-copilot server in {workspace.root}/.mcp.json, or in ~/.claude.json"
    assert check["found"].split("; ")[0] == ("task-copilot, from ~/.claude.json" if is_there else none)


@pytest.mark.parametrize("folder", [".claude/commands/continue.md", ".claude/skills/continue/SKILL.md"])
def test_the_continue_command_may_be_the_users_own(healthy: Workspace, folder: str) -> None:
    ruin(healthy, "no /continue")
    path = healthy.home / folder
    path.parent.mkdir(parents=True)
    path.write_text("go on\n")
    check = examine(healthy)[1]["Task Copilot"]
    assert (check["level"], check["found"].partition("; /continue: ")[2]) == ("ok", str(path))


@pytest.mark.parametrize(
    ("words", "message"),
    [(("--claude", "'"), '--claude "\'": No closing quotation'), (("--claude", ""), "--claude is empty"),
     (("--project", "/nowhere"), "Invalid value for '--project': Directory '/nowhere' does not exist.")],
)  # fmt: skip
def test_a_doctor_that_is_called_wrongly_exits_with_2(
    workspace: Workspace, words: tuple[str, ...], message: str
) -> None:
    done = workspace.run("doctor", *words)
    assert (done.returncode, done.stdout, done.stderr.splitlines()[0]) == (2, "", f"[ERROR] {message}")


def test_a_doctor_in_an_empty_folder_has_a_line_for_everything_that_it_can_look_at(tmp_path: Path) -> None:
    environment = {"HOME": str(tmp_path), "PATH": os.environ["PATH"], "LANG": "C.UTF-8", "IS_SANDBOX": "1"}
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "doctor", "--json", "--claude", "/nowhere/claude"], cwd=tmp_path, env=environment,
        capture_output=True, text=True, encoding="utf-8", check=False,
    )  # fmt: skip
    levels = {check["subject"]: check["level"] for check in json.loads(done.stdout)["checks"]}
    assert (done.returncode, list(tmp_path.iterdir())) == (1, [])
    assert levels == {
        "Python": "ok", "Claude": "error", "Project": levels["Project"], "Git": "warning",
        "Orchestrator": "ok", "Task Copilot": "warning", "Database": "error", "Streams": "error",
    }  # fmt: skip


# ── What the doctor may not take for wrong, and what may not end it ───────────────────────────────────────────────────


SERVERS = {
    "shell": ["sh", "-c", "exec ./serve"],
    "npx": ["npx", "-y", "@scope/task-copilot"],
    "variables": ["${SHELL_HERE:-sh}", "${ROOT}/server.js", "$ROOT/x", "${NONE:-y}"],
    "shell script": ["sh", "-c", "cd tools && exec node dist/index.js"],
    "option": ["sh", "--require=loader.js", "server.js"],
    "address": ["sh", "run", "https://example.org/index.ts"],
    "container": ["sh", "run", "-v", "/srv:/app", "image", "node", "/app/index.js"],
    "http": [],
}


@pytest.mark.parametrize("words", SERVERS.values(), ids=SERVERS)
def test_a_server_that_may_well_start_keeps_no_run_from_starting(workspace: Workspace, words: list[str]) -> None:
    program = {"command": words[0], "args": [*words[1:], 3]} if words else {"type": "http", "url": "http://h/"}
    give_server(**program)(workspace)
    for path in (workspace.root / "server.js", workspace.bin / "npx"):
        path.write_text("#!/bin/sh\n")
        path.chmod(0o755)
    root = str(workspace.root)
    check = examine(workspace, env={"ROOT": root})[1]["Task Copilot"]
    expanded = [re.sub(r"\$\{?ROOT\}?", root, re.sub(r"\$\{\w+:-(.+)\}", r"\1", word)) for word in words]
    named = f" ({shlex.join(expanded)})" if words else ""
    found = f"task-copilot, from .mcp.json{named}; no /continue in .claude/commands"
    assert (check["level"], check["found"]) == ("warning", found)


def test_a_server_beside_the_project_is_found_from_a_folder_below_it(healthy: Workspace) -> None:
    give_server(command="./serve", args=[])(healthy)
    (healthy.root / "serve").write_text("#!/bin/sh\n")
    (healthy.root / "serve").chmod(0o755)
    (healthy.root / "below").mkdir()
    assert examine(healthy)[1]["Task Copilot"]["level"] == "ok"
    assert examine(healthy, cwd=healthy.root / "below")[1]["Task Copilot"]["level"] == "ok"


def test_a_package_without_a_version_is_said_and_no_traceback(healthy: Workspace) -> None:
    import rich

    site = healthy.bin / "site"
    shutil.copytree(Path(rich.__file__).parent, site / "rich")
    hide = (
        "import importlib.metadata as m\ndef version(name): raise m.PackageNotFoundError(name)\nm.version = version\n"
    )
    (site / "sitecustomize.py").write_text(hide)  # what an archive of modules without metadata looks like
    done = healthy.run("doctor", env={"PYTHONPATH": str(site)})
    assert "Traceback" not in done.stderr
    assert done.stdout.startswith("✓ Python  ") or done.stdout.startswith("! Python  ")


# ── Any python3 ───────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a python3 that has no packages."""
    folder = tmp_path_factory.mktemp("bare")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    return folder / "bin"


class Bare:
    """An installation, and a shell in which any python3 lacks the packages."""

    def __init__(self, workspace: Workspace, bare: Path) -> None:
        self.workspace = workspace
        self.script = workspace.state / "orchestrate.py"
        self.python = bare / "python3"
        self.environment = {"HOME": str(workspace.home), "PATH": f"{bare}:{workspace.bin}:/usr/bin:/bin"}

    def run(self, command: str) -> subprocess.CompletedProcess[str]:
        """Run a line in the project's folder, as a person who pastes it."""
        return subprocess.run(
            ["/bin/sh", "-c", command], cwd=self.workspace.root, env=self.environment, capture_output=True, text=True,
            encoding="utf-8", check=False, stdin=subprocess.DEVNULL,
        )  # fmt: skip

    def check(self) -> str:
        """Ask for the status; return what is said on stderr."""
        done = self.run("python3 .claude/orchestrator/orchestrate.py status")
        assert ("WORKER STATUS" in done.stdout) == (done.returncode == 0) == (done.stderr == "")
        return done.stderr

    def note(self, python: str) -> None:
        """Let the installed files have noted another interpreter."""
        for name in ("orchestrate.py", "check-streams", "watch-status"):
            path = self.workspace.state / name
            path.write_text(path.read_text(encoding="utf-8").replace(sys.executable, python), encoding="utf-8")


@pytest.fixture
def away(installed: Workspace, bare: Path) -> Bare:
    """An installation in a project whose only stream is complete."""
    installed.database.add_stream("A")
    installed.database.set_status("completed", "A")
    return Bare(installed, bare)


def test_an_installed_copy_goes_on_with_the_interpreter_that_generate_has_noted(away: Bare) -> None:
    assert away.check() == ""
    for wrapper in ("check-streams", "watch-status 0.1"):
        done = away.run(f"./.claude/orchestrator/{wrapper}")
        assert (done.returncode, done.stderr, "STREAM STATUS" in done.stdout) == (0, "", True)
        done = away.run(f"PYTHON={away.python} ./.claude/orchestrator/{wrapper}")
        assert (done.returncode, done.stderr, "STREAM STATUS" in done.stdout) == (0, "", True)
    assert "ORCHESTRATE_TRIED" not in away.run("python3 .claude/orchestrator/orchestrate.py doctor --claude env").stdout


@pytest.mark.parametrize("way", ["own", "uv"])
def test_where_that_is_gone_it_goes_on_with_the_next_that_has_the_packages(away: Bare, way: str) -> None:
    away.note("/no/such/python")
    own = away.workspace.home / ".orchestrate" / "bin" / "python"
    program = own if way == "own" else away.workspace.bin / "uv"
    program.parent.mkdir(parents=True, exist_ok=True)
    shift = "" if way == "own" else '[ "$1 $2 $3" = "run -q --script" ] || exit 9; shift 3; '
    program.write_text(f'#!/bin/sh\n{shift}exec {shlex.quote(sys.executable)} "$@"\n')
    assert "lacks" in away.check()
    program.chmod(0o755)
    assert away.check() == ""
    done = away.run("./.claude/orchestrator/check-streams")
    assert (done.returncode, done.stderr, "STREAM STATUS" in done.stdout) == (0, "", True)


def test_interpreters_without_the_packages_do_not_go_on_with_each_other_and_the_line_works_as_it_stands(
    away: Bare,
) -> None:
    away.note(str(away.python))
    own = away.workspace.home / ".orchestrate" / "bin" / "python"
    own.parent.mkdir(parents=True)
    own.symlink_to(away.python)
    (away.workspace.bin / "uv").write_text("#!/bin/sh\nexit 2\n")  # as without a network
    (away.workspace.bin / "uv").chmod(0o755)
    error, line = away.check().splitlines()
    assert error.startswith("[ERROR] orchestrate needs click, rich, psutil, which ")
    shutil.rmtree(away.workspace.home / ".orchestrate")
    done = away.run(line)
    assert done.returncode == 0, done.stderr
    assert away.check() == ""


def test_another_interpreter_changes_nothing_until_the_noted_one_has_lost_the_packages(away: Bare) -> None:
    before = photograph(away.workspace.state)
    copy = away.workspace.root.parent / "python"
    copy.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} "$@"\n')
    copy.chmod(0o755)
    away.note(str(copy))
    generated = (away.workspace.state / ".generated").read_text()
    digests = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in away.workspace.state.glob("*-*")}
    digests["orchestrate.py"] = hashlib.sha256(away.script.read_bytes()).hexdigest()
    lines = [
        f"{digests.get(name.rpartition('/')[2], old)}  {name}" for old, name in map(str.split, generated.splitlines())
    ]
    (away.workspace.state / ".generated").write_text("\n".join([*lines, ""]))
    assert generate(away.workspace) == (describe(*["Unchanged"] * 4), "")
    assert str(copy) in away.script.read_text(encoding="utf-8")
    copy.write_text("#!/bin/sh\nexit 1\n")
    assert generate(away.workspace) == (describe("Updated", "Updated", "Updated", "Unchanged"), "")
    after = photograph(away.workspace.state)
    assert {name: facts[-1] for name, facts in after.items()} == {name: facts[-1] for name, facts in before.items()}  # type: ignore[index]


def test_a_copy_that_a_person_has_changed_keeps_the_change_and_gets_an_interpreter_that_works(away: Bare) -> None:
    text = away.script.read_text(encoding="utf-8").replace("\nMAX_RESTARTS = 10 ", "\nMAX_RESTARTS = 3 ")
    away.script.write_text(text, encoding="utf-8")
    away.note("/no/such/python")
    kept = "".join(describe_kept(name) for name in FILES[:3])
    assert generate(away.workspace) == (describe("Kept", "Kept", "Kept", "Unchanged"), kept)
    assert away.script.read_text(encoding="utf-8") == text
    assert away.check() == ""
    assert "MAX_RESTARTS = 3 " in text
