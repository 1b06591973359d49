"""People over real HTTP: set up, logged in by password and code, locked out, and the command that does it."""

from __future__ import annotations

import asyncio
import base64
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest
import pytest_asyncio

from controller import lockout, passwords, totp
from controller.config import Limits, PeopleConfig
from controller.permissions import EVERYWHERE
from tests.controller.live import TOKENS, Live, running
from tests.controller.terminal import environment

COMMAND = str(Path(sys.executable).parent / "ringfence")
TREE = str(Path(__file__).resolve().parents[2])
PASSWORD = "correct horse battery staple"
LIMITS = Limits(logins_per_minute=1000)


@pytest_asyncio.fixture
async def live(tmp_path: Path) -> AsyncIterator[Live]:
    async with running(tmp_path, limits=LIMITS) as controller:
        yield controller


def bearer(token: object) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


async def post(
    live: Live, path: str, body: object, headers: dict[str, str] | None = None
) -> tuple[int, dict[str, object]]:
    return await live.call("POST", "/api/v1" + path, body, role=None, headers=headers)


class Phone:
    """An authenticator: a secret, and codes by the clock. Each code is asked for once: it waits for none, it takes the step
    before, then this one, then the next."""

    def __init__(self, secret: str) -> None:
        self.secret = base64.b32decode(secret)
        self._steps: list[int] = []

    def code(self) -> str:
        step = int(time.time() // 30) - 1
        while step in self._steps:
            step += 1
        self._steps.append(step)
        return totp._totp(self.secret).generate(step * 30).decode()


async def invited(live: Live, name: str, role: str = "operator", sites: object = "all") -> str:
    """Make a person; the setup code."""
    status, made = await live.call(
        "POST", "/api/v1/users", {"name": name, "rights": [{"role": role, "sites": sites}]}
    )
    assert status == 201 and made["about"]["state"] == "invited"  # type: ignore[index]
    return str(made["setup"])


async def ready(live: Live, name: str, role: str = "operator") -> tuple[Phone, dict[str, object]]:
    """A person who has set themselves up: their phone and their first session."""
    setup = await invited(live, name, role)
    status, offered = await post(live, "/login/setup", {"user": name, "setup": setup})
    assert status == 200, offered
    phone = Phone(str(offered["secret"]))
    body = {"user": name, "setup": setup, "password": PASSWORD, "code": phone.code()}
    status, session = await post(live, "/login/setup/confirm", body)
    assert status == 200, session
    return phone, session


def login_body(name: str, code: str, password: str = PASSWORD) -> dict[str, str]:
    return {"user": name, "password": password, "code": code}


async def test_a_person_sets_themselves_up_logs_in_and_acts_under_their_name(live: Live) -> None:
    phone, first = await ready(live, "ann")
    assert len(first["recovery_codes"]) == 10  # type: ignore[arg-type]
    status, session = await post(live, "/login", login_body("ann", phone.code()))
    assert status == 200 and session["recovery_codes"] == []
    assert 7.9 * 3600 < session["expires_at"] - time.time() < 8.1 * 3600  # type: ignore[operator]
    for token in (first["token"], session["token"]):
        _, me = await live.call("GET", "/api/v1/me", role=None, headers=bearer(token))
        assert (me["name"], me["rights"]) == ("ann", [{"role": "operator", "sites": "all"}])
    status, _ = await post(live, "/sites/factory/isolate", {"reason": "look"}, bearer(session["token"]))
    assert status == 200
    lines = [(a.actor, a.act) for a in await live.fleet.list_audit(limit=500)]
    assert {("ann", "isolated"), ("ann", "login"), ("admin", "user.added")} <= set(lines)
    assert (await post(live, "/logout", None, bearer(session["token"])))[0] == 204
    assert (await live.call("GET", "/api/v1/me", role=None, headers=bearer(session["token"])))[0] == 401
    assert (await live.call("GET", "/api/v1/me", role=None, headers=bearer(first["token"])))[0] == 200
    assert (await post(live, "/logout", None, bearer(TOKENS["viewer"])))[1]["code"] == "login.none"


async def test_c10_what_is_wrong_is_refused_with_one_answer(live: Live) -> None:
    phone, first = await ready(live, "ann")
    right = phone.code()
    cases = [
        login_body("ann", right, "correct horse battery stapler"),
        login_body("nobody", right),
        login_body("ann", "000000" if right != "000000" else "000001"),
        login_body("ann", "AAAAA-BBBBB-CCCCC-DDDDD"),
    ]
    answers = [await post(live, "/login", body) for body in cases]
    assert len({str(answer) for answer in answers}) == 1 and answers[0][0] == 401
    assert answers[0][1]["code"] == "login.refused"
    status, session = await post(live, "/login", login_body("ann", right))
    assert status == 200
    assert (await post(live, "/login", login_body("ann", right)))[1]["code"] == "login.refused"  # replayed
    recovery = first["recovery_codes"][3]  # type: ignore[index]
    assert (await post(live, "/login", login_body("ann", recovery)))[0] == 200
    assert (await post(live, "/login", login_body("ann", recovery)))[1]["code"] == "login.refused"
    assert "login.recovery-code" in await live.kinds()
    assert session["token"]


@pytest.mark.parametrize("name", ["ann", "nobody"])
async def test_c10_guessed_in_parallel_the_limit_of_a_name_is_exact(live: Live, name: str) -> None:
    await ready(live, "ann")
    guesses = [post(live, "/login", login_body(name, f"{n:06}", "a wrong password")) for n in range(40)]
    codes = sorted(str(answer["code"]) for _, answer in await asyncio.gather(*guesses))
    assert codes == ["login.locked"] * 35 + ["login.refused"] * lockout.FREE_TRIES
    status, answer = await post(live, "/login", login_body(name, "123456"))
    assert (status, answer["code"]) == (429, "login.locked")
    assert ("login.locked" in await live.kinds()) == (name == "ann")


async def test_c10_tries_of_an_address_are_counted_before_they_are_looked_at(tmp_path: Path) -> None:
    async with running(tmp_path, limits=Limits(logins_per_minute=6)) as live:
        guesses = [post(live, "/login", login_body(f"name-{n}", "123456")) for n in range(20)]
        codes = sorted(str(answer["code"]) for _, answer in await asyncio.gather(*guesses))
        assert codes == ["limit.failures"] * 14 + ["login.refused"] * 6
        for path, body in (
            ("/login/setup", {"user": "ann", "setup": "x"}),
            ("/login/setup/confirm", {"user": "ann", "setup": "x", "password": PASSWORD, "code": "123456"}),
        ):
            assert (await post(live, path, body))[1]["code"] == "limit.failures"


async def test_c08_slow_hashes_do_not_hold_up_others(live: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    """While passwords are compared, two at a time and no more than so many waiting, others are answered."""
    live.services.logins._waiting = 62
    answered, matches = threading.Event(), passwords.matches
    held: list[bool] = []

    def hold(password: str, kept: str | None) -> bool:
        held.append(answered.wait(10))
        return matches(password, kept)

    monkeypatch.setattr(passwords, "matches", hold)
    guesses = [asyncio.create_task(post(live, "/login", login_body(f"n-{n}", "123456"))) for n in range(12)]
    assert (await live.call("GET", "/api/v1/me"))[0] == 200
    answered.set()
    codes = [str(answer["code"]) for _, answer in await asyncio.gather(*guesses)]
    assert set(codes) == {"login.busy", "login.refused"}
    assert held and all(held), "the loop waited for a hash"
    assert live.services.logins._waiting == 62


async def test_a_disabled_or_reset_person_is_out_at_once(live: Live) -> None:
    phone, session = await ready(live, "ann")
    headers = bearer(session["token"])
    own = {"name": "anns-laptop", "rights": [{"role": "viewer", "sites": "all"}]}
    status, token = await post(live, "/me/tokens", own, headers)
    assert status == 201 and token["about"]["user"] == "ann"  # type: ignore[index]
    more = {"name": "anns-more", "rights": [{"role": "admin", "sites": "all"}]}
    assert (await post(live, "/me/tokens", more, headers))[1]["code"] == "rights.beyond"
    tokens_token = {"name": "from-a-token", "rights": own["rights"]}
    assert (await post(live, "/me/tokens", tokens_token, bearer(token["token"])))[1][
        "code"
    ] == "token.nobodys"
    assert (await live.call("POST", "/api/v1/users/ann/disable", {"reason": "left"}))[0] == 200
    for each in (session["token"], token["token"]):
        assert (await live.call("GET", "/api/v1/me", role=None, headers=bearer(each)))[0] == 401
    assert (await post(live, "/login", login_body("ann", phone.code())))[1]["code"] == "login.refused"
    await live.call("POST", "/api/v1/users/ann/enable", {"reason": "back"})
    assert (await live.call("GET", "/api/v1/me", role=None, headers=bearer(token["token"])))[0] == 200
    status, again = await live.call("POST", "/api/v1/users/ann/reset", {"reason": "lost phone"})
    assert status == 200 and str(again["setup"]).startswith("rfu_")
    assert (await post(live, "/login", login_body("ann", phone.code())))[1]["code"] == "login.refused"
    assert (await live.call("GET", "/api/v1/me", role=None, headers=bearer(token["token"])))[0] == 401


async def test_ones_own_password_ends_every_session(live: Live) -> None:
    phone, session = await ready(live, "ann")
    headers = bearer(session["token"])
    body = {"password": PASSWORD, "code": phone.code(), "new_password": "another one of some length"}
    wrong = {**body, "password": "not the one that it was", "code": "123456"}
    for sent, code in ((wrong, "login.refused"), ({**body, "new_password": "brief"}, "password.short")):
        status, answer = await live.call("PUT", "/api/v1/me/password", sent, role=None, headers=headers)
        assert answer["code"] == code
    assert (await live.call("PUT", "/api/v1/me/password", body, role=None, headers=headers))[0] == 204
    assert (await live.call("GET", "/api/v1/me", role=None, headers=headers))[0] == 401
    code = phone.code()
    assert (await post(live, "/login", login_body("ann", code)))[0] == 401
    assert (await post(live, "/login", login_body("ann", code, body["new_password"])))[0] == 200
    status, answer = await live.call("PUT", "/api/v1/me/password", body)
    assert (status, answer["code"]) == (403, "token.nobodys")


async def test_two_persons_are_two_persons(live: Live) -> None:
    """What an admin asks for is approved by another person, not by what the admin made."""
    await live.node("press-1", connect=False)
    _, ann = await ready(live, "ann", "admin")
    _, bob = await ready(live, "bob", "approver")
    own = {"name": "anns-own", "rights": [{"role": "admin", "sites": "all"}]}
    _, token = await post(live, "/me/tokens", own, bearer(ann["token"]))
    _, robot = await post(live, "/tokens", {**own, "name": "robot"}, bearer(ann["token"]))
    wanted = {
        "node": "press-1",
        "who": "A. Technician",
        "company": "Press Works",
        "evidence": "4711",
        "access": {"doors": ["north"]},
        "ends": time.time() + 600,
        "reason": "drive replaced",
    }
    _, grant = await post(live, "/grants", wanted, bearer(robot["token"]))
    approve = f"/grants/{grant['id']}/approve"
    for same in (ann, token, robot):
        assert (await post(live, approve, {"reason": "ok"}, bearer(same["token"])))[1][
            "code"
        ] == "grant.same-person"
    assert (await post(live, approve, {"reason": "ok"}, bearer(bob["token"])))[0] == 200


async def test_c14_nothing_that_was_typed_is_written_anywhere(
    live: Live, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    phone, session = await ready(live, "ann")
    code = phone.code()
    await post(live, "/login", login_body("ann", code))
    await post(live, "/login", login_body("ann", "123456", "a wrong password that was typed"))
    secrets = [PASSWORD, "a wrong password that was typed", str(session["token"])]
    secrets += [base64.b32encode(phone.secret).decode(), *session["recovery_codes"]]  # type: ignore[misc]
    shown = [
        str(await live.call("GET", f"/api/v1/{path}"))
        for path in ("users", "tokens", "events?limit=500", "audit?limit=500", "audit/lines?limit=500")
    ]
    stored = b"".join(path.read_bytes() for path in tmp_path.glob("ringfence.db*"))
    for secret in secrets:
        assert all(secret not in text for text in shown) and secret not in caplog.text
        assert secret.encode() not in stored
    assert phone.secret not in stored and b"$argon2id$" in stored
    status, answer = await post(live, "/login", b'{"user":"ann","password":"typed in a hurry","code":7}')
    assert status == 400 and "hurry" not in str(answer)


async def test_a_setup_that_is_wrong_says_so(live: Live) -> None:
    setup = await invited(live, "ann")
    assert (await post(live, "/login/setup", {"user": "ann", "setup": "rfu_x"}))[1]["code"] == "login.setup"
    body = {"user": "ann", "setup": setup, "password": PASSWORD, "code": "123456"}
    assert (await post(live, "/login/setup/confirm", body))[1][
        "code"
    ] == "login.code"  # nothing was offered yet
    _, offered = await post(live, "/login/setup", {"user": "ann", "setup": setup})
    wrong = {**body, "code": "000000"}
    assert (await post(live, "/login/setup/confirm", wrong))[1]["code"] == "login.code"
    brief = {**body, "password": "brief", "code": Phone(str(offered["secret"])).code()}
    assert (await post(live, "/login/setup/confirm", brief))[1]["code"] == "password.short"


async def test_names_of_people_and_of_tokens_are_one_set_of_names(live: Live) -> None:
    await invited(live, "ann")
    rights = [{"role": "viewer", "sites": "all"}]
    for path, name, code in (
        ("/tokens", "ann", "user.exists"),
        ("/users", "admin", "token.exists"),
        ("/users", "ann", "user.exists"),
        ("/users", "controller", "name.invalid"),
        ("/tokens", "init", "name.invalid"),
    ):
        _, answer = await live.call("POST", f"/api/v1{path}", {"name": name, "rights": rights})
        assert answer["code"] == code, (path, name)


async def test_sessions_end_by_themselves(tmp_path: Path) -> None:
    async with running(tmp_path, limits=LIMITS, people=PeopleConfig(session_hours=1.5 / 3600)) as live:
        _, session = await ready(live, "ann")
        while (await live.call("GET", "/api/v1/me", role=None, headers=bearer(session["token"])))[0] == 200:
            assert time.time() < session["expires_at"] + 1  # type: ignore[operator]
            await asyncio.sleep(0.2)
        assert time.time() >= session["expires_at"]  # type: ignore[operator]


async def command(
    live: Live, folder: Path, *argv: str, typed: str = "", token: str | None = None
) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own, its input from a pipe."""
    env = {**os.environ, "PYTHONPATH": TREE, "RINGFENCE_PROFILE": str(folder / "profile.json")}
    for name in ("RINGFENCE_TOKEN", "RINGFENCE_URL", "RINGFENCE_CA"):
        env.pop(name, None)
    if token is not None:
        env |= {**environment(live, folder), "RINGFENCE_TOKEN": token}
    return await asyncio.to_thread(
        subprocess.run,
        [COMMAND, *argv],
        env=env,
        input=typed,
        capture_output=True,
        text=True,
        timeout=120,
    )


async def test_the_command_makes_people_and_logs_them_in(live: Live, tmp_path: Path) -> None:
    admin = TOKENS["admin"]
    made = await command(
        live, tmp_path, "users", "new", "ann", "--right", "operator@factory,lyon", token=admin
    )
    assert made.returncode == 0, made.stderr
    setup = made.stdout.strip()
    where = ("--url", live.admin_url, "--ca", str(tmp_path / "ca.pem"))
    _, offered = await post(live, "/login/setup", {"user": "ann", "setup": setup})
    phone = Phone(str(offered["secret"]))
    body = {"user": "ann", "setup": setup, "password": PASSWORD, "code": phone.code()}
    assert (await post(live, "/login/setup/confirm", body))[0] == 200
    (tmp_path / "password").write_text(PASSWORD + "\n")
    by_name = ("login", *where, "--user", "ann", "--password-file", str(tmp_path / "password"))
    done = await command(live, tmp_path, *by_name, "--code", phone.code())
    assert done.returncode == 0 and "as ann (operator@factory,lyon) until" in done.stdout, done.stderr
    who = await command(live, tmp_path, "whoami", "--json")
    assert msgspec.json.decode(who.stdout)["name"] == "ann"
    refused = await command(live, tmp_path, "users", "list")
    assert refused.returncode == 3 and "role.insufficient" in refused.stderr
    again = await command(live, tmp_path, *by_name, "--code", "000000")
    assert again.returncode == 3 and "login.refused" in again.stderr
    listed = await command(live, tmp_path, "users", "list", "--json", token=admin)
    assert [u["name"] for u in msgspec.json.decode(listed.stdout)] == ["ann"]
    wild = await command(
        live, tmp_path, "users", "scope", "ann", "--right", "viewer@", "--reason", "x", token=admin
    )
    assert wild.returncode == 2
    scope = ("users", "scope", "ann", "--right", "viewer@all", "--right", "operator@factory[line=3]")
    narrowed = await command(live, tmp_path, *scope, "--reason", "moved", token=admin)
    assert narrowed.returncode == 0 and "viewer@all operator@factory[line=3]" in narrowed.stdout
    assert (await command(live, tmp_path, "logout")).returncode == 0
    assert (await command(live, tmp_path, "whoami")).returncode == 3


async def test_the_command_sets_a_person_up(live: Live, tmp_path: Path) -> None:
    """Typed one after the other, as a person does: the code can only be made once the secret was shown."""
    setup = await invited(live, "bob")
    (tmp_path / "ca.pem").write_text(live.ca)
    child = await asyncio.create_subprocess_exec(
        COMMAND,
        *("login", "--url", live.admin_url, "--ca", str(tmp_path / "ca.pem")),
        *("--user", "bob", "--setup"),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": TREE, "RINGFENCE_PROFILE": str(tmp_path / "profile.json")},
    )
    assert child.stdin is not None and child.stderr is not None and child.stdout is not None
    child.stdin.write(f"{setup}\n".encode())
    secret = ""
    async with asyncio.timeout(60):
        while not secret:
            line = (await child.stderr.readline()).decode()
            assert line, "it ended without showing the secret"
            secret = line.partition("secret: ")[2].strip()
    child.stdin.write(f"{PASSWORD}\n{PASSWORD}\n{Phone(secret).code()}\n".encode())
    child.stdin.close()
    async with asyncio.timeout(60):
        out, _ = await asyncio.gather(child.stdout.read(), child.stderr.read())
        assert await child.wait() == 0
    assert out.decode().count("-") >= 30 and "logged in to ringfence as bob" in out.decode()
    assert PASSWORD not in out.decode() and setup not in out.decode()
    assert (await live.services.people.list_users(scope=EVERYWHERE, now=time.time()))[0].state == "active"
