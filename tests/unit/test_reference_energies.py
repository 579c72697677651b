"""Reference energies: inherited, measured, fitted or configured, in that order."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from mlip_job.dataset.references import (
    ReferenceEnergies,
    automatic_references,
    by_composition,
    configured_references,
    require_references_of_parent,
)
from mlip_job.dataset.validation import IsolatedAtom
from mlip_job.errors import ConfigError, DataError
from tests.datasets import Entry, entries_of

CU, NI, AU = 29, 28, 79


def row(row_id: int, energy: float, **atoms: int) -> Entry:
    numbers = {"Cu": CU, "Ni": NI, "Au": AU}
    composition = tuple(sorted((numbers[symbol], count) for symbol, count in atoms.items()))
    return Entry(row_id, f"{row_id:064x}", None, composition, energy)


def atom(row_id: int, energy: float, element: str = "Cu") -> IsolatedAtom:
    return IsolatedAtom(row_id, element, energy)


ALLOYS = [row(1, -12.0, Cu=4), row(2, -17.0, Cu=3, Ni=2), row(3, -8.0, Ni=2)]
"""Exactly -3 eV per Cu and -4 eV per Ni."""


def automatic(*, training: Sequence[Entry] = ALLOYS, **changes: object) -> ReferenceEnergies:
    """Find the references of rows."""
    entries = entries_of(training)
    arguments: dict[str, object] = {
        "inherited": {},
        "isolated": [],
        "training": by_composition(entries, np.ones(len(entries), dtype=np.bool_)),
        "tolerance": 0.001,
    }
    return automatic_references(("Cu", "Ni"), **(arguments | changes))  # type: ignore[arg-type]


def test_least_squares_finds_additive_energies() -> None:
    """Energies that are sums over atoms are separated exactly."""
    references = automatic()
    assert references.energies == {"Cu": -3.0, "Ni": -4.0}
    assert set(references.sources.values()) == {"least_squares"}
    corrected = references.corrected(entries_of([row(4, -17.5, Cu=3, Ni=2)]))
    assert corrected == pytest.approx([-0.5])


def test_isolated_atoms_come_before_the_fit() -> None:
    """An element with isolated atoms gets their mean; the other one is fitted to the rest."""
    references = automatic(isolated=[atom(8, -3.5), atom(9, -3.5004)])
    assert references.energies["Cu"] == -3.5002
    assert references.sources == {"Cu": "isolated_atom", "Ni": "least_squares"}
    # Ni alone minimises the residuals of E/n: fractions 2/5 and 1.
    expected = (0.4 * (-17.0 + 3 * 3.5002) / 5 + 1.0 * -4.0) / (0.4**2 + 1)
    assert references.energies["Ni"] == pytest.approx(expected, abs=1e-7)


def test_disagreeing_isolated_atoms_are_rejected() -> None:
    """Isolated atoms that differ by more than the tolerance are an error that names the rows."""
    with pytest.raises(DataError, match=r"Cu atoms disagree: row 9 .* row 8"):
        automatic(isolated=[atom(8, -3.5), atom(9, -3.6)])


def test_inherited_energies_are_kept_and_extended() -> None:
    """The parent's energies have priority over isolated atoms; new elements are added."""
    references = automatic(inherited={"Cu": -3.0, "Au": -2.5}, isolated=[atom(8, -9.0)])
    assert references.energies == {"Au": -2.5, "Cu": -3.0, "Ni": -4.0}
    assert references.sources == {"Au": "inherited", "Cu": "inherited", "Ni": "least_squares"}


def test_an_isolated_atom_that_arrives_later_is_named() -> None:
    """The inherited energy stays, since the parent's potential was fitted to it."""
    references = automatic(inherited={"Cu": -3.0, "Ni": -4.0}, isolated=[atom(8, -6.66)])
    assert references.energies["Cu"] == -3.0
    (note,) = references.notes
    assert "isolated Cu atoms have -6.6600 eV" in note
    assert "training.start_from: none" in note
    agreeing = automatic(inherited={"Cu": -3.0, "Ni": -4.0}, isolated=[atom(8, -3.0)])
    assert agreeing.notes == ()


def test_isolated_atoms_replace_inherited_energies_of_no_potential() -> None:
    """Nothing was fitted to the inherited ones, which stay if there are no isolated atoms."""
    references = automatic(
        inherited={"Cu": -3.0, "Ni": -4.0}, isolated=[atom(8, -6.66)], isolated_first=True
    )
    assert references.energies == {"Cu": -6.66, "Ni": -4.0}
    assert references.sources == {"Cu": "isolated_atom", "Ni": "inherited"}
    (note,) = references.notes
    assert "-6.6600 eV, and no longer -3.0000 eV" in note


def test_what_fitted_energies_mean_is_noted() -> None:
    """Energies relative to the training structures are no cohesive energies."""
    assert "not to isolated atoms" in automatic().notes[0]
    mixed = automatic(isolated=[atom(8, -3.5)])
    assert "energies of compounds mix both" in mixed.notes[0]
    assert automatic(isolated=[atom(8, -3.0), atom(9, -4.0, "Ni")]).notes == ()


def test_undetermined_energies_stay_so_when_they_are_inherited() -> None:
    """A later generation can separate them, and needs this information."""
    first = automatic(training=[row(1, -14.0, Cu=2, Ni=2)])
    assert set(first.sources.values()) == {"undetermined"}
    second = automatic(inherited=first.energies, undetermined=["Cu", "Ni"])
    assert second.energies == first.energies
    assert set(second.sources.values()) == {"undetermined"}


def test_other_energies_than_those_of_the_start_are_rejected() -> None:
    """Also zero: the potential that the fit starts from was fitted to others."""
    zero = configured_references(0, ["Cu"])
    with pytest.raises(ConfigError, match="starts from has -3"):
        require_references_of_parent(zero, {"Cu": -3.0})
    require_references_of_parent(configured_references({"Cu": -3.0}, ["Cu"]), {"Cu": -3.0})


def test_one_composition_gets_the_smallest_solution_and_a_note() -> None:
    """If compositions can't separate elements, the fit is still exact, and the record says so."""
    references = automatic(training=[row(1, -7.0, Cu=1, Ni=1), row(2, -14.0, Cu=2, Ni=2)])
    assert references.energies == {"Cu": -3.5, "Ni": -3.5}
    assert "Cu, Ni" in references.notes[0]


def test_order_of_rows_does_not_matter() -> None:
    """The fit gives the same numbers, to the last bit, in any order of its rows."""
    rows = [row(n, -3.1 * (n % 5 + 1) - 4.7 * (n % 3) + 0.01 * n, Cu=n % 5 + 1) for n in range(40)]
    assert automatic(training=rows[::-1]) == automatic(training=rows)


def test_configured_energies() -> None:
    """Configured energies are used unchanged; 0 is zero for all."""
    assert configured_references({"Cu": -1.0, "Ni": -2.0}, ("Cu",)).energies == {"Cu": -1.0}
    zero = configured_references(0, ("Cu", "Ni"))
    assert zero.energies == {"Cu": 0.0, "Ni": 0.0}
    assert set(zero.sources.values()) == {"configured"}
