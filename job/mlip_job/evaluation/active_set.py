"""The active set of a potential, for extrapolation grades: made by pacemaker's own program.

An active set spans the local environments of the training data; an environment with a grade above
1 lies outside of it. Y. Lysogorskiy et al., Phys. Rev. Materials 7, 043801 (2023).
"""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, Literal

from mlip_job.dataset.xyz import parse, read_blocks
from mlip_job.errors import TrainingError
from mlip_job.evaluation.potential import Potential
from mlip_job.training.pacemaker.programs import write_active_set

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

# Training structures have grades up to 1.01 by construction, somewhat more where the data was taken
# in batches. A set from a singular matrix gives 1e15, as python-ace 0.4.0rc1 makes with --full.
_USELESS_GRADE = 1e3
_LOOKED_AT = 20


def make_active_set(
    potential: Path,
    frames: Sequence[str],
    structures: Path,
    kind: Literal["linear", "full"],
    target: Path,
) -> None:
    """Make the active set of a potential from its training data.

    Parameters
    ----------
    potential
        In B-basis; the program works in its directory.
    frames
        Pacemaker's data frames of the training data, relative to that directory.
    structures
        The same data as extended XYZ, to try the active set on.
    kind
        ``linear``, or ``full`` for one over all densities.
    target
        File that is written.

    Raises
    ------
    TrainingError
        If the program fails, or what it made is of no use.
    """
    written = write_active_set(potential, frames, kind)
    _require_useful(potential, written, structures)
    written.replace(target)


def _require_useful(potential: Path, active_set: Path, structures: Path) -> None:
    graded = Potential(potential, active_set)
    for block in islice(read_blocks(structures), _LOOKED_AT):
        structure = parse(block)
        grade = graded.ask(structure.atoms, f"row {structure.row_id}").grade
        if grade is None or not grade < _USELESS_GRADE:
            raise TrainingError(
                f"pace_activeset made a singular active set: row {structure.row_id}, which it is "
                f"made from, gets the extrapolation grade {grade:.3g}"
            )
