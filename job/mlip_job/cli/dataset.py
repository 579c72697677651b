"""``mlip-job export``: the dataset of a generation, without training."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from mlip_job.cli.options import (
    common_options,
    generation_option,
    output_option,
    resolve_generation,
)
from mlip_job.cli.output import Reporter, emit, print_lines
from mlip_job.report.texts import row_ids

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from mlip_job.cli.options import Settings
    from mlip_job.dataset.record import DatasetRecord


@click.command("export")
@generation_option("next")
@output_option("Write the files there too; it must not hold any yet.", directory=True)
@click.option("--rebuild", is_flag=True, help="Read all rows even if none was written since.")
@common_options
@click.pass_obj
def export_command(
    settings: Settings, generation: int | str, output: Path | None, *, rebuild: bool
) -> None:
    """Build the dataset of a generation and publish it.

    Selects, checks and splits the rows, and puts train.xyz, test.xyz, pacemaker's frames and
    dataset.json into the store under their content hash. Where the store has the dataset of the
    same query, and ASE wrote none of its rows since, there is nothing to do.
    """
    from mlip_job.generation import export_generation
    from mlip_job.runtime.processes import StopRequest

    config = settings.config()
    reporter = Reporter(settings)
    registry = settings.registry(config, patient=True, meter=reporter.transfer)
    number = resolve_generation(generation, registry)
    with StopRequest():
        record = export_generation(
            config, number, store=registry.store, observer=reporter, output=output, rebuild=rebuild
        )
    emit(settings, record.model_dump(mode="json"), lambda: print_lines(_lines(record), width=10))


def _lines(record: DatasetRecord) -> Iterator[tuple[str, str]]:
    counts, sources = record.counts, record.reference_energy_sources
    yield "dataset", record.id
    yield "rows", f"{counts.selected} selected by {record.selection or 'nothing (all rows)'}"
    yield "split", f"{counts.train} train, {counts.test} test"
    yield (
        "elements",
        ", ".join(
            f"{element} in {n.structures} structures, {n.atoms} atoms"
            for element, n in record.per_element.items()
        ),
    )
    yield (
        "reference",
        ", ".join(
            f"{element} {energy:.6f} eV ({sources[element].replace('_', ' ')})"
            for element, energy in record.reference_energies.items()
        ),
    )
    for reason, rows in record.rejections.items():
        yield "rejected", f"{rows.count} {reason}: rows {row_ids(rows.rows)}"
    for note in record.notes:
        yield "note", note
