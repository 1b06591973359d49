"""The baseline's `[ima]` section: which files may be read and run on a node, by digest, signature or path.

An allow-list binds a path to its digests; the same content under another path is not allowed. The list is kept by
package, so that an upgrade can be told from an attack, and as compact as full SHA-256 digests can be: some 60 bytes a
file. What the section does not name is not allowed: an empty section allows nothing. Nothing here reads a log;
`contract.imarules` compiles the section and `contract.ima` follows a log by it.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterator
from typing import Annotated, Final, Literal
from urllib.parse import quote_from_bytes, unquote_to_bytes

from msgspec import Meta, Struct, field

from contract.baseline import SectionBase
from contract.imasig import load_signer
from contract.messages import PackageChange
from contract.pathrules import PathRules, refuse_too_wide

__all__ = ["ImaPolicy", "Package", "PackageChange", "pack"]

MAX_PACKAGES: Final = 16384
MAX_RULES: Final = 256
MAX_KEYS: Final = 64
MAX_PATH_CHARS: Final = 2000
TEXT_CHARS: Final = 1996
"""Of one string of a table: TOML of baselines has at most 2,048 characters in a line, and base64 goes by four."""

Choice = Literal["refuse", "warn", "ignore"]
PathText = Annotated[str, Meta(min_length=1, max_length=MAX_PATH_CHARS)]
DigestText = Annotated[
    str, Meta(pattern=r"\A(?:\*|sha256:[0-9a-f]{64}|sha384:[0-9a-f]{96}|sha512:[0-9a-f]{128})\Z")
]
"""A digest with its algorithm, or `*` where the key says that any will do."""


class Package(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Files of one package."""

    name: Annotated[str, Meta(min_length=1, max_length=200)]
    version: Annotated[str, Meta(max_length=200)] = ""
    files: Annotated[list[Annotated[str, Meta(max_length=2000)]], Meta(max_length=4096)]
    """`/usr/bin/ cat ls`: a folder and names in it, with %20 and the like for what is not plain."""
    sha256: Annotated[list[Annotated[str, Meta(max_length=2000)]], Meta(max_length=4096)]
    """Digests one after the other, in the order of the names; base64, each string by itself."""

    def __post_init__(self) -> None:
        """Refuse what cannot be meant; msgspec turns it into an error with the key's path."""
        names = sum(1 for _ in self._paths())
        digests = len(self.sha256_bytes())
        if digests != names * 32:
            raise ValueError(f"{names} names need {names * 32} bytes of SHA-256, found {digests}")

    def entries(self) -> Iterator[tuple[bytes, bytes]]:
        """Yield path and SHA-256 of every file."""
        digests = self.sha256_bytes()
        for place, path in enumerate(self._paths()):
            yield path, digests[32 * place : 32 * place + 32]

    def _paths(self) -> Iterator[bytes]:
        for text in self.files:
            folder, *names = text.split(" ")
            raw = unquote_to_bytes(folder)
            if not raw.startswith(b"/") or not raw.endswith(b"/") or not names:
                raise ValueError(f"expected '/folder/ name name', got {text[:80]!r}")
            for name in names:
                if not name:
                    raise ValueError(f"an empty name in {text[:80]!r}")
                yield raw + unquote_to_bytes(name)

    def sha256_bytes(self) -> bytes:
        """Return all digests, 32 bytes each. Raises ValueError for what is no base64."""
        try:
            return b"".join(base64.b64decode(text, validate=True) for text in self.sha256)
        except binascii.Error as error:
            raise ValueError(f"expected base64: {error}") from None


class ImaPolicy(SectionBase, frozen=True, kw_only=True):
    """The `[ima]` section."""

    unknown_files: Choice = "refuse"
    """What no other key allows. `ignore` judges no file, only the log."""
    violations: Choice = "refuse"
    """A file was written while it was measured. No hash covers the name in such a line, so no path is excepted."""
    kexec: Choice = "refuse"
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
    keyrings: Annotated[dict[str, list[DigestText]], Meta(max_length=MAX_KEYS)] = field(default_factory=dict)
    """Keyring to the keys that may be put into it (digest of what was loaded: the DER certificate); `*` any."""
    buffers: Annotated[dict[str, list[DigestText]], Meta(max_length=MAX_KEYS)] = field(default_factory=dict)
    """The same for what else the kernel measures that is no file: `kexec-cmdline`, `kernel_version`."""
    signers: Annotated[dict[str, str], Meta(max_length=MAX_KEYS)] = field(default_factory=dict)
    """Name to PEM public key or certificate whose file signatures are enough."""

    def __post_init__(self) -> None:
        """Refuse what cannot be meant; msgspec turns it into an error with the key's path."""
        PathRules(self.exclude)
        refuse_too_wide(self.exclude)
        for path, digests in self.allow.items():
            if not path.startswith("/"):
                raise ValueError(f"`allow` expects absolute paths, got {path[:80]!r}")
            if not digests or "*" in digests:
                raise ValueError(
                    f"`allow` expects digests for {path[:80]!r}; what need not be judged goes into `exclude`"
                )
        twice = self.keyrings.keys() & self.buffers.keys()
        if twice:
            raise ValueError(f"{min(twice)!r} is in `keyrings` and in `buffers`")
        for name, pem in self.signers.items():
            load_signer(name, pem)


def pack(name: str, version: str, files: dict[bytes, bytes]) -> Package:
    """Return a package of these files (absolute path to SHA-256) in the compact form, sorted."""
    texts: list[str] = []
    folder_now = b""
    ordered = sorted(files, key=lambda path: path.rpartition(b"/")[::2])
    for path in ordered:
        folder, _, last = path.rpartition(b"/")
        quoted = quote_from_bytes(last, safe=_PLAIN)
        if not texts or folder != folder_now or len(texts[-1]) + 1 + len(quoted) > TEXT_CHARS:
            texts.append(quote_from_bytes(folder + b"/", safe="/" + _PLAIN))
            folder_now = folder
        texts[-1] += " " + quoted
    digests = b"".join(files[path] for path in ordered)
    step = TEXT_CHARS // 4 * 3
    packed = [base64.b64encode(digests[at : at + step]).decode() for at in range(0, len(digests), step)]
    return Package(name=name, version=version, files=texts, sha256=packed)


def toml_lines(package: Package) -> list[str]:
    """Return a package as the lines of its table. Literal strings: they need no escapes and are read ten times as fast."""
    lines = ["[[ima.package]]", f"name = '{package.name}'", f"version = '{package.version}'"]
    lines += ["files = [", *(f"  '{text}'," for text in package.files), "]"]
    return [*lines, "sha256 = [", *(f"  '{text}'," for text in package.sha256), "]"]


_PLAIN: Final = "+,:=@[]{}()!~"
