"""A clean Debian 12 as an inference node is installed: made once by mmdebstrap, unpacked as often as wanted.

The first use takes half a minute and the network that apt is configured for; the archive is kept in `build/`, which
`make clean` removes. Refuses to use half an archive: it is put in place whole, by one process at a time.
"""

from __future__ import annotations

import fcntl
import os
import subprocess
from pathlib import Path

TREE = Path(__file__).resolve().parents[2]
SUITE = "bookworm"
PACKAGES = (
    "systemd-sysv", "kmod", "iproute2", "nftables", "openssh-server", "sudo", "chrony", "cron",
)  # fmt: skip
"""Besides Debian's essential ones (variant minbase)."""
_PATH = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"


def mirror() -> list[str]:
    """Return where this machine's apt has Debian from; empty where it has none: then mmdebstrap's own choice."""
    asked = ["apt-get", "indextargets", "--format", "$(ORIGIN)|$(REPO_URI)", "Created-By: Packages"]
    done = subprocess.run(asked, capture_output=True, text=True, check=False)
    found = [line.partition("|") for line in done.stdout.splitlines()]
    main = [
        uri for origin, _, uri in found if origin in ("Debian", "") and uri.rstrip("/").endswith("/debian")
    ]
    return main[:1]


def archive() -> Path:
    """Return the archive of the clean root; makes it where it is not there yet. Raises RuntimeError with apt's words."""
    folder = TREE / "build"
    folder.mkdir(exist_ok=True)
    # Its name tells what is in it, so that another list makes another one.
    kept = folder / f"clean-root-{SUITE}-{len(PACKAGES)}.tar"
    with (folder / "clean-root.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not kept.exists():
            fresh = folder / f"clean-root-{os.getpid()}.tar"
            done = subprocess.run(
                ["mmdebstrap", "--variant=minbase", "--quiet", f"--include={','.join(PACKAGES)}",
                 SUITE, str(fresh), *mirror()],
                capture_output=True, text=True, env={**os.environ, "PATH": _PATH}, check=False,
            )  # fmt: skip
            if done.returncode:
                fresh.unlink(missing_ok=True)
                raise RuntimeError(f"mmdebstrap: {done.stderr.strip()[-2000:]}")
            fresh.rename(kept)
    return kept


def unpack(folder: Path) -> Path:
    """Unpack a clean root into `folder`, with its owners and modes; return the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run(
        ["tar", "-C", folder, "-xf", archive(), "--numeric-owner", "--exclude=./dev/*"],
        check=True, capture_output=True,
    )  # fmt: skip
    return folder
