"""Files that are no SQLite database are rejected with a command that converts them."""

from __future__ import annotations

import gzip
import os
import shutil
import subprocess
import sys
from pathlib import Path

import ase.db
import ase.io
import pytest
from ase import Atoms

from mlip_job.errors import ConfigError, DatabaseError
from tests.datasets import build, refused
from tests.support import rattled, write_database


def write(path: Path, kind: str, structures: list[Atoms]) -> None:
    """Write structures in another back end or file format of ASE, under any name."""
    if kind in ("json", "aselmdb"):
        plain = path.with_name(f"written.{kind}")
        with ase.db.connect(str(plain), type=kind) as database:
            for atoms in structures:
                database.write(atoms, status="completed", config_type="bulk")
        shutil.move(plain, path)
    else:
        ase.io.write(path, structures, format=kind)


def run_hint(text: str) -> None:
    command = text.splitlines()[-1].partition("to the result")[2].partition(": ")[2]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    subprocess.run(
        ["bash", "-ec", command],
        env=os.environ | {"PATH": path},
        check=True,
        capture_output=True,
        timeout=120,
    )


@pytest.mark.parametrize(
    ("kind", "name", "select"),
    [
        ("json", "it's.json", "status=completed"),
        ("json", "named.db", "status=completed"),
        ("aselmdb", "rows.aselmdb", "status=completed"),
        ("extxyz", "two words.xyz", ""),
        ("traj", "steps.traj", ""),
        ("traj", "steps.db", ""),
    ],
)
def test_the_command_converts(tmp_path: Path, out: Path, kind: str, name: str, select: str) -> None:
    """The message names the format; after its command the database trains like any other."""
    path = tmp_path / name
    structures = rattled(12)
    write(path, kind, structures)
    before = path.read_bytes()
    text = refused(ConfigError, path, out)
    assert str(path) in text
    assert path.read_bytes() == before
    run_hint(text)
    (made,) = set(tmp_path.glob("*.db")) - {path}
    record = build(made, out, select=select)
    assert record.counts.accepted == 12


def test_directory_of_another_back_end(tmp_path: Path, out: Path) -> None:
    directory = tmp_path / "parts"
    directory.mkdir()
    write(directory / "a.aselmdb", "aselmdb", rattled(2))
    text = refused(DatabaseError, directory, out)
    assert "is not a file" in text
    assert f"for part in {directory}/*.aselmdb; do ase db" in text


def test_labels_of_a_file_under_other_names(tmp_path: Path, out: Path) -> None:
    """Labels that ASE's converter would lose are named, with a script that keeps them."""
    path = tmp_path / "structures.xyz"
    structures = rattled(2)
    for atoms in structures:
        atoms.info["REF_energy"] = atoms.calc.results["energy"]
        atoms.arrays["REF_forces"] = atoms.calc.results["forces"]
        atoms.calc = None
    ase.io.write(path, structures)
    text = refused(ConfigError, path, out)
    assert "REF_energy, REF_forces are no energy and forces to ASE" in text
    assert "Labels under other names" in text


def test_compressed_database(tmp_path: Path, out: Path) -> None:
    plain = tmp_path / "plain.db"
    write_database(plain, rattled(12))
    packed = tmp_path / "packed.db"
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    plain.unlink()
    run_hint(refused(ConfigError, packed, out))
    (made,) = set(tmp_path.glob("*.db")) - {packed}
    assert build(made, out, select="status=completed").counts.accepted == 12


def test_json_of_another_kind(tmp_path: Path, out: Path) -> None:
    path = tmp_path / "settings.json"
    path.write_text('{"x": [1, 2]}')
    assert "ase db" not in refused(DatabaseError, path, out)


def test_empty_file(tmp_path: Path, out: Path) -> None:
    path = tmp_path / "structures.db"
    path.touch()
    assert "is an empty file" in refused(DatabaseError, path, out)
    assert path.read_bytes() == b""
