"""Names that cross the wire: nodes, sites, baselines. Strict, so that no other place must escape them."""

from __future__ import annotations

import re

from contract.errors import Rejected

MAX_NAME_CHARS = 63
_NAME = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?", re.ASCII)


def checked_name(untrusted_text: str, what: str = "name") -> str:
    """Return the text if it is a DNS label (RFC 1123, clause 2.1) in lower case; else raise Rejected `name.invalid`."""
    if len(untrusted_text) > MAX_NAME_CHARS or _NAME.fullmatch(untrusted_text) is None:
        shown = untrusted_text[:MAX_NAME_CHARS].encode("unicode_escape").decode()
        raise Rejected(
            "name.invalid",
            f"{what} {shown!r}: wanted 1 to 63 of a-z, 0-9 and '-', beginning and ending with a letter or digit",
        )
    return untrusted_text
