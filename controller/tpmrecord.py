"""What an enrolment proved of a node's TPM beyond its keys: of which kind and make it is, and who else vouches for it.

One JSON document in the rows of enrolments and nodes: written when a node enrols, read when people look at it.
"""

from __future__ import annotations

import msgspec
from msgspec import Struct

from contract.devid import DevId
from contract.tpmvendor import TpmKind


class TpmRecord(Struct, frozen=True, kw_only=True):
    """Claims of certificates that led to a configured root; nothing here is the node's own word."""

    kind: TpmKind = "unknown"
    manufacturer: str = ""
    """By the TCG's registry of vendor ids; empty where no certificate was believed."""
    model: str = ""
    firmware: str = ""
    """TPM version of the certificate, as its maker wrote it."""
    root_sha256: str = ""
    """Of the root that the EK certificate leads to, hex."""
    notes: tuple[str, ...] = ()
    """What was accepted although it is not as it should be, each beginning with its code."""
    devids: tuple[DevId, ...] = ()


def stored(record: TpmRecord) -> str:
    """Return the column's text."""
    return msgspec.json.encode(record).decode()


def read(text: str) -> TpmRecord:
    """Return what `stored` wrote."""
    return msgspec.json.decode(text, type=TpmRecord)
