"""A fleet of thousands of nodes that speak the real protocol over real TLS and WebSocket, for loopback only.

    python -m tests.simulate --help

`swarm` starts a few worker processes and tells them what to play, `worker` holds its share of the nodes, `nodes` is one of
them, `wire` what passes between, `relay` a slow line. Only the TPM is imagined (`tests.parts.softtpm`).
"""
