"""The `[ima]` section: what it takes, what it refuses, and how it is compiled."""

from __future__ import annotations

import hashlib
import re
import struct
import time

import msgspec
import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from contract.baseline import parse_baseline, section
from contract.errors import Rejected
from contract.imalog import Fields
from contract.imapolicy import ImaPolicy, Package, pack
from contract.imarules import ImaRules, Unknown, family
from contract.imasig import load_signer
from contract.messages import PackageChange
from contract.pathrules import PathRules, refuse_too_wide
from tests.contract.imaforge import Log, codes, field, judged, sha256

HEAD = '[baseline]\nname = "x"\nversion = 1\nsummary = "x"\n'
RSA = rsa.generate_private_key(65537, 2048)
EC = ec.generate_private_key(ec.SECP256R1())
DIGEST = sha256(b"tool")


def policy_of(toml: str) -> ImaPolicy:
    return section(parse_baseline((HEAD + toml).encode(), file="f"), "ima", ImaPolicy)


def refused(toml: str) -> str:
    with pytest.raises(Rejected) as error:
        policy_of(toml)
    assert error.value.code == "baseline.key"
    return error.value.detail


def pem_of(key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey) -> str:
    return key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()


def signature_of(
    key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey,
    digest: bytes,
    *,
    form: int = 3,
    version: int = 2,
    algorithm: int = 4,
) -> bytes:
    """Return the extended attribute `security.ima` with a signature."""
    signed = Prehashed(hashes.SHA256())
    if isinstance(key, rsa.RSAPrivateKey):
        raw = key.sign(digest, padding.PKCS1v15(), signed)
    else:
        raw = key.sign(digest, ec.ECDSA(signed))
    return (
        struct.pack(">BBBIH", form, version, algorithm, load_signer("", pem_of(key)).key_id, len(raw)) + raw
    )


def test_a_package_survives_its_compact_form() -> None:
    files = {
        b"/usr/bin/tool": DIGEST,
        b"/usr/bin/another tool": sha256(b"2"),
        "/usr/lib/ä%20'\"\\.so".encode(): sha256(b"3"),
        b"/\xff\xfe/\x01": sha256(b"4"),
        b"/rooted": sha256(b"5"),
    }
    files |= {b"/usr/share/%d/%d" % (number % 7, number): sha256(b"%d" % number) for number in range(3000)}
    made = pack("p", "1:2.3-4~5", files)
    assert dict(made.entries()) == files
    assert all(len(text) <= 2000 for text in (*made.files, *made.sha256))
    assert msgspec.convert(msgspec.to_builtins(made), Package) == made
    assert pack("empty", "", {}) == Package(name="empty", files=[], sha256=[])


@pytest.mark.parametrize(
    ("files", "digests", "what"),
    [
        (["/usr/bin/ a b"], ["A" * 44], "2 names need 64 bytes"),
        (["/usr/bin/ a"], [], "1 names need 32 bytes"),
        (["/usr/bin/"], [], "expected '/folder/ name name'"),
        (["/usr/bin a"], [], "expected '/folder/ name name'"),
        (["usr/bin/ a"], [], "expected '/folder/ name name'"),
        (["/usr/bin/  a"], [], "an empty name"),
        (["/usr/bin/ a"], ["!" * 44], "expected base64"),
        (["/usr/bin/ a"], ["A" * 45], "expected base64"),
    ],
)
def test_a_package_that_does_not_add_up_is_refused(files: list[str], digests: list[str], what: str) -> None:
    assert what in refused(f"[[ima.package]]\nname = 'p'\nfiles = {files!r}\nsha256 = {digests!r}\n")


@pytest.mark.parametrize(
    "toml",
    [
        "allow = { 'usr/bin/a' = ['sha256:" + "0" * 64 + "'] }",
        "allow = { '/usr/bin/a' = [] }",
        "allow = { '/usr/bin/a' = ['*'] }",
        "allow = { '/usr/bin/a' = ['sha1:" + "0" * 40 + "'] }",
        "allow = { '/usr/bin/a' = ['sha256:" + "A" * 64 + "'] }",
        "unknown_files = 'accept'",
        "unknown_file = 'warn'",
        "max_reports = 0",
        "signers = { a = 'no key' }",
        "keyrings = { a = ['*'] }\nbuffers = { a = ['*'] }",
    ],
)
def test_what_cannot_be_meant_is_refused(toml: str) -> None:
    refused(f"[ima]\n{toml}\n")


def test_an_allow_list_of_tens_of_thousands_fits_a_baseline() -> None:
    made = [
        pack(
            f"package{each}",
            "1.0-1",
            {b"/usr/lib/package%d/file%d" % (each, n): sha256(b"%d" % n) for n in range(100)},
        )
        for each in range(400)
    ]
    lines = [HEAD]
    for package in made:
        lines.append(f"[[ima.package]]\nname = '{package.name}'\nversion = '{package.version}'")
        lines += ["files = [", *(f"'{text}'," for text in package.files), "]"]
        lines += ["sha256 = [", *(f"'{text}'," for text in package.sha256), "]"]
    text = "\n".join(lines)
    assert len(text) < 75 * 40_000
    began = time.process_time()
    policy = section(parse_baseline(text.encode()), "ima", ImaPolicy)
    rules = ImaRules(policy)
    assert time.process_time() - began < 5
    fields = Fields(b"sha256", sha256(b"7"), b"/usr/lib/package9/file7")
    assert rules.judge(fields) is None
    assert rules.version_of("package9") == "1.0-1"


def test_path_rules() -> None:
    rules = PathRules(["/var/log/", "/etc/fstab", "/home/*/.cache/", "/run/user/*/x*y", "/srv/*"])
    for path, wanted in {
        "/var/log/x": True,
        "/var/log/a/b/c": True,
        "/var/log": False,
        "/var/logs": False,
        "/etc/fstab": True,
        "/etc/fstab2": False,
        "/home/a/.cache/x/y": True,
        "/home/a/b/.cache/x": False,
        "/home/.cache/x": False,
        "/run/user/1/xy": True,
        "/run/user/1/x": False,
        "/run/user/1/xaay": True,
        "/run/user/1/2/xy": False,
        "/srv/a": True,
        "/srv/a/b": False,
        "var/log/x": False,
        "": False,
    }.items():
        assert rules.match(path.encode()) is wanted, path
    assert not PathRules([]).match(b"/")


@pytest.mark.parametrize(
    "rule",
    [
        "/",
        "/*",
        "/*/",
        "/*/*",
        "/usr/",
        "/usr/*",
        "/usr/*/",
        "/usr/*/*",
        "/u*/",
        "/usr/bin/*",
        "/usr/lib/*/",
        "/*/bin/",
    ],
)
def test_m12_exclude_rule_that_matches_everything(rule: str) -> None:
    assert "takes in everything in" in refused(f'[ima]\nexclude = ["{rule}"]\n')


@pytest.mark.parametrize(
    "rule", ["", "var/", "//", "/a//b", "/a/../b", "/a/.", "/a/**", "/a/*b*", "/a\\u0000b"]
)
def test_m12_exclude_rule_that_is_none(rule: str) -> None:
    refused(f'[ima]\nexclude = ["{rule}"]\n')


def test_m12_no_rule_backtracks() -> None:
    many = [f"/srv/{'a*a/' * 300}{number}" for number in range(100)]
    refuse_too_wide(many)
    rules = PathRules(many)
    path = b"/srv/" + b"a" * 100_000 + b"/" + b"aa/" * 400_000
    began = time.process_time()
    assert not rules.match(path)
    assert time.process_time() - began < 2


@pytest.mark.parametrize("key", [RSA, EC], ids=["rsa", "ec"])
def test_a_signed_file_needs_no_digest(key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey) -> None:
    policy = ImaPolicy(signers={"factory": pem_of(key)})
    log = Log().file("/opt/tool", DIGEST, third=signature_of(key, DIGEST))
    assert codes(judged(policy, log)) == []
    assert codes(judged(ImaPolicy(), log)) == ["ima.unknown-file"]
    assert codes(
        judged(policy, Log().file("/opt/evil", sha256(b"evil"), third=signature_of(key, DIGEST)))
    ) == ["ima.signature"]


def test_a_signature_by_nobody_we_know_is_none() -> None:
    policy = ImaPolicy(signers={"factory": pem_of(RSA)})
    log = Log().file("/opt/tool", DIGEST, third=signature_of(EC, DIGEST))
    assert codes(judged(policy, log)) == ["ima.unknown-file"]


def test_a_signature_cut_or_of_another_form_never_counts() -> None:
    policy = ImaPolicy(signers={"factory": pem_of(RSA)})
    good = signature_of(RSA, DIGEST)
    wrong = [good[:size] for size in range(1, len(good))] + [good + b"\0"]
    wrong += [
        signature_of(RSA, DIGEST, **{k: v})
        for k, v in (("form", 6), ("version", 1), ("version", 3), ("algorithm", 2))
    ]
    for each in wrong:
        found = codes(judged(policy, Log().file("/opt/tool", DIGEST, third=each)))
        assert found in (["ima.signature"], ["ima.unknown-file"])


def test_a_verity_signature_is_over_the_file_id() -> None:
    signed = hashlib.sha256(b"\x06\x04" + DIGEST).digest()
    signature = signature_of(RSA, signed, form=6, version=3)
    policy = ImaPolicy(signers={"factory": pem_of(RSA)})
    data = field(b"verity:sha256:\0" + DIGEST) + field(b"/opt/tool\0") + field(signature)
    assert codes(judged(policy, Log().line(data, template="ima-sigv2"))) == []
    other = field(b"ima:sha256:\0" + DIGEST) + field(b"/opt/tool\0") + field(signature)
    assert codes(judged(policy, Log().line(other, template="ima-sigv2"))) == ["ima.signature"]


def test_weak_keys_are_refused() -> None:
    small = rsa.generate_private_key(65537, 1024)
    with pytest.raises(ValueError, match="RSA with 1024 bits"):
        ImaPolicy(signers={"small": pem_of(small)})


def test_keys_and_buffers() -> None:
    key = b"a certificate"
    log = Log().buffer(".ima", key).buffer("kexec-cmdline", b"quiet")
    digest = f"sha256:{sha256(key).hex()}"
    assert codes(judged(ImaPolicy(), log)) == ["ima.buffer", "ima.buffer"]
    policy = ImaPolicy(keyrings={".ima": [digest]}, buffers={"kexec-cmdline": ["*"]})
    assert codes(judged(policy, log)) == []
    assert codes(judged(policy, Log().buffer(".ima", b"another"))) == ["ima.buffer"]
    false = Log().buffer("kexec-cmdline", b"quiet", sha256(b"other"))
    assert codes(judged(policy, false)) == ["ima.buffer"]


def test_other_templates_are_judged_by_their_file() -> None:
    policy = ImaPolicy(allow={"/opt/tool": [f"sha256:{DIGEST.hex()}"]})
    head = field(b"sha256:\0" + DIGEST) + field(b"/opt/tool\0")
    modsig = head + field(b"") + field(b"sha256:\0" + sha256(b"m")) + field(b"PKCS7")
    numbers = field(struct.pack("<I", 0)) * 2 + field(struct.pack("<H", 0o755))
    evm = (
        head + field(b"sig") + field(b"security.ima") + field(struct.pack("<I", 3)) + field(b"abc") + numbers
    )
    log = Log().line(modsig, template="ima-modsig").line(evm, template="evm-sig")
    assert codes(judged(policy, log)) == []
    assert len(codes(judged(ImaPolicy(), log))) == 2
    for bad in (evm[:-1], evm + b"\0", evm[:-6] + field(b"\1"), evm.replace(b"\4\0\0\0\3", b"\3\0\0\0\3")):
        assert codes(judged(policy, Log().line(bad, template="evm-sig"))) == ["ima.fields"]


def test_only_upgrades_of_named_packages_explain() -> None:
    rules = ImaRules(
        ImaPolicy(package=[pack("linux-image-6.1.0-56-amd64", "6.1.76-1", {b"/boot/vmlinuz": DIGEST})])
    )
    change = PackageChange(
        name="linux-image-6.1.0-57-amd64", after="6.1.80-1", files={"/boot/vmlinuz": DIGEST}
    )
    (found,) = rules.explanations([change]).values()
    assert (found.name, found.before, found.after) == ("linux-image-6.1.0-57-amd64", "6.1.76-1", "6.1.80-1")
    for name, after in (
        ("linux-image-6.1.0-57-arm64", "1"),
        ("evil", "1"),
        (change.name, "6.1.76-1"),
        (change.name, ""),
    ):
        assert rules.explanations([msgspec.structs.replace(change, name=name, after=after)]) == {}


def test_families() -> None:
    assert family("linux-image-6.1.0-56-amd64") == "linux-image-#-amd#"
    assert family("libssl3") == family("libssl1.1")
    assert family("libc6") != family("libc6-dev")


def test_rules_answer_without_judging_a_digest_under_another_path() -> None:
    rules = ImaRules(ImaPolicy(allow={"/a": [f"sha256:{DIGEST.hex()}"]}))
    assert rules.judge(Fields(b"sha256", DIGEST, b"/a")) is None
    assert rules.judge(Fields(b"sha256", DIGEST, b"/b")) == Unknown(b"/a")
    assert rules.judge(Fields(b"sha256", DIGEST, b"/a", b"verity")) == Unknown(b"/a")


def test_no_details_run_over_a_line() -> None:
    detail = refused('[ima]\nexclude = ["/usr/"]\n')
    assert re.match(r"f:\d+: ima: ", detail), detail
