"""Whole pictures of every state, at fixed sizes; odd names that keep the columns; terminals without Unicode."""

from __future__ import annotations

import codecs
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest
from pictures import (
    EVERY_STATE,
    HOSTILE,
    NOON,
    SIZES,
    SNAPSHOT,
    STANDINGS,
    TIMELINE,
    WIDE_NAMES,
    WORKERS,
    draw,
    draw_album,
    draw_screen,
    draw_svg,
    rename,
)
from rich.cells import cell_len
from support import Workspace, replace
from test_setup import DEMO_TEXT

from orchestrate import Phase, Snapshot, Standing, Stream, StreamState, Timeline, replace_unencodable

ALBUM = (Path(__file__).parent / "pictures.txt").read_text(encoding="utf-8")
PICTURES = [pytest.param(*size, id=f"{size[0]}-{size[1]}x{size[2]}") for size in SIZES]


def find_picture(album: str, what: str, width: int, height: int) -> str:
    """Return one picture of an album."""
    return album.split(f"#### {what} {width}x{height}\n")[1].split("#### ")[0]


@pytest.mark.parametrize(("what", "width", "height"), PICTURES)
def test_a_picture_of_every_state_is_as_in_the_album(what: str, width: int, height: int) -> None:
    """After a change that is meant, tests/pictures.py draws the album anew."""
    assert find_picture(draw_album(), what, width, height) == find_picture(ALBUM, what, width, height)


def test_every_state_is_in_the_pictures_with_a_look_of_its_own() -> None:
    assert {standing.state for standing in STANDINGS.values()} == set(StreamState)
    lines = draw("board", 200, 40)
    rows = {stream_id: line[2] for line in lines for stream_id, *_ in EVERY_STATE if f" {stream_id} " in line}
    symbols = {STANDINGS[stream_id].state: symbol for stream_id, symbol in rows.items()}
    assert len(set(symbols.values())) == len(symbols) == len(StreamState)


def read_svg(text: str) -> list[str]:
    """Return the lines that stand in a picture of a terminal, without what lies around them."""
    rows: dict[float, list[str]] = {}
    for element in ElementTree.fromstring(text).iter("{http://www.w3.org/2000/svg}text"):
        words = (element.text or "").replace("\xa0", " ")
        if "textLength" in element.attrib and words.strip():
            row = rows.setdefault(float(element.attrib["y"]), [" "] * 80)
            begin = round(float(element.attrib["x"]) * len(words) / float(element.attrib["textLength"]))
            row[begin : begin + len(words)] = words
    return ["".join(row).rstrip() for _, row in sorted(rows.items())]


def test_the_picture_in_the_readme_is_the_board_of_the_demo() -> None:
    """After a change that is meant, tests/pictures.py draws it anew. Versions of rich differ in what is around it."""
    screen = [line.rstrip() for line in draw_screen().plain.split("\n")]
    assert read_svg((Path(__file__).parent / "board.svg").read_text(encoding="utf-8")) == screen
    drawn = draw_svg()
    assert "textLength" not in drawn or read_svg(drawn) == screen  # rich 12.3 wraps a page into its picture
    # What happened is what a demo says, word for word: test_setup.py compares that with real ones.
    events = re.sub(r"\n +", " ", "\n".join(screen[: next(i for i, line in enumerate(screen) if line[0] == "─")]))
    masked = re.sub(r"PID \d+|in \ds", lambda found: f"{found[0].split()[0]} N", events)
    assert [line[12:] for line in masked.split("\n")] == DEMO_TEXT.split("\n")[7:12]
    readme = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
    assert "](tests/board.svg)" in readme


# ── What does not fit ─────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("height", range(5, 24))
@pytest.mark.parametrize("width", [60, 80, 200])
def test_a_board_fits_and_every_stream_is_in_it_or_counted(width: int, height: int) -> None:
    lines = draw("board", width, height)
    assert len(lines) <= height
    rows = sum("[" in line and "/" in line for line in lines)
    counted = [int(count) for line in lines if line.startswith("  … ") for count in re.findall(r"\+(\d+)", line)]
    assert counted or rows == len(EVERY_STATE)
    if width == 200:
        assert rows + sum(counted) == len(EVERY_STATE)


def test_captions_stand_as_soon_as_there_is_room_for_all_of_them() -> None:
    with_captions = len(EVERY_STATE) + 3 + 6
    assert "  PARALLEL" in draw("board", 80, with_captions)
    assert "  PARALLEL" not in draw("board", 80, with_captions - 1)
    assert sum("/" in line for line in draw("board", 80, with_captions - 1)[1:]) == len(EVERY_STATE)


def test_usage_stands_in_columns_from_100_columns_on() -> None:
    assert "256 MB" not in "\n".join(draw("board", 99, 24))
    for width in (100, 101, 200):
        heading, *rows = [line for line in draw("board", width, 24) if "  stream" in line or "●" in line or "◎" in line]
        assert [cell_len(row) for row in (heading, *rows)] == [width, width, width - 7]
        assert heading.endswith("    time  try  cpu     mem   cost")
        assert rows[0].endswith("  6m 12s    2  37%  256 MB  $1.22")
        assert rows[1].endswith("  1m 12s    1   0%  128 MB")


def test_the_bars_grow_and_nothing_is_two_thirds_empty_at_200_columns() -> None:
    bars = {
        width: max(line.count("█") + line.count("░") for line in draw("board", width)[3:]) for width in (60, 80, 200)
    }
    assert bars[60] < bars[80] < bars[200]
    rows = [line for line in draw("board", 200) if "/" in line][1:]
    assert all(len(row.replace(" ", "")) * 3 > 200 for row in rows)


def test_a_busy_nights_usage_does_not_run_together() -> None:
    worker = replace(WORKERS["Stream-B"], cost=1234.5, memory=123_456 * 2**20, cpu=64.0)
    snapshot = replace(SNAPSHOT, workers={**WORKERS, "Stream-B": worker})
    (row,) = (line for line in draw("board", 120, 24, snapshot=snapshot) if "● Stream-B" in line)
    assert row.split()[-5:] == ["2", "6400%", "123456", "MB", "$1235.30"]
    assert cell_len(row) <= 120


@pytest.mark.parametrize("width", [60, 80])
def test_who_needs_a_person_is_never_hidden_behind_who_does_not(width: int) -> None:
    """On a small board a failed stream, or at least its count, can be read: it is not what the window cuts off."""
    assert "failed" in "\n".join(draw("board", width, 10)).lower()


# ── Odd names ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def find_offsets(lines: list[str], pattern: str) -> set[int]:
    """Return the columns at which a pattern is found, over all lines."""
    return {cell_len(line[: match.start()]) for line in lines for match in re.finditer(pattern, line)}


def draw_odd(what: str, width: int, height: int) -> list[str]:
    """Return a picture whose streams, project and reasons have wide, long and hostile names."""
    snapshot, standings = rename(WIDE_NAMES)
    courses = {stream_id: replace(course) for stream_id, course in zip(standings, TIMELINE.courses.values())}
    timeline = replace(TIMELINE, project=HOSTILE, courses=courses, outcome=f"{HOSTILE} failed\n{'漢' * 300}")
    return draw(what, width, height, snapshot=snapshot, standings=standings, timeline=timeline)


@pytest.mark.parametrize(("what", "width", "height"), PICTURES)
def test_odd_names_keep_the_columns_and_are_not_obeyed(what: str, width: int, height: int) -> None:
    lines = draw_odd(what, width, height)
    commands = ("    claude ", "    python ", "  To answer: ")  # which are never cut
    assert [line for line in lines if cell_len(line) > width and not line.startswith(commands)] == []
    assert not re.search("[\x00-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", "".join(lines))
    if what == "timeline":
        assert len(find_offsets([line for line in lines if line.count("│") == 2], "│")) == 2
    else:
        assert len(find_offsets([line for line in lines if "/" in line], r"(?<=\[)[█░]+\]")) == 1
    if what in ("status", "dashboard"):
        assert [cell_len(line) for line in lines[:3]] == [min(width, 73)] * 3


# ── Terminals without Unicode ─────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def _handler() -> None:
    codecs.register_error("orchestrate", replace_unencodable)


def to_ascii(lines: list[str]) -> list[str]:
    return [line.encode("ascii", "orchestrate").decode("ascii") for line in lines]


@pytest.mark.usefixtures("_handler")
@pytest.mark.parametrize(("what", "width", "height"), PICTURES)
def test_in_ascii_a_picture_keeps_its_columns_and_has_no_question_mark(what: str, width: int, height: int) -> None:
    lines = draw(what, width, height)
    plain = to_ascii(lines)
    assert [len(line) for line in plain] == [cell_len(line) for line in lines]
    assert [line for line in plain if "?" in line] == []


@pytest.mark.usefixtures("_handler")
@pytest.mark.parametrize(("what", "width", "height"), PICTURES)
def test_in_ascii_odd_names_keep_their_columns(what: str, width: int, height: int) -> None:
    lines = draw_odd(what, width, height)
    plain = to_ascii(lines)
    assert [len(line) for line in plain] == [cell_len(line) for line in lines]


@pytest.mark.usefixtures("_handler")
def test_in_ascii_no_two_states_look_alike() -> None:
    rows = [line for line in to_ascii(draw("board", 200, 40)) if "[" in line and "/" in line]
    assert len({row[2] for row in rows}) == len(rows) == len(EVERY_STATE)
    assert "?" not in {row[2] for row in rows}


@pytest.mark.parametrize("encoding", ["latin-1", "cp437", "koi8-r", "cp1252", "shift_jis"])
@pytest.mark.usefixtures("_handler")
def test_an_encoding_that_has_some_symbols_gets_the_rest_in_ascii(encoding: str) -> None:
    for line in draw("board", 80, 24):
        written = line.encode(encoding, "orchestrate").decode(encoding)
        assert "?" not in written
        assert len(written) == len(line)


def test_the_handler_is_for_encoding_alone() -> None:
    error = UnicodeDecodeError("ascii", b"\xff", 0, 1, "no")
    with pytest.raises(UnicodeDecodeError):
        replace_unencodable(error)


@pytest.mark.parametrize("words", [("status",), ("status", "--dashboard"), ("timeline",), ("logs", "--no-follow")])
def test_commands_write_ascii_where_the_environment_asks_for_it(workspace: Workspace, words: tuple[str, ...]) -> None:
    workspace.database.add_stream("Stream-A", "foundation", streamName="漢字")
    done = workspace.run("start", env={"PYTHONIOENCODING": "ascii"})
    assert done.returncode == 0
    shown = workspace.run(*words, env={"PYTHONIOENCODING": "ascii"})
    assert (shown.returncode, shown.stderr) == (0, "")
    assert (done.stdout + shown.stdout).isascii()
    assert [line for line in shown.stdout.splitlines() if "?" in line.replace("????", "")] == []


def test_an_empty_project_is_drawn() -> None:
    nothing = Snapshot("p", ())
    for what in ("status", "dashboard", "board"):
        assert draw(what, 60, 24, snapshot=nothing, standings={})
    assert draw("timeline", 60, timeline=Timeline("p", NOON, NOON))[0].startswith(
        "── p · 2026-01-02 12:00 · 0s · $0.00 ──"
    )


def test_a_stream_that_was_just_archived_leaves_no_gap() -> None:
    standings = {"A": Standing(StreamState.COMPLETE)}
    snapshot = Snapshot("p", (Stream("A", "a", Phase.PARALLEL, completed=1),), workers=WORKERS)
    assert [line[:5] for line in draw("board", 80, 24, snapshot=snapshot, standings=standings)][3:5] == [
        "  PAR",
        "  ✓ A",
    ]
