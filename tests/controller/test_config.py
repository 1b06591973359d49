"""controller.toml is refused whole, with file, line, key and what was expected."""

from __future__ import annotations

import pytest

from contract.errors import Rejected
from controller.app import own_addresses, server_names
from controller.config import parse_config

GOOD = b"""\
name = "ringfence"
node_url = "https://controller.example:8443"
admin_url = "https://[2001:db8::1]:9443"

[nodes]
listen = "[::]:8443"

[admins]
listen = "127.0.0.1:9443"

[limits]
handshake_s = 5
"""


def test_the_file_is_read_with_its_defaults() -> None:
    config = parse_config(GOOD)
    assert config.limits.handshake_s == 5 and config.certificates.node_hours == 72
    assert server_names(config) == ["controller.example", "2001:db8::1", "localhost", "127.0.0.1", "::1"]


@pytest.mark.parametrize(
    ("old", "new", "where"),
    [
        (b"handshake_s = 5", b"handshake_s = -5", "controller.toml:12: limits.handshake_s: "),
        (b"handshake_s = 5", b'handshake_s = "5"', "controller.toml:12: limits.handshake_s: "),
        (b"handshake_s", b"handshakes_s", "controller.toml:12: limits.handshakes_s: unknown key"),
        (b'"[::]:8443"', b'"8443"', "controller.toml:6: nodes.listen: expected"),
        (b'"[::]:8443"', b'"[::]:84430"', "controller.toml:6: nodes.listen: expected"),
        (
            b"https://controller.example:8443",
            b"http://controller.example",
            "controller.toml:2: node_url: expected",
        ),
        (b"https://controller.example:8443", b"https://u:p@h:1", "controller.toml:2: node_url: expected"),
        (b"https://controller.example:8443", b"https://h:99999", "controller.toml:2: node_url: expected"),
        (b'admin_url = "https://[2001:db8::1]:9443"', b"", "admin_url: expected a value"),
        (b"[limits]", b"[limit]", "controller.toml:11: limit: unknown key"),
    ],
)
def test_a_wrong_key_or_value_is_refused_with_its_line(old: bytes, new: bytes, where: str) -> None:
    with pytest.raises(Rejected) as refused:
        parse_config(GOOD.replace(old, new))
    assert refused.value.code == "config.key" and where in refused.value.detail


@pytest.mark.parametrize("text", [b"name = ", b"\xff", b"[a\n", b"x = 1\nx = 2\n"])
def test_what_is_no_toml_is_refused(text: bytes) -> None:
    with pytest.raises(Rejected) as refused:
        parse_config(text)
    assert refused.value.code == "config.syntax"


def test_the_controllers_own_addresses_are_never_fenced() -> None:
    text = (
        GOOD.replace(b"controller.example", b"192.0.2.10")
        + b'[certificates]\nnames = ["2001:db8::2", "no.such.invalid"]\n'
    )
    found = own_addresses(parse_config(text))
    assert {"192.0.2.10", "2001:db8::2", "127.0.0.1"} <= set(found)
    assert all("." in address or ":" in address for address in found)
