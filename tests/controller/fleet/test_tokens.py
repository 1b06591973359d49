"""Tokens: who may touch which, and who is left; on both databases, also with two controllers at once."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from pathlib import Path

import alembic.command
import alembic.config
import pytest
import sqlalchemy

from contract.errors import Rejected
from controller.fleet import tokens as use_cases
from controller.fleet.people import People
from controller.permissions import EVERYWHERE, ON_THE_MACHINE, Person, Right, Role
from controller.store import MIGRATIONS, Store, Transaction, migrate, tokens
from tests.parts.fleets import T0, digest

OpenStore = Callable[[], Store]


def right(role: Role, *sites: str) -> Right:
    return Right(role=role, sites=sites or "all")


async def made(people: People, name: str, *rights: Right, by: Person = ON_THE_MACHINE) -> None:
    await people.add_token(name, rights, digest(name), by=by, expires_at=T0 + 3600, now=T0)


async def test_c09_a_token_that_reaches_further_than_ones_rights_is_not_there(open_store: OpenStore) -> None:
    people = People(open_store())
    await made(people, "root", right("admin"))
    await made(people, "both", right("viewer", "lyon"), right("viewer", "paris"))
    lyon = Person("lyon-admin", (right("admin", "lyon"),))
    for name in ("root", "both", "nobody-knows"):
        for act in (
            people.set_token_rights(name, [right("viewer", "lyon")], by=lyon, reason="x", now=T0),
            people.renew_token(name, digest("new"), by=lyon, expires_at=None, now=T0),
            people.revoke_token(name, by=lyon, now=T0),
        ):
            with pytest.raises(Rejected, match=r"token\.unknown"):
                await act
    assert await people.whose(digest("root"), now=T0) == Person("root", (right("admin"),))


async def test_c09_nobody_gets_the_secret_of_a_token_that_counts_as_another(open_store: OpenStore) -> None:
    """Else whoever manages people would ask as themselves and approve as somebody else."""
    people = People(open_store())
    await made(people, "root", right("admin"))
    ann, bob = (Person(name, (right("admin"),), user=None) for name in ("ann", "bob"))
    await made(people, "robot", right("approver"), by=bob)
    await made(people, "robots-own", right("approver"), by=Person("robot", (right("approver"),)))
    for name in ("robot", "robots-own", "root"):
        with pytest.raises(Rejected, match=r"token\.anothers"):
            await people.renew_token(name, digest("new"), by=ann, expires_at=None, now=T0)
    for name, by in (("robot", bob), ("robots-own", bob), ("root", Person("root", (right("admin"),)))):
        await people.renew_token(name, digest("new", name), by=by, expires_at=None, now=T0)
        assert await people.whose(digest("new", name), now=T0) is not None
    await people.revoke_token("robot", by=ann, now=T0)  # ending one needs no more than the right to


async def test_a_token_ends_and_says_when_it_was_used(open_store: OpenStore) -> None:
    people = People(open_store())
    await made(people, "ci", right("viewer"))
    assert await people.whose(digest("ci"), now=T0 + 1) is not None
    assert await people.whose(digest("ci"), now=T0 + 30) is not None  # too soon to be written again
    [view] = await people.list_tokens(scope=EVERYWHERE)
    assert view.used_at == T0 + 1
    assert await people.whose(digest("ci"), now=T0 + 3600) is None
    assert await people.whose(digest("other"), now=T0) is None


async def test_c15_two_admins_do_not_end_each_other_at_two_controllers(open_store: OpenStore) -> None:
    one, two = open_store(), open_store()
    people = People(one)
    for name in ("ann", "bob"):
        await made(people, name, right("admin"))
    first_has, second_has = threading.Event(), threading.Event()

    def first(tx: Transaction) -> None:
        use_cases.revoke(tx, "ann", by=ON_THE_MACHINE, now=T0)
        first_has.set()
        second_has.wait(1)  # not committed yet: the other must wait for it, or both would go

    def second(tx: Transaction) -> None:
        use_cases.revoke(tx, "bob", by=ON_THE_MACHINE, now=T0)
        second_has.set()

    running = asyncio.create_task(one.run(first))
    assert await asyncio.to_thread(first_has.wait, 30)
    with pytest.raises(Rejected, match=r"people\.last-admin"):
        await two.run(second)
    await running
    assert [token.name for token in await people.list_tokens(scope=EVERYWHERE)] == ["bob"]


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
async def test_tokens_from_before_keep_their_role_for_the_whole_fleet(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    url = f"sqlite:///{tmp_path / 'old.db'}"
    if kind == "postgresql":
        url = request.getfixturevalue("postgres_server").create("before_roles")
    _migrate_to(url, "0011")
    engine = sqlalchemy.create_engine(url.replace("postgresql://", "postgresql+psycopg://"))
    with engine.begin() as connection:
        for name, role in (("root", "admin"), ("eye", "viewer")):
            connection.execute(
                sqlalchemy.text(
                    "INSERT INTO api_tokens (name, token_sha256, role, created_at) VALUES (:n, :s, :r, 1)"
                ),
                {"n": name, "s": digest(name), "r": role},
            )
    engine.dispose()
    migrate(url)
    store = Store(url)
    try:
        people = People(store)
        assert await people.whose(digest("root"), now=T0) == Person("root", (right("admin"),))
        assert await people.whose(digest("eye"), now=T0) == Person("eye", (right("viewer"),))
        row = await store.run(lambda tx: tokens.by_name(tx, "root"))
        assert row is not None and (row.counts_as, row.created_by) == ("root", None)
    finally:
        store.close()
    _migrate_to(url, "0011", down=True)
    _migrate_to(url, "head")


def _migrate_to(url: str, revision: str, *, down: bool = False) -> None:
    engine = sqlalchemy.create_engine(url.replace("postgresql://", "postgresql+psycopg://"))
    config = alembic.config.Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        (alembic.command.downgrade if down else alembic.command.upgrade)(config, revision)
    engine.dispose()
