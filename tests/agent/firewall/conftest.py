"""One small site for all firewall tests; every test begins with the baseline in force and nothing else."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest

from tests.agent.firewall.lab import FencedNode, opens, until
from tests.parts.topology import Topology


@pytest.fixture(scope="package")
def topology() -> Iterator[Topology]:
    with Topology({"fw": 2}) as built:
        for host in (built.nodes[0], built.controller, built.outside, built.nodes[1]):
            for port in ("8080", "9090", "8443"):
                host.namespace.start(sys.executable, "-m", "tests.parts.inference", "--port", port)
        for host in (built.nodes[0], built.controller, built.outside, built.nodes[1]):
            for port in (8080, 9090, 8443):
                until(lambda h=host, p=port: opens(h.namespace, "127.0.0.1", p), 10)  # type: ignore[misc]
        yield built


@pytest.fixture(scope="package")
def fenced(topology: Topology) -> Iterator[FencedNode]:
    made = FencedNode(topology.nodes[0], topology)
    yield made
    made.close()


@pytest.fixture
def node(fenced: FencedNode) -> Iterator[FencedNode]:
    from tests.agent.firewall.lab import BASELINE

    fenced.clear()
    fenced.settle(text=BASELINE)
    yield fenced
    if fenced.healing is not None:
        fenced.healing.close()
    fenced.clear()
