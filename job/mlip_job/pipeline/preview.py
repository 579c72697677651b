"""What a run would make of the database, found out without writing anything."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mlip_job.dataset.builder import DatasetBuilder
from mlip_job.naming import generation_name
from mlip_job.pipeline.datasets import fetch_parent_dataset, without_new_data
from mlip_job.pipeline.lineage import Lineage, find_lineage, functions_of
from mlip_job.pipeline.sizes import data_size
from mlip_job.training.size import choose_size

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mlip_job.config import JobConfig
    from mlip_job.dataset.record import DatasetRecord
    from mlip_job.registry import Registry
    from mlip_job.training.size import BasisSize

MOST_ROWS = 20_000
"""Rows that are read; of more, so many spread evenly over them."""

_LISTED = 5


@dataclass(frozen=True)
class Preview:
    """What the next generation would be made of.

    Attributes
    ----------
    generation
        Its number.
    selected
        Rows of the selection; more than those of the record where a sample was taken.
    record
        Of the dataset, without files.
    size
        Of the basis.
    warning
        Where there are no new data, that.
    """

    generation: int
    selected: int
    record: DatasetRecord
    size: BasisSize
    warning: str | None

    def __str__(self) -> str:
        """Say what of the rows would be trained on, and what not."""
        return "; ".join(self._parts())

    def _parts(self) -> Iterator[str]:
        counts, split = self.record.counts, self.record.split
        rows = f"{self.selected} rows"
        if counts.selected < self.selected:
            rows = f"a sample of {counts.selected} of {self.selected} rows"
        name = generation_name(self.generation)
        yield f"{name} of {rows}: {counts.train} train, {counts.test} test"
        if counts.reference_atoms:
            yield f"{counts.reference_atoms} isolated atoms"
        if split.key is not None:
            yield f"split by the key {split.key}"
        if split.group_by is not None:
            yield f"grouped by {split.group_by}"
        for reason, rows_ in self.record.rejections.items():
            some = ", ".join(map(str, rows_.rows[:_LISTED]))
            more = " …" if rows_.count > _LISTED else ""
            yield f"{rows_.count} rejected, {reason.replace('_', ' ')} (rows {some}{more})"
        for note in self.record.notes:
            yield f"note: {note}"
        if self.warning is not None:
            yield self.warning


def preview(config: JobConfig, registry: Registry | None, most: int = MOST_ROWS) -> Preview:
    """Select, validate and split as a run would; without a registry for generation 1.

    Raises
    ------
    MlipJobError
        As a run would.
    """
    generation, lineage = 1, Lineage(None, None)
    if registry is not None:
        generation = max(registry.numbers(), default=0) + 1
        lineage = find_lineage(registry, config.training, generation)
    with tempfile.TemporaryDirectory(prefix="mlip-job-") as temporary:
        parent = None
        if registry is not None:
            parent = fetch_parent_dataset(registry, lineage.dataset, Path(temporary))
        builder = DatasetBuilder(
            config.database.for_generation(generation), config.dataset, config.training, parent
        )
        record, selected = builder.preview(most)
    looked_at = record.counts.selected
    data = data_size(record).scaled(selected / looked_at)
    return Preview(
        generation,
        selected,
        record,
        choose_size(config.training, data, functions_of(lineage.potential)),
        without_new_data(record, lineage.dataset) if looked_at == selected else None,
    )
