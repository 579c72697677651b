"""What the published file costs whoever simulates with it, measured on this machine."""

from __future__ import annotations

import math
import time
from itertools import islice
from statistics import median
from typing import TYPE_CHECKING

from mlip_job.dataset.xyz import parse
from mlip_job.evaluation.results import Speed
from mlip_job.runtime.environment import cpu_model

if TYPE_CHECKING:
    from collections.abc import Iterable

    from mlip_job.evaluation.potential import Potential

_STRUCTURES = 20  # at most, spread evenly over the set
_ATOMS = 500  # about
_REPEATS = 5
_SECONDS = 1.0  # after which no further repeat begins


def measure_speed(
    potential: Potential, texts: Iterable[str], *, structures: int, atoms: int
) -> Speed:
    """Evaluate some structures of a set again and again; return the median of what that takes.

    CPU time of this thread is counted, so that other work on the machine hardly matters. Structures
    of the dataset have the density, and so the neighbours per atom, of what is simulated.

    Parameters
    ----------
    potential
        To be measured.
    texts
        Of the structures of the set.
    structures, atoms
        How many there are.
    """
    wanted = max(1, min(_STRUCTURES, int(_ATOMS * structures / atoms)))
    step = math.ceil(structures / wanted)
    evaluated = [parse(block).atoms for block in islice(texts, 0, None, step)]
    seconds: list[float] = []
    started = time.monotonic()
    potential.evaluator_seconds(evaluated[0])  # the first call of all allocates memory
    while not seconds or (len(seconds) < _REPEATS and time.monotonic() - started < _SECONDS):
        seconds.append(sum(map(potential.evaluator_seconds, evaluated)))
    counted = sum(map(len, evaluated))
    return Speed(
        evaluator_us_per_atom=1e6 * median(seconds) / counted,
        structures=len(evaluated),
        atoms=counted,
        repeats=len(seconds),
        cpu=cpu_model(),
    )
