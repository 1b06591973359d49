"""`ringfence-agent`: enrol, run, early, status, check, diff, render, counters, unlock-key, break-glass, learn, devices.

Exit codes: 0 as asked; 1 it did not work out (differences found, not enrolled, controller away); 2 the input was
refused (configuration, baseline, usage); 3 a fault of the program or the machine.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import NoReturn

import click

from agent import VERSION, early, grantends, running
from agent.checking import check
from agent.config import DEFAULT_PATH, AgentConfig, TpmConfig, load_config
from agent.counting import counters
from agent.dial import Dialler
from agent.exits import EXIT_FAULT, EXIT_NO, EXIT_REFUSED, fail, outermost
from agent.glass_command import break_glass
from agent.host import host_of
from agent.learn_command import learn
from agent.learn_devices import devices
from agent.netfilter import Netfilter
from agent.probes import Surroundings, parse_sections, sections
from agent.render_command import endpoints, render
from agent.running import log_to_stderr, tpm_of
from agent.spool import Spool
from agent.store import Damaged, Store
from agent.tpm import TpmUnavailable
from agent.unlock import unlock, write_key
from contract.baseline import parse_baseline
from contract.errors import Rejected
from contract.messages import Drift

_config_option = click.option(
    "--config", "config_path", type=click.Path(path_type=Path), default=DEFAULT_PATH, show_default=True
)
_json_option = click.option("--json", "as_json", is_flag=True, help="For programs.")
_file_argument = click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(VERSION, prog_name="ringfence-agent")
def cli() -> None:
    """The node's program of Ringfence. Exit codes: 0 fine, 1 no, 2 input refused, 3 fault."""


@cli.command("run")
@_config_option
def run_command(config_path: Path) -> None:
    """Hold this machine to its signed baseline, for ever. Enrols by itself when that was not done yet."""
    running.main(["--config", str(config_path)])


@cli.command()
@_config_option
@click.option("--timeout", "timeout_s", type=float, default=None, help="Seconds to wait for approval.")
def enrol(config_path: Path, timeout_s: float | None) -> None:
    """Prove this machine to the controller and wait for approval; then `run` can open sessions."""
    config = load_config(config_path)
    log_to_stderr()
    try:
        site = asyncio.run(_enrol(config, timeout_s))
    except (TpmUnavailable, TimeoutError, OSError) as error:
        fail(EXIT_NO, f"not enrolled: {error or 'no approval in time'}")
    click.echo(f"{config.node} is enrolled in site {site}")


@cli.command()
@_config_option
@_json_option
def status(config_path: Path, as_json: bool) -> None:
    """Say what this node is held to, from its state folder."""
    config = load_config(config_path)
    try:
        shown = _status(config)
    except Damaged as damage:
        fail(EXIT_FAULT, str(damage))
    if as_json:
        click.echo(json.dumps(shown))
    else:
        for key, value in shown.items():
            click.echo(f"{key:<18} {value if value not in (None, '') else '-'}")
    if shown["site"] is None:
        sys.exit(EXIT_NO)


@cli.command()
@_file_argument
@_config_option
@_json_option
def diff(file: Path, config_path: Path, as_json: bool) -> None:
    """Say how this machine differs from a baseline. Changes nothing."""
    config = load_config(config_path) if config_path.exists() else None
    baseline = parse_baseline(file.read_bytes(), file=file.name)
    drifts = _drifts(parse_sections(baseline), config)
    if as_json:
        click.echo(
            json.dumps(
                [{key: getattr(d, key) for key in ("section", "key", "wanted", "found")} for d in drifts]
            )
        )
    for drift in [] if as_json else drifts:
        click.echo(f"{drift.section}  {drift.key}: wanted {drift.wanted}, found {drift.found}")
    sys.exit(EXIT_NO if drifts else 0)


@cli.command("unlock-key")
@click.argument("name")
@click.option(
    "--output", type=click.Path(path_type=Path), help="Write it here (new file, 0600), not to stdout."
)
@click.option("--timeout", "timeout_s", type=float, default=120.0, show_default=True)
@_config_option
def unlock_key(name: str, output: Path | None, timeout_s: float, config_path: Path) -> None:
    """Fetch a disk key from escrow: given out only after a good attestation in this boot, opened by this TPM."""
    config = load_config(config_path)
    if output is not None and output.exists():
        fail(EXIT_REFUSED, f"{output} is there already")
    try:
        key = unlock(config.state, name, timeout_s=timeout_s)
    except (Rejected, TimeoutError) as error:
        fail(EXIT_NO, f"no key: {error or 'no answer in time'}")
    write_key(key, output)


@cli.command("early")
@_config_option
@click.option(
    "--follow", is_flag=True, help="An isolated node stays, and cuts interfaces until the agent is up."
)
def early_command(config_path: Path, follow: bool) -> None:
    """Load the rules of the last confirmed baseline, for a unit before the network; lock-down where there are none."""
    early.main(["--config", str(config_path), *(["--follow"] if follow else [])])


@cli.command("end-grants")
@_config_option
def end_grants_command(config_path: Path) -> None:
    """Beside the agent: end USB devices and accounts of grants on time, also when the agent is dead."""
    grantends.run(load_config(config_path), lambda said: click.echo(said, err=True))


cli.add_command(check)
cli.add_command(render)
cli.add_command(counters)
cli.add_command(learn)
cli.add_command(break_glass)
cli.add_command(devices)


def main() -> NoReturn:
    """Run the command; the outermost place, where what is left becomes an exit code."""
    with outermost():
        try:
            cli.main(standalone_mode=False)
        except click.exceptions.Exit as done:
            sys.exit(done.exit_code)
        except click.Abort:
            fail(EXIT_NO, "interrupted")
        except click.ClickException as error:
            error.show()
            sys.exit(EXIT_REFUSED)
    sys.exit(0)


def _drifts(parsed: Mapping[str, object], config: AgentConfig | None) -> list[Drift]:
    tpm = None if config is None else tpm_of(config)
    around = Surroundings(
        host=host_of(config),
        netfilter=Netfilter().find() if os.geteuid() == 0 else None,
        tpm=tpm,
        controller=endpoints(config),
        event_log=config.tpm.event_log if config else TpmConfig().event_log,
        ima_log=config.tpm.ima_log if config else TpmConfig().ima_log,
    )
    known = sections()
    found = []
    for name, section in parsed.items():
        found += known[name].Probe(section, around).observe(time.time())
    if tpm is not None:
        tpm.close()
    return found


def _status(config: AgentConfig) -> dict[str, object]:
    store = Store(config.state, config.node)
    state, enrolled = store.load_state(), store.enrolled()
    spool = Spool(config.state / "spool", config.node, max_bytes=config.spool.max_bytes, now=time.time())

    def shown(slot: object) -> str | None:
        ref = getattr(slot, "ref", None)
        return None if ref is None else f"{ref.name}/{ref.version} {ref.sha256.hex()[:12]}"

    directive = state.directive if state else None
    return {
        "node": config.node,
        "site": enrolled.site if enrolled else None,
        "baseline": (shown(state.last_good) if state else None) or "lock-down",
        "pending": shown(state.pending) if state else None,
        "posture": directive.posture if directive else None,
        "reason": directive.reason if directive else None,
        "directive": state.directive_number if state else None,
        "offline_s": round(state.offline_s) if state else None,
        "events_waiting": len(spool.peek(100_000, config.spool.max_bytes)),
        "events_dropped": spool.dropped,
    }


async def _enrol(config: AgentConfig, timeout_s: float | None) -> str:
    store, tpm = Store(config.state, config.node), tpm_of(config)
    try:
        enrolled = store.enrolled()
        if enrolled is None:
            enrolled = await asyncio.wait_for(Dialler(config, store).enrol(tpm), timeout_s)
        return enrolled.site
    finally:
        await asyncio.to_thread(tpm.close)


if __name__ == "__main__":
    main()
