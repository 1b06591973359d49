"""firewalld, run for real in a network namespace of a node, with a message bus and a configuration of its own."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from tests.parts.debs import Unpacked
from tests.parts.namespace import Namespace

PACKAGES = ("firewalld",)
_OWNS = "\nNftablesTableOwner=yes\n"
_BUS = """\
<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig>
  <type>system</type>
  <listen>unix:path={folder}/bus</listen>
  <auth>EXTERNAL</auth>
  <policy context="default"><allow send_destination="*"/><allow receive_sender="*"/><allow own="*"/></policy>
</busconfig>
"""


class Firewalld:
    """The daemon and its command. `zone` is the one that every interface is in; `owns`: nobody else may change its table."""

    def __init__(
        self, node: Namespace, folder: Path, programs: Unpacked, *, zone: str = "public", owns: bool = True
    ) -> None:
        self._node, self._folder, self._programs = node, folder, programs
        self._settings = folder / "etc"
        shutil.copytree(programs.root / "etc/firewalld", self._settings)
        main = self._settings / "firewalld.conf"
        text = main.read_text().replace("DefaultZone=public", f"DefaultZone={zone}")
        self.can_own = _OWNS in text  # since 2.1
        main.write_text(text if owns else text.replace(_OWNS, _OWNS.replace("yes", "no")))
        (folder / "bus.conf").write_text(_BUS.format(folder=folder))
        self._env = {**programs.env(), "DBUS_SYSTEM_BUS_ADDRESS": f"unix:path={folder}/bus"}
        self._bus: subprocess.Popen[bytes] | None = None
        self._daemon: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start bus and daemon and wait for them. Raises RuntimeError with the daemon's words."""
        if self._bus is None:
            bus = ["dbus-daemon", f"--config-file={self._folder}/bus.conf", "--nofork", "--nopidfile"]
            self._bus = self._node.start(*bus, env=self._env, log=self._folder / "log")
        daemon = ["/usr/bin/python3", self._programs.root / "usr/sbin/firewalld", "--nofork", "--nopid"]
        where = [
            "--system-config",
            self._settings,
            "--default-config",
            self._programs.root / "usr/lib/firewalld",
        ]
        logs = ["--log-file", self._folder / "firewalld.log"]
        self._wait((self._folder / "bus").exists)
        self._daemon = self._node.start(*daemon, *where, *logs, env=self._env, log=self._folder / "log")
        self._wait(lambda: self.command("--state", check=False).stdout.strip() == "running")

    def _wait(self, true: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 60
        while not true():
            ended = self._daemon is not None and self._daemon.poll() is not None
            if ended or time.monotonic() > deadline:
                raise RuntimeError((self._folder / "log").read_text()[-2000:])
            time.sleep(0.1)

    def command(self, *argv: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run `firewall-cmd`."""
        program = ["/usr/bin/python3", str(self._programs.root / "usr/bin/firewall-cmd")]
        env = [f"{key}={value}" for key, value in self._env.items()]
        return self._node.run("env", *env, *program, *argv, check=check, timeout=60)

    def stop(self) -> None:
        """End the daemon, as its unit does: it takes its rules away."""
        if self._daemon is not None:
            self._daemon.terminate()
            self._daemon.wait(30)
            self._daemon = None

    def kill(self) -> None:
        """End the daemon as a fault does: its rules stay."""
        if self._daemon is not None:
            self._daemon.kill()
            self._daemon.wait(30)
            self._daemon = None

    def close(self) -> None:
        """End everything."""
        self.stop()
        if self._bus is not None:
            self._bus.kill()
            self._bus.wait(10)
            self._bus = None
