"""What an auditor gives the command: files with a cap, a nonce, PCR values, a policy. Never evidence of anything.

Everything amiss here is the giver's to mend and ends with exit code 2. Reads regular files only (a FIFO could block
for ever, a folder is no evidence), never more than the cap and one byte.
"""

from __future__ import annotations

import json
import os
import re
import stat
from pathlib import Path

import click

from contract.baseline import SectionBase, parse_baseline
from contract.boot import BootPolicy
from contract.errors import Rejected
from contract.imapolicy import ImaPolicy
from contract.toml import MAX_TOML_BYTES, convert_toml, parse_toml
from controller.cli.show import harmless

MAX_NONCE_BYTES = 64
MAX_PCRS_BYTES = 64 * 1024
MAX_POLICY_BYTES = MAX_TOML_BYTES
"""A baseline may be a policy, and holds an allow-list."""
_PCR = re.compile(r"0|[1-9][0-9]{0,2}", re.ASCII)
_HEX = re.compile(r"(?:[0-9a-fA-F]{2})*", re.ASCII)


class Amiss(click.ClickException):
    """What was given cannot be used. Says nothing about the evidence."""

    exit_code = 2

    def __init__(self, message: str) -> None:
        """`message` may quote anything."""
        super().__init__(harmless(message))


def read_evidence(path: Path, most_bytes: int) -> bytes:
    """Return a file's bytes, but no more than one past `most_bytes`: whoever parses it says that it is too large."""
    try:
        # Never waits for a FIFO's other end, and looks at what was opened, not at what the name meant before.
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            os.close(handle)
            raise Amiss(f"{path}: not a regular file")
        with os.fdopen(handle, "rb") as file:
            return file.read(most_bytes + 1)
    except OSError as error:
        raise Amiss(f"{path}: {error.strerror or error}") from None


def read_own(path: Path, most_bytes: int) -> bytes:
    """Return the whole of a file of the auditor's own."""
    content = read_evidence(path, most_bytes)
    if len(content) > most_bytes:
        raise Amiss(f"{path}: more than {most_bytes} bytes")
    return content


def read_nonce(text: str) -> bytes:
    """Return a nonce given in hexadecimal."""
    if _HEX.fullmatch(text) is None or not text:
        raise Amiss("--nonce: expected hexadecimal, two digits for each byte")
    if len(text) > 2 * MAX_NONCE_BYTES:
        raise Amiss(f"--nonce: more than {MAX_NONCE_BYTES} bytes")
    return bytes.fromhex(text)


def parse_pcrs(content: bytes, file: str) -> dict[int, bytes]:
    """Return the PCR values of `{"sha256": {"0": "hex", ...}}`, of whatever length: whether they fit is for the quote to say."""
    try:
        found = json.loads(content, object_pairs_hook=_no_pair_twice)
    except (ValueError, RecursionError) as error:
        raise Amiss(f"{file}: not JSON: {error or 'nested too deep'}") from None
    bank = found.get("sha256") if isinstance(found, dict) else None
    if not isinstance(found, dict) or not isinstance(bank, dict) or len(found) != 1:
        raise Amiss(
            f'{file}: expected {{"sha256": {{"0": "hex", ...}}}} and no other bank: no other is judged'
        )
    for pcr, value in bank.items():
        if _PCR.fullmatch(pcr) is None or not isinstance(value, str) or _HEX.fullmatch(value) is None:
            raise Amiss(
                f"{file}: sha256.{pcr[:16]}: expected the number of a PCR and its value in hexadecimal"
            )
    return {int(pcr): bytes.fromhex(value) for pcr, value in bank.items()}


def _no_pair_twice(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key stands there twice")
    return found


def parse_policy(content: bytes, file: str) -> tuple[BootPolicy | None, ImaPolicy | None]:
    """Return the `[boot]` and `[ima]` sections of a baseline, or of a file that holds nothing else; at least one."""
    try:
        tables, text = parse_toml(content, file=file, code="policy")
        if "baseline" in tables:
            sections: dict[str, object] = {**parse_baseline(content, file=file).sections}
        else:
            sections = tables
            other = sorted(tables.keys() - {"boot", "ima"})
            if other:
                raise Amiss(f"{file}: [{other[0]}]: expected [boot] and [ima], or a whole baseline")
        kinds: dict[str, type[SectionBase]] = {"boot": BootPolicy, "ima": ImaPolicy}
        found = {
            name: convert_toml(sections[name], kind, text=text, file=file, code="policy", at=(name,))
            for name, kind in kinds.items()
            if name in sections
        }
    except Rejected as refused:
        raise Amiss(refused.detail) from None
    if not found:
        raise Amiss(f"{file}: neither [boot] nor [ima]: this policy would allow everything")
    boot, ima = found.get("boot"), found.get("ima")
    return boot if isinstance(boot, BootPolicy) else None, ima if isinstance(ima, ImaPolicy) else None
