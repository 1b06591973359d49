"""Directives in DSSE envelopes: opening by the agent. The controller signs them with `contract.sealing`.

It refuses everything that is not exactly one good signature by the one directive key over one strict
directive for this very node, in time, with a number above the highest accepted. It keeps no state: node,
time and highest number are passed in. It relies on `cryptography` for Ed25519; what is signed over is one line
of the protocol (https://github.com/secure-systems-lab/dsse, 1.0.2), for which a node need not carry a library.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Annotated

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import load_der_public_key
from msgspec import Meta, Struct

from contract.directive import PAYLOAD_TYPE, Directive
from contract.errors import Rejected
from contract.messages import MAX_BODY_BYTES
from contract.wire import decode_json

MAX_ENVELOPE_BYTES = MAX_BODY_BYTES
MAX_LIFETIME_S = 86_400.0
"""A directive is short-lived: no more than a day between `issued` and `expires`."""
MAX_CLOCK_SKEW_S = 300.0
"""How far ahead of the node's clock `issued` may lie."""
_ED25519_SIGNATURE_BYTES = 64


class _Signature(Struct, frozen=True, forbid_unknown_fields=True):
    keyid: Annotated[str, Meta(max_length=64)]
    sig: Annotated[bytes, Meta(min_length=_ED25519_SIGNATURE_BYTES, max_length=_ED25519_SIGNATURE_BYTES)]


class _Envelope(Struct, frozen=True, forbid_unknown_fields=True, rename="camel"):
    payload: bytes
    payload_type: Annotated[str, Meta(max_length=128)]
    signatures: Annotated[list[_Signature], Meta(max_length=16)]


def open_directive(
    untrusted: bytes,
    public_key_der: bytes,
    *,
    node: str,
    now: float,
    highest_number: int,
    last_accepted: bytes | None = None,
    known_responses: Collection[str] | None = None,
) -> Directive:
    """Return the directive in a DSSE envelope, or raise Rejected. `now` is seconds since 1970.

    `last_accepted` is the envelope accepted with `highest_number`: the very same order again raises
    `directive.replayed`, which is harmless and may be dropped quietly. `known_responses` are the names
    that this agent can carry out; None leaves the question to the caller.

    1. `directive.too-large`, `directive.malformed`: size, then the envelope's exact form
    2. `directive.payload-type`: the payload is a directive of this version and nothing else (DSSE, 3.1)
    3. `directive.signatures`: one signature, not none and not two
    4. `directive.key`, `directive.signature`: by the one key given, over the pre-authentication encoding
    5. `directive.malformed`: the payload's exact form; it is not parsed before it is verified
    6. `directive.other-node`: made for this node
    7. `directive.replayed`, `directive.number-reused`, `directive.number`: newer than all before it
    8. `directive.lifetime`: short-lived
    9. `directive.expired`, `directive.issued-in-future`: in force at `now`
    10. `directive.response-unknown`: every response known, or none is done
    """
    directive, payload = _signed(untrusted, public_key_der, node)  # 1 to 6
    _check_number(directive, payload, highest_number, last_accepted)  # 7
    _check_time(directive, now)  # 8, 9
    if known_responses is not None:  # 10
        for response in directive.responses:
            if response.name not in known_responses:
                raise Rejected("directive.response-unknown", f"no response is called {response.name!r}")
    return directive


def signed_directive(untrusted: bytes, public_key_der: bytes, *, node: str) -> Directive:
    """Return the directive in an envelope, signed for this node at some time: whether it is new and in force is not asked.

    For whoever holds to what was accepted before. Raises Rejected as `open_directive` does, steps 1 to 6.
    """
    return _signed(untrusted, public_key_der, node)[0]


def _signed(untrusted: bytes, public_key_der: bytes, node: str) -> tuple[Directive, bytes]:
    """Return the directive and its payload after the steps 1 to 6 of `open_directive`."""
    outer = _envelope(untrusted)  # 1
    if outer.payload_type != PAYLOAD_TYPE:  # 2
        raise Rejected("directive.payload-type", f"wanted {PAYLOAD_TYPE}, found {outer.payload_type!r}")
    if len(outer.signatures) != 1:  # 3
        raise Rejected("directive.signatures", f"wanted 1 signature, found {len(outer.signatures)}")
    _verify(outer, public_key_der)  # 4
    directive = decode_json(
        outer.payload, Directive, max_bytes=MAX_ENVELOPE_BYTES, code="directive.malformed"
    )  # 5
    if directive.node != node:  # 6
        raise Rejected("directive.other-node", f"made for {directive.node}, this is {node}")
    return directive, outer.payload


def _envelope(untrusted: bytes) -> _Envelope:
    if len(untrusted) > MAX_ENVELOPE_BYTES:
        raise Rejected("directive.too-large", f"{len(untrusted)} bytes, at most {MAX_ENVELOPE_BYTES}")
    return decode_json(untrusted, _Envelope, max_bytes=MAX_ENVELOPE_BYTES, code="directive.malformed")


def _verify(outer: _Envelope, public_key_der: bytes) -> None:
    try:
        public_key = load_der_public_key(public_key_der)
    except (ValueError, UnsupportedAlgorithm):
        raise Rejected("directive.key", "the node's directive key is not a public key in DER") from None
    if not isinstance(public_key, Ed25519PublicKey):
        raise Rejected("directive.key", "the node's directive key is not Ed25519")
    # The key id is a hint that nothing signs (DSSE, 3.1): the one key that counts is the one we hold.
    try:
        public_key.verify(
            outer.signatures[0].sig, pre_authentication_encoding(outer.payload_type, outer.payload)
        )
    except InvalidSignature:
        raise Rejected("directive.signature", "not signed by this controller's directive key") from None


def pre_authentication_encoding(payload_type: str, payload: bytes) -> bytes:
    """Return PAE(type, body) of DSSE 1.0.2: what is signed over."""
    kind = payload_type.encode()
    return b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(payload), payload)


def _check_number(directive: Directive, payload: bytes, highest: int, last_accepted: bytes | None) -> None:
    if directive.number > highest:
        return
    if directive.number < highest:
        raise Rejected("directive.number", f"number {directive.number}, {highest} was accepted before")
    if last_accepted is not None and _same_payload(last_accepted, payload):
        raise Rejected("directive.replayed", f"number {highest} again, word for word")
    raise Rejected("directive.number-reused", f"number {highest} was accepted before with other content")


def _same_payload(last_accepted: bytes, payload: bytes) -> bool:
    try:
        return _envelope(last_accepted).payload == payload
    except Rejected:
        return False  # our own copy is damaged: then nothing proves that this is a mere repetition


def _check_time(directive: Directive, now: float) -> None:
    lifetime_s = directive.expires - directive.issued
    if not 0 < lifetime_s <= MAX_LIFETIME_S:
        raise Rejected(
            "directive.lifetime", f"{lifetime_s:.0f} s, wanted more than 0 and at most {MAX_LIFETIME_S:.0f}"
        )
    if now > directive.expires:
        raise Rejected("directive.expired", f"{now - directive.expires:.0f} s ago by this node's clock")
    if directive.issued > now + MAX_CLOCK_SKEW_S:
        raise Rejected(
            "directive.issued-in-future", f"{directive.issued - now:.0f} s ahead of this node's clock"
        )
