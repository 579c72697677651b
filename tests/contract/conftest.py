"""Run each contract test on both kinds of store."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import boto3
import pytest

from mlip_job.config import StorageConfig
from mlip_job.registry import Registry
from mlip_job.store.base import ObjectStore
from mlip_job.store.open import open_store


@pytest.fixture(params=["directory", "s3"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> StorageConfig:
    if request.param == "directory":
        return StorageConfig(url=str(tmp_path / "store"))
    config: StorageConfig = request.getfixturevalue("s3_bucket")
    return config


@pytest.fixture
def store(storage: StorageConfig) -> ObjectStore:
    return open_store(storage)


@pytest.fixture
def registry(store: ObjectStore) -> Registry:
    return Registry(store, "cu-ni")


@pytest.fixture
def on_s3_event(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, Callable[..., None]], None]:
    """Return a function that registers a handler with all clients of S3, present and future."""
    clients: list[Any] = []
    handlers: list[tuple[str, Callable[..., None]]] = []
    make = boto3.session.Session.client

    def client(*arguments: Any, **options: Any) -> Any:
        clients.append(make(*arguments, **options))
        for handler in handlers:
            clients[-1].meta.events.register(*handler)
        return clients[-1]

    def register(event: str, handler: Callable[..., None]) -> None:
        handlers.append((event, handler))
        for known in clients:
            known.meta.events.register(event, handler)

    monkeypatch.setattr(boto3.session.Session, "client", client)
    return register
