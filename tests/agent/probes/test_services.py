"""Services: made roots, with `systemctl --root` as witness where it is installed, and this machine's own units."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from agent import units
from agent.host import Host
from agent.probes import Probe, Surroundings
from agent.probes import services as services_probe
from agent.tree import Tree
from contract.errors import Rejected
from tests.agent.probes.case import Case, probe_of, section_of, tree_state, tree_trace
from tests.parts.packagekit import Dpkg

UNIT = b"[Unit]\nDescription=x\n[Service]\nExecStart=/bin/true\n[Install]\nWantedBy=multi-user.target\n"
LOCAL = b"[Service]\nExecStart=/opt/serve\n[Install]\nWantedBy=multi-user.target\n"
SYSTEM = "usr/lib/systemd/system"
ETC = "etc/systemd/system"
TOML = f"""\
[services]
unknown = "repair"
[[services.unit]]
name = "ssh.service"
state = "enabled"
reason = "maintenance"
[[services.unit]]
name = "telnet.service"
state = "disabled"
reason = "passwords in the clear"
[[services.unit]]
name = "debug-shell.service"
state = "masked"
reason = "a root shell for whoever has a keyboard"
[[services.unit]]
name = "getty@*.service"
reason = "consoles"
[[services.unit]]
name = "serve.service"
state = "enabled"
reason = "the model"
[[services.file]]
path = "/etc/systemd/system/serve.service"
sha256 = "{hashlib.sha256(LOCAL).hexdigest()}"
reason = "the model"
[[services.file]]
path = "/etc/cron.d/rotate"
sha256 = "{hashlib.sha256(b"rotate").hexdigest()}"
reason = "logs"
"""


def make(folder: Path) -> Path:
    """Make a root, with a dpkg database, that is as TOML wants it."""
    return installed(folder).root


def installed(folder: Path) -> Dpkg:
    """Make such a root; return it with its dpkg."""
    dpkg = Dpkg(folder)
    names = ("ssh.service", "telnet.service", "debug-shell.service", "getty@.service", "other.timer")
    files = {f"{SYSTEM}/{name}": UNIT for name in names} | {"usr/lib/systemd/user/known.service": UNIT}
    dpkg.install("base", "1", files)
    root = dpkg.root
    wants = root / ETC / "multi-user.target.wants"
    wants.mkdir(parents=True)
    (wants / "ssh.service").symlink_to("/lib/systemd/system/ssh.service")
    (wants / "serve.service").symlink_to("/etc/systemd/system/serve.service")
    (wants / "getty@tty1.service").symlink_to("/lib/systemd/system/getty@.service")
    (root / ETC / "debug-shell.service").symlink_to("/dev/null")
    (root / ETC / "serve.service").write_bytes(LOCAL)
    for name in ("cron.d", "cron.daily"):
        (root / "etc" / name).mkdir()
    (root / "var/spool/cron/crontabs").mkdir(parents=True)
    (root / "etc/cron.d/rotate").write_bytes(b"rotate")
    (root / "etc/passwd").write_text("root:x:0:0::/root:/bin/sh\nanna:x:1000:1000::/home/anna:/bin/sh\n")
    (root / "home/anna").mkdir(parents=True)
    return dpkg


@contextmanager
def case(folder: Path) -> Iterator[Case]:
    root = make(folder)

    def spoil() -> None:
        wants = root / ETC / "multi-user.target.wants"
        (wants / "ssh.service").unlink()
        (wants / "telnet.service").symlink_to("/lib/systemd/system/telnet.service")
        (root / ETC / "debug-shell.service").unlink()
        (root / ETC / "evil.service").write_bytes(LOCAL)
        (wants / "evil.service").symlink_to("../evil.service")
        (root / "etc/cron.d/evil").write_text("* * * * * root evil\n")

    def blind() -> None:
        shutil.rmtree(root / "etc/cron.d")
        (root / "etc/cron.d").symlink_to("/etc/cron.d")

    yield Case(
        toml=TOML,
        around=Surroundings(host=Host(root=root)),
        spoil=spoil,
        blind=blind,
        state=lambda: tree_state(root),
        trace=lambda: tree_trace(root),
        heirs=(
            TOML + '[[services.unit]]\nname = "new.service"\nreason = "another"\n',
            TOML.replace('unknown = "repair"', 'vendor = "trust"'),
        ),
    )


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return make(tmp_path)


def _probe(root: Path, toml: str = TOML) -> Probe[services_probe.Section]:
    return probe_of("services", toml, Surroundings(host=Host(root=root)))


def _found(root: Path, toml: str = TOML) -> dict[str, str]:
    return {drift.key: drift.found for drift in _probe(root, toml).observe(1.0)}


def _put(path: Path, content: str = "x") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)


@pytest.mark.parametrize(
    "path",
    [
        f"{ETC}/evil.service",
        f"{ETC}/evil.timer",
        f"{ETC}/ssh.service",
        f"{ETC}/ssh.service.d/override.conf",
        f"{ETC}/service.d/all.conf",
        "usr/local/lib/systemd/system/evil.service",
        "run/systemd/system/evil.path",
        "etc/systemd/system-generators/evil",
        "etc/crontab",
        "etc/cron.daily/evil",
        "var/spool/cron/crontabs/root",
        "var/spool/cron/atjobs/a0001",
        "etc/rc.local",
        "etc/init.d/evil",
        "etc/systemd/user/evil.service",
        "etc/systemd/user/known.service.d/override.conf",
        "etc/xdg/systemd/user/evil.timer",
        "usr/local/share/systemd/user/evil.service",
        "home/anna/.config/systemd/user/evil.timer",
        "home/anna/.config/systemd/user/known.service.d/override.conf",
        "home/anna/.local/share/systemd/user/evil.service",
        "run/user/1000/systemd/user/evil.service",
        "var/lib/systemd/linger/anna",
        "etc/systemd/user-generators/evil",
        "usr/local/lib/systemd/system-environment-generators/evil",
        "etc/udev/rules.d/99-evil.rules",
        "run/udev/rules.d/99-evil.rules",
        "etc/network/if-up.d/evil",
        "etc/NetworkManager/dispatcher.d/pre-up.d/evil",
        "etc/update-motd.d/99-evil",
        "etc/ld.so.preload",
    ],
)
def test_d10_a_file_nobody_listed_is_told_and_taken_away_when_asked(root: Path, path: str) -> None:
    _put(root / path)
    assert list(_found(root)) == [f"/{path}"]
    probe = _probe(root)
    probe.repair(probe.observe(1.0), 1.0)
    assert not (root / path).exists()
    assert probe.observe(2.0) == []
    probe.undo()
    assert (root / path).read_text() == "x"


@pytest.mark.parametrize(
    ("path", "target"),
    [
        (f"{ETC}/timers.target.wants/other.timer", "/lib/systemd/system/other.timer"),
        (f"{ETC}/multi-user.target.wants/getty@evil.service", "/tmp/getty@evil.service"),
        (f"{ETC}/ssh.service", "/home/evil/ssh.service"),
        (f"{ETC}/telnet.service", "/lib/systemd/system/ssh.service"),
        ("etc/cron.d/evil", "/tmp/evil"),
        (f"{ETC}/multi-user.target.wants/ssh.service", "/ssh.service"),
        (f"{ETC}/ssh.service", "../ssh.service"),
        ("etc/systemd/user/default.target.wants/known.service", "/usr/lib/systemd/user/known.service"),
        ("home/anna/.config/systemd/user/default.target.wants/evil.service", "../evil.service"),
        ("home/anna/.config/systemd/user/default.target.wants/ssh.service", "/home/anna/ssh.service"),
    ],
)
def test_d10_a_link_nobody_listed_is_told(root: Path, path: str, target: str) -> None:
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).unlink(missing_ok=True)
    (root / path).symlink_to(target)
    assert _found(root)[f"/{path}"] == f"link to {target}"


def test_d10_a_unit_in_the_packages_folder_that_no_package_brought(root: Path) -> None:
    _put(root / SYSTEM / "evil.service")
    (root / SYSTEM / "sysinit.target.wants").mkdir()
    (root / SYSTEM / "sysinit.target.wants/telnet.service").symlink_to("../telnet.service")
    _put(root / SYSTEM / "ssh.service", "changed")
    found = _found(root)
    assert sorted(found) == [
        f"/{SYSTEM}/evil.service",
        f"/{SYSTEM}/ssh.service",
        f"/{SYSTEM}/sysinit.target.wants/telnet.service",
        "unit telnet.service",
    ]
    before = tree_trace(root)
    probe = _probe(root)
    probe.repair(probe.observe(1.0), 1.0)
    assert tree_trace(root) == before  # reported only
    assert list(_found(root, TOML.replace("[services]\n", '[services]\nvendor = "trust"\n', 1))) == [
        "unit telnet.service"
    ]


def test_d10_the_crontab_as_its_package_brought_it_needs_no_entry(tmp_path: Path) -> None:
    dpkg = Dpkg(tmp_path)
    dpkg.install("cron", "1", {"etc/crontab": b"SHELL=/bin/sh\n"}, conffile="etc/crontab")
    assert _found(dpkg.root, "[services]\n") == {}
    with (dpkg.root / "etc/crontab").open("a") as crontab:
        crontab.write("* * * * * root evil\n")
    assert list(_found(dpkg.root, "[services]\n")) == ["/etc/crontab"]


@pytest.mark.parametrize(
    "path",
    [
        "usr/lib/systemd/user/evil.service",
        "usr/lib/systemd/user/known.service",
        "usr/lib/systemd/system-sleep/evil",
        "usr/lib/systemd/system-shutdown/evil",
        "usr/lib/systemd/user-generators/evil",
        "usr/lib/udev/rules.d/99-evil.rules",
    ],
)
def test_d10_what_no_package_brought_into_the_packages_folders_is_told(root: Path, path: str) -> None:
    _put(root / path)
    assert list(_found(root)) == [f"/{path}"]
    before = tree_trace(root)
    probe = _probe(root)
    probe.repair(probe.observe(1.0), 1.0)
    assert tree_trace(root) == before
    assert _found(root, TOML.replace("[services]\n", '[services]\nvendor = "trust"\n', 1)) == {}


@pytest.mark.parametrize("folder", ["run/systemd/transient", "run/user/1000/systemd/transient"])
def test_d10_a_transient_timer_is_told_and_not_hidden_by_taking_it_away(root: Path, folder: str) -> None:
    for name in ("run-u7.timer", "run-u7.service", "run-u7.service.d/50-x.conf"):
        _put(root / folder / name)
    for name in ("session-3.scope", "session-3.scope.d/50-x.conf", "docker.slice"):  # these start nothing
        _put(root / folder / name)
    probe = _probe(root)
    probe.repair(probe.observe(1.0), 1.0)
    assert {drift.key: drift.found for drift in probe.observe(2.0)} == {
        f"/{folder}/run-u7.timer": "transient unit, left alone",
        f"/{folder}/run-u7.service": "transient unit, left alone",
        f"/{folder}/run-u7.service.d/50-x.conf": "transient drop-in, left alone",
    }
    assert probe.unlisted() == []  # a draft names nothing that the next boot has not
    listed = '[[services.unit]]\nname = "run-u*.{}"\nreason = "the nightly copy"\n'
    assert _found(root, TOML + listed.format("timer") + listed.format("service")) == {}


def test_d10_systemd_run_is_seen_where_a_systemd_runs() -> None:
    done = subprocess.run(["systemctl", "is-system-running"], capture_output=True, text=True)
    if done.stdout.strip() not in ("running", "degraded"):
        pytest.skip("no systemd runs here")
    name = f"ringfence-test-{os.getpid()}"
    subprocess.run(["systemd-run", f"--unit={name}", "--on-calendar=2099-01-01", "true"], check=True)
    try:
        found = probe_of("services", "[services]\n", Surroundings(host=Host())).observe(1.0)
        assert f"/run/systemd/transient/{name}.timer" in [drift.key for drift in found]
    finally:
        subprocess.run(["systemctl", "stop", f"{name}.timer"], check=True)


def test_a_listed_unit_may_be_enabled_for_users_too(root: Path) -> None:
    wants = "etc/systemd/user/default.target.wants"
    for path, target in (
        (f"{wants}/known.service", "/usr/lib/systemd/user/known.service"),
        (f"{wants}/again.service", "/lib/systemd/user/known.service"),
        ("home/anna/.config/systemd/user/default.target.wants/hers.service", "../hers.service"),
    ):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).symlink_to(target)
    _put(root / "home/anna/.config/systemd/user/hers.service")
    listed = '[[services.unit]]\nname = "{}.service"\nreason = "why"\n'
    sha256 = hashlib.sha256(b"x").hexdigest()
    file = f'[[services.file]]\npath = "/home/anna/.config/systemd/user/hers.service"\nsha256 = "{sha256}"\n'
    toml = (
        TOML + "".join(listed.format(name) for name in ("known", "again", "hers")) + file + 'reason = "why"\n'
    )
    assert _found(root, toml) == {}
    # Nor is the state of the system's unit of that name changed by what users have.
    masked = TOML + '[[services.unit]]\nname = "known.service"\nstate = "masked"\nreason = "why"\n'
    assert _found(root, masked)["unit known.service"] == "not there"


def test_a_folder_of_users_that_cannot_be_looked_at_is_told(root: Path) -> None:
    (root / "home/anna/.config").symlink_to("/tmp")
    assert "?" in _found(root).values()
    (root / "home/anna/.config").unlink()
    (root / "etc/xdg/systemd").mkdir(parents=True)
    (root / "etc/xdg/systemd/user").symlink_to("/tmp")  # told as a link; a package's own is none
    assert _found(root) == {"/etc/xdg/systemd/user": "link to /tmp"}


def test_a_package_that_comes_between_two_looks_brings_no_drift(tmp_path: Path) -> None:
    dpkg = installed(tmp_path)
    root = dpkg.root
    probe = _probe(root)
    assert probe.observe(1.0) == []
    dpkg.install("tool", "1", {"etc/cron.d/tool": b"1 2 3 * * root tool\n", f"{SYSTEM}/tool.service": UNIT})
    probe.repair(probe.observe(2.0), 2.0)
    assert (root / "etc/cron.d/tool").exists() and probe.observe(3.0) == []


def test_d10_without_a_package_database_nothing_packages_may_own_is_taken_away(root: Path) -> None:
    _put(root / "etc/cron.daily/perhaps-a-packages")
    _put(root / "etc/crontab")
    _put(root / "var/spool/cron/crontabs/root")
    shutil.rmtree(root / "var/lib/dpkg")
    probe = _probe(root)
    probe.repair(probe.observe(1.0), 1.0)
    assert (root / "etc/cron.daily/perhaps-a-packages").exists()
    assert (root / "etc/crontab").exists()
    assert not (root / "var/spool/cron/crontabs/root").exists()


def test_d06_links_in_the_way_are_replaced_and_not_followed(root: Path) -> None:
    victim = root / "etc/victim"
    victim.write_text("mine")
    (root / ETC / "debug-shell.service").unlink()
    (root / ETC / "debug-shell.service").symlink_to(victim)
    probe = _probe(root, TOML.replace('unknown = "repair"\n', ""))
    probe.repair(probe.observe(1.0), 1.0)
    assert victim.read_text() == "mine"
    assert (root / ETC / "debug-shell.service").readlink() == Path("/dev/null")


def test_without_being_asked_unknown_things_stay(root: Path) -> None:
    _put(root / "etc/cron.d/evil")
    probe = _probe(root, TOML.replace('unknown = "repair"\n', ""))
    probe.repair(probe.observe(1.0), 1.0)
    assert (root / "etc/cron.d/evil").exists()


def test_a_repair_is_what_systemctl_would_have_done(root: Path) -> None:
    if shutil.which("systemctl") is None:
        pytest.skip("no systemctl")

    def witness(name: str) -> str:
        argv = ["systemctl", f"--root={root}", "is-enabled", name]
        return subprocess.run(argv, capture_output=True, text=True).stdout.strip()

    for argv in (["disable", "ssh.service"], ["enable", "telnet.service"], ["unmask", "debug-shell.service"]):
        subprocess.run(["systemctl", f"--root={root}", *argv], check=True, capture_output=True)
    names = ("ssh.service", "telnet.service", "debug-shell.service")
    found = units.states(list(units.pieces(Tree(root), (*units.LOCAL, *units.VENDOR))))
    assert [found[name] for name in names] == [witness(name) for name in names]
    probe = _probe(root)
    probe.repair(probe.observe(1.0), 1.0)
    assert [witness(name) for name in names] == ["enabled", "disabled", "masked"]
    assert probe.observe(2.0) == []
    probe.undo()
    assert [witness(name) for name in names] == ["disabled", "enabled", "disabled"]


def test_this_machines_units_are_as_systemctl_says() -> None:
    if shutil.which("systemctl") is None:
        pytest.skip("no systemctl")
    listed = subprocess.run(
        ["systemctl", "--root=/", "list-unit-files", "--no-legend", "--no-pager"],
        capture_output=True,
        text=True,
    )
    found = units.states(list(units.pieces(Host().tree, (*units.LOCAL, *units.VENDOR))))
    said = {line.split()[0]: line.split()[1] for line in listed.stdout.splitlines() if len(line.split()) > 1}
    for state in ("masked", "disabled"):
        for name in (name for name, other in said.items() if other == state):
            wanted = ("disabled", "static") if state == "disabled" else (state,)
            assert found[name] in wanted, name
    enabled = {name for name, state in said.items() if state == "enabled" and "@" not in name}
    assert enabled <= {name for name, state in found.items() if state in ("enabled", "static")}


@pytest.mark.parametrize(
    ("toml", "expected"),
    [
        ('[[services.unit]]\nname = "ssh.service"\nreason = "why"\n', "each unit once"),
        ('[[services.unit]]\nname = "x*.service"\nstate = "masked"\nreason = "why"\n', "only where state"),
        ('[[services.unit]]\nname = "ssh"\nreason = "why"\n', "services.unit"),
    ],
)
def test_entries_that_contradict_each_other_are_refused(toml: str, expected: str) -> None:
    with pytest.raises(Rejected, match=expected):
        section_of("services", TOML + toml)


def test_output_stays_short(root: Path) -> None:
    for number in range(100):
        _put(root / f"etc/cron.d/evil{number:03}")
    found = _found(root)
    assert len(found) == 33
    assert found["start files"] == "68 more than the 32 that are named"
