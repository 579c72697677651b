"""The ZBL cores that pacemaker puts on a potential after its fit.

It puts them at the shortest distance of each pair in what was fitted, within 0.1 Å of it. Where
other data come only a little closer, which for many pairs they do by chance, the published
potential would be tens of eV off from what was fitted. So each core begins below the shortest
distance of *all* data: where there is data the potential is the one that was fitted, and the test
set measures how good it is there; where there is none, it is repulsive.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ase.neighborlist import neighbor_list

from mlip_job.dataset.xyz import parse, read_blocks, row_id

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from mlip_job.evaluation.potential import Pair

_MARGIN = 1e-6  # Å: distances between positions that were written to 1e-8 Å


@dataclass(frozen=True)
class Core:
    """Where the ZBL core of a pair acts, Å: alone below `inner`, not at all above `outer`."""

    inner: float
    outer: float


def cores_of(content: Mapping[str, Any]) -> dict[Pair, Core]:
    """Return the ZBL cores in a potential's YAML; empty where it has none."""
    return {
        pair: Core(float(block["r_in"]) - float(block["delta_in"]), float(block["r_in"]))
        for block in content["species"]
        if (pair := _pair_with_core(block)) is not None
    }


def shortest_distances(
    structures: Path, reach: float, counts: Callable[[int], bool] = lambda _: True
) -> dict[Pair, float]:
    """Return the shortest distance (Å) of each pair that comes closer than `reach`."""
    shortest: dict[Pair, float] = {}
    for block in read_blocks(structures):
        if not counts(row_id(block)):
            continue
        atoms = parse(block).atoms
        for i, j, distance in zip(*neighbor_list("ijd", atoms, reach), strict=True):
            first, second = sorted((atoms.symbols[i], atoms.symbols[j]))
            pair = (first, second)
            shortest[pair] = min(float(distance), shortest.get(pair, reach))
    return shortest


def shorter(one: Mapping[Pair, float], other: Mapping[Pair, float]) -> dict[Pair, float]:
    """Return the shorter distance of each pair that either knows."""
    pairs = {*one, *other}
    return {p: min(one.get(p, math.inf), other.get(p, math.inf)) for p in pairs}


def clear_of_cores(
    content: Mapping[str, Any], shortest: Mapping[Pair, float]
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Return a potential whose cores begin below these distances, and a note for each moved one."""
    species: list[Mapping[str, Any]] = []
    notes = {}
    for block in content["species"]:
        pair = _pair_with_core(block)
        if pair is not None and shortest.get(pair, block["r_in"]) < block["r_in"]:
            notes[pair] = (
                f"the ZBL core of {'-'.join(pair)} begins at {shortest[pair]:.3f} Å, the shortest "
                f"distance in the data; in what was fitted that is {block['r_in']:.3f} Å"
            )
            species.append({**block, "r_in": shortest[pair] - _MARGIN})
        else:
            species.append(block)
    return {**content, "species": species}, tuple(notes.values())


def _pair_with_core(block: Mapping[str, Any]) -> Pair | None:
    elements: Sequence[str] = sorted(str(block["speciesblock"]).split())
    if len(elements) > 2 or block.get("inner_cutoff_type") != "zbl":  # noqa: PLR2004 - a pair
        return None
    return elements[0], elements[-1]
