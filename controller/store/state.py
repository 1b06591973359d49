"""The document in a node's row: what changes with every report and is only ever read with its node."""

from __future__ import annotations

from msgspec import Struct

from contract.ima import ImaState
from contract.messages import BaselineRef, Drift, Dropped, Finding, Posture
from contract.quote import Counters
from controller.records import BootRecord


class NodeState(Struct, frozen=True, kw_only=True):
    """What changes with every report and is only ever read with its node: one document in the node's row."""

    boot_id: str = ""
    agent_version: str = ""
    os_release: str = ""
    uptime_s: float = 0.0
    posture: Posture | None = None
    baseline: BaselineRef | None = None
    baseline_since: float | None = None
    pending: BaselineRef | None = None
    directive_accepted: int = 0
    release: int = 0
    """A person has released the node from an isolation of its own, with the directive of this number; 0 once it has obeyed."""
    fenced: list[str] = []
    addresses: list[str] = []
    drifts: list[Drift] = []
    findings: list[Finding] = []
    counters: Counters | None = None
    boot: BootRecord | None = None
    ima: ImaState | None = None
    events_dropped: int = 0
    dropped: list[Dropped] = []
    suspicions: list[str] = []
    """Keys of what is suspected now: only what is not here yet is fresh (controller.judge)."""
    muted: list[str] = []
    """Those that a suppression keeps quiet: fresh again once it has ended."""
