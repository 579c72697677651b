"""Make a database like those of DFT calculations: rattled alloy cells of 32 to 64 atoms.

::

    python -m benchmarks.database structures.db 20000

ASE creates the tables and writes the first rows; the others are inserted with the same columns,
which is many times faster.
"""

from __future__ import annotations

import json
import sqlite3
import sys
from collections import Counter
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from uuid import UUID

import ase.db
import numpy as np
from ase import Atoms
from ase.build import bulk
from ase.calculators.singlepoint import SinglePointCalculator
from ase.data import atomic_masses, atomic_numbers

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

ELEMENTS = ("Cu", "Ni", "Au")
REPEATS = ((2, 2, 2), (2, 2, 3), (2, 2, 4))
KINDS = ("bulk", "surface", "liquid", "defect")
_BY_ASE = 10
_CHUNK = 1000


class Labelled(NamedTuple):
    """A labelled cell, in eV and Å. Plain arrays: Atoms objects would take most of the time."""

    numbers: NDArray[np.int32]
    positions: NDArray[np.float64]
    cell: NDArray[np.float64]
    results: dict[str, Any]

    def to_atoms(self) -> Atoms:
        """Return the cell as an Atoms object."""
        atoms = Atoms(self.numbers, self.positions, cell=self.cell, pbc=True)
        atoms.calc = SinglePointCalculator(atoms, **self.results)
        return atoms


def structures(count: int, atoms_each: int | None = None) -> Iterator[Labelled]:
    """Yield labelled cells, always the same ones; the labels are random numbers.

    Each has 32 to 64 atoms, or `atoms_each`, a multiple of 4.
    """
    rng = np.random.default_rng(0)
    repeats = REPEATS if atoms_each is None else ((1, 1, atoms_each // 4),)
    cells = [bulk("Cu", cubic=True, a=3.6).repeat(repeat) for repeat in repeats]
    shapes = [(atoms.cell.array, atoms.positions) for atoms in cells]
    elements = np.array([atomic_numbers[symbol] for symbol in ELEMENTS], dtype=np.int32)
    for index in range(count):
        cell, sites = shapes[index % len(shapes)]
        size, scale = len(sites), 1 + 0.05 * rng.random()
        energy = float(size * (-3.5 + rng.normal(scale=0.05)))
        yield Labelled(
            elements[rng.integers(len(elements), size=size)],
            sites * scale + rng.normal(scale=0.1, size=(size, 3)),
            cell * scale,
            {
                "energy": energy,
                "free_energy": energy - 1e-3,
                "forces": rng.normal(size=(size, 3)),
                "stress": rng.normal(scale=0.01, size=6),
            },
        )


def key_value_pairs(index: int) -> dict[str, Any]:
    """Return the keys of the row with this index."""
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
        for index, labelled in rows:
            database.write(labelled.to_atoms(), key_value_pairs(index))
            if index + 1 == _BY_ASE:
                break
    with closing(sqlite3.connect(path)) as connection:
        names = [column[1] for column in connection.execute("PRAGMA table_info(systems)")]
        template = connection.execute("SELECT * FROM systems WHERE id = 1").fetchone()
        insert = f"INSERT INTO systems VALUES ({', '.join('?' * len(names))})"  # noqa: S608
        for index, labelled in rows:
            row = dict(zip(names, template, strict=True)) | _columns(index, labelled)
            connection.execute(insert, [row[name] for name in names])
            _insert_keys(connection, index + 1, labelled.numbers)
            if index % _CHUNK == 0:
                connection.commit()
        connection.commit()
        connection.execute("UPDATE sqlite_sequence SET seq = ? WHERE name = 'systems'", (count,))
        connection.commit()


def _columns(index: int, labelled: Labelled) -> dict[str, Any]:
    numbers, positions, cell, results = labelled
    return {
        "id": index + 1,
        "unique_id": UUID(int=index).hex,
        "numbers": numbers.astype("<i4").tobytes(),
        "positions": positions.tobytes(),
        "cell": cell.tobytes(),
        "energy": results["energy"],
        "free_energy": results["free_energy"],
        "forces": results["forces"].tobytes(),
        "stress": results["stress"].tobytes(),
        "key_value_pairs": json.dumps(key_value_pairs(index)),
        "natoms": len(numbers),
        "fmax": float(np.sqrt(np.square(results["forces"]).sum(axis=1).max())),
        "smax": float(np.abs(results["stress"]).max()),
        "volume": float(cell[0, 0] * cell[1, 1] * cell[2, 2]),
        "mass": float(atomic_masses[numbers].sum()),
    }


def _insert_keys(connection: sqlite3.Connection, row_id: int, numbers: NDArray[np.int32]) -> None:
    pairs = key_value_pairs(row_id - 1)
    texts = [(k, v, row_id) for k, v in pairs.items() if isinstance(v, str)]
    values = [(k, v, row_id) for k, v in pairs.items() if not isinstance(v, str)]
    species = [(z, n, row_id) for z, n in Counter(numbers.tolist()).items()]
    connection.executemany("INSERT INTO text_key_values VALUES (?, ?, ?)", texts)
    connection.executemany("INSERT INTO number_key_values VALUES (?, ?, ?)", values)
    connection.executemany("INSERT INTO keys VALUES (?, ?)", [(key, row_id) for key in pairs])
    connection.executemany("INSERT INTO species VALUES (?, ?, ?)", species)


if __name__ == "__main__":
    write_database(Path(sys.argv[1]), int(sys.argv[2]))
