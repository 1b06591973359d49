"""`[cameras]`: which video devices may be there, who may open them, and who has them open.

Video4Linux and media nodes. Cameras in the network are the firewall's business. `agent.probes._nodes` does the work.
"""

from __future__ import annotations

from agent.probes._nodes import NodeProbe, NodeSection

SUBSYSTEMS = ("video4linux", "media", "dvb")


class Section(NodeSection, frozen=True, kw_only=True):
    """`[cameras]`."""


class Probe(NodeProbe[Section]):
    """Looks at video nodes."""

    PATTERNS = (
        "/dev/video*",
        "/dev/v4l-subdev*",
        "/dev/v4l-touch*",
        "/dev/vbi*",
        "/dev/radio*",
        "/dev/media*",
    )
    LIKELY = "camera"
