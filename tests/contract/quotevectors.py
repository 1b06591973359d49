"""The vectors of `tests/vectors/quote`: text files, one quote each, whose header names the codes expected.

case: q05 signed by the key, and made by no TPM
expect: quote.magic                 codes in their order; `good` for none
ak: 0118...                         TPM2B_PUBLIC; the private key was thrown away
ek: ...
nonce: ...                          what the quote was asked to be over
previous: 7 2 123456 1 1            optional: reset, restart, clock, safe, firmware version of the quote before
pcr 0: ...                          the side data
attest: ...                         TPMS_ATTEST
signature: ...                      TPMT_SIGNATURE

`python -m tests.contract.quotevectors` makes them anew, with new keys.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path

import msgspec

from contract.quote import AttestationKey, Counters
from tests.contract.forge import (
    AK_ATTRIBUTES,
    COUNTERS,
    PCRS,
    QUALIFYING,
    RSASSA_SHA256,
    VECTORS,
    Forger,
    one_selection,
    rsa_public,
    selection,
)

FOLDER = VECTORS / "quote"


class Vector(msgspec.Struct, kw_only=True):
    """One quote, and what must be said of it."""

    case: str
    expect: list[str]
    ak: bytes
    ek: bytes
    nonce: bytes = QUALIFYING
    previous: Counters | None = None
    pcrs: Mapping[int, bytes] = msgspec.field(default_factory=lambda: PCRS)
    attest: bytes
    signature: bytes


def read(path: Path) -> Vector:
    """Read a vector; raises ValueError or KeyError for one that is malformed."""
    fields = dict(line.split(": ", 1) for line in path.read_text().splitlines())
    pcrs = {
        int(name[4:]): bytes.fromhex(fields.pop(name)) for name in list(fields) if name.startswith("pcr ")
    }
    previous = None
    if "previous" in fields:
        reset, restart, clock, safe, firmware = map(int, fields.pop("previous").split())
        previous = Counters(
            reset=reset, restart=restart, clock=clock, safe=safe == 1, firmware_version=firmware
        )
    case, expect = fields.pop("case"), fields.pop("expect").split()
    raw = {name: bytes.fromhex(value) for name, value in fields.items()}
    return Vector(case=case, expect=[] if expect == ["good"] else expect, previous=previous, pcrs=pcrs, **raw)


def write(name: str, vector: Vector) -> None:
    """Write a vector."""
    lines = [f"case: {vector.case}", f"expect: {' '.join(vector.expect) or 'good'}"]
    lines += [f"ak: {vector.ak.hex()}", f"ek: {vector.ek.hex()}", f"nonce: {vector.nonce.hex()}"]
    if vector.previous is not None:
        p = vector.previous
        lines.append(f"previous: {p.reset} {p.restart} {p.clock} {p.safe:d} {p.firmware_version}")
    lines += [f"pcr {pcr}: {value.hex()}" for pcr, value in sorted(vector.pcrs.items())]
    lines += [f"attest: {vector.attest.hex()}", f"signature: {vector.signature.hex()}"]
    (FOLDER / f"{name}.vec").write_text("\n".join(lines) + "\n")


def made() -> Iterator[tuple[str, Vector]]:
    """Yield all vectors with their names, under keys made now."""
    ecc, rsa = Forger("ecc256"), Forger("rsa2048")

    def of(case: str, expect: str, attest: bytes, forger: Forger = ecc, **more: object) -> Vector:
        usual = {"ak": forger.ak_public, "ek": forger.ek_public, "signature": forger.sign(attest)}
        codes = [] if expect == "good" else expect.split()
        return Vector(case=case, expect=codes, attest=attest, **{**usual, **more})  # type: ignore[arg-type]

    for forger, name in ((ecc, "ecc256"), (rsa, "rsa2048"), (Forger("rsa3072"), "rsa3072"), (Forger("ecc384"), "ecc384")):  # fmt: skip
        yield f"good-{name}", of("good", "good", forger.attest(), forger)
    yield (
        "q01-old-nonce",
        of("q01 made over another nonce", "quote.nonce", ecc.attest(), nonce=b"n" * 32),
    )
    yield "q01-no-nonce", of("q01 made over nothing", "quote.nonce", ecc.attest(extra=b""))
    yield (
        "q05-magic",
        of("q05 signed by the key, and made by no TPM", "quote.magic", ecc.attest(magic=0x12345678)),
    )
    for kind in (0x8014, 0x8016, 0x8017, 0x8019, 0x801A):
        yield f"q06-{kind:04x}", of("q06 another attest type", "quote.type", ecc.attest(kind=kind))
    yield from _lengths(ecc, of)
    yield from _selections(ecc, of)
    yield from _signatures(ecc, rsa, of)
    yield from _states(ecc, of)


def _lengths(ecc, of):  # type: ignore[no-untyped-def]
    good = ecc.attest()
    yield "q07-trailing", of("q07 a byte too many", "quote.length", good + b"\0")
    yield "q07-cut", of("q07 a byte too few", "quote.length", good[:-1])
    yield "q07-empty", of("q07 nothing", "quote.length", b"")
    long = good[:6] + b"\xff\xff" + good[8:]
    yield "q07-signer", of("q07 a signer longer than the structure", "quote.length", long)
    yield "q07-extra", of("q07 extra data longer than the structure", "quote.length", _with_extra_size(good))


def _with_extra_size(attest: bytes) -> bytes:
    at = 8 + int.from_bytes(attest[6:8], "big")
    return attest[:at] + b"\xff\xff" + attest[at + 2 :]


def _selections(ecc, of):  # type: ignore[no-untyped-def]
    nothing = hashlib.sha256(b"").digest()
    none = struct.pack(">I", 1) + selection(bytes(3))
    yield (
        "q08-no-pcr",
        of("q08 no PCR", "quote.pcr-selection", ecc.attest(selections=none, digest=nothing), pcrs={}),
    )
    few = {pcr: PCRS[pcr] for pcr in (0, 1, 2)}
    yield (
        "q09-side-data",
        of("q09 three PCRs signed, the rest shown beside", "quote.pcr-values", ecc.attest(pcrs=few)),
    )
    yield "q09-fewer-shown", of("q09 fewer shown than signed", "quote.pcr-values", ecc.attest(), pcrs=few)
    swapped = {**PCRS, 0: PCRS[1], 1: PCRS[0]}
    yield (
        "q10-swapped",
        of("q10 signed over one PCR, shown as another", "quote.pcr-digest", ecc.attest(), pcrs=swapped),
    )
    two = struct.pack(">I", 2) + selection(b"\1\0\0") * 2
    yield "q11-two", of("q11 two selections", "quote.pcr-selection", ecc.attest(selections=two))
    wide = struct.pack(">I", 1) + selection(b"\xff\x43\0\0")
    yield "q11-size", of("q11 a selection of four bytes", "quote.pcr-selection", ecc.attest(selections=wide))
    for bank, name in ((0x04, "sha1"), (0x0C, "sha384")):
        shown = ecc.attest(selections=one_selection(PCRS, bank))
        yield f"q12-{name}-bank", of("q12 another bank", "quote.pcr-bank", shown)
    yield "q13-short", of("q13 a digest of 20 bytes", "quote.length", ecc.attest(digest=b"d" * 20))
    yield "q13-long", of("q13 a digest of 48 bytes", "quote.length", ecc.attest(digest=b"d" * 48))
    short = {**PCRS, 4: PCRS[4][:20]}
    yield "q13-value", of("q13 a value of 20 bytes", "quote.pcr-values", ecc.attest(), pcrs=short)


def _signatures(ecc, rsa, of):  # type: ignore[no-untyped-def]
    good = ecc.attest()
    signed, of_rsa = ecc.sign(good), rsa.sign(rsa.attest())
    other = Forger("ecc256")
    yield "q12-sha1-signature", of("q12 signed with SHA-1, it says", "quote.signature-scheme", good, signature=signed[:2] + b"\0\4" + signed[4:])  # fmt: skip
    yield "q14-scheme", of("q14 RSASSA under an ECC key", "quote.signature-scheme", good, signature=of_rsa)
    yield "q14-pss", of("q14 RSAPSS under an RSASSA key", "quote.signature-scheme", rsa.attest(), rsa, signature=b"\0\x16" + of_rsa[2:])  # fmt: skip
    yield "q14-zero-r", of("q14 r is zero", "quote.signature-length", good, signature=ecc.ecdsa(0, 1))
    yield "q14-zero-s", of("q14 s is zero", "quote.signature-length", good, signature=ecc.ecdsa(1, 0))
    yield "q14-long", of("q14 r of 33 bytes", "quote.signature-length", good, signature=ecc.ecdsa(1, 1, size=33))  # fmt: skip
    yield "q14-trailing", of("q14 a byte behind s", "quote.signature-length", good, signature=signed + b"\0")
    yield "q14-other-key", of("q14 signed by another key", "quote.signature", good, signature=other.sign(good))  # fmt: skip
    yield "q21-flipped", of("q21 one bit changed after signing", "quote.signature", good[:-1] + bytes([good[-1] ^ 1]), signature=signed)  # fmt: skip
    yield "q15-signer", of("q15 the key stands under another EK", "quote.signer", good, ek=other.ek_public)
    free = Forger("rsa2048")
    free.ak_public = rsa_public(free.key, AK_ATTRIBUTES & ~(1 << 16), RSASSA_SHA256)
    again = Forger.attest(free, signer=_signer(free))
    yield "b02-not-restricted", of("b02 a key that signs foreign bytes", "ak.attributes", again, free)


def _signer(forger: Forger) -> bytes:
    return AttestationKey.from_public(forger.ak_public, forger.ek_public).qualified_name


def _states(ecc, of):  # type: ignore[no-untyped-def]
    at = COUNTERS
    replace = msgspec.structs.replace
    for name, before in (
        ("reset", replace(at, reset=at.reset + 1)),
        ("restart", replace(at, restart=at.restart + 1)),
        ("clock", replace(at, clock=at.clock + 1)),
    ):
        yield f"q16-{name}", of(f"q16 {name} went back", "quote.counters", ecc.attest(), previous=before)
    yield "q17-reset", of("q17 rebooted since", "good", ecc.attest(), previous=replace(at, reset=at.reset - 1))  # fmt: skip
    yield "q18-firmware", of("q18 another firmware than before", "quote.firmware-version", ecc.attest(), previous=replace(at, firmware_version=1))  # fmt: skip
    unsafe = ecc.attest(counters=replace(at, safe=False))
    yield "q19-unsafe", of("q19 the power went", "quote.clock-unsafe", unsafe)
    yield "q19-neither", of("q19 neither yes nor no", "quote.safe", ecc.attest(safe=2))
    for pcr in (0, 4):
        unset = {**PCRS, pcr: bytes(32)}
        yield f"q20-pcr{pcr}", of("q20 nothing was measured", "quote.pcr-unset", ecc.attest(pcrs=unset), pcrs=unset)  # fmt: skip


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for each, vector in made():
        write(each, vector)
