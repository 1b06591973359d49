"""Folders on a disk, for tests of what a file system in memory has not: a device, a page cache beside it."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

TREE = Path(__file__).resolve().parents[2]


@contextmanager
def on_disk() -> Iterator[Path]:
    """Yield a folder on a block device: /tmp need not be on one, and is in memory on Debian 13. Raises LookupError."""
    for base in (Path(tempfile.gettempdir()), Path("/var/tmp"), TREE):
        if os.major(base.stat().st_dev):
            with tempfile.TemporaryDirectory(dir=base, prefix="ringfence-") as name:
                yield Path(name)
            return
    raise LookupError("no folder lies on a block device")
