"""Keys in escrow in the store: versions, revocation, releases. On SQLite and on PostgreSQL."""

from __future__ import annotations

import pytest

from contract.errors import Rejected
from contract.escrow import ask
from contract.messages import KeyRefused, SealedKey
from controller.escrow_records import NewKey
from controller.fleet.escrow import MAX_KEYS_PER_NODE, WINDOW_S, Escrow
from tests.parts.fleets import ACTOR, T0, FleetLab, digest, evidence

SEALED = SealedKey(credential_blob=b"blob", encrypted_secret=b"secret", ciphertext=bytes(40))


@pytest.fixture
async def escrow(lab: FleetLab) -> Escrow:
    """A fleet with a node that has attested."""
    await lab.site()
    await lab.enrol("press-1")
    await lab.report("press-1")
    return Escrow(lab.store)


def new(ak: str = "press-1", **changes: object) -> NewKey:
    """A sealed key."""
    values = {
        "sealed": SEALED,
        "share": bytes(32),
        "ak_name": "000b" + digest("ak", ak).hex(),
        "reason": "test",
    }
    return NewKey(**{**values, **changes})  # type: ignore[arg-type]


async def put(escrow: Escrow, name: str = "disk", **changes: object) -> int:
    """Put a key; return its version."""
    return (await escrow.put("press-1", name, new(**changes), actor=ACTOR, now=T0)).version  # type: ignore[arg-type]


async def release(escrow: Escrow, *names: str, now: float = T0) -> list[str]:
    """What requests under the last quote get."""
    counters = evidence("press-1").counters
    got = await escrow.release("press-1", [ask(name)[0] for name in names], counters, now=now)
    return [one.code if isinstance(one, KeyRefused) else one.name for one in got]


async def test_a_key_is_replaced_by_the_next_of_its_name_and_revoked_for_good(escrow: Escrow) -> None:
    assert [await put(escrow), await put(escrow), await put(escrow, "logs")] == [1, 2, 1]
    assert await release(escrow, "disk", "logs", "none") == ["disk", "logs", "key.unknown"]
    first, second = (await escrow.listed("press-1")).items
    assert [(first.name, first.releases), (second.name, second.releases)] == [("disk", 1), ("logs", 1)]
    revoked = await escrow.revoke("press-1", "disk", actor=ACTOR, reason="lost", now=T0)
    assert (revoked.state, revoked.revoked_by) == ("revoked", ACTOR)
    assert await release(escrow, "disk") == ["key.revoked"]
    assert [await put(escrow), await release(escrow, "disk")] == [3, ["disk"]]


async def test_every_answer_to_every_request_is_in_the_trail(escrow: Escrow, lab: FleetLab) -> None:
    await put(escrow)
    await release(escrow, "disk", "none")
    acts = [line.act for line in await lab.fleet.list_audit(limit=100) if line.act.startswith("key.")]
    assert acts == ["key.put", "key.released", "key.refused"]


async def test_lists_come_in_pages(escrow: Escrow) -> None:
    for n in range(3):
        await put(escrow, f"key-{n}")
    first = await escrow.listed("press-1", limit=2)
    rest = await escrow.listed("press-1", after=first.next, limit=2)
    assert [view.name for view in (*first.items, *rest.items)] == ["key-0", "key-1", "key-2"]


async def test_s09_keys_of_an_attestation_key_of_before_are_stale(escrow: Escrow) -> None:
    with pytest.raises(Rejected) as refused:
        await put(escrow, ak="other")
    assert refused.value.code == "key.stale"


async def test_s10_asking_is_bounded_in_time_and_keys_in_number(escrow: Escrow) -> None:
    await put(escrow)
    assert await release(escrow, *["none"] * 9) == ["key.unknown"] * 8 + ["key.too-often"]
    assert await release(escrow, "disk", now=T0 + WINDOW_S) == ["disk"]
    for n in range(MAX_KEYS_PER_NODE - 1):
        await put(escrow, f"key-{n}")
    with pytest.raises(Rejected) as refused:
        await put(escrow, "one-more")
    assert refused.value.code == "key.too-many"


async def test_acts_on_what_is_not_there_are_refused(escrow: Escrow) -> None:
    for code, act in (
        ("node.unknown", escrow.sealing("press-9")),
        ("node.unknown", escrow.listed("press-9")),
        ("key.unknown", escrow.revoke("press-1", "disk", actor=ACTOR, reason="x", now=T0)),
        ("reason.missing", escrow.revoke("press-1", "disk", actor=ACTOR, reason=" ", now=T0)),
        ("name.invalid", escrow.put("press-1", "../disk", new(), actor=ACTOR, now=T0)),
    ):
        with pytest.raises(Rejected) as refused:
            await act
        assert refused.value.code == code
