"""Detect the purpose of key_value_pairs: trajectory, config type or existing split."""

from __future__ import annotations

import math
import re
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

_GROUPS = re.compile(
    r"traj|group|^run|run_?id|parent|relax|md_?id|series|source|system|material|mp_?id"
)
_TYPES = re.compile(r"^config_?type$|^structure_?type$|^type$|^category$|^kind$|^config$")
_FRAMES = re.compile(r"^(frame|image|step|ionic_step|snapshot|timestep|md_step)(_?(id|index|no))?$")
_SPLITS = re.compile(r"split|^set$|subset|side|partition|fold|data_?set")
_SIDES = frozenset(("train", "test"))
_MOST_TYPES = 50
_OFTEN = 0.5  # share of the rows that have a key
_REPEATED = 1.5  # rows with the same value


@dataclass(frozen=True)
class KeyProposal:
    """Settings of ``dataset`` that a database suggests.

    Attributes
    ----------
    values
        By name: ``group_by``, ``config_type``, ``split_key``; only those that were found.
    remarks
        Reasons, or what the user should check, by the same names.
    """

    values: Mapping[str, str] = field(default_factory=dict)
    remarks: Mapping[str, str] = field(default_factory=dict)


def propose_keys(samples: Sequence[Sequence[Mapping[str, Any]]]) -> KeyProposal:
    """Find keys for trajectories, types of structures, or the sides of a split.

    Parameters
    ----------
    samples
        The key_value_pairs of some rows: of consecutive ones, which show that a value repeats, and
        of others from all over the database, which show that there are several.
    """
    rows = [pairs for sample in samples for pairs in sample]
    known = Counter(key for pairs in rows for key in pairs)
    keys = [key for key, count in known.most_common() if count >= _OFTEN * len(rows)]
    values: dict[str, str] = {}
    remarks: dict[str, str] = {}
    _find_split(keys, rows, values, remarks)
    _find_type(keys, rows, values, remarks)
    _find_group(keys, samples, values, remarks)
    return KeyProposal(values, remarks)


def _find_split(
    keys: Iterable[str],
    rows: Sequence[Mapping[str, Any]],
    values: dict[str, str],
    remarks: dict[str, str],
) -> None:
    for key in keys:
        found = {str(pairs.get(key, "")) for pairs in rows}
        if found == _SIDES:
            values["split_key"] = key
            remarks["split_key"] = (
                f"Every row looked at has {key}, train or test: a split by others."
            )
            return
        if _SPLITS.search(key) and {side.lower() for side in found} & _SIDES:
            remarks["split_key"] = (
                f"The key {key} has the values {_some(found)}: where all rows say train or test, "
                "name it here."
            )


def _find_type(
    keys: Iterable[str],
    rows: Sequence[Mapping[str, Any]],
    values: dict[str, str],
    remarks: dict[str, str],
) -> None:
    for key in sorted(filter(_TYPES.search, keys), key=lambda key: key != "config_type"):
        found = {pairs[key] for pairs in rows if key in pairs}
        if len(found) <= _MOST_TYPES and all(isinstance(value, str) for value in found):
            values["config_type"] = key
            remarks["config_type"] = f"Here {_some(found)}."
            return


def _find_group(
    keys: Sequence[str],
    samples: Sequence[Sequence[Mapping[str, Any]]],
    values: dict[str, str],
    remarks: dict[str, str],
) -> None:
    for key in keys:
        if _GROUPS.search(key.lower()) and key not in values.values() and _repeats(key, samples):
            values["group_by"] = key
            remarks["group_by"] = f"Rows share values of {key}: frames of one trajectory, say."
            return
    frames = [key for key in keys if _FRAMES.search(key.lower())]
    if frames:
        remarks["group_by"] = (
            f"Rows have {frames[0]}, so they may be frames of trajectories, but no key names the "
            "trajectory: add one, or the test set has neighbours of what was trained on."
        )


def _repeats(key: str, samples: Sequence[Sequence[Mapping[str, Any]]]) -> bool:
    """Return whether some rows share a value, but not all."""
    everywhere = {pairs[key] for sample in samples for pairs in sample if key in pairs}
    if len(everywhere) < 2 or any(_is_fraction(value) for value in everywhere):  # noqa: PLR2004
        return False
    shares = []
    for sample in samples:
        found = [pairs[key] for pairs in sample if key in pairs]
        shares.append(len(found) / max(1, len(set(found))))
    return max(shares) >= _REPEATED


def _is_fraction(value: object) -> bool:
    return isinstance(value, float) and not (math.isnan(value) or value.is_integer())


def _some(values: Iterable[object], limit: int = 4) -> str:
    texts = sorted(str(value) or "(none)" for value in values)
    more = f" and {len(texts) - limit} more" if len(texts) > limit else ""
    return ", ".join(texts[:limit]) + more
