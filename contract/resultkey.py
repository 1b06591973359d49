"""The verifier's key for attestation results: signs them, and checks the tokens of others.

Refuses: any algorithm but ES256, tokens that are not exactly ours, and to judge by a clock that it was not given. Relies
on PyJWT for the JWS (RFC 7515) alone; claims are parsed here.
"""

from __future__ import annotations

import hashlib
from typing import Final

import jwt
import msgspec
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_public_key

from contract.errors import Rejected
from contract.result import RANK, Result, base64url

ALGORITHM: Final = "ES256"
MAX_TOKEN_BYTES: Final = 512 * 1024


class ResultKey:
    """The verifier's key for results. Its id is the JWK thumbprint (RFC 7638)."""

    __slots__ = ("_private", "id")

    def __init__(self, private: ec.EllipticCurvePrivateKey) -> None:
        """Raises ValueError unless the key is on P-256."""
        if not isinstance(private.curve, ec.SECP256R1):
            raise ValueError("a result key is on P-256")  # noqa: TRY004
        self._private = private
        self.id = key_id(private.public_key())

    def sign(self, result: Result) -> str:
        """Return the token."""
        return jwt.PyJWS().encode(
            msgspec.json.encode(result), self._private, algorithm=ALGORITHM, headers={"kid": self.id}
        )

    @property
    def pem(self) -> bytes:
        """The public key, SubjectPublicKeyInfo."""
        return self._private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)

    @property
    def jwk(self) -> dict[str, str]:
        """The public key as a JWK (RFC 7517)."""
        return {**_jwk(self._private.public_key()), "use": "sig", "alg": ALGORITHM, "kid": self.id}


def key_id(public: ec.EllipticCurvePublicKey) -> str:
    """Return the JWK thumbprint, SHA-256 (RFC 7638, clause 3): required members in the order of their names."""
    return base64url(hashlib.sha256(msgspec.json.encode(_jwk(public), order="sorted")).digest())


def load_result_key(untrusted_pem: bytes) -> ec.EllipticCurvePublicKey:
    """Load a public result key. Raises Rejected `result.key`."""
    try:
        key = load_pem_public_key(untrusted_pem)
    except (ValueError, TypeError):
        raise Rejected("result.key", "not a PEM public key") from None
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise Rejected("result.key", "wanted a key on P-256")
    return key


def verify_result(untrusted: bytes, key: ec.EllipticCurvePublicKey, *, now: float | None) -> Result:
    """Verify a token and return what it says. `now` None: of whenever (an auditor's question).

    1. size and form, ES256 and nothing else, no critical headers (`result.malformed`, `result.algorithm`)
    2. the signature is this key's (`result.signature`)
    3. the claims are ours, strictly (`result.malformed`); one appraisal, of the subject (`result.subject`)
    4. the status is no better than any area (`result.status`)
    5. it holds now (`result.expired`, `result.early`)

    Raises Rejected with those codes.
    """
    if len(untrusted) > MAX_TOKEN_BYTES:  # 1
        raise Rejected("result.malformed", f"{len(untrusted)} bytes, at most {MAX_TOKEN_BYTES}")
    try:
        payload = jwt.PyJWS().decode_complete(untrusted.strip(), key, algorithms=[ALGORITHM])["payload"]
    except jwt.InvalidAlgorithmError:
        raise Rejected("result.algorithm", f"wanted {ALGORITHM}") from None
    except jwt.InvalidSignatureError:  # 2
        raise Rejected("result.signature", "not this key's signature over this result") from None
    except (jwt.PyJWTError, ValueError) as error:
        raise Rejected("result.malformed", type(error).__name__) from None
    try:
        result = msgspec.json.decode(payload, type=Result)  # 3
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Rejected("result.malformed", str(error)) from None
    if list(result.submods) != [result.sub]:
        raise Rejected("result.subject", "the appraisal is of another than the subject")
    said = result.appraisal
    if any(
        RANK[tier] > RANK[result.ear_status] for tier in (said.ear_status, *said.appraised.tiers.values())
    ):
        raise Rejected("result.status", "the status is better than one of its areas")  # 4
    if now is not None and now >= result.exp:  # 5
        raise Rejected("result.expired", f"held until {result.exp}")
    if now is not None and now < result.nbf:
        raise Rejected("result.early", f"holds from {result.nbf}")
    return result


def _jwk(public: ec.EllipticCurvePublicKey) -> dict[str, str]:
    point = public.public_numbers()
    x, y = (base64url(n.to_bytes(32, "big")) for n in (point.x, point.y))
    return {"crv": "P-256", "kty": "EC", "x": x, "y": y}
