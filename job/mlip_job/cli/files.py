"""``mlip-job pull``, ``verify``, ``repair`` and ``gc``: the files of generations in the store."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from mlip_job.cli.options import (
    common_options,
    generation_option,
    output_option,
    resolve_generation,
)
from mlip_job.cli.output import emit
from mlip_job.errors import IntegrityError
from mlip_job.paths import generation_name

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from mlip_job.cli.options import Settings
    from mlip_job.registry import Manifest
    from mlip_job.registry.maintenance import Orphan


@click.command("pull")
@generation_option("latest")
@output_option("Where to put them. [default: the generation's name]", directory=True)
@click.option("--dataset", "with_dataset", is_flag=True, help="The dataset too.")
@common_options
@click.pass_obj
def pull_command(
    settings: Settings, generation: int | str, output: Path | None, *, with_dataset: bool
) -> None:
    """Download a generation's artefacts and check them.

    Every file is checked against the manifest before it takes its place; an existing file with
    other content is a conflict (73).
    """
    from mlip_job.registry.maintenance import pull_generation

    registry = settings.registry()
    manifest = registry.get(resolve_generation(generation, registry))
    directory = output or Path(generation_name(manifest.generation))
    files = pull_generation(registry, manifest, directory, with_dataset=with_dataset)
    lammps = list(_lammps_lines(manifest, directory))

    def show() -> None:
        click.echo("\n".join(str(file) for file in files))
        click.echo("\nfor LAMMPS:\n" + "\n".join(f"  {line}" for line in lammps), err=True)

    names = [str(file) for file in files]
    emit(settings, {"generation": manifest.generation, "files": names, "lammps": lammps}, show)


def _lammps_lines(manifest: Manifest, directory: Path) -> Iterator[str]:
    """Yield the lines of a LAMMPS input for a pulled potential, with grades if it has them."""
    is_grace = manifest.trainer == "grace-fs"
    elements = " ".join(manifest.elements)

    def coefficients(*suffixes: str) -> str:
        base = directory / generation_name(manifest.generation)
        paths = (f"{base}.{suffix}" for suffix in suffixes)
        quoted = (f'"{path}"' if " " in path else path for path in paths)
        return " ".join(("pair_coeff * *", *quoted, elements))

    yield "pair_style grace/fs" if is_grace else "pair_style pace"
    yield coefficients("yaml" if is_grace else "yace")
    if "potential.asi" in manifest.artefacts:
        graded = "grace/fs extrapolation" if is_grace else "pace/extrapolation"
        yield f"# with extrapolation grades: pair_style {graded}"
        yield f"# {coefficients('yaml', 'asi')}"


@click.command("verify")
@generation_option("latest")
@common_options
@click.pass_obj
def verify_command(settings: Settings, generation: int | str) -> None:
    """Read back a generation and check every hash.

    Covers every artefact, the copies under potentials/ and the dataset. Ends with 65 where
    anything is missing or differs.
    """
    registry = settings.registry()
    manifest = registry.get(resolve_generation(generation, registry))
    name = generation_name(manifest.generation)
    problems = registry.verify(manifest)
    emit(
        settings,
        {"generation": manifest.generation, "intact": not problems, "problems": problems},
        lambda: None if problems else click.echo(f"{name} is intact"),
    )
    if problems:
        details = "\n".join(f"  {problem}" for problem in problems)
        raise IntegrityError(f"{name} is damaged:\n{details}", hint="restore it from a backup")


@click.command("repair")
@common_options
@click.pass_obj
def repair_command(settings: Settings) -> None:
    """Repair the effects of a crash; report orphans.

    Writes missing or damaged copies under potentials/ and latest.json anew from the manifests.
    Attempts and datasets that no manifest names are listed; gc removes them.
    """
    from mlip_job.registry.maintenance import repair

    repairs = repair(settings.registry())

    def show() -> None:
        for line in repairs.repaired:
            click.echo(line)
        if not repairs.repaired:
            click.echo(
                "nothing had to be repaired" if not repairs.damaged else "nothing was repaired"
            )
        if repairs.orphans:
            click.echo("\nnamed by no manifest (mlip-job gc removes them):")
            _show_orphans(repairs.orphans)

    document = {
        "mended": repairs.repaired,
        "damaged": repairs.damaged,
        "orphans": _documents(repairs.orphans),
    }
    emit(settings, document, show)
    if repairs.damaged:
        raise IntegrityError(
            "can't be repaired from what is in the store:\n  " + "\n  ".join(repairs.damaged),
            hint="restore it from a backup; mlip-job verify -g N reads all of a generation",
        )


@click.command("gc")
@click.option(
    "--keep",
    metavar="AGE",
    default="7d",
    show_default=True,
    help="Keep what was written within this time, e.g. 12h, 30d.",
)
@click.option("--delete", is_flag=True, help="Remove it; without this, only list it.")
@common_options
@click.pass_obj
def gc_command(settings: Settings, keep: str, *, delete: bool) -> None:
    """Remove what no manifest names.

    That is attempts, checkpoints and datasets which belong to no published generation and to none
    that is being trained. Published generations are never touched.
    """
    from mlip_job.registry.maintenance import collect_garbage, find_orphans, parse_age

    age = parse_age(keep)
    registry = settings.registry()
    orphans = collect_garbage(registry, age) if delete else list(find_orphans(registry, age))

    def show() -> None:
        _show_orphans(orphans)
        if not orphans:
            click.echo(f"nothing to remove that is older than {keep}")
        elif not delete:
            click.echo("nothing was removed: add --delete")

    emit(settings, {"deleted": delete, "orphans": _documents(orphans)}, show)


def _show_orphans(orphans: Sequence[Orphan]) -> None:
    for orphan in orphans:
        size = f"{orphan.size / 1e6:.1f} MB"
        click.echo(f"  {orphan.prefix}  {len(orphan.keys)} objects, {size}: {orphan.what}")


def _documents(orphans: Sequence[Orphan]) -> list[dict[str, object]]:
    return [{"prefix": o.prefix, "what": o.what, "bytes": o.size} for o in orphans]
