"""Pacemaker: the files of its fit in a work directory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from mlip_job.paths import File, WorkFiles

if TYPE_CHECKING:
    from pathlib import Path

TABLES = ("metrics", "test_metrics", "cycle_metrics", "test_cycle_metrics")


@dataclass(frozen=True)
class PacemakerFiles(WorkFiles):
    """The files of one attempt, under pacemaker's own names."""

    input_yaml = File("input.yaml")
    parent_potential = File("parent_potential.yaml")  # where the fit starts from
    linear_start = File("linear_start.yaml")  # the linear fit that pacemaker starts from
    checkpoint_potential = File("checkpoint_potential.yaml")  # where a resumed fit starts from
    interim_potential = File("interim_potential_0.yaml")  # of the first cycle's last iteration
    output_potential = File("output_potential.yaml")  # written at the end of the fit
    early_stopping = File("early_stopping.json")  # settings of the callback within pacemaker
    best = File("best.json")  # the best potential so far, and the name of its file
    left_out = File("left_out_by_weighting.json")  # rows that the weighting excluded from the fit
    yace = File("potential.yace")  # the potential for LAMMPS
    active_set = File("potential.asi")
    curves = File("metrics")  # folder: metrics tables of the whole fit, over all attempts
    history = File("history")  # folder: those of the fit before pacemaker's latest start

    def table(self, name: str) -> Path:
        """Return a metrics table as pacemaker writes it: of the current start."""
        return self.directory / f"{name}.txt"

    def ladder_potential(self, step: int) -> Path:
        """Return the potential that pacemaker writes after a step of a ladder."""
        return self.directory / f"interim_potential_ladder_step_{step}.yaml"

    def segment_input(self, number: int) -> Path:
        """Return the input file of the n-th segment of a fit that resumes from a checkpoint."""
        return self.directory / f"resume-{number}.yaml"

    def segment_inputs(self) -> list[Path]:
        """Return the existing ones of these input files."""
        return sorted(self.directory.glob("resume-*.yaml"))

    def records(self) -> list[Path]:
        """Return the existing records of the fit, without potentials."""
        return [path for path in (self.left_out, self.early_stopping, self.best) if path.exists()]

    def of_fit(self) -> list[Path]:
        """Return the files that describe a fit, apart from its potential, log and tables."""
        best = sorted(self.directory.glob("best_potential_*.yaml"))
        return [*self.records(), *self.segment_inputs(), *best]

    def tables(self) -> dict[str, Path]:
        """Return the metrics tables of the whole fit by their published names."""
        return {f"metrics/{path.name}": path for path in sorted(self.curves.glob("*.txt"))}
