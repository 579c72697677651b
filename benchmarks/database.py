"""Make a database like those that DFT calculations fill: rattled alloy cells of 32 to 64 atoms.

::

    python -m benchmarks.database structures.db 20000

ASE itself makes the tables and writes the first rows; the others are inserted under the same
columns, which is many times faster.
"""

from __future__ import annotations

import json
import sqlite3
import sys
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import UUID

import ase.db
import numpy as np
from ase import Atoms
from ase.build import bulk
from ase.calculators.singlepoint import SinglePointCalculator

if TYPE_CHECKING:
    from collections.abc import Iterator

ELEMENTS = ("Cu", "Ni", "Au")
REPEATS = ((2, 2, 2), (2, 2, 3), (2, 2, 4))
KINDS = ("bulk", "surface", "liquid", "defect")
_BY_ASE = 10
_CHUNK = 1000


def structures(count: int, atoms_each: int | None = None) -> Iterator[Atoms]:
    """Yield labelled cells, always the same ones; the labels are random numbers.

    They have 32 to 64 atoms, or `atoms_each`, a multiple of 4.
    """
    rng = np.random.default_rng(0)
    repeats = REPEATS if atoms_each is None else ((1, 1, atoms_each // 4),)
    cells = [bulk("Cu", cubic=True, a=3.6).repeat(repeat) for repeat in repeats]
    numbers = np.array([Atoms(symbol).numbers[0] for symbol in ELEMENTS])
    for index in range(count):
        atoms = cells[index % len(cells)].copy()
        atoms.numbers = rng.choice(numbers, len(atoms))
        atoms.set_cell(atoms.cell * (1 + 0.05 * rng.random()), scale_atoms=True)
        atoms.positions += rng.normal(scale=0.1, size=(len(atoms), 3))
        energy = float(len(atoms) * (-3.5 + rng.normal(scale=0.05)))
        atoms.calc = SinglePointCalculator(
            atoms,
            energy=energy,
            free_energy=energy - 1e-3,
            forces=rng.normal(size=(len(atoms), 3)),
            stress=rng.normal(scale=0.01, size=6),
        )
        yield atoms


def key_value_pairs(index: int) -> dict[str, Any]:
    """Return the keys of the row of this index."""
    return {
        "status": "completed",
        "config_type": KINDS[index % len(KINDS)],
        "trajectory": f"md-{index // 50}",
        "encut": 520.0,
    }


def write_database(path: Path, count: int, atoms_each: int | None = None) -> None:
    """Write `count` rows into a new SQLite file."""
    rows = enumerate(structures(count, atoms_each))
    with ase.db.connect(str(path), type="db") as database:
        for index, atoms in rows:
            database.write(atoms, key_value_pairs(index))
            if index + 1 == _BY_ASE:
                break
    with closing(sqlite3.connect(path)) as connection:
        names = [column[1] for column in connection.execute("PRAGMA table_info(systems)")]
        template = connection.execute("SELECT * FROM systems WHERE id = 1").fetchone()
        insert = f"INSERT INTO systems VALUES ({', '.join('?' * len(names))})"  # noqa: S608
        for index, atoms in rows:
            row = dict(zip(names, template, strict=True)) | _columns(index, atoms)
            connection.execute(insert, [row[name] for name in names])
            _insert_keys(connection, index + 1, atoms)
            if index % _CHUNK == 0:
                connection.commit()
        connection.commit()
        connection.execute("UPDATE sqlite_sequence SET seq = ? WHERE name = 'systems'", (count,))
        connection.commit()


def _columns(index: int, atoms: Atoms) -> dict[str, Any]:
    results = atoms.calc.results
    return {
        "id": index + 1,
        "unique_id": UUID(int=index).hex,
        "numbers": atoms.numbers.astype("<i4").tobytes(),
        "positions": atoms.positions.tobytes(),
        "cell": atoms.cell.array.tobytes(),
        "energy": results["energy"],
        "free_energy": results["free_energy"],
        "forces": results["forces"].tobytes(),
        "stress": results["stress"].tobytes(),
        "key_value_pairs": json.dumps(key_value_pairs(index)),
        "natoms": len(atoms),
        "fmax": float(np.linalg.norm(results["forces"], axis=1).max()),
        "smax": float(np.abs(results["stress"]).max()),
        "volume": atoms.get_volume(),
        "mass": float(atoms.get_masses().sum()),
    }


def _insert_keys(connection: sqlite3.Connection, row_id: int, atoms: Atoms) -> None:
    pairs = key_value_pairs(row_id - 1)
    texts = [(k, v, row_id) for k, v in pairs.items() if isinstance(v, str)]
    numbers = [(k, v, row_id) for k, v in pairs.items() if not isinstance(v, str)]
    found, counts = np.unique(atoms.numbers, return_counts=True)
    species = [(int(z), int(n), row_id) for z, n in zip(found, counts, strict=True)]
    connection.executemany("INSERT INTO text_key_values VALUES (?, ?, ?)", texts)
    connection.executemany("INSERT INTO number_key_values VALUES (?, ?, ?)", numbers)
    connection.executemany("INSERT INTO keys VALUES (?, ?)", [(key, row_id) for key in pairs])
    connection.executemany("INSERT INTO species VALUES (?, ?, ?)", species)


if __name__ == "__main__":
    write_database(Path(sys.argv[1]), int(sys.argv[2]))
