"""Generations of a family in a store: claim, checkpoint, publish, promote, list, pull, verify.

docs/store.md is the specification.
"""

from mlip_job.registry.checkpoints import Checkpoint, Checkpoints, TrainingState
from mlip_job.registry.claim import Claim, HeldClaim
from mlip_job.registry.latest import LatestPointer
from mlip_job.registry.manifest import (
    Artefact,
    AttemptPart,
    Committee,
    CommitteeMember,
    DatasetReference,
    GenerationSummary,
    Headline,
    Manifest,
    Parent,
    PredecessorChange,
    Spread,
    Timings,
)
from mlip_job.registry.members import MemberRegistry, members_of
from mlip_job.registry.registry import KnownQuery, Registry

__all__ = [
    "Artefact",
    "AttemptPart",
    "Checkpoint",
    "Checkpoints",
    "Claim",
    "Committee",
    "CommitteeMember",
    "DatasetReference",
    "GenerationSummary",
    "Headline",
    "HeldClaim",
    "KnownQuery",
    "LatestPointer",
    "Manifest",
    "MemberRegistry",
    "Parent",
    "PredecessorChange",
    "Registry",
    "Spread",
    "Timings",
    "TrainingState",
    "members_of",
]
