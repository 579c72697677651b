"""A run executes nothing that another process put into the store."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import pytest

from mlip_job.pipeline import export_generation
from tests.datasets import poison_frames
from tests.generations import Silent

if TYPE_CHECKING:
    from pathlib import Path

    from mlip_job.config import JobConfig
    from tests.generations import Family

pytestmark = pytest.mark.pacemaker


def _poison(family: Family, config: JobConfig, generation: int) -> tuple[Path, str]:
    """Export a dataset, and plant frames that leave a mark when they are read; every hash fits.

    Returns
    -------
    Path
        The mark.
    str
        Hash of the record.
    """
    registry = family.registry
    record = export_generation(config, generation, store=registry.store, observer=Silent())
    folder = family.store / registry.keys.dataset(record.id)
    before = hashlib.sha256((folder / "dataset.json").read_bytes()).hexdigest()
    poison_frames(folder, record, family.root / "was read")
    after = hashlib.sha256((folder / "dataset.json").read_bytes()).hexdigest()
    named_in = (family.store / registry.keys.queries).iterdir()
    for path in (family.store / registry.keys.manifest(1), *named_in):
        path.write_text(path.read_text().replace(before, after))
    return family.root / "was read", after


def test_frames_in_the_store_are_never_read(family: Family) -> None:
    """Linear start, fit, active set and evaluation of a generation on a dataset of the store."""
    training = family.config.training.model_copy(
        update={"start_from": "none", "linear_start": True}
    )
    config = family.config.model_copy(update={"training": training})
    mark, sha256 = _poison(family, config, 2)
    second = family.run(2, training=training)
    assert second.dataset.record_sha256 == sha256
    assert second.linear_start is not None
    assert "potential.asi" in second.artefacts
    assert not mark.exists()
