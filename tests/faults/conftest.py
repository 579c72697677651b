"""Jobs to kill, and the count of what was done to them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from mlip_job.config import JobConfig
from tests.faults.tally import TALLY, Tally
from tests.support import rattled, write_database

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

# Seconds-long fits with the real pacemaker; checkpoints often enough to matter in them.
TINY = {
    "linear_start": False,
    "evaluator": "pyace",
    "functions_per_element": 3,
    "ladder_step": None,
    "max_iter": 3,
}
# What these tests look at does not depend on them, and there are some hundred jobs.
EVALUATION = {
    "active_set": False,
    "dynamics_steps": 10,
    "gate": {"require_physics": False},  # no check of stability for three functions
}
RUN = {"checkpoint_interval": 1, "heartbeat_interval": 0.5, "retry_timeout": 20}


@pytest.fixture(scope="session")
def tally(pytestconfig: pytest.Config) -> Tally:
    """Return the counts of this session."""
    return pytestconfig.stash.setdefault(TALLY, Tally())


@pytest.fixture
def make_config(tmp_path: Path) -> Callable[..., JobConfig]:
    """Return a function that makes the configuration of a job on a small database."""
    database = tmp_path / "structures.db"
    write_database(database, rattled(8))

    def make(training: dict[str, Any] | None = None, **sections: Any) -> JobConfig:
        values = {
            "family": "cu",
            "database": {"url": str(database)},
            "training": TINY | (training or {}),
            "evaluation": EVALUATION,
            "storage": {"url": str(tmp_path / "store")},
            "run": RUN,
            "work_dir": str(tmp_path / "work"),
        }
        return JobConfig.model_validate(values | sections)

    return make
