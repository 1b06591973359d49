"""A real PostgreSQL in a temporary folder, on a Unix socket only."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


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


class Postgres:
    """A running server; `url` makes URLs of databases."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

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
