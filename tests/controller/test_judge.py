"""The judge: tiers, freshness, correlation, and that nothing passes which nobody has weighed."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from contract import boot, ima
from contract.errors import Rejected
from contract.messages import Finding, Posture, Tier
from controller.judge import Appraisal, FleetFacts, appraise, appraise_rejection, decide, found_value, weight
from controller.policy import BreakerLimits, DriftingNodes, SitePolicy
from tests.parts.fleets import drift, finding

LIMITS = BreakerLimits()
POLICY = SitePolicy()
QUIET = FleetFacts(
    fleet_nodes=10,
    node_holds_in_window=0,
    site_holds_in_window=0,
    node_held=False,
    site_held=False,
    others={},
)


def _appraise(*findings: Finding, posture: Posture = "normal", wanted: Posture = "normal") -> Appraisal:
    return appraise(findings, (), posture=posture, wanted_posture=wanted, obeyed=True)


def test_nothing_to_say_is_affirming() -> None:
    assert _appraise() == Appraisal(tier="affirming", findings=[], suspicions=[])


@pytest.mark.parametrize(
    ("code", "tier"),
    [
        ("boot.pcr", "contraindicated"),
        ("boot.policy-empty", "contraindicated"),
        ("boot.event-log-missing", "contraindicated"),
        ("eventlog.replay", "contraindicated"),
        ("report.other-node", "contraindicated"),
        ("quote.nonce", "contraindicated"),
        ("verification.failed", "contraindicated"),
        ("something.nobody-has-weighed", "contraindicated"),
        ("", "contraindicated"),
        ("quote.firmware-version", "warning"),
        ("boot.observe.boot.pcr", "warning"),
        ("quote.clock-unsafe", "affirming"),
        ("boot.unannounced", "warning"),
        ("boot.unannounced-and-more", "contraindicated"),
        ("boot.rolled-back", "contraindicated"),
        ("ima.observe.ima.violation", "warning"),
        ("ima.package-updated", "warning"),
        ("ima.violation", "contraindicated"),
    ],
)
def test_weights(code: str, tier: Tier) -> None:
    assert weight(code) == tier
    assert _appraise(Finding(code=code, detail="x")).tier == tier


def _codes_of(package: Path) -> set[str]:
    """Return every code that findings of these modules can have, as they stand in the source."""
    modules = [
        *package.glob("boot*.py"),
        *package.glob("ima*.py"),
        package / "quote.py",
        package / "eventdata.py",
    ]
    found: set[str] = set()
    for path in modules:
        found |= set(re.findall(r'"((?:boot|ima|quote|eventlog)\.[a-z0-9.-]+)"', path.read_text()))
    return found


def test_the_judge_and_the_contract_agree_on_what_is_only_advisory() -> None:
    advisory = boot.ADVISORY_CODES | ima.ADVISORY_CODES
    assert {code for code in advisory if weight(code) == "contraindicated"} == set()
    assert {weight(code) for code in advisory} == {"affirming", "warning"}
    said = _codes_of(Path(boot.__file__).parent)
    assert len(said) > 50
    assert advisory <= said
    assert {code for code in said - advisory if weight(code) != "contraindicated"} == set()


def test_an_unannounced_update_is_a_question_and_isolates_nobody() -> None:
    finding_ = Finding(code="boot.unannounced", detail="the kernel changed: wanted aa, found beef", pcr=9)
    appraisal = _appraise(finding_)
    [suspicion] = appraisal.suspicions
    assert (appraisal.tier, suspicion.kind, suspicion.can_isolate) == ("warning", "update", False)
    facts = msgspec.structs.replace(QUIET, others={suspicion.key: 14})
    policy = SitePolicy(drifting_nodes=DriftingNodes(count=2, window_s=60))
    decision = decide(appraisal, (), policy, LIMITS, msgspec.structs.replace(facts, drifting_others=9))
    assert (decision.hold_node, decision.hold_site, decision.recommend) == ("", "", ())
    assert decision.questions == {"accept it, or look at the nodes: found beef": 14}
    # Together with anything grave it is no shelter.
    both = decide(_appraise(finding_, finding("1234")), (), policy, LIMITS, facts)
    assert both.hold_node


def test_the_worst_finding_decides() -> None:
    mild, grave = Finding(code="quote.clock-unsafe", detail=""), finding("1234")
    assert _appraise(mild).tier == "affirming"
    assert _appraise(mild, grave, Finding(code="quote.firmware-version", detail="")).tier == "contraindicated"


def test_a_posture_that_was_not_taken_is_said_only_of_who_says_he_obeyed() -> None:
    assert [f.code for f in _appraise(posture="normal", wanted="isolated").findings] == ["posture.differs"]
    early = appraise((), (), posture="normal", wanted_posture="isolated", obeyed=False)
    assert early.findings == []


def test_what_was_wanted_before_does_not_make_two_values_of_one() -> None:
    one, two = finding("1234", wanted="aaaa"), finding("1234", wanted="bbbb")
    assert found_value(one) == found_value(two) == "1234"
    [a], [b] = _appraise(one).suspicions, _appraise(two).suspicions
    assert a.key == b.key
    assert a.key != _appraise(finding("1234", pcr=4)).suspicions[0].key
    assert a.key != _appraise(finding("5678")).suspicions[0].key


def test_untrusted_isolates_node_and_site() -> None:
    decision = decide(_appraise(finding("1234")), (), POLICY, LIMITS, QUIET)
    assert decision.hold_node
    assert decision.hold_site
    assert decision.recommend == ()


def test_policy_decides_what_is_isolated() -> None:
    policy = SitePolicy(isolate_node_on=(), isolate_site_on=())
    decision = decide(_appraise(finding("1234")), (), policy, LIMITS, QUIET)
    assert (decision.hold_node, decision.hold_site, decision.recommend) == ("", "", ())


def test_what_is_known_isolates_nobody_again() -> None:
    appraisal = _appraise(finding("1234"))
    decision = decide(appraisal, {s.key for s in appraisal.suspicions}, POLICY, LIMITS, QUIET)
    assert (decision.fresh, decision.hold_node, decision.hold_site) == ([], "", "")


def test_a_warning_isolates_nobody() -> None:
    appraisal = appraise(
        [Finding(code="quote.firmware-version", detail="found 2")],
        [drift("a", "b")],
        posture="normal",
        wanted_posture="normal",
        obeyed=True,
    )
    decision = decide(appraisal, (), POLICY, LIMITS, QUIET)
    assert len(decision.fresh) == 2
    assert (decision.hold_node, decision.hold_site) == ("", "")


def test_c17_the_third_node_with_one_value_is_not_isolated() -> None:
    appraisal = _appraise(finding("1234"), finding("beef", pcr=4))
    keys = [s.key for s in appraisal.suspicions]

    def facts(*others: int) -> FleetFacts:
        return msgspec.structs.replace(QUIET, others=dict(zip(keys, others, strict=True)))

    assert decide(appraisal, (), POLICY, LIMITS, facts(1, 1)).hold_node
    third = decide(appraisal, (), POLICY, LIMITS, facts(2, 2))
    assert (third.hold_node, third.hold_site) == ("", "")
    assert all("update nobody told us about" in text for text in third.recommend)
    assert len(third.recommend) == 2
    # One value of its own, and it is no update: nobody hides behind one.
    assert decide(appraisal, (), POLICY, LIMITS, facts(500, 0)).hold_node


def test_past_the_breaker_it_recommends() -> None:
    facts = msgspec.structs.replace(QUIET, node_holds_in_window=3, site_holds_in_window=1)
    decision = decide(_appraise(finding("1234")), (), POLICY, LIMITS, facts)
    assert (decision.hold_node, decision.hold_site) == ("", "")
    assert [text.split(":")[0] for text in decision.recommend] == ["isolate the node", "isolate the site"]


def test_what_is_held_is_not_held_twice() -> None:
    facts = msgspec.structs.replace(QUIET, node_held=True, site_held=True)
    decision = decide(_appraise(finding("1234")), (), POLICY, LIMITS, facts)
    assert (decision.hold_node, decision.hold_site, decision.recommend) == ("", "", ())


def test_c07_our_own_failure_takes_trust_and_isolates_nobody() -> None:
    appraisal = appraise_rejection(Rejected("verification.failed", "x"), "affirming")
    assert appraisal.tier == "contraindicated"
    decision = decide(appraisal, (), POLICY, LIMITS, QUIET)
    assert len(decision.fresh) == 1
    assert (decision.hold_node, decision.hold_site) == ("", "")


@given(
    code=st.text(max_size=300), detail=st.text(max_size=3000), before=st.sampled_from(["none", "affirming"])
)
def test_c07_no_refused_evidence_ever_raises_a_tier(code: str, detail: str, before: Tier) -> None:
    appraisal = appraise_rejection(Rejected(code, detail), before)
    assert appraisal.tier in {before, "contraindicated"}
    assert len(appraisal.findings) == 1
    assert len(appraisal.findings[0].detail) <= 2048


def test_many_nodes_drifting_each_in_its_own_way_isolate_the_site() -> None:
    policy = SitePolicy(drifting_nodes=DriftingNodes(count=3, window_s=60))
    appraisal = appraise((), [drift("a", "b")], posture="normal", wanted_posture="normal", obeyed=True)
    two = msgspec.structs.replace(QUIET, drifting_others=1)
    three = msgspec.structs.replace(QUIET, drifting_others=2)
    shared = msgspec.structs.replace(three, others={appraisal.suspicions[0].key: 5})
    assert not decide(appraisal, (), policy, LIMITS, two).hold_site
    assert decide(appraisal, (), policy, LIMITS, three).hold_site
    assert not decide(appraisal, (), policy, LIMITS, shared).hold_site
    assert not decide(appraisal, (), policy, LIMITS, three).hold_node
