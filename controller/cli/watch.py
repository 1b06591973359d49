"""`--watch`: a command that looks, again and again until Ctrl-C.

On a terminal the screen is painted anew in one piece, so that nothing flickers while an answer is waited for; elsewhere one answer
follows the other. A controller that cannot be reached for a while is told, and asked again.
"""

from __future__ import annotations

import functools
import io
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import click

from controller.cli.client import Unreachable
from controller.cli.show import harmless, when

F = TypeVar("F", bound=Callable[..., object])
DEFAULT_S = 2.0
_TOP, _REST = "\x1b[H", "\x1b[J"


class _Page(io.StringIO):
    """What goes to the terminal, held until it is whole."""

    def isatty(self) -> bool:
        return True


def watch_option(command: F) -> F:
    """Add `--watch [SECONDS]`. Relies on: the command showing something and changing nothing."""

    @functools.wraps(command)
    def looked(*arguments: object, watch: float | None, **options: object) -> object:
        if watch is None:
            return command(*arguments, **options)
        while True:
            with _painted():
                try:
                    command(*arguments, **options)
                except Unreachable as error:
                    click.echo(f"{when(time.time())} {harmless(str(error))}; asked again every {watch:g} s")
            sys.stdout.flush()
            time.sleep(watch)

    return click.option(
        "--watch",
        type=click.FloatRange(0.5, 3600),
        is_flag=False,
        flag_value=DEFAULT_S,
        metavar="[SECONDS]",
        help=f"Show it again and again, every {DEFAULT_S:g} seconds, until Ctrl-C.",
    )(looked)  # type: ignore[return-value]


@contextmanager
def _painted() -> Iterator[None]:
    """Put what is printed within on the terminal at once, from its top; elsewhere let it through."""
    out = sys.stdout
    if not out.isatty():
        yield
        return
    page = _Page()
    sys.stdout = page
    try:
        yield
    finally:
        sys.stdout = out
    lines = page.getvalue().splitlines()
    out.write(_TOP + "".join(f"{line}\x1b[K\n" for line in lines) + _REST)
