"""Selectors: what they mean, the same in Python and in both databases, and what they refuse."""

from __future__ import annotations

from itertools import product
from typing import get_args

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import update

from contract.errors import Rejected
from controller.permissions import EVERYWHERE, Part, Placed, Reach, Scope, at_sites
from controller.records import Standing
from controller.selector import MAX_TERMS, Selector, Term, checked_labels, matches, parse_selector
from controller.store import Transaction, selecting
from controller.store.schema import nodes
from tests.parts.fleets import ACTOR, T0, FleetLab

FIELDS = {"node": "press-1", "site": "lyon", "standing": "healthy", "tier": "affirming"}
LABELS = {"line": "3", "area": "hall/b"}


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("all", True),
        ("site=lyon", True),
        ("site=lyon,line in (3,4)", True),
        (" site = lyon , line  in ( 4 , 3 ) ", True),
        ("site!=lyon", False),
        ("line notin (3)", False),
        ("line", True),
        ("!line", False),
        ("!retired", True),
        ("retired!=yes", True),
        ("retired=yes", False),
        ("area=hall/b,standing in (healthy,overdue)", True),
        ("baseline", False),
        ("!baseline", True),
    ],
)
def test_what_a_selector_means(text: str, meant: bool) -> None:
    assert matches(parse_selector(text), FIELDS, LABELS) is meant


@pytest.mark.parametrize("text", ["", " ", "\n"])
def test_c16_an_empty_selector_is_refused_and_never_means_all(text: str) -> None:
    with pytest.raises(Rejected, match=r"selector\.empty"):
        parse_selector(text)


@pytest.mark.parametrize(
    "text",
    [
        ",", "site=", "=lyon", "site=lyon,", ",site=lyon", "site==lyon", "site in ()", "site in (lyon", "site in lyon)",
        "site in ((lyon))", "all,site=lyon", "all=1", "!all", "!", "!!x", "site = lyon lille", "Site=lyon", "a b",
        "site=lyon' OR '1'='1", "site=lyon;drop table nodes", "x" * 64, "site=" + "x" * 64, "site=lyon\x00",
        "site=*", "s%=lyon", "site in (a,,b)", ",".join(f"k{n}" for n in range(MAX_TERMS + 1)),
        "site in (" + ",".join(f"v{n}" for n in range(300)) + ")", "site=é", "x" * 3000,
    ],
)  # fmt: skip
def test_c11_what_is_no_selector_is_refused(text: str) -> None:
    with pytest.raises(Rejected, match=r"selector\.malformed"):
        parse_selector(text)


@given(st.text(max_size=60))
def test_no_text_makes_the_parser_raise_anything_but_rejected(text: str) -> None:
    try:
        selector = parse_selector(text)
    except Rejected:
        return
    assert parse_selector(str(selector)) == selector


@pytest.mark.parametrize(
    ("labels", "why"),
    [
        ({"site": "x"}, "field"), ({"all": "x"}, "field"), ({"": "x"}, "key"), ({"A": "x"}, "key"), ({"a b": "x"}, "key"),
        ({"a": ""}, "wanted"), ({"a": "x y"}, "wanted"), ({"a": "<b>"}, "wanted"), ({"a": "x" * 64}, "wanted"),
        ({f"k{n}": "v" for n in range(33)}, "at most"),
    ],
)  # fmt: skip
def test_c11_labels_are_words(labels: dict[str, str], why: str) -> None:
    with pytest.raises(Rejected, match=why):
        checked_labels(labels)


KEYS = st.sampled_from(["node", "site", "standing", "tier", "baseline", "agent", "line", "area", "none"])
VALUES = st.sampled_from(["n0", "n1", "factory", "shop", "unreachable", "3", "4", "hall/b", "none"])
TERMS = st.one_of(
    st.builds(Term, key=KEYS, operator=st.sampled_from(["has", "hasnot"])),
    st.builds(
        Term,
        key=KEYS,
        operator=st.sampled_from(["in", "notin"]),
        values=st.lists(VALUES, min_size=1, max_size=3, unique=True).map(tuple),
    ),
)
SELECTORS = st.lists(TERMS, max_size=4).map(lambda terms: Selector(terms=tuple(terms)))


async def test_c11_the_database_means_the_same_as_the_rule(lab: FleetLab) -> None:
    for site in ("factory", "shop"):
        await lab.site(site)
    labelled = {"n0": {"line": "3"}, "n1": {"line": "4", "area": "hall/b"}, "n2": {}, "n3": {"area": "3"}}
    for number, (name, labels) in enumerate(labelled.items()):
        await lab.enrol(name, site=("factory", "shop")[number % 2])
        await lab.fleet.set_labels(name, labels, actor=ACTOR, reason="test", now=T0)
    views = (await lab.fleet.list_nodes(scope=EVERYWHERE)).items
    assert {view.node: view.labels for view in views} == labelled
    chosen: list[tuple[Selector, list[str]]] = []

    @settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(SELECTORS)
    def choose(selector: Selector) -> None:
        fields = [{k: getattr(v, k) for k in ("node", "site", "standing", "tier")} for v in views]
        meant = [v.node for v, f in zip(views, fields, strict=True) if matches(selector, f, v.labels)]
        chosen.append((selector, meant))

    choose()
    for selector, meant in chosen:
        assert (
            await lab.store.run(
                lambda tx, s=selector: [row.node for row in selecting.meant(tx, s, EVERYWHERE, 1000)]
            )
            == meant
        ), str(selector)


SCOPES = {
    "everywhere": EVERYWHERE,
    "a site": at_sites("factory"),
    "two sites": at_sites("factory", "shop"),
    "labels": Scope((Part(sites=None, labels="line=3"),)),
    "a site, and labels": Scope((*at_sites("shop").parts, Part(sites=None, labels="line=3"))),
}


@pytest.mark.parametrize("descending", [False, True])
@pytest.mark.parametrize("sort", ["node", "site", "standing", "last_report_at", "standing_since"])
async def test_c11_every_order_of_every_scope_is_that_of_the_values_and_pages_through_it_once(
    lab: FleetLab, sort: selecting.SortKey, descending: bool
) -> None:
    """Equal values, values that are missing, and all five standings; the witness sorts what is there."""
    for site in ("factory", "shop", "yard"):
        await lab.site(site)
    for number in range(15):
        await lab.enrol(f"n{number:02}", site=("factory", "shop", "yard")[number * 7 % 3])
        await lab.fleet.set_labels(
            f"n{number:02}", {"line": str(number % 4)}, actor=ACTOR, reason="x", now=T0
        )

    def spread(tx: Transaction) -> None:
        for number in range(15):
            values = {
                "standing": get_args(Standing)[number * 3 % 5],
                "standing_since": T0 + number % 3,
                "last_report_at": None if number % 5 == 2 else T0 + number * 2 % 4,
            }
            tx.execute(update(nodes).where(nodes.c.node == f"n{number:02}").values(values))

    await lab.store.run(spread)
    views = (await lab.fleet.list_nodes(scope=EVERYWHERE)).items
    for (name, scope), standing in product(SCOPES.items(), (None, "healthy", "overdue")):
        meant = [
            view
            for view in views
            if scope.holds(Reach(nodes=(Placed(view.site, view.labels),)))
            and standing in (None, view.standing)
        ]
        meant.sort(key=lambda view: getattr(view, sort) or 0.0, reverse=descending)  # which is stable
        found: list[str] = []
        after: str | None = None
        while True:
            page = await lab.fleet.list_nodes(
                scope=scope, standing=standing, sort=sort, descending=descending, after=after, limit=4
            )
            found += [view.node for view in page.items]
            if (after := page.next) is None:
                break
        assert found == [view.node for view in meant], (name, standing)


@pytest.mark.parametrize("descending", [False, True])
@pytest.mark.parametrize("sort", ["node", "site", "standing", "last_report_at", "standing_since"])
async def test_every_order_pages_through_every_node_once(
    lab: FleetLab, sort: selecting.SortKey, descending: bool
) -> None:
    for site in ("factory", "shop"):
        await lab.site(site)
    for number in range(7):
        await lab.enrol(f"n{number}", site=("factory", "shop")[number % 2])
    whole = [
        v.node for v in (await lab.fleet.list_nodes(scope=EVERYWHERE, sort=sort, descending=descending)).items
    ]
    found: list[str] = []
    after: str | None = None
    while True:
        page = await lab.fleet.list_nodes(
            scope=EVERYWHERE, sort=sort, descending=descending, after=after, limit=2
        )
        found += [view.node for view in page.items]
        if (after := page.next) is None:
            break
    assert found == whole
    assert sorted(found) == [f"n{number}" for number in range(7)]
