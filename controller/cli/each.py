"""What the commands show of acts on many: each item, and an exit code that tells of any that was refused."""

from __future__ import annotations

import click

from controller.cli.show import at

REFUSED = 1


def refusal(item: object) -> str:
    """Return why one item was refused; empty where it was not."""
    if at(item, "problem") is None:
        return ""
    return f"{at(item, 'problem', 'code')}: {at(item, 'problem', 'detail')}"


def fail_where_refused(found: dict[str, object]) -> None:
    """Leave with exit code 1 where one was refused: the others are done."""
    if found["refused"]:
        click.echo(f"{found['done']} done, {found['refused']} refused", err=True)
        click.get_current_context().exit(REFUSED)
