"""The lab: Debian guests under QEMU with UEFI firmware and a software TPM, a real measured boot, a real systemd. `make lab`."""
