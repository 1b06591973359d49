"""A signed repository for apt and dnf, from what `make packages` built: `make repo` writes dist/repo.

    python packaging/os/repository.py [--from DIR] [--out DIR] [--keys FOLDER] [--valid-days N]

FOLDER is the owner's: `packages.asc` (an OpenPGP secret key, armoured) signs indexes and rpms, `provenance.pem` (a private key, PKCS 8;
Ed25519 or P-256) signs the provenance. RINGFENCE_PASSPHRASE_FILE names the file with the OpenPGP key's passphrase, if it has one. Without
FOLDER both are made for this one repository and thrown away; it says so, in a file of its own and in what apt shows.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from email.utils import formatdate
from pathlib import Path

import provenance

TREE = Path(__file__).resolve().parents[2]
_PARTS = ("Packages", "Packages.gz")
_THROWN_AWAY = """\
The keys of this repository were made for a try and are gone: nothing newer will ever be signed by them, and nobody vouches for them.
Do not install from here what is to stay. `make repo KEYS=FOLDER` signs with the owner's keys.
"""


class Keys:
    """The two keys, in a GnuPG home of their own that goes with this object."""

    def __init__(self, given: Path | None) -> None:
        self.home = Path(tempfile.mkdtemp(prefix="ringfence-gpg-"))
        self.home.chmod(0o700)
        self.made = given is None
        self.provenance = self.home / "provenance.pem" if given is None else given / "provenance.pem"
        if given is None:
            who = "Ringfence packages (throw-away key, for a try)"
            self.gpg("--passphrase", "", "--quick-generate-key", who, "rsa3072", "sign", "1w")
            subprocess.run(
                ["openssl", "genpkey", "-algorithm", "ed25519", "-out", self.provenance], check=True
            )
        else:
            self.gpg("--import", str(given / "packages.asc"))
        listed = self.gpg("--list-secret-keys", "--with-colons").decode().splitlines()
        prints = [line.split(":")[9] for line in listed if line.startswith("fpr:")]
        if not prints:
            raise SystemExit(f"{given}/packages.asc holds no secret key")
        self.fingerprint = prints[0]

    def gpg(self, *arguments: str) -> bytes:
        """Run gpg on this home; returns what it wrote. Raises CalledProcessError."""
        command = ["gpg", "--homedir", str(self.home), "--batch", "--yes", "--quiet", *_passphrase()]
        return subprocess.run([*command, *arguments], check=True, stdout=subprocess.PIPE).stdout

    def close(self) -> None:
        """Forget the keys."""
        subprocess.run(["gpgconf", "--homedir", self.home, "--kill", "all"], check=False)
        # rm, for which a socket that the ending agent takes away meanwhile is no fault.
        subprocess.run(["rm", "-rf", self.home], check=True)


def apt(packages: list[Path], out: Path, keys: Keys, valid_days: int) -> None:
    """Write the apt repository: pool, indexes, Release with its two signatures."""
    pool = out / "pool"
    pool.mkdir(parents=True)
    entries: dict[str, list[str]] = {}
    for path in packages:
        shutil.copy2(path, pool)
        control = subprocess.run(
            ["dpkg-deb", "-f", path], check=True, capture_output=True, text=True
        ).stdout.rstrip()
        architecture = next(
            line.split()[1] for line in control.splitlines() if line.startswith("Architecture:")
        )
        body = path.read_bytes()
        entry = f"{control}\nFilename: pool/{path.name}\nSize: {len(body)}\nSHA256: {hashlib.sha256(body).hexdigest()}\n"
        entries.setdefault(architecture, []).append(entry)
    suite = out / "dists/stable"
    indexes = []
    for architecture, found in sorted(entries.items()):
        folder = suite / f"main/binary-{architecture}"
        folder.mkdir(parents=True)
        text = "\n".join(found).encode()
        (folder / "Packages").write_bytes(text)
        with gzip.GzipFile(folder / "Packages.gz", "wb", mtime=0) as file:
            file.write(text)
        indexes += [folder / name for name in _PARTS]
    release = suite / "Release"
    release.write_text(_release(suite, indexes, sorted(entries), keys, valid_days))
    keys.gpg("--armor", "--detach-sign", "--output", str(suite / "Release.gpg"), str(release))
    keys.gpg("--clearsign", "--output", str(suite / "InRelease"), str(release))


def dnf(packages: list[Path], out: Path, keys: Keys) -> None:
    """Write the dnf repository: rpms signed one by one, and the index signed."""
    out.mkdir(parents=True)
    for path in packages:
        copied = out / path.name
        shutil.copy2(path, copied)
        extra = " ".join(_passphrase())
        subprocess.run(
            ["rpmsign", "--define", f"__gpg {shutil.which('gpg')}", "--define", f"_gpg_name {keys.fingerprint}", "--define", f"_gpg_path {keys.home}",
             "--define", f"_gpg_sign_cmd_extra_args --batch {extra}", "--addsign", copied],
            check=True, stdout=subprocess.DEVNULL,
        )  # fmt: skip
    subprocess.run(["createrepo_c", "--quiet", "--no-database", out], check=True)
    keys.gpg("--armor", "--detach-sign", str(out / "repodata/repomd.xml"))
    (out / "ringfence.repo").write_text(
        "# To /etc/yum.repos.d/, with the address that you serve this from.\n"
        "[ringfence]\nname=Ringfence\nbaseurl=file:///srv/ringfence/rpm\nenabled=1\ngpgcheck=1\nrepo_gpgcheck=1\n"
        "gpgkey=file:///srv/ringfence/ringfence.asc\n"
    )


def evidence(source: Path, out: Path, keys: Keys) -> None:
    """Copy the bills, sign the provenance; SHA256SUMS is of what was built: an rpm in rpm/ has a signature on top."""
    for path in sorted(source.glob("*.cdx.json")):
        shutil.copy2(path, out)
    for path in sorted(source.glob("*.intoto.json")):
        signed = provenance.sign(path.read_bytes(), keys.provenance)
        (out / f"{path.name.removesuffix('.intoto.json')}.intoto.dsse.json").write_bytes(signed)
    shutil.copy2(source / "SHA256SUMS", out / "SHA256SUMS")
    keys.gpg("--armor", "--detach-sign", str(out / "SHA256SUMS"))
    (out / "ringfence.asc").write_bytes(keys.gpg("--armor", "--export", keys.fingerprint))
    subprocess.run(
        ["openssl", "pkey", "-in", keys.provenance, "-pubout", "-out", out / "provenance.pub.pem"], check=True
    )
    if keys.made:
        (out / "THROW-AWAY-KEYS.txt").write_text(_THROWN_AWAY)


def _release(suite: Path, indexes: list[Path], architectures: list[str], keys: Keys, valid_days: int) -> str:
    now = time.time()
    label = "Ringfence (throw-away keys, for a try)" if keys.made else "Ringfence"
    lines = [f"Origin: {label}", f"Label: {label}", "Suite: stable", "Codename: stable", "Components: main"]
    lines += [f"Architectures: {' '.join(architectures)}", f"Date: {formatdate(now, usegmt=True)}"]
    if valid_days:
        lines.append(f"Valid-Until: {formatdate(now + valid_days * 86400, usegmt=True)}")
    lines.append("SHA256:")
    for path in indexes:
        body = path.read_bytes()
        lines.append(f" {hashlib.sha256(body).hexdigest()} {len(body):16} {path.relative_to(suite)}")
    return "\n".join(lines) + "\n"


def _passphrase() -> list[str]:
    file = os.environ.get("RINGFENCE_PASSPHRASE_FILE")
    return ["--pinentry-mode", "loopback", *(["--passphrase-file", file] if file else [])]


def main() -> int:
    """Make the repository anew."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--from", dest="source", type=Path, default=TREE / "dist")
    parser.add_argument("--out", type=Path, default=TREE / "dist/repo")
    parser.add_argument("--keys", type=Path, help="The owner's: packages.asc and provenance.pem.")
    parser.add_argument(
        "--valid-days", type=int, default=0, help="apt refuses the index after so long; 0: never."
    )
    options = parser.parse_args()
    debs, rpms = sorted(options.source.glob("*.deb")), sorted(options.source.glob("*.rpm"))
    if not debs or not rpms:
        parser.error(f"{options.source} has no packages: make packages")
    keys = Keys(options.keys)
    try:
        shutil.rmtree(options.out, ignore_errors=True)
        options.out.mkdir(parents=True)
        apt(debs, options.out / "apt", keys, options.valid_days)
        dnf(rpms, options.out / "rpm", keys)
        evidence(options.source, options.out, keys)
    finally:
        keys.close()
    print(f"{options.out}: {len(debs)} deb, {len(rpms)} rpm, signed by {keys.fingerprint}")
    if keys.made:
        print(_THROWN_AWAY, end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
