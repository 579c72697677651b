"""From a submission to this machine to a published generation, by the verbs alone."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
import yaml

from tests.support import rattled, write_database

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.cli import Ended


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """Write the configuration of a fit that takes seconds."""
    write_database(tmp_path / "structures.db", rattled(8))
    path = tmp_path / "mlip-job.yaml"
    path.write_text(
        yaml.safe_dump(
            {
                "family": "cu",
                "database": {"url": "structures.db"},
                "storage": {"url": "store"},
                "training": {
                    "linear_start": False,
                    "evaluator": "pyace",
                    "functions_per_element": 3,
                    "ladder_step": None,
                    "max_iter": 2,
                    "stress_weight": 0,
                },
                "evaluation": {"active_set": False},
            }
        )
    )
    return path


@pytest.mark.pacemaker
def test_submitted_and_waited_for(cli: Callable[..., Ended], config: Path) -> None:
    """What was shown is what runs; afterwards the generation is there, and its log."""
    shown = cli("-c", config, "submit", "-g", "1", "--dry-run")
    assert shown.code == 0, shown.err
    ended = cli("-c", config, "submit", "-g", "1", "--wait", "--json")
    assert ended.code == 0, ended.err
    (job,) = json.loads(ended.out)["jobs"]
    assert job["scheduler"] == "local"
    assert job["manifest"]["generation"] == 1
    assert "run --generation 1" in shown.out
    assert cli("-c", config, "verify", "-g", "1").code == 0
    assert "published gen_01" in cli("-c", config, "logs", "-g", "1").out
    assert "gen_01" in cli("-c", config, "status").out
    again = cli("-c", config, "submit", "-g", "1")
    assert again.code == 73
    assert "gen_01" in again.err


@pytest.mark.pacemaker
def test_an_ensemble_on_this_machine(cli: Callable[..., Ended], config: Path) -> None:
    """One member after the other; the best becomes the generation."""
    ended = cli("-c", config, "submit", "-g", "1", "--ensemble", "2", "--wait", "--json")
    assert ended.code == 0, ended.err
    (job,) = json.loads(ended.out)["jobs"]
    committee = job["manifest"]["ensemble"]
    losses = {member["number"]: member["test_loss"] for member in committee["members"]}
    assert sorted(losses) == [1, 2]
    assert losses[committee["best"]] == min(losses.values())
    assert cli("-c", config, "logs", "-g", "1").out.count("published gen_01 in ") == 1
    assert cli("-c", config, "verify", "-g", "1").code == 0
