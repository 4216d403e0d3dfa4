"""The timeline: the journal folded into what a run did, and that as a chart and a page."""

from __future__ import annotations

import json
import re
import time
from html.parser import HTMLParser
from typing import Any

import pytest
from pictures import HOSTILE, NOON, TIMELINE, span
from support import PROGRAM, Workspace, replace, wait_until

from orchestrate import (
    Course,
    Event,
    Phase,
    Span,
    Stream,
    Timeline,
    find_ticks,
    fold_timeline,
    format_time,
    format_timeline_html,
    render_timeline,
)

# ── Folding ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def at(after: float, kind: str, **facts: Any) -> Event:
    """Return an event so many seconds after noon."""
    return {"version": 1, "event": kind, "time": format_time(NOON + after), "clock": after, **facts}


def begun(seconds: float, stream: str = "A", phase: str = "parallel") -> Event:
    return at(seconds, "worker_started", stream=stream, phase=phase)


def ended(seconds: float, verdict: str = "complete", stream: str = "A", took: float = 10, cost: float = 0.5) -> Event:
    return at(seconds, "worker_ended", stream=stream, verdict=verdict, ending="exit code 0", seconds=took, cost=cost)


def stands(seconds: float, state: str, reason: str = "", stream: str = "A") -> Event:
    return at(seconds, "state", stream=stream, state=state, reason=reason)


START, END = at(0, "run_started"), at(100, "run_ended", exit_code=0, reason="all complete")


def run_of(*spans: Span, blocks: tuple[Span, ...] = (), phase: str = "parallel") -> Course:
    return Course(Phase(phase), "", spans, blocks)


def done(begin: float, end: float, kind: str = "complete", took: float = 10) -> Span:
    return span(begin, end, kind, "exit code 0", 0.5)._replace(took=took)


FOLDS: dict[str, tuple[list[Any], dict[str, Course], dict[str, Any]]] = {
    "a run to its end": (
        [START, begun(1), ended(50), END],
        {"A": run_of(done(1, 50))},
        {"begin": NOON, "end": NOON + 100, "outcome": "all complete"},
    ),
    "interrupted and continued": (
        [START, begun(1), at(20, "run_left", signal=2, reason="left"), at(30, "run_started"), ended(50), END],
        {"A": run_of(done(1, 50))},
        {"begin": NOON, "outcome": "all complete"},
    ),
    "killed and continued": (
        [START, begun(1), at(30, "run_started"), ended(50, "restart"), begun(60), ended(70), END],
        {"A": run_of(done(1, 50, "restart"), done(60, 70))},
        {"begin": NOON, "outcome": "all complete"},
    ),
    "a second run begins anew": (
        [START, begun(1), ended(50), END, at(200, "run_started"), begun(201, "B"), ended(250, stream="B")],
        {"B": run_of(done(201, 250))},
        {"begin": NOON + 200, "end": NOON + 250, "outcome": "the run was interrupted"},
    ),
    "an attempt that still runs": (
        [START, begun(1), ended(20, "restart"), begun(30)],
        {"A": run_of(done(1, 20, "restart"), span(30, 80, "running"))},
        {"end": NOON + 80},
    ),
    "a pause": (
        [START, at(10, "run_paused", until=format_time(NOON + 40), delay=30, reason="usage limit")],
        {},
        {"pauses": (span(10, 40, "paused", "usage limit"),)},
    ),
    "a block that is over": (
        [START, stands(10, "BLOCKED", "a key"), stands(40, "QUEUED"), stands(41, "RUNNING"), END],
        {"A": run_of(blocks=(span(10, 40, "blocked", "a key"),))},
        {},
    ),
    "a block for another reason": (
        [START, stands(10, "BLOCKED", "a key"), stands(40, "BLOCKED", "a cert"), END],
        {"A": run_of(blocks=(span(10, 40, "blocked", "a key"), span(40, 100, "blocked", "a cert")))},
        {},
    ),
    "a worker from before the run": (
        [START, at(1, "worker_adopted", stream="A", pid=7, run="r"), ended(50, took=80), END],
        {"A": run_of(done(-30, 50, took=80))},
        {"begin": NOON},
    ),
    "what is no event of ours": (
        [START, {}, {"event": 7}, {"event": "worker_started"}, {"event": "state", "time": "noon"},
         begun(1, phase="later"),
         {**ended(9), "seconds": "long"}, {**ended(9), "time": None}, {"event": "state", "time": format_time(NOON)},
         {"event": ["x"], "time": format_time(NOON)}, begun(1), ended(50), at(60, "from the future", stream="A"), END],
        {"A": run_of(done(1, 50))},
        {"begin": NOON, "end": NOON + 100},
    ),
    "the wall clock steps back": (
        [START, begun(50), ended(20), begun(30), ended(40)],
        {"A": run_of(done(50, 20), done(30, 40))},
        {"begin": NOON, "end": NOON + 80},
    ),
    "only an end": ([END], {}, {"begin": 0.0}),
    "nothing": ([], {}, {"begin": 0.0, "outcome": ""}),
}  # fmt: skip


@pytest.mark.parametrize(("events", "courses", "facts"), FOLDS.values(), ids=FOLDS.keys())
def test_fold_timeline(events: list[Any], courses: dict[str, Course], facts: dict[str, Any]) -> None:
    goes_on = facts.get("end") == NOON + 80
    timeline = fold_timeline("p", events, (), NOON + 80 if goes_on else None)
    assert {i: replace(course, state=None, reason="") for i, course in timeline.courses.items()} == courses
    assert {name: getattr(timeline, name) for name in facts} == facts


def test_fold_timeline_shows_streams_that_never_ran_in_the_order_of_the_phases() -> None:
    streams = (
        Stream("Z-2", "z", Phase.INTEGRATION, pending=1),
        Stream("Z-10", "z", Phase.INTEGRATION, pending=1),
        Stream("A", "a", Phase.FOUNDATION, pending=1),
    )
    timeline = fold_timeline("p", [START, begun(1, "B"), begun(1, "Z-10", "integration")], streams, NOON + 9)
    assert list(timeline.courses) == ["A", "B", "Z-2", "Z-10"]
    assert (timeline.courses["A"].result, timeline.courses["A"].name) == ("Never ran", "a")
    assert (timeline.courses["Z-10"].result, timeline.courses["Z-10"].cost) == ("Running", 0)


@pytest.mark.parametrize(
    ("events", "result", "reason"),
    [
        ([begun(1), ended(2), stands(2, "COMPLETE")], "Complete", ""),
        ([begun(1), ended(2, "failed"), stands(2, "FAILED", "no credit")], "Failed", "no credit"),
        ([begun(1), {**ended(2, "stopped"), "reason": "by the user"}], "Stopped", "by the user"),
        ([begun(1), stands(1, "RUNNING"), stands(5, "SILENT", "no sign")], "Silent", "no sign"),
        ([stands(0, "WAITING", "waits for B"), stands(9, "WAITING", "waits for C")], "Never ran", "waits for C"),
        ([begun(1), ended(2), stands(3, "IDLE", "the budget is spent")], "Not running", "the budget is spent"),
        ([stands(3, "IDLE", "not part of this run")], "Never ran", "not part of this run"),
        ([begun(1), {**ended(2, "restart"), "reason": "exit code 1"}, begun(3)], "Running", ""),
        ([begun(1), {**ended(2, "restart"), "reason": "exit code 1"}], "Restarting", "exit code 1"),
    ],
)
def test_a_stream_stands_at_last_where_the_journal_last_said(events: list[Event], result: str, reason: str) -> None:
    course = fold_timeline("p", [START, *events], (), None).courses["A"]
    assert (course.result, course.reason) == (result, reason)


def test_the_time_of_a_stream_is_that_of_its_attempts_whatever_the_clock_on_the_wall_did() -> None:
    events = [START, begun(90), ended(20, "restart", took=600), begun(30), ended(5000, took=40)]
    assert fold_timeline("p", events, (), None).courses["A"].seconds == 640


def test_an_attempt_whose_end_was_lost_is_over_when_the_next_one_begins() -> None:
    timeline = fold_timeline("p", [START, begun(1), begun(40), ended(50), END], (), None)
    first, second = timeline.courses["A"].attempts
    assert (first.begin, first.end) == (NOON + 1, NOON + 40)
    assert second == done(40, 50)


def test_a_worker_that_was_taken_over_and_still_runs_is_no_stream_that_never_ran() -> None:
    events = [START, at(1, "worker_adopted", stream="A", pid=7, run="r", completed=0, open=1)]
    assert fold_timeline("p", events, (), NOON + 80).courses["A"].attempts


def test_fold_timeline_ends_an_interrupted_run_with_its_last_event() -> None:
    timeline = fold_timeline("p", [START, begun(1), at(20, "run_left", signal=2, reason="left")], (), None)
    assert timeline.courses["A"].attempts == (span(1, 20, "running"),)


@pytest.mark.parametrize(
    ("length", "most", "ticks"),
    [
        (1, 5, ["12:00:00", "12:00:01"]),
        (600, 3, ["12:00", "12:05", "12:10"]),
        (600, 1, ["12:00", "12:10"]),
        (59, 12, [f"12:00:{second:02}" for second in range(0, 60, 5)]),
        (86400, 3, ["12:00", "00:00", "12:00"]),
        (30 * 86400, 3, ["07 Jan", "18 Jan", "29 Jan"]),
    ],
)
def test_find_ticks(length: float, most: int, ticks: list[str]) -> None:
    found = find_ticks(Timeline("p", NOON, NOON + length), most)
    assert [label for _, label in found] == ticks
    assert all(NOON <= moment <= NOON + length for moment, _ in found)


def test_a_tick_stands_at_a_round_time_of_the_clock_not_of_the_run() -> None:
    assert find_ticks(Timeline("p", NOON + 90, NOON + 7290), 2) == [(NOON + 3600, "13:00"), (NOON + 7200, "14:00")]


# ── The chart ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_report_of_a_night_has_a_line_a_stream_what_is_wrong_below_it_and_the_chart() -> None:
    """The picture at three widths is in the album; here is what must not be cut, and is said once."""
    for width in (60, 80, 200):
        lines = render_timeline(TIMELINE, width).plain.split("\n")
        for course in TIMELINE.courses.values():
            words = " ".join(" ".join(lines).split())
            assert words.count(course.reason) == 1 or course.reason in ("", "by the user")
        assert "    claude 'task_update TASK-9: status pending, notes: YOUR ANSWER'" in lines
        failed = next(number for number, line in enumerate(lines) if line.startswith("  ✗ Stream-E"))
        assert lines[failed:].index("    python orchestrate.py start Stream-E") == (
            lines[failed:].index("    python orchestrate.py logs --no-follow Stream-E") + 1
        )
        assert [line for line in lines if line.startswith("    │ ")] == [
            "    │ Bash  npm run build",
            "    │   error: Exit code 1",
            "    │ npm ERR! missing script: build",
        ]


def test_what_the_whole_run_has_to_say_stands_above_and_what_the_streams_say_does_not() -> None:
    spent = replace(TIMELINE, outcome="Stream-E failed: gave up\nThe budget of $5.00 is spent")
    assert spent.headlines == ["The budget of $5.00 is spent"]
    assert TIMELINE.headlines == ["3 complete, 1 running, 1 blocked, 1 failed, 1 stopped, 1 never ran"]
    courses = {**TIMELINE.courses, "all": TIMELINE.courses["Stream-A"]}
    complete = replace(TIMELINE, outcome="all complete: 9 streams", courses=courses)
    assert complete.headlines == ["all complete: 9 streams"]


@pytest.mark.parametrize("length", [1, 7, 9, 61, 600, 3700, 90_000, 10**6])
@pytest.mark.parametrize("width", [40, 60, 80, 200])
def test_the_labels_of_the_axis_do_not_run_into_each_other(width: int, length: float) -> None:
    for begin in (NOON, NOON + 1.5, NOON + 1799):
        course = Course(Phase.PARALLEL, "", (Span(begin, begin + length, "complete"),))
        timeline = Timeline("p", begin, begin + length, {"A": course})
        labels = render_timeline(timeline, width).plain.split("\n")[-2]
        assert labels.split()
        assert re.fullmatch(r"( +(\d\d(:\d\d){1,2}|\d\d [A-Z][a-z]{2}))+", labels), labels


def test_what_is_short_is_seen_above_what_is_long() -> None:
    course = Course(Phase.PARALLEL, "", (span(10, 10.2, "failed"), span(0, 600, "complete")))
    text = render_timeline(replace(TIMELINE, courses={"A": course}, pauses=(), outcome=""), 60).plain
    (row,) = (line for line in text.split("\n") if line.endswith("│"))
    assert "✗" in row
    assert row.count("✓") == 1


def test_a_clock_that_steps_back_leaves_the_chart_in_its_frame() -> None:
    timeline = fold_timeline("p", [at(100, "run_started"), begun(90), ended(20), begun(500), ended(30)], (), None)
    for width in (60, 80, 200):
        rows = [row for row in render_timeline(timeline, width).plain.split("\n") if "│" in row]
        assert all(len(row) <= width for row in rows)
    assert all(0 <= left <= left + width <= 100.01 for left, width in Page(format_timeline_html(timeline)).bars)


# ── The page ──────────────────────────────────────────────────────────────────────────────────────────────────────────

ODD = Timeline(
    HOSTILE,
    NOON,
    NOON + 60,
    {
        "</title><script>alert('1')</script>": Course(
            Phase.PARALLEL, "<i>", (span(0, 0.01, "failed", '"><svg onload="x"> & ]]>', 1),)
        ),
        HOSTILE: Course(
            Phase.PARALLEL, HOSTILE, (span(1, 61, '"/><script>', "<b>"),), (span(2, 3, "blocked", "&amp;"),)
        ),
        "漢" * 100: Course(Phase.PARALLEL),
    },
    (span(3, 4, "paused", "<i>"),),
    "<script>x</script> failed & more\nsecond",
)


class Page(HTMLParser):
    """Collects the tags and texts of a page, and checks that what must be closed is."""

    VOID = ("meta", "br", "img", "link", "input")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, list[str]] = {}
        self.bars: list[tuple[float, float]] = []  # left and width in percent, of the chart's own
        self.titles: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.tags.append((tag, given))
        if tag not in self.VOID:
            self.open.append(tag)
        if given.get("title") is not None:
            place = re.fullmatch(r"left:([0-9.]+)%;width:([0-9.]+)%", given["style"] or "")  # the axis has no title
            assert place is not None
            self.bars.append((float(place[1]), float(place[2])))
            self.titles.append(given["title"] or "")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.setdefault(self.open[-1] if self.open else "", []).append(data)


@pytest.mark.parametrize("timeline", [TIMELINE, ODD, Timeline("p", NOON, NOON)])
def test_the_page_is_well_formed_needs_nothing_else_and_runs_nothing(timeline: Timeline) -> None:
    text = format_timeline_html(timeline)
    page = Page(text)
    assert page.open == []
    names = {tag for tag, _ in page.tags}
    assert names <= {
        *("html", "meta", "title", "style", "body", "h1", "h2", "div", "span", "small", "p"),
        *("table", "tr", "th", "td"),
    }
    assert not [name for _, attributes in page.tags for name in attributes if name.startswith("on") or name == "src"]
    assert not re.findall(r"https?://|@import|url\(", text)


def test_the_page_draws_every_span_of_the_chart_in_its_row() -> None:
    page = Page(format_timeline_html(TIMELINE))
    assert len(page.bars) == len(TIMELINE.courses) + 11 + 1  # a pause in every row, the attempts, a block
    assert all(0 <= left <= left + width <= 100.01 for left, width in page.bars)
    assert page.bars[page.titles.index("restart, 2026-01-02 12:02:00, 2m 00s: exit code 1")] == (20.0, 20.0)
    assert page.texts["h2"] == ["FOUNDATION", "PARALLEL", "INTEGRATION"]
    texts = {text.strip() for text in page.texts["span"]}
    assert {*TIMELINE.courses, "3× · 7m 00s · $12.50", "Never ran", "12:00", "12:10"} <= texts
    assert page.texts["small"] == [course.name for course in TIMELINE.courses.values()]


def test_every_look_of_a_bar_has_its_colour() -> None:
    text = format_timeline_html(replace(TIMELINE, courses={**TIMELINE.courses, **ODD.courses}))
    looks = {attributes["class"].split()[1] for _, attributes in Page(text).tags if "title" in attributes}  # type: ignore[union-attr]
    assert {"complete", "restart", "running", "failed", "stopped", "vanished", "paused", "blocked"} == looks
    assert all(f".{look}{{--colour:#" in text for look in looks)


def test_the_page_escapes_what_comes_from_outside() -> None:
    page = Page(format_timeline_html(ODD))
    assert "</title><script>alert('1')</script> " in page.texts["span"]
    assert 'failed, 2026-01-02 12:00:00, 0s: "><svg onload="x"> & ]]>' in page.titles


def test_the_page_has_a_row_for_each_attempt() -> None:
    page = Page(format_timeline_html(TIMELINE))
    cells = page.texts["td"]
    assert page.texts["p"] == ["Stream-E failed: gave up", "Stream-D blocked: a key"]
    row = ["Stream-B", "api-implementation", "1", "2026-01-02 12:02:00", "2m 00s", "$2.50", "restart", "exit code 1"]
    assert cells[8:16] == row
    assert page.texts["th"] == ["Stream", "Name", "Attempt", "Began", "Took", "Cost", "Outcome", "Its end"]


def test_text_that_no_file_can_hold_is_replaced() -> None:
    """A worker's words may hold half a surrogate pair: JSON can say it, UTF-8 can't."""
    odd = replace(
        ODD,
        outcome="\ud800",
        courses={"\udfff": Course(Phase.PARALLEL, "", (span(0, 1, "failed", "\ud83d \ufffe\uffff"),))},
    )
    format_timeline_html(odd).encode("utf-8")


# ── The command ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_without_a_run_there_is_a_remedy(workspace: Workspace) -> None:
    workspace.database.add_stream("Stream-A")
    done = workspace.run("timeline")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (f"[ERROR] There was no run yet in this project\nBegin one: {PROGRAM} start\n")


def test_timeline_draws_the_last_run_and_what_never_ran(workspace: Workspace) -> None:
    workspace.database.add_stream("Stream-A", "foundation")
    workspace.database.add_stream("Stream-B")
    workspace.play("cost=1.5 all")
    assert workspace.run("start", "Stream-A").returncode == 0
    done = workspace.run("timeline", env={"COLUMNS": "80"})
    lines = done.stdout.splitlines()
    assert (done.returncode, done.stderr) == (0, "")
    assert re.fullmatch(r"── my-project · .* · \$1\.50 ─+", lines[0])
    assert lines[1] == f"  {workspace.events('run_ended')[0]['reason']}"
    assert re.fullmatch(r"  ✓ Stream-A  Stream-A name  Complete +1 +\d+s  \$1\.50", lines[4])
    assert re.fullmatch(r"  · Stream-B  \S+ name +Never ran", lines[5])
    assert lines[6] == "    Why: not part of this run"
    assert re.fullmatch(r"  Stream-A │ *█*✓ *│", lines[8])
    assert re.fullmatch(r"  Stream-B │ *│", lines[9])
    assert lines[-1] == f"Go on: {PROGRAM} start"


def test_the_page_is_written_over_what_was_there(workspace: Workspace) -> None:
    workspace.database.add_stream("Stream-A")
    assert workspace.run("start").returncode == 0
    page = workspace.root / "a b.html"
    page.write_text("x" * 100_000)
    done = workspace.run("timeline", "--html", "a b.html")
    assert (done.returncode, done.stdout, done.stderr) == (0, "Wrote a b.html\n", "")
    assert Page(page.read_text(encoding="utf-8")).open == []


@pytest.mark.parametrize("words", [("--html", "."), ("--html", "no/such/folder/x.html"), ("--html", "/dev/full")])
def test_a_file_that_can_not_be_written_is_one_error(workspace: Workspace, words: tuple[str, ...]) -> None:
    workspace.database.add_stream("Stream-A")
    assert workspace.run("start").returncode == 0
    done = workspace.run("timeline", *words)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("[ERROR] ")
    assert "Traceback" not in done.stderr


def test_timeline_works_without_a_database(workspace: Workspace) -> None:
    workspace.database.add_stream("Stream-A")
    assert workspace.run("start").returncode == 0
    workspace.database.path.unlink()
    done = workspace.run("timeline")
    assert (done.returncode, done.stderr) == (0, "")
    assert " Stream-A │" in done.stdout


def test_timeline_of_a_run_that_goes_on_reaches_to_now(workspace: Workspace) -> None:
    workspace.database.add_stream("Stream-A")
    workspace.play("until=gate all")
    run = workspace.popen("start")
    workspace.wait_for_worker("Stream-A")
    wait_until(lambda: "●│" in workspace.run("timeline").stdout, "a bar that reaches to the right edge")
    workspace.open_gate("gate")
    assert run.wait(timeout=30) == 0
    (row,) = (line for line in workspace.run("timeline").stdout.splitlines() if " Stream-A │" in line)
    assert "✓" in row
    assert "●" not in row


@pytest.mark.parametrize(
    "garbage",
    [
        b'{"event": "worker_started", "time": "2026-01-0',
        b"\xff\xfe\x00\n",
        b'{"event": "worker_ended", "stream": "\\ud800", "time": "2026-01-02T12:00:00.000Z", "seconds": 1e400}\n',
        b'[1]\n"x"\nnull\n',
    ],
)
def test_a_journal_with_garbage_in_it_is_still_a_timeline(workspace: Workspace, garbage: bytes) -> None:
    workspace.database.add_stream("Stream-A")
    assert workspace.run("start").returncode == 0
    with (workspace.state / "events.jsonl").open("ab") as journal:
        journal.write(garbage)
    done = workspace.run("timeline", "--html", "a.html")
    assert (done.returncode, done.stderr) == (0, "")
    assert " Stream-A │" in workspace.run("timeline").stdout


def test_words_with_half_a_surrogate_pair_can_be_written(workspace: Workspace) -> None:
    workspace.database.add_stream("Stream-A")
    assert workspace.run("start").returncode == 0
    moment = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    event = {"event": "run_ended", "time": moment, "reason": "\ud83d", "exit_code": 1, "version": 1, "clock": 0}
    with (workspace.state / "events.jsonl").open("a") as journal:
        journal.write(json.dumps(event) + "\n")
    done = workspace.run("timeline", "--html", "a.html")
    assert (done.returncode, done.stderr) == (0, "")


def test_a_start_that_has_nothing_to_do_leaves_the_night_in_the_timeline(workspace: Workspace) -> None:
    workspace.database.add_stream("Stream-A")
    workspace.play("cost=1.5 all")
    workspace.complete()
    night = workspace.check("timeline")
    for _ in range(2):
        report = workspace.complete()
        assert "  all complete: 1 stream, 1 task\n" in report
        assert "$1.50" not in report
        assert "│" not in report  # there is nothing to draw
        assert workspace.check("timeline") == night
    assert "$1.50" in night
