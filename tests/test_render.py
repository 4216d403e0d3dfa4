"""What people and programs see: whole pictures at fixed widths, and text from outside that is shown and not obeyed."""

from __future__ import annotations

import io
import json
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console
from rich.text import Text
from support import replace

from orchestrate import (
    WAITS,
    Ending,
    History,
    Limits,
    Phase,
    Project,
    Record,
    Snapshot,
    Standing,
    Stream,
    StreamState,
    Worker,
    assess,
    format_duration,
    format_standing,
    format_status_json,
    natural_key,
    plan_backlog,
    render_board,
    render_dashboard,
    render_status,
    visible,
)

unhurried = settings(deadline=None, database=None)  # a busy machine is no failure

NOW = 1000.0
NOON = time.mktime((2026, 1, 2, 16, 42, 11, 0, 0, -1))
HOSTILE = "[red]x[/]\x1b[31m\n\r\x07\x85\u202e"
SHOWN = "[red]x[/]␛[31m␊␍␇\ufffd\ufffd"


def make_stream(stream_id: str, name: str = "", phase: str = "parallel", **fields: Any) -> Stream:
    return Stream(stream_id, name or f"{stream_id} name", Phase(phase), **fields)


def make_snapshot(
    *streams: Stream, running: dict[str, int] | None = None, workers: tuple[Worker, ...] = (), **more: Any
) -> Snapshot:
    """Return a snapshot in which these streams have workers, some by PID alone, that were started 72 s ago."""
    living = [Worker(stream_id, pid) for stream_id, pid in (running or {}).items()]
    by_id = {worker.stream_id: worker for worker in (*living, *workers)}
    records = {stream_id: Record(started_at=NOW - 72) for stream_id in by_id}
    history = more.pop("history", History(records=records, run_started_at=NOW - 3723))
    return Snapshot(**{"project": "your-project", "orchestrator": 1, **more}, streams=plan_backlog(streams),
                    workers=by_id, history=history)  # fmt: skip


def draw_status(snapshot: Snapshot, width: int = 80) -> list[str]:
    return render_status(snapshot, assess(snapshot, Limits(), NOW), NOW, width).plain.split("\n")


def draw_dashboard(snapshot: Snapshot, width: int = 80, height: int = 0) -> list[str]:
    standings = assess(snapshot, Limits(), NOW)
    return render_dashboard(snapshot, standings, NOW, NOON, width, height).plain.split("\n")


def draw_board(snapshot: Snapshot, width: int = 80, height: int = 24) -> list[str]:
    return render_board(snapshot, assess(snapshot, Limits(), NOW), NOW, width, height).plain.split("\n")


def draw_all(snapshot: Snapshot, width: int, height: int = 0) -> list[list[str]]:
    return [
        draw_status(snapshot, width),
        draw_dashboard(snapshot, width, height),
        draw_board(snapshot, width or 80, height or 24),
    ]


GUIDE = make_snapshot(
    make_stream("Stream-A", "foundation", "foundation", completed=7),
    make_stream("Stream-B", "api-implementation", completed=8, in_progress=1, pending=1),
    make_stream("Stream-C", "ui-components", completed=2, pending=3),
    workers=(Worker("Stream-B", 12345, active_at=NOW - 5), Worker("Stream-C", 12346)),
)

# ── The guide's pictures ──────────────────────────────────────────────────────────────────────────────────────────────

STATUS = """\
╔═══════════════════════════════════════════════════════════════════════╗
║              YOUR-PROJECT - WORKER STATUS                             ║
╚═══════════════════════════════════════════════════════════════════════╝

  FOUNDATION
    ✓ Stream-A │ foundation
      [███████████████] 7/7 │ Complete

  PARALLEL
    ● Stream-B │ api-implementation
      [████████████░░░] 8/10 │ Running (PID: 12345)

    ◎ Stream-C │ ui-components
      [██████░░░░░░░░░] 2/5 │ Running (PID: 12346)"""

DASHBOARD = """\
╔═══════════════════════════════════════════════════════════════════════╗
║              YOUR-PROJECT - STREAM STATUS                             ║
╚═══════════════════════════════════════════════════════════════════════╝

📊 Overall Progress
───────────────────────────────────────────────────────────────────────
  [██████████████████████████████░░░░░░░░░░] 77%
  ✓ 17 completed  │  ⚡ 1 in progress  │  ◯ 4 pending  │  Total: 22

🖥  Stream Details
───────────────────────────────────────────────────────────────────────
  Workers: 2 running

  ✓ Stream-A
    [███████████████] 7/7 (100%)
    ✓7
    Status: Completed

  ● Stream-B
    [████████████░░░] 8/10 (80%)
    ✓8  ⚡1  ○1
    Status: Working (PID: 12345)

  ◎ Stream-C
    [██████░░░░░░░░░] 2/5 (40%)
    ✓2  ○3
    Status: Running (PID: 12346)

⌨  Quick Actions
───────────────────────────────────────────────────────────────────────
  python orchestrate.py status        Full worker status
  python orchestrate.py logs Stream-A Tail worker logs
  python orchestrate.py stop          Stop all workers

Data: Task Copilot │ 2 workers │ 16:42:11"""

BOARD = """\
── your-project · 17/22 tasks · 1h 02m · 2 of 5 workers ────────────────────────
  [██████████████████████████████████████████████████████░░░░░░░░░░░░░░░░░]  77%
    stream    progress           state                                time  cost
  FOUNDATION
  ✓ Stream-A  [██████████] 7/7   Complete
  PARALLEL
  ● Stream-B  [████████░░] 8/10  Working                            1m 12s
  ◎ Stream-C  [████░░░░░░] 2/5   Running                            1m 12s
"""


@pytest.mark.parametrize("width", [0, 80, 200])
def test_status_and_dashboard_are_the_guides_at_any_width_that_holds_them(width: int) -> None:
    quiet = replace(GUIDE, workers={i: replace(worker, active_at=0) for i, worker in GUIDE.workers.items()})
    assert "\n".join(draw_status(quiet, width)) == STATUS.replace("● Stream-B", "◎ Stream-B")
    working = STATUS.replace("Running (PID: 12345)", "Working (PID: 12345)")
    assert "\n".join(draw_status(GUIDE, width)) == working
    assert "\n".join(draw_dashboard(GUIDE, width)) == DASHBOARD


def test_board_is_a_line_a_stream_under_its_phase_below_a_rule_as_wide_as_the_terminal() -> None:
    assert "\n".join(draw_board(GUIDE)) == BOARD


def test_status_at_60_columns_cuts_what_is_too_long_and_says_so() -> None:
    snapshot = make_snapshot(
        make_stream("Stream-A", "a name that goes on and on until nobody reads it", pending=1),
        make_stream("流-B", "漢字" * 20, completed=2, blocked=3),
        warnings=("a warning that is longer than the sixty columns of a narrow terminal",),
        orchestrator=0,
    )
    assert (
        "\n".join(draw_status(snapshot, 60))
        == """\
╔══════════════════════════════════════════════════════════╗
║              YOUR-PROJECT - WORKER STATUS                ║
╚══════════════════════════════════════════════════════════╝

  PARALLEL
    · Stream-A │ a name that goes on and on until nobody re…
      [░░░░░░░░░░░░░░░] 0/1 │ Not running

    ⊘ 流-B │ 漢字漢字漢字漢字漢字漢字漢字漢字漢字漢字漢字漢…
      [██████░░░░░░░░░] 2/5 │ Blocked

  Warning: a warning that is longer than the sixty columns
  of a narrow terminal
  To answer: claude 'task_update : status pending, notes: YOUR ANSWER'"""
    )


def test_the_overall_progress_is_the_guides() -> None:
    lines = draw_dashboard(make_snapshot(make_stream("A", completed=32, in_progress=4, pending=15)))
    assert lines[6:8] == [
        "  [████████████████████████░░░░░░░░░░░░░░░░] 62%",
        "  ✓ 32 completed  │  ⚡ 4 in progress  │  ◯ 15 pending  │  Total: 51",
    ]


def test_the_overall_progress_shows_its_total_beside_blocked_tasks() -> None:
    lines = draw_dashboard(make_snapshot(make_stream("A", completed=32, in_progress=4, pending=9, blocked=6)))
    assert "6 blocked" in lines[7]
    assert lines[7].endswith("Total: 51")


# ── Numbers ───────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("counts", "bar", "percent"),
    [
        ({"completed": 999, "pending": 1}, "█" * 14 + "░", 99),
        ({"completed": 1, "pending": 999}, "░" * 15, 0),
        ({"completed": 2, "blocked": 1, "pending": 2}, "█" * 6 + "░" * 9, 40),
        ({"completed": 3, "cancelled": 2}, "█" * 15, 100),
        ({"cancelled": 2}, "█" * 15, 100),
    ],
)
def test_a_bar_is_full_only_at_100_percent_and_percents_floor(counts: dict[str, Any], bar: str, percent: int) -> None:
    lines = draw_dashboard(make_snapshot(make_stream("A", **counts)))
    assert f"[{bar}]" in lines[14]
    assert lines[14].endswith(f"({percent}%)")
    assert lines[6].endswith(f" {percent}%")
    assert ("░" in lines[6]) == (percent < 100)


def test_a_dashboard_without_streams_claims_no_progress() -> None:
    lines = draw_dashboard(make_snapshot(database_error="SQLite query failed: database is locked"))
    assert lines[6] == f"  [{'░' * 40}] 0%"
    assert "  The database can't be read: SQLite query failed: database is locked" in lines


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(-5, "0s"), (0, "0s"), (4.9, "4s"), (59.99, "59s"), (60, "1m 00s"), (72, "1m 12s"), (3599, "59m 59s"),
     (3600, "1h 00m"), (7380, "2h 03m"), (360000, "100h 00m")],
)  # fmt: skip
def test_format_duration(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


# ── Fitting ───────────────────────────────────────────────────────────────────────────────────────────────────────────

texts = st.text(st.one_of(st.sampled_from("ab漢字🎉é\n\t\x1b ─"), st.characters()), max_size=90)


@unhurried
@example("", ["a" * 32 + "漢" * 9], 60, 0)  # in a warning
@given(texts, st.lists(texts, min_size=1, max_size=4, unique=True), st.integers(60, 120), st.sampled_from([0, 24]))
def test_no_line_is_wider_than_the_terminal_and_the_box_is_closed(
    project: str, ids: list[str], width: int, height: int
) -> None:
    streams = [make_stream(stream_id, stream_id[::-1], dependencies=("none",)) for stream_id in ids]
    blocked = make_stream("B" * 200, blocked=1)
    snapshot = make_snapshot(*streams, blocked, running={ids[0]: 7}, project=project, warnings=(ids[0],))
    for picture in draw_all(snapshot, width, height):
        picture = [line for line in picture if not line.startswith("  To answer: ")]  # a command is never cut
        assert max(cell_len(line) for line in picture) <= width
        if picture[0].startswith("╔"):
            assert [cell_len(line) for line in picture[:3]] == [min(width, 73)] * 3
            assert [line[0] + line[-1] for line in picture[:3]] == ["╔╗", "║║", "╚╝"]


def test_without_a_width_nothing_is_cut() -> None:
    long = "漢" * 300
    snapshot = make_snapshot(make_stream(long, long, blocked=1), database_error="")
    assert f"    ⊘ {long} │ {long}" in draw_status(snapshot, 0)
    assert f"  ⊘ {long}" in draw_dashboard(snapshot, 0)


@pytest.mark.parametrize("height", [14, 24, 40])
@pytest.mark.parametrize("warnings", [(), ("odd",) * 30])
def test_a_dashboard_fits_into_its_terminal_and_shows_who_is_at_work(height: int, warnings: tuple[str, ...]) -> None:
    streams = [make_stream(f"Stream-{i}", pending=1) for i in range(1, 21)]
    snapshot = make_snapshot(*streams, running={"Stream-18": 8, "Stream-20": 9}, warnings=warnings)
    lines = draw_dashboard(snapshot, 80, height)
    assert len(lines) <= height
    assert max(map(cell_len, lines)) <= 80
    assert warnings or [line.split()[1] for line in lines if line.startswith("  ◎")] == ["Stream-18", "Stream-20"]
    assert warnings or any(line.startswith("  … ") for line in lines) == (height < 40)


def test_a_dashboard_is_told_shorter_only_where_it_does_not_fit() -> None:
    height = len(DASHBOARD.split("\n"))
    assert "\n".join(draw_dashboard(GUIDE, 80, height)) == DASHBOARD
    assert "Quick Actions" not in "\n".join(draw_dashboard(GUIDE, 80, height - 1))


def test_a_dashboard_of_20_streams_on_80_by_24() -> None:
    streams = [make_stream(f"S-{i}", completed=int(i < 5), pending=int(i >= 5)) for i in range(1, 21)]
    lines = draw_dashboard(make_snapshot(*streams, running={"S-20": 9}), 80, 24)
    assert 23 <= len(lines) <= 24
    shown = [line.split()[1] for line in lines if "[" in line and "%" not in line]
    assert "S-20" in shown
    assert shown == sorted(shown, key=natural_key)
    waiting = 20 - len(shown) - 4  # the complete ones go first
    assert f"  … +4 complete, +{waiting} queued" in lines
    assert lines[-1] == "Data: Task Copilot │ 1 worker │ 16:42:11"


@pytest.mark.parametrize(("width", "shown"), [(60, "s" * 9 + "…  ["), (80, "s" * 13 + "…  ["), (200, "s" * 30 + "  s")])
def test_a_board_gives_a_fifth_of_its_width_to_the_ids(width: int, shown: str) -> None:
    assert draw_board(make_snapshot(make_stream("s" * 30)), width)[4].startswith(f"  ✓ {shown}")


@pytest.mark.parametrize("height", [5, 10, 24])
def test_a_board_fits_into_its_terminal(height: int) -> None:
    streams = [make_stream(f"Stream-{i}", pending=1) for i in range(1, 31)]
    assert len(draw_board(make_snapshot(*streams, running={"Stream-30": 9}), 80, height)) <= height


def test_a_worker_whose_start_nobody_knows_has_no_age() -> None:
    snapshot = make_snapshot(make_stream("A", pending=1), running={"A": 9}, history=History())
    assert draw_board(snapshot)[4].endswith(" 0/1  Running")


# ── Text from outside ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_text_from_outside_is_shown_and_not_obeyed() -> None:
    streams = (
        make_stream(HOSTILE, HOSTILE, completed=1),
        make_stream("B", HOSTILE, pending=1),
        make_stream("C", problem=HOSTILE, pending=1),
        make_stream("D", "d", "integration", dependencies=(HOSTILE,), pending=1),
    )
    history = History(records={"B": Record(failure=HOSTILE)}, waiting=HOSTILE)
    more: dict[str, Any] = {"warnings": (HOSTILE,), "database_error": HOSTILE, "history": history, "project": HOSTILE}
    for lines in draw_all(make_snapshot(*streams, **more), 0, 0):
        text = "\n".join(lines)
        assert SHOWN in text or SHOWN.upper() in text
        assert [char for char in text if char < " " or "\x7f" <= char < "\xa0" or char in "\u202a\u202e"] == [
            "\n"
        ] * text.count("\n")
    assert f"    ✓ {SHOWN} │ {SHOWN}" in draw_status(make_snapshot(*streams), 0)
    assert f"      [{'░' * 15}] 0/1 │ Failed: {SHOWN}" in draw_status(make_snapshot(*streams, history=history), 0)


def test_the_console_writes_a_picture_as_it_is() -> None:
    standings = assess(GUIDE, Limits(), NOW)
    picture = render_dashboard(GUIDE, standings, NOW, NOON, 80)
    file = io.StringIO()
    Console(file=file, width=80, color_system=None, force_terminal=True).print(Text("[b]") + picture, soft_wrap=True)
    assert file.getvalue() == f"[b]{DASHBOARD}\n"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (HOSTILE, SHOWN),
        ("a\0b\x7f\t", "a␀b␡␉"),
        ("\x9b31m\u2066x\u2069", "\ufffd31m\ufffdx\ufffd"),
        ("é 漢 🎉", "é 漢 🎉"),
    ],
)
def test_visible_shows_what_a_terminal_would_obey(text: str, shown: str) -> None:
    assert visible(text) == shown
    assert visible(shown) == shown


@pytest.mark.parametrize(
    "ordered",
    [
        ["Stream-1", "Stream-2", "Stream-10"],
        ["", "2", "10", "a", "a1", "a1b", "a2", "a10"],
        ["v1.2", "v1.10", "v2"],
        ["9" * 4999, "9" * 5000, "²", "１"],
    ],
)
def test_natural_key_puts_numbers_in_their_order(ordered: list[str]) -> None:
    ids = ordered[::-1]
    ids.sort(key=natural_key)
    assert ids == ordered


@unhurried
@given(st.lists(st.text(st.one_of(st.sampled_from("a01²٣-"), st.characters()), max_size=6), unique=True))
@example(["²", "1²", "1", "01"])
def test_natural_key_orders_any_ids_and_takes_no_two_for_the_same(ids: list[str]) -> None:
    keys = sorted(map(natural_key, ids))
    assert all(one < other for one, other in zip(keys, keys[1:]))


# ── Where a stream stands ─────────────────────────────────────────────────────────────────────────────────────────────

STANDINGS = [
    (Standing(StreamState.COMPLETE), 0, "Complete"),
    (Standing(StreamState.WORKING), 7, "Working (PID: 7)"),
    (Standing(StreamState.RUNNING), 7, "Running (PID: 7)"),
    (Standing(StreamState.SILENT, "no sign of life for 15m"), 7, "Silent (PID: 7) for 16m 40s"),
    (Standing(StreamState.FINISHING, "its tasks are complete", NOW + 72), 7,
     "Finishing (PID: 7): stopped in 1m 12s unless it exits"),
    (Standing(StreamState.FINISHING, WAITS, float("inf")), 7,
     f"Finishing (PID: 7): {WAITS}"),
    (Standing(StreamState.STOPPING, "by the user"), 7, "Stopping (PID: 7): by the user"),
    (Standing(StreamState.RESTARTING, "exit code 1", NOW + 3.2), 0, "Restarting in 4s: exit code 1"),
    (Standing(StreamState.PAUSED, "the limit", NOW + 61.5), 0, "Paused for 1m 02s: the limit"),
    (Standing(StreamState.QUEUED, "all 5 workers are busy"), 0, "Queued: all 5 workers are busy"),
    (Standing(StreamState.WAITING, "waits for A"), 0, "Waiting for A"),
    (Standing(StreamState.BLOCKED, "T: why\nnot"), 0, "Blocked: T: why␊not"),
    (Standing(StreamState.STOPPED, "by the user"), 0, "Stopped: by the user"),
    (Standing(StreamState.FAILED, "it broke"), 0, "Failed: it broke"),
    (Standing(StreamState.IDLE), 0, "Not running"),
    (Standing(StreamState.IDLE, "last worker: exit code 1"), 0, "Not running: last worker: exit code 1"),
]  # fmt: skip


@pytest.mark.parametrize(("standing", "pid", "words"), STANDINGS)
def test_format_standing_says_the_state_the_pid_and_the_reason(standing: Standing, pid: int, words: str) -> None:
    assert format_standing(standing, Worker("A", pid, active_at=NOW - 1000) if pid else None, NOW) == words


def test_every_state_has_words() -> None:
    assert {standing.state for standing, _, _ in STANDINGS} == set(StreamState)


# ── For programs ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_format_status_json_holds_every_fact(tmp_path: Path) -> None:
    snapshot = make_snapshot(
        make_stream("A", "é [red]", dependencies=("B",), pending=1, in_progress=2, completed=5, cancelled=1),
        make_stream("B", "b", "foundation", completed=1),
        running={"A": 7},
        warnings=("odd",),
        history=History(records={"A": Record(attempts=3, restarts=2, pause_ends=100.0)}, waiting="for a person"),
    )
    standings = assess(snapshot, Limits(), NOW)
    status = json.loads(format_status_json(Project(tmp_path), tmp_path / "tasks.db", snapshot, standings, 0.5))
    assert status.pop("streams") == [
        {
            "id": "A", "name": "é [red]", "phase": "parallel", "dependencies": ["B"], "state": "running",
            "reason": None, "pid": 7, "attempt": 3, "restarts": 2,
            "paused_until": "1970-01-01T00:01:40.000Z", "percent": 62,
            "tasks": {"total": 8, "pending": 1, "in_progress": 2, "blocked": 0, "completed": 5, "cancelled": 1},
            "branches": [],
        },
        {
            "id": "B", "name": "b", "phase": "foundation", "dependencies": [], "state": "complete",
            "reason": None, "pid": None, "attempt": 0, "restarts": 0, "paused_until": None, "percent": 100,
            "tasks": {"total": 1, "pending": 0, "in_progress": 0, "blocked": 0, "completed": 1, "cancelled": 0},
            "branches": [],
        },
    ]  # fmt: skip
    assert status == {
        "version": 1, "time": "1970-01-01T00:00:00.500Z", "project": str(tmp_path),
        "database": str(tmp_path / "tasks.db"), "orchestrator_pid": 1, "database_error": None,
        "paused_until": None, "cost_usd": 0.0, "warnings": ["odd"],
        "waiting": "for a person",
    }  # fmt: skip


def test_format_status_json_names_no_worker_that_has_ended_and_no_wait_without_an_orchestrator(tmp_path: Path) -> None:
    workers = {"A": Worker("A", 7, ending=Ending(0), leftovers=(8,))}
    streams = (make_stream("A", pending=1),)
    snapshot = Snapshot("p", streams, workers, History(waiting="old"), database_error="locked")
    standings = assess(snapshot, Limits(), NOW)
    status = json.loads(format_status_json(Project(tmp_path), tmp_path, snapshot, standings, 0))
    assert (status["streams"][0]["pid"], status["streams"][0]["state"]) == (None, "stopping")
    assert (status["waiting"], status["orchestrator_pid"], status["database_error"]) == (None, None, "locked")
