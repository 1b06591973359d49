"""Draft of `[usb]`: what is plugged in now, by vendor, product and the interfaces that it offers."""

from __future__ import annotations

from agent.learning import Draft, entry, section
from agent.probes import Surroundings

_STORAGE, _HUB = "08:", "09:"


def draft(around: Surroundings) -> Draft:
    """Return a rule for each device but root hubs. Raises OSError."""
    text = [section("usb", {"default": "block"})]
    tree = around.host.usb
    seen: set[tuple[str, str, tuple[str, ...]]] = set()
    for name in tree.names():
        device = tree.device(name)
        if device is None or name.startswith("usb"):
            continue
        kinds = tuple(sorted(set(device.offered)))
        if (device.vendor, device.product, kinds) in seen:
            continue
        seen.add((device.vendor, device.product, kinds))
        keys = {"vendor": device.vendor, "product": device.product, "interfaces": list(kinds) or ["*:*:*"]}
        storage = any(kind.startswith(_STORAGE) for kind in kinds)
        decide = (
            "storage: does anybody carry data in and out here?"
            if storage
            else f"at {name} now; add `port` or `serial`"
        )
        text.append(entry("usb.allow", keys, decide=decide))
    return Draft("\n".join(text), [])
