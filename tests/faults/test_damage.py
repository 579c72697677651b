"""Files of a fit, damaged while it runs: checkpoints and reports do not contain the damage."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from mlip_job.config import JobConfig
from mlip_job.training.pacemaker.potential_file import read_potential
from tests.faults import jobs
from tests.faults.jobs import MakeConfig
from tests.faults.replay import REPLAYED, REPLAYED_ITERATIONS, replayed_pacemaker
from tests.faults.tally import Tally

LONG_LINE_BYTES = 100_000_000

DAMAGE = {
    "interim_potential_0.yaml": {
        "half": lambda data: data[: len(data) // 2],
        "garbage": lambda _: b"\x00\xff\xfe: [",
        "of other elements": lambda data: data.replace(b"Cu", b"Ag"),
    },
    "metrics.txt": {
        "half a row": lambda data: data[:-40],
        "garbage": lambda data: data + b"\x00\xff 1 2 nan\n",
        "empty": lambda _: b"",
    },
    "test_metrics.txt": {"half a row": lambda data: data[:-40]},
    "train.log": {"garbage": lambda data: data + b"\xff\x00\n" * 1000},
}


@pytest.mark.parametrize(("name", "how"), [(name, how) for name in DAMAGE for how in DAMAGE[name]])
def test_a_file_is_damaged_right_before_the_last_checkpoint(
    make_config: MakeConfig, tmp_path: Path, tally: Tally, name: str, how: str
) -> None:
    """Its checkpoint can be resumed, and the published curve has no gaps."""
    replay = replayed_pacemaker(tmp_path, iteration_s=0.05)
    _damage(make_config(REPLAYED), tmp_path, tally, name, how, fault=replay)


def _damage(
    config: JobConfig,
    tmp_path: Path,
    tally: Tally,
    name: str,
    how: str,
    fault: Callable[[], None] | None = None,
) -> None:
    job = jobs.start_job(config, tmp_path, fault=fault)
    job.wait_for_iteration()
    path = job.wait_for_file(name)
    data = path.read_bytes()
    damaged = DAMAGE[name][how](data)
    assert damaged != data
    path.write_bytes(damaged)
    job.send(signal.SIGTERM)
    job.wait()
    assert job.code in (0, 75), job.text()
    assert "Traceback" not in job.text()
    tally.kill_points += job.code != 0
    checkpoints = jobs.registry_of(config).checkpoints(1)
    for number, checkpoint in enumerate(checkpoints.found()):
        fetched = tmp_path / f"fetched-{number}"
        checkpoints.fetch(checkpoint, fetched)
        read_potential(fetched / "potential.yaml")
    again = jobs.run_job(config, tmp_path, fault=fault)
    assert again.code == 0, again.text()
    manifest = jobs.require_complete(config)
    tally.count_end([job.text(), again.text()], manifest.headline.iterations)


def test_a_huge_log_with_binary_data(make_config: MakeConfig, tmp_path: Path, tally: Tally) -> None:
    """The fit's messages are found after a line of 100 MB and binary data."""
    config = make_config(REPLAYED, run={"checkpoint_interval": 0.5, "heartbeat_interval": 0.5})
    noise = f"head -c {LONG_LINE_BYTES} /dev/zero; echo; head -c 100000 /dev/urandom; echo"
    job = jobs.run_job(config, tmp_path, fault=replayed_pacemaker(tmp_path, noise))
    assert job.code == 0, job.text()
    manifest = jobs.require_complete(config)
    assert manifest.headline.iterations == REPLAYED_ITERATIONS
    tally.count_end([job.text()], REPLAYED_ITERATIONS)
