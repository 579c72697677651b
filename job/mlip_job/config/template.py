"""The commented configuration that ``mlip-job init`` writes, made from the models themselves."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING, TypeGuard

import yaml

from mlip_job.config.base import Part
from mlip_job.config.models import JobConfig

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

# What most users change; every other key is written as a comment with its default.
_SHOWN = {
    "scheduler",
    "url",
    "group_by",
    "select",
    "cutoff",
    "test_fraction",
    "functions_per_element",
    "energy_weight",
    "force_weight",
    "max_iter",
    "ladder_step",
    "zbl",
    "start_from",
    "batch_size",
}


def commented_config(
    *, family: str, told: Mapping[str, Mapping[str, object]], remarks: Mapping[str, str]
) -> str:
    """Return a configuration with a comment on every key.

    Parameters
    ----------
    family
        Its name.
    told
        Values by section and key; the others have their defaults.
    remarks
        More to say of a key.
    """
    lines: list[str] = []
    for key, field in JobConfig.model_fields.items():
        model = field.annotation
        if _is_part(model):
            lines += ["", *_section(key, model, told.get(key, {}), remarks, "")]
        else:
            lines += [""] if lines else []
            lines += _comment(field.description, "")
            lines.append(_line(key, family if key == "family" else field.default))
    return "\n".join(lines) + "\n"


def _section(
    name: str,
    model: type[Part],
    values: Mapping[str, object],
    remarks: Mapping[str, str],
    indent: str,
) -> Iterator[str]:
    defaults = model().model_dump(mode="json")
    parts = {k: f.annotation for k, f in model.model_fields.items() if _is_part(f.annotation)}
    shown = [key for key in defaults if key in values or key in _SHOWN or key in parts]
    yield f"{indent}{name}:" if shown else f"{indent}{name}: {{}}"
    inner = f"{indent}  "
    for key, default in defaults.items():
        yield from _comment(model.model_fields[key].description, inner)
        yield from _comment(remarks.get(key), inner)
        if key in parts:
            yield from _section(key, parts[key], {}, {}, inner)
        else:
            prefix = inner if key in shown else f"{inner}# "
            yield prefix + _line(key, values.get(key, default))


def _is_part(model: object) -> TypeGuard[type[Part]]:
    return isinstance(model, type) and issubclass(model, Part)


def _line(key: str, value: object) -> str:
    text = yaml.safe_dump(value, default_flow_style=True, width=1000).removesuffix("...\n")
    return f"{key}: {text.strip()}"


def _comment(text: str | None, indent: str) -> Iterator[str]:
    for line in textwrap.wrap(text or "", 88):
        yield f"{indent}# {line}"
