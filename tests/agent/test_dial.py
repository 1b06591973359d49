"""The one network client: which controller it believes, and what it takes from it."""

from __future__ import annotations

import ipaddress
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from aiohttp import web
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from agent.config import AgentConfig, ControllerConfig, TpmConfig
from agent.dial import Dialler, trusting
from agent.store import Store
from agent.tpm import Tpm
from contract.errors import Rejected
from contract.messages import ENROL_BEGIN_PATH
from tests.parts.swtpm import SoftwareTpm


class Authority:
    """A CA with one server certificate."""

    def __init__(self, folder: Path, *, host: str = "127.0.0.1") -> None:
        folder.mkdir(parents=True)
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test CA")])
        self.ca = folder / "ca.pem"
        ca = self._built(
            name,
            name,
            key.public_key(),
            key,
            constraints=x509.BasicConstraints(ca=True, path_length=0),
            host=None,
        )
        self.ca.write_bytes(ca.public_bytes(serialization.Encoding.PEM))
        server = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "controller")])
        leaf = self._built(
            subject,
            name,
            server.public_key(),
            key,
            constraints=x509.BasicConstraints(ca=False, path_length=None),
            host=host,
        )
        pem = server.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        (folder / "server.pem").write_bytes(pem + leaf.public_bytes(serialization.Encoding.PEM))
        self.context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        self.context.load_cert_chain(folder / "server.pem")

    @staticmethod
    def _built(
        subject: x509.Name,
        issuer: x509.Name,
        public: ec.EllipticCurvePublicKey,
        key: ec.EllipticCurvePrivateKey,
        *,
        constraints: x509.BasicConstraints,
        host: str | None,
    ) -> x509.Certificate:
        now = datetime.now(UTC)
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(issuer)
            .public_key(public)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(hours=1))
            .not_valid_after(now + timedelta(hours=1))
            .add_extension(constraints, critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key()), critical=False
            )
        )
        if constraints.ca:
            usage = x509.KeyUsage(
                digital_signature=False,
                content_commitment=False,
                key_encipherment=False,
                data_encipherment=False,
                key_agreement=False,
                key_cert_sign=True,
                crl_sign=True,
                encipher_only=False,
                decipher_only=False,
            )
            builder = builder.add_extension(usage, critical=True)
        if host is not None:
            names = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(host))])
            builder = builder.add_extension(names, critical=False)
        return builder.sign(key, hashes.SHA256())


class Server:
    """Answers every path with what it was told to, and counts."""

    def __init__(self) -> None:
        self.asked = 0
        self.reply = web.Response(body=b"x")
        self.port = 0

    async def _handle(self, request: web.Request) -> web.Response:
        self.asked += 1
        return self.reply

    @asynccontextmanager
    async def running(self, context: ssl.SSLContext) -> AsyncIterator[None]:
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", self._handle)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context)
        await site.start()
        self.port = runner.addresses[0][1]
        try:
            yield
        finally:
            await runner.cleanup()


def dialler(tmp_path: Path, ca: Path, port: int, tcti: str = "") -> Dialler:
    config = AgentConfig(
        node="press-1",
        controller=ControllerConfig(url=f"https://127.0.0.1:{port}", ca=str(ca)),
        state_dir=str(tmp_path / "state"),
        tpm=TpmConfig(tcti=tcti),
    )
    return Dialler(config, Store(tmp_path / "state", "press-1"))


async def test_controller_of_another_ca_or_for_another_host_gets_not_one_request(tmp_path: Path) -> None:
    right, other = Authority(tmp_path / "right"), Authority(tmp_path / "other")
    elsewhere = Authority(tmp_path / "elsewhere", host="192.0.2.7")
    for server_side, believed in ((other, right.ca), (elsewhere, elsewhere.ca)):
        server = Server()
        async with server.running(server_side.context):
            dial = dialler(tmp_path, believed, server.port)
            async with dial.client(None, None) as http:
                with pytest.raises(ssl.SSLCertVerificationError):
                    await http.get("/v1/metadata/timestamp.json", max_bytes=100)
                with pytest.raises(ssl.SSLCertVerificationError):
                    async with http.websocket("/v1/session", subprotocol="x", max_bytes=100):
                        pass
        assert server.asked == 0
    server = Server()
    async with server.running(right.context):
        dial = dialler(tmp_path, right.ca, server.port)
        async with dial.client(None, None) as http:
            assert (await http.get("/", max_bytes=100)).status == 200


async def test_reply_over_its_limit_is_given_up(tmp_path: Path) -> None:
    authority, server = Authority(tmp_path / "ca"), Server()
    server.reply = web.Response(body=b"x" * 100_001)
    async with server.running(authority.context):
        dial = dialler(tmp_path, authority.ca, server.port)
        async with dial.client(None, None) as http:
            with pytest.raises(OSError, match="more than 100000 bytes"):
                await http.get("/", max_bytes=100_000)
            server.reply = web.Response(body=b"x" * 100_001)
            assert len((await http.get("/", max_bytes=100_001)).content) == 100_001


@pytest.mark.parametrize("case", ["garbage", "redirect", "busy"])
async def test_enrolment_takes_nothing_but_the_protocol(tmp_path: Path, case: str) -> None:
    authority, server = Authority(tmp_path / "ca"), Server()
    if case == "garbage":
        server.reply = web.Response(body=b"\x81\xa4type\xa3foo")
    elif case == "redirect":
        server.reply = web.Response(status=307, headers={"Location": ENROL_BEGIN_PATH})
    else:
        server.reply = web.Response(status=503)
    made = SoftwareTpm.manufacture(tmp_path / "tpm")
    with made:
        tpm = Tpm(made.tcti)
        async with server.running(authority.context):
            dial = dialler(tmp_path, authority.ca, server.port, made.tcti)
            with pytest.raises(OSError if case == "busy" else Rejected) as caught:
                await dial.enrol(tpm)
        tpm.close()
    if isinstance(caught.value, Rejected):
        assert caught.value.code == "enrol.malformed"
    assert server.asked == 1
    assert Store(tmp_path / "state", "press-1").enrolled() is None


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (None, "No such file"),
        (b"", "no certificate"),
        (b"-----BEGIN CERTIFICATE-----\nAAAA\n", "no certificate"),
    ],
)
def test_a_ca_that_cannot_be_read_is_named(tmp_path: Path, content: bytes | None, why: str) -> None:
    ca = tmp_path / "ca.pem"
    if content is not None:
        ca.write_bytes(content)
    with pytest.raises(OSError, match=rf"{ca}: {why}.*\[controller\] ca"):
        trusting(str(ca))
