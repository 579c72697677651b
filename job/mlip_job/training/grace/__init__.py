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
    start_model = File("start_model.yaml")  # architecture of a parent, or of a fit that resumes
    parent_potential = File("parent_potential.yaml")

    MODEL = "model.yaml"
    CHECKPOINT = ("checkpoint.index", "checkpoint.data-00000-of-00001")
    """Names of the architecture and the coefficients, with which a later generation starts."""
    BEST = ".best_test_loss"  # the smallest loss on the second set since the last start
    EARLIER = ".earlier_best"  # that of the starts before

    @property
    def output(self) -> Path:
        """Folder of everything that gracemaker writes."""
        return self.directory / "seed" / str(self.seed)

    @property
    def potential(self) -> Path:
        """The potential for LAMMPS and python-ace; written at the end of the fit."""
        return self.output / "FS_model.yaml"

    @property
    def exported_again(self) -> Path:
        """The potential that was exported without a fit."""
        return self.output / "saved_model.yaml"

    @property
    def checkpoints(self) -> Path:
        """Folder of the states from which the fit can resume."""
        return self.output / "checkpoints"

    @property
    def model(self) -> Path:
        """The architecture, which gracemaker writes before the fit."""
        return self.output / self.MODEL

    def parent_checkpoint(self, name: str) -> Path:
        """Return a file of a parent's coefficients."""
        return self.directory / f"parent_{name}"

    def checkpoint(self, suffix: str = "") -> tuple[Path, Path]:
        """Return the files of a checkpoint: the newest one, or `BEST`, or `EARLIER`."""
        index, data = (
            name.replace("checkpoint", f"checkpoint{suffix}") for name in self.CHECKPOINT
        )
        return self.checkpoints / index, self.checkpoints / data

    def metrics(self, side: str) -> Path:
        """Return the metrics of ``train`` or ``test``, one line per iteration."""
        return self.output / f"{side}_metrics.yaml"
