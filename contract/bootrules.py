"""The rules of a `[boot]` section, held against what the log claims.

A rule is satisfied only by a claim whose data a digest covers, in a PCR that the quote proves and the log explains. What
is not proved is as good as absent; what speaks against the node counts whether proved or not.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

from contract.bootpolicy import COMMAND_PCR, FIRMWARE_PCR, KEYS_PCR, STAGE_PCRS, BootPolicy
from contract.claims import Claims, Loaded, Signature
from contract.messages import Finding, never_more

_MAY_BE_ABSENT = frozenset({"option_rom", "driver"})
"""Stages that a machine need not have. Every other must show something allowed."""
_SHOWN = 4


def break_rules(policy: BootPolicy, claims: Claims | None, explained: Collection[int]) -> list[Finding]:
    """Return a finding for each rule that does not hold. `explained`: PCRs that are quoted and that the log leads to.

    1. Secure Boot on, with keys, and verified by shim where shim is there (`boot.secure-boot`)
    2. the revocation list holds what it must, and as much as it must (`boot.dbx`; l14)
    3. the revocation level of shim is high enough (`boot.sbat`; l14)
    4. somebody vouched for what was loaded, and nobody who may not (`boot.signer`)
    5. at every stage with a list something was loaded, and nothing that is not listed (`boot.stage`; l15)
    6. the kernel's command line (`boot.cmdline`; l16)
    7. the firmware's version (`boot.firmware`)
    """
    said = Claims() if claims is None else claims
    findings: list[Finding] = []
    if policy.secure_boot == "required":
        findings += _secure_boot(said, explained)  # 1
    findings += _dbx(policy, said, explained)  # 2
    findings += _sbat(policy, said, explained)  # 3
    if policy.allowed_signers is not None:
        findings += _signers(frozenset(policy.allowed_signers), said, explained)  # 4
    for stage, allowed in policy.stages.listed():
        findings += _stage(stage, allowed, said.loaded, explained)  # 5
    if policy.cmdline_required or policy.cmdline_forbidden or policy.cmdline_allowed is not None:
        findings += _command_line(policy, said, explained)  # 6
    if policy.firmware_versions is not None:
        findings += _firmware(policy.firmware_versions, said, explained)  # 7
    return findings


def _finding(code: str, detail: str, pcr: int, event: int | None = None) -> Finding:
    return Finding(code=code, detail=never_more(detail, 2048), pcr=pcr, event=event)


def _event(claims: Claims, name: str) -> int | None:
    source = claims.sources.get(name)
    return None if source is None else source.event


def _secure_boot(claims: Claims, explained: Collection[int]) -> Iterator[Finding]:
    event = _event(claims, "secure_boot")
    if claims.secure_boot is not True:
        found = "off" if claims.secure_boot is False else "nothing that says so"
        yield _finding("boot.secure-boot", f"Secure Boot: wanted on, found {found}", KEYS_PCR, event)
    elif not claims.proved("secure_boot", explained):
        yield _finding(
            "boot.secure-boot", "Secure Boot: wanted on, found on by an uncovered word", KEYS_PCR, event
        )
    if claims.setup_mode is True:
        yield _finding(
            "boot.secure-boot",
            "platform key: wanted one, found setup mode: anyone may write the keys",
            KEYS_PCR,
        )
    if claims.shim_verifies is False:
        yield _finding(
            "boot.secure-boot", "shim: wanted to verify what it loads, found told not to", KEYS_PCR
        )


def _covered(entries: Sequence[Signature], explained: Collection[int]) -> list[Signature]:
    """Return the entries of PCR 7's lists that a digest covers."""
    return [entry for entry in entries if entry.covered is True and KEYS_PCR in explained]


def _dbx(policy: BootPolicy, claims: Claims, explained: Collection[int]) -> Iterator[Finding]:
    if not policy.required_dbx and not policy.minimum_dbx_entries:
        return
    entries = [s for s in _covered(claims.signatures, explained) if s.variable == "dbx"]
    there = {entry.sha256.hex() for entry in entries}
    event = _event(claims, "dbx") or _event(claims, "signatures")
    missing = [digest for digest in policy.required_dbx if digest not in there]
    if missing:
        shown = ", ".join(missing[:_SHOWN]) + (
            f" and {len(missing) - _SHOWN} more" if missing[_SHOWN:] else ""
        )
        detail = f"dbx: wanted {shown}, found {len(entries)} entries without; most likely rolled back or never updated"
        yield _finding("boot.dbx", detail, KEYS_PCR, event)
    if len(entries) < policy.minimum_dbx_entries:
        wanted = f"at least {policy.minimum_dbx_entries} entries"
        yield _finding("boot.dbx", f"dbx: wanted {wanted}, found {len(entries)}", KEYS_PCR, event)


def _sbat(policy: BootPolicy, claims: Claims, explained: Collection[int]) -> Iterator[Finding]:
    if not policy.minimum_sbat and not policy.minimum_sbat_level:
        return
    event = _event(claims, "sbat_level") or _event(claims, "sbat")
    level = claims.sbat_level if claims.proved("sbat_level", explained) else ""
    generations = claims.sbat if claims.proved("sbat", explained) else {}
    wanted_level = policy.minimum_sbat_level
    if wanted_level and not (len(level) == len(wanted_level) and level >= wanted_level):
        found = level or "none"
        yield _finding("boot.sbat", f"SBAT level: wanted {wanted_level}, found {found}", KEYS_PCR, event)
    for component, wanted in sorted(policy.minimum_sbat.items()):
        found_generation = generations.get(component, 0)
        if found_generation < wanted:
            detail = (
                f"SBAT {component}: wanted generation {wanted} demanded, found {found_generation or 'none'}"
            )
            yield _finding("boot.sbat", detail, KEYS_PCR, event)


def _signers(allowed: frozenset[str], claims: Claims, explained: Collection[int]) -> Iterator[Finding]:
    event = _event(claims, "authorities")
    covered = _covered(claims.authorities, explained)
    if not covered:
        yield _finding("boot.signer", "signer: wanted one that may, found none", KEYS_PCR, event)
    for entry in claims.authorities:
        if entry.sha256.hex() not in allowed or entry not in covered:
            who = entry.subject or entry.variable
            detail = (
                f"signer '{who}' vouched for what was loaded: wanted one that may, found {entry.sha256.hex()}"
            )
            yield _finding("boot.signer", detail, KEYS_PCR, event)


def _stage(
    stage: str, allowed: frozenset[bytes], loaded: Sequence[Loaded], explained: Collection[int]
) -> Iterator[Finding]:
    name = stage.replace("_", "-")
    of_stage = [one for one in loaded if one.stage == name]
    proved = [one for one in of_stage if one.pcr in explained and one.pcr in STAGE_PCRS[stage]]
    wanted = " or ".join(sorted(d.hex()[:16] + "…" for d in allowed)[:_SHOWN]) or "nothing"
    if not proved and stage not in _MAY_BE_ABSENT:
        pcr = min(STAGE_PCRS[stage])
        yield _finding("boot.stage", f"{name}: wanted {wanted}, found nothing that the quote proves", pcr)
    told: set[bytes] = set()
    for one in of_stage:
        if one.sha256 not in allowed and one.sha256 not in told:
            told.add(one.sha256)
            detail = f"PCR {one.pcr} event {one.event} '{one.name}' ({name}): wanted {wanted}, found {one.sha256.hex()}"
            yield _finding("boot.stage", detail, one.pcr, one.event)


def _command_line(policy: BootPolicy, claims: Claims, explained: Collection[int]) -> Iterator[Finding]:
    event = _event(claims, "kernel_command_line")
    if not claims.proved("kernel_command_line", explained):
        yield _finding(
            "boot.cmdline", "command line: wanted one, found none that a digest covers", COMMAND_PCR, event
        )
        return
    given = parameters(claims.kernel_arguments)
    may = (*policy.cmdline_required, *(policy.cmdline_allowed or ()))
    for rule in policy.cmdline_required:
        # A later one of the same name overrides: the last one must itself be required or allowed.
        last = [p for p in given if _name(p) == _name(rule)][-1:]
        there = any(_matches(rule, parameter) for parameter in given)
        if not there or not any(_matches(other, last[0]) for other in may):
            found = last[0] if last else "nothing of that name"
            yield _finding("boot.cmdline", f"command line: wanted {rule}, found {found}", COMMAND_PCR, event)
    for parameter in dict.fromkeys(given):
        if any(_matches(rule, parameter) for rule in policy.cmdline_forbidden):
            detail = f"command line: wanted without {parameter}, found {parameter}"
            yield _finding("boot.cmdline", detail, COMMAND_PCR, event)
        elif policy.cmdline_allowed is not None and not any(_matches(rule, parameter) for rule in may):
            detail = f"command line: wanted only what is allowed, found {parameter}"
            yield _finding("boot.cmdline", detail, COMMAND_PCR, event)


def parameters(arguments: Sequence[str]) -> list[str]:
    """Return the kernel's parameters without the path of the image, which GRUB measures in front of them.

    The first word is the path or `BOOT_IMAGE=`; a parameter never begins with `/` or `(`.
    """
    given = list(arguments)
    if given and given[0].startswith(("/", "(", "BOOT_IMAGE=")):
        del given[0]
    return given


def _name(parameter: str) -> str:
    """Return the name as the kernel compares it: `-` and `_` are one (kernel/params.c, parameqn)."""
    return parameter.partition("=")[0].replace("-", "_")


def _matches(rule: str, parameter: str) -> bool:
    name, equals, value = rule.partition("=")
    found_name, found_equals, found_value = parameter.partition("=")
    if name.replace("-", "_") != found_name.replace("-", "_"):
        return False
    if equals and not value:
        return bool(found_equals)
    return (equals, value) == (found_equals, found_value)


def _firmware(allowed: Sequence[str], claims: Claims, explained: Collection[int]) -> Iterator[Finding]:
    event = _event(claims, "firmware_version")
    proved = claims.proved("firmware_version", explained)
    if not proved or claims.firmware_version not in allowed:
        found = claims.firmware_version if proved else "nothing that a digest covers"
        wanted = " or ".join(allowed[:_SHOWN]) or "nothing"
        yield _finding(
            "boot.firmware", f"firmware version: wanted {wanted}, found {found}", FIRMWARE_PCR, event
        )
