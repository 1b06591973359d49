"""The baselines of the lab: the shape of the shipped ones, with the addresses of the lab's networks."""

from __future__ import annotations

import hashlib
import ipaddress

WEIGHTS = hashlib.shake_128(b"vision-7").digest(256 * 1024)
GUARDRAILS = b'{"refuse": ["faces", "plates"], "version": 3}\n'
MEASURED = {
    "/opt/models/vision-7.onnx": hashlib.sha256(WEIGHTS).digest(),
    "/opt/models/guardrails.json": hashlib.sha256(GUARDRAILS).digest(),
    "/usr/bin/inference": hashlib.sha256(b"inference").digest(),
}
"""What IMA measures on a node of the lab while it boots."""


def text(
    name: str,
    version: int,
    site: int,
    *,
    extra_port: int | None = None,
    way: str | None = None,
    boot: str = "",
    extra: str = "",
    usb: str = 'default = "block"',
    summary: str = "inference node of the lab",
    clients: int = 0,
    access: str = "",
) -> str:
    """Return a baseline for nodes of site number `site`.

    `extra_port` opens one more TCP port to the enclave; `way` names the only interface to the controller;
    `boot` adds lines to that section; `clients` a zone of so many single addresses, with one rule; `extra` stands at the end;
    `usb` are that section's own keys.
    `access` further sections.
    """
    allowed = "".join(f'"{path}" = ["sha256:{digest.hex()}"]\n' for path, digest in MEASURED.items())
    ports = f"[8080, {extra_port}]" if extra_port else "[8080]"
    controller = f'[firewall.controller]\ninterface = "{way}"\n' if way else ""
    return f"""\
[baseline]
name = "{name}"
version = {version}
summary = "{summary}"
mode = "enforce"

[firewall]
foreign = "report"
# The demo and the bench fight over the rules more often than a node would stand.
contest = {{ healings = 1000 }}

{controller}
[firewall.zones.enclave]
interfaces = ["enclave0"]
addresses = ["10.10.{site}.0/24", "fd10:{site}::/64"]

[firewall.zones.uplink]
interfaces = ["uplink0"]

[[firewall.inbound]]
zone = "enclave"
protocol = "tcp"
ports = {ports}
reason = "inference requests from inside the site"

[[firewall.inbound]]
zone = "enclave"
protocol = "icmp"
reason = "ping inside the site"

[[firewall.outbound]]
zone = "enclave"
protocol = "tcp"
ports = [8080]
reason = "nodes ask each other"

[[firewall.outbound]]
zone = "enclave"
protocol = "icmp"
reason = "ping inside the site"

[[firewall.outbound]]
zone = "uplink"
protocol = "udp"
ports = [53, 123]
reason = "name and time service"

[usb]
{usb}

[[usb.allow]]
vendor = "046d"
product = "c31c"
interfaces = ["03:*:*"]
reason = "the keyboard of the service trolley"

[sysctl]
[[sysctl.set]]
key = "net.ipv4.conf.all.accept_redirects"
value = "0"
reason = "nobody but us says where packets go"

[files]
[[files.file]]
path = "/opt/models/vision-7.onnx"
sha256 = "{hashlib.sha256(WEIGHTS).hexdigest()}"
owner = "root"
group = "root"
mode = "0644"
reason = "the model's weights"

[[files.file]]
path = "/opt/models/guardrails.json"
sha256 = "{hashlib.sha256(GUARDRAILS).hexdigest()}"
owner = "root"
group = "root"
mode = "0644"
reason = "what the model must refuse"

[listeners]
[[listeners.allow]]
protocol = "tcp"
address = "any"
port = 8080
reason = "the inference service"

[ima.allow]
{allowed}
[boot]
event_log = "required"
reference = "enrolment"
{boot}{_clients(clients)}{access}{extra}"""


def _clients(count: int) -> str:
    if not count:
        return ""
    addresses = ",\n".join(f'"{ipaddress.ip_address("198.18.0.1") + n}"' for n in range(count))
    return f"""
[firewall.zones.clients]
interfaces = ["enclave0"]
addresses = [{addresses}]

[[firewall.inbound]]
zone = "clients"
protocol = "tcp"
ports = [8081]
reason = "clients known one by one"
"""
