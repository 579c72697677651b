"""Generations of a family in a store: claim, checkpoint, publish, list, pull, verify.

docs/store.md is the specification.
"""

from mlip_job.registry.catalog import GenerationSummary
from mlip_job.registry.checkpoints import Checkpoint, Checkpoints, TrainingState
from mlip_job.registry.claim import Claim, HeldClaim
from mlip_job.registry.manifest import (
    Artefact,
    AttemptPart,
    DatasetReference,
    ErrorFigures,
    Headline,
    Manifest,
    Parent,
)
from mlip_job.registry.registry import Registry

__all__ = [
    "Artefact",
    "AttemptPart",
    "Checkpoint",
    "Checkpoints",
    "Claim",
    "DatasetReference",
    "ErrorFigures",
    "GenerationSummary",
    "Headline",
    "HeldClaim",
    "Manifest",
    "Parent",
    "Registry",
    "TrainingState",
]
