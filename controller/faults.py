"""How a fault of ours is written to the log: where and what type, but not its message, which may quote a secret."""

from __future__ import annotations

import logging
import traceback

log = logging.getLogger("ringfence.fault")


def log_fault(where: str, fault: BaseException) -> None:
    """Log a fault with its call stack; of a group, each."""
    if isinstance(fault, BaseExceptionGroup):
        for one in fault.exceptions:
            log_fault(where, one)
        return
    frames = "".join(traceback.format_tb(fault.__traceback__))
    log.error("fault in %s: %s\n%s", where, type(fault).__name__, frames)
