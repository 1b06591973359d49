"""Updates: announced, not announced, rolled back; and what may hide behind one."""

from __future__ import annotations

import msgspec
import pytest

from contract import wire
from contract.boot import BootPolicy, Reference
from contract.bootreference import differences, release_of, succession
from contract.eventlog import parse_event_log
from contract.references import Expected, ExpectedValue
from tests.contract.boots import (
    COMMAND,
    DBX,
    GRUB,
    GRUB_CONFIG,
    INITRD,
    KERNEL_FILE,
    LINUX,
    MOK_LIST,
    QUESTION,
    SBAT_LEVEL,
    SHIM,
    Boot,
    announced,
    kernel,
    secure,
    value,
)
from tests.contract.forge import Case

STRICT = BootPolicy()


@pytest.fixture(scope="module")
def old() -> Boot:
    return secure()


@pytest.fixture(scope="module")
def new(old: Boot) -> Boot:
    return old.changed({**kernel("new"), INITRD: value("new initrd")})


def codes(
    boot: Boot, policy: BootPolicy, reference: Reference, expected: Expected | None = None
) -> list[str]:
    return [finding.code for finding in boot.judged(policy, reference, expected)]


def test_the_recorded_boot_is_good_and_says_nothing(old: Boot) -> None:
    assert old.judged(QUESTION, old.reference) == []
    assert old.weighed(QUESTION, old.reference).announced == []


def test_an_update_is_refused_unless_the_policy_asks(old: Boot, new: Boot) -> None:
    assert codes(new, STRICT, old.reference) == ["boot.pcr", "boot.pcr"]


def test_an_unannounced_update_is_one_question_for_each_new_value(old: Boot, new: Boot) -> None:
    found = new.judged(QUESTION, old.reference)
    assert [(f.code, f.pcr, f.event) for f in found] == [
        ("boot.unannounced", 9, KERNEL_FILE),
        ("boot.unannounced", 4, 47),
        ("boot.unannounced", 9, INITRD),
    ]
    said = (
        "the initrd and the kernel changed and nothing else: PCR 9 event 46 EV_IPL '/boot/vmlinuz' (kernel): "
    )
    assert found[0].detail.startswith(said + "wanted 26f2e57c9933")
    assert found[0].detail.endswith(f"found {value('new file').hex()}")


def test_the_boot_loader_is_an_update_too(old: Boot) -> None:
    boot = old.changed({GRUB: value("new grub"), SHIM: value("new shim")})
    assert set(codes(boot, QUESTION, old.reference)) == {"boot.unannounced"}


@pytest.mark.parametrize(
    ("digests", "texts"),
    [
        ({GRUB_CONFIG: value("other grub.cfg")}, {}),
        ({**kernel("new"), GRUB_CONFIG: value("other grub.cfg")}, {}),
        (kernel("new"), {COMMAND: ("quiet", "init=/bin/sh"), LINUX: ("quiet", "init=/bin/sh")}),
        ({2: value("other firmware")}, {}),
        ({**kernel("new"), 10: value("other boot order")}, {}),
        ({**kernel("new"), MOK_LIST: value("another owner's keys")}, {}),
        ({**kernel("new"), 22: value("another authority")}, {}),
    ],
)
def test_anything_else_is_no_question(
    old: Boot, digests: dict[int, bytes], texts: dict[int, tuple[str, str]]
) -> None:
    found = codes(old.changed(digests, texts), QUESTION, old.reference)
    assert "boot.unannounced" not in found
    assert "boot.pcr" in found


def test_without_secure_boot_nothing_is_asked(old: Boot) -> None:
    case = Case("good-rsa")
    off = Boot(parse_event_log(case.read("eventlog.bin")), case)
    assert off.claims.secure_boot is False
    assert "boot.unannounced" not in codes(off.changed({44: value("new kernel")}), QUESTION, off.reference)
    unproved = old.changed({4: value("not what the log says")})
    assert "boot.unannounced" not in codes(unproved.changed(kernel("new")), QUESTION, unproved.reference)


def test_a_missing_or_additional_event_is_no_question(old: Boot) -> None:
    for boot in (old.without(48), old.without(INITRD)):
        assert codes(boot, QUESTION, old.reference)[-1:] == ["boot.pcr"]
        assert codes(old, QUESTION, boot.reference)[-1:] == ["boot.pcr"]


def test_l03_what_is_only_called_a_kernel_is_none(old: Boot) -> None:
    boot = old.changed({GRUB_CONFIG: value("evil")}).named(GRUB_CONFIG, b"/boot/initrd.img\0")
    assert {one.stage for one in boot.claims.loaded if one.event == GRUB_CONFIG} == {"boot-loader"}
    assert codes(boot, QUESTION, old.reference) == ["boot.pcr"]
    expected = Expected(values=[ExpectedValue(stage="boot-loader", sha256=value("evil"))])
    assert codes(boot, STRICT, old.reference, expected) == ["boot.pcr"]


def test_an_announced_update_says_nothing_and_takes_the_place(old: Boot) -> None:
    boot = old.changed(kernel("new"))
    for policy in (STRICT, QUESTION):
        weighed = boot.weighed(policy, old.reference, announced("new"))
        assert weighed.findings == []
        assert weighed.announced == [
            f"kernel 'image of 8247232 bytes' {value('new image').hex()}",
            f"kernel '/boot/vmlinuz' {value('new file').hex()}",
        ]
    after = boot.after(old.reference)
    assert boot.judged(STRICT, after) == []
    assert {s.stage for s in after.superseded} == {"kernel"}


def test_a_digest_in_the_signed_policy_is_announced_as_well(old: Boot) -> None:
    boot = old.changed({INITRD: value("built anew")})
    listed = ["dd7d20acc0ff" + old.reference.events[-3].sha256.hex()[12:], value("built anew").hex()]
    policy = msgspec.convert({"stages": {"initrd": listed}}, BootPolicy)
    assert boot.weighed(policy, old.reference).announced != []


def test_what_is_announced_for_another_class_of_hardware_is_not(old: Boot) -> None:
    boot = old.changed(kernel("new"))
    other = announced("new", hardware_class="N40ET41W")
    assert "boot.pcr" in codes(boot, STRICT, old.reference, other)
    same = msgspec.structs.replace(old.reference, firmware_version="N40ET41W")
    assert codes(boot, STRICT, same, other) == []


def test_what_is_announced_at_another_stage_is_not(old: Boot) -> None:
    boot = old.changed({INITRD: value("new file")})
    assert codes(boot, STRICT, old.reference, announced("new")) == ["boot.pcr"]


def test_nothing_hides_behind_an_announced_update(old: Boot) -> None:
    boot = old.changed({**kernel("new"), INITRD: value("evil initrd")})
    found = boot.weighed(STRICT, old.reference, announced("new"))
    assert [(f.code, f.pcr, f.event) for f in found.findings] == [("boot.pcr", 9, INITRD)]
    assert found.announced == []


def test_an_announced_update_with_a_broken_log_is_not_taken(old: Boot) -> None:
    boot = old.changed(kernel("new"))
    boot.pcrs[5] = value("not what the log leads to")
    found = boot.weighed(STRICT, old.reference, announced("new"))
    assert found.announced == []
    assert "eventlog.replay" in [f.code for f in found.findings]


VERSIONED = {
    LINUX: ("/boot/vmlinuz", "/boot/vmlinuz-6.1.0-18-amd64"),
    COMMAND: ("/boot/vmlinuz", "/boot/vmlinuz-6.1.0-18-amd64"),
    42: ("/boot/vmlinuz", "/boot/vmlinuz-6.1.0-18-amd64"),
    50: ("/boot/initrd.img", "/boot/initrd.img-6.1.0-18-amd64"),
}


def test_commands_that_name_the_new_release_are_the_same_commands(old: Boot) -> None:
    before = old.changed(texts=VERSIONED)
    assert release_of(before.reference.command_line) == "6.1.0-18-amd64"
    newer = dict.fromkeys(VERSIONED, ("6.1.0-18-amd64", "6.1.0-19-amd64"))
    after = before.changed(kernel("new"), newer)
    assert after.judged(STRICT, before.reference, announced("new")) == []
    assert set(codes(after, QUESTION, before.reference)) == {"boot.unannounced"}
    evil = after.changed(texts=dict.fromkeys((LINUX, COMMAND), ("quiet", "quiet init=/bin/sh")))
    found = evil.judged(STRICT, before.reference, announced("new"))
    assert [(f.code, f.pcr, f.event) for f in found] == [("boot.pcr", 8, LINUX)]
    assert "+init=/bin/sh" in found[0].detail
    renamed = before.changed(texts=newer)
    assert codes(renamed, STRICT, before.reference) == ["boot.pcr"]


def test_l15_a_kernel_that_was_superseded_never_comes_back_by_itself(old: Boot) -> None:
    boot = old.changed(kernel("new"))
    after = boot.after(old.reference)
    for policy in (STRICT, QUESTION):
        found = old.judged(policy, after)
        assert "boot.rolled-back" in [f.code for f in found]
        assert "boot.unannounced" not in [f.code for f in found]
        assert "most likely rolled back" in found[0].detail
    # Not even when it is announced still, or listed.
    again = Expected(
        values=[ExpectedValue(stage=e.stage, sha256=e.sha256) for e in old.reference.events if e.stage]
    )
    weighed = old.weighed(STRICT, after, again)
    assert "boot.rolled-back" in [f.code for f in weighed.findings]
    assert weighed.announced == []


def test_l15_what_an_announcement_supersedes_is_refused_also_on_a_node_that_never_had_it(old: Boot) -> None:
    boot = old.changed(kernel("vulnerable"))
    expected = Expected(superseded=[value("vulnerable file")])
    assert "boot.rolled-back" in codes(boot, QUESTION, old.reference, expected)
    # A node that still stands on it has not gone back.
    assert codes(boot, QUESTION, boot.reference, expected) == []


def test_l15_pinned_values_do_not_bring_it_back(old: Boot) -> None:
    pinned = {"9": [old.pcrs[9].hex()]}
    policy = msgspec.convert({"pcrs": [9], "reference": "pinned", "pinned": pinned}, BootPolicy)
    assert old.judged(policy, None) == []
    file = next(e.sha256 for e in old.log.events if e.index == KERNEL_FILE)
    assert codes(old, policy, old.reference, Expected(superseded=[file])) == ["boot.rolled-back"]


@pytest.mark.parametrize("at", [DBX, SBAT_LEVEL, MOK_LIST])
def test_l14_a_revocation_list_that_goes_back_is_named(old: Boot, at: int) -> None:
    updated = old.changed({at: value("newer list")})
    after = updated.after(old.reference)
    found = old.judged(STRICT, after)
    assert [f.event for f in found if f.code == "boot.rolled-back"] == [at]


def test_l15_whoever_accepts_the_old_boot_has_said_so(old: Boot) -> None:
    boot = old.changed(kernel("new"))
    back = succession(boot.after(old.reference), old.reference)
    assert old.judged(STRICT, back) == []
    assert value("new file") in {s.sha256 for s in back.superseded}
    assert "boot.rolled-back" in codes(boot, STRICT, back)


def test_a_reference_of_an_earlier_version_explains_no_update(old: Boot) -> None:
    events = [msgspec.structs.replace(event, stage="") for event in old.reference.events]
    earlier = msgspec.structs.replace(old.reference, events=events)
    boot = old.changed(kernel("new"))
    assert set(codes(boot, QUESTION, earlier, announced("new"))) == {"boot.pcr"}


def test_superseded_values_survive_the_store_and_stay_bounded(old: Boot) -> None:
    reference = old.reference
    for number in range(400):
        reference = old.changed(kernel(f"kernel {number}")).after(reference)
    assert len(reference.superseded) == 2 * 399 + 2
    for number in range(400, 600):
        reference = old.changed(kernel(f"kernel {number}")).after(reference)
    assert len(reference.superseded) == 1024
    assert value("kernel 598 file") in {s.sha256 for s in reference.superseded}
    stored = wire.encode(reference)
    assert wire.decode(stored, Reference, max_bytes=2**20) == reference


def test_differences_pair_only_what_stands_in_the_same_place(old: Boot) -> None:
    shorter = old.without(48)
    changes = differences(old.reference, shorter.reference, 4)
    assert [(c.before is None, c.after is None, c.aligned) for c in changes] == [(False, True, False)]
    assert differences(old.reference, old.reference, 4) == []
