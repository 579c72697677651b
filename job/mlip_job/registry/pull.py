"""Copy a published generation into a local directory."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from mlip_job.errors import ConflictError, IntegrityError
from mlip_job.paths import cant_write, generation_name, sha256_of
from mlip_job.store.base import shown

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mlip_job.registry.manifest import Manifest
    from mlip_job.registry.registry import Registry

_HINT = "remove it, or choose another -o DIR"


def pull_generation(
    registry: Registry,
    manifest: Manifest,
    directory: Path,
    *,
    with_dataset: bool,
) -> list[Path]:
    """Download all artefacts of a generation, check their hashes, and return their paths.

    The potential is named after the generation (``gen_04.yace``), as LAMMPS input files will
    refer to it; the other files keep their names. Nothing appears in `directory` before all of it
    was downloaded and checked; existing files are not changed.

    Parameters
    ----------
    registry, manifest, directory
        From where, what, and to where.
    with_dataset
        Whether the dataset comes too.

    Raises
    ------
    IntegrityError
        If an artefact is missing or damaged, or two have one name.
    ConflictError
        If a file of the same name and other content is there, or a link out of `directory`.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=directory, prefix=".pull-") as temporary:
            staging = Path(temporary)
            files = _download(registry, manifest, staging, with_dataset=with_dataset)
            for file in _new(files, staging, directory):
                (directory / file).parent.mkdir(parents=True, exist_ok=True)
                (staging / file).rename(directory / file)
    except OSError as error:
        raise cant_write(directory, error, hint="choose another -o DIR") from None
    return [directory / file for file in files]


def _download(
    registry: Registry, manifest: Manifest, staging: Path, *, with_dataset: bool
) -> list[str]:
    """Download into a private directory; return the files' paths in it."""
    name = generation_name(manifest.generation)
    artefacts = [(file.replace("potential.", f"{name}.", 1), file) for file in manifest.artefacts]
    record = registry.dataset_record(manifest.dataset) if with_dataset else None
    dataset = [] if record is None else [(f"dataset/{file}", file) for file in record.files]
    own = ["manifest.json"] if record is None else ["manifest.json", "dataset/dataset.json"]
    files = [*(path for path, _ in (*artefacts, *dataset)), *own]
    _require_apart(registry, manifest, files)
    for path in files:
        (staging / path).parent.mkdir(parents=True, exist_ok=True)
    for path, file in artefacts:
        registry.fetch(manifest, file, staging / path)
    (staging / "manifest.json").write_bytes(manifest.to_json())
    if record is not None:
        for path, file in dataset:
            registry.fetch_dataset_file(record, file, staging / path)
        registry.fetch_dataset_record(manifest, staging / "dataset" / "dataset.json")
    return sorted(files)


def _require_apart(registry: Registry, manifest: Manifest, files: Sequence[str]) -> None:
    """Raise an IntegrityError where two files would be one, or one the folder of another."""
    taken = {parent.as_posix() for file in files for parent in PurePosixPath(file).parents}
    for file in files:
        if file in taken:
            raise IntegrityError(
                f"{registry.keys.manifest(manifest.generation)} names {shown(file)} twice, or as "
                "file and folder"
            )
        taken.add(file)


def _new(files: Sequence[str], staging: Path, directory: Path) -> list[str]:
    """Return the files that are not in the directory yet.

    Raises
    ------
    ConflictError
        If one is there with other content, or a link leads elsewhere.
    """
    root = directory.resolve()
    new = []
    for file in files:
        target = directory / file
        if not target.parent.resolve().is_relative_to(root):
            raise ConflictError(
                f"{target.parent} is a link that leads out of {directory}", hint=_HINT
            )
        if not os.path.lexists(target):
            new.append(file)
        elif target.is_symlink() or not target.is_file():
            raise ConflictError(f"{target} exists, and is no file", hint=_HINT)
        elif sha256_of(target) != sha256_of(staging / file):
            raise ConflictError(f"{target} exists with other content", hint=_HINT)
    return new
