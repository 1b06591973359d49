"""The built packages (`make packages`), where they are: what is in them, that it runs, that it is what the bill and the provenance say.

Signing and verifying are tried in any case. What needs clean roots is `make packages-try`.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

TREE = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(TREE / "packaging/os"))
import provenance  # noqa: E402  (a script beside its tool, not a package)

DIST = Path(os.environ.get("RINGFENCE_PACKAGES", TREE / "dist"))
DEBS = sorted(DIST.glob("*.deb"))
VERSION = tomllib.loads((TREE / "pyproject.toml").read_text())["project"]["version"]
built = pytest.mark.skipif(not DEBS, reason="no built packages: make packages")
each_deb = pytest.mark.parametrize("deb", DEBS or [Path("none")], ids=lambda path: path.name.split("_")[0])


def read(deb: Path, name: str) -> bytes:
    """One file of a package."""
    tar = subprocess.run(["dpkg-deb", "--fsys-tarfile", deb], check=True, capture_output=True).stdout
    return subprocess.run(
        ["tar", "-xOf", "-", f"./{name}"], check=True, input=tar, capture_output=True
    ).stdout


@built
@each_deb
def test_a_package_runs_without_being_installed_and_tells_its_version(deb: Path, tmp_path: Path) -> None:
    subprocess.run(["dpkg-deb", "-x", deb, tmp_path], check=True)
    program = deb.name.split("_")[0]
    version = deb.name.split("_")[1].rpartition("-")[0]
    done = subprocess.run(
        [tmp_path / "usr/bin" / program, "--version"], capture_output=True, text=True, env={}
    )
    assert done.stdout == f"{program}, version {version}\n", done.stderr
    if program == "ringfence-agent":
        for baseline in sorted((tmp_path / "usr/share/doc/ringfence-agent/baselines").glob("*.toml")):
            checked = subprocess.run(
                [tmp_path / "usr/bin" / program, "check", baseline], capture_output=True, text=True
            )
            assert checked.returncode == 0, checked.stderr
    # Neither the folder that it was built in, nor the machine's.
    grep = subprocess.run(["grep", "-rlE", f"{TREE}/|direct_url", tmp_path / "usr/lib"], capture_output=True)
    assert grep.stdout == b""


@built
@each_deb
def test_times_modes_and_owners_are_fixed(deb: Path) -> None:
    listed = subprocess.run(["dpkg-deb", "-c", deb], check=True, capture_output=True, text=True).stdout
    times = set()
    for line in listed.splitlines():
        mode, owner, _, day, hour, *_ = line.split()
        assert owner == "root/root", line
        assert mode in ("drwxr-xr-x", "drwx------", "-rw-r--r--", "-rwxr-xr-x", "lrwxrwxrwx", "l---------"), (
            line
        )
        times.add(f"{day} {hour}")
    assert len(times) == 1


@built
@each_deb
def test_the_bill_names_every_native_file_with_its_digest_and_a_licence_of_each_part(deb: Path) -> None:
    program = deb.name.split("_")[0]
    inside = read(deb, f"usr/share/doc/{program}/{program}.cdx.json")
    assert inside == next(DIST.glob(f"{program}_*.cdx.json")).read_bytes()
    bill = json.loads(inside)
    files = {
        each["name"]: each["hashes"][0]["content"] for each in bill["components"] if each["type"] == "file"
    }
    tar = subprocess.run(["dpkg-deb", "--fsys-tarfile", deb], check=True, capture_output=True).stdout
    names = subprocess.run(
        ["tar", "-tf", "-"], check=True, input=tar, capture_output=True, text=False
    ).stdout.decode()
    native = {
        name.removeprefix(f"./usr/lib/{program}/")
        for name in names.splitlines()
        if re.search(r"\.so(\.[0-9.]+)?$", name)
    }
    assert native and native == set(files)
    one = sorted(native)[0]
    assert hashlib.sha256(read(deb, f"usr/lib/{program}/{one}")).hexdigest() == files[one]
    libraries = [each for each in bill["components"] if each["type"] == "library"]
    assert {"click", "msgspec", "cryptography"} <= {each["name"] for each in libraries}
    assert all(each["licenses"] and "NOASSERTION" not in json.dumps(each["licenses"]) for each in libraries)
    text = subprocess.run(
        ["gunzip"], input=read(deb, f"usr/share/doc/{program}/licences.gz"), capture_output=True, check=True
    ).stdout.decode()
    assert all(f"{each['name']} {each['version']}:" in text for each in libraries)


@built
def test_configuration_is_marked_and_scripts_know_their_version() -> None:
    for deb in DEBS:
        scripts = subprocess.run(["dpkg-deb", "--ctrl-tarfile", deb], check=True, capture_output=True).stdout
        listed = subprocess.run(
            ["tar", "-tf", "-"], input=scripts, check=True, capture_output=True
        ).stdout.decode()
        if "preinst" in listed:
            text = subprocess.run(
                ["tar", "-xOf", "-", "./preinst"], input=scripts, check=True, capture_output=True
            ).stdout.decode()
            assert f'new="{deb.name.split("_")[1]}"' in text and "@VERSION@" not in text
        etc = subprocess.run(["dpkg-deb", "-c", deb], check=True, capture_output=True, text=True).stdout
        files = set(re.findall(r"^-.* \./(etc/\S+)$", etc, re.M))
        marked = b""
        if "conffiles" in listed:
            marked = subprocess.run(
                ["tar", "-xOf", "-", "./conffiles"], input=scripts, check=True, capture_output=True
            ).stdout
        assert {f"/{name}" for name in files} == set(marked.decode().split())


@pytest.fixture
def keys(tmp_path: Path) -> tuple[Path, Path]:
    """A private and a public key."""
    private, public = tmp_path / "private.pem", tmp_path / "public.pem"
    subprocess.run(["openssl", "genpkey", "-algorithm", "ed25519", "-out", private], check=True)
    subprocess.run(["openssl", "pkey", "-in", private, "-pubout", "-out", public], check=True)
    return private, public


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A repository with one commit."""
    made = tmp_path / "tree"
    (made / "packaging/setup").mkdir(parents=True)
    (made / "packaging/setup/requirements.txt").write_text("nothing\n")
    for command in (
        ["init", "-q"],
        ["add", "."],
        ["-c", "user.name=x", "-c", "user.email=x@localhost", "commit", "-qm", "one"],
    ):
        subprocess.run(["git", *command], cwd=made, check=True)
    return made


def test_provenance_proves_only_the_very_file_by_the_very_key(
    tmp_path: Path, tree: Path, keys: tuple[Path, Path]
) -> None:
    private, public = keys
    file, other = tmp_path / "a.deb", tmp_path / "b.deb"
    file.write_bytes(b"package")
    other.write_bytes(b"another")
    said = provenance.statement(tree, [file])
    envelope = provenance.sign(said, private)
    head = provenance.git(tree, "rev-parse", "HEAD")
    assert provenance.verify(envelope, public, [file], commit=head) == head
    stranger = tmp_path / "stranger.pem"
    subprocess.run(["openssl", "genpkey", "-algorithm", "ed25519", "-out", stranger], check=True)
    subprocess.run(["openssl", "pkey", "-in", stranger, "-pubout", "-out", tmp_path / "s.pem"], check=True)
    value = json.loads(envelope)
    (tree / "packaging/setup/requirements.txt").write_text("another\n")
    changed = provenance.sign(provenance.statement(tree, [file]), private)
    another = provenance.sign(json.dumps({**json.loads(said), "predicateType": "x"}).encode(), private)
    cases = {
        "not among": (envelope, public, [file, other]),
        "no file": (envelope, public, []),
        "not signed": (envelope, tmp_path / "s.pem", [file]),
        "differed": (changed, public, [file]),
        "no provenance": (another, public, [file]),
    }
    for word, (given, key, files) in cases.items():
        with pytest.raises(provenance.Unproved, match=word):
            provenance.verify(given, key, files)
    for altered in ({**value, "payload": value["payload"][:-8]}, {**value, "signatures": []}, {}, []):
        with pytest.raises(provenance.Unproved):
            provenance.verify(json.dumps(altered).encode(), public, [file])
    with pytest.raises(provenance.Unproved, match="not from"):
        provenance.verify(envelope, public, [file], commit="0" * 40)
    file.write_bytes(b"packagE")
    with pytest.raises(provenance.Unproved, match="changed"):
        provenance.verify(envelope, public, [file])


def test_the_verifying_command_says_yes_by_its_exit_code_alone_when_it_is_proved(
    tmp_path: Path, tree: Path, keys: tuple[Path, Path]
) -> None:
    private, public = keys
    file, at = tmp_path / "a.deb", tmp_path / "statement"
    file.write_bytes(b"package")
    at.write_bytes(provenance.statement(tree, [file]))
    tool = [sys.executable, TREE / "packaging/os/provenance.py"]
    subprocess.run([*tool, "sign", "--key", private, "--out", tmp_path / "e", at], check=True)
    good = subprocess.run(
        [*tool, "verify", "--key", public, tmp_path / "e", file], capture_output=True, text=True
    )
    assert (good.returncode, "built from commit" in good.stdout) == (0, True), good.stderr
    file.write_bytes(b"other")
    bad = subprocess.run(
        [*tool, "verify", "--key", public, tmp_path / "e", file], capture_output=True, text=True
    )
    assert (bad.returncode, bad.stderr) == (1, "not proved: a.deb was changed\n")
