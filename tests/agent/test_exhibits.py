"""What a repair found is kept: real files, the folder read by hand."""

from __future__ import annotations

import base64
import hashlib
import json
import os
from pathlib import Path

import pytest

from agent import exhibits
from agent.exhibits import Exhibits
from agent.host import Host, Wanted
from agent.tree import Kept, file_of


def _records(folder: Path) -> list[dict[str, object]]:
    return [json.loads(path.read_bytes()) for path in sorted(folder.glob("*.json"))]


@pytest.fixture
def kept(tmp_path: Path) -> Exhibits:
    return Exhibits(tmp_path / "exhibits")


def _host(root: Path, kept: Exhibits) -> Host:
    host = Host(root=root)
    host.tree.before_change = kept.keep
    return host


def test_what_is_overwritten_removed_and_regranted_is_kept_before(tmp_path: Path, kept: Exhibits) -> None:
    root = tmp_path / "root"
    root.mkdir()
    evil = b"evil ALL=(ALL) NOPASSWD: ALL\n"
    for name in ("put", "gone", "mode"):
        (root / name).write_bytes(evil + name.encode())
        (root / name).chmod(0o4755)
    (root / "link").symlink_to("/etc/shadow")
    host = _host(root, kept)
    host.tree.put("/put", file_of(b"good\n", Kept(kind="file", mode=0o600)))
    host.tree.remove("/gone")
    host.tree.remove("/link")
    host.set_access("/mode", Wanted(0, 0, 0o644))
    found = {str(each["path"]): each for each in _records(tmp_path / "exhibits")}
    assert set(found) == {"/put", "/gone", "/link", "/mode"}
    assert found["/link"]["target"] == "/etc/shadow"
    for name in ("put", "gone", "mode"):
        record = found[f"/{name}"]
        assert record["mode"] == "4755" and record["uid"] == 0
        assert record["sha256"] == hashlib.sha256(evil + name.encode()).hexdigest()
        assert base64.b64decode(str(record["content"])) == evil + name.encode()
    assert [each.name != "" for each in kept.take()] == [True] * 4
    assert oct((tmp_path / "exhibits").stat().st_mode & 0o777) == "0o700"
    assert kept.take() == []


def test_a_new_file_has_no_exhibit_and_the_same_find_is_kept_once(tmp_path: Path, kept: Exhibits) -> None:
    host = _host(tmp_path, kept)
    host.tree.put("/f", file_of(b"good\n", Kept(kind="file", mode=0o600)))
    assert kept.take() == []
    for _ in range(5):
        (tmp_path / "f").write_bytes(b"evil")
        (tmp_path / "f").chmod(0o600)
        host.tree.put("/f", file_of(b"good\n", Kept(kind="file", mode=0o600)))
    assert len({each.name for each in kept.take()}) == 1
    assert len(_records(tmp_path / "exhibits")) == 1


def test_the_folder_stays_small_and_the_oldest_go(
    tmp_path: Path, kept: Exhibits, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exhibits, "MAX_FILES", 8)
    host = _host(tmp_path, kept)
    for number in range(20):
        (tmp_path / "f").write_bytes(b"%d" % number)
        host.tree.remove("/f")
    found = _records(tmp_path / "exhibits")
    assert [base64.b64decode(str(each["content"])) for each in found] == [b"%d" % n for n in range(12, 20)]


def test_a_big_file_is_kept_in_part_and_says_so(tmp_path: Path, kept: Exhibits) -> None:
    content = os.urandom(exhibits.MAX_HASHED_BYTES + 5)
    (tmp_path / "f").write_bytes(content)
    _host(tmp_path, kept).tree.remove("/f")
    (record,) = _records(tmp_path / "exhibits")
    assert record["whole"] is False and record["size"] == len(content)
    assert base64.b64decode(str(record["content"])) == content[: exhibits.MAX_CONTENT_BYTES]


def test_a03_a_disk_that_takes_nothing_does_not_stop_the_repair(tmp_path: Path) -> None:
    (tmp_path / "exhibits").write_text("a file where the folder should be")
    kept = Exhibits(tmp_path / "exhibits")
    (tmp_path / "f").write_bytes(b"evil")
    _host(tmp_path, kept).tree.remove("/f")
    assert not (tmp_path / "f").exists()
    (exhibit,) = kept.take()
    assert exhibit.name == "" and exhibit.why_not == "File exists"
    assert exhibit.said["sha256"] == hashlib.sha256(b"evil").hexdigest()
