"""One attempt at a generation: from the database, or a checkpoint, to a published generation."""

from __future__ import annotations

import json
import secrets
import shutil
import time
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from mlip_job.errors import ConflictError, InterruptedRunError, MlipJobError
from mlip_job.naming import WorkFiles
from mlip_job.pipeline.background import every, within
from mlip_job.pipeline.datasets import fetch_frames, find_or_build_dataset, frames
from mlip_job.pipeline.evaluate import (
    clear_cores,
    evaluate_generation,
    fetch_structures,
)
from mlip_job.pipeline.lineage import find_lineage
from mlip_job.pipeline.resume import fetch_checkpoint
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
from mlip_job.report import make_report
from mlip_job.reporting.facts import Facts, read_parent
from mlip_job.reporting.page import render_report
from mlip_job.training.basis import potential_section
from mlip_job.training.legs import Leg, legs_from
from mlip_job.training.process import Monitor
from mlip_job.training.programs import convert_to_yace
from mlip_job.training.runner import PacemakerWrapper
from mlip_job.training.summary import summarise_run

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mlip_job.config import JobConfig
    from mlip_job.dataset.record import DatasetRecord
    from mlip_job.pipeline.stages import Observer
    from mlip_job.registry import Artefact, Checkpoint, Manifest, Registry
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
    """

    def __init__(
        self,
        config: JobConfig,
        generation: int,
        registry: Registry,
        observer: Observer,
        stop: StopRequest,
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
        self._timings: dict[str, float] = {}
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
            Remove checkpoints of earlier attempts, and start over.
        """
        prepared = self._start_linearly(self._prepare(fresh=fresh))
        shipper = Shipper(
            self._registry, self._generation, self.name, self._files, prepared.training
        )
        with self._timed("fit"):
            summary = self._fit(prepared, shipper)
        try:
            return self._publish(prepared, shipper, summary)
        except InterruptedRunError as error:
            raise self._with_checkpoint(error, shipper) from None

    # -- before the fit --------------------------------------------------------------------------

    def _prepare(self, *, fresh: bool) -> Prepared:
        checkpoints = self._registry.checkpoints(self._generation)
        if fresh:
            checkpoints.discard()
        self._files.directory.mkdir(parents=True)
        try:
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
        agreed = self._registry.agreed_dataset(self._generation)
        with self._timed("export"):
            dataset = None
            if agreed is not None:
                record = self._registry.dataset_record(agreed)
                fetch_frames(record, self._registry, self._files)
            else:
                dataset = find_or_build_dataset(
                    self._config,
                    self._generation,
                    self._registry,
                    lineage.dataset,
                    self._files.dataset.directory,
                    self._observer,
                    wanted=frames,
                )
                record = dataset.record
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
        if dataset is not None:
            with self._timed("publish_dataset"):
                sha256 = dataset.publish(self._registry, self._files.dataset.directory)
            agreed = refer_to(record, sha256, lineage.dataset)
            self._registry.agree_on_dataset(self._generation, agreed)
        state = TrainingState(
            attempts=(self._part(),),
            started=self._started,
            config=self._config.model_dump(mode="json"),
            dataset=agreed,
            parent=parent,
            elements=record.elements,
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

    def _part(self) -> AttemptPart:
        return AttemptPart(attempt=self.name, started=self._started, iterations=0)

    # -- the fit ---------------------------------------------------------------------------------

    def _start_linearly(self, prepared: Prepared) -> Prepared:
        """Make the potential that a fit begins with, where input.yaml names it."""
        leg = prepared.legs.get(self._files.input_yaml)
        if leg is None or leg.content["potential"] != self._files.linear_start.name:
            return prepared  # it starts from a parent, from nothing, or goes on from a checkpoint
        with self._timed("linear_start"):
            made = start_linearly(
                self._config, self._files, prepared.record, leg.content, self._observer
            )
        state = prepared.training.model_copy(update={"linear_start": made})
        return replace(prepared, training=state)

    def _fit(self, prepared: Prepared, shipper: Shipper) -> RunSummary:
        if not prepared.legs:
            return summarise_run(self._files.directory, exit_code=0)
        self._announce()
        monitor = Monitor(
            observe=self._observer.progress,
            show_line=self._observer.trainer_line,
            interruption=lambda: self._stop.error() or self._lost,
            stall_timeout=self._config.run.stall_timeout,
        )
        wrapper = PacemakerWrapper(self._files, prepared.record.elements, monitor)

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
        fetch_structures(self._registry, prepared.record, self._files.dataset)
        with self._timed("convert"):
            notes = clear_cores(self._files, left_out.get("test", ()))
            convert_to_yace(self._files.output_potential, self._files.yace)
        with self._timed("evaluate"):
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
            )
        parts = shipper.parts(summary.iterations or 0)
        training = prepared.training.model_copy(update={"attempts": parts})
        report = make_report(
            self._config,
            self._generation,
            prepared.record,
            training,
            summary,
            evaluation,
            left_out,
            self._timings,
        )
        self._files.report.write_text(report.to_json(), encoding="utf-8")

        def described(artefacts: dict[str, Artefact]) -> Manifest:
            return describe(
                self._config,
                self._generation,
                prepared.record,
                training,
                report.headline(),
                artefacts,
            )

        facts = Facts(report, described({}), prepared.record)
        page = render_report(facts, read_parent(self._registry, report))
        self._files.report_page.write_text(page, encoding="utf-8")
        self._raise_if_lost()
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

    @contextmanager
    def _timed(self, stage: str) -> Iterator[None]:
        started = time.monotonic()
        yield
        self._timings[stage] = round(time.monotonic() - started, 3)
