"""The admin API of a Ringfence controller, for programs. Made from its OpenAPI document: change that, not this file.

    from ringfence_client import Client, Problem

    with Client("https://controller:8441", ca_file="controller-ca.pem", token=TOKEN) as client:
        seen = client.get_nodes_node_labels("press-1")
        client.put_nodes_node_labels("press-1", {"labels": {"line": "3"}, "reason": "moved"}, if_match=seen.etag)

Only Python's own library is needed. Each act has an Idempotency-Key, new for every call unless one is given: after a broken connection
it is sent again with the same one, and done once. Refusals are raised as `Problem`. One client is for one thread.
"""

from __future__ import annotations

import http.client
import json
import secrets
import ssl
import time
from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import Any, NamedTuple
from urllib.parse import quote, urlencode, urlsplit

PREFIX = "/api/v1"
TIMEOUT_S = 60.0
PAUSES_S = (0.2, 1.0, 3.0)
"""Before what broke off is sent again."""


class Problem(Exception):
    """The controller said no: problem details (RFC 9457). `retry_after`: seconds, 0 where nothing was said."""

    def __init__(self, status: int, code: str, detail: str, retry_after: int) -> None:
        super().__init__(f"{code}: {detail}" if detail else code)
        self.status, self.code, self.detail, self.retry_after = status, code, detail, retry_after


class Answer(NamedTuple):
    """What came back: the decoded JSON (None for an empty answer), and the ETag where there is one."""

    value: Any
    etag: str
    rehearsed: bool
    """It was a dry run: nothing has changed."""


class Client:
    """One connection to one controller."""

    def __init__(self, url: str, *, ca_file: str, token: str) -> None:
        """`ca_file`: PEM of the authority of the controller's certificate; no other is believed."""
        parts = urlsplit(url)
        if parts.scheme != "https" or not parts.hostname:
            raise ValueError(f"{url}: wanted https://host:port")
        context = ssl.create_default_context(cafile=ca_file)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        self._token = token
        self._connection = http.client.HTTPSConnection(
            parts.hostname, parts.port or 443, timeout=TIMEOUT_S, context=context
        )

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._connection.close()

    def call(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, object] | None = None,
        body: object = None,
        headers: Mapping[str, str | None] | None = None,
    ) -> Answer:
        """Ask for a path of the API. Raises Problem, OSError, http.client.HTTPException."""
        sent = {name: value for name, value in (headers or {}).items() if value is not None}
        sent["Authorization"] = f"Bearer {self._token}"
        data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
        if data is not None:
            sent["Content-Type"] = (
                "application/octet-stream" if isinstance(body, bytes) else "application/json"
            )
        wanted = {name: _text(value) for name, value in (query or {}).items() if value is not None}
        url = f"{PREFIX}{path}" + (f"?{urlencode(wanted)}" if wanted else "")
        pauses = list(PAUSES_S) if method == "GET" or "Idempotency-Key" in sent else []
        while True:
            try:
                self._connection.request(method, url, body=data, headers=sent)
                reply = self._connection.getresponse()
                content = reply.read()
            except (OSError, http.client.HTTPException):
                self._connection.close()
                if not pauses:
                    raise
                time.sleep(pauses.pop(0))
                continue
            return _answer(reply, content)

    def pages(self, path: str, **query: object) -> Iterator[Any]:
        """Every item of a list that comes in pages."""
        cursor: object = None
        while True:
            page = self.call("GET", path, query={**query, "limit": 500, "cursor": cursor}).value
            yield from page["items"]
            cursor = page["next"]
            if cursor is None:
                return

    def get_status(self) -> Answer:
        """The fleet in figures. Needs `fleet.read` (viewer, auditor, operator, approver, installer, admin) and shows no more than the sites that it is for."""
        return self.call("GET", "/status")

    def get_nodes(
        self,
        *,
        cursor: str | None = None,
        limit: int | None = None,
        site: str | None = None,
        standing: str | None = None,
        selector: str | None = None,
        sort: str | None = None,
        descending: bool | None = None,
    ) -> Answer:
        """List nodes. Needs `fleet.read` (viewer, auditor, operator, approver, installer, admin) and shows no more than the sites that it is for."""
        return self.call(
            "GET",
            "/nodes",
            query={
                "cursor": cursor,
                "limit": limit,
                "site": site,
                "standing": standing,
                "selector": selector,
                "sort": sort,
                "descending": descending,
            },
        )

    def get_nodes_node(self, node: str) -> Answer:
        """Look at one node. Needs `fleet.read` (viewer, auditor, operator, approver, installer, admin) where the node is."""
        return self.call("GET", f"/nodes/{_segment(node)}")

    def get_nodes_node_labels(self, node: str) -> Answer:
        """A node's labels. Needs `fleet.read` (viewer, auditor, operator, approver, installer, admin) where the node is."""
        return self.call("GET", f"/nodes/{_segment(node)}/labels")

    def put_nodes_node_labels(
        self,
        node: str,
        body: Mapping[str, object],
        *,
        dry_run: bool | None = None,
        if_match: str | None = None,
        key: str | None = None,
    ) -> Answer:
        """Replace a node's labels. Needs `node.label` (admin) where the node is."""
        return self.call(
            "PUT",
            f"/nodes/{_segment(node)}/labels",
            query={"dry_run": dry_run},
            body=body,
            headers={"If-Match": if_match, "Idempotency-Key": _key(key)},
        )

    def post_labels(
        self, body: Mapping[str, object], *, dry_run: bool | None = None, key: str | None = None
    ) -> Answer:
        """Set and take away labels of many nodes, each on its own. Needs `node.label` (admin) and shows no more than the sites that it is for."""
        return self.call(
            "POST", "/labels", query={"dry_run": dry_run}, body=body, headers={"Idempotency-Key": _key(key)}
        )

    def post_nodes_node_isolate(
        self, node: str, body: Mapping[str, object], *, dry_run: bool | None = None, key: str | None = None
    ) -> Answer:
        """Isolate a node. Needs `isolation.act` (operator, admin) where the node is."""
        return self.call(
            "POST",
            f"/nodes/{_segment(node)}/isolate",
            query={"dry_run": dry_run},
            body=body,
            headers={"Idempotency-Key": _key(key)},
        )

    def post_nodes_node_release(
        self, node: str, body: Mapping[str, object], *, dry_run: bool | None = None, key: str | None = None
    ) -> Answer:
        """Release a node. Needs `isolation.act` (operator, admin) where the node is."""
        return self.call(
            "POST",
            f"/nodes/{_segment(node)}/release",
            query={"dry_run": dry_run},
            body=body,
            headers={"Idempotency-Key": _key(key)},
        )

    def post_nodes_node_accept_boot(
        self, node: str, body: Mapping[str, object], *, dry_run: bool | None = None, key: str | None = None
    ) -> Answer:
        """Accept the boot that a node showed last. Needs `boot.accept` (operator, admin) where the node is."""
        return self.call(
            "POST",
            f"/nodes/{_segment(node)}/accept-boot",
            query={"dry_run": dry_run},
            body=body,
            headers={"Idempotency-Key": _key(key)},
        )

    def get_nodes_node_inventory(
        self,
        node: str,
        *,
        cursor: str | None = None,
        limit: int | None = None,
        at: float | None = None,
        kind: str | None = None,
    ) -> Answer:
        """What a node says it consists of. Needs `fleet.read` (viewer, auditor, operator, approver, installer, admin) where the node is."""
        return self.call(
            "GET",
            f"/nodes/{_segment(node)}/inventory",
            query={"cursor": cursor, "limit": limit, "at": at, "kind": kind},
        )

    def get_nodes_node_inventory_history(
        self, node: str, *, cursor: str | None = None, limit: int | None = None, kind: str | None = None
    ) -> Answer:
        """What a node said it consists of, and until when. Needs `fleet.read` (viewer, auditor, operator, approver, installer, admin) where the node is."""
        return self.call(
            "GET",
            f"/nodes/{_segment(node)}/inventory/history",
            query={"cursor": cursor, "limit": limit, "kind": kind},
        )

    def get_inventory_packages(
        self, *, cursor: str | None = None, limit: int | None = None, name: str, version: str | None = None
    ) -> Answer:
        """Which nodes say they have a package. Needs `fleet.read` (viewer, auditor, operator, approver, installer, admin) and shows no more than the sites that it is for."""
        return self.call(
            "GET",
            "/inventory/packages",
            query={"cursor": cursor, "limit": limit, "name": name, "version": version},
        )

    def get_sites(self, *, cursor: str | None = None, limit: int | None = None) -> Answer:
        """List sites. Needs `fleet.read` (viewer, auditor, operator, approver, installer, admin) and shows no more than the sites that it is for."""
        return self.call("GET", "/sites", query={"cursor": cursor, "limit": limit})

    def post_sites(
        self, body: Mapping[str, object], *, dry_run: bool | None = None, key: str | None = None
    ) -> Answer:
        """Make a site. Needs `site.make` (admin) for the whole fleet."""
        return self.call(
            "POST", "/sites", query={"dry_run": dry_run}, body=body, headers={"Idempotency-Key": _key(key)}
        )

    def get_sites_site(self, site: str) -> Answer:
        """Look at one site. Needs `fleet.read` (viewer, auditor, operator, approver, installer, admin) where the site is."""
        return self.call("GET", f"/sites/{_segment(site)}")

    def get_sites_site_policy(self, site: str) -> Answer:
        """A site's policy. Needs `fleet.read` (viewer, auditor, operator, approver, installer, admin) where the site is."""
        return self.call("GET", f"/sites/{_segment(site)}/policy")

    def put_sites_site_policy(
        self,
        site: str,
        body: Mapping[str, object],
        *,
        dry_run: bool | None = None,
        if_match: str | None = None,
        key: str | None = None,
    ) -> Answer:
        """Replace a site's policy. Needs `site.policy` (admin) where the site is."""
        return self.call(
            "PUT",
            f"/sites/{_segment(site)}/policy",
            query={"dry_run": dry_run},
            body=body,
            headers={"If-Match": if_match, "Idempotency-Key": _key(key)},
        )

    def post_sites_site_isolate(
        self, site: str, body: Mapping[str, object], *, dry_run: bool | None = None, key: str | None = None
    ) -> Answer:
        """Isolate a whole site. Needs `isolation.act` (operator, admin) where the site is."""
        return self.call(
            "POST",
            f"/sites/{_segment(site)}/isolate",
            query={"dry_run": dry_run},
            body=body,
            headers={"Idempotency-Key": _key(key)},
        )

    def post_sites_site_release(
        self, site: str, body: Mapping[str, object], *, dry_run: bool | None = None, key: str | None = None
    ) -> Answer:
        """Release a site. Needs `isolation.act` (operator, admin) where the site is."""
        return self.call(
            "POST",
            f"/sites/{_segment(site)}/release",
            query={"dry_run": dry_run},
            body=body,
            headers={"Idempotency-Key": _key(key)},
        )

    def get_enrolments(
        self, *, cursor: str | None = None, limit: int | None = None, state: str | None = None
    ) -> Answer:
        """List enrolments. Needs `fleet.read` (viewer, auditor, operator, approver, installer, admin) and shows no more than the sites that it is for."""
        return self.call("GET", "/enrolments", query={"cursor": cursor, "limit": limit, "state": state})

    def post_enrolments_enrolment_approve(
        self,
        enrolment: str,
        body: Mapping[str, object],
        *,
        dry_run: bool | None = None,
        key: str | None = None,
    ) -> Answer:
        """Let a node in. Needs `node.admit` (approver, installer, admin) where the enrolment is."""
        return self.call(
            "POST",
            f"/enrolments/{_segment(enrolment)}/approve",
            query={"dry_run": dry_run},
            body=body,
            headers={"Idempotency-Key": _key(key)},
        )

    def post_enrolments_enrolment_reject(
        self,
        enrolment: str,
        body: Mapping[str, object],
        *,
        dry_run: bool | None = None,
        key: str | None = None,
    ) -> Answer:
        """Turn a node away. Needs `node.admit` (approver, installer, admin) where the enrolment is."""
        return self.call(
            "POST",
            f"/enrolments/{_segment(enrolment)}/reject",
            query={"dry_run": dry_run},
            body=body,
            headers={"Idempotency-Key": _key(key)},
        )

    def get_preregistrations(self, *, cursor: str | None = None, limit: int | None = None) -> Answer:
        """List expected endorsement keys. Needs `fleet.read` (viewer, auditor, operator, approver, installer, admin) and shows no more than the sites that it is for."""
        return self.call("GET", "/preregistrations", query={"cursor": cursor, "limit": limit})

    def post_preregistrations(
        self, body: Mapping[str, object], *, dry_run: bool | None = None, key: str | None = None
    ) -> Answer:
        """Expect an endorsement key. Needs `node.expect` (installer, admin) where everything is that the body names."""
        return self.call(
            "POST",
            "/preregistrations",
            query={"dry_run": dry_run},
            body=body,
            headers={"Idempotency-Key": _key(key)},
        )

    def post_enrolment_tokens(
        self, body: Mapping[str, object], *, dry_run: bool | None = None, key: str | None = None
    ) -> Answer:
        """Make a one-use enrolment token. Needs `node.expect` (installer, admin) where everything is that the body names."""
        return self.call(
            "POST",
            "/enrolment-tokens",
            query={"dry_run": dry_run},
            body=body,
            headers={"Idempotency-Key": _key(key)},
        )

    def get_baselines(self, *, cursor: str | None = None, limit: int | None = None) -> Answer:
        """List signed baselines. Needs `fleet.read` (viewer, auditor, operator, approver, installer, admin) and shows no more than the sites that it is for."""
        return self.call("GET", "/baselines", query={"cursor": cursor, "limit": limit})

    def post_baselines(self, body: bytes, *, dry_run: bool | None = None, key: str | None = None) -> Answer:
        """Push a bundle of signed baselines. Needs `baseline.push` (admin) for the whole fleet."""
        return self.call(
            "POST",
            "/baselines",
            query={"dry_run": dry_run},
            body=body,
            headers={"Idempotency-Key": _key(key)},
        )

    def get_sites_site_baseline(self, site: str) -> Answer:
        """The baseline that a site is to hold to. Needs `fleet.read` (viewer, auditor, operator, approver, installer, admin) where the site is."""
        return self.call("GET", f"/sites/{_segment(site)}/baseline")

    def put_sites_site_baseline(
        self,
        site: str,
        body: Mapping[str, object],
        *,
        dry_run: bool | None = None,
        if_match: str | None = None,
        key: str | None = None,
    ) -> Answer:
        """Assign a baseline to a site. Needs `baseline.assign` (operator, admin) where the site is."""
        return self.call(
            "PUT",
            f"/sites/{_segment(site)}/baseline",
            query={"dry_run": dry_run},
            body=body,
            headers={"If-Match": if_match, "Idempotency-Key": _key(key)},
        )

    def post_plans(
        self, body: Mapping[str, object], *, dry_run: bool | None = None, key: str | None = None
    ) -> Answer:
        """Plan a baseline for the nodes that a selector means. Needs `rollout.request` (operator, admin) and shows no more than the sites that it is for."""
        return self.call(
            "POST", "/plans", query={"dry_run": dry_run}, body=body, headers={"Idempotency-Key": _key(key)}
        )

    def get_plans_plan(self, plan: int) -> Answer:
        """Look at one plan. Needs `fleet.read` (viewer, auditor, operator, approver, installer, admin) where the plan is."""
        return self.call("GET", f"/plans/{_segment(plan)}")

    def get_rollouts(
        self, *, cursor: str | None = None, limit: int | None = None, state: str | None = None
    ) -> Answer:
        """List rollouts. Needs `fleet.read` (viewer, auditor, operator, approver, installer, admin) and shows no more than the sites that it is for."""
        return self.call("GET", "/rollouts", query={"cursor": cursor, "limit": limit, "state": state})

    def post_rollouts(
        self, body: Mapping[str, object], *, dry_run: bool | None = None, key: str | None = None
    ) -> Answer:
        """Ask to carry out a plan. Needs `rollout.request` (operator, admin) where everything is that the body names."""
        return self.call(
            "POST", "/rollouts", query={"dry_run": dry_run}, body=body, headers={"Idempotency-Key": _key(key)}
        )

    def get_rollouts_rollout(self, rollout: int) -> Answer:
        """Look at one rollout. Needs `fleet.read` (viewer, auditor, operator, approver, installer, admin) where the rollout is."""
        return self.call("GET", f"/rollouts/{_segment(rollout)}")

    def get_rollouts_rollout_nodes(
        self, rollout: int, *, cursor: str | None = None, limit: int | None = None
    ) -> Answer:
        """How far each node of a rollout is. Needs `fleet.read` (viewer, auditor, operator, approver, installer, admin) where the rollout is."""
        return self.call(
            "GET", f"/rollouts/{_segment(rollout)}/nodes", query={"cursor": cursor, "limit": limit}
        )

    def post_rollouts_rollout_approve(
        self, rollout: int, body: Mapping[str, object], *, dry_run: bool | None = None, key: str | None = None
    ) -> Answer:
        """Let a rollout begin. Needs `rollout.approve` (approver, admin) where the rollout is."""
        return self.call(
            "POST",
            f"/rollouts/{_segment(rollout)}/approve",
            query={"dry_run": dry_run},
            body=body,
            headers={"Idempotency-Key": _key(key)},
        )

    def post_rollouts_rollout_pause(
        self, rollout: int, body: Mapping[str, object], *, dry_run: bool | None = None, key: str | None = None
    ) -> Answer:
        """Pause a rollout. Needs `rollout.act` (operator, admin) where the rollout is."""
        return self.call(
            "POST",
            f"/rollouts/{_segment(rollout)}/pause",
            query={"dry_run": dry_run},
            body=body,
            headers={"Idempotency-Key": _key(key)},
        )

    def post_rollouts_rollout_resume(
        self, rollout: int, body: Mapping[str, object], *, dry_run: bool | None = None, key: str | None = None
    ) -> Answer:
        """Resume a rollout that was paused or has halted. Needs `rollout.act` (operator, admin) where the rollout is."""
        return self.call(
            "POST",
            f"/rollouts/{_segment(rollout)}/resume",
            query={"dry_run": dry_run},
            body=body,
            headers={"Idempotency-Key": _key(key)},
        )

    def post_rollouts_rollout_abort(
        self, rollout: int, body: Mapping[str, object], *, dry_run: bool | None = None, key: str | None = None
    ) -> Answer:
        """Abort a rollout. Needs `rollout.act` (operator, admin) where the rollout is."""
        return self.call(
            "POST",
            f"/rollouts/{_segment(rollout)}/abort",
            query={"dry_run": dry_run},
            body=body,
            headers={"Idempotency-Key": _key(key)},
        )

    def get_incidents(
        self,
        *,
        cursor: str | None = None,
        limit: int | None = None,
        state: str | None = None,
        site: str | None = None,
    ) -> Answer:
        """List incidents. Needs `fleet.read` (viewer, auditor, operator, approver, installer, admin) and shows no more than the sites that it is for."""
        return self.call(
            "GET", "/incidents", query={"cursor": cursor, "limit": limit, "state": state, "site": site}
        )

    def get_incidents_incident(self, incident: int) -> Answer:
        """Look at one incident. Needs `fleet.read` (viewer, auditor, operator, approver, installer, admin) where the incident is."""
        return self.call("GET", f"/incidents/{_segment(incident)}")

    def post_incidents_incident_close(
        self,
        incident: int,
        body: Mapping[str, object],
        *,
        dry_run: bool | None = None,
        key: str | None = None,
    ) -> Answer:
        """Close an incident. Needs `incident.close` (operator, admin) where the incident is."""
        return self.call(
            "POST",
            f"/incidents/{_segment(incident)}/close",
            query={"dry_run": dry_run},
            body=body,
            headers={"Idempotency-Key": _key(key)},
        )

    def get_holds(
        self,
        *,
        cursor: str | None = None,
        limit: int | None = None,
        site: str | None = None,
        all: bool | None = None,
    ) -> Answer:
        """List isolations. Needs `fleet.read` (viewer, auditor, operator, approver, installer, admin) and shows no more than the sites that it is for."""
        return self.call("GET", "/holds", query={"cursor": cursor, "limit": limit, "site": site, "all": all})

    def get_responses(self) -> Answer:
        """Look at the response rules in force. Needs `fleet.read` (viewer, auditor, operator, approver, installer, admin) for the whole fleet."""
        return self.call("GET", "/responses")

    def put_responses(
        self,
        body: Mapping[str, object],
        *,
        dry_run: bool | None = None,
        if_match: str | None = None,
        key: str | None = None,
    ) -> Answer:
        """Replace the response rules. Needs `response.set` (admin) for the whole fleet."""
        return self.call(
            "PUT",
            "/responses",
            query={"dry_run": dry_run},
            body=body,
            headers={"If-Match": if_match, "Idempotency-Key": _key(key)},
        )

    def get_responses_history(self, *, cursor: str | None = None, limit: int | None = None) -> Answer:
        """List versions of the response rules. Needs `fleet.read` (viewer, auditor, operator, approver, installer, admin) for the whole fleet."""
        return self.call("GET", "/responses/history", query={"cursor": cursor, "limit": limit})

    def post_responses_undo(
        self, body: Mapping[str, object], *, dry_run: bool | None = None, key: str | None = None
    ) -> Answer:
        """Put earlier response rules in force. Needs `response.set` (admin) for the whole fleet."""
        return self.call(
            "POST",
            "/responses/undo",
            query={"dry_run": dry_run},
            body=body,
            headers={"Idempotency-Key": _key(key)},
        )

    def get_suppressions(
        self, *, cursor: str | None = None, limit: int | None = None, all: bool | None = None
    ) -> Answer:
        """List suppressions. Needs `fleet.read` (viewer, auditor, operator, approver, installer, admin) and shows no more than the sites that it is for."""
        return self.call("GET", "/suppressions", query={"cursor": cursor, "limit": limit, "all": all})

    def post_suppressions(
        self, body: Mapping[str, object], *, dry_run: bool | None = None, key: str | None = None
    ) -> Answer:
        """Keep incidents of a kind quiet for a while. Needs `incident.suppress` (operator, admin) and shows no more than the sites that it is for."""
        return self.call(
            "POST",
            "/suppressions",
            query={"dry_run": dry_run},
            body=body,
            headers={"Idempotency-Key": _key(key)},
        )

    def post_suppressions_suppression_end(
        self,
        suppression: int,
        body: Mapping[str, object],
        *,
        dry_run: bool | None = None,
        key: str | None = None,
    ) -> Answer:
        """End a suppression before its time. Needs `incident.suppress` (operator, admin) where the suppression is."""
        return self.call(
            "POST",
            f"/suppressions/{_segment(suppression)}/end",
            query={"dry_run": dry_run},
            body=body,
            headers={"Idempotency-Key": _key(key)},
        )

    def post_sites_site_drill(
        self, site: str, body: Mapping[str, object], *, dry_run: bool | None = None, key: str | None = None
    ) -> Answer:
        """Rehearse the isolation of a site. Needs `isolation.act` (operator, admin) where the site is."""
        return self.call(
            "POST",
            f"/sites/{_segment(site)}/drill",
            query={"dry_run": dry_run},
            body=body,
            headers={"Idempotency-Key": _key(key)},
        )

    def get_references(
        self,
        *,
        cursor: str | None = None,
        limit: int | None = None,
        site: str | None = None,
        all: bool | None = None,
    ) -> Answer:
        """List announced reference values. Needs `fleet.read` (viewer, auditor, operator, approver, installer, admin) and shows no more than the sites that it is for."""
        return self.call(
            "GET", "/references", query={"cursor": cursor, "limit": limit, "site": site, "all": all}
        )

    def post_references(
        self, body: Mapping[str, object], *, dry_run: bool | None = None, key: str | None = None
    ) -> Answer:
        """Announce reference values, each on its own. Needs `boot.accept` (operator, admin) and shows no more than the sites that it is for."""
        return self.call(
            "POST",
            "/references",
            query={"dry_run": dry_run},
            body=body,
            headers={"Idempotency-Key": _key(key)},
        )

    def post_references_reference_withdraw(
        self,
        reference: int,
        body: Mapping[str, object],
        *,
        dry_run: bool | None = None,
        key: str | None = None,
    ) -> Answer:
        """Withdraw announced reference values. Needs `boot.accept` (operator, admin) where the reference is."""
        return self.call(
            "POST",
            f"/references/{_segment(reference)}/withdraw",
            query={"dry_run": dry_run},
            body=body,
            headers={"Idempotency-Key": _key(key)},
        )

    def get_nodes_node_boot(self, node: str) -> Answer:
        """Look at the boot that a node is held to. Needs `fleet.read` (viewer, auditor, operator, approver, installer, admin) where the node is."""
        return self.call("GET", f"/nodes/{_segment(node)}/boot")

    def post_incidents_incident_accept(
        self,
        incident: int,
        body: Mapping[str, object],
        *,
        dry_run: bool | None = None,
        key: str | None = None,
    ) -> Answer:
        """Accept the boots of all nodes of an incident. Needs `boot.accept` (operator, admin) where the incident is."""
        return self.call(
            "POST",
            f"/incidents/{_segment(incident)}/accept",
            query={"dry_run": dry_run},
            body=body,
            headers={"Idempotency-Key": _key(key)},
        )

    def get_nodes_node_evidence(
        self, node: str, *, cursor: str | None = None, limit: int | None = None
    ) -> Answer:
        """List the stored evidence of a node. Needs `evidence.read` (auditor, operator, admin) where the node is."""
        return self.call("GET", f"/nodes/{_segment(node)}/evidence", query={"cursor": cursor, "limit": limit})

    def get_nodes_node_evidence_evidence(self, node: str, evidence: str) -> Answer:
        """Export one piece of evidence, or the newest. Needs `evidence.read` (auditor, operator, admin) where the node is."""
        return self.call("GET", f"/nodes/{_segment(node)}/evidence/{_segment(evidence)}")

    def get_nodes_node_result(self, node: str, *, nonce: str | None = None) -> Answer:
        """The attestation result in force, signed. Needs `fleet.read` (viewer, auditor, operator, approver, installer, admin) where the node is."""
        return self.call("GET", f"/nodes/{_segment(node)}/result", query={"nonce": nonce})

    def get_results_key(self) -> Answer:
        """The public key of attestation results. Needs `fleet.read` (viewer, auditor, operator, approver, installer, admin) at any site."""
        return self.call("GET", "/results/key")

    def get_nodes_node_sealing(self, node: str) -> Answer:
        """What a key for this node must be sealed to. Needs `key.put` (installer, admin) where the node is."""
        return self.call("GET", f"/nodes/{_segment(node)}/sealing")

    def get_nodes_node_keys(
        self, node: str, *, cursor: str | None = None, limit: int | None = None
    ) -> Answer:
        """List the keys that a node has in escrow. Needs `fleet.read` (viewer, auditor, operator, approver, installer, admin) where the node is."""
        return self.call("GET", f"/nodes/{_segment(node)}/keys", query={"cursor": cursor, "limit": limit})

    def get_nodes_node_keys_name(self, node: str, name: str) -> Answer:
        """A key in escrow. Needs `fleet.read` (viewer, auditor, operator, approver, installer, admin) where the node is."""
        return self.call("GET", f"/nodes/{_segment(node)}/keys/{_segment(name)}")

    def put_nodes_node_keys_name(
        self,
        node: str,
        name: str,
        body: Mapping[str, object],
        *,
        dry_run: bool | None = None,
        if_match: str | None = None,
        if_none_match: str | None = None,
        key: str | None = None,
    ) -> Answer:
        """Put a sealed key in escrow. Needs `key.put` (installer, admin) where the node is."""
        return self.call(
            "PUT",
            f"/nodes/{_segment(node)}/keys/{_segment(name)}",
            query={"dry_run": dry_run},
            body=body,
            headers={"If-Match": if_match, "If-None-Match": if_none_match, "Idempotency-Key": _key(key)},
        )

    def post_nodes_node_keys_name_revoke(
        self,
        node: str,
        name: str,
        body: Mapping[str, object],
        *,
        dry_run: bool | None = None,
        key: str | None = None,
    ) -> Answer:
        """Revoke a key for good. Needs `key.revoke` (operator, admin) where the node is."""
        return self.call(
            "POST",
            f"/nodes/{_segment(node)}/keys/{_segment(name)}/revoke",
            query={"dry_run": dry_run},
            body=body,
            headers={"Idempotency-Key": _key(key)},
        )

    def get_grants(
        self,
        *,
        cursor: str | None = None,
        limit: int | None = None,
        node: str | None = None,
        site: str | None = None,
        all: bool | None = None,
    ) -> Answer:
        """List grants. Needs `fleet.read` (viewer, auditor, operator, approver, installer, admin) and shows no more than the sites that it is for."""
        return self.call(
            "GET", "/grants", query={"cursor": cursor, "limit": limit, "node": node, "site": site, "all": all}
        )

    def post_grants(
        self, body: Mapping[str, object], *, dry_run: bool | None = None, key: str | None = None
    ) -> Answer:
        """Ask for access. Needs `grant.request` (operator, admin) where everything is that the body names."""
        return self.call(
            "POST", "/grants", query={"dry_run": dry_run}, body=body, headers={"Idempotency-Key": _key(key)}
        )

    def get_grants_grant(self, grant: int) -> Answer:
        """Look at one grant and its use. Needs `fleet.read` (viewer, auditor, operator, approver, installer, admin) where the grant is."""
        return self.call("GET", f"/grants/{_segment(grant)}")

    def post_grants_grant_approve(
        self, grant: int, body: Mapping[str, object], *, dry_run: bool | None = None, key: str | None = None
    ) -> Answer:
        """Approve a grant. Needs `grant.approve` (approver, admin) where the grant is."""
        return self.call(
            "POST",
            f"/grants/{_segment(grant)}/approve",
            query={"dry_run": dry_run},
            body=body,
            headers={"Idempotency-Key": _key(key)},
        )

    def post_grants_grant_revoke(
        self, grant: int, body: Mapping[str, object], *, dry_run: bool | None = None, key: str | None = None
    ) -> Answer:
        """Revoke a grant. Needs `grant.revoke` (operator, approver, admin) where the grant is."""
        return self.call(
            "POST",
            f"/grants/{_segment(grant)}/revoke",
            query={"dry_run": dry_run},
            body=body,
            headers={"Idempotency-Key": _key(key)},
        )

    def get_nodes_node_break_glass(self, node: str) -> Answer:
        """List a node's break-glass codes, without the codes. Needs `fleet.read` (viewer, auditor, operator, approver, installer, admin) where the node is."""
        return self.call("GET", f"/nodes/{_segment(node)}/break-glass")

    def post_nodes_node_break_glass(
        self, node: str, body: Mapping[str, object], *, dry_run: bool | None = None, key: str | None = None
    ) -> Answer:
        """Issue break-glass codes for a node; they are shown this once. Needs `break-glass.issue` (admin) where the node is."""
        return self.call(
            "POST",
            f"/nodes/{_segment(node)}/break-glass",
            query={"dry_run": dry_run},
            body=body,
            headers={"Idempotency-Key": _key(key)},
        )

    def post_nodes_node_break_glass_code_revoke(
        self,
        node: str,
        code: int,
        body: Mapping[str, object],
        *,
        dry_run: bool | None = None,
        key: str | None = None,
    ) -> Answer:
        """Revoke a break-glass code. Needs `break-glass.revoke` (operator, admin) where the node is."""
        return self.call(
            "POST",
            f"/nodes/{_segment(node)}/break-glass/{_segment(code)}/revoke",
            query={"dry_run": dry_run},
            body=body,
            headers={"Idempotency-Key": _key(key)},
        )

    def get_events(
        self,
        *,
        after: int | None = None,
        limit: int | None = None,
        node: str | None = None,
        site: str | None = None,
        newest_first: bool | None = None,
        wait_s: float | None = None,
    ) -> Answer:
        """List events from a cursor, or wait for the next. Needs `fleet.read` (viewer, auditor, operator, approver, installer, admin) and shows no more than the sites that it is for."""
        return self.call(
            "GET",
            "/events",
            query={
                "after": after,
                "limit": limit,
                "node": node,
                "site": site,
                "newest_first": newest_first,
                "wait_s": wait_s,
            },
        )

    def get_outlets(self) -> Answer:
        """List outlets. Needs `fleet.read` (viewer, auditor, operator, approver, installer, admin) for the whole fleet."""
        return self.call("GET", "/outlets")

    def post_outlets_outlet_retry(
        self, outlet: str, body: Mapping[str, object], *, dry_run: bool | None = None, key: str | None = None
    ) -> Answer:
        """Try a failing outlet at once. Needs `outlet.retry` (operator, admin) for the whole fleet."""
        return self.call(
            "POST",
            f"/outlets/{_segment(outlet)}/retry",
            query={"dry_run": dry_run},
            body=body,
            headers={"Idempotency-Key": _key(key)},
        )

    def get_outlets_outlet_dead_letters(
        self, outlet: str, *, cursor: str | None = None, limit: int | None = None
    ) -> Answer:
        """List what an outlet refused for good. Needs `fleet.read` (viewer, auditor, operator, approver, installer, admin) for the whole fleet."""
        return self.call(
            "GET", f"/outlets/{_segment(outlet)}/dead-letters", query={"cursor": cursor, "limit": limit}
        )

    def get_restore(self) -> Answer:
        """Whether a restored database waits for a person. Needs `fleet.read` (viewer, auditor, operator, approver, installer, admin) for the whole fleet."""
        return self.call("GET", "/restore")

    def get_restore_nodes(self, *, cursor: str | None = None, limit: int | None = None) -> Answer:
        """List nodes that are ahead of a restored database. Needs `fleet.read` (viewer, auditor, operator, approver, installer, admin) for the whole fleet."""
        return self.call("GET", "/restore/nodes", query={"cursor": cursor, "limit": limit})

    def post_restore_confirm(
        self, body: Mapping[str, object], *, dry_run: bool | None = None, key: str | None = None
    ) -> Answer:
        """Let a restored database go on as usual. Needs `restore.confirm` (admin) for the whole fleet."""
        return self.call(
            "POST",
            "/restore/confirm",
            query={"dry_run": dry_run},
            body=body,
            headers={"Idempotency-Key": _key(key)},
        )

    def get_audit(self, *, after: int | None = None, limit: int | None = None) -> Answer:
        """List what was done, by whom and why. Needs `audit.read` (auditor, admin) for the whole fleet."""
        return self.call("GET", "/audit", query={"after": after, "limit": limit})

    def get_audit_lines(self, *, after: int | None = None, limit: int | None = None) -> Answer:
        """Export the audit log, line by line as it is hashed. Needs `audit.read` (auditor, admin) for the whole fleet."""
        return self.call("GET", "/audit/lines", query={"after": after, "limit": limit})

    def get_audit_checkpoint(self) -> Answer:
        """Size and root of the audit log, signed now. Needs `audit.read` (auditor, admin) for the whole fleet."""
        return self.call("GET", "/audit/checkpoint")

    def get_audit_act_proof(self, act: int) -> Answer:
        """Prove one act to a third party. Needs `audit.read` (auditor, admin) for the whole fleet."""
        return self.call("GET", f"/audit/{_segment(act)}/proof")

    def get_audit_key(self) -> Answer:
        """The public key of the audit log. Needs `fleet.read` (viewer, auditor, operator, approver, installer, admin) at any site."""
        return self.call("GET", "/audit/key")

    def post_login(self, body: Mapping[str, object]) -> Answer:
        """Log in by password and code. No token is needed."""
        return self.call("POST", "/login", body=body)

    def post_login_setup(self, body: Mapping[str, object]) -> Answer:
        """What the authenticator of a new person must be given. No token is needed."""
        return self.call("POST", "/login/setup", body=body)

    def post_login_setup_confirm(self, body: Mapping[str, object]) -> Answer:
        """Choose a password, show the first code, and log in. No token is needed."""
        return self.call("POST", "/login/setup/confirm", body=body)

    def post_login_oidc_begin(self) -> Answer:
        """Where to log in with the issuer, and with which nonce. No token is needed."""
        return self.call("POST", "/login/oidc/begin")

    def post_login_oidc(self, body: Mapping[str, object]) -> Answer:
        """Log in by an ID token. No token is needed."""
        return self.call("POST", "/login/oidc", body=body)

    def post_logout(self, *, dry_run: bool | None = None, key: str | None = None) -> Answer:
        """End the session in use. Any valid token will do."""
        return self.call(
            "POST", "/logout", query={"dry_run": dry_run}, headers={"Idempotency-Key": _key(key)}
        )

    def put_me_password(self, body: Mapping[str, object]) -> Answer:
        """Replace one's own password. Any valid token will do."""
        return self.call("PUT", "/me/password", body=body)

    def get_me(self) -> Answer:
        """Who am I. Any valid token will do."""
        return self.call("GET", "/me")

    def post_me_tokens(
        self, body: Mapping[str, object], *, dry_run: bool | None = None, key: str | None = None
    ) -> Answer:
        """Make a token of one's own. Any valid token will do."""
        return self.call(
            "POST",
            "/me/tokens",
            query={"dry_run": dry_run},
            body=body,
            headers={"Idempotency-Key": _key(key)},
        )

    def get_tokens(self) -> Answer:
        """List tokens. Needs `people.read` (auditor, admin) and shows no more than the sites that it is for."""
        return self.call("GET", "/tokens")

    def post_tokens(
        self, body: Mapping[str, object], *, dry_run: bool | None = None, key: str | None = None
    ) -> Answer:
        """Make a token for a program. Needs `people.manage` (admin) wherever the body gives rights, and each of them."""
        return self.call(
            "POST", "/tokens", query={"dry_run": dry_run}, body=body, headers={"Idempotency-Key": _key(key)}
        )

    def get_tokens_token_rights(self, token: str) -> Answer:
        """The rights of a token. Needs `people.read` (auditor, admin) where the token is."""
        return self.call("GET", f"/tokens/{_segment(token)}/rights")

    def put_tokens_token_rights(
        self,
        token: str,
        body: Mapping[str, object],
        *,
        dry_run: bool | None = None,
        if_match: str | None = None,
        key: str | None = None,
    ) -> Answer:
        """Replace the rights of a token. Needs `people.manage` (admin) where the token is."""
        return self.call(
            "PUT",
            f"/tokens/{_segment(token)}/rights",
            query={"dry_run": dry_run},
            body=body,
            headers={"If-Match": if_match, "Idempotency-Key": _key(key)},
        )

    def post_tokens_token_renew(
        self, token: str, body: Mapping[str, object], *, dry_run: bool | None = None, key: str | None = None
    ) -> Answer:
        """Make a new secret for a token. Needs `people.manage` (admin) where the token is."""
        return self.call(
            "POST",
            f"/tokens/{_segment(token)}/renew",
            query={"dry_run": dry_run},
            body=body,
            headers={"Idempotency-Key": _key(key)},
        )

    def delete_tokens_token(
        self, token: str, *, dry_run: bool | None = None, if_match: str | None = None, key: str | None = None
    ) -> Answer:
        """Revoke a token. Needs `people.manage` (admin) where the token is."""
        return self.call(
            "DELETE",
            f"/tokens/{_segment(token)}",
            query={"dry_run": dry_run},
            headers={"If-Match": if_match, "Idempotency-Key": _key(key)},
        )

    def get_users(self) -> Answer:
        """List people who log in here. Needs `people.read` (auditor, admin) and shows no more than the sites that it is for."""
        return self.call("GET", "/users")

    def post_users(
        self, body: Mapping[str, object], *, dry_run: bool | None = None, key: str | None = None
    ) -> Answer:
        """Make a person. Needs `people.manage` (admin) wherever the body gives rights, and each of them."""
        return self.call(
            "POST", "/users", query={"dry_run": dry_run}, body=body, headers={"Idempotency-Key": _key(key)}
        )

    def get_users_user_rights(self, user: str) -> Answer:
        """The rights of a person. Needs `people.read` (auditor, admin) where the user is."""
        return self.call("GET", f"/users/{_segment(user)}/rights")

    def put_users_user_rights(
        self,
        user: str,
        body: Mapping[str, object],
        *,
        dry_run: bool | None = None,
        if_match: str | None = None,
        key: str | None = None,
    ) -> Answer:
        """Replace the rights of a person. Needs `people.manage` (admin) where the user is."""
        return self.call(
            "PUT",
            f"/users/{_segment(user)}/rights",
            query={"dry_run": dry_run},
            body=body,
            headers={"If-Match": if_match, "Idempotency-Key": _key(key)},
        )

    def post_sessions_end(
        self, body: Mapping[str, object], *, dry_run: bool | None = None, key: str | None = None
    ) -> Answer:
        """End every session of a person. Needs `people.manage` (admin) for the whole fleet."""
        return self.call(
            "POST",
            "/sessions/end",
            query={"dry_run": dry_run},
            body=body,
            headers={"Idempotency-Key": _key(key)},
        )

    def post_users_user_disable(
        self, user: str, body: Mapping[str, object], *, dry_run: bool | None = None, key: str | None = None
    ) -> Answer:
        """Shut a person out. Needs `people.manage` (admin) where the user is."""
        return self.call(
            "POST",
            f"/users/{_segment(user)}/disable",
            query={"dry_run": dry_run},
            body=body,
            headers={"Idempotency-Key": _key(key)},
        )

    def post_users_user_enable(
        self, user: str, body: Mapping[str, object], *, dry_run: bool | None = None, key: str | None = None
    ) -> Answer:
        """Let a disabled person log in again. Needs `people.manage` (admin) where the user is."""
        return self.call(
            "POST",
            f"/users/{_segment(user)}/enable",
            query={"dry_run": dry_run},
            body=body,
            headers={"Idempotency-Key": _key(key)},
        )

    def post_users_user_reset(
        self, user: str, body: Mapping[str, object], *, dry_run: bool | None = None, key: str | None = None
    ) -> Answer:
        """Forget password, codes and sessions of a person. Needs `people.manage` (admin) where the user is."""
        return self.call(
            "POST",
            f"/users/{_segment(user)}/reset",
            query={"dry_run": dry_run},
            body=body,
            headers={"Idempotency-Key": _key(key)},
        )

    def post_users_user_unlock(
        self, user: str, body: Mapping[str, object], *, dry_run: bool | None = None, key: str | None = None
    ) -> Answer:
        """Forget wrong tries under a person's name. Needs `people.manage` (admin) where the user is."""
        return self.call(
            "POST",
            f"/users/{_segment(user)}/unlock",
            query={"dry_run": dry_run},
            body=body,
            headers={"Idempotency-Key": _key(key)},
        )


def _answer(reply: http.client.HTTPResponse, content: bytes) -> Answer:
    value = json.loads(content) if content and "json" in reply.headers.get("Content-Type", "") else None
    if reply.status >= 400:
        told = value if isinstance(value, dict) else {}
        wait = reply.headers.get("Retry-After", "0")
        code = str(told.get("code", f"http.{reply.status}"))
        raise Problem(reply.status, code, str(told.get("detail", "")), int(wait) if wait.isdigit() else 0)
    rehearsed = reply.headers.get("Ringfence-Dry-Run") == "true"
    return Answer(value, reply.headers.get("ETag", ""), rehearsed)


def _text(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _segment(name: object) -> str:
    """One segment of a path. Nothing named never means everything."""
    if name == "":
        raise ValueError("an empty name names nothing")
    return quote(str(name), safe="")


def _key(given: str | None) -> str:
    return given or secrets.token_urlsafe(24)
