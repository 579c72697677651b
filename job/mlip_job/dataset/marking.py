"""Mark rows of an ASE database with keys of the user's choice: all of them, or none."""

from __future__ import annotations

import warnings
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from ase.db.core import check, convert_str_to_int_float_bool_or_str

from mlip_job.dataset.connection import open_database
from mlip_job.errors import ConfigError, ConflictError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from mlip_job.config.job import DatabaseConfig

    Value = str | int | float | bool


def parse_marks(texts: Iterable[str]) -> dict[str, Value]:
    """Return the key_value_pairs in texts like ``status=to_label``.

    Raises
    ------
    ConfigError
        If ASE would not take one.
    """
    marks: dict[str, Value] = {}
    for text in texts:
        key, separator, value = text.partition("=")
        if not (separator and value):
            raise ConfigError(f"--mark {text!r} is not key=value", hint="--mark status=to_label")
        pair = {key: convert_str_to_int_float_bool_or_str(value)}
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                check(pair)
        except (ValueError, UserWarning) as error:
            raise ConfigError(
                f"--mark {text!r} is no key_value_pair of an ASE database: {error}"
            ) from None
        marks |= pair
    return marks


def mark_rows(config: DatabaseConfig, ids: Sequence[int], marks: Mapping[str, Value]) -> None:
    """Set keys of rows in one transaction.

    A row that ``config.select`` no longer matches was changed concurrently.

    Raises
    ------
    ConflictError
        If any row was changed; no row is marked then.
    DatabaseError
        If the database can't be written to; no row is marked then.
    """
    selection = [part.strip() for part in config.select.split(",") if part.strip()]
    opened = open_database(config)
    database = opened.database
    try:
        with _transaction(database):
            for id_ in ids:
                if not list(database.select([*selection, ("id", "=", id_)], columns=["id"])):
                    raise ConflictError(
                        f"row {id_} of {opened.description} no longer is one of "
                        f"{config.select!r}; no row was marked",
                        hint="select again",
                    )
                database.update(id_, **marks)
                # ASE would commit after some thousand changes; this must be atomic.
                database.change_count = 0
    except opened.driver_error as error:
        raise opened.failure(error, "written to") from None


@contextmanager
def _transaction(database: Any) -> Iterator[None]:
    """Commit at the end; on an error close the connection, which rolls back the changes.

    ASE's own context manager calls rollback(), which ase-db-backends 0.11 lacks for PostgreSQL.
    """
    database.__enter__()
    try:
        yield
        database.__exit__(None, None, None)
    except BaseException:
        if database.connection is not None:
            database.connection.close()
            database.connection = None
        raise
