"""`ringfence attest`: evidence verified and shown from files, without controller, login or network; policies learned.

Exit codes: 0 verified, 1 rejected, 2 what was given cannot be used. Whatever bytes stand in --quote, --signature,
--event-log and --ima-log are evidence, and what is wrong with them is a finding with a code (exit code 1), as are PCR
values that do not fit. A file that cannot be read, --nonce or --pcrs that are not what they must be, an --ak, --ek or
--policy that cannot be understood are the auditor's own (exit code 2): they say nothing about the evidence.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import click

from controller.cli.inputs import (
    MAX_PCRS_BYTES,
    MAX_POLICY_BYTES,
    Amiss,
    parse_pcrs,
    parse_policy,
    read_evidence,
    read_nonce,
    read_own,
)
from controller.cli.learn import learn
from controller.cli.show import json_option, show_json

VERIFIED, REJECTED = 0, 1
FILE = click.Path(path_type=Path)


@click.group(epilog=__doc__)
def attest() -> None:
    """Evidence: verify and show it offline; learn a policy from good nodes."""


@attest.command()
@click.option("--ak", type=FILE, required=True, help="The attestation key: PEM or TPM2B_PUBLIC.")
@click.option("--quote", type=FILE, required=True, help="TPMS_ATTEST, as `tpm2_quote -m` writes it.")
@click.option("--signature", type=FILE, required=True, help="TPMT_SIGNATURE, as `tpm2_quote -s` writes it.")
@click.option("--nonce", help="Hexadecimal: what the quote was asked to be over. Not checked when left out.")
@click.option("--pcrs", type=FILE, help='JSON {"sha256": {"0": "hex", ...}}. Default: what the logs lead to.')
@click.option("--event-log", type=FILE, help="Firmware log (binary_bios_measurements).")
@click.option("--ima-log", type=FILE, help="IMA log (binary_runtime_measurements).")
@click.option("--policy", type=FILE, help="A baseline, or TOML with [boot] and [ima].")
@click.option("--ek", type=FILE, help="The endorsement key, TPM2B_PUBLIC: checks the quote's signer.")
@json_option
@click.pass_context
def verify(
    context: click.Context,
    *,
    ak: Path,
    quote: Path,
    signature: Path,
    nonce: str | None,
    pcrs: Path | None,
    event_log: Path | None,
    ima_log: Path | None,
    policy: Path | None,
    ek: Path | None,
    as_json: bool,
) -> None:
    """Verify one quote, with the logs and the policy that belong to it.

    Exit codes: 0 verified, 1 rejected, 2 what was given cannot be used.
    """
    from contract.auditkey import MAX_KEY_BYTES, read_key
    from contract.errors import Rejected
    from contract.imalog import MAX_LOG_BYTES
    from contract.messages import MAX_EVENT_LOG_BYTES, MAX_QUOTE_BYTES, MAX_SIGNATURE_BYTES
    from contract.offline import Given, Unusable
    from contract.offline import verify as judged
    from controller.cli.attestshow import verdict_json, verdict_text

    try:
        key = read_key(read_own(ak, MAX_KEY_BYTES), None if ek is None else read_own(ek, MAX_KEY_BYTES))
    except Rejected as refused:
        raise Amiss(f"{ek if refused.code.startswith('ek.') else ak}: {refused.detail}") from None
    boot, ima = (
        (None, None) if policy is None else parse_policy(read_own(policy, MAX_POLICY_BYTES), str(policy))
    )
    given = Given(
        key=key,
        attest=read_evidence(quote, MAX_QUOTE_BYTES),
        signature=read_evidence(signature, MAX_SIGNATURE_BYTES),
        nonce=None if nonce is None else read_nonce(nonce),
        pcrs=None if pcrs is None else parse_pcrs(read_own(pcrs, MAX_PCRS_BYTES), str(pcrs)),
        event_log=None if event_log is None else read_evidence(event_log, MAX_EVENT_LOG_BYTES),
        ima_log=None if ima_log is None else read_evidence(ima_log, MAX_LOG_BYTES),
        boot_policy=boot,
        ima_policy=ima,
    )
    try:
        verdict = judged(given)
    except Unusable as why:
        raise Amiss(str(why)) from None
    with _told_or_not():
        if as_json:
            show_json(verdict_json(verdict))
        else:
            click.echo(verdict_text(verdict, given))
    context.exit(VERIFIED if verdict.verified else REJECTED)


@attest.command()
@click.option("--event-log", type=FILE, help="Firmware log (binary_bios_measurements).")
@click.option("--ima-log", type=FILE, help="IMA log (binary_runtime_measurements).")
@json_option
@click.pass_context
def show(context: click.Context, *, event_log: Path | None, ima_log: Path | None, as_json: bool) -> None:
    """Show what logs say. Nothing is proved by it: only a quote says that a log is true.

    Exit codes: 0 read, 1 a log is malformed, 2 what was given cannot be used.
    """
    from contract.imalog import MAX_LOG_BYTES
    from contract.messages import MAX_EVENT_LOG_BYTES
    from controller.cli.attestshow import logs_json, logs_text, read_shown

    if event_log is None and ima_log is None:
        raise Amiss("give --event-log, --ima-log or both")
    shown = read_shown(
        None if event_log is None else read_evidence(event_log, MAX_EVENT_LOG_BYTES),
        None if ima_log is None else read_evidence(ima_log, MAX_LOG_BYTES),
    )
    with _told_or_not():
        if as_json:
            show_json(logs_json(shown))
        else:
            for line in logs_text(shown):
                click.echo(line)
    context.exit(REJECTED if shown.findings else VERIFIED)


@contextmanager
def _told_or_not() -> Generator[None]:
    """Let a reader that has gone away (`| head`) change nothing about the exit code."""
    try:
        yield
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


attest.add_command(learn)
