"""``mlip-job repair``: mend what a crash left half done."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from mlip_job.cli.options import common_options
from mlip_job.cli.output import emit

if TYPE_CHECKING:
    from mlip_job.cli.options import Settings


@click.command("repair")
@common_options
@click.pass_obj
def command(settings: Settings) -> None:
    """Mend what a crash left half done; report orphans.

    Writes missing or damaged copies under potentials/ and latest.json anew from the manifests.
    Attempts and datasets that no manifest names are listed; gc removes them.
    """
    from mlip_job.cli.tables import show_orphans
    from mlip_job.errors import IntegrityError
    from mlip_job.registry.maintenance import repair

    repairs = repair(settings.registry())

    def show() -> None:
        for line in repairs.mended:
            click.echo(line)
        if not repairs.mended:
            click.echo("nothing had to be mended" if not repairs.damaged else "nothing was mended")
        if repairs.orphans:
            click.echo("\nnamed by no manifest (mlip-job gc removes them):")
            show_orphans(repairs.orphans)

    document = {
        "mended": repairs.mended,
        "damaged": repairs.damaged,
        "orphans": [{"prefix": o.prefix, "what": o.what, "bytes": o.size} for o in repairs.orphans],
    }
    emit(settings, document, show)
    if repairs.damaged:
        raise IntegrityError(
            "can't be mended from what is in the store:\n  " + "\n  ".join(repairs.damaged),
            hint="restore it from a backup; mlip-job verify -g N reads all of a generation",
        )
