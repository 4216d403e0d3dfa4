"""What is for programs keeps to its schema: `status --json`, `doctor --json`, and each line of `start --json`."""

from __future__ import annotations

import copy
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Callable, Iterator

import jsonschema  # type: ignore[import-untyped]
import pytest
from support import SCRIPT, Workspace, wait_until

from orchestrate import Cause, StopReason, StreamState, VerdictKind

SCHEMA = json.loads((Path(__file__).parent / "schema.json").read_text(encoding="utf-8"))
KINDS = [entry["$ref"].rpartition("/")[2] for entry in SCHEMA["oneOf"]]
NO_POLL = ("--poll-interval", "0.2")


def validate(value: Any, kind: str) -> None:
    """Raise where a value is not of a kind."""
    schema = {"$defs": SCHEMA["$defs"], "$ref": f"#/$defs/{kind}"}
    jsonschema.Draft202012Validator(schema).validate(value)


def read_events(text: str) -> list[dict[str, Any]]:
    """Return the lines of `start --json`, each checked against the schema of its kind."""
    events = [json.loads(line) for line in text.splitlines()]
    for event in events:
        assert event["event"] in KINDS
        validate(event, event["event"])
        jsonschema.Draft202012Validator(SCHEMA).validate(event)
    return events


def read_status(workspace: Workspace, *words: str) -> dict[str, Any]:
    """Return what `status --json` writes, checked."""
    done = workspace.run("status", "--json", *words)
    assert (done.returncode, done.stderr) == (0, "")
    status: dict[str, Any] = json.loads(done.stdout)
    validate(status, "status")
    return status


def walk_fields(schema: dict[str, Any], path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Give each field below a schema, by its path."""
    for name, field in schema.get("properties", {}).items():
        yield f"{path}.{name}", field
        yield from walk_fields(field, f"{path}.{name}")


def test_every_field_is_described() -> None:
    fields = [(kind, schema) for kind, schema in SCHEMA["$defs"].items()]
    fields += [field for kind, schema in fields for field in walk_fields(schema, kind)]
    assert len(fields) > 200
    assert [path for path, field in fields if not field.get("description")] == []


# ── Runs that hold every kind of event ────────────────────────────────────────────────────────────────────────────────


def run_to_the_end(workspace: Workspace) -> str:
    """A run with restarts, costs and a warning, that fails."""
    workspace.database.add_stream("Stream-A", "foundation", streamName="漢 \x1b[31m\u202e")
    workspace.database.add_stream("Stream-B")
    workspace.database.add_row("odd", "pending", "not JSON")
    workspace.play("cost=0.25 all", Stream_B=["cost=1 exit=1", "die=9"])
    done = workspace.run("start", "--json", "--max-restarts", "1", "--budget", "20")
    assert (done.returncode, done.stderr) == (1, "")
    return done.stdout


def run_with_branches(workspace: Workspace) -> str:
    workspace.make_repository()
    workspace.database.add_stream("Stream-A")
    workspace.play("commit=a.py write=b.py all")
    done = workspace.run("start", "--json")
    assert done.returncode == 0
    (branch,) = read_status(workspace)["streams"][0]["branches"]
    assert branch["commits_ahead"] == 1
    return done.stdout


def run_that_is_left_and_goes_on(workspace: Workspace) -> str:
    """Interrupted; taken over, while a PID file is stale; then a limit is hit, and somebody else's start is heeded."""
    workspace.database.add_stream("Stream-A")
    workspace.database.add_stream("Stream-B")
    workspace.play("all", Stream_A="until=gate limit=600")
    first = workspace.popen("start", "--json", *NO_POLL)
    workspace.wait_for_worker("Stream-A")
    wait_until(lambda: "complete" in workspace.run("status", "--json", "Stream-B").stdout, "B's end")
    workspace.check("stop", "Stream-B")
    time.sleep(1)  # two looks at the journal, in which nobody says that they were
    first.send_signal(signal.SIGINT)
    out, _ = first.communicate(timeout=20)
    (workspace.state / "pids" / "Stream-B.pid").write_text("garbage")
    second = workspace.popen("start", "--json", *NO_POLL)
    wait_until(lambda: workspace.events("worker_adopted"), "the worker to be taken over")
    asked = workspace.run("start", "Stream-B", "--json")
    assert [event["event"] for event in read_events(asked.stdout)] == ["start_requested"]
    workspace.open_gate("gate")
    wait_until(lambda: workspace.events("run_paused"), "the pause")
    status = wait_until(lambda: read_status(workspace), "a status")
    assert status["paused_until"] is not None
    assert status["streams"][0]["state"] == "paused"
    second.send_signal(signal.SIGTERM)
    return out + asked.stdout + second.communicate(timeout=20)[0]


def run_with_limits(workspace: Workspace) -> str:
    """A worker goes on beyond its limit, which costs money; another's subagent can't."""
    workspace.database.add_stream("Stream-A")
    workspace.database.add_stream("Stream-B")
    info = {"status": "rejected", "rateLimitType": "five_hour", "isUsingOverage": True}
    later = {"status": "rejected", "rateLimitType": "seven_day_opus", "resetsAt": int(time.time()) + 2}
    lines = {
        "overage": {"type": "rate_limit_event", "rate_limit_info": info},
        "limit": {"type": "rate_limit_event", "rate_limit_info": later},
    }
    (workspace.root / "lines.json").write_text(json.dumps(lines))
    workspace.play(Stream_A="print=overage all", Stream_B=["print=limit cost=0", "all"])
    done = workspace.run("start", "--json", *NO_POLL)
    assert done.returncode == 0
    return done.stdout


def run_that_waits_for_a_person(workspace: Workspace) -> str:
    workspace.database.add_stream("Stream-A")
    workspace.play("block")
    run = workspace.popen("start", "--json", *NO_POLL)
    wait_until(lambda: workspace.events("run_waiting"), "the run to wait")
    status = read_status(workspace)
    assert status["waiting"].startswith("Stream-A is blocked")
    run.send_signal(signal.SIGHUP)
    return run.communicate(timeout=20)[0]


def run_that_stops_its_workers(workspace: Workspace) -> str:
    workspace.database.add_stream("Stream-A")
    workspace.play("say=ready hang")
    run = workspace.popen("start", "--json", "--stop-on-exit", *NO_POLL)
    workspace.wait_for_worker("Stream-A")
    log = workspace.state / "logs" / "Stream-A.log"
    wait_until(lambda: log.exists() and "ready" in log.read_text(encoding="utf-8"), "the worker's word")
    run.send_signal(signal.SIGINT)
    wait_until(lambda: workspace.events("worker_stopping"), "the polite attempt")
    assert read_status(workspace)["streams"][0]["state"] == "stopping"
    run.send_signal(signal.SIGINT)
    return run.communicate(timeout=30)[0]


def run_in_trouble(workspace: Workspace) -> str:
    """The database goes away and comes back; then the folder of the PID files does."""
    workspace.database.add_stream("Stream-A")
    workspace.play("until=gate all")
    run = workspace.popen("start", "--json", *NO_POLL)
    workspace.wait_for_worker("Stream-A")
    away = workspace.database.path.with_name("away")
    workspace.database.path.rename(away)
    wait_until(lambda: workspace.events("database_unreadable"), "the trouble with the database")
    away.rename(workspace.database.path)
    wait_until(lambda: workspace.events("database_readable"), "its end")
    pids = workspace.state / "pids"
    pids.rename(pids.with_name("away"))
    pids.touch()
    wait_until(lambda: workspace.events("trouble"), "the trouble with the folder")
    pids.unlink()
    wait_until(lambda: workspace.events("trouble_over"), "its end")
    os.truncate(workspace.state / "events.jsonl", 0)
    wait_until(lambda: workspace.events("journal_folded"), "what is known, in a journal that somebody has emptied")
    workspace.open_gate("gate")
    return run.communicate(timeout=30)[0]


SCENARIOS: list[tuple[Callable[[Workspace], str], set[str]]] = [
    (run_to_the_end, {"run_started", "worker_starting", "worker_started", "worker_ended", "state", "run_ended",
                      "warning"}),
    (run_with_branches, {"worker_started", "worker_ended", "root_seen"}),
    (run_that_is_left_and_goes_on, {"run_left", "worker_adopted", "stale_pid_file", "start_requested", "run_paused",
                                    "stop_requested", "stop_taken_back"}),
    (run_that_waits_for_a_person, {"run_waiting", "run_left"}),
    (run_that_stops_its_workers, {"worker_stopping", "worker_killed", "run_left"}),
    (run_with_limits, {"overage", "worker_ended"}),
    (run_in_trouble, {"database_unreadable", "database_readable", "trouble", "trouble_over",
                      "journal_folded"}),
]  # fmt: skip


@pytest.mark.parametrize(("play", "kinds"), SCENARIOS, ids=[play.__name__ for play, _ in SCENARIOS])
def test_every_line_of_a_run_keeps_to_the_schema(
    workspace: Workspace, play: Callable[[Workspace], str], kinds: set[str]
) -> None:
    events = read_events(play(workspace))
    assert kinds - {event["event"] for event in events} == set()
    for event in workspace.events():
        validate(event, event["event"])


def test_the_schema_knows_every_kind_of_event_and_the_runs_above_hold_them_all() -> None:
    source = SCRIPT.read_text(encoding="utf-8")
    emitted = set(re.findall(r'(?:emit\(|_carry\(|make_event\([^,]*,)\s*"(\w+)"', source)) | {
        "worker_ended",
        "start_requested",
    }
    assert emitted == set(KINDS)
    assert set().union(*(kinds for _, kinds in SCENARIOS)) == set(KINDS)


def test_the_schema_knows_every_state_verdict_and_reason() -> None:
    states = SCHEMA["$defs"]["stream"]["properties"]["state"]["enum"]
    assert states == [state.name.lower() for state in StreamState]
    events = SCHEMA["$defs"]["state"]["properties"]["state"]["enum"]
    assert set(events) == {state.name for state in StreamState} - {"WORKING"}  # it comes and goes: no event
    assert SCHEMA["$defs"]["worker_ended"]["properties"]["verdict"]["enum"] == [kind.value for kind in VerdictKind]
    assert SCHEMA["$defs"]["worker_ended"]["properties"]["cause"]["enum"] == [cause.name for cause in Cause]
    assert SCHEMA["$defs"]["worker_stopping"]["properties"]["why"]["enum"] == [why.name for why in StopReason]


# ── The status ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_status_keeps_to_the_schema_in_many_states(workspace: Workspace) -> None:
    workspace.database.add_stream("Stream-A", "foundation")
    workspace.database.add_stream("Working")
    workspace.database.add_stream("Running")
    workspace.database.add_stream("Silent")
    workspace.database.add_stream("Failed")
    workspace.database.add_stream("Blocked")
    workspace.database.add_stream("Restarting")
    workspace.database.add_stream("Finishing")
    workspace.database.add_stream("Late", "integration")
    assert {stream["state"] for stream in read_status(workspace)["streams"]} == {"idle"}
    workspace.play(
        "all", Working="begin until=never", Running="until=never", Silent="until=never", Failed="exit=126",
        Blocked="block", Restarting=["next exit=1"] + ["exit=1"] * 99, Finishing="all until=never",
    )  # fmt: skip
    run = workspace.popen("start", *NO_POLL, "--max-restarts", "50", "--max-workers", "9", "--finish-grace", "600")
    expected = {
        "Stream-A": "complete", "Working": "working", "Running": "running", "Silent": "silent", "Blocked": "blocked",
        "Finishing": "finishing", "Late": "waiting",
    }  # fmt: skip

    def look() -> bool:
        for name, silence in (("Running", 300), ("Silent", 3000)):  # nothing is heard of them for long
            for path in (workspace.state / f"pids/{name}.pid", workspace.state / f"logs/{name}.jsonl"):
                if path.exists():
                    os.utime(path, (time.time() - silence,) * 2)
        states = {stream["id"]: stream["state"] for stream in read_status(workspace)["streams"]}
        return {name: states[name] for name in expected} == expected

    wait_until(look, "every state", 40)
    assert {stream["id"]: stream["pid"] for stream in read_status(workspace)["streams"]}["Working"] == workspace.pid(
        "Working"
    )
    assert workspace.run("stop").returncode == 0
    run.wait(timeout=20)
    assert {"complete", "stopped"} <= {stream["state"] for stream in read_status(workspace)["streams"]}


# ── The doctor ────────────────────────────────────────────────────────────────────────────────────────────────────────


def read_findings(workspace: Workspace, *words: str) -> dict[str, Any]:
    """Return what `doctor --json` writes, checked."""
    done = workspace.run("doctor", "--json", *words)
    assert done.stderr == ""
    findings: dict[str, Any] = json.loads(done.stdout)
    validate(findings, "doctor")
    assert findings["ready"] is (done.returncode == 0)
    return findings


def test_what_the_doctor_finds_keeps_to_the_schema(workspace: Workspace) -> None:
    workspace.database.add_stream("Stream-A", streamName="漢 \x1b[31m\u202e")
    workspace.database.add_stream("Stream-B\x07", "later")
    (workspace.root / ".mcp.json").write_text(json.dumps({"mcpServers": {"task-copilot": {"command": "\x1b\ud800"}}}))
    findings = read_findings(workspace)
    assert {check["level"] for check in findings["checks"]} == {"ok", "warning", "error"}
    assert findings["ready"] is False
    read_findings(workspace, "--db", "/nowhere/tasks.db")


# ── The schema itself ─────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def objects(workspace: Workspace) -> list[tuple[str, dict[str, Any]]]:
    """A status and an event of each kind that a short run has."""
    workspace.make_repository()
    workspace.database.add_stream("Stream-A")
    workspace.play("commit=a.py all")
    events = {event["event"]: event for event in read_events(workspace.run("start", "--json").stdout)}
    return [("status", read_status(workspace)), ("doctor", read_findings(workspace)), *events.items()]


def mutate(value: Any) -> Iterator[Any]:
    """Yield the value with each of its parts removed, of another type, or with another beside it."""
    if isinstance(value, dict):
        yield {**value, "another": 1}
        for key, part in value.items():
            yield {name: part for name, part in value.items() if name != key}
            yield {**value, key: [[part]]}
            for other in mutate(part):
                yield {**value, key: other}
    elif isinstance(value, list):
        for place, part in enumerate(value):
            for other in mutate(part):
                yield [*value[:place], other, *value[place + 1 :]]
    else:
        others: list[Any] = [7] if isinstance(value, (str, bool)) else ["7", -7.5]
        yield from others if value is not None else []


def test_the_schema_rejects_whatever_is_changed(objects: list[tuple[str, dict[str, Any]]]) -> None:
    schema = {"$defs": SCHEMA["$defs"]}
    for kind, value in objects:
        validator = jsonschema.Draft202012Validator({**schema, "$ref": f"#/$defs/{kind}"})
        assert validator.is_valid(copy.deepcopy(value))
        accepted = [other for other in mutate(value) if validator.is_valid(other)]
        assert [other for other in accepted if other.get("clock") != -7.5] == [], kind


def test_the_schema_is_one() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    objects = [part for part in SCHEMA["$defs"].values() if part.get("type") == "object"]
    assert all(part["additionalProperties"] is False for part in objects)


def test_json_is_utf_8_whatever_the_terminal(workspace: Workspace) -> None:
    workspace.database.add_stream("Stream-A", streamName="漢字")
    environment = workspace.environment(PYTHONIOENCODING="ascii")
    words = [os.fspath(SCRIPT), "status", "--json"]
    done = subprocess.run(
        [sys.executable, *words], cwd=workspace.root, env=environment, stdout=subprocess.PIPE, check=True
    )
    assert json.loads(done.stdout.decode("utf-8"))["streams"][0]["name"] == "漢字"
