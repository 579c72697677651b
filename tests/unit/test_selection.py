"""Candidates are ranked by GRACE/FS potentials as by their calculator, alone or as a committee."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import ase.io
import numpy as np
import pandas as pd
import pytest
from ase import Atoms

from mlip_job.evaluation.potential import Potential
from mlip_job.selection import (
    CandidateSelector,
    Criteria,
    FileCandidates,
    Grader,
    GradeSelector,
    RankedCandidate,
    SpreadSelector,
    force_spread,
)
from mlip_job.training.programs import write_active_set
from tests.support import rattled

GRACE = Path(__file__).parents[1] / "data" / "grace" / "FS_model.yaml"
SQUEEZED = 0.9
BY_SPREAD = {"by": "committee", "min_grade": None}


@pytest.fixture(scope="module")
def structures() -> list[Atoms]:
    """Return a dimer, as the first one, ordinary structures, a squeezed one, and one of nickel."""
    near = rattled(4, seed=5)
    squeezed = rattled(1, seed=6)[0]
    squeezed.set_cell(SQUEEZED * squeezed.cell, scale_atoms=True)
    dimer, nickel = Atoms("Cu2", [[0, 0, 0], [0, 0, 2.5]]), Atoms("Ni2", [[0, 0, 0], [0, 0, 2.5]])
    return [dimer, *near, squeezed, nickel]


def ranked(
    selector: CandidateSelector, structures: list[Atoms], directory: Path
) -> tuple[RankedCandidate, ...]:
    for atoms in structures:
        atoms.calc = None
    ase.io.write(directory / "candidates.xyz", structures, format="extxyz")
    found, rows = selector.run(FileCandidates(directory / "candidates.xyz"), "cu", 1)
    assert found.skipped == {"element that the potential lacks: Ni": (len(structures) - 1,)}
    assert [row.id for row in rows] == [candidate.id for candidate in found.chosen]
    scores = [candidate.score for candidate in found.candidates]
    assert scores == sorted(scores, reverse=True)
    return found.candidates


def test_grades_of_grace_are_those_of_its_calculator(
    structures: list[Atoms], tmp_path: Path
) -> None:
    """Also of a dimer that comes first, at which an unprepared evaluator crashes."""
    potential = tmp_path / GRACE.name
    shutil.copy(GRACE, potential)
    training = rattled(12, seed=3)
    frame = {"ase_atoms": [atoms.copy() for atoms in training]}
    frame["forces"] = [atoms.get_forces() for atoms in training]
    pd.DataFrame(frame).to_pickle(tmp_path / "set.pkl.gz", compression="gzip")
    active_set = write_active_set(potential, [tmp_path / "set.pkl.gz"])
    selector = GradeSelector(Grader(potential, active_set), Criteria(), print)
    found = {candidate.id: candidate for candidate in ranked(selector, structures, tmp_path)}
    graded = Potential(potential, active_set)
    for number, atoms in enumerate(structures[:-1]):
        expected = graded.predict(atoms, "a candidate").grade
        assert found[number].extrapolation_grade == pytest.approx(expected, rel=1e-5)
        assert found[number].chosen == (found[number].new_environments > 0)
    assert found[0].chosen
    assert found[5].chosen


@pytest.fixture(scope="module")
def committee(tmp_path_factory: pytest.TempPathFactory) -> list[Potential]:
    directory = tmp_path_factory.mktemp("committee")
    text, members = GRACE.read_text(), []
    (scale,) = re.findall(r"^scale: (\S+)", text, flags=re.MULTILINE)
    for number, factor in enumerate((1.0, 0.9, 1.2)):
        path = directory / f"{number}.yaml"
        path.write_text(text.replace(f"\nscale: {scale}", f"\nscale: {factor * float(scale)}"))
        members.append(Potential(path))
    return members


def test_a_committee_ranks_by_the_spread_of_its_forces(
    structures: list[Atoms], committee: list[Potential], tmp_path: Path
) -> None:
    """The standard deviation of forces in a constant ratio is that of the factors times a norm."""
    low, high = 20.0, 5000.0
    limits = {"min_spread_mev_per_angstrom": low, "max_spread_mev_per_angstrom": high}
    criteria = Criteria(**BY_SPREAD, **limits)
    candidates = ranked(SpreadSelector(committee, criteria, print), structures, tmp_path)
    deviation = float(np.std([1.0, 0.9, 1.2]))
    for candidate in candidates:
        atoms = structures[candidate.id]
        own = committee[0].predict(atoms, "a candidate")
        largest = np.linalg.norm(own.forces, axis=1).max()
        assert candidate.force_spread_mev_per_angstrom == pytest.approx(1000 * deviation * largest)
        energy = 1000 * deviation * abs(own.energy) / len(atoms)
        assert candidate.energy_spread_mev_per_atom == pytest.approx(energy)
        assert candidate.chosen == (low < 1000 * deviation * largest <= high)
        assert candidate.extrapolation_grade is None
    assert {candidate.chosen for candidate in candidates} == {True, False}


def test_a_count_takes_the_largest_spreads(
    structures: list[Atoms], committee: list[Potential], tmp_path: Path
) -> None:
    criteria = Criteria(**BY_SPREAD, count=2)
    candidates = ranked(SpreadSelector(committee, criteria, print), structures, tmp_path)
    assert [candidate.chosen for candidate in candidates] == [
        True,
        True,
        False,
        False,
        False,
        False,
    ]


def test_the_spread_is_that_of_the_most_uncertain_atom() -> None:
    """By the definition: the norm of the standard deviation of its force."""
    first = np.array([[0.0, 0.0, 0.0], [1.0, 0.0, 0.0]])
    second = np.array([[0.0, 0.0, 1.0], [1.0, 3.0, 4.0]])
    assert force_spread([first, second]) == pytest.approx(2.5)
    assert force_spread([first, first]) == 0
