"""The controller and its admin, on this machine: what the guest reaches as 10.0.2.2 is this loopback, and nothing else."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from controller.cli.client import Client, Refused, Unreachable
from controller.cli.profile import Profile
from tests.parts.cluster import free_port

BIN = Path(sys.executable).parent
TREE = Path(__file__).resolve().parents[2]
GATEWAY = "10.0.2.2"
SITE, NODE = "factory", "press-1"
POLICY = "interval_s = 10\n"
BASELINE = """\
[baseline]
name = "lab"
version = {version}
summary = "a guest of the lab"
mode = "enforce"

{boot}
[firewall]
foreign = "report"
contest = {{ healings = 1000 }}

[firewall.zones.enclave]
interfaces = ["enp0s1"]
addresses = ["10.0.2.0/24"]

[[firewall.outbound]]
zone = "enclave"
protocol = "udp"
ports = [67]
reason = "lease of the address"

[usb]
default = "block"

[[usb.allow]]
vendor = "0627"
product = "0001"
interfaces = ["03:*:*"]
reason = "the keyboard of the service trolley"
{more}"""
BOOT = """\
[boot]
reference = "enrolment"
event_log = "required"
secure_boot = "required"
pcrs = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 14]
"""
"""Before anything is known of the guest: its first boot is what the next ones are held to."""


class Office:
    """A controller with one site, offline keys, and a logged-in admin."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.controller = folder, folder / "controller"
        self.nodes, self.admins = free_port(), free_port()
        self.version, self.boot = 0, BOOT
        own = {"RINGFENCE_PROFILE": str(folder / "profile.json"), "PYTHONPATH": str(TREE)}
        self.env = {**os.environ, **own}
        folder.mkdir(parents=True)
        self._run(
            "ringfence-controller", "init", "--dir", self.controller,
            "--node-url", f"https://{GATEWAY}:{self.nodes}", "--node-listen", f"127.0.0.1:{self.nodes}",
            "--admin-url", f"https://localhost:{self.admins}", "--admin-listen", f"127.0.0.1:{self.admins}",
            "--token-file", folder / "token",
        )  # fmt: skip
        with (folder / "controller.log").open("wb") as log:
            self._process = subprocess.Popen(
                [BIN / "ringfence-controller", "serve", "--dir", self.controller],
                stdin=subprocess.DEVNULL,
                stderr=log,
                env=self.env,
            )
        self.until("the controller answers", self._listens, 60)
        self.admin(
            "login",
            "--url",
            f"https://localhost:{self.admins}",
            "--ca",
            self.ca,
            "--token-file",
            folder / "token",
        )
        policy = folder / "policy.toml"
        policy.write_text(POLICY)
        self.admin("site", "create", SITE, "--policy", policy)
        self.admin(
            "keys", "new", "--plain", "--out", folder / "offline", "--online-key", self.controller / "keys/online.pub"
        )  # fmt: skip

    @property
    def ca(self) -> Path:
        """The certificate that is carried to nodes."""
        return self.controller / "controller-ca.pem"

    @property
    def url(self) -> str:
        """How the guest reaches it."""
        return f"https://{GATEWAY}:{self.nodes}"

    def publish(self, more: str = "") -> int:
        """Check, sign and push the next version of the baseline, and choose it for the site; returns its number."""
        self.version += 1
        file = self.folder / f"lab-{self.version}.toml"
        file.write_text(BASELINE.format(version=self.version, boot=self.boot, more=more))
        offline = self.folder / "offline"
        self._run("ringfence-agent", "check", file)
        self.admin(
            "baseline", "sign", file, "--repository", offline / "repository", "--key", offline / "keys/targets-1.pem"
        )  # fmt: skip
        self.admin("baseline", "push", offline / "repository")
        self.admin(
            "baseline", "assign", "lab", "--site", SITE, "--version", self.version, "--reason", "the lab"
        )
        return self.version

    def release(self, reason: str) -> None:
        """Release what is held, as a person does: the site, then the node by itself."""
        held = self.node()["holds"]
        if any(each["node"] is None for each in held):
            self.admin("release", "--site", SITE, "--reason", reason)
        if any(each["node"] is not None for each in held):
            self.admin("release", "--node", NODE, "--reason", reason)

    def record(self, folder: Path) -> None:
        """Export the first evidence of each boot, and what changed a verdict within one, oldest first."""
        stored = json.loads(self.admin("evidence", "list", NODE, "--json"))
        wanted = sorted((each["id"], each["kind"]) for each in stored if each["kind"] in ("boot", "change"))
        for number, (which, kind) in enumerate(wanted, 1):
            self.admin("evidence", "export", NODE, "--id", which, "--out", folder / f"{number:02}-{kind}")

    def admin(self, *arguments: object) -> str:
        """Run `ringfence`; returns its output. Raises RuntimeError."""
        return self._run("ringfence", *arguments)

    def node(self) -> dict[str, Any]:
        """What the controller knows of the guest, as `ringfence node --json` shows it; empty before it is known.

        Without a process for each look: there are hundreds, and one costs a second of the processor that the guests need.
        """
        profile = msgspec.json.decode((self.folder / "profile.json").read_bytes(), type=Profile)
        try:
            with Client(profile) as client:
                return client.get(f"/nodes/{NODE}")
        except (Refused, Unreachable):
            return {}

    def standing(self, wanted: str, within_s: float) -> dict[str, Any]:
        """Wait for a standing of the guest. Raises TimeoutError, which says what it is instead."""
        found: dict[str, Any] = self.until(
            f"{NODE} is {wanted}",
            lambda: (seen := self.node()).get("summary", {}).get("standing") == wanted and seen,
            within_s,
            self.said,
        )
        return found

    def in_force(self, within_s: float, *, since: float = 0.0, affirming: bool = False) -> dict[str, Any]:
        """Wait until evidence says that the guest is healthy under the baseline that is wanted. Raises TimeoutError.

        `since`: by this machine's clock; evidence from before does not count. `affirming`: no drift is left either; the
        first report under a baseline may tell of some that are healed a moment later.
        """

        def true() -> dict[str, Any]:
            seen = self.node()
            held = _in_force(seen, since) and (seen["summary"]["tier"] == "affirming" or not affirming)
            return seen if held else {}

        wanted = f"{NODE} is healthy{' and affirming' if affirming else ''} under the baseline that is wanted"
        found: dict[str, Any] = self.until(wanted, true, within_s, self.said)
        return found

    def isolated(self, named: str, within_s: float, *, since: float) -> str:
        """Wait until the controller names what differs and the node has cut itself; returns what was found. Raises TimeoutError.

        `since`: as in `in_force`.
        """

        def true() -> str:
            found = self.node()
            said = "; ".join(f"{each['code']}: {each['detail']}" for each in found.get("findings", ()))
            cut = found and found["summary"]["posture"] == "isolated" and _reported(found, since)
            return (said or "no finding") if cut and named in said else ""

        said: str = self.until(
            f"the node is isolated and the finding names {named!r}", true, within_s, self.said
        )
        return said

    def said(self) -> str:
        """What the controller knows of the guest, in short."""
        found = self.node()
        return str({key: found.get(key) for key in ("summary", "findings", "drifts", "holds")})[:2500]

    def until(
        self,
        what: str,
        true: Callable[[], Any],
        within_s: float,
        instead: Callable[[], str] = lambda: "nothing more is known",
    ) -> Any:
        """Wait for something; returns it. Raises TimeoutError."""
        end = time.monotonic() + within_s
        while not (found := true()):
            if time.monotonic() > end:
                raise TimeoutError(f"not within {within_s:g} s: {what}; {instead()}")
            time.sleep(1.0)  # what is asked may cost the processor that the guests need
        return found

    def close(self) -> None:
        """Stop the controller."""
        self._process.terminate()
        self._process.wait(30)

    def _listens(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.admins)) == 0

    def _run(self, program: str, *arguments: object) -> str:
        done = subprocess.run(
            [BIN / program, *map(str, arguments)],
            capture_output=True, text=True, env=self.env, timeout=120, check=False,
        )  # fmt: skip
        if done.returncode:
            raise RuntimeError(
                f"{program} {' '.join(map(str, arguments))}: exit {done.returncode}: {done.stderr}"
            )
        return done.stdout


def _reported(found: dict[str, Any], since: float) -> bool:
    return (found["summary"]["last_report_at"] or 0.0) > since


def _in_force(found: dict[str, Any], since: float) -> bool:
    summary = found.get("summary", {})
    return (
        summary.get("standing") == "healthy"
        and summary["posture"] == "normal"
        and _version(summary["baseline"]) == _version(summary["wanted_baseline"])
        and _reported(found, since)
    )


def _version(baseline: dict[str, Any] | None) -> tuple[str, int] | None:
    return None if baseline is None else (baseline["name"], baseline["version"])
