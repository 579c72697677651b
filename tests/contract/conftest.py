"""Run each contract test on both kinds of store."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from mlip_job.config import StorageConfig
from mlip_job.store.open import open_store

if TYPE_CHECKING:
    from pathlib import Path

    from mlip_job.store.base import ObjectStore


@pytest.fixture(params=["directory", "s3"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> StorageConfig:
    """Return the configuration of an empty store of each kind."""
    if request.param == "directory":
        return StorageConfig(url=str(tmp_path / "store"))
    config: StorageConfig = request.getfixturevalue("s3_bucket")
    return config


@pytest.fixture
def store(storage: StorageConfig) -> ObjectStore:
    """Return an empty store of each kind."""
    return open_store(storage)
