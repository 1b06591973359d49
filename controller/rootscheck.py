"""`ringfence-controller ek-roots check`: which makers' certificates are here, which run out, which is missing for a TPM.

Fetches nothing: it says what to fetch and from where the certificate itself says that it can be had. Exit codes: 0 nothing
is amiss, 1 something is (also with --json), 2 wrong usage.
"""

from __future__ import annotations

import time
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path

import click
import msgspec
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import rsa
from msgspec import Struct

from contract import ekder
from contract.certnames import readable
from contract.certpath import Missing, Trust, check_path, fingerprint, is_anchor, missing, parse, spki
from contract.ekcert import check_leaf, device_of, parsed_chain
from contract.errors import Rejected
from contract.tpmvendor import kind_of, maker_in, maker_of
from controller.cli.show import show_facts, show_table
from controller.config import load_config
from controller.roots import certificates_of, crl_of, files, load_crls, load_roots

SOON_S = 90 * 86400.0
DEFAULT_DIRECTORY = "/var/lib/ringfence-controller"


class Root(Struct, frozen=True, kw_only=True):
    """One certificate, or one file that is none."""

    file: str
    subject: str = ""
    maker: str = ""
    kind: str = ""
    """"root" or "intermediate"."""
    sha256: str = ""
    expires: float | None = None
    state: str = "ok"
    """"ok", "expires soon", "expired", "not yet valid", "no root" (an intermediate that leads to none here), "unusable"."""
    detail: str = ""


class Report(Struct, frozen=True, kw_only=True):
    """All of a folder."""

    roots: list[Root]
    lists: list[Root]
    makers: list[str]

    @property
    def well(self) -> bool:
        """Whether nothing needs a person."""
        return bool(self.roots) and all(
            one.state in ("ok", "expires soon") for one in (*self.roots, *self.lists)
        )


class Verdict(Struct, frozen=True, kw_only=True):
    """What became of one EK certificate."""

    ek_id: str
    subject: str = ""
    issuer: str = ""
    maker: str = ""
    model: str = ""
    kind: str = "unknown"
    trusted: bool = False
    root_sha256: str = ""
    code: str = ""
    detail: str = ""
    notes: tuple[str, ...] = ()
    missing: Missing | None = None


@click.group("ek-roots")
def ek_roots() -> None:
    """The authorities whose TPM endorsement certificates are trusted."""


@ek_roots.command()
@click.option(
    "--dir",
    "directory",
    type=click.Path(path_type=Path, file_okay=False),
    default=DEFAULT_DIRECTORY,
    show_default=True,
    help="Folder of the controller.",
)
@click.option(
    "--certificate",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="An EK certificate as the TPM or its maker gave it: say what is missing for it.",
)
@click.option("--json", "as_json", is_flag=True, help="JSON for programs.")
@click.pass_context
def check(context: click.Context, directory: Path, certificate: Path | None, as_json: bool) -> None:
    """Say which roots are here and for which makers, which run out, and which is missing for a certificate."""
    config = load_config(directory).enrolment
    now = time.time()
    report = report_of(directory / config.ek_roots, directory / config.ek_crls, now)
    verdict = None
    if certificate is not None:
        trust = Trust(
            certificates=load_roots(directory / config.ek_roots),
            crls=load_crls(directory / config.ek_crls),
            stale_crl=config.expired_crl,
        )
        verdict = verdict_of(certificate.read_bytes(), trust, now)
    if as_json:
        click.echo(msgspec.json.encode({"folder": report, "certificate": verdict}).decode())
    else:
        _show(report, verdict)
    amiss = not report.well if verdict is None else not verdict.trusted
    context.exit(1 if amiss else 0)


def report_of(roots: Path, crls: Path, now: float) -> Report:
    """Look at every file by itself, so that one that is broken hides no other."""
    known: list[tuple[Path, x509.Certificate]] = []
    found: list[Root] = []
    for path in files(roots):
        try:
            known += [(path, certificate) for certificate in certificates_of(path)]
        except Rejected as rejected:
            found.append(Root(file=path.name, state="unusable", detail=rejected.detail))
    every = [certificate for _, certificate in known]
    found += [_root(path, certificate, every, now) for path, certificate in known]
    makers = sorted(
        {one.maker for one in found if one.maker and one.kind == "root" and one.state != "expired"}
    )
    return Report(roots=found, lists=_lists(crls, every, now), makers=makers)


def verdict_of(untrusted: bytes, trust: Trust, now: float) -> Verdict:
    """Check one EK certificate as enrolment would, without the EK: its own key stands for it."""
    try:
        pieces = ekder.certificates_in(untrusted)
        if not pieces:
            raise Rejected("ek.certificate-missing", "the file holds no certificate")
    except Rejected as rejected:
        return Verdict(ek_id="", code=rejected.code, detail=rejected.detail)
    try:
        leaf = parse(pieces[0], "ek")
    except Rejected as rejected:
        key = ekder.spki_of(pieces[0])
        ek_id = sha256(key).hexdigest() if key else ""
        cure = f"; no root will help: ringfence enrolments preregister {ek_id} --site SITE" if ek_id else ""
        return Verdict(ek_id=ek_id, code=rejected.code, detail=rejected.detail + cure)
    helpers = parsed_chain(b"".join(pieces[1:]))
    manufacturer, model, _ = device_of(leaf)
    verdict = Verdict(
        ek_id=sha256(spki(leaf)).hexdigest(),
        subject=readable(leaf.subject),
        issuer=readable(leaf.issuer),
        maker=maker_of(manufacturer),
        model=model,
        kind=kind_of(manufacturer, model),
    )
    try:
        rsa_key = isinstance(leaf.public_key(), rsa.RSAPublicKey)
        notes = check_leaf(leaf, rsa=rsa_key, named=bool(manufacturer and model))
        path = check_path(leaf, helpers, trust, at=datetime.fromtimestamp(now, UTC), area="ek")
    except Rejected as rejected:
        lacks = missing(leaf, helpers, trust.certificates)
        return msgspec.structs.replace(verdict, code=rejected.code, detail=rejected.detail, missing=lacks)
    return msgspec.structs.replace(
        verdict, trusted=True, root_sha256=path.root_sha256, notes=(*notes, *path.notes)
    )


def _root(path: Path, certificate: x509.Certificate, every: list[x509.Certificate], now: float) -> Root:
    anchor = is_anchor(certificate)
    lacks = None if anchor else missing(certificate, [], every)
    state = _dates(
        certificate.not_valid_before_utc.timestamp(), certificate.not_valid_after_utc.timestamp(), now
    )
    if lacks is not None and state != "expired":
        state = "no root"
    return Root(
        file=path.name,
        subject=readable(certificate.subject),
        maker=maker_in(certificate.subject.rfc4514_string()),
        kind="root" if anchor else "intermediate",
        sha256=fingerprint(certificate).hex(),
        expires=certificate.not_valid_after_utc.timestamp(),
        state=state,
        detail="" if lacks is None else str(lacks),
    )


def _lists(folder: Path, every: list[x509.Certificate], now: float) -> list[Root]:
    found: list[Root] = []
    for path in files(folder, frozenset({".crl", ".pem", ".der"})):
        try:
            crl = crl_of(path)
        except Rejected as rejected:
            found.append(Root(file=path.name, state="unusable", detail=rejected.detail))
            continue
        until = None if crl.next_update_utc is None else crl.next_update_utc.timestamp()
        state = _dates(crl.last_update_utc.timestamp(), until, now, soon_s=0.0)
        known = any(certificate.subject == crl.issuer for certificate in every)
        found.append(
            Root(
                file=path.name,
                subject=readable(crl.issuer),
                maker=maker_in(crl.issuer.rfc4514_string()),
                kind="list",
                expires=until,
                state=state,
                detail=f"{len(crl)} revoked"
                + ("" if known else "; its issuer is not in the folder of roots"),
            )
        )
    return found


def _dates(begins: float, ends: float | None, now: float, *, soon_s: float = SOON_S) -> str:
    if begins > now:
        return "not yet valid"
    if ends is not None and ends < now:
        return "expired"
    return "expires soon" if ends is not None and ends < now + soon_s else "ok"


def _day(moment: float | None) -> str:
    return "-" if moment is None else f"{datetime.fromtimestamp(moment, UTC):%Y-%m-%d}"


def _show(report: Report, verdict: Verdict | None) -> None:
    show_table(
        ("FILE", "KIND", "MAKER", "SUBJECT", "UNTIL", "STATE", "DETAIL"),
        [
            (one.file, one.kind, one.maker, one.subject, _day(one.expires), one.state, one.detail)
            for one in (*report.roots, *report.lists)
        ],
    )
    click.echo(f"roots of: {', '.join(report.makers) or 'nobody'}")
    if verdict is None:
        return
    lacks = verdict.missing
    show_facts(
        {
            "EK": verdict.ek_id,
            "TPM": f"{verdict.maker or '?'} {verdict.model} ({verdict.kind})",
            "issuer": verdict.issuer,
            "trusted": verdict.trusted,
            "root": verdict.root_sha256,
            "because": f"{verdict.code}: {verdict.detail}" if verdict.code else "",
            "missing": lacks.issuer if lacks else "",
            "its key id": lacks.key_id if lacks else "",
            "fetch it from": list(lacks.urls) if lacks else [],
            "notes": list(verdict.notes),
        }
    )
