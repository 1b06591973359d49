"""`ringfence-agent run`: every part of the agent, put together, until somebody ends it.

It is started without the command line's library and without what only other commands import: this process stays for months.

Refuses to go on after an error of ours: the process ends, systemd starts it again, and the rules stay in the kernel.
Relies on: agent.loop for the machine, agent.uplink for the controller; systemd's notification socket, where there is one.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from agent.beside import BesideHands, Line, RootsLooks
from agent.clock import boottime
from agent.config import DEFAULT_PATH, AgentConfig, load_config
from agent.console import Console
from agent.exits import EXIT_REFUSED, outermost
from agent.frugal import few_arenas
from agent.hands import OwnHands
from agent.host import Host, host_of
from agent.loop import Loop
from agent.netfilter import Events, Netfilter
from agent.notify import NOT_ANSWERED, notify, watchdog_interval_s
from agent.probes import subsystems
from agent.spool import Spool
from agent.store import Store
from agent.tpm import Tpm
from agent.uplink import Uplink

log = logging.getLogger("ringfence")

_STALLED_S = 60.0
_USAGE = "usage: ringfence-agent run [--config FILE] [--repairs SOCKET]"


def main(argv: Sequence[str]) -> NoReturn:
    """Run the command: until SIGTERM or SIGINT; the exit codes of `agent.exits`."""
    options = {"--config": str(DEFAULT_PATH), "--repairs": ""}
    rest = list(argv)
    while len(rest) >= 2 and rest[0] in options:
        options[rest[0]] = rest[1]
        rest = rest[2:]
    if rest:
        print(_USAGE, file=sys.stderr)
        sys.exit(0 if rest in (["-h"], ["--help"]) else EXIT_REFUSED)
    with outermost():
        few_arenas()
        config = load_config(Path(options["--config"]))
        log_to_stderr()
        sys.exit(asyncio.run(serve(config, Path(options["--repairs"]) if options["--repairs"] else None)))


def log_to_stderr() -> None:
    """Have what is logged go where the journal takes it; how much, `RINGFENCE_LOG` says."""
    level = os.environ.get("RINGFENCE_LOG", "INFO").upper()
    logging.basicConfig(stream=sys.stderr, level=level, format="%(levelname)s %(name)s: %(message)s")


def tpm_of(config: AgentConfig) -> Tpm:
    """Return the TPM that a configuration means; nothing is opened yet."""
    return Tpm(config.tpm.tcti, ek=config.tpm.ek, ak=config.tpm.ak)


async def serve(config: AgentConfig, repairs: Path | None = None) -> int:
    """Run until SIGTERM or SIGINT; return the exit code. `repairs`: the socket of the unit for them; None: this process does them."""
    store = Store(config.state, config.node)
    spool = Spool(config.state / "spool", config.node, max_bytes=config.spool.max_bytes, now=time.time())
    host, netfilter, tpm = host_of(config, seen_whole=repairs is not None), Netfilter(), tpm_of(config)
    hands = None if repairs is None else beside(host, repairs)
    loop = Loop(config, store, spool, host, netfilter, tpm=tpm, hands=hands)
    ending = asyncio.Event()
    home = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        home.add_signal_handler(number, ending.set)
    loop.on_failure = lambda: home.call_soon_threadsafe(ending.set)
    uplink = Uplink(config, store, loop, tpm)
    # Listen before the first rules are loaded: nothing that happens in between is missed.
    events = Events(loop.firewall_changed, proc=Path(config.roots.proc))
    netfilter.unheard = events.unheard
    watches: list[Callable[[], object]] = [events.close]
    watches.append(host.watch_devices(subsystems(), loop.wake).stop)
    watches.append((await uplink.unlocks.serve(config.state)).close)
    watches.append((await Console(config.node, loop).serve(config.state)).close)
    tasks: list[asyncio.Task[None]] = []
    try:
        await asyncio.to_thread(loop.start)
        notify(f"READY=1\n{NOT_ANSWERED}")
        log.info("rules are in force")
        tasks = [asyncio.create_task(uplink.run()), asyncio.create_task(_watchdog(loop))]
        stop = asyncio.create_task(ending.wait())
        await asyncio.wait([stop, *tasks], return_when=asyncio.FIRST_COMPLETED)
        for task in tasks:
            if task.done():
                task.result()  # an error of ours ends the process; systemd starts it again
        if loop.failure is not None:
            raise loop.failure
        return 0
    finally:
        notify("STOPPING=1")
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.to_thread(loop.stop)
        for close in watches:
            close()
        await asyncio.to_thread(tpm.close)


def beside(host: Host, socket: Path) -> BesideHands:
    """Return the way to the unit for repairs; from now on the host asks there for what root alone may read."""
    line = Line(socket, host.breathe)
    looks = RootsLooks(line)
    host.ask_setting, host.clock.ask = looks.setting, looks.clock
    return BesideHands(line, OwnHands(host), looks)


async def _watchdog(loop: Loop) -> None:
    """Tell systemd that the machine's thread still comes round; a stalled one is not covered up."""
    interval_s = watchdog_interval_s()
    while True:
        await asyncio.sleep(interval_s or _STALLED_S)
        if interval_s and boottime() - loop.beat < _STALLED_S:
            notify("WATCHDOG=1")
