"""Rules that name paths: a path, a folder with all that is below it, or one `*` in each segment. Nothing more.

A rule is matched segment by segment, each by its beginning and end, so in time linear to the path. A rule that would
take in a whole tree of programs is refused: an exclusion is a hole, and one as wide as `/usr/` is no fence at all.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

_TREES: Final = (
    *(
        "/",
        "/bin",
        "/boot",
        "/etc",
        "/home",
        "/lib",
        "/lib64",
        "/opt",
        "/root",
        "/sbin",
        "/srv",
        "/usr",
        "/var",
    ),
    *("/usr/bin", "/usr/lib", "/usr/lib64", "/usr/libexec", "/usr/sbin", "/usr/share", "/var/lib"),
    *("/usr/local", "/usr/local/bin", "/usr/local/lib", "/usr/local/sbin"),
)
_ANYTHING: Final = (b"/\x01any", b"/\x01any/\x01any", b"/\x01any/\x01any/\x01any")
"""What nobody means by name: a rule that takes it in takes in everything there."""


class PathRules:
    """Several rules; `match` says whether one of them takes in a path."""

    __slots__ = ("_folders", "_globs", "_paths")

    def __init__(self, rules: Iterable[str]) -> None:
        """Raises ValueError for a rule that is none, or that takes in too much."""
        folders: list[bytes] = []
        globs: list[list[tuple[bytes, bytes, bool]]] = []
        paths: set[bytes] = set()
        for rule in rules:
            raw = _checked(rule)
            if b"*" in raw:
                globs.append([_segment(part) for part in raw.split(b"/")])
            elif raw.endswith(b"/"):
                folders.append(raw)
            else:
                paths.add(raw)
        self._folders, self._globs, self._paths = tuple(folders), globs, frozenset(paths)

    def match(self, path: bytes) -> bool:
        """Say whether a rule takes in this path."""
        if path in self._paths or path.startswith(self._folders):
            return True
        if not self._globs:
            return False
        parts = path.split(b"/")
        return any(_matches(glob, parts) for glob in self._globs)


def _checked(rule: str) -> bytes:
    raw = rule.encode()
    parts = rule.split("/")
    if (
        not rule.startswith("/")
        or any(part in ("", ".", "..") for part in parts[1:-1])
        or parts[-1] in (".", "..")
    ):
        raise ValueError(f"expected an absolute path without empty segments, '.' or '..', got {rule!r}")
    if any(part.count("*") > 1 for part in parts):
        raise ValueError(f"expected at most one '*' in each segment, got {rule!r}")
    if "\0" in rule:
        raise ValueError(f"expected a path, got {rule!r}")
    return raw


def refuse_too_wide(rules: Iterable[str]) -> None:
    """Raise ValueError for a rule that takes in whatever lies in one of the trees that programs live in."""
    for rule in rules:
        one = PathRules([rule])
        for tree in _TREES:
            if any(one.match(tree.encode().rstrip(b"/") + below) for below in _ANYTHING):
                raise ValueError(f"{rule!r} takes in everything in {tree}")


def _segment(part: bytes) -> tuple[bytes, bytes, bool]:
    before, star, after = part.partition(b"*")
    return before, after, bool(star)


def _matches(glob: list[tuple[bytes, bytes, bool]], parts: list[bytes]) -> bool:
    below = glob[-1] == (b"", b"", False)  # the rule ends with '/'
    if len(parts) < len(glob) if below else len(parts) != len(glob):
        return False
    for (before, after, star), part in zip(glob[:-1] if below else glob, parts, strict=False):
        if not star:
            if part != before:
                return False
        elif len(part) < len(before) + len(after) or not (part.startswith(before) and part.endswith(after)):
            return False
    return True
