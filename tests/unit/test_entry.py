"""Entries in columns."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from mlip_job.dataset.rows import EntryCollector
from tests.datasets import Entry, entries_of


def fingerprint(number: int) -> str:
    return hashlib.sha256(str(number).encode()).hexdigest()


@pytest.mark.parametrize("count", [0, 1, 50])
def test_structures_are_numbered_in_the_order_of_their_fingerprints(count: int) -> None:
    random = np.random.default_rng(0)
    prints = [fingerprint(number) for number in random.integers(0, 12, count)]
    entries = entries_of([Entry(row_id=index, fingerprint=p) for index, p in enumerate(prints)])
    _, expected = np.unique(np.array(prints, dtype=str), return_inverse=True)
    assert entries.structures.tolist() == expected.tolist()


def test_entries_of_several_pages() -> None:
    collector = EntryCollector()
    for row_id, group in ((3, "a"), (8, None)):
        collector.add(
            row_ids=[row_id],
            fingerprints=bytes.fromhex(fingerprint(row_id)),
            energies=[-1.5 * row_id],
            groups=[group],
            compositions=[((29, row_id),)],
            config_types=[None],
            sides=["test" if group else None],
        )
    entries = collector.entries()
    assert len(entries) == 2
    assert entries.row_ids.tolist() == [3, 8]
    assert entries.energies.tolist() == [-4.5, -12.0]
    assert entries.group_codes.tolist() == [0, -1]
    assert entries.config_type_codes.tolist() == [-1, -1]
    assert entries.side_codes.tolist() == [0, -1]
    assert entries.atoms.tolist() == [3, 8]
    assert [bytes(p).hex() for p in entries.fingerprints] == [fingerprint(3), fingerprint(8)]
