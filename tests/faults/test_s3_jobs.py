"""Whole jobs on a failing S3 server: they publish, or end with one clear line."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from mlip_job.config import JobConfig, StorageConfig
from mlip_job.registry import Registry
from mlip_job.registry.maintenance import collect_garbage
from mlip_job.store.open import open_store
from tests.faults import jobs
from tests.faults.jobs import Job, MakeConfig
from tests.faults.replay import REPLAYED, REPLAYED_ITERATIONS, both, replayed_pacemaker, retry_soon
from tests.faults.tally import Tally
from tests.servers.s3_faults import PASSING, FaultProxy

RUN = {"checkpoint_interval": 0.1, "heartbeat_interval": 0.3, "retry_timeout": 60}


@pytest.fixture(autouse=True)
def counted(s3_proxy: FaultProxy, tally: Tally) -> Iterator[None]:
    yield
    tally.s3_faults += s3_proxy.injected.total()


@pytest.fixture
def config(make_config: MakeConfig, s3_behind_proxy: StorageConfig) -> JobConfig:
    return make_config(REPLAYED, storage=s3_behind_proxy.model_dump(), run=RUN)


@pytest.fixture
def seen(config: JobConfig, s3_bucket: StorageConfig) -> JobConfig:
    return config.model_copy(update={"storage": s3_bucket})


@pytest.fixture
def run(config: JobConfig, tmp_path: Path) -> Callable[..., Job]:
    fault = both(replayed_pacemaker(tmp_path), retry_soon)
    return lambda *arguments: jobs.run_job(config, tmp_path, *arguments, fault=fault)


@pytest.mark.pacemaker
def test_a_real_fit_through_a_bad_network(
    make_config: MakeConfig,
    s3_behind_proxy: StorageConfig,
    s3_bucket: StorageConfig,
    s3_proxy: FaultProxy,
    tmp_path: Path,
    tally: Tally,
) -> None:
    """A quarter of all requests fail: the generation is published once and complete."""
    s3_proxy.rate = 0.25
    config = make_config(storage=s3_behind_proxy.model_dump(), run=RUN)
    job = jobs.run_job(config, tmp_path, fault=retry_soon)
    assert job.code == 0, job.text()
    assert s3_proxy.injected.total() > 0.1 * s3_proxy.requests.total()
    s3_proxy.cancel()
    manifest = jobs.require_complete(config.model_copy(update={"storage": s3_bucket}))
    tally.count_end([job.text()], manifest.headline.iterations)
    jobs.require_repeatable(config, tmp_path)


def test_replayed_fits_through_a_worse_network(
    seen: JobConfig, run: Callable[..., Job], s3_proxy: FaultProxy, tally: Tally
) -> None:
    texts: list[str] = []
    s3_proxy.hang_s = 1.2
    # The order of requests varies: repeat until each kind of fault was drawn.
    while not texts or s3_proxy.injected.keys() != PASSING.keys():
        assert len(texts) < 12, s3_proxy.injected
        s3_proxy.rate = 0.3
        job = run()
        s3_proxy.cancel()
        assert job.code == 0, job.text()
        texts.append(job.text())
        manifest = jobs.require_complete(seen)
        assert manifest.headline.iterations == REPLAYED_ITERATIONS
        tally.count_end([job.text()], REPLAYED_ITERATIONS)
        store = open_store(seen.storage)
        for info in list(store.list("")):
            store.delete(info.key)
    assert "trying again in" in "".join(texts)


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("AccessDenied", "access denied to GetObject"),
        ("NoSuchBucket", "does not exist"),
        ("InvalidAccessKeyId", "the credentials are not valid (InvalidAccessKeyId)"),
        ("SignatureDoesNotMatch", "the credentials are not valid"),
        ("RequestTimeTooSkewed", "this machine's clock differs too much from the store's"),
    ],
)
def test_a_permanent_error_ends_a_job_at_once(
    run: Callable[..., Job], s3_proxy: FaultProxy, tmp_path: Path, code: str, words: str
) -> None:
    s3_proxy.order(code, times=float("inf"))
    job = run()
    jobs.require_one_error(job, words)
    assert "trying again" not in job.text()
    assert s3_proxy.requests.total() == 1
    assert not (tmp_path / "work").exists()


def test_credentials_that_expire_in_the_end_publish_nothing(
    seen: JobConfig, run: Callable[..., Job], s3_proxy: FaultProxy, tally: Tally
) -> None:
    """Stored checkpoints are safe: with new credentials the same command resumes."""
    s3_proxy.order("ExpiredToken", "potential.yace", times=float("inf"))
    job = run()
    jobs.require_one_error(job, "the credentials are not valid (ExpiredToken)")
    jobs.require_whole_or_nothing(seen)
    assert jobs.registry_of(seen).numbers() == []
    s3_proxy.cancel()
    again = run()
    assert again.code == 0, again.text()
    assert "resuming from the end of the fit" in again.text()
    manifest = jobs.require_complete(seen)
    tally.count_end([job.text(), again.text()], manifest.headline.iterations)


def test_a_store_that_stays_unavailable_ends_the_job_and_a_later_run_resumes(
    make_config: MakeConfig,
    s3_behind_proxy: StorageConfig,
    seen: JobConfig,
    s3_proxy: FaultProxy,
    tmp_path: Path,
) -> None:
    """After limited retries, each logged; iterations in checkpoints are not lost."""
    fault = both(replayed_pacemaker(tmp_path), retry_soon)
    config = make_config(
        REPLAYED, storage=s3_behind_proxy.model_dump(), run=RUN | {"retry_timeout": 1}
    )
    s3_proxy.order("SlowDown", "output_potential|checkpoints/.*state", times=float("inf"), after=1)
    job = jobs.run_job(config, tmp_path, fault=fault)
    jobs.require_one_error(job, "SlowDown from PutObject")
    tries = job.text().count("trying again in")
    assert 2 <= tries < 200
    assert s3_proxy.injected["SlowDown"] <= 3 * (tries + 50)
    assert jobs.registry_of(seen).numbers() == []
    s3_proxy.cancel()
    again = jobs.run_job(config, tmp_path, fault=fault)
    assert again.code == 0, again.text()
    assert "resuming from " in again.text()
    jobs.require_complete(seen)


@pytest.mark.parametrize("days", [-365, 365])
def test_the_clock_of_the_store_may_be_wrong(
    seen: JobConfig,
    config: JobConfig,
    run: Callable[..., Job],
    s3_proxy: FaultProxy,
    tmp_path: Path,
    days: int,
) -> None:
    """Ages are differences of the store's times: no claim becomes stale and no file old."""
    s3_proxy.clock_offset = timedelta(days=days)
    registry = Registry(open_store(config.storage), config.family)
    held = registry.claim(1, "first", stale_after_s=600)
    assert run().code == 73
    registry.store.put(registry.keys.attempt(2, "killed", "train.log"), b"log")
    assert collect_garbage(registry, timedelta(days=7)) == []
    held.release()
    job = run()
    assert job.code == 0, job.text()
    jobs.require_complete(seen)


def test_the_response_to_the_manifest_is_lost(
    seen: JobConfig, run: Callable[..., Job], s3_proxy: FaultProxy, tally: Tally
) -> None:
    """A job that has published does not report a conflict with itself."""
    s3_proxy.order("lost answer", "manifest", method="PUT", times=4)
    job = run()
    assert job.code == 0, job.text()
    assert s3_proxy.injected["lost answer"] == 4
    manifest = jobs.require_complete(seen)
    tally.count_end([job.text()], manifest.headline.iterations)


def test_the_store_becomes_unavailable_while_the_claim_is_taken(
    run: Callable[..., Job], s3_proxy: FaultProxy, seen: JobConfig
) -> None:
    """An attempt that did not get the response does not lock the generation."""
    s3_proxy.order("AccessDenied", "claim.json", method="GET", times=float("inf"), after=1)
    jobs.require_one_error(run(), "access denied to GetObject")
    s3_proxy.cancel()
    again: Any = run()
    assert again.code == 0, again.text()
    assert "taking over from attempt" in again.text()
    jobs.require_complete(seen)
