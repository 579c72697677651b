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

Result = tuple[str, str, MlipJobError | None]
"""Name of a check, what was found, and the error if there is one."""


@click.command("check")
@common_options
@click.pass_context
def command(ctx: click.Context) -> None:
    """Check configuration, database, store and trainer.

    Rows are selected, validated and split as by a run, or a sample of them if there are many.
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


def _configuration(settings: Settings, config: JobConfig) -> str:
    return f"{settings.config_path} is valid (family {config.family})"


def _database(config: JobConfig) -> str:
    from mlip_job.dataset.database import StructureDatabase

    with StructureDatabase(config.database) as database:
        counts = database.count_by_status()
        rows = ", ".join(f"{n} {status}" for status, n in counts.items()) or "no rows"
        return f"{database.describe()}: {rows}; select {config.database.select!r}"


def _dataset(settings: Settings, config: JobConfig, *, store: bool) -> list[Result]:
    """Return what a run would make of the rows; what it inherits is in the store."""
    from mlip_job.generation.data import preview
    from mlip_job.registry import Registry

    try:
        registry = Registry(settings.store(config), config.family) if store else None
        found = preview(config, registry)
    except MlipJobError as error:
        return [("dataset", str(error), error)]
    estimate = "" if found.record.counts.selected == found.selected else ", estimated"
    warning = f"; warning: {found.size.warning}" if found.size.warning is not None else ""
    return [("dataset", str(found), None), ("basis", f"{found.size}{estimate}{warning}", None)]


def _store(settings: Settings, config: JobConfig) -> str:
    from mlip_job.registry import Registry

    store = settings.store(config)
    store.check()
    published = len(Registry(store, config.family).numbers())
    return f"{store.url}: conditional writes work; {published} generations published"


def _trainer() -> str:
    from mlip_job.runtime.environment import installed_versions
    from mlip_job.training.pacemaker.programs import find_program

    find_program("pacemaker")
    find_program("pace_yaml2yace")
    versions = installed_versions()
    shown = ("python-ace", "tensorpotential", "tensorflow", "numpy")
    return ", ".join(f"{name} {versions[name] or 'absent'}" for name in shown)


def _gpu() -> str:
    from mlip_job.training.pacemaker.programs import require_gpu

    require_gpu()
    return "TensorFlow sees a GPU"


def _tracking(config: JobConfig) -> str:
    from mlip_job.tracking import check_server

    return check_server(config.tracking)
