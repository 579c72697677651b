"""Retry transient failures: bounded, with back-off, and logged."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, TypeVar

from tenacity import RetryCallState, Retrying, retry_if_exception, wait_exponential, wait_random

from mlip_job.errors import UnavailableError

if TYPE_CHECKING:
    from collections.abc import Callable

Result = TypeVar("Result")

FIRST_WAIT_SECONDS = 0.5
LONGEST_WAIT_SECONDS = 30.0

_log = logging.getLogger(__name__)


def retrying(call: Callable[[], Result], timeout: float) -> Result:
    """Return what `call`, which must be safe to repeat, returns; retry its transient failures.

    No retry starts more than `timeout` seconds after the first failure: an export that ran for an
    hour is retried too. The last error is raised then, any other one at once.
    """
    first_failure: float | None = None

    def is_late(state: RetryCallState) -> bool:
        nonlocal first_failure
        failed = state.outcome_timestamp or 0.0
        first_failure = failed if first_failure is None else first_failure
        return failed + state.upcoming_sleep - first_failure >= timeout

    tries = Retrying(
        retry=retry_if_exception(lambda e: isinstance(e, UnavailableError) and e.transient),
        stop=is_late,
        wait=wait_exponential(multiplier=FIRST_WAIT_SECONDS, max=LONGEST_WAIT_SECONDS)
        + wait_random(0, FIRST_WAIT_SECONDS),
        before_sleep=_log_retry,
        reraise=True,
    )
    return tries(call)


def _log_retry(state: RetryCallState) -> None:
    error = state.outcome.exception() if state.outcome is not None else None
    text = error.message if isinstance(error, UnavailableError) else str(error)
    _log.warning("%s; trying again in %.1f s", text, state.upcoming_sleep)
