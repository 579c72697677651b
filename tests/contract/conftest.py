"""Run each contract test on both kinds of store."""

from __future__ import annotations

from pathlib import Path

import pytest

from mlip_job.config import StorageConfig
from mlip_job.store.base import ObjectStore
from mlip_job.store.open import open_store


@pytest.fixture(params=["directory", "s3"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> StorageConfig:
    if request.param == "directory":
        return StorageConfig(url=str(tmp_path / "store"))
    config: StorageConfig = request.getfixturevalue("s3_bucket")
    return config


@pytest.fixture
def store(storage: StorageConfig) -> ObjectStore:
    return open_store(storage)
