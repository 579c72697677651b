"""GRACE/FS by gracemaker: the files of its fit in a work directory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from mlip_job.paths import File, WorkFiles

if TYPE_CHECKING:
    from pathlib import Path


@dataclass(frozen=True)
class GraceFiles(WorkFiles):
    """The files of one attempt, under gracemaker's own names; it works in ``seed/<seed>/``."""

    seed: int

    input_yaml = File("input.yaml")
    active_set = File("potential.asi")

    @property
    def output(self) -> Path:
        """Folder of everything that gracemaker writes."""
        return self.directory / "seed" / str(self.seed)

    @property
    def potential(self) -> Path:
        """The potential for LAMMPS and python-ace; written at the end of the fit."""
        return self.output / "FS_model.yaml"

    @property
    def checkpoints(self) -> Path:
        """Folder of the states from which the fit can resume."""
        return self.output / "checkpoints"

    @property
    def training_set(self) -> Path:
        """Gracemaker's copy of the training set, of which active sets are made."""
        return self.output / "training_set.pkl.gz"

    def metrics(self, side: str) -> Path:
        """Return the metrics of ``train`` or ``test``, one line per iteration."""
        return self.output / f"{side}_metrics.yaml"
