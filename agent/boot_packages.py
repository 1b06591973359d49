"""Which packages hold what is measured at boot, with version and date: so that a changed boot can be told in words.

For people, not for proof: the controller names such a package where the boot differs anyway (`contract.nodeword`).
"""

from __future__ import annotations

from agent.packages import PackageDatabase
from contract.messages import PackageChange
from contract.nodeword import boot_package

MAX_BOOT_PACKAGES = 64
_CHARS = 256
_MAX_SECONDS = 2.0**40


def boot_packages(database: PackageDatabase) -> list[PackageChange]:
    """Return kernels, boot loaders and what makes initrds, as they are installed, the latest first. Raises OSError."""
    found = [
        PackageChange(
            name=package.name[:_CHARS],
            after=package.version[:_CHARS],
            at=min(max(0.0, package.changed_at), _MAX_SECONDS),
        )
        for package in database.without_files(boot_package)
        # What is no text cannot be sent, and no database writes it.
        if package.name.isascii() and package.version.isascii()
    ]
    return sorted(found, key=lambda change: (-change.at, change.name))[:MAX_BOOT_PACKAGES]
