"""Directives in envelopes: what a hostile or confused controller may send (ATTACKS a07)."""

from __future__ import annotations

import base64
import subprocess
from pathlib import Path
from typing import Any

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given
from hypothesis import strategies as st
from securesystemslib.dsse import Envelope
from securesystemslib.signer import CryptoSigner

from contract.directive import PAYLOAD_TYPE, Directive, Response, WantedBaseline
from contract.envelope import MAX_CLOCK_SKEW_S, MAX_ENVELOPE_BYTES, MAX_LIFETIME_S, open_directive
from contract.errors import Rejected
from contract.sealing import directive_signer, sign_directive

NOW = 1_800_000_000.0
KEY = Ed25519PrivateKey.generate()
SIGNER = directive_signer(KEY)
OTHER = Ed25519PrivateKey.generate()


def der(key: Ed25519PrivateKey) -> bytes:
    return key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def directive(**changes: Any) -> Directive:
    fields: dict[str, Any] = {
        "node": "factory-1",
        "number": 8,
        "issued": NOW,
        "expires": NOW + 600,
        "posture": "isolated",
        "reason": "PCR 9 differs",
        "baseline": WantedBaseline(name="factory", version=3, sha256="ab" * 32),
        "responses": [Response(name="fence", addresses=["192.0.2.7"])],
    }
    return Directive(**(fields | changes))


def opened(untrusted: bytes, **changes: Any) -> Directive:
    facts: dict[str, Any] = {"node": "factory-1", "now": NOW + 1, "highest_number": 7}
    key = changes.pop("key", der(KEY))
    return open_directive(untrusted, key, **(facts | changes))


def refused(untrusted: bytes, **changes: Any) -> str:
    with pytest.raises(Rejected) as caught:
        opened(untrusted, **changes)
    return caught.value.code


def raw_signed(payload: bytes, payload_type: str = PAYLOAD_TYPE, *keys: Ed25519PrivateKey) -> bytes:
    """An envelope over any payload, well signed."""
    envelope = Envelope(payload, payload_type, {})
    for key in keys or (KEY,):
        envelope.sign(CryptoSigner(key))
    return msgspec.json.encode(envelope.to_dict())


def changed(envelope: bytes, **fields: Any) -> bytes:
    return msgspec.json.encode(msgspec.json.decode(envelope) | fields)


def test_a_good_directive_comes_out_as_it_went_in() -> None:
    assert opened(sign_directive(directive(), SIGNER)) == directive()


def test_openssl_agrees_with_the_signature(tmp_path: Path) -> None:
    envelope = msgspec.json.decode(sign_directive(directive(), SIGNER))
    payload = base64.b64decode(envelope["payload"], validate=True)
    # Pre-authentication encoding, by hand from the DSSE protocol, clause "PAE".
    message = b"DSSEv1 %d %s %d %s" % (len(PAYLOAD_TYPE), PAYLOAD_TYPE.encode(), len(payload), payload)
    (tmp_path / "message").write_bytes(message)
    (tmp_path / "signature").write_bytes(base64.b64decode(envelope["signatures"][0]["sig"], validate=True))
    (tmp_path / "key.der").write_bytes(der(KEY))
    done = subprocess.run(
        [
            "openssl",
            "pkeyutl",
            "-verify",
            "-rawin",
            "-pubin",
            "-keyform",
            "DER",
            "-inkey",
            "key.der",
            "-in",
            "message",
            "-sigfile",
            "signature",
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert "Signature Verified Successfully" in done.stdout, done.stderr


def test_a07_directive_of_another_controller_is_rejected() -> None:
    assert refused(sign_directive(directive(), directive_signer(OTHER))) == "directive.signature"


def test_a07_key_id_of_the_right_key_on_a_foreign_signature_is_rejected() -> None:
    good = msgspec.json.decode(sign_directive(directive(), SIGNER))
    forged = msgspec.json.decode(sign_directive(directive(posture="normal"), directive_signer(OTHER)))
    forged["signatures"][0]["keyid"] = good["signatures"][0]["keyid"]
    assert refused(msgspec.json.encode(forged)) == "directive.signature"


def test_a07_one_changed_byte_of_the_payload_is_rejected() -> None:
    good = sign_directive(directive(), SIGNER)
    payload = base64.b64decode(msgspec.json.decode(good)["payload"])
    payload = payload.replace(b'"isolated"', b'"normal"')
    assert refused(changed(good, payload=base64.b64encode(payload).decode())) == "directive.signature"


def test_a07_directive_for_another_node_is_rejected() -> None:
    assert refused(sign_directive(directive(node="factory-2"), SIGNER)) == "directive.other-node"


def test_a07_expired_directive_is_rejected() -> None:
    envelope = sign_directive(directive(), SIGNER)
    assert opened(envelope, now=NOW + 600).number == 8
    assert refused(envelope, now=NOW + 600.5) == "directive.expired"


def test_a07_directive_from_the_future_is_rejected() -> None:
    envelope = sign_directive(directive(), SIGNER)
    assert opened(envelope, now=NOW - MAX_CLOCK_SKEW_S).number == 8
    assert refused(envelope, now=NOW - MAX_CLOCK_SKEW_S - 1) == "directive.issued-in-future"


@pytest.mark.parametrize("lifetime_s", [0, -600, MAX_LIFETIME_S + 1, 365 * 86400.0])
def test_a07_directive_that_lives_too_long_or_never_is_rejected(lifetime_s: float) -> None:
    bad = directive(expires=NOW + lifetime_s)
    assert refused(raw_signed(msgspec.json.encode(bad))) == "directive.lifetime"
    with pytest.raises(ValueError, match="lives"):
        sign_directive(bad, SIGNER)


def test_a07_old_number_is_rejected() -> None:
    assert refused(sign_directive(directive(), SIGNER), highest_number=9) == "directive.number"


def test_a07_reused_number_with_other_content_is_rejected() -> None:
    before = sign_directive(directive(), SIGNER)
    again = sign_directive(directive(posture="normal"), SIGNER)
    assert refused(again, highest_number=8, last_accepted=before) == "directive.number-reused"
    assert refused(again, highest_number=8) == "directive.number-reused"
    assert refused(again, highest_number=8, last_accepted=b"damaged") == "directive.number-reused"


def test_a07_the_same_order_twice_is_told_apart_from_a_reused_number() -> None:
    before = sign_directive(directive(), SIGNER)
    assert refused(before, highest_number=8, last_accepted=before) == "directive.replayed"
    # Harmless also when it has expired meanwhile: it is in force already.
    late = NOW + 5000
    assert refused(before, highest_number=8, last_accepted=before, now=late) == "directive.replayed"


def test_a07_unknown_response_refuses_the_whole_directive() -> None:
    envelope = sign_directive(directive(responses=[Response(name="fence"), Response(name="wipe")]), SIGNER)
    assert refused(envelope, known_responses={"fence", "isolate"}) == "directive.response-unknown"
    assert opened(envelope, known_responses={"fence", "wipe"}).number == 8


@pytest.mark.parametrize(
    "field",
    [
        {"command": "rm -rf /"},
        {"rules": "accept"},
        {"posture": "open"},
        {"number": 8.5},
        {"number": -1},
        {"number": 2**60},
        {"number": True},
        {"node": "factory-1\n"},
        {"expires": "never"},
        {"baseline": {"name": "factory", "version": 3, "sha256": "AB" * 32}},
        {"baseline": {"name": "factory", "version": 3, "sha256": "ab" * 32, "url": "https://192.0.2.1/"}},
        {"responses": [{"name": "../fence"}]},
    ],
    ids=str,
)
def test_a07_unknown_field_or_wrong_type_in_a_well_signed_directive_is_rejected(
    field: dict[str, Any],
) -> None:
    payload = msgspec.json.decode(msgspec.json.encode(directive())) | field
    assert refused(raw_signed(msgspec.json.encode(payload))) == "directive.malformed"


def test_a07_other_payload_type_is_rejected_though_well_signed() -> None:
    payload = msgspec.json.encode(directive())
    envelope = raw_signed(payload, "application/vnd.in-toto+json")
    assert refused(envelope) == "directive.payload-type"
    # The type is signed: writing the right one over it does not help.
    assert refused(changed(envelope, payloadType=PAYLOAD_TYPE)) == "directive.signature"


def test_a07_none_two_or_doubled_signatures_are_rejected() -> None:
    payload = msgspec.json.encode(directive())
    one = raw_signed(payload)
    signature = msgspec.json.decode(one)["signatures"][0]
    assert refused(changed(one, signatures=[])) == "directive.signatures"
    assert refused(changed(one, signatures=[signature, signature])) == "directive.signatures"
    assert refused(raw_signed(payload, PAYLOAD_TYPE, KEY, OTHER)) == "directive.signatures"


def test_a07_trailing_bytes_missing_bytes_and_size_are_rejected() -> None:
    good = sign_directive(directive(), SIGNER)
    assert refused(good + b"{}") == "directive.malformed"
    assert refused(good[:-1]) == "directive.malformed"
    assert refused(b"") == "directive.malformed"
    assert refused(b"[" * 100_000) == "directive.malformed"
    assert refused(good + b" " * MAX_ENVELOPE_BYTES) == "directive.too-large"
    assert refused(changed(good, extra=1)) == "directive.malformed"
    trailing = msgspec.json.encode(directive()) + b"{}"
    assert refused(raw_signed(trailing)) == "directive.malformed"


def test_a07_key_that_is_no_ed25519_key_is_rejected() -> None:
    elliptic = generate_private_key(SECP256R1()).public_key()
    good = sign_directive(directive(), SIGNER)
    spki = elliptic.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    assert refused(good, key=spki) == "directive.key"
    assert refused(good, key=b"") == "directive.key"
    assert refused(good, key=der(KEY) + b"\0") == "directive.key"


def test_a_directive_that_no_node_could_take_is_not_signed() -> None:
    addresses = [f"2001:db8::{'1' * 200}{n}" for n in range(4096)]
    with pytest.raises(ValueError, match="bytes"):
        sign_directive(directive(responses=[Response(name="fence", addresses=addresses)] * 2), SIGNER)


@given(st.binary(max_size=300))
def test_a07_no_byte_string_raises_anything_but_rejected(garbage: bytes) -> None:
    with pytest.raises(Rejected):
        opened(garbage)
    with pytest.raises(Rejected):
        opened(raw_signed(garbage))


@given(st.integers(0, 10_000), st.integers(0, 255))
def test_a07_no_changed_byte_is_accepted_with_other_content(position: int, value: int) -> None:
    good = bytearray(sign_directive(directive(), SIGNER))
    good[position % len(good)] = value
    try:
        assert opened(bytes(good)) == directive()
    except Rejected as error:
        assert error.code.startswith("directive.")
