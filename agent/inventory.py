"""What this machine consists of, as facts: hardware, firmware, system, TPM, interfaces, models, packages.

Reads only. Text of the machine is made printable and cut (`contract.inventory`); an attribute that cannot be read is left out.
Interfaces that come and go with containers are left out too: a history of those would tell of nothing else.
"""

from __future__ import annotations

import errno
import ipaddress
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final

import psutil

from agent.config import RootsConfig
from agent.osrelease import os_release
from agent.packages import PackageDatabase
from agent.sysfsbuses import PciBus, text
from contract.inventory import Fact, Kind, fitting

_DMI: Final[dict[str, tuple[Kind, str]]] = {
    "sys_vendor": ("hardware", "vendor"),
    "product_name": ("hardware", "product"),
    "product_version": ("hardware", "product version"),
    "product_serial": ("hardware", "serial"),
    "board_vendor": ("hardware", "board vendor"),
    "board_name": ("hardware", "board"),
    "board_version": ("hardware", "board version"),
    "bios_vendor": ("firmware", "vendor"),
    "bios_version": ("firmware", "version"),
    "bios_date": ("firmware", "date"),
    "bios_release": ("firmware", "release"),
    "ec_firmware_release": ("firmware", "embedded controller"),
}
_NAMED_PCI: Final = ("01", "02", "03", "0c", "12")
"""Classes of PCI devices that are told: storage, network, display, serial buses, accelerators."""
_MODEL_NAME: Final = re.compile(rb"^(?:model name|Model|cpu model)\s*:\s*(.+)$", re.MULTILINE)
_MEM_TOTAL: Final = re.compile(rb"^MemTotal:\s+(\d+) kB$", re.MULTILINE)
_MAX_CPUINFO_BYTES: Final = 64 * 1024
_MAX_BYTES: Final = 4096


def machine_facts(roots: RootsConfig) -> list[Fact]:
    """Return hardware, firmware, system and interfaces."""
    root, sysfs, proc = Path(roots.root), Path(roots.sysfs), Path(roots.proc)
    return [*_hardware(sysfs, proc), *_system(root, proc), *_interfaces(sysfs)]


def package_facts(database: PackageDatabase) -> list[Fact]:
    """Return every package; none where there is no database. Raises OSError if a database cannot be read."""
    try:
        found = database.versions()
    except OSError as error:
        if error.errno == errno.ENOENT:
            return []
        raise
    return _fitting(
        (
            "package",
            each.name,
            each.version if each.state == "installed" else f"{each.version} ({each.state})",
        )
        for each in found
    )


def tpm_facts(properties: Mapping[str, str]) -> list[Fact]:
    """Return what the TPM says of itself."""
    return _fitting(("tpm", name, value) for name, value in properties.items())


def model_facts(contents: Mapping[str, str]) -> list[Fact]:
    """Return the files of models by path."""
    return _fitting(("model", path, content) for path, content in contents.items())


def _fitting(found: Iterable[tuple[Kind, str, str]]) -> list[Fact]:
    return [fact for each in found if (fact := fitting(*each)) is not None]


def _hardware(sysfs: Path, proc: Path) -> list[Fact]:
    said: list[tuple[Kind, str, str]] = []
    for attribute, (kind, name) in _DMI.items():
        with suppress(OSError):
            said.append((kind, name, text(sysfs / "class/dmi/id" / attribute, missing="")))
    with suppress(OSError):  # machines without DMI have this
        said.append(("hardware", "model", text(proc / "device-tree/model", missing="").rstrip("\0")))
    with suppress(OSError):
        if found := _MODEL_NAME.search(_head(proc / "cpuinfo", _MAX_CPUINFO_BYTES)):
            said.append(("hardware", "processor", found[1].decode("utf-8", "backslashreplace")))
    said.append(("hardware", "processors", str(os.cpu_count() or "")))
    with suppress(OSError):
        if found := _MEM_TOTAL.search(_head(proc / "meminfo", _MAX_BYTES)):
            said.append(("hardware", "memory", f"{int(found[1]) // 1024} MiB"))
    with suppress(OSError):
        for device in PciBus(sysfs).devices():
            if device.kind[:2] in _NAMED_PCI:
                told = f"{device.vendor}:{device.device} class {device.kind}"
                said.append(("hardware", f"pci {device.address}", told))
    return _fitting(said)


def _system(root: Path, proc: Path) -> list[Fact]:
    said: list[tuple[Kind, str, str]] = [
        ("system", "release", os_release(root)),
        ("system", "architecture", os.uname().machine),
    ]
    for name, file in (("kernel", "osrelease"), ("kernel build", "version")):
        with suppress(OSError):
            said.append(("system", name, text(proc / "sys/kernel" / file, missing="")))
    return _fitting(said)


def _interfaces(sysfs: Path) -> list[Fact]:
    """Interfaces that are hardware, or have an address that others can reach."""
    said: list[tuple[Kind, str, str]] = []
    for name, addresses in sorted(psutil.net_if_addrs().items()):
        reachable = list(_reachable(addresses))
        if not reachable and not (sysfs / "class/net" / name / "device").exists():
            continue
        hardware = [each.address for each in addresses if each.family == psutil.AF_LINK]
        said += [("interface", name, f"mac {address}") for address in hardware]
        said += [("interface", name, address) for address in reachable]
    return _fitting(said)


def _reachable(addresses: Iterable[psutil._ntuples.snicaddr]) -> Iterator[str]:
    for each in addresses:
        try:
            address = ipaddress.ip_address(each.address.partition("%")[0])
            mask = int(ipaddress.ip_address(each.netmask or ""))
        except ValueError:  # a MAC address
            continue
        if not (address.is_loopback or address.is_link_local):
            yield f"{address}/{mask.bit_count()}"


def _head(path: Path, max_bytes: int) -> bytes:
    with path.open("rb") as file:
        return file.read(max_bytes)
