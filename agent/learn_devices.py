"""`ringfence-agent devices list|learn`: what is plugged in, and a draft of the sections that would allow it.

Opens nothing and changes nothing. A draft is for a person to cut down: it allows what happens to be there, says
what of it anybody can copy, and every reason in it is to be written anew. Texts of devices are hostile; they are printable here.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

import click

from agent import probes
from agent.config import DEFAULT_PATH, load_config
from agent.devicenodes import Node
from agent.devices import MALFORMED, ROOT, ROOT_HUB, UsbDevice
from agent.host import Host, printable
from agent.probes._nodes import NodeProbe
from agent.usbrules import MAX_KINDS, is_keyboard, matches
from agent.userdb import group_name, user_name
from contract import tomltext

NODE_SECTIONS: Final = ("cameras", "accelerators", "serials")
REASON: Final = "found plugged in: write why it may be here"
ANYBODYS: Final = frozenset(
    ["0403", "0483", "10c4", "1209", "16c0", "1a86", "1d50", "1d6b", "2341", "239a", "2e8a", "303a"]
)
"""Vendors whose ids stand in kits, converters and single-board computers, or are free to use for everybody."""
_VIRTUAL_DISKS: Final = ("loop", "ram", "zram")

Rule = tuple[list[str], Mapping[str, object]]
"""Comments, keys."""


@click.group("devices")
def devices() -> None:
    """What is plugged into this machine."""


_config_option = click.option(
    "--config", "config_path", type=click.Path(path_type=Path), default=DEFAULT_PATH, show_default=True
)


@devices.command("list")
@_config_option
@click.option("--json", "as_json", is_flag=True, help="For programs.")
def list_command(config_path: Path, as_json: bool) -> None:
    """Say which devices there are, with what a rule can name."""
    found = listing(_host(config_path))
    if as_json:
        click.echo(json.dumps(found))
        return
    for section, entries in found.items():
        for entry in entries:
            facts = "  ".join(
                f"{key}={_shown(value)}" for key, value in entry.items() if value not in ("", None)
            )
            click.echo(f"{section}  {facts}")


@devices.command("learn")
@_config_option
@click.option("--output", type=click.Path(dir_okay=False, path_type=Path), help="Where to write; else shown.")
def learn_command(config_path: Path, output: Path | None) -> None:
    """Print the device sections of a draft baseline, from what is plugged in. Cut it down before you sign it."""
    text = draft(_host(config_path))
    if output is None:
        click.echo(text, nl=False)
    else:
        output.write_text(text)


def listing(host: Host) -> dict[str, list[dict[str, object]]]:
    """Return every device by section; where it could not be looked, one entry says why."""
    looks: dict[str, Callable[[], list[dict[str, object]]]] = {
        "usb": lambda: [_usb_facts(each) for each in _usb(host)],
        "thunderbolt": lambda: [each._asdict() for each in host.thunderbolt.devices()],
        "pci": lambda: [each._asdict() for each in host.pci.devices()],
        "blocks": lambda: [each._asdict() for each in host.disks.all()],
        "netdevs": lambda: [each._asdict() for each in host.links.all() if not each.loopback],
        "cameras": lambda: _node_facts(host, "cameras"),
        "accelerators": lambda: _node_facts(host, "accelerators"),
        "serials": lambda: _node_facts(host, "serials"),
    }
    found: dict[str, list[dict[str, object]]] = {}
    for section, look in looks.items():
        try:
            found[section] = look()
        except OSError as error:
            found[section] = [{"could_not_look": str(error)}]
    return found


def _node_facts(host: Host, section: str) -> list[dict[str, object]]:
    return [
        {
            "node": node.path,
            "number": f"{node.number[0]}:{node.number[1]}",
            "owner": user_name(node.access.uid),
            "group": group_name(node.access.gid),
            "mode": f"{node.access.mode:04o}",
            "acl": ", ".join(node.access.named()),
            "driver": node.driver,
            "vendor": node.vendor,
            "product": node.product,
            "serial": node.serial,
            "open": ", ".join(_openers(host, node)),
        }
        for node in _nodes(host, section)
    ]


def draft(host: Host) -> str:
    """Return the sections as TOML; where it could not be looked, a comment says why and nothing is allowed."""
    sections: list[tuple[str, Sequence[str], Iterable[Rule]]] = [
        ("usb", ('default = "block"', 'keyboards = "one"'), _usb_rules(host)),
        ("thunderbolt", (), _thunderbolt_rules(host)),
        ("pci", ('unknown = "report"',), _pci_rules(host)),
        ("blocks", ('unknown = "report"',), _disk_rules(host)),
        ("netdevs", ('unknown = "report"',), _link_rules(host)),
        *((name, ('unknown = "report"',), _node_rules(host, name)) for name in NODE_SECTIONS),
    ]
    lines = [
        "# A draft, from one look at one machine: strike out what does not belong here and write the reasons.",
        "# What a device says of itself (ids, serials, names) can be copied; where it hangs cannot be chosen by it.",
    ]
    for name, keys, rules in sections:
        lines += ["", f"[{name}]", *keys]
        try:
            for comments, rule in rules:
                lines += ["", *(f"# {comment}" for comment in comments), f"[[{name}.allow]]"]
                lines += tomltext.render({**rule, "reason": REASON}).splitlines()
        except OSError as error:
            lines.append(f"# could not look: {printable(str(error))}")
    return "\n".join(lines) + "\n"


def _host(config_path: Path) -> Host:
    if not config_path.exists():
        return Host()
    roots = load_config(config_path).roots
    return Host(root=Path(roots.root), sysfs_root=Path(roots.sysfs), proc_root=Path(roots.proc))


def _usb(host: Host) -> list[UsbDevice]:
    found = (host.usb.device(name) for name in host.usb.names() if not ROOT_HUB.fullmatch(name))
    return [device for device in found if device is not None]


def _usb_facts(device: UsbDevice) -> dict[str, object]:
    return {
        "port": device.name,
        "vendor": device.vendor,
        "product": device.product,
        "serial": device.serial,
        "name": device.label,
        "manufacturer": device.manufacturer,
        "interfaces": [each.kind for each in device.offered],
        "hub": device.hub[0],
        "connect": device.connect,
        "authorized": device.authorized,
        "digest": device.digest,
    }


def _usb_rules(host: Host) -> Iterator[Rule]:
    found = _usb(host)
    alike = Counter((device.vendor, device.product, device.serial) for device in found)
    for device in found:
        kinds = [each.kind for each in device.offered]
        by = f" by {device.manufacturer}" if device.manufacturer else ""
        comments = [f"{device.name}: {device.label or 'a device without a name'}{by}"]
        if MALFORMED in kinds or not kinds:
            continue  # no rule could let it in
        comments += _usb_doubts(device, alike[(device.vendor, device.product, device.serial)])
        rule: dict[str, object] = {"vendor": device.vendor, "product": device.product}
        if device.serial:
            rule["serial"] = device.serial[:126]
        else:
            rule["port"] = device.name
        if device.digest:
            rule["digest"] = device.digest
        if device.connect != "unknown":
            rule["connect"] = [device.connect]
        rule["hub"] = ROOT if device.hub[0] == ROOT else device.hub[1]
        if len(kinds) <= MAX_KINDS:
            rule["exactly"] = kinds
        rule["interfaces"] = list(device.kinds())[:MAX_KINDS]
        yield comments, rule


def _usb_doubts(device: UsbDevice, alike: int) -> Iterator[str]:
    kinds = device.kinds()
    if not device.serial:
        yield "it tells no serial number: every one of its kind is like it, so the rule names its port"
    if alike > 1:
        yield f"{alike} devices here tell these very ids and serial"
    if device.vendor in ANYBODYS:
        yield "its vendor's ids are anybody's: kits and single-board computers carry them"
    if any(is_keyboard(kind) for kind in kinds):
        yield "it can type"
    if any(matches("08:*:*", kind) for kind in kinds):
        yield "it is storage: files come and go with it"
    if any(matches(each, kind) for each in ("02:*:*", "0a:*:*", "e0:*:*") for kind in kinds):
        yield "it is a modem, a network adapter or a radio: a way around the firewall's interfaces"
    if any(matches("09:*:*", kind) for kind in kinds):
        yield "it is a hub: what hangs on it needs rules of its own"
    if device.digest is None:
        yield "its descriptors cannot be read, so there is no digest"


def _thunderbolt_rules(host: Host) -> Iterator[Rule]:
    for each in host.thunderbolt.devices():
        tunnel = "has its tunnel" if each.authorized else "has no tunnel"
        comment = f"{each.name}: {each.vendor_name} {each.device_name}, {tunnel}"
        yield [comment], {"uuid": each.uuid or None, "place": None if each.uuid else each.name}


def _pci_rules(host: Host) -> Iterator[Rule]:
    found = host.pci.devices()
    bridges = [each for each in found if each.kind.startswith("06")]
    if bridges:
        yield [f"{len(bridges)} bridges: {', '.join(each.address for each in bridges[:8])}"], {"kind": "06*"}
    for each in found:
        if each not in bridges:
            drivers = [each.driver] if each.driver else None
            comments = [f"{each.describe()}"]
            if each.removable == "removable":
                comments.append("it hangs outside the case")
            rule = {"vendor": each.vendor, "device": each.device, "slot": each.address, "drivers": drivers}
            yield comments, rule


def _disk_rules(host: Host) -> Iterator[Rule]:
    yield ["made by software"], {"names": [f"{each}*" for each in _VIRTUAL_DISKS]}
    for each in host.disks.all():
        if not each.name.startswith(_VIRTUAL_DISKS):
            comments = [each.describe()]
            if not (each.serial or each.wwid):
                comments.append("it tells no serial number: any disk under this name is like it")
            rule = {
                "names": [each.name],
                "serial": each.serial[:256] or None,
                "wwid": each.wwid[:256] or None,
                "removable": each.removable,
            }
            yield comments, rule


def _link_rules(host: Host) -> Iterator[Rule]:
    for each in host.links.all():
        if each.loopback:
            continue
        comments = [each.describe()]
        if each.permanent and each.permanent != each.mac:
            comments.append(f"its address is not the hardware's own ({each.permanent})")
        if each.kind:
            yield comments, {"names": [each.name], "kind": each.kind}
        else:
            same = each.permanent in ("", each.mac)
            rule = {
                "names": [each.name],
                "mac": each.mac if same and each.mac else None,
                "driver": each.driver or None,
                "place": each.place or None,
            }
            yield comments, rule


def _nodes(host: Host, section: str) -> list[Node]:
    module = probes.sections()[section]
    around = probes.Surroundings(host=host)
    probe = module.Probe(module.Section(), around)
    assert isinstance(probe, NodeProbe)  # noqa: S101  (one of NODE_SECTIONS)
    return probe.nodes()[0]


def _node_rules(host: Host, section: str) -> Iterator[Rule]:
    for node in _nodes(host, section):
        openers = _openers(host, node)
        comments = [node.describe()]
        if node.access.mode & 0o006:
            comments.append("everybody may open it")
        if node.access.named():
            comments.append(f"on its list: {', '.join(node.access.named())}")
        if not openers:
            comments.append("nobody has it open now: name who may")
        rule = {
            "nodes": [node.path],
            "driver": node.driver or None,
            "vendor": node.vendor or None,
            "product": node.product or None,
            "owner": user_name(node.access.uid),
            "group": group_name(node.access.gid),
            "mode": f"{node.access.mode:04o}",
            "acl": "any" if node.access.named() else "none",
            "opened_by": openers,
        }
        yield comments, rule


def _openers(host: Host, node: Node) -> list[str]:
    held = host.nodes.holders(node.kind, [node.number])
    words = (f"unit:{each.unit}" if each.unit else f"user:{user_name(each.uid)}" for each in held)
    return sorted(set(words))


def _shown(value: object) -> str:
    return ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
