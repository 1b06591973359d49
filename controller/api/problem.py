"""Errors as RFC 9457 problem details. The detail is a Rejected's, which never holds a secret; a bug shows nothing."""

from __future__ import annotations

from msgspec import Struct

from contract.errors import Rejected

CONTENT_TYPE = "application/problem+json"

STATUS_BY_CODE = {
    "token.missing": 401,
    "token.invalid": 401,
    "role.insufficient": 403,
    "scope.insufficient": 403,
    "rights.beyond": 403,
    "token.nobodys": 403,
    "token.anothers": 403,
    "login.refused": 401,
    "login.no-rights": 403,
    "oidc.token": 401,
    "oidc.algorithm": 401,
    "oidc.key": 401,
    "oidc.signature": 401,
    "oidc.claims": 401,
    "oidc.issuer": 401,
    "oidc.audience": 401,
    "oidc.expired": 401,
    "oidc.time": 401,
    "oidc.nonce": 401,
    "oidc.name": 401,
    "oidc.groups": 401,
    "oidc.unreachable": 503,
    "oidc.discovery": 503,
    "oidc.keys": 503,
    "login.setup": 401,
    "login.locked": 429,
    "login.busy": 503,
    "route.unknown": 404,
    "method.refused": 405,
    "body.too-large": 413,
    "message.too-large": 413,
    "bundle.too-large": 413,
    "body.encoding": 415,
    "body.type": 415,
    "body.slow": 408,
    "limit.failures": 429,
    "limit.requests": 429,
    "store.unavailable": 503,
    "match.malformed": 400,
    "match.none": 400,
    "match.stale": 412,
    "match.missing": 428,
    "idempotency.key": 400,
    "idempotency.pending": 409,
    "idempotency.unanswered": 409,
    "idempotency.full": 429,
    "internal": 500,
    "query.malformed": 400,
    "body.malformed": 400,
    "name.invalid": 400,
    "path.number": 400,
}
_STATUS_BY_ENDING = {
    ".unknown": 404,
    ".exists": 409,
    ".decided": 409,
    ".identity-conflict": 409,
    ".ek-in-use": 409,
    ".closed": 409,
    ".none": 409,
    ".older": 409,
    ".changed": 409,
    ".no-candidate": 409,
    ".last-admin": 409,
    ".reserved": 409,
    ".same-person": 409,
    ".too-many": 409,
}
TOLD_BY_SENSE = 422
"""What fits the document, and is refused for what it says: only the request's sense tells, not its shape."""
RETRY_S = {429: "60", 503: "5"}
"""Retry-After where nothing better is known."""
TITLES = {
    400: "The request was refused",
    401: "A valid token is needed",
    403: "Your rights do not allow this",
    404: "There is no such thing",
    405: "Not that way",
    408: "The request came too slowly",
    409: "That does not fit the present state",
    412: "It is no longer what you have seen",
    413: "The request is too large",
    415: "The request is of the wrong kind",
    422: "What is asked for cannot be",
    428: "Say what you have seen",
    429: "Too many for now; wait",
    500: "The controller has a fault; its log says more",
    503: "The controller cannot do this now",
}


class Problem(Struct, frozen=True, kw_only=True):
    """Problem details (RFC 9457, clause 3.1), with our stable code beside them."""

    type: str
    title: str
    status: int
    code: str
    detail: str = ""


def status_of(code: str) -> int:
    """Return the HTTP status of a code of ours; 422 unless the code says otherwise."""
    status = STATUS_BY_CODE.get(code)
    if status is None:
        ending = code[code.rfind(".") :] if "." in code else ""
        status = _STATUS_BY_ENDING.get(ending, TOLD_BY_SENSE)
    return status


def problem_of(error: Rejected) -> Problem:
    """Return what the asker is told."""
    status = status_of(error.code)
    title = TITLES[status]
    return Problem(
        type=f"urn:ringfence:error:{error.code}",
        title=title,
        status=status,
        code=error.code,
        detail=error.detail,
    )


def bug() -> Problem:
    """What is told of a fault of ours: nothing."""
    return problem_of(Rejected("internal"))
