"""A database to fill and a directory for a dataset."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture
def db(tmp_path: Path) -> Path:
    return tmp_path / "structures.db"


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "dataset"
