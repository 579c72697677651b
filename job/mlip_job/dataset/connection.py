"""Open an ASE database for reading: SQLite files, PostgreSQL, MySQL and MariaDB.

ASE creates a missing SQLite file, or missing tables on a server. A job that reads must never do
that, so each database is checked through its own driver before ASE opens it.
"""

from __future__ import annotations

import os
import re
import shlex
import sqlite3
from contextlib import closing
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

import ase.db
from ase.io.formats import UnknownFileTypeError, filetype, ioformats

from mlip_job.errors import ConfigError, DatabaseError
from mlip_job.runtime.environment import require_one_line
from mlip_job.secret_texts import redact

if TYPE_CHECKING:
    from mlip_job.config.job import DatabaseConfig


PASSWORD_VARIABLE = "MLIP_JOB_DATABASE_PASSWORD"  # noqa: S105 - the name, not the password
CONNECT_TIMEOUT = 10
"""Connection timeout of a server, s."""

# Connection refused or lost, too many connections, lock wait, deadlock, shutdown (mysqld error
# reference).
_MYSQL_TRANSIENT = {1040, 1053, 1205, 1213, 2002, 2003, 2006, 2013}
# Classes of SQLSTATE: connection exception, transaction rollback, insufficient resources, operator
# intervention (PostgreSQL documentation, appendix A).
_POSTGRESQL_TRANSIENT = {"08", "40", "53", "57"}
_POSTGRESQL_PERMANENT = (
    "authentication", "password", "does not exist", "no pg_hba", "not known", "ssl", "invalid",
)  # fmt: skip

_IMMUTABLE = "&immutable=1"
_WAL_BYTES = b"\x02\x02"
"""File format write and read version of a database in WAL mode (SQLite's file format, 1.3.3)."""


@dataclass(frozen=True)
class OpenedDatabase:
    """ASE's database object, the base class of driver errors, and the URL without secrets."""

    database: Any = field(repr=False)
    driver_error: type[Exception]
    description: str

    def failure(self, error: Exception, action: str = "read") -> DatabaseError:
        """Return the `DatabaseError` for an error of the driver."""
        return _failure(self.description, error, action)


def open_database(config: DatabaseConfig) -> OpenedDatabase:
    """Open the configured database.

    The password of a server is taken from ``MLIP_JOB_DATABASE_PASSWORD``, else from ``PGPASSWORD``
    or ``~/.pgpass`` (PostgreSQL), or ``MYSQL_PWD`` (MySQL).

    Raise `DatabaseError` if it is missing or unavailable, rejects the password, or is not an ASE
    database; `ConfigError` if the URL is not valid.
    """
    require_one_line(PASSWORD_VARIABLE, "PGPASSWORD", "MYSQL_PWD")
    match config.url.partition("://")[0] if "://" in config.url else "":
        case "":
            return _open_sqlite(config.url)
        case "postgresql" | "postgres":
            return _open_postgresql(config.url)
        case "mysql" | "mariadb":
            return _open_mysql(config.url)
        case scheme:
            raise ConfigError(
                f"database.url: {scheme}:// is not supported",
                hint="name an SQLite file, postgresql://user@host:port/name "
                "or mysql://user@host:port/name",
            )


def describe_url(url: str) -> str:
    """Return a database URL without its password and without its query, which may hold secrets."""
    if "://" not in url:
        return url
    parts = urlsplit(url)
    user, at, host = parts.netloc.rpartition("@")
    return f"{parts.scheme}://{user.partition(':')[0]}{at}{host}{parts.path}"


def _open_sqlite(url: str) -> OpenedDatabase:
    path = Path(url).expanduser()
    _require_readable_file(path)
    require_sqlite_file(path)
    uri = sqlite_uri(path)
    try:
        with closing(sqlite3.connect(uri, uri=True)) as connection:
            tables = connection.execute(
                "SELECT count(*) FROM sqlite_master WHERE type = 'table'"
                " AND name IN ('systems', 'information')"
            )
            _require_ase_tables(tables.fetchone()[0], str(path))
    except sqlite3.Error as error:
        if not _in_wal_mode(path) or _is_transient(error):
            raise _failure(str(path), error) from None
        raise DatabaseError(
            f"database {path} can't be read: it is in WAL mode, and SQLite can't make the files "
            "that this needs in its directory",
            hint="make the directory writable, or where it is: sqlite3 FILE "
            "'PRAGMA journal_mode=DELETE'",
        ) from None
    # Only writers need create_indices and the lock file.
    database = ase.db.connect(str(path), type="db", create_indices=False, use_lock_file=False)
    if uri.endswith(_IMMUTABLE):
        database._connect = lambda: sqlite3.connect(uri, uri=True)  # noqa: SLF001 - ASE takes no URI
    return OpenedDatabase(database, sqlite3.Error, str(path))


def sqlite_uri(path: Path) -> str:
    """Return the URI that opens an SQLite file for reading.

    In WAL mode, SQLite needs two more files in the same directory even to read. If they can't be
    created and no process has the database open (no ``-wal`` file), it is opened as immutable.
    """
    path = path.resolve()
    idle = not path.with_name(f"{path.name}-wal").exists()
    fixed = idle and not os.access(path.parent, os.W_OK) and _in_wal_mode(path)
    return f"{path.as_uri()}?mode=ro{_IMMUTABLE if fixed else ''}"


def _in_wal_mode(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(20)[18:] == _WAL_BYTES
    except OSError:
        return False


def _require_readable_file(path: Path) -> None:
    hint = "check database.url"
    try:
        if not path.exists():
            problem = "does not exist"
        elif not path.is_file():
            problem = "is not a file"
            if path.is_dir() and any(path.glob("*.aselmdb")):
                hint = (
                    "convert its files to SQLite (with the Python package ase-db-backends), and "
                    "set database.url to the result: for part in "
                    f'{shlex.quote(str(path))}/*.aselmdb; do ase db "$part" --insert-into '
                    "structures.db; done"
                )
        elif not os.access(path, os.R_OK):
            problem = "can't be read: permission denied"
        else:
            return
    except OSError as error:
        problem = f"can't be read: {error.strerror}"
    raise DatabaseError(f"database {path} {problem}", hint=hint)


def _open_postgresql(url: str) -> OpenedDatabase:
    psycopg2 = _driver("psycopg2", "PostgreSQL")
    extensions = _driver("psycopg2.extensions", "PostgreSQL")
    description = describe_url(url)
    try:
        given = extensions.parse_dsn(url)
    except psycopg2.Error:  # its message contains the URL
        raise ConfigError(
            "database.url is not a valid PostgreSQL URL",
            hint="postgresql://user@host:port/name; write special characters as %XX",
        ) from None
    password = os.environ.get(PASSWORD_VARIABLE)
    options = {"connect_timeout": CONNECT_TIMEOUT, "application_name": "mlip-job", **given}
    dsn = extensions.make_dsn(**options | ({"password": password} if password else {}))
    try:
        found = _count_tables(psycopg2.connect(dsn), "ANY (current_schemas(false))")
    except psycopg2.Error as error:
        raise _failure(description, error) from None
    _require_ase_tables(found, description)
    _driver("ase_db_backends", "PostgreSQL")
    return OpenedDatabase(ase.db.connect(dsn, type="postgresql"), psycopg2.Error, description)


def _open_mysql(url: str) -> OpenedDatabase:
    pymysql = _driver("pymysql", "MySQL")
    description = describe_url(url)
    try:
        parts = urlsplit(url)
        user, host, port = unquote(parts.username or ""), parts.hostname, parts.port or 3306
    except ValueError:
        user = host = ""
    name = unquote(parts.path.strip("/")) if host else ""
    if not (user and host and name):
        raise ConfigError(
            "database.url is not a valid MySQL URL", hint="mysql://user@host:port/name"
        )
    password = os.environ.get(PASSWORD_VARIABLE) or os.environ.get("MYSQL_PWD") or ""
    login = {"host": host, "port": port, "user": user, "password": password, "database": name}
    try:
        connection = pymysql.connect(**login, connect_timeout=CONNECT_TIMEOUT)
        found = _count_tables(connection, "database()")
    except (pymysql.Error, RuntimeError) as error:  # RuntimeError: an authentication plugin
        raise _failure(description, error) from None
    _require_ase_tables(found, description)
    _driver("ase_db_backends", "MySQL")
    # The back end splits its URL at every ':', '@' and '/', so the password is set separately.
    database = ase.db.connect(f"mysql://{user}:@{host}:{port}/{name}", type="mysql")
    database.passwd = password
    return OpenedDatabase(database, pymysql.Error, description)


def _driver(module: str, server: str) -> Any:
    try:
        return import_module(module)
    except ImportError as error:
        raise DatabaseError(
            f"reading from {server} needs the Python package {error.name}",
            hint=f"pip install 'mlip-job[{server.lower()}]'",
        ) from None


def _count_tables(connection: Any, schema: str) -> int:
    """Count how many of ASE's two central tables a server's database has."""
    with closing(connection), closing(connection.cursor()) as cursor:
        cursor.execute(
            "SELECT count(DISTINCT table_name) FROM information_schema.tables"  # noqa: S608
            f" WHERE table_name IN ('systems', 'information') AND table_schema = {schema}"
        )
        return int(cursor.fetchone()[0])


def _require_ase_tables(found: int, description: str) -> None:
    if found < 2:  # noqa: PLR2004 - systems and information
        raise DatabaseError(
            f"{description} is not an ASE database: it lacks ASE's tables",
            hint="check database.url; ase.db.connect(…).write(atoms) makes one",
        )


def _failure(description: str, error: Exception, action: str = "read") -> DatabaseError:
    known = (os.environ.get(name) for name in (PASSWORD_VARIABLE, "PGPASSWORD", "MYSQL_PWD"))
    text = redact(" ".join(str(error).split()), *known)
    hint = None
    if any(word in text.lower() for word in ("password", "access denied", "authentication")):
        hint = f"the password is taken from {PASSWORD_VARIABLE}"
    return DatabaseError(
        f"database {description} can't be {action}: {text}",
        hint=hint,
        transient=_is_transient(error),
    )


def _is_transient(error: Exception) -> bool:
    """Return whether a retry may help: the server is unavailable, or the file locked."""
    kind, text = type(error).__module__.partition(".")[0], str(error).lower()
    if kind == "sqlite3":
        return isinstance(error, sqlite3.OperationalError) and "locked" in text
    if kind == "pymysql":
        code = error.args[0] if error.args else None
        return code in _MYSQL_TRANSIENT or type(error).__name__ == "InterfaceError"
    if kind != "psycopg2":
        return False
    # A query that fails carries an SQLSTATE; a connection that can't be made or is lost has none.
    state = getattr(error, "pgcode", None)
    if state is not None:
        return state[:2] in _POSTGRESQL_TRANSIENT
    connection = type(error).__name__ in ("OperationalError", "InterfaceError", "DatabaseError")
    return connection and not any(words in text for words in _POSTGRESQL_PERMANENT)


_SQLITE = b"SQLite format 3\0"
_LMDB = b"\xde\xc0\xef\xbe"
"""Magic number of LMDB, behind the header of its first page (lmdb, mdb.c)."""
_JSON = re.compile(rb'\s*\{\s*"(\d+|ids|nextid)"\s*:')
_GZIP = b"\x1f\x8b"
_PEEK = 4096

_KEYS_OF_LABELS = re.compile(r"(?:^|[ :])(\w*_(?:energy|forces?)|(?:energy|forces?)_\w+)[=:]")


def require_sqlite_file(path: Path) -> None:
    """Raise unless a readable file may be an SQLite database.

    Rows of ASE's other back ends, and of files of structures, have no stable ids, can't be selected
    by SQL, or are loaded all at once.

    Raise `ConfigError` if the file has another format, with a command to convert it;
    `DatabaseError` if it is empty.
    """
    with path.open("rb") as file:
        head = file.read(_PEEK)
    if head.startswith(_SQLITE):
        return
    if not head:
        raise DatabaseError(
            f"database {path} is an empty file",
            hint="check database.url; ase.db.connect(…).write(atoms) writes rows",
        )
    is_lmdb = _LMDB in head[:32] or path.suffix == ".aselmdb"
    if is_lmdb or _JSON.match(head):
        raise _another_back_end(path, is_lmdb=is_lmdb)
    quoted, then = shlex.quote(str(path)), "and set database.url to the result"
    kind = _format_of_structures(path)
    names = _other_labels(head) if kind == "extxyz" else []
    if names:
        raise ConfigError(
            f"database.url: {path} is a file of structures ({kind}), not a database; its labels "
            f"{', '.join(names)} are no energy and forces to ASE",
            hint="write an SQLite database with the script in docs/dataset.md, "
            '"Labels under other names"',
        )
    if kind:  # ASE's converter keeps labels, but no keys
        raise ConfigError(
            f"database.url: {path} is a file of structures ({kind}), not a database",
            hint=f"convert it to SQLite, {then}, database.select to '' (the rows have no keys): "
            f"ase convert -i {kind} {quoted} {_target(path)}",
        )
    if head.startswith(_GZIP):
        raise ConfigError(
            f"database.url: {path} is compressed (gzip)",
            hint=f"unpack it, {then}: gunzip -c {quoted} > {_target(path.with_suffix(''))}",
        )


def _another_back_end(path: Path, *, is_lmdb: bool) -> ConfigError:
    name, suffix = ("LMDB (.aselmdb)", ".aselmdb") if is_lmdb else ("JSON", ".json")
    source = shlex.quote(str(path if path.suffix == suffix else path.with_suffix(suffix)))
    moved = "" if path.suffix == suffix else f"mv {shlex.quote(str(path))} {source} && "
    needed = " (with the Python package ase-db-backends)" if is_lmdb else ""
    return ConfigError(
        f"database.url: {path} is an ASE database in {name}, which is not read",
        hint=f"convert it to SQLite{needed}, and set database.url to the result: "
        f"{moved}ase db {source} --insert-into {_target(path)}",
    )


def _format_of_structures(path: Path) -> str | None:
    """Return ASE's name for the format of a file of structures."""
    try:
        kind = str(filetype(str(path), read=True))
    except (UnknownFileTypeError, OSError, ValueError):
        return None
    readable = kind in ioformats and ioformats[kind].can_read
    return kind if readable and kind not in ("db", "json") else None


def _other_labels(head: bytes) -> list[str]:
    """Return names in an extended XYZ comment that may stand for missing labels."""
    comment = "".join(head.decode("utf-8", "replace").splitlines()[1:2])
    found = set(_KEYS_OF_LABELS.findall(comment))
    if re.search(r"(?:^| )(free_)?energy=", comment):
        found = {name for name in found if "force" in name}
    if re.search(r"[:=]forces:", comment):
        found = {name for name in found if "energy" in name}
    return sorted(found - {"free_energy"})


def _target(path: Path) -> str:
    """Return a file to convert to, quoted for a shell."""
    own = path.with_suffix(".db")
    free = own != path and not own.exists()
    return shlex.quote(str(own if free else path.with_name(f"{path.stem}-sqlite.db")))
