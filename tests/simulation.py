"""A night of the orchestrator, simulated: the real loop, planner and verdicts in a world that exists in memory alone.

    python tests/simulation.py --nights 10000 --seed 1    many nights; the figures are one JSON object on the last line
    python tests/simulation.py --seed 77 --trace          one night, step by step

One seed is one exact night: `draw_night` makes a plan of it, and nothing is random after that. The world stands behind
the seams of the real one (state folder, task store, worker table, clock). The orchestrator may be killed at any call
that crosses them. The `Audit` knows the truth of the world, and compares what the orchestrator does with it. The
*oracle* works through the same night with knowledge of the future; the difference is what the policy wastes.

A plan that breaks an invariant is shrunk to the least that still breaks it before it is reported. Times are in seconds.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import heapq
import json
import math
import multiprocessing
import os
import random
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Callable, Iterable, Iterator, Mapping, Sequence

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from support import replace

from orchestrate import (
    BUDGET_LEAST,
    JOURNAL_MOST,
    LIMIT_PAUSE_MAX,
    LOGIN_PAUSE,
    LOGIN_TRIES,
    PAID_OUTAGES,
    PROGRAM_TRIES,
    ROOT_TIMEOUT,
    Backlog,
    Cause,
    Discovery,
    Ending,
    Event,
    History,
    Limits,
    LostRootError,
    Orchestrator,
    Phase,
    Project,
    Record,
    Reporter,
    Snapshot,
    Standing,
    StoreError,
    Stream,
    Worker,
    fold_events,
    format_duration,
    format_event,
)

HOUR = 3600.0
NIGHT = 12 * HOUR
LONGEST = 100 * HOUR  # nothing new happens after NIGHT; what is not over by then is a loop
STARTUP = 15.0  # until a worker has read its context
PATIENCE = 180.0  # for which the CLI retries an API that does not answer
IN_VAIN = 60.0  # for which a worker tries what only a subagent can do
RATE = 4.0 / HOUR  # US dollars that a worker costs
STARTS_AT_MOST = 300  # of one stream in one night; more is a loop
EPOCH = 1_800_000_000.0
NEVER = math.inf


class Violation(Exception):  # noqa: N818 - it is a finding, and no error of the simulation's
    """An invariant broke: its name, and what happened."""

    def __init__(self, name: str, what: str) -> None:
        super().__init__(f"{name}: {what}")
        self.name = name


class Killed(BaseException):
    """The orchestrator dies here and now, as by kill -9."""


class NightOver(BaseException):
    """Nothing will ever happen again."""


# ── The plan of a night ───────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class StreamPlan:
    """What will become of a stream, whoever works on it.

    `tasks` are seconds of work; `incidents` are (task, seconds into it, kind), each of which happens once; `blocks` are
    (task, when a person unblocks it). `lingers` and `stubborn` are its workers: they do not exit, or ignore SIGTERM.
    `changes` are (time, what, task) by others: `add`, `archive`, `reopen`, and `vanish` and `return` of it all.
    """

    id: str
    phase: Phase = Phase.PARALLEL
    needs: tuple[str, ...] = ()
    tasks: tuple[float, ...] = (600.0,)
    incidents: tuple[tuple[int, float, str], ...] = ()
    blocks: tuple[tuple[int, float], ...] = ()
    changes: tuple[tuple[float, str, int], ...] = ()
    hopeless: str = ""
    lingers: bool = False
    stubborn: bool = False
    appears: float = 0.0


@dataclass(frozen=True)
class Night:
    """Everything that will happen, as (time, …) each. Windows are (start, end, kind, reset that is reported).

    `cleanings` are when a worker deletes the state, `absences` (start, end) when the project's folder is away, `races`
    (time, calls, stream) when a person stops a stream in the midst of what the orchestrator does; so many `lines` make
    a journal too long.
    """

    seed: int
    limits: Limits = field(default_factory=Limits)
    streams: tuple[StreamPlan, ...] = ()
    windows: tuple[tuple[float, float, str, float], ...] = ()
    kills: tuple[tuple[float, int, float, str], ...] = ()  # after so many calls, down for so long, how
    person: tuple[tuple[float, str, str], ...] = ()
    clock_steps: tuple[tuple[float, float], ...] = ()
    cleanings: tuple[tuple[float], ...] = ()
    absences: tuple[tuple[float, float], ...] = ()
    races: tuple[tuple[float, int, str], ...] = ()
    lines: int = 10**6


def _draw_stream(r: random.Random, number: int, before: list[StreamPlan], limits: Limits) -> StreamPlan:
    phase = r.choices(list(Phase), (2, 6, 2))[0]
    needs = [p.id for p in before if p.phase.rank <= phase.rank and r.random() < 0.1]
    tasks = tuple(max(30.0, r.expovariate(1 / 1200)) for _ in range(r.randint(1, 4)))
    kinds = ["exit0", "exit1", "killed", "leftovers", *(["hang"] if limits.stall_timeout else [])]
    incidents = [
        (index, r.uniform(0, work), r.choice(kinds))
        for index, work in enumerate(tasks)
        for _ in range(r.choice((0, 0, 0, 0, 1, 2)))  # what max_restarts must allow for, with outages and a reboot
    ]
    blocks = [(i, r.uniform(0, NIGHT) if r.random() < 0.8 else NEVER) for i in range(len(tasks)) if r.random() < 0.06]
    changes: list[tuple[float, str, int]] = []
    if r.random() < 0.15:
        kind = r.choice(("add", "archive", "reopen"))
        changes.append((r.uniform(0, NIGHT / 2), kind, r.randrange(len(tasks))))
    if r.random() < 0.04:
        gone = r.uniform(0, NIGHT / 2)
        changes += [(gone, "vanish", 0), *([(gone + r.expovariate(1 / 900), "return", 0)] if r.random() < 0.5 else [])]
    return StreamPlan(
        id=f"S-{number}",
        phase=phase,
        needs=tuple(needs),
        tasks=tasks,
        incidents=tuple(sorted(incidents)),
        blocks=tuple(blocks),
        changes=tuple(changes),
        hopeless=r.choice(("final", "crash")) if r.random() < 0.03 else "",
        lingers=r.random() < 0.08,
        stubborn=r.random() < 0.08,
        appears=r.uniform(0, NIGHT / 2) if r.random() < 0.05 else 0.0,
    )


def _draw_windows(r: random.Random) -> Iterator[tuple[float, float, str, float]]:
    for kind, chances, least, mean in (
        ("limit", (5, 3, 2), 60.0, 3600.0),
        ("outage", (7, 2, 1), 60.0, 900.0),
        ("model", (9, 1), 60.0, 3600.0),
        ("login", (9, 1), 5.0, 60.0),
        ("program", (9, 1), 2.0, 40.0),
        ("spawn", (9, 1), 1.0, 3.0),
    ):
        for _ in range(r.choices(range(len(chances)), chances)[0]):
            start = r.uniform(0, NIGHT * 0.7)
            end = start + least + min(r.expovariate(1 / mean), 240 * least)
            # The reset is usually known; sometimes it is not said, and sometimes it is said too early.
            early = end if kind == "model" else r.uniform(start, end)
            yield start, end, kind, r.choices((end, NEVER, early), (8, 1, 1))[0]
    if r.random() < 0.2:
        start = r.uniform(0, NIGHT / 2)
        yield start, start + r.expovariate(1 / 120), "unreadable", 0.0


def draw_night(seed: int) -> Night:
    """Return the night of a seed."""
    r = random.Random(seed)
    limits = Limits(
        max_restarts=r.choice((5, 10, 10)),
        max_workers=r.choice((1, 2, 5, 5)),
        finish_grace=r.choice((30, 120)),
        exit_on_blocked=r.random() < 0.2,
        stall_timeout=r.choice((0.0, 0.0, 1800.0)),
        budget=r.choice((0.0, 0.0, 0.0, r.uniform(1, 40))),
    )
    streams: list[StreamPlan] = []
    for number in range(1, 2 + min(int(r.expovariate(1 / 3)), 8)):
        streams.append(_draw_stream(r, number, streams, limits))
    person: list[tuple[float, str, str]] = []
    for plan in streams:
        if r.random() < 0.07:
            at = r.uniform(0, NIGHT / 2)
            person += [(at, "stop", plan.id)]
            person += [(at + r.expovariate(1 / 1800), "start", plan.id)] if r.random() < 0.8 else []
    kills = tuple(
        (r.uniform(0, NIGHT / 2), r.randrange(30), r.expovariate(1 / 600), r.choice(("kill", "kill", "term", "reboot")))
        for _ in range(r.choice((0, 0, 0, 1, 1, 3)))
    )
    steps = tuple((r.uniform(0, NIGHT / 2), r.choice((-HOUR, HOUR))) for _ in range(r.choice((0, 0, 1))))
    windows = tuple(_draw_windows(r))
    cleanings = tuple((r.uniform(0, NIGHT / 2),) for _ in range(r.choice((0, 0, 0, 1, 3))))
    starts = [r.uniform(0, NIGHT / 2) for _ in range(r.choice((0, 0, 0, 0, 1)))]
    absences = tuple((start, start + r.choice((1.0, 60.0, 300.0, 1800.0)) * r.uniform(0.5, 1.5)) for start in starts)
    moments = [r.choice((0.0, r.uniform(0, NIGHT / 4))) for _ in range(r.choice((0, 0, 0, 1, 2)))]
    races = tuple((at, r.randrange(40), r.choice(streams).id) for at in moments)
    lines = r.choice((10, 50, 10**6))
    night = Night(seed, limits, tuple(streams), windows, kills, tuple(sorted(person)), steps)
    return replace(night, cleanings=cleanings, absences=absences, races=races, lines=lines)


# ── The world ─────────────────────────────────────────────────────────────────────────────────────────────────────────


class SimulatedStream:
    """A stream as it is: the state of each task, and how much work went into it."""

    def __init__(self, plan: StreamPlan) -> None:
        self.plan = plan
        self.rank = plan.phase.rank
        self.tasks = list(plan.tasks)
        self.status = ["pending"] * len(plan.tasks)
        self.done = [0.0] * len(plan.tasks)
        self.incidents = list(plan.incidents)
        self.blocked_until = dict(plan.blocks)
        self.exists = not plan.appears
        self.was_completed: set[int] = set()
        self.complete_since = 0.0
        self._seen: Stream | None = None

    def change(self, index: int, status: str, now: float) -> None:
        """Give a task another status."""
        self.status[index] = status
        self._seen = None
        if status == "completed":
            self.was_completed.add(index)
        if self.is_complete:
            self.complete_since = now

    def take_back(self, index: int, status: str, now: float) -> None:
        """Take what was done away from a task."""
        self.change(index, status, now)
        self.done[index] = 0.0

    def add(self, work: float) -> None:
        """Add a task."""
        self.tasks.append(work)
        self.status.append("pending")
        self.done.append(0.0)
        self._seen = None

    @property
    def is_complete(self) -> bool:
        """Whether no task is open."""
        return not any(status in ("pending", "blocked") for status in self.status)

    @property
    def is_blocked(self) -> bool:
        """Whether the open tasks are all blocked."""
        return "blocked" in self.status and "pending" not in self.status

    def view(self, version: int) -> Stream:
        """Return it as the store shows it."""
        if self._seen is None:
            count = self.status.count
            self._seen = Stream(
                id=self.plan.id,
                name=self.plan.id,
                phase=self.plan.phase,
                dependencies=self.plan.needs,
                pending=count("pending"),
                blocked=count("blocked"),
                completed=count("completed"),
                changed_at=str(version),
            )
        return self._seen


@dataclass(eq=False)
class Process:
    """A worker's process: what it does next is known to the world alone."""

    pid: int
    stream: SimulatedStream
    run: str
    budget: float
    ready_at: float
    active_at: float
    working_since: float = 0.0
    cost: float = 0.0
    ending: Ending | None = None
    cause: str = ""
    resets_at: float | None = None
    has_answer: bool = False
    leftovers: int = 0
    is_hanging: bool = False
    said: str = ""  # the result that it has printed, and lives on
    said_at: float = 0.0
    is_child: bool = True
    is_known: bool = False
    unwanted_since: float = NEVER
    version: int = 0

    @property
    def is_living(self) -> bool:
        """Whether the worker itself lives."""
        return self.ending is None


class World:
    """The time, the streams, the processes, the person; everything but the orchestrator."""

    def __init__(self, night: Night, is_oracle: bool = False) -> None:
        self.night = night
        self.is_oracle = is_oracle
        self.now = 0.0
        self.booted_at = -1000.0
        self.wall_offset = 0.0
        self.version = 1
        self.streams = {plan.id: SimulatedStream(plan) for plan in night.streams}
        self.order = sorted(self.streams.values(), key=lambda s: (s.rank, s.plan.id))
        self.processes: dict[str, Process] = {}  # the latest of each stream
        self.by_pid: dict[int, Process] = {}
        self.stops: set[str] = set()  # the truth; what the files say is
        self.marks: set[str] = set()
        self.journal: list[Event] = []
        self.archive: list[Event] = []
        self.absent_since = NEVER
        self.races = sorted(night.races, reverse=True)
        self.raced_at = -1.0
        self.forgive: Callable[[str], None] = lambda _: None  # whoever has to know what a person asked for
        self.is_down = False
        self.down_until = 0.0
        self.kills = sorted(night.kills, reverse=True)
        self.starts = dict.fromkeys(self.streams, 0)
        self.last_end = 0.0
        self.reported_cost = 0.0
        self._agenda: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._count = 0
        self._schedule()

    def _schedule(self) -> None:
        night = self.night
        plans = [(plan.appears, self._change, plan.id, "appear", 0) for plan in night.streams if plan.appears]
        plans += [(at, self._change, plan.id, what, i) for plan in night.streams for at, what, i in plan.changes]
        plans += [(until, self._unblock, plan.id, i) for plan in night.streams for i, until in plan.blocks]
        plans += [(moment, self._turn, kind) for start, end, kind, _ in night.windows for moment in (start, end)]
        plans += [(at, self._act, what, stream_id) for at, what, stream_id in night.person]
        plans += [(at, self._step_clock, step) for at, step in night.clock_steps]
        if not self.is_oracle:
            plans += [(at, self._clean) for (at,) in night.cleanings]
            for start, end in night.absences:
                plans += [
                    (start, self._go_away, start),
                    (start + ROOT_TIMEOUT + 1, _nothing),
                    (end, self._go_away, NEVER),
                ]
        if self.is_oracle:
            plans += [(at, self._go_down, down, how) for at, _, down, how in night.kills]
            plans += [(end - STARTUP, _nothing) for _, end, *_ in night.windows]
        else:
            plans += [(at, _nothing) for at, *_ in night.kills]
        for at, what, *given in plans:
            self.at(at, what, *given)

    def at(self, moment: float, what: Callable[..., None], *given: Any) -> None:
        """Let something happen at a moment, or at once where that is past."""
        if moment < NEVER:
            self._count += 1
            heapq.heappush(self._agenda, (max(moment, self.now), self._count, what, given))

    @property
    def next_moment(self) -> float:
        """When something happens next."""
        return self._agenda[0][0] if self._agenda else NEVER

    def advance(self, until: float) -> None:
        """Let the time pass, and what happens in it happen."""
        while self._agenda and self._agenda[0][0] <= until:
            self.now, _, what, given = heapq.heappop(self._agenda)
            what(*given)
        self.now = max(self.now, until)

    @property
    def wall(self) -> float:
        """What the wall clock says."""
        return EPOCH + self.now + self.wall_offset

    def window(self, *kinds: str, ahead: float = 0.0) -> tuple[float, float, str, float] | None:
        """Return the window of these kinds that is open now, and for so long from now on."""
        then = self.now + ahead
        return next((w for w in self.night.windows if w[2] in kinds and w[0] <= self.now and then < w[1]), None)

    def living(self) -> list[Process]:
        """Return the workers that live."""
        return [process for process in self.processes.values() if process.ending is None]

    def commit(self) -> None:
        """Take note that the database changed."""
        self.version += 1

    # The workers

    def spawn(self, stream_id: str, budget: float = 0.0) -> Process:
        """Start a worker."""
        pid = 100 + len(self.by_pid)
        process = Process(pid, self.streams[stream_id], f"run.{pid}", budget, self.now + STARTUP, self.now)
        self.processes[stream_id] = self.by_pid[pid] = process
        self.starts[stream_id] += 1
        self._go_on(process)
        return process

    def end(self, process: Process, cause: str, ending: Ending, leftovers: int = 0) -> None:
        """Let a worker end."""
        if process.ending is None:
            self._settle(process)
            is_reported = ending.has_result
            process.ending = replace(ending, cost=process.cost if is_reported else 0.0)
            process.cause, process.leftovers, process.version = cause, leftovers, process.version + 1
            self.reported_cost += process.ending.cost
            self.last_end = self.now
            self.commit()  # its server writes its last; and the orchestrator wakes

    def signal(self, process: Process, signum: int) -> None:
        """Let a signal reach a worker and all that it left."""
        is_ignored = signum == 15 and process.stream.plan.stubborn
        if not is_ignored:
            self.at(self.now + 0.3, self._obey, process, signum)

    def _obey(self, process: Process, signum: int) -> None:
        process.leftovers = 0
        said = replace(_ENDINGS[process.said], code=None) if process.said else Ending(0)
        self.end(process, process.said or "signal", replace(said, code=143 if signum == 15 else -9))

    def _settle(self, process: Process) -> None:
        """Count the work that was done until now."""
        index = self._next_task(process.stream)
        if process.working_since and not process.is_hanging:
            spent = max(self.now - process.working_since, 0.0)
            process.cost += spent * RATE
            process.has_answer = process.has_answer or spent > 0
            if index is not None:
                process.stream.done[index] += spent
        process.working_since = 0.0

    @staticmethod
    def _next_task(stream: SimulatedStream) -> int | None:
        return stream.status.index("pending") if "pending" in stream.status else None

    def _go_on(self, process: Process) -> None:
        process.version += 1
        begin = max(self.now, process.ready_at)
        after, what = (NEVER, "") if process.is_hanging else self._foresee(process)
        self.at(begin + after, self._happen, process, process.version, what)

    def _foresee(self, process: Process) -> tuple[float, str]:
        """Return what happens to a worker next, and after how many seconds."""
        stream = process.stream
        window = self.window("limit", "outage", "login")
        if window is not None:
            return {"limit": 5.0, "outage": PATIENCE, "login": 2.0}[window[2]], window[2]
        if stream.plan.hopeless:
            return 2.0, stream.plan.hopeless
        index = self._next_task(stream)
        if self.window("model") and index is not None:
            return IN_VAIN, "model"
        if index is None:
            is_hung = stream.plan.lingers and stream.is_complete and not self.is_oracle
            return (NEVER, "") if is_hung else (5.0, "finish")
        if stream.blocked_until.get(index, 0.0) > self.now:
            return 1.0, "block"
        process.working_since = max(self.now, process.ready_at)
        nearest = max(stream.tasks[index] - stream.done[index], 0.0), "task"
        if stream.incidents and stream.incidents[0][0] <= index:
            nearest = min(nearest, (max(stream.incidents[0][1] - stream.done[index], 0.0), "incident"))
        if process.budget:
            nearest = min(nearest, (max(process.budget - process.cost, 0.0) / RATE, "budget"))
        return nearest

    def _happen(self, process: Process, version: int, what: str) -> None:
        if process.version != version:
            return
        self._settle(process)
        process.active_at = self.now
        process.has_answer = process.has_answer or what in ("task", "block", "finish", "model")
        if what in ("task", "block"):
            index = self._next_task(process.stream)
            is_moot = what == "block" and process.stream.blocked_until.get(index or 0, 0.0) <= self.now
            if index is not None and not is_moot:
                process.stream.change(index, "completed" if what == "task" else "blocked", self.now)
                self.commit()
            self._go_on(process)
        elif what == "incident":
            self._meet(process, process.stream.incidents.pop(0)[2])
        elif what in ("limit", "model"):
            window = self.window(what)
            process.resets_at = window[3] if window else NEVER
            self._conclude(process, what)
        else:
            self._conclude(process, what)

    def _conclude(self, process: Process, what: str) -> None:
        """Let a worker end, or print its result and live on."""
        if process.stream.plan.lingers and _ENDINGS[what].has_result and not self.is_oracle:
            process.said, process.said_at = what, self.now
            process.version += 1
        else:
            self.end(process, what, _ENDINGS[what])

    def _meet(self, process: Process, kind: str) -> None:
        if kind == "hang" and not self.is_oracle:
            process.is_hanging, process.active_at = True, self.now
            process.version += 1
        else:
            self.end(
                process, "incident", _ENDINGS[kind], leftovers=2 if kind == "leftovers" and not self.is_oracle else 0
            )

    def _turn(self, kind: str) -> None:
        """A window opens or closes: whoever works feels it."""
        for process in self.living() if kind in ("limit", "outage", "model", "login") else []:
            self._settle(process)
            self._go_on(process)

    # Other people

    def _change(self, stream_id: str, what: str, index: int) -> None:
        stream = self.streams[stream_id]
        if what in ("appear", "return", "vanish"):
            stream.exists = what != "vanish"
            process = self.processes.get(stream_id)
            if process and not stream.exists:
                process.unwanted_since = self.now
        elif what == "add":
            self._interrupt(stream, lambda: stream.add(600.0))
        elif what == "archive" or stream.status[index] == "completed":
            status = "archived" if what == "archive" else "pending"
            self._interrupt(stream, lambda: stream.take_back(index, status, self.now))
        self.commit()

    def _interrupt(self, stream: SimulatedStream, change: Callable[[], None]) -> None:
        """Change tasks under the hands of the worker: what it did until now was done on the tasks as they were."""
        working = [process for process in self.living() if process.stream is stream]
        for process in working:
            self._settle(process)
        change()
        for process in working:
            self._go_on(process)

    def _unblock(self, stream_id: str, index: int) -> None:
        stream = self.streams[stream_id]
        if stream.status[index] == "blocked":
            stream.change(index, "pending", self.now)
            self.commit()

    def _act(self, what: str, stream_id: str) -> None:
        """A person types `stop STREAM` or `start STREAM`, the latter beside an orchestrator that runs."""
        if what == "stop":
            self.stops.add(stream_id)
            self.marks.add(stream_id)
            self.journal.append({"event": "stop_requested", "stream": stream_id, "clock": self.now - self.booted_at})
            process = self.processes.get(stream_id)
            if process and process.ending is None and not self.is_down:
                process.unwanted_since = self.now
                self.signal(process, 15)
                self.at(self.now + 10, self.signal, process, 9)
        elif self.is_down and self.night.kills:
            self.at(self.now + 60, self._act, what, stream_id)
        else:
            self.stops.discard(stream_id)
            self.marks.discard(stream_id)
            self.forgive(stream_id)
            self.journal.append({"event": "start_requested", "stream": stream_id, "clock": self.now - self.booted_at})

    def race(self, stream_id: str) -> None:
        """A person stops a stream while the orchestrator does something."""
        self.raced_at = self.now
        self._act("stop", stream_id)

    def _clean(self) -> None:
        """A worker deletes the state; while no orchestrator runs that is lost for good, and no matter here."""
        if not self.is_down and self.absent_since == NEVER:
            self.marks.clear()
            self.journal = []

    def _go_away(self, since: float) -> None:
        self.absent_since = since

    def _step_clock(self, step: float) -> None:
        self.wall_offset += step

    def _go_down(self, seconds: float, how: str) -> None:
        """Take from the oracle what a kill takes from the orchestrator: the time until somebody starts it again."""
        if how == "reboot":
            self.reboot()
        self.is_down = True
        self.down_until = max(self.down_until, self.now + seconds)
        self.at(self.down_until, self._come_up)

    def _come_up(self) -> None:
        self.is_down = self.now < self.down_until

    def reboot(self) -> None:
        """End every process, and begin the monotonic clock anew."""
        for process in self.by_pid.values():
            self._obey(process, 9)
        self.booted_at = self.now - 20.0


def _nothing(*_: object) -> None:
    """Let the orchestrator wake: something that only it can see is due."""


def _result(code: int, words: str = "", **more: Any) -> Ending:
    return Ending(code, words, has_result=True, **more)


_ENDINGS = {
    "limit": _result(
        1, "You've hit your session limit · resets 3am", is_error=True, limit="five hour", is_rejected=True
    ),
    "model": _result(0, limit="seven day opus"),
    "login": _result(1, "Failed to authenticate. API Error: 401", is_error=True, api_status=401),
    "finish": _result(0),
    "exit0": _result(0),
    "exit1": Ending(1, "boom"),
    "killed": Ending(-9),
    "leftovers": Ending(1, "boom"),
    "hang": Ending(-9),
    "crash": Ending(1, "TypeError"),
    "final": _result(1, "Credit balance is too low", is_error=True),
    "outage": _result(1, "API Error: 529 Overloaded.", is_error=True, api_status=529),
    "budget": _result(1, "Exceeded USD budget", is_error=True, subtype="error_max_budget_usd"),
}

# ── The seams ─────────────────────────────────────────────────────────────────────────────────────────────────────────


class Host:
    """One orchestrator's access to the world: it counts the calls, and dies at the one that the plan says."""

    def __init__(self, world: World, audit: Audit) -> None:
        self.world = world
        self.audit = audit
        self.calls_left = -1
        self.calls = 0
        self.race_at = -1
        self.is_holding = False
        self.fate = ""

    def step(self) -> None:
        """Cross a seam. Raises Killed."""
        world = self.world
        self.calls += 1
        if world.races and world.races[-1][0] <= world.now:
            self.race_at = self.calls + world.races[-1][1] if self.race_at < 0 else self.race_at
            if self.calls >= self.race_at and not self.is_holding:
                self.race_at = -1
                world.race(world.races.pop()[2])
        if self.calls_left < 0:
            if world.kills and world.kills[-1][0] <= world.now:
                self.fate = world.kills[-1][3]
                self.calls_left = world.kills[-1][1]
        elif self.calls_left == 0 and self.fate != "term":
            raise Killed
        else:
            self.calls_left -= 1


class SimulatedProject(Project):
    """The project's folder, which may be away."""

    identity = "1:2"

    def __init__(self, world: World) -> None:
        super().__init__(Path("/simulated"))
        self._world = world

    def check_root(self) -> None:
        """Raise LostRootError where it is away."""
        if self._world.absent_since < NEVER:
            raise LostRootError("it is away")


def strip(events: Iterable[Event]) -> list[Event]:
    """Return the events as they were before any of them said all that is known."""
    plain = [{name: fact for name, fact in event.items() if name not in ("known", "archive")} for event in events]
    return [event for event in plain if event["event"] != "journal_folded"]


class SimulatedJournal:
    """The journal in memory; a reader of its own for each orchestrator, which holds it open."""

    trouble = None  # there is always room
    is_cut = False

    def __init__(self, host: Host) -> None:
        self._host = host
        self._events = host.world.journal
        self._read_to = -1

    def flush(self) -> None:
        """Nothing is left to write."""

    @property
    def size(self) -> int:
        """How long it is, in bytes."""
        return len(self._events) * (JOURNAL_MOST // self._host.world.night.lines + 1)

    def hold(self) -> None:
        """It is held from the beginning."""

    @property
    def is_lost(self) -> bool:
        """Whether somebody has deleted it."""
        return self._events is not self._host.world.journal

    @property
    def is_whole(self) -> bool:
        """Whether nobody has deleted it."""
        return not self.is_lost

    def put_back(self) -> list[Event]:
        """Put it back; return what was written since."""
        theirs, self._host.world.journal = self._host.world.journal, self._events
        return theirs

    def add(self, event: Event) -> None:
        """Append an event."""
        self._host.step()
        self._events.append(event)
        self._heed(event)
        self._host.step()

    def carry(self, event: Event, archive: Path | None) -> None:
        """Add an event that says all, and move what was before to the archive, where one is given."""
        self._host.step()
        world = self._host.world
        if archive is not None:
            world.archive += self._events
        world.journal = self._events = [*([] if archive is not None else self._events), event]
        self._read_to = len(self._events)
        self._heed(event)
        self._host.step()

    def _heed(self, event: Event) -> None:
        if event["event"] == "stop_taken_back":
            self._host.world.stops.discard(event["stream"])
        self._host.audit.heed(event)

    def read(self) -> list[Event]:
        """Return the events since the last call; at first those from the last one on that says all."""
        events = self._events
        begin = self._read_to
        if begin < 0:
            begin = max((i for i, event in enumerate(events) if "known" in event), default=0)
            self._check_fold(events[begin:])
        self._read_to = len(events)
        return events[begin:]

    def _check_fold(self, events: list[Event]) -> None:
        """Raise Violation where an event that says all that is known does not say that."""
        whole = fold_events(History(), strip([*self._host.world.archive, *self._events]))
        short = fold_events(History(), events)._replace(archive="")
        if short != whole:
            different = [name for name in History._fields if getattr(short, name) != getattr(whole, name)]
            raise Violation("fold", f"{different}: {short} instead of {whole}")


class SimulatedState:
    """The state folder in memory."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self.project = SimulatedProject(host.world)
        self.journal = SimulatedJournal(host)

    def keep(self) -> bool:
        """Nobody takes the lock away."""
        return True

    @contextlib.contextmanager
    def hold_marks(self) -> Iterator[None]:
        """Nobody else gets them meanwhile."""
        if not self.journal.is_lost:  # a kill before it is put back loses it for good, and no truth stands against that
            self._host.step()
        self._host.is_holding = True
        try:
            yield
        finally:
            self._host.is_holding = False

    def marks(self, stream_ids: Iterable[str]) -> frozenset[str]:
        """Return those of the streams that are marked as stopped."""
        return frozenset(self._host.world.marks.intersection(stream_ids))

    def mark(self, stream_id: str, is_stopped: bool) -> None:
        """Write or remove a mark."""
        self._host.step()
        (self._host.world.marks.add if is_stopped else self._host.world.marks.discard)(stream_id)


class SimulatedStore:
    """The database in memory."""

    path = Path("/simulated/tasks.db")

    def __init__(self, host: Host) -> None:
        self._host = host
        self._seen = 0

    def changed(self) -> bool:
        """Whether somebody committed since the last read. Raises StoreError."""
        self._check()
        return self._seen != self._host.world.version

    def read(self) -> Backlog:
        """Return all streams. Raises StoreError."""
        self._check()
        world = self._host.world
        self._seen = world.version
        return Backlog(tuple(stream.view(world.version) for stream in world.order if stream.exists))

    def _check(self) -> None:
        self._host.step()
        if self._host.world.window("unreadable"):
            self._seen = 0  # whoever can't look has to look again
            raise StoreError("database is locked", "Wait.")


class SimulatedTable:
    """The process table of one orchestrator."""

    trouble = None  # there is always room
    git = None  # all work in one folder
    foreign: Mapping[str, str] = {}

    def __init__(self, host: Host) -> None:
        self._host = host
        self._world = host.world
        self._tracked: dict[str, Process] = {}

    def adopt(
        self,
        stream_ids: Iterable[str],  # noqa: ARG002
        records: Mapping[str, Record],
        unseen: Mapping[str, Worker],  # noqa: ARG002
    ) -> Discovery:
        """Take over what lives, and what has ended unseen."""
        self._host.step()
        known = {i: self._world.by_pid[r.pid] for i, r in records.items() if r.pid in self._world.by_pid}
        known.update(
            (i, self._world.processes[i])
            for i, r in records.items()
            if r.is_starting and i in self._world.processes and not self._world.processes[i].is_known
        )
        found = {i: p for i, p in self._world.processes.items() if p.ending is None or p.leftovers}
        for process in {**known, **found}.values():
            process.is_child = False
            process.active_at = self._world.now
            self._tracked[process.stream.plan.id] = process
        workers = self._view(found)
        return Discovery(workers, {}, {})

    def poll(self) -> dict[str, Worker]:
        """Return all workers."""
        self._host.step()
        return self._view(self._tracked)

    def _view(self, processes: Mapping[str, Process]) -> dict[str, Worker]:
        return {i: self._describe(i, process) for i, process in processes.items()}

    def _describe(self, stream_id: str, process: Process) -> Worker:
        ending = process.ending
        if ending is None:
            is_quiet = process.is_hanging or process.said
            active_at = (process.active_at if is_quiet else self._world.now) - self._world.booted_at
            done_at = process.said_at - self._world.booted_at if process.said else 0.0
            seen = Worker(stream_id, process.pid, process.run, active_at=active_at, done_at=done_at)
            return replace(seen, has_answer=process.has_answer)
        resets_at = process.resets_at
        known = resets_at is not None and resets_at < NEVER
        reset_in = EPOCH + resets_at - self._world.wall if known and resets_at is not None else None
        ending = replace(ending, code=ending.code if process.is_child else None, reset_in=reset_in)
        leftovers = tuple(range(process.leftovers))
        seen = Worker(stream_id, process.pid, process.run, ending, leftovers, cost=ending.cost)
        return replace(seen, has_answer=process.has_answer)

    def open_output(self, stream_id: str) -> int:  # noqa: ARG002
        """Nobody reads it."""
        return 0

    def spawn(
        self,
        stream: Stream,
        history: History,  # noqa: ARG002
        number: int,  # noqa: ARG002
        budget: float,
        streams: Sequence[Stream],  # noqa: ARG002
    ) -> Worker:
        """Start a worker."""
        self._host.step()
        self._host.audit.check_start(stream.id, budget)
        window = self._world.window("spawn", "program")
        if window:
            self._world.starts[stream.id] += 1
            process = Process(0, self._world.streams[stream.id], "run.0", budget, 0.0, self._world.now)
            cause = Cause.PROGRAM if window[2] == "program" else Cause.OTHER
            process.ending, process.cause = Ending(None, "it could not be started", cause), window[2]
        else:
            process = self._world.spawn(stream.id, budget)
        self._tracked[stream.id] = process
        self._host.step()
        return self._describe(stream.id, process)

    def count_commits(self, stream_id: str) -> Worker:
        """Nobody commits here."""
        return self._describe(stream_id, self._tracked[stream_id])

    def signal(self, stream_id: str, signum: int) -> None:
        """Signal a worker."""
        self._host.step()
        self._world.signal(self._tracked[stream_id], signum)

    def forget(self, stream_id: str) -> None:
        """Drop a worker that has ended."""
        self._host.step()
        self._host.audit.concluding = self._tracked.pop(stream_id)

    def find_lost(self) -> list[Any]:
        """Nothing is lost."""
        return []

    def touch(self, stream_id: str) -> None:
        """Take note of a sign of life."""
        if stream_id in self._tracked:
            self._tracked[stream_id].active_at = self._world.now

    def count(self) -> int:
        """Return how many workers live."""
        return len(self._world.living())

    def note(self, stream_id: str, line: str) -> None:
        """Nobody reads the logs."""


class SimulatedClock(Reporter):
    """The clock. It knows from the report when the orchestrator wants to act, and skips the time until then."""

    def __init__(self, host: Host) -> None:
        self.signals: list[int] = []
        self._host = host
        self._world = host.world
        self._due = 0.0

    def monotonic(self) -> float:
        """Seconds since the boot."""
        return self._world.now - self._world.booted_at

    def wall(self) -> float:
        """Seconds since the epoch."""
        return self._world.wall

    def show(self, snapshot: Snapshot, standings: Mapping[str, Standing], now: float) -> None:
        """Take note of when something is due."""
        due = [standing.until for standing in standings.values() if standing.until > now]
        for stream_id in snapshot.workers:
            record = snapshot.history.record(stream_id)
            if record.stopping is not None:
                due.append(max(record.stopping_at + self._world.night.limits.stop_timeout, now + 1.0))
        self._due = min(due, default=NEVER)

    def wait(self, seconds: float) -> None:
        """Skip to the next moment at which anything happens."""
        world, host = self._world, self._host
        if host.fate == "term" and host.calls_left == 0:
            self.signals.append(15)
            return
        host.audit.check_idle()
        silent = [p.active_at + world.night.limits.stall_timeout for p in world.living() if p.is_hanging]
        grace = world.night.limits.finish_grace
        silent += [max(p.said_at, p.active_at) + grace for p in world.living() if p.said]
        silent = [moment for moment in silent if moment >= world.now]
        then = min(world.next_moment, self._due + world.booted_at, *silent)
        if then == NEVER:
            raise NightOver
        if then > LONGEST:
            raise Violation("loop", "the night does not end")
        world.advance(max(then, world.now + seconds))


# ── The audit ─────────────────────────────────────────────────────────────────────────────────────────────────────────


class Audit:
    """Compares what the orchestrator does with what is true."""

    def __init__(self, world: World, trace: Callable[[str], None] | None = None) -> None:
        self.world = world
        self.limits = world.night.limits
        self.trace = trace
        self.concluding: Process | None = None
        self.paused_until = 0.0  # by the wall clock, as is what follows
        self.pause_said = 0.0
        self.limited_until: dict[str, float] = {}
        self.limited_said: dict[str, float] = {}
        self.has_executed = self.has_answer = False
        self.run_started_at = 0.0
        self.outcome = ""
        self.exit_code: int | None = None
        self.waiting = ""
        self._forgive_all()
        world.forgive = self.forgive

    def _forgive_all(self) -> None:
        self.failed: set[str] = set()
        self.restarts: dict[str, int] = {}
        self.tries: dict[str, tuple[str, int]] = {}  # by stream: the cause, and how often in a row it cost nothing
        self.paid_outages: dict[str, int] = {}
        self.progress: dict[str, int] = {}
        self.not_before: dict[str, float] = {}

    def heed(self, event: Event) -> None:
        """Take note of what the orchestrator says that it did."""
        if self.trace and event["event"] != "worker_starting":
            words = format_event(event) or f"({event['event']}) {event.get('state', event.get('reason', ''))}"
            self.trace(f"{format_duration(self.world.now):>8}  {event.get('stream', ''):5} {words}")
        heeding = getattr(self, f"_heed_{event['event']}", None)
        if heeding is not None:
            heeding(event)

    def _heed_run_started(self, _: Event) -> None:
        self.run_started_at = self.world.now
        self.world.stops.clear()
        self._forgive_all()

    def _heed_worker_started(self, event: Event) -> None:
        if event["pid"]:
            self.world.by_pid[event["pid"]].is_known = True
        self.progress.setdefault(event["stream"], len(self.world.streams[event["stream"]].was_completed))

    _heed_worker_adopted = _heed_worker_started

    def _heed_worker_ended(self, event: Event) -> None:
        if self.concluding is not None:
            self._check_verdict(event, self.concluding)

    def _heed_run_paused(self, event: Event) -> None:
        self.pause_said = self.world.wall + event["delay"]

    def _heed_run_waiting(self, event: Event) -> None:
        self.waiting = event["reason"]

    def _heed_run_ended(self, event: Event) -> None:
        self.outcome, self.exit_code = event["reason"], event["exit_code"]

    def forgive(self, stream_id: str) -> None:
        """A person starts a stream: what was is forgotten."""
        self.failed.discard(stream_id)
        for known in (
            self.restarts,
            self.tries,
            self.paid_outages,
            self.not_before,
            self.limited_until,
            self.limited_said,
        ):
            known.pop(stream_id, None)  # type: ignore[attr-defined]

    # What may start

    def check_start(self, stream_id: str, budget: float) -> None:
        """Raise Violation where a worker may not start."""
        world, stream = self.world, self.world.streams[stream_id]
        living = world.living()
        process = world.processes.get(stream_id)
        why_not = {
            "two workers": process is not None and process.ending is None,
            "leftovers": process is not None and process.leftovers > 0,
            "max workers": len(living) >= self.limits.max_workers,
            "vanished": not stream.exists,
            "complete": stream.is_complete,
            "blocked": stream.is_blocked,
            "stopped": stream_id in world.stops,
            "absent": world.absent_since < NEVER,
            "failed": stream_id in self.failed,
            "paused": world.wall < self.paused_until,
            "limited": world.wall < self.limited_until.get(stream_id, 0.0),
            "order": bool(self._find_obstacle(stream)),
            "backoff": world.now < self.not_before.get(stream_id, 0.0),
            "restarts": self.restarts.get(stream_id, 0) > self.limits.max_restarts,
            "budget": self._exceeds_budget(budget, living),
            "loop": world.starts[stream_id] > STARTS_AT_MOST,
        }
        for name, is_so in why_not.items():
            if is_so:
                raise Violation(name, f"a worker of {stream_id} starts after {format_duration(world.now)}")

    def _exceeds_budget(self, budget: float, living: list[Process]) -> bool:
        if not self.limits.budget:
            return budget != 0
        given = self.world.reported_cost + sum(process.budget for process in living)
        return budget < BUDGET_LEAST or given + budget > self.limits.budget + 0.02

    def _find_obstacle(self, stream: SimulatedStream) -> str:
        """Return a stream that has to be over before; empty where there is none."""
        for other in self.world.order:
            if other is stream or not other.exists or not self._is_open(other):
                continue
            is_before = other.rank < stream.rank or other.plan.id in stream.plan.needs
            if is_before or (stream.rank == other.rank == 0 and self._is_alive(other)):
                return other.plan.id
        return ""

    def _is_alive(self, stream: SimulatedStream) -> bool:
        process = self.world.processes.get(stream.plan.id)
        return process is not None and (process.ending is None or process.leftovers > 0)

    def _is_open(self, stream: SimulatedStream) -> bool:
        return not stream.is_complete or self._is_alive(stream)

    # What must start, or end

    def check_idle(self) -> None:
        """Raise Violation where the orchestrator goes to sleep with something left to do."""
        world = self.world
        if world.window("unreadable") or world.absent_since < NEVER:
            return
        living = world.living()
        for process in living:
            self._check_overdue(process)
        busy = sum(self._is_alive(stream) for stream in world.order)
        if self.limits.budget or world.wall < self.pause_said + 0.1 or busy >= self.limits.max_workers:
            return
        foundation = [s for s in world.order if s.rank == 0 and s.exists and self._is_open(s)]
        for stream in world.order:
            is_early = world.now < self.not_before.get(stream.plan.id, 0.0) + 0.35 * self._pause(stream.plan.id)
            is_early = is_early or world.wall < self.limited_said.get(stream.plan.id, 0.0) + 0.1
            if not is_early and self.could_start(stream) and not (stream.rank == 0 and len(foundation) > 1):
                raise Violation("idle", f"{stream.plan.id} could start after {format_duration(world.now)}")

    def could_start(self, stream: SimulatedStream) -> bool:
        """Whether nothing but a pause or a backoff keeps a worker from starting."""
        stream_id = stream.plan.id
        return not (
            not stream.exists
            or stream.is_complete
            or stream.is_blocked
            or self._is_alive(stream)
            or stream_id in self.world.stops
            or stream_id in self.failed
            or self.lacks_needed(stream)
            or self._find_obstacle(stream)
        )

    def lacks_needed(self, stream: SimulatedStream) -> bool:
        """Whether it depends on a stream that does not exist now."""
        return any(not self.world.streams[needed].exists for needed in stream.plan.needs)

    def _pause(self, stream_id: str) -> float:
        cause, in_a_row = self.tries.get(stream_id, ("", 0))
        if cause == "login":
            return LOGIN_PAUSE
        return min(2.0 ** (max(in_a_row or self.restarts.get(stream_id, 0), 1) - 1), 60.0)

    def _check_overdue(self, process: Process) -> None:
        stream, now = process.stream, self.world.now
        patience = self.limits.stop_timeout + 3.0
        is_unwanted = process.unwanted_since < NEVER and (not stream.exists or stream.plan.id in self.world.stops)
        blind = [end for _, end, kind, _ in self.world.night.windows if kind == "unreadable"]
        blind += [end for _, end in self.world.night.absences]
        blind_until = max((end for end in blind if end <= now), default=0.0)
        if is_unwanted and now > max(process.unwanted_since, self.run_started_at, blind_until) + patience:
            raise Violation("not stopped", f"{stream.plan.id} after {format_duration(now)}")
        since = max(stream.complete_since, process.ready_at, self.run_started_at, blind_until)
        if stream.is_complete and now > since + self.limits.finish_grace + patience:
            raise Violation("lingers", f"{stream.plan.id} after {format_duration(now)}")

    # What follows from an end

    def _check_verdict(self, event: Event, process: Process) -> None:
        stream, kind = process.stream, event["verdict"]
        stream_id = stream.plan.id
        progress = len(stream.was_completed)
        has_progress = progress > self.progress.get(stream_id, 0)
        self.progress[stream_id] = progress
        count = 0 if has_progress else self.restarts.get(stream_id, 0)
        is_paid = process.ending is not None and process.ending.cost > 0
        paid = (0 if has_progress else self.paid_outages.get(stream_id, 0)) + (process.cause == "outage" and is_paid)
        self.paid_outages[stream_id] = paid
        cause, tries = self.tries.get(stream_id, ("", 0))
        is_new = has_progress or cause != process.cause or (cause == "login" and process.has_answer)
        tries = 0 if is_new else tries
        is_free = {
            "outage": not is_paid or paid <= PAID_OUTAGES,
            "login": self._has_answer() and tries < LOGIN_TRIES,
            "program": (self.has_executed or self._has_answer()) and tries < PROGRAM_TRIES,
        }.get(process.cause, False)
        self.has_executed = self.has_executed or process.pid > 0
        self.has_answer = self.has_answer or process.has_answer or event["exit_code"] == 0 or process.cause == "limit"
        self.limited_until.pop(stream_id, None)  # it is over, whatever the clock does
        expected = self._expect(process, 0 if is_free else count + 1, stream_id in self.world.stops)
        if kind != expected and self.world.raced_at == self.world.now:  # it was stopped after the orchestrator looked
            expected = self._expect(process, 0 if is_free else count + 1, False)
        if kind != expected:
            raise Violation("verdict", f"{stream_id}: {kind} instead of {expected} ({process.cause})")
        self.restarts[stream_id] = count + (kind == "restart" and not is_free)
        self.tries[stream_id] = process.cause, tries + 1 if is_free or kind == "limited" else 0
        if kind == "restart":
            # Who counts can't see a task that is completed as another one is reopened; one archived undone looks done.
            changes = {change[1] for change in stream.plan.changes}
            is_lenient = "archive" in changes and event["restarts"] < self.restarts[stream_id]
            if event["restarts"] != self.restarts[stream_id] and not ("reopen" in changes or is_lenient):
                raise Violation("count", f"{stream_id}: {event['restarts']} instead of {self.restarts[stream_id]}")
            self.restarts[stream_id] = event["restarts"]
            if changes & {"archive", "reopen"}:
                self.tries[stream_id] = process.cause, event["tries"]
            self.not_before[stream_id] = self.world.now + 0.85 * self._pause(stream_id)
        elif kind == "limited":
            self.limited_until[stream_id] = self._find_reset(process, self.world.wall + LIMIT_PAUSE_MAX) - 0.01
            self.limited_said[stream_id] = self.world.wall + event["delay"]
        elif kind == "failed":
            self.failed.add(stream_id)
        elif kind == "paused":
            self.paused_until = max(self.paused_until, self._find_reset(process, NEVER))

    def _find_reset(self, process: Process, latest: float) -> float:
        """Return before when, by the wall clock, nothing may start: an unknown reset is a minute away at least."""
        is_known = process.resets_at is not None and process.resets_at < NEVER
        reset = EPOCH + (process.resets_at or 0.0) if is_known else self.world.wall + 60.0
        return min(reset, latest)

    def _has_answer(self) -> bool:
        """Whether it is known that the login was good in this run."""
        return self.has_answer or any(process.has_answer for process in self.world.processes.values())

    def _expect(self, process: Process, count: int, is_stopped: bool) -> str:
        """Return the verdict that the contract's table has for what is true."""
        stream = process.stream
        if not stream.exists:
            return "vanished"
        if stream.is_complete:
            return "complete"
        if is_stopped:
            return "stopped"
        if stream.is_blocked:
            return "blocked"
        if process.cause == "model" and EPOCH + (process.resets_at or 0.0) > self.world.wall:
            return "limited"
        again = "failed" if count else "restart"
        by_cause = {"limit": "paused", "final": "failed", "login": again, "program": again}
        if process.cause in by_cause:
            return by_cause[process.cause]
        if process.cause == "budget" and self.limits.budget - self.world.reported_cost < BUDGET_LEAST:
            return "failed"
        return "failed" if count > self.limits.max_restarts else "restart"

    # The end

    def check_end(self) -> None:
        """Raise Violation where the night did not end as it must."""
        world = self.world
        left = [stream for stream in world.order if stream.exists and not stream.is_complete]
        if world.living() and self.exit_code is not None:
            raise Violation("left running", f"{len(world.living())} workers")
        if self.exit_code is None and not (left and self.waiting):
            raise Violation("silence", f"nothing happens any more, and it waits for {self.waiting or 'nothing'}")
        is_empty = not any(stream.exists for stream in world.order)
        if self.exit_code is not None and bool(left or is_empty) != bool(self.exit_code):
            raise Violation("exit code", f"{self.exit_code} with {len(left)} streams left: {self.outcome}")
        events = [*world.archive, *world.journal]
        known = sum(event["cost"] for event in events if event["event"] == "worker_ended")
        if self.exit_code is not None and abs(known - world.reported_cost) > 0.001:
            raise Violation("cost", f"the journal knows of ${known:.2f} of ${world.reported_cost:.2f}")
        for stream in left:
            self._check_reason(stream)

    def _check_reason(self, stream: SimulatedStream) -> None:
        stream_id, said = stream.plan.id, self.outcome or self.waiting
        if self.exit_code is None:
            # It waits for a person: there must be somebody whom one can help.
            is_held = stream_id in self.world.stops or stream.is_blocked
            if is_held and stream_id not in said and not self._waits_for_failed(stream):
                raise Violation("reason", f"{stream_id} is not in {said!r}")
            return
        expected = {
            " failed: ": stream_id in self.failed or self.lacks_needed(stream),
            " stopped: ": stream_id in self.world.stops,
            " blocked: ": stream.is_blocked,
            " never ran: ": bool(self._find_obstacle(stream)) or stream.rank == 0,
            " is not complete: the budget": bool(self.limits.budget),
        }
        if not any(f"{stream_id}{words}" in said for words, is_so in expected.items() if is_so):
            raise Violation("reason", f"{stream_id}: {said!r}")

    def _waits_for_failed(self, stream: SimulatedStream) -> bool:
        failed = [other for other in self.world.order if other.plan.id in self.failed or self.lacks_needed(other)]
        return any(other.rank <= stream.rank and other.exists for other in failed)


# ── A night from its beginning to its end ─────────────────────────────────────────────────────────────────────────────


def play(night: Night, trace: Callable[[str], None] | None = None) -> Audit:
    """Run the real orchestrator through a night. Raises Violation."""
    world = World(night)
    audit = Audit(world, trace)
    with contextlib.suppress(NightOver):
        while True:
            host = Host(world, audit)
            clock = SimulatedClock(host)
            seams: tuple[Any, ...] = (SimulatedState(host), SimulatedStore(host), SimulatedTable(host))
            run = Orchestrator(*seams, night.limits, clock, [clock])
            is_given_up = False
            with contextlib.suppress(Killed):
                is_given_up = run.run() == 1 and audit.exit_code is None
            if audit.exit_code is not None:
                break
            _, _, down, how = (0, 0, 0.0, "the folder is away") if is_given_up else world.kills.pop()
            if trace:
                trace(f"{format_duration(world.now):>8}        ** the orchestrator ends ({how}) **")
            if how == "reboot":
                world.reboot()
            world.is_down = True
            world.advance(world.now + down)
            while world.absent_since < NEVER:
                world.advance(world.next_moment)
            world.is_down = False
    audit.check_end()
    return audit


def play_oracle(night: Night, until: float) -> World:
    """Work through a night with knowledge of the future: no start that a limit, an outage or fate makes useless."""
    world = World(night, is_oracle=True)
    audit = Audit(world)
    while world.now < until + 60:
        # It starts a worker so that it is ready when the window closes.
        is_off = world.window("limit", "outage", "model", "login", ahead=STARTUP)
        is_off = is_off or world.window("spawn", "program", "unreadable")
        for stream in world.order if not (is_off or world.is_down) else []:
            is_free = len(world.living()) < night.limits.max_workers and not stream.plan.hopeless
            is_useful = any(
                status == "pending" and stream.blocked_until.get(index, 0.0) <= world.now
                for index, status in enumerate(stream.status)
            )
            if is_free and is_useful and audit.could_start(stream):
                world.spawn(stream.plan.id)
        if world.next_moment == NEVER:
            break
        world.advance(max(min(world.next_moment, until + 60), world.now + 0.001))
    return world


@dataclass
class Outcome:
    """What a night was like. Times in seconds; `wasted` are the starts beyond the oracle's, by stream."""

    seed: int
    kind: str
    starts: int = 0
    fewest: int = 0
    wasted: list[int] = field(default_factory=list)
    wasted_on_hopeless: list[int] = field(default_factory=list)
    lost: float | None = None
    length: float = 0.0


def _is_all_complete(world: World) -> bool:
    there = [stream for stream in world.order if stream.exists]
    return bool(there) and all(stream.is_complete for stream in there)


def judge_night(night: Night) -> Outcome:
    """Run a night and compare it with the oracle's. Raises Violation."""
    audit = play(night)
    world = audit.world
    oracle = play_oracle(night, world.now)
    kind = "waiting" if audit.exit_code is None else "failed" if audit.exit_code else "complete"
    # What others change after the end of the run is not the run's fault, nor that they take away what a stream needs.
    is_over = all(max([plan.appears, *(change[0] for change in plan.changes)]) <= world.now for plan in night.streams)
    is_lost = any(audit.lacks_needed(stream) for stream in world.order)
    # A login, or a program, that nobody has seen to be good is not waited for, nor a reset that seems to be past.
    doubtful = ("login", "program", *(["model"] if night.clock_steps else []))
    is_lost = is_lost or any(window[2] in doubtful for window in night.windows)
    is_free = is_over and not (is_lost or night.limits.budget or night.limits.exit_on_blocked or world.marks)
    if kind != "complete" and is_free and _is_all_complete(play_oracle(night, LONGEST)):
        raise Violation("could end well", f"but {audit.outcome or audit.waiting}")
    outcome = Outcome(night.seed, kind, sum(world.starts.values()), sum(oracle.starts.values()), length=world.now)
    for plan in night.streams:
        extra = world.starts[plan.id] - oracle.starts[plan.id]
        (outcome.wasted_on_hopeless if plan.hopeless else outcome.wasted).append(extra)
    if kind == "complete" and _is_all_complete(oracle):
        outcome.lost = world.last_end - oracle.last_end
    return outcome


# ── Shrinking ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def _without_each(values: tuple[Any, ...]) -> Iterator[tuple[Any, ...]]:
    for index in range(len(values)):
        yield values[:index] + values[index + 1 :]


def _simpler(night: Night) -> Iterator[Night]:
    """Yield nights in which one thing less happens."""
    for streams in _without_each(night.streams) if len(night.streams) > 1 else ():
        ids = {plan.id for plan in streams}
        kept = tuple(replace(plan, needs=tuple(i for i in plan.needs if i in ids)) for plan in streams)
        person, races = ([a for a in actions if a[2] in ids] for actions in (night.person, night.races))
        yield replace(night, streams=kept, person=tuple(person), races=tuple(races))
    for name in ("windows", "kills", "person", "clock_steps", "cleanings", "absences", "races"):
        for values in _without_each(getattr(night, name)):
            yield replace(night, **{name: values})
    for position, plan in enumerate(night.streams):
        for simpler in _simpler_streams(plan):
            yield replace(night, streams=(*night.streams[:position], simpler, *night.streams[position + 1 :]))
    for name in ("exit_on_blocked", "budget", "max_workers", "max_restarts", "finish_grace"):
        if getattr(night.limits, name) != getattr(Limits(), name):
            yield replace(night, limits=replace(night.limits, **{name: getattr(Limits(), name)}))


def _simpler_streams(plan: StreamPlan) -> Iterator[StreamPlan]:
    for name in ("needs", "incidents", "blocks", "changes"):
        for values in _without_each(getattr(plan, name)):
            yield replace(plan, **{name: values})
    for name in ("hopeless", "lingers", "stubborn", "appears"):
        if getattr(plan, name):
            yield replace(plan, **{name: getattr(StreamPlan(""), name)})
    if len(plan.tasks) > 1:
        last = len(plan.tasks) - 1
        yield replace(
            plan,
            tasks=plan.tasks[:-1],
            incidents=tuple(incident for incident in plan.incidents if incident[0] < last),
            blocks=tuple(block for block in plan.blocks if block[0] < last),
            changes=tuple(change for change in plan.changes if change[2] < last),
        )


def find_violation(night: Night) -> Violation | None:
    """Return what breaks in a night, an exception of the orchestrator's included; None where nothing does."""
    try:
        judge_night(night)
    except Violation as violation:
        return violation
    except Exception as error:  # noqa: BLE001 - whatever the program raises is a finding
        return Violation(type(error).__name__, str(error))
    return None


def shrink(night: Night, name: str) -> Night:
    """Return the simplest night that can be found in which the same invariant breaks."""
    while True:
        for simpler in _simpler(night):
            violation = find_violation(simpler)
            if violation is not None and violation.name == name:
                night = simpler
                break
        else:
            return night


def format_night(night: Night) -> str:
    """Return the plan of a night as text."""
    lines = [f"Limits: { {k: v for k, v in night.limits._asdict().items() if v != getattr(Limits(), k)} }"]
    for plan in night.streams:
        said = {k: v for k, v in dataclasses.asdict(plan).items() if v != getattr(StreamPlan(""), k) or k == "id"}
        lines.append(f"Stream: {said}")
    for name in ("windows", "kills", "person", "clock_steps", "cleanings", "absences", "races"):
        lines += [f"{name}: {value}" for value in getattr(night, name)]
    return "\n".join(lines)


def explain(seed: int) -> str:
    """Return in words what breaks in a night: the plan, shrunk, and its trace. Empty where nothing does."""
    night = draw_night(seed)
    violation = find_violation(night)
    if violation is None:
        return ""
    night = shrink(night, violation.name)
    lines: list[str] = []
    with contextlib.suppress(Exception):
        play(night, lines.append)
    return f"seed {seed}: {find_violation(night)}\n{format_night(night)}\n" + "\n".join(lines[-60:])


# ── Many nights ───────────────────────────────────────────────────────────────────────────────────────────────────────


def try_night(seed: int) -> Outcome:
    """Run a night; what breaks in it is its outcome."""
    try:
        return judge_night(draw_night(seed))
    except Violation as violation:
        return Outcome(seed, f"VIOLATION {violation.name}")
    except Exception as error:  # noqa: BLE001 - whatever the program raises is a finding
        return Outcome(seed, f"VIOLATION {type(error).__name__}")


def play_nights(first: int, count: int, jobs: int) -> list[Outcome]:
    """Run so many nights from a seed on."""
    seeds = range(first, first + count)
    if jobs == 1:
        return [try_night(seed) for seed in seeds]
    with multiprocessing.get_context("fork").Pool(jobs) as pool:
        return pool.map(try_night, seeds, chunksize=max(count // (jobs * 20), 1))


def _mean(values: list[float]) -> float:
    return round(sum(values) / len(values), 4) if values else 0.0


def summarize(outcomes: list[Outcome]) -> dict[str, Any]:
    """Return the figures of many nights. Hours are simulated ones."""
    wasted = [float(count) for outcome in outcomes for count in outcome.wasted]
    hopeless = [float(count) for outcome in outcomes for count in outcome.wasted_on_hopeless]
    lost = [outcome.lost / HOUR for outcome in outcomes if outcome.lost is not None]
    kinds = [outcome.kind for outcome in outcomes]
    worst = max((o for o in outcomes if o.lost is not None), key=lambda o: o.lost or 0.0, default=None)
    return {
        "nights": len(outcomes),
        **{kind: kinds.count(kind) for kind in ("complete", "failed", "waiting")},
        "streams": len(wasted) + len(hopeless),
        "starts": sum(outcome.starts for outcome in outcomes),
        "fewest_starts": sum(outcome.fewest for outcome in outcomes),
        "wasted_starts_per_stream": {"mean": _mean(wasted), "worst": max(wasted, default=0.0)},
        "starts_per_hopeless_stream": {"mean": _mean(hopeless), "worst": max(hopeless, default=0.0)},
        "hours_lost_per_night": {"mean": _mean(lost), "worst": round(max(lost, default=0.0), 3)},
        "seed_of_worst": worst and worst.seed,
        "hours": round(sum(outcome.length for outcome in outcomes) / HOUR),
        "violations": {o.seed: o.kind.split(" ", 1)[1] for o in outcomes if o.kind.startswith("VIOLATION")},
    }


def main() -> int:
    """Run nights, say how they went; return 1 where an invariant broke."""
    parser = argparse.ArgumentParser(description="Simulate nights of the orchestrator.")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--nights", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--trace", action="store_true", help="show the night of the seed step by step")
    options = parser.parse_args()
    print(f"seed {options.seed}")
    if options.trace:
        print(format_night(draw_night(options.seed)))
        with contextlib.suppress(Violation):  # it is in the figures
            play(draw_night(options.seed), print)
    started = time.perf_counter()
    figures = summarize(play_nights(options.seed, options.nights, options.jobs))
    seconds = round(time.perf_counter() - started, 1)
    for seed in list(figures["violations"])[:3]:
        print(explain(seed) or f"seed {seed}: {try_night(seed).kind}")
    print(json.dumps({"seed": options.seed, **figures, "seconds": seconds}))
    return 1 if figures["violations"] else 0


if __name__ == "__main__":
    sys.exit(main())
