"""Files: real ones, changed in the ways that hide a change."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from agent.host import Host
from agent.probes import Probe, Surroundings
from agent.probes import files as files_probe
from contract.errors import Rejected
from tests.agent.probes.case import Case, probe_of, section_of, tree_state, tree_trace

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
    fake = known.digest._replace(sha256="0" * 64)
    probe._hashed["/vision.onnx"] = known._replace(digest=fake)
    assert [drift.key for drift in probe.observe(1059.0)] == ["/vision.onnx sha256"]
    assert probe.observe(1060.0) == []


def test_big_files_are_hashed_beside_the_pass_and_told_until_then(tmp_path: Path) -> None:
    content = os.urandom(files_probe.SMALL_FILE_BYTES * 3 + 5)
    (tmp_path / "big.bin").write_bytes(content)
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
