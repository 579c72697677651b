"""Every error says its exit code, its message and its remedy."""

from __future__ import annotations

import pytest

from mlip_job import errors


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
    """Schedulers decide by these numbers."""
    kind = getattr(errors, name)
    assert kind.exit_code == code
    assert issubclass(kind, errors.MlipJobError)


def test_hint_stands_on_its_own_line() -> None:
    """What to do is told apart from what is wrong."""
    error = errors.DataError("row 7 has no forces", hint="label it again")
    assert str(error) == "row 7 has no forces\n  hint: label it again"
    assert str(errors.DataError("bare")) == "bare"
