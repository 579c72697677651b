"""The dataset that a generation is to be trained on: decided before its fit, by another job.

::

    generations/gen_04/dataset.json

Without this note the first checkpoint decides. With it, runs train on that dataset whatever was
written to the database since; they need not reach the database at all.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from mlip_job.errors import IntegrityError, ObjectNotFoundError
from mlip_job.registry.manifest import AttemptPart, DatasetReference
from mlip_job.store.keys import unreadable

if TYPE_CHECKING:
    from mlip_job.registry.registry import Registry

DECISION = "dataset.json"


class Decision(BaseModel):
    """Content of ``dataset.json`` of a generation.

    Attributes
    ----------
    settings
        Hash of the settings that the dataset follows from, see `mlip_job.dataset.query.query_key`;
        its lineage is left out, which others may lengthen meanwhile.
    dataset
        What to train on.
    job
        The scheduler's job that decided it, see `mlip_job.environment.job_of_this_start`.
    attempt
        The one that made the dataset, with where its time went; None where a version decided that
        kept no times.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: Literal[1] = 1
    settings: str
    dataset: DatasetReference
    job: str | None = None
    attempt: AttemptPart | None = None


def read_decision(registry: Registry, generation: int) -> Decision | None:
    """Return what was decided for a generation; None where nothing was.

    Raises
    ------
    IntegrityError
        If it can't be read.
    """
    key = registry.keys.generation(generation, DECISION)
    try:
        return Decision.model_validate_json(registry.store.get(key))
    except ObjectNotFoundError:
        return None
    except ValidationError as error:
        raise unreadable(f"{key} can't be read", error, hint="--fresh decides anew") from None


def decide(registry: Registry, generation: int, decision: Decision) -> None:
    """Note the dataset of a generation, whose claim has to be held."""
    data = (decision.model_dump_json(indent=2) + "\n").encode()
    registry.store.put(registry.keys.generation(generation, DECISION), data)


def forget_decision(registry: Registry, generation: int, *, but_of: str | None) -> None:
    """Leave the dataset of a generation to its next run, unless a scheduler's job decided it."""
    with suppress(IntegrityError):
        decision = read_decision(registry, generation)
        if decision is not None and decision.job is not None and decision.job == but_of:
            return
    registry.store.delete(registry.keys.generation(generation, DECISION))
