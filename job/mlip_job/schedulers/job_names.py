"""Names of jobs in a queue: what a job is for can be read from its name."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from mlip_job.errors import ConflictError
from mlip_job.naming import FAMILY_PATTERN, generation_name, parse_generation_name

if TYPE_CHECKING:
    from mlip_job.config import JobConfig
    from mlip_job.schedulers.base import JobHandle, JobRequest, Plan

_NAME = re.compile(rf"mlip-({FAMILY_PATTERN})-(gen_\d+)-([0-9a-f]{{8}})-([0-9a-f]{{8}})")


@dataclass(frozen=True)
class JobName:
    """The name of a job, ``mlip-cu-ni-gen_04-1a2b3c4d-5e6f7a8b``.

    Attributes
    ----------
    family, generation
        What it trains.
    store, submission
        Hashes that tell families of one name in several stores apart, and submissions.
    """

    family: str
    generation: int
    store: str
    submission: str

    def __str__(self) -> str:
        """Return it as the scheduler knows it."""
        name = generation_name(self.generation)
        return f"mlip-{self.family}-{name}-{self.store}-{self.submission}"

    @classmethod
    def of(cls, request: JobRequest) -> Self:
        """Name the job of a request; a request of another submission has another name."""
        content = {
            "config": request.config.model_dump(mode="json"),
            "generation": request.generation,
            "directory": str(request.directory),
            "run_options": request.run_options,
            "ensemble": request.ensemble,
            "after": request.after,
        }
        submission = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
        config = request.config
        store = _hash_of_store(config)
        return cls(config.family, request.generation, store, submission[:8])

    @classmethod
    def parse(cls, text: str) -> Self | None:
        """Read a name; None for others' jobs."""
        match = _NAME.fullmatch(text)
        generation = parse_generation_name(match.group(2)) if match is not None else None
        if match is None or generation is None:
            return None
        return cls(match.group(1), generation, match.group(3), match.group(4))

    def is_of(self, config: JobConfig, family: str, generation: int) -> bool:
        """Tell whether the job trains a generation for the configured store."""
        store = _hash_of_store(config)
        return (self.family, self.generation, self.store) == (family, generation, store)


def require_same(live: JobHandle, plan: Plan) -> None:
    """Accept a job of a generation that waits or runs, where a plan is of the same submission.

    Raises
    ------
    ConflictError
        If it is of another one.
    """
    if live.name == plan.name:
        return
    generation = plan.request.generation
    raise ConflictError(
        f"job {live.id} for {generation_name(generation)} waits or runs, of another "
        "configuration or with other options",
        hint=f"mlip-job cancel -g {generation} ends it",
    )


def _hash_of_store(config: JobConfig) -> str:
    place = f"{config.storage.url}\n{config.storage.endpoint_url}"
    return hashlib.sha256(place.encode()).hexdigest()[:8]
