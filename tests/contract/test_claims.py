"""What logs claim (`contract.claims`): recorded ones by hand-checked values, forged ones by what they must not claim."""

from __future__ import annotations

import hashlib
import struct
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from contract import eventtypes as ev
from contract.claims import Claims, claims_of
from contract.errors import Rejected
from contract.eventdata import fields, oddities
from contract.eventlog import SHA1, coverage, parse_event_log
from tests.contract.eventforge import (
    GLOBAL,
    KERNEL,
    SECURITY,
    SHA256_LIST,
    SHIM,
    X509_LIST,
    authority,
    grub,
    header,
    keys,
    loads,
    no_action,
    old_record,
    record,
    sbat_level,
    secure_boot,
    separators,
    signature_list,
    variable_data,
)
from tests.contract.eventwitness import LOGS, PUBLIC
from tests.contract.forge import CASES, Case
from tests.contract.test_garbage import mutated

DBX = signature_list(SHA256_LIST, b"a" * 32, b"b" * 32)
SBAT = b"sbat,1,2023012900\nshim,2\ngrub,3\n"


def claims(*records: bytes) -> Claims:
    """Return the claims of a log with these records."""
    return claims_of(parse_event_log(header() + b"".join(records)))


def recorded(name: str) -> Claims:
    return claims_of(parse_event_log(Case(name).read("eventlog.bin")))


def public(name: str) -> Claims:
    path = PUBLIC / "keylime" / name
    if not path.exists():
        pytest.skip("not on this machine")
    return claims_of(parse_event_log(path.read_bytes()))


def staged(found: Claims, stage: str) -> list[tuple[str, str]]:
    return [(one.name, one.sha256.hex()[:16]) for one in found.loaded if one.stage == stage]


LINE = "root=UUID=6c616200-0000-4000-8000-000000000001 ro console=ttyS0 quiet ima_policy=tcb ima_hash=sha256"
KERNEL_FILE = ("/boot/vmlinuz", "26f2e57c99338fea")
INITRD_FILE = ("/boot/initrd.img", "dd7d20acc0ffb346")


@pytest.mark.parametrize("name", ["good-rsa", "binary-changed"])
def test_claims_of_a_boot_without_secure_boot(name: str) -> None:
    found = recorded(name)
    assert (found.secure_boot, found.setup_mode, found.shim_verifies) == (False, True, True)
    assert (found.signatures, found.authorities) == ([], [])
    assert (found.sbat_level, found.sbat) == ("2021030218", {"sbat": 1})
    assert [entry.variable for entry in found.mok] == ["MokList", "MokListX", "MokListTrusted"]
    assert found.mok[2].sha256 == hashlib.sha256(b"\1").digest()
    assert found.firmware_version == ""  # this firmware measures a version of two zero bytes
    assert found.kernel_command_line == f"/boot/vmlinuz {LINE}"
    # /proc/cmdline of that boot.
    assert " ".join(found.kernel_arguments) == f"BOOT_IMAGE=/boot/vmlinuz {LINE}"
    assert (found.lockdown, found.debugger, found.exit_boot_services) == ("none", False, True)
    assert staged(found, "firmware") == [
        ("at 0x820000, 917504 bytes", "86dbd0066d252011"),
        ("at 0x900000, 12582912 bytes", "82a0445201cb4994"),
    ]
    assert staged(found, "boot-loader") == [
        (r"\EFI\BOOT\BOOTX64.EFI", "80a66d53a945d228"),
        (r"\EFI\BOOT\grubx64.efi", "a68f6d71ebddaa19"),
    ]
    assert (staged(found, "kernel"), staged(found, "initrd")) == ([KERNEL_FILE], [INITRD_FILE])
    assert found.boot_order[0] == "Boot0001 'UEFI Misc Device' PciRoot(0x0)/Pci(0x1,0x0)"


def test_claims_of_a_changed_command_line() -> None:
    found = recorded("cmdline-changed")
    assert " ".join(found.kernel_arguments) == f"BOOT_IMAGE=/boot/vmlinuz {LINE} systemd.debug-shell=1"
    source = found.sources["kernel_command_line"]
    assert (source.pcr, source.covered) == (8, True)


def test_claims_of_a_boot_with_secure_boot() -> None:
    found = recorded("secureboot-on")
    assert (found.secure_boot, found.setup_mode, found.shim_verifies) == (True, False, True)
    listed = [
        (s.variable, s.kind, s.sha256.hex()[:16], s.subject.partition(",")[0]) for s in found.signatures
    ]
    debian = "1.2.840.113549.1.9.1=debian-devel@lists.debian.org"
    assert listed == [
        ("PK", "x509", "5fb05ed84c5170d5", debian),
        ("KEK", "x509", "5fb05ed84c5170d5", debian),
        ("KEK", "x509", "a1117f516a32cefc", "CN=Microsoft Corporation KEK CA 2011"),
        ("db", "x509", "e8e95f0733a55e8b", "CN=Microsoft Windows Production PCA 2011"),
        ("db", "x509", "48e99b991f57fc52", "CN=Microsoft Corporation UEFI CA 2011"),
        ("dbx", "sha256", "e3b0c44298fc1c14", ""),  # the digest of nothing
    ]
    assert all(entry.covered for entry in found.signatures + found.authorities)
    assert [(s.variable, s.subject.partition(",")[0]) for s in found.authorities] == [
        ("db", "CN=Microsoft Corporation UEFI CA 2011"),
        ("MokListRT", "CN=Debian Secure Boot CA"),
    ]
    assert (found.sbat_level, found.sbat) == ("2025021800", {"sbat": 1, "shim": 4, "grub": 5})
    # shim verifies the kernel and measures it too, twice, without a name.
    named = ("", "6b1bf35c3bee9918")
    assert staged(found, "kernel") == [KERNEL_FILE, named, named]
    assert found.lockdown == "integrity"
    assert not found.proved("lockdown", range(24))


def test_claims_of_a_physical_machine() -> None:
    found = public("el9.eventlog.bin")
    assert (found.secure_boot, found.setup_mode, found.exit_boot_services) == (False, False, None)
    assert found.firmware_version == "N40ET41W"
    assert sum(s.variable == "dbx" and s.kind == "sha256" for s in found.signatures) == 458
    assert [s.subject.partition(",")[0] for s in found.signatures if s.kind == "x509"] == [
        "CN=Lenovo Ltd. PK CA 2012",
        "CN=Lenovo Ltd. KEK CA 2012",
        "CN=Microsoft Corporation KEK CA 2011",
        "CN=ThinkPad Product CA 2012",
        "CN=Lenovo UEFI CA 2014",
        "CN=Microsoft Corporation UEFI CA 2011",
        "CN=Microsoft Windows Production PCA 2011",
        "CN=Canonical Ltd. Secure Boot Signing",
        "CN=Debian Secure Boot Signer",
    ]
    assert [name for name, _ in staged(found, "option-rom")] == [
        "3548423a-2b2c-4393-9826-b202959d2362",
        "27a95d13-15fb-4a2e-91e2-c784bf0d20d3",
        "8b778a74-c275-49d5-93ed-4d709a129cb1",
    ]
    assert staged(found, "firmware")[0] == ("Boot Guard Measured S-CRTM", "0cc511a92b851bce")
    assert [name for name, _ in staged(found, "boot-loader")] == [
        r"\EFI\fedora\shimx64.efi",
        r"\EFI\fedora\grubx64.efi",
    ]
    assert [name for name, _ in staged(found, "kernel")] == ["(hd3,gpt2)/vmlinuz-6.11.5-300.fc41.x86_64"]
    assert [name for name, _ in staged(found, "initrd")] == [
        "(hd3,gpt2)/initramfs-6.11.5-300.fc41.x86_64.img"
    ]
    assert found.kernel_arguments[-2:] == ["rhgb", "quiet"]
    assert found.boot_order[0] == (
        r"Boot0000 'Fedora' HD(1,GPT,b8f6bee9-bc10-4c72-b34a-6db8fd8f772c)/File(\EFI\fedora\shimx64.efi)"
    )
    assert len(found.boot_order) == 13


def test_claims_of_a_machine_with_secure_boot() -> None:
    found = public("secureboot.eventlog.bin")
    assert (found.secure_boot, found.lockdown, found.exit_boot_services) == (True, "integrity", True)
    assert found.firmware_version == "edk2-20240524-7.el9"
    assert (found.sbat_level, found.sbat["grub.debian"]) == ("2023012900", 4)
    assert [s.variable for s in found.authorities] == ["db", "vendor_db"]
    assert "Red Hat Secure Boot CA 5" in found.authorities[1].subject
    assert sum(s.variable == "dbx" for s in found.signatures) == 371
    assert staged(found, "option-rom")[0][0].startswith("PciRoot(0x0)/Pci(0x2,0x0)/Pci(0x0,0x0)/Offset(")
    assert [digest[:8] for _, digest in staged(found, "kernel")] == ["3d04fdbb", "219b8b53"]


@pytest.mark.parametrize("path", LOGS, ids=lambda path: f"{path.parent.name}-{path.name}")
def test_l03_every_event_is_covered_or_listed_as_loaded(path: Path) -> None:
    log = parse_event_log(path.read_bytes())
    found = claims_of(log)
    listed = {one.event for one in found.loaded}
    for event in log.events:
        if event.type != ev.EV_NO_ACTION:
            assert (event.covered is True) != (event.index in listed)
    assert all(one.name.isprintable() for one in found.loaded)


def test_l03_a_claim_that_no_digest_covers_is_never_proved() -> None:
    case = Case("good-rsa")
    log = parse_event_log(case.read("eventlog.bin"))
    found = claims_of(log)
    explained = coverage(log, case.pcrs, ()).explained
    assert found.proved("secure_boot", explained)
    assert found.proved("kernel_command_line", explained)
    assert not found.proved("kernel_command_line", explained - {8})
    assert not found.proved("boot_order", explained)
    assert not found.proved("mok", explained)
    assert not found.proved("no such claim", explained)
    assert {one.covered for one in found.loaded} == {None}


def test_l03_fields_tell_what_the_digest_covers() -> None:
    events = parse_event_log(Case("secureboot-on").read("eventlog.bin")).events

    def shown(index: int) -> dict[str, tuple[str, bool | None]]:
        return {f.name: (f.text, f.covered) for f in fields(events[index - 1])}

    assert shown(4)["value"] == ("01", True)
    assert shown(4)["name"] == ("SecureBoot", True)
    assert (shown(11)["name"], shown(11)["value"][1]) == (("Boot0001", None), True)
    assert shown(24)["path"][1] is None
    assert shown(49)["label"] == ("kernel_cmdline", None)
    assert shown(49)["text"] == (f"/boot/vmlinuz {LINE}", True)
    assert shown(46)["text"] == ("/boot/vmlinuz", None)
    assert all(f.text.isprintable() for event in events for f in fields(event))


def test_l04_an_edited_variable_claims_nothing() -> None:
    off, on = (variable_data(GLOBAL, "SecureBoot", value) for value in (b"\0", b"\1"))
    lied = record(7, ev.EV_EFI_VARIABLE_DRIVER_CONFIG, on, hashed=off)
    assert claims(lied, separators()).secure_boot is None
    edited = record(7, ev.EV_EFI_VARIABLE_DRIVER_CONFIG, variable_data(SECURITY, "dbx", DBX), hashed=b"old")
    found = claims(secure_boot(), edited, separators())
    assert (found.signatures, "dbx" in found.sources) == ([], False)


def test_l05_secure_boot_is_claimed_once_and_before_the_separator() -> None:
    assert claims(secure_boot(), separators()).secure_boot is True
    assert claims(secure_boot(b"\0"), secure_boot(), separators()).secure_boot is None
    assert claims(separators(), secure_boot()).secure_boot is None
    assert claims(secure_boot(b"\2"), separators()).secure_boot is None
    assert claims(secure_boot(guid=SHIM), separators()).secure_boot is None


def test_l02_secure_boot_cannot_be_forged_by_exchanged_types() -> None:
    """Secure Boot was off; software extended PCR 7 with what a good boot would hold, and rewrote types and data."""
    policy = keys(state=b"\0", dbx=DBX)
    off = variable_data(GLOBAL, "SecureBoot", b"\0")
    for hidden_separator in (
        record(7, ev.EV_POST_CODE, b"vendor", hashed=bytes(4)),
        record(7, ev.EV_EFI_VARIABLE_AUTHORITY, variable_data(GLOBAL, "x", b""), hashed=bytes(4)),
        record(7, ev.EV_SEPARATOR, b"\xff" * 4, hashed=bytes(4)),
    ):
        hidden_state = record(7, ev.EV_POST_CODE, b"vendor", hashed=off)
        forged = claims(
            hidden_state, policy[len(secure_boot()) :], hidden_separator, keys(dbx=DBX), separators()
        )
        assert forged.secure_boot is None


def test_l02_keys_after_the_separator_are_nobodys() -> None:
    found = claims(
        keys(), separators(), record(7, ev.EV_EFI_VARIABLE_DRIVER_CONFIG, variable_data(SECURITY, "dbx", DBX))
    )
    assert [s for s in found.signatures if s.variable == "dbx"] == []
    twice = claims(keys(dbx=DBX), keys(dbx=DBX)[len(secure_boot()) :], separators())
    assert (twice.signatures, "dbx" in twice.sources) == ([], False)


def test_l02_who_vouched_cannot_be_hidden() -> None:
    certificate = signed_by_debian()
    known = authority(SECURITY, "db", certificate)
    assert claims(keys(), separators(), known).authorities[0].covered is True
    hidden = record(7, ev.EV_POST_CODE, b"vendor", hashed=b"another authority")
    found = claims(keys(), separators(), hidden, known, sbat_level(SBAT))
    assert found.authorities[0].covered is None
    for name in ("authorities", "sbat", "sbat_level", "shim_verifies"):
        assert not found.proved(name, range(24))
    as_it_is = record(7, ev.EV_POST_CODE, variable_data(SECURITY, "db", b"another authority"))
    found = claims(keys(), separators(), as_it_is, known, sbat_level(SBAT))
    assert not found.proved("authorities", range(24))


def signed_by_debian() -> bytes:
    """Return EFI_SIGNATURE_DATA of a real certificate."""
    return next(
        event.untrusted_data[-1572:]
        for event in parse_event_log(Case("secureboot-on").read("eventlog.bin")).events
        if event.type == ev.EV_EFI_VARIABLE_AUTHORITY
    )


def test_l02_a_second_revocation_level_proves_nothing() -> None:
    later = SBAT.replace(b"2023", b"2025")
    found = claims(keys(), separators(), sbat_level(SBAT), sbat_level(later))
    assert found.sbat_level == "2023012900"
    assert not found.proved("sbat_level", range(24))


def test_shim_told_not_to_verify_is_claimed() -> None:
    off = authority(SHIM, "MokSBState", b"\1")
    found = claims(keys(), separators(), off, sbat_level(SBAT))
    assert (found.secure_boot, found.shim_verifies, found.lockdown) == (True, False, None)
    assert claims(keys(), separators(), sbat_level(SBAT)).shim_verifies is True
    assert claims(keys(), separators()).shim_verifies is None


def test_l08_a_firmware_version_is_the_firmwares_only_before_its_separator() -> None:
    version = record(0, ev.EV_S_CRTM_VERSION, "v2".encode("utf-16-le") + b"\0\0")
    before = claims(version, keys(), separators())
    assert before.firmware_version == "v2"
    assert before.proved("firmware_version", {0})
    assert not claims(keys(), separators(), version).proved("firmware_version", {0})
    hidden = record(0, ev.EV_POST_CODE, b"x", hashed=bytes(4))
    assert not claims(keys(), hidden, version, separators(0)).proved("firmware_version", {0})
    hidden = record(0, ev.EV_EFI_VARIABLE_BOOT, b"x", hashed=bytes(4))
    assert not claims(keys(), hidden, version, separators(0)).proved("firmware_version", {0})
    edited = record(0, ev.EV_S_CRTM_VERSION, b"v3", hashed=b"v2")
    assert not claims(edited, keys(), separators()).proved("firmware_version", {0})


def test_l12_malformed_lists_become_absent() -> None:
    found = claims(keys(dbx=DBX[:-1], db=DBX), separators())
    assert [s.variable for s in found.signatures] == ["db", "db"]
    assert "dbx" not in found.sources
    assert not found.proved("signatures", {7})
    assert found.proved("db", {7})


def test_a_malformed_certificate_has_no_subject() -> None:
    listed = signature_list(X509_LIST, b"\x30\x82\x01\x00" + bytes(252))
    entry = claims(keys(db=listed), separators()).signatures[0]
    assert (entry.kind, entry.subject) == ("x509", "")
    assert entry.sha256 == hashlib.sha256(b"\x30\x82\x01\x00" + bytes(252)).digest()


def test_l14_a_debugger_is_claimed_whatever_the_type_says() -> None:
    text = b"UEFI Debug Mode"
    assert claims(record(7, ev.EV_EFI_ACTION, text), keys(), separators()).debugger
    assert claims(record(7, ev.EV_POST_CODE, b"x", hashed=text), keys(), separators()).debugger
    assert not claims(keys(), separators()).debugger


def test_l16_a_newline_in_the_command_line_forges_nothing() -> None:
    line = b"/vmlinuz quiet\nlockdown=confidentiality\x1b[2J"
    found = claims(keys(state=b"\0"), separators(), loads(line))
    assert found.kernel_command_line == r"/vmlinuz quiet\nlockdown=confidentiality\x1b[2J"
    # The kernel takes a newline for a space; so does the judging.
    assert found.kernel_arguments == ["BOOT_IMAGE=/vmlinuz", "quiet", r"lockdown=confidentiality\x1b[2J"]
    assert found.lockdown == "none"
    text = b"/vmlinuz good\nkernel_cmdline: /vmlinuz other\0kernel_cmdline: /vmlinuz third"
    zero = claims(keys(), separators(), grub(b"linux " + text), grub(text, KERNEL))
    assert not zero.proved("kernel_command_line", {8})


def test_l16_another_label_makes_no_other_command_line() -> None:
    """GRUB hashes no labels: whoever rewrites the log may exchange them, and may run commands that look like a line."""
    evil, good = b"/vmlinuz init=/bin/sh", b"/vmlinuz ro quiet"
    booted = [grub(b"linux " + evil), record(9, ev.EV_IPL, b"/vmlinuz\0", hashed=b"k")]
    honest = claims(*booted, grub(evil, KERNEL))
    assert honest.kernel_arguments[1:] == ["init=/bin/sh"]
    assert honest.proved("kernel_command_line", {8})
    for forged in (
        claims(*booted, grub(evil), grub(good, KERNEL)),
        claims(*booted, grub(evil, b"module_cmdline: "), grub(good, KERNEL)),
        claims(grub(b"linux " + good), grub(good, KERNEL), *booted, grub(evil)),
        claims(loads(good), *booted, grub(evil, KERNEL)),
        claims(*booted, record(8, ev.EV_POST_CODE, b"x", hashed=evil), grub(good, KERNEL)),
        claims(
            record(8, ev.EV_IPL, b"x", hashed=b"linux " + evil), grub(b"linux " + good), grub(good, KERNEL)
        ),
        claims(*(record(8, ev.EV_POST_CODE, b"x", hashed=t) for t in (b"linux " + evil, evil)), loads(good)),
        claims(*(record(8, ev.EV_POST_CODE, t) for t in (b"linux " + evil, evil)), loads(good)),
        claims(*booted, grub(good, KERNEL)),
        claims(grub(good, KERNEL)),
        claims(loads(good), grub(evil, KERNEL, pcr=9)),
        # The same words quoted otherwise are other arguments.
        claims(*booted, grub(evil), grub(b'"/vmlinuz init=/bin/sh"', KERNEL)),
        claims(*booted, grub(b"/vmlinuz init=\\/bin/sh", KERNEL), grub(evil)),
        claims(*booted, grub(evil), record(8, ev.EV_IPL, "quiet\0".encode("utf-16-le"))),
        claims(grub(b"multiboot2 " + evil), loads(good)),
    ):
        assert not forged.proved("kernel_command_line", range(24))


def test_grubs_quoting_is_understood() -> None:
    command = grub(b"linux /vmlinuz dyndbg=file drivers/usb +p quiet")
    line = b'/vmlinuz "dyndbg=file drivers/usb +p" quiet'
    found = claims(command, grub(line, KERNEL))
    assert found.proved("kernel_command_line", {8})
    assert found.kernel_arguments == ["BOOT_IMAGE=/vmlinuz", "dyndbg=file drivers/usb +p", "quiet"]


@pytest.mark.parametrize(
    ("words", "level"),
    [
        (b"quiet", "none"),
        (b"lockdown=integrity", "integrity"),
        (b"lockdown=confidentiality lockdown=integrity", "confidentiality"),
        (b"lockdown=none", "none"),
        (b"-- lockdown=integrity", "none"),
        (b"xlockdown=integrity", "none"),
    ],
)
def test_lockdown_is_what_the_kernel_makes_of_its_command_line(words: bytes, level: str) -> None:
    found = claims(keys(state=b"\0"), separators(), loads(b"/vmlinuz " + words))
    assert found.lockdown == level
    assert found.proved("lockdown", {8})
    assert claims(keys(), separators(), loads(b"/vmlinuz " + words)).lockdown in (
        "integrity",
        "confidentiality",
    )


def uki(name: str, content: bytes) -> bytes:
    wide = (name + "\0").encode("utf-16-le")
    section = record(11, ev.EV_IPL, wide, hashed=name.encode() + b"\0")
    return section + record(11, ev.EV_IPL, wide, hashed=content)


def test_sections_of_a_unified_kernel_are_claimed() -> None:
    path = r"\EFI\Linux\debian-6.1.efi".encode("utf-16-le") + b"\0\0"
    node = struct.pack("<BBH", 4, 4, 4 + len(path)) + path + b"\x7f\xff\4\0"
    image = struct.pack("<QQQQ", 0, 4096, 0, len(node)) + node
    inner = struct.pack("<QQQQ", 0, 2048, 0, 0)
    wide = "quiet lockdown=integrity\0".encode("utf-16-le")
    tag = struct.pack("<II", 0x8F3B22EC, 13) + b"Linux initrd\0"
    found = claims(
        *(keys(), separators()),
        record(4, ev.EV_EFI_BOOT_SERVICES_APPLICATION, image, hashed=b"uki"),
        uki(".linux", b"kernel"),
        uki(".cmdline", b"quiet"),
        record(4, ev.EV_EFI_BOOT_SERVICES_APPLICATION, inner, hashed=b"inner"),
        record(12, ev.EV_IPL, wide, hashed=wide[:-2]),
        record(9, ev.EV_EVENT_TAG, tag, hashed=b"initrd"),
    )
    sections = [(one.name, one.sha256, one.covered) for one in found.loaded if one.stage == "uki-section"]
    assert sections == [
        (".linux", hashlib.sha256(b"kernel").digest(), True),
        (".cmdline", hashlib.sha256(b"quiet").digest(), True),
    ]
    assert [name for name, _ in staged(found, "kernel")] == [r"\EFI\Linux\debian-6.1.efi", ""]
    assert [name for name, _ in staged(found, "initrd")] == ["Linux initrd: Linux initrd"]
    assert found.kernel_arguments == ["quiet", "lockdown=integrity"]
    assert (found.sources["kernel_command_line"].pcr, found.proved("lockdown", {12})) == (12, True)
    alone = record(11, ev.EV_IPL, ".linux\0".encode("utf-16-le"), hashed=b"kernel")
    assert [one.covered for one in claims(alone).loaded] == [None]


def test_a_sha1_log_is_claimed_from_for_showing() -> None:
    variable = variable_data(GLOBAL, "SecureBoot", b"\1")
    log = old_record(7, ev.EV_EFI_VARIABLE_DRIVER_CONFIG, variable) + old_record(7, ev.EV_SEPARATOR, bytes(4))
    assert claims_of(parse_event_log(log, SHA1)).secure_boot is True


@pytest.mark.parametrize("name", CASES)
def test_claims_are_the_same_in_every_bank(name: str) -> None:
    raw = Case(name).read("eventlog.bin")
    by_bank = [claims_of(parse_event_log(raw, bank)) for bank in (0x04, 0x0B, 0x0C)]
    assert len({(c.secure_boot, c.sbat_level, c.kernel_command_line, str(c.sources)) for c in by_bank}) == 1


def test_an_empty_log_claims_nothing() -> None:
    assert claims() == Claims()
    assert claims(no_action(0xFFFFFFFF, b"vendor")) == Claims()


def test_what_a_log_may_claim_is_bounded() -> None:
    many = signature_list(SHA256_LIST, *(number.to_bytes(32, "big") for number in range(4097)))
    found = claims(keys(dbx=many), separators())
    assert ([s for s in found.signatures if s.variable == "dbx"], "dbx" in found.sources) == ([], False)
    level = b"sbat,1,2023012900\n" + b"".join(b"c%d,1\n" % number for number in range(256))
    assert claims(keys(), separators(), sbat_level(level)).sbat == {}
    long = claims(keys(), separators(), loads(b"/vmlinuz " + b"a " * 4096))
    assert len(long.kernel_arguments) < 2100
    assert not long.proved("kernel_command_line", {8})
    noise = record(7, ev.EV_POST_CODE, b"x", hashed=bytes(4)) * 1000
    log = parse_event_log(header() + noise)
    assert len(oddities(log)) < 150


TYPES = [*ev.EVENT_TYPES, 0x7FFFFFFF]
DATA = [event.untrusted_data for event in parse_event_log(Case("secureboot-on").read("eventlog.bin")).events]


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck), database=None)
@given(
    st.lists(st.tuples(st.integers(0, 23), st.sampled_from(TYPES), mutated(DATA), st.booleans()), max_size=12)
)
def test_no_well_formed_log_makes_the_reader_raise(records: list[tuple[int, int, bytes, bool]]) -> None:
    raw = header()
    for pcr, kind, data, sure in records:
        text = (
            data.partition(b" ")[2].removesuffix(b"\0")
            if data.startswith((b"grub_cmd", b"kernel_"))
            else data
        )
        raw += record(pcr, kind, data, hashed=text if sure else b"x")
    for bank in (0x04, 0x0B):
        try:
            log = parse_event_log(raw, bank)
        except Rejected as rejected:
            assert rejected.code == "eventlog.locality"
            return
        found = claims_of(log)
        assert all(finding.detail.isprintable() for finding in oddities(log))
        extended = {event.index for event in log.events if event.type != ev.EV_NO_ACTION}
        covered = {event.index for event in log.events if event.covered}
        # Nothing is left out: what no digest explains is listed.
        assert extended - covered <= {one.event for one in found.loaded} <= extended
        shown = [one.name for one in found.loaded] + [s.subject + s.variable for s in found.signatures]
        assert all(text.isprintable() for text in [*shown, *found.kernel_arguments, *found.boot_order])
        assert all(field.text.isprintable() for event in log.events for field in fields(event))
