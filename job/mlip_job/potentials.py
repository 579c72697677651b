"""``load_potential``: from the URL of a store to an ASE calculator, with a cache."""

from __future__ import annotations

import os
import tempfile
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import ValidationError

from mlip_job.config.job import StorageConfig
from mlip_job.errors import ConfigError
from mlip_job.paths import FamilyKeys, generation_name, parse_generation_name, sha256_of
from mlip_job.registry import Registry
from mlip_job.store.open import open_store
from mlip_job.training import published_potential

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mlip_job.calculator import GenerationCalculator
    from mlip_job.registry import Manifest
    from mlip_job.store.base import ObjectStore


def load_potential(
    url: str | Path,
    *,
    generation: int | Literal["latest"] = "latest",
    family: str | None = None,
    endpoint_url: str | None = None,
    extrapolation: bool = False,
    cache: Path | None = None,
) -> GenerationCalculator:
    """Return an ASE calculator of a published generation, with energies that equal DFT's.

    ::

        from mlip_job import load_potential

        atoms.calc = load_potential("s3://mlip/potentials", family="cu-ni", generation=4)

    The potential is kept in a cache on this machine; its hash is checked against the generation's
    manifest each time.

    The store is a directory or ``s3://bucket/prefix``; `url` may include the family's folder, else
    `family` is required if the store holds several. Without `endpoint_url`, that of
    ``AWS_ENDPOINT_URL`` is used; credentials come from the environment, a profile or the instance,
    as boto3 finds them. The cache is in ``$XDG_CACHE_HOME/mlip-job`` by default.

    With `extrapolation` the extrapolation grade of each atom is in ``calc.results["gamma"]``; above
    1 the potential extrapolates. It requires a published active set, and is slower.

    Raises
    ------
    MlipJobError
        If there is no such generation, it is damaged, the store is out of reach, or python-ace is
        not installed.
    """
    require_pyace()
    from mlip_job.calculator import GenerationCalculator  # noqa: PLC0415 - seconds

    registry = locate_family(str(url), family, endpoint_url=endpoint_url)
    manifest = registry.get(_latest(registry) if generation == "latest" else generation)
    label = f"{registry.family} {generation_name(manifest.generation)}"
    plain = [published_potential(manifest.artefacts)]
    names = ["potential.yaml", "potential.asi"] if extrapolation else plain
    if missing := [name for name in names if name not in manifest.artefacts]:
        raise ConfigError(
            f"{label} was published without {', '.join(missing)}",
            hint="load it with extrapolation=False" if extrapolation else None,
        )
    directory = cache or cache_directory()
    paths = [fetch_cached(registry, manifest, name, directory) for name in names]
    return GenerationCalculator(
        paths[0],
        manifest.reference_energies,
        active_set=paths[1] if extrapolation else None,
        label=label,
    )


def _latest(registry: Registry) -> int:
    latest = registry.latest()
    if latest is not None:
        return latest
    if registry.numbers():
        raise ConfigError(
            f"all generations of {registry.family} in {registry.store.url} were rejected by their "
            "gates",
            hint="name the generation",
        )
    raise ConfigError(f"no generation of {registry.family} is published in {registry.store.url}")


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

    The URL is a store, or the folder of a family in one. Without `family` it has to name the
    family, or the store to hold a single one.

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


def cache_directory(environment: Mapping[str, str] | None = None) -> Path:
    """Return where artefacts are kept: ``$XDG_CACHE_HOME/mlip-job``, or ``~/.cache/mlip-job``."""
    source = os.environ if environment is None else environment
    root = source.get("XDG_CACHE_HOME", "")
    # The XDG Base Directory Specification has relative paths ignored.
    base = Path(root) if root.startswith("/") else Path.home() / ".cache"
    return base / "mlip-job"


def fetch_cached(registry: Registry, manifest: Manifest, name: str, directory: Path) -> Path:
    """Return a local copy of an artefact whose hash was checked now.

    An existing copy is hashed, and fetched again if it is damaged.

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
            # Concurrent processes replace the file with the same content.
            fetched.replace(path)
    except OSError as error:
        raise ConfigError(
            f"can't write to the cache {directory}: {error.strerror or error}",
            hint="set XDG_CACHE_HOME to a directory that can be written to",
        ) from None
    return path


def require_pyace() -> None:
    """Check that python-ace is installed, without importing it, which takes seconds.

    Raises
    ------
    ConfigError
        If it is not.
    """
    if find_spec("pyace") is None:
        raise ConfigError(
            "python-ace is not installed: this environment can't evaluate potentials",
            hint="pip install --no-deps -r requirements/trainer-cpu.txt",
        )
