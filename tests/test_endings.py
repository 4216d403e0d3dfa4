"""Why a worker ended, and what follows: the verdict table, usage limits, budgets, silence, notifications."""

from __future__ import annotations

import json
import re
import signal
import sqlite3
import subprocess
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from cli_endings import SCENARIOS
from support import Workspace, hasten, is_running, replace, unstamp, wait_until

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
    StreamState,
    Transcript,
    Verdict,
    VerdictKind,
    Worker,
    assess,
    find_cause,
    fold_events,
    format_time,
    judge,
    plan_pause,
    plan_starts,
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


def error(kind: str | None, **more: object) -> dict[str, Any]:
    """What stands where an answer of the model would: the kind of the error; None for an answer."""
    event = {"type": "assistant", "message": {"model": "<synthetic>" if kind else "opus", "content": []}, **more}
    return {**event, "error": kind} if kind else event


def read_ending(tmp_path: Path, lines: list[Any], code: int | None, now: float = NOW) -> Ending:
    """Return the ending of a worker that printed these lines: texts as they are, anything else as JSON."""
    texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    (tmp_path / "raw").write_text("".join(f"{text}\n" for text in texts), encoding="utf-8")
    transcript = Transcript(tmp_path / "raw", list, 0, 0)
    assert transcript.pump()
    return transcript.read_ending(code, now)


@pytest.mark.parametrize(
    ("lines", "code", "cause"),
    [
        # the usage limit, as an event and as a text
        ([INIT, rejected(), {**FAILED, "api_error_status": 429, "result": LIMIT}], 1, Cause.LIMIT),
        ([{**FAILED, "api_error_status": 429, "result": LIMIT}], 1, Cause.LIMIT),
        ([rejected(), {**FAILED, "api_error_status": 429, "result": LIMIT}], None, Cause.LIMIT),
        ([rejected(), {**FAILED, "api_error_status": 429, "result": "Come back later"}], 1, Cause.LIMIT),
        (["Working.", LIMIT], 1, Cause.LIMIT),
        ([LIMIT], 0, Cause.LIMIT),  # in text mode 2.1.49 has been seen to exit with 0
        ([rejected(), {**FAILED, "result": "Come back later"}], 1, Cause.LIMIT),  # no version's words, and no status
        ([rejected(), {**FAILED, "api_error_status": 500, "result": "Come back later"}], 1, Cause.LIMIT),
        ([rejected()], -9, Cause.OTHER),  # ended from outside, in the middle
        ([rejected()], 1, Cause.LIMIT),
        # a subagent's rejection, and then another error of the main conversation's own
        ([rejected(), error("rate_limit", parent_tool_use_id="toolu_1"), {**FAILED, "result": "Crash"}], 1, Cause.OTHER),
        ([rejected(), error("server_error"), {**FAILED, "api_error_status": 529, "result": "Down"}], 1, Cause.OUTAGE),
        ([rejected(), {**FAILED, "result": "API Error: 529 Overloaded."}], 1, Cause.OUTAGE),
        ([rejected(), {**FAILED, "result": "API Error: 400 Bad request"}], 1, Cause.OTHER),
        ([rejected(), error("authentication_failed"), {**FAILED, "result": "No"}], 1, Cause.LOGIN),
        ([rejected(), error("rate_limit", parent_tool_use_id="t"), error("rate_limit"), {**FAILED, "result": LIMIT}], 1, Cause.LIMIT),
        ([{**FAILED, "api_error": "usage_limit_reached", "result": "Come back later"}], 1, Cause.LIMIT),
        ([error("rate_limit"), {**FAILED, "result": "Come back later"}], 1, Cause.LIMIT),
        ([INIT, rejected(), RESULT, INIT, {**FAILED, "result": "Come back later"}], 1, Cause.LIMIT),
        # the limit of a subagent's model: an error after it is judged by itself
        ([INIT, rejected(), rejected(status="allowed"), RESULT], 0, Cause.MODEL_LIMIT),
        ([INIT, rejected(), rejected(status="allowed_warning"), RESULT, INIT, RESULT], 0, Cause.MODEL_LIMIT),
        ([INIT, rejected(), RESULT], None, Cause.MODEL_LIMIT),
        ([INIT, rejected(resetsAt=None), rejected(status="allowed"), RESULT], 0, Cause.MODEL_LIMIT),
        ([INIT, rejected(resetsAt=NOW - 1), rejected(status="allowed"), RESULT], 0, Cause.OTHER),
        ([INIT, rejected(resetsAt=NOW), rejected(status="allowed"), RESULT], 0, Cause.OTHER),
        ([INIT, rejected(resetsAt=NOW + 0.5), rejected(status="allowed"), RESULT], 0, Cause.MODEL_LIMIT),
        ([INIT, rejected(), rejected(isUsingOverage=True), RESULT], 0, Cause.OTHER),
        ([INIT, rejected(), {"type": "rate_limit_event", "rate_limit_info": {}}, {**FAILED, "result": "No"}], 1, Cause.LIMIT),
        ([INIT, rejected(), rejected(status="allowed"), RESULT], 1, Cause.OTHER),
        ([INIT, rejected(), rejected(status="allowed")], -9, Cause.OTHER),
        ([INIT, rejected(), rejected(status="allowed"), {**FAILED, "api_error_status": 529}], 1, Cause.OUTAGE),
        ([INIT, rejected(), rejected(status="allowed"), {**FAILED, "api_error_status": 401}], 1, Cause.LOGIN),
        ([INIT, error("rate_limit", parent_tool_use_id="toolu_1"), {**FAILED, "result": "Tests fail"}], 1, Cause.OTHER),
        # what only looks like one
        ([tool_result(LIMIT), {**FAILED, "result": "Tests fail"}], 1, Cause.OTHER),
        ([tool_result(json.dumps(rejected())), RESULT], 0, Cause.OTHER),
        ([{**RESULT, "result": LIMIT}], 0, Cause.OTHER),
        ([LIMIT, "Something else came after it"], 1, Cause.OTHER),
        ([tool_result("x"), LIMIT.replace("You", "The file says: You")], 0, Cause.OTHER),
        (["The file says: You've hit your 5-hour limit · resets 4:07am (UTC)"], 1, Cause.OTHER),
        ([rejected(), rejected(status="allowed"), {**FAILED, "result": "Crash"}], 1, Cause.OTHER),
        ([rejected(isUsingOverage=True), RESULT], 0, Cause.OTHER),
        ([rejected(rateLimitType=None, resetsAt=None), {**FAILED, "result": "Crash"}], 1, Cause.OTHER),
        ([error("rate_limit"), {**FAILED, "result": THROTTLE}], 1, Cause.OUTAGE),
        ([rejected(rateLimitType=None), {**FAILED, "api_error_status": 429, "result": THROTTLE}], 1, Cause.OUTAGE),
        ([{**FAILED, "api_error_status": 429, "result": "API Error: Request rejected (429)"}], 1, Cause.OUTAGE),
        ([THROTTLE], 1, Cause.OUTAGE),
        ([THROTTLE], 0, Cause.OTHER),
        (["API Error: Unable to connect to API (ConnectionRefused)"], 1, Cause.OUTAGE),
        (["The log says: API Error: Unable to connect to API"], 1, Cause.OTHER),
        ([{**FAILED, "api_error": "connection_failed", "result": "No way"}], 1, Cause.OUTAGE),
        ([error("server_error"), {**FAILED, "result": "No way"}], 1, Cause.OUTAGE),
        ([error("server_errors"), {**FAILED, "result": "No way"}], 1, Cause.OTHER),
        ([error("server_error"), INIT, {**FAILED, "result": "No way"}], 1, Cause.OTHER),
        ([error("server_error"), error(None), {**FAILED, "result": "No way"}], 1, Cause.OTHER),
        # not logged in; or another try can't go better
        ([{**FAILED, "api_error_status": 401, "result": "Not logged in · Please run /login"}], 1, Cause.LOGIN),
        ([{**FAILED, "result": "Not logged in · Please run /login"}], 1, Cause.LOGIN),
        ([{**RESULT, "result": "Not logged in · Please run /login"}], 0, Cause.OTHER),
        ([{**FAILED, "api_error_status": 401, "result": "Unauthorized"}], 1, Cause.LOGIN),
        ([{**FAILED, "api_error_status": 403, "result": "Forbidden"}], 1, Cause.LOGIN),
        ([error("authentication_failed"), {**FAILED, "result": "Forbidden"}], 1, Cause.LOGIN),
        ([{**FAILED, "api_error_status": 400, "result": "Credit balance is too low"}], 1, Cause.FINAL),
        ([error("billing_error"), {**FAILED, "result": "No"}], 1, Cause.FINAL),
        ([{**FAILED, "api_error_status": 404, "result": "There's an issue with the selected model"}], 1, Cause.FINAL),
        ([error("rate_limit"), {**FAILED, "api_error": "model_requires_usage_credits", "result": "Fable 5 requires usage credits."}], 1, Cause.FINAL),
        (["Not logged in · Please run /login"], 1, Cause.LOGIN),
        (["Invalid API key · Fix external API key"], 1, Cause.LOGIN),
        (["--dangerously-skip-permissions cannot be used with root/sudo privileges for security reasons"], 1, Cause.FINAL),
        (["error: unknown option '--frobnicate'"], 1, Cause.FINAL),
        (["Error: Session ID 1-2-3 is already in use."], 1, Cause.FINAL),
        (["sh: 1: exec: claude: not found"], 127, Cause.PROGRAM),
        (["orchestrate: line 1: /bin/claude: Text file busy"], 126, Cause.PROGRAM),
        ([], 126, Cause.PROGRAM),
        ([{**FAILED, "result": "Tests fail"}], 127, Cause.OTHER),
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
        ([INIT, rejected(), {**FAILED, "api_error_status": 429, "result": LIMIT}, INIT, RESULT], 0, Cause.MODEL_LIMIT),
        ([RESULT, {**FAILED, "api_error_status": 401, "result": "Not logged in"}], 1, Cause.LOGIN),
        ([{**FAILED, "api_error_status": 401, "result": "Not logged in"}, INIT], 1, Cause.OTHER),
        (["Invalid API key", INIT, tool_result("x")], -9, Cause.OTHER),
        ([LIMIT, INIT, tool_result("x")], 137, Cause.OTHER),
        ([LIMIT], None, Cause.LIMIT),
        (["Not logged in · Please run /login"], None, Cause.OTHER),  # nobody saw the exit code
        ([error(None), {**FAILED, "error": None, "result": "Tests fail"}], 1, Cause.OTHER),
        ([{"type": "result", "is_error": "yes", "api_error_status": "429", "permission_denials": 7}], 1, Cause.OTHER),
    ],
)  # fmt: skip
def test_the_cause_is_found_in_what_the_worker_last_said_of_itself(
    tmp_path: Path, lines: list[Any], code: int | None, cause: Cause
) -> None:
    assert find_cause(read_ending(tmp_path, lines, code)) is cause


# Every wording that was seen: in FACTS.md, printed by one of four versions, standing in one of them, or reported.
WORDS = {
    Cause.LIMIT: (
        "You've hit your limit · resets 3pm (UTC)",
        "You've hit your session limit · resets 8:05am (UTC)",
        "You've hit your 5-hour limit · resets 4:07am (UTC)",
        "You've hit your weekly limit · resets Nov 26, 6:07am (UTC)",
        "You've hit your Opus limit · resets 8pm (Europe/Berlin)",
        "You've hit your usage limit · resets 4:25am (UTC)",
        "You've hit your session limit · resets 5:10pm (Europe/Paris) · progress saved",
        "You've hit your limit",
        "You’ve hit your monthly spend limit.",
        "You've hit your monthly spend limit. /model to switch models.",
        "You've reached your Fable 5 limit. Run /usage-credits to continue or switch models with /model.",
        "5-hour limit reached ∙ resets 3pm",
        "Weekly limit reached ∙ resets Nov 30 at 3pm (UTC)",
        "Opus weekly limit reached ∙ resets Oct 6 at 7am",
        "Session limit reached ∙ resets 3pm",
        "spend limit reached · resets Aug 8 · request an increase at https://example.com",
        "Claude usage limit reached. Your limit will reset at 3pm (UTC).",
        "Claude AI usage limit reached|1764300000",
        "Usage limit reached · wrapping up",
        "You're out of extra usage · resets 3pm (UTC)",
        "You're out of usage credits · /usage-credits to buy more",
        "You're out of usage credits. Switch to another model to continue.",
        "Your org is out of usage · add funds to continue",
        "Your organization is out of usage credits. Contact your admin to add more.",
        "API Error: Usage credits ran out before the response was finished.",
        "API Error: 400 You have reached your specified API usage limits. You will regain access on 2026-01-01",
        'API Error: 400 {"type":"error","error":{"message":"You have reached your specified API usage limits."}}',
        "Spending cap reached resets 9pm",
    ),
    Cause.OUTAGE: (
        'API Error: 529 {"type":"error","error":{"type":"overloaded_error","message":"Overloaded"}}',
        "API Error: 529 Overloaded. This is a server-side issue, usually temporary — try again in a moment.",
        'API Error: 500 {"type":"error","error":{"type":"api_error","message":"Internal server error"}}',
        "API Error: 502 <html><head><title>502 Bad Gateway</title></head></html>",
        'API Error (529 {"type":"error","error":{"type":"overloaded_error","message":"Overloaded"}})',
        "API Error: Repeated 529 Overloaded errors",
        "API Error: Unable to connect to API (ECONNREFUSED)",
        "API Error: Unable to connect to API. Check your internet connection",
        "API Error: Connection error.",
        "API Error: Connection refused — a firewall or proxy may be blocking it (ECONNREFUSED)",
        "API Error: Connection dropped (ECONNRESET). Check the gateway set in ANTHROPIC_BASE_URL, then try again.",
        "API Error: Connection to the API was lost (ECONNRESET).",
        "API Error: Can't reach the API server — check your internet or DNS (ENOTFOUND)",
        "API Error: API returned an empty or malformed response (HTTP 200) — check for a proxy or gateway",
        "API Error: Request timed out.",
        "Request timed out",
        "Request timed out. Check your internet connection and proxy settings",
        "Connection error.",
        "API Error: Server is temporarily limiting requests (not your usage limit) · Rate limited",
        "API Error: Request rejected (429) · this may be a temporary capacity issue.",
        "API Error: Rate limit reached",
        'API Error: 429 {"type":"error","error":{"type":"rate_limit_error","message":"Too many requests"}}',
        "API Error (us.anthropic.claude-opus-4-1): Opus is experiencing high load, please use /model to switch to Sonnet",
        "Opus is experiencing high load. Switch to Sonnet.",
        "fetch failed",
        "TypeError: fetch failed",
        "terminated",
        "API Error: terminated",
        "socket hang up",
        "Could not refresh your login because another Claude Code process is refreshing it (or exited mid-refresh)",
        "Failed to refresh OAuth token: another Claude Code process is refreshing it",
        "Authentication error · This may be a temporary network issue, please try again",
        "API Error: The socket connection was closed unexpectedly. For more information, pass `verbose: true`",
        "API Error: 408 Request timeout",
        "API Error: No response from API",
        "API Error: The API is temporarily unavailable",
        "API Error: The response could not be read (ZlibError)",
        "API Error: Stream idle timeout - partial response received",
    ),
    Cause.LOGIN: (
        "Not logged in · Please run /login",
        "Invalid API key · Fix external API key",
        "Invalid auth token · Fix external auth token",
        "Invalid bearer token",
        "OAuth token has expired",
        "OAuth token revoked · Please run /login",
        "Login expired · Please run /login",
        "Failed to authenticate. API Error: 401 Invalid authentication credentials",
        "Failed to authenticate. API Error: 403 OAuth token does not meet scope",
        "Failed to authenticate: OAuth token revoked. Please log in again or contact your administrator.",
        'API Error: 401 {"type":"error","error":{"type":"authentication_error","message":"invalid x-api-key"}}',
        "Please run /login · API Error: 403 forbidden",
        "Your account does not have access to Claude. Please login again or contact your administrator.",
        "Your organization has disabled Claude subscription access for Claude Code · Use an Anthropic API key instead",
        "Authentication required · Sign in again to continue",
        "Anthropic profile login expired · Re-authenticate your Anthropic profile",
        "Login reached its time limit · Please run /login",
        "Your account is on hold.",
        "Your ANTHROPIC_API_KEY belongs to a disabled organization · Update or unset the environment variable",
        "This organization has been disabled.",
    ),
    Cause.BUDGET: ("Error: Exceeded USD budget (0.5)", "Reached maximum budget ($0.003)"),
    Cause.FINAL: (
        "Credit balance is too low",
        "API Error: 402 Payment required",
        "Your usage allocation has been disabled by your admin",
        "There's an issue with the selected model (claude-x). It may not exist or you may not have access to it.",
        "--dangerously-skip-permissions cannot be used with root/sudo privileges for security reasons",
        "Your seat type doesn't include usage credits",
        "Fable 5 requires usage credits. Switch to another model to continue.",
        "API Error: Usage credits required for 1M context · run /usage-credits to turn them on",
        "Error: unknown command",
        "error: invalid value",
        "error: unknown option '--frobnicate'",
        "error: option '--model <model>' argument missing",
        "error: missing required argument",
        "error: too many arguments",
        "Error: When using --print, --output-format=stream-json requires --verbose",
        "Error: Input must be provided either through stdin or as a prompt argument",
        "Error: Invalid MCP configuration",
        "Error: Session ID 1-2-3 is already in use.",
    ),
    Cause.OTHER: (
        "API Error: 5290 tokens",
        "API Error: 400 messages: bad",
        "Error: the tests fail",
        "Context limit reached · /compact or /clear to continue",
        "You've hit your stride; the limit is next.",
        "You've reached your limit of patience with this test, I guess",
        "Usage limit reached in the tests now counts as an error",
        "The 5-hour limit reached ∙ line is parsed",
        "terminated the server",
        "You've hit your target: all endpoints now respect the rate limit.",
        "You've reached your goal, and the API now enforces the limit.",
        "You've hit your own rate limit.",
        "You've hit your own limit — the test shows it.",
        "Authentication error handling is finished; two tasks are left.",
        "OAuth token refresh is implemented, the rest is open.",
        "Login reached the dashboard in the e2e test.",
        "Your organization has a new page",
        "I fixed the message that said: Not logged in",
        "Prompt is too long",
    ),
}


@pytest.mark.parametrize(("cause", "words"), [(cause, words) for cause, texts in WORDS.items() for words in texts])
def test_the_cause_is_found_in_the_words_of_the_cli_where_they_are_its_own(cause: Cause, words: str) -> None:
    shown = words if len(words) <= 200 else words[:199]
    assert find_cause(Ending(1, shown)) is cause
    assert find_cause(Ending(1, shown, has_result=True, is_error=True)) is cause
    assert find_cause(Ending(0, shown)) is (cause if cause is Cause.LIMIT else Cause.OTHER)  # in text mode
    assert find_cause(Ending(0, shown, has_result=True)) is Cause.OTHER
    assert find_cause(Ending(1, f"The log says: {shown}")) is Cause.OTHER
    assert find_cause(Ending(1, "?", kind=shown)) is Cause.OTHER


SAMPLES = Path(__file__).parent / "samples"
RECORDS = [json.loads(line) for line in (SAMPLES / "endings.jsonl").read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("version", sorted({record["version"] for record in RECORDS}))
def test_what_a_version_of_the_real_cli_printed_is_understood(tmp_path: Path, version: str) -> None:
    """Source: tests/cli_endings.py, run with each version."""
    records = [record for record in RECORDS if record["version"] == version]
    assert len(records) == 2 * len(SCENARIOS)
    for record in records:
        cause = SCENARIOS[record["scenario"]].cause
        if record["format"] == "text" and cause == "MODEL_LIMIT":
            cause = "OTHER"  # the worker's last words are all that it prints
        ending = read_ending(tmp_path, record["lines"], record["code"], record["time"])
        assert find_cause(ending).name == cause, record
        if cause == "LIMIT" and ending.limit:
            assert ending.reset_in == pytest.approx(7200, abs=30), record


@pytest.mark.parametrize(
    ("sample", "code", "cause", "summary"),
    [
        ("budget.jsonl", 1, Cause.BUDGET, "exit code 1: Reached maximum budget ($0.000001)"),
        ("sigint.jsonl", 0, Cause.OTHER, "exit code 0: aborted_tools"),
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
SUBLIMITED = Ending(0, "I am done.", has_result=True, limit="seven day opus", reset_in=20)
LOST = Ending(127, "claude: not found", cause=Cause.PROGRAM)
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
        ({"completed": 2}, SUBLIMITED, Limits(), VerdictKind.COMPLETE, ""),
        ({"blocked": 1}, SUBLIMITED, Limits(), VerdictKind.BLOCKED, ""),
        ({"pending": 1}, SUBLIMITED, Limits(max_restarts=0), VerdictKind.LIMITED, "exit code 0, a subagent hit the seven day opus limit"),
        ({"pending": 1}, REFUSED, Limits(), VerdictKind.FAILED, "exit code 1: Not logged in"),
        ({"pending": 1}, LOST, Limits(), VerdictKind.FAILED, "exit code 127: claude: not found"),
        ({"pending": 1}, SPENT, Limits(), VerdictKind.FAILED, "exit code 1: Reached"),
        ({"pending": 1}, SPENT, Limits(budget=5), VerdictKind.RESTART, "exit code 1: Reached"),
        ({"pending": 1}, SPENT, Limits(budget=1), VerdictKind.FAILED, "exit code 1: Reached"),
        ({"pending": 1}, replace(SPENT, cost=0), Limits(budget=0.01), VerdictKind.RESTART, "exit code 1: Reached"),
        ({"pending": 1}, Ending(0), Limits(), VerdictKind.RESTART, "exit code 0, 1 task open"),
        ({"pending": 2}, Ending(0, refused=("Bash",)), Limits(), VerdictKind.RESTART, "exit code 0, it was not allowed to use Bash, 2 tasks open"),
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
    is_restart = kind is VerdictKind.RESTART
    assert (verdict.restarts, verdict.max_restarts) == (is_restart, limits.max_restarts if is_restart else 0)
    by_tasks = kind in (VerdictKind.COMPLETE, VerdictKind.BLOCKED)
    assert verdict.cause is (Cause.OTHER if by_tasks else find_cause(ending))


DOWN = Ending(1, "API Error: 529 Overloaded.", has_result=True, is_error=True, api_status=529)


def end_again(ending: Ending, record: Record, times: int, *, history: History | None = None) -> list[Verdict]:
    """Return what follows from workers that end so, one after another, without a completed task."""
    verdicts = []
    for _ in range(times):
        worker = Worker("S", 7, "run", ending, cost=ending.cost)
        history = replace(history or History(), records={"S": record})
        verdicts.append(
            judge(stream(pending=1), worker, Snapshot("p", workers={"S": worker}, history=history), Limits())
        )
        history = history.after(end_event(verdicts[-1], ending.cost))
        record = history.record("S")
    return verdicts


def end_event(verdict: Verdict, cost: float = 0.0) -> dict[str, Any]:
    facts = {"tries": verdict.tries, "cause": verdict.cause.name, "open": 1, "cost": cost}
    return {**ended("S", 0, verdict.kind.value), "restarts": verdict.restarts, **facts}


def test_an_api_that_does_not_answer_is_waited_for_and_spends_no_restart() -> None:
    verdicts = end_again(DOWN, Record(restarts=10), 30)
    assert {(verdict.kind, verdict.restarts) for verdict in verdicts} == {(VerdictKind.RESTART, 10)}
    assert [round(verdict.delay, -1) for verdict in verdicts[6:]] == [60] * 24
    assert [verdict.tries for verdict in verdicts] == list(range(1, 31))


def test_an_api_that_leaves_after_paid_work_spends_restarts_from_the_sixth_time_on() -> None:
    paid = replace(DOWN, cost=0.5)
    verdicts = end_again(paid, Record(restarts=8), 8)
    kinds = [(verdict.kind.value, verdict.restarts) for verdict in verdicts]
    assert kinds == [("restart", 8)] * 5 + [("restart", 9), ("restart", 10), ("failed", 10)]
    record = Record(paid_outages=5, fewest=1)
    for ending in (DOWN, LIMITED, SUBLIMITED, Ending(-9), Ending(1, cost=3)):  # what is none neither counts nor resets
        (verdict,) = end_again(ending, record, 1)
        record = History(records={"S": record}).after(end_event(verdict, ending.cost)).record("S")
        assert record.paid_outages == 5
    assert end_again(paid, replace(record, restarts=0), 1)[0].restarts == 1
    unpaid = {key: fact for key, fact in end_event(verdict).items() if key != "cost"}
    assert History().after({**unpaid, "cause": "OUTAGE"}).record("S").paid_outages == 0


def test_a_completed_task_lets_what_counts_in_a_row_begin_anew() -> None:
    worker = Worker("S", 7, "run", replace(DOWN, cost=0.5))
    history = History(records={"S": Record(restarts=3, cause=Cause.OUTAGE, tries=4, paid_outages=9, fewest=2)})
    snapshot = Snapshot("p", workers={"S": worker}, history=history)
    verdict = judge(stream(completed=1, pending=1), worker, snapshot, Limits())
    assert (verdict.kind, verdict.restarts, verdict.tries) == (VerdictKind.RESTART, 0, 1)
    done = {**end_event(verdict, 0.5), "completed": 1}
    assert history.after(done).record("S").paid_outages == 1
    by_a_person = {**started("S", 5), "completed": 1, "open": 1}
    record = history.after(by_a_person).record("S")
    assert (record.restarts, record.tries, record.paid_outages) == (0, 0, 0)
    unchanged = history.after({**started("S", 5), "open": 2}).record("S")
    assert (unchanged.restarts, unchanged.tries, unchanged.paid_outages) == (3, 4, 9)


@pytest.mark.parametrize(("ending", "tries", "pauses"), [(REFUSED, 3, [60] * 3), (LOST, 7, [1, 2, 4, 8, 16, 32, 60])])
def test_a_login_or_a_program_that_was_there_in_this_run_is_tried_again_a_few_times(
    ending: Ending, tries: int, pauses: list[int]
) -> None:
    verdicts = end_again(ending, Record(restarts=4), tries + 1, history=History(has_executed=True, has_answer=True))
    assert [verdict.kind for verdict in verdicts] == [VerdictKind.RESTART] * tries + [VerdictKind.FAILED]
    assert {verdict.restarts for verdict in verdicts} == {4}
    assert {verdict.reason for verdict in verdicts} == {ending.summary}
    assert [verdict.delay for verdict in verdicts[:-1]] == [pytest.approx(pause, rel=0.11) for pause in pauses]
    (first,) = end_again(ending, Record(), 1)
    assert first.kind is VerdictKind.FAILED  # nobody has shown that it can go well
    other = Record(cause=Cause.OTHER, tries=tries)
    (again,) = end_again(ending, other, 1, history=History(has_executed=True, has_answer=True))
    assert again.tries == 1  # in a row


def test_a_login_that_was_good_for_a_time_begins_its_tries_anew() -> None:
    worker = Worker("S", 7, "run", REFUSED, has_answer=True)
    snapshot = Snapshot("p", workers={"S": worker}, history=History(records={"S": Record(cause=Cause.LOGIN, tries=3)}))
    verdict = judge(stream(pending=1), worker, snapshot, Limits())
    assert (verdict.kind, verdict.tries) == (VerdictKind.RESTART, 1)


@pytest.mark.parametrize(
    ("other", "completed", "may_log_in", "may_execute"),
    [
        (Worker("T", 8), 0, False, False),
        (Worker("T", 8, has_answer=True), 0, True, True),
        (Worker("T", 8), 1, True, True),  # in text mode nothing else tells
        (Worker("T", 8, cpu=0.0), 0, False, True),  # it lives for some time
        (Worker("T", 8, ending=Ending(127), cpu=0.0), 0, False, False),
    ],
)
def test_a_worker_that_lives_shows_that_the_login_and_the_program_are_good(
    other: Worker, completed: int, may_log_in: bool, may_execute: bool
) -> None:
    streams = (stream(pending=1), replace(stream(completed=completed, pending=1), id="T"))
    for ending, may in ((REFUSED, may_log_in), (LOST, may_execute)):
        worker = Worker("S", 7, "run", ending)
        snapshot = Snapshot("p", streams, workers={"S": worker, "T": other})
        verdict = judge(streams[0], worker, snapshot, Limits())
        assert (verdict.kind is VerdictKind.RESTART) is may


def test_the_limit_of_a_subagent_pauses_its_stream_alone_and_at_most_for_an_hour() -> None:
    delays = [verdict.delay for verdict in end_again(SUBLIMITED, Record(), 4)]
    assert delays == [21, 21, 30, 60]  # a reset that is always near is believed less
    (long,) = end_again(replace(SUBLIMITED, reset_in=90_000), Record(restarts=10), 1)
    assert (long.kind, long.delay, long.restarts) == (VerdictKind.LIMITED, 3600, 10)
    event = {**end_event(long), "until": "2026-11-23T04:07:00Z", "reason": long.reason}
    history = History().after(event)
    assert history.pause_ends == 0
    open_stream = stream(pending=1)
    snapshot = Snapshot(
        "p", wall=history.record("S").pause_ends - 5, streams=(open_stream,), history=history, orchestrator=1
    )
    standing = assess(snapshot, Limits(), 1000.0)["S"]
    assert (standing.state, standing.until, standing.reason) == (StreamState.PAUSED, 1005.0, long.reason)
    assert assess(replace(snapshot, wall=snapshot.wall + 5), Limits(), 1000.0)["S"].state is StreamState.QUEUED
    begun = {"event": "run_started", "clock": 1, "limits": {}}
    for kept, event in (
        (True, begun),
        (True, {**begun, "limits": {"streams": ["T"]}}),
        (False, {**begun, "limits": {"streams": ["S"]}}),
        (False, {"event": "start_requested", "stream": "S"}),
    ):
        assert bool(history.after(event).record("S").pause_ends) is kept


def test_a_start_by_a_person_lets_the_tries_begin_anew() -> None:
    record = Record(restarts=1, tries=2, paid_outages=3, retry_at=4, failure="x", pause_ends=5)
    after = History(records={"S": record}).after({"event": "start_requested", "stream": "S"}).record("S")
    assert after == Record(requested=True)


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
            paused = {"event": "run_paused", "clock": clock, "time": moment(clock), "reason": ""}
            history = history.after({**paused, "until": moment(clock + verdict.delay)})
            history = history.after(ended(name, clock, "paused"))
        clock = history.pause_ends - NOW + 1
    assert lengths == [900] * 3 + [1800] * 3 + [3600] * 3
    early, late = (history.after(ended("A", history.pause_ends - NOW - wait, "restart")) for wait in (0.1, 0))
    assert (early.limit_hits, late.limit_hits, late.spent) == (3, 0, 0)


def started(name: str, clock: float) -> dict[str, Any]:
    facts = {"attempt": 1, "completed": 0, "pid": 7, "run": "run", "raw_start": 0}
    return {"event": "worker_started", "stream": name, "clock": clock, **facts}


def ended(name: str, clock: float, verdict: str) -> dict[str, Any]:
    facts = {"restarts": 0, "completed": 0, "delay": 0, "reason": "", "ending": "", "run": "run", "pid": 7}
    event = {
        "event": "worker_ended",
        "stream": name,
        "clock": clock,
        "time": moment(clock),
        "verdict": verdict,
        **facts,
    }
    return {**event, "until": moment(clock)}


def moment(clock: float) -> str:
    return format_time(NOW + clock)


def test_a_pause_with_a_time_that_is_none_is_no_event() -> None:
    event = {"event": "run_paused", "clock": 1, "time": moment(1), "until": "soon", "reason": "x"}
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
    transcript = Transcript(tmp_path / "raw", lines.extend, 0, 0)
    assert transcript.pump()
    transcript.finish()
    assert 0 < len(lines) <= 2000


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
    assert shares(Snapshot("p", workers=busy), Limits(max_workers=1), 3) == []


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


def test_a_limit_in_text_mode_pauses_for_a_quarter_of_an_hour_whatever_the_exit_code(workspace: Workspace) -> None:
    for name in ("A", "B"):
        workspace.database.add_stream(name)
    (workspace.root / "lines.json").write_text(json.dumps({"limit": LIMIT}))
    workspace.play(A="print=limit exit=1", B="print=limit exit=0")
    run = workspace.popen("start", "--output-format", "text")
    wait_until(lambda: workspace.events("worker_ended")[1:], "the end of both")
    assert {end["verdict"] for end in workspace.events("worker_ended")} == {"paused"}
    (paused,) = workspace.events("run_paused")
    assert paused["delay"] == pytest.approx(900, abs=1)
    assert sorted(workspace.starts()) == ["A", "B"]
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
    assert (done.returncode, f"✗ A failed: exit code 1: {words}\n" in done.stdout) == (1, True)
    assert workspace.starts() == ["A"]


def test_the_budget_is_shared_counted_once_and_ends_the_run(workspace: Workspace) -> None:
    for name in ("A", "B"):
        workspace.database.add_stream(name, tasks=2)
    workspace.play(A="cost=0.5 cost=2.5 next exit=1", B="cost=2 sleep=1 next exit=1")
    done = workspace.run("start", "--budget", "4", *NO_POLL)
    assert done.returncode == 1
    assert done.stdout.count("Not running") == done.stdout.count("    Why: the budget of $4.00 is spent\n") == 2
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
    script = hasten(workspace, CPU_INTERVAL="1")
    done = workspace.run("start", "--stall-timeout", "0.05", *NO_POLL, script=script)
    assert done.returncode == 0, done.stdout
    assert {name: len(workspace.starts(name)) for name in ("Silent", "Busy", "Chatty")} == {
        "Silent": 2,
        "Busy": 1,
        "Chatty": 1,
    }
    assert "Stopping the worker of Silent: it gave no sign of life" in done.stdout
    assert "Restarting worker for Silent (1/10) in 1s: stopped: it gave no sign of life" in done.stdout


def test_a_heartbeat_of_a_tool_call_that_hangs_is_no_sign_of_life(workspace: Workspace) -> None:
    """Claude Code 2.1.332 prints one every 30 s."""
    workspace.database.add_stream("A")
    beat = {"type": "tool_progress", "tool_name": "Bash", "elapsed_time_seconds": 30, "heartbeat": True}
    (workspace.root / "lines.json").write_text(json.dumps({"beat": beat}))
    workspace.play(A=["print=beat sleep=0.5 " * 40, "all"])
    script = hasten(workspace, CPU_INTERVAL="1")
    run = workspace.popen("start", "--stall-timeout", "0.05", *NO_POLL, script=script)
    wait_until(lambda: workspace.events("worker_started")[1:], "the restart")
    assert run.wait(timeout=20) == 0
    (first, _) = workspace.events("worker_ended")
    assert (first["verdict"], first["reason"]) == ("restart", "stopped: it gave no sign of life")


def test_overage_is_a_warning_and_told_once(workspace: Workspace) -> None:
    for name in ("A", "B"):
        workspace.database.add_stream(name)
    (lines,) = (
        record["lines"]
        for record in RECORDS
        if (record["scenario"], record["version"], record["format"]) == ("overage", "2.1.332", "stream-json")
    )
    (workspace.root / "lines.json").write_text(json.dumps({str(n): line for n, line in enumerate(lines)}))
    workspace.play(" ".join(f"print={n}" for n in range(len(lines))) + " all")
    command = 'echo "$ORCHESTRATE_EVENT $ORCHESTRATE_MESSAGE" >> told.txt'
    done = workspace.run("start", "--notify", command, *NO_POLL)
    assert done.returncode == 0
    words = r"The five hour limit is used up until \w{3} \d\d:\d\d: what follows is overage, which costs money"
    assert len(re.findall(f"Warning: [AB]: {words}", done.stdout)) == 1
    told = workspace.root / "told.txt"
    wait_until(lambda: "ended" in told.read_text(), "the last notification")
    assert len(re.findall(f"^overage Warning: [AB]: {words}$", told.read_text(), re.M)) == 1
    assert re.search(f"^  {words}$", "\n".join(workspace.log("A")), re.M)


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
    leave_talking_worker(workspace, 0.25, lines, "line3")
    wait_until(lambda: "line6" in (workspace.state / "logs" / "A.jsonl").read_text(), "lines that nobody renders")
    assert workspace.run("start").returncode == 0
    assert [line for line in workspace.log("A") if line.startswith("line")] == lines


def test_logs_shows_what_a_worker_does_while_no_orchestrator_runs_and_nothing_twice(workspace: Workspace) -> None:
    lines = [f"line{number}" for number in range(16)]
    log = leave_talking_worker(workspace, 0.3, lines, "line2")
    reader = workspace.popen("logs", "A", env={"PYTHONUNBUFFERED": "1"})
    assert reader.stdout is not None
    shown = unstamp(reader.stdout.readline())
    while shown[-1] != "line8":
        shown += unstamp(reader.stdout.readline())
    assert "line8" not in log.read_text()
    assert workspace.run("start").returncode == 0
    while not shown[-1].startswith("A complete in"):
        shown += unstamp(reader.stdout.readline())
    reader.terminate()
    assert [line for line in shown if line.startswith("line")] == lines
    assert [line for line in workspace.log("A") if line.startswith("line")] == lines


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
    tools += [
        {"type": "tool_use", "name": "Skill", "input": {"skill": "continue", "args": "Stream-A"}},
        {"type": "tool_use", "name": "Bash", "input": {"command": "npm run dev", "run_in_background": True}},
    ]
    error = {"type": "tool_result", "is_error": True, "content": "<tool_use_error>Blocked: sleep</tool_use_error>"}
    task = {"type": "system", "task_id": "b1", "task_type": "local_bash", "description": "The dev server"}
    foreground = {**task, "task_id": "b2", "description": "The tests", "is_backgrounded": False}
    lines = {
        "began": {**task, "subtype": "task_started", "is_backgrounded": True},
        "began_here": {**foreground, "subtype": "task_started"},
        "error": {"type": "user", "message": {"content": [error]}},
        "ended_here": {**foreground, "subtype": "task_notification", "status": "completed", "summary": "The tests"},
        "ended": {**task, "subtype": "task_notification", "status": "completed", "summary": "exit code 0"},
        "first": {**RESULT, "num_turns": 2},
        "init": {**INIT, "cwd": str(workspace.root), "mcp_servers": servers},
        "tools": {"type": "assistant", "message": {"content": tools}},
        "retry": {"type": "system", "subtype": "api_retry", **retry},
        "result": {**RESULT, "total_cost_usd": 0.42, "num_turns": 34, "permission_denials": [denial]},
    }
    (workspace.root / "lines.json").write_text(json.dumps(lines))
    names = "init tools began began_here error ended_here first ended init retry"
    workspace.play(" ".join(f"print={name}" for name in names.split()) + " say=plain print=result all")
    assert workspace.run("start").returncode == 0
    header, *body, closing, complete = workspace.log("A")
    pid = workspace.events("worker_started")[0]["pid"]
    assert header.startswith("──── A (api) · parallel")
    assert header.endswith(f"──── A (api) · parallel · attempt 1 · PID {pid} · {workspace.root}")
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
            "Skill  continue Stream-A",
            "Bash  npm run dev",
            "  in the background: The dev server",
            "  error: Blocked: sleep",
            "  in the background, completed: The dev server",
            "  MCP server task-copilot failed to start: the worker lacks its tools",
            "  retry 1/10 in 0.6s: overloaded (529)",
            "plain",
            "  permission denied: Bash  rm -rf /",
        ][1:]
    )
    reason = "exit code 0, it was not allowed to use Bash, the MCP server task-copilot failed to start"
    assert closing.endswith(f"36 turns, $0.42: {reason}")
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


# ── Why work is not done ──────────────────────────────────────────────────────────────────────────────────────────────

BACKGROUND = {"type": "system", "task_id": "t1", "task_type": "local_agent", "description": "the API"}
STARTED = {**BACKGROUND, "subtype": "task_started", "is_backgrounded": True}
STOPPED = {**BACKGROUND, "subtype": "task_notification", "status": "stopped", "summary": "the API"}
UNMARKED = {**BACKGROUND, "subtype": "task_started", "tool_use_id": "call-1"}
CALLED = {"type": "tool_use", "id": "call-1", "name": "Bash", "input": {"run_in_background": True}}
CALL = {"type": "assistant", "message": {"content": [CALLED]}}


def number_task(number: int) -> list[Any]:
    named = {"task_id": f"t{number}", "description": f"part {number}"}
    return [{**STARTED, **named}, {**STOPPED, **named}]


GIVEN_UP = (
    'Background tasks still running 10m after the last turn (subagent "the API"); stopping them. '
    "Set CLAUDE_CODE_PRINT_BG_WAIT_CEILING_MS=0 to wait indefinitely."
)
SPOKEN = {"type": "assistant", "message": {"content": [{"type": "text", "text": "On with it."}]}}


@pytest.mark.parametrize(
    ("printed", "code", "reason"),
    [
        ([INIT, STARTED, STOPPED, RESULT], 0, 'exit code 0, it stopped its background subagent "the API"'),
        ([INIT, STARTED, RESULT, STOPPED], 0, 'exit code 0, it stopped its background subagent "the API"'),
        (
            [INIT, STARTED, GIVEN_UP, STOPPED, RESULT],
            0,
            'exit code 0, it stopped its background subagent "the API" after 10m',
        ),
        ([GIVEN_UP, "I wait for it."], 0, 'exit code 0, it stopped its background subagent "the API" after 10m'),
        ([INIT, STARTED, STOPPED, SPOKEN, RESULT], 0, "exit code 0"),  # its own wish, or it went on without it
        ([INIT, STOPPED, RESULT], 0, "exit code 0"),  # of a task that was none of these
        ([INIT, UNMARKED, STOPPED, RESULT], 0, "exit code 0"),  # as 2.1.197 tells of one in the foreground
        ([INIT, CALL, UNMARKED, RESULT, STOPPED], 0, 'exit code 0, it stopped its background subagent "the API"'),
        (
            [INIT, *[x for n in range(9) for x in number_task(n)], RESULT],
            0,
            ", ".join(["exit code 0", *(f'it stopped its background subagent "part {n}"' for n in range(3))]),
        ),
        (
            [INIT, {**RESULT, "is_error": True, "result": "", "errors": ["[note] x", "Error: ENOSPC"]}],
            1,
            "exit code 1: Error: ENOSPC",
        ),
        (
            [INIT, {**STARTED, "task_type": "local_bash"}, RESULT, STOPPED],
            0,
            'exit code 0, it stopped its background command "the API"',
        ),
        (
            [
                INIT,
                {**RESULT, "permission_denials": [{"tool_name": "Bash"}, {"tool_name": "Bash"}, {"tool_name": "Edit"}]},
            ],
            0,
            "exit code 0, it was not allowed to use Bash, Edit",
        ),
        (
            [
                {**INIT, "mcp_servers": [{"name": "task-copilot", "status": "failed"}]},
                {**INIT, "mcp_servers": [{"name": "other", "status": "failed"}]},
                RESULT,
            ],
            0,
            "exit code 0, the MCP server other failed to start",
        ),
        (
            [
                INIT,
                {
                    **RESULT,
                    "is_error": True,
                    "subtype": "error_max_budget_usd",
                    "result": None,
                    "errors": ["Reached maximum budget ($1)"],
                    "terminal_reason": "budget_exhausted",
                },
            ],
            1,
            "exit code 1: Reached maximum budget ($1)",
        ),
    ],
)
def test_the_reason_is_what_the_worker_told_of_itself(
    tmp_path: Path, printed: list[Any], code: int, reason: str
) -> None:
    assert read_ending(tmp_path, printed, code).summary == reason


def test_the_next_worker_and_whoever_looks_are_told_the_real_reason(workspace: Workspace) -> None:
    workspace.database.add_stream("A", tasks=2)
    workspace.write_lines(init=INIT, started=STARTED, given_up=GIVEN_UP, stopped=STOPPED, result=RESULT)
    workspace.play(A=["print=init print=started print=given_up print=stopped print=result exit=0", "facts all"])
    reason = 'exit code 0, it stopped its background subagent "the API" after 10m'
    assert f"Restarting worker for A (1/10) in 1s: {reason}, 2 tasks open" in workspace.complete()
    assert f"The last worker ended: {reason}\n" in workspace.facts()["argv"][-1]


def test_a_worker_without_its_task_copilot_server_is_tried_once_more_and_fails_with_the_remedy(
    workspace: Workspace,
) -> None:
    workspace.database.add_stream("A", tasks=2)
    workspace.write_lines(init={**INIT, "mcp_servers": [{"name": "task-copilot", "status": "failed"}]}, result=RESULT)
    workspace.play("print=init print=result exit=0")
    out = workspace.complete(code=1)
    reason = "exit code 0, the MCP server task-copilot failed to start"
    assert [(e["verdict"], e["restarts"]) for e in workspace.events("worker_ended")] == [("restart", 0), ("failed", 0)]
    assert f"Trying A again in 1s: {reason}" in out
    assert f"A failed: {reason}. Look why: claude mcp list" in out


@pytest.mark.parametrize("phase", ["foundation", "parallel"])
def test_new_commits_are_progress_three_times_and_a_stream_that_gives_up_says_how_many(
    workspace: Workspace, phase: str
) -> None:
    workspace.make_repository("README.md")
    workspace.database.add_stream("A", phase)
    workspace.play(A=[f"commit={number} exit=1" for number in range(9)])
    out = workspace.complete("--max-restarts", "1", code=1)
    ends = workspace.events("worker_ended")
    assert [(end["verdict"], end["restarts"], end["commits"]) for end in ends] == [
        ("restart", 1, 1), ("restart", 1, 1), ("restart", 1, 1), ("failed", 1, 1)
    ]  # fmt: skip
    assert "A failed: gave up after 1 restart without a completed task; last: exit code 1; it made 4 commits" in out


def test_commits_in_a_folder_that_workers_share_are_nobodys_progress(workspace: Workspace) -> None:
    workspace.make_repository("README.md")
    for name in ("A", "B"):
        workspace.database.add_stream(name, "integration")
    workspace.play("write=seen until=both commit=x exit=1", B="until=seen write=both sleep=1 exit=1")
    workspace.complete("--max-restarts", "0", code=1)
    assert {end["stream"]: end["commits"] for end in workspace.events("worker_ended")} == {"A": 0, "B": 0}


def test_a_worker_that_runs_for_too_long_is_restarted_however_much_it_says(workspace: Workspace) -> None:
    workspace.database.add_stream("A")
    workspace.play(A=["say=on sleep=0.3 " * 100, "all"])
    out = workspace.complete("--worker-timeout", "0.03")
    assert "Stopping the worker of A: it ran for longer than --worker-timeout" in out
    assert "Restarting worker for A (1/10) in 1s: stopped: it ran for longer than --worker-timeout" in out
    assert "The last worker ended: stopped: it ran for longer than --worker-timeout\n" in workspace.argv("A")[-1][-1]


@pytest.mark.parametrize(
    ("play", "commits"),
    [
        ("commit=a commit=b until=go exit=1", 2),
        ("until=go git=merge,--quiet,--ff-only,main exit=1", 0),  # a person's
        ("commit=a until=go git=merge,--quiet,--no-edit,main exit=1", 2),  # its own, and the merge
        ("commit=a until=go git=rebase,--quiet,main exit=1", 1),
        ("until=go git=checkout,--quiet,--detach,old exit=1", 0),
    ],
)
def test_commits_of_others_are_no_progress_of_a_worktree(workspace: Workspace, play: str, commits: int) -> None:
    workspace.make_repository("README.md")
    workspace.git("checkout", "-q", "-b", "old")
    workspace.git("commit", "-q", "--allow-empty", "-m", "old")
    workspace.git("checkout", "-q", "main")
    workspace.git("commit", "-q", "--allow-empty", "-m", "newer")
    workspace.database.add_stream("A")
    workspace.play(play)
    run = workspace.start("--max-restarts", "0", wait="A")
    wait_until(lambda: workspace.starts("A"), "the worker")
    wait_until(
        lambda: play.count("commit=") == len(workspace.git("log", "--oneline", "main..stream/A").split("\n")) - 1, ""
    )
    for name in ("one", "two"):
        workspace.git("commit", "-q", "--allow-empty", "-m", name)
    out = run.finish("go", code=1)
    (end,) = workspace.events("worker_ended")
    assert end["commits"] == commits
    assert ("it made" in out) is bool(commits)


def test_a_run_without_worktrees_counts_what_a_worker_commits_alone(workspace: Workspace) -> None:
    workspace.make_repository("README.md")
    workspace.database.add_stream("A", "foundation")
    workspace.play("commit=a exit=1")
    assert "; it made 1 commit\n" in workspace.complete("--max-restarts", "0", "--no-worktrees", code=1)


def test_what_a_stream_has_committed_is_known_after_a_kill_and_shared_folders_stay_shared(
    workspace: Workspace,
) -> None:
    workspace.make_repository("README.md")
    workspace.database.add_stream("A", "foundation")
    for name in ("I1", "I2"):
        workspace.database.add_stream(name, "integration")
    workspace.play(A=["commit=a exit=1", "until=go all"], I1="until=end exit=1", I2="commit=b until=end exit=1")
    run = workspace.start("--max-restarts", "1")
    wait_until(lambda: workspace.starts("A") == ["A", "A"], "the second worker")
    run.kill()
    run = workspace.start("--max-restarts", "0")
    workspace.open_gate("go")
    wait_until(lambda: workspace.starts("I2"), "the commit")
    wait_until(lambda: "I2" in workspace.git("log", "--format=%s"), "the commit")
    run.kill()
    run = workspace.start("--max-restarts", "0")
    wait_until(lambda: len(workspace.events("worker_adopted", stream="I1")) == 1, "its adoption")
    out = run.finish("end", code=1)
    assert {end["stream"]: end["commits"] for end in workspace.events("worker_ended")[1:]} == {"A": 0, "I1": 0, "I2": 0}
    assert "I1 failed: gave up after 0 restarts without a completed task; last: exit code 1" not in out  # unseen
    assert "it made" not in out


def test_a_worker_that_waits_for_its_subagent_is_shown_so_from_outside(workspace: Workspace) -> None:
    workspace.database.add_stream("A")
    listed = {"type": "system", "subtype": "background_tasks_changed", "tasks": [{"task_type": "local_agent"}]}
    workspace.write_lines(init=INIT, listed=listed, result=RESULT)
    workspace.play("print=init print=listed all print=result until=go")
    run = workspace.start("--finish-grace", "1")  # with none, it may be ended before its list is read
    words = re.compile(r"Finishing \(PID: \d+\): its tasks are complete, it waits for what runs in its background\n")
    wait_until(lambda: words.search(workspace.check("status")), "the waiting")
    run.finish("go")
