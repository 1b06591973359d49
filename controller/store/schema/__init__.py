"""The tables. Names and constraints only; what may be done with them is in the files beside.

Relies on UNIQUE constraints, not on reading first, for everything that must exist once: node id, EK, AK and
certificate (one row binds all four), one active hold for each target, one event for each (node, seq, at).
What is only read together with its row is one JSON document in it (`state`, `policy`); what is searched for is
a column. Times are seconds since 1970.
"""

from __future__ import annotations

from controller.store.schema.attestation import (
    boot_claims,
    boot_references,
    escrow_keys,
    evidence,
    evidence_blobs,
    reference_values,
)
from controller.store.schema.base import RowId, metadata
from controller.store.schema.enrolment import enrol_tokens, enrolments, preregistrations, revoked_keys
from controller.store.schema.fleet import node_labels, nodes, sites
from controller.store.schema.grants import break_glass_codes, grants
from controller.store.schema.inventory import inventories, inventory_facts, inventory_items
from controller.store.schema.outlets import dead_letters, outlets
from controller.store.schema.people import (
    answers_kept,
    api_sessions,
    api_tokens,
    audit,
    audit_checkpoints,
    audit_nodes,
    login_attempts,
    login_nonces,
    recovery_codes,
    users,
)
from controller.store.schema.replicas import controller_keys, controllers, restores, socket_questions
from controller.store.schema.response import (
    events,
    holds,
    incident_nodes,
    incidents,
    response_hits,
    response_policies,
    suppressions,
)
from controller.store.schema.rollouts import plans, rollout_nodes, rollouts
from controller.store.schema.signed import baselines, trust_files

__all__ = [
    "RowId",
    "answers_kept",
    "api_sessions",
    "api_tokens",
    "audit",
    "audit_checkpoints",
    "audit_nodes",
    "baselines",
    "boot_claims",
    "boot_references",
    "break_glass_codes",
    "controller_keys",
    "controllers",
    "dead_letters",
    "enrol_tokens",
    "enrolments",
    "escrow_keys",
    "events",
    "evidence",
    "evidence_blobs",
    "grants",
    "holds",
    "incident_nodes",
    "incidents",
    "inventories",
    "inventory_facts",
    "inventory_items",
    "login_attempts",
    "login_nonces",
    "metadata",
    "node_labels",
    "nodes",
    "outlets",
    "plans",
    "preregistrations",
    "recovery_codes",
    "reference_values",
    "response_hits",
    "response_policies",
    "restores",
    "revoked_keys",
    "rollout_nodes",
    "rollouts",
    "sites",
    "socket_questions",
    "suppressions",
    "trust_files",
    "users",
]
