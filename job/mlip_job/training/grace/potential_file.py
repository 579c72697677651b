"""GRACE/FS potentials for C++, and their architecture."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from mlip_job.errors import IntegrityError, TrainingError
from mlip_job.yaml_text import YamlError, load_yaml

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path


def read_potential(path: Path) -> dict[str, Any]:
    """Parse a potential.

    Raise a TrainingError if the file is missing, truncated or not a GRACE/FS potential.
    """
    try:
        content = load_yaml(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, YamlError) as error:
        raise TrainingError(f"{path} is no readable potential: {type(error).__name__}") from None
    if not isinstance(content, dict) or not isinstance(content.get("elements"), list):
        raise TrainingError(f"{path} is no GRACE/FS potential: it has no elements")
    if missing := sorted({"emb_spec", "functions", "radial_basis"} - content.keys()):
        raise TrainingError(f"{path} is incomplete: it has no {', '.join(missing)}")
    return content


_CLASS = re.compile(
    r"tensorpotential\.instructions\.(?:compute\.(?:BondLength|CropProductFunction|FunctionReduceN|"
    r"LinearRadialFunction|RadialBasis|ScalarChemicalEmbedding|ScaledBondVector|"
    r"SingleParticleBasisFunctionScalarInd|SphericalHarmonic)|"
    r"output\.(?:ConstantScaleShiftTarget|CreateOutputTarget|FSOut2ScalarTarget))"
)
"""Classes in the architecture of the FS preset (`tensorpotential.potentials.presets.FS`)."""


def require_architecture(path: Path) -> None:
    """Require that ``model.yaml`` names the classes of the FS preset only.

    Gracemaker imports and calls any class or function that it names
    (`tensorpotential.instructions.base.str_to_class`), and it may come from a store.

    Raise an IntegrityError if it names another one, or is no YAML.
    """
    try:
        content = load_yaml(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, YamlError) as error:
        raise IntegrityError(f"{path} is no readable model: {type(error).__name__}") from None
    names = list(_classes(content))
    if not names or not all(isinstance(name, str) and _CLASS.fullmatch(name) for name in names):
        raise IntegrityError(f"{path} is no architecture of a GRACE/FS potential")


def _classes(content: object) -> Iterator[object]:
    if isinstance(content, dict):
        if "__cls__" in content:
            yield content["__cls__"]
        content = list(content.values())
    if isinstance(content, list):
        for value in content:
            yield from _classes(value)


def is_grace(path: Path) -> bool:
    """Return whether a potential file is one of GRACE/FS: it begins with its elements."""
    try:
        with path.open("rb") as file:
            return path.suffix == ".yaml" and file.readline().startswith(b"elements:")
    except OSError:
        return False


def elements_of(content: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the elements that a potential describes, sorted."""
    return tuple(sorted(map(str, content["elements"])))


def count_functions(content: Mapping[str, Any]) -> int:
    """Return the number of functions of all elements."""
    return sum(len(functions) for functions in content["functions"].values())
