"""Gracemaker fits the exported frames with our units and weights, and resumes; run for real."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from mlip_job.config import TrainingConfig
from mlip_job.errors import InterruptedRunError
from mlip_job.evaluation.potential import Potential
from mlip_job.training.grace.input import write_frame
from mlip_job.training.grace.metrics import read_curve
from mlip_job.training.grace.process import GraceWrapper
from mlip_job.training.trainer import FitData, Monitor
from tests.support import rattled

if TYPE_CHECKING:
    from pathlib import Path

    from ase import Atoms

    from mlip_job.errors import MlipJobError
    from mlip_job.training.trainer import Progress, Snapshot, Trainer

pytestmark = pytest.mark.pacemaker

# A basis that is traced in seconds of CPU.
TINY = {
    "n_rad_base": 4,
    "embedding_size": 2,
    "max_order": 2,
    "n_rad_max": [3, 2],
    "lmax": [2, 1],
    "Lmax": [None, 0],
    "max_sum_l": [None, None],
    "lmax_hist": [None, None],
}
REFERENCE = {"Cu": -0.2}
STRESS_WEIGHT = 1000.0
TRAINING = TrainingConfig(
    cutoff=4.5,
    energy_weight=100,
    force_weight=10,
    seed=7,
    max_iter=16,
    overrides={"potential": {"kwargs": TINY}},
)
DATA = FitData(
    elements=("Cu",),
    reference_energies=REFERENCE,
    structures=10,
    atoms=40,
    train=("train.pckl.gzip",),
    second=("validation.pckl.gzip",),
    validation=frozenset({9, 10}),
)


@dataclass(frozen=True)
class _Structure:
    row_id: int
    atoms: Atoms
    energy: float
    forces: Any
    stress: Any


def _structures() -> list[_Structure]:
    """Return labelled structures; one has no stress, so only its energy and forces count."""
    structures = []
    for number, atoms in enumerate(rattled(10, seed=2), start=1):
        energy, forces = atoms.get_potential_energy(), atoms.get_forces()
        stress = None if number == 8 else atoms.get_stress()
        atoms.calc = None
        structures.append(_Structure(number, atoms, energy, forces, stress))
    return structures


def _begin(directory: Path) -> GraceWrapper:
    directory.mkdir()
    structures = _structures()
    train, second = (directory / name for name in (*DATA.train, *DATA.second))
    assert write_frame(structures[:8], REFERENCE, train, stress=True) == 7
    assert write_frame(structures[8:], REFERENCE, second, stress=True) == 2
    return GraceWrapper(TRAINING, directory, stress_weight=STRESS_WEIGHT)


class _Watch:
    """Stops the fit after its first checkpoint, if requested."""

    def __init__(self, trainer: Trainer, checkpoint: Path | None = None) -> None:
        self.taken: Snapshot | None = None
        self.points: list[int] = []
        self.phases: set[str] = set()
        self._trainer = trainer
        self._checkpoint = checkpoint

    def monitor(self) -> Monitor:
        return Monitor(self._see, lambda _: None, self._stop, stall_timeout=1800)

    def _see(self, progress: Progress) -> None:
        assert progress.second_set == "validation"
        self.phases.add(progress.phase)
        if progress.point is not None:
            self.points.append(progress.point.iteration)
        if self._checkpoint is not None and self.taken is None:
            self.taken = self._trainer.snapshot(self._checkpoint)

    def _stop(self) -> MlipJobError | None:
        return InterruptedRunError("stopped") if self.taken is not None else None


def _errors(structures: list[_Structure], calculator: Any) -> tuple[float, float, float]:
    """Return the RMSE of energies per atom, force components and stress components."""
    energy, force, stress = [], [], []
    for each in structures:
        atoms = each.atoms.copy()
        atoms.calc = calculator
        expected = each.energy - REFERENCE["Cu"] * len(atoms)
        energy.append((atoms.get_potential_energy() - expected) / len(atoms))
        force.append((atoms.get_forces() - each.forces).ravel())
        if each.stress is not None:
            stress.append(atoms.get_stress() - each.stress)
    found = (math.sqrt(np.mean(np.square(errors))) for errors in (energy, force, stress))
    return next(found), next(found), next(found)


def test_a_fit_is_stopped_resumed_elsewhere_and_has_the_errors_of_its_metrics(
    tmp_path: Path,
) -> None:
    """The loss is ours; the C++ calculator of the exported potential reproduces the errors."""
    first = _begin(tmp_path / "first")
    first.begin(DATA, None)
    (tmp_path / "checkpoint").mkdir()
    watch = _Watch(first, tmp_path / "checkpoint")
    with pytest.raises(InterruptedRunError):
        first.fit(watch.monitor())
    assert watch.taken is not None
    assert watch.taken.position.iteration == 10
    assert {"starting", "building_graph", "fitting"} <= watch.phases

    # The registry stores the files by name; another machine gets them in one folder.
    staging = tmp_path / "staging"
    for name, path in watch.taken.files.items():
        (staging / name).parent.mkdir(parents=True, exist_ok=True)
        path.rename(staging / name)
    second = _begin(tmp_path / "second")
    second.restore(staging, "checkpoint 1", watch.taken.position, ("Cu",))
    second.resume(DATA, None, watch.taken.position)
    assert not second.finished
    resumed = _Watch(second)
    second.fit(resumed.monitor())
    assert min(resumed.points) == 11
    end = second.finish()
    assert (end.position.iteration, end.position.finished) == (16, True)

    summary = second.summary(None)
    assert [point.iteration for point in summary.train_curve] == list(range(1, 17))
    assert summary.iterations == 16
    assert summary.timings_s["building_graph"] > 0

    rows, _ = read_curve(second.files.metrics("train"), "train")
    number = summary.best.iteration if summary.best is not None else 16
    row = rows[number - 1]
    structures = _structures()[:8]
    energy, force, stress = _errors(structures, Potential(second.exported).calculator)
    assert row.rmse_energy == pytest.approx(energy, rel=1e-3)
    assert row.rmse_force == pytest.approx(force, rel=1e-3)
    loss = 100 * energy**2 + 10 * 3 * force**2 + STRESS_WEIGHT * stress**2
    assert row.loss == pytest.approx(loss, rel=1e-3)
    assert summary.train is not None
    assert summary.train.rmse_energy_mev_per_atom == pytest.approx(1000 * energy, rel=1e-3)

    active_set = second.write_active_set(DATA.train, "linear")
    graded = Potential(second.exported, active_set)
    inside = graded.predict(structures[0].atoms, "a training structure").grade
    assert inside is not None
    assert inside < 1.1
    squeezed = structures[0].atoms.copy()
    squeezed.set_cell(0.8 * squeezed.cell, scale_atoms=True)
    outside = graded.predict(squeezed, "a squeezed one").grade
    assert outside is not None
    assert outside > inside
