"""Base class of models that cross a boundary, and models of metrics."""

from __future__ import annotations

from pydantic import BaseModel, Field


class Frozen(BaseModel, frozen=True, extra="forbid"):
    """A model that does not change and has no other fields."""


class Record(Frozen):
    """A model that is stored as one object."""

    def to_json(self) -> bytes:
        """Return the text that is stored."""
        return (self.model_dump_json(indent=2) + "\n").encode()


def is_unknown(value: float | None) -> bool:
    """Return whether a field is left out of JSON: a later key, unknown to most records."""
    return value is None


class Errors(Frozen):
    """Errors of predictions for a set of structures; forces and stresses are per component.

    Of a trainer's tables, a learning curve, an evaluation, a manifest or a page alike. None is not
    known; JSON has no key for an unknown error of stresses.
    """

    rmse_energy_mev_per_atom: float | None = None
    rmse_force_mev_per_angstrom: float | None = None
    rmse_stress_gpa: float | None = Field(None, exclude_if=is_unknown)


class FullErrors(Errors):
    """Errors with mean absolute and largest ones; the loss is the trainer's."""

    loss: float | None = None
    mae_energy_mev_per_atom: float | None = None
    mae_force_mev_per_angstrom: float | None = None
    mae_stress_gpa: float | None = Field(None, exclude_if=is_unknown)
    max_energy_mev_per_atom: float | None = None
    max_force_mev_per_angstrom: float | None = None
    max_stress_gpa: float | None = Field(None, exclude_if=is_unknown)

    @property
    def by_kind(self) -> dict[str, tuple[float | None, float | None, float | None]]:
        """RMSE, MAE and largest error of energies, forces and stresses."""
        return {
            "rmse": (
                self.rmse_energy_mev_per_atom,
                self.rmse_force_mev_per_angstrom,
                self.rmse_stress_gpa,
            ),
            "mae": (
                self.mae_energy_mev_per_atom,
                self.mae_force_mev_per_angstrom,
                self.mae_stress_gpa,
            ),
            "max": (
                self.max_energy_mev_per_atom,
                self.max_force_mev_per_angstrom,
                self.max_stress_gpa,
            ),
        }

    def rmse(self) -> Errors:
        """Return the RMSE alone."""
        return Errors(
            rmse_energy_mev_per_atom=self.rmse_energy_mev_per_atom,
            rmse_force_mev_per_angstrom=self.rmse_force_mev_per_angstrom,
            rmse_stress_gpa=self.rmse_stress_gpa,
        )
