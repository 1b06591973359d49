"""The use cases of enrolment: who wants in, who is expected, who is let in; one transaction each.

A part of `controller.fleet.Fleet`, which see for what every use case keeps to.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from contract.errors import Rejected
from contract.messages import EnrolFinish
from controller.enrolment_records import (
    NO_DEVIDS,
    Admitted,
    DevIds,
    EnrolmentKeys,
    EnrolmentRequest,
    EnrolmentView,
    EnrolTokenView,
    PreregistrationView,
)
from controller.fleet import enrolments, expected, identity
from controller.permissions import Scope
from controller.policy import FleetSettings
from controller.records import Issue, Page
from controller.store import Duplicate, Refused, Store, Transaction

T = TypeVar("T")


class Enrolling:
    """Enrolment over one store."""

    def __init__(self, store: Store, settings: FleetSettings) -> None:
        self._store = store
        self._settings = settings

    async def _bind(self, fn: Callable[[Transaction], T | Refused]) -> T:
        try:
            return await self._store.run(fn)
        except Duplicate:
            # Another controller bound the id, the EK or the AK between our look and our write (b05).
            raise Rejected("enrolment.identity-conflict", "bound by somebody else a moment ago") from None

    async def begin_enrolment(self, request: EnrolmentRequest, *, now: float) -> str:
        """Open an enrolment and return its id.

        Raises Rejected `enrolment.reserved` (b06), `enrolment.identity-conflict` (b04), `enrolment.ek-in-use`
        (b12), `enrolment.ek-untrusted`, `enrolment.too-many`, `enrolment.token`, `site.unknown`; all recorded.
        """
        return await self._store.run(lambda tx: enrolments.begin(tx, self._settings, request, now=now))

    async def refuse_enrolment(self, node: str, ek_id: str, rejected: Rejected, *, now: float) -> None:
        """Write down that an enrolment was refused before it began."""
        await self._store.run(lambda tx: identity.record_refusal(tx, node, ek_id, rejected, now))

    async def enrolment_keys(self, enrolment: str) -> EnrolmentKeys | None:
        """What a proof of this enrolment is held against; None once it was proved, or where there is none."""
        return await self._store.run(lambda tx: enrolments.keys(tx, enrolment))

    async def finish_enrolment(
        self,
        finish: EnrolFinish,
        issue: Issue,
        *,
        now: float,
        ready: bool = True,
        devids: DevIds = NO_DEVIDS,
    ) -> Admitted | None:
        """Check the proof; admit where EK list, policy, token or person has approved; None while a person must.

        Without `ready` nobody gets a certificate yet: the proof is taken down and the answer is None.

        `issue` runs in the transaction that binds id, EK, AK and certificate; `devids` are checked already. Raises
        Rejected `enrolment.unknown`, `enrolment.proof` (b03), `enrolment.rejected`, `enrolment.expired`,
        `enrolment.identity-conflict` (b05).
        """
        return await self._bind(
            lambda tx: enrolments.finish(
                tx, self._settings, finish, issue, now=now, ready=ready, devids=devids
            )
        )

    async def approve(
        self, enrolment: str, *, actor: str, now: float, site: str | None = None, replace: bool = False
    ) -> EnrolmentView:
        """Approve. `site` where the node named none (or another). `replace` says that the node of this id now has
        this AK (same TPM, new key) — without it a changed AK is refused with `enrolment.identity-conflict`."""
        return await self._bind(
            lambda tx: enrolments.approve(tx, enrolment, actor=actor, now=now, site=site, replace=replace)
        )

    async def reject(self, enrolment: str, *, actor: str, reason: str, now: float) -> EnrolmentView:
        """Raises Rejected `enrolment.unknown`, `enrolment.decided`, `reason.missing`."""
        return await self._store.run(
            lambda tx: enrolments.reject(tx, enrolment, actor=actor, reason=reason, now=now)
        )

    async def preregister(
        self, ek_id: str, *, site: str, node: str | None, actor: str, now: float
    ) -> PreregistrationView:
        """Expect this EK; with `node`, that id is reserved for it. Raises Rejected `ek.invalid`, `site.unknown`,
        `preregistration.exists`, `enrolment.ek-in-use`."""
        return await self._store.run(
            lambda tx: expected.preregister(tx, ek_id, site=site, node=node, actor=actor, now=now)
        )

    async def preregistered_eks(self) -> frozenset[str]:
        """EK ids that are expected: the allow-list of `check_identity`."""
        return await self._store.run(expected.expected_eks)

    async def new_enrol_token(
        self, token_sha256: bytes, *, site: str, node: str | None, expires_at: float, actor: str, now: float
    ) -> EnrolTokenView:
        """Store a one-use token by its SHA-256 (the caller made it and shows it once)."""
        return await self._store.run(
            lambda tx: expected.new_token(
                tx, token_sha256, site=site, node=node, expires_at=expires_at, actor=actor, now=now
            )
        )

    async def list_enrolments(
        self, *, scope: Scope, state: str | None = None, after: str | None = None, limit: int = 100
    ) -> Page[EnrolmentView]:
        """Newest first."""
        return await self._store.run(
            lambda tx: enrolments.list_(tx, scope=scope, state=state, after=after, limit=limit)
        )

    async def list_preregistrations(
        self, *, scope: Scope, after: str | None = None, limit: int = 100
    ) -> Page[PreregistrationView]:
        """By EK id."""
        return await self._store.run(
            lambda tx: expected.list_expected(tx, scope=scope, after=after, limit=limit)
        )
