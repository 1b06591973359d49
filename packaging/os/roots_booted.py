"""Built packages in a Debian that systemd has booted: units in their sandboxes, an upgrade and a removal of what runs (`roots.py`).

systemd-nspawn is the machine: PID 1 is systemd, seccomp filters, capabilities and namespaces of the units are real. There is no TPM.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from roots import Failed, Root
from roots_cases import case

_SETUP = """
set -e
apt-get -qq update && apt-get -qq install -y --no-install-recommends systemd dbus procps >/dev/null
: > /etc/machine-id
dpkg --force-unsafe-io -i {packages} 2>&1
made=/var/lib/ringfence-controller
ringfence-controller init --dir $made --token-file /root/token --node-url https://127.0.0.1:8440 \\
    --admin-url https://127.0.0.1:8441 --admin-listen 127.0.0.1:8441
chown -R ringfence-controller: $made
mkdir -p /etc/ringfence && cp $made/controller-ca.pem /etc/ringfence/
printf 'node = "press-1"\\nsite = "factory"\\n[controller]\\nurl = "https://127.0.0.1:8440"\\nca = "/etc/ringfence/controller-ca.pem"\\n' > /etc/ringfence/agent.toml
"""
_SAY = """
import socket, struct, sys
channel = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
channel.connect(sys.argv[1])
who = struct.pack("3i", int(sys.argv[2]), 0, 0)
channel.sendmsg([sys.argv[3].encode()], [(socket.SOL_SOCKET, socket.SCM_CREDENTIALS, who)])
"""
_WAIT_S = 90


def set_up(root: Root, *packages: str) -> None:
    """Install systemd and these packages, and prepare a controller and a node of it."""
    files = " ".join(f"/root/{root.debs[name].name}" for name in packages)
    root.run(_SETUP.format(packages=files), network=True)


class Booted:
    """A running Debian."""

    def __init__(self, leader: int) -> None:
        self._leader = leader

    def tell(self, script: str) -> str:
        """Run a shell script in it and return what it wrote, whatever came of it."""
        return subprocess.run(
            ["nsenter", "-t", str(self._leader), "-a", "/usr/bin/env", "-i", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "sh", "-c", script],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False, timeout=300,
        ).stdout  # fmt: skip

    def until(self, script: str, wanted: str) -> str:
        """Run it again until it writes `wanted`. Raises Failed when it does not in good time."""
        until = time.monotonic() + _WAIT_S
        while wanted not in (told := self.tell(script)):
            if time.monotonic() > until:
                raise Failed(
                    f"{script}\n  never said {wanted!r}: {told}\n{self.tell('journalctl -b --no-pager | tail -40')}"
                )
            time.sleep(1)
        return told

    def supervisor_hears(self, unit: str, said: str) -> None:
        """Send the machine's systemd a word of sd_notify(3) as if the unit's main process had. Raises CalledProcessError."""
        process = self.tell(f"systemctl show -P MainPID {unit}").strip()
        address = f"/proc/{self._leader}/root/run/systemd/notify"
        # Process numbers of the machine, files of this one: a bare root has no Python.
        where = ["nsenter", "-t", str(self._leader), "--pid"]
        subprocess.run([*where, sys.executable, "-c", _SAY, address, process, said], check=True)


@contextlib.contextmanager
def booted(root: Path) -> Iterator[Booted]:
    """Boot a root by systemd-nspawn, with a network of its own."""
    command = [
        "systemd-nspawn",
        "-q",
        "-D",
        root,
        "--register=no",
        "--keep-unit",
        "--private-network",
        "--boot",
        "--console=pipe",
    ]
    container = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    children = Path(f"/proc/{container.pid}/task/{container.pid}/children")
    try:
        until = time.monotonic() + _WAIT_S
        while not (found := children.read_text().split()):
            if container.poll() is not None or time.monotonic() > until:
                raise Failed("systemd-nspawn did not start")
            time.sleep(0.2)
        machine = Booted(int(found[0]))
        machine.until("systemctl is-system-running 2>&1", "running")
        yield machine
    finally:
        # The machine's PID 1 first, with which everything in it ends: nspawn alone would leave it behind.
        with contextlib.suppress(OSError):
            for child in children.read_text().split():
                os.kill(int(child), signal.SIGKILL)
        container.kill()
        container.wait()


def _fence_first(machine: Booted) -> None:
    """Before whatever listens, and after who would flush it; and systemd had to break no circle for that."""

    def moment(unit: str, what: str) -> int:
        return int(machine.tell(f"systemctl show -P {what}TimestampMonotonic {unit}"))

    ended = moment("ringfence-fence.service", "ExecMainExit")
    order = {
        "nftables": moment("nftables.service", "ExecMainExit"),
        "the fence begins": moment("ringfence-fence.service", "ExecMainStart"),
        "the fence stands": ended,
        "dbus.socket, as any socket": moment("dbus.socket", "InactiveExit"),
        "the controller": moment("ringfence-controller.service", "ExecMainStart"),
    }
    if 0 in order.values() or list(order.values()) != sorted(order.values()):
        raise Failed(f"not in this order: {order}")
    if ended > moment("ringfence-early.service", "ExecMainStart"):
        raise Failed("ringfence-early was not after ringfence-fence")
    if circle := machine.tell("journalctl -b --no-pager | grep -i 'ordering cycle'"):
        raise Failed(circle)


@case()
def under_systemd(root: Root, source: Path) -> None:
    """Fence and agent start at boot, sandboxed; an upgrade restarts the agent behind its back and leaves the fence; so does removal."""
    set_up(root, "ringfence-agent", "ringfence-controller")
    root.run("systemctl enable nftables.service")  # it begins with `flush ruleset`
    with booted(root.path) as machine:
        machine.until(
            "systemctl is-active ringfence-fence ringfence-early ringfence-agent ringfence-controller | xargs",
            "active active active active",
        )
        machine.until("nft list tables", "table inet ringfence\n")
        _fence_first(machine)
        for unit in ("ringfence-agent", "ringfence-controller"):
            told = machine.tell(f"cat /proc/$(systemctl show -P MainPID {unit})/status")
            if "Seccomp:\t2" not in told or "NoNewPrivs:\t1" not in told:
                raise Failed(f"{unit} runs without its sandbox: {told}")
        denied = machine.tell(
            "journalctl -b --no-pager -u 'ringfence*' | grep -iE 'not permitted|SIGSYS|core-dump|traceback'"
        )
        if denied:
            raise Failed(denied)
        before = machine.tell("systemctl show -P MainPID ringfence-agent")
        newer = root.debs["ringfence-agent-newer"].name
        machine.tell(f"dpkg --force-unsafe-io -i /root/{newer}; nft list tables > /after-upgrade")
        if "table inet ringfence\n" not in machine.tell("cat /after-upgrade"):
            raise Failed("the upgrade opened the fence")
        script = "systemctl is-active ringfence-agent; echo $(systemctl show -P MainPID ringfence-agent)"
        until = time.monotonic() + _WAIT_S
        while (told := machine.tell(script)).split()[:1] != ["active"] or told.split()[1] in (
            before.strip(),
            "0",
        ):
            if time.monotonic() > until:
                raise Failed(f"the agent was not restarted: {told}, before it was {before}")
            time.sleep(1)
        told = machine.tell("dpkg -r ringfence-agent; systemctl is-active ringfence-agent; nft list tables")
        if (
            "stays in the kernel" not in told
            or "inactive" not in told
            or "table inet ringfence\n" not in told
        ):
            raise Failed(told)
