"""Private PostgreSQL and MariaDB servers on free ports, started once per test session."""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.servers.processes import PATH, free_port, run, wait_until


@dataclass(frozen=True)
class DatabaseServer:
    """A running server on 127.0.0.1.

    `writer` is ``user:password`` of an account whose password ASE's URL parser understands;
    `execute` runs an SQL statement as the administrator.
    """

    scheme: str
    user: str
    password: str
    port: int
    writer: str
    execute: Callable[[str], None]

    def new_database(self) -> str:
        name = f"ase_{secrets.token_hex(4)}"
        self.execute(f"CREATE DATABASE {name}")
        return name

    def url(self, database: str) -> str:
        return f"{self.scheme}://{self.user}@127.0.0.1:{self.port}/{database}"

    def url_with_password(self, database: str) -> str:
        return f"{self.scheme}://{self.writer}@127.0.0.1:{self.port}/{database}"


@pytest.fixture(scope="session")
def postgresql() -> Iterator[DatabaseServer]:
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if not found:
        pytest.skip("PostgreSQL is not installed: make servers installs it")
    programs = found[-1].parent
    password, port = secrets.token_hex(8), free_port()
    with _server_directory("postgres") as directory:
        (directory / "password").write_text(password)
        # Database servers refuse to run as root.
        account = ("runuser", "-u", "postgres", "--") if os.getuid() == 0 else ()
        run(
            (
                *(*account, programs / "initdb", "-D", directory / "data", "-U", "ase"),
                *("-A", "scram-sha-256", "--pwfile", directory / "password", "-E", "UTF8"),
                *("--locale=C.UTF-8", "--no-sync"),
            )
        )
        control = (*account, programs / "pg_ctl", "-D", directory / "data", "-w")
        options = f"-p {port} -k {directory} -c listen_addresses=127.0.0.1 -c fsync=off"
        run((*control, "-l", directory / "log", "-o", options, "start"))

        def execute(statement: str) -> None:
            target = ("-h", "127.0.0.1", "-p", port, "-U", "ase", "-d", "postgres")
            command = [str(part) for part in (programs / "psql", "-q", *target, "-c", statement)]
            subprocess.run(command, check=True, env={"PGPASSWORD": password})

        try:
            yield DatabaseServer("postgresql", "ase", password, port, f"ase:{password}", execute)
        finally:
            run((*control, "-m", "immediate", "stop"))


@pytest.fixture(scope="session")
def mariadb() -> Iterator[DatabaseServer]:
    """Run MariaDB with password authentication; the password is a trap for URL parsers."""
    programs = {
        name: shutil.which(name, path=PATH)
        for name in ("mariadbd", "mariadb-install-db", "mariadb")
    }
    if None in programs.values():
        pytest.skip("MariaDB is not installed: make servers installs it")
    simple, port = secrets.token_hex(8), free_port()
    password = f"p@ss:/{simple}"
    with _server_directory("mysql") as directory:
        account = "mysql" if os.getuid() == 0 else str(os.getuid())
        data, user_option = f"--datadir={directory / 'data'}", f"--user={account}"
        install = (programs["mariadb-install-db"], "--no-defaults", user_option, data)
        run((*install, "--auth-root-authentication-method=normal", "--skip-test-db"))
        command = [
            *(str(programs["mariadbd"]), "--no-defaults", user_option, data),
            *(f"--socket={directory / 'socket'}", f"--port={port}", "--bind-address=127.0.0.1"),
            *(f"--pid-file={directory / 'pid'}", f"--log-error={directory / 'log'}"),
            "--innodb-flush-log-at-trx-commit=0",
        ]

        def execute(statement: str) -> None:
            socket = directory / "socket"
            client = (programs["mariadb"], "--no-defaults", "-S", socket, "-u", "root")
            run((*client, "-e", statement))

        def answers() -> bool:
            try:
                execute("SELECT 1")
            except RuntimeError:
                assert server.poll() is None, (directory / "log").read_text()
                return False
            return True

        with subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        ) as server:
            try:
                wait_until(answers, "MariaDB")
                for user, its_password in (("ase", password), ("writer", simple)):
                    execute(f"CREATE USER '{user}'@'%' IDENTIFIED BY '{its_password}'")
                    execute(f"GRANT ALL ON *.* TO '{user}'@'%'")
                yield DatabaseServer("mysql", "ase", password, port, f"writer:{simple}", execute)
            finally:
                server.terminate()


@contextmanager
def _server_directory(account: str) -> Iterator[Path]:
    """Make a directory for a server; pytest's are not accessible to the server's account."""
    with tempfile.TemporaryDirectory(prefix="mlip-job-") as name:
        if os.getuid() == 0:
            shutil.chown(name, account)
        yield Path(name)
