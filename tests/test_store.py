"""The store: where the project, its database and its files are found, and what one read of the database gives."""

from __future__ import annotations

import hashlib
import json
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any, Callable, Iterator

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from support import SCHEMA, TaskDatabase, Workspace

from orchestrate import OrchestrateError, Phase, Project, StoreError, Stream, TaskStore, find_database, find_project

unhurried = settings(deadline=None, database=None)  # a busy machine is no failure


@pytest.fixture
def database(tmp_path: Path) -> TaskDatabase:
    return TaskDatabase(tmp_path / "tasks.db")


@pytest.fixture
def store(database: TaskDatabase) -> Iterator[TaskStore]:
    with closing(TaskStore(database.path, 0.05)) as store:
        yield store


def read(database: TaskDatabase) -> Any:
    with closing(TaskStore(database.path)) as store:
        return store.read()


def read_stream(database: TaskDatabase) -> Stream:
    (stream,) = read(database).streams
    assert isinstance(stream, Stream)
    return stream


# ── The project ───────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("made", "given", "script", "cwd", "expected"),
    [
        (["a/.git"], "b", "c/.claude/orchestrator/orchestrate.py", "a", "b"),
        (["a/.git"], None, "c/.claude/orchestrator/orchestrate.py", "a", "c"),
        (["a/.git", "a/b/.claude"], None, "bin/orchestrate.py", "a/b/src", "a/b"),
        (["a/.claude", "a/b/.git"], None, "orchestrator/orchestrate.py", "a/b/src", "a/b"),
        ([".claude"], None, "bin/orchestrate.py", "a/b", "a/b"),  # that of the home folder is the CLI's own
        ([".git"], None, "bin/orchestrate.py", "a/b", "."),
        ([], None, "bin/orchestrate.py", "a/b", "a/b"),
    ],
)
def test_find_project_takes_what_was_given_then_the_scripts_then_the_nearest(
    tmp_path: Path, made: list[str], given: str | None, script: str, cwd: str, expected: str
) -> None:
    for folder in [*made, cwd]:
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
    found = find_project(given and tmp_path / given, tmp_path / script, tmp_path / cwd, tmp_path)  # type: ignore[arg-type]
    assert found.root == tmp_path / expected


def test_find_project_takes_a_git_worktree_whose_git_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "src").mkdir()
    (tmp_path / ".git").write_text("gitdir: elsewhere")
    assert find_project(None, Path("/bin/x"), tmp_path / "src", Path("/home")).root == tmp_path


# ── The database's place ──────────────────────────────────────────────────────────────────────────────────────────────


def make_project(folder: Path, server: object = None) -> Project:
    root = folder / "my-project"
    root.mkdir()
    if server is not None:
        text = json.dumps({"mcpServers": {"task-copilot": server}})
        (root / ".mcp.json").write_text(text, encoding="utf-8-sig")  # with a byte order mark, as some editors write it
    return Project(root)


@pytest.mark.parametrize(
    ("environ", "server", "expected"),
    [
        ({}, None, "home/.claude/tasks/my-project"),
        ({"WORKSPACE_ID": "w"}, None, "home/.claude/tasks/w"),
        ({"TASK_DB_PATH": "/base"}, None, "/base/my-project"),
        ({}, {"env": {"WORKSPACE_ID": "w", "TASK_DB_PATH": "/base"}}, "/base/w"),
        ({"WORKSPACE_ID": "mine"}, {"env": {"WORKSPACE_ID": "w", "TASK_DB_PATH": "/base"}}, "/base/mine"),
        ({"TASK_DB_PATH": "/mine"}, {"env": {"WORKSPACE_ID": "w", "TASK_DB_PATH": "/base"}}, "/mine/w"),
        ({"WORKSPACE_ID": "", "TASK_DB_PATH": ""}, {"env": {"WORKSPACE_ID": ""}}, "home/.claude/tasks/my-project"),
        ({}, {"env": {"WORKSPACE_ID": 7, "TASK_DB_PATH": None}}, "home/.claude/tasks/my-project"),
        ({}, {"env": {"WORKSPACE_ID": "$PROJECT_NAME-x"}}, "home/.claude/tasks/my-project-x"),
        ({}, {"env": {"WORKSPACE_ID": "${PROJECT_NAME}_x"}}, "home/.claude/tasks/my-project_x"),
        ({"BASE": "/v"}, {"env": {"TASK_DB_PATH": "${BASE}/$BASE"}}, "/v/v/my-project"),
        ({}, {"env": {"TASK_DB_PATH": "${BASE}"}}, "home/.claude/tasks/my-project"),
        ({}, {"env": {"TASK_DB_PATH": "${BASE:-/d}/x"}}, "/d/x/my-project"),
        ({"BASE": ""}, {"env": {"TASK_DB_PATH": "${BASE:-/d}/x"}}, "/d/x/my-project"),
        ({"BASE": "/v"}, {"env": {"TASK_DB_PATH": "${BASE:-/d}/x"}}, "/v/x/my-project"),
        ({}, {"env": {"TASK_DB_PATH": "~/x"}}, "home/x/my-project"),
        ({}, {"env": {"TASK_DB_PATH": ".tasks"}}, "my-project/.tasks/my-project"),
        ({}, {}, "home/.claude/tasks/my-project"),
        ({}, {"command": "npx"}, "home/.claude/tasks/my-project"),
        ({}, {"command": "npx", "args": ["x"], "env": None}, "home/.claude/tasks/my-project"),
        ({}, {"env": {"TASK_DB_PATH": "${BASE:-/x}", "WORKSPACE_ID": "$PROJECT_NAME", "OTHER": "1"}}, "/x/my-project"),
    ],
)
def test_find_database_takes_the_environment_then_the_servers_then_the_folders_name(
    tmp_path: Path, environ: dict[str, str], server: object, expected: str
) -> None:
    project = make_project(tmp_path, server)
    (project.root / ".git").mkdir()
    with pytest.raises(OrchestrateError) as caught:
        find_database(project, None, environ, tmp_path / "home")
    first = caught.value.message.splitlines()[0]
    assert first == f"Task Copilot database not found: {tmp_path / expected / 'tasks.db'}"


@pytest.mark.parametrize(
    "content", [b"{", b"[]", b'{"mcpServers": 3}', b'{"mcpServers": {"task-copilot": []}}', b'{"x": "\xff"}']
)
def test_a_broken_mcp_json_is_an_error_that_names_the_file_and_the_way_round_it(tmp_path: Path, content: bytes) -> None:
    project = make_project(tmp_path)
    (project.root / ".mcp.json").write_bytes(content)
    with pytest.raises(OrchestrateError, match=r"\.mcp\.json can't be read") as caught:
        find_database(project, None, {}, tmp_path)
    assert "--db" in caught.value.remedy
    given = tmp_path / "x.db"
    with pytest.raises(OrchestrateError, match=f"not found: {given}$"):
        find_database(project, given, {}, tmp_path)
    given.touch()
    assert find_database(project, given, {}, tmp_path) == given


def test_the_servers_name_for_no_name_is_fallen_back_to_and_the_worker_is_led_there(workspace: Workspace) -> None:
    workspace.database.add_stream("A")
    folder = workspace.database.path.parent
    found = folder.rename(folder.with_name(hashlib.md5(str(workspace.root).encode()).hexdigest()[:12]))
    assert workspace.run("start").returncode == 0  # the worker has found its task
    assert json.loads(workspace.run("status", "--json").stdout)["database"] == str(found / "tasks.db")


# ── File names ────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("stream_id", "name"),
    [
        ("Stream-A_1.x", "Stream-A_1.x"),
        ("../../etc/x", "%2E.%2F..%2Fetc%2Fx"),
        (".", "%2E"),
        ("", "%"),
        ("a b%20", "a%20b%2520"),
        ("é", "%C3%A9"),
        ("🎉", "%F0%9F%8E%89"),
        ("a\n\0~", "a%0A%00%7E"),
        ("orchestrator", "%6Frchestrator"),
        ("a" * 150, "a" * 150),
    ],
)
def test_file_name_encodes_every_byte_that_is_not_plain(stream_id: str, name: str) -> None:
    assert file_name(stream_id) == name


def file_name(stream_id: str) -> str:
    """Return what a stream's files are called."""
    return Project(Path("/")).file(stream_id, ".log").name[: -len(".log")]


def test_a_streams_files_are_where_the_guide_says(tmp_path: Path) -> None:
    project, folder = Project(tmp_path), tmp_path / ".claude" / "orchestrator"
    places = {".pid": "pids", ".stop": "pids", ".log": "logs", ".jsonl": "logs"}
    for suffix, place in places.items():
        assert project.file("Stream-B", suffix) == folder / place / f"Stream-B{suffix}"
    assert (project.journal, project.lock) == (folder / "events.jsonl", folder / "orchestrator.pid")
    assert project.file("orchestrator", ".log").name != "orchestrator.log"  # that is the orchestrator's own


def test_file_name_shortens_a_long_id_and_keeps_its_beginning() -> None:
    name = file_name("é" * 150)
    assert len(name) == 150
    assert name.startswith("%C3%A9%C3%A9")


ids = st.text(st.one_of(st.sampled_from("ab./%~2EoF\0\ud800"), st.characters()), max_size=20)
long_ids = st.tuples(st.sampled_from(["a" * 149, "%" * 60, "é" * 50]), ids).map("".join)


@unhurried
@given(st.one_of(ids, long_ids), st.one_of(ids, long_ids))
@example("", "%")
@example("a" * 300, "a" * 301)
def test_file_name_never_leaves_the_folder_and_never_collides(one: str, other: str) -> None:
    names = {stream_id: file_name(stream_id) for stream_id in {one, other, file_name(one), file_name(other)}}
    assert len(set(names.values())) == len(names)
    for name in names.values():
        assert 0 < len(name.encode("ascii")) <= 150
        assert "/" not in name
        assert not name.startswith(".")


# ── What a read gives ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_read_counts_each_status_takes_an_unknown_one_for_pending_and_a_cancelled_one_for_nothing(
    database: TaskDatabase,
) -> None:
    for status in ("pending", "in_progress", "blocked", "completed", "completed", "cancelled", "on hold"):
        database.add_task("A", status)
    for status in ("completed", "cancelled", "cancelled"):
        database.add_task("B", status)
    database.add_task("C", "cancelled")
    stream, *others = read(database).streams
    assert (stream.pending, stream.in_progress, stream.blocked) == (2, 1, 1)
    assert (stream.completed, stream.cancelled, stream.total, stream.percent) == (2, 1, 6, 33)
    assert [(s.completed, s.total, s.percent, s.is_complete) for s in others] == [(1, 1, 100, True), (0, 0, 100, True)]


def test_archived_tasks_are_excluded_and_null_is_not_archived(database: TaskDatabase) -> None:
    tasks = [database.add_task(stream) for stream in ("A", "A", "A", "B")]
    for task, archived in zip(tasks, (None, 0, 1, 1)):
        database.execute("UPDATE tasks SET archived = ? WHERE id = ?", archived, task)
    stream = read_stream(database)
    assert (stream.id, stream.total) == ("A", 2)


def test_an_old_database_without_the_column_archived_is_read(tmp_path: Path) -> None:
    schema = SCHEMA.replace(",\n    archived INTEGER DEFAULT 0, archived_at TEXT, archived_by_initiative_id TEXT", "")
    assert "archived" not in schema
    database = TaskDatabase(tmp_path / "tasks.db", schema)
    database.add_stream("A", tasks=2)
    assert read_stream(database).total == 2


def test_rows_that_belong_to_no_stream_are_passed_over_and_broken_ones_are_counted(database: TaskDatabase) -> None:
    database.add_stream("A")
    for number, metadata in enumerate([None, "7", '"A"', "[]", "null", '{"streamId": null}', "{}"]):
        database.add_row(f"none-{number}", "pending", metadata)
    assert read(database).warnings == ()
    database.add_row("bad-1", "pending", "{")
    assert read(database).warnings == ("1 task skipped: the metadata is not valid JSON",)
    database.add_row("bad-2", "completed", "")
    assert read(database).warnings == ("2 tasks skipped: the metadata is not valid JSON",)
    assert read_stream(database).total == 1


@pytest.mark.parametrize(
    "metadata",
    [
        '{"streamId": "Z", "streamName": ' + "1" * 6000 + "}",
        '{"streamId": ' + "[" * 990 + "]" * 990 + "}",
        '{"streamId": "Z", "streamPhase": ' + "[" * 960 + "]" * 960 + "}",
    ],
    ids=["number", "deep", "almost too deep"],
)
def test_metadata_that_python_does_not_take_are_no_error(database: TaskDatabase, metadata: str) -> None:
    database.add_stream("A")
    for status in ("pending", "blocked", "completed"):
        database.add_row(f"TASK-{status}", status, metadata)
    backlog = read(database)
    assert "A" in [stream.id for stream in backlog.streams]
    skipped = ("3 tasks skipped: the metadata is not valid JSON",)
    assert backlog.warnings == skipped or len(backlog.streams) == 2  # older Pythons take some of them


@pytest.mark.parametrize("column", ["id", "title", "created_at", "updated_at", "blocked_reason", "status"])
@pytest.mark.parametrize(
    "value",
    ["NULL", "x'FF00'", "7", "1e300", *(f"CAST(x'{text}' AS TEXT)" for text in ("61FF62", "610062", "F09F8E"))],
)
def test_a_column_of_any_type_and_text_that_is_no_utf8_or_holds_a_nul_are_read(
    tmp_path: Path, column: str, value: str
) -> None:
    database = TaskDatabase(tmp_path / "tasks.db", SCHEMA.replace(" NOT NULL", ""))
    for status in ("pending", "in_progress", "blocked"):
        database.add_task("A", status)
    database.add_task("B", "blocked")
    database.execute(f"UPDATE tasks SET {column} = {value} WHERE status = 'blocked' AND id = 'TASK-3'")
    stream, other = read(database).streams
    is_known = column != "status"
    assert (stream.id, stream.total, stream.blocked, len(stream.named_tasks)) == ("A", 3, is_known, 1 + is_known)
    assert (other.id, other.total) == ("B", 1)
    assert all(isinstance(text, str) for task in stream.named_tasks for text in task._asdict().values())


def test_a_numeric_stream_id_is_the_same_as_its_text(database: TaskDatabase) -> None:
    database.add_row("one", "pending", '{"streamId": 7}')
    database.add_row("two", "pending", '{"streamId": "7", "streamName": 8}')
    stream = read_stream(database)
    assert (stream.id, stream.name, stream.total) == ("7", "7", 2)


def test_each_value_comes_from_the_oldest_task_that_has_it(database: TaskDatabase) -> None:
    database.add_task("A", "completed")
    database.add_task("A", "pending", streamName="first", streamDependencies=["X", "X"])
    database.add_task("A", "in_progress", streamName="first", streamPhase="foundation")
    database.add_task("A", "completed", streamName="first", streamPhase="foundation", streamDependencies=["X", "X"])
    backlog = read(database)
    assert backlog.warnings == ()
    assert [(s.name, s.phase, s.dependencies) for s in backlog.streams] == [("first", Phase.FOUNDATION, ("X",))]


def test_tasks_that_disagree_are_a_warning_for_each_value(database: TaskDatabase) -> None:
    database.add_task("A", "completed", streamName="z", streamPhase="integration", streamDependencies=["X"])
    database.add_task("A", "pending", streamName="a", streamPhase="foundation", streamDependencies=[])
    backlog = read(database)
    assert backlog.warnings == tuple(
        f"A: its tasks disagree about {key}; the oldest task's is taken"
        for key in ("streamName", "streamPhase", "streamDependencies")
    )
    assert [(s.name, s.phase, s.dependencies) for s in backlog.streams] == [("z", Phase.INTEGRATION, ("X",))]


def test_the_oldest_task_is_so_by_its_time_then_by_its_id(database: TaskDatabase) -> None:
    for name in ("b", "a", "c"):
        database.add_row(name, "pending", json.dumps({"streamId": "A", "streamName": name}))
    assert read_stream(database).name == "a"
    database.execute("UPDATE tasks SET created_at = '2025-01-01T00:00:00.000Z' WHERE id = 'c'")
    assert read_stream(database).name == "c"


NO_LIST = "TASK-2 has streamDependencies that are no list of stream ids"


@pytest.mark.parametrize(
    ("key", "values", "field", "expected"),
    [
        ("streamPhase", ["later", "Parallel", "", 3, ["parallel"], {}], "problem", "TASK-2 has the unknown phase {}"),
        ("streamPhase", [None], "phase", Phase.PARALLEL),
        ("streamPhase", [None], "problem", ""),
        ("other", [None], "phase", Phase.PARALLEL),
        ("other", [None], "problem", ""),
        ("streamDependencies", ["B", ["B"]], "dependencies", ("B",)),
        ("streamDependencies", [["C", "B"]], "dependencies", ("C", "B")),
        ("streamDependencies", [[], None], "dependencies", ()),
        ("streamDependencies", [7, [7], {"B": 1}, [["B"]]], "problem", NO_LIST),
    ],
)
def test_a_phase_and_dependencies_are_taken_or_are_a_problem_that_names_the_task(
    tmp_path: Path, key: str, values: list[object], field: str, expected: object
) -> None:
    for number, value in enumerate(values):
        database = TaskDatabase(tmp_path / f"{number}.db")
        database.add_task("A")
        database.add_task("A", **{key: value})
        text = expected and f"task {expected}".format(json.dumps(value))
        assert getattr(read_stream(database), field) == (text if field == "problem" else expected)


def test_the_order_is_by_phase_then_natural(database: TaskDatabase) -> None:
    for stream, phase in [("I", "integration"), ("S10", None), ("S2", "parallel"), ("s1", None), ("Z", "foundation")]:
        database.add_stream(stream, phase)
    assert [stream.id for stream in read(database).streams] == ["Z", "S2", "S10", "s1", "I"]


def test_blocked_reasons_keep_newlines_and_quotes(database: TaskDatabase) -> None:
    reasons = {f"TASK-{number}": reason for number, reason in ((10, 'say "yes"\n\tor \\n'), (2, None), (1, "{}"))}
    for task, reason in reasons.items():
        database.add_row(task, "blocked", '{"streamId": "A"}')
        database.execute("UPDATE tasks SET blocked_reason = ? WHERE id = ?", reason, task)
    stream = read_stream(database)
    assert [(task.id, task.reason) for task in stream.named_tasks] == [
        ("TASK-1", "{}"),
        ("TASK-2", ""),
        ("TASK-10", 'say "yes"\n\tor \\n'),
    ]
    assert stream.is_blocked
    assert "; no reason given (TASK-2); " in stream.block


def test_tasks_at_work_are_named_and_others_are_not(database: TaskDatabase) -> None:
    for status in ("pending", "in_progress", "completed", "blocked", "cancelled"):
        database.add_task("A", status)
    assert [(t.id, t.title, t.status) for t in read_stream(database).named_tasks] == [
        ("TASK-2", "Title of TASK-2", "in_progress"),
        ("TASK-4", "Title of TASK-4", "blocked"),
    ]


@pytest.mark.parametrize("text", ["a\0b", "a\ud800b", "\udcff"])
def test_what_no_environment_can_hold_is_replaced_in_ids_names_and_dependencies(
    database: TaskDatabase, text: str
) -> None:
    database.add_task(text, streamName=text, streamDependencies=[text])
    stream = read_stream(database)
    for value in (stream.id, stream.name, *stream.dependencies):
        subprocess.run(["true", value], env={"X": value}, check=True)
    assert stream.dependencies == (stream.id,)


@pytest.mark.parametrize("stream_id", ["²", "1²", "٣", "9" * 5000], ids=["²", "1²", "٣", "long"])
def test_an_id_with_odd_digits_is_read(database: TaskDatabase, stream_id: str) -> None:
    database.add_task(stream_id)
    database.add_task("A")
    assert {stream.id for stream in read(database).streams} == {stream_id, "A"}


# ── The file ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", ["a?mode=rw", "a#b", "100%41", "two words", "é", "\udcff"])
def test_a_path_may_hold_what_means_something_in_a_uri(tmp_path: Path, name: str) -> None:
    plain = TaskDatabase(tmp_path / "plain" / "tasks.db")
    plain.add_stream("A")
    (tmp_path / "plain").rename(tmp_path / name)
    with closing(TaskStore(tmp_path / name / "tasks.db")) as store:
        assert [stream.id for stream in store.read().streams] == ["A"]


def test_changed_is_false_at_rest_and_true_after_a_commit_of_another_process(
    database: TaskDatabase, store: TaskStore
) -> None:
    database.add_stream("A")
    assert store.changed()  # nothing was read yet
    store.read()
    assert [store.changed() for _ in range(3)] == [False] * 3
    program = "import sqlite3, sys; c = sqlite3.connect(sys.argv[1]); c.execute(sys.argv[2]); c.commit(); c.close()"
    statement = "UPDATE tasks SET status = 'completed'"
    subprocess.run([sys.executable, "-c", program, str(database.path), statement], check=True)
    assert store.changed()
    assert store.changed()  # until it is read
    assert store.read().streams[0].completed == 1
    assert not store.changed()


@pytest.mark.parametrize("is_asked", [True, False])
def test_a_file_that_was_replaced_is_a_change_and_is_read(
    tmp_path: Path, database: TaskDatabase, store: TaskStore, is_asked: bool
) -> None:
    database.add_stream("old")
    store.read()
    other = TaskDatabase(tmp_path / "other.db")
    other.add_stream("new")
    other.path.replace(database.path)
    assert not is_asked or store.changed()
    assert [stream.id for stream in store.read().streams] == ["new"]
    assert not store.changed()


def break_by_deleting(database: TaskDatabase) -> Callable[[], object]:
    kept = database.path.rename(database.path.with_name("kept.db"))
    return lambda: kept.rename(database.path)


def break_by_content(content: bytes) -> Callable[[TaskDatabase], Callable[[], object]]:
    def break_it(database: TaskDatabase) -> Callable[[], object]:
        repair = break_by_deleting(database)
        database.path.write_bytes(content)
        return repair

    return break_it


def break_by_locking(database: TaskDatabase) -> Callable[[], object]:
    locker = sqlite3.connect(database.path, isolation_level=None)
    locker.execute("BEGIN EXCLUSIVE")
    locker.execute("UPDATE tasks SET status = 'completed'")

    def repair() -> None:
        locker.execute("COMMIT")
        locker.close()

    return repair


@pytest.mark.parametrize("has_read", [True, False])
@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (break_by_deleting, "No such file or directory"),
        (break_by_content(b"no database at all, but long enough to be looked at" * 100), "file is not a database"),
        (break_by_content(b""), "tasks"),  # a database without the table
        (break_by_locking, "SQLite query failed: database is locked"),
    ],
    ids=["deleted", "corrupt", "without the table", "locked"],
)
def test_a_database_that_cant_be_read_is_an_error_and_is_read_again_afterwards(
    database: TaskDatabase,
    store: TaskStore,
    break_it: Callable[[TaskDatabase], Callable[[], object]],
    message: str,
    has_read: bool,
) -> None:
    database.execute("PRAGMA journal_mode = DELETE")  # a reader in WAL mode is never locked out
    database.add_stream("A")
    if has_read:
        store.read()
    repair = break_it(database)
    with pytest.raises(StoreError, match=message):
        store.read()
    repair()
    assert store.changed()
    assert [stream.id for stream in store.read().streams] == ["A"]


def test_a_change_made_while_the_database_was_locked_is_seen(database: TaskDatabase, store: TaskStore) -> None:
    database.execute("PRAGMA journal_mode = DELETE")
    database.add_stream("A")
    store.read()
    repair = break_by_locking(database)
    with pytest.raises(StoreError, match="locked"):
        store.changed()
    repair()
    assert store.changed()


def test_the_store_sees_what_another_server_has_open_and_never_writes(
    database: TaskDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    connect, made = sqlite3.connect, []
    with closing(connect(database.path)) as server:
        server.execute("INSERT INTO tasks VALUES ('T',0,0,'t',0,0,'pending',0,0,'{\"streamId\": \"A\"}','','',0,0,0)")
        server.commit()  # into the write-ahead log, and not yet into the file
        files = [database.path, database.path.with_name("tasks.db-wal")]
        before = [(path.read_bytes(), path.stat().st_mtime_ns) for path in files]
        assert read_stream(database).id == "A"
        assert [(path.read_bytes(), path.stat().st_mtime_ns) for path in files] == before
    monkeypatch.setattr(sqlite3, "connect", lambda *words, **more: made.append(connect(*words, **more)) or made[-1])
    with closing(TaskStore(database.path)) as store:
        store.read()
        with pytest.raises(sqlite3.OperationalError, match="readonly"):
            made[-1].execute("DELETE FROM tasks")
