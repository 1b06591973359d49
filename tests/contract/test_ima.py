"""Following an IMA log: recorded boots against their quotes, and every way in which a log can be wrong."""

from __future__ import annotations

import hashlib
import random
import struct
import time

import msgspec
import pytest

from contract import imarules, wire
from contract.ima import ADVISORY_CODES, ImaState, fits
from contract.imalog import MAX_LOG_BYTES, shown
from contract.imapolicy import ImaPolicy, pack
from contract.imarules import ImaRules
from contract.messages import PackageChange
from tests.contract.forge import CASES, PCRS, Case
from tests.contract.imaforge import Log, allowing, boot_aggregate, codes, field, judged, sha256

GOOD = Case("good-rsa")
A, B, C, EVIL = (sha256(name) for name in (b"a", b"b", b"c", b"evil"))
FILES = {"/usr/bin/a": A, "/usr/bin/b": B, "/usr/lib/libc.so.6": C}


def log_of(template: str = "ima-sig") -> Log:
    log = Log(template=template)
    for name, digest in FILES.items():
        log.file(name, digest)
    return log


def old_log() -> Log:
    """Return a log of a kernel before 5.8: its aggregate is made of the SHA-1 bank."""
    log = Log(None).file("boot_aggregate", b"1" * 20, algorithm="sha1")
    for name, digest in FILES.items():
        log.file(name, digest)
    return log


POLICY = allowing([log_of().raw])
RULES = ImaRules(POLICY)
OLD_RULES = ImaRules(allowing([log_of().raw], boot_aggregate="optional", violations="ignore"))


@pytest.mark.parametrize("name", CASES)
def test_a_recorded_log_leads_to_its_quote(name: str) -> None:
    case = Case(name)
    log, quote = case.read("ima.bin"), case.quote()
    rules = ImaRules(allowing([log]))
    result = judged(rules, log, quote.pcrs[10], pcrs=quote.pcrs)
    assert (result.caught_up, result.findings) == (True, [])
    assert (result.state.bank, result.state.offset) == ("sha256", len(log))
    again = judged(rules, log, quote.pcrs[10], pcrs=quote.pcrs)
    assert again == result
    steady = judged(rules, b"", quote.pcrs[10], state=result.state, pcrs=quote.pcrs)
    assert (steady.caught_up, steady.findings, steady.state) == (True, [], result.state)


def test_what_the_recorded_attack_ran_is_named() -> None:
    rules = ImaRules(allowing([GOOD.read("ima.bin"), Case("secureboot-on").read("ima.bin")]))
    case = Case("binary-changed")
    result = judged(rules, case.read("ima.bin"), case.pcrs[10], pcrs=case.pcrs)
    assert result.caught_up
    details = "\n".join(finding.detail for finding in result.findings)
    assert "'/usr/bin/lsusb': sha256:" in details
    assert "'/opt/unknown-tool': sha256:" in details


@pytest.mark.parametrize("template", ["ima-ng", "ima-ngv2", "ima-sig", "ima-sigv2"])
def test_every_template_of_files_is_followed(template: str) -> None:
    result = judged(RULES, log_of(template))
    assert (result.caught_up, result.findings, result.state.lines) == (True, [], 4)


def test_the_oldest_template_is_followed_by_its_padded_name() -> None:
    old = log_of("ima")
    result = judged(ImaPolicy(unknown_files="ignore", boot_aggregate="optional"), old)
    assert (result.caught_up, result.findings, result.state.lines) == (True, [], 4)
    refused = judged(ImaPolicy(), old)
    assert codes(refused) == ["ima.boot-aggregate", *["ima.unknown-file"] * 3]
    assert "sha1:" in refused.findings[1].detail


def test_lines_travel_once() -> None:
    log = log_of()
    first = judged(RULES, b"".join(log.lines[:2]), log.values[2])
    assert (first.caught_up, first.state.lines) == (True, 2)
    log.file("/opt/evil", EVIL)
    second = judged(RULES, b"".join(log.lines[2:]), log.value, state=first.state)
    assert (second.caught_up, second.new_lines, codes(second)) == (True, 3, ["ima.unknown-file"])
    third = judged(RULES, b"", log.value, state=second.state)
    assert codes(third) == ["ima.unknown-file"]  # the line does not come again, the finding stays
    stored = wire.decode(wire.encode(second.state), ImaState, max_bytes=100_000)
    assert codes(judged(RULES, b"", log.value, state=stored)) == ["ima.unknown-file"]


def test_an_empty_policy_allows_nothing() -> None:
    assert codes(judged(ImaPolicy(), log_of())) == ["ima.unknown-file"] * 3


def test_a_warning_is_another_code() -> None:
    keys = {"unknown_files": "warn", "violations": "warn", "kexec": "warn"}
    log = log_of().file("/opt/x", EVIL).file("/opt/a", A).violation("/var/log/x")
    log.file("boot_aggregate", boot_aggregate(PCRS))
    found = codes(judged(allowing([log_of().raw], **keys), log))
    assert len(found) == 4
    assert set(found) <= ADVISORY_CODES
    ignoring = dict.fromkeys(keys, "ignore")
    assert codes(judged(ImaPolicy(**ignoring), log)) == []  # type: ignore[arg-type]


def test_a_kernel_that_measures_nothing_is_found() -> None:
    assert codes(judged(RULES, b"", bytes(32))) == ["ima.inactive"]


def test_m01_log_cut_before_the_match() -> None:
    log = log_of()
    for cut in range(len(log.lines)):
        result = judged(RULES, b"".join(log.lines[:cut]), log.value)
        assert (result.caught_up, codes(result), result.state.lines) == (False, ["ima.mismatch"], 0)
    agreed = judged(RULES, b"".join(log.lines[:2]), log.values[2]).state
    result = judged(RULES, log.lines[2], log.value, state=agreed)
    assert codes(result) == ["ima.mismatch"]
    assert (result.state.lines, result.state.offset) == (2, agreed.offset)


def test_m01_a_line_cut_in_itself() -> None:
    log = log_of()
    for cut in range(1, len(log.lines[-1])):
        result = judged(RULES, log.raw[:-cut], log.value)
        assert (result.caught_up, codes(result)) == (False, ["ima.truncated"])
    assert "line 4 (offset " in result.findings[0].detail


def test_m02_lines_added_after_the_match() -> None:
    log = log_of()
    end = len(log.raw)
    added = log.raw + Log(None).file("/opt/added", EVIL).raw
    result = judged(RULES, added, log.value)
    assert (result.caught_up, result.findings) == (True, [])
    assert (result.state.lines, result.state.offset) == (4, end)
    assert result.unproved_bytes == len(added) - end
    log.file("/usr/bin/a", A)
    forged = judged(RULES, added[end:], log.value, state=result.state)
    assert codes(forged) == ["ima.mismatch"]


def test_m03_a_line_changed_with_its_template_hash_fixed_up() -> None:
    log, other = log_of(), Log()
    for name, digest in FILES.items():
        other.file("/usr/bin/other" if name == "/usr/bin/b" else name, digest)
    result = judged(RULES, other, log.value)
    assert (result.caught_up, codes(result)) == (False, ["ima.mismatch"])


def test_m03_a_line_whose_hash_is_not_that_of_its_data() -> None:
    log = log_of()
    true = log.data(b"/opt/evil", EVIL)
    told = log.data(b"/usr/bin/a", A)
    # Where the kernel extends SHA-1, PCR 10 speaks for the hash in the log alone.
    old = old_log().line(told, hashed=true)
    result = judged(OLD_RULES, old, old.padded[-1])
    assert (result.caught_up, codes(result)) == (True, ["ima.template-hash", "ima.sha1-padded"])
    assert "line 5 (offset " in result.findings[0].detail
    assert judged(OLD_RULES, old_log(), old_log().padded[-1]).caught_up
    new = log_of().line(told, sha1=b"x" * 20)
    assert codes(judged(RULES, new)) == ["ima.template-hash"]
    assert codes(judged(RULES, new)) == ["ima.template-hash"]  # and is not remembered as good


def test_m04_first_line_is_not_the_boot_aggregate() -> None:
    assert judged(RULES, log_of()).findings == []  # and every line of it is remembered
    log = Log(None)
    for name, digest in FILES.items():
        log.file(name, digest)
    assert codes(judged(RULES, log)) == ["ima.boot-aggregate"]
    named = Log(None).file("/usr/bin/a", boot_aggregate(PCRS))
    assert codes(judged(RULES, named)) == ["ima.boot-aggregate"]
    cut = Log(None).violation("boot_aggregate")
    assert codes(judged(RULES, cut)) == ["ima.boot-aggregate", "ima.violation"]
    broken = Log(None).line(b"nothing")
    assert codes(judged(RULES, broken)) == ["ima.fields", "ima.boot-aggregate"]


def test_m04_boot_aggregate_of_other_pcrs() -> None:
    other = PCRS | {9: b"9" * 32}
    result = judged(RULES, Log(other))
    assert codes(result) == ["ima.boot-aggregate"]
    assert boot_aggregate(PCRS).hex() in result.findings[0].detail
    missing = {pcr: value for pcr, value in PCRS.items() if pcr != 8}
    assert "PCR 8 is not quoted" in judged(RULES, log_of(), pcrs=missing).findings[0].detail
    optional = allowing([log_of().raw], boot_aggregate="optional")
    assert codes(judged(optional, Log(other))) == ["ima.boot-aggregate"]
    for old in (
        Log(None).file("boot_aggregate", boot_aggregate(PCRS, 8)),
        Log(None).file("boot_aggregate", b"1" * 20, algorithm="sha1"),
    ):
        assert codes(judged(RULES, old)) == ["ima.boot-aggregate"]
        assert codes(judged(optional, old)) == []


def test_m05_offset_that_is_not_the_agreed_one() -> None:
    log = log_of()
    state = judged(RULES, log).state
    for offset in (state.offset + 1, state.offset - 1, state.offset * 2, 2**53):
        result = judged(RULES, b"", log.value, state=state, offset=offset)
        assert (result.caught_up, codes(result)) == (False, ["ima.offset"])
        assert f"wanted {state.offset}" in result.findings[0].detail


def test_m05_offset_kept_over_a_reboot() -> None:
    kept = len(log_of().raw)
    after = Log(PCRS | {4: b"4" * 32}).file("/usr/bin/a", A)
    result = judged(RULES, after.lines[-1], after.value, offset=kept)  # the caller has reset the state
    assert (result.caught_up, codes(result)) == (False, ["ima.offset"])
    assert result.state.offset == 0


def test_a_log_may_begin_again_but_what_it_showed_stays() -> None:
    log = log_of().file("/opt/evil", EVIL)
    state = judged(RULES, log).state
    result = judged(RULES, log.lines[0], log.value, state=state, offset=0, more=True)
    assert (result.caught_up, codes(result)) == (False, ["ima.catching-up", "ima.unknown-file"])
    assert result.pending is not None
    result = judged(RULES, b"".join(log.lines[1:]), log.value, state=result.pending)
    assert (result.caught_up, codes(result)) == (True, ["ima.unknown-file"])


def test_m06_violation_that_hides_a_file() -> None:
    log = log_of().violation("/var/log/journal/x").file("/usr/bin/a", A)
    result = judged(allowing([log_of().raw], exclude=["/var/log/"]), log)
    assert (result.caught_up, codes(result)) == (True, ["ima.violation"])
    assert "line 5 (offset " in result.findings[0].detail
    # The name in such a line is covered by no hash: to change it changes nothing.
    renamed = log_of().violation("/tmp/harmless").file("/usr/bin/a", A)
    assert renamed.value == log.value
    assert codes(judged(allowing([log_of().raw], exclude=["/tmp/"]), renamed)) == ["ima.violation"]


@pytest.mark.parametrize(
    "name",
    [
        b"/usr/bin/a b",
        b"/usr/bin/a\nline 9: good",
        b"/\xff\xfe\xc3(",
        b"/x" * 3000,
        "/usr/bin/ä\u202eb".encode(),
    ],
)
def test_m07_names_are_shown_on_one_printable_line(name: bytes) -> None:
    result = judged(RULES, log_of().file(name, EVIL))
    assert codes(result) == ["ima.unknown-file"]
    detail = result.findings[0].detail
    assert detail.isprintable()
    assert len(detail) < 400
    assert len(shown(name)) <= 160


@pytest.mark.parametrize("name", [b"/usr/bin/a\0/opt/evil\0", b"\0", b"", b"/usr/bin/a"])
def test_m07_names_with_a_nul_are_refused(name: bytes) -> None:
    for template in ("ima-sig", "ima-ng"):
        log = log_of(template)
        end = b"" if template == "ima-ng" else field(b"")
        log.line(field(b"sha256:\0" + A) + field(name) + end)
        assert codes(judged(RULES, log)) == ["ima.name"]
    old = Log(None, "ima").line(b"1" * 20 + field(b"a\0b"), hashed=b"1" * 20 + b"a\0b".ljust(256, b"\0"))
    assert "ima.name" in codes(judged(RULES, old))


def test_m08_line_of_another_pcr() -> None:
    log = log_of()
    log.line(log.data(b"/opt/evil", EVIL), pcr=11).file("/usr/bin/a", A)
    result = judged(RULES, log)
    assert (result.caught_up, codes(result), result.state.lines) == (True, ["ima.wrong-pcr"], 6)
    assert "PCR 11" in result.findings[0].detail


@pytest.mark.parametrize("template", ["x", "d-ng|n-ng|sig", "sig|n-ng|d-ng", "ima-sig\0", "IMA-SIG"])
def test_m08_unknown_template(template: str) -> None:
    log = log_of()
    log.line(log.data(b"/usr/bin/a", A), template=template).file("/usr/bin/b", B)
    result = judged(RULES, log)
    assert (result.caught_up, codes(result)) == (True, ["ima.unknown-template"])


@pytest.mark.parametrize(
    ("template", "code"), [("ima-buf", "ima.buffer"), ("ima-ng", "ima.fields"), ("ima-sigv2", "ima.digest")]
)
def test_m08_template_relabelled(template: str, code: str) -> None:
    log = log_of()
    log.line(log.data(b"/usr/bin/a", A), template=template)  # no hash covers the template's name
    assert codes(judged(RULES, log)) == [code]


# Lines that begin like that of a file which the policy allows: `contract.imarules.Plain` must not be enough for them.
ALMOST_PLAIN = {
    "another PCR": ("ima-sig", {"pcr": 11}, b"\0\0\0\0", ["ima.wrong-pcr"]),
    "a hash of something else": ("ima-sig", {"sha1": b"x" * 20}, b"\0\0\0\0", ["ima.template-hash"]),
    "a violation": ("ima-sig", {"sha1": bytes(20)}, b"\0\0\0\0", ["ima.violation"]),
    "another template of that length": ("ima-sig", {"template": "ima-buf"}, b"\0\0\0\0", ["ima.buffer"]),
    "a signature cut short": ("ima-sig", {}, b"\0\0\0\1", ["ima.fields"]),
    "nothing where a signature must be": ("ima-ng", {"template": "ima-sig"}, b"", ["ima.fields"]),
    "bytes after the fields": ("ima-ng", {}, b"\0", ["ima.fields"]),
    "a field too many": ("ima-ng", {}, b"\0\0\0\0", ["ima.fields"]),
}


@pytest.mark.parametrize("case", ALMOST_PLAIN)
def test_m03_m08_a_line_is_not_good_because_it_begins_like_a_good_one(case: str) -> None:
    template, changes, end, expected = ALMOST_PLAIN[case]
    rules = ImaRules(POLICY)
    data = field(b"sha256:\0" + B) + field(b"/usr/bin/b\0") + end
    log = Log(template=template).file("/usr/bin/a", A).line(data, **changes)  # type: ignore[arg-type]
    log.file("/usr/lib/libc.so.6", C)
    for _ in range(2):
        assert codes(judged(rules, log)) == expected
    unsigned = b"" if template == "ima-ng" else b"\0\0\0\0"
    good = Log(template=template).file("/usr/bin/a", A).line(data.removesuffix(end) + unsigned)
    assert codes(judged(rules, good)) == []


def test_m01_a_length_that_lies_is_not_cut_down_to_fit() -> None:
    log = log_of()
    last = log.lines[-1]
    log.lines[-1] = last[:35] + struct.pack("<I", len(last) - 39 + 0x10000) + last[39:]
    assert codes(judged(ImaRules(POLICY), log)) == ["ima.truncated"]


def test_m07_a_policy_allows_no_name_with_a_nul_in_it() -> None:
    rules = ImaRules(ImaPolicy(package=[pack("odd", "1", {b"/usr/bin/a\0b": A, b"/usr/bin/b": B})]))
    log = Log().file("/usr/bin/b", B).file(b"/usr/bin/a\0b", A)
    assert codes(judged(rules, log)) == ["ima.name"]


def test_m11_a_digest_is_allowed_under_its_own_algorithm_alone() -> None:
    log = log_of().file("/usr/bin/a", A, algorithm="sm3-256")
    assert codes(judged(ImaRules(POLICY), log)) == ["ima.other-path"]


def test_a_line_judged_by_its_beginning_is_judged_as_field_by_field(monkeypatch: pytest.MonkeyPatch) -> None:
    chance = random.Random(5)
    logs = []
    for template in ("ima-sig", "ima-ng"):
        for _ in range(150):
            data = bytearray(log_of(template).data(b"/usr/bin/b", B))
            head = {"pcr": 10, "template": template, "sha1": None}
            if chance.random() < 0.5:
                data[chance.randrange(len(data))] = chance.randrange(256)
            if chance.random() < 0.3:
                data = data[: chance.randrange(len(data))] + chance.randbytes(chance.randrange(6))
            if chance.random() < 0.2:
                head["template"] = chance.choice(["ima-sig", "ima-ng", "ima-buf", "ima-ngv2", "ima-xxx"])
            log = log_of(template).line(bytes(data), **head).file("/usr/bin/a", A)  # type: ignore[arg-type]
            logs.append((log.raw, log.value))
    quick = [judged(ImaRules(POLICY), *log) for log in logs]
    never = imarules.NOT_PLAIN._replace(head=39)
    monkeypatch.setattr("contract.imawalk.PLAIN", {b"ima-sig": never})
    assert quick == [judged(ImaRules(POLICY), *log) for log in logs]
    assert len({tuple(codes(each)) for each in quick}) > 5


def test_m09_a_hundred_thousand_lines() -> None:
    log = Log(template="ima-ng")
    for number in range(100_000):
        log.file(f"/usr/lib/{number}", A)
    rules = ImaRules(ImaPolicy(unknown_files="ignore"))
    began = time.process_time()
    result = judged(rules, log)
    assert (result.caught_up, result.state.lines, codes(result)) == (True, 100_001, [])
    bare = time.process_time()
    for _ in range(300_003):
        hashlib.sha256(A).digest()
    assert bare - began < 20 * (time.process_time() - bare)
    strict = judged(ImaRules(ImaPolicy()), log)
    assert codes(strict) == ["ima.unknown-file"] * 32 + ["ima.more"]
    assert strict.findings[-1].detail.startswith("99968 more")
    assert len(wire.encode(strict.state)) < 100_000


def test_m09_64_mib_and_not_a_byte_more() -> None:
    state = ImaState(offset=MAX_LOG_BYTES - 100, lines=9, policy_sha256=RULES.sha256)
    assert codes(judged(RULES, bytes(101), b"q" * 32, state=state)) == ["ima.too-large"]
    huge = struct.pack("<I20sI3sI", 10, bytes(20), 3, b"abc", MAX_LOG_BYTES)
    assert codes(judged(RULES, huge + bytes(1000), b"q" * 32)) == ["ima.line-too-large"]
    name = struct.pack("<I20sI", 10, bytes(20), 256) + bytes(1000)
    assert codes(judged(RULES, name, b"q" * 32)) == ["ima.template-name"]


def test_m09_lines_of_alternating_templates_cost_no_more() -> None:
    """The length guessed from the template before reads a number that is no length."""
    log = Log()
    for number in range(2000):
        log.template = "ima-sigv2" if number % 2 else "ima-ng"
        log.file(f"/{number:0>2000}", A)
    began = time.process_time()
    assert judged(ImaRules(ImaPolicy(unknown_files="ignore")), log).caught_up
    assert time.process_time() - began < 1


def test_a_log_is_caught_up_with_in_chunks() -> None:
    log = log_of().file("/opt/evil", EVIL).file("/usr/bin/a", A)
    state, seen = ImaState(), []
    for place, line in enumerate(log.lines):
        result = judged(RULES, line, log.value, state=state, more=place + 1 < len(log.lines))
        seen.append(codes(result))
        state = result.pending or result.state
    assert seen == [["ima.catching-up"]] * 5 + [["ima.unknown-file"]]
    assert (result.caught_up, state.reports, state.lines) == (True, 0, 6)


def test_a_chunk_that_was_forged_is_forgotten() -> None:
    log = log_of()
    forged = judged(RULES, Log().file("/usr/bin/b", B), log.value, more=True)
    assert forged.pending is not None
    result = judged(RULES, b"".join(log.lines[2:]), log.value, state=forged.pending)
    assert codes(result) == ["ima.mismatch"]
    assert (result.pending, result.state.offset) == (None, 0)
    assert judged(RULES, log, state=result.state).caught_up


def test_m10_a_quote_that_never_catches_up() -> None:
    policy = allowing([log_of().raw], max_reports=3)
    log, state, seen = log_of(), ImaState(), []
    for number in range(6):
        line = log.lines[number] if number < 4 else b""
        result = judged(policy, line, b"q" * 32, state=state, more=True)
        assert not result.caught_up
        seen.append(codes(result)[0])
        state = result.pending or result.state
    assert seen == ["ima.catching-up"] * 3 + ["ima.never-matches"] * 3
    again = judged(policy, log.lines[0], b"q" * 32, state=state, offset=0, more=True)
    assert codes(again)[0] == "ima.never-matches"  # beginning again wins no time
    assert judged(policy, log, state=again.state, offset=0).findings == []


def test_m11_an_allowed_hash_under_another_path() -> None:
    result = judged(RULES, log_of().file("/tmp/b", A))
    assert codes(result) == ["ima.other-path"]
    assert "'/tmp/b' has the content of '/usr/bin/a'" in result.findings[0].detail
    assert codes(judged(RULES, log_of().file("/usr/bin/b", A))) == ["ima.other-path"]


def test_m13_second_boot_aggregate() -> None:
    log = log_of().file("boot_aggregate", boot_aggregate(PCRS)).file("/usr/bin/a", A)
    result = judged(RULES, log)
    assert (result.caught_up, codes(result)) == (True, ["ima.kexec"])
    allowed = allowing([log_of().raw], kexec="ignore")
    assert codes(judged(allowed, log)) == []
    other = log_of().file("boot_aggregate", EVIL)
    assert codes(judged(allowed, other)) == ["ima.boot-aggregate"]


def test_m13_log_that_begins_again_after_kexec() -> None:
    before, after = log_of(), Log()
    value = before.value
    for line in after.lines:
        value = sha256(value + sha256(line[-len(after.data(b"boot_aggregate", A)) :]))
    assert codes(judged(RULES, after, value)) == ["ima.mismatch"]


NEW = {"/usr/bin/a": sha256(b"a 2"), "/usr/lib/libnew.so": sha256(b"new")}
UPGRADE = PackageChange(name="base", before="1.0-1", after="1.0-2", at=1.0, files=NEW)


def upgraded() -> Log:
    log = log_of()
    for name, digest in NEW.items():
        log.file(name, digest)
    return log


def test_m14_an_upgrade_between_two_reports_is_one_explained_drift() -> None:
    result = judged(RULES, upgraded(), changes=[UPGRADE])
    assert codes(result) == ["ima.package-updated"]
    assert "2 new files" in result.findings[0].detail
    assert "base 1.0-1 -> 1.0-2 (2)" in result.findings[0].detail
    later = judged(RULES, b"", upgraded().value, state=result.state)
    assert later.findings == result.findings


def test_m14_lines_that_come_before_the_package_is_reported_are_explained_later() -> None:
    first = judged(RULES, upgraded())
    assert codes(first) == ["ima.unknown-file"] * 2
    second = judged(RULES, b"", upgraded().value, state=first.state, changes=[UPGRADE])
    assert codes(second) == ["ima.package-updated"]
    third = judged(RULES, b"", upgraded().value, state=second.state)
    assert codes(third) == ["ima.package-updated"]


@pytest.mark.parametrize(
    "change",
    [
        {"name": "other"},
        {"after": "1.0-1"},
        {"after": ""},
        {"files": {"/usr/bin/a": EVIL, "/opt/a": sha256(b"a 2")}},
    ],
)
def test_m14_what_an_upgrade_does_not_account_for_stays_unknown(change: dict[str, object]) -> None:
    changes = [msgspec.structs.replace(UPGRADE, **change)]
    assert codes(judged(RULES, upgraded(), changes=changes)) == ["ima.unknown-file"] * 2


def test_m14_the_policy_may_refuse_all_upgrades() -> None:
    policy = allowing([log_of().raw], package_updates="refuse")
    assert codes(judged(policy, upgraded(), changes=[UPGRADE])) == ["ima.unknown-file"] * 2


def test_a_kernel_that_pads_sha1_is_told_by_the_quote() -> None:
    log = old_log().violation("/var/log/x")
    result = judged(OLD_RULES, log, log.padded[-1])
    assert (result.caught_up, codes(result), result.state.bank) == (True, ["ima.sha1-padded"], "sha1")


def test_the_two_ways_of_extending_are_never_mixed() -> None:
    old = Log(None).file("boot_aggregate", b"1" * 20, algorithm="sha1").file("/usr/bin/a", A)
    rules = OLD_RULES
    both = judged(rules, old.lines[0], old.padded[-1], more=True)
    assert both.pending is not None
    assert both.pending.bank == ""
    state = judged(rules, old.lines[1], old.padded[-1], state=both.pending).state
    assert state.bank == "sha1"
    mixed = sha256(old.padded[-1] + sha256(old.data(b"/usr/bin/b", B)))
    old.file("/usr/bin/b", B)
    assert codes(judged(rules, old.lines[2], mixed, state=state))[0] == "ima.mismatch"
    assert judged(rules, old.lines[2], old.padded[-1], state=state).caught_up
    new = judged(rules, b"".join(old.lines[:2]), old.values[2]).state
    assert new.bank == "sha256"
    assert judged(rules, old.lines[2], old.value, state=new).caught_up
    assert not judged(
        rules, old.lines[2], sha256(new.pcr + old.lines[2][4:24] + bytes(12)), state=new
    ).caught_up


def test_another_policy_judges_the_log_anew() -> None:
    state = judged(RULES, log_of()).state
    stricter = ImaRules(ImaPolicy())
    assert fits(RULES, state)
    assert fits(stricter, ImaState())
    assert not fits(stricter, state)
    assert codes(judged(stricter, b"", log_of().value, state=state)) == ["ima.offset"]
    assert codes(judged(stricter, log_of(), state=state, offset=0)) == ["ima.unknown-file"] * 3


def test_what_the_rules_remember_changes_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("contract.imarules.REMEMBERED_LINES", 8)
    rules = ImaRules(ImaPolicy(unknown_files="ignore"))
    log = log_of()
    for number in range(50):
        log.file(f"/{number}", A)
    for _ in range(3):
        assert judged(rules, log).caught_up
        assert len(rules.known) <= 4
    assert judged(rules, log.raw[:-1], log.value).caught_up is False
    other = judged(rules, log, log.padded[-1])
    assert (other.caught_up, other.state.bank) == (False, "")


@pytest.mark.parametrize("templates", [("ima-ng", "ima-sig"), ("ima-sig", "ima-ng")])
def test_m05_a_remembered_last_line_of_another_template_ends_where_it_ends(
    templates: tuple[str, str],
) -> None:
    """Its length is looked for in the wrong place, and a slice that goes past the end is the whole line all the same."""
    log = Log(template=templates[0]).file("/usr/bin/a", A)
    log.template = templates[1]
    log.file("/usr/bin/b", B)
    rules = ImaRules(ImaPolicy(unknown_files="ignore"))
    for _ in range(2):
        for agreed in (0, 1, 2):
            before = judged(rules, b"".join(log.lines[:agreed]), log.values[agreed]).state if agreed else None
            result = judged(rules, b"".join(log.lines[agreed:]), log.value, state=before)
            assert (result.caught_up, result.state.offset, result.unproved_bytes) == (True, len(log.raw), 0)
