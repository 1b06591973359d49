"""Only what the log explains under the quote is believed: in findings, references, classes and learned policies."""

from __future__ import annotations

import msgspec
import pytest

from contract.baseline import parse_baseline, section
from contract.boot import BootPolicy, reference_from
from contract.bundle import Policies as Audited
from contract.bundle import for_audit, policy_toml
from contract.claims import claims_of
from contract.learn import Learned, learn, propose
from contract.references import Expected, ExpectedValue
from tests.contract.boots import COMMAND, INITRD, KERNEL_FILE, LINUX, Boot, announced, kernel, secure, value

NARROW = BootPolicy(pcrs=[4, 7])
SYSTEMD = BootPolicy(runtime_pcrs=[9])
HEAD = '[baseline]\nname = "x"\nversion = 1\nsummary = "x"\n'


@pytest.fixture(scope="module")
def old() -> Boot:
    return secure()


@pytest.fixture(scope="module")
def forged(old: Boot) -> Boot:
    """A log in which PCR 8 tells of other commands than were measured, without a fault of its own."""
    said = dict.fromkeys((LINUX, COMMAND), ("quiet", "quiet evil=1"))
    return old.changed(texts=said).over(old.pcrs)


def codes(boot: Boot, policy: BootPolicy, reference: Boot) -> list[tuple[str, int | None]]:
    return [(finding.code, finding.pcr) for finding in boot.judged(policy, reference.reference)]


def proposed(boots: dict[str, Boot]) -> BootPolicy:
    text = propose({name: Learned(reference=b.reference, claims=b.claims) for name, b in boots.items()})
    return section(parse_baseline((HEAD + text).encode()), "boot", BootPolicy)


def test_l01_a_log_forged_in_a_pcr_that_is_not_compared_is_found(old: Boot, forged: Boot) -> None:
    assert forged.claims.kernel_command_line is not None
    assert "evil=1" in forged.claims.kernel_command_line
    assert codes(forged, NARROW, old) == [("eventlog.replay", 8)]
    assert codes(old, NARROW, old) == []


def test_l01_a_pcr_that_is_only_left_out_can_be_named_as_a_run_time_one(old: Boot) -> None:
    extended = old.over({**old.pcrs, 9: value("systemd")})
    assert codes(extended, NARROW, old) == [("eventlog.replay", 9)]
    named = msgspec.structs.replace(NARROW, runtime_pcrs=[9])
    assert codes(extended, named, old) == []
    # It is then not compared: `pcrs` does not name it.
    assert codes(extended.changed({INITRD: value("x")}).over(extended.pcrs), named, old) == []


def test_l01_what_the_quote_does_not_bear_out_enters_no_reference(old: Boot, forged: Boot) -> None:
    reference = forged.reference
    assert reference.command_line is None
    assert 8 not in reference.explained
    assert {event.pcr for event in reference.events} <= set(reference.explained)
    assert old.reference.command_line == old.claims.kernel_command_line
    assert old.reference.explained == sorted(old.reference.explained)
    # Claims that were held against no quote teach nothing at all.
    bare = reference_from(old.log, old.pcrs, claims_of(old.log))
    assert (bare.events, bare.command_line, bare.firmware_version) == ([], None, "")


def test_l01_a_hardware_class_is_only_what_pcr_0_bears_out(old: Boot) -> None:
    said = {1: "N40ET41W".encode("utf-16-le")}
    true = old.holding(1, said[1])
    assert true.reference.firmware_version == "N40ET41W"
    liar = true.over({**true.pcrs, 0: old.pcrs[0]})
    assert liar.claims.firmware_version == "N40ET41W"
    assert liar.reference.firmware_version == ""
    for boot, refused in ((true, False), (liar, True)):
        new = boot.changed(kernel("new"))
        judged = new.judged(
            BootPolicy(pcrs=[4, 7]), boot.reference, announced("new", hardware_class="N40ET41W")
        )
        assert ("boot.pcr" in [f.code for f in judged]) == refused


def test_l01_nothing_is_learned_that_the_quote_does_not_bear_out(old: Boot, forged: Boot) -> None:
    policy = proposed({"a": forged})
    assert policy.cmdline_required == []
    assert policy.cmdline_allowed is None
    assert policy.runtime_pcrs == [8]
    assert policy.secure_boot == "required"
    mixed = proposed({"a": old, "b": forged})
    assert (mixed.cmdline_required, mixed.runtime_pcrs) == ([], [8])
    left_out = learn({"b": Learned(reference=forged.reference, claims=forged.claims)}).left_out
    assert any("PCR 8" in text for text in left_out)


def test_l17_events_of_a_run_time_pcr_are_compared_and_teach_nothing(old: Boot) -> None:
    extended = old.over({**old.pcrs, 9: value("systemd")})
    assert codes(extended, SYSTEMD, old) == []
    other = old.changed({KERNEL_FILE: value("never measured")}).over(extended.pcrs)
    assert codes(other, SYSTEMD, old) == [("boot.pcr", 9)]
    kept = reference_from(other.log, other.pcrs, other.claims, runtime_pcrs=[9])
    assert 9 not in kept.explained
    assert value("never measured") in {event.sha256 for event in kept.events}
    assert value("never measured") not in {event.sha256 for event in other.reference.events}
    policy = proposed({"a": Boot(other.log).over(other.pcrs)})
    assert policy.runtime_pcrs == [9]
    assert policy.stages.kernel is None
    assert policy.stages.initrd is None
    assert policy.stages.boot_loader
    # And it holds for the node it was learned from.
    assert other.judged(policy, kept) == []


def test_an_exported_policy_still_says_which_pcrs_the_running_system_extends(old: Boot) -> None:
    extended = old.over({**old.pcrs, 9: value("systemd")})
    audited = for_audit(Audited(boot=SYSTEMD, ima=None), extended.pcrs)
    assert audited.boot is not None
    assert 9 not in audited.boot.pcrs
    assert extended.judged(audited.boot, None) == []
    assert b"runtime_pcrs = [" in policy_toml(audited)


def test_an_announced_update_of_a_log_that_is_not_borne_out_is_not_taken(old: Boot) -> None:
    new = old.changed(kernel("new"))
    lies = new.changed(texts=dict.fromkeys((LINUX, COMMAND), ("quiet", "quiet evil=1"))).over(new.pcrs)
    expected = Expected(
        values=[ExpectedValue(stage="kernel", sha256=value(f"new {kind}")) for kind in ("file", "image")]
    )
    weighed = lies.weighed(NARROW, old.reference, expected)
    assert weighed.announced == []
    assert [f.code for f in weighed.findings] == ["eventlog.replay"]
