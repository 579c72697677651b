"""A first look into a database: what a configuration for it would say."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

from ase.data import chemical_symbols
from pydantic import ValidationError

from mlip_job.config.models import DatabaseConfig
from mlip_job.dataset.source import StructureDatabase, StructureRow
from mlip_job.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping

_ROWS_LOOKED_AT = 1000  # for the elements; a family's name is only a suggestion


@dataclass(frozen=True)
class Survey:
    """What was found.

    Attributes
    ----------
    statuses
        Number of rows of each status.
    selection
        ASE selection string for the finished rows.
    elements
        Sorted; from the first rows of that selection.
    """

    statuses: Mapping[str, int]
    selection: str
    elements: tuple[str, ...]


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
    with StructureDatabase(config.model_copy(update={"select": selection})) as database:
        numbers = {
            int(number)
            for row in islice(database.rows(), _ROWS_LOOKED_AT)
            if isinstance(row, StructureRow)
            for number in row.numbers
        }
    return Survey(statuses, selection, tuple(sorted(chemical_symbols[n] for n in numbers)))
