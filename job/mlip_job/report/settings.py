"""The settings of a fit, from the configuration that its manifest keeps."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from mlip_job.naming import generation_name
from mlip_job.report.numbers import UNKNOWN
from mlip_job.report.table import Column, Entry, Table

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from mlip_job.registry import Manifest

_COMPARED = ("dataset", "training", "evaluation")
_REGULARISERS = ("l1_coeffs", "l2_coeffs", "w0_rad", "w1_rad", "w2_rad")


def fit_settings(manifest: Manifest) -> Iterator[Entry]:
    """Yield what decides a fit; a dash stands for what an older version did not record."""
    training, dataset = _section(manifest, "training"), _section(manifest, "dataset")
    yield Entry("cutoff", f"{_text(training.get('cutoff'))} Å")
    yield Entry(
        "basis size",
        f"{_text(training.get('functions_per_element'))} functions per element asked for, "
        f"ndensity {_text(training.get('ndensity'))}",
    )
    yield Entry("ladder", _ladder(training))
    yield Entry(
        "weights",
        f"energy {_text(training.get('energy_weight'))}, "
        f"force {_text(training.get('force_weight'))}, weighting "
        f"{_text(training.get('weighting'))}",
    )
    yield Entry(
        "regularisation",
        ", ".join(f"{name} {_text(training.get(name))}" for name in _REGULARISERS),
    )
    if (key := dataset.get("split_key")) is not None:
        yield Entry("test fraction", f"decided by the key {key}")
    else:
        yield Entry("test fraction", _text(training.get("test_fraction")))
    if training.get("overrides"):
        yield Entry("overrides", _text(training["overrides"]))


def settings_table(manifests: Sequence[Manifest]) -> Table | None:
    """Return the settings that differ between generations, or None where none does."""
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
    names = [generation_name(manifest.generation) for manifest in manifests]
    return Table(
        "Settings that differ",
        (Column("", numeric=False), *(Column(name) for name in names)),
        differing,
        "A dash: the version that published the generation had no such setting." if dashes else "",
    )


def _ladder(training: Mapping[str, Any]) -> str:
    step = training.get("ladder_step")
    if step is None:
        return "none"
    if training.get("linear_start"):
        return f"none: a linear fit has the whole basis (ladder_step {_text(step)} has no effect)"
    return f"ladder_step {_text(step)}, ladder_type {_text(training.get('ladder_type'))}"


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
