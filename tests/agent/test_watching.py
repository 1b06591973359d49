"""What steers models, who may log in and what starts by itself is looked at as soon as it is touched: real inotify, real files."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest

from agent.filewatch import FileWatch, Watched
from agent.host import Host
from agent.probes import Surroundings
from tests.agent.probes.case import probe_of
from tests.agent.rig import Rig, baseline, in_own_namespace

pytestmark = pytest.mark.usefixtures("in_both")

GUARDRAILS = b"refuse: everything\n"
MODELS = f"""
[models]
[[models.model]]
name = "vision"
version = "7"
root = "/srv/vision"
classification = "internal"
reason = "for a test"
file = [
    {{ path = "w.bin", kind = "weights", size_bytes = 1, sha256 = "{hashlib.sha256(b"x").hexdigest()}" }},
    {{ path = "policy/g.yaml", kind = "guardrails", size_bytes = {len(GUARDRAILS)}, sha256 = "{hashlib.sha256(GUARDRAILS).hexdigest()}" }},
]
"""
OPEN = MODELS.replace('root = "/srv/vision"', 'root = "/srv/vision"\ncomplete = false')
WITHIN_S = 5.0
"""Ample: it takes milliseconds on a machine that has nothing else to do."""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for folder in (
        "srv/vision/policy",
        "etc/sudoers.d",
        "etc/pam.d",
        "etc/ssh/sshd_config.d",
        "etc/cron.d",
        "etc/systemd/system/multi-user.target.wants",
        "etc/udev/rules.d",
        "usr/lib/x86_64-linux-gnu/security",
        "root/.ssh",
        "home/anna",
        "home/service",
    ):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "srv/vision/w.bin").write_bytes(b"x")
    (tmp_path / "srv/vision/policy/g.yaml").write_bytes(GUARDRAILS)
    (tmp_path / "etc/passwd").write_text(
        "root:x:0:0::/root:/bin/sh\nanna:x:1000:1000::/home/anna:/bin/sh\n"
        "service:x:300:300::/home/service:/usr/sbin/nologin\n"
    )
    (tmp_path / "etc/group").write_text("root:x:0:\n")
    return tmp_path


class Woken:
    """A probe that has looked once, and whether its section is woken since."""

    def __init__(self, root: Path, section: str, toml: str) -> None:
        self._woken: list[str] = []
        self.host = Host(root=root)
        self.host.wake = self._woken.append
        self._probe = probe_of(section, toml, Surroundings(host=self.host))
        self._section = section
        self.look()

    def look(self) -> None:
        self._probe.observe(1.0)

    def by(self, deed: Callable[[], object], within_s: float = WITHIN_S) -> bool:
        time.sleep(0.3)  # what was touched before
        self._woken.clear()
        deed()
        until = time.monotonic() + within_s
        while self._section not in self._woken and time.monotonic() < until:
            time.sleep(0.005)
        return self._section in self._woken


@pytest.fixture
def watching(root: Path) -> Iterator[Callable[[str, str], Woken]]:
    made: list[Woken] = []

    def make(section: str, toml: str) -> Woken:
        made.append(Woken(root, section, toml))
        return made[-1]

    yield make
    for each in made:
        each.host.close()


@pytest.mark.parametrize(
    ("section", "toml", "path"),
    [
        ("models", MODELS, "srv/vision/policy/g.yaml"),
        ("models", OPEN, "srv/vision/policy/g.yaml"),
        ("models", MODELS, "srv/vision/w.bin"),
        ("models", MODELS, "srv/vision/adapter.bin"),
        ("accounts", "[accounts]\n", "etc/sudoers.d/evil"),
        ("accounts", "[accounts]\n", "etc/passwd"),
        ("accounts", "[accounts]\n", "root/.ssh/authorized_keys"),
        ("accounts", "[accounts]\n", "home/anna/.ssh"),
        ("accounts", "[accounts]\n", "etc/pam.d/sshd"),
        ("accounts", "[accounts]\n", "etc/ssh/sshd_config.d/evil.conf"),
        ("accounts", "[accounts]\n", "usr/lib/x86_64-linux-gnu/security/pam_evil.so"),
        ("services", "[services]\n", "etc/systemd/system/evil.timer"),
        ("services", "[services]\n", "etc/systemd/system/multi-user.target.wants/evil.service"),
        ("services", "[services]\n", "etc/systemd/system/new.target.wants"),
        ("services", "[services]\n", "etc/cron.d/evil"),
        ("services", "[services]\n", "etc/udev/rules.d/99-evil.rules"),
        ("services", "[services]\n", "etc/ld.so.preload"),
        ("services", "[services]\n", "home/anna/.config"),
    ],
)
def test_d10_d12_a_touch_wakes_its_section(
    root: Path, watching: Callable[[str, str], Woken], section: str, toml: str, path: str
) -> None:
    if path.endswith("wants/evil.service"):  # a folder is watched once something was found in it
        (root / path).with_name("other.service").symlink_to("/lib/systemd/system/other.service")
    woken = watching(section, toml)

    def deed() -> None:
        if (
            "." in path.rpartition("/")[2][1:]
            or (path.startswith("etc/") and not path.endswith("wants"))
            or path.endswith("authorized_keys")
        ):
            (root / path).write_bytes(b"evil")
        else:
            (root / path).mkdir()

    assert woken.by(deed)


def test_what_others_do_all_day_wakes_nobody(root: Path, watching: Callable[[str, str], Woken]) -> None:
    accounts, services, models = (
        watching("accounts", "[accounts]\n"),
        watching("services", "[services]\n"),
        watching("models", OPEN),
    )
    (root / "home/anna/log").write_bytes(b"")

    def deeds() -> None:
        (root / "home/anna/log").write_bytes(b"a line")
        (root / "home/anna/new").write_bytes(b"a file")
        (root / "home/service/.ssh").mkdir()  # whose user cannot log in
        (root / "etc/resolv.conf").write_bytes(b"nameserver 192.0.2.1\n")
        (root / "srv/vision/cache").write_bytes(b"the server's own")
        (root / "srv/vision/w.bin").read_bytes()

    assert not accounts.by(deeds, 0.5)
    for each in (services, models):
        assert not each.by(lambda: deeds() if not (root / "home/service/.ssh").rmdir() else None, 0.5)


def test_a_folder_that_came_is_watched_from_the_next_look_on(
    root: Path, watching: Callable[[str, str], Woken]
) -> None:
    woken = watching("accounts", "[accounts]\n")
    assert woken.by((root / "home/anna/.ssh").mkdir)
    woken.look()
    assert woken.by(lambda: (root / "home/anna/.ssh/authorized_keys").write_bytes(b"evil"))


def test_one_folder_can_matter_in_two_ways(tmp_path: Path) -> None:
    woken: list[str] = []
    watch = FileWatch(tmp_path, woken.append)

    def by(deed: Callable[[], object]) -> set[str]:
        time.sleep(0.3)
        woken.clear()
        deed()
        time.sleep(0.5)
        return set(woken)

    try:
        (tmp_path / "d").mkdir()
        (tmp_path / "d/f").write_bytes(b"")
        assert watch.cover("comes", Watched(appearing=frozenset({"/d/g", "/d/f"}))) == []
        assert by(lambda: (tmp_path / "d/f").write_bytes(b"x")) == set()
        assert watch.cover("all", Watched(paths=frozenset({"/d/f"}))) == []
        assert "all" in by(lambda: (tmp_path / "d/f").write_bytes(b"x"))
        assert by(lambda: (tmp_path / "d/g").write_bytes(b"x")) == {"comes"}
        assert watch.cover("none", Watched(folders=frozenset({"/e"}))) == ["/e"]
    finally:
        watch.close()


def test_d12_guardrails_are_back_long_before_the_next_pass(tmp_path: Path, root: Path) -> None:
    content = GUARDRAILS.decode()
    carried = MODELS.replace('kind = "guardrails"', f'kind = "guardrails", content = "{content.strip()}\\n"')
    guardrails = root / "srv/vision/policy/g.yaml"

    def run() -> None:
        rig = Rig(tmp_path, root=root)
        rig.config = msgspec.structs.replace(rig.config, interval_s=600.0)
        rig.start()
        try:
            rig.adopt(baseline(1, 8080, extra=carried), 1, 1)
            time.sleep(0.5)
            guardrails.write_bytes(b"refuse: nothing\n")
            until = time.monotonic() + 30
            while guardrails.read_bytes() != GUARDRAILS and time.monotonic() < until:
                time.sleep(0.01)
            assert guardrails.read_bytes() == GUARDRAILS
            while "models.healed" not in rig.call(rig.kinds) and time.monotonic() < until:
                time.sleep(0.01)
            assert "models.healed" in rig.call(rig.kinds)
        finally:
            rig.stop()

    in_own_namespace(run)
