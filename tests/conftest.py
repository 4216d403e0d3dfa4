"""Fixtures: a workspace that leaves no process behind."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Iterator

import pytest

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent.parent)]

from support import Workspace


@pytest.fixture
def workspace(tmp_path: Path) -> Iterator[Workspace]:
    """A project with an empty database; whatever runs in it at the end is ended."""
    workspace = Workspace(tmp_path)
    yield workspace
    workspace.close()
