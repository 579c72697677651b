"""Copy a published generation into a local directory."""

from __future__ import annotations

import hashlib
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from mlip_job.disk import cant_write
from mlip_job.errors import ConflictError
from mlip_job.naming import generation_name

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from mlip_job.registry.manifest import Manifest
    from mlip_job.registry.registry import Registry


def pull_generation(
    registry: Registry,
    manifest: Manifest,
    directory: Path,
    *,
    with_dataset: bool,
    describe: Callable[[Path, Sequence[str]], str] | None = None,
) -> list[Path]:
    """Download all artefacts of a generation, check their hashes, and return their paths.

    The potential is named after the generation (``gen_04.yace``), as LAMMPS input files will
    refer to it; the other files keep their names. Nothing appears in `directory` before all of it
    was downloaded and checked.

    Parameters
    ----------
    registry, manifest, directory
        From where, what, and to where.
    with_dataset
        Whether the dataset comes too.
    describe
        Writes a description of the files into the directory that it is given, and returns its
        name.

    Raises
    ------
    IntegrityError
        If an artefact is missing or damaged.
    ConflictError
        If a file of the same name and other content is there.
    """
    name = generation_name(manifest.generation)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=directory, prefix=".pull-") as temporary:
            staging = Path(temporary)
            files = _download(registry, manifest, staging, name, with_dataset=with_dataset)
            if describe is not None:
                files.append(describe(staging, files))
            _refuse_other_content(files, staging, directory)
            for file in files:
                (directory / file).parent.mkdir(parents=True, exist_ok=True)
                (staging / file).replace(directory / file)
    except OSError as error:
        raise cant_write(directory, error, hint="choose another -o DIR") from None
    return [directory / file for file in files]


def _download(
    registry: Registry, manifest: Manifest, staging: Path, name: str, *, with_dataset: bool
) -> list[str]:
    files = []
    for artefact in sorted(manifest.artefacts):
        local = artefact.replace("potential.", f"{name}.", 1)
        files.append(local)
        (staging / local).parent.mkdir(parents=True, exist_ok=True)
        registry.fetch(manifest, artefact, staging / local)
    (staging / "manifest.json").write_bytes(manifest.to_json())
    files.append("manifest.json")
    if with_dataset:
        record = registry.dataset_record(manifest.dataset)
        (staging / "dataset").mkdir()
        for file in sorted(record.files):
            registry.fetch_dataset_file(record, file, staging / "dataset" / file)
            files.append(f"dataset/{file}")
        registry.fetch_dataset_record(manifest, staging / "dataset" / "dataset.json")
        files.append("dataset/dataset.json")
    return files


def _refuse_other_content(files: list[str], staging: Path, directory: Path) -> None:
    for file in files:
        target = directory / file
        if target.exists() and _sha256(target) != _sha256(staging / file):
            raise ConflictError(
                f"{target} exists with other content", hint="remove it, or choose another -o DIR"
            )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
