"""Base class of models that cross a boundary, and models of metrics."""

from __future__ import annotations

from pydantic import BaseModel


class Frozen(BaseModel, frozen=True, extra="forbid"):
    """A model that does not change and has no other fields."""


class Record(Frozen):
    """A model that is stored as one object."""

    def to_json(self) -> bytes:
        """Return the text that is stored."""
        return (self.model_dump_json(indent=2) + "\n").encode()


class Errors(Frozen):
    """Errors of predictions for a set of structures; forces are per component. None is not known.

    Of pacemaker's tables, a learning curve, an evaluation, a manifest or a page alike.
    """

    rmse_energy_mev_per_atom: float | None = None
    rmse_force_mev_per_angstrom: float | None = None


class FullErrors(Errors):
    """Errors with mean absolute and largest ones; the loss is the trainer's."""

    loss: float | None = None
    mae_energy_mev_per_atom: float | None = None
    mae_force_mev_per_angstrom: float | None = None
    max_energy_mev_per_atom: float | None = None
    max_force_mev_per_angstrom: float | None = None

    def rmse(self) -> Errors:
        """Return the RMSE alone."""
        return Errors(
            rmse_energy_mev_per_atom=self.rmse_energy_mev_per_atom,
            rmse_force_mev_per_angstrom=self.rmse_force_mev_per_angstrom,
        )
