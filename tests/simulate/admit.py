"""A large fleet taken in at once, before the controller starts: rows and certificates as its own enrolment would have made them.

Enrolling ten thousand nodes one by one takes minutes, and is measured and tested elsewhere.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from controller.issuing import Issuing
from controller.keys import Keys
from controller.records import Issue, NodeIdentity
from controller.store import Store, Transaction, nodes
from tests.parts.simulator import Identity, ek_id
from tests.parts.softtpm import SoftTpm

LIFETIME_S = 24 * 3600.0


def admit(url: str, keys: Keys, fleet: Sequence[Identity]) -> None:
    """Bind every node and give it a certificate. The sites are there; the nodes are not."""
    issue = Issuing(keys, LIFETIME_S).issue(time.time())
    store = Store(url)
    try:
        for begin in range(0, len(fleet), 500):
            some = fleet[begin : begin + 500]

            def bind(tx: Transaction, some: Sequence[Identity] = some) -> None:
                for identity in some:
                    _bind(tx, issue, identity)

            store.run_sync(bind)
    finally:
        store.close()


def _bind(tx: Transaction, issue: Issue, identity: Identity) -> None:
    tpm, key, now = SoftTpm(identity.ek, identity.ak), ec.generate_private_key(ec.SECP256R1()), time.time()
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, identity.name)])
    csr = x509.CertificateSigningRequestBuilder().subject_name(name).sign(key, hashes.SHA256())
    issued = issue(
        NodeIdentity(node=identity.name, site=identity.site), csr.public_bytes(serialization.Encoding.DER)
    )
    identity.chain = issued.chain
    identity.tls_key = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    nodes.add(
        tx,
        node=identity.name,
        site=identity.site,
        ek_id=ek_id(identity),
        ek_public=tpm.ek_public,
        ak_public=tpm.ak_public,
        ak_name=tpm.ak_name.hex(),
        ek_trust="allow-list",
        approved_by="bench",
        now=now,
    )
    nodes.set_certificates(
        tx, identity.name, current=issued.sha256, following=None, not_after=issued.not_after
    )
