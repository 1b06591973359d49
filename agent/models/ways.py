"""What the classification of a model means for the firewall of its node: which ways out may stand beside it. Pure.

`public`: any. `internal`: any, but `check` warns of a way to everywhere. `confidential`: no way to everywhere, no names and no
interface alone, but for the site's own zones. `restricted`: the site's own zones only, by addresses and interfaces. A way out
is whatever may begin here or pass through: rules of every posture, containers, and what a grant may open.

Refuses to count the way to the controller, which no baseline writes, and what answers a connection from outside.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from agent.firewall.section import ForwardRule, Rule, Zone, checked_network
from agent.firewall.section import Section as FirewallSection
from agent.models.section import Classification, Section
from agent.probes import Contradiction, SectionBase
from agent.probes.access import Section as AccessSection

_ORDER: tuple[Classification, ...] = ("public", "internal", "confidential", "restricted")
_PRIVATE_4 = [
    ipaddress.IPv4Network(text)
    for text in ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "169.254.0.0/16")
]
_PRIVATE_6 = [ipaddress.IPv6Network(text) for text in ("fc00::/7", "fe80::/10")]
_WIDTH = "private addresses, or a prefix of at least /16 (IPv6: /48)"


class _Way(NamedTuple):
    """One way out: where it is written, and to which zone."""

    at: tuple[str | int, ...]
    zone: str


class _Strictest(NamedTuple):
    """The model that asks most of the firewall."""

    at: tuple[str | int, ...]
    said: str
    """For messages: "the restricted model 'vision 7'"."""
    classification: Classification


def refused_ways(sections: Mapping[str, SectionBase]) -> Iterator[Contradiction]:
    """Yield each way out that must not stand beside the models. Modes are those in force."""
    models, firewall = sections.get("models"), sections.get("firewall")
    strictest = _strictest(models)
    if strictest is None or strictest.classification not in ("confidential", "restricted"):
        return
    assert isinstance(models, Section)  # noqa: S101  (there is a model)
    if strictest.classification == "restricted" and models.mode == "enforce" and not _held(firewall):
        yield Contradiction(
            strictest.at, f"expected [firewall] in mode enforce beside {strictest.said}: {_why_not(firewall)}"
        )
    if not isinstance(firewall, FirewallSection):
        return
    own = models.restricted_zones
    used = set()
    for way in _ways(firewall, sections.get("access")):
        used.add(way.zone)
        if strictest.classification == "restricted" and way.zone not in own:
            expected = f"expected no way out beside {strictest.said}: one of the zones {', '.join(own)}; got {way.zone!r}"
            yield Contradiction(way.at, expected)
    restricted = strictest.classification == "restricted"
    for name in sorted(used if not restricted else used & set(own)):
        yield from _unfit(name, firewall.zones[name], strictest, own=name in own)
    yield from _parents(firewall, strictest)


def doubtful_ways(sections: Mapping[str, SectionBase]) -> Iterator[Contradiction]:
    """Yield what an author should look at again: nothing is held back, or internal data may go everywhere."""
    models, firewall = sections.get("models"), sections.get("firewall")
    strictest = _strictest(models)
    if strictest is None or strictest.classification == "public":
        return
    assert isinstance(models, Section)  # noqa: S101  (there is a model)
    if strictest.classification != "internal":
        if not _held(firewall):
            yield Contradiction(strictest.at, f"nothing holds back {strictest.said}: {_why_not(firewall)}")
        return
    if not isinstance(firewall, FirewallSection):
        return
    for way in _ways(firewall, sections.get("access")):
        zone = firewall.zones[way.zone]
        wide = [text for text in zone.addresses if _too_wide(text)]
        if wide or not (zone.addresses or zone.names):
            where = f"{wide[0]} of zone {way.zone!r}" if wide else f"everybody behind zone {way.zone!r}"
            yield Contradiction(way.at, f"a way out to {where} beside {strictest.said}")
    for found in _parents(firewall, strictest):
        yield found._replace(
            expected="containers here may have an interface that passes no rule of this node"
        )


def _strictest(models: SectionBase | None) -> _Strictest | None:
    if not isinstance(models, Section) or not models.model:
        return None
    place, model = max(enumerate(models.model), key=lambda each: _ORDER.index(each[1].classification))
    said = f"the {model.classification} model '{model.name} {model.version}'"
    return _Strictest(("models", "model", place, "classification"), said, model.classification)


def _held(firewall: SectionBase | None) -> bool:
    return firewall is not None and firewall.mode == "enforce"


def _why_not(firewall: SectionBase | None) -> str:
    return "the firewall only observes" if firewall is not None else "the baseline has no [firewall]"


def _ways(firewall: FirewallSection, access: SectionBase | None) -> Iterator[_Way]:
    rules: list[tuple[tuple[str, ...], Sequence[Rule | ForwardRule]]] = [
        (("outbound",), firewall.outbound),
        (("forward",), firewall.forward),
        (("isolated", "outbound"), firewall.isolated.outbound),
        (("maintenance", "outbound"), firewall.maintenance.outbound),
        (("maintenance", "forward"), firewall.maintenance.forward),
    ]
    if firewall.containers is not None:
        rules.append((("containers", "egress"), firewall.containers.egress))
    for at, listed in rules:
        for place, rule in enumerate(listed):
            zone, key = (rule.zone, "zone") if isinstance(rule, Rule) else (rule.destination, "to")
            yield _Way(("firewall", *at, place, key), zone)
    if isinstance(access, AccessSection):
        for place, entry in enumerate(access.network):
            if entry.direction == "out" and entry.zone in firewall.zones:
                yield _Way(("access", "network", place, "zone"), entry.zone)


def _unfit(name: str, zone: Zone, beside: _Strictest, *, own: bool) -> Iterator[Contradiction]:
    """Yield why a zone is no place that data of this class may go to. `own`: it is one of the site's own."""
    at = ("firewall", "zones", name)
    restricted = beside.classification == "restricted"
    if zone.names and (restricted or not own):
        yield Contradiction(
            (*at, "names"),
            f"expected addresses or interfaces and no names beside {beside.said}: whoever answers DNS decides where"
            " they lead",
        )
    elif not own and not zone.addresses:
        yield Contradiction(
            (*at, "interfaces"),
            f"expected addresses beside {beside.said}: an interface alone is everybody behind it, unless"
            " models.restricted_zones names the zone",
        )
    for place, text in enumerate(zone.addresses):
        if _too_wide(text):
            yield Contradiction(
                (*at, "addresses", place), f"expected {_WIDTH}, beside {beside.said}; {text} is no enclave"
            )


def _parents(firewall: FirewallSection, beside: _Strictest) -> Iterator[Contradiction]:
    if firewall.containers is not None and firewall.containers.parents:
        yield Contradiction(
            ("firewall", "containers", "parents"),
            f"expected none beside {beside.said}: a MACVLAN or IPVLAN passes no rule of this node",
        )


def _too_wide(text: str) -> bool:
    network = checked_network(text)
    if isinstance(network, ipaddress.IPv4Network):
        return network.prefixlen < 16 and not any(network.subnet_of(each) for each in _PRIVATE_4)
    return network.prefixlen < 48 and not any(network.subnet_of(each) for each in _PRIVATE_6)
