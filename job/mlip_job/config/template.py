"""The commented configuration of ``mlip-job init``, generated from the models."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING, Any, TypeGuard

import yaml

from mlip_job.config.fields import Part
from mlip_job.config.job import JobConfig

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_SHOWN: Mapping[str, Mapping[str, str]] = {
    "database": {
        "url": "SQLite file, postgresql:// or mysql://; the password comes from the environment.",
        "select": "ASE selection of the finished rows; {generation} stands for the number.",
    },
    "dataset": {
        "group_by": "Key that names a trajectory: none is on both sides of the split.",
        "config_type": "Key that names the type of a structure, for error tables and weights.",
        "split_key": "Key whose values train and test decide the split instead.",
    },
    "training": {
        "cutoff": "Å.",
        "functions_per_element": "Size of the basis; auto: what the data can determine.",
        "test_fraction": "Of the structures, held out of the fit.",
        "energy_weight": "a in a·MSE(E/atom) + b·mean|ΔF|².",
        "force_weight": "b.",
        "max_iter": "Iterations; 0 publishes the linear fit of pacemaker.",
        "zbl": "A repulsive core where atoms are closer than in the data.",
    },
    "evaluation": {"gate": ""},
    "gate": {
        "max_energy_rmse_mev": "meV/atom on the test set; a larger RMSE rejects the generation.",
        "max_force_rmse_mev": "meV/Å per component, likewise.",
    },
    "storage": {"url": "A directory, or s3://bucket/prefix."},
}
"""Comments on the keys that most users change, by section."""

_COMMENT = 88  # characters
_HEAD = """\
# Settings of a potential. There are more, all with defaults that were measured:
# mlip-job config schema lists them, docs/configuration.md explains them.
"""


def commented_config(*, family: str, values: Mapping[str, Any], remarks: Mapping[str, str]) -> str:
    """Return a short configuration with a comment on every key.

    `values` are by section and key, other keys have their defaults; `remarks` are further comments
    by key.
    """
    lines = [*_comment(JobConfig.model_fields["family"].description, ""), _line("family", family)]
    for name, field in JobConfig.model_fields.items():
        if name in _SHOWN and _is_part(field.annotation):
            lines += ["", *_section(name, field.annotation, values.get(name, {}), remarks, "")]
    return _HEAD + "\n".join(lines) + "\n"


def _section(
    name: str,
    model: type[Part],
    values: Mapping[str, Any],
    remarks: Mapping[str, str],
    indent: str,
) -> Iterator[str]:
    defaults = model().model_dump(mode="json")
    yield f"{indent}{name}:"
    inner = f"{indent}  "
    for key in (*_SHOWN[name], *(key for key in values if key not in _SHOWN[name])):
        field = model.model_fields[key]
        if _is_part(field.annotation):
            yield from _section(key, field.annotation, values.get(key, {}), remarks, inner)
            continue
        yield from _comment(_SHOWN[name].get(key, field.description), inner)
        yield from _comment(remarks.get(key), inner)
        yield inner + _line(key, values.get(key, defaults[key]))


def _is_part(model: object) -> TypeGuard[type[Part]]:
    return isinstance(model, type) and issubclass(model, Part)


def _line(key: str, value: object) -> str:
    text = yaml.safe_dump(value, default_flow_style=True, width=1000).removesuffix("...\n")
    return f"{key}: {text.strip()}"


def _comment(text: str | None, indent: str) -> Iterator[str]:
    for line in textwrap.wrap(text or "", _COMMENT):
        yield f"{indent}# {line}"
