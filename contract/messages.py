"""Everything that travels between agent and controller, besides signed files.

The session is a WebSocket (binary frames, MessagePack, one message a frame) that the agent opens over
mutual TLS at SESSION_PATH. Controller: Hello. Agent: Report. Controller: Answer, whose nonce the next
Report uses. At any time the controller may send Order (a directive that cannot wait) or Challenge
(report now). Enrolment is plain HTTPS POST of the same encoding, without a client certificate.
"""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, Struct

PROTOCOL = "ringfence.2"
"""WebSocket subprotocol: both sides close where the other does not speak it. Since 2 a report leaves out known PCRs."""
SESSION_PATH = "/v1/session"
ENROL_BEGIN_PATH = "/v1/enrol/begin"
ENROL_FINISH_PATH = "/v1/enrol/finish"
METADATA_PATH = "/v1/metadata"
TARGETS_PATH = "/v1/targets"

MAX_FRAME_BYTES = 3 * 1024 * 1024
MAX_BODY_BYTES = 512 * 1024
MAX_EVENT_LOG_BYTES = 1024 * 1024
MAX_IMA_CHUNK_BYTES = 1024 * 1024
MAX_QUOTE_BYTES = 1024
MAX_SIGNATURE_BYTES = 1024
MAX_ENROL_BYTES = 64 * 1024
MAX_CHAIN_BYTES = 16 * 1024
MAX_DEVIDS = 4
MAX_EVENTS_PER_REPORT = 256
MAX_DRIFTS_PER_REPORT = 512
MAX_PACKAGES_PER_REPORT = 256
MAX_PATHS_PER_PACKAGE = 1024
MAX_KEYS_WANTED = 4
MAX_DROPPED_PER_REPORT = 8
MAX_KEY_BYTES = 4096
MAX_INVENTORY_BYTES = 1024 * 1024
MAX_SOCKETS_BYTES = 512 * 1024
NONCE_BYTES = 32

Name = Annotated[str, Meta(min_length=1, max_length=63, pattern=r"\A[a-z0-9]([a-z0-9-]*[a-z0-9])?\Z")]
Digest = Annotated[bytes, Meta(min_length=32, max_length=32)]
Line = Annotated[str, Meta(max_length=256)]
Text = Annotated[str, Meta(max_length=2048)]
Count = Annotated[int, Meta(ge=0, le=2**53)]
Seconds = Annotated[float, Meta(ge=0, le=2**40)]
Posture = Literal["normal", "isolated", "maintenance"]
Mode = Literal["observe", "enforce"]
Severity = Literal["info", "warning", "critical"]
Tier = Literal["affirming", "warning", "contraindicated", "none"]


class Message(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """Base of what is on the wire: immutable, by keyword, unknown fields refused."""


class Drift(Message, frozen=True, kw_only=True):
    """One way in which the node differs from its baseline; `found` of "?" means it could not be looked at."""

    section: Line
    key: Line
    wanted: Text
    found: Text
    since: Seconds
    """Node's wall clock, seconds since 1970."""
    repaired: bool = False
    culprit: Text = ""
    """The process that did it, where the kernel tells: "nft (pid 4242, uid 0): nft flush ruleset"."""


class Event(Message, frozen=True, kw_only=True):
    """Something that happened on the node, in the order of `seq`, kept until the controller has acknowledged it."""

    seq: Count
    at: Seconds
    kind: Line
    """Dotted and stable: `firewall.healed`, `usb.refused`, `baseline.reverted`, `directive.refused`."""
    severity: Severity
    summary: Text
    detail: dict[Line, Text] = {}


class BaselineRef(Message, frozen=True, kw_only=True):
    """A signed baseline, by content."""

    name: Name
    version: Count
    sha256: Digest


class PackageChange(Message, frozen=True, kw_only=True):
    """A package that was installed, upgraded or removed: in this boot, with its files that IMA has measured since; or one of
    which something is measured at boot (`contract.nodeword`), without files."""

    name: Line
    before: Line = ""
    """Version; empty when it was not installed, or when nobody knows."""
    after: Line = ""
    """Version; empty when it was removed."""
    at: Seconds = 0.0
    """Node's wall clock, seconds since 1970."""
    files: Annotated[dict[Text, Digest], Meta(max_length=MAX_PATHS_PER_PACKAGE)] = {}
    """Path, as the log's new lines name it, to the SHA-256 that the package database vouches for."""


class KeyWanted(Message, frozen=True, kw_only=True):
    """A disk key held in escrow is wanted. Inside the report, so that the quote vouches for who asks (contract.escrow)."""

    name: Name
    ephemeral: Digest
    """X25519 public key, made for this one request and kept in the agent's memory only."""


class Dropped(Message, frozen=True, kw_only=True):
    """What one named counter of the firewall dropped since the last report that was answered."""

    counter: Line
    packets: Count
    bytes: Count


class ReportBody(Message, frozen=True, kw_only=True):
    """The agent's report. Its bytes travel opaque inside Report and the quote covers them."""

    node: Name
    number: Count
    boot_id: Line
    at: Seconds
    uptime_s: Seconds
    agent_version: Line
    posture: Posture
    baseline: BaselineRef | None = None
    """In force and confirmed; None while the packaged lock-down rules hold the node."""
    pending: BaselineRef | None = None
    """In force but not confirmed yet: this very report is its confirmation."""
    directive_number: Count = 0
    """The highest number ever accepted."""
    fenced: Annotated[list[Line], Meta(max_length=4096)] = []
    addresses: Annotated[list[Line], Meta(max_length=256)] = []
    drifts: Annotated[list[Drift], Meta(max_length=MAX_DRIFTS_PER_REPORT)] = []
    events: Annotated[list[Event], Meta(max_length=MAX_EVENTS_PER_REPORT)] = []
    events_dropped: Count = 0
    event_log_sha256: Annotated[bytes, Meta(max_length=32)] = b""
    """SHA-256 of the firmware log as the agent holds it; empty when the machine has none."""
    ima_offset: Count = 0
    """Offset in the IMA log, in bytes, of the first byte that travels with this report."""
    ima_bytes: Count | None = None
    """How many bytes were there from `ima_offset` on when this was written, at most a chunk; None when the machine has
    no IMA log, or nobody asked."""
    packages: Annotated[list[PackageChange], Meta(max_length=MAX_PACKAGES_PER_REPORT)] = []
    os_release: Line = ""
    """Operating system, `ID` and `VERSION_ID` of its os-release: `debian 12`. Empty where the machine does not say."""
    keys_wanted: Annotated[list[KeyWanted], Meta(max_length=MAX_KEYS_WANTED)] = []
    dropped: Annotated[list[Dropped], Meta(max_length=MAX_DROPPED_PER_REPORT)] = []
    """Most packets first; only counters that counted, so that a quiet node sends none."""
    inventory_sha256: Annotated[bytes, Meta(max_length=32)] = b""
    """Of the inventory as it is now (contract.inventory): said once a session, and again when it has changed."""


class Report(Message, frozen=True, kw_only=True, tag="report"):
    """Evidence (RFC 9334, clause 8.1): what the TPM signed, and what it was signed over."""

    body: Annotated[bytes, Meta(max_length=MAX_BODY_BYTES)]
    quote: Annotated[bytes, Meta(max_length=MAX_QUOTE_BYTES)]
    """TPMS_ATTEST."""
    signature: Annotated[bytes, Meta(max_length=MAX_SIGNATURE_BYTES)]
    """TPMT_SIGNATURE."""
    pcrs: Annotated[dict[int, Digest], Meta(max_length=24)] = {}
    """SHA-256 bank; unsigned side data, worth only what the quote's digest makes of it. A PCR that is not in here has the
    value that the last report of this session had which was answered by its number; after a Challenge all are shown anew."""
    event_log: Annotated[bytes, Meta(max_length=MAX_EVENT_LOG_BYTES)] | None = None
    """Only when the controller asked for it: once a boot."""
    ima_log: Annotated[bytes, Meta(max_length=MAX_IMA_CHUNK_BYTES)] | None = None
    """The binary IMA log from `ima_offset`, read after the quote was made: to its end, or a whole chunk of it, which may
    end inside a line. The quote covers it by PCR 10 alone. None when it was not asked for or the machine has none."""


class Renew(Message, frozen=True, kw_only=True, tag="renew"):
    """Ask for a new client certificate over a session that is already trusted. `csr` is DER (PKCS #10)."""

    csr: Annotated[bytes, Meta(max_length=8192)]


class Inventory(Message, frozen=True, kw_only=True, tag="inventory"):
    """Answer to an Answer that wants it: what the report named by its SHA-256."""

    packed: Annotated[bytes, Meta(max_length=MAX_INVENTORY_BYTES)]
    """Facts of contract.inventory, compressed (RFC 1950)."""


class Sockets(Message, frozen=True, kw_only=True, tag="sockets"):
    """Answer to SocketsWanted. No quote covers it."""

    report: Annotated[bytes, Meta(max_length=MAX_SOCKETS_BYTES)]
    """contract.sockets.SocketReport."""


class Hello(Message, frozen=True, kw_only=True, tag="hello"):
    """First message of a session."""

    node: Name
    nonce: Digest
    interval_s: Annotated[float, Meta(gt=0, le=86400)]
    event_log_wanted: bool = True
    ima_offset: Count | None = None
    """Where in the IMA log the next report goes on: up to here everything is known. None: nobody wants it."""
    directive: bytes | None = None


class Finding(Message, frozen=True, kw_only=True):
    """Why a tier is what it is. `code` as in Rejected."""

    code: Line
    detail: Text
    pcr: int | None = None
    event: int | None = None
    """Index in the firmware log, from 0."""


class Answer(Message, frozen=True, kw_only=True, tag="answer"):
    """What the controller made of one report."""

    number: Count
    nonce: Digest
    tier: Tier
    findings: list[Finding] = []
    events_acked: Count = 0
    """Every event with seq <= this is stored."""
    event_log_wanted: bool = False
    ima_offset: Count | None = None
    """As in Hello."""
    directive: Annotated[bytes, Meta(max_length=MAX_BODY_BYTES)] | None = None
    """A DSSE envelope; None when nothing changed since the number the report named."""
    inventory_wanted: bool = False
    """The inventory named last in this session is not here yet. Never asked of an agent that named none."""


class Order(Message, frozen=True, kw_only=True, tag="order"):
    """A directive that does not wait for the next report."""

    directive: Annotated[bytes, Meta(max_length=MAX_BODY_BYTES)]


class Challenge(Message, frozen=True, kw_only=True, tag="challenge"):
    """Report now. The nonce replaces the one outstanding; what was wanted of the logs is still wanted."""

    nonce: Digest


class SocketsWanted(Message, frozen=True, kw_only=True, tag="sockets-wanted"):
    """Tell your open connections: somebody plans other rules. Only to agents that have named an inventory, as older ones do not
    know it."""


class Certificate(Message, frozen=True, kw_only=True, tag="certificate"):
    """Answer to Renew: leaf first, PEM."""

    chain: Annotated[bytes, Meta(max_length=16384)]


class SealedKey(Message, frozen=True, kw_only=True):
    """A key as it is held in escrow: worth nothing without the TPM *and* the controller's share (contract.escrow)."""

    credential_blob: Annotated[bytes, Meta(max_length=1024)]
    """TPM2B_ID_OBJECT."""
    encrypted_secret: Annotated[bytes, Meta(max_length=1024)]
    """TPM2B_ENCRYPTED_SECRET."""
    ciphertext: Annotated[bytes, Meta(max_length=MAX_KEY_BYTES + 16)]


class KeyReleased(Message, frozen=True, kw_only=True, tag="key-released"):
    """Answer to a KeyWanted, after the Answer to the report that carried it."""

    name: Name
    sealed: SealedKey
    ephemeral: Digest
    """X25519 public key of the controller, made for this one answer."""
    share: Annotated[bytes, Meta(max_length=64)]
    """The controller's share, encrypted to both ephemeral keys."""


class KeyRefused(Message, frozen=True, kw_only=True, tag="key-refused"):
    """The key is not given out now."""

    name: Name
    code: Line
    detail: Text = ""


class Refused(Message, frozen=True, kw_only=True, tag="refused"):
    """The message before was refused; the session closes after it. The cure is for the log of the other side."""

    code: Line
    detail: Text = ""


FromAgent = Report | Renew | Inventory | Sockets
FromController = (
    Hello | Answer | Order | Challenge | SocketsWanted | Certificate | KeyReleased | KeyRefused | Refused
)


class EnrolBegin(Message, frozen=True, kw_only=True, tag="enrol-begin"):
    """First step of enrolment. Public areas are TPM2B_PUBLIC as the TPM gave them."""

    node: Name
    site: Name | None = None
    ek_public: Annotated[bytes, Meta(max_length=1024)]
    ak_public: Annotated[bytes, Meta(max_length=1024)]
    ek_certificate: Annotated[bytes, Meta(max_length=8192)] = b""
    """DER, with whatever NV padding the vendor left."""
    csr: Annotated[bytes, Meta(max_length=8192)]
    """DER (PKCS #10) of the TLS client key."""
    token: Annotated[str, Meta(max_length=128)] = ""
    """One-use enrolment token, if the technician was given one."""
    ek_chain: Annotated[bytes, Meta(max_length=MAX_CHAIN_BYTES)] = b""
    """Certificates between the EK's and a root, as the TPM's NV holds them (EK Credential Profile 2.5, 2.2.1.5.2)."""


class EnrolChallenge(Message, frozen=True, kw_only=True, tag="enrol-challenge"):
    """Answer to EnrolBegin: TPM2_ActivateCredential opens it only where EK and AK live together."""

    enrolment: Line
    credential_blob: Annotated[bytes, Meta(max_length=1024)]
    """TPM2B_ID_OBJECT."""
    encrypted_secret: Annotated[bytes, Meta(max_length=1024)]
    """TPM2B_ENCRYPTED_SECRET."""


class DevIdEvidence(Message, frozen=True, kw_only=True):
    """A device identity key of this TPM: its certificate, and the proof that it lives beside the AK (TPM2_Certify)."""

    certificate: Annotated[bytes, Meta(max_length=8192)]
    """DER, with whatever NV padding the maker left; further certificates may follow it."""
    public: Annotated[bytes, Meta(max_length=1024)]
    """TPM2B_PUBLIC of the key."""
    attest: Annotated[bytes, Meta(max_length=MAX_QUOTE_BYTES)]
    """TPMS_ATTEST over `binding.devid_qualifying_data`."""
    signature: Annotated[bytes, Meta(max_length=MAX_SIGNATURE_BYTES)]
    """TPMT_SIGNATURE, by `signer`."""
    signer: Literal["ak", "devid"] = "ak"
    """The AK certified the key; or the key, which then signs nothing but what the TPM made, certified the AK."""


class EnrolFinish(Message, frozen=True, kw_only=True, tag="enrol-finish"):
    """Second step, repeated while the answer is EnrolPending.

    `proof` is HMAC-SHA-256(key = activated secret, `binding.enrolment_proof_message`): the secret never travels back.
    """

    enrolment: Line
    proof: Digest
    devids: Annotated[list[DevIdEvidence], Meta(max_length=MAX_DEVIDS)] = []


class EnrolPending(Message, frozen=True, kw_only=True, tag="enrol-pending"):
    """The TPM is proved; a person must approve, or push the fleet's first baseline. Ask again after `retry_s`."""

    retry_s: Annotated[float, Meta(gt=0, le=3600)]
    waiting_for: Literal["approval", "first-baseline"]


class EnrolApproved(Message, frozen=True, kw_only=True, tag="enrol-approved"):
    """The node is in. Everything it needs to open sessions and to trust baselines and directives."""

    node: Name
    site: Name
    chain: Annotated[bytes, Meta(max_length=16384)]
    """Client certificate, leaf first, PEM."""
    directive_key: Annotated[bytes, Meta(max_length=256)]
    """Ed25519 public key of directives, SubjectPublicKeyInfo DER."""
    root_metadata: Annotated[bytes, Meta(max_length=65536)] = b""
    """The first trusted TUF root.json; ignored where the node's configuration pins one."""


EnrolReply = EnrolChallenge | EnrolPending | EnrolApproved | Refused


def never_more(text: str, limit: int) -> str:
    """Cut own text to a field's limit, visibly; for fields that quote the machine."""
    return text if len(text) <= limit else text[: limit - 1] + "…"
