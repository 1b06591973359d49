"""Draft of `[containers]`: which images run here, by digest, each with the powers that its containers have now.

A name vouches for nothing, so an image of no known digest is left out: asked for by `repository@sha256:...` it has one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from agent.containers import Container, Powers
from agent.fileaccess import CAPABILITIES
from agent.host import printable
from agent.learning import Draft, entry, section
from agent.probes import Surroundings
from agent.probes.containers import DEFAULT_CAPABILITIES, is_name, repository

_WIDE = {
    "privileged": "has the whole machine",
    "host_namespaces": "shares namespaces with the machine",
    "capabilities": "has more than the usual capabilities",
    "runtime_socket": "steers the runtime, and with it the machine",
    "host_root": "sees every file of the machine",
}


class _Rule(NamedTuple):
    """An entry, but for names and reason; the fields are its keys."""

    digests: tuple[str, ...]
    image: str | None
    privileged: bool
    host_namespaces: tuple[str, ...]
    capabilities: tuple[str, ...]
    runtime_socket: bool
    host_root: bool
    user: int


def draft(around: Surroundings) -> Draft:
    """Return one rule for each image and set of powers that run now. Raises OSError where no list can be had."""
    tree = around.host.containers
    running, left_out = tree.running(), []
    names: dict[_Rule, set[str]] = {}
    for container in running:
        name = printable(container.name)
        if not container.digests:
            asked = printable(container.image)
            left_out.append(f"containers: {name}: an image of no known digest ({asked})")
            continue
        try:
            powers = tree.powers(container)
        except (OSError, KeyError, ValueError) as error:
            left_out.append(f"containers: {name}: could not look: {error}")
            continue
        names.setdefault(_rule(container, powers), set()).add(name)
    for pid in tree.unnamed(running):
        left_out.append(f"containers: PID namespace of process {pid}: no runtime records it")
    text = [section("containers", {"stop": False, "unnamed": "report"})]
    for rule, named in names.items():
        nameless = sorted(name for name in named if not is_name(name)) if _wide(rule) else []
        left_out += [
            f"containers: {name}: no rule could name it, and it {_wide(rule)[0]}" for name in nameless
        ]
        if left := sorted(named - set(nameless)):
            text.append(_entry(rule, left))
    return Draft("\n".join(text), left_out)


def _rule(container: Container, powers: Powers) -> _Rule:
    everything = powers.all_capabilities and not powers.own_users
    more: set[str] = set()
    if not (powers.own_users or everything):
        held = {name for place, name in enumerate(CAPABILITIES) if powers.capabilities >> place & 1}
        more = held - DEFAULT_CAPABILITIES
    return _Rule(
        digests=tuple(sorted(container.digests)),
        image=repository(container.image),
        privileged=everything,
        host_namespaces=tuple(sorted(powers.namespaces)),
        capabilities=tuple(sorted(more)),
        runtime_socket=bool(powers.sockets),
        host_root=powers.host_root,
        user=powers.uid,
    )


def _wide(rule: _Rule) -> list[str]:
    return [said for power, said in _WIDE.items() if getattr(rule, power)]


def _entry(rule: _Rule, names: Sequence[str]) -> str:
    granted = rule._asdict().items()
    keys: dict[str, object] = {key: v for key, v in granted if v is not None and v is not False and v != ()}
    if wide := _wide(rule):
        # Or any container of the image might have as much.
        keys["names"] = names
    asked = "; ".join(["is this the image that was tested?", *(f"it {said}" for said in wide)])
    return f"# runs as {', '.join(names)[:200]}\n" + entry("containers.allow", keys, decide=asked)
