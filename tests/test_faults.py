"""The fault matrix: each test forces one fault with real processes, and looks at the process table and the files.

The number in a test's name and docstring is its row in the matrix.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import hashlib
import json
import os
import pty
import re
import resource
import select
import shutil
import signal
import sqlite3
import struct
import subprocess
import sys
import termios
import threading
import time
from contextlib import closing
from pathlib import Path
from typing import Any, Callable, Iterator

import psutil
import pytest
from cli_endings import SCENARIOS
from support import SCRIPT, TaskDatabase, Workspace, hasten, is_running, own_processes, wait_until

from orchestrate import read_time

# Longer than any test: whatever goes on without it was noticed by itself.
NO_POLL = ("--poll-interval", "600")

# The program as a module, so that a script can stand between its import and its start.
IMPORT = f"import os, signal, sys\nsys.path.insert(0, {str(SCRIPT.parent)!r})\nimport orchestrate\n"
RUN = "code = orchestrate.main()\norchestrate.flush_output()\nsys.exit(code)\n"


@contextlib.contextmanager
def stranger(*words: str, **options: Any) -> Iterator[int]:
    """Run a program that has nothing to do with any project, and yield its PID; fail where a signal reached it."""
    with subprocess.Popen(words or ["sleep", "600"], **options) as process:
        try:
            yield process.pid
            assert process.poll() is None, "the stranger was signalled"
        finally:
            process.kill()


def dead_pid() -> int:
    """Return a PID that nobody has: that of a process that has just been reaped."""
    process = subprocess.Popen(["true"])
    process.wait()
    return process.pid


def write_pid(workspace: Workspace, stream: str, text: str) -> Path:
    """Write a PID file as an earlier run may have left it."""
    (workspace.state / "pids").mkdir(parents=True, exist_ok=True)
    path = workspace.state / "pids" / f"{stream}.pid"
    path.write_text(text)
    return path


def write_script(workspace: Workspace, text: str) -> Path:
    """Write a script beside the project."""
    path = workspace.root.parent / "script.py"
    path.write_text(text)
    return path


def kill(process: subprocess.Popen[str]) -> None:
    """End a process as `kill -9` does."""
    process.kill()
    process.wait()


def touch(workspace: Workspace, name: str) -> None:
    """Let workers go on that wait for this file."""
    (workspace.root / name).touch()


def living(workspace: Workspace, stream: str) -> list[int]:
    """Return the living processes whose environment says that they belong to a stream."""
    found = own_processes(workspace.root)
    return [process.pid for process in found if process.info["environ"]["ORCHESTRATE_STREAM"] == stream]


def wait_for_ends(workspace: Workspace, stream: str, count: int) -> dict[str, Any]:
    """Wait until so many workers of a stream have ended, and return the last of these events."""

    def read_ends() -> list[dict[str, Any]]:
        return [event for event in workspace.events("worker_ended") if event["stream"] == stream]

    wait_until(lambda: len(read_ends()) >= count, f"end {count} of a worker of {stream}")
    return read_ends()[-1]


# ── 1 to 4: PID files that lie ────────────────────────────────────────────────────────────────────────────────────────


def test_fault_01_a_stranger_with_a_workers_pid_is_never_signalled(workspace: Workspace) -> None:
    """Row 1: PID reuse, of a worker's PID file and of the orchestrator's."""
    workspace.database.add_stream("A")
    with stranger(start_new_session=True) as pid:
        path = write_pid(workspace, "A", f"{pid}\n")
        (workspace.state / "orchestrator.pid").write_text(f"{pid}\n")
        assert workspace.run("stop").returncode == 0
        assert workspace.run("stop", "A").returncode == 0
        path.write_text(f"{pid}\n")
        done = workspace.run("start", *NO_POLL)
        assert done.returncode == 0
        assert f"Removed stale PID file A.pid: process {pid} is another program" in done.stdout
    assert workspace.starts() == ["A"]
    assert not path.exists()


def test_fault_01_a_worker_of_another_stream_is_not_taken_for_this_streams_worker(workspace: Workspace) -> None:
    """Row 1: the PID that a file names now belongs to the worker of another stream."""
    workspace.database.add_stream("A")
    workspace.database.add_stream("B")
    workspace.play(A="until=go all", B="exit=1")
    first = workspace.popen("start", "--max-restarts", "0")
    pid = workspace.wait_for_worker("A")
    wait_for_ends(workspace, "B", 1)
    kill(first)
    write_pid(workspace, "B", f"{pid}\n")
    workspace.play(A="until=go all", B="all")
    run = workspace.popen("start", *NO_POLL)
    wait_until(lambda: len(workspace.starts("B")) == 2, "a new worker of B")
    assert living(workspace, "A") == [pid]
    touch(workspace, "go")
    assert run.wait(timeout=20) == 0
    assert workspace.starts("A") == ["A"]
    assert [event["stream"] for event in workspace.events("worker_adopted")] == ["A"]


def test_fault_02_state_that_a_reboot_left_does_not_keep_anything_from_starting(workspace: Workspace) -> None:
    """Row 2: no process of the journal lives, its monotonic times lie in the future, and a stranger has one PID."""
    for stream in ("A", "B", "C"):
        workspace.database.add_stream(stream)
    workspace.play("hang")
    first = workspace.popen("start")
    pids = {stream: workspace.wait_for_worker(stream) for stream in ("A", "B", "C")}
    kill(first)
    for process in own_processes(workspace.root):
        process.kill()
    wait_until(lambda: own_processes(workspace.root) == [], "the end of the workers")
    journal = workspace.state / "events.jsonl"
    events = [{**event, "clock": event["clock"] + 1e7} for event in workspace.events()]
    journal.write_text("".join(f"{json.dumps(event)}\n" for event in events))
    workspace.play("all")
    with stranger() as pid:
        other = f"process {pid}"
        write_pid(workspace, "C", f"{pid}\n")
        done = workspace.run("start", *NO_POLL)
    assert (done.returncode, done.stderr) == (0, "")
    words = {f"{stream}.pid": f"process {pids[stream]} is gone" for stream in ("A", "B")}
    stale = workspace.events("stale_pid_file")
    assert {event["file"]: event["reason"] for event in stale} == {**words, "C.pid": f"{other} is another program"}
    assert done.stdout.count("Removed stale PID file") == len(stale) == 3
    assert sorted(workspace.starts()) == ["A", "A", "B", "B", "C", "C"]
    assert min(event["seconds"] for event in workspace.events("worker_ended")) >= 0


# Root without its capabilities sees and signals no more of other users' processes than anybody else does.
PR_CAPBSET_DROP = 24
POWERLESS = f"""
import ctypes, os, sys
if os.geteuid() == 0:
    libc, capability = ctypes.CDLL(None), 0
    while libc.prctl({PR_CAPBSET_DROP}, capability, 0, 0, 0) == 0:
        capability += 1
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
"""
NOBODY = 65534
AS_NOBODY = f"import os, sys; os.setgid({NOBODY}); os.setuid({NOBODY}); os.execv(sys.argv[1], ['sleep', '600'])"


@contextlib.contextmanager
def process_of_another_user() -> Iterator[int]:
    """Yield the PID of a living process that another user has."""
    if os.geteuid() == 0:
        with stranger(sys.executable, "-c", AS_NOBODY, shutil.which("sleep") or "") as pid:
            wait_until(lambda: psutil.Process(pid).name() == "sleep", "the process of another user")
            assert psutil.Process(pid).uids().real == NOBODY
            yield pid
        return
    others = [p.pid for p in psutil.process_iter(["uids"]) if p.pid > 1 and p.info["uids"].real != os.getuid()]
    if not others:
        pytest.skip("this system shows no process of another user")
    yield others[0]
    assert is_running(others[0])


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "prctl"), reason="without Linux, root can't give up its power")
def test_fault_03_a_process_of_another_user_whose_environment_is_hidden_is_left_alone(workspace: Workspace) -> None:
    """Row 3: for one who can't look into it, as root without its power or as anybody."""
    workspace.database.add_stream("A")
    script = write_script(workspace, POWERLESS)
    look = "import psutil\ntry: psutil.Process({}).environ()\nexcept psutil.AccessDenied: print('hidden')"
    with process_of_another_user() as pid:
        assert workspace.run("-c", look.format(pid), script=script).stdout == "hidden\n"
        write_pid(workspace, "A", f"{pid}\n")
        assert "(PID" not in workspace.run(str(SCRIPT), "status", script=script).stdout
        assert workspace.run(str(SCRIPT), "stop", "A", script=script).returncode == 0
        write_pid(workspace, "A", f"{pid}\n")
        done = workspace.run(str(SCRIPT), "start", *NO_POLL, script=script)
        assert done.returncode == 0, done.stderr
        assert f"Removed stale PID file A.pid: process {pid} is another program" in done.stdout
    assert workspace.starts() == ["A"]


def test_fault_03_a_process_of_another_user_is_left_alone(workspace: Workspace) -> None:
    """Row 3: alive, not ours; root could end it, and does not."""
    workspace.database.add_stream("A")
    with process_of_another_user() as pid:
        write_pid(workspace, "A", f"{pid}\n")
        assert workspace.run("stop").returncode == 0
        assert workspace.run("stop", "A").returncode == 0
        write_pid(workspace, "A", f"{pid}\n")
        done = workspace.run("start", *NO_POLL)
        assert (done.returncode, done.stderr) == (0, "")
        assert f"Removed stale PID file A.pid: process {pid} is another program" in done.stdout
    assert workspace.starts() == ["A"]


def test_fault_04_a_pid_file_that_holds_no_pid_is_stale_and_nothing_is_signalled(workspace: Workspace) -> None:
    """Row 4: empty, garbage, negative, 0, 1, huge; minus a PID would be a whole group, 0 our own, -1 everything."""
    with stranger(start_new_session=True) as leader, stranger():
        contents = {
            "empty": "", "garbage": "\x00\ufffd[]\n", "text": "Stream\n", "zero": "0\n", "one": "1\n", "all": "-1\n",
            "group": f"-{leader}\n", "plus": f"+{leader}\n", "two": f"{leader} {leader}\n", "float": f"{leader}.0\n",
            "digits": "\u0661\u0662\n", "long": "9" * 5000, "int": f"{2**31 + leader}\n", "word": f"{2**32 + leader}\n",
        }  # fmt: skip
        for stream in contents:
            workspace.database.add_stream(stream)
        for command in (["status"], ["stop"], ["stop", *contents], ["start", "--max-workers", "20", *NO_POLL]):
            for stream, text in contents.items():
                write_pid(workspace, stream, text)
            done = workspace.run(*command)
            assert (done.returncode, done.stderr) == (0, ""), command
    assert sorted(event["file"] for event in workspace.events("stale_pid_file")) == sorted(f"{i}.pid" for i in contents)
    assert done.stdout.count("Removed stale PID file") == len(contents)
    assert sorted(workspace.starts()) == sorted(contents)
    assert list((workspace.state / "pids").glob("*.pid")) == []


# ── 5: a wall clock that steps ────────────────────────────────────────────────────────────────────────────────────────

# What a step of the machine's clock changes for a process: the wall clock, and the boot time that the kernel derives
# from it. The offset in seconds lies in a file that is mapped, so that a step reaches everything that runs already.
CLOCK_SHIM = r"""
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>
static volatile long long *offset;
static int open_file(const char *path, int flags, int mode) {
    if (path && !strcmp(path, "/proc/stat") && getenv("CLOCK_STAT")) path = getenv("CLOCK_STAT");
    return syscall(SYS_openat, AT_FDCWD, path, flags, mode);
}
__attribute__((constructor)) static void begin(void) {
    int file = getenv("CLOCK_OFFSET") ? open_file(getenv("CLOCK_OFFSET"), O_RDONLY | O_CLOEXEC, 0) : -1;
    void *map = file < 0 ? MAP_FAILED : mmap(0, sizeof *offset, PROT_READ, MAP_SHARED, file, 0);
    if (map != MAP_FAILED) offset = map;
    if (file >= 0) close(file);
}
int clock_gettime(clockid_t id, struct timespec *now) {
    int result = syscall(SYS_clock_gettime, id, now);
    if (!result && offset && id == CLOCK_REALTIME) now->tv_sec += *offset;
    return result;
}
int gettimeofday(struct timeval *now, void *zone) {
    struct timespec exact;
    (void)zone;
    clock_gettime(CLOCK_REALTIME, &exact);
    now->tv_sec = exact.tv_sec;
    now->tv_usec = exact.tv_nsec / 1000;
    return 0;
}
time_t time(time_t *result) {
    struct timespec exact;
    clock_gettime(CLOCK_REALTIME, &exact);
    if (result) *result = exact.tv_sec;
    return exact.tv_sec;
}
int open(const char *path, int flags, ...) {
    va_list more; va_start(more, flags); int mode = va_arg(more, int); va_end(more);
    return open_file(path, flags, mode);
}
int open64(const char *path, int flags, ...) {
    va_list more; va_start(more, flags); int mode = va_arg(more, int); va_end(more);
    return open_file(path, flags | O_LARGEFILE, mode);
}
"""
CLOCK_PATCH = """
import os, time
real = time.time
def shifted():
    with open(os.environ["CLOCK_OFFSET"], "rb") as file:
        return real() + int.from_bytes(file.read(), sys.byteorder, signed=True)
import sys
time.time = shifted
"""


class SteppingClock:
    """A wall clock for the processes with this environment: of libc by a shim, or of Python alone by a patch."""

    def __init__(self, folder: Path, is_libc: bool) -> None:
        self._offset, self._stat = folder / "offset", folder / "stat"
        self.environment = {"CLOCK_OFFSET": str(self._offset)}
        if is_libc:
            (folder / "clock.c").write_text(CLOCK_SHIM)
            library = folder / "clock.so"
            words = ["cc", "-shared", "-fPIC", "-O1", "-o", str(library), str(folder / "clock.c")]
            subprocess.run(words, check=True)
            self.environment.update(LD_PRELOAD=str(library), CLOCK_STAT=str(self._stat))
        else:
            (folder / "sitecustomize.py").write_text(CLOCK_PATCH)
            self.environment["PYTHONPATH"] = str(folder)
        self._offset.write_bytes(struct.pack("=q", 0))
        self.step_to(0)

    def step_to(self, seconds: int) -> None:
        """Let the wall clock be so far from the true time."""
        stat = Path("/proc/stat")
        if stat.exists():
            moved = re.sub(r"(?m)^btime (\d+)", lambda m: f"btime {int(m[1]) + seconds}", stat.read_text())
            self._stat.write_text(moved)
        with self._offset.open("r+b") as file:
            file.write(struct.pack("=q", seconds))


def has_libc_shim() -> bool:
    """Whether a shim can be built here, and the dynamic linker takes it."""
    return sys.platform == "linux" and sys.maxsize > 2**32 and shutil.which("cc") is not None


def test_fault_05_steps_of_the_wall_clock_change_no_identity_backoff_or_timer(
    workspace: Workspace, tmp_path: Path
) -> None:
    """Row 5: an hour on, two hours back; one worker runs, one is in its pauses, one in its grace."""
    clock = SteppingClock(tmp_path, has_libc_shim())
    for stream in ("Runs", "Fails", "Finishes"):
        workspace.database.add_stream(stream)
    workspace.play(Runs="until=go all", Fails=["exit=1", "exit=1", "all"], Finishes="all until=go")
    words = ("start", "--stall-timeout", "30", *NO_POLL)
    first = workspace.popen(*words, env=clock.environment)
    pids = [workspace.wait_for_worker(stream) for stream in ("Runs", "Finishes")]
    wait_for_ends(workspace, "Fails", 1)
    clock.step_to(3600)
    wait_for_ends(workspace, "Fails", 2)
    clock.step_to(-3600)
    wait_until(lambda: len(workspace.starts("Fails")) == 3, "the second restart")
    kill(first)
    second = workspace.popen(*words, env=clock.environment)
    wait_until(lambda: len(workspace.events("worker_adopted")) >= 2, "the workers to be taken over")
    clock.step_to(3600)
    touch(workspace, "go")
    assert second.wait(timeout=20) == 0
    assert sorted(workspace.starts()) == ["Fails"] * 3 + ["Finishes", "Runs"]
    assert {event["pid"] for event in workspace.events("worker_adopted")} >= set(pids)
    assert workspace.events("worker_stopping", "worker_killed") == []
    assert {event["file"] for event in workspace.events("stale_pid_file")} <= {"Fails.pid"}
    check_pauses(workspace)
    steps = {round((read_time(event["time"]) - event["clock"]) / 3600, 2) for event in workspace.events()}
    assert {round(step - min(steps)) for step in steps} == {0, 1, 2}, "the clock was not stepped"


def test_fault_05_a_pause_ends_when_the_wall_clock_says_so(workspace: Workspace, tmp_path: Path) -> None:
    """Row 5: the machine has slept for the hour of a usage limit, or its clock was put right."""
    clock = SteppingClock(tmp_path, has_libc_shim())
    workspace.database.add_stream("A")
    workspace.play(A=["limit=3600", "all"])
    run = workspace.popen("start", *NO_POLL, env=clock.environment)
    wait_until(lambda: workspace.events("run_paused"), "the pause")
    clock.step_to(-3600)
    wait_until(lambda: "Paused for 1h 59m" in workspace.run("status", env=clock.environment).stdout, "a longer pause")
    assert workspace.starts() == ["A"]
    clock.step_to(3602)
    assert run.wait(timeout=20) == 0
    assert workspace.starts() == ["A", "A"]


def check_pauses(workspace: Workspace) -> None:
    """Check that each restart came when its pause was over, in monotonic seconds: not early, not an hour late."""
    events = [e for e in workspace.events("worker_started", "worker_ended") if e["stream"] == "Fails"]
    pauses = [(e["delay"], n["clock"] - e["clock"]) for e, n in zip(events, events[1:]) if e.get("delay")]
    assert len(pauses) == 2
    assert all(delay - 0.01 <= taken < 60 for delay, taken in pauses)


# ── 6 to 12: ends, and orchestrators that come and go ─────────────────────────────────────────────────────────────────


def test_fault_06_a_worker_that_dies_at_once_is_reaped_and_restarted(workspace: Workspace) -> None:
    """Row 6: by exit and by signal; in the pauses no zombie is left."""
    workspace.database.add_stream("A")
    workspace.play(A=["exit=7", "die=9", "all"])
    run = workspace.popen("start", *NO_POLL)
    for count in (1, 2):
        wait_for_ends(workspace, "A", count)
        assert psutil.Process(run.pid).children() == []
        assert workspace.pid("A") == 0
    assert run.wait(timeout=20) == 0
    assert [event["exit_code"] for event in workspace.events("worker_ended")] == [7, -9, 0]
    assert workspace.starts() == ["A"] * 3


@pytest.mark.slow
def test_fault_07_of_twenty_simultaneous_starts_exactly_one_runs(workspace: Workspace) -> None:
    """Row 7: all stand ready behind one pipe, whose end sets them off."""
    for stream in ("A", "B"):
        workspace.database.add_stream(stream)
    workspace.play("until=go all")
    (ready, is_ready), (gate, opener) = os.pipe(), os.pipe()
    script = write_script(workspace, f"{IMPORT}os.write({is_ready}, b'.')\nos.read({gate}, 1)\n{RUN}")
    runs = [workspace.popen("start", script=script, pass_fds=(is_ready, gate)) for _ in range(20)]
    os.close(is_ready)
    for _ in runs:
        assert os.read(ready, 1), "they ended before they were ready"
    os.close(opener)
    wait_until(lambda: sum(run.poll() is None for run in runs) <= 1, "all but one to end", 60)
    (winner,) = (run for run in runs if run.poll() is None)
    losers = [run for run in runs if run is not winner]
    assert [run.returncode for run in losers] == [75] * 19
    words = f"[ERROR] An orchestrator already runs for this project (PID {winner.pid})"
    assert {run.communicate()[1].splitlines()[0] for run in losers} == {words}
    touch(workspace, "go")
    assert winner.wait(timeout=20) == 0
    assert sorted(workspace.starts()) == ["A", "B"]
    for descriptor in (ready, gate):
        os.close(descriptor)


@pytest.mark.slow
def test_fault_08_twenty_kills_of_the_orchestrator_never_make_two_workers(workspace: Workspace) -> None:
    """Row 8: killed with the lock just taken, at the start of the run, or with the workers taken over."""
    for stream in ("A", "B"):
        workspace.database.add_stream(stream)
    workspace.play("setsid until=go all")
    run = workspace.popen("start")
    pids = {stream: workspace.wait_for_worker(stream) for stream in ("A", "B")}
    wait_until(lambda: len(workspace.children()) == 2, "the workers' children")
    everybody = sorted([*pids.values(), *workspace.children()])

    def has_lock() -> bool:
        return (workspace.state / "orchestrator.pid").read_text() == f"{run.pid}\n"

    def events_of_run() -> list[str]:
        events = workspace.events()
        mine = [place for place, event in enumerate(events) if event.get("pid") == run.pid]
        return [event["event"] for event in events[mine[0] :]] if mine else []

    def has_begun() -> bool:
        return "run_started" in events_of_run()

    def has_adopted() -> bool:
        return events_of_run().count("worker_adopted") == 2

    for count in range(20):
        kill(run)
        assert sorted(process.pid for process in own_processes(workspace.root)) == everybody
        run = workspace.popen("start", *NO_POLL)
        wait_until((has_adopted, has_lock, has_begun)[count % 3], f"start {count + 1}")
    wait_until(lambda: {i: workspace.pid(i) for i in pids} == pids, "the PID files")
    touch(workspace, "go")
    assert run.wait(timeout=20) == 0
    assert sorted(workspace.starts()) == ["A", "B"]
    assert {event["pid"] for event in workspace.events("worker_adopted")} == set(pids.values())


# Dies where it would write the PID file of a worker that it has just started.
DEADLY = """
write = orchestrate.write_file


def write_or_die(path, text):
    if path.suffix == ".pid":
        os.kill(os.getpid(), signal.SIGKILL)
    write(path, text)


orchestrate.write_file = write_or_die
"""


def test_fault_09_what_a_worker_cost_that_nobody_knew_of_is_counted(workspace: Workspace) -> None:
    """Row 9: it has ended before the next start, and its words are all that is left of it."""
    workspace.database.add_stream("A")
    workspace.play(A=["cost=1.5 exit=1", "all"])
    assert workspace.run("start", script=write_script(workspace, IMPORT + DEADLY + RUN)).returncode == -signal.SIGKILL
    wait_until(lambda: [word for _, word, _, _ in workspace.times()] == ["start", "end"], "the end of the worker")
    wait_until(lambda: not own_processes(workspace.root), "its process to go")
    assert workspace.run("start", *NO_POLL).returncode == 0
    ends = [(event["verdict"], event["cost"]) for event in workspace.events("worker_ended")]
    assert ends == [("restart", 1.5), ("complete", 0)]
    assert json.loads(workspace.run("status", "--json").stdout)["cost_usd"] == 1.5


def test_fault_09_a_worker_whose_pid_was_never_written_is_found_by_its_environment(workspace: Workspace) -> None:
    """Row 9: the orchestrator kills itself where it would write the PID file."""
    workspace.database.add_stream("A")
    workspace.play("until=go all")
    killed = workspace.run("start", script=write_script(workspace, IMPORT + DEADLY + RUN))
    assert killed.returncode == -signal.SIGKILL
    wait_until(lambda: workspace.starts() == ["A"], "the worker that nobody knows of")
    assert (workspace.pid("A"), workspace.events("worker_started")) == (0, [])
    (pid,) = living(workspace, "A")
    run = workspace.popen("start", *NO_POLL)
    wait_until(lambda: workspace.pid("A") == pid, "the worker to be adopted")
    touch(workspace, "go")
    assert run.wait(timeout=20) == 0
    assert workspace.starts() == ["A"]
    assert [event["pid"] for event in workspace.events("worker_adopted")] == [pid]


def test_fault_10_a_worker_that_finished_alone_is_complete_for_the_next_start(workspace: Workspace) -> None:
    """Row 10: the foundation is completed while no orchestrator runs; the next phase follows."""
    workspace.database.add_stream("F", "foundation", tasks=2)
    workspace.database.add_stream("P", "parallel")
    workspace.play("all", F="until=go all")
    first = workspace.popen("start")
    pid = workspace.wait_for_worker("F")
    kill(first)
    touch(workspace, "go")
    wait_until(lambda: not is_running(pid), "the worker's end")
    done = workspace.run("start", *NO_POLL)
    assert (done.returncode, done.stdout.splitlines()[-1]) == (0, "all complete: 2 streams, 3 tasks")
    assert workspace.starts() == ["F", "P"]
    assert wait_for_ends(workspace, "F", 1)["verdict"] == "complete"


def test_fault_11_a_worker_that_failed_alone_is_restarted(workspace: Workspace) -> None:
    """Row 11: whatever the unseen exit code was, 0 too, its tasks are open, so it was no success."""
    ends = {"P-1": "exit=1", "P-2": "exit=0", "P-3": "die=9"}
    for stream in ends:
        workspace.database.add_stream(stream, tasks=2)
    workspace.database.add_stream("I", "integration")
    parts = {stream: [f"until=go next {end}", "all"] for stream, end in ends.items()}
    workspace.play("all", **parts)
    first = workspace.popen("start")
    pids = [workspace.wait_for_worker(stream) for stream in ends]
    kill(first)
    touch(workspace, "go")
    wait_until(lambda: not any(map(is_running, pids)), "the workers' end")
    done = workspace.run("start", *NO_POLL)
    assert (done.returncode, done.stdout.splitlines()[-1]) == (0, "all complete: 4 streams, 7 tasks")
    assert sorted(workspace.starts()) == ["I", *sorted([*ends, *ends])]
    assert workspace.starts()[-1] == "I"
    for stream in ends:
        verdicts = [event["verdict"] for event in workspace.events("worker_ended") if event["stream"] == stream]
        assert verdicts == ["restart", "complete"]


def test_fault_12_what_outlives_the_orchestrator_can_not_hold_its_lock(workspace: Workspace) -> None:
    """Row 12: neither a worker nor what it has started has the lock's file open."""
    workspace.database.add_stream("A")
    workspace.play("spawn setsid daemon until=go all")
    first = workspace.popen("start")
    pid = workspace.wait_for_worker("A")
    wait_until(lambda: len(workspace.children()) == 3, "the worker's children")
    kill(first)
    family = own_processes(workspace.root)
    assert sorted(process.pid for process in family) == sorted([pid, *workspace.children()])
    lock = workspace.state / "orchestrator.pid"
    assert lock not in [Path(file.path) for process in family for file in process.open_files()]
    with lock.open("r+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    run = workspace.popen("start", *NO_POLL)
    wait_until(lambda: workspace.events("worker_adopted"), "the next start to get the lock")
    touch(workspace, "go")
    assert run.wait(timeout=20) == 0
    assert workspace.starts() == ["A"]


# ── 13 to 15: processes that do not want to end ───────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("has_orchestrator", [True, False])
def test_fault_13_a_worker_that_ignores_sigterm_is_killed_at_the_deadline(
    workspace: Workspace, has_orchestrator: bool
) -> None:
    """Row 13: and its group with it, of which one ignores SIGTERM too."""
    workspace.database.add_stream("A")
    workspace.play("spawn stubborn hang")
    run = workspace.popen("start", *NO_POLL)
    pid = workspace.wait_for_worker("A")
    wait_until(lambda: len(workspace.children()) == 2, "the worker's children")
    if not has_orchestrator:
        kill(run)
    wait_until(lambda: has_sigterm_ignored(pid), "the worker to ignore SIGTERM")
    began = time.monotonic()
    stopped = workspace.run("stop", "A", "--timeout", "1.5")
    assert time.monotonic() - began >= 1.5, "killed before the deadline"
    assert (stopped.returncode, stopped.stdout, stopped.stderr) == (0, f"A stopped (PID {pid}).\n", "")
    assert [p for p in (pid, *workspace.children()) if is_running(p)] == []
    assert own_processes(workspace.root) == []


def test_fault_13_the_orchestrator_kills_at_its_own_deadline(workspace: Workspace) -> None:
    """Row 13: a worker that has completed its tasks and ignores SIGTERM; by a copy with a deadline of 1 s."""
    workspace.database.add_stream("A")
    workspace.play("spawn stubborn all hang")
    quick, count = re.subn(r"(?m)^STOP_TIMEOUT = 10\b", "STOP_TIMEOUT = 1", SCRIPT.read_text(encoding="utf-8"))
    assert count == 1
    done = workspace.run("start", "--finish-grace", "1", *NO_POLL, script=write_script(workspace, quick))
    (pid, *children) = [pid for _, _, pid, _ in workspace.times()][:1] + workspace.children()
    assert done.returncode == 0
    assert len(children) == 2
    assert [p for p in (pid, *children) if is_running(p)] == []
    (stopping,), (killed, *_) = workspace.events("worker_stopping"), workspace.events("worker_killed")
    assert killed["clock"] - stopping["clock"] >= 1


def has_sigterm_ignored(pid: int) -> bool:
    """Whether the process ignores SIGTERM, as the kernel says; without /proc, that it sleeps must do."""
    status = Path(f"/proc/{pid}/status")
    if not status.exists():
        return bool(psutil.Process(pid).status() == psutil.STATUS_SLEEPING)
    ignored = re.search(r"SigIgn:\s*(\w+)", status.read_text())
    return ignored is not None and bool(int(ignored[1], 16) >> (signal.SIGTERM - 1) & 1)


def leave_group_without_leader(workspace: Workspace, words: str) -> list[int]:
    """Let a worker start children, kill it and its orchestrator, and return the children that go on."""
    workspace.database.add_stream("A")
    workspace.play(A=[f"{words} until=never", "all"])
    run = workspace.popen("start", *NO_POLL)
    pid = workspace.wait_for_worker("A")
    count = len(words.split())
    children: list[int] = wait_until(
        lambda: len(workspace.children()) == count and workspace.children(), "the worker's children"
    )
    kill(run)
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not is_running(pid), "the leader's end")
    assert all(is_running(child) and os.getpgid(child) == pid for child in children)
    return children


def test_fault_14_the_group_of_a_dead_leader_is_found_and_stopped(workspace: Workspace) -> None:
    """Row 14: `stop` says so once they are gone; the one without an environment is found by the others' session."""
    children = leave_group_without_leader(workspace, "spawn stubborn bare")
    stopped = workspace.run("stop", "A", "--timeout", "1")
    assert [child for child in children if is_running(child)] == []
    assert stopped.returncode == 0
    assert stopped.stdout.startswith("A stopped")


def test_fault_14_the_group_of_a_dead_leader_is_stopped_by_the_next_start(workspace: Workspace) -> None:
    """Row 14: before the stream's next worker starts."""
    children = leave_group_without_leader(workspace, "spawn bare")
    assert workspace.run("start", *NO_POLL).returncode == 0
    assert [child for child in children if is_running(child)] == []
    assert workspace.starts() == ["A", "A"]
    kinds = [e["event"] for e in workspace.events("worker_stopping", "worker_started")]
    assert kinds == ["worker_started", "worker_stopping", "worker_started"]


@pytest.mark.parametrize("words", ["spawn", "bare"])
def test_fault_14_the_group_of_a_leader_that_died_in_the_run_is_stopped(workspace: Workspace, words: str) -> None:
    """Row 14: the orchestrator sees the leader's end, and the members that go on."""
    workspace.database.add_stream("A")
    workspace.play(A=[f"{words} die=9", "all"])
    done = workspace.run("start", *NO_POLL)
    (child,) = workspace.children()
    assert not is_running(child)
    assert done.returncode == 0
    assert [event["why"] for event in workspace.events("worker_stopping")] == ["LEFTOVERS"]


@pytest.mark.parametrize("has_orchestrator", [True, False])
def test_fault_15_what_left_the_workers_session_is_found_and_stopped(
    workspace: Workspace, has_orchestrator: bool
) -> None:
    """Row 15: a session of its own, a daemon whose parent is gone, and an empty environment in the worker's session."""
    workspace.database.add_stream("A")
    workspace.play("setsid daemon bare until=never")
    run = workspace.popen("start", *NO_POLL)
    pid = workspace.wait_for_worker("A")
    wait_until(lambda: len(workspace.children()) == 3, "the worker's children")
    child_of = {word.split()[0]: int(word.split()[1]) for _, word, _, _ in workspace.times() if " " in word}
    children = [child_of[word] for word in ("setsid", "daemon", "bare")]
    wait_until(lambda: {psutil.Process(child).name() for child in children} == {"sleep"}, "them to be themselves")
    sessions = [os.getsid(child) for child in children]
    assert sessions[0] == children[0]
    assert pid not in sessions[:2]
    assert sessions[2] == pid
    assert psutil.Process(children[1]).ppid() != pid
    assert "ORCHESTRATE_STREAM" not in psutil.Process(children[2]).environ()
    if not has_orchestrator:
        kill(run)
    stopped = workspace.run("stop", "A", "--timeout", "5")
    assert (stopped.returncode, stopped.stdout) == (0, f"A stopped (PID {pid}).\n")
    assert [process for process in (pid, *children) if is_running(process)] == []


# ── 16 to 18: a stop is final ─────────────────────────────────────────────────────────────────────────────────────────


def test_fault_16_a_stopped_stream_is_never_restarted_beside_a_running_orchestrator(workspace: Workspace) -> None:
    """Row 16: while another stream of the same run is restarted and the database changes; `start` brings it back."""
    for stream in ("A", "B"):
        workspace.database.add_stream(stream, tasks=2)
    workspace.play(A=["until=never", "all"], B=["until=one next exit=1", "until=two all"])
    run = workspace.popen("start", "--poll-interval", "0.2")
    pid = workspace.wait_for_worker("A")
    assert workspace.run("stop", "A").returncode == 0
    assert not is_running(pid)
    workspace.database.add_task("A")
    touch(workspace, "one")
    wait_until(lambda: len(workspace.starts("B")) == 2, "the restart of B")
    assert (workspace.starts("A"), living(workspace, "A")) == (["A"], [])
    touch(workspace, "two")
    wait_until(lambda: workspace.events("run_waiting"), "the run to wait for A")
    assert (workspace.starts("A"), run.poll()) == (["A"], None)
    assert wait_for_ends(workspace, "A", 1)["verdict"] == "stopped"
    assert workspace.run("start", "A").returncode == 0
    assert run.wait(timeout=20) == 0
    assert workspace.starts("A") == ["A", "A"]


def test_fault_17_a_stop_in_the_pause_before_a_restart_prevents_it(workspace: Workspace) -> None:
    """Row 17: the second restart is 2 s away when the stop comes, which has only waited for its word."""
    workspace.database.add_stream("A")
    workspace.play(A=["exit=1", "exit=1", "all"])
    stop = workspace.popen(
        "stop", "A", script=write_script(workspace, f"{IMPORT}input()\n{RUN}"), stdin=subprocess.PIPE
    )
    run = workspace.popen("start", *NO_POLL)
    end = wait_for_ends(workspace, "A", 2)
    out, err = stop.communicate("now\n", timeout=20)
    assert time.monotonic() < end["clock"] + end["delay"], "this machine was too slow for a stop within 2 s"
    assert (stop.returncode, err) == (0, "")
    assert "A was not running; it stays stopped" in out
    wait_until(lambda: time.monotonic() > end["clock"] + end["delay"] + 1, "the moment of the restart to pass")
    assert (workspace.starts("A"), own_processes(workspace.root), run.poll()) == (["A"] * 2, [], None)
    assert workspace.run("start", "A").returncode == 0
    assert run.wait(timeout=20) == 0
    assert len(workspace.starts("A")) == 3


# Each stream has a process of its own that stops it 5 times, aiming at the moment of its restart: from 250 ms before
# it is due, as a stop takes its time, to 150 ms after, as the orchestrator looks every 200 ms. What it finds is written
# to stdout: for each stop the exit code, the processes that still lived, and the workers that started after it.
STOPPER = """
import contextlib, io, json, time
from pathlib import Path

STREAMS, ROUNDS = 10, 5
project = orchestrate.find_project(None, Path(orchestrate.__file__), Path.cwd(), Path.home())


def wait_for_restart(stream, since):
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        record = orchestrate.read_history(project).record(stream)
        if record.retry_at > since:
            return record.retry_at
        time.sleep(0.2)
    sys.exit(f"{stream} was not restarted")


def count_starts(stream):
    return Path("starts.txt").read_text().split().count(stream)


def run(*words):
    with contextlib.redirect_stdout(io.StringIO()):
        return orchestrate.main(words)


def stop_at_restarts(number):
    stream, since = f"S-{number}", 0
    for count in range(ROUNDS):
        since = wait_for_restart(stream, since)
        aim = since - 0.25 + 0.4 * (ROUNDS * number + count) / (STREAMS * ROUNDS - 1)
        time.sleep(max(aim - time.monotonic(), 0))
        code = run("stop", stream)
        living = len(orchestrate.discover_workers(project, [stream]).trees.get(stream, ()))
        starts = count_starts(stream)
        time.sleep(0.45)  # the orchestrator's next looks
        os.write(1, (json.dumps([code, living, count_starts(stream) - starts]) + chr(10)).encode())
        if count < ROUNDS - 1:
            Path(f"fail-{stream}").touch()
            run("start", stream)


for number in range(STREAMS):
    if os.fork() == 0:
        stop_at_restarts(number)
        os._exit(0)
for _ in range(STREAMS):
    os.wait()
"""


@pytest.mark.slow
def test_fault_18_fifty_stops_at_the_very_moment_of_a_restart_all_win(workspace: Workspace) -> None:
    """Row 18: whether the stop comes just before, in or just after the restart, nothing runs and nothing starts."""
    for number in range(10):
        workspace.database.add_stream(f"S-{number}")
        touch(workspace, f"fail-S-{number}")
    # The first worker after each start fails at once; the one that a restart brings would stay.
    workspace.claude.write_text(
        '#!/bin/sh\necho "$ORCHESTRATE_STREAM" >> starts.txt\n'
        'rm "fail-$ORCHESTRATE_STREAM" 2>/dev/null && exit 1\nexec sleep 600\n'
    )
    run = workspace.popen("start", "--max-workers", "10", *NO_POLL)
    done = workspace.run(script=write_script(workspace, IMPORT + STOPPER), timeout=100)
    assert (done.returncode, done.stderr) == (0, "")
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert rows == [[0, 0, 0]] * 50
    assert run.poll() is None
    assert own_processes(workspace.root) == []


# ── 22: signals and terminals ─────────────────────────────────────────────────────────────────────────────────────────

# Plays the shell of a terminal: leads its session, runs a command in the foreground, notes its PID and its exit code.
SHELL = """
import fcntl, os, signal, subprocess, sys, termios
note, *words = sys.argv[1:]
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
signal.signal(signal.SIGTTOU, signal.SIG_IGN)

def enter_foreground():
    os.setpgid(0, 0)
    os.tcsetpgrp(0, os.getpid())
    signal.signal(signal.SIGTTOU, signal.SIG_DFL)

child = subprocess.Popen([sys.executable, *words], preexec_fn=enter_foreground)
open(note + ".pid", "w").write(f"{child.pid}\\n")
code = child.wait()
open(note + ".code", "w").write(f"{code}\\n")
signal.pause()
"""


class Terminal:
    """A pseudo-terminal in which the orchestrator runs in the foreground."""

    def __init__(self, workspace: Workspace, *words: str) -> None:
        self.master, self.slave = pty.openpty()
        self._open = [self.slave, self.master]
        self.modes = termios.tcgetattr(self.slave)
        self.screen = b""
        self._note = workspace.root / "terminal"
        self.shell = workspace.popen(
            str(self._note), str(SCRIPT), "start", *words,
            script=write_script(workspace, SHELL), env={"TERM": "xterm-256color"}, start_new_session=True,
            stdin=self.slave, stdout=self.slave, stderr=self.slave,
        )  # fmt: skip
        self.pid = int(self.wait_for(lambda: self._read("pid"), "the orchestrator"))

    def _read(self, what: str) -> str:
        path = self._note.with_suffix(f".{what}")
        text = path.read_text() if path.exists() else ""
        return text if text.endswith("\n") else ""

    def look(self) -> bytes:
        """Take what was written to the terminal, and return all of it."""
        while select.select([self.master], [], [], 0)[0]:
            self.screen += os.read(self.master, 65536)
        return self.screen

    def wait_for(self, condition: Callable[[], Any], what: str) -> Any:
        """Wait for a condition, reading what is written as a terminal does."""
        return wait_until(lambda: (self.look(), condition())[1], what)

    def press_ctrl_c(self) -> None:
        """Press Ctrl+C: the terminal itself makes a signal of it."""
        os.write(self.master, b"\x03")

    def wait_for_end(self) -> int:
        """Wait for the orchestrator's end, and return its exit code."""
        return int(self.wait_for(lambda: self._read("code"), "the orchestrator's end"))

    def has_ended(self) -> bool:
        """Whether the orchestrator has ended."""
        return bool(self._read("code"))

    def check_restored(self) -> None:
        """Check that modes are as before, the cursor is shown, and no error was."""
        screen = self.look()
        assert termios.tcgetattr(self.slave) == self.modes
        assert screen.rfind(b"\x1b[?25h") > screen.rfind(b"\x1b[?25l") >= 0
        assert b"\x1b[?1049h" not in screen
        assert b"Traceback" not in screen

    def close(self) -> None:
        """Close the terminal, as its window does."""
        for descriptor in self._open:
            os.close(descriptor)
        self._open = []


@contextlib.contextmanager
def run_in_terminal(workspace: Workspace, part: str, *words: str) -> Iterator[Terminal]:
    """Run two workers with this part in a terminal, and wait until its board stands."""
    for stream in ("A", "B"):
        workspace.database.add_stream(stream)
    workspace.play(part)
    terminal = Terminal(workspace, *words, *NO_POLL)
    try:
        terminal.wait_for(lambda: sorted(workspace.starts()) == ["A", "B"], "the workers")
        terminal.wait_for(lambda: b"\x1b[?25l" in terminal.screen, "the board")
        yield terminal
    finally:
        terminal.shell.kill()
        terminal.shell.wait()
        terminal.close()


LEFT = b"Orchestrator ended; 2 workers left running. Stop: python orchestrate.py stop"


@pytest.mark.parametrize(("signum", "code"), [(None, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_fault_22_a_signal_in_a_terminal_restores_it_and_leaves_the_workers(
    workspace: Workspace, signum: int | None, code: int
) -> None:
    """Row 22: Ctrl+C as a key, SIGTERM and SIGHUP as signals."""
    with run_in_terminal(workspace, "until=never") as terminal:
        workers = own_processes(workspace.root)
        if signum is None:
            terminal.press_ctrl_c()
        else:
            os.kill(terminal.pid, signum)
        assert terminal.wait_for_end() == code
        terminal.check_restored()
        assert terminal.screen.splitlines()[-1].endswith(LEFT)
        assert len(workers) == 2
        assert all(is_running(worker.pid) for worker in workers)


def test_fault_22_an_impatient_ctrl_c_changes_nothing(workspace: Workspace) -> None:
    """Row 22: pressed again and again until it ends, it ends as after one."""
    with run_in_terminal(workspace, "until=never") as terminal:
        workers = own_processes(workspace.root)

        def press_until_end() -> bool:
            terminal.press_ctrl_c()
            return terminal.has_ended()

        terminal.wait_for(press_until_end, "the end")
        terminal.check_restored()
        # Old Pythons give SIGINT back to the system before they are gone: for a shell both are 130.
        assert terminal.wait_for_end() in (130, -signal.SIGINT)
        assert LEFT in terminal.screen
        assert [is_running(worker.pid) for worker in workers] == [True, True]


def test_fault_22_with_stop_on_exit_the_second_ctrl_c_kills(workspace: Workspace) -> None:
    """Row 22: the first one asks the workers, which ignore it; the second one does not ask."""
    with run_in_terminal(workspace, "stubborn hang", "--stop-on-exit") as terminal:
        terminal.wait_for(lambda: len(workspace.children()) == 2, "the workers' children")
        pids = [process.pid for process in own_processes(workspace.root)]
        terminal.press_ctrl_c()
        terminal.wait_for(lambda: len(workspace.events("worker_stopping")) == 2, "the polite attempt")
        assert workspace.events("worker_killed") == []
        terminal.press_ctrl_c()
        assert terminal.wait_for_end() == 130
        terminal.check_restored()
        assert len(pids) == 4
        assert [pid for pid in pids if is_running(pid)] == []


def test_fault_22_a_closed_terminal_ends_the_orchestrator_and_leaves_the_workers(workspace: Workspace) -> None:
    """Row 22: the window is closed; the next start takes the workers over."""
    with run_in_terminal(workspace, "until=go all") as terminal:
        workers = own_processes(workspace.root)
        terminal.close()
        wait_until(lambda: not is_running(terminal.pid), "the orchestrator's end")
        assert [event["signal"] for event in workspace.events("run_left")] == [signal.SIGHUP]
        assert [is_running(worker.pid) for worker in workers] == [True, True]
        run = workspace.popen("start", *NO_POLL)
        wait_until(lambda: len(workspace.events("worker_adopted")) == 2, "the workers to be taken over")
        touch(workspace, "go")
        assert run.wait(timeout=20) == 0
        assert sorted(workspace.starts()) == ["A", "B"]


MEGABYTE = 1_000_000


class Output:
    """What a process says while it runs: stdout and stderr in one."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.text = ""
        self._thread = threading.Thread(target=self._read, args=(process.stdout,), daemon=True)
        self._thread.start()

    def _read(self, stream: Any) -> None:
        with contextlib.suppress(ValueError):  # closed by the fixture
            for line in stream:
                self.text += line

    def wait_to_end(self) -> str:
        """Wait for the process to close its output, and return all of it."""
        self._thread.join(timeout=30)
        assert not self._thread.is_alive()
        return self.text


def start_run(workspace: Workspace, *words: str, **options: Any) -> tuple[subprocess.Popen[str], Output]:
    """Start a run whose output is read as it comes."""
    run = workspace.popen("start", *NO_POLL, *words, stderr=subprocess.STDOUT, **options)
    return run, Output(run)


def finish_run(run: subprocess.Popen[str], output: Output, seconds: float = 60) -> tuple[int, str]:
    """Wait for the end of a run, and return its exit code and its output."""
    code = run.wait(timeout=seconds)
    return code, output.wait_to_end()


def find_states(workspace: Workspace, **options: Any) -> dict[str, str]:
    """The state of each stream, as `status --json` has it."""
    status = json.loads(workspace.run("status", "--json", **options).stdout)
    return {stream["id"]: stream["state"] for stream in status["streams"]}


# ── 19 to 22: a worker's end ──────────────────────────────────────────────────────────────────────────────────────────


def check_growing_pauses(workspace: Workspace, pauses: list[float]) -> None:
    """Check that each restart was announced with such a pause, within a tenth, and did not come before its end."""
    ends, starts = workspace.events("worker_ended"), workspace.events("worker_started")
    delays = [end["delay"] for end in ends if end["verdict"] == "restart"]
    assert [round(delay / pause, 0) for delay, pause in zip(delays, pauses)] == [1] * len(pauses)
    assert all(0.89 * pause <= delay <= 1.11 * pause for delay, pause in zip(delays, pauses))
    gaps = [start["clock"] - end["clock"] for end, start in zip(ends, starts[1:])]
    assert len(gaps) == len(delays) == len(pauses)
    assert all(gap >= delay - 0.01 for gap, delay in zip(gaps, delays)), "a worker started before its pause was over"


def test_fault_19_a_worker_that_always_crashes_gets_growing_pauses_then_fails(workspace: Workspace) -> None:
    """Row 19, with real pauses."""
    workspace.database.add_stream("A")
    workspace.play("die=9")
    done = workspace.run("start", "--max-restarts", "3", *NO_POLL)
    assert done.returncode == 1, done.stderr
    assert len(workspace.starts("A")) == 4
    check_growing_pauses(workspace, [1, 2, 4])
    assert done.stdout.splitlines()[-1].startswith("A failed: gave up after 3 restarts")
    assert find_states(workspace) == {"A": "failed"}
    assert own_processes(workspace.root) == []


@pytest.mark.slow
def test_fault_19_the_default_is_ten_restarts_and_the_pause_has_an_end(workspace: Workspace) -> None:
    """Row 19, with the default of --max-restarts and pauses of a fiftieth."""
    workspace.database.add_stream("A")
    workspace.play("exit=3")
    script = hasten(workspace, BACKOFF_FIRST="0.02", BACKOFF_MAX="1.2")
    done = workspace.run("start", *NO_POLL, script=script)
    assert done.returncode == 1, done.stderr
    assert len(workspace.starts("A")) == 11
    check_growing_pauses(workspace, [0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.2, 1.2, 1.2, 1.2])
    assert "exit code 3" in done.stdout.splitlines()[-1]


@pytest.mark.slow
def test_fault_20_a_worker_that_completes_one_task_a_run_completes_all_of_30(workspace: Workspace) -> None:
    """Row 20: each completed task refills a budget of one restart, and resets the pause, whatever the exit code."""
    workspace.play("next exit=0", B="next exit=1")
    for stream in "AB":
        workspace.database.add_stream(stream, tasks=30)
    script = hasten(workspace, BACKOFF_FIRST="0.02")
    done = workspace.run("start", "--max-restarts", "1", *NO_POLL, script=script, timeout=100)
    assert done.returncode == 0, done.stdout
    for stream in "AB":
        assert len(workspace.starts(stream)) == 30
        ends = [end for end in workspace.events("worker_ended") if end["stream"] == stream]
        assert [end["restarts"] for end in ends[:-1]] == [1] * 29
        assert max(end["delay"] for end in ends) < 0.023
        assert [end["completed"] for end in ends] == list(range(1, 31))


def remove_file(claude: Path) -> None:
    claude.unlink()


def take_run_bit(claude: Path) -> None:
    claude.chmod(0o644)


def remove_folder(claude: Path) -> None:
    shutil.rmtree(claude.parent)


LOSSES = (remove_file, take_run_bit, remove_folder)


@pytest.mark.parametrize("lose", LOSSES)
def test_fault_21_a_claude_that_is_not_there_is_said_before_anything_starts(
    workspace: Workspace, lose: Callable[[Path], None]
) -> None:
    """Row 21."""
    workspace.database.add_stream("A")
    lose(workspace.claude)
    done = workspace.run("start", "--claude", str(workspace.claude), *NO_POLL)
    assert done.returncode == 2
    what = "is not executable" if lose is take_run_bit else "command not found"
    assert what in done.stderr
    assert workspace.events() == []


def test_fault_21_an_interpreter_that_is_lost_fails_the_stream_at_once(workspace: Workspace) -> None:
    """Row 21: claude is there and executable, and what its first line names is not; nothing ran before."""
    workspace.database.add_stream("A")
    workspace.claude.write_text("#!/no/such/node\n")
    done = workspace.run("start", *NO_POLL)
    assert done.returncode == 1, done.stdout
    assert len(workspace.events("worker_started")) == 1
    assert "A failed" in done.stdout.splitlines()[-1]


# ── 23: logs ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def rotate(log: Path) -> None:
    log.rename(log.with_name("rotated"))


def truncate(log: Path) -> None:
    os.truncate(log, 0)


def delete(log: Path) -> None:
    log.unlink()


@pytest.mark.parametrize(("disturb", "is_lossless"), [(rotate, True), (truncate, False), (delete, True)])
def test_fault_23_logs_goes_on_following(
    workspace: Workspace, disturb: Callable[[Path], None], is_lossless: bool
) -> None:
    """Row 23: three times over, with a worker that goes on printing."""
    workspace.database.add_stream("A")
    # After a truncation the log is shorter than before, which is the one thing to tell it by.
    words = [f"until=go{n} say={'-' * 3000} say=a{n} until=gate{n} say=b{n}" for n in range(3)]
    workspace.play(" ".join(words) + " all")
    run, _ = start_run(workspace)
    workspace.wait_for_worker("A")
    log = workspace.state / "logs" / "A.log"
    reader = workspace.popen("logs", "A", stderr=subprocess.STDOUT, env={"PYTHONUNBUFFERED": "1"})
    shown = Output(reader)
    for number in range(3):
        workspace.open_gate(f"go{number}")
        wait_until(lambda line=f"a{number}\n": line in shown.text, f"a{number}")  # type: ignore[misc]
        disturb(log)
        workspace.open_gate(f"gate{number}")
        wait_until(lambda line=f"b{number}\n": line in shown.text, f"b{number}")  # type: ignore[misc]
    assert run.wait(timeout=20) == 0
    wait_until(lambda: "A complete in" in shown.text, "the last line")
    reader.send_signal(signal.SIGINT)
    assert reader.wait(timeout=20) == 130
    lines = [line for line in shown.wait_to_end().splitlines() if line[:1] in "ab"]
    wanted = ["a0", "b0", "a1", "b1", "a2", "b2"]
    assert [line for line in dict.fromkeys(lines) if line in wanted] == wanted
    if is_lossless:
        assert lines == wanted, "a line was shown twice"


# ── 24: no room ───────────────────────────────────────────────────────────────────────────────────────────────────────


class FullDisk:
    """A small tmpfs over the state folder, which is filled and emptied again."""

    def __init__(self, workspace: Workspace) -> None:
        self.state = workspace.state
        self.state.mkdir(mode=0o700)
        command = ["mount", "-t", "tmpfs", "-o", "size=1m,mode=0700", "orchestrate-test", str(self.state)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"no tmpfs can be mounted here: {done.stderr.strip()}")

    def fill(self, _: subprocess.Popen[str]) -> None:
        """Leave no room, not even in the last page of a file that may grow."""
        for path in [self.state / "events.jsonl", *self.state.glob("logs/*.log*"), *self.state.glob("logs/*.jsonl")]:
            with path.open("ab") as file:
                size = resource.getpagesize() - path.stat().st_size % resource.getpagesize()
                file.write(b" " * (size - 1) + b"\n")
        with (self.state / "filler").open("wb", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(b"x" * resource.getpagesize())
        with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)), (self.state / "events.jsonl").open("ab") as file:
            file.write(b"\n")

    def limit_command(self) -> Any:
        """What a command must do before it runs, to find the disk as full as the run does."""
        return None

    def empty(self, _: subprocess.Popen[str]) -> None:
        """Make room."""
        (self.state / "filler").unlink()

    def close(self) -> None:
        """Unmount, though something may still have a file open there."""
        subprocess.run(["umount", "-l", str(self.state)], check=True)


class SizeLimit:
    """The same for those who may mount nothing: the orchestrator, and it alone, can make no file longer."""

    def __init__(self, _: Workspace) -> None:
        if not hasattr(resource, "prlimit"):
            pytest.skip("this system can't limit another process")

    def fill(self, run: subprocess.Popen[str]) -> None:
        """Let every write of the orchestrator to a file fail."""
        resource.prlimit(run.pid, resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))

    def limit_command(self) -> Any:
        """What a command must do before it runs, to find the disk as full as the run does."""
        return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))

    def empty(self, run: subprocess.Popen[str]) -> None:
        """Lift the limit."""
        resource.prlimit(run.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))

    def close(self) -> None:
        """Nothing is left."""


@pytest.fixture(params=["tmpfs", "limit"])
def disk(request: pytest.FixtureRequest, workspace: Workspace) -> Iterator[Any]:
    """A disk that can be filled: a real one where we may mount it, and always a limit on the orchestrator."""
    if request.param == "tmpfs" and os.geteuid() != 0:
        pytest.skip("only root can mount a tmpfs; the other variant covers this row")
    disk = FullDisk(workspace) if request.param == "tmpfs" else SizeLimit(workspace)
    yield disk
    for process in own_processes(workspace.root):
        process.kill()
        process.wait(timeout=10)
    disk.close()


def read_journal(path: Path) -> list[dict[str, Any]]:
    """The events of a journal, past lines that are none: our padding, and what a full disk has cut off."""
    events = []
    for line in path.read_bytes().splitlines():
        with contextlib.suppress(ValueError):
            events.append(json.loads(line))
    return events


# Whoever may make no file can't write down what it covered either.
UNMEASURED = {"COVERAGE_PROCESS_START": "", "COVERAGE_PROCESS_CONFIG": ""}
FULL_WORDS = (os.strerror(errno.ENOSPC), os.strerror(errno.EFBIG))


def begin_full_run(workspace: Workspace, disk: Any, *words: str) -> tuple[subprocess.Popen[str], Output]:
    """Start a run with the workers A and B, a blocked stream C and a stopped one D, and take away the room."""
    for stream in "ABCD":
        workspace.database.add_stream(stream, tasks=2)
    workspace.database.set_status("blocked", "C")
    workspace.play("all", A="say=hello until=a all", B=["next until=b exit=1", "all"], D="sleep=600")
    run, output = start_run(workspace, *words, env=UNMEASURED)
    for stream in "ABD":
        workspace.wait_for_worker(stream)
    assert workspace.run("stop", "D").returncode == 0
    wait_until(lambda: "D stopped" in output.text, "D to be stopped")
    wait_until(lambda: "hello" in (workspace.state / "logs" / "A.log").read_text(), "a line in the log")
    wait_until(lambda: (workspace.state / "logs" / ".rendered.json").exists(), "all to be written")
    disk.fill(run)
    return run, output


def test_fault_24_a_full_disk_harms_no_worker_and_nothing_that_is_written(workspace: Workspace, disk: Any) -> None:
    """Row 24: a stream's state changes and a worker ends while there is no room; then there is room again."""
    run, output = begin_full_run(workspace, disk)
    a, journal = workspace.pid("A"), workspace.state / "events.jsonl"
    before, started = journal.read_bytes(), len(workspace.starts())
    workspace.database.execute("UPDATE tasks SET blocked_reason = 'other' WHERE status = 'blocked'")
    workspace.open_gate("b")
    wait_until(
        lambda: run.poll() is not None or any(words in output.text for words in FULL_WORDS), "the failure to be said"
    )
    assert run.poll() is None, f"the orchestrator gave up: {output.text}"
    time.sleep(1)  # what must not happen needs its time: a crash at the next tick, a restart in a hurry
    assert run.poll() is None, f"the orchestrator gave up: {output.text}"
    assert "Traceback" not in output.text
    assert is_running(a)
    assert (workspace.pid("A"), (workspace.state / "pids" / "D.stop").exists()) == (a, True)
    assert journal.read_bytes().startswith(before)
    assert len(workspace.starts()) - started <= 1, "restarts in a hurry"
    disk.empty(run)
    workspace.open_gate("a")
    wait_until(lambda: find_states(workspace).get("B") == "complete", "B to be complete", 60)
    workspace.database.execute("UPDATE tasks SET status = 'pending' WHERE status = 'blocked'")
    wait_until(lambda: set(find_states(workspace).values()) == {"complete", "stopped"}, "all to be complete", 60)
    assert run.poll() is None
    assert workspace.starts("A") == ["A"]
    told = read_journal(journal)
    assert {e["stream"] for e in told if e["event"] == "worker_ended" and e["verdict"] == "complete"} >= {"B", "C"}
    assert [e["stream"] for e in told if e["event"] == "worker_started"].count("A") == 1
    run.send_signal(signal.SIGTERM)
    assert run.wait(timeout=20) == 143


def test_fault_24_a_run_that_stops_its_workers_ends_on_a_full_disk_too(workspace: Workspace, disk: Any) -> None:
    """Row 24: a worker has ended, and neither its log nor the journal can say so."""
    run, output = begin_full_run(workspace, disk, "--stop-on-exit")
    workspace.open_gate("b")
    wait_until(lambda: any(words in output.text for words in FULL_WORDS), "the failure to be said")
    run.send_signal(signal.SIGINT)
    assert run.wait(timeout=30) == 130
    assert own_processes(workspace.root) == []


def test_fault_24_stop_status_and_logs_work_on_a_full_disk(workspace: Workspace, disk: Any) -> None:
    """Row 24: beside the orchestrator."""
    run, output = begin_full_run(workspace, disk)
    a, limit = workspace.pid("A"), disk.limit_command()
    states = find_states(workspace, preexec_fn=limit, env=UNMEASURED)
    assert states == {"A": "working", "B": "working", "C": "blocked", "D": "stopped"}
    logs = workspace.run("logs", "--no-follow", "A", preexec_fn=limit, env=UNMEASURED)
    assert (logs.returncode, logs.stderr, "hello" in logs.stdout) == (0, "", True)
    stopped = workspace.run("stop", "A", preexec_fn=limit, env=UNMEASURED)
    assert not is_running(a), stopped.stderr
    assert (stopped.returncode, "Traceback" in stopped.stderr) == (0, False), stopped.stderr
    assert run.poll() is None, f"the orchestrator gave up: {output.text}"
    stopped = workspace.run("stop", preexec_fn=limit, env=UNMEASURED)
    assert (stopped.returncode, "Traceback" in stopped.stderr) == (0, False), stopped.stderr
    assert own_processes(workspace.root) == []
    assert "Traceback" not in output.text


def test_fault_24_stop_works_on_a_full_disk_without_an_orchestrator(workspace: Workspace, disk: Any) -> None:
    """Row 24: nobody else writes down what was stopped."""
    run, _ = begin_full_run(workspace, disk)
    run.kill()
    run.wait(timeout=20)
    stopped = workspace.run("stop", preexec_fn=disk.limit_command(), env=UNMEASURED)
    assert own_processes(workspace.root) == [], stopped.stderr
    assert (stopped.returncode, "Traceback" in stopped.stderr) == (0, False), stopped.stderr


@pytest.mark.parametrize("room", [0, 1, 3000])
def test_fault_24_a_file_that_does_not_fit_is_an_error_and_leaves_the_old_one(tmp_path: Path, room: int) -> None:
    """Row 24: a write that succeeds in part, as the last one before the disk is full does."""
    path = tmp_path / "A.pid"
    path.write_text("old\n")
    code = (
        "import resource, sys, pathlib\n"
        f"sys.path.insert(0, {str(SCRIPT.parent)!r})\n"
        "import orchestrate\n"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({room}, {room}))\n"
        "try:\n"
        f"    orchestrate.write_file(pathlib.Path({str(path)!r}), 'new\\n' * 1000)\n"
        "except OSError:\n"
        "    sys.exit(7)\n"
    )
    done = subprocess.run([sys.executable, "-B", "-c", code], check=False, timeout=60)
    assert (done.returncode, path.read_text()) == (7, "old\n")
    assert [entry.name for entry in tmp_path.iterdir()] == ["A.pid"]


# ── 25 and 26: what is read ───────────────────────────────────────────────────────────────────────────────────────────

Repair = Callable[[], object]


def lock_database(database: TaskDatabase) -> Repair:
    """Lock it from another process, as a writer without a write-ahead log does."""
    code = (
        "import sqlite3, sys\n"
        "db = sqlite3.connect(sys.argv[1], isolation_level=None, timeout=20)\n"
        "db.execute('BEGIN EXCLUSIVE')\n"
        "print('locked', flush=True)\n"
        "sys.stdin.read()\n"
    )
    words = [sys.executable, "-c", code, str(database.path)]
    locker = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert locker.stdout is not None
    assert locker.stdout.readline() == "locked\n"
    return locker.communicate


def delete_database(database: TaskDatabase) -> Repair:
    away = database.path.with_name("away")
    database.path.rename(away)
    return lambda: away.rename(database.path)


def corrupt_database(content: Callable[[bytes], bytes]) -> Callable[[TaskDatabase], Repair]:
    def corrupt(database: TaskDatabase) -> Repair:
        good = database.path.read_bytes()
        database.path.write_bytes(content(good))
        return lambda: database.path.write_bytes(good)

    return corrupt


BREAKS = {
    "locked": lock_database,
    "deleted": delete_database,
    "garbage for a header": corrupt_database(lambda good: b"\xde\xad" * 50 + good[100:]),
    "all garbage": corrupt_database(lambda good: b"\x00\xff" * (len(good) // 2)),
    "empty": corrupt_database(lambda good: good[:0]),
    # With the counter of its changes, at byte 24, as a write that was cut off leaves it.
    "half of it": corrupt_database(lambda good: good[:24] + b"\xff" * 4 + good[28:4096] + b"\xff" * (len(good) - 4096)),
}


@pytest.mark.parametrize("fault", BREAKS)
def test_fault_25_nothing_is_decided_while_the_database_can_not_be_read(workspace: Workspace, fault: str) -> None:
    """Row 25: a worker ends meanwhile, and what follows waits for a good read. The lock lasts longer than patience."""
    workspace.database.execute("PRAGMA journal_mode = DELETE")  # in WAL mode a reader is never locked out
    for stream in "AB":
        workspace.database.add_stream(stream)
    workspace.play(A=["until=a exit=1", "all"], B="until=b all")
    run, output = start_run(workspace, "--poll-interval", "0.5")
    a, b = workspace.wait_for_worker("A"), workspace.wait_for_worker("B")
    since = time.monotonic()
    repair = BREAKS[fault](workspace.database)
    wait_until(lambda: workspace.events("database_unreadable"), "the orchestrator to notice")
    workspace.open_gate("a")
    wait_until(lambda: not is_running(a), "A's worker to end")
    patience = 8 if fault == "locked" else 2
    wait_until(lambda: run.poll() is not None or time.monotonic() > since + patience, "the time to pass")
    assert run.poll() is None, output.text
    assert (workspace.starts("A"), workspace.events("worker_ended"), is_running(b)) == (["A"], [], True)
    shown = workspace.run("status")
    assert ("Traceback" in shown.stderr, shown.returncode in (0, 2)) == (False, True)
    repair()
    wait_until(lambda: workspace.events("database_readable"), "the orchestrator to go on")
    workspace.open_gate("b")
    code, out = finish_run(run, output)
    assert (code, workspace.starts("A"), workspace.starts("B")) == (0, ["A", "A"], ["B"]), out
    assert "The database can't be read; nothing starts until it can" in out
    assert "The database can be read again" in out
    assert "Restarting worker for A (1/10)" in out


def test_fault_25_a_long_write_into_a_write_ahead_log_is_no_fault_at_all(workspace: Workspace) -> None:
    """Row 25: Task Copilot's own mode. The worker waits for the writer; the orchestrator reads on."""
    workspace.database.add_stream("A")
    workspace.play("sleep=0.2 all")
    repair = lock_database(workspace.database)
    run, output = start_run(workspace)
    workspace.wait_for_worker("A")
    assert find_states(workspace) == {"A": "working"}
    repair()
    assert finish_run(run, output)[0] == 0, output.text
    assert workspace.events("database_unreadable") == []


def test_fault_25_another_file_in_its_place_is_read_and_followed(workspace: Workspace, tmp_path: Path) -> None:
    """Row 25: A goes on, B is gone, C is new. The other file comes by a rename."""
    for stream in "AB":
        workspace.database.add_stream(stream)
    other = TaskDatabase(tmp_path / "other" / "tasks.db")
    other.execute("PRAGMA journal_mode = DELETE")
    for stream in "AC":
        other.add_stream(stream)
    workspace.play("all", A="until=a all", B="sleep=600")
    run, output = start_run(workspace)
    a, b = workspace.wait_for_worker("A"), workspace.wait_for_worker("B")
    for end in ("-wal", "-shm"):
        workspace.database.path.with_name(f"tasks.db{end}").unlink()
    other.path.replace(workspace.database.path)
    wait_until(lambda: not is_running(b), "the worker of the vanished stream to be stopped")
    wait_until(lambda: "C complete in" in output.text, "the new stream")
    assert is_running(a)
    workspace.open_gate("a")
    code, out = finish_run(run, output)
    assert (code, workspace.starts("A"), workspace.starts("B")) == (0, ["A"], ["B"]), out
    assert "Stopping the worker of B: its stream is no longer in the database" in out


def test_fault_25_malformed_metadata_is_passed_over_and_said(workspace: Workspace) -> None:
    """Row 25: text that is no JSON, JSON of other kinds, and nesting without end come while a worker runs."""
    deep = '{"streamId":' + "[" * 5000 + "]" * 5000 + "}"
    wrong = ["", "{", "not json", '{"streamId": "A"', deep, "\x00", "[" * 100_000]
    odd = ["null", "1", '"A"', "[]", '["A"]', '{"streamId": null}', '{"x": {"streamId": "A"}}']
    workspace.database.add_stream("A")
    workspace.play("until=a all")
    run, output = start_run(workspace)
    a = workspace.wait_for_worker("A")
    for number, metadata in enumerate([*wrong, *odd, None]):
        workspace.database.add_row(f"odd-{number}", "pending", metadata)
    said = f"Warning: {len(wrong)} tasks skipped: the metadata is not valid JSON"
    wait_until(lambda: said in output.text or run.poll() is not None, said)
    assert is_running(a)
    status = json.loads(workspace.run("status", "--json").stdout)
    assert [stream["id"] for stream in status["streams"]] == ["A"]
    workspace.open_gate("a")
    code, out = finish_run(run, output)
    assert (code, workspace.starts()) == (0, ["A"]), out


@pytest.mark.parametrize("value", ["[1, 2]", '{"a": 1}', "0", "true", '"\\u0000"', '"\\ud800"', "1e999"])
def test_fault_25_an_id_of_another_kind_is_an_id_like_any_other(workspace: Workspace, value: str) -> None:
    """Row 25: such a stream's worker can't find its tasks by that id; the run must not break, and ends."""
    workspace.database.add_row("odd", "pending", f'{{"streamId": {value}}}')
    workspace.database.add_stream("A")
    workspace.play("all")
    done = workspace.run("start", "--max-restarts", "0", *NO_POLL)
    assert (done.returncode in (0, 1), "Traceback" in done.stderr) == (True, False), done.stderr
    assert find_states(workspace)["A"] == "complete"


GARBAGE = [
    b"",
    b"{",
    b"\xff\xfe\x00",
    b"[" * 200_000,
    b'{"event": "worker_started"}',
    b'{"event": 7}',
    b"null",
    b"1e999",
]


def test_fault_26_a_journal_that_ends_in_half_a_line_or_holds_garbage_is_read_past_it(workspace: Workspace) -> None:
    """Row 26: the worker that the journal tells of is taken over, and every command goes on working."""
    workspace.database.add_stream("A", tasks=2)
    workspace.play(A="next until=a all")
    run, _ = start_run(workspace)
    a = workspace.wait_for_worker("A")
    wait_until(lambda: workspace.events("state"), "a line behind the start")
    run.kill()
    run.wait(timeout=20)
    journal = workspace.state / "events.jsonl"
    with journal.open("ab") as file:
        file.write(b"\n".join([*GARBAGE, b'{"version": 1, "event": "worker_en']))
    half = len(journal.read_bytes().splitlines())
    assert find_states(workspace) == {"A": "working"}
    assert workspace.run("logs", "--no-follow").returncode == 0
    run, output = start_run(workspace)
    wait_until(lambda: "Took over the worker of A" in output.text, "the worker to be taken over")
    workspace.open_gate("a")
    code, out = finish_run(run, output)
    assert (code, workspace.starts(), is_running(a)) == (0, ["A"], False), out
    kinds = [json.loads(line)["event"] for line in journal.read_bytes().splitlines()[half:]]
    assert (kinds[0], kinds[-1]) == ("run_started", "run_ended")
    assert workspace.run("stop").returncode == 0


# ── 27 to 29: sizes and names ─────────────────────────────────────────────────────────────────────────────────────────

ODD_IDS = [
    "../../etc/x", "a/b", "-rf", ".", "..", "", "x" * 300, "🚀 Ünï", "two\nlines", "\x1b[31mred\x1b]0;title\x07",
    "[red]x[/]", "a b'\"$(x)`",
]  # fmt: skip


def assert_harmless(text: str) -> None:
    """Check that a text holds no control character but the newline that ends its own lines."""
    found = {char for char in text if char != "\n" and (ord(char) < 32 or 127 <= ord(char) < 160)}
    assert found == set(), f"control characters: {found}"


def list_files(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if not path.is_dir()}


@pytest.mark.slow
def test_fault_27_odd_stream_ids_are_safe_names_and_reach_the_right_worker(workspace: Workspace) -> None:
    """Row 27: all of them at once."""
    for stream in ODD_IDS:
        workspace.database.add_stream(stream)
    workspace.play("until=gate all")
    before = list_files(workspace.root.parent)
    run, output = start_run(workspace, "--max-workers", str(len(ODD_IDS)))
    wait_until(lambda: len(workspace.starts()) == len(ODD_IDS), "all workers")
    assert set(workspace.starts()) == set(ODD_IDS)
    for stream in ODD_IDS:
        assert f"Begin by running: /continue {stream}\n" in workspace.argv(stream)[0][-1]
    pids = [path.read_text().strip() for path in (workspace.state / "pids").glob("*.pid")]
    assert sorted(pids) == sorted(str(pid) for _, word, pid, _ in workspace.times() if word == "start")
    for words in (["status"], ["status", "--dashboard"], ["logs", "--no-follow"]):
        shown = workspace.run(*words)
        assert (shown.returncode, shown.stderr) == (0, "")
        assert_harmless(shown.stdout)
    names = [line.split(" │ ")[0][6:] for line in workspace.run("status").stdout.splitlines() if " │ " in line]
    assert {"../../etc/x", "two␊lines", "␛[31mred␛]0;title␇", "[red]x[/]"} <= set(names)
    assert set(find_states(workspace)) == set(ODD_IDS)
    workspace.open_gate("gate")
    code, out = finish_run(run, output)
    assert code == 0, out
    assert_harmless(out)
    fresh = {path.parent for path in list_files(workspace.root.parent) - before}
    state = workspace.state
    database = workspace.database.path.parent
    assert fresh <= {state, state / "pids", state / "logs", workspace.root, database}
    assert {path.name for path in workspace.root.parent.iterdir()} == {"my-project", "home", "bin"}
    logs = {path.name for path in (state / "logs").glob("*.log")}
    assert len(logs) == len(ODD_IDS)
    assert all(len(name.encode()) < 200 and name.isprintable() for name in logs)


@pytest.mark.slow
def test_fault_27_a_command_for_an_odd_id_means_that_stream(workspace: Workspace) -> None:
    """Row 27: `start`, `stop` and `logs` by name, one after another; a stream that is not named is left alone."""
    named = ["../../etc/x", "-rf", "", "x" * 300, "two\nlines\x1b[31m", "[red]x[/]"]
    for stream in [*named, "other"]:
        workspace.database.add_stream(stream)
    workspace.play("sleep=600")
    run, _ = start_run(workspace, "--max-workers", "99", "--", *named)
    wait_until(lambda: set(workspace.starts()) == set(named), "the workers")
    living = set(named)
    for stream in named:
        for words in (["logs", "--no-follow", "--", stream], ["stop", "--", stream]):
            done = workspace.run(*words)
            assert (done.returncode, done.stderr) == (0, ""), words
            assert_harmless(done.stdout)
        living.remove(stream)
        assert {p.info["environ"]["ORCHESTRATE_STREAM"] for p in own_processes(workspace.root)} == living
    assert find_states(workspace) == {**dict.fromkeys(named, "stopped"), "other": "idle"}
    assert run.poll() is None


RAW_BYTES = (
    b"\n" + bytes(range(256)) + b'\xff\xfe\xc3\x28\xed\xa0\x80 invalid\n\x00\x00NUL\x00\n{"type": \xff}\nlast words\n'
)


def read_peak(pid: int) -> int:
    """The most memory that a process ever had, in bytes."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        pytest.skip("this system does not tell the peak of a process's memory")
    return int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM:"))) * 1024


def run_flood(workspace: Workspace, megabytes: int) -> int:
    """Run a worker that prints so much in one line, then bytes of all kinds; return the orchestrator's peak."""
    stream = f"A{megabytes}"
    workspace.database.add_stream(stream)
    workspace.play(f"flood={megabytes} raw={RAW_BYTES.hex()} until=gate{megabytes} all")
    run, output = start_run(workspace, stream)
    log = workspace.state / "logs" / f"{stream}.log"
    wait_until(lambda: log.exists() and b"last words\n" in log.read_bytes(), "all to be rendered", 90)
    peak = read_peak(run.pid)
    workspace.open_gate(f"gate{megabytes}")
    code, out = finish_run(run, output)
    assert code == 0, out
    return peak


def test_fault_28_a_flood_in_one_line_costs_little_memory_and_loses_nothing(workspace: Workspace) -> None:
    """Row 28: 200 MB in a line, every byte there is, invalid UTF-8 and NUL."""
    least = run_flood(workspace, 0)
    most = run_flood(workspace, 200)
    assert most - least <= 64 << 20, f"{(most - least) >> 20} MB for rendering"
    digest = hashlib.sha256()
    for _ in range(200):
        digest.update(b"x" * MEGABYTE)
    digest.update(RAW_BYTES)
    raw = workspace.state / "logs" / "A200.jsonl"
    assert raw.stat().st_size == 200 * MEGABYTE + len(RAW_BYTES)
    with raw.open("rb") as file:
        found = hashlib.sha256()
        for block in iter(lambda: file.read(MEGABYTE), b""):
            found.update(block)
    assert found.hexdigest() == digest.hexdigest()
    log = (workspace.state / "logs" / "A200.log").read_text(errors="replace")
    assert "(a line of 200,000,000 bytes: see A200.jsonl)" in log
    raw.unlink()


@pytest.mark.parametrize("words", [["logs"], ["logs", "--raw"]])
def test_fault_28_logs_shows_a_flood_within_little_memory(workspace: Workspace, words: list[str]) -> None:
    """Row 28: the reader's side, without an orchestrator that has rendered it."""
    workspace.database.add_stream("A")
    workspace.play("sleep=600")
    run, _ = start_run(workspace)
    workspace.wait_for_worker("A")
    run.kill()
    run.wait(timeout=20)
    peaks = []
    for content, end in ((b"small\nend\n", b"end"), (b"x" * MEGABYTE * 200 + b"\nfinis\n", b"finis")):
        with (workspace.state / "logs" / "A.jsonl").open("ab") as raw:
            raw.write(content)
        shown = workspace.root.parent / "shown"
        with shown.open("wb") as out:
            reader = workspace.popen(*words, "A", stdout=out, env={"PYTHONUNBUFFERED": "1"})
        wait_until(lambda path=shown, last=end: ends_with(path, last), "the last line", 90)  # type: ignore[misc]
        peaks.append(read_peak(reader.pid))
        reader.terminate()
        reader.wait(timeout=20)
        shown.unlink()
    (workspace.state / "logs" / "A.jsonl").unlink()
    assert peaks[1] - peaks[0] <= 64 << 20, f"{(peaks[1] - peaks[0]) >> 20} MB for one line"


def ends_with(path: Path, words: bytes) -> bool:
    """Whether a file's last line is this one."""
    with path.open("rb") as file:
        file.seek(max(path.stat().st_size - len(words) - 1, 0))
        return file.read() == words + b"\n"


def fill_database(database: TaskDatabase, streams: int, tasks: int) -> None:
    """Add streams S-0, S-1, … in every phase, with as many tasks each: the first half completed, a tenth cancelled."""
    moment = "2026-01-01T00:00:00.000Z"
    rows = []
    for stream in range(streams):
        phase = "foundation" if stream < 2 else "integration" if stream >= streams - 10 else "parallel"
        metadata = json.dumps({"streamId": f"S-{stream}", "streamName": f"name {stream}", "streamPhase": phase})
        for task in range(tasks):
            status = "completed" if task < tasks // 2 else "cancelled" if task % 10 == 9 else "pending"
            rows.append((f"T-{stream}-{task}", f"Title {task}", status, metadata, moment, moment))
    with closing(sqlite3.connect(database.path)) as connection, connection:
        connection.executemany(
            "INSERT INTO tasks (id, title, status, metadata, created_at, updated_at) VALUES (?, ?, ?, ?, ?, ?)", rows
        )


@pytest.mark.slow
def test_fault_29_a_thousand_streams_with_100_000_tasks_are_counted_planned_and_run(workspace: Workspace) -> None:
    """Row 29; its speed is the benchmark's."""
    fill_database(workspace.database, 1000, 100)
    streams = json.loads(workspace.run("status", "--json").stdout)["streams"]
    assert len(streams) == 1000
    counts = {"total": 95, "pending": 45, "in_progress": 0, "blocked": 0, "completed": 50, "cancelled": 5}
    assert all((stream["tasks"], stream["percent"]) == (counts, 52) for stream in streams)
    order = [f"S-{number}" for number in range(1000)]
    assert [stream["id"] for stream in streams] == order, "not in the order of the phases and numbers"
    plan = workspace.run("start", "--dry-run").stdout.splitlines()
    assert [line[12:].split()[0] for line in plan if line.startswith(("found", "para", "integ"))] == order
    done = workspace.run("start", "--phase", "foundation", *NO_POLL, timeout=100)
    assert done.returncode == 0, done.stdout
    assert workspace.starts() == order[:2]
    assert done.stdout.splitlines()[-1] == "all complete: 2 streams, 190 tasks"


# ── 30 to 32: waiting ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_fault_30_nothing_restarts_while_all_is_blocked_and_a_worker_comes_at_once_after(workspace: Workspace) -> None:
    """Row 30: without a restart to spend, and with a poll interval of ten minutes."""
    workspace.database.add_stream("A", tasks=3)
    workspace.play(A=["next block=key exit=1", "until=a all"])
    run, output = start_run(workspace, "--max-restarts", "0")
    wait_until(lambda: workspace.events("run_waiting"), "the run to wait")
    assert find_states(workspace) == {"A": "blocked"}
    workspace.database.execute("UPDATE tasks SET blocked_reason = 'another' WHERE status = 'blocked'")
    wait_until(lambda: "A blocked: another" in output.text, "the new reason to be said")
    assert workspace.starts() == ["A"]
    unblocked_at = time.monotonic()
    workspace.database.execute("UPDATE tasks SET status = 'pending' WHERE id = 'TASK-3'")  # one of two
    second = wait_until(lambda: workspace.events("worker_started")[1:], "a worker")[0]
    assert second["clock"] - unblocked_at < 10  # generous on a busy machine; the poll interval is not the cause
    workspace.open_gate("a")
    code, out = finish_run(run, output)
    assert (code, workspace.starts()) == (0, ["A", "A"]), out
    assert [end["restarts"] for end in workspace.events("worker_ended")] == [0, 0]


@pytest.mark.slow
def test_fault_31_a_usage_limit_of_one_worker_keeps_all_from_starting_until_its_reset(workspace: Workspace) -> None:
    """Row 31: without a restart to spend. B ends in the pause, C goes on through it, D appears in it."""
    for stream in "ABC":
        workspace.database.add_stream(stream)
    workspace.play("all", A=["limit=10", "all"], B=["until=b limit=8", "all"], C="until=c all")
    run, output = start_run(workspace, "--max-restarts", "0")
    c = workspace.wait_for_worker("C")
    wait_until(lambda: workspace.events("run_paused"), "the pause")
    workspace.open_gate("b")
    workspace.database.add_stream("D")
    wait_until(lambda: len(workspace.events("worker_ended")) == 2, "the end of B's worker")
    wait_until(lambda: find_states(workspace).get("D") == "paused", "D to wait with the others")
    assert is_running(c)
    workspace.open_gate("c")
    code, out = finish_run(run, output)
    assert code == 0, out
    reset = max(event["clock"] + event["delay"] for event in workspace.events("run_paused"))
    started = [(e["stream"], e["clock"]) for e in workspace.events("worker_started")]
    assert sorted(stream for stream, _ in started) == ["A", "A", "B", "B", "C", "D"]
    assert all(clock >= reset - 0.01 for _, clock in started[3:]), "a worker started before the reset"
    assert [end["restarts"] for end in workspace.events("worker_ended")] == [0] * 6


@contextlib.contextmanager
def scarce_files(pid: int, spare: int) -> Iterator[None]:
    """Leave a running process so many file descriptors beyond those that it has open."""
    if not hasattr(resource, "prlimit"):
        pytest.skip("this system can't limit another process")
    before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    taken = {int(entry.name) for entry in Path(f"/proc/{pid}/fd").iterdir()}
    lowest = [number for number in range(1000) if number not in taken][:spare]
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (max([*lowest, -1]) + 1 if lowest else 0, before[1]))
    yield
    resource.prlimit(pid, resource.RLIMIT_NOFILE, before)


@contextlib.contextmanager
def scarce_processes(pid: int) -> Iterator[None]:
    """Let a running process make no other: by its limit, which root is exempt from, or by a control group."""
    if os.geteuid() != 0 and hasattr(resource, "prlimit"):
        before = resource.prlimit(pid, resource.RLIMIT_NPROC)
        resource.prlimit(pid, resource.RLIMIT_NPROC, (0, before[1]))
        yield
        resource.prlimit(pid, resource.RLIMIT_NPROC, before)
        return
    root = next(
        (p for p in (Path("/sys/fs/cgroup/pids"), Path("/sys/fs/cgroup")) if (p / "cgroup.procs").exists()), None
    )
    group = root and root / f"orchestrate-test-{pid}"
    if group is None or not os.access(root or "/", os.W_OK):
        pytest.skip("root without control groups: nothing limits its processes")
    group.mkdir()
    try:
        (group / "cgroup.procs").write_text(str(pid))
        (group / "pids.max").write_text("0")
        yield
        (group / "pids.max").write_text("max")
    finally:
        for member in (group / "cgroup.procs").read_text().split():
            (group.parent / "cgroup.procs").write_text(member)
        group.rmdir()


def check_failed_starts(workspace: Workspace, limit: Callable[[int], Any], words: str) -> None:
    """Let a worker end where another can't be started; check that this is counted, paused for and recovered from."""
    for stream in "AB":
        workspace.database.add_stream(stream)
    workspace.play(A=["until=a exit=1", "all"], B="until=b all")
    run, output = start_run(workspace, "--max-restarts", "6")
    workspace.wait_for_worker("A")
    b = workspace.wait_for_worker("B")
    wait_until(lambda: [e for e in workspace.events("state") if e["state"] == "RUNNING"][1:], "both to be shown")
    with limit(run.pid):
        workspace.open_gate("a")
        wait_until(lambda: run.poll() is not None or len(ends_of(workspace, words)) >= 2, "two failed starts")
        assert run.poll() is None, f"the orchestrator gave up: {output.text}"
        assert (workspace.starts("A"), is_running(b)) == (["A"], True)
    wait_until(lambda: len(workspace.starts("A")) == 2 or run.poll() is not None, "a worker for A", 60)
    workspace.open_gate("b")
    code, out = finish_run(run, output)
    assert (code, workspace.starts("A"), workspace.starts("B")) == (0, ["A", "A"], ["B"]), out
    failed = ends_of(workspace, words)
    assert [end["restarts"] for end in failed] == list(range(2, 2 + len(failed)))
    delays = [end["delay"] for end in failed]
    assert delays == sorted(delays)
    assert delays[0] >= 1.8


def ends_of(workspace: Workspace, words: str) -> list[dict[str, Any]]:
    """The ends of workers, in the journal, that were for this reason."""
    return [end for end in workspace.events("worker_ended") if words in end["ending"]]


def test_fault_32_too_many_open_files_at_a_spawn_is_a_failed_start(workspace: Workspace) -> None:
    """Row 32, EMFILE: there is enough for all that the loop does, and not for a child's pipe."""
    check_failed_starts(workspace, lambda pid: scarce_files(pid, 3), os.strerror(errno.EMFILE))


def test_fault_32_no_process_to_be_had_is_a_failed_start(workspace: Workspace) -> None:
    """Row 32, EAGAIN."""
    check_failed_starts(workspace, scarce_processes, os.strerror(errno.EAGAIN))


@pytest.mark.parametrize("spare", [0, 1, 2])
def test_fault_32_the_loop_lives_where_hardly_a_file_can_be_opened(workspace: Workspace, spare: int) -> None:
    """Row 32: not a single file, or one or two; a worker ends meanwhile."""
    workspace.database.add_stream("A")
    workspace.play(A=["until=a exit=1", "all"])
    run, output = start_run(workspace)
    a = workspace.wait_for_worker("A")
    wait_until(lambda: workspace.events("state"), "the loop to run")
    with scarce_files(run.pid, spare):
        workspace.open_gate("a")
        wait_until(lambda: not is_running(a), "the worker to end")
        since = time.monotonic()
        wait_until(lambda: run.poll() is not None or time.monotonic() > since + 2, "some ticks")
        assert run.poll() is None, f"the orchestrator gave up: {output.text}"
    code, out = finish_run(run, output)
    assert (code, workspace.starts("A")) == (0, ["A", "A"]), out


# ── 42 to 45: the API, the login and the program, as they come and go ────────────────────────────────────────────────


RECORDS = [
    json.loads(line)
    for line in (SCRIPT.parent / "tests" / "samples" / "endings.jsonl").read_text(encoding="utf-8").splitlines()
]


def prepare_endings(workspace: Workspace, *causes: str, cost: float = 0.0) -> list[str]:
    """Give a stream to each recorded ending of these causes, of each version and form; return their names.

    A reset that was ahead is ahead again.
    """
    lines: dict[str, Any] = {}
    parts: dict[str, list[str]] = {}
    for number, record in enumerate(r for r in RECORDS if SCENARIOS[r["scenario"]].cause in causes):
        words = []
        for place, line in enumerate(record["lines"]):
            if isinstance(line, dict) and "resetsAt" in line.get("rate_limit_info", ()):
                line["rate_limit_info"]["resetsAt"] = int(time.time()) + 7200
            if isinstance(line, dict) and line["type"] == "result":
                line["total_cost_usd"] = cost
            lines[f"{number}-{place}"] = line
            words.append(f"print={number}-{place}")
        name = f"S{number}"
        workspace.database.add_stream(name)
        parts[name] = [" ".join([*words, f"exit={record['code']}"]), "all"]
    (workspace.root / "lines.json").write_text(json.dumps(lines))
    workspace.play(**parts)  # type: ignore[arg-type]
    return list(parts)


@pytest.mark.slow
def test_fault_42_a_usage_limit_in_every_form_and_version_is_a_pause(workspace: Workspace) -> None:
    """Row 42: as four versions print it, as JSON and as text; the first of them pauses the run for all."""
    names = prepare_endings(workspace, "LIMIT")
    assert len(names) == 56
    run = workspace.popen("start", "--max-workers", "60", "--max-restarts", "0", *NO_POLL)
    wait_until(lambda: len(workspace.events("worker_ended")) == len(names), "all ends", seconds=60)
    assert {(end["verdict"], end["restarts"]) for end in workspace.events("worker_ended")} == {("paused", 0)}
    assert 895 < max(pause["delay"] for pause in workspace.events("run_paused")) < 7202
    assert sorted(workspace.starts()) == sorted(names)
    kill(run)


def test_fault_42_a_limit_in_text_and_exit_code_0_is_a_pause_too(workspace: Workspace) -> None:
    """Row 42: with a shortened pause, since no event tells the reset."""
    workspace.database.add_stream("A")
    workspace.play(A=["print=limit exit=0", "print=prose exit=0", "all"])
    lines = {"limit": "You've hit your limit · resets 3pm (UTC)", "prose": "I read: You've hit your limit · resets 3pm"}
    (workspace.root / "lines.json").write_text(json.dumps(lines))
    script = hasten(workspace, LIMIT_PAUSE="1.0")
    done = workspace.run("start", "--output-format", "text", *NO_POLL, script=script)
    assert done.returncode == 0
    assert [end["verdict"] for end in workspace.events("worker_ended")] == ["paused", "restart", "complete"]


def test_fault_42_a_limit_of_a_subagent_pauses_its_stream_alone(workspace: Workspace) -> None:
    """Row 42: as the CLI prints it, with a reset that comes soon; the other stream goes on meanwhile."""
    (lines,) = (
        r["lines"]
        for r in RECORDS
        if (r["scenario"], r["version"], r["format"]) == ("limit of a subagent", "2.1.332", "stream-json")
    )
    resets_at = int(time.time()) + 6
    for line in lines:
        if line.get("rate_limit_info", {}).get("status") == "rejected":
            line["rate_limit_info"]["resetsAt"] = resets_at
    (workspace.root / "lines.json").write_text(json.dumps({str(n): line for n, line in enumerate(lines)}))
    workspace.database.add_stream("A")
    workspace.database.add_stream("B", tasks=3)
    printed = " ".join(f"print={n}" for n in range(len(lines)))
    workspace.play(A=[printed, "all"], B="next sleep=0.2 exit=1")
    run, output = start_run(workspace, "--max-restarts", "1")
    (end,) = wait_until(lambda: [e for e in workspace.events("worker_ended") if e["stream"] == "A"], "the end of A")
    assert (end["verdict"], end["restarts"]) == ("limited", 0)
    shown = workspace.run("status").stdout
    assert "│ Paused for " in shown
    assert "a subagent hit the seven day opus limit" in shown
    code, out = finish_run(run, output)
    assert code == 0, out
    assert workspace.events("run_paused") == []
    assert re.search(r"A paused for \ds: exit code 0, a subagent hit the seven day opus limit", out)
    begun = [e for e in workspace.events("worker_started") if e["stream"] == "A"]
    assert read_time(begun[1]["time"]) >= resets_at
    assert "The last worker ended: exit code 0, a subagent hit the seven day opus limit" in workspace.argv("A")[1][-1]


@pytest.mark.slow
@pytest.mark.parametrize("cost", [0.0, 0.5])
def test_fault_43_an_outage_in_every_form_and_version_is_tried_again(workspace: Workspace, cost: float) -> None:
    """Row 43: as four versions print it, as JSON and as text, before and after paid work."""
    names = prepare_endings(workspace, "OUTAGE", cost=cost)
    assert len(names) == 96
    done = workspace.run("start", "--max-workers", "99", "--max-restarts", "0", *NO_POLL, timeout=110)
    assert done.returncode == 0, done.stdout
    ends = [(end["verdict"], end["cause"], end["restarts"]) for end in workspace.events("worker_ended")]
    assert sorted(ends) == sorted([("restart", "OUTAGE", 0), ("complete", "OTHER", 0)] * len(names))
    assert done.stdout.count("Trying S") == len(names)


def test_fault_43_an_outage_after_paid_work_is_free_five_times(workspace: Workspace) -> None:
    """Row 43: and from the sixth time on it spends a restart, until a task is completed. The pauses are shortened."""
    result = {"type": "result", "is_error": True, "result": "API Error: 529 Overloaded.", "total_cost_usd": 0.1}
    (workspace.root / "lines.json").write_text(json.dumps({"down": result}))
    workspace.database.add_stream("A", tasks=2)
    workspace.play(A=[*["print=down exit=1"] * 6, "next print=down exit=1", *["print=down exit=1"] * 9])
    script = hasten(workspace, BACKOFF_FIRST="0.01", BACKOFF_MAX="0.05")
    done = workspace.run("start", "--max-restarts", "2", *NO_POLL, script=script)
    assert done.returncode == 1
    ends = [(end["verdict"], end["restarts"]) for end in workspace.events("worker_ended")]
    free = ("restart", 0)
    assert ends == [*[free] * 5, ("restart", 1), *[free] * 5, ("restart", 1), ("restart", 2), ("failed", 2)]


def test_fault_44_a_login_that_fails_once_while_others_work_is_tried_again(workspace: Workspace) -> None:
    """Row 44: A works on the same login. B is refused once, C for ever. The minutes are shortened."""
    refused = {"type": "result", "is_error": True, "api_error_status": 401, "result": "Failed to authenticate."}
    answer = {"type": "assistant", "message": {"model": "opus", "content": [{"type": "text", "text": "Hello"}]}}
    (workspace.root / "lines.json").write_text(json.dumps({"refused": refused, "answer": answer}))
    for name in ("A", "B", "C"):
        workspace.database.add_stream(name)
    no = "until=answered sleep=0.6 print=refused exit=1"
    workspace.play(A="print=answer write=answered until=go all", B=[no, "all"], C=no)
    run, output = start_run(workspace, "--max-restarts", "0", script=hasten(workspace, LOGIN_PAUSE="0.5"))
    wait_until(lambda: "C failed" in output.text, "C to fail")
    touch(workspace, "go")
    code, out = finish_run(run, output)
    assert (code, find_states(workspace)) == (1, {"A": "complete", "B": "complete", "C": "failed"})
    assert workspace.starts("C") == ["C"] * 4
    assert out.count("Trying C again in 0s: exit code 1: Failed to authenticate.") == 3
    assert {end["restarts"] for end in workspace.events("worker_ended")} == {0}


def test_fault_44_in_text_mode_a_completed_task_shows_that_the_login_is_good(workspace: Workspace) -> None:
    """Row 44: nothing else does, while a worker lives. A is refused after its first task, B beside it before any."""
    (workspace.root / "lines.json").write_text(json.dumps({"no": "Failed to authenticate. API Error: 401 expired"}))
    workspace.database.add_stream("A", tasks=2)
    workspace.database.add_stream("B")
    workspace.play(A=["next until=go print=no exit=1", "all"], B=["until=worked print=no exit=1", "all"])
    script = hasten(workspace, LOGIN_PAUSE="0.2")
    run, output = start_run(workspace, "--output-format", "text", "--max-restarts", "0", script=script)
    wait_until(lambda: workspace.database.execute("SELECT 1 FROM tasks WHERE status = 'completed'"), "a task")
    touch(workspace, "worked")
    wait_until(lambda: "Trying B again" in output.text, "B's next try")
    touch(workspace, "go")
    code, out = finish_run(run, output)
    assert (code, find_states(workspace)) == (0, {"A": "complete", "B": "complete"}), out
    assert "Trying A again" in out


def test_fault_44_a_login_that_was_never_good_fails_at_once(workspace: Workspace) -> None:
    """Row 44: nobody has worked on it in this run; that of the night before says nothing."""
    workspace.database.add_stream("A")
    workspace.play("all")
    assert workspace.run("start", *NO_POLL).returncode == 0
    workspace.database.add_stream("B")
    workspace.play(B="print=no exit=1")
    (workspace.root / "lines.json").write_text(json.dumps({"no": "Not logged in · Please run /login"}))
    done = workspace.run("start", *NO_POLL)
    assert done.stdout.splitlines()[-1] == "B failed: exit code 1: Not logged in · Please run /login"
    assert workspace.starts("B") == ["B"]


@contextlib.contextmanager
def replaced(program: Path, lose: Callable[[Path], None]) -> Iterator[None]:
    """Let a program be lost while the context lasts, as in the middle of an update; then it is there again."""
    kept = program.read_bytes()
    lose(program)
    yield
    program.parent.mkdir(exist_ok=True)
    program.write_bytes(kept)
    program.chmod(0o755)


@contextlib.contextmanager
def written(program: Path, _: object) -> Iterator[None]:
    """Keep a program open for writing while the context lasts: it can't be executed then."""
    kept = program.read_bytes()
    program.unlink()  # that of the worker that runs can't be written
    program.write_bytes(kept)
    program.chmod(0o755)
    with program.open("r+b"):
        yield


@pytest.mark.parametrize(
    ("disturb", "lose", "words"),
    [
        (replaced, remove_file, "command not found"),
        (replaced, take_run_bit, "is not executable"),
        (replaced, remove_folder, "command not found"),
        (written, None, "Text file busy"),
    ],
)
def test_fault_45_a_claude_that_is_away_for_some_seconds_fails_no_stream(
    workspace: Workspace, disturb: Callable[..., Any], lose: Callable[[Path], None] | None, words: str
) -> None:
    """Row 45: in the middle of a run. A script is never busy, so an executable stands before that of the tests."""
    workspace.database.add_stream("A", tasks=2)
    workspace.play(A=["next until=gate exit=1", "all"])
    program = workspace.root.parent / "program" / "claude"
    program.parent.mkdir()
    shutil.copy2(str(shutil.which("env")), program)
    run, output = start_run(workspace, "--claude", f"{program} {workspace.claude}", "--max-restarts", "1")
    workspace.wait_for_worker("A")
    with disturb(program, lose):
        workspace.open_gate("gate")
        wait_until(lambda: output.text.count("Trying A again") >= 2, "two more tries")
    code, out = finish_run(run, output)
    assert code == 0, out
    assert words in out
    *tries, last = (end["restarts"] for end in workspace.events("worker_ended"))
    assert (set(tries), last) == ({1}, 0)  # that of the worker that ended with 1, before
    assert workspace.starts("A") == ["A", "A"]


def test_fault_45_a_worker_that_lives_for_some_time_shows_that_claude_can_be_executed(workspace: Workspace) -> None:
    """Row 45: in text mode, and before any worker has ended. The time is shortened."""
    workspace.database.add_stream("A")
    workspace.play(A="until=late burn=3 until=go all")
    script = hasten(workspace, CPU_INTERVAL="0.5")
    run, output = start_run(workspace, "--output-format", "text", script=script)
    workspace.wait_for_worker("A")
    path = workspace.state / "pids" / "A.pid"
    before = path.stat().st_mtime_ns
    touch(workspace, "late")
    wait_until(lambda: path.stat().st_mtime_ns != before, "a look at its CPU time, which is a sign of life")
    with replaced(workspace.claude, remove_file):
        workspace.database.add_stream("B")
        wait_until(lambda: "Trying B again" in output.text, "a try")
    touch(workspace, "go")
    code, out = finish_run(run, output)
    assert (code, find_states(workspace)) == (0, {"A": "complete", "B": "complete"}), out


def test_fault_45_a_claude_that_stays_away_fails_its_stream_after_two_minutes(workspace: Workspace) -> None:
    """Row 45: with the reason; the other worker goes on. The pauses are shortened."""
    workspace.database.add_stream("A", tasks=2)
    workspace.database.add_stream("B")
    workspace.play(A="next until=gate exit=1", B="until=late all")
    script = hasten(workspace, BACKOFF_FIRST="0.01", BACKOFF_MAX="0.05")
    run, output = start_run(workspace, script=script)
    workspace.wait_for_worker("A")
    b = workspace.wait_for_worker("B")
    workspace.claude.unlink()
    workspace.open_gate("gate")
    wait_until(lambda: "A failed" in output.text, "A to fail")
    assert is_running(b), "the other worker was harmed"
    workspace.open_gate("late")
    code, out = finish_run(run, output)
    remedy = "Install Claude Code (npm install -g @anthropic-ai/claude-code) or add it to PATH"
    reason = f"claude: command not found. {remedy}; --claude CMD names another command."
    assert (code, out.splitlines()[-1]) == (1, f"A failed: {reason}")
    assert out.count("Trying A again") == 7
    assert find_states(workspace) == {"A": "failed", "B": "complete"}


# ── 33: worktrees that can't be had ───────────────────────────────────────────────────────────────────────────────────


def find_worktree(workspace: Workspace) -> Path:
    """Where the worktree of stream A belongs."""
    return workspace.root / ".claude" / "worktrees" / "A"


def occupy_folder(workspace: Workspace) -> str:
    """Let the folder hold somebody's files."""
    folder = find_worktree(workspace)
    folder.mkdir(parents=True)
    (folder / "notes.md").write_text("mine\n")
    return f"{folder} is no worktree of this repository. Look at what it holds, and move it away."


def occupy_with_a_file(workspace: Workspace) -> str:
    """Let a file stand where the folder belongs."""
    folder = find_worktree(workspace)
    folder.parent.mkdir(parents=True)
    folder.write_text("mine\n")
    return f"{folder} is no worktree of this repository. Look at what it holds, and move it away."


def occupy_with_a_link(workspace: Workspace) -> str:
    """Let a link to somebody's folder stand where the folder belongs."""
    folder = find_worktree(workspace)
    target = workspace.root.parent / "mine"
    target.mkdir()
    (target / "notes.md").write_text("mine\n")
    folder.parent.mkdir(parents=True)
    folder.symlink_to(target)
    return f"{target} is no worktree of this repository. Look at what it holds, and move it away."


def occupy_with_another_repository(workspace: Workspace) -> str:
    """Let a clone stand where the worktree belongs."""
    folder = find_worktree(workspace)
    workspace.git("clone", "--quiet", str(workspace.root), str(folder))
    return f"{folder} is no worktree of this repository. Look at what it holds, and move it away."


def take_git_away(workspace: Workspace) -> str:
    """Let a worktree lose the file that makes it one."""
    folder = find_worktree(workspace)
    workspace.git("worktree", "add", "--quiet", "-b", "stream/A", str(folder))
    (folder / "new.py").write_text("mine\n")
    (folder / ".git").unlink()
    return f"{folder} is a worktree that has lost its .git. Look at what it holds, and move it away."


def check_out_elsewhere(workspace: Workspace) -> str:
    """Let the branch be checked out in another worktree."""
    other = workspace.root.parent / "elsewhere"
    workspace.git("worktree", "add", "--quiet", "-b", "stream/A", str(other))
    return f"branch stream/A is checked out in {other}. Switch to another one there."


def check_out_in_the_root(workspace: Workspace) -> str:
    """Let the branch be the one that the project itself is on."""
    workspace.git("switch", "--quiet", "-c", "stream/A")
    return f"branch stream/A is checked out in {workspace.root}. Switch to another one there."


def switch_away(workspace: Workspace) -> str:
    """Let the worktree be on another branch before the stream's first worker comes."""
    folder = find_worktree(workspace)
    workspace.git("worktree", "add", "--quiet", "-b", "mine", str(folder))
    return f"the worktree {folder} is on branch mine, not on stream/A. git switch stream/A there."


def detach(workspace: Workspace) -> str:
    """Let the worktree be on no branch."""
    folder = find_worktree(workspace)
    workspace.git("worktree", "add", "--quiet", "--detach", str(folder))
    return f"the worktree {folder} is on no branch, not on stream/A. git switch stream/A there."


def lock_and_lose(workspace: Workspace) -> str:
    """Let the worktree be locked, as one on a disk that is not mounted now."""
    folder = find_worktree(workspace)
    workspace.git("worktree", "add", "--quiet", "--lock", "-b", "stream/A", str(folder))
    shutil.rmtree(folder)
    return f"the worktree {folder} is locked, and is not there. git worktree unlock, or mount it."


def read_everything(workspace: Workspace) -> tuple[str, str, dict[str, str]]:
    """Return the worktrees, the branches with their commits, and what files of people hold."""
    trees = workspace.git("worktree", "list", "--porcelain")
    files = [*workspace.root.parent.rglob("*.md"), *workspace.root.parent.rglob("*.py")]
    return trees, workspace.git("for-each-ref"), {str(path): path.read_text() for path in files}


@pytest.mark.parametrize(
    "spoil",
    [
        occupy_folder, occupy_with_a_file, occupy_with_a_link, occupy_with_another_repository, take_git_away,
        check_out_elsewhere, check_out_in_the_root, switch_away, detach, lock_and_lose,
    ],
)  # fmt: skip
def test_fault_33_a_worktree_that_can_not_be_had_fails_its_stream_at_once_and_nothing_is_deleted(
    workspace: Workspace, spoil: Callable[[Workspace], str]
) -> None:
    """Row 33: in the way, no worktree, checked out elsewhere, locked; a sibling is not held up."""
    workspace.make_repository()
    for stream in ("A", "B"):
        workspace.database.add_stream(stream)
    reason = spoil(workspace)
    trees, refs, files = read_everything(workspace)
    workspace.play("commit=b.py all")
    done = workspace.run("start", *NO_POLL)
    assert (done.returncode, done.stderr) == (1, "")
    assert f"A failed: {reason}" in done.stdout
    assert [event["reason"] for event in workspace.events("worker_ended") if event["stream"] == "A"] == [reason]
    assert workspace.starts() == ["B"]
    assert find_states(workspace) == {"A": "failed", "B": "complete"}
    workspace.run("clean")
    after = read_everything(workspace)
    assert trees in after[0]
    assert set(refs.splitlines()) < set(after[1].splitlines())
    assert files.items() <= after[2].items()


@pytest.mark.parametrize("is_locked", [False, True])
def test_fault_33_a_worktree_that_is_dirty_or_locked_is_used_as_it_is(workspace: Workspace, is_locked: bool) -> None:
    """Row 33: what nobody has committed there is the work of the worker before."""
    workspace.make_repository()
    workspace.database.add_stream("A")
    folder = find_worktree(workspace)
    lock = ["--lock"] if is_locked else []
    workspace.git("worktree", "add", "--quiet", *lock, "-b", "stream/A", str(folder))
    (folder / "README.md").write_text("changed\n")
    (folder / "new.py").write_text("new\n")
    workspace.play("commit=a.py all")
    done = workspace.run("start", *NO_POLL)
    assert (done.returncode, done.stderr) == (0, "")
    assert workspace.git("status", "--porcelain", cwd=folder) == " M README.md\n?? new.py\n"
    assert (folder / "a.py").read_text() == "A\n"
    assert "stream/A  # 1 commit to merge, 1 file changed, 2 files uncommitted\n" in done.stdout


def test_fault_33_without_git_the_parallel_streams_fail_with_the_reason_and_the_others_work(
    workspace: Workspace,
) -> None:
    """Row 33: a repository, and no git on the PATH."""
    workspace.make_repository()
    workspace.database.add_stream("F", "foundation")
    workspace.database.add_stream("A")
    done = workspace.run("start", *NO_POLL, env={"PATH": str(workspace.bin)})
    assert (done.returncode, done.stderr) == (1, "")
    assert "A failed: git: command not found" in done.stdout
    assert done.stdout.count("Warning: git can't be asked: git: command not found") == 1
    assert workspace.starts() == ["F"]
    alone = workspace.run("start", "--no-worktrees", *NO_POLL, env={"PATH": str(workspace.bin)})
    assert (alone.returncode, workspace.starts()) == (0, ["F", "A"])


def test_fault_33_a_git_that_vanishes_in_a_run_fails_what_starts_then_and_nothing_else(workspace: Workspace) -> None:
    """Row 33: the siblings that are at work finish, and what they made stays."""
    workspace.make_repository()
    for stream in ("A", "B"):
        workspace.database.add_stream(stream)
    workspace.database.add_stream("C", streamDependencies=["B"])
    workspace.play(A="commit=a.py until=go.txt all", B="until=next.txt all")
    tools = workspace.root.parent / "tools"
    tools.mkdir()
    for name in ("git", "rm", "mkdir"):
        (tools / name).symlink_to(shutil.which(name) or "")
    run = workspace.popen("start", *NO_POLL, env={"PATH": f"{workspace.bin}:{tools}"})
    worktree = find_worktree(workspace)
    wait_until(lambda: (worktree / "a.py").exists() and "B" in workspace.starts(), "the work of A")
    wait_until(lambda: "A:_a.py" in workspace.git("log", "--format=%s", "stream/A"), "the commit of A")
    (tools / "git").unlink()
    touch(workspace, "next.txt")
    wait_for_ends(workspace, "C", 1)
    touch(workspace, "go.txt")
    assert run.wait(timeout=20) == 1
    assert find_states(workspace) == {"A": "complete", "B": "complete", "C": "failed"}
    assert workspace.starts("C") == []
    assert (worktree / "a.py").read_text() == "A\n"


# ── 34 and 35: what must go ───────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("is_archived", [True, False], ids=["archived", "deleted"])
def test_fault_34_the_worker_of_a_stream_that_goes_is_stopped_with_its_tree(
    workspace: Workspace, is_archived: bool
) -> None:
    """Row 34: and where the stream comes back, a worker does."""
    for stream in "AB":
        workspace.database.add_stream(stream)
    workspace.play(A=["spawn setsid sleep=600", "all"], B="until=b all")
    run, output = start_run(workspace)
    a, b = workspace.wait_for_worker("A"), workspace.wait_for_worker("B")
    children = wait_until(lambda: len(workspace.left_behind("A")) == 2 and workspace.left_behind("A"), "the children")
    rows = workspace.database.execute("SELECT * FROM tasks WHERE id = 'TASK-1'")
    change = "UPDATE tasks SET archived = 1 WHERE id = ?" if is_archived else "DELETE FROM tasks WHERE id = ?"
    workspace.database.execute(change, "TASK-1")
    wait_until(lambda: not any(is_running(pid) for pid in (a, *children.values())), "the worker's tree to end")
    wait_until(lambda: "A is over: its stream is no longer in the database" in output.text, "that to be said")
    assert (workspace.pid("A"), workspace.pid("B"), is_running(b)) == (0, b, True)
    assert "Stopping the worker of A: its stream is no longer in the database" in output.text
    assert workspace.starts("A") == ["A"]
    if is_archived:
        workspace.database.execute("UPDATE tasks SET archived = 0")
    else:
        marks = ", ".join("?" * len(rows[0]))
        workspace.database.execute(f"INSERT INTO tasks VALUES ({marks})", *rows[0])
    wait_until(lambda: "A complete in" in output.text, "A to be worked on again")
    workspace.open_gate("b")
    code, out = finish_run(run, output)
    assert (code, workspace.starts("A")) == (0, ["A", "A"]), out


@pytest.mark.parametrize("way", ["spawn", "setsid", "daemon", "bare", "spawn setsid daemon bare"])
def test_fault_35_what_a_worker_leaves_behind_is_stopped_before_its_stream_goes_on(
    workspace: Workspace, way: str
) -> None:
    """Row 35: in its group, in a session of its own, a daemon, one without an environment, and all of them at once."""
    workspace.database.add_stream("A", tasks=2)
    workspace.play(A=[f"{way} next exit=0", "survivors all"])
    run, output = start_run(workspace)
    try:
        code, out = finish_run(run, output)
    finally:
        pids = workspace.left_behind("A")
        alive = {name: pid for name, pid in pids.items() if is_running(pid)}
        for pid in alive.values():
            psutil.Process(pid).kill()  # one that nothing else can find any more
    words = [word for name, word, _, _ in workspace.times() if name == "A" and word.startswith("survivors")]
    assert (code, set(pids)) == (0, set(way.split())), out
    assert alive == {}
    assert words == ["survivors []"], "the next worker started beside what the last one had left"
    assert "Stopping processes of A: the worker ended and left them running" in out


def test_fault_35_what_a_complete_stream_leaves_behind_is_gone_before_the_next_phase(workspace: Workspace) -> None:
    """Row 35: the last worker of a stream too."""
    workspace.database.add_stream("F", "foundation")
    workspace.database.add_stream("P")
    workspace.play(F="spawn setsid daemon all", P="all")
    run, output = start_run(workspace)
    code, out = finish_run(run, output)
    assert code == 0, out
    assert not any(is_running(pid) for pid in workspace.left_behind("F").values())
    kinds = [
        (e["event"], e.get("stream")) for e in workspace.events("worker_stopping", "worker_ended", "worker_started")
    ]
    assert (
        kinds.index(("worker_stopping", "F"))
        < kinds.index(("worker_ended", "F"))
        < kinds.index(("worker_started", "P"))
    )


# ── Where an orchestrator may find itself ─────────────────────────────────────────────────────────────────────────────


@contextlib.contextmanager
def first_process(workspace: Workspace) -> Iterator[tuple[subprocess.Popen[str], Callable[..., Any]]]:
    """Start an orchestrator that is PID 1, as in a container; yield it with a way to run commands beside it."""
    inside = ["--pid", "--fork", "--mount-proc"]
    if os.geteuid() or subprocess.run(["unshare", *inside, "true"], check=False).returncode:
        pytest.skip("no PID namespaces here")
    words = ["unshare", *inside, "--kill-child", sys.executable, str(SCRIPT), "start", "--no-worktrees"]
    options = {
        "cwd": workspace.root,
        "env": workspace.environment(),
        "text": True,
        "stdout": subprocess.PIPE,
        "stderr": subprocess.PIPE,
    }
    process = subprocess.Popen(words, **options)
    try:
        (first,) = wait_until(lambda: psutil.Process(process.pid).children(), "PID 1")
        enter = ["nsenter", f"--target={first.pid}", "--pid", "--mount", f"--wd={workspace.root}"]
        if subprocess.run([*enter, "true"], check=False).returncode:
            pytest.skip("nobody can enter a PID namespace here")
        yield process, lambda *more: subprocess.run([*enter, *more], check=False, timeout=60, **options)
    finally:
        process.kill()
        process.communicate()


def test_an_orchestrator_that_is_pid_1_is_seen_lets_orphans_go_and_is_stopped(workspace: Workspace) -> None:
    """Who starts it in a container without an init makes it the parent of every orphan there."""
    workspace.database.add_stream("A", tasks=3)
    workspace.play("", A=["daemon next exit=0", "daemon next exit=0", "hang"])
    with first_process(workspace) as (process, run):
        wait_until(lambda: len(workspace.starts("A")) == 3, "the third worker", 40)
        states = wait_until(lambda: count_zombies(run) == 0 and run("ps", "-eo", "stat,args").stdout, "no zombie", 5)
        assert "sleep 3600" not in states  # the daemons of the first two workers ended with them
        status = run(sys.executable, str(SCRIPT), "status", "--json").stdout
        assert json.loads(status)["orchestrator_pid"] == 1
        again = run(sys.executable, str(SCRIPT), "start")
        assert (again.returncode, "(PID 1)" in again.stderr) == (75, True)
        done = run(sys.executable, str(SCRIPT), "stop", "--timeout", "1")
        assert done.returncode in (0, -9), done  # the namespace ends with its first process, and with it who is in it
        assert process.wait(20) == 128 + signal.SIGTERM


def count_zombies(run: Callable[..., Any]) -> int:
    """The zombies beside an orchestrator."""
    return sum(line.startswith("Z") for line in run("ps", "-eo", "stat").stdout.splitlines())


def test_a_stop_that_reaches_no_orchestrator_says_so_and_fails(workspace: Workspace) -> None:
    """The lock is held, by somebody whom nobody here has as the PID that stands in it: it runs in a container."""
    workspace.database.add_stream("A")
    (workspace.state / "pids").mkdir(parents=True)
    lock = workspace.state / "orchestrator.pid"
    lock.write_text("4194305\n")  # above the largest PID there is
    with lock.open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        done = workspace.run("stop", "--timeout", "0")
        again = workspace.run("start")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("[ERROR] The orchestrator (PID 4194305) still runs, and so do its workers\n")
    assert (again.returncode, "PID 4194305" in again.stderr) == (75, True), again


def test_a_lock_that_somebody_has_overwritten_is_signed_again(workspace: Workspace) -> None:
    """Else nobody could see the orchestrator, nor stop it."""
    workspace.database.add_stream("A")
    workspace.play("hang")
    process = workspace.popen("start")
    workspace.wait_for_worker("A")
    lock = workspace.state / "orchestrator.pid"
    for text in ("garbage\n", "", f"{process.pid}0\n"):
        lock.write_text(text)
        wait_until(lambda: lock.read_text() == f"{process.pid}\n", "its PID in the lock")
    done = workspace.run("stop", "--timeout", "1")
    assert (done.returncode, done.stdout.splitlines()[0]) == (0, f"Orchestrator stopped (PID {process.pid}).")
    assert process.wait(20) == 128 + signal.SIGTERM


def test_a_stop_works_on_a_disk_that_has_become_read_only(workspace: Workspace) -> None:
    """As ext4 does at its first error."""
    begin = 'mount --bind . . && cd "$PWD" && mount -o remount,ro,bind . . && ! touch x 2>&1'
    inside = ["unshare", "--mount", "sh", "-c"]
    if os.geteuid() or subprocess.run([*inside, begin], cwd=workspace.root, check=False).returncode:
        pytest.skip("no mounts here")
    workspace.database.add_stream("A")
    workspace.play("hang")
    process = workspace.popen("start")
    workspace.wait_for_worker("A")
    words = [*inside, f'{begin} && "$@"', "sh", sys.executable, str(SCRIPT), "stop", "--timeout", "1"]
    options: dict[str, Any] = {"cwd": workspace.root, "env": workspace.environment(), "text": True, "timeout": 60}
    done = subprocess.run(words, check=False, capture_output=True, **options)
    assert done.returncode == 0, done
    assert re.fullmatch("Warning: .*/events.jsonl': the journal does not tell of this stop\n", done.stderr)
    assert re.search(r"^A stopped \(PID \d+\)\.$", done.stdout, re.MULTILINE)
    assert process.wait(20) == 128 + signal.SIGTERM
    assert own_processes(workspace.root) == []
