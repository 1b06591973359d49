"""A node's own word: it narrows what is announced and puts words to a difference, and nothing is accepted because of it."""

from __future__ import annotations

import pytest

from contract.boot import BootPolicy
from contract.bootpolicy import REVOCATION
from contract.messages import PackageChange
from contract.nodeword import NodeWord, boot_package
from tests.contract.boots import INITRD, QUESTION, SHIM, Boot, announced, kernel, secure, value
from tests.contract.test_bootupdates import VERSIONED

STRICT = BootPolicy()
IN_NOVEMBER = 1795212000.0
"""2026-11-20."""
SAYS_12, SAYS_13 = NodeWord(os_release="debian 12"), NodeWord(os_release="debian 13")


def package(name: str, after: str, *, before: str = "", at: float = IN_NOVEMBER) -> PackageChange:
    return PackageChange(name=name, before=before, after=after, at=at)


KERNEL_19 = package("linux-image-6.1.0-19-amd64", "6.1.82-1")
KERNEL_20 = package("linux-image-6.1.0-20-amd64", "6.1.85-1", at=IN_NOVEMBER + 86400)


@pytest.fixture(scope="module")
def old() -> Boot:
    return secure().changed(texts=VERSIONED)


@pytest.fixture(scope="module")
def new(old: Boot) -> Boot:
    """After an update from 6.1.0-18 to 6.1.0-19."""
    texts = dict.fromkeys(VERSIONED, ("6.1.0-18-amd64", "6.1.0-19-amd64"))
    return old.changed({**kernel("new"), INITRD: value("new initrd")}, texts)


def said(boot: Boot, before: Boot, *packages: PackageChange, policy: BootPolicy = QUESTION) -> str:
    """What is said of the first difference."""
    found = boot.weighed(policy, before.reference, word=NodeWord(packages=packages)).findings
    assert {f.code for f in found} == {"boot.unannounced" if policy is QUESTION else "boot.pcr"}
    return found[0].detail


def test_a_finding_names_release_package_version_and_date(old: Boot, new: Boot) -> None:
    cause = (
        "the initrd and the kernel (6.1.0-18-amd64 -> 6.1.0-19-amd64) changed and nothing else; "
        "package 'linux-image-6.1.0-19-amd64' updated on 2026-11-20 to 6.1.82-1 (the node's word)"
    )
    assert said(new, old, KERNEL_19).startswith(cause + ": PCR ")
    assert f"; most likely {cause}), found " in said(new, old, KERNEL_19, policy=STRICT)
    assert "(the node's word)" not in said(new, old)


def test_the_package_of_another_kernel_or_stage_accounts_for_nothing(old: Boot, new: Boot) -> None:
    others = [
        KERNEL_20,
        package("linux-headers-6.1.0-19-amd64", "6.1.82-1"),
        package("linux-image-6.1.0-19-amd64-dbg", "6.1.82-1"),
        package("shim-signed", "1.44"),
        package("bash", "5.2"),
    ]
    assert said(new, old, *others) == said(new, old)
    assert "'linux-image-6.1.0-19-amd64'" in said(new, old, *others, KERNEL_19)
    shim = old.changed({SHIM: value("new shim")})
    told = said(shim, old, *others, KERNEL_19, package("grub-efi-amd64-signed", "1+2.06", before="1+2.04"))
    assert (
        "package 'grub-efi-amd64-signed' updated on 2026-11-20 from 1+2.04 to 1+2.06 and package 'shim-"
        in told
    )


def test_red_hats_kernels_are_told_by_their_version(old: Boot) -> None:
    texts = dict.fromkeys(VERSIONED, ("6.1.0-18-amd64", "5.14.0-427.el9.x86_64"))
    boot = old.changed(kernel("new"), texts)
    wanted, other = package("kernel-core", "5.14.0-427.el9"), package("kernel-core", "5.14.0-500.el9")
    assert "to 5.14.0-427.el9 (the node's word)" in said(boot, old, other, wanted)


@pytest.mark.parametrize(
    ("name", "after", "at"),
    [
        ("linux-image-x found 00", "6.1", IN_NOVEMBER),
        ("linux-image-x\nfound y", "6.1", IN_NOVEMBER),
        ("linux-image-amd64", "found", IN_NOVEMBER),
        ("linux-image-amd64", "6.1 found 00", IN_NOVEMBER),
        ("linux-image-amd64", "", IN_NOVEMBER),
        ("linux-image-\u202eamd64", "6.1", IN_NOVEMBER),
    ],
)
def test_c12_a_package_that_no_database_would_name_is_not_told_of(
    old: Boot, new: Boot, name: str, after: str, at: float
) -> None:
    assert said(new, old, package(name, after, at=at)) == said(new, old)


def test_a_date_that_no_calendar_has_is_left_out(old: Boot, new: Boot) -> None:
    for at in (0.0, 2.0**40):
        told = said(new, old, package("linux-image-6.1.0-19-amd64", "6.1.82-1", before="no version", at=at))
        assert "package 'linux-image-6.1.0-19-amd64' updated to 6.1.82-1 (the node's word)" in told


def test_many_packages_are_counted(old: Boot, new: Boot) -> None:
    many = [package(f"linux-image-{n}-6.1.0-19-amd64"[:60], "6.1") for n in "abcd"]
    assert said(new, old, *many).count("package '") == 2
    assert " and 2 more (the node's word)" in said(new, old, *many)


def test_a_package_accepts_nothing(old: Boot, new: Boot) -> None:
    assert "boot.pcr" in [
        f.code for f in new.weighed(STRICT, old.reference, word=NodeWord(packages=[KERNEL_19])).findings
    ]


def test_what_is_announced_for_an_operating_system_is_for_those_who_say_they_run_it(
    old: Boot, new: Boot
) -> None:
    boot = old.changed(kernel("new"), dict.fromkeys(VERSIONED, ("6.1.0-18-amd64", "6.1.0-19-amd64")))
    only_12 = announced("new", os_release="debian 12")
    assert boot.weighed(STRICT, old.reference, only_12, SAYS_12).findings == []
    for word in (SAYS_13, NodeWord(), NodeWord(os_release="Debian 12")):
        found = boot.weighed(STRICT, old.reference, only_12, word)
        assert "boot.pcr" in [f.code for f in found.findings]
        assert found.announced == []
    assert boot.weighed(STRICT, old.reference, announced("new"), SAYS_13).findings == []
    # To say so gains nothing that was not announced.
    evil = boot.changed({INITRD: value("evil")})
    assert evil.weighed(STRICT, old.reference, only_12, SAYS_12).findings != []


def test_which_packages_are_measured_at_boot() -> None:
    for name in (
        "linux-image-6.1.0-19-amd64",
        "kernel",
        "kernel-core",
        "shim-x64",
        "grub2-efi-x64",
        "dracut",
    ):
        assert boot_package(name), name
    for name in (
        "linux-libc-dev",
        "kernel-devel",
        "kernel-headers",
        "linux-base",
        "shimmer",
        "grubby",
        "bash",
    ):
        assert not boot_package(name), name
    assert REVOCATION == "revocation"
