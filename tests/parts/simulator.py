"""A fleet of nodes that speak the real protocol over real TLS and WebSocket, many to one process.

Only the TPM is imagined (`tests.parts.softtpm`); keys, enrolment, client certificates, nonces, quotes and reports are
what the controller would see of real agents. Nothing here checks what the controller says: that is the agent's part.

    python -m tests.parts.simulator --controller URL --ca FILE --fleet FILE --interval 60 --seconds 120 --out FILE

reads a fleet made by `save_fleet`, reports for so long, and writes one JSON document (`Result`). With `--interval 0`
every node reports again as soon as it is answered.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import hashlib
import json
import random
import resource
import ssl
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import aiohttp
import msgspec
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from contract import messages, wire
from contract.binding import QUOTED_PCRS, enrolment_proof_message, qualifying_data
from contract.enrolment import ek_digest, proof
from tests.parts import imalog
from tests.parts.softtpm import SoftTpm, new_scalar
from tests.parts.swtpm import measurements

_HANDSHAKES_AT_ONCE = 16


class Identity(msgspec.Struct):
    """What one imagined machine keeps."""

    name: str
    site: str
    ek: bytes
    ak: bytes
    tls_key: bytes = b""
    """PEM."""
    chain: bytes = b""
    """PEM; empty until enrolled."""
    number: int = 0
    """Of its last report."""


class Result(msgspec.Struct):
    """What one run measured."""

    nodes: int
    reports: int
    seconds: float
    latencies_ms: list[float]
    """From before the frame was sent to after the answer came, quote included in neither."""
    tiers: dict[str, int]
    failures: list[str]
    client_cpu_s: float


def new_fleet(site: str, count: int, *, first: int = 0) -> list[Identity]:
    """Make nodes that have not enrolled yet, named `sim-00000` and on."""
    return [Identity(f"sim-{n:05}", site, new_scalar(), new_scalar()) for n in range(first, first + count)]


def save_fleet(fleet: Sequence[Identity], path: Path) -> None:
    """Keep a fleet for other processes."""
    path.write_bytes(msgspec.msgpack.encode(fleet))


def load_fleet(path: Path) -> list[Identity]:
    """Read what `save_fleet` wrote."""
    return msgspec.msgpack.decode(path.read_bytes(), type=list[Identity])


def ek_id(identity: Identity) -> str:
    """Return the id under which the controller expects this EK."""
    return ek_digest(SoftTpm(identity.ek, identity.ak).ek_public)


def replayed(event_log: bytes) -> dict[int, bytes]:
    """Return the quoted PCRs after a boot with this log (none of our logs sets a start locality)."""
    values = {pcr: bytes(32) for pcr in QUOTED_PCRS}
    for pcr, digest in measurements(event_log):
        if pcr in values:
            values[pcr] = hashlib.sha256(values[pcr] + digest).digest()
    return values


def client_context(ca: str, identity: Identity | None = None) -> ssl.SSLContext:
    """Return a TLS client context that believes one CA, with the node's certificate where there is one."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(cadata=ca)
    if identity is not None:
        with tempfile.NamedTemporaryFile() as both:
            both.write(identity.tls_key + identity.chain)
            both.flush()
            context.load_cert_chain(both.name)
    return context


async def enrol(session: aiohttp.ClientSession, url: str, ca: str, identity: Identity) -> None:
    """Enrol one node whose EK is expected; raises RuntimeError with the controller's words when refused."""
    tpm = SoftTpm(identity.ek, identity.ak)
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, identity.name)])
    csr = x509.CertificateSigningRequestBuilder().subject_name(name).sign(key, hashes.SHA256())
    der = csr.public_bytes(serialization.Encoding.DER)
    context = client_context(ca)

    async def ask(path: str, message: object) -> object:
        async with session.post(url + path, data=wire.encode(message), ssl=context) as response:
            return wire.decode(await response.read(), messages.EnrolReply, max_bytes=messages.MAX_ENROL_BYTES)

    begin = messages.EnrolBegin(
        node=identity.name, site=identity.site, ek_public=tpm.ek_public, ak_public=tpm.ak_public, csr=der
    )
    challenge = await ask(messages.ENROL_BEGIN_PATH, begin)
    if not isinstance(challenge, messages.EnrolChallenge):
        raise RuntimeError(f"{identity.name}: {challenge}")  # noqa: TRY004
    secret = tpm.activate(challenge.credential_blob, challenge.encrypted_secret)
    message = enrolment_proof_message(
        enrolment=challenge.enrolment,
        node=identity.name,
        ek_public=tpm.ek_public,
        ak_public=tpm.ak_public,
        csr=der,
    )
    finish = messages.EnrolFinish(enrolment=challenge.enrolment, proof=proof(secret, message))
    approved = await ask(messages.ENROL_FINISH_PATH, finish)
    if not isinstance(approved, messages.EnrolApproved):
        raise RuntimeError(f"{identity.name}: {approved}")  # noqa: TRY004
    identity.chain = approved.chain
    identity.tls_key = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


async def enrol_all(url: str, ca: str, fleet: Sequence[Identity]) -> None:
    """Enrol a fleet, a few at a time."""
    slots = asyncio.Semaphore(_HANDSHAKES_AT_ONCE)
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0, force_close=True)) as session:

        async def one(identity: Identity) -> None:
            async with slots:
                await enrol(session, url, ca, identity)

        async with asyncio.TaskGroup() as tasks:
            for identity in fleet:
                tasks.create_task(one(identity))


class Node:
    """One connected node."""

    def __init__(
        self, identity: Identity, event_log: bytes, pcrs: dict[int, bytes], ima_log: bytes | None = None
    ) -> None:
        """`ima_log` None: the machine has no IMA."""
        self.identity = identity
        self.event_log = event_log
        self.log_sha256 = hashlib.sha256(event_log).digest()
        self.pcrs = pcrs
        self.ima_log: bytes | None = None
        self.ima_offset: int | None = None
        if ima_log is not None:
            self.measure(ima_log)
        self.tpm = SoftTpm(identity.ek, identity.ak)
        leaf = x509.load_pem_x509_certificate(identity.chain)
        self.certificate_sha256 = hashlib.sha256(leaf.public_bytes(serialization.Encoding.DER)).digest()
        self.boot_id = hashlib.sha256(identity.name.encode()).hexdigest()[:32]
        self.nonce = b""
        self.log_wanted = True
        self.directive = 0
        self.posture: messages.Posture = "normal"
        self.baseline: messages.BaselineRef | None = None
        self.fenced: list[str] = []
        self.tier: str = "none"
        self.isolated = asyncio.Event()
        self._socket: aiohttp.ClientWebSocketResponse | None = None

    async def connect(self, session: aiohttp.ClientSession, url: str, ca: str) -> None:
        """Open the session and take the first nonce."""
        self._socket = await session.ws_connect(
            url + messages.SESSION_PATH,
            ssl=client_context(ca, self.identity),
            protocols=(messages.PROTOCOL,),
            max_msg_size=messages.MAX_FRAME_BYTES,
            compress=0,
        )
        await self._next(messages.Hello)

    def measure(self, lines: bytes) -> None:
        """Run what these IMA records tell of."""
        self.ima_log = (self.ima_log or b"") + lines
        self.pcrs = {**self.pcrs, imalog.PCR: imalog.pcr10(lines, self.pcrs[imalog.PCR])}

    async def close(self) -> None:
        """Leave."""
        if self._socket is not None:
            await self._socket.close()

    def report(self, **changes: object) -> messages.Report:
        """Return the next report, quoted; `changes` replace fields of the body."""
        self.identity.number += 1
        chunk = None
        if self.ima_log is not None and self.ima_offset is not None:
            chunk = self.ima_log[self.ima_offset :][: messages.MAX_IMA_CHUNK_BYTES]
        fields: dict[str, object] = {
            "node": self.identity.name,
            "number": self.identity.number,
            "boot_id": self.boot_id,
            "at": time.time(),
            "uptime_s": time.monotonic(),
            "agent_version": "0.1.0",
            "posture": self.posture,
            "baseline": self.baseline,
            "directive_number": self.directive,
            "fenced": self.fenced,
            "addresses": [self.address],
            "event_log_sha256": self.log_sha256,
            "ima_offset": self.ima_offset or 0,
            "ima_bytes": None if chunk is None else len(chunk),
            **changes,
        }
        body = wire.encode(msgspec.convert(fields, messages.ReportBody))
        data = qualifying_data(
            nonce=self.nonce,
            node=self.identity.name,
            certificate_sha256=self.certificate_sha256,
            body=body,
            event_log_sha256=self.log_sha256,
        )
        quote, signature = self.tpm.quote(data, self.pcrs, clock_ms=int(time.monotonic() * 1000))
        return messages.Report(
            body=body,
            quote=quote,
            signature=signature,
            pcrs=self.pcrs,
            event_log=self.event_log if self.log_wanted else None,
            ima_log=chunk,
        )

    @property
    def address(self) -> str:
        """Return an address of its own, from the benchmarking network (RFC 2544, 198.18.0.0/15)."""
        number = int(self.identity.name.rpartition("-")[2])
        return f"198.18.{number // 250}.{number % 250 + 1}"

    async def exchange(self, report: messages.Report) -> float:
        """Send one report and return the milliseconds until its answer. Raises ConnectionError when refused.

        Where more of the logs is wanted, that is sent and counted too.
        """
        assert self._socket is not None
        frame = wire.encode(report)
        before = time.perf_counter()
        while True:
            await self._socket.send_bytes(frame)
            answer = await self._next(messages.Answer)
            assert isinstance(answer, messages.Answer)
            if answer.number:
                return (time.perf_counter() - before) * 1000
            await self._next(messages.Challenge)
            frame = wire.encode(self.report())

    async def listen(self) -> None:
        """Take orders until the controller closes; for nodes that wait to be told."""
        while True:
            await self._next(messages.Refused)

    async def _next(self, wanted: type[messages.Message]) -> messages.Message:
        assert self._socket is not None
        while True:
            got = await self._socket.receive()
            if got.type is not aiohttp.WSMsgType.BINARY:
                raise ConnectionError(f"{self.identity.name}: {got.type.name} {got.data!r} {got.extra!r}")
            message = wire.decode(got.data, messages.FromController, max_bytes=messages.MAX_FRAME_BYTES)
            if isinstance(message, messages.Refused):
                raise ConnectionError(f"{self.identity.name}: {message.code} {message.detail}")
            self.take(message)
            if isinstance(message, messages.Hello | messages.Answer | messages.Order) and message.directive:
                self._obey(message.directive)
            if isinstance(message, wanted):
                return message

    def take(self, message: messages.Message) -> None:
        """Take down the next nonce and what is to come with it."""
        if isinstance(message, messages.Answer):
            self.tier = message.tier
        if isinstance(message, messages.Hello | messages.Answer):
            self.log_wanted, self.ima_offset = message.event_log_wanted, message.ima_offset
        if isinstance(message, messages.Hello | messages.Answer | messages.Challenge):
            self.nonce = message.nonce

    def _obey(self, envelope: bytes) -> None:
        payload = json.loads(base64.b64decode(json.loads(envelope)["payload"]))
        self.directive = payload["number"]
        self.posture = payload["posture"]
        if wanted := payload.get("baseline"):
            self.baseline = messages.BaselineRef(
                name=wanted["name"], version=wanted["version"], sha256=bytes.fromhex(wanted["sha256"])
            )
        self.fenced = [
            address
            for response in payload.get("responses", [])
            if response["name"] == "fence"
            for address in response.get("addresses", [])
        ]
        if self.posture == "isolated":
            self.isolated.set()


async def drive(
    url: str, ca: str, fleet: Sequence[Identity], event_log: bytes, *, interval_s: float, seconds: float
) -> Result:
    """Connect every node, then report for `seconds`; `interval_s` 0 means as fast as answers come."""
    pcrs = replayed(event_log)
    nodes = [Node(identity, event_log, pcrs) for identity in fleet]
    latencies: list[float] = []
    failures: list[str] = []
    slots = asyncio.Semaphore(_HANDSHAKES_AT_ONCE)
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:

        async def begin(node: Node) -> None:
            async with slots:
                await node.connect(session, url, ca)
                await node.exchange(node.report())  # the one with the boot log

        await asyncio.gather(*(begin(node) for node in nodes))
        print("connected", file=sys.stderr, flush=True)
        started = time.perf_counter()
        cpu = time.process_time()

        async def go_on(node: Node) -> None:
            at = started + (random.random() * interval_s)
            try:
                while True:
                    await asyncio.sleep(max(0.0, min(at, started + seconds) - time.perf_counter()))
                    if time.perf_counter() - started >= seconds:
                        return
                    latencies.append(await node.exchange(node.report()))
                    at += interval_s
            except (ConnectionError, aiohttp.ClientError) as error:
                failures.append(str(error))

        await asyncio.gather(*(go_on(node) for node in nodes))
        took = time.perf_counter() - started
        cpu = time.process_time() - cpu
        await asyncio.gather(*(node.close() for node in nodes))
    tiers: dict[str, int] = {}
    for node in nodes:
        tiers[node.tier] = tiers.get(node.tier, 0) + 1
    return Result(len(nodes), len(latencies), took, latencies, tiers, failures[:20], cpu)


def main() -> None:
    """Drive a saved fleet and write the result; the numbers of the reports are kept in the file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--controller", required=True)
    parser.add_argument("--ca", required=True, type=Path)
    parser.add_argument("--fleet", required=True, type=Path)
    parser.add_argument("--event-log", required=True, type=Path)
    parser.add_argument("--interval", type=float, default=60.0)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--out", required=True, type=Path)
    options = parser.parse_args()
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    fleet = load_fleet(options.fleet)
    work = drive(
        options.controller,
        options.ca.read_text(),
        fleet,
        options.event_log.read_bytes(),
        interval_s=options.interval,
        seconds=options.seconds,
    )
    try:
        import uvloop

        result = uvloop.run(work)
    except ImportError:
        result = asyncio.run(work)
    save_fleet(fleet, options.fleet)
    options.out.write_bytes(msgspec.json.encode(result))


if __name__ == "__main__":
    main()
