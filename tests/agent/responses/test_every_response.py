"""What holds for every response, whoever wrote it."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import cast

import pytest

from agent import responses
from agent.responses import Told, Wanted
from contract.directive import Response as Request
from contract.errors import Rejected
from tests.agent.responses.case import Case

NAMES = sorted(responses.responses())
NOTHING = Wanted()


@pytest.fixture(params=NAMES)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def case(name: str, tmp_path: Path) -> Iterator[Case]:
    module = importlib.import_module(f"tests.agent.responses.test_{name}")
    assert hasattr(module, "case"), f"tests/agent/responses/test_{name}.py must have case(folder)"
    with cast(AbstractContextManager[Case], module.case(tmp_path)) as made:
        yield made


def apply(name: str, case: Case) -> list[Told]:
    response = responses.responses()[name]
    around = case.around(response.wanted(case.request))
    return cast(list[Told], case.run(lambda: response.apply(around, case.request)))


def undo(name: str, case: Case) -> None:
    case.run(lambda: responses.responses()[name].undo(case.around(NOTHING)))


def test_the_responses_are_those_of_the_design() -> None:
    assert set(NAMES) >= {"alert", "fence", "isolate"}


@pytest.mark.parametrize(
    "unknown", ["isolat", "Isolate", "__init__", "os", "../isolate", "isolate.isolate", ""]
)
def test_a07_an_unknown_name_is_refused_and_with_it_the_whole_directive(unknown: str) -> None:
    good = Request(name="alert", reason="x")
    with pytest.raises(Rejected) as refused:
        responses.checked([good, Request(name=unknown)])
    assert refused.value.code == "directive.unknown-response"


def test_a_bad_request_is_refused_before_anything_is_done(name: str, case: Case) -> None:
    before = case.state()
    for bad in case.bad:
        assert bad.name == name
        with pytest.raises(Rejected) as refused:
            responses.checked([case.request, bad])
        assert refused.value.code == "directive.response"
    assert case.state() == before


def test_asking_what_is_wanted_changes_nothing(name: str, case: Case) -> None:
    before = case.state()
    wanted = responses.responses()[name].wanted(case.request)
    assert wanted == responses.responses()[name].wanted(case.request)
    assert case.state() == before


def test_applying_twice_is_applying_once(name: str, case: Case) -> None:
    before = case.state()
    told = apply(name, case)
    once = case.state()
    assert told and (once != before) == case.acts
    again = apply(name, case)
    assert case.state() == once
    assert [each.kind for each in again] == [each.kind for each in told]
    case.passes(responses.responses()[name].wanted(case.request))
    settled = case.state()
    apply(name, case)
    assert case.state() == settled, "nor does it disturb what the pass has made of it"


def test_undo_and_the_pass_that_follows_restore(name: str, case: Case) -> None:
    before = case.state()
    apply(name, case)
    case.passes(responses.responses()[name].wanted(case.request))
    undo(name, case)
    case.passes(NOTHING)
    assert case.state() == before
    undo(name, case)
    case.passes(NOTHING)
    assert case.state() == before


def test_undo_of_what_was_never_applied_changes_nothing(name: str, case: Case) -> None:
    before = case.state()
    undo(name, case)
    assert case.state() == before


def test_a_failure_is_told(name: str, case: Case) -> None:
    if not case.fails:
        pytest.skip("nothing in it can fail")
    before = case.state()
    case.spoil()
    told = apply(name, case)
    assert [(each.kind, each.severity != "info") for each in told] == [(f"{name}.failed", True)]
    assert case.state() == before


def test_what_is_told_fits_into_an_event(name: str, case: Case) -> None:
    for each in apply(name, case):
        assert each.kind.startswith((f"{name}.", f"response.{name}")) and 0 < len(each.summary) <= 2048
        assert all(len(key) <= 256 and len(value) <= 2048 for key, value in each.detail.items())
