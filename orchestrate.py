#!/usr/bin/env python3
# /// script
# requires-python = ">=3.8"
# dependencies = ["click>=8.0", "rich>=12.3", "psutil>=5.9"]
# ///
"""Run the streams of a Task Copilot project with headless Claude Code workers, phase by phase.

A *stream* is a named set of tasks in Task Copilot's database. A *worker* is one `claude --print` process that works on
one stream. A *run* is begun by `start` and lasts until its last word, `run_ended`: one that was interrupted goes on
with the next `start`. The foundation's streams run one after another, then all parallel ones, then those of the
integration; within that each waits for its dependencies. A stream is over when all its tasks are completed or
cancelled and its worker has exited; it is blocked when a person has to answer first, and stopped when a person said
so.

The file reads from the inside out, and a section uses only what stands above it:

    1 constants     numbers with their units; the texts: prompt, wrappers, slash command, launcher
    2 model         what is known, as values: Stream (of the database), Worker (of the process table), History (of the
                    journal), the Snapshot of the three; the Verdict on a worker's end; the actions of a plan
    3 store         reads the streams from the database, read-only; where the files of a project lie
    4 planner       decides from a snapshot, limits and the time alone: `plan`, `judge`, `assess`. It touches nothing
    5 workers       processes: how a worker is started, found, followed and signalled; its output, its worktree
    6 orchestrator  the loop, the lock, the journal, the words for what happens
    7 rendering     a snapshot as text, a run as a chart, both from values alone; the terminal that they are drawn on
    8 commands      the command line: validate, build, run, exit

**A tick** is one sentence: observe, plan, apply, report. Twice a second, or at once when a child exits, the
orchestrator takes a snapshot (`observe`), hands it to `plan`, carries out the actions (`apply`), and says what changed
(`report`). What it does it writes down as an event (`emit`). Of one worker: `worker_starting`, `worker_started`,
perhaps `worker_stopping` and `worker_killed`, and `worker_ended` with the verdict of `judge`, which says what follows:
nothing (complete, blocked, stopped), another try after a pause that grows, a pause of the run or of the stream (a
usage limit), or that the stream has failed. A try costs a restart, of which there are so many in a row without a
completed task.

**The journal**, `events.jsonl`, is what an orchestrator remembers: the fold of its events (`History.after`) is all
that is known of a stream beside the database, the process table and the stop marks. An event that says all of it
(`known`) makes what is before it unnecessary: `run_started`, and `journal_folded` where it has become too long. Two
others write to it: `start STREAM` leaves a request there for the orchestrator that runs, and `stop` tells of what it
stopped. Its owner holds it open, as it does the locks, and puts back what somebody deletes. Timers count in seconds of
the monotonic clock, so a step of the wall clock changes nothing; that one is for people, and for the reset of a usage
limit, which a clock on a wall names.

**A worker is known** by its environment: ORCHESTRATE_ROOT, which is the project's folder whatever that is called,
ORCHESTRATE_STREAM, and ORCHESTRATE_RUN, which ends in its own PID; so are the processes below it, and those in their
sessions. So all of it is found whatever became of the orchestrator and of its files. A worker has a session of its own
and writes to a file: Ctrl+C or a kill of the orchestrator leaves it unharmed, and the next `start` adopts it, or
judges by the tasks how it has ended.

**State** lies in `.claude/orchestrator/` of the project: `pids/STREAM.pid`, `pids/STREAM.stop` (the user stopped it),
`logs/STREAM.jsonl` (what the worker printed), `logs/STREAM.log` (the same for people), `logs/.rendered.json` (how
far), `events.jsonl`, and `orchestrator.pid`, whose lock makes an orchestrator the only one; a second lock, on `pids`
itself, keeps a start and a stop apart. `worker-prompt.md` there replaces the prompt. Parallel streams work in
worktrees, `.claude/worktrees/STREAM`, unless their tasks name others or there can be none.
"""

from __future__ import annotations

import codecs
import collections
import contextlib
import enum
import errno
import fcntl
import functools
import importlib
import importlib.util
import io
import itertools
import json
import os
import re
import select
import shlex
import signal
import sqlite3
import stat
import subprocess
import sys
import time
import unicodedata
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Dict, NamedTuple, NoReturn, Optional, Tuple, Union

# An interpreter that has the packages: where `generate` installs a copy, it writes its own here.
PYTHON = ""


def _go_on_elsewhere(missing: Sequence[str]) -> NoReturn:
    """Go on with an interpreter that has the packages; where there is none, say how to get them, in one line."""
    import shutil  # here, as all else that few starts need: each of them would pay for it
    import sysconfig

    own = str(Path("~/.orchestrate/bin/python").expanduser())
    ways = [[PYTHON], [own], [shutil.which("uv") or "", "run", "-q", "--script"]]
    # Else two without the packages would go on with each other.
    tried, _, first = os.environ.get("ORCHESTRATE_TRIED", "0").partition(" ")
    python = first or sys.executable
    script = sys.argv[0] if __name__ == "__main__" else os.path.relpath(__file__)  # as it was called: hints say so
    for number, way in enumerate(ways, 1):
        if (
            number <= int(tried if tried.isdigit() else 0)
            or not os.access(way[0], os.X_OK)
            or not (__name__ == "__main__" or sys.argv[0] == "-c")
        ):
            continue
        os.environ["ORCHESTRATE_TRIED"] = f"{number} {python}"
        with contextlib.suppress(OSError):
            nowhere: Any = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
            # uv may need a network: it is asked first, for who becomes it can say no more.
            if len(way) == 1 or subprocess.call([*way, script, "--version"], **nowhere) == 0:
                os.execv(way[0], [*way, script, *sys.argv[1:]])
    install = f"{shlex.quote(python)} -m venv --clear ~/.orchestrate"
    install += " && ~/.orchestrate/bin/pip install -q click rich psutil"
    if shutil.which("apt-get"):
        apt = "apt install -y" if os.geteuid() == 0 else "sudo apt install -y"
        if sys.prefix == "/usr" and Path(sysconfig.get_path("stdlib"), "EXTERNALLY-MANAGED").exists():
            install = f"{apt} python3-click python3-rich python3-psutil"  # Debian's own, which pip may not touch
        elif importlib.util.find_spec("ensurepip") is None:
            install = f"{apt} python3-venv && {install}"
    sys.stderr.write(f"[ERROR] orchestrate needs {', '.join(missing)}, which {python} lacks. Install with:\n")
    sys.stderr.write(f"{install}\n")
    sys.exit(2)


_missing = [name for name in ("click", "rich", "psutil") if importlib.util.find_spec(name) is None]
if _missing:
    _go_on_elsewhere(_missing)
os.environ.pop("ORCHESTRATE_TRIED", None)

import click  # noqa: E402


class _Later:
    """A package whose names are imported when they are first used: short commands do without, and start sooner."""

    def __init__(self, package: str, **homes: str) -> None:
        self._package = package
        self._homes = homes  # the modules of names that lie deeper in the package

    def __getattr__(self, name: str) -> Any:
        module = f"{self._package}.{self._homes[name]}" if name in self._homes else self._package
        found = getattr(importlib.import_module(module), name)
        setattr(self, name, found)
        return found


if TYPE_CHECKING:
    import shutil
    import textwrap

    import psutil
    from rich.console import Console
    from rich.text import Text
else:
    psutil, shutil, textwrap = _Later("psutil"), _Later("shutil"), _Later("textwrap")
rich: Any = _Later("rich", Console="console", Control="control", ControlType="segment", Live="live", Text="text")

# ── 1. Constants ──────────────────────────────────────────────────────────────────────────────────────────────────────

VERSION = "0.1.0"
JSON_VERSION = 1  # of events and of `status --json`; it changes when a field changes its meaning

POLL_INTERVAL = 30  # seconds between full re-reads of the database; changes and exits are noticed without it
MAX_RESTARTS = 10  # restarts of one stream in a row without a newly completed task

MAX_WORKERS = 5  # workers alive at once
FINISH_GRACE = 120  # seconds that a worker has to commit and exit once its tasks are complete, or its result is printed
SHELL_GRACE = 10  # seconds that it has where background shells alone keep it from exiting
STALL_TIMEOUT = 60  # minutes without a sign of life after which a worker is restarted
STOP_TIMEOUT = 10  # seconds between SIGTERM and SIGKILL
NEVER = float("inf")  # seconds
LINGER = 0.1  # seconds that the processes of a worker have to go with it
KILL_INTERVAL = 1  # seconds between two SIGKILL of a tree that does not go
KILL_TIMEOUT = 5  # seconds after SIGKILL until `stop` reports survivors
BACKOFF_FIRST = 1.0  # seconds before the first restart; doubles with each one that follows
BACKOFF_MAX = 60.0  # seconds, the longest pause before a restart
BACKOFF_JITTER = 0.1  # share by which a pause is spread, so that workers do not restart in step
LIMIT_PAUSE = 900.0  # seconds without a start after a usage limit whose end is unknown; doubles up to LIMIT_PAUSE_MAX
LIMIT_PAUSE_MAX = 3600.0  # seconds
LIMIT_RESET_MAX = 8 * 86400.0  # seconds, the longest time to a reset that is believed: a weekly limit's, and a day
LIMIT_RETRY = 15.0  # seconds, the least pause after a reset that was none; doubles up to LIMIT_PAUSE
PAID_OUTAGES = 5  # workers that the API left after paid work, until a task is completed; of more each costs a restart
LOGIN_TRIES = 3  # tries with a login that was good in this run: it may be again
LOGIN_PAUSE = 60.0  # seconds before each of them
SERVER_TRIES = 1  # tries after the one that lacked its Task Copilot server
COMMIT_CREDITS = 3  # workers in a row whose new commits count as progress, until a task is completed
PROGRAM_TRIES = 7  # tries while claude can't be executed, after the pauses of restarts: two minutes, an update is done
LIMIT_MARGIN = 1.0  # seconds added to the reset time that a worker reported
WORKING_WITHIN = 60  # seconds since the last sign of life in which a worker is shown as working
SILENT_AFTER = 900  # seconds without a sign of life until a worker is shown as silent, where nothing ends it for that
CPU_INTERVAL = 15  # seconds between two looks at the CPU time and the memory of the workers' trees
CPU_IDLE = 0.1  # share of one core below which a worker's tree counts as idle; a claude that waits was seen to use 0.03
BUDGET_LEAST = 0.01  # US dollars, the least that a worker is started with
NOTIFICATIONS = 16  # commands of --notify that run at once
NOTIFICATIONS_QUEUED = 100  # those that wait for their turn; of more, the oldest are dropped
NOTIFICATION_TIMEOUT = 60  # seconds until such a command is killed
NOTIFICATION_LENGTH = 4000  # characters of a message; an argument or variable of a process has its limit
TROUBLE_CALM = 5.0  # seconds without another refusal of the system after which a trouble is over
ADVICE_TIMEOUT = 1.0  # seconds for a question to git that serves a warning or a display alone; for all of them, twice
GIT_TIMEOUT = 10.0  # seconds for any other while a run waits for it
CHECKOUT_TIMEOUT = 600  # seconds for a git command that writes a whole working tree
SIGN_TIMEOUT = 30  # seconds for the commit of a merge, which what signs it may hold up
SETUP_TIMEOUT = 1800  # seconds for the set-up of a new worktree
PORTS = range(10240, 32760, 10)  # the first of ten that a stream has; the system gives others away, from 32768 on
SLOW_PAUSE = 60.0  # seconds until git is asked again what differs there, where it took too long
SEEN_MOST = 1000  # changes in the project's own folder that are remembered
PORT_BLOCK = 20  # streams whose ports follow one another from where those of a project begin
TICK = 0.45  # seconds between two cheap looks at the database, the marks and adopted workers: each within half a second
BUSY_TIMEOUT = 0.2  # seconds that the orchestrator waits for a locked database, so that Ctrl+C stays prompt
BUSY_PATIENCE = 1.0  # seconds of a locked database after which `start` says that it waits
PATIENT_BUSY_TIMEOUT = 5.0  # seconds that the other commands wait for it
LOCK_RETRIES = 10  # looks at a taken lock, 20 ms apart: `status` holds it for an instant to see whether it is taken
BOARD_INTERVAL = 1.0  # seconds between two pictures of the board, where nothing was done in between
WATCH_INTERVAL = 15  # seconds between two frames of `status --watch`
IDLE_RUNS = 100  # runs without a worker that `timeline` passes over, as a timer may make them
LAST_WORDS = 5  # lines of a failed worker's log in the report
LOG_LINES = 50  # lines that `logs` shows before it follows
FOLLOW_INTERVAL = 0.2  # seconds between two looks at a log that is followed
PATH_LENGTH = 4096  # characters of a path in .mcp.json
ROOT_TIMEOUT = 600.0  # seconds for which a run waits for its project's folder to come back
JOURNAL_MOST = 1 << 20  # bytes of the journal above which it is folded, and that a command reads at either end
EXEC_LOOKS = 200  # looks, some 50 us each, at a process that seems to be in the middle of an exec
NAME_BYTES = 150  # longest file name made from a stream id, in bytes
ITEMS_AT_MOST = 100  # items of a list in a worker's event that are shown
WORDS_LENGTH = 4096  # characters of a text from a worker that are looked at
LINE_BYTES = 512 << 10  # longest line of worker output that is parsed; a longer one is passed over with a word
READ_BYTES = 1 << 16  # size of one read of worker output
BYTES_AT_ONCE = 8 << 20  # bytes of one worker's output in one tick, so that a flood of it can't hold up the loop
UNWRITTEN_LINES = 100_000  # lines that are kept of those that can't be written to one file
LINES_AT_ONCE = 2000  # lines of one worker's output in one tick after which no more is read, for the same reason
BOX_WIDTH = 73  # columns of the box around a title
NARROW = 80  # columns, where nothing says how many there are
REPORT_WIDTH = 100  # columns of the report's lines at most: behind a wider gap nobody finds the numbers
BOARD_LEAST, HEADING_LEAST = 10, 3  # lines up to which the board does without its bar, and a table without headings
BAR_WIDTH, OVERALL_BAR_WIDTH = 15, 40  # cells of a stream's bar, and of the bar over all streams

CLAUDE_TIMEOUT = 20  # seconds for `claude --version`
DISK_LEAST = 1 << 30  # bytes of free disk below which `doctor` warns
PARALLEL_MOST = 5  # parallel streams above which the guide advises to split them
SCHEMA_VERSION = 10  # of Task Copilot's database, the newest that this program was tried with
PACKAGES = {"click": "8.0", "rich": "12.3", "psutil": "5.9"}  # the least versions of what it needs

EXIT_DONE, EXIT_FAILED, EXIT_USAGE, EXIT_RUNNING = 0, 1, 2, 75
EXIT_INCOMPLETE, EXIT_NO_PROJECT = 3, 4  # of `status --check` alone

SERVER = "task-copilot"  # the name of its server in .mcp.json
WORKER_FLAGS = ["--print", "--dangerously-skip-permissions"]
# What would mislead a program below us: the session of a Claude Code around us (seen in the environment of its Bash
# tool), which a worker would take for its own; and a repository that is not the folder's.
REMOVED_VARIABLES = (
    r"CLAUDECODE|CLAUDE_CODE_(ENTRYPOINT|EXECPATH|(SSE|CHILD|MESSAGING)_.*|SESSION_(?!ACCESS_TOKEN|START_).*)"
    r"|CLAUDE_(PID|EFFORT|PROJECT_DIR)|AI_AGENT|TRACE(PARENT|STATE)"
    r"|GIT_(DIR|WORK_TREE|INDEX_FILE|COMMON_DIR|OBJECT_DIRECTORY|NAMESPACE|PREFIX|[A-Z]+_PATHSPECS)"
)
# Without it claude stops a subagent that works for more than ten minutes, and exits with 0.
WORKER_VARIABLES = {"CLAUDE_CODE_PRINT_BG_WAIT_CEILING_MS": "0"}

# What a person has set up for git at his desk must hang no run: hooks, a file system monitor, maintenance.
GIT = ["git", "-c", "core.hooksPath=/dev/null", "-c", "core.fsmonitor=false", "-c", "gc.auto=0"]
GIT += ["-c", "maintenance.auto=false", "-c", "merge.autoStash=false"]
GIT += ["-c", "status.showUntrackedFiles=normal", "-c", "diff.ignoreSubmodules=none"]  # what is hidden could be lost
GIT += ["-c", "submodule.recurse=false"]  # in a new worktree they are not there yet
GIT_VARIABLES = {"GIT_TERMINAL_PROMPT": "0", "GIT_OPTIONAL_LOCKS": "0", "GPG_TTY": "", "LC_ALL": "C"}

# The worker's shell adds its own PID to ORCHESTRATE_RUN and becomes the worker. A process whose ORCHESTRATE_RUN ends
# in its own PID is therefore a worker itself, and one that has inherited it is not, even where every file is lost.
LAUNCHER = 'export ORCHESTRATE_RUN="$ORCHESTRATE_RUN.$$"; exec "$@"'

# A worker with a worktree of its own is this program first, by a Python without packages. It is a text: no update, and
# no worker, can take it away from a run. Killed at any point, it completes what it left: in git's own folder of the
# worktree `orchestrate` says that we have made it, and the branch if we made that too, and `orchestrate-new` stands
# until it is ready; that it is filled, its index says.
PREPARE = """\
import errno, json, os, shutil, subprocess, sys, time

given = json.loads(sys.argv[1])
root, top, folder, branch, start = (given[name] for name in ("root", "top", "folder", "branch", "start"))
HALF = 0o200  # the mode of a file that is half copied


def tell(text, failed="", **more):
    if os.path.exists(given["output"]):
        with open(given["output"], "rb") as file:
            if file.seek(0, os.SEEK_END) and os.pread(file.fileno(), 1, file.tell() - 1) != b"\\n":
                print()  # what was set up has left its last line open
    print(json.dumps({"type": "orchestrator", "text": text, "failed": failed, **more}), flush=True)
    if failed:
        sys.exit(1)


def git(*words, cwd=folder, most=0, text=b""):
    options = {"cwd": cwd, "env": {**os.environ, **given["variables"]}, "input": text, "capture_output": True}
    try:
        done = subprocess.run([*given["git"], *words], timeout=given["timeout"], **options)
    except subprocess.TimeoutExpired:
        tell("git %s took longer than %s s" % (words[0], given["timeout"]), "for now")
    if not 0 <= done.returncode <= most:
        said = os.fsdecode(done.stderr).splitlines() or ["exit code %s" % done.returncode]
        telling = [line for line in said if line.startswith(("fatal: ", "error: "))]
        tell("git %s: %s" % (words[0], (telling or said[-1:])[0]), "git")
    return done


def find(*words, cwd=folder):
    return os.path.join(cwd, os.fsdecode(git("rev-parse", *words, cwd=cwd).stdout)[:-1])


def write(path, text, mode="wb"):
    with open(path, mode) as file:
        file.write(os.fsencode(text))


def stay():
    if os.stat(root).st_ino != given["inode"]:
        raise FileNotFoundError(errno.ENOENT, "another folder stands in the place of " + root)


def make_folders(path, top):  # below a folder that is there, and never that one
    if path != top and not os.path.isdir(path):
        make_folders(os.path.dirname(path), top)
        os.mkdir(path)


def has_branch():
    return not git("rev-parse", "--verify", "--quiet", "refs/heads/" + branch, most=1).returncode


def make():
    link = os.path.join(folder, ".git")
    if given["is_unfilled"] and os.path.exists(link) and os.listdir(folder) == [".git"]:
        os.remove(link)  # git was killed in the middle, and there is nothing in it
    if os.path.lexists(link):
        return
    if os.path.isdir(folder) and os.listdir(folder):
        aside = "%s.lost-%d" % (folder, time.time())
        os.rename(folder, aside)
        tell("What lay in %s, and was no worktree any more, is in %s" % (folder, aside))
    home = os.path.dirname(folder)
    stay()
    os.makedirs(home, exist_ok=True)
    if given["hidden"] and git("check-ignore", "--quiet", folder, cwd=root, most=1).returncode:
        if given["is_common"] and not os.path.lexists(os.path.join(home, ".gitignore")):
            write(os.path.join(home, ".gitignore"), "*\\n")
        else:
            path = find("--git-path", "info/exclude", cwd=root)
            os.makedirs(os.path.dirname(path), exist_ok=True)
            write(path, "\\n%s\\n" % given["hidden"], "ab")
    # Detached, since a branch is made with the files: five at once would wait for each other's lock of the settings.
    # Forced, since a worktree that is gone may stand registered here.
    words = ("--quiet", "--detach", "--no-checkout", "--force", "--force")
    git("worktree", "add", *words, folder, start, cwd=root)
    state = find("--absolute-git-dir")
    write(os.path.join(state, "orchestrate-new"), "")
    write(os.path.join(state, "orchestrate"), "" if has_branch() else branch)


def fill(state):
    new, index = os.path.join(state, "orchestrate-new"), os.path.join(state, "index")
    if os.path.exists(index + ".lock") and os.path.exists(os.path.join(state, "orchestrate")):
        os.remove(index + ".lock")  # no other process of the stream lives, so it is a killed one's
    by_force = [] if os.path.exists(index) else ["--force"]
    is_detached = git("symbolic-ref", "--quiet", "HEAD", most=1).returncode
    if os.path.exists(new) and given["forward"] and (by_force or is_detached):
        words = [branch] if has_branch() else ["--no-track", "-b", branch, start]
        # That no other worktree has the branch was seen before: git counts those that are gone.
        git("checkout", "--quiet", *by_force, "--ignore-other-worktrees", *words, "--")
        if given["lacking"]:  # else git asks their program about each file that is as young as its index
            time.sleep(1.1)
            git("update-index", "--refresh", "--force-write-index", most=1)
    elif by_force:
        git("reset", "--quiet")
    if given["forward"]:  # not where that would lose something
        git("merge", "--quiet", "--ff-only", "--no-overwrite-ignore", given["forward"], most=128)


def include():
    words = ("ls-files", "-z", "--others", "--ignored", "--exclude-per-directory=.worktreeinclude")
    found = git(*words, cwd=top).stdout  # also what git does not ignore
    names = git("check-ignore", "-z", "--stdin", cwd=top, most=1, text=found).stdout if found else b""
    for name in map(os.fsdecode, names.split(b"\\0")[:-1]):
        is_own = any(own in "/%s/" % name for own in ("/.copilot/", "/.claude/orchestrator/", "/.claude/worktrees/"))
        source, target = os.path.join(top, name), os.path.join(folder, name)
        stay()
        home = os.path.realpath(os.path.dirname(target))
        is_outside = os.path.relpath(home, folder).split(os.sep)[0] == os.pardir  # by a link of the branch
        is_there = os.path.lexists(target) and os.lstat(target).st_mode & 0o777 != HALF
        if is_own or is_outside or is_there or name.endswith("/"):
            continue
        try:
            make_folders(home, folder)
            if os.path.islink(source):
                os.symlink(os.readlink(source), target)
                continue
            with open(source, "rb") as there, open(os.open(target, os.O_WRONLY | os.O_CREAT, HALF), "wb") as here:
                here.truncate()
                shutil.copyfileobj(there, here, 1 << 20)
            shutil.copystat(source, target)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT) or not os.path.lexists(os.path.join(folder, ".git")):
                raise
            tell("%s is not copied: %s" % (name, error.strerror))


def set_up(command, seconds):
    tell("Set-up: " + command, begins=True)
    begin = time.monotonic()
    child = subprocess.Popen(["/bin/sh", "-c", command], cwd=folder, stdin=subprocess.DEVNULL)
    try:
        code = child.wait(seconds)
    except subprocess.TimeoutExpired:
        tell("the set-up took longer than %s s" % seconds, "set-up")
    if code:
        tell("the set-up failed with exit code %s" % code, "set-up")
    tell("Set-up done in %.0fs" % (time.monotonic() - begin))


try:
    make()
    state = find("--absolute-git-dir")
    fill(state)
    new = os.path.join(state, "orchestrate-new")
    if os.path.exists(new):
        if given["include"]:
            include()
        if given["setup"]:
            set_up(given["setup"], given["setup_timeout"])
        os.remove(new)
    stay()
    make_folders(given["place"], folder)
    os.chdir(given["place"])
    os.environ["PWD"] = given["place"]
    os.lstat(os.path.join(folder, ".git"))  # else it would work in the repository around it
except OSError as error:
    is_lost = isinstance(error, FileNotFoundError)  # what was there before: somebody has taken it away
    tell("the worktree can't be made ready: %s" % error, "for now" if is_lost else "git")
os.execv("/bin/sh", ["/bin/sh", "-c", 'exec "$@"', "orchestrate", *sys.argv[2:]])
"""

# `check-streams` and `watch-status`, which differ in what they show and in how they ask for it.
WRAPPER = """\
#!/bin/sh
# {purpose}, by the status renderer of the orchestrate.py that lies beside this script.
script=$0
while [ -L "$script" ]; do
    target=$(readlink "$script")
    case $target in
        /*) script=$target ;;
        *) script=$(dirname "$script")/$target ;;
    esac
done
python=''
[ -x "$python" ] && PYTHON=${PYTHON:-$python}
# Imported, since Python keeps the bytecode of what it imports: compiling the file takes as long as all else.
run='import sys; sys.path[0] = sys.argv.pop(1); import orchestrate; orchestrate.run_script()'
exec "${PYTHON:-python3}" -c "$run" "$(dirname "$script")" status {option} "$@"
"""
WRAPPERS = {
    "check-streams": ("Show all streams once", "--dashboard"),
    "watch-status": ("Show all streams live: watch-status [SECONDS]", "--watch"),
}

# What `generate` says at the first time: the words of the guide.
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

SLASH_COMMAND = """\
---
description: Set up headless orchestration in this project, or show how its streams stand
argument-hint: generate | status
---

Headless orchestration of this project's Task Copilot streams. What is asked for: $ARGUMENTS

Run `orchestrate.py` with `python3`; where that lacks packages, the error names the command that installs them.

## generate

Call `stream_list`. Without streams, stop: @agent-ta must first give each task `streamId`, `streamName` and
`streamPhase` (foundation, parallel or integration) in its metadata. Then run these, and show all that they print:
`python3 .claude/orchestrator/orchestrate.py generate`,
`python3 .claude/orchestrator/orchestrate.py doctor` (for each line that is not in order, name its remedy), and
`python3 .claude/orchestrator/orchestrate.py start --dry-run`. Do not start it: the user does that, in a terminal of
their own.

## status

Run `python3 .claude/orchestrator/orchestrate.py status` and show it. Name each stream that is blocked, failed or
stopped, with its reason; for a failed one also the end of
`python3 .claude/orchestrator/orchestrate.py logs STREAM --no-follow`.

## Anything else, or nothing

Say what the two words above do.
"""

WORKER_PROMPT = """\
You are a worker agent in the Claude Copilot orchestration system.

## Your Assignment
- Stream: {stream.id}
- Stream ID: {stream.stream_id}
- Phase: {stream.phase} ({stream.name})

## Instructions
1. Run /continue {stream.stream_id} to load your assigned stream context
2. Work through all pending tasks for this stream
3. Use @agent-me for implementation tasks
4. Update task status as you complete work (task_update)
5. Commit changes frequently with descriptive messages
6. When all tasks complete, report back with a summary

## Important
- Stay focused on {stream.id} tasks only
- Do not work on other streams
- Commit after each significant change
- If blocked, update task status to blocked with reason
- When complete, all tasks should be marked completed

Begin by running: /continue {stream.stream_id}
"""

# What every worker is told beside that.
WORKER_RULES = """
## While you work
- What you leave running (a server, a watcher) is ended with you. A subagent is waited for, and wakes you at its end
- Other streams may be at work beside you: what is not yours is theirs
- Never run git clean -x, never git stash: they take what others need
"""

# What git ignores at the top of a project and nobody misses in a worktree: it is made by what runs there.
DROPPINGS = (
    r"__pycache__/|\..*cache/?|.*\.(log|pyc|tmp|swp|egg-info/?)|\.coverage.*|(dist|build|out|target|coverage|logs?|tmp)/"
    r"|\.(DS_Store|idea/|vscode/|next/|nuxt/|git/|claude/|copilot/|archive/|worktreeinclude|hypothesis/|tox/|nox/)"
)

# ── 2. Model ──────────────────────────────────────────────────────────────────────────────────────────────────────────

Event = Dict[str, Any]

PROGRAM = ["python", "orchestrate.py"]  # how this program was called: `main` says it
PLACE: list[str] = []  # the options for the project that it was given


def hint(*words: str, names: Sequence[str] = ()) -> str:
    """Return a command for these streams as a line that can be pasted, there where the program was called."""
    end = ["--"] if any(name.startswith("-") for name in names) else []
    return visible(shlex.join([*PROGRAM, *PLACE, *words, *end, *names]))


# Control characters, and the marks that turn the direction of text: shown as symbols, never obeyed.
_CONTROL = {code: 0x2400 + code for code in range(32)}
_CONTROL.update({127: 0x2421})
_CONTROL.update(dict.fromkeys([*range(128, 160), *range(8234, 8239), *range(8294, 8298)], "�"))


class OrchestrateError(click.ClickException):
    """An error for people: what went wrong, and on the next line what to do about it."""

    def __init__(self, message: str, remedy: str, exit_code: int = EXIT_USAGE) -> None:
        super().__init__(message)
        self.remedy = remedy
        self.exit_code = exit_code

    def show(self, file: IO[Any] | None = None) -> None:
        lines = f"[ERROR] {self.message}\n{self.remedy}".split("\n")
        click.echo("\n".join(map(visible, lines)), file=file, err=True)


def visible(text: str) -> str:
    """Return one line of text from outside with its control characters made visible."""
    return text if text.isprintable() else text.translate(_CONTROL)


def format_json(value: object, indent: int | None = None) -> str:
    """Return JSON without a control character that a terminal obeys; json escapes those below 32 alone."""
    text = json.dumps(value, indent=indent, ensure_ascii=False)
    return re.sub("[\x7f-\x9f\u202a-\u202e\u2066-\u2069]", lambda match: f"\\u{ord(match[0]):04x}", text)


def natural_key(text: str) -> tuple[str, str]:
    """Return a sort key that puts Stream-2 before Stream-10: each number stands behind its count of digits."""
    return re.sub("0*([0-9]+)", lambda number: f"{len(number[1]):06}{number[1]}", text), text


def read_time(text: str) -> float:
    """Return a time in ISO 8601 as seconds since the epoch. Raises ValueError."""
    return datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp()


def format_time(wall: float) -> str:
    return datetime.fromtimestamp(wall, timezone.utc).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def hint_again(words: str) -> str:
    """Return the command that goes on with a run which was started with these words: its options count again."""
    return visible(f"{shlex.join([*PROGRAM, *PLACE])} {words}") if words else hint("start")


@functools.lru_cache(maxsize=16)
def format_stamp(wall: int) -> str:
    """Return a time as a line of a log begins with it: local, with its offset."""
    return datetime.fromtimestamp(wall).astimezone().isoformat(" ", "seconds")


_STAMP = re.compile(r"(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d[+-]\d\d:\d\d)(?:  ?|$)")


def split_stamp(line: str) -> tuple[str, str]:
    """Return the time that a line of a log begins with, and the rest; the time is empty where it has none."""
    stamp = _STAMP.match(line)
    return (stamp[1], line[stamp.end() :]) if stamp else ("", line)


def stamp_lines(wall: float, lines: Iterable[str]) -> list[str]:
    return [f"{format_stamp(int(wall))}  {line}".rstrip() for line in lines]


def shorten(text: str, length: int) -> str:
    """Return a text as one line, cut between two words where it is longer; textwrap takes ten times as long."""
    line = " ".join(text.split())
    return line if len(line) <= length else f"{line[: length - 1].rpartition(' ')[0] or line[: length - 2]} …"


def format_duration(seconds: float) -> str:
    """Return a duration as people say it: 4s, 1m 12s, 2h 03m."""
    minutes, rest = divmod(int(max(seconds, 0)), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}h {minutes:02}m"
    return f"{minutes}m {rest:02}s" if minutes else f"{rest}s"


def format_count(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def format_names(names: Sequence[str], most: int = 3) -> str:
    shown = ", ".join(visible(name) for name in names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"


class Phase(enum.Enum):
    FOUNDATION = "foundation"
    PARALLEL = "parallel"
    INTEGRATION = "integration"

    @property
    def rank(self) -> int:
        return list(Phase).index(self)


class StreamState(enum.Enum):
    """What a stream is doing; the value is what people read."""

    COMPLETE = "Complete"
    WORKING = "Working"
    RUNNING = "Running"
    SILENT = "Silent"
    FINISHING = "Finishing"
    STOPPING = "Stopping"
    RESTARTING = "Restarting"
    PAUSED = "Paused"
    QUEUED = "Queued"
    WAITING = "Waiting"
    BLOCKED = "Blocked"
    STOPPED = "Stopped"
    FAILED = "Failed"
    IDLE = "Not running"

    @property
    def is_running(self) -> bool:
        """Whether a worker lives, and nothing is to be done about it."""
        return self in (StreamState.WORKING, StreamState.RUNNING, StreamState.SILENT)


class StopReason(enum.Enum):
    USER = "by the user"
    VANISHED = "its stream is no longer in the database"
    GRACE = "it was done, and did not exit by itself"
    STALLED = "it gave no sign of life"
    FOLDER = "the folder that it worked in was removed"
    TIMEOUT = "it ran for longer than --worker-timeout"
    LEFTOVERS = "the worker ended and left them running"
    EXIT = "the orchestrator ends"


class VerdictKind(enum.Enum):
    COMPLETE = "complete"
    BLOCKED = "blocked"
    STOPPED = "stopped"
    VANISHED = "vanished"
    PAUSED = "paused"
    LIMITED = "limited"
    FAILED = "failed"
    RESTART = "restart"


class Cause(enum.Enum):
    """Why a worker ended with open tasks, as far as it matters for what follows."""

    LIMIT = "the usage limit was hit"
    MODEL_LIMIT = "a subagent hit the limit of its model"
    OUTAGE = "the API did not answer"
    LOGIN = "it was not logged in"
    PROGRAM = "claude could not be executed"
    BUDGET = "its budget is spent"
    SERVER = "its Task Copilot server failed to start"
    FINAL = "another try can't go better"
    OTHER = "anything else"


class Task(NamedTuple):
    """A task that matters by its name: one that is in progress or blocked."""

    id: str
    title: str
    status: str
    reason: str


class Stream(NamedTuple):
    """A stream as the database has it. `problem` says why it can't be run, where it can't."""

    id: str
    name: str
    phase: Phase = Phase.PARALLEL
    dependencies: tuple[str, ...] = ()
    pending: int = 0
    in_progress: int = 0
    blocked: int = 0
    completed: int = 0
    cancelled: int = 0
    named_tasks: tuple[Task, ...] = ()
    changed_at: str = ""
    problem: str = ""
    worktree_path: str = ""
    branch_name: str = ""

    @property
    def total(self) -> int:
        return self.pending + self.in_progress + self.blocked + self.completed

    @property
    def open(self) -> int:
        return self.total - self.completed

    @property
    def is_complete(self) -> bool:
        return self.completed >= self.total

    @property
    def is_blocked(self) -> bool:
        return 0 < self.blocked == self.open

    @property
    def percent(self) -> int:
        """Completed tasks in percent, rounded down, so that 100 means all of them."""
        return 100 if self.is_complete else 100 * self.completed // self.total

    @property
    def block(self) -> str:
        """Each reason for which tasks are blocked, with the tasks."""
        tasks_of: dict[str, list[str]] = {}
        for task in self.named_tasks:
            if task.status == "blocked":
                tasks_of.setdefault(task.reason or "no reason given", []).append(task.id)
        return "; ".join(f"{reason} ({format_names(tasks)})" for reason, tasks in tasks_of.items())

    @property
    def answer(self) -> str:
        """How a person unblocks it, as a line that can be pasted in the project's folder."""
        tasks = [task.id for task in self.named_tasks if task.status == "blocked"]
        what = ", ".join(tasks) if len(tasks) <= 20 else f"each blocked task of stream {self.id}"
        return f"claude {shlex.quote(f'task_update {what}: status pending, notes: YOUR ANSWER')}"


class Backlog(NamedTuple):
    """One read of the database: the streams in order, and what was odd about the rows."""

    streams: tuple[Stream, ...] = ()
    warnings: tuple[str, ...] = ()
    unassigned: int = 0  # open tasks that belong to no stream


class Ending(NamedTuple):
    """How a worker ended: what the system and the worker's own events say of it.

    `code` is negative for a signal, as in subprocess, and None where nobody saw it. `words` are the worker's own last
    ones: of the result event where there was one, else the last line. `cause` is known before of one that never ran.
    `kind` is that of the error in the last message of the main conversation, `api_error` the result's own, finer one.
    `limit` is the last usage limit that a request was refused for, and `reset_in` in how many seconds it ends, where
    that is known; `is_rejected` says that it was no subagent's, as far as is known, and that nothing was allowed since.
    `failed_servers` are the MCP servers that it lacked, `refused` the tools that it was not allowed to use, `remarks`
    what else may explain why its work is not done. Cost is in US dollars.
    Source: observations of Claude Code 2.1.49 to 2.1.332 (FACTS.md).
    """

    code: int | None
    words: str = ""
    cause: Cause | None = None
    has_result: bool = False
    is_error: bool = False
    subtype: str = ""
    api_status: int = 0
    api_error: str = ""
    kind: str = ""
    limit: str = ""
    is_rejected: bool = False
    reset_in: float | None = None
    failed_servers: tuple[str, ...] = ()
    refused: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()
    turns: int = 0
    cost: float = 0.0

    @property
    def has_failed(self) -> bool:
        return self.is_error if self.has_result else self.code != 0

    @property
    def summary(self) -> str:
        parts = [self.words] if self.words and (self.is_error or self.code != 0) else []
        behind = ": " if parts else ", "
        parts += [*self.remarks]
        parts += [f"it was not allowed to use {format_names(self.refused)}"] if self.refused else []
        parts += [f"a subagent hit the {self.limit} limit"] if self.limit and not self.has_failed else []
        parts += [f"the MCP server {name} failed to start" for name in self.failed_servers]
        words = shorten(", ".join([*(part.rstrip(".") for part in parts[:-1]), *parts[-1:]]), 500)
        if self.code is None:
            return words or "ended unseen"
        if self.code < 0:
            name = next((s.name for s in signal.Signals if s == -self.code), f"signal {-self.code}")
            return f"killed by {name}"
        return f"exit code {self.code}{behind if words else ''}{words}"


class Worker(NamedTuple):
    """A worker that was started or found. `leftovers` are processes of its tree that outlived it.

    `active_at` is when it last gave a sign of life, in monotonic seconds, 0 where nobody knows; `cost` is what it has
    reported so far, in US dollars; `notice` is what it said of a usage limit that comes near, `overage` of one beyond
    which it works on and every token is paid for; `has_answer` says that the API has answered it; `activity` is the
    last that it has said or done. `done_at` is when it printed its last result, in monotonic seconds, 0 while it works;
    `background` are the kinds of what its events list as running beside it, since `background_at`. `cpu` is the share
    of a core that its tree has used of late, `memory` what that holds, in bytes; None and 0 where nobody has looked.
    `folder` and `branch` say where it works, `head` is the commit that it began at, empty where others commit there
    too, and `commits` counts what it has made of them. `port` is the first of its ports; `warnings` are what a person
    should know about that place. `is_astray` says that somebody has removed it under the worker.
    """

    stream_id: str
    pid: int
    run: str = ""
    ending: Ending | None = None
    leftovers: tuple[int, ...] = ()
    active_at: float = 0.0
    cost: float = 0.0
    notice: str = ""
    overage: str = ""
    has_answer: bool = False
    activity: str = ""
    done_at: float = 0.0
    background: frozenset[str] = frozenset()
    background_at: float = 0.0
    cpu: float | None = None
    memory: int = 0
    folder: str = ""
    branch: str = ""
    head: str = ""
    port: int = 0
    commits: int = 0
    is_astray: bool = False
    warnings: tuple[str, ...] = ()


class Branch(NamedTuple):
    """A branch of a stream, seen from the project's HEAD.

    `ahead` counts its commits that HEAD lacks, `files` what they change; `nested` are repositories that they add, whose
    files are in no commit. `worktree` is the folder that it is checked out in, empty where there is none, `uncommitted`
    are the files there that no commit has. `instead_of` is the stream's own branch, where its worktree was left on
    another one, or on a commit. `unknown` says why git could not tell the most of this.
    """

    name: str
    ref: str
    stream_id: str = ""
    worktree: str = ""
    uncommitted: tuple[str, ...] = ()
    instead_of: str = ""
    ahead: int = 0
    files: int = 0
    nested: tuple[str, ...] = ()
    unknown: str = ""

    @property
    def summary(self) -> str:
        if self.unknown:
            return f"what it holds is not known: {self.unknown}"
        work = f"{format_count(self.ahead, 'commit')} to merge, {format_count(self.files, 'file')} changed"
        words = [work if self.ahead else "nothing to merge"]
        words += [f"of repositories in it no file: {format_names(self.nested)}"] if self.nested else []
        words += [f"{format_count(len(self.uncommitted), 'file')} uncommitted"] if self.uncommitted else []
        words += [f"used instead of {visible(self.instead_of)}"] if self.instead_of else []
        return ", ".join(words)


class Verdict(NamedTuple):
    """What follows from a worker's end: the kind, the reason in words, the cause, the number of restarts and the pause.

    `tries` are those in a row that the same cause gave for nothing; 0 where this is none of them.
    """

    kind: VerdictKind
    reason: str
    restarts: int = 0
    max_restarts: int = 0
    delay: float = 0.0
    cause: Cause = Cause.OTHER
    tries: int = 0


class Limits(NamedTuple):
    """What one run may do. Times in seconds, the budget in US dollars, 0 for none of these.

    `streams` None means every stream, `phase` None every phase.
    """

    max_restarts: int = MAX_RESTARTS
    max_workers: int = MAX_WORKERS
    finish_grace: float = FINISH_GRACE
    stop_timeout: float = STOP_TIMEOUT
    exit_on_blocked: bool = False
    stall_timeout: float = 0.0
    worker_timeout: float = 0.0
    budget: float = 0.0
    streams: frozenset[str] | None = None
    phase: Phase | None = None
    is_closing: bool = False

    @property
    def silence(self) -> float:
        """The seconds without a sign of life after which that is said."""
        return self.stall_timeout / 4 or SILENT_AFTER

    def selects(self, stream: Stream) -> bool:
        return (self.streams is None or stream.id in self.streams) and self.phase in (None, stream.phase)


class Record(NamedTuple):
    """What the journal says of one stream. Times in monotonic seconds.

    `best` is the most tasks that were ever seen completed, `fewest` the fewest open: a task that is reopened and
    completed again is no progress, and one that is completed and archived is. `is_starting` says that a worker was
    about to be started, and nobody knows whether it was. `tries` are the workers in a row that ended by `cause` and
    spent no restart; `paid_outages` those since the last completed task that the API left after paid work, `credited`
    those whose new commits counted as progress. `commits` are all that its workers made in this run, `head` is where
    the last one began. `number` is the stream's own, by which it has its ports. Until `pause_ends`, in seconds since
    the epoch, the limit of its subagents' model is hit. `stopped_at` says what the stop mark says, which can get lost.
    `ended` are the attempts of this run that are over, which took `worked` seconds and `spent` US dollars.
    """

    attempts: int = 0
    restarts: int = 0
    cause: Cause = Cause.OTHER
    tries: int = 0
    paid_outages: int = 0
    credited: int = 0
    commits: int = 0
    pause_ends: float = 0.0
    pause_reason: str = ""
    best: int = 0
    fewest: int | None = None
    pid: int = 0
    run: str = ""
    started_at: float = 0.0
    raw_start: int = 0
    budget: float = 0.0
    folder: str = ""
    head: str = ""
    number: int = -1
    is_starting: bool = False
    retry_at: float = 0.0
    failure: str = ""
    last_ending: str = ""
    requested: bool = False
    stopping: StopReason | None = None
    stopping_at: float = 0.0
    killed_at: float = 0.0
    state: StreamState | None = None
    reason: str = ""
    since: float = 0.0
    stopped_at: float = 0.0
    ended: int = 0
    worked: float = 0.0
    spent: float = 0.0

    @property
    def is_stopped(self) -> bool:
        return self.stopped_at > 0

    def is_outdone(self, completed: int, open_tasks: int | None) -> bool:
        """Whether a task was completed since the last look; None where nobody knows how many are open."""
        is_fewer = self.fewest is not None and open_tasks is not None and open_tasks < self.fewest
        return completed > self.best or is_fewer

    def after_look(self, completed: int, open_tasks: int | None, commits: int = 0, takes_credit: bool = True) -> Record:
        """Return it after a look at the tasks, and a worker's commits: what counts in a row begins anew with progress.

        A completed task is progress. So are new commits without one, for some workers in a row.
        """
        counts = [count for count in (self.fewest, open_tasks) if count is not None]
        seen = self._replace(
            best=max(self.best, completed), fewest=min(counts, default=None), commits=self.commits + commits
        )
        if self.is_outdone(completed, open_tasks):
            return seen._replace(restarts=0, tries=0, paid_outages=0, credited=0)
        if commits and takes_credit and self.credited < COMMIT_CREDITS:
            return seen._replace(restarts=0, paid_outages=0, credited=self.credited + 1)
        return seen


class History(NamedTuple):
    """The fold of the journal: what is known beyond the database and the process table.

    No worker starts before `pause_ends`, in seconds since the epoch: a reset is a time of the wall clock. `paused_at`
    is in monotonic seconds; `limit_hits` are pauses in a row, however many workers hit the limit. `has_executed` and
    `has_answer` say that a worker of this run could be executed, and that the API has answered one. `spent` is in US
    dollars, of the workers that have ended. `said` are the warnings of this run. `seen` is what differed from HEAD in
    the project's own folder when somebody last looked, None where nobody could; `strays` are what was changed there
    while parallel streams worked in their worktrees, with the streams that may have done it.

    The last run was begun in the folder `project`, which was `root` (see Project.identity), with this `database`, by
    the `orchestrator` with this PID on `host` in the PID namespace `system`; `words` were on its command line.
    `archive` has the earlier part of it.
    """

    records: Mapping[str, Record] = {}
    limits: Limits = Limits()
    run_started_at: float = 0.0
    waiting: str = ""
    outcome: str = ""
    paused_at: float = 0.0
    pause_ends: float = 0.0
    pause_reason: str = ""
    limit_hits: int = 0
    has_executed: bool = False
    has_answer: bool = False
    spent: float = 0.0
    said: frozenset[str] = frozenset()
    seen: Mapping[str, Any] | None = None
    strays: Mapping[str, Sequence[str]] = {}
    project: str = ""
    root: str = ""
    database: str = ""
    orchestrator: int = 0
    host: str = ""
    system: str = ""
    words: str = ""
    archive: str = ""

    def record(self, stream_id: str) -> Record:
        return self.records.get(stream_id, _NO_RECORD)

    def after(self, event: Event) -> History:
        """Return the history with one more event. Raises KeyError, TypeError or ValueError where it is none of ours."""
        kind = event["event"]
        if kind in _RECORD_CHANGES:
            stream_id = str(event["stream"])
            before = self.record(stream_id)
            history = self._replace(records={**self.records, stream_id: _change_record(before, event)})
            if kind == "worker_ended":
                return _after_end(history, before, event)
            return history._replace(waiting="") if kind == "worker_started" else history
        if kind == "run_started":
            return _begin_run(self, event)
        if kind == "journal_folded":
            return read_known(event["known"])
        if kind == "run_paused":
            is_new = read_time(event["time"]) >= self.pause_ends
            return self._replace(
                paused_at=float(event["clock"]) if is_new else self.paused_at,
                pause_ends=read_time(event["until"]),
                pause_reason=str(event["reason"]),
                limit_hits=self.limit_hits + is_new,
            )
        if kind == "run_waiting":
            return self._replace(waiting=str(event["reason"]))
        if kind in ("warning", "overage"):
            return self._replace(said=self.said | {str(event["about" if "about" in event else _TELLS[kind]])})
        if kind == "root_seen":
            strays = {str(name): tuple(map(str, event["streams"])) for name in event["files"]}
            return self._replace(seen=dict(event["seen"]), strays={**self.strays, **strays})
        return self._replace(outcome=str(event["reason"]), waiting="") if kind == "run_ended" else self

    def at(self, root: str) -> History:
        """Return it for a project that has this path by now: what lies in its folder has moved with it."""
        before = len(self.project)
        moved = {
            i: record._replace(folder=f"{root}{record.folder[before:]}")
            for i, record in self.records.items()
            if self.project not in ("", root) and f"{record.folder}/".startswith(f"{self.project}/")
        }
        return self._replace(project=root, records={**self.records, **moved})


_NO_RECORD = Record()
_NO_HISTORY = History()
_TELLS = {"warning": "message", "overage": "reason"}  # what an event says that is said once in a run

# What an event changes in the record of its stream: first the fields that take over the event's fact of the same name
# (`pid`) or of another one (`stopping=why`: the record's `stopping` is the event's `why`), then those that it sets.
_RECORD_CHANGES: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "worker_starting": ("started_at=clock raw_start budget", {"is_starting": True, "pid": 0, "run": ""}),
    "worker_started": (
        "attempts=attempt pid run started_at=clock raw_start budget folder head number",
        {"is_starting": False, "retry_at": 0.0, "stopping": None},
    ),
    "worker_adopted": ("pid run", {"is_starting": False}),
    "worker_ended": (
        "restarts cause tries last_ending=ending ended worked spent",
        {"stopping": None, "killed_at": 0.0, "pid": 0, "is_starting": False},
    ),
    "worker_stopping": ("stopping=why stopping_at=clock", {}),
    "worker_killed": ("killed_at=clock", {}),
    "state": ("state reason since=clock", {}),
    "stop_requested": ("stopped_at=clock", {}),
    "stop_taken_back": ("", {"stopped_at": 0.0}),
    "start_requested": (
        "",
        {
            "requested": True,
            "stopped_at": 0.0,
            "failure": "",
            "restarts": 0,
            "tries": 0,
            "paid_outages": 0,
            "credited": 0,
            "retry_at": 0.0,
            "pause_ends": 0.0,
        },
    ),
}
# The journal of an older version may lack them.
_LATER_FACTS = ("budget", "folder", "head", "number", "cause", "tries", "ended", "worked", "spent")
_BY_NAME: Mapping[str, Any] = {"stopping": StopReason, "state": StreamState, "cause": Cause}


def _read_fact(field: str, value: Any) -> Any:
    """Return a record's fact as an event has it. Raises KeyError, TypeError, ValueError."""
    if field in _BY_NAME:
        return _BY_NAME[field][value]
    return int(value) if field == "fewest" else type(getattr(_NO_RECORD, field))(value)


@functools.lru_cache(maxsize=None)
def _list_facts(kind: str) -> list[tuple[str, str]]:
    """Return the fields of a record that an event of this kind changes, each with the name of the event's fact."""
    named = (words.partition("=") for words in _RECORD_CHANGES[kind][0].split())
    return [(field, fact or field) for field, _, fact in named]


def _change_record(record: Record, event: Event) -> Record:
    changes = dict(_RECORD_CHANGES[event["event"]][1])
    for field, fact in _list_facts(event["event"]):
        is_lacking = fact in _LATER_FACTS and fact not in event
        changes[field] = getattr(_NO_RECORD, field) if is_lacking else _read_fact(field, event[fact])
    if "completed" in event:
        open_tasks = event.get("open")
        open_tasks = None if open_tasks is None else int(open_tasks)
        is_restart = event.get("verdict") == VerdictKind.RESTART.value  # what costs no restart needs no credit
        record = record.after_look(int(event["completed"]), open_tasks, int(event.get("commits", 0)), is_restart)
    if event["event"] == "worker_adopted":
        # Seen running for as long as the journal or, where it knows nothing, this orchestrator can tell.
        is_known = record.is_starting or record.pid == changes["pid"]
        changes["started_at"] = record.started_at if is_known else float(event["clock"])
        changes["attempts"] = max(record.attempts, 1)
    return record._replace(**changes)


def _after_end(history: History, before: Record, event: Event) -> History:
    """Return what follows for the stream and for the run from a worker's end; `before` is the record as it was."""
    kind, reason, cost = VerdictKind(event["verdict"]), str(event["reason"]), float(event.get("cost", 0))
    record = history.record(event["stream"])
    is_limited = kind is VerdictKind.LIMITED
    record = record._replace(
        attempts=0 if kind is VerdictKind.COMPLETE else record.attempts,
        paid_outages=record.paid_outages + (record.cause is Cause.OUTAGE and cost > 0),
        pause_ends=read_time(event["until"]) if is_limited else 0.0,
        pause_reason=reason if is_limited else "",
        retry_at=float(event["clock"]) + float(event["delay"]) if kind is VerdictKind.RESTART else 0.0,
        failure=reason if kind is VerdictKind.FAILED else "",
    )
    is_free = kind is not VerdictKind.PAUSED and read_time(event["time"]) >= history.pause_ends
    # Text says nothing of answers. But without a login nobody exits with 0, completes a task or has a limit.
    has_answer = bool(event.get("has_answer")) or event.get("exit_code") == 0 or record.cause is Cause.LIMIT
    return history._replace(
        records={**history.records, event["stream"]: record},
        spent=history.spent + cost,
        limit_hits=0 if is_free else history.limit_hits,
        has_executed=history.has_executed or (bool(event.get("pid")) and record.cause is not Cause.PROGRAM),
        has_answer=history.has_answer or has_answer or before.is_outdone(record.best, record.fewest),
    )


def pack(value: Any) -> Any:
    """Return a value of the model as JSON has it; a field of a tuple that has its default is left out."""
    if isinstance(value, enum.Enum):
        return value.value if isinstance(value, Phase) else value.name
    if isinstance(value, frozenset):
        return sorted(value)
    if hasattr(value, "_field_defaults"):
        value = {name: item for name, item in value._asdict().items() if item != value._field_defaults[name]}
    return {key: pack(item) for key, item in value.items()} if isinstance(value, Mapping) else value


def _read_limits(given: Mapping[str, Any]) -> Limits:
    known = {name: given[name] for name in Limits._fields if given.get(name) is not None}
    known.update({"streams": frozenset(known["streams"])} if "streams" in known else {})
    known.update({"phase": Phase(known["phase"])} if "phase" in known else {})
    return Limits(**known)


def read_known(known: Mapping[str, Any]) -> History:
    """Return the history that an event carries: the reverse of `pack`. Raises KeyError, TypeError, ValueError.

    A fact of a stream that is none of ours, as another version may have written it, is passed over.
    """
    given = {name: known[name] for name in History._fields if name in known}
    records: dict[str, Record] = {}
    for stream_id, facts in given.pop("records", {}).items():
        read = {}
        for name in Record._fields:
            with contextlib.suppress(KeyError, TypeError, ValueError):
                read[name] = _read_fact(name, facts[name])
        records[str(stream_id)] = Record(**read)
    limits, said = _read_limits(given.pop("limits", {})), frozenset(map(str, given.pop("said", ())))
    strays = {str(name): tuple(map(str, streams)) for name, streams in given.pop("strays", {}).items()}
    seen = given.pop("seen", None)
    plain = {name: type(getattr(_NO_HISTORY, name))(value) for name, value in given.items()}
    history = History(records, limits, said=said, strays=strays, seen=None if seen is None else dict(seen))
    return history._replace(**plain)


# What stays of a record at a start.
_KEPT = "attempts pid run started_at raw_start budget folder head number is_starting last_ending stopped_at"
_OF_RUN = ("project", "root", "database", "host", "system", "words")


def _begin_run(history: History, event: Event) -> History:
    """A start by a person forgives: restarts, failures and backoff begin anew. What was started stays known.

    A run that did not come to its end goes on, so what it has cost still counts.
    """
    if "known" in event:
        history = read_known(event["known"])
    history = history.at(str(event["project"])) if event.get("project") else history
    limits = _read_limits(event["limits"])
    is_over = bool(history.outcome)
    kept = _KEPT.split()
    kept += [] if is_over else ["commits", "ended", "worked", "spent"]
    records = {}
    for stream_id, record in history.records.items():
        # Who names a stream takes back its own pause too.
        names = kept if stream_id in (limits.streams or ()) else [*kept, "pause_ends", "pause_reason"]
        records[stream_id] = Record(**{name: getattr(record, name) for name in names})
    begun = History(
        records=records,
        limits=limits,
        run_started_at=float(event["clock"]),
        pause_ends=history.pause_ends,
        pause_reason=history.pause_reason,
        has_executed=history.has_executed and not is_over,
        has_answer=history.has_answer and not is_over,
        spent=0.0 if is_over else history.spent,
        said=frozenset() if is_over else history.said,
        seen=None if is_over else history.seen,
        strays={} if is_over else history.strays,
        archive="" if is_over else history.archive,
        orchestrator=int(event.get("pid", 0)),
    )
    facts: dict[str, Any] = {name: str(event.get(name, "")) for name in _OF_RUN}
    return begun._replace(**facts)


def fold_events(history: History, events: Iterable[Event]) -> History:
    """Return the history after these events; one that lacks what its kind needs is passed over."""
    for event in events:
        with contextlib.suppress(KeyError, TypeError, ValueError, AttributeError, OverflowError):
            history = history.after(event)
    return history


class Snapshot(NamedTuple):
    """Everything that a decision or a display is made from.

    `stopped` are the streams that the user stopped, `orchestrator` is the PID of the one that runs (0: none), and
    `database_error` says why the streams are older than they should be. `branches` are read for displays alone.
    `foreign` says who else works on a stream: a worker of another folder. `wall` is when it was taken, in seconds since
    the epoch: by it a pause ends.
    """

    project: str
    streams: tuple[Stream, ...] = ()
    workers: Mapping[str, Worker] = {}
    history: History = History()
    stopped: frozenset[str] = frozenset()
    orchestrator: int = 0
    database_error: str = ""
    warnings: tuple[str, ...] = ()
    branches: tuple[Branch, ...] = ()
    foreign: Mapping[str, str] = {}
    wall: float = 0.0

    @property
    def spent(self) -> float:
        """What the workers of the run have cost, those that still run included, in US dollars."""
        return self.history.spent + sum(worker.cost for worker in self.workers.values())

    @property
    def has_answer(self) -> bool:
        """Whether the API has answered a worker of this run, so that the login was good: it said so, or did a task."""
        done = {s.id for s in self.streams if self.history.record(s.id).is_outdone(s.completed, s.open)}
        return self.history.has_answer or any(w.has_answer or i in done for i, w in self.workers.items())

    @property
    def has_executed(self) -> bool:
        """Whether a worker of this run could be executed: it has ended, has got an answer, or lives for some time."""
        is_seen = any(worker.ending is None and worker.cpu is not None for worker in self.workers.values())
        return self.history.has_executed or self.has_answer or is_seen

    @property
    def pause_left(self) -> float:
        """The seconds for which the whole run is still paused."""
        return max(self.history.pause_ends - self.wall, 0.0)

    def includes(self, stream: Stream, limits: Limits) -> bool:
        """Whether the run is about this stream: selected at its start, or requested since."""
        return limits.selects(stream) or self.history.record(stream.id).requested


class Standing(NamedTuple):
    """Where a stream stands: its state, and why in words. `until` is when that ends by itself, in monotonic seconds."""

    state: StreamState
    reason: str = ""
    until: float = 0.0


# Why a stream stands as Finishing and nothing ends its worker. The journal tells it to whoever looks from outside.
WAITS = "its tasks are complete, it waits for what runs in its background"


class Start(NamedTuple):  # a worker for a stream, with a budget in US dollars; 0 is none
    stream: Stream
    budget: float = 0.0


class Stop(NamedTuple):  # ask a worker and its tree to end, with SIGTERM
    stream_id: str
    why: StopReason


class Kill(NamedTuple):  # end what is left of a worker and its tree, with SIGKILL
    stream_id: str


class Conclude(NamedTuple):  # take note of a worker's end, and of what follows from it
    worker: Worker
    verdict: Verdict


class Wait(NamedTuple):  # say what the whole run waits for, and how to answer: nothing runs and nothing can start
    reason: str
    answers: tuple[str, ...] = ()


class Finish(NamedTuple):  # end the run
    exit_code: int
    reason: str


Action = Union[Start, Stop, Kill, Conclude, Wait, Finish]

# ── 3. Store ──────────────────────────────────────────────────────────────────────────────────────────────────────────


class LostRootError(OSError):
    """The project's folder is not at its place: renamed, removed, not mounted; or another one stands there."""


class Project:
    """A project and the files of its orchestration. `database` is where Task Copilot's lies, once somebody knows."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.database: Path | None = None
        self.anchor = 0  # the inode of an orchestrator's lock: it lies in the folder, whatever that is mounted on
        self.name = root.name or "root"  # the folder's, which is Task Copilot's default for the workspace
        self.folder = root / ".claude" / "orchestrator"
        self.worktrees = root / ".claude" / "worktrees"
        self.prompt = self.folder / "worker-prompt.md"
        self.archive = root / ".archive" / "orchestration"
        self.journal = self.folder / "events.jsonl"
        self.lock = self.folder / "orchestrator.pid"
        self.pids = self.folder / "pids"
        self.logs = self.folder / "logs"
        self.positions = self.logs / ".rendered.json"  # how far the logs are rendered, in bytes by file name

    @functools.cached_property
    def identity(self) -> str:
        """Device and inode of its folder, whatever that is called. Raises OSError."""
        status = self.root.stat()
        return f"{status.st_dev}:{status.st_ino}"

    def is_known_as(self, identity: str, path: str) -> bool:
        """Whether its folder is the one with this identity and path: it may have been renamed, or mounted anew.

        Of a worker that an older version has started the path alone is known. Raises OSError.
        """
        (device, _, inode), (own_device, _, own_inode) = identity.partition(":"), self.identity.partition(":")
        is_there = path == str(self.root)
        return (inode == own_inode and (device == own_device or is_there)) if identity else is_there

    def check_root(self) -> None:
        """Raise LostRootError where its folder is no longer at its place."""
        way = "nothing starts until it is back"
        try:
            found = self.root.stat()
        except OSError as error:
            raise LostRootError(f"the project's folder {self.root} is gone ({error.strerror}); {way}") from error
        is_same = f"{found.st_dev}:{found.st_ino}" == self.identity
        if not is_same and self.is_known_as(f"{found.st_dev}:{found.st_ino}", str(self.root)):
            with contextlib.suppress(OSError):  # the first folder of each disk has the same inode
                is_same = self.lock.stat().st_ino == self.anchor
        if not is_same:
            raise LostRootError(f"another folder stands in the place of the project's, {self.root}; {way}")

    def is_marked(self, home: Path) -> bool:
        """Whether the folder looks like a project; ~/.claude is the CLI's own, and makes the home directory none."""
        marks = (".git", ".mcp.json") if self.root == home else (".git", ".mcp.json", ".claude")
        return any((self.root / mark).exists() for mark in marks)

    def find_port(self, number: int) -> int:
        """Return the first of the ten ports of the stream with this number: no other one of the project has them."""
        begin = zlib.crc32(self.identity.encode()) % (len(PORTS) // PORT_BLOCK) * PORT_BLOCK
        return PORTS[(begin + number) % len(PORTS)]

    def file(self, stream_id: str, suffix: str) -> Path:
        """Return a file of a stream's: `.pid`, `.stop` (the user stopped it), `.log` (for people), `.jsonl` (raw)."""
        return (self.pids if suffix in (".pid", ".stop") else self.logs) / f"{file_name(stream_id)}{suffix}"


@functools.lru_cache(maxsize=4096)
def file_name(stream_id: str) -> str:
    """Return a file name for a stream id: safe, at most NAME_BYTES long, and never that of another id."""
    raw = stream_id.encode("utf-8", "surrogatepass")
    # logs/orchestrator.log is the orchestrator's own; a lone percent sign is no encoding of anything.
    unsafe = rb"[^A-Za-z0-9._-]|^\.|^o(?=rchestrator\Z)"
    encoded = re.sub(unsafe, lambda match: b"%%%02X" % ord(match[0]), raw).decode() or "%"
    return shorten_name(encoded, "~")  # no encoding has a tilde


def shorten_name(name: str, mark: str) -> str:
    """Return a name of at most NAME_BYTES; behind the mark in a shortened one stands a hash of the whole."""
    if len(name) <= NAME_BYTES:
        return name
    end = f"{mark}{hash_bytes('sha256', name.encode())[:16]}"
    return name[: NAME_BYTES - len(end)] + end


def hash_bytes(algorithm: str, content: bytes) -> str:
    import hashlib  # here, because it brings OpenSSL: 4 MB, and 5 ms of each start

    return hashlib.new(algorithm, content).hexdigest()


def find_project(given: Path | None, script: Path, cwd: Path, home: Path) -> Project:
    """Return the project: the given folder, else the script's, else the nearest one above the working directory."""
    if given is not None:
        return Project(given.resolve())
    if script.parent.name == "orchestrator" and script.parent.parent.name == ".claude":
        return Project(script.parent.parent.parent)
    for folder in (cwd, *cwd.parents):
        # ~/.claude is the CLI's own folder and makes no project of the home directory.
        if (folder / ".git").exists() or ((folder / ".claude").is_dir() and folder != home):
            return Project(folder)
    return Project(cwd)


def read_server(project: Project, environ: Mapping[str, str]) -> tuple[list[str], dict[str, str]] | None:
    """Return the command and the variables of the task-copilot server in the project's `.mcp.json`, expanded.

    None where it has none. Raises OrchestrateError.
    """
    path = project.root / ".mcp.json"
    try:
        given = json.loads(path.read_text(encoding="utf-8-sig"))["mcpServers"][SERVER]
        words, variables = [given.get("command"), *list(given.get("args") or ())], dict(given.get("env") or {})
    except (FileNotFoundError, KeyError):
        return None
    except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise OrchestrateError(
            f"{path} can't be read: {error}", "Repair it, or name the database with --db."
        ) from error
    known = {"PROJECT_NAME": project.name, **environ}
    variable = re.compile(r"\$(?:\{(?P<braced>\w+)(?::-(?P<default>[^}]*))?\}|(?P<plain>\w+))")

    def expand(text: str) -> str:
        return variable.sub(lambda m: known.get(m["braced"] or m["plain"]) or m["default"] or "", text)

    texts = {key: variables[key] for key in ("TASK_DB_PATH", "WORKSPACE_ID") if isinstance(variables.get(key), str)}
    if any(len(text) > PATH_LENGTH or "\0" in text for text in texts.values()):
        raise OrchestrateError(f"{path} names no path that could be", "Repair it, or name the database with --db.")
    return [expand(word) for word in words if isinstance(word, str)], {k: expand(text) for k, text in texts.items()}


def find_database(
    project: Project, given: Path | None, environ: Mapping[str, str], home: Path, find_last: Callable[[], str] = str
) -> Path:
    """Return where the project's database lies; where it is nowhere, what `find_last` says that the last run used.

    Raises OrchestrateError where it does not exist, naming every path that was tried.
    """
    if given is not None:
        tried = [Path.cwd() / given]
    else:
        _, server = read_server(project, environ) or ((), {})
        base = environ.get("TASK_DB_PATH") or server.get("TASK_DB_PATH") or str(home / ".claude" / "tasks")
        workspace = environ.get("WORKSPACE_ID") or server.get("WORKSPACE_ID") or project.name
        folder = (project.root / Path(base.replace("~", str(home), 1) if base.startswith("~") else base)).resolve()
        tried = [folder / workspace / "tasks.db"]
        if not tried[0].is_file():
            fallback = hash_bytes("md5", str(project.root).encode())[:12]  # the server's own name for no name
            tried.append(folder / fallback / "tasks.db")
    for path in tried:
        if path.is_file():
            return path
    last = "" if given is not None else find_last()
    if last:
        return Path(last)
    if given is None and not project.is_marked(home):
        raise OrchestrateError(
            f"{project.root} is no project: there is no .git, .claude or .mcp.json",
            "Go to the project's folder with cd, or name it with --project DIR.",
        )
    also = "".join(f"\n        also tried: {path}" for path in tried[1:])
    remedy = "Run /protocol in Claude Code to initialize Task Copilot for this project, or name the file with --db."
    if given is not None:
        remedy = "Look at the name that --db was given."
    elif (project.root / ".copilot" / "tasks.db").is_file():  # it has no server, and /protocol would lead in a circle
        remedy = (
            "Claude Copilot 3 keeps its tasks in .copilot/tasks.db, and is not supported yet: use Claude Copilot 2."
        )
    raise OrchestrateError(f"Task Copilot database not found: {tried[0]}{also}", remedy)


def database_variables(database: Path) -> dict[str, str]:
    return {"WORKSPACE_ID": database.parent.name, "TASK_DB_PATH": str(database.parent.parent)}


def order_streams(streams: Sequence[Stream]) -> tuple[list[Stream], list[list[str]]]:
    """Return the streams so that each comes after those that it depends on, else as they came; and every cycle."""
    by_id = {stream.id: stream for stream in streams}
    ordered: dict[str, Stream] = {}
    cycles: list[list[str]] = []
    for stream in streams:
        path = {} if stream.id in ordered else {stream.id: iter(stream.dependencies)}  # a stack, without recursion
        while path:
            current = next(reversed(path))
            for needed in path[current]:
                if needed in path:
                    way = list(path)
                    cycles.append([*way[way.index(needed) :], needed])
                elif needed in by_id and needed not in ordered:
                    path[needed] = iter(by_id[needed].dependencies)
                    break
            else:
                ordered[current] = by_id[current]
                del path[current]
    return list(ordered.values()), cycles


def plan_backlog(streams: Sequence[Stream]) -> tuple[Stream, ...]:
    """Return the streams with the `problem` of each that can't run: an unknown dependency, or a cycle spelled out."""
    by_id = {stream.id: stream for stream in streams}
    problems = {stream.id: stream.problem for stream in streams if stream.problem}
    _, cycles = order_streams(streams)
    for stream in streams:
        for needed in (by_id.get(name) or name for name in stream.dependencies):
            if isinstance(needed, str):
                problems.setdefault(stream.id, f"it depends on {visible(needed)}, and no stream has that id")
            elif needed.phase.rank > stream.phase.rank:
                # Without its being said, every stream depends on all streams of the phases before its own.
                cycles.append([stream.id, needed.id, stream.id])
    for cycle in cycles:
        way = " -> ".join(f"{visible(name)} ({by_id[name].phase.value})" for name in cycle)
        for name in cycle[:-1]:
            problems.setdefault(name, f"its dependencies form a cycle: {way}")
    return tuple(s._replace(problem=problems[s.id]) if s.id in problems else s for s in streams)


class StoreError(OrchestrateError):
    """The database can't be read now; the message says why."""


class TaskStore:
    """Task Copilot's database, opened read-only.

    Source: the `tasks` table of the Task Copilot server, versions 1 to 10 of its schema.
    """

    # One pass. The values stay JSON, so that their types survive; Python sees one row a stream and status. A stream
    # of '' is metadata that is not valid JSON.
    _QUERY = """
        SELECT stream, status, COUNT(*),
            MIN(coalesce(CAST(created_at AS TEXT), '') || char(31) || coalesce(CAST(id AS TEXT), '')), group_concat(
            CASE WHEN status IN ('blocked', 'in_progress') AND stream IS NOT NULL
            THEN json_object('id', coalesce(CAST(id AS TEXT), ''), 'title', coalesce(CAST(title AS TEXT), ''),
                'status', status, 'reason', coalesce(CAST(blocked_reason AS TEXT), '')) END,
            char(10)), coalesce(MAX(CAST(updated_at AS TEXT)), '')
        FROM (
            SELECT id, title, status, blocked_reason, created_at, updated_at,
            CASE WHEN json_valid(metadata) THEN
                json_extract(metadata, '$.streamId', '$.streamName', '$.streamPhase', '$.streamDependencies',
                    '$.worktreePath', '$.branchName')
                WHEN metadata IS NOT NULL THEN '' END AS stream
            FROM tasks WHERE {is_active})
        GROUP BY stream, status"""

    def __init__(self, path: Path, busy_timeout: float = PATIENT_BUSY_TIMEOUT) -> None:
        self.path = path
        self._busy_timeout = busy_timeout
        self._connection: sqlite3.Connection | None = None
        self._seen: tuple[int, ...] = ()

    def __enter__(self) -> TaskStore:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def changed(self) -> bool:
        """Whether another process committed, or the file was replaced, since the last read. Costs microseconds.

        Raises StoreError.
        """
        with self._reporting():
            return self._mark() != self._seen

    def read(self) -> Backlog:
        """Return all streams, each with its problem. Raises StoreError."""
        with self._reporting():
            seen = self._mark()  # before the rows: what is committed in between is then seen as a change
            columns = {row[1] for row in self._connect().execute("PRAGMA table_info(tasks)")}
            is_active = "NOT coalesce(archived, 0)" if "archived" in columns else "1"
            rows = self._connect().execute(self._QUERY.format(is_active=is_active)).fetchall()
            self._seen = seen
        backlog = read_backlog(rows)
        return backlog._replace(streams=plan_backlog(backlog.streams))

    def read_version(self) -> int:
        with self._reporting():
            try:
                rows = self._connect().execute("SELECT CAST(MAX(version) AS INTEGER) FROM migrations").fetchall()
            except sqlite3.OperationalError as error:
                if "no such" not in str(error):
                    raise
                return 0  # no such table, or no such column
            return int(rows[0][0] or 0)

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
        self._connection = None
        self._seen = ()  # another connection counts the changes anew

    @contextlib.contextmanager
    def _reporting(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            self.close()
            remedy = f"Look at {self.path}: is it Task Copilot's database, and free to read?"
            raise StoreError(f"SQLite query failed: {error}", remedy) from error

    def _mark(self) -> tuple[int, ...]:
        """Return what changes whenever the content may have: the file's identity, and SQLite's own counter."""
        status = self.path.stat()
        identity = (status.st_dev, status.st_ino)
        if self._seen and self._seen[:2] != identity:
            self.close()
        (version,) = self._connect().execute("PRAGMA data_version").fetchone()
        return (*identity, version)

    def _connect(self) -> sqlite3.Connection:
        if self._connection is None:
            uri = f"{self.path.absolute().as_uri()}?mode=ro"
            self._connection = sqlite3.connect(uri, uri=True, timeout=self._busy_timeout, isolation_level=None)
            self._connection.text_factory = functools.partial(str, encoding="utf-8", errors="replace")
        return self._connection


_Row = Tuple[Optional[str], str, int, str, Optional[str], str]
_KEYS = ("streamName", "streamPhase", "streamDependencies", "worktreePath", "branchName")  # behind the stream's id
_STATUSES = ("pending", "in_progress", "blocked", "completed", "cancelled")
_DECODER = json.JSONDecoder(strict=False)  # json.loads would make one each time


def _read_json(text: str) -> Any:
    # A NUL or half a surrogate pair can't stand in an argument or a variable of a process; ids and names become both.
    def fit(value: Any) -> Any:
        if isinstance(value, str):
            return value.encode("utf-8", "replace").decode().replace("\0", "\ufffd")
        if isinstance(value, list):
            return [fit(item) for item in value]
        return {key: fit(item) for key, item in value.items()} if isinstance(value, dict) else value

    value, _ = _DECODER.raw_decode(text)
    return fit(value) if "\\u" in text or "\0" in text else value


def read_backlog(rows: Iterable[_Row]) -> Backlog:
    """Fold rows of (identity, status, count, oldest, named tasks, newest) into streams, in order."""
    groups: dict[str, list[tuple[_Row, list[Any]]]] = {}
    identities: dict[str | None, list[Any] | None] = {None: [None], "": None}
    bad = unassigned = 0
    for row in rows:
        text = row[0]
        if text not in identities:
            try:
                identities[text] = list(_read_json(text or ""))
                json.dumps([[identities[text]]])  # a message may have to say it, some calls deeper than here
            except (ValueError, RecursionError):  # a number of thousands of digits, hundreds of lists in each other
                identities[text] = None
        identity = identities[text]
        if identity is None:
            bad += row[2]
        elif identity[0] is not None:
            stream_id = identity[0] if isinstance(identity[0], str) else json.dumps(identity[0])
            groups.setdefault(stream_id, []).append((row, identity))
        elif row[1] not in ("completed", "cancelled"):
            unassigned += row[2]
    warnings = [f"{format_count(bad, 'task')} skipped: the metadata is not valid JSON"] if bad else []
    streams = []
    for stream_id, group in groups.items():
        group.sort(key=lambda entry: entry[0][3])  # the oldest task first
        stream, disagreements = _read_stream(stream_id, group)
        streams.append(stream)
        warnings += disagreements
    streams.sort(key=lambda stream: (stream.phase.rank, natural_key(stream.id)))
    return Backlog(tuple(streams), tuple(warnings), unassigned)


def _read_stream(stream_id: str, group: Sequence[tuple[_Row, list[Any]]]) -> tuple[Stream, list[str]]:
    values, warnings = {}, []
    distinct: dict[str | None, tuple[list[Any], str]] = {}  # identities, each with the oldest task that has it
    for row, identity in group:
        distinct.setdefault(row[0], (identity, row[3]))
    for position, key in enumerate(_KEYS, start=1):
        given = [(ident[position], oldest) for ident, oldest in distinct.values() if ident[position] is not None]
        first, oldest = given[0] if given else (None, "")
        values[key] = first, oldest.partition("\x1f")[2]
        if any(value != first for value, _ in given):
            warnings.append(f"{visible(stream_id)}: its tasks disagree about {key}; the oldest task's is taken")
    counts: dict[str, int] = {}
    tasks: list[Task] = []
    for row, _ in group:
        status = row[1] if row[1] in _STATUSES else "pending"
        counts[status] = counts.get(status, 0) + row[2]
        tasks += [Task(**_read_json(line)) for line in (row[4] or "").split("\n") if line]
    phase, needs, problem = _read_order(*values["streamPhase"], *values["streamDependencies"])
    texts = {key: value if isinstance(value, str) else "" for key, (value, _) in values.items()}
    return Stream(
        id=stream_id,
        name=texts["streamName"] or stream_id,
        worktree_path=texts["worktreePath"],
        branch_name=texts["branchName"],
        phase=phase,
        dependencies=needs,
        named_tasks=tuple(sorted(tasks, key=lambda task: natural_key(task.id))),
        changed_at=max(row[5] for row, _ in group),
        problem=problem,
        **counts,
    ), warnings


def _read_order(phase: Any, phase_task: str, needs: Any, needs_task: str) -> tuple[Phase, tuple[str, ...], str]:
    """Return a stream's phase and dependencies, and what is wrong with them; each comes with the task that says so."""
    problem = ""
    if phase is not None and phase not in [known.value for known in Phase]:
        problem = f"task {phase_task} has the unknown phase {json.dumps(phase)}"
        phase = None
    needs = [needs] if isinstance(needs, str) else [] if needs is None else needs
    if not (isinstance(needs, list) and all(isinstance(item, str) for item in needs)):
        problem = problem or f"task {needs_task} has streamDependencies that are no list of stream ids"
        needs = []
    return Phase(phase or Phase.PARALLEL), tuple(dict.fromkeys(needs)), problem


# ── 4. Planner ────────────────────────────────────────────────────────────────────────────────────────────────────────


def plan_backoff(restarts: int, seed: str) -> float:
    """Return the seconds before a restart: 1 s, doubled with each one in a row, at most 60 s, spread by a tenth."""
    pause = min(BACKOFF_FIRST * 2.0 ** min(restarts - 1, 30), BACKOFF_MAX)
    spread = zlib.crc32(seed.encode("utf-8", "surrogatepass")) / 0xFFFFFFFF  # not random: a plan can be repeated
    return pause * (1 + BACKOFF_JITTER * (2 * spread - 1))


def explain_stop(ending: Ending, why: StopReason | None) -> Ending:
    """Return the ending of a worker that was stopped: its exit code is ours then and says nothing, a result does."""
    if why not in (StopReason.GRACE, StopReason.STALLED, StopReason.TIMEOUT, StopReason.FOLDER):
        return ending
    words = ending.words if ending.is_error else ""
    return ending._replace(code=None, words=words, remarks=(*ending.remarks, f"stopped: {why.value}"))


def judge(stream: Stream | None, worker: Worker, snapshot: Snapshot, limits: Limits) -> Verdict:
    """Return what follows from a worker's end: by the tasks first, then by what was asked for, then by how it ended."""
    ending = worker.ending or Ending(None)
    record = snapshot.history.record(worker.stream_id)
    if stream is None:
        return Verdict(VerdictKind.VANISHED, StopReason.VANISHED.value, record.restarts)
    if record.is_outdone(stream.completed, stream.open):
        ending = ending._replace(failed_servers=())  # it has come to life since
    record = record.after_look(stream.completed, stream.open, worker.commits)
    if stream.is_complete:
        is_odd = ending.code not in (0, None) and record.stopping in (None, StopReason.LEFTOVERS)
        reason = f"all tasks are complete, but {ending.summary}" if is_odd else ""
        return Verdict(VerdictKind.COMPLETE, reason, record.restarts)
    if record.stopping in (StopReason.USER, StopReason.EXIT, StopReason.VANISHED) or stream.id in snapshot.stopped:
        return Verdict(VerdictKind.STOPPED, StopReason.USER.value, record.restarts)
    if stream.is_blocked:
        return Verdict(VerdictKind.BLOCKED, stream.block, record.restarts)
    verdict = _judge_cause(stream, worker, ending, record, snapshot, limits)
    if verdict.kind is VerdictKind.FAILED and record.commits:
        return verdict._replace(reason=f"{verdict.reason}; it made {format_count(record.commits, 'commit')}")
    return verdict


def _judge_cause(
    stream: Stream, worker: Worker, ending: Ending, record: Record, snapshot: Snapshot, limits: Limits
) -> Verdict:
    history, cause = snapshot.history, find_cause(ending)
    tries = record.tries if record.cause is cause else 0
    if cause is Cause.LIMIT:
        # One that was started before the pause has hit the limit that the run is paused for.
        is_same = record.started_at < history.paused_at
        pause = plan_pause(ending.reset_in, max(history.limit_hits - is_same, 0))
        return Verdict(VerdictKind.PAUSED, ending.words or cause.value, record.restarts, delay=pause, cause=cause)
    if cause is Cause.MODEL_LIMIT:
        pause = min(plan_pause(ending.reset_in, tries), LIMIT_PAUSE_MAX)
        return Verdict(VerdictKind.LIMITED, ending.summary, record.restarts, 0, pause, cause, tries + 1)
    if cause is Cause.LOGIN and worker.has_answer:
        tries = 0  # the last try went well for a time
    if may_try_again(cause, ending, tries, record, snapshot):
        delay = LOGIN_PAUSE if cause is Cause.LOGIN else plan_backoff(tries + 1, f"{stream.id} {worker.run}")
        counts = record.restarts, limits.max_restarts
        return Verdict(VerdictKind.RESTART, ending.summary, *counts, delay, cause, tries + 1)
    is_share_spent = cause is Cause.BUDGET and limits.budget and find_budget_left(snapshot, limits) >= BUDGET_LEAST
    if cause in _FINAL_CAUSES and not is_share_spent:
        remedy = ". Look why: claude mcp list" if cause is Cause.SERVER else ""
        return Verdict(VerdictKind.FAILED, ending.summary + remedy, record.restarts, cause=cause)
    open_tasks = "" if ending.has_failed else f", {format_count(stream.open, 'task')} open"
    return _judge_restart(stream, worker.run, ending.summary + open_tasks, record, limits)._replace(cause=cause)


_FINAL_CAUSES = (Cause.LOGIN, Cause.PROGRAM, Cause.BUDGET, Cause.SERVER, Cause.FINAL)


def _judge_restart(stream: Stream, run: str, reason: str, record: Record, limits: Limits) -> Verdict:
    restarts = record.restarts + 1
    if restarts > limits.max_restarts:
        times = format_count(limits.max_restarts, "restart")
        reason = f"gave up after {times} without a completed task; last: {reason}"
        return Verdict(VerdictKind.FAILED, reason, record.restarts)
    delay = plan_backoff(restarts, f"{stream.id} {run}")
    return Verdict(VerdictKind.RESTART, reason, restarts, limits.max_restarts, delay)


def may_try_again(cause: Cause, ending: Ending, tries: int, record: Record, snapshot: Snapshot) -> bool:
    """Whether what ended a worker may pass by itself, so that the next try costs no restart; `tries` were there before.

    A worker that the API left without an answer has cost nothing: however long that lasts, it is no reason to give up.
    """
    if cause is Cause.OUTAGE:
        return not ending.cost or record.paid_outages < PAID_OUTAGES
    if cause is Cause.LOGIN:
        return tries < LOGIN_TRIES and snapshot.has_answer
    if cause is Cause.SERVER:
        return tries < SERVER_TRIES
    return cause is Cause.PROGRAM and tries < PROGRAM_TRIES and snapshot.has_executed


# Why a worker failed: a field of its ending, the cause, and a pattern: for the whole field, for the beginning of words.
# The first row that fits counts. A rejected request is a limit, unless the error itself is plainly another one: then it
# was a subagent's. Words come last, and as narrowly as they are no prose. Source: FACTS.md, public reports, and what
# Claude Code 2.1.49, 2.1.100, 2.1.197 and 2.1.332 print and hold.
_CAUSES = (
    ("subtype", Cause.BUDGET, r"error_max_budget_usd"),
    ("words", Cause.OUTAGE, r"API Error: (Server is temporarily limit|Request rejected \(429\)|Rate limit|429\b)"),
    ("words", Cause.OUTAGE, r"(API Error[^:]{0,80}: )?[A-Z]\w+ is experiencing high load"),
    (
        "words",
        Cause.OUTAGE,
        r"(Could not refresh your login|Failed to refresh OAuth token:?) ?(because )?another Claude",
    ),
    ("words", Cause.OUTAGE, r"Authentication error · (This may be|The gateway)"),
    ("words", Cause.OUTAGE, r"API Error:? \(?(5\d\d|408)\b"),
    ("words", Cause.OTHER, r"API Error: 400\b(?!.*\breached your specified )"),
    ("api_error", Cause.LIMIT, r"usage_limit_reached"),
    ("api_error", Cause.OUTAGE, r"connection_failed|stream_idle_timeout|no_response|computer_slept"),
    ("api_error", Cause.FINAL, r"claude_code_version_too_old|long_context_credits_required"),
    ("kind", Cause.OUTAGE, r"server_error|overloaded"),
    ("kind", Cause.LOGIN, r"(authentication|verification|cloud_credential|oauth|account)_\w+"),
    ("kind", Cause.FINAL, r"billing_error|model_not_found"),
    ("is_rejected", Cause.LIMIT, r"True"),
    ("words", Cause.FINAL, r"[A-Z][\w .]{1,40} requires usage credits"),
    ("words", Cause.FINAL, r"(API Error: )?(Usage credits|Extra usage) (is |are )?required"),
    ("words", Cause.FINAL, r"Your (seat type doesn't|usage allocation has been disabled|group's usage limit is set)"),
    ("kind", Cause.LIMIT, r"rate_limit"),
    ("api_status", Cause.OUTAGE, r"5\d\d|408"),
    ("api_status", Cause.LOGIN, r"401|403"),
    ("api_status", Cause.FINAL, r"402|404"),
    ("words", Cause.LIMIT, r"You['’]ve (hit|reached) your (?!.*\brate limit)([\w.-]+ ){0,4}limit(?=$|[.]| [·∙•])"),
    ("words", Cause.LIMIT, r"[\w .-]{1,40}\blimit reached( [·∙•—] resets |[.] Your limit will reset |\|\d)"),
    ("words", Cause.LIMIT, r"(Claude )?(AI )?[Uu]sage limit reached(?=$|[.]| [·∙•])|Spending cap reached resets "),
    ("words", Cause.LIMIT, r"You['’]re out of (extra usage|usage credits)(?=$|[.]| [·∙•])"),
    ("words", Cause.LIMIT, r"Your org(anization)? is out of usage( credits)?(?=$|[.]| [·∙•])"),
    ("words", Cause.LIMIT, r"API Error: (Usage credits ran out|.{0,150}\breached your specified (API )?usage limits)"),
    ("api_status", Cause.OUTAGE, r"429"),
    ("words", Cause.BUDGET, r"(Error: Exceeded USD|Reached maximum) budget"),
    ("words", Cause.OUTAGE, r"API Error: .{0,200}(overloaded_error|529 Overloaded)"),
    ("words", Cause.OUTAGE, r"API Error: (Unable to connect|Can't reach|Connection |The socket connection was closed)"),
    ("words", Cause.OUTAGE, r"API Error: (Server is temporarily|The API is temporarily|API returned an|No response)"),
    ("words", Cause.OUTAGE, r"API Error: The response could not be read"),
    ("words", Cause.OUTAGE, r"(API Error: )?(Request timed out|Stream idle timeout|Connection error\.)"),
    ("words", Cause.OUTAGE, r"((API |Type)?Error: )?(fetch failed|terminated|socket hang up)(?=$|[.])"),
    ("words", Cause.LOGIN, r"Not logged in(?=$| ·)|Failed to authenticate[.:]|Please run /login|API Error: 40[13]\b"),
    ("words", Cause.LOGIN, r"Invalid (API key|auth token|bearer token)(?=$| ·)|OAuth token (has expired|revoked)"),
    ("words", Cause.LOGIN, r"(Anthropic profile l|L)ogin expired ·|Login reached its time limit"),
    ("words", Cause.LOGIN, r"Authentication required ·|Your (account is on hold|apiKeyHelper script is failing)"),
    ("words", Cause.LOGIN, r"Your (account does not have access to Claude|ANTHROPIC_API_KEY belongs to)"),
    ("words", Cause.LOGIN, r"Your organization has disabled (Claude|API)|This organization has been disabled"),
    ("words", Cause.FINAL, r"Credit balance is too low|There's an issue with the selected model|API Error: 402\b"),
    ("words", Cause.FINAL, r"--dangerously-skip-permissions cannot be used|[Ee]rror: (unknown|invalid) "),
    ("words", Cause.FINAL, r"error: (option|missing|too many)|Error: (Session ID |When using --print|Invalid MCP)"),
    ("words", Cause.FINAL, r"Error: Input must be provided"),
)


def find_cause(ending: Ending) -> Cause:
    """Return why a worker ended with open tasks: by the structure of what it reported, by its last words at the end.

    One that did not fail says in its words what it likes: it may have read about limits. But in text mode a limit may
    end in exit code 0, and its line is all that there is; so it is where nobody saw the exit code.
    """
    if ending.cause is not None:
        return ending.cause
    if not ending.has_result and ending.code in (126, 127):  # the shell could not execute it
        return Cause.PROGRAM
    if not ending.has_result and (ending.code or 0) < 0:  # a signal ended it before it could say why
        return Cause.OTHER
    otherwise = Cause.SERVER if SERVER in ending.failed_servers else Cause.OTHER
    fitting = [
        cause
        for field, cause, pattern in _CAUSES
        if re.fullmatch(f"(?:{pattern}){'.*' if field == 'words' else ''}", str(getattr(ending, field)))
    ]
    if ending.has_failed and (ending.has_result or ending.code is not None):
        return fitting[0] if fitting else otherwise
    if not ending.has_result:
        return Cause.LIMIT if Cause.LIMIT in fitting else otherwise
    is_limited = ending.limit and (ending.reset_in is None or ending.reset_in > 0)
    return Cause.MODEL_LIMIT if is_limited and ending.code in (0, None) else otherwise


def plan_pause(reset_in: float | None, hits: int) -> float:
    """Return the seconds without a start after a usage limit: to its reset, or 15 min, doubling to 1 h, if unknown.

    `hits` are the pauses in a row before this one. A reset that is always near, or past, is believed less each time.
    """
    if reset_in is not None and reset_in <= LIMIT_RESET_MAX:
        least = min(LIMIT_RETRY * 2.0 ** min(hits - 1, 30), LIMIT_PAUSE) if hits else LIMIT_MARGIN
        return max(reset_in + LIMIT_MARGIN, least)
    return min(LIMIT_PAUSE * 2.0 ** min(hits, 30), LIMIT_PAUSE_MAX)


def find_budget_left(snapshot: Snapshot, limits: Limits) -> float:
    """Return the US dollars that the run may still spend, without a limit infinitely many."""
    return limits.budget - snapshot.spent if limits.budget else float("inf")


def plan_starts(ready: Sequence[Stream], snapshot: Snapshot, limits: Limits) -> list[Action]:
    """Decide which of the ready streams get a worker now, and with what budget.

    A budget is what is left, shared evenly among the workers that run or are ready; what others hold already is never
    given away again. Where it does not go round, fewer start.
    """
    free = max(limits.max_workers - len(snapshot.workers), 0)
    if not limits.budget:
        return [Start(stream) for stream in ready[:free]]
    left = find_budget_left(snapshot, limits)
    held = sum(max(snapshot.history.record(i).budget - w.cost, 0) for i, w in snapshot.workers.items())
    sharers = min(len(ready), int((left - held) / BUDGET_LEAST + 1e-6))
    if sharers < 1:
        return []  # somebody will end, and leave what it did not spend
    share = min(left / (sharers + len(snapshot.workers)), (left - held) / sharers)
    return [Start(stream, max(share, BUDGET_LEAST)) for stream in ready[: min(free, sharers)]]


def assess(snapshot: Snapshot, limits: Limits, now: float) -> dict[str, Standing]:
    """Return where each stream stands. A stream without a worker that could start stands as QUEUED."""
    obstacles = find_obstacles(snapshot, limits)
    return {
        stream.id: _assess_running(stream, snapshot, limits, now)
        if stream.id in snapshot.workers
        else _assess_resting(stream, obstacles[stream.id], snapshot, limits, now)
        for stream in snapshot.streams
    }


def _assess_running(stream: Stream, snapshot: Snapshot, limits: Limits, now: float) -> Standing:
    worker, record = snapshot.workers[stream.id], snapshot.history.record(stream.id)
    if record.stopping is not None or worker.ending is not None:
        return Standing(StreamState.STOPPING, record.stopping.value if record.stopping else "its worker ended")
    silence = now - worker.active_at if worker.active_at else None  # nobody knows
    is_silent = silence is not None and silence >= limits.silence
    until = find_deadline(stream, worker, record, limits, now)
    if stream.is_complete and (until < NEVER or not is_silent):
        return Standing(StreamState.FINISHING, "its tasks are complete" if until < NEVER else WAITS, until)
    if is_silent:
        return Standing(StreamState.SILENT, f"no sign of life for {format_duration(limits.silence)}")
    is_working = silence is not None and silence <= WORKING_WITHIN
    return Standing(StreamState.WORKING if is_working else StreamState.RUNNING)


def find_deadline(stream: Stream, worker: Worker, record: Record, limits: Limits, now: float) -> float:
    """Return when a worker is ended that has nothing more to do, in monotonic seconds; NEVER where it has.

    Its tasks are complete, or it has printed its result and only waits. What runs in its background may wake it: a
    subagent will, and a shell may, where there is something left to do. A server that it left running never ends.
    """
    if worker.background - {"local_bash"}:
        return NEVER
    deadlines = [NEVER]
    since = record.since if record.state is StreamState.FINISHING else now
    if stream.is_complete:  # who was woken by a subagent has its time from then on
        deadlines.append(max(since, worker.background_at) + limits.finish_grace)
    if worker.done_at and not worker.background:
        deadlines.append(max(worker.done_at, worker.active_at, worker.background_at) + limits.finish_grace)
    if worker.done_at and worker.background and (stream.is_complete or stream.is_blocked):
        begin = since if stream.is_complete else 0.0
        deadlines.append(max(worker.done_at, worker.background_at, begin) + SHELL_GRACE)
    return min(deadlines)


def _assess_resting(
    stream: Stream, obstacles: Sequence[str], snapshot: Snapshot, limits: Limits, now: float
) -> Standing:
    record = snapshot.history.record(stream.id)
    if stream.is_complete:
        return Standing(StreamState.COMPLETE)
    if stream.problem or record.failure:
        return Standing(StreamState.FAILED, stream.problem or record.failure)
    if stream.id in snapshot.stopped:
        return Standing(StreamState.STOPPED, StopReason.USER.value)
    if stream.is_blocked:
        return Standing(StreamState.BLOCKED, stream.block)
    if stream.id in snapshot.foreign:
        return Standing(StreamState.WAITING, snapshot.foreign[stream.id])
    if not snapshot.orchestrator:
        last = record.last_ending and f"last worker: {record.last_ending}"
        return Standing(StreamState.IDLE, _format_spent(snapshot, limits) or last)
    return _assess_next(stream, obstacles, snapshot, limits, now)


def _assess_next(stream: Stream, obstacles: Sequence[str], snapshot: Snapshot, limits: Limits, now: float) -> Standing:
    record = snapshot.history.record(stream.id)
    if limits.is_closing or not snapshot.includes(stream, limits):
        return Standing(StreamState.IDLE, "not part of this run")
    if obstacles:
        return Standing(StreamState.WAITING, f"waits for {format_names(obstacles)}")
    spent = _format_spent(snapshot, limits)
    if spent:
        return Standing(StreamState.IDLE, spent)
    if snapshot.pause_left:
        return Standing(StreamState.PAUSED, snapshot.history.pause_reason, now + snapshot.pause_left)
    if snapshot.wall < record.pause_ends:
        return Standing(StreamState.PAUSED, record.pause_reason, now + record.pause_ends - snapshot.wall)
    if now < record.retry_at:
        return Standing(StreamState.RESTARTING, record.last_ending, record.retry_at)
    if len(snapshot.workers) >= limits.max_workers:
        return Standing(StreamState.QUEUED, f"all {limits.max_workers} workers are busy")
    return Standing(StreamState.QUEUED, "running workers hold the budget" if limits.budget else "")


def _format_spent(snapshot: Snapshot, limits: Limits) -> str:
    is_spent = find_budget_left(snapshot, limits) < BUDGET_LEAST
    return f"the budget of ${limits.budget:.2f} is spent" if is_spent else ""


def find_obstacles(snapshot: Snapshot, limits: Limits) -> dict[str, list[str]]:
    """Return for each stream the streams that it waits for: earlier phases, its place in the foundation, dependencies.

    A stream is over when it is complete and its worker, with all that the worker started, has exited.
    """
    unfinished = {s.id for s in snapshot.streams if not s.is_complete or s.id in snapshot.workers}
    before: list[str] = []
    obstacles: dict[str, list[str]] = {}
    for phase in Phase:
        open_ones: list[str] = []
        others = unfinished.difference(before)
        streams = [stream for stream in snapshot.streams if stream.phase is phase]
        queue: list[str] = []
        if phase is Phase.FOUNDATION:  # its streams run one after another, those that this run is about
            streams = order_streams(streams)[0]
            queue += [stream.id for stream in streams if stream.id in snapshot.workers]
        for stream in streams:
            needed = dict.fromkeys((*queue, *stream.dependencies))
            more = [name for name in needed if name in others and name != stream.id]
            obstacles[stream.id] = [*before, *more] if more else before  # shared: a copy each would be quadratic
            if stream.id in unfinished:
                open_ones.append(stream.id)
                if phase is Phase.FOUNDATION and snapshot.includes(stream, limits):
                    queue.append(stream.id)
        before = before + open_ones
    return obstacles


def plan(snapshot: Snapshot, limits: Limits, now: float) -> list[Action]:
    """Decide what to do now. Pure: the same snapshot, limits and time give the same actions, and nothing is touched.

    A snapshot with a `database_error` has old streams: nothing is started, concluded or ended on its account.
    """
    streams = {stream.id: stream for stream in snapshot.streams}
    actions: list[Action] = []
    for worker in snapshot.workers.values():
        actions += _plan_worker(streams.get(worker.stream_id), worker, snapshot, limits, now)
    if limits.is_closing:
        return actions if actions or snapshot.workers else [Finish(EXIT_DONE, "stopped all workers")]
    if actions or snapshot.database_error:
        return actions  # what the end of a worker leads to, the next tick knows, and it follows at once
    if len(snapshot.workers) >= limits.max_workers:
        return []  # nothing can start, and the run goes on
    standings = assess(snapshot, limits, now)
    ready = [s for s in snapshot.streams if standings[s.id].state is StreamState.QUEUED]
    return plan_starts(ready, snapshot, limits) or _plan_end(standings, snapshot, limits)


def _plan_worker(stream: Stream | None, worker: Worker, snapshot: Snapshot, limits: Limits, now: float) -> list[Action]:
    record = snapshot.history.record(worker.stream_id)
    if worker.ending is not None and not worker.leftovers:
        is_blind = snapshot.database_error and not limits.is_closing
        worker = worker._replace(ending=explain_stop(worker.ending, record.stopping))
        return [] if is_blind else [Conclude(worker, judge(stream, worker, snapshot, limits))]
    if record.stopping is not None:
        first_kill = record.stopping_at + limits.stop_timeout
        # What no signal ends is tried less and less often.
        next_kill = record.killed_at + max(KILL_INTERVAL, record.killed_at - first_kill)
        deadline = next_kill if record.killed_at else first_kill
        return [Kill(worker.stream_id)] if now >= deadline else []
    why = _find_stop_reason(stream, worker, snapshot, limits, now)
    return [] if why is None else [Stop(worker.stream_id, why)]


def _find_stop_reason(
    stream: Stream | None, worker: Worker, snapshot: Snapshot, limits: Limits, now: float
) -> StopReason | None:
    if limits.is_closing:
        return StopReason.EXIT
    if worker.ending is not None:
        return StopReason.LEFTOVERS
    if worker.stream_id in snapshot.stopped:
        return StopReason.USER
    if snapshot.database_error:
        return None
    if stream is None:
        return StopReason.VANISHED
    record = snapshot.history.record(stream.id)
    if worker.is_astray and not stream.is_complete:
        return StopReason.FOLDER
    if now >= find_deadline(stream, worker, record, limits, now):
        return StopReason.GRACE
    if 0 < limits.worker_timeout <= now - record.started_at:
        return StopReason.TIMEOUT
    patience = max(limits.stall_timeout, 3 * CPU_INTERVAL)  # CPU time is evidence after two looks
    is_stalled = limits.stall_timeout and worker.active_at and now - worker.active_at >= patience
    return StopReason.STALLED if is_stalled else None


_HELD = {StreamState.BLOCKED, StreamState.STOPPED}  # a person can change that


def _plan_end(standings: Mapping[str, Standing], snapshot: Snapshot, limits: Limits) -> list[Action]:
    """Decide, when there is nothing else to do, whether to go on, to wait for a person, or to end the run."""
    if snapshot.workers:
        return []
    included = [stream for stream in snapshot.streams if snapshot.includes(stream, limits)]
    standing_of = {stream.id: standings[stream.id] for stream in included}
    open_ones = {i: standing for i, standing in standing_of.items() if standing.state is not StreamState.COMPLETE}
    states = {standing.state for standing in open_ones.values()}
    if states & {StreamState.RESTARTING, StreamState.PAUSED, StreamState.QUEUED}:
        return []
    spent = _format_spent(snapshot, limits)
    # A person can help on these; not on what waits for a failed one, and never starts.
    failed = {i for i, standing in standings.items() if standing.state is StreamState.FAILED}
    obstacles = find_obstacles(snapshot, limits)
    is_held = {i: s.state in _HELD or i in snapshot.foreign for i, s in open_ones.items()}
    held = [(i, s) for i, s in open_ones.items() if is_held[i] and failed.isdisjoint(obstacles[i])]
    if held and not limits.exit_on_blocked and not spent:
        waits = [f"{visible(i)} is {s.state.value.lower()}: {visible(s.reason)}" for i, s in held]
        blocked = {i for i, s in held if s.state is StreamState.BLOCKED}
        return [Wait("; ".join(waits), tuple(stream.answer for stream in included if stream.id in blocked))]
    if open_ones or not snapshot.streams:
        words = {StreamState.IDLE: "is not complete:", StreamState.WAITING: "never ran: it"}
        lines = [
            f"{visible(i)} {words.get(s.state, f'{s.state.value.lower()}:')} {visible(s.reason)}"
            for i, s in open_ones.items()
        ]
        if spent and StreamState.IDLE not in states:  # no line has said so
            lines.append(spent.capitalize())
        return [Finish(EXIT_FAILED, "\n".join(lines) or "no stream is left in the database")]
    tasks = format_count(sum(stream.completed for stream in included), "task")
    return [Finish(EXIT_DONE, f"all complete: {format_count(len(included), 'stream')}, {tasks}")]


# ── 5. Workers ────────────────────────────────────────────────────────────────────────────────────────────────────────


class Clock:
    """The clocks of the system, and waiting that ends early when a child exits or a signal comes.

    A signal handler only records; whoever waits looks at `signals` afterwards.
    """

    _ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

    def __init__(self, draws: bool = False) -> None:
        self.signals: list[int] = []
        self.wants_suspension = False
        self._draws = draws
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> Clock:
        self._receiver, self._sender = os.pipe()
        for end in (self._receiver, self._sender):
            os.set_blocking(end, False)
        signal.set_wakeup_fd(self._sender, warn_on_full_buffer=False)
        handled: list[int] = [s for s in self._ENDING if signal.getsignal(s) is not signal.SIG_IGN]  # nohup stays so
        if self._draws:  # on a terminal: anew, when that is resized or given back, and not after Ctrl+Z
            handled += [signal.SIGWINCH, signal.SIGTSTP, signal.SIGCONT]
        for signum in (*handled, signal.SIGCHLD):
            self._previous[signum] = signal.signal(signum, self.handle_signal)
        return self

    def __exit__(self, *_: object) -> None:
        for signum, handler in self._previous.items():
            # Who was asked to end does so: an impatient second Ctrl+C must not break into the last words.
            signal.signal(signum, signal.SIG_IGN if signum in self.signals else handler)
        signal.set_wakeup_fd(-1)
        os.close(self._receiver)
        os.close(self._sender)

    def handle_signal(self, signum: int, _frame: object) -> None:
        if signum in self._ENDING:
            self.signals.append(signum)
        self.wants_suspension = self.wants_suspension or signum == signal.SIGTSTP

    def suspend(self) -> None:
        self.wants_suspension = False
        os.kill(os.getpid(), signal.SIGSTOP)

    def monotonic(self) -> float:
        return time.monotonic()

    def wall(self) -> float:
        """Seconds since the epoch, for people."""
        return time.time()

    def wait(self, seconds: float) -> None:
        if select.select([self._receiver], [], [], max(seconds, 0))[0]:
            with contextlib.suppress(BlockingIOError):
                os.read(self._receiver, 4096)


def is_in_front(terminal: IO[Any]) -> bool:
    """Whether this is the job that has the terminal; also where it is nobody's."""
    with contextlib.suppress(OSError):
        return os.tcgetpgrp(terminal.fileno()) == os.getpgrp()
    return True


def open_private(path: Path, flags: int) -> IO[bytes]:
    """Open a file, unbuffered, that its owner alone can read; make it where it is missing. Raises OSError.

    A symbolic link is refused: it would lead somebody else's words into a file of ours, or ours into theirs.
    """
    descriptor = os.open(path, flags | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    return os.fdopen(descriptor, "r+b" if flags & os.O_RDWR else "wb", buffering=0)


def is_open_as(path: Path, descriptor: int) -> bool:
    """Whether this is still the name of a file or folder that is open. Raises OSError."""
    with contextlib.suppress(FileNotFoundError):
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    return False


def write_whole(file: IO[bytes], path: Path, content: bytes) -> None:
    """Write all of it: on a full disk one write is cut short, and the next one fails. Raises OSError."""
    rest = memoryview(content)
    try:
        while rest:
            rest = rest[file.write(rest) :]
    except OSError as error:  # the system does not say which file it was
        raise OSError(error.errno, error.strerror, str(path)) from error


def write_file(path: Path, content: str | bytes) -> None:
    """Replace a file atomically, readable by its owner alone. Raises OSError; the old content then stands."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open_private(temporary, os.O_WRONLY | os.O_TRUNC) as file:
            write_whole(file, path, content.encode("utf-8", "replace") if isinstance(content, str) else content)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def link_file(path: Path, other: Path) -> None:
    """Give a file another name too; a copy of it, on a file system without links. Raises OSError."""
    try:
        os.link(path, other)
    except OSError:
        with path.open("rb") as source, open_private(other, os.O_WRONLY | os.O_EXCL) as target:
            shutil.copyfileobj(source, target)


def is_written_to(path: Path) -> bool:
    """Whether a worker still writes to a file: it holds a lock on what it was given, wherever it lives."""
    with contextlib.suppress(OSError), path.open("r+b") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


class Appender:
    """Appends lines to a file. What can't be written is kept, in order, until it can; `trouble` says why it can't."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.unwritten: list[str] = []
        self.trouble: OSError | None = None

    @contextlib.contextmanager
    def open(self) -> Iterator[IO[bytes]]:
        with open_private(self.path, os.O_RDWR | os.O_APPEND) as file:
            yield file

    def append(self, lines: Sequence[str]) -> None:
        self.unwritten += lines
        self.flush()

    def flush(self) -> None:
        self.trouble = None
        if self.unwritten:
            del self.unwritten[:-UNWRITTEN_LINES]
            try:
                self._write("".join(f"{line}\n" for line in self.unwritten))
                self.unwritten = []
            except OSError as error:
                self.trouble = error

    def _write(self, text: str) -> None:
        with self.open() as file:
            size = file.seek(0, os.SEEK_END)
            if size and os.pread(file.fileno(), 1, size - 1) != b"\n":
                text = f"\n{text}"  # somebody was killed in the middle of a line
            try:
                write_whole(file, self.path, text.encode("utf-8", "replace"))
            except OSError:
                file.truncate(size)  # what is tried again must not stand there twice
                raise


class Tail:
    """Reads a file as it grows, line by line, from a position in bytes on, or its last `lines` lines.

    What is truncated or rewritten is read anew. One that is renamed or removed is read on, as whoever writes to it
    does; with `follows` the file that takes its name comes next. Memory stays bounded: of a line longer than LINE_BYTES
    there is a word. `count` is of the times that it began anew; `end` is the position behind all that was read. A
    file `before` it, which nobody writes to any more, is read first.
    """

    _ANCHOR = 64  # bytes before `end`, by which a file that was rewritten is known

    def __init__(
        self,
        path: Path,
        position: int = 0,
        lines: int | None = None,
        follows: bool = False,
        before: Path | None = None,
    ) -> None:
        self.path = before or path
        self.count = 0
        self.end = position
        self.modified = 0.0  # when somebody last wrote to it, in seconds since the epoch, as it was read
        self.is_drained = False
        self._follows = follows
        self._file: IO[bytes] | None = None
        self._line = bytearray()  # the beginning of a line whose end is still to come
        self._skipped = 0  # bytes of a line that is too long
        self._mark: tuple[int, ...] = ()
        file = self._open()
        self.path = path
        if lines is not None:
            self._seek(_find_last_lines(file, lines) if file is not None else 0)

    def read(self) -> list[tuple[int, str]]:
        """Return what was written since the last call, up to a bound: each line and the position behind it.

        `is_drained` says whether that was all. Raises OSError.
        """
        if self._file is None:
            self._open()
        lines = self._read_on()
        file = self._file
        if self._follows and self.is_drained and not (file and is_open_as(self.path, file.fileno())):
            lines += self._read_on()  # what the old file still got
            self.close()
            self._begin_anew()
            self._open()
            lines += self._read_on()
        return lines

    def take_rest(self) -> list[tuple[int, str]]:
        return [self._end_line()] if self._line or self._skipped else []

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
        self._file = None
        self._mark = ()

    def _open(self) -> IO[bytes] | None:
        self.is_drained = True
        with contextlib.suppress(FileNotFoundError):
            self._file = self.path.open("rb")
            self._seek(self.end)
        return self._file

    def _seek(self, position: int) -> None:
        self.end = position
        self._anchor = b""
        if self._file is not None:
            self._file.seek(0, os.SEEK_END)  # else it might answer from its buffer, with what was there before
            self._file.seek(position)
            least = max(position - self._ANCHOR, 0)
            self._anchor = os.pread(self._file.fileno(), position - least, least)

    def _begin_anew(self) -> None:
        self.count += 1
        self._line.clear()
        self._skipped = 0
        self._seek(0)

    def _read_on(self) -> list[tuple[int, str]]:
        lines: list[tuple[int, str]] = []
        if self._file is None:
            return lines
        status = os.fstat(self._file.fileno())
        self.modified = status.st_mtime
        mark = (status.st_size, status.st_mtime_ns)
        self.is_drained = mark == self._mark
        if self.is_drained:
            return lines
        before = self.end - len(self._anchor)
        if status.st_size < self.end or os.pread(self._file.fileno(), len(self._anchor), before) != self._anchor:
            self._begin_anew()
        read = 0
        while read < BYTES_AT_ONCE and len(lines) < LINES_AT_ONCE:
            piece = self._file.readline(LINE_BYTES)
            if not piece:
                self.is_drained, self._mark = True, mark
                break
            read += len(piece)
            self.end += len(piece)
            self._anchor = (self._anchor + piece)[-self._ANCHOR :]
            text = piece.rstrip(b"\n") if piece.endswith(b"\n") else piece
            if self._skipped or len(self._line) + len(text) > LINE_BYTES:
                self._skipped += len(self._line) + len(text)
                self._line.clear()
            else:
                self._line += text
            if text is not piece:
                lines.append(self._end_line())
        return lines

    def _end_line(self) -> tuple[int, str]:
        text = self._line.decode("utf-8", "replace")
        if self._skipped:
            text = f"(a line of {self._skipped:,} bytes: see {self.path.name})"
        self._line.clear()
        self._skipped = 0
        return self.end, text


def _find_last_lines(file: IO[bytes], lines: int) -> int:
    end = position = file.seek(0, os.SEEK_END)
    found = 0
    while position > 0:
        size = min(READ_BYTES, position)
        position -= size
        file.seek(position)
        block = file.read(size)
        at = len(block) if position + size < end else len(block) - 1  # the last newline ends the last line
        while (at := block.rfind(b"\n", 0, max(at, 0))) >= 0:
            found += 1
            if found == lines:
                return position + at + 1
    return 0 if lines else end


# What a worker prints, for people.


def _read_items(given: object) -> list[dict[str, Any]]:
    return [item for item in given[:ITEMS_AT_MOST] if isinstance(item, dict)] if isinstance(given, list) else []


def _read_dict(event: Mapping[str, Any], key: str) -> dict[str, Any]:
    value = event.get(key)
    return value if isinstance(value, dict) else {}


def _read_number(event: Mapping[str, Any], key: str) -> float:
    value = event.get(key)
    return float(value) if isinstance(value, (int, float)) and 0 <= value < 1e12 else 0.0


def _read_words(value: object, length: int) -> str:
    """Return a text of a worker's as one line that a person can be shown and a process can be given."""
    text = str(value)[:WORDS_LENGTH].encode("utf-8", "replace").decode()  # half a surrogate pair is no argument
    return visible(shorten(text, length))


def format_output(event: Event, folder: str) -> list[str]:
    """Return an event of a worker as lines for people; paths below the folder are shown relative to it."""
    kind = event["type"]
    blocks = _read_items(_read_dict(event, "message").get("content"))
    lines: list[str] = []
    if kind == "assistant":
        for block in blocks:
            if block.get("type") == "text":
                lines += [visible(line) for line in str(block.get("text", "")).splitlines()[:LINES_AT_ONCE]]
            elif block.get("type") == "tool_use":
                lines.append(_format_tool(block.get("name"), block.get("input"), folder))
    elif kind == "user":
        contents = [block.get("content") for block in blocks if block.get("is_error")]
        texts = [
            " ".join(str(p.get("text", "")) for p in _read_items(c)) if isinstance(c, list) else c for c in contents
        ]
        texts = [re.sub("</?tool_use_error>", "", text) if isinstance(text, str) else text for text in texts]
        lines = [f"  error: {_format_argument(text, folder)}" for text in texts]
    elif kind == "rate_limit_event":
        lines = [f"  {notice}" for notice in [format_limit(_read_dict(event, "rate_limit_info"))] if notice]
    elif kind == "result":
        denials = _read_items(event.get("permission_denials"))
        tools = [_format_tool(d.get("tool_name"), d.get("tool_input"), folder) for d in denials]
        lines = [f"  permission denied: {tool}" for tool in tools]
    elif kind == "system":
        lines = [f"  {visible(line)}" for line in _format_system(event)]
    elif kind == "orchestrator":  # our own, of what prepares its worktree
        lines = [visible(str(event.get("text")))]
    return [f"  {line}" for line in lines] if event.get("parent_tool_use_id") else lines  # a subagent's


def _format_system(event: Event) -> list[str]:
    subtype = event.get("subtype")
    if subtype == "init":
        return [f"MCP server {name} failed to start: the worker lacks its tools" for name in _find_failed(event)]
    if subtype == "api_retry":
        status = f" ({event['error_status']})" if event.get("error_status") else ""
        turn = f"{_read_number(event, 'attempt'):.0f}/{_read_number(event, 'max_retries'):.0f}"
        pause = f"{_read_number(event, 'retry_delay_ms') / 1000:.1f}s"
        return [f"retry {turn} in {pause}: {event.get('error', 'error')}{status}"]
    return []


def _find_failed(event: Event) -> list[str]:
    """Return the MCP servers that failed to start, of an init event."""
    servers = _read_items(event.get("mcp_servers"))
    return [_read_words(s.get("name"), 60) for s in servers if s.get("status") == "failed"]


def format_limit_name(info: Mapping[str, Any]) -> str:
    return visible(shorten(str(info.get("rateLimitType") or "rate").replace("_", " "), 40))


def format_limit(info: Mapping[str, Any]) -> str:
    """Return in words what the facts of a rate limit event say; empty where nothing is near its limit."""
    resets_at, kind = _read_number(info, "resetsAt"), format_limit_name(info)
    at = f"{datetime.fromtimestamp(resets_at):%a %H:%M}" if 0 < resets_at < 1e11 else ""
    until, resets = (f" until {at}", f", resets {at}") if at else ("", "")
    if info.get("isUsingOverage"):
        return f"The {kind} limit is used up{until}: what follows is overage, which costs money"
    if info.get("status") == "rejected":
        return f"{kind} limit rejected{until}"
    share = f" is used to {_read_number(info, 'utilization'):.0%}" if "utilization" in info else " is near"
    return f"The {kind} limit{share}{resets}" if info.get("status") == "allowed_warning" else ""


# The argument that tells what a tool call is about, in order of precedence.
_TELLING = ("command", "file_path", "notebook_path", "path", "pattern", "url", "query", "id", "skill", "description")


def _format_tool(name: object, arguments: object, folder: str) -> str:
    """Return a tool call in one line: `Bash  npm test`, `Edit  src/api.ts`, `task_update  TASK-12 completed`."""
    given = arguments if isinstance(arguments, dict) else {}
    key = next((key for key in (*_TELLING, "prompt") if given.get(key)), next(iter(given), ""))
    words = _format_argument(given.get(key, ""), folder)
    more = {"id": "status", "skill": "args"}.get(key, "")
    if given.get(more):
        words += f" {_format_argument(given[more], folder)}"
    return f"{visible(str(name).rpartition('__')[2])}  {words}".rstrip()


def _format_argument(value: object, folder: str) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    text = text[:WORDS_LENGTH].replace(f"{folder}/", "") if folder else text[:WORDS_LENGTH]
    return visible(shorten(text, 160))


class Transcript:
    """Follows a worker's raw output and renders it as it grows, each line once.

    It reads from `start`, where the worker's output begins, and hands what stands from `position` on, as lines for
    people, to `write`. `words` is the last line that was no event: an error message, often enough. `signs` counts the
    signs of life: the heartbeat that claude prints while a tool runs is none, it would hide a tool that hangs.
    `is_done` says that its last result is printed, `background` which kinds of things run beside it; `outside` are its
    latest tool calls that name something below `root` and not in the worker's own folder.
    """

    # What 2.1.332 says when its patience with what runs in the background is at an end: in text mode all that there is.
    _STOPPING = re.compile(r"Background tasks still running (\w+) after the last turn \((.{1,200})\); stopping them")

    def __init__(
        self, raw: Path, write: Callable[[Sequence[str]], object], start: int, position: int, root: str = ""
    ) -> None:
        self._tail = Tail(raw, start)
        self._write = write
        self._root = root
        self.position = max(start, position)
        self.signs = 0
        self.words = ""
        self.activity = ""
        self.notice = ""
        self.overage = ""
        self.has_answer = False
        self.cost = 0.0
        self.background: frozenset[str] = frozenset()
        self.results = 0
        self.is_signalled = False  # by us: what it stops from then on, it stops since we said so
        self._calls: set[str] = set()  # of tools, for the background, that have not begun yet
        self._tasks: dict[str, tuple[str, str]] = {}  # what began there: its kind and its description
        self._stopped: list[str] = []  # what the CLI ended there before it was done, in words
        self._failed_servers: list[str] = []
        self._turns = 0
        self._folder = ""
        self._kind = ""
        self._result: Event = {}
        self._rejection: Event = {}
        self._is_rejected = False
        self._unprepared: Ending | None = None  # why it did not come to be claude
        self._is_in_setup = False
        self.outside: list[str] = []

    @property
    def is_done(self) -> bool:
        return bool(self._result)

    @property
    def has_begun(self) -> bool:
        return bool(self._folder)

    def pump(self) -> bool:
        """Render what came since the last time, up to a bound; return whether that was all. Raises OSError."""
        count, end = self._tail.count, self._tail.end
        lines = self._tail.read()
        if self._tail.count != count:
            self.position = 0
        self.signs += not lines and self._tail.end != end  # within a line
        self._write([shown for line in lines for shown in self._render(*line)])
        return self._tail.is_drained

    def finish(self) -> None:
        self._write([shown for line in self._tail.take_rest() for shown in self._render(*line)])
        self._tail.close()

    def read_ending(self, code: int | None, wall: float) -> Ending:
        """Return how the worker ended, from its exit code and what it last said of itself; and let go of its output."""
        self.finish()
        if self._unprepared is not None:
            return self._unprepared
        result = self._result
        errors = result.get("errors")
        errors = map(str, errors if isinstance(errors, list) else ())
        error = next((error for error in errors if not error.startswith("[")), "")  # that is a note for its makers
        said = result.get("result") or error or result.get("terminal_reason") or result.get("subtype")
        resets_at = _read_number(self._rejection, "resetsAt")
        denials = _read_items(result.get("permission_denials"))
        refused = dict.fromkeys(_read_words(denial.get("tool_name"), 60) for denial in denials)
        return Ending(
            code=code,
            words=_read_words(said if result else self.words, 200),
            has_result=bool(result),
            is_error=bool(result.get("is_error")),
            subtype=str(result.get("subtype", "")),
            api_status=int(_read_number(result, "api_error_status")),
            api_error=str(result.get("api_error") or ""),
            kind=self._kind,
            limit=format_limit_name(self._rejection) if self._rejection else "",
            is_rejected=self._is_rejected,
            reset_in=resets_at - wall if resets_at else None,
            failed_servers=tuple(self._failed_servers),
            refused=tuple(refused),
            remarks=tuple(self._stopped),
            turns=self._turns,
            cost=self.cost,
        )

    def _render(self, end: int, text: str) -> list[str]:
        """Take note of a line, and return it as lines for people, unless it was rendered before."""
        event = None
        with contextlib.suppress(ValueError, RecursionError):
            given = json.loads(text)
            event = given if isinstance(given, dict) and isinstance(given.get("type"), str) else None
            # What is set up may print what it likes: it is no claude's.
            event = None if event and self._is_in_setup and event["type"] != "orchestrator" else event
        self.signs += event is None or not event.get("heartbeat")
        if event is None:
            self.words = text.strip() or self.words
            stopping = self._STOPPING.match(text)
            if stopping:
                self._stopped = [_read_words(f"it stopped its background {stopping[2]} after {stopping[1]}", 200)]
        else:
            self._heed(event)
            self.words = ""  # no longer the last line
        lines = [text] if event is None else [*format_output(event, self._folder), *self._heed_task(event)]
        self.activity = next(filter(None, map(str.strip, reversed(lines))), self.activity)
        if end <= self.position:
            return []
        self.position = end
        wall = now = min(time.time(), self._tail.modified)  # it was written by then; when, only some events tell
        with contextlib.suppress(ValueError, OverflowError):
            said = read_time(str(event["timestamp"])) if event and "timestamp" in event else now
            wall = said if 0 < said < now + LIMIT_RESET_MAX else now
        return stamp_lines(wall, lines)

    def _heed(self, event: Event) -> None:
        if event["type"] == "result":
            self._result = event
            self.results += 1
            self._turns += int(_read_number(event, "num_turns"))
            # A process that reports twice reports its whole cost each time.
            self.cost = max(self.cost, _read_number(event, "total_cost_usd"))
        elif event["type"] == "system" and event.get("subtype") == "init":
            # Another turn of the same process. A limit that was hit in it stays hit.
            self._folder, self._result, self._kind = str(event.get("cwd") or ""), {}, ""
            self._failed_servers = _find_failed(event)
        elif event["type"] == "assistant":
            kind, is_subagents = str(event.get("error") or ""), bool(event.get("parent_tool_use_id"))
            is_synthetic = _read_dict(event, "message").get("model") == "<synthetic>"
            self.has_answer = self.has_answer or not (kind or is_synthetic)
            self._kind = self._kind if is_subagents else kind
            self._stopped = []  # it goes on
            self._is_rejected = self._is_rejected and not (is_subagents and kind == "rate_limit")  # it was that one's
        elif event["type"] == "rate_limit_event":
            self._heed_limit(_read_dict(event, "rate_limit_info"))
        elif event["type"] == "orchestrator":
            self._is_in_setup = bool(event.get("begins"))
            if event.get("failed"):
                self._heed_failure(event)

    def _heed_failure(self, event: Event) -> None:
        is_final = event["failed"] == "git" and not GitError(str(event.get("text"))).is_passing
        last = self.words if event["failed"] == "set-up" else ""
        words = _read_words(": ".join(filter(None, [str(event.get("text")), last])), 500)
        self._unprepared = Ending(None, words, Cause.FINAL if is_final else Cause.OTHER)

    def _heed_task(self, event: Event) -> list[str]:
        """Take note of what runs in the background, and of what the CLI ends there; return what the log says of it."""
        subtype, task_id, tasks = event.get("subtype"), str(event.get("task_id")), event.get("tasks")
        if event["type"] == "assistant":
            for block in _read_items(_read_dict(event, "message").get("content")):
                call = str(_read_dict(block, "input"))[:WORDS_LENGTH]
                if self._root and self._root in call.replace(self._folder or self._root, ""):
                    self.outside = [*self.outside, call][-ITEMS_AT_MOST:]
                if _read_dict(block, "input").get("run_in_background") and len(self._calls) < ITEMS_AT_MOST:
                    self._calls.add(str(block.get("id")))
        elif subtype == "background_tasks_changed" and isinstance(tasks, list):
            self.background = frozenset(str(task.get("task_type")) for task in tasks if isinstance(task, dict))
        elif subtype == "task_started" and len(self._tasks) < ITEMS_AT_MOST:
            call = str(event.get("tool_use_id"))
            if event.get("is_backgrounded", call in self._calls):  # 2.1.197 does not say
                self._tasks[task_id] = str(event.get("task_type")), _read_words(event.get("description"), 100)
                self._calls.discard(call)
                return [f"  in the background: {self._tasks[task_id][1]}"]
        elif subtype == "task_notification" and task_id in self._tasks:
            kind, name = self._tasks.pop(task_id)
            what = "command" if kind == "local_bash" else "subagent"
            if event.get("status") == "stopped" and not self.is_signalled and len(self._stopped) < 3:
                known = any(f'{what} "{name}"' in words for words in self._stopped)
                self._stopped += [] if known else [f'it stopped its background {what} "{name}"']
            return [f"  in the background, {_read_words(event.get('status'), 20)}: {name}"]
        return []

    def _heed_limit(self, info: dict[str, Any]) -> None:
        status = str(info.get("status"))
        if info.get("isUsingOverage"):  # beyond its limit it works on
            self._rejection, self._is_rejected, self.overage = {}, False, format_limit(info)
        elif status.startswith("allowed"):
            self._is_rejected = False
            self.notice = format_limit(info) or self.notice
        elif status == "rejected" and (info.get("rateLimitType") or info.get("resetsAt")):
            self._rejection, self._is_rejected = info, True  # without a name and a reset, the API is busy


def read_positions(project: Project) -> dict[str, int]:
    try:
        positions = json.loads(project.positions.read_text(encoding="utf-8"))
        return {str(name): int(position) for name, position in positions.items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}  # then the last worker's output is rendered again


def find_archived(project: Project, stream_id: str, suffix: str) -> Path | None:
    """Return the latest log of a stream that `clean` has put away; None where it has none, or another one since."""
    if project.file(stream_id, suffix).exists():
        return None
    found = [path for path in project.archive.glob(f"*/{project.file(stream_id, suffix).name}") if path.is_file()]
    return max(found, key=lambda path: path.stat().st_mtime) if found else None


def read_last_words(project: Project, stream_id: str) -> list[str]:
    """Return the last lines in a stream's log that are its last worker's own, so far as it is rendered."""
    lines: list[str] = []
    with contextlib.suppress(OSError):
        before = find_archived(project, stream_id, ".log")
        with contextlib.closing(Tail(project.file(stream_id, ".log"), lines=LOG_LINES, before=before)) as log:
            lines = [visible(split_stamp(line)[1][:WORDS_LENGTH]) for _, line in log.read()]
    heads = [-1, *(number for number, line in enumerate(lines) if line.startswith("──── "))]
    has_ended = len(heads) > 1 and lines[heads[-1]].startswith("──── ended ")
    own = lines[heads[-2] + 1 : heads[-1]] if has_ended else lines[heads[-1] + 1 :]
    return [line for line in own if line.strip() and not line.startswith(_NO_WORDS)][-LAST_WORDS:]


_NO_WORDS = ("Started worker for ", "Took over the worker ")  # of a worker's, but ours


class LogReader:
    """A stream's log as it grows, and behind it what a worker prints while no orchestrator renders it."""

    def __init__(self, project: Project, stream_id: str, lines: int, raw_start: int) -> None:
        self._project = project
        self._stream_id = stream_id
        self._raw_start = raw_start
        self._most: int | None = lines  # of what is there at first
        archived = find_archived(project, stream_id, ".log")
        self.tail = Tail(project.file(stream_id, ".log"), lines=lines, follows=True, before=archived)
        self._transcript: Transcript | None = None
        self._lines: list[str] = []
        self._begin = 0  # where that stands in the output which was shown ahead of the log, so many lines
        self._count = 0
        self._ahead: Iterator[str] = iter(())
        self._next: str | None = None

    def read(self, has_orchestrator: bool) -> Collection[str]:
        """Return what is new, each line once: what was shown ahead of the log is not shown again. Raises OSError."""
        shown: collections.deque[str] = collections.deque(maxlen=self._most)
        self._most = None
        if has_orchestrator and self._transcript is not None:
            # The next orchestrator catches up with us: what it writes is rendered once more, to be known again.
            again = itertools.chain.from_iterable(self._pump(self._open()))
            self._ahead, self._transcript = itertools.islice(again, self._count), None
            self._next = next(self._ahead, None)
        for _, line in self.tail.read():
            if self._next is not None and split_stamp(line)[1] == split_stamp(self._next)[1]:  # read at another time
                self._next = next(self._ahead, None)
            else:
                shown.append(line)
        if not has_orchestrator:
            if self._transcript is None:
                self._begin = read_positions(self._project).get(file_name(self._stream_id), 0)
                self._transcript, self._count = self._open(), 0
            for lines in self._pump(self._transcript):
                shown += lines
                self._count += len(lines)
        return shown

    def _open(self) -> Transcript:
        start = min(self._raw_start, self._begin)  # where the worker says which folder its paths are relative to
        return Transcript(self._project.file(self._stream_id, ".jsonl"), self._lines.extend, start, self._begin)

    def _pump(self, transcript: Transcript) -> Iterator[list[str]]:
        is_whole = False
        while not is_whole:
            is_whole = transcript.pump()
            lines, self._lines[:] = list(self._lines), []
            yield lines


# Processes.

Tree = Dict[int, "psutil.Process"]


def is_alive(process: psutil.Process) -> bool:
    """Whether this very process, not another with its PID, lives; a zombie does not."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
    except (OSError, psutil.AccessDenied):
        return True  # nobody can look now: who is not known to be dead lives


def read_process_table() -> Tree:
    """Return the living processes that could be a worker's, by PID, with `environ` (None where hidden) and `session`.

    Both stand in `.info`. Linux gives the session 0 to the kernel's own processes, and to those whose session nobody
    here has made: a worker leads one, so what has none is none of its tree.
    """
    table = {}
    for pid in psutil.pids():
        if pid == os.getpid() or _read_session(pid) == 0:
            continue
        with contextlib.suppress(psutil.NoSuchProcess):
            process = psutil.Process(pid)
            environ = _read_environ(process)
            # A zombie has none. To ask each process for its status, and for its parent, would double the time.
            if environ or environ is None or process.status() != psutil.STATUS_ZOMBIE:
                # The session last: whoever has a worker's environment has left the session of who started it.
                process.info = {"environ": environ, "session": _read_session(pid)}
                table[pid] = process
    return table


def _read_environ(process: psutil.Process) -> dict[str, str] | None:
    # In the middle of an exec a process has neither an environment nor arguments: it is asked until that is over.
    times_named = 0
    try:
        for _ in range(EXEC_LOOKS):
            environ: dict[str, str] = process.environ()
            times_named += bool(environ or process.cmdline())
            if environ or times_named == 3 or process.status() == psutil.STATUS_ZOMBIE:
                return environ
    except psutil.AccessDenied:
        return None
    return {}


def _read_session(pid: int) -> int:
    try:
        return os.getsid(pid)
    except OSError:
        return -1  # gone, or hidden


def read_inner_pid(pid: int) -> int:
    """Return a process's PID as it sees that itself: one in a container has another for those outside."""
    with contextlib.suppress(OSError):
        found = re.search(r"(?m)^NSpid:.*\s(\d+)$", Path(f"/proc/{pid}/status").read_text(encoding="utf-8"))
        return int(found[1]) if found else pid
    return pid


@functools.lru_cache(maxsize=1)
def read_system() -> str:
    """Return what tells PID namespaces apart, those of other machines too; empty where the system has none of them."""
    with contextlib.suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    return ""


def read_trees(
    project: Project, seen: Mapping[str, Tree], claims: Mapping[int, str] | None = None
) -> tuple[dict[str, Tree], dict[str, str]]:
    """Return by stream the processes that belong to its workers, by PID; and who else works on streams.

    A process belongs to a worker by its environment, by its session where a worker's process made that, and by
    descent; where its environment is hidden, by a PID file that `claims` it, and its command. `seen` are trees as they
    were found before: who has lost its parent since is found by nothing else. Who has the project's path or database
    and not its folder is another one's worker.
    """
    table = read_process_table()
    foreign: dict[str, str] = {}
    owner = {pid: i for i, tree in seen.items() for pid, p in tree.items() if pid in table and is_alive(p)}
    for pid, process in table.items():
        environ = process.info["environ"]
        if environ is None and claims and pid in claims:
            with contextlib.suppress(psutil.Error):
                command = process.cmdline()
                if WORKER_FLAGS[-1] in command and any(claims[pid] in word for word in command):
                    owner[pid] = claims[pid]
        elif environ and "ORCHESTRATE_STREAM" in environ:
            stream_id, path = environ["ORCHESTRATE_STREAM"], environ.get("ORCHESTRATE_PROJECT", "")
            if project.is_known_as(environ.get("ORCHESTRATE_ROOT", ""), path):
                owner[pid] = stream_id
            elif path == str(project.root) or is_database_of(environ, project.database):
                foreign.setdefault(stream_id, f"waits for another folder's worker (PID {pid}, begun in {path})")
    sessions = {pid: process.info["session"] for pid, process in table.items() if process.info["session"] > 0}
    # As long as its session has a member, nobody gets the PID of one that is gone. A session whose leader lives and is
    # not ours is a person's terminal, and no sign of anything.
    of_session = {pid: stream_id for stream_id, tree in seen.items() for pid in tree if pid not in table}
    of_session.update(
        (sid, owner[pid]) for pid, sid in sessions.items() if pid in owner and (sid in owner or sid not in table)
    )
    owner.update({pid: of_session[sid] for pid, sid in sessions.items() if pid not in owner and sid in of_session})
    children: dict[int, list[int]] = {}
    for pid in table if owner else ():
        with contextlib.suppress(psutil.Error):  # gone, or hidden
            children.setdefault(table[pid].ppid(), []).append(pid)
    found = list(owner)
    for pid in found:  # grows while it is read
        fresh = [child for child in children.get(pid, []) if child not in owner]
        owner.update(dict.fromkeys(fresh, owner[pid]))
        found += fresh
    trees: dict[str, Tree] = {}
    for pid, stream_id in owner.items():
        trees.setdefault(stream_id, {})[pid] = table[pid]
    return trees, foreign


def is_database_of(environ: Mapping[str, str], database: Path | None) -> bool:
    """Whether a worker with these variables completes its tasks in this database."""
    theirs = Path(environ.get("TASK_DB_PATH", ""), environ.get("WORKSPACE_ID", ""), "tasks.db")
    return database is not None and theirs.resolve() == database.resolve()


class Discovery(NamedTuple):
    """What the process table and the PID files show: workers with their trees, and PID files that mean nothing.

    `foreign` says of streams who else works on them.
    """

    workers: dict[str, Worker]
    trees: dict[str, Tree]
    stale: dict[Path, str]
    foreign: Mapping[str, str] = {}


def discover_workers(project: Project, stream_ids: Iterable[str], seen: Mapping[str, Tree] | None = None) -> Discovery:
    """Find the workers of a project, whatever became of the orchestrator that started them. Touches nothing.

    `seen` are trees that were found before.
    """
    id_of = {file_name(stream_id): stream_id for stream_id in stream_ids}
    files = {path: _read_pid(path) for path in sorted(project.pids.glob("*.pid"))}
    claims = {pid: id_of[path.stem] for path, pid in files.items() if pid and path.stem in id_of}
    trees, foreign = read_trees(project, seen or {}, claims)
    workers = {}
    for stream_id, tree in trees.items():
        runs = {pid: (process.info["environ"] or {}).get("ORCHESTRATE_RUN", "") for pid, process in tree.items()}
        claimed = files.get(project.file(stream_id, ".pid"), 0)
        leader = next((pid for pid in sorted(runs) if runs[pid].endswith(f".{pid}")), 0)
        leader = leader or next((pid for pid in sorted(runs) if runs[pid].endswith(f".{read_inner_pid(pid)}")), 0)
        leader = claimed if claimed in tree else leader
        ending, leftovers = (None, ()) if leader else (Ending(None), tuple(sorted(tree)))
        workers[stream_id] = Worker(stream_id, leader, runs.get(leader, ""), ending, leftovers)
    living = {project.file(worker.stream_id, ".pid"): worker.pid for worker in workers.values()}
    stale = {path: "it holds no worker's PID" for path, pid in files.items() if not pid}
    for path, pid in files.items():
        if pid and living.get(path) != pid:
            stale[path] = f"process {pid} is gone"
            with contextlib.suppress(psutil.NoSuchProcess):
                if is_alive(psutil.Process(pid)):
                    stale[path] = f"process {pid} is another program"
    return Discovery(workers, trees, stale, foreign)


def _read_pid(path: Path, least: int = 2) -> int:
    """Return the PID in a file; 0 where it holds none from `least` on: 1 is no worker, but may be an orchestrator."""
    try:
        text = path.read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        return 0
    return int(text) if re.fullmatch(r"[0-9]{1,10}", text) and int(text) >= least else 0


def signal_tree(tree: Tree, signum: int) -> None:
    """Signal every process of a tree, and never a newer one that has got its PID: psutil looks at its start.

    Raises OSError where a process can't be identified.
    """
    for process in tree.values():
        # Gone; or not ours, and then it survives and is named.
        with contextlib.suppress(ProcessLookupError, PermissionError, psutil.NoSuchProcess, psutil.AccessDenied):
            process.send_signal(signum)


def run_bounded(
    words: Sequence[str],
    timeout: float,
    environ: Mapping[str, str],
    cwd: Path | None = None,
    is_interrupted: Callable[[], bool] = lambda: False,
) -> tuple[int, str, str]:
    """Run a program that asks nobody; return its exit code and what it printed, as bytes would be file names.

    Raises OSError; TimeoutError where it takes longer than `timeout` seconds or `is_interrupted` says so: then it is
    ended with its group, at first so that it can let go of its locks.
    """
    null, pipe = subprocess.DEVNULL, subprocess.PIPE
    child = subprocess.Popen(words, cwd=cwd, env=environ, stdin=null, stdout=pipe, stderr=pipe, start_new_session=True)
    with child:
        try:
            for _ in range(max(int(timeout / TICK), 1)):
                with contextlib.suppress(subprocess.TimeoutExpired):
                    out, err = child.communicate(timeout=TICK)
                    return child.returncode, out.decode("utf-8", "surrogateescape"), err.decode("utf-8", "replace")
                if is_interrupted():
                    raise TimeoutError("was interrupted")
            raise TimeoutError(f"took longer than {max(timeout, 1):.0f} s")
        finally:
            for signum in (signal.SIGTERM, signal.SIGKILL):
                if child.poll() is None:
                    os.killpg(child.pid, signum)
                    with contextlib.suppress(subprocess.TimeoutExpired):
                        child.wait(min(timeout, 1))


# The worker's command, its environment and its prompt.


# Looked for at the start, since a worker may remove the virtual environment that this runs in. It imports nothing of
# the folder that it is started in.
_PYTHON = (os.path.realpath(sys.executable), "-SIc")


class Command(NamedTuple):
    words: tuple[str, ...] = ("claude",)
    output_format: str = "stream-json"

    def argv(self, prompt: str, budget: float = 0.0, options: Sequence[str] = ()) -> list[str]:
        """Return the whole command; the budget is in US dollars, 0 for none.

        `-p PROMPT` stays last: an option with several values would swallow the prompt.
        """
        form = ["--output-format", self.output_format, "--verbose"] if self.output_format != "text" else []
        limit = ["--max-budget-usd", f"{int(budget * 100) / 100:.2f}"] if budget else []
        if "--settings" in options and "--settings" in self.words:  # whoever names others means these
            at = options.index("--settings")
            options = [*options[:at], *options[at + 2 :]]
        return [*self.words, *WORKER_FLAGS, *form, *limit, *options, "-p", prompt]

    def find(self, environ: Mapping[str, str]) -> str:
        """Return the path of its program. Raises OrchestrateError where this user can't execute it."""
        program = self.words[0]
        path = shutil.which(program, path=environ.get("PATH"))
        if path and Path(program).name == "claude" and os.geteuid() == 0 and environ.get("IS_SANDBOX") != "1":
            raise OrchestrateError(
                "claude refuses --dangerously-skip-permissions for root",
                "Run as another user, or in a sandbox of your own say so: export IS_SANDBOX=1",
            )
        if path:
            return path
        if os.sep in program and Path(program).exists():
            raise OrchestrateError(f"{program} is not executable", f"Make it so: chmod +x {shlex.quote(program)}")
        remedy = "Install Claude Code (npm install -g @anthropic-ai/claude-code) or add it to PATH"
        raise OrchestrateError(f"{program}: command not found", f"{remedy}; --claude CMD names another command.")


def read_command(text: str, output_format: str, cwd: Path) -> Command:
    """Return the command that `--claude` gives as shell words; a relative path is taken from the working directory."""
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise click.UsageError(f"--claude {text!r}: {error}") from error
    if not words:
        raise click.UsageError("--claude is empty")
    if os.sep in words[0]:
        words[0] = str(cwd / words[0])  # workers run in other folders
    return Command(tuple(words), output_format)


def keep_variables(environ: Mapping[str, str]) -> dict[str, str]:
    return {key: value for key, value in environ.items() if not re.fullmatch(REMOVED_VARIABLES, key)}


def read_prompt_template(project: Project) -> str:
    """Return the project's own prompt template where it has one, else the built-in one. Raises OSError."""
    path = project.prompt
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return WORKER_PROMPT
    except (IsADirectoryError, PermissionError, ValueError) as error:
        raise OrchestrateError(
            f"{path} can't be read: {error}", "Repair it, or remove it to use the built-in prompt."
        ) from error


def format_prompt(template: str, stream: Stream, record: Record, more: Sequence[str] = ()) -> str:
    """Return a worker's prompt, with `more` lines behind the template.

    One that follows another worker's end is told how that went and what it left.
    """
    values = {"id": stream.id, "stream_id": stream.id, "phase": stream.phase.value, "name": shorten(stream.name, 200)}
    prompt = re.sub(r"\{stream\.(id|stream_id|phase|name)\}", lambda match: values[match[1]], template)
    lines = [*WORKER_RULES.split("\n")[:-1], *more]
    if record.last_ending and record.attempts:
        begun = [
            f"{task.id}: {shorten(task.title, 200)}" for task in stream.named_tasks if task.status == "in_progress"
        ]
        lines += [
            "",
            "## This is a restart",
            f"- This is attempt {record.attempts + 1} on {stream.id}. The last worker ended: {record.last_ending}",
            "- Look at what it has left (git status, git log) before you change anything",
        ]
        lines += ["- These tasks stand in_progress and are now yours to finish:"] if begun else []
        lines += [f"  - {task}" for task in begun[:50]]
        lines += [f"  - and {len(begun) - 50} more"] if len(begun) > 50 else []
    prompt = "\n".join([prompt.rstrip("\n"), *lines, ""])
    prompt = prompt.replace("\0", "\ufffd")
    return f"\n{prompt}" if prompt.startswith("-") else prompt  # else the CLI takes it for an option


# git, and the worktrees of parallel streams.


class GitError(OSError):
    """git failed; its own words say why. `is_passing` says that it may go better another time."""

    def __init__(self, words: str, is_passing: bool = False) -> None:
        super().__init__(words)
        self.is_passing = is_passing or bool(re.search(_PASSING_WORDS, words))


_PASSING_WORDS = (
    r"\.lock'|No space left|Disk quota|Cannot allocate|temporarily unavailable|Too many open|unable to create file"
    r"|failed to read .*/worktrees/"  # one that another git is making at this moment
)


class Git(NamedTuple):
    """git in one folder. It asks nobody and runs no hook, and it ends when `is_interrupted` says so.

    A command may take `timeout` seconds, and all of them until `deadline`, in monotonic seconds. `options` stand before
    each command.
    """

    root: Path
    is_interrupted: Callable[[], bool] = lambda: False
    timeout: float = GIT_TIMEOUT
    deadline: float = NEVER
    options: tuple[str, ...] = ()

    def hurry(self) -> Git:
        """Return it for questions that serve a warning or a display alone: they hold nobody up."""
        return self._replace(timeout=ADVICE_TIMEOUT, deadline=time.monotonic() + 2 * ADVICE_TIMEOUT)

    def wait(self) -> Git:
        """Return it for what may take long where a person waits for it, or a working tree is written."""
        return self._replace(timeout=CHECKOUT_TIMEOUT)

    def run(self, *words: str, most: int = 0) -> str:
        environ = {**keep_variables(os.environ), **GIT_VARIABLES}
        timeout = min(self.timeout, self.deadline - time.monotonic())
        try:
            code, out, err = run_bounded(
                [*GIT, *self.options, *words], timeout, environ, self.root, self.is_interrupted
            )
        except TimeoutError as error:
            raise GitError(f"git {words[0]} {error}", is_passing=True) from error
        except OSError as error:
            if error.filename != GIT[0]:
                raise
            raise OrchestrateError("git: command not found", "Install git, or start with --no-worktrees.") from error
        if not 0 <= code <= most:
            said = [line for line in err.splitlines() if line]
            telling = [line for line in said if line.startswith(("fatal: ", "error: "))]
            raise GitError(f"git {words[0]}: {(telling or said[-1:] or [f'exit code {code}'])[0]}")
        return out

    def find(self, *words: str) -> list[str]:
        """Return the names that a command prints, each of which ends in NUL. Raises GitError."""
        return self.run(*words).split("\0")[:-1]


class Worktree(NamedTuple):
    """A working tree that git has registered; `branch` is empty where none is checked out in it."""

    folder: Path
    head: str = ""
    branch: str = ""
    lock: str | None = None  # why it is locked; None where it is not

    @property
    def is_there(self) -> bool:
        return (self.folder / ".git").exists()

    @property
    def is_locked(self) -> bool:
        return self.lock not in (None, "initializing")  # that is git's own, of an add that was killed

    @property
    def state(self) -> Path:
        """git's own folder for it. `orchestrate` lies there where we have made it: see PREPARE."""
        link = self.folder / ".git"
        return self.folder / (os.fsdecode(link.read_bytes())[len("gitdir: ") : -1] if link.is_file() else link)

    @property
    def mark(self) -> Path:
        return self.state / "orchestrate"

    @property
    def is_new(self) -> bool:
        """Whether no worker has had it yet."""
        return self.is_there and (self.state / "orchestrate-new").exists()

    @property
    def is_unfilled(self) -> bool:
        """Whether it holds nothing yet but what git puts there: its maker was killed, or is at work."""
        if not self.is_there:
            return self.lock == "initializing" and self.folder.is_dir() and not any(self.folder.iterdir())
        is_empty = len(list(self.folder.iterdir())) == 1 and not self.is_locked
        return (is_empty or self.is_new) and not (self.state / "index").exists()

    @property
    def begun(self) -> str:
        """The git command that has stopped in its middle there, empty where none has."""
        is_am = (self.state / "rebase-apply" / "applying").exists()
        return "am" if is_am else next((word for name, word in _BEGUN.items() if (self.state / name).exists()), "")

    @property
    def rebased(self) -> str:
        """The branch that is rebased there, which git counts as checked out."""
        names = (self.state / folder / "head-name" for folder in ("rebase-merge", "rebase-apply"))
        return next((name.read_text().strip()[len("refs/heads/") :] for name in names if name.exists()), "")

    def is_astray(self, branch: str, start: str) -> bool:
        """Whether somebody has left it on another branch than this one, or on none."""
        is_in_the_making = self.is_unfilled or (self.is_new and not self.branch and self.head == start)
        return self.is_there and self.branch != branch and not is_in_the_making


# What lies in git's own folder of a working tree while a command has stopped in its middle.
_BEGUN = {"rebase-merge": "rebase", "rebase-apply": "rebase", "MERGE_HEAD": "merge", "BISECT_LOG": "bisect"}
_BEGUN.update({"CHERRY_PICK_HEAD": "cherry-pick", "REVERT_HEAD": "revert"})


class Repository(NamedTuple):
    """The git repository of a project, as it stands now.

    `head` is the commit that streams branch from, `branch` the branch that is checked out, empty where none is;
    `prefix` leads from the top of the working tree to the project. `branches` are the commits of all branches, by their
    full names, `worktrees` all working trees by their folders, `common` is git's own folder for all of them. `lacking`
    are the programs of required filters that are not there, by filter: git does without them then. `drivers` are
    options that switch off the merge drivers that somebody has set up. `obstacle` says why there can be no worktrees.
    """

    git: Git
    prefix: str = ""
    head: str = ""
    branch: str = ""
    branches: Mapping[str, str] = {}
    worktrees: Mapping[Path, Worktree] = {}
    common: Path = Path()
    lacking: Mapping[str, str] = {}
    drivers: tuple[str, ...] = ()
    obstacle: str = ""

    @property
    def place(self) -> str:
        return self.branch or f"a detached HEAD at {self.head[:10]}"

    @property
    def top(self) -> Path:
        return self.git.root.joinpath(*[".." for _ in Path(self.prefix).parts]).resolve()

    def find_ref(self, branch: str) -> str:
        """Return the full name of a branch, also of one that only a remote has; empty where there is none."""
        remote = [ref for ref in self.branches if ref.startswith("refs/remotes/") and ref.split("/", 3)[3:] == [branch]]
        own = f"refs/heads/{branch}"
        return own if own in self.branches else next(iter(sorted(remote, key=lambda r: "/origin/" not in r)), "")


def read_repository(git: Git, folders: Iterable[Path] = ()) -> Repository:
    """Return the repository that a project lies in; worktrees in these folders that were moved are taken back.

    Raises GitError, OrchestrateError.
    """
    if not any((folder / ".git").exists() for folder in (git.root, *git.root.parents)):
        return Repository(git, obstacle="it lies in no git repository")
    words = ("--is-inside-work-tree", "--revs-only", "HEAD^{commit}", "--symbolic-full-name", "HEAD")
    try:  # the last two answers are missing where there is no commit yet
        inside, head, ref = [*git.run("rev-parse", *words).split("\n"), ""][:3]
    except GitError as error:
        if "not a git repository" not in str(error):
            raise
        return Repository(git, obstacle=str(error))
    if inside != "true":
        return Repository(git, obstacle="its git repository is bare")
    if not head:
        return Repository(git, obstacle="its git repository has no commit yet")
    prefix = git.run("rev-parse", "--show-prefix")[:-1]
    branch = ref[len("refs/heads/") :] if ref.startswith("refs/heads/") else ""
    if prefix and not git.run("ls-tree", head):
        return Repository(
            git, prefix, head, branch, obstacle="the last commit of its git repository has nothing of this folder"
        )
    lacking, drivers = read_programs(git)
    for name in lacking:
        off = (f"filter.{name}.required=false", *(f"filter.{name}.{what}=" for what in ("smudge", "clean", "process")))
        git = git._replace(options=(*git.options, *(word for setting in off for word in ("-c", setting))))
    lines = git.run("for-each-ref", "--format=%(refname) %(objectname)", "refs/heads", "refs/remotes").splitlines()
    branches = dict(line.split(" ") for line in lines)
    common = git.root / git.run("rev-parse", "--git-common-dir")[:-1]
    repository = Repository(git, prefix, head, branch, branches, read_worktrees(git), common, lacking, drivers)
    moved = [str(folder) for folder in folders if is_moved(repository, folder)]
    if moved:
        with contextlib.suppress(GitError):  # then it is none of this repository
            git.run("worktree", "repair", *moved)
        repository = repository._replace(worktrees=read_worktrees(git))
    return repository


def is_moved(repository: Repository, folder: Path) -> bool:
    """Whether a worktree of this very repository lies there, and git looks for one of the two elsewhere."""
    if not (folder / ".git").is_file():
        return False
    state, own = Worktree(folder).state, repository.common.resolve() / "worktrees"
    if state.is_dir():
        return folder not in repository.worktrees and state.resolve().parent == own
    return (own / state.name).is_dir() and state.parent != own


def holds_alone(repository: Repository, tree: Worktree) -> bool:
    """Whether git's own folder for a worktree that is gone has work that is nowhere else: then it is kept.

    Somebody may have moved the worktree aside, or its disk is not there. Raises GitError.
    """
    for path in repository.common.glob("worktrees/*/gitdir"):
        if os.fsdecode(path.read_bytes()).rstrip("\n") == str(tree.folder / ".git"):
            git, state = repository.git._replace(options=(f"--git-dir={path.parent}", "--work-tree=.")), path.parent
            is_staged = (state / "index").exists() and git.find("diff-index", "--cached", "--name-only", "-z", "HEAD")
            ends = ("--branches", "--remotes", "--tags")
            is_begun = any((state / name).exists() for name in _BEGUN)
            return bool(is_staged or is_begun or git.run("rev-list", "--max-count=1", tree.head, "--not", *ends))
    return False


def read_programs(git: Git) -> tuple[dict[str, str], tuple[str, ...]]:
    """Return the programs of required filters that are not there, by filter, and what switches merge drivers off.

    Raises GitError.
    """
    words = ("config", "-z", "--get-regexp", r"^(filter\..*\.(required|smudge|process)|merge\..*\.driver)$")
    settings = dict(line.partition("\n")[::2] for line in git.run(*words, most=1).split("\0")[:-1])
    lacking = {}
    for key, command in settings.items():
        name, _, what = key.partition(".")[2].rpartition(".")
        program = " ".join(command.split()[:1])
        is_required = settings.get(f"filter.{name}.required", "false").lower() in ("", "true", "yes", "on", "1")
        if is_required and what in ("smudge", "process") and program and shutil.which(program) is None:
            lacking[name] = program
    return lacking, tuple(word for key in settings if key.startswith("merge.") for word in ("-c", f"{key}=false"))


def read_worktrees(git: Git) -> dict[Path, Worktree]:
    """Return all working trees of a repository, by their folders. Raises GitError."""
    try:
        listed = git.run("worktree", "list", "--porcelain", "-z")
    except GitError:  # before git 2.36, which takes a path to have no newline
        listed = git.run("worktree", "list", "--porcelain").replace("\n", "\0")
    found = {}
    for block in listed.split("\0\0"):
        facts = dict(line.partition(" ")[::2] for line in block.split("\0"))
        if "worktree" in facts:
            folder, branch = Path(facts["worktree"]), facts.get("branch", "").replace("refs/heads/", "", 1)
            found[folder] = Worktree(folder, facts.get("HEAD", ""), branch, facts.get("locked"))
    return found


def name_worktree(project: Project, stream: Stream) -> tuple[Path, str]:
    """Return the folder of a stream's worktree and its branch: those that its tasks name, else those of its id."""
    given = os.path.expanduser(stream.worktree_path)  # noqa: PTH111 - pathlib's fails where there is no such user
    folder = os.path.realpath(project.root / given if given else project.worktrees / file_name(stream.id))
    return Path(folder), stream.branch_name or name_branch(stream.id)


def name_branch(stream_id: str) -> str:
    """Return the branch of a stream whose tasks name none: never that of another id."""
    # git takes no tilde, no two dots in a row, no dot and no `.lock` at the end; no other id gives what stands for them
    safe = re.sub(r"~|\.(?=\.|lock\Z|\Z)", lambda match: f"%{ord(match[0]):02X}", file_name(stream_id))
    return f"stream/{shorten_name(safe, '%')}"


Problem = Tuple[str, str]  # what is wrong, and what to do about it


def look_ahead(
    project: Project, git: Git, streams: Iterable[Stream], folders: Mapping[str, str], setup: str
) -> tuple[Repository, list[Problem]]:
    """Return a project's repository and what to warn of before these streams are worked on.

    `folders` are where their last workers have worked. Raises OrchestrateError where one can have no worktree, or git
    refuses; a git that only hangs is warned of: it may pass.
    """
    parallel = [stream for stream in streams if stream.phase is Phase.PARALLEL]
    try:
        repository = read_repository(git)
        if repository.obstacle or not parallel:
            return repository, []
        refused: dict[Problem, list[str]] = {}
        places = {stream.id: name_worktree(project, stream) for stream in parallel}
        names = {f"refs/heads/{name}": "" for _, name in places.values()}
        planned = repository._replace(branches={**names, **repository.branches})  # one may be in another's way
        sharers: dict[object, list[str]] = {}
        for stream_id, place in places.items():
            for key in place:
                sharers.setdefault(key, []).append(stream_id)
        for stream in parallel:
            problem = find_refusal(project, planned, stream, folders.get(stream.id, ""))
            twin = next((i for key in places[stream.id] for i in sharers[key] if i != stream.id), "")
            if (
                problem is None
                and twin
                and not (places[twin] == places[stream.id] and is_after(parallel, stream.id, twin))
            ):
                shared = [word for word, a, b in zip(("worktree", "branch"), places[twin], places[stream.id]) if a == b]
                what = f"{visible(twin)} has the same {' and '.join(shared)}, and may be at work at the same time"
                what = what if len(shared) == 2 else f"{visible(twin)} has the same {shared[0]}, not both"
                problem = (what, "Correct the worktreePath or the branchName.")
            if problem is not None:
                refused.setdefault(problem, []).append(visible(stream.id))
        if refused:
            words = [f"{', '.join(names)}: {what}" for (what, _), names in refused.items()]
            raise OrchestrateError("\n        ".join(words), "\n".join(dict.fromkeys(way for _, way in refused)))
        return repository, find_warnings(project, repository, parallel, setup)
    except GitError as error:
        if error.is_passing:
            return Repository(git), [(f"git can't be asked: {error}", "Look why: git status")]
        owned = re.search(r"dubious ownership in repository at '(.*)'", str(error))
        way = f"git config --global --add safe.directory {shlex.quote(owned[1])}" if owned else "git status"
        raise OrchestrateError(str(error), f"Run: {way}") from error


def is_after(streams: Sequence[Stream], one: str, other: str) -> bool:
    """Whether one of two streams waits for the other, by what it depends on, or that does."""
    needs = {stream.id: {stream.id, *stream.dependencies} for stream in streams}
    for _ in streams:
        needs = {i: {far for near in names for far in needs.get(near, ())} for i, names in needs.items()}
    return other in needs[one] or one in needs[other]


def find_holders(repository: Repository, folder: Path, branch: str) -> tuple[Worktree | None, str]:
    """Return the other working tree that has a branch checked out, and the folder of one that this folder lies in."""
    root, trees = repository.git.root, repository.worktrees
    first = next(iter(trees))
    # One whose .git leads to another repository is that of a project that this one was copied from.
    own = repository.common.resolve() / "worktrees"
    others = [tree for f, tree in trees.items() if f != folder and (f == first or tree.is_locked or tree.is_there)]
    others = [t for t in others if t.folder == first or not t.is_there or t.state.resolve().parent == own]
    holder = next((t for t in others if branch in (t.branch, t.is_there and t.rebased)), None)
    holder = Worktree(root) if holder is None and branch == repository.branch and folder != root else holder
    around = (first, root, *root.parents)
    outer = next((str(t.folder) for t in others if t.folder in folder.parents and t.folder not in around), "")
    return holder, outer


def find_refusal(project: Project, repository: Repository, stream: Stream, last_folder: str) -> Problem | None:
    """Return why a stream can have no worktree; `last_folder` is where its last worker has worked. Raises GitError."""
    root, trees, (folder, branch) = repository.git.root, repository.worktrees, name_worktree(project, stream)
    here = trees.get(folder)
    is_there = here is not None and here.is_there
    check = ("check-ref-format", "--branch", branch)
    is_odd = stream.branch_name and repository.git.run(*check, most=128)[:-1] != branch
    is_odd = is_odd or stream.branch_name in ("@", "HEAD") or any(len(os.fsencode(p)) > 240 for p in branch.split("/"))
    holder, outer = find_holders(repository, folder, branch)
    above, below = itertools.accumulate(branch.split("/")[:-1], "{}/{}".format), f"refs/heads/{branch}/"
    rival = next((name for name in above if f"refs/heads/{name}" in repository.branches), "")
    rival = rival or next((ref[len("refs/heads/") :] for ref in repository.branches if ref.startswith(below)), "")
    block = next((path for path in (folder, *folder.parents) if os.path.lexists(path) and not path.is_dir()), None)
    is_filled = not is_there and folder.is_dir() and any(folder.iterdir())
    is_known = last_folder == str(folder / repository.prefix)
    start = repository.branches.get(f"refs/heads/{branch}") or repository.head
    is_astray = here and here.is_astray(branch, start) and not is_known
    at, correct = shlex.quote(str(folder)), "Correct the worktreePath or the branchName."
    rename = f"Rename it: git branch -m {shlex.quote(rival)} {shlex.quote(rival.replace('/', '-'))}-old"
    rename = rename if repository.branches.get(f"refs/heads/{rival}") else correct  # another stream's, to be made
    is_foreign = is_filled and here is None and not is_moved(repository, folder)
    away, lost = f"Look at what it holds: mv {at} {at}.old", f"Mount it, or: git worktree unlock {at}"
    is_gone = here is not None and here.lock is None and not folder.exists()
    is_kept = is_gone and here is not None and holds_alone(repository, here)
    again = "Move it back; or forget that: git worktree prune"
    problems = [
        (is_odd, f"{branch!r} is no name for a branch", correct),
        (folder == root or folder in root.parents, f"the project itself lies in {folder}", correct),
        (".git" in folder.parts, f"{folder} can be no worktree", correct),
        (rival, f"branch {rival} is in the way of {branch}", rename),
        (holder, f"branch {branch} is checked out in {holder and holder.folder}", holder and format_release(holder)),
        (outer and here is None, f"{folder} lies in the worktree {outer}", correct),
        (block, f"{block} is no worktree of this repository", away.replace(str(folder), str(block))),
        (is_foreign, f"{folder} is no worktree of this repository", away),
        (is_filled and here and not is_known, f"{folder} is a worktree that has lost its .git", away),
        (here and here.is_locked and not is_there, f"the worktree {folder} is locked, and is not there", lost),
        (is_kept, f"the worktree {folder} is gone, and git still has work of it that is nowhere else", again),
        (is_astray, *((here and describe_astray(here, branch)) or ("", ""))),
    ]
    return next(((what, str(way)) for is_so, what, way in problems if is_so), None)


def format_release(holder: Worktree) -> str:
    at = shlex.quote(str(holder.folder))
    return f"git -C {at} switch --detach" if holder.is_there else f"Mount it, or: git worktree unlock {at}"


def describe_astray(here: Worktree, branch: str) -> Problem:
    at, on = shlex.quote(str(here.folder)), f"on branch {here.branch}" if here.branch else "on no branch"
    if here.begun:
        what = f"the worktree {here.folder} is {on}, in the middle of a git {here.begun}"
        return what, f"End it: git -C {at} {format_end(here.begun)}"
    what = f"the worktree {here.folder} is {on}, not on {branch}"
    return what, f"Bring it back: git -C {at} switch {shlex.quote(branch)}"


def format_end(begun: str) -> str:
    return f"{begun} {'reset' if begun == 'bisect' else '--continue'}"


def find_warnings(project: Project, repository: Repository, streams: Iterable[Stream], setup: str) -> list[Problem]:
    """Return what may go wrong in the worktrees of these streams, and stops none of them."""
    head, git = repository.head[:10], repository.git
    begun = Worktree(repository.top).begun
    problems = []
    if begun:
        what = f"{'An' if begun == 'am' else 'A'} {begun} is in progress here, and the streams branch from its middle"
        problems.append((f"{what} ({head})", f"End it: git {format_end(begun)}"))
    elif not repository.branch:
        there = [ref for ref, commit in repository.branches.items() if commit == repository.head]
        there = [ref for ref in there if ref.startswith("refs/heads/")]
        way = f"git switch {shlex.quote(there[0].split('/', 2)[2])}" if there else "git switch --create BRANCH"
        problems.append((f"HEAD is detached at {head}: there is no branch to merge into", way))
    for stream in streams:
        branch = name_worktree(project, stream)[1]
        ref = repository.find_ref(branch)
        if ref.startswith("refs/remotes/"):
            what = f"{visible(stream.id)} goes on from {ref[len('refs/remotes/') :]}: its branch is only there"
            problems.append((what, f"To begin anew, name another one: branchName, not {branch}"))
    if repository.lacking:
        # Only where files of the commit need it. It is asked for a warning: a slow git is no reason to wait.
        words = ("grep", "-hoE", "--no-line-number", "--no-column", "--no-color", "filter=[^ ]+", repository.head)
        with contextlib.suppress(GitError):
            used = set(git.hurry().run(*words, "--", ".gitattributes", "**/.gitattributes", most=1).split())
            for name, program in repository.lacking.items():
                if f"filter={name}" in used:
                    what = f"{program} is missing: of what its filter {name} keeps, the worktrees have pointers"
                    problems.append((what, f"Install {program}"))
    return problems + find_setup(project, git, setup)[1]


def find_setup(project: Project, git: Git, given: str) -> tuple[str, list[Problem]]:
    """Return the shell command that prepares a new worktree, empty for none, and why the project's own is not run."""
    path = project.root / ".claude" / "orchestrator-setup"
    if given or not path.is_file():
        return given, []
    if not os.access(path, os.X_OK):
        return "", [(f"{path} is not executable, and not run", f"chmod +x {shlex.quote(str(path))}")]
    if not git.find("ls-files", "-z", "--", str(path)):  # what anybody can put there unseen is not run
        return "", [(f"{path} is not tracked by git, and not run", f"git add --force {shlex.quote(str(path))}")]
    return shlex.quote(str(path)), []


class Workplace(NamedTuple):
    """Where a worker works, and the commit that it begins at.

    `preparation` is what makes a worktree ready for it: see PREPARE; empty where it works in the project's own folder.
    `options` are claude's, for what the worktree lacks; `lines` tell the worker of it, `warnings` a person.
    """

    folder: Path
    branch: str = ""
    head: str = ""
    preparation: Mapping[str, Any] = {}
    options: tuple[str, ...] = ()
    lines: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


def share_workplace(project: Project, stream: Stream, reason: str) -> Workplace:
    warning = f"No worktrees, all streams work in {project.root}: {reason}"
    return Workplace(project.root, warnings=(warning,) if stream.phase is Phase.PARALLEL else ())


def plan_worktree(
    project: Project, repository: Repository, stream: Stream, last_folder: str, setup: str, ignored: Sequence[str]
) -> Workplace:
    """Return the worktree of a parallel stream, which its launcher makes, fills and brings forward.

    `ignored` are the names that git ignores in the project's folder. Raises OrchestrateError where it can't be had.
    """
    problem = find_refusal(project, repository, stream, last_folder)
    if problem is not None:
        raise OrchestrateError(*problem)
    git, (folder, branch) = repository.git, name_worktree(project, stream)
    here, ref = repository.worktrees.get(folder), repository.find_ref(branch)
    start = repository.branches.get(ref, repository.head)
    astray = here if here is not None and here.is_astray(branch, start) else None
    head = astray.head if astray else start
    place, command = folder / repository.prefix, find_setup(project, git, setup)[0]
    is_common, hidden = folder.parent == project.worktrees.resolve(), ""
    if repository.top in folder.parents:  # git must not see it
        name = (folder.parent if is_common else folder).relative_to(repository.top)
        hidden = re.sub(r"([\\*?\[ ])", r"\\\1", f"/{name.as_posix()}/")
    preparation = {
        "git": [*GIT, *git.options],
        "variables": GIT_VARIABLES,
        "timeout": CHECKOUT_TIMEOUT,
        "root": str(project.root),
        "inode": project.root.stat().st_ino,
        "top": str(repository.top),
        "folder": str(folder),
        "place": str(place),
        "branch": branch,
        "start": ref or repository.head,
        "forward": "" if astray else repository.head,
        "is_unfilled": here is None or here.is_unfilled,
        "is_common": is_common,
        "hidden": hidden,
        "lacking": list(repository.lacking),
        "include": has_include(project, repository),
        "setup": command,
        "setup_timeout": SETUP_TIMEOUT,
    }
    lines = [f"- This is a git worktree of {project.root}: other streams work in others at this time"]
    lines += ["- Change nothing outside of it, commit to this branch, and do not switch to another one"]
    if astray:
        lines += [f"- The last worker left it on {astray.branch or 'no branch'}: bring its work to {branch} first"]
    lines += _format_absent(project, repository, ignored, bool(command))
    return Workplace(place, branch, head, preparation, _find_options(project, git, ref or head, place), tuple(lines))


def _format_absent(project: Project, repository: Repository, ignored: Sequence[str], is_set_up: bool) -> list[str]:
    lines = []
    if (project.root / ".gitmodules").exists():
        lines += ["- Submodules are empty here; fill those that you need: git submodule update --init"]
    lines += [f"- {program} is missing: files that need it are pointers" for program in repository.lacking.values()]
    if ignored:
        unless = " unless the set-up made it" if is_set_up else ""
        lines += [f"- Ignored by git, and not here{unless}; look in {project.root}: {format_names(ignored, 20)}"]
    return lines


# What claude reads in a project's folder and does not look for in the main working tree, with the option to name it by.
_CLAUDE_FILES = {".mcp.json": "--mcp-config", ".claude/settings.json": "--settings"}


def _find_options(project: Project, git: Git, commit: str, folder: Path) -> tuple[str, ...]:
    tracked = git.find("ls-tree", "-r", "-z", "--name-only", commit, "--", *_CLAUDE_FILES)
    names = [name for name in _CLAUDE_FILES if (project.root / name).is_file() and not (folder / name).exists()]
    return tuple(word for n in names if n not in tracked for word in (_CLAUDE_FILES[n], str(project.root / n)))


def read_root(project: Project, repository: Repository) -> tuple[dict[str, list[int]], list[str]]:
    """Return what differs from HEAD in the project's folder, with size and time, and what git ignores at its top.

    What `generate` has put there is no difference, nor what only this folder is read for. Raises GitError.
    """
    command = project.root / ".claude" / "commands" / "orchestration.md"
    is_ours = command.is_file() and command.read_text(encoding="utf-8", errors="replace") == SLASH_COMMAND
    own = [f":(exclude){command.relative_to(project.root)}"] if is_ours else []
    own += [":(exclude).claude/worktrees", ":(exclude).worktreeinclude"]  # this one is read here, not in a worktree
    words = ("status", "--porcelain", "-z", "--no-renames", "--untracked-files=all", "--ignored=matching", "--", ".")
    seen, ignored, prefix = {}, [], repository.prefix
    for line in repository.git.find(*words, *own):
        name = line[3 + len(prefix) :] if line[3:].startswith(prefix) else line[3:]
        if line.startswith("!!"):
            ignored += [name] if "/" not in name[:-1] else []
            continue
        try:
            status = (project.root / name).lstat()
            seen[name] = [status.st_size, status.st_mtime_ns]
        except OSError:  # deleted
            seen[name] = []
    return seen, ignored


def has_include(project: Project, repository: Repository) -> bool:
    return any((folder / ".worktreeinclude").is_file() for folder in (project.root, repository.top))


def find_missing_files(git: Git, ignored: Iterable[str]) -> list[str]:
    """Return what no worktree will have of what git ignores: `.worktreeinclude` does not name it. Raises GitError."""
    words = ("ls-files", "-z", "--others", "--ignored", "--exclude-per-directory=.worktreeinclude", "--directory")
    included = git.find(*words)
    return [name for name in ignored if name not in included and not re.fullmatch(DROPPINGS, name)]


def read_status(git: Git, untracked: bool = True) -> tuple[str, ...]:
    """Return the files that are changed, and those below the folder that are new to git. Raises GitError."""
    more = ("--", ".") if untracked else ("--untracked-files=no",)
    return tuple(line[3:] for line in git.find("status", "--porcelain", "-z", "--no-renames", *more))


def find_branches(
    project: Project,
    repository: Repository,
    streams: Iterable[Stream],
    is_advice: bool = False,
    more: Sequence[Branch] = (),
) -> list[Branch]:
    """Return the branches of the parallel streams, as they stand now.

    A stream whose worktree is on another branch, or on none, has two: its own, and what holds its work. What git can't
    tell stays unknown; where it `is_advice` alone, what it can't tell soon.
    """
    branches = []
    for stream in streams:
        folder, name = name_worktree(project, stream)
        here, ref = repository.worktrees.get(folder), f"refs/heads/{name}"
        is_there = here is not None and here.is_there
        if stream.phase is not Phase.PARALLEL:
            continue
        if ref in repository.branches and not (here is not None and is_there and here.branch == name):
            branches.append(Branch(name, ref, stream.id))
        if here is not None and is_there and not here.is_unfilled:
            branches.append(find_worktree_branch(here, stream.id, name))
    branches += more
    asked = repository._replace(git=repository.git.hurry()) if is_advice else repository
    unknown = ""
    for place, branch in enumerate(branches):
        try:
            branches[place] = branch._replace(unknown=unknown) if unknown else read_branch(asked, branch)
        except GitError as error:
            branches[place] = branch._replace(unknown=str(error))
            unknown = str(error) if error.is_passing else ""
    return branches


def find_worktree_branch(here: Worktree, stream_id: str, name: str) -> Branch:
    """Return what a stream's worktree is on, which may be another branch than the stream's own, `name`, or none."""
    ref = f"refs/heads/{here.branch}" if here.branch else here.head
    instead = "" if here.branch == name else name
    return Branch(here.branch or here.head[:10], ref, stream_id, str(here.folder), instead_of=instead)


def read_branch(repository: Repository, branch: Branch) -> Branch:
    """Return a branch with what its worktree holds beside it, and what HEAD lacks of it. Raises GitError.

    HEAD lacks nothing where a merge would change no file: so a squash, or a cherry-pick, counts as a merge.
    Source: git merge-tree --write-tree, of git 2.38.
    """
    git, head = repository.git, repository.head
    uncommitted = read_status(git._replace(root=Path(branch.worktree))) if branch.worktree else ()
    branch = branch._replace(uncommitted=uncommitted, ahead=0, files=0, nested=())
    ahead = int(git.run("rev-list", "--count", f"{head}..{branch.ref}"))
    if not ahead:
        return branch
    merged = ""
    with contextlib.suppress(GitError):  # where it conflicts too: git keeps ours then
        # Without the drivers that somebody has set up, which may throw theirs away.
        strict = git._replace(options=(*git.options, *repository.drivers))
        merged = strict.run("merge-tree", "--write-tree", head, branch.ref).split("\n")[0]
    if merged == git.run("rev-parse", f"{head}^{{tree}}").strip():
        return branch
    changes = git.find("diff", "--raw", "--no-renames", "-z", f"{head}...{branch.ref}")
    nested = [n for modes, n in zip(changes[::2], changes[1::2]) if re.match(r":(?!160000)\d+ 160000 ", modes)]
    if nested:
        modules = ("config", "-z", "--blob", f"{branch.ref}:.gitmodules", "--get-regexp", r"^submodule\..*\.path$")
        with contextlib.suppress(GitError):  # it has none
            known = [entry.partition("\n")[2] for entry in git.find(*modules)]
            nested = [name for name in nested if name not in known]
    return branch._replace(ahead=ahead, files=len(changes) // 2, nested=tuple(nested))


def find_stashes(git: Git, branches: Collection[str]) -> list[tuple[str, str]]:
    """Return the stashes that were made on these branches, each with its own words. Raises GitError."""
    lines = git.run("stash", "list", "--format=%gd %gs").splitlines()
    made = [line.partition(" ")[::2] for line in lines]
    return [(name, words) for name, words in made if re.sub(r"^(WIP on|On) |: .*", "", words) in branches]


def merge_branch(repository: Repository, branch: Branch, name: str) -> None:
    """Merge a stream's branch into the one that is checked out, with a merge commit.

    Raises OrchestrateError where that takes a hand; the tree is then as it was.
    """
    git = repository.git
    exposed = find_exposed(repository, branch)
    if exposed:
        reason = f"it would overwrite what git does not track: {format_names(exposed)}"
        raise OrchestrateError(f"{branch.name} was not merged, {reason}", "Move that away first.", EXIT_FAILED)
    try:
        git.run("merge", "--no-ff", "--no-commit", "--no-squash", "--quiet", branch.ref)
        # Apart from it, since what signs a commit may wait for a passphrase, and has no terminal to ask on.
        message = visible(f"Merge {branch.stream_id}: {shorten(name, 100)}")
        git._replace(timeout=SIGN_TIMEOUT).run("commit", "--quiet", "--message", message)
    except GitError as error:
        raise _restore(git._replace(is_interrupted=lambda: False), repository.place, branch, str(error)) from error


def find_exposed(repository: Repository, branch: Branch) -> list[str]:
    """Return what a merge would overwrite that no commit has: git takes files that it ignores for worth nothing."""
    git = repository.git._replace(root=repository.top)
    try:  # what it would make of the tree: HEAD may have let go of a file, or moved the folder that it comes to
        between: tuple[str, ...] = (
            "HEAD",
            git.run("merge-tree", "--write-tree", "HEAD", branch.ref, most=1).split("\n")[0],
        )
    except GitError:  # before git 2.38
        between = (f"HEAD...{branch.ref}",)
    added = git.find("diff", "--name-only", "--no-renames", "--diff-filter=A", "-z", *between)
    paths = {path for name in added for path in (Path(name), *Path(name).parents)} - {Path()}
    there = [path for path in paths if os.path.lexists(git.root / path)]
    files = sorted(str(path) for path in there if str(path) in added or not (git.root / path).is_dir())
    return [name for name in files if not git.find("ls-files", "-z", "--", f":(literal){name}")]


def _restore(git: Git, place: str, branch: Branch, words: str) -> OrchestrateError:
    """Take a failed merge back, and return the error that says why it failed."""
    files = git.find("diff", "--name-only", "--diff-filter=U", "-z")
    merging = git.run("rev-parse", "--verify", "--quiet", "MERGE_HEAD", most=1)
    if merging and merging == git.run("rev-parse", "--verify", f"{branch.ref}^{{commit}}"):  # and nobody else's
        git.run("merge", "--abort")
    changed = read_status(git, untracked=False)
    left = f"what it left: {format_names(changed)}" if changed else "the tree is as it was"
    why = f"conflicts with {place} in {format_names(files, 10)}" if files else words
    if words.startswith("git commit took longer"):
        why += ": does what signs it wait for a passphrase?"
    by_hand = f"git merge --no-ff {shlex.quote(branch.ref)}{', resolve, git commit' if files else ''}"
    remedy = f"Merge it by hand ({by_hand}), then go on"
    remedy = remedy if files or words.startswith("git commit") else "Mend that, then try again"
    return OrchestrateError(f"{branch.name} was not merged, {left}: {why}", f"{remedy}: {hint('merge')}", EXIT_FAILED)


def format_place(place: Workplace, branches: Sequence[Branch], strays: Mapping[str, Sequence[str]]) -> list[str]:
    """Return what a worker is told of where it works, of the branches to merge, and of what others did beside them."""
    lines = ["", "## Where you work", f"- Folder: {place.folder}", f"- Branch: {place.branch}", *place.lines]
    if branches:
        task = f"Merge these into {place.branch} before anything else, in this order (git merge --no-ff BRANCH):"
        lines += ["", "## Branches to merge", task]
        lines += [f"- {b.ref} ({visible(b.stream_id)}): {b.summary}" for b in branches[:ITEMS_AT_MOST]]
        lines += [f"- and {len(branches) - ITEMS_AT_MOST} more"] if len(branches) > ITEMS_AT_MOST else []
    if strays:
        lines += ["", "## Changed in this folder, and not committed, while the parallel streams worked in theirs"]
        shown = list(strays.items())[:ITEMS_AT_MOST]
        lines += [f"- {visible(name)} (by {format_names(streams)})" for name, streams in shown]
    return lines


class Chore(NamedTuple):
    """Something that `clean` does: a verb and its object; where there is nothing to `do`, the object is kept."""

    verb: str
    what: str
    do: Callable[[], object] | None = None


def archive(logs: Iterable[Path], target: Path) -> None:
    target.mkdir(mode=0o700, parents=True)
    write_file(target.parent / ".gitignore", "*\n")
    for log in logs:
        shutil.move(str(log), str(target))


def plan_worktrees(project: Project, repository: Repository, streams: Sequence[Stream]) -> list[Chore]:
    """Decide which worktrees and branches go: those that were made here and hold nothing that HEAD lacks."""
    folder, trees, git = project.worktrees.resolve(), repository.worktrees, repository.git
    ids = {name_worktree(project, s)[0]: s.id for s in streams if s.phase is Phase.PARALLEL}
    open_tasks: dict[object, int] = {}  # by folder and by branch: two streams may share one
    for stream in streams:
        for key in name_worktree(project, stream):
            open_tasks[key] = open_tasks.get(key, 0) + stream.open * (stream.phase is Phase.PARALLEL)
    mine = [tree for tree in trees.values() if tree.folder.parent == folder or tree.folder in ids]
    links = [path for path in repository.common.glob("worktrees/*/gitdir") if (path.parent / "orchestrate").exists()]
    ours = {Path(os.fsdecode(path.read_bytes())[:-1]).parent for path in links}  # git says where each one belongs
    gone = [tree for tree in mine if not tree.is_there and not tree.is_locked and tree.folder.parent.is_dir()]
    gone = [
        tree for tree in gone if not tree.folder.exists() or (tree.folder.is_dir() and not any(tree.folder.iterdir()))
    ]
    gone = [tree for tree in gone if tree.lock or (tree.folder in ours and not holds_alone(repository, tree))]
    unfilled = [t for t in mine if t.is_unfilled and (t.folder in ids or t.folder in ours) and t not in gone]
    unfilled = [tree for tree in unfilled if not open_tasks.get(tree.folder)]
    chores = [Chore("remove", f"worktree {t.folder}, which is gone", _remove_worktree(git, t, True)) for t in gone]
    chores += [Chore("remove", f"worktree {t.folder}, never filled", _remove_worktree(git, t, True)) for t in unfilled]
    others = {tree.folder: tree for tree in trees.values() if tree not in gone and tree not in unfilled}
    # Those of streams that are no longer in the database too.
    rest = [t for t in mine if t.is_there and t.folder in others and t.folder not in ids and not t.is_unfilled]
    more = [find_worktree_branch(tree, tree.folder.name, tree.branch) for tree in rest]
    branches = find_branches(project, repository._replace(worktrees=others), streams, more=more)
    astray = {branch.stream_id for branch in branches if branch.instead_of}
    for branch in branches:
        if branch.instead_of or branch.stream_id not in astray:  # its own waits for what is used instead of it
            keys = (Path(branch.worktree or os.devnull), branch.name, branch.instead_of)
            chores += plan_branch(repository, branch, others, max(open_tasks.get(key, 0) for key in keys))
    known = {tree.folder for tree in trees.values() if tree.is_there or tree in gone}
    strays = [path for path in sorted(folder.glob("[!.]*")) if path not in known]
    return [*chores, *(Chore("keep", f"{path}: it is no worktree of this repository") for path in strays)]


def plan_branch(
    repository: Repository, branch: Branch, worktrees: Mapping[Path, Worktree], open_tasks: int
) -> list[Chore]:
    git = repository.git
    here = worktrees.get(Path(branch.worktree)) if branch.worktree else None
    inside, lost = git._replace(root=Path(branch.worktree)), []
    if here is not None and not branch.unknown:
        lost = inside.find("ls-files", "-z", "--others", "--ignored", "--exclude-standard", "--directory")
    reason = _find_keep_reason(repository, branch, here, worktrees, open_tasks)
    nested = [name for name in lost if here is not None and (here.folder / name / ".git").exists()]
    reason = reason or (f"there are repositories in it: {format_names(nested)}" if nested else "")
    if reason:
        return [Chore("keep", f"{branch.worktree or branch.name}: {reason}")]
    chores: list[Chore] = []
    if here is not None:
        with_what = f", and what git ignores there: {format_names(lost)}" if lost else ""
        chores.append(Chore("remove", f"worktree {branch.worktree}{with_what}", _remove_worktree(git, here)))
    is_ours = branch.name == name_branch(branch.stream_id) or (here and here.mark.read_text() == branch.name)
    if is_ours:
        # Not by `branch --delete`, which looks at ancestors, of its upstream too; and as it was when it was looked at.
        commit = repository.branches[branch.ref]
        delete = functools.partial(git.run, "update-ref", "-d", branch.ref, commit)
        has_own = git.run("rev-list", "--max-count=1", f"{repository.head}..{branch.ref}")
        was = f" (was {commit[:10]})" if has_own else ""
        chores.append(Chore("remove", f"branch {branch.name}{was}: it is merged", delete))
    return chores


def _find_keep_reason(
    repository: Repository, branch: Branch, here: Worktree | None, worktrees: Mapping[Path, Worktree], open_tasks: int
) -> str:
    inner = [str(folder) for folder in worktrees if here is not None and here.folder in folder.parents]
    holders = [
        f"{tree.folder}{', which is locked' * tree.is_locked}"
        for tree in worktrees.values()
        if tree.branch == branch.name and tree != here
    ]
    hidden = []
    if here is not None and not branch.unknown:  # what git was told not to look at is no change for it
        lines = repository.git._replace(root=here.folder).find("ls-files", "-v", "-z")
        names = [line[2:] for line in lines if line[0].islower() or line[0] == "S"]
        hidden = [name for name in names if os.path.lexists(here.folder / name)]
    reasons = {
        "no branch is checked out, so nothing counts as merged": not repository.branch,
        f"{branch.summary}; {format_count(open_tasks, 'task')} of {branch.stream_id} open": bool(open_tasks),
        branch.summary: bool(branch.ahead or branch.uncommitted or branch.instead_of or branch.unknown),
        "it was not made by the orchestrator": here is not None and not here.mark.exists(),
        "it is locked": here is not None and here.is_locked,
        f"a git {here and here.begun} is in progress in it": bool(here is not None and here.begun),
        f"git was told not to look at {format_names(hidden)}": bool(hidden),
        "it has submodules, remove it by hand": here is not None and (here.state / "modules").exists(),
        f"there are others in it: {format_names(inner)}": bool(inner),
        f"it is checked out in {format_names(holders)}": bool(holders),
    }
    return next((reason for reason, is_so in reasons.items() if is_so), "")


def _remove_worktree(git: Git, tree: Worktree, by_force: bool = False) -> Callable[[], object]:
    def remove() -> None:
        if by_force and tree.folder.exists():  # half made: git can't look at it
            shutil.rmtree(tree.folder)
        git.run("worktree", "remove", *["--force", "--force"] * by_force, str(tree.folder))

    return remove


# The workers of a run.

# A worker that can't be executed for one of these reasons can't be in a minute either.
_FINAL_ERRORS = (OrchestrateError, FileNotFoundError, NotADirectoryError, PermissionError)
_FINAL_CODES = (errno.E2BIG, errno.EEXIST, errno.ENAMETOOLONG)


class Tracked:
    """A worker with what it takes to watch it; `child` where it is our own, and not an earlier orchestrator's.

    `held` is the output of one that can't be seen from here.
    """

    def __init__(
        self,
        worker: Worker,
        transcript: Transcript,
        leader: psutil.Process | None,
        child: subprocess.Popen[bytes] | None = None,
        held: Path | None = None,
    ) -> None:
        self.worker = worker
        self.held = held
        self.transcript = transcript
        self.leader = leader
        self.child = child
        self.tree: Tree = {worker.pid: leader} if leader is not None else {}
        self.results = 0  # that it has printed, as far as they were heard
        self.inode = 0  # of the folder that it works in
        self.cpu_time = 0.0 if child is not None else None
        self.cpu_read_at = worker.active_at if child is not None else 0.0

    def has_ended(self) -> bool:
        if self.child is not None:
            return self.child.poll() is not None  # reaps it: no zombie is ever taken for a worker
        if self.held is not None:
            return not is_written_to(self.held)
        return self.leader is None or not is_alive(self.leader)

    def is_astray(self, project: Project) -> bool:
        """Whether the folder that it has begun to work in is gone, or is another one. Raises LostRootError."""
        folder, inode = self.worker.folder, 0
        if folder in ("", str(project.root)):
            return False
        with contextlib.suppress(FileNotFoundError):
            inode = Path(folder).stat().st_ino
        self.inode = self.inode or inode
        if inode != self.inode or (not inode and self.transcript.has_begun):
            project.check_root()  # else it has gone with the project's folder
            return True
        return False

    def hear(self, active_at: float) -> None:
        said, before = self.transcript, self.worker
        is_new = said.results != self.results
        done_at = (active_at if is_new else before.done_at) if said.is_done else 0.0
        background_at = before.background_at if said.background == before.background else active_at
        self.results = said.results
        self.worker = before._replace(
            active_at=active_at,
            done_at=done_at,
            background=said.background,
            background_at=background_at,
            cost=said.cost,
            notice=said.notice,
            overage=said.overage,
            has_answer=said.has_answer,
            activity=visible(said.activity[:WORDS_LENGTH]),
        )


class WorkerTable:
    """The workers of a project as processes, with their PID files and logs."""

    def __init__(
        self,
        project: Project,
        database: Path,
        command: Command,
        environ: Mapping[str, str],
        clock: Clock,
        has_worktrees: bool = True,
        setup: str = "",
    ) -> None:
        self.project = project
        self.database = database
        self.command = command
        self.git = Git(project.root, lambda: bool(clock.signals)) if has_worktrees else None
        self.setup = setup
        self.foreign: Mapping[str, str] = {}  # who else works on streams, when somebody last looked
        self._scanned_at = 0.0
        self._template: str | None = None
        self._ignored: list[str] | None = None
        self._slow_until = 0.0  # git has taken too long to say what differs in the project's folder
        self._environ = environ
        self._clock = clock
        self._trouble: OSError | None = None
        own, servers = "this run goes on; put it back before you need it", "new workers lack its servers: put it back"
        needed = {Path(__file__): own, Path(sys.prefix): own, project.root / ".mcp.json": servers}
        needed[project.prompt] = "new workers get what it said"
        self._needed = {path: what for path, what in needed.items() if path.exists()}
        self._logs: dict[str, Appender] = {}
        self._tracked: dict[str, Tracked] = {}
        self._positions: dict[str, int] = {}

    def adopt(
        self, stream_ids: Iterable[str], records: Mapping[str, Record], unseen: Mapping[str, Worker]
    ) -> Discovery:
        """Take over the workers that an earlier orchestrator left, and remove PID files that mean nothing.

        What lives `unseen` is followed, and has ended when it no longer holds its output. One that the journal knows
        and that lives no more is taken over as ended: so is one of which nobody could write down that it was started,
        where it left a trace. Raises OSError.
        """
        self._positions = read_positions(self.project)
        with contextlib.suppress(OSError, OrchestrateError):  # each start says it
            self._template = read_prompt_template(self.project)
        found = discover_workers(self.project, {*stream_ids, *records})
        self.foreign, self._scanned_at = found.foreign, self._clock.monotonic()
        unseen = {i: worker for i, worker in unseen.items() if i not in found.workers}
        kept = [self.project.file(stream_id, ".pid") for stream_id in unseen]
        stale = {path: why for path, why in found.stale.items() if path not in kept}
        found = found._replace(workers={**found.workers, **unseen}, stale=stale)
        for path in found.stale:  # first: one may stand where that of a worker belongs
            path.unlink(missing_ok=True)
        known = {
            i: Worker(i, r.pid, r.run)
            for i, r in records.items()
            if r.pid or (r.is_starting and self.open_output(i) > r.raw_start)
        }
        for stream_id, worker in {**known, **found.workers}.items():
            record = records.get(stream_id, _NO_RECORD)
            start = record.raw_start
            transcript = self._follow(stream_id, start, self._positions.get(file_name(stream_id), start))
            # Without a leader it has ended: the next poll finds that, and what it left running.
            leader = found.trees.get(stream_id, {}).get(worker.pid)
            now = self._clock.monotonic()
            unjudged = worker._replace(ending=None, leftovers=(), active_at=now)
            head = "" if self._share(record.folder) else record.head
            unjudged = unjudged._replace(folder=record.folder, head=head)
            held = self.project.file(stream_id, ".jsonl") if stream_id in unseen else None
            self._tracked[stream_id] = Tracked(unjudged, transcript, leader, held=held)
            if leader is not None:
                self._attempt(self._write_pid, worker)
        return found

    def poll(self) -> dict[str, Worker]:
        """Return all workers, those that have ended included until they are forgotten.

        Raises OSError where it can't look. What it can't write is its `trouble`, and is written at a later time.
        """
        over = []
        self._trouble = None
        names = {entry.name for entry in os.scandir(self.project.pids)}
        for log in self._logs.values():
            log.flush()
        for stream_id, tracked in self._tracked.items():
            has_ended = tracked.worker.ending is not None or tracked.has_ended()
            signs = tracked.transcript.signs
            is_drained = self._attempt(tracked.transcript.pump)
            if tracked.transcript.signs != signs:
                self.touch(stream_id)
            if not has_ended and f"{file_name(stream_id)}.pid" not in names:
                self._attempt(self._write_pid, tracked.worker)  # somebody removed it
            if not has_ended and not tracked.worker.is_astray and tracked.is_astray(self.project):
                tracked.worker = tracked.worker._replace(is_astray=True)
            if has_ended and is_drained and (tracked.worker.ending is None or tracked.worker.leftovers):
                over.append(tracked)
        self._attempt(self._write_positions)
        now = self._clock.monotonic()
        living = [tracked for tracked in self._tracked.values() if tracked.worker.ending is None]
        is_due = self.foreign and now - self._scanned_at >= CPU_INTERVAL
        if over or is_due or any(now - tracked.cpu_read_at >= CPU_INTERVAL for tracked in living):
            self._scan(now)
        for tracked in over:  # how they ended, and what is left of their trees
            if tracked.worker.ending is None:
                code = tracked.child.returncode if tracked.child is not None else None
                ending = tracked.transcript.read_ending(code, self._clock.wall())
                tracked.hear(tracked.worker.active_at)  # the last line may have come without an end
                tracked.worker = tracked.worker._replace(ending=ending)
                # What goes with it, as the first process of a PID namespace does, is not left running.
                left = psutil.wait_procs(tracked.tree.values(), LINGER)[1]
                tracked.tree = {process.pid: process for process in left if is_alive(process)}
            tracked.worker = tracked.worker._replace(leftovers=tuple(tracked.tree))
        return {stream_id: tracked.worker for stream_id, tracked in self._tracked.items()}

    @property
    def trouble(self) -> OSError | None:
        """What could not be done for one worker at the last poll or since, and keeps no other one waiting."""
        return next((log.trouble for log in self._logs.values() if log.trouble is not None), self._trouble)

    def _attempt(self, act: Callable[..., object], *arguments: object) -> object:
        try:
            return act(*arguments)
        except OSError as error:
            self._trouble = error
            return None

    def _write_pid(self, worker: Worker) -> None:
        write_file(self.project.file(worker.stream_id, ".pid"), f"{worker.pid}\n")

    def _scan(self, now: float) -> None:
        """Look at the process table: at the trees, and at what they use where the last look was long enough ago.

        CPU time is a sign of life: a long build says nothing, but it works.
        """
        seen = {stream_id: tracked.tree for stream_id, tracked in self._tracked.items()}
        trees, self.foreign = read_trees(self.project, seen)
        self._scanned_at = now
        for stream_id, tracked in self._tracked.items():
            tracked.tree = trees.get(stream_id, {})
            age = now - tracked.cpu_read_at
            if tracked.worker.ending is not None or age < CPU_INTERVAL / 2:
                continue
            used, memory = 0.0, 0  # CPU seconds of the living processes and of their ended children; bytes
            for process in tracked.tree.values():
                with contextlib.suppress(psutil.Error):
                    used += sum(process.cpu_times()[:4])
                    memory += process.memory_info().rss
            cpu = None
            if tracked.cpu_time is not None:
                change = (used - tracked.cpu_time) / age  # less than nothing where somebody has left the tree
                cpu = max(change, 0.0)
                if abs(change) > CPU_IDLE:
                    self.touch(stream_id)
            tracked.worker = tracked.worker._replace(cpu=cpu, memory=memory)
            tracked.cpu_time, tracked.cpu_read_at = used, now

    def folders(self) -> set[str]:
        return {tracked.worker.folder for tracked in self._tracked.values()} - {""}

    def count(self) -> int:
        return sum(not tracked.has_ended() for tracked in self._tracked.values() if tracked.worker.ending is None)

    def touch(self, stream_id: str) -> None:
        """Take note of a sign of life: on the PID file too, so that `status` sees it."""
        if stream_id in self._tracked:
            self._tracked[stream_id].hear(self._clock.monotonic())
            with contextlib.suppress(OSError):  # it is written again where it is missing
                os.utime(self.project.file(stream_id, ".pid"))

    def open_output(self, stream_id: str) -> int:
        """Make sure of a stream's raw output, and return its size in bytes: there its next worker's begins.

        Raises OSError.
        """
        with open_private(self.project.file(stream_id, ".jsonl"), os.O_WRONLY | os.O_APPEND) as output:
            return output.seek(0, os.SEEK_END)

    def spawn(self, stream: Stream, history: History, number: int, budget: float, streams: Sequence[Stream]) -> Worker:
        """Start a worker; `streams` are all there are, `number` is this one's own.

        One that could not be started is returned as ended, for the same judgement as any other end.
        """
        run = f"{datetime.now(timezone.utc):%Y%m%dT%H%M%SZ}-{os.urandom(3).hex()}"
        child, record = None, history.record(stream.id)
        with open_private(self.project.file(stream.id, ".jsonl"), os.O_WRONLY | os.O_APPEND) as output:
            # A file of ours that can't be opened is no failed start. What has it open shows that it lives.
            with contextlib.suppress(OSError):  # on a disk without locks
                fcntl.flock(output, fcntl.LOCK_SH)
            try:
                place = self._open_workplace(stream, history, streams)
                child = self._execute(stream, record, run, number, budget, place, output)
                worker = Worker(stream.id, child.pid, f"{run}.{child.pid}")
                head = "" if self._share(str(place.folder)) else place.head
                worker = worker._replace(folder=str(place.folder), branch=place.branch, head=head)
                worker = worker._replace(warnings=place.warnings, port=self.project.find_port(number))
            except (OSError, OrchestrateError) as error:
                self.project.check_root()  # where that has gone, the stream has not failed
                is_final = isinstance(error, _FINAL_ERRORS) or error.errno in _FINAL_CODES
                is_final = not error.is_passing if isinstance(error, GitError) else is_final
                is_missing = shutil.which(self.command.words[0], path=self._environ.get("PATH")) is None
                cause = Cause.PROGRAM if is_missing else Cause.FINAL if is_final else Cause.OTHER
                words = f"{error.message}. {error.remedy}" if isinstance(error, OrchestrateError) else str(error)
                worker = Worker(stream.id, 0, run, Ending(None, visible(words), cause))
        transcript = self._follow(stream.id, record.raw_start, record.raw_start)
        worker = worker._replace(active_at=self._clock.monotonic())
        leader = psutil.Process(child.pid) if child is not None else None
        self._tracked[stream.id] = Tracked(worker, transcript, leader, child)
        if worker.ending is None:
            self._attempt(self._write_pid, worker)  # it runs: the next poll tries again
        return worker

    def _share(self, folder: str) -> bool:
        """Whether others work in this folder; then whose commits appear there, nobody can tell."""
        others = [tracked for tracked in self._tracked.values() if tracked.worker.folder == folder]
        for tracked in others:
            tracked.worker = tracked.worker._replace(head="")
        return bool(others)

    def count_commits(self, stream_id: str) -> Worker:
        """Return a worker that has ended, with the number of commits that it made; 0 where git can't tell at once."""
        tracked = self._tracked[stream_id]
        worker = tracked.worker
        if worker.head:
            words = ["rev-list", "--count", "--first-parent", "--ancestry-path", f"{worker.head}..HEAD"]
            # Those of a merge are others', and so are those that the project has already.
            with contextlib.suppress(OSError, OrchestrateError):
                if worker.folder != str(self.project.root):
                    words += ["--not", Git(self.project.root).hurry().run("rev-parse", "HEAD").strip()]
                worker = worker._replace(commits=int(Git(Path(worker.folder)).hurry().run(*words)))
            tracked.worker = worker._replace(head="")
        return tracked.worker

    def signal(self, stream_id: str, signum: int) -> None:
        self._scan(self._clock.monotonic())
        self._tracked[stream_id].transcript.is_signalled = True
        signal_tree(self._tracked[stream_id].tree, signum)

    def find_lost(self) -> list[tuple[Path, str]]:
        """Return what the run began with and is gone by now, each with what follows from that."""
        return [(path, what) for path, what in self._needed.items() if not path.exists()]

    def forget(self, stream_id: str) -> None:
        with contextlib.suppress(OSError):  # what stays is stale, and no harm
            self.project.file(stream_id, ".pid").unlink()
        del self._tracked[stream_id]

    def note(self, stream_id: str, lines: Sequence[str]) -> None:
        self._log(stream_id).append(lines)

    def read_root(self) -> dict[str, list[int]] | None:
        """Return what differs from HEAD in the project's own folder; None where git can't tell soon, or isn't asked."""
        if self.git is None or self._clock.monotonic() < self._slow_until:
            return None
        try:
            repository = read_repository(self.git.hurry())
            if repository.obstacle:
                return None
            seen, ignored = read_root(self.project, repository)
            self._ignored = ignored
            self._ignored = find_missing_files(repository.git, ignored)
        except (OSError, OrchestrateError) as error:
            if not isinstance(error, GitError) or not error.is_passing:
                return None
            self._slow_until = self._clock.monotonic() + SLOW_PAUSE
            return None
        return dict(itertools.islice(seen.items(), SEEN_MOST))

    def find_authors(self, name: str) -> tuple[str, ...]:
        """Return the streams whose tool calls name a file of the project's folder, else all that work in worktrees."""
        root = re.escape(f"{self.project.root}/")
        whole = re.compile(rf"({root}|(?<![\w./-])(\./)?){re.escape(name)}(?![\w.-])")
        at_work = {i: t for i, t in self._tracked.items() if t.worker.folder != str(self.project.root)}
        named = [i for i, t in at_work.items() if any(whole.search(call) for call in t.transcript.outside)]
        return tuple(named or at_work)

    def _open_workplace(self, stream: Stream, history: History, streams: Sequence[Stream]) -> Workplace:
        self.command.find(self._environ)  # raises where it has vanished since
        project, is_parallel = self.project, stream.phase is Phase.PARALLEL
        if self.git is None:
            head = ""
            with contextlib.suppress(OSError, OrchestrateError):  # it is asked for a count alone
                head = Git(project.root).hurry().run("rev-parse", "--verify", "--quiet", "HEAD", most=1).strip()
            return share_workplace(project, stream, "--no-worktrees was given")._replace(head=head)
        try:
            repository = read_repository(self.git, [name_worktree(project, stream)[0]] if is_parallel else [])
        except (GitError, OrchestrateError) as error:
            if is_parallel:
                raise
            return Workplace(project.root, warnings=(f"git can't be asked: {error}",))
        if repository.obstacle:
            return share_workplace(project, stream, repository.obstacle)
        place = Workplace(project.root, repository.place, repository.head)
        if is_parallel:
            folder = history.record(stream.id).folder
            if self._ignored is None:
                self.read_root()  # the first one was another orchestrator's
            place = plan_worktree(project, repository, stream, folder, self.setup, self._ignored or [])
            for other, tracked in self._tracked.items():
                if tracked.worker.folder == str(place.folder):
                    raise OrchestrateError(f"{place.folder} is the worktree of {visible(other)}", "Give each its own.")
        needed = [s for s in streams if s.id in stream.dependencies] if is_parallel else streams
        is_integration = stream.phase is Phase.INTEGRATION
        branches = find_branches(project, repository, needed, True) if is_parallel or is_integration else ()
        return place._replace(lines=tuple(format_place(place, branches, history.strays if is_integration else {})))

    def _execute(
        self,
        stream: Stream,
        record: Record,
        run: str,
        number: int,
        budget: float,
        place: Workplace,
        output: IO[bytes],
    ) -> subprocess.Popen[bytes]:
        port = self.project.find_port(number)
        ports = f"- Ports {port} to {port + 9} are yours alone; the first is in $ORCHESTRATE_PORT"
        if self._template is None or self.project.prompt.exists():  # else a worker has removed it
            self._template = read_prompt_template(self.project)
        prompt = format_prompt(self._template, stream, record, [ports, *place.lines])
        words = self.command.argv(prompt, budget, place.options)
        if place.preparation:
            raw = str(self.project.file(stream.id, ".jsonl"))
            words = [*_PYTHON, PREPARE, json.dumps({**place.preparation, "output": raw}), *words]
        # By the first three its tree is found again.
        marks = {"PROJECT": str(self.project.root), "STREAM": stream.id, "RUN": run, "PORT": str(port)}
        marks.update(ROOT=self.project.identity, BRANCH="" if " " in place.branch else place.branch)  # a detached HEAD
        self.project.check_root()  # git may have taken its time
        return subprocess.Popen(
            ["/bin/sh", "-c", LAUNCHER, "orchestrate", *words],
            cwd=self.project.root,
            env={
                **WORKER_VARIABLES,
                **keep_variables(self._environ),
                **database_variables(self.database),
                **{f"ORCHESTRATE_{name}": value for name, value in marks.items()},
            },
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )

    def _follow(self, stream_id: str, start: int, position: int) -> Transcript:
        raw = self.project.file(stream_id, ".jsonl")
        return Transcript(raw, self._log(stream_id).append, start, position, str(self.project.root))

    def _log(self, stream_id: str) -> Appender:
        return self._logs.setdefault(stream_id, Appender(self.project.file(stream_id, ".log")))

    def _write_positions(self) -> None:
        """Remember how far the logs are rendered, for the orchestrator that comes next."""
        current = {
            file_name(stream_id): tracked.transcript.position
            for stream_id, tracked in self._tracked.items()
            if not self._log(stream_id).unwritten
        }
        if any(self._positions.get(name) != position for name, position in current.items()):
            positions = {**self._positions, **current}
            write_file(self.project.positions, json.dumps(positions))
            self._positions = positions


# ── 6. Orchestrator ───────────────────────────────────────────────────────────────────────────────────────────────────


def make_event(clock: Clock, kind: str, **facts: Any) -> Event:
    """Return an event with its two times: `time` for people, `clock` for every computation."""
    times = {"time": format_time(clock.wall()), "clock": round(clock.monotonic(), 3)}
    return {"version": JSON_VERSION, "event": kind, **times, **facts}


def make_end_event(clock: Clock, worker: Worker, verdict: Verdict, record: Record, stream: Stream | None) -> Event:
    """Return the event that says how a worker ended, and what follows. Times in seconds, the cost in US dollars."""
    ending = worker.ending or Ending(None)
    completed, open_tasks = (record.best, record.fewest) if stream is None else (stream.completed, stream.open)
    seconds = max(clock.monotonic() - record.started_at, 0.0)  # a reboot sets that clock back
    return make_event(
        clock,
        "worker_ended",
        stream=worker.stream_id,
        pid=worker.pid,
        run=worker.run,
        exit_code=ending.code,
        ending=ending.summary,
        verdict=verdict.kind.value,
        reason=verdict.reason,
        restarts=verdict.restarts,
        max_restarts=verdict.max_restarts,
        cause=verdict.cause.name,
        tries=verdict.tries,
        delay=round(verdict.delay, 3),
        until=format_time(clock.wall() + verdict.delay) if verdict.kind is VerdictKind.LIMITED else None,
        has_answer=worker.has_answer,
        completed=completed,
        open=open_tasks,
        commits=worker.commits,
        seconds=round(seconds, 3),
        turns=ending.turns,
        cost=ending.cost,
        ended=record.ended + 1,
        worked=round(record.worked + seconds, 3),
        spent=record.spent + ending.cost,
    )


_CARRIER = b'"known": {'  # in the line of an event that says all that is known; escaped wherever it is quoted
_EVENT_DECODER = json.JSONDecoder(parse_constant=lambda _: 0.0)  # NaN and Infinity are no times


def _parse_event(line: bytes) -> Event | None:
    """Return the event of a line; None where it has no end yet, or is no event."""
    if line.endswith(b"\n") and b'"event"' in line:
        with contextlib.suppress(ValueError, RecursionError):
            event = _EVENT_DECODER.decode(line.decode("utf-8", "replace"))
            return event if isinstance(event, dict) else None
    return None


def _find_carrier(file: IO[bytes], end: int) -> int:
    """Return where the last line begins that says all that is known, 0 where none does."""
    while end > 0:
        begin = max(end - READ_BYTES, 0)
        file.seek(begin)
        at = begin + file.read(end - begin + len(_CARRIER) - 1).rfind(_CARRIER)
        if at >= begin:
            begin = max(at - READ_BYTES, 0)
            file.seek(begin)
            begin += file.read(at - begin).rfind(b"\n") + 1
            file.seek(begin)
            if _parse_event(file.readline(JOURNAL_MOST << 5)):
                return begin
        end = max(at, begin) if at >= begin else begin
    return 0


class Journal(Appender):
    """`events.jsonl`: what was done, one JSON object a line, only ever appended to.

    An orchestrator `hold`s it open for life: what somebody removes or renames is put back from there. Others append to
    it under the lock of the marks.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._file: IO[bytes] | None = None
        self._read_to = -1
        self.is_cut = False  # by somebody else, and it was not noted yet

    @contextlib.contextmanager
    def open(self) -> Iterator[IO[bytes]]:
        with contextlib.nullcontext(self._file) if self._file is not None else super().open() as file:
            yield file

    @property
    def is_lost(self) -> bool:
        """Whether it has another name by now, or none."""
        return self._file is None or not is_open_as(self.path, self._file.fileno())

    @property
    def is_whole(self) -> bool:
        return not self.is_lost and not self.is_cut and self.size >= self._read_to

    @property
    def size(self) -> int:
        return os.fstat(self._file.fileno()).st_size if self._file is not None else 0

    def add(self, event: Event) -> None:
        self.append([json.dumps(event, ensure_ascii=False)])

    def read(self, is_whole: bool = False) -> Iterator[Event]:
        """Yield the events since the last call; what is no event is passed over. Raises OSError.

        At first those from the last one on that says all that is known before it, or all of them; of a journal that is
        longer than any that was folded, the two ends.
        """
        try:
            file = os.fdopen(os.dup(self._file.fileno()), "rb") if self._file is not None else self.path.open("rb")
        except FileNotFoundError:
            return
        with file:
            size = os.fstat(file.fileno()).st_size
            self.is_cut = self.is_cut or size < self._read_to
            parts = [(self._read_to if size >= self._read_to else 0, size)]
            if self._read_to < 0:
                begin = _find_carrier(file, size)
                file.seek(begin)
                most = 3 * max(JOURNAL_MOST, len(file.readline(JOURNAL_MOST << 5)))
                begin = 0 if is_whole else begin
                is_long = size - begin > most
                parts = [(begin, begin + most // 3), (size - most // 3, size)] if is_long else [(begin, size)]
            for begin, end in parts:
                file.seek(begin)
                while file.tell() < end:
                    line = file.readline(JOURNAL_MOST << 5)
                    self._read_to = file.tell() if line.endswith(b"\n") else self._read_to
                    event = _parse_event(line)
                    if event is not None:
                        yield event

    def hold(self) -> None:
        """Hold it open; make it where it is missing. Raises OSError."""
        self.let_go()
        self._file = open_private(self.path, os.O_RDWR | os.O_APPEND)

    def put_back(self) -> list[Event]:
        """Put it back where somebody has removed it; return the events of the file that stands there instead.

        Under the lock of the marks, as `carry`. Raises OSError.
        """
        theirs = list(Journal(self.path).read(is_whole=True))
        write_file(self.path, self._read_all())
        self.hold()
        return theirs

    def carry(self, event: Event, archive: Path | None) -> None:
        """Add an event that says all that is known: at once, for half of it would be worth nothing.

        What the journal held goes to an archive, where one is given. Raises OSError.
        """
        if archive is not None:
            archive.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_file(archive.parent.parent / ".gitignore", "*\n")
            link_file(self.path, archive)
        before = b"" if archive is not None else self._read_all()
        before += b"\n" * (before[-1:] not in (b"", b"\n"))
        write_file(self.path, before + f"{json.dumps(event, ensure_ascii=False)}\n".encode("utf-8", "replace"))
        self.hold()
        self._read_to, self.unwritten = self.size, []

    def _read_all(self) -> bytes:
        return os.pread(self._file.fileno(), self.size, 0) if self._file is not None else b""

    def let_go(self) -> None:
        if self._file is not None:
            self._file.close()
        self._file = None


def read_history(project: Project, is_moved: bool = True) -> History:
    history = fold_events(History(), Journal(project.journal).read())
    return history.at(str(project.root)) if is_moved else history


def is_idle(journal: Path) -> bool:
    """Whether a journal tells of no worker."""
    events = Journal(journal).read(is_whole=True)
    return not any(event.get("event") in ("worker_started", "worker_adopted") for event in events)


def read_run(project: Project, skips_idle: bool = False) -> Iterator[Event]:
    """Yield the events of the last run, those that were moved to the archive meanwhile included.

    With `skips_idle` those of the runs before it too, until one had a worker.
    """
    paths = [project.journal]
    while paths[0].exists():
        known = next(Journal(paths[0]).read(is_whole=True), {}).get("known")
        known = known if isinstance(known, dict) else {}
        archive = known.get("archive")
        if not archive or project.root / str(archive) in paths:
            break
        if known.get("outcome") and not (skips_idle and len(paths) < IDLE_RUNS and is_idle(paths[0])):
            break
        paths.insert(0, project.root / str(archive))
    for path in paths:
        yield from Journal(path).read(is_whole=True)


class Lock:
    """A file that one process holds locked for life, and in which it says what it is."""

    def __init__(self, path: Path, words: str = "") -> None:
        self.path = path
        self._words = words.encode()
        self._file: IO[bytes] | None = None

    def acquire(self) -> bool:
        """Take it, unless it is ours; return whether it was to be had. Raises OSError."""
        for _ in range(LOCK_RETRIES):
            if self._file is None:
                self._file = open_private(self.path, os.O_RDWR)
            with contextlib.suppress(BlockingIOError):
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if is_open_as(self.path, self._file.fileno()):
                    break  # else it was removed: the lock is on a file that nobody else sees
            self._let_go()
            time.sleep(0.02)
        if self._file is not None and os.pread(self._file.fileno(), PATH_LENGTH, 0) != self._words:
            try:
                self._file.truncate(0)
                self._file.seek(0)
                write_whole(self._file, self.path, self._words)
            except OSError:
                self._let_go()  # without our PID in it nobody could stop us
                raise
        return self._file is not None

    @property
    def inode(self) -> int:
        return os.fstat(self._file.fileno()).st_ino if self._file is not None else 0

    def sign(self, words: str) -> None:
        """Say something else in it. Raises OSError."""
        self._words = words.encode()
        self.acquire()

    def release(self) -> None:
        if self._file is not None:
            self._file.truncate(0)
            self._let_go()

    def _let_go(self) -> None:
        if self._file is not None:
            self._file.close()
        self._file = None


def read_lock(path: Path) -> list[str]:
    """Return the lines that the holder of a lock has written there, none where nobody holds it."""
    with contextlib.suppress(OSError), path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return os.fsdecode(file.read(PATH_LENGTH)).split("\n")
    return []


def lock_database(project: Project, database: Path) -> Lock:
    """Return the lock for a database: of two folders that lead to one, one may have an orchestrator."""
    real = database.resolve()
    return Lock(real.with_name(f"{real.name}.orchestrator"), f"{os.getpid()}\n{project.root}\n")


class StateFolder:
    """The orchestrator's state on disk: the journal, the stop marks, and the lock that makes it the only one."""

    _SUFFIXES = (".pid", ".stop", ".log", ".jsonl", ".json")

    def __init__(self, project: Project) -> None:
        self.project = project
        self.journal = Journal(project.journal)
        self._folders = (project.folder, project.pids, project.logs)
        self._locks = [Lock(project.lock)]
        self._root = -1

    def check(self) -> None:
        """Raise OrchestrateError where others can change the state: its files are obeyed, written and signalled by."""
        own = {self.project.journal.name, self.project.lock.name, ".gitignore"}
        for folder in self._folders:
            with contextlib.suppress(FileNotFoundError):
                status = folder.lstat()
                if not stat.S_ISDIR(status.st_mode):
                    raise OrchestrateError(f"{folder} is no folder of its own", "Look at what it is, and remove it.")
                if status.st_uid != os.geteuid():
                    raise OrchestrateError(f"{folder} is another user's", "Run as that user, or remove it.")
                if status.st_mode & stat.S_IWOTH:
                    remedy = f"Look at what they put there, then: chmod go-w {shlex.quote(str(folder))}"
                    raise OrchestrateError(f"{folder} can be written by others", remedy)
                for entry in os.scandir(folder):
                    is_state = folder != self.project.folder and entry.name.endswith(self._SUFFIXES)
                    if (is_state or entry.name in own) and not entry.is_file(follow_symlinks=False):
                        raise OrchestrateError(f"{entry.path} is no regular file", "Look at what it is, and remove it.")

    def make(self) -> None:
        """Make the folders, closed to others and kept out of git; never that of the project. Raises OSError."""
        self.project.folder.parent.mkdir(exist_ok=True)
        for folder in self._folders:
            folder.mkdir(mode=0o700, exist_ok=True)
            folder.chmod(0o700)
        ignore = self.project.folder / ".gitignore"
        if not ignore.exists():
            write_file(ignore, "*\n")

    def keep(self) -> bool:
        """Make anew what somebody removed; return whether this is still the project's orchestrator. Raises OSError."""
        if not all(folder.is_dir() for folder in self._folders):
            self.make()
        if not self._locks[0].acquire():
            return False
        for lock in self._locks[1:]:
            with contextlib.suppress(OSError):  # the database's own folder may be gone
                lock.acquire()
        self.project.anchor = self._locks[0].inode
        return True

    def acquire(self) -> bool:
        """Take the lock; return whether it was to be had. Raises OSError."""
        if self._root < 0:
            self._root = os.open(self.project.root, os.O_RDONLY)  # until it is closed no other folder gets the inode
        is_ours = self._locks[0].acquire()
        self.project.anchor = self._locks[0].inode
        return is_ours

    def acquire_database(self, lock: Lock) -> bool:
        """Take the lock of the database too; return whether it was to be had. Raises OSError."""
        is_ours = lock.acquire()
        self._locks += [lock] if is_ours else []
        return is_ours

    def sign(self) -> None:
        """Say that this is the orchestrator: nobody else can be stopped as one. Raises OSError."""
        self._locks[0].sign(f"{os.getpid()}\n")

    def release(self) -> None:
        for lock in self._locks:
            lock.release()
        self.journal.let_go()
        if self._root >= 0:
            os.close(self._root)
        self._root = -1

    @contextlib.contextmanager
    def hold_marks(self) -> Iterator[None]:
        """Keep others from starting a worker, from marking one as stopped, and from writing into the journal."""
        while True:
            if not self.project.pids.is_dir():
                self.make()  # somebody has just removed it
            descriptor = os.open(self.project.pids, os.O_RDONLY)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            if is_open_as(self.project.pids, descriptor):
                break
            os.close(descriptor)
        try:
            yield
        finally:
            os.close(descriptor)

    def marks(self, stream_ids: Iterable[str]) -> frozenset[str]:
        """Return those of these streams that are marked as stopped."""
        with contextlib.suppress(FileNotFoundError):
            marks = {entry.name[:-5] for entry in os.scandir(self.project.pids) if entry.name.endswith(".stop")}
            return frozenset(stream_id for stream_id in stream_ids if marks and file_name(stream_id) in marks)
        return frozenset()

    def mark(self, stream_id: str, is_stopped: bool) -> None:
        """Write or remove the mark of a stream, under their lock. Raises OSError."""
        if is_stopped:
            write_file(self.project.file(stream_id, ".stop"), "")
        else:
            self.project.file(stream_id, ".stop").unlink(missing_ok=True)


def read_orchestrator_pid(project: Project) -> int:
    """Return the PID of the orchestrator that holds the lock, as it sees itself; 0 where none does."""
    return _read_pid(project.lock, least=1) if read_lock(project.lock) else 0


def read_snapshot(project: Project, backlog: Backlog, database_error: str = "") -> Snapshot:
    """Return how these streams stand by the process table and the files, from outside the orchestrator."""
    history = read_history(project, is_moved=False)
    begun_in, history = Path(history.project or project.root), history.at(str(project.root))
    ids = {stream.id for stream in backlog.streams} | set(history.records)
    found, orchestrator, wall = discover_workers(project, ids), read_orchestrator_pid(project), time.time()
    unseen = {i: worker for i, worker in find_unseen(project, history).items() if i not in found.workers}
    elsewhere, warnings = describe_elsewhere(history, orchestrator, unseen), [*backlog.warnings]
    warnings += [elsewhere] if elsewhere else []
    if orchestrator and not elsewhere and not (begun_in.exists() and begun_in.samefile(project.root)):
        warnings.append(f"the orchestrator waits for this folder to be {begun_in} again: move it back, or stop it")
    workers = {}
    for stream_id, worker in {**unseen, **found.workers}.items():
        # An orchestrator notes each sign of life on the PID file; without one, the output alone tells.
        paths = [project.file(stream_id, suffix) for suffix in (".pid", *([] if orchestrator else [".jsonl"]))]
        age = min((wall - path.stat().st_mtime for path in paths if path.exists()), default=None)
        lines = read_last_words(project, stream_id)
        workers[stream_id] = worker._replace(
            active_at=0.0 if age is None else time.monotonic() - max(age, 0),
            activity=lines[-1].strip() if lines else "",
            background=frozenset(["unknown"]) if history.record(stream_id).reason == WAITS else frozenset(),
        )
    return Snapshot(
        project=project.name,
        streams=backlog.streams,
        workers=workers,
        history=history,
        stopped=StateFolder(project).marks(ids) | {i for i in ids if history.record(i).is_stopped},
        orchestrator=orchestrator,
        database_error=database_error,
        warnings=tuple(warnings),
        foreign=found.foreign,
        wall=wall,
    )


def find_unseen(project: Project, history: History) -> dict[str, Worker]:
    """Return the workers that live in another PID namespace, where the last run was begun: they write on."""
    if history.system in ("", read_system()):
        return {}
    known = ((i, r) for i, r in history.records.items() if r.pid and is_written_to(project.file(i, ".jsonl")))
    return {i: Worker(i, record.pid, record.run) for i, record in known}


def describe_elsewhere(history: History, pid: int, unseen: Collection[str]) -> str:
    """Return what runs where it can't be reached from here: the orchestrator with this PID, or workers; or nothing."""
    is_ours = history.system in ("", read_system())
    where = f"in another PID namespace, on {visible(history.host)}"
    if pid and pid == history.orchestrator and not is_ours:
        return f"The orchestrator (PID {pid}) runs {where}"
    return f"Workers run {where}: {format_names(sorted(unseen))}" if unseen else ""


class Reporter:
    """Takes what the orchestrator has to say. This one keeps it to itself."""

    def event(self, event: Event) -> None:
        """Take note of something that was done."""

    def show(self, snapshot: Snapshot, standings: Mapping[str, Standing], now: float) -> None:
        """Take note of how things stand."""

    def close(self) -> None:
        """Leave the terminal as it was."""


class Notifier(Reporter):
    """Runs a command of the user's for what a person wants to know at night.

    The command gets ORCHESTRATE_EVENT (complete, failed, blocked, silent, paused, overage, ended), ORCHESTRATE_STREAM
    and ORCHESTRATE_MESSAGE. It is never waited for. One that takes too long is killed; where many run, others queue.
    """

    _KINDS: Mapping[str, str] = {
        "run_paused": "paused",
        "overage": "overage",
        "run_ended": "ended",
        "run_left": "ended",
    }
    _STATES: Mapping[str, str] = {"FAILED": "failed", "BLOCKED": "blocked", "SILENT": "silent"}

    def __init__(self, command: str, environ: Mapping[str, str]) -> None:
        self.command = command
        self._environ = {key: value for key, value in environ.items() if not key.startswith("ORCHESTRATE_")}
        self._queue: list[dict[str, str]] = []
        self._running: list[tuple[float, subprocess.Popen[bytes]]] = []

    def event(self, event: Event) -> None:
        kind = self._KINDS.get(event["event"], "")
        if event["event"] == "worker_ended" and event["verdict"] == VerdictKind.COMPLETE.value:
            kind = "complete"
        if event["event"] == "state":
            kind = self._STATES.get(event["state"], "")
        if kind:
            message = (format_event(event) or str(event.get("reason", "")))[:NOTIFICATION_LENGTH]
            named = {"EVENT": kind, "STREAM": str(event.get("stream", "")), "MESSAGE": message}
            variables = {f"ORCHESTRATE_{name}": value.replace("\0", "") for name, value in named.items()}
            self._queue = [*self._queue, variables][-NOTIFICATIONS_QUEUED:]

    def show(self, snapshot: Snapshot, standings: Mapping[str, Standing], now: float) -> None:  # noqa: ARG002
        """Run the command for what is new. Raises OSError where there is no such command."""
        for since, child in self._running:
            if child.poll() in (126, 127):
                raise OSError(f"--notify {self.command!r} can't be executed")
            if child.returncode is None and now - since > NOTIFICATION_TIMEOUT:
                os.killpg(child.pid, signal.SIGKILL)  # its group: the shell's children too
        self._running = [(since, child) for since, child in self._running if child.returncode is None]
        self._run(NOTIFICATIONS - len(self._running), now)

    def close(self) -> None:
        """Run the command for what is left, the run's end above all."""
        self._run(len(self._queue), 0.0)

    def _run(self, count: int, now: float) -> None:
        words, null = ["/bin/sh", "-c", self.command], subprocess.DEVNULL
        for _ in range(min(count, len(self._queue))):
            with contextlib.suppress(OSError):  # out of processes or memory: it stays in the queue
                env = {**self._environ, **self._queue[0]}
                child = subprocess.Popen(words, env=env, stdin=null, stdout=null, stderr=null, start_new_session=True)
                self._running.append((now, child))
                del self._queue[0]


class Orchestrator:
    """The run: observe, plan, apply, report, until the plan is to end or a signal says so."""

    def __init__(
        self,
        state: StateFolder,
        store: TaskStore,
        table: WorkerTable,
        limits: Limits,
        clock: Clock,
        reporters: Sequence[Reporter],
        poll_interval: float = POLL_INTERVAL,
        stop_on_exit: bool = False,
        warnings: Iterable[Problem] = (),
        words: str = "",
    ) -> None:
        self.state = state
        self.store = store
        self.table = table
        self.limits = limits
        self.clock = clock
        self.reporters = list(reporters)
        self.poll_interval = poll_interval
        self.stop_on_exit = stop_on_exit
        self.words = words
        self.history = History()
        self.finish: Finish | None = None
        self.backlog = Backlog()  # as it was last read
        self._database_error = ""
        self._next_read = 0.0
        self._quiet_until = 0.0
        self._warnings = [". ".join(problem) for problem in warnings]
        self._changes: dict[str, tuple[str, int]] = {}
        self._trouble = ""
        self._troubled_at = 0.0
        self._folded = 0  # bytes of the journal after it was folded
        self._whole_at = clock.monotonic()  # when it was last seen whole and in its place
        self._home_at = clock.monotonic()  # when the project's folder was last seen at its place

    def run(self) -> int:
        self.begin()
        while self.finish is None and not self._heed_signals():
            if not self.step() and self.finish is None:
                self.clock.wait(TICK)
        if self._try(self._keep):  # a worker may have deleted it just now
            self._try(lambda: bool(self._find_stopped({stream.id for stream in self.backlog.streams})))
        left = f"{format_count(self.table.count(), 'worker')} left running"
        if self.finish is None or self.limits.is_closing:
            self.emit("run_left", signal=self.clock.signals[0], reason=f"the orchestrator was ended; {left}")
            return 128 + self.clock.signals[0]
        if self.clock.monotonic() - self._home_at > ROOT_TIMEOUT:  # the run goes on with the next start
            self.emit("run_left", signal=None, reason=f"{self.finish.reason}; {left}")
            return self.finish.exit_code
        if self.finish.exit_code == EXIT_RUNNING:  # the journal is another one's by now
            self.history = self.history._replace(outcome=self.finish.reason)
        else:
            self.emit("run_ended", exit_code=self.finish.exit_code, reason=self.finish.reason)
        return self.finish.exit_code

    def begin(self) -> None:
        project, backlog = self.state.project, self._ask()
        with self.state.hold_marks():
            self.state.journal.hold()
            before = self.history = fold_events(History(), self.state.journal.read()).at(str(project.root))
            self._carry(
                "run_started",
                bool(self.history.outcome),
                pid=os.getpid(),
                project=str(project.root),
                root=project.identity,
                database=str(self.store.path),
                host=os.uname().nodename,
                system=read_system(),
                words=self.words,
                limits={name: pack(value) for name, value in self.limits._asdict().items()},
            )
            self._take_back_stops(() if isinstance(backlog, StoreError) else backlog.streams)
        for warning in self._warnings:
            self.warn(warning)
        self._read_backlog(backlog)
        self._pause(self.history.pause_ends, self.history.pause_reason)  # it is in force; this says so
        for stream_id, record in self.history.records.items():
            left = record.pause_ends - self.clock.wall()
            if left > 0:
                self.warn(f"{visible(stream_id)} is still paused for {format_duration(left)}: {record.pause_reason}")
        if before.words not in ("", self.words) and not before.outcome:  # perhaps a sandbox, or a budget
            self.warn(f"the interrupted run had other options; to go on with them: {hint_again(before.words)}")
        if self.history.spent:
            self.warn(f"this run goes on: ${self.history.spent:.2f} were spent before")
        streams, unseen = {stream.id: stream for stream in self.backlog.streams}, find_unseen(project, before)
        found = self.table.adopt(streams, self.history.records, unseen)
        for path, why in found.stale.items():
            self.emit("stale_pid_file", file=path.name, reason=why)
        for worker in found.workers.values():
            if worker.ending is None:
                stream = streams.get(worker.stream_id)
                counts = {"completed": stream.completed if stream else 0, "open": stream.open if stream else None}
                self.emit("worker_adopted", stream=worker.stream_id, pid=worker.pid, run=worker.run, **counts)
        if unseen:
            self.warn(f"{describe_elsewhere(before, 0, unseen)}; who wants to stop one has to do it there")

    def _take_back_stops(self, streams: Sequence[Stream]) -> None:
        """Take back the stops of the streams that this run is about: a person has started it. Under their lock.

        One that came while this was starting stays.
        """
        now = self.clock.monotonic()
        is_whole = self.limits.streams is None and self.limits.phase is None
        known = {stream.id for stream in streams if self.limits.selects(stream)}
        known |= set(self.history.records) if is_whole else set()  # the database may be unreadable
        marked = self.state.marks(known)
        kept = {i for i in self.history.records if self._whole_at < self.history.record(i).stopped_at <= now}
        for stream_id in sorted(known - kept):
            if stream_id in marked or self.history.record(stream_id).is_stopped:
                self.emit("stop_taken_back", stream=stream_id)
                self.state.mark(stream_id, False)

    def _carry(self, kind: str, is_over: bool, **facts: Any) -> None:
        """Say with an event all that is known, so that nothing before it has to be read.

        What is over, or too much, then goes to the archive. Under the lock of the marks.
        """
        journal, project = self.state.journal, self.state.project
        is_moved = journal.size and (is_over or journal.size > JOURNAL_MOST)
        name = re.sub("[^0-9TZ.]", "", format_time(self.clock.wall()))
        archive = project.archive / "journal" / f"{name}.jsonl" if is_moved else None
        before = str(archive.relative_to(project.root)) if archive else self.history.archive
        event = make_event(self.clock, kind, known=pack(self.history._replace(archive=before)), **facts)
        try:
            journal.carry(event, archive)
        except OSError as error:
            self._complain(error)
            journal.add(event)
        self.record(event, is_written=True)

    def _mend_journal(self) -> None:
        """Put the journal back where somebody has removed it; where it is cut, or too long, say all that is known."""
        journal, now = self.state.journal, self.clock.monotonic()
        is_long = journal.size > max(JOURNAL_MOST, 2 * self._folded)
        if journal.is_whole and not is_long:
            self._whole_at = now
            return
        try:
            with self.state.hold_marks():
                for event in journal.put_back() if journal.is_lost else []:
                    if self._is_request(event) and self._is_new(event):
                        journal.add(event)
                self._heed_requests()
                if is_long or not journal.is_whole:
                    self._carry("journal_folded", False)
                self._folded, journal.is_cut, self._whole_at = journal.size, False, now
        except OSError as error:
            journal.trouble = error  # nothing starts meanwhile; what ends is seen

    def step(self) -> bool:
        """Do a tick, whatever the system refuses; return whether the next one must not wait."""
        is_busy = self._try(self.tick)
        trouble = self.state.journal.trouble or self.table.trouble
        if trouble is not None:
            self._complain(trouble)
        if self._trouble and self.clock.monotonic() > self._troubled_at + TROUBLE_CALM:
            self._trouble = ""
            self.emit("trouble_over")
        return is_busy

    def _try(self, act: Callable[[], bool]) -> bool:
        try:
            return act()
        except OSError as error:
            self._complain(error)
            if isinstance(error, LostRootError) and self.clock.monotonic() - self._home_at > ROOT_TIMEOUT:
                self.finish = Finish(EXIT_FAILED, str(error))
            return False

    def _complain(self, error: OSError) -> None:
        """Say, once until it is over, what the system refuses. Whatever it is, the workers live, and it may pass."""
        self._troubled_at = self.clock.monotonic()
        if not self._trouble or (isinstance(error, LostRootError) and self._trouble != str(error)):
            self._trouble = str(error)
            self.emit("trouble", reason=self._trouble)

    def tick(self) -> bool:
        """Observe, plan, apply, report; return whether the next tick must not wait. Raises OSError."""
        if not self._keep():
            self.finish = Finish(EXIT_RUNNING, "another orchestrator has taken over")
            return True
        snapshot = self.observe()
        now = self.clock.monotonic()
        actions = plan(snapshot, self.limits, now)
        # One that fails keeps no other from being tried.
        done = [self._try(functools.partial(self.apply, action)) for action in actions]
        if any(done) and self.finish is None:
            return True  # what the snapshot shows is past: the next tick follows at once, and reports
        self.report(snapshot, now)
        return self.finish is not None

    def _keep(self) -> bool:
        """Put back what somebody deleted; return whether this is still the orchestrator. Raises OSError."""
        self.state.project.check_root()
        self._home_at = self.clock.monotonic()
        if not self.state.keep():
            return False
        self.state.journal.flush()
        self._mend_journal()
        return True

    def observe(self) -> Snapshot:
        """Look at the workers, then at the database, so that a worker's last commit is seen with its end."""
        workers = self.table.poll()
        for worker in workers.values():
            if worker.notice:
                self.warn(worker.notice, worker.notice.partition(" is ")[0])
            if worker.overage and worker.overage not in self.history.said:
                self.emit("overage", stream=worker.stream_id, reason=worker.overage)
        for path, what in self.table.find_lost():
            self.warn(f"{path} was removed: {what}", str(path))
        self._heed_requests()
        has_ended = any(worker.ending is not None for worker in workers.values())
        now = self.clock.monotonic()
        # A database that takes long to read and changes all the time may not take all of the time.
        try:
            is_due = has_ended or now >= self._next_read or (now >= self._quiet_until and self.store.changed())
        except StoreError:
            is_due = True  # the read that follows says it
        if is_due:
            self._read_backlog()
            self._quiet_until = 2 * self.clock.monotonic() - now
        for stream in self.backlog.streams if has_ended else ():
            if stream.id in workers and workers[stream.id].ending is not None and not stream.is_complete:
                workers[stream.id] = self.table.count_commits(stream.id)
        stopped = self._find_stopped({stream.id for stream in self.backlog.streams} | set(workers))
        return Snapshot(
            project=self.state.project.name,
            streams=self.backlog.streams,
            workers=workers,
            history=self.history,
            stopped=stopped,
            orchestrator=os.getpid(),
            database_error=self._database_error,
            warnings=self.backlog.warnings,
            foreign=self.table.foreign,
            wall=self.clock.wall(),
        )

    @staticmethod
    def _is_request(event: Event) -> bool:
        return event.get("event") in ("start_requested", "stop_requested") and isinstance(event.get("stream"), str)

    def _is_new(self, event: Event) -> bool:
        """Whether somebody wrote it since the journal was last seen whole: what stands in its place may be a copy."""
        at = event.get("clock")
        return isinstance(at, (int, float)) and at > self._whole_at

    def _heed_requests(self) -> None:
        """Take note of what others have written into the journal: `start STREAM` beside this orchestrator, `stop`."""
        for event in self.state.journal.read():
            if self._is_request(event) and (not self.state.journal.is_cut or self._is_new(event)):
                kind, stream_id = event["event"], event["stream"]
                is_news = kind == "start_requested" or not self.history.record(stream_id).is_stopped
                self.history = fold_events(self.history, [event])
                if is_news:  # what others wrote may lack anything: what is said of it is our own
                    said = make_event(self.clock, kind, stream=stream_id)
                    self._tell(lambda reporter, said=said: reporter.event(said))  # type: ignore[misc]

    def _find_stopped(self, stream_ids: Collection[str]) -> frozenset[str]:
        """Return the streams that a person stopped: so the marks say, or the journal. What one has lost is put back."""

        def read_recorded() -> frozenset[str]:
            return frozenset(i for i in stream_ids if self.history.record(i).is_stopped)

        def mend() -> bool:
            with self.state.hold_marks():
                self._heed_requests()
                marked, recorded = self.state.marks(stream_ids), read_recorded()
                for stream_id in sorted(marked - recorded):
                    self.emit("stop_requested", stream=stream_id)
                for stream_id in sorted(recorded - marked):
                    self.state.mark(stream_id, True)
            return True

        if self.state.marks(stream_ids) != read_recorded():
            self._try(mend)
        return self.state.marks(stream_ids) | read_recorded()

    def apply(self, action: Action) -> bool:
        if isinstance(action, Start):
            return self._start(action.stream, action.budget)
        if isinstance(action, Stop):
            self.table.signal(action.stream_id, signal.SIGTERM)
            self.emit("worker_stopping", stream=action.stream_id, why=action.why.name)
        elif isinstance(action, Kill):
            self.table.signal(action.stream_id, signal.SIGKILL)
            self.emit("worker_killed", stream=action.stream_id)
        elif isinstance(action, Conclude):
            worker, verdict = action
            record = self.history.record(worker.stream_id)
            stream = next((stream for stream in self.backlog.streams if stream.id == worker.stream_id), None)
            self._look_at_root(worker)
            self.table.forget(worker.stream_id)
            event = make_end_event(self.clock, worker, verdict, record, stream)
            until = self.clock.wall() + verdict.delay
            # First, so that no kill in between can lose it; unless the run is paused for as long already.
            if verdict.kind is VerdictKind.PAUSED and until > self.history.pause_ends + LIMIT_MARGIN:
                self._pause(until, verdict.reason)
            self.record(event)
        elif isinstance(action, Finish):
            self.finish = action
        elif action.reason != self.history.waiting:
            self.emit("run_waiting", reason=action.reason, answers=list(action.answers))
        return not isinstance(action, Wait)

    def report(self, snapshot: Snapshot, now: float) -> None:
        standings = assess(snapshot, self.limits, now)
        for stream_id, standing in standings.items():
            record = self.history.record(stream_id)
            # That a worker works comes and goes.
            state = StreamState.RUNNING if standing.state is StreamState.WORKING else standing.state
            # For whom a stream waits changes with each one that ends, and stands in `status`.
            has_reason = state is not StreamState.WAITING or self.finish is not None
            if record.state is not state or (has_reason and record.reason != standing.reason):
                self.emit("state", stream=stream_id, state=state.name, reason=standing.reason)
        shown = snapshot._replace(history=self.history)
        self._tell(lambda reporter: reporter.show(shown, standings, now))

    def emit(self, kind: str, **facts: Any) -> None:
        self.record(make_event(self.clock, kind, **facts))

    def record(self, event: Event, is_written: bool = False) -> None:
        self.history = self.history.after(event)
        if not is_written:
            self.state.journal.add(event)
        lines = format_log_lines(event) if "stream" in event else []
        if lines:
            self.table.note(event["stream"], lines)
        told = {name: fact for name, fact in event.items() if name != "known"}
        self._tell(lambda reporter: reporter.event(told))

    def _tell(self, say: Callable[[Reporter], None]) -> None:
        """Tell every reporter. One that can't be reached is dropped, and the run goes on: the journal has it all."""
        for reporter in list(self.reporters):
            try:
                say(reporter)
            except (OSError, SystemExit) as error:  # rich answers a broken pipe with SystemExit
                self.reporters.remove(reporter)
                self.warn(f"{type(reporter).__name__} says no more: {error}")

    def warn(self, message: str, about: str = "") -> None:
        """Say a warning, once in a run; where it says what it is `about`, one about each thing."""
        if (about or message) not in self.history.said:
            self.emit("warning", message=message, **({"about": about} if about else {}))

    def _start(self, stream: Stream, budget: float) -> bool:
        if stream.phase is Phase.PARALLEL:
            self._look_at_root()  # before anybody is kept waiting by the lock
        with self.state.hold_marks():
            self._heed_requests()
            is_stopped = self.state.marks([stream.id]) or self.history.record(stream.id).is_stopped
            if self.state.journal.trouble or self.clock.signals or is_stopped:
                return False  # where nothing can be written down, nothing starts
            # First, so that a kill in between can't lose what the worker says and costs.
            raw_start = self.table.open_output(stream.id)
            self.emit("worker_starting", stream=stream.id, raw_start=raw_start, budget=budget)
            if self.state.journal.trouble:
                return False
            record = self.history.record(stream.id)
            taken = {other.number for other in self.history.records.values()}
            number = record.number if record.number >= 0 else next(n for n in itertools.count() if n not in taken)
            worker = self.table.spawn(stream, self.history, number, budget, self.backlog.streams)
        for warning in worker.warnings:
            self.warn(warning)
        self.emit(
            "worker_started",
            stream=stream.id,
            name=stream.name,
            phase=stream.phase.value,
            pid=worker.pid,
            run=worker.run,
            attempt=record.attempts + 1,
            completed=stream.completed,
            open=stream.open,
            folder=worker.folder or str(self.state.project.root),
            branch=worker.branch or None,
            head=worker.head,
            number=number,
            port=worker.port,
            raw_start=raw_start,
            budget=budget,
        )
        return True

    def _look_at_root(self, ended: Worker | None = None) -> None:
        """Say what parallel streams have changed in the project's own folder, once one of them has `ended`.

        What stands there before the first of them starts is none of theirs, and no worktree has it.
        """
        if self.table.git is None:
            return
        root = str(self.state.project.root)
        if ended.folder in ("", root) if ended else self.table.folders() - {root}:
            return  # not in a worktree; not the first
        seen = self.table.read_root()
        if seen is None:
            return
        known = self.history.seen
        files = [name for name in seen if known is not None and seen[name] != known.get(name)] if ended else []
        if ended is None and seen:
            names = format_names(list(seen))
            self.warn(f"Uncommitted changes: the streams branch from the last commit, without {names}")
        authors = {name: self.table.find_authors(name) for name in files}
        for streams in dict.fromkeys(authors.values()):
            theirs = [name for name in files if authors[name] == streams]
            self.emit("root_seen", files=theirs, streams=streams, seen=seen)
        if seen != known and not files:
            self.emit("root_seen", files=[], streams=[], seen=seen)

    def _pause(self, until: float, reason: str) -> None:
        """Let no worker start before a moment of the wall clock; nothing follows from one that is past."""
        delay = round(until - self.clock.wall(), 3)
        if delay > 0:
            self.emit("run_paused", until=format_time(until), delay=delay, reason=reason)

    def _heed_signals(self) -> bool:
        """Whether a signal ends the orchestrator now. With `stop_on_exit` it ends later, after the workers; a second
        signal makes it less patient."""
        if not self.clock.signals:
            return False
        if self.stop_on_exit and len(self.clock.signals) < 3:
            patience = STOP_TIMEOUT if len(self.clock.signals) == 1 else 0
            self.limits = self.limits._replace(is_closing=True, stop_timeout=patience)
            return False
        return True

    def _ask(self) -> Backlog | StoreError:
        try:
            return self.store.read()
        except StoreError as error:
            return error

    def _read_backlog(self, found: Backlog | StoreError | None = None) -> None:
        self._next_read = self.clock.monotonic() + self.poll_interval
        found = found or self._ask()
        if isinstance(found, StoreError):
            if not self._database_error:
                self.emit("database_unreadable", reason=str(found))
            self._database_error = str(found)
            return
        self.backlog = found
        if self._database_error:
            self.emit("database_readable")
        self._database_error = ""
        changes = {stream.id: (stream.changed_at, stream.completed) for stream in self.backlog.streams}
        for stream_id in changes:
            if changes[stream_id] != self._changes.get(stream_id):
                self.table.touch(stream_id)
        self._changes = changes
        for warning in self.backlog.warnings:
            self.warn(warning)


def format_log_lines(event: Event) -> list[str]:
    """Return an event as the lines that a stream's own log gets, each with its time; most get one, or none."""
    kind, lines = event["event"], [format_event(event)]
    if kind == "worker_started":
        what = f"{visible(event['stream'])} ({visible(shorten(event['name'], 60))}) · {event['phase']}"
        lines = [f"──── {what} · attempt {event['attempt']} · PID {event['pid']} · {event['folder']}"]
    elif kind == "worker_ended":
        spent = format_duration(event["seconds"])
        if event["turns"]:  # one that was killed has told neither
            spent += f", {format_count(event['turns'], 'turn')}, ${event['cost']:.2f}"
        lines.insert(0, f"──── ended after {spent}: {event['ending']}")
    return stamp_lines(read_time(event["time"]), filter(None, lines))


# What an event says to people, with its facts; one that is worth no line has none. `pause` is its delay as they say it.
_EVENT_FORMATS = {
    "worker_started": "Started worker for {stream} (attempt {attempt}, PID {pid})",
    "worker_adopted": "Took over the worker of {stream} that still runs (PID {pid})",
    "worker_killed": "Killing what is left of the worker of {stream}",
    "start_requested": "{stream}: start requested",
    "stale_pid_file": "Removed stale PID file {file}: {reason}",
    "database_unreadable": "The database can't be read; nothing starts until it can: {reason}",
    "database_readable": "The database can be read again",
    "trouble": "In trouble, trying on: {reason}",
    "trouble_over": "Out of trouble",
    "run_paused": "Paused, nothing starts for {pause}: {reason}",
    "warning": "Warning: {message}",
    "overage": "Warning: {stream}: {reason}",
    "root_seen": "Warning: changed in the project's own folder while {streams} worked: {files}",
}


def format_event(event: Event) -> str:
    """Return an event in words for people; empty where it is not worth a line."""
    kind, stream = event["event"], visible(str(event.get("stream", "")))
    reason = visible(str(event.get("reason", "")))
    pause = format_duration(event["delay"]) if "delay" in event else ""
    if kind == "worker_ended":
        return _format_end(event, stream, reason, pause)
    if kind == "worker_stopping":
        why = StopReason[event["why"]]
        what = "processes of" if why is StopReason.LEFTOVERS else "the worker of"
        return f"Stopping {what} {stream}: {why.value}"
    if kind == "state":
        state = StreamState[event["state"]]
        is_said = state in (StreamState.BLOCKED, StreamState.FAILED, StreamState.STOPPED, StreamState.SILENT)
        return f"{stream} {state.value.lower()}: {reason}" if is_said else ""
    if (kind == "worker_started" and not event["pid"]) or (kind == "root_seen" and not event["files"]):
        return ""  # it could not be executed; why, its end says
    if kind == "run_waiting":
        return "\n".join([f"Waiting: {reason}", *map(visible, event["answers"])])
    facts = {n: format_names(v) if isinstance(v, (list, tuple)) else visible(str(v)) for n, v in event.items()}
    return _EVENT_FORMATS.get(kind, "").format(**{**facts, "pause": pause})


def _format_end(event: Event, stream: str, reason: str, pause: str) -> str:
    verdict = VerdictKind(event["verdict"])
    if verdict is VerdictKind.RESTART:
        seconds = f"{event['delay']:.0f}s"
        if event["tries"]:
            return f"Trying {stream} again in {seconds}: {reason}"
        return f"Restarting worker for {stream} ({event['restarts']}/{event['max_restarts']}) in {seconds}: {reason}"
    if verdict is VerdictKind.COMPLETE:
        took = f"{stream} complete in {format_duration(event.get('worked') or event['seconds'])}"
        took += f", {event['ended']} attempts" if event.get("ended", 1) > 1 else ""
        return took + (f" (warning: {reason})" if reason else "")
    if verdict is VerdictKind.LIMITED:
        return f"{stream} paused for {pause}: {reason}"
    # What else can follow is a state that lasts, and is said as such.
    return f"{stream} is over: {reason}" if verdict is VerdictKind.VANISHED else ""


def end_by_signals(is_over: Callable[[int], bool], timeout: float) -> bool:
    """Ask `is_over` again and again, with SIGTERM and after `timeout` seconds with SIGKILL; return whether it is."""
    for signum, patience in ((signal.SIGTERM, timeout), (signal.SIGKILL, KILL_TIMEOUT)):
        deadline = time.monotonic() + patience
        while not is_over(signum):
            if time.monotonic() >= deadline:
                break
            time.sleep(0.05)
        else:
            return True
    return is_over(signal.SIGKILL)


def stop_orchestrator(project: Project, timeout: float) -> int:
    """End the project's orchestrator, by force after `timeout` seconds; return the PID that it had, 0 where none ran.

    Raises OrchestrateError where it is another user's.
    """
    pid = read_orchestrator_pid(project)
    signalled: set[int] = set()

    def is_over(signum: int) -> bool:
        if not pid or read_orchestrator_pid(project) != pid:
            return True
        if signum not in signalled:
            signalled.add(signum)
            with contextlib.suppress(psutil.NoSuchProcess, ProcessLookupError, FileNotFoundError):
                process = psutil.Process(pid)
                if any(project.lock.samefile(file.path) for file in process.open_files()):
                    process.send_signal(signum)
        return False

    try:
        is_ended = end_by_signals(is_over, timeout)
    except (psutil.AccessDenied, PermissionError) as error:
        raise OrchestrateError(f"The orchestrator (PID {pid}) is another user's", "Stop it as that user.") from error
    if not is_ended:
        remedy = "It may run in a container, or on another machine, where its PID means something: stop it there."
        raise OrchestrateError(f"The orchestrator (PID {pid}) still runs, and so do its workers", remedy, EXIT_FAILED)
    return pid


def request(project: Project, stream_ids: Iterable[str], is_stop: bool) -> list[Event]:
    """Mark streams as stopped, or take that back, and write it into the journal: one of the two can get lost.

    Returns the events. Raises OSError.
    """
    state, events = StateFolder(project), []
    with state.hold_marks():
        for stream_id in stream_ids:
            if is_stop:
                state.mark(stream_id, True)  # first, so that nothing restarts
            events.append(make_event(Clock(), "stop_requested" if is_stop else "start_requested", stream=stream_id))
            state.journal.add(events[-1])
            if not is_stop:
                if state.journal.trouble:
                    raise state.journal.trouble
                state.mark(stream_id, False)
    return events


def stop_workers(project: Project, stream_ids: Iterable[str], selected: set[str] | None, timeout: float) -> Discovery:
    """Mark streams as stopped, then end their workers with all that these have started.

    `selected` None means every worker that lives. Returns what was found at first; whatever is left in its `trees` at
    the end has survived SIGKILL.
    """
    stream_ids = set(stream_ids)
    found = discover_workers(project, stream_ids)
    targets = set(found.trees) if selected is None else selected
    try:
        request(project, targets, is_stop=True)
    except OSError:
        if read_orchestrator_pid(project):
            raise  # it would start them again
    trees = {stream_id: tree for stream_id, tree in found.trees.items() if stream_id in targets}
    seen = {stream_id: dict(tree) for stream_id, tree in trees.items()}
    signalled: set[tuple[int, int]] = set()

    def is_over(signum: int) -> bool:
        nonlocal trees
        trees = discover_workers(project, stream_ids, seen).trees
        trees = {stream_id: tree for stream_id, tree in trees.items() if stream_id in targets}
        for stream_id, tree in trees.items():
            seen.setdefault(stream_id, {}).update(tree)
            fresh = {pid: process for pid, process in tree.items() if (signum, pid) not in signalled}
            signal_tree(fresh, signum)
            signalled.update((signum, pid) for pid in fresh)
        return not trees

    end_by_signals(is_over, timeout)
    return found._replace(trees=trees)


# ── 7. Rendering ──────────────────────────────────────────────────────────────────────────────────────────────────────


# One symbol and one colour for each state, wherever it is shown.
_LOOKS: dict[StreamState, tuple[str, str]] = {
    StreamState.COMPLETE: ("✓", "green"),
    StreamState.WORKING: ("●", "cyan"),
    StreamState.RUNNING: ("◎", "blue"),
    StreamState.SILENT: ("◇", "yellow"),
    StreamState.FINISHING: ("◕", "green"),
    StreamState.STOPPING: ("▣", "yellow"),
    StreamState.RESTARTING: ("↻", "yellow"),
    StreamState.PAUSED: ("◫", "yellow"),
    StreamState.QUEUED: ("◌", "bright_black"),
    StreamState.WAITING: ("○", "bright_black"),
    StreamState.BLOCKED: ("⊘", "magenta"),
    StreamState.STOPPED: ("■", "yellow"),
    StreamState.FAILED: ("✗", "red"),
    StreamState.IDLE: ("·", "bright_black"),
}
_DIM = {StreamState.COMPLETE, StreamState.QUEUED, StreamState.WAITING, StreamState.IDLE}  # nobody works there

# The state that an event's line has the look of, where it is no state's and no worker's end; others are warnings.
_EVENT_STATES = {
    "worker_started": StreamState.WORKING,
    "worker_adopted": StreamState.WORKING,
    "worker_stopping": StreamState.STOPPING,
    "worker_killed": StreamState.STOPPING,
    "start_requested": StreamState.QUEUED,
    "stale_pid_file": StreamState.IDLE,
    "database_readable": StreamState.COMPLETE,
    "trouble_over": StreamState.COMPLETE,
    "run_waiting": StreamState.BLOCKED,
    "run_paused": StreamState.PAUSED,
}


def render_event(event: Event, width: int) -> Text | None:
    """Return an event as its line: time, symbol, words. Width in columns: what is longer hangs below; 0: no limit.

    None where it is worth no line. Where nothing is drawn, as in a log, the time has its date and its offset.
    """
    words, wall = format_event(event), read_time(event["time"])
    if not words:
        return None
    symbol, style = "!", "yellow"
    if event["event"] == "worker_ended":
        symbol, style = _LOOKS[_OUTCOMES[event["verdict"]][0]]
    elif event["event"] == "state" or event["event"] in _EVENT_STATES:
        symbol, style = _LOOKS[_EVENT_STATES.get(event["event"]) or StreamState[event["state"]]]
    moment = time.strftime("%H:%M:%S", time.localtime(wall)) if width else format_stamp(int(wall))
    head = rich.Text.assemble((f"{moment}  ", "bright_black"), (f"{symbol} ", style))
    return hang(head, words, width, style if style in ("red", "yellow") else "")


def hang(head: Text, words: str, width: int, style: str = "") -> Text:
    """Return words behind a head, and what does not fit into the width in columns below them; 0: no limit.

    A line behind the first is a command, which is never broken.
    """
    indent = head.cell_len
    room = max(width - indent, 20) // (1 + (rich.Text(words).cell_len > len(words)))  # of wide characters half as many
    first, *commands = words.split("\n")
    parts = textwrap.wrap(first, room, break_on_hyphens=False) if width else [first]
    return head.append(f"\n{' ' * indent}".join(map(defuse, [*parts, *commands])), style)


def defuse(text: str) -> str:
    """Return what begins a line so that it is no command to GitHub Actions."""
    return re.sub(r"^(?=\s*::)", "- ", text)


def format_bar(percent: int, width: int = BAR_WIDTH) -> str:
    filled = width * percent // 100
    return f"[{'█' * filled}{'░' * (width - filled)}]"


def format_standing(standing: Standing, worker: Worker | None, now: float) -> str:
    """Return where a stream stands, in words, with the PID, the reason and the time that is left."""
    state, words = standing.state, standing.state.value
    if state is StreamState.WAITING:
        return visible(standing.reason).replace("waits", words, 1)
    if state in (StreamState.RESTARTING, StreamState.PAUSED):
        words += f" {'in' if state is StreamState.RESTARTING else 'for'} {format_countdown(standing.until, now)}"
    if worker is not None and worker.pid:
        words += f" (PID: {worker.pid})"
    if state is StreamState.FINISHING and standing.until < NEVER:
        return f"{words}: stopped in {format_duration(standing.until - now)} unless it exits"
    if state is StreamState.SILENT and worker is not None:
        return f"{words} for {format_duration(now - worker.active_at)}"
    return words + (f": {visible(standing.reason)}" if standing.reason else "")


def format_countdown(until: float, now: float) -> str:
    return format_duration(until - now + 0.999)


def render_box(title: str, width: int) -> list[Text]:
    """Return the guide's box around a title, which is cut where it does not fit. Width in columns, 0 for no limit."""
    inner = min(width or BOX_WIDTH, BOX_WIDTH) - 2
    text = rich.Text(visible(title), style="bold")
    text.pad_left(max(min(14, inner - text.cell_len - 1), 1))
    text.truncate(inner, overflow="ellipsis", pad=True)
    edge, side = "═" * inner, ("║", "cyan")
    return [rich.Text(f"╔{edge}╗", "cyan"), rich.Text.assemble(side, text, side), rich.Text(f"╚{edge}╝", "cyan")]


def render_lines(lines: Sequence[Text], width: int) -> Text:
    """Return lines as one text, each cut to the width in columns; 0 cuts nothing. A command is never cut."""
    for line in lines:
        if width and line.overflow != "ignore":
            line.truncate(width, overflow="ellipsis")
    text: Text = rich.Text("\n").join(lines)
    return text


def render_status(snapshot: Snapshot, standings: Mapping[str, Standing], now: float, width: int) -> Text:
    """Return the guide's WORKER STATUS: every stream under its phase. Width in columns, 0 for no limit."""
    lines = render_box(f"{snapshot.project.upper()} - WORKER STATUS", width)
    for phase in Phase:
        streams = [s for s in snapshot.streams if s.phase is phase]
        lines += [rich.Text(""), rich.Text(f"  {phase.name}", style="bold")] if streams else []
        for place, stream in enumerate(streams):
            standing, worker = standings[stream.id], snapshot.workers.get(stream.id)
            icon, style = _LOOKS[standing.state]
            lines += [rich.Text("")] if place else []
            lines.append(rich.Text.assemble("    ", (icon, style), f" {visible(stream.id)} │ {visible(stream.name)}"))
            progress = f"      {format_bar(stream.percent)} {stream.completed}/{stream.total} │ "
            lines.append(rich.Text.assemble(progress, (format_standing(standing, worker, now), style)))
            own = [branch for branch in snapshot.branches if branch.stream_id == stream.id]
            lines += [
                rich.Text(f"      {visible(branch.name)} │ {branch.summary}", style="bright_black") for branch in own
            ]
    return render_lines([*lines, *_render_notes(snapshot, width)], width)


def _render_notes(snapshot: Snapshot, width: int) -> list[Text]:
    notes = [f"The database can't be read: {snapshot.database_error}"] if snapshot.database_error else []
    notes += [f"Warning: {warning}" for warning in snapshot.warnings]
    living = [worker for worker in snapshot.workers.values() if worker.ending is None]
    if snapshot.orchestrator and snapshot.pause_left:
        notes.append(f"Paused for {format_countdown(snapshot.pause_left, 0)}: {snapshot.history.pause_reason}")
    if snapshot.orchestrator and snapshot.history.waiting:
        notes.append(f"Waiting: {snapshot.history.waiting}")
    helps = [("To answer", s.answer) for s in snapshot.streams if s.is_blocked and s.id not in snapshot.workers]
    if living and not snapshot.orchestrator:
        notes.append(f"{format_count(len(living), 'worker')} without an orchestrator: nothing restarts")
        helps.append(("To go on", hint_again(snapshot.history.words)))
    lines: list[Text] = []
    for note in notes:
        lines += hang(rich.Text("  "), visible(note), width or BOX_WIDTH, "yellow").split("\n")
    lines += [rich.Text(f"  {what}: {visible(command)}", "yellow", overflow="ignore") for what, command in helps]
    return [rich.Text(""), *lines] if lines else []


def render_dashboard(
    snapshot: Snapshot, standings: Mapping[str, Standing], now: float, wall: float, width: int, height: int = 0
) -> Text:
    """Return the guide's STREAM STATUS. Width and height in cells, 0 for no limit; what is too high is told shorter."""
    box = render_box(f"{snapshot.project.upper()} - STREAM STATUS", width)
    rule = rich.Text("─" * min(width or BOX_WIDTH, BOX_WIDTH - 2), style="bright_black")
    running = sum(worker.ending is None for worker in snapshot.workers.values())
    overall = _render_overall(snapshot.streams, width)
    details = [_render_detail(s, standings[s.id], snapshot.workers.get(s.id), now) for s in snapshot.streams]
    clock = time.strftime("%H:%M:%S", time.localtime(wall))
    foot = rich.Text(f"Data: Task Copilot │ {format_count(running, 'worker')} │ {clock}", style="bright_black")
    notes = _render_notes(snapshot, width)
    for note in notes if height else ():  # what is live can't be pasted, and must not wrap
        note.overflow = None
    whole = [
        *box,
        rich.Text(""),
        *[rich.Text("📊 Overall Progress", style="bold"), rule, *overall, rich.Text("")],
        *[rich.Text("🖥  Stream Details", style="bold"), rule, rich.Text(f"  Workers: {running} running")],
        *[line for detail in details for line in [rich.Text(""), *detail]],
        *notes,
        rich.Text(""),
        *[rich.Text("⌨  Quick Actions", style="bold"), rule],
        rich.Text("  python orchestrate.py status        Full worker status"),
        rich.Text("  python orchestrate.py logs Stream-A Tail worker logs"),
        rich.Text("  python orchestrate.py stop          Stop all workers"),
        rich.Text(""),
        foot,
    ]
    if height and len(whole) > height:
        notes = notes[: height // 3]
        brief = render_table(snapshot, standings, now, width, height - 3 - len(overall) - len(notes) - 3)
        whole = [*box, *overall, rich.Text(""), *brief, *notes, rich.Text(""), foot]
    return render_lines(whole, width)


def _render_overall(streams: Sequence[Stream], width: int) -> list[Text]:
    completed, total = sum(s.completed for s in streams), sum(s.total for s in streams)
    percent = 100 * completed // total if total else 100 * bool(streams)
    in_progress, blocked = sum(s.in_progress for s in streams), sum(s.blocked for s in streams)
    pending = total - completed - in_progress - blocked
    signs = [("✓", completed, "completed"), ("⚡", in_progress, "in progress"), ("◯", pending, "pending")]
    signs += [("⊘", blocked, "blocked")] if blocked else []
    counts = [f"{sign} {count} {word}" for sign, count, word in signs]
    bar = rich.Text(
        f"  {format_bar(percent, OVERALL_BAR_WIDTH)} {percent}%", style="green" if percent == 100 else "cyan"
    )
    line = rich.Text("  " + (" │ " if blocked else "  │  ").join([*counts, f"Total: {total}"]))
    if width and line.cell_len > width:
        line = rich.Text("  " + "  ".join([*(f"{sign}{count}" for sign, count, _ in signs), f"Total: {total}"]))
    return [bar, line]


def _render_detail(stream: Stream, standing: Standing, worker: Worker | None, now: float) -> list[Text]:
    icon, style = _LOOKS[standing.state]
    is_complete = standing.state is StreamState.COMPLETE
    counts = (("✓", stream.completed), ("⚡", stream.in_progress), ("○", stream.pending), ("⊘", stream.blocked))
    lines = [
        rich.Text.assemble((f"  {icon}", style), f" {visible(stream.id)}"),
        rich.Text(f"    {format_bar(stream.percent)} {stream.completed}/{stream.total} ({stream.percent}%)"),
        rich.Text("    " + "  ".join(f"{sign}{count}" for sign, count in counts if count)),
        rich.Text.assemble(
            "    Status: ", ("Completed" if is_complete else format_standing(standing, worker, now), style)
        ),
    ]
    if worker is not None and worker.activity:
        age = f" ({format_duration(now - worker.active_at)} ago)" if worker.active_at else ""
        lines.append(rich.Text(f"    Last: {shorten(worker.activity, 160)}{age}", "bright_black"))
    return lines


# How far behind others a stream stands where there is no room for all: who needs a person comes first, then who works.
_URGENCY = {StreamState.FAILED: 0, StreamState.BLOCKED: 0, StreamState.STOPPED: 0, StreamState.COMPLETE: 3}
_URGENCY.update(dict.fromkeys((StreamState.QUEUED, StreamState.WAITING, StreamState.IDLE), 2))


def render_columns(titles: Mapping[str, int], grows: str, rows: Sequence[Mapping[str, Text]], width: int) -> list[Text]:
    """Return rows under dim headings, each a line; the column that `grows` takes what the others leave.

    A title comes with the least width of the whole, in columns, at which it is shown. A width of 0 is no limit: then
    nothing is cut, and what is very long stands out of its column.
    """
    heads = {title: rich.Text(f"  {title}" if title == "stream" else title, "bright_black") for title in titles}
    shown = [title for title, least in titles.items() if width == 0 or width >= least]
    widths = {title: max(row[title].cell_len for row in (heads, *rows)) for title in shown}
    if width:
        for title in {"stream", "name"} & set(shown):
            widths[title] = min(widths[title], max(width // 5, 12))
        widths[grows] = max(width - 2 - sum(widths[title] + 2 for title in shown if title != grows), 6)
    lines = []
    for row in (heads, *rows):
        line = rich.Text("  ")
        for title in shown:
            cell = row[title].copy()
            if width:
                cell.truncate(widths[title], overflow="ellipsis")
            blank = " " * (min(widths[title], width or REPORT_WIDTH) - cell.cell_len)
            line.append_text(rich.Text.assemble(blank, cell) if title in _NUMBERS else cell.append(blank)).append("  ")
        line.rstrip()
        lines.append(line)
    return lines


# The columns of the board and of the report, each with the width in columns from which on it is shown.
_BOARD = {"stream": 0, "name": 100, "progress": 0, "state": 0, "time": 0, "try": 90, "cpu": 100, "mem": 100, "cost": 80}
_REPORT = {"stream": 0, "name": 80, "result": 0, "tries": 0, "time": 0, "cost": 0, "to merge": 0}
_NUMBERS = {"time", "try", "tries", "cpu", "mem", "cost", "to merge"}  # at the right of their columns


def render_table(
    snapshot: Snapshot, standings: Mapping[str, Standing], now: float, width: int, height: int
) -> list[Text]:
    """Return a line a stream, under its phase where there is room; what does not fit into `height` is summed up.

    Those that need a person are the last to be, then those that are at work.
    """
    has_heading = height > HEADING_LEAST
    room = max(height - has_heading, 1)
    shown = snapshot.streams
    if len(shown) > room:
        chosen = sorted(shown, key=lambda s: _URGENCY.get(standings[s.id].state, 1))[: max(room - 1, 1)]
        ids = {stream.id for stream in chosen}
        shown = tuple(s for s in shown if s.id in ids)
    count_width = max((len(f"{s.completed}/{s.total}") for s in shown), default=0)
    bar_width = max(((width or NARROW) - 40) // 4, 6)
    rows = [_make_row(stream, snapshot, standings[stream.id], now, bar_width, count_width) for stream in shown]
    heading, *lines = render_columns(_BOARD, "state", rows, width)
    if len(snapshot.streams) + len({stream.phase for stream in shown}) <= room:
        phases = [stream.phase for stream in shown]
        for phase in sorted(set(phases), key=lambda phase: -phase.rank):
            lines.insert(phases.index(phase), rich.Text(f"  {phase.name}", style="bold"))
    ids = {stream.id for stream in shown}
    hidden = [standings[s.id].state.value.lower() for s in snapshot.streams if s.id not in ids]
    counts = ", ".join(f"+{hidden.count(state)} {state}" for state in dict.fromkeys(hidden))
    return [heading] * has_heading + lines + ([rich.Text(f"  … {counts}", style="bright_black")] if hidden else [])


def _make_row(
    stream: Stream, snapshot: Snapshot, standing: Standing, now: float, bar_width: int, count_width: int
) -> dict[str, Text]:
    """Return a stream's cells. Time and cost are those of all its attempts in this run."""
    (icon, style), base = _LOOKS[standing.state], "bright_black" if standing.state in _DIM else ""
    worker, record = snapshot.workers.get(stream.id), snapshot.history.record(stream.id)
    seconds, attempts, cost, state = record.worked, record.ended, record.spent, rich.Text()
    cells = dict.fromkeys(_BOARD, "")
    if worker is not None:
        seconds += now - record.started_at if record.started_at else 0
        attempts, cost = attempts + 1, cost + worker.cost
        cells["cpu"] = "" if worker.cpu is None else f"{worker.cpu:.0%}"
        cells["mem"] = f"{worker.memory / 2**20:.0f} MB" if worker.memory else ""
    if worker is not None and standing.state.is_running:
        is_silent = standing.state is StreamState.SILENT
        state.append(standing.state.value + (f" {format_duration(now - worker.active_at)}" if is_silent else ""), style)
        state.append(f" · {worker.activity}" if worker.activity else "", "bright_black")
    else:
        state.append(format_standing(standing, None, now), base or style)
    cells.update(name=visible(stream.name), time=format_duration(seconds) if seconds else "")
    cells["try"], cells["cost"] = f"{attempts or ''}", f"${cost:.2f}" if cost else ""
    bar, count = format_bar(stream.percent, bar_width), f"{stream.completed}/{stream.total}".ljust(count_width)
    return {
        **{title: rich.Text(words, base) for title, words in cells.items()},
        "stream": rich.Text.assemble((f"{icon} ", style), (visible(stream.id), base)),
        "progress": rich.Text.assemble((bar, base or style), (f" {count}", base)),
        "state": state,
    }


def render_board(snapshot: Snapshot, standings: Mapping[str, Standing], now: float, width: int, height: int) -> Text:
    completed, total = sum(s.completed for s in snapshot.streams), sum(s.total for s in snapshot.streams)
    percent, limits = (100 * completed // total if total else 0), snapshot.history.limits
    head = [visible(snapshot.project), f"{completed}/{total} tasks"]
    head += [format_duration(now - snapshot.history.run_started_at)]
    budget = f" of ${limits.budget:.2f}" if limits.budget else ""
    head += [f"${snapshot.spent:.2f}{budget}"] if snapshot.spent or budget else []
    head += [f"{len(snapshot.workers)} of {format_count(limits.max_workers, 'worker')}"]
    if snapshot.pause_left:
        head.append(f"paused for {format_countdown(snapshot.pause_left, 0)}")
    if len(" · ".join(head)) > width - 4:
        del head[1]  # the rows say that too
    title = rich.Text(f"── {' · '.join(head)} ", style="bold cyan")
    title.append("─" * max(width - title.cell_len, 0))
    bar = rich.Text(f"  {format_bar(percent, max(width - 9, 6))} {percent:>3}%", "green" if percent == 100 else "cyan")
    heads = [title, bar] if height > BOARD_LEAST else [title]
    table = render_table(snapshot, standings, now, width, max(height - 3 - len(heads), 1))
    # What is typed is echoed where the cursor stands: on an empty last line it can't wrap the board.
    return render_lines([*heads, *table, rich.Text("")][: max(height - 2, 1)], width)


def format_status_json(
    project: Project, database: Path, snapshot: Snapshot, standings: Mapping[str, Standing], wall: float
) -> str:
    """Return the status as one JSON object, for programs. Its `version` changes when a field changes its meaning."""
    status = {
        "version": JSON_VERSION,
        "time": format_time(wall),
        "project": str(project.root),
        "database": str(database),
        "orchestrator_pid": snapshot.orchestrator or None,
        "database_error": snapshot.database_error or None,
        "warnings": list(snapshot.warnings),
        "waiting": (snapshot.history.waiting or None) if snapshot.orchestrator else None,
        "paused_until": format_time(snapshot.history.pause_ends) if snapshot.pause_left else None,
        "cost_usd": round(snapshot.history.spent, 6),
        "streams": [_describe_stream(stream, standings[stream.id], snapshot) for stream in snapshot.streams],
    }
    return format_json(status, indent=2)


def _describe_stream(stream: Stream, standing: Standing, snapshot: Snapshot) -> dict[str, Any]:
    worker, record = snapshot.workers.get(stream.id), snapshot.history.record(stream.id)
    return {
        "id": stream.id,
        "name": stream.name,
        "phase": stream.phase.value,
        "dependencies": list(stream.dependencies),
        "state": standing.state.name.lower(),
        "reason": standing.reason or None,
        "pid": worker.pid if worker is not None and worker.ending is None else None,
        "attempt": record.attempts,
        "restarts": record.restarts,
        "paused_until": format_time(record.pause_ends) if record.pause_ends > snapshot.wall else None,
        "percent": stream.percent,
        "tasks": {"total": stream.total, **{name: getattr(stream, name) for name in _STATUSES}},
        "branches": [
            {
                "name": branch.name,
                "worktree": branch.worktree or None,
                "commits_ahead": branch.ahead,
                "files_changed": branch.files,
                "files_uncommitted": len(branch.uncommitted),
                "instead_of": branch.instead_of or None,
            }
            for branch in snapshot.branches
            if branch.stream_id == stream.id
        ],
    }


class Span(NamedTuple):
    """A stretch of a run, in seconds since the epoch, and its cost in US dollars. `kind` is one of _OUTCOMES."""

    begin: float
    end: float
    kind: str
    words: str = ""
    cost: float = 0.0
    took: float | None = None  # by the monotonic clock, in seconds, where that is known

    @property
    def look_kind(self) -> str:
        return self.kind if self.kind in _OUTCOMES else "running"

    @property
    def look(self) -> tuple[str, str]:
        return _LOOKS[_OUTCOMES[self.look_kind][0]]

    @property
    def length(self) -> float:
        return max(self.end - self.begin, 0.0) if self.took is None else self.took


class Course(NamedTuple):
    """What a run did with one stream: its attempts, the times in which it was blocked, where it stood at last, and why.

    `log` are the last words of its last worker, `answer` is how to unblock it, `ahead` what there is to merge; of these
    the journal says nothing.
    """

    phase: Phase
    name: str = ""
    attempts: tuple[Span, ...] = ()
    blocks: tuple[Span, ...] = ()
    state: StreamState | None = None
    reason: str = ""
    log: tuple[str, ...] = ()
    answer: str = ""
    ahead: int = 0

    @property
    def seconds(self) -> float:
        return sum(span.length for span in self.attempts)

    @property
    def cost(self) -> float:
        return sum(span.cost for span in self.attempts)

    @property
    def result(self) -> str:
        """Where it stands."""
        is_idle = self.state is None or self.state in (StreamState.WAITING, StreamState.IDLE)
        return "Never ran" if is_idle and not self.attempts else (self.state or StreamState.IDLE).value


_SAID = ("failed: ", "blocked: ", "stopped: ", "is not complete: ", "never ran: ", "waiting: ")  # of one stream


class Timeline(NamedTuple):
    """The last run as it can be drawn. Times in seconds since the epoch, for people; they may step."""

    project: str
    begin: float = 0.0
    end: float = 0.0
    courses: Mapping[str, Course] = {}
    pauses: tuple[Span, ...] = ()
    outcome: str = ""

    @property
    def title(self) -> str:
        moment = time.strftime("%Y-%m-%d %H:%M", time.localtime(self.begin))
        cost = sum(course.cost for course in self.courses.values())
        return f"{self.project} · {moment} · {format_duration(self.end - self.begin)} · ${cost:.2f}"

    @property
    def headlines(self) -> list[str]:
        """What is to be said of the whole run, beside what the streams' own lines say."""
        lines = [line for line in self.outcome.split("\n") if line]
        theirs = tuple(f"{visible(stream_id)} {word}" for stream_id in self.courses for word in _SAID)
        own = [line for line in lines if not line.startswith(theirs)]
        words = [course.result.lower() for course in self.courses.values()]
        return own or [", ".join(f"{words.count(word)} {word}" for word in dict.fromkeys(words))]

    @property
    def has_attempts(self) -> bool:
        return any(course.attempts for course in self.courses.values())

    @property
    def length(self) -> float:
        return max(self.end - self.begin, 1.0)

    def place(self, moment: float) -> float:
        return min(max((moment - self.begin) / self.length, 0.0), 1.0)

    def bars(self, course: Course) -> list[tuple[Span, str]]:
        """Return a stream's spans with what fills them; what is short comes later, and is drawn above what is long."""
        attempts = sorted(course.attempts, key=lambda span: span.begin - span.end)
        return [*((p, "░") for p in self.pauses), *((b, "▒") for b in course.blocks), *((a, "█") for a in attempts)]


def fold_timeline(project: str, events: Iterable[Event], streams: Sequence[Stream], wall: float | None) -> Timeline:
    """Return the last run; `wall` is the time now if it still goes on. What is no event of ours is passed over.

    A run that was interrupted goes on with the next start.
    """
    timeline, busy = Timeline(project), None
    for event in events:
        before = timeline
        with contextlib.suppress(KeyError, TypeError, ValueError, AttributeError, OverflowError):
            timeline = _draw_event(timeline, event, read_time(event["time"]))
        if timeline.begin != before.begin and before.has_attempts:
            busy = before
    if busy is not None and timeline.outcome and not timeline.has_attempts:
        timeline = busy  # nobody asks for a run that had nothing to do
    end = timeline.end if wall is None else max(wall, timeline.end)

    def close(spans: Iterable[Span]) -> tuple[Span, ...]:
        return tuple(span if span.end else span._replace(end=end) for span in spans)

    courses = {stream.id: Course(stream.phase, stream.name) for stream in streams}
    for stream_id, course in timeline.courses.items():
        known = courses.get(stream_id, course)
        closed = course._replace(attempts=close(course.attempts), blocks=close(course.blocks))
        courses[stream_id] = closed._replace(phase=known.phase, name=known.name)
    ordered = dict(sorted(courses.items(), key=lambda entry: (entry[1].phase.rank, natural_key(entry[0]))))
    is_cut = bool(timeline.begin and wall is None and not timeline.outcome)
    outcome = "the run was interrupted" if is_cut else timeline.outcome
    return timeline._replace(end=end, courses=ordered, outcome=outcome)


_TAKEN_OVER = "taken over"  # the kind of an attempt that began before this run, until it ends


def _draw_event(timeline: Timeline, event: Event, at: float) -> Timeline:
    """Return the timeline with one more event. Raises KeyError, TypeError, ValueError where it is none of ours."""
    kind = event["event"]
    if kind == "run_started" and (timeline.outcome or not timeline.begin):
        return Timeline(timeline.project, at, at)
    timeline = timeline._replace(end=max(timeline.end, at))
    if kind == "run_ended":
        return timeline._replace(outcome=str(event["reason"]))
    if kind == "run_paused":
        pause = Span(at, read_time(event["until"]), VerdictKind.PAUSED.value, str(event["reason"]))
        return timeline._replace(pauses=(*timeline.pauses, pause))
    if kind not in ("worker_started", "worker_adopted", "worker_ended", "state"):
        return timeline
    stream_id = str(event["stream"])
    course = _draw_stream(timeline.courses.get(stream_id, Course(Phase.PARALLEL)), event, at)
    return timeline._replace(courses={**timeline.courses, stream_id: course})


def _draw_stream(course: Course, event: Event, at: float) -> Course:
    kind = event["event"]
    course = course._replace(phase=Phase(event.get("phase", course.phase)), name=str(event.get("name", course.name)))
    last = course.attempts[-1] if course.attempts and not course.attempts[-1].end else None
    before = course.attempts if last is None else course.attempts[:-1]
    if kind == "state":
        blocks = tuple(block if block.end else block._replace(end=at) for block in course.blocks)
        is_blocked = event["state"] == StreamState.BLOCKED.name
        block = Span(at, 0.0, VerdictKind.BLOCKED.value, str(event["reason"]))
        course = course._replace(state=StreamState[event["state"]], reason=str(event["reason"]))
        return course._replace(blocks=(*blocks, block) if is_blocked else blocks)
    if kind == "worker_ended":
        seconds, cost = float(event.get("seconds", 0)), float(event.get("cost", 0))
        if not (0 <= seconds < 1e12 and 0 <= cost < 1e12):
            raise ValueError(f"no amounts: {seconds}, {cost}")
        begin = at - seconds if last is None or last.kind == _TAKEN_OVER else last.begin
        span = Span(begin, at, VerdictKind(event["verdict"]).value, str(event["ending"]), cost, seconds)
        state, reason = _OUTCOMES[span.kind][0], str(event.get("reason", ""))
        return course._replace(attempts=(*before, span), state=state, reason=reason)
    course = course._replace(state=StreamState.RUNNING, reason="")
    if kind == "worker_started":  # the end of one before was lost
        lost = () if last is None else (last._replace(end=at),)
        return course._replace(attempts=(*before, *lost, Span(at, 0.0, "running")))
    return course if last is not None else course._replace(attempts=(*before, Span(at, 0.0, _TAKEN_OVER)))


# The outcome of an attempt: the state that it looks like, and its colour on paper.
_OUTCOMES = {
    "running": (StreamState.WORKING, "#2aa1b3"),
    VerdictKind.COMPLETE.value: (StreamState.COMPLETE, "#2f9e44"),
    VerdictKind.RESTART.value: (StreamState.RESTARTING, "#e8a317"),
    VerdictKind.PAUSED.value: (StreamState.PAUSED, "#b8860b"),
    VerdictKind.LIMITED.value: (StreamState.PAUSED, "#b8860b"),
    VerdictKind.BLOCKED.value: (StreamState.BLOCKED, "#a13fb5"),
    VerdictKind.STOPPED.value: (StreamState.STOPPED, "#868e96"),
    VerdictKind.VANISHED.value: (StreamState.STOPPED, "#868e96"),
    VerdictKind.FAILED.value: (StreamState.FAILED, "#d6336c"),
}
_HATCHED = {"▒": VerdictKind.BLOCKED.value, "░": VerdictKind.PAUSED.value}
_STEPS = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 21600, 43200, 86400)


def find_ticks(timeline: Timeline, most: int) -> list[tuple[float, str]]:
    """Return round times of the local clock at which an axis is labelled, at most that often, each with its label."""
    length, begin = timeline.length, timeline.begin
    step = next((step for step in _STEPS if length / step <= most), 86400 * int(length / 86400 / most + 1))
    offset = time.localtime(begin).tm_gmtoff
    first = -(-(begin + offset) // step) * step - offset
    moments = [first + step * count for count in range(most + 1) if first + step * count <= begin + length]
    style = "%H:%M:%S" if step < 60 else "%H:%M" if step < 86400 else "%d %b"
    return [(moment, time.strftime(style, time.localtime(moment))) for moment in moments or [begin]]


def find_kinds(timeline: Timeline) -> list[str]:
    """Return the kinds of spans that a chart of it shows, in the order of the legend."""
    spans = [span for course in timeline.courses.values() for span, _ in timeline.bars(course)]
    return [kind for kind in _OUTCOMES if any(span.look_kind == kind for span in spans)]


def render_timeline(timeline: Timeline, width: int, is_cut: bool = True) -> Text:
    """Return the report of a run: a line a stream, what is wrong with it below, and the chart.

    Width in columns; where it is not cut, as in a pipe, it is that of the chart alone.
    """
    most = width if is_cut else 0
    title = rich.Text(f"── {visible(timeline.title)} ", style="bold cyan")
    title.append("─" * max(width - title.cell_len, 0))
    is_complete = all(course.state is StreamState.COMPLETE for course in timeline.courses.values())
    lines = [title]
    for words in timeline.headlines:
        lines += hang(rich.Text("  "), visible(words), most, "green" if is_complete else "red").split("\n")
    rows = [_make_report_row(stream_id, course) for stream_id, course in timeline.courses.items()]
    heading, *table = render_columns(_REPORT, "result", rows, min(most, REPORT_WIDTH))
    lines += [rich.Text(""), heading]
    for line, (stream_id, course) in zip(table, timeline.courses.items()):
        lines += [line, *_render_remarks(stream_id, course, most)]
    chart = [rich.Text(""), *_render_chart(timeline, width)] if timeline.has_attempts else []
    return render_lines([*lines, *chart], most)


def _make_report_row(stream_id: str, course: Course) -> dict[str, Text]:
    state = course.state or StreamState.IDLE
    (icon, style), base = _LOOKS[state], "bright_black" if state in _DIM and not course.attempts else ""
    cells = {
        "name": visible(course.name),
        "tries": str(len(course.attempts) or ""),
        "time": format_duration(course.seconds) if course.attempts else "",
        "cost": f"${course.cost:.2f}" if course.cost else "",
        "to merge": str(course.ahead or ""),
    }
    return {
        **{title: rich.Text(words, base) for title, words in cells.items()},
        "stream": rich.Text.assemble((f"{icon} ", style), (visible(stream_id), base)),
        "result": rich.Text(course.result, style),
    }


def _render_remarks(stream_id: str, course: Course, width: int) -> list[Text]:
    """Return why a stream has failed, or is blocked or stopped, and what helps; a command is never broken."""
    commands: list[str] = []
    if course.state is StreamState.FAILED:
        commands = [hint("logs", "--no-follow", names=[stream_id]), hint("start", names=[stream_id])]
    elif course.state is StreamState.BLOCKED and course.answer:
        commands = [course.answer]
    elif course.state is StreamState.STOPPED:
        commands = [hint("start", names=[stream_id])]
    lines: list[Text] = []
    if course.reason and course.state not in (StreamState.COMPLETE, StreamState.STOPPED):
        lines += hang(rich.Text("    Why: ", overflow="ignore"), visible(course.reason), width).split("\n")
        lines += [rich.Text(f"    │ {visible(line)}", "bright_black") for line in course.log]
    return [*lines, *(rich.Text(f"    {command}", "bold", overflow="ignore") for command in commands)]


def _render_chart(timeline: Timeline, width: int) -> list[Text]:
    """Return a row a stream, a bar an attempt, its outcome as a symbol at its end; the clock below them."""
    names = {stream_id: rich.Text(defuse(visible(stream_id))) for stream_id in timeline.courses}
    left = min(max((name.cell_len for name in names.values()), default=0), max(width // 4, 10))
    cells = max(width - left - 5, 10)
    lines = []
    for stream_id, course in timeline.courses.items():
        name = names[stream_id]
        name.truncate(left, overflow="ellipsis", pad=True)
        row = [(" ", "")] * cells
        for span, fill in timeline.bars(course):
            symbol, style = span.look
            first = min(int(timeline.place(span.begin) * cells), cells - 1)
            last = max(min(int(timeline.place(span.end) * cells), cells) - 1, first)
            row[first : last + 1] = [(fill, style)] * (last - first + 1)
            row[last] = (symbol if fill == "█" else fill, style)
        lines.append(rich.Text.assemble("  ", name, " │", *row, "│"))
    ticks, labels = ["─"] * cells, " " * cells
    for moment, label in find_ticks(timeline, max(cells // 12, 1)):
        at = min(int(timeline.place(moment) * cells), cells - 1)
        ticks[at] = "┴"
        at = min(at, cells - len(label))
        if not labels[max(at - 1, 0) : at + len(label)].strip():  # else it would run into the one before
            labels = labels[:at] + label + labels[at + len(label) :]
    legend = [rich.Text(" ")]
    for kind in find_kinds(timeline):
        fill = next((fill for fill, hatched in _HATCHED.items() if hatched == kind), "")
        symbol, style = _LOOKS[_OUTCOMES[kind][0]]
        legend += [rich.Text(" ")] if legend[-1].cell_len + len(kind) + 4 > width else []
        legend[-1].append(f" {fill or symbol} {kind} ", style)
    for line in legend:
        line.rstrip()
    axis = rich.Text(f"{' ' * (left + 3)}└{''.join(ticks)}┘", "bright_black")
    return [*lines, axis, rich.Text(" " * (left + 4) + labels.rstrip(), "bright_black"), *legend]


def _escape(text: str, length: int) -> str:
    import html

    text = re.sub("[\ud800-\udfff\ufffe\uffff]", "\ufffd", visible(text))
    return html.escape(text if len(text) <= length else text[: length - 1] + "…")


def format_timeline_html(timeline: Timeline) -> str:
    """Return a page that needs nothing else: the chart, which the browser lays out, and each attempt in a table."""
    chart, rows = [], []
    for phase in Phase:
        members = {i: course for i, course in timeline.courses.items() if course.phase is phase}
        chart += [f"<h2>{phase.name}</h2>"] if members else []
        for stream_id, course in members.items():
            bars = "".join(_format_bar(timeline, span, fill) for span, fill in timeline.bars(course))
            name = f"<span>{_escape(stream_id, 60)} <small>{_escape(course.name, 60)}</small></span>"
            summary = f"{len(course.attempts)}× · {format_duration(course.seconds)} · ${course.cost:.2f}"
            summary = f"<span>{summary if course.attempts else _escape(course.result, 60)}</span>"
            chart.append(f'<div class="row">{name}<div class="bars">{bars}</div>{summary}</div>')
            for number, span in enumerate(course.attempts, 1):
                cells = [stream_id, course.name, str(number), _format_clock(span.begin), format_duration(span.length)]
                cells += [f"${span.cost:.2f}", span.kind, span.words]
                rows.append("<tr>" + "".join(f"<td>{_escape(cell, 300)}</td>" for cell in cells) + "</tr>")
    places = [(100 * timeline.place(moment), label) for moment, label in find_ticks(timeline, 6)]
    ticks = "".join(
        f'<span style="left:{at:.2f}%;transform:translateX(-{at:.0f}%)">{label}</span>' for at, label in places
    )
    kinds = []
    for kind in find_kinds(timeline):
        colour = f"{kind} hatched" if kind in _HATCHED.values() else kind
        sign = "" if kind in _HATCHED.values() else _LOOKS[_OUTCOMES[kind][0]][0]
        kinds.append(f'<span><span class="bar {colour}">{sign}</span> {kind}</span>')
    names = ("Stream", "Name", "Attempt", "Began", "Took", "Cost", "Outcome", "Its end")
    heads = "".join(f"<th>{name}</th>" for name in names)
    outcome = "".join(f"<p>{_escape(line, 500)}</p>" for line in timeline.outcome.split("\n"))
    colours = "".join(f".{kind}{{--colour:{colour}}}" for kind, (_, colour) in _OUTCOMES.items())
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{_escape(timeline.title, 200)}</title>'
        f'<meta name="viewport" content="width=device-width"><style>{_PAGE_STYLE}{colours}</style>'
        f"<body><h1>{_escape(timeline.title, 200)}</h1>{''.join(chart)}"
        f'<div class="row"><span></span><div class="axis">{ticks}</div><span></span></div>'
        f'<div class="legend">{"".join(kinds)}</div>{outcome}'
        f"<table><tr>{heads}</tr>{''.join(rows)}</table></body></html>\n"
    )


def _format_bar(timeline: Timeline, span: Span, fill: str) -> str:
    begin, end = (100 * timeline.place(moment) for moment in (span.begin, max(span.begin, span.end)))
    words = f"{span.kind}, {_format_clock(span.begin)}, {format_duration(span.length)}"
    words = _escape(words + (f": {span.words}" if span.words else ""), 300)
    kind, sign = (span.look_kind, span.look[0]) if fill == "█" else (f"{span.look_kind} hatched", "")
    where = f"left:{begin:.2f}%;width:{end - begin:.2f}%"
    return f'<span class="bar {kind}" style="{where}" title="{words}">{sign}</span>'


def _format_clock(wall: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(wall))


_PAGE_STYLE = """\
:root { color-scheme: light dark; --line: #8884 }
body { font: 14px system-ui, sans-serif; margin: 8px auto; max-width: 1200px; padding: 0 8px }
h1 { font-size: 16px }
h2 { font-size: 11px; font-weight: 400; margin: 12px 0 4px; border-bottom: 1px solid var(--line); opacity: .7 }
.row { display: grid; grid-template-columns: 18em 1fr 9em; gap: 0 8px; align-items: center; margin: 4px 0 }
.row > span { overflow-wrap: anywhere }
.row > span:last-child { text-align: right }
.bars, .axis { position: relative; height: 20px }
.bars { background: var(--line) }
.axis span { position: absolute; font-size: 11px; white-space: nowrap }
.bar { color: #fff; background: var(--colour); text-align: right; overflow: hidden; box-sizing: border-box }
.bars .bar { position: absolute; top: 0; height: 20px; min-width: 2px; border-left: 1px solid #fff8 }
.bar.hatched { background: repeating-linear-gradient(45deg, var(--colour) 0 2px, transparent 2px 6px) }
.legend .bar { display: inline-block; width: 14px; height: 14px; line-height: 14px; text-align: center }
.legend > span { margin-right: 1em; white-space: nowrap }
table { border-collapse: collapse; margin-top: 1em; width: 100% }
td, th { border-top: 1px solid var(--line); padding: 4px 8px; text-align: left; vertical-align: top }
td:nth-child(-n+2) { overflow-wrap: anywhere; min-width: 5em }
td:nth-child(4), td:nth-child(5) { white-space: nowrap }
small { opacity: .7 }
@media (max-width: 600px) {
  .row { grid-template-columns: 1fr auto }
  .bars, .axis { grid-row: 2; grid-column: 1 / 3 }
  table, tbody { display: block }
  tr { display: flex; flex-wrap: wrap; gap: 0 10px; border-top: 1px solid var(--line); padding: 4px 0 }
  tr:first-child { display: none }
  td { border: 0; padding: 0 }
  td:nth-child(3)::before { content: "#" }
  td:last-child { flex-basis: 100% }
}
@media print { .bar { print-color-adjust: exact } tr { break-inside: avoid } }
"""


Finding = Tuple[str, str, str, str]  # a subject; how it is: ok, warning, error; what was found; the remedy


def render_findings(findings: Sequence[Finding], width: int) -> Text:
    """Return what `doctor` found, a line each, and the remedy under what is wrong. Width in columns, 0: no limit."""
    text: Text = rich.Text()
    indent = max(len(subject) for subject, *_ in findings) + 4
    wrap = functools.partial(textwrap.wrap, width=max(width - indent, 20) if width else 10_000, break_on_hyphens=False)
    said = []
    for subject, level, found, remedy in findings:
        found, remedy = ("see above", "") if (found, remedy) in said else (found, remedy)
        said.append((found, remedy))
        symbol, style = {"ok": ("✓", "green"), "warning": ("!", "yellow"), "error": ("✗", "red")}[level]
        lines = [part for line in found.split("\n") for part in wrap(visible(line.strip()))]
        text.append(f"{symbol} {subject:<{indent - 4}}  ", style)
        text.append(f"\n{' ' * indent}".join(lines))
        for line in remedy.split("\n") if remedy else ():  # a command of ours is not broken
            parts = [line] if PROGRAM[-1] in line else wrap(visible(line))
            text.append("".join(f"\n{' ' * indent}{visible(part)}" for part in parts), "bold")
        text.append("\n")
    errors, warnings = (sum(level == other for _, level, *_ in findings) for other in ("error", "warning"))
    remarks = f" ({format_count(warnings, 'warning')})" if warnings else ""
    if errors:
        text.append(f"\nA run would fail: {format_count(errors, 'error')}{remarks}.", "red")
    else:
        text.append(f"\nReady{remarks}. Start: {hint('start')}", "green")
    return text


# What stands for a symbol where the terminal's encoding does not have it. Other characters become a question mark.
_PAIRS = "█# ▒: ░. ═= ─- │| ║| ╔+ ╗+ ╚+ ╝+ ┴+ └+ ┘+ ✓v ●* ◎+ ◇z ◕@ ▣& ↻~ ◫= ◌: ○o ◯o ⊘- ■% ✗x ·. ⚡! …. ×x 📊* 🖥* ⌨*"
_PLAIN = {pair[0]: pair[1] for pair in _PAIRS.split()}


def replace_unencodable(error: UnicodeError) -> tuple[str, int]:
    """Return what is written in the place of characters that an encoding lacks: an error handler for `codecs`."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    plain = ""
    for char in error.object[error.start : error.end]:  # in as many columns as the character takes
        is_wide = unicodedata.east_asian_width(char) in "WF"
        if unicodedata.category(char) not in ("Mn", "Me", "Cf"):
            plain += f"{_PLAIN[char]}{' ' * is_wide}" if char in _PLAIN else "??" if is_wide else "?"
    return plain, error.end


def line_width(console: Console) -> int:
    """Return the columns that lines are cut to: those of the terminal; in a pipe nothing is cut."""
    return console.width if console.file.isatty() else 0


class LineReporter(Reporter):
    def __init__(self, console: Console) -> None:
        self.console = console

    def event(self, event: Event) -> None:
        line = render_event(event, line_width(self.console))
        if line is not None:
            self.console.print(line, soft_wrap=True)


class Picture:
    """What is drawn on a terminal again and again, in place; while another job has the terminal, nothing is.

    Either its lower end, with what the console prints meanwhile above it; or the whole of the alternate screen. Of
    neither anything stays.
    """

    def __init__(self, console: Console, is_whole: bool) -> None:
        self._console = console
        options = {"auto_refresh": False, "redirect_stdout": False, "redirect_stderr": False}
        self._live = rich.Live(console=console, transient=True, screen=is_whole, **options)
        self._drawn: Text | None = None  # at the lower end
        self._width = 0
        self._is_whole = is_whole

    def draw(self, render: Callable[[int, int], Text]) -> None:
        """Draw what `render` returns for the width and height of the terminal."""
        if not is_in_front(self._console.file):
            self.close()
            return
        width, height = self._console.size
        if self._drawn is not None and width < self._width:
            # The terminal has broken the lines that no longer fit: Live knows of one row each.
            lengths = [line.cell_len for line in self._drawn.split("\n", allow_blank=True)]
            extra = sum(max(-(-length // max(width, 1)), 1) - 1 for length in lengths)
            kind = rich.ControlType
            self._console.control(rich.Control(*((kind.ERASE_IN_LINE, 2), (kind.CURSOR_UP, 1)) * extra))
        picture = render(width, height)
        self._drawn, self._width = None if self._is_whole else picture, width
        self._live.start()
        self._live.update(picture, refresh=True)

    def close(self) -> None:
        """Take the picture away, and give the cursor back."""
        self._drawn = None
        self._live.stop()


class BoardReporter(LineReporter):
    def __init__(self, console: Console, clock: Clock) -> None:
        super().__init__(console)
        self._clock = clock
        self._picture = Picture(console, is_whole=False)
        self._shown: tuple[float, object] = 0.0, None

    def event(self, event: Event) -> None:
        super().event(event)
        self._shown = 0.0, None

    def show(self, snapshot: Snapshot, standings: Mapping[str, Standing], now: float) -> None:
        if self._clock.wants_suspension:
            self._picture.close()
            self._clock.suspend()
            self._shown = 0.0, None
        size = self.console.size
        if now - self._shown[0] >= BOARD_INTERVAL or self._shown[1] != size:
            self._picture.draw(functools.partial(render_board, snapshot, standings, now))
            self._shown = now, size

    def close(self) -> None:
        with contextlib.suppress(OSError):  # the terminal is gone
            self._picture.close()


class JsonReporter(Reporter):
    def event(self, event: Event) -> None:
        click.echo(format_json(event))


# ── 8. Commands ───────────────────────────────────────────────────────────────────────────────────────────────────────


def project_options(function: Any, allow_from_autoenv: bool = True) -> Any:
    """Give a command `--project` and `--db`; before the command's name they mean the same as behind it."""

    def remember(context: click.Context, option: click.Parameter, value: Path | None) -> None:
        places = context.ensure_object(dict)
        if value is not None:
            places[option.name] = value
            PLACE.extend([f"--{option.name}", str(value)])

    options: dict[str, Any] = {"expose_value": False, "callback": remember, "allow_from_autoenv": allow_from_autoenv}
    folder = click.Path(exists=True, file_okay=False, path_type=Path)
    database = click.option(
        "--db", metavar="FILE", type=click.Path(path_type=Path), help="Task Copilot's database.", **options
    )
    project = click.option("--project", metavar="DIR", type=folder, help="The project's folder.", **options)
    return project(database(function))


def number_option(
    name: str, unit: str, least: float, default: float | None, text: str, **more: Any
) -> Callable[[Any], Any]:
    """Return an option for a finite number of at least `least`; a whole one where its unit is N."""

    def check(_context: click.Context, _option: click.Parameter, value: float | None) -> float | None:
        if value is not None and value - value != 0:
            raise click.BadParameter(f"{value} is not a finite number.")
        return value

    kind = click.IntRange(min=int(least)) if unit.strip("[]") == "N" else click.FloatRange(min=least)
    options = {"default": default, "show_default": default is not None, "metavar": unit, "help": text, **more}
    return click.option(*name.split("/"), type=kind, callback=check, **options)


def json_option(command: str, text: str) -> Callable[[Any], Any]:
    return click.option("--json", "as_json", envvar=f"ORCHESTRATE_{command}_JSON", is_flag=True, help=text)


class _Pasteable(click.Command):
    """A command whose examples name the program as it was called."""

    def get_help(self, context: click.Context) -> str:
        return super().get_help(context).replace("python orchestrate.py", shlex.join(PROGRAM))


class Commands(_Pasteable, click.Group):
    """All commands, in the order of work, each with the whole of its first sentence."""

    command_class = _Pasteable
    _ORDER = ("generate", "doctor", "start", "status", "logs", "stop", "timeline", "merge", "clean", "demo")

    def list_commands(self, _context: click.Context) -> list[str]:
        return sorted(self.commands, key=self._ORDER.index)

    def format_commands(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            names = self.list_commands(context)
            formatter.write_dl([(name, self.commands[name].get_short_help_str(1000)) for name in names])


@click.group(
    cls=Commands,
    invoke_without_command=True,
    context_settings={
        "help_option_names": ["-h", "--help"],
        "auto_envvar_prefix": "ORCHESTRATE",
        "max_content_width": 100,
    },
)
@functools.partial(project_options, allow_from_autoenv=False)  # a worker's own ORCHESTRATE_PROJECT is no option
@click.version_option(VERSION, "-V", "--version", message="orchestrate %(version)s")
def cli() -> None:
    """Run the streams of a Task Copilot project with headless Claude Code workers, phase by phase.

    \b
    Examples:
      python orchestrate.py start              run everything: foundation, parallel, integration
      python orchestrate.py status             what each worker does
      python orchestrate.py logs Stream-B      follow a worker's log
      python orchestrate.py stop Stream-B      stop one worker; without a name: everything
    """
    context = click.get_current_context()
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


def find_current_project(checks: bool = True) -> Project:
    """Return the project that the options and the working directory lead to; its state must be nobody else's."""
    given = click.get_current_context().ensure_object(dict).get("project")
    project = find_project(given, Path(__file__).resolve(), Path.cwd(), Path.home())
    if checks:
        check_state(project)
    return project


def check_state(project: Project) -> None:
    """Raise OrchestrateError where this is no project at all, or where others can change its state."""
    StateFolder(project).check()
    if not project.is_marked(Path.home()):
        open_store(project).close()


def open_store(project: Project, busy_timeout: float = PATIENT_BUSY_TIMEOUT) -> TaskStore:
    """Return the database that the options and the environment lead to. Raises OrchestrateError where it is missing."""
    given = click.get_current_context().ensure_object(dict).get("db")

    def find_last() -> str:
        history = read_history(project, is_moved=False)
        if not history.root or not project.is_known_as(history.root, history.project):
            return ""  # nothing is known, or this is a copy of that project
        if not Path(history.database).is_file():
            return ""
        words = f"Warning: renamed from {history.project}: its database stays {history.database}"
        click.echo(visible(words), err=True)
        return history.database

    project.database = project.database or find_database(project, given, os.environ, Path.home(), find_last)
    return TaskStore(project.database, busy_timeout)


def read_known_streams(store: TaskStore, names: Collection[str]) -> Backlog:
    """Return the streams; raise where there are none, or not those that were named."""
    backlog = store.read()
    if not backlog.streams:
        raise OrchestrateError(
            "No streams found in Task Copilot database",
            "Work with @agent-ta to organize tasks into streams: each task's metadata needs a streamId.",
        )
    check_names(names, [stream.id for stream in backlog.streams])
    return backlog


def check_names(names: Collection[str], known: Sequence[str]) -> None:
    unknown = [name for name in names if name not in known]
    if unknown:
        import difflib

        same = [name for name in known if name.casefold() == unknown[0].casefold()]
        near = same or difflib.get_close_matches(unknown[0], known, n=8, cutoff=0.5) or known
        there = format_names([name for name in known if name in near], 8) or "none in this project"
        raise click.UsageError(f"there is no stream {visible(unknown[0])!r}; there is {there}")


def make_console() -> Console:
    """Return the one console. Text from outside goes to it as Text alone, so it obeys no markup."""
    console: Console = rich.Console(markup=False, highlight=False, emoji=False)
    if not (0 < console.width < 10_000 and console.height > 0):  # COLUMNS=0, as some shells and editors have it
        console = rich.Console(markup=False, highlight=False, emoji=False, width=80, height=25)
    return console


def can_draw(console: Console) -> bool:
    """Whether pictures can be drawn in place. FORCE_COLOR, which rich takes for a terminal, is none."""
    return console.file.isatty() and not console.is_dumb_terminal


def complete_streams(context: click.Context, _parameter: click.Parameter, incomplete: str) -> list[str]:
    """Return the ids that a shell may complete a word to; none where the streams can't be read."""
    silence = contextlib.redirect_stderr(io.StringIO())
    with contextlib.suppress(click.ClickException, OSError), context.scope(), silence:
        store = open_store(find_current_project(), BUSY_TIMEOUT)
        return [visible(stream.id) for stream in store.read().streams if stream.id.startswith(incomplete)]
    return []


stream_arguments = click.argument("streams", nargs=-1, metavar="[STREAM]...", shell_complete=complete_streams)


_WRONG_NAME = "a Task Copilot server reads tasks.db, not {}, in its folder"
_SAME_LIMITS = ("max_restarts", "max_workers", "finish_grace", "exit_on_blocked", "budget")


@cli.command("start")
@project_options
@stream_arguments
@click.option(
    "--phase", type=click.Choice([phase.value for phase in Phase]), help="Run only the streams of this phase."
)
@number_option("--poll-interval", "SECONDS", 0.1, POLL_INTERVAL, "Time between full reads of the database.")
@number_option(
    "--max-restarts", "N", 0, MAX_RESTARTS, "Restarts in a row without a completed task, before a stream fails."
)
@number_option("--max-workers", "N", 1, MAX_WORKERS, "Workers at once.")
@number_option("--finish-grace", "SECONDS", 0, FINISH_GRACE, "Time for a worker to exit once it is done.")
@number_option("--stall-timeout", "MINUTES", 0, STALL_TIMEOUT, "Restart a worker that shows no sign of life; 0: never.")
@number_option("--worker-timeout", "MINUTES", 0, 0, "Restart a worker that runs for longer; 0: no limit.")
@number_option("--budget", "USD", 0, 0, "What all workers of the run may cost together; 0: no limit.")
@click.option(
    "--notify",
    metavar="CMD",
    help="Shell command to run when a stream completes, fails, blocks or goes silent, when overage begins, and when"
    " the run pauses or ends.",
)
@click.option("--claude", default="claude", show_default=True, metavar="CMD", help="Command to run in place of claude.")
@click.option(
    "--output-format",
    type=click.Choice(["stream-json", "text"]),
    default="stream-json",
    show_default=True,
    help="Format of the workers' output; text shows less.",
)
@click.option("--setup", metavar="CMD", default="", help="Shell command that prepares each new worktree.")
@click.option("--no-worktrees", is_flag=True, help="Let all streams work in the project's folder.")
@click.option("--exit-on-blocked", is_flag=True, help="End when only blocked or stopped streams are left.")
@click.option("--stop-on-exit", is_flag=True, help="Stop the workers too at Ctrl+C; a second one kills them.")
@click.option("--detach", is_flag=True, help="Run in the background; output goes to logs/orchestrator.log.")
@json_option("START", "Write events as JSON lines.")
@click.option("--dry-run", is_flag=True, help="Show the plan, and start nothing.")
def start_command(streams: tuple[str, ...], **options: Any) -> int:
    """Run all streams, or those you name, until they are complete.

    Ctrl+C ends the orchestrator and leaves the workers at work; `start` again takes them over.

    \b
    Examples:
      python orchestrate.py start
      python orchestrate.py start Stream-B Stream-C --max-workers 2
      python orchestrate.py start --claude "claude --model opus" --detach
    """
    if options["as_json"] and (options["detach"] or options["dry_run"]):
        raise click.UsageError("--json goes with neither --detach nor --dry-run: what they say is for people")
    if options["setup"] and options["no_worktrees"]:
        raise click.UsageError("--setup prepares new worktrees, and --no-worktrees makes none")
    project = find_current_project()
    command = read_command(options["claude"], options["output_format"], Path.cwd())
    limits = read_limits(streams, options)
    with open_store(project, BUSY_TIMEOUT) as store:
        database = store.path
        wait_for_database(store)
        if options["dry_run"]:
            snapshot = check_run(project, store, limits)
            repository, warnings = look_around(project, snapshot, limits, options)
            setup = "" if repository.obstacle else find_setup(project, repository.git, options["setup"])[0]
            click.echo(f"Set-up    {visible(setup)}\n" * bool(setup), nl=False)
            print_plan(project, snapshot, database, command, limits, repository, warnings)
            return EXIT_DONE
        running = read_orchestrator_pid(project)
        if running:
            if streams:
                look_around(project, check_run(project, store, limits), limits, options)
            return join_run(project, streams, running, options["as_json"])
        _, warnings = look_around(project, check_run(project, store, limits), limits, options)
    command.find(os.environ)
    check_folders(project)
    check_server(project)
    if database.name != "tasks.db":
        click.echo(f"Warning: {visible(_WRONG_NAME.format(database.name))}", err=True)
    argv = [word for word in click.get_current_context().obj["argv"] if word != "--detach"]
    if options["detach"]:
        return start_detached(project, argv)
    return run_in_foreground(
        project, database, command, limits, {**options, "warnings": warnings, "words": shlex.join(argv)}
    )


def wait_for_database(store: TaskStore) -> None:
    """Wait, where somebody has locked the database, until it can be read. Raises StoreError."""
    begun, is_said = time.monotonic(), False
    while True:
        try:
            store.read_version()
            return
        except StoreError as error:
            if "locked" not in error.message:
                raise
        if not is_said and time.monotonic() - begun > BUSY_PATIENCE:
            is_said = True
            where = visible(str(store.path))
            click.echo(f"The database is locked; waiting for whoever writes to it: {where}", err=True)


def read_limits(streams: Sequence[str], options: Mapping[str, Any]) -> Limits:
    if options["budget"] and options["output_format"] == "text":
        raise click.UsageError("--budget needs --output-format stream-json: text says nothing of costs")
    if 0 < options["budget"] < BUDGET_LEAST:
        raise click.UsageError(f"--budget is less than ${BUDGET_LEAST}, the least that a worker is started with")
    return Limits(
        **{name: options[name] for name in _SAME_LIMITS},
        stall_timeout=options["stall_timeout"] * 60,
        worker_timeout=options["worker_timeout"] * 60,
        streams=frozenset(streams) or None,
        phase=Phase(options["phase"]) if options["phase"] else None,
    )


def check_run(project: Project, store: TaskStore, limits: Limits) -> Snapshot:
    """Return how things stand. Raises OrchestrateError where the streams can't be run as they are, or are selected."""
    backlog = read_known_streams(store, sorted(limits.streams or ()))
    problems = [visible(f"{stream.id}: {stream.problem}") for stream in backlog.streams if stream.problem]
    if problems:
        remedy = "Correct the tasks' metadata (streamPhase, streamDependencies), then start again."
        raise OrchestrateError("\n        ".join(problems), remedy)
    snapshot = read_snapshot(project, backlog)
    selected = {s.id: s for s in snapshot.streams if limits.selects(s)}
    run = snapshot.history.limits  # of the run that this joins
    served = {s.id for s in snapshot.streams if snapshot.orchestrator and snapshot.includes(s, run)}
    served.update(selected, snapshot.workers)
    other = sorted(name for name in limits.streams or () if name not in selected)
    if limits.phase is not None and (other or not selected):
        phase = f"in the {limits.phase.value} phase"
        raise click.UsageError(f"not {phase}: {format_names(other)}" if other else f"no stream is {phase}")
    for stream_id, names in find_obstacles(snapshot, limits).items():
        missing = [name for name in names if name not in served]
        if stream_id in selected and missing and not selected[stream_id].is_complete:
            remedy = f"Complete them first, or start them too: {hint('start', names=[*missing, *selected])}"
            raise OrchestrateError(
                f"{visible(stream_id)} can't start: it waits for {format_names(missing)}, not part of this run", remedy
            )
    return snapshot


def look_around(
    project: Project, snapshot: Snapshot, limits: Limits, options: Mapping[str, Any]
) -> tuple[Repository, list[Problem]]:
    """Return the repository, and what to warn of before anything starts.

    Raises OrchestrateError where a stream of the run can have no worktree.
    """
    if options["no_worktrees"]:
        return Repository(Git(project.root), obstacle="--no-worktrees was given"), []
    at_work = {worker.stream_id for worker in snapshot.workers.values() if worker.ending is None}
    streams = [s for s in snapshot.streams if limits.selects(s) and not s.is_complete and s.id not in at_work]
    if not any(stream.phase is Phase.PARALLEL for stream in streams):
        return Repository(Git(project.root), obstacle="no stream needs one"), []  # the others do without git
    folders = {stream_id: record.folder for stream_id, record in snapshot.history.records.items()}
    return look_ahead(project, Git(project.root), streams, folders, options["setup"])


def join_run(project: Project, streams: Sequence[str], running: int, as_json: bool) -> int:
    if not streams or not running:
        raise OrchestrateError(*describe_running(running), EXIT_RUNNING)
    for event in request(project, streams, is_stop=False):
        if as_json:
            click.echo(format_json(event))
    if not read_orchestrator_pid(project):
        remedy = f"Start it anew: {hint('start', names=streams)}"
        raise OrchestrateError("The orchestrator that ran has just ended", remedy, EXIT_FAILED)
    if not as_json:
        click.echo(f"Left to the orchestrator that runs (PID {running}): {format_names(streams)}")
    return EXIT_DONE


def run_in_foreground(
    project: Project, database: Path, command: Command, limits: Limits, options: Mapping[str, Any]
) -> int:
    state = StateFolder(project)
    state.make()
    if not state.acquire():
        for _ in range(LOCK_RETRIES):  # it may just begin
            time.sleep(0 if read_orchestrator_pid(project) else 0.02)
        return join_run(project, sorted(limits.streams or ()), read_orchestrator_pid(project), options["as_json"])
    as_json = options["as_json"]
    console = None if as_json else make_console()
    has_board = console is not None and can_draw(console)
    try:
        warnings = [*options["warnings"], *take_database(state, database)]
        state.sign()
        load_all()
        with Clock(has_board) as clock, TaskStore(database, BUSY_TIMEOUT) as store, contextlib.ExitStack() as stack:
            reporters: list[Reporter] = [JsonReporter()] if console is None else [LineReporter(console)]
            if console is not None and has_board:
                reporters = [BoardReporter(console, clock)]
            reporters += [Notifier(options["notify"], os.environ)] if options["notify"] else []
            for reporter in reporters:
                stack.callback(reporter.close)
            has_worktrees, setup = not options["no_worktrees"], options["setup"]
            table = WorkerTable(project, database, command, os.environ, clock, has_worktrees, setup)
            interval, stop_on_exit = options["poll_interval"], options["stop_on_exit"]
            more = interval, stop_on_exit, warnings, options.get("words", "")
            run = Orchestrator(state, store, table, limits, clock, reporters, *more)
            code = run.run()
    finally:
        state.release()
    if console is not None:
        left = format_count(run.table.count(), "worker")
        how = f" Stop: {hint('stop')}" if run.table.count() else ""
        with contextlib.suppress(OSError, SystemExit):  # nobody listens any more
            if not run.history.outcome or code == EXIT_RUNNING:
                words = run.history.outcome or f"Orchestrator ended; {left} left running.{how}"
                console.print(rich.Text(words), soft_wrap=True)
            else:
                print_report(project, console, run.history.outcome, options.get("has_next", True))
    return code


def load_all() -> None:
    """Load what a run may need: a worker can remove the environment that this runs in."""
    for name in ("hashlib", "psutil", "shutil", "textwrap", "termios", "rich.live", "rich.control"):
        importlib.import_module(name)
    rich.Console(file=io.StringIO(), width=80).print(rich.Text("█ ✓ 日本"))  # of its tables it loads some when it draws


def take_database(state: StateFolder, database: Path) -> list[Problem]:
    """Lock the database, and return what to warn of where that can't be done.

    Raises OrchestrateError where the orchestrator of another folder works on it.
    """
    lock = lock_database(state.project, database)
    try:
        if state.acquire_database(lock):
            return []
    except OSError as error:
        return [(f"No other folder is kept from this database: {error}", "Start none there meanwhile.")]
    raise OrchestrateError(*describe_rival(state.project, read_lock(lock.path)), EXIT_RUNNING)


def describe_rival(project: Project, words: Sequence[str]) -> Problem:
    """Return what is wrong where a lock of the database says this, and the remedy."""
    pid, folder = [*words, "", ""][:2]
    if folder == str(project.root):
        return describe_running(int(pid))
    stop = shlex.join([*PROGRAM, "--project", folder, "stop"])
    what = f"An orchestrator already runs on this database, for {folder} (PID {pid})"
    return what, f"Give this folder tasks of its own (WORKSPACE_ID in .mcp.json), or stop that one:\n{visible(stop)}"


def print_report(project: Project, console: Console, outcome: str = "", has_next: bool = True) -> None:
    """Write how the last run went, and what to type next. Raises OrchestrateError where there was none."""
    try:
        timeline, streams = read_timeline(project, skips_idle=not outcome)
    except (OrchestrateError, OSError):
        if not outcome:
            raise
        words = "\n".join(f"- {visible(line)}" for line in outcome.split("\n"))
        console.print(rich.Text(words), soft_wrap=True)  # the journal could not be written
        return
    ahead, lines = look_at_branches(project, streams)
    answers = {stream.id: stream.answer for stream in streams if stream.is_blocked}
    courses = {
        stream_id: course._replace(
            log=tuple(read_last_words(project, stream_id)) if course.state is StreamState.FAILED else (),
            answer=answers.get(stream_id, ""),
            ahead=ahead.get(stream_id, 0),
        )
        for stream_id, course in timeline.courses.items()
    }
    timeline = timeline._replace(courses=courses, outcome=outcome or timeline.outcome)  # it may not have been written
    report = render_timeline(timeline, console.width or NARROW, bool(line_width(console)))
    console.print(report, soft_wrap=True)
    is_complete = all(course.state is StreamState.COMPLETE for course in courses.values())
    history = read_history(project)
    is_whole = history.limits.streams is None and history.limits.phase is None  # else it goes on with the others
    if not lines:
        again = hint_again(history.words if is_whole else "")
        lines = [f"Clean up: {hint('clean')}" if is_complete else f"Go on: {again}"]
    if has_next and not read_orchestrator_pid(project):
        console.print(rich.Text("\n" + "\n".join(defuse(visible(line)) for line in lines)), soft_wrap=True)


def look_at_branches(project: Project, streams: Sequence[Stream]) -> tuple[dict[str, int], list[str]]:
    """Return how many commits of each stream HEAD lacks, and how to merge those of finished work.

    Unless integration is still to come. What workers have left in a stash is named too: no branch has it.
    """
    names = [name_worktree(project, stream)[1] for stream in streams if stream.phase is Phase.PARALLEL]
    try:
        repository, branches = find_shown_branches(project, streams)
        stashes = find_stashes(repository.git, names) if repository is not None else []
    except (OSError, OrchestrateError) as error:
        return {}, [f"Whether branches are to be merged is not known: {visible(str(error))}"]
    complete = {s.id for s in streams if s.is_complete and s.phase is Phase.PARALLEL}
    is_merged_later = any(s.phase is Phase.INTEGRATION and not s.is_complete for s in streams)
    lines = [f"Left in a stash: {words} (git stash show -p '{name}')" for name, words in stashes]
    done = [branch for branch in branches if branch.stream_id in complete]
    lines += [f"{visible(b.stream_id)}: {b.summary} in {b.worktree}" for b in done if b.uncommitted]
    unmerged = [] if is_merged_later else [branch for branch in done if branch.ahead or branch.unknown]
    if unmerged and repository is not None:
        lines += [f"Not in {repository.place} yet. Merge it with: {hint('merge')}", "or:"]
        lines += [f"  git merge --no-ff {shlex.quote(branch.ref)}  # {branch.summary}" for branch in unmerged]
    return {branch.stream_id: branch.ahead for branch in branches}, lines


def print_plan(
    project: Project,
    snapshot: Snapshot,
    database: Path,
    command: Command,
    limits: Limits,
    repository: Repository,
    warnings: Sequence[Problem],
) -> None:
    """Write what a run would do: the order, the folders, the command; and what may go wrong."""
    obstacle = repository.obstacle
    started = make_event(Clock(), "run_started", limits={})
    snapshot = snapshot._replace(
        orchestrator=os.getpid(),
        history=snapshot.history.after(started),  # a start by a person forgives failures, and takes back stops
        stopped=snapshot.stopped - {stream.id for stream in snapshot.streams if limits.selects(stream)},
    )
    click.echo(f"Project   {project.root}\nDatabase  {database}\nCommand   {shlex.join(command.argv('PROMPT'))}")
    click.echo(f"Worktrees {f'none: {obstacle}' if obstacle else project.worktrees}")
    standings = assess(snapshot, limits, time.monotonic())
    for stream in snapshot.streams:
        standing = standings[stream.id]
        words = (
            "starts at once, or as soon as a worker is free"
            if standing.state is StreamState.QUEUED
            else format_standing(standing, None, 0)
        )
        line = f"{stream.phase.value:<12}{stream.id}  {stream.completed}/{stream.total}  {words}"
        if stream.phase is Phase.PARALLEL and not obstacle:
            folder, branch = name_worktree(project, stream)
            line += f"; in {os.path.relpath(folder, project.root)} on {branch}"
        click.echo(visible(line))
    for what, way in warnings:
        click.echo(visible(f"Warning: {what}. {way}"))


def start_detached(project: Project, argv: Sequence[str]) -> int:
    StateFolder(project).make()
    path = project.logs / "orchestrator.log"
    environ = {key: value for key, value in os.environ.items() if key != "ORCHESTRATE_START_DETACH"}
    words = [sys.executable, str(Path(__file__).resolve()), *argv]
    with open_private(path, os.O_WRONLY | os.O_APPEND) as log:
        begin = log.seek(0, os.SEEK_END)
        child = subprocess.Popen(
            words, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environ, start_new_session=True
        )
    while child.poll() is None and read_orchestrator_pid(project) != child.pid:
        time.sleep(0.02)
    if child.returncode:
        click.echo(path.read_bytes()[begin:].decode("utf-8", "replace").rstrip("\n"), err=True)
        return child.returncode
    if child.returncode == 0:
        click.echo(f"The run has come to its end already; its output: {path}")
        return EXIT_DONE
    child.returncode = 0  # it goes on without us: no warning that it was never waited for
    click.echo(f"The orchestrator runs in the background (PID {child.pid}); its output: {path}")
    click.echo(describe_running(child.pid)[1])
    return EXIT_DONE


@cli.command("status")
@project_options
@stream_arguments
@click.option("--dashboard", is_flag=True, help="Show the progress, and count the tasks.")
@number_option(
    "--watch",
    "[SECONDS]",
    0.1,
    None,
    f"Show the dashboard live, every SECONDS ({WATCH_INTERVAL}).",
    is_flag=False,
    flag_value=WATCH_INTERVAL,
)
@json_option("STATUS", "Write one JSON object.")
@click.option(
    "--check", is_flag=True, help="Exit with 0: all complete, 1: something failed, 3: not complete, 4: no such project."
)
def status_command(streams: tuple[str, ...], dashboard: bool, watch: float | None, as_json: bool, check: bool) -> int:
    """Show what each stream and its worker do.

    \b
    Examples:
      python orchestrate.py status
      python orchestrate.py status --watch 5
      python orchestrate.py status --json | jq '.streams[] | select(.state == "failed")'
    """
    if as_json and watch:
        raise click.UsageError("--json does not go with --watch: ask again instead")
    try:
        project = find_current_project()
        with open_store(project) as store:
            backlog = read_known_streams(store, streams)
            if watch:
                return watch_dashboard(project, store, backlog, streams, watch)
        snapshot, standings = look(project, backlog, streams)
    except OrchestrateError as error:
        is_unreadable = isinstance(error, StoreError)  # there is a project, and more cannot be said now
        error.exit_code = EXIT_NO_PROJECT if check and not is_unreadable else error.exit_code
        raise
    snapshot = snapshot if dashboard else add_branches(project, snapshot)
    now, wall = time.monotonic(), time.time()
    if as_json:
        click.echo(format_status_json(project, store.path, snapshot, standings, wall))
    else:
        console = make_console()
        width = line_width(console)
        picture = render_dashboard(snapshot, standings, now, wall, width) if dashboard else None
        console.print(picture or render_status(snapshot, standings, now, width), soft_wrap=True)
    states = {standing.state for standing in standings.values()}
    if not check or states <= {StreamState.COMPLETE}:
        return EXIT_DONE
    return EXIT_FAILED if StreamState.FAILED in states else EXIT_INCOMPLETE


def look(
    project: Project, backlog: Backlog, names: Collection[str], database_error: str = ""
) -> tuple[Snapshot, dict[str, Standing]]:
    snapshot = read_snapshot(project, backlog, database_error)
    standings = assess(snapshot, snapshot.history.limits, time.monotonic())
    shown = tuple(stream for stream in snapshot.streams if not names or stream.id in names)
    return snapshot._replace(streams=shown), {stream.id: standings[stream.id] for stream in shown}


def find_shown_branches(project: Project, streams: Sequence[Stream]) -> tuple[Repository | None, list[Branch]]:
    """Return the branches of streams for a display. Raises OSError, OrchestrateError.

    None where most likely there are none, and git is not asked for nothing.
    """
    if not project.worktrees.is_dir() and not any(s.worktree_path or s.branch_name for s in streams):
        return None, []
    repository = read_repository(Git(project.root).hurry())
    return (None, []) if repository.obstacle else (repository, find_branches(project, repository, streams, True))


def add_branches(project: Project, snapshot: Snapshot) -> Snapshot:
    try:
        return snapshot._replace(branches=tuple(find_shown_branches(project, snapshot.streams)[1]))
    except (OSError, OrchestrateError) as error:
        return snapshot._replace(warnings=(*snapshot.warnings, f"branches are not shown: {error}"))


def watch_dashboard(
    project: Project, store: TaskStore, backlog: Backlog, names: Collection[str], interval: float
) -> int:
    """Show the dashboard again and again until all is complete, or a signal: on a terminal's alternate screen, else one
    below the other. Where the database can't be read, with the streams as they were. Returns the exit code."""
    console = make_console()
    picture = Picture(console, is_whole=True) if can_draw(console) else None
    error, is_complete = "", False
    with Clock(draws=picture is not None) as clock:
        while not clock.signals and not is_complete:
            with contextlib.ExitStack() as stack:
                if picture is not None:
                    stack.enter_context(without_echo())
                    stack.callback(picture.close)
                was_behind = not is_in_front(console.file)  # and could not keep the echo off
                while not (clock.signals or clock.wants_suspension or is_complete):
                    if was_behind and is_in_front(console.file):
                        break
                    snapshot, standings = look(project, backlog, names, error)
                    now, wall = clock.monotonic(), clock.wall()
                    if picture is None:
                        console.print(render_dashboard(snapshot, standings, now, wall, 0), soft_wrap=True)
                    else:
                        picture.draw(functools.partial(render_dashboard, snapshot, standings, now, wall))
                    states = {standing.state for standing in standings.values()}
                    is_complete = states == {StreamState.COMPLETE}
                    clock.wait(0 if is_complete else interval)
                    try:
                        backlog, error = store.read(), ""
                    except StoreError as problem:
                        error = str(problem)
            if clock.wants_suspension:
                clock.suspend()
    if is_complete:
        console.print(f"All complete: {format_count(len(standings), 'stream')}.")
    return EXIT_DONE if is_complete else 128 + clock.signals[0]


@contextlib.contextmanager
def without_echo() -> Iterator[None]:
    """Show nothing of what is typed, and discard it; one that runs in the background may not touch the terminal."""
    import termios

    before: list[Any] | None = None
    with contextlib.suppress(OSError, termios.error):
        if os.getpgrp() == os.tcgetpgrp(0):
            before = termios.tcgetattr(0)
            modes = list(before)
            modes[3] &= ~termios.ECHO
            termios.tcsetattr(0, termios.TCSANOW, modes)
    try:
        yield
    finally:
        with contextlib.suppress(termios.error):  # the terminal is gone
            if before is not None:
                termios.tcsetattr(0, termios.TCSAFLUSH, before)


@cli.command("stop")
@project_options
@stream_arguments
@number_option("--timeout", "SECONDS", 0, STOP_TIMEOUT, "Time between SIGTERM and SIGKILL.")
def stop_command(streams: tuple[str, ...], timeout: float) -> int:
    """Stop the workers of the streams you name, or everything.

    Everything is the orchestrator first, then all workers. What is stopped stays stopped until `start`.

    \b
    Examples:
      python orchestrate.py stop
      python orchestrate.py stop Stream-B --timeout 30
    """
    project, known = find_known_streams()
    if streams:
        check_names(streams, sorted(known))
    if not streams and not project.folder.is_dir():
        click.echo("Nothing to stop.")
        return EXIT_DONE
    with contextlib.suppress(OSError):  # on a disk that has become read-only, there is nothing to make
        StateFolder(project).make()
    history = read_history(project)
    unseen = {i for i in find_unseen(project, history) if not streams or i in streams}
    unseen -= set(discover_workers(project, known).workers) if unseen else set()
    elsewhere = describe_elsewhere(history, read_orchestrator_pid(project), unseen)
    if elsewhere:
        request(project, streams, is_stop=True)
        left = f". Marked as stopped: {format_names(streams)}" if streams else ""
        there = f"Stop it there, in that container or on that machine: {hint('stop')}"
        raise OrchestrateError(f"{elsewhere}{left}", there, EXIT_FAILED)
    ended = 0 if streams else stop_orchestrator(project, timeout)
    if ended:
        click.echo(f"Orchestrator stopped (PID {ended}).")
    found = stop_workers(project, known, set(streams) if streams else None, timeout)
    stopped = [stream_id for stream_id in found.workers if not streams or stream_id in streams]
    for stream_id in stopped:
        conclude_stop(project, found.workers[stream_id], found.trees.get(stream_id, {}))
    for stream_id in streams:
        if stream_id not in stopped:
            click.echo(
                f"{defuse(visible(stream_id))} was not running; it stays stopped until: "
                f"{hint('start', names=[stream_id])}"
            )
    if not stopped and not streams and not ended:
        click.echo("Nothing to stop.")
    return EXIT_FAILED if any(stream_id in found.trees for stream_id in stopped) else EXIT_DONE


def find_known_streams() -> tuple[Project, set[str]]:
    """Return the project and every stream that may have a worker; a stop works without a database too."""
    project = find_current_project()
    known = set(read_history(project).records)
    # A stop waits for no database.
    with contextlib.suppress(OrchestrateError), open_store(project, BUSY_TIMEOUT) as store:
        known |= {stream.id for stream in store.read().streams}
    return project, known | set(discover_workers(project, known).trees)


def conclude_stop(project: Project, worker: Worker, survivors: Tree) -> None:
    name = visible(worker.stream_id)
    if survivors:
        pids = ",".join(map(str, survivors))
        how = f"Look at it: ps -o pid,stat,args -p {pids}"
        click.echo(f"[ERROR] {name} survived SIGKILL: PID {pids}\n{how}", err=True)
        return
    if not read_orchestrator_pid(project):
        record, raw = read_history(project).record(worker.stream_id), project.file(worker.stream_id, ".jsonl")
        log = Appender(project.file(worker.stream_id, ".log"))
        position = read_positions(project).get(file_name(worker.stream_id), record.raw_start)
        transcript = Transcript(raw, log.append, record.raw_start, position)  # what nobody has read yet
        deadline = time.monotonic() + KILL_TIMEOUT  # it may be a flood
        while not transcript.pump() and time.monotonic() < deadline:
            pass
        said = transcript.read_ending(None, time.time())
        ending = Ending(None, StopReason.USER.value, turns=said.turns, cost=said.cost)
        verdict = Verdict(VerdictKind.STOPPED, StopReason.USER.value)
        event = make_end_event(Clock(), worker._replace(ending=ending), verdict, record, None)
        state = StateFolder(project)
        journal = state.journal
        with state.hold_marks():
            journal.add(event)
        log.append(format_log_lines(event))
        if journal.trouble:
            click.echo(f"Warning: {visible(str(journal.trouble))}: the journal does not tell of this stop", err=True)
    with contextlib.suppress(OSError):  # where it has to stay, it means nothing from now on
        project.file(worker.stream_id, ".pid").unlink()
    click.echo(f"{name} stopped (PID {worker.pid or format_names([str(pid) for pid in worker.leftovers])}).")


@cli.command("timeline")
@project_options
@click.option("--html", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE", help="Write a web page.")
def timeline_command(html: Path | None) -> int:
    """Show how the last run went: a line for each stream, and a chart.

    \b
    Examples:
      python orchestrate.py timeline
      python orchestrate.py timeline --html night.html
    """
    project = find_current_project()
    if html is not None:
        html.write_text(format_timeline_html(read_timeline(project)[0]), encoding="utf-8")
        click.echo(f"Wrote {visible(str(html))}")
    else:
        print_report(project, make_console())
    return EXIT_DONE


def read_timeline(project: Project, skips_idle: bool = True) -> tuple[Timeline, tuple[Stream, ...]]:
    """Return the last run, and the streams as they are now. Raises OrchestrateError where there was none."""
    streams: tuple[Stream, ...] = ()
    # What never ran stands in the database alone; the rest is shown without it.
    with contextlib.suppress(OrchestrateError), open_store(project) as store:
        streams = store.read().streams
    wall = time.time() if read_orchestrator_pid(project) else None
    timeline = fold_timeline(project.name, read_run(project, skips_idle), streams, wall)
    if not timeline.begin:
        raise OrchestrateError("There was no run yet in this project", f"Begin one: {hint('start')}")
    return timeline, streams


@cli.command("merge")
@project_options
@stream_arguments
def merge_command(streams: tuple[str, ...]) -> int:
    """Merge the branches of complete streams, or of those you name, into the current one.

    A conflict stops it, and undoes that merge. Earlier merges stay.

    \b
    Examples:
      python orchestrate.py merge
      python orchestrate.py merge Stream-B Stream-C
    """
    project = find_current_project()
    with open_store(project) as store:
        backlog = read_known_streams(store, streams)
    chosen = {stream.id: stream for stream in backlog.streams if stream.id in streams or not streams}
    for stream in (chosen[stream_id] for stream_id in streams):
        if not stream.is_complete:
            count = f"{stream.completed} of {format_count(stream.total, 'task')}"
            raise click.UsageError(f"{visible(stream.id)} is not complete ({count}): its branch is not finished")
    complete = [stream for stream in chosen.values() if stream.is_complete]
    with hold_project(project) as clock:
        # Ctrl+C lets a merge come to its end; a second one ends and restores it.
        repository = read_repository(Git(project.root, lambda: len(clock.signals) > 1))
        repository = repository._replace(git=repository.git.wait())
        branches = [] if repository.obstacle else find_branches(project, repository, complete)
        for branch in branches:
            if branch.uncommitted or branch.instead_of:
                click.echo(f"Warning: {visible(branch.name)} ({visible(branch.stream_id)}): {branch.summary}", err=True)
        unmerged = [branch for branch in branches if branch.ahead or branch.unknown]
        if not unmerged:
            click.echo("Nothing to merge.")
            return EXIT_DONE
        check_tree(repository)
        code = EXIT_DONE
        for branch in unmerged:
            check_workers(project, branch)
            branch = branch if branch.unknown else read_branch(repository._replace(head="HEAD"), branch)  # as it is now
            if branch.nested or branch.unknown:
                OrchestrateError(*describe_unmerged(branch)).show()
                code = EXIT_FAILED
            elif branch.ahead:
                merge_branch(repository, branch, chosen[branch.stream_id].name)
                count = format_count(branch.ahead, "commit")
                click.echo(f"Merged {visible(branch.name)} into {visible(repository.branch)}: {count}")
            if clock.signals:
                return 128 + clock.signals[0]
    return code


def describe_unmerged(branch: Branch) -> Problem:
    """Return why git can't merge a branch: nobody knows what it holds, or it adds repositories; and the remedy."""
    at = f"git -C {shlex.quote(branch.worktree)}" if branch.worktree else "git"
    if branch.unknown:
        return f"{branch.name} was not merged: {branch.summary}", f"Look why: {at} status"
    what = (
        f"{branch.name} was not merged: it has a repository in it, and of that no file: {format_names(branch.nested)}"
    )
    names, message = shlex.join(branch.nested), shlex.quote(f"Add {format_names(branch.nested)}")
    if not branch.worktree:
        return what, f"Their files are gone. Take them out: git switch {shlex.quote(branch.name)} && git rm -q {names}"
    inner = shlex.join(str(Path(branch.worktree, name, ".git")) for name in branch.nested)
    return what, (
        f"Add them: {at} rm --cached -q {names} && rm -rf {inner} && {at} add {names} && {at} commit -m {message}"
    )


@contextlib.contextmanager
def hold_project(project: Project) -> Iterator[Clock]:
    """Let nobody else change the project meanwhile, and no signal interrupt what is done to it.

    Raises OrchestrateError where an orchestrator runs.
    """
    state = StateFolder(project)
    if not project.folder.is_dir():
        state.make()
    if not state.acquire():
        raise OrchestrateError(*describe_running(read_orchestrator_pid(project)), EXIT_RUNNING)
    try:
        with Clock() as clock:
            yield clock
    finally:
        state.release()


def describe_running(pid: int) -> tuple[str, str]:
    """Return what is wrong where somebody else holds the project, and the remedy; the PID is 0 for no orchestrator."""
    if not pid:
        return "A merge or a clean-up is under way in this project", "Wait for its end."
    remedy = f"Watch it: {hint('status')}\nEnd it: {hint('stop')}"
    return f"An orchestrator already runs for this project (PID {pid})", remedy


def check_workers(project: Project, branch: Branch) -> None:
    """Raise OrchestrateError where a worker works on what is merged, or where it is merged into."""
    history = read_history(project)
    seen = discover_workers(project, history.records).workers
    for stream_id, worker in {**find_unseen(project, history), **seen}.items():
        folder = history.record(stream_id).folder
        if worker.ending is None and (stream_id == branch.stream_id or folder == str(project.root)):
            raise OrchestrateError(
                f"The worker of {visible(stream_id)} is still at work (PID {worker.pid})",
                f"Wait for its end, or stop it: {hint('stop', names=[stream_id])}",
                EXIT_RUNNING,
            )


def check_tree(repository: Repository) -> None:
    """Raise OrchestrateError where a merge could mix with something else.

    Asked once: a merge that moves a submodule leaves that as it is, and so a difference.
    """
    if not repository.branch:
        raise OrchestrateError("No branch is checked out", "Switch to the one to merge into: git switch BRANCH")
    changed = read_status(repository.git, untracked=False)
    if changed or repository.git.run("rev-parse", "--verify", "--quiet", "MERGE_HEAD", most=1):
        files = format_names(changed) or "a merge that is not concluded"
        raise OrchestrateError(f"The tree is not clean: {files}", "Commit or stash that first (git status).")


@cli.command("clean")
@project_options
@click.option("--dry-run", is_flag=True, help="Say what would be done, and do nothing.")
def clean_command(dry_run: bool) -> int:
    """Remove PID files, and the worktrees and merged branches of complete streams.

    All logs go to .archive/orchestration/<date>/. Work that is not merged or not committed is kept. What git ignores
    goes with its worktree.

    \b
    Examples:
      python orchestrate.py clean --dry-run
      python orchestrate.py merge && python orchestrate.py clean
    """
    project = find_current_project()
    with open_store(project) as store:
        streams = store.read().streams
    if not project.folder.is_dir():
        click.echo("Nothing to clean.")
        return EXIT_DONE
    with hold_project(project) as clock:
        history = read_history(project)
        trees = discover_workers(project, {stream.id for stream in streams} | set(history.records)).trees
        at_work = {i: list(tree) for i, tree in trees.items()}
        at_work.update((i, [worker.pid]) for i, worker in find_unseen(project, history).items() if i not in trees)
        if at_work:
            pids = ", ".join(str(pid) for pids in at_work.values() for pid in pids)
            message = f"Workers still run: {format_names(list(at_work))} (PID {pids})"
            raise OrchestrateError(message, f"Stop them: {hint('stop')}", EXIT_RUNNING)
        return do_chores(plan_clean(project, streams, history), dry_run, clock)


def plan_clean(project: Project, streams: Sequence[Stream], history: History) -> list[Chore]:
    pid_files = sorted(project.pids.glob("*.pid"))
    chores = [Chore("remove", f"stale PID file {path.name}", path.unlink) for path in pid_files]
    # A worker that ended unseen is judged by its output, at the next start.
    unjudged = {file_name(i) for i, record in history.records.items() if record.pid or record.is_starting}
    found = sorted(project.logs.glob("*"))
    logs = [path for path in found if path.is_file() and path.stem not in unjudged]
    logs = [path for path in logs if path != project.positions or not unjudged]
    if logs:
        date = time.strftime("%Y%m%d")
        names = itertools.chain([date], (f"{date}-{count}" for count in itertools.count(2)))
        folders = (project.archive / name for name in names)
        target = next(folder for folder in folders if not folder.exists())
        what = f"{format_count(len(logs), 'log')} to {target.relative_to(project.root)}"
        chores.append(Chore("move", what, functools.partial(archive, logs, target)))
    repository = read_repository(Git(project.root))
    repository = repository._replace(git=repository.git.wait())
    return chores if repository.obstacle else [*chores, *plan_worktrees(project, repository, streams)]


def do_chores(chores: Sequence[Chore], dry_run: bool, clock: Clock) -> int:
    code = EXIT_DONE
    for chore in chores:
        what = visible(chore.what)
        try:
            if chore.do is not None and not dry_run:
                chore.do()
        except OSError as error:
            click.echo(f"[ERROR] could not {chore.verb} {what}: {visible(str(error))}", err=True)
            code = EXIT_FAILED
        else:
            done = {"remove": "Removed", "move": "Moved", "keep": "Kept"}[chore.verb]
            click.echo(f"{f'Would {chore.verb}' if dry_run else done} {what}")
        if clock.signals:
            return 128 + clock.signals[0]
    if not chores:
        click.echo("Nothing to clean.")
    return code


@cli.command("logs")
@project_options
@stream_arguments
@number_option("-n/--lines", "N", 0, LOG_LINES, "Lines to show at first.")
@click.option("--follow/--no-follow", default=True, help="Follow new lines until Ctrl+C.")
@click.option("--raw", is_flag=True, help="Show the workers' output unchanged.")
def logs_command(streams: tuple[str, ...], lines: int, follow: bool, raw: bool) -> int:
    """Show the last lines of the logs, and follow them.

    Without a name it shows the logs of all streams, merged by time.

    \b
    Examples:
      python orchestrate.py logs Stream-B
      python orchestrate.py logs -n 200 --no-follow Stream-B
    """
    project, known = find_known_streams()
    check_names(streams, sorted(known))
    if not known:
        with open_store(project) as store:
            read_known_streams(store, ())  # says why there is nothing to show
    names = list(streams) or sorted(known, key=natural_key)
    paths = {name: project.file(name, ".jsonl" if raw else ".log") for name in names}
    history = read_history(project)
    readers: list[Tail | LogReader] = [
        Tail(path, lines=lines, follows=True, before=find_archived(project, name, ".jsonl"))
        if raw
        else LogReader(project, name, lines, history.record(name).raw_start)
        for name, path in paths.items()
    ]
    missing = [i for i, path in paths.items() if not (path.exists() or find_archived(project, i, path.suffix))]
    for name in missing if streams or len(missing) == len(names) else ():
        click.echo(f"{defuse(visible(name))} has no log yet: {visible(str(paths[name]))}", err=True)
    return follow_logs(project, dict(zip(names, readers)), follow)


_STREAM_COLOURS = ("cyan", "green", "magenta", "yellow", "blue", "bright_cyan", "bright_green", "bright_magenta")


def follow_logs(project: Project, readers: Mapping[str, Tail | LogReader], follow: bool) -> int:
    """Write what the logs have and get, until all of it is written or a signal comes; return the exit code."""
    console, moments = make_console(), dict.fromkeys(readers, 0.0)  # of the last line of each: none overtakes another
    with Clock() as clock:
        while not clock.signals:
            has_orchestrator = bool(read_orchestrator_pid(project))
            is_drained, found = True, []
            for place, (name, reader) in enumerate(readers.items()):
                if isinstance(reader, Tail):
                    lines, tail = [line for _, line in reader.read()], reader
                else:
                    lines, tail = list(reader.read(has_orchestrator)), reader.tail
                is_drained = is_drained and tail.is_drained
                for line in lines:
                    with contextlib.suppress(ValueError, OverflowError):  # a worker may have written anything there
                        moments[name] = max(moments[name], 0.0 if tail is reader else read_time(split_stamp(line)[0]))
                    found.append((moments[name], place, name, line))
            for _, place, name, line in sorted(found, key=lambda entry: entry[0]):
                prefix = f"{defuse(visible(name))} │ " if len(readers) > 1 else ""
                stamp, rest = split_stamp(visible(line.expandtabs()))
                if console.is_terminal:
                    colour = _STREAM_COLOURS[place % len(_STREAM_COLOURS)]
                    parts = ((prefix, colour), (f"{stamp}  " if stamp else "", "bright_black"), rest)
                    console.print(rich.Text.assemble(*parts), soft_wrap=True)
                elif isinstance(readers[name], Tail):  # into a pipe raw lines go as they are
                    click.echo(f"{prefix}{line}")
                else:  # not to click's own stream, which is UTF-8 where the environment says ASCII
                    click.echo(f"{prefix}{visible(line.expandtabs())}", file=sys.stdout)
            if not follow and is_drained:
                return EXIT_DONE
            clock.wait(FOLLOW_INTERVAL if follow else 0)
    return 128 + clock.signals[0]


@cli.command("generate")
@project_options
@click.argument(
    "folder", required=False, metavar="[DIR]", type=click.Path(exists=True, file_okay=False, path_type=Path)
)
@click.option("--force", is_flag=True, help="Overwrite what you have changed, too.")
def generate_command(folder: Path | None, force: bool) -> int:
    """Install the program in a project, and /orchestration in Claude Code.

    Run it again to update. Your changes stay.

    \b
    Examples:
      python orchestrate.py generate ~/my-project
      python .claude/orchestrator/orchestrate.py generate
    """
    project = find_current_project(checks=False) if folder is None else Project(folder.resolve())
    outcomes = generate(project, force)
    if set(list(outcomes.values())[:-1]) == {"Created"}:
        click.echo(GENERATED, nl=False)
    else:
        click.echo("\n".join(f"{outcome:<9} {name}" for name, outcome in outcomes.items()))
    for name in (name for name, outcome in outcomes.items() if outcome == "Kept"):
        click.echo(f"Warning: {name} was changed by a person and is left as it is; --force overwrites it", err=True)
    click.echo("\nIn Claude Code: /orchestration generate, /orchestration status")
    where = f"cd {shlex.quote(str(project.root))} && " if project.root != Path.cwd() else ""
    click.echo(f"Check what a run needs: {where}python3 .claude/orchestrator/orchestrate.py doctor")
    return EXIT_DONE


def generate(project: Project, force: bool = False) -> dict[str, str]:
    """Install our files in a project, and return what became of each: Created, Updated, Unchanged or Kept.

    One that differs from what was installed last was changed by a person. Raises OSError, OrchestrateError.
    """
    state = StateFolder(project)
    state.check()
    state.make()
    record = project.folder / ".generated"  # for `sha256sum --check`
    known = set(record.read_text(encoding="utf-8", errors="replace").splitlines()) if record.exists() else set()
    outcomes, installed = {}, []
    python = find_interpreter(project)
    files = {".claude/orchestrator/orchestrate.py": (Path(__file__).read_text(encoding="utf-8"), 0o755)}
    for name, (purpose, option) in WRAPPERS.items():
        wrapper = WRAPPER.replace("{purpose}", purpose).replace("{option}", option)
        files[f".claude/orchestrator/{name}"] = wrapper, 0o755
    files[".claude/commands/orchestration.md"] = SLASH_COMMAND, 0o644
    for name, (plain, mode) in files.items():
        wanted = note_interpreter(name, plain, python)
        path, digest = project.root / name, hash_bytes("sha256", wanted.encode())
        current = hash_bytes("sha256", path.read_bytes()) if path.exists() else ""
        before = [f"{line}\n" for line in known if line.endswith(f"  {name}")]
        outcomes[name] = "Created" if not current else "Unchanged" if current == digest else "Updated"
        if current not in ("", digest) and f"{current}  {name}" not in known and not force:
            outcomes[name] = "Kept"
            installed += before  # the change may be taken back
            text = path.read_text(encoding="utf-8", errors="surrogateescape")
            noted = note_interpreter(name, text, python)
            if noted != text:  # that alone: without one nothing runs
                write_file(path, noted.encode("utf-8", "surrogateescape"))
            continue
        if current != digest:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_file(path, wanted)
        path.chmod(mode)
        is_itself = current == digest and path.samefile(__file__)  # and so like itself, whatever a person changed
        installed += before if is_itself else [f"{digest}  {name}\n"]
    write_file(record, "".join(installed))
    return outcomes


def note_interpreter(name: str, text: str, python: str) -> str:
    """Return the text of an installed file, with this interpreter in it: it goes on with that."""
    if name.endswith(".py"):
        return re.sub('(?m)^PYTHON = ".*"$', lambda _: f"PYTHON = {json.dumps(python)}", text)
    return re.sub("(?m)^python=.*$", lambda _: f"python={shlex.quote(python)}", text)


def find_interpreter(project: Project) -> str:
    """Return the interpreter for an installed copy: the one that it has noted, if that will do, or ours."""
    with contextlib.suppress(OSError, ValueError):
        noted = re.search('(?m)^PYTHON = (".+")', (project.folder / "orchestrate.py").read_text(encoding="utf-8"))
        words = [str(json.loads(noted[1])), "-c", "import click, psutil, rich"] if noted else ["false"]
        if run_bounded(words, GIT_TIMEOUT, keep_variables(os.environ))[0] == 0:
            return words[0]
    return sys.executable


# The streams of `demo`, after the guide's example: id, phase, name, tasks. Behind a task's title stands what happens.
DEMO_STREAMS = (
    ("Stream-A", "foundation", "core-types", ("Define the types", "Set up the build", "Write the storage", "Lint it")),
    (
        "Stream-B",
        "parallel",
        "api-implementation",
        ("Design the routes", "Check the input: crash", "Page the lists", "Settle the errors: unblock", "Log requests"),
    ),
    (
        "Stream-C",
        "parallel",
        "ui-components",
        ("Lay out the pages", "Show the errors: block", "Draw the forms", "Test by keyboard"),
    ),
    ("Stream-D", "integration", "tests-and-docs", ("Test all of it", "Write the manual", "Prepare the release")),
)
DEMO_VARIABLES = {"GIT_CONFIG_GLOBAL": "/dev/null", "GIT_CONFIG_NOSYSTEM": "1"}  # nobody's settings hinder it
DEMO_TASK = 0.75  # seconds that a simulated worker takes for a task
DEMO_COST = 0.11  # US dollars that it says it has spent on one
DEMO_SCHEMA = """\
CREATE TABLE initiatives (id TEXT PRIMARY KEY, title TEXT NOT NULL, description TEXT, created_at TEXT NOT NULL,
    updated_at TEXT NOT NULL);
CREATE TABLE prds (id TEXT PRIMARY KEY, initiative_id TEXT NOT NULL REFERENCES initiatives(id), title TEXT NOT NULL,
    description TEXT, content TEXT NOT NULL, metadata TEXT DEFAULT '{}', status TEXT DEFAULT 'active',
    created_at TEXT NOT NULL, updated_at TEXT NOT NULL);
CREATE TABLE tasks (id TEXT PRIMARY KEY, prd_id TEXT REFERENCES prds(id), parent_id TEXT REFERENCES tasks(id),
    title TEXT NOT NULL, description TEXT, assigned_agent TEXT,
    status TEXT DEFAULT 'pending' CHECK(status IN ('pending', 'in_progress', 'blocked', 'completed', 'cancelled')),
    blocked_reason TEXT, notes TEXT, metadata TEXT DEFAULT '{}', created_at TEXT NOT NULL, updated_at TEXT NOT NULL,
    archived INTEGER DEFAULT 0, archived_at TEXT, archived_by_initiative_id TEXT);
CREATE INDEX idx_tasks_status ON tasks(status);
CREATE TABLE migrations (version INTEGER PRIMARY KEY, applied_at TEXT NOT NULL);
INSERT INTO migrations VALUES (10, strftime('%Y-%m-%dT%H:%M:%fZ'));
"""

# What plays claude in a demo: it does the open tasks of a stream one by one, and prints what claude would.
DEMO_WORKER = """\
import json, os, pathlib, sqlite3, subprocess, sys, time

stream, pause, cost = os.environ["ORCHESTRATE_STREAM"], float(sys.argv[1]), float(sys.argv[2])
path = pathlib.Path(os.environ["TASK_DB_PATH"], os.environ["WORKSPACE_ID"], "tasks.db")
database = sqlite3.connect(str(path), timeout=10, isolation_level=None)
OPEN = "json_extract(metadata, '$.streamId') = ? AND status IN ('pending', 'in_progress') ORDER BY rowid"
TWIST = "coalesce(json_extract(metadata, '$.demo'), '')"  # what happens in a task beside the work; it is used up
SET = "UPDATE tasks SET metadata = json_remove(metadata, '$.demo'), updated_at = strftime('%Y-%m-%dT%H:%M:%fZ'), "

def say(kind, **more):
    print(json.dumps({"type": kind, **more}), flush=True)

def use(tool, **arguments):
    say("assistant", message={"content": [{"type": "tool_use", "name": tool, "input": arguments}]})
    time.sleep(pause)

def git(*words):  # where there is none, all work in one folder
    if pathlib.Path(".git").exists():
        return subprocess.run(["git", *words], check=True, stdout=subprocess.PIPE, text=True).stdout.split()
    return []

say("system", subtype="init", model="simulated", cwd=os.getcwd(), tools=[])
for branch in git("for-each-ref", "--format=%(refname:short)", "refs/heads/stream") if stream == "Stream-D" else ():
    use("Bash", command=f"git merge --no-ff {branch}")
    git("merge", "--quiet", "--no-ff", "--message", f"Merge {branch}", branch)
done = 0
while True:
    row = database.execute(f"SELECT id, title, {TWIST} FROM tasks WHERE {OPEN}", [stream]).fetchone()
    if row is None:
        break
    task, title, twist = row
    if twist == "block":
        use("Grep", pattern="class .*Error")
        why = "what does an error look like? Stream-B has to say"
        database.execute(f"{SET} status = 'blocked', blocked_reason = ? WHERE id = ? AND {TWIST} = ?",
                         (why, task, twist))
        continue
    database.execute(f"{SET} status = 'in_progress' WHERE id = ?", [task])
    if twist == "crash":
        use("Bash", command="npm test")
        sys.exit("Error: connection reset by peer (this was arranged)")
    file = pathlib.Path("src", title.lower().replace(" ", "-") + ".txt").resolve()
    use("Write", file_path=str(file))
    file.parent.mkdir(exist_ok=True)
    file.write_text(title + "\\n", encoding="utf-8")
    git("add", str(file))
    git("commit", "--quiet", "--allow-empty", "--message", title)
    if twist == "unblock":  # what is blocked, and what would be
        database.execute(f"{SET} status = replace(status, 'blocked', 'pending'), blocked_reason = NULL "
                         f"WHERE status = 'blocked' OR {TWIST} = 'block'")
    database.execute(f"{SET} status = 'completed' WHERE id = ?", [task])
    done += 1
words = "All that is open is blocked, or nothing is."
say("result", subtype="success", is_error=False, result=words, num_turns=2 * done, total_cost_usd=done * cost)
"""


@cli.command("demo")
@click.option("--keep", is_flag=True, help="Keep the project.")
def demo_command(keep: bool) -> int:
    """Simulate a night in 15 seconds.

    It makes a throw-away project, and needs neither Claude nor Task Copilot.

    \b
    Examples:
      python orchestrate.py demo
      python orchestrate.py demo --keep
    """
    import tempfile

    os.environ.update(DEMO_VARIABLES)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, _: sys.exit(128 + number))  # the folder is removed then; a run has its own
    prefix = "orchestrate-demo-"
    kept = contextlib.nullcontext(tempfile.mkdtemp(prefix=prefix)) if keep else None
    with kept or tempfile.TemporaryDirectory(prefix=prefix) as folder:
        top = Path(folder).resolve()
        project, database = make_demo(top)
        misleading = {name: os.environ.pop(name) for name in ("TASK_DB_PATH", "WORKSPACE_ID") if name in os.environ}
        named = f" --db {shlex.quote(str(database))}" if misleading else ""  # in a terminal that has them too
        tasks = format_count(sum(len(tasks) for *_, tasks in DEMO_STREAMS), "task")
        click.echo(f"A project with {len(DEMO_STREAMS)} streams and {tasks}: {project.root}")
        click.echo("Its workers are simulated: no Claude runs, and their costs are made up.")
        click.echo("To watch it from another terminal:")
        watch = shlex.quote(str(project.folder / "watch-status"))
        click.echo(f"  {watch} 1{named}\n")
        # -S: it needs the standard library alone, and starts in half the time.
        command = Command((sys.executable, "-S", str(top / "claude.py"), str(DEMO_TASK), str(DEMO_COST)))
        options: dict[str, Any] = {"as_json": False, "no_worktrees": False, "notify": None, "setup": ""}
        options.update(stop_on_exit=True, poll_interval=POLL_INTERVAL, warnings=())
        options.update(has_next=False)
        limits = Limits(max_restarts=3, exit_on_blocked=True)  # what goes wrong in a demo shall not drag on
        PROGRAM[:], PLACE[:] = [sys.executable, str(project.folder / "orchestrate.py")], shlex.split(named)
        code = run_in_foreground(project, database, command, limits, options)
        if code == EXIT_DONE:
            click.echo(f"\n{format_demo_end(project, keep, named)}")
        elif not keep:
            with contextlib.suppress(OSError):  # nobody listens any more
                click.echo(f"{project.root} is removed.")
    return code


def make_demo(top: Path) -> tuple[Project, Path]:
    """Make the demo's project, its database and what plays claude in a folder. Raises OSError, OrchestrateError."""
    project = Project(top / "my-project")
    database = top / "tasks" / project.name / "tasks.db"
    database.parent.mkdir(parents=True)
    with contextlib.closing(sqlite3.connect(str(database), isolation_level=None)) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.executescript(DEMO_SCHEMA)
        now = format_time(time.time())
        for stream_id, phase, name, tasks in DEMO_STREAMS:
            for title, _, twist in (task.partition(": ") for task in tasks):
                metadata = {"streamId": stream_id, "streamName": name, "streamPhase": phase, "demo": twist}
                row = (f"TASK-{zlib.crc32(title.encode()):08x}", title, json.dumps(metadata), now, now)
                columns = "id, title, metadata, created_at, updated_at"
                connection.execute(f"INSERT INTO tasks ({columns}) VALUES (?, ?, ?, ?, ?)", row)
    write_file(top / "claude.py", DEMO_WORKER)
    project.root.mkdir()
    servers = {"mcpServers": {SERVER: {"command": "true", "env": database_variables(database)}}}
    write_file(project.root / ".mcp.json", f"{json.dumps(servers, indent=2)}\n")
    generate(project)
    git = Git(project.root)
    with contextlib.suppress(OrchestrateError):  # there is no git: all work in one folder then, and the run says so
        git.run("init", "--quiet")
        git.run("symbolic-ref", "HEAD", "refs/heads/main")
        for setting in ("user.name=Demo", "user.email=demo@localhost", "commit.gpgSign=false"):
            git.run("config", *setting.split("="))
        git.run("add", "--all")
        git.run("commit", "--quiet", "--message", "Begin")
    return project, database


def format_demo_end(project: Project, keep: bool, named: str) -> str:
    script = "python3 .claude/orchestrator/orchestrate.py"  # any will do
    branches = "Each worked on a branch of its own; Stream-D has merged them."
    if not (project.root / ".git").exists():
        branches = "There is no git: all worked in one folder, not on a branch of its own each."
    place = f"It lay in {project.root}, and is removed now.\n`demo --keep` leaves it."
    if keep:
        looks = [f"{script} {w}{named}" for w in ("status", "logs Stream-B --no-follow", "timeline --html night.html")]
        look = [f"cd {shlex.quote(str(project.root))}", *looks, "git log --graph --oneline"]
        place = "\n".join(["Look around:", *(f"  {line}" for line in look)])
    return f"""\
What was arranged: a worker of Stream-B crashed, and another one went on.
Stream-C was blocked by a question, and went on once Stream-B had answered it.
{branches}

{place}

In a project of your own, with streams in Task Copilot:
  {shlex.join(find_program())} generate DIR
  cd DIR
  {script} doctor
  {script} start"""


Checked = Tuple[str, str]  # what was found, and the remedy where it is not as it should be


@cli.command("doctor")
@project_options
@click.option(
    "--claude",
    envvar=["ORCHESTRATE_DOCTOR_CLAUDE", "ORCHESTRATE_START_CLAUDE"],
    default="claude",
    show_default=True,
    metavar="CMD",
    help="Command to run in place of claude.",
)
@json_option("DOCTOR", "Write one JSON object.")
def doctor_command(claude: str, as_json: bool) -> int:
    """Check what a run needs, and say how to fix what is missing.

    It exits with 1 if a run would fail.

    \b
    Examples:
      python orchestrate.py doctor
      python orchestrate.py doctor --claude "nice -n 10 claude"
    """
    command, project = read_command(claude, "stream-json", Path.cwd()), find_current_project(checks=False)
    checks: dict[str, Callable[[], list[Checked]]] = {
        "Python": check_packages,
        "Claude": functools.partial(check_claude, project, command),
        "Project": functools.partial(check_folders, project),
        "Git": functools.partial(check_git, project),
        "Orchestrator": functools.partial(check_orchestrator, project),
        "Task Copilot": functools.partial(check_server, project),
        "Database": functools.partial(check_database, project),
        "Streams": functools.partial(check_streams, project),
    }
    findings: list[Finding] = []
    for subject, check in checks.items():
        try:
            parts = check()
            remedy = " ".join(remedy for _, remedy in parts if remedy)
            found = "; ".join(words for words, _ in parts)
            findings.append((subject, "warning" if remedy else "ok", found, remedy))
        except OrchestrateError as error:
            findings.append((subject, "error", error.message, error.remedy))
        except OSError as error:
            findings.append((subject, "error", str(error), "Look at that file or folder: its owner, its mode."))
    is_ready = not any(level == "error" for _, level, *_ in findings)
    if as_json:
        names = ("subject", "level", "found", "remedy")
        shown = [dict(zip(names, (*finding[:3], finding[3] or None))) for finding in findings]
        result = {"version": JSON_VERSION, "time": format_time(time.time()), "ready": is_ready, "checks": shown}
        click.echo(format_json(result, indent=2))
    else:
        console = make_console()
        console.print(render_findings(findings, line_width(console)), soft_wrap=True)
    return EXIT_DONE if is_ready else EXIT_FAILED


def check_packages() -> list[Checked]:
    import importlib.metadata

    python = f"{sys.version.split()[0]} ({sys.executable})"
    needed = [f"{name} {least}" for name, least in PACKAGES.items()]
    try:
        versions = {name: importlib.metadata.version(name) for name in PACKAGES}
    except importlib.metadata.PackageNotFoundError as error:
        found = f"{python}; {error.name} does not tell its version"
        return [(found, f"Needed are {', '.join(needed)}, or newer.")]
    old = [name for name, least in PACKAGES.items() if read_version(versions[name]) < read_version(least)]
    found = ", ".join(f"{name} {version}" for name, version in versions.items())
    if old:
        wanted = " ".join(f"'{name}>={PACKAGES[name]}'" for name in old)
        raise OrchestrateError(f"too old: {found}", f"{sys.executable} -m pip install {wanted}")
    return [(f"{python}; {found}", "")]


def read_version(text: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", text)[:2])


def check_claude(project: Project, command: Command) -> list[Checked]:
    """Say which claude this is, and for whom. Raises OrchestrateError where it lacks what workers need."""
    path, is_root = command.find(os.environ), os.geteuid() == 0
    sandbox = ", in a sandbox (IS_SANDBOX)" if os.environ.get("IS_SANDBOX") == "1" else ""
    user = f"root{sandbox}" if is_root else f"user {os.geteuid()}"
    environ = {**keep_variables(os.environ), "ORCHESTRATE_PROJECT": str(project.root)}  # a sandbox needs to know it
    with contextlib.suppress(OrchestrateError), open_store(project) as store:
        environ.update(database_variables(store.path))
    usage = ask_claude(command, "--help", environ, project.root)
    version = usage and ask_claude(command, "--version", environ, project.root)  # what hangs is asked once
    wanted = command.argv("")[len(command.words) : -2]  # without the prompt
    missing = [word for word in wanted if word not in usage]
    if not usage:
        return [(f"{path} does not answer --help", "Whether workers can use it is not known; try it by hand.")]
    if missing:
        raise OrchestrateError(f"{path} ({version}) is too old: it has no {', '.join(missing)}", "Run: claude update")
    return [(f"{version} ({path}), run as {user}", "")]


def ask_claude(command: Command, word: str, environ: Mapping[str, str], cwd: Path) -> str:
    """Return what claude prints for an option that does nothing else; empty where it fails."""
    with contextlib.suppress(OSError):
        code, out, _ = run_bounded([*command.words, word], CLAUDE_TIMEOUT, environ, cwd)
        return "" if code else out.strip()
    return ""


def check_folders(project: Project) -> list[Checked]:
    check_state(project)
    for folder in (project.pids, project.logs, project.worktrees):
        there = next(path for path in (folder, *folder.parents) if path.exists())
        if not os.access(there, os.W_OK | os.X_OK):
            way = f"Let its owner allow it: chmod u+wx {shlex.quote(str(there))}"
            raise OrchestrateError(f"{there} is not writable", way)
    disk = os.statvfs(project.root)
    free = disk.f_bavail * disk.f_frsize
    remedy = "Logs, and a worktree for each parallel stream, need room: free some." if free < DISK_LEAST else ""
    return [(str(project.root), ""), (f"{free / (1 << 30):.1f} GiB free", remedy)]


def check_git(project: Project) -> list[Checked]:
    streams: Sequence[Stream] = ()
    with contextlib.suppress(OrchestrateError), open_store(project) as store:  # what is wrong with it, others say
        streams = [stream for stream in store.read().streams if not stream.is_complete]
    git, history = Git(project.root), read_history(project)
    folders = {stream_id: record.folder for stream_id, record in history.records.items()}
    repository, problems = look_ahead(project, git, streams, folders, "")
    if repository.obstacle:
        remedy = "git init && git add --all && git commit -m Begin; then each parallel stream has its own worktree."
        return [(f"no worktrees, all streams would work in one folder: {repository.obstacle}", remedy)]
    version = git.run("--version").strip()
    with contextlib.suppress(GitError):
        seen, ignored = read_root(project, repository._replace(git=repository.git.hurry()))
        missing = find_missing_files(git.hurry(), ignored)
        if seen:
            what = f"Uncommitted changes: the streams branch from the last commit, without {format_names(list(seen))}"
            problems.append((what, "Commit what the workers need."))
        if missing and not has_include(project, repository) and not find_setup(project, git, "")[0]:
            what = f"The worktrees lack what git ignores: {format_names(missing, 6)}"
            make = hint("start", "--setup", "npm ci")
            way = f"List them in .worktreeinclude to have them copied, or let a command make them, as here:\n{make}"
            problems.append((what, way))
    is_old = read_version(version) < (2, 38)
    old = "Update git: from 2.38 on a branch that was squashed counts as merged." if is_old else ""
    return [(f"{version}, {repository.place}", old), *problems]


def check_orchestrator(project: Project) -> list[Checked]:
    pid = read_orchestrator_pid(project)
    if pid:
        raise OrchestrateError(*describe_running(pid), EXIT_RUNNING)
    rival: Sequence[str] = ()
    with contextlib.suppress(OrchestrateError), open_store(project) as store:  # what is wrong with it, others say
        rival = read_lock(lock_database(project, store.path).path)
    if rival:
        raise OrchestrateError(*describe_rival(project, rival), EXIT_RUNNING)
    found = discover_workers(project, read_history(project).records)
    if found.workers:
        names = format_names([f"{i} (PID {','.join(map(str, found.trees[i]))})" for i in found.workers])
        return [(f"workers of an earlier run: {names}", f"Take them over: {hint('start')}\nEnd them: {hint('stop')}")]
    if found.foreign:
        others = "; ".join(f"{i} {reason}" for i, reason in found.foreign.items())
        return [(others, "Nothing to do: the stream starts when that has ended.")]
    if found.stale:
        reasons = "; ".join(f"{path.name}: {reason}" for path, reason in found.stale.items())
        return [(f"PID files without a worker: {reasons}", "Nothing to do: `start` removes them, as does `clean`.")]
    return [("none runs", "")]


def check_server(project: Project) -> list[Checked]:
    """Say how workers reach Task Copilot. Raises OrchestrateError where the server that is named can't be started."""
    server = read_server(project, os.environ)
    found, remedy = "task-copilot, from ~/.claude.json", ""
    if server is not None:
        words = server[0]
        for word in find_missing(project, words):
            raise OrchestrateError(
                f"the task-copilot server of .mcp.json can't be started: there is no {word}",
                "Install Task Copilot (npm install && npm run build in its folder), or correct .mcp.json.",
            )
        found = f"task-copilot, from .mcp.json{f' ({shlex.join(words)})' if words else ''}"
    else:
        settings: Any = {}  # the user's own, for this project or for all
        with contextlib.suppress(OSError, ValueError, AttributeError, TypeError, RecursionError):
            given = json.loads((Path.home() / ".claude.json").read_text(encoding="utf-8"))
            settings = {**(given.get("projects", {}).get(str(project.root), {}).get("mcpServers") or {})}
            settings.update(given.get("mcpServers") or {})
        if SERVER not in settings:
            found = f"no task-copilot server in {project.root / '.mcp.json'}, or in ~/.claude.json"
            remedy = "Without its tools a worker can't complete a task: run /setup-project in Claude Code."
    for base in (project.root, Path.home()):
        for path in (base / ".claude/commands/continue.md", base / ".claude/skills/continue/SKILL.md"):
            if path.is_file():
                return [(found, remedy), (f"/continue: {path}", "")]
    lost = "The prompt begins with /continue: run /setup-project, or write your own."
    return [(found, remedy), ("no /continue in .claude/commands", lost)]


def find_missing(project: Project, words: Sequence[str]) -> list[str]:
    """Return what a server's command names and is not there: its program, or the script that an interpreter is given.

    Anything else may be an option, a script of a shell, an address, or a path in a container.
    """
    program, script = [*words, "", ""][:2]
    there = shutil.which(str(project.root / program) if os.sep in program else program)
    missing = [program] if program and not there else []
    if Path(program).name in ("node", "bun", "tsx", "sh", "python", "python3") and not script.startswith("-"):
        with contextlib.suppress(OSError):  # too long for a path
            is_file = Path(script).suffix in (".js", ".mjs", ".cjs", ".ts", ".py") and "://" not in script
            missing += [script] if is_file and not (project.root / script).exists() else []
    return missing


def check_database(project: Project) -> list[Checked]:
    with open_store(project) as store:
        database = store.path
        for path in (database, database.parent):
            if not os.access(path, os.W_OK):
                way = f"chmod u+w {shlex.quote(str(path))}"
                raise OrchestrateError(f"{path} is not writable: workers could complete no task", way)
        version = store.read_version()
    tried = f"This program was tried with versions up to {SCHEMA_VERSION}: look for a newer one."
    schema = (f"version {version}" if version else "without a version", tried if version > SCHEMA_VERSION else "")
    is_named = database.name == "tasks.db"
    name = (str(database), "") if is_named else (_WRONG_NAME.format(database.name), "Name the file tasks.db.")
    return [name, schema]


def check_streams(project: Project) -> list[Checked]:
    with open_store(project) as store:
        snapshot = check_run(project, store, Limits())
        unassigned = store.read().unassigned
    streams, count = snapshot.streams, {phase: sum(s.phase is phase for s in snapshot.streams) for phase in Phase}
    found = (
        f"{format_count(len(streams), 'stream')}: {', '.join(f'{n} {phase.value}' for phase, n in count.items() if n)}"
    )
    many = f"More than {PARALLEL_MOST} parallel streams are hard to merge: split them into phases."
    total, completed = sum(s.total for s in streams), sum(s.completed for s in streams)
    odd = [f"{format_count(unassigned, 'open task')} without a stream"] if unassigned else []
    odd += snapshot.warnings
    remedy = "Correct their metadata (streamId, streamName, streamPhase): no worker gets what has no stream."
    return [
        (found, many if count[Phase.PARALLEL] > PARALLEL_MOST else ""),
        ("; ".join([f"{completed} of {total} tasks completed", *odd]), remedy if odd else ""),
    ]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line, and return the exit code: the one place that turns errors into exit codes."""
    words = list(sys.argv[1:] if argv is None else argv)
    PROGRAM[:], PLACE[:] = find_program(), []
    codecs.register_error("orchestrate", replace_unencodable)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            # A terminal that lacks a character shows another.
            stream.reconfigure(encoding=sys._xoptions.get("orchestrate"), errors="orchestrate")
    try:
        # The wrappers import this file, and are no program of their own.
        name = "orchestrate.py" if sys.argv[0] == "-c" else None
        return int(cli.main(words, name, standalone_mode=False, obj={"argv": words}) or EXIT_DONE)
    except click.UsageError as error:
        command = error.ctx.command if error.ctx else cli
        path = [command.name or ""] if command is not cli else []
        click.echo(f"[ERROR] {error.format_message()}\nSee: {shlex.join([*PROGRAM, *path, '--help'])}", err=True)
        return EXIT_USAGE
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        return 128 + signal.SIGINT
    except OSError as error:
        what, remedy = str(error), "Look at that file or folder: its owner, its mode, the room on its disk."
        if isinstance(error, GitError):
            remedy = "Look at what git says in the project's folder: git status"
        elif isinstance(error, FileNotFoundError) and error.filename is None:  # of the working directory alone
            what, remedy = "The folder that you are in is gone.", "Go to the project's folder with cd."
        OrchestrateError(what, remedy).show()
        return EXIT_USAGE


def find_program() -> list[str]:
    """Return the words that called this program, as a person can type them."""
    script, python = sys.argv[0], [*getattr(sys, "orig_argv", ()), sys.executable][0]
    if script == "-c":  # by a wrapper
        script = os.path.relpath(__file__)
        script = str(Path(__file__).absolute()) if script.startswith(os.pardir) else script
    elif not script.endswith(".py"):  # installed as a command
        name = Path(script).name
        return [name if shutil.which(name) == script else script]
    if "UV_RUN_RECURSION_DEPTH" in os.environ and python == sys.executable:
        return ["uv", "run", script]
    return ["python3" if PYTHON and os.sep in python else python, script]  # any will do for an installed copy


def run_script() -> NoReturn:
    if sys.executable and sys.getfilesystemencoding().lower() != "utf-8":
        # Where a locale says so, names in other scripts could be no argument, path or variable. What is printed
        # keeps to the locale: what lacks a character shows another.
        words = ["-X", "utf8", "-X", f"orchestrate={getattr(sys.stdout, 'encoding', None) or 'ascii'}", __file__]
        os.execv(sys.executable, [sys.executable, *words, *sys.argv[1:]])
    code = main()
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError:  # nobody takes what is left (`… | head`): keep Python from complaining about it at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(code)


if __name__ == "__main__":
    run_script()
