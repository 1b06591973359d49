"""Each shipped baseline on a clean Debian 12, twice in a row: nothing changes but what its document says.

The root is made by mmdebstrap (half a minute, once; `tests.parts.cleanroot`). The agent's machine side runs over it in
namespaces of its own; `stat`, /proc/sys, the `nft` program and packets are the witnesses.
"""

from __future__ import annotations

import json
import shutil
import socket
import sys
import tempfile
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.parts import cleanroot
from tests.parts.namespace import Namespace
from tests.parts.topology import Host, Topology

TREE = Path(__file__).parents[2]
DOCUMENTED = tomllib.loads((TREE / "docs/baselines/clean-debian.toml").read_text())
NAMES = sorted(path.stem for path in (TREE / "baselines").glob("*.toml"))
SITES = {"retail": "west"}
"""Whose addresses are in the baseline's zones; the others are of the first."""
_QUIET_S = 0.7
_WRITTEN_FOLDERS = {"etc/modprobe.d", "etc/systemd/system", "etc/systemd/system/timers.target.wants"}


@pytest.fixture(scope="module")
def topology() -> Iterator[Topology]:
    with Topology({"east": 1, "west": 1}) as built:
        yield built


@pytest.fixture(scope="module")
def archive() -> Path:
    return cleanroot.archive()


def applied(name: str, node: Host, folder: Path) -> dict[str, Any]:
    """Run the agent's machine side over a fresh root; return what the child saw."""
    cleanroot.unpack(folder / "root")
    node.namespace.nft("flush ruleset")
    node.namespace.run(
        "unshare", "--pid", "--fork", "--mount", "--mount-proc",
        sys.executable, "-m", "tests.agent.cleannode", TREE / f"baselines/{name}.toml", folder, timeout=300,
    )  # fmt: skip
    found: dict[str, Any] = json.loads((folder / "found.json").read_text())
    return found


def changed(found: dict[str, Any], usb: Path) -> list[str]:
    """Return what the first pass changed, as the document says it."""
    before, after = found["before"], found["first"]
    out = []
    for key, value in before["settings"].items():
        if value != after["settings"][key]:
            out.append(f"{key}: {' '.join(value)} -> {' '.join(after['settings'][key])}")
    for path in sorted({*before["files"], *after["files"]} - _WRITTEN_FOLDERS):
        if path not in before["files"]:
            out.append(f"/{path}: new")
        elif path not in after["files"]:
            out.append(f"/{path}: gone")
        elif before["files"][path] != after["files"][path]:
            out.append(f"/{path}: changed")
    hub = (usb / "bus/usb/devices/usb1").resolve()
    for file in ("authorized_default", "interface_authorized_default", "authorized"):
        if (now := (hub / file).read_text().strip()) != "1":
            out.append(f"usb1 {file}: 1 -> {now}")
    if (now := (usb / "module/usbcore/parameters/authorized_default").read_text().strip()) != "-1":
        out.append(f"usbcore authorized_default: -1 -> {now}")
    return out


def reaches(server: Namespace, client: Namespace, address: str, port: int) -> bool:
    """Say whether a connection from one namespace to the other is made. The listener is there in any case."""
    with server.socket() as listening, client.socket() as asking:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((address, port))
        listening.listen()
        asking.settimeout(_QUIET_S)
        try:
            asking.connect((address, port))
        except OSError:
            return False
        return True


@pytest.mark.parametrize("name", NAMES)
def test_shipped_baseline_on_a_clean_debian_twice(name: str, topology: Topology, archive: Path) -> None:
    site = topology.sites[SITES.get(name, "east")]
    node, documented = site.nodes[0], DOCUMENTED[name]
    folder = Path(tempfile.mkdtemp(prefix="ringfence-clean-"))
    try:
        found = applied(name, node, folder)
        first, second = found["first"], found["second"]
        assert sorted(changed(found, folder / "sys")) == sorted(documented["changes"])
        reported = {f"{section} {key}": seen for section, key, _, seen in first["drifts"]}
        not_its_own = {*DOCUMENTED["by_machine"], *(f"mounts mount {path}" for path in found["kept_mounts"])}
        told = [f"{key}: {seen}" for key, seen in reported.items() if key not in not_its_own]
        assert sorted(told) == sorted(documented["reports"])
        # Twice in a row without a change: not even a write of the same value, and nothing to tell.
        for witness in ("files", "settings", "written", "rules", "drifts", "kinds"):
            assert first[witness] == second[witness], witness
        assert second["healed"] == []
        for reachable, lines in ((True, documented["open"]), (False, documented["closed"])):
            for line in lines:
                port = int(line.split()[1])
                if line.endswith("from the site"):
                    ways = (node.namespace, site.the_client.namespace, node.enclave[0])
                else:
                    outside = topology.outside
                    ways = (outside.namespace, node.namespace, outside.uplink[0])
                assert reaches(*ways, port) == reachable, line
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def test_the_clean_debian_is_a_debian(archive: Path, tmp_path: Path) -> None:
    root = cleanroot.unpack(tmp_path / "root")
    assert (root / "etc/debian_version").read_text().startswith("12")
    assert (root / "usr/sbin/sshd").exists()
    assert not (root / "usr/sbin/ringfence-agent").exists()
