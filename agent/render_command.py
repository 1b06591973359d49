"""`ringfence-agent render`: the nftables batches that a baseline means, as the agent would load them here and now.

What is printed loads with `nft -f` as it stands. The agent loads the same batches one by one; what of them depends on
the node or on the moment is said in comments at the top.

Refuses to load anything. Relies on: `agent.firewall.batches`; rtnetlink(7) for interfaces, routes and gateways.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import click

from agent.config import DEFAULT_PATH, AgentConfig, load_config
from agent.firewall.batches import batches
from agent.firewall.local import owners, resolved
from agent.firewall.model import Local, model
from agent.firewall.section import Section
from agent.host import host_of
from agent.netfilter import Netfilter
from agent.probes import ControllerEndpoint, Surroundings, parse_sections
from contract.baseline import parse_baseline
from contract.messages import Posture

_ENDPOINT_SHOWN = ControllerEndpoint("192.0.2.1", 8440)
"""Shown where no configuration says otherwise (RFC 5737: documentation)."""


def endpoints(config: AgentConfig | None) -> tuple[ControllerEndpoint, ...]:
    """Return where the controller is, as far as the configuration says so by address."""
    if config is None:
        return (_ENDPOINT_SHOWN,)
    where = config.controller
    return tuple(ControllerEndpoint(address, where.port) for address in where.literal_addresses())


@click.command()
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--posture", type=click.Choice(["normal", "isolated", "maintenance"]), default="normal")
@click.option(
    "--config", "config_path", type=click.Path(path_type=Path), default=DEFAULT_PATH, show_default=True
)
def render(file: Path, posture: Posture, config_path: Path) -> None:
    """Print the nftables rules that a baseline means: all that is loaded, and what of it depends on the moment."""
    config = load_config(config_path) if config_path.exists() else None
    baseline = parse_baseline(file.read_bytes(), file=file.name)
    firewall = parse_sections(baseline).get("firewall", Section())
    assert isinstance(firewall, Section)  # noqa: S101  (parsed by the module of that name)
    head = baseline.head
    click.echo(f"# {head.name} version {head.version}, posture {posture}: all that the agent loads, in order")
    click.echo(_rendered(firewall, posture, config), nl=False)


def _rendered(section: Section, posture: Posture, config: AgentConfig | None) -> str:
    around = Surroundings(host=host_of(config), controller=endpoints(config), posture=posture)
    here = resolved(section, around.host)
    netfilter = Netfilter()
    try:
        ways = netfilter.ways(model(section, "isolated", around, here))
        # Only root can try it; a kernel without bridges is the exception.
        bridge = os.geteuid() != 0 or netfilter.knows("bridge")
        offloads = os.geteuid() != 0 or netfilter.offloads()
    finally:
        netfilter.close()
    made = batches(section, posture, around, here, ways, bridge=bridge, offloads=offloads)
    notes = [f"#   {line}" for line in _of_the_moment(section, posture, config, here, offloads=offloads)]
    parts = [f"\n# {each.what}\n{each.text}" for each in made]
    return "\n".join(["# What of it depends on this node and this moment:", *notes, "".join(parts)])


def _of_the_moment(
    section: Section, posture: Posture, config: AgentConfig | None, here: Local, *, offloads: bool
) -> Iterator[str]:
    if config is None:
        shown = f"{_ENDPOINT_SHOWN.address} port {_ENDPOINT_SHOWN.port}"
        yield f"controller: {shown} stands for it, since there is no configuration here"
    elif not config.controller.literal_addresses():
        yield "controller: the addresses of its name are not in here; the agent asks for them"
    names = sorted({name for zone in section.zones.values() for name in zone.names})
    if names:
        yield f"names: sets name4_ZONE and name6_ZONE are empty here; the agent resolves {', '.join(names)}"
    users, units = owners(section)
    for kind, wanted, found in (("users", users, here.users), ("units", units, here.units)):
        if wanted:
            missing = [name for name in wanted if name not in found]
            lacking = f"; not here, so without a rule: {', '.join(missing)}" if missing else ""
            yield f"{kind}: numbers of this machine{lacking}"
    if posture == "isolated":
        yield "interfaces: those of this machine at this moment, and the next hops of its routes"
    else:
        yield "grants: none is open; each adds sets and chains grantN_... while it lasts"
    if section.offload is not None:
        had = "those of this machine at this moment" if offloads else "this kernel has no flowtables: none"
        yield f"offload: interfaces: {had}"
    if here.gateways is not None:
        yield "gateways: those of this machine's routes at this moment"
    yield "fence: nobody is fenced; a directive that fences adds sets and chains fence..."
    yield "in force the rules have counters that have counted, and dynamic sets that packets fill"
