"""Write the vectors of `tests/vectors/eventlog`: `python -m tests.contract.make_eventlog_vectors`.

Those with a base are edits of a recorded log; offsets are those of the record named beside it.
"""

from __future__ import annotations

import hashlib
import struct

from contract import eventtypes as ev
from tests.contract.eventforge import (
    GLOBAL,
    SECURITY,
    SHA256_LIST,
    authority,
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
from tests.contract.forge import Case
from tests.contract.vectorfile import FOLDER, write

LEFT = b"Exit Boot Services Returned with Success"
LOCALITY = b"StartupLocality\0"
END = separators()
GOOD = Case("good-rsa").read("eventlog.bin")


def edit(name: str, case: str, expect: str, *edits: str, base: str = "good-rsa", detail: str = "") -> None:
    """Write a vector that edits a recorded log."""
    head = [f"case: {case}", f"expect: {expect}", *([f"detail: {detail}"] if detail else [])]
    (FOLDER / f"{name}.vec").write_text("\n".join([*head, f"base: {base}", *edits]) + "\n")


def forged(name: str, case: str, expect: str, *records: bytes, detail: str = "") -> None:
    """Write a vector that holds its log, of both banks."""
    fields = {"detail": detail} if detail else {}
    write(name, case, expect, header() + b"".join(records), **fields)


def swap(old: bytes, new: bytes) -> str:
    return f"replace: {old.hex()} {new.hex()}"


def replay_and_types() -> None:
    other = hashlib.sha256(b"another kernel").hexdigest()
    kernel = "26f2e57c99338feaf71c46fa4babdc7e1a6c115943002d109fdb746667104f5f"
    edit(
        "l01-digest",
        "l01 another kernel's digest",
        "eventlog.replay",
        f"replace: {kernel} {other}",
        detail="PCR 9:",
    )
    edit(
        "l01-last-event-gone",
        "l01 the last event left out",
        "eventlog.replay",
        f"cut: {len(GOOD) - 162}",
        detail="PCR 5:",
    )
    at = GOOD.index(struct.pack("<III", 9, ev.EV_IPL, 3))
    edit(
        "l02-no-action",
        "l02 a file's event as one that extends nothing",
        "eventlog.replay",
        f"at {at + 4}: 03000000",
        detail="event 33",
    )
    hidden = record(7, ev.EV_POST_CODE, b"vendor", hashed=bytes(4))
    codes = "eventlog.type eventlog.separator eventlog.secure-boot"
    forged(
        "l02-separator-hidden",
        "l02 a separator as a POST code",
        codes,
        secure_boot(b"\0"),
        hidden,
        secure_boot(),
        END,
    )
    state = record(7, ev.EV_POST_CODE, b"v", hashed=variable_data(GLOBAL, "SecureBoot", b"\0"))
    forged(
        "l02-secure-boot-hidden",
        "l02 SecureBoot off as a POST code",
        "eventlog.type eventlog.secure-boot",
        state,
        keys(),
        END,
    )


def data() -> None:
    grub, evil = b"(hd0,gpt2)/boot/grub/grub.cfg\0", b"(hd0,gpt2)/boot/grub/evil.cfg\0"
    size = struct.pack("<I", 30)
    edit("l03-file-name", "l03 a file's name, which no digest covers", "good", swap(size + grub, size + evil))
    edit(
        "l04-command-line",
        "l04 the command line",
        "eventlog.data",
        swap(b"kernel_cmdline: /boot/vmlinuz root", b"kernel_cmdline: /boot/vmlinuz rooT"),
        detail="event 45",
    )
    edit(
        "l04-action",
        "l04 an action's text",
        "eventlog.data",
        swap(b"Exit Boot Services Invocation", b"Exit Boot Services Invocatiom"),
        detail="event 48",
    )
    edit(
        "l04-secure-boot",
        "l04 SecureBoot's value",
        "eventlog.data",
        swap("SecureBoot".encode("utf-16-le") + b"\1", "SecureBoot".encode("utf-16-le") + b"\0"),
        base="secureboot-on",
        detail="event 4",
    )
    edit(
        "l04-dbx",
        "l04 an entry of dbx",
        "eventlog.data",
        swap(hashlib.sha256(b"").digest(), bytes(32)),
        base="secureboot-on",
        detail="event 8",
    )


def order() -> None:
    end = record(7, ev.EV_SEPARATOR, bytes(4))
    forged(
        "l05-twice", "l05 SecureBoot twice", "eventlog.secure-boot", secure_boot(b"\0"), secure_boot(), END
    )
    forged("l05-late", "l05 SecureBoot after the separator", "eventlog.secure-boot", END, secure_boot())
    forged("l06-missing", "l06 a separator missing", "eventlog.separator", separators(4), detail="PCR 4:")
    forged("l06-doubled", "l06 a separator twice", "eventlog.separator", END, end, detail="event 9")
    forged(
        "l06-error",
        "l06 a separator with the error value",
        "eventlog.separator",
        separators(7),
        record(7, ev.EV_SEPARATOR, b"\1\0\0\0"),
    )
    left = record(5, ev.EV_EFI_ACTION, LEFT)
    late = record(4, ev.EV_EFI_BOOT_SERVICES_APPLICATION, bytes(32))
    forged(
        "l07-after-exit",
        "l07 an image after ExitBootServices",
        "eventlog.after-exit",
        END,
        left,
        late,
        detail="event 10",
    )
    forged(
        "l08-late",
        "l08 StartupLocality after the first extension",
        "eventlog.locality",
        END,
        no_action(0, LOCALITY + b"\3"),
    )
    forged(
        "l08-twice", "l08 StartupLocality twice", "eventlog.locality", no_action(0, LOCALITY + b"\3") * 2, END
    )
    forged(
        "l08-none", "l08 StartupLocality without a value", "eventlog.locality", no_action(0, LOCALITY), END
    )
    forged(
        "l08-pcr",
        "l08 StartupLocality for another PCR",
        "eventlog.locality",
        no_action(1, LOCALITY + b"\3"),
        END,
    )
    forged(
        "l08-value",
        "l08 a locality that starts nothing",
        "eventlog.locality",
        no_action(0, LOCALITY + b"\5"),
        END,
    )
    forged(
        "l08-padded",
        "l08 StartupLocality padded with zeros, as in the field",
        "good",
        no_action(0, LOCALITY + b"\3" + bytes(7)),
        END,
    )
    forged(
        "l08-filled",
        "l08 StartupLocality padded with more than zeros",
        "eventlog.locality",
        no_action(0, LOCALITY + b"\3\1"),
        END,
    )


def layout() -> None:
    for name, case, size in (("zero", "of no bytes", 0), ("huge", "of 65,535 bytes", 65535)):
        write(
            f"l09-digest-{name}",
            f"l09 digests {case}",
            "eventlog.algorithms",
            header(((0x0B, size),)),
            detail="offset 60",
        )
    write("l09-count", "l09 2^32 - 1 algorithms", "eventlog.algorithms", header(count=2**32 - 1))
    write("l09-count-zero", "l09 no algorithm", "eventlog.algorithms", header(count=0))
    write("l09-twice", "l09 one algorithm twice", "eventlog.algorithms", header(((0x0B, 32), (0x0B, 32))))
    write("l09-unknown", "l09 an unknown algorithm", "eventlog.algorithms", header(((0x0B, 32), (0x99, 32))))
    write("l09-table", "l09 a table longer than its record", "eventlog.header", header(count=3))
    for name, keep, detail in (
        ("header", 20, "event 0"),
        ("digests", 100, "event 1"),
        ("data", len(GOOD) - 1, "event 49"),
    ):
        edit(
            f"l10-{name}", f"l10 cut short in the {name}", "eventlog.truncated", f"cut: {keep}", detail=detail
        )
    edit(
        "l10-data-size",
        "l10 data of 2^32 - 1 bytes",
        "eventlog.truncated",
        f"at {len(GOOD) - 44}: ffffffff",
        detail="4294967295 bytes",
    )
    edit(
        "l10-trailing",
        "l10 a byte behind the last record",
        "eventlog.truncated",
        f"insert {len(GOOD)}: 00",
        detail="event 50",
    )
    old = b"".join(old_record(pcr, ev.EV_SEPARATOR, bytes(4)) for pcr in range(8))
    write("l11-old-layout", "l11 the old layout under a SHA-256 quote", "eventlog.no-sha256", old)
    write("l11-old-layout-shown", "l11 the old layout, for its own bank", "good", old, bank="sha1")
    write(
        "l11-sha1-bank", "l11 a crypto-agile log with SHA-1 only", "eventlog.no-sha256", header(((0x04, 20),))
    )
    lone = struct.pack("<IIIH", 0, 1, 1, 4) + bytes(20) + bytes(4)
    forged(
        "l11-sha1-record", "l11 a record without a SHA-256 digest", "eventlog.digests", lone, detail="event 1"
    )
    write("l13-empty", "l13 zero bytes", "eventlog.empty", b"")
    write("l13-zeros", "l13 nothing but zeros", "eventlog.no-sha256", bytes(256))


def structures() -> None:
    for chars in (2**64 - 1, 2**63, 11):
        forged(
            f"l12-name-{chars:x}",
            f"l12 a name of {chars:,} characters",
            "eventlog.secure-boot",
            secure_boot(name_chars=chars),
            END,
        )
    good = signature_list(SHA256_LIST, bytes(32))
    for name, sizes in (
        ("list-27", (27, 0, 48)),
        ("list-huge", (2**32 - 1, 0, 48)),
        ("header-huge", (76, 2**32 - 1, 48)),
        ("entry-0", (76, 0, 0)),
        ("entry-16", (76, 0, 16)),
        ("entry-47", (76, 0, 47)),
    ):
        bad = good[:16] + struct.pack("<III", *sizes) + good[28:]
        forged(
            f"l12-{name}",
            f"l12 a signature list: {name.replace('-', ' of ')}",
            "eventlog.signatures",
            keys(dbx=bad),
            END,
            detail="event 5",
        )
    forged(
        "l12-sbat",
        "l12 a revocation level that is none",
        "eventlog.sbat",
        keys(),
        END,
        sbat_level(b"shim,1\n"),
    )
    debugger = record(7, ev.EV_EFI_ACTION, b"UEFI Debug Mode")
    forged("l14-debugger", "l14 a firmware debugger", "eventlog.debugger", debugger, keys(), END)
    forged(
        "l14-debugger-hidden",
        "l14 a firmware debugger under another type",
        "eventlog.debugger eventlog.type",
        record(7, ev.EV_POST_CODE, b"x", hashed=b"UEFI Debug Mode"),
        keys(),
        END,
    )
    line = b"/vmlinuz quiet\nPCR 8: all good\nexpect: good"
    forged("l16-newline", "l16 newlines in the command line", "good", keys(), END, loads(line))
    cut = record(8, ev.EV_IPL, b"kernel_cmdline: " + line + b"\0", hashed=line.partition(b"\n")[0])
    forged("l16-newline-not-hashed", "l16 lines behind what was hashed", "eventlog.data", keys(), END, cut)


def field() -> None:
    forged(
        "l17-no-pcr",
        "l17 an event at PCR index 0xFFFFFFFF, as in the field",
        "good",
        no_action(0xFFFFFFFF, b"SP800-155 Event\0"),
        keys(),
        END,
    )
    forged(
        "l17-no-pcr-extends",
        "l17 an extending event at PCR index 0xFFFFFFFF",
        "eventlog.pcr-index",
        keys(),
        END,
        record(0xFFFFFFFF, ev.EV_ACTION, b"v"),
        detail="event 14",
    )
    forged("l17-pcr-24", "l17 an event of PCR 24", "eventlog.pcr-index", no_action(24, b"v"))
    shim = variable_data(SECURITY, "Shim", b"cert")
    stray = record(7, ev.EV_EFI_VARIABLE_AUTHORITY, shim + b"\xa5", hashed=shim)
    forged("l17-stray-byte", "l17 older shim's stray byte", "good", keys(), END, stray)
    two = record(7, ev.EV_EFI_VARIABLE_AUTHORITY, shim + b"\xa5\xa5", hashed=shim)
    forged("l17-stray-bytes", "l17 two stray bytes", "eventlog.data", keys(), END, two)
    forged(
        "l17-no-exit",
        "l17 no ExitBootServices events, as in the field",
        "good",
        keys(),
        END,
        authority(SECURITY, "Shim", b"cert"),
    )
    later = record(11, ev.EV_IPL, b"x\0", hashed=b"a") + record(12, ev.EV_IPL, b"x\0", hashed=b"b")
    forged("l17-runtime-pcrs", "l17 PCRs of the running system", "good", keys(), END, later)
    for name in ("good-rsa", "secureboot-on", "cmdline-changed", "binary-changed"):
        edit(f"l17-{name}", "l17 a recorded boot as it is", "good", base=name)


def main() -> None:
    """Write all vectors anew."""
    FOLDER.mkdir(exist_ok=True)
    for old in FOLDER.glob("*.vec"):
        old.unlink()
    for part in (replay_and_types, data, order, layout, structures, field):
        part()


if __name__ == "__main__":
    main()
