"""`[accelerators]`: GPU and NPU nodes: which may be there, who may open them, and who has them open.

Whoever can open such a node shares the accelerator's memory with the model server. Vendors' own nodes are made by their
own programs, so they are found by name and judged by device number. `agent.probes._nodes` does the work.
Refuses to reload anything: systemd's reload takes GPUs away from containers.
"""

from __future__ import annotations

from agent.probes._nodes import NodeProbe, NodeSection

SUBSYSTEMS = ("drm", "accel", "kfd", "nvidia", "nvidia-uvm", "habanalabs", "hailo_chardev", "apex")


class Section(NodeSection, frozen=True, kw_only=True):
    """`[accelerators]`."""


class Probe(NodeProbe[Section]):
    """Looks at GPU and NPU nodes."""

    PATTERNS = (
        "/dev/dri/card*",
        "/dev/dri/renderD*",
        "/dev/dri/controlD*",
        "/dev/accel/*",
        "/dev/kfd",
        "/dev/nvidia*",
        "/dev/nvidia-caps/*",
        "/dev/dxg",
        "/dev/apex_*",
        "/dev/hailo*",
        "/dev/hl*",
        "/dev/davinci*",
        "/dev/vfio/*",
        "/dev/nvhost-*",
        "/dev/nvmap",
        "/dev/rknpu*",
    )
    LIKELY = "accelerator"
