"""What a selection found: its criteria, and every candidate by rank."""

from __future__ import annotations

from mlip_job.models import Frozen


class Criteria(Frozen):
    """What is asked of candidates.

    Attributes
    ----------
    count
        At most so many are chosen; None is no limit.
    min_grade
        Only candidates with a higher extrapolation grade.
    max_grade
        Only candidates with a grade up to this: beyond a few tens a structure may be broken.
    """

    count: int | None = None
    min_grade: float = 1.0
    max_grade: float | None = None

    def admit(self, grade: float) -> bool:
        """Tell whether a candidate of this grade may be chosen."""
        return grade > self.min_grade and (self.max_grade is None or grade <= self.max_grade)


class RankedCandidate(Frozen):
    """One candidate.

    Attributes
    ----------
    id
        Row id in the database, or position in the file, counted from 0.
    extrapolation_grade
        Largest grade of its atoms.
    new_environments
        So many of its atoms would enter the active set.
    chosen
        Whether it is among the chosen ones.
    """

    id: int
    formula: str
    atoms: int
    extrapolation_grade: float
    new_environments: int = 0
    chosen: bool = False


class Selection(Frozen):
    """The outcome.

    Attributes
    ----------
    source
        Where the candidates came from, without secrets.
    skipped
        Ids of those that can't be graded or trained on, by reason.
    candidates
        All others, the highest grade first.
    """

    family: str
    generation: int
    source: str
    criteria: Criteria
    skipped: dict[str, tuple[int, ...]]
    candidates: tuple[RankedCandidate, ...]

    @property
    def admitted(self) -> int:
        """Number of candidates whose grade the criteria admit."""
        return sum(self.criteria.admit(c.extrapolation_grade) for c in self.candidates)

    @property
    def above(self) -> int:
        """Number of candidates whose grade is above the largest that is admitted."""
        most = self.criteria.max_grade
        return 0 if most is None else sum(c.extrapolation_grade > most for c in self.candidates)

    @property
    def chosen(self) -> tuple[RankedCandidate, ...]:
        """Those that were chosen, the highest grade first."""
        return tuple(c for c in self.candidates if c.chosen)
