"""What tests of the agent share."""

from __future__ import annotations

import pytest


@pytest.fixture(params=[False, True], ids=["one-process", "two"])
def in_both(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run a test with repairs in the agent's process, and again with repairs beside it."""
    monkeypatch.setattr("tests.agent.rig.BESIDE", request.param)
