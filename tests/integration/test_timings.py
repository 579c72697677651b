"""Times of a run's stages over its attempts, and the check for a GPU, with the real pacemaker."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest

from mlip_job.errors import GpuRequiredError, InterruptedRunError
from mlip_job.generation.context import StageClock
from mlip_job.training import programs
from mlip_job.training.trainer import Progress, added
from tests.cli import Cli
from tests.generations import Family, Silent, stopped_before_publication, train

pytestmark = pytest.mark.pacemaker


class _Interrupter(Silent):
    """Sends SIGTERM to this process after the first iterations."""

    def progress(self, progress: Progress) -> None:
        if progress.point is not None and progress.point.iteration > 1:
            os.kill(os.getpid(), signal.SIGTERM)


def test_times_of_an_interrupted_attempt_are_added(family: Family, cli: Cli) -> None:
    """By stage and phase; an attempt that only publishes starts no pacemaker."""
    family.configure({"functions_per_element": 10, "max_iter": 100_000, "start_from": "none"})
    with pytest.raises(InterruptedRunError):
        train(family.config, 2, _Interrupter(), clock=StageClock(age_s=1000.0))
    done = family.registry.checkpoints(2).found()[0].iterations
    family.set_training(max_iter=done + 2)
    with stopped_before_publication():
        train(family.config, 2, clock=StageClock(age_s=500.0))
    family.set_training(require_gpu=True)  # there is none here, and publishing needs none
    run = train(family.config, 2)

    first, second, third = (part.timings for part in run.manifest.attempts)
    assert first.to_trainer_s is not None
    assert second.to_trainer_s is not None
    assert first.to_trainer_s > 1000.0 > second.to_trainer_s > 500.0
    assert first.stages_s["start_up"] >= 1000.0
    assert {"checks", "export", "publish_dataset", "fit"} <= first.stages_s.keys()
    assert "evaluate" not in first.stages_s
    assert {"fetch", "fit"} <= second.stages_s.keys()
    assert "export" not in second.stages_s  # the dataset was found in the store
    for timings in (first, second):
        assert timings.phases_s["fitting"] > 0
        assert sum(timings.phases_s.values()) <= timings.stages_s["fit"] + 0.1
    assert third.to_trainer_s is None
    assert third.phases_s == {}
    assert {"convert", "evaluate", "report", "publish"} <= third.stages_s.keys()

    report = run.report
    of_fits = sum(timings.stages_s.get("fit", 0.0) for timings in (first, second, third))
    assert report.timings_s["fit"] == pytest.approx(of_fits)
    assert report.phases_s == added(first.phases_s, second.phases_s)
    # The time of publishing is in the manifest only: the report is published too.
    assert "publish" not in report.timings_s
    assert report.attempts[0] == run.manifest.attempts[0]

    shown = cli("-c", family.config_path, "show", "-g", "2")
    starts = f"{first.to_trainer_s:.1f} s, {second.to_trainer_s:.1f} s"
    assert f"started {starts} after the start of the job" in shown.out
    document = json.loads(cli("-c", family.config_path, "show", "-g", "2", "--json").out)
    assert document["attempts"][0]["timings"]["to_trainer_s"] == first.to_trainer_s


@pytest.fixture
def _device_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "nvidia0").touch()
    monkeypatch.setattr(programs, "DEVICES", tmp_path)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


@pytest.mark.usefixtures("_device_file")
def test_no_fit_starts_if_tensorflow_sees_no_gpu(
    family: Family, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The check runs in pacemaker's process before it starts; with a device the fit runs.

    The CPU, the only device here, stands for a GPU.
    """
    family.configure({"functions_per_element": 10, "require_gpu": True})
    with pytest.raises(GpuRequiredError, match="TensorFlow sees none") as caught:
        train(family.config, 2)
    assert caught.value.exit_code == 71
    (log,) = (family.root / "work" / "gen_02").glob("*/train.log")
    assert "Start pacemaker" not in log.read_text()
    assert family.registry.checkpoints(2).found() == []

    monkeypatch.setattr(programs, "GPU", "CPU")
    assert train(family.config, 2).manifest.headline.iterations > 0
