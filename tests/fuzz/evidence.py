"""One function for each parser of bytes from outside: it may raise Rejected and nothing else, whatever it is given.

Used three ways: with every file of `corpus/`, with mutations of those by Hypothesis (`test_fuzz`), and by a
coverage-guided fuzzer (`python -m tests.fuzz`). Where a signature or a digest stands before a parser, the harness makes
it anew, so that the bytes behind it are reached.
"""

from __future__ import annotations

import hashlib
import struct
from contextlib import suppress

from contract import messages, tpm, wire
from contract.auditkey import read_key
from contract.baseline import parse_baseline, section
from contract.boot import BootPolicy, Reference, judge_boot, reference_from
from contract.claims import claims_of
from contract.credential import make_credential
from contract.enrolment import check_ak, check_ek, ek_digest
from contract.errors import Rejected
from contract.eventdata import covered, describe, oddities
from contract.eventlog import banks_of, coverage, explain, parse_event_log
from contract.ima import ImaState, follow
from contract.imalog import read_lines, shown
from contract.imapolicy import ImaPolicy
from contract.imarules import ImaRules
from contract.offline import Given, Unusable, verify
from contract.offlineclaims import plain
from contract.quote import AttestationKey, parse_attest
from contract.toml import convert_toml, parse_toml
from controller.cli.attestshow import logs_json, logs_text, read_shown, verdict_json, verdict_text
from controller.cli.inputs import Amiss, parse_pcrs, parse_policy
from tests.contract.forge import Case, Forger
from tests.contract.imaforge import allowing

_GOOD = Case("good-rsa")
_ECC, _RSA = Forger("ecc256"), Forger("rsa2048")
_QUOTE = _GOOD.quote()
_RULES = [
    ImaRules(ImaPolicy(unknown_files="ignore", violations="warn", kexec="warn")),
    ImaRules(ImaPolicy(allow={"/usr/bin/true": ["sha256:" + "0" * 64]}, exclude=["/tmp/", "/var/*/x"])),
    ImaRules(allowing([_GOOD.read("ima.bin")])),
]
_KEY = read_key(_GOOD.read("ak.tpm2b"), _GOOD.read("ek.tpm2b"))


def attest(raw: bytes) -> None:
    """TPMS_ATTEST, well signed whatever it is."""
    with suppress(Rejected):
        parse_attest(raw)
    _ECC.verify(raw)


def signature(raw: bytes) -> None:
    """TPMT_SIGNATURE over a good quote."""
    for forger in (_ECC, _RSA):
        with suppress(Rejected):
            forger.verify(_ATTESTS[forger], signature=raw)


_ATTESTS = {_ECC: _ECC.attest(), _RSA: _RSA.attest()}


def public(raw: bytes) -> None:
    """TPM2B_PUBLIC, as AK and as EK."""
    for check in (check_ak, check_ek, tpm.name_of, ek_digest):
        with suppress(Rejected):
            check(raw)
    with suppress(Rejected):
        AttestationKey.from_public(raw, _GOOD.read("ek.tpm2b"))
    with suppress(Rejected):
        make_credential(raw, b"n" * 34, b"s" * 32)


def audit_key(raw: bytes) -> None:
    """An auditor's AK: PEM or TPM2B_PUBLIC."""
    key = read_key(raw)
    key.check_attributes()
    key.loaded(_GOOD.read("quote.sig"), b"")


def event_log(raw: bytes) -> None:
    """Firmware log, every bank; claims, oddities, judging by the default policy."""
    for bank in banks_of(raw):
        with suppress(Rejected):
            parse_event_log(raw, bank)
    log = parse_event_log(raw)
    explain(log, _GOOD.pcrs, ())
    coverage(log, _GOOD.pcrs, (9,))
    for finding in oddities(log):
        assert finding.detail.isprintable()
    for event in log.events:
        covered(event)
        assert describe(event).isprintable()
    _printable(plain(claims_of(log)))
    judge_boot(BootPolicy(), _QUOTE, log, reference_from(log, _GOOD.pcrs))


def event_data(raw: bytes) -> None:
    """The data of one event of every type (the first byte chooses), with a digest that covers it, in a whole log."""
    if not raw:
        return
    kind = TYPES[raw[0] % len(TYPES)]
    pcr = raw[0] // len(TYPES) % 16
    digests = struct.pack("<H", 11) + hashlib.sha256(raw[1:]).digest()
    event_log(
        _HEADER + struct.pack("<III", pcr, kind, 1) + digests + struct.pack("<I", len(raw) - 1) + raw[1:]
    )


TYPES = [*range(0x14), *range(0x80000001, 0x80000011), *range(0x800000E0, 0x800000E5)]
_SPEC = b"Spec ID Event03\0" + struct.pack("<IBBBBIHHB", 0, 0, 2, 0, 2, 1, 0x0B, 32, 0)
_HEADER = struct.pack("<II20sI", 0, 3, b"", len(_SPEC)) + _SPEC


def _printable(value: object) -> None:
    if isinstance(value, str):
        assert value.isprintable(), repr(value)
    elif isinstance(value, dict):
        for name, inner in value.items():
            _printable(name)
            _printable(inner)
    elif isinstance(value, list):
        for inner in value:
            _printable(inner)


def ima_log(raw: bytes) -> None:
    """IMA log: lines, and following it by three policies, of which one allows what the corpus began from."""
    for rules in _RULES:
        result = follow(rules, ImaState(), raw, _GOOD.pcrs[10], _GOOD.pcrs, offset=0)
        for finding in result.findings:
            assert finding.detail.isprintable(), repr(finding.detail)
    for record, fields in read_lines(raw):
        assert shown(record.template).isprintable()
        if not isinstance(fields, Rejected):
            assert shown(fields.name).isprintable()


def frame(raw: bytes) -> None:
    """Every message of the wire, and what is stored in the same encoding."""
    kinds = (
        messages.FromAgent,
        messages.FromController,
        messages.EnrolBegin | messages.EnrolFinish,
        messages.EnrolReply,
        messages.ReportBody,
        Reference,
        ImaState,
    )
    for kind in kinds:
        with suppress(Rejected):
            wire.decode(raw, kind, max_bytes=messages.MAX_FRAME_BYTES)  # type: ignore[arg-type]


def baseline(raw: bytes) -> None:
    """A baseline with the sections that the controller judges by."""
    parsed = parse_baseline(raw)
    for name in parsed.sections:
        for kind in (BootPolicy, ImaPolicy):
            with suppress(Rejected):
                section(parsed, name, kind)


def policy(raw: bytes) -> None:
    """`--policy`."""
    with suppress(Rejected):
        tables, text = parse_toml(raw, file="f", code="policy")
        for name, kind in (("boot", BootPolicy), ("ima", ImaPolicy)):
            with suppress(Rejected):
                found = convert_toml(tables.get(name), kind, text=text, file="f", code="policy", at=(name,))
                if isinstance(found, ImaPolicy):
                    ImaRules(found)
    with suppress(Amiss):
        parse_policy(raw, "policy.toml")


def pcr_values(raw: bytes) -> None:
    """`--pcrs`."""
    with suppress(Amiss):
        parse_pcrs(raw, "pcrs.json")


def offline(raw: bytes) -> None:
    """`ringfence attest verify` with one of its files replaced (the first byte chooses), and its text for people."""
    if not raw:
        return
    names = ("attest", "signature", "event_log", "ima_log")
    given = {
        "attest": _GOOD.read("quote.attest"),
        "signature": _GOOD.read("quote.sig"),
        "event_log": _GOOD.read("eventlog.bin"),
        "ima_log": _IMA,
    }
    given[names[raw[0] % 4]] = raw[1:]
    shown_pcrs = None if raw[0] & 4 else _GOOD.pcrs
    question = Given(key=_KEY, nonce=_GOOD.nonce, pcrs=shown_pcrs, boot_policy=BootPolicy(), **given)
    with suppress(Unusable):
        verdict = verify(question)
        _printable(verdict_json(verdict))
        _lines_printable(verdict_text(verdict, question))


_IMA = _GOOD.read("ima.bin")[:4096]


def show(raw: bytes) -> None:
    """`ringfence attest show` of the same bytes as either log."""
    for logs in ((raw, None), (None, raw)):
        found = read_shown(*logs)
        _printable(logs_json(found))
        _lines_printable("\n".join(logs_text(found)))


def _lines_printable(text: str) -> None:
    for line in text.split("\n"):
        assert line.isprintable(), repr(line)
