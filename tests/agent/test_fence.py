"""The fence before Python (ATTACKS f12): the real script and the real `nft` in a namespace, packets as witness."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Event

import pytest
from msgspec.structs import replace

from agent import early
from agent.config import load_config
from agent.earlyfile import NAME, EarlyFile, text_of
from agent.responses import Told
from agent.store import State, Store, fresh_state, replace_file
from contract.directive import Response as Request
from contract.messages import Drift
from tests.agent.firewall.lab import opens
from tests.agent.rig import Rig, baseline, in_own_namespace
from tests.agent.test_early import NODE, STATES, TREE, built, configured, normal, observing, passes
from tests.agent.test_early import early as early_step
from tests.agent.test_hold import until
from tests.parts.topology import Topology

FENCE = TREE / "packaging/os/agent/fence"


@pytest.fixture(scope="module")
def topology() -> Iterator[Topology]:
    yield from built()


@pytest.fixture(scope="module")
def lockdown(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The packaged file, as the package's build makes it."""
    path = tmp_path_factory.mktemp("package") / "lockdown.nft"
    maker = TREE / "packaging/os/lockdown.py"
    subprocess.run([sys.executable, maker, path], check=True, env={**os.environ, "PYTHONPATH": str(TREE)})
    return path


@pytest.fixture
def folder(topology: Topology, tmp_path: Path) -> Iterator[Path]:
    yield from configured(topology, tmp_path)


def left_behind(folder: Path, state: State) -> Path:
    """Store a state and leave the file for the next boot, as the agent does; return the file."""
    config = load_config(folder / "agent.toml")
    Store(config.state, NODE).save_state(state)
    told: list[Told] = []
    EarlyFile(config, told.append).follow(state)
    assert told == []
    return config.state / NAME


def fence(
    topology: Topology, rules: Path, lockdown: Path, shell: str = "sh"
) -> subprocess.CompletedProcess[str]:
    return topology.nodes[0].namespace.run(shell, FENCE, rules, lockdown, check=False)


def standing(topology: Topology) -> list[str]:
    """What the kernel holds of family inet: ARP and the cut of interfaces come with the early step."""
    listed = topology.nodes[0].namespace.ruleset()
    tables = [each for each in re.split(r"^(?=table )", listed, flags=re.M) if each.startswith("table inet")]
    return sorted(line for each in tables for line in each.splitlines())


@pytest.mark.parametrize("kind", STATES)
def test_f12_the_fence_loads_what_the_early_step_loads(
    topology: Topology, folder: Path, lockdown: Path, kind: str
) -> None:
    done = fence(topology, left_behind(folder, STATES[kind]()), lockdown)
    assert done.returncode == 0, done.stderr
    first = standing(topology)
    assert any("ringfence_guard" in line for line in first)
    if kind in ("normal", "isolated", "contested", "fresh"):
        assert passes(topology) == (kind == "normal", False, True)
    assert early_step(topology, folder).returncode == 0
    assert standing(topology) == first


FLAWS = ["missing", "empty", "cut at a line", "cut in a line", "flipped", "garbage", "a link", "a folder"]


@pytest.mark.parametrize("damage", [*FLAWS, "another's", "refused"])
def test_f12_a_file_that_cannot_be_believed_or_loaded_is_lock_down(
    topology: Topology, folder: Path, lockdown: Path, damage: str
) -> None:
    path = left_behind(folder, normal())
    content = path.read_bytes()
    if damage in ("missing", "a folder"):
        path.unlink()
    if damage == "empty":
        path.write_bytes(b"")
    elif damage == "cut at a line":  # it would load, and hold nothing
        path.write_bytes(content[: content.index(b"table inet ringfence_guard {")])
    elif damage == "cut in a line":
        path.write_bytes(content[:-300])
    elif damage == "flipped":
        path.write_bytes(content.replace(b"8080", b"9090"))
    elif damage == "garbage":
        path.write_bytes(bytes(range(256)) * 40)
    elif damage == "a link":
        path.rename(folder / "elsewhere.nft")
        path.symlink_to(folder / "elsewhere.nft")
    elif damage == "a folder":
        path.mkdir()
    elif damage == "another's":
        os.chown(path, 12345, -1)
    elif damage == "refused":
        made = early.rules(load_config(folder / "agent.toml"))
        path.write_text(text_of(made._replace(text=made.text + "add rule inet ringfence nowhere drop\n")))
    done = fence(topology, path, lockdown)
    assert done.returncode == 0 and f"lock-down: {path} " in done.stderr
    found = standing(topology)
    if damage in ("missing", "cut at a line"):
        assert passes(topology) == (False, False, False)
    topology.nodes[0].namespace.run("nft", "flush", "ruleset")
    topology.nodes[0].namespace.run("nft", "-f", lockdown)
    assert found == standing(topology)
    assert early_step(topology, folder).returncode == 0
    assert any("8080" in line for line in standing(topology)), "the early step puts it right"


def test_f12_without_even_a_lock_down_the_fence_fails_and_says_so(topology: Topology, folder: Path) -> None:
    done = fence(topology, folder / "none.nft", folder / "none-either.nft")
    assert done.returncode == 1 and "NO RULES ARE IN FORCE" in done.stderr
    good = left_behind(folder, normal())
    assert fence(topology, good, folder / "none-either.nft").returncode == 0
    before = standing(topology)
    done = fence(topology, folder / "none.nft", folder / "none-either.nft")
    assert done.returncode == 1 and standing(topology) == before, "and what stands is left standing"


@pytest.mark.parametrize("shell", ["dash", "bash"])
def test_f12_the_fence_loads_nothing_where_the_baseline_only_observes(
    topology: Topology, folder: Path, lockdown: Path, shell: str
) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"no {shell} here")
    state = replace(normal(), last_good=observing(head="observe", section=""))
    path = left_behind(folder, state)
    done = fence(topology, path, lockdown, shell)
    assert done.returncode == 0 and "only observes the firewall" in done.stderr, done.stderr
    node = topology.nodes[0]
    assert node.namespace.ruleset().strip() == ""
    path.unlink()
    done = fence(topology, path, lockdown, shell)
    assert "is not there" in done.stderr and passes(topology) == (False, False, False)
    done = early_step(topology, folder)
    assert done.returncode == 0 and "taken away" in done.stderr
    assert node.namespace.ruleset().strip() == "", "a lock-down by mistake ends with the early step"
    assert opens(topology.sites["early"].the_client.namespace, node.enclave[0], 9090, 2.0)


@pytest.mark.alone
def test_f12_the_fence_stands_within_300_ms(topology: Topology, folder: Path, lockdown: Path) -> None:
    path = left_behind(folder, normal())
    took_s = []
    for _ in range(5):
        topology.nodes[0].namespace.run("nft", "flush", "ruleset")
        begun = time.monotonic()
        assert fence(topology, path, lockdown).returncode == 0
        took_s.append(time.monotonic() - begun)
    print("fence in force after", ", ".join(f"{each * 1000:.0f}" for each in took_s), "ms")
    assert min(took_s) < 0.3


def test_f12_the_fence_needs_no_more_than_its_unit_leaves_it(
    topology: Topology, folder: Path, lockdown: Path
) -> None:
    unit = (TREE / "packaging/systemd/ringfence-fence.service").read_text()
    assert "\nCapabilityBoundingSet=CAP_NET_ADMIN CAP_DAC_READ_SEARCH\n" in unit
    path = left_behind(folder, normal())
    for each in (path, path.parent):  # as they are where the agent has a user of its own
        os.chown(each, 64441, 64441)
        each.chmod(0o700)
    bounds = ["--bounding-set", "-all,+net_admin,+dac_read_search", "--inh-caps", "-all", "--no-new-privs"]
    done = topology.nodes[0].namespace.run("setpriv", *bounds, FENCE, path, lockdown, check=False)
    assert done.returncode == 0 and "lock-down" not in done.stderr, done.stderr
    assert any("8080" in line for line in standing(topology))


def test_f10_no_word_of_a_reason_is_loaded() -> None:
    made = early.Rules("table inet ringfence {\n}\n", "", 'x (\n\r\v\u2028"; add table inet evil\\\n#)')
    assert [line for line in text_of(made).splitlines() if not line.startswith("#")] == [
        "table inet ringfence {",
        "}",
    ]


def kept(rig: Rig) -> str:
    return (Path(rig.config.state_dir) / NAME).read_text()


def is_right(rig: Rig) -> bool:
    """Whether it is what the early step would make of the state on disk, for root alone."""
    path = Path(rig.config.state_dir) / NAME
    wanted = text_of(early.rules(rig.config))
    return path.exists() and path.read_text() == wanted and path.stat().st_mode & 0o777 == 0o600


def test_f12_the_agent_keeps_the_file_as_the_next_boot_wants_it(tmp_path: Path) -> None:
    def job() -> None:
        rig = Rig(tmp_path)
        rig.start()
        until(lambda: is_right(rig))
        assert kept(rig).startswith("# lock-down: no baseline was confirmed here")
        rig.adopt(baseline(1, 8080), 1, 1)
        until(lambda: is_right(rig) and "8080" in kept(rig))
        assert kept(rig).startswith("# factory/1 in posture normal")
        wanted = rig.publish(baseline(2, 9090), 2)
        rig.direct(rig.signed(2, wanted=wanted))
        rig.fetch(wanted)
        assert rig.loop.hold.state.pending is not None
        assert "8080" in kept(rig), "what is not confirmed is not for the next boot"
        rig.answer()
        until(lambda: is_right(rig) and "9090" in kept(rig))
        fenced = [Request(name="fence", addresses=["10.0.0.9"])]
        rig.direct(rig.signed(3, wanted=wanted, responses=fenced))
        until(lambda: is_right(rig) and "10.0.0.9" in kept(rig))
        rig.direct(rig.signed(4, wanted=wanted, posture="isolated"))
        until(lambda: is_right(rig) and "table inet ringfence_cut {" in kept(rig))
        rig.direct(rig.signed(5, wanted=wanted))
        until(lambda: is_right(rig) and "table inet ringfence_cut {" not in kept(rig))
        rig.call(lambda: rig.loop.hold.isolate_itself("silence"))
        until(lambda: is_right(rig) and "table inet ringfence_cut {" in kept(rig))
        rig.stop()

    in_own_namespace(job)


def test_f12_an_order_that_comes_while_a_look_takes_long_is_in_the_file_before_its_end(
    tmp_path: Path,
) -> None:
    setting = tmp_path / "proc/sys/net/ipv4/x1"
    (tmp_path / "proc/sys/kernel/random").mkdir(parents=True)
    (tmp_path / "proc/sys/kernel/random/boot_id").write_text("one\n")
    setting.parent.mkdir(parents=True)
    setting.write_text("1\n")
    text = '[sysctl]\n[[sysctl.set]]\nkey = "net.ipv4.x1"\nvalue = "1"\nreason = "test"\n'

    def job() -> None:
        rig = Rig(tmp_path, proc=tmp_path / "proc")
        rig.start()
        rig.adopt(baseline(1, 8080, extra=text), 1, 1)
        until(lambda: is_right(rig) and "8080" in kept(rig))
        probe, entered, enough = rig.loop.machine.probes["sysctl"], Event(), Event()
        observe = probe.observe

        def slowly(now: float) -> list[Drift]:
            entered.set()
            while not enough.wait(0.01):
                rig.loop.host.breathe()
            return observe(now)

        probe.observe = slowly  # type: ignore[method-assign]
        rig.loop.wake("sysctl")
        assert entered.wait(5)
        try:
            rig.direct(rig.signed(2, posture="isolated"))
            until(lambda: "table inet ringfence_cut {" in kept(rig))
        finally:
            enough.set()
            rig.stop()

    in_own_namespace(job)


def adopted(folder: Path) -> tuple[Rig, Path]:
    """A loop that holds its first baseline, and the file it has left for the next boot."""
    rig = Rig(folder)
    rig.start()
    rig.adopt(baseline(1, 8080), 1, 1)
    until(lambda: is_right(rig) and "8080" in kept(rig))
    return rig, Path(rig.config.state_dir) / NAME


def test_f12_the_file_is_written_when_it_changes_and_when_somebody_has_touched_it(tmp_path: Path) -> None:
    def job() -> None:
        rig, path = adopted(tmp_path)
        before = path.stat()
        wanted = rig.loop.hold.state.directive.baseline  # type: ignore[union-attr]
        rig.direct(rig.signed(2, wanted=wanted))
        rig.loop.wake("firewall")
        time.sleep(0.3)
        rig.stop()
        rig.start()
        time.sleep(1.5)
        assert (path.stat().st_ino, path.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
        for touch in (path.unlink, lambda: path.write_text("# nothing\n"), lambda: path.chmod(0o666)):
            touch()
            until(lambda: is_right(rig))
        rig.stop()

    in_own_namespace(job)


@pytest.mark.parametrize(
    "touch", [Path.unlink, lambda path: path.chmod(0o666), lambda path: path.write_text("")]
)
def test_f12_who_touches_the_file_as_it_is_being_written_is_found_by_the_next_look(
    tmp_path: Path, touch: Callable[[Path], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    rig = Rig(tmp_path)
    path = Path(rig.config.state_dir) / NAME
    path.parent.mkdir(parents=True)

    def late(where: Path, content: bytes) -> None:
        replace_file(where, content)
        touch(where)

    file, state = EarlyFile(rig.config, lambda _: None), fresh_state(1.0)
    monkeypatch.setattr("agent.earlyfile.replace_file", late)
    file.follow(state)
    monkeypatch.undo()
    file.follow(state)
    assert path.read_text() == text_of(early.of_state(rig.config, state))
    assert path.stat().st_mode & 0o777 == 0o600


def test_f12_where_the_file_cannot_be_written_no_old_one_is_left(tmp_path: Path) -> None:
    def job() -> None:
        rig, path = adopted(tmp_path)
        path.with_name(f"{NAME}.new").mkdir()
        rig.direct(rig.signed(2, posture="isolated"))
        until(lambda: "early.unwritable" in rig.kinds())
        assert not path.exists() and rig.loop.failure is None
        rig.call(lambda: None)
        assert rig.kinds().count("early.unwritable") == 1, "told once"
        path.with_name(f"{NAME}.new").rmdir()
        until(lambda: is_right(rig) and "table inet ringfence_cut {" in kept(rig))
        rig.stop()

    in_own_namespace(job)


def test_f12_the_fences_unit_comes_first_and_starts_what_the_package_brings() -> None:
    unit = (TREE / "packaging/systemd/ringfence-fence.service").read_text()
    before = {name for line in re.findall(r"^Before=(.*)$", unit, re.MULTILINE) for name in line.split()}
    assert {"sysinit.target", "ringfence-early.service", "network-pre.target"} <= before
    assert {"systemd-resolved.service", "rpcbind.socket", "rpcbind.service"} <= before, (
        "they listen before sysinit.target"
    )
    assert "ExecStop" not in unit and "DefaultDependencies=no" in unit and "python" not in unit.lower()[200:]
    # A folder that is named and has gone would keep the unit from starting, and the node would stand open.
    for each in ("fence", "early"):
        text = (TREE / f"packaging/systemd/ringfence-{each}.service").read_text()
        assert not re.search(r"^(ReadOnly|ReadWrite|Bind\w*)Paths=[^-]", text, re.MULTILINE)
    build = (TREE / "packaging/os/build.py").read_text()
    script = FENCE.read_text()
    assert os.access(FENCE, os.X_OK) and script.startswith("#!/bin/sh\n")
    assert re.search(r"^ExecStart=/usr/lib/ringfence-agent/fence$", unit, re.MULTILINE)
    for installed in ("/usr/lib/ringfence-agent/fence", "/usr/lib/ringfence-agent/lockdown.nft"):
        assert f'"{installed}"' in build
    assert f"/var/lib/ringfence/{NAME}" in script and "/usr/lib/ringfence-agent/lockdown.nft" in script
