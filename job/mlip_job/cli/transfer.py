"""A line on the terminal that says how far an upload or a download is."""

from __future__ import annotations

import sys
import time

import click

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
        """Hear that so many bytes of an object have moved."""
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
