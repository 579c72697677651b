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
    from mlip_job.schedulers.base import JobHandle, JobRequest, Plan, Scheduler


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
@click.option("--after", metavar="JOB", help="Job that has to succeed first.")
@click.option(
    "--ensemble",
    metavar="M",
    type=click.IntRange(2, 100),
    help="Train M members, of which the best becomes the generation.",
)
@click.option("--from", "template", metavar="cronjob/NAME", help="Template in the cluster.")
@click.option("--fresh", is_flag=True, help="Start over; remove checkpoints of earlier runs.")
@click.option("--split-export", is_flag=True, help="Make the dataset in a job without a GPU.")
@click.option("--split-evaluation", is_flag=True, help="Evaluate and publish in another one.")
@common_options
@click.pass_obj
def command(
    settings: Settings,
    generation: int | str | range,
    scheduler: str | None,
    after: str | None,
    ensemble: int | None,
    template: str | None,
    *,
    dry_run: bool,
    wait: bool,
    fresh: bool,
    split_export: bool,
    split_evaluation: bool,
) -> None:
    """Submit a generation to Slurm, Kubernetes or this machine.

    The same submission again, while its job waits or runs, returns that job. A generation that
    exists is refused (73). With --wait, a job that is lost through no fault of its own is submitted
    again, and the exit code is that of the run.

    With --split-export and --split-evaluation, what needs no GPU runs in jobs of its own, before
    and after the fit. Submitted again after a failure, only what is missing runs again.
    """
    from dataclasses import replace

    from mlip_job.registry import Registry
    from mlip_job.schedulers.base import JobRequest, stages
    from mlip_job.schedulers.open import open_scheduler
    from mlip_job.training.ladder import advice_beforehand

    config = settings.config()
    registry = Registry(settings.store(config), config.family)
    numbers = (
        list(generation)
        if isinstance(generation, range)
        else [resolve_generation(generation, registry)]
    )
    if fresh and split_export and ensemble is not None:
        raise ConfigError(
            "--fresh has each member of an ensemble start over, which --split-export leaves to a "
            "job before them",
            hint="leave out --split-export",
        )
    chosen = open_scheduler(config, scheduler, template=template)
    first = JobRequest(
        config=config,
        generation=numbers[0],
        directory=settings.config_path.resolve().parent,
        run_options=("--fresh",) if fresh else (),
        ensemble=ensemble,
        after=after,
        stages=stages(split_export=split_export, split_evaluation=split_evaluation),
    )
    if dry_run:
        if len(numbers) > 1:
            raise ConfigError("--dry-run shows one generation at a time")
        for stage in first.stages:
            click.echo(chosen.plan(replace(first, stage=stage)).text, nl=False)
        return
    submitter = _Submitter(settings, config, registry, chosen, Reporter(settings))
    # A template in the cluster has settings of its own.
    advice = advice_beforehand(config.training, numbers[0]) if template is None else None
    documents = submitter.submit(first, numbers, wait=wait, advice=advice)
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

    def submit(
        self, first: JobRequest, numbers: list[int], *, wait: bool, advice: str | None = None
    ) -> list[dict[str, Any]]:
        """Submit all; with `wait`, each when the one before is published.

        Else each waits for the job of the one before, which the scheduler sees to. The advice is on
        the first fit, and given if that is new.
        """
        from dataclasses import replace

        from mlip_job.cli.job_words import document_of

        documents: list[dict[str, Any]] = []
        after = first.after
        for number in numbers:
            self._require_absent(number, first)
        for number in numbers:
            request = replace(first, generation=number, after=after)
            jobs = self._submit_jobs(request, notes=not wait)
            new_fit = any(job.stage.fits and not job.found for job in jobs)
            if advice is not None and number == numbers[0] and new_fit:
                self._reporter.message(f"note: {advice}")
            documents += [{"generation": number, **document_of(job)} for job in jobs]
            after = None if wait else jobs[-1].id
            if wait:
                documents[-1]["manifest"] = self._wait(request).model_dump(mode="json")
        return documents

    def _submit_jobs(self, request: JobRequest, *, notes: bool = False) -> list[JobHandle]:
        """Submit the jobs of a generation, each to follow the one before; all of them or none."""
        from dataclasses import replace

        jobs: list[JobHandle] = []
        for stage in request.stages:
            follows = jobs[-1].id if jobs else None
            plan = self._scheduler.plan(replace(request, stage=stage, follows=follows))
            try:
                jobs.append(self._submit_one(plan))
                if notes and plan.note is not None:
                    self._reporter.message(f"note: {plan.note}")
            except ConfigError:
                for job in jobs:
                    if not job.found:
                        self._scheduler.cancel(job)
                raise
        return jobs

    def _submit_one(self, plan: Plan) -> JobHandle:
        from dataclasses import replace

        from mlip_job.cli.job_words import name_of
        from mlip_job.schedulers.base import JobState
        from mlip_job.schedulers.stage_words import in_brackets

        number = plan.request.generation
        before = self._scheduler.find(self._config.family, number)
        live = before is not None and not self._scheduler.status(before).state.ended
        job = self._scheduler.submit(plan)
        found = job.found or (live and job == before)
        job = replace(job, stage=plan.request.stage, found=found)
        what = "submitted as"
        if found:
            done = self._scheduler.status(job).state is JobState.SUCCEEDED
            what = "is done, by" if done else "waits or runs already as"
        if not plan.request.again:
            part = f"{generation_name(number)}{in_brackets(job.stage)}"
            self._reporter.message(f"{part} {what} {name_of(job)}")
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
                lambda: [job for job in self._submit_jobs(again) if not job.found],
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
