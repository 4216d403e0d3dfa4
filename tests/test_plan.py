"""The planner: tables of how things stand and what follows. No clock, no process, no database, no mocks."""

from __future__ import annotations

import random
import time
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from support import replace

from orchestrate import (
    KILL_INTERVAL,
    WAITS,
    Action,
    Cause,
    Conclude,
    Ending,
    Finish,
    History,
    Kill,
    Limits,
    Phase,
    Record,
    Snapshot,
    Standing,
    Start,
    Stop,
    StopReason,
    Stream,
    StreamState,
    Task,
    Verdict,
    VerdictKind,
    Wait,
    Worker,
    assess,
    explain_stop,
    fold_events,
    format_duration,
    format_time,
    judge,
    order_streams,
    plan,
    plan_backlog,
    plan_backoff,
)

unhurried = settings(deadline=None, database=None)  # a busy machine is no failure

PHASES = {"F": Phase.FOUNDATION, "P": Phase.PARALLEL, "I": Phase.INTEGRATION}
FINISHING, STOPPING = StreamState.FINISHING, StopReason.USER


def make_stream(stream_id: str, *needed: str, **fields: Any) -> Stream:
    """Return a stream with one open task, of the phase that its first letter stands for."""
    return Stream(**{"id": stream_id, "name": "", "phase": PHASES[stream_id[0]], "dependencies": needed, **fields})


def make_snapshot(text: str, records: dict[str, Record] | None = None, **more: Any) -> Snapshot:
    """Return a snapshot: `F1+ P1*! P2x<P1,P3`, an id, then what is so of it, then what it depends on.

    + complete   ! blocked   * its worker lives   . its worker has ended   x failed   s stopped by the user
    """
    parts = [token.partition("<") for token in text.split()]
    given = {ident[:2]: (ident[2:], deps.split(",") if deps else []) for ident, _, deps in parts}
    states: dict[str, dict[str, Any]] = {
        "+": {"completed": 1},
        "!": {"blocked": 1, "named_tasks": (Task("T", "", "blocked", "why"),)},
    }
    streams = [
        make_stream(i, *deps, **next((states[mark] for mark in marks if mark in states), {"pending": 1}))
        for i, (marks, deps) in given.items()
    ]
    endings = {"*": None, ".": Ending(0)}
    workers = {i: Worker(i, 9, "", endings[m]) for i, (marks, _) in given.items() for m in marks if m in endings}
    failed = {i: Record(failure="it broke") for i, (marks, _) in given.items() if "x" in marks}
    return Snapshot(
        "p",
        plan_backlog(streams),
        more.pop("workers", workers),
        History(records={**failed, **(records or {})}),
        frozenset(i for i, (marks, _) in given.items() if "s" in marks),
        orchestrator=1,
        **more,
    )


def tell(action: Action) -> str:
    """Return an action as a short text."""
    if isinstance(action, Start):
        return f"start {action.stream.id}"
    if isinstance(action, Stop):
        return f"stop {action.stream_id}: {action.why.name}"
    if isinstance(action, Kill):
        return f"kill {action.stream_id}"
    if isinstance(action, Conclude):
        return f"conclude {action.worker.stream_id}: {action.verdict.kind.name}"
    return f"wait: {action.reason}" if isinstance(action, Wait) else f"finish {action.exit_code}: {action.reason}"


def tell_plan(snapshot: Snapshot, now: float = 0, **limits: Any) -> list[str]:
    return [tell(action) for action in plan(snapshot, Limits(**limits), now)]


# ── Dependencies ──────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("text", "order"),
    [("P1 P2 P3", "P1 P2 P3"), ("P1<P3 P2 P3", "P3 P1 P2"), ("P1<P2,P3 P2<P3 P3", "P3 P2 P1"), ("P1<P9", "P1")],
)
def test_order_streams_puts_each_behind_what_it_needs_and_else_keeps_the_order(text: str, order: str) -> None:
    ordered, cycles = order_streams(make_snapshot(text).streams)
    assert (" ".join(stream.id for stream in ordered), cycles) == (order, [])


@unhurried
@given(st.lists(st.lists(st.integers(0, 7), max_size=4, unique=True), min_size=8, max_size=8))
def test_order_streams_gives_an_order_or_names_real_cycles(graph: list[list[int]]) -> None:
    streams = [make_stream(f"P{i}", *(f"P{n}" for n in needed)) for i, needed in enumerate(graph)]
    ordered, cycles = order_streams(streams)
    place = {stream.id: position for position, stream in enumerate(ordered)}
    assert len(place) == len(streams)
    backwards = [(s.id, needed) for s in streams for needed in s.dependencies if place[needed] >= place[s.id]]
    edges = {(s.id, needed) for s in streams for needed in s.dependencies}
    assert bool(cycles) == bool(backwards)
    for cycle in cycles:
        assert cycle[0] == cycle[-1]
        assert set(zip(cycle, cycle[1:])) <= edges


CYCLE = "its dependencies form a cycle: "
ROUND = CYCLE + "P1 (parallel) -> P2 (parallel) -> P3 (parallel) -> P1 (parallel)"
BACK = CYCLE + "F1 (foundation) -> I1 (integration) -> F1 (foundation)"


@pytest.mark.parametrize(
    ("text", "problems"),
    [
        ("F1 P1<F1 P2<P1 I1<P2,F1", {}),
        ("P1<P9 P2<P1", {"P1": "it depends on P9, and no stream has that id"}),
        ("P1<P1 P2<P1", {"P1": CYCLE + "P1 (parallel) -> P1 (parallel)"}),
        ("P1<P2 P2<P3 P3<P1 P4<P1", {"P1": ROUND, "P2": ROUND, "P3": ROUND}),
        ("F1<I1 I1", {"F1": BACK, "I1": BACK}),  # without its being said, I1 waits for F1
    ],
)
def test_plan_backlog_says_what_is_wrong_with_each_stream(text: str, problems: dict[str, str]) -> None:
    assert {s.id: s.problem for s in make_snapshot(text).streams if s.problem} == problems


def test_plan_backlog_keeps_the_problem_that_the_store_has_found() -> None:
    (stream,) = plan_backlog([make_stream("P1", "P1", problem="its phase is unknown")])
    assert stream.problem == "its phase is unknown"


@pytest.mark.parametrize("last", [(), ("P0",)])
def test_a_chain_of_a_thousand_streams_is_ordered_fast_and_without_recursion(last: tuple[str, ...]) -> None:
    streams = [make_stream(f"P{i}", *([f"P{i + 1}"] if i < 999 else last), pending=1) for i in range(1000)]
    begin = time.perf_counter()
    backlog = plan_backlog(streams)
    actions = tell_plan(Snapshot("p", backlog, orchestrator=1))
    assert time.perf_counter() - begin < 2
    assert sum(bool(stream.problem) for stream in backlog) == (1000 if last else 0)
    assert [action.partition(":")[0] for action in actions] == (["finish 1"] if last else ["start P999"])


# ── The end of a worker ───────────────────────────────────────────────────────────────────────────────────────────────


def test_plan_backoff_doubles_from_one_second_to_a_minute_within_a_tenth() -> None:
    for restarts, pause in [*enumerate([1, 2, 4, 8, 16, 32, 60, 60], start=1), (10**6, 60)]:
        pauses = {plan_backoff(restarts, f"seed {number}") for number in range(50)}
        assert len(pauses) == 50  # workers do not restart in step
        assert all(0.9 * pause <= spread <= 1.1 * pause for spread in pauses)
    assert plan_backoff(3, "seed \ud800") == plan_backoff(3, "seed \ud800")


ODD = "all tasks are complete, but "
STALLED = "stopped: it gave no sign of life"
TIMEOUT, DONE = "it ran for longer than --worker-timeout", "it was done, and did not exit by itself"
AT_LIMIT = Ending(143, "the limit", has_result=True, is_error=True, api_error="usage_limit_reached")
SAID = Ending(None, "well", has_result=True)
LACKING = Ending(0, has_result=True, failed_servers=("task-copilot",))
LACKED = "exit code 0, the MCP server task-copilot failed to start"


def judge_one(text: str, ending: Ending, record: Record = Record(), max_restarts: int = 2) -> Verdict:  # noqa: B008
    snapshot = make_snapshot(text, {"P1": record})
    stream = next(iter(snapshot.streams), None)
    ending = explain_stop(ending, record.stopping)
    return judge(stream, Worker("P1", 9, "run", ending), snapshot, Limits(max_restarts=max_restarts))


@pytest.mark.parametrize(
    ("text", "ending", "record", "kind", "reason"),
    [
        ("", Ending(0), Record(), VerdictKind.VANISHED, "its stream is no longer in the database"),
        ("P1+", Ending(0), Record(), VerdictKind.COMPLETE, ""),
        ("P1+", Ending(None), Record(), VerdictKind.COMPLETE, ""),
        ("P1+", Ending(1, "boom"), Record(), VerdictKind.COMPLETE, f"{ODD}exit code 1: boom"),
        ("P1+", Ending(1, "boom", Cause.FINAL), Record(), VerdictKind.COMPLETE, None),
        ("P1+", Ending(-15), Record(stopping=StopReason.GRACE), VerdictKind.COMPLETE, ""),
        ("P1+", Ending(1), Record(stopping=StopReason.LEFTOVERS), VerdictKind.COMPLETE, f"{ODD}exit code 1"),
        ("P1+s", Ending(-15), Record(stopping=StopReason.USER), VerdictKind.COMPLETE, ""),
        ("P1s", Ending(0), Record(), VerdictKind.STOPPED, "by the user"),
        ("P1", Ending(-15), Record(stopping=StopReason.USER), VerdictKind.STOPPED, "by the user"),
        ("P1", Ending(-15), Record(stopping=StopReason.EXIT), VerdictKind.STOPPED, None),
        ("P1", Ending(-15), Record(stopping=StopReason.VANISHED), VerdictKind.STOPPED, None),  # it is back
        ("P1!s", Ending(0), Record(), VerdictKind.STOPPED, None),
        ("P1!", Ending(1, "boom", Cause.FINAL), Record(restarts=9), VerdictKind.BLOCKED, "why (T)"),
        ("P1", Ending(127, "not found"), Record(), VerdictKind.FAILED, "exit code 127: not found"),
        ("P1", Ending(0, "done!"), Record(), VerdictKind.RESTART, "exit code 0, 1 task open"),
        ("P1", Ending(1, "boom"), Record(), VerdictKind.RESTART, "exit code 1: boom"),
        ("P1", Ending(-9), Record(), VerdictKind.RESTART, "killed by SIGKILL"),
        ("P1", Ending(-40), Record(), VerdictKind.RESTART, "killed by signal 40"),  # a real-time signal has no name
        ("P1", Ending(0), Record(stopping=StopReason.LEFTOVERS), VerdictKind.RESTART, None),
        ("P1", Ending(1, "Not logged in"), Record(stopping=StopReason.STALLED), VerdictKind.RESTART, STALLED),
        ("P1", Ending(1, "Not logged in"), Record(stopping=StopReason.GRACE), VerdictKind.RESTART, None),  # reopened
        ("P1", Ending(None, "unseen"), Record(), VerdictKind.RESTART, "unseen"),
        ("P1", Ending(-15), Record(stopping=StopReason.TIMEOUT), VerdictKind.RESTART, f"stopped: {TIMEOUT}"),
        ("P1", SAID, Record(stopping=StopReason.GRACE), VerdictKind.RESTART, f"stopped: {DONE}, 1 task open"),
        (
            "P1",
            replace(SAID, is_error=True),
            Record(stopping=StopReason.GRACE),
            VerdictKind.RESTART,
            f"well, stopped: {DONE}",
        ),
        ("P1", SAID, Record(stopping=StopReason.STALLED), VerdictKind.RESTART, f"{STALLED}, 1 task open"),
        ("P1", AT_LIMIT, Record(stopping=StopReason.STALLED), VerdictKind.PAUSED, "the limit"),
        ("P1", AT_LIMIT, Record(stopping=StopReason.TIMEOUT), VerdictKind.PAUSED, "the limit"),
        (
            "P1",
            replace(SAID, remarks=("it stopped a part",)),
            Record(stopping=StopReason.GRACE),
            VerdictKind.RESTART,
            f"it stopped a part, stopped: {DONE}, 1 task open",
        ),
        ("P1", LACKING, Record(), VerdictKind.RESTART, LACKED),
        ("P1", LACKING, Record(tries=1), VerdictKind.RESTART, LACKED),  # of another cause
        (
            "P1",
            LACKING,
            Record(cause=Cause.SERVER, tries=1),
            VerdictKind.FAILED,
            f"{LACKED}. Look why: claude mcp list",
        ),
        ("P1", LACKING, Record(fewest=2, cause=Cause.SERVER, tries=1), VerdictKind.RESTART, "exit code 0, 1 task open"),
        (
            "P1",
            replace(LACKING, failed_servers=("other",)),
            Record(cause=Cause.SERVER, tries=1),
            VerdictKind.RESTART,
            "exit code 0, the MCP server other failed to start, 1 task open",
        ),
        (
            "P1",
            replace(LACKING, code=1, is_error=True, words="boom"),
            Record(),
            VerdictKind.RESTART,
            "exit code 1: boom, the MCP server task-copilot failed to start",
        ),
        (
            "P1",
            replace(LACKING, code=1, is_error=True, words="boom"),
            Record(cause=Cause.SERVER, tries=1),
            VerdictKind.FAILED,
            None,
        ),
        ("P1!", LACKING, Record(cause=Cause.SERVER, tries=1), VerdictKind.BLOCKED, "why (T)"),
        (
            "P1",
            Ending(0, "Well.", remarks=("it stopped a part",)),
            Record(),
            VerdictKind.RESTART,
            "exit code 0, it stopped a part, 1 task open",
        ),
    ],
)
def test_judge_goes_by_the_tasks_then_by_what_was_asked_then_by_how_it_ended(
    text: str, ending: Ending, record: Record, kind: VerdictKind, reason: str | None
) -> None:
    verdict = judge_one(text, ending, record)
    assert verdict.kind is kind
    assert reason in (None, verdict.reason)


def test_a_server_that_did_not_start_costs_no_restart_and_is_tried_once_more() -> None:
    verdict = judge_one("P1", LACKING, Record(restarts=2))
    assert (verdict.restarts, verdict.cause, verdict.tries) == (2, Cause.SERVER, 1)
    assert verdict.delay > 0


@pytest.mark.parametrize(("commits", "credit", "restarts"), [(0, 0, 3), (1, 0, 1), (7, 2, 1), (1, 3, 3)])
def test_judge_takes_new_commits_for_progress_three_times(commits: int, credit: int, restarts: int) -> None:
    snapshot = make_snapshot("P1", {"P1": Record(restarts=2, credited=credit)})
    worker = Worker("P1", 9, "run", Ending(1), commits=commits)
    assert judge(snapshot.streams[0], worker, snapshot, Limits()).restarts == restarts


def test_commits_are_credited_until_a_task_is_completed_and_counted_for_good() -> None:
    history = History()
    given = []
    for number, completed in enumerate([0, 0, 0, 0, 1, 1]):
        end = {**ENDED, "completed": completed, "open": 9 - completed, "commits": number % 2 + 1}
        history = fold_events(history, [end])
        given.append(history.record("A").credited)
    assert given == [1, 2, 3, 3, 0, 1]
    assert history.record("A").commits == 9
    snapshot = make_snapshot("P1", {"P1": replace(history.record("A"), credited=3, best=9, fewest=None)})
    last = judge(snapshot.streams[0], Worker("P1", 9, "r", Ending(1)), snapshot, Limits(max_restarts=0))
    assert last.reason == "gave up after 0 restarts without a completed task; last: exit code 1; it made 9 commits"


@pytest.mark.parametrize("verdict", ["paused", "blocked", "stopped", "failed"])
def test_commits_of_an_end_that_costs_no_restart_are_counted_and_take_no_credit(verdict: str) -> None:
    end = {**ENDED, "verdict": verdict, "completed": 0, "open": 9, "commits": 2, "restarts": 3}
    record = fold_events(History(), [end]).record("A")
    assert (record.commits, record.credited, record.restarts) == (2, 0, 3)


@pytest.mark.parametrize("is_over", [True, False])
def test_a_run_that_goes_on_knows_what_its_streams_have_committed(is_over: bool) -> None:
    over = make_event("run_ended", exit_code=1, reason="over")
    events = [{**ENDED, "commits": 2}, *([over] if is_over else []), BEGUN]
    assert fold_events(History(), events).record("A").commits == (0 if is_over else 2)


@pytest.mark.parametrize("max_restarts", [0, 1, 10])
def test_judge_gives_exactly_max_restarts_restarts_and_then_fails(max_restarts: int) -> None:
    record, verdicts = Record(), []
    for _ in range(max_restarts + 1):
        verdicts.append(judge_one("P1", Ending(1), record, max_restarts))
        record = replace(record, restarts=verdicts[-1].restarts)
    *restarts, last = verdicts
    assert [(v.kind, v.restarts, v.max_restarts) for v in restarts] == [
        (VerdictKind.RESTART, number, max_restarts) for number in range(1, max_restarts + 1)
    ]
    assert all(later.delay > earlier.delay for earlier, later in zip(restarts[:6], restarts[1:6]))
    noun = "restart" if max_restarts == 1 else "restarts"
    assert last.kind is VerdictKind.FAILED
    assert last.reason == f"gave up after {max_restarts} {noun} without a completed task; last: exit code 1"


@pytest.mark.parametrize(("best", "restarts"), [(0, 1), (1, 6), (2, 6)])
@pytest.mark.parametrize("stopping", [None, StopReason.STALLED, StopReason.GRACE])
def test_judge_refills_the_budget_for_a_newly_completed_task_alone(
    best: int, restarts: int, stopping: StopReason | None
) -> None:
    stream = make_stream("P1", completed=1, pending=1)
    record = Record(restarts=5, best=best, stopping=stopping)
    snapshot = Snapshot("p", (stream,), history=History(records={"P1": record}))
    verdict = judge(stream, Worker("P1", 9, "run", Ending(1)), snapshot, Limits())
    assert (verdict.restarts, verdict.delay) == (restarts, plan_backoff(restarts, "P1 run"))


@pytest.mark.parametrize(
    ("text", "code", "best", "kind", "restarts"),
    [
        ("", 0, 0, VerdictKind.VANISHED, 2),
        ("P1+", 0, 1, VerdictKind.COMPLETE, 2),
        ("P1+", 0, 0, VerdictKind.COMPLETE, 0),
        ("P1s", 0, 0, VerdictKind.STOPPED, 2),
        ("P1!", 0, 0, VerdictKind.BLOCKED, 2),
        ("P1", 127, 0, VerdictKind.FAILED, 2),
        ("P1", 1, 0, VerdictKind.FAILED, 2),
    ],
)
def test_an_end_that_is_no_restart_spends_none_and_gives_none_back(
    text: str, code: int, best: int, kind: VerdictKind, restarts: int
) -> None:
    verdict = judge_one(text, Ending(code), Record(restarts=2, best=best))
    assert (verdict.kind, verdict.restarts) == (kind, restarts)


# ── Who may start ─────────────────────────────────────────────────────────────────────────────────────────────────────

NEVER = "I1 never ran: it waits for"
SPENT = "is not complete: the budget of $0.00 is spent"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        # Foundation streams, one after another; a phase is over when its workers have exited too.
        ("F1 F2 P1 I1", ["start F1"]),
        ("F1* F2 P1 I1", []),
        ("F1+* F2 P1 I1", []),
        ("F1+. F2 P1 I1", ["conclude F1: COMPLETE"]),
        ("F1+ F2 P1 I1", ["start F2"]),
        ("F1+ F2+* P1 I1", []),
        ("F1<F2 F2 P1", ["start F2"]),
        # Parallel streams together, integration after them.
        ("F1+ P1 P2 I1", ["start P1", "start P2"]),
        ("F1+ P1+ P2* I1", []),
        ("F1+ P1+ P2+* I1", []),
        ("F1+ P1+ P2+ I1 I2", ["start I1", "start I2"]),
        ("I1", ["start I1"]),
        # Within a phase, behind its dependencies.
        ("P1<P2 P2 P3", ["start P2", "start P3"]),
        ("P1<P2 P2+*", []),
        ("P1<P2 P2+", ["start P1"]),
        ("I1<I2 I2", ["start I2"]),
        # At most five at once; one that has ended and is not yet judged counts.
        ("P1 P2 P3 P4 P5 P6 P7", [f"start P{i}" for i in range(1, 6)]),
        ("P1* P2* P3* P4* P5+* P6", []),
        ("P1* P2* P3* P4* P5+. P6", ["conclude P5: COMPLETE"]),
        # A failed stream leaves its dependents waiting; its siblings go on.
        ("F1x P1 I1", [f"finish 1: F1 failed: it broke\nP1 never ran: it waits for F1\n{NEVER} F1, P1"]),
        ("P1x P2* I1", []),
        ("P1x P2 I1", ["start P2"]),
        ("P1x P2<P1 P3 I1", ["start P3"]),
        ("P1x P2<P1 P3+ I1", [f"finish 1: P1 failed: it broke\nP2 never ran: it waits for P1\n{NEVER} P1, P2"]),
        ("P1<P9 P2 I1", ["start P2"]),
        # Blocked and stopped streams are waited for, once nothing else can go on.
        ("P1! P2 I1", ["start P2"]),
        ("P1! P2* I1", []),
        ("P1! P2s I1", ["wait: P1 is blocked: why (T); P2 is stopped: by the user"]),
        ("P1s P2+", ["wait: P1 is stopped: by the user"]),
        ("P1*s", ["stop P1: USER"]),
        # The end.
        ("F1+ P1+", ["finish 0: all complete: 2 streams, 2 tasks"]),
        ("", ["finish 1: no stream is left in the database"]),
    ],
)
def test_plan(text: str, expected: list[str]) -> None:
    assert tell_plan(make_snapshot(text)) == expected


@pytest.mark.parametrize(
    ("text", "limits", "expected"),
    [
        ("P1 P2 P3", {"streams": frozenset({"P2"})}, "start P2"),
        ("F1 F2 P1", {"streams": frozenset({"F2"})}, "start F2"),
        ("F1 F2 F3 P1", {"phase": Phase.FOUNDATION}, "start F1"),
        ("F1+ P1 P2 I1", {"streams": frozenset({"P1", "I1"}), "phase": Phase.PARALLEL}, "start P1"),
        ("F1+ P1", {"phase": Phase.FOUNDATION}, "finish 0: all complete: 1 stream, 1 task"),
        ("P1+ P2", {"streams": frozenset({"P1"})}, "finish 0: all complete: 1 stream, 1 task"),
        ("P1+ P2!", {"streams": frozenset({"P1"})}, "finish 0: all complete: 1 stream, 1 task"),
        ("P1+ P2s", {"streams": frozenset({"P1"})}, "finish 0: all complete: 1 stream, 1 task"),
        ("P1 P2", {"max_workers": 1}, "start P1"),
        ("P1! I1", {"exit_on_blocked": True}, f"finish 1: P1 blocked: why (T)\n{NEVER} P1"),
        ("P1s P2+", {"exit_on_blocked": True}, "finish 1: P1 stopped: by the user"),
        ("P1", {"budget": 0.01}, "start P1"),
        ("P1!", {"budget": 0.01}, "wait: P1 is blocked: why (T)"),
        ("P1!", {"budget": 0.009}, "finish 1: P1 blocked: why (T)\nThe budget of $0.01 is spent"),
        (
            "P1! P2",
            {"budget": 0.009},
            "finish 1: P1 blocked: why (T)\nP2 is not complete: the budget of $0.01 is spent",
        ),
    ],
)
def test_plan_keeps_to_what_the_run_may_do(text: str, limits: dict[str, Any], expected: str) -> None:
    assert tell_plan(make_snapshot(text), **limits) == [expected]


def test_plan_starts_no_foundation_stream_beside_another_ones_worker() -> None:
    assert tell_plan(make_snapshot("F1* F2"), streams=frozenset({"F2"})) == []


def test_plan_starts_what_was_requested_beside_the_selection() -> None:
    requested = {name: Record(requested=True) for name in ("F1", "P2")}
    assert tell_plan(make_snapshot("P1* P2 P3", requested), streams=frozenset({"P1"})) == ["start P2"]
    assert tell_plan(make_snapshot("F1 F2", requested), streams=frozenset({"F2"})) == ["start F1"]


# ── When, and who must go ─────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("text", "record", "now", "expected"),
    [
        ("P1", Record(retry_at=105), 104.9, []),
        ("P1", Record(retry_at=105), 105, ["start P1"]),
        ("P1+*", Record(), 500, []),  # it has just been seen
        ("P1+*", Record(state=StreamState.RUNNING, since=1), 500, []),
        ("P1+*", Record(state=FINISHING, since=100), 219.9, []),
        ("P1+*", Record(state=FINISHING, since=100), 220, ["stop P1: GRACE"]),
        ("P1*", Record(state=FINISHING, since=100), 220, []),  # a task was reopened
        ("P1+*", Record(stopping=StopReason.GRACE, stopping_at=100), 109.9, []),
        ("P1+*", Record(stopping=StopReason.GRACE, stopping_at=100), 110, ["kill P1"]),
        ("P1*s", Record(stopping=STOPPING, stopping_at=100, killed_at=110), 110 + KILL_INTERVAL - 0.1, []),
        ("P1*s", Record(stopping=STOPPING, stopping_at=100, killed_at=110), 110 + KILL_INTERVAL, ["kill P1"]),
    ],
)
def test_plan_acts_at_the_deadline_and_not_before(text: str, record: Record, now: float, expected: list[str]) -> None:
    assert tell_plan(make_snapshot(text, {"P1": record}), now, finish_grace=120, stop_timeout=10) == expected


@pytest.mark.parametrize(
    ("stall_timeout", "active_at", "now", "expected"),
    [
        (60, 100, 159.9, []),
        (60, 100, 160, ["stop P1: STALLED"]),
        (1, 100, 144.9, []),  # CPU time is looked at every 15 s, and two looks are needed
        (1, 100, 145, ["stop P1: STALLED"]),
        (60, 0, 1000, []),  # nobody knows
        (0, 100, 1000, []),
    ],
)
def test_plan_stops_a_silent_worker_at_the_deadline(
    stall_timeout: float, active_at: float, now: float, expected: list[str]
) -> None:
    snapshot = make_snapshot("P1", workers={"P1": Worker("P1", 9, active_at=active_at)})
    assert tell_plan(snapshot, now, stall_timeout=stall_timeout) == expected


@pytest.mark.parametrize(
    ("timeout", "started_at", "now", "expected"),
    [
        (60, 100, 159.9, []),
        (60, 100, 160, ["stop P1: TIMEOUT"]),
        (0, 100, 9999, []),
        (0.5, 100, 100.5, ["stop P1: TIMEOUT"]),
    ],
)
def test_plan_stops_a_worker_that_ran_for_too_long(
    timeout: float, started_at: float, now: float, expected: list[str]
) -> None:
    workers = {"P1": Worker("P1", 9, active_at=now)}
    snapshot = make_snapshot("P1", {"P1": Record(started_at=started_at)}, workers=workers)
    assert tell_plan(snapshot, now, worker_timeout=timeout) == expected


@pytest.mark.parametrize(
    ("text", "background", "active_at", "deadline"),
    [
        ("P1", "", 100, 230),  # the last sign of life was before its result
        ("P1", "", 150, 270),
        ("P1", "local_bash", 100, None),
        ("P1", "local_agent", 100, None),
        ("P1!", "", 100, 230),
        ("P1!", "local_bash", 200, 120),
        ("P1!", "local_bash local_agent", 100, None),
        ("P1+", "", 200, 215),
        ("P1+", "local_bash", 200, 120),
        ("P1+", "local_agent", 200, None),
        ("P1+ woken", "", 100, 320),
        ("P1+ woken", "local_bash", 100, 210),
        ("P1! woken", "local_bash", 100, 210),
        ("P1 woken", "", 100, 320),
    ],
)
def test_plan_stops_a_worker_that_has_printed_its_result_unless_it_may_be_woken(
    text: str, background: str, active_at: float, deadline: float | None
) -> None:
    text, _, is_woken = text.partition(" ")
    kinds = frozenset(background.split())
    worker = Worker("P1", 9, active_at=active_at, done_at=110, background=kinds, background_at=200 if is_woken else 0)
    snapshot = make_snapshot(text, {"P1": Record(state=FINISHING, since=95)}, workers={"P1": worker})
    if deadline is not None:
        assert tell_plan(snapshot, deadline - 0.1, finish_grace=120) == []
    expected = [] if deadline is None else ["stop P1: GRACE"]
    assert tell_plan(snapshot, deadline or 10_000, finish_grace=120) == expected


@pytest.mark.parametrize(
    ("text", "record", "deadline"),
    [
        ("P1+", Record(state=FINISHING, since=300), 310),  # its last task was completed by somebody else
        ("P1!", Record(state=StreamState.RUNNING, since=300), 120),
    ],
)
def test_plan_gives_ten_seconds_to_a_worker_that_its_server_keeps(text: str, record: Record, deadline: float) -> None:
    worker = Worker("P1", 9, active_at=110, done_at=110, background=frozenset({"local_bash"}))
    snapshot = make_snapshot(text, {"P1": record}, workers={"P1": worker})
    assert tell_plan(snapshot, deadline - 0.1) == []
    assert tell_plan(snapshot, deadline) == ["stop P1: GRACE"]


@pytest.mark.parametrize("code", [0, -15, 143])
def test_plan_judges_a_worker_that_was_done_by_its_result_and_not_by_the_signal(code: int) -> None:
    ended = Worker("P1", 9, ending=Ending(code, "Well.", has_result=True))
    snapshot = make_snapshot("P1", {"P1": Record(stopping=StopReason.GRACE)}, workers={"P1": ended})
    (conclude,) = plan(snapshot, Limits(), 500)
    assert isinstance(conclude, Conclude)
    assert conclude.worker.ending is not None
    assert (conclude.worker.ending.code, conclude.verdict.kind) == (None, VerdictKind.RESTART)
    assert conclude.verdict.reason == f"stopped: {DONE}, 1 task open"


@pytest.mark.parametrize(
    ("stall_timeout", "silence", "state"),
    [(0, 899, "RUNNING"), (0, 900, "SILENT"), (60, 14, "WORKING"), (60, 15, "SILENT"), (4000, 61, "RUNNING"),
     (4000, 60, "WORKING"), (4000, 1000, "SILENT")],
)  # fmt: skip
def test_assess_calls_a_worker_silent_after_a_quarter_of_the_stall_timeout(
    stall_timeout: float, silence: float, state: str
) -> None:
    limits = Limits(stall_timeout=stall_timeout)
    snapshot = make_snapshot("P1", workers={"P1": Worker("P1", 9, active_at=1000)})
    standing = assess(snapshot, limits, 1000 + silence)["P1"]
    assert standing.state.name == state
    assert (standing.reason == f"no sign of life for {format_duration(limits.silence)}") is (state == "SILENT")


def test_assess_calls_a_worker_running_of_which_nobody_knows_when_it_gave_a_sign_of_life() -> None:
    snapshot = make_snapshot("P1", workers={"P1": Worker("P1", 9)})
    assert {assess(snapshot, Limits(), now)["P1"].state for now in (1, 30, 10_000)} == {StreamState.RUNNING}


@pytest.mark.parametrize(
    ("background", "silence", "state"),
    [("local_agent", 899, "FINISHING"), ("local_agent", 900, "SILENT"), ("", 900, "FINISHING")],
)
def test_assess_says_the_silence_of_a_complete_worker_that_its_subagent_keeps(
    background: str, silence: float, state: str
) -> None:
    worker = Worker("P1", 9, active_at=1000, done_at=1000, background=frozenset(background.split()))
    standing = assess(make_snapshot("P1+", workers={"P1": worker}), Limits(), 1000 + silence)["P1"]
    assert standing.state.name == state
    if state == "FINISHING":
        assert standing.reason == (WAITS if background else "its tasks are complete")


def test_plan_ends_what_a_worker_has_left_running_before_it_concludes() -> None:
    left = {"P1": Worker("P1", 9, "", Ending(0), leftovers=(10,))}
    snapshot = make_snapshot("P1+ I1", workers=left)
    assert tell_plan(snapshot) == ["stop P1: LEFTOVERS"]
    stopping = {"P1": Record(stopping=StopReason.LEFTOVERS, stopping_at=100)}
    assert tell_plan(make_snapshot("P1+ I1", stopping, workers=left), 109) == []
    assert tell_plan(make_snapshot("P1+ I1", stopping, workers=left), 110) == ["kill P1"]


def test_plan_stops_the_worker_of_a_stream_that_vanished() -> None:
    ended = Worker("P9", 9, "", Ending(-15))
    assert tell_plan(make_snapshot("P1", workers={"P9": replace(ended, ending=None)})) == ["stop P9: VANISHED"]
    assert tell_plan(make_snapshot("P1", workers={"P9": ended}))[0] == "conclude P9: VANISHED"


@pytest.mark.parametrize(
    ("text", "expected"),
    [("P1", []), ("P1* P2", []), ("P1+.", []), ("P1.", []), ("", []), ("P1*s", ["stop P1: USER"]), ("P1+*", [])],
)
def test_plan_with_old_streams_starts_and_concludes_nothing(text: str, expected: list[str]) -> None:
    snapshot = make_snapshot(text, {"P1": Record(state=FINISHING)}, database_error="locked")
    assert tell_plan(snapshot, 1000) == expected
    gone = {"P9": Worker("P9", 9)}
    assert tell_plan(replace(snapshot, workers=gone), 1000) == []


@pytest.mark.parametrize("database_error", ["", "locked"])
def test_plan_at_closing_stops_every_worker_starts_none_and_finishes(database_error: str) -> None:
    def tell_closing(text: str) -> list[str]:
        return tell_plan(make_snapshot(text, database_error=database_error), is_closing=True)

    assert tell_closing("P1* P2+* P3! P4") == ["stop P1: EXIT", "stop P2: EXIT"]
    assert all(action.startswith(("conclude", "finish")) for action in tell_closing("P1. P2 P3!"))
    assert tell_closing("P1. P2 P3!")
    assert tell_closing("P1 P2+ P3!") == ["finish 0: stopped all workers"]
    asked = {"P1": Record(stopping=StopReason.EXIT, stopping_at=100)}
    assert tell_plan(make_snapshot("P1* P2", asked, database_error=database_error), 101, is_closing=True) == []


# ── Where a stream stands ─────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("text", "record", "state", "reason", "until"),
    [
        ("P1*", Record(), StreamState.RUNNING, "", 0),
        ("P1*!", Record(failure="old"), StreamState.RUNNING, "", 0),
        ("P1*+", Record(), FINISHING, "its tasks are complete", 220),
        ("P1*+", Record(state=FINISHING, since=90), FINISHING, "its tasks are complete", 210),
        ("P1*", Record(stopping=STOPPING), StreamState.STOPPING, "by the user", 0),
        ("P1.", Record(), StreamState.STOPPING, "its worker ended", 0),
        ("P1+sx", Record(failure="old"), StreamState.COMPLETE, "", 0),
        ("P1s!", Record(failure="it broke"), StreamState.FAILED, "it broke", 0),
        ("P1!s", Record(), StreamState.STOPPED, "by the user", 0),
        ("P1!", Record(), StreamState.BLOCKED, "why (T)", 0),
        ("P1", Record(retry_at=105, last_ending="exit code 1"), StreamState.RESTARTING, "exit code 1", 105),
        ("P1 F1", Record(retry_at=105), StreamState.WAITING, "waits for F1", 0),
        ("P1<F1 F1", Record(), StreamState.WAITING, "waits for F1", 0),
        ("P1<P2,P3,P4 P2 P3 P4 F1", Record(), StreamState.WAITING, "waits for F1, P2, P3 and 1 more", 0),
        ("P1", Record(), StreamState.QUEUED, "", 0),
        ("P1 P2* P3* P4* P5* P6*", Record(), StreamState.QUEUED, "all 5 workers are busy", 0),
    ],
)
def test_assess_says_where_a_stream_stands_why_and_until_when(
    text: str, record: Record, state: StreamState, reason: str, until: float
) -> None:
    standing = assess(make_snapshot(text, {"P1": record}), Limits(), 100)["P1"]
    assert (standing.state, standing.reason, standing.until) == (state, reason, until)


@pytest.mark.parametrize(
    ("active_at", "state"),
    [
        (0.0, StreamState.RUNNING),
        (939.9, StreamState.RUNNING),
        (940.0, StreamState.WORKING),
        (1000.0, StreamState.WORKING),
    ],
)
def test_a_worker_is_working_for_a_minute_after_a_sign_of_life(active_at: float, state: StreamState) -> None:
    snapshot = make_snapshot("P1", workers={"P1": Worker("P1", 9, active_at=active_at)})
    assert assess(snapshot, Limits(), 1000.0)["P1"] == Standing(state)


def test_assess_says_that_the_budget_is_spent_where_no_orchestrator_runs_too() -> None:
    snapshot = replace(make_snapshot("P1"), orchestrator=0, history=History(spent=5.0))
    for budget, reason in ((5.0, "the budget of $5.00 is spent"), (6.0, "")):
        assert assess(snapshot, Limits(budget=budget), 100)["P1"] == Standing(StreamState.IDLE, reason)


def test_assess_says_what_the_whole_run_waits_for() -> None:
    snapshot = make_snapshot("P1 P2*")
    held = assess(snapshot, Limits(budget=5), 100)["P1"]
    assert (held.state, held.reason) == (StreamState.QUEUED, "running workers hold the budget")
    limit = replace(snapshot, history=replace(snapshot.history, pause_ends=9005.0, pause_reason="the limit was hit"))
    paused = assess(replace(limit, wall=9001.0), Limits(), 100)["P1"]
    assert paused == Standing(StreamState.PAUSED, "the limit was hit", 104.0)
    assert assess(replace(limit, wall=9005.0), Limits(), 100)["P1"].state is StreamState.QUEUED


def test_each_reason_of_a_blocked_stream_is_given() -> None:
    tasks = tuple(Task(task_id, "", "blocked", f"no {task_id}") for task_id in ("key", "disk"))
    stream = make_stream("P1", blocked=2, named_tasks=tasks)
    snapshot = Snapshot("p", (stream,), orchestrator=1)
    verdict = judge(stream, Worker("P1", 9, "run", Ending(0)), snapshot, Limits())
    standing = assess(snapshot, Limits(), 0)["P1"]
    assert verdict.reason == standing.reason == "no key (key); no disk (disk)"


def test_assess_without_an_orchestrator_or_beside_the_selection_finds_a_stream_idle() -> None:
    snapshot = make_snapshot("P1 P2+", {"P1": Record(last_ending="exit code 1")})
    alone = assess(replace(snapshot, orchestrator=0), Limits(), 0)["P1"]
    assert (alone.state, alone.reason) == (StreamState.IDLE, "last worker: exit code 1")
    beside = assess(snapshot, Limits(streams=frozenset({"P2"})), 0)["P1"]
    assert (beside.state, beside.reason) == (StreamState.IDLE, "not part of this run")


# ── Whole runs ────────────────────────────────────────────────────────────────────────────────────────────────────────


@unhurried
@given(st.randoms(use_true_random=False), st.integers(1, 4))
def test_a_run_of_any_streams_reaches_its_end_in_order(chance: random.Random, max_workers: int) -> None:
    names = [f"{phase}{number}" for phase in "FPI" for number in range(chance.randrange(4))]
    if not names:
        return
    streams = {name: make_stream(name, *chance.sample(names[:i], min(i, 2)), pending=1) for i, name in enumerate(names)}
    workers: dict[str, Worker] = {}
    finished: list[str] = []
    for _ in range(200):
        actions = plan(
            Snapshot("p", tuple(streams.values()), workers, orchestrator=1), Limits(max_workers=max_workers), 0
        )
        for action in actions:
            if isinstance(action, Start):
                assert action.stream.id not in workers
                assert set(action.stream.dependencies) <= set(finished)
                earlier = [name for name in names if PHASES[name[0]].rank < action.stream.phase.rank]
                assert set(earlier) <= set(finished)
                workers[action.stream.id] = Worker(action.stream.id, 9)
            elif isinstance(action, Conclude):
                finished.append(action.worker.stream_id)
                del workers[action.worker.stream_id]
            elif isinstance(action, Finish):
                assert (action.exit_code, sorted(finished)) == (0, sorted(names))
                return
        assert len(workers) <= max_workers
        assert sum(name[0] == "F" for name in workers) <= 1
        name = chance.choice(sorted(workers) or [names[0]])
        if name in workers:  # it completes its task, or exits
            is_complete = streams[name].is_complete
            streams[name] = replace(streams[name], pending=0, completed=1)
            workers[name] = replace(workers[name], ending=Ending(0) if is_complete else None)
    raise AssertionError("the run never ended")


# ── The journal's fold ────────────────────────────────────────────────────────────────────────────────────────────────


def make_event(kind: str, **facts: Any) -> dict[str, Any]:
    return {"event": kind, "stream": "A", "time": format_time(facts.get("clock", 0.0)), **facts}


LIMITS = {"max_workers": 2, "streams": ["A"], "phase": "parallel", "from_the_future": 1}
STARTED = make_event("worker_started", attempt=1, completed=2, pid=9, run="r.9", clock=5.0, raw_start=70, folder="/w")
ENDED = make_event(
    "worker_ended", verdict="restart", restarts=1, completed=3, clock=8.0, delay=2.0, reason="boom", ending="code 1"
)
FAILED, COMPLETE = ({**ENDED, "verdict": verdict} for verdict in ("failed", "complete"))
STOPPED = make_event("worker_stopping", why=StopReason.USER.name, clock=6.0)
KILLED = make_event("worker_killed", clock=7.0)
BLOCKED = make_event("state", state="BLOCKED", reason="why", clock=4.0)
ADOPTED = make_event("worker_adopted", pid=9, run="r.9", completed=3, clock=20.0)
REQUESTED = make_event("start_requested")
STARTING = make_event("worker_starting", raw_start=70, budget=0.5, clock=4.0)
BEGUN = make_event("run_started", limits=LIMITS, clock=9.0)

AT_WORK = Record(attempts=1, best=2, pid=9, run="r.9", started_at=5.0, raw_start=70, folder="/w")
FOUND = Record(attempts=1, best=3, pid=9, run="r.9", started_at=20.0)
OVER = replace(AT_WORK, restarts=1, best=3, pid=0, last_ending="code 1")


@pytest.mark.parametrize(
    ("events", "expected"),
    [
        ([STARTING], Record(is_starting=True, started_at=4.0, raw_start=70, budget=0.5)),
        ([STARTING, STARTED], AT_WORK),
        ([{**STARTED, "folder": "/w"}], AT_WORK),
        ([{name: fact for name, fact in STARTED.items() if name != "folder"}], replace(AT_WORK, folder="")),
        ([STARTED, STARTING], replace(AT_WORK, pid=0, run="", is_starting=True, started_at=4.0, budget=0.5)),
        ([STARTING, BEGUN], Record(is_starting=True, started_at=4.0, raw_start=70, budget=0.5)),
        ([STARTED], AT_WORK),
        ([STARTING, ADOPTED], replace(FOUND, started_at=4.0, raw_start=70, budget=0.5)),
        ([STARTED, {**STARTED, "completed": 1, "attempt": 2}], replace(AT_WORK, attempts=2)),
        ([STARTED, ENDED], replace(OVER, retry_at=10.0)),
        ([ENDED, STARTED], replace(OVER, pid=9)),
        ([STOPPED, STARTED], replace(AT_WORK, stopping_at=6.0)),
        ([STARTED, STARTING, ENDED], replace(OVER, run="", started_at=4.0, budget=0.5, retry_at=10.0)),
        ([STARTED, FAILED], replace(OVER, failure="boom")),
        ([STARTED, COMPLETE], replace(OVER, attempts=0)),
        ([STARTED, STOPPED], replace(AT_WORK, stopping=StopReason.USER, stopping_at=6.0)),
        ([STARTED, KILLED], replace(AT_WORK, killed_at=7.0)),
        ([BLOCKED], Record(state=StreamState.BLOCKED, reason="why", since=4.0)),
        ([STARTED, FAILED, REQUESTED], replace(OVER, restarts=0, requested=True)),
        ([STARTED, ENDED, REQUESTED], replace(OVER, restarts=0, requested=True)),
        ([ADOPTED], FOUND),
        ([STARTED, ADOPTED], replace(AT_WORK, best=3)),  # at work since it was started
        ([STARTED, FAILED, BEGUN], replace(OVER, restarts=0, best=0)),  # a start by a person forgives
        ([STARTED, ENDED, STOPPED, BLOCKED, BEGUN], replace(OVER, restarts=0, best=0)),
    ],
)
def test_the_fold_of_events_is_what_is_known_of_a_stream(events: list[dict[str, Any]], expected: Record) -> None:
    assert fold_events(History(), events).record("A") == expected


def test_a_worker_that_has_ended_is_no_longer_stopping() -> None:
    record = fold_events(History(), [STARTED, STOPPED, KILLED, ENDED]).record("A")
    assert (record.stopping, record.killed_at) == (None, 0)


def test_the_fold_knows_the_run() -> None:
    history = fold_events(History(), [BEGUN, make_event("run_waiting", reason="for a person")])
    assert history.limits == Limits(max_workers=2, streams=frozenset({"A"}), phase=Phase.PARALLEL)
    assert (history.run_started_at, history.waiting) == (9.0, "for a person")
    assert history.after(STARTED).waiting == ""
    assert history.after(BLOCKED).waiting == "for a person"
    ended = history.after(make_event("run_ended", reason="all complete"))
    assert (ended.waiting, ended.outcome, ended.after(BEGUN).outcome) == ("", "all complete", "")


def test_a_run_that_did_not_come_to_its_end_goes_on_in_its_pause_and_with_its_cost() -> None:
    known = {"spent": 2.0, "has_executed": True, "has_answer": True}
    history = History(pause_ends=1e9, pause_reason="the limit was hit", **known)  # type: ignore[arg-type]
    begun = history.after(BEGUN)
    assert (begun.pause_ends, begun.pause_reason) == (1e9, "the limit was hit")
    assert {name: getattr(begun, name) for name in known} == known
    forgotten = replace(begun, spent=0.0, has_executed=False, has_answer=False)
    assert replace(history, outcome="all complete").after(BEGUN) == forgotten


@pytest.mark.parametrize(
    ("facts", "executed", "answered"),
    [
        ({"pid": 0, "cause": "PROGRAM", "has_answer": False}, False, False),
        ({"pid": 9, "cause": "PROGRAM", "has_answer": False}, False, False),
        ({"pid": 9, "cause": "OUTAGE", "has_answer": False}, True, False),
        ({"pid": 9, "cause": "OTHER", "has_answer": True}, True, True),
        ({"pid": 9, "cause": "OTHER", "has_answer": False, "exit_code": 0}, True, True),
        ({"pid": 9, "cause": "LIMIT", "has_answer": False}, True, True),
        ({"pid": 9, "cause": "OTHER", "has_answer": False, "completed": 1}, True, True),
        ({"pid": 9}, True, False),  # of an older version's journal
    ],
)
def test_the_fold_knows_what_has_gone_well_in_the_run(facts: dict[str, Any], executed: bool, answered: bool) -> None:
    history = fold_events(History(), [{**ENDED, "completed": 0, **facts}])
    assert (history.has_executed, history.has_answer) == (executed, answered)
    if not answered:  # a task that was archived or completed since the last look
        known = History(records={"A": Record(fewest=2)})
        assert known.after({**ENDED, **facts, "completed": 0, "open": 1}).has_answer
        assert not known.after({**ENDED, **facts, "completed": 0, "open": 2}).has_answer
    ended = history.after({**ENDED, "completed": 0, "pid": 0, "cause": "PROGRAM"})
    assert (ended.has_executed, ended.has_answer) == (executed, answered)


def test_a_pause_that_is_made_longer_is_one_pause_and_the_next_one_begins_where_it_ends() -> None:
    pauses = [make_event("run_paused", clock=c, until=format_time(c + 10), reason=f"at {c}") for c in (5, 8, 18)]
    first = History(paused_at=5, pause_ends=15, pause_reason="at 5", limit_hits=1)
    longer = replace(first, pause_ends=18, pause_reason="at 8")
    again = replace(longer, paused_at=18, pause_ends=28, pause_reason="at 18", limit_hits=2)
    assert [fold_events(History(), pauses[:count]) for count in (1, 2, 3)] == [first, longer, again]


kinds = st.sampled_from([event["event"] for event in (STARTED, ENDED, STOPPED, KILLED, BLOCKED, ADOPTED, BEGUN)])
values = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=3), st.lists(st.integers()))
facts = st.fixed_dictionaries(dict.fromkeys([*STARTED, *ENDED, "why", "state", "limits"], values))


@unhurried
@given(kinds | values, facts)
@example("worker_started", {**STARTED, "attempt": float("inf")})  # JSON's 1e999
@example("run_started", {**BEGUN, "limits": []})
def test_events_that_are_garbage_are_passed_over(kind: object, facts: dict[str, object]) -> None:
    history = fold_events(History(), [STARTED, {**facts, "event": kind, "stream": "B"}, {}, ENDED])
    assert history.record("A").last_ending == "code 1"
