"""Whatever a row is called, ASE reads its labels back."""

from __future__ import annotations

import io

import ase.io
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mlip_job.dataset.extxyz import write_structure
from mlip_job.dataset.row import StructureRow

FORCES = np.array([[0.25, -0.5, 0.125], [-0.25, 0.5, -0.125]])
AWKWARD = st.text("=\"'\\\\ ,:;[]{}()_JSONTF01.-", max_size=6)
STRESS = np.array([0.5, 0.25, 0.125, 0.0, -0.25, -0.5])


def _row() -> StructureRow:
    return StructureRow(
        id=17,
        unique_id="0123",
        numbers=np.array([29, 28], dtype=np.int32),
        positions=np.array([[0.0, 0.0, 0.0], [1.75, 1.75, 0.0]]),
        cell=np.diag([3.5, 3.5, 3.5]),
        pbc=np.array([True, True, True]),
        energy=-7.5,
        free_energy=-7.5,
        forces=FORCES,
        stress=STRESS,
        key_value_pairs={},
    )


def _read_back(**names: str | None) -> ase.Atoms:
    file = io.StringIO()
    for _ in range(2):
        write_structure(
            file,
            _row(),
            energy=-7.5,
            group=names.get("group"),
            config_type=names.get("config_type"),
        )
    file.seek(0)
    first, second = ase.io.read(file, ":", format="extxyz")
    assert first == second
    return first


def _require_labels(atoms: ase.Atoms) -> None:
    assert atoms.info["row_id"] == 17
    assert atoms.get_potential_energy() == -7.5
    np.testing.assert_array_equal(atoms.get_forces(), FORCES)
    np.testing.assert_array_equal(atoms.get_stress(), STRESS)


@settings(max_examples=500)
@given(AWKWARD | st.text(), AWKWARD | st.text())
@example("", "=")
@example("ends with a backslash\\", '\\"')
@example("", "   ")
@example("two\nlines", "_JSON [1]")
@example("\x00", "\x85\u2028")
def test_names_never_damage_labels(group: str, config_type: str) -> None:
    """Backslashes, quotation marks, line breaks, empty texts: a value must not swallow a key."""
    _require_labels(_read_back(group=group, config_type=config_type))


@pytest.mark.parametrize(
    "text", ["t 1", 'a "b" c', "back\\slash", "ends\\", "ü=1, {x}", "it's", "[1,2]", "a=b"]
)
def test_names_come_back(text: str) -> None:
    """As they stand in the database."""
    assert _read_back(group=text).info["group"] == text


def test_rows_without_names_have_none() -> None:
    """Nothing is made up."""
    assert set(_read_back().info) == {"row_id"}
