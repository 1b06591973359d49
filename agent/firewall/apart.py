"""Several things done one after the other, each whatever became of those before it: no part of the fence waits for another."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager

from contract.errors import Rejected


class Apart:
    """Collects what went wrong. Relies on: `end` being called."""

    def __init__(self) -> None:
        self._errors: list[OSError | Rejected] = []

    @contextmanager
    def each(self) -> Iterator[None]:
        """Do one thing within; what the kernel refuses is kept for the end."""
        try:
            yield
        except (OSError, Rejected) as error:
            self._errors.append(error)

    def end(self) -> None:
        """Raise what went wrong, several as one OSError; nothing where all went well."""
        if len(self._errors) == 1:
            raise self._errors[0]
        if self._errors:
            raise OSError(errno.EIO, "; ".join(str(error) for error in self._errors))
