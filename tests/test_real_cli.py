"""The main job with the real Claude Code CLI: a scripted Messages API on 127.0.0.1 plays the model.

The newest CLI is looked for in `.claude-cli/newest/` of the project, where `.ci/run` installs it, and then on the PATH;
what depends on words is tried with the one in `.claude-cli/2.1.197/` too. Each gets a home of its own and a clean
environment, and never a credential.
"""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import sqlite3
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from cli_endings import FORMATS, SCENARIOS, run_cli
from scripted_api import (
    Conversation,
    Refuse,
    Reply,
    Say,
    ScriptedApi,
    UseTool,
    completes_tasks,
    nap,
    set_status,
    usage_limit,
)
from support import SCRIPT, Workspace, hasten, is_running, own_processes, wait_until
from test_endings import read_ending

from orchestrate import find_cause


def find_cli(version: str) -> str | None:
    local = SCRIPT.parent / ".claude-cli" / version / "node_modules" / ".bin" / "claude"
    return str(local) if local.exists() else shutil.which("claude") if version == "newest" else None


def with_cli(*versions: str) -> pytest.MarkDecorator:
    """Try a test with these versions, each by the path of its CLI."""
    how = "npm install --prefix .claude-cli/{0} @anthropic-ai/claude-code@{1}"
    marks = {
        v: pytest.mark.skipif(find_cli(v) is None, reason=how.format(v, "latest" if v == "newest" else v))
        for v in versions
    }
    return pytest.mark.parametrize("claude", [pytest.param(find_cli(v), id=v, marks=marks[v]) for v in versions])


pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
newest, both = with_cli("newest"), with_cli("newest", "2.1.197")

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


def use_real_cli(workspace: Workspace, api: ScriptedApi, claude: str) -> dict[str, str]:
    """Put the real CLI in the place of the script, and return what it needs to reach the scripted model."""
    workspace.claude.unlink()
    workspace.claude.symlink_to(claude)
    return {
        "ANTHROPIC_BASE_URL": api.url,
        "ANTHROPIC_API_KEY": "dummy",
        "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
        "ORCHESTRATE_START_POLL_INTERVAL": "600",
        "TMPDIR": str(workspace.root.parent),  # where it leaves some folders behind
        "CLAUDE_CODE_TMPDIR": str(workspace.root.parent),
    }


@newest
def test_eleven_tasks_in_three_phases_are_completed_by_the_workers(workspace: Workspace, claude: str) -> None:
    tasks = make_streams(workspace)
    with ScriptedApi(completes_tasks(tasks)) as api:
        begin = time.monotonic()
        done = workspace.run("start", env=use_real_cli(workspace, api, claude), timeout=240)
        took = time.monotonic() - begin
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    assert "  all complete: 4 streams, 11 tasks\n" in done.stdout
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


# A server of the Model Context Protocol that has the tool of Task Copilot's on which everything depends.
SERVER = """\
import json, os, sqlite3, sys
PARTS = {"id": {"type": "string"}, "status": {"type": "string"}}
ANSWERS = {
    "initialize": {"protocolVersion": "2024-11-05", "capabilities": {"tools": {}},
                   "serverInfo": {"name": "task-copilot", "version": "1"}},
    "tools/list": {"tools": [{"name": "task_update", "description": "Update a task.",
                              "inputSchema": {"type": "object", "properties": PARTS}}]},
}
def update(id, status):
    path = os.path.join(os.environ["TASK_DB_PATH"], os.environ["WORKSPACE_ID"], "tasks.db")
    database = sqlite3.connect(path, timeout=20, isolation_level=None)
    changed = database.execute("UPDATE tasks SET status = ? WHERE id = ?", (status, id)).rowcount
    return {"content": [{"type": "text", "text": f"{changed} updated"}], "isError": changed != 1}
for message in map(json.loads, sys.stdin):
    if "id" in message:
        is_call = message["method"] == "tools/call"
        result = update(**message["params"]["arguments"]) if is_call else ANSWERS.get(message["method"], {})
        print(json.dumps({"jsonrpc": "2.0", "id": message["id"], "result": result}), flush=True)
"""


@newest
def test_parallel_streams_work_in_worktrees_and_integration_merges_them(workspace: Workspace, claude: str) -> None:
    tasks = make_streams(workspace)
    workspace.make_repository("README.md")
    (workspace.root / ".claude" / "server.py").write_text(SERVER)
    (workspace.root / ".claude" / "commands").mkdir()
    (workspace.root / ".claude" / "commands" / "continue.md").write_text("Go on with $ARGUMENTS.\n")
    server = {"command": sys.executable, "args": [str(workspace.root / ".claude" / "server.py")]}
    (workspace.root / ".mcp.json").write_text(json.dumps({"mcpServers": {"task-copilot": server}}))
    (workspace.root / ".git" / "info" / "exclude").write_text(".mcp.json\n.claude/\nparts.json\n")

    def respond(conversation: Conversation) -> Reply:
        branches = re.findall(r"^- (refs/heads/stream/\S+) \(", conversation.prompt, re.M)
        commit = f"echo x > {conversation.stream_id}.md && git add . && git commit -qm {conversation.stream_id}"
        merge = " && ".join(f"git merge -q --no-ff --no-edit {branch}" for branch in branches)
        results, ids = conversation.tool_results, tasks[conversation.stream_id]
        assert not any(result.is_error for result in results), results
        if not results:
            return bash(merge or commit)
        if len(results) > len(ids):
            return Say("All is done.")
        return UseTool("mcp__task-copilot__task_update", {"id": ids[len(results) - 1], "status": "completed"})

    with ScriptedApi(respond) as api:
        done = workspace.run("start", env=use_real_cli(workspace, api, claude), timeout=240)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    assert "  all complete: 4 streams, 11 tasks\n" in done.stdout
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
*   Merge branch 'refs/heads/stream/Stream-C'
|\\  
| * Stream-C
* |   Merge branch 'refs/heads/stream/Stream-B'
|\\ \\  
| |/  
|/|   
| * Stream-B
|/  
* Stream-A
* Begin
"""  # noqa: W291 - git ends its lines so


SETUP = """\
#!/bin/sh -e
{python} -m venv --without-pip .venv
echo $PWD/vendor > "$(.venv/bin/python -c 'import site; print(site.getsitepackages()[0])')/vendor.pth"
"""


@newest
def test_two_parallel_streams_run_the_projects_own_tests_in_their_worktrees(workspace: Workspace, claude: str) -> None:
    """They need a `.env`, an installed package, and what the project's settings for claude say."""
    workspace.make_repository("README.md")
    files = {
        "vendor/greet.py": "HELLO = 'hello'\n",
        "test_it.py": "import greet, os, pathlib\n"
        "assert greet.HELLO == 'hello' and 'KEY' in pathlib.Path('.env').read_text()\n"
        "assert os.environ['FROM_SETTINGS'] == 'yes'\n",
        ".worktreeinclude": ".env\n",
        ".claude/orchestrator-setup": SETUP.format(python=sys.executable),
    }
    for name, text in files.items():
        (workspace.root / name).parent.mkdir(exist_ok=True)
        (workspace.root / name).write_text(text)
    (workspace.root / ".claude" / "orchestrator-setup").chmod(0o755)
    workspace.git("add", *files)
    workspace.git("commit", "--quiet", "-m", "A project with tests")
    (workspace.root / ".git" / "info" / "exclude").write_text(".env\n.venv\n.claude\nparts.json\n__pycache__\n")
    (workspace.root / ".env").write_text("KEY=1\n")
    (workspace.root / ".claude" / "settings.json").write_text(json.dumps({"env": {"FROM_SETTINGS": "yes"}}))
    tasks = {s: [workspace.database.add_task(s, streamPhase="parallel")] for s in ("Stream-B", "Stream-C")}

    def respond(conversation: Conversation) -> Reply:
        results, stream = conversation.tool_results, conversation.stream_id
        if not results:
            return bash(f".venv/bin/python test_it.py && echo x > {stream}.md && git add . && git commit -qm {stream}")
        if len(results) == 1 and not results[0].is_error:
            return set_status(tasks[stream][0], "completed")
        return Say("The tests pass." if len(results) == 2 else "The project's tests do not run here.")

    with ScriptedApi(respond) as api:
        done = workspace.run("start", "--max-restarts", "1", env=use_real_cli(workspace, api, claude), timeout=240)
    print(f"\n{done.stdout}{done.stderr}")
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    assert len(workspace.events("worker_started")) == 2
    assert workspace.run("merge").returncode == 0
    assert sorted(path.name for path in workspace.root.glob("Stream-*")) == ["Stream-B.md", "Stream-C.md"]
    print((workspace.state / "logs" / "Stream-B.log").read_text())


def read_init(workspace: Workspace, stream: str) -> dict[str, Any]:
    """Return what the CLI said of itself when it began to work on a stream."""
    lines = (workspace.state / "logs" / f"{stream}.jsonl").read_text().splitlines()
    (init,) = (event for event in map(json.loads, lines) if event.get("subtype") == "init")
    return dict(init)


@newest
def test_stop_leaves_nothing_of_a_worker_in_the_middle_of_a_tool_call(workspace: Workspace, claude: str) -> None:
    workspace.database.add_stream("Stream-A")

    def respond(conversation: Conversation) -> Reply:
        return nap(1000) if not conversation.tool_results else bash("true")

    with ScriptedApi(respond) as api:
        run = workspace.popen("start", env=use_real_cli(workspace, api, claude))
        wait_until(lambda: find_naps(workspace), "the tool call", seconds=60)
        status = workspace.run("status")
        assert f"Working (PID: {workspace.pid('Stream-A')})" in status.stdout
        stopped = workspace.run("stop")
        assert (stopped.returncode, stopped.stderr) == (0, "")
        assert run.wait(timeout=10) == 143
    assert own_processes(workspace.root) == []


@newest
def test_a_worker_killed_in_a_tool_call_leaves_nothing_and_is_restarted(workspace: Workspace, claude: str) -> None:
    (task,) = make_streams(workspace)["Stream-A"][:1]
    workspace.database.execute("DELETE FROM tasks WHERE id != ?", task)
    completes = completes_tasks({"Stream-A": [task]})

    def respond(conversation: Conversation) -> Reply:
        return completes(conversation) if "This is a restart" in conversation.prompt else nap(1000)

    with ScriptedApi(respond) as api:
        run = workspace.popen("start", env=use_real_cli(workspace, api, claude))
        wait_until(lambda: find_naps(workspace), "the tool call", seconds=60)
        (sleeper,) = find_naps(workspace)
        os.kill(workspace.pid("Stream-A"), 9)
        out, _ = run.communicate(timeout=60)
    assert run.returncode == 0, out
    assert not is_running(sleeper.pid)
    assert "Stopping processes of Stream-A: the worker ended and left them running" in out
    assert "Restarting worker for Stream-A (1/10) in 1s: killed by SIGKILL" in out


def use_account(workspace: Workspace, api: ScriptedApi, claude: str) -> dict[str, str]:
    """The same, as an account with usage limits: with an API key the CLI knows none."""
    environment = use_real_cli(workspace, api, claude)
    del environment["ANTHROPIC_API_KEY"]
    return {**environment, "CLAUDE_CODE_OAUTH_TOKEN": "dummy"}


@both
@pytest.mark.parametrize("output_format", FORMATS)
def test_a_usage_limit_pauses_the_run_until_the_reset(workspace: Workspace, claude: str, output_format: str) -> None:
    """In text nothing tells the reset: the pause, here shortened, ends before it, and the next one is twice as long."""
    tasks = make_streams(workspace)
    workspace.database.execute("DELETE FROM tasks WHERE metadata NOT LIKE '%Stream-B%'")
    completes = completes_tasks(tasks)
    is_text = output_format == "text"
    resets: list[int] = []  # what each refused request was told
    seen: list[float] = []

    def respond(conversation: Conversation) -> Reply:
        """Refuse for 20 seconds from the first request; in text until there were two pauses, however slow the CLI."""
        now = time.time()
        seen.append(now)
        is_over = len(workspace.events("run_paused")) >= 2 if is_text else bool(resets) and now >= resets[0]
        if is_over:
            return completes(conversation)
        resets.append(resets[0] if resets and not is_text else int(now) + 20)
        return usage_limit(resets[-1])

    script = hasten(workspace, LIMIT_PAUSE="8.0")
    with ScriptedApi(respond) as api:
        environment = use_account(workspace, api, claude)
        words = ("start", "--output-format", output_format)
        done = workspace.run(*words, env=environment, timeout=240, script=script)
    assert done.returncode == 0, done.stdout
    pauses, started = workspace.events("run_paused"), workspace.events("worker_started")
    assert all(pause["reason"].startswith("You've hit your ") for pause in pauses)
    assert all(next_["clock"] >= p["clock"] + p["delay"] for p, next_ in zip(pauses, started[1:]))
    if not is_text:
        assert len([moment for moment in seen if moment < resets[0]]) == 1
    else:
        assert [round(pause["delay"]) for pause in pauses] == [8, 16]
    verdicts = ["paused"] * len(pauses) + ["complete"]
    assert [end["verdict"] for end in workspace.events("worker_ended")] == verdicts
    assert {end["restarts"] for end in workspace.events("worker_ended")} == {0}


@both
def test_a_limit_of_a_subagent_pauses_its_stream_alone(workspace: Workspace, claude: str) -> None:
    task = workspace.database.add_task("Stream-A")
    resets: list[int] = []

    def respond(conversation: Conversation) -> Reply:
        if "SUBAGENT" in conversation.prompt[:20]:
            if not resets:  # from the first request on: however slow the CLI, it is refused once
                resets.append(int(time.time()) + 15)
            if time.time() < resets[0]:
                return usage_limit(resets[0], "seven_day_opus")
            return Say("Done.") if conversation.tool_results else set_status(task, "completed")
        if conversation.tool_results:
            return Say("I have done what I could.", ALLOWED)
        return delegate("SUBAGENT: work", model="opus")

    with ScriptedApi(respond) as api:
        done = workspace.run("start", "--max-restarts", "0", env=use_account(workspace, api, claude), timeout=120)
    assert done.returncode == 0, done.stdout
    first, last = workspace.events("worker_ended")
    assert [(end["verdict"], end["restarts"]) for end in (first, last)] == [("limited", 0), ("complete", 0)]
    assert workspace.events("run_paused") == []


ALLOWED = {"anthropic-ratelimit-unified-status": "allowed", "anthropic-ratelimit-unified-reset": "1900000000"}


def delegate(prompt: str, **more: str) -> UseTool:
    """Return the call of a subagent; with a version whose tool has the older name, it is not known."""
    given = {"description": "a part", "prompt": prompt, "subagent_type": "general-purpose", **more}
    return UseTool("Agent", given, ALLOWED)


@newest
def test_a_subagent_is_waited_for(workspace: Workspace, claude: str) -> None:
    """The CLI stops a subagent after a time and exits with 0, unless it is told to wait. A user's own word is kept."""
    tasks = {name: workspace.database.add_task(name) for name in ("Stream-A", "Stream-B")}

    def respond(conversation: Conversation) -> Reply:
        given = re.match(r"SUBAGENT of (\S+)", conversation.prompt)
        if not given:
            return Say("I wait.") if conversation.tool_results else delegate(f"SUBAGENT of {conversation.stream_id}")
        step = len(conversation.tool_results)
        return (nap(6), set_status(tasks[given[1]], "completed"), Say("Done."))[step]

    with ScriptedApi(respond) as api:
        environment = use_real_cli(workspace, api, claude)
        done = workspace.run("start", "Stream-A", "--max-restarts", "0", env=environment, timeout=120)
        assert done.returncode == 0, done.stdout
        impatient = {**environment, "CLAUDE_CODE_PRINT_BG_WAIT_CEILING_MS": "1000"}
        done = workspace.run("start", "Stream-B", "--max-restarts", "0", env=impatient, timeout=120)
    print(f"with a ceiling of one second: {done.stdout}")
    end = workspace.events("worker_ended", stream="Stream-B")[-1]
    # One that does not stop it has waited.
    assert end["verdict"] == "complete" or "it stopped its background subagent" in end["reason"]


@newest
def test_a_server_that_a_worker_leaves_running_costs_its_stream_seconds(workspace: Workspace, claude: str) -> None:
    tasks = {name: workspace.database.add_task(name, streamPhase="foundation") for name in ("Stream-A", "Stream-B")}
    server = {"command": "python3 -m http.server 0", "description": "The dev server", "run_in_background": True}

    def respond(conversation: Conversation) -> Reply:
        steps = (UseTool("Bash", server), set_status(tasks[conversation.stream_id], "completed"), Say("It is served."))
        return steps[len(conversation.tool_results)]

    with ScriptedApi(respond) as api:
        done = workspace.run("start", env=use_real_cli(workspace, api, claude), timeout=120)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    ends = workspace.events("worker_ended")
    assert [end["verdict"] for end in ends] == ["complete"] * 2
    assert max(end["seconds"] for end in ends) < 60, "each took the grace of two minutes"
    assert own_processes(workspace.root) == []
    log = "\n".join(workspace.log("Stream-A"))
    assert "Bash  python3 -m http.server 0\n  in the background: The dev server\n" in log
    print(f"with a server left running: {[end['seconds'] for end in ends]} s\n{log}")


@both
def test_a_worker_without_its_task_copilot_server_fails_with_the_remedy(workspace: Workspace, claude: str) -> None:
    workspace.database.add_task("Stream-A")
    server = {"command": sys.executable, "args": ["-c", "exit('no such database')"]}
    (workspace.root / ".mcp.json").write_text(json.dumps({"mcpServers": {"task-copilot": server}}))
    with ScriptedApi(lambda _: Say("I have no tools.")) as api:
        words = ("--claude", f"{claude} --mcp-config .mcp.json")
        done = workspace.run("start", *words, env=use_real_cli(workspace, api, claude), timeout=120)
    ends = workspace.events("worker_ended")
    assert [(end["verdict"], end["restarts"]) for end in ends] == [("restart", 0), ("failed", 0)], done.stdout
    assert ends[-1]["reason"].endswith("the MCP server task-copilot failed to start. Look why: claude mcp list")


@both
def test_a_tool_that_was_refused_and_a_budget_are_the_reason(workspace: Workspace, claude: str) -> None:
    for name in ("Stream-A", "Stream-B"):
        workspace.database.add_task(name)

    def respond(conversation: Conversation) -> Reply:
        return Say("I may not.") if conversation.tool_results else bash("npm publish")

    (workspace.root / ".claude" / "settings.json").write_text('{"permissions": {"deny": ["Bash(npm publish:*)"]}}')
    with ScriptedApi(respond) as api:
        environment = use_real_cli(workspace, api, claude)
        words = ("--max-restarts", "0")
        workspace.run("start", "Stream-A", *words, env=environment, timeout=120)
        words = (*words, "--claude", f"{claude} --max-budget-usd 0.00001")
        workspace.run("start", "Stream-B", *words, env=environment, timeout=120)
    refused, spent = (workspace.events("worker_ended", stream=name)[-1] for name in ("Stream-A", "Stream-B"))
    assert "it was not allowed to use Bash, 1 task open" in refused["reason"]
    assert (spent["verdict"], spent["cause"]) == ("failed", "BUDGET")
    assert "budget" in spent["reason"].lower()
    assert "budget_exhausted" not in spent["reason"]


@both
def test_every_end_of_this_cli_has_its_cause(tmp_path: Path, claude: str) -> None:
    """The same scenarios whose records test_endings.py reads, as this version meets them."""

    def try_one(name: str, output_format: str) -> str:
        folder = tmp_path / f"{name}-{output_format}"
        folder.mkdir()
        code, lines = run_cli(claude, SCENARIOS[name], output_format, folder)
        cause = find_cause(read_ending(folder, lines, code, time.time())).name
        is_hidden = output_format == "text" and SCENARIOS[name].cause == "MODEL_LIMIT"
        is_right = cause == ("OTHER" if is_hidden else SCENARIOS[name].cause)
        return "" if is_right else f"{name}, {output_format}: {cause}, exit code {code}: {lines[-3:]}"

    with ThreadPoolExecutor(3) as executor:
        found = [executor.submit(try_one, name, form) for name in SCENARIOS for form in FORMATS]
        assert [future.result() for future in found if future.result()] == []


@newest
def test_an_overloaded_api_is_the_clis_own_to_retry(workspace: Workspace, claude: str) -> None:
    tasks = make_streams(workspace)
    workspace.database.execute("DELETE FROM tasks WHERE metadata NOT LIKE '%Stream-B%'")
    completes, calls = completes_tasks(tasks), iter(range(1000))

    def respond(conversation: Conversation) -> Reply:
        busy = Refuse(529, "overloaded_error", "Overloaded")
        return busy if next(calls) < 2 else completes(conversation)

    with ScriptedApi(respond) as api:
        done = workspace.run("start", env=use_real_cli(workspace, api, claude), timeout=120)
    assert done.returncode == 0, done.stdout
    assert len(workspace.events("worker_started")) == 1
    log = (workspace.state / "logs" / "Stream-B.log").read_text()
    assert "  retry 1/10 in 0." in log
    assert ": overloaded (529)" in log


@both
def test_a_refused_login_fails_at_once(workspace: Workspace, claude: str) -> None:
    make_streams(workspace)
    with ScriptedApi(lambda _: Refuse(401, "authentication_error", "invalid")) as api:
        done = workspace.run("start", env=use_account(workspace, api, claude), timeout=120)
    assert done.returncode == 1
    assert re.search(r"Stream-A failed: exit code 1: (Not logged in|Failed to authenticate)", done.stdout)
    assert re.search("○ Stream-B .* Never ran\n    Why: waits for Stream-A", done.stdout)
    assert len(workspace.events("worker_started")) == 1


@both
def test_a_login_that_is_refused_once_in_a_run_is_tried_again(workspace: Workspace, claude: str) -> None:
    """The minute before the next try is shortened."""
    tasks = make_streams(workspace)
    workspace.database.execute("DELETE FROM tasks WHERE metadata LIKE '%Stream-D%' OR metadata LIKE '%Stream-C%'")
    completes = completes_tasks(tasks)

    def respond(conversation: Conversation) -> Reply:
        is_refused = conversation.stream_id == "Stream-B" and "This is a restart" not in conversation.prompt
        return Refuse(401, "authentication_error", "OAuth token has expired") if is_refused else completes(conversation)

    with ScriptedApi(respond) as api:
        environment, script = use_account(workspace, api, claude), hasten(workspace, LOGIN_PAUSE="1.0")
        done = workspace.run("start", "--max-restarts", "0", env=environment, timeout=120, script=script)
    assert done.returncode == 0, done.stdout
    assert "Trying Stream-B again in 1s: exit code 1: Failed to authenticate" in done.stdout


@newest
def test_a_tool_call_that_never_returns_is_ended_by_the_stall_timeout(workspace: Workspace, claude: str) -> None:
    tasks = make_streams(workspace)
    workspace.database.execute("DELETE FROM tasks WHERE metadata NOT LIKE '%Stream-B%'")
    completes = completes_tasks(tasks)

    def respond(conversation: Conversation) -> Reply:
        if "This is a restart" in conversation.prompt:
            return completes(conversation)
        return Say("I was stopped.") if conversation.tool_results else nap(1000)

    with ScriptedApi(respond) as api:
        done = workspace.run("start", "--stall-timeout", "0.5", env=use_real_cli(workspace, api, claude), timeout=200)
    assert done.returncode == 0, done.stdout
    assert "Restarting worker for Stream-B (1/10) in 1s: stopped: it gave no sign of life" in done.stdout
    assert own_processes(workspace.root) == []


@newest
def test_a_budget_ends_the_run(workspace: Workspace, claude: str) -> None:
    """What a worker costs by this version's prices, is measured before: the budget is that, and less than a cent."""
    tasks = make_streams(workspace)
    with ScriptedApi(completes_tasks(tasks)) as api:
        environment = use_real_cli(workspace, api, claude)
        assert workspace.run("start", "--phase", "foundation", env=environment, timeout=120).returncode == 0
        (end,) = workspace.events("worker_ended")
        workspace.database.set_status("pending", "Stream-A")
        budget = math.ceil(end["cost"] * 100) / 100
        done = workspace.run("start", "--budget", f"{budget:.2f}", env=environment, timeout=120)
    assert done.returncode == 1
    assert f"    Why: the budget of ${budget:.2f} is spent\n" in done.stdout
    assert [(end["stream"], end["verdict"]) for end in workspace.events("worker_ended")] == [
        ("Stream-A", "complete")
    ] * 2


def bash(command: str) -> UseTool:
    """Return a tool call of the model's."""
    return UseTool("Bash", {"command": command, "description": "a step"})


def find_naps(workspace: Workspace) -> list[Any]:
    """Return the processes of the workers that do nothing but wait."""
    found = [process for process in own_processes(workspace.root) if process.is_running()]
    return [p for p in found if p.cmdline()[:1] == [sys.executable] and "time.sleep(1000)" in p.cmdline()[-1]]
