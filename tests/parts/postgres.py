"""A real PostgreSQL in a temporary folder, on a Unix socket only."""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg


def programs() -> Path | None:
    """Return the folder of the newest installed server's programs; Debian keeps them off PATH."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda p: int(p.parts[-3]))
    if found:
        return found[-1].parent
    there = shutil.which("initdb")
    return Path(there).parent if there else None


def _run(command: list[str], cwd: Path) -> None:
    as_user = (
        ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"] if os.geteuid() == 0 else []
    )
    env = {"PATH": os.environ["PATH"], "LC_ALL": "C", "HOME": str(cwd)}
    done = subprocess.run(
        [*as_user, *command],
        cwd=cwd,
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=60,
    )
    if done.returncode:
        raise RuntimeError(f"{command[0]}: {done.stdout}")


_ALONE = """
SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()
"""
_SHAPE = """
SELECT relname, relkind::text, relnatts FROM pg_class
WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'S', 'i') ORDER BY relname
"""
_USED = """
SELECT string_agg(quote_ident(relname), ', ') FROM pg_class WHERE relnamespace = 'public'::regnamespace
AND relkind = 'r' AND relname <> 'alembic_version' AND pg_relation_size(oid) > 0
"""
_VERSION = "SELECT version_num, 'version', 0 FROM alembic_version"


class Postgres:
    """A running server; `url` makes URLs of databases."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._idle: dict[str, list[str]] = {}
        self._numbers = itertools.count(1)
        self._shapes: dict[str, list[tuple[object, ...]]] = {}

    def url(self, database: str) -> str:
        """SQLAlchemy URL over the server's socket."""
        return f"postgresql://postgres@/{database}?host={self.folder}"

    def create(self, database: str, template: str = "template1") -> str:
        """Make a database and return its URL."""
        bin_ = programs()
        assert bin_ is not None
        _run(
            [str(bin_ / "createdb"), "-h", str(self.folder), "-U", "postgres", "-T", template, database],
            self.folder,
        )
        return self.url(database)

    @contextmanager
    def lent(self, template: str) -> Iterator[str]:
        """Lend a database as empty as its template, by URL. Emptying one is faster than making one, and leaves no folder to be removed."""
        idle = self._idle.setdefault(template, [])
        if idle:
            database = idle.pop()
            url = self.url(database)
        else:
            database = f"lent{next(self._numbers)}"
            url = self.create(database, template)
        yield url
        if self._emptied(database, template):
            idle.append(database)

    def _emptied(self, database: str, template: str) -> bool:
        """Empty it; False when it is no longer of its template's shape, or does not answer."""
        try:
            wanted = self._shape(template)
            with self._connected(database) as connection:
                connection.execute(_ALONE)
                if _shape_of(connection) != wanted:
                    return False
                # Not DELETE: rows would take the places of dead ones, and come back in another order.
                used = connection.execute(_USED).fetchone()
                if used is not None and used[0]:
                    connection.execute(f"TRUNCATE {used[0]} CASCADE")
                for name, kind, _ in wanted:
                    if kind == "S":
                        connection.execute(f'ALTER SEQUENCE "{name}" RESTART')
        except psycopg.Error:
            return False
        return True

    def _shape(self, database: str) -> list[tuple[object, ...]]:
        if database not in self._shapes:
            with self._connected(database) as connection:
                self._shapes[database] = _shape_of(connection)
        return self._shapes[database]

    def _connected(self, database: str) -> psycopg.Connection[tuple[object, ...]]:
        return psycopg.connect(host=str(self.folder), user="postgres", dbname=database, autocommit=True)

    def restart(self) -> None:
        """Stop at once, as a crash does, and start again."""
        self.stop()
        self.start()

    def stop(self) -> None:
        """As if the machine had lost power: no checkpoint, no goodbye."""
        bin_ = programs()
        assert bin_ is not None
        _run(
            [str(bin_ / "pg_ctl"), "-D", str(self.folder / "data"), "-m", "immediate", "-w", "stop"],
            self.folder,
        )

    def start(self) -> None:
        """Start and wait until it answers."""
        bin_ = programs()
        assert bin_ is not None
        # Only processes die here, never the machine; and with a hundred databases the start after a crash would sync every
        # file of each of them, which takes minutes on a busy disk.
        options = f"-k {self.folder} -c listen_addresses='' -c max_connections=40 -c fsync=off"
        _run(
            [
                str(bin_ / "pg_ctl"), "-D", str(self.folder / "data"), "-o", options,
                "-l", str(self.folder / "log"), "-w", "start",
            ],
            self.folder,
        )  # fmt: skip


def _shape_of(connection: psycopg.Connection[tuple[object, ...]]) -> list[tuple[object, ...]]:
    """Tables, indexes, sequences; and the schema's version, which some test may have changed."""
    return connection.execute(_SHAPE).fetchall() + connection.execute(_VERSION).fetchall()


@contextmanager
def postgres() -> Iterator[Postgres]:
    """Run a server for as long as the block lasts."""
    bin_ = programs()
    if bin_ is None:
        raise RuntimeError("PostgreSQL is not installed; packaging/setup/system-packages does it")
    # A socket's path has at most 107 bytes: pytest's own temporary folders are too deep.
    folder = Path(tempfile.mkdtemp(prefix="rf-pg-"))
    if os.geteuid() == 0:
        shutil.chown(folder, "postgres", "postgres")
    server = Postgres(folder)
    try:
        _run(
            [
                str(bin_ / "initdb"),
                "-D",
                str(folder / "data"),
                "-U",
                "postgres",
                "-A",
                "trust",
                "-E",
                "UTF8",
                "-N",
            ],
            folder,
        )
        server.start()
        try:
            yield server
        finally:
            server.stop()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
