"""Weights per config type, written into pacemaker's data frames."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from mlip_job.config.training import GroupWeights
from mlip_job.dataset.split import SIDES
from mlip_job.errors import ConfigError, DataError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mlip_job.dataset.entry import Entries
    from mlip_job.dataset.split import Split

_NEUTRAL = GroupWeights()


@dataclass(frozen=True)
class GroupWeighting:
    """Relative weights, scaled so that their mean is 1.

    Attributes
    ----------
    by_group
        The weights of the configuration; other config types weigh 1.
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
        return self.energy_scale * _relative(self.by_group, config_type).energy

    def forces(self, config_type: str | None) -> float:
        """Return the weight of the force on one atom."""
        return self.force_scale * _relative(self.by_group, config_type).forces


def weigh_groups(
    by_group: Mapping[str, GroupWeights], entries: Entries, split: Split
) -> GroupWeighting:
    """Scale the configured weights to the rows at hand.

    Raises
    ------
    DataError
        If no row is of a config type that the configuration names.
    ConfigError
        If every force of a side would weigh 0: pacemaker divides by their sum.
    """
    absent = sorted(by_group.keys() - set(entries.config_types))
    if absent:
        types = ", ".join(sorted(entries.config_types)) or "none at all"
        raise DataError(
            f"training.weighting.by_group names {', '.join(absent)}, but no row has that config "
            f"type; the rows have {types}",
            hint="dataset.config_type names the key_value_pair that holds the config type",
        )
    energy, forces, atoms = 0.0, {"train": 0.0, "test": 0.0}, entries.atoms
    for code, config_type in enumerate((*entries.config_types, None)):
        number = code if config_type is not None else -1
        weights = _relative(by_group, config_type)
        of_type = entries.config_type_codes == number
        energy += weights.energy * int(np.count_nonzero(of_type))
        for side in SIDES:
            forces[side] += weights.forces * int(atoms[of_type & split.on(side)].sum())
    for name, total in forces.items():
        if total == 0:
            raise ConfigError(
                f"training.weighting.by_group gives every force of the {name} side the weight 0",
                hint="give one of its config types a positive forces weight",
            )
    return GroupWeighting(by_group, len(entries) / energy, int(atoms.sum()) / sum(forces.values()))


def _relative(by_group: Mapping[str, GroupWeights], config_type: str | None) -> GroupWeights:
    return _NEUTRAL if config_type is None else by_group.get(config_type, _NEUTRAL)
