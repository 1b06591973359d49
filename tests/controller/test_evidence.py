"""Stored evidence and signed results, from a report over a real session to files that anybody can verify."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import os
import random
import re
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

import jwt
import msgspec
import pytest
import pytest_asyncio
from click.testing import CliRunner
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from contract import bundle
from contract.bundleaudit import audit
from contract.errors import Rejected
from contract.messages import Drift
from contract.resultkey import load_result_key, verify_result
from controller.cli.attest import attest
from controller.cli.evidence import evidence
from tests.controller.live import TOKENS, Live, answer_to, next_message, running
from tests.parts import imalog
from tests.parts.simulator import Node


@pytest_asyncio.fixture
async def live(tmp_path: Path) -> AsyncIterator[Live]:
    async with running(tmp_path) as controller:
        yield controller


async def stored(live: Live, node: str = "press-1") -> list[dict[str, object]]:
    """What is stored of a node, newest first."""
    status, page = await live.call("GET", f"/api/v1/nodes/{node}/evidence")
    assert status == 200
    return page["items"]  # type: ignore[return-value]


async def exported(live: Live, which: str = "newest", node: str = "press-1") -> dict[str, bytes]:
    """The files of one piece of evidence."""
    status, found = await live.call("GET", f"/api/v1/nodes/{node}/evidence/{which}")
    assert status == 200, found
    return {name: base64.b64decode(content) for name, content in found["files"].items()}  # type: ignore[attr-defined]


def written(files: dict[str, bytes], folder: Path) -> Path:
    """The files in a folder."""
    folder.mkdir()
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


def checked(folder: Path, extra: str) -> bool:
    """What tpm2_checkquote, which is not ours, says of a bundle."""
    command = ["tpm2_checkquote", "-u", "ak.pem", "-m", "quote.attest", "-s", "quote.sig", "-q", extra]
    return subprocess.run(command, cwd=folder, capture_output=True).returncode == 0


def drift() -> Drift:
    """A drift that is not repaired."""
    return Drift(section="sysctl", key="kernel.x", wanted="1", found="0", since=time.time())


async def attested(live: Live, **changes: object) -> Node:
    """A node after its first report."""
    node = await live.node("press-1")
    await answer_to(node, node.report(**changes))
    return node


async def test_the_first_attestation_of_a_boot_is_stored_and_steady_ones_are_not(live: Live) -> None:
    node = await attested(live)
    for _ in range(3):
        await answer_to(node, node.report())
    (first,) = await stored(live)
    assert (first["kind"], first["tier"], first["until"]) == ("boot", "affirming", None)
    assert first["tiers"] == {
        "identity": "affirming",
        "firmware": "affirming",
        "boot": "affirming",
        "runtime": "none",
        "configuration": "none",
    }


async def test_every_change_of_the_verdict_is_stored_and_ends_the_one_before(live: Live) -> None:
    node = await attested(live)
    for drifts in ([drift()], [drift()], []):
        await answer_to(node, node.report(drifts=drifts))
    found = await stored(live)
    assert [(e["kind"], e["tier"]) for e in found] == [
        ("change", "affirming"),
        ("change", "warning"),
        ("boot", "affirming"),
    ]
    assert [e["until"] for e in found] == [None, found[0]["at"], found[1]["at"]]
    assert found[1]["findings"] == ["drift.sysctl"]


async def test_a_new_boot_is_stored_though_its_verdict_is_the_same(live: Live) -> None:
    node = await attested(live)
    await node.close()
    again = await live.again(node.identity)
    again.tpm._resets += 1
    again.log_wanted = True
    await answer_to(again, again.report())
    assert [e["kind"] for e in await stored(live)] == ["boot", "boot"]


async def test_r07_refused_evidence_is_stored_and_its_result_proves_nothing(live: Live) -> None:
    node = await attested(live)
    report = node.report()
    forged = msgspec.structs.replace(report, pcrs={**report.pcrs, 4: bytes(31) + b"\1"})
    for _ in range(2):
        await answer_to(node, forged)
    found = await stored(live)
    assert [(e["kind"], e["tier"]) for e in found] == [
        ("refused", "contraindicated"),  # the second one is over a nonce that was used up: news as well
        ("refused", "contraindicated"),
        ("boot", "affirming"),
    ]
    files = await exported(live, str(found[1]["id"]))
    key = load_result_key(files[bundle.RESULT_KEY])
    result = verify_result(files[bundle.RESULT], key, now=None)
    assert set(result.appraisal.ear_trustworthiness_vector.values()) == {99, 0}
    assert result.appraisal.appraised.tiers["boot"] == "none"
    assert [f.code for f in audit(files, key).findings] == ["quote.pcr-digest"]


async def test_an_exported_bundle_verifies_offline_by_both_commands_and_by_tpm2_checkquote(
    live: Live, tmp_path: Path
) -> None:
    await attested(live)
    files = await exported(live)
    folder = written(files, tmp_path / "bundle")
    assert files.keys() <= bundle.NAMES
    runner = CliRunner()
    whole = runner.invoke(evidence, ["verify", str(folder), "--json"], catch_exceptions=False)
    assert whole.exit_code == 0, whole.output
    said = json.loads(whole.stdout)
    assert (said["verdict"], said["findings"], said["partial"]) == ("verified", [], [])
    assert said["result"]["status"] == "affirming"
    readme = files[bundle.README].decode()
    line = next(line.strip() for line in readme.splitlines() if "ringfence attest verify" in line)
    arguments = line.replace('"$(cat nonce.hex)"', files[bundle.EXTRA].decode().strip()).split()[2:]
    arguments = [str(folder / part) if part in files else part for part in arguments]
    alone = runner.invoke(attest, [*arguments, "--json"], catch_exceptions=False)
    assert (alone.exit_code, json.loads(alone.stdout)["verdict"]) == (0, "verified"), alone.output
    assert checked(folder, files[bundle.EXTRA].decode().strip()) and not checked(folder, "00" * 32)


@pytest.mark.parametrize(
    ("name", "code"),
    [
        (bundle.BODY, "bundle.digest"),
        (bundle.QUOTE, "bundle.digest"),
        (bundle.SIGNATURE, "bundle.digest"),
        (bundle.EVENT_LOG, "bundle.digest"),
        (bundle.POLICY_TOML, "bundle.digest"),
        (bundle.EXTRA, "bundle.binding"),
        (bundle.PCRS, "quote.pcr-digest"),
    ],
)
async def test_r05_a_bundle_that_was_tampered_with_is_rejected(live: Live, name: str, code: str) -> None:
    await attested(live)
    files = await exported(live)
    key = load_result_key(files[bundle.RESULT_KEY])
    assert audit(files, key).verified
    content = files[name]
    if name == bundle.PCRS:
        content = _other_pcr(content)
    else:
        content = content[:-2] + bytes([content[-2] ^ 1]) + content[-1:]
    found = audit({**files, name: content}, key)
    assert code in [finding.code for finding in found.findings]


def _other_pcr(content: bytes) -> bytes:
    value = json.loads(content)
    value["sha256"]["4"] = "ab" * 32
    return json.dumps(value).encode()


async def test_r06_a_result_of_other_evidence_or_of_another_key_is_refused(live: Live) -> None:
    node = await attested(live)
    await answer_to(node, node.report(drifts=[drift()]))
    newest, oldest = [await exported(live, str(e["id"])) for e in await stored(live)]
    key = load_result_key(newest[bundle.RESULT_KEY])
    found = audit({**newest, bundle.RESULT: oldest[bundle.RESULT]}, key)
    assert {"bundle.digest", "bundle.binding"} <= {finding.code for finding in found.findings}
    other = ec.generate_private_key(ec.SECP256R1()).public_key()
    with pytest.raises(Rejected) as refused:
        audit(newest, other)
    assert refused.value.code == "result.signature"


async def test_r05_whatever_stands_in_the_files_only_a_verdict_or_a_refusal_comes_of_it(live: Live) -> None:
    await attested(live)
    files = await exported(live)
    own = live.services.keys.result
    key = load_result_key(own.pem)
    honest = verify_result(files[bundle.RESULT], key, now=None)
    chance = random.Random(7)
    for name in sorted(files):
        for changed in mutations(files[name], chance):
            verdict_or_refusal({**files, name: changed}, key)
    said = honest.appraisal
    for evidence_, findings in (
        ({"ima_offset": "x"}, []),
        ({"ima_offset": -5, "verified": 1}, [{"detail": "x"}]),
        ({}, [{"code": 7}]),
    ):
        appraised = msgspec.structs.replace(said.appraised, evidence=evidence_, findings=findings)
        odd = msgspec.structs.replace(said, appraised=appraised)
        token = own.sign(msgspec.structs.replace(honest, submods={"press-1": odd})).encode()
        assert not verdict_or_refusal({**files, bundle.RESULT: token}, key)


def mutations(content: bytes, chance: random.Random) -> list[bytes]:
    """Cut, grown, flipped, replaced; JSON with its values swapped for others."""
    found = [
        b"",
        b"\0",
        b"null",
        b"[]",
        b"{}",
        b'{"sha256":{"x":"y"}}',
        content + b"\0",
        content[: len(content) // 2],
    ]
    for _ in range(20):
        at = chance.randrange(max(1, len(content)))
        found.append(content[:at] + bytes([chance.randrange(256)]) + content[at + 1 :])
    for other in (b'"00"', b"-1", b"99999999999999999999", b"null", b'"x"', b"{}"):
        found.append(re.sub(rb'(?<=:)("[^"]*"|[0-9]+)', other, content, count=chance.randrange(1, 9)))
    return found


def verdict_or_refusal(files: dict[str, bytes], key: ec.EllipticCurvePublicKey) -> bool:
    """Whether the bundle verifies; nothing but a Rejected may be raised."""
    try:
        return audit(files, key).verified
    except Rejected:
        return False


async def test_r09_a_result_that_vouches_for_bad_evidence_is_found_out(live: Live) -> None:
    node = await attested(live)
    node.pcrs = {**node.pcrs, 9: bytes(31) + b"\1"}
    for _ in range(2):  # the first one is asked for its log
        got = await answer_to(node, node.report())
        if getattr(got, "number", 0) == 0:
            await next_message(node)
    files = await exported(live)
    own = live.services.keys.result
    honest = verify_result(files[bundle.RESULT], load_result_key(own.pem), now=None)
    assert honest.ear_status == "contraindicated"
    said = honest.appraisal
    nice = msgspec.structs.replace(
        said,
        ear_status="affirming",
        appraised=msgspec.structs.replace(said.appraised, tiers={"boot": "affirming"}, findings=[]),
    )
    lie = own.sign(msgspec.structs.replace(honest, ear_status="affirming", submods={"press-1": nice}))
    found = audit({**files, bundle.RESULT: lie.encode()}, load_result_key(own.pem))
    assert "bundle.disagrees" in [finding.code for finding in found.findings]
    assert "bundle.disagrees" not in [f.code for f in audit(files, load_result_key(own.pem)).findings]


async def test_the_result_in_force_is_signed_when_asked_for_and_names_its_time(live: Live) -> None:
    node = await attested(live)
    nonce = base64.urlsafe_b64encode(b"n" * 16).rstrip(b"=").decode()
    status, said = await live.call("GET", f"/api/v1/nodes/press-1/result?nonce={nonce}", role="viewer")
    assert status == 200
    _, key = await live.call("GET", "/api/v1/results/key", role="viewer")
    token = str(said["result"])
    # An independent reading: PyJWT by the JWK, with its own clock.
    claims = jwt.decode(token, jwt.PyJWK(key["jwk"]), algorithms=["ES256"])  # type: ignore[arg-type]
    assert (claims["sub"], claims["eat_nonce"]) == ("press-1", nonce)
    assert claims["nbf"] <= time.time() < claims["exp"] <= time.time() + 3 * 60 + 1
    assert claims["submods"]["press-1"]["ear_trustworthiness_vector"]["executables"] == 3
    assert jwt.get_unverified_header(token)["kid"] == key["jwk"]["kid"]  # type: ignore[index]
    await answer_to(node, node.report(drifts=[drift()]))
    _, said = await live.call("GET", "/api/v1/nodes/press-1/result")
    result = verify_result(
        str(said["result"]).encode(), load_result_key(str(key["pem"]).encode()), now=time.time()
    )
    assert (result.ear_status, result.appraisal.appraised.tiers["configuration"]) == ("warning", "warning")
    assert result.appraisal.appraised.holds.open
    for query in ("?nonce=AA", "?nonce=%21%21"):
        status, problem = await live.call("GET", "/api/v1/nodes/press-1/result" + query)
        assert (status, problem["code"]) == (422, "result.nonce")


async def test_a_bundle_lacks_nothing_though_its_log_came_with_an_earlier_report(live: Live) -> None:
    node = await attested(live)
    await answer_to(node, node.report(drifts=[drift()]))
    files = await exported(live)
    assert files[bundle.EVENT_LOG] == node.event_log
    found = audit(files, load_result_key(files[bundle.RESULT_KEY]))
    assert found.verified and found.partial == [] and found.result.ear_status == "warning"


async def test_unknown_evidence_and_nodes_are_told_apart_from_none(live: Live) -> None:
    await live.node("press-1", connect=False)
    for path, code in (
        ("/nodes/press-1/evidence/newest", "evidence.unknown"),
        ("/nodes/press-1/evidence/7", "evidence.unknown"),
        ("/nodes/press-1/result", "result.none"),
        ("/nodes/press-9/result", "node.unknown"),
    ):
        _, problem = await live.call("GET", "/api/v1" + path)
        assert problem["code"] == code
    await attested_again(live)
    other = await live.node("press-2")
    await answer_to(other, other.report())
    (of_other,) = await stored(live, "press-2")
    _, problem = await live.call("GET", f"/api/v1/nodes/press-1/evidence/{of_other['id']}")
    assert problem["code"] == "evidence.unknown"


async def attested_again(live: Live) -> None:
    """One more node, so that numbers differ."""
    node = await live.node("press-3")
    await answer_to(node, node.report())


FILES = {f"/usr/bin/tool-{n}": hashlib.sha256(str(n).encode()).digest() for n in range(5)}
IMA = "[ima.allow]\n" + "".join(f'"{path}" = ["sha256:{digest.hex()}"]\n' for path, digest in FILES.items())


async def test_ima_lines_of_earlier_reports_stand_before_those_of_the_verdict(live: Live) -> None:
    await live.assign(2, extra=IMA)
    node = await live.node("press-1")
    node.measure(imalog.of_boot(node.pcrs, FILES))
    await answer_to(node, node.report())
    at_first = len(node.ima_log or b"")
    node.measure(imalog.record("/tmp/unknown", bytes(32)))
    answer = await answer_to(node, node.report())
    assert "ima.unknown-file" in [finding.code for finding in answer.findings]  # type: ignore[attr-defined]
    files = await exported(live)
    assert files[bundle.IMA_LOG] == node.ima_log
    found = audit(files, load_result_key(files[bundle.RESULT_KEY]))
    assert found.result.appraisal.appraised.tiers["runtime"] == "contraindicated"
    assert [f.code for f in found.findings] == ["ima.unknown-file"] and found.partial == []
    alone = {**files, bundle.IMA_LOG: files[bundle.IMA_LOG][at_first:]}
    assert [f.code for f in audit(alone, load_result_key(files[bundle.RESULT_KEY])).findings][:1] == [
        "bundle.digest"
    ]


async def test_a_bundle_without_the_earlier_ima_lines_says_that_it_is_partial(live: Live) -> None:
    await live.assign(2, extra=IMA)
    node = await live.node("press-1")
    node.measure(imalog.of_boot(node.pcrs, FILES))
    await answer_to(node, node.report())
    node.measure(imalog.record("/usr/bin/tool-1", FILES["/usr/bin/tool-1"]))
    await answer_to(node, node.report())  # the same verdict: these lines are not stored
    node.measure(imalog.record("/tmp/unknown", bytes(32)))
    await answer_to(node, node.report())
    files = await exported(live)
    assert b"PARTIAL" in files[bundle.README] and b"--ima-log" not in files[bundle.README]
    found = audit(files, load_result_key(files[bundle.RESULT_KEY]))
    assert found.verified and len(found.partial) == 1


async def ringfence(live: Live, folder: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    """The command, as an auditor, in a process of its own."""
    (folder / "admin-ca.pem").write_text(live.ca)
    env = {
        **os.environ,
        "PYTHONPATH": str(Path(__file__).resolve().parents[2]),
        "RINGFENCE_URL": live.admin_url,
        "RINGFENCE_CA": str(folder / "admin-ca.pem"),
        "RINGFENCE_TOKEN": TOKENS["auditor"],
    }
    command = [str(Path(sys.executable).parent / "ringfence"), *map(str, arguments)]
    return await asyncio.to_thread(
        subprocess.run, command, capture_output=True, text=True, timeout=60, env=env, cwd=folder
    )


async def test_an_export_needs_no_folder_named_and_writes_over_nothing(live: Live, tmp_path: Path) -> None:
    await attested(live)
    out = tmp_path / "press-1-evidence"
    done = await ringfence(live, tmp_path, "evidence", "export", "press-1")
    assert done.returncode == 0, done.stderr
    assert {each.name for each in out.iterdir()} == (await exported(live)).keys()
    (out / bundle.README).write_text("mine")
    again = await ringfence(live, tmp_path, "evidence", "export", "press-1")
    assert again.returncode == 1 and "--out" in again.stderr
    assert (out / bundle.README).read_text() == "mine"
    out.rename(tmp_path / "kept")
    out.write_text("a file of mine")
    again = await ringfence(live, tmp_path, "evidence", "export", "press-1")
    assert (again.returncode, out.read_text()) == (1, "a file of mine")
    assert "export.exists" in again.stderr
    for name in ("../press-1", "/press-1", ".", "press-1/.."):
        assert (await ringfence(live, tmp_path, "evidence", "export", name)).returncode == 1
    assert not list(tmp_path.parent.glob("*-evidence"))


async def test_the_command_lists_exports_and_verifies_with_a_key_had_by_another_way(
    live: Live, tmp_path: Path
) -> None:
    await attested(live)
    listed = await ringfence(live, tmp_path, "evidence", "list", "press-1", "--json")
    (only,) = json.loads(listed.stdout)
    out = tmp_path / "out"
    done = await ringfence(live, tmp_path, "evidence", "export", "press-1", "--id", only["id"], "--out", out)
    assert done.returncode == 0, done.stderr
    key = await ringfence(live, tmp_path, "evidence", "key")
    (tmp_path / "had.pem").write_text(key.stdout)
    good = await ringfence(live, tmp_path, "evidence", "verify", out, "--key", tmp_path / "had.pem")
    assert good.returncode == 0 and "affirming" in good.stdout, good.stderr
    again = await ringfence(live, tmp_path, "evidence", "export", "press-1", "--out", out)
    assert again.returncode == 1 and "not empty" in again.stderr
    stranger = ec.generate_private_key(ec.SECP256R1()).public_key()
    (tmp_path / "other.pem").write_bytes(
        stranger.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    )
    wrong = await ringfence(live, tmp_path, "evidence", "verify", out, "--key", tmp_path / "other.pem")
    assert wrong.returncode == 1 and "result.signature" in wrong.stdout
    (out / bundle.QUOTE).unlink()
    assert (await ringfence(live, tmp_path, "evidence", "verify", out)).returncode == 2
    token = (await ringfence(live, tmp_path, "evidence", "result", "press-1")).stdout.strip()
    assert (
        verify_result(token.encode(), load_result_key(key.stdout.encode()), now=time.time()).sub == "press-1"
    )
