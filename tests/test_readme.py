"""Every block of the README is run, in a project of its own, with stand-ins for what would leave this machine.

A shell finds only the programs that are named here: a block with another one fails until somebody has said what its
stand-in is. The blocks that install this repository run in test_packaging.py.
"""

from __future__ import annotations

import configparser
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import textwrap
from collections import Counter
from pathlib import Path
from typing import Callable, NamedTuple

import click
import pytest
import yaml
from scripted_api import Conversation, Reply, Say, ScriptedApi, UseTool, nap, set_status
from support import SCRIPT, Workspace, is_running, own_processes, wait_until
from test_real_cli import find_naps, newest, use_real_cli

from orchestrate import cli

REPOSITORY = SCRIPT.parent
README = (REPOSITORY / "README.md").read_text(encoding="utf-8")
CLONE = ("Try it", "Install it")  # the sections whose blocks run in a clone of this repository, in test_packaging.py

TOOLS = "bash sh cat chmod cut dirname env date md5sum git grep hostname id mkdir nice readlink rm true"


class Block(NamedTuple):
    """A fenced block of the README."""

    section: str
    language: str
    text: str
    line: int

    @property
    def name(self) -> str:
        """What a person finds it by."""
        return f"{self.language}-{self.line}-{self.section}"


def read_blocks(text: str) -> list[Block]:
    """Return the fenced blocks of a page."""
    blocks, section, lines = [], "", iter(enumerate(text.splitlines(), 1))
    for number, line in lines:
        if line.startswith("## "):
            section = line[3:]
        if line.startswith("```"):
            inside = list(iter(lambda: next(lines)[1], "```"))
            blocks.append(Block(section, line[3:], "\n".join(inside) + "\n", number))
    return blocks


BLOCKS = read_blocks(README)


def in_language(language: str) -> list[Block]:
    """Return the blocks in a language that run here."""
    return [block for block in BLOCKS if block.language == language and block.section not in CLONE]


def find_block(language: str, word: str) -> Block:
    """Return the one block in a language with this word in it."""
    (block,) = [block for block in in_language(language) if word in block.text]
    return block


def each(language: str) -> pytest.MarkDecorator:
    """Run a test with each block in a language."""
    return pytest.mark.parametrize("block", in_language(language), ids=lambda block: block.name)


# ── Stand-ins: each refuses what the real program would refuse, and then does what it would do ────────────────────────

# What every stand-in in Python begins with: it notes its arguments, and reads them as the real program reads them.
PRELUDE = r'''#!{python}
import json, os, pathlib, re, signal, subprocess, sys, time

HERE, NAME, WORDS = pathlib.Path({here!r}), pathlib.Path(sys.argv[0]).name, sys.argv[1:]
with open(HERE / "calls.jsonl", "a") as file:
    file.write(json.dumps([NAME, WORDS]) + "\n")


def refuse(message):
    sys.exit(f"{{NAME}}: {{message}}")


def read_options(words, flags, valued):
    """Return the options, each with its values, and the rest from the first word on that is none."""
    given = {{}}
    while words and words[0].startswith("-"):
        name, mark, value = words.pop(0).partition("=")
        if name in flags and not mark:
            value = ""
        elif name in valued:
            value = value if mark else words.pop(0) if words else refuse(f"{{name}} needs a value")
        else:
            refuse(f"unknown option {{name}}")
        given.setdefault(name, []).append(value)
    return given, words


def execute(words, env=os.environ):
    os.execvpe(words[0], words, env)


'''

# By the name of the program; PIP and NPM are for the runner of a workflow alone.
STAND_INS = {
    # A reader's hand as well: Ctrl+C for what goes on until then, once it has shown something.
    "python": r"""
command = [{python!r}, *([] if NAME.startswith("python") else [{installed!r}]), *WORDS]
if not ("--watch" in WORDS or ("logs" in WORDS and "--no-follow" not in WORDS)):
    execute(command)
process = subprocess.Popen(command, stdout=subprocess.PIPE)
shown = process.stdout.readline()
process.send_signal(signal.SIGINT)
sys.stdout.buffer.write(shown + process.stdout.read())
code = process.wait()
if shown and code in ((0, 130, -2) if "--watch" in WORDS else (130,)):  # a dashboard ends by itself, too
    sys.exit(0)
refuse(f"{{WORDS}} ended with {{code}}")
""",
    "claude": r"""
FLAGS = ("--print", "-p", "--dangerously-skip-permissions", "--verbose")
VALUED = ("--output-format", "--model", "--max-budget-usd", "--mcp-config")
if WORDS in (["--version"], ["--help"]):
    print("2.1.330 (Claude Code)" if WORDS == ["--version"] else "\n".join([*FLAGS, *VALUED, "stream-json"]))
    sys.exit()
read_options(WORDS[:-1], FLAGS, VALUED)[1] and refuse("there is more than one prompt")
execute([str(HERE / "worker"), *WORDS])
""",
    "jq": r"""
if WORDS != ['.streams[] | select(.state == "failed")']:
    refuse(f"this is not jq, and knows no {{WORDS}}")
for stream in json.load(sys.stdin)["streams"]:
    if stream["state"] == "failed":
        print(json.dumps(stream, indent=2))
""",
    "curl": r"""
given, rest = [], list(WORDS)
while rest:
    word = rest.pop(0)
    if word in ("-H", "-d", "--data-raw"):
        given.append((word, rest.pop(0)))
    elif re.fullmatch("-[fsSL]+", word):
        pass
    elif re.fullmatch(r"https://\S+", word):
        given.append(("url", word))
    else:
        refuse(f"unknown option {{word}}")
with open(HERE / "posts.jsonl", "a") as file:
    file.write(json.dumps(dict(given)) + "\n")
""",
    "systemd-run": r"""
given, command = read_options(WORDS, ("--user", "--scope", "--quiet"), ("-p", "--property"))
if not {{"--user", "--scope"}} <= set(given) or not command:
    refuse("without --user --scope the command would run elsewhere, as a child of systemd")
for value in given.get("-p", []):
    re.fullmatch(r"MemoryMax=\d+[KMGT]?", value) or refuse(f"unknown assignment {{value}}")
execute(command)
""",
    "srun": r"""
given, command = read_options(WORDS, (), ("--ntasks", "--nodelist"))
if given != {{"--ntasks": ["1"], "--nodelist": [os.uname().nodename.split(".")[0]]}} or not command:
    refuse(f"not one task on this node: {{given}}")
sys.exit(subprocess.call(command))  # no child of ours in real life: srun stays in between
""",
    # It sees all, and writes only to what is bound.
    "bwrap": r"""
places, seen = [], []
values = {{"--ro-bind": 2, "--bind": 2, "--dev": 1, "--proc": 1, "--unshare-pid": 0, "--tmpfs": 1, "--setenv": 2}}
while WORDS and WORDS[0].startswith("-"):
    option = WORDS.pop(0)
    option in values or refuse(f"Unknown option {{option}}")
    given = [WORDS.pop(0) for _ in range(values[option])]
    seen.append(" ".join([option, *given]))
    if option == "--bind":
        given[0] == given[1] and pathlib.Path(given[0]).exists() or refuse(f"Can't find source path {{given[0]}}")
        places += given[:1]
    elif option == "--setenv":
        os.environ[given[0]] = given[1]
seen[0] == "--ro-bind / /" or refuse("it can write everywhere")
{{"--dev /dev", "--proc /proc", "--unshare-pid", "--tmpfs /tmp"}} <= set(seen) or refuse("it sees other processes")
for path in (os.getcwd(), os.environ["TASK_DB_PATH"], os.environ["ORCHESTRATE_PROJECT"]):
    any(f"{{path}}/".startswith(f"{{place}}/") for place in places) or refuse(f"{{path}} is read-only")
sys.exit(subprocess.call(WORDS))  # it stays in between
""",
    # A container sees what is mounted, and what is named of the environment. Its worker is told its part all the same.
    "docker": r"""
if WORDS[:2] == ["rm", "--force"]:
    sys.exit()
WORDS[:1] == ["run"] or refuse("only run and rm")
given, (image, *command) = read_options(
    WORDS[1:], ("--rm", "--init"), ("--name", "--user", "--env", "--volume", "--workdir"))
with open(HERE / "calls.jsonl") as file:
    earlier = ["docker", ["rm", "--force", given["--name"][0]]]
    earlier in map(json.loads, file) or refuse("an earlier one may still be there")
given["--user"] == [f"{{os.getuid()}}:{{os.getgid()}}"] or refuse(given["--user"])
mounts = []
env = {{}}
for volume in given["--volume"]:
    source, target, *mode = volume.split(":")
    pathlib.Path(source).exists() or refuse(f"no {{source}}: docker would make an empty folder of root's")
    if [target, *mode] == ["/etc/gitconfig", "ro"]:
        env["GIT_CONFIG_SYSTEM"] = source
    elif source == target and not mode:
        mounts.append(target)
    else:
        refuse(f"{{target}} is not where the worker looks for it")
for path in (given["--workdir"][0], os.environ["TASK_DB_PATH"], os.environ["ORCHESTRATE_PROJECT"]):
    any(f"{{path}}/".startswith(f"{{mount}}/") for mount in mounts) or refuse(f"{{path}} is not in the container")
for word in [*given["--env"], "PATH", "ORCHESTRATE_STREAM", "ORCHESTRATE_PROJECT"]:
    name, mark, value = word.partition("=")
    env.update({{name: value}} if mark else {{name: os.environ[name]}} if name in os.environ else {{}})
image == "my-claude-image" or refuse(f"no such image: {{image}}")
wanted = ("HOME=/tmp", "ANTHROPIC_API_KEY", "ORCHESTRATE_PORT", "CLAUDE_CODE_PRINT_BG_WAIT_CEILING_MS")
all(name in given["--env"] for name in wanted) or refuse("it can't log in, or lacks what every worker gets")
os.chdir(given["--workdir"][0])
sys.exit(subprocess.call(command, env=env))
""",
    # A systemd that knows what this unit needs. What a unit prints goes to the journal of journalctl's stand-in.
    "systemctl": r"""
import configparser, shlex
given, (verb, *units) = read_options(WORDS, ("--user",), ())
"--user" in given or refuse("only --user: the other one is root's")
if verb == "daemon-reload":
    sys.exit()
home = pathlib.Path.home()
path = home / ".config/systemd/user" / f"{{units[0]}}.service"
path.exists() or refuse(f"Unit {{path.name}} not found.")
parser = configparser.ConfigParser(interpolation=None)
parser.optionxform = str
parser.read(path)
service = {{key: value.replace("%h", str(home)) for key, value in parser["Service"].items()}}
name, value = service["Environment"].split("=", 1)
env = {{"HOME": str(home), "IS_SANDBOX": "1", name: value}}
if verb == "start":
    with open(HERE / "journal", "ab") as journal:
        subprocess.Popen(shlex.split(service["ExecStart"]), cwd=service["WorkingDirectory"], env=env,
                         stdin=subprocess.DEVNULL, stdout=journal, stderr=journal, start_new_session=True)
else:
    refuse(f"Unknown command verb {{verb}}")
""",
    "journalctl": r"""
WORDS == ["--user", "-fu", "orchestrate"] or refuse(f"unknown option {{WORDS}}")
while not (HERE / "journal").exists() or "all complete" not in (HERE / "journal").read_text():
    time.sleep(0.02)  # and then the reader presses Ctrl+C
print((HERE / "journal").read_text())
""",
}
STAND_INS["orchestrate"] = STAND_INS["python3"] = STAND_INS["python"]
STAND_INS["npm"] = r"""
WORDS == ["ci"] or refuse(f"unknown command {{WORDS}}")
"""

PIP = r"""
WORDS == ["install", "click", "rich", "psutil"] or refuse(f"not what orchestrate.py needs: {{WORDS}}")
"""

NPM = r"""
WORDS == ["install", "-g", "@anthropic-ai/claude-code"] or refuse(f"not Claude Code: {{WORDS}}")
(HERE / "not-yet" / "claude").rename(HERE / "claude")
"""


class Reader:
    """Somebody with a project, an empty home and the programs that the README speaks of, who types its blocks."""

    def __init__(self, workspace: Workspace) -> None:
        self.workspace, self.root, self.home, self.bin = workspace, workspace.root, workspace.home, workspace.bin
        workspace.claude.rename(self.bin / "worker")
        self.installed = self.home / "venv" / "orchestrate"  # as an installer of packages makes it
        self.installed.parent.mkdir()
        lines = ("import sys", f"sys.path.insert(0, {str(REPOSITORY)!r})", "from orchestrate import run_script")
        self.installed.write_text("\n".join([*lines, "run_script()\n"]))
        for name, text in STAND_INS.items():
            self.provide(name, text)
        for name in TOOLS.split():
            found = shutil.which(name)
            assert found, f"{name} is missing here"
            (self.bin / name).symlink_to(found)
        if shutil.which("jq"):  # the real one where it is
            (self.bin / "jq").unlink()
            (self.bin / "jq").symlink_to(shutil.which("jq") or "")
        (self.home / "my-project").symlink_to(self.root)
        (self.home / ".gitconfig").write_text("[user]\n\tname = A Reader\n\temail = reader@example.org\n")
        (self.home / ".claude.json").write_text("{}")  # of somebody who is logged in
        workspace.play("all", Stream_B="commit=b.md all", Stream_C="commit=c.md all")
        for stream, phase in (("A", "foundation"), ("B", "parallel"), ("C", "parallel"), ("D", "integration")):
            workspace.database.add_stream(f"Stream-{stream}", phase, tasks=2)

    def provide(self, name: str, text: str, folder: Path | None = None) -> None:
        """Put a stand-in on the PATH."""
        (folder or self.bin).mkdir(exist_ok=True)
        path = (folder or self.bin) / name
        values = {"python": sys.executable, "here": str(self.bin), "installed": str(self.installed)}
        path.write_text((PRELUDE + text).format(**values))
        path.chmod(0o755)

    def begin(self) -> None:
        """Make a repository of the project."""
        (self.root / ".gitignore").write_text("__pycache__/\n/.claude/orchestrator/\n/.mcp.json\n/.env\n")
        (self.root / ".env").write_text("KEY=1\n")
        self.workspace.make_repository("README.md")
        self.workspace.git("add", "--all")
        self.workspace.git("commit", "--quiet", "-m", "Begin")

    def install(self) -> None:
        """Put the script where `generate` would, and where the examples of `--help` have it; commit all."""
        state = self.workspace.state
        (state / "logs").mkdir(parents=True, mode=0o700)
        state.chmod(0o700)
        for name in ("orchestrate.py", "check-streams", "watch-status"):
            shutil.copy(REPOSITORY / name, state / name)
        text = SCRIPT.read_text(encoding="utf-8")
        short = text.replace("\nDEMO_TASK = 0.75 ", "\nDEMO_TASK = 0.01 ")
        assert short != text
        (self.root / "orchestrate.py").write_text(short, encoding="utf-8")
        self.begin()

    @property
    def environment(self) -> dict[str, str]:
        """What a reader has: a home, and a PATH of programs that are known here."""
        given = {name: text for name, text in self.workspace.environment().items() if not name.startswith("GIT_")}
        soon = {"ORCHESTRATE_START_MAX_RESTARTS": "1"}  # to fail, where something fails
        return {**given, **soon, "PATH": str(self.bin), "TMPDIR": str(self.home)}

    def type(self, text: str, shell: str = "bash -euo pipefail", cwd: Path | None = None, **more: str) -> str:
        """Run lines in a shell, and return what they print; fail where they do."""
        done = subprocess.run(
            [*shlex.split(shell), "-c", text],
            cwd=cwd or self.root,
            env={**self.environment, **more},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=200,
        )
        assert done.returncode == 0, f"exit code {done.returncode}\n{text}\n{done.stdout}"
        return done.stdout

    def calls(self, name: str) -> list[list[str]]:
        """The arguments of each call of a stand-in."""
        path = self.bin / "calls.jsonl"
        rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        return [words for called, words in rows if called == name]

    def orchestrator(self) -> int | None:
        """The PID of the one that runs."""
        pid: int | None = json.loads(self.workspace.run("status", "--json").stdout)["orchestrator_pid"]
        return pid

    def wait_for_end(self) -> None:
        """Wait for the end of the run."""
        wait_until(lambda: self.workspace.events("run_ended"), "the end of the run", 40)
        assert self.workspace.events("run_ended")[-1]["exit_code"] == 0
        wait_until(lambda: not self.orchestrator(), "its exit")


@pytest.fixture
def reader(workspace: Workspace) -> Reader:
    """Somebody who has installed the script in a project, and whose run begins anew."""
    return Reader(workspace)


# ── Shell blocks ──────────────────────────────────────────────────────────────────────────────────────────────────────


def check_quick_start(reader: Reader) -> None:
    assert reader.calls("orchestrate") == [["generate"], ["doctor"], ["start", "--budget", "20"]]
    installed = {path.name for path in reader.workspace.state.iterdir()}
    assert installed >= {"orchestrate.py", "check-streams", "watch-status", "pids", "logs"}
    check_first_run(reader)


def count(program: str, calls: int) -> Callable[[Reader], None]:
    """Check how often a stand-in was called."""

    def check(reader: Reader) -> None:
        assert len(reader.calls(program)) == calls

    return check


def check_first_run(reader: Reader) -> None:
    first, *both, last = reader.workspace.starts()
    assert (first, sorted(both), last) == ("Stream-A", ["Stream-B", "Stream-C"], "Stream-D")


def check_bash_completion(reader: Reader) -> None:
    ask = "COMP_WORDS=(orchestrate st); COMP_CWORD=1; _orchestrate_completion orchestrate; echo ${COMPREPLY[@]}"
    block = find_block("bash", "bash_source").text
    assert reader.type(f"{block}{ask}").split() == ["start", "status", "stop"]


def check_notifications(reader: Reader) -> None:
    reader.wait_for_end()
    path = reader.bin / "posts.jsonl"
    # Nobody waits for a notification, so they come in any order, the last ones after the run.
    wait_until(
        lambda: path.exists() and path.read_text().count("\n") == 5, "a notification for each stream and the end"
    )
    posts = [json.loads(line) for line in path.read_text().splitlines()]
    titles = {f"Title: complete Stream-{letter}" for letter in "ABCD"} | {"Title: ended "}
    assert {post["-H"] for post in posts} == titles
    assert {post["url"] for post in posts} == {"https://ntfy.sh/my-topic"}


def check_unit(reader: Reader) -> None:
    assert [words[1] for words in reader.calls("systemctl")] == ["daemon-reload", "start"]
    reader.wait_for_end()


def check_launchers(reader: Reader) -> None:
    """The first line did it all; the others run again from the beginning."""
    assert [words[:2] for words in reader.calls("claude") if words[0] == "--model"] == [["--model", "opus"]] * 4
    for program in ("nice", "systemd-run", "srun"):
        (line,) = [line for line in find_block("bash", "MemoryMax").text.splitlines() if program in line]
        reader.workspace.database.execute("UPDATE tasks SET status = 'pending'")
        reader.workspace.play("all")
        before = len(reader.calls("claude"))
        reader.type(line)
        assert len(reader.calls("claude")) == before + 4
        assert program == "nice" or len(reader.calls(program)) == 4  # the real one keeps no record


def check_selection(reader: Reader) -> None:
    reader.workspace.play("die=1")
    reader.type("! orchestrate start --max-restarts 0 Stream-A")
    assert json.loads(reader.type(find_block("bash", "jq").text))["id"] == "Stream-A"


def check_containers(reader: Reader) -> None:
    names = [words[words.index("--name") + 1] for words in reader.calls("docker") if words[0] == "run"]
    assert len(names) == len(set(names)) == 4


def check_readiness(reader: Reader) -> None:
    check_first_run(reader)
    assert reader.calls("npm") == [["ci"]] * 2
    for stream in ("Stream-B", "Stream-C"):
        assert (reader.root / ".claude" / "worktrees" / stream / ".env").read_text() == "KEY=1\n"


# What must be there afterwards. A block is known by a word that no other has.
SCENES = {
    "orchestrate generate": check_quick_start,
    ".worktreeinclude": check_readiness,
    "bwrap": count("bwrap", 4),
    "docker run": check_containers,
    "bash_source": check_bash_completion,
    "jq": check_selection,
    "ntfy.sh": check_notifications,
    "systemctl --user start": check_unit,
    "MemoryMax": check_launchers,
}


@each("bash")
def test_a_bash_block_runs_as_it_stands(block: Block, reader: Reader) -> None:
    scenes = [check for word, check in SCENES.items() if word in block.text]
    assert len(scenes) == 1, "a new block: say in SCENES what it must have done"
    reader.begin()
    if "systemctl" in block.text:
        install_unit(reader)
    reader.type(block.text)
    scenes[0](reader)


def test_every_scene_is_that_of_a_block() -> None:
    texts = [block.text for block in in_language("bash")]
    assert [word for word in SCENES if sum(word in text for text in texts) != 1] == []


def test_every_block_is_in_a_language_that_is_tested() -> None:
    assert {block.language for block in BLOCKS} <= {"bash", "yaml", "ini"}


def test_a_program_without_a_stand_in_is_not_found(reader: Reader) -> None:
    with pytest.raises(AssertionError, match="exit code 127"):
        reader.type("make coffee\n")


def test_the_two_commands_are_a_line_each() -> None:
    blocks = [block for block in BLOCKS if block.section == "Try it"]
    install = "python3 -m venv .venv && .venv/bin/pip install -q"
    assert blocks[0].text == f"{install} . && .venv/bin/python orchestrate.py demo\n"
    assert blocks[1].text == f"{install} -e '.[dev]' && .venv/bin/python -m pytest\n"
    # It can't run within itself: CI takes it out of the README and runs it.
    lines = (REPOSITORY / ".ci" / "run").read_text(encoding="utf-8").splitlines()
    commands = [line for line in lines if not line.lstrip().startswith("#")]
    assert [line for line in commands if "README.md" in line and "-m pytest" in line]


@pytest.mark.timeout(240)  # they call the program twenty times
def test_the_examples_of_the_help_texts_run_as_they_stand(reader: Reader) -> None:
    texts = [(cli.commands[name].help or "").split("Examples:\n")[1] for name in cli.list_commands(click.Context(cli))]
    examples = "".join(f"{textwrap.dedent(text).strip()}\n" for text in texts)
    reader.install()
    reader.type(examples)
    assert len(reader.calls("python")) == examples.count("python ") >= 20
    assert reader.workspace.git("log", "--format=%s", "--merges").count("Merge") == 2
    assert reader.workspace.git("branch", "--list", "stream/*") == ""  # clean has removed them


# ── zsh and fish ──────────────────────────────────────────────────────────────────────────────────────────────────────


# What the shell's script begins with, which word it asks about, how it is called, and what it is asked.
SHELLS = {
    "zsh": ("#compdef orchestrate", "2", "-f -e",
            "autoload -Uz compinit; compinit -u -D\n{}print -- ${{_comps[orchestrate]}}", ["_orchestrate_completion"]),
    "fish": ("complete --no-files --command orchestrate", "Stream-", "--no-config",
             "{}complete -C 'orchestrate status Stream-'", [f"Stream-{letter}" for letter in "ABCD"]),
}  # fmt: skip


@pytest.mark.parametrize("name", SHELLS)
def test_another_shell_completes(name: str, reader: Reader) -> None:
    source, last, options, asked, answer = SHELLS[name]
    assert f"{name}: `{name}_source`" in README
    line = find_block("bash", "bash_source").text.replace("bash_source", f"{name}_source")
    assert source in reader.type(f"_ORCHESTRATE_COMPLETE={name}_source orchestrate")
    # By the protocol that the shell's script speaks.
    asks = (
        f"COMP_WORDS='orchestrate status Stream-' COMP_CWORD={last} _ORCHESTRATE_COMPLETE={name}_complete orchestrate"
    )
    assert re.findall(r"(?m)^(?:plain,)?(Stream-\w)$", reader.type(asks)) == [f"Stream-{letter}" for letter in "ABCD"]
    if shutil.which(name):
        shown = reader.type(asked.format(line), shell=f"{shutil.which(name)} {options}")
        assert shown.split() == answer


# ── What others run ───────────────────────────────────────────────────────────────────────────────────────────────────


@each("yaml")
def test_the_steps_of_the_workflow_run_in_a_checkout(block: Block, reader: Reader) -> None:
    (job,) = yaml.safe_load(block.text)["jobs"].values()
    assert job["timeout-minutes"] < 360  # GitHub's own limit
    reader.install()
    tasks = reader.workspace.database.path.parent
    tasks.rename(reader.root / "tasks")  # in the checkout, and nowhere else
    shutil.rmtree(reader.home / ".claude")
    (reader.home / ".gitconfig").unlink()  # a runner does not know who commits
    reader.workspace.git("init", "--quiet", "--bare", str(reader.home / "origin.git"))
    reader.workspace.git("remote", "add", "origin", str(reader.home / "origin.git"))
    for name, text in (("pip", PIP), ("npm", NPM)):
        reader.provide(name, text)
    (reader.bin / "not-yet").mkdir()
    (reader.bin / "claude").rename(reader.bin / "not-yet" / "claude")
    steps = [step["run"] for step in job["steps"] if "run" in step]
    for step in steps:
        reader.type(step, shell="bash --noprofile --norc -eo pipefail")  # as GitHub calls it
    assert Counter(reader.workspace.starts()) == Counter(f"Stream-{letter}" for letter in "ABCD")
    assert len([step for step in steps if "orchestrate.py" in step]) == 2
    # What is not pushed or uploaded is gone with the runner.
    pushed = reader.workspace.git("for-each-ref", "--format=%(refname)", cwd=reader.home / "origin.git").split()
    assert {"work", "Stream-B", "Stream-C"} == {name.rpartition("/")[2] for name in pushed}
    (upload,) = [step for step in job["steps"] if step.get("uses", "").startswith("actions/upload-artifact")]
    for path in upload["with"]["path"].split():
        assert (reader.root / path).exists(), path
        assert not path.startswith(".") or upload["with"]["include-hidden-files"] is True
    assert "tasks/" in upload["with"]["path"].split()


def read_unit() -> configparser.ConfigParser:
    """Return the README's unit; the parser is strict, so it names no key twice."""
    parser = configparser.ConfigParser(interpolation=None)
    parser.optionxform = str  # type: ignore[method-assign,assignment]
    parser.read_string(find_block("ini", "[Service]").text)
    return parser


def install_unit(reader: Reader) -> None:
    """Install the unit where the README says, and what it names."""
    folder = reader.home / ".config" / "systemd" / "user"
    folder.mkdir(parents=True)
    (folder / "orchestrate.service").write_text(find_block("ini", "[Service]").text)
    assert "`~/.config/systemd/user/orchestrate.service`" in README
    programs = reader.home / ".local" / "bin"
    programs.mkdir(parents=True)
    for name in ("orchestrate", "claude"):
        (programs / name).symlink_to(reader.bin / name)


@each("ini")
def test_the_unit_is_one_that_systemd_takes(block: Block, reader: Reader) -> None:
    install_unit(reader)
    assert block.text == find_block("ini", "[Service]").text
    verifier = shutil.which("systemd-analyze")
    if verifier:
        path = reader.home / ".config/systemd/user/orchestrate.service"
        with tempfile.TemporaryDirectory() as run:  # short: the path of a socket below it has 107 bytes at most
            environment = {**os.environ, "HOME": str(reader.home), "XDG_RUNTIME_DIR": run}
            done = subprocess.run(
                [verifier, "--user", "verify", str(path)],
                env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=60,
            )  # fmt: skip
        assert (done.returncode, done.stdout) == (0, "")


def test_the_unit_ends_workers_at_a_stop_and_leaves_them_after_a_crash(reader: Reader) -> None:
    install_unit(reader)
    service = {key: value.replace("%h", str(reader.home)) for key, value in read_unit()["Service"].items()}
    stop = shlex.split(service["ExecStop"].replace("$$", "$"))  # as systemd reads it
    reader.workspace.play("until=gate all")
    reader.type("systemctl --user start orchestrate")
    worker = reader.workspace.wait_for_worker("Stream-A")
    environment = {"HOME": str(reader.home), "PATH": f"{reader.bin}"}
    root = service["WorkingDirectory"]
    assert subprocess.run(stop, cwd=root, env=environment, timeout=60).returncode == 0  # no MAINPID: it has crashed
    assert is_running(worker)
    environment["MAINPID"] = str(reader.orchestrator())
    assert subprocess.run(stop, cwd=root, env=environment, timeout=60).returncode == 0
    assert not is_running(worker)
    assert (service["KillMode"], service["Restart"]) == ("process", "on-failure")


def test_systemd_does_not_start_again_what_a_person_has_stopped() -> None:
    service = read_unit()["Service"]
    clean = {0, *map(int, service.get("SuccessExitStatus", "").split())}
    prevented = set(map(int, service["RestartPreventExitStatus"].split()))
    by_signal = {130, 143, 129}  # the orchestrator's exit codes after Ctrl+C, `stop` and a hangup
    assert by_signal <= clean | prevented
    assert {1, 2, 75} <= clean | prevented  # failed, called wrongly, runs already


# ── The sandbox ───────────────────────────────────────────────────────────────────────────────────────────────────────


def can_sandbox() -> bool:
    """Whether bubblewrap is there, and may do what it is for."""
    words = ["bwrap", "--ro-bind", "/", "/", "--unshare-pid", "true"]
    return bool(shutil.which("bwrap")) and subprocess.run(words, stderr=subprocess.DEVNULL).returncode == 0


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.skipif(not can_sandbox(), reason="apt install bubblewrap; not in every container")
@newest
def test_the_real_cli_works_in_bubblewrap_and_writes_nowhere_else(workspace: Workspace, claude: str) -> None:
    """A worker in its PID namespace is taken over, stopped with all that it started, and can't leave its project."""
    task = workspace.database.add_task("Stream-A")
    outside, inside = Path(tempfile.mkdtemp(dir="/var/tmp")) / "outside.txt", workspace.root / "inside.txt"
    try_all = f"echo x > {outside}; kill -0 {os.getpid()} && echo seen > {inside} || echo alone > {inside}"
    (script,) = re.findall(r"<<'END'\n(.*?)^END$", find_block("bash", "bwrap").text, re.MULTILINE | re.DOTALL)
    launcher = workspace.root.parent / "launcher"
    launcher.write_text(script)
    launcher.chmod(0o755)

    def respond(conversation: Conversation) -> Reply:
        step = len(conversation.tool_results)
        if "This is a restart" not in conversation.prompt:
            return (UseTool("Bash", {"command": try_all}), nap(1000))[step]
        return (set_status(task, "completed"), Say("Done."))[step]

    with ScriptedApi(respond) as api:
        environment = use_real_cli(workspace, api, claude)
        workspace.claude.unlink()  # what lies in /tmp is not in the sandbox
        environment["PATH"] = f"{Path(claude).parent}:{os.environ['PATH']}"
        del environment["CLAUDE_CODE_TMPDIR"]
        (workspace.home / ".claude.json").write_text("{}")
        words = ("start", "--claude", str(launcher))
        first = workspace.popen(*words, env=environment)
        wait_until(lambda: find_naps(workspace), "the tool call", seconds=60)
        worker, naps = workspace.pid("Stream-A"), find_naps(workspace)
        os.kill(first.pid, 9)
        first.wait()
        second = workspace.popen(*words, env=environment)
        wait_until(lambda: workspace.events("worker_adopted"), "its second orchestrator")
        assert workspace.pid("Stream-A") == worker
        assert workspace.run("stop").returncode == 0
        second.communicate(timeout=60)
        assert own_processes(workspace.root) == []
        assert not any(is_running(process.pid) for process in naps)
        assert (inside.read_text(), outside.exists()) == ("alone\n", False)
        outside.parent.rmdir()
        done = workspace.run(*words, env=environment, timeout=120)
    assert done.returncode == 0, done.stdout
    assert own_processes(workspace.root) == []
