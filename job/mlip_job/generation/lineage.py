"""Lineage of a generation, and differences between its configuration and an earlier one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from mlip_job.config.removed import without_defaults
from mlip_job.errors import ConfigError, ConflictError
from mlip_job.paths import generation_name
from mlip_job.training.pacemaker.basis import check_growth_budget, potential_section
from mlip_job.training.size import DataSize, choose_size

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from mlip_job.config import JobConfig, TrainingConfig
    from mlip_job.dataset.record import DatasetRecord
    from mlip_job.dataset.survey import Sample
    from mlip_job.registry import Manifest, Registry
    from mlip_job.training.size import BasisSize

_HINT = "train it as a new generation (--generation next)"


@dataclass(frozen=True)
class Lineage:
    """The published generations that a new one builds on.

    Attributes
    ----------
    dataset
        The nearest earlier generation. Its split and reference energies are inherited, so that
        test structures stay in the test set even if the fit starts from scratch.
    potential
        The parent, whose potential the fit starts from; None for a linear fit.
    """

    dataset: Manifest | None
    potential: Manifest | None

    @property
    def functions(self) -> int | None:
        """Functions per element of the parent's potential."""
        if self.potential is None:
            return None
        return int(self.potential.basis["functions"]["number_of_functions_per_element"])


def find_lineage(registry: Registry, training: TrainingConfig, generation: int) -> Lineage:
    """Return the lineage of `generation`.

    Raises
    ------
    ConfigError
        If the parent is not published or not an earlier generation.
    """
    earlier = [n for n in registry.numbers() if n < generation]
    start = None if training.is_linear else _start_number(training.start_from, generation)
    if start is not None and start >= generation:
        raise ConfigError(
            f"training.start_from is {start}: {generation_name(generation)} can only start from "
            "an earlier generation"
        )
    if start is not None and start not in earlier:
        known = ", ".join(map(generation_name, earlier)) or "none"
        raise ConfigError(
            f"{generation_name(generation)} is to start from {generation_name(start)}, which is "
            f"not published (published before it: {known})",
            hint="publish that one first, or set training.start_from to one that is, or to none",
        )
    return Lineage(
        dataset=registry.get(earlier[-1]) if earlier else None,
        potential=registry.get(start) if start is not None else None,
    )


def start_mode(
    training: TrainingConfig, elements: Sequence[str], parent: Manifest
) -> Literal["continue", "extend"]:
    """Decide how a fit can start from a potential: with the same basis, or growing it.

    Raises
    ------
    ConfigError
        If the parent's basis is not a subset of the new one; the message names each difference.
    """
    basis = potential_section(training, elements)
    if basis == parent.basis:
        return "continue"
    obstacles = list(_obstacles(basis, parent.basis))
    if obstacles:
        raise ConfigError(
            f"the fit can't start from {generation_name(parent.generation)}, whose basis is no "
            f"part of the new one: {'; '.join(obstacles)}",
            hint="undo that, or set training.start_from: none",
        )
    if set(basis["elements"]) != set(parent.basis["elements"]):
        check_growth_budget(training, len(basis["elements"]))
    return "extend"


def _start_number(start_from: str | int, generation: int) -> int | None:
    if start_from == "none" or (start_from == "previous" and generation == 1):
        return None
    return generation - 1 if start_from == "previous" else int(start_from)


def _obstacles(basis: Mapping[str, Any], parent: Mapping[str, Any]) -> Iterator[str]:
    """Name the settings that prevent a basis from extending its parent's."""
    if lost := sorted(set(parent["elements"]) - set(basis["elements"])):
        yield f"the data no longer has {', '.join(lost)}"
    old, new = (b["bonds"]["ALL"]["rcut"] for b in (parent, basis))
    if old != new:
        yield f"the cutoff is {new:g} Å instead of {old:g} Å"
    elif basis["bonds"] != parent["bonds"]:
        yield "the radial basis (potential.bonds) differs"
    if basis["embeddings"] != parent["embeddings"]:
        yield "the embedding (training.ndensity) differs"
    old, new = (b["functions"]["number_of_functions_per_element"] for b in (parent, basis))
    if new < old:
        yield f"functions_per_element is {new}, less than {old}"


# -- the size of the data ------------------------------------------------------------------------


def data_size(record: DatasetRecord) -> DataSize:
    """Return the number of labels of a training set."""
    atoms = record.atoms
    if record.force_components is None:
        forces = 3 * atoms.train
    else:
        forces = round(record.force_components * atoms.train / (atoms.train + atoms.test))
    return DataSize(energies=record.counts.train, forces=forces, elements=len(record.elements))


def expected_size(training: TrainingConfig, sample: Sample) -> BasisSize | None:
    """Estimate the basis of a fit from scratch to all rows; None without rows."""
    if not sample.elements:
        return None
    share = 1 - training.test_fraction
    data = DataSize(
        energies=round(share * sample.selected),
        forces=round(share * sample.force_components),
        elements=len(sample.elements),
    )
    return choose_size(training, data, parent=None)


# -- differences ---------------------------------------------------------------------------------


def differences(
    old: Mapping[str, Any], new: Mapping[str, Any], prefix: str
) -> Iterator[tuple[str, Any, Any]]:
    """Yield key, old and new value of each setting that differs between two configurations."""
    old = without_defaults(old, prefix)
    for key in sorted({*old, *new}):
        before, after = old.get(key), new.get(key)
        if before != after and key != "require_gpu":
            yield f"{prefix}.{key}", before, after


def confirm_config(published: Manifest, config: JobConfig) -> None:
    """Raise a ConflictError naming each setting that differs from the published generation's.

    Comparing hashes is not enough, because later versions of the program add settings.
    """
    asked = config.model_dump(mode="json")
    found = [
        f"  {key}: {old!r} published, {new!r} asked"
        for section in ("dataset", "training")
        for key, old, new in differences(published.config.get(section, {}), asked[section], section)
    ]
    if found:
        raise ConflictError(
            f"{generation_name(published.generation)} of {published.family} is published with "
            "another configuration:\n" + "\n".join(found),
            hint=_HINT,
        )


def confirm_dataset(published: Manifest, record: DatasetRecord) -> None:
    """Raise a ConflictError if the database now gives another dataset."""
    then, now = published.dataset, record.counts
    if then.id != record.id:
        raise ConflictError(
            f"{generation_name(published.generation)} of {published.family} is published with "
            f"another dataset: {then.id} ({then.train} train, {then.test} test); the database now "
            f"yields {record.id} ({now.train} train, {now.test} test)",
            hint=_HINT,
        )
