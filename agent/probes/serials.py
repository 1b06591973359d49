"""`[serials]`: which serial ports may be there, who may open them, and who has them open.

A serial line reaches machines (PLCs, printers, payment terminals, consoles) past every firewall. The kernel makes nodes for
ports of old hardware that is not there (`/sys/class/tty/ttyS3/type` is 0): those are left out. `agent.probes._nodes` does the work.
"""

from __future__ import annotations

from agent.devicenodes import Node
from agent.probes._nodes import NodeProbe, NodeSection

SUBSYSTEMS = ("tty", "usb-serial")


class Section(NodeSection, frozen=True, kw_only=True):
    """`[serials]`."""


class Probe(NodeProbe[Section]):
    """Looks at the nodes of serial ports."""

    PATTERNS = (
        "/dev/ttyS*",
        "/dev/ttyUSB*",
        "/dev/ttyACM*",
        "/dev/ttyAMA*",
        "/dev/ttyGS*",
        "/dev/ttymxc*",
        "/dev/ttyTHS*",
        "/dev/ttyO*",
        "/dev/ttyXRUSB*",
        "/dev/rfcomm*",
    )
    LIKELY = "serial port"

    def nodes(self) -> tuple[list[Node], list[str]]:
        """Return the nodes that have a port behind them, and paths of what is no device. Raises OSError."""
        nodes, others = super().nodes()
        return [node for node in nodes if not self.around.host.nodes.is_empty_port(node)], others
