"""The attestation key as an auditor holds it: a TPM2B_PUBLIC, or PEM that says less.

A TPM2B_PUBLIC says what the key may sign; PEM holds the bare key, so that neither its attributes nor its place under
an EK can be checked. Refuses every key that a node could not have enrolled. Vouches for nothing: that the key lives in
a TPM at all was proved at enrolment (credential activation), and whoever trusts a file trusts its giver for that.
"""

from __future__ import annotations

from typing import Final

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from msgspec import Struct as Record

from contract import tpm
from contract.enrolment import check_ak, check_ek
from contract.errors import Rejected
from contract.quote import AttestationKey

MAX_KEY_BYTES: Final = 16 * 1024
_PEM: Final = b"-----BEGIN"
_RSA_BITS: Final = frozenset({2048, 3072})
_CURVES: Final = frozenset({"secp256r1", "secp384r1"})


class AuditKey(Record, frozen=True, kw_only=True):
    """An AK to hold a quote against."""

    key: tpm.PublicKey
    public: bytes | None
    """TPM2B_PUBLIC, parsed once already; None where PEM was given."""
    qualified_name: bytes | None
    """None where no EK was given: the quote's signer is then not checked."""

    @property
    def algorithm(self) -> str:
        """Return "rsa2048", "rsa3072", "ecc256" or "ecc384"."""
        return f"{'rsa' if isinstance(self.key, rsa.RSAPublicKey) else 'ecc'}{self.key.key_size}"

    def check_attributes(self) -> None:
        """Check that the key may sign nothing but what its TPM made. Raises Rejected `ak.attributes`, `ak.scheme` (b02).

        A key that signs foreign bytes signs a forged quote as gladly. Nothing is checked where PEM was given.
        """
        if self.public is not None:
            check_ak(self.public)

    def loaded(self, untrusted_signature: bytes, signer: bytes) -> AttestationKey:
        """Return the key that expects `signer`. PEM names no scheme: there the hash is the signature's own choice, of
        SHA-256, SHA-384 and SHA-512. Raises Rejected `ak.scheme`, `quote.signature-length`, `quote.signature-scheme`."""
        if self.public is not None:
            return AttestationKey(self.key, tpm.parse_public(self.public).scheme_hash, signer)
        if len(untrusted_signature) < 4:
            raise Rejected(
                "quote.signature-length", f"{len(untrusted_signature)} bytes are no TPMT_SIGNATURE"
            )
        scheme_hash = int.from_bytes(untrusted_signature[2:4], "big")
        if scheme_hash not in tpm.NAME_ALGORITHMS:
            detail = f"hash {scheme_hash:#06x} is not SHA-256, SHA-384 or SHA-512"
            raise Rejected("quote.signature-scheme", detail)
        return AttestationKey(self.key, scheme_hash, signer)


def read_key(ak: bytes, ek: bytes | None = None) -> AuditKey:
    """Read an AK (PEM or TPM2B_PUBLIC) and, if wanted, the EK it is a child of (TPM2B_PUBLIC).

    Raises Rejected `ak.unreadable`, `ek.unreadable`: the auditor's own files, not evidence.
    """
    if len(ak) > MAX_KEY_BYTES:
        raise Rejected("ak.unreadable", f"more than {MAX_KEY_BYTES} bytes")
    if ak.lstrip().startswith(_PEM):
        if ek is not None:
            raise Rejected(
                "ak.unreadable", "PEM holds no Name, so no EK can be checked with it: give TPM2B_PUBLIC"
            )
        return AuditKey(key=_from_pem(ak), public=None, qualified_name=None)
    try:
        public = tpm.parse_public(ak)
    except Rejected as refused:
        raise Rejected("ak.unreadable", f"neither PEM nor a TPM2B_PUBLIC: {refused.detail}") from None
    return AuditKey(
        key=public.key, public=ak, qualified_name=None if ek is None else _qualified_name(ek, public)
    )


def _qualified_name(ek: bytes, ak: tpm.Public) -> bytes:
    try:
        return tpm.qualified_name(check_ek(ek), ak)
    except Rejected as refused:
        raise Rejected("ek.unreadable", f"not an EK as TPM2B_PUBLIC: {refused.detail}") from None


def _from_pem(pem: bytes) -> tpm.PublicKey:
    try:
        key = serialization.load_pem_public_key(pem)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise Rejected("ak.unreadable", f"not a public key in PEM: {error}") from None
    if (
        isinstance(key, rsa.RSAPublicKey)
        and key.key_size in _RSA_BITS
        and key.public_numbers().e == tpm.DEFAULT_EXPONENT
    ):
        return key
    if isinstance(key, ec.EllipticCurvePublicKey) and key.curve.name in _CURVES:
        return key
    raise Rejected("ak.unreadable", "not RSA of 2048 or 3072 bits (exponent 65537), P-256 or P-384")
