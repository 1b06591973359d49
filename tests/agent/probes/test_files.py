"""Files: real ones, changed in the ways that hide a change."""

from __future__ import annotations

import hashlib
import os
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from agent.filehashing import hash_open
from agent.host import Host
from agent.probes import Probe, Surroundings
from agent.probes import files as files_probe
from contract.errors import Rejected
from tests.agent.probes.case import Case, probe_of, section_of, tree_state, tree_trace
from tests.parts import imalog

WEIGHTS = b"weights " * 1000


def _entry(path: str, content: bytes, more: str = "") -> str:
    digest = hashlib.sha256(content).hexdigest()
    return f'[[files.file]]\npath = "{path}"\nsha256 = "{digest}"\nreason = "for a test"\n{more}'


@contextmanager
def case(folder: Path) -> Iterator[Case]:
    (folder / "models").mkdir()
    weights = folder / "models/vision.onnx"
    weights.write_bytes(WEIGHTS)
    weights.chmod(0o644)
    os.chown(weights, 0, 0)

    def spoil() -> None:
        weights.chmod(0o4777)
        os.chown(weights, 65534, 65534)
        weights.chmod(0o4777)

    def blind() -> None:
        weights.unlink()
        weights.symlink_to("/etc/passwd")

    yield Case(
        toml="[files]\n" + _entry("/models/vision.onnx", WEIGHTS, 'repair = "mode"\n'),
        around=Surroundings(host=Host(root=folder)),
        spoil=spoil,
        blind=blind,
        state=lambda: tree_state(folder),
        trace=lambda: tree_trace(folder),
        heirs=("[files]\n" + _entry("/models/vision.onnx", b"other", 'repair = "mode"\nmode = "0600"\n'),),
    )


def _probe(folder: Path, toml: str) -> Probe[files_probe.Section]:
    return probe_of("files", "[files]\n" + toml, Surroundings(host=Host(root=folder)))


def _until_hashed(probe: Probe[files_probe.Section]) -> None:
    assert isinstance(probe, files_probe.Probe)
    deadline = time.monotonic() + 10
    while probe.hashing():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_d12_one_changed_byte_in_the_weights_is_a_drift(tmp_path: Path) -> None:
    weights = tmp_path / "vision.onnx"
    weights.write_bytes(WEIGHTS)
    probe = _probe(tmp_path, _entry("/vision.onnx", WEIGHTS))
    assert probe.observe(1.0) == []
    changed = bytearray(WEIGHTS)
    changed[777] ^= 1
    weights.write_bytes(changed)
    (drift,) = probe.observe(2.0)
    assert drift.key == "/vision.onnx sha256"
    assert drift.found == hashlib.sha256(changed).hexdigest()
    probe.repair([drift], 2.0)
    assert [each.key for each in probe.observe(3.0)] == ["/vision.onnx sha256"]


def test_d12_a_change_with_its_mtime_put_back_is_seen(tmp_path: Path) -> None:
    weights = tmp_path / "vision.onnx"
    weights.write_bytes(WEIGHTS)
    probe = _probe(tmp_path, _entry("/vision.onnx", WEIGHTS))
    assert probe.observe(1.0) == []
    times = weights.stat()
    weights.write_bytes(WEIGHTS[::-1])
    os.utime(weights, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert [drift.key for drift in probe.observe(2.0)] == ["/vision.onnx sha256"]


def test_d12_a_file_is_hashed_anew_after_rehash_s(tmp_path: Path) -> None:
    weights = tmp_path / "vision.onnx"
    weights.write_bytes(WEIGHTS)
    probe = _probe(tmp_path, "rehash_s = 60\n" + _entry("/vision.onnx", WEIGHTS))
    assert isinstance(probe, files_probe.Probe)
    time.sleep(0.1)  # past the tick within which a digest is not believed
    assert probe.observe(1000.0) == []
    # A write that stat does not show at all: as if the clock had been set back for it.
    known = probe._hashed["/vision.onnx"]
    weights.write_bytes(WEIGHTS[::-1])
    moved = Host(root=tmp_path).file_facts("/vision.onnx").identity
    probe._hashed["/vision.onnx"] = known._replace(digest=known.digest._replace(identity=moved))
    probe._as_wanted[""]["vision.onnx"] = moved, known.at
    assert probe.observe(1059.0) == []
    assert [drift.key for drift in probe.observe(1060.0)] == ["/vision.onnx sha256"]


def test_big_files_are_hashed_beside_the_pass_and_told_until_then(tmp_path: Path) -> None:
    content = os.urandom(files_probe.SMALL_FILE_BYTES * 3 + 5)
    (tmp_path / "big.bin").write_bytes(content)
    time.sleep(0.1)  # past the tick: a digest taken within it is taken again
    probe = _probe(tmp_path, _entry("/big.bin", content))
    assert probe.observe(1.0) == []
    assert [notice.kind for notice in probe.notices(1.0)] == ["files.hashing"]
    _until_hashed(probe)
    assert probe.observe(2.0) == []
    assert probe.notices(2.0) == []
    with (tmp_path / "big.bin").open("r+b") as file:
        file.write(b"X")
    probe.observe(3.0)
    _until_hashed(probe)
    assert [drift.key for drift in probe.observe(4.0)] == ["/big.bin sha256"]


def test_one_pass_reads_a_bounded_amount(tmp_path: Path) -> None:
    content = bytes(files_probe.SMALL_FILE_BYTES)
    count = files_probe.PASS_BYTES // files_probe.SMALL_FILE_BYTES + 2
    for number in range(count):
        (tmp_path / f"f{number}").write_bytes(content)
    probe = _probe(tmp_path, "".join(_entry(f"/f{number}", content) for number in range(count)))
    assert probe.observe(1.0) == []
    assert len(probe.notices(1.0)) == 2
    _until_hashed(probe)
    assert probe.observe(2.0) == []


def _replace_by_symlink(path: Path) -> None:
    path.rename(path.with_name("moved"))
    path.symlink_to("moved")


def _replace_parent_by_symlink(path: Path) -> None:
    path.parent.rename(path.parent.with_name("elsewhere"))
    path.parent.symlink_to("elsewhere")


def _replace_by_fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def _replace_by_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize(
    "change", [_replace_by_symlink, _replace_parent_by_symlink, _replace_by_fifo, _replace_by_folder]
)
def test_d06_what_is_no_plain_file_is_not_looked_through(
    change: Callable[[Path], None], tmp_path: Path
) -> None:
    path = tmp_path / "etc/guardrails.toml"
    path.parent.mkdir()
    path.write_bytes(WEIGHTS)
    probe = _probe(tmp_path, _entry("/etc/guardrails.toml", WEIGHTS, 'repair = "mode"\n'))
    assert probe.observe(1.0) == []
    change(path)
    drifts = probe.observe(2.0)
    assert [drift.found for drift in drifts] == ["?"]
    probe.repair(drifts, 2.0)
    assert [drift.found for drift in probe.observe(3.0)] == ["?"]


def test_d06_a_file_with_a_second_name_is_not_changed(tmp_path: Path) -> None:
    secret = tmp_path / "shadow"
    secret.write_bytes(WEIGHTS)
    secret.chmod(0o600)
    os.link(secret, tmp_path / "guardrails.toml")
    probe = _probe(tmp_path, _entry("/guardrails.toml", WEIGHTS, 'mode = "0666"\nrepair = "mode"\n'))
    drifts = probe.observe(1.0)
    probe.repair(drifts, 1.0)
    assert secret.stat().st_mode & 0o777 == 0o600
    assert [drift.key for drift in probe.observe(2.0)] == ["/guardrails.toml mode"]


def test_a_missing_file_is_a_drift(tmp_path: Path) -> None:
    probe = _probe(tmp_path, _entry("/gone", WEIGHTS))
    assert [(drift.key, drift.found) for drift in probe.observe(1.0)] == [("/gone", "not there")]


@pytest.mark.parametrize("path", ["relative", "/", "/a/../b", "/a//b", "/a/", "/a/./b", "/a\\nb", ""])
def test_a_path_that_is_not_plain_is_refused(path: str) -> None:
    with pytest.raises(Rejected, match=r"case\.toml:[78]: files\.file\[0\]"):
        section_of(
            "files",
            f'[files]\n[[files.file]]\npath = "{path}"\nreason = "why"\n',
        )


def _run(*argv: str | Path) -> str:
    """Ask an independent witness."""
    return subprocess.run([str(each) for each in argv], capture_output=True, text=True, check=True).stdout


def _facl(path: Path) -> list[str]:
    lines = _run("getfacl", "-n", "-c", "-p", path).split()
    return [line for line in lines if not line.startswith(("user::", "other::"))]


def _mend(probe: Probe[files_probe.Section]) -> list[str]:
    """Repair; return the keys that were wrong, and require that nothing is left."""
    drifts = probe.observe(1.0)
    probe.repair(drifts, 1.0)
    assert probe.observe(2.0) == []
    return [drift.key for drift in drifts]


MEND = 'path = "/f"\nmode = "0640"\nrepair = "mode"\nreason = "for a test"\n'


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    path = tmp_path / "f"
    path.write_bytes(WEIGHTS)
    path.chmod(0o640)
    return path


def test_an_acl_that_grants_more_than_the_mode_is_taken_away_and_put_back(plain: Path) -> None:
    _run("setfacl", "-m", "u:65534:rw", plain)
    plain.chmod(0o640)
    probe = _probe(plain.parent, "[[files.file]]\n" + MEND)
    (drift,) = probe.observe(1.0)
    assert (drift.key, drift.wanted) == ("/f acl", "no ACL")
    assert "user:65534:rw-" in drift.found
    assert _mend(probe) == ["/f acl"]
    assert _facl(plain) == ["group::r--"]
    probe.undo()
    assert "user:65534:rw-" in " ".join(_facl(plain))


def test_an_acl_that_is_wanted_is_given_and_another_one_is_drift(plain: Path) -> None:
    probe = _probe(plain.parent, f'[[files.file]]\nacl = ["user:65534:r--", "group:7:r--"]\n{MEND}')
    assert _mend(probe) == ["/f acl"]
    assert _facl(plain) == ["user:65534:r--", "group::r--", "group:7:r--", "mask::r--"]
    _run("setfacl", "-m", "u:65533:r", plain)
    assert _mend(probe) == ["/f acl"]
    assert "user:65533:r--" not in _facl(plain)


def test_capabilities_are_drift_unless_they_are_wanted(plain: Path) -> None:
    _run("setcap", "cap_net_raw,cap_net_admin=ep", plain)
    probe = _probe(plain.parent, "[[files.file]]\n" + MEND)
    (drift,) = probe.observe(1.0)
    assert (drift.key, drift.wanted, drift.found) == (
        "/f capabilities",
        "none",
        "cap_net_admin,cap_net_raw=ep",
    )
    assert _mend(probe) == ["/f capabilities"]
    assert _run("getcap", plain) == ""
    wanted = _probe(plain.parent, f'[[files.file]]\ncapabilities = "cap_net_bind_service=ep"\n{MEND}')
    assert _mend(wanted) == ["/f capabilities"]
    assert _run("getcap", plain).split() == [str(plain), "cap_net_bind_service=ep"]


def test_extended_attributes_that_are_wanted(plain: Path) -> None:
    probe = _probe(plain.parent, f'[[files.file]]\nxattrs = {{"user.origin" = "build-7"}}\n{MEND}')
    assert [(d.key, d.found) for d in probe.observe(1.0)] == [("/f user.origin", "none")]
    _run("setfattr", "-n", "user.origin", "-v", "build-7", plain)
    assert probe.observe(2.0) == []


def test_d08_an_immutable_file_is_a_drift_that_says_so(plain: Path) -> None:
    plain.chmod(0o666)
    _run("chattr", "+i", plain)
    try:
        probe = _probe(plain.parent, "[[files.file]]\n" + MEND)
        drifts = probe.observe(1.0)
        assert [drift.key for drift in drifts] == ["/f mode"]
        probe.repair(drifts, 1.0)
        (left,) = probe.observe(2.0)
        assert left.wanted == "0640 (not repaired: the file is immutable (chattr))"
        freed = _probe(plain.parent, f"[[files.file]]\nattributes = []\n{MEND}")
        assert sorted(_mend(freed)) == ["/f attributes", "/f mode"]
        assert "i" not in _run("lsattr", plain).split()[0]
    finally:
        _run("chattr", "-i", plain)


def test_attributes_that_are_wanted_are_set_last(plain: Path) -> None:
    plain.chmod(0o666)
    try:
        probe = _probe(plain.parent, f'[[files.file]]\nattributes = ["immutable"]\n{MEND}')
        assert sorted(_mend(probe)) == ["/f attributes", "/f mode"]
        assert "i" in _run("lsattr", plain).split()[0]
        probe.undo()
        assert (oct(plain.stat().st_mode & 0o777), "i" in _run("lsattr", plain).split()[0]) == (
            "0o666",
            False,
        )
    finally:
        _run("chattr", "-i", plain)


def test_d08_a_file_on_a_read_only_file_system_is_a_drift_that_says_so(tmp_path: Path) -> None:
    mount = tmp_path / "ro"
    mount.mkdir()
    _run("mount", "-t", "tmpfs", "-o", "mode=0755", "none", mount)
    try:
        (mount / "f").write_bytes(b"")
        (mount / "f").chmod(0o666)
        _run("mount", "-o", "remount,ro", mount)
        probe = _probe(mount, "[[files.file]]\n" + MEND)
        probe.repair(probe.observe(1.0), 1.0)
        (left,) = probe.observe(2.0)
        assert left.wanted == "0640 (not repaired: Read-only file system)"
    finally:
        _run("umount", mount)


def test_d07_a_file_that_is_swapped_while_it_is_read_has_no_digest(plain: Path) -> None:
    host = Host(root=plain.parent)
    descriptor = host.open_file("/f")
    (plain.parent / "other").write_bytes(b"other")
    (plain.parent / "other").rename(plain)
    try:
        with pytest.raises(OSError, match="swapped"):
            hash_open(host, "/f", descriptor)
    finally:
        os.close(descriptor)


def test_d07_a_file_swapped_all_the_time_is_never_judged_in_parts(tmp_path: Path) -> None:
    """Good content with a bad mode, and bad content with a good mode, take turns: neither is ever called good."""
    probe = _probe(tmp_path, _entry("/f", WEIGHTS, 'mode = "0600"\n'))
    stop = threading.Event()

    def swap() -> None:
        while not stop.is_set():
            for content, mode in ((WEIGHTS, 0o666), (WEIGHTS[::-1], 0o600)):
                (tmp_path / "new").write_bytes(content)
                (tmp_path / "new").chmod(mode)
                (tmp_path / "new").rename(tmp_path / "f")

    (tmp_path / "f").write_bytes(b"")
    attacker = threading.Thread(target=swap)
    attacker.start()
    try:
        for number in range(300):
            assert probe.observe(float(number)) != []
    finally:
        stop.set()
        attacker.join()


def test_d07_a_digest_taken_within_the_tick_of_a_write_is_taken_again(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(WEIGHTS)
    probe = _probe(tmp_path, _entry("/f", WEIGHTS))
    assert isinstance(probe, files_probe.Probe)
    assert probe.observe(1.0) == []
    assert not probe._hashed["/f"].digest.settled
    time.sleep(0.1)
    assert probe.observe(2.0) == []
    assert probe._hashed["/f"].digest.settled


def test_what_the_kernel_measured_otherwise_is_put_on_record(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(WEIGHTS)
    log = tmp_path / "log"
    good = hashlib.sha256(WEIGHTS).digest()
    log.write_bytes(imalog.record("/f", good) + imalog.record("/other", b"\1" * 32))
    around = Surroundings(host=Host(root=tmp_path), ima_log=str(log))
    probe = probe_of("files", "[files]\n" + _entry("/f", WEIGHTS), around)
    assert probe.observe(1.0) == [] and probe.notices(1.0) == []
    with log.open("ab") as file:
        file.write(imalog.record("/f", b"\2" * 32))
    assert probe.observe(2.0) == []
    (notice,) = probe.notices(2.0)
    assert (notice.kind, notice.detail["measured"]) == ("files.measured", "02" * 32)
    assert notice.detail["read"] == good.hex()
    assert probe.notices(3.0) == []


def test_a_touched_file_wakes_the_section_at_once_and_a_busy_one_ever_more_seldom(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    path = tmp_path / "d/f"
    path.write_bytes(WEIGHTS)
    woken: list[float] = []
    host = Host(root=tmp_path)
    host.wake = lambda section: woken.append(time.monotonic())
    probe = probe_of("files", "[files]\n" + _entry("/d/f", WEIGHTS), Surroundings(host=host))
    try:
        probe.observe(1.0)
        for deed in (
            lambda: path.write_bytes(b"other"),
            lambda: path.chmod(0o666),
            lambda: (tmp_path / "d/new").rename(path),
        ):
            (tmp_path / "d/new").write_bytes(b"third")
            time.sleep(1.5)
            woken.clear()
            began = time.monotonic()
            deed()
            while not woken:
                assert time.monotonic() - began < 20.0
                time.sleep(0.001)
        woken.clear()
        until = time.monotonic() + 2.0
        while time.monotonic() < until:
            path.write_bytes(b"again")
            time.sleep(0.002)
        assert 1 <= len(woken) <= 8
        (tmp_path / "d/unwatched").write_bytes(b"")
        time.sleep(1.5)
        woken.clear()
        (tmp_path / "d/unwatched").write_bytes(b"x")
        time.sleep(0.2)
        assert woken == []
    finally:
        host.close()


@pytest.mark.parametrize(
    "line",
    [
        'acl = ["user::rw-"]',
        'acl = ["user:a:rw-", "user:a:r--"]',
        'acl = ["mask::rwx"]',
        'capabilities = "cap_fly=ep"',
        'capabilities = "cap_net_raw=ep cap_net_admin=p"',
        'attributes = ["secret"]',
        'xattrs = {"security.capability" = "x"}',
    ],
)
def test_an_entry_that_cannot_hold_is_refused(line: str) -> None:
    with pytest.raises(Rejected, match=r"files\.file\[0\]"):
        section_of("files", f'[files]\n[[files.file]]\npath = "/f"\nreason = "why"\n{line}\n')
