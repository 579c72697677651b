"""Refuse a database or a store that lies where pods can't see it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mlip_job.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mlip_job.config import JobConfig
    from mlip_job.config.kubernetes import KubernetesConfig


def require_visible(config: JobConfig) -> None:
    """Check that a pod can see the database and the store.

    Raises
    ------
    ConfigError
        If one of them is a path that no volume shows, or a store on a read-only one.
    """
    settings = config.submit.kubernetes
    database = _path(config.database.url)
    if database is not None and not any(_is_below(database, path) for path, _ in _shown(settings)):
        raise ConfigError(
            f"database.url {database} is a file that pods don't see",
            hint="use PostgreSQL or MySQL, or put the file on a PersistentVolumeClaim: "
            "submit.kubernetes.claims: [{claim: NAME, mount_path: /data}], "
            "database.url: /data/structures.db",
        )
    store = _path(config.storage.url)
    if store is None:
        return
    modes = [read_only for path, read_only in _shown(settings) if _is_below(store, path)]
    if not modes:
        raise ConfigError(
            f"storage.url {store} is a directory that pods don't see: what they publish would be "
            "lost",
            hint="use s3://bucket/prefix, or a PersistentVolumeClaim: "
            "submit.kubernetes.claims: [{claim: NAME, mount_path: /store}], storage.url: /store",
        )
    if all(modes):
        raise ConfigError(f"storage.url {store} lies on a volume that is mounted read-only")


def _path(url: str) -> str | None:
    """Return the path that a URL means, None for a server's."""
    scheme, separator, rest = url.partition("://")
    if not separator:
        return url
    return rest if scheme == "file" else None


def _shown(settings: KubernetesConfig) -> Iterator[tuple[str, bool]]:
    """Yield where volumes of the user's are mounted, and whether read-only."""
    for claim in settings.claims:
        yield claim.mount_path, claim.read_only
    for mount in settings.volume_mounts:
        yield str(mount.get("mountPath", "")).rstrip("/"), bool(mount.get("readOnly"))


def _is_below(path: str, directory: str) -> bool:
    return bool(directory) and (path == directory or path.startswith(f"{directory}/"))
