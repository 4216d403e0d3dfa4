"""The fault matrix: each test forces one fault with real processes, and looks at the process table and the files.

The number in a test's name and docstring is its row in the matrix.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import json
import os
import re
import resource
import shutil
import signal
import sqlite3
import struct
import subprocess
import sys
import termios
import time
from contextlib import closing
from datetime import datetime
from pathlib import Path
from string import Template
from typing import Any, Callable, Iterator

import psutil
import pytest
import rich
from cli_endings import SCENARIOS
from support import (
    IMPORT,
    NO_POLL,
    PROGRAM,
    RUN,
    SCRIPT,
    Run,
    TaskDatabase,
    Workspace,
    assert_harmless,
    hasten,
    is_running,
    own_processes,
    unstamp,
    wait_until,
)
from test_terminal import Terminal


@contextlib.contextmanager
def stranger(*words: str, **options: Any) -> Iterator[int]:
    """Run a program that has nothing to do with any project, and yield its PID; fail where a signal reached it."""
    with subprocess.Popen(words or ["sleep", "600"], **options) as process:
        try:
            yield process.pid
            assert process.poll() is None, "the stranger was signalled"
        finally:
            process.kill()


def still_running(*pids: int) -> list[int]:
    """Those of these processes that live."""
    return [pid for pid in pids if is_running(pid)]


def let_pass(seconds: float, run: Run) -> None:
    """Let the time pass that something needs which must not happen: a run that gives up, or acts in a hurry."""
    end = time.monotonic() + seconds
    wait_until(lambda: time.monotonic() > end or not run.goes_on, "the time to pass")
    assert run.goes_on, f"the orchestrator gave up: {run.text}"


def read_moment(event: dict[str, Any]) -> float:
    """When an event was, in seconds since the epoch."""
    return datetime.fromisoformat(event["time"].replace("Z", "+00:00")).timestamp()


def check_left_alone(workspace: Workspace, pid: int, state: str = "another program", **options: Any) -> None:
    """Check that no command takes a process for the worker of A, whose PID file names it, and one word is said."""
    workspace.database.add_stream("A")
    for words in (["status"], ["stop"], ["stop", "A"], ["start", *NO_POLL]):
        workspace.write_pid("A", f"{pid}\n")
        shown = workspace.check(*words, **options)
        assert words != ["status"] or "(PID" not in shown
    assert f"Removed stale PID file A.pid: process {pid} is {state}" in shown
    assert (workspace.starts(), workspace.pid("A")) == (["A"], 0)


def wait_for_ends(workspace: Workspace, stream: str, count: int) -> dict[str, Any]:
    """Wait until so many workers of a stream have ended, and return the last of these events."""
    return workspace.wait_for_event("worker_ended", count, stream=stream)


# ── 1 to 4: PID files that lie ────────────────────────────────────────────────────────────────────────────────────────


def test_fault_01_a_stranger_with_a_workers_pid_is_never_signalled(workspace: Workspace) -> None:
    """Row 1: PID reuse, of a worker's PID file and of the orchestrator's."""
    with stranger(start_new_session=True) as pid:
        workspace.state.mkdir()
        (workspace.state / "orchestrator.pid").write_text(f"{pid}\n")
        check_left_alone(workspace, pid)


def test_fault_01_a_worker_of_another_stream_is_not_taken_for_this_streams_worker(workspace: Workspace) -> None:
    """Row 1: the PID that a file names now belongs to the worker of another stream."""
    workspace.database.add_streams("A", "B")
    workspace.play(A="until=go all", B=["exit=1", "all"])
    first = workspace.start("--max-restarts", "0", wait="A")
    pid = first.pids["A"]
    wait_for_ends(workspace, "B", 1)
    first.kill()
    workspace.write_pid("B", f"{pid}\n")
    run = workspace.start()
    wait_until(lambda: len(workspace.starts("B")) == 2, "a new worker of B")
    assert workspace.living("A") == [pid]
    run.finish("go")
    assert workspace.starts("A") == ["A"]
    assert [event["stream"] for event in workspace.events("worker_adopted")] == ["A"]


def test_fault_02_state_that_a_reboot_left_does_not_keep_anything_from_starting(workspace: Workspace) -> None:
    """Row 2: no process of the journal lives, its monotonic times lie in the future, and a stranger has one PID."""
    workspace.database.add_streams("A", "B", "C")
    workspace.play("hang")
    first = workspace.start(wait="ABC")
    first.kill()
    for process in own_processes(workspace.root):
        process.kill()
    wait_until(lambda: own_processes(workspace.root) == [], "the end of the workers")
    journal = workspace.state / "events.jsonl"
    events = [{**event, "clock": event["clock"] + 1e7} for event in workspace.events()]
    journal.write_text("".join(f"{json.dumps(event)}\n" for event in events))
    workspace.play("all")
    with stranger() as pid:
        workspace.write_pid("C", f"{pid}\n")
        out = workspace.complete("--max-workers", "2")
    wanted = {f"{stream}.pid": f"process {first.pids[stream]} is gone" for stream in "AB"}
    wanted["C.pid"] = f"process {pid} is another program"
    stale = workspace.events("stale_pid_file")
    assert {event["file"]: event["reason"] for event in stale} == wanted
    assert out.count("Removed stale PID file") == len(stale) == 3
    assert sorted(workspace.starts()) == ["A", "A", "B", "B", "C", "C"]
    assert min(event["seconds"] for event in workspace.events("worker_ended")) >= 0


# Root without its capabilities sees and signals no more of other users' processes than anybody else does.
POWERLESS = """
import ctypes, os, sys
if os.geteuid() == 0:
    libc, capability, drop = ctypes.CDLL(None), 0, 24  # PR_CAPBSET_DROP
    while libc.prctl(drop, capability, 0, 0, 0) == 0:
        capability += 1
os.execv(sys.argv[1], sys.argv[1:])
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


@pytest.mark.parametrize("is_hidden", [False, True])
def test_fault_03_a_process_of_another_user_is_left_alone(workspace: Workspace, is_hidden: bool) -> None:
    """Row 3: alive, not ours; root could end it. Hidden: for one who can't even look into it, as anybody."""
    if is_hidden and not hasattr(ctypes.CDLL(None), "prctl"):
        pytest.skip("without Linux, root can't give up its power")
    prefix = [sys.executable, "-c", POWERLESS] if is_hidden else []
    with process_of_another_user() as pid:
        look = f"import psutil\ntry: psutil.Process({pid}).environ()\nexcept psutil.AccessDenied: print('hidden')"
        assert not is_hidden or workspace.check(script=workspace.write_script(look), prefix=prefix) == "hidden\n"
        check_left_alone(workspace, pid, prefix=prefix)


def test_fault_04_a_pid_file_that_holds_no_pid_is_stale_and_nothing_is_signalled(workspace: Workspace) -> None:
    """Row 4: empty, garbage, negative, 0, 1, huge; minus a PID would be a whole group, 0 our own, -1 everything."""
    with stranger(start_new_session=True) as leader, stranger():
        contents = {
            "empty": "", "garbage": "\x00\ufffd[]\n", "text": "Stream\n", "zero": "0\n", "one": "1\n", "all": "-1\n",
            "group": f"-{leader}\n", "plus": f"+{leader}\n", "two": f"{leader} {leader}\n", "float": f"{leader}.0\n",
            "digits": "\u0661\u0662\n", "long": "9" * 5000, "int": f"{2**31 + leader}\n", "word": f"{2**32 + leader}\n",
        }  # fmt: skip
        workspace.database.add_streams(*contents)
        for command in (["status"], ["stop"], ["stop", *contents], ["start", "--max-workers", "20", *NO_POLL]):
            for stream, text in contents.items():
                workspace.write_pid(stream, text)
            out = workspace.check(*command)
    assert sorted(event["file"] for event in workspace.events("stale_pid_file")) == sorted(f"{i}.pid" for i in contents)
    assert out.count("Removed stale PID file") == len(contents)
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

    def __init__(self, folder: Path) -> None:
        self._offset, self._stat = folder / "offset", folder / "stat"
        self.environment = {"CLOCK_OFFSET": str(self._offset)}
        # Where a shim can be built, and the dynamic linker takes it.
        if sys.platform == "linux" and sys.maxsize > 2**32 and shutil.which("cc"):
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


def test_fault_05_steps_of_the_wall_clock_change_no_identity_backoff_or_timer(
    workspace: Workspace, tmp_path: Path
) -> None:
    """Row 5: an hour on, two hours back; one worker runs, one is in its pauses, one in its grace."""
    clock = SteppingClock(tmp_path)
    workspace.database.add_streams("Runs", "Fails", "Finishes")
    workspace.play(Runs="until=go all", Fails=["exit=1", "exit=1", "all"], Finishes="all until=go")
    first = workspace.start("--stall-timeout", "30", wait=["Runs", "Finishes"], env=clock.environment)
    wait_for_ends(workspace, "Fails", 1)
    clock.step_to(3600)
    wait_for_ends(workspace, "Fails", 2)
    clock.step_to(-3600)
    wait_until(lambda: len(workspace.starts("Fails")) == 3, "the second restart")
    first.kill()
    second = workspace.start("--stall-timeout", "30", env=clock.environment)
    workspace.wait_for_event("worker_adopted", 2)
    clock.step_to(3600)
    second.finish("go")
    assert sorted(workspace.starts()) == ["Fails"] * 3 + ["Finishes", "Runs"]
    assert {event["pid"] for event in workspace.events("worker_adopted")} >= set(first.pids.values())
    assert workspace.events("worker_stopping", "worker_killed") == []
    assert {event["file"] for event in workspace.events("stale_pid_file")} <= {"Fails.pid"}
    check_pauses(workspace, "Fails", [1, 2])
    steps = {round((read_moment(event) - event["clock"]) / 3600, 2) for event in workspace.events()}
    assert {round(step - min(steps)) for step in steps} == {0, 1, 2}, "the clock was not stepped"


def test_fault_05_a_pause_ends_when_the_wall_clock_says_so(workspace: Workspace, tmp_path: Path) -> None:
    """Row 5: the machine has slept for the hour of a usage limit, or its clock was put right."""
    clock = SteppingClock(tmp_path)
    workspace.database.add_stream("A")
    workspace.play(A=["limit=3600", "all"])
    run = workspace.start(env=clock.environment)
    workspace.wait_for_event("run_paused")
    clock.step_to(-3600)
    wait_until(lambda: "Paused for 1h 59m" in workspace.run("status", env=clock.environment).stdout, "a longer pause")
    assert workspace.starts() == ["A"]
    clock.step_to(3602)
    run.finish()
    assert workspace.starts() == ["A", "A"]


def check_pauses(workspace: Workspace, stream: str, pauses: list[float]) -> None:
    """Check that each restart was announced with such a pause, within a tenth, and came when that was over."""
    events = workspace.events("worker_started", "worker_ended", stream=stream)
    taken = [(e["delay"], n["clock"] - e["clock"]) for e, n in zip(events, events[1:]) if e.get("verdict") == "restart"]
    assert len(taken) == len(pauses)
    for (delay, gap), pause in zip(taken, pauses):
        assert 0.9 * pause - 0.0002 <= delay <= 1.1 * pause + 0.0002
        assert delay - 0.01 <= gap < 60, "a worker started before its pause was over, or an hour late"


# ── 6 to 12: ends, and orchestrators that come and go ─────────────────────────────────────────────────────────────────


def test_fault_06_a_worker_that_dies_at_once_is_reaped_and_restarted(workspace: Workspace) -> None:
    """Row 6: by exit and by signal; in the pauses no zombie is left."""
    workspace.database.add_stream("A")
    workspace.play(A=["exit=7", "die=9", "all"])
    run = workspace.start()
    for count in (1, 2):
        wait_for_ends(workspace, "A", count)
        assert psutil.Process(run.pid).children() == []
        assert workspace.pid("A") == 0
    run.finish()
    assert [event["exit_code"] for event in workspace.events("worker_ended")] == [7, -9, 0]
    assert workspace.starts() == ["A"] * 3


def test_fault_06_a_zombie_is_never_taken_for_a_worker(workspace: Workspace) -> None:
    """Row 6: the worker of a killed orchestrator whose parent (this test) does not reap it."""
    environ = {"ORCHESTRATE_PROJECT": str(workspace.root), "ORCHESTRATE_STREAM": "A", "ORCHESTRATE_RUN": "x.1"}
    zombie = subprocess.Popen(["true"], env=workspace.environment(**environ))
    wait_until(lambda: not is_running(zombie.pid), "the zombie")
    check_left_alone(workspace, zombie.pid, "gone")
    zombie.wait()


@pytest.mark.slow
def test_fault_07_of_twenty_simultaneous_starts_exactly_one_runs(workspace: Workspace) -> None:
    """Row 7: all stand ready behind one pipe, whose end sets them off."""
    workspace.database.add_streams("A", "B")
    workspace.play("until=go all")
    (ready, is_ready), (gate, opener) = os.pipe(), os.pipe()
    script = workspace.write_script(f"{IMPORT}os.write({is_ready}, b'.')\nos.read({gate}, 1)\n{RUN}")
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
    workspace.open_gate("go")
    assert winner.wait(timeout=20) == 0
    assert sorted(workspace.starts()) == ["A", "B"]
    for descriptor in (ready, gate):
        os.close(descriptor)


@pytest.mark.slow
def test_fault_08_twenty_kills_of_the_orchestrator_never_make_two_workers(workspace: Workspace) -> None:
    """Row 8: killed with the lock just taken, at the start of the run, or with the workers taken over."""
    workspace.database.add_streams("A", "B")
    workspace.play("setsid until=go all")
    run = workspace.start(wait="AB")
    pids = run.pids
    everybody = sorted([*pids.values(), *workspace.wait_for_children(2)])
    lock = workspace.state / "orchestrator.pid"

    def events_of_run() -> list[str]:
        events = workspace.events()
        mine = [place for place, event in enumerate(events) if event.get("pid") == run.pid]
        return [event["event"] for event in events[mine[0] :]] if mine else []

    moments = (
        lambda: events_of_run().count("worker_adopted") == 2,
        lambda: lock.read_text() == f"{run.pid}\n",
        lambda: "run_started" in events_of_run(),
    )
    for count in range(20):
        run.kill()
        assert sorted(process.pid for process in own_processes(workspace.root)) == everybody
        run = workspace.start()
        wait_until(moments[count % 3], f"start {count + 1}")
    wait_until(lambda: {i: workspace.pid(i) for i in pids} == pids, "the PID files")
    run.finish("go")
    assert sorted(workspace.starts()) == ["A", "B"]
    assert {event["pid"] for event in workspace.events("worker_adopted")} == set(pids.values())


# Dies where it would write the PID file of a worker that it has just started.
DEADLY = """
def die_at_pid_file(event, args):
    if event == "open" and "A.pid" in str(args[0]) and args[2] & os.O_WRONLY:
        os.kill(os.getpid(), signal.SIGKILL)


sys.addaudithook(die_at_pid_file)
"""


def die_before_the_pid_is_written(workspace: Workspace) -> None:
    """Let an orchestrator start the worker of A, and kill itself before it has written the PID file."""
    workspace.database.add_stream("A")
    died = workspace.run("start", script=workspace.write_script(IMPORT + DEADLY + RUN))
    assert died.returncode == -signal.SIGKILL
    wait_until(lambda: workspace.starts() == ["A"], "the worker that nobody knows of")
    assert (workspace.pid("A"), workspace.events("worker_started")) == (0, [])


def test_fault_09_what_a_worker_cost_that_nobody_knew_of_is_counted(workspace: Workspace) -> None:
    """Row 9: it has ended before the next start, and its words are all that is left of it."""
    workspace.play(A=["cost=1.5 exit=1", "all"])
    die_before_the_pid_is_written(workspace)
    wait_until(lambda: [word for _, word, _, _ in workspace.times()] == ["start", "end"], "the end of the worker")
    wait_until(lambda: not own_processes(workspace.root), "its process to go")
    workspace.complete()
    ends = [(event["verdict"], event["cost"]) for event in workspace.events("worker_ended")]
    assert ends == [("restart", 1.5), ("complete", 0)]
    assert workspace.status()["cost_usd"] == 1.5


def test_fault_09_a_worker_whose_pid_was_never_written_is_found_by_its_environment(workspace: Workspace) -> None:
    """Row 9: the orchestrator kills itself where it would write the PID file."""
    workspace.play("until=go all")
    die_before_the_pid_is_written(workspace)
    (pid,) = workspace.living("A")
    run = workspace.start()
    wait_until(lambda: workspace.pid("A") == pid, "the worker to be adopted")
    run.finish("go")
    assert workspace.starts() == ["A"]
    assert [event["pid"] for event in workspace.events("worker_adopted")] == [pid]


def end_alone(workspace: Workspace, *streams: str) -> str:
    """Let the workers of these streams end alone, then run an orchestrator to its end; return what that says of it."""
    first = workspace.start(wait=streams)
    first.kill()
    workspace.open_gate("go")
    wait_until(lambda: not still_running(*first.pids.values()), "the workers' end")
    return next(line for line in workspace.complete().splitlines() if line.startswith("  all complete")).strip()


def test_fault_10_a_worker_that_finished_alone_is_complete_for_the_next_start(workspace: Workspace) -> None:
    """Row 10: the foundation is completed while no orchestrator runs; the next phase follows."""
    workspace.database.add_stream("F", "foundation", tasks=2)
    workspace.database.add_stream("P", "parallel")
    workspace.play("all", F="until=go all")
    assert end_alone(workspace, "F") == "all complete: 2 streams, 3 tasks"
    assert workspace.starts() == ["F", "P"]
    assert wait_for_ends(workspace, "F", 1)["verdict"] == "complete"


def test_fault_11_a_worker_that_failed_alone_is_restarted(workspace: Workspace) -> None:
    """Row 11: whatever the unseen exit code was, 0 too, its tasks are open, so it was no success."""
    ends = {"P-1": "next exit=1", "P-2": "next exit=0", "P-3": "next die=9", "P-4": "exit=0"}
    workspace.database.add_streams(*ends, tasks=2)
    workspace.database.add_stream("I", "integration")
    workspace.play("all", **{stream: [f"until=go {end}", "all"] for stream, end in ends.items()})
    assert end_alone(workspace, *ends) == "all complete: 5 streams, 9 tasks"
    assert sorted(workspace.starts()) == ["I", *sorted([*ends, *ends])]
    assert workspace.starts()[-1] == "I"
    for stream in ends:
        verdicts = [event["verdict"] for event in workspace.events("worker_ended", stream=stream)]
        assert verdicts == ["restart", "complete"]


@pytest.mark.parametrize("lose_pid_file", [False, True])
def test_fault_12_what_outlives_the_orchestrator_can_not_hold_its_lock(
    workspace: Workspace, lose_pid_file: bool
) -> None:
    """Row 12: neither a worker nor what it has started has the lock's file open; the next start takes it over."""
    workspace.database.add_stream("A")
    workspace.play("say=hello spawn setsid daemon until=go all")
    first = workspace.start(wait="A")
    pid, children = first.pids["A"], workspace.wait_for_children(3)
    first.kill()
    family = own_processes(workspace.root)
    assert sorted(process.pid for process in family) == sorted([pid, *children])
    lock = workspace.state / "orchestrator.pid"
    assert lock not in [Path(file.path) for process in family for file in process.open_files()]
    with lock.open("r+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    if lose_pid_file:
        (workspace.state / "pids" / "A.pid").unlink()
    run = workspace.start()
    workspace.wait_for_event("worker_adopted")
    assert f"Took over the worker of A that still runs (PID {pid})" in run.finish("go")
    assert workspace.starts() == ["A"]
    assert own_processes(workspace.root) == []
    assert workspace.log("A").count("hello") == 1


# ── 13 to 15: processes that do not want to end ───────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("has_orchestrator", [True, False])
def test_fault_13_a_worker_that_ignores_sigterm_is_killed_at_the_deadline(
    workspace: Workspace, has_orchestrator: bool
) -> None:
    """Row 13: and its group with it, of which one ignores SIGTERM too."""
    workspace.database.add_stream("A")
    workspace.play("spawn stubborn hang")
    run = workspace.start(wait="A")
    pid, children = run.pids["A"], workspace.wait_for_children(2)
    if not has_orchestrator:
        run.kill()
    wait_until(lambda: has_sigterm_ignored(pid), "the worker to ignore SIGTERM")
    began = time.monotonic()
    assert workspace.check("stop", "A", "--timeout", "1.5") == f"A stopped (PID {pid}).\n"
    assert time.monotonic() - began >= 1.5, "killed before the deadline"
    assert still_running(pid, *children) == []
    assert own_processes(workspace.root) == []


def test_fault_13_the_orchestrator_kills_at_its_own_deadline(workspace: Workspace) -> None:
    """Row 13: a worker that has completed its tasks and ignores SIGTERM; by a copy with a deadline of 1 s."""
    workspace.database.add_stream("A")
    workspace.play("spawn stubborn all hang")
    workspace.complete("--finish-grace", "1", script=hasten(workspace, STOP_TIMEOUT="1"))
    (pid, *children) = [pid for _, _, pid, _ in workspace.times()][:1] + workspace.children()
    assert len(children) == 2
    assert still_running(pid, *children) == []
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
    run = workspace.start(wait="A")
    pid, children = run.pids["A"], workspace.wait_for_children(len(words.split()))
    run.kill()
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not is_running(pid), "the leader's end")
    assert all(is_running(child) and os.getpgid(child) == pid for child in children)
    return children


def test_fault_14_the_group_of_a_dead_leader_is_found_and_stopped(workspace: Workspace) -> None:
    """Row 14: `stop` says so once they are gone; the one without an environment is found by the others' session."""
    children = leave_group_without_leader(workspace, "spawn stubborn bare")
    stopped = workspace.run("stop", "A", "--timeout", "1")
    assert still_running(*children) == []
    assert (stopped.returncode, stopped.stdout[:9]) == (0, "A stopped")


def test_fault_14_the_group_of_a_dead_leader_is_stopped_by_the_next_start(workspace: Workspace) -> None:
    """Row 14: before the stream's next worker starts."""
    children = leave_group_without_leader(workspace, "spawn bare")
    workspace.run("start", *NO_POLL).check_returncode()
    assert still_running(*children) == []
    assert workspace.starts() == ["A", "A"]
    kinds = [e["event"] for e in workspace.events("worker_stopping", "worker_started")]
    assert kinds == ["worker_started", "worker_stopping", "worker_started"]


@pytest.mark.parametrize("words", ["spawn", "bare"])
def test_fault_14_the_group_of_a_leader_that_died_in_the_run_is_stopped(workspace: Workspace, words: str) -> None:
    """Row 14: the orchestrator sees the leader's end, and the members that go on."""
    workspace.database.add_stream("A")
    workspace.play(A=[f"{words} die=9", "all"])
    workspace.complete()
    assert len(workspace.children()) == 1
    assert still_running(*workspace.children()) == []
    assert [event["why"] for event in workspace.events("worker_stopping")] == ["LEFTOVERS"]


@pytest.mark.parametrize("has_orchestrator", [True, False])
def test_fault_15_what_left_the_workers_session_is_found_and_stopped(
    workspace: Workspace, has_orchestrator: bool
) -> None:
    """Row 15: a session of its own, a daemon whose parent is gone, and an empty environment in the worker's session."""
    workspace.database.add_stream("A")
    workspace.play("setsid daemon bare until=never")
    run = workspace.start(wait="A")
    workspace.wait_for_children(3)
    pid, child_of = run.pids["A"], workspace.left_behind("A")
    children = [child_of[word] for word in ("setsid", "daemon", "bare")]
    wait_until(lambda: {psutil.Process(child).name() for child in children} == {"sleep"}, "them to be themselves")
    sessions = [os.getsid(child) for child in children]
    assert sessions[0] == children[0]
    assert pid not in sessions[:2]
    assert sessions[2] == pid
    assert psutil.Process(children[1]).ppid() != pid
    assert "ORCHESTRATE_STREAM" not in psutil.Process(children[2]).environ()
    if not has_orchestrator:
        run.kill()
    stopped = workspace.run("stop", "A", "--timeout", "5")
    assert (stopped.returncode, stopped.stdout) == (0, f"A stopped (PID {pid}).\n")
    assert still_running(pid, *children) == []


# ── 16 to 18: a stop is final ─────────────────────────────────────────────────────────────────────────────────────────


def test_fault_16_a_stopped_stream_is_never_restarted_beside_a_running_orchestrator(workspace: Workspace) -> None:
    """Row 16: while another stream of the same run is restarted and the database changes; `start` brings it back."""
    workspace.database.add_streams("A", "B", tasks=2)
    workspace.play(A=["until=never", "all"], B=["until=one next exit=1", "until=two all"])
    run = workspace.start("--poll-interval", "0.2", wait="A")
    pid = run.pids["A"]
    assert workspace.check("stop", "A") == f"A stopped (PID {pid}).\n"
    assert not is_running(pid)
    assert (workspace.state / "pids" / "A.stop").exists()
    workspace.database.add_task("A")
    workspace.open_gate("one")
    wait_until(lambda: len(workspace.starts("B")) == 2, "the restart of B")
    assert (workspace.starts("A"), workspace.living("A")) == (["A"], [])
    workspace.open_gate("two")
    workspace.wait_for_event("run_waiting")
    assert (workspace.starts("A"), run.goes_on) == (["A"], True)
    assert "Stopped: by the user" in workspace.run("status").stdout
    assert wait_for_ends(workspace, "A", 1)["verdict"] == "stopped"
    started = workspace.run("start", "A")
    assert (started.returncode, started.stdout) == (0, f"Left to the orchestrator that runs (PID {run.pid}): A\n")
    run.finish()
    assert workspace.starts("A") == ["A", "A"]


def test_fault_17_a_stop_in_the_pause_before_a_restart_prevents_it(workspace: Workspace) -> None:
    """Row 17: the second restart is 2 s away when the stop comes, which has only waited for its word."""
    workspace.database.add_stream("A")
    workspace.play(A=["exit=1", "exit=1", "all"])
    script = workspace.write_script(f"{IMPORT}input()\n{RUN}")
    stop = workspace.popen("stop", "A", script=script, stdin=subprocess.PIPE)
    run = workspace.start()
    end = wait_for_ends(workspace, "A", 2)
    out, err = stop.communicate("now\n", timeout=20)
    assert time.monotonic() < end["clock"] + end["delay"], "this machine was too slow for a stop within 2 s"
    assert (stop.returncode, err) == (0, "")
    assert "A was not running; it stays stopped" in out
    wait_until(lambda: time.monotonic() > end["clock"] + end["delay"] + 1, "the moment of the restart to pass")
    assert (workspace.starts("A"), own_processes(workspace.root), run.goes_on) == (["A"] * 2, [], True)
    workspace.run("start", "A").check_returncode()
    run.finish()
    assert len(workspace.starts("A")) == 3


# Each stream has a process of its own that stops it 5 times, aiming at the moment of its restart: from 250 ms before
# it is due, as a stop takes its time, to 150 ms after, as the orchestrator looks every 200 ms. What it finds is written
# to stdout: for each stop the exit code, the processes that still lived, and the workers that started after it.
STOPPER = """
import contextlib, io, json, time
from pathlib import Path
from support import own_processes, wait_until

STREAMS, ROUNDS = 10, 5


def find_restart(stream, since):
    lines = Path(".claude/orchestrator/events.jsonl").read_text().split(chr(10))[:-1]
    events = [json.loads(line) for line in lines if f'"{stream}"' in line and '"restart"' in line]
    return next((at for at in (event["clock"] + event["delay"] for event in events) if at > since), 0)


def count_starts(stream):
    return Path("starts.txt").read_text().split().count(stream)


def run(*words):
    with contextlib.redirect_stdout(io.StringIO()):
        return orchestrate.main(words)


def stop_at_restarts(number):
    stream, since = f"S-{number}", 0
    for count in range(ROUNDS):
        since = wait_until(lambda: find_restart(stream, since), f"a restart of {stream}", 60)
        aim = since - 0.25 + 0.4 * (ROUNDS * number + count) / (STREAMS * ROUNDS - 1)
        time.sleep(max(aim - time.monotonic(), 0))
        code = run("stop", stream)
        starts = count_starts(stream)
        environs = [process.info["environ"] for process in own_processes(Path.cwd())]
        living = [environ["ORCHESTRATE_STREAM"] for environ in environs].count(stream)
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
        workspace.open_gate(f"fail-S-{number}")
    # The first worker after each start fails at once; the one that a restart brings would stay.
    workspace.claude.write_text(
        '#!/bin/sh\necho "$ORCHESTRATE_STREAM" >> starts.txt\n'
        'rm "fail-$ORCHESTRATE_STREAM" 2>/dev/null && exit 1\nexec sleep 600\n'
    )
    run = workspace.start("--max-workers", "10")
    workspace.wait_for_event("run_started")
    out = workspace.check(script=workspace.write_script(IMPORT + STOPPER), timeout=100)
    assert [json.loads(line) for line in out.splitlines()] == [[0, 0, 0]] * 50
    assert run.goes_on
    assert own_processes(workspace.root) == []


# ── 22: signals and terminals ─────────────────────────────────────────────────────────────────────────────────────────

# Plays the shell of a terminal: runs a command in the foreground, and notes its PID and its exit code.
SHELL = """
import os, signal, subprocess, sys
note, *words = sys.argv[1:]
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


class ShellTerminal(Terminal):
    """A terminal with a shell, in which the orchestrator runs in the foreground."""

    def __init__(self, workspace: Workspace, *words: str) -> None:
        self._note = workspace.root / "terminal"
        self._is_closed = False
        script = workspace.write_script(SHELL)
        super().__init__(workspace, 100, 30, str(self._note), str(SCRIPT), "start", *words, script=script)
        self.pid = int(self.wait_for(lambda: self.read_note("pid"), "the orchestrator"))

    def read_note(self, what: str) -> str:
        """What the shell has noted."""
        path = self._note.with_suffix(f".{what}")
        text = path.read_text() if path.exists() else ""
        return text if text.endswith("\n") else ""

    def wait_for_end(self) -> int:
        """Wait for the orchestrator's end, and return its exit code."""
        return int(self.wait_for(lambda: self.read_note("code"), "the orchestrator's end"))

    def close(self) -> None:
        """Close the window, if it is open."""
        if not self._is_closed:
            super().close()
        self._is_closed = True

    def check_restored(self) -> None:
        """Check that modes are as before, the cursor is shown, and no error was."""
        self.read()
        assert termios.tcgetattr(self.slave) == self.modes
        assert self.raw.rfind(b"\x1b[?25h") > self.raw.rfind(b"\x1b[?25l") >= 0
        assert b"\x1b[?1049h" not in self.raw
        assert b"Traceback" not in self.raw


@contextlib.contextmanager
def run_in_terminal(workspace: Workspace, part: str, *words: str) -> Iterator[tuple[ShellTerminal, list[int]]]:
    """Run two workers with this part in a terminal; yield it when its board stands, with the PIDs of the workers."""
    workspace.database.add_streams("A", "B")
    workspace.play(part)
    terminal = ShellTerminal(workspace, *words, *NO_POLL)
    with contextlib.ExitStack() as stack:
        stack.callback(terminal.close)
        stack.callback(terminal.process.wait)
        stack.callback(terminal.process.kill)
        terminal.wait_for(lambda: sorted(workspace.starts()) == ["A", "B"], "the workers")
        terminal.wait_for(lambda: b"\x1b[?25l" in terminal.raw, "the board")
        yield terminal, [workspace.wait_for_worker(stream) for stream in "AB"]


LEFT = f"Orchestrator ended; 2 workers left running. Stop: {PROGRAM} stop".encode()


@pytest.mark.parametrize(("signum", "code"), [(None, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_fault_22_a_signal_in_a_terminal_restores_it_and_leaves_the_workers(
    workspace: Workspace, signum: int | None, code: int
) -> None:
    """Row 22: Ctrl+C as a key, SIGTERM and SIGHUP as signals."""
    with run_in_terminal(workspace, "until=never") as (terminal, workers):
        if signum is None:
            terminal.press(b"\x03")
        else:
            os.kill(terminal.pid, signum)
        assert terminal.wait_for_end() == code
        terminal.check_restored()
        assert terminal.raw.splitlines()[-1].endswith(LEFT)
        assert still_running(*workers) == workers


def test_fault_22_an_impatient_ctrl_c_changes_nothing(workspace: Workspace) -> None:
    """Row 22: pressed again and again until it ends, it ends as after one."""
    with run_in_terminal(workspace, "until=never") as (terminal, workers):

        def press_until_end() -> str:
            terminal.press(b"\x03")
            return terminal.read_note("code")

        terminal.wait_for(press_until_end, "the end")
        terminal.check_restored()
        # Old Pythons give SIGINT back to the system before they are gone: for a shell both are 130.
        assert terminal.wait_for_end() in (130, -signal.SIGINT)
        assert LEFT in terminal.raw
        assert still_running(*workers) == workers


def test_fault_22_with_stop_on_exit_the_second_ctrl_c_kills(workspace: Workspace) -> None:
    """Row 22: the first one asks the workers, which ignore it; the second one does not ask."""
    with run_in_terminal(workspace, "stubborn hang", "--stop-on-exit") as (terminal, workers):
        children = workspace.wait_for_children(2)
        terminal.press(b"\x03")
        terminal.wait_for(lambda: len(workspace.events("worker_stopping")) == 2, "the polite attempt")
        assert workspace.events("worker_killed") == []
        terminal.press(b"\x03")
        assert terminal.wait_for_end() == 130
        terminal.check_restored()
        assert still_running(*workers, *children) == []


def test_fault_22_a_closed_terminal_ends_the_orchestrator_and_leaves_the_workers(workspace: Workspace) -> None:
    """Row 22: the window is closed; the next start takes the workers over."""
    with run_in_terminal(workspace, "until=go all") as (terminal, workers):
        terminal.close()
        wait_until(lambda: not is_running(terminal.pid), "the orchestrator's end")
        assert [event["signal"] for event in workspace.events("run_left")] == [signal.SIGHUP]
        assert still_running(*workers) == workers
        run = workspace.start()
        workspace.wait_for_event("worker_adopted", 2)
        run.finish("go")
        assert sorted(workspace.starts()) == ["A", "B"]


# ── 19 to 21: a worker's end ──────────────────────────────────────────────────────────────────────────────────────────


def test_fault_19_a_worker_that_always_crashes_gets_growing_pauses_then_fails(workspace: Workspace) -> None:
    """Row 19, with real pauses."""
    workspace.database.add_stream("A", "foundation")
    workspace.database.add_stream("B", "parallel")
    workspace.play("die=9")
    out = workspace.complete("--max-restarts", "3", code=1)
    assert workspace.starts() == ["A"] * 4
    check_pauses(workspace, "A", [1, 2, 4])
    ends = [(end["exit_code"], end["verdict"]) for end in workspace.events("worker_ended")]
    assert ends == [*[(-9, "restart")] * 3, (-9, "failed")]
    assert "    Why: gave up after 3 restarts without a completed task; last: killed by SIGKILL\n" in out
    assert re.search("○ B .* Never ran\n    Why: waits for A\n", out)
    log = "\n".join(workspace.log("A"))
    for number, pause in ((1, 1), (2, 2), (3, 4)):
        assert f"Restarting worker for A ({number}/3) in {pause}s: killed by SIGKILL" in log
    assert workspace.states()["A"] == "failed"
    assert own_processes(workspace.root) == []


@pytest.mark.slow
def test_fault_19_the_default_is_ten_restarts_and_the_pause_has_an_end(workspace: Workspace) -> None:
    """Row 19, with the default of --max-restarts and pauses of a fiftieth."""
    workspace.database.add_stream("A")
    workspace.play("exit=3")
    out = workspace.complete(code=1, script=hasten(workspace, BACKOFF_FIRST="0.02", BACKOFF_MAX="1.2"))
    assert len(workspace.starts("A")) == 11
    check_pauses(workspace, "A", [0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.2, 1.2, 1.2, 1.2])
    assert "    Why: gave up after 10 restarts without a completed task; last: exit code 3" in out
    assert {end["exit_code"] for end in workspace.events("worker_ended")} == {3}


@pytest.mark.slow
def test_fault_20_a_worker_that_completes_one_task_a_run_completes_all_of_30(workspace: Workspace) -> None:
    """Row 20: each completed task refills a budget of one restart, and resets the pause, whatever the exit code."""
    workspace.play("next exit=0", B="next exit=1")
    workspace.database.add_streams("A", "B", tasks=30)
    workspace.complete("--max-restarts", "1", script=hasten(workspace, BACKOFF_FIRST="0.02"), timeout=100)
    for stream in "AB":
        assert len(workspace.starts(stream)) == 30
        ends = workspace.events("worker_ended", stream=stream)
        assert [end["restarts"] for end in ends[:-1]] == [1] * 29
        assert max(end["delay"] for end in ends) < 0.023
        assert [end["completed"] for end in ends] == list(range(1, 31))


LOSSES: list[tuple[str, Callable[[Path], object]]] = [
    ("command not found", Path.unlink),
    ("is not executable", lambda claude: claude.chmod(0o644)),
    ("command not found", lambda claude: shutil.rmtree(claude.parent)),
]


@pytest.mark.parametrize(("words", "lose"), LOSSES)
def test_fault_21_a_claude_that_is_not_there_is_said_before_anything_starts(
    workspace: Workspace, words: str, lose: Callable[[Path], object]
) -> None:
    """Row 21."""
    workspace.database.add_stream("A")
    lose(workspace.claude)
    done = workspace.run("start", "--claude", str(workspace.claude), *NO_POLL)
    assert (done.returncode, words in done.stderr) == (2, True)
    assert workspace.events() == []


def test_fault_21_an_interpreter_that_is_lost_fails_the_stream_at_once(workspace: Workspace) -> None:
    """Row 21: claude is there and executable, and what its first line names is not; nothing ran before."""
    workspace.database.add_stream("A")
    workspace.claude.write_text("#!/no/such/node\n")
    assert "✗ A failed: " in workspace.complete(code=1)
    assert len(workspace.events("worker_started")) == 1


# ── 23: logs ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("disturb", "is_lossless"),
    [
        (lambda log: log.rename(log.with_name("rotated")), True),
        (lambda log: os.truncate(log, 0), False),
        (Path.unlink, True),
    ],
    ids=["rotated", "truncated", "deleted"],
)
def test_fault_23_logs_goes_on_following(
    workspace: Workspace, disturb: Callable[[Path], object], is_lossless: bool
) -> None:
    """Row 23: three times over, with a worker that goes on printing."""
    workspace.database.add_stream("A")
    # After a truncation the log is shorter than before, which is the one thing to tell it by.
    words = [f"until=go{n} say={'-' * 3000} say=a{n} until=gate{n} say=b{n}" for n in range(3)]
    workspace.play(" ".join(words) + " all")
    run = workspace.start(wait="A")
    log = workspace.state / "logs" / "A.log"
    environ = {"PYTHONUNBUFFERED": "1"}
    reader = Run(workspace, workspace.popen("logs", "A", stderr=subprocess.STDOUT, env=environ))
    for number in range(3):
        workspace.open_gate(f"go{number}")
        reader.wait_to_say(f"a{number}\n")
        disturb(log)
        workspace.open_gate(f"gate{number}")
        reader.wait_to_say(f"b{number}\n")
    run.finish()
    reader.wait_to_say("A complete in")
    lines = [line.partition("  ")[2] for line in reader.end(signal.SIGINT, 130).splitlines()]
    lines = [line for line in lines if line[:1] in "ab"]
    wanted = ["a0", "b0", "a1", "b1", "a2", "b2"]
    assert [line for line in dict.fromkeys(lines) if line in wanted] == wanted
    if is_lossless:
        assert lines == wanted, "a line was shown twice"


# ── 24: no room ───────────────────────────────────────────────────────────────────────────────────────────────────────


class FullDisk:
    """A small tmpfs over the state folder, which is filled and emptied again."""

    # What a command must do before it runs, to find the disk as full as the run does.
    limit_command: Callable[[], None] | None = None

    def __init__(self, workspace: Workspace) -> None:
        self.state = workspace.state
        self.state.mkdir(mode=0o700)
        command = ["mount", "-t", "tmpfs", "-o", "size=1m,mode=0700", "orchestrate-test", str(self.state)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"no tmpfs can be mounted here: {done.stderr.strip()}")

    def fill(self, _: Run) -> None:
        """Leave no room, not even in the last page of a file that may grow."""
        page = resource.getpagesize()
        for path in [self.state / "events.jsonl", *self.state.glob("logs/*.log*"), *self.state.glob("logs/*.jsonl")]:
            with path.open("ab") as file:
                file.write(b" " * (page - path.stat().st_size % page - 1) + b"\n")
        with (self.state / "filler").open("wb", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(b"x" * page)
        with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)), (self.state / "events.jsonl").open("ab") as file:
            file.write(b"\n")

    def empty(self, _: Run) -> None:
        """Make room."""
        (self.state / "filler").unlink()

    def close(self) -> None:
        """Unmount, though something may still have a file open there."""
        subprocess.run(["umount", "-l", str(self.state)], check=True)


class SizeLimit(FullDisk):
    """The same for those who may mount nothing: the orchestrator, and it alone, can make no file longer."""

    def __init__(self, _: Workspace) -> None:
        if not hasattr(resource, "prlimit"):
            pytest.skip("this system can't limit another process")
        self.limit_command = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))

    def fill(self, run: Run) -> None:
        """Let every write of the orchestrator to a file fail."""
        resource.prlimit(run.pid, resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))

    def empty(self, run: Run) -> None:
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


def begin_full_run(workspace: Workspace, disk: Any, *words: str) -> Run:
    """Start a run with the workers A and B, a blocked stream C and a stopped one D, and take away the room."""
    workspace.database.add_streams(*"ABCD", tasks=2)
    workspace.database.set_status("blocked", "C")
    workspace.play("all", A="say=hello until=a all", B=["next until=b exit=1", "all"], D="sleep=600")
    run = workspace.start(*words, wait="ABD", env=UNMEASURED)
    workspace.run("stop", "D").check_returncode()
    run.wait_to_say("D stopped")
    wait_until(lambda: "hello" in (workspace.state / "logs" / "A.log").read_text(), "a line in the log")
    wait_until(lambda: (workspace.state / "logs" / ".rendered.json").exists(), "all to be written")
    disk.fill(run)
    return run


def let_b_end(workspace: Workspace, run: Run) -> None:
    """Let a worker end, and wait until the run has said that it has no room to write that down."""
    workspace.open_gate("b")
    wait_until(lambda: any(words in run.text for words in FULL_WORDS) or not run.goes_on, "the failure to be said")
    assert run.goes_on, f"the orchestrator gave up: {run.text}"


def stop_on_full_disk(workspace: Workspace, disk: Any, *words: str) -> None:
    """Check that a stop works where nothing can be written."""
    stopped = workspace.run("stop", *words, preexec_fn=disk.limit_command, env=UNMEASURED)
    assert (stopped.returncode, "Traceback" in stopped.stderr) == (0, False), stopped.stderr


def test_fault_24_a_full_disk_harms_no_worker_and_nothing_that_is_written(workspace: Workspace, disk: Any) -> None:
    """Row 24: a stream's state changes and a worker ends while there is no room; then there is room again."""
    run = begin_full_run(workspace, disk)
    a, journal = run.pids["A"], workspace.state / "events.jsonl"
    before, started = journal.read_bytes(), len(workspace.starts())
    workspace.database.execute("UPDATE tasks SET blocked_reason = 'other' WHERE status = 'blocked'")
    let_b_end(workspace, run)
    # What must not happen needs its time: a crash at the next tick, a restart in a hurry.
    let_pass(1, run)
    assert "Traceback" not in run.text
    assert is_running(a)
    assert (workspace.pid("A"), (workspace.state / "pids" / "D.stop").exists()) == (a, True)
    assert journal.read_bytes().startswith(before)
    assert len(workspace.starts()) - started <= 1, "restarts in a hurry"
    disk.empty(run)
    workspace.open_gate("a")
    wait_until(lambda: workspace.states().get("B") == "complete", "B to be complete", 60)
    workspace.database.execute("UPDATE tasks SET status = 'pending' WHERE status = 'blocked'")
    wait_until(lambda: set(workspace.states().values()) == {"complete", "stopped"}, "all to be complete", 60)
    assert run.goes_on
    assert workspace.starts("A") == ["A"]
    told = read_journal(journal)
    assert {e["stream"] for e in told if e["event"] == "worker_ended" and e["verdict"] == "complete"} >= {"B", "C"}
    assert [e["stream"] for e in told if e["event"] == "worker_started"].count("A") == 1
    run.end(signal.SIGTERM, 143)


def test_fault_24_a_run_that_stops_its_workers_ends_on_a_full_disk_too(workspace: Workspace, disk: Any) -> None:
    """Row 24: a worker has ended, and neither its log nor the journal can say so."""
    run = begin_full_run(workspace, disk, "--stop-on-exit")
    let_b_end(workspace, run)
    run.end(signal.SIGINT, 130, seconds=30)
    assert own_processes(workspace.root) == []


def test_fault_24_stop_status_and_logs_work_on_a_full_disk(workspace: Workspace, disk: Any) -> None:
    """Row 24: beside the orchestrator."""
    run = begin_full_run(workspace, disk)
    options = {"preexec_fn": disk.limit_command, "env": UNMEASURED}
    assert workspace.states(**options) == {"A": "working", "B": "working", "C": "blocked", "D": "stopped"}
    assert "hello" in workspace.check("logs", "--no-follow", "A", **options)
    stop_on_full_disk(workspace, disk, "A")
    assert not is_running(run.pids["A"])
    assert run.goes_on, f"the orchestrator gave up: {run.text}"
    stop_on_full_disk(workspace, disk)
    assert own_processes(workspace.root) == []
    assert "Traceback" not in run.text


def test_fault_24_stop_works_on_a_full_disk_without_an_orchestrator(workspace: Workspace, disk: Any) -> None:
    """Row 24: nobody else writes down what was stopped."""
    begin_full_run(workspace, disk).kill()
    stop_on_full_disk(workspace, disk)
    assert own_processes(workspace.root) == []


@pytest.mark.parametrize("room", [0, 1, 3000])
def test_fault_24_a_file_that_does_not_fit_is_an_error_and_leaves_the_old_one(tmp_path: Path, room: int) -> None:
    """Row 24: a write that succeeds in part, as the last one before the disk is full does."""
    path = tmp_path / "A.pid"
    path.write_text("old\n")
    code = (
        f"{IMPORT}import pathlib, resource\n"
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


def move_away(path: Path) -> Repair:
    """Let a file or a folder be somewhere else."""
    away = path.with_name("away")
    path.rename(away)
    return lambda: away.rename(path)


def overwrite(path: Path, content: Callable[[bytes], bytes]) -> Repair:
    """Let a file hold what is made of its content."""
    good = path.read_bytes()
    path.write_bytes(content(good))
    return lambda: path.write_bytes(good)


BREAKS: dict[str, Callable[[TaskDatabase], Repair]] = {
    "locked": lock_database,
    "deleted": lambda database: move_away(database.path),
    "deleted with its folder": lambda database: move_away(database.path.parent),
    "garbage for a header": lambda database: overwrite(database.path, lambda good: b"\xde\xad" * 50 + good[100:]),
    "all garbage": lambda database: overwrite(database.path, lambda good: b"\x00\xff" * (len(good) // 2)),
    "empty": lambda database: overwrite(database.path, lambda good: good[:0]),
    # With the counter of its changes, at byte 24, as a write that was cut off leaves it.
    "half of it": lambda database: overwrite(
        database.path, lambda good: good[:24] + b"\xff" * 4 + good[28:4096] + b"\xff" * (len(good) - 4096)
    ),
}


@pytest.mark.parametrize("fault", BREAKS)
def test_fault_25_nothing_is_decided_while_the_database_can_not_be_read(workspace: Workspace, fault: str) -> None:
    """Row 25: a worker ends meanwhile, and what follows waits for a good read. The lock lasts longer than patience."""
    if fault != "deleted with its folder":
        workspace.database.execute("PRAGMA journal_mode = DELETE")  # in WAL mode a reader is never locked out
    workspace.database.add_streams("A", "B")
    workspace.play(A=["until=a exit=1", "all"], B="until=b all")
    run = workspace.start("--poll-interval", "0.5", wait="AB")
    a, b = run.pids.values()
    since = time.monotonic()
    repair = BREAKS[fault](workspace.database)
    workspace.wait_for_event("database_unreadable")
    workspace.open_gate("a")
    wait_until(lambda: not is_running(a), "A's worker to end")
    let_pass((8 if fault == "locked" else 2) - (time.monotonic() - since), run)
    assert (workspace.starts("A"), workspace.events("worker_ended"), is_running(b)) == (["A"], [], True)
    shown = workspace.run("status")
    assert ("Traceback" in shown.stderr, shown.returncode in (0, 2)) == (False, True)
    repair()
    workspace.wait_for_event("database_readable")
    out = run.finish("b", seconds=60)
    assert (workspace.starts("A"), workspace.starts("B")) == (["A", "A"], ["B"]), out
    assert "The database can't be read; nothing starts until it can" in out
    assert "The database can be read again" in out
    assert "Restarting worker for A (1/10)" in out


def test_fault_25_a_long_write_into_a_write_ahead_log_is_no_fault_at_all(workspace: Workspace) -> None:
    """Row 25: Task Copilot's own mode. The worker waits for the writer; the orchestrator reads on."""
    workspace.database.add_stream("A")
    workspace.play("sleep=0.2 all")
    repair = lock_database(workspace.database)
    run = workspace.start(wait="A")
    assert workspace.states() == {"A": "working"}
    repair()
    run.finish(seconds=60)
    assert workspace.events("database_unreadable") == []


def test_fault_25_another_file_in_its_place_is_read_and_followed(workspace: Workspace, tmp_path: Path) -> None:
    """Row 25: A goes on, B is gone, C is new. The other file comes by a rename."""
    workspace.database.add_streams("A", "B")
    other = TaskDatabase(tmp_path / "other" / "tasks.db")
    other.execute("PRAGMA journal_mode = DELETE")
    other.add_streams("A", "C")
    workspace.play("all", A="until=a all", B="sleep=600")
    run = workspace.start(wait="AB")
    for end in ("-wal", "-shm"):
        workspace.database.path.with_name(f"tasks.db{end}").unlink()
    other.path.replace(workspace.database.path)
    wait_until(lambda: not is_running(run.pids["B"]), "the worker of the vanished stream to be stopped")
    run.wait_to_say("C complete in")
    assert is_running(run.pids["A"])
    out = run.finish("a", seconds=60)
    assert (workspace.starts("A"), workspace.starts("B")) == (["A"], ["B"]), out
    assert "Stopping the worker of B: its stream is no longer in the database" in out


def test_fault_25_malformed_metadata_is_passed_over_and_said(workspace: Workspace) -> None:
    """Row 25: text that is no JSON, JSON of other kinds, and nesting without end come while a worker runs."""
    deep = '{"streamId":' + "[" * 5000 + "]" * 5000 + "}"
    wrong = ["", "{", "not json", '{"streamId": "A"', deep, "\x00", "[" * 100_000]
    odd = ["null", "1", '"A"', "[]", '["A"]', '{"streamId": null}', '{"x": {"streamId": "A"}}']
    workspace.database.add_stream("A")
    workspace.play("until=a all")
    run = workspace.start(wait="A")
    for number, metadata in enumerate([*wrong, *odd, None]):
        workspace.database.add_row(f"odd-{number}", "pending", metadata)
    run.wait_to_say(f"Warning: {len(wrong)} tasks skipped: the metadata is not valid JSON")
    assert is_running(run.pids["A"])
    assert list(workspace.states()) == ["A"]
    run.finish("a", seconds=60)
    assert workspace.starts() == ["A"]


@pytest.mark.parametrize("value", ["[1, 2]", '{"a": 1}', "0", "true", '"\\u0000"', '"\\ud800"', "1e999"])
def test_fault_25_an_id_of_another_kind_is_an_id_like_any_other(workspace: Workspace, value: str) -> None:
    """Row 25: such a stream's worker can't find its tasks by that id; the run must not break, and ends."""
    workspace.database.add_row("odd", "pending", f'{{"streamId": {value}}}')
    workspace.database.add_stream("A")
    done = workspace.run("start", "--max-restarts", "0", *NO_POLL)
    assert (done.returncode in (0, 1), "Traceback" in done.stderr) == (True, False), done.stderr
    assert workspace.states()["A"] == "complete"


GARBAGE = [
    b"",
    b'{"event": "state", "stream": "A", "state": "BLOCKED", "reason": "", "clock": NaN}',
    b"[1]",
    b"{",
    b"\xff\xfe\x00",
    b"[" * 200_000,
    b'{"event": "worker_started"}',
    b'{"event": "start_requested"}',
    b'{"event": "start_requested", "stream": "A"}',
    b'{"event": 7}',
    b"null",
    b"1e999",
    b'{"version": 1, "event": "worker_en',
]


def test_fault_26_a_journal_that_ends_in_half_a_line_or_holds_garbage_is_read_past_it(workspace: Workspace) -> None:
    """Row 26: the worker that the journal tells of is taken over, and every command goes on working.

    The garbage stands there before the first run, comes between two, and in the middle of the second one.
    """
    workspace.database.add_stream("A", tasks=2)
    workspace.play(A="next until=a all")
    journal = workspace.state / "events.jsonl"

    def add_garbage(end: bytes = b"") -> int:
        with journal.open("ab") as file:
            file.write(b"\n".join(GARBAGE) + end)
        return len(journal.read_bytes().splitlines())

    def kinds_since(place: int) -> list[str]:
        return [json.loads(line)["event"] for line in journal.read_bytes().rpartition(b"\n")[0].splitlines()[place:]]

    workspace.state.mkdir()
    half = add_garbage()
    first = workspace.start(wait="A")
    wait_until(lambda: "state" in kinds_since(half), "a line behind the start")
    first.kill()
    lines = journal.read_bytes().splitlines()
    assert (lines[half - 1], kinds_since(half)[0]) == (GARBAGE[-1], "run_started")
    half = add_garbage()
    assert workspace.states() == {"A": "working"}
    workspace.run("logs", "--no-follow").check_returncode()
    run = workspace.start()
    run.wait_to_say("Took over the worker of A")
    before = kinds_since(half)
    within = add_garbage(b"\n")
    run.finish("a", seconds=60)
    assert (workspace.starts(), is_running(first.pids["A"])) == (["A"], False), run.text
    assert (before[0], kinds_since(within)[-1]) == ("run_started", "run_ended")
    workspace.run("stop").check_returncode()


# ── 27 to 29: sizes and names ─────────────────────────────────────────────────────────────────────────────────────────

ODD_IDS = [
    "../../etc/x", "a/b", "-rf", ".", "..", "", "x" * 300, "🚀 Ünï", "two\nlines", "\x1b[31mred\x1b]0;title\x07",
    "[red]x[/]", "a b'\"$(x)`", "orchestrator", "[red]x[/]\x1b[31m\n",
]  # fmt: skip


def list_files(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if not path.is_dir()}


@pytest.mark.slow
def test_fault_27_odd_stream_ids_are_safe_names_and_reach_the_right_worker(workspace: Workspace) -> None:
    """Row 27: all of them at once."""
    workspace.database.add_streams(*ODD_IDS)
    workspace.play("until=gate all")
    before = list_files(workspace.root.parent)
    run = workspace.start("--max-workers", str(len(ODD_IDS)))
    wait_until(lambda: len(workspace.starts()) == len(ODD_IDS), "all workers")
    assert set(workspace.starts()) == set(ODD_IDS)
    for stream in ODD_IDS:
        assert f"Begin by running: /continue {stream}\n" in workspace.argv(stream)[0][-1]
    pids = [path.read_text().strip() for path in (workspace.state / "pids").glob("*.pid")]
    assert sorted(pids) == sorted(str(pid) for _, word, pid, _ in workspace.times() if word == "start")
    for words in (["status"], ["status", "--dashboard"], ["logs", "--no-follow"]):
        assert_harmless(workspace.check(*words))
    names = [line.split(" │ ")[0][6:] for line in workspace.run("status").stdout.splitlines() if " │ " in line]
    assert {"../../etc/x", "two␊lines", "␛[31mred␛]0;title␇", "[red]x[/]"} <= set(names)
    assert set(workspace.states()) == set(ODD_IDS)
    assert_harmless(run.finish("gate", seconds=60))
    fresh = {path.parent for path in list_files(workspace.root.parent) - before}
    state = workspace.state
    assert fresh <= {state, state / "pids", state / "logs", workspace.root, workspace.database.path.parent}
    assert {path.name for path in workspace.root.parent.iterdir()} == {"my-project", "home", "bin"}
    logs = {path.name for path in (state / "logs").glob("*.log")}
    assert len(logs) == len(ODD_IDS)
    assert all(len(name.encode()) < 200 and name.isprintable() for name in logs)
    assert {"-rf.log", "a%2Fb.log", "%.log", "%6Frchestrator.log"} <= logs


@pytest.mark.slow
def test_fault_27_a_command_for_an_odd_id_means_that_stream(workspace: Workspace) -> None:
    """Row 27: `start`, `stop` and `logs` by name, one after another; a stream that is not named is left alone."""
    named = ["../../etc/x", "-rf", "", "x" * 300, "two\nlines\x1b[31m", "[red]x[/]"]
    workspace.database.add_streams(*named, "other")
    workspace.play("sleep=600")
    run = workspace.start("--max-workers", "99", "--", *named)
    wait_until(lambda: set(workspace.starts()) == set(named), "the workers")
    living = set(named)
    for stream in named:
        for words in (["logs", "--no-follow", "--", stream], ["stop", "--", stream]):
            assert_harmless(workspace.check(*words))
        living.remove(stream)
        assert {p.info["environ"]["ORCHESTRATE_STREAM"] for p in own_processes(workspace.root)} == living
    assert workspace.states() == {**dict.fromkeys(named, "stopped"), "other": "idle"}
    assert run.goes_on


MEGABYTE = 1_000_000
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
    run = workspace.start(stream)
    log = workspace.state / "logs" / f"{stream}.log"
    wait_until(lambda: log.exists() and b"last words\n" in log.read_bytes(), "all to be rendered", 90)
    peak = read_peak(run.pid)
    run.finish(f"gate{megabytes}", seconds=60)
    return peak


def test_fault_28_a_flood_in_one_line_costs_little_memory_and_loses_nothing(workspace: Workspace) -> None:
    """Row 28: 200 MB in a line, every byte there is, invalid UTF-8 and NUL."""
    least = run_flood(workspace, 0)
    most = run_flood(workspace, 200)
    assert most - least <= 64 << 20, f"{(most - least) >> 20} MB for rendering"
    raw = workspace.state / "logs" / "A200.jsonl"
    with raw.open("rb") as file:
        assert all(file.read(MEGABYTE) == b"x" * MEGABYTE for _ in range(200))
        assert file.read() == RAW_BYTES
    log = (workspace.state / "logs" / "A200.log").read_text(errors="replace")
    assert "(a line of 200,000,000 bytes: see A200.jsonl)" in log
    raw.unlink()


@pytest.mark.parametrize("words", [["logs"], ["logs", "--raw"]])
def test_fault_28_logs_shows_a_flood_within_little_memory(workspace: Workspace, words: list[str]) -> None:
    """Row 28: the reader's side, without an orchestrator that has rendered it."""
    workspace.database.add_stream("A")
    workspace.play("sleep=600")
    workspace.start(wait="A").kill()
    peaks = []
    shown = workspace.root.parent / "shown"
    for content, end in ((b"small\nend\n", b"end"), (b"x" * MEGABYTE * 200 + b"\nfinis\n", b"finis")):
        with (workspace.state / "logs" / "A.jsonl").open("ab") as raw:
            raw.write(content)
        with shown.open("wb") as out:
            reader = workspace.popen(*words, "A", stdout=out, env={"PYTHONUNBUFFERED": "1"})
        wait_until(lambda last=end: ends_with(shown, last), "the last line", 90)  # type: ignore[misc]
        peaks.append(read_peak(reader.pid))
        reader.terminate()
        reader.wait(timeout=20)
        shown.unlink()
    (workspace.state / "logs" / "A.jsonl").unlink()
    assert peaks[1] - peaks[0] <= 64 << 20, f"{(peaks[1] - peaks[0]) >> 20} MB for one line"


def rename_output(raw: Path) -> None:
    raw.rename(raw.with_suffix(".1"))


def rename_and_replace_output(raw: Path) -> None:
    raw.rename(raw.with_suffix(".1"))
    raw.write_text('{"type": "result", "total_cost_usd": 99, "is_error": true}\n')


def copy_and_truncate_output(raw: Path) -> None:
    shutil.copy(raw, raw.with_suffix(".1"))
    os.truncate(raw, 0)


def remove_output(raw: Path) -> None:
    raw.unlink()


@pytest.mark.parametrize(
    "rotate_output", [rename_output, copy_and_truncate_output, rename_and_replace_output, remove_output]
)
@pytest.mark.parametrize("length", [10, 100_000])
def test_fault_39_what_a_worker_prints_after_its_output_was_rotated_is_read(
    workspace: Workspace, rotate_output: Callable[[Path], None], length: int
) -> None:
    """Row 39: as logrotate does it, in both ways; what follows may be longer than what was there, or shorter."""
    workspace.database.add_stream("A")
    workspace.write_lines(before="b" * 5000, after="a" * length)
    workspace.play("print=before cost=1 until=rotated print=after cost=1.5 all")
    run = workspace.start(wait="A")
    log = workspace.state / "logs" / "A.log"
    wait_until(lambda: log.exists() and "b" * 5000 in log.read_text(), "what it said before")
    rotate_output(workspace.state / "logs" / "A.jsonl")
    run.finish("rotated")
    (ended,) = workspace.events("worker_ended")
    assert (ended["cost"], ended["turns"], ended["verdict"]) == (1.5, 4, "complete")
    assert log.read_text().count("b" * 5000) == 1
    assert "a" * length in workspace.log("A")


INIT = {"type": "system", "subtype": "init"}
DONE = {"type": "result", "subtype": "success", "is_error": False, "num_turns": 2, "result": "All is said."}
DENIED = {**DONE, "is_error": True, "result": "Not logged in · Please run /login"}
LIMITED = {**DONE, "is_error": True, "api_error_status": 429, "result": "You've hit your session limit · resets 3pm"}


def list_background(*kinds: str) -> dict[str, Any]:
    tasks = [{"task_id": kind, "task_type": kind, "description": "a server"} for kind in kinds]
    return {"type": "system", "subtype": "background_tasks_changed", "tasks": tasks}


@pytest.mark.parametrize(
    ("part", "result", "verdict", "reason"),
    [
        ("", DONE, "restart", "stopped: it was done, and did not exit by itself, 1 task open"),
        ("block=why", DONE, "blocked", "why (TASK-1)"),
        ("", LIMITED, "paused", "You've hit your session limit · resets 3pm"),
        ("", DENIED, "failed", "Not logged in · Please run /login, stopped: it was done, and did not exit by itself"),
        ("all", DONE, "complete", ""),
    ],
)
def test_fault_40_a_worker_that_has_printed_its_result_and_does_not_exit_is_ended_and_judged_by_it(
    workspace: Workspace, part: str, result: Any, verdict: str, reason: str
) -> None:
    """Row 40."""
    workspace.database.add_stream("A")
    workspace.write_lines(init=INIT, result=result)
    workspace.play(A=[f"print=init {part} print=result sleep=3600", "sleep=3600"])
    run = workspace.start("--finish-grace", "1", "--stall-timeout", "0")
    ended = workspace.wait_for_event("worker_ended", stream="A")
    assert (ended["verdict"], ended["reason"], ended["exit_code"]) == (verdict, reason, None)
    (stopping,) = workspace.events("worker_stopping", stream="A")
    assert stopping["why"] == "GRACE"
    assert stopping["clock"] - workspace.events("worker_started")[0]["clock"] >= 1
    run.process.send_signal(signal.SIGTERM)
    run.process.wait(timeout=20)


@pytest.mark.parametrize(
    ("part", "kinds", "ends"),
    [
        ("all", ["local_bash"], True),
        ("block=why", ["local_bash"], True),
        ("", ["local_bash"], False),  # it will be woken, and has something to do
        ("all", ["local_agent"], False),
        ("block=why", ["local_bash", "local_agent"], False),
        ("", ["local_agent"], False),
        ("all", ["something_new"], False),
    ],
)
def test_fault_40_what_runs_in_the_background_may_wake_a_worker_that_has_printed_its_result(
    workspace: Workspace, part: str, kinds: list[str], ends: bool
) -> None:
    """Row 40: a subagent is waited for, and so is a shell while tasks are open; a server left running ends it early."""
    workspace.database.add_stream("A")
    workspace.write_lines(init=INIT, result=DONE, background=list_background(*kinds), idle=list_background())
    workspace.play(
        f"print=init print=background {part} print=result until=woken print=idle print=init sleep=0.7 next exit=0"
    )
    script = hasten(workspace, SHELL_GRACE="1")
    grace = "60" if ends else "1"
    run = workspace.start("--finish-grace", grace, "--stall-timeout", "0", wait="A", script=script)
    if ends:
        assert workspace.wait_for_event("worker_stopping")["why"] == "GRACE"
        assert workspace.wait_for_event("worker_ended")["verdict"] == ("complete" if part == "all" else "blocked")
        return
    wait_until(lambda: "All is said." in (workspace.state / "logs" / "A.jsonl").read_text(), "the result")
    begin = time.monotonic()
    wait_until(lambda: time.monotonic() > begin + 3, "three times the grace")
    assert is_running(run.pids["A"])
    if "block" in part:
        run.end(signal.SIGTERM, 143)
    else:
        run.finish("woken")
    assert workspace.events("worker_stopping") == []


def test_fault_41_a_worker_that_never_prints_a_line_is_shown_silent_and_restarted(workspace: Workspace) -> None:
    """Row 41, with a shortened limit. That of every day stands in `--help`."""
    assert re.search(
        r"--stall-timeout MINUTES .{,200}default: 60\b", " ".join(workspace.check("start", "--help").split())
    )
    workspace.database.add_stream("A")
    workspace.play(A=["sleep=3600", "all"])
    script = hasten(workspace, CPU_INTERVAL="1")
    command = 'echo "$ORCHESTRATE_EVENT $ORCHESTRATE_MESSAGE" >> told.txt'
    run = workspace.start("--stall-timeout", "0.1", "--notify", command, wait="A", script=script)
    run.wait_to_say("A silent: no sign of life for 1s")
    wait_until(lambda: workspace.states() == {"A": "silent"}, "the silence in the status")
    assert re.search(r"Silent \(PID: \d+\) for [1-9]s", workspace.check("status"))
    wait_until(lambda: "silent A silent: no sign" in (workspace.root / "told.txt").read_text(), "the notification")
    out = run.finish()
    assert "Stopping the worker of A: it gave no sign of life" in out
    assert "Restarting worker for A (1/10) in 1s: stopped: it gave no sign of life" in out
    assert len(workspace.events("state", state="SILENT")) == 1


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
    streams = workspace.status()["streams"]
    assert len(streams) == 1000
    counts = {"total": 95, "pending": 45, "in_progress": 0, "blocked": 0, "completed": 50, "cancelled": 5}
    assert all((stream["tasks"], stream["percent"]) == (counts, 52) for stream in streams)
    order = [f"S-{number}" for number in range(1000)]
    assert [stream["id"] for stream in streams] == order, "not in the order of the phases and numbers"
    plan = workspace.run("start", "--dry-run").stdout.splitlines()
    assert [line[12:].split()[0] for line in plan if line.startswith(("found", "para", "integ"))] == order
    out = workspace.complete("--phase", "foundation", timeout=100)
    assert workspace.starts() == order[:2]
    assert "  all complete: 2 streams, 190 tasks\n" in out


# ── 30 to 32: waiting ─────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("code", [1, 0])
def test_fault_30_nothing_restarts_while_all_is_blocked_and_a_worker_comes_at_once_after(
    workspace: Workspace, code: int
) -> None:
    """Row 30: without a restart to spend, and with a poll interval of ten minutes."""
    workspace.database.add_stream("A", tasks=3)
    workspace.play(A=[f"next block=key exit={code}", "until=a all"])
    run = workspace.start("--max-restarts", "0")
    assert workspace.wait_for_event("run_waiting")["reason"] == "A is blocked: key (TASK-2, TASK-3)"
    assert workspace.states() == {"A": "blocked"}
    assert "Blocked: key (TASK-2, TASK-3)" in workspace.run("status").stdout
    workspace.database.execute("UPDATE tasks SET blocked_reason = 'another' WHERE status = 'blocked'")
    run.wait_to_say("A blocked: another")
    assert workspace.starts() == ["A"]
    unblocked_at = time.monotonic()
    workspace.database.execute("UPDATE tasks SET status = 'pending' WHERE id = 'TASK-3'")  # one of two
    second = workspace.wait_for_event("worker_started", 2)
    assert second["clock"] - unblocked_at < 10  # generous on a busy machine; the poll interval is not the cause
    run.finish("a", seconds=60)
    assert workspace.starts() == ["A", "A"]
    assert [end["restarts"] for end in workspace.events("worker_ended")] == [0, 0]


@pytest.mark.slow
def test_fault_31_a_usage_limit_of_one_worker_keeps_all_from_starting_until_its_reset(workspace: Workspace) -> None:
    """Row 31: without a restart to spend. B ends in the pause, C goes on through it, D appears in it."""
    workspace.database.add_streams("A", "B", "C")
    workspace.play("all", A=["limit=10", "all"], B=["until=b limit=8", "all"], C="until=c all")
    run = workspace.start("--max-restarts", "0", wait="C")
    workspace.wait_for_event("run_paused")
    workspace.open_gate("b")
    workspace.database.add_stream("D")
    workspace.wait_for_event("worker_ended", 2)
    wait_until(lambda: workspace.states().get("D") == "paused", "D to wait with the others")
    assert is_running(run.pids["C"])
    run.finish("c", seconds=60)
    reset = max(event["clock"] + event["delay"] for event in workspace.events("run_paused"))
    started = [(e["stream"], e["clock"]) for e in workspace.events("worker_started")]
    assert sorted(stream for stream, _ in started) == ["A", "A", "B", "B", "C", "D"]
    assert all(clock >= reset - 0.01 for _, clock in started[3:]), "a worker started before the reset"
    assert [end["restarts"] for end in workspace.events("worker_ended")] == [0] * 6


@contextlib.contextmanager
def limited(pid: int, what: int, soft: int) -> Iterator[None]:
    """Let a running process have no more of something."""
    if not hasattr(resource, "prlimit"):
        pytest.skip("this system can't limit another process")
    before = resource.prlimit(pid, what)
    resource.prlimit(pid, what, (soft, before[1]))
    yield
    resource.prlimit(pid, what, before)


@contextlib.contextmanager
def scarce_files(pid: int, spare: int) -> Iterator[None]:
    """Leave a running process so many file descriptors beyond those that it has open."""
    taken = {int(entry.name) for entry in Path(f"/proc/{pid}/fd").glob("*")}
    lowest = [number for number in range(1000) if number not in taken][:spare]
    with limited(pid, resource.RLIMIT_NOFILE, lowest[-1] + 1 if lowest else 0):
        yield


@contextlib.contextmanager
def scarce_processes(pid: int) -> Iterator[None]:
    """Let a running process make no other: by its limit, which root is exempt from, or by a control group."""
    if os.geteuid() != 0 and hasattr(resource, "prlimit"):
        with limited(pid, resource.RLIMIT_NPROC, 0):
            yield
        return
    roots = (Path("/sys/fs/cgroup/pids"), Path("/sys/fs/cgroup"))
    root = next((path for path in roots if (path / "cgroup.procs").exists()), None)
    if root is None or not os.access(root, os.W_OK):
        pytest.skip("root without control groups: nothing limits its processes")
    group = root / f"orchestrate-test-{pid}"
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


@pytest.mark.parametrize(
    ("limit", "number"),
    [(lambda pid: scarce_files(pid, 3), errno.EMFILE), (scarce_processes, errno.EAGAIN)],
    ids=["files", "processes"],
)
def test_fault_32_no_process_to_be_had_is_a_failed_start(
    workspace: Workspace, limit: Callable[[int], Any], number: int
) -> None:
    """Row 32: counted, paused for, recovered from. There is enough for all that the loop does, not for a pipe."""
    workspace.database.add_streams("A", "B")
    workspace.play(A=["until=a exit=1", "all"], B="until=b all")
    run = workspace.start("--max-restarts", "6", wait="AB")
    workspace.wait_for_event("state", 2, state="RUNNING")

    def failed_starts() -> list[dict[str, Any]]:
        return [end for end in workspace.events("worker_ended") if os.strerror(number) in end["ending"]]

    with limit(run.pid):
        workspace.open_gate("a")
        wait_until(lambda: not run.goes_on or len(failed_starts()) >= 2, "two failed starts")
        assert run.goes_on, f"the orchestrator gave up: {run.text}"
        assert (workspace.starts("A"), is_running(run.pids["B"])) == (["A"], True)
    wait_until(lambda: len(workspace.starts("A")) == 2 or not run.goes_on, "a worker for A", 60)
    out = run.finish("b", seconds=60)
    assert (workspace.starts("A"), workspace.starts("B")) == (["A", "A"], ["B"]), out
    failed = failed_starts()
    assert [end["restarts"] for end in failed] == list(range(2, 2 + len(failed)))
    delays = [end["delay"] for end in failed]
    assert delays == sorted(delays)
    assert delays[0] >= 1.8


@pytest.mark.parametrize("spare", [0, 1, 2])
def test_fault_32_the_loop_lives_where_hardly_a_file_can_be_opened(workspace: Workspace, spare: int) -> None:
    """Row 32: not a single file, or one or two; a worker ends meanwhile."""
    workspace.database.add_stream("A")
    workspace.play(A=["until=a exit=1", "all"])
    run = workspace.start(wait="A")
    workspace.wait_for_event("state")
    with scarce_files(run.pid, spare):
        workspace.open_gate("a")
        wait_until(lambda: not is_running(run.pids["A"]), "the worker to end")
        let_pass(2, run)
    run.finish(seconds=60)
    assert workspace.starts("A") == ["A", "A"]


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
    parts: dict[str, str | list[str]] = {}
    for number, record in enumerate(r for r in RECORDS if SCENARIOS[r["scenario"]].cause in causes):
        words = []
        for place, line in enumerate(record["lines"]):
            if isinstance(line, dict) and "resetsAt" in line.get("rate_limit_info", ()):
                line["rate_limit_info"]["resetsAt"] = int(time.time()) + 7200
            if isinstance(line, dict) and line["type"] == "result":
                line["total_cost_usd"] = cost
            lines[f"{number}-{place}"] = line
            words.append(f"print={number}-{place}")
        parts[f"S{number}"] = [" ".join([*words, f"exit={record['code']}"]), "all"]
    workspace.database.add_streams(*parts)
    workspace.write_lines(**lines)
    workspace.play("all", **parts)
    return list(parts)


@pytest.mark.slow
def test_fault_42_a_usage_limit_in_every_form_and_version_is_a_pause(workspace: Workspace) -> None:
    """Row 42: as four versions print it, as JSON and as text; the first of them pauses the run for all."""
    names = prepare_endings(workspace, "LIMIT")
    assert len(names) == 56
    run = workspace.start("--max-workers", "60", "--max-restarts", "0")
    wait_until(lambda: len(workspace.events("worker_ended")) == len(names), "all ends", seconds=60)
    assert {(end["verdict"], end["restarts"]) for end in workspace.events("worker_ended")} == {("paused", 0)}
    assert 895 < max(pause["delay"] for pause in workspace.events("run_paused")) < 7202
    assert sorted(workspace.starts()) == sorted(names)
    run.kill()


def test_fault_42_a_limit_in_text_and_exit_code_0_is_a_pause_too(workspace: Workspace) -> None:
    """Row 42: with a shortened pause, since no event tells the reset."""
    workspace.database.add_stream("A")
    workspace.play(A=["print=limit exit=0", "print=prose exit=0", "all"])
    limit = "You've hit your limit · resets 3pm"
    workspace.write_lines(limit=f"{limit} (UTC)", prose=f"I read: {limit}")
    workspace.complete("--output-format", "text", script=hasten(workspace, LIMIT_PAUSE="1.0"))
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
    workspace.write_lines(**{str(n): line for n, line in enumerate(lines)})
    workspace.database.add_stream("A")
    workspace.database.add_stream("B", tasks=3)
    printed = " ".join(f"print={n}" for n in range(len(lines)))
    workspace.play(A=[printed, "all"], B="next sleep=0.2 exit=1")
    run = workspace.start("--max-restarts", "1")
    end = wait_for_ends(workspace, "A", 1)
    assert (end["verdict"], end["restarts"]) == ("limited", 0)
    shown = workspace.run("status").stdout
    assert "│ Paused for " in shown
    assert "a subagent hit the seven day opus limit" in shown
    out = run.finish(seconds=60)
    assert workspace.events("run_paused") == []
    assert re.search(r"A paused for \ds: exit code 0, a subagent hit the seven day opus limit", out)
    _, begun = workspace.events("worker_started", stream="A")
    assert read_moment(begun) >= resets_at
    assert "The last worker ended: exit code 0, a subagent hit the seven day opus limit" in workspace.argv("A")[1][-1]


@pytest.mark.slow
@pytest.mark.parametrize("cost", [0.0, 0.5])
def test_fault_43_an_outage_in_every_form_and_version_is_tried_again(workspace: Workspace, cost: float) -> None:
    """Row 43: as four versions print it, as JSON and as text, before and after paid work."""
    names = prepare_endings(workspace, "OUTAGE", cost=cost)
    assert len(names) == 96
    out = workspace.complete("--max-workers", "99", "--max-restarts", "0", timeout=110)
    ends = [(end["verdict"], end["cause"], end["restarts"]) for end in workspace.events("worker_ended")]
    assert sorted(ends) == sorted([("restart", "OUTAGE", 0), ("complete", "OTHER", 0)] * len(names))
    assert out.count("Trying S") == len(names)


def test_fault_43_an_outage_after_paid_work_is_free_five_times(workspace: Workspace) -> None:
    """Row 43: and from the sixth time on it spends a restart, until a task is completed. The pauses are shortened."""
    result = {"type": "result", "is_error": True, "result": "API Error: 529 Overloaded.", "total_cost_usd": 0.1}
    workspace.write_lines(down=result)
    workspace.database.add_stream("A", tasks=2)
    workspace.play(A=[*["print=down exit=1"] * 6, "next print=down exit=1", *["print=down exit=1"] * 9])
    script = hasten(workspace, BACKOFF_FIRST="0.01", BACKOFF_MAX="0.05")
    workspace.complete("--max-restarts", "2", code=1, script=script)
    ends = [(end["verdict"], end["restarts"]) for end in workspace.events("worker_ended")]
    free = ("restart", 0)
    assert ends == [*[free] * 5, ("restart", 1), *[free] * 5, ("restart", 1), ("restart", 2), ("failed", 2)]


def test_fault_44_a_login_that_fails_once_while_others_work_is_tried_again(workspace: Workspace) -> None:
    """Row 44: A works on the same login. B is refused once, C for ever. The minutes are shortened."""
    refused = {"type": "result", "is_error": True, "api_error_status": 401, "result": "Failed to authenticate."}
    answer = {"type": "assistant", "message": {"model": "opus", "content": [{"type": "text", "text": "Hello"}]}}
    workspace.write_lines(refused=refused, answer=answer)
    workspace.database.add_streams("A", "B", "C")
    no = "until=answered sleep=0.6 print=refused exit=1"
    workspace.play(A="print=answer write=answered until=go all", B=[no, "all"], C=no)
    run = workspace.start("--max-restarts", "0", script=hasten(workspace, LOGIN_PAUSE="0.5"))
    run.wait_to_say("C failed")
    out = run.finish("go", code=1, seconds=60)
    assert workspace.states() == {"A": "complete", "B": "complete", "C": "failed"}
    assert workspace.starts("C") == ["C"] * 4
    assert out.count("Trying C again in 0s: exit code 1: Failed to authenticate.") == 3
    assert {end["restarts"] for end in workspace.events("worker_ended")} == {0}


def test_fault_44_in_text_mode_a_completed_task_shows_that_the_login_is_good(workspace: Workspace) -> None:
    """Row 44: nothing else does, while a worker lives. A is refused after its first task, B beside it before any."""
    workspace.write_lines(no="Failed to authenticate. API Error: 401 expired")
    workspace.database.add_stream("A", tasks=2)
    workspace.database.add_stream("B")
    workspace.play(A=["next until=go print=no exit=1", "all"], B=["until=worked print=no exit=1", "all"])
    script = hasten(workspace, LOGIN_PAUSE="0.2")
    run = workspace.start("--output-format", "text", "--max-restarts", "0", script=script)
    wait_until(lambda: workspace.database.execute("SELECT 1 FROM tasks WHERE status = 'completed'"), "a task")
    workspace.open_gate("worked")
    run.wait_to_say("Trying B again")
    out = run.finish("go", seconds=60)
    assert workspace.states() == {"A": "complete", "B": "complete"}
    assert "Trying A again" in out


def test_fault_44_a_login_that_was_never_good_fails_at_once(workspace: Workspace) -> None:
    """Row 44: nobody has worked on it in this run; that of the night before says nothing."""
    workspace.database.add_stream("A")
    workspace.complete()
    workspace.database.add_stream("B")
    workspace.play(B="print=no exit=1")
    workspace.write_lines(no="Not logged in · Please run /login")
    done = workspace.run("start", *NO_POLL)
    assert "✗ B failed: exit code 1: Not logged in · Please run /login\n" in done.stdout
    assert workspace.starts("B") == ["B"]


@contextlib.contextmanager
def replaced(program: Path, lose: Callable[[Path], object]) -> Iterator[None]:
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
    ("words", "lose", "disturb"), [*((*loss, replaced) for loss in LOSSES), ("Text file busy", None, written)]
)
def test_fault_45_a_claude_that_is_away_for_some_seconds_fails_no_stream(
    workspace: Workspace, words: str, lose: Callable[[Path], object] | None, disturb: Callable[..., Any]
) -> None:
    """Row 45: in the middle of a run. A script is never busy, so an executable stands before that of the tests."""
    workspace.database.add_stream("A", tasks=2)
    workspace.play(A=["next until=gate exit=1", "all"])
    program = workspace.root.parent / "program" / "claude"
    program.parent.mkdir()
    shutil.copy2(str(shutil.which("env")), program)
    run = workspace.start("--claude", f"{program} {workspace.claude}", "--max-restarts", "1", wait="A")
    with disturb(program, lose):
        workspace.open_gate("gate")
        run.wait_to_say("Trying A again", 2)
    assert words in run.finish(seconds=60)
    *tries, last = (end["restarts"] for end in workspace.events("worker_ended"))
    assert (set(tries), last) == ({1}, 0)  # that of the worker that ended with 1, before
    assert workspace.starts("A") == ["A", "A"]


def test_fault_45_a_worker_that_lives_for_some_time_shows_that_claude_can_be_executed(workspace: Workspace) -> None:
    """Row 45: in text mode, and before any worker has ended. The time is shortened."""
    workspace.database.add_stream("A")
    workspace.play(A="until=late burn=3 until=go all")
    script = hasten(workspace, CPU_INTERVAL="0.5")
    run = workspace.start("--output-format", "text", script=script, wait="A")
    path = workspace.state / "pids" / "A.pid"
    before = path.stat().st_mtime_ns
    workspace.open_gate("late")
    wait_until(lambda: path.stat().st_mtime_ns != before, "a look at its CPU time, which is a sign of life")
    with replaced(workspace.claude, Path.unlink):
        workspace.database.add_stream("B")
        run.wait_to_say("Trying B again")
    run.finish("go", seconds=60)
    assert workspace.states() == {"A": "complete", "B": "complete"}


def test_fault_45_a_claude_that_stays_away_fails_its_stream_after_two_minutes(workspace: Workspace) -> None:
    """Row 45: with the reason; the other worker goes on. The pauses are shortened."""
    workspace.database.add_stream("A", tasks=2)
    workspace.database.add_stream("B")
    workspace.play(A="next until=gate exit=1", B="until=late all")
    run = workspace.start(script=hasten(workspace, BACKOFF_FIRST="0.01", BACKOFF_MAX="0.05"), wait="AB")
    workspace.claude.unlink()
    workspace.open_gate("gate")
    run.wait_to_say("A failed")
    assert is_running(run.pids["B"]), "the other worker was harmed"
    out = run.finish("late", code=1, seconds=60)
    remedy = "Install Claude Code (npm install -g @anthropic-ai/claude-code) or add it to PATH"
    reason = f"claude: command not found. {remedy}; --claude CMD names another command."
    assert f"✗ A failed: {reason}\n" in out
    assert out.count("Trying A again") == 7
    assert workspace.states() == {"A": "failed", "B": "complete"}


# ── 33: worktrees that can't be had ───────────────────────────────────────────────────────────────────────────────────

FOREIGN = "is no worktree of this repository. Look at what it holds: mv {0} {0}.old"


# What stands where stream A's worktree belongs, as the shell makes it, and the reason why A fails. $TREE is that place,
# $OUT a folder beside the project.
SPOILS = {
    "a folder": ('mkdir -p "$TREE"; echo mine > "$TREE/notes.md"', f"$TREE {FOREIGN.format('$TREE')}"),
    "a file": ('mkdir -p "$TREE/.."; rmdir "$TREE"; echo mine > "$TREE"', f"$TREE {FOREIGN.format('$TREE')}"),
    "a link": ('mkdir -p "$TREE" "$OUT"; rmdir "$TREE"; echo mine > "$OUT/notes.md"; ln -s "$OUT" "$TREE"',
               f"$OUT {FOREIGN.format('$OUT')}"),
    "another repository": ('git clone --quiet . "$TREE"', f"$TREE {FOREIGN.format('$TREE')}"),
    "lost its .git": ('git worktree add --quiet -b stream/A "$TREE"; echo mine > "$TREE/new.py"; rm "$TREE/.git"',
                      "$TREE is a worktree that has lost its .git. Look at what it holds: mv $TREE $TREE.old"),
    "checked out elsewhere": ('git worktree add --quiet -b stream/A "$OUT"',
                              "branch stream/A is checked out in $OUT. git -C $OUT switch --detach"),
    "checked out in the root": ("git switch --quiet -c stream/A",
                                "branch stream/A is checked out in $PWD. git -C $PWD switch --detach"),
    "on another branch": ('git worktree add --quiet -b mine "$TREE"',
                          "the worktree $TREE is on branch mine, not on stream/A. "
                          "Bring it back: git -C $TREE switch stream/A"),
    "on no branch": ('git worktree add --quiet --detach "$TREE"',
                     "the worktree $TREE is on no branch, not on stream/A. "
                     "Bring it back: git -C $TREE switch stream/A"),
    "locked and not there": ('git worktree add --quiet --lock -b stream/A "$TREE"; rm -r "$TREE"',
                             "the worktree $TREE is locked, and is not there. Mount it, or: git worktree unlock $TREE"),
}  # fmt: skip


def find_worktree(workspace: Workspace) -> Path:
    """Where the worktree of stream A belongs."""
    return workspace.root / ".claude" / "worktrees" / "A"


def read_everything(workspace: Workspace) -> tuple[str, str, dict[str, str]]:
    """Return the worktrees, the branches with their commits, and what files of people hold."""
    trees = workspace.git("worktree", "list", "--porcelain")
    files = [*workspace.root.parent.rglob("*.md"), *workspace.root.parent.rglob("*.py")]
    return trees, workspace.git("for-each-ref"), {str(path): path.read_text() for path in files}


@pytest.mark.parametrize("spoil", SPOILS)
def test_fault_33_a_worktree_that_can_not_be_had_fails_its_stream_at_once_and_nothing_is_deleted(
    workspace: Workspace, spoil: str
) -> None:
    """Row 33: in the way, no worktree, checked out elsewhere, locked: refused; in a run no sibling waits."""
    workspace.make_repository()
    workspace.database.add_stream("F", "foundation")
    workspace.database.add_streams("A", "B")
    places = {"TREE": str(find_worktree(workspace)), "OUT": str(workspace.root.parent / "elsewhere")}
    script, reason = SPOILS[spoil]
    workspace.play("commit=b.py all", F="until=go.txt all")
    run = workspace.start()
    workspace.wait_for_worker("F")
    subprocess.run(["sh", "-e", "-c", script], cwd=workspace.root, env=workspace.environment(**places), check=True)
    reason = Template(reason).substitute(places, PWD=workspace.root)
    trees, refs, files = read_everything(workspace)
    out = run.finish("go.txt", code=1)
    assert f"A failed: {reason}" in out
    assert [event["reason"] for event in workspace.events("worker_ended", stream="A")] == [reason]
    assert workspace.starts() == ["F", "B"]
    assert workspace.states() == {"F": "complete", "A": "failed", "B": "complete"}
    after = read_everything(workspace)
    again = workspace.run("start")
    assert (again.returncode, again.stdout) == (2, "")
    assert again.stderr == "[ERROR] A: {}\n{}\n".format(*reason.split(". ", 1))
    assert read_everything(workspace) == after
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
    out = workspace.complete()
    assert workspace.git("status", "--porcelain", cwd=folder) == " M README.md\n?? new.py\n"
    assert (folder / "a.py").read_text() == "A\n"
    assert "stream/A  # 1 commit to merge, 1 file changed, 2 files uncommitted\n" in out


def test_fault_33_without_git_no_parallel_stream_is_begun_for_and_the_other_phases_work(workspace: Workspace) -> None:
    """Row 33: a repository, and no git on the PATH."""
    workspace.make_repository()
    workspace.database.add_stream("F", "foundation")
    workspace.database.add_stream("A")
    without = {"PATH": str(workspace.bin)}
    refused = workspace.run("start", *NO_POLL, env=without)
    assert (refused.returncode, refused.stdout) == (2, "")
    assert refused.stderr == "[ERROR] git: command not found\nInstall git, or start with --no-worktrees.\n"
    out = workspace.complete("--phase", "foundation", env=without)
    assert out.count("Warning: git can't be asked: git: command not found") == 1
    assert workspace.starts() == ["F"]
    workspace.run("start", "--no-worktrees", *NO_POLL, env=without).check_returncode()
    assert workspace.starts() == ["F", "A"]


def test_fault_33_a_git_that_vanishes_in_a_run_fails_what_starts_then_and_nothing_else(workspace: Workspace) -> None:
    """Row 33: the siblings that are at work finish, and what they made stays."""
    workspace.make_repository()
    workspace.database.add_streams("A", "B")
    workspace.database.add_stream("C", streamDependencies=["B"])
    workspace.play(A="commit=a.py until=go.txt all", B="until=next.txt all")
    tools = workspace.root.parent / "tools"
    tools.mkdir()
    for name in ("git", "rm", "mkdir"):
        (tools / name).symlink_to(shutil.which(name) or "")
    run = workspace.start(env={"PATH": f"{workspace.bin}:{tools}"})
    worktree = find_worktree(workspace)
    wait_until(lambda: (worktree / "a.py").exists() and "B" in workspace.starts(), "the work of A")
    wait_until(lambda: "A:_a.py" in workspace.git("log", "--format=%s", "stream/A"), "the commit of A")
    (tools / "git").unlink()
    workspace.open_gate("next.txt")
    wait_for_ends(workspace, "C", 1)
    run.finish("go.txt", code=1)
    assert workspace.states() == {"A": "complete", "B": "complete", "C": "failed"}
    assert workspace.starts("C") == []
    assert (worktree / "a.py").read_text() == "A\n"


# ── 46: a git that is slow ────────────────────────────────────────────────────────────────────────────────────────────

# What serves a warning or a display alone.
ADVICE = "status ls-files grep rev-list diff merge-tree stash"


@pytest.mark.parametrize("seconds", [12, 3600])
def test_fault_46_a_git_that_is_slow_with_its_advice_fails_no_stream_and_holds_nothing_up(
    workspace: Workspace, seconds: int
) -> None:
    """Row 46: what it could not tell is left out or said, of the run, its plan and every look at it."""
    workspace.make_repository()
    workspace.database.add_streams("A", "B")
    workspace.database.add_stream("I", "integration")
    git = shutil.which("git") or "git"
    cases = ADVICE.replace(" ", "|")
    shim = workspace.bin / "git"
    shim.write_text(f'#!/bin/sh\nfor word; do case $word in {cases}) sleep {seconds};; esac; done\nexec {git} "$@"\n')
    shim.chmod(0o755)
    workspace.play("all")
    begin = time.monotonic()
    workspace.complete(timeout=60)
    ends = workspace.events("worker_ended")
    assert [end["verdict"] for end in ends] == ["complete"] * 3
    for words in (["status"], ["start", "--dry-run"], ["doctor"]):
        workspace.run(*words)
    assert time.monotonic() - begin < 40  # each second that is waited for is one; a dozen of them is no wait for git
    assert "what it holds is not known: git " in workspace.run("status").stdout


# ── 49: git as people have set it up ──────────────────────────────────────────────────────────────────────────────────


def exclude(workspace: Workspace, *patterns: str) -> None:
    """Let git ignore these files, beside the tests' own."""
    with (workspace.root / ".git" / "info" / "exclude").open("a") as file:
        file.writelines(f"{pattern}\n" for pattern in patterns)


def finish_streams(workspace: Workspace, *streams: str, **parts: str) -> str:
    """Run parallel streams to their end, each with a commit of a file of its name."""
    workspace.make_repository()
    workspace.database.add_streams(*streams)
    workspace.play(**{stream: parts.get(stream, f"commit={stream}.py all") for stream in streams})
    return workspace.complete()


def test_fault_49_a_signer_that_waits_for_a_passphrase_holds_a_merge_up_for_a_bounded_time(
    workspace: Workspace,
) -> None:
    """Row 49: it has no terminal to ask on, it is ended, and the tree is as it was."""
    finish_streams(workspace, "A")
    signer = workspace.root.parent / "signer"
    signer.write_text(f"#!/bin/sh\n(: < /dev/tty) 2> /dev/null && echo tty > {signer}.tty\nexec sleep 3600\n")
    signer.chmod(0o755)
    workspace.git("config", "commit.gpgSign", "true")
    workspace.git("config", "gpg.program", str(signer))
    before = workspace.git("rev-parse", "HEAD"), workspace.git("status", "--porcelain")
    script = hasten(workspace, SIGN_TIMEOUT="1")
    exclude(workspace, "/orchestrate.py")
    done = workspace.run("merge", script=script)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        "[ERROR] stream/A was not merged, the tree is as it was: git commit took longer than 1 s: "
        "does what signs it wait for a passphrase?\n"
        f"Merge it by hand (git merge --no-ff refs/heads/stream/A), then go on: {sys.executable} {script} merge\n"
    )
    assert (workspace.git("rev-parse", "HEAD"), workspace.git("status", "--porcelain")) == before
    assert not (workspace.root / ".git" / "MERGE_HEAD").exists()
    assert not Path(f"{signer}.tty").exists()
    assert own_processes(workspace.root) == []
    workspace.git("config", "gpg.program", "false")
    assert "git commit: error: gpg failed to sign the data" in workspace.run("merge").stderr
    workspace.git("config", "commit.gpgSign", "false")
    assert workspace.run("merge").stdout == "Merged stream/A into main: 1 commit\n"


def test_fault_49_a_tag_of_the_branchs_name_is_never_taken_for_it(workspace: Workspace) -> None:
    """Row 49: git prefers the tag; neither a run, nor merge, nor the command that is printed does."""
    workspace.make_repository()
    workspace.git("commit", "--quiet", "--allow-empty", "-m", "tagged")
    workspace.git("tag", "stream/A")
    workspace.database.add_stream("A", tasks=2)
    workspace.play(A=["commit=a.py next exit=1", "commit=b.py all"])
    out = workspace.complete()
    assert workspace.git("log", "--format=%s", "refs/heads/stream/A").split() == [
        "A:_b.py",
        "A:_a.py",
        "tagged",
        "Begin",
    ]
    command = next(line for line in out.splitlines() if line.startswith("  git merge"))
    subprocess.run(["sh", "-ec", f"{command}\ngit reset -q --hard HEAD~"], cwd=workspace.root, check=True,
                   env=workspace.environment(), stdout=subprocess.DEVNULL)  # fmt: skip
    assert workspace.run("merge").stdout == "Merged stream/A into main: 2 commits\n"
    assert (workspace.root / "b.py").exists()
    assert "Removed branch stream/A" in workspace.run("clean").stdout
    assert workspace.git("for-each-ref", "--format=%(refname)").split() == ["refs/heads/main", "refs/tags/stream/A"]


SQUASH = "git merge -q --squash refs/heads/stream/{0} > /dev/null; git commit -qm squash-{0}; "
PUSH = "git init -q --bare ../bare; git remote add origin ../bare; git push -q -u origin stream/A; "
# How the work came to HEAD, and whether `clean` may take it as merged.
WAYS = {
    "squash": (SQUASH.format("A"), True),
    "squash, and HEAD went on there": (f"{SQUASH.format('A')} echo more >> base.md; git commit -qam more", True),
    "cherry-pick": ("git cherry-pick stream/A~1 stream/A > /dev/null", True),
    "half of it": ("git cherry-pick stream/A~1 > /dev/null", False),
    "squash, and reverted": (f"{SQUASH.format('A')} git revert --no-edit HEAD > /dev/null", False),
    "merged, its upstream lacks some of it": (
        f"{PUSH} git push -q -f origin stream/A~1:stream/A; git merge -q --no-ff --no-edit stream/A", True),
    "in its upstream alone": (PUSH, False),
    "removed there, changed here": ("echo ours > a.md; git commit -qam ours", False),
    "a merge driver that takes ours": (
        "echo 'base.md merge=ours' > .git/info/attributes; git config merge.ours.driver true; "
        "sed -i.bak 's/line 3$/line 3 of ours/' base.md; rm base.md.bak; git commit -qam ours", False),
}  # fmt: skip


@pytest.mark.parametrize("way", WAYS)
def test_fault_49_clean_takes_as_merged_what_is_in_head_however_it_came_there(workspace: Workspace, way: str) -> None:
    """Row 49: a squash, a cherry-pick, an upstream; what is not there is kept."""
    script, is_merged = WAYS[way]
    workspace.make_repository("README.md", "base.md", "a.md")
    (workspace.root / "base.md").write_text("".join(f"line {n}\n" for n in range(20)))
    workspace.git("commit", "--quiet", "-am", "Base")
    workspace.database.add_stream("A")
    (workspace.root / "edit.txt").write_text(
        "sed -i.bak 's/line 3/line three/' base.md; rm base.md.bak; git commit -qam Edit"
    )
    workspace.play("git=rm,-q,a.md git=commit,-qm,Remove sh=edit.txt commit=a.py all" if "removed" in way else
                   "sh=edit.txt commit=a.py all" if "driver" not in way else "sh=edit.txt all")  # fmt: skip
    workspace.complete()
    subprocess.run(["sh", "-ec", script], cwd=workspace.root, env=workspace.environment(), check=True)
    (branch,) = workspace.status()["streams"][0]["branches"]
    assert (branch["commits_ahead"] == 0) is is_merged
    cleaned = workspace.run("clean").stdout
    assert bool(re.search(r"Removed branch stream/A( \(was \w{10}\))?: it is merged", cleaned)) is is_merged, cleaned
    assert (workspace.root / ".claude" / "worktrees" / "A").exists() is not is_merged


def test_fault_49_a_tracked_gitignore_where_the_worktrees_lie_stays_as_it_is(workspace: Workspace) -> None:
    """Row 49: nor is any other tracked file touched, and git does not see the worktrees."""
    workspace.make_repository("README.md", ".claude/worktrees/.gitignore", ".claude/settings.json")
    workspace.database.add_streams("A", "B")
    workspace.play(A="commit=a.py all", B="commit=b.py all")
    workspace.complete()
    assert workspace.git("status", "--porcelain") == ""
    assert workspace.run("merge").returncode == 0
    assert workspace.run("clean").returncode == 0
    assert workspace.git("status", "--porcelain") == ""
    assert (workspace.root / ".claude" / "worktrees" / ".gitignore").read_text() == ".claude/worktrees/.gitignore\n"


def test_fault_49_a_nested_repository_is_named_and_what_is_not_merged_is_not_removed(workspace: Workspace) -> None:
    """Row 49: `merge` names it and goes on, `clean` keeps it. See test_ready.py for the remedy."""
    workspace.make_repository()
    scaffold = "git init -q app; touch app/x; git -C app add x; git -C app commit -qm x; git add app 2> /dev/null"
    (workspace.root / "scaffold.txt").write_text(scaffold)
    workspace.database.add_stream("A")
    workspace.play("sh=scaffold.txt git=commit,-qm,App all")
    workspace.complete()
    done = workspace.run("merge")
    assert (done.returncode, done.stdout) == (1, "")
    assert "stream/A was not merged: it has a repository in it, and of that no file: app" in done.stderr
    assert "Kept " in workspace.run("clean").stdout
    assert (workspace.root / ".claude" / "worktrees" / "A" / "app" / "x").exists()


# ── 52: a launcher that is killed ─────────────────────────────────────────────────────────────────────────────────────

# Of stream K1, K2, … the launcher is killed at its first, second, … question to git, before or after the answer.
KILLER = """#!/bin/sh
case $ORCHESTRATE_STREAM in
K*) ;;
*) exec {git} "$@";;
esac
count={counts}/$ORCHESTRATE_STREAM
echo >> $count
[ $(wc -l < $count) = ${{ORCHESTRATE_STREAM#K}} ] || exec {git} "$@"
{after}{git} "$@"
kill -9 $PPID
"""


@pytest.mark.parametrize("after", ["", ": "], ids=["after git has done it", "before"])
def test_fault_52_a_launcher_that_is_killed_at_any_step_completes_it_the_next_time(
    workspace: Workspace, after: str
) -> None:
    """Row 52: five at once; what is copied and set up is whole, nothing is left over, `clean` removes it all."""
    workspace.make_repository("README.md", "src/main.py")
    exclude(workspace, ".env", "made")
    (workspace.root / ".env").write_text("KEY=1\n")
    (workspace.root / ".worktreeinclude").write_text(".env\n")
    workspace.git("add", ".worktreeinclude")
    workspace.git("commit", "--quiet", "-m", "Include")
    streams = [f"K{number}" for number in range(1, 16)]
    workspace.database.add_streams(*streams)
    counts = workspace.root.parent / "counts"
    counts.mkdir()
    shim = workspace.bin / "git"
    shim.write_text(KILLER.format(git=shutil.which("git"), counts=counts, after=after))
    shim.chmod(0o755)
    (workspace.root / "work.txt").write_text(
        "[ -f src/main.py ] && [ -f .env ] && [ -f made ] && git status --porcelain"
    )
    workspace.play("sh=work.txt all")
    workspace.complete("--setup", "touch made", timeout=90)
    killed = {end["stream"] for end in workspace.events("worker_ended") if end["ending"] == "killed by SIGKILL"}
    asked = max(int(name[1:]) for name in killed)
    assert killed == {f"K{number}" for number in range(1, asked + 1)}
    assert 8 <= asked < 15  # and the last ones were never killed: every step was tried
    shim.unlink()
    done = workspace.run("clean")
    assert (done.returncode, done.stderr) == (0, ""), done
    assert workspace.git("for-each-ref", "--format=%(refname)").split() == ["refs/heads/main"]
    assert not (workspace.root / ".git" / "worktrees").exists()
    assert [path for path in (workspace.root / ".claude" / "worktrees").iterdir() if path.name[0] != "."] == []


# What git leaves where it is killed in the middle of `worktree add`, found by its order of writing; $S is its own
# folder for the worktree, $TREE the worktree.
TORN = {
    "its own folder alone": "rm -r $TREE $S/HEAD $S/commondir $S/gitdir $S/logs",
    "and where the worktree is": "rm -r $TREE $S/HEAD $S/commondir $S/logs",
    "and an empty folder": "rm $TREE/.git; rm -r $S/HEAD $S/commondir $S/logs",
    "and the link back": "rm -r $S/HEAD $S/commondir $S/logs",
    "and the common folder": "rm -r $S/HEAD $S/logs",
    "and a head of nothing": "rm -r $S/logs; printf '%040d\\n' 0 > $S/HEAD",
    "all of it": "",
    "the files, half": "rm $S/locked; touch $S/orchestrate $S/orchestrate-new $S/index.lock; "
    "echo half > $TREE/README.md",
}


@pytest.mark.parametrize("is_complete", [False, True])
@pytest.mark.parametrize("torn", TORN)
def test_fault_52_a_worktree_that_git_has_half_made_is_made_anew_or_removed(
    workspace: Workspace, torn: str, is_complete: bool
) -> None:
    """Row 52: `locked initializing`, as git leaves it."""
    workspace.make_repository()
    workspace.database.add_stream("A")
    places = {"TREE": str(find_worktree(workspace)), "S": str(workspace.root / ".git" / "worktrees" / "A")}
    make = 'git worktree add --quiet --detach --no-checkout "$TREE"; printf initializing > $S/locked; '
    script = ["sh", "-ec", make + TORN[torn]]
    subprocess.run(script, cwd=workspace.root, env=workspace.environment(**places), check=True)
    if is_complete:
        workspace.run("stop")
        workspace.state.mkdir(parents=True, exist_ok=True)
        workspace.database.set_status("completed", "A")
    else:
        workspace.play("commit=a.py all")
        workspace.complete()
        assert (find_worktree(workspace) / "README.md").read_text() == "README.md\n"
        assert workspace.git("status", "--porcelain", cwd=find_worktree(workspace)) == ""
        assert workspace.run("merge").returncode == 0
    for words in (["clean", "--dry-run"], ["clean"]):
        done = workspace.run(*words)
        assert (done.returncode, done.stderr) == (0, ""), done
    assert not find_worktree(workspace).exists()
    assert workspace.git("worktree", "list").count("\n") == 1
    assert workspace.git("for-each-ref", "--format=%(refname)").split() == ["refs/heads/main"]


@pytest.mark.parametrize("work", ["git commit -qam Mine", "git switch -qc stream/A; echo x > new.py"])
def test_fault_52_what_a_person_does_in_a_worktree_that_was_never_ready_is_not_lost(
    workspace: Workspace, work: str
) -> None:
    """Row 52: its maker was killed in the middle, and it looks as if nobody had ever had it."""
    workspace.make_repository()
    workspace.database.add_stream("A")
    workspace.play("all")
    places = {"TREE": str(find_worktree(workspace)), "S": str(workspace.root / ".git" / "worktrees" / "A")}
    make = "git worktree add --quiet --detach --no-checkout $TREE; touch $S/orchestrate-new"
    script = f"{make}; printf stream/A > $S/orchestrate; cd $TREE; git reset -q --hard; echo mine > README.md; {work}"
    subprocess.run(["sh", "-ec", script], cwd=workspace.root, env=workspace.environment(**places), check=True)
    mine = workspace.git("rev-parse", "HEAD", cwd=find_worktree(workspace))
    workspace.run("start", *NO_POLL)
    workspace.database.set_status("completed", "A")
    assert "Removed worktree" not in workspace.run("clean").stdout
    assert (find_worktree(workspace) / "README.md").read_text() == "mine\n"
    assert workspace.git("rev-parse", "HEAD", cwd=find_worktree(workspace)) == mine


def test_fault_52_clean_lets_a_worktree_be_that_somebody_has_moved_aside(workspace: Workspace) -> None:
    """Row 52: what is not ours, or on no branch, can be moved back."""
    workspace.make_repository()
    workspace.database.add_stream("A")
    workspace.play("git=checkout,-q,--detach commit=a.py all")
    workspace.complete()
    theirs = find_worktree(workspace).with_name("feature-x")
    workspace.git("worktree", "add", "--quiet", "--detach", str(theirs))
    for folder in (find_worktree(workspace), theirs):
        folder.rename(workspace.root.parent / folder.name)
    done = workspace.run("clean")
    assert (done.returncode, "which is gone" in done.stdout) == (0, False), done
    for folder in (find_worktree(workspace), theirs):
        (workspace.root.parent / folder.name).rename(folder)
        assert workspace.git("status", "--porcelain", cwd=folder) == ""


@pytest.mark.slow
def test_fault_52_a_file_that_is_half_copied_is_copied_whole_the_next_time(workspace: Workspace) -> None:
    """Row 52: include half copied."""
    workspace.make_repository()
    workspace.database.add_stream("A")
    size = 1 << 30
    with (workspace.root / "big.txt").open("wb") as file:
        file.truncate(size)
        file.write(b"begin")
        file.seek(size - 3)
        file.write(b"end")
    (workspace.root / ".worktreeinclude").write_text("big.txt\n")
    workspace.play("all")
    run = workspace.start()
    target = find_worktree(workspace) / "big.txt"
    wait_until(lambda: target.exists() and target.stat().st_size, "the copy")
    os.kill(workspace.pid("A"), signal.SIGKILL)
    assert target.stat().st_mode & 0o777 == 0o200  # it was not done
    run.finish(seconds=60)
    assert target.stat().st_size == size
    with target.open("rb") as file:
        assert file.read(5) == b"begin"
        file.seek(size - 3)
        assert file.read() == b"end"
    target.unlink()


def test_fault_52_a_set_up_that_is_killed_half_way_runs_again(workspace: Workspace) -> None:
    """Row 52: with what it was killed with."""
    workspace.make_repository()
    workspace.database.add_stream("A")
    workspace.play("all")
    tries = "$ORCHESTRATE_PROJECT/tries.txt"
    workspace.complete(
        "--setup", f"echo >> {tries}; [ $(wc -l < {tries}) = 2 ] || kill -9 $PPID; echo whole > set-up.txt"
    )
    assert (find_worktree(workspace) / "set-up.txt").read_text() == "whole\n"
    assert [end["ending"] for end in workspace.events("worker_ended")] == ["killed by SIGKILL", "exit code 0"]


# ── 34 and 35: what must go ───────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("loss", "return_"),
    [
        ("UPDATE tasks SET archived = 1 WHERE id = 'TASK-1'", "UPDATE tasks SET archived = 0"),
        ("DELETE FROM tasks WHERE id = 'TASK-1'", "INSERT INTO tasks SELECT * FROM kept WHERE id = 'TASK-1'"),
    ],
    ids=["archived", "deleted"],
)
def test_fault_34_the_worker_of_a_stream_that_goes_is_stopped_with_its_tree(
    workspace: Workspace, loss: str, return_: str
) -> None:
    """Row 34: and where the stream comes back, a worker does; meanwhile a new one is picked up."""
    workspace.database.add_streams("A", "B")
    workspace.database.execute("CREATE TABLE kept AS SELECT * FROM tasks")
    workspace.play(A=["spawn setsid sleep=600", "all"], B="until=b all", New="all")
    run = workspace.start(wait="AB")
    a, b = run.pids.values()
    children = workspace.wait_for_children(2)
    workspace.database.execute(loss)
    workspace.database.add_stream("New")
    wait_until(lambda: "New" in workspace.starts(), "a worker of the new stream")
    wait_until(lambda: still_running(a, *children) == [], "the worker's tree to end")
    run.wait_to_say("A is over: its stream is no longer in the database")
    assert (workspace.pid("A"), workspace.pid("B"), is_running(b)) == (0, b, True)
    assert "Stopping the worker of A: its stream is no longer in the database" in run.text
    assert workspace.starts("A") == ["A"]
    workspace.database.execute(return_)
    run.wait_to_say("A complete in")
    run.finish("b", seconds=60)
    assert workspace.starts("A") == ["A", "A"]


@pytest.mark.parametrize(
    ("way", "code"),
    [("spawn", 0), ("setsid", 0), ("daemon", 0), ("bare", 0), ("spawn setsid daemon bare", 0), ("spawn setsid", 1)],
)
def test_fault_35_what_a_worker_leaves_behind_is_stopped_before_its_stream_and_the_next_phase_go_on(
    workspace: Workspace, way: str, code: int
) -> None:
    """Row 35: in its group, in a session of its own, a daemon, one without an environment, and all of them at once."""
    workspace.database.add_stream("A", "foundation", tasks=2)
    workspace.database.add_stream("P")
    workspace.play(A=[f"{way} next exit={code}", f"survivors {way} all"])
    run = workspace.start()
    out = run.finish(seconds=60)
    assert len(workspace.children()) == 2 * len(way.split())
    assert still_running(*workspace.children()) == []
    words = [word for _, word, _, _ in workspace.times() if word.startswith("survivors")]
    assert words == ["survivors []"], "the next worker started beside what the last one had left"
    events = workspace.events("worker_stopping", "worker_ended", "worker_started")
    of_a = [("A", "worker_started"), ("A", "worker_stopping"), ("A", "worker_ended")]
    wanted = [*of_a, *of_a, ("P", "worker_started"), ("P", "worker_ended")]
    assert [(event["stream"], event["event"]) for event in events] == wanted
    said = "Stopping processes of A: the worker ended and left them running"
    assert out.index(said) < out.index("attempt 2")


def test_fault_35_what_goes_with_its_worker_was_not_left_running(workspace: Workspace) -> None:
    """Row 35: as the first process of a PID namespace, which ends a moment after the launcher that made it."""
    workspace.database.add_stream("A")
    workspace.play("all")
    launcher = workspace.bin / "launcher"
    launcher.write_text('#!/bin/sh\n(while kill -0 $$; do sleep 0.01; done 2> /dev/null) &\nexec claude "$@"\n')
    launcher.chmod(0o755)
    done = workspace.run("start", "--claude", str(launcher), script=hasten(workspace, LINGER="10.0"))
    assert done.returncode == 0, done.stdout
    assert workspace.events("worker_stopping") == []
    assert "Stopping" not in done.stdout


# ── Where an orchestrator may find itself ─────────────────────────────────────────────────────────────────────────────


def can_unshare() -> bool:
    """Whether this user may have a mount and a PID namespace of his own."""
    words = ["unshare", "--mount", "--pid", "--fork", "--mount-proc", "true"]
    is_there = shutil.which("unshare") is not None
    return is_there and subprocess.run(words, check=False, stderr=subprocess.DEVNULL).returncode == 0


needs_namespaces = pytest.mark.skipif(not can_unshare(), reason="no namespace is to be had here")


def bind(workspace: Workspace, target: Path) -> list[str]:
    """Return the words before a command that sees the project at another place too."""
    target.mkdir(parents=True)
    script = f'mount --bind {workspace.root} {target} && cd {target} && exec "$@"'
    return ["unshare", "--mount", "sh", "-c", script, "sh"]


@pytest.mark.parametrize("way", ["renamed", "moved", pytest.param("mounted", marks=needs_namespaces)])
def test_fault_36_a_worker_is_its_projects_whatever_that_is_called_by_now(workspace: Workspace, way: str) -> None:
    """Row 36: found by the folder, adopted, never two for a stream; and stopped. Its database is the one it had."""
    workspace.database.add_stream("A", tasks=2)
    workspace.play(["next until=gate exit=1", "all"])
    run = workspace.start(wait="A")
    run.kill()
    options: dict[str, Any] = {}
    if way == "mounted":
        options["prefix"] = bind(workspace, workspace.root.parent / "elsewhere")
    else:
        workspace.rename("other" if way == "renamed" else "other/deep")
    state = workspace.run("status", "--json", **options)
    (stream,) = json.loads(state.stdout)["streams"]
    assert (stream["pid"], stream["state"]) == (run.pids["A"], "working")
    again = workspace.start(**options)
    again.wait_to_say(f"Took over the worker of A that still runs (PID {run.pids['A']})")
    assert workspace.starts() == ["A"]
    text = again.finish("gate")
    assert "Restarting worker for A (1/10)" in text
    assert workspace.starts() == ["A", "A"]


def test_fault_36_the_worker_of_a_renamed_project_is_stopped_there(workspace: Workspace) -> None:
    """Row 36: with what it has started, and what is said of the database goes to stderr."""
    workspace.database.add_stream("A")
    workspace.play("setsid until=never")
    run = workspace.start(wait="A")
    (child,) = workspace.wait_for_children(1)
    run.kill()
    before = workspace.rename("other")
    done = workspace.run("stop")
    assert (done.returncode, done.stdout) == (0, f"A stopped (PID {run.pids['A']}).\n")
    assert not is_running(run.pids["A"])
    assert not is_running(child)
    assert not before.exists()
    done = workspace.run("status")
    assert done.stderr == f"Warning: renamed from {before}: its database stays {workspace.database.path}\n"


@pytest.mark.parametrize("place", ["", "outside"])
def test_fault_36_the_worktrees_of_a_renamed_project_go_on(workspace: Workspace, place: str) -> None:
    """Row 36: git looks for them where they were; the next attempt of the stream finds its work."""
    workspace.make_repository()
    outside = str(workspace.root.parent / place) if place else None
    workspace.database.add_stream("B", "parallel", tasks=2, worktreePath=outside)
    workspace.play(["commit=first.py next until=gate exit=1", "commit=second.py all"])
    run = workspace.start(wait="B")
    wait_until(lambda: workspace.status()["streams"][0]["percent"], "its first task")
    run.kill()
    before = workspace.rename("other")
    run = workspace.start()
    run.wait_to_say("Took over the worker of B")
    run.finish("gate")
    assert not before.exists()
    assert workspace.git("ls-tree", "--name-only", "stream/B").split() == ["README.md", "first.py", "second.py"]
    assert workspace.run("merge").stdout.startswith("Merged stream/B into main: 2 commits")
    assert "Removed worktree" in workspace.run("clean").stdout


@pytest.mark.parametrize("is_worker_of_path", [True, False])
def test_fault_36_the_worker_of_another_folder_is_neither_taken_over_nor_touched(
    workspace: Workspace, is_worker_of_path: bool
) -> None:
    """Row 36: where a clone stands in the place of a renamed project, or uses its database; until it has ended."""
    workspace.database.add_stream("A", tasks=2)
    workspace.database.add_stream("B")
    workspace.play(A=["next until=gate", "all"])
    run = workspace.start("A", wait="A")
    run.kill()
    before = workspace.root
    copied = [path for path in before.iterdir() if path.name not in (".claude", "worker-times.txt")]
    if is_worker_of_path:
        workspace.rename("old")
        old, workspace.root = workspace.root, before
        copied = [old / path.name for path in copied]
    else:
        old, workspace.root = before, before.parent / "clones" / before.name
    (workspace.root / ".claude").mkdir(parents=True)
    for path in copied:
        shutil.copy(path, workspace.root)
    words = f"waits for another folder's worker (PID {run.pids['A']}, begun in {before})"
    clone = workspace.start("--finish-grace", "600")
    clone.wait_to_say("B complete")
    clone.wait_to_say(f"Waiting: A is waiting: {words}")
    assert {s["id"]: s["reason"] for s in workspace.status()["streams"]}["A"] == words
    assert workspace.run("stop", "--timeout", "1").stdout == f"Orchestrator stopped (PID {clone.pid}).\n"
    assert is_running(run.pids["A"])
    assert workspace.starts() == ["B"]
    clone = workspace.start()
    clone.wait_to_say("Waiting: A is waiting")
    (old / "gate").touch()
    clone.finish(seconds=60)  # it looks every 15 s
    assert workspace.starts() == ["B", "A"]


@pytest.mark.parametrize("way", ["renamed", "replaced", "removed"])
def test_fault_37_nothing_starts_while_the_projects_folder_is_away_and_the_run_goes_on_when_it_is_back(
    workspace: Workspace, way: str
) -> None:
    """Row 37: it is never made anew, and nothing is written into another one that stands there."""
    workspace.database.add_stream("A", tasks=2)
    workspace.play(["next until=gate exit=1", "all"])
    run = workspace.start(wait="A")
    before = workspace.rename("away")
    words = "is gone (No such file or directory)"
    if way == "replaced":
        (before / ".claude/orchestrator/pids").mkdir(parents=True)
        words = f"another folder stands in the place of the project's, {before}"
    if way == "removed":
        shutil.rmtree(workspace.root / ".claude/orchestrator/pids")
    run.wait_to_say(words)
    (workspace.root / "gate").touch()
    wait_until(lambda: not is_running(run.pids["A"]) or psutil.Process(run.pids["A"]).status(), "its end")
    time.sleep(1.5)  # three looks
    assert workspace.starts() == ["A"]
    assert [str(p.relative_to(before)) for p in before.rglob("*")] == (
        [".claude", ".claude/orchestrator", ".claude/orchestrator/pids"] if way == "replaced" else []
    )
    refused = workspace.run("start")
    assert (refused.returncode, f"PID {run.pid}" in refused.stderr) == (75, True)
    assert f"the orchestrator waits for this folder to be {before} again" in workspace.status()["warnings"][0]
    if way == "replaced":
        shutil.rmtree(before)
    workspace.rename(before.name)
    text = run.finish()
    assert "Out of trouble" in text or "all complete" in text
    assert workspace.starts() == ["A", "A"]
    assert [event["event"] for event in workspace.events("worker_started", "run_ended")] == [
        "worker_started",
        "worker_started",
        "run_ended",
    ]


@needs_namespaces
def test_fault_37_another_disk_at_its_place_is_not_the_projects_folder(workspace: Workspace) -> None:
    """Row 37: the first folder of each disk has the same inode."""
    workspace.database.add_stream("A", tasks=2)
    workspace.play(["next until=gate exit=1", "all"])
    mount = f"mount -t tmpfs none {workspace.root}"
    script = f"""cp -r {workspace.root} {workspace.root}.copy; {mount}; cp -r {workspace.root}.copy/. {workspace.root}
        cd {workspace.root}; "$@" & run=$!
        until [ -e {workspace.root}/worker-times.txt ]; do sleep 0.1; done
        cd /; {mount}; sleep 2; find {workspace.root} > {workspace.root}.found; kill $run; wait $run"""
    done = workspace.run("start", *NO_POLL, prefix=["unshare", "--mount", "sh", "-c", script, "sh"])
    assert "another folder stands in the place of the project's" in done.stdout
    assert Path(f"{workspace.root}.found").read_text() == f"{workspace.root}\n"


@pytest.mark.parametrize("way", ["include", "setup"])
def test_fault_37_a_rename_while_a_worktree_is_made_ready_makes_nothing_anew(workspace: Workspace, way: str) -> None:
    """Row 37: the launcher looks too; when the folder is back the stream goes on."""
    workspace.make_repository()
    if way == "include":
        (workspace.root / ".worktreeinclude").write_text("/data/\n")
        with (workspace.root / ".git/info/exclude").open("a") as file:
            file.write("/data/\n")
        for number in range(3000):
            path = workspace.root / "data" / str(number // 10) / str(number)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
    workspace.database.add_stream("B", "parallel")
    begun = workspace.root / ".claude/worktrees/B" / ("data" if way == "include" else "begun")
    run = workspace.start("--setup", "touch begun; sleep 2" if way == "setup" else "true")
    wait_until(begun.exists, "its set-up")
    before = workspace.rename("away")
    time.sleep(3)
    assert not before.exists()
    workspace.rename(before.name)
    text = run.finish(seconds=60)
    assert "B complete" in text


def test_fault_37_after_ten_minutes_without_its_folder_a_run_ends_and_its_workers_go_on(workspace: Workspace) -> None:
    """Row 37: with a shorter time. What was begun goes on with the next start there."""
    workspace.database.add_stream("A")
    workspace.play("cost=1 until=gate cost=1.5 all")
    script = hasten(workspace, ROOT_TIMEOUT="1.0").rename(workspace.root.parent / "orchestrate.py")
    run = workspace.start(wait="A", script=script)
    before = workspace.rename("away")
    text = run.finish(code=1)
    assert f"the project's folder {before} is gone" in text
    assert text.endswith(f"Orchestrator ended; 1 worker left running. Stop: {sys.executable} {script} stop\n")
    assert not before.exists()
    assert workspace.events("run_left")[-1]["signal"] is None
    again = workspace.start()
    again.wait_to_say("Took over the worker of A")
    again.finish("gate")
    assert workspace.events("worker_ended")[-1]["cost"] == 1.5


def clean(workspace: Workspace, *words: str) -> None:
    """Run git clean as a worker might; it complains where somebody writes a file meanwhile."""
    with contextlib.suppress(subprocess.CalledProcessError):
        workspace.git("clean", *words, *KEPT)


KEPT = [word for name in ("*.txt", "parts.json", "lines.json", "attempts-*", "gate") for word in ("-e", name)]


@pytest.mark.parametrize("force", ["-fdxq", "-ffdxq"])
def test_fault_38_what_a_worker_deletes_with_git_clean_is_put_back(workspace: Workspace, force: str) -> None:
    """Row 38: what was stopped stays so; journal, costs, results and locks are kept; streams go on from branches."""
    workspace.make_repository()
    workspace.database.add_stream("F", "foundation")
    for stream in "ABC":
        workspace.database.add_stream(stream, "parallel", tasks=2)
    workspace.play(
        F="cost=2 all",
        A="until=gate all",
        B=["commit=b.py cost=0.5 until=gate cost=1 all", "cost=1 until=gate all"],
        C=["commit=first.py next until=never", "commit=second.py all"],
    )
    run = workspace.start("--stall-timeout", "0", wait="ABC")
    wait_until(lambda: workspace.git("branch", "--list", "stream/C"), "its branch")
    wait_until(lambda: "first.py" in workspace.git("ls-tree", "--name-only", "stream/C"), "its commit")
    workspace.check("stop", "A")
    kinds = [event["event"] for event in workspace.events()]
    clean(workspace, force)
    wait_until((workspace.state / "pids" / "A.stop").exists, "the mark")
    wait_until(lambda: workspace.pid("B") == run.pids["B"], "a PID file")
    wait_until(lambda: [event["event"] for event in workspace.events()][: len(kinds)] == kinds, "the journal")
    refused = workspace.run("start")
    assert (refused.returncode, f"PID {run.pid}" in refused.stderr) == (75, True)
    if force == "-fdxq":
        workspace.check("stop", "C")
    workspace.open_gate("gate")
    run.wait_to_say("Waiting: A is stopped")
    assert [s["state"] for s in workspace.status()["streams"]][:2] == ["complete", "stopped"]
    spent = 3 if force == "-fdxq" else 3.5
    assert workspace.status()["cost_usd"] == spent
    assert workspace.starts("A") == ["A"]
    if force == "-ffdxq":
        assert "Restarting worker for C (1/10)" in run.text
        assert "the folder that it worked in was removed" in run.text
        assert workspace.git("ls-tree", "--name-only", "stream/C").split() == ["README.md", "first.py", "second.py"]
    run.end(signal.SIGINT, 130)
    text = workspace.complete()
    assert f"this run goes on: ${spent:.2f} were spent before" in text
    assert workspace.starts("A") == ["A", "A"]


def test_fault_18_a_stop_while_an_orchestrator_starts_is_not_taken_back(workspace: Workspace) -> None:
    """Row 18: a start takes back the stops that were there before it, and no later one."""
    workspace.database.add_streams("A", "B")
    workspace.play("until=gate all")
    slow = """
plain = orchestrate.Orchestrator._ask

def ask(run):
    found = plain(run)
    if run.history == orchestrate.History():
        open("asked", "w").close()
        while not os.path.exists("answer"):
            __import__("time").sleep(0.01)
    return found

orchestrate.Orchestrator._ask = ask
"""
    workspace.check("stop", "B")
    run = workspace.start(script=workspace.write_script(IMPORT + slow + RUN))
    wait_until((workspace.root / "asked").exists, "its first question")
    workspace.check("stop", "A")
    (workspace.root / "answer").touch()
    run.wait_to_say("A stopped")
    workspace.wait_for_worker("B")
    workspace.open_gate("gate")
    run.wait_to_say("Waiting: A is stopped")
    assert workspace.starts() == ["B"]


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_fault_38_what_was_deleted_just_before_the_end_is_put_back(workspace: Workspace, signum: int) -> None:
    """Row 38: the last thing that an orchestrator does is to see that its journal lies where it belongs."""
    workspace.database.add_streams("A", "B")
    workspace.play("cost=5 exit=1", B="until=never")
    run = workspace.start("--max-restarts", "0", wait="B")
    workspace.wait_for_event("state", stream="A", state="FAILED")
    workspace.check("stop", "B")
    wait_until(lambda: workspace.events("worker_ended", stream="B"), "its end")
    os.kill(run.pid, signal.SIGSTOP)
    shutil.rmtree(workspace.state)
    os.kill(run.pid, signum)
    os.kill(run.pid, signal.SIGCONT)
    run.finish(code=128 + signum)
    assert workspace.status()["cost_usd"] == 5
    assert workspace.states()["B"] == "stopped"


def test_fault_38_a_worktree_that_is_deleted_while_it_is_set_up_is_made_anew(workspace: Workspace) -> None:
    """Row 38: and nobody works in the repository around it; what a worker wrote there meanwhile is kept aside."""
    workspace.make_repository()
    workspace.database.add_stream("B", "parallel", tasks=2)
    workspace.play(["commit=b.py next exit=1", "commit=c.py all"])
    folder = workspace.root / ".claude/worktrees/B"
    run = workspace.start("--setup", "test -e ../again || { touch ../again; sleep 2; }")
    wait_until((folder.parent / "again").exists, "its set-up")
    clean(workspace, "-ffdxq", "-e", "again")
    (workspace.root / ".claude/worktrees").mkdir(exist_ok=True)
    (folder.parent / "again").touch()
    text = run.finish(seconds=60)
    assert "B complete" in text
    assert workspace.git("log", "--format=%s", "main").split() == ["Begin"]
    assert workspace.git("ls-tree", "--name-only", "stream/B").split() == ["README.md", "b.py", "c.py"]


def test_fault_38_an_edited_journal_counts_nothing_twice(workspace: Workspace) -> None:
    """Row 38: as an editor leaves it, in a file of its own; what a person asks for afterwards is heeded."""
    workspace.database.add_streams("A", "B")
    workspace.play("cost=2 all", B="until=gate all")
    run = workspace.start(wait="B")
    run.wait_to_say("A complete")
    journal = workspace.state / "events.jsonl"
    copy = journal.with_name("copy")
    copy.write_text("".join(journal.read_text().splitlines(keepends=True)[1:]))
    copy.replace(journal)
    wait_until(lambda: '"known": ' in journal.read_text(), "the journal as it was")
    assert workspace.status()["cost_usd"] == 2
    workspace.check("stop", "B")
    run.wait_to_say("B stopped")
    assert workspace.run("start", "B").returncode == 0
    text = run.finish("gate")
    assert text.count("B: start requested") == 1
    assert workspace.status()["cost_usd"] == 2


def test_fault_38_a_journal_that_is_cut_asks_for_nothing_again(workspace: Workspace) -> None:
    """Row 38: a stop in it that was taken back since stays so, and the worker lives."""
    workspace.database.add_stream("A")
    workspace.play("cost=2 until=gate exit=1")
    run = workspace.start(wait="A")
    workspace.check("stop", "A")
    run.wait_to_say("Waiting: A is stopped")
    assert workspace.run("start", "A").returncode == 0
    workspace.wait_for_event("worker_started", 2)
    wait_until(lambda: len(workspace.starts()) == 2, "its second worker")
    journal = workspace.state / "events.jsonl"
    whole = journal.read_bytes()
    os.truncate(journal, whole.index(b"\n", whole.index(b'"stop_requested"')) + 1)
    workspace.wait_for_event("journal_folded")
    time.sleep(1)  # two looks
    assert is_running(workspace.pid("A"))
    assert workspace.states() == {"A": "working"}
    assert workspace.status()["cost_usd"] == 2


@pytest.mark.parametrize("end", ["", "\n", "\0\0\n"])
def test_fault_38_half_a_line_that_would_say_all_leaves_what_was_known_before(workspace: Workspace, end: str) -> None:
    """Row 38 and 26: as a kill on a disk that is full leaves it."""
    workspace.database.add_streams("A", "B")
    workspace.play("cost=2 all", B="until=never")
    run = workspace.start(wait="B")
    run.wait_to_say("A complete")
    run.end(signal.SIGINT, 130)
    journal = workspace.state / "events.jsonl"
    line = next(line for line in journal.read_text().splitlines() if '"known": ' in line)
    with journal.open("a") as file:
        file.write(line[:-9] + end)
    assert workspace.status()["cost_usd"] == 2
    again = workspace.start()
    again.wait_to_say("this run goes on: $2.00 were spent before")
    workspace.check("stop")


def test_fault_38_a_stop_that_is_deleted_at_once_holds_too(workspace: Workspace) -> None:
    """Row 38: mark and journal are gone before the orchestrator could see them, and it has the journal still open."""
    workspace.database.add_streams("A", "B")
    workspace.play("until=gate exit=1")
    run = workspace.start("--max-restarts", "1", wait="AB")
    os.kill(run.pid, signal.SIGSTOP)
    try:
        workspace.check("stop", "A", code=0)
        shutil.rmtree(workspace.state)
    finally:
        os.kill(run.pid, signal.SIGCONT)
    wait_until((workspace.state / "pids" / "A.stop").exists, "the mark")
    workspace.open_gate("gate")
    wait_until(lambda: workspace.events("state", stream="B", state="FAILED"), "the end of the other one")
    assert workspace.starts("A") == ["A"]


def test_fault_38_a_run_goes_on_without_its_script_its_environment_and_its_prompt(workspace: Workspace) -> None:
    """Row 38: all of it was loaded before the first worker; what is gone is named once."""
    workspace.make_repository()
    state = workspace.state
    state.mkdir(parents=True)
    script = shutil.copy(SCRIPT, state / "orchestrate.py")
    (state / "worker-prompt.md").write_text("My own prompt for {stream.id}.\n")
    (workspace.root / ".mcp.json").write_text('{"mcpServers": {}}')
    home = workspace.root / ".venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", home], check=True)
    (packages,) = home.glob("lib/python*/site-packages")
    for folder in Path(rich.__file__).parent.parent.iterdir():
        if folder.name in ("click", "rich", "psutil", "pygments", "markdown_it", "mdurl"):
            shutil.copytree(folder, packages / folder.name)
        elif folder.name == "typing_extensions.py":
            shutil.copy(folder, packages)
    workspace.database.add_stream("A", tasks=2)
    workspace.play(A=["until=gone next cost=1 setsid exit=1", "limit=2", "all"])
    run = workspace.start(prefix=["sh", "-c", f'shift 2; exec {home}/bin/python {script} "$@"', "sh"])
    workspace.wait_for_worker("A")
    clean(workspace, "-fdxq")
    text = run.finish("gone", seconds=60)
    assert "Traceback" not in text
    for name in (".claude/orchestrator/orchestrate.py", ".claude/orchestrator/worker-prompt.md", ".venv", ".mcp.json"):
        assert text.count(f"Warning: {workspace.root / name} was removed: ") == 1
    assert [words[-1].startswith("My own prompt for A.\n") for words in workspace.argv("A")] == [True] * 3


def make_clone(workspace: Workspace) -> Workspace:
    """Return another folder with the same name, and so the same database."""
    clone = Workspace.__new__(Workspace)
    clone.__dict__.update(workspace.__dict__)
    clone.root = workspace.root.parent / "clones" / workspace.root.name
    (clone.root / ".claude").mkdir(parents=True)
    clone.play()
    return clone


@pytest.mark.parametrize("words", [[], ["B"], ["--db", "link.db"]])
def test_fault_47_of_two_folders_with_one_database_the_second_is_refused(
    workspace: Workspace, words: list[str]
) -> None:
    """Row 47: with the first one's folder and PID, whatever streams it names; and not once that has ended."""
    workspace.database.add_streams("A", "B")
    workspace.play("until=gate all")
    clone = make_clone(workspace)
    (clone.root / "link.db").symlink_to(workspace.database.path)
    run = workspace.start("A", wait="A")
    refused = clone.run("start", *words)
    assert refused.returncode == 75
    assert (
        f"[ERROR] An orchestrator already runs on this database, for {workspace.root} (PID {run.pid})\n"
        "Give this folder tasks of its own (WORKSPACE_ID in .mcp.json), or stop that one:\n"
        f"{PROGRAM} --project {workspace.root} stop\n"
    ) in refused.stderr
    assert clone.run("doctor").stdout.count(f"already runs on this database, for {workspace.root}") == 1
    assert not list((clone.state / "logs").iterdir())
    run.finish("gate")
    assert [path.name for path in workspace.database.path.parent.glob("*.orchestrator")] == ["tasks.db.orchestrator"]
    clone.complete()
    assert clone.starts() == ["B"]


def test_fault_47_another_database_in_the_same_folder_is_another_one(workspace: Workspace) -> None:
    """Row 47: who works there on a stream of the same name keeps nobody waiting."""
    workspace.database.add_streams("A")
    workspace.play("until=gate all")
    other = workspace.database.path.with_name("other.db")
    shutil.copy(workspace.database.path, other)
    workspace.start(wait="A").kill()
    clone = make_clone(workspace)
    clone.run("start", *NO_POLL, "--db", str(other), "--max-restarts", "0")
    assert clone.starts() == ["A"]


def test_fault_47_where_the_database_can_not_be_locked_that_is_said_and_the_run_goes(workspace: Workspace) -> None:
    """Row 47: as on a disk that nothing can be written to."""
    workspace.database.add_stream("A")
    workspace.database.path.with_name("tasks.db.orchestrator").mkdir()
    text = workspace.complete()
    assert text.count("Warning: No other folder is kept from this database: ") == 1
    assert "A complete" in text


def test_fault_47_a_lock_that_somebody_has_removed_is_taken_again(workspace: Workspace) -> None:
    """Row 47: as the orchestrator's own."""
    workspace.database.add_stream("A")
    workspace.play("until=gate all")
    run = workspace.start(wait="A")
    lock = workspace.database.path.with_name("tasks.db.orchestrator")
    lock.unlink()
    wait_until(lambda: lock.exists() and lock.read_text() == f"{run.pid}\n{workspace.root}\n", "the lock")
    assert make_clone(workspace).run("start").returncode == 75
    run.finish("gate")


# A process of its own, since the system counts for a child what its parent had when it began.
MEASURE = """
import resource, subprocess, sys, time
begin = time.monotonic()
subprocess.call(sys.argv[1:])
print(time.monotonic() - begin, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss << 10, file=sys.stderr)
"""


def measure(workspace: Workspace, *words: str) -> tuple[float, int, str]:
    """Run a command to its end; return the seconds that it took, its memory in bytes at most, and what it wrote."""
    done = workspace.run(*words, prefix=[sys.executable, "-S", "-c", MEASURE])
    seconds, memory = done.stderr.split()[-2:]
    return float(seconds), int(memory), done.stdout


HUGE = 200 << 20


@pytest.mark.parametrize("kind", ["old", "own", "interrupted"])
def test_fault_48_a_journal_of_200_mb_costs_no_command_time_or_memory(workspace: Workspace, kind: str) -> None:
    """Row 48: of months, of an older version or of this one, or of one run that does not end."""
    workspace.database.add_stream("A", tasks=3)
    workspace.play(["cost=1 next exit=1", "cost=2 next until=gate all"])
    run = workspace.start(wait="A")
    run.wait_to_say("attempt 2")
    run.kill()
    journal = workspace.state / "events.jsonl"
    lines = journal.read_text().splitlines(keepends=True)
    if kind == "old":
        for place, line in enumerate(lines):
            event = json.loads(line)
            later = ("known", "root", "database", "host", "system")
            lines[place] = json.dumps({name: fact for name, fact in event.items() if name not in later}) + "\n"
    ended = json.dumps({**json.loads(lines[0]), "event": "run_ended", "exit_code": 0, "reason": "all complete"}) + "\n"
    run_of = "".join([*lines[:-1], *([ended] if kind != "interrupted" else lines[-1:])])
    if kind == "interrupted":
        run_of = next(line for line in lines if '"event": "state"' in line)
    with journal.open("w") as file:
        if kind == "interrupted":
            file.writelines(lines)
        for _ in range(HUGE // len(run_of.encode()) + 1):
            file.write(run_of)
        if kind != "interrupted":
            file.writelines(lines)
    least = min(measure(workspace, "--help")[1], 60 << 20)
    for words in (
        ["status"],
        ["status", "--json"],
        ["timeline"],
        ["logs", "--no-follow", "-n", "5"],
        ["start", "--dry-run"],
    ):
        seconds, memory, text = measure(workspace, *words)
        assert "A" in text
        assert memory < 100 << 20, f"{words}: {memory >> 20} MB of which {least >> 20} of Python"
        assert seconds < 20, words
    assert workspace.status()["streams"][0]["attempt"] == 2
    again = workspace.start()
    again.wait_to_say("Took over the worker of A")
    assert journal.stat().st_size < 1 << 20
    assert read_peak(again.pid) < 100 << 20
    text = again.finish("gate")
    assert "$1.00 were spent before" in text
    archived = list((workspace.root / ".archive/orchestration/journal").iterdir())
    assert sum(path.stat().st_size for path in archived) > HUGE


def test_fault_48_a_run_folds_its_own_journal_and_loses_nothing(workspace: Workspace) -> None:
    """Row 48: with a shorter bound. The next start knows it all, and the chart shows the whole run."""
    workspace.database.add_stream("A", tasks=9)
    workspace.database.add_stream("B")
    workspace.play(A=[*["cost=1 next exit=1"] * 6, "cost=1 all"], B="until=gate all")
    # Shorter than what it has to carry, so that this alone bounds it.
    script = hasten(workspace, JOURNAL_MOST="500", BACKOFF_MAX="0.1", BACKOFF_FIRST="0.1")
    run = workspace.start(script=script)
    run.wait_to_say("A complete")
    archive = workspace.root / ".archive/orchestration/journal"
    assert len(list(archive.iterdir())) > 1
    workspace.check("stop", "B")
    run.end(signal.SIGINT, 130)
    assert workspace.status(script=script)["cost_usd"] == 7
    assert re.search(r" 7 +\d+s +\$7\.00", workspace.check("timeline", script=script))
    assert workspace.states()["B"] == "stopped"


def test_fault_48_the_logs_of_what_nobody_has_rendered_take_the_lines_that_were_asked_for(
    workspace: Workspace,
) -> None:
    """Row 48: 200 MB of output, and no orchestrator since."""
    workspace.database.add_stream("A")
    workspace.play("until=never")
    run = workspace.start(wait="A")
    run.kill()
    message = {"type": "assistant", "message": {"content": [{"type": "text", "text": "word " * 200}]}}
    line = json.dumps(message) + "\n"
    with (workspace.state / "logs" / "A.jsonl").open("a") as file:
        for _ in range(HUGE // len(line)):
            file.write(line)
        for number in range(3):
            file.write(
                json.dumps({"type": "assistant", "message": {"content": [{"type": "text", "text": f"{number}"}]}})
            )
            file.write("\n")
    _, memory, text = measure(workspace, "logs", "-n", "5", "--no-follow", "A")
    assert unstamp(text)[2:] == ["0", "1", "2"]
    assert len(text.splitlines()) == 5
    assert memory < 100 << 20


def test_fault_50_more_columns_than_there_are_break_nothing(workspace: Workspace) -> None:
    """Row 50: nor does a number that is none of columns."""
    workspace.database.add_stream("A")
    workspace.complete()
    for words in (["status", "--dashboard"], ["timeline"], ["doctor"], ["logs", "--no-follow"], ["--help"]):
        workspace.check(*words, env={"COLUMNS": "9" * 20, "LINES": "9" * 20})


@pytest.mark.parametrize("columns", ["0", "-1", "x", ""])
def test_fault_50_odd_columns_change_nothing(workspace: Workspace, columns: str) -> None:
    """Row 50: each command writes what it writes in a terminal that says nothing of its width."""
    workspace.database.add_streams("A", "B")
    workspace.complete()
    for words in (["status"], ["status", "--dashboard"], ["timeline"], ["doctor"], ["logs", "--no-follow"], ["--help"]):
        texts = [workspace.run(*words, env=env).stdout for env in ({}, {"COLUMNS": columns, "LINES": columns})]
        clean = [re.sub(r"\d\d:\d\d:\d\d|[\d.]+ GiB", "", text) for text in texts]
        assert clean[0] == clean[1] != ""


def test_fault_50_a_terminal_without_a_size_gets_a_picture(workspace: Workspace) -> None:
    """Row 50: as that of a container or an editor."""
    workspace.database.add_stream("A")
    workspace.play("until=gate all")
    size = struct.pack("HHHH", 0, 0, 0, 0)

    def take_terminal() -> None:
        os.setsid()
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)
        fcntl.ioctl(0, termios.TIOCSWINSZ, size)

    terminal = Terminal(workspace, 80, 24, "start", *NO_POLL, preexec_fn=take_terminal)
    wait_until(lambda: "Working" in terminal.read(), "the board")
    workspace.open_gate("gate")
    wait_until(lambda: "all complete: 1 stream" in terminal.read(), "the last word")
    terminal.close()


@pytest.mark.parametrize(
    "locale", [{"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}, {"LC_ALL": "POSIX"}]
)
def test_fault_50_a_locale_without_utf_8_shows_what_it_can_and_runs_every_stream(
    workspace: Workspace, locale: dict[str, str]
) -> None:
    """Row 50: 日本 is an argument, a variable, a branch and a file as ever; what is printed keeps to the locale."""
    workspace.make_repository()
    workspace.database.add_stream("日本", "parallel", streamName="東京")
    workspace.play("facts commit=é.py all")
    env = {**locale, "LANG": ""}
    assert "start" in workspace.check("start", "--dry-run", "日本", env=env)
    claude = "env -u PYTHONUTF8 -u PYTHONCOERCECLOCALE claude"  # it is Python itself
    text = workspace.check("start", *NO_POLL, "--claude", claude, "日本", env=env)
    assert "complete in" in text
    assert workspace.facts()["env"]["ORCHESTRATE_STREAM"] == "日本"
    assert workspace.starts() == ["日本"]
    assert "Merged stream/%E6%97%A5%E6%9C%AC into main: 1 commit" in workspace.check("merge", env=env)
    for words in (["status", "日本"], ["logs", "--no-follow", "日本"], ["timeline"]):
        shown = workspace.check(*words, env=env)
        assert "日本" in shown or "????" in shown, words
    assert json.loads(workspace.check("status", "--json", env=env))["streams"][0]["id"] == "日本"


@needs_namespaces
def test_fault_51_an_orchestrator_in_another_pid_namespace_is_named_and_nobody_is_judged(workspace: Workspace) -> None:
    """Row 51: as in a container that shares the project; from outside its workers are seen, from beside it not."""
    workspace.database.add_stream("A")
    workspace.play("until=gate all")
    inside = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child"]
    workspace.popen("start", *NO_POLL, prefix=inside)
    wait_until(lambda: workspace.starts(), "its worker")
    pid = int((workspace.state / "orchestrator.pid").read_text())
    where = f"The orchestrator (PID {pid}) runs in another PID namespace, on {os.uname().nodename}"
    for prefix in ([], inside):
        status = json.loads(workspace.check("status", "--json", prefix=prefix))
        assert (status["streams"][0]["state"], where in status["warnings"][0]) == ("working", True)
        assert where in workspace.check("status", prefix=prefix)
        done = workspace.run("stop", prefix=prefix)
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr.startswith(f"[ERROR] {where}\nStop it there")
        assert workspace.run("start", prefix=prefix).returncode == 75
    workspace.open_gate("gate")
    wait_until(lambda: workspace.events("run_ended"), "its end")
    assert workspace.starts() == ["A"]


@needs_namespaces
def test_fault_51_a_stop_of_a_stream_is_left_to_the_orchestrator_in_its_namespace(workspace: Workspace) -> None:
    """Row 51: it reads the mark, and ends the worker; who asked can't see that."""
    workspace.database.add_stream("A")
    workspace.play("until=gate all")
    workspace.popen("start", *NO_POLL, prefix=["unshare", "--pid", "--fork", "--mount-proc", "--kill-child"])
    wait_until(lambda: workspace.starts(), "its worker")
    done = workspace.run("stop", "A")
    assert done.returncode == 1
    assert "Marked as stopped: A" in done.stderr
    wait_until(lambda: workspace.events("worker_ended", verdict="stopped"), "the worker's end")


@needs_namespaces
@pytest.mark.parametrize("is_beside", [False, True])
def test_fault_51_a_worker_in_another_namespace_whose_orchestrator_has_died_is_followed(
    workspace: Workspace, is_beside: bool
) -> None:
    """Row 51: seen from outside, under another PID; from beside by its hold on its output. Never a second one."""
    workspace.database.add_stream("A")
    workspace.play("until=gate cost=2 all")
    namespace = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child"]
    inside = [*namespace, "sh", "-c", '"$@"; sleep 600', "sh"]
    outer = workspace.popen("start", *NO_POLL, prefix=inside)
    wait_until(lambda: workspace.starts(), "its worker")
    shell = wait_until(lambda: next((p for p in psutil.process_iter() if p.ppid() == outer.pid), None), "its shell")
    (orchestrator,) = shell.children()
    orchestrator.kill()
    wait_until(lambda: workspace.status()["orchestrator_pid"] is None, "its end")
    prefix = namespace if is_beside else []
    assert workspace.states(prefix=prefix) == {"A": "working"}
    if is_beside:
        words = f"Workers run in another PID namespace, on {os.uname().nodename}: A\n"
        done = workspace.run("stop", prefix=prefix)
        assert (done.returncode, done.stderr.startswith(f"[ERROR] {words}")) == (1, True)
        assert workspace.run("clean", prefix=prefix).returncode == 75
    run = workspace.start(prefix=prefix)
    run.wait_to_say("Took over the worker of A")
    run.finish("gate")
    assert workspace.starts() == ["A"]
    assert not workspace.events("worker_stopping")
    assert workspace.events("worker_ended")[-1]["cost"] == 2


def test_an_orchestrator_that_is_pid_1_is_seen_and_stopped(workspace: Workspace) -> None:
    """As in a container without an init. Its orphans stay as zombies there: `docker run --init`."""
    inside = ["unshare", "--pid", "--fork", "--mount-proc"]
    if os.geteuid() or subprocess.run([*inside, "true"], check=False).returncode:
        pytest.skip("no PID namespaces here")
    workspace.database.add_stream("A", tasks=3)
    workspace.play("", A=["daemon next exit=0", "daemon next exit=0", "hang"])
    run = workspace.start("--no-worktrees", prefix=[*inside, "--kill-child"])
    (first,) = wait_until(lambda: psutil.Process(run.pid).children(), "PID 1")
    enter = ["nsenter", f"--target={first.pid}", "--pid", "--mount", f"--wd={workspace.root}"]
    if subprocess.run([*enter, "true"], check=False).returncode:
        pytest.skip("nobody can enter a PID namespace here")
    listing = [*enter, "ps", "-eo", "stat,args"]
    wait_until(lambda: len(workspace.starts("A")) == 3, "the third worker", 40)
    # The daemons of the first two workers ended with them.
    wait_until(lambda: b"sleep 3600" not in subprocess.check_output(listing), "their end")
    assert workspace.status(prefix=enter)["orchestrator_pid"] == 1
    again = workspace.run("start", prefix=enter)
    assert (again.returncode, "(PID 1)" in again.stderr) == (75, True)
    done = workspace.run("stop", "--timeout", "1", prefix=enter)
    assert done.returncode in (0, -9), done  # the namespace ends with its first process, and with it who is in it
    run.finish(code=128 + signal.SIGTERM)


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


def test_who_has_lost_the_lock_to_another_one_ends_and_writes_no_end_into_its_journal(workspace: Workspace) -> None:
    """Else what the run has cost would be forgotten, and its budget given out again."""
    workspace.database.add_streams("A", tasks=2)
    workspace.play(A=["next cost=1 exit=1", "until=gate all"])
    first = workspace.start(*NO_POLL)
    wait_until(lambda: workspace.events("worker_ended") and workspace.pid("A"), "the second worker")
    first.process.send_signal(signal.SIGSTOP)  # it looks twice a second
    (workspace.state / "orchestrator.pid").unlink()
    assert f"already runs for this project (PID {first.pid})" in workspace.run("start").stderr  # the database is locked
    workspace.database.path.with_name("tasks.db.orchestrator").unlink()
    second = workspace.start(*NO_POLL)
    second.wait_to_say("Took over the worker of A")
    first.process.send_signal(signal.SIGCONT)
    assert "another orchestrator has taken over" in first.finish(code=75)
    assert workspace.events("run_ended") == []
    second.finish("gate")
    assert len(workspace.events("run_ended")) == 1


def test_a_lock_that_somebody_has_overwritten_is_signed_again(workspace: Workspace) -> None:
    """Else nobody could see the orchestrator, nor stop it."""
    workspace.database.add_stream("A")
    workspace.play("hang")
    run = workspace.start(wait="A")
    lock = workspace.state / "orchestrator.pid"
    for text in ("garbage\n", "", f"{run.pid}0\n"):
        lock.write_text(text)
        wait_until(lambda: lock.read_text() == f"{run.pid}\n", "its PID in the lock")
    done = workspace.run("stop", "--timeout", "1")
    assert (done.returncode, done.stdout.splitlines()[0]) == (0, f"Orchestrator stopped (PID {run.pid}).")
    run.finish(code=128 + signal.SIGTERM)


def test_a_stop_works_on_a_disk_that_has_become_read_only(workspace: Workspace) -> None:
    """As ext4 does at its first error."""
    begin = 'mount --bind . . && cd "$PWD" && mount -o remount,ro,bind . . && ! touch x 2>&1'
    inside = ["unshare", "--mount", "sh", "-c"]
    if os.geteuid() or subprocess.run([*inside, begin], cwd=workspace.root, check=False).returncode:
        pytest.skip("no mounts here")
    workspace.database.add_stream("A")
    workspace.play("hang")
    run = workspace.start(wait="A")
    done = workspace.run("stop", "--timeout", "1", prefix=[*inside, f'{begin} && "$@"', "sh"])
    assert done.returncode == 0, done
    assert re.fullmatch("Warning: .*/events.jsonl': the journal does not tell of this stop\n", done.stderr)
    assert re.search(r"^A stopped \(PID \d+\)\.$", done.stdout, re.MULTILINE)
    run.finish(code=128 + signal.SIGTERM)
    assert own_processes(workspace.root) == []
