"""Programs that manage containers' networks, run for real in a namespace of a node: netavark (podman), CNI plugins, dockerd.

dockerd is unpacked and not installed (`tests.parts.debs`): a machine that runs tests gets no daemon by it. Each joins one container to the node by a bridge, publishes ports 8088 and 8089 of the node as ports 80 and 81 of the container,
and writes the rules that it always writes. Relies on Debian's netavark and containernetworking-plugins.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

from tests.parts.debs import Unpacked
from tests.parts.namespace import Namespace

_DEBIAN = platform.freedesktop_os_release().get("VERSION_ID", "")
_ALONE = """
for folder in /etc/docker /run/docker /run/containerd; do mkdir -p $folder; mount -t tmpfs none $folder; done
exec dockerd "$@"
"""
"""In a mount namespace of its own: what it keeps elsewhere than it is told is gone with it."""
DOCKER = ("docker.io", "busybox-static", *(["docker-cli"] if _DEBIAN != "12" else []))
PORTS = ((8088, 80), (8089, 81))
_NETAVARK = Path("/usr/lib/podman/netavark")
_CNI = Path("/usr/lib/cni")


@dataclass
class Network:
    """One container that is joined to a node."""

    manager: str
    bridge: str
    addresses: tuple[str, str]
    networks: tuple[str, str]
    gateways: tuple[str, str]
    namespace: Namespace
    node: Namespace
    listeners: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def serve(self, *ports: int) -> None:
        """Listen on ports of the container."""
        for port in ports:
            process = self.namespace.start(sys.executable, "-m", "tests.parts.inference", "--port", str(port))
            self.listeners.append(process)

    def section(self, more: str = "") -> str:
        """Return the table of a baseline that knows this network."""
        listed = ", ".join(f'"{each}"' for each in self.networks)
        return (
            f'[containers]\nmanager = "{self.manager}"\ninterfaces = ["{self.bridge}"]\n'
            f'addresses = [{listed}]\nreason = "test"\n{more}\n'
        )


class Podman:
    """netavark, as podman calls it for a container of a bridge network."""

    manager = "podman"

    def __init__(self, node: Namespace, folder: Path, *, octet: int = 88) -> None:
        self._node, self._folder = node, folder
        self._octet = octet
        self._name = f"podman{octet}"

    def _options(self, address: str, container: str, ports: bool) -> str:
        subnets = [
            {"subnet": f"10.{self._octet}.0.0/16", "gateway": f"10.{self._octet}.0.1"},
            {"subnet": f"fd{self._octet}::/64", "gateway": f"fd{self._octet}::1"},
        ]
        published = [
            {"container_port": inside, "host_ip": "", "host_port": port, "protocol": "tcp", "range": 1}
            for port, inside in PORTS
        ]
        network = {
            "name": self._name,
            "id": f"{self._octet:064x}",
            "driver": "bridge",
            "network_interface": self._name,
            "created": "2024-01-01T00:00:00Z",
            "subnets": subnets,
            "ipv6_enabled": True,
            "internal": False,
            "dns_enabled": False,
            "ipam_options": {"driver": "host-local"},
        }
        statics = [f"10.{self._octet}.0.{address}", f"fd{self._octet}::{address}"]
        return json.dumps(
            {
                "container_id": container * 64,
                "container_name": f"web{container}",
                "networks": {self._name: {"static_ips": statics, "interface_name": "eth0"}},
                "network_info": {self._name: network},
                "port_mappings": published if ports else [],
            }
        )

    def join(
        self, container: Namespace, *, address: str = "2", letter: str = "a", ports: bool = True
    ) -> Network:
        """Join a container."""
        self._netavark("setup", container, self._options(address, letter, ports))
        own = (f"10.{self._octet}.0.{address}", f"fd{self._octet}::{address}")
        networks = (f"10.{self._octet}.0.0/16", f"fd{self._octet}::/64")
        gateways = (f"10.{self._octet}.0.1", f"fd{self._octet}::1")
        return Network("podman", self._name, own, networks, gateways, container, self._node)

    def leave(
        self, container: Namespace, *, address: str = "2", letter: str = "a", ports: bool = True
    ) -> None:
        """Take it away again."""
        self._netavark("teardown", container, self._options(address, letter, ports))

    def _netavark(self, what: str, container: Namespace, options: str) -> None:
        where = f"/run/netns/{container.name}"
        self._node.run(_NETAVARK, "--config", self._folder, what, where, text=options)

    def close(self) -> None:
        """Take the bridge away."""
        self._node.run("ip", "link", "del", self._name, check=False)


class Cni:
    """The plugins bridge, portmap and firewall, as a container runtime calls them."""

    manager = "cni"

    def __init__(self, node: Namespace, folder: Path) -> None:
        self._node, self._folder = node, folder
        self._head = {"cniVersion": "0.4.0", "name": "cninet"}

    def join(self, container: Namespace) -> Network:
        """Join a container."""
        result = self._plugin("ADD", container, "bridge", self._bridge())
        published = [{"hostPort": port, "containerPort": inside, "protocol": "tcp"} for port, inside in PORTS]
        more = {
            "snat": True,
            "capabilities": {"portMappings": True},
            "runtimeConfig": {"portMappings": published},
        }
        self._plugin("ADD", container, "portmap", more | {"prevResult": json.loads(result)})
        firewall = {"backend": "iptables", "prevResult": json.loads(result)}
        self._plugin("ADD", container, "firewall", firewall)
        own = ("10.22.0.2", "fd22::2")
        gateways = ("10.22.0.1", "fd22::1")
        return Network("cni", "cni0", own, ("10.22.0.0/16", "fd22::/64"), gateways, container, self._node)

    def leave(self, container: Namespace) -> None:
        """Take it away again."""
        self._plugin("DEL", container, "bridge", self._bridge())

    def close(self) -> None:
        """Take the bridge away."""
        self._node.run("ip", "link", "del", "cni0", check=False)
        shutil.rmtree(self._folder / "ipam", ignore_errors=True)

    def _bridge(self) -> dict[str, object]:
        return {
            "bridge": "cni0",
            "isGateway": True,
            "ipMasq": True,
            "ipam": {
                "type": "host-local",
                "dataDir": str(self._folder / "ipam"),
                "ranges": [[{"subnet": "10.22.0.0/16"}], [{"subnet": "fd22::/64"}]],
                "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}],
            },
        }

    def _plugin(self, command: str, container: Namespace, name: str, options: dict[str, object]) -> str:
        settings = [f"CNI_COMMAND={command}", "CNI_CONTAINERID=web1", "CNI_IFNAME=eth0", f"CNI_PATH={_CNI}"]
        settings.append(f"CNI_NETNS=/run/netns/{container.name}")
        text = json.dumps(self._head | {"type": name} | options)
        return self._node.run("env", *settings, _CNI / name, text=text).stdout


class Docker:
    """A docker daemon in the node's network namespace, with storage of its own."""

    def __init__(self, node: Namespace, programs: Unpacked) -> None:
        self._node = node
        self._env = programs.env()
        self._folder = Path(tempfile.mkdtemp(prefix="rf-docker-"))
        self._socket = f"unix://{self._folder}/socket"
        self._daemon: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the daemon and wait for it."""
        options = ["--ipv6", "--fixed-cidr-v6", "fd17::/64", "--experimental", "--ip6tables"]
        self._daemon = self._node.start(
            "unshare", "-m", "sh", "-ec", _ALONE, "dockerd", "--data-root", self._folder / "root", "--exec-root", self._folder / "exec",
            "--pidfile", self._folder / "pid", "-H", self._socket, "--storage-driver", "vfs", *options,
            log=self._folder / "log", env=self._env,
        )  # fmt: skip
        deadline = time.monotonic() + 60
        while self._docker("ps", check=False).returncode:
            if time.monotonic() > deadline or self._daemon.poll() is not None:
                raise RuntimeError((self._folder / "log").read_text()[-2000:])
            time.sleep(0.2)

    def stop(self) -> None:
        """End the daemon as its unit does."""
        if self._daemon is not None:
            self._daemon.terminate()
            self._daemon.wait(30)
            self._daemon = None

    def run(self) -> None:
        """Run a container that listens on ports 80 and 81 and publishes them."""
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / "bin").mkdir()
            for name in ("busybox", "sh"):
                shutil.copy(str(shutil.which("busybox", path=self._env["PATH"])), Path(folder) / "bin" / name)
            subprocess.run(["tar", "-C", folder, "-cf", f"{folder}.tar", "."], check=True)
        self._docker("import", f"{folder}.tar", "tiny")
        Path(f"{folder}.tar").unlink()
        published = [part for port, inside in PORTS for part in ("-p", f"{port}:{inside}")]
        serve = "/bin/busybox httpd -p 80; exec /bin/busybox httpd -f -p 81"
        # As process 1 it heeds no SIGTERM, and dockerd would wait for it.
        quick = ["--stop-timeout", "1"]
        self._docker("run", "-d", "--name", "web", *quick, *published, "tiny", "/bin/sh", "-c", serve)

    def opens(self, address: str, port: int) -> bool:
        """Tell whether the container can open a TCP connection."""
        pid = self._docker("inspect", "-f", "{{.State.Pid}}", "web").stdout.strip()
        code = f"import socket; socket.create_connection(({address!r}, {port}), 1)"
        inside = ["nsenter", f"--net=/proc/{pid}/ns/net", sys.executable, "-c", code]
        return subprocess.run(inside, capture_output=True).returncode == 0

    def restart_container(self) -> None:
        """Restart it: its rules go and come."""
        self._docker("restart", "-t", "0", "web")

    def _docker(self, *argv: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            ["docker", "-H", self._socket, *argv],
            capture_output=True,
            text=True,
            timeout=60,
            env=self._variables(),
        )
        if check and done.returncode:
            raise RuntimeError(f"docker {' '.join(argv)}: {done.stderr.strip()}")
        return done

    def _variables(self) -> dict[str, str]:
        return {**os.environ, **self._env}

    def close(self) -> None:
        """End everything and take its files away."""
        if self._daemon is not None:
            self._docker("rm", "-f", "web", check=False)
        self.stop()
        self._node.run("ip", "link", "del", "docker0", check=False)
        with contextlib.suppress(OSError):
            shutil.rmtree(self._folder)
