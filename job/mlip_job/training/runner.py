"""Run pacemaker in a clean directory, follow it, and judge how it ended."""

from __future__ import annotations

import ctypes
import os
import re
import signal
import subprocess
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mlip_job.errors import InterruptedRunError, TrainingError
from mlip_job.training.log import LogParser
from mlip_job.training.potential_yaml import elements_of, read_potential
from mlip_job.training.programs import find_program, trainer_environment
from mlip_job.training.summary import summarise_run
from mlip_job.training.tables import MetricsRow, TableFollower

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from mlip_job.naming import WorkFiles
    from mlip_job.training.run_summary import RunSummary
    from mlip_job.training.signals import StopRequest

_POLL_SECONDS = 0.5
_GRACE_SECONDS = 10.0  # pacemaker ends within a second of SIGTERM; a stuck one is killed
_TAIL_LINES = 15
_READ_BYTES = 1 << 20
_PR_SET_PDEATHSIG = 1  # from <linux/prctl.h>
_HOSTNAME = re.compile(rb"^([-0-9 :,a-zA-Z]{0,60} - Hostname: ).*")


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
    """

    phase: str
    elapsed_s: float
    row: MetricsRow | None = None
    seconds_per_iteration: float | None = None


class PacemakerWrapper:
    """One run of pacemaker.

    Parameters
    ----------
    files
        Its work directory, holding input.yaml and the data frames that it names.
    elements
        What the potential has to describe.
    observe
        Called with the progress about twice a second.
    show_line
        Called with every line that pacemaker prints.
    stop
        Looked at as often; when a signal has come, pacemaker is stopped.
    """

    def __init__(
        self,
        files: WorkFiles,
        *,
        elements: Sequence[str],
        observe: Callable[[Progress], None],
        show_line: Callable[[str], None],
        stop: StopRequest,
    ) -> None:
        self._files = files
        self._elements = tuple(sorted(elements))
        self._observe = observe
        self._show_line = show_line
        self._stop = stop
        self._log = LogParser()
        self._metrics = TableFollower(files.metrics)
        self._clock = _IterationClock()

    def fit(self) -> RunSummary:
        """Run pacemaker to its end and return what it achieved.

        Raises
        ------
        ConfigError
            If pacemaker is not installed.
        InterruptedRunError
            If a stop signal came.
        TrainingError
            If it failed, or what it left is no potential; the message has the cause in words and
            the last lines of the log.
        """
        # Its predictions and plots of the training data are not needed, and cost two graphs more.
        command = [str(find_program("pacemaker")), "--no-predict", self._files.input_yaml.name]
        with self._files.train_log.open("ab", buffering=0) as output:
            process = subprocess.Popen(  # noqa: S603 - a fixed program with a name of our own
                command,
                cwd=self._files.directory,
                env=trainer_environment(),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=_die_with_parent,  # noqa: PLW1509 - one call into libc, no lock taken
            )
        try:
            exit_code = self._follow(process)
        finally:
            _stop_group(process)
            _hide_host(self._files.train_log)
        return self._judge(exit_code)

    def _follow(self, process: subprocess.Popen[bytes]) -> int:
        started = time.monotonic()
        with self._files.train_log.open("rb") as log:
            reader = _LineReader()
            while True:
                ended = process.poll()
                while block := log.read(_READ_BYTES):
                    for line in reader.lines(block):
                        self._log.feed(line)
                        self._show_line(line)
                if ended is not None:
                    return ended
                self._clock.add(self._metrics.poll(), time.monotonic())
                self._observe(
                    Progress(
                        phase=self._log.phase.value,
                        elapsed_s=time.monotonic() - started,
                        row=self._clock.last,
                        seconds_per_iteration=self._clock.seconds_per_iteration,
                    )
                )
                if self._stop.received is not None:
                    _stop_group(process)
                    raise InterruptedRunError(
                        f"stopped by {self._stop.received.name}; nothing was published",
                        hint="run the same command again",
                    )
                time.sleep(_POLL_SECONDS)

    def _judge(self, exit_code: int) -> RunSummary:
        summary = summarise_run(self._files.directory, exit_code=exit_code)
        cause = summary.cause or self._unusable(summary)
        if cause is not None:
            raise TrainingError(
                f"pacemaker failed (exit code {exit_code}): {cause}\n"
                f"last lines of {self._files.train_log}:\n{_tail(self._files.train_log)}"
            )
        return summary

    def _unusable(self, summary: RunSummary) -> str | None:
        """Return what makes a fit that succeeded useless; pacemaker passes over it in silence."""
        for side, sizes in summary.structures.items():
            if sizes.kept != sizes.found:
                return f"only {sizes.kept} of {sizes.found} {side} structures were taken"
        found = elements_of(read_potential(self._files.output_potential))
        if found != self._elements:
            return f"the potential describes {', '.join(found)}, not {', '.join(self._elements)}"
        return None


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


class _LineReader:
    """Cut a growing file into lines."""

    def __init__(self) -> None:
        self._rest: list[bytes] = []

    def lines(self, block: bytes) -> list[str]:
        *whole, rest = block.split(b"\n")
        if whole:
            whole[0] = b"".join([*self._rest, whole[0]])
            self._rest = []
        self._rest.append(rest)
        return [line.decode("utf-8", errors="replace") for line in whole]


def _die_with_parent() -> None:
    """Have the kernel end pacemaker if this process is killed, so that no GPU is left busy."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


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


def _hide_host(log: Path) -> None:
    """Take the host's name out of a log that will be published."""
    cleaned = log.with_suffix(".cleaned")
    with log.open("rb") as source, cleaned.open("wb") as target:
        while piece := source.readline(_READ_BYTES):
            target.write(_HOSTNAME.sub(rb"\1(not published)", piece))
    cleaned.replace(log)


def _tail(path: Path) -> str:
    with path.open("rb") as log:
        log.seek(max(0, path.stat().st_size - 16384))
        lines = log.read().decode("utf-8", errors="replace").splitlines()
    return "\n".join(f"  {line[:300]}" for line in lines[-_TAIL_LINES:])
