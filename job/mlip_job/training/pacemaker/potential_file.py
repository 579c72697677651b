"""Pacemaker's potentials in YAML (B-basis): read, edit, convert."""

from __future__ import annotations

import random
import re
from typing import TYPE_CHECKING, Any

import yaml

from mlip_job.errors import TrainingError
from mlip_job.training.programs import run_program
from mlip_job.yaml_text import YamlError, load_yaml

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

POTENTIAL = "potential.yaml"
"""Name of the potential in checkpoints and among the artefacts."""


class _Loader(yaml.CSafeLoader):
    """SafeLoader that parses 1e-05 as a number.

    PyYAML follows YAML 1.1, where a float needs a dot; pacemaker writes YAML 1.2.
    """


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:\d+(?:\.\d*)?|\.\d+)[eE][-+]?\d+$"),
    list("-+0123456789."),
)


# A species block without inner cutoff, as pacemaker writes it before `repulsion: auto`.
_NO_INNER_CUTOFF: Mapping[str, Any] = {
    "r_in": 0,
    "delta_in": 0,
    "inner_cutoff_type": "distance",
    "core-repulsion": [0, 0],
    "rho_core_cut": 100000,
    "drho_core_cut": 250,
}


def read_potential(path: Path) -> dict[str, Any]:
    """Parse a potential.

    Raise a TrainingError if the file is missing, truncated or not a potential.
    """
    try:
        content = load_yaml(path.read_text(encoding="utf-8"), loader=_Loader)
    except (OSError, UnicodeDecodeError, YamlError) as error:
        raise TrainingError(f"{path} is no readable potential: {type(error).__name__}") from None
    if not isinstance(content, dict) or not isinstance(content.get("metadata", {}), dict):
        raise TrainingError(f"{path} is no potential")
    species = content.get("species")
    if not isinstance(species, list) or not species or not all(map(_is_block, species)):
        raise TrainingError(f"{path} is no potential: it has no species")
    return content


def _is_block(block: object) -> bool:
    if not isinstance(block, dict) or "speciesblock" not in block:
        return False
    functions = block.get("nbody", [])
    # A file truncated after a dash ends with an invalid function.
    return isinstance(functions, list) and all(isinstance(f, dict) for f in functions)


def elements_of(content: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the elements that a potential describes, sorted."""
    return tuple(
        sorted({e for block in content["species"] for e in str(block["speciesblock"]).split()})
    )


def count_functions(content: Mapping[str, Any]) -> int:
    """Return the number of basis functions of a potential, as pacemaker counts them."""
    return sum(len(block.get("nbody") or ()) for block in content["species"])


def as_start(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return a finished potential in a form that a new fit can start from.

    Without ``_fit_cycles`` in the metadata, which makes pacemaker believe that the fit is done; and
    without ZBL cores, which begin at the shortest distance of *these* data: the next fit adds its
    own.
    """
    metadata = {k: v for k, v in content.get("metadata", {}).items() if k != "_fit_cycles"}
    species = [
        {**block, **{k: v for k, v in _NO_INNER_CUTOFF.items() if k in block}}
        for block in content["species"]
    ]
    return {**content, "metadata": metadata, "species": species}


def with_cores_of(finished: Mapping[str, Any], content: Mapping[str, Any]) -> dict[str, Any]:
    """Return a potential of any iteration with the ZBL cores and metadata of the finished one.

    The cores follow from the training data alone, so they are the same for every iteration.
    """
    cores = {
        block["speciesblock"]: {k: v for k, v in block.items() if k in _NO_INNER_CUTOFF}
        for block in finished["species"]
    }
    species = [{**block, **cores[block["speciesblock"]]} for block in content["species"]]
    return {**finished, "species": species}


def perturbed(content: Mapping[str, Any], noise: float, seed: int) -> dict[str, Any]:
    """Return a potential with noise on its coefficients: a relative standard deviation."""
    normal = random.Random(seed)  # noqa: S311 - nothing secret depends on it

    def changed(function: Mapping[str, Any]) -> dict[str, Any]:
        return {**function, "c": [c * (1 + normal.gauss(0, noise)) for c in function["c"]]}

    species = [
        {**block, "nbody": list(map(changed, block["nbody"]))} if "nbody" in block else block
        for block in content["species"]
    ]
    return {**content, "species": species}


def write_potential(content: Mapping[str, Any], path: Path) -> None:
    """Write a potential; floating-point numbers keep every bit."""
    text = yaml.dump(dict(content), Dumper=yaml.CSafeDumper, sort_keys=False, width=2**16)
    path.write_text(text, encoding="utf-8")


def convert_to_yace(potential: Path, yace: Path) -> None:
    """Convert a B-basis potential into the .yace that LAMMPS reads.

    Raise a TrainingError if the converter fails.
    """
    # Without -o the converter replaces every "yaml" in the whole path.
    run_program("pace_yaml2yace", ["-o", yace.name, potential.name], potential.parent)
    if not yace.is_file():
        raise TrainingError(f"pace_yaml2yace left no {yace}")
