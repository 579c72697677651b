"""Transfers of large objects to and from S3: concurrent parts, hashed during transfer."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mlip_job.config import StorageConfig
from mlip_job.errors import StoreError
from mlip_job.store.s3 import S3Store

MIB = 1 << 20
SIZE = 31 * MIB + 17  # four parts of at most 8 MiB


class _Overlap:
    """Holds requests of one kind until another is running; counts the maximum."""

    def __init__(self, on_s3_event: Callable[..., None], operation: str) -> None:
        self.most = 0
        self._now = 0
        self._changed = threading.Condition()
        on_s3_event(f"before-send.s3.{operation}", self._begin)
        on_s3_event(f"needs-retry.s3.{operation}", self._end)

    def _begin(self, request: Any, **_: Any) -> None:
        if b"partNumber" in request.url.encode() or b"Range" in str(request.headers).encode():
            with self._changed:
                self._now += 1
                self.most = max(self.most, self._now)
                self._changed.notify_all()
                self._changed.wait_for(lambda: self.most > 1, timeout=30)

    def _end(self, **_: Any) -> None:
        with self._changed:
            self._now = max(0, self._now - 1)


@pytest.fixture
def big(tmp_path: Path) -> Path:
    path = tmp_path / "big"
    path.write_bytes(os.urandom(SIZE))
    return path


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_parts_move_at_the_same_time(
    s3_bucket: StorageConfig, on_s3_event: Callable[..., None], tmp_path: Path, big: Path
) -> None:
    """In both directions, a few concurrently; the content is unchanged, and progress is shown."""
    progress: list[tuple[int, int]] = []
    store = S3Store(s3_bucket, lambda _key, done, total: progress.append((done, total)))
    sending = _Overlap(on_s3_event, "UploadPart")
    assert store.upload(big, "big") == sha256(big)
    assert 2 <= sending.most <= 4
    assert len(progress) > 7
    assert progress == sorted(progress)
    assert progress[-1] == (SIZE, SIZE)
    progress.clear()
    fetching = _Overlap(on_s3_event, "GetObject")
    assert store.download("big", tmp_path / "copy") == sha256(big)
    assert 2 <= fetching.most <= 4
    assert sha256(tmp_path / "copy") == sha256(big)
    assert len(progress) > 7
    assert progress == sorted(progress)
    assert progress[-1] == (SIZE, SIZE)


def test_parts_of_a_changing_object_are_not_mixed(
    s3_bucket: StorageConfig, on_s3_event: Callable[..., None], tmp_path: Path, big: Path
) -> None:
    """Parts of two versions are never combined; the call may be retried."""
    other = S3Store(s3_bucket)

    def replace(params: dict[str, Any], **_: Any) -> None:
        if "bytes=8388608-" in params["headers"].get("Range", ""):
            other.put("big", b"other" * MIB)

    other.upload(big, "big")
    store = S3Store(s3_bucket)
    on_s3_event("before-call.s3.GetObject", replace)
    with pytest.raises(StoreError, match="changed while it was read") as caught:
        store.download("big", tmp_path / "copy")
    assert caught.value.transient
    assert [path.name for path in tmp_path.iterdir()] == ["big"]


def test_a_failing_part_ends_the_upload(
    s3_bucket: StorageConfig, on_s3_event: Callable[..., None], big: Path
) -> None:
    """The other parts are not sent, and nothing that would be billed remains."""
    store = S3Store(s3_bucket)
    sent: list[int] = []

    def fail(params: dict[str, Any], **_: Any) -> None:
        number = int(params["query_string"]["partNumber"])
        sent.append(number)
        if number == 2:
            raise StoreError("the network is gone")

    on_s3_event("before-call.s3.UploadPart", fail)
    with pytest.raises(StoreError, match="the network is gone"):
        store.upload(big, "big")
    assert len(sent) < 7
    assert store.head("big") is None
    assert list(store.leftovers(0)) == []
