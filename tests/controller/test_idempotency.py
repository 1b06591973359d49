"""`Idempotency-Key`: the same key and the same request act once and are answered the same; with several controllers, and at once."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from contract.errors import Rejected
from controller.api.routes import ROUTES
from controller.cli.client import Client
from controller.cli.profile import Profile
from controller.fleet import once as rules
from controller.fleet.once import Asked, Held, Once
from controller.store import Store, StoreUnavailable, Transaction, audit
from controller.store import answers as rows
from tests.controller.bodies import NOT_HERE, ask, in_order
from tests.controller.live import TOKENS, Live, running
from tests.controller.twosites import OWN, everything, place
from tests.parts.breaking import breaking

KEY = "a-key-that-is-long-enough"
SITE = {"site": "shop"}
ADMIN = {"Authorization": f"Bearer {TOKENS['admin']}"}


@pytest_asyncio.fixture
async def live(tmp_path: Path, database_url: str) -> AsyncIterator[Live]:
    async with running(tmp_path, database=database_url) as controller:
        yield controller


async def rows_but_keys(live: Live) -> dict[str, list[object]]:
    found = await everything(live)
    del found["answers_kept"]
    return found


async def test_every_act_is_done_once_for_its_key_and_answered_the_same(live: Live) -> None:
    at = await place(live, OWN)
    await at.node.close()
    done = set()
    for number, (key, route) in enumerate(in_order(at)):
        if key == "POST /logout":  # there is no session to end
            continue
        sent = {"Idempotency_Key": f"key-of-act-number-{number}"}
        status, answer, headers = await ask(live, route, at, **sent)
        assert "Idempotency-Replayed" not in headers
        after = await rows_but_keys(live)
        again, same, replayed = await ask(live, route, at, **sent)
        assert (again, same) == (status, answer), key
        assert replayed["Idempotency-Replayed"] == "true"
        assert await rows_but_keys(live) == after, f"{key} was done twice"
        other, problem, _ = await ask(live, route, at, "?dry_run=false", **sent)
        assert (other, problem["code"]) == (422, "idempotency.other"), key
        assert (status < 300) == (key not in NOT_HERE), f"{key}: {answer}"
        done.add(key)
    assert len(done) == len([route for route in ROUTES if route.acts]) - 1


async def test_c14_a_secret_that_is_answered_again_is_not_in_the_database(live: Live) -> None:
    body = {"name": "ci", "rights": [{"role": "viewer", "sites": "all"}]}
    headers = {"Idempotency-Key": KEY}
    _, made = await live.call("POST", "/api/v1/tokens", body, headers=headers)
    assert (await live.call("POST", "/api/v1/tokens", body, headers=headers))[1] == made
    stored = str((await everything(live))["answers_kept"])
    assert str(made["token"]) not in stored and KEY not in stored and "viewer" not in stored
    once = live.services.once
    [row] = await live.controller._store.run(_kept)
    with pytest.raises(Rejected, match=r"idempotency\.unanswered"):
        wrong = Asked(account="admin", key=KEY + "x", request_sha256=row.request_sha256)
        once._opened(wrong, row.answer or b"")


def _kept(tx: Transaction) -> list[rows.KeptRow]:
    row = rows.load(tx, "admin", hashlib.sha256(KEY.encode()).digest())
    return [] if row is None else [row]


async def test_a_key_is_of_one_account_and_of_one_request(live: Live) -> None:
    headers = {"Idempotency-Key": KEY}
    assert (await live.call("POST", "/api/v1/sites", SITE, headers=headers))[0] == 201
    for path, body in (("/sites", {"site": "other"}), ("/sites/factory/isolate", {"reason": "x"})):
        status, answer = await live.call("POST", f"/api/v1{path}", body, headers=headers)
        assert (status, answer["code"]) == (422, "idempotency.other")
    isolate = ("POST", "/api/v1/sites/factory/isolate", {"reason": "x"})
    assert (await live.call(*isolate, role="operator", headers=headers))[0] == 200
    assert (await live.call("POST", "/api/v1/sites", {"site": "free"}, headers={}))[0] == 201


async def test_a_refusal_is_answered_again_and_what_came_to_no_handler_is_not(live: Live) -> None:
    headers = {"Idempotency-Key": KEY}
    release = ("POST", "/api/v1/sites/factory/release", {"reason": "x"})
    assert (await live.call(*release, headers=headers))[1]["code"] == "hold.none"
    assert (await live.call("POST", "/api/v1/sites/factory/isolate", {"reason": "x"}))[0] == 200
    assert (await live.call(*release, headers=headers))[1]["code"] == "hold.none"
    assert (await live.call(*release, headers={"Idempotency-Key": KEY + "2"}))[0] == 200
    other = {"Idempotency-Key": KEY + "3"}
    assert (await live.call("POST", "/api/v1/sites", {"site": 7}, headers=other))[0] == 400
    assert (await live.call("POST", "/api/v1/sites", SITE, headers=other))[0] == 201


@pytest.mark.parametrize(
    "key", ["", "short", "x" * 129, "a key with spaces in it", "ключ-достаточно-длинный", '"unended-and-long']
)
async def test_a_key_that_is_none_is_refused(live: Live, key: str) -> None:
    status, answer = await live.call("POST", "/api/v1/sites", SITE, headers={"Idempotency-Key": key})
    assert (status, answer["code"]) == (400, "idempotency.key")
    assert (await live.call("GET", "/api/v1/sites/shop"))[0] == 404


async def test_c10_what_tries_a_secret_takes_no_key(live: Live) -> None:
    for route in ROUTES:
        if route.proves:
            status, answer = await live.call(
                route.method, f"/api/v1{route.path}", {}, headers={"Idempotency-Key": KEY}
            )
            assert (status, answer["code"]) == (400, "idempotency.key"), route.path


async def test_c04_two_controllers_and_many_at_once_act_once(live: Live, tmp_path: Path) -> None:
    (tmp_path / "beside").mkdir()
    database = live.controller._store.url
    beside = running(tmp_path / "beside", database=database, beside=live)
    several = live.controller._store.dialect == "postgresql"
    async with beside if several else contextlib.nullcontext(live) as second:
        body = {"name": "ci", "rights": [{"role": "viewer", "sites": "all"}]}
        for round_ in range(5):
            body["name"] = f"ci-{round_}"
            headers = {"Idempotency-Key": f"{KEY}-{round_}"}
            asked = [
                each.call("POST", "/api/v1/tokens", body, headers=headers) for each in (live, second) * 8
            ]
            answers = await asyncio.gather(*asked)
            assert [status for status, _ in answers] == [201] * 16
            assert len({str(answer["token"]) for _, answer in answers}) == 1
    assert (await live.kinds()).count("token.added") == 5 + 6, "and the six of this world"


async def test_c04_whoever_dies_before_acting_is_replaced_and_after_acting_is_told(live: Live) -> None:
    store = live.controller._store
    once, now = Once(store, b"k" * 32, hold_s=30.0, wait_s=0.1), time.time()

    def asked(key: str) -> Asked:
        return Asked(account="admin", key=key, request_sha256=b"r" * 32)

    def act(held: Held) -> None:
        def job(tx: Transaction) -> None:
            once.mark(tx, held)
            audit.note(tx, actor="once", act="test", target=held.asked.key, reason="", now=now)

        return job  # type: ignore[return-value]

    idle = await once.begin(asked("idle"), now=now)
    acted = await once.begin(asked("acted"), now=now)
    assert isinstance(idle, Held) and isinstance(acted, Held)
    await store.run(act(acted))  # type: ignore[arg-type]
    for key in ("idle", "acted"):  # both may still be at work
        with pytest.raises(Rejected, match=r"idempotency\.pending"):
            await once.begin(asked(key), now=now + 29)
    after = await once.begin(asked("idle"), now=now + 31)
    assert isinstance(after, Held) and after.holder != idle.holder
    with pytest.raises(Rejected, match=r"idempotency\.unanswered"):
        await once.begin(asked("acted"), now=now + 31)
    with pytest.raises(Rejected, match=r"idempotency\.pending"):  # the one that seemed dead wakes up
        await store.run(act(idle))  # type: ignore[arg-type]
    await store.run(act(after))  # type: ignore[arg-type]
    await once.keep(idle, b"of one that holds it no more")
    await once.keep(after, b"done")
    assert await once.begin(asked("idle"), now=now + 40) == b"done"
    notes = await store.run(lambda tx: audit.notes(tx, after=0, limit=500))
    assert [note.target for note in notes if note.actor == "once"] == ["acted", "idle"]


async def test_what_failed_before_anything_was_stored_may_be_tried_again(
    live: Live, monkeypatch: pytest.MonkeyPatch
) -> None:
    headers, whole = {"Idempotency-Key": KEY}, live.fleet.create_site

    async def away(*_: object, **__: object) -> None:
        raise StoreUnavailable("away")

    monkeypatch.setattr(live.fleet, "create_site", away)
    assert (await live.call("POST", "/api/v1/sites", SITE, headers=headers))[0] == 503
    monkeypatch.setattr(live.fleet, "create_site", whole)
    assert (await live.call("POST", "/api/v1/sites", SITE, headers=headers))[0] == 201


async def test_keys_are_bounded_and_forgotten_after_a_day(
    live: Live, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rules, "MAX_KEYS", 3)
    for number in range(4):
        headers = {"Idempotency-Key": f"{KEY}-{number}"}
        body = {"site": f"shop-{number}"}
        status, answer = await live.call("POST", "/api/v1/sites", body, headers=headers)
        assert status == (201 if number < 3 else 429), answer
    once, now = live.services.once, time.time()
    assert await once.sweep(now=now + rules.KEPT_S - 60) == 0
    assert await once.sweep(now=now + rules.KEPT_S + 60) == 3
    assert (await everything(live))["answers_kept"] == []
    old = Asked(account="admin", key=KEY, request_sha256=b"1" * 32)
    assert isinstance(await once.begin(old, now=now), Held)
    new = Asked(account="admin", key=KEY, request_sha256=b"2" * 32)
    assert isinstance(await once.begin(new, now=now + rules.KEPT_S + 1), Held)


async def test_the_command_sends_again_what_broke_off_and_it_is_done_once(live: Live) -> None:
    profile = Profile(url=live.admin_url, ca=live.ca, token=TOKENS["admin"])
    async with breaking(live.controller.admins.port, answers_lost=2) as lossy:
        there = Profile(url=f"https://localhost:{lossy.port}", ca=profile.ca, token=profile.token)
        with Client(there) as client:
            made = await asyncio.to_thread(client.send, "POST", "/sites", SITE)
        assert made["site"] == "shop" and lossy.lost == 2
        assert (await live.kinds()).count("site.created") == 2, "the factory, and the shop once"


async def test_the_store_forgets_no_key_at_a_restart(live: Live) -> None:
    headers = {"Idempotency-Key": KEY}
    assert (await live.call("POST", "/api/v1/sites", SITE, headers=headers))[0] == 201
    other = Store(live.controller._store.url)
    try:
        assert await other.run(_kept)
    finally:
        other.close()
