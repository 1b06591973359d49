"""The schemathesis program against a running controller: requests made up from the OpenAPI document, answers held to it."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Mapping
from pathlib import Path

SEMANTIC = '["2xx", "401", "403", "404", "409", "412", "422", "428", "429"]'
"""What may come of a request that fits the document: done, or a refusal of what it says. A 400 may not, and a 503 neither."""


def configuration(names: Mapping[str, str], *, all_methods: bool) -> str:
    """Return schemathesis.toml: of the things that paths name, most are there. `all_methods`: each path is asked by each method
    that it has not, not by one alone."""
    lines = ["[generation]", 'database = "none"']
    lines += ["[checks.positive_data_acceptance]", f"expected-statuses = {SEMANTIC}"]
    # RFC 6585, clause 3, has a status for it.
    lines += ["[checks.missing_required_header]", 'expected-statuses = ["400", "401", "428"]']
    if not all_methods:
        lines += ["[phases.coverage]", 'unexpected-methods = ["TRACE"]']
    # Waiting for an event that never comes would only take time.
    parameters = ["[parameters]", '"query.wait_s" = 0']
    for name, value in names.items():
        known: str | int = int(value) if value.isdigit() else value
        lines += [f"[dictionaries.{name}]", f"values = [{json.dumps(known)}]"]
        parameters.append(f'"path.{name}" = {{ dictionary = "{name}", probability = 0.7 }}')
    return "\n".join([*lines, *parameters]) + "\n"


async def run(
    folder: Path,
    url: str,
    ca: str,
    token: str,
    names: Mapping[str, str],
    *,
    examples: int,
    seed: int,
) -> tuple[int, str]:
    """Ask every operation what one may and may not ask, with `examples` further requests each made up anew. Return the
    program's exit code (0: all answers were as documented) and what it says."""
    (folder / "schemathesis.toml").write_text(configuration(names, all_methods=examples > 2))
    (folder / "ca.pem").write_text(ca)
    program = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "schemathesis.cli", "--config-file", "schemathesis.toml"),
        *("run", f"{url}/api/v1/openapi.json", "--tls-verify", "ca.pem"),
        *("-H", f"Authorization: Bearer {token}", "-c", "all"),
        *("--phases", "examples,coverage,fuzzing", "-n", str(examples), "--seed", str(seed)),
        *(
            "--no-color",
            "--continue-on-failure",
            "--no-shrink",
            "--warnings",
            "off",
            "--request-timeout",
            "60",
        ),
        cwd=folder,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await program.communicate()
    return program.returncode or 0, output.decode(errors="replace")
