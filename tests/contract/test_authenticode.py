"""Authenticode digests, with osslsigncode as the witness, and every way a PE image can be wrong."""

from __future__ import annotations

import re
import struct
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contract.authenticode import authenticode_sha256, is_image
from contract.errors import Rejected

HEADERS, OPTIONAL = 0x200, 240


def image(*, extra: bytes = b"", sections: tuple[bytes, ...] = (b"code" * 128, b"data" * 256)) -> bytes:
    """Return a PE32+ image as small as one can be."""
    dos = b"MZ" + bytes(58) + struct.pack("<I", 64)
    coff = struct.pack("<4sHHIIIHH", b"PE\0\0", 0x8664, len(sections), 0, 0, 0, OPTIONAL, 0x0206)
    optional = struct.pack("<HBBIIIII", 0x20B, 1, 0, 512, 0, 0, 0x1000, 0x1000)
    optional += struct.pack("<QIIHHHHHHI", 0x400000, 0x1000, 0x200, 0, 0, 0, 0, 0, 0, 0)
    optional += struct.pack("<IIIHH", 0x1000 * (len(sections) + 1), HEADERS, 0xDEADBEEF, 10, 0)
    optional += struct.pack("<QQQQII", 0, 0, 0, 0, 0, 16)
    optional += bytes(OPTIONAL - len(optional))
    table, at = b"", HEADERS
    for number, section in enumerate(sections):
        name = f".s{number}".encode()
        table += struct.pack(
            "<8sIIIIIIHHI",
            name,
            len(section),
            0x1000 * (number + 1),
            len(section),
            at,
            0,
            0,
            0,
            0,
            0x60000020,
        )
        at += len(section)
    head = dos + coff + optional + table
    return head + bytes(HEADERS - len(head)) + b"".join(sections) + extra


IMAGE = image()
CHECKSUM, CERTIFICATES = 64 + 24 + 64, 64 + 24 + 144


def test_a_witness_computes_the_same_digest_of_a_signed_image(tmp_path: Path) -> None:
    key, cert, plain, signed = (tmp_path / name for name in ("key.pem", "cert.pem", "a.efi", "b.efi"))
    subprocess.run(
        [
            "openssl",
            "req",
            "-x509",
            "-newkey",
            "rsa:2048",
            "-nodes",
            "-keyout",
            key,
            "-out",
            cert,
            "-subj",
            "/CN=x",
        ],
        check=True,
        capture_output=True,
    )
    plain.write_bytes(IMAGE)
    subprocess.run(
        ["osslsigncode", "sign", "-h", "sha256", "-certs", cert, "-key", key, "-in", plain, "-out", signed],
        check=True,
        capture_output=True,
    )
    said = subprocess.run(["osslsigncode", "verify", "-in", signed], capture_output=True, text=True).stdout
    [witnessed] = re.findall(r"Calculated message digest *: ([0-9A-F]{64})", said)
    content = signed.read_bytes()
    assert authenticode_sha256(content).hex().upper() == witnessed
    assert len(content) > len(IMAGE)
    assert authenticode_sha256(IMAGE) == authenticode_sha256(content)


def test_checksum_and_pointer_to_the_signatures_are_left_out_and_nothing_else() -> None:
    whole = authenticode_sha256(IMAGE)
    for at in range(CHECKSUM, CHECKSUM + 4):
        changed = IMAGE[:at] + bytes([IMAGE[at] ^ 1]) + IMAGE[at + 1 :]
        assert authenticode_sha256(changed) == whole
    for at in (
        2,
        72,
        CHECKSUM - 5,
        CHECKSUM + 4,
        CERTIFICATES - 1,
        CERTIFICATES + 8,
        HEADERS,
        len(IMAGE) - 1,
    ):
        changed = IMAGE[:at] + bytes([IMAGE[at] ^ 1]) + IMAGE[at + 1 :]
        assert authenticode_sha256(changed) != whole, at
    assert authenticode_sha256(image(extra=b"trailing")) != whole


def with_u32(at: int, number: int) -> bytes:
    return IMAGE[:at] + struct.pack("<I", number) + IMAGE[at + 4 :]


TABLE = 64 + 24 + OPTIONAL


@pytest.mark.parametrize(
    "untrusted",
    [
        b"",
        b"MZ",
        b"\x1f\x8b" + IMAGE[2:],
        with_u32(0x3C, 0xFFFFFFFF),
        with_u32(0x3C, len(IMAGE) - 10),
        with_u32(64, 0),
        IMAGE[:70] + struct.pack("<H", 0) + IMAGE[72:],
        IMAGE[:70] + struct.pack("<H", 97) + IMAGE[72:],
        IMAGE[:88] + struct.pack("<H", 0x107) + IMAGE[90:],
        IMAGE[:84] + struct.pack("<H", 100) + IMAGE[86:],
        with_u32(88 + 60, 0),
        with_u32(88 + 60, len(IMAGE) + 1),
        with_u32(CERTIFICATES + 4, 8),
        with_u32(TABLE + 16, 0xFFFFFFF0),
        with_u32(TABLE + 20, HEADERS + 1),
        with_u32(TABLE + 20, HEADERS - 1),
        IMAGE[:300],
        IMAGE[:-1],
    ],
)
def test_an_image_that_is_none_is_refused(untrusted: bytes) -> None:
    with pytest.raises(Rejected, match=r"image\.malformed"):
        authenticode_sha256(untrusted)


@given(st.binary(max_size=600), st.integers(0, len(IMAGE) - 1), st.integers(0, 8))
def test_garbage_raises_nothing_but_rejected(noise: bytes, at: int, length: int) -> None:
    for untrusted in (noise, b"MZ" + noise, IMAGE[:at] + noise[:8] + IMAGE[at + length :], IMAGE[:at]):
        try:
            assert len(authenticode_sha256(untrusted)) == 32
        except Rejected as rejected:
            assert rejected.code == "image.malformed"
        assert isinstance(is_image(untrusted), bool)
