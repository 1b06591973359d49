"""An agent with a grant open, in a process that can be killed: `python -m tests.agent.grantrun FOLDER KEY SECONDS [again]`.

Holds a baseline with `[access]`, takes a directive with one grant (or, with `again`, only starts over the same folder),
prints "open", and goes on until it is killed. Runs in the network namespace it is started in.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from contract.grant import Access, Grant, Opening
from tests.agent.rig import Rig
from tests.parts.signing import minimal_baseline

VENDOR_PORT = 9090
RULES = f"""
[firewall.zones.vendor]
interfaces = ["enclave0"]
addresses = ["10.10.0.0/16", "fd10::/16"]

[firewall.zones.enclave]
addresses = ["10.10.0.0/16", "fd10::/16"]

[[firewall.inbound]]
zone = "enclave"
protocol = "tcp"
ports = [8080]
reason = "inference API"

[access]
[[access.network]]
name = "vendor-ssh"
direction = "in"
zone = "vendor"
protocol = "tcp"
ports = [{VENDOR_PORT}]
max_s = 3600
reason = "the press maker's remote service"

[access.break_glass]
posture = "normal"
max_s = 600
releases_isolation = true
reason = "the line must be stopped by hand"
"""


def grant(
    seconds: float,
    *,
    number: int = 1,
    peers: tuple[str, ...] = ("10.10.0.0/16",),
    ports: tuple[int, ...] = (VENDOR_PORT,),
    starts: float | None = None,
    requested_by: str = "ops",
    **more: object,
) -> Grant:
    """A grant of the vendor's port, from now on."""
    begin = time.time() if starts is None else starts
    opening = Opening(direction="in", protocol="tcp", ports=list(ports), peers=list(peers))
    return Grant(
        id=number,
        who="A. Technician",
        company="Press Works",
        evidence="contract 4711",
        access=Access(openings=[opening], **more),  # type: ignore[arg-type]
        starts=begin,
        ends=begin + seconds,
        reason="drive replaced",
        requested_by=requested_by,
        approved_by=["boss"],
    )


def main() -> None:
    """Hold, open, wait."""
    folder, key, seconds = Path(sys.argv[1]), bytes.fromhex(sys.argv[2]), float(sys.argv[3])
    rig = Rig(folder, key=Ed25519PrivateKey.from_private_bytes(key))
    rig.start()
    if "again" not in sys.argv:
        rig.adopt(minimal_baseline("factory", 1, extra=RULES), 1, 1)
        rig.direct(rig.signed(2, wanted=rig.kit.wanted("factory", 1), grants=[grant(seconds)]))
    print("open", flush=True)
    while True:
        time.sleep(1)


if __name__ == "__main__":
    main()
