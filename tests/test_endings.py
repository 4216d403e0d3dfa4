"""Why a worker ended, and what follows: the verdict table, usage limits, budgets, silence, notifications."""

from __future__ import annotations

import json
import signal
import sqlite3
import subprocess
from contextlib import closing
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest
from support import Workspace, is_running, wait_until

from orchestrate import (
    Cause,
    Ending,
    History,
    Limits,
    Phase,
    Record,
    Snapshot,
    Start,
    Stream,
    Transcript,
    VerdictKind,
    Worker,
    find_cause,
    fold_events,
    judge,
    plan_pause,
    plan_starts,
    read_reset_time,
)

NO_POLL = ("--poll-interval", "600")
RESULT = {"type": "result", "subtype": "success", "is_error": False, "num_turns": 3, "result": "Done."}
FAILED = {**RESULT, "is_error": True}
INIT = {"type": "system", "subtype": "init", "cwd": "/project"}
LIMIT = "You've hit your session limit · resets 8:05am (UTC)"
THROTTLE = "API Error: Server is temporarily limiting requests (not your usage limit) · try again later."
NOW = 1_795_420_000.0  # seconds since the epoch


def rejected(**more: object) -> dict[str, Any]:
    info = {"status": "rejected", "resetsAt": NOW + 20, "rateLimitType": "five_hour", "isUsingOverage": False}
    return {"type": "rate_limit_event", "rate_limit_info": {**info, **more}}


def tool_result(text: str) -> dict[str, Any]:
    return {"type": "user", "message": {"content": [{"type": "tool_result", "content": text, "is_error": False}]}}


def read_ending(tmp_path: Path, lines: list[Any], code: int | None) -> Ending:
    """Return the ending of a worker that printed these lines: texts as they are, anything else as JSON."""
    texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    (tmp_path / "raw").write_text("".join(f"{text}\n" for text in texts), encoding="utf-8")
    transcript = Transcript(tmp_path / "raw", list, 0, 0)
    assert transcript.pump()
    return transcript.read_ending(code, NOW)


@pytest.mark.parametrize(
    ("lines", "code", "cause"),
    [
        # the usage limit, as an event and as a text
        ([INIT, rejected(), {**FAILED, "api_error_status": 429, "result": LIMIT}], 1, Cause.LIMIT),
        ([{**FAILED, "api_error_status": 429, "result": LIMIT}], 1, Cause.LIMIT),
        ([rejected(), {**FAILED, "api_error_status": 429, "result": LIMIT}], None, Cause.LIMIT),
        ([rejected(), {**FAILED, "api_error_status": 429, "result": "Come back later"}], 1, Cause.LIMIT),
        (["Working.", LIMIT], 1, Cause.LIMIT),
        (["You've hit your weekly limit · resets Nov 26, 6:07am (UTC)"], 1, Cause.LIMIT),
        (["You've hit your Opus limit · resets 8pm (Europe/Berlin)"], 1, Cause.LIMIT),
        (["Claude AI usage limit reached|1795429999"], 1, Cause.LIMIT),
        # what only looks like one
        ([tool_result(LIMIT), {**FAILED, "result": "Tests fail"}], 1, Cause.OTHER),
        ([tool_result(json.dumps(rejected())), RESULT], 0, Cause.OTHER),
        ([{**RESULT, "result": LIMIT}], 0, Cause.OTHER),
        ([LIMIT, "Something else came after it"], 1, Cause.OTHER),
        ([LIMIT], 0, Cause.OTHER),
        (["The file says: You've hit your 5-hour limit · resets 4:07am (UTC)"], 1, Cause.OTHER),
        ([rejected(), rejected(status="allowed"), {**FAILED, "result": "Crash"}], 1, Cause.OTHER),
        ([rejected(isUsingOverage=True), RESULT], 0, Cause.OTHER),
        ([rejected(rateLimitType=None), {**FAILED, "api_error_status": 429, "result": THROTTLE}], 1, Cause.OUTAGE),
        ([{**FAILED, "api_error_status": 429, "result": "API Error: Request rejected (429)"}], 1, Cause.OUTAGE),
        ([THROTTLE], 1, Cause.OUTAGE),
        ([THROTTLE], 0, Cause.OTHER),
        (["API Error: Unable to connect to API (ConnectionRefused)"], 1, Cause.OUTAGE),
        (["The log says: API Error: Unable to connect to API"], 1, Cause.OTHER),
        # another try can't go better
        ([{**FAILED, "api_error_status": 401, "result": "Not logged in · Please run /login"}], 1, Cause.FINAL),
        ([{**FAILED, "result": "Not logged in · Please run /login"}], 1, Cause.FINAL),
        ([{**RESULT, "result": "Not logged in · Please run /login"}], 0, Cause.OTHER),
        ([{**FAILED, "api_error_status": 401, "result": "Unauthorized"}], 1, Cause.FINAL),
        ([{**FAILED, "api_error_status": 403, "result": "Forbidden"}], 1, Cause.FINAL),
        ([{**FAILED, "api_error_status": 400, "result": "Credit balance is too low"}], 1, Cause.FINAL),
        ([{**FAILED, "api_error_status": 404, "result": "There's an issue with the selected model"}], 1, Cause.FINAL),
        (["Not logged in · Please run /login"], 1, Cause.FINAL),
        (["Invalid API key · Fix external API key"], 1, Cause.FINAL),
        (["--dangerously-skip-permissions cannot be used with root/sudo privileges for security reasons"], 1, Cause.FINAL),
        (["error: unknown option '--frobnicate'"], 1, Cause.FINAL),
        (["Error: Session ID 1-2-3 is already in use."], 1, Cause.FINAL),
        (["sh: 1: exec: claude: not found"], 127, Cause.FINAL),
        ([], 126, Cause.FINAL),
        (["Error: Exceeded USD budget (0.5)"], 1, Cause.BUDGET),
        ([{"type": "result", "subtype": "error_max_budget_usd", "is_error": True, "errors": ["Reached"]}], 1, Cause.BUDGET),
        (["I fixed the message that said: Not logged in"], 0, Cause.OTHER),
        (["Not logged in · Please run /login"], 0, Cause.OTHER),
        # anything else
        ([], 1, Cause.OTHER),
        ([], None, Cause.OTHER),
        ([RESULT], 0, Cause.OTHER),
        ([{**FAILED, "subtype": "error_during_execution", "terminal_reason": "aborted_tools"}], 0, Cause.OTHER),
        ([{**FAILED, "api_error_status": 529, "result": "API Error: 529 Overloaded."}], 1, Cause.OUTAGE),
        ([{**FAILED, "api_error_status": 500, "result": "API Error: 500 Internal server error."}], 1, Cause.OUTAGE),
        ([{**FAILED, "api_error_status": 500, "result": "Internal server error"}], 1, Cause.OUTAGE),
        ([{**FAILED, "result": "API Error: Connection error."}], 1, Cause.OUTAGE),
        ([{**FAILED, "api_error_status": 400, "result": "API Error: 400 Bad request"}], 1, Cause.OTHER),
        # several results in one process: the last counts
        ([INIT, rejected(), {**FAILED, "api_error_status": 429, "result": LIMIT}, INIT, RESULT], 0, Cause.OTHER),
        ([RESULT, {**FAILED, "api_error_status": 401, "result": "Not logged in"}], 1, Cause.FINAL),
        ([{**FAILED, "api_error_status": 401, "result": "Not logged in"}, INIT], 1, Cause.OTHER),
        (["Invalid API key", INIT, tool_result("x")], -9, Cause.OTHER),
        ([LIMIT, INIT, tool_result("x")], 137, Cause.OTHER),
        ([LIMIT], None, Cause.LIMIT),
        ([{"type": "result", "is_error": "yes", "api_error_status": "429", "permission_denials": 7}], 1, Cause.OTHER),
    ],
)  # fmt: skip
def test_the_cause_is_found_in_what_the_worker_last_said_of_itself(
    tmp_path: Path, lines: list[Any], code: int | None, cause: Cause
) -> None:
    assert find_cause(read_ending(tmp_path, lines, code)) is cause


@pytest.mark.parametrize(
    ("cause", "words"),
    [
        (Cause.FINAL, "Failed to authenticate. API Error: 401 Invalid authentication credentials"),
        (Cause.FINAL, "Please run /login · API Error: 403 forbidden"),
        (Cause.FINAL, "Invalid bearer token"),
        (Cause.FINAL, "OAuth token has expired"),
        (Cause.FINAL, "OAuth token revoked · Please run /login"),
        (Cause.FINAL, "Credit balance is too low"),
        (Cause.FINAL, "Error: unknown command"),
        (Cause.FINAL, "error: invalid value"),
        (Cause.FINAL, "error: option '--model <model>' argument missing"),
        (Cause.FINAL, "error: missing required argument"),
        (Cause.FINAL, "error: too many arguments"),
        (Cause.FINAL, "Error: When using --print, --output-format=stream-json requires --verbose"),
        (Cause.FINAL, "Error: Input must be provided either through stdin or as a prompt argument"),
        (Cause.FINAL, "Error: Invalid MCP configuration"),
        (Cause.OUTAGE, "API Error: 529 Overloaded."),
        (Cause.OUTAGE, "API Error: Connection error."),
        (Cause.OUTAGE, "API Error: Request timed out."),
        (Cause.OTHER, "API Error: 5290 tokens"),
        (Cause.OTHER, "Error: the tests fail"),
    ],
)
def test_the_cause_is_found_in_the_words_of_the_cli(cause: Cause, words: str) -> None:
    assert find_cause(Ending(1, words)) is cause
    assert find_cause(Ending(1, words, has_result=True, is_error=True)) is cause
    assert find_cause(Ending(1, f"The log says: {words}")) is Cause.OTHER


SAMPLES = Path(__file__).parent / "samples"


@pytest.mark.parametrize(
    ("sample", "code", "cause", "summary"),
    [
        ("usage-limit.jsonl", 1, Cause.LIMIT, "exit code 1: You've hit your session limit · resets 8:24am (UTC)"),
        ("throttle.jsonl", 1, Cause.OUTAGE, "exit code 1: API Error: Server is temporarily limiting requests"),
        ("not-logged-in.jsonl", 1, Cause.FINAL, "exit code 1: Not logged in · Please run /login"),
        ("budget.jsonl", 1, Cause.BUDGET, "exit code 1: Reached maximum budget ($0.000001)"),
        ("sigint.jsonl", 0, Cause.OTHER, "exit code 0: aborted_tools"),
        ("overage.jsonl", 0, Cause.OTHER, "exit code 0"),
    ],
)
def test_what_the_real_cli_printed_is_understood(sample: str, code: int, cause: Cause, summary: str) -> None:
    """Source: Claude Code 2.1.197, run against tests/scripted_api.py."""
    transcript = Transcript(SAMPLES / sample, list, 0, 1 << 40)
    transcript.pump()
    ending = transcript.read_ending(code, NOW)
    assert find_cause(ending) is cause
    assert ending.summary.startswith(summary)


def stream(**counts: int) -> Stream:
    return Stream("S", "s", Phase.PARALLEL, **counts)  # type: ignore[arg-type]


LIMITED = Ending(1, LIMIT, has_result=True, is_error=True, api_status=429, is_rejected=True, reset_in=20)
REFUSED = Ending(1, "Not logged in", has_result=True, is_error=True, api_status=401)
SPENT = Ending(1, "Reached", has_result=True, is_error=True, subtype="error_max_budget_usd", cost=1)


@pytest.mark.parametrize(
    ("counts", "ending", "limits", "kind", "reason"),
    [
        ({"completed": 2}, Ending(0), Limits(), VerdictKind.COMPLETE, ""),
        ({"completed": 2}, Ending(1), Limits(), VerdictKind.COMPLETE, "all tasks are complete, but exit code 1"),
        ({"completed": 2}, LIMITED, Limits(), VerdictKind.COMPLETE, f"all tasks are complete, but exit code 1: {LIMIT}"),
        ({"completed": 1, "blocked": 1}, Ending(0), Limits(), VerdictKind.BLOCKED, ""),
        ({"completed": 1, "blocked": 1}, LIMITED, Limits(), VerdictKind.BLOCKED, ""),
        ({"pending": 1}, LIMITED, Limits(), VerdictKind.PAUSED, LIMIT),
        ({"pending": 1}, replace(LIMITED, words=""), Limits(), VerdictKind.PAUSED, "the usage limit was hit"),
        ({"pending": 1}, LIMITED, Limits(max_restarts=0), VerdictKind.PAUSED, LIMIT),
        ({"pending": 1}, REFUSED, Limits(), VerdictKind.FAILED, "exit code 1: Not logged in"),
        ({"pending": 1}, SPENT, Limits(), VerdictKind.FAILED, "exit code 1: Reached"),
        ({"pending": 1}, SPENT, Limits(budget=5), VerdictKind.RESTART, "exit code 1: Reached"),
        ({"pending": 1}, SPENT, Limits(budget=1), VerdictKind.FAILED, "exit code 1: Reached"),
        ({"pending": 1}, replace(SPENT, cost=0), Limits(budget=0.01), VerdictKind.RESTART, "exit code 1: Reached"),
        ({"pending": 1}, Ending(0), Limits(), VerdictKind.RESTART, "exit code 0, 1 task open"),
        ({"pending": 2}, Ending(0, denials=3), Limits(), VerdictKind.RESTART, "exit code 0, 3 permission denials, 2 tasks open"),
        ({"pending": 1}, Ending(-9), Limits(), VerdictKind.RESTART, "killed by SIGKILL"),
        ({"pending": 1}, Ending(None), Limits(), VerdictKind.RESTART, "ended unseen"),
        ({"blocked": 1, "pending": 1}, Ending(0), Limits(), VerdictKind.RESTART, "exit code 0, 2 tasks open"),
        ({"completed": 1, "pending": 2}, Ending(0), Limits(), VerdictKind.RESTART, "exit code 0, 2 tasks open"),
    ],
)  # fmt: skip
def test_the_verdict_table(
    counts: dict[str, int], ending: Ending, limits: Limits, kind: VerdictKind, reason: str
) -> None:
    worker = Worker("S", 7, "run", ending, cost=ending.cost)
    verdict = judge(stream(**counts), worker, Snapshot("p", workers={"S": worker}), limits)
    assert (verdict.kind, verdict.reason) == (kind, reason)
    assert verdict.restarts == (1 if kind is VerdictKind.RESTART else 0)


DOWN = Ending(1, "API Error: 529 Overloaded.", has_result=True, is_error=True, api_status=529)


def test_an_api_that_does_not_answer_is_waited_for_and_spends_no_restart() -> None:
    record = Record(restarts=10, best=0)
    delays = []
    for _ in range(9):
        worker = Worker("S", 7, "run", DOWN)
        snapshot = Snapshot("p", workers={"S": worker}, history=History(records={"S": record}))
        verdict = judge(stream(pending=1), worker, snapshot, Limits(max_restarts=10))
        assert (verdict.kind, verdict.restarts) == (VerdictKind.RESTART, 10)
        event = {**ended("S", 0, "restart"), "restarts": verdict.restarts, "outages": verdict.outages}
        record = History(records={"S": record}).after(event).record("S")
        delays.append(round(verdict.delay / 1.1))
    assert delays == sorted(delays)
    assert 50 <= delays[-1] <= 60
    worked = Worker("S", 7, "run", replace(DOWN, cost=0.5))
    verdict = judge(stream(pending=1), worked, replace(snapshot, workers={"S": worked}), Limits(max_restarts=10))
    assert verdict.kind is VerdictKind.FAILED  # it has cost something, like any other that completes nothing


@pytest.mark.parametrize(
    ("reset_in", "hits", "pause"),
    [
        (20, 0, 21), (20, 1, 21), (20, 2, 30), (20, 99, 900), (18000, 99, 18001),  # a reset that is always near
        (-5, 0, 1), (-5, 1, 15), (0, 2, 30), (-4000, 99, 900),  # one that is past: it was looked at late, or is wrong
        (None, 0, 900), (None, 1, 1800), (None, 2, 3600), (None, 99, 3600),
        (8 * 86400, 0, 8 * 86400 + 1), (8 * 86400 + 1, 0, 900), (3e10, 0, 900),  # no limit lasts so long
    ],
)  # fmt: skip
def test_a_pause_lasts_to_the_reset_or_doubles_where_that_is_unknown(
    reset_in: float | None, hits: int, pause: float
) -> None:
    assert plan_pause(reset_in, hits) == pause


def test_a_completed_task_refills_the_budget_whatever_ended_the_worker() -> None:
    history = History(records={"S": Record(restarts=2, best=1)})
    for ending in (Ending(1), LIMITED, DOWN):
        worker = Worker("S", 7, "run", ending)
        snapshot = Snapshot("p", workers={"S": worker}, history=history)
        refilled = judge(stream(completed=2, pending=1), worker, snapshot, Limits())
        spent = judge(stream(completed=1, pending=2), worker, snapshot, Limits())
        assert spent.restarts - refilled.restarts == 2


def test_one_limit_that_several_workers_hit_counts_once_and_the_next_one_doubles() -> None:
    history, clock = History(), 0.0
    lengths = []
    for _ in range(3):  # three limits in a row, each hit by three workers one after another
        for name in "ABC":
            history = history.after(started(name, clock))
        for name in "ABC":
            clock += 5
            ending = replace(LIMITED, reset_in=None)
            worker = Worker(name, 7, "run", ending)
            snapshot = Snapshot("p", workers={name: worker}, history=history)
            verdict = judge(replace(stream(pending=1), id=name), worker, snapshot, Limits())
            lengths.append(verdict.delay)
            until = "2026-11-23T04:07:00.000Z"
            history = history.after(
                {"event": "run_paused", "clock": clock, "delay": verdict.delay, "until": until, "reason": ""}
            )
            history = history.after(ended(name, clock, "paused"))
        clock = history.paused_until + 1
    assert lengths == [900] * 3 + [1800] * 3 + [3600] * 3
    early, late = (history.after(ended("A", history.paused_until - wait, "restart")) for wait in (0.1, 0))
    assert (early.limit_hits, late.limit_hits, late.spent) == (3, 0, 0)


def started(name: str, clock: float) -> dict[str, Any]:
    facts = {"attempt": 1, "completed": 0, "pid": 7, "run": "run", "raw_start": 0}
    return {"event": "worker_started", "stream": name, "clock": clock, **facts}


def ended(name: str, clock: float, verdict: str) -> dict[str, Any]:
    facts = {"restarts": 0, "completed": 0, "delay": 0, "reason": "", "ending": "", "run": "run"}
    return {"event": "worker_ended", "stream": name, "clock": clock, "verdict": verdict, **facts}


def test_a_pause_with_a_time_that_is_none_is_no_event() -> None:
    event = {"event": "run_paused", "clock": 1, "delay": 9, "until": "soon", "reason": "x"}
    assert fold_events(History(), [event]) == History()


@pytest.mark.parametrize(
    "event",
    [
        {**RESULT, "permission_denials": [{}] * 150_000},
        {"type": "assistant", "message": {"content": [{"type": "text", "text": "a\n" * 150_000}]}},
        {"type": "user", "message": {"content": [{"is_error": True, "content": [{}] * 100_000}] * 2}},
    ],
)
def test_one_event_can_not_flood_the_log(tmp_path: Path, event: dict[str, Any]) -> None:
    lines: list[str] = []
    (tmp_path / "raw").write_text(json.dumps(event) + "\n")
    assert Transcript(tmp_path / "raw", lines.extend, 0, 0).pump()
    assert 0 < len(lines) <= 2000


def at(text: str) -> float:
    return datetime.fromisoformat(text).replace(tzinfo=timezone.utc).timestamp()


@pytest.mark.parametrize(
    ("words", "wall", "reset"),
    [
        ("resets 4:07am (UTC)", "2026-11-23T03:00:00", "2026-11-23T04:07:00"),
        ("resets 4:07am (UTC)", "2026-11-23T04:07:30", "2026-11-23T04:07:00"),  # its seconds were cut off
        ("resets 4:07am (UTC)", "2026-11-23T04:13:00", "2026-11-24T04:07:00"),
        ("resets Nov 23, 4:07am (UTC)", "2026-11-23T04:08:30", "2026-11-23T04:07:00"),
        ("resets 12am (UTC)", "2026-11-23T23:00:00", "2026-11-24T00:00:00"),
        ("resets 12:30pm (UTC)", "2026-11-23T03:00:00", "2026-11-23T12:30:00"),
        ("resets Nov 26, 6:07am (UTC)", "2026-11-23T03:00:00", "2026-11-26T06:07:00"),
        ("resets Jan 2, 6am (UTC)", "2026-12-31T03:00:00", "2027-01-02T06:00:00"),
        ("Claude AI usage limit reached|1795424820", "2026-11-23T03:00:00", "2026-11-23T09:07:00"),
        ("resets 25:99xm", "2026-11-23T03:00:00", None),
        ("resets 4:07am (No/Where)", "2026-11-23T03:00:00", None),
        ("resets Feb 30, 4am (UTC)", "2026-11-23T03:00:00", None),
        ("nothing of the kind", "2026-11-23T03:00:00", None),
    ],
)
def test_the_reset_time_is_read_from_the_words(words: str, wall: str, reset: str | None) -> None:
    assert read_reset_time(words, at(wall)) == (reset and at(reset))


def test_the_zone_of_a_reset_time_is_respected() -> None:
    pytest.importorskip("zoneinfo", reason="Python 3.8 knows no zones but UTC and the local one")
    assert read_reset_time("resets 4am (America/New_York)", at("2026-11-23T03:00:00")) == at("2026-11-23T09:00:00")


def test_a_budget_is_shared_and_never_promised_twice() -> None:
    limits = Limits(budget=10)
    assert shares(Snapshot("p"), limits, 4) == [2.5] * 4
    assert shares(Snapshot("p"), replace(limits, max_workers=2), 4) == [2.5] * 2
    busy = {name: Worker(name, 7) for name in "AB"}
    held = History(records={name: Record(budget=2.5) for name in "AB"}, spent=1)
    assert shares(Snapshot("p", workers=busy, history=held), limits, 1) == [3]
    greedy = History(records={name: Record(budget=5) for name in "AB"}, spent=0)
    assert shares(Snapshot("p", workers=busy, history=greedy), limits, 1) == []
    assert shares(Snapshot("p"), Limits(), 3) == [0] * 3


@pytest.mark.parametrize(
    ("budget", "held", "costs", "ready", "expected"),
    [
        (12, 6, [0], 2, [3, 3]),  # half of what the worker leaves, less than a third of everything
        (10, 5, [2], 1, [4]),  # the worker holds what it has not spent yet
        (8, 2, [3, 3], 1, [pytest.approx(2 / 3)]),  # those that have spent more than they hold
    ],
)
def test_a_worker_holds_its_budget_less_its_cost(
    budget: float, held: float, costs: list[float], ready: int, expected: list[float]
) -> None:
    workers = {f"W{number}": Worker(f"W{number}", 7, cost=cost) for number, cost in enumerate(costs)}
    history = History(records={name: Record(budget=held) for name in workers})
    assert shares(Snapshot("p", workers=workers, history=history), Limits(budget=budget), ready) == expected


def test_a_budget_that_does_not_go_round_starts_fewer_workers_and_never_none() -> None:
    for cents in range(1, 9):
        given = shares(Snapshot("p"), Limits(budget=cents / 100 + 0.004, max_workers=9), 5)
        assert len(given) == min(cents, 5)
        assert min(given) >= 0.01
        assert sum(given) <= cents / 100 + 0.0041


def shares(snapshot: Snapshot, limits: Limits, ready: int) -> list[float]:
    """Return the budgets of the workers that start."""
    streams = [Stream(f"R{number}", "r") for number in range(ready)]
    return [action.budget for action in plan_starts(streams, snapshot, limits) if isinstance(action, Start)]


@pytest.mark.slow
def test_a_usage_limit_pauses_the_whole_run_until_the_reset_and_costs_no_restart(workspace: Workspace) -> None:
    for name in ("A", "B", "C"):
        workspace.database.add_stream(name)
    workspace.play(A=["limit=15", "all"], B=["sleep=1.5 exit=1", "all"], C="sleep=1 all")
    run = workspace.popen("start", "--max-restarts", "1", *NO_POLL)
    (paused,) = wait_until(lambda: workspace.events("run_paused"), "the pause")
    wait_until(lambda: workspace.events("worker_ended")[1:], "the end of another worker")
    shown = workspace.run("status").stdout
    assert "You've hit your session limit" in shown
    assert "│ Paused for " in shown
    assert "Paused" in workspace.run("status", "--dashboard").stdout
    status = json.loads(workspace.run("status", "--json").stdout)
    assert (status["streams"][0]["state"], status["paused_until"]) == ("paused", paused["until"])
    out, _ = run.communicate(timeout=60)
    assert run.returncode == 0, out
    started = {(e["stream"], e["attempt"]): e["clock"] for e in workspace.events("worker_started")}
    assert set(started) == {("A", 1), ("B", 1), ("C", 1), ("A", 2), ("B", 2)}
    reset = paused["clock"] + paused["delay"]
    assert min(started["A", 2], started["B", 2]) >= reset, "a worker started before the reset"
    assert [end["restarts"] for end in workspace.events("worker_ended") if end["stream"] == "A"] == [0, 0]
    assert "Paused, nothing starts for " in out


@pytest.mark.slow
def test_a_pause_survives_the_orchestrator(workspace: Workspace) -> None:
    workspace.database.add_stream("A")
    workspace.play(A=["limit=12", "all"])
    first = workspace.popen("start")
    (paused,) = wait_until(lambda: workspace.events("run_paused"), "the pause")
    first.kill()
    first.wait()
    assert workspace.run("start", *NO_POLL).returncode == 0
    again = workspace.events("run_paused")[1]
    assert again["until"] == paused["until"]
    assert workspace.events("worker_started")[1]["clock"] >= paused["clock"] + paused["delay"] - 0.5


def test_a_limit_in_text_mode_is_read_from_the_last_line_alone(workspace: Workspace) -> None:
    workspace.database.add_stream("A")
    (workspace.root / "lines.json").write_text(json.dumps({"limit": LIMIT.replace("8:05am", "11:59pm")}))
    workspace.play(A="print=limit exit=1")
    run = workspace.popen("start", "--output-format", "text")
    (paused,) = wait_until(lambda: workspace.events("run_paused"), "the pause")
    assert paused["until"][11:16] in ("23:59", "00:00")
    assert workspace.starts() == ["A"]
    run.kill()


@pytest.mark.parametrize(
    "line", ["Not logged in · Please run /login", {**FAILED, "api_error_status": 401, "result": "Nope"}]
)
def test_what_a_retry_can_not_mend_fails_at_once_in_the_workers_own_words(workspace: Workspace, line: Any) -> None:
    workspace.database.add_stream("A")
    (workspace.root / "lines.json").write_text(json.dumps({"line": line}))
    workspace.play("print=line exit=1")
    done = workspace.run("start", *NO_POLL)
    words = line if isinstance(line, str) else "Nope"
    assert (done.returncode, done.stdout.splitlines()[-1]) == (1, f"A failed: exit code 1: {words}")
    assert workspace.starts() == ["A"]


def test_a_claude_that_vanishes_fails_its_stream_at_once(workspace: Workspace) -> None:
    workspace.database.add_stream("A", tasks=2)
    workspace.play("next sleep=1 exit=1")
    run = workspace.popen("start", *NO_POLL)
    workspace.wait_for_worker("A")
    workspace.claude.unlink()
    claude = "claude"
    out, _ = run.communicate(timeout=30)
    remedy = "Install Claude Code (npm install -g @anthropic-ai/claude-code) or add it to PATH"
    reason = f"{claude}: command not found. {remedy}; --claude CMD names another command."
    assert (run.returncode, out.splitlines()[-1]) == (1, f"A failed: {reason}")


def test_the_budget_is_shared_counted_once_and_ends_the_run(workspace: Workspace) -> None:
    for name in ("A", "B"):
        workspace.database.add_stream(name, tasks=2)
    workspace.play(A="cost=0.5 cost=2.5 next exit=1", B="cost=2 sleep=1 next exit=1")
    done = workspace.run("start", "--budget", "4", *NO_POLL)
    assert done.returncode == 1
    assert done.stdout.splitlines()[-2:] == [
        "A is not complete: the budget of $4.00 is spent",
        "B is not complete: the budget of $4.00 is spent",
    ]
    shares = [workspace.argv(name)[0][-4:-2] for name in ("A", "B")]
    assert shares == [["--max-budget-usd", "2.00"], ["--max-budget-usd", "2.00"]]
    assert sum(end["cost"] for end in workspace.events("worker_ended")) == 4.5
    assert len(workspace.starts()) == 2
    assert workspace.run("status").stdout.count("Not running: the budget of $4.00 is spent") == 2
    refused = workspace.run("start", "--budget", "4", "--output-format", "text")
    assert (refused.returncode, "--budget needs" in refused.stderr) == (2, True)


def test_a_run_that_was_killed_goes_on_with_the_budget_that_is_left(workspace: Workspace) -> None:
    workspace.database.add_stream("A", tasks=2)
    workspace.play(A=["cost=3 next exit=1", "sleep=60", "all"])
    first = workspace.popen("start", "--budget", "5")
    wait_until(lambda: workspace.starts() == ["A", "A"], "the second worker")
    first.kill()
    first.wait()
    assert workspace.run("stop").returncode == 0
    done = workspace.run("start", "--budget", "5", *NO_POLL)
    assert done.returncode == 0
    assert "Warning: this run goes on: $3.00 were spent before" in done.stdout
    assert workspace.argv("A")[-1][-4:-2] == ["--max-budget-usd", "2.00"]


@pytest.mark.slow
def test_a_worker_without_a_sign_of_life_is_restarted_and_one_at_work_is_not(workspace: Workspace) -> None:
    """CPU time, output and database changes are signs of life. `CPU_INTERVAL` is shortened: 15 s would be long here."""
    for name in ("Silent", "Busy", "Chatty"):
        workspace.database.add_stream(name)
    workspace.play(
        Silent=["sleep=120", "all"], Busy="burn=6 all", Chatty="say=1 sleep=2 say=2 sleep=2 say=3 sleep=2 all"
    )
    script = workspace.root / "orchestrate.py"
    source = (Path(__file__).parent.parent / "orchestrate.py").read_text(encoding="utf-8")
    assert source.count("\nCPU_INTERVAL = 15 ") == 1
    script.write_text(source.replace("\nCPU_INTERVAL = 15 ", "\nCPU_INTERVAL = 1 "), encoding="utf-8")
    done = workspace.run("start", "--stall-timeout", "0.05", *NO_POLL, script=script)
    assert done.returncode == 0, done.stdout
    assert {name: len(workspace.starts(name)) for name in ("Silent", "Busy", "Chatty")} == {
        "Silent": 2,
        "Busy": 1,
        "Chatty": 1,
    }
    assert "Stopping the worker of Silent: it gave no sign of life" in done.stdout
    assert "Restarting worker for Silent (1/10) in 1s: stopped: it gave no sign of life" in done.stdout


def test_notifications_are_run_and_can_neither_slow_nor_break_the_run(workspace: Workspace) -> None:
    workspace.database.add_stream("F", "foundation")
    workspace.database.add_stream("G")
    workspace.database.add_stream("H")
    workspace.play("all", G="block=why", H="exit=1")
    command = (
        'printf "%s|%s|%s\\n" "$ORCHESTRATE_EVENT" "$ORCHESTRATE_STREAM" "$ORCHESTRATE_MESSAGE" >> told.txt; sleep 600'
    )
    done = workspace.run("start", "--max-restarts", "0", "--exit-on-blocked", "--notify", command, *NO_POLL, timeout=20)
    assert done.returncode == 1
    told = workspace.root / "told.txt"
    wait_until(lambda: "ended|" in told.read_text(), "the last notification")
    wait_until(lambda: len(told.read_text().splitlines()) >= 5, f"all notifications: {told.read_text()}")
    kinds = [line.split("|") for line in sorted(told.read_text().splitlines())]
    assert [kind[:2] for kind in kinds if len(kind) == 3] == [
        ["blocked", "G"], ["complete", "F"], ["ended", ""], ["failed", "H"]
    ]  # fmt: skip
    assert "blocked: why (TASK-2)" in kinds[[kind[0] for kind in kinds].index("blocked")][2]
    end_sleepers(workspace)
    assert workspace.run("start", "F", "--notify", "exit 7").returncode == 0
    workspace.database.set_status("pending", "G")
    workspace.play("sleep=1 all")
    missing = workspace.run("start", "G", "--notify", "no-such-command")
    assert missing.returncode == 0


def test_notifications_come_though_nobody_reads_the_output_and_the_end_is_always_told(workspace: Workspace) -> None:
    for number in range(20):
        workspace.database.add_stream(f"B{number}")
        workspace.database.set_status("blocked", f"B{number}")
    command = 'echo "$ORCHESTRATE_EVENT" >> told.txt; sleep 2'
    run = workspace.popen("start", "--exit-on-blocked", "--notify", command, stdout=subprocess.PIPE)
    assert run.stdout is not None
    run.stdout.close()
    assert run.wait(timeout=20) == 1
    told = workspace.root / "told.txt"
    wait_until(lambda: told.exists() and "ended" in told.read_text(), "the run's end to be told")
    wait_until(lambda: told.read_text().count("blocked") == 20, "each stream to be told")
    run.stdout = None


def test_what_was_spent_is_kept_when_the_workers_are_stopped_on_exit(workspace: Workspace) -> None:
    workspace.database.add_stream("A", tasks=2)
    workspace.play(A=["cost=3 next exit=1", "sleep=60", "all"])
    run = workspace.popen("start", "--budget", "5", "--stop-on-exit")
    wait_until(lambda: workspace.starts() == ["A", "A"], "the second worker")
    run.send_signal(signal.SIGINT)
    assert run.wait(timeout=20) == 130
    done = workspace.run("start", "--budget", "5")
    assert "$3.00 were spent before" in done.stdout


def end_sleepers(workspace: Workspace) -> None:
    """End the hanging notification commands of this test, by PID: they have our working directory."""
    import psutil

    for process in psutil.process_iter(["cmdline", "cwd"]):
        if process.info["cwd"] == str(workspace.root) and process.info["cmdline"] in (["sleep", "600"],):
            process.kill()


def test_a_warning_of_a_limit_is_shown_once(workspace: Workspace) -> None:
    workspace.database.add_stream("A", tasks=2)
    info = {"status": "allowed_warning", "rateLimitType": "five_hour", "utilization": 0.92}
    (workspace.root / "lines.json").write_text(
        json.dumps({"near": {"type": "rate_limit_event", "rate_limit_info": info}})
    )
    workspace.play(A="print=near sleep=0.5 print=near next sleep=0.5 exit=0")
    done = workspace.run("start", *NO_POLL)
    assert done.returncode == 0
    assert done.stdout.count("Warning: The five hour limit is used to 92%") == 1


def test_a_warning_of_a_limit_counts_in_a_last_line_that_was_never_ended(workspace: Workspace) -> None:
    workspace.database.add_stream("A")
    info = {"status": "allowed_warning", "rateLimitType": "five_hour", "utilization": 0.91}
    line = json.dumps({"type": "rate_limit_event", "rate_limit_info": info})
    workspace.play(A=f"all raw={line.encode().hex()}")
    done = workspace.run("start", *NO_POLL)
    assert done.returncode == 0
    assert done.stdout.count("Warning: The five hour limit is used to 91%") == 1


def leave_talking_worker(workspace: Workspace, pause: float, lines: list[str], until: str) -> Path:
    """Start a worker that says these lines, end the orchestrator once one of them is rendered; return the log."""
    workspace.database.add_stream("A")
    workspace.play(A=" ".join(f"say={line} sleep={pause}" for line in lines) + " all")
    first = workspace.popen("start")
    workspace.wait_for_worker("A")
    log = workspace.state / "logs" / "A.log"
    wait_until(lambda: until in log.read_text(), "some lines")
    first.terminate()
    first.wait()
    return log


def test_each_line_of_a_worker_is_rendered_once_across_orchestrators(workspace: Workspace) -> None:
    lines = [f"line{number}" for number in range(12)]
    log = leave_talking_worker(workspace, 0.25, lines, "line3")
    wait_until(lambda: "line6" in (workspace.state / "logs" / "A.jsonl").read_text(), "lines that nobody renders")
    assert workspace.run("start").returncode == 0
    assert [line for line in log.read_text().splitlines() if line.startswith("line")] == lines


def test_logs_shows_what_a_worker_does_while_no_orchestrator_runs_and_nothing_twice(workspace: Workspace) -> None:
    lines = [f"line{number}" for number in range(16)]
    log = leave_talking_worker(workspace, 0.3, lines, "line2")
    reader = workspace.popen("logs", "A", env={"PYTHONUNBUFFERED": "1"})
    assert reader.stdout is not None
    shown = [reader.stdout.readline().rstrip("\n")]
    while shown[-1] != "line8":
        shown.append(reader.stdout.readline().rstrip("\n"))
    assert "line8" not in log.read_text()
    assert workspace.run("start").returncode == 0
    while not shown[-1].startswith("A complete in"):
        shown.append(reader.stdout.readline().rstrip("\n"))
    reader.terminate()
    assert [line for line in shown if line.startswith("line")] == lines
    assert [line for line in log.read_text().splitlines() if line.startswith("line")] == lines


def test_the_log_reads_like_a_transcript(workspace: Workspace) -> None:
    workspace.database.add_stream("A", streamName="api")
    tools = [
        {"type": "text", "text": "I run the tests.\nThen I edit."},
        {"type": "tool_use", "name": "Bash", "input": {"command": "npm test", "description": "Run"}},
        {"type": "tool_use", "name": "Edit", "input": {"file_path": f"{workspace.root}/src/api.ts", "old_string": "x"}},
        {
            "type": "tool_use",
            "name": "mcp__task-copilot__task_update",
            "input": {"id": "TASK-12", "status": "completed"},
        },
    ]
    retry = {"attempt": 1, "max_retries": 10, "retry_delay_ms": 584.5, "error_status": 529, "error": "overloaded"}
    denial = {"tool_name": "Bash", "tool_input": {"command": "rm -rf /"}}
    servers = [{"name": "other", "status": "connected"}, {"name": "task-copilot", "status": "failed"}]
    lines = {
        "init": {**INIT, "cwd": str(workspace.root), "mcp_servers": servers},
        "tools": {"type": "assistant", "message": {"content": tools}},
        "retry": {"type": "system", "subtype": "api_retry", **retry},
        "result": {**RESULT, "total_cost_usd": 0.42, "num_turns": 34, "permission_denials": [denial]},
    }
    (workspace.root / "lines.json").write_text(json.dumps(lines))
    workspace.play("print=init print=tools print=retry say=plain print=result all")
    assert workspace.run("start").returncode == 0
    header, *body, closing, complete = (workspace.state / "logs" / "A.log").read_text().splitlines()
    pid = workspace.events("worker_started")[0]["pid"]
    assert header.startswith("──── 20")
    assert header.endswith(f" · A (api) · parallel · attempt 1 · PID {pid} · {workspace.root}")
    assert (
        body
        == [
            f"Started worker for A (attempt 1, PID {pid})",
            "  MCP server task-copilot failed to start: the worker lacks its tools",
            "I run the tests.",
            "Then I edit.",
            "Bash  npm test",
            "Edit  src/api.ts",
            "task_update  TASK-12 completed",
            "  retry 1/10 in 0.6s: overloaded (529)",
            "plain",
            "  permission denied: Bash  rm -rf /",
        ][1:]
    )
    assert closing.endswith("34 turns, $0.42: exit code 0, 1 permission denial")
    assert complete.startswith("A complete in ")


def test_a_worker_comes_back_within_a_second_of_the_unblocking(workspace: Workspace) -> None:
    workspace.database.add_stream("A")
    workspace.play(A=["block=why", "all"])
    run = workspace.popen("start", "--max-restarts", "0", *NO_POLL)
    wait_until(lambda: workspace.events("run_waiting"), "the run to wait")
    with closing(sqlite3.connect(workspace.database.path)) as connection, connection:
        connection.execute("UPDATE tasks SET status = 'pending'")
    assert run.wait(timeout=20) == 0
    assert not any(end["restarts"] for end in workspace.events("worker_ended"))
    assert not is_running(run.pid)
