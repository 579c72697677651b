"""``mlip-job run``: train a generation and publish it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from mlip_job.cli.options import common_options, generation_option, resolve_generation
from mlip_job.cli.output import Reporter, emit

if TYPE_CHECKING:
    from mlip_job.cli.options import Settings


@click.command("run")
@generation_option("next")
@click.option("--require-gpu", is_flag=True, help="Fail (71) where TensorFlow sees no GPU.")
@click.option("--fresh", is_flag=True, help="Start over; remove checkpoints of earlier runs.")
@common_options
@click.pass_obj
def command(settings: Settings, generation: int | str, *, require_gpu: bool, fresh: bool) -> None:
    """Train a generation and publish it.

    A run that was stopped or killed is gone on with from its last checkpoint, on any machine.

    Running a published generation again changes nothing: with the same configuration and data it
    says so and ends with 0, with others it names the difference and ends with 73.
    """
    from mlip_job.cli.tables import show_manifest
    from mlip_job.pipeline import run_generation
    from mlip_job.registry import Registry
    from mlip_job.training.signals import StopRequest

    if require_gpu:
        settings.assignments.append("training.require_gpu=true")
    config = settings.config()
    reporter = Reporter(settings, config.training.max_iter)
    store = settings.store(config, patient=True, meter=reporter.transfer)
    number = resolve_generation(generation, Registry(store, config.family))
    try:
        with StopRequest() as stop:
            outcome = run_generation(
                config, number, store=store, observer=reporter, stop=stop, fresh=fresh
            )
    finally:
        reporter.close()
    emit(
        settings,
        {"created": outcome.created, "manifest": outcome.manifest.model_dump(mode="json")},
        lambda: show_manifest(outcome.manifest),
    )
