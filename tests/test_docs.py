"""Every command and option stands in the README, in the words of `--help`, and it names nothing that does not exist."""

from __future__ import annotations

import re

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


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_stands_in_the_readme_and_has_examples(command: str) -> None:
    arguments = [item for item in COMMANDS[command].params if isinstance(item, click.Argument)]
    usage = " ".join([command, *(argument.metavar or "" for argument in arguments)]).replace("...", "…")
    text = (COMMANDS[command].help or "").replace("/orchestration", "`/orchestration`")
    assert f"| `{usage}` | {text.split('.')[0].split(', or of')[0]}" in README
    assert "Examples:" in text


@pytest.mark.parametrize(("command", "option"), OPTIONS)
def test_every_option_stands_in_the_readme(command: str, option: str) -> None:
    assert re.search(rf"`{option}[ `]|/`{option}`", README), f"{command} {option}"


def test_the_options_of_start_are_described_as_in_its_help() -> None:
    helps = {name: p.help for p in COMMANDS["start"].params if isinstance(p, click.Option) for name in p.opts}
    assert all(helps.values())
    rows = re.findall(r"^\| `(--[a-z-]+)[^`]*` \| (.*?)(?: \([^)]*\))? \|$", README, re.MULTILINE)
    said = {name: re.split(r"; 0: |\.$", helps[name] or "")[0] for name, _ in rows}
    assert {name: text.replace("`", "") for name, text in rows} == said
    assert len(rows) >= 10


@pytest.mark.parametrize("page", ["README.md", "tests/README.md"])
def test_what_a_page_links_to_is_there(page: str) -> None:
    path = SCRIPT.parent / page
    links = re.findall(r"\]\(([^):]+)\)", path.read_text(encoding="utf-8"))
    assert links
    assert [link for link in links if not (path.parent / link).exists()] == []


def test_the_readme_names_no_option_that_does_not_exist() -> None:
    known = {option for _, option in OPTIONS} | {"--help", "--dangerously-skip-permissions"}
    known |= {"--init", "--user"}  # of docker and systemd
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
    tested = {int(number) for number in re.findall(r"^def test_fault_(\d\d)_", FAULTS, re.MULTILINE)}
    assert rows == tested == {*range(1, 53)}
