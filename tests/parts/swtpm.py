"""A software TPM (swtpm) as a node's own: made with an EK certificate of a local CA, started, power-cycled.

    tpm = SoftwareTpm.manufacture(folder, authority=EkAuthority(folder / "ca"))
    tpm.start(); tpm.extend_from_log(log_bytes); ... tpm.tcti ...; tpm.reboot(); tpm.stop()

Refuses: more than one client at a time (swtpm serves one; a second one waits).
Relies on: packages swtpm, swtpm-tools; the TCTI `swtpm` of tpm2-tss with a Unix socket.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import socket
import struct
import subprocess
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

from tpm2_pytss import ESAPI, ESYS_TR, TPM2_ALG, TPML_DIGEST_VALUES, TPMT_HA, TPMU_HA

EV_NO_ACTION = 3
SHA256 = 0x000B
_SEARCH = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"


def _die_with_parent() -> None:
    """Leave no TPM behind when a test run is killed (prctl(2), PR_SET_PDEATHSIG): start it from a lasting thread."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL, 0, 0, 0)


class EkAuthority:
    """A local CA for EK certificates (root and issuer); `folder` holds its keys and can be kept and shared."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.settings = folder / "setup.conf"
        localca = folder / "localca.conf"
        options = folder / "localca.options"
        options.write_text(
            "--tpm-manufacturer IBM\n--tpm-model swtpm-libtpms\n--tpm-version 2\n--platform-manufacturer Ringfence\n"
            "--platform-version 1\n--platform-model test\n"
        )
        localca.write_text(
            f"statedir = {folder}\nsigningkey = {folder}/signkey.pem\nissuercert = {folder}/issuercert.pem\n"
            f"certserial = {folder}/certserial\n"
        )
        tool = shutil.which("swtpm_localca", path=_SEARCH) or "/usr/bin/swtpm_localca"
        self.settings.write_text(
            f"create_certs_tool = {tool}\ncreate_certs_tool_config = {localca}\n"
            f"create_certs_tool_options = {options}\nactive_pcr_banks = sha256\n"
        )

    @property
    def root(self) -> Path:
        """The root certificate (PEM). Exists once the first TPM has been made."""
        return self.folder / "swtpm-localca-rootca-cert.pem"

    @property
    def issuer(self) -> Path:
        """The issuing certificate (PEM)."""
        return self.folder / "issuercert.pem"


def _socket_folder() -> Path:
    # sun_path holds 108 bytes; pytest's folders are often longer.
    return Path(tempfile.mkdtemp(prefix="rf-tpm-"))


class SoftwareTpm:
    """One swtpm process over one state folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.state = folder / "state"
        self._sockets = _socket_folder()
        self._process: subprocess.Popen[bytes] | None = None
        self._log = folder / "swtpm.log"

    @property
    def tcti(self) -> str:
        """The TCTI string for tpm2-tss and, as TPM2TOOLS_TCTI, for tpm2-tools."""
        return f"swtpm:path={self._sockets}/tpm"

    @property
    def environment(self) -> dict[str, str]:
        """Environment for tpm2-tools as an independent witness."""
        return {**os.environ, "PATH": _SEARCH, "TPM2TOOLS_TCTI": self.tcti}

    @classmethod
    def manufacture(cls, folder: Path, authority: EkAuthority | None = None) -> SoftwareTpm:
        """Make a new TPM with EKs RSA-2048 and P-384, their certificates in NV where there is an authority."""
        tpm = cls(folder)
        tpm.state.mkdir(parents=True, exist_ok=True)
        command = [
            "swtpm_setup",
            "--tpm2",
            "--tpmstate",
            str(tpm.state),
            "--overwrite",
            "--logfile",
            str(tpm._log),
        ]
        if authority is not None:
            command += ["--create-ek-cert", "--config", str(authority.settings)]
        else:
            command += ["--createek", "--pcr-banks", "sha256"]
        done = subprocess.run(
            command, capture_output=True, text=True, env={**os.environ, "PATH": _SEARCH}, check=False
        )
        if done.returncode:
            log = tpm._log.read_text() if tpm._log.exists() else ""
            raise RuntimeError(f"swtpm_setup failed: {done.stdout}{done.stderr}{log}")
        return tpm

    def start(self) -> None:
        """Switch the TPM on: PCRs at their start values, TPM2_Startup(CLEAR) done."""
        for name in ("tpm", "tpm.ctrl"):
            (self._sockets / name).unlink(missing_ok=True)
        self._process = subprocess.Popen(
            [
                "swtpm", "socket", "--tpm2", "--tpmstate", f"dir={self.state}",
                "--server", f"type=unixio,path={self._sockets}/tpm",
                "--ctrl", f"type=unixio,path={self._sockets}/tpm.ctrl",
                "--flags", "not-need-init,startup-clear", "--log", f"file={self._log},level=1",
            ],
            env={**os.environ, "PATH": _SEARCH},
            start_new_session=True,
            stdin=subprocess.DEVNULL,
            preexec_fn=_die_with_parent,  # noqa: PLW1509  (only prctl)
        )  # fmt: skip
        deadline = time.monotonic() + 10
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"swtpm did not start: {self._log.read_text()}")
            time.sleep(0.005)

    def _answers(self) -> bool:
        """Ask the control channel (CMD_GET_CAPABILITY): it answers only once the TPM's own socket listens."""
        with socket.socket(socket.AF_UNIX) as control:
            control.settimeout(5)
            try:
                control.connect(f"{self._sockets}/tpm.ctrl")
                control.sendall(b"\0\0\0\1")
                return bool(control.recv(64))
            except OSError:
                return False

    def stop(self) -> None:
        """Switch off, as when the power goes."""
        if self._process is not None:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(5)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._process = None

    def close(self) -> None:
        """Switch off and remove the sockets' folder. The state folder is the caller's."""
        self.stop()
        shutil.rmtree(self._sockets, ignore_errors=True)

    def reboot(self, event_log: bytes | None = None) -> None:
        """Power-cycle; then, where there is a log, measure it as the firmware would have."""
        self.stop()
        self.start()
        if event_log is not None:
            self.extend_from_log(event_log)

    def pause(self) -> None:
        """Let the TPM hang, as a busy or dying one does (ATTACKS a08)."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """End `pause`."""
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def extend_from_log(self, event_log: bytes) -> None:
        """Extend the SHA-256 bank with every measured record of a TCG PC Client log."""
        self.extend(measurements(event_log))

    def extend(self, values: Iterable[tuple[int, bytes]]) -> None:
        """TPM2_PCR_Extend of (pcr, SHA-256 digest), in order."""
        with ESAPI(self.tcti) as esapi:
            for pcr, digest in values:
                ha = TPMT_HA(hashAlg=TPM2_ALG.SHA256, digest=TPMU_HA(sha256=digest))
                esapi.pcr_extend(ESYS_TR.PCR0 + pcr, TPML_DIGEST_VALUES([ha]))

    def __enter__(self) -> SoftwareTpm:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def measurements(event_log: bytes) -> list[tuple[int, bytes]]:
    """Return (pcr, SHA-256 digest) of every record that extends (TCG PC Client PFP 1.05, clause 10)."""
    sizes: dict[int, int] = {}
    _pcr, _kind, _sha1, first_size = struct.unpack_from("<II20sI", event_log, 0)
    spec = event_log[32 : 32 + first_size]
    (count,) = struct.unpack_from("<I", spec, 24)
    for n in range(count):
        algorithm, size = struct.unpack_from("<HH", spec, 28 + 4 * n)
        sizes[algorithm] = size
    out: list[tuple[int, bytes]] = []
    at = 32 + first_size
    while at < len(event_log):
        pcr, kind, count = struct.unpack_from("<III", event_log, at)
        at += 12
        for _ in range(count):
            (algorithm,) = struct.unpack_from("<H", event_log, at)
            digest = event_log[at + 2 : at + 2 + sizes[algorithm]]
            at += 2 + sizes[algorithm]
            if algorithm == SHA256 and kind != EV_NO_ACTION:
                out.append((pcr, digest))
        (size,) = struct.unpack_from("<I", event_log, at)
        at += 4 + size
    return out
