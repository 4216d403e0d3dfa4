"""Every command and option stands in the README, and the README names none that does not exist."""

from __future__ import annotations

import re

import click
import pytest
from support import SCRIPT

import orchestrate

README = (SCRIPT.parent / "README.md").read_text(encoding="utf-8")
FAULTS = (SCRIPT.parent / "tests" / "test_faults.py").read_text(encoding="utf-8")
COMMANDS = {name: command for name, command in sorted(orchestrate.cli.commands.items()) if not command.hidden}
OPTIONS = [
    (name, option)
    for name, command in COMMANDS.items()
    for parameter in command.params
    if isinstance(parameter, click.Option)
    for option in [*parameter.opts, *parameter.secondary_opts]
]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_stands_in_the_readme_and_has_examples(command: str) -> None:
    arguments = [item for item in COMMANDS[command].params if isinstance(item, click.Argument)]
    usage = " ".join([command, *(argument.metavar or "" for argument in arguments)]).replace("...", "…")
    assert f"| `{usage}` |" in README
    assert "Examples:" in (COMMANDS[command].help or "")


@pytest.mark.parametrize(("command", "option"), OPTIONS)
def test_every_option_stands_in_the_readme(command: str, option: str) -> None:
    assert re.search(rf"`{option}[ `]|/`{option}`", README), f"{command} {option}"


def test_the_readme_names_no_option_that_does_not_exist() -> None:
    known = {option for _, option in OPTIONS} | {"--help", "--version", "--print", "--model", "--max-budget-usd"}
    known |= {"--no-ff", "--mcp-config", "--init", "--global", "--add"}  # of git, claude and docker
    text = re.sub(r"^```.*?^```$", "", README, flags=re.MULTILINE | re.DOTALL)  # test_readme.py runs these
    text = re.sub(r"`(python (tests/|-m pytest)|npm )[^`]*`", "", text)  # these take options of their own
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
    rows = {int(number) for number in re.findall(r"\[(\d+)\]\(tests/test_faults\.py\)", README)}
    tested = {int(number) for number in re.findall(r"^def test_fault_(\d\d)_", FAULTS, re.MULTILINE)}
    assert rows == tested == {*range(1, 53)}
