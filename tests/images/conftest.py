"""A small job for images to run."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from mlip_job.config import JobConfig
from tests.faults.conftest import RUN, TINY
from tests.images.jobs import ImageJob
from tests.support import rattled, write_database

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@pytest.fixture
def make_job(tmp_path: Path) -> Callable[..., ImageJob]:
    """Return a function that prepares a job in a directory; the image sees it by the same name."""

    def make(**training: object) -> ImageJob:
        directory = tmp_path / "job"
        directory.mkdir()
        write_database(directory / "structures.db", rattled(8))
        config = JobConfig.model_validate(
            {
                "family": "cu",
                "database": {"url": str(directory / "structures.db")},
                "training": TINY | training,
                "storage": {"url": str(directory / "store")},
                "run": RUN,
                "evaluation": {"gate": {"require_physics": False}},
                "work_dir": str(directory / "work"),
            }
        )
        (directory / "mlip-job.yaml").write_text(json.dumps(config.model_dump(mode="json")))
        return ImageJob(config, directory)

    return make
