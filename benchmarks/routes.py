"""Three ways to export a database; each runs in a new process and reports its costs.

::

    python -m benchmarks.routes naive structures.db out
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ase.db
import ase.io
import pandas as pd
from ase.io.extxyz import write_xyz

from benchmarks.costs import cpu_seconds, peak_mib
from mlip_job.config import DatabaseConfig, DatasetConfig, TrainingConfig
from mlip_job.dataset.builder import DatasetBuilder

if TYPE_CHECKING:
    from collections.abc import Callable

    from ase import Atoms

SELECTION = "status=completed"
COLUMNS = [
    "id", "numbers", "positions", "cell", "pbc", "energy", "free_energy", "forces", "stress",
    "constraints", "key_value_pairs",
]  # fmt: skip


def naive(database: Path, output: Path) -> None:
    """Export like most scripts."""
    rows = list(ase.db.connect(database).select(SELECTION))
    images = [row.toatoms() for row in rows]
    ase.io.write(output / "train.xyz", images, format="extxyz")
    _make_frame(images).to_pickle(output / "train.pckl.gzip", compression="gzip", protocol=4)


def tuned(database: Path, output: Path) -> None:
    """Export with ASE and pandas, optimised: one connection, few columns, light compression."""
    images = []
    with (
        ase.db.connect(database) as connection,
        (output / "train.xyz").open("w", encoding="utf-8") as file,
    ):
        rows = connection.select(SELECTION, columns=COLUMNS, include_data=False)
        for row in rows:
            images.append(row.toatoms())
            write_xyz(file, images[-1:])
    compression = {"method": "gzip", "compresslevel": 1}
    _make_frame(images).to_pickle(output / "train.pckl.gzip", compression=compression, protocol=4)


def ours(database: Path, output: Path) -> None:
    """Export with mlip-job: validated, split, deduplicated, hashed and indexed."""
    config = DatabaseConfig(url=str(database), select=SELECTION)
    DatasetBuilder(config, DatasetConfig(), TrainingConfig()).build(output)


def _make_frame(images: list[Atoms]) -> pd.DataFrame:
    """Return pacemaker's data frame; as in mlip-job's, its atoms have no calculator."""
    energies = [atoms.get_potential_energy() for atoms in images]
    forces = [atoms.get_forces(apply_constraint=False) for atoms in images]
    for atoms in images:
        atoms.calc = None
    columns = {"ase_atoms": images, "energy": energies, "energy_corrected": energies}
    return pd.DataFrame(columns | {"forces": forces})


ROUTES: dict[str, Callable[[Path, Path], None]] = {"naive": naive, "tuned": tuned, "ours": ours}


def measure(route: str, database: Path, output: Path) -> dict[str, Any]:
    """Run a route in this process; time and memory of imports are not counted."""
    output.mkdir(parents=True)
    memory, before, started = peak_mib(), cpu_seconds(), time.perf_counter()
    ROUTES[route](database, output)
    wall, after = time.perf_counter() - started, cpu_seconds()
    return {
        "cpu_s": after - before,
        "wall_s": wall,
        "peak_mib": peak_mib() - memory,
        "written_mb": sum(path.stat().st_size for path in output.iterdir()) / 1e6,
    }


if __name__ == "__main__":
    print(json.dumps(measure(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))))  # noqa: T201
