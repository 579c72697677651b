"""Accepted but suspicious labels: zeroed, huge and unbalanced forces, charged cells."""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from mlip_job.dataset.geometry import neighbours
from mlip_job.dataset.rows import name_rows

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from mlip_job.dataset.rows import BoolArray, FloatArray, Structures


HUGE_FORCE = 100.0
"""eV/Å. Larger forces come from coinciding atoms or an unconverged calculation."""

NET_FORCE = 0.01
"""eV/Å per atom. DFT leaves at most a few meV/Å."""

_NOT_RELAXED = 0.05
"""eV/Å. If all forces are smaller and rounded, some may be zero by rounding."""

_DIGIT = 1e-4
"""eV/Å. Last digit of rounded forces."""

_NEAR = 5.0
"""Å. Radius of the environment of an atom that is examined."""

_LOPSIDED = 0.002
"""Fraction of the maximum asymmetry of an environment; positions are rounded."""


def have_zeroed_forces(structures: Structures, cutoff: float) -> tuple[BoolArray, BoolArray]:
    """Return in which structures some, and in which all, forces are zero without symmetry.

    ``Atoms.get_forces()`` returns such for fixed atoms, or along fixed directions; zeros for all
    atoms stand for missing forces. The force on an atom vanishes by symmetry only where its
    neighbours are on all sides alike.

    Parameters
    ----------
    structures
        Periodic in all directions or in none.
    cutoff
        Å, of the potential: forces don't reach further.
    """
    zero = structures.forces == 0
    some, every = (np.zeros(len(structures), dtype=np.bool_) for _ in range(2))
    if not zero.any():
        return some, every
    starts = structures.starts[:-1]
    largest = np.maximum.reduceat(np.abs(structures.forces).max(axis=1), starts)
    suspect = np.logical_or.reduceat(zero.any(axis=1), starts) & (structures.counts > 1)
    for index in np.flatnonzero(suspect).tolist():
        atoms = slice(structures.starts[index], structures.starts[index + 1])
        rounded = _are_rounded(structures.forces[atoms])
        if 0 < largest[index] <= _NOT_RELAXED and rounded:
            continue
        lopsided = _lopsidedness(structures, index, min(cutoff, _NEAR))
        whole = zero[atoms].all(axis=1) & (np.linalg.norm(lopsided, axis=1) > _LOPSIDED)
        components = zero[atoms] & (np.abs(lopsided) > _LOPSIDED)
        (every if largest[index] == 0 else some)[index] = bool(
            whole.any() or (components.any() and not rounded)
        )
    return some, every


def have_net_forces(structures: Structures) -> BoolArray:
    """Return in which structures the net force exceeds `NET_FORCE` per atom."""
    sums = np.add.reduceat(structures.forces, structures.starts[:-1])
    net: BoolArray = np.linalg.norm(sums, axis=1) > NET_FORCE * structures.counts
    return net


def _are_rounded(forces: FloatArray) -> bool:
    """Return whether forces have so few digits that small ones may be rounded to zero."""
    scaled = forces / _DIGIT
    return bool((np.abs(scaled - np.rint(scaled)) < 1e-6).all())  # noqa: PLR2004 - of a digit


def _lopsidedness(structures: Structures, index: int, reach: float) -> FloatArray:
    """Return the asymmetry of each atom's environment, as vectors of length 0 to 1.

    It is a weighted mean of the directions to them, shape (atoms, 3). The weight falls to zero at
    `reach` and tells elements apart, so that the mean vanishes wherever the force has to.
    """
    row = structures.row(index)
    first, second, vectors = neighbours(row, reach)
    distances = np.linalg.norm(vectors, axis=1)
    weights = (1 - distances / reach) ** 2 * row.numbers[second]
    total = np.bincount(first, weights, minlength=len(row.numbers))
    directions = vectors * (weights / distances)[:, None]
    sums = [np.bincount(first, part, minlength=len(row.numbers)) for part in directions.T]
    lopsided: FloatArray = np.transpose(sums) / np.where(total > 0, total, 1.0)[:, None]
    return lopsided


def have_huge_forces(structures: Structures) -> BoolArray:
    """Return in which structures some atom has a force above `HUGE_FORCE`."""
    lengths = np.linalg.norm(structures.forces, axis=1)
    huge: BoolArray = np.maximum.reduceat(lengths, structures.starts[:-1]) > HUGE_FORCE
    return huge


def note_zeroed_forces(rows: Sequence[int]) -> str:
    """Return the note on rows with zeroed forces."""
    return (
        f"forces of exactly zero, which symmetry does not explain, on some atoms ({len(rows)}: "
        f"{name_rows(rows)}): those of fixed atoms (FixAtoms)? Energies and forces contradict each "
        "other there; store the forces of atoms.get_forces(apply_constraint=False) in a "
        "SinglePointCalculator, or deselect the rows"
    )


def note_missing_forces(rows: Sequence[int]) -> str:
    """Return the note on rows whose forces are all zero."""
    return (
        f"forces of exactly zero on all atoms, which symmetry does not explain ({len(rows)}: "
        f"{name_rows(rows)}): missing forces stored as zeros? The fit takes these structures for "
        "equilibria; store the calculated forces in a SinglePointCalculator, or deselect the rows"
    )


def note_net_forces(rows: Sequence[int]) -> str:
    """Return the note on rows with a net force."""
    return (
        f"forces that add up to more than {NET_FORCE:g} eV/Å per atom ({len(rows)}: "
        f"{name_rows(rows)}), which no potential can give: forces of fixed atoms set to zero, a "
        "drift that was not removed, an external field, or forces of another structure? Correct "
        "or deselect the rows; another training.energy_weight or force_weight is no remedy"
    )


def note_charged_cells(charges: Mapping[int, float], periodic: int) -> str | None:
    """Return a note if periodic cells of different charge are mixed.

    `charges` has the charge (e) of each charged row among the `periodic` ones.
    """
    kinds = {round(charge, 3) for charge in charges.values()}
    neutral = periodic - len(charges)
    if not charges or (neutral == 0 and len(kinds) == 1):
        return None
    rows = sorted(charges)
    others = f"together with {neutral} neutral ones" if neutral else "of different charges"
    return (
        f"charged periodic cells ({len(rows)}: {name_rows(rows)}) {others}: their energies hold "
        "that of a compensating background and depend on the size of the cell, which a potential "
        "of short range can't fit; correct the energies, or select rows of one charge"
    )


def note_huge_forces(rows: Sequence[int], largest: float) -> str:
    """Return the note on rows with huge forces; `largest` is in eV/Å."""
    return (
        f"forces above {HUGE_FORCE:g} eV/Å, up to {largest:.4g} ({len(rows)}: {name_rows(rows)}): "
        "such structures are hardly right and dominate the fit; dataset.max_force, for example "
        f"{HUGE_FORCE / 2:g}, leaves them out"
    )


_METHOD = re.compile(
    r"(.*_)?(xc|functional|theory)(_.*)?|(dft_)?(method|level|code|basis|calculator)",
    re.IGNORECASE,
)
"""Keys that name a method."""

_OF_THE_STRUCTURE = frozenset(
    (
        "kpts", "kpoints", "gamma", "magmom", "initial_magmoms", "charge", "nupdown", "nbands",
        "nelect", "ncore", "npar", "kpar", "setups", "label", "directory", "command", "txt",
        "restart", "prefix", "atoms", "profile", "parallel",
    )
)  # fmt: skip
"""Parameters that vary between structures or machines with the same method."""

_LISTED = 6
_VALUES = 4
_LONGEST = 40

_ENERGY = re.compile(r"energy|^e_?(tot|total|dft|ref)$|toten", re.IGNORECASE)
_NO_ENERGY = re.compile(
    r"hull|formation|cutoff|fermi|per_?atom|atomi[sz]ation|cohesive|zero|kinetic", re.IGNORECASE
)
_FORCES = re.compile(r"force|^f_?(tot|total|dft|ref)$|gradient", re.IGNORECASE)
_DEPTH = 4
"""Of dictionaries in the column ``data``."""

_VECTOR = 3


@cache
def names_method(key: str) -> bool:
    """Return whether the name of a key indicates how a row was computed."""
    return _METHOD.fullmatch(key) is not None


def describe_row(row: Any) -> dict[str, str]:
    """Return how a row of ASE was computed, as texts by name."""
    described = {key: str(value) for key, value in row.key_value_pairs.items()}
    described["calculator"] = str(row.get("calculator", "none"))
    for name, value in flat_parameters(row.get("calculator_parameters") or {}):
        described[f"calculator_parameters.{name}"] = value
    for name, label in (
        ("initial_magmoms", "initial magnetic moments"),
        ("magmoms", "magnetic moments"),
        ("initial_charges", "initial charges"),
    ):
        values = row.get(name)
        if values is not None:
            described[label] = f"{np.sum(values):.2f} in all, {np.abs(values).sum():.2f} in size"
    for name in ("magmom", "charge"):
        if row.get(name) is not None:
            described[f"total {name}"] = f"{float(row.get(name)):.3g}"
    described["free energy"] = "none" if row.get("free_energy") is None else "stored"
    described["user"] = str(row.get("user", "none"))
    return described


def flat_parameters(parameters: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield the parameters of a calculator, those of nested dictionaries by dotted names."""
    if not isinstance(parameters, dict):
        yield prefix.rstrip(".") or "all", str(parameters)
        return
    for name, value in parameters.items():
        if isinstance(value, dict) and prefix.count(".") < _DEPTH:
            yield from flat_parameters(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", _as_text(value)


def _as_text(value: Any) -> str:
    if isinstance(value, np.ndarray):
        value = value.tolist()
    try:
        return value if isinstance(value, str) else json.dumps(value, sort_keys=True)
    except (TypeError, ValueError):
        return str(value)


def labels_elsewhere(row: Any, data: Any) -> list[str]:
    """Return names in a row of ASE that may hold its energy or forces.

    Parameters
    ----------
    row
        The row.
    data
        Its column ``data``, decoded.
    """
    found = [
        f"the key {key}" for key, value in row.key_value_pairs.items() if _is_energy(key, value)
    ]
    return [*found, *_in_data(data, "data", len(row.numbers), _DEPTH)]


def values_in(
    data: Any, wanted: Callable[[str], bool], path: str = "data"
) -> Iterator[tuple[str, str]]:
    """Yield path and value of the numbers and texts in ``data`` with the given names."""
    if not isinstance(data, dict) or path.count("[") >= _DEPTH:
        return
    for name, value in data.items():
        place = f"{path}[{name!r}]"
        if isinstance(value, dict):
            yield from values_in(value, wanted, place)
        elif isinstance(value, str | int | float) and wanted(str(name)):
            yield place, str(value)


def _in_data(data: Any, path: str, atoms: int, depth: int) -> Iterator[str]:
    if not isinstance(data, dict) or depth == 0:
        return
    for name, value in data.items():
        place = f"{path}[{name!r}]"
        if isinstance(value, dict):
            yield from _in_data(value, place, atoms, depth - 1)
        elif _is_energy(str(name), value) or _are_forces(str(name), value, atoms):
            yield place


def _is_energy(name: str, value: Any) -> bool:
    number = isinstance(value, int | float | np.number) and not isinstance(value, bool)
    return number and bool(_ENERGY.search(name)) and not _NO_ENERGY.search(name)


def _are_forces(name: str, value: Any, atoms: int) -> bool:
    if not _FORCES.search(name):
        return False
    try:
        return np.asarray(value, dtype=np.float64).size == _VECTOR * atoms
    except (TypeError, ValueError):
        return False


def note_methods(
    groups: Iterable[tuple[str | None, Any, int]], keys: Mapping[str, Mapping[str, int]]
) -> str | None:
    """Return a note if rows come from several calculators, or were computed differently.

    Results that were stored without a calculator are ``unknown`` to ASE, and tell nothing.

    Parameters
    ----------
    groups
        Calculator, its parameters as ASE's decoded JSON, and the number of rows.
    keys
        Number of rows by value, for each key and each place in ``data`` that names a method.
    """
    calculators: Counter[str] = Counter()
    parameters: defaultdict[tuple[str, str], Counter[str]] = defaultdict(Counter)
    for calculator, values, rows in groups:
        name = calculator or "none"
        calculators[name] += rows
        for parameter, value in flat_parameters(values or {}):
            if parameter.rpartition(".")[2].lower() not in _OF_THE_STRUCTURE:
                parameters[name, parameter][value] += rows
    for (name, _), counts in parameters.items():
        if calculators[name] > counts.total():
            counts["none"] += calculators[name] - counts.total()
    del calculators["unknown"]
    varying = [("calculator", calculators)]
    varying += [(f"parameter {p} of {name}", c) for (name, p), c in sorted(parameters.items())]
    varying += [(name, Counter(counts)) for name, counts in sorted(keys.items())]
    texts = [f"{what}: {_counted(counts)}" for what, counts in varying if len(counts) > 1]
    if not texts:
        return None
    more = f"; and {len(texts) - _LISTED} more" if len(texts) > _LISTED else ""
    return (
        f"the rows were not all computed in the same way ({'; '.join(texts[:_LISTED])}{more}): "
        "energies of different methods can't be fitted together; select one of them, unless these "
        "settings make no difference"
    )


def _counted(counts: Counter[str]) -> str:
    shown = [
        f"{shortened(value)} ({rows} row{'s'[: rows > 1]})"
        for value, rows in counts.most_common(_VALUES)
    ]
    return ", ".join(shown) + (f", {len(counts) - _VALUES} more" if len(counts) > _VALUES else "")


def shortened(value: str) -> str:
    """Return a value, shortened for a message."""
    return value if len(value) <= _LONGEST else f"{value[: _LONGEST - 1]}…"
