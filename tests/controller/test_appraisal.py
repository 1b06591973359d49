"""Appraisal of one session's reports: what is asked of the logs, what is agreed, and what resets it."""

from __future__ import annotations

import hashlib
import tracemalloc
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from contract.boot import BootPolicy
from contract.errors import Rejected
from contract.ima import ImaState
from contract.imapolicy import ImaPolicy
from contract.messages import MAX_IMA_CHUNK_BYTES
from contract.wire import encode
from controller.appraisal import Appraiser, Asked, LogWanted, parsed_body
from controller.judge import weight
from controller.policies import STRICTEST, Policies, compiled
from controller.records import Evidence, Sections
from tests.parts import imalog
from tests.parts.attester import Attester, after, attest
from tests.parts.simulator import replayed

VECTORS = Path(__file__).resolve().parents[1] / "vectors"
EVENT_LOG = (VECTORS / "good-rsa/eventlog.bin").read_bytes()
OTHER_LOG = (VECTORS / "cmdline-changed/eventlog.bin").read_bytes()
PCRS = replayed(EVENT_LOG)
FILES = {f"/usr/bin/tool-{n}": hashlib.sha256(b"%d" % n).digest() for n in range(40)}
BOOT = imalog.of_boot(PCRS, FILES)
ALLOW = {path: [f"sha256:{digest.hex()}"] for path, digest in FILES.items()}


def policies(boot: BootPolicy | None = None, **ima: object) -> Policies:
    """Policies with an [ima] section that allows FILES."""
    section = msgspec.convert({"allow": ALLOW, **ima}, ImaPolicy)
    return compiled(
        Sections(boot=msgspec.json.encode(boot) if boot else b"", ima=msgspec.json.encode(section))
    )


def codes(evidence: Evidence) -> list[str]:
    return [finding.code for finding in evidence.findings]


def refused(appraiser: Appraiser, node: Attester, asked: Asked, **how: object) -> str:
    """The code of the refusal."""
    nonce = node.nonce()
    report = node.report(nonce, asked, **how)  # type: ignore[arg-type]
    with pytest.raises(Rejected) as rejected:
        appraiser.appraise(report, parsed_body(report), nonce, asked)
    return rejected.value.code


def wanted(appraiser: Appraiser, node: Attester, asked: Asked, **how: object) -> Asked:
    """What is asked for in the place of an appraisal."""
    nonce = node.nonce()
    report = node.report(nonce, asked, **how)  # type: ignore[arg-type]
    with pytest.raises(LogWanted) as more:
        appraiser.appraise(report, parsed_body(report), nonce, asked)
    return more.value.asked


def taken(appraiser: Appraiser, node: Attester, asked: Asked, **how: object) -> Evidence:
    """One report that is appraised."""
    nonce = node.nonce()
    report = node.report(nonce, asked, **how)  # type: ignore[arg-type]
    return appraiser.appraise(report, parsed_body(report), nonce, asked)


# ---- what is asked


def test_only_new_lines_travel_and_what_is_agreed_is_not_asked_for_again() -> None:
    rules = policies()
    node = Attester("press-1", EVENT_LOG, BOOT)
    appraiser = node.appraiser(rules)
    assert appraiser.asking() == Asked(event_log=True, ima_offset=0)
    appraiser, evidence, rounds = attest(node, appraiser, rules)
    assert (codes(evidence), rounds) == ([], 1)
    assert evidence.ima is not None and evidence.ima.lines == 1 + len(FILES)
    assert appraiser.asking() == Asked(event_log=False, ima_offset=len(BOOT))
    node.measure(imalog.record("/usr/bin/tool-1", FILES["/usr/bin/tool-1"]))
    appraiser, evidence, rounds = attest(node, appraiser, rules)
    assert (codes(evidence), rounds) == ([], 1)
    assert appraiser.asking().ima_offset == len(node.ima_log or b"")
    node.measure(imalog.record("/tmp/unknown", bytes(32)))
    appraiser, evidence, _ = attest(node, appraiser, rules)
    assert codes(evidence) == ["ima.unknown-file"]


def test_nobody_asks_for_lines_that_no_policy_judges() -> None:
    node = Attester("press-1", EVENT_LOG, BOOT)
    appraiser = node.appraiser(STRICTEST)
    assert appraiser.asking() == Asked(event_log=True, ima_offset=None)
    _, evidence, _ = attest(node, appraiser, STRICTEST)
    assert (codes(evidence), evidence.ima) == ([], None)


def test_growing_pcr_10_is_no_changed_boot() -> None:
    """Where there is no [ima] section, PCR 10 says nothing, and no log is asked for again."""
    node = Attester("press-1", EVENT_LOG, BOOT)
    appraiser, _, _ = attest(node, node.appraiser(STRICTEST), STRICTEST)
    node.measure(imalog.record("/usr/bin/tool-1", FILES["/usr/bin/tool-1"]))
    _, evidence, rounds = attest(node, appraiser, STRICTEST)
    assert (codes(evidence), rounds) == ([], 1)


def test_other_values_of_the_boot_in_the_same_session_are_explained_anew() -> None:
    """Something extended PCR 4 after the boot: no reset, and the log explains it no longer."""
    node = Attester("press-1", EVENT_LOG, None)
    appraiser, evidence, _ = attest(node, node.appraiser(STRICTEST), STRICTEST)
    assert codes(evidence) == []
    taken(appraiser, node, Asked())  # nothing new: the boot on record
    node.pcrs = {**node.pcrs, 4: hashlib.sha256(node.pcrs[4] + bytes(32)).digest()}
    assert wanted(appraiser, node, Asked()) == Asked(event_log=True)
    assert codes(taken(appraiser, node, Asked(event_log=True))) == ["eventlog.replay"]


def test_a_machine_without_ima_is_told_of_and_never_passes_for_one_with_it() -> None:
    node = Attester("press-1", EVENT_LOG)
    _, evidence, _ = attest(node, node.appraiser(policies()), policies())
    assert codes(evidence) == ["ima.no-log"]
    # One that has it and says that it has not.
    node.boot(EVENT_LOG, BOOT)
    node.ima_log = None
    _, evidence, _ = attest(node, node.appraiser(policies()), policies())
    assert codes(evidence) == ["ima.no-log"]


def test_observed_sections_only_warn() -> None:
    rules = policies(mode="observe")
    node = Attester("press-1", EVENT_LOG)
    _, evidence, _ = attest(node, node.appraiser(rules), rules)
    assert codes(evidence) == ["ima.observe.ima.no-log"]


# ---- boots


def test_q17_after_a_reset_the_log_comes_from_the_beginning_whatever_offset_was_agreed() -> None:
    rules = policies()
    node = Attester("press-1", EVENT_LOG, BOOT)
    appraiser, _, _ = attest(node, node.appraiser(rules), rules)
    node.boot(EVENT_LOG, BOOT + imalog.record("/usr/bin/tool-1", FILES["/usr/bin/tool-1"]))
    asked = wanted(appraiser, node, appraiser.asking())
    assert asked == Asked(event_log=True, ima_offset=0)
    appraiser, evidence, rounds = attest(node, appraiser, rules)
    assert (codes(evidence), rounds) == ([], 2)
    assert evidence.ima is not None and evidence.ima.lines == 2 + len(FILES)


def test_q17_a_reset_with_a_resumed_ima_offset_is_refused() -> None:
    rules = policies()
    node = Attester("press-1", EVENT_LOG, BOOT)
    appraiser, _, _ = attest(node, node.appraiser(rules), rules)
    node.boot(EVENT_LOG, BOOT)
    asked = wanted(appraiser, node, appraiser.asking())
    assert refused(appraiser, node, asked, ima_offset=len(BOOT)) == "ima.offset"


def test_q17_only_the_signed_reset_counter_begins_a_new_boot() -> None:
    """What the node says of its boot begins nothing anew: a file that was refused stays refused."""
    rules = policies()
    node = Attester("press-1", EVENT_LOG, BOOT + imalog.record("/tmp/evil", bytes(32)))
    appraiser, evidence, _ = attest(node, node.appraiser(rules), rules)
    assert codes(evidence) == ["ima.unknown-file"]
    node.boot_id = "another"
    appraiser, evidence, _ = attest(node, appraiser, rules)
    assert codes(evidence) == ["ima.unknown-file"]
    assert refused(appraiser, node, appraiser.asking(), ima_offset=0) == "ima.offset"
    node.boot(EVENT_LOG, BOOT)
    _, evidence, _ = attest(node, appraiser, rules)
    assert codes(evidence) == []


def test_q17_a_reset_with_the_old_boots_log_is_asked_for_the_new_one() -> None:
    node = Attester("press-1", EVENT_LOG)
    appraiser, _, _ = attest(node, node.appraiser(STRICTEST), STRICTEST)
    node.boot(EVENT_LOG)
    asked = wanted(appraiser, node, Asked())
    assert asked.event_log
    node.event_log = OTHER_LOG
    _, evidence, _ = attest(node, appraiser, STRICTEST)
    assert "eventlog.replay" in codes(evidence)


def test_l13_a_node_without_a_firmware_log_is_judged_as_one() -> None:
    node = Attester("press-1", EVENT_LOG)
    node.event_log = b""
    _, evidence, rounds = attest(node, node.appraiser(STRICTEST), STRICTEST)
    assert (codes(evidence), rounds) == (["boot.event-log-missing"], 1)
    assert evidence.claims is None


def test_a_log_that_was_asked_for_and_withheld_is_a_failure() -> None:
    node = Attester("press-1", EVENT_LOG)
    appraiser = node.appraiser(STRICTEST)
    nonce = node.nonce()
    report = msgspec.structs.replace(node.report(nonce, Asked(event_log=True)), event_log=None)
    with pytest.raises(Rejected) as rejected:
        appraiser.appraise(report, parsed_body(report), nonce, Asked(event_log=True))
    assert rejected.value.code == "boot.event-log-withheld"


def test_another_policy_judges_the_same_boot_again() -> None:
    node = Attester("press-1", EVENT_LOG, BOOT)
    rules = policies()
    appraiser, evidence, _ = attest(node, node.appraiser(rules), rules)
    reference = evidence.reference
    stricter = policies(BootPolicy(secure_boot="required"), unknown_files="warn")
    appraiser = appraiser.renewed(appraiser.record, stricter)
    assert appraiser.asking() == Asked(event_log=True, ima_offset=0)
    # A report over the demand of a moment ago is sent back for the logs.
    assert wanted(appraiser, node, Asked(event_log=False, ima_offset=len(BOOT))) == Asked(True, 0)
    _, evidence, rounds = attest(node, appraiser, stricter, reference)
    assert (set(codes(evidence)), rounds) == ({"boot.secure-boot"}, 1)


def test_the_claims_of_the_log_come_with_the_boot() -> None:
    node = Attester("press-1", (VECTORS / "secureboot-on/eventlog.bin").read_bytes())
    appraiser, evidence, _ = attest(node, node.appraiser(STRICTEST), STRICTEST)
    assert evidence.claims is not None
    _, evidence, _ = attest(node, appraiser, STRICTEST)
    assert evidence.claims is None


# ---- offsets, chunks, garbage


@pytest.mark.parametrize("offset", [1, len(BOOT) - 1, len(BOOT) + 1, 2**53])
def test_m05_an_offset_that_was_not_asked_for_is_refused(offset: int) -> None:
    rules = policies()
    node = Attester("press-1", EVENT_LOG, BOOT)
    appraiser, _, _ = attest(node, node.appraiser(rules), rules)
    assert refused(appraiser, node, appraiser.asking(), ima_offset=offset) == "ima.offset"


def test_q21_an_ima_chunk_changed_after_the_quote_does_not_lead_to_pcr_10() -> None:
    rules = policies(unknown_files="ignore")
    node = Attester("press-1", EVENT_LOG, BOOT)
    for at in range(0, len(BOOT), 97):
        nonce, asked = node.nonce(), Asked(True, 0)
        report = node.report(nonce, asked)
        changed = bytearray(BOOT)
        changed[at] ^= 1
        report = msgspec.structs.replace(report, ima_log=bytes(changed))
        evidence = node.appraiser(rules).appraise(report, parsed_body(report), nonce, asked)
        assert any(code.startswith("ima.") for code in codes(evidence)), at
        assert {weight(code) for code in codes(evidence)} == {"contraindicated"}, at


def long_log(size: int, line_bytes: int) -> bytes:
    """A log of about so many bytes in lines of about so many."""
    name, parts, total = "/opt/" + "x" * 200, [imalog.boot_aggregate(PCRS)], 0
    while total < size:
        signature = bytes(line_bytes - 300)
        line = imalog.record(f"{name}{len(parts)}", hashlib.sha256(b"%d" % len(parts)).digest(), signature)
        parts.append(line)
        total += len(line)
    return b"".join(parts)


def test_a_log_longer_than_a_chunk_is_caught_up_with_before_anything_is_said() -> None:
    rules = policies(unknown_files="ignore")
    node = Attester("press-1", EVENT_LOG, long_log(2_500_000, 1000))
    appraiser, evidence, rounds = attest(node, node.appraiser(rules), rules)
    assert (codes(evidence), rounds) == ([], 3)
    assert appraiser.asking().ima_offset == len(node.ima_log or b"")
    node.measure(imalog.record("/opt/one-more", bytes(32)))
    _, evidence, rounds = attest(node, appraiser, rules)
    assert (codes(evidence), rounds) == ([], 1)


def test_what_a_session_caught_up_with_is_worth_nothing_to_the_next_one() -> None:
    rules = policies(unknown_files="ignore")
    node = Attester("press-1", EVENT_LOG, long_log(2_500_000, 1000))
    appraiser = node.appraiser(rules)
    asked = wanted(appraiser, node, appraiser.asking())
    assert asked.ima_offset
    assert node.appraiser(rules, appraiser.record).asking().ima_offset == 0


def test_a_reboot_in_the_middle_of_catching_up_begins_again() -> None:
    rules = policies(unknown_files="ignore")
    node = Attester("press-1", EVENT_LOG, long_log(2_500_000, 1000))
    appraiser = node.appraiser(rules)
    asked = wanted(appraiser, node, appraiser.asking())
    assert asked.ima_offset
    node.boot(EVENT_LOG, BOOT)
    assert wanted(appraiser, node, asked) == Asked(event_log=True, ima_offset=0)
    _, evidence, _ = attest(node, appraiser, rules)
    assert codes(evidence) == []


def test_m10_a_log_that_never_catches_up_ends_in_a_finding() -> None:
    rules = policies(unknown_files="ignore", max_reports=3)
    node = Attester("press-1", EVENT_LOG, long_log(6_000_000, 4000))
    appraiser, asked = node.appraiser(rules), Asked(True, 0)
    for _ in range(3):
        asked = wanted(appraiser, node, asked, pcr10=bytes(31) + b"x")
    evidence = taken(appraiser, node, asked, pcr10=bytes(31) + b"x")
    assert "ima.never-matches" in codes(evidence)
    # What was read on the way is not kept: the next report begins where agreement ends.
    assert appraiser.renewed(after(appraiser.record, evidence), rules).asking().ima_offset == 0


def test_m01_a_log_cut_short_is_no_catching_up() -> None:
    rules = policies()
    node = Attester("press-1", EVENT_LOG, BOOT)
    last = imalog.record("/usr/bin/tool-1", FILES["/usr/bin/tool-1"])
    node.measure(last)
    node.ima_log = BOOT
    evidence = taken(node.appraiser(rules), node, Asked(True, 0))
    assert codes(evidence) == ["ima.mismatch"]


def test_m09_64_mib_pass_through_within_bounded_memory() -> None:
    rules = policies(unknown_files="ignore")
    node = Attester("press-1", EVENT_LOG, long_log(63 * 1024 * 1024, 16_000))
    appraiser = node.appraiser(rules)
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        tracemalloc.reset_peak()
        appraiser, evidence, rounds = attest(node, appraiser, rules)
        now, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert (codes(evidence), rounds) == ([], 64)
    assert peak - before < 24 * MAX_IMA_CHUNK_BYTES
    assert now - before < 4 * MAX_IMA_CHUNK_BYTES
    assert len(encode(evidence.ima)) < 500


def test_m09_more_than_64_mib_is_refused() -> None:
    rules = policies(unknown_files="ignore")
    node = Attester("press-1", EVENT_LOG, long_log(65 * 1024 * 1024, 16_000))
    _, evidence, _ = attest(node, node.appraiser(rules), rules)
    assert "ima.too-large" in codes(evidence)


@settings(max_examples=200, deadline=None)
@given(
    chunk=st.one_of(
        st.binary(max_size=2000),
        st.builds(
            lambda at, new: BOOT[:at] + new + BOOT[at + len(new) :],
            st.integers(0, len(BOOT)),
            st.binary(min_size=1, max_size=16),
        ),
        st.integers(0, len(BOOT)).map(lambda end: BOOT[:end]),
    )
)
def test_garbage_in_the_chunk_is_a_finding(chunk: bytes) -> None:
    if chunk.startswith(BOOT):
        return
    node, rules = _GARBAGE
    nonce, asked = node.nonce(), Asked(True, 0)
    report = msgspec.structs.replace(node.report(nonce, asked), ima_log=chunk)
    evidence = node.appraiser(rules).appraise(report, parsed_body(report), nonce, asked)
    assert {weight(code) for code in codes(evidence)} == {"contraindicated"}


_GARBAGE = Attester("press-1", EVENT_LOG, BOOT), policies(unknown_files="ignore")


def test_state_of_a_quiet_node_is_small() -> None:
    """In the node's row, and in memory of the session."""
    rules = policies()
    node = Attester("press-1", EVENT_LOG, BOOT)
    _, evidence, _ = attest(node, node.appraiser(rules), rules)
    assert isinstance(evidence.ima, ImaState)
    assert len(encode(evidence.ima)) < 250
