"""What a selection admits, and how many it leaves out as broken."""

from __future__ import annotations

from mlip_job.selection.candidates import Criteria, RankedCandidate, Selection


def test_candidates_above_the_largest_grade_are_counted() -> None:
    """They are neither admitted nor too well known to be chosen."""
    grades = (4000.0, 25.1, 25.0, 3.0, 0.9)
    selection = Selection(
        family="cu",
        generation=1,
        source="candidates.xyz",
        criteria=Criteria(max_grade=25.0),
        skipped={},
        candidates=tuple(
            RankedCandidate(id=number, formula="Cu", atoms=1, extrapolation_grade=grade)
            for number, grade in enumerate(grades)
        ),
    )
    assert (selection.above, selection.admitted) == (2, 2)
    every = selection.model_copy(update={"criteria": Criteria()})
    assert (every.above, every.admitted) == (0, 4)
