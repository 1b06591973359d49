"""The order of versions against the programs whose order it is: dpkg and rpm."""

from __future__ import annotations

import random
import shutil
import subprocess
from itertools import pairwise

import pytest

from agent.versions import compare_debian, compare_rpm

_BY_HAND = [
    "0", "1", "1.0", "1.00", "1.0-1", "1.0-1.1", "1.0-10", "1.0~rc1-1", "1.0~~", "1.0~", "1.0a", "1.0+b1", "1:0.1",
    "0:1.0", "2:1.0-1~deb12u3", "1.0-1+deb12u1", "1.2.3-4-5", "1.0.", "1..0", "009", "9", "10", "1.a.2", "1.2.a",
    "9" * 40, "1" + "0" * 40, "5.15.0-1047.54", "1.0+dfsg-1", "20240101", "1z", "1Z",
]  # fmt: skip


def _pairs(alphabet: str, count: int) -> list[tuple[str, str]]:
    made = random.Random(7)
    texts = ["1" + "".join(made.choices(alphabet, k=made.randint(0, 6))).rstrip("-") for _ in range(count)]
    return [*pairwise(texts), *((text, text) for text in texts[:5])]


def test_the_order_is_dpkgs() -> None:
    if shutil.which("dpkg") is None:
        pytest.skip("no dpkg")
    pairs = [(a, b) for a in _BY_HAND[::2] for b in _BY_HAND[1::3]] + _pairs("01290a.~+-z", 150)
    for left, right in pairs:
        order = compare_debian(left, right)
        assert order == -compare_debian(right, left)
        relation = {-1: "lt", 0: "eq", 1: "gt"}[order]
        done = subprocess.run(
            ["dpkg", "--compare-versions", left, relation, right], capture_output=True, text=True
        )
        assert done.returncode == 0, (left, relation, right, done.stderr)


def test_the_order_is_rpms() -> None:
    if shutil.which("rpm") is None:
        pytest.skip("no rpm")
    versions = [text for text in _BY_HAND if ":" not in text and "-" not in text]
    versions += [
        "1.0^",
        "1.0^git1",
        "1.0^git1~rc",
        "1.0~rc1^git1",
        "1.0.1",
        "1.0^^",
        "a",
        "A",
        "1.0_1",
        "1__0",
    ]
    pairs = [(a, b) for a in versions for b in versions] + _pairs("01290aB.~^_+z", 400)
    script = ";".join(f'print(rpm.vercmp("{a}","{b}"),"")' for a, b in pairs)
    done = subprocess.run(["rpm", "--eval", "%{lua:" + script + "}"], capture_output=True, text=True)
    assert [compare_rpm(a, b) for a, b in pairs] == [int(word) for word in done.stdout.split()]


@pytest.mark.parametrize(
    ("left", "right", "order"),
    [
        ("1:1-1", "2-1", 1),
        ("2-1", "2-2", -1),
        ("2", "2-9", 0),
        ("0:2-1", "2-1", 0),
        ("2-1.el9", "2-1.el10", -1),
    ],
)
def test_epoch_and_release_of_rpm(left: str, right: str, order: int) -> None:
    assert compare_rpm(left, right) == order
    assert compare_rpm(right, left) == -order
