"""What enrolling speaks in: claims, and what people are shown of them. Immutable; times in seconds since 1970.

Names ending in `View` are shown to people as they stand, so nothing secret is in them.
"""

from __future__ import annotations

from typing import Literal

from contract.devid import DevId
from contract.tpmvendor import TpmKind
from controller.records import EkTrust, IssuedCertificate, NodeIdentity, Record
from controller.tpmrecord import TpmRecord

EnrolmentState = Literal["begun", "proved", "approved", "rejected", "expired"]


class EnrolmentRequest(Record, frozen=True, kw_only=True):
    """An EnrolBegin whose parts were checked: EK path, AK attributes, CSR."""

    node: str
    site: str | None
    ek_id: str
    """SHA-256 hex of the EK's SubjectPublicKeyInfo."""
    ek_public: bytes
    ak_public: bytes
    ak_name: bytes
    csr: bytes
    ek_trust: EkTrust
    tpm: TpmRecord = TpmRecord()
    token: str = ""
    secret: bytes
    """What TPM2_ActivateCredential must bring to light; forgotten once it is proved."""


class EnrolmentKeys(Record, frozen=True, kw_only=True):
    """What the proof of an enrolment that was begun is held against."""

    node: str
    ek_public: bytes
    ak_public: bytes


class DevIds(Record, frozen=True, kw_only=True):
    """Device identities that came with a proof, checked."""

    proved: tuple[DevId, ...] = ()
    refused: tuple[str, ...] = ()
    """Why others were not believed: a code, a colon and the reason."""


NO_DEVIDS = DevIds()


class Admitted(Record, frozen=True, kw_only=True):
    """The node is in."""

    identity: NodeIdentity
    certificate: IssuedCertificate
    newly: bool
    """False when the same finish was asked again."""


class EnrolmentView(Record, frozen=True, kw_only=True):
    """One attempt to enrol."""

    enrolment: str
    node: str
    site: str | None
    ek_id: str
    ek_trust: EkTrust
    tpm_kind: TpmKind
    tpm: TpmRecord
    """What the certificates said, as far as they were believed."""
    state: EnrolmentState
    note: str
    """Why it waits, or why it was refused."""
    created_at: float
    decided_at: float | None
    decided_by: str | None
    approve_with: str = ""
    """The command with which a person lets it in, while one must."""


class PreregistrationView(Record, frozen=True, kw_only=True):
    """An EK that is expected."""

    ek_id: str
    node: str | None
    site: str
    created_at: float
    created_by: str
    used_at: float | None


class EnrolTokenView(Record, frozen=True, kw_only=True):
    """A one-use token; the token itself is shown once, when it is made."""

    id: int
    node: str | None
    site: str
    created_at: float
    created_by: str
    expires_at: float
    used_at: float | None
    used_by: str | None
