"""Break-glass: a one-use code, checked without the network, puts the node into the posture that its baseline names for it.

Codes are given out beforehand; the node has only their hashes, in its signed directive (`contract.grant`), and the signed
baseline (`[access.break_glass]`) says what a code does and for how long at most. A try is counted on disk before it is
looked at, and a code is written down as used, in two places and in the spool, before anything opens.

Refuses, as Rejected `break-glass.*`: tries that come too fast after wrong ones, also over restarts; a used code; a code
where the baseline names nothing for it, or leaves an isolated node isolated; to open what could not be written down.
A folder that was restored whole to a time before the use knows nothing of it: the controller does, and tells.
Relies on: the worker thread alone calling; the caller doing the slow hash elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from agent.hold import Hold
from agent.plan import Stance
from agent.probes.access import BreakGlass as Bound
from agent.probes.access import Section
from agent.responses import Told
from agent.spool import Spool
from agent.store import Glass, Store
from contract.errors import Rejected
from contract.grant import CodeHash

FREE_TRIES = 5
FIRST_WAIT_S = 60.0
MAX_WAIT_S = 3600.0
SAVED_EVERY_S = 10.0


class BreakGlass:
    """The codes of one node, and what one of them has opened."""

    def __init__(
        self,
        hold: Hold,
        store: Store,
        spool: Spool,
        tell: Callable[[Told], object],
        *,
        boot_id: Callable[[], str],
        boottime_s: float,
    ) -> None:
        self._hold = hold
        self._store = store
        self._spool = spool
        self._tell = tell
        self._boot_id = boot_id
        self._tried_s = boottime_s
        """A restart counts as a try: nobody gains by one."""

    def through(self, held: Stance, boottime_s: float) -> Stance:
        """Return the stance as an open code makes it; closes what is over, and writes down what is left."""
        glass = self._hold.state.glass
        if not glass.code:
            return held
        bound, why = self._bound(), ""
        if glass.boot_id != self._boot_id():
            glass = msgspec.structs.replace(glass, boot_id=self._boot_id(), ends_s=boottime_s + glass.left_s)
            self._hold.change(glass=glass)
        directive = self._hold.state.directive
        if directive is None or all(code.id != glass.code for code in directive.break_glass):
            why = "withdrawn by the controller"
        elif bound is None:
            why = "the baseline has no [access.break_glass]"
        elif boottime_s >= glass.ends_s:
            why = "its time is over"
        if why or bound is None:
            self._hold.change(glass=msgspec.structs.replace(glass, code=0, left_s=0.0))
            detail = {"code": str(glass.code), "why": why}
            summary = f"break-glass code {glass.code}: closed: {why}"
            self._tell(Told(kind="break-glass.closed", severity="warning", summary=summary, detail=detail))
            return held
        left_s = glass.ends_s - boottime_s
        if glass.left_s - left_s >= SAVED_EVERY_S:
            self._hold.change(glass=msgspec.structs.replace(glass, left_s=left_s))
        return opened(held, bound, glass.code)

    def begin(self, isolated: bool, boottime_s: float) -> list[CodeHash]:
        """Count a try and return the codes that are still good. Raises Rejected `break-glass.*`."""
        glass, directive = self._hold.state.glass, self._hold.state.directive
        wait_s = self._tried_s + waiting_s(glass.failed) - boottime_s
        if wait_s > 0:
            raise Rejected("break-glass.too-many", f"wrong codes before this; wait {wait_s:.0f} s")
        bound = self._bound()
        if bound is None:
            raise Rejected("break-glass.not-allowed", "the baseline in force has no [access.break_glass]")
        if isolated and not bound.releases_isolation:
            raise Rejected("break-glass.isolated", "the baseline lets no code release an isolated node")
        used = {*glass.used, *self._store.used_codes()}
        codes = [code for code in (directive.break_glass if directive else []) if code.id not in used]
        self._tried_s = boottime_s
        if not self._hold.change(glass=msgspec.structs.replace(glass, failed=glass.failed + 1)):
            raise Rejected("break-glass.not-recorded", "the disk takes nothing: no try can be counted")
        return codes

    def finish(self, found: CodeHash | None, boottime_s: float) -> float:
        """Open, or tell of a wrong code. Returns for how many seconds. Raises Rejected `break-glass.*`."""
        glass, bound = self._hold.state.glass, self._bound()
        used = {*glass.used, *self._store.used_codes()}
        if found is None or bound is None or found.id in used:
            summary = f"a wrong break-glass code was typed ({glass.failed} in a row)"
            self._tell(Told(kind="break-glass.wrong", severity="warning", summary=summary))
            raise Rejected("break-glass.wrong", "not a code of this node, or used before")
        detail = {"code": str(found.id), "posture": bound.posture, "max_s": f"{bound.max_s:.0f}"}
        summary = f"break-glass code {found.id} used: {bound.posture} for {bound.max_s:.0f} s"
        before = glass
        try:
            self._store.note_used_code(found.id)
        except OSError as error:
            raise Rejected("break-glass.not-recorded", f"the disk takes nothing: {error.strerror}") from None
        glass = Glass(
            used=tuple(sorted({*glass.used, found.id})),
            code=found.id,
            boot_id=self._boot_id(),
            ends_s=boottime_s + bound.max_s,
            left_s=bound.max_s,
        )
        self._tell(Told(kind="break-glass.used", severity="critical", summary=summary, detail=detail))
        if not (self._spool.on_disk and self._hold.change(glass=glass)):
            # Used all the same: a code that was shown is spent.
            self._hold.change(glass=msgspec.structs.replace(before, used=glass.used))
            raise Rejected("break-glass.not-recorded", "the disk takes nothing: nothing was opened")
        return bound.max_s

    def _bound(self) -> Bound | None:
        section = self._hold.held.sections.get("access")
        return section.break_glass if isinstance(section, Section) else None


def opened(held: Stance, bound: Bound, code: int) -> Stance:
    """Return what an open code makes of a stance. Pure."""
    if held.posture == "isolated" and not bound.releases_isolation:
        return held
    return Stance(bound.posture, held.fenced, f"break-glass code {code}")


def waiting_s(failed: int) -> float:
    """Return how long must pass after so many wrong codes in a row. Pure."""
    if failed < FREE_TRIES:
        return 0.0
    return float(min(MAX_WAIT_S, FIRST_WAIT_S * 2.0 ** min(failed - FREE_TRIES, 16)))
