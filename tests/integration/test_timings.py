"""Where the time of a run goes is kept over its attempts, with the real pacemaker."""

from __future__ import annotations

import json
import os
import signal
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from mlip_job.errors import GpuRequiredError, InterruptedRunError
from mlip_job.generation import run_generation
from mlip_job.generation.context import StageClock
from mlip_job.report.model import TrainingReport
from mlip_job.runtime.processes import StopRequest
from mlip_job.store.open import open_store
from mlip_job.training import programs
from mlip_job.training.pacemaker import process
from mlip_job.training.trainer import added
from tests.generations import Family, Silent, family, stopped_before_publication, trained
from tests.reports import validate_report

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from mlip_job.registry import Manifest
    from mlip_job.training.trainer import Progress
    from tests.cli import Ended

__all__ = ["family", "trained"]
pytestmark = pytest.mark.pacemaker


class _StopsIt(Silent):
    """Sends this process the signal of a scheduler as soon as there is something to lose."""

    def progress(self, progress: Progress) -> None:
        if progress.point is not None and progress.point.iteration > 1:
            os.kill(os.getpid(), signal.SIGTERM)


def _run(family: Family, observer: Silent | None = None, **options: Any) -> Manifest:
    config = family.config
    with StopRequest() as stop:
        outcome = run_generation(
            config,
            2,
            store=open_store(config.storage),
            observer=observer or Silent(),
            stop=stop,
            **options,
        )
    return outcome.manifest


def _report(family: Family, manifest: Manifest) -> TrainingReport:
    text = family.registry.read(manifest, "report.json")
    validate_report(text)
    return TrainingReport.from_json(text)


def _configure(family: Family, **training: Any) -> None:
    values = yaml.safe_load(family.config_path.read_text())
    values["training"] |= training
    family.config_path.write_text(yaml.safe_dump(values))


def test_times_of_an_attempt_that_was_stopped_are_kept(family: Family) -> None:
    """The report adds them up, stage by stage and phase by phase."""
    _configure(family, max_iter=40)
    with pytest.raises(InterruptedRunError):
        _run(family, _StopsIt(), clock=StageClock(age_s=1000.0))
    _configure(family, max_iter=6)
    manifest = _run(family, clock=StageClock(age_s=500.0))

    first, second = (part.timings for part in manifest.attempts)
    assert first.to_pacemaker_s is not None
    assert second.to_pacemaker_s is not None
    assert first.to_pacemaker_s > 1000.0 > second.to_pacemaker_s > 500.0
    assert first.stages_s["start_up"] >= 1000.0
    assert {"checks", "export", "publish_dataset", "fit"} <= first.stages_s.keys()
    assert "evaluate" not in first.stages_s
    assert {"fetch", "fit", "convert", "evaluate", "report", "publish"} <= second.stages_s.keys()
    assert "export" not in second.stages_s  # the dataset was found in the store
    for timings in (first, second):
        assert timings.phases_s["fitting"] > 0
        assert sum(timings.phases_s.values()) <= timings.stages_s["fit"] + 0.1

    report = _report(family, manifest)
    assert report.timings_s["fit"] == pytest.approx(first.stages_s["fit"] + second.stages_s["fit"])
    assert report.phases_s == added(first.phases_s, second.phases_s)
    # The report lies among what is published, so how long that takes is in the manifest only.
    assert "publish" not in report.timings_s
    assert report.attempts[0] == manifest.attempts[0]


def test_a_job_that_publishes_has_no_start_of_pacemaker(
    family: Family, cli: Callable[..., Ended]
) -> None:
    """The fit's job has; `show` tells both. It needs no GPU either, and none is here."""
    with stopped_before_publication():
        _run(family)
    _configure(family, require_gpu=True)
    manifest = _run(family)
    fitted, published = (part.timings for part in manifest.attempts)
    assert fitted.to_pacemaker_s is not None
    assert fitted.phases_s["fitting"] > 0
    assert published.to_pacemaker_s is None
    assert published.phases_s == {}
    assert published.stages_s["evaluate"] > 0
    assert _report(family, manifest).phases_s == fitted.phases_s

    shown = cli("-c", str(family.config_path), "show", "-g", "2")
    assert f"started {fitted.to_pacemaker_s:.1f} s after the start of the job" in shown.out
    document = json.loads(cli("-c", str(family.config_path), "show", "-g", "2", "--json").out)
    assert document["attempts"][0]["timings"]["to_pacemaker_s"] == fitted.to_pacemaker_s


@pytest.fixture
def device_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Make it look as if a GPU could be here: its device file, and no driver."""
    (tmp_path / "nvidia0").touch()
    monkeypatch.setattr(programs, "_DEVICES", tmp_path)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


@pytest.mark.usefixtures("device_file")
def test_no_fit_begins_where_tensorflow_sees_no_gpu(family: Family) -> None:
    """It is asked in pacemaker's own process, which ends before pacemaker has said a word."""
    _configure(family, require_gpu=True)
    with pytest.raises(GpuRequiredError, match="TensorFlow sees none") as caught:
        _run(family)
    assert caught.value.exit_code == 71
    (log,) = (family.root / "work" / "gen_02").glob("*/train.log")
    assert "Start pacemaker" not in log.read_text()
    assert family.registry.checkpoints(2).found() == []


@pytest.mark.usefixtures("device_file")
def test_a_fit_runs_as_ever_where_the_device_is_there(
    family: Family, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The one kind of device that is here stands for a GPU: the same potential, bit for bit."""
    _configure(family, require_gpu=True)
    monkeypatch.setattr(process, "GPU", "CPU")
    guarded = _run(family)
    losses = [point.loss for point in _report(family, guarded).fit.train_curve]
    _configure(family, require_gpu=False)
    (family.store / "cu" / "generations" / "gen_02" / "manifest.json").unlink()
    monkeypatch.setattr(process, "GPU", "GPU")
    alone = _run(family, fresh=True)
    assert losses == [point.loss for point in _report(family, alone).fit.train_curve]
