"""`ringfence-agent learn containers` beside real containers of Podman: under what it writes they are no drift, and others are."""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from agent.host import Host
from agent.learning import LEARNED, containers
from agent.probes import Surroundings
from agent.probes.containers import repository
from tests.agent.probes.case import probe_of
from tests.parts.podman import IMAGE, Podman, podman

TREE = Path(__file__).resolve().parents[3]


@pytest.fixture
def plant() -> Iterator[Podman]:
    with podman() as made:
        yield made


@contextmanager
def in_a_mount_namespace() -> Iterator[int]:
    """Yield a process that shares everything else with the machine."""
    script = "import os,time;os.write(1,b'.');time.sleep(600)"
    argv = ["unshare", "-m", "--", sys.executable, "-c", script]
    with subprocess.Popen(argv, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdout.read(1) == b"."
        yield process.pid
        process.kill()


def drifts(plant: Podman, toml: str) -> set[str]:
    # Other tests of this machine may have PID namespaces of their own.
    quiet = toml.replace('unnamed = "report"', 'unnamed = "ignore"')
    probe = probe_of("containers", quiet, Surroundings(host=Host(root=plant.root)))
    return {drift.key for drift in probe.observe(1.0)}


def test_what_runs_is_listed_by_digest_with_its_powers_and_nothing_else_is(plant: Podman) -> None:
    digest = plant.image()
    plant.run("wide", "--network host --privileged -v /:/machine")
    plant.run("some", "--network none --cap-add NET_ADMIN --user 1000")
    plant.run("plain")
    plant.run("plain-too")
    draft = containers.draft(Surroundings(host=Host(root=plant.root)))
    assert drifts(plant, draft.text) == set()
    rules = tomllib.loads(draft.text)["containers"]["allow"]
    assert all(digest in rule["digests"] and rule["reason"] == LEARNED for rule in rules)
    assert [rule.get("privileged", False) for rule in rules].count(True) == 1
    assert [rule.get("names") for rule in rules].count(["wide"]) == 1, (
        "no other of its image may have as much"
    )
    assert {rule["user"] for rule in rules} == {0, 1000}
    assert len(rules) == 3, "what two have in common stands there once"
    lines = draft.text.splitlines()
    asked = [lines[n - 1] for n, line in enumerate(lines) if line == "[[containers.allow]]"]
    assert (
        sum("it has the whole machine" in line and "every file of the machine" in line for line in asked) == 1
    )
    plant.image("2", b"another")
    plant.run("other", tag="2")
    plant.run("wider", "--network none --cap-add SYS_ADMIN")
    assert drifts(plant, draft.text) == {"container other", "container wider capabilities"}


def test_the_command_writes_the_section(plant: Podman, tmp_path: Path) -> None:
    digest = plant.image()
    plant.run("one")
    out = tmp_path / "draft.toml"
    argv = [sys.executable, "-m", "agent.main", "learn", "--root", plant.root, "--output", out, "containers"]
    subprocess.run(argv, cwd=TREE, check=True, capture_output=True)
    (rule,) = tomllib.loads(out.read_text())["containers"]["allow"]
    assert digest in rule["digests"]
    assert rule["image"] == IMAGE


def test_an_image_of_no_known_digest_is_left_out_and_said(tmp_path: Path) -> None:
    task = tmp_path / f"run/containerd/io.containerd.runtime.v2.task/k8s.io/{'b' * 64}"
    task.mkdir(parents=True)
    (task / "config.json").write_text('{"annotations": {"io.kubernetes.cri.image-name": "plant/queue:7"}}')
    with in_a_mount_namespace() as pid:
        (task / "init.pid").write_text(str(pid))
        draft = containers.draft(Surroundings(host=Host(root=tmp_path)))
    assert "containers.allow" not in draft.text
    assert any("no known digest (plant/queue:7)" in line for line in draft.left_out)


def test_what_has_much_and_no_name_that_a_rule_could_say_is_left_out(tmp_path: Path) -> None:
    task = tmp_path / f"run/containerd/io.containerd.runtime.v2.task/k8s.io/{'b' * 64}"
    task.mkdir(parents=True)
    notes = {
        "io.kubernetes.cri.image-name": f"plant/pause@sha256:{'4' * 64}",
        "io.kubernetes.cri.container-type": "sandbox",
        "io.kubernetes.cri.sandbox-name": "vision",
    }
    (task / "config.json").write_text(json.dumps({"annotations": notes}))
    with in_a_mount_namespace() as pid:
        (task / "init.pid").write_text(str(pid))
        draft = containers.draft(Surroundings(host=Host(root=tmp_path)))
    assert "containers.allow" not in draft.text
    assert any("sandbox of vision: no rule could name it" in line for line in draft.left_out)


@pytest.mark.parametrize(
    ("image", "name"),
    [
        ("registry.example:5000/plant/vision:7", "registry.example:5000/plant/vision"),
        ("plant/vision@sha256:" + "1" * 64, "plant/vision"),
        ("sha256:" + "1" * 64, None),
        ("1" * 12, None),
        ("", None),
        ("Plant/Vision\n", None),
        ("plant/*", None),
    ],
)
def test_names_of_images(image: str, name: str | None) -> None:
    assert repository(image) == name
