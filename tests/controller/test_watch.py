"""`--watch`: a real command on a real terminal, against a running controller."""

from __future__ import annotations

import asyncio
import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.controller.live import Live, running
from tests.controller.terminal import environment

COMMAND = str(Path(sys.executable).parent / "ringfence")
TREE = str(Path(__file__).resolve().parents[2])
DEADLINE_S = 60.0


def _interruptible() -> None:
    """As a terminal starts it: whoever runs the tests may have told his children to ignore Ctrl-C."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def on_a_screen(live: Live, folder: Path) -> dict[str, str]:
    return {**os.environ, **environment(live, folder), "TERM": "xterm", "PYTHONPATH": TREE}


async def seen(screen: int, wanted: bytes, so_far: bytes = b"") -> bytes:
    """Read the terminal until it has shown this."""
    end = time.monotonic() + DEADLINE_S
    while wanted not in so_far:
        assert time.monotonic() < end, so_far
        so_far += await asyncio.to_thread(os.read, screen, 4096)
    return so_far


async def test_a_list_is_painted_anew_and_ctrl_c_ends_it(tmp_path: Path) -> None:
    (tmp_path / "controller").mkdir()
    async with running(tmp_path / "controller") as live:
        screen, terminal = pty.openpty()
        looking = await asyncio.create_subprocess_exec(
            COMMAND, "sites", "--watch", "0.5",
            env=on_a_screen(live, tmp_path), stdin=terminal, stdout=terminal, stderr=terminal,
            preexec_fn=_interruptible,
        )  # fmt: skip
        os.close(terminal)
        try:
            shown = await seen(screen, b"factory")
            assert b"\x1b[H" in shown
            status, _ = await live.call("POST", "/api/v1/sites", {"site": "lyon"})
            assert status == 201
            await seen(screen, b"lyon")
        finally:
            looking.send_signal(signal.SIGINT)
            code = await asyncio.wait_for(looking.wait(), DEADLINE_S)
            os.close(screen)
        assert code == 130


async def test_a_controller_that_is_away_is_asked_again(tmp_path: Path) -> None:
    (tmp_path / "controller").mkdir()
    async with running(tmp_path / "controller") as live:
        env = environment(live, tmp_path)
    looking = await asyncio.create_subprocess_exec(
        COMMAND, "status", "--watch", "0.5", env=env, stdout=asyncio.subprocess.PIPE,
        preexec_fn=_interruptible,
    )  # fmt: skip
    assert looking.stdout is not None
    for _ in range(2):
        line = await asyncio.wait_for(looking.stdout.readline(), DEADLINE_S)
        assert b"asked again every 0.5 s" in line
    looking.send_signal(signal.SIGINT)
    assert await asyncio.wait_for(looking.wait(), DEADLINE_S) == 130


@pytest.mark.parametrize(
    "arguments", [("incidents", "1", "--close", "done", "--watch"), ("nodes", "--watch", "0.1")]
)
async def test_what_would_act_again_and_again_is_refused(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    (tmp_path / "controller").mkdir()
    async with running(tmp_path / "controller") as live:
        done = await asyncio.to_thread(
            subprocess.run, [COMMAND, *arguments], env=on_a_screen(live, tmp_path), capture_output=True
        )
    assert done.returncode == 2, done
