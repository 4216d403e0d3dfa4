"""How the real CLI ends when its API refuses, fails or is not there; and a recorder of what it prints then.

    python tests/cli_endings.py CLAUDE >> tests/samples/endings.jsonl

adds a line for each scenario and output format, of the version that CLAUDE is. `test_endings.py` reads them all,
`test_real_cli.py` lets the newest version end in the same ways.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Callable, Iterator, Mapping, NamedTuple

from scripted_api import Conversation, Refuse, Reply, Say, ScriptedApi, UseTool, usage_limit

FORMATS = {"stream-json": ["--output-format", "stream-json", "--verbose"], "text": []}
RESET = 7200  # seconds from now to the reset of a limit

# What matters of an event, and stays in a record.
KEPT = {
    "type",
    "subtype",
    "is_error",
    "api_error_status",
    "api_error",
    "result",
    "errors",
    "terminal_reason",
    "num_turns",
}
KEPT |= {"total_cost_usd", "rate_limit_info", "message", "error", "parent_tool_use_id", "permission_denials", "tasks"}
KEPT |= {"model", "content", "text", "claude_code_version"}


class Scenario(NamedTuple):
    """What meets the CLI, and the cause that has to be found in how it ends."""

    cause: str
    meet: Any  # a script of the API's, what it does with a connection, or the address of none
    login: str = "CLAUDE_CODE_OAUTH_TOKEN"


def _limit(claim: str, **more: str) -> Callable[[Conversation], Reply]:
    def respond(_: Conversation) -> Reply:
        refusal = usage_limit(int(time.time()) + RESET, claim)
        return refusal._replace(headers={**refusal.headers, **more})

    return respond


def _refuse(status: int, kind: str, message: str) -> Callable[[Conversation], Reply]:
    return lambda _: Refuse(status, kind, message)


def _allow(claim: str = "five_hour", **more: str) -> Mapping[str, str]:
    facts = {"status": "allowed", "reset": str(int(time.time()) + RESET), "representative-claim": claim, **more}
    return {f"anthropic-ratelimit-unified-{name}": value for name, value in facts.items()}


def _limit_subagent(conversation: Conversation) -> Reply:
    """The main conversation's model answers; that of its subagent is at its limit."""
    if "opus" in conversation.body["model"]:
        return _limit("seven_day_opus")(conversation)
    if conversation.tool_results:
        return Say("I am done.", _allow())
    given = {"description": "work", "prompt": "Work.", "subagent_type": "general-purpose", "model": "opus"}
    return UseTool("Agent" if "Agent" in conversation.tools else "Task", given, _allow())


def _limit_subagent_then_overload(conversation: Conversation) -> Reply:
    """The same; and then the main conversation meets an error of its own, which allows and rejects nothing."""
    is_over = "opus" not in conversation.body["model"] and conversation.tool_results
    return Refuse(529, "overloaded_error", "Overloaded") if is_over else _limit_subagent(conversation)


def _begin_overage(_: Conversation) -> Reply:
    more = {"status": "rejected", "overage-status": "allowed", "overage-reset": str(int(time.time()) + RESET)}
    return Say("I am done.", _allow(**more))


def _read(connection: socket.socket) -> None:
    data = b""
    while b"\r\n\r\n" not in data:
        data += connection.recv(1 << 16)


def _hang(connection: socket.socket) -> None:
    while connection.recv(1 << 16):
        pass  # until the CLI gives up


def _reset(connection: socket.socket) -> None:
    _read(connection)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def _answer_html(connection: socket.socket) -> None:
    _read(connection)
    page = b"<html><head><title>502 Bad Gateway</title></head><body>-</body></html>"
    head = f"HTTP/1.1 502 Bad Gateway\r\nContent-Type: text/html\r\nContent-Length: {len(page)}\r\nConnection: close"
    connection.sendall(head.encode() + b"\r\n\r\n" + page)


def _meet(connection: socket.socket, what: Callable[[socket.socket], None]) -> None:
    with connection, contextlib.suppress(ConnectionError):
        what(connection)


CAP = "You have reached your specified API usage limits. You will regain access on 2030-01-01 at 00:00 UTC."

SCENARIOS = {
    "limit of five hours": Scenario("LIMIT", _limit("five_hour")),
    "limit of a week": Scenario("LIMIT", _limit("seven_day")),
    "limit of opus": Scenario("LIMIT", _limit("seven_day_opus")),
    "limit of sonnet": Scenario("LIMIT", _limit("seven_day_sonnet")),
    "limit of overage": Scenario("LIMIT", _limit("overage")),
    "limit without credits": Scenario(
        "LIMIT",
        _limit(
            "five_hour",
            **{
                "anthropic-ratelimit-unified-overage-status": "rejected",
                "anthropic-ratelimit-unified-overage-disabled-reason": "out_of_credits",
            },
        ),
    ),
    "limit of a subagent": Scenario("MODEL_LIMIT", _limit_subagent),
    "limit of a subagent, then overloaded": Scenario("OUTAGE", _limit_subagent_then_overload),
    "usage cap": Scenario("LIMIT", _refuse(400, "invalid_request_error", CAP), "ANTHROPIC_API_KEY"),
    "overage": Scenario("OTHER", _begin_overage),
    "throttled": Scenario("OUTAGE", _refuse(429, "rate_limit_error", "Too many requests")),
    "throttled key": Scenario("OUTAGE", _refuse(429, "rate_limit_error", "Too many requests"), "ANTHROPIC_API_KEY"),
    "overloaded": Scenario("OUTAGE", _refuse(529, "overloaded_error", "Overloaded")),
    "server error": Scenario("OUTAGE", _refuse(500, "api_error", "Internal server error")),
    "unavailable": Scenario("OUTAGE", _refuse(503, "api_error", "Service unavailable")),
    "request time-out": Scenario("OUTAGE", _refuse(408, "timeout_error", "Request timeout")),
    "bad gateway": Scenario("OUTAGE", _answer_html),
    "time-out": Scenario("OUTAGE", _hang),
    "connection reset": Scenario("OUTAGE", _reset),
    "connection refused": Scenario("OUTAGE", "http://127.0.0.1:9"),
    "no such host": Scenario("OUTAGE", "http://no.such.host.invalid"),
    "no login": Scenario("LOGIN", lambda _: Say("-"), ""),
    "login expired": Scenario("LOGIN", _refuse(401, "authentication_error", "OAuth token has expired")),
    "key refused": Scenario("LOGIN", _refuse(401, "authentication_error", "invalid x-api-key"), "ANTHROPIC_API_KEY"),
    "login revoked": Scenario("LOGIN", _refuse(403, "permission_error", "OAuth token has been revoked")),
    "login forbidden": Scenario("LOGIN", _refuse(403, "permission_error", "OAuth token does not meet scope")),
    "no credit": Scenario("FINAL", _refuse(400, "invalid_request_error", "Your credit balance is too low")),
    "no payment": Scenario("FINAL", _refuse(402, "billing_error", "Payment required")),
    "no such model": Scenario("FINAL", _refuse(404, "not_found_error", "model: foo")),
    "bad request": Scenario("OTHER", _refuse(400, "invalid_request_error", "messages: bad")),
}


@contextlib.contextmanager
def serve(scenario: Scenario) -> Iterator[str]:
    """Give the address of an API that behaves so, while the context lasts."""
    if isinstance(scenario.meet, str):
        yield scenario.meet
    elif scenario.meet in (_hang, _reset, _answer_html):
        with socket.create_server(("127.0.0.1", 0)) as server:

            def accept() -> None:
                with contextlib.suppress(OSError):  # closed: the scenario is over
                    while True:
                        connection, _ = server.accept()
                        threading.Thread(target=_meet, args=(connection, scenario.meet), daemon=True).start()

            threading.Thread(target=accept, daemon=True).start()
            yield f"http://127.0.0.1:{server.getsockname()[1]}"
    else:
        with ScriptedApi(scenario.meet) as api:
            yield api.url


def run_cli(claude: str, scenario: Scenario, output_format: str, folder: Path) -> tuple[int, list[str]]:
    """Let the CLI meet a scenario; return its exit code and the lines that it printed, stderr among them."""
    environment = {
        "HOME": str(folder),
        "PATH": os.environ["PATH"],
        "IS_SANDBOX": "1",
        "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
        "CLAUDE_CODE_MAX_RETRIES": "1",
        "API_TIMEOUT_MS": "3000",
        "TMPDIR": str(folder),
        "CLAUDE_CODE_TMPDIR": str(folder),
        **({scenario.login: "dummy"} if scenario.login else {}),
    }
    with serve(scenario) as url:
        words = [claude, "--print", "--dangerously-skip-permissions", *FORMATS[output_format], "--model", "sonnet"]
        child = subprocess.Popen(
            [*words, "-p", "hello"],
            cwd=folder,
            env={**environment, "ANTHROPIC_BASE_URL": url},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        try:
            out, _ = child.communicate(timeout=120)
        except subprocess.TimeoutExpired:
            os.killpg(child.pid, signal.SIGKILL)
            child.communicate()
            raise
    return child.returncode, out.splitlines()


def keep(value: Any) -> Any:
    """Return what matters of an event."""
    if isinstance(value, list):
        return [keep(item) for item in value]
    if not isinstance(value, dict):
        return value
    return {key: item if key == "rate_limit_info" else keep(item) for key, item in value.items() if key in KEPT}


def record(claude: str) -> Iterator[str]:
    """Yield a line for each scenario and output format."""
    version = subprocess.run([claude, "--version"], capture_output=True, text=True, check=True).stdout.split()[0]

    def try_one(job: tuple[str, str]) -> str:
        name, output_format = job
        with tempfile.TemporaryDirectory() as folder:
            code, lines = run_cli(claude, SCENARIOS[name], output_format, Path(folder))
        events = [json.loads(line) if line.startswith("{") else line for line in lines]
        kept = [keep(event) for event in events if not (isinstance(event, dict) and event["type"] == "user")]
        head = {"scenario": name, "format": output_format, "version": version, "code": code}
        return json.dumps({**head, "lines": kept, "time": int(time.time())}, ensure_ascii=False)

    with ThreadPoolExecutor(3) as executor:
        yield from executor.map(try_one, [(name, form) for name in SCENARIOS for form in FORMATS])


if __name__ == "__main__":
    for line in record(sys.argv[1]):
        print(line, flush=True)
