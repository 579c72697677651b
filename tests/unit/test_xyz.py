"""Extended XYZ files: ASE and `xyz` read back every number and every label."""

from __future__ import annotations

import io
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import ase.io
import numpy as np
import pytest
from ase import Atoms
from ase.build import molecule
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mlip_job.dataset.rows import StructureRow, Structures
from mlip_job.dataset.xyz import (
    count_atoms,
    label,
    parse,
    read_blocks,
    read_structures,
    row_id,
    structures_text,
)
from mlip_job.errors import IntegrityError
from tests import reference
from tests.datasets import labelled_rows, xyz_of_row
from tests.support import rattled, with_emt

FORCES = np.array([[0.25, -0.5, 0.125], [-0.25, 0.5, -0.125]])
AWKWARD = st.text("=\"'\\\\ ,:;[]{}()_JSONTF01.-", max_size=6)
STRESS = np.array([0.5, 0.25, 0.125, 0.0, -0.25, -0.5])


def _row() -> StructureRow:
    return StructureRow(
        id=17,
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
        file.write(xyz_of_row(_row(), -7.5, names.get("group"), names.get("config_type")))
    file.seek(0)
    first, second = ase.io.read(file, ":", format="extxyz")
    assert first == second
    return first


def _require_labels(atoms: ase.Atoms) -> None:
    assert atoms.info["row_id"] == 17
    assert atoms.get_potential_energy() == -7.5
    np.testing.assert_array_equal(atoms.get_forces(), FORCES)
    np.testing.assert_array_equal(atoms.get_stress(), STRESS)


@settings(max_examples=150)
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
def test_names_are_read_back_from_text(text: str) -> None:
    assert _read_back(group=text).info == {"row_id": 17, "group": text}


DOUBLES = st.floats(allow_nan=False, allow_infinity=False, width=64)
CELLS = st.sampled_from(
    [np.zeros((3, 3)), np.eye(3) * 5.0, np.array([[0.0, 4, 4], [4, 0, 4], [4, 4, 0]]),
     np.array([[1 / 3, 0.0, -0.0], [1e-17, 7.0, 0.1], [0.0, 1e-5, 1e16]])]
)  # fmt: skip


@st.composite
def rows(draw: st.DrawFn) -> StructureRow:
    atoms = draw(st.integers(1, 4))
    numbers = draw(st.lists(st.integers(1, 118), min_size=atoms, max_size=atoms))
    positions, forces = (
        np.array(draw(st.lists(DOUBLES, min_size=3 * atoms, max_size=3 * atoms))).reshape(-1, 3)
        for _ in range(2)
    )
    stress = draw(st.none() | st.lists(DOUBLES, min_size=6, max_size=6))
    cell = draw(CELLS)
    return StructureRow(
        id=draw(st.integers(1, 2**40)),
        numbers=np.array(numbers, dtype=np.int32),
        positions=positions,
        cell=cell,
        pbc=np.full(3, bool(cell.any()) and draw(st.booleans())),
        energy=draw(DOUBLES),
        free_energy=None,
        forces=forces,
        stress=None if stress is None else np.array(stress),
        key_value_pairs={},
    )


def _named(drawn: list[StructureRow], config_type: str | None, group: str | None) -> Structures:
    names = {"config_type": config_type, "group": group}
    named = [replace(row, key_value_pairs=names) for row in drawn]
    return Structures.of_rows(named).right_handed()


@settings(max_examples=80)
@given(st.lists(rows(), min_size=1, max_size=4), AWKWARD | st.text(), AWKWARD | st.text())
def test_numbers_are_read_back_to_the_last_bit(
    drawn: list[StructureRow], config_type: str, group: str
) -> None:
    """By ASE and by this package: denormals, huge ones, negative zeros."""
    structures = _named(drawn, config_type, group)
    data = structures_text(structures)
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "train.xyz"
        path.write_bytes(data)
        (found,) = read_structures(path)
    assert [pairs["config_type"] for pairs in found.pairs] == [label(config_type)] * len(drawn)
    for name in ("ids", "starts", "numbers", "positions", "forces", "cells", "pbc", "energies"):
        reference.require_same_array(getattr(found, name), getattr(structures, name))
    read = ase.io.read(io.StringIO(data.decode()), ":", format="extxyz")
    for index, atoms in enumerate(read):
        row = structures.row(index)
        assert atoms.info["row_id"] == row.id
        assert atoms.numbers.tolist() == row.numbers.tolist()
        assert atoms.pbc.tolist() == row.pbc.tolist()
        assert row.energy is not None
        assert float(atoms.calc.results["energy"]).hex() == float(row.energy).hex()
        stress = atoms.calc.results.get("stress")
        reference.require_same_array(stress, row.stress)
        reference.require_same_array(atoms.positions, row.positions)
        reference.require_same_array(atoms.calc.results["forces"], row.forces)
        reference.require_same_array(atoms.cell.array, row.cell)


# Reading one by one


def _row_of(number: int, atoms: Atoms) -> StructureRow:
    (row,) = labelled_rows([atoms])
    return replace(row, id=number, stress=atoms.calc.results.get("stress"))


def _text(number: int, atoms: Atoms, config_type: str | None = None) -> str:
    return xyz_of_row(_row_of(number, atoms), -1.5 * number, None, config_type)


def test_structures_are_read_back_one_by_one(tmp_path: Path) -> None:
    """Like ASE's reading of all at once: crystals with stress, a molecule without cell."""
    structures = [*rattled(3, symbols=("Cu", "Au")), with_emt(molecule("CH4"))]
    path = tmp_path / "train.xyz"
    path.write_text("".join(_text(n, atoms) for n, atoms in enumerate(structures, start=11)))
    blocks = list(read_blocks(path))
    assert "".join(blocks) == path.read_text()
    assert [count_atoms(block) for block in blocks] == [4, 4, 4, 5]
    for block, expected in zip(blocks, ase.io.read(path, ":"), strict=True):
        found = parse(block)
        assert found.row_id == row_id(block) == expected.info["row_id"]
        assert found.energy == expected.get_potential_energy() == -1.5 * found.row_id
        assert found.atoms == expected
        assert found.atoms.calc is None
        np.testing.assert_array_equal(found.forces, expected.get_forces())
        if expected.pbc.all():
            assert found.stress is not None
            np.testing.assert_array_equal(found.stress, expected.get_stress())
        else:
            assert found.stress is None


@pytest.mark.parametrize(
    "name",
    ["two words", "001", "1e5", "T", "1 2 3", 'so-called "bulk"', "a\\b", "größe", "x_id=3", None],
)
def test_config_types_are_read_back_unchanged(name: str | None) -> None:
    """ASE would read some of them as numbers, arrays or booleans."""
    block = _text(1, rattled(1)[0], config_type=name)
    block = block.replace("row_id=1", "row_id=1 my_config_type=x")
    assert parse(block).config_type == name


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda text: "".join(text.splitlines(keepends=True)[:-2]), "is truncated"),
        (lambda text: text + "something else\n", "is no extended XYZ file: 'something else"),
    ],
    ids=["truncated", "a line too many"],
)
def test_damage_is_named(tmp_path: Path, damage: Callable[[str], str], message: str) -> None:
    path = tmp_path / "test.xyz"
    path.write_text(damage(_text(1, rattled(1)[0]) * 2))
    with pytest.raises(IntegrityError, match=message):
        list(read_blocks(path))
