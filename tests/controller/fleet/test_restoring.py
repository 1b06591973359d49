"""A database that was put back: it takes no node back, rolls nothing out and isolates nobody by itself until a person has looked."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable

import pytest

from contract.errors import Rejected
from contract.messages import BaselineRef
from controller.fleet import keysheld
from controller.permissions import EVERYWHERE
from controller.policy import SitePolicy
from controller.records import ChangeTrust, NewBaseline, TrustChange
from controller.restore_records import WaitingRestore
from controller.rollout_records import NewPlan, NewRollout, Terms, Wave
from controller.store import Store, restores, selecting
from tests.parts.fleets import ACTOR, T0, FleetLab, finding
from tests.parts.signing import minimal_baseline

BACK = T0 + 1000


def _pushed(*versions: int) -> ChangeTrust:
    def change(files: dict[str, bytes]) -> TrustChange:
        made = [
            NewBaseline(name="factory", version=v, sha256=_ref(v).sha256.hex(), summary="") for v in versions
        ]
        targets = {
            f"targets/factory/{_ref(v).sha256.hex()}.{v}.toml": minimal_baseline(version=v) for v in versions
        }
        return TrustChange(files={**files, **targets}, baselines=made)

    return change


def _ref(version: int, name: str = "factory") -> BaselineRef:
    return BaselineRef(
        name=name, version=version, sha256=hashlib.sha256(minimal_baseline(name, version)).digest()
    )


async def _restored(lab: FleetLab) -> FleetLab:
    """The database of a day on which version 1 was the newest; press-2 holds 2 by now."""
    await lab.site("factory", SitePolicy(interval_s=60))
    await lab.fleet.change_trust(_pushed(1), actor=ACTOR, now=T0)
    await lab.fleet.assign_baseline("factory", "factory", 1, actor=ACTOR, reason="test", now=T0)
    for number in (1, 2, 3):
        await lab.enrol(f"press-{number}")
        await lab.report(f"press-{number}", baseline=_ref(1))
    await lab.store.run(lambda tx: restores.add(tx, at=BACK, backup_at=T0))
    return lab


async def test_c02_no_baseline_is_chosen_for_a_node_that_was_not_heard_since_or_is_ahead(
    lab: FleetLab,
) -> None:
    fleet = (await _restored(lab)).fleet
    assert (
        await fleet.directive_for("press-1", now=BACK)
    ).baseline is None  # what it holds by now is not known
    await lab.report("press-1", number=2, now=BACK + 1, baseline=_ref(1))
    await lab.report("press-2", number=2, now=BACK + 1, baseline=_ref(2))
    await lab.report("press-3", number=2, now=BACK + 1, baseline=_ref(1, "other"))
    chosen = await fleet.directives_for([f"press-{n}" for n in (1, 2, 3)], now=BACK + 2)
    assert [chosen[f"press-{n}"].baseline is None for n in (1, 2, 3)] == [False, True, True]
    waiting = (await fleet.restore()).waiting
    assert waiting == WaitingRestore(restored_at=BACK, backup_at=T0, ahead=2, unheard=0)
    assert await fleet.confirm_restore(actor=ACTOR, reason="looked", now=BACK + 3) == waiting
    wanted = (await fleet.directive_for("press-2", now=BACK + 4)).baseline
    assert wanted is not None and wanted.version == 1
    with pytest.raises(Rejected, match=r"restore\.none"):
        await fleet.confirm_restore(actor=ACTOR, reason="again", now=BACK + 5)
    assert [note.act for note in await fleet.list_audit(limit=500)][-1] == "restore.confirmed"


async def test_c02_who_is_ahead_is_told_page_by_page_and_who_was_not_heard_is_counted(lab: FleetLab) -> None:
    fleet = (await _restored(lab)).fleet
    assert (await fleet.ahead()).items == []
    await lab.enrol("press-4")
    for number, (version, name) in enumerate([(10, "factory"), (1, "factor"), (1, "factory")], 1):
        await lab.report(f"press-{number}", number=2, now=BACK + 1, baseline=_ref(version, name))
    waiting = (await fleet.restore()).waiting
    assert waiting is not None and (waiting.ahead, waiting.unheard) == (2, 1)
    first = await fleet.ahead(limit=1)
    second = await fleet.ahead(after=first.next, limit=1)
    told = [(one.node, one.site, one.holds, one.chosen) for one in (*first.items, *second.items)]
    assert told == [
        ("press-1", "factory", "factory/10", "factory/1"),
        ("press-2", "factory", "factor/1", "factory/1"),
    ]
    assert second.next is None
    await fleet.change_trust(_pushed(1, 10), actor=ACTOR, now=BACK)
    await lab.store.run(lambda tx: selecting.choose_baseline(tx, ["press-1"], ("factory", 10), BACK))
    assert [one.node for one in (await fleet.ahead()).items] == ["press-2"]


async def test_c15_of_two_who_confirm_at_once_one_is_told_that_nothing_waits(
    lab: FleetLab, open_store: Callable[[], Store]
) -> None:
    fleet = (await _restored(lab)).fleet
    other = FleetLab(open_store()).fleet
    told = await asyncio.gather(
        *(each.confirm_restore(actor=ACTOR, reason="looked", now=BACK + 1) for each in (fleet, other) * 4),
        return_exceptions=True,
    )
    assert sorted(getattr(each, "code", "") for each in told) == [""] + ["restore.none"] * 7
    acts = [note.act for note in await fleet.list_audit(limit=500)]
    assert acts.count("restore.confirmed") == 1


async def test_c15_a_restore_that_somebody_has_confirmed_meanwhile_is_not_confirmed_again(
    lab: FleetLab,
) -> None:
    """Where two have looked at the same moment, the row decides."""
    await _restored(lab)
    done = [await lab.store.run(lambda tx: restores.confirm(tx, actor=ACTOR, now=BACK)) for _ in range(2)]
    assert done == [True, False]


async def test_c02_a_node_that_is_ahead_is_not_held_to_be_disobedient(lab: FleetLab) -> None:
    fleet = (await _restored(lab)).fleet
    await fleet.directive_for("press-2", now=BACK)
    late = BACK + 300
    outcome = await lab.report("press-2", number=2, now=late, baseline=_ref(2))
    outcome = await lab.report("press-2", number=3, now=late + 300, baseline=_ref(2))
    assert (outcome.tier, outcome.findings) == ("affirming", [])


async def test_c02_until_confirmed_nobody_is_isolated_without_a_person_and_a_persons_order_holds(
    lab: FleetLab,
) -> None:
    fleet = (await _restored(lab)).fleet
    await lab.report("press-1", number=2, now=BACK + 1, findings=[finding("changed")])
    assert await lab.held() == (set(), set())
    waiting = (await fleet.list_incidents(scope=EVERYWHERE, state="needs-person")).items
    assert len(waiting) == 1
    await fleet.isolate_node("press-1", actor=ACTOR, reason="looked", now=BACK + 2)
    assert (await fleet.directive_for("press-1", now=BACK + 3)).posture == "isolated"
    await fleet.confirm_restore(actor=ACTOR, reason="looked", now=BACK + 4)
    await lab.report("press-2", number=2, now=BACK + 5, findings=[finding("other")])
    assert "press-2" in (await lab.held())[0]


async def test_no_rollout_goes_on_until_confirmed(lab: FleetLab) -> None:
    fleet = (await _restored(lab)).fleet
    await fleet.change_trust(_pushed(1, 2), actor=ACTOR, now=BACK)
    plan = await fleet.make_plan(
        NewPlan(baseline="factory", version=2, selector="site=factory"),
        scope=EVERYWHERE,
        actor=ACTOR,
        now=BACK,
    )
    terms = Terms(waves=(Wave(percent=100.0),))
    asked = await fleet.request_rollout(
        NewRollout(plan=plan.id, terms=terms, reason="test"), actor=ACTOR, now=BACK
    )
    await fleet.approve_rollout(asked.id, actor="another", reason="test", now=BACK)
    assert await fleet.advance_rollouts(now=BACK + 1) == []
    assert (await fleet.rollout(asked.id, now=BACK + 1)).wave == 0
    await fleet.confirm_restore(actor=ACTOR, reason="looked", now=BACK + 2)
    await fleet.advance_rollouts(now=BACK + 3)
    assert (await fleet.rollout(asked.id, now=BACK + 3)).wave == 1


async def test_a_start_says_that_a_restore_waits(lab: FleetLab) -> None:
    await _restored(lab)
    await lab.fleet.start(name="one", now=BACK)
    assert [e.kind for e in await lab.fleet.list_events(scope=EVERYWHERE, limit=500)][-1] == "restore.waiting"


async def test_b04_a_controller_with_other_keys_does_not_start(lab: FleetLab) -> None:
    assert await keysheld.check(lab.store, {"directive": "aa", "node-ca-1": "bb"}, T0) == []
    assert await keysheld.check(lab.store, {"directive": "aa"}, T0) == ["node-ca-1"]
    with pytest.raises(Rejected, match=r"keys\.others.*directive.*copy"):
        await keysheld.check(lab.store, {"directive": "cc", "audit": "dd"}, T0)
    assert await keysheld.check(lab.store, {"directive": "aa", "node-ca-1": "bb", "audit": "ee"}, T0) == []
