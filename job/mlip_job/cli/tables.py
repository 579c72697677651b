"""Human-readable views of datasets and generations."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from mlip_job.cli.output import figure, print_table
from mlip_job.naming import generation_name

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mlip_job.dataset.record import DatasetRecord
    from mlip_job.registry import GenerationSummary, Manifest
    from mlip_job.registry.maintenance import Orphan


_MODES = {"continue": "with the same basis", "extend": "growing its basis"}


def show_generations(
    family: str, generations: Sequence[GenerationSummary], latest: int | None
) -> None:
    """Print a table of generations, one line each."""
    if not generations:
        click.echo(f"no generation of {family} is published yet")
        return
    print_table(
        (
            "generation",
            "from",
            "train",
            "test",
            "RMSE E train",
            "RMSE E test",
            "RMSE F train",
            "RMSE F test",
            "functions",
            "iterations",
            "published (UTC)",
        ),
        [
            (
                generation_name(m.generation) + (" *" if m.generation == latest else ""),
                generation_name(m.parent.generation) if m.parent else "nothing",
                str(m.dataset.train),
                str(m.dataset.test),
                figure(m.headline.train.rmse_energy_mev_per_atom),
                figure(m.headline.test.rmse_energy_mev_per_atom),
                figure(m.headline.train.rmse_force_mev_per_angstrom),
                figure(m.headline.test.rmse_force_mev_per_angstrom),
                figure(m.headline.functions, 0),
                str(m.headline.iterations),
                f"{m.ended:%Y-%m-%d %H:%M}",
            )
            for m in generations
        ],
    )
    click.echo("RMSE E in meV/atom, RMSE F in meV/Å per component; * is the latest")


def show_orphans(orphans: Sequence[Orphan]) -> None:
    """Print what no manifest names, one line each, and its size."""
    for orphan in orphans:
        size = f"{orphan.size / 1e6:.1f} MB"
        click.echo(f"  {orphan.prefix}  {len(orphan.keys)} objects, {size}: {orphan.what}")


def show_manifest(manifest: Manifest) -> None:
    """Print what is known of one generation."""
    train, test = manifest.headline.train, manifest.headline.test
    parent = manifest.parent
    lines = [
        ("generation", f"{generation_name(manifest.generation)} of {manifest.family}"),
        ("elements", ", ".join(manifest.elements)),
        (
            "started from",
            f"{generation_name(parent.generation)}, {_MODES[parent.mode]}" if parent else "nothing",
        ),
        (
            "dataset",
            f"{manifest.dataset.id}: {manifest.dataset.train} train, {manifest.dataset.test} test",
        ),
        ("database", f"{manifest.dataset.database} where {manifest.dataset.selection or 'all'}"),
        (
            "RMSE energy",
            f"{figure(train.rmse_energy_mev_per_atom)} train, "
            f"{figure(test.rmse_energy_mev_per_atom)} test  meV/atom",
        ),
        (
            "RMSE forces",
            f"{figure(train.rmse_force_mev_per_angstrom)} train, "
            f"{figure(test.rmse_force_mev_per_angstrom)} test  meV/Å per component",
        ),
        ("basis", f"{figure(manifest.headline.functions, 0)} functions"),
        ("fit", f"{manifest.headline.iterations} iterations, seed {manifest.fit_seed}"),
        (
            "E_DFT - E_pot",
            " + ".join(
                f"n({e})·{manifest.reference_energies[e]:.6f} eV" for e in manifest.elements
            ),
        ),
        ("attempts", _attempts(manifest)),
        ("artefacts", ", ".join(sorted(manifest.artefacts))),
    ]
    for name, text in lines:
        click.echo(f"{name:<14} {text}")


def _attempts(manifest: Manifest) -> str:
    started = f"begun {manifest.started:%Y-%m-%d %H:%M} UTC"
    if len(manifest.attempts) == 1:
        return f"{manifest.attempt}, {started}"
    parts = ", ".join(f"{part.attempt} ({part.iterations})" for part in manifest.attempts)
    return f"{parts} iterations, {started}"


def show_dataset(record: DatasetRecord) -> None:
    """Print what a dataset is made of."""
    counts = record.counts
    lines = [
        ("dataset", record.id),
        ("rows", f"{counts.selected} selected by {record.selection or 'nothing (all rows)'}"),
        ("split", f"{counts.train} train, {counts.test} test"),
        (
            "elements",
            ", ".join(
                f"{e} in {n.structures} structures, {n.atoms} atoms"
                for e, n in record.per_element.items()
            ),
        ),
        (
            "reference",
            ", ".join(
                f"{e} {energy:.6f} eV ({record.reference_energy_sources[e].replace('_', ' ')})"
                for e, energy in record.reference_energies.items()
            ),
        ),
    ]
    lines += [
        ("rejected", f"{rows.count} {reason}: rows {_some(rows.rows)}")
        for reason, rows in record.rejections.items()
    ]
    lines += [("note", note) for note in record.notes]
    for name, text in lines:
        click.echo(f"{name:<10} {text}")


def _some(rows: Sequence[int], limit: int = 10) -> str:
    shown = ", ".join(map(str, rows[:limit]))
    return shown + (f" and {len(rows) - limit} more" if len(rows) > limit else "")
