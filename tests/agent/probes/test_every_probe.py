"""What holds for every probe, whoever wrote it."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import Any, cast

import pytest

from agent import probes
from agent.probes import UNSEEN, Probe
from contract.baseline import parse_baseline
from contract.errors import Rejected
from contract.messages import Drift
from tests.agent.probes.case import HEAD, Case, probe_of

NAMES = sorted(probes.sections())
NOW = 1_700_000_000.0


def _case(name: str, folder: Path) -> AbstractContextManager[Case]:
    module = importlib.import_module(f"tests.agent.probes.test_{name}")
    assert hasattr(module, "case"), f"tests/agent/probes/test_{name}.py must have case(folder)"
    return cast(AbstractContextManager[Case], module.case(folder))


def _observe(case: Case, probe: Probe[Any], now: float) -> list[Drift]:
    return cast(list[Drift], case.run(lambda: probe.observe(now)))


def _repair(case: Case, probe: Probe[Any], drifts: list[Drift]) -> None:
    case.run(lambda: probe.repair(drifts, NOW))


@pytest.fixture(params=NAMES)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def case(name: str, tmp_path: Path) -> Iterator[Case]:
    with _case(name, tmp_path) as made:
        yield made


def test_the_probes_are_those_of_the_design() -> None:
    assert set(NAMES) >= {"boot", "files", "firewall", "listeners", "sysctl", "usb"}


def test_a_section_without_a_probe_is_refused_with_file_line_and_the_known_ones() -> None:
    with pytest.raises(Rejected) as refused:
        probes.parse_sections(parse_baseline((HEAD + "[sysctls]\n").encode(), file="case.toml"))
    line = HEAD.count("\n") + 1
    known = ", ".join(NAMES)
    assert str(refused.value) == (
        f"baseline.key: case.toml:{line}: sysctls: unknown section; expected one of: {known}"
    )


def test_a_sections_own_mode_is_stronger_than_the_heads() -> None:
    for text, wanted in (("", "enforce"), ('mode = "observe"\n', "observe")):
        baseline = parse_baseline((HEAD + "[sysctl]\n" + text).encode())
        assert probes.mode_of(probes.parse_sections(baseline)["sysctl"], baseline.head) == wanted


def test_unknown_key_is_refused_with_file_line_and_key(name: str, case: Case) -> None:
    head, _, rest = case.toml.partition("\n")
    assert head == f"[{name}]"
    text = f"{HEAD}{head}\nsurely_unknown = 1\n{rest}"
    line = HEAD.count("\n") + 2
    with pytest.raises(Rejected) as refused:
        probes.parse_sections(parse_baseline(text.encode(), file="case.toml"))
    assert refused.value.code == "baseline.key"
    assert refused.value.detail.startswith(f"case.toml:{line}: {name}.surely_unknown: unknown key; expected")


def test_observing_writes_nothing(name: str, case: Case) -> None:
    probe = probe_of(name, case.toml, case.around)
    before = case.trace()
    assert _observe(case, probe, NOW) == []
    assert case.trace() == before
    case.spoil()
    spoilt = case.trace()
    assert _observe(case, probe, NOW + 1) != []
    assert case.trace() == spoilt
    assert dict(case.around.remembered) == {}


def test_a_drift_tells_since_when(name: str, case: Case) -> None:
    probe = probe_of(name, case.toml, case.around)
    assert _observe(case, probe, NOW) == []
    case.spoil()
    first = _observe(case, probe, NOW + 1)
    again = _observe(case, probe, NOW + 5)
    assert first and all(drift.since == NOW + 1 and drift.section == name for drift in first)
    assert [(drift.key, drift.since) for drift in again] == [(drift.key, drift.since) for drift in first]


def test_after_repair_nothing_is_found(name: str, case: Case) -> None:
    probe = probe_of(name, case.toml, case.around)
    case.spoil()
    drifts = _observe(case, probe, NOW)
    _repair(case, probe, drifts)
    left = _observe(case, probe, NOW + 1)
    if case.mends:
        assert left == []
    else:
        assert [drift.key for drift in left] == [drift.key for drift in drifts]


def test_repairing_twice_is_repairing_once(name: str, case: Case) -> None:
    probe = probe_of(name, case.toml, case.around)
    case.spoil()
    drifts = _observe(case, probe, NOW)
    _repair(case, probe, drifts)
    once, remembered = case.state(), dict(case.around.remembered)
    _repair(case, probe, drifts)
    assert case.state() == once
    assert dict(case.around.remembered) == remembered


def test_undo_restores(name: str, case: Case) -> None:
    if not case.undoes:
        pytest.skip("what was repaired cannot be put back")
    case.spoil()
    spoilt = case.state()
    probe = probe_of(name, case.toml, case.around)
    _repair(case, probe, _observe(case, probe, NOW))
    # Another probe object: what undo needs is in what the store keeps, not in memory.
    case.run(probe_of(name, case.toml, case.around).undo)
    assert case.state() == spoilt
    assert dict(case.around.remembered) == {}


def test_d05_a_section_that_stays_lets_nothing_open_while_it_changes_hands(name: str, case: Case) -> None:
    if name == "firewall" or not (case.mends and case.undoes):
        pytest.skip("nothing that undo could open")
    assert case.heirs, "how else may this section say the same?"
    case.spoil()
    probe = probe_of(name, case.toml, case.around)
    _repair(case, probe, _observe(case, probe, NOW))
    shut, trace, remembered = case.state(), case.trace(), dict(case.around.remembered)
    assert remembered
    for toml in (case.toml, *case.heirs):
        probe.successor = probe_of(name, toml, case.around)
        case.run(probe.undo)
        assert (case.state(), dict(case.around.remembered)) == (shut, remembered), toml
        assert case.trace() == trace, toml
    probe = probe.successor
    case.run(probe.undo)  # what was there at first is not lost on the way
    assert dict(case.around.remembered) == {}


def test_a_look_that_fails_is_a_drift(name: str, case: Case) -> None:
    probe = probe_of(name, case.toml, case.around)
    case.blind()
    drifts = _observe(case, probe, NOW)
    assert UNSEEN in [drift.found for drift in drifts]
    assert all("could not look" in drift.wanted for drift in drifts if drift.found == UNSEEN)
    with suppress(OSError, Rejected):  # what `repair` may raise when it could do nothing at all
        _repair(case, probe, drifts)
    assert UNSEEN in [drift.found for drift in _observe(case, probe, NOW + 1)]
