"""sd_notify(3), with a socket in systemd's place."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path


def test_states_reach_the_supervisor_and_nobody_listening_is_no_fault(tmp_path: Path) -> None:
    path = tmp_path / "notify"
    program = "from agent.notify import notify, watchdog_interval_s; notify('READY=1'); print(watchdog_interval_s())"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as supervisor:
        supervisor.bind(str(path))
        supervisor.settimeout(10)
        done = subprocess.run(
            [sys.executable, "-c", program],
            env={"NOTIFY_SOCKET": str(path), "WATCHDOG_USEC": "20000000"},
            cwd=Path(__file__).resolve().parents[2],
            capture_output=True,
            text=True,
            check=True,
        )
        assert supervisor.recv(100) == b"READY=1"
    assert done.stdout.strip() == "10.0"
    path.unlink()
    for environment in ({"NOTIFY_SOCKET": str(path)}, {}):
        done = subprocess.run(
            [sys.executable, "-c", program],
            env=environment,
            cwd=Path(__file__).resolve().parents[2],
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout.strip() == "None"
