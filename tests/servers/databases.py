"""Private PostgreSQL and MariaDB servers on free ports, started once per test session."""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import subprocess
import tempfile
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_START_TIMEOUT = 60
"""Seconds a server may take to answer."""


@dataclass(frozen=True)
class DatabaseServer:
    """A running server.

    Attributes
    ----------
    scheme, user, password, port
        How to reach it on 127.0.0.1.
    writer
        ``user:password`` of an account whose password ASE's own URL parser understands.
    execute
        Runs one SQL statement as the administrator.
    """

    scheme: str
    user: str
    password: str
    port: int
    writer: str
    execute: Callable[[str], None]

    def new_database(self) -> str:
        """Create an empty database and return its name."""
        name = f"ase_{secrets.token_hex(4)}"
        self.execute(f"CREATE DATABASE {name}")
        return name

    def url(self, database: str) -> str:
        """Return the URL that a configuration names: without the password."""
        return f"{self.scheme}://{self.user}@127.0.0.1:{self.port}/{database}"

    def url_with_password(self, database: str) -> str:
        """Return the URL that ASE itself needs."""
        return f"{self.scheme}://{self.writer}@127.0.0.1:{self.port}/{database}"


@pytest.fixture(scope="session")
def postgresql() -> Iterator[DatabaseServer]:
    """Run PostgreSQL with password authentication."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if not found:
        pytest.skip("PostgreSQL is not installed: make servers installs it")
    programs = found[-1].parent
    password, port = secrets.token_hex(8), _free_port()
    with _server_directory("postgres") as directory:
        (directory / "password").write_text(password)
        _run(
            "postgres",
            *(programs / "initdb", "-D", directory / "data", "-U", "ase", "-A", "scram-sha-256"),
            *("--pwfile", directory / "password", "-E", "UTF8", "--locale=C.UTF-8", "--no-sync"),
        )
        control = (programs / "pg_ctl", "-D", directory / "data", "-w")
        options = f"-p {port} -k {directory} -c listen_addresses=127.0.0.1 -c fsync=off"
        _run("postgres", *control, "-l", directory / "log", "-o", options, "start")

        def execute(statement: str) -> None:
            target = ("-h", "127.0.0.1", "-p", port, "-U", "ase", "-d", "postgres")
            command = [str(part) for part in (programs / "psql", "-q", *target, "-c", statement)]
            subprocess.run(command, check=True, env={"PGPASSWORD": password})

        try:
            yield DatabaseServer("postgresql", "ase", password, port, f"ase:{password}", execute)
        finally:
            _run("postgres", *control, "-m", "immediate", "stop")


@pytest.fixture(scope="session")
def mariadb() -> Iterator[DatabaseServer]:
    """Run MariaDB with password authentication; the password is a trap for URL parsers."""
    search = os.environ.get("PATH", "") + ":/usr/sbin"
    programs = {
        name: shutil.which(name, path=search)
        for name in ("mariadbd", "mariadb-install-db", "mariadb")
    }
    if None in programs.values():
        pytest.skip("MariaDB is not installed: make servers installs it")
    simple, port = secrets.token_hex(8), _free_port()
    password = f"p@ss:/{simple}"
    with _server_directory("mysql") as directory:
        data, user_option = f"--datadir={directory / 'data'}", f"--user={_account('mysql')}"
        _run(
            None,
            *(programs["mariadb-install-db"], "--no-defaults", user_option, data),
            *("--auth-root-authentication-method=normal", "--skip-test-db"),
        )
        command = [
            *(str(programs["mariadbd"]), "--no-defaults", user_option, data),
            *(f"--socket={directory / 'socket'}", f"--port={port}", "--bind-address=127.0.0.1"),
            *(f"--pid-file={directory / 'pid'}", f"--log-error={directory / 'log'}"),
            "--innodb-flush-log-at-trx-commit=0",
        ]

        def execute(statement: str) -> None:
            client = (
                programs["mariadb"],
                "--no-defaults",
                "-S",
                directory / "socket",
                "-u",
                "root",
            )
            _run(None, *client, "-e", statement)

        with subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        ) as server:
            try:
                _wait_until_it_answers(execute, server)
                for user, its_password in (("ase", password), ("writer", simple)):
                    execute(f"CREATE USER '{user}'@'%' IDENTIFIED BY '{its_password}'")
                    execute(f"GRANT ALL ON *.* TO '{user}'@'%'")
                yield DatabaseServer("mysql", "ase", password, port, f"writer:{simple}", execute)
            finally:
                server.terminate()


@contextmanager
def _server_directory(account: str) -> Iterator[Path]:
    """Make a directory for a server; pytest's own are closed to the account that it runs as."""
    with tempfile.TemporaryDirectory(prefix="mlip-job-") as name:
        if os.getuid() == 0:
            shutil.chown(name, account)
        yield Path(name)


def _account(name: str) -> str:
    """Return the account a server runs as: database servers refuse to run as root."""
    return name if os.getuid() == 0 else str(os.getuid())


def _run(account: str | None, *command: object) -> None:
    prefix = ["runuser", "-u", account, "--"] if account and os.getuid() == 0 else []
    # Output goes to a file: a server that inherits a pipe keeps its reader waiting for ever.
    with tempfile.TemporaryFile("w+") as output:
        done = subprocess.run(
            [*prefix, *(str(part) for part in command)],
            check=False,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd="/",
            env={"PATH": os.environ.get("PATH", ""), "LC_ALL": "C.UTF-8"},
        )
        output.seek(0)
        if done.returncode != 0:
            raise RuntimeError(f"{command[0]} failed: {output.read()}")


def _wait_until_it_answers(execute: Callable[[str], None], server: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + _START_TIMEOUT
    while True:
        try:
            execute("SELECT 1")
        except RuntimeError:
            if server.poll() is not None or time.monotonic() > deadline:
                raise
            time.sleep(0.1)
        else:
            return


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
