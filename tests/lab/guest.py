"""One guest: QEMU with UEFI firmware, Secure Boot variables and a software TPM of its own; a way in that needs no network.

Commands go over a virtio serial line to the guest agent, so they work in isolation too. Devices come and go by QMP. TCG only: where
KVM is an emulation, firmware and stock kernels do not boot under it. One processor: two that are emulated side by side wait for each
other's locks and caches (a third slower, two guests on two cores), and one such guest stood still with both at full load. Relies on:
qemu-system-x86, ovmf, swtpm.
"""

from __future__ import annotations

import base64
import json
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tests.lab.image import LISTENER_PORT
from tests.parts.cluster import free_port
from tests.parts.swtpm import SoftwareTpm

FIRMWARE = Path("/usr/share/OVMF")
MEMORY_MIB = 1536
BOOT_S = 900.0
COMMAND_S = 600.0
STOP_S = 300.0
_FIRST_POLL_S, _POLL_S = 0.02, 0.3


class Done(NamedTuple):
    """What became of a command in the guest."""

    code: int
    out: str
    err: str


class _Line:
    """A socket that carries one JSON object a line, each answered by one that has `return` or `error`."""

    def __init__(self, path: Path, within_s: float) -> None:
        end = time.monotonic() + within_s
        self._socket = socket.socket(socket.AF_UNIX)
        while True:
            try:
                self._socket.connect(str(path))
                break
            except OSError:
                if time.monotonic() > end:
                    raise
                time.sleep(0.1)
        self._rest = b""

    def ask(self, command: str, arguments: dict[str, Any] | None = None, *, within_s: float = 240.0) -> Any:
        """Return what was answered. Raises RuntimeError for an error, TimeoutError."""
        message = {"execute": command} | ({"arguments": arguments} if arguments else {})
        self._socket.sendall(json.dumps(message).encode() + b"\n")
        return self.answer(within_s)

    def answer(self, within_s: float) -> Any:
        """Return the next answer; what is told unasked is left out."""
        end = time.monotonic() + within_s
        while True:
            line, newline, rest = self._rest.partition(b"\n")
            if newline:
                self._rest = rest
                found = json.loads(line.lstrip(b"\xff") or b"{}")
                if "error" in found:
                    raise RuntimeError(str(found["error"]))
                if "return" in found:
                    return found["return"]
                continue
            self._socket.settimeout(max(0.01, end - time.monotonic()))
            try:
                read = self._socket.recv(1 << 16)
            except TimeoutError:
                raise TimeoutError(f"no answer within {within_s:g} s") from None
            if not read:
                raise ConnectionError("the line is closed")
            self._rest += read

    def close(self) -> None:
        """End it."""
        self._socket.close()


class Guest:
    """One machine: disk, firmware variables and TPM outlive its boots."""

    def __init__(self, folder: Path, disk: Path, tpm: SoftwareTpm, *, more: Sequence[Path] = ()) -> None:
        """`disk` is copied. `more`: further disks, read-only, as /dev/vdb and so on."""
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.tpm, self.more = folder, tpm, tuple(more)
        self.disk = folder / "disk.img"
        subprocess.run(["cp", "--sparse=always", "--reflink=auto", disk, self.disk], check=True)
        self.variables = folder / "vars.fd"
        self.outside = free_port()
        """Here on the loopback: leads to the guest's listener (`tests.lab.outside`)."""
        self.secure_boot(True)
        self._sockets = Path(tempfile.mkdtemp(prefix="rf-lab-"))
        self._qemu: subprocess.Popen[bytes] | None = None
        self._swtpm: subprocess.Popen[bytes] | None = None
        self._monitor: _Line | None = None
        self._inside: _Line | None = None

    def secure_boot(self, on: bool) -> None:
        """Put in factory-fresh firmware variables: with Microsoft's keys enrolled, or none."""
        shutil.copy(FIRMWARE / f"OVMF_VARS_4M{'.ms' if on else ''}.fd", self.variables)

    @property
    def console(self) -> Path:
        """What the guest wrote to its serial console."""
        return self.folder / "console.log"

    def start(self) -> float:
        """Switch it on and wait until commands can be run; returns seconds. Raises TimeoutError."""
        began = time.monotonic()
        self._swtpm = subprocess.Popen(
            [
                "swtpm", "socket", "--tpm2", "--tpmstate", f"dir={self.tpm.state}",
                "--ctrl", f"type=unixio,path={self._sockets}/tpm", "--log", f"file={self.folder}/swtpm.log",
            ],
            stdin=subprocess.DEVNULL,
        )  # fmt: skip
        while not (self._sockets / "tpm").exists():
            time.sleep(0.02)
        with (self.folder / "qemu.log").open("wb") as log:
            self._qemu = subprocess.Popen(self._command(), stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        self._monitor = _Line(self._sockets / "monitor", 30)
        self._monitor.ask("qmp_capabilities")
        self._wait_inside(began + BOOT_S)
        return time.monotonic() - began

    def _command(self) -> list[str]:
        drives = [
            f"if=pflash,format=raw,unit=0,readonly=on,file={FIRMWARE}/OVMF_CODE_4M.secboot.fd",
            f"if=pflash,format=raw,unit=1,file={self.variables}",
            f"if=virtio,format=raw,cache=unsafe,file={self.disk}",
            *(f"if=virtio,format=raw,readonly=on,file={path}" for path in self.more),
        ]
        return [
            "qemu-system-x86_64", "-machine", "q35,smm=on", "-accel", "tcg,thread=multi",
            "-global", "driver=cfi.pflash01,property=secure,value=on",
            "-smp", "1", "-m", str(MEMORY_MIB), "-nodefaults", "-display", "none", "-no-reboot",
            *(part for drive in drives for part in ("-drive", drive)),
            "-chardev", f"socket,id=tpm,path={self._sockets}/tpm",
            "-tpmdev", "emulator,id=tpm0,chardev=tpm", "-device", "tpm-crb,tpmdev=tpm0",
            "-netdev", f"user,id=net,ipv6=off,hostfwd=tcp:127.0.0.1:{self.outside}-:{LISTENER_PORT}", "-device", "virtio-net-pci,netdev=net",
            "-device", "qemu-xhci,id=usb", "-device", "virtio-serial",
            "-chardev", f"socket,id=inside,path={self._sockets}/inside,server=on,wait=off",
            "-device", "virtserialport,chardev=inside,name=org.qemu.guest_agent.0",
            "-chardev", f"file,id=console,path={self.console},append=on", "-serial", "chardev:console",
            "-qmp", f"unix:{self._sockets}/monitor,server=on,wait=off",
        ]  # fmt: skip

    def _wait_inside(self, end: float) -> None:
        while True:
            if self._qemu is None or self._qemu.poll() is not None:
                raise RuntimeError(f"the guest ended: {self._tail()}")
            try:
                if self._inside is None:
                    self._inside = _Line(self._sockets / "inside", 30)
                mark = time.monotonic_ns() % 2**31
                answer = self._inside.ask("guest-sync", {"id": mark}, within_s=5)
                while answer != mark:  # to a try before this one
                    answer = self._inside.answer(5)
                return
            except (TimeoutError, ConnectionError):
                if self._inside is not None:
                    self._inside.close()
                    self._inside = None
                if time.monotonic() > end:
                    raise TimeoutError(f"no answer from the guest: {self._tail()}") from None

    def run(self, command: str, *, within_s: float = COMMAND_S) -> Done:
        """Run a shell command as root in the guest. Raises TimeoutError."""
        try:
            return self._run(command, within_s)
        except TimeoutError as error:
            raise TimeoutError(f"{command}: {error}; the console's end:\n{self._tail()}") from None

    def _run(self, command: str, within_s: float) -> Done:
        assert self._inside is not None
        began = {"path": "/bin/sh", "arg": ["-c", command], "capture-output": True}
        pid = self._inside.ask("guest-exec", began)["pid"]
        end, pause_s = time.monotonic() + within_s, _FIRST_POLL_S
        while True:
            status = self._inside.ask("guest-exec-status", {"pid": pid})
            if status["exited"]:
                out, err = (
                    base64.b64decode(status.get(key, "")).decode(errors="replace")
                    for key in ("out-data", "err-data")
                )
                return Done(int(status.get("exitcode", -1)), out, err)
            if time.monotonic() > end:
                raise TimeoutError(f"still running after {within_s:g} s")
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, _POLL_S)

    def must(self, command: str, *, within_s: float = COMMAND_S) -> str:
        """Run a command that has to work; returns its output. Raises RuntimeError."""
        done = self.run(command, within_s=within_s)
        if done.code:
            raise RuntimeError(f"{command}: exit {done.code}\n{done.out[-1000:]}{done.err[-1000:]}")
        return done.out

    def monitor(self, command: str, **arguments: Any) -> Any:
        """Ask QEMU (QMP)."""
        assert self._monitor is not None
        return self._monitor.ask(command, arguments)

    def stop(self) -> None:
        """Shut it down as a person would, so that the TPM is left in order; pull the plug if it does not end."""
        try:
            if self._qemu is not None and self._monitor is not None:
                self._monitor.ask("system_powerdown")
                self._qemu.wait(STOP_S)
        except (subprocess.TimeoutExpired, OSError, RuntimeError):
            pass
        self._pull_the_plug()

    def _pull_the_plug(self) -> None:
        if self._qemu is None:
            return
        self._qemu.kill()
        self._qemu.wait()
        for line in (self._inside, self._monitor):
            if line is not None:
                line.close()
        self._inside = self._monitor = self._qemu = None
        if self._swtpm is not None:
            try:
                self._swtpm.wait(5)
            except subprocess.TimeoutExpired:
                self._swtpm.terminate()
                self._swtpm.wait()
            self._swtpm = None
        (self._sockets / "tpm").unlink(missing_ok=True)

    def reboot(self) -> float:
        """Off and on again; returns seconds until commands can be run."""
        self.stop()
        return self.start()

    def close(self) -> None:
        """Pull the plug, for nobody boots it again, and remove the sockets."""
        self._pull_the_plug()
        shutil.rmtree(self._sockets, ignore_errors=True)

    def _tail(self) -> str:
        logs = (self.folder / "qemu.log", self.console)
        return "\n".join(path.read_text(errors="replace")[-1500:] for path in logs if path.exists())
