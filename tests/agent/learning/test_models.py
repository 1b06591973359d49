"""`learn models` as people use it: what it prints is taken, fits the folder, and is refused where it contradicts itself."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from agent.host import Host
from agent.learning.models import guess_kind
from agent.probes import Surroundings, models
from tests.agent.probes.case import HEAD, probe_of
from tests.agent.rig import Rig, baseline, in_own_namespace, nft

TREE = Path(__file__).resolve().parents[3]
TEXT = 'say "no" \\ never\r\n\tto ' + "x" * 299 + " " * 700 + 'ünï\x7f\x01 """\n\n  end'


def _agent(*argv: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "agent.main", *map(str, argv)],
        cwd=TREE,
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "vision"
    (made / "policy").mkdir(parents=True)
    for number in (1, 2):
        (made / f"model-{number:05}-of-00002.safetensors").write_bytes(os.urandom(2_000_000))
    (made / "tokenizer.json").write_text("{}")
    (made / 'odd "näme".txt').write_text("x")
    (made / "policy/guardrails.txt").write_bytes(TEXT.encode())
    (made / "system_prompt.bin").write_bytes(b"\xff\xfe")
    return made


def _learn(folder: Path, *more: str, before: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    named = ("--name", "vision", "--version", "7", "--classification", "restricted")
    return _agent("learn", *before, "models", *named, *more, folder)


def test_what_is_learned_is_taken_and_the_folder_fits_it(folder: Path) -> None:
    done = _learn(folder, "--with-content")
    assert done.returncode == 0, done.stderr
    assert "6 files" in done.stderr
    (learned,) = tomllib.loads(done.stdout)["models"]["model"]
    files = {file["path"]: file for file in learned["file"]}
    assert {path: file["kind"] for path, file in files.items()} == {
        "model-00001-of-00002.safetensors": "weights",
        "model-00002-of-00002.safetensors": "weights",
        "tokenizer.json": "tokenizer",
        'odd "näme".txt': "config",
        "policy/guardrails.txt": "guardrails",
        "system_prompt.bin": "prompt",
    }
    assert files["policy/guardrails.txt"]["content"] == TEXT
    assert "content" not in files["system_prompt.bin"]
    # sha256sum is the witness.
    said = subprocess.run(
        ["sha256sum", *files], cwd=folder, capture_output=True, text=True, check=True
    ).stdout
    assert [line[:64] for line in said.replace("\\", "").splitlines()] == [
        file["sha256"] for file in files.values()
    ]
    probe = probe_of("models", done.stdout + "[firewall]\n", Surroundings(host=Host()))
    assert isinstance(probe, models.Probe)
    while probe.observe(1.0) == [] and probe.verifying():
        pass
    assert probe.observe(1.0) == []
    (folder / "policy/guardrails.txt").write_text("anything goes")
    drifts = probe.observe(2.0)
    probe.repair(drifts, 2.0)
    assert (folder / "policy/guardrails.txt").read_bytes() == TEXT.encode()
    assert probe.observe(3.0) == []


def test_a_link_is_left_out_and_said_and_a_missing_shard_is_refused(folder: Path, tmp_path: Path) -> None:
    (folder / "link").symlink_to("tokenizer.json")
    output = tmp_path / "models.toml"
    done = _learn(folder, before=("--output", str(output)))
    assert done.returncode == 0
    assert "left out: link" in done.stderr
    assert '"link"' not in output.read_text()
    (folder / "model-00002-of-00002.safetensors").unlink()
    done = _learn(folder)
    assert done.returncode == 2
    assert "expected every shard, got 1 of 2" in done.stderr


def test_kinds_are_guessed_from_names() -> None:
    guessed = {
        name: guess_kind(name) for name in ("a/b.gguf", "chat_template.jinja", "vocab.txt", "config.json")
    }
    assert list(guessed.values()) == ["weights", "prompt", "tokenizer", "config"]
    assert guess_kind("prompts/w.onnx") == "weights"


WAY_OUT = """
[firewall.zones.enclave]
interfaces = ["enclave0"]
[firewall.zones.internet]
addresses = ["0.0.0.0/0"]
[[firewall.outbound]]
zone = "internet"
protocol = "tcp"
ports = [443]
reason = "model updates"
"""


def test_check_refuses_a_restricted_model_beside_a_way_out(folder: Path, tmp_path: Path) -> None:
    learned = _learn(folder).stdout
    file = tmp_path / "factory.toml"
    file.write_text(HEAD + learned + WAY_OUT)
    done = _agent("check", file)
    assert done.returncode == 2
    line = file.read_text().splitlines().index('zone = "internet"') + 1
    assert f"factory.toml:{line}: firewall.outbound[0].zone: expected no way out" in done.stderr
    file.write_text(HEAD + learned.replace("restricted", "internal") + WAY_OUT)
    done = _agent("check", file)
    assert done.returncode == 0
    assert "firewall.outbound[0].zone: a way out to 0.0.0.0/0 of zone 'internet'" in done.stderr


def test_a_node_does_not_apply_such_a_baseline(tmp_path: Path) -> None:
    def job() -> None:
        rig = Rig(tmp_path)
        rig.start()
        rig.adopt(baseline(1, 8080), 1, 1)
        before = nft("list", "ruleset")
        digest = hashlib.sha256(b"").hexdigest()
        extra = (
            '[firewall.zones.internet]\naddresses = ["0.0.0.0/0"]\n[[firewall.outbound]]\nzone = "internet"\n'
            'protocol = "tcp"\nports = [443]\nreason = "model updates"\n'
            '[[models.model]]\nname = "vision"\nversion = "7"\nroot = "/opt/vision"\n'
            f'classification = "restricted"\nreason = "for a test"\nfile = [{{ path = "w", sha256 = "{digest}", '
            'size_bytes = 0, kind = "weights" }]\n'
        )
        wanted = rig.publish(baseline(2, 9090, extra=extra), 2)
        rig.direct(rig.signed(2, wanted=wanted))
        rig.fetch(wanted)
        assert nft("list", "ruleset") == before
        refused = [e for e in rig.events() if e.kind == "baseline.refused"]
        assert "no way out beside the restricted model" in refused[-1].summary
        rig.stop()

    in_own_namespace(job)
