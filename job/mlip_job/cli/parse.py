"""``mlip-job parse``: report on any pacemaker work directory."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from mlip_job.cli.options import common_options
from mlip_job.cli.output import emit, print_lines, print_table
from mlip_job.report.texts import fixed

if TYPE_CHECKING:
    from mlip_job.cli.options import Settings
    from mlip_job.models import Errors
    from mlip_job.training.summary import RunSummary

_LABEL_WIDTH = 11


@click.command("parse")
@click.argument("directory", metavar="DIR", type=click.Path(path_type=Path))
@common_options
@click.pass_obj
def parse_command(settings: Settings, directory: Path) -> None:
    """Report on any pacemaker work directory.

    DIR need not come from this tool. Ends with 0 if it can be read, also if the fit in it failed.
    """
    from mlip_job.training.pacemaker.outcome import summarise_run

    summary = summarise_run(directory)
    emit(settings, summary.model_dump(mode="json"), lambda: _show(summary))


def _show(summary: RunSummary) -> None:
    from mlip_job.training.summary import describe_shares

    cause = f": {summary.cause}" if summary.cause else ""
    click.echo(f"{summary.status}{cause}")
    errors = {"train": summary.train, summary.second_set: summary.test}
    if any(errors.values()):
        print_table(
            ("", "RMSE E", "MAE E", "max E", "RMSE F", "MAE F", "max F"),
            [(side, *_figures(found)) for side, found in errors.items() if found is not None],
        )
        click.echo("E in meV/atom, F in meV/Å per component")
    lines = {
        "iterations": fixed(summary.iterations, 0),
        "functions": fixed(summary.functions, 0),
        "parameters": fixed(summary.parameters, 0),
        "early stop": summary.early_stopping,
        "result": None if summary.best is None else f"iteration {summary.best.iteration}",
        "optimiser": summary.optimiser_message,
        "final loss": describe_shares(summary.loss_shares) if summary.loss_shares else None,
        "versions": ", ".join(f"{name} {v}" for name, v in summary.versions.items()),
        "seconds": ", ".join(
            f"{phase.replace('_', ' ')} {seconds:.1f}"
            for phase, seconds in summary.timings_s.items()
        ),
    }
    if len(summary.cycles) > 1:
        lines["steps"] = "; ".join(
            f"{cycle.ladder_step + 1}.{cycle.cycle + 1}: {fixed(cycle.functions, 0)} functions, "
            f"{cycle.iterations} iterations, loss {cycle.final_loss or float('nan'):.4g}"
            for cycle in summary.cycles
        )
    print_lines(lines.items(), _LABEL_WIDTH)
    print_lines((("warning", warning) for warning in summary.warnings), _LABEL_WIDTH)


def _figures(errors: Errors) -> tuple[str, ...]:
    values = (
        errors.rmse_energy_mev_per_atom,
        errors.mae_energy_mev_per_atom,
        errors.max_energy_mev_per_atom,
        errors.rmse_force_mev_per_angstrom,
        errors.mae_force_mev_per_angstrom,
        errors.max_force_mev_per_angstrom,
    )
    return tuple(fixed(value, 2) for value in values)
