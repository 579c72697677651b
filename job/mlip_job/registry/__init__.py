"""Generations of a family in a store: publish, list, pull, verify. See docs/store.md."""

from mlip_job.registry.manifest import (
    Artefact,
    DatasetReference,
    ErrorFigures,
    Headline,
    Manifest,
    Parent,
)
from mlip_job.registry.registry import Registry

__all__ = [
    "Artefact",
    "DatasetReference",
    "ErrorFigures",
    "Headline",
    "Manifest",
    "Parent",
    "Registry",
]
