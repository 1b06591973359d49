"""What the TPM's keys look like: templates of EK and AK, and the policies under which an EK is used.

Bytes and structures only; the TPM itself is `agent.tpm`'s.
"""

from __future__ import annotations

from typing import Literal

from tpm2_pytss import (
    TPM2_ALG,
    TPM2_ECC,
    TPM2B_PUBLIC,
    TPMA_OBJECT,
    TPMS_ECC_PARMS,
    TPMS_ECC_POINT,
    TPMS_RSA_PARMS,
    TPMT_ECC_SCHEME,
    TPMT_KDF_SCHEME,
    TPMT_PUBLIC,
    TPMT_RSA_SCHEME,
    TPMT_SYM_DEF_OBJECT,
    TPMU_ASYM_SCHEME,
    TPMU_PUBLIC_ID,
    TPMU_PUBLIC_PARMS,
)

EkKind = Literal["rsa2048", "rsa3072", "ecc256", "ecc384"]
AkKind = Literal["ecc256", "rsa2048"]

EK_TEMPLATES = {
    "rsa2048": "EK-RSA2048",
    "ecc256": "EK-ECC256",
    "rsa3072": "EK-HIGH-RSA3072",
    "ecc384": "EK-HIGH-ECC384",
}
POLICY_A_SHA256 = bytes.fromhex("837197674484b3f81a90cc8d46a5d724fd52d76e06520b64f2a1da1b331469aa")
POLICY_OR = {
    # PolicyA, PolicyC for each name algorithm; PolicyB = PolicyOR of both (EK Credential Profile, B.6).
    TPM2_ALG.SHA256: (
        POLICY_A_SHA256,
        bytes.fromhex("3767e2edd43ff45a3a7e1eaefcef78643dca964632e7aad82c673a30d8633fde"),
    ),
    TPM2_ALG.SHA384: (
        bytes.fromhex(
            "8bbf2266537c171cb56e403c4dc1d4b64f432611dc386e6f532050c3278c930e143e8bb1133824ccb431053871c6db53"
        ),
        bytes.fromhex(
            "d6032ce61f2fb3c240eb3cf6a33237ef2b6a16f4293c22b455e261cffd217ad5b4947c2d73e63005eed2dc2b3593d165"
        ),
    ),
}
_AK_ATTRIBUTES = (
    TPMA_OBJECT.FIXEDTPM
    | TPMA_OBJECT.FIXEDPARENT
    | TPMA_OBJECT.SENSITIVEDATAORIGIN
    | TPMA_OBJECT.USERWITHAUTH
    | TPMA_OBJECT.NODA
    | TPMA_OBJECT.RESTRICTED
    | TPMA_OBJECT.SIGN_ENCRYPT
)


def ak_template(kind: AkKind) -> TPM2B_PUBLIC:
    """Return the AK's template: restricted signing key, SHA-256 (TPM 2.0 Part 1, 25.1.4)."""
    null = TPMT_SYM_DEF_OBJECT(algorithm=TPM2_ALG.NULL)
    sha256 = TPMU_ASYM_SCHEME()
    if kind == "ecc256":
        sha256.ecdsa.hashAlg = TPM2_ALG.SHA256
        parameters = TPMU_PUBLIC_PARMS(
            eccDetail=TPMS_ECC_PARMS(
                symmetric=null,
                scheme=TPMT_ECC_SCHEME(scheme=TPM2_ALG.ECDSA, details=sha256),
                curveID=TPM2_ECC.NIST_P256,
                kdf=TPMT_KDF_SCHEME(scheme=TPM2_ALG.NULL),
            )
        )
        unique = TPMU_PUBLIC_ID(ecc=TPMS_ECC_POINT())
        algorithm = TPM2_ALG.ECC
    else:
        sha256.rsassa.hashAlg = TPM2_ALG.SHA256
        parameters = TPMU_PUBLIC_PARMS(
            rsaDetail=TPMS_RSA_PARMS(
                symmetric=null,
                scheme=TPMT_RSA_SCHEME(scheme=TPM2_ALG.RSASSA, details=sha256),
                keyBits=2048,
                exponent=0,
            )
        )
        unique = TPMU_PUBLIC_ID(rsa=b"")
        algorithm = TPM2_ALG.RSA
    return TPM2B_PUBLIC(
        publicArea=TPMT_PUBLIC(
            type=algorithm,
            nameAlg=TPM2_ALG.SHA256,
            objectAttributes=_AK_ATTRIBUTES,
            authPolicy=b"",
            parameters=parameters,
            unique=unique,
        )
    )
