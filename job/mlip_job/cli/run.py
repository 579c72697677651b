"""``mlip-job export`` and ``run``: build the dataset of a generation, and train it."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import click

from mlip_job.cli.main import write_termination_message
from mlip_job.cli.options import (
    common_options,
    generation_option,
    output_option,
    resolve_generation,
)
from mlip_job.cli.output import Reporter, emit, print_lines
from mlip_job.errors import ConfigError
from mlip_job.paths import generation_name

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from mlip_job.cli.options import Settings
    from mlip_job.dataset.record import DatasetRecord
    from mlip_job.generation import Member, Outcome


@click.command("export")
@generation_option("next")
@output_option("Write the files there too; it must not hold any yet.", directory=True)
@click.option("--rebuild", is_flag=True, help="Read all rows even if none was written since.")
@common_options
@click.pass_obj
def export_command(
    settings: Settings, generation: int | str, output: Path | None, *, rebuild: bool
) -> None:
    """Build the dataset of a generation and publish it.

    Selects, checks and splits the rows, and puts train.xyz, test.xyz, pacemaker's frames and
    dataset.json into the store under their content hash. Where the store has the dataset of the
    same query, and ASE wrote none of its rows since, there is nothing to do.
    """
    from mlip_job.generation import export_generation
    from mlip_job.runtime.processes import StopRequest

    config = settings.config()
    reporter = Reporter(settings)
    registry = settings.registry(config, patient=True, meter=reporter.transfer)
    number = resolve_generation(generation, registry)
    with StopRequest():
        record = export_generation(
            config, number, store=registry.store, observer=reporter, output=output, rebuild=rebuild
        )
    emit(settings, record.model_dump(mode="json"), lambda: print_lines(_lines(record), width=10))


def _lines(record: DatasetRecord) -> Iterator[tuple[str, str]]:
    from mlip_job.report.texts import row_ids

    counts, sources = record.counts, record.reference_energy_sources
    yield "dataset", record.id
    yield "rows", f"{counts.selected} selected by {record.selection or 'nothing (all rows)'}"
    yield "split", f"{counts.train} train, {counts.test} test"
    yield (
        "elements",
        ", ".join(
            f"{element} in {n.structures} structures, {n.atoms} atoms"
            for element, n in record.per_element.items()
        ),
    )
    yield (
        "reference",
        ", ".join(
            f"{element} {energy:.6f} eV ({sources[element].replace('_', ' ')})"
            for element, energy in record.reference_energies.items()
        ),
    )
    for reason, rows in record.rejections.items():
        yield "rejected", f"{rows.count} {reason}: rows {row_ids(rows.rows)}"
    for note in record.notes:
        yield "note", note


@click.command("run")
@generation_option("next")
@click.option("--require-gpu", is_flag=True, help="Fail (71) where TensorFlow sees no GPU.")
@click.option("--member", metavar="K", type=click.IntRange(1), help="Train one of an ensemble.")
@click.option("--of", metavar="M", type=click.IntRange(2), help="How many members it has.")
@click.option("--fresh", is_flag=True, help="Start over; remove checkpoints of earlier runs.")
@common_options
@click.pass_obj
def run_command(
    settings: Settings,
    generation: int | str,
    member: int | None,
    of: int | None,
    *,
    require_gpu: bool,
    fresh: bool,
) -> None:
    """Train a generation and publish it.

    An interrupted run resumes from its last checkpoint, on any machine.

    Running a published generation again changes nothing: with the same configuration and data it
    says so and ends with 0, with others it names the difference and ends with 73.

    A generation rejected by its gate is still published (exit code 0), but does not become the
    latest.

    With --member K --of M, one member of an ensemble: its fit has the seed of the configuration
    plus K - 1. The run that finds all members trained publishes the best as the generation. In a
    job array, --of alone takes the task's number.
    """
    from mlip_job.runtime.environment import thread_counts

    os.environ.update(thread_counts())  # before any numerical library is loaded
    from mlip_job.cli.generations import show_manifest
    from mlip_job.generation import run_generation
    from mlip_job.generation.context import StageClock
    from mlip_job.runtime.processes import StopRequest

    if require_gpu:
        settings.assignments.append("training.require_gpu=true")
    config = settings.config()
    reporter = Reporter(settings, config.training.max_iter)
    registry = settings.registry(config, patient=True, meter=reporter.transfer)
    number = resolve_generation(generation, registry)
    one_of = _member(member, of)
    clock = StageClock.of_process()
    try:
        with StopRequest() as stop:
            outcome = run_generation(
                config,
                number,
                store=registry.store,
                observer=reporter,
                stop=stop,
                clock=clock,
                fresh=fresh,
                member=one_of,
            )
    finally:
        reporter.close()
    write_termination_message(0, _summary(outcome))
    document = {
        "created": outcome.created,
        "accepted": outcome.manifest.headline.accepted,
        "limits_set": outcome.manifest.headline.limits_set,
        "members_missing": outcome.missing,
        "manifest": outcome.manifest.model_dump(mode="json"),
    }
    emit(settings, document, lambda: show_manifest(outcome.manifest))


def _member(number: int | None, of: int | None) -> Member | None:
    from mlip_job.generation import Member
    from mlip_job.runtime.environment import current_array_index

    if of is None:
        if number is not None:
            raise ConfigError("--member needs --of, the number of members")
        return None
    number = number or current_array_index()
    if number is None or number > of:
        raise ConfigError(f"--of {of} needs --member K, from 1 to {of}")
    return Member(number, of)


def _summary(outcome: Outcome) -> str:
    """Return the generation's errors in one line."""
    from mlip_job.cli.generations import format_rmse

    test = outcome.manifest.headline.test
    done = "published" if outcome.created else "was published already:"
    name = generation_name(outcome.manifest.generation)
    if outcome.missing:
        done, name = "trained", f"a member of {name}"
    if test.rmse_energy_mev_per_atom is None:
        return f"{done} {name}; no test errors, as nothing was held out"
    return f"{done} {name}, RMSE on the test set: {format_rmse(test)}"
