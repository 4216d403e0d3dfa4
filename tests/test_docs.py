"""Every command and option stands in the README, in the words of `--help`, and it names nothing that does not exist."""

from __future__ import annotations

import re
import subprocess
import sys

import click
import pytest
from support import SCRIPT

import orchestrate

README = (SCRIPT.parent / "README.md").read_text(encoding="utf-8")
TESTS = (SCRIPT.parent / "tests" / "README.md").read_text(encoding="utf-8")
FAULTS = (SCRIPT.parent / "tests" / "test_faults.py").read_text(encoding="utf-8")
COMMANDS = {name: command for name, command in sorted(orchestrate.cli.commands.items()) if not command.hidden}
OPTIONS = [
    (name, option)
    for name, command in COMMANDS.items()
    for parameter in command.params
    if isinstance(parameter, click.Option)
    for option in [*parameter.opts, *parameter.secondary_opts]
]


# What the table says of each command.
ROWS = dict(re.findall(r"^\| `([a-z]+)[^`|]*` \| (.*) \|$", README, re.MULTILINE))


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_stands_in_the_readme_in_the_words_of_its_help(command: str) -> None:
    arguments = [item for item in COMMANDS[command].params if isinstance(item, click.Argument)]
    usage = " ".join([command, *(argument.metavar or "" for argument in arguments)]).replace("...", "…")
    assert f"| `{usage}` |" in README
    text = COMMANDS[command].help or ""
    assert f"{ROWS[command]} ".replace("`", "").startswith((f"{text.split('.')[0]}. ", f"{text.split('.')[0]} "))
    assert "Examples:" in text


@pytest.mark.parametrize(("command", "option"), OPTIONS)
def test_every_option_stands_in_the_readme_where_its_command_does(command: str, option: str) -> None:
    general = README.split("\nAll but `demo` take")[1].split("\n\n")[0]
    named = re.findall(r"`(-[-a-z]+)", f"{ROWS[command]} {general.split('.')[0]}")
    named += re.findall(r"`(-[-a-z]+)", README if command == "start" else "")  # they are in its recipes, too
    assert option in named, f"{command} {option}"
    assert all(parameter.help for parameter in COMMANDS[command].params if isinstance(parameter, click.Option))


def test_the_defaults_in_the_readme_are_those_of_the_program() -> None:
    options = {p.opts[0]: p for p in COMMANDS["start"].params if isinstance(p, click.Option)}
    said = re.findall(r"`(--[a-z-]+)`\s\((\d+)(?: minutes| seconds)?\)", README)
    assert len(said) >= 5
    assert [(name, int(value)) for name, value in said if options[name].default != int(value)] == []
    assert f"`--watch [SECONDS]` ({orchestrate.WATCH_INTERVAL})" in README
    assert f"`--timeout SECONDS` ({orchestrate.STOP_TIMEOUT})" in README
    assert f"quiet for {orchestrate.STALL_TIMEOUT // 4} minutes (a quarter of" in README
    assert f"After {orchestrate.MAX_RESTARTS} restarts without" in README
    assert (orchestrate.BACKOFF_FIRST, orchestrate.BACKOFF_MAX) == (1, 60)  # "after 1 s, 2 s, up to a minute"
    assert (orchestrate.MAX_WORKERS, orchestrate.STALL_TIMEOUT, orchestrate.PAID_OUTAGES) == (5, 60, 5)


def test_the_exit_codes_in_the_readme_are_those_of_the_program() -> None:
    codes = [orchestrate.EXIT_DONE, orchestrate.EXIT_FAILED, orchestrate.EXIT_USAGE, orchestrate.EXIT_RUNNING]
    line = README.split("Exit codes: ")[1].split("\n\n")[0]
    assert [int(code) for code in re.findall(r"\b\d+\b", line)] == [*codes, 130, 143, 129]


def test_the_variables_and_placeholders_in_the_readme_are_those_of_the_program() -> None:
    known = {f"ORCHESTRATE_{name.upper()}_{option[2:].replace('-', '_').upper()}" for name, option in OPTIONS}
    named = set(re.findall(r"\b_?ORCHESTRATE_[A-Z_]+\b", README)) - {"_ORCHESTRATE_COMPLETE"}
    told = {f"ORCHESTRATE_{name}" for name in ("PROJECT", "PORT", "EVENT", "STREAM", "MESSAGE", "ROOT")}
    assert named == {"ORCHESTRATE_START_MAX_WORKERS", *told}
    assert named <= known | told
    stream = orchestrate.Stream("Stream-B", "api", orchestrate.Phase.PARALLEL)
    placeholders = re.findall(r"\{stream\.[a-z_]+\}", README)
    filled = orchestrate.format_prompt(" ".join(placeholders), stream, orchestrate.Record()).split("\n")[0]
    assert filled == "Stream-B api parallel"


def test_the_states_are_those_that_are_shown() -> None:
    rows = re.findall(r"^\| (\S) \| ([A-Z][a-z ]+) \| ", README, re.MULTILINE)
    shown = {(orchestrate._LOOKS[state][0], state.value) for state in orchestrate.StreamState}
    assert len(rows) == len(shown)
    assert set(rows) == shown


@pytest.mark.parametrize("page", ["README.md", "tests/README.md"])
def test_what_a_page_links_to_is_there(page: str) -> None:
    path = SCRIPT.parent / page
    text = path.read_text(encoding="utf-8")
    links = re.findall(r"\]\(([^):]+)\)", text)
    titles = {f"#{title.lower().replace(' ', '-')}" for title in re.findall(r"^## (.*)", text, re.MULTILINE)}
    assert links
    assert [link for link in links if link not in titles and not (path.parent / link).exists()] == []


@pytest.mark.parametrize("script", ["chaos.py", "simulation.py", "benchmarks/run.py"])
def test_the_commands_for_those_who_test_are_understood(script: str) -> None:
    lines = re.findall(rf"^\.venv/bin/python tests/{script}(.*?)(?:  .*)?$", TESTS, re.MULTILINE)
    done = subprocess.run(
        [sys.executable, SCRIPT.parent / "tests" / script, "--help"], stdout=subprocess.PIPE, text=True, timeout=60
    )
    assert lines
    words = {word for line in lines for word in line.split() if not word.isdigit()}
    assert [word for word in words if not re.search(rf"(?<![\w-]){word}(?![\w-])", done.stdout)] == []


def test_the_readme_names_no_option_that_does_not_exist() -> None:
    known = {option for _, option in OPTIONS} | {"--help", "--dangerously-skip-permissions"}
    known |= {"--bind", "--init", "--user"}  # of bubblewrap, docker and systemd
    text = re.sub(r"^```.*?^```$", "", README, flags=re.MULTILINE | re.DOTALL)  # test_readme.py runs these
    assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", text)) - known == set()


def test_the_built_in_prompt_is_the_guides_word_for_word() -> None:
    stream = orchestrate.Stream("Stream-B", "api-implementation", orchestrate.Phase.PARALLEL)
    prompt = orchestrate.format_prompt(orchestrate.WORKER_PROMPT, stream, orchestrate.Record())
    guide = (SCRIPT.parent / "tests" / "worker-prompt.txt").read_text(encoding="utf-8")
    assert prompt == guide + orchestrate.WORKER_RULES


def test_the_constants_that_the_guide_tells_people_to_edit_are_there() -> None:
    assert (orchestrate.POLL_INTERVAL, orchestrate.MAX_RESTARTS) == (30, 10)
    lines = (SCRIPT.read_text(encoding="utf-8")).splitlines()
    assert [line for line in lines if re.match(r"(POLL_INTERVAL|MAX_RESTARTS) = \d+  # ", line)]


def test_the_fault_table_has_each_row_of_the_matrix_and_each_row_has_a_test() -> None:
    rows = {int(number) for number in re.findall(r"\[(\d+)\]\(test_faults\.py\)", TESTS)}
    assert f"lists {len(rows)} faults" in README
    tested = {int(number) for number in re.findall(r"^def test_fault_(\d\d)_", FAULTS, re.MULTILINE)}
    assert rows == tested == {*range(1, 53)}
