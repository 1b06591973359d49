"""Structures inside events (`contract.uefi`): good ones read exactly, everything else Rejected with its place."""

from __future__ import annotations

import struct
from collections.abc import Callable
from contextlib import suppress

import pytest
from hypothesis import HealthCheck, example, given, settings

from contract import uefi
from contract.bootchain import split_arguments
from contract.errors import Rejected
from contract.eventdata import ipl_text, tag_text, version_text
from contract.eventlog import parse_event_log
from contract.keyclaims import subject_of
from tests.contract.eventforge import (
    GLOBAL,
    OWNER,
    SECURITY,
    SHA256_LIST,
    X509_LIST,
    signature_list,
    variable_data,
)
from tests.contract.forge import Case
from tests.contract.test_garbage import mutated

SECURE = parse_event_log(Case("secureboot-on").read("eventlog.bin")).events


def data_of(index: int) -> bytes:
    """Return the data of a recorded event."""
    return next(event.untrusted_data for event in SECURE if event.index == index)


def value_of(index: int) -> bytes:
    return uefi.parse_variable(data_of(index)).value


def described(text: bytes, rest: bytes) -> bytes:
    return bytes([len(text)]) + text + rest


BLOB = struct.pack("<QQ", 0x820000, 0xE0000)
TABLES = struct.pack("<Q", 1) + OWNER + bytes(8)
TAGGED = struct.pack("<II", 0x8F3B22EC, 13) + b"Linux initrd\0"
SBAT = b"sbat,1,2023012900\nshim,2\ngrub,3\ngrub.debian,4\n"
URI = struct.pack("<BBH", 3, 24, 4 + 11) + b"https://a/b" + b"\x7f\xff\4\0"
PARSERS: dict[str, tuple[Callable[[bytes], object], list[bytes]]] = {
    "variable": (uefi.parse_variable, [data_of(4), data_of(8)]),
    "signature lists": (uefi.parse_signature_lists, [value_of(6), value_of(8)]),
    "authority": (uefi.parse_authority, [value_of(22), value_of(29), OWNER + bytes(32)]),
    "load option": (uefi.parse_load_option, [value_of(11), value_of(13)]),
    "image": (uefi.parse_image, [data_of(24), data_of(47)]),
    "device path": (uefi.device_path, [data_of(24)[32:], URI]),
    "partitions": (uefi.parse_gpt, [data_of(23)]),
    "blob": (uefi.parse_blob, [BLOB]),
    "blob with description": (uefi.parse_blob2, [described(b"DXE\0", BLOB)]),
    "tables": (uefi.parse_handoff, [TABLES]),
    "tables with description": (uefi.parse_handoff2, [described(b"SMBIOS", TABLES)]),
    "tagged": (uefi.parse_tagged, [TAGGED]),
    "tag text": (tag_text, [TAGGED]),
    "revocation level": (uefi.parse_sbat_level, [SBAT]),
    "version": (version_text, ["edk2-2024".encode("utf-16-le"), b"v1\0", OWNER]),
    "loader's text": (ipl_text, [b"grub_cmd: ls\0", ".linux\0".encode("utf-16-le")]),
    "subject": (subject_of, [value_of(5)[44:]]),
    "arguments": (split_arguments, [b'a b="c d" "e f=g" --']),
}
MALFORMED = ("version", "loader's text", "subject", "arguments")


@pytest.mark.parametrize("name", PARSERS)
def test_no_byte_string_raises_anything_but_rejected(name: str) -> None:
    parser, seeds = PARSERS[name]

    @settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck), database=None)
    @given(mutated(seeds))
    @example(b"")
    def run(raw: bytes) -> None:
        with suppress(Rejected):
            parser(raw)

    run()


@pytest.mark.parametrize("name", PARSERS)
def test_the_seeds_are_good_as_they_are(name: str) -> None:
    parser, seeds = PARSERS[name]
    for seed in seeds:
        assert parser(seed)


@pytest.mark.parametrize("name", sorted(PARSERS.keys() - {*MALFORMED, "revocation level", "device path"}))
def test_l12_cut_short_at_every_byte_is_rejected_with_its_offset(name: str) -> None:
    parser, seeds = PARSERS[name]
    for seed in seeds:
        ends = range(len(seed))
        if name == "signature lists":
            ends = [e for e in ends if e not in (0, struct.unpack_from("<I", seed, 16)[0])]
        if name == "load option":  # what follows the device path is the option's own
            ends = range(len(seed) - len(uefi.parse_load_option(seed).optional_data))
        if name == "authority":
            ends = [e for e in ends if e != 48]
        for end in ends:
            with pytest.raises(Rejected, match="offset"):
                parser(seed[:end])


@pytest.mark.parametrize("size", [0, 3, 7, 0xFFFF])
def test_l12_a_device_path_node_fits_what_is_left(size: int) -> None:
    with pytest.raises(Rejected, match="offset 4"):
        uefi.device_path(b"\x7f\x01\4\0" + struct.pack("<BBH", 1, 1, size) + b"\0\1")


def test_l12_the_stray_byte_is_one_byte() -> None:
    whole = data_of(4)
    assert uefi.parse_variable(whole + b"x") == uefi.parse_variable(whole)
    with pytest.raises(Rejected):
        uefi.parse_variable(whole + b"xy")
    image = data_of(24)
    assert uefi.parse_image(image + b"x") == uefi.parse_image(image)
    with pytest.raises(Rejected):
        uefi.parse_image(image + b"xy")


def test_signature_lists_are_read_entry_by_entry() -> None:
    certificate = value_of(5)[44:]
    raw = signature_list(SHA256_LIST, b"a" * 32, b"b" * 32) + signature_list(X509_LIST, certificate)
    raw += signature_list(b"k" * 16, b"12345")
    entries = uefi.parse_signature_lists(raw)
    owner = "77fa9abd-0359-4d32-bd60-28f4e78f784b"
    assert [(e.kind, e.owner) for e in entries[:3]] == [("sha256", owner), ("sha256", owner), ("x509", owner)]
    assert [e.data for e in entries[:3]] == [b"a" * 32, b"b" * 32, certificate]
    assert (entries[3].kind, entries[3].data) == ("6b6b6b6b-6b6b-6b6b-6b6b-6b6b6b6b6b6b", b"12345")
    assert uefi.parse_signature_lists(b"") == []


def test_structures_of_a_real_boot_are_read_exactly() -> None:
    variable = uefi.parse_variable(data_of(4))
    assert (variable.guid, variable.name, variable.value) == (uefi.GLOBAL_VARIABLE, "SecureBoot", b"\1")
    image = uefi.parse_image(data_of(24))
    assert (image.size_bytes, uefi.file_name(image.path)) == (1048504, r"\EFI\BOOT\BOOTX64.EFI")
    assert image.path.startswith("PciRoot(0x0)/Pci(0x1,0x0)/HD(1,GPT,6c616200-0000-4000-8000-000000000011)/")
    option = uefi.parse_load_option(value_of(12))
    assert (option.description, option.active) == ("UiApp", True)
    gpt = uefi.parse_gpt(data_of(23))
    assert [(p.first_lba, p.last_lba) for p in gpt.partitions] == [(2048, 67583), (69632, 4263935)]
    assert gpt.disk == "6c616200-0000-4000-8000-000000000010"
    blob = uefi.parse_blob2(described(b"DXE\0", BLOB))
    assert (blob.description, blob.base, blob.size_bytes) == ("DXE", 0x820000, 0xE0000)
    assert uefi.parse_sbat_level(SBAT) == ("2023012900", {"sbat": 1, "shim": 2, "grub": 3, "grub.debian": 4})
    assert tag_text(TAGGED) == "Linux initrd: Linux initrd"
    assert uefi.device_path(URI) == "Uri(https://a/b)"


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (b"quiet  ro\tx", ["quiet", "ro", "x"]),
        (b'dyndbg="file a +p" b', ["dyndbg=file a +p", "b"]),
        (b'"a b=c" d', ["a b=c", "d"]),
        (b"quiet\nlockdown=none\x0bx\xa0y", ["quiet", "lockdown=none", "x", "y"]),
        (b'open="to the end', ["open=to the end"]),
        (b"esc\x1b[2J", [r"esc\x1b[2J"]),
        (b" \n ", []),
    ],
)
def test_l16_a_command_line_is_split_as_the_kernel_does(raw: bytes, words: list[str]) -> None:
    assert split_arguments(raw) == words


def test_l16_text_is_one_printable_line_of_bounded_length() -> None:
    assert uefi.printable("a\nb\x1b\u202ec\0") == r"a\nb\x1b\u202ec\x00"
    assert len(uefi.printable("\n" * 100_000, 64)) == 64
    assert uefi.printable("x" * 65, 64).endswith("…")


def test_names_are_printable_whatever_they_hold() -> None:
    hostile = variable_data(
        SECURITY, "d\nb\u202e\ud800".encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace"), b""
    )
    assert uefi.parse_variable(hostile).name.isprintable()
    lone = struct.pack("<16sQQ", GLOBAL, 1, 0) + b"\x00\xd8"
    assert uefi.parse_variable(lone).name.isprintable()
