"""Part Q of the attacks, against `contract.quote`, with keys in the test's own hands and with recorded TPMs."""

from __future__ import annotations

import hashlib
import struct
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from contract import tpm
from contract.binding import qualifying_data
from contract.errors import Rejected
from contract.quote import AttestationKey, Counters, VerifiedQuote, verify_quote
from tests.contract.forge import (
    CASES,
    COUNTERS,
    PCRS,
    QUALIFYING,
    WANTED,
    Case,
    Forger,
    one_selection,
    selection,
    sized,
)

ALL_KINDS = ("rsa2048", "rsa3072", "ecc256", "ecc384")


@pytest.fixture(scope="module", params=ALL_KINDS)
def forger(request: pytest.FixtureRequest) -> Forger:
    return Forger(request.param)


@pytest.fixture(scope="module")
def rsa_forger() -> Forger:
    return Forger("rsa2048")


@pytest.fixture(scope="module")
def ecc_forger() -> Forger:
    return Forger("ecc256")


def refused(code: str, call: object, *args: object, **named: object) -> None:
    with pytest.raises(Rejected) as caught:
        call(*args, **named)  # type: ignore[operator]
    assert caught.value.code == code


def test_a_good_quote_of_every_key_type_is_verified(forger: Forger) -> None:
    quote = forger.verify(forger.attest())
    assert dict(quote.pcrs) == PCRS
    assert quote.counters == COUNTERS
    assert not quote.rebooted
    assert quote.findings == ()


@pytest.mark.parametrize("name", CASES)
def test_quotes_of_recorded_boots_are_verified(name: str) -> None:
    case = Case(name)
    assert dict(case.quote().pcrs) == case.pcrs


@pytest.mark.parametrize("name", CASES)
def test_tpm2_checkquote_agrees_on_the_recorded_quotes(name: str, tmp_path: Path) -> None:
    case = Case(name)
    message = tmp_path / "message"
    message.write_bytes(case.read("quote.attest"))
    command = [
        "tpm2_checkquote",
        "-u",
        case.folder / "ak.pem",
        "-m",
        message,
        "-s",
        case.folder / "quote.sig",
    ]
    good = subprocess.run([*command, "-q", case.nonce.hex()], capture_output=True)
    bad = subprocess.run([*command, "-q", "00" * 20], capture_output=True)
    assert (good.returncode == 0, bad.returncode == 0) == (True, False)


def test_a_verified_quote_cannot_be_made_by_hand() -> None:
    with pytest.raises(TypeError):
        VerifiedQuote()


@dataclass
class Session:
    """What both sides put into the qualifying data."""

    nonce: bytes = b"n" * 32
    node: str = "press-1"
    certificate_sha256: bytes = b"c" * 32
    body: bytes = b"report"
    event_log_sha256: bytes = b""

    def bound(self, **changed: object) -> bytes:
        return qualifying_data(**{**vars(self), **changed})  # type: ignore[arg-type]


def test_q01_old_quote_with_its_old_nonce_is_rejected(forger: Forger) -> None:
    session = Session()
    attest = forger.attest(extra=session.bound(nonce=b"o" * 32))
    refused("quote.nonce", forger.verify, attest, extra=session.bound())


def test_q02_nonce_of_another_node_is_rejected(ecc_forger: Forger) -> None:
    session = Session()
    attest = ecc_forger.attest(extra=session.bound(node="press-2"))
    refused("quote.nonce", ecc_forger.verify, attest, extra=session.bound())


def test_q05_attest_without_tpm_magic_is_rejected(forger: Forger) -> None:
    refused("quote.magic", forger.verify, forger.attest(magic=0xFF544346))


@pytest.mark.parametrize("kind", [0x8014, 0x8015, 0x8016, 0x8017, 0x8019, 0x801A, 0x801C, 0])
def test_q06_another_attest_type_is_rejected(ecc_forger: Forger, kind: int) -> None:
    refused("quote.type", ecc_forger.verify, ecc_forger.attest(kind=kind))


@pytest.mark.parametrize("more", [b"\0", b"\0" * 32, b"x" * 5000])
def test_q07_trailing_bytes_are_rejected(ecc_forger: Forger, more: bytes) -> None:
    refused("quote.length", ecc_forger.verify, ecc_forger.attest() + more)


def test_q07_cut_at_every_byte_is_rejected(ecc_forger: Forger) -> None:
    attest = ecc_forger.attest()
    for end in range(len(attest)):
        with pytest.raises(Rejected):
            ecc_forger.verify(attest[:end])


def test_q07_sizes_that_lie_are_rejected(ecc_forger: Forger) -> None:
    attest = ecc_forger.attest()
    for at in (6, 6 + 2 + 34, len(attest) - 34):
        for size in (0, 1, 31, 33, 35, 0x7FFF, 0xFFFF):
            lying = attest[:at] + struct.pack(">H", size) + attest[at + 2 :]
            if lying != attest:
                with pytest.raises(Rejected):
                    ecc_forger.verify(lying)


def test_q07_signature_bytes_missing_or_trailing_are_rejected(forger: Forger) -> None:
    attest = forger.attest()
    signature = forger.sign(attest)
    refused("quote.signature-length", forger.verify, attest, signature=signature + b"\0")
    for end in range(len(signature)):
        with pytest.raises(Rejected):
            forger.verify(attest, signature=signature[:end])


def test_q08_empty_selection_is_rejected(ecc_forger: Forger) -> None:
    nothing = struct.pack(">I", 1) + selection(b"\0\0\0")
    attest = ecc_forger.attest(selections=nothing, digest=hashlib.sha256(b"").digest())
    refused("quote.pcr-selection", ecc_forger.verify, attest)
    none_at_all = ecc_forger.attest(selections=struct.pack(">I", 0))
    with pytest.raises(Rejected):
        ecc_forger.verify(none_at_all)


def test_q08_wanting_nothing_proves_nothing(ecc_forger: Forger) -> None:
    attest = ecc_forger.attest(pcrs={}, digest=hashlib.sha256(b"").digest())
    refused("quote.pcr-selection", ecc_forger.verify, attest, pcrs={}, wanted=frozenset())


def test_q09_fewer_pcrs_than_asked_with_the_rest_unsigned_is_rejected(ecc_forger: Forger) -> None:
    signed = {pcr: PCRS[pcr] for pcr in (0, 1, 2)}
    refused("quote.pcr-selection", ecc_forger.verify, ecc_forger.attest(pcrs=signed))


def test_q09_side_data_other_than_asked_is_rejected(ecc_forger: Forger) -> None:
    attest = ecc_forger.attest()
    less = {pcr: value for pcr, value in PCRS.items() if pcr != 14}
    refused("quote.pcr-values", ecc_forger.verify, attest, pcrs=less)
    refused("quote.pcr-values", ecc_forger.verify, attest, pcrs={**PCRS, 15: bytes(32)})
    refused("quote.pcr-values", ecc_forger.verify, attest, pcrs={**less, 15: PCRS[14]})


def test_q09_side_data_with_moved_boundaries_is_rejected(ecc_forger: Forger) -> None:
    joined = PCRS[0] + PCRS[1]
    moved = {**PCRS, 0: joined[:16], 1: joined[16:]}
    refused("quote.pcr-values", ecc_forger.verify, ecc_forger.attest(), pcrs=moved)


def test_q10_signed_over_one_pcr_and_shown_as_another_is_rejected(ecc_forger: Forger) -> None:
    attest = ecc_forger.attest(pcrs={16: PCRS[0]})
    refused("quote.pcr-selection", ecc_forger.verify, attest, pcrs={0: PCRS[0]}, wanted=frozenset({0}))


def test_q10_values_exchanged_between_pcrs_are_rejected(ecc_forger: Forger) -> None:
    exchanged = {**PCRS, 4: PCRS[5], 5: PCRS[4]}
    refused("quote.pcr-digest", ecc_forger.verify, ecc_forger.attest(), pcrs=exchanged)


def test_q11_two_selections_or_a_doubled_bank_are_rejected(ecc_forger: Forger) -> None:
    one = one_selection(PCRS)[4:]
    for second in (one, selection(b"\1\0\0"), selection(b"\xff\xff\xff", 0x0C)):
        attest = ecc_forger.attest(selections=struct.pack(">I", 2) + one + second)
        refused("quote.pcr-selection", ecc_forger.verify, attest)


@pytest.mark.parametrize("bits", [b"\1", b"\1\2", b"\xff\x43\0\0", b""])
def test_q11_selection_size_other_than_three_is_rejected(ecc_forger: Forger, bits: bytes) -> None:
    attest = ecc_forger.attest(selections=struct.pack(">I", 1) + selection(bits))
    refused("quote.pcr-selection", ecc_forger.verify, attest)


@pytest.mark.parametrize("bank", [0x04, 0x0C, 0x0D, 0x12, 0x27])
def test_q12_another_bank_is_rejected(ecc_forger: Forger, bank: int) -> None:
    attest = ecc_forger.attest(selections=one_selection(PCRS, bank))
    refused("quote.pcr-bank", ecc_forger.verify, attest)


def test_q12_sha1_signature_is_rejected(rsa_forger: Forger) -> None:
    from cryptography.hazmat.primitives import hashes

    assert isinstance(rsa_forger.key, rsa.RSAPrivateKey)
    attest = rsa_forger.attest()
    raw = rsa_forger.key.sign(attest, padding.PKCS1v15(), hashes.SHA1())
    signature = struct.pack(">HH", 0x14, 0x04) + sized(raw)
    refused("quote.signature-scheme", rsa_forger.verify, attest, signature=signature)
    relabelled = struct.pack(">HH", 0x14, 0x0B) + sized(raw)
    refused("quote.signature", rsa_forger.verify, attest, signature=relabelled)


@pytest.mark.parametrize("digest", [b"", b"\0" * 20, b"\0" * 31, b"\0" * 33, b"\0" * 48])
def test_q13_digest_length_that_does_not_fit_is_rejected(ecc_forger: Forger, digest: bytes) -> None:
    refused("quote.length", ecc_forger.verify, ecc_forger.attest(digest=digest))


def test_q13_sha256_digest_under_a_sha384_key_is_rejected() -> None:
    forger = Forger("ecc384")
    short = hashlib.sha256(b"".join(PCRS[pcr] for pcr in sorted(PCRS))).digest()
    refused("quote.length", forger.verify, forger.attest(digest=short))


def test_q14_swapped_scheme_or_key_type_is_rejected(rsa_forger: Forger, ecc_forger: Forger) -> None:
    for forger, other in ((rsa_forger, ecc_forger), (ecc_forger, rsa_forger)):
        attest = forger.attest()
        refused("quote.signature-scheme", forger.verify, attest, signature=other.sign(attest))
    attest = rsa_forger.attest()
    pss = struct.pack(">HH", 0x16, 0x0B) + rsa_forger.sign(attest)[4:]
    refused("quote.signature-scheme", rsa_forger.verify, attest, signature=pss)


def test_q14_r_or_s_zero_or_too_long_is_rejected(ecc_forger: Forger) -> None:
    attest = ecc_forger.attest()
    good = ecc_forger.sign(attest)
    r = int.from_bytes(good[6:38], "big")
    s = int.from_bytes(good[40:], "big")
    order = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
    for bad in ((0, s), (r, 0), (0, 0)):
        refused("quote.signature-length", ecc_forger.verify, attest, signature=ecc_forger.ecdsa(*bad))
    for bad in ((order, s), (r, order)):
        refused("quote.signature", ecc_forger.verify, attest, signature=ecc_forger.ecdsa(*bad))
    long = ecc_forger.ecdsa(r, s, size=33)
    refused("quote.signature-length", ecc_forger.verify, attest, signature=long)


def test_q14_signature_of_another_key_is_rejected(forger: Forger, ecc_forger: Forger) -> None:
    other = Forger(tpm.parse_public(forger.ak_public).algorithm)
    attest = forger.attest()
    refused("quote.signature", forger.verify, attest, signature=other.sign(attest))


def test_q15_qualified_signer_of_another_ek_is_rejected(forger: Forger) -> None:
    other_ek = Forger("ecc256").ek_public
    other = AttestationKey.from_public(forger.ak_public, other_ek)
    refused("quote.signer", forger.verify, forger.attest(signer=other.qualified_name))
    refused("quote.signer", forger.verify, forger.attest(signer=tpm.name_of(forger.ak_public)))
    refused("quote.signer", forger.verify, forger.attest(signer=b""))


def later(**changed: int) -> Counters:
    return msgspec.structs.replace(COUNTERS, **changed)


@pytest.mark.parametrize(
    "now",
    [
        later(reset=6),
        later(reset=6, restart=9, clock=999999),
        later(restart=1),
        later(restart=1, clock=999999),
        later(clock=123455),
        later(clock=0),
    ],
)
def test_q16_counters_that_go_back_are_rejected(ecc_forger: Forger, now: Counters) -> None:
    refused("quote.counters", ecc_forger.verify, ecc_forger.attest(counters=now), previous=COUNTERS)


def test_q16_counters_that_go_on_are_accepted(ecc_forger: Forger) -> None:
    same = ecc_forger.verify(ecc_forger.attest(), previous=COUNTERS)
    assert (same.rebooted, same.resumed) == (False, False)
    woken = ecc_forger.verify(ecc_forger.attest(counters=later(restart=3, clock=1)), previous=COUNTERS)
    assert (woken.rebooted, woken.resumed) == (False, True)


def test_q17_a_reset_is_told_to_the_caller(ecc_forger: Forger) -> None:
    attest = ecc_forger.attest(counters=later(reset=8, restart=0, clock=5))
    quote = ecc_forger.verify(attest, previous=COUNTERS)
    assert quote.rebooted


def test_q18_changed_firmware_version_is_a_finding(ecc_forger: Forger) -> None:
    attest = ecc_forger.attest(counters=later(reset=8, firmware_version=5))
    quote = ecc_forger.verify(attest, previous=COUNTERS)
    assert [finding.code for finding in quote.findings] == ["quote.firmware-version"]


def test_q19_unsafe_clock_is_a_finding_and_no_compromise(ecc_forger: Forger) -> None:
    attest = ecc_forger.attest(counters=Counters(**{**msgspec.structs.asdict(COUNTERS), "safe": False}))
    quote = ecc_forger.verify(attest, previous=COUNTERS)
    assert [finding.code for finding in quote.findings] == ["quote.clock-unsafe"]
    refused("quote.safe", ecc_forger.verify, ecc_forger.attest(safe=2))


@pytest.mark.parametrize("pcr", [0, 4])
def test_q20_all_zero_pcr_is_rejected(ecc_forger: Forger, pcr: int) -> None:
    pcrs = {**PCRS, pcr: bytes(32)}
    refused("quote.pcr-unset", ecc_forger.verify, ecc_forger.attest(pcrs=pcrs), pcrs=pcrs)
    others = {**PCRS, 5: bytes(32)}
    assert ecc_forger.verify(ecc_forger.attest(pcrs=others), pcrs=others).pcrs[5] == bytes(32)


@pytest.mark.parametrize(
    "changed",
    [
        {"body": b"report2"},
        {"certificate_sha256": b"d" * 32},
        {"event_log_sha256": b"e" * 32},
        {"node": "press-11"},
        {"nonce": b"m" * 32},
        # A byte moved over the border between two fields.
        {"node": "press-", "certificate_sha256": b"1" + b"c" * 32},
    ],
)
def test_q21_what_the_quote_covers_changed_after_it_is_rejected(
    ecc_forger: Forger, changed: dict[str, object]
) -> None:
    session = Session()
    attest = ecc_forger.attest(extra=session.bound())
    assert ecc_forger.verify(attest, extra=session.bound())
    refused("quote.nonce", ecc_forger.verify, attest, extra=session.bound(**changed))


def test_a_flipped_bit_anywhere_is_rejected(ecc_forger: Forger) -> None:
    attest = ecc_forger.attest()
    signature = ecc_forger.sign(attest)
    for at in range(len(attest)):
        flipped = attest[:at] + bytes([attest[at] ^ 1]) + attest[at + 1 :]
        refused("quote.signature", ecc_forger.verify, flipped, signature=signature)


@pytest.mark.parametrize("kind", ["rsa2048", "ecc256"])
def test_verification_costs_at_most_twice_the_bare_signature_check(kind: str) -> None:
    forger = Forger(kind)
    attest = forger.attest()
    signature = forger.sign(attest)
    key = forger.key.public_key()
    if isinstance(key, rsa.RSAPublicKey):
        arguments = (signature[6:], attest, padding.PKCS1v15(), forger.hash)
    else:
        r, s = int.from_bytes(signature[6:38], "big"), int.from_bytes(signature[40:], "big")
        arguments = (encode_dss_signature(r, s), attest, ec.ECDSA(forger.hash))  # type: ignore[assignment]

    def bare() -> None:
        key.verify(*arguments)

    def whole() -> None:
        verify_quote(
            forger.attestation_key,
            attest,
            signature,
            qualifying_data=QUALIFYING,
            pcrs=PCRS,
            wanted_pcrs=WANTED,
            previous=COUNTERS,
        )

    def cost(call: object) -> float:
        begun = time.process_time()
        for _ in range(200):
            call()  # type: ignore[operator]
        return time.process_time() - begun

    # The best of several, taken in turn: other work on the machine only ever adds.
    pairs = [(cost(bare), cost(whole)) for _ in range(10)]
    assert min(b for b, _ in pairs) / min(w for _, w in pairs) >= 0.5
