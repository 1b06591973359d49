"""The thread that owns the machine: slow looks, flapping, what is kept, and what happens between two baselines.

Real rules in a namespace, real files below a root, inotify as the witness that nothing came back for a moment.
"""

from __future__ import annotations

import base64
import ctypes
import hashlib
import json
import os
import struct
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec
import pytest

from agent.frugal import give_back
from agent.host import Host
from agent.probes import Surroundings
from tests.agent.probes.case import probe_of
from tests.agent.rig import Rig, baseline, in_own_namespace, nft

pytestmark = pytest.mark.usefixtures("in_both")

SUDOERS = b"evil ALL=(ALL) NOPASSWD: ALL\n"
ACCOUNTS = """
[accounts]
unknown = "repair"
packaged = "report"
"""


def _machine(root: Path) -> Path:
    """Make the files of a machine with nobody but root; return the folder of sudo's rules."""
    (root / "etc/sudoers.d").mkdir(parents=True)
    (root / "root/.ssh").mkdir(parents=True)
    (root / "etc/passwd").write_text("root:x:0:0:root:/root:/bin/sh\n")
    (root / "etc/group").write_text("root:x:0:\n")
    (root / "etc/shadow").write_text("root:*:19000:0:99999:7:::\n")
    return root / "etc/sudoers.d"


class Appearances:
    """Every name that appears in a folder, by the kernel's own word."""

    def __init__(self, folder: Path) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        self._fd = libc.inotify_init1(os.O_NONBLOCK)
        assert libc.inotify_add_watch(self._fd, os.fsencode(folder), 0x80 | 0x100) > 0

    def names(self) -> list[str]:
        found, at = [], 0
        try:
            raw = os.read(self._fd, 65536)
        except BlockingIOError:
            return []
        while at < len(raw):
            (size,) = struct.unpack_from("I", raw, at + 12)
            found.append(raw[at + 16 : at + 16 + size].rstrip(b"\0").decode())
            at += 16 + size
        return found


def _until(done: Callable[[], object], *, within_s: float = 10.0) -> float:
    began = time.monotonic()
    while not done():
        assert time.monotonic() - began < within_s
        time.sleep(0.0005)
    return time.monotonic() - began


def _started(folder: Path, root: Path, *, two: bool | None = None) -> Rig:
    """A rig whose machine's files are below `root`."""
    rig = Rig(folder, root=root, two=two)
    rig.start()
    return rig


def test_a_newer_baseline_never_puts_back_what_it_takes_away_too(tmp_path: Path) -> None:
    folder = _machine(tmp_path / "root")
    (folder / "evil").write_bytes(SUDOERS)

    def run() -> None:
        rig = _started(tmp_path, tmp_path / "root")
        try:
            rig.adopt(baseline(1, 8080, extra=ACCOUNTS), 1, 1)
            assert not (folder / "evil").exists()
            watch = Appearances(folder)
            more = ACCOUNTS + '[[accounts.user]]\nname = "technician"\nreason = "maintenance"\n'
            rig.adopt(baseline(2, 8080, extra=more), 2, 2)
            assert watch.names() == [] and not (folder / "evil").exists()
            # Nor does one that is taken back, to a last-good that takes it away as well.
            wanted = rig.publish(baseline(3, 8080, extra=ACCOUNTS), 3)
            rig.direct(rig.signed(3, wanted=wanted))
            rig.fetch(wanted)
            rig.direct(rig.signed(4, wanted=rig.kit.wanted("factory", 2)))
            assert "baseline.reverted" in rig.call(rig.kinds)
            assert watch.names() == []
            # A baseline that does not speak of accounts lets go of them.
            rig.adopt(baseline(4, 8080), 4, 5)
            assert (folder / "evil").read_bytes() == SUDOERS
        finally:
            rig.stop()

    in_own_namespace(run)


def test_a_newer_baseline_that_lists_a_file_gets_it_back(tmp_path: Path) -> None:
    folder = _machine(tmp_path / "root")
    (folder / "technician").write_bytes(b"technician ALL=(root) /usr/bin/id\n")
    keys = tmp_path / "root/root/.ssh/authorized_keys"
    good = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA good"
    bad = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAEAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA bad"
    keys.write_text(f"{good}\n{bad}\n")
    keys.chmod(0o600)

    def run() -> None:
        rig = _started(tmp_path, tmp_path / "root")
        try:
            rig.adopt(baseline(1, 8080, extra=ACCOUNTS), 1, 1)
            assert not (folder / "technician").exists() and "good" not in keys.read_text()
            watch = Appearances(keys.parent)
            more = (
                ACCOUNTS
                + '[[accounts.sudoers]]\npath = "/etc/sudoers.d/technician"\nreason = "maintenance"\n'
                + 'rules = ["technician ALL=(root) /usr/bin/id"]\n'
                + f'[[accounts.key]]\nuser = "root"\nfingerprint = "{_fingerprint(good)}"\nreason = "the jump host"\n'
            )
            rig.adopt(baseline(2, 8080, extra=more), 2, 2)
            assert (folder / "technician").exists()
            assert good in keys.read_text() and bad not in keys.read_text()
            assert watch.names()  # it was written anew, once, and without the other line at any time
            rig.adopt(baseline(3, 8080), 3, 3)
            assert good in keys.read_text() and bad in keys.read_text()
        finally:
            rig.stop()

    in_own_namespace(run)


def _fingerprint(line: str) -> str:
    digest = hashlib.sha256(base64.b64decode(line.split(" ")[1])).digest()
    return "SHA256:" + base64.b64encode(digest).decode().rstrip("=")


def test_d10_a_file_that_comes_back_again_and_again_rests_and_is_reported(tmp_path: Path) -> None:
    folder = _machine(tmp_path / "root")

    def run() -> None:
        rig = _started(tmp_path, tmp_path / "root")
        try:
            rig.adopt(baseline(1, 8080, extra=ACCOUNTS), 1, 1)
            for number in range(3):
                (folder / "evil").write_bytes(SUDOERS + b"# %d\n" % number)
                rig.loop.wake("accounts")
                _until(lambda count=number: rig.call(rig.kinds).count("accounts.healed") > count)  # type: ignore[misc]
            (folder / "evil").write_bytes(SUDOERS)
            rig.loop.wake("accounts")
            _until(lambda: "accounts.flapping" in rig.call(rig.kinds))
            rig.loop.wake("accounts")
            time.sleep(0.3)
            assert (folder / "evil").exists()
            (drift,) = rig.call(lambda: rig.loop.machine.drifts["accounts"])
            assert drift.key == "/etc/sudoers.d/evil" and "repaired 3 times; rests 30 s" in drift.wanted
            assert rig.call(rig.kinds).count("accounts.flapping") == 1
            # What was found stands in the event of each repair, and in the folder.
            healed = [event for event in rig.call(rig.events) if event.kind == "accounts.healed"]
            assert len(healed) == 3
            for number, event in enumerate(healed):
                record = json.loads((rig.exhibits / event.detail["kept"]).read_bytes())
                assert record["path"] == "/etc/sudoers.d/evil" and record["sha256"] == event.detail["sha256"]
                assert record["size"] == len(SUDOERS) + len(f"# {number}\n")
        finally:
            rig.stop()

    in_own_namespace(run)


def test_a_spent_budget_is_said_and_the_firewall_has_none(tmp_path: Path) -> None:
    folder = _machine(tmp_path / "root")
    head = "[baseline.repair]\nwritten_mb = 0.000001\n"

    def run() -> None:
        rig = _started(tmp_path, tmp_path / "root")
        try:
            rig.adopt(baseline(1, 8080, extra=ACCOUNTS, head=head), 1, 1)
            (folder / "one").write_bytes(SUDOERS)
            rig.loop.wake("accounts")
            _until(lambda: not (folder / "one").exists())
            (folder / "two").write_bytes(SUDOERS)
            rig.loop.wake("accounts")
            _until(lambda: "accounts.budget-spent" in rig.call(rig.kinds))
            assert (folder / "two").exists()
            (drift,) = rig.call(lambda: rig.loop.machine.drifts["accounts"])
            assert "repair budget spent" in drift.wanted
            for _ in range(6):
                nft("flush", "ruleset")
                rig.loop.wake("firewall")
                _until(lambda: "8080" in nft("list", "ruleset"))
        finally:
            rig.stop()

    in_own_namespace(run)


MANY = 20_000


def _many_files(root: Path) -> None:
    for number in range(MANY):
        folder = root / f"srv/models/{number // 4000}"
        if number % 4000 == 0:
            folder.mkdir(parents=True)
        (folder / f"{number}").write_bytes(b"x")


def _models() -> str:
    digest = hashlib.sha256(b"x").hexdigest()
    text = "[models]\n"
    for number in range(MANY):
        if number % 4000 == 0:
            part = number // 4000
            text += f'[[models.model]]\nname = "part-{part}"\nversion = "1"\nroot = "/srv/models/{part}"\n'
            text += 'classification = "internal"\nreason = "many shards"\n'
        text += f'[[models.model.file]]\npath = "{number}"\nsha256 = "{digest}"\nsize_bytes = 1\nkind = "weights"\n'
    return text


@pytest.mark.alone
def test_a_look_at_20000_files_lets_the_firewall_in_within_20_ms(tmp_path: Path) -> None:
    """The stretch between two breaths is what a change of the firewall can wait at most."""
    _many_files(tmp_path)
    host = Host(root=tmp_path)
    times: list[float] = []
    probe = probe_of("models", _models(), Surroundings(host=host))
    probe.observe(1.0)
    give_back()  # as whenever a baseline was put in force
    host.let_in = lambda: times.append(
        time.thread_time()
    )  # on a busy machine the scheduler's own pauses are longer
    began = time.thread_time()
    probe.observe(2.0)
    times = [began, *times, time.thread_time()]
    stretches = sorted((b - a for a, b in pairwise(times)), reverse=True)
    assert len(times) > MANY // 100, "it let the firewall in again and again"
    assert stretches[0] < 0.02, stretches[:5]
    probe.undo()


@pytest.mark.alone
def test_f05_a_change_of_the_firewall_is_healed_while_20000_files_are_looked_at(tmp_path: Path) -> None:
    root = tmp_path / "root"
    _many_files(root)

    def run() -> list[tuple[float, bool]]:
        rig = _started(tmp_path, root)
        took = []
        try:
            rig.adopt(baseline(1, 8080, extra=_models() + "\n[firewall.contest]\nhealings = 1000\n"), 1, 1)
            looks = _counted(rig)
            for _ in range(9):
                rig.loop.wake("models")
                time.sleep(0.05)
                nft("delete", "table", "inet", "ringfence")
                began = time.monotonic()
                rig.loop.wake("firewall")
                _until(lambda at=began: ("firewall", True) in _since(looks, at))  # type: ignore[misc]
                first, ended = next(each for each in looks if each[1] > began)
                took.append((ended - began, first == "firewall"))
                assert "8080" in nft("list", "table", "inet", "ringfence")
                _until(lambda at=began: ("models", True) in _since(looks, at))  # type: ignore[misc]
        finally:
            rig.stop()
        return took

    took = in_own_namespace(run)
    # The firewall's look ended before that of the models, but for a round in which the models' had just ended.
    assert sum(first for _, first in took) >= len(took) - 2, took
    assert sorted(each for each, _ in took)[len(took) // 2] < 1.0, took


def _since(looks: list[tuple[str, float]], began: float) -> set[tuple[str, bool]]:
    return {(name, ended > began) for name, ended in list(looks)}


def _counted(rig: Rig) -> list[tuple[str, float]]:
    """Return a list that grows with (section, time) at the end of each look."""
    looks: list[tuple[str, float]] = [("", 0.0)]
    look = rig.loop.machine.look

    def counted(name: str, *args: Any, **more: Any) -> Any:
        told = look(name, *args, **more)
        looks.append((name, time.monotonic()))
        return told

    rig.loop.machine.look = counted  # type: ignore[method-assign]
    return looks


def test_an_order_is_carried_out_in_the_middle_of_a_long_look(tmp_path: Path) -> None:
    root = tmp_path / "root"
    _many_files(root)

    def run() -> list[str]:
        rig = _started(tmp_path, root)
        try:
            rig.adopt(baseline(1, 8080, extra=_models()), 1, 1)
            looks = _counted(rig)
            rig.loop.wake("models")
            time.sleep(0.05)
            rig.direct(rig.signed(2, posture="isolated", wanted=rig.kit.wanted("factory", 1)))
            assert "8080" not in nft("list", "chain", "inet", "ringfence", "input")
            return [name for name, _ in looks]
        finally:
            rig.stop()

    assert "models" not in in_own_namespace(run)


def test_d10_what_is_planted_while_the_agent_is_down_is_told_and_kept(tmp_path: Path) -> None:
    """Stop the agent, plant, start it again: nobody is cleaned up without a word, in this boot or after the next."""
    folder = _machine(tmp_path / "root")

    def run() -> None:
        rig = _started(tmp_path, tmp_path / "root")
        rig.adopt(baseline(1, 8080, extra=ACCOUNTS), 1, 1)
        assert [kind for kind in rig.call(rig.kinds) if kind.startswith("accounts.")] == []
        for number in range(2):
            rig.stop()
            evil = SUDOERS + b"# %d\n" % number
            (folder / "evil").write_bytes(evil)
            if number:  # as after a reboot
                state = rig.store.load_state()
                assert state is not None
                rig.store.save_state(msgspec.structs.replace(state, boot_id="the boot before"))
            rig.start()
            assert not (folder / "evil").exists()
            healed = [each for each in rig.call(rig.events) if each.kind == "accounts.healed"]
            assert len(healed) == number + 1 and healed[-1].severity == "warning"
            record = json.loads((rig.exhibits / healed[-1].detail["kept"]).read_bytes())
            assert base64.b64decode(record["content"]) == evil
            assert [d.key for d in rig.call(lambda: rig.loop.machine.healed)] == ["/etc/sudoers.d/evil"]
        rig.stop()

    in_own_namespace(run)


def test_d10_what_an_adopted_baseline_takes_away_is_one_event_with_its_records(tmp_path: Path) -> None:
    folder = _machine(tmp_path / "root")
    for number in range(12):
        (folder / f"evil{number:02}").write_bytes(SUDOERS + b"# %d\n" % number)

    def run() -> None:
        rig = _started(tmp_path, tmp_path / "root")
        try:
            rig.adopt(baseline(1, 8080, extra=ACCOUNTS), 1, 1)
            assert list(folder.iterdir()) == []
            (event,) = [each for each in rig.call(rig.events) if each.kind.startswith("accounts.")]
            assert event.kind == "accounts.put-right" and event.severity == "warning"
            assert event.detail["count"] == "12" and "/etc/sudoers.d/evil00" in event.summary
            records = event.detail["kept"].split(", ")
            assert len(records) == 12
            for record in records:
                path, name = record.removesuffix(")").split(" (")
                kept = json.loads((rig.exhibits / name).read_bytes())
                assert kept["path"] == path and base64.b64decode(kept["content"]).startswith(SUDOERS)
            assert rig.call(lambda: rig.loop.machine.healed) == []
        finally:
            rig.stop()

    in_own_namespace(run)


def test_a_kernel_that_forgot_its_settings_at_boot_is_one_event_and_no_drift(tmp_path: Path) -> None:
    proc = tmp_path / "proc/sys/net/ipv4"
    proc.mkdir(parents=True)
    (tmp_path / "proc/sys/kernel/random").mkdir(parents=True)
    (tmp_path / "proc/sys/kernel/random/boot_id").write_text("one\n")
    names = [f"x{number}" for number in range(20)]
    text = "[sysctl]\n" + "".join(
        f'[[sysctl.set]]\nkey = "net.ipv4.{name}"\nvalue = "1"\nreason = "test"\n' for name in names
    )

    def run() -> None:
        rig = Rig(tmp_path, proc=tmp_path / "proc")
        for name in names:
            (proc / name).write_text("0\n")
        rig.start()
        rig.adopt(baseline(1, 8080, extra=text), 1, 1)
        rig.stop()
        for name in names:
            (proc / name).write_text("0\n")
        (tmp_path / "proc/sys/kernel/random/boot_id").write_text("two\n")
        rig.start()
        try:
            assert {(proc / name).read_text().strip() for name in names} == {"1"}
            told = [each for each in rig.call(rig.events) if each.kind.startswith("sysctl.")]
            assert [(each.kind, each.severity) for each in told] == [("sysctl.put-right", "info")] * 2
            assert told[-1].detail["count"] == "20" and "kept" not in told[-1].detail
            assert rig.call(lambda: rig.loop.machine.healed) == []
        finally:
            rig.stop()

    in_own_namespace(run)


def test_a_firewall_that_is_mended_in_the_midst_of_a_repair_takes_nothing_of_its_records(
    tmp_path: Path,
) -> None:
    folder = _machine(tmp_path / "root")

    def run() -> None:
        rig = _started(tmp_path, tmp_path / "root", two=False)
        try:
            rig.adopt(baseline(1, 8080, extra=ACCOUNTS), 1, 1)
            host = rig.loop.host
            let_in, done = host.let_in, []

            def changed() -> None:
                """The first time that a repair lets others in, somebody changes the firewall."""
                if host.tree.before_change is not None and not done:
                    done.append(True)
                    nft("delete", "table", "inet", "ringfence")
                    rig.loop.wake("firewall")
                assert let_in is not None
                let_in()

            host.let_in = changed
            (folder / "evil").write_bytes(SUDOERS)
            rig.loop.wake("accounts")
            _until(lambda: "accounts.healed" in rig.call(rig.kinds))
            assert done and "8080" in nft("list", "ruleset")
            (healed,) = [event for event in rig.call(rig.events) if event.kind == "accounts.healed"]
            record = json.loads((rig.exhibits / healed.detail["kept"]).read_bytes())
            assert base64.b64decode(record["content"]) == SUDOERS
        finally:
            rig.stop()

    in_own_namespace(run)
