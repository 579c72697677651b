"""Options and keys of earlier versions, and what replaces each."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

_EXPORT = "call mlip-job export -g N first, and the run finds the dataset in the store"

OPTIONS: Mapping[str, str] = {
    "run --until": f"a run goes from the database to a published generation; {_EXPORT}",
    "pull --crate": "examples/ro_crate.py writes the metadata into a pulled generation",
    "run --then-resume": "a submission is one Job",
    "submit --split-export": _EXPORT,
    "submit --split-evaluation": "the job that fits evaluates and publishes too",
    "submit --from": "submit makes the Job from submit.kubernetes of mlip-job.yaml",
}
"""By verb and option."""

KEYS: Mapping[str, str] = {
    "submit.kubernetes.resume_service_account": "a submission is one Job, which starts no other",
}
"""By path. A part that was removed answers for the keys in it."""


VALUES: Mapping[tuple[str, str], str] = {
    ("training.test_evaluation", "beside"): "end measures the published file, and pacemaker, with "
    "training.validation_fraction: 0, measures the test set during the fit",
}
"""By path of the key, and value."""


def replacement_of_option(verb: str | None, option: str) -> str | None:
    """Return what replaces an option of a verb; None for one that never existed."""
    return OPTIONS.get(f"{verb} {option}")


def replacement_of_key(path: str) -> str | None:
    """Return what replaces a key; None for one that never existed."""
    return KEYS.get(path)


def refuse_removed(path: str, value: object) -> None:
    """Raise a ValueError that says what replaces a value of a key, if it was removed."""
    instead = VALUES.get((path, value)) if isinstance(value, str) else None
    if instead is not None:
        raise ValueError(f"{value} was removed: {instead}")
