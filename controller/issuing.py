"""Issuing of node certificates for the use cases, which run inside the store's transaction and know no keys."""

from __future__ import annotations

from controller.keys import Keys
from controller.records import Issue, IssuedCertificate, NodeIdentity


class Issuing:
    """Signs with whatever node authority is the newest at that moment."""

    def __init__(self, keys: Keys, lifetime_s: float) -> None:
        """Certificates live `lifetime_s` seconds."""
        self.keys = keys
        self._lifetime_s = lifetime_s

    def issue(self, now: float) -> Issue:
        """Return the function that certifies a CSR for an identity at `now`."""

        def sign(identity: NodeIdentity, csr: bytes) -> IssuedCertificate:
            return self.keys.issuer.issue_node(
                csr, site=identity.site, node=identity.node, now=now, lifetime_s=self._lifetime_s
            )

        return sign
