"""One attempt at a generation: from the database, or a checkpoint, to a published generation."""

from __future__ import annotations

import json
import secrets
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from mlip_job.errors import ConflictError, InterruptedRunError, MlipJobError
from mlip_job.naming import WorkFiles
from mlip_job.pipeline.background import every, within
from mlip_job.pipeline.context import AttemptContext
from mlip_job.pipeline.linear import fit_linearly
from mlip_job.pipeline.preparation import Preparation
from mlip_job.pipeline.publication import Publication
from mlip_job.pipeline.shipping import Shipper
from mlip_job.pipeline.stages import left_out_by_weighting
from mlip_job.registry import AttemptPart
from mlip_job.training.linear import summarise_linear_fit
from mlip_job.training.pacemaker.best import EarlyStopping
from mlip_job.training.pacemaker.process import PacemakerWrapper
from mlip_job.training.pacemaker.results import summarise_run
from mlip_job.training.size import with_size
from mlip_job.training.trainer import Monitor

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mlip_job.config import JobConfig
    from mlip_job.pipeline.clock import StageClock
    from mlip_job.pipeline.preparation import Prepared
    from mlip_job.pipeline.stages import Observer
    from mlip_job.registry import Manifest, Registry
    from mlip_job.runtime.signals import StopRequest
    from mlip_job.training.linear import LinearStart
    from mlip_job.training.summary import RunSummary
    from mlip_job.training.trainer import Progress

SECONDS_WORTH_A_CHECKPOINT = 60.0
"""A linear fit that took less is made again where the fit after it was interrupted at once."""

_LINEAR = "linear_start"
_MISSED_BEATS = 10  # so many in a row, and a run counts as dead


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
        started = datetime.now(UTC)
        self.name = f"{started:%Y%m%dT%H%M%SZ}-{secrets.token_hex(3)}"
        self._part = AttemptPart(attempt=self.name, started=started, iterations=0)
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
            Remove checkpoints of earlier attempts, and start over.
        """
        prepared, shipper, summary = self._prepare_and_fit(fresh=fresh)
        try:
            return Publication(self._context()).run(prepared, shipper, summary)
        except InterruptedRunError as error:
            raise self._with_checkpoint(error, shipper) from None

    def _prepare_and_fit(self, *, fresh: bool) -> tuple[Prepared, Shipper, RunSummary]:
        prepared = self._prepare(fresh=fresh)
        made = None
        if self._begins_linearly(prepared):
            made = self._fit_linearly(prepared)
            state = prepared.training.model_copy(update={"linear_start": made})
            prepared = replace(prepared, training=state)
        shipper = Shipper(
            self._registry,
            self._generation,
            self.name,
            self._files,
            prepared.training,
            self._clock.timings,
        )
        if made is not None:
            self._ship_linear_fit(shipper)
        with self._clock.stage("fit"):
            return prepared, shipper, self._fit(prepared, shipper)

    def _prepare(self, *, fresh: bool) -> Prepared:
        return Preparation(self._context(), self._part).run(fresh=fresh)

    def _context(self) -> AttemptContext:
        return AttemptContext(
            self._config,
            self._generation,
            self._registry,
            self._files,
            self._observer,
            self._clock,
            self._raise_if_lost,
        )

    # -- the fit ---------------------------------------------------------------------------------

    def _begins_linearly(self, prepared: Prepared) -> bool:
        """Tell whether input.yaml names the potential of a linear fit, which is to be made."""
        leg = prepared.legs.get(self._files.input_yaml)
        return leg is not None and leg.content["potential"] == self._files.linear_start.name

    def _fit_linearly(self, prepared: Prepared) -> LinearStart:
        content = prepared.legs[self._files.input_yaml].content
        training = with_size(self._config.training, prepared.training.basis)
        with self._clock.stage(_LINEAR):
            return fit_linearly(
                training, self._files, prepared.record, prepared.given, content, self._observer
            )

    def _ship_linear_fit(self, shipper: Shipper) -> None:
        seconds = self._clock.timings().stages_s[_LINEAR]
        if not self._config.training.is_linear and seconds >= SECONDS_WORTH_A_CHECKPOINT:
            shipper.ship_linear_start()

    def _fit(self, prepared: Prepared, shipper: Shipper) -> RunSummary:
        training, record = self._config.training, prepared.record
        if training.is_linear:
            return self._end_linear_fit(prepared, shipper)
        if not prepared.legs:
            return summarise_run(self._files.directory, exit_code=0)
        self._observer.message(f"training in {self._files.directory}")
        second_set = "validation" if prepared.given.validation else "test"

        def observe(progress: Progress) -> None:
            self._observer.progress(replace(progress, second_set=second_set))

        monitor = Monitor(
            observe=observe,
            show_line=self._observer.trainer_line,
            interruption=lambda: self._stop.error() or self._lost,
            stall_timeout=self._config.run.stall_timeout,
            phases=self._clock.phases,
        )
        wrapper = PacemakerWrapper(
            self._files,
            record.elements,
            monitor,
            require_gpu=training.require_gpu,
            stopping=EarlyStopping(
                training.early_stopping_patience, training.min_relative_test_loss_per_iter or 0.0
            ),
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
            self._write_left_out(prepared)
            told = (self._files.left_out, self._files.early_stopping, self._files.best)
            shipper.ship_end([path for path in told if path.exists()])
        if (stopped := self._stop.error()) is not None:
            raise self._with_checkpoint(stopped, shipper)
        return summary

    def _end_linear_fit(self, prepared: Prepared, shipper: Shipper) -> RunSummary:
        """Store a linear fit that nothing follows."""
        made = prepared.training.linear_start
        assert made is not None  # noqa: S101 - it was made, now or by an earlier attempt
        if prepared.legs:
            self._write_left_out(prepared)
            shipper.ship_end([self._files.left_out])
        return summarise_linear_fit(made)

    def _write_left_out(self, prepared: Prepared) -> None:
        left_out = left_out_by_weighting(
            self._config.training, self._files, prepared.record, prepared.given
        )
        self._files.left_out.write_text(json.dumps(left_out), encoding="utf-8")

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

    def _raise_if_lost(self) -> None:
        if self._lost is not None:
            raise self._lost
