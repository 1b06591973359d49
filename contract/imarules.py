"""An `[ima]` section compiled for speed: one look-up for a line that it has allowed before.

Pure but for the cache, which changes how fast an answer comes and never what it is.
"""

from __future__ import annotations

from contract.imapolicy import ImaPolicy


class ImaRules:
    """What `contract.ima.follow` judges by. Made once for each baseline and used for all nodes that it holds."""

    def __init__(self, policy: ImaPolicy) -> None:
        self.policy = policy
        self.sha256 = b""
        """Of the policy: a state that was judged by another one does not fit."""
