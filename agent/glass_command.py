"""`ringfence-agent break-glass`: a person at the node's console types a one-use code. The agent decides (`agent.console`)."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from agent.config import DEFAULT_PATH, load_config
from agent.console import MAX_LINE_BYTES, ask
from contract.errors import Rejected


@click.command("break-glass")
@click.option(
    "--config", "config_path", type=click.Path(path_type=Path), default=DEFAULT_PATH, show_default=True
)
def break_glass(config_path: Path) -> None:
    """Use a one-use code at this node's console: works without the controller, within the signed baseline."""
    config = load_config(config_path)
    if sys.stdin.isatty():
        typed = click.prompt("Code", hide_input=True, err=True)
    else:
        typed = sys.stdin.readline(MAX_LINE_BYTES)
    try:
        opened_s = ask(config.state, typed)
    except Rejected as refused:
        click.echo(f"ringfence-agent: refused: {refused}", err=True)
        sys.exit(1)
    click.echo(f"open for {opened_s:.0f} s; the controller is told as soon as it can be reached")
