"""The process for repairs: what it believes, whom it answers, and what becomes of an agent that nobody answers.

An agent that is not itself any more is the attacker here: it can write its own state folder, and order what it likes.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import pytest
from msgspec.structs import replace

from agent.beside import BesideHands, Done, Line, Order, RootsLooks
from agent.frames import receive, send
from agent.grants import Kept
from agent.hands import OwnHands
from agent.host import Host
from agent.probes import Surroundings, parse_sections
from agent.probes import sections as known_sections
from agent.repairing import Repairer, serve
from agent.store import Enrolled, Store, fresh_state
from contract.baseline import parse_baseline
from contract.directive import WantedBaseline
from contract.messages import BaselineRef
from controller.repository import latest_root
from tests.agent.grantrun import grant
from tests.agent.probes.test_access import _files, expiry
from tests.agent.rig import NODE, TREE, Rig, baseline, in_own_namespace, nft
from tests.agent.test_hold import until
from tests.parts.signing import SigningKit, minimal_baseline

EVIL = b"evil ALL=(ALL) NOPASSWD: ALL\n"
ACCOUNTS = """
[accounts]
unknown = "repair"
packaged = "report"
"""
ACCESS = """
[access]
[[access.accounts]]
names = ["vendor"]
max_s = 600
reason = "the technician's account"
"""


class Node:
    """A node with files of its own and signed baselines in its state folder, and the unit's side of it."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "root"
        (self.root / "etc/sudoers.d").mkdir(parents=True)
        _files(self.root, "1")
        (self.root / "etc/group").write_text("root:x:0:\n")
        self.rig = Rig(folder, root=self.root, two=False)
        self.state = Path(self.rig.config.state_dir)
        self.store = Store(self.state, NODE)
        self.own = folder / "repairs"
        self.evil = self.root / "etc/sudoers.d/evil"
        self.evil.write_bytes(EVIL)

    def enrol(self) -> None:
        """As enrolment leaves the folder."""
        root = latest_root(self.rig.kit.state)
        self.store.save_enrolled(
            Enrolled(site="factory", chain=b"", directive_key=self.rig.public_key, root_metadata=root)
        )

    def fetched(self, extra: str, *, version: int = 1) -> BaselineRef:
        """Sign a baseline, and put it into the agent's folder as a fetch does."""
        kit = self.rig.kit
        kit.publish(minimal_baseline("factory", version, extra=extra), now=time.time())
        wanted = kit.wanted("factory", version)
        kit.updates(self.state).get(wanted, now=time.time())
        if self.store.enrolled() is None:
            self.enrol()
        return ref_of(wanted)

    def repairer(self) -> Repairer:
        """As its unit starts it."""
        return Repairer(self.rig.config, self.own)

    def ordered(self, ref: BaselineRef | None, section: str = "accounts", **more: object) -> Done:
        """What a new process answers to an order of a repair."""
        keys = ("/etc/sudoers.d/evil", "account vendor")
        order = Order(verb="repair", section=section, ref=ref, keys=keys)
        return self.repairer().answer(replace(order, **more))


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path)


def ref_of(wanted: WantedBaseline) -> BaselineRef:
    return BaselineRef(name=wanted.name, version=wanted.version, sha256=bytes.fromhex(wanted.sha256))


def test_what_a_signed_baseline_wants_is_done_kept_and_undone(node: Node) -> None:
    ref = node.fetched(ACCOUNTS)
    done = node.ordered(ref)
    assert done.error == "" and not node.evil.exists()
    (exhibit,) = done.exhibits
    assert (node.own / "exhibits" / exhibit.name).exists() and exhibit.said["owner"] == "0:0"
    assert done.processor_s > 0 and done.written_bytes >= 0
    undone = node.ordered(ref, verb="undo")
    assert undone.error == "" and node.evil.read_bytes() == EVIL
    assert not (node.state / "exhibits").exists(), "nothing is written where the agent writes"


def _changed(node: Node, ref: BaselineRef) -> None:
    path = node.state / f"tuf/baselines/{ref.sha256.hex()}.toml"
    path.write_bytes(path.read_bytes() + b"# more\n")


def _unproved(node: Node, ref: BaselineRef) -> None:
    (node.state / f"tuf/baselines/{ref.sha256.hex()}.proof").unlink()


def _linked(node: Node, ref: BaselineRef) -> None:
    path = node.state / f"tuf/baselines/{ref.sha256.hex()}.toml"
    path.rename(node.root / "theirs")
    path.symlink_to(node.root / "theirs")


def _piped(node: Node, ref: BaselineRef) -> None:
    path = node.state / f"tuf/baselines/{ref.sha256.hex()}.toml"
    path.unlink()
    os.mkfifo(path)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (_changed, "baseline.digest"),
        (_unproved, "baseline.not-kept"),
        (_linked, "symbolic"),
        (_piped, "no plain file"),
    ],
)
def test_a07_a_baseline_that_does_not_verify_changes_nothing(
    node: Node, change: Callable[[Node, BaselineRef], None], said: str
) -> None:
    ref = node.fetched(ACCOUNTS)
    change(node, ref)
    done = node.ordered(ref)
    assert said in done.error and node.evil.exists()


def test_a07_another_root_is_not_believed_once_one_is(node: Node) -> None:
    """Whoever owns the agent can write every file that it can: also who is to be trusted."""
    node.fetched("")
    assert node.repairer().answer(Order(verb="greet")).error == ""
    shutil.rmtree(node.state / "tuf")
    (node.state / "enrolled").unlink()
    node.rig.kit = SigningKit(now=time.time())
    done = node.ordered(node.fetched(ACCOUNTS))
    assert done.error.startswith("metadata.") and node.evil.exists(), done.error
    assert "remove /var/lib/ringfence-repair" in done.error


def test_a_root_that_the_owner_has_pinned_counts_and_no_other(node: Node, tmp_path: Path) -> None:
    ref = node.fetched(ACCOUNTS)
    pinned = tmp_path / "root.json"
    pinned.write_bytes(_root_of(SigningKit(now=time.time())))
    node.rig.config = replace(node.rig.config, root_metadata=str(pinned))
    assert node.ordered(ref).error.startswith("metadata.") and node.evil.exists()
    pinned.write_bytes(_root_of(node.rig.kit))
    assert node.ordered(ref).error == "" and not node.evil.exists()


def _root_of(kit: SigningKit) -> bytes:
    kit.publish(minimal_baseline("factory", 9), now=time.time())
    return latest_root(kit.state)


@pytest.mark.parametrize(
    ("extra", "more", "said"),
    [
        (ACCOUNTS.replace("[accounts]", '[accounts]\nmode = "observe"'), {}, "repair.observes"),
        (ACCOUNTS, {"section": "usb"}, "repair.section"),
        (ACCOUNTS + "\n[netdevs]\n", {"section": "netdevs"}, "repair.section"),
        (ACCOUNTS, {"section": "os"}, "repair.section"),
        (ACCOUNTS, {"section": "../accounts"}, "repair.section"),
        (ACCOUNTS, {"ref": None}, "repair.unsigned"),
    ],
)
def test_what_no_signed_section_enforces_is_refused(
    node: Node, extra: str, more: dict[str, object], said: str
) -> None:
    ref = node.fetched(extra)
    done = node.ordered(**{"ref": ref, **more})  # type: ignore[arg-type]
    assert said in done.error and node.evil.exists()


def test_b14_before_the_enrolment_nothing_is_believed_and_nothing_written_down(node: Node) -> None:
    ref = node.fetched(ACCOUNTS)
    (node.state / "enrolled").unlink()
    assert node.repairer().answer(Order(verb="greet")).error == ""
    assert "repair.not-enrolled" in node.ordered(ref).error and node.evil.exists()
    assert not (node.own / "repairs").exists()


def test_an_agents_word_opens_no_account_and_the_controllers_signature_does(node: Node) -> None:
    ref = node.fetched(ACCESS)
    ordered = {"section": "access", "grants": (1,)}
    asked = grant(300, accounts=["vendor"])
    asked = replace(asked, access=replace(asked.access, openings=[]))
    kept = {1: Kept(sha256=b"", boot_id="", starts_s=0, ends_s=1e9, wait_s=0, left_s=1e9, open=True)}
    node.store.save_state(replace(fresh_state(time.time()), grants=kept))
    assert node.ordered(ref, **ordered).error == "" and expiry(node.root) == "1", "no directive"
    forged = Rig(node.rig.folder, two=False)
    node.store.save_signed_directive(forged.signed(5, grants=[asked]))
    assert "directive." in node.ordered(ref, **ordered).error and expiry(node.root) == "1", "another's key"
    node.store.save_signed_directive(node.rig.signed(5, grants=[asked]))
    assert node.ordered(ref, section="access").error == "" and expiry(node.root) == "1", "not held open"
    assert node.ordered(ref, **ordered, posture="isolated").error == "" and expiry(node.root) == "1"
    assert node.ordered(ref, **ordered).error == "" and int(expiry(node.root)) > 1
    node.store.save_signed_directive(node.rig.signed(6))
    assert node.ordered(ref, **ordered).error == "" and expiry(node.root) == "1", "revoked"
    node.store.save_signed_directive(node.rig.signed(5, grants=[asked]))
    assert node.ordered(ref, **ordered).error == "" and expiry(node.root) == "1", "the old order again"


def test_a_grant_that_is_over_stays_over_whatever_the_clock_says_later(node: Node) -> None:
    """A second grant with the id of the first, or the first with a later end, is another content."""
    ref = node.fetched(ACCESS)
    asked = grant(1.0, accounts=["vendor"])
    asked = replace(asked, access=replace(asked.access, openings=[]))
    node.store.save_signed_directive(node.rig.signed(5, grants=[asked]))
    ordered = {"section": "access", "grants": (1,)}
    assert node.ordered(ref, **ordered).error == "" and int(expiry(node.root)) > 1
    time.sleep(1.2)
    assert node.ordered(ref, **ordered).error == "" and expiry(node.root) == "1"
    node.store.save_signed_directive(node.rig.signed(6, grants=[replace(asked, ends=asked.ends + 300)]))
    assert node.ordered(ref, **ordered).error == "" and expiry(node.root) == "1"


def test_what_an_agent_of_before_remembers_is_taken_over_once(node: Node) -> None:
    ref = node.fetched(ACCOUNTS)
    node.store.save_state(replace(fresh_state(1.0), remembered={"access:vendor": "99", "netdevs:eth7": "up"}))
    assert node.repairer().answer(Order(verb="greet")).error == ""
    node.store.save_state(replace(fresh_state(1.0), remembered={"access:vendor": "12345"}))
    known = Store(node.own, NODE).repairs()
    assert known is not None and known.remembered == {"access:vendor": "99"}
    node.fetched(ACCOUNTS + ACCESS, version=2)
    newer = ref_of(node.rig.kit.wanted("factory", 2))
    assert node.ordered(newer, section="access", verb="undo").error == "" and expiry(node.root) == "99"
    assert ref != newer


def test_a02_what_was_damaged_is_said_and_begun_anew(node: Node, caplog: pytest.LogCaptureFixture) -> None:
    ref = node.fetched(ACCOUNTS)
    assert node.ordered(ref).error == ""
    path = node.own / "repairs"
    path.write_bytes(path.read_bytes()[:-1])
    node.evil.write_bytes(EVIL)
    node.store.save_state(replace(fresh_state(1.0), remembered={"access:vendor": "12345"}))
    assert node.ordered(ref).error == "" and not node.evil.exists()
    assert "cut, changed, or of another node" in caplog.text and (node.own / "repairs.damaged").exists()
    known = Store(node.own, NODE).repairs()
    assert known is not None and "access:vendor" not in known.remembered, "the agent's word of today"


def test_a03_a_full_disk_takes_nothing_that_could_not_be_put_back(node: Node) -> None:
    ref = node.fetched(ACCESS)
    _files(node.root, "")
    assert node.repairer().answer(Order(verb="greet")).error == ""
    (node.own / "repairs.new").mkdir()  # no new file can be written under that name
    done = node.ordered(ref, section="access")
    assert done.error and expiry(node.root) == ""


def test_the_kernels_secrets_are_not_told(node: Node) -> None:
    (node.root.parent / "proc/sys/net/ipv4").mkdir(parents=True)
    (node.root.parent / "proc/sys/vm").mkdir()
    (node.root.parent / "proc/sys/net/ipv4/tcp_fastopen_key").write_text("secret\n")
    (node.root.parent / "proc/sys/vm/mmap_rnd_bits").write_text("28\n")
    roots = replace(node.rig.config.roots, proc=str(node.root.parent / "proc"))
    node.rig.config = replace(node.rig.config, roots=roots)
    keys = ("net/ipv4/tcp_fastopen_key", "vm/mmap_rnd_bits", "vm/absent", "../passwd", "vm/../../x")
    done = node.repairer().answer(Order(verb="look", keys=keys))
    assert done.settings == {"vm/mmap_rnd_bits": "28"} and done.clock is not None


# ---- the socket


def started(node: Node, *more: str) -> tuple[subprocess.Popen[bytes], Path]:
    """The command, listening."""
    path = node.rig.folder / "repairs.sock"
    (node.rig.folder / "agent.toml").write_text(
        f'node = "{NODE}"\nstate_dir = "{node.state}"\n[controller]\nurl = "https://192.0.2.10:8440"\n'
        f'ca = "/nowhere"\n[roots]\nroot = "{node.root}"\n'
    )
    command = [sys.executable, "-m", "agent.start", "repair", "--config", str(node.rig.folder / "agent.toml")]
    command += ["--state", str(node.own), *(more or ("--listen", str(path)))]
    process = subprocess.Popen(command, cwd=TREE, stderr=subprocess.PIPE)
    if not more:
        until(path.exists, 20)
    return process, path


def test_nobody_but_root_and_the_agents_user_is_answered(node: Node) -> None:
    ref = node.fetched(ACCOUNTS)
    process, path = started(node)
    code = f"""
import os, socket
from io import BytesIO
from agent.beside import Order
from agent.frames import send
from contract.messages import BaselineRef
os.setuid(int(os.environ["BY"]))
said = BytesIO()
ref = BaselineRef(name="factory", version=1, sha256=bytes.fromhex("{ref.sha256.hex()}"))
send(said, Order(verb="repair", section="accounts", ref=ref, keys=("/etc/sudoers.d/evil",)))
with socket.socket(socket.AF_UNIX) as line:
    line.connect("{path}")
    line.sendall(said.getvalue())
    line.shutdown(socket.SHUT_WR)
    print(len(line.recv(65536)))
"""
    try:
        for folder in (node.rig.folder, *node.rig.folder.parents):  # a way to the socket for everybody
            if str(folder).startswith("/tmp/"):
                folder.chmod(0o755)
        path.chmod(0o666)
        os.chown(node.state, 64441, 64441)
        by = {"64442": False, "64441": True}
        for uid, answered in by.items():
            process.terminate()
            process.wait(10)
            path.unlink()
            process, path = started(node)
            path.chmod(0o666)
            told = subprocess.run(
                [sys.executable, "-c", code],
                cwd=TREE,
                env={**os.environ, "BY": uid},
                capture_output=True,
                text=True,
                check=False,
            )
            assert (told.stdout.strip() not in ("", "0")) == answered, told.stderr
            assert node.evil.exists() != answered
    finally:
        process.terminate()
        process.communicate()


@pytest.mark.parametrize(
    "untrusted", [b"", b"\0", b"\xff\xff\xff\xff", b"\0\0\0\x01\x00", b"GET / HTTP/1.0\r\n\r\n", bytes(4)]
)
def test_a_caller_that_says_something_else_is_left_and_the_next_is_answered(
    node: Node, untrusted: bytes
) -> None:
    node.fetched(ACCOUNTS)
    process, path = started(node)
    try:
        with socket.socket(socket.AF_UNIX) as line:
            line.connect(str(path))
            line.sendall(untrusted)
            line.shutdown(socket.SHUT_WR)
            assert line.recv(100) == b""
        assert Line(path, lambda: None).ask(Order(verb="greet")) == Done()
    finally:
        process.terminate()
        process.communicate()


def test_a08_who_gave_up_while_it_was_starting_finds_it_ready_when_asking_again(node: Node) -> None:
    """Where a start takes longer than the agent waits, each order would start it anew and none would ever be answered."""
    node.enrol()
    path = node.rig.folder / "repairs.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        with socket.socket(socket.AF_UNIX) as first:
            first.connect(str(path))
            said = BytesIO()
            send(said, Order(verb="greet"))
            first.sendall(said.getvalue())
        work = {"agent_uid": os.getuid(), "idle_s": 0.2}
        serving = threading.Thread(target=serve, args=(node.repairer(), listener), kwargs=work)
        serving.start()
        time.sleep(1.0)
        assert serving.is_alive()
        assert Line(path, lambda: None).ask(Order(verb="greet")) == Done()
        serving.join(5)
        assert not serving.is_alive(), "and ends when it has answered"


@pytest.mark.skipif(shutil.which("systemd-socket-activate") is None, reason="no systemd here")
def test_it_is_started_by_the_first_order_and_ends_when_none_comes(node: Node) -> None:
    """As ringfence-repair.socket does it: the socket is there before the process and stays after it."""
    node.fetched(ACCOUNTS)
    process, path = started(node, "--idle", "1")
    assert process.wait(20) == 2 and b"no socket was passed" in process.communicate()[1]
    command = [sys.executable, "-m", "agent.start", "repair", "--config", str(node.rig.folder / "agent.toml")]
    command += ["--state", str(node.own), "--idle", "1"]
    words = ["systemd-socket-activate", "-l", str(path), *(f"-E{each}" for each in ("PYTHONPATH", "PATH"))]
    by_systemd = subprocess.Popen(
        [*words, *command], cwd=TREE, env={**os.environ, "PYTHONPATH": str(TREE)}, stderr=subprocess.PIPE
    )
    try:
        until(path.exists, 20)
        assert Line(path, lambda: None).ask(Order(verb="greet")) == Done()
        assert by_systemd.wait(20) == 0, "after a second without an order"
    finally:
        by_systemd.kill()
        by_systemd.communicate()


def test_the_agent_goes_on_where_nobody_answers_and_says_so_once(tmp_path: Path) -> None:
    """Also the firewall is mended while an order is waited for."""
    node = Node(tmp_path)
    node.evil.unlink()

    def run() -> None:
        rig = Rig(tmp_path, root=node.root, two=True)
        rig.start()
        try:
            rig.adopt(baseline(1, 8080, extra=ACCOUNTS), 1, 1)
            process = rig.beside_process()
            process.send_signal(signal.SIGSTOP)
            node.evil.write_bytes(EVIL)
            rig.loop.wake("accounts")
            time.sleep(1.0)
            nft("delete", "table", "inet", "ringfence")
            rig.loop.wake("firewall")
            until(lambda: "8080" in nft("list", "ruleset"), 3.0)
            process.send_signal(signal.SIGCONT)
            until(lambda: not node.evil.exists(), 10.0)
            process.kill()
            process.wait()
            for number in range(3):
                (node.root / f"etc/sudoers.d/more{number}").write_bytes(EVIL)
                rig.loop.wake("accounts")
                found = f"/etc/sudoers.d/more{number}"
                until(lambda: any(found == e.detail.get("key") for e in rig.call(rig.events)), 10.0)  # noqa: B023
            failed = [e for e in rig.call(rig.events) if e.kind == "accounts.repair-failed"]
            assert len(failed) == 1 and "does not answer" in failed[0].summary
            rig.restart_beside()
            rig.loop.wake("accounts")
            until(lambda: not list((node.root / "etc/sudoers.d").iterdir()), 10.0)
        finally:
            rig.stop()

    in_own_namespace(run)


def test_a08_one_that_hangs_holds_the_agent_up_once_and_not_in_every_section(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The machine's thread has a watchdog; what is urgent is done while it waits."""
    monkeypatch.setattr("agent.beside._ANSWER_S", 0.5)
    path, breaths = tmp_path / "socket", [0]
    with socket.socket(socket.AF_UNIX) as hung:
        hung.bind(str(path))
        hung.listen()

        def breathe() -> None:
            breaths[0] += 1

        line = Line(path, breathe)
        began = time.monotonic()
        for _ in range(20):
            with pytest.raises(TimeoutError):
                line.ask(Order(verb="greet"))
        assert time.monotonic() - began < 1.0 and 20 < breaths[0] < 60


class Futile(Line):
    """A way that answers that all was done, and does nothing."""

    def __init__(self) -> None:
        super().__init__(Path("/nowhere"), lambda: None)
        self.orders: list[Order] = []

    def ask(self, order: Order) -> Done:
        self.orders.append(order)
        return Done()


def test_an_order_that_changed_nothing_is_said_again_ever_more_seldom(tmp_path: Path) -> None:
    """Each would start a process. What goes wrong anew is ordered at once."""
    node, line, now = Node(tmp_path), Futile(), [1000.0]
    host = Host(root=node.root)
    hands = BesideHands(line, OwnHands(host), RootsLooks(line), lambda: now[0])
    section = parse_sections(parse_baseline(minimal_baseline("factory", 1, extra=ACCOUNTS)))["accounts"]
    probe = known_sections()["accounts"].Probe(section, Surroundings(host=host))
    wrong = [each for each in probe.observe(5.0) if "evil" in each.key]
    at = []
    for _ in range(2000):
        before = len(line.orders)
        acted = hands.repair(probe, wrong, now[0])
        assert ({each.key for each in wrong} == set(acted.untried)) == (len(line.orders) == before)
        if len(line.orders) > before:
            at.append(now[0] - 1000.0)
        now[0] += 1.0
    assert at == [0.0, 30.0, 90.0, 210.0, 450.0, 930.0, 1830.0]
    again = [replace(each, since=9.0) for each in wrong]
    hands.repair(probe, again, now[0])
    assert line.orders[-1].keys == tuple(each.key for each in wrong) and len(line.orders) == len(at) + 1
    hands.repair(probe, [], now[0])
    hands.repair(probe, again, now[0])
    assert len(line.orders) == len(at) + 2, "it was mended in between"


# ---- looks that are root's alone


class Counting(Line):
    """A way that answers by itself, and counts."""

    def __init__(self) -> None:
        super().__init__(Path("/nowhere"), lambda: None)
        self.asked: list[tuple[str, ...]] = []

    def ask(self, order: Order) -> Done:
        self.asked.append(order.keys)
        return Done(settings={key: "28" for key in order.keys if key != "vm/denied"})


def test_what_root_alone_may_read_is_asked_for_together_and_seldom() -> None:
    line, now = Counting(), [1000.0]
    looks = RootsLooks(line, lambda: now[0])
    assert looks.setting("vm/a") == looks.setting("vm/b") == "28"
    with pytest.raises(PermissionError):
        looks.setting("vm/denied")
    assert len(line.asked) == 3
    for _ in range(5):
        assert looks.setting("vm/a") == looks.setting("vm/b") == "28"
        now[0] += 59.0
    assert len(line.asked) == 3
    now[0] += 59.0
    looks.setting("vm/a")
    assert line.asked[3:] == [("vm/a", "vm/b", "vm/denied")]
    looks.forget()
    with pytest.raises(PermissionError):
        looks.clock()
    assert len(line.asked) == 5


def test_frames_hold_what_orders_and_answers_are_made_of() -> None:
    for message in (Order(verb="look", keys=("a",)), Done(error="x", marks={"a": ""}, settings={"b": "c"})):
        said = BytesIO()
        send(said, message)
        assert receive(BytesIO(said.getvalue()), type(message)) == message
