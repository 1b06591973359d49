"""Every finding of attestation is explained to people, in the command and in the page for auditors."""

from __future__ import annotations

from contract import boot, ima
from contract.codes import CODES, cure_of
from contract.offlinelogs import ADVISORY_CODES
from tests.contract.codetable import PAGE, codes_in_the_tree, page_with_table


def test_every_code_of_the_tree_has_a_meaning_and_a_cure_and_no_other_has() -> None:
    assert codes_in_the_tree() ^ CODES.keys() == set()
    assert all(meaning and cure for meaning, cure in CODES.values())


def test_the_page_for_auditors_holds_the_table() -> None:
    page = PAGE.read_text()
    assert page_with_table(page) == page


def test_the_page_names_what_is_only_worth_a_look() -> None:
    listed = PAGE.read_text().partition("## Findings")[2].partition("<!-- codes")[0]
    for code in ADVISORY_CODES:
        assert code.endswith("-noted") or f"`{code}`" in listed
    assert (
        ADVISORY_CODES - {"boot.not-compared"} | {"ima.catching-up"}
        == boot.ADVISORY_CODES | ima.ADVISORY_CODES
    )


def test_what_is_only_noted_has_the_cure_of_what_is_refused() -> None:
    assert cure_of("ima.violation-noted") == cure_of("ima.violation") != ""
    assert cure_of("no.such-code") == ""
