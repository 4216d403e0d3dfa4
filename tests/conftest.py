"""Fixtures: a workspace that leaves no process behind."""

from __future__ import annotations

from pathlib import Path
from typing import Iterator

import pytest
from support import Workspace


@pytest.fixture
def workspace(tmp_path: Path) -> Iterator[Workspace]:
    """A project with an empty database; whatever runs in it at the end is ended."""
    workspace = Workspace(tmp_path)
    yield workspace
    workspace.close()
