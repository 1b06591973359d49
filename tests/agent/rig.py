"""The agent's machine side without a network client: real store, spool, rules in a network namespace, real signatures."""

from __future__ import annotations

import ctypes
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from agent.beside import BesideHands
from agent.config import AgentConfig, ControllerConfig, RootsConfig, SpoolConfig, TpmConfig
from agent.host import Host, host_of
from agent.loop import Loop
from agent.netfilter import Netfilter
from agent.running import beside
from agent.spool import Spool
from agent.store import Enrolled, Store
from contract.directive import Directive, Response, WantedBaseline
from contract.grant import CodeHash, Grant
from contract.messages import Event, Posture
from contract.sealing import directive_signer, sign_directive
from controller.repository import latest_root
from tests.parts.signing import SigningKit, minimal_baseline

T = TypeVar("T")
NODE = "press-1"
CONTROLLER = "192.0.2.10"
TREE = Path(__file__).resolve().parents[2]
BESIDE = False
"""Whether repairs are another process's, where a test does not say; `in_both` has its tests run both ways."""


def in_own_namespace(job: Callable[[], T]) -> T:
    """Run `job` on a thread with an empty network namespace of its own; threads made there inherit it."""
    result: list[T] = []
    failure: list[BaseException] = []

    def run() -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        assert libc.unshare(0x40000000) == 0
        subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
        try:
            result.append(job())
        except BaseException as error:
            failure.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if failure:
        raise failure[0]
    return result[0]


def baseline(version: int, port: int, *, extra: str = "", head: str = "") -> bytes:
    """A baseline that opens one TCP port to all of 10/8."""
    rules = f"""{head}
[firewall.zones.enclave]
addresses = ["10.0.0.0/8"]
[[firewall.inbound]]
zone = "enclave"
protocol = "tcp"
ports = [{port}]
reason = "test"
"""
    return minimal_baseline("factory", version, extra=rules + extra)


class Beside:
    """The process for repairs of one node, as its unit runs it, in the network namespace of whoever starts it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._socket = folder / "repairs.sock"
        self.state = folder / "repairs"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, config: AgentConfig) -> None:
        """Start it; it listens when this returns."""
        roots = config.roots
        (self._folder / "repair.toml").write_text(
            f'node = "{config.node}"\nstate_dir = "{config.state_dir}"\n[controller]\nurl = "{config.controller.url}"\n'
            f'ca = "/nowhere"\n[roots]\nroot = "{roots.root}"\nsysfs = "{roots.sysfs}"\nproc = "{roots.proc}"\n'
        )
        self._socket.unlink(missing_ok=True)
        options = {"config": self._folder / "repair.toml", "state": self.state, "listen": self._socket}
        words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
        self._process = subprocess.Popen([sys.executable, "-m", "agent.start", "repair", *words], cwd=TREE)
        deadline = time.monotonic() + 20
        while not self._socket.exists():
            assert self._process.poll() is None and time.monotonic() < deadline
            time.sleep(0.01)

    def hands(self, host: Host) -> BesideHands:
        """What the agent has of it."""
        return beside(host, self._socket)

    @property
    def process(self) -> subprocess.Popen[bytes]:
        """While it runs."""
        assert self._process is not None
        return self._process

    def stop(self) -> None:
        """As systemd stops it."""
        if self._process is not None:
            self._process.send_signal(signal.SIGCONT)
            self._process.terminate()
            self._process.wait(10)
            self._process = None


class Rig:
    """One node's machine side. `start` and `stop` as often as wanted over the same folder."""

    def __init__(
        self,
        folder: Path,
        *,
        store: type[Store] = Store,
        netfilter: type[Netfilter] = Netfilter,
        confirm_s: float = 30.0,
        key: Ed25519PrivateKey | None = None,
        spool_max_bytes: int = 1024 * 1024,
        root: Path = Path("/"),
        proc: Path = Path("/proc"),
        name: str = "factory",
        two: bool | None = None,
    ) -> None:
        self.folder = folder
        self._beside = Beside(folder) if (BESIDE if two is None else two) else None
        self._root = root
        self.key = key or Ed25519PrivateKey.generate()
        self.config = AgentConfig(
            node=NODE,
            controller=ControllerConfig(url=f"https://{CONTROLLER}:8440", ca="/nowhere"),
            state_dir=str(folder / "state"),
            tpm=TpmConfig(event_log=str(folder / "no-log")),
            roots=RootsConfig(sysfs=str(folder / "sys"), root=str(root), proc=str(proc)),
            interval_s=5.0,
            confirm_s=confirm_s,
            spool=SpoolConfig(max_bytes=spool_max_bytes),
        )
        self._store_type, self._netfilter_type = store, netfilter
        self._name = name
        self.kit = SigningKit(now=time.time())
        self.loop: Loop

    @property
    def public_key(self) -> bytes:
        return self.key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)

    def beside_process(self) -> subprocess.Popen[bytes]:
        """The process for repairs."""
        assert self._beside is not None
        return self._beside.process

    def restart_beside(self) -> None:
        """Start another one."""
        assert self._beside is not None
        self._beside.start(self.config)

    @property
    def exhibits(self) -> Path:
        """Where what repairs found is kept."""
        return (self.config.state if self._beside is None else self._beside.state) / "exhibits"

    def build(self) -> Loop:
        """Make the parts; nothing is in force yet."""
        state = Path(self.config.state_dir)
        self.store = self._store_type(state, NODE)
        self.spool = Spool(state / "spool", NODE, max_bytes=self.config.spool.max_bytes, now=time.time())
        self.netfilter = self._netfilter_type()
        host = host_of(self.config)
        hands = None
        if self._beside is not None:
            self._beside.start(self.config)
            hands = self._beside.hands(host)
        self.loop = Loop(self.config, self.store, self.spool, host, self.netfilter, tpm=None, hands=hands)
        return self.loop

    def start(self) -> Loop:
        """Build and run."""
        self.build().start()
        return self.loop

    def stop(self) -> None:
        """As SIGTERM does."""
        self.loop.stop()
        self.netfilter.close()
        if self._beside is not None:
            self._beside.stop()

    def call(self, job: Callable[[], T]) -> T:
        """On the worker thread, as the uplink does."""
        return self.loop.call(job).result(20)

    def signed(
        self,
        number: int,
        *,
        posture: Posture = "normal",
        wanted: WantedBaseline | None = None,
        responses: list[Response] | None = None,
        node: str = NODE,
        issued: float | None = None,
        lifetime_s: float = 3600.0,
        key: Ed25519PrivateKey | None = None,
        grants: list[Grant] | None = None,
        break_glass: list[CodeHash] | None = None,
        release: int = 0,
    ) -> bytes:
        """A directive in its envelope."""
        issued = time.time() if issued is None else issued
        directive = Directive(
            node=node,
            number=number,
            issued=issued,
            expires=issued + lifetime_s,
            posture=posture,
            baseline=wanted,
            responses=responses or [],
            grants=grants or [],
            break_glass=break_glass or [],
            release=release,
        )
        return sign_directive(directive, directive_signer(key or self.key))

    def direct(self, envelope: bytes) -> None:
        """Hand over a directive."""
        self.call(lambda: self.loop.take_directive(envelope, self.public_key))

    def publish(self, raw: bytes, version: int) -> WantedBaseline:
        """Sign and push a baseline; return its reference."""
        self.kit.publish(raw, now=time.time())
        if self._beside is not None and self.store.enrolled() is None:
            root = latest_root(self.kit.state)
            self.store.save_enrolled(
                Enrolled(site="factory", chain=b"", directive_key=self.public_key, root_metadata=root)
            )
        return self.kit.wanted(self._name, version)

    def fetch(self, wanted: WantedBaseline) -> None:
        """Do what the uplink does when the loop asks for a baseline."""
        trusted = self.kit.updates(self.config.state).get(wanted, now=time.time())
        self.call(lambda: self.loop.deliver(wanted, trusted))

    def answer(self) -> None:
        """A new session whose first report is answered."""

        def job() -> None:
            session = self.loop.session_opened()
            pending = self.loop.hold.state.pending
            self.loop.answered(
                session, named_pending=pending.ref.sha256 if pending else None, events_acked=0, healed=0
            )

        self.call(job)

    def adopt(self, raw: bytes, version: int, number: int) -> None:
        """Directive, fetch, apply, confirm."""
        wanted = self.publish(raw, version)
        self.direct(self.signed(number, wanted=wanted))
        self.fetch(wanted)
        self.answer()

    def events(self) -> list[Event]:
        """Everything in the spool."""
        return self.spool.peek(10_000, 10_000_000)

    def kinds(self) -> list[str]:
        """The kinds of everything in the spool."""
        return [event.kind for event in self.events()]


def nft(*argv: str) -> str:
    """The independent witness, in the calling thread's namespace."""
    done = subprocess.run(["nft", *argv], capture_output=True, text=True, check=False)
    return done.stdout + done.stderr
