"""What the published file costs whoever simulates with it, measured on this machine."""

from __future__ import annotations

import math
import time
from itertools import islice
from statistics import median
from typing import TYPE_CHECKING

from mlip_job.dataset.reading import parse
from mlip_job.environment import cpu_model
from mlip_job.evaluation.results import Speed

if TYPE_CHECKING:
    from collections.abc import Iterable

    from mlip_job.dataset.record import DatasetRecord
    from mlip_job.evaluation.potential import Potential

_STRUCTURES = 20  # at most, spread evenly over the test set
_ATOMS = 500  # about
_REPEATS = 5
_SECONDS = 1.0  # after which no further repeat begins


def measure_speed(potential: Potential, record: DatasetRecord, test: Iterable[str]) -> Speed:
    """Evaluate some test structures again and again; return the median of what that takes.

    CPU time of this thread is counted, so that other work on the machine hardly matters. Structures
    of the test set have the density, and so the neighbours per atom, of what is simulated.

    Parameters
    ----------
    potential
        To be measured.
    record
        Of the dataset.
    test
        The texts of its test structures.
    """
    mean_atoms = record.atoms.test / record.counts.test
    wanted = max(1, min(_STRUCTURES, int(_ATOMS / mean_atoms)))
    step = math.ceil(record.counts.test / wanted)
    structures = [parse(block).atoms for block in islice(test, 0, None, step)]
    atoms = sum(map(len, structures))
    seconds: list[float] = []
    started = time.monotonic()
    potential.evaluator_seconds(structures[0])  # the first call of all allocates memory
    while not seconds or (len(seconds) < _REPEATS and time.monotonic() - started < _SECONDS):
        seconds.append(sum(map(potential.evaluator_seconds, structures)))
    return Speed(
        evaluator_us_per_atom=1e6 * median(seconds) / atoms,
        structures=len(structures),
        atoms=atoms,
        repeats=len(seconds),
        cpu=cpu_model(),
    )
