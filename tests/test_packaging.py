"""What is built and how it is installed: real wheels, real pip, uv and pipx, real shells. Needs the package index."""

from __future__ import annotations

import ast
import contextlib
import fcntl
import os
import re
import shlex
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from typing import Iterator, NamedTuple

import pytest
from support import SCRIPT, Workspace
from test_readme import BLOCKS, REPOSITORY

import orchestrate

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300, func_only=True)]
# What a clone has, as far as a build may look at it; what lies around besides (.venv, caches) is not copied.
SOURCES = ("orchestrate.py", "README.md", "pyproject.toml", "check-streams", "watch-status", "tests")


def run(*words: object, cwd: Path, **more: str) -> str:
    """Run a command as the user that he is, and return what it prints; fail with all that it says."""
    done = subprocess.run(
        [str(word) for word in words],
        cwd=cwd,
        env=environment(**more),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, f"exit code {done.returncode}: {shlex.join(map(str, words))}\n{done.stdout}"
    return done.stdout


def environment(**more: str) -> dict[str, str]:
    """The environment without this test's virtual environment, and without what orchestrate.py reads."""
    unwanted = r"(ORCHESTRATE|VIRTUAL_ENV|PYTHON|UV_|PIPX_|COV_|COVERAGE_|WORKSPACE_ID|TASK_DB_PATH)"
    kept = {name: value for name, value in os.environ.items() if not re.match(unwanted, name)}
    return {**kept, "PIP_DISABLE_PIP_VERSION_CHECK": "1", "NO_COLOR": "1", **more}


def copy_sources(folder: Path) -> Path:
    """Copy the checkout, as a clone has it."""
    folder.mkdir()
    for name in SOURCES:
        source, target = REPOSITORY / name, folder / name
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, target)
    return folder


class Built(NamedTuple):
    """The two archives, and the programs of a virtual environment with the wheel in it."""

    wheel: Path
    sdist: Path
    bin: Path


@contextlib.contextmanager
def made_once(folders: pytest.TempPathFactory, name: str) -> Iterator[tuple[Path, bool]]:
    """Give a folder that all processes of a parallel run share, and whether it is still to be filled."""
    base = folders.getbasetemp()
    top = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    folder, is_done = top / name, top / f"{name}.done"
    with (top / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not is_done.exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
        yield folder, not is_done.exists()
        is_done.touch()


@pytest.fixture(scope="module")
def tools(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A virtual environment with build, uv and pipx; its folder of programs."""
    with made_once(tmp_path_factory, "tools") as (folder, is_new):
        if is_new:
            run(sys.executable, "-m", "venv", "venv", cwd=folder)
            backend = read_value(read_project(), "requires")
            assert isinstance(backend, list)
            run("venv/bin/pip", "install", "-q", "build", "uv", "pipx", *backend, cwd=folder)
    return folder / "venv" / "bin"


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory, tools: Path) -> Built:
    """An sdist of the checkout, a wheel of that sdist, and the wheel installed."""
    with made_once(tmp_path_factory, "built") as (folder, is_new):
        if is_new:
            clone = copy_sources(folder / "clone")
            run(tools / "python", "-m", "build", "--no-isolation", "--outdir", folder, clone, cwd=folder)
            run(sys.executable, "-m", "venv", "--without-pip", "venv", cwd=folder)
            (wheel,) = folder.glob("*.whl")
            run(tools / "pip", "--python", "venv/bin/python", "install", "-q", wheel, cwd=folder)
    (wheel,), (sdist,) = folder.glob("*.whl"), folder.glob("*.tar.gz")
    return Built(wheel, sdist, folder / "venv" / "bin")


def read_project() -> str:
    """Return pyproject.toml, which Python 3.8 can't read but as text."""
    return (REPOSITORY / "pyproject.toml").read_text(encoding="utf-8")


def read_value(text: str, name: str) -> object:
    """Return the value of `name = …` on one line."""
    (value,) = re.findall(rf"^{name} = (.*)$", text, re.MULTILINE)
    return ast.literal_eval(value)


# ── What is said more than once ───────────────────────────────────────────────────────────────────────────────────────


def test_the_version_is_one() -> None:
    assert read_value(read_project(), "version") == orchestrate.VERSION


def test_what_it_needs_is_said_alike_for_uv_for_pip_and_by_doctor() -> None:
    script = SCRIPT.read_text(encoding="utf-8")
    header = re.sub(r"^# ?", "", re.split(r"^# ///( script)?$", script, flags=re.MULTILINE)[2], flags=re.MULTILINE)
    for name in ("requires-python", "dependencies"):
        assert read_value(header, name) == read_value(read_project(), name)
    needed = [f"{name}>={least}" for name, least in orchestrate.PACKAGES.items()]
    assert read_value(header, "dependencies") == needed
    assert f'pip install -q {" ".join(orchestrate.PACKAGES)}"' in script  # what it says where they are missing


# ── What is built ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_wheel_holds_the_script_and_what_pip_needs(built: Built) -> None:
    with zipfile.ZipFile(built.wheel) as archive:
        names = archive.namelist()
        metadata = f"orchestrate-{orchestrate.VERSION}.dist-info"
        entry = archive.read(f"{metadata}/entry_points.txt").decode()
        text = archive.read("orchestrate.py")
    assert built.wheel.name == f"orchestrate-{orchestrate.VERSION}-py3-none-any.whl"
    assert {name for name in names if not name.startswith(metadata)} == {"orchestrate.py"}
    assert entry.split() == ["[console_scripts]", "orchestrate=orchestrate:run_script"]
    assert text == SCRIPT.read_bytes()


def test_the_sdist_holds_what_a_packager_builds_and_tests(built: Built) -> None:
    with tarfile.open(built.sdist) as archive:
        modes = {member.name.split("/", 1)[1]: member.mode for member in archive.getmembers() if member.isfile()}
    tests = {
        str(path.relative_to(REPOSITORY))
        for path in (REPOSITORY / "tests").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert set(modes) == {"PKG-INFO", *SOURCES[:-1], *tests}
    assert [name for name, mode in modes.items() if mode & 0o100] == [
        name for name in modes if os.access(REPOSITORY / name, os.X_OK)
    ]


# ── What is installed ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_installed_command_installs_the_script_in_a_project(built: Built, tmp_path: Path) -> None:
    assert run(built.bin / "orchestrate", "--version", cwd=tmp_path) == f"orchestrate {orchestrate.VERSION}\n"
    project = tmp_path / "my-project"
    project.mkdir()
    run(built.bin / "orchestrate", "generate", project, cwd=tmp_path)
    state = project / ".claude" / "orchestrator"
    for name in ("orchestrate.py", "check-streams", "watch-status"):
        text = (state / name).read_text(encoding="utf-8")
        assert text.count(str(built.bin / "python")) == 1  # the interpreter that it goes on with
        without = text.replace(str(built.bin / "python"), "").replace("python=\n", "python=''\n")
        assert without == (REPOSITORY / name).read_text(encoding="utf-8")
        assert os.access(state / name, os.X_OK)
    copy = state / "orchestrate.py"
    assert run(built.bin / "python", copy, "--version", cwd=project) == f"orchestrate {orchestrate.VERSION}\n"
    assert "Unchanged" in run(built.bin / "python", copy, "generate", cwd=project)


def test_the_demo_runs_in_a_clone_as_the_first_command_says(tmp_path: Path) -> None:
    text = next(block.text for block in BLOCKS if block.section == "Try it")
    home = tmp_path / "home"
    home.mkdir()
    said = run("bash", "-euo", "pipefail", "-c", text, cwd=copy_sources(tmp_path / "clone"), HOME=str(home))
    assert "all complete: 4 streams, 16 tasks" in said
    assert not (home / ".claude").exists()


# pip's settings are not uv's: it gets the certificates of the system, and no Python is downloaded.
UV = {"UV_SYSTEM_CERTS": "true", "UV_NATIVE_TLS": "true", "UV_PYTHON_DOWNLOADS": "never"}


@pytest.mark.parametrize("installer", ["uv", "pipx", "python3"])
def test_each_way_to_install_gives_the_command(installer: str, tools: Path, tmp_path: Path) -> None:
    (text,) = [b.text for b in BLOCKS if b.section == "Install it" and b.text.startswith(f"{installer} ")]
    home, project = tmp_path / "home", tmp_path / "my-project"
    home.mkdir()
    project.mkdir()
    programs = home / ".local" / "bin"
    more = {**UV, "PATH": f"{programs}:{tools}:{os.environ['PATH']}", "HOME": str(home), "TMPDIR": str(home)}
    more["UV_PYTHON"] = str(tools / "python")
    clone = copy_sources(tmp_path / "clone")
    run("bash", "-euo", "pipefail", "-c", text, cwd=clone, **more)
    shutil.rmtree(clone)  # what is installed stands on its own
    assert run(programs / "orchestrate", "--version", cwd=project, **more) == f"orchestrate {orchestrate.VERSION}\n"
    assert "orchestrate.py" in run("orchestrate", "generate", project, cwd=home, **more)
    copy = project / ".claude" / "orchestrator" / "orchestrate.py"
    said = run("python3", copy, "--version", cwd=project, HOME=str(home))  # by whatever has what it needs
    assert said == f"orchestrate {orchestrate.VERSION}\n"


def test_uv_runs_the_script_without_an_installation(tools: Path, tmp_path: Path) -> None:
    more = {**UV, "HOME": str(tmp_path), "TMPDIR": str(tmp_path), "UV_PYTHON": str(tools / "python")}
    clone = copy_sources(tmp_path / "clone")
    said = run(tools / "uv", "run", "orchestrate.py", "--version", cwd=clone, **more)
    assert said.endswith(f"orchestrate {orchestrate.VERSION}\n")


# ── Completion, in a bash that has the command ────────────────────────────────────────────────────────────────────────

ASK = r"""
eval "$(_ORCHESTRATE_COMPLETE=bash_source orchestrate)"
complete -p orchestrate
COMP_WORDS=(%s) COMP_CWORD=%d
_orchestrate_completion orchestrate
printf '%%s\n' "${COMPREPLY[@]}"
"""


def press_tab(built: Built, workspace: Workspace, *words: str, **more: str) -> list[str]:
    """Return what bash offers for the last word, with all that is written on stderr in between."""
    bash = ["bash", "--norc", "--noprofile", "-c", ASK % (" ".join(map(shlex.quote, words)), len(words) - 1)]
    path = f"{built.bin}:{os.environ['PATH']}"
    settings = {"HOME": str(workspace.home), **more, "PATH": path}
    complete, *offered = run(*bash, cwd=workspace.root, **settings).splitlines()
    assert complete == "complete -o nosort -F _orchestrate_completion orchestrate"
    return [word for word in offered if word]


def test_bash_completes_commands_options_and_the_streams_of_a_real_database(built: Built, workspace: Workspace) -> None:
    for name in ("Stream-A", "Stream-B", "Streamlet", "Other"):
        workspace.database.add_stream(name)
    assert press_tab(built, workspace, "orchestrate", "st") == ["start", "status", "stop"]
    assert press_tab(built, workspace, "orchestrate", "demo") == ["demo"]  # and not what is hidden
    assert press_tab(built, workspace, "orchestrate", "start", "--max-w") == ["--max-workers"]
    assert press_tab(built, workspace, "orchestrate", "start", "--phase", "f") == ["foundation"]
    for command in ("start", "status", "stop", "logs", "merge"):
        assert press_tab(built, workspace, "orchestrate", command, "Stream-") == ["Stream-A", "Stream-B"]
    database = str(workspace.database.path)
    elsewhere = ("orchestrate", "--db", database, "logs", "O")
    assert press_tab(built, workspace, *elsewhere) == ["Other"]


def test_bash_completes_nothing_and_says_nothing_where_there_is_no_project_or_database(
    built: Built, workspace: Workspace
) -> None:
    words = ("orchestrate", "logs", "S")
    workspace.database.path.write_bytes(b"this is no database\n" * 500)
    assert press_tab(built, workspace, *words) == []
    for path in workspace.database.path.parent.iterdir():
        path.unlink()
    assert press_tab(built, workspace, *words) == []
    assert press_tab(built, workspace, "orchestrate", "--project", "/nowhere", "logs", "S") == []
    (workspace.root / ".claude").rmdir()
    assert press_tab(built, workspace, *words) == []
    assert press_tab(built, workspace, "orchestrate", "status", "--json", "--watch", "S") == []
