"""Controller processes of a bench: one over SQLite, then the same fleet moved to PostgreSQL and served by several."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path

import psutil
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from controller.keys import Keys, load
from tests.parts.adminapi import AdminApi
from tests.parts.cluster import PROGRAM, free_port
from tests.parts.signing import SigningKit, minimal_baseline
from tests.parts.simulator import Identity
from tests.simulate.admit import admit

TREE = Path(__file__).resolve().parents[1]
START_S = 120.0


class Member:
    """One controller: a folder, two ports, a process."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.nodes, self.admins = free_port(), free_port()
        self.process: psutil.Popen | None = None

    @property
    def url(self) -> str:
        """Where nodes go."""
        return f"https://127.0.0.1:{self.nodes}"

    def start(self, token: str) -> AdminApi:
        """Serve, and return its API once it answers."""
        with (self.folder / "log").open("ab") as log:
            self.process = psutil.Popen(
                [*PROGRAM, "serve", "--dir", str(self.folder)],
                stdout=log,
                stderr=log,
                env={**os.environ, "PYTHONPATH": str(TREE)},
            )
        api = AdminApi("127.0.0.1", self.admins, self.folder / "controller-ca.pem", token)
        deadline = time.monotonic() + START_S
        while True:
            try:
                api("GET", "/status")
                return api
            except OSError:
                if time.monotonic() > deadline or self.process.poll() is not None:
                    raise RuntimeError((self.folder / "log").read_text()[-3000:]) from None
                time.sleep(0.1)

    def stop(self) -> None:
        """End it and wait."""
        process, self.process = self.process, None
        if process is None or process.poll() is not None:
            return
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(60)
        except psutil.TimeoutExpired:
            process.kill()
            process.wait()


class Controllers:
    """All controllers of one fleet. Use as a context; `start` before anything is asked."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="ringfence-scale-"))
        self.members = [Member(self.folder / "controller-0")]
        self.apis: list[AdminApi] = []
        self.keys: Keys
        self.kit: SigningKit
        self.token = ""

    def __enter__(self) -> Controllers:
        first = self.members[0]
        self._run(
            "init", "--dir", str(first.folder), "--node-url", first.url, "--node-listen", f"127.0.0.1:{first.nodes}",
            "--admin-url", f"https://127.0.0.1:{first.admins}", "--admin-listen", f"127.0.0.1:{first.admins}",
            "--token-file", str(self.folder / "token"),
        )  # fmt: skip
        self.token = (self.folder / "token").read_text().strip()
        self.keys = load(first.folder / "keys", time.time())
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _run(self, *arguments: str) -> None:
        done = subprocess.run(
            [*PROGRAM, *arguments],
            capture_output=True,
            text=True,
            env={**os.environ, "PYTHONPATH": str(TREE)},
            timeout=900,
        )
        if done.returncode:
            raise RuntimeError(done.stderr[-3000:])

    @property
    def database(self) -> str:
        """The first one's SQLite, as SQLAlchemy has it."""
        return f"sqlite:///{self.members[0].folder / 'ringfence.db'}"

    @property
    def urls(self) -> list[str]:
        """Where nodes go."""
        return [member.url for member in self.members]

    @property
    def ca(self) -> str:
        """What nodes pin."""
        return (self.members[0].folder / "controller-ca.pem").read_text()

    @property
    def api(self) -> AdminApi:
        """The first one's."""
        return self.apis[0]

    def start(self) -> None:
        """Start all."""
        self.apis = [member.start(self.token) for member in self.members]

    def stop(self) -> None:
        """Stop all."""
        for member in self.members:
            member.stop()

    def furnish(self, fleet: list[Identity], interval_s: float) -> None:
        """Make the sites, push a first baseline and choose it, and take the nodes in."""
        online = self.keys.online
        assert isinstance(online, Ed25519PrivateKey)
        self.kit = SigningKit(now=time.time(), online_key=online)
        self.kit.add(minimal_baseline(version=1))
        self.api("POST", "/baselines", self.kit.bundle())
        for site in dict.fromkeys(identity.site for identity in fleet):
            self.api(
                "POST",
                "/sites",
                {"site": site, "policy": {"interval_s": interval_s, "rollouts_need_two_persons": False}},
            )
            self.api("PUT", f"/sites/{site}/baseline", {"name": "factory", "version": 1, "reason": "bench"})
        admit(self.database, self.keys, fleet)

    def push(self, version: int) -> None:
        """Sign and push one more version of the baseline."""
        self.kit.targets.version += 1
        self.kit.add(minimal_baseline(version=version))
        self.api("POST", "/baselines", self.kit.bundle())

    def move(self, database: str, *, members: int) -> None:
        """Stop, copy all to PostgreSQL with `migrate-to`, and be so many controllers over it. `start` is the caller's."""
        self.stop()
        first = self.members[0]
        self._run("migrate-to", database, "--dir", str(first.folder))
        config = first.folder / "controller.toml"
        plain = config.read_text()
        config.write_text(re.sub(r'(\[store\]\s*\n(?:#.*\n|\s*\n)*url = )"[^"]*"', rf'\1"{database}"', plain))
        for number in range(1, members):
            member = Member(self.folder / f"controller-{number}")
            shutil.copytree(
                first.folder, member.folder, ignore=shutil.ignore_patterns("log", "ringfence.db*", "server.*")
            )
            text = config.read_text()
            for mine, its in ((first.nodes, member.nodes), (first.admins, member.admins)):
                text = text.replace(f":{mine}", f":{its}")
            (member.folder / "controller.toml").write_text(text)
            self.members.append(member)

    def memory_bytes(self) -> int:
        """Resident memory of all."""
        return sum(int(m.process.memory_info().rss) for m in self.members if m.process is not None)

    def processor_s(self) -> float:
        """Processor time that all have used."""
        times = [m.process.cpu_times() for m in self.members if m.process is not None]
        return float(sum(each.user + each.system for each in times))
