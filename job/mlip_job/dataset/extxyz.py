"""Extended XYZ files that ``ase.io.read`` reads with energy, forces and stress.

The format: https://github.com/libAtoms/extxyz, in ASE's dialect.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TextIO

from ase.calculators.singlepoint import SinglePointCalculator
from ase.io.extxyz import key_val_dict_to_str, key_val_str_to_dict, write_xyz

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
        Written into the comment line with the row id, under these names; left out where ASE
        could not read the line with them (the index of the dataset has them all).
    """
    atoms = row.atoms()
    atoms.info["row_id"] = row.id
    for name, text in (("config_type", config_type), ("group", group)):
        written = _as_ase_writes_it(text or "")
        if _comes_back(name, written):
            atoms.info[name] = written
    atoms.calc = SinglePointCalculator(atoms, energy=energy, forces=row.forces, stress=row.stress)
    write_xyz(file, [atoms])


def _as_ase_writes_it(text: str) -> str:
    """Return a text that comes back from ASE as it was, but for white space.

    ASE quotes and escapes quotation marks, but not backslashes; a line break would end the comment
    line, and an empty value would swallow the key behind it.
    """
    printable = "".join(character if character.isprintable() else " " for character in text)
    return " ".join(printable.split()).replace("\\", "\\\\")


def _comes_back(name: str, text: str) -> bool:
    """Tell whether ASE reads a line with this value as it stands; a lone "=" swallows a key."""
    written = key_val_dict_to_str({name: text, "row_id": 1})
    return bool(text) and set(key_val_str_to_dict(written)) == {name, "row_id"}
