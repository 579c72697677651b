"""One attempt at a generation: from the database, or a checkpoint, to a published generation."""

from __future__ import annotations

import json
import secrets
import shutil
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from mlip_job.environment import job_of_this_start
from mlip_job.errors import ConflictError, InterruptedRunError, MlipJobError
from mlip_job.naming import WorkFiles
from mlip_job.pipeline.background import every, within
from mlip_job.pipeline.beside import BesideFit, notes_on_test_set
from mlip_job.pipeline.datasets import Dataset, fetch_frames, find_or_build_dataset, frames
from mlip_job.pipeline.decided import attempts_before, decided_dataset, decision_for, was_decided
from mlip_job.pipeline.evaluate import (
    clear_cores,
    evaluate_generation,
    fetch_structures,
)
from mlip_job.pipeline.lineage import find_lineage
from mlip_job.pipeline.resume import fetch_checkpoint, start_over
from mlip_job.pipeline.shipping import Shipper
from mlip_job.pipeline.stages import (
    describe,
    fetch_parent,
    left_out_by_weighting,
    make_input,
    refer_to,
    start_linearly,
)
from mlip_job.registry import AttemptPart, TrainingState
from mlip_job.registry.decisions import decide
from mlip_job.report import make_report
from mlip_job.reporting.facts import Facts, read_parent
from mlip_job.reporting.page import render_report
from mlip_job.training.basis import potential_section
from mlip_job.training.ladder import LadderWatch
from mlip_job.training.legs import Leg, legs_from
from mlip_job.training.process import Monitor
from mlip_job.training.programs import convert_to_yace
from mlip_job.training.runner import PacemakerWrapper
from mlip_job.training.summary import summarise_run

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mlip_job.config import JobConfig
    from mlip_job.dataset.record import DatasetRecord
    from mlip_job.pipeline.clock import StageClock
    from mlip_job.pipeline.lineage import Lineage
    from mlip_job.pipeline.stages import Observer
    from mlip_job.registry import Artefact, Checkpoint, DatasetReference, Manifest, Registry
    from mlip_job.training.process import Progress
    from mlip_job.training.run_summary import RunSummary
    from mlip_job.training.signals import StopRequest

_MISSED_BEATS = 10  # so many in a row, and a run counts as dead
_LEFT_OUT = "left_out_by_weighting.json"


@dataclass(frozen=True)
class Prepared:
    """What a fit begins with.

    Attributes
    ----------
    record
        The dataset, whose frames lie in the work directory.
    training
        What the attempt does; its own part is the last of ``attempts``.
    legs
        What is left to fit, by input file; nothing where only publishing is left.
    """

    record: DatasetRecord
    training: TrainingState
    legs: dict[Path, Leg]


class Attempt:
    """One attempt at a generation.

    Parameters
    ----------
    config, generation
        What to train.
    registry
        Where to publish it.
    observer
        Who is told.
    stop
        Which signals came.
    clock
        Takes the time of its stages.
    """

    def __init__(
        self,
        config: JobConfig,
        generation: int,
        registry: Registry,
        observer: Observer,
        stop: StopRequest,
        clock: StageClock,
    ) -> None:
        self._started = datetime.now(UTC)
        self.name = f"{self._started:%Y%m%dT%H%M%SZ}-{secrets.token_hex(3)}"
        self._config = config
        self._generation = generation
        self._registry = registry
        self._observer = observer
        self._stop = stop
        work = Path(config.work_dir) / registry.own.folder(generation)
        self._files = WorkFiles(work / self.name)
        self._clock = clock
        self._lost: ConflictError | None = None

    @contextmanager
    def claim(self) -> Iterator[None]:
        """Hold the claim on the generation, with a heartbeat.

        Raises
        ------
        ConflictError
            If another attempt holds it.
        """
        run = self._config.run
        held = self._registry.claim(
            self._generation, self.name, stale_after_s=_MISSED_BEATS * run.heartbeat_interval
        )
        if held.takeover is not None:
            self._observer.message(
                f"taking over from attempt {held.takeover.attempt}, {held.takeover.reason}"
            )

        def beat() -> None:
            held.beat()
            self._lost = held.loss()

        try:
            with every(run.heartbeat_interval, beat, "heartbeat"):
                yield
        finally:
            within(run.stop_timeout, held.release, "releasing the claim")

    def run(self, *, fresh: bool) -> Manifest:
        """Train and publish; the claim has to be held.

        Parameters
        ----------
        fresh
            Remove checkpoints of earlier attempts, and start over; see `start_over`.
        """
        prepared, shipper, summary = self._prepare_and_fit(fresh=fresh)
        try:
            return self._publish(prepared, shipper, summary)
        except InterruptedRunError as error:
            raise self._with_checkpoint(error, shipper) from None

    def fit(self, *, fresh: bool) -> TrainingState:
        """Train, and leave what came out as a checkpoint that another run publishes."""
        prepared, _, _ = self._prepare_and_fit(fresh=fresh)
        return prepared.training

    def decide_dataset(self, *, fresh: bool) -> TrainingState:
        """Publish the dataset, and have the next attempts at the generation train on it."""
        training = self._prepare(fresh=fresh).training
        of = (self._config, self._generation)
        if not was_decided(*of, self._registry, training.dataset):
            part = self._part().model_copy(update={"timings": self._clock.timings()})
            decide(self._registry, self._generation, decision_for(*of, training.dataset, part))
        shutil.rmtree(self._files.directory, ignore_errors=True)
        return training

    def _prepare_and_fit(self, *, fresh: bool) -> tuple[Prepared, Shipper, RunSummary]:
        prepared = self._start_linearly(self._prepare(fresh=fresh))
        shipper = Shipper(
            self._registry,
            self._generation,
            self.name,
            self._files,
            prepared.training,
            self._clock.timings,
        )
        with self._clock.stage("fit"):
            return prepared, shipper, self._fit(prepared, shipper)

    # -- before the fit --------------------------------------------------------------------------

    def _prepare(self, *, fresh: bool) -> Prepared:
        if fresh:
            start_over(self._registry, self._generation)
        self._files.directory.mkdir(parents=True)
        try:
            with self._clock.stage("fetch"):
                checkpoint = fetch_checkpoint(
                    self._config, self._generation, self._registry, self._files, self._observer
                )
            if checkpoint is None:
                return self._begin()
            return self._go_on(checkpoint)
        except BaseException:
            # Nothing was trained yet: an attempt that failed here leaves nothing worth keeping.
            shutil.rmtree(self._files.directory, ignore_errors=True)
            raise

    def _begin(self) -> Prepared:
        """Export the dataset and start from the parent, or from nothing."""
        training = self._config.training
        lineage = find_lineage(self._registry, training, self._generation)
        agreed = self._registry.agreed_dataset(self._generation) or self._decided()
        with self._clock.stage("fetch" if agreed else "export"):
            dataset = agreed or self._find_or_build_dataset(lineage)
            record = self._record_of(dataset)
        with self._clock.stage("fetch"):
            parent = fetch_parent(
                training,
                self._files,
                record.elements,
                self._registry,
                lineage.potential,
                self._observer,
            )
        content = make_input(training, self._files, record, parent)
        self._raise_if_lost()
        with self._clock.stage("publish_dataset"):
            agreed = self._agree_on(dataset, lineage)
        attempts = (*attempts_before(self._generation, self._registry, agreed), self._part())
        state = TrainingState(
            attempts=attempts,
            started=attempts[0].started,
            config=self._config.model_dump(mode="json"),
            dataset=agreed,
            parent=parent,
            elements=record.elements,
            job=job_of_this_start(),
        )
        return Prepared(record, state, {self._files.input_yaml: Leg(content)})

    def _go_on(self, checkpoint: Checkpoint) -> Prepared:
        """Take up what an earlier attempt left: its dataset, its parent, its potential."""
        before = checkpoint.training
        record = self._registry.dataset_record(before.dataset)
        content = make_input(self._config.training, self._files, record, before.parent)
        legs = legs_from(
            checkpoint.position,
            content,
            potential_section(self._config.training, record.elements),
            self._files.checkpoint_potential.name,
        )
        if checkpoint.position.finished:
            legs = ()
        state = before.model_copy(
            update={
                "attempts": (*before.attempts, self._part()),
                "config": self._config.model_dump(mode="json"),
            }
        )
        inputs = {self._files.leg_input(n): leg for n, leg in enumerate(legs, start=1)}
        return Prepared(record, state, inputs)

    def _find_or_build_dataset(self, lineage: Lineage) -> Dataset:
        return find_or_build_dataset(
            self._config,
            self._generation,
            self._registry,
            lineage.dataset,
            self._files.dataset.directory,
            self._observer,
            wanted=frames,
        )

    def _record_of(self, dataset: Dataset | DatasetReference) -> DatasetRecord:
        """Return its record; its frames are in the work directory then."""
        if isinstance(dataset, Dataset):
            return dataset.record
        record = self._registry.dataset_record(dataset)
        fetch_frames(record, self._registry, self._files)
        return record

    def _agree_on(self, dataset: Dataset | DatasetReference, lineage: Lineage) -> DatasetReference:
        """Return how a dataset is named, which is in the store then."""
        if isinstance(dataset, Dataset):
            sha256 = dataset.publish(self._registry, self._files.dataset.directory)
            dataset = refer_to(dataset.record, sha256, lineage.dataset)
        self._registry.agree_on_dataset(self._generation, dataset)
        return dataset

    def _decided(self) -> DatasetReference | None:
        dataset = decided_dataset(self._config, self._generation, self._registry)
        if dataset is not None:
            self._observer.message(
                f"training on dataset {dataset.id}, decided before: {dataset.train} train and "
                f"{dataset.test} test rows; --fresh takes the database as it is now"
            )
        return dataset

    def _part(self) -> AttemptPart:
        return AttemptPart(attempt=self.name, started=self._started, iterations=0)

    # -- the fit ---------------------------------------------------------------------------------

    def _start_linearly(self, prepared: Prepared) -> Prepared:
        """Make the potential that a fit begins with, where input.yaml names it."""
        leg = prepared.legs.get(self._files.input_yaml)
        if leg is None or leg.content["potential"] != self._files.linear_start.name:
            return prepared  # it starts from a parent, from nothing, or goes on from a checkpoint
        with self._clock.stage("linear_start"):
            made = start_linearly(
                self._config, self._files, prepared.record, leg.content, self._observer
            )
        state = prepared.training.model_copy(update={"linear_start": made})
        return replace(prepared, training=state)

    def _fit(self, prepared: Prepared, shipper: Shipper) -> RunSummary:
        if not prepared.legs:
            return summarise_run(self._files.directory, exit_code=0)
        self._announce()
        training, record = self._config.training, prepared.record
        ladder = LadderWatch(self._files, training.ladder_step, self._observer.message)

        def observe(progress: Progress) -> None:
            self._observer.progress(progress)
            ladder.observe(progress)

        monitor = Monitor(
            observe=observe,
            show_line=self._observer.trainer_line,
            interruption=lambda: self._stop.error() or self._lost,
            stall_timeout=self._config.run.stall_timeout,
            phases=self._clock.phases,
        )
        beside = BesideFit(training, record, self._files, self._observer)
        beside.fetch(self._registry)
        wrapper = PacemakerWrapper(
            self._files, record.elements, monitor, beside, require_gpu=training.require_gpu
        )

        def ship() -> None:
            shipper.ship_progress(wrapper)

        run = self._config.run
        with self._stop.deferred():
            try:
                with every(run.checkpoint_interval, ship, "storing a checkpoint"):
                    summary = wrapper.fit(prepared.legs)
            except ConflictError:
                raise  # another attempt goes on already
            except MlipJobError as error:
                within(run.stop_timeout, ship, "storing the last checkpoint")
                # Slurm signals pacemaker as well, which then ends before it is told to.
                raise self._with_checkpoint(self._stop.error() or error, shipper) from None
            left_out = left_out_by_weighting(self._config.training, self._files, prepared.record)
            self._left_out.write_text(json.dumps(left_out), encoding="utf-8")
            shipper.ship_end([self._left_out])
        if (stopped := self._stop.error()) is not None:
            raise self._with_checkpoint(stopped, shipper)
        return summary

    def _announce(self) -> None:
        if self._config.training.stress_weight > 0:
            self._observer.message(
                "note: stress_weight has no effect, pacemaker fits no stress; 0 silences this"
            )
        self._observer.message(f"training in {self._files.directory}")

    def _with_checkpoint(self, error: MlipJobError, shipper: Shipper) -> MlipJobError:
        """Say with a failure what of the fit is safe."""
        if shipper.saved is None:
            return error
        saved = f"the checkpoint of {shipper.saved} is in {self._registry.store.url}"
        if isinstance(error, InterruptedRunError):
            return InterruptedRunError(
                f"{error.message.partition(';')[0]}; {saved}",
                hint="run the same command again to go on from there",
            )
        error.message = f"{error.message}\n{saved}; the same command goes on from there"
        return error

    # -- after the fit ---------------------------------------------------------------------------

    def _publish(self, prepared: Prepared, shipper: Shipper, summary: RunSummary) -> Manifest:
        left_out = json.loads(self._left_out.read_text(encoding="utf-8"))
        with self._clock.stage("fetch"):
            fetch_structures(self._registry, prepared.record, self._files.dataset)
        with self._clock.stage("convert"):
            notes = (
                *clear_cores(self._files, left_out.get("test", ())),
                *notes_on_test_set(self._config.training, prepared.record, summary),
            )
            convert_to_yace(self._files.output_potential, self._files.yace)
        evaluation = evaluate_generation(
            self._config,
            self._generation,
            self._registry,
            self._files,
            prepared.record,
            summary,
            left_out,
            notes,
            self._observer,
            self._raise_if_lost,
            self._clock,
        )

        def training() -> TrainingState:
            parts = shipper.parts(summary.iterations or 0)
            return prepared.training.model_copy(update={"attempts": parts})

        report = make_report(
            self._config,
            self._generation,
            prepared.record,
            training(),
            summary,
            evaluation,
            left_out,
        )

        def described(artefacts: dict[str, Artefact]) -> Manifest:
            return describe(
                self._config,
                self._generation,
                prepared.record,
                training(),  # with the time that publishing took until now
                report.headline(),
                artefacts,
            )

        with self._clock.stage("report"):
            self._files.report.write_text(report.to_json(), encoding="utf-8")
            facts = Facts(report, described({}), prepared.record)
            page = render_report(facts, read_parent(self._registry, report))
            self._files.report_page.write_text(page, encoding="utf-8")
        self._raise_if_lost()
        with self._clock.stage("publish"):
            return self._registry.publish(
                self._generation, self.name, self._files.artefacts(), described
            )

    @property
    def _left_out(self) -> Path:
        """The rows that the weighting kept out of the fit; only its end can tell."""
        return self._files.directory / _LEFT_OUT

    def _raise_if_lost(self) -> None:
        if self._lost is not None:
            raise self._lost
