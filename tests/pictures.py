"""A snapshot in which every state stands, and a run of every outcome: what whole pictures are drawn from.

Drawn anew after a change that is meant, before the difference is read:

    python tests/pictures.py > tests/pictures.txt
    python tests/pictures.py board > tests/board.svg
"""

from __future__ import annotations

import io
import sys
import time
from typing import Any

from rich.console import Console
from rich.text import Text
from support import replace

from orchestrate import (
    DEMO_STREAMS,
    Course,
    History,
    Limits,
    Phase,
    Record,
    Snapshot,
    Span,
    Standing,
    Stream,
    StreamState,
    Timeline,
    Worker,
    render_board,
    render_dashboard,
    render_event,
    render_status,
    render_timeline,
)

NOW = 10_000.0
NOON = time.mktime((2026, 1, 2, 12, 0, 0, 0, 0, -1))
HOSTILE = "\x1b[2J\n[red]x[/]\u202e\u2067"
WIDE_NAMES = ("漢字" * 12, "🎉🎉 party", HOSTILE, "e\u0301" * 30, "ערב", "x" * 90)

EVERY_STATE: tuple[tuple[str, Stream, Standing], ...] = tuple(
    (stream.id, stream, standing)
    for stream, standing in (
        (
            Stream("Stream-A", "foundation", Phase.FOUNDATION, completed=7),
            Standing(StreamState.COMPLETE),
        ),
        (
            Stream("Stream-B", "api-implementation", Phase.PARALLEL, completed=8, in_progress=1, pending=1),
            Standing(StreamState.WORKING),
        ),
        (
            Stream("Stream-C", "ui-components", Phase.PARALLEL, completed=2, pending=3),
            Standing(StreamState.RUNNING),
        ),
        (
            Stream("Stream-C2", "ui-tests", Phase.PARALLEL, completed=1, pending=2),
            Standing(StreamState.SILENT, "no sign of life for 15m"),
        ),
        (
            Stream("Stream-D", "docs", Phase.PARALLEL, completed=4),
            Standing(StreamState.FINISHING, "its tasks are complete", NOW + 42),
        ),
        (
            Stream("Stream-E", "search", Phase.PARALLEL, completed=1, in_progress=1),
            Standing(StreamState.STOPPING, "by the user"),
        ),
        (
            Stream("Stream-F", "billing", Phase.PARALLEL, completed=3, pending=9),
            Standing(StreamState.RESTARTING, "exit code 1", NOW + 3.2),
        ),
        (
            Stream("Stream-G", "mail", Phase.PARALLEL, pending=4),
            Standing(StreamState.PAUSED, "usage limit", NOW + 3599),
        ),
        (
            Stream("Stream-H", "export", Phase.PARALLEL, pending=2),
            Standing(StreamState.QUEUED, "all 2 workers are busy"),
        ),
        (
            Stream("Stream-I", "import", Phase.PARALLEL, completed=2, blocked=3),
            Standing(StreamState.BLOCKED, "TASK-9: needs a key"),
        ),
        (
            Stream("Stream-J", "admin", Phase.PARALLEL, completed=1, pending=1),
            Standing(StreamState.STOPPED, "by the user"),
        ),
        (
            Stream("Stream-K", "auth", Phase.PARALLEL, completed=1, pending=3),
            Standing(StreamState.FAILED, "gave up after 3 restarts"),
        ),
        (
            Stream("Stream-L", "tests", Phase.INTEGRATION, pending=5),
            Standing(StreamState.WAITING, "waits for Stream-B, Stream-C"),
        ),
        (
            Stream("Stream-M", "release", Phase.INTEGRATION, pending=1),
            Standing(StreamState.IDLE),
        ),
    )
)
STREAMS = tuple(stream for _, stream, _ in EVERY_STATE)
STANDINGS = {stream_id: standing for stream_id, _, standing in EVERY_STATE}
WORKERS = {
    "Stream-B": Worker(
        "Stream-B", 12345, active_at=NOW - 5, cost=0.42, activity="Edit src/api/routes.py", cpu=0.37, memory=2**28
    ),
    "Stream-C": Worker("Stream-C", 12346, active_at=NOW - 400, activity="Running the tests", cpu=0.0, memory=2**27),
    "Stream-C2": Worker("Stream-C2", 12349, active_at=NOW - 1200, activity="Running the tests", cpu=0.0, memory=2**27),
    "Stream-D": Worker("Stream-D", 12347, active_at=NOW - 1, cost=1.5, activity="Done."),
    "Stream-E": Worker("Stream-E", 12348),
}
SNAPSHOT = Snapshot(
    project="your-project",
    streams=STREAMS,
    workers=WORKERS,
    history=History(
        records={
            "Stream-A": Record(ended=1, worked=1520, spent=1.25),
            "Stream-B": Record(started_at=NOW - 72, ended=1, worked=300, spent=0.8),
            **{stream_id: Record(started_at=NOW - 72) for stream_id in WORKERS if stream_id != "Stream-B"},
            "Stream-F": Record(ended=3, worked=260, spent=0.31),
            "Stream-I": Record(ended=1, worked=75, spent=0.14),
            "Stream-K": Record(ended=4, worked=3700),
        },
        limits=Limits(budget=50),
        run_started_at=NOW - 3723,
        spent=2.5,
    ),
    orchestrator=1,
)


def rename(names: tuple[str, ...]) -> tuple[Snapshot, dict[str, Standing]]:
    """Return the snapshot and standings with the last streams renamed, so that every kind of row has odd names."""
    streams, standings, workers, records = [], {}, {}, {}
    for place, stream in enumerate(STREAMS):
        stream_id = f"{names[place % len(names)]}{place}"
        streams.append(replace(stream, id=stream_id, name=names[(place + 1) % len(names)]))
        standing = STANDINGS[stream.id]
        standings[stream_id] = replace(standing, reason=standing.reason and f"waits {names[place % len(names)]}")
        if stream.id in WORKERS:
            workers[stream_id] = replace(WORKERS[stream.id], stream_id=stream_id)
            records[stream_id] = SNAPSHOT.history.records[stream.id]
    history = replace(SNAPSHOT.history, records=records)
    snapshot = replace(SNAPSHOT, streams=tuple(streams), workers=workers, history=history, project=names[0])
    return snapshot, standings


def draw(what: str, width: int, height: int = 0, **other: Any) -> list[str]:
    """Return a picture's lines."""
    snapshot, standings = other.get("snapshot", SNAPSHOT), other.get("standings", STANDINGS)
    if what == "status":
        text = render_status(snapshot, standings, NOW, width)
    elif what == "dashboard":
        text = render_dashboard(snapshot, standings, NOW, NOON, width, height)
    elif what == "board":
        text = render_board(snapshot, standings, NOW, width, height or 24)
    else:
        text = render_timeline(other.get("timeline", TIMELINE), width)
    return text.plain.split("\n")


def span(begin: float, end: float, kind: str = "complete", words: str = "", cost: float = 0.0) -> Span:
    """Return a span in seconds after the run's begin."""
    return Span(NOON + begin, NOON + end, kind, words, cost)


TIMELINE = Timeline(
    "your-project",
    NOON,
    NOON + 600,
    {
        "Stream-A": Course(
            Phase.FOUNDATION, "foundation", (span(0, 120, "complete", "exit code 0", 1.25),), state=StreamState.COMPLETE
        ),
        "Stream-B": Course(
            Phase.PARALLEL,
            "api-implementation",
            (span(120, 240, "restart", "exit code 1", 2.5), span(250, 250.1, "restart"), span(260, 560, cost=10)),
            state=StreamState.COMPLETE,
            ahead=12,
        ),
        "Stream-C": Course(
            Phase.PARALLEL, "ui-components", (span(120, 600, "running"),), state=StreamState.RUNNING, ahead=1
        ),
        "Stream-D": Course(
            Phase.PARALLEL,
            "docs",
            (span(120, 200, "blocked", cost=0.4),),
            (span(200, 600, "blocked", "a key"),),
            StreamState.BLOCKED,
            "which of the two payment providers to use has to be said: the contract names both (TASK-9)",
            answer="claude 'task_update TASK-9: status pending, notes: YOUR ANSWER'",
        ),
        "Stream-E": Course(
            Phase.PARALLEL,
            "auth",
            (span(120, 180, "failed", cost=0.1),),
            state=StreamState.FAILED,
            reason="gave up after 2 restarts without a completed task; last: exit code 1: missing script",
            log=("Bash  npm run build", "  error: Exit code 1", "npm ERR! missing script: build"),
        ),
        "Stream-F": Course(
            Phase.PARALLEL,
            "billing",
            (span(120, 150, "stopped"), span(400, 450, "vanished")),
            state=StreamState.STOPPED,
            reason="by the user",
        ),
        "Stream-G": Course(
            Phase.PARALLEL,
            "mail",
            (span(120, 300, "paused", cost=3), span(420, 500)),
            state=StreamState.COMPLETE,
        ),
        "Stream-H": Course(
            Phase.INTEGRATION, "tests", state=StreamState.WAITING, reason="waits for Stream-D, Stream-E"
        ),
    },
    (span(300, 420, "paused", "usage limit"),),
    "Stream-E failed: gave up\nStream-D blocked: a key",
)

SIZES = (
    *(("status", width, 0) for width in (60, 80, 200)),
    *(("dashboard", width, height) for width in (60, 80, 200) for height in (0, 24)),
    *(("board", width, height) for width in (60, 80, 200) for height in (10, 24)),
    *(("timeline", width, 0) for width in (60, 80, 200)),
)


def draw_album() -> str:
    """Return every picture at every size, each behind a line with its name: what `pictures.txt` holds."""
    return "".join(f"#### {what} {width}x{height}\n" + "\n".join(draw(what, width, height)) + "\n"
                   for what, width, height in SIZES)  # fmt: skip


# ── The README's picture: ten seconds into the demo ───────────────────────────────────────────────────────────────────

EVENTS: tuple[tuple[float, str, str, dict[str, Any]], ...] = (
    (4, "Stream-B", "worker_started", {"attempt": 1, "pid": 2185}),
    (4, "Stream-C", "worker_started", {"attempt": 1, "pid": 2190}),
    (6, "Stream-B", "worker_ended",
     {"verdict": "restart", "restarts": 1, "max_restarts": 3, "tries": 0, "delay": 1.0,
      "reason": "exit code 1: Error: connection reset by peer (this was arranged)"}),
    (7, "Stream-B", "worker_started", {"attempt": 2, "pid": 2202}),
    (8, "Stream-C", "state",
     {"state": "BLOCKED", "reason": "what does an error look like? Stream-B has to say (TASK-ca4297d7)"}),
)  # fmt: skip
BOARD_ROWS = {
    "Stream-A": ((4, 0, 0), StreamState.COMPLETE, "", Record(ended=1, worked=3, spent=0.44)),
    "Stream-B": ((2, 1, 0), StreamState.WORKING, "", Record(started_at=NOW - 3, ended=1, worked=2)),
    "Stream-C": ((3, 0, 1), StreamState.BLOCKED, EVENTS[-1][3]["reason"], Record(ended=1, worked=3, spent=0.33)),
    "Stream-D": ((0, 0, 0), StreamState.WAITING, "waits for Stream-B, Stream-C", Record()),
}


def draw_screen(width: int = 80) -> Text:
    """Return what `start` shows at that moment: the events up to then, and the board below them."""
    streams, standings = [], {}
    for stream_id, phase, name, tasks in DEMO_STREAMS:
        (completed, at_work, blocked), state, reason, _ = BOARD_ROWS[stream_id]
        counts = {"completed": completed, "in_progress": at_work, "blocked": blocked}
        pending = len(tasks) - completed - at_work - blocked
        streams.append(Stream(stream_id, name, Phase(phase), pending=pending, **counts))
        standings[stream_id] = Standing(state, reason)
    worker = Worker("Stream-B", 2202, active_at=NOW, activity="Write  src/page-the-lists.md")
    records = {stream_id: record for stream_id, (*_, record) in BOARD_ROWS.items()}
    history = History(records=records, limits=Limits(), run_started_at=NOW - 10, spent=0.77)
    snapshot = Snapshot(project="my-project", streams=tuple(streams), workers={"Stream-B": worker}, history=history)
    screen = Text()
    for seconds, stream_id, kind, facts in EVENTS:
        moment = time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime(NOON + seconds))
        line = render_event({"event": kind, "time": moment, "stream": stream_id, **facts}, width)
        assert line
        screen.append(line).append("\n")
    screen.append(render_board(snapshot, standings, NOW, width, 24))
    screen.rstrip()
    return screen


def draw_svg() -> str:
    """Return that screen as a picture, in the colours of a terminal."""
    console = Console(record=True, width=80, file=io.StringIO(), force_terminal=True, color_system="truecolor")
    console.print(draw_screen())
    return console.export_svg(title="orchestrate start")


if __name__ == "__main__":
    print(draw_svg() if sys.argv[1:] == ["board"] else draw_album(), end="")
