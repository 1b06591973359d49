"""The order of package versions: Debian's (deb-version(7), Policy 5.6.12) and RPM's (rpmvercmp). Pure.

Both take any text and raise nothing: what is no version sorts somewhere, the same way every time.
"""

from __future__ import annotations

import re
from itertools import zip_longest
from typing import Literal

Order = Literal[-1, 0, 1]
_DIGITS = re.compile(r"[0-9]*")
_NOT_DIGITS = re.compile(r"[^0-9]*")
_RPM_PART = re.compile(r"[0-9]+|[A-Za-z]+|~|\^")


def compare_debian(left: str, right: str) -> Order:
    """Return -1, 0 or 1 as `left` is older, the same or newer: `[epoch:]upstream[-revision]`."""
    one, two = _debian_parts(left), _debian_parts(right)
    return _sign(one[0], two[0]) or _debian_text(one[1], two[1]) or _debian_text(one[2], two[2])


def compare_rpm(left: str, right: str) -> Order:
    """Return -1, 0 or 1: `[epoch:]version[-release]`; a side without a release leaves it out of the comparison."""
    one, two = _rpm_parts(left), _rpm_parts(right)
    order = _sign(one[0], two[0]) or _rpm_text(one[1], two[1])
    if order or not (one[2] and two[2]):
        return order
    return _rpm_text(one[2], two[2])


def _sign(left: int, right: int) -> Order:
    return -1 if left < right else 1 if left > right else 0


def _number(digits: str) -> tuple[int, str]:
    """Order digit strings of any length without making numbers of them."""
    bare = digits.lstrip("0")
    return len(bare), bare


def _compare_digits(left: str, right: str) -> Order:
    one, two = _number(left), _number(right)
    return -1 if one < two else 1 if one > two else 0


def _epoch(version: str) -> tuple[int, str]:
    epoch, colon, rest = version.partition(":")
    if colon and epoch.isascii() and epoch.isdigit() and len(epoch) < 10:
        return int(epoch), rest
    return 0, version


def _debian_parts(version: str) -> tuple[int, str, str]:
    epoch, rest = _epoch(version.strip())
    upstream, _, revision = rest.rpartition("-") if "-" in rest else (rest, "", "")
    return epoch, upstream, revision


def _weight(character: str) -> int:
    """`~` before the end of the text, that before letters, those before everything else."""
    if character == "~":
        return -1
    if not character:
        return 0
    return ord(character) if character.isascii() and character.isalpha() else ord(character) + 256


def _debian_text(left: str, right: str) -> Order:
    while left or right:
        one, two = _match(_NOT_DIGITS, left), _match(_NOT_DIGITS, right)
        for a, b in zip_longest(one, two, fillvalue=""):
            if order := _sign(_weight(a), _weight(b)):
                return order
        left, right = left[len(one) :], right[len(two) :]
        one, two = _match(_DIGITS, left), _match(_DIGITS, right)
        if order := _compare_digits(one, two):
            return order
        left, right = left[len(one) :], right[len(two) :]
    return 0


def _match(pattern: re.Pattern[str], text: str) -> str:
    found = pattern.match(text)
    return found.group() if found else ""


def _rpm_parts(version: str) -> tuple[int, str, str]:
    epoch, rest = _epoch(version.strip())
    name, _, release = rest.partition("-")
    return epoch, name, release


def _rpm_text(left: str, right: str) -> Order:
    if left == right:
        return 0
    one, two = _RPM_PART.findall(left), _RPM_PART.findall(right)
    for a, b in zip_longest(one, two, fillvalue=""):
        if a == b:
            continue
        if "~" in (a, b):  # before everything, the end too
            return -1 if a == "~" else 1
        if "^" in (a, b):  # after the end, before everything else
            other = b if a == "^" else a
            first: Order = 1 if not other else -1
            return first if a == "^" else _opposite(first)
        if not a or not b:
            return 1 if a else -1
        if a.isdigit() != b.isdigit():
            return 1 if a.isdigit() else -1
        order: Order = _compare_digits(a, b) if a.isdigit() else -1 if a < b else 1
        if order:
            return order
    return 0


def _opposite(order: Order) -> Order:
    return -1 if order > 0 else 1 if order < 0 else 0
