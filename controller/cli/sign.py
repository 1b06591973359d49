"""`ringfence baseline sign` and `cosign`: put a baseline on the signed list, with offline keys.

Runs on the signing machine and needs no controller. Nothing is signed that the agent's own `check` refuses:
the code that will enforce it reads it first.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import click

from contract.errors import Rejected
from controller.cli.keys import EXISTING, FOLDER, read_signer
from controller.offline import OfflineRepository, expiry

CHECKER = "ringfence-agent"
CHECK_TIMEOUT_S = 60


@click.command()
@click.argument("file", type=EXISTING)
@click.option(
    "--repository", type=FOLDER, required=True, help="The offline repository (`ringfence keys new`)."
)
@click.option(
    "--key",
    "key_files",
    type=EXISTING,
    multiple=True,
    required=True,
    help="Targets key file; more than one may be given.",
)
@click.option(
    "--days", type=click.IntRange(1, 3650), default=365, show_default=True, help="Until the list expires."
)
@click.option("--passphrase-file", type=EXISTING, help="First line: the passphrase of the keys.")
@click.option(
    "--checker",
    type=EXISTING,
    help="The ringfence-agent that checks FILE. Default: beside this program, then PATH.",
)
@click.option("--json", "as_json", is_flag=True)
def sign(
    *,
    file: Path,
    repository: Path,
    key_files: tuple[Path, ...],
    days: int,
    passphrase_file: Path | None,
    checker: Path | None,
    as_json: bool,
) -> None:
    """Check a baseline FILE, add it to the list and sign the list.

    Where the repository wants more signatures than keys were given, the next person runs `cosign`.
    """
    _check([file], checker)
    signers = [read_signer(path, passphrase_file) for path in key_files]
    offline = OfflineRepository.load(repository)
    path = offline.add(file.read_bytes(), expires=expiry(time.time(), days), file=str(file))
    offline.sign(signers)
    offline.save()
    _tell(offline, [path], as_json=as_json)


@click.command()
@click.option("--repository", type=FOLDER, required=True)
@click.option(
    "--key",
    "key_files",
    type=EXISTING,
    multiple=True,
    required=True,
    help="Targets key file; more than one may be given.",
)
@click.option("--passphrase-file", type=EXISTING, help="First line: the passphrase of the keys.")
@click.option(
    "--checker",
    type=EXISTING,
    help="The ringfence-agent that checks the files. Default: beside this program, then PATH.",
)
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--json", "as_json", is_flag=True)
def cosign(
    *,
    repository: Path,
    key_files: tuple[Path, ...],
    passphrase_file: Path | None,
    checker: Path | None,
    yes: bool,
    as_json: bool,
) -> None:
    """Add your signature to a list that someone else has signed, after a look at it.

    Every listed file is compared with the list and checked again: do not trust the first signer's machine.
    """
    offline = OfflineRepository.load(repository)
    offline.check_files()
    paths = sorted(offline.targets.signed.targets)
    _check([offline.directory / "targets" / path for path in paths], checker)
    if not yes:
        for path in paths:
            click.echo(f"{path}  {offline.targets.signed.targets[path].hashes['sha256']}", err=True)
        click.confirm(
            f"Sign list version {offline.targets.signed.version} with these baselines?",
            abort=True,
            err=True,
        )
    offline.sign([read_signer(path, passphrase_file) for path in key_files])
    offline.save()
    _tell(offline, paths, as_json=as_json)


def find_checker() -> Path | None:
    """Return the agent program that checks baselines: beside this interpreter, else in PATH."""
    beside = Path(sys.executable).parent / CHECKER
    if beside.is_file():
        return beside
    found = shutil.which(CHECKER)
    return Path(found) if found else None


def _check(files: list[Path], checker: Path | None) -> None:
    program = checker or find_checker()
    if program is None:
        raise Rejected(
            "signing.checker", f"{CHECKER} is not here to check with: install it, or name it with --checker"
        )
    for file in files:
        try:
            done = subprocess.run(
                [program, "check", file], capture_output=True, text=True, timeout=CHECK_TIMEOUT_S, check=False
            )
        except subprocess.TimeoutExpired:
            raise Rejected(
                "signing.checker", f"{program} check {file}: no answer in {CHECK_TIMEOUT_S} s"
            ) from None
        if done.returncode != 0:
            said = (done.stderr or done.stdout).strip()
            raise Rejected("signing.refused", f"not signed: `{CHECKER} check` refuses it\n{said}")


def _tell(offline: OfflineRepository, paths: list[str], *, as_json: bool) -> None:
    have, wanted = offline.signatures()
    listed = offline.targets.signed
    if as_json:
        named = {path: listed.targets[path].hashes["sha256"] for path in paths}
        click.echo(
            json.dumps(
                {"list": listed.version, "baselines": named, "signatures": have, "signatures_wanted": wanted}
            )
        )
        return
    for path in paths:
        click.echo(f"{path}  {listed.targets[path].hashes['sha256']}")
    click.echo(f"list version {listed.version}: {have} of {wanted} signatures")
    if have < wanted:
        click.echo("not valid yet: the next person runs `ringfence baseline cosign`")
