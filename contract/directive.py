"""A directive: the controller's short-lived, numbered, signed order to one node. It can only choose.

Payload is JSON in a DSSE envelope (https://github.com/secure-systems-lab/dsse, protocol 1.0.2); signing and
opening are in `contract.envelope`. A directive is level-triggered: it says the whole of what is wanted,
and the newest number replaces all before it.
"""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, field

from contract.grant import MAX_CODES, MAX_GRANTS, CodeHash, Grant
from contract.messages import Count, Line, Message, Name, Posture, Seconds, Text

PAYLOAD_TYPE = "application/vnd.ringfence.directive+json"
MAX_FENCED_ADDRESSES = 4096


class WantedBaseline(Message, frozen=True, kw_only=True):
    """Which signed target to hold to. The file comes from the TUF repository and nowhere else."""

    name: Name
    version: Count
    sha256: Annotated[str, Meta(pattern=r"\A[0-9a-f]{64}\Z")]


class Response(Message, frozen=True, kw_only=True):
    """A response by name, with addresses where it takes some. Unknown names refuse the whole directive."""

    name: Name
    addresses: Annotated[list[Line], Meta(max_length=MAX_FENCED_ADDRESSES)] = field(default_factory=list)
    reason: Text = ""


class Directive(Message, frozen=True, kw_only=True):
    """The whole of what the controller wants of one node."""

    node: Name
    number: Count
    issued: Seconds
    expires: Seconds
    """A directive that arrives later than this is refused; one that is in force stays in force."""
    posture: Posture
    reason: Text = ""
    baseline: WantedBaseline | None = None
    responses: Annotated[list[Response], Meta(max_length=64)] = field(default_factory=list)
    grants: Annotated[list[Grant], Meta(max_length=MAX_GRANTS)] = field(default_factory=list)
    """All that are open or to be opened; one that is left out is revoked. The signed baseline bounds each."""
    release: Count = 0
    """A person has released this node: what it had isolated itself over before it accepted this number is over. 0: nobody has."""
    break_glass: Annotated[list[CodeHash], Meta(max_length=MAX_CODES)] = field(default_factory=list)
    """Codes that work offline. One that is left out does not, and what it opened is closed."""

    def __post_init__(self) -> None:
        for named in ([grant.id for grant in self.grants], [code.id for code in self.break_glass]):
            if len(set(named)) != len(named):
                raise ValueError("two grants or two codes under one id")
