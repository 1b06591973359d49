"""The baseline's `[ima]` section: which files may be read and run on a node, by digest, signature or path.

An allow-list binds a path to its digests; the same content under another path is not allowed. The list is kept by
package, so that an upgrade can be told from an attack, and as compact as full SHA-256 digests can be. What the section
does not name is not allowed: an empty section allows nothing. Nothing here reads a log; `contract.imarules` compiles
the section and `contract.ima` follows a log by it.
"""

from __future__ import annotations

from typing import Annotated, Final, Literal

from msgspec import Meta, Struct, field

from contract.baseline import SectionBase
from contract.messages import PackageChange

__all__ = ["MAX_PACKAGES", "ImaPolicy", "Package", "PackageChange"]

MAX_PACKAGES: Final = 16384
MAX_RULES: Final = 256
MAX_KEYS: Final = 64

PathText = Annotated[str, Meta(min_length=1, max_length=2000)]
DigestText = Annotated[
    str, Meta(pattern=r"\A(?:sha256:[0-9a-f]{64}|sha384:[0-9a-f]{96}|sha512:[0-9a-f]{128})\Z")
]
Names = Annotated[str, Meta(min_length=1, max_length=2000)]
Packed = Annotated[str, Meta(max_length=2000, pattern=r"\A[A-Za-z0-9+/]*={0,2}\Z")]


class Package(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Some files of one package: folders, names in them, and one SHA-256 for each name in the same order."""

    name: Annotated[str, Meta(min_length=1, max_length=200)]
    version: Annotated[str, Meta(max_length=200)] = ""
    files: Annotated[list[Names], Meta(max_length=4096)]
    sha256: Annotated[list[Packed], Meta(max_length=4096)]


class ImaPolicy(SectionBase, frozen=True, kw_only=True):
    """The `[ima]` section."""

    unknown_files: Literal["refuse", "warn", "ignore"] = "refuse"
    """What no other key allows. `ignore` judges the log's integrity only."""
    violations: Literal["refuse", "warn", "ignore"] = "refuse"
    """A file was written while it was measured: its digest says nothing. The names in such lines are proved by nothing."""
    kexec: Literal["refuse", "warn", "ignore"] = "refuse"
    """A second boot aggregate: the running kernel has started another one, that no firmware log tells of."""
    boot_aggregate: Literal["required", "optional"] = "required"
    """`optional` for kernels that make it of the SHA-1 bank, which no quote here covers. A wrong one is always refused."""
    package_updates: Literal["explain", "refuse"] = "explain"
    """`explain`: new files of a package that is named here, upgraded as the node's report tells, are one warning."""
    max_reports: Annotated[int, Meta(ge=1, le=1024)] = 96
    """Reports in a row that may end before the quoted PCR 10 is met (64 MiB at 1 MiB each, and half as many again)."""
    allow: Annotated[dict[PathText, list[DigestText]], Meta(max_length=4096)] = field(default_factory=dict)
    """Path to the digests allowed there."""
    package: Annotated[list[Package], Meta(max_length=MAX_PACKAGES)] = field(default_factory=list)
    exclude: Annotated[list[PathText], Meta(max_length=MAX_RULES)] = field(default_factory=list)
    """Paths that are not judged: `/a/b/` everything below, else one path with at most one `*` in each segment."""
    keyrings: dict[str, list[Literal["*"] | DigestText]] = field(default_factory=dict)
    """Keyring to the keys (digest of what was loaded: the DER certificate) that may be loaded; `*` any."""
    buffers: dict[str, list[Literal["*"] | DigestText]] = field(default_factory=dict)
    """The same for what else the kernel measures that is no file: `kexec-cmdline`, `kernel_version`."""
    signers: Annotated[dict[str, str], Meta(max_length=MAX_KEYS)] = field(default_factory=dict)
    """Name to PEM public key or certificate whose file signatures are enough."""
