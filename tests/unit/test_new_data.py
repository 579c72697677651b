"""A generation without new data is noted before its fit."""

from __future__ import annotations

import pytest

from mlip_job.generation.data import without_new_data
from tests.manifests import make_manifest
from tests.reports import make_facts, make_report


@pytest.mark.parametrize(
    ("inherited", "more", "said"),
    [((1060, 96), 0, True), ((1060, 96), 5, False), ((0, 0), 0, False)],
)
def test_the_same_structures_are_no_new_data(
    inherited: tuple[int, int], more: int, *, said: bool
) -> None:
    """If all are inherited, none was left out, and none is new."""
    facts = make_facts(make_report(2))
    record, dataset = facts.dataset, facts.manifest.dataset
    split = record.split.model_copy(
        update={"inherited_train": inherited[0], "inherited_test": inherited[1]}
    )
    counts = record.counts.model_copy(update={"train": record.counts.train + more})
    record = record.model_copy(update={"split": split, "counts": counts})
    before = make_manifest(1).model_copy(update={"dataset": dataset})
    warning = without_new_data(record, before)
    assert (warning is not None) == said
    assert without_new_data(record, None) is None
    if warning is not None:
        assert "no new data since gen_01" in warning
        assert "1060 train and 96 test" in warning
