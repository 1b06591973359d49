"""`render` prints all that an agent loads: an agent's node and one that was loaded from the print, side by side."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent import checking
from contract.errors import Rejected
from contract.messages import Posture
from tests.agent.rig import CONTROLLER, Rig, baseline
from tests.parts.namespace import Namespace

TREE = Path(__file__).resolve().parents[2]
_MORE = """
[firewall.controller]
interface = "up0"
[[firewall.isolated.inbound]]
zone = "enclave"
protocol = "tcp"
ports = [502]
reason = "safety controller"
"""
RAW = baseline(1, 8080, extra=_MORE).replace(
    b"[firewall.zones.enclave]\n", b'[firewall.zones.enclave]\ninterfaces = ["enc0"]\n'
)


@pytest.fixture
def node() -> Iterator[Namespace]:
    made, far = Namespace("render"), Namespace("render-far")
    for name in ("enc0", "up0"):
        made.batch([f"link add {name} type veth peer name {name} netns {far.name}", f"link set {name} up"])
        far.batch([f"link set {name} up"])
    made.batch(
        ["addr add 10.1.0.2/16 dev enc0", "addr add 10.20.0.2/24 dev up0", "route add default via 10.20.0.1"]
    )
    yield made
    made.remove()
    far.remove()


def rendered(node: Namespace, folder: Path, posture: str) -> str:
    """What the command prints on the node, whose configuration names the controller."""
    config, file = folder / "agent.toml", folder / "factory.toml"
    config.write_text(
        f'node = "press-1"\nstate_dir = "{folder}/state"\n'
        f'[controller]\nurl = "https://{CONTROLLER}:8440"\nca = "/nowhere"\n'
    )
    file.write_bytes(RAW)
    argv = [sys.executable, "-m", "agent.main", "render", file, "--posture", posture, "--config", config]
    return node.run("env", f"PYTHONPATH={TREE}", *argv).stdout


def standing(node: Namespace) -> list[str]:
    """Every line that stands, in any order: tables made in another order are listed in another."""
    shown = re.sub(r"counter packets \d+ bytes \d+", "counter", node.ruleset())
    return sorted(shown.splitlines())


@pytest.mark.parametrize("posture", ["normal", "isolated", "maintenance"])
def test_an_agent_loads_what_is_rendered_and_nothing_else(
    node: Namespace, tmp_path: Path, posture: Posture
) -> None:
    rig = Rig(tmp_path)

    def hold() -> None:
        rig.start()
        rig.adopt(RAW, 1, 1)
        rig.direct(rig.signed(2, posture=posture, wanted=rig.kit.wanted("factory", 1)))
        rig.call(lambda: rig.loop.machine.look("firewall", rig.loop.stance, 0.0))

    node.inside(hold)
    loaded = standing(node)
    rig.stop()
    shown = rendered(node, tmp_path, posture)
    node.run("nft", "flush", "ruleset")
    node.nft(shown)
    assert standing(node) == loaded
    assert "table inet ringfence_guard" in shown
    assert ("table netdev ringfence_cut" in shown) == (posture == "isolated")


def test_what_depends_on_the_moment_is_said(node: Namespace, tmp_path: Path) -> None:
    head = rendered(node, tmp_path, "normal").partition("\n\n")[0]
    assert "grants: none is open" in head
    assert "gateways: those of this machine's routes" in head
    assert "stands for it" not in head


@pytest.mark.parametrize("part", ["guard", "cut"])
def test_check_tries_guard_and_cut_on_the_kernel(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    """A word that no nftables takes stands for a kernel or library that lacks something: `check` must come to it."""
    bad = "add table inet ringfence_guard\nadd rule inet ringfence_guard nowhere accept\n"
    name = "render_guard" if part == "guard" else "render_links"
    monkeypatch.setattr(f"agent.firewall.batches.{name}", lambda *_, **__: bad)
    file = tmp_path / "factory.toml"
    file.write_bytes(RAW)
    with pytest.raises(Rejected, match=r"refused"):
        checking._checked(file, here=False)
