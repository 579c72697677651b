"""Write the chosen structures: all of them or no file."""

from __future__ import annotations

import secrets
from contextlib import contextmanager
from typing import TYPE_CHECKING

from ase.io.extxyz import write_xyz

from mlip_job.errors import ConfigError
from mlip_job.naming import generation_name

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from mlip_job.dataset.row import StructureRow
    from mlip_job.selection.results import Selection


def require_free(path: Path) -> None:
    """Refuse a file that is there already.

    Raises
    ------
    ConfigError
        If it is.
    """
    if path.exists():
        raise ConfigError(f"{path} exists", hint="remove it, or choose another -o FILE")


@contextmanager
def written(
    path: Path, selection: Selection, rows: Sequence[StructureRow], id_name: str
) -> Iterator[None]:
    """Write the structures as extended XYZ; the file takes its place when the block ends well.

    Each structure carries its ``extrapolation_grade``, the ``generation`` that it was graded by,
    and its id under `id_name`.

    Raises
    ------
    ConfigError
        If the file can't be written, or appeared meanwhile.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            for candidate, row in zip(selection.chosen, rows, strict=True):
                atoms = row.atoms()
                atoms.info[id_name] = candidate.id
                atoms.info["extrapolation_grade"] = round(candidate.extrapolation_grade, 6)
                atoms.info["generation"] = generation_name(selection.generation)
                write_xyz(file, [atoms])
        yield
        require_free(path)
        temporary.replace(path)
    except OSError as error:
        raise ConfigError(
            f"can't write {path}: {error.strerror or error}", hint="choose another -o FILE"
        ) from None
    finally:
        temporary.unlink(missing_ok=True)
