"""Single calls of an S3 store with a failing network: retried, recognised or rejected."""

from __future__ import annotations

import gc
import hashlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from mlip_job import retry
from mlip_job.config import StorageConfig
from mlip_job.errors import (
    ConflictError,
    IntegrityError,
    ObjectChangedError,
    ObjectExistsError,
    StoreError,
)
from mlip_job.registry import Artefact, Manifest, Registry
from mlip_job.store import s3
from mlip_job.store.base import ObjectStore
from mlip_job.store.open import RetryingStore, open_store
from tests.faults.tally import Tally
from tests.manifests import make_manifest, put_dataset
from tests.servers.s3_faults import ERRORS, PASSING, FaultProxy

LARGE = 9 << 20  # B; transferred in two parts


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retry, "FIRST_WAIT_SECONDS", 0.02)
    backoff = "botocore.retries.standard.ExponentialBackoff.delay_amount"
    monkeypatch.setattr(backoff, lambda *_: 0.02)
    monkeypatch.setattr(s3, "_READ_TIMEOUT_SECONDS", 0.5)


@pytest.fixture(autouse=True)
def counted(s3_proxy: FaultProxy, tally: Tally) -> Iterator[None]:
    yield
    tally.s3_faults += s3_proxy.injected.total()


@pytest.fixture
def direct(s3_bucket: StorageConfig) -> ObjectStore:
    return open_store(s3_bucket)


@pytest.fixture
def impatient(s3_behind_proxy: StorageConfig) -> ObjectStore:
    """Return the store behind the proxy, with the settings of interactive commands."""
    return open_store(s3_behind_proxy)


@pytest.fixture
def patient(s3_behind_proxy: StorageConfig) -> ObjectStore:
    return open_store(s3_behind_proxy, patience=30)


@pytest.mark.parametrize("fault", PASSING)
def test_no_transient_fault_reaches_a_run(
    patient: ObjectStore, s3_proxy: FaultProxy, tmp_path: Path, fault: str
) -> None:
    """Each call fails as often as botocore retries, and once more; conditions still hold."""

    def fail() -> None:
        s3_proxy.cancel()
        if fault in ("truncated", "corrupted"):
            # A bit flip in a listing is undetectable: TLS and TCP have to prevent it.
            s3_proxy.order(fault, r"^(?!.*list-type)", method="GET", times=4)
        elif "Condition" in fault or "Precondition" in fault or fault == "BadDigest":
            s3_proxy.order(fault, method="PUT", times=4)
        else:
            s3_proxy.order(fault, times=1 if fault == "hang" else 4)

    s3_proxy.hang_s = 1.0
    fail()
    patient.put_if_absent("a/1", b"first, by attempt a")
    with pytest.raises(ObjectExistsError):
        patient.put_if_absent("a/1", b"second")
    fail()
    data, version = patient.get_versioned("a/1")
    assert data == b"first, by attempt a"
    fail()
    patient.put_if_match("a/1", b"first, beat 2", version)
    with pytest.raises(ObjectChangedError):
        patient.put_if_match("a/1", b"third", version)
    fail()
    assert patient.get("a/1") == b"first, beat 2"
    fail()
    assert [info.key for info in patient.list("a/")] == ["a/1"]
    fail()
    info = patient.head("a/1")
    assert info is not None
    fail()
    patient.delete("a/1")
    assert patient.head("a/1") is None
    (tmp_path / "up").write_bytes(b"content")
    s3_proxy.cancel()
    if "Precondition" not in fault:  # a response to conditional writes only
        fail()
    sha256 = patient.upload(tmp_path / "up", "a/2")
    fail()
    assert patient.download("a/2", tmp_path / "down") == sha256
    assert (tmp_path / "down").read_bytes() == b"content"
    assert s3_proxy.injected[fault] >= (4 if fault in ("truncated", "corrupted") else 3)


@pytest.mark.parametrize("fault", ["lost answer", "late InternalError", "late PreconditionFailed"])
def test_a_lost_response_to_a_create_is_a_success(
    impatient: ObjectStore, direct: ObjectStore, s3_proxy: FaultProxy, fault: str
) -> None:
    s3_proxy.order(fault, method="PUT")
    impatient.put_if_absent("m", b"by attempt a")
    assert direct.get("m") == b"by attempt a"
    version = impatient.get_versioned("m")[1]
    s3_proxy.order(fault, method="PUT")
    impatient.put_if_match("m", b"by attempt a, beat 1", version)
    assert direct.get("m") == b"by attempt a, beat 1"
    assert s3_proxy.injected[fault] == 2


def test_a_conflict_is_no_success_after_a_lost_response(
    impatient: ObjectStore, direct: ObjectStore, s3_proxy: FaultProxy
) -> None:
    direct.put("m", b"by attempt b")
    s3_proxy.order("lost answer", method="PUT", times=2)
    with pytest.raises(ObjectExistsError):
        impatient.put_if_absent("m", b"by attempt a")
    s3_proxy.order("lost answer", method="PUT", times=2)
    with pytest.raises(ObjectChangedError):
        impatient.put_if_match("m", b"by attempt a, beat 1", '"0123"')
    assert direct.get("m") == b"by attempt b"


@pytest.mark.parametrize("fault", ["lost answer", "dropped", "SlowDown"])
@pytest.mark.parametrize("request_", ["uploads", "partNumber=2", "uploadId=[^&]*$"])
def test_a_multipart_upload_is_retried(
    patient: ObjectStore,
    direct: ObjectStore,
    s3_proxy: FaultProxy,
    tmp_path: Path,
    large: Path,
    fault: str,
    request_: str,
) -> None:
    """When it begins, in the middle, and when it is completed; no failed attempt leaves parts."""
    s3_proxy.order(fault, request_, times=4)
    sha256 = patient.upload(large, "big")
    assert s3_proxy.injected[fault] == 4
    assert sha256 == hashlib.sha256(large.read_bytes()).hexdigest()
    assert direct.download("big", tmp_path / "down") == sha256
    if fault != "lost answer":  # nobody can abort an upload whose id was lost; gc does
        assert list(direct.leftovers(0)) == []


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("large") / "file"
    path.write_bytes(os.urandom(LARGE))
    return path


# s3transfer leaves the connection of a truncated part to the garbage collector.
@pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")
@pytest.mark.parametrize("size", [1000, LARGE], ids=["small", "parts"])
def test_a_truncated_download_leaves_nothing(
    impatient: ObjectStore, direct: ObjectStore, s3_proxy: FaultProxy, tmp_path: Path, size: int
) -> None:
    """It is a transient error, and no file appears, not even a partial one."""
    direct.put("k", b"x" * size)
    s3_proxy.order("truncated", method="GET", times=float("inf"))
    for call in (lambda: impatient.download("k", tmp_path / "down"), lambda: impatient.get("k")):
        with pytest.raises(StoreError) as caught:
            call()
        assert caught.value.transient
    assert list(tmp_path.iterdir()) == []
    del caught
    gc.collect()


def test_a_checksum_detects_a_corrupted_download(
    impatient: ObjectStore, direct: ObjectStore, s3_proxy: FaultProxy, tmp_path: Path
) -> None:
    direct.put("k", b"x" * 1000)
    s3_proxy.order("corrupted", method="GET", times=2)
    for call in (lambda: impatient.download("k", tmp_path / "down"), lambda: impatient.get("k")):
        with pytest.raises(StoreError, match="damaged in transit") as caught:
            call()
        assert caught.value.transient
    assert list(tmp_path.iterdir()) == []


def test_the_hash_detects_corruption_without_checksums(
    s3_behind_proxy: StorageConfig, s3_proxy: FaultProxy, tmp_path: Path
) -> None:
    """Data damaged once in transit are fetched again; permanent damage is rejected."""
    s3_proxy.checksums = False
    registry = Registry(open_store(s3_behind_proxy), "cu-ni")
    manifest = _publish(registry, tmp_path / "files", "a")
    s3_proxy.order("corrupted", r"potential\.yace", method="GET")
    registry.fetch(manifest, "potential.yace", tmp_path / "fetched")
    assert (tmp_path / "fetched").read_bytes() == b"potential.yace of a"
    s3_proxy.order("corrupted", r"dataset\.json", method="GET")
    assert registry.dataset_record(manifest.dataset).id == manifest.dataset.id
    assert s3_proxy.injected["corrupted"] == 2

    s3_proxy.order("corrupted", method="GET", times=float("inf"))
    with pytest.raises(IntegrityError, match="has the sha256"):
        registry.fetch(manifest, "potential.yace", tmp_path / "never")
    assert not (tmp_path / "never").exists()
    with pytest.raises(IntegrityError, match="has the sha256"):
        registry.dataset_record(manifest.dataset)


def _publish(registry: Registry, directory: Path, attempt: str) -> Manifest:
    dataset = put_dataset(registry, directory / "dataset", "one")
    files = {}
    for name in ("potential.yace", "report.json"):
        files[name] = directory / name
        files[name].write_text(f"{name} of {attempt}")

    def describe(artefacts: dict[str, Artefact]) -> Manifest:
        return make_manifest(1, attempt=attempt, artefacts=artefacts, dataset=dataset)

    return registry.publish(1, attempt, files, describe)


@pytest.mark.parametrize("fault", ["lost answer", "late InternalError", "late PreconditionFailed"])
def test_the_attempts_own_manifest_is_no_conflict(
    s3_behind_proxy: StorageConfig, s3_proxy: FaultProxy, tmp_path: Path, fault: str
) -> None:
    """The response to the decisive write is lost, in botocore's retries and in ours."""
    registry = Registry(open_store(s3_behind_proxy, patience=30), "cu-ni")
    s3_proxy.order(fault, "manifest", method="PUT", times=1 if "Precondition" in fault else 4)
    manifest = _publish(registry, tmp_path, "a")
    assert s3_proxy.injected[fault] >= 1
    assert registry.get(1) == manifest
    assert registry.verify(manifest) == []
    with pytest.raises(ConflictError, match="was published by attempt a meanwhile"):
        _publish(registry, tmp_path, "b")


LASTING = ["AccessDenied", "ExpiredToken", "InvalidAccessKeyId", "NoSuchBucket"]
LASTING += ["RequestTimeTooSkewed", "SignatureDoesNotMatch", "InvalidRequest"]


@pytest.mark.parametrize("code", LASTING)
def test_permanent_errors_are_not_retried(
    patient: ObjectStore, s3_proxy: FaultProxy, tmp_path: Path, code: str
) -> None:
    (tmp_path / "up").write_bytes(b"x")
    calls = [
        lambda: patient.get("a"),
        lambda: patient.put("a", b"x"),
        lambda: patient.put_if_absent("a", b"x"),
        lambda: list(patient.list("a")),
        lambda: patient.upload(tmp_path / "up", "a"),
        lambda: patient.download("a", tmp_path / "down"),
    ]
    for number, call in enumerate(calls, start=1):
        s3_proxy.order(code)
        with pytest.raises(StoreError) as caught:
            call()
        assert not caught.value.transient
        assert caught.value.exit_code == 69
        assert caught.value.hint or code == "InvalidRequest"
        assert s3_proxy.requests.total() == number, ERRORS[code]


def test_retries_are_limited_and_logged(
    s3_behind_proxy: StorageConfig, s3_proxy: FaultProxy, caplog: pytest.LogCaptureFixture
) -> None:
    """A store that stays unavailable ends the retries; each wait is logged with its reason."""
    s3_proxy.order("SlowDown", times=float("inf"))
    started = time.monotonic()
    store = open_store(s3_behind_proxy, patience=1)
    assert isinstance(store, RetryingStore)
    with pytest.raises(StoreError, match=r"can't read a in s3://.*SlowDown from GetObject"):
        store.get("a")
    lines = [record.getMessage() for record in caplog.records]
    assert lines
    assert all("SlowDown from GetObject; trying again in " in line for line in lines)
    assert s3_proxy.requests.total() == 3 * (len(lines) + 1)
    assert time.monotonic() - started < 60


def test_retries_of_conflicts_are_limited(impatient: ObjectStore, s3_proxy: FaultProxy) -> None:
    s3_proxy.order("ConditionalRequestConflict", method="PUT", times=float("inf"))
    with pytest.raises(StoreError, match=r"can't write m to s3://.* others keep writing") as caught:
        impatient.put_if_absent("m", b"x")
    assert caught.value.transient
