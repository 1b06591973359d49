"""Containers: real ones of Podman; Docker's and containerd's records as those programs write them, around real processes."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from agent.exhibits import Exhibits
from agent.host import Host
from agent.probes import Probe, Surroundings
from agent.probes.containers import Section
from contract.errors import Rejected
from tests.agent.probes.case import Case, probe_of, section_of
from tests.parts.podman import IMAGE, Podman, podman

HEAD = '[containers]\nunnamed = "ignore"\n'
OTHER = "sha256:" + "0" * 64


def _allow(digest: str, more: str = "") -> str:
    return f'[[containers.allow]]\ndigests = ["{digest}"]\nreason = "for a test"\n{more}'


def _probe(root: Path, toml: str) -> Probe[Section]:
    return probe_of("containers", toml, Surroundings(host=Host(root=root)))


@contextmanager
def case(folder: Path) -> Iterator[Case]:
    with podman() as made:
        digest = made.image()
        made.run("one")

        def spoil() -> None:
            made.image("2", b"another")
            made.run("two", tag="2")

        def blind() -> None:
            (made.root / "var/lib/containers/storage/vfs-containers/containers.json").write_text("[{")

        yield Case(
            toml=HEAD + "stop = true\n" + _allow(digest),
            around=Surroundings(host=Host(root=made.root)),
            spoil=spoil,
            blind=blind,
            state=made.names,
            trace=made.names,
            undoes=False,
        )


@pytest.fixture
def plant() -> Iterator[Podman]:
    with podman() as made:
        yield made


def test_an_image_that_no_entry_names_is_drift_and_is_stopped_only_where_the_section_says_so(
    plant: Podman,
) -> None:
    plant.image()
    plant.run("one")
    probe = _probe(plant.root, HEAD + _allow(OTHER))
    (drift,) = probe.observe(1.0)
    assert drift.key == "container one" and IMAGE in drift.found
    probe.repair([drift], 1.0)
    assert plant.names() == ["one"]
    probe = _probe(plant.root, HEAD + "stop = true\n" + _allow(OTHER))
    probe.repair(probe.observe(1.0), 1.0)
    assert plant.names() == []
    assert probe.observe(2.0) == []


def test_what_ran_in_a_container_is_kept_before_it_is_stopped(plant: Podman, tmp_path: Path) -> None:
    plant.image()
    plant.run("one")
    kept = Exhibits(tmp_path / "exhibits")
    probe = _probe(plant.root, HEAD + "stop = true\n" + _allow(OTHER))
    (container,) = probe.around.host.containers.running()
    wanted = Path(f"/proc/{container.pid}/cmdline").read_bytes().split(b"\0")
    probe.around.host.processes.on_end = kept.keep_process
    probe.repair(probe.observe(1.0), 1.0)
    assert plant.names() == []
    records = [json.loads(path.read_bytes()) for path in (tmp_path / "exhibits").iterdir()]
    assert container.pid in [each["pid"] for each in records]
    (first,) = [each for each in records if each["pid"] == container.pid]
    assert first["command"] == [part.decode() for part in wanted if part] and len(first["sha256"]) == 64


def test_the_same_name_with_another_content_is_drift(plant: Podman) -> None:
    digest = plant.image("1")
    plant.image("1", b"one byte more")
    plant.run("one")
    (drift,) = _probe(plant.root, HEAD + _allow(digest, f'image = "{IMAGE}"\n')).observe(1.0)
    assert drift.key == "container one" and digest not in drift.found


def test_powers_beyond_the_entry_are_drifts_and_those_granted_are_not(plant: Podman) -> None:
    digest = plant.image()
    plant.run("wide", "--network host --privileged -v /:/machine")
    plant.run("some", "--network none --cap-add NET_ADMIN --user 1000")
    found = {d.key: d.found for d in _probe(plant.root, HEAD + _allow(digest, "user = 0\n")).observe(1.0)}
    assert found == {
        "container wide privileged": "has every capability of the machine",
        "container wide namespaces": "network",
        "container wide root file system": "the machine's is mounted",
        "container some capabilities": "net_admin",
        "container some user": "1000",
    }
    granted = 'privileged = true\nhost_namespaces = ["network"]\nhost_root = true\nnames = ["wide"]\n'
    some = 'capabilities = ["net_admin"]\nnames = ["so*"]\nuser = 1000\n'
    toml = HEAD + _allow(digest, granted) + _allow(digest, some)
    assert _probe(plant.root, toml).observe(1.0) == []


def test_a_runtimes_socket_within_reach_is_drift(plant: Podman) -> None:
    digest = plant.image()
    run = plant.root / "run"
    (run / "docker.sock").touch()
    plant.run("steers", f"--network none -v {run}/docker.sock:/var/run/docker.sock")
    plant.run("above", f"--network none -v {run}:/outside")
    plant.run("none")
    drifts = _probe(plant.root, HEAD + _allow(digest)).observe(1.0)
    assert [(d.key, d.found) for d in drifts] == [
        ("container above runtime socket", "/run/docker.sock"),
        ("container steers runtime socket", "/run/docker.sock"),
    ]


def test_a_record_whose_process_number_is_another_process_now_is_no_container(plant: Podman) -> None:
    plant.image()
    plant.run("one")
    (record,) = (plant.root / "run/containers/storage/vfs-containers").glob("*/userdata/pidfile")
    with subprocess.Popen(["sleep", "60"]) as stranger:
        record.write_text(str(stranger.pid))
        probe = _probe(plant.root, HEAD + "stop = true\n" + _allow(OTHER))
        assert probe.observe(1.0) == []
        probe.repair([], 1.0)
        assert stranger.poll() is None
        stranger.kill()


@contextmanager
def _contained() -> Iterator[int]:
    """Yield a process in namespaces of its own, as a runtime would have started it."""
    script = "import os,time;os.write(1,b'.');time.sleep(600)"
    with subprocess.Popen(
        ["unshare", "-m", "-i", "-u", "-n", "--", sys.executable, "-c", script], stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None and process.stdout.read(1) == b"."
        yield process.pid
        process.kill()


def test_what_docker_records_is_held_by_image_id_or_manifest(tmp_path: Path) -> None:
    number, image, manifest = "a" * 64, "sha256:" + "1" * 64, "sha256:" + "2" * 64
    base = tmp_path / "var/lib/docker"
    (base / f"containers/{number}").mkdir(parents=True)
    (base / "image/overlay2").mkdir(parents=True)
    references = {"plant/vision:7": image, f"plant/vision@{manifest}": image}
    (base / "image/overlay2/repositories.json").write_text(
        json.dumps({"Repositories": {"plant/vision": references}})
    )
    with _contained() as pid:
        config = {
            "State": {"Running": True, "Paused": False, "Pid": pid},
            "Image": image,
            "Name": "/vision",
            "Config": {"Image": "plant/vision:7"},
        }
        record = base / f"containers/{number}/config.v2.json"
        record.write_text(json.dumps(config))
        for digest in (image, manifest):
            granted = 'privileged = true\nhost_root = true\nhost_namespaces = ["pid"]\nimage = "plant/*"\n'
            drifts = _probe(tmp_path, HEAD + _allow(digest, granted)).observe(1.0)
            assert drifts == []
        (drift,) = _probe(tmp_path, HEAD + _allow(OTHER)).observe(1.0)
        assert "plant/vision:7" in drift.found and manifest in drift.found
        config["State"] = {"Running": False, "Pid": 0}
        record.write_text(json.dumps(config))
        assert _probe(tmp_path, HEAD).observe(1.0) == []


def test_what_containerd_records_is_held_by_the_digest_in_its_name(tmp_path: Path) -> None:
    digest = "sha256:" + "3" * 64
    base = tmp_path / f"run/containerd/io.containerd.runtime.v2.task/k8s.io/{'b' * 64}"
    base.mkdir(parents=True)
    with _contained() as pid:
        (base / "init.pid").write_text(str(pid))
        notes = {
            "io.kubernetes.cri.container-type": "container",
            "io.kubernetes.cri.container-name": "queue",
            "io.kubernetes.cri.image-name": f"registry.example/plant/queue@{digest}",
        }
        (base / "config.json").write_text(json.dumps({"ociVersion": "1.0.2", "annotations": notes}))
        granted = 'privileged = true\nhost_root = true\nhost_namespaces = ["pid"]\n'
        named = 'image = "registry.example/plant/queue"\n'
        assert _probe(tmp_path, HEAD + _allow(digest, granted + named)).observe(1.0) == []
        notes["io.kubernetes.cri.image-name"] = "registry.example/plant/queue:latest"
        (base / "config.json").write_text(json.dumps({"annotations": notes}))
        (drift,) = _probe(tmp_path, HEAD + _allow(digest, granted)).observe(1.0)
        assert drift.key == "container queue" and "of no known digest" in drift.found


def test_a_pid_namespace_that_no_runtime_records_is_drift(tmp_path: Path) -> None:
    with subprocess.Popen(["unshare", "-p", "-f", "--kill-child", "sleep", "600"]) as process:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        deadline = time.monotonic() + 5
        while not (inner := children.read_text().split()):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        keys = {drift.key for drift in _probe(tmp_path, "[containers]\n").observe(1.0)}
        process.kill()
        assert f"PID namespace of process {inner[0]}" in keys


@pytest.mark.parametrize(
    "line",
    [
        'digests = ["sha256:1234"]',
        "digests = []",
        f'digests = ["{OTHER}"]\nimage = "plant/vision:7"',
        f'digests = ["{OTHER}"]\ncapabilities = ["cap_net_admin"]',
        f'digests = ["{OTHER}"]\nhost_namespaces = ["mount"]',
    ],
)
def test_an_entry_that_cannot_hold_is_refused(line: str) -> None:
    with pytest.raises(Rejected, match=r"containers\.allow\[0\]"):
        section_of("containers", f'[containers]\n[[containers.allow]]\nreason = "why"\n{line}\n')
