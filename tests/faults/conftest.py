"""Configuration of a job to interrupt, and the counts of the suite."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mlip_job.config import JobConfig
from tests.faults.jobs import MakeConfig
from tests.faults.tally import TALLY, Tally
from tests.generations import TINY
from tests.generations import make_config as config_in
from tests.support import rattled, write_database

RUN = {"checkpoint_interval": 1, "heartbeat_interval": 0.5, "retry_timeout": 20}


@pytest.fixture(scope="session")
def tally(pytestconfig: pytest.Config) -> Tally:
    return pytestconfig.stash.setdefault(TALLY, Tally())


@pytest.fixture
def make_config(tmp_path: Path) -> MakeConfig:
    write_database(tmp_path / "structures.db", rattled(8))

    def make(training: dict[str, Any] | None = None, **sections: Any) -> JobConfig:
        return config_in(tmp_path, TINY | (training or {}), **{"run": RUN} | sections)

    return make
