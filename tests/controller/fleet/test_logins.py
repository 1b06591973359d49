"""Tries, sessions and people at the store: exact under parallel tries, on both databases, at two controllers."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable

import pytest

from contract.errors import Rejected
from controller import lockout
from controller.fleet import logins
from controller.fleet.logins import Begun
from controller.fleet.people import People
from controller.permissions import EVERYWHERE, ON_THE_MACHINE, Person, Right, Role, at_sites
from controller.store import Store, Transaction, users
from controller.store import sessions as session_rows
from tests.parts.fleets import T0, digest

OpenStore = Callable[[], Store]
ADMIN = Right(role="admin", sites="all")
RECOVERY = "ABCDE-FGHJK-MNPQR-STVWX"


def right(role: Role, *sites: str) -> Right:
    return Right(role=role, sites=sites or "all")


def step_of(user: str, stored: bytes, code: str, after: int) -> int | None:
    """Codes of these tests are their own step."""
    return int(code) if code.isdigit() and int(code) > after else None


async def made(store: Store, name: str, *rights: Right) -> People:
    """A user who has been set up with the password `kept`."""
    people = People(store)
    setup = digest("setup", name)
    await people.add_user(name, rights, setup, by=ON_THE_MACHINE, setup_expires_at=T0 + 60, now=T0)
    await store.run(lambda tx: logins.offer(tx, name, setup, b"sealed", T0))
    await store.run(
        lambda tx: logins.set_up(
            tx,
            name,
            setup,
            code="000001",
            password="kept",
            recovery=[RECOVERY],
            token_sha256=digest("session", name),
            step_of=step_of,
            expires_at=T0 + 3600,
            now=T0,
        )
    )
    return people


async def attempt(store: Store, name: str, code: str, *, now: float = T0, right_password: bool = True) -> str:
    """One login; the code of what is refused."""
    try:
        begun = await store.run(lambda tx: logins.begin(tx, name, now))
        await store.run(
            lambda tx: logins.finish(
                tx,
                name,
                begun,
                code,
                digest("token", name, code, str(now)),
                right_password=right_password,
                step_of=step_of,
                expires_at=now + 3600,
                now=now,
            )
        )
    except Rejected as refused:
        return refused.code
    return "in"


@pytest.mark.parametrize("name", ["ann", "nobody-knows"])
async def test_c10_many_guess_at_once_at_two_controllers_and_five_are_looked_at(
    open_store: OpenStore, name: str
) -> None:
    one, two = open_store(), open_store()
    await made(one, "ann", ADMIN)
    begun = await asyncio.gather(
        *(store.run(lambda tx: logins.begin(tx, name, T0 + 1)) for store in (one, two) for _ in range(40)),
        return_exceptions=True,
    )
    looked_at = [each for each in begun if isinstance(each, Begun)]
    assert len(looked_at) == lockout.FREE_TRIES
    assert {str(each).partition(";")[0] for each in begun if not isinstance(each, Begun)} == {
        "login.locked: too many wrong tries"
    }
    # Then one in a minute, and one in two.
    assert await attempt(one, name, "000002", now=T0 + 60.5) == "login.locked"
    assert await attempt(one, name, "x", now=T0 + 61) == "login.refused"
    assert await attempt(two, name, "x", now=T0 + 61 + 119) == "login.locked"
    assert await attempt(two, name, "x", now=T0 + 61 + 120) == "login.refused"


async def test_c10_a_try_waits_for_the_one_that_is_being_counted(open_store: OpenStore) -> None:
    one, two = open_store(), open_store()
    await made(one, "ann", ADMIN)
    for _ in range(lockout.FREE_TRIES - 1):
        assert await attempt(one, "ann", "x") == "login.refused"
    counted, looked = threading.Event(), threading.Event()

    def last(tx: Transaction) -> object:
        begun = logins.begin(tx, "ann", T0)
        counted.set()
        looked.wait(1)  # not committed yet
        return begun

    def beyond(tx: Transaction) -> object:
        begun = logins.begin(tx, "ann", T0)
        looked.set()
        return begun

    running = asyncio.create_task(one.run(last))
    assert await asyncio.to_thread(counted.wait, 30)
    with pytest.raises(Rejected, match=r"login\.locked"):
        await two.run(beyond)
    assert isinstance(await running, Begun)


async def test_the_right_person_is_forgiven_and_others_are_not_locked(open_store: OpenStore) -> None:
    store = open_store()
    people = await made(store, "ann", ADMIN)
    await made(store, "bob", ADMIN)
    for number in range(4):
        assert await attempt(store, "ann", "x", now=T0 + number) == "login.refused"
    assert await attempt(store, "ann", "000002", now=T0 + 5) == "in"
    for number in range(5):
        assert await attempt(store, "ann", "x", now=T0 + 6 + number) == "login.refused"
    assert await attempt(store, "ann", "000003", now=T0 + 12) == "login.locked"
    assert await attempt(store, "bob", "000002", now=T0 + 12) == "in"
    [ann] = [u for u in await people.list_users(scope=EVERYWHERE, now=T0 + 12) if u.name == "ann"]
    assert 50 < ann.wait_s <= 60
    await people.unlock_user("ann", by=ON_THE_MACHINE, reason="it was her", now=T0 + 13)
    assert await attempt(store, "ann", "000003", now=T0 + 13) == "in"


async def test_c10_a_code_lets_one_in_however_many_bring_it_at_once(open_store: OpenStore) -> None:
    one, two = open_store(), open_store()
    await made(one, "ann", ADMIN)
    for code in ("000007", "abcde fghjk mnpqr stvwx"):
        results = await asyncio.gather(*(attempt(store, "ann", code) for store in (one, two)))
        assert sorted(results) == ["in", "login.refused"]
        assert await attempt(one, "ann", code) == "login.refused"
    assert await attempt(one, "ann", "000006") == "login.refused"  # one from before


async def test_a_code_is_not_used_up_by_a_wrong_password(open_store: OpenStore) -> None:
    store = open_store()
    await made(store, "ann", ADMIN)
    assert await attempt(store, "ann", "000005", right_password=False) == "login.refused"
    assert await attempt(store, "ann", "000005") == "in"


async def test_a_reset_while_a_password_is_compared_wins(open_store: OpenStore) -> None:
    store = open_store()
    people = await made(store, "ann", right("viewer"))
    begun = await store.run(lambda tx: logins.begin(tx, "ann", T0))
    await people.reset_user(
        "ann", digest("again"), by=ON_THE_MACHINE, reason="lost phone", setup_expires_at=T0 + 60, now=T0
    )
    # Set up anew by somebody else meanwhile: with another password.
    await store.run(lambda tx: users.change(tx, "ann", password="another", totp_secret=b"s"))
    with pytest.raises(Rejected, match=r"login\.refused"):
        await store.run(
            lambda tx: logins.finish(
                tx,
                "ann",
                begun,
                "000009",
                digest("token"),
                right_password=True,
                step_of=step_of,
                expires_at=T0 + 60,
                now=T0,
            )
        )
    assert await people.whose(digest("session", "ann"), now=T0) is None  # the sessions from before went too
    assert await store.run(users.recovery_codes_left) == {}


async def test_a_setup_code_is_good_once_and_for_its_time(open_store: OpenStore) -> None:
    store = open_store()
    people = await made(store, "ann", right("viewer"))
    await people.add_user(
        "bob", [right("viewer")], digest("b"), by=ON_THE_MACHINE, setup_expires_at=T0 + 60, now=T0
    )

    async def offered(name: str, code: bytes, now: float) -> str:
        try:
            await store.run(lambda tx: logins.offer(tx, name, code, b"x", now))
        except Rejected as refused:
            return refused.code
        return "offered"

    assert await offered("ann", digest("setup", "ann"), T0) == "login.setup"
    assert await offered("bob", digest("other"), T0) == "login.setup"
    assert await offered("nobody", digest("b"), T0) == "login.setup"
    assert await offered("bob", digest("b"), T0 + 60) == "login.setup"
    assert await offered("bob", digest("b"), T0 + 59) == "offered"
    assert await attempt(store, "bob", "000001") == "login.refused"
    await people.disable_user("bob", by=ON_THE_MACHINE, reason="a mistake", now=T0)
    assert await offered("bob", digest("b"), T0 + 59) == "login.setup"


async def test_c09_a_session_has_the_rights_of_this_moment(open_store: OpenStore) -> None:
    store = open_store()
    people = await made(store, "ann", right("operator", "lyon"))
    session = digest("session", "ann")
    ann = Person("ann", (right("operator", "lyon"),), user="ann")
    assert await people.whose(session, now=T0) == ann
    await people.add_token(
        "anns", [right("operator", "lyon")], digest("anns"), by=ann, own=True, expires_at=None, now=T0
    )
    await people.set_user_rights("ann", [right("viewer")], by=ON_THE_MACHINE, reason="moved on", now=T0)
    assert (await people.whose(session, now=T0)).rights == (right("viewer"),)  # type: ignore[union-attr]
    assert await people.whose(digest("anns"), now=T0) is None  # it could do what she no longer can
    await people.set_user_rights("ann", [right("operator")], by=ON_THE_MACHINE, reason="back", now=T0)
    assert await people.whose(digest("anns"), now=T0) is not None
    await made(store, "root", ADMIN)
    await people.disable_user("ann", by=ON_THE_MACHINE, reason="left", now=T0)
    assert await people.whose(session, now=T0) is None and await people.whose(digest("anns"), now=T0) is None
    await people.enable_user("ann", by=ON_THE_MACHINE, reason="came back", now=T0)
    assert await people.whose(session, now=T0) is None
    assert await people.whose(digest("session", "root"), now=T0 + 3600) is None  # it ends by itself


async def test_c09_who_manages_one_site_touches_nobody_beyond_it(open_store: OpenStore) -> None:
    store = open_store()
    people = await made(store, "root", ADMIN)
    await made(store, "both", right("viewer", "lyon", "paris"))
    lyon = Person("lyon-admin", (right("admin", "lyon"),))
    for name in ("root", "both", "nobody"):
        for act in (
            people.set_user_rights(name, [right("viewer", "lyon")], by=lyon, reason="x", now=T0),
            people.disable_user(name, by=lyon, reason="x", now=T0),
            people.enable_user(name, by=lyon, reason="x", now=T0),
            people.unlock_user(name, by=lyon, reason="x", now=T0),
            people.reset_user(name, digest("r"), by=lyon, reason="x", setup_expires_at=T0 + 9, now=T0),
        ):
            with pytest.raises(Rejected, match=r"user\.unknown"):
                await act
    with pytest.raises(Rejected, match=r"rights\.beyond"):
        await people.add_user("more", [ADMIN], digest("m"), by=lyon, setup_expires_at=T0 + 9, now=T0)
    assert await people.list_users(scope=at_sites("lyon"), now=T0) == []


async def test_the_last_who_manages_everybody_stays_also_among_people(open_store: OpenStore) -> None:
    store = open_store()
    people = await made(store, "ann", ADMIN)
    await people.add_user("bob", [ADMIN], digest("b"), by=ON_THE_MACHINE, setup_expires_at=T0 + 9, now=T0)
    for act in (
        people.disable_user("ann", by=ON_THE_MACHINE, reason="x", now=T0),
        people.set_user_rights("ann", [right("viewer")], by=ON_THE_MACHINE, reason="x", now=T0),
        people.reset_user("ann", digest("r"), by=ON_THE_MACHINE, reason="x", setup_expires_at=T0 + 9, now=T0),
    ):
        with pytest.raises(Rejected, match=r"people\.last-admin"):  # bob has yet to choose a password
            await act
    assert await people.whose(digest("session", "ann"), now=T0) is not None


async def test_sessions_of_a_person_are_bounded(open_store: OpenStore) -> None:
    store = open_store()
    people = await made(store, "ann", ADMIN)

    def begin(tx: Transaction, number: int) -> None:
        sha256 = digest("s", str(number))
        session_rows.add(tx, sha256, "ann", groups=None, expires_at=T0 + 99, now=T0 + number)

    for number in range(session_rows.MAX_SESSIONS + 5):
        await store.run(lambda tx, n=number: begin(tx, n))
    alive = [await people.whose(digest("s", str(n)), now=T0 + 50) is not None for n in range(37)]
    assert alive == [False] * 5 + [True] * 32


async def test_c10_names_that_strangers_try_are_bounded_and_people_are_counted_all_the_same(
    open_store: OpenStore,
) -> None:
    store = open_store()
    await made(store, "ann", ADMIN)

    def tries(tx: Transaction, name: str) -> object:
        return users.tries(tx, name, T0, most=3)

    for name in ("a", "b", "c"):
        assert await store.run(lambda tx, n=name: tries(tx, n)) is not None
    assert await store.run(lambda tx: tries(tx, "d")) is None
    assert await store.run(lambda tx: tries(tx, "ann")) is not None
