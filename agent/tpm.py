"""The node's TPM: endorsement key, attestation key, credential activation, quotes. The only user of tpm2-pytss.

The EK is the TCG template's primary key (TCG EK Credential Profile for TPM 2.0, v2.5, annex B); the AK is
a child of it, so that its qualified name ties it to this EK: H(QN(EK) || Name(AK)). The AK never leaves the
TPM; its wrapped blobs are given in and handed out as bytes, for the store to keep.

Refuses: to wait. Every call runs on this object's own thread and is given up after a time, with TpmBusy, so a
hanging TPM never holds up the thread that keeps the firewall. A TPM that is locked out (0x921), testing or
asks to retry is busy, not broken (ATTACKS a08).
Relies on: one process using the AK; a resource manager (/dev/tpmrm0) or a simulator underneath.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeoutError
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from tpm2_pytss import (
    ESAPI,
    ESYS_TR,
    TPM2_ALG,
    TPM2_CAP,
    TPM2_SE,
    TPM2_SU,
    TPM2B_DIGEST,
    TPM2B_ENCRYPTED_SECRET,
    TPM2B_ID_OBJECT,
    TPM2B_PRIVATE,
    TPM2B_PUBLIC,
    TPML_DIGEST,
    TPMT_SYM_DEF,
    TSS2_Exception,
)
from tpm2_pytss.utils import NoSuchIndex, NVReadEK, create_ek_template

from agent.tpmkeys import EK_TEMPLATES, POLICY_A_SHA256, POLICY_OR, AkKind, EkKind, ak_template
from agent.tpmproperties import properties
from contract.messages import DevIdEvidence

# The TSS writes its own lines to stderr for what is a plain answer here (an NV index that is not there).
os.environ.setdefault("TSS2_LOG", "all+NONE")

T = TypeVar("T")

_EK_CERTIFICATES = frozenset({0x01C00002, 0x01C0000A, 0x01C00016, 0x01C0001C})
_BUSY = frozenset({0x921, 0x922, 0x908, 0x90A, 0x902, 0x903, 0x904})
"""TPM_RC_LOCKOUT, RETRY, YIELDED, TESTING, and no room for objects, sessions, memory (TPM 2.0 Part 2, 6.6.3)."""
_FORMAT_ONE = 0x80
"""Set in answers about a parameter, handle or session: the command's input was at fault."""

_NUMBER_OF_FORMAT_ONE = 0xBF
_INTEGRITY = 0x9F
"""TPM_RC_INTEGRITY, whatever parameter it is about (Part 2, 6.6.3)."""

_SIMULATORS = ("swtpm", "mssim")
_LEFTOVERS = (0x80000000, 0x02000000)  # transient objects, loaded sessions (Part 2, 7.4)
_QUICK_S = 0.5
_SLOW_S = 30.0


class TpmUnavailable(Exception):
    """The TPM cannot answer now. Try again later."""


class TpmBusy(TpmUnavailable):
    """It is there but locked out, testing, or slower than the time given."""


class TpmGone(TpmUnavailable):
    """It cannot be reached, or does not hold the key any more."""


class TpmForeignKeys(TpmGone):
    """The AK's blobs were wrapped by another TPM: a disk was cloned or moved (ATTACKS b12)."""


@dataclass(frozen=True, slots=True)
class AttestationBlobs:
    """The AK as the TPM wrapped it: TPM2B_PRIVATE and TPM2B_PUBLIC, of worth only in this TPM."""

    private: bytes
    public: bytes


class Tpm:
    """One TPM by its TCTI. Opens on first use and after a loss; safe to call from any thread."""

    def __init__(self, tcti: str, *, ek: EkKind = "rsa2048", ak: AkKind = "ecc256") -> None:
        self._tcti = tcti
        self._ek_kind = ek
        self._ak_kind = ak
        self._blobs: AttestationBlobs | None = None
        self._esapi: ESAPI | None = None
        self._ak: ESYS_TR | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="tpm")
        self._lock = threading.Lock()
        self._running: Future[object] | None = None

    def endorsement(self) -> tuple[bytes, bytes]:
        """Return the EK's TPM2B_PUBLIC and its certificate from NV (DER, maybe padded; b"" if there is none)."""
        return self._call(self._endorsement, _SLOW_S)

    def endorsement_chain(self) -> bytes:
        """Return the certificates above the EK's that the TPM holds, DER one behind another; b"" if there are none."""
        from agent.tpmdevid import endorsement_chain  # to enrol, once in a node's life

        return self._call(lambda: endorsement_chain(self._open()), _SLOW_S)

    def device_identities(self, qualifying_data: bytes, further: Sequence[bytes] = ()) -> list[DevIdEvidence]:
        """Return the device identities that this TPM holds, proved to live beside the AK (`agent.tpmdevid`)."""
        from agent.tpmdevid import device_identities

        return self._call(
            lambda: device_identities(self._open(), self._loaded_ak(), qualifying_data, further), _SLOW_S
        )

    def properties(self) -> dict[str, str]:
        """Return what the TPM says of its make, in words (`agent.tpmproperties`)."""
        return self._call(lambda: properties(self._open()), _SLOW_S)

    def create_ak(self) -> AttestationBlobs:
        """Make a new AK under the EK and use it from now on."""
        return self._call(self._create_ak, _SLOW_S)

    def use_ak(self, blobs: AttestationBlobs) -> None:
        """Use these blobs from now on; they are loaded when first needed."""
        self._blobs = blobs
        self._call(self._drop_ak, _SLOW_S)

    def activate(self, credential_blob: bytes, encrypted_secret: bytes) -> bytes:
        """TPM2_ActivateCredential: return the secret. Both are whole TPM2B structures.

        Raises ValueError when the TPM says that it was not made for this EK and AK, or is malformed.
        """
        return self._call(lambda: self._activate(credential_blob, encrypted_secret), _SLOW_S)

    def quote(self, qualifying_data: bytes, pcrs: Sequence[int]) -> tuple[bytes, bytes, dict[int, bytes]]:
        """Return (TPMS_ATTEST, TPMT_SIGNATURE, PCR values of the SHA-256 bank) of one moment."""
        return self._call(lambda: self._quote(qualifying_data, sorted(set(pcrs))), _SLOW_S)

    def read_pcrs(self, pcrs: Sequence[int], *, timeout_s: float = _QUICK_S) -> dict[int, bytes]:
        """Return SHA-256 PCR values. Raises TpmUnavailable, after `timeout_s` at the latest."""
        return self._call(lambda: self._read_pcrs(sorted(set(pcrs))), timeout_s)

    def close(self) -> None:
        """Flush keys, shut a simulator down in order, end the thread. Without it, power cuts add up to a lock-out."""
        try:
            self._call(self._close, 2.0)
        except TpmUnavailable:
            pass
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _call(self, job: Callable[[], T], timeout_s: float) -> T:
        with self._lock:
            running = self._running
            if running is not None and not running.done():
                try:
                    running.exception(timeout_s)
                except FutureTimeoutError:
                    raise TpmBusy("an earlier command has not come back") from None
            future = self._thread.submit(self._guarded, job)
            self._running = future  # type: ignore[assignment]
        try:
            return future.result(timeout_s)
        except FutureTimeoutError:
            raise TpmBusy(f"no answer within {timeout_s:g} s") from None

    def _guarded(self, job: Callable[[], T]) -> T:
        try:
            try:
                return job()
            except TSS2_Exception as error:
                if not 0x910 <= int(error.rc) <= 0x91E:  # TPM_RC_REFERENCE_*: what we had loaded is gone
                    raise
                self._forget()  # the TPM was reset: open and load anew, once
                return job()
        except TSS2_Exception as error:
            code = int(error.rc)
            if code in _BUSY:
                raise TpmBusy(f"0x{code:x}: {error}") from None
            self._forget()
            raise TpmGone(self._missing() or f"0x{code:x}: {error}") from None

    def _missing(self) -> str:
        """Return what to say when there is no such device; the library says no more than "IO failure"."""
        kind, _, path = self._tcti.partition(":")
        if kind != "device" or not path or Path(path).exists():
            return ""
        return f"there is no TPM: {path} does not exist ([tpm] tcti in the configuration)"

    def _open(self) -> ESAPI:
        if self._esapi is None:
            self._esapi = ESAPI(self._tcti)
            if self._tcti.startswith(_SIMULATORS):
                self._flush_leftovers(self._esapi)
        return self._esapi

    @staticmethod
    def _flush_leftovers(esapi: ESAPI) -> None:
        """No resource manager stands before a simulator: flush what a killed agent left in its three slots."""
        for first in _LEFTOVERS:
            _, found = esapi.get_capability(
                TPM2_CAP.HANDLES, first, 16
            )  # the list lives no longer than `found`
            for handle in [int(each) for each in found.data.handles]:
                esapi.flush_context(esapi.tr_from_tpmpublic(handle))

    def _forget(self) -> None:
        """Drop the connection: after a reset of the TPM no handle of ours is worth anything."""
        self._ak = None
        esapi, self._esapi = self._esapi, None
        if esapi is not None:
            esapi.close()

    def _drop_ak(self) -> None:
        if self._ak is not None:
            self._open().flush_context(self._ak)
            self._ak = None

    def _close(self) -> None:
        if self._esapi is None:
            return
        self._drop_ak()
        if self._tcti.startswith(_SIMULATORS):
            # Behind /dev/tpmrm0 the kernel does this when the machine goes down; a simulator is ours alone.
            self._esapi.shutdown(TPM2_SU.CLEAR)
        self._forget()

    def _primary(self) -> tuple[ESYS_TR, TPM2B_PUBLIC, bytes]:
        esapi = self._open()
        nv = NVReadEK(esapi)

        def read(index: int) -> bytes:
            try:
                return bytes(nv(index))
            except NoSuchIndex:
                if index in _EK_CERTIFICATES:  # the certificate may be a file instead
                    return b""
                raise

        certificate, template = create_ek_template(EK_TEMPLATES[self._ek_kind], read)
        handle, public, _, _, _ = esapi.create_primary(None, template, ESYS_TR.ENDORSEMENT)
        return handle, public, bytes(certificate or b"")

    def _ek_session(self, ek_public: TPM2B_PUBLIC) -> ESYS_TR:
        """Return a policy session that the EK takes: PolicyA, or PolicyB through its first branch."""
        esapi = self._open()
        area = ek_public.publicArea
        name_alg = TPM2_ALG(area.nameAlg)
        session = esapi.start_auth_session(
            ESYS_TR.NONE, ESYS_TR.NONE, TPM2_SE.POLICY, TPMT_SYM_DEF(algorithm=TPM2_ALG.NULL), name_alg
        )
        try:
            esapi.policy_secret(ESYS_TR.ENDORSEMENT, session, expiration=0)
            if bytes(area.authPolicy) != POLICY_A_SHA256:
                branches = POLICY_OR[name_alg]
                esapi.policy_or(session, TPML_DIGEST([TPM2B_DIGEST(b) for b in branches]))
        except TSS2_Exception:
            esapi.flush_context(session)
            raise
        return session

    def _with_ek(self, job: Callable[[ESYS_TR, ESYS_TR], T]) -> T:
        """Run `job(ek, session)`; the session is used up by one command, the EK is flushed."""
        esapi = self._open()
        ek, public, _ = self._primary()
        try:
            session = self._ek_session(public)
            try:
                return job(ek, session)
            finally:
                esapi.flush_context(session)
        finally:
            esapi.flush_context(ek)

    def _endorsement(self) -> tuple[bytes, bytes]:
        handle, public, certificate = self._primary()
        self._open().flush_context(handle)
        return bytes(public.marshal()), certificate

    def _create_ak(self) -> AttestationBlobs:
        self._drop_ak()
        template = ak_template(self._ak_kind)

        def create(ek: ESYS_TR, session: ESYS_TR) -> AttestationBlobs:
            private, public, _, _, _ = self._open().create(ek, None, template, session1=session)
            return AttestationBlobs(private=bytes(private.marshal()), public=bytes(public.marshal()))

        self._blobs = self._with_ek(create)
        return self._blobs

    def _loaded_ak(self) -> ESYS_TR:
        if self._ak is None:
            if self._blobs is None:
                raise TpmGone("no attestation key has been made yet")
            private, _ = TPM2B_PRIVATE.unmarshal(self._blobs.private)
            public, _ = TPM2B_PUBLIC.unmarshal(self._blobs.public)
            try:
                self._ak = self._with_ek(
                    lambda ek, session: self._open().load(ek, private, public, session1=session)
                )
            except TSS2_Exception as error:
                if int(error.rc) & _NUMBER_OF_FORMAT_ONE == _INTEGRITY:
                    raise TpmForeignKeys(
                        "the attestation key is another TPM's: this state folder was brought from another machine"
                    ) from None
                raise
        return self._ak

    def _activate(self, credential_blob: bytes, encrypted_secret: bytes) -> bytes:
        ak = self._loaded_ak()
        blob, blob_end = TPM2B_ID_OBJECT.unmarshal(credential_blob)
        secret, secret_end = TPM2B_ENCRYPTED_SECRET.unmarshal(encrypted_secret)
        if blob_end != len(credential_blob) or secret_end != len(encrypted_secret):
            raise ValueError("bytes after the credential")

        def open_it(ek: ESYS_TR, session: ESYS_TR) -> bytes:
            return bytes(
                self._open().activate_credential(
                    ak, ek, blob, secret, session1=ESYS_TR.PASSWORD, session2=session
                )
            )

        try:
            return self._with_ek(open_it)
        except TSS2_Exception as error:
            if int(error.rc) & _FORMAT_ONE:
                raise ValueError(f"the TPM refused the credential: {error}") from None
            raise

    def _quote(self, qualifying_data: bytes, pcrs: list[int]) -> tuple[bytes, bytes, dict[int, bytes]]:
        ak = self._loaded_ak()
        selection = "sha256:" + ",".join(map(str, pcrs))
        # A PCR extended between the two commands would make a quote that its own values contradict.
        while True:
            values = self._read_pcrs(pcrs)
            attest, signature = self._open().quote(ak, selection, qualifying_data)
            if self._read_pcrs(pcrs) == values:
                return bytes(attest), bytes(signature.marshal()), values

    def _read_pcrs(self, pcrs: list[int]) -> dict[int, bytes]:
        values: dict[int, bytes] = {}
        missing = list(pcrs)
        while missing:  # a TPM returns 8 at most in one answer
            _, _, digests = self._open().pcr_read("sha256:" + ",".join(map(str, missing[:8])))
            if len(digests) != len(missing[:8]):
                raise TpmGone("the TPM has no SHA-256 bank for the PCRs wanted")
            values.update((pcr, bytes(digest)) for pcr, digest in zip(missing[:8], digests, strict=True))
            missing = missing[8:]
        return values
