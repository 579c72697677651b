"""From the URL that a user gives to the registry of one family."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import ValidationError

from mlip_job.config.models import StorageConfig
from mlip_job.errors import ConfigError
from mlip_job.naming import FamilyKeys, parse_generation_name
from mlip_job.registry import Registry
from mlip_job.store.open import open_store

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mlip_job.store.base import ObjectStore

_ENDPOINT_VARIABLES = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")
"""As boto3 reads them, the first that is set."""


def locate_family(
    url: str,
    family: str | None = None,
    *,
    endpoint_url: str | None = None,
    environment: Mapping[str, str] | None = None,
) -> Registry:
    """Return the registry that a URL means.

    Parameters
    ----------
    url
        A store (a directory or ``s3://bucket/prefix``), or the folder of a family in one.
    family
        Which family of the store. Without it the URL has to name the family, or the store to
        hold a single one.
    endpoint_url
        Endpoint of an S3-compatible store; taken from the environment where it is not given.
    environment
        Defaults to the process's.

    Raises
    ------
    ConfigError
        If no family is found, or several are.
    """
    source = os.environ if environment is None else environment
    given = (source.get(name) for name in _ENDPOINT_VARIABLES)
    endpoint_url = endpoint_url or next(filter(None, given), None)
    url = _normalised(url)
    store = _open(url, endpoint_url)
    if family is not None:
        return Registry(store, family)
    parent, _, name = url.rpartition("/")
    if not parent.endswith(":/"):  # a bucket is no folder in a store
        above = _open(parent or "/", endpoint_url)
        if _has_generations(above, name):
            return Registry(above, name)
    families = [found for found in store.list_prefixes("") if _has_generations(store, found)]
    if not families:
        raise ConfigError(
            f"{store.url} holds no generations of any family",
            hint="give the storage.url that they were published to",
        )
    if len(families) > 1:
        raise ConfigError(
            f"{store.url} holds several families: {', '.join(families)}",
            hint=f"say which, e.g. family={families[0]!r}",
        )
    return Registry(store, families[0])


def _normalised(url: str) -> str:
    if "://" in url:
        return url.rstrip("/")
    return str(Path(url).expanduser().resolve())


def _open(url: str, endpoint_url: str | None) -> ObjectStore:
    try:
        config = StorageConfig(url=url, endpoint_url=endpoint_url)
    except ValidationError as error:
        problem = error.errors(include_url=False, include_input=False)[0]["msg"]
        raise ConfigError(f"the URL of the store {problem.removeprefix('Value error, ')}") from None
    return open_store(config)


def _has_generations(store: ObjectStore, family: str) -> bool:
    names = store.list_prefixes(FamilyKeys(family).generations)
    return any(parse_generation_name(name) is not None for name in names)
