"""Run a trainer as a child process: start, follow, stop; log without host names."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from mlip_job.errors import TrainingError
from mlip_job.paths import full, is_full, private
from mlip_job.runtime.processes import start_program
from mlip_job.training.programs import NO_DEVICE, gpu_unseen, trainer_command, trainer_environment
from mlip_job.training.summary import DIVERGED
from mlip_job.training.trainer import Progress, added

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from datetime import datetime

    from mlip_job.errors import MlipJobError
    from mlip_job.training.summary import CurvePoint
    from mlip_job.training.trainer import Monitor, SecondSet

LONGEST_LINE_BYTES = 1 << 14
"""Longer lines are truncated: no message of a trainer, but maybe binary data of a library."""

_POLL_SECONDS = 0.5
_GRACE_SECONDS = 5.0  # trainers end within a second of SIGTERM; a stuck one is killed
_READ_BYTES = 1 << 20

_SHELL_SIGNAL_BASE = 128  # a shell reports death by signal n as 128 + n

_IDLE_FRACTION = 0.01  # of one core; a sleeping process uses less
_CHECKS_PER_TIMEOUT = 60
_LONGEST_LOOK_SECONDS = 10.0  # between two checks; after a longer time this process was suspended

_TAIL_BYTES = 16384
_TAIL_LINES = 15
_LONGEST_SHOWN = 300
_HOSTNAME = re.compile(rb"^([-0-9 :,a-zA-Z]{0,60} - Hostname: ).*")
# Of Python: "module.Error: message", or the name alone.
_EXCEPTION = re.compile(r"(?:[A-Za-z_]\w*\.)*\w*(?:Error|Exception|Interrupt)(?::.*)?$")


@dataclass
class PhaseLog:
    """The phases of a trainer with their begin, and its last exception, from its log.

    Times are local ones without a zone, as in the logs: only differences count.
    """

    phases: list[tuple[str, datetime]] = field(default_factory=list)
    last_time: datetime | None = None
    exception: str | None = None

    @property
    def phase(self) -> str:
        """The present phase, such as ``building_graph``."""
        return self.phases[-1][0] if self.phases else "starting"

    def enter(self, phase: str | None, time: datetime) -> None:
        """Note the time of a message, and the phase that it begins."""
        self.last_time = time
        if phase is not None and (not self.phases or phase != self.phase):
            self.phases.append((phase, time))

    def note_exception(self, line: str) -> None:
        """Note a line without stamp if it names an exception."""
        if found := _EXCEPTION.match(line.strip()):
            self.exception = found.group(0)

    def phase_seconds(
        self, begun: datetime | None = None, until: datetime | None = None
    ) -> dict[str, float]:
        """Return the seconds in each phase, those of a ladder's steps added up.

        Without `begun`, the start of the process, its imports are missing, which come before the
        first line; without `until` the last stamp is the end.
        """
        phases = [*([("starting", begun)] if begun is not None else []), *self.phases]
        end = until or self.last_time
        if not phases or end is None:
            return {}
        spans = pairwise([*phases, ("", end)])
        return added(
            *({name: (stop - start).total_seconds()} for (name, start), (_, stop) in spans)
        )


@dataclass
class Output:
    """Log and curves of a trainer, read while it writes them.

    `poll_train` and `poll_second` return the points that were written since their last call, with
    positions in the whole fit.
    """

    feed: Callable[[str], None]
    state: Callable[[], PhaseLog]
    poll_train: Callable[[], Sequence[CurvePoint]]
    poll_second: Callable[[], Sequence[CurvePoint]]
    second_set: SecondSet
    second_point: CurvePoint | None = None

    def poll(self) -> Sequence[CurvePoint]:
        """Return the new points of the training curve."""
        if second := self.poll_second():
            self.second_point = second[-1]
        return self.poll_train()


def run_trainer(
    program: str,
    arguments: Sequence[str],
    log: Path,
    output: Output,
    monitor: Monitor,
    *,
    variables: Mapping[str, str],
    require_gpu: bool,
) -> int:
    """Run a trainer in the directory of its log, to which it appends; return the exit code.

    Raises
    ------
    ConfigError
        If it is not installed.
    GpuRequiredError
        If it sees no GPU, and one is required.
    MlipJobError
        The error that `monitor.interruption` returned.
    TrainingError
        If the fit diverged or hung.
    """
    with open(log, "ab", buffering=0, opener=private) as file:
        begin = file.tell()
        process = start_program(
            [*trainer_command(program, require_gpu=require_gpu), *arguments],
            cwd=log.parent,
            env={**trainer_environment(), **variables},
            stdout=file,
            stderr=subprocess.STDOUT,
            umask=0o077,
        )
    try:
        exit_code = _Follower(process, GrowingFile(log, begin), output, monitor).follow()
    finally:
        _stop_group(process)
        monitor.phases.end()
    hide_host(log)
    if require_gpu and exit_code == NO_DEVICE:
        raise gpu_unseen()
    return exit_code


class _Follower:
    """Follows a trainer to its end."""

    def __init__(
        self, process: subprocess.Popen[bytes], log: GrowingFile, output: Output, monitor: Monitor
    ) -> None:
        self._process = process
        self._log = log
        self._output = output
        self._monitor = monitor
        self._started = time.monotonic()
        monitor.phases.start(lambda *times: output.state().phase_seconds(*times))
        self._clock = IterationClock()
        self._watchdog = Watchdog(process.pid, monitor.stall_timeout, self._started)

    def follow(self) -> int:
        """Return the exit code."""
        while True:
            ended = self._process.poll()
            for line in self._log.lines():
                self._output.feed(line)
                self._monitor.show_line(line)
            if ended is not None:
                return ended
            self._report_progress()
            self._require_life()
            if (interruption := self._monitor.interruption()) is not None:
                raise interruption
            time.sleep(_POLL_SECONDS)

    def _report_progress(self) -> None:
        points = self._output.poll()
        now = time.monotonic()
        self._clock.add(points, now)
        self._monitor.observe(
            Progress(
                phase=self._output.state().phase,
                elapsed_s=now - self._started,
                point=self._clock.last,
                seconds_per_iteration=self._clock.seconds_per_iteration,
                test_point=self._output.second_point,
                timings_s=self._output.state().phase_seconds(),
                second_set=self._output.second_set,
            )
        )
        for point in points:
            if point.loss is None:
                step = f" of ladder step {point.ladder_step + 1}" if point.ladder_step else ""
                raise TrainingError(f"in iteration {point.iteration}{step} {DIVERGED}")

    def _require_life(self) -> None:
        seen = (self._log.position, self._clock.last)
        if self._watchdog.is_stalled(seen, time.monotonic()):
            phase = self._output.state().phase.replace("_", " ")
            raise TrainingError(
                f"the trainer hung while {phase}: no iteration, "
                f"no output and no CPU use for {self._monitor.stall_timeout:.0f} s",
                hint="check the GPU and its driver (nvidia-smi, dmesg), then run the same command "
                "again; run.stall_timeout sets the limit",
            )


class IterationClock:
    """Measures the seconds per iteration within the current ladder step and cycle."""

    def __init__(self) -> None:
        self.last: CurvePoint | None = None
        self.seconds_per_iteration: float | None = None
        self._first: tuple[int, float] | None = None

    def add(self, points: Sequence[CurvePoint], now: float) -> None:
        """Take the points that were written up to now."""
        for point in points:
            before, self.last = self.last, point
            if before is None or before.step != point.step:
                self._first, self.seconds_per_iteration = None, None
            elif self._first is None:
                # Between points 0 and 1 the graph of the test set is built: start after it.
                self._first = (point.iteration, now)
            elif point.iteration > self._first[0] and now > self._first[1]:
                elapsed = now - self._first[1]
                self.seconds_per_iteration = elapsed / (point.iteration - self._first[0])


class Watchdog:
    """Detects a session of processes that hangs: no output, no use of the CPU; times in seconds."""

    def __init__(self, session: int, timeout: float, now: float) -> None:
        self._session = session
        self._timeout = timeout
        self._looked = self._checked = now
        self._idle = 0.0
        self._cpu = 0.0
        self._seen: object = None

    def is_stalled(self, seen: object, now: float) -> bool:
        """Return whether the trainer has stalled; `seen` changes with every output."""
        # A job that was suspended for hours has not hung for hours.
        self._idle += min(now - self._looked, _LONGEST_LOOK_SECONDS)
        self._looked = now
        if seen != self._seen or self._uses_cpu(now):
            self._seen, self._idle = seen, 0.0
        return self._idle > self._timeout

    def _uses_cpu(self, now: float) -> bool:
        """Return whether the session uses the CPU; checked rarely, as it scans all processes."""
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
            ticks += sum(map(int, fields[11:15]))  # of itself and of its children that ended
    return ticks / os.sysconf("SC_CLK_TCK")


def _stop_group(process: subprocess.Popen[bytes]) -> None:
    """Stop a trainer and all processes that it started."""
    if process.poll() is not None:
        return
    os.killpg(process.pid, signal.SIGTERM)
    try:
        process.wait(_GRACE_SECONDS)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def failure(program: str, exit_code: int, cause: str, log: Path) -> MlipJobError:
    """Return the error for a trainer without a usable result, with the end of its log."""
    if is_full(log.parent, cause):
        return full(log.parent)
    return TrainingError(
        f"{program} failed (exit code {exit_code}): {cause}\n"
        f"last lines of {log}:\n{last_lines(log)}"
    )


def describe_exit(exit_code: int) -> str | None:
    """Return the signal that ended a process, from its exit code."""
    number = -exit_code if exit_code < 0 else exit_code - _SHELL_SIGNAL_BASE
    try:
        name = signal.Signals(number).name
    except ValueError:
        return None
    if name == "SIGKILL":
        return (
            "killed by SIGKILL: out of memory, or by the scheduler; give the job more memory or "
            "reduce training.batch_size"
        )
    return f"ended by {name}"


_OUT_OF_MEMORY = (
    "ResourceExhaustedError",
    "RESOURCE_EXHAUSTED",
    "OOM when allocating",
    "CUDA_ERROR_OUT_OF_MEMORY",
    "std::bad_alloc",
    "MemoryError",
    "No further batch size reduction",  # pacemaker, after TensorFlow ran out of memory
)


def is_out_of_memory(text: str) -> bool:
    """Return whether a log line or an exception reports out of memory."""
    return any(sign in text for sign in _OUT_OF_MEMORY)


# -- the log -------------------------------------------------------------------------------------


class GrowingFile:
    """Reads the lines of a file that grows; it may not exist yet, or be overwritten.

    Of longer lines the first `LONGEST_LINE_BYTES` are kept. ``rest`` is a last line without its
    end.
    """

    def __init__(self, path: Path, position: int = 0) -> None:
        self.position = position
        self.rest = bytearray()
        self._path = path

    def lines(self) -> Iterator[str]:
        """Yield the lines that were completed since the last call."""
        with suppress(FileNotFoundError), self._path.open("rb") as file:
            if file.seek(0, os.SEEK_END) < self.position:
                self.position = 0
                self.rest.clear()
            file.seek(self.position)
            while block := file.read(_READ_BYTES):
                self.position += len(block)
                *ends, rest = block.split(b"\n")
                for end in ends:
                    self._add(end)
                    yield self.rest.decode("utf-8", errors="replace")
                    self.rest.clear()
                self._add(rest)

    def _add(self, piece: bytes) -> None:
        self.rest += piece[: LONGEST_LINE_BYTES - len(self.rest)]


def read_lines(path: Path) -> Iterator[str]:
    """Yield the lines of a file, also a last one without its end."""
    file = GrowingFile(path)
    yield from file.lines()
    if file.rest:
        yield file.rest.decode("utf-8", errors="replace")


def copy_without_host(log: Path, target: Path) -> None:
    """Copy a log without the name of the host."""
    with log.open("rb") as source, target.open("wb") as cleaned:
        while piece := source.readline(_READ_BYTES):
            cleaned.write(_HOSTNAME.sub(rb"\1(not published)", piece))


def hide_host(log: Path) -> None:
    """Remove the name of the host from a log that is not written any more."""
    cleaned = log.with_suffix(".cleaned")
    copy_without_host(log, cleaned)
    cleaned.replace(log)


def last_lines(log: Path) -> str:
    """Return the end of a log, indented, for an error message."""
    with log.open("rb") as source:
        source.seek(max(0, log.stat().st_size - _TAIL_BYTES))
        text = source.read().decode("utf-8", errors="replace").expandtabs(4)
    lines = text.replace("\r\n", "\n").removesuffix("\n").split("\n")
    return "\n".join(f"  {_printable(line[:_LONGEST_SHOWN])}" for line in lines[-_TAIL_LINES:])


def _printable(line: str) -> str:
    """Replace control characters, which a terminal would obey."""
    return "".join(character if character.isprintable() else "\ufffd" for character in line)
