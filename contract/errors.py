"""The one error that bad input may cause."""

from __future__ import annotations


class Rejected(Exception):
    """Input from outside was refused.

    `code` is stable, dotted and lower-case (`quote.magic`, `directive.expired`): events, metrics,
    tests and the documentation name it. `detail` is for people; it may quote wanted and found
    values but never a secret.
    """

    def __init__(self, code: str, detail: str = "") -> None:
        super().__init__(f"{code}: {detail}" if detail else code)
        self.code = code
        self.detail = detail
