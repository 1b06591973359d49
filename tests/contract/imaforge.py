"""IMA logs made to order, with the PCR 10 that a kernel would have; policies that allow what a log has."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable, Mapping

import msgspec

from contract.ima import ImaResult, ImaState, follow
from contract.imalog import read_lines
from contract.imapolicy import ImaPolicy, pack
from contract.imarules import ImaRules
from contract.messages import PackageChange
from tests.contract.forge import PCRS

FF = b"\xff"


def sha256(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


def field(value: bytes) -> bytes:
    return struct.pack("<I", len(value)) + value


def digest_field(digest: bytes, algorithm: str = "sha256") -> bytes:
    return algorithm.encode() + b":\0" + digest


def boot_aggregate(pcrs: Mapping[int, bytes], count: int = 10) -> bytes:
    return sha256(b"".join(pcrs[pcr] for pcr in range(count)))


class Log:
    """A log, line by line, with both chains of PCR 10."""

    def __init__(self, pcrs: Mapping[int, bytes] | None = PCRS, template: str = "ima-sig") -> None:
        self.template = template
        self.lines: list[bytes] = []
        self.values = [bytes(32)]
        """PCR 10 after each count of lines, as kernels since 5.8 extend it."""
        self.padded = [bytes(32)]
        if pcrs is not None:
            self.file("boot_aggregate", boot_aggregate(pcrs))

    def line(
        self,
        data: bytes,
        *,
        template: str | None = None,
        pcr: int = 10,
        sha1: bytes | None = None,
        hashed: bytes | None = None,
    ) -> Log:
        """Add a record; `hashed` is what the template hash is made of, if it is not `data`."""
        name = self.template if template is None else template
        measured = data if hashed is None else hashed
        digest = hashlib.sha1(measured).digest() if sha1 is None else sha1
        head = struct.pack("<I20s", pcr, digest) + field(name.encode())
        self.lines.append(head + (data if name == "ima" else field(data)))
        violation = digest == bytes(20)
        plain = FF * 32 if violation else sha256(measured)
        padded = (FF * 20 if violation else digest) + bytes(12)
        for values, extension in ((self.values, plain), (self.padded, padded)):
            values.append(sha256(values[-1] + extension) if pcr == 10 else values[-1])
        return self

    def file(self, name: str | bytes, digest: bytes, *, algorithm: str = "sha256", third: bytes = b"") -> Log:
        """Add a measured file in the log's own template."""
        raw = name if isinstance(name, bytes) else name.encode()
        if self.template == "ima":
            return self.line(digest[:20] + field(raw), hashed=digest[:20] + raw.ljust(256, b"\0"))
        return self.line(self.data(raw, digest, algorithm, third))

    def data(self, name: bytes, digest: bytes, algorithm: str = "sha256", third: bytes = b"") -> bytes:
        """Return template data of this log's template."""
        kind = "ima:" if self.template.endswith("v2") else ""
        data = field(digest_field(digest, kind + algorithm)) + field(name + b"\0")
        return data if self.template in ("ima-ng", "ima-ngv2") else data + field(third)

    def violation(self, name: str) -> Log:
        """Add a violation: zeros for the hash, and data that no hash covers."""
        return self.line(self.data(name.encode(), bytes(32)), sha1=bytes(20))

    def buffer(self, name: str, content: bytes, digest: bytes | None = None) -> Log:
        """Add a line of `ima-buf`."""
        of = sha256(content) if digest is None else digest
        data = field(digest_field(of)) + field(name.encode() + b"\0") + field(content)
        return self.line(data, template="ima-buf")

    @property
    def raw(self) -> bytes:
        return b"".join(self.lines)

    @property
    def value(self) -> bytes:
        return self.values[-1]


def allowing(logs: Iterable[bytes], **keys: object) -> ImaPolicy:
    """Return the policy that allows every file in these logs, the first digest of a path by package."""
    found: dict[bytes, list[bytes]] = {}
    for log in logs:
        for _, fields in read_lines(log):
            assert not isinstance(fields, Exception)
            digests = found.setdefault(fields.name, [])
            if fields.digest not in digests and fields.name != b"boot_aggregate":
                digests.append(fields.digest)
    first = {path: digests[0] for path, digests in found.items() if digests and len(digests[0]) == 32}
    allow = {
        path.decode(): [f"sha256:{d.hex()}" for d in more[1:]] for path, more in found.items() if more[1:]
    }
    policy = ImaPolicy(package=[pack("base", "1.0-1", first)], allow=allow)
    return msgspec.convert(msgspec.to_builtins(policy) | keys, ImaPolicy)


def judged(
    rules: ImaRules | ImaPolicy,
    log: Log | bytes,
    quoted: bytes | None = None,
    *,
    state: ImaState | None = None,
    offset: int | None = None,
    more: bool = False,
    changes: Iterable[PackageChange] = (),
    pcrs: Mapping[int, bytes] = PCRS,
) -> ImaResult:
    """Follow a log; its own PCR 10 where none is said."""
    before = state or ImaState()
    if quoted is None:
        assert isinstance(log, Log)
        quoted = log.value
    return follow(
        rules if isinstance(rules, ImaRules) else ImaRules(rules),
        before,
        log.raw if isinstance(log, Log) else log,
        quoted,
        pcrs,
        offset=before.offset if offset is None else offset,
        more=more,
        changes=list(changes),
    )


def codes(result: ImaResult) -> list[str]:
    return [finding.code for finding in result.findings]
