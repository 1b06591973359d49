"""The `ringfence` command beside a controller under test: the environment it is called with, and a call in this process."""

from __future__ import annotations

import asyncio
import contextlib
import io
from pathlib import Path

from controller import cli as admin
from controller.permissions import Role
from tests.controller.live import TOKENS, Live


def environment(live: Live, folder: Path, role: Role = "admin") -> dict[str, str]:
    """What tells the command of this controller and of a token of that role; the authority's certificate goes to `folder`."""
    ca = folder / "ca.pem"
    ca.write_text(live.ca)
    return {"RINGFENCE_URL": live.admin_url, "RINGFENCE_CA": str(ca), "RINGFENCE_TOKEN": TOKENS[role]}


async def command(*arguments: str) -> tuple[int, str]:
    """Exit code and output of the command in a thread, its environment that of this process."""
    out = io.StringIO()

    def run() -> int:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
            return admin.run(arguments)

    return await asyncio.to_thread(run), out.getvalue()
