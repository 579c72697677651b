"""A generation and its predecessor on the same test structures."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from mlip_job.dataset.xyz import read_blocks, row_id
from mlip_job.evaluation.errors import SetTally
from mlip_job.evaluation.measured import Models, Task
from mlip_job.evaluation.processes import Measurers
from mlip_job.evaluation.results import ErrorPair, ParentComparison

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping
    from pathlib import Path

    from mlip_job.evaluation.tally import ErrorTally


@dataclass(frozen=True)
class Predecessor:
    """The generation that a new one is compared with.

    Attributes
    ----------
    generation
        Its number.
    potential
        Its published ``.yace``.
    reference_energies
        eV per atom, that its energies lack.
    common_test_rows
        Rows that are test rows for both generations.
    """

    generation: int
    potential: Path
    reference_energies: Mapping[str, float]
    common_test_rows: frozenset[int]


def compare(
    predecessor: Predecessor,
    models: Models,
    structures: Path,
    *,
    left_out: Collection[int],
    atoms: int,
    cores: int,
    look: Callable[[int], None],
) -> ParentComparison | None:
    """Evaluate both potentials on the structures that are test for both; None if there are none.

    What is in the predecessor's test set is made of elements that it knows.

    Parameters
    ----------
    predecessor
        The older one.
    models
        The newer one.
    structures, left_out, atoms
        The newer one's test set, the rows of it that don't count, and how many atoms it has.
    cores
        Most processes.
    look
        Called with the number of structures measured since the last call.
    """
    rows = predecessor.common_test_rows.difference(left_out)
    old, new = SetTally(), SetTally()
    older = Models(predecessor.potential, predecessor.reference_energies)
    newer = Models(models.artefact, models.reference_energies)
    for which, tally in ((older, old), (newer, new)):
        with Measurers(which, atoms=atoms, cores=cores) as measurers:
            tasks = (Task(b, doubly=False) for b in read_blocks(structures) if row_id(b) in rows)
            for batch in measurers.measure(tasks):
                tally.add_all(batch.measured)
                look(len(batch.measured))
    if new.structures == 0:
        return None
    return ParentComparison(
        generation=predecessor.generation,
        structures=new.structures,
        energy_mev_per_atom=_pair(old.energy, new.energy),
        force_mev_per_angstrom=_pair(old.force, new.force),
    )


def _pair(old: ErrorTally, new: ErrorTally) -> ErrorPair:
    change = new.rmse / old.rmse - 1 if old.rmse > 0 else None
    return ErrorPair(old=old.rmse, new=new.rmse, change=change)
