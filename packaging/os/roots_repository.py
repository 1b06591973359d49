"""The signed repository, read by apt and by dnf in clean roots (`roots.py`)."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from roots import Failed, Root
from roots_cases import case


@case(bare=True)
def repository(root: Root, source: Path) -> None:
    """`apt-get update && apt-get install` from the signed repository over file://; another key, or one changed byte, and apt refuses."""
    made = root.path / "srv/ringfence"
    _published(source, made)
    from_us = "deb [signed-by=/srv/ringfence/ringfence.asc] file:///srv/ringfence/apt stable main"
    root.run(f"echo '{from_us}' > /etc/apt/sources.list.d/ringfence.list")
    told = root.run(
        "apt-get update 2>&1 && apt-get install -y --no-install-recommends ringfence-agent 2>&1", network=True
    )
    if "ignored" in told.lower() and "ringfence" in told.lower().partition("ignored")[2][:200]:
        raise Failed(told)
    root.run("ringfence-agent --version && apt-cache policy ringfence-agent", says="file:/srv/ringfence/apt")
    only = "-o Dir::Etc::sourcelist=/etc/apt/sources.list.d/ringfence.list -o Dir::Etc::sourceparts=- -o APT::Update::Error-Mode=any"
    index = made / "apt/dists/stable/main/binary-amd64/Packages"
    good = index.read_bytes()
    for path in (index, index.with_suffix(".gz")):
        path.write_bytes(path.read_bytes()[:-1] + b"x")
    root.run(f"rm -rf /var/lib/apt/lists/*; apt-get {only} update 2>&1", code=None)
    index.write_bytes(good)
    index.with_suffix(".gz").unlink()
    signed = made / "apt/dists/stable/InRelease"
    signed.write_text(signed.read_text().replace("Suite: stable", "Suite: unstable"))
    (signed.parent / "Release").write_text("")
    root.run(f"rm -rf /var/lib/apt/lists/*; apt-get {only} update 2>&1", code=None)
    deb = next((made / "apt/pool").glob("ringfence_*.deb"))
    _published(source, made)
    deb.write_bytes(deb.read_bytes()[:-1] + b"x")
    root.run(
        f"rm -rf /var/lib/apt/lists/*; apt-get {only} update && apt-get {only} install -y ringfence 2>&1",
        code=None,
    )
    if root.version("ringfence").startswith("installed"):
        raise Failed("a changed package was installed")


def _published(source: Path, made: Path) -> None:
    command = [sys.executable, Path(__file__).parent / "repository.py", "--from", source, "--out", made]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise Failed(done.stdout + done.stderr)


@case()
def repository_by_dnf(root: Root, source: Path) -> None:
    """dnf takes the index, and each rpm is signed by the key beside it; with one byte more the index is refused."""
    made = root.path / "srv/ringfence"
    _published(source, made)
    root.run(
        """
        apt-get -qq update && apt-get -qq install -y --no-install-recommends dnf rpm gpg >/dev/null 2>&1
        mkdir -p /etc/yum.repos.d && cp /srv/ringfence/rpm/ringfence.repo /etc/yum.repos.d/
        """,
        network=True,
    )
    dnf = "dnf -y --setopt=reposdir=/etc/yum.repos.d --installroot=/fresh"
    root.run(f"{dnf} makecache && {dnf} repoquery ringfence-agent 2>&1", says="ringfence-agent-0:")
    root.run(
        "rpmkeys --import /srv/ringfence/ringfence.asc && rpmkeys -Kv /srv/ringfence/rpm/*.rpm",
        says="Signature, key ID",
    )
    with (made / "rpm/repodata/repomd.xml").open("a") as file:
        file.write("x")
    root.run(f"rm -rf /fresh; {dnf} makecache 2>&1", says="GPG signature verification error")
