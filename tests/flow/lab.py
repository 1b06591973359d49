"""A controller, sites and nodes on one machine, every part real: what demo, flow tests and bench stand on.

The programs run as their users would run them, from the environment's `bin`, each in its own network namespace; each
node has its own software TPM with an EK certificate, its own USB tree, files and state. Everything lives in
one folder below the temporary directory and goes away with `close`.
"""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from tests.flow import baselines
from tests.parts import imalog, inference
from tests.parts.adminapi import AdminApi, ApiError
from tests.parts.simulator import replayed
from tests.parts.swtpm import EkAuthority, SoftwareTpm
from tests.parts.topology import Host, Topology
from tests.parts.usbtree import UsbTree

T = TypeVar("T")

TREE = Path(__file__).resolve().parents[2]
VECTORS = TREE / "tests/vectors"
BIN = Path(sys.executable).parent
NODE_PORT = 8440
ADMIN_PORT = 8443
EK_CERTIFICATE_NV = "0x1c00002"
_POLL_S = 0.05


class Failed(AssertionError):
    """Something is not as promised."""


def event_log(case: str) -> bytes:
    """Return a recorded firmware log: `good-rsa`, `cmdline-changed`."""
    return (VECTORS / case / "eventlog.bin").read_bytes()


def wait_until(what: str, probe: Callable[[], T], *, within_s: float = 20.0, every_s: float = _POLL_S) -> T:
    """Return the first true value of `probe`; raises Failed with `what` and the last value."""
    deadline = time.monotonic() + within_s
    while True:
        value = probe()
        if value:
            return value
        if time.monotonic() > deadline:
            raise Failed(f"not within {within_s:g} s: {what} (last seen: {value!r})")
        time.sleep(every_s)


@dataclass
class Node:
    """One node and everything of its own."""

    name: str
    site: str
    host: Host
    folder: Path
    tpm: SoftwareTpm
    usb: UsbTree
    ek_id: str = ""
    services: list[subprocess.Popen[bytes]] = field(default_factory=list)
    agent: subprocess.Popen[bytes] | None = None

    @property
    def config(self) -> Path:
        """Return the agent's configuration file."""
        return self.folder / "agent.toml"

    @property
    def log(self) -> Path:
        """Return the file with the agent's output."""
        return self.folder / "agent.log"

    @property
    def firmware_log(self) -> Path:
        """Return the file that the agent reads as the firmware's log."""
        return self.folder / "binary_bios_measurements"

    @property
    def ima_log(self) -> Path:
        """Return the file that the agent reads as the kernel's IMA log."""
        return self.folder / "binary_runtime_measurements"

    def boot(self, log: bytes) -> None:
        """Switch the TPM on (again), measure this log, as the firmware does, and what runs first, as the kernel does.

        The agent must not be running.
        """
        self.tpm.reboot(log)
        self.firmware_log.write_bytes(log)
        self.ima_log.write_bytes(b"")
        self.measure(imalog.of_boot(replayed(log), baselines.MEASURED))

    def measure(self, lines: bytes) -> None:
        """Append records to the IMA log, then extend PCR 10 with them: in the kernel's order."""
        with self.ima_log.open("ab") as file:
            file.write(lines)
        self.tpm.extend(imalog.measurements(lines))

    def start_agent(self, **environment: str) -> None:
        """Run `ringfence-agent run`."""
        self.agent = self.host.namespace.start(
            BIN / "ringfence-agent", "run", "--config", self.config, log=self.log, env=environment
        )

    def stop_agent(self, how: signal.Signals = signal.SIGTERM) -> None:
        """End the agent and wait for it."""
        if self.agent is not None:
            self.agent.send_signal(how)
            try:
                self.agent.wait(10)
            except subprocess.TimeoutExpired:
                self.agent.kill()
                self.agent.wait()
            self.agent = None

    def power_cycle(self, log: bytes) -> None:
        """Do what a reboot does: the agent ends, the kernel forgets its rules, the firmware measures `log`."""
        self.stop_agent()
        self.host.namespace.nft("flush ruleset")
        self.boot(log)
        self.start_agent()

    def table(self, name: str = "ringfence") -> str:
        """Return one of our tables in the words of the `nft` program; "" when it does not stand."""
        return self.host.namespace.run("nft", "list", "table", "inet", name, check=False).stdout


class Lab:
    """All of it. Use as a context manager."""

    def __init__(
        self,
        sites: dict[str, int],
        *,
        interval_s: float = 10.0,
        pass_s: float = 5.0,
        confirm_s: float = 8.0,
        keep_folder: bool = False,
        site_policy: dict[str, object] | None = None,
    ) -> None:
        """Build network, keys, TPMs and files; start nothing yet.

        Nodes report every `interval_s` and look at themselves every `pass_s`.
        """
        self._keep_folder = keep_folder
        self._policy = {"interval_s": interval_s, **(site_policy or {})}
        self._pass_s, self._confirm_s = pass_s, confirm_s
        self.folder = Path(tempfile.mkdtemp(prefix="ringfence-lab-"))
        self.nodes: list[Node] = []
        self.controller: subprocess.Popen[bytes] | None = None
        self._api: AdminApi | None = None
        self._token = ""
        self._revision: dict[str, int] = {}
        self.topology = Topology(sites)
        try:
            self._build()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Lab:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def node(self, name: str) -> Node:
        """Return a node by name."""
        return next(node for node in self.nodes if node.name == name)

    def site(self, name: str) -> list[Node]:
        """Return the nodes of a site."""
        return [node for node in self.nodes if node.site == name]

    def client(self, site: str) -> Host:
        """Return the client machine of a site."""
        return self.topology.sites[site].the_client

    def close(self) -> None:
        """End every program, remove every namespace and file of ours."""
        for node in self.nodes:
            if node.agent is not None:
                node.agent.send_signal(signal.SIGTERM)
        for node in self.nodes:
            node.stop_agent()
        if self._api is not None:
            self._api.close()
        self.stop_controller()
        self.topology.close()
        for node in self.nodes:
            for service in node.services:
                service.wait()
            node.usb.close()
            node.tpm.close()
        if not self._keep_folder:
            shutil.rmtree(self.folder, ignore_errors=True)

    # ---- building

    def _build(self) -> None:
        authority = EkAuthority(self.folder / "ek-authority")
        wanted = [(site, host) for site in self.topology.sites.values() for host in site.nodes]
        # The first one makes the authority's own certificates; two at once would make two.
        made = [self._make_node(wanted[0][0].name, wanted[0][1], authority)]
        with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
            made += pool.map(lambda each: self._make_node(each[0].name, each[1], authority), wanted[1:])
        self.nodes = made
        self._authority = authority

    def _make_node(self, site: str, host: Host, authority: EkAuthority) -> Node:
        folder = self.folder / "nodes" / host.name
        (folder / "root/opt/models").mkdir(parents=True)
        (folder / "root/opt/models/vision-7.onnx").write_bytes(baselines.WEIGHTS)
        (folder / "root/opt/models/guardrails.json").write_bytes(baselines.GUARDRAILS)
        for path in (folder / "root/opt/models").iterdir():
            path.chmod(0o644)
        tpm = SoftwareTpm.manufacture(folder / "tpm", authority)
        return Node(host.name, site, host, folder, tpm, UsbTree(folder / "sys"))

    def power_on(self, **cases: str) -> None:
        """Boot every node with a recorded log, by site good-rsa or another, and start USB and the inference services."""
        for node in self.nodes:
            node.boot(event_log(cases.get(node.site, "good-rsa")))
            node.usb.run()
            node.ek_id = ek_id(node.tpm)
            node.services.append(
                node.host.namespace.start(
                    sys.executable, "-m", "tests.parts.inference", env={"PYTHONPATH": str(TREE)}
                )
            )
        for node in self.nodes:
            client = self.client(node.site).namespace
            wait_until(
                f"inference service of {node.name} is up",
                lambda node=node, client=client: inference.infer(client, node.host.enclave[0]),  # type: ignore[misc]
            )

    # ---- the controller

    @property
    def controller_folder(self) -> Path:
        """Return the folder that `ringfence-controller init` fills."""
        return self.folder / "controller"

    @property
    def ca(self) -> Path:
        """Return the CA that agents and admins pin."""
        return self.controller_folder / "controller-ca.pem"

    def init_controller(self) -> None:
        """Run `ringfence-controller init`, give it the EK authority, make offline keys, log in the admin."""
        address4, address6 = self.topology.controller.uplink
        token_file = self.folder / "admin.token"
        self.run_controller(
            "init",
            "--dir",
            self.controller_folder,
            "--node-url",
            f"https://{address4}:{NODE_PORT}",
            "--admin-url",
            f"https://{address4}:{ADMIN_PORT}",
            "--node-listen",
            f"[::]:{NODE_PORT}",
            "--admin-listen",
            f"[::]:{ADMIN_PORT}",
            "--also-known-as",
            address6,
            "--enrol-retry",
            "1",
            "--token-file",
            token_file,
        )
        self._token = token_file.read_text().strip()
        roots = self.controller_folder / "ek-roots"
        for pem in (self._authority.root, self._authority.issuer):
            shutil.copy(pem, roots)
        self.start_controller()
        self.ringfence(
            "login",
            "--url",
            f"https://{address4}:{ADMIN_PORT}",
            "--ca",
            self.ca,
            "--token-file",
            token_file,
        )
        self.ringfence(
            "keys",
            "new",
            "--out",
            self.folder / "offline",
            "--online-key",
            self.controller_folder / "keys/online.pub",
            "--plain",
        )
        for site in self.topology.sites:
            self.api("POST", "/sites", {"site": site, "policy": self._policy})

    def run_controller(self, *argv: str | Path) -> str:
        """Run `ringfence-controller` and return what it printed."""
        return self.topology.controller.namespace.run(BIN / "ringfence-controller", *argv).stdout

    def start_controller(self) -> None:
        """Run `ringfence-controller serve` and wait until it answers."""
        self.controller = self.topology.controller.namespace.start(
            BIN / "ringfence-controller",
            "serve",
            "--dir",
            self.controller_folder,
            log=self.folder / "controller.log",
        )
        wait_until("the controller answers", self._answers)

    def stop_controller(self, how: signal.Signals = signal.SIGTERM) -> None:
        """End the controller and wait for it."""
        if self.controller is not None:
            self.controller.send_signal(how)
            try:
                self.controller.wait(10)
            except subprocess.TimeoutExpired:
                self.controller.kill()
                self.controller.wait()
            self.controller = None

    def _answers(self) -> bool:
        if self.controller is not None and self.controller.poll() is not None:
            raise Failed(f"the controller ended: {(self.folder / 'controller.log').read_text()[-2000:]}")
        with contextlib.suppress(OSError, http.client.HTTPException):
            self.api("GET", "/status")
            return True
        return False

    def ringfence(self, *argv: str | Path, text: str | None = None, check: bool = True) -> str:
        """Run the admin command as an admin at the controller would, and return what it printed."""
        done = self.topology.controller.namespace.run(
            "env", f"XDG_CONFIG_HOME={self.folder}/admin", BIN / "ringfence", *argv, text=text, check=False
        )
        if check and done.returncode:
            raise Failed(f"ringfence {' '.join(map(str, argv))}: {done.stdout}{done.stderr}")
        return done.stdout + done.stderr

    def api(self, method: str, path: str, body: object = None, *, status: int | None = None) -> Any:
        """Ask the admin API, from the controller's own machine; raises Failed for another status than wanted."""
        if self._api is None:
            address, inside = self.topology.controller.uplink[0], self.topology.controller.namespace
            self._api = AdminApi(
                address,
                ADMIN_PORT,
                self.ca,
                self._token,
                lambda: inference.connect(inside, address, ADMIN_PORT, timeout_s=5),
            )
        try:
            return self._api(method, path, body, status=status)
        except ApiError as error:
            raise Failed(str(error)) from None

    def events(self, after: int = 0, **query: str) -> list[dict[str, Any]]:
        """Return the events after a cursor, oldest first."""
        found: list[dict[str, Any]] = []
        more = "".join(f"&{key}={value}" for key, value in query.items())
        while True:
            page = self.api("GET", f"/events?after={after}&limit=500{more}")["items"]
            found += page
            if len(page) < 500:
                return found
            after = page[-1]["id"]

    def node_facts(self, name: str) -> dict[str, Any]:
        """Return what the controller knows of a node."""
        return self.api("GET", f"/nodes/{name}")  # type: ignore[no-any-return]

    def incidents(self, **query: str) -> list[dict[str, Any]]:
        """Return incidents, newest first."""
        asked = "&".join(f"{key}={value}" for key, value in {"limit": "500", **query}.items())
        return self.api("GET", f"/incidents?{asked}")["items"]  # type: ignore[no-any-return]

    # ---- nodes

    def preregister(self, nodes: Iterable[Node]) -> None:
        """Tell the controller which EKs to expect."""
        for node in nodes:
            self.api("POST", "/preregistrations", {"ek_id": node.ek_id, "site": node.site, "node": node.name})

    def write_agent_configs(self) -> None:
        """Write every node's agent.toml."""
        for node in self.nodes:
            node.config.write_text(
                f"""\
node = "{node.name}"
site = "{node.site}"
state_dir = "{node.folder}/state"
interval_s = {self._pass_s}
confirm_s = {self._confirm_s}

[controller]
url = "https://{self.topology.controller.uplink[0]}:{NODE_PORT}"
ca = "{self.ca}"

[tpm]
tcti = "{node.tpm.tcti}"
event_log = "{node.firmware_log}"
ima_log = "{node.ima_log}"

[roots]
sysfs = "{node.folder}/sys"
root = "{node.folder}/root"
"""
            )

    def start_agents(self, nodes: Iterable[Node] | None = None) -> None:
        """Start the agents of these nodes, or of all."""
        for node in nodes if nodes is not None else self.nodes:
            node.start_agent()

    def bring_up(self, within_s: float = 60, **changes: object) -> None:
        """Do all of it: boot, controller, one signed baseline for each site (named after it), agents, first evidence.

        `changes` are for the baselines' text.
        """
        self.power_on()
        self.init_controller()
        for site in self.topology.sites.values():
            self.sign(site.name, 1, site.number, **changes)
        self.push()
        for name in self.topology.sites:
            self.assign(name, name, 1)
        self.preregister(self.nodes)
        self.write_agent_configs()
        self.start_agents()
        for name in self.topology.sites:
            self.wait_in_force(self.site(name), name, 1, within_s)

    # ---- baselines

    def sign(
        self, name: str, version: int, site: int, *, repository: Path | None = None, **changes: object
    ) -> None:
        """Write a baseline for a site's network and sign it with the offline key."""
        file = self.folder / f"{name}-{version}.toml"
        file.write_text(baselines.text(name, version, site, **changes))  # type: ignore[arg-type]
        self.ringfence(
            "baseline",
            "sign",
            file,
            "--repository",
            repository or self.folder / "offline/repository",
            "--key",
            self.folder / "offline/keys/targets-1.pem",
        )

    def push(self) -> None:
        """Upload what was signed."""
        self.ringfence("baseline", "push", self.folder / "offline/repository")

    def assign(self, site: str, name: str, version: int, reason: str = "lab") -> None:
        """Choose a baseline for a site."""
        self.api("PUT", f"/sites/{site}/baseline", {"name": name, "version": version, "reason": reason})

    def summaries(self) -> dict[str, dict[str, Any]]:
        """Return what the controller's list says of every node it knows."""
        return {each["node"]: each for each in self.api("GET", "/nodes?limit=500")["items"]}

    def in_force(self, nodes: Iterable[Node], name: str, version: int) -> bool:
        """Say whether evidence shows this baseline in force on the nodes, confirmed, without drift, affirmed."""
        known = self.summaries()
        return all(_good(known.get(node.name), name, version) for node in nodes)

    def wait_in_force(self, nodes: list[Node], name: str, version: int, within_s: float = 30) -> None:
        """Wait until `in_force`; raises Failed with what the controller says of the nodes."""
        try:
            wait_until(
                f"{name}/{version} in force on {', '.join(node.name for node in nodes)}",
                lambda: self.in_force(nodes, name, version),
                within_s=within_s,
                every_s=0.1,
            )
        except Failed as error:
            known = self.summaries()
            raise Failed(f"{error}: {[known.get(node.name) for node in nodes]}") from None


def _good(summary: dict[str, Any] | None, name: str, version: int) -> bool:
    if summary is None:
        return False
    held = summary["baseline"] or {}
    return (
        (summary["standing"], summary["tier"]) == ("healthy", "affirming")
        and not summary["drifts"]
        and (held.get("name"), held.get("version")) == (name, version)
    )


def ek_id(tpm: SoftwareTpm) -> str:
    """Return the SHA-256 of the EK's SubjectPublicKeyInfo, read with tpm2-tools from the EK certificate in NV."""
    done = subprocess.run(
        ["tpm2_nvread", EK_CERTIFICATE_NV, "-C", "o"], env=tpm.environment, capture_output=True, check=True
    )
    key = x509.load_der_x509_certificate(done.stdout).public_key()
    return hashlib.sha256(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).hexdigest()
