"""The fit: linear, by the trainer, or both; checkpoints are stored while it runs."""

from __future__ import annotations

import json
import tempfile
import time
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

from mlip_job.errors import ConflictError, InterruptedRunError, MlipJobError
from mlip_job.generation.context import every, within
from mlip_job.generation.resume import TRAIN_LOG
from mlip_job.paths import WorkFiles
from mlip_job.registry import AttemptPart, Checkpoint
from mlip_job.runtime.environment import usable_cores
from mlip_job.training.checkpoint import POTENTIAL, FitPosition
from mlip_job.training.linear import (
    LinearProgress,
    LinearStart,
    LinearTask,
    run_linear_fit,
    summarise_linear_fit,
    undetermined,
)
from mlip_job.training.pacemaker.basis import potential_section
from mlip_job.training.pacemaker.best import EarlyStopping
from mlip_job.training.pacemaker.input import weighting_policy
from mlip_job.training.pacemaker.process import PacemakerWrapper
from mlip_job.training.pacemaker.results import summarise_run
from mlip_job.training.pacemaker.snapshot import count_iterations
from mlip_job.training.pacemaker.tables import read_table
from mlip_job.training.pacemaker.weighting import FITTED, rows_beyond_policy, rows_left_out
from mlip_job.training.process import copy_without_host
from mlip_job.training.size import with_size
from mlip_job.training.trainer import Monitor

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from mlip_job.config import TrainingConfig
    from mlip_job.dataset.record import DatasetRecord
    from mlip_job.generation.context import Observer, Run
    from mlip_job.generation.data import FitData
    from mlip_job.generation.prepare import Prepared
    from mlip_job.registry import TrainingState
    from mlip_job.training.summary import RunSummary
    from mlip_job.training.trainer import Progress, Trainer

SECONDS_WORTH_A_CHECKPOINT = 60.0
"""Shortest linear fit worth a checkpoint; a faster one is repeated by the next attempt."""
_LINEAR = "linear_start"
_LINE_INTERVAL_SECONDS = 10.0


@dataclass(frozen=True)
class Fitted:
    """A finished fit; its potential is in the work directory.

    Attributes
    ----------
    summary
        Errors, curves and warnings, from the trainer's files.
    left_out
        Rows that the weighting excluded from the fit, by side.
    state
        State of the fit, as stored in checkpoints.
    saved
        Position of the newest checkpoint of this attempt; None if it wrote none.
    """

    summary: RunSummary
    left_out: dict[str, tuple[int, ...]]
    state: TrainingState
    saved: FitPosition | None


def fit(run: Run, prepared: Prepared) -> Fitted:
    """Run the remaining segments of the fit; requires the claim.

    Raises
    ------
    TrainingError
        If the fit fails; the message names the stored checkpoint.
    InterruptedRunError
        If a stop signal was received; likewise.
    ConflictError
        If another attempt took over the claim.
    """
    made = None
    if _begins_linearly(run, prepared):
        made = _fit_linearly(run, prepared)
        prepared = replace(prepared, state=prepared.state.model_copy(update={"linear_start": made}))
    checkpoints = CheckpointWriter(run, prepared.state)
    if made is not None and not run.config.training.is_linear:
        checkpoints.save_linear_fit()
    with run.clock.stage("fit"):
        if run.config.training.is_linear:
            summary = _end_linear_fit(run, prepared, checkpoints)
        elif prepared.segments:
            summary = _fit_with_pacemaker(run, prepared, checkpoints)
        else:  # an earlier attempt finished the fit
            summary = summarise_run(run.files.directory, exit_code=0)
    left_out = json.loads(run.files.left_out.read_text(encoding="utf-8"))
    return Fitted(summary, left_out, prepared.state, checkpoints.saved)


def contributions(run: Run, state: TrainingState, iterations: int) -> tuple[AttemptPart, ...]:
    """Split the total of iterations by attempts, and add the times of this one."""
    *before, mine = state.attempts
    own = iterations - sum(part.iterations for part in before)
    return (*before, mine.model_copy(update={"iterations": own, "timings": run.clock.timings()}))


def with_checkpoint(error: MlipJobError, saved: FitPosition | None, run: Run) -> MlipJobError:
    """Add the stored checkpoint of the fit to an error."""
    if saved is None:
        return error
    stored = f"the checkpoint of {saved} is in {run.registry.store.url}"
    if isinstance(error, InterruptedRunError):
        return InterruptedRunError(
            f"{error.message.partition(';')[0]}; {stored}",
            hint="run the same command again to resume from it",
        )
    error.message = f"{error.message}\n{stored}; the same command resumes from it"
    return error


# -- pacemaker -----------------------------------------------------------------------------------


def _fit_with_pacemaker(run: Run, prepared: Prepared, checkpoints: CheckpointWriter) -> RunSummary:
    run.observer.message(f"training in {run.files.directory}")
    training = run.config.training
    second_set = "validation" if prepared.given.validation else "test"

    def observe(progress: Progress) -> None:
        run.observer.progress(replace(progress, second_set=second_set))

    wrapper = PacemakerWrapper(
        run.files,
        prepared.record.elements,
        Monitor(
            observe=observe,
            show_line=run.observer.trainer_line,
            interruption=run.interruption,
            stall_timeout=run.config.run.stall_timeout,
            phases=run.clock.phases,
        ),
        require_gpu=training.require_gpu,
        stopping=EarlyStopping(training.early_stopping_patience),
    )

    def save() -> None:
        checkpoints.save_progress(wrapper)

    with run.stop.deferred():
        try:
            with every(run.config.run.checkpoint_interval, save, "storing a checkpoint"):
                summary = wrapper.fit(prepared.segments)
        except ConflictError:
            raise  # another attempt has resumed the fit already
        except MlipJobError as error:
            within(run.config.run.stop_timeout, save, "storing the last checkpoint")
            # Slurm signals pacemaker too, which may end before we stop it.
            cause = run.stop.error() or error
            raise with_checkpoint(cause, checkpoints.saved, run) from None
        _write_left_out(run, prepared)
        files = run.files
        notes = (files.left_out, files.early_stopping, files.best)
        checkpoints.save_end([path for path in notes if path.exists()])
    if (stopped := run.stop.error()) is not None:
        raise with_checkpoint(stopped, checkpoints.saved, run)
    return summary


def _write_left_out(run: Run, prepared: Prepared) -> None:
    """Record the rows that energy-based weighting excluded; known only at the end of a fit.

    Test rows that the weighting would exclude do not count in the errors either.
    """
    left_out: dict[str, tuple[int, ...]] = {}
    policy = weighting_policy(run.config.training)
    if policy is not None:
        given, files = prepared.given, run.files
        fitted, second = _paths(files, given.train), _paths(files, given.second)
        train = rows_left_out(files.directory / FITTED["train"], fitted)
        aside = rows_left_out(files.directory / FITTED["test"], second)
        tested = _paths(files, prepared.record.frames.test)
        if second == tested:
            left_out = {"train": train, "test": aside}
        else:
            test = rows_beyond_policy(policy, (*fitted, *second), tested)
            left_out = {"train": tuple(sorted((*train, *aside))), "test": test}
    run.files.left_out.write_text(json.dumps(left_out), encoding="utf-8")


def _paths(files: WorkFiles, names: Iterable[str]) -> list[Path]:
    return [files.dataset.directory / name for name in names]


# -- the linear fit ------------------------------------------------------------------------------


def _begins_linearly(run: Run, prepared: Prepared) -> bool:
    """Tell whether input.yaml starts from a linear fit that is still to be made."""
    segment = prepared.segments.get(run.files.input_yaml)
    return segment is not None and segment.content["potential"] == run.files.linear_start.name


def _fit_linearly(run: Run, prepared: Prepared) -> LinearStart:
    content = prepared.segments[run.files.input_yaml].content
    training = with_size(run.config.training, prepared.state.basis)
    with run.clock.stage(_LINEAR):
        return fit_linearly(
            training, run.files, prepared.record, prepared.given, content, run.observer
        )


def _end_linear_fit(run: Run, prepared: Prepared, checkpoints: CheckpointWriter) -> RunSummary:
    """Store and summarise a linear fit that is to be published."""
    made = prepared.state.linear_start
    assert made is not None  # noqa: S101 - this or an earlier attempt made it
    if prepared.segments:
        _write_left_out(run, prepared)
        checkpoints.save_end([run.files.left_out])
    return summarise_linear_fit(made)


def fit_linearly(
    training: TrainingConfig,
    files: WorkFiles,
    record: DatasetRecord,
    given: FitData,
    content: Mapping[str, Any],
    observer: Observer,
) -> LinearStart:
    """Make the linear potential that input.yaml starts from, or that is published.

    Parameters
    ----------
    training
        Settings with a fixed size of the basis.
    content
        Content of input.yaml.
    """
    finished = training.is_linear
    potential = files.output_potential if finished else files.linear_start
    loss = content["fit"]["loss"]
    structures = record.counts.train - len(given.validation)
    observer.message(f"linear fit to {structures} structures")
    made = run_linear_fit(
        LinearTask(
            section=potential_section(training, record.elements),
            kappa=float(loss["kappa"]),
            l1=float(loss["L1_coeffs"]),
            l2=float(loss["L2_coeffs"]),
            weighting=content["fit"].get("weighting"),
            train=WorkFiles.in_dataset(given.train),
            test=WorkFiles.in_dataset(given.second),
            held_out=given.held_out,
            directory=str(files.directory),
            potential=potential.name,
            finished=finished,
            repulsion=content["fit"].get("repulsion") == "auto",
            reference_energies=content["data"]["reference_energy"],
            seed=training.seed,
            resampled=training.start_noise > 0,
            atoms=record.atoms.train,
            cores=usable_cores(),
        ),
        _Forecast(record.counts.train, record.atoms.train, observer),
    )
    result = (
        f"linear fit of {made.functions} coefficients to {made.structures} structures: "
        f"loss {made.loss:.3g}"
    )
    observer.message(result)
    for note in undetermined(made):
        observer.message(f"note: {note}")
    if finished:
        files.train_log.write_text(f"{result}\n", encoding="utf-8")
    return made


class _Forecast:
    """Reports progress and remaining time of a linear fit every few seconds."""

    def __init__(self, structures: int, atoms: int, observer: Observer) -> None:
        self._structures = structures
        self._atoms = atoms
        self._observer = observer
        self._started = self._last_line = time.monotonic()

    def __call__(self, done: LinearProgress) -> None:
        now = time.monotonic()
        finished = done.structures >= self._structures
        if now - self._last_line < _LINE_INTERVAL_SECONDS or finished:
            return
        self._last_line = now
        left = (now - self._started) * max(0.0, self._atoms / done.atoms - 1)
        self._observer.message(
            f"linear fit: {done.structures} of {self._structures} structures, "
            f"about {left:.0f} s left"
        )


# -- checkpoints ---------------------------------------------------------------------------------


class CheckpointWriter:
    """Stores checkpoints, the log and the tables of one attempt; ``saved`` is the newest position.

    Parameters
    ----------
    run
        The attempt.
    state
        State of the fit for checkpoints; this attempt is the last of its ``attempts``.
    """

    def __init__(self, run: Run, state: TrainingState) -> None:
        self.saved: FitPosition | None = None
        self._run = run
        self._state = state
        self._number = 0
        self._one_at_a_time = Lock()

    def save_linear_fit(self) -> None:
        """Store a slow linear fit, so that no later attempt has to repeat it."""
        if self._run.clock.timings().stages_s[_LINEAR] < SECONDS_WORTH_A_CHECKPOINT:
            return
        start = FitPosition(ladder_step=0, iteration=0, step_done=False, last_step=True)
        with self._one_at_a_time:
            self._save(start, 0, {POTENTIAL: self._run.files.linear_start})

    def save_progress(self, trainer: Trainer) -> None:
        """Store a checkpoint, the log and the tables if there is progress since the last one."""
        with self._one_at_a_time, tempfile.TemporaryDirectory(prefix="mlip-job-") as temporary:
            snapshot = trainer.snapshot(Path(temporary))
            if snapshot is not None and (
                self.saved is None or snapshot.position.order() > self.saved.order()
            ):
                self._save(snapshot.position, snapshot.iterations, snapshot.files)
                self._upload_log(snapshot.files, Path(temporary))

    def save_end(self, notes: Sequence[Path]) -> None:
        """Store the finished fit and `notes`, so that a later attempt only has to publish it."""
        files = self._run.files
        rows = read_table(files.curves / "metrics.txt").rows
        position = FitPosition(
            ladder_step=max((row.ladder_step or 0 for row in rows), default=0),
            iteration=(rows[-1].iter_num or 0) if rows else 0,
            step_done=True,
            last_step=True,
            finished=True,
        )
        content = {
            POTENTIAL: files.output_potential,
            TRAIN_LOG: files.train_log,
            **{path.name: path for path in (*files.segment_inputs(), *notes)},
            **files.tables(),
        }
        with self._one_at_a_time:
            self._save(position, count_iterations(rows), content)

    def _save(self, position: FitPosition, iterations: int, files: dict[str, Path]) -> None:
        self._number += 1
        attempts = contributions(self._run, self._state, iterations)
        self._run.registry.checkpoints(self._run.generation).save(
            files,
            lambda hashes: Checkpoint(
                attempt=self._run.attempt.attempt,
                number=self._number,
                saved=datetime.now(UTC),
                position=position,
                iterations=iterations,
                training=self._state.model_copy(update={"attempts": attempts}),
                files=hashes,
            ),
        )
        self.saved = position

    def _upload_log(self, tables: dict[str, Path], temporary: Path) -> None:
        log = temporary / TRAIN_LOG
        copy_without_host(self._run.files.train_log, log)
        shown = {name: path for name, path in tables.items() if name != POTENTIAL}
        registry, attempt = self._run.registry, self._run.attempt.attempt
        for name, path in {TRAIN_LOG: log, **shown}.items():
            registry.store.upload(path, registry.own.attempt(self._run.generation, attempt, name))
