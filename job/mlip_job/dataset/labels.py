"""Suspicious labels of accepted rows: zeroed, huge and unbalanced forces, charges, mixed methods.

Also how a row was computed, and other places of its labels, from the row itself.
"""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from mlip_job.dataset.geometry import neighbours
from mlip_job.dataset.rows import CHARGE_KEYS, name_rows, stated_charge

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from mlip_job.dataset.rows import BoolArray, FloatArray, IndexArray, Structures

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
"""Settings, values of one setting, and characters of a value in a note."""

_ENERGY = re.compile(r"energy|^e_?(tot|total|dft|ref)$|toten", re.IGNORECASE)
_NO_ENERGY = re.compile(
    r"hull|formation|cutoff|fermi|per_?atom|atomi[sz]ation|cohesive|zero|kinetic", re.IGNORECASE
)
_FORCES = re.compile(r"force|^f_?(tot|total|dft|ref)$|gradient", re.IGNORECASE)
_DEPTH = 4
"""Of dictionaries in the column ``data``."""


class LabelChecks:
    """Collect accepted rows with suspicious labels.

    `charges` has the charge (e) of each row that states one in a key.
    """

    def __init__(self, cutoff: float, max_force: float | None) -> None:
        self.charges: dict[int, float] = {}
        self._cutoff, self._limited = cutoff, max_force is not None
        self._zeroed: list[int] = []
        self._missing: list[int] = []
        self._net: list[int] = []
        self._huge: list[int] = []
        self._periodic: list[IndexArray] = []
        self._largest = 0.0
        self._method_keys: defaultdict[str, Counter[str]] = defaultdict(Counter)

    def add(self, structures: Structures) -> None:
        """Check structures that are periodic in all directions or in none."""
        ids = structures.ids
        zeroed, missing = have_zeroed_forces(structures, self._cutoff)
        self._zeroed += ids[zeroed].tolist()
        self._missing += ids[missing].tolist()
        self._net += ids[have_net_forces(structures)].tolist()
        largest = structures.largest(np.linalg.norm(structures.forces, axis=1))
        self._largest = max(self._largest, float(largest.max(initial=0.0)))
        if not self._limited:
            self._huge += ids[largest > HUGE_FORCE].tolist()
        self._periodic.append(ids[structures.pbc.any(axis=1)])
        for id_, pairs in zip(ids.tolist(), structures.pairs, strict=True):
            self.add_charge(id_, pairs)
            for key in filter(names_method, pairs):
                self._method_keys[f"key {key}"][str(pairs[key])] += 1

    def add_charge(self, id_: int, pairs: Mapping[str, object]) -> None:
        """Remember the charge of a row, if its keys state one."""
        for key in pairs:
            if key.lower() in CHARGE_KEYS and (charge := stated_charge(pairs[key])):
                self.charges.setdefault(id_, charge)

    def notes(
        self,
        calculators: Iterable[tuple[str | None, Any, int]],
        data_methods: Iterable[tuple[str, Counter[str]]],
        elsewhere: str | None,
    ) -> list[str]:
        """Return the notes for the user, among them `elsewhere`.

        For `calculators` see `note_methods`; `data_methods` are the places in ``data`` that name a
        method, and their numbers of rows by value.
        """
        for name, counts in data_methods:
            self._method_keys[name] += counts
        charged = _note_charged_cells(
            self.charges, np.concatenate([np.zeros(0, np.int64), *self._periodic])
        )
        found = (
            note_methods(calculators, self._method_keys),
            elsewhere,
            _note(
                self._zeroed,
                "forces of exactly zero, which symmetry does not explain, on some atoms",
                ": those of fixed atoms (FixAtoms)? Energies and forces contradict each other "
                "there; store the forces of atoms.get_forces(apply_constraint=False) in a "
                "SinglePointCalculator, or deselect the rows",
            ),
            _note(
                self._missing,
                "forces of exactly zero on all atoms, which symmetry does not explain",
                ": missing forces stored as zeros? The fit takes these structures for equilibria; "
                "store the calculated forces in a SinglePointCalculator, or deselect the rows",
            ),
            _note(
                self._net,
                f"forces that add up to more than {NET_FORCE:g} eV/Å per atom",
                ", which no potential can give: forces of fixed atoms set to zero, a drift that "
                "was not removed, an external field, or forces of another structure? Correct or "
                "deselect the rows; another training.energy_weight or force_weight is no remedy",
            ),
            charged,
            _note(
                self._huge,
                f"forces above {HUGE_FORCE:g} eV/Å, up to {self._largest:.4g}",
                ": such structures are hardly right and dominate the fit; dataset.max_force, for "
                f"example {HUGE_FORCE / 2:g}, leaves them out",
            ),
        )
        return [note for note in found if note]


def _note(rows: list[int], what: str, why: str) -> str | None:
    return f"{what} ({len(rows)}: {name_rows(rows)}){why}" if rows else None


def have_zeroed_forces(structures: Structures, cutoff: float) -> tuple[BoolArray, BoolArray]:
    """Return in which structures some, and in which all, forces are zero without symmetry.

    ``Atoms.get_forces()`` returns such for fixed atoms, or along fixed directions; zeros for all
    atoms stand for missing forces. The force on an atom vanishes by symmetry only where its
    neighbours are on all sides alike.
    The structures are periodic in all directions or in none; forces reach as far as the cutoff (Å).
    """
    zero = structures.forces == 0
    some, every = (np.zeros(len(structures), dtype=np.bool_) for _ in range(2))
    if not zero.any():
        return some, every
    largest = structures.largest(np.abs(structures.forces).max(axis=1))
    suspect = ~structures.all_atoms(~zero) & (structures.counts > 1)
    for index in np.flatnonzero(suspect).tolist():
        atoms = slice(structures.starts[index], structures.starts[index + 1])
        scaled = structures.forces[atoms] / _DIGIT
        rounded = bool((np.abs(scaled - np.rint(scaled)) < 1e-6).all())  # noqa: PLR2004 - of a digit
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


def _lopsidedness(structures: Structures, index: int, reach: float) -> FloatArray:
    """Return the asymmetry of each atom's environment, as vectors of length 0 to 1.

    It is a weighted mean of the directions to the neighbours, shape (atoms, 3). The weight falls to
    zero at `reach` and tells elements apart, so that the mean vanishes wherever the force has to.
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


def _note_charged_cells(charges: Mapping[int, float], periodic: IndexArray) -> str | None:
    """Return a note if periodic cells of different charge are mixed."""
    rows = np.intersect1d(periodic, list(charges)).tolist()
    kinds = {round(charges[row], 3) for row in rows}
    neutral = len(periodic) - len(rows)
    if not rows or (neutral == 0 and len(kinds) == 1):
        return None
    others = f"together with {neutral} neutral ones" if neutral else "of different charges"
    return (
        f"charged periodic cells ({len(rows)}: {name_rows(rows)}) {others}: their energies hold "
        "that of a compensating background and depend on the size of the cell, which a potential "
        "of short range can't fit; correct the energies, or select rows of one charge"
    )


# Methods


@cache
def names_method(key: str) -> bool:
    """Return whether the name of a key indicates how a row was computed."""
    return _METHOD.fullmatch(key) is not None


def note_methods(
    groups: Iterable[tuple[str | None, Any, int]], keys: Mapping[str, Mapping[str, int]]
) -> str | None:
    """Return a note if rows come from several calculators, or were computed differently.

    Results that were stored without a calculator are ``unknown`` to ASE, and tell nothing.
    `groups` are calculator, its parameters as ASE's decoded JSON, and the number of rows; `keys`
    numbers of rows by value, for each key and each place in ``data`` that names a method.
    """
    calculators: Counter[str] = Counter()
    parameters: defaultdict[tuple[str, str], Counter[str]] = defaultdict(Counter)
    for calculator, values, rows in groups:
        name = calculator or "none"
        calculators[name] += rows
        for path, value in leaves(values):
            if path[-1].lower() not in _OF_THE_STRUCTURE:
                parameters[name, ".".join(path)][_as_text(value)] += rows
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


def describe_row(row: Any) -> dict[str, str]:
    """Return how a row of ASE was computed, as texts by name."""
    described = {key: str(value) for key, value in row.key_value_pairs.items()}
    described["calculator"] = str(row.get("calculator", "none"))
    for path, value in leaves(row.get("calculator_parameters")):
        described[f"calculator_parameters.{'.'.join(path)}"] = _as_text(value)
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


def leaves(data: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yield names and value of what nested dictionaries hold."""
    for name, value in data.items() if isinstance(data, dict) else ():
        inner = (*path, str(name))
        if isinstance(value, dict) and len(inner) < _DEPTH:
            yield from leaves(value, inner)
        else:
            yield inner, value


def _as_text(value: Any) -> str:
    if isinstance(value, np.ndarray):
        value = value.tolist()
    try:
        return value if isinstance(value, str) else json.dumps(value, sort_keys=True)
    except (TypeError, ValueError):
        return str(value)


def _counted(counts: Counter[str]) -> str:
    shown = [
        f"{shortened(value)} ({rows} row{'s'[: rows > 1]})"
        for value, rows in counts.most_common(_VALUES)
    ]
    return ", ".join(shown) + (f", {len(counts) - _VALUES} more" if len(counts) > _VALUES else "")


def shortened(value: str) -> str:
    """Return a value, shortened for a message."""
    return value if len(value) <= _LONGEST else f"{value[: _LONGEST - 1]}…"


# Labels under other names


def note_labels_elsewhere(places: Iterable[str]) -> str | None:
    """Return a note if rows without energy or forces have them under other names."""
    named = ", ".join(dict.fromkeys(places))
    if not named:
        return None
    return (
        f"rows without energy or forces seem to hold them in {named}, "
        "which are no labels to ASE: store them as results of a SinglePointCalculator "
        '(docs/dataset.md, "Labels under other names", has the script)'
    )


def labels_elsewhere(row: Any, data: Any) -> list[str]:
    """Return names in a row of ASE, and in its decoded column ``data``, that may hold labels."""
    pairs = row.key_value_pairs.items()
    found = [f"the key {key}" for key, value in pairs if _is_energy(key, value)]
    forces = 3 * len(row.numbers)
    for path, value in leaves(data):
        if _is_energy(path[-1], value) or _are_forces(path[-1], value, forces):
            found.append(_place(path))
    return found


def values_in(data: Any, wanted: Callable[[str], bool]) -> Iterator[tuple[str, str]]:
    """Yield path and value of the numbers and texts in ``data`` with the given names."""
    for path, value in leaves(data):
        if isinstance(value, str | int | float) and wanted(path[-1]):
            yield _place(path), str(value)


def _place(path: tuple[str, ...]) -> str:
    return "data" + "".join(f"[{name!r}]" for name in path)


def _is_energy(name: str, value: Any) -> bool:
    number = isinstance(value, int | float | np.number) and not isinstance(value, bool)
    return number and bool(_ENERGY.search(name)) and not _NO_ENERGY.search(name)


def _are_forces(name: str, value: Any, size: int) -> bool:
    if not _FORCES.search(name):
        return False
    try:
        return np.asarray(value, dtype=np.float64).size == size
    except (TypeError, ValueError):
        return False
