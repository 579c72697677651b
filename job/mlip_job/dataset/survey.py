"""Survey a database for `init`: statuses, elements, forces and keys of its rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from ase.data import chemical_symbols
from pydantic import ValidationError

from mlip_job.config.job import DatabaseConfig
from mlip_job.dataset.database import PAGE, Selected, StructureDatabase
from mlip_job.dataset.keys import KeyProposal, propose_keys
from mlip_job.dataset.row import StructureRow
from mlip_job.dataset.structures import Structures, is_complete
from mlip_job.dataset.validation import count_force_components
from mlip_job.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


@dataclass(frozen=True)
class Sample:
    """Statistics of a selection, from a sample of its rows.

    `force_components` are those of all rows that do not vanish, estimated from the sample;
    `force_rms_ev` is in eV/Å; `pairs` are the key_value_pairs of complete rows.
    """

    selected: int
    force_components: int = 0
    elements: tuple[str, ...] = ()
    periodic: bool = False
    force_rms_ev: float = 0.0
    pairs: Sequence[Mapping[str, Any]] = ()


@dataclass(frozen=True)
class Survey:
    """Rows by status, the ASE selection of the finished rows, a sample of them, and their keys."""

    statuses: Mapping[str, int]
    selection: str
    sample: Sample
    keys: KeyProposal


def survey(url: str) -> Survey:
    """Read statuses, and a sample of the finished rows.

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
    sample = _sample(selected)
    keys = propose_keys([_sample(selected, consecutive=True).pairs, sample.pairs])
    return Survey(statuses, selection, sample, keys)


def _sample(config: DatabaseConfig, *, consecutive: bool = False) -> Sample:
    """Read a page of rows, evenly spaced over all that are selected, or the first ones."""
    with StructureDatabase(config) as database:
        selected = database.select()
        step = 1 if consecutive else -(-len(selected.ids) // PAGE) or 1
        some = slice(None, PAGE * step, step)
        page = next(database.pages(Selected(selected.ids[some], selected.mtimes[some])), None)
    if not page:
        return Sample(len(selected.ids))
    rows = [row for row in page if isinstance(row, StructureRow)]
    structures = Structures.of_rows(list(filter(is_complete, rows)))
    finite = structures.forces[np.isfinite(structures.forces)]
    return Sample(
        selected=len(selected.ids),
        force_components=round(count_force_components(structures) * len(selected.ids) / len(page)),
        elements=tuple(sorted({chemical_symbols[n] for row in rows for n in row.numbers})),
        periodic=any(row.pbc.any() for row in rows),
        force_rms_ev=float(np.sqrt(np.mean(np.square(finite)))) if finite.size else 0.0,
        pairs=structures.pairs.tolist(),
    )
