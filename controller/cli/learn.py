"""`ringfence attest learn`: a `[boot]` section proposed from the accepted boots of good nodes."""

from __future__ import annotations

from pathlib import Path

import click
import msgspec

from contract.baseline import parse_baseline, section
from contract.boot import BootPolicy
from contract.errors import Rejected
from contract.learn import Learned, propose
from contract.learn import learn as learn_boots
from controller.cli.client import Client, segment
from controller.cli.profile import load_profile
from controller.cli.show import json_option, show_json
from controller.reference_records import BootView

_HEAD = '[baseline]\nname = "proposed"\nversion = 1\nsummary = "to see that it parses"\n'


@click.command("learn")
@click.argument("nodes", metavar="NODE...", nargs=-1, required=True)
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), help="Default: stdout.")
@json_option
def learn(nodes: tuple[str, ...], out: Path | None, as_json: bool) -> None:
    """Propose a [boot] section from nodes that you know to be good, for you to read and sign."""
    boots: dict[str, Learned] = {}
    with Client(load_profile()) as client:
        for node in dict.fromkeys(nodes):
            found = client.get(f"/nodes/{segment(node)}/boot")
            view = msgspec.convert(found, BootView, strict=True, str_keys=True)
            if not view.is_last:
                raise Rejected(
                    "learn.not-good", f"{node} is not trusted as it stands, or its last boot is another one"
                )
            boots[node] = Learned(reference=view.reference, claims=view.claims)
    if as_json:
        show_json(msgspec.to_builtins(learn_boots(boots)))
        return
    text = propose(boots)
    section(parse_baseline((_HEAD + text).encode(), file="proposal"), "boot", BootPolicy)
    if out is None:
        click.echo(text, nl=False)
    else:
        out.write_text(text)
        click.echo(f"proposed from {len(boots)} nodes: {out}")
