"""``mlip-job submit``: have a scheduler run a generation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from mlip_job.cli.options import (
    GenerationType,
    common_options,
    resolve_generation,
    scheduler_option,
)
from mlip_job.cli.output import Reporter, emit
from mlip_job.errors import ConfigError, ConflictError, UnavailableError
from mlip_job.naming import generation_name

if TYPE_CHECKING:
    from mlip_job.cli.options import Settings
    from mlip_job.config import JobConfig
    from mlip_job.registry import Manifest, Registry
    from mlip_job.schedulers.base import JobHandle, JobRequest, Scheduler


class _Generations(GenerationType):
    """One generation, or the ends of a range of them."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not isinstance(value, str) or ".." not in value:
            return super().convert(value, param, ctx)
        ends = value.split("..")
        if not all(end.isdecimal() for end in ends) or len(ends) != 2:  # noqa: PLR2004
            raise ConfigError(f"{value!r} is no range of generations", hint="as in -g 4..6")
        first, last = map(int, ends)
        generation_name(first)
        if first > last:
            raise ConfigError(f"{value!r} ends before it begins", hint="as in -g 4..6")
        return range(first, last + 1)


@click.command("submit")
@click.option(
    "-g",
    "--generation",
    required=True,
    metavar="N|next|A..B",
    type=_Generations(("next",)),
    help="Number of the generation, or next, or several: each is trained after the one before.",
)
@scheduler_option
@click.option("--dry-run", is_flag=True, help="Print what would be submitted, and nothing else.")
@click.option("--wait", is_flag=True, help="Wait until it is published or has failed.")
@click.option(
    "--after",
    metavar="JOB",
    help="Job that has to succeed first; for Slurm, also a --dependency of sbatch.",
)
@click.option(
    "--ensemble",
    metavar="M",
    type=click.IntRange(2, 100),
    help="Train M members, of which the best becomes the generation.",
)
@click.option("--fresh", is_flag=True, help="Start over; remove checkpoints of earlier runs.")
@common_options
@click.pass_obj
def command(
    settings: Settings,
    generation: int | str | range,
    scheduler: str | None,
    after: str | None,
    ensemble: int | None,
    *,
    dry_run: bool,
    wait: bool,
    fresh: bool,
) -> None:
    """Submit a generation to Slurm, Kubernetes or this machine.

    The same submission again, while its job waits or runs, returns that job. A generation that
    exists is refused (73). With --wait, a job that is lost through no fault of its own is submitted
    again, and the exit code is that of the run.
    """
    from mlip_job.registry import Registry
    from mlip_job.schedulers.base import JobRequest
    from mlip_job.schedulers.open import open_scheduler

    config = settings.config()
    registry = Registry(settings.store(config), config.family)
    numbers = (
        list(generation)
        if isinstance(generation, range)
        else [resolve_generation(generation, registry)]
    )
    chosen = open_scheduler(config, scheduler)
    first = JobRequest(
        config=config,
        generation=numbers[0],
        directory=settings.config_path.resolve().parent,
        run_options=("--fresh",) if fresh else (),
        ensemble=ensemble,
        after=after,
    )
    if dry_run:
        if len(numbers) > 1:
            raise ConfigError("--dry-run shows one generation at a time")
        click.echo(chosen.plan(first).text, nl=False)
        return
    submitter = _Submitter(settings, config, registry, chosen, Reporter(settings))
    documents = submitter.submit(first, numbers, wait=wait)
    emit(settings, {"jobs": documents}, lambda: None)


class _Submitter:
    """Submits one generation after the other."""

    def __init__(
        self,
        settings: Settings,
        config: JobConfig,
        registry: Registry,
        scheduler: Scheduler,
        reporter: Reporter,
    ) -> None:
        self._settings = settings
        self._config = config
        self._registry = registry
        self._scheduler = scheduler
        self._reporter = reporter

    def submit(self, first: JobRequest, numbers: list[int], *, wait: bool) -> list[dict[str, Any]]:
        """Submit all; with `wait`, each when the one before is published.

        Else each waits for the job of the one before, which the scheduler sees to.
        """
        from dataclasses import replace

        from mlip_job.cli.job_words import document_of

        documents: list[dict[str, Any]] = []
        after = first.after
        for number in numbers:
            self._require_absent(number, first)
        for number in numbers:
            request = replace(first, generation=number, after=after)
            job = self._submit_one(request)
            documents.append({"generation": number, **document_of(job)})
            after = None if wait else job.id
            if wait:
                documents[-1]["manifest"] = self._wait(request).model_dump(mode="json")
        return documents

    def _submit_one(self, request: JobRequest) -> JobHandle:
        from dataclasses import replace

        from mlip_job.cli.job_words import name_of

        number = request.generation
        before = self._scheduler.find(self._config.family, number)
        live = before is not None and not self._scheduler.status(before).state.ended
        job = self._scheduler.submit(self._scheduler.plan(request))
        job = replace(job, found=job.found or (live and job == before))
        what = "waits or runs already as" if job.found else "submitted as"
        if not request.again:
            self._reporter.message(f"{generation_name(number)} {what} {name_of(job)}")
        return job

    def _wait(self, request: JobRequest) -> Manifest:
        from dataclasses import replace

        from mlip_job.cli.job_view import Observatory
        from mlip_job.cli.tables import show_manifest
        from mlip_job.cli.waiting import wait_until_published

        again = replace(request, again=True)
        try:
            manifest = wait_until_published(
                request.generation,
                lambda: self._submit_one(again),
                lambda: Observatory(self._config, self._registry, self._scheduler),
                self._config.submit,
                self._reporter.message,
            )
        except KeyboardInterrupt:
            self._reporter.message(f"the job goes on; mlip-job status -g {request.generation}")
            raise
        if not self._settings.as_json:
            show_manifest(manifest)
        return manifest

    def _require_absent(self, number: int, first: JobRequest) -> None:
        from mlip_job.cli.outside import require_no_run_outside
        from mlip_job.registry.members import require_one_kind

        try:
            published = self._registry.find(number)
        except UnavailableError as error:
            self._reporter.message(
                f"note: {error.message}; whether {generation_name(number)} exists is for the job "
                "to find out"
            )
            return
        if published is not None:
            raise ConflictError(
                f"{generation_name(number)} of {self._config.family} is published already",
                hint=f"mlip-job show -g {number}; mlip-job submit -g next trains another",
            )
        require_one_kind(self._registry, number, first.ensemble, fresh=first.starts_over)
        require_no_run_outside(self._registry, number, self._scheduler)
