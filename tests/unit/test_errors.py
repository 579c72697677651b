"""Every error has its exit code, its message and its remedy."""

from __future__ import annotations

import pytest

from mlip_job import errors
from mlip_job.errors import InterruptedRunError
from mlip_job.schedulers.base import meaning_of


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("ConfigError", 64),
        ("DataError", 65),
        ("IntegrityError", 65),
        ("DatabaseError", 69),
        ("StoreError", 69),
        ("TrainingError", 70),
        ("GpuRequiredError", 71),
        ("ConflictError", 73),
        ("InterruptedRunError", 75),
    ],
)
def test_exit_codes_are_the_documented_ones(name: str, code: int) -> None:
    kind = getattr(errors, name)
    assert kind.exit_code == code
    assert issubclass(kind, errors.MlipJobError)


def test_a_signal_is_named_and_an_interrupted_run_may_be_retried() -> None:
    assert meaning_of(143).reason == "it was interrupted by SIGTERM"
    assert (meaning_of(143).retry, meaning_of(143).error) == (True, InterruptedRunError)
    assert (meaning_of(130).retry, meaning_of(138).retry) == (True, True)
    assert meaning_of(139).reason == "it was ended by SIGSEGV"
    assert (meaning_of(139).retry, meaning_of(137).retry) == (False, False)
    assert meaning_of(3).reason == meaning_of(255).reason == "it failed without saying why"


def test_hint_is_on_a_separate_line() -> None:
    """So that the remedy is distinct from the problem."""
    error = errors.DataError("row 7 has no forces", hint="label it again")
    assert str(error) == "row 7 has no forces\n  hint: label it again"
    assert str(errors.DataError("bare")) == "bare"
