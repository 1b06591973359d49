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

from agent.clock import boottime
from agent.config import DEFAULT_PATH, AgentConfig, load_config
from agent.console import Console
from agent.exits import EXIT_REFUSED, outermost
from agent.frugal import few_arenas
from agent.host import Host
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
_USAGE = "usage: ringfence-agent run [--config FILE]"


def main(argv: Sequence[str]) -> NoReturn:
    """Run the command: until SIGTERM or SIGINT; the exit codes of `agent.exits`."""
    path = DEFAULT_PATH
    if len(argv) == 2 and argv[0] == "--config":
        path = Path(argv[1])
    elif argv:
        print(_USAGE, file=sys.stderr)
        sys.exit(0 if list(argv) in (["-h"], ["--help"]) else EXIT_REFUSED)
    with outermost():
        few_arenas()
        config = load_config(path)
        log_to_stderr()
        sys.exit(asyncio.run(serve(config)))


def log_to_stderr() -> None:
    """Have what is logged go where the journal takes it; how much, `RINGFENCE_LOG` says."""
    level = os.environ.get("RINGFENCE_LOG", "INFO").upper()
    logging.basicConfig(stream=sys.stderr, level=level, format="%(levelname)s %(name)s: %(message)s")


def host_of(config: AgentConfig | None) -> Host:
    """Return the machine that a configuration means; without one, this machine."""
    if config is None:
        return Host()
    roots = config.roots
    return Host(root=Path(roots.root), sysfs_root=Path(roots.sysfs), proc_root=Path(roots.proc))


def tpm_of(config: AgentConfig) -> Tpm:
    """Return the TPM that a configuration means; nothing is opened yet."""
    return Tpm(config.tpm.tcti, ek=config.tpm.ek, ak=config.tpm.ak)


async def serve(config: AgentConfig) -> int:
    """Run until SIGTERM or SIGINT; return the exit code."""
    store = Store(config.state, config.node)
    spool = Spool(config.state / "spool", config.node, max_bytes=config.spool.max_bytes, now=time.time())
    host, netfilter, tpm = host_of(config), Netfilter(), tpm_of(config)
    loop = Loop(config, store, spool, host, netfilter, tpm=tpm)
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


async def _watchdog(loop: Loop) -> None:
    """Tell systemd that the machine's thread still comes round; a stalled one is not covered up."""
    interval_s = watchdog_interval_s()
    while True:
        await asyncio.sleep(interval_s or _STALLED_S)
        if interval_s and boottime() - loop.beat < _STALLED_S:
            notify("WATCHDOG=1")
