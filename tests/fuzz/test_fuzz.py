"""Every harness with its corpus and with mutations of it: no byte string makes a parser raise anything but Rejected."""

from __future__ import annotations

import re
from contextlib import suppress

import pytest
from hypothesis import HealthCheck, given, settings

from contract.errors import Rejected
from tests.contract.codetable import PAGE
from tests.contract.test_garbage import mutated
from tests.fuzz.table import CORPUS, HARNESSES, MAX_SEED_BYTES, corpus, seeds

SEEDED = seeds()
GOOD = sorted(HARNESSES.keys() - {"offline", "pcr-values"})


@pytest.mark.parametrize("name", HARNESSES)
def test_every_committed_input_is_taken_or_rejected(name: str) -> None:
    inputs = corpus(name)
    assert inputs
    for raw in inputs:
        with suppress(Rejected):
            HARNESSES[name](raw)


@pytest.mark.parametrize("name", HARNESSES)
def test_mutated_input_is_taken_or_rejected(name: str) -> None:
    harness = HARNESSES[name]

    @settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck), database=None)
    @given(mutated(SEEDED[name]))
    def run(raw: bytes) -> None:
        with suppress(Rejected):
            harness(raw)

    run()


def test_the_page_for_auditors_tells_of_every_harness_and_of_no_other() -> None:
    told = PAGE.read_text().partition("## How hard the parsers were tried")[2]
    (listed,) = re.findall(r"Seconds for each harness:\n\n(.*)\.\n", told)
    seconds = dict(part.rsplit(" ", 1) for part in listed.split("; "))
    assert list(seconds) == list(HARNESSES)
    (each, total, took) = re.findall(
        r"--inputs (\d+) .*: ([\d,]+) inputs in (\d+) s", told.replace("\n", " ")
    )[0]
    assert int(total.replace(",", "")) == int(each) * len(HARNESSES)
    assert int(took) == sum(map(int, seconds.values()))


def test_the_corpus_stays_small() -> None:
    files = [path for path in CORPUS.rglob("*") if path.is_file()]
    assert {path.parent.name for path in files} == HARNESSES.keys()
    assert max(path.stat().st_size for path in files) <= 2 * MAX_SEED_BYTES
    assert sum(path.stat().st_size for path in files) < 1024 * 1024
