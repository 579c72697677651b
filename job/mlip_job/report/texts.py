"""Format numbers, tables, lists and settings for a page or a terminal; dashes are unknown."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mlip_job.paths import generation_name

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from mlip_job.registry import Headline, Manifest

UNKNOWN = "–"
NARROW_SPACE = "\u202f"
"""Separates thousands and units without a line break."""
ENERGY, FORCE, STRESS = "meV/atom", "meV/Å", "GPa"

_TIME_UNITS = ((10, 1, "s", 1), (100, 1, "s", 0), (6000, 60, "min", 1), (math.inf, 3600, "h", 1))
_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
_LISTED_ROWS = 12
_SAME_PERCENT = 2
_GATE_WORDS = {
    "accepted": "✓ accepted",
    "accepted, stability not checked": "~ accepted",
    "rejected": "✗ rejected",
    "published, no gate set": "no gate set",
}


@dataclass(frozen=True)
class Column:
    """A column; numbers are aligned to the right."""

    name: str
    unit: str = ""
    numeric: bool = True

    @property
    def heading(self) -> str:
        """Name and unit."""
        return f"{self.name} ({self.unit})" if self.unit else self.name


@dataclass(frozen=True)
class Cell:
    """A text with its CSS class."""

    text: str
    css: str = ""

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True)
class Table:
    """A table with a title above and a note below."""

    title: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[str | Cell, ...], ...]
    note: str = ""


def fixed(value: float | None, digits: int = 1) -> str:
    """Return a number with fixed decimals and separated thousands."""
    if value is None or math.isnan(value):
        return UNKNOWN
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    text = f"{value:,.{digits}f}".replace("-", "−").replace(",", NARROW_SPACE)
    return text.removeprefix("−") if not text.strip("−0.") else text


def significant(value: float | None, digits: int = 3) -> str:
    """Return a number rounded to significant digits."""
    if value is None or not math.isfinite(value):
        return fixed(value)
    if value == 0:
        return "0"
    magnitude = math.floor(math.log10(abs(value)))
    if magnitude < -digits:
        mantissa = fixed(value / 10.0**magnitude, digits - 1)
        return f"{mantissa}·{power_of_ten(magnitude)}"
    return fixed(round(value, digits - 1 - magnitude), max(0, digits - 1 - magnitude))


def power_of_ten(exponent: int) -> str:
    """Return ``10⁻⁴``."""
    return "10" + str(exponent).translate(_SUPERSCRIPTS)


def percent(change: float | None) -> str:
    """Return a relative change with its sign."""
    if change is None:
        return UNKNOWN
    sign = "+" if change > 0 else ""
    return f"{sign}{fixed(100 * change, 0)}{NARROW_SPACE}%"


def duration(seconds: float | None) -> str:
    """Return a time in seconds, minutes or hours."""
    for limit, size, unit, digits in _TIME_UNITS:
        if seconds is not None and seconds < limit:
            return f"{fixed(seconds / size, digits)} {unit}"
    return UNKNOWN


def count(number: int | None, noun: str) -> str:
    """Return ``1 structure``, ``2 structures``."""
    return f"{fixed(number, 0)} {noun}" + ("" if number == 1 else "s")


def row_ids(rows: Sequence[int]) -> str:
    """Return the first row ids, and how many more there are."""
    shown = ", ".join(map(str, rows[:_LISTED_ROWS]))
    more = len(rows) - _LISTED_ROWS
    return f"{shown} and {more} more" if more > 0 else shown


def gate_word(headline: Headline) -> str:
    """Return the verdict of the gate in one or two words."""
    return _GATE_WORDS.get(headline.verdict, headline.verdict)


def describe_change(change: float | None) -> str:
    """Return ``↓ 12%`` for an error that fell by 12 %, ``=`` for a change of at most 2 %."""
    if change is None:
        return UNKNOWN
    rounded = round(100 * change)
    if abs(rounded) <= _SAME_PERCENT:
        return "="
    return f"{'↓' if rounded < 0 else '↑'} {abs(rounded)}%"


# -- settings ------------------------------------------------------------------------------------

_COMPARED = ("dataset", "training", "evaluation")


def fit_settings(manifest: Manifest) -> dict[str, str]:
    """Return the settings of a fit; a dash stands for one that an older version did not record."""
    training, dataset = _section(manifest, "training"), _section(manifest, "dataset")
    of = defaultdict(lambda: UNKNOWN, {name: _text(value) for name, value in training.items()})
    key, trainer = dataset.get("split_key"), training.get("trainer", "pacemaker")
    stress = f", stress {of['stress_weight']}" if training.get("stress_weight") else ""
    settings = {
        "fitted by": trainer,
        "cutoff": f"{of['cutoff']} Å",
        "basis size": f"{of['functions_per_element']} functions per element asked for",
        "weights": f"energy {of['energy_weight']}, force {of['force_weight']}{stress}, "
        f"weighting {of['weighting']}",
    }
    if trainer == "pacemaker":
        fit = (training.get("overrides") or {}).get("fit") or {}
        settings["basis size"] += f", ndensity {of['ndensity']}"
        settings["ladder"] = _ladder(training, fit)
        settings["regularisation"] = _regularisation(training, fit.get("loss") or {})
    settings["test fraction"] = of["test_fraction"] if key is None else f"decided by the key {key}"
    return settings | ({"overrides": of["overrides"]} if training.get("overrides") else {})


def _regularisation(training: Mapping[str, Any], loss: Mapping[str, Any]) -> str:
    """Return the weights in the loss; earlier versions had settings for them."""
    from mlip_job.config.training import REGULARISATION  # noqa: PLC0415 - pydantic, in a CLI module

    return ", ".join(
        f"{name} {_text(loss.get(name, training.get(name.lower(), default)))}"
        for name, default in REGULARISATION.items()
    )


def _ladder(training: Mapping[str, Any], fit: Mapping[str, Any]) -> str:
    step = training.get("ladder_step")
    if step is None:
        return "none"
    if training.get("linear_start"):
        return f"none: a linear fit has the whole basis (ladder_step {_text(step)} has no effect)"
    kind = fit.get("ladder_type", training.get("ladder_type", "body_order"))
    return f"ladder_step {_text(step)}, ladder_type {_text(kind)}"


def settings_table(manifests: Sequence[Manifest]) -> Table | None:
    """Return the settings that differ between generations, or None without any."""
    known = [
        {
            f"{name}.{key}": "null" if value is None else _text(value)
            for name in _COMPARED
            for key, value in _flat(_section(manifest, name))
        }
        for manifest in manifests
    ]
    keys = dict.fromkeys(key for settings in known for key in settings)
    rows = [(key, *(settings.get(key, UNKNOWN) for settings in known)) for key in keys]
    differing = tuple(row for row in rows if len(set(row[1:])) > 1)
    if not differing:
        return None
    dashes = any(UNKNOWN in row for row in differing)
    return Table(
        "Settings that differ",
        (Column("", numeric=False), *(Column(generation_name(m.generation)) for m in manifests)),
        differing,
        "A dash: the version that published the generation had no such setting." if dashes else "",
    )


def _section(manifest: Manifest, name: str) -> Mapping[str, Any]:
    found = manifest.config.get(name)
    return found if isinstance(found, dict) else {}


def _flat(section: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for key, value in section.items():
        if isinstance(value, dict) and value:
            yield from ((f"{key}.{inner}", deep) for inner, deep in _flat(value))
        else:
            yield key, value


def _text(value: object) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    if value is None:
        return UNKNOWN
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
