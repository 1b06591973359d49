"""What is tried with built packages in clean roots (`roots.py`): one function a case; its docstring says what must be.

A case with a Root runs in every Debian. `bare`: the root has none of the packages that ours depend on.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from roots import TREE, Failed, Root

CASES: list[Any] = []
_FENCE = """
nft add table inet ringfence; nft 'add chain inet ringfence input { type filter hook input priority 0; policy drop; }'
nft add table inet ringfence_guard; nft add table arp ringfence; nft add table inet theirs
"""
_NEWER = "ringfence-agent-newer"
_CONFIG = """
mkdir -p /etc/ringfence; touch /etc/ringfence/ca.pem
printf 'node = "press-1"\\nsite = "factory"\\n[controller]\\nurl = "https://192.0.2.1:8440"\\nca = "/etc/ringfence/ca.pem"\\n' > /etc/ringfence/agent.toml
"""


def case(*, bare: bool = False, full: int | None = None, where: str = "root") -> Callable[[Any], Any]:
    """Put a function among the cases."""

    def kept(function: Any) -> Any:
        function.bare, function.full, function.where = bare, full, where
        CASES.append(function)
        return function

    return kept


@case(where="here")
def lint_deb(source: Path, work: Path) -> None:
    """lintian finds nothing but what is overridden with a reason."""
    for deb in sorted(source.glob("*.deb")):
        done = subprocess.run(
            ["lintian", "--no-cfg", "--fail-on", "error,warning", "--tag-display-limit", "0", deb],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        if done.returncode != 0 or "E: " in done.stdout or "W: " in done.stdout:
            raise Failed(f"{deb.name}:\n{done.stdout[:3000]}{done.stderr[:500]}")


@case(where="here")
def lint_rpm(source: Path, work: Path) -> None:
    """rpmlint finds no error but what packaging/os/rpmlint.toml filters with a reason."""
    settings = Path(__file__).parent / "rpmlint.toml"
    for rpm in sorted(source.glob("*.rpm")):
        done = subprocess.run(
            ["rpmlint", "--config", settings, rpm], capture_output=True, text=True, check=False
        )
        if done.returncode != 0 or ": E: " in done.stdout:
            raise Failed(f"{rpm.name}:\n{done.stdout[:3000]}{done.stderr[:500]}")


@case(where="here")
def rpm_test(source: Path, work: Path) -> None:
    """`rpm -i --test` in an empty root asks for exactly what we depend on, and with that set aside finds no conflict."""
    for rpm in sorted(source.glob("*.rpm")):
        root = Path(tempfile.mkdtemp(dir=work))
        subprocess.run(["rpm", "--root", root, "--initdb"], check=True)
        told = subprocess.run(
            ["rpm", "--root", root, "-i", "--test", rpm], capture_output=True, text=True, check=False
        )
        needed = {line.split()[0] for line in told.stderr.splitlines() if "is needed by" in line}
        allowed = {"/bin/sh", "libz.so.1()(64bit)"}
        allowed |= {"nftables", "setup", "shadow-utils", "coreutils", "sed", "findutils"}
        if needed - allowed:
            raise Failed(f"{rpm.name} needs {needed}")
        done = subprocess.run(
            ["rpm", "--root", root, "-i", "--test", "--nodeps", rpm],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            raise Failed(f"{rpm.name}: {done.stderr}")


@case(where="here")
def image(source: Path, work: Path) -> None:
    """The image's files on a read-only root, as the image's user and with no capability: made, started, answers."""
    deb = next(source.glob("ringfence-controller_*.deb"))
    tag = "ringfence-controller:try"
    subprocess.run([Path(__file__).parents[1] / "oci/build", deb, tag], check=True, stdout=subprocess.DEVNULL)
    inspected = subprocess.run(
        ["podman", "image", "inspect", "--format", "{{.User}} {{.Config.Entrypoint}} {{.Config.Cmd}}", tag],
        check=True, capture_output=True, text=True,
    ).stdout  # fmt: skip
    if (
        inspected
        != "64440:64440 [/usr/bin/ringfence-controller] [serve --dir /var/lib/ringfence-controller]\n"
    ):
        raise Failed(inspected)
    tools = Path(tempfile.mkdtemp(dir=work))
    subprocess.run(["dpkg-deb", "-x", next(source.glob("ringfence_*.deb")), tools], check=True)
    root = subprocess.run(
        ["podman", "image", "mount", tag], check=True, capture_output=True, text=True
    ).stdout.strip()
    script = f"""
        set -e
        ip link set lo up
        mkdir {work}/oci; mount --bind {root} {work}/oci; mount -o remount,ro,bind {work}/oci
        mount -t tmpfs -o uid=64440,gid=64440,mode=700 state {work}/oci/var/lib/ringfence-controller
        inside() {{ setpriv --no-new-privs chroot --userspec=64440:64440 {work}/oci /usr/bin/ringfence-controller "$@"; }}
        inside --version
        inside init --dir /var/lib/ringfence-controller --node-listen 127.0.0.1:8440 --admin-listen 127.0.0.1:8441 \
            --admin-url https://127.0.0.1:8441 --node-url https://127.0.0.1:8440 > {work}/token
        inside serve --dir /var/lib/ringfence-controller 2>{work}/log & pid=$!
        for i in $(seq 60); do grep -q listening {work}/log && break; sleep 1; done
        export RINGFENCE_URL=https://127.0.0.1:8441 RINGFENCE_CA={work}/oci/var/lib/ringfence-controller/controller-ca.pem
        RINGFENCE_TOKEN=$(head -1 {work}/token) {tools}/usr/bin/ringfence status
        grep -E '^(Uid|CapEff|CapBnd|NoNewPrivs)' /proc/$(pgrep -n -f 'ringfence-controller serve')/status
        test ! -e {work}/oci/bin/sh; kill $(pgrep -f 'ringfence-controller serve')
    """
    try:
        done = subprocess.run(
            ["unshare", "--mount", "--net", "--pid", "--fork", "--mount-proc", "sh", "-c", script],
            capture_output=True, text=True, check=False, timeout=300,
        )  # fmt: skip
    finally:
        subprocess.run(["podman", "image", "unmount", tag], check=True, stdout=subprocess.DEVNULL)
        subprocess.run(["podman", "image", "rm", tag], check=True, stdout=subprocess.DEVNULL)
    wanted = ("Uid:\t64440", "CapEff:\t0000000000000000", "NoNewPrivs:\t1")
    if done.returncode != 0 or any(each not in done.stdout for each in wanted):
        raise Failed(f"{done.returncode}: {done.stdout}{done.stderr}")


@case()
def install_and_run(root: Root, source: Path) -> None:
    """Programs tell their version, shipped baselines are taken by the code and by the kernel, pages and completions are there."""
    root.install("ringfence-agent", "ringfence-controller", "ringfence")
    root.whole()
    version = root.version().split()[1].rpartition("-")[0]
    for program in ("ringfence-agent", "ringfence-controller", "ringfence"):
        root.run(f"{program} --version", says=f"{program}, version {version}")
    for name in ("factory", "retail", "strict", "legacy"):
        root.run(
            f"ringfence-agent check /usr/share/doc/ringfence-agent/baselines/{name}.toml 2>/dev/null",
            says="sections",
        )
    root.run(
        "printf '[baseline]\\nname = \"x\"\\nversion = 1\\n[firewal]\\n' > /t.toml; ringfence-agent check /t.toml",
        code=2,
    )
    for page in ("man8/ringfence-agent.8", "man8/ringfence-controller.8", "man1/ringfence.1"):
        # A minimal Debian leaves pages out by a setting of dpkg's; what was unpacked is a page.
        root.run(
            f"test ! -e /usr/share/man/{page}.gz || zcat /usr/share/man/{page}.gz | grep -q '^.SH COMMANDS'"
        )
    root.run(
        "apt-get --version >/dev/null; bash -c '. /usr/share/bash-completion/completions/ringfence-agent;"
        ' COMP_WORDS=(ringfence-agent lea); COMP_CWORD=1; _ringfence_agent_completion ringfence-agent; echo "${COMPREPLY[@]}"\'',
        says="learn",
    )
    links = root.run("find /etc/systemd/system -type l -name 'ringfence*' | sort")
    for unit in (
        "ringfence-agent.service",
        "ringfence-early.service",
        "ringfence-fence.service",
        "ringfence-grants.path",
        "ringfence-repair.socket",
        "ringfence-upgrade.path",
    ):
        if unit not in links:
            raise Failed(f"{unit} does not start at boot: {links}")


@case()
def install_twice(root: Root, source: Path) -> None:
    """The second time changes nothing."""
    look = "find /etc /usr /var/lib/ringfence* -xdev -not -path '*/__pycache__*' -printf '%p %m %U %s %l\\n' | sort | sha256sum"
    root.install("ringfence-agent", "ringfence-controller")
    first = root.run(look)
    root.install("ringfence-agent", "ringfence-controller")
    if root.run(look) != first:
        raise Failed("the second installation left other files than the first")
    root.whole()


@case()
def upgrade_and_downgrade(root: Root, source: Path) -> None:
    """An upgrade keeps state, configuration and fence; a downgrade is refused, with nothing changed, unless it is asked for."""
    root.install("ringfence-agent")
    older = root.version()
    root.run(_CONFIG + "echo kept > /var/lib/ringfence/state")
    files = f"/root/{root.debs[_NEWER].name}"
    told = root.run(f"{_FENCE} dpkg --force-unsafe-io -i {files} && nft list tables")
    if "inet ringfence" not in told:
        raise Failed("the upgrade opened the fence")
    newer = root.version()
    if newer != "installed 99.0-1":
        raise Failed(f"upgraded to {newer}")
    root.install("ringfence-agent", code=None, says="RINGFENCE_DOWNGRADE=1")
    if root.version() != newer:
        raise Failed(f"refused, and yet {root.version()}")
    root.whole()
    root.run(
        "ringfence-agent --version && cat /var/lib/ringfence/state && cat /etc/ringfence/agent.toml",
        says="kept",
    )
    root.install("ringfence-agent", RINGFENCE_DOWNGRADE="1")
    if root.version() != older:
        raise Failed(f"asked for, and yet {root.version()}")


@case()
def remove_and_purge(root: Root, source: Path) -> None:
    """Removal keeps the fence unless it is told to open it; a misspelt order changes nothing; purge forgets the node."""
    root.install("ringfence-agent")
    root.run(_CONFIG + "echo kept > /var/lib/ringfence/state")
    remove = f"{_FENCE} dpkg -r ringfence-agent; code=$?; nft list tables; exit $code"
    told = root.run(remove, code=None, says="nothing was changed", RINGFENCE_ON_REMOVE="opne")
    if "inet ringfence\n" not in told or not root.version().startswith("installed"):
        raise Failed(f"a misspelt order did something: {root.version()} {told}")
    told = root.run(remove, says="stays in the kernel")
    if "inet ringfence\n" not in told or not root.version().startswith("config-files"):
        raise Failed(f"{root.version()}: {told}")
    root.run(
        "test -e /var/lib/ringfence/state && test -e /etc/ringfence/agent.toml && ! test -e /usr/bin/ringfence-agent"
    )
    root.run("find /etc/systemd/system -name 'ringfence*' | grep -q . && exit 1 || exit 0")
    root.install("ringfence-agent")
    told = root.run(remove, says="opened, as asked", RINGFENCE_ON_REMOVE="open")
    if (
        "ringfence" in told.partition("opened, as asked")[2].replace("Ringfence", "")
        or "inet theirs" not in told
    ):
        raise Failed(told)
    root.run(
        "dpkg -P ringfence-agent; ls -d /etc/ringfence /var/lib/ringfence* /usr/lib/ringfence-agent 2>/dev/null",
        code=None,
    )
    if root.version().startswith(("installed", "config")):
        raise Failed(root.version())


@case()
def interrupted(root: Root, source: Path) -> None:
    """dpkg killed in the middle of unpacking: the same command again makes it whole; the fence was not touched."""
    root.install("ringfence-agent")
    newer = f"/root/{root.debs[_NEWER].name}"
    script = f"""
        {_FENCE}
        dpkg -i {newer} & pid=$!
        while ! find /usr/lib/ringfence-agent -name '*.dpkg-new' | grep -q .; do kill -0 $pid || exit 9; done
        kill -9 $pid; wait $pid 2>/dev/null; pkill -9 dpkg-deb 2>/dev/null; nft list tables; dpkg --audit
    """
    told = root.run(script, says="inet ringfence\n")
    if "ringfence-agent" not in told.partition("theirs")[2]:
        raise Failed(f"dpkg does not know that it was interrupted: {told}")
    root.install(_NEWER)
    root.whole()
    root.run("ringfence-agent --version")
    if root.version() != "installed 99.0-1":
        raise Failed(root.version())


@case(full=200_000_000)
def full_disk(root: Root, source: Path) -> None:
    """No room for the newer package: dpkg says so, and the older one is there, whole, and runs."""
    root.install("ringfence-agent")
    before = root.version()
    root.run("fallocate -l $(( $(df -B1 --output=avail / | tail -1) - 20000000 )) /filler")
    root.install(_NEWER, code=None, says="No space left on device")
    if root.version() != before:
        raise Failed(root.version())
    root.whole()
    root.run(
        "ringfence-agent --version && ringfence-agent check /usr/share/doc/ringfence-agent/baselines/factory.toml 2>&1",
        says="sections",
    )
    root.run("rm /filler")
    root.install(_NEWER)
    root.whole()


@case()
def no_tpm(root: Root, source: Path) -> None:
    """Installing says that there is no TPM; enrolling says it too, and ends."""
    root.install("ringfence-agent", says="no TPM at /dev/tpmrm0")
    enrol = "ringfence-agent enrol --timeout 5"
    root.run(_CONFIG + enrol, code=1, says="/etc/ringfence/ca.pem: no certificate is in it")
    shutil.copy(TREE / "tests/vectors/good-rsa/ca-root.pem", root.path / "etc/ringfence/ca.pem")
    root.run(enrol, code=1, says="there is no TPM: /dev/tpmrm0 does not exist")


@case(bare=True)
def no_nftables(root: Root, source: Path) -> None:
    """Refused by name and not configured; taken out again without a trace. Forced, it says what is missing."""
    root.install("ringfence-agent", code=None, says="nftables")
    root.run(
        'dpkg --purge ringfence-agent && ! test -e /usr/lib/ringfence-agent && test -z "$(dpkg --audit)"'
    )
    root.install("ringfence-agent", force="--force-depends", says="nftables is not installed")
    root.run("ringfence-agent --version")


@case()
def controller(root: Root, source: Path) -> None:
    """Made, started as its own user, answers, backed up (old backups go); purge leaves keys and database."""
    root.install("ringfence-controller", "ringfence")
    made = "/var/lib/ringfence-controller"
    told = root.run(
        f"""
        set -e
        ringfence-controller init --dir {made} --token-file /root/token --node-listen 127.0.0.1:8440 --admin-listen 127.0.0.1:8441
        chown -R ringfence-controller: {made}
        setpriv --reuid ringfence-controller --regid ringfence-controller --clear-groups ringfence-controller serve --dir {made} >/log 2>&1 & pid=$!
        export RINGFENCE_URL=https://localhost:8441 RINGFENCE_CA={made}/controller-ca.pem RINGFENCE_TOKEN=$(cat /root/token)
        for i in $(seq 60); do grep -q listening /log && break; kill -0 $pid; sleep 1; done
        ringfence status || {{ cat /log; exit 1; }}
        printf 'KEEP=2\\nTO=/backups\\n' > /b.conf; mkdir -m 700 /backups; touch /backups/ringfence-notes
        for i in 1 2 3; do /usr/lib/ringfence-controller/backup /b.conf; sleep 1; done
        kill $pid; wait $pid || true
        ls /backups | wc -l; ls /backups/*/; find /backups -name keys
        """,
        network=False,
    )
    if "\n3\n" not in told or "database" not in told or "keys" in told.rpartition("\n3\n")[2]:
        raise Failed(f"backups: {told}")
    root.run(
        f"echo KEEP=7 >> /etc/ringfence-controller/backup.conf; dpkg --force-unsafe-io --force-confold -i /root/{root.debs['ringfence-controller-newer'].name}"
    )
    root.run(
        "grep -q KEEP=7 /etc/ringfence-controller/backup.conf && dpkg-query -W -f '${Conffiles}' ringfence-controller",
        says="backup.conf",
    )
    root.install("ringfence-controller", code=None, says="RINGFENCE_DOWNGRADE=1")
    root.run("dpkg -P ringfence ringfence-controller", says="keys and database stay")
    root.run(
        f"test -e {made}/keys/directive.key && ! test -e /etc/ringfence-controller/backup.conf && ! test -e /usr/lib/ringfence-controller/backup"
    )


@case()
def rpm_install(root: Root, source: Path) -> None:
    """The rpm, by rpm itself, into a root: scripts run, programs run, an older one is refused, removal keeps what the node knows."""
    rpm = next(source.glob("ringfence-agent-*.rpm"))
    place = ["rpm", "--root", root.path, "--dbpath", "/var/lib/rpm-try"]
    subprocess.run([*place, "--initdb"], check=True)
    for arguments in (["-i", "--nodeps", rpm], ["-V", "--nodeps", "ringfence-agent"]):
        done = subprocess.run([*place, *arguments], capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise Failed(f"rpm {arguments}: {done.stdout}{done.stderr}")
    root.run(
        "ringfence-agent --version && test -L /etc/systemd/system/sysinit.target.wants/ringfence-early.service"
    )
    root.run("echo kept > /var/lib/ringfence/state")
    done = subprocess.run([*place, "-e", "ringfence-agent"], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise Failed(done.stderr)
    root.run(
        "! test -e /usr/bin/ringfence-agent && test -e /var/lib/ringfence/state && ! test -e /etc/systemd/system/sysinit.target.wants/ringfence-early.service"
    )
