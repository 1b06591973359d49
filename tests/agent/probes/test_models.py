"""Models: real files, changed in the ways that hide a change; the page cache with `fincore` as witness."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from agent.host import Host
from agent.models import hashing, quiet
from agent.models.hashing import Reading, Verifier
from agent.probes import Surroundings
from agent.probes import models as models_probe
from contract.errors import Rejected
from contract.messages import Drift
from tests.agent.probes.case import Case, probe_of, section_of, tree_state, tree_trace
from tests.parts.ondisk import on_disk

WEIGHTS = b"weights " * 1000
GUARDRAILS = "refuse: everything\nthreshold: 0.9\n"
MIB = 1024 * 1024


def entry(path: str, content: bytes, kind: str = "weights", more: str = "") -> str:
    digest = hashlib.sha256(content).hexdigest()
    return (
        f'[[models.model.file]]\npath = "{path}"\nsha256 = "{digest}"\n'
        f'size_bytes = {len(content)}\nkind = "{kind}"\n{more}'
    )


def carried(path: str = "guardrails.yaml", text: str = GUARDRAILS) -> str:
    return entry(path, text.encode(), "guardrails", f'content = """\n{text}"""\n')


def model(*files: str, head: str = "", more: str = "", classification: str = "internal") -> str:
    return (
        f'[models]\n{head}[[models.model]]\nname = "vision"\nversion = "7"\nroot = "/opt/models/vision-7"\n'
        f'classification = "{classification}"\nreason = "for a test"\n{more}' + "".join(files)
    )


@pytest.fixture
def root(tmp_path: Path) -> Path:
    made = tmp_path / "opt/models/vision-7"
    made.mkdir(parents=True)
    return made


@contextmanager
def case(folder: Path) -> Iterator[Case]:
    inside = folder / "opt/models/vision-7"
    (inside / "policy").mkdir(parents=True)
    (inside / "weights.onnx").write_bytes(WEIGHTS)
    guardrails = inside / "policy/guardrails.yaml"
    guardrails.write_text(GUARDRAILS)

    def blind() -> None:
        (inside / "policy").rename(folder / "elsewhere")
        (inside / "policy").symlink_to("../../../elsewhere")

    yield Case(
        toml=model(entry("weights.onnx", WEIGHTS), carried("policy/guardrails.yaml")),
        around=Surroundings(host=Host(root=folder)),
        spoil=lambda: _write(guardrails, GUARDRAILS.replace("0.9", "0.1")),
        blind=blind,
        state=lambda: tree_state(folder),
        trace=lambda: tree_trace(folder),
        heirs=(model(carried("policy/guardrails.yaml", GUARDRAILS + "more: true\n")),),
    )


def _write(path: Path, text: str) -> None:
    path.write_text(text)


def _probe(folder: Path, toml: str) -> models_probe.Probe:
    probe = probe_of("models", toml, Surroundings(host=Host(root=folder)))
    assert isinstance(probe, models_probe.Probe)
    return probe


def _keys(drifts: list[Drift], root: str = "/opt/models/vision-7") -> list[str]:
    return [drift.key.removeprefix(root + "/") for drift in drifts]


def _until_verified(probe: models_probe.Probe) -> None:
    deadline = time.monotonic() + 20
    while probe.verifying():
        assert time.monotonic() < deadline
        time.sleep(0.01)


# ---- what a manifest finds


def test_d12_one_changed_byte_in_the_weights_is_a_drift_and_is_not_repaired(
    root: Path, tmp_path: Path
) -> None:
    (root / "w.onnx").write_bytes(WEIGHTS)
    probe = _probe(tmp_path, model(entry("w.onnx", WEIGHTS)))
    assert probe.observe(1.0) == []
    changed = bytearray(WEIGHTS)
    changed[777] ^= 1
    (root / "w.onnx").write_bytes(changed)
    (drift,) = probe.observe(2.0)
    assert _keys([drift]) == ["w.onnx sha256"]
    assert drift.found == hashlib.sha256(changed).hexdigest()
    probe.repair([drift], 2.0)
    assert (root / "w.onnx").read_bytes() == changed
    assert _keys(probe.observe(3.0)) == ["w.onnx sha256"]


def test_d12_a_changed_byte_with_its_mtime_put_back_is_seen(root: Path, tmp_path: Path) -> None:
    path = root / "w.onnx"
    path.write_bytes(WEIGHTS)
    probe = _probe(tmp_path, model(entry("w.onnx", WEIGHTS)))
    assert probe.observe(1.0) == []
    times = path.stat()
    path.write_bytes(WEIGHTS[::-1])
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert _keys(probe.observe(2.0)) == ["w.onnx sha256"]


def test_d12_one_changed_byte_in_the_guardrails_is_found_and_mended(root: Path, tmp_path: Path) -> None:
    path = root / "guardrails.yaml"
    path.write_text(GUARDRAILS)
    path.chmod(0o640)
    os.chown(path, 12, 34)
    probe = _probe(tmp_path, model(carried()))
    assert probe.observe(1.0) == []
    path.write_text(GUARDRAILS.replace("0.9", "0.1"))
    drifts = probe.observe(2.0)
    assert _keys(drifts) == ["guardrails.yaml sha256"]
    probe.repair(drifts, 2.0)
    assert path.read_text() == GUARDRAILS
    facts = path.stat()
    assert (facts.st_mode & 0o7777, facts.st_uid, facts.st_gid) == (0o640, 12, 34)
    assert probe.observe(3.0) == []
    assert sorted(each.name for each in root.iterdir()) == ["guardrails.yaml"]


def test_d12_every_file_is_read_anew_after_verify_every_h(root: Path, tmp_path: Path) -> None:
    (root / "w.onnx").write_bytes(WEIGHTS)
    time.sleep(0.1)
    probe = _probe(tmp_path, model(entry("w.onnx", WEIGHTS), head="verify_every_h = 2\n"))
    assert probe.observe(1000.0) == []
    # A write that stat does not show at all, such as one behind the file system's back.
    path = "/opt/models/vision-7/w.onnx"
    known = probe._known[path]
    probe._known[path] = known._replace(hashed=known.hashed._replace(sha256="0" * 64))
    assert _keys(probe.observe(8199.0)) == ["w.onnx sha256"]
    assert probe.observe(8200.0) == []


def test_d12_a_write_within_the_tick_of_the_clock_is_found_by_the_next_pass(
    root: Path, tmp_path: Path
) -> None:
    path = root / "w.onnx"
    path.write_bytes(WEIGHTS)
    probe = _probe(tmp_path, model(entry("w.onnx", WEIGHTS)))
    assert probe.observe(1.0) == []
    known = probe._known["/opt/models/vision-7/w.onnx"]
    assert not known.hashed.settled
    # The same stat with another content: what such a write leaves behind.
    path.write_bytes(WEIGHTS[::-1])
    found = path.stat()
    identity = (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)
    probe._known["/opt/models/vision-7/w.onnx"] = known._replace(
        hashed=known.hashed._replace(identity=identity)
    )
    assert _keys(probe.observe(2.0)) == ["w.onnx sha256"]


def test_missing_truncated_grown_unreadable_and_unlisted_are_told_apart(root: Path, tmp_path: Path) -> None:
    for name in ("a", "b", "c", "d", "e"):
        (root / name).write_bytes(WEIGHTS)
    probe = _probe(tmp_path, model(*[entry(name, WEIGHTS) for name in "abcde"]))
    assert probe.observe(1.0) == []
    (root / "a").unlink()
    (root / "b").write_bytes(WEIGHTS[:-1])
    (root / "c").write_bytes(WEIGHTS + b"x")
    (root / "d").unlink()
    (root / "d").mkdir()
    (root / "deep/er").mkdir(parents=True)
    (root / "deep/er/adapter.safetensors").write_bytes(b"lora")
    os.mkfifo(root / "fifo")
    found = {drift.key.removeprefix("/opt/models/vision-7/"): drift.found for drift in probe.observe(2.0)}
    assert found == {
        "a": "not there",
        "b size": "7999",
        "c size": "8001",
        "d": "?",
        "/opt/models/vision-7 unlisted": "2: deep/er/adapter.safetensors, fifo",
    }


def test_an_incomplete_manifest_takes_no_notice_of_others(root: Path, tmp_path: Path) -> None:
    (root / "w.onnx").write_bytes(WEIGHTS)
    (root / "cache").write_bytes(b"x")
    assert _probe(tmp_path, model(entry("w.onnx", WEIGHTS), more="complete = false\n")).observe(1.0) == []


def test_a_missing_root_is_one_drift_and_so_are_a_thousand_unlisted_files(root: Path, tmp_path: Path) -> None:
    files = [entry(f"{number}.bin", WEIGHTS) for number in range(200)]
    probe = _probe(tmp_path, model(*files))
    assert len(probe.observe(1.0)) == models_probe.MAX_DRIFTS + 1
    for number in range(1000):
        (root / f"x{number:04}").touch()
    unlisted = _probe(tmp_path, model(*files)).observe(1.0)
    assert len(unlisted) == models_probe.MAX_DRIFTS + 1
    root.rename(root.with_name("gone"))
    assert [(drift.key, drift.found) for drift in probe.observe(2.0)] == [
        ("/opt/models/vision-7", "not there")
    ]


def test_a_name_that_is_no_text_is_shown_and_a_deep_tree_is_not_followed_for_ever(
    root: Path, tmp_path: Path
) -> None:
    (root / "w.onnx").write_bytes(WEIGHTS)
    Path(os.fsdecode(os.fsencode(root) + b"/\xff\n")).touch()
    probe = _probe(tmp_path, model(entry("w.onnx", WEIGHTS)))
    (drift,) = probe.observe(1.0)
    assert drift.found == "1: \\xff\n"
    drift.found.encode()
    inner = root
    for _ in range(40):
        inner = inner / "d"
        inner.mkdir()
    assert [each.found for each in probe.observe(2.0)] == ["?"]


# ---- races and links


def _symlink(path: Path) -> None:
    path.rename(path.with_name("moved"))
    path.symlink_to("moved")


def _parent_symlink(path: Path) -> None:
    path.parent.rename(path.parent.with_name("elsewhere"))
    path.parent.symlink_to("elsewhere")


def _fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


@pytest.mark.parametrize("change", [_symlink, _parent_symlink, _fifo])
def test_d06_a_file_behind_a_link_is_not_looked_at(
    change: Callable[[Path], None], root: Path, tmp_path: Path
) -> None:
    (root / "sub").mkdir()
    path = root / "sub/w.onnx"
    path.write_bytes(WEIGHTS)
    probe = _probe(tmp_path, model(entry("sub/w.onnx", WEIGHTS), more="complete = false\n"))
    assert probe.observe(1.0) == []
    change(path)
    assert [drift.found for drift in probe.observe(2.0)] == ["?"]


def test_d06_a_root_behind_a_link_is_not_looked_at(root: Path, tmp_path: Path) -> None:
    (root / "w.onnx").write_bytes(WEIGHTS)
    root.rename(root.with_name("real"))
    root.symlink_to("real")
    drifts = _probe(tmp_path, model(entry("w.onnx", WEIGHTS))).observe(1.0)
    assert {drift.found for drift in drifts} == {"?"}


@pytest.mark.parametrize("link", [os.symlink, os.link])
def test_d06_a_repair_writes_through_no_link(
    link: Callable[[Path, Path], None], root: Path, tmp_path: Path
) -> None:
    shadow = tmp_path / "shadow"
    shadow.write_bytes(b"secret")
    link(shadow, root / "guardrails.yaml")
    probe = _probe(tmp_path, model(carried()))
    drifts = probe.observe(1.0)
    assert drifts
    probe.repair(drifts, 1.0)
    assert shadow.read_bytes() == b"secret"
    assert not (root / "guardrails.yaml").is_symlink()
    assert (root / "guardrails.yaml").read_text() == GUARDRAILS
    assert probe.observe(2.0) == []


def test_d06_a_repair_leaves_a_folder_behind_a_link_alone(root: Path, tmp_path: Path) -> None:
    victim = tmp_path / "etc"
    victim.mkdir()
    (victim / "guardrails.yaml").write_text("the system's own")
    (root / "policy").symlink_to(victim)
    probe = _probe(tmp_path, model(carried("policy/guardrails.yaml")))
    drifts = probe.observe(1.0)
    # As if it had still been a folder when it was looked at.
    wanted = Drift(
        section="models",
        key="/opt/models/vision-7/policy/guardrails.yaml sha256",
        wanted="",
        found="",
        since=1.0,
    )
    with pytest.raises(OSError, match=r"Not a directory|symbolic link"):
        probe.repair([*drifts, wanted], 1.0)
    assert (victim / "guardrails.yaml").read_text() == "the system's own"


def test_d06_a_huge_file_in_the_guardrails_place_does_not_save_itself(root: Path, tmp_path: Path) -> None:
    (root / "guardrails.yaml").write_bytes(os.urandom(2 * MIB))
    probe = _probe(tmp_path, model(carried()))
    probe.repair(probe.observe(1.0), 1.0)
    assert (root / "guardrails.yaml").read_text() == GUARDRAILS
    probe.undo()  # there is nothing to go back to
    assert (root / "guardrails.yaml").read_text() == GUARDRAILS


def test_d08_an_immutable_file_is_told_and_keeps_no_other_from_repair(root: Path, tmp_path: Path) -> None:
    for name in ("a.yaml", "b.yaml"):
        (root / name).write_text("off")
    if subprocess.run(["chattr", "+i", str(root / "a.yaml")], capture_output=True).returncode:
        pytest.skip("no immutable files in this file system")
    try:
        probe = _probe(tmp_path, model(carried("a.yaml"), carried("b.yaml")))
        with pytest.raises(OSError, match="not permitted"):
            probe.repair(probe.observe(1.0), 1.0)
        assert _keys(probe.observe(2.0)) == ["a.yaml size"]
    finally:
        subprocess.run(["chattr", "-i", str(root / "a.yaml")], check=True)


def test_d07_a_file_swapped_while_it_is_hashed_never_gets_the_others_digest(
    root: Path, tmp_path: Path
) -> None:
    good, path = os.urandom(3 * MIB + 5), root / "w.onnx"
    path.write_bytes(good)
    evil = root / "evil"
    evil.write_bytes(bytes(len(good)))
    reading = Reading(Host(root=tmp_path), "/opt/models/vision-7/w.onnx")
    assert reading.step() is None
    evil.rename(path)
    with pytest.raises(OSError, match="changes while it is read"):
        reading.step()
    reading.close()


def test_d07_a_file_written_to_while_it_is_hashed_has_no_digest(root: Path, tmp_path: Path) -> None:
    path = root / "w.onnx"
    path.write_bytes(os.urandom(3 * MIB))
    time.sleep(0.05)
    reading = Reading(Host(root=tmp_path), "/opt/models/vision-7/w.onnx")
    reading.step()
    with path.open("r+b") as file:
        file.write(b"X")  # a part that was read already
    with pytest.raises(OSError, match="changes while it is read"):
        while reading.step() is None:
            pass
    reading.close()


def test_d07_a_file_swapped_after_it_was_hashed_is_read_anew(root: Path, tmp_path: Path) -> None:
    path = root / "w.onnx"
    path.write_bytes(WEIGHTS)
    times = path.stat()
    probe = _probe(tmp_path, model(entry("w.onnx", WEIGHTS), more="complete = false\n"))
    assert probe.observe(1.0) == []
    (root / "evil").write_bytes(WEIGHTS[::-1])
    os.utime(root / "evil", ns=(times.st_atime_ns, times.st_mtime_ns))
    (root / "evil").rename(path)
    assert _keys(probe.observe(2.0)) == ["w.onnx sha256"]


# ---- slices


def test_big_files_are_read_beside_the_pass_with_progress_and_an_end(root: Path, tmp_path: Path) -> None:
    content = os.urandom(3 * MIB + 5)
    (root / "w.onnx").write_bytes(content)
    time.sleep(0.1)
    probe = _probe(tmp_path, model(entry("w.onnx", content), head="read_mb_s = 4096\n"))
    assert probe.observe(1.0) == []
    (notice,) = probe.notices(1.0)
    assert (notice.kind, notice.severity, notice.detail["bytes"]) == (
        "models.verifying",
        "info",
        str(len(content)),
    )
    _until_verified(probe)
    assert probe.observe(2.0) == []
    (notice,) = probe.notices(2.0)
    assert notice.kind == "models.verified"
    assert notice.detail["bytes_done"] == str(len(content))
    assert probe.notices(3.0) == []
    with (root / "w.onnx").open("r+b") as file:
        file.write(b"X")
    probe.observe(4.0)
    assert [each.kind for each in probe.notices(4.0)] == ["models.changed", "models.verifying"]
    _until_verified(probe)
    assert _keys(probe.observe(5.0)) == ["w.onnx sha256"]


def test_one_pass_reads_a_bounded_amount(root: Path, tmp_path: Path) -> None:
    content = bytes(models_probe.SMALL_FILE_BYTES)
    count = models_probe.PASS_BYTES // models_probe.SMALL_FILE_BYTES + 2
    for number in range(count):
        (root / f"{number}.bin").write_bytes(content)
    time.sleep(0.1)
    probe = _probe(tmp_path, model(*[entry(f"{number}.bin", content) for number in range(count)]))
    assert probe.observe(1.0) == []
    assert probe.notices(1.0)[0].detail["files"] == "2"
    _until_verified(probe)
    assert probe.observe(2.0) == []


def test_one_pass_reads_a_bounded_number_of_files(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    count = models_probe.PASS_FILES + 3
    for number in range(count):
        (root / f"{number}.bin").write_bytes(WEIGHTS)
    time.sleep(0.1)
    probe = _probe(tmp_path, model(*[entry(f"{number}.bin", WEIGHTS) for number in range(count)]))
    assert isinstance(probe, models_probe.Probe)
    left, ask = [], probe._verifier.ask

    def asked(path: str, size: int, *, first: bool) -> None:
        left.append(path)
        ask(path, size, first=first)

    monkeypatch.setattr(probe._verifier, "ask", asked)
    assert probe.observe(1.0) == []
    assert len(left) == 3
    _until_verified(probe)
    assert probe.observe(2.0) == []


@pytest.mark.parametrize("size", [0, 1, 4095, 4096, 4097, MIB - 1, MIB, MIB + 1, 2 * MIB])
def test_digests_are_right_at_the_edges_of_pages_and_slices(size: int, tmp_path: Path) -> None:
    content = os.urandom(size)
    (tmp_path / "w").write_bytes(content)
    found = hashing.hash_now(Host(root=tmp_path), "/w")
    assert (found.sha256, found.identity[2]) == (hashlib.sha256(content).hexdigest(), size)


def test_a_file_that_changed_goes_before_the_rest_of_a_big_one(tmp_path: Path) -> None:
    (tmp_path / "big").write_bytes(bytes(40 * MIB))
    (tmp_path / "other").write_bytes(bytes(40 * MIB))
    (tmp_path / "changed").write_bytes(bytes(2 * MIB))
    verifier = Verifier(Host(root=tmp_path), read_bytes_s=100e6)
    verifier.ask("/big", 40 * MIB, first=False)
    verifier.ask("/other", 40 * MIB, first=False)
    while not verifier.progress().bytes_done:
        time.sleep(0.005)
    verifier.ask("/changed", 2 * MIB, first=True)
    deadline = time.monotonic() + 10
    while not (done := verifier.take()):
        assert time.monotonic() < deadline
        time.sleep(0.005)
    assert list(done) == ["/changed"]
    while verifier.progress().running:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert set(verifier.take()) == {"/big", "/other"}


def test_reading_keeps_to_its_pace_and_stops_when_told(tmp_path: Path) -> None:
    (tmp_path / "big").write_bytes(bytes(40 * MIB))
    verifier = Verifier(Host(root=tmp_path), read_bytes_s=20e6)
    verifier.ask("/big", 40 * MIB, first=False)
    time.sleep(0.5)
    assert 1e6 < verifier.progress().bytes_done < 14e6
    thread = next(each for each in threading.enumerate() if each.name == "model-hashing")
    verifier.stop()
    thread.join(2)
    assert not thread.is_alive()
    assert verifier.take() == {}


def test_a_probe_that_is_replaced_stops_reading(root: Path, tmp_path: Path) -> None:
    content = bytes(40 * MIB)
    (root / "w.onnx").write_bytes(content)
    probe = _probe(tmp_path, model(entry("w.onnx", content), head="read_mb_s = 1\n"))
    probe.observe(1.0)
    thread = next(each for each in threading.enumerate() if each.name == "model-hashing")
    del probe
    thread.join(4)
    assert not thread.is_alive()


def test_the_thread_asks_for_idle_disk_priority() -> None:
    told: list[str] = []

    def work() -> None:
        quiet.idle_thread()
        tid = str(threading.get_native_id())
        told.append(subprocess.run(["ionice", "-p", tid], capture_output=True, text=True).stdout.strip())
        told.append(Path(f"/proc/self/task/{tid}/stat").read_text().rpartition(")")[2].split()[16])

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert told == ["idle", "19"]
    assert os.getpriority(os.PRIO_PROCESS, 0) == os.getpriority(os.PRIO_PROCESS, os.getpid())


def _cached_pages(path: Path) -> int:
    done = subprocess.run(
        ["fincore", "--noheadings", "--raw", "--output", "PAGES", str(path)],
        capture_output=True,
        text=True,
        check=True,
    )
    return int(done.stdout)


@pytest.fixture
def disk_folder() -> Iterator[Path]:
    with on_disk() as folder:
        yield folder


@pytest.mark.skipif(shutil.which("fincore") is None, reason="fincore is the witness")
def test_the_page_cache_is_left_as_it_was(disk_folder: Path) -> None:
    path = disk_folder / "w.onnx"
    path.write_bytes(os.urandom(16 * MIB))
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        if _cached_pages(path):
            pytest.skip("a file system that lives in memory")
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)
        os.pread(file.fileno(), 3 * MIB, 5 * MIB + 4096)  # what the model server uses
        used = quiet.resident(file.fileno(), 0, 16 * MIB)
        assert used is not None
        assert used.count(1) == 3 * MIB // quiet.PAGE_BYTES == _cached_pages(path)
        digest = hashing.hash_now(Host(root=disk_folder), "/w.onnx").sha256
        assert quiet.resident(file.fileno(), 0, 16 * MIB) == used
        assert _cached_pages(path) == used.count(1)
    assert digest == hashlib.sha256(path.read_bytes()).hexdigest()


# ---- what is refused


def test_a_manifest_that_contradicts_itself_is_refused() -> None:
    one = entry("a", WEIGHTS)
    two = model(one) + model(one).removeprefix("[models]\n").replace('"7"', '"8"')
    inside = two.replace("vision-7", "x", 1).replace("/opt/models/vision-7", "/opt/models/x/y")
    refused = {
        "expected each file once": model(one, one),
        "is below it": model(one, entry("a/b", WEIGHTS)),
        "inside, that of another": two,
        "is, or is inside": inside,
        "expected each name and version once": model(one) + model(one).removeprefix("[models]\n"),
        "expected every shard, got 2 of 3": model(
            entry("m-00001-of-00003.gguf", WEIGHTS), entry("m-00003-of-00003.gguf", WEIGHTS)
        ),
        "without '.' and '..'": model(entry("a/../../b", WEIGHTS)),
        "expected `content` only": model(entry("a", b"x", "weights", 'content = "x"\n')),
        "but the content has 1 bytes": model(entry("a", b"xy", "prompt", 'content = "x"\n')),
        "not that of the content": model(entry("a", b"y", "prompt", 'content = "x"\n')),
        "at most 65536 bytes": model(
            entry("a", b"", "prompt", 'content = """\n' + ("x" * 2000 + "\n") * 33 + '"""\n')
        ),
        "for at most 16 files": model(*[carried(f"{number}") for number in range(17)]),
        "classification": model(one, classification="secret"),
    }
    for expected, toml in refused.items():
        with pytest.raises(Rejected, match=rf"case\.toml:\d+: models.*{expected}"):
            section_of("models", toml)


def test_every_shard_listed_is_taken() -> None:
    for first in (0, 1):
        names = [f"m-{number:05}-of-00003.safetensors" for number in range(first, first + 3)]
        section_of("models", model(*[entry(name, WEIGHTS) for name in names]))


# ---- other sections


def test_a_file_cannot_have_two_digests() -> None:
    other = hashlib.sha256(b"other").hexdigest()
    files = f'[[files.file]]\npath = "/opt/models/vision-7/a"\nsha256 = "{other}"\nreason = "for a test"\n'
    with pytest.raises(Rejected, match=r"files\.file\[0\]\.sha256: .*cannot have two"):
        section_of("models", model(entry("a", WEIGHTS)) + files)
    section_of("models", model(entry("a", b"other")) + files)


# ---- fs-verity, on a file system that has it

FS_IOC_ENABLE_VERITY = 0x40806685


def _verity_digest(content: bytes) -> str:
    """Return the digest as Documentation/filesystems/fsverity.rst defines it: SHA-256, blocks of 4096, no salt."""
    level, size = content, len(content)
    root = bytes(32)
    while size:
        blocks = [level[place : place + 4096].ljust(4096, b"\0") for place in range(0, len(level), 4096)]
        hashes = [hashlib.sha256(block).digest() for block in blocks]
        if len(hashes) == 1:
            root = hashes[0]
            break
        level = b"".join(hashes)
    descriptor = struct.pack("<BBBBIQ64s32s144s", 1, 1, 12, 0, 0, size, root, b"", b"")
    return "sha256:" + hashlib.sha256(descriptor).hexdigest()


@pytest.fixture
def verity_folder(tmp_path: Path) -> Iterator[Path]:
    image, mounted = tmp_path / "disk", tmp_path / "root"
    image.write_bytes(bytes(32 * MIB))
    mounted.mkdir()
    for argv in (
        ["mkfs.ext4", "-q", "-b", "4096", "-O", "verity", str(image)],
        ["mount", "-o", "loop", str(image), str(mounted)],
    ):
        try:
            done = subprocess.run(argv, capture_output=True, text=True)
        except FileNotFoundError:
            pytest.skip(f"{argv[0]} is not here")
        if done.returncode:
            pytest.skip(f"no file system with verity here: {done.stderr.strip()}")
    try:
        yield mounted
    finally:
        subprocess.run(["umount", str(mounted)], check=True)


def test_a_verity_digest_is_asked_of_the_kernel(verity_folder: Path) -> None:
    root = verity_folder / "opt/models/vision-7"
    root.mkdir(parents=True)
    content = os.urandom(MIB + 77)
    (root / "w.onnx").write_bytes(content)
    wanted = _verity_digest(content)
    probe = _probe(verity_folder, model(entry("w.onnx", content, more=f'verity = "{wanted}"\n')))
    assert [(drift.key[-6:], drift.found) for drift in probe.observe(1.0)] == [("verity", "none")]
    _until_verified(probe)  # a file that is open keeps the file system mounted
    with (root / "w.onnx").open("rb") as file:
        argument = struct.pack("=IIIIQIIQ88x", 1, 1, 4096, 0, 0, 0, 0, 0)
        try:
            fcntl.ioctl(file.fileno(), FS_IOC_ENABLE_VERITY, argument)
        except OSError as error:
            pytest.skip(f"no fs-verity in this kernel: {error.strerror}")
    probe.observe(2.0)
    _until_verified(probe)
    assert probe.observe(3.0) == []
    other = "sha256:" + "0" * 64
    probe = _probe(verity_folder, model(entry("w.onnx", content, more=f'verity = "{other}"\n')))
    assert [drift.found for drift in probe.observe(1.0)] == [wanted]
    _until_verified(probe)


def test_a_file_system_without_verity_is_told(root: Path, tmp_path: Path) -> None:
    (root / "w.onnx").write_bytes(WEIGHTS)
    toml = model(entry("w.onnx", WEIGHTS, more=f'verity = "{_verity_digest(WEIGHTS)}"\n'))
    (drift,) = _probe(tmp_path, toml).observe(1.0)
    assert (drift.key, drift.found) == ("/opt/models/vision-7/w.onnx verity", "none")
