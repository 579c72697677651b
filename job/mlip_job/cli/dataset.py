"""``mlip-job export``: the dataset of a generation, without training."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from mlip_job.cli.options import common_options, generation_option, resolve_generation
from mlip_job.cli.output import Reporter, emit

if TYPE_CHECKING:
    from mlip_job.cli.options import Settings


@click.command("export")
@generation_option("next")
@click.option(
    "-o",
    "--output",
    metavar="DIR",
    type=click.Path(file_okay=False, path_type=Path),
    help="Write the files there too; it must not hold any yet.",
)
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
    from mlip_job.cli.tables import show_dataset
    from mlip_job.generation import export_generation
    from mlip_job.registry import Registry
    from mlip_job.runtime.processes import StopRequest

    config = settings.config()
    reporter = Reporter(settings)
    store = settings.store(config, patient=True, meter=reporter.transfer)
    number = resolve_generation(generation, Registry(store, config.family))
    with StopRequest():
        record = export_generation(
            config, number, store=store, observer=reporter, output=output, rebuild=rebuild
        )
    emit(settings, record.model_dump(mode="json"), lambda: show_dataset(record))
