"""backup, restore, confirm-restore and migrate-to, as an operator runs them; and a folder whose keys are others'."""

from __future__ import annotations

import asyncio
import itertools
import shutil
import time
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from contract.errors import Rejected
from controller.app import Controller
from controller.config import load_config
from controller.keys import load
from controller.main import cli
from controller.store import Store
from controller.store import tokens as rows
from tests.parts.cluster import free_port
from tests.parts.postgres import Postgres

_names = itertools.count()


def run(*arguments: object) -> Result:
    """One command. A refusal is raised."""
    result = CliRunner().invoke(cli, [str(each) for each in arguments], catch_exceptions=True)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def tokens(url: str) -> list[str]:
    """Names of the tokens in a database."""
    store = Store(url)
    try:
        return [view.name for view in store.run_sync(rows.all_)]
    finally:
        store.close()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "controller"
    listen = (f"127.0.0.1:{free_port()}", f"127.0.0.1:{free_port()}")
    run("init", "--dir", made, "--node-listen", listen[0], "--admin-listen", listen[1])
    return made


def test_a_backup_is_restored_and_waits_for_a_person(folder: Path, tmp_path: Path) -> None:
    archive = tmp_path / "backup"
    run("backup", "--dir", folder, archive)
    with pytest.raises(Rejected, match=r"backup\.exists"):
        run("backup", "--dir", folder, archive)
    with pytest.raises(Rejected, match=r"store\.not-empty"):
        run("restore", "--dir", folder, archive)
    for file in folder.glob("ringfence.db*"):
        file.unlink()
    run("restore", "--dir", folder, archive)
    assert tokens(f"sqlite:///{folder / 'ringfence.db'}") == ["admin"]
    confirm = ("confirm-restore", "--dir", folder, "--actor", "ann", "--reason", "looked")
    assert "nothing was changed" in run(*confirm, "--dry-run").output
    assert "confirmed" in run(*confirm).output
    with pytest.raises(Rejected, match=r"restore\.none"):
        run(*confirm)


def test_one_command_moves_from_sqlite_to_postgresql(folder: Path, postgres_server: Postgres) -> None:
    url = postgres_server.create(f"upkeep{next(_names)}")
    before = (folder / "ringfence.db").read_bytes()
    said = run("migrate-to", "--dir", folder, url).output
    assert "copied and verified" in said and "audit" in said
    assert tokens(url) == ["admin"] and (folder / "ringfence.db").read_bytes() == before
    with pytest.raises(Rejected, match=r"store\.not-empty"):
        run("migrate-to", "--dir", folder, url)
    with pytest.raises(Rejected, match=r"store\.url"):
        run("migrate-to", "--dir", folder, f"sqlite:///{folder / 'other.db'}")


def test_b04_a_second_controller_starts_with_copied_keys_and_not_with_its_own(
    folder: Path, tmp_path: Path, postgres_server: Postgres
) -> None:
    url = postgres_server.create(f"upkeep{next(_names)}")
    run("migrate-to", "--dir", folder, url)
    config = folder / "controller.toml"
    config.write_text(config.read_text().replace('url = ""', f'url = "{url}"'))
    own = tmp_path / "own"
    run("init", "--dir", own, "--node-listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0")
    shutil.copy(config, own / "controller.toml")

    async def start(directory: Path) -> None:
        controller = Controller(load_config(directory), directory, load(directory / "keys", time.time()))
        try:
            await controller.start()
        finally:
            await controller.stop()

    asyncio.run(start(folder))
    with pytest.raises(Rejected, match=r"keys\.others.*directive.*copy"):
        asyncio.run(start(own))
    shutil.rmtree(own / "keys")
    shutil.copytree(folder / "keys", own / "keys")
    asyncio.run(start(own))
