"""The `[boot]` section: verified quotes of recorded boots judged against references, pinned values and nothing at all."""

from __future__ import annotations

import msgspec
import pytest

from contract import wire
from contract.binding import BOOT_PCRS
from contract.boot import (
    ADVISORY_CODES,
    BootPolicy,
    Reference,
    judge_boot,
    reference_from,
)
from contract.eventlog import EventLog, parse_event_log
from contract.quote import Counters, VerifiedQuote
from tests.contract.forge import COUNTERS, Case, Forger

GOOD = Case("good-rsa")


def log_of(name: str) -> EventLog:
    return parse_event_log(Case(name).read("eventlog.bin"))


@pytest.fixture(scope="module")
def quote() -> VerifiedQuote:
    return GOOD.quote()


@pytest.fixture(scope="module")
def log() -> EventLog:
    return log_of("good-rsa")


@pytest.fixture(scope="module")
def reference(quote: VerifiedQuote, log: EventLog) -> Reference:
    return reference_from(log, quote.pcrs)


def quote_of(pcrs: dict[int, bytes], counters: Counters = COUNTERS) -> VerifiedQuote:
    forger = Forger("ecc256")
    return forger.verify(forger.attest(pcrs=pcrs, counters=counters), pcrs=pcrs, wanted=frozenset(pcrs))


def test_the_same_boot_again_is_good(quote: VerifiedQuote, log: EventLog, reference: Reference) -> None:
    assert judge_boot(BootPolicy(), quote, log, reference) == []


def test_another_machine_like_it_is_good(reference: Reference) -> None:
    again = Case("binary-changed")
    assert judge_boot(BootPolicy(), again.quote(), log_of("binary-changed"), reference) == []


def test_a_changed_command_line_is_named_by_pcr_and_event(reference: Reference) -> None:
    found = judge_boot(BootPolicy(), Case("cmdline-changed").quote(), log_of("cmdline-changed"), reference)
    assert [(f.code, f.pcr, f.event) for f in found] == [("boot.pcr", 8, 40), ("boot.pcr", 9, 37)]
    assert found[1].detail.startswith(
        "PCR 9 event 37 EV_IPL '(hd0,gpt2)/boot/grub/grub.cfg': wanted 5ddd0f1296021569"
    )
    assert "found 090719dd2c7ae22a" in found[1].detail


def test_secure_boot_switched_is_named(reference: Reference) -> None:
    found = judge_boot(BootPolicy(), Case("secureboot-on").quote(), log_of("secureboot-on"), reference)
    assert [f.pcr for f in found] == [0, 4, 7]
    assert "SecureBoot = 01" in found[2].detail
    assert "was EV_EFI_VARIABLE_DRIVER_CONFIG 'SecureBoot = 00'" in found[2].detail


def test_an_event_that_is_gone_is_named(log: EventLog) -> None:
    secure = Case("secureboot-on").quote()
    reference = reference_from(log_of("secureboot-on"), secure.pcrs)
    found = judge_boot(BootPolicy(), GOOD.quote(), log, reference)
    assert "is missing" in next(f.detail for f in found if f.pcr == 4)


def test_an_empty_policy_denies(quote: VerifiedQuote, log: EventLog, reference: Reference) -> None:
    found = judge_boot(BootPolicy(pcrs=[]), quote, log, reference)
    assert [f.code for f in found] == ["boot.policy-empty"]


def test_without_a_reference_nothing_is_good(quote: VerifiedQuote, log: EventLog) -> None:
    assert [f.code for f in judge_boot(BootPolicy(), quote, log, None)] == ["boot.no-reference"]
    empty = Reference(pcrs={})
    found = judge_boot(BootPolicy(), quote, log, empty)
    assert {f.code for f in found} == {"boot.no-reference"}
    assert len(found) == 11


def test_q09_pcr_of_the_policy_that_is_not_quoted_is_found(log: EventLog, reference: Reference) -> None:
    few = quote_of({pcr: GOOD.pcrs[pcr] for pcr in (0, 1, 4)})
    found = judge_boot(BootPolicy(), few, log, reference)
    assert [f.code for f in found] == ["boot.pcr-not-quoted"]


def test_l01_log_of_another_boot_is_found(quote: VerifiedQuote, reference: Reference) -> None:
    found = judge_boot(BootPolicy(), quote, log_of("cmdline-changed"), reference)
    assert [f.code for f in found] == ["eventlog.replay", "eventlog.replay"]


def test_l13_no_log_where_one_is_required_is_found(quote: VerifiedQuote, reference: Reference) -> None:
    assert [f.code for f in judge_boot(BootPolicy(), quote, None, reference)] == ["boot.event-log-missing"]
    assert judge_boot(BootPolicy(event_log="optional"), quote, None, reference) == []


def test_q17_a_reset_with_the_old_boot_log_is_found(log: EventLog, reference: Reference) -> None:
    after = msgspec.structs.replace(COUNTERS, reset=COUNTERS.reset + 1)
    changed = quote_of(Case("cmdline-changed").pcrs, after)
    assert [f.code for f in judge_boot(BootPolicy(), changed, log, reference)] == [
        "eventlog.replay",
        "eventlog.replay",
        "boot.pcr",
        "boot.pcr",
    ]
    without = judge_boot(BootPolicy(), quote_of(GOOD.pcrs, after), None, reference)
    assert [f.code for f in without] == ["boot.event-log-missing"]


def test_l15_reboot_into_another_kernel_after_a_good_round_is_found(reference: Reference) -> None:
    found = judge_boot(BootPolicy(), Case("secureboot-on").quote(), log_of("secureboot-on"), reference)
    assert any(f.code == "boot.pcr" and f.pcr == 4 for f in found)


def test_l17_runtime_pcrs_are_compared_by_their_events(log: EventLog, reference: Reference) -> None:
    policy = BootPolicy(runtime_pcrs=[9])
    extended = quote_of({**GOOD.pcrs, 9: b"r" * 32})
    assert judge_boot(policy, extended, log, reference) == []
    found = judge_boot(policy, extended, log_of("cmdline-changed"), reference)
    assert ("boot.pcr", 9) in [(f.code, f.pcr) for f in found]


def test_pinned_values(quote: VerifiedQuote, log: EventLog) -> None:
    pinned = {"0": ["0" * 64, quote.pcrs[0].hex()], "7": ["1" * 64]}
    policy = BootPolicy(reference="pinned", pinned=pinned, pcrs=[0, 4, 7])
    found = judge_boot(policy, quote, log, None)
    assert [(f.code, f.pcr) for f in found] == [("boot.not-pinned", 4), ("boot.pcr", 7)]
    assert quote.pcrs[7].hex() in found[1].detail


def test_quote_findings_are_passed_on_and_advisory(log: EventLog, reference: Reference) -> None:
    previous = msgspec.structs.replace(GOOD.quote().counters, firmware_version=1)
    found = judge_boot(BootPolicy(), GOOD.quote(previous), log, reference)
    assert [f.code for f in found] == ["quote.firmware-version"]
    assert {f.code for f in found} <= ADVISORY_CODES


def test_a_reference_survives_the_store(reference: Reference) -> None:
    stored = wire.encode(reference)
    assert wire.decode(stored, Reference, max_bytes=2**20) == reference
    assert len(stored) < 10_000


@pytest.mark.parametrize(
    "section",
    [
        {"pcrs": [0, 0]},
        {"pcrs": [16]},
        {"pcrs": [23]},
        {"pcrs": [10]},
        {"pcrs": [24]},
        {"pcrs": [-1]},
        {"runtime_pcrs": [15]},
        {"pinned": {"0": ["0" * 64]}},
        {"reference": "pinned", "pinned": {"0": ["F" * 64]}},
        {"reference": "pinned", "pinned": {"24": ["f" * 64]}},
        {"reference": "first"},
        {"pcr": [0]},
    ],
)
def test_a_section_that_cannot_be_meant_is_refused(section: dict[str, object]) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert(section, BootPolicy, strict=True)


def test_the_default_section_covers_all_that_is_quoted() -> None:
    assert set(msgspec.convert({}, BootPolicy).pcrs) == BOOT_PCRS
