"""Signed files in a process of their own: a real child, a real signed repository, and children that are something else."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from agent import signedfiles
from agent.signedfiles import SignedFiles
from contract.errors import Rejected
from tests.parts.signing import SigningKit, minimal_baseline

NOW = 1_800_000_000.0
TREE = Path(__file__).resolve().parents[2]


@pytest.fixture
def kit() -> SigningKit:
    made = SigningKit(now=NOW)
    made.publish(minimal_baseline(), now=NOW)
    return made


def files(kit: SigningKit, folder: Path) -> SignedFiles:
    return SignedFiles(folder, kit.fetch, root_metadata=kit.roots[0])


def test_what_the_child_verified_is_what_was_signed_and_is_kept(kit: SigningKit, tmp_path: Path) -> None:
    wanted = kit.wanted("factory", 1)
    trusted = files(kit, tmp_path).get(wanted, now=NOW)
    assert (trusted.raw, trusted.sha256) == (minimal_baseline(), wanted.sha256)
    assert (tmp_path / f"tuf/baselines/{wanted.sha256}.proof").exists()


def test_a_refusal_comes_back_with_its_code(kit: SigningKit, tmp_path: Path) -> None:
    with pytest.raises(Rejected) as caught:
        files(kit, tmp_path).get(kit.wanted("factory", 1), now=NOW, highest_version=2)
    assert caught.value.code == "baseline.rollback"
    with pytest.raises(Rejected) as caught:
        files(kit, tmp_path).get(kit.wanted("factory", 1), now=NOW + 400 * 86400.0)
    assert caught.value.code == "metadata.expired"


def test_no_way_to_the_controller_means_try_again(kit: SigningKit, tmp_path: Path) -> None:
    def away(path: str, max_bytes: int) -> bytes:
        raise ConnectionRefusedError(path)

    with pytest.raises(OSError, match=r"timestamp|root"):
        SignedFiles(tmp_path, away, root_metadata=kit.roots[0]).get(kit.wanted("factory", 1), now=NOW)


@pytest.mark.parametrize(
    "said", ["", "x" * 64, "\\xff\\xff\\xff\\xff", "\\0\\0\\0\\1\\xc0"], ids=["end", "text", "huge", "nil"]
)
def test_a_child_that_ends_early_or_says_something_else_means_try_again(
    kit: SigningKit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: str
) -> None:
    program = f"import sys; sys.stdout.buffer.write(b'{said}')"
    monkeypatch.setattr(signedfiles, "_command", lambda: [sys.executable, "-c", program])
    with pytest.raises(OSError):
        files(kit, tmp_path).get(kit.wanted("factory", 1), now=NOW)


def test_a07_content_that_was_not_ordered_is_refused_whoever_vouches_for_it(
    kit: SigningKit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = kit.wanted("factory", 1)
    evil = minimal_baseline() + b"# and more\n"
    program = (
        "import sys; from agent.frames import send; from agent.signedfiles import Verified\n"
        f"send(sys.stdout.buffer, Verified(sha256={wanted.sha256!r}, raw={evil!r}))"
    )
    monkeypatch.setattr(signedfiles, "_command", lambda: [sys.executable, "-c", program])
    with pytest.raises(Rejected) as caught:
        files(kit, tmp_path).get(wanted, now=NOW)
    assert caught.value.code == "baseline.digest"


def test_the_child_ends_with_the_process_that_started_it(kit: SigningKit) -> None:
    child = subprocess.Popen(
        signedfiles._command(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=TREE,
    )
    _, said = child.communicate(b"", timeout=30)
    assert child.returncode == 3
    assert b"Traceback" not in said
