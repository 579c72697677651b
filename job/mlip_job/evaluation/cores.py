"""The ZBL cores that pacemaker adds to a potential after its fit.

Pacemaker places each core within 0.1 Å of the shortest distance of its pair in the fitted data.
Other data often come slightly closer by chance; there the published potential would differ from
the fitted one by tens of eV. Each core is therefore moved below the shortest distance of *all*
data: within the data the potential is the fitted one, and the test set measures its error; below
all data it is repulsive.
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

_MARGIN = 1e-6  # Å: rounding error of distances, as positions are written to 1e-8 Å


@dataclass(frozen=True)
class Core:
    """Range of the ZBL core of a pair, Å: only the core below `inner`, no core above `outer`."""

    inner: float
    outer: float


def cores_of(content: Mapping[str, Any]) -> dict[Pair, Core]:
    """Return the ZBL cores in a potential's YAML; empty without any."""
    return {
        pair: Core(float(block["r_in"]) - float(block["delta_in"]), float(block["r_in"]))
        for block in content["species"]
        if (pair := _pair_with_core(block)) is not None
    }


def shortest_distances(
    structures: Path, reach: float, counts: Callable[[int], bool] = lambda _: True
) -> dict[Pair, float]:
    """Return the shortest distance (Å) of each pair within `reach`."""
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
    """Merge two mappings; return the shorter distance of each pair."""
    pairs = {*one, *other}
    return {p: min(one.get(p, math.inf), other.get(p, math.inf)) for p in pairs}


def clear_of_cores(
    content: Mapping[str, Any], shortest: Mapping[Pair, float]
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Move a potential's cores below these distances; return it with a note for each moved core."""
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
