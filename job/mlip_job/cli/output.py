"""Output of verbs: documents and tables on stdout, messages and progress on stderr."""

from __future__ import annotations

import json
import sys
import time
from threading import current_thread, main_thread
from typing import TYPE_CHECKING, Any

import click

from mlip_job.report.texts import UNKNOWN, duration
from mlip_job.secret_texts import redact

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from rich.console import Console
    from rich.progress import Progress as RichProgress
    from rich.table import Table

    from mlip_job.cli.options import Settings
    from mlip_job.models import Errors
    from mlip_job.training.trainer import Progress

WIDTH = 80
"""Columns of a terminal that every table fits."""

_SILENT_SECONDS = 1.0  # a shorter transfer is not shown
_TRANSFER_INTERVAL_SECONDS = 0.2
_LINE_INTERVAL_SECONDS = 10.0
_LONGEST_LINE = 500
_NARROWEST = 16  # a column this narrow is not narrowed further, so no number is broken


def emit(settings: Settings, document: Any, text: Callable[[], None]) -> None:
    """Print `document` as JSON with --json, else call `text`."""
    if settings.as_json:
        click.echo(json.dumps(document, indent=2, allow_nan=False))
    else:
        text()


def print_lines(lines: Iterable[tuple[str, str | None]], width: int) -> None:
    """Print names and texts in two columns, without those that are empty."""
    for name, text in lines:
        if text:
            click.echo(f"{name:<{width}} {text}")


def print_table(
    columns: Sequence[str], rows: Sequence[Sequence[str]], numeric: Sequence[bool] | None = None
) -> None:
    """Print a table on stdout; numbers are aligned to the right, and never broken.

    If headings and texts on several lines don't make it narrow enough, it is continued below
    itself, with its first column again. `numeric` says which columns hold numbers where their cells
    don't show it.
    """
    from rich.console import Console

    if numeric is None:
        numeric = [all(_is_number(row[index]) for row in rows) for index in range(len(columns))]
    widths, gap = _widths(columns, rows)
    if _total(widths, gap) > WIDTH and len(columns) > 2:  # noqa: PLR2004 - nothing to split
        middle = len(columns) // 2 + 1
        for part in (slice(1, middle), slice(middle, None)):
            print_table(
                [columns[0], *columns[part]],
                [[row[0], *row[part]] for row in rows],
                [numeric[0], *numeric[part]],
            )
        return
    console = Console(width=max(WIDTH, _total(widths, gap)), color_system=None)
    with console.capture() as captured:
        console.print(_table(columns, rows, numeric, widths, gap))
    click.echo("\n".join(line.rstrip() for line in captured.get().splitlines()))
    click.echo()


def _widths(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> tuple[list[int], int]:
    """Return the width of each column and of the gap between two of them."""
    cells = [max((len(row[index]) for row in rows), default=1) for index in range(len(columns))]
    widths = [max(1, cell, len(name)) for cell, name in zip(cells, columns, strict=True)]
    if _total(widths, 3) <= WIDTH:
        return widths, 3
    words = [max(map(len, name.split()), default=1) for name in columns]
    widths = [max(1, *pair) for pair in zip(cells, words, strict=True)]
    while _total(widths, 2) > WIDTH and max(widths) > _NARROWEST:
        widths[widths.index(max(widths))] -= 1
    return widths, 2


def _total(widths: Sequence[int], gap: int) -> int:
    return sum(widths) + gap * (len(widths) - 1)


def _table(
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    numeric: Sequence[bool],
    widths: Sequence[int],
    gap: int,
) -> Table:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    # The box adds one character to the gap.
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, gap - 1, 0, 0))
    for name, right, width in zip(columns, numeric, widths, strict=True):
        table.add_column(Text(name), justify="right" if right else "left", width=width)
    for row in rows:
        table.add_row(*map(Text, row))
    return table


def _is_number(text: str) -> bool:
    return text.replace(".", "", 1).replace("-", "", 1).isdigit() or text == UNKNOWN


class TransferLine:
    """Shows objects that take long to move, on a terminal only; a `store.base.Meter`."""

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
        seconds = now - self._started
        if done >= total:
            self._write("")
            self._key = ""
        elif seconds >= _SILENT_SECONDS and now - self._last >= _TRANSFER_INTERVAL_SECONDS:
            self._last = now
            share, speed = 100 * done // total, done / seconds / 1e6
            name = key.rpartition("/")[2]
            self._write(f"{name}: {share} % of {total / 1e6:.0f} MB, {speed:.1f} MB/s")

    def _write(self, text: str) -> None:
        """Replace the content of the line."""
        if text or self._width:
            click.echo(f"\r{text.ljust(self._width)}{'' if text else chr(13)}", err=True, nl=False)
        self._width = len(text)


class Reporter:
    """Report the progress of a run on stderr; a live line on a terminal, else one per interval.

    `max_iter` is the number of iterations that the fit may take (in a ladder, each step).
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
            return
        now = time.monotonic()
        if progress.phase != self._phase or now - self._last_line >= _LINE_INTERVAL_SECONDS:
            self._phase, self._last_line = progress.phase, now
            text = _describe(progress, self._max_iter)
            click.echo(f"[{progress.elapsed_s:6.0f} s] {text}", err=True)

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
        self._live.update(
            self._live.task_ids[0],
            completed=progress.point.iteration if progress.point is not None else 0,
            description=_describe(progress, self._max_iter),
        )


def live_line(console: Console, total: int | None) -> RichProgress:
    """Return a line of progress whose elapsed time stays however long the description is."""
    from rich.progress import BarColumn, SpinnerColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as RichProgress
    from rich.table import Column

    # The only column with a ratio takes the room that the others leave, and is cut to it.
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


def _errors(name: str, errors: Errors) -> Iterator[str]:
    energy, force = errors.rmse_energy_mev_per_atom, errors.rmse_force_mev_per_angstrom
    if energy is not None and force is not None:
        stress = errors.rmse_stress_gpa
        of_stress = "" if stress is None else f", {stress:.2f} GPa"
        yield f"{name} {energy:.1f} meV/atom, {force:.1f} meV/Å{of_stress}"
