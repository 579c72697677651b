"""Stop a run by the signals that schedulers send."""

from __future__ import annotations

import signal
from contextlib import contextmanager
from typing import TYPE_CHECKING, Self

from mlip_job.errors import InterruptedRunError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType, TracebackType

# Slurm sends TERM (or what --signal names), Kubernetes TERM, a terminal INT.
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


class StopRequest:
    """Context manager in which the first stop signal raises `InterruptedRunError`.

    ``received`` is that signal, or None.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._deferred = False
        self._previous: dict[signal.Signals, object] = {}

    def __enter__(self) -> Self:
        for number in STOP_SIGNALS:
            self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Within it a signal only sets `received`, which the block has to check often."""
        before, self._deferred = self._deferred, True
        try:
            yield
        finally:
            self._deferred = before

    def error(self) -> InterruptedRunError | None:
        """Return the error to end with, if a signal has come."""
        if self.received is None:
            return None
        return InterruptedRunError(
            f"stopped by {self.received.name}; nothing was published",
            hint="run the same command again",
        )

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        if self.received is not None:
            return
        self.received = signal.Signals(number)
        if not self._deferred and (error := self.error()) is not None:
            raise error
