"""Real Podman containers in a store of their own, for tests: started by the program, seen by nobody else.

Podman runs in a mount namespace whose control groups are of one kind only, since its runtime refuses a mix of v1 and v2.
"""

from __future__ import annotations

import io
import shutil
import subprocess
import tarfile
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

IMAGE = "localhost/plant/sleeper"
_ENTER = "umount -R /sys/fs/cgroup; mount -t cgroup2 none /sys/fs/cgroup; exec podman "
_SLEEPER = "#include <unistd.h>\nint main(void) { for (;;) pause(); }\n"


class Podman:
    """Containers below `root`, where the agent looks for them."""

    def __init__(self, root: Path, base: Path) -> None:
        self.root = root
        self._base = base
        store, run = root / "var/lib/containers/storage", root / "run/containers/storage"
        self._options = f"--root {store} --runroot {run} --cgroup-manager cgroupfs --storage-driver vfs"

    def __call__(self, words: str, *, check: bool = True) -> str:
        """Run `podman WORDS`; return what it prints. Raises RuntimeError with its words."""
        done = subprocess.run(
            ["unshare", "-m", "sh", "-c", f"{_ENTER} {self._options} {words}"],
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        if check and done.returncode:
            raise RuntimeError(f"podman {words}: {done.stderr.strip()}")
        return done.stdout.strip()

    def image(self, tag: str = "1", more: bytes = b"") -> str:
        """Make an image with one program (and `more` bytes, for another digest); return its digest."""
        source = self._base / "sleeper.c"
        source.write_text(_SLEEPER)
        subprocess.run(["gcc", "-static", "-O1", "-o", self._base / "sleeper", source], check=True)
        archive = self._base / f"{tag}.tar"
        with tarfile.open(archive, "w") as tar:
            tar.add(self._base / "sleeper", "sleeper")
            entry = tarfile.TarInfo("more")
            entry.size = len(more)
            tar.addfile(entry, io.BytesIO(more))
        self(f"import {archive} {IMAGE}:{tag}")
        return self(f"image inspect --format '{{{{.Digest}}}}' {IMAGE}:{tag}")

    def run(self, name: str, options: str = "--network none", tag: str = "1") -> int:
        """Start a container; return its first process."""
        limits = "--cgroups disabled --ulimit nofile=1024:1024 --ulimit nproc=1000:1000"
        self(f"run -d {limits} {options} --name {name} {IMAGE}:{tag} /sleeper")
        return int(self(f"inspect --format '{{{{.State.Pid}}}}' {name}"))

    def names(self) -> list[str]:
        """Return the names of running containers, as Podman tells them."""
        return sorted(self("ps --format '{{.Names}}'").split())


@contextmanager
def podman() -> Iterator[Podman]:
    """Yield a Podman; its containers end with the block."""
    base = Path(tempfile.mkdtemp(prefix="rf"))  # Podman takes no run root of more than 50 characters
    (base / "r").mkdir()
    made = Podman(base / "r", base)
    try:
        yield made
    finally:
        made("rm -af -t 0", check=False)  # its process ends by SIGKILL only; Podman would wait ten seconds
        made("rmi -af", check=False)
        for _ in range(20):
            shutil.rmtree(base, ignore_errors=True)
            if not base.exists():
                break
            time.sleep(0.1)
