"""A wave rollout on one site, as two people run it: by the admin command, with a plan between them and the fleet."""

from __future__ import annotations

import json
from typing import Any

from tests.flow.lab import ADMIN_PORT, BIN, Failed, Lab, wait_until

BAD = """
[[sysctl.set]]
key = "net.ipv4.conf.no-such-card.forwarding"
value = "0"
reason = "a mistake that check cannot see: no node has it"
"""
TERMS = "waves = [{ nodes = 1 }]\nsoak_s = 1\ndeadline_s = 5\n"
"""One canary, then the rest."""


class Waves:
    """Plans and rollouts of one site of a lab."""

    def __init__(self, lab: Lab, site: str) -> None:
        self.lab = lab
        self.site = site
        self._terms = lab.folder / "terms.toml"
        self._terms.write_text(TERMS)
        self._second = ""

    def plan(self, version: int) -> dict[str, Any]:
        """Plan a version for the site."""
        told = self.lab.ringfence(
            "plan", self.site, "--version", str(version), "--selector", f"site={self.site}", "--json"
        )
        found: dict[str, Any] = json.loads(told)
        return found

    def begin(self, plan: int, reason: str) -> int:
        """Ask for it as one person and approve it as another; returns the rollout's number."""
        told = self.lab.ringfence(
            "rollout", "request", str(plan), "--terms", self._terms, "--reason", reason, "--json"
        )
        number = int(json.loads(told)["id"])
        self._as_second("rollout", "approve", str(number), "--reason", "read the plan")
        return number

    def ended(self, number: int, within_s: float = 40) -> dict[str, Any]:
        """Wait until a rollout is done or has halted."""

        def over() -> dict[str, Any] | None:
            found: dict[str, Any] = self.lab.api("GET", f"/rollouts/{number}")
            return found if found["state"] in ("done", "halted", "aborted") else None

        found = wait_until("the rollout ends", over, within_s=within_s)
        assert found is not None
        return found

    def nodes(self, number: int) -> dict[str, str]:
        """How far each node is."""
        found = self.lab.api("GET", f"/rollouts/{number}/nodes")["items"]
        return {each["node"]: each["progress"] for each in found}

    def _as_second(self, *argv: str) -> None:
        """Run the admin command with another person's token."""
        if not self._second:
            token = self.lab.folder / "second-person.token"
            # On the controller's machine: what the admin's own token makes counts as the admin.
            self.lab.run_controller(
                *("token", "second-person", "--role", "approver", "--dir", self.lab.controller_folder),
                *("--token-file", token),
            )
            self._second = token.read_text().strip()
        topology = self.lab.topology.controller
        done = topology.namespace.run(
            "env",
            f"RINGFENCE_URL=https://{topology.uplink[0]}:{ADMIN_PORT}",
            f"RINGFENCE_CA={self.lab.ca}",
            f"RINGFENCE_TOKEN={self._second}",
            BIN / "ringfence",
            *argv,
            check=False,
        )
        if done.returncode:
            raise Failed(f"ringfence {' '.join(argv)}: {done.stdout}{done.stderr}")
