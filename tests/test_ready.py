"""A new worktree is ready to work in: what is copied, what is set up, what is said of the rest; and real projects.

`/*.txt` of a test's project is ignored by git (support.py), so what is to be in a commit is named otherwise.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
from pathlib import Path

import pytest
from support import Workspace, is_running, wait_until
from test_worktrees import (
    NO_POLL,
    VENDOR,
    add_streams,
    branches,
    commit,
    exclude,
    failures,
    hasten,
    merge,
    merged,
    prompt,
    put,
    refused,
    repository,
    run,
    shell,
    status,
    subjects,
    tree,
    warnings,
)  # fmt: skip

__all__ = ["repository"]  # a fixture


def log(workspace: Workspace, stream: str) -> str:
    return "\n".join([*workspace.log(stream), ""])


def find_git_warnings(workspace: Workspace) -> list[str]:
    """What `doctor` says of git."""
    checks = json.loads(workspace.run("doctor", "--json").stdout)["checks"]
    return [str(check["found"]) for check in checks if check["subject"] == "Git"]


# ── .worktreeinclude ──────────────────────────────────────────────────────────────────────────────────────────────────


def test_what_worktreeinclude_names_and_git_ignores_is_copied_as_it_is(repository: Workspace) -> None:
    root = repository.root
    exclude(repository, ".env*\n/config/\n/cache/\n*.link\n.copilot\n.claude\n/odd*")
    put(
        root / ".worktreeinclude",
        "# as git reads it\n.env*\n!.env.old\n/config/\n*.link\nnew.py\n/odd*\n.copilot\n.claude\n",
    )
    put(root / ".env", "KEY=1\n").chmod(0o600)
    put(root / ".env.old", "")
    put(root / "config" / "deep" / "tool", "#!/bin/sh\n").chmod(0o755)
    put(root / "cache" / "big.bin", "")
    put(root / "new.py", "git does not ignore it\n")
    put(root / "odd name\n\u00fc*", "odd\n")
    (root / "to.link").symlink_to("config/deep")
    (root / "broken.link").symlink_to("nowhere")
    for name in (
        ".copilot/memory.db",
        ".claude/orchestrator/worker-prompt.md",
        ".claude/worktrees/other/x",
        ".claude/local.json",
    ):
        put(root / name, "")
    os.utime(root / ".env", (1e9, 1e9))
    run(repository, add="A")
    folder = tree(repository, "A")
    there = {str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir() or path.is_symlink()}
    assert there == {
        ".git", "README.md", ".env", "config/deep/tool", "odd name\n\u00fc*", "to.link", "broken.link",
        ".claude/local.json",
    }  # fmt: skip
    assert (folder / ".env").read_text() == "KEY=1\n"
    assert ((folder / ".env").stat().st_mode & 0o777, (folder / ".env").stat().st_mtime) == (0o600, 1e9)
    assert (folder / "config" / "deep" / "tool").stat().st_mode & 0o777 == 0o755
    assert [os.readlink(folder / name) for name in ("to.link", "broken.link")] == ["config/deep", "nowhere"]
    assert status(repository, folder) == ""


def test_what_is_copied_overwrites_nothing_and_is_copied_once(repository: Workspace) -> None:
    commit(repository, "settings.ini", "the commit's\n")
    repository.git("switch", "--quiet", "-c", "stream/A")
    put(repository.root / "of-branch.ini", "")
    commit(repository, "of-branch.ini", "the branch's\n")
    repository.git("switch", "--quiet", "main")
    exclude(repository, "*.ini")
    put(repository.root / ".worktreeinclude", "*.ini\n")
    put(repository.root / "of-branch.ini", "the root's\n")
    put(repository.root / "mine.ini", "1\n")
    run(repository, add="A")
    read = lambda name: (tree(repository, "A") / name).read_text()  # noqa: E731
    assert [read(name) for name in ("settings.ini", "of-branch.ini", "mine.ini")] == [
        "the commit's\n",
        "the branch's\n",
        "1\n",
    ]
    put(tree(repository, "A") / "mine.ini", "the worker's\n")
    put(repository.root / "later.ini", "")
    repository.database.add_task("A")
    run(repository)
    assert read("mine.ini") == "the worker's\n"
    assert not (tree(repository, "A") / "later.ini").exists()  # it is no longer new


def test_what_is_copied_stays_in_the_worktree_where_the_branch_has_a_link_out_of_it(repository: Workspace) -> None:
    outside = repository.root.parent / "outside"
    outside.mkdir()
    repository.git("switch", "--quiet", "-c", "stream/A")
    (repository.root / "conf").symlink_to(outside)
    shell(repository, "git add conf; git commit -qm link; git switch -q main")
    exclude(repository, "/conf")
    put(repository.root / "conf" / "key", "secret\n")
    put(repository.root / ".worktreeinclude", "/conf/\n")
    run(repository, add="A")
    assert list(outside.iterdir()) == []


def test_what_can_not_be_copied_is_named_and_keeps_no_worker_from_its_work(repository: Workspace) -> None:
    repository.git("switch", "--quiet", "-c", "stream/A")
    commit(repository, "config", "a file\n")
    repository.git("switch", "--quiet", "main")
    exclude(repository, "/config/\n.env")
    put(repository.root / "config" / "local.env", "")
    put(repository.root / ".env", "")
    put(repository.root / ".worktreeinclude", "/config/\n.env\n")
    run(repository, add="A")
    assert "\nconfig/local.env is not copied: File exists\n" in log(repository, "A")
    assert (tree(repository, "A") / ".env").exists()


# ── The set-up ────────────────────────────────────────────────────────────────────────────────────────────────────────


SETUP = 'pwd; echo "port $ORCHESTRATE_PORT"; echo "$ORCHESTRATE_STREAM" >> $ORCHESTRATE_PROJECT/ran.txt; touch made.txt'


def test_a_set_up_runs_once_at_the_top_of_each_new_worktree_with_its_output_in_the_log(repository: Workspace) -> None:
    put(repository.root / "check.txt", "[ -e made.txt ]")
    run(repository, "--setup", SETUP, add="F A B", default="all", A=["sh=check.txt exit=1", "all"])
    assert sorted((repository.root / "ran.txt").read_text().split()) == ["A", "B"]
    port = re.search(r"\[?Ports (\d+) ", " ".join(repository.argv("A")[0]))
    assert port is not None
    said = log(repository, "A")
    assert f"Set-up: {SETUP}\n{tree(repository, 'A')}\nport {port[1]}\nSet-up done in 0s\n" in said
    assert "Set-up" not in log(repository, "F")
    for stream in "AB":
        repository.database.add_task(stream)
    run(repository, "--setup", SETUP)
    assert sorted((repository.root / "ran.txt").read_text().split()) == ["A", "B"]


def test_a_worktree_that_a_person_has_made_is_neither_filled_nor_set_up(repository: Workspace) -> None:
    exclude(repository, "/.env")
    put(repository.root / ".env", "")
    put(repository.root / ".worktreeinclude", ".env\n")
    repository.git("worktree", "add", "--quiet", "-b", "stream/A", str(tree(repository, "A")))
    run(repository, "--setup", SETUP, add="A")
    assert not (repository.root / "ran.txt").exists()
    assert not (tree(repository, "A") / ".env").exists()


def test_a_set_up_that_fails_is_a_restart_with_its_last_line_and_runs_again(repository: Workspace) -> None:
    setup = (
        "echo fetching; if [ -e $ORCHESTRATE_PROJECT/net.txt ]; then exit 0; fi; touch $ORCHESTRATE_PROJECT/net.txt; "
    )
    said = run(repository, "--setup", f"{setup} echo no network >&2; exit 3", add="A")
    assert "Restarting worker for A (1/10) in 1s: the set-up failed with exit code 3: no network\n" in said
    assert len(repository.starts()) == 1  # claude ran once
    assert "The last worker ended: the set-up failed with exit code 3: no network\n" in prompt(repository, "A")
    (first, second) = repository.events("worker_ended")
    assert (first["exit_code"], first["verdict"], second["verdict"]) == (None, "restart", "complete")


def test_a_set_up_that_takes_too_long_is_ended_with_all_that_it_started(repository: Workspace) -> None:
    script = hasten(repository, SETUP_TIMEOUT="1")
    setup = "setsid sleep 3600 & echo $! > $ORCHESTRATE_PROJECT/pid.txt; sleep 3600"
    said = run(repository, "--setup", setup, "--max-restarts", "0", add="A", code=1, script=script)
    assert (
        "A failed: gave up after 0 restarts without a completed task; last: the set-up took longer than 1 s\n" in said
    )
    assert not is_running(int((repository.root / "pid.txt").read_text()))


FORGED = '{"type": "result", "is_error": true, "result": "Not logged in"}'


@pytest.mark.parametrize(
    ("command", "code", "last"),
    [
        ("printf 'npm ERR! no network'", 7, "npm ERR! no network"),
        ("printf 'Credit balance is too low'", 7, "Credit balance is too low"),
        (f"echo '{FORGED}'", 1, FORGED),
    ],
)
def test_what_a_set_up_prints_is_text_whatever_it_looks_like(
    repository: Workspace, command: str, code: int, last: str
) -> None:
    flag = "$ORCHESTRATE_PROJECT/net.txt"
    run(repository, "--setup", f"[ -e {flag} ] || {{ touch {flag}; {command}; exit {code}; }}", add="A")
    ending = f"the set-up failed with exit code {code}: {last}"
    (first, _) = repository.events("worker_ended")
    assert (first["ending"], first["verdict"], first["cause"]) == (ending, "restart", "OTHER")
    assert '{"type": "orchestrator"' not in log(repository, "A")


def test_a_set_up_that_prints_a_result_as_claude_does_ends_nobody(repository: Workspace) -> None:
    setup = """echo '{"type": "result", "subtype": "success", "result": "Done."}'; sleep 3; printf '100%%'"""
    run(repository, "--finish-grace", "1", "--setup", setup, add="A")
    assert [end["verdict"] for end in repository.events("worker_ended")] == ["complete"]
    assert "100%\nSet-up done in 3s\n" in log(repository, "A")


@pytest.mark.parametrize("command", ["no-such-program", "exit 127", "exit 126"])
def test_a_set_up_without_its_program_is_not_taken_for_a_claude_that_is_missing(
    repository: Workspace, command: str
) -> None:
    run(repository, "--setup", command, "--max-restarts", "0", add="A", code=1)
    assert "the set-up failed with exit code 12" in failures(repository)["A"]


def test_a_stop_in_the_middle_of_a_set_up_leaves_nothing_of_it(repository: Workspace) -> None:
    add_streams(repository, "A")
    process = repository.popen("start", *NO_POLL, "--setup", "echo $$ > $ORCHESTRATE_PROJECT/pid.txt; sleep 3600")
    path = repository.root / "pid.txt"
    pid = int(wait_until(lambda: path.exists() and path.read_text().strip(), "the set-up"))
    assert repository.run("stop", "A").returncode == 0
    assert not is_running(pid)
    process.terminate()
    assert process.wait(timeout=20) == 143


def test_an_orchestrator_that_comes_back_in_the_middle_of_a_set_up_takes_the_worker_over(repository: Workspace) -> None:
    add_streams(repository, "A")
    repository.play("all")
    words = ("start", *NO_POLL, "--setup", "touch at.txt; until [ -e $ORCHESTRATE_PROJECT/go.txt ]; do sleep 0.1; done")
    process = repository.popen(*words)
    wait_until((tree(repository, "A") / "at.txt").exists, "the set-up")
    process.kill()
    process.wait()
    process = repository.popen(*words)
    wait_until(lambda: repository.events("worker_adopted"), "the take-over")
    repository.open_gate("go.txt")
    assert process.wait(timeout=30) == 0
    assert len(repository.events("worker_started")) == 1


@pytest.mark.parametrize(
    ("script", "runs", "warning"),
    [
        ("git add -f $S; git commit -qm x", True, ""),
        ("git add -f $S; git commit -qm x; echo 'echo changed > $ORCHESTRATE_PROJECT/ran.txt' >> $S", True, ""),
        ("", False, "is not tracked by git, and not run. git add --force "),
        ("git add -f $S; git commit -qm x; chmod -x $S", False, "is not executable, and not run. chmod +x "),
    ],
    ids=["tracked", "the root's copy", "untracked", "not executable"],
)
def test_the_projects_own_set_up_runs_where_it_is_tracked_and_executable_else_that_is_said(
    repository: Workspace, script: str, runs: bool, warning: str
) -> None:
    setup = put(repository.root / ".claude" / "orchestrator-setup", "#!/bin/sh\npwd > $ORCHESTRATE_PROJECT/ran.txt\n")
    setup.chmod(0o755)
    shell(repository, f"S={setup}; {script}")
    said = run(repository, add="A")
    assert (repository.root / "ran.txt").exists() is runs
    if "changed" in script:
        assert (repository.root / "ran.txt").read_text() == "changed\n"
    elif runs:
        assert (repository.root / "ran.txt").read_text() == f"{tree(repository, 'A')}\n"
    assert [message for message in warnings(repository) if "not run" in message] == (
        [f"{setup} {warning}{setup}"] if warning else []
    )
    assert said.count("orchestrator-setup is not") == bool(warning)


# ── Ports ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def read_ports(workspace: Workspace) -> dict[str, int]:
    return {event["stream"]: event["port"] for event in workspace.events("worker_started")}


def test_each_stream_has_ten_ports_of_its_own_and_keeps_them(repository: Workspace) -> None:
    streams = [f"S{number}" for number in range(25)]
    add_streams(repository, *streams)
    run(repository, "--max-workers", "25", default="facts all")
    ports = read_ports(repository)
    assert len(set(ports.values())) == 25
    assert all(port > 1024 and port + 9 < 32768 and port % 10 == 0 for port in ports.values())
    last = repository.facts()["env"]
    assert int(last["ORCHESTRATE_PORT"]) == ports[last["ORCHESTRATE_STREAM"]]
    repository.database.execute("UPDATE tasks SET archived = 1 WHERE id NOT LIKE 'x'")
    add_streams(repository, "new")
    repository.database.execute("UPDATE tasks SET archived = 0, status = 'pending' WHERE metadata LIKE '%\"S7\"%'")
    moved = repository.root.parent / "moved"
    repository.root.rename(moved)
    repository.root = moved
    run(repository, "--project", str(moved), "--db", str(repository.database.path))
    again = read_ports(repository)
    assert again["S7"] == ports["S7"]
    assert again["new"] not in ports.values()


def test_two_projects_rarely_have_the_same_ports(tmp_path: Path) -> None:
    import orchestrate

    folders = [tmp_path / str(number) for number in range(12)]
    for folder in folders:
        folder.mkdir()
    firsts = {orchestrate.Project(folder).find_port(0) for folder in folders}
    assert len(firsts) > 6
    project = orchestrate.Project(folders[0])
    assert {project.find_port(n + 1) - project.find_port(n) for n in range(5)} == {10}


# ── What is said of the rest ──────────────────────────────────────────────────────────────────────────────────────────


def test_doctor_names_what_worktrees_would_lack_where_nothing_brings_it(repository: Workspace) -> None:
    exclude(repository, ".env\nnode_modules/\n.venv/\n__pycache__/\n.claude/\ndist/\n*.txt\n.worktreeinclude")
    for name in (".env", "node_modules/x/y.js", ".venv/bin/python", "__pycache__/a.pyc", "dist/a.js", "src/deep/.env"):
        put(repository.root / name, "")
    add_streams(repository, "A")
    (found,) = find_git_warnings(repository)
    assert found.endswith("main; The worktrees lack what git ignores: .env, .venv/, node_modules/, parts.json")
    run(repository)
    lines = prompt(repository, "A")
    assert f"- Ignored by git, and not here; look in {repository.root}: .env, .venv/, " in lines
    assert "__pycache__" not in lines
    put(repository.root / ".worktreeinclude", ".env\n")
    (found,) = find_git_warnings(repository)
    assert "lack" not in found
    repository.database.add_task("A")
    run(repository, "--setup", "true")
    lines = prompt(repository, "A")
    assert "not here unless the set-up made it; look in" in lines
    assert ".env" not in lines


def test_what_generate_has_put_there_is_no_uncommitted_change(repository: Workspace) -> None:
    assert repository.run("generate").returncode == 0
    add_streams(repository, "A")
    assert not any("Uncommitted" in found for found in find_git_warnings(repository))
    run(repository)
    assert warnings(repository) == []
    with (repository.root / ".claude" / "commands" / "orchestration.md").open("a") as file:
        file.write("mine\n")
    repository.database.add_task("A")
    run(repository)
    assert warnings(repository) == [
        "Uncommitted changes: the streams branch from the last commit, without .claude/commands/orchestration.md"
    ]


def test_a_warning_is_said_once_in_a_run_and_its_interruptions_and_again_in_the_next_one(repository: Workspace) -> None:
    repository.git("checkout", "--quiet", "--detach")
    put(repository.root / "new.py", "")
    add_streams(repository, "A")
    repository.play("until=go.txt all")
    process = repository.popen("start", *NO_POLL)
    repository.wait_for_worker("A")
    process.kill()
    process.wait()
    process = repository.popen("start", *NO_POLL)
    wait_until(lambda: repository.events("worker_adopted"), "the take-over")
    repository.open_gate("go.txt")
    assert process.wait(timeout=30) == 0
    detached = [message for message in warnings(repository) if message.startswith("HEAD is detached")]
    assert len(detached) == len(warnings(repository)) - 1 == 1
    repository.database.add_task("A")
    run(repository)
    assert len(warnings(repository)) == 4


REBASE = "echo x > README.md; git commit -qam x; git switch -qc o HEAD~; echo y > README.md; git commit -qam y; "
BEGUN = {
    "rebase": (f"{REBASE} git rebase main > /dev/null 2>&1 && exit 1; true", "git rebase --continue"),
    "merge": (f"{REBASE} git merge main > /dev/null && exit 1; true", "git merge --continue"),
    "cherry-pick": (f"{REBASE} git cherry-pick main > /dev/null 2>&1 && exit 1; true", "git cherry-pick --continue"),
    "revert": (f"{REBASE} git revert --no-edit HEAD~ > /dev/null 2>&1 && exit 1; true", "git revert --continue"),
    "bisect": ("git bisect start > /dev/null; git bisect bad", "git bisect reset"),
}


def test_modules_of_the_project_and_what_git_is_told_by_the_environment_hinder_no_worktree(
    repository: Workspace,
) -> None:
    for name in ("json.py", "shutil.py", "subprocess.py", "signal.py"):
        commit(repository, name, "open('imported.txt', 'w'); raise SystemExit('project code')\n")
    with (repository.root / ".git" / "info" / "exclude").open("ab") as file:
        file.write(b"# l\xe9ger\n")
    run(repository, add="A", env={"GIT_LITERAL_PATHSPECS": "1"})
    assert not (repository.root / "imported.txt").exists()
    assert [event["files"] for event in repository.events("root_seen")] == [[]]


def test_a_claude_without_a_first_line_is_a_shell_script_for_every_phase(repository: Workspace) -> None:
    script = put(repository.bin / "myclaude", f'exec {repository.claude} "$@"\n')
    script.chmod(0o755)
    run(repository, "--claude", "myclaude", add="F A")
    assert repository.starts() == ["F", "A"]


def test_mcp_json_is_carried_over_to_who_names_settings_of_his_own(repository: Workspace) -> None:
    exclude(repository, "/.mcp.json\n/.claude")
    put(repository.root / ".mcp.json", "{}")
    put(repository.root / ".claude" / "settings.json", "{}")
    run(repository, "--claude", "claude --settings mine.json", add="A")
    words = repository.argv("A")[0]
    assert words[words.index("-p") - 2 : words.index("-p")] == ["--mcp-config", str(repository.root / ".mcp.json")]
    assert words.count("--settings") == 1


@pytest.mark.parametrize("begun", BEGUN)
def test_what_is_begun_and_not_ended_in_the_root_is_said_by_start_its_plan_and_doctor(
    repository: Workspace, begun: str
) -> None:
    script, remedy = BEGUN[begun]
    shell(repository, script)
    short = repository.git("rev-parse", "HEAD")[:10]
    what = f"A {begun} is in progress here, and the streams branch from its middle ({short})"
    check_said(repository, what, f"End it: {remedy}")


def test_a_mail_that_does_not_apply_is_no_rebase(repository: Workspace) -> None:
    shell(
        repository,
        "echo x > README.md; git commit -qam x; git format-patch -q -1 -o ..; echo y > README.md; git commit -qam y; "
        "git am -q ../0001* > /dev/null 2>&1 && exit 1; true",
    )
    short = repository.git("rev-parse", "HEAD")[:10]
    what = f"An am is in progress here, and the streams branch from its middle ({short})"
    check_said(repository, what, "End it: git am --continue")


def check_said(workspace: Workspace, what: str, remedy: str, add: str = "A", **options: str) -> str:
    """Check that `start`, its plan and `doctor` say a warning in the same words, and return what the run said."""
    add_streams(workspace, *add.split())
    checks = json.loads(workspace.run("doctor", "--json").stdout)["checks"]
    (finding,) = [check for check in checks if check["subject"] == "Git"]
    assert what in finding["found"]
    assert remedy in finding["remedy"]
    assert f"Warning: {what}. {remedy}\n" in workspace.run("start", "--dry-run").stdout
    said = run(workspace, **options)
    assert said.count(f"Warning: {what}. {remedy}\n") == 1
    return said


def test_a_branch_that_only_the_remote_has_is_taken_and_that_is_said(repository: Workspace) -> None:
    shell(
        repository,
        "git switch -qc stream/A; echo x > a.py; git add a.py; git commit -qm Remote; git switch -q main; "
        "git clone -q --bare . ../bare; git branch -qD stream/A; git remote add origin $PWD/../bare; git fetch -q",
    )
    what = "A goes on from origin/stream/A: its branch is only there"
    check_said(repository, what, "To begin anew, name another one: branchName, not stream/A", A="commit=b.py all")
    assert subjects(repository, "stream/A") == ["A:_b.py", "Remote", "Begin"]
    assert "[branch" not in (repository.root / ".git" / "config").read_text()  # nothing is tracked


def test_a_repository_of_another_user_is_refused_with_gits_remedy(repository: Workspace) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can give a folder away")
    add_streams(repository, "A")
    home = repository.root.parent / "home"
    home.mkdir(exist_ok=True)
    os.chown(repository.root, 12345, 12345)
    os.chown(repository.root / ".git", 12345, 12345)
    try:
        why = refused(repository)
        assert "dubious ownership" in why
        assert why.endswith(f"Run: git config --global --add safe.directory {repository.root}")
    finally:
        os.chown(repository.root, 0, 0)
        os.chown(repository.root / ".git", 0, 0)


# ── Work that lands elsewhere ─────────────────────────────────────────────────────────────────────────────────────────


def call(path: Path, tool: str = "Write") -> dict[str, object]:
    """An event of the CLI: a tool call that names a file."""
    block = {"type": "tool_use", "id": "1", "name": tool, "input": {"file_path": str(path), "content": ""}}
    return {"type": "assistant", "message": {"content": [block]}}


def test_a_change_in_the_projects_own_folder_is_named_with_the_stream_that_did_it(repository: Workspace) -> None:
    root = repository.root
    put(root / "old.py", "a person's\n")
    init = {"type": "system", "subtype": "init", "cwd": str(tree(repository, "A"))}
    repository.write_lines(init=init, write=call(root / "src" / "astray.py"), own=call(tree(repository, "A") / "b.py"))
    put(root / "astray.txt", f"mkdir -p {root}/src; echo x > {root}/src/astray.py; echo y >> {root}/old.py")
    put(root / "wait.txt", f"until [ -e {root}/src ]; do sleep 0.1; done")
    said = run(
        repository, add="A B I", A="print=init print=write print=own sh=astray.txt commit=a.py all",
        B="sh=wait.txt commit=b.py all",
    )  # fmt: skip
    strays = [event for event in repository.events("root_seen") if event["files"]]
    by = {name: sorted(event["streams"]) for event in strays for name in event["files"]}
    assert by == {"old.py": ["A", "B"], "src/astray.py": ["A"]}  # no call names the one
    assert said.count("Warning: changed in the project's own folder while A worked: src/astray.py\n") == 1
    assert len(re.findall("Warning: changed in .* while (A, B|B, A) worked: old.py\n", said)) == 1
    told = prompt(repository, "I")
    assert "## Changed in this folder, and not committed, while the parallel streams worked in theirs\n" in told
    assert "- src/astray.py (by A)\n" in told
    assert "a person's" in (root / "old.py").read_text()


def test_a_change_that_no_tool_call_names_is_named_with_all_that_worked_meanwhile_also_after_a_kill(
    repository: Workspace,
) -> None:
    root = repository.root
    add_streams(repository, "A", "B")
    put(root / "astray.txt", "cd ../../..; echo x > astray.py")
    repository.play("until=go.txt all", A="sh=astray.txt until=go.txt all")
    process = repository.popen("start", *NO_POLL)
    for stream in "AB":
        repository.wait_for_worker(stream)
    wait_until((root / "astray.py").exists, "the stray")
    process.kill()
    process.wait()
    process = repository.popen("start", *NO_POLL)
    wait_until(lambda: len(repository.events("worker_adopted")) == 2, "the take-over")
    repository.open_gate("go.txt")
    assert process.wait(timeout=30) == 0
    (event,) = [event for event in repository.events("root_seen") if event["files"]]
    assert (event["files"], sorted(event["streams"])) == (["astray.py"], ["A", "B"])


@pytest.mark.parametrize(
    ("read", "written", "authors"), [("docs/changelog.md", "log", ["A", "B"]), ("log", "log", ["A"])]
)
def test_a_stray_is_put_down_to_whose_calls_name_the_whole_of_its_path(
    repository: Workspace, read: str, written: str, authors: list[str]
) -> None:
    root = repository.root
    init = {"type": "system", "subtype": "init", "cwd": str(tree(repository, "A"))}
    repository.write_lines(init=init, read=call(root / read, "Read"))
    put(root / "astray.txt", f"echo x > {root}/{written}")
    run(repository, add="A B", A="print=init print=read until=log all", B="until=worker-times.txt sh=astray.txt all")
    (event,) = [event for event in repository.events("root_seen") if event["files"]]
    assert (event["files"], sorted(event["streams"])) == ([written], authors)


def test_a_stray_in_a_folder_that_git_does_not_know_yet_is_noticed_too(repository: Workspace) -> None:
    put(repository.root / "notes" / "a.md", "a person's\n")
    put(repository.root / "astray.txt", f"echo x >> {repository.root}/notes/a.md")
    run(repository, add="A", A="sh=astray.txt all")
    assert [event["files"] for event in repository.events("root_seen")] == [[], ["notes/a.md"]]


def test_changes_beyond_those_that_are_remembered_are_no_strays(repository: Workspace) -> None:
    script = hasten(repository, SEEN_MOST="5")
    for number in range(9):
        put(repository.root / f"n{number}.py", "")
    run(repository, add="A", A="commit=a.py all", script=script)
    assert [event["files"] for event in repository.events("root_seen")] == [[]]


def test_a_commit_in_the_root_while_streams_work_is_no_stray_and_neither_is_what_stood_there(
    repository: Workspace,
) -> None:
    put(repository.root / "old.py", "")
    put(repository.root / "commit.txt", f"cd {repository.root}; echo x > new.py; git add new.py; git commit -qm Mine")
    run(repository, add="A", A="sh=commit.txt all")
    assert [event["files"] for event in repository.events("root_seen")] == [[]]


def test_a_branch_with_a_repository_in_it_is_named_and_not_merged_and_the_remedy_works(repository: Workspace) -> None:
    put(
        repository.root / "scaffold.txt",
        "git init -q app; echo x > app/x.py; git -C app add .; git -C app commit -qm x",
    )
    said = run(
        repository, add="A B", A="sh=scaffold.txt git=-c,advice.addEmbeddedRepo=false,add,app git=commit,-qm,App all",
        B="commit=b.py all",
    )  # fmt: skip
    assert "refs/heads/stream/A  # 1 commit to merge, 1 file changed, of repositories in it no file: app\n" in said
    said = merge(repository, code=1, out=merged("B"))
    what, remedy = said.splitlines()
    assert what == "[ERROR] stream/A was not merged: it has a repository in it, and of that no file: app"
    assert not (repository.root / "app").exists()
    shell(repository, remedy.partition(": ")[2])
    assert merge(repository, out="Merged stream/A into main: 2 commits\n") == ""
    assert (repository.root / "app" / "x.py").read_text() == "x\n"


def test_the_remedy_for_two_repositories_in_it_adds_both(repository: Workspace) -> None:
    make = (
        'git init -q "$n"; echo x > "$n/x.py"; git -C "$n" add .; git -C "$n" commit -qm x; git add "$n" 2> /dev/null'
    )
    put(repository.root / "scaffold.txt", f'for n in "it\'s new" b; do {make}; done')
    run(repository, add="A", A="sh=scaffold.txt git=commit,-qm,App all")
    remedy = merge(repository, code=1).splitlines()[1]
    shell(repository, remedy.partition(": ")[2])
    assert merge(repository, out="Merged stream/A into main: 2 commits\n") == ""
    assert [(repository.root / name / "x.py").exists() for name in ("it's new", "b")] == [True, True]


def test_a_submodule_of_a_branch_is_no_nested_repository(repository: Workspace) -> None:
    put(
        repository.root / "add.txt",
        VENDOR.replace("$PWD/..", f"{repository.root.parent}").replace("../inner", f"{repository.root.parent}/inner"),
    )
    run(repository, add="A", A="sh=add.txt all")
    assert merge(repository, out=merged("A")) == ""


def test_a_stash_that_was_made_in_a_worktree_is_named_at_the_end(repository: Workspace) -> None:
    shell(repository, "echo x > README.md; git stash -q")
    said = run(repository, add="A B", A="write=README.md git=stash,push,-qm,half:done all", B="all")
    assert said.endswith("Left in a stash: On stream/A: half:done (git stash show -p 'stash@{0}')\n")


# ── Real projects ─────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("npm") is None, reason="needs npm")
def test_a_node_project_with_installed_packages_and_an_env_file_is_tested_in_each_worktree(
    repository: Workspace,
) -> None:
    root = repository.root
    put(root / "lib" / "greet" / "package.json", '{"name": "greet", "version": "1.0.0", "main": "index.js"}')
    put(root / "lib" / "greet" / "index.js", "module.exports = () => 'hello';\n")
    put(root / "package.json", '{"name": "p", "private": true, "scripts": {"test": "node test.js"}, '
        '"dependencies": {"greet": "file:lib/greet"}}')  # fmt: skip
    put(root / "test.js", "require('assert').equal(require('greet')(), 'hello');\n"
        "require('assert').ok(require('fs').readFileSync('.env', 'utf8').includes('KEY'));\n")  # fmt: skip
    put(root / ".gitignore", "node_modules/\n.env\n")
    shell(repository, "npm install --silent --no-audit --no-fund --offline; git add .; git commit -qm Project")
    put(root / ".env", "KEY=1\n")
    put(root / "test.txt", "npm test --silent && touch $ORCHESTRATE_PROJECT/passed-$ORCHESTRATE_STREAM.txt")
    (found,) = find_git_warnings(repository)
    assert "; The worktrees lack what git ignores: .env, node_modules/, " in found
    put(root / ".worktreeinclude", ".env\n")
    run(
        repository,
        "--setup",
        "npm ci --silent --no-audit --no-fund --offline",
        add="A B",
        default="sh=test.txt commit=x all",
    )
    assert sorted(path.name for path in root.glob("passed-*")) == ["passed-A.txt", "passed-B.txt"]
    assert {len(repository.argv(stream)) for stream in "AB"} == {1}


@pytest.mark.slow
def test_a_python_project_with_a_virtual_environment_is_tested_in_each_worktree(repository: Workspace) -> None:
    root = repository.root
    put(root / "vendor" / "greet.py", "def greet() -> str:\n    return 'hello'\n")
    put(
        root / "test_it.py", "import sys, greet\nassert greet.greet() == 'hello'\nassert sys.prefix.endswith('.venv')\n"
    )
    put(root / ".gitignore", ".venv/\n__pycache__/\n")
    setup = put(root / ".claude" / "orchestrator-setup", "#!/bin/sh -e\n"
        f"{sys.executable} -m venv --without-pip .venv\n"
        "packages=$(.venv/bin/python -c 'import site; print(site.getsitepackages()[0])')\n"
        "echo $PWD/vendor > $packages/vendor.pth\n")  # fmt: skip
    setup.chmod(0o755)
    shell(repository, "git add --force .gitignore vendor test_it.py .claude/orchestrator-setup; git commit -qm Project")
    put(root / "test.txt", ".venv/bin/python test_it.py && touch $ORCHESTRATE_PROJECT/passed-$ORCHESTRATE_STREAM.txt")
    run(repository, add="A B", default="sh=test.txt commit=x all")
    assert sorted(path.name for path in root.glob("passed-*")) == ["passed-A.txt", "passed-B.txt"]


FILTER = "#!/bin/sh\ncat > /dev/null\ncase $1 in smudge) echo 'the whole file';; clean) echo pointer;; esac\n"


@pytest.mark.parametrize("is_there", [True, False])
def test_a_required_filter_is_used_where_its_program_is_there_and_done_without_where_it_is_not(
    repository: Workspace, is_there: bool
) -> None:
    program = put(repository.bin / "git-lfs", FILTER)
    program.chmod(0o755)
    for name, value in {"required": "true", "clean": "git-lfs clean -- %f", "smudge": "git-lfs smudge -- %f"}.items():
        repository.git("config", f"filter.lfs.{name}", value)
    put(repository.root / "assets" / ".gitattributes", "*.bin filter=lfs -text\n")
    put(repository.root / "assets" / "a.bin", "the whole file\n")
    shell(repository, "git add assets; git commit -qm LFS")
    if is_there:
        run(repository, add="A", A="commit=a.py all")
        assert warnings(repository) == []
    else:
        program.unlink()
        off = " ".join(f"-c filter.lfs.{name}=" for name in ("clean", "smudge")) + " -c filter.lfs.required=false"
        shell(repository, f"rm assets/a.bin; git {off} checkout -q assets/a.bin")
        what = "git-lfs is missing: of what its filter lfs keeps, the worktrees have pointers"
        check_said(repository, what, "Install git-lfs", A="commit=a.py all")
        assert "- git-lfs is missing: files that need it are pointers\n" in prompt(repository, "A")
    whole = "the whole file\n" if is_there else "pointer\n"
    assert (tree(repository, "A") / "assets" / "a.bin").read_text() == whole
    assert merge(repository, out=merged("A")) == ""
    cleaned = repository.run("clean")
    assert (cleaned.returncode, branches(repository)) == (0, ["main"]), cleaned.stdout


def test_a_required_filter_that_no_file_needs_is_no_news(repository: Workspace) -> None:
    repository.git("config", "filter.lfs.required", "true")
    repository.git("config", "filter.lfs.process", "git-lfs filter-process")
    run(repository, add="A")
    assert warnings(repository) == []


def test_submodules_and_their_setting_to_recurse_hinder_nothing_from_the_start_to_the_end(
    repository: Workspace,
) -> None:
    shell(repository, VENDOR)
    repository.git("config", "submodule.recurse", "true")
    run(repository, add="A B", A="commit=a.py all", B="commit=b.py all")
    assert merge(repository, out=merged("A", "B")) == ""
    assert repository.run("clean").returncode == 0
    assert branches(repository) == ["main"]


def test_a_branch_that_moves_a_submodule_keeps_no_other_from_being_merged(repository: Workspace) -> None:
    shell(repository, VENDOR)
    update = "git -c protocol.file.allow=always submodule -q update --init"
    put(repository.root / "move.txt", f"{update}; cd vendored; echo x > y.py; git add y.py; git commit -qm y")
    run(repository, add="A B", A="sh=move.txt git=commit,-qam,Move all", B="commit=b.py all")
    assert merge(repository, out=merged("A", "B")) == ""


def test_a_sparse_checkout_and_hooks_of_the_project_hinder_no_worktree(workspace: Workspace) -> None:
    workspace.make_repository("README.md", "app/main.py", "docs/big.md")
    workspace.git("sparse-checkout", "set", "app")
    hook = put(workspace.root / ".husky" / "pre-commit", "#!/bin/sh\n[ -d node_modules ] || exit 1\n")
    hook.chmod(0o755)
    shell(workspace, "git add --sparse --force .husky; git commit -qm Hooks; git config core.hooksPath .husky")
    exclude(workspace, "node_modules/")
    run(workspace, "--setup", "mkdir node_modules", add="A", A="commit=app/a.py all")
    assert (tree(workspace, "A") / "app" / "a.py").exists()
    assert not (tree(workspace, "A") / "docs").exists()
    assert merge(workspace, out=merged("A")) == ""
    cleaned = workspace.run("clean")
    assert (cleaned.returncode, branches(workspace)) == (0, ["main"]), cleaned.stdout


def test_a_project_below_the_top_of_its_repository_is_made_ready_too(workspace: Workspace) -> None:
    around = workspace.root.parent
    workspace.git("init", "--quiet", "--initial-branch=main", cwd=around)
    put(around / ".git" / "info" / "exclude", "*.txt\n/home\n/bin\nparts.json\n.env*\n")
    commit(workspace, "my-project/README.md", "", around)
    put(around / ".worktreeinclude", ".env\n")
    put(workspace.root / ".worktreeinclude", ".env.local\n")
    for name in (".env", "my-project/.env", "my-project/.env.local", ".env.local"):
        put(around / name, "")
    run(workspace, "--setup", "pwd > $ORCHESTRATE_PROJECT/where.txt", add="A", A="commit=a.py all")
    top = tree(workspace, "A")
    assert sorted(str(path.relative_to(top)) for path in top.rglob(".env*")) == [
        ".env", "my-project/.env", "my-project/.env.local"
    ]  # fmt: skip
    assert (workspace.root / "where.txt").read_text() == f"{top}\n"
    assert [event["files"] for event in workspace.events("root_seen")] == [[]]
    assert warnings(workspace) == []
