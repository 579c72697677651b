"""What a dataset is made from, in a few numbers: whether it has to be made again."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict

if TYPE_CHECKING:
    from mlip_job.config import DatasetConfig, TrainingConfig
    from mlip_job.dataset.record import DatasetRecord

_VERSION = 3
"""Raise it when the same rows and settings shall give another dataset: what earlier versions made
is not found then. A dataset that is the same all the same keeps its id."""

_DECISIVE = {"cutoff", "test_fraction", "elements", "weighting"}
"""Of the training's settings."""


class SelectedRows(BaseModel):
    """Which rows a query gave, and in what state.

    Attributes
    ----------
    count, max_id, max_mtime
        For people: how many, the largest id, and when the newest was written (in ASE's unit, years
        since 2000).
    sha256
        Of all ids and of when each row was written. ASE notes that time whenever it writes.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    count: int
    max_id: int
    max_mtime: float
    sha256: str


def query_key(
    database: str,
    select: str,
    dataset: DatasetConfig,
    training: TrainingConfig,
    parent: DatasetRecord | None,
) -> str:
    """Return the hash of a query: all that decides a dataset but the rows themselves.

    Parameters
    ----------
    database
        URL without secrets.
    select
        ASE selection string.
    dataset, training
        Settings.
    parent
        The dataset whose split and reference energies are inherited.
    """
    query = {
        "format": _VERSION,
        "database": database,
        "select": select,
        "dataset": dataset.model_dump(mode="json"),
        "training": training.model_dump(mode="json", include=_DECISIVE),
        "parent": [parent.id, parent.split.group_by] if parent else None,
    }
    text = json.dumps(query, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:32]
