"""The repository of signed files in the store: taking in what people pushed, keeping the timestamp fresh.

The rules are `controller.repository`'s; this runs them inside the store's transaction, so what is verified is
what is stored. Decides nothing.
"""

from __future__ import annotations

import msgspec

from contract.baseline import Baseline, SectionBase, section
from contract.boot import BootPolicy
from contract.imapolicy import ImaPolicy
from controller.fleet import Fleet
from controller.records import BaselineView, NewBaseline, TrustChange
from controller.repository import NewMetadata, Repository, latest_root

ONLINE_ACTOR = "controller"


class SignedFiles:
    """One repository over one fleet's store."""

    def __init__(self, fleet: Fleet, repository: Repository) -> None:
        """Call `refresh` before the first node is served."""
        self._fleet = fleet
        self._repository = repository
        self.newest_root = b""
        """The newest trusted root, given to nodes when they enrol; empty before the first push."""

    async def push(self, untrusted_bundle: bytes, *, actor: str, now: float) -> list[BaselineView]:
        """Take in a bundle whole or not at all. Raises Rejected as `Repository.accept` does."""

        def change(files: dict[str, bytes]) -> TrustChange | None:
            return _applied(files, self._repository.accept(untrusted_bundle, files, now=now))

        views = await self._fleet.change_trust(change, actor=actor, now=now)
        # What is stored, not what was to be: a rehearsal stores nothing.
        self.newest_root = latest_root(await self._fleet.trust_files())
        return views

    async def refresh(self, now: float) -> None:
        """Sign the timestamp anew when half of its life is over. Raises Rejected as `Repository.refresh` does."""
        seen = b""

        def change(files: dict[str, bytes]) -> TrustChange | None:
            nonlocal seen
            seen = latest_root(files)
            return _applied(files, self._repository.refresh(files, now=now))

        try:
            await self._fleet.change_trust(change, actor=ONLINE_ACTOR, now=now)
        finally:
            self.newest_root = seen


def _applied(files: dict[str, bytes], new: NewMetadata) -> TrustChange | None:
    if not new.files and not new.obsolete:
        return None
    state = {name: raw for name, raw in {**files, **new.files}.items() if name not in new.obsolete}
    baselines = [
        NewBaseline(
            name=trusted.name,
            version=trusted.version,
            sha256=trusted.sha256,
            summary=trusted.baseline.head.summary,
            boot_section=_section(trusted.baseline, "boot", BootPolicy),
            ima_section=_section(trusted.baseline, "ima", ImaPolicy),
        )
        for trusted in new.baselines
    ]
    return TrustChange(files=state, baselines=baselines)


def _section(baseline: Baseline, name: str, kind: type[SectionBase]) -> bytes:
    """Return a section that reports are judged by as JSON, with the head's mode filled in; empty where there is none.

    Raises Rejected `baseline.key`: a baseline that could never be judged is not taken in.
    """
    if name not in baseline.sections:
        return b""
    policy = section(baseline, name, kind)
    return msgspec.json.encode(msgspec.structs.replace(policy, mode=policy.mode or baseline.head.mode))
