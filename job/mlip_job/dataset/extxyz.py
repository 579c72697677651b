"""Extended XYZ files that ``ase.io.read`` reads with energy, forces and stress.

The format: https://github.com/libAtoms/extxyz, in ASE's dialect.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TextIO

from ase.calculators.singlepoint import SinglePointCalculator
from ase.io.extxyz import write_xyz

if TYPE_CHECKING:
    from mlip_job.dataset.row import StructureRow


def write_structure(
    file: TextIO, row: StructureRow, *, energy: float, group: str | None, config_type: str | None
) -> None:
    """Append one structure.

    Parameters
    ----------
    file
        Open for text.
    row
        Its forces (eV/Å) and stress (eV/Å³) are written with it. Its other key_value_pairs are
        not: the dataset's identity is made of these files, and a remark added to a row of the
        database makes no other dataset.
    energy
        eV, the energy that is trained on.
    group, config_type
        Written into the comment line with the row id, under these names.
    """
    atoms = row.atoms()
    atoms.info["row_id"] = row.id
    if config_type is not None:
        atoms.info["config_type"] = _one_line(config_type)
    if group is not None:
        atoms.info["group"] = _one_line(group)
    atoms.calc = SinglePointCalculator(atoms, energy=energy, forces=row.forces, stress=row.stress)
    write_xyz(file, [atoms])


def _one_line(text: str) -> str:
    """Join the lines of a text: ASE quotes what it must, but a line break ends the comment."""
    return " ".join(text.split())
