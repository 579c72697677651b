"""``mlip-job init``: a commented configuration for a database."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from mlip_job.cli.options import DEFAULT_CONFIG, common_options
from mlip_job.cli.output import emit
from mlip_job.errors import ConfigError

if TYPE_CHECKING:
    from mlip_job.cli.options import Settings
    from mlip_job.dataset.survey import Sample

MOLECULES = 4.0
"""Å. A cutoff for structures of which none is periodic; docs/performance.md."""

_ENERGY_LIMIT_MEV = 10.0
"""meV/atom. Several times what is reached with settings by default; docs/performance.md."""

_FORCE_LIMIT = 0.2
"""Of the forces' root mean square. Predicting no forces at all is 1, good fits are below 0.1."""

_LEAST_FORCE_LIMIT_MEV = 20.0


@click.command("init")
@click.argument("database")
@click.option("--family", help="Name of the potential. [default: from the elements]")
@click.option(
    "--storage", default="store", show_default=True, help="A directory, or s3://bucket/prefix."
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
def command(
    settings: Settings, database: str, family: str | None, storage: str, output: Path
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
    from mlip_job.generation.lineage import expected_size

    if output.exists():
        raise ConfigError(f"{output} exists", hint="remove it, or choose another -o FILE")
    storage_only = {"family": "any", "storage": {"url": storage}}
    validate_config(storage_only, source="--storage")
    found = survey(database)
    elements, sample = found.sample.elements, found.sample
    family = family or "-".join(e.lower() for e in elements[:5])
    told: dict[str, dict[str, object]] = {
        "database": {"url": database, "select": found.selection},
        "dataset": dict(found.keys.values),
        "evaluation": {"gate": _limits(sample)},
        "storage": {"url": storage},
    }
    if elements and not sample.periodic:
        told["training"] = {"cutoff": MOLECULES}
    size = expected_size(TrainingConfig(), sample)
    text = commented_config(
        family=family,
        told=told,
        remarks={
            **found.keys.remarks,
            "max_energy_rmse_mev": "Proposed; null asks nothing.",
            "max_force_rmse_mev": f"Proposed: {100 * _FORCE_LIMIT:g} % of the forces' RMS in the "
            "data; null asks nothing.",
            "cutoff": _why_cutoff(sample),
            "functions_per_element": f"Here {size}" if size is not None else "",
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
    statuses = ", ".join(f"{n} {status}" for status, n in found.statuses.items())
    emit(
        settings,
        document,
        lambda: click.echo(
            f"{database}: {statuses or 'no rows'}; elements {', '.join(elements) or 'none'}\n"
            f"wrote {output}; next: mlip-job -c {output} check"
        ),
    )


def _limits(sample: Sample) -> dict[str, float]:
    """Propose limits that a useful potential is well below, from the forces in the data."""
    force = 1000 * _FORCE_LIMIT * sample.force_rms_ev
    return {
        "max_energy_rmse_mev": _ENERGY_LIMIT_MEV,
        "max_force_rmse_mev": float(f"{max(force, _LEAST_FORCE_LIMIT_MEV):.2g}"),
    }


def _why_cutoff(sample: Sample) -> str:
    if not sample.elements:
        return ""
    if sample.periodic:
        return "Here, for periodic structures."
    return "Here, for molecules: no structure is periodic."
