"""The main job with the real Claude Code CLI: a scripted Messages API on 127.0.0.1 plays the model.

The CLI is looked for in `.claude-cli/` of the project, where `.ci/run` installs it, and then on the PATH. It gets a
home of its own and a clean environment, and never a credential.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import sqlite3
import sys
import time
from contextlib import closing
from typing import Any

import pytest
from scripted_api import Conversation, Refuse, Reply, Say, ScriptedApi, UseTool, completes_tasks, usage_limit
from support import SCRIPT, Workspace, own_processes, wait_until

LOCAL_CLI = SCRIPT.parent / ".claude-cli" / "node_modules" / ".bin" / "claude"
CLAUDE = str(LOCAL_CLI) if LOCAL_CLI.exists() else shutil.which("claude")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        CLAUDE is None, reason="the claude CLI is not installed (npm install @anthropic-ai/claude-code)"
    ),
    pytest.mark.timeout(300),
]

STREAMS = (
    ("Stream-A", "foundation", 3),
    ("Stream-B", "parallel", 3),
    ("Stream-C", "parallel", 3),
    ("Stream-D", "integration", 2),
)


def make_streams(workspace: Workspace) -> dict[str, list[str]]:
    """Add the streams, eleven tasks in three phases; return the tasks of each."""
    return {
        stream: [
            workspace.database.add_task(stream, streamName=f"{stream} name", streamPhase=phase) for _ in range(tasks)
        ]
        for stream, phase, tasks in STREAMS
    }


def use_real_cli(workspace: Workspace, api: ScriptedApi) -> dict[str, str]:
    """Put the real CLI in the place of the script, and return what it needs to reach the scripted model."""
    workspace.claude.unlink()
    workspace.claude.symlink_to(str(CLAUDE))
    return {
        "ANTHROPIC_BASE_URL": api.url,
        "ANTHROPIC_API_KEY": "dummy",
        "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
        "ORCHESTRATE_START_POLL_INTERVAL": "600",
    }


def test_eleven_tasks_in_three_phases_are_completed_by_the_workers_themselves(workspace: Workspace) -> None:
    tasks = make_streams(workspace)
    with ScriptedApi(completes_tasks(tasks)) as api:
        begin = time.monotonic()
        done = workspace.run("start", env=use_real_cli(workspace, api), timeout=240)
        took = time.monotonic() - begin
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    assert done.stdout.splitlines()[-1] == "all complete: 4 streams, 11 tasks"
    with closing(sqlite3.connect(workspace.database.path)) as connection:
        assert connection.execute("SELECT DISTINCT status FROM tasks").fetchall() == [("completed",)]
    ends = workspace.events("worker_ended")
    assert [(end["exit_code"], end["verdict"]) for end in ends] == [(0, "complete")] * 4
    order = [event["stream"] for event in workspace.events("worker_started")]
    assert (order[0], set(order[1:3]), order[3]) == ("Stream-A", {"Stream-B", "Stream-C"}, "Stream-D")
    assert own_processes(workspace.root) == []
    log = (workspace.state / "logs" / "Stream-B.log").read_text()
    assert "Bash  " in log
    assert "ended after" in log
    own = sum(end["seconds"] for end in ends)
    print(f"\n{done.stdout}eleven tasks took {took:.1f} s; the workers' own times add up to {own:.1f} s")


# A server of the Model Context Protocol that has one tool, as Task Copilot's has.
SERVER = """\
import json, sys
ANSWERS = {
    "initialize": {"protocolVersion": "2024-11-05", "capabilities": {"tools": {}},
                   "serverInfo": {"name": "task-copilot", "version": "1"}},
    "tools/list": {"tools": [{"name": "task_update", "description": "-", "inputSchema": {"type": "object"}}]},
}
for message in map(json.loads, sys.stdin):
    if "id" in message:
        answer = {"jsonrpc": "2.0", "id": message["id"], "result": ANSWERS.get(message["method"], {})}
        print(json.dumps(answer), flush=True)
"""


def test_parallel_streams_work_in_worktrees_and_integration_merges_them(workspace: Workspace) -> None:
    tasks = make_streams(workspace)
    workspace.make_repository("README.md")
    (workspace.root / ".claude" / "server.py").write_text(SERVER)
    (workspace.root / ".claude" / "commands").mkdir()
    (workspace.root / ".claude" / "commands" / "continue.md").write_text("Go on with $ARGUMENTS.\n")
    server = {"command": sys.executable, "args": [str(workspace.root / ".claude" / "server.py")]}
    (workspace.root / ".mcp.json").write_text(json.dumps({"mcpServers": {"task-copilot": server}}))
    (workspace.root / ".git" / "info" / "exclude").write_text(".mcp.json\n.claude/\nparts.json\n")
    completes = completes_tasks({stream: ["the commit or the merge", *ids] for stream, ids in tasks.items()})

    def respond(conversation: Conversation) -> Reply:
        branches = re.findall(r"^- (stream/\S+) \(", conversation.prompt, re.M)
        commit = f"echo x > {conversation.stream_id}.md && git add . && git commit -qm {conversation.stream_id}"
        merge = " && ".join(f"git merge -q --no-ff --no-edit {branch}" for branch in branches)
        return completes(conversation) if conversation.tool_results else bash(merge or commit)

    with ScriptedApi(respond) as api:
        done = workspace.run("start", env=use_real_cli(workspace, api), timeout=240)
        tools = {conversation.stream_id: conversation.tools for conversation in api.requests}
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    assert done.stdout.splitlines()[-1] == "all complete: 4 streams, 11 tasks"
    assert all("mcp__task-copilot__task_update" in names for names in tools.values())
    for stream in "BC":
        init = read_init(workspace, f"Stream-{stream}")
        assert init["cwd"] == str(workspace.root / ".claude" / "worktrees" / f"Stream-{stream}")
        assert "continue" in init["slash_commands"]
    assert sorted(workspace.git("ls-files").split()) == ["README.md", "Stream-A.md", "Stream-B.md", "Stream-C.md"]
    assert workspace.git("status", "--porcelain", "--ignored").split("\n")[:-1] == [
        "!! .claude/", "!! .mcp.json", "!! parts.json"
    ]  # fmt: skip
    graph = workspace.git("log", "--graph", "--topo-order", "--format=%s")
    assert graph == MERGED
    print(f"\n{done.stdout}{graph}")


MERGED = """\
*   Merge branch 'stream/Stream-C'
|\\  
| * Stream-C
* |   Merge branch 'stream/Stream-B'
|\\ \\  
| |/  
|/|   
| * Stream-B
|/  
* Stream-A
* Begin
"""  # noqa: W291 - git ends its lines so


def read_init(workspace: Workspace, stream: str) -> dict[str, Any]:
    """Return what the CLI said of itself when it began to work on a stream."""
    lines = (workspace.state / "logs" / f"{stream}.jsonl").read_text().splitlines()
    (init,) = (event for event in map(json.loads, lines) if event.get("subtype") == "init")
    return dict(init)


def test_stop_leaves_nothing_of_a_worker_in_the_middle_of_a_tool_call(workspace: Workspace) -> None:
    workspace.database.add_stream("Stream-A")

    def respond(conversation: Conversation) -> Reply:
        return bash("sleep 1000") if not conversation.tool_results else bash("true")

    with ScriptedApi(respond) as api:
        run = workspace.popen("start", env=use_real_cli(workspace, api))
        wait_until(lambda: "sleep" in commands(workspace), "the tool call", seconds=60)
        status = workspace.run("status")
        assert f"Working (PID: {workspace.pid('Stream-A')})" in status.stdout
        stopped = workspace.run("stop")
        assert (stopped.returncode, stopped.stderr) == (0, "")
        assert run.wait(timeout=10) == 143
    assert own_processes(workspace.root) == []


def test_a_worker_killed_in_a_tool_call_leaves_nothing_and_is_restarted(workspace: Workspace) -> None:
    (task,) = make_streams(workspace)["Stream-A"][:1]
    workspace.database.execute("DELETE FROM tasks WHERE id != ?", task)
    completes = completes_tasks({"Stream-A": [task]})

    def respond(conversation: Conversation) -> Reply:
        return completes(conversation) if "This is a restart" in conversation.prompt else bash("sleep 1000")

    with ScriptedApi(respond) as api:
        run = workspace.popen("start", env=use_real_cli(workspace, api))
        wait_until(lambda: "sleep" in commands(workspace), "the tool call", seconds=60)
        (sleeper,) = (process for process in own_processes(workspace.root) if process.name() == "sleep")
        os.kill(workspace.pid("Stream-A"), 9)
        out, _ = run.communicate(timeout=60)
    assert run.returncode == 0, out
    assert not sleeper.is_running()
    assert "Stopping processes of Stream-A: the worker ended and left them running" in out
    assert "Restarting worker for Stream-A (1/10) in 1s: killed by SIGKILL" in out


def use_account(workspace: Workspace, api: ScriptedApi) -> dict[str, str]:
    """The same, as an account with usage limits: with an API key the CLI knows none."""
    environment = use_real_cli(workspace, api)
    del environment["ANTHROPIC_API_KEY"]
    return {**environment, "CLAUDE_CODE_OAUTH_TOKEN": "dummy"}


@pytest.mark.parametrize("output_format", ["stream-json", "text"])
def test_a_usage_limit_pauses_the_run_until_the_reset(workspace: Workspace, output_format: str) -> None:
    tasks = make_streams(workspace)
    workspace.database.execute("DELETE FROM tasks WHERE metadata NOT LIKE '%Stream-B%'")
    completes = completes_tasks(tasks)
    # In text the CLI says the minute alone; far enough ahead that the first request comes before it on a slow machine.
    until = int(time.time()) + 20 if output_format == "stream-json" else int(time.time() + 20) // 60 * 60 + 60
    seen: list[float] = []

    def respond(conversation: Conversation) -> Reply:
        seen.append(time.time())
        return completes(conversation) if time.time() >= until else usage_limit(until)

    with ScriptedApi(respond) as api:
        environment = use_account(workspace, api)
        done = workspace.run("start", "--output-format", output_format, env=environment, timeout=240)
    assert done.returncode == 0, done.stdout
    (paused,) = workspace.events("run_paused")
    assert paused["reason"].startswith("You've hit your session limit · resets ")
    first, second = workspace.events("worker_started")
    assert second["clock"] >= paused["clock"] + paused["delay"]
    assert [end["verdict"] for end in workspace.events("worker_ended")] == ["paused", "complete"]
    assert [end["restarts"] for end in workspace.events("worker_ended")] == [0, 0]
    assert (len([moment for moment in seen if moment < until]), first["attempt"]) == (1, 1)


def test_an_overloaded_api_is_the_clis_own_to_retry(workspace: Workspace) -> None:
    tasks = make_streams(workspace)
    workspace.database.execute("DELETE FROM tasks WHERE metadata NOT LIKE '%Stream-B%'")
    completes, calls = completes_tasks(tasks), iter(range(1000))

    def respond(conversation: Conversation) -> Reply:
        busy = Refuse(529, "overloaded_error", "Overloaded")
        return busy if next(calls) < 2 else completes(conversation)

    with ScriptedApi(respond) as api:
        done = workspace.run("start", env=use_real_cli(workspace, api), timeout=120)
    assert done.returncode == 0, done.stdout
    assert len(workspace.events("worker_started")) == 1
    log = (workspace.state / "logs" / "Stream-B.log").read_text()
    assert "  retry 1/10 in 0." in log
    assert ": overloaded (529)" in log


def test_a_refused_login_fails_at_once(workspace: Workspace) -> None:
    make_streams(workspace)
    with ScriptedApi(lambda _: Refuse(401, "authentication_error", "invalid")) as api:
        done = workspace.run("start", env=use_account(workspace, api), timeout=120)
    assert done.returncode == 1
    assert re.search(r"Stream-A failed: exit code 1: (Not logged in|Failed to authenticate)", done.stdout)
    assert "Stream-B never ran: it waits for Stream-A" in done.stdout
    assert len(workspace.events("worker_started")) == 1


def test_a_tool_call_that_never_returns_is_ended_by_the_stall_timeout(workspace: Workspace) -> None:
    tasks = make_streams(workspace)
    workspace.database.execute("DELETE FROM tasks WHERE metadata NOT LIKE '%Stream-B%'")
    completes = completes_tasks(tasks)

    def respond(conversation: Conversation) -> Reply:
        if "This is a restart" in conversation.prompt:
            return completes(conversation)
        return Say("I was stopped.") if conversation.tool_results else bash("sleep 1000")

    with ScriptedApi(respond) as api:
        done = workspace.run("start", "--stall-timeout", "0.5", env=use_real_cli(workspace, api), timeout=200)
    assert done.returncode == 0, done.stdout
    assert "Restarting worker for Stream-B (1/10) in 1s: stopped: it gave no sign of life" in done.stdout
    assert own_processes(workspace.root) == []


def test_a_budget_ends_the_run(workspace: Workspace) -> None:
    tasks = make_streams(workspace)
    with ScriptedApi(completes_tasks(tasks)) as api:
        done = workspace.run("start", "--budget", "0.0125", env=use_real_cli(workspace, api), timeout=120)
    assert done.returncode == 1
    assert "Stream-B is not complete: the budget of $0.01 is spent" in done.stdout
    (end,) = workspace.events("worker_ended")
    assert (end["stream"], 0 < end["cost"] < 0.0125) == ("Stream-A", True)


def bash(command: str) -> UseTool:
    """Return a tool call of the model's."""
    return UseTool("Bash", {"command": command, "description": "a step"})


def commands(workspace: Workspace) -> set[str]:
    """Return the names of the processes that the workers run."""
    return {process.name() for process in own_processes(workspace.root) if process.is_running()}
