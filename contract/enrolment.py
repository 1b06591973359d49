"""What a node must prove of its TPM before its id is bound: key attributes, EK identity, possession.

Pure checks over bytes; who may enrol and under which id is for the controller to decide. It relies on
`contract.ekcert` for the certificate path and on `contract.credential` for the challenge.
"""

from __future__ import annotations

import hmac
from collections.abc import Collection, Sequence
from hashlib import sha256
from typing import Final, Literal

from cryptography import x509
from msgspec import Struct

from contract import tpm
from contract.certpath import Trust
from contract.ekcert import check_certificate
from contract.errors import Rejected
from contract.tpmvendor import TpmKind

SECRET_BYTES: Final = 32
TrustSource = Literal["certificate", "allow-list", "unverified"]
NEVER_LISTED: Final = frozenset({"ek.revoked", "ek.crl-signature"})
"""What a person's list does not overrule: the maker says that the key is lost, or somebody forged what the maker says."""
_AK_MUST: Final = {
    "fixedTPM": tpm.FIXED_TPM,
    "fixedParent": tpm.FIXED_PARENT,
    "sensitiveDataOrigin": tpm.SENSITIVE_DATA_ORIGIN,
    "restricted": tpm.RESTRICTED,
    "sign": tpm.SIGN,
}
_EK_MUST: Final = {
    "fixedTPM": tpm.FIXED_TPM,
    "fixedParent": tpm.FIXED_PARENT,
    "sensitiveDataOrigin": tpm.SENSITIVE_DATA_ORIGIN,
    "restricted": tpm.RESTRICTED,
    "decrypt": tpm.DECRYPT,
}


class AkFacts(Struct, frozen=True, kw_only=True):
    """An AK whose public area says what it must. Worth something once the credential has been activated."""

    name: bytes
    algorithm: str
    """"rsa2048", "rsa3072", "ecc256" or "ecc384"."""
    hash: str
    """"sha256", "sha384" or "sha512"."""
    sha256: str
    """SHA-256 of the TPM2B_PUBLIC, for unique constraints and for people."""


class EkTrust(Struct, frozen=True, kw_only=True):
    """Why an EK is believed to live in a TPM."""

    ek_sha256: str
    """The EK's id everywhere: SHA-256 of its SubjectPublicKeyInfo."""
    source: Literal["certificate", "allow-list"]
    algorithm: str
    root_sha256: str = ""
    manufacturer: str = ""
    model: str = ""
    firmware: str = ""
    kind: TpmKind = "unknown"
    note: str = ""
    """The code for which the certificate was of no use, where the allow-list was."""
    notes: tuple[str, ...] = ()
    """What was accepted although it is not as it should be: a code, a colon and the reason."""

    @property
    def virtual(self) -> bool:
        """The TPM is a program, as far as its maker says so."""
        return self.kind == "virtual"


def ek_digest(ek_public: bytes) -> str:
    """Return the EK's id: SHA-256 hex of its SubjectPublicKeyInfo DER. Raises Rejected `tpm.public`."""
    return sha256(tpm.parse_public(ek_public).spki).hexdigest()


def check_ak(ak_public: bytes) -> AkFacts:
    """Check that a TPM2B_PUBLIC is an attestation key's (TPM 2.0 Part 1, 24 and 31; Part 2, 8.3).

    1. restricted, fixedTPM, fixedParent, sensitiveDataOrigin, sign; not decrypt (`ak.attributes`; b02)
    2. signs by RSASSA or ECDSA with SHA-256 or longer (`ak.scheme`)
    3. has no symmetric algorithm: a signing key has none (`ak.attributes`)

    Raises Rejected also with `tpm.public`.
    """
    ak = tpm.parse_public(ak_public)
    _check_attributes("ak.attributes", ak.attributes, _AK_MUST, "decrypt", tpm.DECRYPT)  # 1
    wanted = tpm.ALG_RSASSA if ak.type == tpm.ALG_RSA else tpm.ALG_ECDSA
    if ak.scheme != wanted or ak.scheme_hash not in tpm.NAME_ALGORITHMS:  # 2
        raise Rejected("ak.scheme", f"scheme {ak.scheme:#06x} with hash {ak.scheme_hash:#06x}")
    if ak.symmetric is not None:  # 3
        raise Rejected("ak.attributes", "a signing key with a symmetric algorithm")
    return AkFacts(
        name=ak.name,
        algorithm=ak.algorithm,
        hash=tpm.HASH_NAMES[ak.scheme_hash],
        sha256=sha256(ak_public).hexdigest(),
    )


def check_ek(ek_public: bytes) -> tpm.Public:
    """Check that a TPM2B_PUBLIC is a storage key that never leaves its TPM. Raises Rejected `ek.attributes`, `tpm.public`."""
    ek = tpm.parse_public(ek_public)
    _check_attributes("ek.attributes", ek.attributes, _EK_MUST, "sign", tpm.SIGN)
    if ek.symmetric is None or ek.scheme != tpm.ALG_NULL:
        raise Rejected("ek.attributes", "not a storage key: no AES-CFB, or a scheme of its own")
    return ek


def _check_attributes(code: str, attributes: int, must: dict[str, int], never: str, never_bit: int) -> None:
    missing = [name for name, bit in must.items() if not attributes & bit]
    if missing:
        raise Rejected(code, f"not {', '.join(missing)}")
    if attributes & never_bit:
        raise Rejected(code, f"can {never}")


def check_identity(
    ek_public: bytes,
    ek_certificate: bytes,
    roots: Sequence[x509.Certificate] | Trust,
    allow_listed_ek_sha256: Collection[str],
    now: float,
    *,
    ek_chain: bytes = b"",
    hardware_only: bool = False,
) -> EkTrust:
    """Return why this EK is trusted. `now` in seconds since 1970; an empty allow-list and no roots trust nothing.

    1. the public area is an EK's (`ek.attributes`)
    2. its certificate leads to a configured root (`ek.certificate-*`, see `contract.ekcert`; b07), or
    3. the EK is on the allow-list, whatever its certificate is like (b08), but not when its maker has revoked it or a list
       of revocations was tampered with (`ek.revoked`, `ek.crl-signature`)
    4. where hardware is required, it is (`check_hardware`; b07)
    """
    ek = check_ek(ek_public)  # 1
    ek_sha256 = sha256(ek.spki).hexdigest()
    trust = roots if isinstance(roots, Trust) else Trust(certificates=roots)
    try:
        certified = check_certificate(ek, ek_certificate, ek_chain, trust, now=now)  # 2
    except Rejected as refused:
        if ek_sha256 not in allow_listed_ek_sha256 or refused.code in NEVER_LISTED:  # 3
            raise
        found = EkTrust(
            ek_sha256=ek_sha256,
            source="allow-list",
            algorithm=ek.algorithm,
            note=refused.code,
            notes=(f"{refused.code}: {refused.detail}"[:512],),
        )
    else:
        found = EkTrust(
            ek_sha256=ek_sha256,
            source="certificate",
            algorithm=ek.algorithm,
            root_sha256=certified.root_sha256,
            manufacturer=certified.manufacturer,
            model=certified.model,
            firmware=certified.firmware,
            kind=certified.kind,
            notes=certified.notes,
        )
    if hardware_only:
        check_hardware(found.kind, found.source)  # 4
    return found


def check_hardware(kind: TpmKind, source: TrustSource) -> None:
    """Raise Rejected `ek.virtual`, `ek.firmware` or `ek.kind-unknown` unless the TPM is a chip of its own (b07).

    Of an EK that a person has listed and whose certificate is of no use, nothing is known: the person vouches for it. What a
    certificate says is not overruled by a list.
    """
    if kind == "hardware" or (kind == "unknown" and source == "allow-list"):
        return
    said = {
        "virtual": ("ek.virtual", "the TPM is a program; hardware is required here"),
        "firmware": (
            "ek.firmware",
            "the TPM is firmware of the processor; a chip of its own is required here",
        ),
    }
    code, detail = said.get(
        kind,
        ("ek.kind-unknown", "nothing says that the TPM is hardware, which is required here; list its EK"),
    )
    raise Rejected(code, detail)


def proof(secret: bytes, message: bytes) -> bytes:
    """Return EnrolFinish.proof: HMAC-SHA-256 keyed by the activated secret, over `binding.enrolment_proof_message`."""
    return hmac.digest(secret, message, "sha256")
