"""What all stages of an attempt work with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from mlip_job.config import JobConfig
    from mlip_job.naming import WorkFiles
    from mlip_job.pipeline.clock import StageClock
    from mlip_job.pipeline.stages import Observer
    from mlip_job.registry import Registry


@dataclass(frozen=True)
class AttemptContext:
    """What all stages of an attempt work with.

    Attributes
    ----------
    config, generation
        What is trained.
    registry
        Where it is published.
    files
        The work directory of the attempt.
    observer
        Who is told.
    clock
        Takes the time of the stages.
    raise_if_lost
        Raises where another attempt has taken over.
    """

    config: JobConfig
    generation: int
    registry: Registry
    files: WorkFiles
    observer: Observer
    clock: StageClock
    raise_if_lost: Callable[[], None]
