"""The list of a model's folder: in one flat folder the firewall is let in as often as in many."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent.glance import FILES_A_BREATH
from agent.host import Host
from agent.models.folder import files_below

MANY = 5000


def test_a_flat_folder_lets_the_firewall_in_all_along(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agent.tree._RACY_NS", 0)
    root = tmp_path / "srv"
    root.mkdir()
    for number in range(MANY):
        (root / f"{number}").touch()
    host = Host(root=tmp_path)
    files_below(host, "/srv")  # from here on the folder is remembered, and its names are not read again
    breaths: list[int] = []
    host.let_in = lambda: breaths.append(1)
    assert len(files_below(host, "/srv")) == MANY
    assert len(breaths) >= MANY // FILES_A_BREATH
