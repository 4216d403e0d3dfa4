"""Fixtures: a workspace that leaves no process behind."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Iterator

import pytest
from support import Workspace


def pytest_configure() -> None:
    """Undo what a shell does to its background jobs: whatever we start would inherit the ignored signals."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Function]) -> None:
    """Mark as slow all cases but the first of each test that runs processes: they differ in what no Python decides."""
    seen = set()
    for item in items:
        if "workspace" in item.fixturenames:
            if item.function in seen:
                item.add_marker(pytest.mark.slow)
            seen.add(item.function)


@pytest.fixture
def workspace(tmp_path: Path) -> Iterator[Workspace]:
    """A project with an empty database; whatever runs in it at the end is ended."""
    workspace = Workspace(tmp_path)
    yield workspace
    workspace.close()
