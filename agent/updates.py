"""Fetches, verifies and keeps the signed baselines that directives choose.

It refuses whatever `contract.trust` refuses and keeps nothing before it is accepted. It decides nothing
about what is in force. Relies on: a state folder that only root can write, and a `fetch` function of the
caller (it opens no connection itself). Files under `<state_dir>/tuf`:

    roots/N.root.json                 the trusted root and its successors
    timestamp.json snapshot.json targets.json
    baselines/<sha256>.toml           verified baselines, and beside each
    baselines/<sha256>.proof          the signed list that named it, so that it is verified at every load
"""

from __future__ import annotations

import errno
import os
import re
import stat
import tempfile
import threading
from collections.abc import Callable, Collection
from pathlib import Path

from contract.directive import WantedBaseline
from contract.errors import Rejected
from contract.messages import METADATA_PATH, TARGETS_PATH, BaselineRef
from contract.metadata import MAX_TARGETS_BYTES
from contract.trust import refresh, targets_from_proof, trusted_root
from contract.trusted import TrustedBaseline, VerifiedTargets, target_file, target_path, trusted_baseline

Fetch = Callable[[str, int], bytes]
"""(path on the controller, most bytes) -> content. Raises FileNotFoundError when the controller has no such
file (404), any other OSError for "try again later"."""

KEPT_BASELINES = 16
"""At most 2 MiB each, with its proof; the one asked for longest ago goes first."""

_MAX_FILE_BYTES = MAX_TARGETS_BYTES + 4096
_ROOT_NAME = re.compile(r"([1-9][0-9]{0,8})\.root\.json", re.ASCII)
_NEW = ".new-"
"""Prefix of files that a power cut may leave behind half-written."""
_KEPT = ("timestamp.json", "snapshot.json", "targets.json")


class Updates:
    """The node's view of the signed repository. Calls block; one runs at a time."""

    def __init__(self, state_dir: Path, fetch: Fetch, *, root_metadata: bytes | None = None) -> None:
        """Open (and make, where it is missing) the folder `tuf` in `state_dir`.

        `root_metadata` is the trusted root.json: pinned by the configuration or given at enrolment. With None
        the oldest kept root is the anchor. Raises Rejected `metadata.*` for a bad root, `metadata.no-root`
        when there is none at all.
        """
        self._fetch = fetch
        self._lock = threading.Lock()
        self._tuf = state_dir / "tuf"
        self._roots = self._tuf / "roots"
        self._baselines = self._tuf / "baselines"
        for folder in (self._tuf, self._roots, self._baselines):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            for leftover in folder.glob(f"{_NEW}*"):
                leftover.unlink()
        self._anchor = self._oldest_root() if root_metadata is None else root_metadata
        version = trusted_root(self._anchor, []).version
        if root_metadata is not None and _read(self._roots / f"{version}.root.json") != root_metadata:
            _write(self._roots / f"{version}.root.json", root_metadata)

    def get(self, wanted: WantedBaseline, *, now: float, highest_version: int = 0) -> TrustedBaseline:
        """Return the wanted baseline, fetched as far as needed and verified against fresh metadata.

        `now` is seconds since 1970; `highest_version` the highest version of this name ever accepted.
        Raises Rejected (`baseline.*`, `metadata.*`) for what must not be trusted, OSError to try again.
        """
        with self._lock:
            targets = refresh(self._anchor, self._kept(), self._fetch_metadata, self._keep, now=now)
            raw = _read(self._baselines / f"{wanted.sha256}.toml")
            if raw is not None:
                try:
                    trusted = trusted_baseline(targets, wanted, raw, highest_version=highest_version)
                except Rejected as error:
                    if error.code != "baseline.digest":
                        raise
                else:
                    self._keep_baseline(trusted, targets)
                    return trusted
            trusted = self._download(targets, wanted, highest_version)
            self._keep_baseline(trusted, targets)
            return trusted

    def load_cached(self, ref: BaselineRef | WantedBaseline) -> TrustedBaseline:
        """Return a baseline accepted earlier, without a network, verified once more down to the trusted root.

        Expired metadata does not matter here (see `contract.trust.targets_from_proof`).
        Raises Rejected `baseline.not-kept` when it is not there, `baseline.*` or `metadata.*` when what is
        there is not what was signed.
        """
        with self._lock:
            return kept_baseline(self._tuf, self._anchor, ref)

    def prune(self, keep: Collection[BaselineRef | WantedBaseline]) -> None:
        """Remove every kept baseline but these. Without it, the KEPT_BASELINES asked for last stay."""
        names = {wanted_of(ref).sha256 for ref in keep}
        with self._lock:
            self._keep_only(names)

    def _download(
        self, targets: VerifiedTargets, wanted: WantedBaseline, highest_version: int
    ) -> TrustedBaseline:
        path = target_path(wanted.name, wanted.version)
        raw = b""
        if path in targets.entries and wanted.version >= highest_version:
            length, sha256 = targets.entries[path]
            served = target_file(wanted.name, wanted.version, sha256)
            try:
                raw = self._fetch(f"{TARGETS_PATH}/{served}", min(length, MAX_TARGETS_BYTES))
            except FileNotFoundError:
                raise Rejected("baseline.missing", f"the controller has no {served}") from None
        return trusted_baseline(targets, wanted, raw, highest_version=highest_version)

    def _fetch_metadata(self, name: str, max_bytes: int) -> bytes | None:
        try:
            return self._fetch(f"{METADATA_PATH}/{name}", max_bytes)
        except FileNotFoundError:
            return None

    def _kept(self) -> dict[str, bytes]:
        kept = {}
        for name in _KEPT:
            raw = _read(self._tuf / name)
            if raw is not None:
                kept[name] = raw
        for path in self._roots.iterdir():
            if _ROOT_NAME.fullmatch(path.name):
                kept[path.name] = path.read_bytes()
        return kept

    def _keep(self, name: str, content: bytes) -> None:
        _write((self._roots if _ROOT_NAME.fullmatch(name) else self._tuf) / name, content)

    def _keep_baseline(self, trusted: TrustedBaseline, targets: VerifiedTargets) -> None:
        """The proof first: a baseline without one is as good as none. Then the longest unused make room."""
        for suffix, content in (("proof", targets.proof()), ("toml", trusted.raw)):
            path = self._baselines / f"{trusted.sha256}.{suffix}"
            if _read(path) != content:
                _write(path, content)
            os.utime(path)
        newest = sorted(
            self._baselines.glob("*.toml"), key=lambda path: path.stat().st_mtime_ns, reverse=True
        )
        self._keep_only({path.stem for path in newest[:KEPT_BASELINES]})

    def _keep_only(self, names: Collection[str]) -> None:
        for path in self._baselines.iterdir():
            if path.stem not in names:
                path.unlink()

    def _oldest_root(self) -> bytes:
        versions = [int(m[1]) for p in self._roots.iterdir() if (m := _ROOT_NAME.fullmatch(p.name))]
        if not versions:
            raise Rejected(
                "metadata.no-root",
                "no trusted root.json: push a baseline to the controller before nodes enrol, "
                "or name root_metadata in agent.toml",
            )
        return (self._roots / f"{min(versions)}.root.json").read_bytes()


def kept_baseline(tuf: Path, anchor: bytes, ref: BaselineRef | WantedBaseline) -> TrustedBaseline:
    """As `Updates.load_cached`, of a folder `tuf` that may be somebody else's: nothing is changed there, and no link followed.

    Raises OSError besides.
    """
    wanted = wanted_of(ref)
    raw, proof = (_plain(tuf / "baselines" / f"{wanted.sha256}.{suffix}") for suffix in ("toml", "proof"))
    if raw is None or proof is None:
        raise Rejected("baseline.not-kept", target_path(wanted.name, wanted.version))
    names = [path.name for path in (tuf / "roots").iterdir() if _ROOT_NAME.fullmatch(path.name)]
    roots = {name: _plain(tuf / "roots" / name) or b"" for name in names}
    return trusted_baseline(targets_from_proof(anchor, roots, proof), wanted, raw)


def _read(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None


def _plain(path: Path) -> bytes | None:
    """Return a plain file; None where there is none. Raises OSError for anything else, and for what is too long."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    with os.fdopen(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "no plain file", str(path))
        content = file.read(_MAX_FILE_BYTES + 1)
    if len(content) > _MAX_FILE_BYTES:
        raise OSError(errno.EFBIG, f"more than {_MAX_FILE_BYTES} bytes", str(path))
    return content


def wanted_of(ref: BaselineRef | WantedBaseline) -> WantedBaseline:
    """Return the reference in the directive's form (digest in hex)."""
    if isinstance(ref, WantedBaseline):
        return ref
    return WantedBaseline(name=ref.name, version=ref.version, sha256=ref.sha256.hex())


def _write(path: Path, content: bytes) -> None:
    """Replace a file as one step that a power cut leaves either done or not begun. Raises OSError."""
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=_NEW, delete=False) as file:
        temporary = Path(file.name)
        try:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
            temporary.replace(path)
        except OSError:
            temporary.unlink(missing_ok=True)
            raise
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
