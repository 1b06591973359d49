"""PCI and Thunderbolt in a sysfs tree of plain files, with the kernel's side of their switches.

`settle` plays the kernel: a PCI device whose `remove` was written goes, one whose address was written to `drivers_probe` is
bound to the driver that the test gave it, `rescan` brings back what was taken away. Real PCI devices of the machine that
runs the tests are never touched.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Card:
    """What is in a PCI slot."""

    vendor: str
    device: str
    kind: str
    driver: str = ""
    """The one that the kernel has for it."""


NVME = Card("144d", "a80a", "010802", "nvme")
GPU = Card("10de", "2204", "030000", "nvidia")
BRIDGE = Card("8086", "9a09", "060400", "pcieport")
SPY = Card("1234", "5678", "088000", "spy")


class PciTree:
    """A PCI bus."""

    def __init__(self, sysfs: Path) -> None:
        self.bus = sysfs / "bus/pci"
        (self.bus / "devices").mkdir(parents=True)
        for name, value in (("drivers_autoprobe", "1"), ("drivers_probe", ""), ("rescan", "")):
            (self.bus / name).write_text(value)
        self._cards: dict[str, Card] = {}

    def plug(self, address: str, card: Card) -> None:
        """Put a card in; it gets its driver at once if the kernel is set so."""
        self._cards[address] = card
        folder = self.bus / "devices" / address
        folder.mkdir()
        for name in ("vendor", "device"):
            (folder / name).write_text(f"0x{getattr(card, name)}\n")
        (folder / "class").write_text(f"0x{card.kind}\n")
        (folder / "remove").write_text("")
        if (self.bus / "drivers_autoprobe").read_text().strip() != "0":
            self._bind(address)

    def driver(self, address: str) -> str:
        """Return the driver that is bound."""
        link = self.bus / "devices" / address / "driver"
        return link.readlink().name if link.is_symlink() else ""

    def there(self) -> list[str]:
        """Return the addresses that the kernel has."""
        return sorted(path.name for path in (self.bus / "devices").iterdir())

    def settle(self) -> None:
        """Do what the kernel does about switches written since."""
        address = (self.bus / "drivers_probe").read_text()
        if address in self.there():
            self._bind(address)
        (self.bus / "drivers_probe").write_text("")
        for folder in list((self.bus / "devices").iterdir()):
            if (folder / "remove").read_text():
                shutil.rmtree(folder)
        if (self.bus / "rescan").read_text():
            (self.bus / "rescan").write_text("")
            for address in set(self._cards) - set(self.there()):
                self.plug(address, self._cards[address])

    def _bind(self, address: str) -> None:
        card = self._cards[address]
        if card.driver and not self.driver(address):
            (self.bus / "devices" / address / "driver").symlink_to(f"../../drivers/{card.driver}")


class ThunderboltTree:
    """One Thunderbolt domain with its host router."""

    def __init__(self, sysfs: Path, *, security: str = "user", protected: bool = True) -> None:
        self.devices = sysfs / "bus/thunderbolt/devices"
        domain = self.devices / "domain0"
        domain.mkdir(parents=True)
        (domain / "security").write_text(security + "\n")
        (domain / "iommu_dma_protection").write_text("1\n" if protected else "0\n")
        self.plug("0-0", "Laptop", "11111111-2222-3333-4444-555555555555", authorized="1")

    def plug(self, place: str, name: str, uuid: str, *, authorized: str = "0") -> Path:
        """Plug a device in."""
        folder = self.devices / place
        folder.mkdir()
        facts = {
            "unique_id": uuid,
            "vendor": "0xd4",
            "device": "0xb070",
            "vendor_name": "CalDigit, Inc.",
            "device_name": name,
            "authorized": authorized,
        }
        for key, value in facts.items():
            (folder / key).write_text(value + "\n")
        return folder

    def authorized(self, place: str) -> bool:
        """Tell whether a device has its tunnel."""
        return (self.devices / place / "authorized").read_text().strip() == "1"
