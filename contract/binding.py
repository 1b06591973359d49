"""What signatures and proofs are made over, so that nothing can be carried from one place to another."""

from __future__ import annotations

import hashlib
from functools import lru_cache
from struct import Struct

IMA_PCR = 10
"""Where Linux's integrity measurement architecture extends each line of its log; it grows while the machine runs."""
BOOT_PCRS = frozenset({0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 14})
"""Firmware, boot loader, kernel and its command line: what the firmware log explains and a boot policy may name."""
QUOTED_PCRS = BOOT_PCRS | {IMA_PCR}
"""What every node quotes, whatever its baseline: so both sides agree also while a baseline changes."""

_REPORT_LABEL = b"ringfence report 1\0"
_ENROL_LABEL = b"ringfence enrolment 1\0"
_SIZE = Struct(">I").pack
_DIGEST_SIZE = _SIZE(hashlib.sha256().digest_size)
_DEVID_LABEL = b"ringfence devid 1\0"


def _field(value: bytes) -> bytes:
    return len(value).to_bytes(4, "big") + value


def qualifying_data(
    *, nonce: bytes, node: str, certificate_sha256: bytes, body: bytes, event_log_sha256: bytes
) -> bytes:
    """Return the 32 bytes that the TPM quotes over (TPMS_ATTEST.extraData; TPM 2.0 Part 2, 10.12.8).

    Every field is length-prefixed. `certificate_sha256` is the SHA-256 of the DER client certificate of
    the session, so a quote is of no use on another connection.
    """
    values = (
        *(_REPORT_LABEL, _SIZE(len(nonce)), nonce, _who(node, certificate_sha256)),
        *(_DIGEST_SIZE, hashlib.sha256(body).digest(), _SIZE(len(event_log_sha256)), event_log_sha256),
    )
    return hashlib.sha256(b"".join(values)).digest()


@lru_cache(maxsize=16384)
def _who(node: str, certificate_sha256: bytes) -> bytes:
    """Return the two fields that stay the same for a whole session."""
    return _field(node.encode()) + _field(certificate_sha256)


def enrolment_proof_message(
    *, enrolment: str, node: str, ek_public: bytes, ak_public: bytes, csr: bytes
) -> bytes:
    """Return the bytes under the HMAC of EnrolFinish.proof: ties TLS key, EK, AK and id into one."""
    return _ENROL_LABEL + b"".join(
        _field(v) for v in (enrolment.encode(), node.encode(), ek_public, ak_public, csr)
    )


def devid_qualifying_data(*, enrolment: str, node: str, ak_public: bytes) -> bytes:
    """Return the 32 bytes that the AK certifies a device identity key over (TPM2_Certify, Part 3, 18.2).

    The controller chose `enrolment`, so what was certified for another enrolment is of no use here.
    """
    fields = b"".join(_field(v) for v in (enrolment.encode(), node.encode(), ak_public))
    return hashlib.sha256(_DEVID_LABEL + fields).digest()
