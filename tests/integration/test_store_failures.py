"""An unusable store is a one-line error with the remedy and without secrets."""

from __future__ import annotations

import errno
import fcntl
import os
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from mlip_job.config import StorageConfig
from mlip_job.errors import ConfigError, ObjectChangedError, ObjectNotFoundError, StoreError
from mlip_job.store import directory
from mlip_job.store.directory import DirectoryStore
from mlip_job.store.open import open_store
from tests.servers.s3 import S3Server
from tests.servers.s3_faults import FaultProxy


class _Unconditional(BaseHTTPRequestHandler):
    """A store that accepts every write and ignores its conditions."""

    def do_PUT(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.server.written_headers.append(self.headers)  # type: ignore[attr-defined]
        self._answer(200)

    def do_DELETE(self) -> None:
        self._answer(204)

    def _answer(self, status: int) -> None:
        self.send_response(status)
        self.send_header("ETag", '"0"')
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *args: object) -> None:
        """Log nothing."""


@pytest.fixture
def unconditional_server() -> Iterator[ThreadingHTTPServer]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Unconditional)
    server.written_headers = []  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_store_that_ignores_conditions_is_rejected(
    unconditional_server: ThreadingHTTPServer, s3_credentials: None
) -> None:
    store = open_store(
        StorageConfig(url="s3://bucket", endpoint_url=_endpoint(unconditional_server))
    )
    with pytest.raises(StoreError, match="ignores the condition If-None-Match"):
        store.check()


class _NeverMatches(DirectoryStore):
    """Rejects every compare-and-swap."""

    def put_if_match(self, key: str, data: bytes, version: str) -> None:  # noqa: ARG002
        raise ObjectChangedError(f"{key} was changed")


class _CreatesOnMatch(DirectoryStore):
    """Accepts a compare-and-swap on an object that does not exist, as MinIO did until 2025-09."""

    def put_if_match(self, key: str, data: bytes, version: str) -> None:
        if self.head(key) is None:
            self.put(key, data)
        else:
            super().put_if_match(key, data, version)


@pytest.mark.parametrize(
    ("store", "message"),
    [
        (_NeverMatches, r"refuses If-Match .* with the current version"),
        (_CreatesOnMatch, "ignores the condition If-Match on an object that does not exist"),
    ],
)
def test_stores_with_wrong_conditions_are_rejected(
    tmp_path: Path, store: type[DirectoryStore], message: str
) -> None:
    """Before a run: heartbeats would fail in the middle of it. The probe is removed."""
    with pytest.raises(StoreError, match=message):
        store(tmp_path).check()
    assert list(DirectoryStore(tmp_path).list("")) == []


def test_weak_etags_are_rejected(s3_behind_proxy: StorageConfig, s3_proxy: FaultProxy) -> None:
    s3_proxy.weak_etags = True
    with pytest.raises(StoreError, match="with the current version") as caught:
        open_store(s3_behind_proxy).check()
    assert "switch off compression" in str(caught.value)


def test_another_region_is_named(s3_behind_proxy: StorageConfig, s3_proxy: FaultProxy) -> None:
    s3_proxy.order("AuthorizationHeaderMalformed")
    with pytest.raises(StoreError, match="signed for the region us-east-1") as caught:
        open_store(s3_behind_proxy).check()
    assert "set storage.region" in str(caught.value)


@pytest.mark.parametrize("name", ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_line_ends_in_credentials_are_named(
    s3_bucket: StorageConfig, monkeypatch: pytest.MonkeyPatch, name: str, end: str
) -> None:
    """Immediately, without the value: the request could not even be sent."""
    monkeypatch.setenv(name, f"hunter2{end}")
    with pytest.raises(ConfigError, match=f"{name} holds a line end") as caught:
        open_store(s3_bucket, patience=60).check()
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(("setting", "sent"), [("when_supported", True), ("when_required", False)])
def test_checksums_can_be_disabled(
    unconditional_server: ThreadingHTTPServer,
    s3_credentials: None,
    monkeypatch: pytest.MonkeyPatch,
    setting: str,
    sent: bool,
) -> None:
    """Some S3-compatible stores fail on the checksum headers that boto3 sends by default."""
    monkeypatch.setenv("AWS_REQUEST_CHECKSUM_CALCULATION", setting)
    config = StorageConfig(url="s3://bucket", endpoint_url=_endpoint(unconditional_server))
    open_store(config).put("key", b"data")
    (headers,) = unconditional_server.written_headers  # type: ignore[attr-defined]
    names = {name.lower() for name in headers}
    assert any(name.startswith("x-amz-checksum") for name in names) == sent


def _endpoint(server: ThreadingHTTPServer) -> str:
    return f"http://127.0.0.1:{server.server_port}"


def test_absent_bucket_is_named(s3_server: S3Server, s3_credentials: None) -> None:
    config = StorageConfig(url="s3://no-such-bucket/p", endpoint_url=s3_server.endpoint_url)
    for call in (
        open_store(config).check,
        lambda: open_store(config).get("a"),
        lambda: list(open_store(config).list("")),
    ):
        with pytest.raises(StoreError, match="the bucket no-such-bucket does not exist") as caught:
            call()
        assert not isinstance(caught.value, ObjectNotFoundError)


def test_missing_credentials(s3_bucket: StorageConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(StoreError, match="no credentials") as caught:
        open_store(s3_bucket).check()
    assert "AWS_ACCESS_KEY_ID" in str(caught.value)


def test_unreachable_endpoint_is_named(s3_credentials: None) -> None:
    config = StorageConfig(url="s3://bucket", endpoint_url="http://127.0.0.1:9")
    with pytest.raises(StoreError, match=r"http://127\.0\.0\.1:9 can't be reached"):
        open_store(config).check()


def test_no_secret_in_the_error(s3_server: S3Server, s3_credentials: None) -> None:
    config = StorageConfig(url="s3://no-such-bucket/p", endpoint_url=s3_server.endpoint_url)
    with pytest.raises(StoreError) as caught:
        open_store(config).check()
    assert "testing-secret" not in repr(caught.value) + str(caught.value)


@pytest.mark.parametrize("url", ["ftp://host/x", "s3://", "gs://bucket/x", "file://relative"])
def test_other_urls_are_usage_errors(url: str) -> None:
    with pytest.raises(ConfigError, match="is no store"):
        open_store(StorageConfig(url=url))


def test_a_file_in_place_of_the_directory(tmp_path: Path) -> None:
    (tmp_path / "store").write_text("a file")
    with pytest.raises(StoreError, match=r"can't write .* in .*store: "):
        DirectoryStore(tmp_path / "store").check()


def test_full_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = DirectoryStore(tmp_path)
    monkeypatch.setattr(os, "fsync", _full)
    with pytest.raises(StoreError, match="No space left on device") as caught:
        store.put_if_absent("a/b", b"data")
    assert "free space" in str(caught.value)
    monkeypatch.undo()
    assert store.head("a/b") is None
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == []


def _full(_descriptor: int) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_temporary_files_of_a_crash_are_ignored(tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path)
    store.put("a/b", b"x")
    (tmp_path / "a" / ".tmp-0123").write_bytes(b"half")
    assert [info.key for info in store.list("")] == ["a/b"]
    with pytest.raises(StoreError, match="is no key"):
        store.get("a/.tmp-0123")


def test_reading_makes_no_directory(tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path / "typo")
    assert list(store.list_prefixes("f/")) == []
    assert store.head("f/x") is None
    assert not Path(store.url).exists()


def test_a_process_that_keeps_the_lock_blocks_others_for_a_limited_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(directory, "_LOCK_SECONDS", 0.2)
    store = DirectoryStore(tmp_path)
    store.put("a", b"1")
    with (tmp_path / ".lock").open("ab") as frozen:
        fcntl.flock(frozen, fcntl.LOCK_EX)
        with pytest.raises(StoreError, match=r"\.lock has been held by another process") as caught:
            store.put("a", b"2")
        assert caught.value.transient
    store.put("a", b"3")
    assert store.get("a") == b"3"
    assert sorted(path.name for path in tmp_path.iterdir()) == [".lock", "a"]
