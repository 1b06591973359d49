"""A migrated, empty SQLite database to copy: migrations take a quarter of a second, a copy takes none."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path

from controller.store import migrate

_room = functools.cache(functools.partial(tempfile.TemporaryDirectory, prefix="rf-sqlite-"))


@functools.cache
def ready_sqlite() -> Path:
    """Return the file, made once in each process and gone with it."""
    path = Path(_room().name, "ready.db")
    migrate(f"sqlite:///{path}")
    return path
