"""``mlip-job init``, ``check``, ``demo``, ``config`` and ``completion``."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from mlip_job.cli.options import DEFAULT_CONFIG, common_options
from mlip_job.cli.output import Reporter, emit
from mlip_job.errors import ConfigError, MlipJobError

if TYPE_CHECKING:
    from collections.abc import Callable

    from mlip_job.cli.options import Settings
    from mlip_job.config import JobConfig, TrainingConfig
    from mlip_job.dataset.survey import Sample

# Proposed settings: docs/performance.md has measurements.
_CUTOFF_OF_MOLECULES = 4.0  # Å, if no structure is periodic
_CUTOFF_REMARKS = {
    True: "Here, for periodic structures.",
    False: "Here, for molecules: no structure is periodic.",
}
_ENERGY_LIMIT_MEV = 10.0  # meV/atom, several times the errors with settings by default
# Fraction of the forces' root mean square. Predicting no forces is 1, good fits are below 0.1.
_FORCE_LIMIT = 0.2
_LEAST_FORCE_LIMIT_MEV = 20.0  # meV/Å


@click.command("init")
@click.argument("database")
@click.option("--family", help="Name of the potential. [default: from the elements]")
@click.option(
    "--storage", default="store", show_default=True, help="A directory, or s3://bucket/prefix."
)
@click.option(
    "--trainer",
    type=click.Choice(("pacemaker", "grace-fs")),
    default="pacemaker",
    show_default=True,
    help="What fits the potential.",
)
@click.option(
    "-o",
    "--output",
    metavar="FILE",
    default=Path(DEFAULT_CONFIG),
    show_default=True,
    type=click.Path(dir_okay=False, path_type=Path),
    help="The file to write.",
)
@common_options
@click.pass_obj
def init_command(
    settings: Settings,
    database: str,
    family: str | None,
    storage: str,
    trainer: Literal["pacemaker", "grace-fs"],
    output: Path,
) -> None:
    """Write a commented mlip-job.yaml for a database.

    DATABASE is an SQLite file, postgresql://user@host/name or mysql://user@host:port/name. Looks
    into it for the elements, the status that finished rows have, and keys that name trajectories,
    types of structures, or the sides of a split.
    """
    from mlip_job.config import TrainingConfig
    from mlip_job.config.load import validate_config
    from mlip_job.config.template import commented_config
    from mlip_job.dataset.survey import survey
    from mlip_job.generation.data import expected_size

    if output.exists():
        raise ConfigError(f"{output} exists", hint="remove it, or choose another -o FILE")
    storage_only = {"family": "any", "storage": {"url": storage}}
    validate_config(storage_only, source="--storage")
    found = survey(database)
    elements, sample = found.sample.elements, found.sample
    family = family or "-".join(e.lower() for e in elements[:5])
    values: dict[str, dict[str, object]] = {
        "database": {"url": database, "select": found.selection},
        "dataset": dict(found.keys.values),
        "evaluation": {"gate": _limits(sample)},
        "storage": {"url": storage},
    }
    training = TrainingConfig(trainer=trainer)
    values["training"] = {} if trainer == "pacemaker" else _of_grace(training)
    if elements and not sample.periodic:
        values["training"]["cutoff"] = _CUTOFF_OF_MOLECULES
    size = expected_size(training, sample)
    text = commented_config(
        family=family,
        values=values,
        remarks={
            **found.keys.remarks,
            "max_energy_rmse_mev": "Proposed; null asks nothing.",
            "max_force_rmse_mev": f"Proposed: {100 * _FORCE_LIMIT:g} % of the forces' RMS in the "
            "data; null asks nothing.",
            "cutoff": _CUTOFF_REMARKS[sample.periodic] if elements else "",
            "functions_per_element": f"Here {size}" if size is not None else "",
            "stress_weight": "Above 0, every periodic structure needs a stress.",
        },
    )
    try:
        output.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"can't write {output}: {error.strerror}") from None
    document = {
        "file": str(output),
        "family": family,
        "select": found.selection,
        "elements": list(elements),
        "dataset": dict(found.keys.values),
        "statuses": found.statuses,
    }

    def show() -> None:
        statuses = ", ".join(f"{n} {status}" for status, n in found.statuses.items())
        click.echo(f"{database}: {statuses or 'no rows'}; elements {', '.join(elements) or 'none'}")
        click.echo(f"wrote {output}; next: mlip-job -c {output} check")

    emit(settings, document, show)


def _of_grace(training: TrainingConfig) -> dict[str, object]:
    """Return the settings of GRACE/FS that a first configuration shows."""
    return training.model_dump(
        include={"trainer", "energy_weight", "stress_weight", "max_iter", "zbl"}
    )


def _limits(sample: Sample) -> dict[str, float]:
    """Propose limits that a useful potential is well below, from the forces in the data."""
    force = max(1000 * _FORCE_LIMIT * sample.force_rms_ev, _LEAST_FORCE_LIMIT_MEV)
    return {"max_energy_rmse_mev": _ENERGY_LIMIT_MEV, "max_force_rmse_mev": float(f"{force:.2g}")}


Result = tuple[str, str, MlipJobError | None]
"""Name of a check, what was found, and the error if there is one."""


@click.command("check")
@common_options
@click.pass_context
def check_command(ctx: click.Context) -> None:
    """Check configuration, database, store and trainer.

    Rows are selected, validated and split as by a run, or a sample of them if there are many.
    One line each, with the remedy where something is wrong; ends with the exit code of the first
    problem.
    """
    from mlip_job.tracking import check_server

    settings: Settings = ctx.find_root().obj
    config = settings.config()
    probes: dict[str, Callable[[], str]] = {
        "configuration": lambda: f"{settings.config_path} is valid (family {config.family})",
        "database": lambda: _database(config),
        "store": lambda: _store(settings, config),
        "trainer": lambda: _trainer(config.training),
    }
    if config.training.require_gpu and not config.training.is_linear:
        probes["gpu"] = _gpu
    if config.tracking.mlflow_uri is not None:
        probes["tracking"] = lambda: check_server(config.tracking)
    results: list[Result] = [(name, *_try(probe)) for name, probe in probes.items()]
    sound = {name for name, _, error in results if error is None}
    if "database" in sound:
        results += _dataset(settings, config, store="store" in sound)
    document = [
        {
            "check": name,
            "ok": error is None,
            "message": text if error is None else error.message,
            "remedy": error.hint if error is not None else None,
        }
        for name, text, error in results
    ]

    def show() -> None:
        for name, text, error in results:
            click.echo(f"{'ok  ' if error is None else 'FAIL'}  {name:<13} {text}")

    emit(settings, document, show)
    failures = [error for _, _, error in results if error is not None]
    if failures:
        ctx.exit(failures[0].exit_code)


def _try(probe: Callable[[], str]) -> tuple[str, MlipJobError | None]:
    try:
        return probe(), None
    except MlipJobError as error:
        return str(error), error


def _database(config: JobConfig) -> str:
    from mlip_job.dataset.database import StructureDatabase

    with StructureDatabase(config.database) as database:
        counts = database.count_by_status()
        rows = ", ".join(f"{n} {status}" for status, n in counts.items()) or "no rows"
        return f"{database.describe()}: {rows}; select {config.database.select!r}"


def _dataset(settings: Settings, config: JobConfig, *, store: bool) -> list[Result]:
    """Preview the dataset of a run, which inherits from generations in the store."""
    from mlip_job.generation.data import preview

    try:
        found = preview(config, settings.registry(config) if store else None)
    except MlipJobError as error:
        return [("dataset", str(error), error)]
    estimate = "" if found.record.counts.selected == found.selected else ", estimated"
    warning = f"; warning: {found.size.warning}" if found.size.warning is not None else ""
    return [("dataset", str(found), None), ("basis", f"{found.size}{estimate}{warning}", None)]


def _store(settings: Settings, config: JobConfig) -> str:
    registry = settings.registry(config)
    registry.store.check()
    published = len(registry.numbers())
    return f"{registry.store.url}: conditional writes work; {published} generations published"


def _trainer(training: TrainingConfig) -> str:
    from mlip_job.runtime.environment import installed_versions
    from mlip_job.training import open_trainer

    open_trainer(training, Path()).require_programs(active_set=True)
    versions = installed_versions()
    shown = ("python-ace", "tensorpotential", "tensorflow", "numpy")
    return ", ".join(f"{name} {versions[name] or 'absent'}" for name in shown)


def _gpu() -> str:
    from mlip_job.training.programs import require_gpu

    require_gpu()
    return "TensorFlow sees a GPU"


@click.group("config")
def config_command() -> None:
    """Show the resolved configuration or its JSON Schema."""


@config_command.command("show")
@common_options
@click.pass_obj
def show(settings: Settings) -> None:
    """Print the configuration after file, environment and --set, in that order.

    It holds no secrets: those stay in the environment.
    """
    import yaml

    values = settings.config().model_dump(mode="json")
    if settings.as_json:
        click.echo(json.dumps(values, indent=2))
    else:
        click.echo(yaml.safe_dump(values, sort_keys=False), nl=False)


@config_command.command("schema")
@common_options
def schema() -> None:
    """Print the JSON Schema of mlip-job.yaml, for editors."""
    from mlip_job.config import JobConfig

    click.echo(json.dumps(JobConfig.model_json_schema(), indent=2))


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
def demo_command(settings: Settings, output: Path, elements: str) -> None:
    """Train two generations on made-up copper data.

    Writes a database of structures labelled with ASE's EMT potential and a configuration, then
    runs generation 1, a linear fit, and generation 2, by pacemaker from the first one, on this
    machine. An interrupted demo is resumed; a finished one is confirmed.
    """
    from mlip_job.cli.generations import show_generations
    from mlip_job.demo import FIRST_GENERATION
    from mlip_job.generation import run_generation
    from mlip_job.runtime.processes import StopRequest

    _write_inputs(output, [e.strip() for e in elements.split(",")])
    settings.config_path = output / DEFAULT_CONFIG
    config = settings.config()
    reporter = Reporter(settings, config.training.max_iter)
    registry = settings.registry(config, patient=True, meter=reporter.transfer)
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
                run_generation(own, number, store=registry.store, observer=reporter, stop=stop)
    finally:
        reporter.close()
    summaries = registry.summaries()

    def show() -> None:
        show_generations(registry.family, summaries, registry.latest())
        click.echo(_NEXT.format(directory=shlex.quote(str(output))))

    document = {"directory": str(output), "generations": [g.generation for g in summaries]}
    emit(settings, document, show)


def _write_inputs(output: Path, elements: list[str]) -> None:
    """Write database and configuration; existing ones are reused."""
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


_NEXT = """
Try next:
  cd {directory}
  mlip-job list
  mlip-job show -g 2
  mlip-job report -g 2 --open                   # how good it is, as a page
  mlip-job run -g 2                             # nothing to do: it is published
  mlip-job run -g 2 --set training.cutoff=6.0   # refused: it differs
  mlip-job verify -g 2
  mlip-job pull -g 2                            # gen_02/gen_02.yace for LAMMPS"""

# Where each shell looks for completions, below the home directory.
_COMPLETIONS = {
    "bash": ".local/share/bash-completion/completions/mlip-job",
    "fish": ".config/fish/completions/mlip-job.fish",
    "zsh": ".zsh/completions/_mlip-job",
}


@click.command("completion")
@click.argument("shell", type=click.Choice(tuple(_COMPLETIONS)), default="bash")
@click.option("--print", "only_print", is_flag=True, help="Print the script; write no file.")
def completion_command(shell: str, *, only_print: bool) -> None:
    """Install the completion of verbs and options in a shell.

    It is active in the next shell. bash needs the package bash-completion; zsh finds the file if
    ~/.zsh/completions is in fpath before compinit.
    """
    from click.shell_completion import get_completion_class

    from mlip_job.cli.main import cli

    kind = get_completion_class(shell)
    if kind is None:
        raise ConfigError(f"no completion for {shell}")
    script = kind(cli, {}, "mlip-job", "_MLIP_JOB_COMPLETE").source()
    if only_print:
        click.echo(script)
        return
    path = Path.home() / _COMPLETIONS[shell]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(script, encoding="utf-8")
    click.echo(f"{path} (active in the next {shell})")
