"""``mlip-job demo``: the main job on made-up data, twice."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mlip_job.cli.options import DEFAULT_CONFIG, common_options
from mlip_job.cli.output import Reporter, emit
from mlip_job.errors import ConfigError

if TYPE_CHECKING:
    from mlip_job.cli.options import Settings


@click.command("demo")
@click.option(
    "-o",
    "--output",
    metavar="DIR",
    default=Path("mlip-demo"),
    show_default=True,
    type=click.Path(file_okay=False, path_type=Path),
    help="Where to write database, configuration and store.",
)
@click.option("--elements", default="Cu", show_default=True, help="Metals, e.g. Cu,Au.")
@common_options
@click.pass_obj
def command(settings: Settings, output: Path, elements: str) -> None:
    """Train two generations on made-up copper data.

    Writes a database of structures labelled with ASE's EMT potential and a configuration, then
    runs generation 1, a linear fit, and generation 2, by pacemaker from the first one, on this
    machine. A demo that was stopped is resumed; one that is finished confirms what is there.
    """
    from mlip_job.cli.tables import show_generations
    from mlip_job.demo import FIRST_GENERATION
    from mlip_job.generation import run_generation
    from mlip_job.registry import Registry
    from mlip_job.runtime.signals import StopRequest

    _write_inputs(output, [e.strip() for e in elements.split(",")])
    settings.config_path = output / DEFAULT_CONFIG
    config = settings.config()
    reporter = Reporter(settings, config.training.max_iter)
    store = settings.store(config, patient=True, meter=reporter.transfer)
    command_line = f"mlip-job -c {settings.config_path} run"
    settings.assignments.append(FIRST_GENERATION)
    generations = (
        (1, settings.config(), f"{command_line} -g 1 --set {FIRST_GENERATION}"),
        (2, config, f"{command_line} -g 2"),
    )
    try:
        for number, own, same in generations:
            reporter.message(f"\n== {same}")
            with StopRequest() as stop:
                run_generation(own, number, store=store, observer=reporter, stop=stop)
    finally:
        reporter.close()
    registry = Registry(store, config.family)
    summaries = registry.summaries()

    def show() -> None:
        show_generations(registry.family, summaries, registry.latest())
        click.echo(_next_commands(output))

    document = {"directory": str(output), "generations": [g.generation for g in summaries]}
    emit(settings, document, show)


def _write_inputs(output: Path, elements: list[str]) -> None:
    """Write database and configuration; a directory that holds both is taken as it is."""
    from mlip_job.demo import demo_config, write_demo_database

    config, database = output / DEFAULT_CONFIG, output / "structures.db"
    text = demo_config(elements)
    if config.exists() and database.exists():
        if config.read_text(encoding="utf-8").splitlines()[0] != text.splitlines()[0]:
            raise ConfigError(f"{output} holds a demo of other elements", hint="choose -o DIR")
        return
    try:
        write_demo_database(database, elements)
        config.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigError(
            f"can't write to {output}: {error.strerror or error}", hint="choose another -o DIR"
        ) from None


def _next_commands(output: Path) -> str:
    where = shlex.quote(str(output))
    return "\n".join(
        (
            "",
            "Try next:",
            f"  cd {where}",
            "  mlip-job list",
            "  mlip-job show -g 2",
            "  mlip-job report -g 2 --open                   # how good it is, as a page",
            "  mlip-job run -g 2                             # nothing to do: it is published",
            "  mlip-job run -g 2 --set training.cutoff=6.0   # refused: it differs",
            "  mlip-job verify -g 2",
            "  mlip-job pull -g 2                            # gen_02/gen_02.yace for LAMMPS",
        )
    )
