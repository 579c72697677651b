"""Determine how a row was computed, and other places of its labels, from the row itself."""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

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
