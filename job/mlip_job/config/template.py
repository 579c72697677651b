"""The commented configuration that ``mlip-job init`` writes, made from the models themselves."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING

import yaml

from mlip_job.config.models import (
    DatabaseConfig,
    DatasetConfig,
    JobConfig,
    RunConfig,
    StorageConfig,
)
from mlip_job.config.training import TrainingConfig

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from pydantic import BaseModel

# What most users change; every other key is written as a comment with its default.
_SHOWN = {
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


def commented_config(*, family: str, database: str, select: str, storage: str) -> str:
    """Return a configuration with a comment on every key."""
    lines = [
        *_comment(JobConfig.model_fields["family"].description, ""),
        _line("family", family),
        *_section("database", DatabaseConfig, {"url": database, "select": select}),
        *_section("dataset", DatasetConfig, {}),
        *_section("training", TrainingConfig, {}),
        *_section("storage", StorageConfig, {"url": storage}),
        *_section("run", RunConfig, {}),
        "",
        *_comment(JobConfig.model_fields["work_dir"].description, ""),
        _line("work_dir", JobConfig.model_fields["work_dir"].default),
    ]
    return "\n".join(lines) + "\n"


def _section(name: str, model: type[BaseModel], values: Mapping[str, object]) -> Iterator[str]:
    yield ""
    defaults = model().model_dump(mode="json")
    shown = [key for key in defaults if key in values or key in _SHOWN]
    yield f"{name}:" if shown else f"{name}: {{}}"
    for key, default in defaults.items():
        yield from _comment(model.model_fields[key].description, "  ")
        prefix = "  " if key in shown else "  # "
        yield prefix + _line(key, values.get(key, default))


def _line(key: str, value: object) -> str:
    text = yaml.safe_dump(value, default_flow_style=True, width=1000).removesuffix("...\n")
    return f"{key}: {text.strip()}"


def _comment(text: str | None, indent: str) -> Iterator[str]:
    for line in textwrap.wrap(text or "", 88):
        yield f"{indent}# {line}"
