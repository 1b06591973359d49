"""Verification of one TPM quote: the only place where a VerifiedQuote is made.

Takes bytes and an enrolled key, returns a VerifiedQuote or raises Rejected. It does not know nonces, sessions or
logs: the caller consumes the nonce and computes the qualifying data (`contract.binding`) before it calls. It relies
on `cryptography` for the signature. Clauses are those of the TPM 2.0 Library specification, Part 2, version 1.59.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from hashlib import sha256, sha384, sha512
from operator import itemgetter
from struct import Struct
from typing import Final, NamedTuple, NoReturn

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from msgspec import Struct as Record

from contract import tpm
from contract.errors import Rejected
from contract.messages import Finding, Message

TPM_GENERATED: Final = 0xFF544347
ST_ATTEST_QUOTE: Final = 0x8018
PCR_BYTES: Final = 32
PCR_COUNT: Final = 24
_SELECT_BYTES: Final = 3
_ALL_ZERO: Final = bytes(PCR_BYTES)
# Firmware always measures itself into PCR 0 and boot code into PCR 4: zero means that nothing was measured.
_ALWAYS_EXTENDED: Final = (0, 4)

_HEAD = Struct(">IHH")  # magic, type, size of qualifiedSigner
_U16 = Struct(">H")
_U32 = Struct(">I")
_CLOCK = Struct(">QIIBQ")  # clock, resetCount, restartCount, safe, firmwareVersion
_MIDDLE = Struct(">QIIBQI")  # clock, resetCount, restartCount, safe, firmwareVersion, count of selections
_SELECTION = Struct(">HB3sH")  # hash, sizeofSelect, pcrSelect, size of pcrDigest
_FIXED_BYTES: Final = _HEAD.size + 2 + _MIDDLE.size + _SELECTION.size

_DIGESTS: Final = {tpm.ALG_SHA256: sha256, tpm.ALG_SHA384: sha384, tpm.ALG_SHA512: sha512}
_PKCS1 = padding.PKCS1v15()
_NO_FINDINGS: tuple[Finding, ...] = ()


class Counters(Message, frozen=True):
    """TPMS_CLOCK_INFO and the firmware version of one quote, kept by the controller for the next (10.11.1)."""

    reset: int
    """Rises by one at each TPM Reset: a boot."""
    restart: int
    """Rises at TPM Restart and Resume (hibernation, suspend); zero after a reset."""
    clock: int
    """Milliseconds in which the TPM was powered."""
    safe: bool
    firmware_version: int
    """Vendor's own number, unsigned, 64 bits: more than a signed database integer holds."""


class VerifiedQuote:
    """What a quote that passed every check says. Made by `verify_quote` and nowhere else."""

    __slots__ = ("counters", "findings", "key", "pcrs", "rebooted", "resumed")

    counters: Counters
    pcrs: Mapping[int, bytes]
    """SHA-256 bank; exactly the PCRs that were wanted, each under the TPM's signature."""
    rebooted: bool
    """The reset counter is higher than in the quote before."""
    resumed: bool
    """The restart counter is higher, without a reset."""
    findings: tuple[Finding, ...]
    """What is worth a look and no reason to refuse: `quote.firmware-version`, `quote.clock-unsafe`."""
    key: AttestationKey

    def __init__(self) -> None:
        raise TypeError("a VerifiedQuote is made by verify_quote")


class Attest(Record, frozen=True, gc=False):
    """A TPMS_ATTEST of a quote, well formed and no more than that: worth nothing before `verify_quote`."""

    signer: bytes
    """qualifiedSigner: the Name of the key in its hierarchy."""
    extra: bytes
    """extraData: the qualifying data."""
    clock: int
    reset: int
    restart: int
    safe: int
    firmware: int
    selected: bytes
    """pcrSelect of the SHA-256 bank: three bytes, PCR 0 in the lowest bit of the first."""
    digest: bytes

    @property
    def pcrs(self) -> frozenset[int]:
        """Return the PCRs that the quote covers."""
        bits = int.from_bytes(self.selected, "little")
        return frozenset(pcr for pcr in range(PCR_COUNT) if bits >> pcr & 1)


class AttestationKey:
    """An enrolled AK, parsed and loaded once: keep it for as long as the session lives."""

    __slots__ = (
        "_digest",
        "_ecc",
        "_ecdsa",
        "_hash",
        "_hash_id",
        "_rsa",
        "_size",
        "attest_head",
        "digest_bytes",
        "qualified_name",
    )

    def __init__(self, key: tpm.PublicKey, scheme_hash: int, qualified_name: bytes) -> None:
        """Take what the key must be: `scheme_hash` is its scheme's TPM_ALG_ID. Raises Rejected `ak.scheme`."""
        if scheme_hash not in _DIGESTS:
            raise Rejected("ak.scheme", f"hash {scheme_hash:#06x} is not SHA-256, SHA-384 or SHA-512")
        self.qualified_name = qualified_name
        self.attest_head = _HEAD.pack(TPM_GENERATED, ST_ATTEST_QUOTE, len(qualified_name)) + qualified_name
        """With what every quote of this key begins."""
        self._rsa = key if isinstance(key, rsa.RSAPublicKey) else None
        self._ecc = key if isinstance(key, ec.EllipticCurvePublicKey) else None
        self._size = key.key_size // 8
        self._hash_id = scheme_hash
        self._hash = tpm.HASHES[scheme_hash]
        self._ecdsa = ec.ECDSA(self._hash)
        self._digest = _DIGESTS[scheme_hash]
        self.digest_bytes = self._digest().digest_size

    @classmethod
    def from_public(cls, ak_public: bytes, ek_public: bytes) -> AttestationKey:
        """Load an AK that is a child of the EK, both TPM2B_PUBLIC. Raises Rejected `tpm.public`, `ak.scheme`."""
        ak = tpm.parse_public(ak_public)
        if ak.scheme != (tpm.ALG_RSASSA if ak.type == tpm.ALG_RSA else tpm.ALG_ECDSA):
            raise Rejected("ak.scheme", f"scheme {ak.scheme:#06x} is neither RSASSA nor ECDSA")
        return cls(ak.key, ak.scheme_hash, tpm.qualified_name(tpm.parse_public(ek_public), ak))

    def check_signature(self, untrusted_signature: bytes, message: bytes) -> None:
        """Raise Rejected `quote.signature*` unless the TPMT_SIGNATURE is this key's, by its enrolled scheme, over `message`."""
        try:
            if self._rsa is not None:
                raw = tpm.rsassa_signature(untrusted_signature, hash_algorithm=self._hash_id, size=self._size)
                self._rsa.verify(raw, message, _PKCS1, self._hash)
            elif self._ecc is not None:
                r, s = tpm.ecdsa_signature(untrusted_signature, hash_algorithm=self._hash_id, size=self._size)
                self._ecc.verify(encode_dss_signature(r, s), message, self._ecdsa)
            else:
                raise TypeError("an attestation key is RSA or ECC")
        except InvalidSignature:
            raise Rejected("quote.signature", "not this key's signature over this quote") from None

    def pcr_digest(self, values: bytes) -> bytes:
        """Return what the TPM puts in pcrDigest: by the hash of the key's signing scheme (TPM2_Quote, Part 3, 18.4)."""
        return self._digest(values).digest()


class _Selection(NamedTuple):
    """What is the same for every quote over one set of PCRs."""

    bits: bytes
    """pcrSelect."""
    order: tuple[int, ...]
    """Ascending."""
    lengths: list[int]
    """Of the values."""
    values_of: Callable[[Mapping[int, bytes]], Sequence[bytes]]
    """Takes the values in order; raises KeyError."""
    selection: bytes
    """The TPML_PCR_SELECTION, and the size of pcrDigest behind it."""


@lru_cache(maxsize=256)
def _selection(wanted: frozenset[int], digest_bytes: int) -> _Selection:
    """Return how these PCRs are quoted. Nothing wanted is nothing proved (q08)."""
    if not wanted or min(wanted) < 0 or max(wanted) >= PCR_COUNT:
        raise Rejected("quote.pcr-selection", f"no set of PCRs that can be quoted: {sorted(wanted)[:24]}")
    bits = sum(1 << pcr for pcr in wanted).to_bytes(_SELECT_BYTES, "little")
    order = tuple(sorted(wanted))

    def one(pcrs: Mapping[int, bytes]) -> Sequence[bytes]:
        return [pcrs[order[0]]]

    return _Selection(
        bits,
        order,
        [PCR_BYTES] * len(order),
        itemgetter(*order) if len(order) > 1 else one,
        _U32.pack(1) + _SELECTION.pack(tpm.ALG_SHA256, _SELECT_BYTES, bits, digest_bytes),
    )


def verify_quote(
    key: AttestationKey,
    attest: bytes,
    signature: bytes,
    *,
    qualifying_data: bytes,
    pcrs: Mapping[int, bytes],
    wanted_pcrs: frozenset[int],
    previous: Counters | None,
) -> VerifiedQuote:
    """Verify one quote (TPM2_Quote, Part 3, 18.4) and return what it says.

    `attest` is TPMS_ATTEST, `signature` TPMT_SIGNATURE, `pcrs` the unsigned side data (SHA-256 bank), `previous` the
    counters of the last verified quote of this key. Checks 3 to 9 leave one string of bytes, but for the counters: so they are
    one comparison with it, and only what differs is read part by part, to say which of them failed. The checks, each with
    its number again at the code:

    1. signature scheme and hash are the enrolled ones, lengths exact (`quote.signature-scheme`, `-length`; q12, q14)
    2. the signature is the enrolled AK's over these bytes (`quote.signature`)
    3. total length is exactly the sum of the parts (`quote.length`; q07)
    4. magic (`quote.magic`; q05) and type (`quote.type`; q06)
    5. qualified signer is the enrolled AK under the enrolled EK (`quote.signer`; q15)
    6. extraData is the wanted qualifying data (`quote.nonce`; q01 to q03, q21)
    7. one selection, of the SHA-256 bank, three bytes, exactly the PCRs wanted (`quote.pcr-selection`, `quote.pcr-bank`;
       q08 to q12)
    8. pcrDigest has the length of its algorithm (`quote.length`; q13)
    9. side data holds exactly those PCRs and hashes to pcrDigest (`quote.pcr-values`, `quote.pcr-digest`; q09, q10)
    10. PCR 0 and PCR 4 are not untouched (`quote.pcr-unset`; q20)
    11. counters only go forward (`quote.counters`; q16), yes or no is 0 or 1 (`quote.safe`); a changed firmware version
        and an unsafe clock are findings (q18, q19), a reset is told to the caller (q17)

    Raises Rejected with those codes; no verdict exists before the last check.
    """
    key.check_signature(signature, attest)  # 1, 2
    wanted = _selection(wanted_pcrs, key.digest_bytes)
    values = _side_data(pcrs, wanted)
    begin = key.attest_head + _U16.pack(len(qualifying_data)) + qualifying_data
    at = len(begin)
    if (
        values is None
        or attest[:at] != begin  # 3 to 6
        or attest[at + _CLOCK.size :] != wanted.selection + key.pcr_digest(b"".join(values))  # 3, 7 to 9
    ):
        _refuse(key, attest, qualifying_data=qualifying_data, pcrs=pcrs, wanted=wanted)
    _check_extended(pcrs, wanted_pcrs)  # 10
    clock, reset, restart, safe, firmware = _CLOCK.unpack_from(attest, at)
    if safe > 1:
        raise Rejected("quote.safe", f"{safe} is neither yes nor no (9.3)")
    counters = Counters(reset=reset, restart=restart, clock=clock, safe=safe == 1, firmware_version=firmware)
    return _verified(key, counters, dict(pcrs), previous)  # 11


def _refuse(
    key: AttestationKey,
    attest: bytes,
    *,
    qualifying_data: bytes,
    pcrs: Mapping[int, bytes],
    wanted: _Selection,
) -> NoReturn:
    """Raise the first of the checks 3 to 9 that does not hold. All of them hold for one string of bytes alone."""
    said = parse_attest(attest)  # 3, 4, 7
    if said.signer != key.qualified_name:  # 5
        raise Rejected("quote.signer", "the qualified signer is not the enrolled AK under the enrolled EK")
    if said.extra != qualifying_data:  # 6
        raise Rejected("quote.nonce", "extraData is not what was asked to be quoted over")
    if said.selected != wanted.bits:  # 7
        raise Rejected("quote.pcr-selection", f"bit map {said.selected.hex()}, wanted {wanted.bits.hex()}")
    values = _side_data(pcrs, wanted)
    if values is None:  # 9
        shown = {pcr: len(value) for pcr, value in sorted(pcrs.items())}
        detail = f"values of {shown} bytes shown, wanted {PCR_BYTES} each of {list(wanted.order)}"
        raise Rejected("quote.pcr-values", detail)
    wanted_digest = key.pcr_digest(b"".join(values))
    if len(said.digest) != len(wanted_digest):  # 8
        raise Rejected(
            "quote.length", f"pcrDigest of {len(said.digest)} bytes, the algorithm's has {len(wanted_digest)}"
        )
    if said.digest != wanted_digest:  # 9
        raise Rejected("quote.pcr-digest", "the PCR values shown are not those that the TPM signed")
    raise AssertionError("a quote that passes every check is the one that was wanted")


def parse_attest(untrusted: bytes) -> Attest:
    """Parse a TPMS_ATTEST of a quote over one selection, of the SHA-256 bank (Part 2, 10.12.8 and 10.6.2).

    Decides nothing: neither whose quote it is nor what it is over. Raises Rejected `quote.length`, `quote.magic`,
    `quote.type`, `quote.pcr-selection`, `quote.pcr-bank` (checks 3, 4 and 7 of `verify_quote`).
    """
    size = len(untrusted)
    if size < _FIXED_BYTES:
        raise Rejected("quote.length", f"{size} bytes, at least {_FIXED_BYTES}")
    magic, kind, signer_size = _HEAD.unpack_from(untrusted)
    if magic != TPM_GENERATED:  # 4: before anything behind it is interpreted
        raise Rejected("quote.magic", f"{magic:#010x} is not TPM_GENERATED_VALUE (10.12.8)")
    if kind != ST_ATTEST_QUOTE:
        raise Rejected("quote.type", f"{kind:#06x} is not TPM_ST_ATTEST_QUOTE (10.12.8)")
    extra_at = _HEAD.size + signer_size
    if extra_at + 2 > size:
        raise Rejected("quote.length", f"signer of {signer_size} bytes in {size}")
    (extra_size,) = _U16.unpack_from(untrusted, extra_at)
    middle_at = extra_at + 2 + extra_size
    select_at = middle_at + _MIDDLE.size
    if select_at + _SELECTION.size > size:
        raise Rejected("quote.length", f"extra data of {extra_size} bytes in {size}")
    clock, reset, restart, safe, firmware, selections = _MIDDLE.unpack_from(untrusted, middle_at)
    bank, select_size, selected, digest_size = _SELECTION.unpack_from(untrusted, select_at)
    if selections != 1 or select_size != _SELECT_BYTES:  # 7
        raise Rejected("quote.pcr-selection", f"{selections} selections, the first of {select_size} bytes")
    if bank != tpm.ALG_SHA256:
        raise Rejected("quote.pcr-bank", f"{bank:#06x} is not the SHA-256 bank")
    digest_at = select_at + _SELECTION.size
    if digest_at + digest_size != size:  # 3
        raise Rejected("quote.length", f"pcrDigest of {digest_size} bytes ends {size - digest_at} further")
    return Attest(
        untrusted[_HEAD.size : extra_at],
        untrusted[extra_at + 2 : middle_at],
        clock,
        reset,
        restart,
        safe,
        firmware,
        selected,
        untrusted[digest_at:],
    )


def _side_data(pcrs: Mapping[int, bytes], wanted: _Selection) -> Sequence[bytes] | None:
    """Return the values in order; None unless they are of exactly these PCRs, each of one SHA-256 digest (check 9)."""
    try:
        values = wanted.values_of(pcrs)
    except KeyError:
        return None
    return values if len(pcrs) == len(wanted.order) and list(map(len, values)) == wanted.lengths else None


def _check_extended(pcrs: Mapping[int, bytes], wanted: frozenset[int]) -> None:
    for pcr in _ALWAYS_EXTENDED:
        if pcr in wanted and pcrs[pcr] == _ALL_ZERO:
            raise Rejected("quote.pcr-unset", f"PCR {pcr} was never extended: nothing measured this boot")


def _verified(
    key: AttestationKey, counters: Counters, pcrs: dict[int, bytes], previous: Counters | None
) -> VerifiedQuote:
    """Judge the counters (check 11) and make the result."""
    rebooted = resumed = False
    if previous is not None:
        rebooted = counters.reset > previous.reset
        resumed = not rebooted and counters.restart > previous.restart
        if (
            counters.reset < previous.reset
            or (not rebooted and counters.restart < previous.restart)
            or (not rebooted and not resumed and counters.clock < previous.clock)
        ):
            raise Rejected("quote.counters", f"{_shown(counters)} after {_shown(previous)}")
    quote = object.__new__(VerifiedQuote)
    quote.key = key
    quote.counters = counters
    quote.pcrs = pcrs
    quote.rebooted = rebooted
    quote.resumed = resumed
    quote.findings = _NO_FINDINGS
    if not counters.safe or (previous is not None and previous.firmware_version != counters.firmware_version):
        quote.findings = tuple(_findings(counters, previous))
    return quote


def _findings(counters: Counters, previous: Counters | None) -> list[Finding]:
    found = []
    if previous is not None and previous.firmware_version != counters.firmware_version:
        detail = f"TPM firmware {previous.firmware_version:#x} before, {counters.firmware_version:#x} now"
        found.append(Finding(code="quote.firmware-version", detail=detail))
    if not counters.safe:
        detail = "the TPM lost power without a shutdown: its clock may repeat up to 4 s"
        found.append(Finding(code="quote.clock-unsafe", detail=detail))
    return found


def _shown(counters: Counters) -> str:
    return f"reset {counters.reset}, restart {counters.restart}, clock {counters.clock} ms"
