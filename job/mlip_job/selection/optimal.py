"""D-optimality: which atoms' surroundings would enlarge the active set most.

The active set is a square matrix, one row of basis functions per atom, whose determinant is as
large as the data allow. Candidates that get a place in it, when it may be chosen anew from its own
rows and theirs, are what the data lacked. This is what ``pace_select`` does; here the candidates
come as a stream.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import numpy as np
from pyace.activelearning import compute_A_active_inverse, compute_active_set

from mlip_job.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mlip_job.dataset.row import FloatArray
    from mlip_job.selection.grading import IndexArray

_TRAINED_ON = -1
"""Owner of the rows that the active set had before."""

_TOLERANCE = 1.01  # as pace_activeset and pace_select have it
_MAX_SWAPS = 10_000
_BUFFER_BYTES = 256 * 2**20


class ActiveSetExtension:
    """An active set that candidates may enter.

    Rows of candidates are collected up to a limit of memory, and then the active set is chosen
    anew from its own rows and those; what got no place is forgotten. Below the limit that is one
    choice, beyond it the one that is made batch by batch.

    Parameters
    ----------
    inverse
        Inverted active set of each element.
    buffer_bytes
        How much is collected.
    """

    def __init__(
        self, inverse: Mapping[int, FloatArray], *, buffer_bytes: int = _BUFFER_BYTES
    ) -> None:
        self._rows: dict[int, FloatArray] = compute_A_active_inverse(dict(inverse))
        self._owners = {n: np.full(len(rows), _TRAINED_ON) for n, rows in self._rows.items()}
        self._waiting: dict[int, list[FloatArray]] = {n: [] for n in self._rows}
        self._waiting_owners: dict[int, list[IndexArray]] = {n: [] for n in self._rows}
        self._waiting_bytes = 0
        self._limit = buffer_bytes

    def add(self, element: int, projections: FloatArray, owners: IndexArray) -> None:
        """Let atoms of one element compete; `owners` are the numbers of their structures."""
        if len(projections):
            self._waiting[element].append(projections)
            self._waiting_owners[element].append(owners)
            self._waiting_bytes += projections.nbytes

    @property
    def is_full(self) -> bool:
        """Whether so much is collected that it is time to `settle`."""
        return self._waiting_bytes > self._limit

    def settle(self) -> None:
        """Choose the active set anew; the collected rows that got no place are forgotten.

        Raises
        ------
        DataError
            If the active set is singular, so that nothing can be compared with it.
        """
        for element, waiting in self._waiting.items():
            if waiting:
                self._settle(element, np.vstack(waiting))
                waiting.clear()
                self._waiting_owners[element].clear()
        self._waiting_bytes = 0

    def _settle(self, element: int, projections: FloatArray) -> None:
        owners = np.hstack(self._waiting_owners[element])
        try:
            rows, chosen = compute_active_set(
                {element: projections},
                {element: owners},
                tol=_TOLERANCE,
                max_iters=_MAX_SWAPS,
                extra_A0_projections_dict={element: self._rows[element]},
                extra_structure_ind_dict={element: self._owners[element]},
            )
        except ValueError as error:
            raise DataError(
                f"candidates can't be compared with the active set: {error}",
                hint="it may come from too few structures for so many functions",
            ) from None
        self._rows[element], self._owners[element] = rows[element], chosen[element]

    def places(self) -> Counter[int]:
        """Count, by structure, how many of its atoms have a place, where any has."""
        counts: Counter[int] = Counter()
        for owners in self._owners.values():
            counts.update(int(owner) for owner in owners)
        counts.pop(_TRAINED_ON, None)
        return counts
