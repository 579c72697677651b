"""How much there is to fit to: of a dataset, or of a database before there is one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mlip_job.training.size import DataSize, choose_size

if TYPE_CHECKING:
    from mlip_job.config import TrainingConfig
    from mlip_job.dataset.record import DatasetRecord
    from mlip_job.dataset.survey import Sample
    from mlip_job.training.size import BasisSize


def data_size(record: DatasetRecord) -> DataSize:
    """Return how much a training set has."""
    atoms = record.atoms
    if record.force_components is None:
        forces = 3 * atoms.train
    else:
        forces = round(record.force_components * atoms.train / (atoms.train + atoms.test))
    return DataSize(energies=record.counts.train, forces=forces, elements=len(record.elements))


def expected_size(training: TrainingConfig, sample: Sample) -> BasisSize | None:
    """Estimate the basis of a fit from nothing to all rows; None where there are none."""
    if not sample.elements:
        return None
    share = 1 - training.test_fraction
    data = DataSize(
        energies=round(share * sample.selected),
        forces=round(share * sample.force_components),
        elements=len(sample.elements),
    )
    return choose_size(training, data, parent=None)
