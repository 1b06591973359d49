"""The fleet's response rules: when something is seen, where, then do this. Pure.

A rule speaks once its count is reached. Then it decides about isolation in place of the site's own policy (`SitePolicy`)
for what made it speak, and whatever that policy alone would have done is said beside it, never dropped in silence. A rule
that is not reached, that only alerts, or whose stage is `observe` leaves the site's policy in force.

Whatever the rules say:
1. nothing is isolated or fenced past the breaker, and nothing for a value that so many other nodes have as well
2. what the brake holds back becomes a recommendation, and a person decides
3. one node has one hold at most: a fence may become an isolation, never the other way round

Refuses to do: count (controller.store.responding), read a clock or a database.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence
from functools import lru_cache
from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta

from contract.errors import Rejected
from contract.toml import convert_toml, parse_toml, refuse_key
from controller import judge
from controller.judge import Appraisal, FleetFacts, Suspicion
from controller.policy import BreakerLimits, SitePolicy
from controller.records import Record, Strict
from controller.selector import Selector, matches, parse_selector

MAX_RULES: Final = 64
MAX_RULES_BYTES: Final = 48 * 1024
Act = Literal["isolate-node", "isolate-site", "fence", "alert", "recommend"]
Stage = Literal["observe", "recommend", "act"]
Pattern = Annotated[str, Meta(max_length=128, pattern=r"^([a-z0-9][a-z0-9_-]*(\.[a-z0-9_-]+)*(\.\*)?)?$")]
"""A kind or a code; `boot.*` is every one that begins with `boot.`."""
_OWN_EVENTS: Final = ("node.", "site.", "incident.", "isolation.", "response.")


class When(Strict, frozen=True, kw_only=True):
    """What makes a rule speak: exactly one of the first four, so often, on so many nodes of a site, within so many seconds."""

    event: Pattern = ""
    """Kind of an agent's event."""
    finding: Pattern = ""
    """Code of a finding, or of a refusal of evidence."""
    drift: Pattern = ""
    """Section."""
    incident: Literal["", "untrusted", "drift", "update"] = ""
    """Kind of the incident it would make."""
    count: Annotated[int, Meta(ge=1, le=1000)] = 1
    """Of one node; of all nodes of a site together where `nodes` is more than one."""
    nodes: Annotated[int, Meta(ge=1, le=1000)] = 1
    within_s: Annotated[float, Meta(gt=0, le=7 * 86400)] = 600.0


class Rule(Strict, frozen=True, kw_only=True):
    """One `[[rule]]`."""

    name: Annotated[str, Meta(max_length=63, pattern=r"^[a-z0-9][a-z0-9_-]*$")]
    when: When
    where: Annotated[str, Meta(max_length=2048)] = "all"
    then: Annotated[tuple[Act, ...], Meta(min_length=1, max_length=5)]
    stage: Stage = "observe"

    @property
    def speaks(self) -> bool:
        """Whether it decides in place of the site's policy."""
        return self.stage != "observe" and bool(set(self.then) - {"alert"})

    @property
    def key(self) -> str:
        """By what it is counted: a rule that is changed counts from the beginning, one that stays goes on."""
        return hashlib.sha256(msgspec.json.encode((self.name, self.when, self.where))).hexdigest()[:32]


class ResponsePolicy(Strict, frozen=True, kw_only=True):
    """The whole document."""

    rule: tuple[Rule, ...] = ()


class Subject(Record, frozen=True, kw_only=True):
    """The node that something was seen on, as selectors know it."""

    fields: Mapping[str, str]
    labels: Mapping[str, str]


class Seen(Record, frozen=True, kw_only=True):
    """One event of an agent that is new here."""

    id: int
    kind: str
    summary: str


class Heard(Record, frozen=True, kw_only=True):
    """A rule and what it was about, before anything is counted."""

    rule: Rule
    suspicions: tuple[Suspicion, ...] = ()
    events: tuple[Seen, ...] = ()


class Order(Record, frozen=True, kw_only=True):
    """One thing to be done, and why."""

    act: Act
    by: str
    """The rule, or the policy of the site."""
    why: str
    events: tuple[int, ...] = ()
    """Of the agent, that led to it."""


class Verdict(Record, frozen=True, kw_only=True):
    """What follows from a report."""

    orders: tuple[Order, ...]
    recommend: tuple[str, ...]
    said: tuple[str, ...]
    """For the incident: what was only observed, and where a rule and the site's policy differ."""
    questions: Mapping[str, int]


def parse_responses(untrusted: bytes, *, file: str) -> ResponsePolicy:
    """Parse and check a document. Raises Rejected `response.syntax`, `response.key`, `response.too-large`, each with file
    and line."""
    if len(untrusted) > MAX_RULES_BYTES:
        raise Rejected("response.too-large", f"{file}: {len(untrusted)} bytes, at most {MAX_RULES_BYTES}")
    data, text = parse_toml(untrusted, file=file, code="response")
    policy = convert_toml(data, ResponsePolicy, text=text, file=file, code="response")
    if len(policy.rule) > MAX_RULES:
        raise refuse_key(
            ("rule", MAX_RULES), f"expected at most {MAX_RULES} rules", text=text, file=file, code="response"
        )
    names: set[str] = set()
    for number, rule in enumerate(policy.rule):
        fault = _fault(rule, names)
        if fault is not None:
            key, expected = fault
            raise refuse_key(("rule", number, *key), expected, text=text, file=file, code="response")
        names.add(rule.name)
    return policy


def _fault(rule: Rule, names: Collection[str]) -> tuple[tuple[str, ...], str] | None:
    if rule.name in names:
        return ("name",), f"expected a name of its own, {rule.name} is taken"
    named = [each for each in ("event", "finding", "drift", "incident") if getattr(rule.when, each)]
    if len(named) != 1:
        return ("when",), "expected exactly one of event, finding, drift, incident"
    if rule.when.event.startswith(_OWN_EVENTS):
        return (
            "when",
            "event",
        ), "expected an event of agents: what the controller tells itself starts no rule"
    if rule.when.count < rule.when.nodes and rule.when.count > 1:
        return ("when", "count"), "expected no less than nodes"
    if len(set(rule.then)) != len(rule.then):
        return ("then",), "expected each act once"
    if {"fence", "isolate-node"} <= set(rule.then):
        return ("then",), "expected fence or isolate-node: an isolated node is fenced as well"
    try:
        parse_selector(rule.where)
    except Rejected as rejected:
        return ("where",), f"expected a selector: {rejected.detail}"
    return None


@lru_cache(maxsize=4)
def compiled(document: str) -> tuple[tuple[Rule, Selector], ...]:
    """Return the rules of a stored document, which was checked when it was stored, with their selectors."""
    policy = parse_responses(document.encode(), file="responses")
    return tuple((rule, parse_selector(rule.where)) for rule in policy.rule)


def fits(pattern: str, text: str) -> bool:
    """Whether a pattern means this kind or code; an empty one means none."""
    return text.startswith(pattern[:-1]) if pattern.endswith(".*") else bool(pattern) and text == pattern


def hear(
    rules: Sequence[tuple[Rule, Selector]],
    subject: Subject,
    fresh: Sequence[Suspicion],
    events: Sequence[Seen],
) -> list[Heard]:
    """Return the rules that mean this node and something of what was seen."""
    heard = []
    for rule, selector in rules:
        if not matches(selector, subject.fields, subject.labels):
            continue
        of = tuple(s for s in fresh if _means(rule.when, s))
        seen = tuple(e for e in events if fits(rule.when.event, e.kind))
        if of or seen:
            heard.append(Heard(rule=rule, suspicions=of, events=seen))
    return heard


def _means(when: When, suspicion: Suspicion) -> bool:
    code = suspicion.finding.code
    if when.drift:
        return code.startswith("drift.") and fits(when.drift, code.removeprefix("drift."))
    return fits(when.finding, code) or (bool(when.incident) and when.incident == suspicion.kind)


def respond(
    appraisal: Appraisal,
    known_keys: Collection[str],
    policy: SitePolicy,
    limits: BreakerLimits,
    facts: FleetFacts,
    *,
    spoken: Sequence[Heard],
) -> Verdict:
    """Say what follows. `spoken`: the rules whose count is reached, in the order in which they are written."""
    taken = {s.key for heard in spoken if heard.rule.speaks for s in heard.suspicions}
    alone = judge.decide(appraisal, known_keys, policy, limits, facts)
    rest = judge.decide(appraisal, {*known_keys, *taken}, policy, limits, facts) if taken else alone
    scales = _Scales(limits, facts)
    site = "the policy of the site"
    if rest.hold_node:
        scales.give("isolate-node", Order(act="isolate-node", by=site, why=rest.hold_node))
    if rest.hold_site:
        scales.give("isolate-site", Order(act="isolate-site", by=site, why=rest.hold_site))
    recommend, said = list(rest.recommend), list[str]()
    for heard in spoken:
        _speak(heard, scales, recommend, said)
    ruled = ", ".join(heard.rule.name for heard in spoken if heard.rule.speaks)
    for act, wanted in (("isolate-node", alone.hold_node), ("isolate-site", alone.hold_site)):
        if wanted and act not in {order.act for order in scales.orders}:
            said.append(
                f"{ruled} spoke in place of the policy of the site, which would {_told(act)}: {wanted}"
            )
    return Verdict(
        orders=tuple(scales.orders), recommend=tuple(recommend), said=tuple(said), questions=alone.questions
    )


def _speak(heard: Heard, scales: _Scales, recommend: list[str], said: list[str]) -> None:
    rule, why = heard.rule, _why(heard)
    by = f"rule {rule.name}"
    if rule.stage == "observe":
        said.append(f"{by} observes: would {', '.join(map(_told, rule.then))}: {why}")
        return
    events = tuple(event.id for event in heard.events)
    for act in rule.then:
        if act == "alert" and judge.shared(heard.suspicions, scales.limits, scales.facts):
            continue  # told already, with the nodes before: five hundred nodes are no five hundred alerts
        if act == "alert":
            scales.orders.append(Order(act="alert", by=by, why=why, events=events))
        elif act == "recommend" or rule.stage == "recommend":
            recommend.append(f"{by}: {_told(act)}: {why}")
        elif not scales.held(act):
            why_not = judge.shared(heard.suspicions, scales.limits, scales.facts) or scales.brake(act)
            if why_not:
                recommend.append(f"{by}: {_told(act)}: not done, {why_not}")
            else:
                scales.give(act, Order(act=act, by=by, why=why, events=events))


def _why(heard: Heard) -> str:
    first = heard.suspicions[0].title if heard.suspicions else heard.events[0].summary
    when = heard.rule.when
    if when.nodes > 1:
        return f"{when.nodes} nodes within {when.within_s:g} s, the last: {first}"
    return first if when.count == 1 else f"{when.count} times within {when.within_s:g} s, the last: {first}"


def _told(act: str) -> str:
    return {
        "isolate-node": "isolate the node",
        "isolate-site": "isolate the site",
        "fence": "fence the node",
        "recommend": "look at the node",
    }.get(act, act)


class _Scales:
    """How much has been ordered by now, weighed against the breaker."""

    def __init__(self, limits: BreakerLimits, facts: FleetFacts) -> None:
        self.limits = limits
        self.facts = facts
        self.orders: list[Order] = []

    def held(self, act: Act) -> bool:
        """Whether the target has what is wanted, or more."""
        if act == "isolate-site":
            return self.facts.site_held
        return self.facts.node_held or (act == "fence" and self.facts.node_fenced)

    def brake(self, act: Act) -> str:
        """Return why not, or nothing."""
        return (
            judge.site_brake(self.limits, self.facts)
            if act == "isolate-site"
            else judge.node_brake(self.limits, self.facts)
        )

    def give(self, act: Act, order: Order) -> None:
        """Order it, and count it."""
        self.orders.append(order)
        facts = self.facts
        if act == "isolate-site":
            self.facts = msgspec.structs.replace(
                facts, site_held=True, site_holds_in_window=facts.site_holds_in_window + 1
            )
        else:
            self.facts = msgspec.structs.replace(
                facts,
                node_held=facts.node_held or act == "isolate-node",
                node_fenced=True,
                node_holds_in_window=facts.node_holds_in_window + 1,
            )


def against(rules: Sequence[Rule], policies: Mapping[str, SitePolicy]) -> list[str]:
    """Say where rules and the policies of sites pull in different directions, for whoever is about to store the rules."""
    notes = []
    for rule in rules:
        grave = rule.when.finding or rule.when.incident == "untrusted"
        if not grave or not rule.speaks:
            continue
        for site, policy in sorted(policies.items()):
            for act, triggers in (
                ("isolate-node", policy.isolate_node_on),
                ("isolate-site", policy.isolate_site_on),
            ):
                notes += _differs(rule, site, act, bool(triggers))
    return notes


def _differs(rule: Rule, site: str, act: str, by_policy: bool) -> list[str]:
    late = rule.when.count > 1 or rule.when.nodes > 1
    does = act in rule.then and rule.stage == "act"
    if by_policy and late and act in rule.then:
        return [
            f"{rule.name}: the policy of site {site} would {_told(act)} at the first; the rule comes after it"
        ]
    if by_policy and not does and not late:
        return [f"{rule.name}: speaks in place of the policy of site {site}, which would {_told(act)}"]
    return []
