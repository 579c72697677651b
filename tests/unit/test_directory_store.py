"""A store in a directory that others write to at the same time."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import pytest

from mlip_job.errors import StoreError
from mlip_job.store.directory import DirectoryStore

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


def test_what_is_removed_meanwhile_is_not_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a checkpoint is that a run replaces while somebody asks for the status."""
    store = DirectoryStore(tmp_path)
    store.put("cu/old", b"1")
    store.put("cu/new", b"2")
    walk = os.walk

    def slow_walk(*arguments: Any, **options: Any) -> Iterator[tuple[str, list[str], list[str]]]:
        for found in walk(*arguments, **options):
            (tmp_path / "cu/old").unlink(missing_ok=True)
            yield found

    monkeypatch.setattr(os, "walk", slow_walk)
    assert [info.key for info in store.list("cu/")] == ["cu/new"]


@pytest.mark.parametrize("prefix", ["../", "cu/../../", "/etc/", "cu/./"])
def test_nothing_outside_is_listed(tmp_path: Path, prefix: str) -> None:
    """A prefix may hold a name from a record."""
    (tmp_path / "store").mkdir()
    store = DirectoryStore(tmp_path / "store")
    for listing in (store.list, store.list_prefixes):
        with pytest.raises(StoreError, match="is no prefix of keys"):
            list(listing(prefix))
