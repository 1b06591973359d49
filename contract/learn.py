"""A `[boot]` section proposed from the accepted boots of good nodes, for a person to read, change and sign.

Pure. It proposes only what digests cover, in PCRs that the quote bore out (`Claims.explained`), and what every node shows;
what varies is listed with the nodes it was seen on.
A node that was bad when it was asked teaches its badness: whoever signs is told which nodes spoke.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Final

from msgspec import field

from contract.binding import BOOT_PCRS
from contract.bootpolicy import COMMAND_PCR, FIRMWARE_PCR, KEYS_PCR, STAGE_PCRS
from contract.bootreference import Reference
from contract.bootrules import parameters
from contract.claims import Claims
from contract.errors import Rejected
from contract.messages import Line, Message

MAX_NODES: Final = 1000
MAX_COMMENT_CHARS: Final = 200
_EVERY_MACHINE: Final = ("root=", "resume=", "cryptdevice=", "rd.luks.uuid=", "rd.lvm.lv=")
"""Parameters that name this machine's disks: their value is left open where it varies."""


class Learned(Message, frozen=True, kw_only=True):
    """The accepted boot of one node."""

    reference: Reference
    claims: Claims


class Seen(Message, frozen=True, kw_only=True):
    """One value, and where it was seen."""

    value: str
    nodes: list[Line]
    about: str = ""
    """What it is called on the first of them."""


class Proposal(Message, frozen=True, kw_only=True):
    """The same as the text, for programs."""

    nodes: list[Line]
    common: dict[str, object] = field(default_factory=dict)
    """Key of the section to its proposed value, where every node shows the same."""
    varies: dict[str, list[Seen]] = field(default_factory=dict)
    """Key of the section to the values seen; all of them are proposed."""
    differing_pcrs: dict[str, list[Seen]] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)
    """Rules that cannot be proposed, and why."""


def learn(boots: Mapping[str, Learned]) -> Proposal:
    """Return what these boots have in common and what varies. Raises Rejected `learn.none`, `learn.too-many`."""
    if not boots:
        raise Rejected("learn.none", "no accepted boot to learn from")
    if len(boots) > MAX_NODES:
        raise Rejected("learn.too-many", f"{len(boots)} nodes, at most {MAX_NODES}")
    names = sorted(boots)
    common: dict[str, object] = {}
    varies: dict[str, list[Seen]] = {}
    left_out: list[str] = []
    pcrs = sorted(BOOT_PCRS.intersection(*(boots[name].reference.pcrs for name in names)))
    if not pcrs:
        raise Rejected("learn.none", "these boots have no quoted PCR in common")
    common["pcrs"] = pcrs
    of = {name: boots[name].claims for name in names}
    proved = _explained(of, pcrs, common, left_out)
    if KEYS_PCR in proved:
        _learn_keys(of, proved, common, varies, left_out)
    else:
        left_out.append("keys: PCR 7 is not quoted and explained on all of them")
    for stage in STAGE_PCRS:
        unproved = _measured_in(of, stage).difference(proved)
        if unproved:
            left_out.append(
                f"stages.{stage}: measured in PCR {min(unproved)} too, which is not explained everywhere"
            )
            continue
        seen = _seen(_stage_values(of, stage))
        if {node for one in seen for node in one.nodes} == set(names):
            _put(f"stages.{stage}", seen, names, common, varies)
        elif seen:
            left_out.append(f"stages.{stage}: not measured on every node")
    _learn_command_line(of, proved, common, varies, left_out)
    if all(claims.proved("firmware_version", proved) for claims in of.values()) and FIRMWARE_PCR in proved:
        versions = _seen((claims.firmware_version, "", name) for name, claims in of.items())
        if all(0 < len(one.value) <= 256 for one in versions):
            _put("firmware_versions", versions, names, common, varies)
    differing = {
        str(pcr): seen
        for pcr in pcrs
        if len(seen := _seen((boots[name].reference.pcrs[pcr].hex(), "", name) for name in names)) > 1
    }
    return Proposal(nodes=names, common=common, varies=varies, differing_pcrs=differing, left_out=left_out)


def _explained(
    of: Mapping[str, Claims], pcrs: Sequence[int], common: dict[str, object], left_out: list[str]
) -> list[int]:
    """Return the PCRs that every node's log explains. Where a node has a log that does not, that PCR can only be proposed
    as one that the running system extends: on a node in good standing the policy in force has said so."""
    logs = [claims.explained for claims in of.values() if claims.explained]
    runtime = [pcr for pcr in pcrs if any(pcr not in explained for explained in logs)]
    if runtime:
        common["runtime_pcrs"] = runtime
        numbers = ", ".join(map(str, runtime))
        left_out.append(f"rules over PCR {numbers}: the log does not lead to its value on every node")
    if len(logs) < len(of):
        left_out.append("rules over what was loaded: no log of every node was held against its quote")
        return []
    return [pcr for pcr in pcrs if pcr not in runtime]


def _put(
    key: str, seen: list[Seen], names: Sequence[str], common: dict[str, object], varies: dict[str, list[Seen]]
) -> None:
    if all(one.nodes == list(names) for one in seen):
        common[key] = [one.value for one in seen]
    else:
        varies[key] = seen


def _seen(found: Iterable[tuple[str, str, str]]) -> list[Seen]:
    """Group (value, what it is called, node) by value, in the order first seen."""
    nodes: dict[str, list[str]] = {}
    about: dict[str, str] = {}
    for value, called, node in found:
        if node not in nodes.setdefault(value, []):
            nodes[value].append(node)
        about.setdefault(value, called)
    return [Seen(value=value, nodes=of_value, about=about[value]) for value, of_value in nodes.items()]


def _measured_in(of: Mapping[str, Claims], stage: str) -> set[int]:
    """Return the PCRs in which any node measures something of a stage."""
    name = stage.replace("_", "-")
    return {loaded.pcr for claims in of.values() for loaded in claims.loaded if loaded.stage == name}


def _stage_values(of: Mapping[str, Claims], stage: str) -> Iterator[tuple[str, str, str]]:
    name = stage.replace("_", "-")
    for node, claims in of.items():
        for loaded in claims.loaded:
            if loaded.stage == name:
                yield loaded.sha256.hex(), loaded.name, node


def _learn_keys(
    of: Mapping[str, Claims],
    pcrs: Sequence[int],
    common: dict[str, object],
    varies: dict[str, list[Seen]],
    left_out: list[str],
) -> None:
    """Secure Boot, the revocation list, the revocation level, and who vouched."""
    if all(c.secure_boot is True and c.proved("secure_boot", pcrs) for c in of.values()):
        common["secure_boot"] = "required"
    else:
        off = [node for node, c in of.items() if c.secure_boot is not True]
        left_out.append(f"secure_boot: not on at {', '.join(off) or 'any node that proves it'}")
    counts = [sum(s.variable == "dbx" and s.covered is True for s in c.signatures) for c in of.values()]
    if min(counts):
        common["minimum_dbx_entries"] = min(counts)
    if all(c.sbat_level and c.proved("sbat_level", pcrs) for c in of.values()):
        common["minimum_sbat_level"] = min(c.sbat_level for c in of.values())
    if all(c.proved("sbat", pcrs) for c in of.values()):
        components = set.intersection(*(set(c.sbat) for c in of.values()))
        least = {name: min(c.sbat[name] for c in of.values()) for name in sorted(components)}
        if least:
            common["minimum_sbat"] = least
    if all(c.authorities and all(s.covered is True for s in c.authorities) for c in of.values()):
        signers = ((s.sha256.hex(), s.subject or s.variable, n) for n, c in of.items() for s in c.authorities)
        _put("allowed_signers", _seen(signers), list(of), common, varies)
    else:
        left_out.append("allowed_signers: nobody vouched for what was loaded, on at least one node")


def _learn_command_line(
    of: Mapping[str, Claims],
    pcrs: Sequence[int],
    common: dict[str, object],
    varies: dict[str, list[Seen]],
    left_out: list[str],
) -> None:
    if COMMAND_PCR not in pcrs or not all(c.proved("kernel_command_line", pcrs) for c in of.values()):
        left_out.append("cmdline_*: no digest covers the command line on every node")
        return
    given = {node: [_open(p) for p in parameters(c.kernel_arguments)] for node, c in of.items()}
    sayable = [p for node in given for p in given[node] if p and not any(c.isspace() or c == '"' for c in p)]
    if sum(map(len, given.values())) != len(sayable) or any(len(p) > 1024 for p in sayable):
        left_out.append("cmdline_*: a parameter that no rule can name (blank, quotation mark)")
        return
    everywhere = [p for p in dict.fromkeys(sayable) if all(p in of_node for of_node in given.values())]
    required = [p for p in everywhere if not p.endswith("=")]
    common["cmdline_required"] = required
    others = _seen((p, "", node) for node in given for p in given[node] if p not in required)
    if all(one.nodes == list(of) for one in others):
        common["cmdline_allowed"] = [one.value for one in others]
    else:
        varies["cmdline_allowed"] = others


def _open(parameter: str) -> str:
    """Leave the value open where it names a disk of this machine."""
    return next((name for name in _EVERY_MACHINE if parameter.startswith(name)), parameter)


def propose(boots: Mapping[str, Learned]) -> str:
    """Return the section as TOML with comments. Raises Rejected as `learn` does."""
    proposal = learn(boots)
    lines = [
        _comment(
            f"Proposed from the accepted boots of {len(proposal.nodes)} nodes: {', '.join(proposal.nodes)}."
        ),
        "# Read it, strike out what you do not mean, put it into the baseline and sign that.",
        *(_comment(f"Not proposed: {text}") for text in proposal.left_out),
        *(
            _comment(
                f"PCR {pcr} differs: " + "; ".join(f"{s.value[:16]}… on {', '.join(s.nodes)}" for s in seen)
            )
            for pcr, seen in proposal.differing_pcrs.items()
        ),
        "",
        "[boot]",
        'reference = "enrolment"',
        'event_log = "required"',
    ]
    stages: list[str] = []
    for key in (*proposal.common, *proposal.varies):
        stage = key.removeprefix("stages.")
        target, name = (stages, stage) if key != stage else (lines, key)
        target += _entry(name, proposal.common.get(key), proposal.varies.get(key))
    if stages:
        lines += ["", "[boot.stages]", *stages]
    return "\n".join(lines) + "\n"


def _entry(name: str, common: object, seen: list[Seen] | None) -> list[str]:
    if seen is not None:
        return [
            _comment("varies"),
            f"{name} = [",
            *(
                f"    {_value(one.value)},  {_comment(' '.join(filter(None, (one.about, 'on', ', '.join(one.nodes)))))}"
                for one in seen
            ),
            "]",
        ]
    if isinstance(common, list) and len(common) > 1 and isinstance(common[0], str):
        return [f"{name} = [", *(f"    {_value(value)}," for value in common), "]"]
    return [f"{name} = {_value(common)}"]


def _value(value: object) -> str:
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{_value(str(k))} = {_value(v)}" for k, v in value.items()) + " }"
    if isinstance(value, list):
        return "[" + ", ".join(map(_value, value)) + "]"
    return json.dumps(value, ensure_ascii=False)


def _comment(text: str) -> str:
    """Return one line that begins no key, whatever a node called itself or its files."""
    shown = "".join(c if c.isprintable() else "?" for c in text)
    return "# " + (shown if len(shown) <= MAX_COMMENT_CHARS else shown[: MAX_COMMENT_CHARS - 1] + "…")
