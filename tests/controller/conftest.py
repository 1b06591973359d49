"""Every test of the fleet and of the store runs on SQLite and on a real PostgreSQL."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from controller.store import Store, migrate
from tests.parts.fleets import FleetLab
from tests.parts.postgres import Postgres, postgres
from tests.parts.sqlite import ready_sqlite


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[Postgres]:
    """One server for all tests, with a migrated template."""
    with postgres() as server:
        migrate(server.create("ready"))
        yield server


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A migrated, empty database."""
    if request.param == "postgresql":
        server: Postgres = request.getfixturevalue("postgres_server")
        with server.lent("ready") as url:
            yield url
    else:
        copy = tmp_path / "ringfence.db"
        shutil.copy(ready_sqlite(), copy)
        yield f"sqlite:///{copy}"


@pytest.fixture
def open_store(database_url: str) -> Iterator[Callable[[], Store]]:
    """Open stores on the database: each is what one controller process has."""
    stores: list[Store] = []

    def open_one() -> Store:
        stores.append(Store(database_url))
        return stores[-1]

    yield open_one
    for store in stores:
        store.close()


@pytest.fixture
def lab(open_store: Callable[[], Store]) -> FleetLab:
    """A fleet with the default settings."""
    return FleetLab(open_store())
