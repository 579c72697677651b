"""Tables and figures as text."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING

import click

from mlip_job.cli.output import duration
from mlip_job.paths import generation_name

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from mlip_job.dataset.record import DatasetRecord
    from mlip_job.registry import (
        GenerationSummary,
        LatestPointer,
        Manifest,
        PredecessorChange,
    )
    from mlip_job.registry.maintenance import Orphan

WIDTH = 80
"""Columns of a terminal that every table fits."""

_NARROWEST = 16
"""Characters; a column this narrow is not narrowed further, so no number is broken."""

_UNKNOWN = "–"


def figure(value: float | None, digits: int = 1) -> str:
    """Return a number as text, and a dash for what is not known."""
    return _UNKNOWN if value is None else f"{value:.{digits}f}"


def print_table(
    columns: Sequence[str], rows: Sequence[Sequence[str]], numeric: Sequence[bool] | None = None
) -> None:
    """Print a table on stdout; numbers stand to the right.

    One that is too wide gets its headings, then its texts on several lines; where that is not
    enough it is continued below itself, with its first column again.

    `numeric` says which columns hold numbers where their cells don't show it.
    """
    if numeric is None:
        numeric = [all(_is_number(row[index]) for row in rows) for index in range(len(columns))]
    click.echo("\n".join(_lines(columns, rows, numeric)))


def _is_number(text: str) -> bool:
    return text.replace(".", "", 1).replace("-", "", 1).isdigit() or text == _UNKNOWN


def _lines(
    columns: Sequence[str], rows: Sequence[Sequence[str]], numeric: Sequence[bool]
) -> Iterator[str]:
    widths, gap = _widths(columns, rows)
    if _total(widths, gap) > WIDTH and len(columns) > 2:  # noqa: PLR2004 - nothing to split
        first, cut = slice(0, 1), len(columns) // 2 + 1
        for part in (slice(1, cut), slice(cut, None)):
            yield from _lines(
                [*columns[first], *columns[part]],
                [[*row[first], *row[part]] for row in rows],
                [*numeric[first], *numeric[part]],
            )
        return
    heading = [textwrap.wrap(text, w) for text, w in zip(columns, widths, strict=True)]
    tallest = max(len(lines) for lines in heading)
    heading = [[""] * (tallest - len(lines)) + lines for lines in heading]
    cells = [[textwrap.wrap(text, w) for text, w in zip(row, widths, strict=True)] for row in rows]
    head, *body = (_row(row, widths, numeric, gap) for row in (heading, *cells))
    yield from head
    yield " " + "─" * (_total(widths, gap) - 1)
    for lines in body:
        yield from lines
    yield ""


def _widths(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> tuple[list[int], int]:
    """Return the width of each column and of the gap between two of them."""
    inside = [max((len(row[index]) for row in rows), default=1) for index in range(len(columns))]
    widths = [max(1, cell, len(name)) for cell, name in zip(inside, columns, strict=True)]
    if _total(widths, gap := 3) <= WIDTH:
        return widths, gap
    words = [max(map(len, name.split()), default=1) for name in columns]
    widths, gap = [max(1, *pair) for pair in zip(inside, words, strict=True)], 2
    while _total(widths, gap) > WIDTH and max(widths) > _NARROWEST:
        widths[widths.index(max(widths))] -= 1
    return widths, gap


def _total(widths: Sequence[int], gap: int) -> int:
    return 1 + sum(widths) + gap * (len(widths) - 1)


def _row(
    cells: Sequence[Sequence[str]], widths: Sequence[int], numeric: Sequence[bool], gap: int
) -> list[str]:
    """Return the lines of a row, whose cells have some lines each."""
    texts = []
    for number in range(max(1, *(len(lines) for lines in cells))):
        parts = [lines[number] if number < len(lines) else "" for lines in cells]
        shown = [
            part.rjust(width) if right else part.ljust(width)
            for part, width, right in zip(parts, widths, numeric, strict=True)
        ]
        texts.append(f" {(' ' * gap).join(shown)}".rstrip())
    return texts


_MODES = {"continue": "with the same basis", "extend": "growing its basis"}


def show_generations(
    family: str, generations: Sequence[GenerationSummary], latest: int | None
) -> None:
    """Print a table of generations, one line each."""
    from mlip_job.report.texts import gate_word

    if not generations:
        click.echo(f"no generation of {family} is published yet")
        return
    print_table(
        ("", "gate", "from", "train", "test", "E test", "F test", "E, F change"),
        [
            (
                generation_name(m.generation) + (" *" if m.generation == latest else ""),
                gate_word(m.headline),
                generation_name(m.parent.generation) if m.parent else "nothing",
                str(m.dataset.train),
                str(m.dataset.test),
                figure(m.headline.test.rmse_energy_mev_per_atom),
                figure(m.headline.test.rmse_force_mev_per_angstrom),
                _change(m.headline.change),
            )
            for m in generations
        ],
    )
    click.echo(
        "RMSE of E in meV/atom, of F in meV/Å per component, on each generation's own\n"
        "test set. Change: since the generation that was in use before, both measured on\n"
        "the structures that are test for both. * is the latest. show has more"
    )
    for m in generations:
        for failed in m.headline.failed_checks:
            click.echo(f"{generation_name(m.generation)} failed a physics check: {failed}")
        for reason in m.headline.unchecked:
            click.echo(f"{generation_name(m.generation)} is not fully checked: {reason}")


def _change(change: PredecessorChange | None) -> str:
    from mlip_job.report.texts import describe_change

    if change is None:
        return figure(None)
    return f"{describe_change(change.energy)}, {describe_change(change.force)}"


def show_orphans(orphans: Sequence[Orphan]) -> None:
    """Print orphans, one line each with its size."""
    for orphan in orphans:
        size = f"{orphan.size / 1e6:.1f} MB"
        click.echo(f"  {orphan.prefix}  {len(orphan.keys)} objects, {size}: {orphan.what}")


def show_manifest(manifest: Manifest, latest: LatestPointer | None = None) -> None:
    """Print what is known of one generation; `latest` is the pointer where it points there."""
    from mlip_job.report.comparison import fit_settings

    train, test = manifest.headline.train, manifest.headline.test
    parent = manifest.parent
    nothing = "a linear fit" if manifest.linear_start else "nothing"
    lines = [
        ("generation", f"{generation_name(manifest.generation)} of {manifest.family}"),
        ("gate", _gate(manifest)),
        *([("latest", _choice(latest))] if latest else []),
        ("elements", ", ".join(manifest.elements)),
        (
            "started from",
            f"{generation_name(parent.generation)}, {_MODES[parent.mode]}" if parent else nothing,
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
        *_compared(manifest.headline.change),
        *fit_settings(manifest).items(),
        ("basis", f"{figure(manifest.headline.functions, 0)} functions"),
        ("fit", _fit(manifest)),
        *_loss(manifest),
        *_speed(manifest),
        (
            "E_DFT - E_pot",
            " + ".join(
                f"n({e})·{manifest.reference_energies[e]:.6f} eV" for e in manifest.elements
            ),
        ),
        ("attempts", _attempts(manifest)),
        *_times(manifest),
        *_committee(manifest),
        ("artefacts", ", ".join(sorted(manifest.artefacts))),
        *(("failed check", failed) for failed in manifest.headline.failed_checks),
        *(("not checked", reason) for reason in manifest.headline.unchecked),
        *(("warning", warning) for warning in manifest.headline.warnings),
    ]
    for name, text in lines:
        click.echo(f"{name:<14} {text}")


def _gate(manifest: Manifest) -> str:
    headline = manifest.headline
    if not headline.rejected_because:
        return headline.verdict
    return f"{headline.verdict}: {'; '.join(headline.rejected_because)}"


def _compared(change: PredecessorChange | None) -> Iterator[tuple[str, str]]:
    """Yield how the test errors changed since another generation."""
    if change is not None:
        yield (
            "E, F change",
            f"{_change(change)} since {generation_name(change.generation)}, "
            f"on {change.structures} common test structures",
        )


def _loss(manifest: Manifest) -> Iterator[tuple[str, str]]:
    from mlip_job.training.loss import describe_shares

    if manifest.headline.loss_shares is not None:
        yield "final loss", describe_shares(manifest.headline.loss_shares)


def _speed(manifest: Manifest) -> Iterator[tuple[str, str]]:
    time = manifest.headline.evaluator_us_per_atom
    if time is not None:
        yield "evaluator", f"{time:.3g} µs per atom on one core ({manifest.environment.host.cpu})"


def _choice(latest: LatestPointer) -> str:
    forced = ", forced" if latest.forced else ""
    return f"since {latest.moved:%Y-%m-%d %H:%M} UTC{forced}: {latest.reason}"


def _committee(manifest: Manifest) -> Iterator[tuple[str, str]]:
    """Yield what there is to say of an ensemble."""
    if manifest.ensemble is None:
        return
    scale = _loss_scale(manifest)
    for member in manifest.ensemble.members:
        test = member.headline.test
        yield (
            f"member {member.number}",
            f"seed {member.seed}, test loss {member.test_loss / scale:.4g}, "
            f"RMSE {figure(test.rmse_energy_mev_per_atom)} meV/atom, "
            f"{figure(test.rmse_force_mev_per_angstrom)} meV/Å"
            + (" (the best)" if member.number == manifest.ensemble.best else ""),
        )
    spread = manifest.ensemble.spread
    if spread is not None:
        yield (
            "spread",
            f"{figure(spread.mean_energy_mev_per_atom)} meV/atom, "
            f"{figure(spread.mean_force_mev_per_angstrom)} meV/Å: mean standard deviation of the "
            "members' predictions on the test set",
        )


def _loss_scale(manifest: Manifest) -> float:
    """Return a + b: losses of curves have the weights 1-κ and κ, those of members a and b."""
    training = manifest.config.get("training", {})
    return sum(float(training.get(f"{name}_weight", 0)) for name in ("energy", "force")) or 1.0


def _attempts(manifest: Manifest) -> str:
    started = f"begun {manifest.started:%Y-%m-%d %H:%M} UTC"
    if len(manifest.attempts) == 1:
        return f"{manifest.attempt}, {started}"
    parts = ", ".join(f"{part.attempt} ({part.iterations})" for part in manifest.attempts)
    return f"{parts} iterations, {started}"


def _times(manifest: Manifest) -> Iterator[tuple[str, str]]:
    """Yield where the time of all attempts went."""
    timings = [part.timings for part in manifest.attempts]
    total = sum(sum(t.stages_s.values()) for t in timings)
    if not total:
        return  # a version that took no times published it
    fit = sum(t.stages_s.get("fit", 0.0) for t in timings)
    graphs = sum(
        t.phases_s.get(name, 0.0)
        for t in timings
        for name in ("building_graph", "building_test_graph")
    )
    yield (
        "wall time",
        f"{duration(total)}: {duration(fit)} to fit, {duration(graphs)} of it to build graphs",
    )
    starts = [f"{t.to_pacemaker_s:.1f} s" for t in timings if t.to_pacemaker_s is not None]
    if starts:
        yield "pacemaker", f"started {', '.join(starts)} after the start of the job"


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


def _fit(manifest: Manifest) -> str:
    best = manifest.headline.best_iteration
    taken = "" if best is None else f", best at {best} on the validation part"
    return f"{manifest.headline.iterations} iterations{taken}, seed {manifest.fit_seed}"
