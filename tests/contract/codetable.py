"""The table of finding codes in `docs/attestation.md`: `python -m tests.contract.codetable` writes it anew."""

from __future__ import annotations

import re
from pathlib import Path

from contract.codes import CODES

TREE = Path(__file__).resolve().parents[2]
PAGE = TREE / "docs/attestation.md"
_TABLE = re.compile(r"(<!-- codes:.*?-->\n).*(<!-- end of codes -->)", re.DOTALL)
_CODE = re.compile(r'"((?:quote|ak|tpm|eventlog|boot|ima)\.[a-z0-9]+(?:-[a-z0-9]+)*)"')
_FILES = frozenset({"ak.tpm2b", "ak.pem", "quote.attest", "quote.sig", "eventlog.bin", "ima.bin"})
_OWN = frozenset({"ak.unreadable"})
"""What an auditor gave amiss: told on the terminal, never a finding."""


def table() -> str:
    """Return the table as it must stand in the page."""
    rows = [f"| `{code}` | {meaning} | {cure} |" for code, (meaning, cure) in CODES.items()]
    return "\n".join(["| code | what it means | what to do |", "|---|---|---|", *rows])


def page_with_table(page: str) -> str:
    """Return the page with the table put in."""
    return _TABLE.sub(lambda found: f"{found[1]}{table()}\n{found[2]}", page)


def codes_in_the_tree() -> set[str]:
    """Return every code of these families that a verdict may hold."""
    found: set[str] = set()
    for path in [*(TREE / "contract").glob("*.py"), TREE / "controller/appraisal.py"]:
        if path.name != "codes.py":
            found |= set(_CODE.findall(path.read_text()))
    return {code.removesuffix("-noted") for code in found - _FILES - _OWN}


if __name__ == "__main__":
    PAGE.write_text(page_with_table(PAGE.read_text()))
