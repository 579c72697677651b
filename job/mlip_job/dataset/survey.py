"""A first look into a database: what a configuration for it would say."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from ase.data import chemical_symbols
from pydantic import ValidationError

from mlip_job.config.models import DatabaseConfig
from mlip_job.dataset.database import PAGE, Selected, StructureDatabase
from mlip_job.dataset.fitness import count_force_components
from mlip_job.dataset.keys import KeyProposal, propose_keys
from mlip_job.dataset.row import StructureRow
from mlip_job.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from mlip_job.dataset.row import FloatArray


@dataclass(frozen=True)
class Sample:
    """What some rows of a selection tell of all of them.

    Attributes
    ----------
    selected, looked_at
        Rows of the selection, and those that were looked at.
    force_components
        That do not vanish, of all rows: counted, or estimated from those looked at.
    elements
        Sorted.
    periodic
        Whether any row is.
    force_rms_ev
        Root mean square of the force components, eV/Å; 0 where none is known.
    pairs
        The key_value_pairs of those that are complete.
    """

    selected: int
    looked_at: int
    force_components: int
    elements: tuple[str, ...]
    periodic: bool
    force_rms_ev: float = 0.0
    pairs: Sequence[Mapping[str, Any]] = ()


@dataclass(frozen=True)
class Survey:
    """What was found.

    Attributes
    ----------
    statuses
        Number of rows of each status.
    selection
        ASE selection string for the finished rows.
    sample
        What that selection holds.
    keys
        Which keys its rows are grouped, typed or split by.
    """

    statuses: Mapping[str, int]
    selection: str
    sample: Sample
    keys: KeyProposal


def survey(url: str) -> Survey:
    """Look into the database at `url`.

    Raises
    ------
    ConfigError, DatabaseError
        If the URL holds a password, or the database can't be read.
    """
    try:
        config = DatabaseConfig(url=url, select="")
    except ValidationError as error:
        problem = error.errors(include_url=False, include_input=False)[0]["msg"]
        raise ConfigError(f"the database URL {problem.removeprefix('Value error, ')}") from None
    with StructureDatabase(config) as database:
        statuses = dict(database.count_by_status())
    finished = [s for s in statuses if s.lower() in ("completed", "complete", "done", "finished")]
    selection = f"status={finished[0]}" if finished else ""
    selected = config.model_copy(update={"select": selection})
    sample = look_at(selected)
    keys = propose_keys([look_at(selected, consecutive=True).pairs, sample.pairs])
    return Survey(statuses, selection, sample, keys)


def look_at(config: DatabaseConfig, *, consecutive: bool = False) -> Sample:
    """Read a page of rows, taken evenly from all that are selected, or the first ones.

    Raises
    ------
    ConfigError, DatabaseError
        If the database can't be read.
    """
    with StructureDatabase(config) as database:
        selected = database.select()
        step = 1 if consecutive else -(-len(selected.ids) // PAGE) or 1
        some = slice(None, PAGE * step, step)
        pages = database.pages(Selected(selected.ids[some], selected.mtimes[some]))
        page = next(iter(pages), None)
    if page is None:
        return Sample(len(selected.ids), 0, 0, (), periodic=False)
    others = [row for row in page.others if isinstance(row, StructureRow)]
    numbers = np.concatenate([page.structures.numbers, *(row.numbers for row in others)])
    looked_at = len(page.structures) + len(page.others)
    components = count_force_components(page.structures)
    return Sample(
        selected=len(selected.ids),
        looked_at=looked_at,
        force_components=round(components * len(selected.ids) / max(1, looked_at)),
        elements=tuple(sorted(chemical_symbols[n] for n in set(numbers.tolist()))),
        force_rms_ev=_root_mean_square(page.structures.forces),
        pairs=page.structures.pairs.tolist(),
        periodic=bool(page.structures.pbc.any()) or any(row.pbc.any() for row in others),
    )


def _root_mean_square(values: FloatArray) -> float:
    finite = values[np.isfinite(values)]
    return float(np.sqrt(np.mean(np.square(finite)))) if finite.size else 0.0
