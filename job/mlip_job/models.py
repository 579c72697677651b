"""Base classes of models that cross a boundary, and the model of errors."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import BaseModel, Field, model_validator

T = TypeVar("T")
Three = tuple[T, T, T]
"""Something of energies, forces and stresses, in this order everywhere."""


class Frozen(BaseModel, frozen=True, extra="forbid"):
    """A model that does not change and has no other fields."""


class Record(Frozen):
    """A model that is stored as one object."""

    def to_json(self) -> bytes:
        """Return the text that is stored."""
        return (self.model_dump_json(indent=2) + "\n").encode()


class VersionedRecord(Record):
    """A record of schema version 2: manifest, checkpoint, report. Version 1 is read too.

    ``RENAMED`` has the keys of version 1 that have another name in version 2, at any depth.
    """

    RENAMED: ClassVar[dict[str, str]] = {"to_pacemaker_s": "to_trainer_s"}

    schema_version: Literal[2] = 2

    @model_validator(mode="before")
    @classmethod
    def _upgrade(cls, document: Any) -> Any:
        version = document.get("schema_version", 2) if isinstance(document, dict) else 2
        if version == 1:
            try:
                return cls.from_version_1(document) | {"schema_version": 2}
            except (AttributeError, KeyError, TypeError):
                raise ValueError("not a document of schema version 1") from None
        if version != 2:  # noqa: PLR2004 - the version of this class
            raise ValueError(
                f"schema version {version!r}, but this version of mlip-job reads 1 and 2: "
                "upgrade mlip-job"
            )
        return document

    @classmethod
    def from_version_1(cls, document: dict[str, Any]) -> dict[str, Any]:
        """Return a document of version 1 with the keys of version 2."""

        def renamed(value: Any) -> Any:
            if isinstance(value, dict):
                return {cls.RENAMED.get(key, key): renamed(each) for key, each in value.items()}
            return [renamed(each) for each in value] if isinstance(value, list) else value

        found: dict[str, Any] = renamed(document)
        return found


def is_unknown(value: float | None) -> bool:
    """Return whether a field is left out of JSON: unknown to most records."""
    return value is None


Optional = Annotated[float | None, Field(exclude_if=is_unknown)]


class Errors(Frozen):
    """Errors of predictions for a set of structures; forces and stresses are per component.

    The same model for a trainer's tables, a learning curve, an evaluation, a manifest and a page.
    The maximum is that of the absolute errors, the loss is the trainer's. None is unknown; JSON has
    no key for it, except for the RMSE of energy and force.
    """

    rmse_energy_mev_per_atom: float | None = None
    rmse_force_mev_per_angstrom: float | None = None
    rmse_stress_gpa: Optional = None
    mae_energy_mev_per_atom: Optional = None
    mae_force_mev_per_angstrom: Optional = None
    mae_stress_gpa: Optional = None
    max_energy_mev_per_atom: Optional = None
    max_force_mev_per_angstrom: Optional = None
    max_stress_gpa: Optional = None
    loss: Optional = None

    @property
    def rmse(self) -> Three[float | None]:
        """By quantity."""
        return (
            self.rmse_energy_mev_per_atom,
            self.rmse_force_mev_per_angstrom,
            self.rmse_stress_gpa,
        )

    @property
    def mae(self) -> Three[float | None]:
        """By quantity."""
        return self.mae_energy_mev_per_atom, self.mae_force_mev_per_angstrom, self.mae_stress_gpa

    @property
    def max(self) -> Three[float | None]:
        """By quantity."""
        return self.max_energy_mev_per_atom, self.max_force_mev_per_angstrom, self.max_stress_gpa
