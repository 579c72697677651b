"""One start of pacemaker: begun, followed, and ended where it has to be."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from mlip_job.disk import private
from mlip_job.errors import TrainingError
from mlip_job.processes import die_with_parent
from mlip_job.training.failure import DIVERGED
from mlip_job.training.gpu import pacemaker_on_gpu, unseen
from mlip_job.training.lines import LineReader
from mlip_job.training.log import LogParser
from mlip_job.training.on_device import NO_DEVICE
from mlip_job.training.phases import PhaseClock, phase_seconds
from mlip_job.training.programs import IN_PACEMAKER, find_program, trainer_environment
from mlip_job.training.tables import MetricsRow, TableFollower
from mlip_job.training.train_log import hide_host
from mlip_job.training.watchdog import Watchdog

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from mlip_job.errors import MlipJobError
    from mlip_job.naming import WorkFiles
    from mlip_job.training.curve import Offset

_POLL_SECONDS = 0.5
_GRACE_SECONDS = 5.0  # pacemaker ends within a second of SIGTERM; a stuck one is killed
_READ_BYTES = 1 << 20


@dataclass(frozen=True)
class Progress:
    """How far a fit is.

    Attributes
    ----------
    phase
        What pacemaker is doing, in words.
    elapsed_s
        Seconds since its start.
    row
        The newest row of the training metrics, if there is any yet.
    seconds_per_iteration
        Mean over the iterations seen in this ladder step, or None before the second.
    test_row
        The newest row of the second set, where one is measured.
    timings_s
        Seconds in each phase so far, up to pacemaker's last message.
    second_set
        What the second set is.
    """

    phase: str
    elapsed_s: float
    row: MetricsRow | None = None
    seconds_per_iteration: float | None = None
    test_row: MetricsRow | None = None
    timings_s: Mapping[str, float] = field(default_factory=dict)
    second_set: str = "test"


@dataclass(frozen=True)
class Monitor:
    """Whoever watches a fit, and may end it.

    Attributes
    ----------
    observe
        Called with the progress about twice a second.
    show_line
        Called with every line that pacemaker prints.
    interruption
        Asked as often; the error that it returns is raised when pacemaker has been stopped.
    stall_timeout
        Seconds without iteration, output and CPU use after which pacemaker is ended.
    phases
        Told how long pacemaker's phases take.
    """

    observe: Callable[[Progress], None]
    show_line: Callable[[str], None]
    interruption: Callable[[], MlipJobError | None]
    stall_timeout: float
    phases: PhaseClock = field(default_factory=PhaseClock)


def run_pacemaker(
    files: WorkFiles,
    input_file: Path,
    offset: Offset,
    monitor: Monitor,
    *,
    require_gpu: bool = False,
) -> int:
    """Run pacemaker on an input file and return its exit code.

    Parameters
    ----------
    files
        Its work directory; what it prints is added to ``train.log``.
    input_file
        Its input, in that directory.
    offset
        Where in the whole fit it begins, for the progress.
    monitor
        Who is told, and who may end it.
    require_gpu
        Whether it must not train on the CPU.

    Raises
    ------
    ConfigError
        If pacemaker is not installed.
    GpuRequiredError
        If TensorFlow sees no GPU, and one is required.
    MlipJobError
        What `monitor.interruption` returned.
    TrainingError
        If it diverged or hung, and was ended for it.
    """
    program = pacemaker_on_gpu() if require_gpu else [str(find_program("pacemaker"))]
    # Its predictions and plots of the training data are not needed, and cost two graphs more.
    command = [*program, "--no-predict", input_file.name]
    with open(files.train_log, "ab", buffering=0, opener=private) as output:
        begin = output.tell()
        process = subprocess.Popen(  # noqa: S603 - a fixed program with a name of our own
            command,
            cwd=files.directory,
            env=trainer_environment() | {"PYTHONPATH": str(IN_PACEMAKER)},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            umask=0o077,
            # If this process is killed the kernel ends pacemaker, so that no GPU is left busy.
            preexec_fn=die_with_parent,  # noqa: PLW1509 - one call into libc, no lock taken
        )
    try:
        exit_code = _Follower(files, process, offset, monitor).follow(begin)
    finally:
        _stop_group(process)
        monitor.phases.end()
    hide_host(files.train_log)
    if require_gpu and exit_code == NO_DEVICE:
        raise unseen()
    return exit_code


class _Follower:
    """Follows a pacemaker process to its end."""

    def __init__(
        self,
        files: WorkFiles,
        process: subprocess.Popen[bytes],
        offset: Offset,
        monitor: Monitor,
    ) -> None:
        self._files = files
        self._process = process
        self._offset = offset
        self._monitor = monitor
        self._started = time.monotonic()
        self._log = LogParser()
        monitor.phases.start(self._log)
        self._log_bytes = 0
        self._metrics = TableFollower(files.table("metrics"))
        self._test_metrics = TableFollower(files.table("test_metrics"))
        self._test_row: MetricsRow | None = None
        self._clock = _IterationClock()
        self._watchdog = Watchdog(process.pid, monitor.stall_timeout, self._started)

    def follow(self, begin: int) -> int:
        with self._files.train_log.open("rb") as log:
            log.seek(begin)
            reader = LineReader()
            while True:
                ended = self._process.poll()
                while block := log.read(_READ_BYTES):
                    self._log_bytes += len(block)
                    for line in reader.lines(block):
                        self._log.feed(line)
                        self._monitor.show_line(line)
                if ended is not None:
                    return ended
                self._look_at_metrics()
                self._look_for_a_stall()
                if (interruption := self._monitor.interruption()) is not None:
                    raise interruption
                time.sleep(_POLL_SECONDS)

    def _look_at_metrics(self) -> None:
        rows = self._metrics.poll()
        now = time.monotonic()
        self._clock.add(rows, now)
        if tested := self._test_metrics.poll():
            self._test_row = self._offset.shift(tested[-1])
        self._monitor.observe(
            Progress(
                phase=self._log.phase.value,
                elapsed_s=now - self._started,
                row=self._offset.shift(self._clock.last) if self._clock.last else None,
                seconds_per_iteration=self._clock.seconds_per_iteration,
                test_row=self._test_row,
                timings_s=phase_seconds(self._log.state),
            )
        )
        for row in rows:
            if row.loss is None:
                place = self._offset.shift(row)
                where = f" of ladder step {place.ladder_step + 1}" if place.ladder_step else ""
                raise TrainingError(f"in iteration {place.iter_num}{where} {DIVERGED}")

    def _look_for_a_stall(self) -> None:
        seen = (self._log_bytes, self._clock.last)
        if self._watchdog.is_stalled(seen, time.monotonic()):
            timeout = self._monitor.stall_timeout
            raise TrainingError(
                f"pacemaker hung while {self._log.phase.value.replace('_', ' ')}: no iteration, "
                f"no output and no CPU use for {timeout:.0f} s",
                hint="check the GPU and its driver (nvidia-smi, dmesg), then run the same command "
                "again; run.stall_timeout sets the patience",
            )


class _IterationClock:
    """Seconds per iteration within the current ladder step and cycle."""

    def __init__(self) -> None:
        self.last: MetricsRow | None = None
        self.seconds_per_iteration: float | None = None
        self._first: tuple[int, float] | None = None

    def add(self, rows: Sequence[MetricsRow], now: float) -> None:
        for row in rows:
            new_step = self.last is None or (row.ladder_step, row.cycle_step) != (
                self.last.ladder_step,
                self.last.cycle_step,
            )
            self.last = row
            if row.iter_num is None:
                continue
            if new_step:
                self._first, self.seconds_per_iteration = None, None
            elif self._first is None:
                # Between rows 0 and 1 lies the graph of the test set: the clock starts after it.
                self._first = (row.iter_num, now)
            elif row.iter_num > self._first[0] and now > self._first[1]:
                elapsed = now - self._first[1]
                self.seconds_per_iteration = elapsed / (row.iter_num - self._first[0])


def _stop_group(process: subprocess.Popen[bytes]) -> None:
    """End pacemaker and all that it started."""
    if process.poll() is not None:
        return
    os.killpg(process.pid, signal.SIGTERM)
    try:
        process.wait(_GRACE_SECONDS)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
