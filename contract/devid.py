"""Device identity keys: IDevID of the device's maker, LDevID of its owner (IEEE 802.1AR-2018)."""

from __future__ import annotations

from typing import Literal

from msgspec import Struct


class DevId(Struct, frozen=True, kw_only=True):
    """A device identity that was proved: its certificate leads to a configured root, its key lives beside the AK."""

    kind: Literal["idevid", "ldevid"]
    serial: str
    subject: str
    issuer: str
    hardware_type: str = ""
    not_after: float
    root_sha256: str
    certificate_sha256: str
