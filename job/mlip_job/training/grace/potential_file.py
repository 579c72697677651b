"""GRACE/FS potentials for C++: reading, and their active sets."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mlip_job.errors import TrainingError
from mlip_job.training.programs import run_program
from mlip_job.yaml_text import YamlError, load_yaml

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path


def read_potential(path: Path) -> dict[str, Any]:
    """Parse a potential.

    Raises
    ------
    TrainingError
        If the file is missing, truncated or not a GRACE/FS potential.
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


def write_active_set(potential: Path, training_set: Path) -> Path:
    """Make the active set of a potential from gracemaker's copy of the training set.

    Raises
    ------
    TrainingError
        If the program fails.
    """
    run_program("pace_activeset", ["-d", str(training_set), potential.name], potential.parent)
    written = potential.with_suffix(".asi")
    if not written.is_file():
        raise TrainingError(f"pace_activeset left no {written}")
    return written
