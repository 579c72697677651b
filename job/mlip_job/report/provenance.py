"""Where a generation comes from: dataset, lineage, fit, timings, environment."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mlip_job.naming import generation_name
from mlip_job.report.numbers import NARROW_SPACE, UNKNOWN, count, duration, fixed, significant
from mlip_job.report.table import Column, Entry, Table
from mlip_job.training.loss import describe_shares

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from mlip_job.dataset.record import DatasetRecord
    from mlip_job.registry import Manifest
    from mlip_job.report.facts import Facts
    from mlip_job.report.model import TrainingReport
    from mlip_job.training.summary import BestPotential, RunSummary

_MODES = {"continue": "with the same basis", "extend": "growing its basis"}
_LISTED_ROWS = 12
_BAR = 16  # characters of the longest bar
_TIME = "%Y-%m-%d %H:%M"


def element_composition(record: DatasetRecord, report: TrainingReport) -> Table:
    """Return structures, atoms and reference energy of each element."""
    energies = report.dataset.reference_energies_ev
    sources = report.dataset.reference_energy_sources
    return Table(
        "Elements",
        (
            Column("element", numeric=False),
            Column("structures"),
            Column("atoms"),
            Column("reference energy", "eV/atom"),
            Column("from", numeric=False),
        ),
        tuple(
            (
                element,
                fixed(counts.structures, 0),
                fixed(counts.atoms, 0),
                fixed(energies.get(element), 6),
                sources.get(element, UNKNOWN).replace("_", " "),
            )
            for element, counts in record.per_element.items()
        ),
        report.energy_reference,
    )


def config_type_composition(record: DatasetRecord) -> Table | None:
    """Return the numbers of structures of each config type, or None where there are no types."""
    train, test = record.config_types.train, record.config_types.test
    names = sorted({*train, *test})
    if not any(names):
        return None
    return Table(
        "Config types",
        (Column("config type", numeric=False), Column("train"), Column("test")),
        tuple(
            (name or "(none)", fixed(train.get(name, 0), 0), fixed(test.get(name, 0), 0))
            for name in names
        ),
    )


def rejections(record: DatasetRecord) -> Table | None:
    """Return what was left out of the dataset and why, or None where nothing was."""
    if not record.rejections:
        return None
    return Table(
        "Rejected rows",
        (Column("reason", numeric=False), Column("number"), Column("rows", numeric=False)),
        tuple(
            (reason.replace("_", " "), fixed(rows.count, 0), _some(rows.rows))
            for reason, rows in record.rejections.items()
        ),
    )


def dataset_entries(record: DatasetRecord, manifest: Manifest) -> Iterator[Entry]:
    """Return what the dataset is."""
    counts, ranges = record.counts, record.ranges
    yield Entry("dataset", record.id, code=True)
    yield Entry("database", manifest.dataset.database, code=True)
    yield Entry("selection", manifest.dataset.selection or "all rows", code=True)
    yield Entry(
        "rows",
        f"{fixed(counts.selected, 0)} selected: {fixed(counts.train, 0)} train, "
        f"{fixed(counts.test, 0)} test, {fixed(counts.reference_atoms, 0)} isolated atoms, "
        f"{fixed(counts.rejected, 0)} rejected",
    )
    if record.partly_periodic:
        yield Entry(
            "slabs and wires",
            f"{count(record.partly_periodic, 'row')} periodic in one or two directions, with "
            "vacuum in the others",
        )
    if record.split.key is not None:
        yield Entry("split by", f"the key {record.split.key}")
    yield Entry(
        "atoms", f"{fixed(record.atoms.train, 0)} train, {fixed(record.atoms.test, 0)} test"
    )
    low, high = (
        fixed(energy, 3)
        for energy in (
            ranges.min_energy_corrected_ev_per_atom,
            ranges.max_energy_corrected_ev_per_atom,
        )
    )
    yield Entry("energies", f"{low} to {high} eV/atom above the reference energies")
    yield Entry("largest force", f"{significant(ranges.max_force_ev_per_angstrom)} eV/Å")
    yield Entry("shortest distance", f"{fixed(ranges.min_distance_angstrom, 3)} Å")


def lineage_entries(facts: Facts) -> Iterator[Entry]:
    """Return what the generation builds upon and what identifies it."""
    report, manifest = facts.report, facts.manifest
    yield Entry("generation", f"{generation_name(report.generation)} of {report.family}")
    parent = report.parent
    if (linear := report.linear_start) is not None:
        yield Entry(
            "started from",
            f"a linear fit of {fixed(linear.functions, 0)} coefficients to "
            f"{count(linear.structures, 'structure')} with {fixed(linear.atoms, 0)} atoms, "
            f"loss {significant(linear.loss)}",
        )
    elif parent is None:
        yield Entry("started from", "nothing")
    else:
        name = generation_name(parent.generation)
        yield Entry("started from", f"{name}, {_MODES[parent.mode]}")
        yield Entry(f"{name}'s potential", _short(parent.potential_sha256), code=True)
    inherited = manifest.dataset.inherited_from
    origin = generation_name(inherited) if inherited is not None else "made for this generation"
    yield Entry("split and e0", origin)
    by_key = facts.report.dataset.split_key is not None
    split_seed = "" if by_key else f"split {manifest.split_seed}, "
    yield Entry("seeds", f"{split_seed}fit {manifest.fit_seed}")
    yield Entry("configuration", _short(manifest.config_sha256), code=True)
    yield Entry("training", f"{manifest.started:{_TIME}} to {manifest.ended:{_TIME}} UTC")


def fit_entries(report: TrainingReport) -> Iterator[Entry]:
    """Return what was minimised, and how it ended."""
    loss, fit = report.loss, report.fit
    yield Entry("minimised", loss.definition)
    yield Entry(
        "loss weights",
        f"energy {loss.energy_weight:g}, force {loss.force_weight:g} (κ = {loss.kappa:.6g}); "
        "no stress is fitted",
    )
    yield Entry(
        "basis", f"{count(fit.functions, 'function')}, {count(fit.parameters, 'parameter')}"
    )
    if report.evaluation is not None and (speed := report.evaluation.speed) is not None:
        yield Entry(
            "evaluator",
            f"{significant(speed.evaluator_us_per_atom)} µs per atom on one core, {speed.cpu}",
        )
    if report.basis is not None:
        yield Entry("size of the basis", str(report.basis))
    yield Entry("iterations", fixed(fit.iterations, 0))
    if fit.loss_shares is not None:
        yield Entry("final loss", describe_shares(fit.loss_shares))
    if fit.second_set == "validation":
        yield Entry("validation part", _validation(fit))
    if fit.best is not None:
        yield Entry("best iteration", _best(fit.best))
    if fit.early_stopping:
        yield Entry("early stopping", fit.early_stopping)
    if fit.optimiser_message:
        yield Entry("optimiser", fit.optimiser_message)
    for side, rows in report.left_out_by_weighting.items():
        if rows:
            yield Entry(
                f"left out by weighting, {side}",
                f"{count(len(rows), 'structure')}: rows {_some(rows)}",
            )


def attempts(report: TrainingReport) -> Table:
    """Return the attempts that the fit went through."""
    return Table(
        "Attempts",
        (
            Column("", numeric=True),
            Column("attempt", numeric=False),
            Column("begun (UTC)", numeric=False),
            Column("iterations"),
            Column("pacemaker after"),
            Column("wall time"),
        ),
        tuple(
            (
                str(number),
                part.attempt,
                f"{part.started:{_TIME}}",
                fixed(part.iterations, 0),
                _duration(part.timings.to_pacemaker_s),
                _duration(sum(part.timings.stages_s.values()) or None),
            )
            for number, part in enumerate(report.attempts, start=1)
        ),
        "From the start of the job's process to pacemaker's; wall time up to this report, or to "
        "an attempt's last checkpoint.",
    )


def timings(report: TrainingReport) -> tuple[Table, ...]:
    """Return where the time went: in the stages, the fit's by what pacemaker did."""
    if not report.phases_s:
        tables = (
            _timing_table("Stages of the last attempt", "stage", report.timings_s),
            _timing_table("Phases of pacemaker's last start", "phase", report.fit.timings_s),
        )
        return tuple(table for table in tables if table.rows)
    seconds: dict[str, float] = {}
    for stage, time in report.timings_s.items():
        if stage == "fit":
            seconds |= {f"fit: {name}": phase for name, phase in report.phases_s.items()}
            time = max(0.0, time - sum(report.phases_s.values()))  # noqa: PLW2901 - what is left
            stage = "fit: checkpoints and the rest"  # noqa: PLW2901
        seconds[stage] = time
    return (_timing_table("Where the time went", "stage", seconds),)


def _duration(seconds: float | None) -> str:
    return UNKNOWN if seconds is None else duration(seconds)


def _timing_table(title: str, name: str, seconds: dict[str, float]) -> Table:
    total = sum(seconds.values()) or 1.0
    longest = max(seconds.values(), default=0.0) or 1.0
    return Table(
        title,
        (
            Column(name, numeric=False),
            Column("time"),
            Column("share"),
            Column("", numeric=False),
        ),
        tuple(
            (
                stage.replace("_", " "),
                duration(time),
                f"{fixed(100 * time / total, 0)}{NARROW_SPACE}%",
                "█" * round(_BAR * time / longest),
            )
            for stage, time in seconds.items()
        ),
    )


def environment_entries(manifest: Manifest) -> Iterator[Entry]:
    """Return what the run ran on."""
    environment = manifest.environment
    host = environment.host
    yield Entry("GPU", ", ".join(host.gpus) or "none")
    yield Entry(
        "host", f"{host.cpu}, {count(host.cores, 'core')}, {significant(host.memory_gib)} GiB"
    )
    yield Entry("image", environment.image or "none", code=environment.image is not None)
    if environment.scheduler is not None:
        scheduler = environment.scheduler
        yield Entry("scheduler", f"{scheduler.kind}, job {scheduler.id}")
    for name, version in environment.versions.items():
        yield Entry(name, version or "not installed")


def _short(sha256: str) -> str:
    return f"sha256 {sha256[:16]}…"


def _some(rows: Sequence[int]) -> str:
    shown = ", ".join(map(str, rows[:_LISTED_ROWS]))
    more = len(rows) - _LISTED_ROWS
    return f"{shown} and {more} more" if more > 0 else shown


def _validation(fit: RunSummary) -> str:
    sizes = [fit.structures.get(side) for side in ("train", "test")]
    fitted, aside = (size.found if size is not None else None for size in sizes)
    return f"{count(aside, 'training structure')}, the fit saw {fixed(fitted, 0)} others"


def _best(best: BestPotential) -> str:
    step = f" of ladder step {best.ladder_step + 1}" if best.ladder_step else ""
    last = "" if best.last_loss is None else f"; the last one has {best.last_loss:.4g}"
    return (
        f"{best.iteration}{step}, published: its loss on the validation part is {best.loss:.4g}, "
        f"without regularisation{last}"
    )
