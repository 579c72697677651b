"""Retry transient failures: bounded, with back-off, and logged."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, TypeVar

from tenacity import (
    RetryCallState,
    Retrying,
    retry_if_exception,
    wait_exponential,
    wait_random,
)

from mlip_job.errors import UnavailableError

if TYPE_CHECKING:
    from collections.abc import Callable

Result = TypeVar("Result")

_FIRST_WAIT_SECONDS = 0.5
_LONGEST_WAIT_SECONDS = 30.0

_log = logging.getLogger(__name__)


def retrying(call: Callable[[], Result], timeout: float) -> Result:
    """Return what `call` returns; retry it while it fails with a transient error.

    Parameters
    ----------
    call
        Must be safe to repeat.
    timeout
        Seconds after the first failure in which retries are started; 0 means no retry.

    Raises
    ------
    UnavailableError
        The last one, where time ran out; any other error at once.
    """
    tries = Retrying(
        retry=retry_if_exception(_is_transient),
        stop=_StopAfterFailing(timeout),
        wait=wait_exponential(multiplier=_FIRST_WAIT_SECONDS, max=_LONGEST_WAIT_SECONDS)
        + wait_random(0, _FIRST_WAIT_SECONDS),
        before_sleep=_say,
        reraise=True,
    )
    return tries(call)


class _StopAfterFailing:
    """Stop some time after the first failure: an export that ran for an hour is retried too."""

    def __init__(self, timeout: float) -> None:
        self._timeout = timeout
        self._first_failure: float | None = None

    def __call__(self, state: RetryCallState) -> bool:
        failed = state.outcome_timestamp or 0.0
        if self._first_failure is None:
            self._first_failure = failed
        return failed + state.upcoming_sleep - self._first_failure >= self._timeout


def _is_transient(error: BaseException) -> bool:
    return isinstance(error, UnavailableError) and error.transient


def _say(state: RetryCallState) -> None:
    error = state.outcome.exception() if state.outcome is not None else None
    text = error.message if isinstance(error, UnavailableError) else str(error)
    _log.warning("%s; trying again in %.1f s", text, state.upcoming_sleep)
