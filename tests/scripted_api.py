"""A scripted Anthropic Messages API on 127.0.0.1: it plays the model, the real Claude Code CLI does the rest.

A script is one function from the conversation so far to the next reply: `Say` ends the turn, `UseTool` asks
for one tool call, whose result the next conversation holds, `Refuse` is an HTTP error. Every request carries
the whole conversation, so a script needs no state, and one server plays any number of workers. Every request
has a thread, so a script may block, and its worker waits.

Newer versions of the CLI send the tools of MCP servers only once the model has asked for them with `ToolSearch`. The
server does that for a script that wants such a tool, and the script does not see it.
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
import sys
import threading
import uuid
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Callable, Dict, Mapping, NamedTuple, Sequence, Union

Json = Dict[str, Any]


class Say(NamedTuple):
    text: str
    headers: Mapping[str, str] = {}


class UseTool(NamedTuple):
    name: str
    input: Mapping[str, Any]
    headers: Mapping[str, str] = {}


class Refuse(NamedTuple):
    status: int
    error_type: str
    message: str
    headers: Mapping[str, str] = {}


Reply = Union[Say, UseTool, Refuse]
Respond = Callable[["Conversation"], Reply]


class ToolResult(NamedTuple):
    text: str
    is_error: bool


@dataclass(frozen=True)
class Conversation:
    """What the CLI sent: the request's body, and its HTTP headers with names in lower case."""

    body: Json
    headers: Mapping[str, str]

    @property
    def prompt(self) -> str:
        """The first user message, without the reminders that the CLI adds."""
        first = next(message for message in self.body["messages"] if message["role"] == "user")
        texts = [block["text"] for block in _blocks(first["content"]) if block["type"] == "text"]
        return "\n".join(text for text in texts if not text.startswith("<system-reminder>"))

    @property
    def stream_id(self) -> str:
        """The stream that an orchestrator's prompt names; IndexError when it names none."""
        return str(re.findall(r"^(?:- Stream ID:|Begin by running: /continue) *(\S+)", self.prompt, re.M)[0])

    @property
    def tool_results(self) -> list[ToolResult]:
        blocks = [block for message in self.body["messages"] for block in _blocks(message["content"])]
        searches = {b["id"] for b in blocks if b["type"] == "tool_use" and b["name"] == "ToolSearch"}
        results = [b for b in blocks if b["type"] == "tool_result" and b["tool_use_id"] not in searches]
        return [_tool_result(block) for block in results]

    @property
    def tools(self) -> list[str]:
        return [tool["name"] for tool in self.body.get("tools") or []]


class ScriptedApi(ThreadingHTTPServer):
    """Serve `respond` while the context lasts; the end of it raises what a script raised.

    Requests without tools are the CLI's own housekeeping: neither `requests` nor the script sees them.
    """

    request_queue_size = 64

    def __init__(self, respond: Respond) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.respond = respond
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.requests: list[Conversation] = []
        self.failures: list[BaseException] = []

    def handle_error(self, *_: object) -> None:
        error = sys.exc_info()[1]
        # A client that hangs up is a worker that was stopped, which is what many tests do.
        if error is not None and not isinstance(error, ConnectionError):
            self.failures.append(error)

    def __enter__(self) -> ScriptedApi:
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, _kind: object, error: object, _traceback: object) -> None:
        self.shutdown()
        self.server_close()
        if error is None and self.failures:
            raise self.failures[0]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: ScriptedApi

    def do_HEAD(self) -> None:
        self._send(200, b"", {})

    def do_GET(self) -> None:
        self._send(200, b"{}", {})

    def do_POST(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        content = self.rfile.read(length)
        if len(content) < length:
            raise ConnectionError("the client hung up in the middle of its request")
        if self.path.partition("?")[0] != "/v1/messages":
            self._send(200, b'{"input_tokens": 100}', {})  # what count_tokens asks for; no one else reads it
            return
        body = json.loads(content)
        conversation = Conversation(body, {name.lower(): value for name, value in self.headers.items()})
        if conversation.tools:
            self.server.requests.append(conversation)
        try:
            reply = self.server.respond(conversation) if conversation.tools else Say("Noted.")
        except Exception as error:
            # Without an answer, or with a status such as 500, the CLI would retry for minutes.
            self._send_reply(Refuse(400, "invalid_request_error", repr(error)), body)
            raise
        if isinstance(reply, UseTool) and reply.name not in conversation.tools and "ToolSearch" in conversation.tools:
            reply = UseTool("ToolSearch", {"query": f"select:{reply.name}"}, reply.headers)
        self._send_reply(reply, body)

    def _send_reply(self, reply: Reply, body: Json) -> None:
        if isinstance(reply, Refuse):
            error = {"type": reply.error_type, "message": reply.message}
            self._send(reply.status, json.dumps({"type": "error", "error": error}).encode(), reply.headers)
            return
        message = _message(reply, body["model"])
        if body.get("stream"):
            self._send(200, _events(message), {"Content-Type": "text/event-stream", **reply.headers})
        else:
            self._send(200, json.dumps(message).encode(), reply.headers)

    def _send(self, status: int, content: bytes, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        # Connections are not kept alive, so that no handler thread outlives its worker's request.
        own = {"Content-Type": "application/json", "Content-Length": str(len(content)), "Connection": "close"}
        for name, value in {**own, "Request-Id": f"req_{uuid.uuid4().hex}", **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        """Keep the tests' stderr clean."""


def usage_limit(resets_at: int, claim: str = "five_hour") -> Refuse:
    """The usage limit until `resets_at`, in epoch seconds, as a subscriber meets it: exit 1 at once.

    A subscriber has CLAUDE_CODE_OAUTH_TOKEN, any text; with an API key, the CLI retries for minutes.
    """
    facts = {"status": "rejected", "reset": str(resets_at), "representative-claim": claim}
    headers = {f"anthropic-ratelimit-unified-{name}": value for name, value in facts.items()}
    return Refuse(429, "rate_limit_error", "Usage limit reached", headers)


def completes_tasks(tasks_of_stream: Mapping[str, Sequence[str]]) -> Respond:
    """A worker that completes the tasks of its stream, in order, one `Bash` call each, then sums up."""

    def respond(conversation: Conversation) -> Reply:
        task_ids = tasks_of_stream[conversation.stream_id]
        results = conversation.tool_results
        if results and results[-1].is_error:
            raise RuntimeError(f"a tool of stream {conversation.stream_id} failed: {results[-1].text}")
        if len(results) < len(task_ids):
            return set_status(task_ids[len(results)], "completed")
        return Say(f"Stream {conversation.stream_id} is finished: {len(task_ids)} tasks completed.")

    return respond


def set_status(task_id: str, status: str) -> UseTool:
    """A `Bash` call that sets a task's status in the worker's database; without such a task it fails."""
    quoted_id = "'" + task_id.replace("'", "''") + "'"
    now = "strftime('%Y-%m-%dT%H:%M:%fZ', 'now')"
    sql = f"UPDATE tasks SET status = '{status}', updated_at = {now} WHERE id = {quoted_id}"
    database = '"$TASK_DB_PATH/$WORKSPACE_ID/tasks.db"'
    if shutil.which("sqlite3") is not None:
        update = f"sqlite3 -cmd '.timeout 5000' {database} {shlex.quote(f'{sql}; SELECT changes()')}"
    else:
        connect = "import sqlite3, sys; database = sqlite3.connect(sys.argv[1], 5, isolation_level=None)"
        script = shlex.quote(f"{connect}; print(database.execute(sys.argv[2]).rowcount)")
        update = f"{shlex.quote(sys.executable)} -c {script} {database} {shlex.quote(sql)}"
    return UseTool("Bash", {"command": f'test "$({update})" = 1 && echo {status}'})


def nap(seconds: float) -> UseTool:
    """A `Bash` call that takes so long; the CLI refuses a bare `sleep`."""
    command = f"{shlex.quote(sys.executable)} -c 'import time; time.sleep({seconds})'"
    return UseTool("Bash", {"command": command, "description": "a step", "timeout": 600_000})


def _blocks(content: str | list[Json]) -> list[Json]:
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


def _tool_result(block: Json) -> ToolResult:
    text = "\n".join(part.get("text", "") for part in _blocks(block.get("content") or ""))
    return ToolResult(text, block.get("is_error", False))


def _message(reply: Say | UseTool, model: str) -> Json:
    if isinstance(reply, Say):
        stop_reason, block = "end_turn", {"type": "text", "text": reply.text}
    else:
        call: Json = {"id": f"toolu_{uuid.uuid4().hex}", "name": reply.name, "input": reply.input}
        stop_reason, block = "tool_use", {"type": "tool_use", **call}
    head = {"id": f"msg_{uuid.uuid4().hex}", "type": "message", "role": "assistant", "model": model}
    usage = {"input_tokens": 2000, "output_tokens": 100}
    return {**head, "content": [block], "stop_reason": stop_reason, "stop_sequence": None, "usage": usage}


def _events(message: Json) -> bytes:
    """The message as server-sent events, its one content block in one piece."""
    block: Json = message["content"][0]
    if block["type"] == "text":
        empty, delta = {**block, "text": ""}, {"type": "text_delta", "text": block["text"]}
    else:
        arguments = json.dumps(block["input"])
        empty, delta = {**block, "input": {}}, {"type": "input_json_delta", "partial_json": arguments}
    events: dict[str, Json] = {
        "message_start": {"message": {**message, "content": [], "stop_reason": None}},
        "content_block_start": {"index": 0, "content_block": empty},
        "content_block_delta": {"index": 0, "delta": delta},
        "content_block_stop": {"index": 0},
        "message_delta": {"delta": {"stop_reason": message["stop_reason"]}, "usage": message["usage"]},
        "message_stop": {},
    }
    parts = (f"event: {name}\ndata: {json.dumps({'type': name, **events[name]})}\n\n" for name in events)
    return "".join(parts).encode()
