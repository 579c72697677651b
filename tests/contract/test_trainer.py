"""Contract of both trainers: input, failure, interruption, checkpoint, artefacts."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from mlip_job.config import TrainingConfig
from mlip_job.errors import IntegrityError, InterruptedRunError, MlipJobError, TrainingError
from mlip_job.training import programs
from mlip_job.training.grace import GraceFiles
from mlip_job.training.grace.process import GraceWrapper
from mlip_job.training.pacemaker.process import PacemakerWrapper
from mlip_job.training.trainer import FitData, FitPosition, Monitor, Trainer

DATA = Path(__file__).parents[1] / "data"
TRAINING = TrainingConfig(
    functions_per_element=15, max_iter=8, linear_start=False, validation_fraction=0, seed=42
)
GRACE = TrainingConfig(trainer="grace-fs", functions_per_element=20, max_iter=8, seed=42)
FIT = FitData(("Cu",), {"Cu": -3.7}, 9, 36, ("dataset/train.gz",))
MIDDLE = FitPosition(ladder_step=0, iteration=3, step_done=False, last_step=True)


@dataclass
class Kind:
    """A trainer, and a function that writes the files of its finished fit."""

    open: Callable[[Path], Trainer]
    finish: Callable[[Path], None]
    missing: str


def _finish_pacemaker(directory: Path) -> None:
    run = DATA / "pacemaker" / "c_ladder"
    for name in ("output_potential.yaml", "train.log"):
        shutil.copy(run / name, directory)
    (directory / "metrics").mkdir()
    for path in run.glob("*metrics.txt"):
        shutil.copy(path, directory / "metrics")


def _finish_grace(directory: Path) -> None:
    output = directory / "seed" / "42"
    output.mkdir(parents=True)
    shutil.copy(DATA / "grace" / "train.log", directory)
    for name in ("FS_model.yaml", "train_metrics.yaml", "test_metrics.yaml"):
        shutil.copy(DATA / "grace" / name, output)
    (output / "checkpoints").mkdir()
    checkpoint = [f"checkpoints/{name}" for name in GraceFiles.CHECKPOINT]
    for name in checkpoint:
        (output / name).touch()
    shutil.copy(DATA / "grace" / "model.yaml", output)


KINDS = {
    "pacemaker": Kind(
        lambda path: PacemakerWrapper(TRAINING, path), _finish_pacemaker, "potential"
    ),
    "grace": Kind(lambda path: GraceWrapper(GRACE, path), _finish_grace, "checkpoints/"),
}


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> Kind:
    return KINDS[request.param]


@pytest.fixture
def work(tmp_path: Path) -> Path:
    (tmp_path / "work").mkdir()
    return tmp_path / "work"


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    path = tmp_path / "program"

    def write(script: str) -> None:
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)

    monkeypatch.setattr(programs, "find_program", lambda _: path)
    return write


def _monitor(interruption: Callable[[], MlipJobError | None] = lambda: None) -> Monitor:
    return Monitor(lambda _: None, lambda _: None, interruption, stall_timeout=60)


def test_the_input_names_the_data_and_is_published(kind: Kind, work: Path) -> None:
    """It is the same for the same settings, and names no directory of the host."""
    trainer = kind.open(work)
    trainer.begin(FIT, None)
    path = trainer.artefacts()["input.yaml"]
    text = path.read_text()
    assert yaml.safe_load(text)["data"]["filename"] == "dataset/train.gz"
    assert str(work) not in text
    again = kind.open(work)
    again.begin(FIT, None)
    assert path.read_text() == text
    assert not trainer.finished
    assert not trainer.linear_fit_due


def test_nothing_to_resume_before_the_fit(kind: Kind, work: Path, tmp_path: Path) -> None:
    trainer = kind.open(work)
    trainer.begin(FIT, None)
    (tmp_path / "copy").mkdir()
    assert trainer.snapshot(tmp_path / "copy") is None


def test_a_program_that_fails_is_a_training_error(
    kind: Kind, work: Path, program: Callable[[str], None]
) -> None:
    """With the exception and the end of the log, which is kept."""
    program("echo 'Traceback (most recent call last):'; echo 'ValueError: no such column'; exit 1")
    trainer = kind.open(work)
    trainer.begin(FIT, None)
    with pytest.raises(TrainingError, match=r"exit code 1\): ValueError: no such column") as caught:
        trainer.fit(_monitor())
    assert "last lines of" in caught.value.message
    assert "no such column" in (work / "train.log").read_text()


def test_an_exit_code_of_0_is_not_enough(
    kind: Kind, work: Path, program: Callable[[str], None]
) -> None:
    """Both programs may exit with 0 without a potential."""
    program("exit 0")
    trainer = kind.open(work)
    trainer.begin(FIT, None)
    with pytest.raises(TrainingError, match=r"failed \(exit code 0\)"):
        trainer.fit(_monitor())


def test_an_interruption_ends_the_program_and_is_raised(
    kind: Kind, work: Path, program: Callable[[str], None]
) -> None:
    program("sleep 600 & echo $! > child; wait")
    trainer = kind.open(work)
    trainer.begin(FIT, None)

    def interruption() -> MlipJobError | None:
        child = work / "child"
        return InterruptedRunError("stopped") if child.exists() and child.read_text() else None

    with pytest.raises(InterruptedRunError, match="stopped"):
        trainer.fit(_monitor(interruption))
    pid = (work / "child").read_text().strip()
    deadline = time.monotonic() + 30  # it has the signal, but a busy machine takes a moment
    while _lives(pid):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def _lives(pid: str) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


def test_an_incomplete_checkpoint_is_rejected(kind: Kind, work: Path, tmp_path: Path) -> None:
    """With its name and the missing files; nothing is moved."""
    staging = tmp_path / "staging"
    (staging / "metrics").mkdir(parents=True)
    with pytest.raises(IntegrityError, match=f"^checkpoint 3 has no {kind.missing}"):
        kind.open(work).restore(staging, "checkpoint 3", MIDDLE, ("Cu",))
    assert list(work.iterdir()) == []


def test_a_finished_fit_is_published_from_its_checkpoint(
    kind: Kind, work: Path, tmp_path: Path
) -> None:
    kind.finish(work)
    trainer = kind.open(work)
    trainer.begin(FIT, None)
    end = trainer.finish()
    assert trainer.finished
    expected = trainer.summary(None)
    assert expected.iterations
    staging, other = tmp_path / "staging", tmp_path / "other"
    for name, path in end.files.items():
        (staging / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, staging / name)
    other.mkdir()
    resumed = kind.open(other)
    resumed.restore(staging, "the end", end.position, ("Cu",))
    resumed.resume(FIT, None, end.position)
    assert resumed.finished
    assert resumed.summary(None) == expected
    assert resumed.left_out() == {}
    names = set(resumed.artefacts())
    assert names == set(trainer.artefacts())
    assert {"input.yaml", "train.log", "potential.yaml"} <= names
    assert resumed.potential.read_bytes() == trainer.potential.read_bytes()
