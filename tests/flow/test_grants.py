"""A vendor comes in from outside: asked for, approved by another person, opened, used, closed on time, and told."""

from __future__ import annotations

import json
import re
import signal
import time
from typing import Any

import pytest

from contract.grant import new_code
from tests.flow.lab import ADMIN_PORT, BIN, Failed, Lab, Node, wait_until
from tests.flow.traffic import Outside
from tests.parts import inference
from tests.parts.adminapi import AdminApi

ACCESS = """
[access]
[[access.network]]
name = "remote-service"
direction = "in"
zone = "uplink"
protocol = "tcp"
ports = [8080]
max_s = 3600
reason = "the maker of the press looks at its model"

[access.break_glass]
posture = "normal"
max_s = 600
releases_isolation = true
reason = "the line must be stopped by hand"
"""
VERSION = 100
"""Above what other tests of this lab sign."""


@pytest.fixture(scope="module")
def node(lab: Lab) -> Node:
    """A node whose baseline bounds grants."""
    lab.sign("west", VERSION, 2, access=ACCESS)
    lab.push()
    lab.assign("west", "west", VERSION)
    found = lab.node("west-1")
    lab.wait_in_force([found], "west", VERSION)
    return found


@pytest.fixture(scope="module")
def boss(lab: Lab) -> AdminApi:
    """Another person."""
    token = lab.folder / "boss.token"
    # On the controller's machine: what the admin's own token makes counts as the admin.
    lab.run_controller(
        "token", "boss", "--role", "approver", "--dir", lab.controller_folder, "--token-file", token
    )
    address, inside = lab.topology.controller.uplink[0], lab.topology.controller.namespace
    return AdminApi(
        address,
        ADMIN_PORT,
        lab.ca,
        token.read_text().strip(),
        lambda: inference.connect(inside, address, ADMIN_PORT, timeout_s=5),
    )


def asked(lab: Lab, node: Node, what: str, length: str) -> dict[str, Any]:
    """Ask for access as a person does."""
    common = (
        "--company",
        "Press Works",
        "--evidence",
        "contract 4711",
        "--reason",
        "drive replaced",
        "--json",
    )
    said = lab.ringfence(
        "grant", "request", node.name, "--who", "A. Technician", "--in", what, "--for", length, *common
    )
    return json.loads(said)  # type: ignore[no-any-return]


def test_a04_a_vendor_loses_the_port_on_time_with_the_agent_killed(
    lab: Lab, node: Node, boss: AdminApi
) -> None:
    with Outside(lab) as outside:
        vendor, peer, port = outside.namespace, outside.address4, 8080

        def gets_in(address: str) -> bool:
            return inference.infer(vendor, address, timeout_s=0.4)

        assert not gets_in(node.host.uplink[0])
        grant = asked(lab, node, f"tcp/{port}@{peer}", "20s")
        assert grant["state"] == "requested"
        time.sleep(0.5)
        assert not gets_in(node.host.uplink[0]), "asking opens nothing"
        alone = lab.ringfence("grant", "approve", str(grant["id"]), "--reason", "mine", check=False)
        assert "grant.same-person" in alone
        boss("POST", f"/grants/{grant['id']}/approve", {"reason": "planned work"})
        wait_until("the vendor gets in", lambda: gets_in(node.host.uplink[0]), within_s=5)
        assert not gets_in(node.host.uplink[1]), "the other family was not asked for"
        wait_until(
            "the controller knows of the use",
            lambda: lab.api("GET", f"/grants/{grant['id']}")["use"]["sources"] == [peer],
            within_s=9,
        )
        node.stop_agent(signal.SIGKILL)
        assert gets_in(node.host.uplink[0]), "a dead agent ends nothing before its time"
        time.sleep(max(0.0, grant["ends"] - time.time() + 0.2))
        assert not gets_in(node.host.uplink[0]), "closed on time, with nobody there to do it"
        node.start_agent()
    after = wait_until(
        "the end is told",
        lambda: (found := lab.api("GET", f"/grants/{grant['id']}"))["use"]["closed_at"] and found,
    )
    assert (after["state"], after["use"]["closed_why"]) == ("ended", "ended")
    assert after["approved_by"] == "boss"
    assert after["use"]["opened_at"] and after["use"]["used_at"]
    shown = lab.ringfence("grant", "show", str(grant["id"]))
    assert re.search(r"used by\s+" + re.escape(peer), shown)
    acts = [line["act"] for line in lab.api("GET", "/audit?limit=500")["items"]]
    assert {"grant.requested", "grant.approved"} <= set(acts)


def test_a07_a_grant_that_the_baseline_does_not_bound_is_refused_by_the_node(
    lab: Lab, node: Node, boss: AdminApi
) -> None:
    with Outside(lab) as outside:
        grant = asked(lab, node, f"tcp/2222@{outside.address4}", "10m")
        boss("POST", f"/grants/{grant['id']}/approve", {"reason": "a mistake"})
        told = wait_until(
            "the node's refusal",
            lambda: (found := lab.api("GET", f"/grants/{grant['id']}"))["state"] == "refused" and found,
        )
        assert told["use"]["refused"].startswith("grant.beyond")
        assert f"grant{grant['id']}_" not in node.table()
        lab.ringfence("grant", "revoke", str(grant["id"]), "--reason", "a mistake")
        assert "revoked" in lab.ringfence("grant", "list", "--all", "--node", node.name)
    with pytest.raises(Failed, match=r"node\.unknown"):
        lab.ringfence(
            *("grant", "request", "nobody", "--who", "a", "--company", "b", "--evidence", "c"),
            *("--in", "tcp/22@10.0.0.1", "--for", "1h", "--reason", "d"),
        )


def test_a_code_releases_an_isolated_node_without_the_controller(lab: Lab, node: Node) -> None:
    issued = json.loads(
        lab.ringfence("breakglass", "issue", node.name, "--count", "2", "--reason", "in the safe", "--json")
    )
    codes = [each["code"] for each in issued["items"]]
    client, address = lab.client("west").namespace, node.host.enclave[0]

    def typed(code: str) -> str:
        done = node.host.namespace.run(
            *(BIN / "ringfence-agent", "break-glass", "--config", node.config), text=code + "\n", check=False
        )
        return done.stdout + done.stderr

    lab.api("POST", f"/nodes/{node.name}/isolate", {"reason": "test"})
    wait_until("isolated", lambda: bool(node.table("ringfence_cut")))
    lab.stop_controller()
    assert not inference.infer(client, address, timeout_s=0.4)
    assert "break-glass.wrong" in typed(new_code())
    assert "open for 600 s" in typed(codes[0])
    wait_until("released", lambda: inference.infer(client, address, timeout_s=0.4))
    assert "break-glass.wrong" in typed(codes[0]), "used once"
    lab.start_controller()
    wait_until(
        "the use is told",
        lambda: any(event["kind"] == "break-glass.used" for event in lab.events(node=node.name)),
    )
    listed = json.loads(lab.ringfence("breakglass", "list", node.name, "--json"))["items"]
    assert [bool(each["used_at"]) for each in listed] == [True, False]
    assert not any(code in json.dumps(listed) for code in codes)
    assert inference.infer(client, address, timeout_s=0.4), "the controller's word does not end it"
    lab.ringfence("breakglass", "revoke", node.name, str(listed[0]["id"]), "--reason", "looked at")
    wait_until("isolated again", lambda: not inference.infer(client, address, timeout_s=0.4))
    lab.api("POST", f"/nodes/{node.name}/release", {"reason": "test"})
    wait_until("released", lambda: inference.infer(client, address))
