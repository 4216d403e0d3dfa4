"""Worktrees and branches: real repositories, the real git, and workers that are real processes.

A *finished* stream is one whose tasks are complete and whose branch was made with git alone, as a run would leave it.
`/*.txt` of a test's project is ignored by git (support.py), so whatever is to be seen by git is named otherwise.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import signal
import subprocess
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import support
from support import PROGRAM, SCRIPT, Workspace, is_running, wait_until

from orchestrate import WORKER_RULES

# Longer than any test: whatever goes on without it was noticed by itself.
NO_POLL = ("--poll-interval", "600")
GIT = shutil.which("git") or "git"
HANG = "#!/bin/sh\ntouch {mark}\nexec sleep 3600\n"


def add_streams(workspace: Workspace, *names: str, **metadata: Any) -> None:
    """Add streams of one task each: F of the foundation, I of the integration, all others parallel."""
    for name in names:
        workspace.database.add_stream(name, {"F": "foundation", "I": "integration"}.get(name), **metadata)


def tree(workspace: Workspace, stream: str) -> Path:
    """Where a stream's worktree belongs."""
    return workspace.root / ".claude" / "worktrees" / stream


def run(workspace: Workspace, *words: str, add: str = "", default: str = "all", code: int = 0, **more: Any) -> str:
    """Add streams, give the workers their parts, run all streams, and return what the run said."""
    options = {name: more.pop(name) for name in ("env", "script") if name in more}
    add_streams(workspace, *add.split())
    workspace.play(default, **more)
    done = workspace.run("start", *NO_POLL, *words, **options)
    assert (done.returncode, done.stderr) == (code, ""), done.stdout
    return done.stdout


def places(workspace: Workspace) -> list[tuple[str, str, str | None]]:
    """Stream, folder in the project, branch of each worker that was started."""
    started = workspace.events("worker_started")
    return [(e["stream"], os.path.relpath(e["folder"], workspace.root), e["branch"]) for e in started]


def warnings(workspace: Workspace) -> list[str]:
    """The warnings of the journal."""
    return [event["message"] for event in workspace.events("warning")]


def prompt(workspace: Workspace, stream: str, attempt: int = -1) -> str:
    """What a worker was told behind what every worker is told, its ports included."""
    words = workspace.argv(stream)[attempt]
    told = words[words.index("-p") + 1].split(f"Begin by running: /continue {stream}\n{WORKER_RULES}", 1)[1]
    ports, _, rest = told.partition("\n")
    assert re.fullmatch(r"- Ports \d+0 to \d+9 are yours alone; the first is in \$ORCHESTRATE_PORT", ports)
    return rest


def failures(workspace: Workspace) -> dict[str, str]:
    """The streams that have failed, and why."""
    failed = [event for event in workspace.events("state") if event["state"] == "FAILED"]
    return {event["stream"]: event["reason"] for event in failed}


def head(workspace: Workspace, revision: str = "HEAD") -> str:
    """The commit that a name stands for."""
    return workspace.git("rev-parse", "--verify", revision).strip()


def subjects(workspace: Workspace, revision: str = "HEAD") -> list[str]:
    """The subjects of the commits of a branch, the youngest first, without merges."""
    return workspace.git("log", "--topo-order", "--no-merges", "--format=%s", revision).split("\n")[:-1]


def branches(workspace: Workspace) -> list[str]:
    """All branches."""
    return workspace.git("for-each-ref", "--format=%(refname:short)", "refs/heads").split()


def status(workspace: Workspace, cwd: Path | None = None) -> str:
    """What git has to say of a working tree."""
    return workspace.git("status", "--porcelain", cwd=cwd)


def put(path: Path, text: str) -> Path:
    """Write a file with its folders."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def commit(workspace: Workspace, name: str, text: str, cwd: Path | None = None) -> str:
    """Commit one file, in the project or a worktree, and return the commit."""
    put((cwd or workspace.root) / name, text)
    workspace.git("add", "--force", name, cwd=cwd)
    workspace.git("commit", "--quiet", "-m", f"Write {name}", cwd=cwd)
    return workspace.git("rev-parse", "HEAD", cwd=cwd).strip()


def add_worktree(workspace: Workspace, stream: str, *files: str) -> Path:
    """Make a stream's worktree and branch with git alone, with a commit for each file."""
    folder = tree(workspace, stream)
    put(folder.parent / ".gitignore", "*\n")
    workspace.git("worktree", "add", "--quiet", "-b", f"stream/{stream}", str(folder))
    for name in files:
        commit(workspace, name, f"{stream}\n", folder)
    return folder


def finish(workspace: Workspace, stream: str, *files: str, **metadata: Any) -> Path:
    """Add a finished stream, and return its worktree."""
    workspace.database.add_stream(stream, **metadata)
    workspace.database.set_status("completed", stream)
    for name in ("pids", "logs"):
        (workspace.state / name).mkdir(parents=True, exist_ok=True)
    put(workspace.state / ".gitignore", "*\n")
    put(workspace.state / "orchestrator.pid", "")  # a lock stays where it is
    folder = add_worktree(workspace, stream, *files)
    put(
        workspace.root / workspace.git("rev-parse", "--git-dir", cwd=folder).strip() / "orchestrate", f"stream/{stream}"
    )
    return folder


def listing(folder: Path) -> dict[str, str]:
    """Return every file, folder and link below a folder, with its content."""
    found = {}
    for path in sorted(folder.rglob("*")):
        content = os.readlink(path) if path.is_symlink() else path.read_bytes().hex() if path.is_file() else ""
        found[str(path.relative_to(folder))] = f"{path.lstat().st_mode:o} {content}"
    return found


def exclude(workspace: Workspace, pattern: str) -> None:
    """Let git ignore these files, beside the tests' own."""
    with (workspace.root / ".git" / "info" / "exclude").open("a") as file:
        file.write(f"{pattern}\n")


def hasten(workspace: Workspace, **constants: str) -> Path:
    """Make a copy of the program with other constants, which git ignores."""
    exclude(workspace, "/orchestrate.py")
    return support.hasten(workspace, **constants)


def shell(workspace: Workspace, script: str) -> None:
    """Do what a person could type in the project; $A is the worktree of stream A."""
    environment = workspace.environment(A=str(tree(workspace, "A")))
    subprocess.run(["sh", "-ec", script], cwd=workspace.root, env=environment, check=True, stdout=subprocess.DEVNULL)


VENDOR = (
    "git init -q ../inner; touch ../inner/inner.py; git -C ../inner add .; git -C ../inner commit -qm Begin; "
    "git -c protocol.file.allow=always submodule -q add $PWD/../inner vendored; git commit -qm Vendor"
)
LINK = (
    "mkdir ../main; mv .git ../main; git -C ../main worktree add -q -b dev $PWD/../moved; mv ../moved/.git .; "
    "git worktree repair; [ -f .git ]"
)


def shadow_git(workspace: Workspace, script: str) -> Path:
    """Put another git before the real one."""
    path = workspace.bin / "git"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


def begin(workspace: Workspace, stream: str, part: str) -> tuple[subprocess.Popen[str], int]:
    """Start a run with workers of this part; return it, and the PID of this stream's worker once it is at work."""
    workspace.play(part)
    process = workspace.popen("start", *NO_POLL)
    return process, workspace.wait_for_worker(stream)


@pytest.fixture
def repository(workspace: Workspace) -> Workspace:
    """A project that is a git repository with one commit."""
    workspace.make_repository()
    return workspace


# ── Where a stream works ──────────────────────────────────────────────────────────────────────────────────────────────


def test_each_parallel_stream_works_in_a_worktree_of_its_own_and_the_others_in_the_root(repository: Workspace) -> None:
    here = "write=here.py"
    run(repository, add="F A B I", default=f"{here} all", F="commit=base.py all", I=f"{here} git=add,here.py all")
    assert sorted(places(repository)) == [
        ("A", ".claude/worktrees/A", "stream/A"),
        ("B", ".claude/worktrees/B", "stream/B"),
        ("F", ".", "main"),
        ("I", ".", "main"),
    ]
    for stream in ("A", "B"):
        assert (tree(repository, stream) / "here.py").read_text() == f"{stream}\n"  # its working directory
        assert (tree(repository, stream) / "base.py").read_text() == "F\n"  # committed in this very run
        assert head(repository, f"stream/{stream}") == head(repository, "main")
        assert status(repository, tree(repository, stream)) == "?? here.py\n"
    assert (repository.root / "here.py").read_text() == "I\n"
    assert status(repository) == "A  here.py\n"  # nothing of ours
    assert warnings(repository) == []  # the root was clean
    where = "\n## Where you work\n- Folder: {}\n- Branch: {}\n"
    assert prompt(repository, "F") == where.format(repository.root, "main")
    assert prompt(repository, "A") == where.format(tree(repository, "A"), "stream/A") + (
        f"- This is a git worktree of {repository.root}: other streams work in others at this time\n"
        "- Change nothing outside of it, commit to this branch, and do not switch to another one\n"
        f"- Ignored by git, and not here; look in {repository.root}: argv.txt, parts.json, worker-times.txt\n"
    )


def test_the_root_is_clean_for_git_after_a_run_and_after_a_clean_up(repository: Workspace) -> None:
    assert run(repository, add="A").endswith(f"\nClean up: {PROGRAM} clean\n")  # without a command that merges
    assert status(repository) == ""
    assert repository.git("status", "--porcelain", "--ignored").split("\n")[:-1] == [
        "!! .claude/",
        "!! argv.txt",
        "!! parts.json",
        "!! worker-times.txt",
    ]
    assert repository.run("clean").returncode == 0
    assert status(repository) == ""


def test_a_worktree_holds_what_is_in_git_and_nothing_else(workspace: Workspace) -> None:
    workspace.make_repository("README.md", "src/deep/module.py", ".gitignore")
    put(workspace.root / "new.py", "")
    run(workspace, add="A")
    files = {name for name in listing(tree(workspace, "A")) if (tree(workspace, "A") / name).is_file()}
    assert files == {".git", ".gitignore", "README.md", "src/deep/module.py"}
    assert status(workspace, tree(workspace, "A")) == ""


def test_a_dependent_stream_branches_from_head_as_it_is_when_it_starts(repository: Workspace) -> None:
    add_streams(repository, "A")
    add_streams(repository, "B", streamDependencies=["A"])
    repository.play("all", A="commit=a.py until=go.txt all")
    process = repository.popen("start", *NO_POLL)
    repository.wait_for_worker("A")
    wait_until(lambda: (tree(repository, "A") / "a.py").exists(), "the work of A")
    later = commit(repository, "later.py", "")
    repository.open_gate("go.txt")
    assert process.wait(timeout=20) == 0
    assert head(repository, "stream/B") == later
    assert head(repository, "stream/A~1") == head(repository, "main~1")


# ── Names ─────────────────────────────────────────────────────────────────────────────────────────────────────────────

ODD_IDS = [
    "Stream-A", "A", "a", "a b", "a%20b", " ", "ü/x", "..", ".", ".a", "a.", "a..", "a..b", "a...b", "." * 300,
    "x.lock", "x.LOCK", "x.lock.lock", "a/b.lock/c", "a.lock" * 50, "a" * 300, "ü" * 300, "a" * 299 + "b",
    "a" * 145 + "." * 50, "a" * 133 + "." + "/" * 30, "👩‍💻", "-rf", "@", "@{-1}", "HEAD", "refs/heads/a", "a~1", "a^",
    "a:b", "a?b", "a*b", "a[b", "a\\b", "a\nb", "a\x7fb", "\x1b[31m", "a//b", "/a", "a/", "%", "~", "'", '"', "$(id)",
]  # fmt: skip


def test_the_plan_names_a_branch_that_git_takes_and_a_folder_for_every_id_and_makes_none(repository: Workspace) -> None:
    add_streams(repository, *ODD_IDS)
    before = listing(repository.root)
    done = repository.run("start", "--dry-run")
    assert done.returncode == 0
    assert f"Worktrees {repository.root}/.claude/worktrees\n" in done.stdout
    assert "; in .claude/worktrees/a%20b on stream/a%20b\n" in done.stdout
    folders, refs = zip(*re.findall(r"(?m); in \.claude/worktrees/([^/\s]+) on stream/(\S+)$", done.stdout))
    assert len(set(folders)) == len(set(refs)) == len(ODD_IDS)
    for name in (*folders, *refs):
        assert len(os.fsencode(name)) <= 255 - len(".lock")
    check = [GIT, "check-ref-format", "--branch"]
    assert [r for r in refs if subprocess.run([*check, f"stream/{r}"], capture_output=True).returncode] == []
    assert listing(repository.root) == before


@pytest.mark.slow
def test_streams_with_odd_ids_work_in_their_worktrees(repository: Workspace) -> None:
    ids = ["a b", "ü/x", "..", "x.lock", "a..b", "👩‍💻", "é" * 150]
    add_streams(repository, *ids)
    run(repository, "--max-workers", "10", default="commit=a.py all")
    folders = {Path(event["folder"]) for event in repository.events("worker_started")}
    assert len(folders) == len(ids)
    assert {folder.parent for folder in folders} == {tree(repository, "x").parent}
    assert sorted((folder / "a.py").read_text() for folder in folders) == sorted(f"{name}\n" for name in ids)
    merged = repository.run("merge", "--", *ids)
    assert merged.returncode == 1, merged.stdout  # they all write the same file
    assert merged.stdout.count("Merged") == 1


# ── Again: a restart, a second run, a repair ──────────────────────────────────────────────────────────────────────────


def test_a_restart_finds_the_commits_and_the_uncommitted_files_of_the_attempt_before(repository: Workspace) -> None:
    run(repository, add="A", A=["commit=one.py write=two.py exit=1", "commit=three.py all"])
    assert places(repository) == [("A", ".claude/worktrees/A", "stream/A")] * 2
    assert subjects(repository, "stream/A") == ["A:_three.py", "A:_one.py", "Begin"]
    assert status(repository, tree(repository, "A")) == "?? two.py\n"
    assert "- This is attempt 2 on A. The last worker ended: exit code 1\n" in prompt(repository, "A")


def test_a_second_run_goes_on_in_the_worktree_of_the_first(repository: Workspace) -> None:
    run(repository, add="A", default="commit=one.py write=two.py all")
    repository.database.add_task("A")
    commit(repository, "main.py", "")
    run(repository, default="commit=three.py all")
    assert subjects(repository, "stream/A") == [
        "A:_three.py",
        "A:_one.py",
        "Begin",
    ]  # it has commits: HEAD is not taken
    assert status(repository, tree(repository, "A")) == "?? two.py\n"


# What a stream has committed, what a person has done since, whether the run brings its branch forward to HEAD, what the
# worktree holds then, and what git has to say of it.
LEFT: dict[str, tuple[str, str, bool, dict[str, str], str]] = {
    "uncommitted": ("", "echo mine > $A/mine.py", True, {"main.py": "HEAD\n", "mine.py": "mine\n"}, "?? mine.py\n"),
    "in the way": ("", "echo mine > $A/main.py", False, {"main.py": "mine\n"}, "?? main.py\n"),
    "committed": ("a.py", "", False, {"a.py": "A\n"}, ""),
    "only a branch": ("", "git worktree remove $A", True, {"main.py": "HEAD\n"}, ""),
    "only a branch with a commit": ("a.py", "git worktree remove $A", False, {"a.py": "A\n"}, ""),
    "gone": ("a.py", "rm -r $A", False, {"a.py": "A\n"}, ""),
    "emptied": ("a.py", "rm -r $A; mkdir $A", False, {"a.py": "A\n"}, ""),
    "never registered": ("a.py", "git worktree remove $A; mkdir $A", False, {"a.py": "A\n"}, ""),
    "lost elsewhere": ("a.py", "git worktree move $A ../old; rm -r ../old", False, {"a.py": "A\n"}, ""),
}


@pytest.mark.parametrize(("files", "script", "is_forward", "there", "said"), LEFT.values(), ids=LEFT)
def test_a_run_goes_on_from_what_is_left_of_a_worktree_and_brings_forward_what_has_no_own_commit(
    repository: Workspace, files: str, script: str, is_forward: bool, there: dict[str, str], said: str
) -> None:
    add_streams(repository, "A")
    folder = add_worktree(repository, "A", *files.split())
    before = head(repository, "stream/A")
    shell(repository, script)
    forward = commit(repository, "main.py", "HEAD\n")
    run(repository)
    assert head(repository, "stream/A") == (forward if is_forward else before)
    assert {path.name: path.read_text() for path in folder.glob("*.py")} == there
    assert status(repository, folder) == said


def test_a_worktree_whose_first_filling_was_cut_off_is_filled_again(repository: Workspace) -> None:
    add_streams(repository, "A")
    folder = tree(repository, "A")
    repository.git("worktree", "add", "--quiet", "--no-checkout", "-b", "stream/A", str(folder))
    for name in ("index.lock", "orchestrate-new", "orchestrate"):
        put(repository.root / ".git" / "worktrees" / "A" / name, "")
    put(folder / "README.md", "half a fi")
    run(repository)
    assert status(repository, folder) == ""
    assert (folder / "README.md").read_text() == "README.md\n"


def test_a_worker_that_left_the_branch_is_followed_by_one_that_is_told(repository: Workspace) -> None:
    said = run(repository, add="A", A=["git=switch,--quiet,-c,mine commit=a.py exit=1", "all"])
    assert places(repository) == [("A", ".claude/worktrees/A", "stream/A")] * 2
    assert "- The last worker left it on mine: bring its work to stream/A first\n" in prompt(repository, "A")
    assert (
        "  git merge --no-ff refs/heads/mine  # 1 commit to merge, 1 file changed, used instead of stream/A\n" in said
    )
    assert subjects(repository, "mine") == ["A:_a.py", "Begin"]


# ── What the tasks' metadata name ─────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("kind", ["relative", "absolute", "home"])
def test_the_folder_and_the_branch_that_the_metadata_name_win(repository: Workspace, kind: str) -> None:
    beside = repository.root.parent / "trees" / "of a"
    given = {"relative": "../trees/of a", "absolute": str(beside), "home": "~/of a"}[kind]
    folder = repository.home / "of a" if kind == "home" else beside
    add_streams(repository, "A", worktreePath=given, branchName="feature/ü-1")
    run(repository, default="commit=a.py all")
    (event,) = repository.events("worker_started")
    assert (event["folder"], event["branch"]) == (str(folder), "feature/ü-1")
    assert (folder / "a.py").read_text() == "A\n"
    assert subjects(repository, "feature/ü-1") == ["A:_a.py", "Begin"]
    assert "feature/ü-1 │ 1 commit to merge, 1 file changed" in repository.run("status").stdout
    repository.run("merge")
    cleaned = repository.run("clean")
    assert (cleaned.returncode, folder.exists(), branches(repository)) == (0, False, ["main"]), cleaned.stderr


@pytest.mark.parametrize("value", [7, None, ["x"], {"a": "b"}, True, ""])
def test_a_folder_or_branch_of_the_metadata_that_is_no_text_is_ignored(repository: Workspace, value: object) -> None:
    add_streams(repository, "A", worktreePath=value, branchName=value)
    run(repository)
    assert places(repository) == [("A", ".claude/worktrees/A", "stream/A")]


@pytest.mark.parametrize("name", ["a b", "-x", "x.lock", "a..b", "@{-1}", "refs/heads/", "a\nb", "HEAD"])
def test_a_branch_name_that_git_does_not_take_is_refused(repository: Workspace, name: str) -> None:
    add_streams(repository, "A", branchName=name)
    assert refused(repository, "B") == f"A: {name!r} is no name for a branch\n{CORRECT}"


def test_a_worktree_of_the_metadata_inside_the_project_is_no_uncommitted_change(repository: Workspace) -> None:
    add_streams(repository, "A", worktreePath="trees/a")
    add_streams(repository, "B", streamDependencies=["A"])
    run(repository)
    assert places(repository)[0] == ("A", "trees/a", "stream/A")
    assert warnings(repository) == []


def test_two_streams_that_name_one_branch_do_not_work_in_one_folder_at_once(repository: Workspace) -> None:
    add_streams(repository, "F")
    process, _ = begin(repository, "F", "until=go.txt all")
    add_streams(repository, "A", "B", branchName="shared", worktreePath="../shared")
    repository.play("sleep=3 all")
    repository.open_gate("go.txt")
    assert process.wait(timeout=30) == 1
    assert len(repository.starts()) == 2
    assert "shared" in next(iter(failures(repository).values()))


CORRECT = "Correct the worktreePath or the branchName."


def refused(workspace: Workspace, add: str = "", **options: Any) -> str:
    """Check that `start`, `start --dry-run` and `doctor` refuse alike, with nothing started or changed; return why."""
    add_streams(workspace, *add.split())
    workspace.play("all")
    before = listing(workspace.root)
    said = [workspace.run(*words, **options) for words in (["start"], ["start", "--dry-run"], ["doctor", "--json"])]
    assert [done.returncode for done in said] == [2, 2, 1]
    (finding,) = [check for check in json.loads(said[2].stdout)["checks"] if check["subject"] == "Git"]
    assert finding["level"] == "error"
    why = f"{finding['found']}\n{finding['remedy']}"
    assert said[0].stderr == said[1].stderr == f"[ERROR] {why}\n"
    assert said[0].stdout == said[1].stdout == ""
    assert listing(workspace.root) == before
    assert workspace.starts() == []
    return why


# ── What a person has set up for git ──────────────────────────────────────────────────────────────────────────────────

HOOKS = [
    "post-checkout", "reference-transaction", "pre-merge-commit", "commit-msg", "prepare-commit-msg", "post-merge",
    "post-index-change", "pre-commit", "post-commit", "post-rewrite", "pre-auto-gc", "fsmonitor-watchman",
]  # fmt: skip


def set_traps(workspace: Workspace, where: str) -> Path:
    """Let everything hang that git may start in this repository, and return the file that would tell of it."""
    mark = workspace.root.parent / "hook-ran"
    folder = workspace.root / ".git" / "hooks" if where == "hooks" else workspace.root.parent / "hooks"
    for name in HOOKS:
        put(folder / name, HANG.format(mark=mark)).chmod(0o755)
    settings = {"core.hooksPath": folder} if where == "core.hooksPath" else {}
    for name, value in {**settings, "core.fsmonitor": folder / "fsmonitor-watchman"}.items():
        workspace.git("config", name, str(value))
    return mark


@pytest.mark.slow
@pytest.mark.parametrize("where", ["hooks", "core.hooksPath"])
def test_no_hook_and_no_file_system_monitor_runs_or_hangs_anything(repository: Workspace, where: str) -> None:
    finish(repository, "A", "a.py")
    add_streams(repository, "B")  # makes a worktree
    add_streams(repository, "C")  # brings one forward
    add_worktree(repository, "C")
    forward = commit(repository, "main.py", "")
    add_streams(repository, "I")
    mark = set_traps(repository, where)
    script = hasten(repository, GIT_TIMEOUT="5.0", CHECKOUT_TIMEOUT="5")
    said = run(repository, script=script)
    assert "git merge --no-ff refs/heads/stream/A  # 1 commit to merge, 1 file changed\n" in said
    for words in (["status"], ["merge"], ["clean"]):
        done = repository.run(*words, script=script)
        assert (done.returncode, done.stderr) == (0, ""), words
    assert not mark.exists()
    shutil.rmtree(repository.root.parent / "hooks", ignore_errors=True)
    repository.git("config", "core.fsmonitor", "false")
    assert (repository.root / "a.py").read_text() == "A\n"
    assert branches(repository) == ["main", "stream/C"]  # its worktree was made by hand
    assert forward == head(repository, "HEAD~1")


def test_a_git_that_hangs_is_ended_and_fails_that_stream_alone_with_the_reason(repository: Workspace) -> None:
    add_streams(repository, "A", "B")
    script = hasten(repository, GIT_TIMEOUT="0.6", CHECKOUT_TIMEOUT="0.6")
    pids = repository.root.parent / "hanging"
    shadow_git(
        repository,
        f'case "$*" in *checkout*stream/B*) trap "" TERM; sleep 3600 & echo $! >> {pids}; wait;; esac\nexec {GIT} "$@"',
    )
    run(repository, "--max-restarts", "0", code=1, script=script)
    (reason,) = failures(repository).values()
    assert re.search(r"; last: git checkout took longer than 0.6 s$", reason)
    assert set(failures(repository)) == {"B"}
    assert repository.starts() == ["A"]
    (pid,) = pids.read_text().split()
    assert not is_running(int(pid))


@pytest.mark.parametrize("command", ["status", "merge", "clean"])
def test_a_git_that_hangs_is_ended_and_said_by_the_other_commands(repository: Workspace, command: str) -> None:
    finish(repository, "A", "a.py")
    script = hasten(repository, GIT_TIMEOUT="0.3")
    shadow_git(repository, "exec sleep 3600")
    before = listing(repository.root)
    done = repository.run(command, script=script)
    assert "git rev-parse took longer than 1 s" in (done.stdout if command == "status" else done.stderr)
    assert done.returncode == (0 if command == "status" else 2)
    assert listing(repository.root) == before


def test_a_git_that_hangs_does_not_keep_the_other_phases_from_working(repository: Workspace) -> None:
    add_streams(repository, "F", "I")
    script = hasten(repository, GIT_TIMEOUT="0.3")
    shadow_git(repository, "exec sleep 3600")
    run(repository, script=script)
    assert repository.starts() == ["F", "I"]
    assert warnings(repository) == ["git can't be asked: git rev-parse took longer than 1 s"]


def test_git_variables_of_another_repository_mislead_neither_us_nor_a_worker(repository: Workspace) -> None:
    other = repository.root.parent / "other"
    shell(repository, "git init -q ../other; cd ../other; touch other.py; git add .; git commit -qm Begin")
    before = listing(other / ".git")
    env = {
        "GIT_DIR": str(other / ".git"),
        "GIT_WORK_TREE": str(other),
        "GIT_INDEX_FILE": str(other / ".git" / "index"),
        "GIT_COMMON_DIR": str(other / ".git"),
        "GIT_OBJECT_DIRECTORY": str(other / ".git" / "objects"),
        "GIT_NAMESPACE": "elsewhere",
        "GIT_PREFIX": "else/where/",
    }
    run(repository, add="A", default="commit=a.py all", env=env)
    assert subjects(repository, "stream/A") == ["A:_a.py", "Begin"]
    for words in (["status"], ["merge"], ["clean"]):
        assert repository.run(*words, env=env).returncode == 0
    assert (subjects(repository), branches(repository)) == (["A:_a.py", "Begin"], ["main"])
    assert listing(other / ".git") == before


HOSTILE = {
    "color.ui": "always", "column.ui": "always", "status.branch": "true", "status.short": "true",
    "status.relativePaths": "false", "core.quotePath": "true", "diff.external": "false", "diff.noprefix": "true",
    "worktree.guessRemote": "true", "branch.autoSetupMerge": "always", "merge.ff": "only", "merge.log": "true",
    "merge.autoStash": "true", "advice.detachedHead": "true", "core.editor": "false", "merge.conflictStyle": "diff3",
    "log.showSignature": "true", "core.pager": "false",
    "status.showUntrackedFiles": "all", "diff.renames": "copies", "merge.stat": "true", "rerere.enabled": "true",
    "submodule.recurse": "true", "checkout.guess": "true", "init.defaultBranch": "trunk", "core.preloadIndex": "false",
    "branch.main.mergeOptions": "--no-commit",
}  # fmt: skip


def test_no_usual_setting_of_git_changes_what_happens(repository: Workspace) -> None:
    add_streams(repository, "A", "B")
    for name, value in HOSTILE.items():
        repository.git("config", name, value)
    said = run(repository, A="commit=a.py all", B="commit=b.py write=ü.py all")
    assert "  git merge --no-ff refs/heads/stream/A  # 1 commit to merge, 1 file changed\n" in said
    assert "  git merge --no-ff refs/heads/stream/B  # 1 commit to merge, 1 file changed, 1 file uncommitted\n" in said
    merged = repository.run("merge")
    assert (merged.returncode, merged.stdout) == (
        0,
        "Merged stream/A into main: 1 commit\nMerged stream/B into main: 1 commit\n",
    )
    assert repository.git("log", "--merges", "--format=%s").split("\n")[:-1] == ["Merge B: B name", "Merge A: A name"]
    assert not (repository.root / ".git" / "MERGE_HEAD").exists()
    cleaned = repository.run("clean")
    assert cleaned.returncode == 0
    assert f"Kept {tree(repository, 'B')}: nothing to merge, 1 file uncommitted\n" in cleaned.stdout
    assert branches(repository) == ["main", "stream/B"]


@pytest.mark.parametrize("branch", ["stream", "stream/A/part"])
def test_a_branch_that_stands_in_the_way_of_others_is_refused_and_can_be_renamed(
    repository: Workspace, branch: str
) -> None:
    repository.git("branch", branch)
    why, remedy = refused(repository, "A").split("\n")
    assert why == f"A: branch {branch} is in the way of stream/A"
    shell(repository, remedy.partition(": ")[2])
    run(repository)
    assert branches(repository) == sorted(["main", f"{branch.replace('/', '-')}-old", "stream/A"])


TWINS = {
    "worktree": {"worktreePath": "../shared"},
    "branch": {"branchName": "x"},
}


@pytest.mark.parametrize("what", TWINS)
def test_streams_of_which_one_alone_can_have_what_the_tasks_name_are_refused(repository: Workspace, what: str) -> None:
    add_streams(repository, "A", **TWINS[what])
    add_streams(repository, "B", streamDependencies=["A"], **TWINS[what])
    why = f"A: B has the same {what}, not both\n        B: A has the same {what}, not both"
    assert refused(repository) == f"{why}\n{CORRECT}"


def test_streams_that_share_a_worktree_are_refused_unless_one_waits_for_the_other(repository: Workspace) -> None:
    shared = {"branchName": "x", "worktreePath": "../x"}
    add_streams(repository, "A", "B", **shared)
    same = "has the same worktree and branch, and may be at work at the same time"
    assert refused(repository) == f"A: B {same}\n        B: A {same}\n{CORRECT}"
    repository.database.execute("DELETE FROM tasks")
    add_streams(repository, "A", **shared)
    add_streams(repository, "M", streamDependencies=["A"])
    add_streams(repository, "B", streamDependencies=["M"], **shared)
    run(repository)
    assert repository.starts() == ["A", "M", "B"]


@pytest.mark.parametrize(
    ("script", "metadata", "why"),
    [
        ("", {"worktreePath": "README.md/x"}, "A: $PWD/README.md is no worktree of this repository"),
        ("rm -rf .claude/worktrees; mkdir -p .claude; touch .claude/worktrees", {},
         "A: $PWD/.claude/worktrees is no worktree of this repository"),
        ("", {"branchName": "x" * 300}, f"A: {'x' * 300!r} is no name for a branch"),
        ("git worktree add -q -b stream/A ../other; cd ../other; touch x; git add x; git commit -qm x; "
         "GIT_SEQUENCE_EDITOR='sed -i s/pick/edit/' git rebase -q -i HEAD~1 2> /dev/null", {},
         "A: branch stream/A is checked out in $PARENT/other"),
        ("git worktree add -q --lock -b stream/A ../usb; rm -r ../usb", {},
         "A: branch stream/A is checked out in $PARENT/usb\nMount it, or: git worktree unlock $PARENT/usb"),
        ("git worktree add -q -b stream/A $A; cd $A; touch x; git add x; git commit -qm x; "
         "GIT_SEQUENCE_EDITOR='sed -i s/pick/edit/' git rebase -q -i HEAD~1 2> /dev/null", {},
         "A: the worktree $A is on no branch, in the middle of a git rebase\nEnd it: git -C $A rebase --continue"),
        ("mv .git ../gd; echo gitdir: ../gd > .git; git config core.worktree $PWD", {"branchName": "main"},
         "A: branch main is checked out in $"),
    ],
    ids=["below a file", "a file for all", "too long a name", "rebased elsewhere", "locked and gone", "rebased there",
         "a git folder elsewhere"],
)  # fmt: skip
def test_what_would_fail_a_stream_hours_later_is_refused(
    repository: Workspace, script: str, metadata: dict[str, str], why: str
) -> None:
    add_streams(repository, "A", **metadata)
    shell(repository, script)
    values = {"$PWD": repository.root, "$PARENT": repository.root.parent, "$A": tree(repository, "A"), "$": ""}
    for name, value in values.items():
        why = why.replace(name, str(value))
    assert refused(repository).startswith(why)


def test_a_worktree_that_is_gone_with_work_that_is_nowhere_else_is_refused(repository: Workspace) -> None:
    add_streams(repository, "A")
    folder = add_worktree(repository, "A")
    shell(repository, "cd $A; git checkout -q --detach; touch x; git add x; git commit -qm x; mv $A ../aside")
    why, remedy = refused(repository).split("\n")
    assert why == f"A: the worktree {folder} is gone, and git still has work of it that is nowhere else"
    assert remedy == "Move it back; or forget that: git worktree prune"
    shell(repository, remedy.partition(": ")[2])
    run(repository)


def test_a_worktree_that_git_has_forgotten_is_refused_by_all_alike(repository: Workspace) -> None:
    add_streams(repository, "A")
    folder = add_worktree(repository, "A")
    shutil.rmtree(repository.root / ".git" / "worktrees" / "A")
    assert refused(repository).startswith(f"A: {folder} is no worktree of this repository\n")


def test_a_start_beside_a_running_orchestrator_is_refused_alike(repository: Workspace) -> None:
    add_streams(repository, "F", "A")
    process, _ = begin(repository, "F", "until=go.txt all")
    repository.git("branch", "stream")
    done = repository.run("start", "A")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("[ERROR] A: branch stream is in the way of stream/A\n")
    repository.git("branch", "-d", "stream")
    repository.open_gate("go.txt")
    assert process.wait(timeout=20) == 0


def test_a_plan_in_a_copy_of_the_project_leaves_the_worktrees_of_the_original_alone(repository: Workspace) -> None:
    run(repository, add="A", A="commit=a.py all")
    copy = repository.root.parent / "copy" / repository.root.name
    shutil.copytree(repository.root, copy, symlinks=True)
    before = repository.git("worktree", "list", "--porcelain")
    repository.database.add_task("A")
    for words in (["start", "--dry-run"], ["doctor"], ["start"]):
        done = repository.run(*words, "--project", str(copy), "--db", str(repository.database.path))
        assert "is no worktree of this repository" in done.stdout + done.stderr
    assert repository.git("worktree", "list", "--porcelain") == before


def test_a_lock_of_the_index_in_a_persons_worktree_is_not_ours_to_remove(repository: Workspace) -> None:
    add_streams(repository, "A")
    repository.git("worktree", "add", "--quiet", "-b", "stream/A", str(tree(repository, "A")))
    lock = put(repository.root / ".git" / "worktrees" / "A" / "index.lock", "")
    run(repository)
    assert lock.exists()


def test_a_worktree_whose_git_is_broken_keeps_no_other_from_being_merged_and_cleaned(repository: Workspace) -> None:
    put(finish(repository, "A", "a.py") / ".git", "gitdir: /nowhere\n")
    finish(repository, "B", "b.py")
    said = merge(repository, code=1, out=merged("B"))
    assert said.startswith("[ERROR] stream/A was not merged: what it holds is not known: git status: fatal: ")
    lines = [line for line in clean(repository) if "/B" in line or "/A" in line]
    assert lines[-1] == "Removed branch stream/B: it is merged"
    assert any(line.startswith("Kept .claude/worktrees/A: what it holds is not known") for line in lines)


def test_the_worktrees_are_hidden_from_git_where_the_project_shows_all_of_claude(repository: Workspace) -> None:
    shell(repository, "printf '.*\\n!.claude/\\n!.claude/**\\n' > .gitignore; git add -f .gitignore; git commit -qm x")
    run(repository, add="A B I", I="git=add,-A git=commit,--allow-empty,-qm,all all")
    assert repository.git("ls-tree", "-r", "--name-only", "HEAD").split() == [".gitignore", "README.md"]
    assert warnings(repository) == []


def test_streams_whose_branches_are_in_each_others_way_are_refused(repository: Workspace) -> None:
    add_streams(repository, "A", branchName="feature")
    add_streams(repository, "B", branchName="feature/b")
    assert refused(repository) == (
        f"A: branch feature/b is in the way of feature\n        B: branch feature is in the way of feature/b\n{CORRECT}"
    )


# ── What claude needs, and what no commit has ─────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("script", "is_carried"),
    [
        ("printf '/.mcp.json\n/.gitignore\n' > .gitignore", True),
        ("git add .mcp.json; git commit -qm x; echo /.mcp.json >> .git/info/exclude", False),
        ("git worktree add -q -b stream/A $A; cp .mcp.json $A; printf '/.*\n' >> .git/info/exclude", False),
        ("rm -rf .git; cd ..; git init -q; printf '*.txt\n/home\n/bin\nparts.json\n' > .git/info/exclude; "
         "git add my-project; git commit -qm x", False),
    ],
    ids=["ignored", "in git", "in the worktree", "in git, below the top"],
)  # fmt: skip
def test_mcp_json_is_carried_over_where_git_ignores_it_and_the_worktree_has_none(
    repository: Workspace, script: str, is_carried: bool
) -> None:
    put(repository.root / ".mcp.json", "{}")
    shell(repository, script)
    run(repository, add="F A")
    words = repository.argv("A")[0]
    given = ["--mcp-config", str(repository.root / ".mcp.json")]
    assert words.count("--mcp-config") == is_carried
    assert (words[words.index("-p") - 2 : words.index("-p")] == given) is is_carried
    assert "--mcp-config" not in repository.argv("F")[0]
    own = [path.read_text() for path in tree(repository, "A").rglob(".mcp.json")]
    assert own == ([] if is_carried else ["{}"])
    assert warnings(repository) == []
    assert "Not in git" not in prompt(repository, "A")


def test_the_settings_that_claude_does_not_find_in_a_worktree_are_carried_over_and_the_rest_is_no_news(
    workspace: Workspace,
) -> None:
    workspace.make_repository("README.md", ".claude/commands/in-git.md")
    (workspace.root / ".git" / "info" / "exclude").write_text("/*.txt\n/parts.json\n/.claude\n")
    for name in (".claude/commands/continue.md", ".claude/agents/me.md", ".claude/settings.json"):
        put(workspace.root / name, "")
    settings = str(workspace.root / ".claude" / "settings.json")
    run(workspace, add="F A")
    words = workspace.argv("A")[0]
    assert words[words.index("-p") - 2 : words.index("-p")] == ["--settings", settings]
    assert "--settings" not in workspace.argv("F")[0]
    assert warnings(workspace) == []
    workspace.database.add_task("A")
    run(workspace, "--claude", "claude --settings {}")
    assert workspace.argv("A")[1].count("--settings") == 1  # whoever names others means it


def test_uncommitted_changes_of_the_root_are_said_once_with_their_names(repository: Workspace) -> None:
    add_streams(repository, "A", "B", "C")
    put(repository.root / "README.md", "changed\n")
    put(repository.root / "new" / "file.py", "")
    put(repository.root / ".worktreeinclude", ".env\n")  # is read here: no worktree goes without it
    said = run(repository, A=["exit=1", "all"])
    warning = "Uncommitted changes: the streams branch from the last commit, without README.md, new/file.py"
    assert said.count("Uncommitted changes") == 1
    assert warnings(repository) == [warning]
    for stream in "ABC":
        assert (tree(repository, stream) / "README.md").read_text() == "README.md\n"
    assert status(repository) == " M README.md\n?? .worktreeinclude\n?? new/\n"


# ── What a worker is told ─────────────────────────────────────────────────────────────────────────────────────────────


def test_an_integration_worker_is_told_the_branches_and_their_state(repository: Workspace) -> None:
    finish(repository, "A", "a.py", "both.py", "README.md")
    finish(repository, "B", "both.py")
    put(finish(repository, "C") / "c.py", "")
    finish(repository, "D", "d.py")
    commit(repository, "README.md", "ours\n")
    run(repository, add="I")
    assert prompt(repository, "I").split("\n\n")[1] == (
        "## Branches to merge\n"
        "Merge these into main before anything else, in this order (git merge --no-ff BRANCH):\n"
        "- refs/heads/stream/A (A): 3 commits to merge, 3 files changed\n"
        "- refs/heads/stream/B (B): 1 commit to merge, 1 file changed\n"
        "- refs/heads/stream/C (C): nothing to merge, 1 file uncommitted\n"
        "- refs/heads/stream/D (D): 1 commit to merge, 1 file changed\n"
    )
    assert status(repository) == ""


def test_a_dependent_parallel_stream_is_told_the_branches_that_it_depends_on(repository: Workspace) -> None:
    add_streams(repository, "A", "C")
    add_streams(repository, "B", streamDependencies=["A"])
    run(repository, A="commit=a.py all", C="commit=c.py all")
    assert prompt(repository, "B").split("\n\n")[1] == (
        "## Branches to merge\n"
        "Merge these into stream/B before anything else, in this order (git merge --no-ff BRANCH):\n"
        "- refs/heads/stream/A (A): 1 commit to merge, 1 file changed\n"
    )
    assert "Branches to merge" not in prompt(repository, "C")


# ── The end of a run ──────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_run_without_integration_ends_with_the_commands_that_merge(repository: Workspace) -> None:
    add_streams(repository, "A", "B", "C", "it's D")
    both = "commit=both.py all"
    said = run(repository, default="commit=d.py all", A=both, B=both, C="all")
    assert said.endswith(
        f"Not in main yet. Merge it with: {PROGRAM} merge\nor:\n"
        "  git merge --no-ff refs/heads/stream/A  # 1 commit to merge, 1 file changed\n"
        "  git merge --no-ff refs/heads/stream/B  # 1 commit to merge, 1 file changed\n"
        "  git merge --no-ff refs/heads/stream/it%27s%20D  # 1 commit to merge, 1 file changed\n"
    )
    assert status(repository) == ""


def test_a_run_whose_integration_merged_everything_ends_without_merge_commands(repository: Workspace) -> None:
    merges = "git=merge,--quiet,--no-ff,stream/A git=merge,--quiet,--no-ff,stream/B all"
    said = run(repository, add="A B I", A="commit=a.py all", B="commit=b.py all", I=merges)
    assert said.endswith(f"\nClean up: {PROGRAM} clean\n")
    assert (repository.root / "a.py").exists()
    assert repository.run("merge").stdout == "Nothing to merge.\n"


def test_a_run_of_one_phase_leaves_merging_to_the_integration_that_is_to_come(repository: Workspace) -> None:
    said = run(repository, "--phase", "parallel", add="A I", default="commit=a.py all")
    assert "Merge it with" not in said
    assert said.endswith(f"\nGo on: {PROGRAM} start\n")


def test_a_failed_stream_leaves_the_others_work_with_the_commands_that_merge_it(repository: Workspace) -> None:
    said = run(repository, "--max-restarts", "0", add="A B", code=1, A="commit=a.py all", B="commit=b.py exit=1")
    assert "  git merge --no-ff refs/heads/stream/A  # 1 commit to merge, 1 file changed\n" in said
    assert "git merge --no-ff refs/heads/stream/B" not in said


# ── merge ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def merge(workspace: Workspace, *words: str, code: int = 0, out: str = "", **options: Any) -> str:
    """Merge, check the exit code and what was said of each merge, and return the errors."""
    done = workspace.run("merge", *words, **options)
    assert (done.returncode, done.stdout) == (code, out), done.stderr
    return done.stderr


def merged(*streams: str, into: str = "main") -> str:
    """What `merge` says of branches of one commit."""
    return "".join(f"Merged stream/{stream} into {into}: 1 commit\n" for stream in streams)


def state_of(workspace: Workspace) -> tuple[str, str, str, list[str]]:
    """What a refused merge must not have changed."""
    names = ("MERGE_HEAD", "MERGE_MSG", "AUTO_MERGE", "CHERRY_PICK_HEAD", "index.lock")
    there = [name for name in names if (workspace.root / ".git" / name).exists()]
    return head(workspace), status(workspace), workspace.git("diff", "HEAD"), there


def refuse(workspace: Workspace, *words: str, code: int, **options: Any) -> str:
    """Merge, check that it fails and leaves everything as it was, and return the errors."""
    before, files = state_of(workspace), {k: v for k, v in listing(workspace.root).items() if k[:5] != ".git/"}
    said = merge(workspace, *words, code=code, **options)
    assert state_of(workspace) == before
    assert {k: v for k, v in listing(workspace.root).items() if k[:5] != ".git/"} == files
    return said


def test_merge_merges_every_complete_stream_with_a_merge_commit_each(repository: Workspace) -> None:
    finish(repository, "A", "a.py")
    finish(repository, "B", "b1.py", "b2.py", streamName="What B is\nabout")
    finish(repository, "C")
    add_streams(repository, "D")
    add_worktree(repository, "D", "d.py")
    put(repository.root / "new.py", "new\n")  # untracked: none of its business
    assert merge(repository, out=f"{merged('A')}Merged stream/B into main: 2 commits\n") == ""
    log = repository.git("log", "--first-parent", "--format=%s|%P").split("\n")[:-1]
    assert [line.split("|")[0] for line in log] == ["Merge B: What B is about", "Merge A: A name", "Begin"]
    assert [len(line.split("|")[1].split()) for line in log] == [2, 2, 0]
    assert {path.name for path in repository.root.glob("*.py")} == {"a.py", "b1.py", "b2.py", "new.py"}
    assert status(repository) == "?? new.py\n"
    assert merge(repository, out="Nothing to merge.\n") == ""


def test_merge_takes_the_streams_that_are_named_alone_and_goes_past_a_conflict(repository: Workspace) -> None:
    for stream in "ABC":
        finish(repository, stream, f"{stream}.py")
    commit(repository, "B.py", "ours\n")
    assert merge(repository, "C", "A", out=merged("A", "C")) == ""
    assert sorted(subjects(repository)) == ["Begin", "Write A.py", "Write B.py", "Write C.py"]
    assert (repository.root / "B.py").read_text() == "ours\n"


def test_merge_refuses_a_named_stream_that_is_not_complete(repository: Workspace) -> None:
    finish(repository, "A", "a.py")
    finish(repository, "B", "b.py")
    repository.database.add_task("B")
    said = refuse(repository, "A", "B", code=2)
    assert said.startswith("[ERROR] B is not complete (1 of 2 tasks): its branch is not finished\n")
    assert merge(repository, out=merged("A")) == ""  # unnamed, it is only passed over


def test_merge_overwrites_no_file_that_head_has_let_go_of_or_that_a_moved_folder_brings(repository: Workspace) -> None:
    commit(repository, "conf.py", "default = 1\n" * 20)
    finish(repository, "A")
    commit(repository, "conf.py", "default = 2\n" * 20, tree(repository, "A"))
    shell(repository, "git rm -q --cached conf.py; git commit -qm x; echo conf.py >> .git/info/exclude")
    put(repository.root / "conf.py", "my secrets\n")
    assert refuse(repository, code=1) == f"[ERROR] {IN_THE_WAY.format('conf.py')}"
    assert (repository.root / "conf.py").read_text() == "my secrets\n"


OTHER = "git switch -qc other; echo theirs > {}; git add .; git commit -qm x; git switch -q main; {}"
BEGUN = "[ -e .git/MERGE_HEAD ]"
OURS = "echo ours > README.md; git commit -qam x; "
THEIRS = "echo theirs > $A/README.md; git -C $A commit -qam x; "
UNCLEAN = "The tree is not clean: {}\nCommit or stash that first (git status).\n"
IN_THE_WAY = "stream/A was not merged, it would overwrite what git does not track: {}\nMove that away first.\n"
CONFLICT = (
    "stream/{0} was not merged, the tree is as it was: conflicts with main in {1}\n"
    "Merge it by hand (git merge --no-ff refs/heads/stream/{0}, resolve, git commit), then go on: "
    f"{PROGRAM} merge\n"
)

# What the branch has, what a person has done since, the exit code, and what is said.
REFUSED = {
    "changed": ("a.py", "echo x > README.md", 2, UNCLEAN.format("README.md")),
    "staged": ("a.py", "echo x > README.md; git add README.md", 2, UNCLEAN.format("README.md")),
    "deleted": ("a.py", "rm README.md", 2, UNCLEAN.format("README.md")),
    "merging": ("a.py", OTHER.format("README.md", f"{OURS} ! git merge --no-commit --no-ff other; {BEGUN}"), 2,
                UNCLEAN.format("README.md")),
    "merging, clean": ("a.py", OTHER.format("other.py", f"{OURS} git merge -q --no-commit -s ours other; {BEGUN}"), 2,
                       UNCLEAN.format("a merge that is not concluded")),
    "detached": ("a.py", "git checkout -q --detach", 2,
                 "No branch is checked out\nSwitch to the one to merge into: git switch BRANCH\n"),
    "untracked": ("a.py", "echo mine > a.py", 1, IN_THE_WAY.format("a.py")),
    "ignored": ("key.txt folder.txt/a.py", "echo secret > key.txt; echo mine > folder.txt", 1,
                IN_THE_WAY.format("folder.txt, key.txt")),
    "both write": ("a.py", f"{THEIRS} {OURS}", 1, CONFLICT.format("A", "README.md")),
    "changed and deleted": ("a.py", f"{THEIRS} git rm -q README.md; git commit -qm x", 1,
                            CONFLICT.format("A", "README.md")),
    "deleted and changed": ("a.py", f"git -C $A rm -q README.md; git -C $A commit -qm x; {OURS}", 1,
                            CONFLICT.format("A", "README.md")),
    "file and folder": ("a.py new", "mkdir new; touch new/a.py; git add new; git commit -qm x", 1,
                        CONFLICT.format("A", "new")),
    "folder and file": ("a.py new/a.py", "touch new; git add new; git commit -qm x", 1, CONFLICT.format("A", "new")),
}  # fmt: skip


@pytest.mark.parametrize(("files", "script", "code", "said"), REFUSED.values(), ids=REFUSED)
def test_merge_refuses_what_would_lose_something_and_restores_the_tree(
    repository: Workspace, files: str, script: str, code: int, said: str
) -> None:
    finish(repository, "A", *files.split())
    shell(repository, script)
    put(repository.root / "beside.py", "")
    refused = refuse(repository, code=code)
    assert re.sub(r"(?<= in new)~\w+", "", refused) == f"[ERROR] {said}"  # where git puts the file is its own affair


def test_merge_stops_at_a_conflict_with_the_tree_restored_and_goes_on_after_a_hand(repository: Workspace) -> None:
    finish(repository, "A", "a.py")
    finish(repository, "B", "both.py")
    finish(repository, "C", "c.py")
    commit(repository, "both.py", "ours\n")
    said = merge(repository, code=1, out=merged("A"))
    assert said == f"[ERROR] {CONFLICT.format('B', 'both.py')}"
    assert subjects(repository, "HEAD^2") == ["Write a.py", "Begin"]  # what was merged before stays
    assert (status(repository), state_of(repository)[3]) == ("", [])
    assert (repository.root / "both.py").read_text() == "ours\n"
    repository.git("merge", "--quiet", "--no-ff", "--strategy-option=theirs", "--no-edit", "stream/B")
    assert merge(repository, out=merged("C")) == ""


def test_merge_warns_of_what_a_branchs_worktree_holds_beside_it(repository: Workspace) -> None:
    put(finish(repository, "A", "a.py") / "new.py", "")
    repository.git("switch", "--quiet", "-c", "mine", cwd=finish(repository, "B", "b.py"))
    assert merge(repository, out=merged("A", "B")) == (
        "Warning: stream/A (A): 1 commit to merge, 1 file changed, 1 file uncommitted\n"
        "Warning: mine (B): 1 commit to merge, 1 file changed, used instead of stream/B\n"
    )


@pytest.mark.parametrize(("stream", "is_in_the_way"), [("F", True), ("A", True), ("B", False)])
def test_merge_refuses_while_a_worker_works_where_it_merges_from_or_to_and_not_for_another(
    repository: Workspace, stream: str, is_in_the_way: bool
) -> None:
    finish(repository, "A", "a.py")
    if stream == "A":
        repository.database.set_status("pending", stream)
    else:
        add_streams(repository, stream)
    process, pid = begin(repository, stream, "until=go.txt all")
    runs = f"[ERROR] An orchestrator already runs for this project (PID {process.pid})"
    assert merge(repository, code=75).startswith(runs)
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=20) == 130
    if is_in_the_way:
        repository.database.set_status("completed", stream)
        said = refuse(repository, code=75)
        assert said.startswith(f"[ERROR] The worker of {stream} is still at work (PID {pid})\n")
    else:
        assert merge(repository, out=merged("A")) == ""


def test_merge_without_an_identity_is_an_error_and_leaves_the_tree_as_it_was(repository: Workspace) -> None:
    finish(repository, "A", "a.py")
    repository.git("config", "user.useConfigOnly", "true")
    env = {f"GIT_{role}_{what}": "" for role in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    script = put(
        repository.root.parent / "nobody.py",
        f"import os, sys\nfor name in {list(env)!r}: os.environ.pop(name, None)\n"
        f"os.execv(sys.executable, [sys.executable, {str(SCRIPT)!r}, *sys.argv[1:]])\n",
    )
    said = refuse(repository, code=1, script=script)
    assert said.startswith("[ERROR] stream/A was not merged, the tree is as it was: git merge: fatal: ")
    assert "no email was given" in said


# ── clean ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def clean(workspace: Workspace, *words: str, code: int = 0, **options: Any) -> list[str]:
    """Clean up, check that `--dry-run` announces it and changes nothing, and return what was said."""
    before = listing(workspace.root)
    tried = workspace.run("clean", "--dry-run", *words, **options)
    assert {name: text for name, text in listing(workspace.root).items() if "/objects/" not in name} == {
        name: text for name, text in before.items() if "/objects/" not in name
    }  # a merge that git tries leaves what it was made of
    done = workspace.run("clean", *words, **options)
    assert (done.returncode, done.stderr) == (code, "")
    announced = tried.stdout.replace("Would remove", "Removed").replace("Would move", "Moved")
    assert (tried.returncode, announced.replace("Would keep", "Kept")) == (code, done.stdout)
    return done.stdout.replace(f"{workspace.root}/", "").split("\n")[:-1]


def test_clean_removes_what_is_merged_and_keeps_the_rest_and_says_why(repository: Workspace) -> None:
    finish(repository, "A", "a.py")
    finish(repository, "B", "b.py")
    put(finish(repository, "C") / "new.py", "")
    put(finish(repository, "D") / "README.md", "changed\n")
    repository.git("switch", "--quiet", "-c", "mine", cwd=finish(repository, "E"))
    repository.git("checkout", "--quiet", "--detach", cwd=finish(repository, "F"))
    finish(repository, "G")
    repository.database.add_task("G")
    repository.git("worktree", "remove", str(finish(repository, "H")))
    repository.git("worktree", "remove", str(finish(repository, "I", "i.py")))
    repository.git("merge", "--quiet", "--no-ff", "-m", "Merge", "stream/A")
    kept = ["B", "C", "D", "E", "F", "G"]
    assert clean(repository) == [
        "Removed worktree .claude/worktrees/A",
        "Removed branch stream/A: it is merged",
        "Kept .claude/worktrees/B: 1 commit to merge, 1 file changed",
        "Kept .claude/worktrees/C: nothing to merge, 1 file uncommitted",
        "Kept .claude/worktrees/D: nothing to merge, 1 file uncommitted",
        "Kept .claude/worktrees/E: nothing to merge, used instead of stream/E",
        "Kept .claude/worktrees/F: nothing to merge, used instead of stream/F",
        "Kept .claude/worktrees/G: nothing to merge; 1 task of G open",
        "Removed branch stream/H: it is merged",
        "Kept stream/I: 1 commit to merge, 1 file changed",
    ]
    assert sorted(path.name for path in tree(repository, "A").parent.iterdir()) == [".gitignore", *kept]
    assert branches(repository) == ["main", "mine", *(f"stream/{stream}" for stream in [*kept, "I"])]
    assert (tree(repository, "C") / "new.py").exists()
    assert (tree(repository, "D") / "README.md").read_text() == "changed\n"


REMOVED = ["Removed worktree .claude/worktrees/A", "Removed branch stream/A: it is merged"]
INNER = "git worktree add -q -b inner $A/inner.txt; touch $A/inner.txt/precious.py"
SUBMODULE = "cd $A; git -c protocol.file.allow=always submodule -q update --init; [ -e vendored/inner.py ]"

# What the branch has, what a person has done since, the branches afterwards, and what is said.
CLEANED = {
    "new file, hidden": ("", "touch $A/new.py; git config status.showUntrackedFiles no", "main stream/A",
                         ["Kept .claude/worktrees/A: nothing to merge, 1 file uncommitted"]),
    "locked": ("", "git worktree lock --reason 'on a stick' $A", "main stream/A",
               ["Kept .claude/worktrees/A: it is locked"]),
    "locked and not there": ("", "git worktree lock $A; rm -r $A", "main stream/A",
                             ["Kept stream/A: it is checked out in .claude/worktrees/A, which is locked"]),
    "checked out elsewhere": ("", "git worktree move $A ../elsewhere", "main stream/A",
                              ["Kept stream/A: it is checked out in {parent}/elsewhere"]),
    "checked out in the root": ("", "git worktree remove $A; git switch -q stream/A", "main stream/A",
                                ["Kept stream/A: it is checked out in {parent}/my-project"]),
    "detached": ("a.py", "git checkout -q --detach stream/A", "main stream/A",
                 ["Kept .claude/worktrees/A: no branch is checked out, so nothing counts as merged"]),
    "emptied": ("a.py", "rm -r $A; mkdir $A", "main stream/A",
                [f"{REMOVED[0]}, which is gone", "Kept stream/A: 1 commit to merge, 1 file changed"]),
    "in the middle of a merge": ("", "echo mine > $A/README.md; echo x > x.py; git add x.py; git commit -qm x; "
        "cd $A; git merge -q --no-ff --no-commit --autostash main 2> /dev/null; [ -z \"$(git diff)\" ]",
        "main stream/A",
        ["Kept .claude/worktrees/A: nothing to merge, 1 file uncommitted"]),
    "hidden from git": ("", "git -C $A update-index --skip-worktree README.md; echo mine > $A/README.md",
        "main stream/A",
        ["Kept .claude/worktrees/A: git was told not to look at README.md"]),
    "an ignored repository in it": ("", "cd $A; mkdir v.txt; git init -q v.txt; touch v.txt/x; git -C v.txt add x; "
        "git -C v.txt commit -qm x", "main stream/A",
        ["Kept .claude/worktrees/A: there are repositories in it: v.txt/"]),
    "gone, with commits of its own": ("", "cd $A; git checkout -q --detach; touch x; git add x; git commit -qm x; "
        "rm -r $A", "main", ["Removed branch stream/A: it is merged"]),
    "gone": ("a.py", "rm -r $A", "main stream/A",
             [f"{REMOVED[0]}, which is gone", "Kept stream/A: 1 commit to merge, 1 file changed"]),
    "gone, merged": ("", "rm -r $A", "main", [f"{REMOVED[0]}, which is gone", REMOVED[1]]),
    "another one in it": ("", INNER, "inner main stream/A",
                          ["Kept .claude/worktrees/A: there are others in it: .claude/worktrees/A/inner.txt"]),
    "a submodule in it": ("", SUBMODULE, "main stream/A",
                          ["Kept .claude/worktrees/A: it has submodules, remove it by hand"]),
    "no worktree": ("", "mkdir $A/../notes; touch $A/../notes/idea.md", "main",
                    [*REMOVED, "Kept .claude/worktrees/notes: it is no worktree of this repository"]),
    # `claude --worktree` makes its own in the same folder; a session may be at work in one without a commit yet.
    "of no stream": ("", "git worktree add -q -b idea .claude/worktrees/idea", "idea main",
                     [*REMOVED, "Kept .claude/worktrees/idea: it was not made by the orchestrator"]),
}  # fmt: skip


@pytest.mark.parametrize(("files", "script", "left", "said"), CLEANED.values(), ids=CLEANED)
def test_clean_removes_nothing_that_may_be_somebodys_work(
    repository: Workspace, files: str, script: str, left: str, said: list[str]
) -> None:
    shell(repository, VENDOR if script == SUBMODULE else "")
    folder = finish(repository, "A", *files.split())
    shell(repository, script)
    before = listing(folder.parent)
    assert clean(repository) == [line.format(parent=repository.root.parent) for line in said]
    is_removed = any(line.startswith(REMOVED[0]) for line in said)
    kept = {name: text for name, text in before.items() if not is_removed or name.split("/")[0] != "A"}
    assert listing(folder.parent) == kept
    assert branches(repository) == left.split()


@pytest.mark.parametrize("is_linked", [False, True])
def test_clean_never_takes_the_projects_own_folder_for_a_worktree_of_a_stream(
    repository: Workspace, is_linked: bool
) -> None:
    branch = "main"
    if is_linked:
        shell(repository, LINK)
        branch = "dev"
    finish(repository, "A", worktreePath=".", branchName=branch)
    repository.git("worktree", "remove", str(tree(repository, "A")))
    (line,) = clean(repository)
    assert line.startswith(f"Kept {repository.root}: ")
    assert (repository.root / "README.md").exists()
    assert branches(repository) == sorted({"main", branch, "stream/A"})


def test_clean_looks_after_the_worktrees_of_streams_that_are_gone_from_the_database(repository: Workspace) -> None:
    for stream, files in (("A", ["a.py"]), ("B", []), ("C", [])):
        put(finish(repository, stream, *files) / "x.txt", "ignored by git")
    put(tree(repository, "C") / "new.py", "")
    repository.database.execute("UPDATE tasks SET archived = 1")
    assert clean(repository) == [
        "Kept .claude/worktrees/A: 1 commit to merge, 1 file changed",
        "Removed worktree .claude/worktrees/B, and what git ignores there: x.txt",
        "Removed branch stream/B: it is merged",
        "Kept .claude/worktrees/C: nothing to merge, 1 file uncommitted",
    ]


def test_clean_moves_logs_away_overwrites_none_on_the_same_day_and_has_nothing_to_do_otherwise(
    workspace: Workspace,
) -> None:
    add_streams(workspace, "A")
    assert clean(workspace) == ["Nothing to clean."]  # nothing ever ran
    put(workspace.state / "orchestrate.py", "# a copy, as the README says\n")
    done = workspace.run("clean")
    assert (done.returncode, done.stdout, done.stderr) == (0, "Nothing to clean.\n", "")
    put(workspace.state / "pids" / "B.pid", "7\n")
    for name in ("orchestrator.log", "A.log"):
        put(workspace.state / "logs" / name, f"first {name}\n")
    today = time.strftime("%Y%m%d")
    archive = workspace.root / ".archive" / "orchestration"
    put(workspace.state / "orchestrator.pid", "")
    assert clean(workspace) == [
        "Removed stale PID file B.pid",
        f"Moved 2 logs to .archive/orchestration/{today}",
    ]
    put(workspace.state / "logs" / "A.log", "second\n")
    assert clean(workspace) == [f"Moved 1 log to .archive/orchestration/{today}-2"]
    assert (archive / today / "A.log").read_text() == "first A.log\n"
    assert (archive / today / "orchestrator.log").read_text() == "first orchestrator.log\n"
    assert (archive / f"{today}-2" / "A.log").read_text() == "second\n"
    assert clean(workspace) == ["Nothing to clean."]


def test_clean_refuses_while_an_orchestrator_or_a_worker_runs(repository: Workspace) -> None:
    add_streams(repository, "A")
    process, pid = begin(repository, "A", "commit=a.py until=go.txt all")
    wait_until(lambda: len(subjects(repository, "stream/A")) == 2, "the commit")
    runs = f"An orchestrator already runs for this project (PID {process.pid})"
    for reason in (runs, f"Workers still run: A (PID {pid})"):
        done = repository.run("clean")
        assert (done.returncode, done.stdout) == (75, "")
        assert done.stderr.startswith(f"[ERROR] {reason}\n")
        process.kill()
        process.wait()
    assert (tree(repository, "A") / "a.py").exists()


def test_a_run_after_clean_begins_anew_from_head(repository: Workspace) -> None:
    run(repository, add="A", default="commit=a.py all")
    assert merge(repository, out=merged("A")) == ""
    assert repository.run("clean").returncode == 0
    assert branches(repository) == ["main"]
    repository.database.add_task("A")
    run(repository, default="commit=b.py all")
    assert subjects(repository, "stream/A") == ["A:_b.py", "A:_a.py", "Begin"]
    assert status(repository) == ""


# ── Layouts ───────────────────────────────────────────────────────────────────────────────────────────────────────────


COMMIT = "touch README.md; git add README.md; git commit -qm Begin"
NO_WORKTREES = {
    ":": "it lies in no git repository",
    "git init -q": "its git repository has no commit yet",
    f"git init -q; {COMMIT}; git config core.bare true": "its git repository is bare",
    "mkdir .git": "git rev-parse: fatal: not a git repository (or any of the parent directories): .git",
    f"cd ..; git init -q; {COMMIT}": "the last commit of its git repository has nothing of this folder",
    f"git init -q; {COMMIT} # --no-worktrees": "--no-worktrees was given",
}


@pytest.mark.parametrize(("script", "reason"), NO_WORKTREES.items(), ids=NO_WORKTREES.values())
def test_where_there_can_be_no_worktrees_all_work_in_the_root_and_that_is_said_once(
    workspace: Workspace, script: str, reason: str
) -> None:
    shell(workspace, script)
    words = re.findall("--no-worktrees", script)
    add_streams(workspace, "F", "A", "B")
    assert f"Worktrees none: {reason}\n" in workspace.run("start", "--dry-run", *words).stdout
    assert merge(workspace, out="Nothing to merge.\n") == ""  # nothing ever ran
    warning = f"No worktrees, all streams work in {workspace.root}: {reason}"
    assert run(workspace, *words, default="write=here.py all").count(warning) == 1
    assert {place[1:] for place in places(workspace)} == {(".", None)}
    assert warnings(workspace) == [warning]
    assert prompt(workspace, "A") == ""
    assert (workspace.root / "here.py").exists()
    assert not (workspace.root / ".claude" / "worktrees").exists()
    assert merge(workspace, out="Nothing to merge.\n") == ""
    assert workspace.run("status").stderr == ""
    assert clean(workspace)[0].startswith("Moved ")


def check_whole_way(workspace: Workspace, into: str = "main") -> None:
    """Check a run of two streams from the first worktree to the last, with all commands."""
    run(workspace, add="A B", A="commit=a.py write=x.txt all", B="commit=b.py all")
    assert len(workspace.starts()) == 2
    for stream in "AB":
        assert subjects(workspace, f"stream/{stream}")[0] == f"{stream}:_{stream.lower()}.py"
    shown = json.loads(workspace.run("status", "--json").stdout)["streams"]
    assert [branch["commits_ahead"] for stream in shown for branch in stream["branches"]] == [1, 1]
    assert merge(workspace, out=merged("A", "B", into=into)) == ""
    assert sorted(path.name for path in workspace.root.glob("[ab].py")) == ["a.py", "b.py"]
    done = workspace.run("clean")
    assert (done.returncode, done.stderr, done.stdout.count("Removed worktree")) == (0, "", 2), done.stdout
    assert [name for name in branches(workspace) if name.startswith("stream/")] == []


@pytest.mark.parametrize("name", ["with a space", "ü-ñ-日本", "a\nb", "it's", "$(id)", "-x", "%s", "a:b"])
def test_the_projects_path_may_hold_anything(workspace: Workspace, tmp_path: Path, name: str) -> None:
    odd = Workspace(tmp_path / name)
    if name == "a:b":  # no PATH can name such a folder
        odd.bin = workspace.bin
    with closing(odd):
        odd.make_repository()
        check_whole_way(odd)
        assert status(odd) == ""


def test_a_project_that_is_reached_by_a_link_has_one_set_of_worktrees(repository: Workspace) -> None:
    link = repository.root.parent / "link"
    link.symlink_to(repository.root)
    env = {"WORKSPACE_ID": "my-project"}
    run(repository, "--project", str(link), add="A", default="commit=a.py all", env=env)
    repository.database.add_task("A")
    run(repository, default="commit=b.py all")
    assert subjects(repository, "stream/A") == ["A:_b.py", "A:_a.py", "Begin"]
    assert merge(repository, "--project", str(link), out="Merged stream/A into main: 2 commits\n", env=env) == ""


@pytest.mark.parametrize(
    ("script", "into", "where"),
    [
        ("mkdir ../disk; ln -s ../../../disk .claude/worktrees; echo .claude/worktrees >> .git/info/exclude", "main",
         "../../disk"),
        ("git init -q ..; cd ..; git submodule -q add $PWD/my-project my-project; git submodule -q absorbgitdirs; "
         "[ -f my-project/.git ]; printf '/*.txt\n/parts.json\n' > .git/modules/my-project/info/exclude", "main",
         ".claude/worktrees"),
        (LINK, "dev", ".claude/worktrees"),
    ],
    ids=["worktrees behind a link", "submodule", "linked worktree"],
)  # fmt: skip
def test_the_project_and_its_worktrees_may_lie_elsewhere_than_they_seem(
    repository: Workspace, script: str, into: str, where: str
) -> None:
    shell(repository, script)
    is_file = (repository.root / ".git").is_file()
    check_whole_way(repository, into=into)
    assert (repository.root / ".git").is_file() is is_file
    assert {folder for _, folder, _ in places(repository)} == {f"{where}/A", f"{where}/B"}


def test_the_repository_may_hold_submodules_and_the_worker_is_told(repository: Workspace) -> None:
    shell(repository, VENDOR)
    check_whole_way(repository)
    line = "- Submodules are empty here; fill those that you need: git submodule update --init\n"
    assert line in prompt(repository, "A")


def test_the_project_may_lie_below_the_top_of_its_repository(workspace: Workspace) -> None:
    around = workspace.root.parent
    workspace.git("init", "--quiet", "--initial-branch=main", cwd=around)
    put(around / ".git" / "info" / "exclude", "*.txt\n/home\n/bin\nparts.json\n.mcp.json\n")
    commit(workspace, "my-project/README.md", "", around)
    commit(workspace, "other/of-others.py", "", around)
    put(around / "other" / "new.py", "")  # none of this project's business
    put(workspace.root / ".mcp.json", "{}")
    check_whole_way(workspace)
    (event, _) = workspace.events("worker_started")
    assert event["folder"] == str(tree(workspace, "A") / "my-project")
    words = workspace.argv("A")[0]
    assert words[words.index("--mcp-config") + 1] == str(workspace.root / ".mcp.json")
    assert f"- Folder: {tree(workspace, 'A')}/my-project\n" in prompt(workspace, "A")
    assert warnings(workspace) == []
    assert status(workspace) == "?? other/new.py\n"


def test_the_root_may_be_on_a_detached_head(repository: Workspace) -> None:
    repository.git("checkout", "--quiet", "--detach")
    short = head(repository)[:10]
    said = run(repository, add="F A", F="commit=f.py all", A="commit=a.py all")
    assert f"- Branch: a detached HEAD at {short}\n" in prompt(repository, "F")
    assert subjects(repository, "stream/A") == ["A:_a.py", "F:_f.py", "Begin"]
    assert f"Not in a detached HEAD at {head(repository)[:10]} yet. Merge it with: " in said


# ── status ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_status_shows_each_branch_its_commits_its_uncommitted_files_and_what_it_was_left_on(
    repository: Workspace,
) -> None:
    put(finish(repository, "A", "a.py", "b.py") / "new.py", "")
    finish(repository, "B")
    add_streams(repository, "C")
    repository.git("switch", "--quiet", "-c", "mine", cwd=finish(repository, "D"))
    shown = repository.run("status").stdout
    assert re.findall(r"(?m)^ +((?:stream/|mine ).*)$", shown) == [
        "stream/A │ 2 commits to merge, 2 files changed, 1 file uncommitted",
        "stream/B │ nothing to merge",
        "stream/D │ nothing to merge",
        "mine │ nothing to merge, used instead of stream/D",
    ]
    streams = json.loads(repository.run("status", "--json").stdout)["streams"]
    fields = {"files_uncommitted": 0, "commits_ahead": 0, "files_changed": 0}
    names = {s: {"name": f"stream/{s}", "worktree": str(tree(repository, s)), "instead_of": None} for s in "AB"}
    *others, left = [stream["branches"] for stream in streams]
    assert others == [
        [{**names["A"], "commits_ahead": 2, "files_changed": 2, "files_uncommitted": 1}],
        [{**names["B"], **fields}],
        [],
    ]
    assert [(branch["name"], branch["instead_of"]) for branch in left] == [("stream/D", None), ("mine", "stream/D")]


def test_status_of_a_repository_that_can_not_be_read_shows_everything_else(repository: Workspace) -> None:
    finish(repository, "A", "a.py")
    put(repository.root / ".git" / "HEAD", "ref: refs/heads/main\n")
    put(repository.root / ".git" / "config", "[core\n")
    done = repository.run("status")
    assert (done.returncode, done.stderr) == (0, "")
    assert "✓ A │ A name" in done.stdout
    assert "Warning: branches are not shown: git rev-parse: fatal: bad config line 1" in " ".join(done.stdout.split())


# ── What a hostile reader found ───────────────────────────────────────────────────────────────────────────────────────


def add_own(repository: Workspace, name: str) -> Path:
    """Let the user have a worktree and a branch of their own, with a file that git ignores."""
    folder = repository.root.parent / name
    repository.git("worktree", "add", "--quiet", "-b", name, str(folder))
    put(folder / "key.txt", "secret\n")
    return folder


def test_clean_leaves_the_users_worktrees_and_branches_though_a_stream_names_them(repository: Workspace) -> None:
    folder = add_own(repository, "wip")
    repository.git("branch", "develop")
    put(repository.state / "logs" / "A.log", "")
    put(repository.state / "orchestrator.pid", "")
    repository.database.add_stream("A", worktreePath=str(folder), branchName="wip")
    repository.database.add_stream("B", branchName="develop")
    repository.database.execute("UPDATE tasks SET status = 'cancelled'")
    lines = clean(repository)
    assert lines[1:] == [f"Kept {folder}: it was not made by the orchestrator"]
    assert (folder / "key.txt").exists()
    assert branches(repository) == ["develop", "main", "wip"]


def test_clean_removes_the_branch_that_the_metadata_name_where_the_run_has_made_it(repository: Workspace) -> None:
    repository.git("branch", "old")
    add_streams(repository, "A", branchName="feature")
    add_streams(repository, "B", branchName="old")
    run(repository)
    assert [line for line in clean(repository) if not line.startswith("Moved")] == [
        "Removed worktree .claude/worktrees/A",
        "Removed branch feature: it is merged",
        "Removed worktree .claude/worktrees/B",
    ]
    assert branches(repository) == ["main", "old"]


@pytest.mark.parametrize("where", ["root", "wip"])
def test_a_folder_that_was_refused_once_is_refused_again(repository: Workspace, where: str) -> None:
    folder = repository.root if where == "root" else add_own(repository, "wip")
    add_streams(repository, "A", worktreePath=str(folder))
    for _ in range(2):
        assert str(folder) in refused(repository)
    assert repository.git("status", "--porcelain", cwd=folder) == ""


def test_a_merge_that_the_user_begins_in_the_same_moment_is_not_taken_back(repository: Workspace) -> None:
    shell(repository, OTHER.format("README.md", OURS))
    finish(repository, "A", "a.py")
    shadow_git(repository, f'case "$*" in *--no-ff*) {GIT} merge other > /dev/null;; esac\nexec {GIT} "$@"')
    said = merge(repository, code=1)
    assert said.startswith(
        "[ERROR] stream/A was not merged, what it left: README.md: conflicts with main in README.md\n"
    )
    assert head(repository, "MERGE_HEAD") == head(repository, "other")


@pytest.mark.parametrize(
    ("parts", "script", "log", "text", "said"),
    [
        (["write=README.md exit=1", "commit=b.py all"], "rm $G/index", "A:_b.py Begin", "A\n", " M README.md\n"),
        (["commit=a.py die=9", "commit=b.py all"], "> $G/index.lock", "A:_b.py A:_a.py Begin", "README.md\n", ""),
    ],
    ids=["index lost", "lock left"],
)
def test_what_a_killed_worker_left_of_the_index_costs_no_file_and_holds_up_none(
    repository: Workspace, parts: list[str], script: str, log: str, text: str, said: str
) -> None:
    add_streams(repository, "A")
    repository.play(A=parts)
    process = repository.popen("start", *NO_POLL)
    wait_until(lambda: repository.events("worker_ended"), "the first end")
    shell(repository, script.replace("$G", ".git/worktrees/A"))
    assert process.wait(timeout=30) == 0
    assert subjects(repository, "stream/A") == log.split()
    assert (tree(repository, "A") / "README.md").read_text() == text
    assert status(repository, tree(repository, "A")) == said


def test_ctrl_c_ends_the_run_while_git_hangs(repository: Workspace) -> None:
    add_streams(repository, "A", "B", "C")
    mark = repository.root.parent / "hangs"
    shadow_git(repository, f'case "$*" in *worktree*) touch {mark}; exec sleep 3600;; esac\nexec {GIT} "$@"')
    process = repository.popen("start", *NO_POLL, script=hasten(repository, GIT_TIMEOUT="600.0"))
    wait_until(mark.exists, "git")
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=20) == 130


def test_a_second_ctrl_c_ends_a_merge_that_hangs_and_restores_the_tree(repository: Workspace) -> None:
    finish(repository, "A", "a.py")
    commit(repository, "a.py", "main\n")
    mark = repository.root.parent / "hangs"
    put(repository.root / ".git" / "info" / "attributes", "*.py merge=hang\n")
    exclude(repository, ".merge_file_*")  # what git leaves when a driver is ended
    repository.git("config", "merge.hang.driver", f"touch {mark}; sleep 3600")
    before = state_of(repository)
    process = repository.popen("merge")
    wait_until(mark.exists, "the merge driver")
    for _ in range(2):
        process.send_signal(signal.SIGINT)
        time.sleep(0.1)  # two signals of one kind at once are one
    _, err = process.communicate(timeout=20)
    assert process.returncode == 1
    assert err.startswith("[ERROR] stream/A was not merged, the tree is as it was: git merge was interrupted\n")
    assert state_of(repository) == before


def test_a_project_that_was_moved_goes_on_in_its_worktrees(repository: Workspace) -> None:
    run(repository, add="A", default="write=new.py all")
    moved = repository.root.parent / "moved"
    repository.root.rename(moved)
    repository.root = moved
    repository.database.add_task("A")
    run(repository, "--project", str(moved), "--db", str(repository.database.path))
    assert places(repository)[-1] == ("A", ".claude/worktrees/A", "stream/A")
    assert status(repository, tree(repository, "A")) == "?? new.py\n"


def test_logs_that_no_verdict_was_made_from_yet_stay(repository: Workspace) -> None:
    add_streams(repository, "A", "B")
    repository.play(A="until=go.txt cost=1.5 exit=1", B="all")
    process = repository.popen("start", *NO_POLL)
    pid = repository.wait_for_worker("A")
    wait_until(lambda: repository.events("worker_ended"), "the end of B's worker")
    process.kill()
    process.wait()
    repository.open_gate("go.txt")
    wait_until(lambda: not is_running(pid), "its end")
    assert repository.run("clean").returncode == 0
    assert sorted(path.name for path in (repository.state / "logs").glob("[!.]*")) == ["A.jsonl", "A.log"]
    run(repository)
    assert [end["cost"] for end in repository.events("worker_ended") if end["stream"] == "A"] == [1.5, 0.0]


def test_nobody_starts_or_stops_while_a_merge_or_a_clean_up_is_under_way(repository: Workspace) -> None:
    finish(repository, "A")
    add_streams(repository, "B")
    with (repository.state / "orchestrator.pid").open("r+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for words in (["start"], ["start", "B"], ["merge"], ["clean"]):
            done = repository.run(*words)
            assert (done.returncode, done.stdout) == (75, ""), words
            assert done.stderr == "[ERROR] A merge or a clean-up is under way in this project\nWait for its end.\n"
        stopped = repository.run("stop")
    assert (stopped.returncode, stopped.stdout) == (0, "Nothing to stop.\n")
