"""The guest's disk: Debian 12 with shim, signed GRUB, signed kernel, IMA, and nothing of Ringfence yet.

Built once and kept in `build/lab`, by the list of what is in it; each guest gets a copy of its own. Everything is made
by files: no loop device, no mount. Relies on: packages mmdebstrap, e2fsprogs, mtools, fdisk.
"""

from __future__ import annotations

import hashlib
import os
import shlex
import shutil
import subprocess
from pathlib import Path

SUITE = "bookworm"
PACKAGES = (
    *("systemd-sysv", "dbus", "udev", "kmod", "procps", "iproute2", "iputils-ping", "usbutils"),
    *("linux-image-amd64", "initramfs-tools", "shim-signed", "grub-efi-amd64-signed"),
    *("nftables", "netbase", "ca-certificates", "qemu-guest-agent", "apt-utils", "zstd"),
)
ROOT_UUID = "6c616200-0000-4000-8000-000000000001"
_ADDRESS = "etc/initramfs-tools/scripts/init-premount/lab"
INITRD = {
    "etc/initramfs-tools/conf.d/lab": "MODULES=list\nCOMPRESS=zstd\n",
    "usr/share/initramfs-tools/modules.d/lab": "virtio_pci\nvirtio_blk\nvirtio_net\naf_packet\next4\ncrc32c\n",
    _ADDRESS: (
        '#!/bin/sh\n[ "$1" = prereqs ] && exit 0\n'
        'for each in /sys/class/net/e*; do ipconfig -t 20 -c dhcp "${each##*/}"; done\n'
    ),
}
"""What an emulated processor measures and unpacks at every boot: only the drivers of this guest's disk and card (initramfs.conf(5)).
The guest has its address before systemd begins, as where a disk is unlocked over the network: nothing but rules keeps anybody out."""
KERNEL_ARGUMENTS = "ro console=ttyS0 quiet mitigations=off ima_policy=tcb ima_hash=sha256"
"""Without mitigations: an emulated processor does not speculate, and is 6 % faster without them."""
MIB = 1024 * 1024
_ESP_FIRST, _ESP_MIB, _ROOT_FIRST, _ROOT_MIB = 1, 64, 65, 1900
NETWORK = "[Match]\nName=en*\n[Network]\nDHCP=ipv4\nIPv6AcceptRA=no\nLinkLocalAddressing=no\n"
MENU = """\
set timeout=0
search --no-floppy --fs-uuid --set=root {uuid}
linuxefi /boot/vmlinuz root=UUID={uuid} {arguments}
initrdefi /boot/initrd.img
boot
"""
"""`linuxefi`: started by GRUB's `linux` with Secure Boot off, the kernel has no firmware log."""
LISTENER_PORT = 7070
LISTENER = {
    "lab-listener.socket": (
        f"[Socket]\nListenStream=0.0.0.0:{LISTENER_PORT}\nAccept=yes\n[Install]\nWantedBy=sockets.target\n"
    ),
    # Its service without default dependencies: it answers from the moment on in which systemd listens for it.
    "lab-listener@.service": (
        "[Unit]\nDefaultDependencies=no\nCollectMode=inactive-or-failed\n"
        "[Service]\nExecStart=/bin/echo open\nStandardOutput=socket\n"
    ),
}
"""What listens openly, as early as any unit by default, and says `open` to whoever reaches it (`tests.lab.outside`)."""


def built(cache: Path, mirror: str) -> Path:
    """Return the disk, built where it is not there yet (two minutes); `mirror` as apt of this machine has it."""
    recipe = repr((SUITE, PACKAGES, KERNEL_ARGUMENTS, NETWORK, MENU, Path(__file__).read_text()))
    disk = cache / f"debian-{hashlib.sha256(recipe.encode()).hexdigest()[:16]}.img"
    if disk.exists():
        return disk
    cache.mkdir(parents=True, exist_ok=True)
    root = cache / "root"
    shutil.rmtree(root, ignore_errors=True)
    drivers = [
        f'--essential-hook=mkdir -p "$1/{Path(name).parent}"; printf %s {shlex.quote(text)} > "$1/{name}"'
        for name, text in INITRD.items()
    ]
    drivers.append(f'--essential-hook=chmod 755 "$1/{_ADDRESS}"')
    _run(
        "mmdebstrap", "--quiet", "--variant=minbase", f"--include={','.join(PACKAGES)}", *drivers, SUITE, str(root), mirror,
        env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"},
    )  # fmt: skip
    _settle(root)
    fresh = disk.with_suffix(".new")
    _assemble(root, fresh)
    shutil.rmtree(root)
    fresh.rename(disk)
    return disk


def menu(arguments: str = KERNEL_ARGUMENTS) -> str:
    """Return GRUB's configuration on the EFI partition."""
    return MENU.format(uuid=ROOT_UUID, arguments=arguments)


def put_menu(disk: Path, text: str) -> None:
    """Write GRUB's configuration onto a disk that no guest uses."""
    _mtools("mcopy", disk, "-o", "-", "::EFI/debian/grub.cfg", text=text)


def _settle(root: Path) -> None:
    (root / "etc/hostname").write_text("press-1\n")
    (root / "etc/fstab").write_text(f"UUID={ROOT_UUID} / ext4 errors=remount-ro 0 1\n")
    (root / "etc/systemd/network/10-lab.network").write_text(NETWORK)
    for name, text in LISTENER.items():
        (root / "etc/systemd/system" / name).write_text(text)
    started = ("systemd-networkd.service", "serial-getty@ttyS0.service", "lab-listener.socket")
    _run("chroot", str(root), "systemctl", "enable", *started)
    _run("chroot", str(root), "systemctl", "mask", "systemd-networkd-wait-online.service", "apt-daily.timer")
    (root / "etc/machine-id").write_text("")
    for kind in ("vmlinuz", "initrd.img"):
        (newest,) = sorted((root / "boot").glob(f"{kind}-*"))[-1:]
        link = root / "boot" / kind
        link.unlink(missing_ok=True)
        link.symlink_to(newest.name)


def _assemble(root: Path, disk: Path) -> None:
    disk.unlink(missing_ok=True)
    with disk.open("wb") as handle:
        handle.truncate((_ROOT_FIRST + _ROOT_MIB + 1) * MIB)
    table = f"label: gpt\nstart={_ESP_FIRST}MiB, size={_ESP_MIB}MiB, type=U\nstart={_ROOT_FIRST}MiB, size={_ROOT_MIB}MiB, type=L\n"
    _run("sfdisk", "--quiet", str(disk), text=table)
    _run(
        "mke2fs", "-q", "-t", "ext4", "-U", ROOT_UUID, "-d", str(root), "-E", f"offset={_ROOT_FIRST * MIB}",
        "-F", str(disk), f"{_ROOT_MIB}M",
    )  # fmt: skip
    _mtools("mformat", disk, "-v", "ESP", "-T", str(_ESP_MIB * 2048), "-h", "64", "-s", "32", "::")
    for folder in ("EFI", "EFI/BOOT", "EFI/debian"):
        _mtools("mmd", disk, f"::{folder}")
    signed = root / "usr/lib"
    for source, name in (
        (signed / "shim/shimx64.efi.signed", "BOOTX64.EFI"),
        (signed / "shim/mmx64.efi.signed", "mmx64.efi"),
        (signed / "grub/x86_64-efi-signed/grubx64.efi.signed", "grubx64.efi"),
    ):
        _mtools("mcopy", disk, "-o", str(source), f"::EFI/BOOT/{name}")
    put_menu(disk, menu())


def _mtools(tool: str, disk: Path, *arguments: str, text: str | None = None) -> None:
    options = list(arguments)
    at = 1 if options and options[0] == "-o" else 0
    _run(tool, "-i", f"{disk}@@{_ESP_FIRST}M", *options[:at], *options[at:], text=text)


def _run(*command: str, text: str | None = None, env: dict[str, str] | None = None) -> None:
    done = subprocess.run(
        command, input=text, text=True, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.returncode}\n{done.stdout[-2000:]}")
