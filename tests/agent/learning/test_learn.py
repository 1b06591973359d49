"""`ringfence-agent learn` on a Debian with a life of its own: taken by `check`, no drift under it, and no secret in it."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from agent import learn_devices, learning, probes
from agent.learning import sysctl
from agent.learning.firewall import zone_name
from contract.baseline import parse_baseline
from tests.parts import cleanroot
from tests.parts.topology import Topology

TREE = Path(__file__).resolve().parents[3]
HASH = "$y$j9T$F5Jx5fExrKuPp53xLKQ..1$tnSYvahCwPBHKZUspmcxMfb0.WiB9W.zEaKlOBL35rC"
KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIKRlc8uYmJHhEsP7hTgRw0LEm5bUcCk1jGxqKmiS0d2q ops@plant"
SECRET = "hunter2-of-the-till"
NOT_LEARNED = {"access", "agent", "boot", "ima", "models"}


class Learned(NamedTuple):
    draft: str
    left_out: str
    found: dict[str, Any]


def live_in(root: Path) -> None:
    """What people leave on a machine."""
    (root / "etc/sudoers.d/ops").write_text("ops ALL=(root) NOPASSWD: /usr/bin/systemctl restart inference\n")
    (root / "etc/systemd/system/inference.service").write_text("[Service]\nExecStart=/opt/serve\n")
    wants = root / "etc/systemd/system/multi-user.target.wants"
    wants.mkdir(exist_ok=True)
    (wants / "inference.service").symlink_to("/etc/systemd/system/inference.service")
    (root / "etc/cron.d/pictures").write_text("*/5 * * * * root /opt/collect\n")
    with (root / "etc/passwd").open("a") as passwd, (root / "etc/shadow").open("a") as shadow:
        passwd.write("ops:x:1000:1000::/home/ops:/bin/bash\n")
        shadow.write(f"ops:{HASH}:19800:0:99999:7:::\n")
    (root / "home/ops/.ssh").mkdir(parents=True)
    (root / "home/ops/.ssh/authorized_keys").write_text(f'from="10.20.0.22" {KEY}\n')
    (root / "etc/inference").mkdir()
    (root / "etc/inference/token").write_text(SECRET)
    (root / "etc/inference/token").chmod(0o600)
    (root / "etc/inference/service.toml").write_text("port = 8080\n")
    (root / "etc/resolv.conf").unlink(missing_ok=True)
    (root / "etc/resolv.conf").write_text("nameserver 10.20.0.53\n")


@pytest.fixture(scope="module")
def learned() -> Iterator[Learned]:
    folder = Path(tempfile.mkdtemp(prefix="ringfence-learn-"))
    root = cleanroot.unpack(folder / "root")
    live_in(root)
    with Topology({"east": 1}) as topology:
        site = topology.sites["east"]
        node, client = site.nodes[0], site.the_client
        with node.namespace.socket() as service, client.namespace.socket() as camera:
            service.bind((node.enclave[0], 8080))
            service.listen()
            camera.bind((client.enclave[0], 554))
            camera.listen()
            with client.namespace.socket() as asking, node.namespace.socket() as pictures:
                asking.connect((node.enclave[0], 8080))
                pictures.connect((client.enclave[0], 554))
                node.namespace.run(
                    "unshare", "--pid", "--fork", "--mount", "--mount-proc",
                    sys.executable, "-m", "tests.agent.cleannode", "draft", folder, timeout=300,
                )  # fmt: skip
    yield Learned(
        (folder / "draft.toml").read_text(),
        (folder / "left-out").read_text(),
        json.loads((folder / "found.json").read_text()),
    )
    shutil.rmtree(folder)


def test_nothing_drifts_under_what_was_learned_but_that_the_guards_are_not_up(learned: Learned) -> None:
    drifts = {(section, key) for section, key, _, _ in learned.found["first"]["drifts"]}
    # What only enforcing puts up: our table, and the kernel's default for new USB devices. No finding of the machine's own.
    guards = {("firewall", f"inet {each} table {each}") for each in ("ringfence", "ringfence_guard")}
    guards |= {("usb", f"usb1 {each}_default") for each in ("authorized", "interface_authorized")}
    guards |= {("usb", "usbcore authorized_default")}
    # The test's sysfs has no disks at all.
    assert drifts - {("blocks", "disks")} == guards
    assert learned.found["second"]["drifts"] == learned.found["first"]["drifts"]


def test_applying_it_changes_nothing(learned: Learned) -> None:
    before, after = learned.found["before"], learned.found["second"]
    for witness in ("files", "settings", "written"):
        assert before[witness] == after[witness], witness
    assert after["rules"] == ""


def test_what_lives_on_the_node_is_in_it(learned: Learned) -> None:
    draft = tomllib.loads(learned.draft)
    assert draft["baseline"]["mode"] == "observe"
    zones = draft["firewall"]["zones"]
    assert zones["enclave0"]["addresses"] == ["10.10.1.0/24", "fd10:1::/64"]
    assert zones["names"]["addresses"] == ["10.20.0.53"]
    ways = {
        (direction, rule["zone"], rule["protocol"], *rule["ports"])
        for direction in ("inbound", "outbound")
        for rule in draft["firewall"][direction]
    }
    assert {("inbound", "enclave0", "tcp", 8080), ("outbound", "enclave0", "tcp", 554)} <= ways
    assert {("outbound", "names", "tcp", 53), ("outbound", "names", "udp", 53)} <= ways
    (user,) = draft["accounts"]["user"]
    assert (user["name"], user["uid"], user["password"]) == ("ops", 1000, "set")
    (key,) = draft["accounts"]["key"]
    assert key["options"] == 'from="10.20.0.22"'
    shown = subprocess.run(["ssh-keygen", "-lf", "-"], input=KEY, capture_output=True, text=True, check=False)
    if shown.returncode == 0:
        assert key["fingerprint"] == shown.stdout.split()[1]
    assert {"/etc/sudoers.d/ops"} <= {each["path"] for each in draft["accounts"]["sudoers"]}
    units = {each["name"]: each["state"] for each in draft["services"]["unit"]}
    assert units["inference.service"] == "enabled"
    files = {each["path"] for each in draft["services"]["file"]}
    assert {"/etc/systemd/system/inference.service", "/etc/cron.d/pictures"} <= files
    assert "chrony" in draft["packages"]["allow"][0]["names"]
    assert draft["time"]["server"][0]["names"] == ["2.debian.pool.ntp.org"]
    assert [device["vendor"] for device in draft["usb"]["allow"]] == ["046d"]


def test_no_secret_is_in_it(learned: Learned) -> None:
    for text in (learned.draft, learned.left_out):
        for secret in (HASH, HASH.rpartition("$")[2], SECRET, KEY.split()[1], "ops@plant"):
            assert secret not in text
        # Not its digest either: that would tell whether a guess is right.
        assert hashlib.sha256(SECRET.encode()).hexdigest() not in text
    files = {each["path"]: each for each in tomllib.loads(learned.draft)["files"]["file"]}
    assert "sha256" not in files["/etc/inference/token"]
    assert "sha256" not in files["/etc/shadow"]
    assert files["/etc/inference/token"]["mode"] == "0600"
    assert "sha256" in files["/etc/inference/service.toml"]


def test_a_person_is_told_where_to_decide(learned: Learned) -> None:
    lines = learned.draft.splitlines()
    rules = [number for number, line in enumerate(lines) if line.startswith("[[accounts.key")]
    assert all(lines[number - 1].startswith("# DECIDE: ") for number in rules)
    reasons = learned.draft.count(learning.LEARNED) + learned.draft.count(learn_devices.REASON)
    assert reasons == learned.draft.count("\n[[")
    assert "udp port" not in learned.draft


def test_every_section_that_can_be_learned_is(learned: Learned) -> None:
    there = set(parse_baseline(learned.draft.encode()).sections)
    assert set(learning.learners()) == set(probes.sections()) - NOT_LEARNED
    # A kernel without modules has nothing to draft there, nor has the test's sysfs, which has no disks.
    assert set(learning.learners()) - there <= {"modules", "blocks"}


def test_settings_learned_are_those_of_the_shipped_baselines() -> None:
    shipped: dict[str, set[str]] = {}
    for path in (TREE / "baselines").glob("*.toml"):
        for setting in tomllib.loads(path.read_text())["sysctl"]["set"]:
            shipped.setdefault(setting["key"], set()).add(setting["value"])
    assert {key: {value} for key, value in sysctl.KEYS.items()} == shipped


def test_single_sections_come_without_a_head(tmp_path: Path) -> None:
    out = tmp_path / "some.toml"
    argv = [sys.executable, "-m", "agent.main", "learn", "--output", out, "listeners", "sysctl"]
    done = subprocess.run(argv, cwd=TREE, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert set(tomllib.loads(out.read_text())) == {"listeners", "sysctl"}


def test_interface_names_become_zone_names() -> None:
    assert [zone_name(name) for name in ("eth0", "Eth0.100", "br_lan", "@")] == [
        "eth0",
        "eth0-100",
        "br-lan",
        "zone",
    ]
