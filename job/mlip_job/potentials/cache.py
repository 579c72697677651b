"""Artefacts on this machine, under the hash of their content."""

from __future__ import annotations

import os
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from mlip_job.disk import sha256_of
from mlip_job.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mlip_job.registry import Manifest, Registry


def cache_directory(environment: Mapping[str, str] | None = None) -> Path:
    """Return where artefacts are kept: ``$XDG_CACHE_HOME/mlip-job``, or ``~/.cache/mlip-job``."""
    source = os.environ if environment is None else environment
    root = source.get("XDG_CACHE_HOME", "")
    # The XDG Base Directory Specification has relative paths ignored.
    base = Path(root) if root.startswith("/") else Path.home() / ".cache"
    return base / "mlip-job"


def fetch_cached(registry: Registry, manifest: Manifest, name: str, directory: Path) -> Path:
    """Return a local copy of an artefact whose hash was checked now.

    A copy that is there already is read and hashed; where it is damaged it is fetched again.

    Raises
    ------
    IntegrityError
        If the artefact is missing from the store or damaged there.
    ConfigError
        If `directory` can't be written to.
    """
    expected = manifest.artefacts[name].sha256
    path = directory / f"{expected}{Path(name).suffix}"
    with suppress(OSError):
        if sha256_of(path) == expected:
            return path
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=directory, prefix=".fetch-") as temporary:
            fetched = Path(temporary) / path.name
            registry.fetch(manifest, name, fetched)
            # Others may do the same at the same time: whoever comes last replaces like with like.
            fetched.replace(path)
    except OSError as error:
        raise ConfigError(
            f"can't write to the cache {directory}: {error.strerror or error}",
            hint="set XDG_CACHE_HOME to a directory that can be written to",
        ) from None
    return path
