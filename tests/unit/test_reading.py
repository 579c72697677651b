"""The structures of a dataset come back from its files as they were written."""

from __future__ import annotations

from typing import TYPE_CHECKING

import ase.io
import numpy as np
import pytest
from ase.build import molecule

from mlip_job.dataset.reading import count_atoms, parse, read_blocks, row_id
from mlip_job.dataset.row import StructureRow
from mlip_job.errors import IntegrityError
from tests.datasets import xyz_of_row
from tests.support import rattled

if TYPE_CHECKING:
    from pathlib import Path

    from ase import Atoms


def _row(number: int, atoms: Atoms) -> StructureRow:
    results = atoms.calc.results if atoms.calc else {"forces": np.full((len(atoms), 3), 0.25)}
    return StructureRow(
        id=number,
        unique_id="",
        numbers=atoms.numbers,
        positions=atoms.positions,
        cell=np.array(atoms.cell),
        pbc=atoms.pbc,
        energy=None,
        free_energy=None,
        forces=results["forces"],
        stress=results.get("stress"),
        key_value_pairs={},
    )


def _text(number: int, atoms: Atoms, config_type: str | None = None) -> str:
    return xyz_of_row(_row(number, atoms), -1.5 * number, None, config_type)


def test_structures_come_back_one_by_one(tmp_path: Path) -> None:
    """As ASE reads them all at once: crystals with stress, a molecule without cell."""
    structures = [*rattled(3, symbols=("Cu", "Au")), molecule("CH4")]
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
    [
        "bulk",
        "two words",
        "001",
        "1e5",
        "T",
        "1 2 3",
        'so-called "bulk"',
        "a\\b",
        "größe",
        "x_id=3",
    ],
)
def test_config_types_come_back_as_they_were(name: str) -> None:
    """ASE would read some of them as numbers, arrays or truth values."""
    assert parse(_text(1, rattled(1)[0], config_type=name)).config_type == name


def test_a_structure_may_have_no_config_type() -> None:
    """Then it has none, also where another key ends alike."""
    block = _text(1, rattled(1)[0]).replace("row_id=1", "row_id=1 my_config_type=x")
    assert parse(block).config_type is None


def test_a_file_that_is_cut_short_is_damage(tmp_path: Path) -> None:
    """Lines that are missing are noticed; the rest is not taken for another structure."""
    lines = (_text(1, rattled(1)[0]) * 2).splitlines(keepends=True)
    path = tmp_path / "test.xyz"
    path.write_text("".join(lines[:-2]))
    with pytest.raises(IntegrityError, match="is cut short"):
        list(read_blocks(path))


def test_what_is_no_structure_is_damage(tmp_path: Path) -> None:
    """Such as a line too many."""
    path = tmp_path / "test.xyz"
    path.write_text(_text(1, rattled(1)[0]) + "something else\n")
    with pytest.raises(IntegrityError, match="is no extended XYZ file: 'something else"):
        list(read_blocks(path))
