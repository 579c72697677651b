"""Work that goes on beside the run: heartbeats, checkpoints."""

from __future__ import annotations

import logging
from contextlib import contextmanager
from threading import Event, Thread
from typing import TYPE_CHECKING

from mlip_job.errors import MlipJobError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_log = logging.getLogger(__name__)


@contextmanager
def every(interval: float, action: Callable[[], None], what: str) -> Iterator[None]:
    """Call `action` in a thread of its own, again and again.

    Parameters
    ----------
    interval
        Seconds between the end of one call and the next.
    action
        Where it raises an error, that is logged and the next call tries again.
    what
        Names it in the log.
    """
    done = Event()

    def loop() -> None:
        while not done.wait(interval):
            attempt(action, what)

    thread = Thread(target=loop, name=what, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()


def attempt(action: Callable[[], None], what: str) -> bool:
    """Call `action`; log an error. Return whether it succeeded."""
    try:
        action()
    except MlipJobError as error:
        _log.warning("%s failed: %s", what, error.message)
    except OSError as error:
        _log.warning("%s failed: %s", what, error)
    except Exception:  # noqa: BLE001 - logged in full
        # A bug of ours must not cost the run its heartbeat and all further checkpoints.
        _log.exception("%s failed", what)
    else:
        return True
    return False


def within(timeout: float, action: Callable[[], None], what: str) -> bool:
    """Call `action`, but wait no longer than `timeout` seconds for it.

    For what has to be tried at the end of a run: a scheduler that has sent its signal kills soon.

    Returns
    -------
    bool
        Whether it succeeded in time.
    """
    succeeded: list[bool] = []
    thread = Thread(target=lambda: succeeded.append(attempt(action, what)), name=what, daemon=True)
    thread.start()
    thread.join(timeout)
    if thread.is_alive():
        _log.warning("%s did not end within %.0f s", what, timeout)
    return succeeded == [True]
