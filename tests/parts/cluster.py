"""Several controller processes over one database, each started again when it ends, as systemd does. They may be killed at any time."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

from controller.keys import Keys, load

FAULT = 70
"""Exit code of a fault of ours: the one thing that no chaos excuses."""
_START_AGAIN_S = 0.2
PROGRAM = [sys.executable, "-c", "from controller.main import main; main()"]


def free_port() -> int:
    """A port that nobody has at this moment."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


class Member:
    """One controller of a cluster: a folder, two ports, and a process for as long as it is wanted."""

    def __init__(self, folder: Path, nodes: int, admins: int) -> None:
        self.folder, self.nodes, self.admins = folder, nodes, admins
        self.faults = 0
        self.starts = 0
        self._wanted = True
        self._process: subprocess.Popen[bytes] | None = None
        self._thread = threading.Thread(target=self._keep, daemon=True)

    @property
    def node_url(self) -> str:
        """Where nodes go."""
        return f"https://localhost:{self.nodes}"

    @property
    def admin_url(self) -> str:
        """Where admins go."""
        return f"https://localhost:{self.admins}"

    def start(self) -> None:
        """Run it, again and again."""
        self._thread.start()

    def kill(self) -> None:
        """Kill -9, at whatever it is doing."""
        process = self._process
        if process is not None and process.poll() is None:
            process.kill()

    def stop(self) -> None:
        """End it for good."""
        self._wanted = False
        process = self._process
        if process is not None and process.poll() is None:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
        self._thread.join(30)

    def said(self) -> str:
        """The end of its log."""
        return (self.folder / "log").read_text()[-6000:]

    def _keep(self) -> None:
        with (self.folder / "log").open("ab") as log:
            while self._wanted:
                self.starts += 1
                self._process = subprocess.Popen(
                    [*PROGRAM, "serve", "--dir", str(self.folder)],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    env={**os.environ, "PYTHONUNBUFFERED": "1"},
                )
                if self._process.wait() == FAULT:
                    self.faults += 1
                time.sleep(_START_AGAIN_S)


class Cluster:
    """Members with the same keys over the same database."""

    def __init__(self, folder: Path, database: str, *, size: int = 2) -> None:
        """Makes the first with `init`, the others as docs/controller.md says: keys copied, ports of their own."""
        self.folder = folder
        self.members: list[Member] = []
        for number in range(size):
            member = Member(folder / f"controller-{number}", free_port(), free_port())
            self._init(member, database) if number == 0 else self._join(member)
            self.members.append(member)
        self.keys: Keys = load(self.members[0].folder / "keys", time.time())
        self.token = (folder / "token").read_text().strip()
        self.ca = self.keys.server_authority.pem.decode()

    def start(self) -> None:
        """Start all."""
        for member in self.members:
            member.start()

    def stop(self) -> None:
        """Stop all."""
        for member in self.members:
            member.stop()

    def _init(self, member: Member, database: str) -> None:
        command = [
            *PROGRAM, "init", "--dir", str(member.folder), "--database", database,
            "--node-url", member.node_url, "--node-listen", f"127.0.0.1:{member.nodes}",
            "--admin-url", member.admin_url, "--admin-listen", f"127.0.0.1:{member.admins}",
            "--enrol-retry", "0.05", "--token-file", str(self.folder / "token"),
        ]  # fmt: skip
        subprocess.run(command, check=True, stdin=subprocess.DEVNULL, capture_output=True, timeout=120)

    def _join(self, member: Member) -> None:
        first = self.members[0]
        shutil.copytree(first.folder, member.folder, ignore=shutil.ignore_patterns("log"))
        for name in ("server.pem", "server.key"):
            (member.folder / "keys" / name).unlink()
        config = member.folder / "controller.toml"
        text = config.read_text()
        for mine, its in ((first.nodes, member.nodes), (first.admins, member.admins)):
            text = text.replace(f":{mine}", f":{its}")
        config.write_text(text)
