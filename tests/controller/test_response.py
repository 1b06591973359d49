"""Response rules, pure: what a document may say, when a rule speaks, and that no rule isolates past the breaker."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from contract.errors import Rejected
from controller import response
from controller.breaker import node_budget, window_start
from controller.judge import Appraisal, FleetFacts, appraise, appraise_rejection
from controller.policy import BreakerLimits, SitePolicy
from controller.response import Heard, Rule, Seen, Subject, Verdict, When, hear, parse_responses, respond
from controller.selector import parse_selector
from tests.controller.test_breaker_property import LIMITS, NODES, SITES, STEPS, STORM, TIGHT, Step, _appraisal
from tests.controller.test_judge import LIMITS as BREAKER
from tests.controller.test_judge import QUIET
from tests.parts.fleets import T0, drift, finding

USB_TWICE = """
[[rule]]
name = "usb-twice"
when = { event = "usb.refused", count = 2, within_s = 3600 }
where = "line in (3,4)"
then = ["fence", "alert"]
stage = "act"
"""


@pytest.mark.parametrize(
    ("document", "told"),
    [
        ("[[rule]\n", "f.toml:1"),
        ('[[rule]]\nname = "a"\nthen = ["alert"]\n', "rule[0].when"),
        ('[[rule]]\nname = "a"\nwhen = { event = "x.y" }\nthen = ["wipe"]\n', "f.toml:4: rule[0].then[0]"),
        ('[[rule]]\nname = "a"\nwhen = { event = "x.y" }\nthen = []\n', "f.toml:4: rule[0].then"),
        ('[[rule]]\nname = "a"\nwhen = { evnt = "x.y" }\nthen = ["alert"]\n', "f.toml:3: rule[0].when.evnt"),
        ('[[rule]]\nname = "a"\nwhen = {}\nthen = ["alert"]\n', "exactly one of event"),
        ('[[rule]]\nname = "a"\nwhen = { event = "a", drift = "b" }\nthen = ["alert"]\n', "exactly one"),
        ('[[rule]]\nname = "a"\nwhen = { event = "node.untrusted" }\nthen = ["alert"]\n', "of agents"),
        ('[[rule]]\nname = "a"\nwhen = { event = "*" }\nthen = ["alert"]\n', "rule[0].when.event"),
        ('[[rule]]\nname = "a"\nwhen = { event = "a" }\nwhere = ""\nthen = ["alert"]\n', "f.toml:4"),
        ('[[rule]]\nname = "a"\nwhen = { event = "a" }\nstage = "acts"\nthen = ["alert"]\n', "f.toml:4"),
        ('[[rule]]\nname = "a"\nwhen = { event = "a", count = 2, nodes = 3 }\nthen = ["alert"]\n', "no less than nodes"),
        ('[[rule]]\nname = "a"\nwhen = { event = "a" }\nthen = ["fence", "isolate-node"]\n', "fenced as well"),
        ('[[rule]]\nname = "a"\nwhen = { event = "a" }\nthen = ["alert"]\n' * 2, "f.toml:6: rule[1].name"),
        ("mode = 1\n", "f.toml:1: mode"),
    ],
)  # fmt: skip
def test_a_document_with_a_fault_is_refused_whole_with_file_line_and_key(document: str, told: str) -> None:
    with pytest.raises(Rejected) as caught:
        parse_responses(document.encode(), file="f.toml")
    assert caught.value.code.startswith("response.")
    assert told in caught.value.detail


def test_a_rule_begins_by_observing() -> None:
    text = '[[rule]]\nname = "a"\nwhen = { event = "usb.*" }\nthen = ["isolate-site"]\n'
    [rule] = parse_responses(text.encode(), file="f").rule
    assert (rule.stage, rule.speaks) == ("observe", False)


def _rule(when: When, *then: str, stage: str = "act", where: str = "all") -> Rule:
    return Rule(name="r", when=when, then=then, stage=stage, where=where)  # type: ignore[arg-type]


def _heard(rule: Rule, appraisal: Appraisal, seen: Sequence[Seen] = ()) -> list[Heard]:
    subject = Subject(fields={"node": "a", "site": "lyon"}, labels={"line": "3"})
    return hear([(rule, parse_selector(rule.where))], subject, appraisal.suspicions, seen)


def _respond(
    rule: Rule,
    appraisal: Appraisal,
    facts: FleetFacts = QUIET,
    *,
    policy: SitePolicy | None = None,
    seen: Sequence[Seen] = (),
) -> Verdict:
    spoken = _heard(rule, appraisal, seen)
    return respond(appraisal, (), policy or SitePolicy(), BREAKER, facts, spoken=spoken)


def _bad(*values: str) -> Appraisal:
    found = [finding(value) for value in values]
    return appraise(found, (), posture="normal", wanted_posture="normal", obeyed=True)


def _acts(verdict: Verdict) -> list[str]:
    return [order.act for order in verdict.orders]


def test_where_and_what_decide_whether_a_rule_is_meant() -> None:
    seen = [Seen(id=7, kind="usb.refused", summary="x")]
    nothing = _bad()
    for when, there in (
        (When(event="usb.refused"), True),
        (When(event="usb.*"), True),
        (When(event="usb"), False),
        (When(event="us.*"), False),
        (When(drift="usb"), False),
    ):
        assert bool(_heard(_rule(when, "alert"), nothing, seen)) == there
    drifted = appraise(
        (), [drift("a", "b", section="firewall")], posture="normal", wanted_posture="normal", obeyed=True
    )
    assert _heard(_rule(When(drift="firewall"), "alert"), drifted)
    assert not _heard(_rule(When(drift="fire"), "alert"), drifted)
    assert _heard(_rule(When(finding="boot.*"), "alert", where="site=lyon,line in (3,4)"), _bad("1"))
    assert not _heard(_rule(When(finding="boot.*"), "alert", where="site=lyon,line=5"), _bad("1"))


def test_without_a_rule_the_policy_of_the_site_decides() -> None:
    verdict = respond(_bad("1"), (), SitePolicy(), BREAKER, QUIET, spoken=())
    assert _acts(verdict) == ["isolate-node", "isolate-site"]
    assert {order.by for order in verdict.orders} == {"the policy of the site"}


def test_an_observing_rule_changes_nothing_and_says_what_it_would_do() -> None:
    verdict = _respond(_rule(When(finding="boot.pcr"), "fence", stage="observe"), _bad("1"))
    assert _acts(verdict) == ["isolate-node", "isolate-site"]
    assert [text for text in verdict.said if "would fence the node" in text]


def test_a_rule_that_only_alerts_leaves_isolation_to_the_policy_of_the_site() -> None:
    verdict = _respond(_rule(When(finding="boot.pcr"), "alert"), _bad("1"))
    assert _acts(verdict) == ["isolate-node", "isolate-site", "alert"]
    assert verdict.said == ()


def test_where_a_rule_speaks_in_place_of_the_policy_that_is_said() -> None:
    verdict = _respond(_rule(When(finding="boot.pcr"), "isolate-node"), _bad("1"))
    assert _acts(verdict) == ["isolate-node"]
    assert [
        text
        for text in verdict.said
        if "in place of the policy of the site, which would isolate the site" in text
    ]
    held_back = _respond(_rule(When(finding="boot.pcr"), "isolate-site", stage="recommend"), _bad("1"))
    assert held_back.orders == ()
    assert len(held_back.said) == 2
    assert any("isolate the site" in text for text in held_back.recommend)
    # What it does not speak of stays with the policy.
    both = appraise_rejection(Rejected("quote.signature"), "affirming")
    assert _acts(_respond(_rule(When(finding="boot.pcr"), "fence"), both)) == ["isolate-node", "isolate-site"]


def test_c17_no_rule_isolates_for_a_value_that_many_nodes_have() -> None:
    appraisal = _bad("1")
    many = msgspec.structs.replace(QUIET, others={appraisal.suspicions[0].key: 2})
    verdict = _respond(_rule(When(finding="boot.pcr"), "isolate-node", "isolate-site"), appraisal, many)
    assert verdict.orders == ()
    assert all("update nobody told us about" in text for text in verdict.recommend)


def test_past_the_breaker_a_rule_recommends() -> None:
    spent = msgspec.structs.replace(QUIET, node_holds_in_window=3, site_holds_in_window=1)
    seen = [Seen(id=7, kind="usb.refused", summary="x")]
    rule = _rule(When(event="usb.refused"), "fence", "isolate-site", "alert")
    verdict = _respond(rule, _bad(), spent, seen=seen)
    assert _acts(verdict) == ["alert"]
    assert len(verdict.recommend) == 2
    assert all("breaker" in text for text in verdict.recommend)


def test_contradictions_are_told_before_the_rules_are_stored() -> None:
    policies = {"lyon": SitePolicy(), "nice": SitePolicy(isolate_node_on=(), isolate_site_on=())}
    late = _rule(When(finding="boot.pcr", nodes=3), "isolate-site")
    instead = _rule(When(incident="untrusted"), "isolate-node")
    assert response.against([_rule(When(drift="usb"), "fence")], policies) == []
    assert ["at the first" in note for note in response.against([late], policies)] == [True]
    assert ["in place of the policy of site lyon" in n for n in response.against([instead], policies)] == [
        True
    ]


RULES = st.lists(
    st.builds(
        lambda when, then, stage: Rule(name="r", when=when, then=then, stage=stage),
        st.one_of(
            st.builds(When, finding=st.sampled_from(["boot.*", "boot.pcr", "quote.*"])),
            st.builds(When, drift=st.just("sysctl")),
            st.builds(When, incident=st.sampled_from(["untrusted", "drift"])),
        ),
        st.lists(
            st.sampled_from(["isolate-node", "isolate-site", "fence", "alert", "recommend"]),
            min_size=1,
            unique=True,
        ).map(tuple),
        st.sampled_from(["act", "act", "recommend", "observe"]),
    ),
    max_size=6,
)
FENCE_ALL = [
    _rule(When(incident="untrusted"), "fence"),
    _rule(When(incident="untrusted"), "isolate-node", "isolate-site"),
]


class Model:
    """A fleet in memory: what was ever placed by the controller, and what is in force."""

    def __init__(self, limits: BreakerLimits, rules: Sequence[Rule]) -> None:
        self.limits = limits
        self.rules = [(rule, parse_selector("all")) for rule in rules]
        self.nodes: list[float] = []
        self.sites: list[float] = []
        self.held: dict[str, str] = {}
        self.held_sites: set[int] = set()
        self.known: dict[str, set[str]] = {}

    def judge(self, step: Step, now: float) -> None:
        """One report."""
        appraisal = _appraisal(step)
        since = window_start(self.limits, now)
        facts = FleetFacts(
            fleet_nodes=SITES * NODES,
            node_holds_in_window=sum(at > since for at in self.nodes),
            site_holds_in_window=sum(at > since for at in self.sites),
            node_held=self.held.get(step.name) == "isolate-node",
            site_held=step.site in self.held_sites,
            node_fenced=step.name in self.held,
            others={},
        )
        known = self.known.get(step.name, set())
        fresh = [s for s in appraisal.suspicions if s.key not in known]
        spoken = hear(self.rules, Subject(fields={"node": step.name}, labels={}), fresh, ())
        verdict = respond(appraisal, known, SitePolicy(), self.limits, facts, spoken=spoken)
        for order in verdict.orders:
            if order.act == "isolate-site":
                assert step.site not in self.held_sites
                self.held_sites.add(step.site)
                self.sites.append(now)
            elif order.act in ("isolate-node", "fence"):
                assert self.held.get(step.name) not in ("isolate-node", order.act)
                self.held[step.name] = order.act
                self.nodes.append(now)
        self.known[step.name] = {s.key for s in appraisal.suspicions}


@given(steps=STEPS, limits=LIMITS, rules=RULES)
@example(steps=STORM, limits=TIGHT, rules=FENCE_ALL)
@example(steps=STORM, limits=msgspec.structs.replace(TIGHT, nodes=1), rules=FENCE_ALL)
@settings(max_examples=200, deadline=None)
def test_c17_whatever_the_rules_nothing_is_isolated_past_the_breaker(
    steps: list[Step], limits: BreakerLimits, rules: list[Rule]
) -> None:
    model, now = Model(limits, rules), T0
    for step in steps:
        now += step.after_s
        if step.what == "release":
            model.held.pop(step.name, None)
            model.held_sites.discard(step.site)
        elif not step.what.startswith("isolate"):
            model.judge(step, now)
        for placed, budget in (
            (model.nodes, node_budget(limits, SITES * NODES)),
            (model.sites, limits.sites),
        ):
            for start in placed:
                assert sum(start <= at < start + limits.window_s for at in placed) <= budget
