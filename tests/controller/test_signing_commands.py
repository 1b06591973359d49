"""`ringfence keys` and `ringfence baseline sign | cosign`, run as a person runs them."""

from __future__ import annotations

import json
import shlex
import stat
import subprocess
import time
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from contract.errors import Rejected
from controller.cli.keys import keys
from controller.cli.sign import cosign, sign
from controller.repository import Repository, read_bundle
from tests.parts.signing import minimal_baseline

ACCEPTS, REFUSES = "exit 0", "echo 'b.toml:7: firewall: no' >&2; exit 2"


@click.group()
def command() -> None:
    """Stands for `ringfence` with its `baseline` group."""


command.add_command(keys)
command.add_command(sign)
command.add_command(cosign)


class Bench:
    """A signing machine: a folder, an online key, and a checker that says what it is told."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.online = Ed25519PrivateKey.generate()
        public = self.online.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        (folder / "online.pub").write_bytes(public)
        self.checker_says(ACCEPTS)
        self.repository = folder / "out" / "repository"

    def checker_says(self, script: str) -> None:
        path = self.folder / "checker"
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)

    def run(self, line: str, **facts: str) -> Result:
        """Run a command line; relative paths are of the bench's folder."""
        words = [str(self.folder / w[1:]) if w.startswith("@") else w for w in shlex.split(line)]
        return CliRunner().invoke(command, words, catch_exceptions=False, **facts)  # type: ignore[arg-type]

    def good(self, line: str) -> str:
        result = self.run(line)
        assert result.exit_code == 0, result.output
        return result.output

    def bad(self, line: str) -> str:
        with pytest.raises((Rejected, OSError)) as caught:
            self.run(line)
        return str(caught.value)

    def new(self, options: str = "--plain") -> None:
        self.good(f"keys new --out @out --online-key @online.pub {options}")

    def baseline(self, version: int, *, extra: str = "") -> None:
        (self.folder / f"{version}.toml").write_bytes(minimal_baseline(version=version, extra=extra))

    def sign(self, version: int, *people: int) -> str:
        named = " ".join(f"--key @out/keys/targets-{n}.pem" for n in people or (1,))
        return f"sign @{version}.toml --repository @out/repository --checker @checker {named}"

    def cosign(self, person: int) -> str:
        key = f"@out/keys/targets-{person}.pem"
        return f"cosign --yes --repository @out/repository --checker @checker --key {key}"


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def test_keys_are_private_and_never_written_over(bench: Bench) -> None:
    bench.new()
    for path in (bench.folder / "out/keys").iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    before = (bench.folder / "out/keys/root-1.pem").read_bytes()
    assert "nothing was changed" in bench.bad("keys new --out @out --online-key @online.pub --plain")
    assert (bench.folder / "out/keys/root-1.pem").read_bytes() == before


def test_keys_without_a_passphrase_are_only_made_when_asked_for(bench: Bench) -> None:
    assert "--passphrase-file" in bench.bad("keys new --out @out --online-key @online.pub")
    assert not (bench.folder / "out").exists()
    (bench.folder / "empty").write_text("\n")
    assert "empty" in bench.bad("keys new --out @out --online-key @online.pub --passphrase-file @empty")


def test_encrypted_keys_sign_with_the_passphrase_only_and_openssl_reads_them(bench: Bench) -> None:
    (bench.folder / "pass").write_text("correct horse\n")
    (bench.folder / "wrong").write_text("incorrect\n")
    bench.new("--passphrase-file @pass")
    path = bench.folder / "out/keys/targets-1.pem"
    assert b"ENCRYPTED PRIVATE KEY" in path.read_bytes()
    done = subprocess.run(
        ["openssl", "pkey", "-in", path, "-passin", "pass:correct horse", "-noout", "-text"],
        capture_output=True,
        text=True,
    )
    assert "ED25519" in done.stdout
    bench.baseline(1)
    assert "signing.key" in bench.bad(bench.sign(1) + " --passphrase-file @wrong")
    assert "no terminal" in bench.bad(bench.sign(1))
    assert "1 of 1" in bench.good(bench.sign(1) + " --passphrase-file @pass")


def test_key_that_others_can_read_is_refused(bench: Bench) -> None:
    bench.new()
    (bench.folder / "out/keys/targets-1.pem").chmod(0o640)
    bench.baseline(1)
    assert "chmod 600" in bench.bad(bench.sign(1))


def test_one_person_signs_and_the_controller_takes_it(bench: Bench) -> None:
    bench.new()
    bench.baseline(1)
    assert "1 of 1" in bench.good(bench.sign(1))
    new = Repository(bench.online).accept(read_bundle(bench.repository), {}, now=time.time())
    assert [(b.name, b.version) for b in new.baselines] == [("factory", 1)]
    assert read_bundle(bench.folder / "out") == read_bundle(bench.repository)


def test_one_version_after_the_other_reaches_the_controller(bench: Bench) -> None:
    bench.new()
    state: dict[str, bytes] = {}
    for version in (1, 2, 5):
        bench.baseline(version)
        bench.good(bench.sign(version))
        new = Repository(bench.online).accept(read_bundle(bench.repository), state, now=time.time() + version)
        assert [b.version for b in new.baselines] == [version]
        state |= new.files


def test_c01_two_people_must_sign_and_one_twice_does_not_do(bench: Bench) -> None:
    bench.new("--plain --targets-threshold 2")
    bench.baseline(1)
    assert "1 of 2" in bench.good(bench.sign(1))
    assert "1 of 2" in bench.good(bench.sign(1))
    assert "1 of 2" in bench.good(bench.cosign(1))
    with pytest.raises(Rejected, match=r"metadata\.signatures"):
        read_bundle(bench.repository)
    assert "2 of 2" in bench.good(bench.cosign(2))
    Repository(bench.online).accept(read_bundle(bench.repository), {}, now=time.time())


def test_c01_version_that_was_signed_is_never_signed_with_other_content_or_lower(bench: Bench) -> None:
    bench.new()
    bench.baseline(2)
    bench.good(bench.sign(2))
    listed = (bench.repository / "targets.json").read_bytes()
    bench.baseline(2, extra="# changed\n")
    assert "signed before" in bench.bad(bench.sign(2))
    bench.baseline(1)
    assert "signed before" in bench.bad(bench.sign(1))
    assert (bench.repository / "targets.json").read_bytes() == listed


def test_c01_foreign_and_root_keys_do_not_sign_baselines(bench: Bench) -> None:
    bench.new()
    bench.baseline(1)
    line = "sign @1.toml --repository @out --checker @checker --key @out/keys/root-1.pem"
    assert "offline.key" in bench.bad(line)
    bench.good("keys new --out @theirs --online-key @online.pub --plain")
    assert "offline.key" in bench.bad(line.replace("@out/keys/root-1", "@theirs/keys/targets-1"))


def test_what_the_agent_refuses_is_not_signed(bench: Bench) -> None:
    bench.new()
    bench.baseline(1)
    bench.checker_says(REFUSES)
    assert "b.toml:7: firewall: no" in bench.bad(bench.sign(1))
    with pytest.raises(FileNotFoundError):
        (bench.repository / "targets/factory/1.toml").read_bytes()


def test_the_real_agent_checks_what_is_signed(bench: Bench) -> None:
    bench.new()
    bench.baseline(1)
    line = bench.sign(1).replace("--checker @checker", "")
    assert "1 of 1" in bench.good(line)
    bench.baseline(2, extra="[firewall]\nbogus = 1\n")
    told = bench.bad(bench.sign(2).replace("--checker @checker", ""))
    assert "signing.refused" in told
    assert "firewall.bogus" in told


def test_the_second_person_does_not_trust_the_first_ones_files(bench: Bench) -> None:
    bench.new("--plain --targets-threshold 2")
    bench.baseline(1)
    bench.good(bench.sign(1))
    bench.checker_says(REFUSES)
    assert "refuses" in bench.bad(bench.cosign(2))
    bench.checker_says(ACCEPTS)
    (bench.repository / "targets/factory/1.toml").write_bytes(minimal_baseline(extra="# other\n"))
    assert "offline.file" in bench.bad(bench.cosign(2))


def test_the_second_person_is_asked(bench: Bench) -> None:
    bench.new("--plain --targets-threshold 2")
    bench.baseline(1)
    bench.good(bench.sign(1))
    line = bench.cosign(2).replace("--yes ", "")
    assert bench.run(line, input="n\n").exit_code != 0
    assert bench.run(line, input="y\n").exit_code == 0


def test_keys_are_replaced_and_the_old_ones_are_worth_nothing(bench: Bench) -> None:
    bench.new()
    bench.baseline(1)
    bench.good(bench.sign(1))
    state = Repository(bench.online).accept(read_bundle(bench.repository), {}, now=time.time()).files
    bench.good("keys new --out @next --online-key @online.pub --plain")
    public = bench.good("keys public @next/keys/targets-1.pem")
    (bench.folder / "next.pub").write_text(public)
    rotate = "keys rotate @out --targets-key @next.pub --key "
    assert "metadata.signatures" in bench.bad(rotate + "@next/keys/root-1.pem")
    assert "0 of 1" in bench.good(rotate + "@out/keys/root-1.pem")
    bench.baseline(2)
    assert "offline.key" in bench.bad(bench.sign(2))
    bench.good(bench.sign(2).replace("@out/keys", "@next/keys"))
    new = Repository(bench.online).accept(read_bundle(bench.repository), state, now=time.time() + 1)
    assert [b.version for b in new.baselines] == [2]
    assert "metadata/2.root.json" in new.files


def test_root_keys_are_replaced_by_old_and_new_together(bench: Bench) -> None:
    bench.new()
    bench.baseline(1)
    bench.good(bench.sign(1))
    state = Repository(bench.online).accept(read_bundle(bench.repository), {}, now=time.time()).files
    bench.good("keys new --out @next --online-key @online.pub --plain")
    (bench.folder / "next.pub").write_text(bench.good("keys public @next/keys/root-1.pem"))
    rotate = "keys rotate @out --root-key @next.pub"
    old, new = "--key @out/keys/root-1.pem", "--key @next/keys/root-1.pem"
    assert "metadata.signatures" in bench.bad(f"{rotate} {old}")
    assert "metadata.signatures" in bench.bad(f"{rotate} {new}")
    assert "root version 2" in bench.good(f"{rotate} {old} {new}")
    assert "metadata.signatures" in bench.bad(f"keys rotate @out {old}")
    assert "root version 3" in bench.good(f"keys rotate @out {new}")
    new_state = Repository(bench.online).accept(read_bundle(bench.repository), state, now=time.time() + 1)
    assert {"metadata/2.root.json", "metadata/3.root.json"} <= new_state.files.keys()


def test_online_key_is_replaced_by_command(bench: Bench) -> None:
    bench.new()
    other = Ed25519PrivateKey.generate()
    public = other.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    (bench.folder / "other.pub").write_bytes(public)
    bench.good("keys rotate @out --online-key @other.pub --key @out/keys/root-1.pem")
    bundle = read_bundle(bench.repository)
    with pytest.raises(Rejected, match=r"bundle\.online-key"):
        Repository(bench.online).accept(bundle, {}, now=time.time())
    Repository(other).accept(bundle, {}, now=time.time())


def test_key_of_the_controller_is_never_taken_for_an_offline_role(bench: Bench) -> None:
    bench.new()
    line = "keys rotate @out --key @out/keys/root-1.pem --targets-key @online.pub"
    assert "metadata.roles" in bench.bad(line)


def test_thresholds_that_nobody_can_meet_are_refused(bench: Bench) -> None:
    bench.new()
    line = "keys rotate @out --key @out/keys/root-1.pem --targets-threshold 2"
    assert "offline.threshold" in bench.bad(line)


def test_show_tells_programs_and_people(bench: Bench) -> None:
    bench.new("--plain --targets-threshold 2 --targets-keys 3")
    told = json.loads(bench.good("keys show @out --json"))
    assert told["roles"]["targets"]["threshold"] == 2
    assert len(told["roles"]["targets"]["keys"]) == 3
    assert "2 of 3" in bench.good("keys show @out")
    assert "offline.no-repository" in bench.bad("keys show @")
