"""Directives in DSSE envelopes: signing by the controller. `contract.envelope` opens them.

It refuses what no node could ever accept. It relies on securesystemslib for the envelope's encoding
(https://github.com/secure-systems-lab/dsse, protocol 1.0.2) and Ed25519.
"""

from __future__ import annotations

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from securesystemslib.dsse import Envelope
from securesystemslib.signer import CryptoSigner, Signer

from contract.directive import PAYLOAD_TYPE, Directive
from contract.envelope import MAX_ENVELOPE_BYTES, MAX_LIFETIME_S


def directive_signer(private_key: Ed25519PrivateKey) -> Signer:
    """Return the signer of directives for the controller's online key; load it once, use it often."""
    return CryptoSigner(private_key)


def sign_directive(directive: Directive, signer: Signer) -> bytes:
    """Return the DSSE envelope (JSON) of a directive.

    Raises ValueError when no node could ever accept it (lifetime or size): that is a bug of the caller.
    """
    if not 0 < directive.expires - directive.issued <= MAX_LIFETIME_S:
        raise ValueError(f"a directive lives more than 0 and at most {MAX_LIFETIME_S:.0f} s")
    envelope = Envelope(msgspec.json.encode(directive), PAYLOAD_TYPE, {})
    envelope.sign(signer)
    signed = msgspec.json.encode(envelope.to_dict())
    if len(signed) > MAX_ENVELOPE_BYTES:
        raise ValueError(f"a directive of {len(signed)} bytes, at most {MAX_ENVELOPE_BYTES}")
    return signed
