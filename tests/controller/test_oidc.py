"""People whom an issuer vouches for: a real issuer over real TLS, and every way in which its word must not be believed."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hmac
import os
import ssl
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import msgspec
import pytest
import pytest_asyncio
from aiohttp import web
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from contract.errors import Rejected
from controller.config import GroupRight, Limits, OidcConfig, parse_config
from controller.idtoken import MAX_AGE_S, SKEW_S
from controller.oidc import MAX_DOCUMENT_BYTES
from tests.controller.live import Live, running
from tests.controller.terminal import environment
from tests.parts.issuer import CLIENT, Issuer, jwk_of, running_issuer

COMMAND = str(Path(sys.executable).parent / "ringfence")
TREE = str(Path(__file__).resolve().parents[2])
RIGHTS = [
    GroupRight(group="operators-factory", role="operator", sites=("factory",)),
    GroupRight(group="everybody", role="viewer", sites="all"),
    GroupRight(group="admins", role="admin", sites="all"),
]


@dataclass
class Plant:
    """A controller and the issuer that it trusts."""

    live: Live
    issuer: Issuer

    async def nonce(self) -> str:
        """Begin a login."""
        status, offer = await self.live.call("POST", "/api/v1/login/oidc/begin", role=None)
        assert status == 200, offer
        return str(offer["nonce"])

    async def bring(self, token: str) -> tuple[int, dict[str, object]]:
        """Bring an ID token."""
        return await self.live.call("POST", "/api/v1/login/oidc", {"id_token": token}, role=None)

    async def code_of(self, token: str) -> str:
        """What is said of an ID token."""
        status, answer = await self.bring(token)
        return str(answer.get("code", status))


@contextlib.asynccontextmanager
async def plant_at(folder: Path, **changes: object) -> AsyncIterator[Plant]:
    async with running_issuer(folder) as issuer:
        settings: dict[str, object] = {
            "issuer": issuer.url,
            "client_id": CLIENT,
            "ca": "issuer-ca.pem",
            "rights": RIGHTS,
            **changes,
        }
        config = msgspec.convert(settings, OidcConfig, from_attributes=True)
        async with running(folder, limits=Limits(logins_per_minute=1000), oidc=config) as live:
            yield Plant(live, issuer)


@pytest_asyncio.fixture
async def plant(tmp_path: Path) -> AsyncIterator[Plant]:
    async with plant_at(tmp_path) as made:
        yield made


def bearer(token: object) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


@pytest.mark.parametrize(
    ("kid", "algorithm"), [("rsa-1", "RS256"), ("rsa-1", "PS256"), ("ec-1", "ES256"), ("ed-1", "EdDSA")]
)
async def test_whom_the_issuer_vouches_for_has_the_rights_of_their_groups(
    plant: Plant, kid: str, algorithm: str
) -> None:
    claims = plant.issuer.claims(await plant.nonce(), groups=["operators-factory", "everybody", "cooks"])
    status, session = await plant.bring(plant.issuer.token(claims, kid=kid, algorithm=algorithm))
    assert (status, session["name"]) == (200, "oidc:248289761001")
    _, me = await plant.live.call("GET", "/api/v1/me", role=None, headers=bearer(session["token"]))
    assert me["rights"] == [
        {"role": "operator", "sites": ["factory"]},
        {"role": "viewer", "sites": "all"},
    ]
    status, _ = await plant.live.call(
        "POST",
        "/api/v1/sites/factory/isolate",
        {"reason": "look"},
        role=None,
        headers=bearer(session["token"]),
    )
    assert status == 200
    acts = [(line.actor, line.act) for line in await plant.live.fleet.list_audit(limit=500)]
    assert {("oidc:248289761001", "login"), ("oidc:248289761001", "isolated")} <= set(acts)
    own = {"name": "mine", "rights": [{"role": "viewer", "sites": "all"}]}
    _, refused = await plant.live.call(
        "POST", "/api/v1/me/tokens", own, role=None, headers=bearer(session["token"])
    )
    assert refused["code"] == "token.nobodys"  # their rights are the issuer's to take away
    end = {"person": "oidc:248289761001", "reason": "left"}
    assert (await plant.live.call("POST", "/api/v1/sessions/end", end))[1] == {"ended": 1}
    assert (await plant.live.call("GET", "/api/v1/me", role=None, headers=bearer(session["token"])))[0] == 401


async def test_c10_what_the_issuer_has_signed_wrongly_for_us_is_refused(plant: Plant) -> None:
    """Each change alone: all else is as it should be."""
    now = time.time()
    for changes, code in (
        ({"aud": "another-client"}, "oidc.audience"),
        ({"aud": []}, "oidc.audience"),
        ({"aud": [CLIENT, "another"]}, "oidc.audience"),
        ({"aud": [CLIENT, "another"], "azp": "another"}, "oidc.audience"),
        ({"azp": "another"}, "oidc.audience"),
        ({"aud": [CLIENT, "another"], "azp": CLIENT}, "200"),
        ({"aud": None}, "oidc.claims"),
        ({"aud": {"in": CLIENT}}, "oidc.claims"),
        ({"iss": plant.issuer.url + "/"}, "oidc.issuer"),
        ({"iss": "https://accounts.example"}, "oidc.issuer"),
        ({"iss": None}, "oidc.claims"),
        ({"exp": now - SKEW_S - 1}, "oidc.expired"),
        ({"exp": None}, "oidc.claims"),
        ({"exp": "2099-01-01"}, "oidc.claims"),
        ({"iat": now + SKEW_S + 30}, "oidc.time"),
        ({"iat": now - MAX_AGE_S - 30}, "oidc.time"),
        ({"iat": None}, "oidc.claims"),
        ({"nonce": ""}, "oidc.nonce"),
        ({"nonce": "of my own making"}, "oidc.nonce"),
        ({"nonce": None}, "oidc.claims"),
        ({"sub": ""}, "oidc.name"),
        ({"sub": "a b"}, "oidc.name"),
        ({"sub": "x" * 121}, "oidc.name"),
        ({"sub": "two\nlines"}, "oidc.name"),
        ({"sub": None}, "oidc.claims"),
        ({"groups": "admins"}, "oidc.groups"),
        ({"groups": ["admins", 7]}, "oidc.groups"),
        ({"groups": ["x"] * 1001}, "oidc.groups"),
        ({"groups": []}, "login.no-rights"),
        ({"groups": None}, "login.no-rights"),
        ({"groups": ["cooks"]}, "login.no-rights"),
    ):
        claims = plant.issuer.claims(await plant.nonce(), **changes)
        assert await plant.code_of(plant.issuer.token(claims)) == code, changes


async def test_c10_a_token_is_good_once_and_a_nonce_is_ours(plant: Plant) -> None:
    token = plant.issuer.token(plant.issuer.claims(await plant.nonce()))
    told = await asyncio.gather(*(plant.code_of(token) for _ in range(12)))
    assert sorted(told) == ["200"] + ["oidc.nonce"] * 11
    assert await plant.code_of(token) == "oidc.nonce"
    nobody = plant.issuer.claims(nonce := await plant.nonce(), groups=[])
    assert await plant.code_of(plant.issuer.token(nobody)) == "login.no-rights"
    assert (
        await plant.code_of(plant.issuer.token(plant.issuer.claims(nonce))) == "oidc.nonce"
    )  # it was used up


def part(value: object) -> str:
    return base64.urlsafe_b64encode(msgspec.json.encode(value)).rstrip(b"=").decode()


def public_pem(key: rsa.RSAPrivateKey) -> bytes:
    return key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )


async def test_c10_unsigned_and_confused_algorithms_are_refused(plant: Plant) -> None:
    issuer = plant.issuer
    claims = issuer.claims(await plant.nonce(), groups=["admins"])
    rsa_1 = issuer.keys["rsa-1"]
    assert isinstance(rsa_1, rsa.RSAPrivateKey)
    for header, mac_key in (
        ({"alg": "none", "kid": "rsa-1"}, None),
        ({"alg": "None", "kid": "rsa-1"}, None),
        ({"alg": "", "kid": "rsa-1"}, None),
        ({"alg": "HS256", "kid": "rsa-1"}, public_pem(rsa_1)),  # the public key as a shared secret
        ({"alg": "HS256", "kid": "rsa-1"}, b""),
        ({"alg": "RS512", "kid": "rsa-1"}, b"x"),
    ):
        signed = f"{part(header)}.{part(claims)}"
        mac = b"" if mac_key is None else hmac.digest(mac_key, signed.encode(), "sha256")
        forged = f"{signed}.{base64.urlsafe_b64encode(mac).rstrip(b'=').decode()}"
        assert await plant.code_of(forged) == "oidc.algorithm", header
    good = issuer.token(claims)
    head, content, signature = good.split(".")
    other = part({**claims, "groups": ["admins", "everybody"]})
    for forged, code in (
        (f"{head}.{other}.{signature}", "oidc.signature"),
        (f"{head}.{content}.", "oidc.signature"),
        (f"{head}.{content}.AAAA{signature[4:]}", "oidc.signature"),
        (f"{head}.{content}", "oidc.token"),
        (f"{head}.{content}.{signature}.{signature}", "oidc.token"),
        (f"!!.{content}.{signature}", "oidc.token"),
        (f"{part(['RS256'])}.{content}.{signature}", "oidc.token"),
        (
            f"{part({'alg': 'RS256', 'kid': 'rsa-1', 'crit': ['b64'], 'b64': False})}.{content}.{signature}",
            "oidc.token",
        ),
        # Signed by a key of another kind under this name, and by the right key under another algorithm's name.
        (f"{part({'alg': 'ES256', 'kid': 'rsa-1'})}.{content}.{signature}", "oidc.key"),
        (f"{part({'alg': 'PS256', 'kid': 'rsa-1'})}.{content}.{signature}", "oidc.signature"),
        (f"{part({'alg': 'RS256', 'kid': 'ec-1'})}.{content}.{signature}", "oidc.key"),
        (f"{part({'alg': 'RS256'})}.{content}.{signature}", "oidc.key"),
        # A key that the token brings itself.
        (
            issuer.token(
                claims,
                kid="rsa-1",
                algorithm="RS256",
                jwk=jwk_of(rsa_1, "rsa-1"),
                jku="https://evil.example/keys",
            ),
            "200",
        ),
    ):
        assert await plant.code_of(forged) == code, forged[:80]


async def test_c10_an_algorithm_that_the_owner_does_not_want_is_refused(tmp_path: Path) -> None:
    async with plant_at(tmp_path, algorithms=("ES256",)) as plant:
        for kid, algorithm, code in (("rsa-1", "RS256", "oidc.algorithm"), ("ec-1", "ES256", "200")):
            claims = plant.issuer.claims(await plant.nonce())
            assert await plant.code_of(plant.issuer.token(claims, kid=kid, algorithm=algorithm)) == code


async def test_c10_keys_that_are_not_published_or_are_no_good_are_refused(plant: Plant) -> None:
    issuer, stranger = plant.issuer, rsa.generate_private_key(65537, 2048)
    weak, private = rsa.generate_private_key(65537, 1024), rsa.generate_private_key(65537, 2048)
    issuer.keys |= {"stranger": stranger, "weak": weak, "p384": ec.generate_private_key(ec.SECP384R1())}
    secret = private.private_numbers()
    d = base64.urlsafe_b64encode(secret.d.to_bytes(256, "big")).rstrip(b"=").decode()
    issuer.keys |= {"leaked": private, "twice": private, "wrong-use": private, "bound": private}
    issuer.published += [
        jwk_of(weak, "weak"),
        jwk_of(issuer.keys["p384"], "p384"),
        jwk_of(private, "leaked", d=d),
        jwk_of(private, "twice"),
        jwk_of(stranger, "twice"),
        jwk_of(private, "wrong-use", use="enc"),
        jwk_of(private, "bound", alg="PS256"),
        {"kty": "oct", "kid": "shared", "k": "c2VjcmV0"},
        {"kty": 7},
    ]
    claims = issuer.claims(await plant.nonce())
    for kid in ("stranger", "weak", "leaked", "twice", "wrong-use", "bound"):
        assert await plant.code_of(issuer.token(claims, kid=kid)) == "oidc.key", kid
    # Its own key, under the name of one that is published.
    forged = {**issuer.keys, "rsa-1": stranger}
    true, issuer.keys = issuer.keys, forged
    assert await plant.code_of(issuer.token(claims)) == "oidc.signature"
    issuer.keys = true
    assert await plant.code_of(issuer.token(claims)) == "200"


async def test_a_new_key_is_looked_for_and_no_more_than_once_a_minute(plant: Plant) -> None:
    issuer = plant.issuer
    token = issuer.token(issuer.claims(await plant.nonce()))
    assert await plant.code_of(token) == "200"
    assert issuer.asked.count("/realm/keys") == 1
    issuer.keys["new"] = ec.generate_private_key(ec.SECP256R1())
    claims = issuer.claims(await plant.nonce())
    unknown = issuer.token(claims, kid="new", algorithm="ES256")
    told = await asyncio.gather(*(plant.code_of(unknown) for _ in range(10)))
    assert set(told) == {"oidc.key"} and issuer.asked.count("/realm/keys") == 1  # it was a moment ago
    assert plant.live.services.oidc is not None
    plant.live.services.oidc._fetched_at -= 61
    issuer.published.append(jwk_of(issuer.keys["new"], "new"))
    assert await plant.code_of(unknown) == "200"
    assert issuer.asked.count("/realm/keys") == 2


@pytest.mark.parametrize(
    ("path", "answer", "code"),
    [
        ("/realm/.well-known/openid-configuration", web.Response(status=500), "oidc.unreachable"),
        ("/realm/.well-known/openid-configuration", web.Response(body=b"{}"), "oidc.discovery"),
        ("/realm/.well-known/openid-configuration", web.Response(body=b"<html>"), "oidc.discovery"),
        ("/realm/keys", web.Response(body=b"x" * (MAX_DOCUMENT_BYTES + 1)), "oidc.unreachable"),
        ("/realm/keys", web.Response(body=b'{"keys":7}'), "oidc.keys"),
        ("/realm/keys", web.Response(body=b'{"keys":[' + b"{}," * 64 + b"{}]}"), "oidc.keys"),
        (
            "/realm/keys",
            web.Response(status=302, headers={"Location": "/realm/elsewhere"}),
            "oidc.unreachable",
        ),
    ],
)
async def test_an_issuer_that_says_nonsense_is_not_there(
    plant: Plant, path: str, answer: web.Response, code: str
) -> None:
    plant.issuer.answers[path] = answer
    status, told = await plant.live.call("POST", "/api/v1/login/oidc/begin", role=None)
    assert (status, told["code"]) == (503, code)
    asked = len(plant.issuer.asked)
    status, told = await plant.live.call("POST", "/api/v1/login/oidc/begin", role=None)
    assert told["code"] == "oidc.unreachable" and len(plant.issuer.asked) == asked  # not asked again at once


@pytest.mark.parametrize(
    "changes",
    [
        {"issuer": "https://localhost/another"},
        {"jwks_uri": "http://localhost/keys"},
        {"token_endpoint": "http://localhost/token"},
        {"authorization_endpoint": "javascript:alert(1)"},
        {"jwks_uri": None},
    ],
)
async def test_c10_a_discovery_that_leads_elsewhere_is_refused(
    plant: Plant, changes: dict[str, object]
) -> None:
    plant.issuer.discovery = changes
    status, told = await plant.live.call("POST", "/api/v1/login/oidc/begin", role=None)
    assert (status, told["code"]) == (503, "oidc.discovery")


async def test_c10_an_issuer_with_another_certificate_is_not_believed(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    async with running_issuer(tmp_path / "other"), running_issuer(tmp_path) as issuer:
        config = OidcConfig(issuer=issuer.url, client_id=CLIENT, ca="other/issuer-ca.pem", rights=RIGHTS)
        async with running(tmp_path, oidc=config) as live:
            status, told = await live.call("POST", "/api/v1/login/oidc/begin", role=None)
            assert (status, told["code"]) == (503, "oidc.unreachable") and issuer.asked == []


async def test_c09_what_the_configuration_gives_to_a_group_holds_with_the_next_request(plant: Plant) -> None:
    claims = plant.issuer.claims(await plant.nonce(), groups=["admins", "everybody"])
    _, session = await plant.bring(plant.issuer.token(claims))
    headers = bearer(session["token"])
    assert (await plant.live.call("GET", "/api/v1/users", role=None, headers=headers))[0] == 200
    assert plant.live.services.oidc is not None
    plant.live.services.oidc._config = msgspec.structs.replace(
        plant.live.services.oidc._config, rights=RIGHTS[:2]
    )
    assert (await plant.live.call("GET", "/api/v1/users", role=None, headers=headers))[0] == 403
    plant.live.services.oidc._config = msgspec.structs.replace(plant.live.services.oidc._config, rights=[])
    assert (await plant.live.call("GET", "/api/v1/me", role=None, headers=headers))[0] == 401


async def test_c09_somebody_who_is_vouched_for_gives_no_more_than_they_have(plant: Plant) -> None:
    claims = plant.issuer.claims(await plant.nonce(), sub="admin", groups=["admins"])
    _, session = await plant.bring(plant.issuer.token(claims))
    assert session["name"] == "oidc:admin"  # never the token or the user of that name
    await plant.live.call("DELETE", "/api/v1/tokens/viewer")
    headers = bearer(session["token"])
    status, answer = await plant.live.call("DELETE", "/api/v1/tokens/admin", role=None, headers=headers)
    assert (status, answer["code"]) == (409, "people.last-admin")  # the issuer's word is not one who is left


async def test_without_an_issuer_there_is_no_such_login(tmp_path: Path) -> None:
    async with running(tmp_path) as live:
        status, told = await live.call("POST", "/api/v1/login/oidc/begin", role=None)
        assert (status, told["code"]) == (404, "oidc.unknown")
        status, told = await live.call("POST", "/api/v1/login/oidc", {"id_token": "a.b.c"}, role=None)
        assert (status, told["code"]) == (404, "oidc.unknown")


MINIMAL = """
node_url = "https://localhost:1"
admin_url = "https://localhost:2"
nodes.listen = "127.0.0.1:0"
admins.listen = "127.0.0.1:0"
[oidc]
issuer = "https://login.example/realms/plant"
client_id = "ringfence"
"""


def test_the_configuration_of_an_issuer_is_strict() -> None:
    right = '[[oidc.rights]]\ngroup = "a"\nrole = "operator"\nsites = ["lyon"]\nlabels = "line=3"\n'
    config = parse_config((MINIMAL + right).encode())
    assert config.oidc is not None and str(config.oidc.rights[0]) == "operator@lyon[line=3]"
    for wrong in (
        MINIMAL.replace("https://login", "http://login"),
        MINIMAL.replace("/plant", "/plant?x=1"),
        MINIMAL + 'algorithms = ["none"]\n',
        MINIMAL + 'algorithms = ["HS256"]\n',
        MINIMAL + "algorithms = []\n",
        MINIMAL + 'scope = "profile"\n',
        MINIMAL + right.replace("operator", "root"),
        MINIMAL + right.replace('["lyon"]', "[]"),
        MINIMAL + right.replace('sites = ["lyon"]\n', ""),
        MINIMAL + right.replace("line=3", "all"),
    ):
        with pytest.raises(Rejected, match=r"config\.") as refused:
            parse_config(wrong.encode())
        assert "controller.toml:" in str(refused.value)


async def test_the_command_logs_in_with_the_issuer(plant: Plant, tmp_path: Path) -> None:
    """The browser's part is played here: the address that is printed is opened, and its redirect followed."""
    (tmp_path / "ca.pem").write_text(plant.live.ca)
    env = {**os.environ, "PYTHONPATH": TREE, "RINGFENCE_PROFILE": str(tmp_path / "profile.json")}
    child = await asyncio.create_subprocess_exec(
        COMMAND,
        *("login", "--url", plant.live.admin_url, "--ca", str(tmp_path / "ca.pem"), "--oidc", "--no-browser"),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=env,
    )
    assert child.stderr is not None and child.stdout is not None
    async with asyncio.timeout(60):
        line = (await child.stderr.readline()).decode()
        where = line.partition("log in here, on this machine: ")[2].strip()
        assert where.startswith(plant.issuer.url), line
        async with plant.live.http.get(
            where, ssl=ssl.create_default_context(cafile=tmp_path / "issuer-ca.pem")
        ) as page:
            assert page.status == 200 and "close this page" in await page.text()
        out, err = await asyncio.gather(child.stdout.read(), child.stderr.read())
        assert await child.wait() == 0, err
    assert "as oidc:248289761001 (operator@factory) until" in out.decode()
    who = await asyncio.to_thread(
        subprocess.run, [COMMAND, "whoami", "--json"], env=env, capture_output=True, text=True, timeout=60
    )
    assert msgspec.json.decode(who.stdout)["name"] == "oidc:248289761001"
    admin = {**env, **environment(plant.live, tmp_path)}
    end = [COMMAND, "users", "end-sessions", "oidc:248289761001", "--reason", "left"]
    ended = await asyncio.to_thread(
        subprocess.run, end, env=admin, capture_output=True, text=True, timeout=60
    )
    assert "1 sessions of oidc:248289761001 ended" in ended.stdout


async def test_c10_the_command_refuses_an_answer_to_another_question(plant: Plant, tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text(plant.live.ca)
    child = await asyncio.create_subprocess_exec(
        COMMAND,
        *("login", "--url", plant.live.admin_url, "--ca", str(tmp_path / "ca.pem"), "--oidc", "--no-browser"),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": TREE, "RINGFENCE_PROFILE": str(tmp_path / "profile.json")},
    )
    assert child.stderr is not None
    async with asyncio.timeout(60):
        where = (await child.stderr.readline()).decode()
        callback = where.partition("redirect_uri=")[2].partition("&")[0]
        port = callback.partition("127.0.0.1%3A")[2].partition("%2F")[0]
        forged = f"http://127.0.0.1:{port}/callback?code=an-attackers&state=of-their-own"
        async with plant.live.http.get(forged) as page:
            assert page.status == 200
        said = (await child.stderr.read()).decode()
        assert await child.wait() == 3 and "another question" in said
    assert not (tmp_path / "profile.json").exists()
