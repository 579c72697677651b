"""``mlip-job gc``: remove what no manifest names."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from mlip_job.cli.options import common_options
from mlip_job.cli.output import emit

if TYPE_CHECKING:
    from mlip_job.cli.options import Settings


@click.command("gc")
@click.option(
    "--keep",
    metavar="AGE",
    default="7d",
    show_default=True,
    help="Keep what was written within this time, e.g. 12h, 30d.",
)
@click.option("--delete", is_flag=True, help="Remove it; without this, only say what would go.")
@common_options
@click.pass_obj
def command(settings: Settings, keep: str, *, delete: bool) -> None:
    """Remove what no manifest names.

    That is attempts, checkpoints and datasets which belong to no published generation and to none
    that is being trained. Published generations are never touched.
    """
    from mlip_job.cli.tables import show_orphans
    from mlip_job.registry.maintenance import collect_garbage, find_orphans, parse_age

    age = parse_age(keep)
    registry = settings.registry()
    orphans = collect_garbage(registry, age) if delete else list(find_orphans(registry, age))

    def show() -> None:
        show_orphans(orphans)
        if not orphans:
            click.echo(f"nothing to remove that is older than {keep}")
        elif not delete:
            click.echo("nothing was removed: --delete does it")

    document = {
        "deleted": delete,
        "orphans": [{"prefix": o.prefix, "what": o.what, "bytes": o.size} for o in orphans],
    }
    emit(settings, document, show)
