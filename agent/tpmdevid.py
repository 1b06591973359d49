"""What a TPM holds besides its EK: the certificates above the EK's, and device identities with the proof that they live here.

Reads NV and persistent handles; writes nothing. Works on the connection that `agent.tpm` owns, on its thread. What one index or
key refuses is passed over: these are further claims, and a node enrols without them. Handles and ranges are those of the TCG
Registry of Reserved TPM 2.0 Handles and Localities, 1.2, and of TPM 2.0 Keys for Device Identity and Attestation, 1.00, 7.8.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence

from tpm2_pytss import (
    ESAPI,
    ESYS_TR,
    TPM2_ALG,
    TPM2_CAP,
    TPMA_OBJECT,
    TPMT_SIG_SCHEME,
    TSS2_Exception,
)
from tpm2_pytss.utils import NoSuchIndex, NVReadEK

from contract import ekder
from contract.errors import Rejected
from contract.messages import MAX_CHAIN_BYTES, MAX_DEVIDS, DevIdEvidence
from contract.tpm import parse_public

log = logging.getLogger("ringfence.tpm")

_CHAIN = (0x01C00100, 0x01C001FF)
_DEVID_CERTIFICATES = (0x01C90000, 0x01C9FFFF)
_PERSISTENT = (0x81000000, 0x81FFFFFF)
_MOST_HANDLES = 64


def endorsement_chain(esapi: ESAPI) -> bytes:
    """Return the certificates between the EK's and a root: one run of DER, cut over the indices anywhere (EK Credential
    Profile 2.5, 2.2.1.5.2). Empty where the TPM has none."""
    chain = b""
    for index in range(_CHAIN[0], _CHAIN[1] + 1):
        content = _read(esapi, index)
        if content is None or len(chain) + len(content) > MAX_CHAIN_BYTES:
            break
        chain += content
    return chain


def device_identities(
    esapi: ESAPI, ak: ESYS_TR, qualifying_data: bytes, further: Sequence[bytes]
) -> list[DevIdEvidence]:
    """Return every device identity whose key is here, proved to live beside the AK over `qualifying_data`.

    Certificates come from NV and, as the owner's own are often kept in files, from `further`.
    """
    in_nv = (_read(esapi, index) for index in _handles(esapi, _DEVID_CERTIFICATES))
    shown = [content for content in in_nv if content] + list(further)
    by_key: dict[bytes, bytes] = {}
    for certificate in shown:
        key = _key_in(certificate)
        if key is not None:
            by_key.setdefault(key, certificate)
    found: list[DevIdEvidence] = []
    for handle in _handles(esapi, _PERSISTENT) if by_key else ():
        evidence = _evidence(esapi, ak, handle, by_key, qualifying_data)
        if evidence is not None and len(found) < MAX_DEVIDS:
            found.append(evidence)
    return found


def _evidence(
    esapi: ESAPI, ak: ESYS_TR, handle: int, by_key: dict[bytes, bytes], qualifying_data: bytes
) -> DevIdEvidence | None:
    try:
        key = esapi.tr_from_tpmpublic(handle)
        public, _, _ = esapi.read_public(key)
        certificate = by_key.get(parse_public(bytes(public.marshal())).spki)
        if certificate is None:
            return None
        return _certified(esapi, ak, key, certificate, qualifying_data)
    except Rejected as rejected:
        log.debug("key %#010x: %s", handle, rejected)
    except TSS2_Exception as error:
        log.warning("device identity %#010x cannot be certified: %s", handle, error)
    return None


def _certified(
    esapi: ESAPI, ak: ESYS_TR, key: ESYS_TR, certificate: bytes, qualifying_data: bytes
) -> DevIdEvidence:
    """Have the AK certify the key; or a restricted key, whose own use the TCG's template binds to a policy, the AK."""
    public, _, _ = esapi.read_public(key)
    restricted = bool(public.publicArea.objectAttributes & TPMA_OBJECT.RESTRICTED)
    about, by = (ak, key) if restricted else (key, ak)
    attest, signature = esapi.certify(about, by, qualifying_data, TPMT_SIG_SCHEME(scheme=TPM2_ALG.NULL))
    return DevIdEvidence(
        certificate=certificate,
        public=bytes(public.marshal()),
        attest=bytes(attest),
        signature=bytes(signature.marshal()),
        signer="devid" if restricted else "ak",
    )


def _key_in(certificate: bytes) -> bytes | None:
    try:
        pieces = ekder.certificates_in(certificate, "devid")
    except Rejected as rejected:
        log.warning("a certificate of a device identity: %s", rejected)
        return None
    return ekder.spki_of(pieces[0]) if pieces else None


def _handles(esapi: ESAPI, wanted: tuple[int, int]) -> Iterator[int]:
    _, found = esapi.get_capability(
        TPM2_CAP.HANDLES, wanted[0], _MOST_HANDLES
    )  # lives no longer than `found`
    for handle in [int(each) for each in found.data.handles]:
        if handle <= wanted[1]:
            yield handle


def _read(esapi: ESAPI, index: int) -> bytes | None:
    """Return an index's content by its own authorisation, else the owner's; None where there is none to be had."""
    for authority in (None, ESYS_TR.OWNER):
        try:
            return bytes(NVReadEK(esapi, auth_handle=authority)(index))
        except NoSuchIndex:
            return None
        except TSS2_Exception as error:
            log.debug("NV index %#010x: %s", index, error)
    return None
