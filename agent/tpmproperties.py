"""What a TPM says of its make: TPM2_GetCapability of the fixed properties (TPM 2.0 Part 2, 6.13). For showing only."""

from __future__ import annotations

from typing import Final

from tpm2_pytss import ESAPI, TPM2_CAP

from contract.tpmvendor import maker_of

_FIRST: Final = 0x100
_FAMILY, _REVISION, _MANUFACTURER, _VENDOR, _FIRMWARE = (
    0x100,
    0x102,
    0x105,
    range(0x106, 0x10A),
    (0x10B, 0x10C),
)
_COUNT: Final = 16


def properties(esapi: ESAPI) -> dict[str, str]:
    """Return manufacturer, model, firmware and version of the specification, in words; empty where the TPM has none."""
    _, found = esapi.get_capability(TPM2_CAP.TPM_PROPERTIES, _FIRST, _COUNT)
    said = {int(each.property): int(each.value) for each in found.data.tpmProperties}
    high, low = (said.get(each, 0) for each in _FIRMWARE)
    revision = said.get(_REVISION, 0)
    return {
        "manufacturer": maker_of(f"id:{said[_MANUFACTURER]:08X}") if _MANUFACTURER in said else "",
        "model": "".join(_letters(said.get(each, 0)) for each in _VENDOR).strip(),
        "firmware": f"{high >> 16}.{high & 0xFFFF}.{low >> 16}.{low & 0xFFFF}",
        "specification": f"{_letters(said.get(_FAMILY, 0)).strip()} revision {revision // 100}.{revision % 100:02}",
    }


def _letters(value: int) -> str:
    return value.to_bytes(4, "big").rstrip(b"\0").decode("ascii", "replace")
