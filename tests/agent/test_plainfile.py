"""Changing what a file grants while somebody puts other files in its place. Attackers are processes of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from agent.host import Host, Wanted

OWNER = 65534
ROUNDS = 4000
ATTACKERS = 2
ATTACK = """
import os, sys
folder, victim, mine = sys.argv[1:]
new = folder + "/../new-" + mine
while True:
    for make in (
        lambda: os.close(os.open(new, os.O_WRONLY | os.O_CREAT, 0o640)),
        lambda: os.link(victim, new),
        lambda: os.symlink(victim, new),
        lambda: os.link(victim, new),
    ):
        try:
            make()
            if not os.path.islink(new) and mine == "0" and os.stat(new).st_nlink == 1:
                os.chown(new, 65534, 65534)
            os.rename(new, folder + "/f")
            os.unlink(new)  # a rename over a link to the same file does nothing
        except FileNotFoundError:
            pass
"""


@contextmanager
def _attacked(folder: Path, victim: Path) -> Iterator[None]:
    running = [
        subprocess.Popen([sys.executable, "-S", "-c", ATTACK, str(folder), str(victim), str(number)])
        for number in range(ATTACKERS)
    ]
    try:
        yield
        assert [each.poll() for each in running] == [None] * ATTACKERS
    finally:
        for each in running:
            each.kill()
            each.wait()


def _folder(tmp_path: Path, uid: int, mode: int) -> Path:
    folder = tmp_path / "d"
    folder.mkdir()
    folder.chmod(mode)
    os.chown(folder, uid, uid)
    return folder


def _own_file(folder: Path, mode: int = 0o600) -> Path:
    own = folder / "f"
    own.write_bytes(b"x")
    own.chmod(mode)
    os.chown(own, OWNER, OWNER)
    return own


@pytest.mark.parametrize(
    ("uid", "mode"),
    [
        pytest.param(0, 0o777, id="0777"),
        pytest.param(0, 0o1777, id="1777"),
        pytest.param(0, 0o775, id="0775"),
        pytest.param(OWNER, 0o755, id="0755"),
    ],
)
def test_d06_a_repair_never_reaches_another_file_whatever_takes_the_place(
    uid: int, mode: int, tmp_path: Path
) -> None:
    victim = tmp_path / "shadow"
    victim.write_bytes(b"secret")
    victim.chmod(0o600)
    folder = _folder(tmp_path, uid, mode)
    host = Host(root=tmp_path)
    with _attacked(folder, victim):
        for number in range(ROUNDS):
            try:
                host.set_access("/d/f", Wanted(OWNER, OWNER, 0o666 if number % 2 else 0o644))
            except OSError:
                pass
            found = victim.stat()
            assert (found.st_uid, found.st_mode & 0o7777) == (0, 0o600), number
    assert victim.read_bytes() == b"secret"


@pytest.mark.parametrize("mode", [0o777, 0o1777, 0o775, 0o757])
def test_d06_where_anybody_may_write_nothing_is_changed_and_the_cure_is_told(
    mode: int, tmp_path: Path
) -> None:
    own = _own_file(_folder(tmp_path, 0, mode))
    with pytest.raises(OSError, match=r"may write in /d, and .* take write access to that folder"):
        Host(root=tmp_path).set_access("/d/f", Wanted(OWNER, OWNER, 0o666))
    assert own.stat().st_mode & 0o777 == 0o600


def test_d06_the_whole_way_counts(tmp_path: Path) -> None:
    inner = _folder(tmp_path, 0, 0o1777) / "inner"
    inner.mkdir()
    own = _own_file(inner)
    with pytest.raises(OSError, match="may write in /d,"):
        Host(root=tmp_path).set_access("/d/inner/f", Wanted(OWNER, OWNER, 0o666))
    assert own.stat().st_mode & 0o777 == 0o600


def test_d06_folders_of_two_users_are_nobodys_own(tmp_path: Path) -> None:
    inner = _folder(tmp_path, 65533, 0o755) / "inner"
    inner.mkdir()
    os.chown(inner, OWNER, OWNER)
    own = _own_file(inner)
    with pytest.raises(OSError, match="may write in /d/inner,"):
        Host(root=tmp_path).set_access("/d/inner/f", Wanted(OWNER, OWNER, 0o666))
    assert own.stat().st_mode & 0o777 == 0o600


def test_d06_in_a_users_folder_that_users_files_are_mended(tmp_path: Path) -> None:
    own = _own_file(_folder(tmp_path, OWNER, 0o755), 0o666)
    Host(root=tmp_path).set_access("/d/f", Wanted(OWNER, OWNER, 0o600))
    assert own.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    ("wanted", "uid"),
    [
        pytest.param(Wanted(OWNER, OWNER, 0o4755), OWNER, id="set-uid"),
        pytest.param(Wanted(OWNER, OWNER, 0o2755), OWNER, id="set-gid"),
        pytest.param(Wanted(OWNER, 0, 0o644), OWNER, id="group"),
        pytest.param(Wanted(OWNER, OWNER, 0o755, capabilities="cap_net_raw=ep"), OWNER, id="capabilities"),
        pytest.param(Wanted(OWNER, OWNER, 0o644, attributes=["immutable"]), OWNER, id="attributes"),
        pytest.param(Wanted(OWNER, OWNER, 0o644), 0, id="roots file to the user"),
        pytest.param(Wanted(0, 0, 0o644), OWNER, id="the users file to root"),
        pytest.param(Wanted(0, 0, 0o644), 0, id="roots file"),
    ],
)
def test_d06_in_a_users_folder_nothing_goes_beyond_the_owners_own_power(
    wanted: Wanted, uid: int, tmp_path: Path
) -> None:
    own = _own_file(_folder(tmp_path, OWNER, 0o755))
    os.chown(own, uid, uid)
    with pytest.raises(OSError, match=r"user nobody may write in /d, .* give the folder to root"):
        Host(root=tmp_path).set_access("/d/f", wanted)
    found = own.stat()
    assert (found.st_uid, found.st_gid, found.st_mode & 0o7777) == (uid, uid, 0o600)


def test_d06_in_roots_folder_a_users_file_is_mended(tmp_path: Path) -> None:
    own = _own_file(_folder(tmp_path, 0, 0o755), 0o666)
    Host(root=tmp_path).set_access("/d/f", Wanted(0, 0, 0o640))
    found = own.stat()
    assert (found.st_uid, found.st_mode & 0o777) == (0, 0o640)
