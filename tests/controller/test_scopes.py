"""What the matrix cannot compute: things that reach several sites, names that are claimed, rights that are given, limits."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from contract.errors import Rejected
from contract.messages import Drift, Finding
from controller import judge
from controller.api.entry import token_digest
from controller.config import Limits
from controller.failures import MAX_SOURCES, WINDOW_S, Failures
from controller.permissions import (
    EVERYWHERE,
    NOWHERE,
    ON_THE_MACHINE,
    Person,
    Placed,
    Reach,
    Right,
    at_sites,
    beyond,
    is_admin,
    scope_of,
)
from controller.selector import parse_selector
from tests.controller.live import TOKENS, Live, answer_to, running
from tests.controller.twosites import OTHER, OWN, place, token_of, waiting

VIEWER = [{"role": "viewer", "sites": "all"}]


@pytest_asyncio.fixture
async def live(tmp_path: Path) -> AsyncIterator[Live]:
    async with running(tmp_path) as controller:
        yield controller


async def code(live: Live, method: str, path: str, body: object, headers: dict[str, str]) -> str:
    """The code of what is refused; the status of what is not."""
    if method == "PUT" and path.endswith(("/labels", "/policy", "/rights")):
        headers = {**headers, "If-Match": "*"}
    status, value = await live.call(method, "/api/v1" + path, body, role=None, headers=headers)
    return str(value.get("code", status))


# -- the table -------------------------------------------------------------------------------------------


def right(role: str, *sites: str, labels: str | None = None) -> Right:
    return Right(role=role, sites=sites or "all", labels=labels)  # type: ignore[arg-type]


def test_c09_rights_add_up_by_permission_and_not_by_site() -> None:
    rights = [right("viewer"), right("operator", "lyon"), right("operator", "paris")]
    assert scope_of(rights, "fleet.read") == EVERYWHERE
    assert scope_of(rights, "isolation.act") == at_sites("lyon", "paris")
    assert scope_of(rights, "people.manage") is None
    assert scope_of([], "fleet.read") is None


def test_c09_nobody_gives_what_they_have_not() -> None:
    own = [right("viewer"), right("operator", "lyon")]
    assert beyond(own, [right("viewer", "paris"), right("operator", "lyon")]) == ""
    assert "evidence.read for paris" in beyond(own, [right("operator", "paris")])
    assert "for the whole fleet, yours is lyon" in beyond(own, [right("operator")])
    assert beyond(own, [right("auditor", "lyon")]) == "audit.read"
    assert beyond([right("admin", "lyon")], [right("viewer")]).startswith("fleet.read for the whole fleet")
    assert beyond([right("admin")], [right("admin")]) == ""


def test_c09_labels_narrow_a_right_and_only_the_same_words_are_the_same_labels() -> None:
    line = right("operator", "lyon", labels="line=3")
    scope = scope_of([line, right("operator", "paris")], "isolation.act")
    assert scope is not None
    three, four = Placed("lyon", {"line": "3"}), Placed("lyon", {"line": "4"})
    assert scope.holds(Reach(nodes=(three,))) and not scope.holds(Reach(nodes=(four,)))
    assert not scope.holds(Reach(nodes=(three, four))) and scope.touches(Reach(nodes=(three, four)))
    assert not scope.holds(Reach(frozenset({"lyon"}))) and scope.holds(Reach(frozenset({"paris"})))
    assert not scope.holds(Reach(nodes=(Placed("zurich", {"line": "3"}),)))
    assert beyond([right("operator", "lyon")], [line]) == "" and beyond([line], [line]) == ""
    assert beyond([line], [right("operator", "lyon")]) and beyond(
        [line], [right("operator", "lyon", labels="line=4")]
    )
    assert str(line) == "operator@lyon[line=3]"


@pytest.mark.parametrize(
    "labels", ["", "all", "site=lyon", "standing=healthy,line=3", "line=", "(", "node=x"]
)
async def test_c16_labels_that_are_none_make_no_right(live: Live, labels: str) -> None:
    rights = [{"role": "viewer", "sites": "all", "labels": labels}]
    status, _ = await live.call("POST", "/api/v1/tokens", {"name": "ci", "rights": rights})
    assert status in (400, 422)


def test_c16_no_site_is_never_every_site() -> None:
    lyon = at_sites("lyon")
    assert not NOWHERE.holds(Reach(frozenset({"lyon"}))) and not NOWHERE.touches(Reach(None))
    assert NOWHERE.narrowed(None) == NOWHERE == NOWHERE.narrowed("lyon") == lyon.narrowed("paris")
    assert not lyon.touches(Reach(None)) and not lyon.holds(Reach(None)) and EVERYWHERE.holds(Reach(None))
    assert EVERYWHERE.narrowed("lyon") == lyon and EVERYWHERE.covers(lyon) and not lyon.covers(EVERYWHERE)
    assert not is_admin([right("admin", "lyon")]) and is_admin([right("admin")])
    assert not is_admin([right("admin", labels="line=3")])


@pytest.mark.parametrize("sites", [[], "", "lyon", ["*"], ["all", ""], None])
async def test_c16_rights_over_nothing_or_over_a_wild_name_are_refused(live: Live, sites: object) -> None:
    for rights in ([{"role": "viewer", "sites": sites}], [{"role": "viewer"}], []):
        status, _ = await live.call("POST", "/api/v1/tokens", {"name": "ci", "rights": rights})
        assert status in (400, 422)


# -- things that reach several sites ---------------------------------------------------------------------


async def shared_incident(live: Live) -> str:
    """One drift that nodes of both sites show, and one that only the other site's shows: one incident, begun there."""
    shared = Drift(section="sysctl", key="net.shared", wanted="1", found="2", since=1.0)
    alone = Drift(section="sysctl", key="net.secret-of-zurich", wanted="1", found="9", since=1.0)
    for name, site, drifts in (("zurich-2", OTHER, [shared, alone]), ("factory-2", OWN, [shared])):
        node = await live.node(name, site=site)
        await answer_to(node, node.report(drifts=drifts))
    page = await live.fleet.list_incidents(scope=EVERYWHERE)
    assert page.items[0].nodes == ["factory-2", "zurich-2"] and page.items[0].site == OTHER
    return str(page.items[0].id)


async def test_c09_of_an_incident_each_site_sees_its_own_part(live: Live) -> None:
    await place(live, OTHER)
    incident = await shared_incident(live)
    here = await token_of(live, "operator", OWN)
    for path in (f"/incidents/{incident}", "/incidents", f"/incidents?site={OWN}", "/events?limit=500"):
        status, value = await live.call("GET", "/api/v1" + path, role=None, headers=here)
        assert status == 200 and "factory-2" in str(value) and OTHER not in str(value), path
    _, view = await live.call("GET", f"/api/v1/incidents/{incident}", role=None, headers=here)
    assert (view["site"], view["nodes"], view["nodes_total"]) == (OWN, ["factory-2"], 1)
    _, elsewhere = await live.call("GET", f"/api/v1/incidents?site={OTHER}", role=None, headers=here)
    assert elsewhere == {"items": [], "next": None}
    assert (
        await code(live, "POST", f"/incidents/{incident}/close", {"reason": "x"}, here)
        == "scope.insufficient"
    )
    assert (
        await code(live, "POST", f"/incidents/{incident}/accept", {"reason": "x"}, here)
        == "scope.insufficient"
    )
    assert (await live.fleet.incident(int(incident), scope=EVERYWHERE)).state == "open"
    assert (
        await code(live, "POST", f"/incidents/{incident}/close", {"reason": "x"}, _header("operator"))
        == "200"
    )


def test_c09_a_finding_is_shown_where_a_node_shows_the_very_same() -> None:
    one, other = (Finding(code="boot.pcr", detail=f"PCR 9: wanted a, found {v}", pcr=9) for v in "bc")
    assert judge.key_of(one) != judge.key_of(other)


async def test_c13_figures_are_of_ones_own_sites(live: Live) -> None:
    places = [await place(live, OTHER), await place(live, OWN)]
    here = await token_of(live, "viewer", OWN)
    _, all_ = await live.call("GET", "/api/v1/status", role="viewer")
    _, own = await live.call("GET", "/api/v1/status", role=None, headers=here)
    for name in ("connected", "sites", "incidents_open", "enrolments_waiting"):
        assert (own["fleet"][name], all_["fleet"][name]) == (1, 2), name  # type: ignore[index]
    assert (own["sessions"], all_["sessions"]) == (1, len(places))
    assert sum(own["fleet"]["nodes"].values()) == 1  # type: ignore[index]
    _, figures = await live.call("GET", "/metrics", role=None, headers=here)
    _, whole = await live.call("GET", "/metrics", role="viewer")
    assert b"ringfence_sites 1.0" in figures["text"] and b"ringfence_reports" not in figures["text"]  # type: ignore[operator]
    assert b"ringfence_sites 2.0" in whole["text"] and b"ringfence_reports" in whole["text"]  # type: ignore[operator]


async def test_c09_an_enrolment_that_names_no_site_is_nobodys_until_it_has_one(live: Live) -> None:
    await place(live, OTHER)
    lost = await waiting(live, "stray", None)
    here = await token_of(live, "installer", OWN)
    assert await code(live, "POST", f"/enrolments/{lost}/approve", {"site": OWN}, here) == "enrolment.unknown"
    mine = await waiting(live, "mine", OWN)
    assert await code(live, "POST", f"/enrolments/{mine}/approve", {"site": OTHER}, here) == "site.unknown"
    assert await code(live, "POST", f"/enrolments/{mine}/approve", {}, here) == "200"
    assert (
        await code(live, "POST", f"/enrolments/{lost}/approve", {"site": OWN}, _header("installer")) == "200"
    )


async def test_c09_a_node_that_says_another_site_is_still_where_it_is_bound(live: Live) -> None:
    """A node of the other site comes with new keys and claims to be here: nobody here lets it in."""
    from tests.parts.fleets import finish_of, issue, request

    await place(live, OTHER)
    first = request("mixer", site=OTHER)
    begun = await live.fleet.begin_enrolment(first, now=time.time())
    await live.fleet.finish_enrolment(finish_of(begun, first), issue, now=time.time())
    await live.fleet.approve(begun, actor="tester", now=time.time())
    anew = request("mixer", ak="new-disk", site=OWN)
    again = await live.fleet.begin_enrolment(anew, now=time.time())
    assert await live.fleet.finish_enrolment(finish_of(again, anew), issue, now=time.time()) is None
    here = await token_of(live, "installer", OWN)
    body = {"replace": True}
    assert await code(live, "POST", f"/enrolments/{again}/approve", body, here) == "scope.insufficient"
    there = await token_of(live, "installer", OTHER)
    assert await code(live, "POST", f"/enrolments/{again}/approve", body, there) == "scope.insufficient"
    assert await code(live, "POST", f"/enrolments/{again}/approve", body, _header("installer")) == "200"


async def test_c09_a_name_of_another_site_cannot_be_reserved_here(live: Live) -> None:
    other = await place(live, OTHER)
    here = await token_of(live, "installer", OWN)
    ek = (await live.fleet.node("zurich-1")).ek_id
    for body, told in (
        ({"ek_id": "ab" * 32, "site": OWN, "node": "zurich-1"}, "enrolment.reserved"),
        ({"ek_id": ek, "site": OWN}, "enrolment.ek-in-use"),
    ):
        status, problem = await live.call("POST", "/api/v1/preregistrations", body, role=None, headers=here)
        assert (status, problem["code"]) == (409, told)
        assert other.site not in str(problem["detail"]).replace("zurich-1 is a node elsewhere", "")
    token = {"site": OWN, "node": "zurich-1"}
    assert await code(live, "POST", "/enrolment-tokens", token, here) == "enrolment.reserved"


async def test_what_is_out_of_scope_is_answered_as_what_does_not_exist(live: Live) -> None:
    await place(live, OTHER)
    here = await token_of(live, "admin", OWN)
    for there, nowhere in (
        ("/nodes/zurich-1", "/nodes/zurich-9"),
        ("/sites/zurich", "/sites/winterthur"),
        ("/nodes/zurich-1/evidence", "/nodes/zurich-9/evidence"),
    ):
        answers = [await live.call("GET", "/api/v1" + p, role=None, headers=here) for p in (there, nowhere)]
        told = [
            str(answer).replace(p.split("/")[2], "X")
            for answer, p in zip(answers, (there, nowhere), strict=True)
        ]
        assert told[0] == told[1] and answers[0][0] == 404


async def test_c09_a_cursor_outside_the_scope_tells_nothing(live: Live) -> None:
    places = [await place(live, OWN), await place(live, OTHER)]
    here = await token_of(live, "viewer", OWN)
    for sort in ("node", "site", "standing", "last_report_at", "standing_since"):
        for descending in ("false", "true"):
            pages = [
                await live.call(
                    "GET",
                    f"/api/v1/nodes?sort={sort}&descending={descending}&cursor={name}",
                    role=None,
                    headers=here,
                )
                for name in ("zurich-1", "a-node-that-nobody-has", "zz-nobody")
            ]
            assert pages[0] == pages[1] == pages[2], (sort, descending)
    assert len(places) == 2


# -- rights that are given -------------------------------------------------------------------------------


def _header(role: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {TOKENS[role]}"}  # type: ignore[index]


async def test_c09_a_right_over_labels_ends_where_they_end(live: Live) -> None:
    """Of two nodes of one site, one has the label: the other, and what is the whole site's, are not there."""
    mine, others = await live.node("mine-1"), await live.node("others-1")
    for node in (mine, others):
        drift = Drift(section="sysctl", key=node.identity.name, wanted="1", found="2", since=1.0)
        await answer_to(node, node.report(drifts=[drift]))
    admin = _header("admin")
    label = {"labels": {"line": "3"}, "reason": "its place"}
    assert await code(live, "PUT", "/nodes/mine-1/labels", label, admin) == "200"
    here = await live.token(
        "line-3", "rfa_line-3".ljust(47, "x"), right("operator", OWN, labels="line in (3,4)")
    )
    for path in (
        "/nodes",
        "/incidents",
        "/events?limit=500",
        "/grants",
        "/holds",
        "/nodes?selector=!retired",
    ):
        _, value = await live.call("GET", "/api/v1" + path, role=None, headers=here)
        assert "others-1" not in str(value), path
        assert path in ("/grants", "/holds") or "mine-1" in str(value), path
    for path in ("/sites", "/references", "/enrolments", "/preregistrations", "/rollouts"):
        _, value = await live.call("GET", "/api/v1" + path, role=None, headers=here)
        assert value["items"] == [], path
    _, status = await live.call("GET", "/api/v1/status", role=None, headers=here)
    assert sum(status["fleet"]["nodes"].values()) == status["fleet"]["connected"] == status["sessions"] == 1  # type: ignore[index]
    reason = {"reason": "look"}
    assert await code(live, "POST", "/nodes/others-1/isolate", reason, here) == "node.unknown"
    assert await code(live, "POST", f"/sites/{OWN}/isolate", reason, here) == "site.unknown"
    assert await code(live, "PUT", "/nodes/mine-1/labels", label, here) == "role.insufficient"
    assert await code(live, "POST", "/nodes/mine-1/isolate", reason, here) == "200"
    moved = {"labels": {"line": "5"}, "reason": "moved"}
    assert await code(live, "PUT", "/nodes/mine-1/labels", moved, admin) == "200"
    assert await code(live, "POST", "/nodes/mine-1/release", reason, here) == "node.unknown"


async def test_c09_a_plan_means_nodes_in_scope_whoever_carries_it_out(live: Live) -> None:
    own, other = await place(live, OWN), await place(live, OTHER)
    here = await token_of(live, "operator", OWN)
    everybody = {"baseline": "factory", "selector": "all"}
    _, plan = await live.call("POST", "/api/v1/plans", everybody, role=None, headers=here)
    assert plan["sites"] == [OWN] and OTHER not in str(plan)
    _, whole = await live.call("POST", "/api/v1/plans", everybody)
    assert whole["sites"] == [OWN, OTHER]
    assert await code(live, "GET", f"/plans/{whole['id']}", None, here) == "plan.unknown"
    beyond_ = {"plan": whole["id"], "reason": "x"}
    assert await code(live, "POST", "/rollouts", beyond_, here) == "plan.unknown"
    for at, headers in ((own, here), (other, _header("operator"))):
        assert (
            await code(live, "POST", f"/rollouts/{at.names['rollout']}/abort", {"reason": "x"}, headers)
            == "200"
        )
    # Carried out by somebody for whom everything is in scope, it is about the same nodes.
    status, made = await live.call("POST", "/api/v1/rollouts", {"plan": plan["id"], "reason": "x"})
    assert status == 201, made
    _, nodes = await live.call("GET", f"/api/v1/rollouts/{made['id']}/nodes")
    assert [each["site"] for each in nodes["items"]] == [OWN]  # type: ignore[attr-defined]


def test_c09_a_selector_within_a_scope_says_so_itself() -> None:
    lyon = scope_of([right("operator", "lyon")], "incident.suppress")
    assert lyon is not None
    for text, inside in (
        ("site=lyon", True),
        ("site in (lyon),line=3", True),
        ("site in (lyon,paris)", False),
        ("site!=paris", False),
        ("line=3", False),
        ("all", False),
    ):
        assert lyon.holds_all(parse_selector(text)) is inside, text
        assert EVERYWHERE.holds_all(parse_selector(text)) and not NOWHERE.holds_all(parse_selector(text))
    assert str(lyon.limited(parse_selector("line=3"))) == "line=3,site=lyon"
    assert str(lyon.limited(parse_selector("site in (lyon,paris)"))) == "site in (lyon,paris),site=lyon"
    line = scope_of([right("operator", "lyon", labels="line=3")], "incident.suppress")
    assert line is not None and not line.holds_all(parse_selector("site=lyon"))
    assert line.holds_all(line.limited(parse_selector("all")))
    both = scope_of(
        [right("operator", "lyon", labels="line=3"), right("operator", "paris")], "incident.suppress"
    )
    assert both is not None and str(both.limited(parse_selector("site=paris"))) == "site=paris"
    with pytest.raises(Rejected, match=r"scope\.several"):
        both.limited(parse_selector("all"))


async def test_c09_what_is_kept_quiet_is_kept_quiet_in_scope_alone(live: Live) -> None:
    await place(live, OTHER)
    here = await token_of(live, "operator", OWN)
    body = {"selector": "all", "kind": "drift", "until": time.time() + 600, "reason": "known"}
    _, made = await live.call("POST", "/api/v1/suppressions", body, role=None, headers=here)
    assert made["selector"] == f"site={OWN}"
    _, whole = await live.call("POST", "/api/v1/suppressions", body)
    assert whole["selector"] == "all"
    _, listed = await live.call("GET", "/api/v1/suppressions", role=None, headers=here)
    assert [each["id"] for each in listed["items"]] == [made["id"]]  # type: ignore[attr-defined]
    end = {"reason": "over"}
    assert await code(live, "POST", f"/suppressions/{whole['id']}/end", end, here) == "suppression.unknown"
    assert await code(live, "POST", f"/suppressions/{made['id']}/end", end, here) == "200"


async def test_c09_no_role_raises_itself_or_another(live: Live) -> None:
    await place(live, OTHER)
    here = await token_of(live, "admin", OWN)
    for rights in (
        [{"role": "admin", "sites": "all"}],
        [{"role": "viewer", "sites": [OWN, OTHER]}],
        [{"role": "viewer", "sites": [OWN]}, {"role": "viewer", "sites": "all"}],
    ):
        body = {"name": "more", "rights": rights}
        assert await code(live, "POST", "/tokens", body, here) == "rights.beyond"
        change = {"rights": rights, "reason": "more"}
        assert await code(live, "PUT", "/tokens/bot-factory/rights", change, here) in {
            "rights.beyond",
            "token.unknown",
        }
        assert await code(live, "PUT", f"/tokens/admin-at-{OWN}/rights", change, here) == "rights.beyond"
    for method, path, body in (
        ("PUT", "/tokens/admin/rights", {"rights": [{"role": "viewer", "sites": [OWN]}], "reason": "x"}),
        ("POST", "/tokens/admin/renew", {}),
        ("DELETE", "/tokens/admin", None),
    ):
        assert await code(live, method, path, body, here) == "token.unknown"
    made = {"name": "less", "rights": [{"role": "admin", "sites": [OWN]}]}
    assert await code(live, "POST", "/tokens", made, here) == "201"


async def test_c09_a_token_that_has_several_rights_has_each_where_it_is(live: Live) -> None:
    await place(live, OTHER)
    await place(live, OWN)
    headers = await live.token("mixed", "rfa_mixed".ljust(47, "x"), right("viewer"), right("operator", OWN))
    assert await code(live, "GET", f"/nodes/{OTHER}-1", None, headers) == "200"
    reason = {"reason": "look"}
    assert await code(live, "POST", f"/nodes/{OTHER}-1/isolate", reason, headers) == "node.unknown"
    assert await code(live, "POST", f"/nodes/{OWN}-1/isolate", reason, headers) == "200"


async def test_the_last_who_manages_everybody_stays(live: Live) -> None:
    now = time.time()
    people, one = live.services.people, ON_THE_MACHINE
    with pytest.raises(Rejected, match=r"people\.last-admin"):
        await people.revoke_token("admin", by=one, now=now)
    with pytest.raises(Rejected, match=r"people\.last-admin"):
        await people.set_token_rights("admin", [right("viewer")], by=one, reason="x", now=now)
    soon = await live.token("second", "rfa_second".ljust(47, "x"), right("admin"))
    results = await asyncio.gather(
        people.revoke_token("admin", by=one, now=now),
        people.revoke_token("second", by=one, now=now),
        return_exceptions=True,
    )
    assert sorted(str(r) for r in results if r is not None) == [
        "people.last-admin: nobody would be left who manages everybody; make another first"
    ]
    assert soon


async def test_a_name_is_given_once_and_a_new_secret_ends_the_old_one(live: Live) -> None:
    _, made = await live.call("POST", "/api/v1/tokens", {"name": "ci", "rights": VIEWER})
    old = {"Authorization": f"Bearer {made['token']}"}
    _, renewed = await live.call("POST", "/api/v1/tokens/ci/renew", {})
    new = {"Authorization": f"Bearer {renewed['token']}"}
    assert [await code(live, "GET", "/me", None, each) for each in (old, new)] == ["token.invalid", "200"]
    _, listed = await live.call("GET", "/api/v1/tokens", role="auditor")
    [ci] = [t for t in listed["items"] if t["name"] == "ci"]  # type: ignore[attr-defined]
    assert ci["used_at"] is not None and ci["created_by"] == "admin"
    assert 89 * 86400 < ci["expires_at"] - time.time() < 91 * 86400
    assert await code(live, "DELETE", "/tokens/ci", None, _header("admin")) == "204"
    assert await code(live, "GET", "/me", None, new) == "token.invalid"
    again = {"name": "ci", "rights": VIEWER}
    assert await code(live, "POST", "/tokens", again, _header("admin")) == "token.exists"
    assert await code(live, "DELETE", "/tokens/ci", None, _header("admin")) == "token.unknown"


async def test_who_asked_does_not_approve_with_a_token_of_their_own(live: Live) -> None:
    """The name differs, the person does not: a token counts as whoever made it, also through another token."""
    at = await place(live, OWN)
    busy = f"/rollouts/{at.names['rollout']}/abort"
    assert await code(live, "POST", busy, {"reason": "make room"}, _header("operator")) == "200"
    admin = Person("admin", (right("admin"),))
    for name, by in (("puppet", admin), ("puppets-puppet", Person("puppet", (right("admin"),)))):
        await live.services.people.add_token(
            name,
            [right("admin")],
            token_digest(f"rfa_{name}".ljust(47, "x")),
            by=by,
            expires_at=None,
            now=time.time(),
        )
    wanted = {
        "node": at.names["node"],
        "who": "A. Technician",
        "company": "Press Works",
        "evidence": "4711",
        "access": {"doors": ["north"]},
        "ends": time.time() + 600,
        "reason": "drive replaced",
    }
    puppets = [{"Authorization": "Bearer " + f"rfa_{n}".ljust(47, "x")} for n in ("puppet", "puppets-puppet")]
    for asking in (_header("admin"), *puppets):
        _, grant = await live.call("POST", "/api/v1/grants", wanted, role=None, headers=asking)
        plan = {"baseline": "factory", "selector": f"site={OWN}"}
        _, planned = await live.call("POST", "/api/v1/plans", plan, role=None, headers=asking)
        rollout_body = {"plan": planned["id"], "reason": "x"}
        _, rollout = await live.call("POST", "/api/v1/rollouts", rollout_body, role=None, headers=asking)
        for kind, number in (("grant", grant["id"]), ("rollout", rollout["id"])):
            approve = f"/{kind}s/{number}/approve"
            for same in (_header("admin"), *puppets):
                assert await code(live, "POST", approve, {"reason": "ok"}, same) == f"{kind}.same-person"
            assert await code(live, "POST", approve, {"reason": "ok"}, _header("approver")) == "200"
        abort = f"/rollouts/{rollout['id']}/abort"
        assert await code(live, "POST", abort, {"reason": "next"}, _header("operator")) == "200"


# -- limits ----------------------------------------------------------------------------------------------


async def test_c10_the_limit_is_exact_when_many_guess_at_once(tmp_path: Path) -> None:
    async with running(tmp_path, limits=Limits(failures_per_minute=7)) as live:

        async def guess(number: int) -> str:
            return await code(live, "GET", "/me", None, {"Authorization": f"Bearer rfa_{number:043}"})

        told = await asyncio.gather(*(guess(number) for number in range(60)))
        assert sorted(told) == ["limit.failures"] * 53 + ["token.invalid"] * 7
        assert await code(live, "GET", "/me", None, _header("admin")) == "limit.failures"


def test_c10_failures_are_forgotten_after_a_minute_and_bounded_in_memory() -> None:
    failures = Failures(2)
    for _ in range(2):
        failures.count("198.51.100.1", 0.0)
    for again in (failures.check, failures.count):
        with pytest.raises(Rejected, match=r"limit\.failures"):
            again("198.51.100.1", 1.0)
    failures.count("198.51.100.1", WINDOW_S)
    failures.check("198.51.100.1", WINDOW_S)
    for number in range(MAX_SOURCES + 10):
        failures.count(str(number), 2.0)
    assert len(failures._seen) == MAX_SOURCES


async def test_who_waits_for_events_is_asked_again_before_they_come(live: Live) -> None:
    here = await token_of(live, "viewer", OWN)
    _, page = await live.call("GET", "/api/v1/events?limit=500", role=None, headers=here)
    after = page["after"]
    waiting_ = asyncio.create_task(code(live, "GET", f"/events?after={after}&wait_s=20", None, here))
    await asyncio.sleep(1.2)
    await live.services.people.revoke_token(f"viewer-at-{OWN}", by=ON_THE_MACHINE, now=time.time())
    await live.call("POST", f"/api/v1/sites/{OWN}/isolate", {"reason": "the event"})
    assert await waiting_ == "token.invalid"
