"""Rows as read by ASE, and comparisons to the last bit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from ase import Atoms

from mlip_job.config import DatabaseConfig
from mlip_job.dataset.database import StructureDatabase
from mlip_job.dataset.rows import Row, UnreadableRow


def read_rows(config: DatabaseConfig) -> list[Row]:
    """Read through ASE's public interface, one by one."""
    with StructureDatabase(config) as database:
        rows = map(database.row, database.select().ids.tolist())
        return [row for row in rows if row is not None]


def require_same_row(found: Row, expected: Row) -> None:
    """Compare two rows to the last bit; pages don't keep ASE's unique id."""
    assert type(found) is type(expected)
    if isinstance(found, UnreadableRow) or isinstance(expected, UnreadableRow):
        assert found.id == expected.id
        return
    for name in ("id", "energy", "free_energy", "key_value_pairs"):
        assert repr(getattr(found, name)) == repr(getattr(expected, name)), name
    for name in ("numbers", "positions", "cell", "pbc", "forces", "stress"):
        require_same_array(getattr(found, name), getattr(expected, name))


def require_same_array(found: Any, expected: Any) -> None:
    """Compare two arrays (or None) to the last bit."""
    if expected is None:
        assert found is None
        return
    assert (found.shape, found.dtype) == (expected.shape, expected.dtype)
    assert found.tobytes() == expected.tobytes()


def require_same_frame(found: pd.DataFrame, expected: pd.DataFrame) -> None:
    """Compare types, and every value to the last bit."""
    assert type(found) is pd.DataFrame
    assert found.dtypes.to_dict() == expected.dtypes.to_dict()
    assert found.index.equals(expected.index)
    for (_, mine), (_, reference) in zip(found.iterrows(), expected.iterrows(), strict=True):
        for name, value in reference.items():
            if name == "ase_atoms":
                require_same_atoms(mine[name], value)
            elif isinstance(value, np.ndarray):
                require_same_array(mine[name], value)
                assert mine[name].flags.writeable
            else:
                assert mine[name] == value


def require_same_atoms(found: Atoms, expected: Atoms) -> None:
    """Compare all data of two Atoms objects."""
    assert type(found) is type(expected)
    assert found.__dict__.keys() == expected.__dict__.keys()
    assert found.arrays.keys() == expected.arrays.keys()
    for name, array in expected.arrays.items():
        require_same_array(found.arrays[name], array)
        assert found.arrays[name].flags.owndata or found.arrays[name].base is None
    require_same_array(found.cell.array, expected.cell.array)
    require_same_array(found.pbc, expected.pbc)
    assert (found.info, found.calc, found.constraints) == ({}, None, [])
