"""`logs`, and logs that are still to come."""

from __future__ import annotations

import os
import re
import signal
from datetime import datetime

from support import Workspace, unstamp, wait_until


def test_a_log_that_is_still_to_come_is_waited_for(workspace: Workspace) -> None:
    workspace.database.add_stream("Stream-A")
    path = workspace.state / "logs" / "Stream-A.log"
    follower = workspace.popen("logs", "Stream-A")
    assert follower.stdout is not None
    assert follower.stderr is not None
    assert follower.stderr.readline() == f"Stream-A has no log yet: {path}\n"
    workspace.play("say=hello all")
    assert workspace.run("start").returncode == 0
    assert "attempt 1" in follower.stdout.readline()
    assert unstamp(follower.stdout.readline()) == ["hello"]
    follower.send_signal(signal.SIGINT)
    _, err = follower.communicate(timeout=20)
    assert (follower.returncode, err) == (130, "")


def test_a_log_that_does_not_exist_is_not_waited_for_without_following(workspace: Workspace) -> None:
    workspace.database.add_stream("Stream-A")
    done = workspace.run("logs", "Stream-A", "--no-follow")
    assert (done.returncode, done.stdout) == (0, "")
    assert done.stderr.splitlines()[0].startswith("Stream-A has no log yet: ")


def test_logs_where_there_is_nothing_to_follow_says_why(workspace: Workspace) -> None:
    done = workspace.run("logs")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("[ERROR] No streams found in Task Copilot database\n")
    named = workspace.run("logs", "Nope")
    assert (named.returncode, "there is no stream 'Nope'; there is none in this project" in named.stderr) == (2, True)
    workspace.database.path.unlink()
    assert workspace.run("logs").stderr.startswith("[ERROR] Task Copilot database not found: ")


def test_logs_of_all_streams_before_any_has_one_says_so(workspace: Workspace) -> None:
    workspace.database.add_stream("A")
    done = workspace.run("logs", "--no-follow")
    assert (done.returncode, done.stdout) == (0, "")
    assert done.stderr == f"A has no log yet: {workspace.state / 'logs' / 'A.log'}\n"


def test_a_worker_that_was_stopped_without_an_orchestrator_has_an_end_in_its_log(workspace: Workspace) -> None:
    workspace.database.add_stream("A")
    workspace.play("hang")
    process = workspace.popen("start")
    workspace.wait_for_worker("A")
    process.send_signal(signal.SIGINT)
    process.wait(20)
    assert workspace.run("stop", "--timeout", "0").returncode == 0
    last = unstamp(workspace.run("logs", "--no-follow", "A").stdout)[-1]
    assert re.fullmatch(r"──── ended after \d+s: by the user", last), last


def test_no_line_of_a_run_begins_with_a_command_to_github(workspace: Workspace) -> None:
    """Whatever a worker says, or a stream is called."""
    workspace.database.add_stream("::error::x")
    workspace.play("say=::error::y exit=1")
    done = workspace.run("start", "--max-restarts", "0", env={"GITHUB_ACTIONS": "true"})
    assert done.returncode == 1
    assert "::error::x failed: " in done.stdout
    assert [line for line in done.stdout.splitlines() if line.lstrip().startswith("::")] == []


def test_what_a_worker_has_said_and_cost_is_known_when_it_is_stopped_without_an_orchestrator(
    workspace: Workspace,
) -> None:
    workspace.database.add_stream("A")
    workspace.play("say=before cost=1 until=gate say=after cost=1.5 hang")
    workspace.start(wait="A").kill()
    workspace.open_gate("gate")
    raw = workspace.state / "logs" / "A.jsonl"
    wait_until(lambda: '"total_cost_usd": 1.5' in raw.read_text(), "its second result")
    assert workspace.run("stop", "--timeout", "0").returncode == 0
    (ended,) = workspace.events("worker_ended")
    assert (ended["verdict"], ended["ending"], ended["cost"], ended["turns"]) == ("stopped", "by the user", 1.5, 4)
    log = unstamp((workspace.state / "logs" / "A.log").read_text())
    assert (log.count("before"), log.count("after")) == (1, 1)
    assert log.index("after") < next(i for i, line in enumerate(log) if line.startswith("──── ended after "))


def test_the_logs_of_several_streams_are_merged_by_time(workspace: Workspace) -> None:
    workspace.database.add_streams("A", "B")
    logs = workspace.state / "logs"
    logs.mkdir(parents=True)
    lines = {
        "A": ["01:00:00+00:00  a1", "03:00:00+00:00  a2", "no time"],
        "B": ["03:00:00+01:00  b1", "03:00:01+00:00  b2"],
    }
    for name, texts in lines.items():
        stamped = [f"2026-01-02 {text}" if text[0].isdigit() else text for text in texts]
        (logs / f"{name}.log").write_text("\n".join([*stamped, ""]))
    shown = workspace.check("logs", "--no-follow")
    assert [line.rpartition("  ")[2] for line in shown.splitlines()] == ["a1", "b1", "a2", "A │ no time", "b2"]


def test_logs_are_shown_from_the_archive_after_a_clean_up_and_a_new_run_is_followed(workspace: Workspace) -> None:
    workspace.database.add_stream("A")
    workspace.play("say=hello all")
    workspace.complete()
    before = workspace.check("logs", "A", "--no-follow")
    raw = workspace.check("logs", "A", "--no-follow", "--raw")
    assert "to .archive/orchestration/" in workspace.check("clean")
    assert not (workspace.state / "logs" / "A.log").exists()
    assert workspace.check("logs", "A", "--no-follow") == before
    assert workspace.check("logs", "A", "--no-follow", "--raw") == raw
    follower = workspace.popen("logs", "A", "-n", "1")
    assert follower.stdout is not None
    assert follower.stdout.readline() == f"{before.splitlines()[-1]}\n"
    workspace.database.execute("UPDATE tasks SET status = 'pending'")
    workspace.complete()
    assert "──── A " in follower.stdout.readline()
    follower.send_signal(signal.SIGINT)
    follower.communicate(timeout=20)


def test_the_lines_of_one_stream_stay_in_their_order_whatever_times_they_have(workspace: Workspace) -> None:
    """The clock may step back, an event may tell another time than that of its reading, and a worker write what it
    likes: what looks like a time and is none, too."""
    workspace.database.add_streams("A", "B")
    logs = workspace.state / "logs"
    logs.mkdir(parents=True)
    texts = ["03:00:00+00:00  1", "01:00:00+00:00  2", "99:99:99+00:00  3", "04:00:00+99:00  4", "04:00:00+00:00  5"]
    content = "".join(f"2026-01-02 {text}\n" for text in texts)
    (logs / "A.jsonl").write_text(content)
    assert workspace.check("logs", "A", "--raw", "--no-follow") == content
    (logs / "A.jsonl").rename(logs / "A.log")
    assert workspace.check("logs", "A", "--no-follow") == content
    (logs / "B.log").write_text("2026-01-02 02:00:00+00:00  b\n2026-01-02 03:30:00+00:00\n")
    shown = workspace.check("logs", "--no-follow").splitlines()
    assert [line[-1] for line in shown] == list("b123405")  # B's second line is an empty one


def test_an_empty_line_of_a_worker_is_nobodys_last_word(workspace: Workspace) -> None:
    workspace.database.add_stream("A")
    message = {"type": "assistant", "message": {"content": [{"type": "text", "text": "First.\n\nSecond.\n\n"}]}}
    workspace.write_lines(said=message)
    workspace.play("print=said until=gate exit=1")
    run = workspace.start("--max-restarts", "0", wait="A")
    wait_until(lambda: "Second." in workspace.check("status", "--dashboard"), "what it said")
    assert re.search(r"Last: Second\. \(\d+s ago\)", workspace.check("status", "--dashboard"))
    assert "\n    │ First.\n    │ Second.\n" in run.finish("gate", code=1)


def test_a_report_is_written_whatever_lies_in_the_archive(workspace: Workspace) -> None:
    workspace.database.add_stream("A")
    workspace.play("say=words exit=1")
    odd = workspace.root / ".archive" / "orchestration" / "x"
    odd.mkdir(parents=True)
    (odd / "A.log").symlink_to("nowhere")
    assert "    │ words\n" in workspace.complete("--max-restarts", "0", code=1)


def test_what_nobody_rendered_meanwhile_has_the_time_of_its_writing_and_is_its_workers_last_word(
    workspace: Workspace,
) -> None:
    workspace.database.add_stream("A")
    workspace.play("say=old exit=1")
    workspace.complete("--max-restarts", "0", code=1)
    workspace.play("until=gate say=late next")
    run = workspace.start(wait="A")
    wait_until(lambda: any("attempt 2" in line for line in workspace.log("A")), "its header in the log")
    run.kill()
    assert "Last: " not in workspace.check("status", "--dashboard")  # what the one before it said is not its own
    workspace.open_gate("gate")
    raw = workspace.state / "logs" / "A.jsonl"
    wait_until(lambda: "late" in raw.read_text(), "its words")
    wait_until(lambda: not workspace.living("A"), "its end")
    os.utime(raw, (raw.stat().st_atime, raw.stat().st_mtime - 3600))
    written = int(raw.stat().st_mtime)
    workspace.complete()
    (line,) = (
        line for line in (workspace.state / "logs" / "A.log").read_text().splitlines() if line.endswith("  late")
    )
    assert datetime.fromisoformat(line.partition("  ")[0]).timestamp() == written
