"""Weights per config type, written into pacemaker's data frames."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from mlip_job.config.training import GroupWeights
from mlip_job.dataset.split import SIDES
from mlip_job.dataset.xyz import label
from mlip_job.errors import ConfigError, DataError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mlip_job.dataset.entry import Entries
    from mlip_job.dataset.split import Side, Split

_NEUTRAL = GroupWeights()


@dataclass(frozen=True)
class GroupWeighting:
    """Relative weights, scaled so that their mean is 1.

    Attributes
    ----------
    by_group
        The weights of the configuration; other config types weigh 1. Config types are compared as
        written to the extended XYZ files, so that these give the same weights.
    energy_scale
        1 / mean over structures.
    force_scale
        1 / mean over atoms.
    """

    by_group: Mapping[str, GroupWeights]
    energy_scale: float
    force_scale: float

    def energy(self, config_type: str | None) -> float:
        """Return the weight of the energy of one structure."""
        return self.energy_scale * _relative(self.by_group, label(config_type)).energy

    def forces(self, config_type: str | None) -> float:
        """Return the weight of the force on one atom."""
        return self.force_scale * _relative(self.by_group, label(config_type)).forces


@dataclass
class GroupSize:
    """Number of structures and atoms of a config type, per side."""

    structures: int = 0
    atoms: dict[Side, int] = field(default_factory=lambda: dict.fromkeys(SIDES, 0))


def weigh_groups(
    by_group: Mapping[str, GroupWeights], entries: Entries, split: Split
) -> GroupWeighting:
    """Scale the configured weights to the given rows.

    Raises
    ------
    DataError
        If no row is of a config type that the configuration names.
    ConfigError
        If every force of a side would weigh 0: pacemaker divides by their sum. Or if a config type
        can't be written into an extended XYZ file.
    """
    for name in by_group:
        if label(name) != name:
            raise ConfigError(
                f"training.weighting.by_group names {name!r}, which an extended XYZ file gives "
                f"back as {label(name)!r}",
                hint="rename that config_type in the database and in the configuration",
            )
    sizes = _sizes(entries, split)
    absent = sorted(by_group.keys() - sizes.keys())
    if absent:
        types = ", ".join(sorted(entries.config_types)) or "none at all"
        raise DataError(
            f"training.weighting.by_group names {', '.join(absent)}, but no row has that config "
            f"type; the rows have {types}",
            hint="dataset.config_type names the key_value_pair that holds the config type",
        )
    return scaled(by_group, sizes)


def scaled(
    by_group: Mapping[str, GroupWeights], sizes: Mapping[str | None, GroupSize]
) -> GroupWeighting:
    """Scale weights so that their mean is 1 over the structures and atoms of both sides.

    Raises
    ------
    ConfigError
        If every force of a side would weigh 0.
    """
    structures, energy, forces = 0, 0.0, dict.fromkeys(SIDES, 0.0)
    # In a fixed order: the last bit of a sum depends on it.
    for config_type in sorted(sizes, key=lambda name: (name is None, name or "")):
        size, weights = sizes[config_type], _relative(by_group, config_type)
        structures += size.structures
        energy += weights.energy * size.structures
        for side in SIDES:
            forces[side] += weights.forces * size.atoms[side]
    for side, total in forces.items():
        if total == 0:
            raise ConfigError(
                f"training.weighting.by_group gives every force of the {side} side the weight 0",
                hint="give one of its config types a positive forces weight",
            )
    atoms = sum(sum(size.atoms.values()) for size in sizes.values())
    return GroupWeighting(by_group, structures / energy, atoms / sum(forces.values()))


def _sizes(entries: Entries, split: Split) -> dict[str | None, GroupSize]:
    sizes: defaultdict[str | None, GroupSize] = defaultdict(GroupSize)
    atoms = entries.atoms
    for code, config_type in ((-1, None), *enumerate(entries.config_types)):
        of_type, size = entries.config_type_codes == code, sizes[label(config_type)]
        size.structures += int(np.count_nonzero(of_type))
        for side in SIDES:
            size.atoms[side] += int(atoms[of_type & split.on(side)].sum())
    return sizes


def _relative(by_group: Mapping[str, GroupWeights], config_type: str | None) -> GroupWeights:
    return _NEUTRAL if config_type is None else by_group.get(config_type, _NEUTRAL)
