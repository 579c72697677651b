"""``mlip-job check``: preflight, one line for each thing that a run needs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from mlip_job.cli.options import common_options
from mlip_job.cli.output import emit
from mlip_job.errors import MlipJobError

if TYPE_CHECKING:
    from collections.abc import Callable

    from mlip_job.cli.options import Settings
    from mlip_job.config import JobConfig


@click.command("check")
@common_options
@click.pass_context
def command(ctx: click.Context) -> None:
    """Check configuration, database, store and trainer.

    One line each, with the remedy where something is wrong; ends with the exit code of the first
    problem.
    """
    settings: Settings = ctx.find_root().obj
    config = settings.config()
    probes: dict[str, Callable[[], str]] = {
        "configuration": lambda: _configuration(settings, config),
        "database": lambda: _database(config),
        "store": lambda: _store(settings, config),
        "trainer": _trainer,
    }
    if config.training.require_gpu and not config.training.is_linear:
        probes["gpu"] = _gpu
    if config.tracking.mlflow_uri is not None:
        probes["tracking"] = lambda: _tracking(config)
    results = [(name, *_try(probe)) for name, probe in probes.items()]
    if all(error is None for name, _, error in results if name == "database"):
        results.append(("basis", *_try(lambda: _basis(config))))
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


def _configuration(settings: Settings, config: JobConfig) -> str:
    return f"{settings.config_path} is valid (family {config.family})"


def _database(config: JobConfig) -> str:
    from mlip_job.dataset.pages import PagedDatabase
    from mlip_job.dataset.provenance import note_methods

    with PagedDatabase(config.database.for_generation(1)) as database:
        counts = database.count_by_status()
        rows = ", ".join(f"{n} {status}" for status, n in counts.items()) or "no rows"
        text = f"{database.describe()}: {rows}; select {config.database.select!r}"
        note = note_methods(database.methods(), {})
        return f"{text}; note: {note}" if note else text


def _basis(config: JobConfig) -> str:
    from mlip_job.dataset.survey import look_at
    from mlip_job.pipeline.sizes import expected_size

    sample = look_at(config.database.for_generation(1))
    size = expected_size(config.training, sample)
    if size is None:
        return "no rows to choose a size from"
    estimate = "" if sample.looked_at == sample.selected else ", estimated"
    return f"{size}{estimate}" if size.warning is None else f"{size}; warning: {size.warning}"


def _store(settings: Settings, config: JobConfig) -> str:
    from mlip_job.registry import Registry

    store = settings.store(config)
    store.check()
    published = len(Registry(store, config.family).numbers())
    return f"{store.url}: conditional writes work; {published} generations published"


def _trainer() -> str:
    from mlip_job.environment import installed_versions
    from mlip_job.training.programs import find_program

    find_program("pacemaker")
    find_program("pace_yaml2yace")
    versions = installed_versions()
    shown = ("python-ace", "tensorpotential", "tensorflow", "numpy")
    return ", ".join(f"{name} {versions[name] or 'absent'}" for name in shown)


def _gpu() -> str:
    from mlip_job.training.gpu import require_gpu

    require_gpu()
    return "TensorFlow sees a GPU"


def _tracking(config: JobConfig) -> str:
    from mlip_job.tracking import check_server

    return check_server(config.tracking)
