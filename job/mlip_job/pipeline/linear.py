"""The linear fit that a fit from nothing begins with."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from mlip_job.naming import WorkFiles
from mlip_job.runtime.environment import usable_cores
from mlip_job.training.linear import (
    LinearProgress,
    LinearStart,
    LinearTask,
    run_linear_fit,
    undetermined,
)
from mlip_job.training.pacemaker.basis import potential_section

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mlip_job.config import TrainingConfig
    from mlip_job.dataset.record import DatasetRecord
    from mlip_job.pipeline.fit_data import FitData
    from mlip_job.pipeline.stages import Observer

_LINE_INTERVAL_SECONDS = 10.0


def fit_linearly(
    training: TrainingConfig,
    files: WorkFiles,
    record: DatasetRecord,
    given: FitData,
    content: Mapping[str, Any],
    observer: Observer,
) -> LinearStart:
    """Make the potential that input.yaml, whose content is given, starts from.

    The size of its basis is decided. Where no iteration follows, it is what will be published;
    then the log says how it was made.
    """
    finished = training.is_linear
    potential = files.output_potential if finished else files.linear_start
    loss = content["fit"]["loss"]
    structures = record.counts.train - len(given.validation)
    observer.message(f"linear fit to {structures} structures")
    made = run_linear_fit(
        LinearTask(
            section=potential_section(training, record.elements),
            kappa=float(loss["kappa"]),
            l1=float(loss["L1_coeffs"]),
            l2=float(loss["L2_coeffs"]),
            weighting=content["fit"].get("weighting"),
            train=WorkFiles.in_dataset(given.train),
            test=WorkFiles.in_dataset(given.second),
            held_out=given.held_out,
            directory=str(files.directory),
            potential=potential.name,
            finished=finished,
            repulsion=content["fit"].get("repulsion") == "auto",
            reference_energies=content["data"]["reference_energy"],
            seed=training.seed,
            resampled=training.start_noise > 0,
            atoms=record.atoms.train,
            cores=usable_cores(),
        ),
        _Forecast(record.counts.train, record.atoms.train, observer),
    )
    said = (
        f"linear fit of {made.functions} coefficients to {made.structures} structures: "
        f"loss {made.loss:.3g}"
    )
    observer.message(said)
    for note in undetermined(made):
        observer.message(f"note: {note}")
    if finished:
        files.train_log.write_text(f"{said}\n", encoding="utf-8")
    return made


class _Forecast:
    """Tells now and then how far the fit is, and how long it will take."""

    def __init__(self, structures: int, atoms: int, observer: Observer) -> None:
        self._structures = structures
        self._atoms = atoms
        self._observer = observer
        self._started = self._last_line = time.monotonic()

    def __call__(self, done: LinearProgress) -> None:
        now = time.monotonic()
        finished = done.structures >= self._structures
        if now - self._last_line < _LINE_INTERVAL_SECONDS or finished:
            return
        self._last_line = now
        left = (now - self._started) * max(0.0, self._atoms / done.atoms - 1)
        self._observer.message(
            f"linear fit: {done.structures} of {self._structures} structures, "
            f"about {left:.0f} s left"
        )
