"""A small job to run in images."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.faults.conftest import RUN
from tests.generations import make_config
from tests.images.jobs import ImageJob
from tests.support import rattled, write_database


@pytest.fixture
def make_job(tmp_path: Path) -> Callable[..., ImageJob]:
    """Return a function that prepares a job in a directory with the same path inside the image."""

    def make(training: dict[str, Any]) -> ImageJob:
        directory = tmp_path / "job"
        directory.mkdir()
        write_database(directory / "structures.db", rattled(8))
        config = make_config(directory, training, run=RUN)
        (directory / "mlip-job.yaml").write_text(json.dumps(config.model_dump(mode="json")))
        return ImageJob(config, directory)

    return make
