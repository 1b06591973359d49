"""Package databases, real ones: what they say of files, what is learned from them, and which upgrade explains a line."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import pytest

from agent.learning.ima import learn, toml_of
from agent.package_watch import PackageWatch
from agent.packages import PackageDatabase
from contract.baseline import parse_baseline, section
from contract.imapolicy import ImaPolicy
from tests.contract.forge import Case
from tests.contract.imaforge import Log, codes, judged, sha256
from tests.parts.packagekit import Dpkg, Rpm

TREE = Path(__file__).resolve().parents[2]
HEAD = '[baseline]\nname = "x"\nversion = 1\nsummary = "x"\n'
ONE = {"usr/bin/tool": b"one\n", "usr/lib/tool/part a": b"a\n"}
TWO = {"usr/bin/tool": b"two\n", "usr/lib/tool/part b": b"b\n"}


def policy_of(toml: str) -> ImaPolicy:
    return section(parse_baseline((HEAD + toml).encode()), "ima", ImaPolicy)


def test_the_machines_own_database() -> None:
    if not Path("/var/lib/dpkg/status").exists():
        pytest.skip("no dpkg")
    database = PackageDatabase()
    packages = {package.name: package for package in database.installed()}
    coreutils = packages["coreutils"]
    wanted = subprocess.run(
        ["dpkg-query", "-W", "-f", "${Version}", "coreutils"], capture_output=True, text=True
    )
    assert coreutils.version == wanted.stdout
    assert 0 < coreutils.changed_at <= time.time()
    (cat,) = [file for file in coreutils.files if file.path == "/usr/bin/cat"]
    assert database.sha256_of(cat) == hashlib.sha256(Path("/usr/bin/cat").read_bytes()).hexdigest()
    owners = {file.path: package.name for package in packages.values() for file in package.files}
    shell = os.path.realpath("/bin/sh")
    searched = subprocess.run(
        ["dpkg-query", "-S", shell, f"/bin/{Path(shell).name}"], capture_output=True, text=True
    )
    assert searched.stdout.startswith(f"{owners[shell]}:")
    assert not any(path.startswith("/bin/") for path in owners if Path("/bin").is_symlink())


def test_what_was_learned_from_dpkg_is_allowed(tmp_path: Path) -> None:
    dpkg = Dpkg(tmp_path)
    dpkg.install(
        "tool",
        "1.0",
        ONE | {"bin/linked": b"in /usr/bin\n", "etc/tool.conf": b"c\n"},
        conffile="etc/tool.conf",
    )
    dpkg.install("other", "2:3-4", {"usr/lib/other": b"changed later\n"})
    (dpkg.root / "usr/lib/other").write_bytes(b"by hand\n")
    learned = learn(PackageDatabase(dpkg.root))
    assert learned.left_out == ["/usr/lib/other: not as package other has it"]
    policy = policy_of(toml_of(learned))
    assert [(package.name, package.version) for package in policy.package] == [("tool", "1.0")]
    log = Log().file("/usr/bin/tool", sha256(b"one\n")).file("/usr/lib/tool/part a", sha256(b"a\n"))
    log.file("/usr/bin/linked", sha256(b"in /usr/bin\n")).file("/etc/tool.conf", sha256(b"c\n"))
    assert codes(judged(policy, log)) == []
    log.file("/usr/lib/other", sha256(b"by hand\n"))
    assert codes(judged(policy, log)) == ["ima.unknown-file"]


def test_what_was_learned_from_rpm_is_allowed(tmp_path: Path) -> None:
    rpm = Rpm(tmp_path)
    rpm.install("tool", "1.0", {"usr/bin/tool": b"one\n", "usr/lib/tool/part": b"a\n"})
    rpm.install("tool", "1.1", {"usr/bin/tool": b"two\n", "usr/lib/tool/part": b"a\n"})
    database = PackageDatabase(rpm.root)
    (package,) = database.installed()
    assert (package.name, package.version) == ("tool", "1.1-1")
    assert {file.algorithm for file in package.files} == {"sha256"}
    policy = policy_of(toml_of(learn(database)))
    log = Log().file("/usr/bin/tool", sha256(b"two\n")).file("/usr/lib/tool/part", sha256(b"a\n"))
    assert codes(judged(policy, log)) == []
    assert codes(judged(policy, Log().file("/usr/bin/tool", sha256(b"one\n")))) == ["ima.unknown-file"]


def test_a_machine_without_a_database_has_no_packages(tmp_path: Path) -> None:
    assert list(PackageDatabase(tmp_path).installed()) == []


def test_what_a_good_boot_measured_besides_is_learned_by_itself(tmp_path: Path) -> None:
    case = Case("good-rsa")
    log = case.read("ima.bin")
    dpkg = Dpkg(tmp_path)
    dpkg.install("tool", "1.0", ONE)
    learned = learn(PackageDatabase(dpkg.root), untrusted_log=log, only_measured=True, exclude=("/var/log/",))
    assert learned.packages == []
    assert "/init" in learned.allow
    assert not any(path.startswith("/var/log/") for path in learned.allow)
    result = judged(policy_of(toml_of(learned)), log, case.pcrs[10], pcrs=case.pcrs)
    assert (result.caught_up, result.findings) == (True, [])


def test_modules_that_the_fence_may_load_are_learned_though_no_boot_has_used_them(tmp_path: Path) -> None:
    dpkg, modules = Dpkg(tmp_path), "lib/modules/6.1.0-1-amd64/kernel"
    wanted = [
        f"/{modules}/net/{each}"
        for each in ("netfilter/nft_limit.ko", "ipv4/udp_diag.ko.xz", "bridge/netfilter/nft_meta_bridge.ko")
    ]
    others = [
        f"/{modules}/net/ipv4/tcp_bbr.ko",
        f"/{modules}/drivers/usb/storage/uas.ko",
        "/usr/lib/netfilter/x.ko",
    ]
    dpkg.install("linux-image", "6.1.0-1", {path[1:]: path.encode() for path in [*wanted, *others]})
    learned = learn(PackageDatabase(dpkg.root), untrusted_log=b"", only_measured=True)
    found = [raw.decode() for package in learned.packages for raw, _ in package.entries()]
    assert sorted(found) == sorted(wanted)


def test_what_an_upgrade_runs_and_packages_that_are_named_are_learned_whole(tmp_path: Path) -> None:
    dpkg = Dpkg(tmp_path)
    own = {"usr/lib/ringfence-agent/upgrade": b"u", "usr/lib/ringfence-agent/fence": b"f"}
    dpkg.install("ringfence-agent", "1-1", own)
    dpkg.install("dpkg", "1.21", {"usr/bin/dpkg-query": b"q"})
    dpkg.install("tool", "1.0", ONE)
    own["usr/bin/dpkg-query"] = b"q"

    def found(*whole: str) -> set[str]:
        learned = learn(PackageDatabase(dpkg.root), untrusted_log=b"", only_measured=True, whole=whole)
        return {raw.decode() for package in learned.packages for raw, _ in package.entries()}

    assert found() == {f"/{path}" for path in own}
    assert found("tool") == {f"/{path}" for path in (*own, *ONE)}
    with pytest.raises(ValueError, match="not installed: apt, dnf"):
        found("dnf", "tool", "apt")


class Growing:
    """A log file that grows."""

    def __init__(self) -> None:
        self.log = Log()

    def __call__(self, offset: int) -> bytes:
        return self.log.raw[offset : offset + 150]


@pytest.mark.parametrize("kind", [Dpkg, Rpm])
def test_m14_an_upgrade_is_explained_by_the_database(tmp_path: Path, kind: type[Dpkg] | type[Rpm]) -> None:
    machine = kind(tmp_path)
    one = {path.replace(" ", "-"): content for path, content in ONE.items()}
    two = {path.replace(" ", "-"): content for path, content in TWO.items()}
    machine.install("tool", "1.0", one)
    database, growing = PackageDatabase(machine.root), Growing()
    policy, log = policy_of(toml_of(learn(database))), growing.log
    watch = PackageWatch(growing, database)
    log.file("/usr/bin/tool", sha256(b"one\n"))
    assert watch.look(policy) == ()
    log.file("/usr/bin/tool", sha256(b"two\n"))
    assert watch.look(policy) == ()  # before the database says so
    machine.install("tool", "1.1", two)
    log.file("/usr/lib/tool/part-b", sha256(b"b\n")).file("/opt/evil", sha256(b"evil"))
    changes = watch.look(policy)
    assert [(change.name, change.before[:3], change.after[:3]) for change in changes] == [
        ("tool", "1.0", "1.1")
    ]
    assert changes[0].files == {"/usr/bin/tool": sha256(b"two\n"), "/usr/lib/tool/part-b": sha256(b"b\n")}
    assert codes(judged(policy, log, changes=changes)) == ["ima.unknown-file", "ima.package-updated"]
    assert watch.look(policy) == changes  # until the controller has answered
    watch.reported(changes)
    assert watch.look(policy) == ()
    assert watch.look(msgspec.structs.replace(policy)) == changes  # another policy: another look


def test_m14_a_file_that_was_changed_after_the_upgrade_is_not_explained(tmp_path: Path) -> None:
    dpkg = Dpkg(tmp_path)
    dpkg.install("tool", "1.0", ONE)
    database, growing = PackageDatabase(dpkg.root), Growing()
    policy = policy_of(toml_of(learn(database)))
    watch = PackageWatch(growing, database)
    dpkg.install("tool", "1.1", TWO)
    (dpkg.root / "usr/bin/tool").write_bytes(b"evil\n")
    growing.log.file("/usr/bin/tool", sha256(b"evil\n"))
    assert watch.look(policy) == ()
    growing.log.file("/usr/bin/tool", sha256(b"two\n"))
    assert watch.look(policy) == ()


def test_m14_maintainer_scripts_belong_to_their_package(tmp_path: Path) -> None:
    dpkg = Dpkg(tmp_path)
    dpkg.install("tool", "1.0", ONE)
    database, growing = PackageDatabase(dpkg.root), Growing()
    policy = policy_of(toml_of(learn(database)))
    watch = PackageWatch(growing, database)
    dpkg.install("tool", "1.1", TWO)
    script = b"#!/bin/sh\n"
    for name in ("preinst", "postinst"):
        (dpkg.root / f"var/lib/dpkg/info/tool.{name}").write_bytes(script)
    growing.log.file("/var/lib/dpkg/tmp.ci/preinst", sha256(script))
    growing.log.file("/var/lib/dpkg/info/tool.postinst", sha256(script))
    (change,) = watch.look(policy)
    assert set(change.files) == {"/var/lib/dpkg/tmp.ci/preinst", "/var/lib/dpkg/info/tool.postinst"}


def test_an_upgrade_of_many_files_is_told_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agent.package_watch.MAX_REPORTED_FILES", 4)
    dpkg = Dpkg(tmp_path)
    dpkg.install("tool", "1.0", ONE)
    database, growing = PackageDatabase(dpkg.root), Growing()
    policy = policy_of(toml_of(learn(database)))
    watch = PackageWatch(growing, database)
    files = {f"usr/lib/tool/{number}": b"%d\n" % number for number in range(10)}
    dpkg.install("tool", "1.1", files)
    for path, content in files.items():
        growing.log.file(f"/{path}", sha256(content))
    told: dict[str, bytes] = {}
    while changes := watch.look(policy):
        assert sum(len(change.files) for change in changes) <= 4
        told |= {path: digest for change in changes for path, digest in change.files.items()}
        watch.reported(changes)
    assert told == {f"/{path}": sha256(content) for path, content in files.items()}


def test_garbage_in_the_log_is_left_to_the_controller(tmp_path: Path) -> None:
    for garbage in (b"garbage" * 100, b"", None):
        watch = PackageWatch(
            lambda offset, garbage=garbage: garbage and garbage[offset:], PackageDatabase(tmp_path)
        )  # type: ignore[misc]
        assert watch.look(ImaPolicy()) == ()


def test_the_command(tmp_path: Path) -> None:
    dpkg = Dpkg(tmp_path)
    dpkg.install("tool", "1.0", ONE)
    argv = [sys.executable, "-m", "agent.main", "learn", "--root", str(dpkg.root)]
    shown = subprocess.run([*argv, "ima"], cwd=TREE, capture_output=True, text=True, timeout=60, check=False)
    assert shown.returncode == 0, shown.stderr
    assert "2 files of 1 packages" in shown.stderr
    assert [package.name for package in policy_of(shown.stdout).package] == ["tool"]
    output = tmp_path / "ima.toml"
    log = TREE / "tests/vectors/good-rsa/ima.bin"
    more = ["--output", str(output), "ima", "--exclude", "/usr/lib/tool/", "--ima-log", str(log)]
    written = subprocess.run(
        [*argv, *more], cwd=TREE, capture_output=True, text=True, timeout=60, check=False
    )
    assert written.returncode == 0, written.stderr
    policy = policy_of(output.read_text())
    assert policy.exclude == ["/usr/lib/tool/"]
    assert "/init" in policy.allow
    for bad in (["--exclude", "/usr/"], ["--only-measured"]):
        refused = subprocess.run(
            [*argv, "ima", *bad], cwd=TREE, capture_output=True, text=True, timeout=60, check=False
        )
        assert refused.returncode == 2
