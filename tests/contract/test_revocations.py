"""dbx, SBAT level and MOK lists: announced, asked about where they revoke more, refused by name where they went back."""

from __future__ import annotations

import hashlib
import struct
import uuid

import msgspec
import pytest

from contract import uefi
from contract.boot import BootPolicy, Reference
from contract.bootpolicy import REVOCATION
from contract.corim import encode_corim, parse_corim
from contract.errors import Rejected
from contract.references import Expected, ExpectedValue, ReferenceSet, parse_reference_toml, reference_toml
from contract.revocations import Revoked, variable_sha256
from tests.contract.boots import (
    DBX,
    MOK_LIST,
    QUESTION,
    SBAT_LEVEL,
    SHIM,
    Boot,
    secure,
    value,
)

STRICT = BootPolicy()
MOK_LIST_X = 26
_SHA256 = uuid.UUID("c1c41626-504c-4092-aca9-41f936934328").bytes_le
NEWER_SBAT = b"sbat,1,2026010100\nshim,5\ngrub,6\n"


@pytest.fixture(scope="module")
def old() -> Boot:
    return secure()


def data_of(boot: Boot, index: int) -> bytes:
    return next(event.untrusted_data for event in boot.log.events if event.index == index)


def measured(boot: Boot, index: int, content: bytes) -> Boot:
    """The boot with another value in a variable, measured as a firmware does."""
    was = uefi.parse_variable(data_of(boot, index))
    head = struct.pack("<16sQQ", uuid.UUID(was.guid).bytes_le, len(was.name), len(content))
    return boot.holding(index, head + was.name.encode("utf-16-le") + content)


def dbx(boot: Boot) -> bytes:
    return uefi.parse_variable(data_of(boot, DBX)).value


def listed(*names: str) -> bytes:
    """A signature list of SHA-256 entries."""
    return of_digests(*(value(name) for name in names))


def of_digests(*digests: bytes) -> bytes:
    entries = b"".join(bytes(16) + digest for digest in digests)
    return struct.pack("<16sIII", _SHA256, 28 + len(entries), 0, 48) + entries


@pytest.fixture(scope="module")
def longer(old: Boot) -> Boot:
    """After a dbx update."""
    return measured(old, DBX, dbx(old) + listed("a vulnerable loader"))


def expects(boot: Boot, *indexes: int, stage: str = REVOCATION) -> Expected:
    events = [event for event in boot.log.events if event.index in indexes]
    return Expected(values=[ExpectedValue(stage=stage, sha256=event.sha256) for event in events])


def codes(
    boot: Boot, policy: BootPolicy, reference: Reference, expected: Expected | None = None
) -> list[str]:
    return [finding.code for finding in boot.judged(policy, reference, expected)]


def test_what_lists_revoke_is_noted_with_the_accepted_boot(old: Boot, longer: Boot) -> None:
    assert old.reference.revoked.sbat == {"sbat": 1, "shim": 4, "grub": 5}
    [entry] = old.reference.revoked.dbx or []
    assert longer.reference.revoked.dbx is not None
    assert longer.reference.revoked.dbx[0] == entry
    assert len(longer.reference.revoked.dbx) == 2
    lied = longer.over(old.pcrs)
    assert lied.reference.revoked == Revoked()


@pytest.mark.parametrize("at", [DBX, SBAT_LEVEL, MOK_LIST, MOK_LIST_X])
def test_a_list_can_be_announced_and_the_one_before_it_may_not_come_back(old: Boot, at: int) -> None:
    content = {DBX: dbx(old) + listed("a vulnerable loader"), SBAT_LEVEL: NEWER_SBAT}
    new = measured(old, at, content[at]) if at in content else old.changed({at: value("newer list")})
    assert "boot.pcr" in codes(new, STRICT, old.reference)
    for policy in (STRICT, QUESTION):
        weighed = new.weighed(policy, old.reference, expects(new, at))
        assert weighed.findings == []
        assert weighed.announced[0].startswith("revocation '")
    assert codes(new, STRICT, old.reference, expects(new, at, stage="other")) == ["boot.pcr"]
    back = old.judged(STRICT, new.after(old.reference), expects(old, at))
    assert [f.event for f in back if f.code == "boot.rolled-back"] == [at]
    assert "boot.pcr" in [f.code for f in back]


def test_a_dbx_update_with_a_new_shim_is_asked_about(old: Boot, longer: Boot) -> None:
    new = measured(longer.changed({SHIM: value("new shim")}), SBAT_LEVEL, NEWER_SBAT)
    found = new.judged(QUESTION, old.reference)
    assert {f.code for f in found} == {"boot.unannounced"}
    assert {f.pcr for f in found} == {4, 7}
    assert found[0].detail.startswith(
        "the boot-loader and the list SbatLevel and the list dbx changed and nothing else: "
    )
    assert "boot.unannounced" not in codes(new, STRICT, old.reference)
    # What is left open is asked about; what was announced beside it is not.
    half = new.judged(QUESTION, old.reference, expects(new, DBX, SBAT_LEVEL))
    assert [(f.code, f.event) for f in half] == [("boot.unannounced", SHIM)]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (listed("another loader"), "dbx: 1 of 1 entries are gone"),
        (b"", "dbx: 1 of 1 entries are gone"),
    ],
)
def test_l14_a_dbx_that_revokes_less_was_rolled_back_also_to_one_nobody_has_seen(
    old: Boot, content: bytes, said: str
) -> None:
    for policy in (STRICT, QUESTION):
        found = measured(old, DBX, content).judged(policy, old.reference)
        assert [(f.code, f.event) for f in found] == [("boot.rolled-back", DBX), ("boot.pcr", DBX)]
        assert said in found[0].detail
        assert "most likely rolled back or reset" in found[0].detail


def test_l14_an_entry_does_not_hide_behind_one_of_another_kind(old: Boot) -> None:
    digest = value("a certificate")
    x509 = uuid.UUID("3bd2a492-96c0-4079-b420-fcf98ef103ed").bytes_le
    as_certificate = struct.pack("<16sIII", x509, 28 + 48, 0, 48) + bytes(16) + digest
    before = measured(old, DBX, as_certificate)
    after = measured(old, DBX, of_digests(hashlib.sha256(digest).digest()))
    assert after.claims.signatures[-1].sha256 == before.claims.signatures[-1].sha256
    assert "boot.rolled-back" in codes(after, QUESTION, before.reference)


@pytest.mark.parametrize(
    "level", [b"sbat,1,2026010100\nshim,3\ngrub,6\n", b"sbat,1,2026010100\nshim,9\n", b"sbat,1,2021030218\n"]
)
def test_l14_an_sbat_level_that_demands_less_of_anything_was_rolled_back(old: Boot, level: bytes) -> None:
    found = measured(old, SBAT_LEVEL, level).judged(QUESTION, old.reference)
    assert [(f.code, f.event) for f in found] == [("boot.rolled-back", SBAT_LEVEL), ("boot.pcr", SBAT_LEVEL)]
    assert "SBAT: " in found[0].detail


def test_l14_whoever_announces_a_shorter_list_has_said_so(old: Boot) -> None:
    shorter = measured(old, DBX, listed("another loader"))
    weighed = shorter.weighed(QUESTION, old.reference, expects(shorter, DBX))
    assert weighed.findings == []
    assert weighed.announced != []


@pytest.mark.parametrize("at", [DBX, SBAT_LEVEL, MOK_LIST, MOK_LIST_X])
def test_nobody_is_asked_about_a_list_of_which_it_is_not_known_what_it_revokes(old: Boot, at: int) -> None:
    found = codes(old.changed({at: value("who knows")}), QUESTION, old.reference)
    assert "boot.pcr" in found
    assert "boot.unannounced" not in found


def test_nobody_is_asked_about_a_list_where_the_accepted_boot_does_not_say(old: Boot, longer: Boot) -> None:
    earlier = msgspec.structs.replace(old.reference, revoked=Revoked())
    assert codes(longer, QUESTION, earlier) == ["boot.pcr"]


def test_nothing_else_in_pcr_7_hides_behind_a_longer_list(old: Boot, longer: Boot) -> None:
    other = longer.changed({22: value("another authority")})
    assert "boot.unannounced" not in codes(other, QUESTION, old.reference)
    keys = longer.changed({7: value("another db")})
    assert "boot.unannounced" not in codes(keys, QUESTION, old.reference)


def test_a_set_may_hold_lists_in_toml_and_in_corim() -> None:
    one = ReferenceSet(site="hall-3", values={"revocation": [value("x").hex()]}, valid_from=0.0)
    assert parse_reference_toml(reference_toml([one]).encode()) == [one]
    assert parse_corim(encode_corim([one])) == [one]


@pytest.mark.parametrize(
    ("at", "name"),
    [(DBX, f"dbx-{uefi.IMAGE_SECURITY}"), (SBAT_LEVEL, f"SbatLevelRT-{uefi.SHIM_LOCK}")],
)
def test_the_digest_of_a_list_is_what_firmware_and_shim_extended(old: Boot, at: int, name: str) -> None:
    content = b"\x27\0\0\0" + uefi.parse_variable(data_of(old, at)).value
    digest = next(event.sha256 for event in old.log.events if event.index == at)
    assert variable_sha256(name, content) == digest
    with pytest.raises(Rejected, match=r"variable\.malformed"):
        variable_sha256(name, content[:-1] if at == DBX else b"\x27\0\0\0shim")
    for wrong in (
        name.upper(),
        name[:-1],
        name.replace("-", ""),
        "DBXUpdate.bin",
        f"MokListRT-{uefi.SHIM_LOCK}",
    ):
        with pytest.raises(Rejected, match=r"variable\.unsupported.*efivarfs"):
            variable_sha256(wrong, content)
    for empty in (b"", b"\x27\0\0\0", bytes(2**20 + 1)):
        with pytest.raises(Rejected, match=r"variable\.malformed"):
            variable_sha256(name, empty)
