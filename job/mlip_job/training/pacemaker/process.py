"""One run of pacemaker: started, followed, and ended where it has to be."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING

from mlip_job.disk import private
from mlip_job.errors import TrainingError
from mlip_job.runtime.processes import die_with_parent
from mlip_job.training.pacemaker.callbacks.on_device import NO_DEVICE
from mlip_job.training.pacemaker.log import LineReader, LogParser
from mlip_job.training.pacemaker.programs import (
    CALLBACKS,
    find_program,
    pacemaker_on_gpu,
    trainer_environment,
    unseen,
)
from mlip_job.training.pacemaker.results import DIVERGED
from mlip_job.training.pacemaker.tables import MetricsRow, TableFollower
from mlip_job.training.trainer import Monitor, Progress

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mlip_job.naming import WorkFiles
    from mlip_job.training.pacemaker.tables import Offset

_POLL_SECONDS = 0.5


_GRACE_SECONDS = 5.0  # pacemaker ends within a second of SIGTERM; a stuck one is killed


_READ_BYTES = 1 << 20


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
            env=trainer_environment() | {"PYTHONPATH": str(CALLBACKS)},
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
        monitor.phases.start(self._log.phase_seconds)
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
                timings_s=self._log.state.phase_seconds(),
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


_IDLE_FRACTION = 0.01  # of one core; what a sleeping process uses at most


_CHECKS_PER_TIMEOUT = 60


_LONGEST_LOOK_SECONDS = 10.0  # between two looks; this process was suspended if it was longer


class Watchdog:
    """Looks at one session of processes.

    Parameters
    ----------
    session
        Its id.
    timeout
        Seconds without any sign of life that are too many.
    now
        The time, s.
    """

    def __init__(self, session: int, timeout: float, now: float) -> None:
        self._session = session
        self._timeout = timeout
        self._looked = self._checked = now
        self._idle = 0.0
        self._cpu = 0.0
        self._seen: object = None

    def is_stalled(self, seen: object, now: float) -> bool:
        """Tell whether nothing has happened for too long.

        Parameters
        ----------
        seen
            Whatever changes when something happens: rows, bytes of output.
        now
            The time, s.
        """
        # Whoever was suspended for hours, and pacemaker with it, has not hung for hours.
        self._idle += min(now - self._looked, _LONGEST_LOOK_SECONDS)
        self._looked = now
        if seen != self._seen or self._uses_cpu(now):
            self._seen, self._idle = seen, 0.0
        return self._idle > self._timeout

    def _uses_cpu(self, now: float) -> bool:
        """Look now and then, since it costs a walk through all processes."""
        elapsed = now - self._checked
        if elapsed < self._timeout / _CHECKS_PER_TIMEOUT:
            return False
        before, self._cpu, self._checked = self._cpu, session_cpu_seconds(self._session), now
        return self._cpu - before > _IDLE_FRACTION * elapsed


def session_cpu_seconds(session: int) -> float:
    """Return the CPU time that the living processes of a session have used (proc(5), stat)."""
    ticks = 0
    for directory in Path("/proc").glob("[0-9]*"):
        try:
            text = (directory / "stat").read_text(encoding="utf-8", errors="replace")
        except OSError:
            continue
        fields = text.rpartition(")")[2].split()
        if int(fields[3]) == session:
            ticks += sum(map(int, fields[11:15]))  # its own and its ended children's
    return ticks / os.sysconf("SC_CLK_TCK")


_READ_BYTES = 1 << 20


_TAIL_BYTES = 16384


_TAIL_LINES = 15


_LONGEST_LINE = 300


_HOSTNAME = re.compile(rb"^([-0-9 :,a-zA-Z]{0,60} - Hostname: ).*")


def copy_without_host(log: Path, target: Path) -> None:
    """Copy a log, the host's name left out."""
    with log.open("rb") as source, target.open("wb") as cleaned:
        while piece := source.readline(_READ_BYTES):
            cleaned.write(_HOSTNAME.sub(rb"\1(not published)", piece))


def hide_host(log: Path) -> None:
    """Take the host's name out of a log that nobody writes any more."""
    cleaned = log.with_suffix(".cleaned")
    copy_without_host(log, cleaned)
    cleaned.replace(log)


def last_lines(log: Path) -> str:
    """Return the end of a log, indented, for an error message."""
    with log.open("rb") as source:
        source.seek(max(0, log.stat().st_size - _TAIL_BYTES))
        text = source.read().decode("utf-8", errors="replace").expandtabs(4)
    lines = text.replace("\r\n", "\n").removesuffix("\n").split("\n")
    return "\n".join(f"  {_printable(line[:_LONGEST_LINE])}" for line in lines[-_TAIL_LINES:])


def _printable(line: str) -> str:
    """Replace what a terminal would obey."""
    return "".join(character if character.isprintable() else "\ufffd" for character in line)
