"""``dataset.json``: content, origin and rejected rows of a dataset."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Literal, Self

from pydantic import ValidationError

from mlip_job.config.training import GroupWeights
from mlip_job.models import Frozen
from mlip_job.store.base import Sha256, StoredName, unreadable

if TYPE_CHECKING:
    from collections.abc import Mapping


ReferenceSource = Literal[
    "isolated_atom", "least_squares", "undetermined", "inherited", "configured"
]
"""Origin of a reference energy; undetermined are least squares over compositions that can't
tell elements apart, also where they were inherited."""

FORMAT_VERSION = 2
"""Part of every dataset's identity; increase it to give the same content another one."""


class Counts(Frozen):
    """Numbers of rows; selected = train + test + rejected + reference_atoms."""

    selected: int
    accepted: int
    train: int
    test: int
    rejected: int
    reference_atoms: int


class SideCounts(Frozen):
    """One number for each side."""

    train: int
    test: int


class ElementCounts(Frozen):
    """Numbers of structures with an element, and of its atoms."""

    structures: int
    atoms: int


class Ranges(Frozen):
    """Extremes over both sides."""

    min_energy_corrected_ev_per_atom: float
    max_energy_corrected_ev_per_atom: float
    max_force_ev_per_angstrom: float
    min_distance_angstrom: float


class SplitRecord(Frozen):
    """Settings of the split: by `key`, or else by `seed`, `test_fraction` and `group_by`."""

    seed: int
    test_fraction: float
    wanted_test: int
    inherited_train: int
    inherited_test: int
    group_by: str | None
    key: str | None = None


class RejectedRows(Frozen):
    """The rows that were rejected for one reason."""

    count: int
    rows: tuple[int, ...]


class EnergyOrigin(Frozen):
    """Number of accepted rows by type of energy."""

    free_energy: int
    energy: int


class SideNames(Frozen):
    """Names of the data frame files of each side, in order."""

    train: tuple[StoredName, ...]
    test: tuple[StoredName, ...]


class ConfigTypes(Frozen):
    """Number of structures of each config type, per side."""

    train: dict[str, int]
    test: dict[str, int]


class FileRecord(Frozen):
    """Hash and size (bytes) of a file."""

    sha256: Sha256
    size: int


class Versions(Frozen):
    """Versions of the packages that wrote the files."""

    mlip_job: str
    ase: str
    numpy: str
    pandas: str


class SelectedRows(Frozen):
    """State of the selected rows: a hash of all ids and times of writing.

    Count, largest id and newest time (ASE's unit, years since 2000) are for people.
    """

    count: int
    max_id: int
    max_mtime: float
    sha256: str


class DatasetRecord(Frozen):
    """The record of a dataset, written last: a dataset exists if its record does.

    Cutoff in Å, reference energies in eV per element (inherited ones stay even when no structure
    holds the element). `database` has no secrets, `created` is UTC in ISO 8601. `elements` are
    those of the training side, sorted. `force_components` of both sides are those above 1 meV/Å in
    size; None in records of older versions. `partly_periodic` rows got vacuum. `files` are all
    files of the dataset but this one.
    """

    schema_version: Literal[1] = 1
    id: StoredName
    created: str
    database: str
    selection: str
    cutoff: float
    elements: tuple[str, ...]
    counts: Counts
    atoms: SideCounts
    per_element: dict[str, ElementCounts]
    ranges: Ranges
    force_components: int | None = None
    partly_periodic: int = 0
    config_types: ConfigTypes
    split: SplitRecord
    rejections: dict[str, RejectedRows]
    reference_energies: dict[str, float]
    reference_energy_sources: dict[str, ReferenceSource]
    energy_from: EnergyOrigin
    weights: dict[str, GroupWeights] | None
    notes: tuple[str, ...]
    frames: SideNames
    files: dict[StoredName, FileRecord]
    versions: Versions

    def to_json(self) -> str:
        """Return the text of ``dataset.json``."""
        return self.model_dump_json(indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes, *, key: str) -> Self:
        """Read ``dataset.json``, which is stored as `key`.

        Raise `IntegrityError` if it is damaged or of another schema version.
        """
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            raise unreadable(f"{key} is no record of a dataset", error) from None


def dataset_id(
    contents: Mapping[str, str],
    reference_energies: Mapping[str, float],
    weights: Mapping[str, GroupWeights] | None,
) -> str:
    """Return the identity of a dataset: the same rows and settings give the same, anywhere.

    `contents` are hashes of the train and test side (`files.ContentHash`) and of the
    *uncompressed* index: they don't depend on a compressor or a formatter of numbers.
    """
    identity: dict[str, object] = {
        "format": FORMAT_VERSION,
        "contents": dict(contents),
        "reference_energies": dict(reference_energies),
        "weights": {name: weight.model_dump() for name, weight in (weights or {}).items()},
    }
    text = json.dumps(identity, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]
