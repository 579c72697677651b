"""``load_potential``: one line from a store to an ASE calculator."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from mlip_job.errors import ConfigError
from mlip_job.naming import generation_name
from mlip_job.potentials.cache import cache_directory, fetch_cached
from mlip_job.potentials.library import require_pyace
from mlip_job.potentials.locate import locate_family

if TYPE_CHECKING:
    from pathlib import Path

    from mlip_job.potentials.calculator import GenerationCalculator
    from mlip_job.registry import Registry


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

    Parameters
    ----------
    url
        The store: a directory or ``s3://bucket/prefix``. It may name the family's folder in it.
    generation
        Its number, or the latest that was accepted.
    family
        Needed where the store holds several and `url` names none of them.
    endpoint_url
        Endpoint of an S3-compatible store; by default ``AWS_ENDPOINT_URL``. Credentials come from
        the environment, a profile or the instance, as boto3 finds them.
    extrapolation
        Put the extrapolation grade of each atom into ``calc.results["gamma"]``; above 1 the
        potential extrapolates. Needs a published active set, and is slower.
    cache
        Directory of the cache; by default ``$XDG_CACHE_HOME/mlip-job``.

    Raises
    ------
    MlipJobError
        If there is no such generation, it is damaged, the store is out of reach, or python-ace is
        not installed.
    """
    require_pyace()
    from mlip_job.potentials.calculator import GenerationCalculator  # noqa: PLC0415 - seconds

    registry = locate_family(str(url), family, endpoint_url=endpoint_url)
    manifest = registry.get(_latest(registry) if generation == "latest" else generation)
    label = f"{registry.family} {generation_name(manifest.generation)}"
    names = ["potential.yaml", "potential.asi"] if extrapolation else ["potential.yace"]
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
