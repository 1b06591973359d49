"""Classification against the ways out, through the agent's own way in: what is refused, what is warned of, what stands."""

from __future__ import annotations

import hashlib

import pytest

from agent import probes
from contract.baseline import parse_baseline
from contract.errors import Rejected
from tests.agent.probes.case import HEAD, section_of

RESTRICTED = f"""
[models]
[[models.model]]
name = "vision"
version = "7"
root = "/opt/models/vision-7"
classification = "restricted"
reason = "for a test"
file = [{{ path = "a", sha256 = "{hashlib.sha256(b"x").hexdigest()}", size_bytes = 1, kind = "weights" }}]
"""
FIREWALL = """
[firewall.zones.enclave]
addresses = ["10.10.1.0/24", "fd10:1::/64"]
[firewall.zones.uplink]
interfaces = ["uplink0"]
[firewall.zones.management]
addresses = ["192.168.7.0/24"]
"""
RULE = '[[firewall.{at}]]\nzone = "{zone}"\nprotocol = "tcp"\nports = [443]\nreason = "for a test"\n'
FORWARD = '[[firewall.{at}]]\nfrom = "enclave"\nto = "{zone}"\nprotocol = "any"\nreason = "for a test"\n'


@pytest.mark.parametrize(
    ("text", "at"),
    [
        (RULE, "outbound"),
        (RULE, "isolated.outbound"),
        (RULE, "maintenance.outbound"),
        (FORWARD, "forward"),
        (FORWARD, "maintenance.forward"),
    ],
)
def test_a_restricted_model_never_meets_a_way_out(text: str, at: str) -> None:
    restricted = RESTRICTED
    for zone in ("enclave", "management"):
        section_of("models", restricted + FIREWALL + text.format(at=at, zone=zone))
    key = "to" if "forward" in at else "zone"
    with pytest.raises(
        Rejected, match=rf"case\.toml:\d+: firewall\.{at}\[0\]\.{key}: .*'vision 7'.*'uplink'"
    ):
        section_of("models", restricted + FIREWALL + text.format(at=at, zone="uplink"))
    for milder in ("public", "internal"):
        section_of(
            "models", restricted.replace("restricted", milder) + FIREWALL + text.format(at=at, zone="uplink")
        )
    inbound = RULE.format(at="inbound", zone="uplink")
    section_of("models", restricted + FIREWALL + inbound)


CONTAINERS = """
[firewall.containers]
manager = "docker"
interfaces = ["docker0"]
addresses = ["172.17.0.0/16"]
{more}reason = "for a test"
"""
ACCESS = """
[[access.network]]
name = "vendor"
direction = "{direction}"
zone = "{zone}"
protocol = "tcp"
ports = [443]
max_s = 60
reason = "for a test"
"""
EGRESS = CONTAINERS.format(more="") + RULE.format(at="containers.egress", zone="{zone}")


@pytest.mark.parametrize(
    ("text", "key"),
    [
        (EGRESS, r"firewall\.containers\.egress\[0\]\.zone"),
        (ACCESS.format(direction="out", zone="{zone}"), r"access\.network\[0\]\.zone"),
    ],
)
def test_containers_and_grants_are_ways_out_too(text: str, key: str) -> None:
    restricted = RESTRICTED
    section_of("models", restricted + FIREWALL + text.format(zone="management"))
    for zone in ("uplink", "wide"):
        wide = '[firewall.zones.wide]\naddresses = ["0.0.0.0/0"]\n'
        with pytest.raises(Rejected, match=rf"case\.toml:\d+: {key}: expected no way out .*'{zone}'"):
            section_of("models", restricted + FIREWALL + wide + text.format(zone=zone))
    section_of("models", restricted + FIREWALL + ACCESS.format(direction="in", zone="uplink"))


def test_an_enclave_of_names_or_beside_the_rules_is_none() -> None:
    restricted = RESTRICTED
    rule = RULE.format(at="outbound", zone="enclave")
    for more in ("", 'interfaces = ["enclave0"]\n'):
        named = FIREWALL.replace(
            'addresses = ["10.10.1.0/24", "fd10:1::/64"]',
            more + 'names = ["a.example"]\nnames_private = true',
        )
        with pytest.raises(Rejected, match=r"firewall\.zones\.enclave\.names: .*no names"):
            section_of("models", restricted + named + rule)
        section_of("models", restricted.replace("restricted", "confidential") + named + rule)
    parents = CONTAINERS.format(more='parents = ["uplink0"]\n')
    for class_ in ("restricted", "confidential"):
        with pytest.raises(Rejected, match=r"firewall\.containers\.parents: expected none"):
            section_of("models", restricted.replace("restricted", class_) + FIREWALL + parents)


def test_a_restricted_model_asks_for_a_firewall_that_holds() -> None:
    restricted = (
        RESTRICTED.replace("[models]\n", "[models]\n{mode}")
        .replace("[{ path", "[{{ path")
        .replace("}]", "}}]")
    )
    observing = '[firewall]\nmode = "observe"\n'
    for enforced in ("", 'mode = "enforce"\n'):
        with pytest.raises(Rejected, match=r"classification: expected \[firewall\] .*only observes"):
            section_of("models", restricted.format(mode=enforced) + observing)
        with pytest.raises(Rejected, match=r"classification: expected \[firewall\] .*has no \[firewall\]"):
            section_of("models", restricted.format(mode=enforced))
    section_of("models", restricted.format(mode="") + "[firewall]\n")
    # A site that begins by observing may, and is told so.
    observed = restricted.format(mode='mode = "observe"\n')
    for firewall, why in ((observing, "only observes"), ("", "no [firewall]")):
        (warned,) = _warned(observed + firewall)
        assert warned == f"nothing holds back the restricted model 'vision 7': the {why}".replace(
            "the no", "the baseline has no"
        ).replace("the only", "the firewall only")
    confidential = restricted.format(mode="").replace("restricted", "confidential")
    assert _warned(confidential + "[firewall]\n") == []
    assert len(_warned(confidential + observing)) == 1


def _warned(text: str) -> list[str]:
    baseline = parse_baseline((HEAD + text).encode(), file="case.toml")
    parsed = probes.parse_sections(baseline)
    return [
        each.text
        for each in probes.warnings(baseline, parsed)
        if "model" in each.text or each.key.startswith("firewall.containers")
    ]


def test_confidential_data_goes_to_named_places_only() -> None:
    confidential = RESTRICTED.replace("restricted", "confidential")
    rule = RULE.format(at="outbound", zone="there")
    for text in (
        'addresses = ["198.51.0.0/16", "10.0.0.0/8"]',
        'addresses = ["192.0.2.1"]\ninterfaces = ["up0"]',
    ):
        section_of("models", confidential + FIREWALL + f"[firewall.zones.there]\n{text}\n" + rule)
    refused = {
        'addresses = ["0.0.0.0/0"]': r"addresses\[0\]: .*is no enclave",
        'addresses = ["192.0.2.1", "::/0"]': r"addresses\[1\]: .*is no enclave",
        'names = ["a.example"]': r"names: expected addresses or interfaces and no names",
        'interfaces = ["uplink0"]': r"interfaces: .*everybody behind it",
    }
    for text, why in refused.items():
        zone = FIREWALL + f"[firewall.zones.there]\n{text}\n"
        section_of("models", confidential + zone)  # nothing leads there
        for way in (rule, ACCESS.format(direction="out", zone="there"), EGRESS.format(zone="there")):
            with pytest.raises(Rejected, match=rf"firewall\.zones\.there\.{why}"):
                section_of("models", confidential + zone + way)
    own = FIREWALL.replace('addresses = ["192.168.7.0/24"]', 'interfaces = ["enclave0"]')
    section_of("models", confidential + own + RULE.format(at="outbound", zone="management"))


def test_internal_data_may_go_everywhere_and_check_warns_of_it() -> None:
    for text, said in (
        ('addresses = ["10.0.0.0/8"]', []),
        (
            'addresses = ["0.0.0.0/0"]',
            ["a way out to 0.0.0.0/0 of zone 'there' beside the internal model 'vision 7'"],
        ),
        (
            'interfaces = ["up0"]',
            ["a way out to everybody behind zone 'there' beside the internal model 'vision 7'"],
        ),
    ):
        zone = FIREWALL + f"[firewall.zones.there]\n{text}\n" + RULE.format(at="outbound", zone="there")
        assert _warned(RESTRICTED.replace("restricted", "internal") + zone) == said
        assert _warned(RESTRICTED.replace("restricted", "public") + zone) == []
    # The strictest model of a node decides.
    second = RESTRICTED.replace("[models]\n", "").replace("vision", "other")
    with pytest.raises(Rejected, match="restricted model 'other 7'"):
        section_of("models", RESTRICTED.replace("restricted", "internal") + second + zone)


def test_the_internet_does_not_become_an_enclave_by_its_name() -> None:
    restricted = RESTRICTED
    rule = RULE.format(at="outbound", zone="enclave")
    for wide in ("0.0.0.0/0", "128.0.0.0/1", "::/0", "2000::/3"):
        with pytest.raises(Rejected, match=r"firewall\.zones\.enclave\.addresses\[0\].*is no enclave"):
            section_of("models", restricted + FIREWALL.replace("10.10.1.0/24", wide) + rule)
    for narrow in ("10.0.0.0/8", "2001:db8:1::/48", "fc00::/7"):
        section_of("models", restricted + FIREWALL.replace("10.10.1.0/24", narrow) + rule)
