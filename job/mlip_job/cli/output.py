"""Output of verbs: documents on stdout, messages and progress on stderr."""

from __future__ import annotations

import json
import sys
import time
from threading import current_thread, main_thread
from typing import TYPE_CHECKING, Any

import click

from mlip_job.secret_texts import redact

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from rich.console import Console
    from rich.progress import Progress as RichProgress

    from mlip_job.cli.options import Settings
    from mlip_job.training.summary import CurvePoint
    from mlip_job.training.trainer import Progress

_QUIET_SECONDS = 1.0
"""What takes less is not worth a line."""

_INTERVAL_SECONDS = 0.2


class TransferLine:
    """Shows objects that take long to move, on a terminal only; a `store.base.Meter`.

    Parameters
    ----------
    quiet
        Show nothing.
    """

    def __init__(self, *, quiet: bool) -> None:
        self._enabled = not quiet and sys.stderr.isatty()
        self._key = ""
        self._started = self._last = 0.0
        self._width = 0

    def __call__(self, key: str, done: int, total: int) -> None:
        """Receive the number of bytes transferred."""
        if not self._enabled:
            return
        now = time.monotonic()
        if key != self._key:
            self._key, self._started, self._last = key, now, now
        if done >= total:
            self._write("")
            self._key = ""
        elif now - self._started >= _QUIET_SECONDS and now - self._last >= _INTERVAL_SECONDS:
            self._last = now
            speed = done / (now - self._started) / 1e6
            name = key.rpartition("/")[2]
            self._write(
                f"{name}: {100 * done // total} % of {total / 1e6:.0f} MB, {speed:.1f} MB/s"
            )

    def _write(self, text: str) -> None:
        """Write over what stands in the line."""
        if text or self._width:
            click.echo(f"\r{text.ljust(self._width)}{'' if text else chr(13)}", err=True, nl=False)
        self._width = len(text)


_LINE_INTERVAL_SECONDS = 10.0
_LONGEST_LINE = 500


def emit(settings: Settings, document: Any, text: Callable[[], None]) -> None:
    """Print `document` as JSON with --json, else call `text`."""
    if settings.as_json:
        click.echo(json.dumps(document, indent=2, allow_nan=False))
    else:
        text()


class Reporter:
    """Report the progress of a run on stderr; a live line on a terminal, else one per interval.

    Parameters
    ----------
    settings
        Whether to be quiet, or to show what pacemaker prints.
    max_iter
        Iterations that the fit may take (in a ladder, each step), for the estimate.
    """

    def __init__(self, settings: Settings, max_iter: int | None = None) -> None:
        self._quiet = settings.quiet
        self._verbose = settings.verbose
        self._max_iter = max_iter
        self._live: RichProgress | None = None
        self._transfers = TransferLine(quiet=self._quiet)
        self._phase = ""
        self._last_line = 0.0

    def message(self, text: str) -> None:
        """Print a message."""
        self.close()
        if not self._quiet:
            click.echo(redact(text), err=True)

    def progress(self, progress: Progress) -> None:
        """Show how far pacemaker is."""
        if self._quiet:
            return
        if sys.stderr.isatty():
            self._show_live(progress)
        else:
            self._show_line(progress)

    def transfer(self, key: str, done: int, total: int) -> None:
        """Show the progress of a transfer, unless it is concurrent with the fit."""
        if current_thread() is main_thread():
            self.close()
            self._transfers(key, done, total)

    def trainer_line(self, line: str) -> None:
        """Show a line of pacemaker's output with --verbose."""
        if self._verbose:
            self.close()
            click.echo(f"  | {line[:_LONGEST_LINE]}", err=True)

    def close(self) -> None:
        """Remove the live line."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    def _show_live(self, progress: Progress) -> None:
        from rich.console import Console

        if self._live is None:
            self._live = live_line(Console(stderr=True), self._max_iter)
            self._live.start()
        point = progress.point
        self._live.update(
            self._live.task_ids[0],
            completed=point.iteration if point is not None else 0,
            description=_describe(progress, self._max_iter),
        )

    def _show_line(self, progress: Progress) -> None:
        now = time.monotonic()
        new_phase = progress.phase != self._phase
        if new_phase or now - self._last_line >= _LINE_INTERVAL_SECONDS:
            self._phase, self._last_line = progress.phase, now
            text = _describe(progress, self._max_iter)
            click.echo(f"[{progress.elapsed_s:6.0f} s] {text}", err=True)


def live_line(console: Console, total: int | None) -> RichProgress:
    """Return a line of progress whose elapsed time stays however long the description is."""
    from rich.progress import BarColumn, SpinnerColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as RichProgress
    from rich.table import Column

    # The only column with a ratio takes what room the others leave, and is cut to it.
    rest = Column(ratio=1, no_wrap=True, overflow="ellipsis")
    line = RichProgress(
        SpinnerColumn(),
        TimeElapsedColumn(),
        BarColumn(bar_width=10),
        TextColumn("{task.description}", table_column=rest),
        console=console,
        transient=True,
        expand=True,
    )
    line.add_task("", total=total)
    return line


def _describe(progress: Progress, max_iter: int | None) -> str:
    point = progress.point
    parts = [progress.phase.replace("_", " ")]
    if point is not None:
        total = f"/{max_iter}" if max_iter else ""
        step = f"ladder step {point.ladder_step + 1}, " if point.ladder_step else ""
        parts.append(f"{step}iteration {point.iteration}{total}")
        if point.loss is not None:
            parts.append(f"loss {point.loss:.3g}")
        parts.extend(_errors("RMSE", point))
        if progress.test_point is not None:
            parts.extend(_errors(progress.second_set, progress.test_point))
        if max_iter and progress.seconds_per_iteration is not None:
            seconds = (max_iter - point.iteration) * progress.seconds_per_iteration
            parts.append(f"at most {duration(seconds)} left in this step")
    return " · ".join(parts)


def _errors(name: str, point: CurvePoint) -> Iterator[str]:
    energy, force = point.rmse_energy_mev_per_atom, point.rmse_force_mev_per_angstrom
    if energy is not None and force is not None:
        yield f"{name} {energy:.1f} meV/atom, {force:.1f} meV/Å"


def duration(seconds: float) -> str:
    """Return a time as minutes and seconds, or hours, minutes and seconds."""
    minutes, rest = divmod(round(max(0.0, seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
