"""The probes' memory of first-seen values: every change is on disk before the probe goes on.

Refuses nothing. Relies on: whoever keeps it writing it down in `write`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, MutableMapping


class Remembered(MutableMapping[str, str]):
    """What `read` returns, as a mapping; each change goes to `write`, whole."""

    def __init__(self, read: Callable[[], dict[str, str]], write: Callable[[dict[str, str]], object]) -> None:
        self._read = read
        self._write = write

    def __getitem__(self, key: str) -> str:
        return self._read()[key]

    def __setitem__(self, key: str, value: str) -> None:
        self._write({**self._read(), key: value})

    def __delitem__(self, key: str) -> None:
        rest = dict(self._read())
        del rest[key]
        self._write(rest)

    def __iter__(self) -> Iterator[str]:
        return iter(dict(self._read()))

    def __len__(self) -> int:
        return len(self._read())
