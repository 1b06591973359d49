"""What a swarm and its workers tell each other: one JSON document a line."""

from __future__ import annotations

import ipaddress
from urllib.parse import urlsplit

from msgspec import Struct


class Setup(Struct):
    """The first line to a worker."""

    urls: list[str]
    """Of one controller or several: nodes are dealt out among them."""
    ca: str
    fleet: str
    """File of `tests.parts.simulator.save_fleet`."""
    event_log: str
    share: int
    """Which worker it is, from 0: its nodes come from addresses of their own, 127.0.SHARE+1.x."""
    limit_s: float
    """The process ends itself after so long, whatever it is doing."""


class Connect(Struct, tag=True):
    """Open every session and send the first report, the one with the boot log; so many nodes at a time."""

    at_once: int = 64


class Report(Struct, tag=True):
    """Report for `seconds`, each node every `interval_s`; 0: as soon as it is answered."""

    interval_s: float
    seconds: float
    nodes: int = 0
    """Only so many of each worker's; 0: all."""


class Storm(Struct, tag=True):
    """Every node reports at the same moment."""


class Wave(Struct, tag=True):
    """A share of the nodes boots something else, PCR 9 changed to the same value on all or to one of each one's own, and reports."""

    share: float
    same: bool = True


class Lie(Struct, tag=True):
    """A share of the nodes sends a report that must be refused: `quote` (a broken signature), `replay` (an earlier report once
    more), `pcr` (a value that the quote is not over), `frame` (what is no message)."""

    share: float
    kind: str


class Skew(Struct, tag=True):
    """From now on the clocks of a share of the nodes are off by so much; they report once."""

    share: float
    seconds: float


class Slow(Struct, tag=True):
    """A share of the nodes comes back over a line of so many bytes a second, and reports once."""

    share: float
    bytes_per_s: int


class Reconnect(Struct, tag=True):
    """Every connection breaks at once; each node comes back as an agent does, with its pauses and its jitter."""


class Watch(Struct, tag=True):
    """Note when each node of these sites (empty: of all) gets its next order; give up after `seconds`."""

    sites: list[str]
    seconds: float


Play = Connect | Report | Storm | Wave | Lie | Skew | Slow | Reconnect | Watch


class Task(Struct):
    """Play this; several may run at once."""

    number: int
    play: Play


class Result(Struct):
    """What one worker has seen of a play, or several workers together."""

    nodes: int = 0
    """Nodes that took part and did what was asked."""
    latencies_ms: list[float] = []
    """Of reports: from the frame sent to the answer come. Of sessions: from the dial that succeeded to Hello."""
    moments: list[float] = []
    """When each node was done, or got its order: CLOCK_MONOTONIC, the same in all processes of a machine."""
    codes: dict[str, int] = {}
    """Refusals and broken connections by code."""
    tiers: dict[str, int] = {}
    """Nodes by the tier that they were told last."""
    dials: int = 0
    seconds: float = 0.0
    cpu_s: float = 0.0


class Said(Struct):
    """From a worker: a play has begun (`result` None), or is over."""

    number: int
    result: Result | None = None
    fault: str = ""


def checked(url: str) -> str:
    """Return a URL that leads to this machine's loopback. Raises ValueError: nothing else is ever spoken to."""
    host = urlsplit(url).hostname or ""
    if host != "localhost" and not ipaddress.ip_address(host).is_loopback:
        raise ValueError(f"{url}: only loopback")
    return url


def joined(results: list[Result]) -> Result:
    """Return several workers' results as one."""
    whole = Result()
    for each in results:
        whole.nodes += each.nodes
        whole.latencies_ms = [*whole.latencies_ms, *each.latencies_ms]
        whole.moments = [*whole.moments, *each.moments]
        for mine, its in ((whole.codes, each.codes), (whole.tiers, each.tiers)):
            for key, count in its.items():
                mine[key] = mine.get(key, 0) + count
        whole.dials += each.dials
        whole.seconds = max(whole.seconds, each.seconds)
        whole.cpu_s += each.cpu_s
    return whole
