"""The configuration: whole or not at all, with file, line and key (ATTACKS a09)."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from agent.config import load_config
from contract.errors import Rejected

GOOD = """\
node = "press-1"
interval_s = 10.0

[controller]
url = "https://controller.plant.example:8440"
ca = "/etc/ringfence/ca.pem"
addresses = ["192.0.2.10"]

[tpm]
ek = "ecc384"
"""


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "agent.toml"
    path.write_text(text)
    return path


def test_good_configuration_loads(tmp_path: Path) -> None:
    config = load_config(written(tmp_path, GOOD))
    assert config.node == "press-1"
    assert config.controller.port == 8440
    assert config.controller.literal_addresses() == ["192.0.2.10"]
    assert config.tpm.ek == "ecc384"
    assert config.confirm_s == 30.0


@pytest.mark.parametrize(
    ("old", "new", "line", "key"),
    [
        ('node = "press-1"', 'node = "Press 1"', 1, "node"),
        ('node = "press-1"', "node = 7", 1, "node"),
        ("interval_s = 10.0", 'interval_s = "10"', 2, "interval_s"),
        ("interval_s = 10.0", "interval_s = 0.0", 2, "interval_s"),
        ("interval_s = 10.0", "intervall_s = 10.0", 2, "intervall_s"),
        ("https://controller", "http://controller", 5, "controller.url"),
        (":8440", ":84400", 5, "controller.url"),
        (':8440"', ':8440/path"', 5, "controller.url"),
        ('ca = "/etc', 'ca = "etc', 6, "controller.ca"),
        ("192.0.2.10", "192.0.2.310", 7, "controller.addresses[0]"),
        ('ek = "ecc384"', 'ek = "dsa"', 10, "tpm.ek"),
        ('ek = "ecc384"', 'tctl = "x"', 10, "tpm.tctl"),
    ],
)
def test_a09_one_wrong_key_or_type_refuses_all_with_file_and_line(
    tmp_path: Path, old: str, new: str, line: int, key: str
) -> None:
    assert GOOD.count(old) == 1
    with pytest.raises(Rejected) as caught:
        load_config(written(tmp_path, GOOD.replace(old, new)))
    assert caught.value.code == "config.key"
    assert caught.value.detail.startswith(f"agent.toml:{line}: {key}: ")


def test_a09_missing_key_and_broken_toml_are_refused(tmp_path: Path) -> None:
    with pytest.raises(Rejected, match=r"agent\.toml:4: controller\.ca: expected a value"):
        load_config(written(tmp_path, GOOD.replace('ca = "/etc/ringfence/ca.pem"\n', "")))
    with pytest.raises(Rejected, match=r"agent\.toml:2: "):
        load_config(written(tmp_path, GOOD.replace("= 10.0", "= = 10.0")))


def test_a09_later_file_names_itself_in_its_own_fault(tmp_path: Path) -> None:
    path = written(tmp_path, GOOD)
    more = tmp_path / "conf.d"
    more.mkdir()
    (more / "10-site.toml").write_text('site = "north"\n[controller]\naddresses = ["192.0.2.11"]\n')
    assert load_config(path).controller.addresses == ["192.0.2.11"]
    assert load_config(path).site == "north"
    (more / "20-bad.toml").write_text("# a comment\n[tpm]\nak = 3\n")
    with pytest.raises(Rejected, match=r"20-bad\.toml:3: tpm\.ak: "):
        load_config(path)


def test_a09_command_ends_with_2_and_touches_nothing(tmp_path: Path) -> None:
    path = written(tmp_path, GOOD.replace("10.0", "true") + f'\n[roots]\nsysfs = "{tmp_path}"\n')
    for command in ("run", "enrol", "status"):
        done = subprocess.run(
            [sys.executable, "-m", "agent.main", command, "--config", str(path)],
            capture_output=True,
            text=True,
            timeout=30,
        )
        assert done.returncode == 2
        assert "agent.toml:2: interval_s: expected" in done.stderr
        assert "Traceback" not in done.stderr
