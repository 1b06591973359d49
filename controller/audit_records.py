"""What the API shows of the audit log. Immutable structs, as in `controller.records`."""

from __future__ import annotations

from contract.audittrail import Proof
from controller.records import Record


class AuditLines(Record, frozen=True, kw_only=True):
    """Lines as they are hashed, and the `after` of the next call."""

    lines: list[str]
    after: int


class CheckpointView(Record, frozen=True, kw_only=True):
    """A signed note."""

    checkpoint: str


class ProofView(Record, frozen=True, kw_only=True):
    """What proves one act to a third party, as `ringfence audit verify-proof` reads it."""

    proof: Proof


class AuditKeyView(Record, frozen=True, kw_only=True):
    """The public key of the log: `name+hash+key` (C2SP signed-note)."""

    key: str
