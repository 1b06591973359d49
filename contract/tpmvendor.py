"""Who makes a TPM, and whether it is a chip, firmware of the processor, or a program: by the TCG's vendor ids.

Reads the manufacturer and model that an EK certificate names (TCG EK Credential Profile 2.5, 3.2.9; TCG TPM Vendor ID
Registry 1.06). It is the word of whoever signed the certificate: worth something once the path has been checked, and
never taken from the node. A maker that is not listed here is `unknown`, and never taken for hardware.
"""

from __future__ import annotations

from typing import Final, Literal

TpmKind = Literal["hardware", "firmware", "virtual", "unknown"]

_MAKERS: Final[dict[str, tuple[str, TpmKind]]] = {
    "AMD": ("AMD", "firmware"),
    "AMZN": ("Amazon", "virtual"),
    "ATML": ("Atmel", "hardware"),
    "BRCM": ("Broadcom", "hardware"),
    "CSCO": ("Cisco", "hardware"),
    "FLYS": ("Flyslice", "hardware"),
    "GOOG": ("Google", "virtual"),
    "HISI": ("Huawei", "firmware"),
    "HPE": ("HPE", "hardware"),
    "HPI": ("HPI", "hardware"),
    "IBM": ("IBM", "unknown"),  # real chips once, the simulators now
    "IFX": ("Infineon", "hardware"),
    "INTC": ("Intel", "firmware"),
    "LEN": ("Lenovo", "hardware"),
    "MSFT": ("Microsoft", "virtual"),
    "NSG": ("NSING", "hardware"),
    "NSM": ("National Semiconductor", "hardware"),
    "NTC": ("Nuvoton", "hardware"),
    "NTZ": ("Nationz", "hardware"),
    "QCOM": ("Qualcomm", "firmware"),
    "ROCC": ("Rockchip", "firmware"),
    "SEAL": ("Wisekey", "hardware"),
    "SECE": ("SecEdge", "firmware"),
    "SMSC": ("SMSC", "hardware"),
    "SMSN": ("Samsung", "firmware"),
    "SNS": ("Sinosun", "hardware"),
    "STM": ("STMicroelectronics", "hardware"),
    "TXN": ("Texas Instruments", "hardware"),
    "VMW": ("VMware", "virtual"),
    "WEC": ("Winbond", "hardware"),
}
# swtpm writes IBM's PCI vendor id where others write four characters.
_VIRTUAL_IDS: Final = frozenset({"id:00001014"})
_VIRTUAL_WORDS: Final = ("swtpm", "vtpm", "virtual", "simulator", "libtpms", "qemu")


def maker_of(manufacturer: str) -> str:
    """Return the maker's name for `id:` and eight hexadecimal digits; the text itself where it is not in the registry."""
    found = _MAKERS.get(_letters(manufacturer))
    return manufacturer if found is None else found[0]


def maker_in(text: str) -> str:
    """Return the maker whose name stands in a text, such as an authority's; "" where none does. For showing only."""
    folded = text.casefold()
    return next((name for name, _ in _MAKERS.values() if name.casefold() in folded), "")


def kind_of(manufacturer: str, model: str) -> TpmKind:
    """Return of which kind the TPM is that a certificate names so."""
    if manufacturer.lower() in _VIRTUAL_IDS or any(word in model.lower() for word in _VIRTUAL_WORDS):
        return "virtual"
    found = _MAKERS.get(_letters(manufacturer))
    return "unknown" if found is None else found[1]


def _letters(manufacturer: str) -> str:
    """Return the four characters behind `id:` without their padding, "" when it is not of that form."""
    if len(manufacturer) != 11 or manufacturer[:3].lower() != "id:":
        return ""
    try:
        return bytes.fromhex(manufacturer[3:]).rstrip(b"\0 ").decode("ascii")
    except ValueError:
        return ""
