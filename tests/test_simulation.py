"""Simulated nights in the ordinary run, and the simulation itself: that it repeats, and that it finds what is wrong."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, Callable

import pytest
import simulation
from simulation import Night, StreamPlan, draw_night, find_violation, play, shrink, try_night
from support import replace

import orchestrate
from orchestrate import Limits, Phase, Start, Verdict, VerdictKind

FIRST = int(os.environ.get("ORCHESTRATE_SIMULATION_SEED", "1"))


@pytest.mark.parametrize("first", range(FIRST, FIRST + 300, 50))
def test_no_invariant_breaks_in_fifty_nights(first: int) -> None:
    outcomes = [try_night(seed) for seed in range(first, first + 50)]
    broken = [outcome.seed for outcome in outcomes if outcome.kind.startswith("VIOLATION")]
    assert not broken, simulation.explain(broken[0])
    assert {"complete", "failed"} <= {outcome.kind for outcome in outcomes}


def test_a_seed_is_one_exact_night() -> None:
    traces: list[list[str]] = [[], []]
    for trace in traces:
        play(draw_night(1), trace.append)
    assert traces[0] == traces[1]
    assert len(traces[0]) > 20
    assert draw_night(1) != draw_night(8)


def _start_everything(ready: list[Any], *_: object) -> list[Start]:
    return [Start(stream) for stream in ready]


def _never(*_: object) -> None:
    return None


SABOTAGE: dict[str, tuple[str, Callable[..., Any]]] = {
    "backoff": ("plan_backoff", lambda *_: 0.0),
    "paused": ("plan_pause", lambda *_: 1.0),
    "order": ("find_obstacles", lambda snapshot, _: {stream.id: [] for stream in snapshot.streams}),
    "max workers": ("plan_starts", _start_everything),
    "not stopped": ("_find_stop_reason", _never),
    "idle": ("plan_starts", lambda *_: []),
    "verdict": ("_judge_cause", lambda *_: Verdict(VerdictKind.FAILED, "")),
    "silence": ("_plan_end", lambda *_: []),
}


@pytest.mark.parametrize("name", SABOTAGE)
def test_the_simulation_finds_what_is_wrong_with_a_planner(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    function, replacement = SABOTAGE[name]
    monkeypatch.setattr(orchestrate, function, replacement)
    found = (find_violation(draw_night(seed)) for seed in range(1, 400))
    assert name in (violation.name for violation in found if violation is not None)


def test_a_broken_night_shrinks_to_what_breaks_it(monkeypatch: pytest.MonkeyPatch) -> None:
    streams = tuple(StreamPlan(f"S-{number}", tasks=(60.0, 60.0), lingers=number == 3) for number in range(6))
    night = Night(1, Limits(max_workers=2), streams, person=((50.0, "stop", "S-1"), (90.0, "start", "S-1")))
    assert find_violation(night) is None
    monkeypatch.setattr(orchestrate, "plan_starts", _start_everything)
    violation = find_violation(night)
    assert violation is not None
    assert violation.name == "max workers"
    least = shrink(night, violation.name)
    assert [(len(plan.tasks), plan.lingers) for plan in least.streams] == [(1, False)] * 3  # one more than allowed
    assert least.person == ()


# Nights that broke an invariant before the program was mended, in the shortest form that breaks it.
FOUND = {
    "a foundation stream that gets a new task starts beside the next one": Night(
        152,
        streams=(
            StreamPlan("S-1", Phase.FOUNDATION, changes=((700.0, "add", 0),)),
            StreamPlan("S-2", Phase.FOUNDATION, tasks=(3000.0,)),
        ),
    ),
    "a limit that is concluded lets another stream start in the same breath": Night(
        5101,
        streams=(StreamPlan("S-1"), StreamPlan("S-2", appears=150.0)),
        windows=((100.0, 9000.0, "limit", 9000.0),),
        kills=((99.0, 0, 100.0, "kill"),),
    ),
    "a task that is completed and then archived does not refill the budget": Night(
        7879,
        streams=(
            StreamPlan(
                "S-7",
                tasks=(100.0, 100.0, 100.0),
                incidents=((1, 50.0, "exit1"), (2, 50.0, "exit0")),
                changes=((170.0, "archive", 0),),
            ),
        ),
    ),
    "a kill at the start of a run loses the pause": Night(
        5469,
        streams=(StreamPlan("S-1"),),
        windows=((100.0, 9000.0, "limit", 9000.0),),
        kills=tuple((300.0 + 100 * n, n, 5.0, "kill") for n in range(12)),
    ),
    "a task that was completed before its stream vanished does not refill the budget": Night(
        8180,
        streams=(
            StreamPlan(
                "S-2",
                tasks=(600.0, 600.0),
                incidents=((0, 500.0, "killed"), (1, 300.0, "killed")),
                changes=((700.0, "vanish", 0), (900.0, "return", 0)),
            ),
            StreamPlan("S-9", tasks=(3000.0,)),
        ),
    ),
    "an API that is away for hours fails every stream": Night(
        5744, Limits(max_restarts=3), (StreamPlan("S-1"),), windows=((0.0, 20000.0, "outage", 20000.0),)
    ),
}


@pytest.mark.parametrize("name", FOUND)
def test_what_the_simulation_has_found_stays_mended(name: str) -> None:
    assert find_violation(FOUND[name]) is None
    if FOUND[name].limits.max_restarts == 3:
        assert play(FOUND[name]).exit_code == 0


@pytest.mark.slow
def test_a_kill_at_any_call_of_a_run_loses_and_doubles_nothing() -> None:
    streams = (
        StreamPlan("S-1", Phase.FOUNDATION, tasks=(30.0,), incidents=((0, 10.0, "exit1"),)),
        StreamPlan("S-2", tasks=(30.0, 30.0), incidents=((1, 5.0, "leftovers"),)),
        StreamPlan("S-3", tasks=(30.0,), lingers=True, stubborn=True),
    )
    night = Night(1, Limits(budget=5.0), streams, windows=((60.0, 100.0, "limit", 100.0),))
    for step, down in itertools.product(range(120), (5.0, 400.0)):
        killed = replace(night, kills=((0.0, step, down, "kill"),))
        assert find_violation(killed) is None, step
        assert play(killed).exit_code == 0, step


def test_a_pause_ends_when_the_wall_clock_says_so() -> None:
    night = Night(1, Limits(), (StreamPlan("S-1"),), windows=((100.0, 9000.0, "limit", 9000.0),))
    assert 9000 < play(night).world.now < 10_000
    slow = play(replace(night, clock_steps=((1000.0, -3600.0),)))
    assert 12_600 < slow.world.now < 13_600
    fast = play(replace(night, clock_steps=((1000.0, 3600.0),)))  # it comes too early, and is believed less each time
    assert 9000 < fast.world.now < 10_900


def test_the_command_line_prints_the_figures_of_many_nights() -> None:
    words = [sys.executable, str(Path(simulation.__file__)), "--nights", "4", "--seed", "20", "--jobs", "2"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=True)
    figures = json.loads(done.stdout.splitlines()[-1])
    assert (figures["seed"], figures["nights"], figures["violations"]) == (20, 4, {})
    assert figures["complete"] + figures["failed"] + figures["waiting"] == 4
