"""Use cases of the audit log: read it, export it line by line, sign what there is, prove one line.

A checkpoint is kept in two places: beside the rows, and in a file of the controller's own folder. The file does not
come and go with the database: a database that was put back to an earlier day, or rewritten, no longer fits it.
Refuses: to change or remove a line.
"""

from __future__ import annotations

import base64
import os
from pathlib import Path
from typing import Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from contract.audittrail import Proof
from contract.checkpoint import Checkpoint, LogKey, log_key, sign_checkpoint, verify_checkpoint
from contract.errors import Rejected
from controller.audit_records import AuditLines, ProofView
from controller.store import Refused, Store, Transaction, audit, events

ORIGIN: Final = "ringfence-audit"
FILE_NAME: Final = "audit.checkpoint"


class AuditLog:
    """The audit log over one store."""

    def __init__(self, store: Store, private: Ed25519PrivateKey, directory: Path) -> None:
        """Keeps its newest checkpoint in `directory` as well."""
        self._store = store
        self._private = private
        self._file = directory / FILE_NAME
        self.key: LogKey = log_key(ORIGIN, private.public_key())

    async def lines(self, *, after: int, limit: int) -> AuditLines:
        """Lines of the export, from the cursor on."""
        found = await self._store.run(lambda tx: list(audit.lines(tx, after=after, limit=limit)))
        return AuditLines(lines=[line.decode() for _, line in found], after=found[-1][0] if found else after)

    async def checkpoint(self, *, now: float) -> str:
        """Sign what there is now, and keep it; the one that is there where nothing was added since."""
        note, fresh = await self._store.run(lambda tx: self._sign(tx, now))
        if fresh:
            self._keep(note)
        return note

    async def proof(self, number: int, *, now: float) -> ProofView:
        """Prove that act `number` is in the log. Raises Rejected `audit.unknown`."""
        await self.checkpoint(now=now)
        return await self._store.run(lambda tx: self._proof(tx, number))

    async def check_kept(self, *, now: float) -> None:
        """Hold the database against the checkpoint in the file, once at start.

        Raises Rejected `audit.cut` (there are fewer acts than were signed) and `audit.altered` (they are others),
        recorded as an event; `checkpoint.*` for a file that is not one. Without a file there is nothing to hold it against.
        """
        try:
            untrusted = self._file.read_bytes()
        except FileNotFoundError:
            return
        kept = verify_checkpoint(untrusted, self.key)
        await self._store.run(lambda tx: _compare(tx, kept, now))

    def _sign(self, tx: Transaction, now: float) -> tuple[str, bool]:
        audit.lock(tx)  # two controllers sign at the same hour
        size, last = audit.size(tx), audit.last_checkpoint(tx)
        if last is not None and last[0] == size:
            return last[1], False
        checkpoint = Checkpoint(origin=ORIGIN, size=size, root=audit.root(tx, size), at=int(now))
        note = sign_checkpoint(checkpoint, self._private)
        audit.keep_checkpoint(tx, size, note, now)
        return note, True

    def _proof(self, tx: Transaction, number: int) -> ProofView:
        last = audit.last_checkpoint(tx)
        found = list(audit.lines(tx, after=number - 1, limit=1)) if number >= 1 else []
        if last is None or not found or not number <= last[0]:
            raise Rejected("audit.unknown", f"there is no act {number}")
        path = [base64.b64encode(each).decode() for each in audit.path(tx, number, last[0])]
        proof = Proof(line=found[0][1].decode(), number=number, path=path, checkpoint=last[1])
        return ProofView(proof=proof)

    def _keep(self, note: str) -> None:
        fresh = self._file.with_suffix(".new")
        with fresh.open("w") as file:
            file.write(note)
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(self._file)


def _compare(tx: Transaction, kept: Checkpoint, now: float) -> Refused | None:
    size = audit.size(tx)
    if size < kept.size:
        rejected = Rejected(
            "audit.cut",
            f"the database holds {size} acts, {kept.size} were signed: it is from an earlier day, or was cut",
        )
    elif audit.root(tx, kept.size) != kept.root:
        rejected = Rejected("audit.altered", f"the first {kept.size} acts are not those that were signed")
    else:
        return None
    detail = {"code": rejected.code, "signed": str(kept.size), "found": str(size)}
    events.add(tx, rejected.code, "critical", f"audit log: {rejected.detail}", now=now, detail=detail)
    return Refused(rejected)
