"""GPU and NPU nodes; what is common to all nodes is tested in `test_cameras`."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from tests.agent.probes.case import Case, probe_of
from tests.agent.probes.nodecase import Machine, case_of, holding


def case(folder: Path) -> AbstractContextManager[Case]:
    return case_of("accelerators", "/dev/nvidia", folder)


@pytest.mark.parametrize(
    "path",
    [
        "/dev/dri/renderD128",
        "/dev/accel/accel0",
        "/dev/nvidia-caps/nvidia-cap1",
        "/dev/nvidiactl",
        "/dev/kfd",
    ],
)
def test_d05_every_kind_of_accelerator_node_is_judged(tmp_path: Path, path: str) -> None:
    machine = Machine(tmp_path)
    node = machine.node(path, mode=0o666)
    probe = probe_of("accelerators", '[accelerators]\nunknown = "close"\n', machine.around)
    drifts = probe.observe(1.0)
    assert [drift.key for drift in drifts] == [path]
    probe.repair(drifts, 1.0)
    assert node.stat().st_mode & 0o777 == 0


def test_d05_only_the_unit_of_the_model_server_may_have_the_gpu_open(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    node = machine.node("/dev/nvidia0")
    with holding(node) as process:
        # The process's own control group, as systemd would have named it, in a procfs of the test's own.
        proc = tmp_path / "proc"
        own = proc / str(process.pid)
        own.mkdir(parents=True)
        for name in ("fd", "exe"):
            (own / name).symlink_to(f"/proc/{process.pid}/{name}")
        (own / "status").write_text(Path(f"/proc/{process.pid}/status").read_text())
        (own / "cgroup").write_text("0::/system.slice/vision.service/worker\n")
        machine.host.processes.root = proc
        for unit, keys in (
            ("vision.service", []),
            ("vis*.service", []),
            ("other.service", [f"/dev/nvidia0 pid {process.pid}"]),
        ):
            toml = f'[accelerators]\n[[accelerators.allow]]\nnodes = ["/dev/nvidia*"]\nopened_by = ["unit:{unit}"]\nreason = "why"\n'
            assert [
                drift.key for drift in probe_of("accelerators", toml, machine.around).observe(1.0)
            ] == keys
