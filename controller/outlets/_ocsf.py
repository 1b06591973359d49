"""Events in the Open Cybersecurity Schema Framework, 1.3.0: findings where something is wrong, base events elsewhere.

A warning or worse is a Detection Finding (class 2004), anything else a Base Event (class 0). Node text goes into
`message` and `unmapped` as it is: JSON encoding makes it harmless, and receivers must treat it as data.
"""

from __future__ import annotations

from typing import Final

import msgspec

from controller.records import EventView

VERSION: Final = "1.3.0"
_SEVERITY_ID: Final = {"info": 1, "warning": 3, "critical": 5}
_SEVERITY: Final = {"info": "Informational", "warning": "Medium", "critical": "Critical"}


def ocsf(event: EventView) -> dict[str, object]:
    """Return one event as an OCSF object."""
    finding = event.severity != "info"
    class_uid = 2004 if finding else 0
    found: dict[str, object] = {
        "class_uid": class_uid,
        "class_name": "Detection Finding" if finding else "Base Event",
        "category_uid": class_uid // 1000,
        "category_name": "Findings" if finding else "Uncategorized",
        "activity_id": 1 if finding else 99,
        "activity_name": "Create" if finding else event.kind,
        "type_uid": class_uid * 100 + (1 if finding else 99),
        "time": int(event.at * 1000),
        "severity_id": _SEVERITY_ID[event.severity],
        "severity": _SEVERITY[event.severity],
        "message": event.summary,
        "metadata": {
            "version": VERSION,
            "uid": str(event.id),
            "event_code": event.kind,
            "logged_time": int(event.stored_at * 1000),
            "product": {"name": "Ringfence", "vendor_name": "Ringfence", "feature": {"name": event.source}},
        },
        "unmapped": {"detail": event.detail, "sequence": event.seq},
    }
    if finding:
        found |= {
            "status_id": 1,
            "status": "New",
            "finding_info": {"uid": str(event.id), "title": event.summary[:256], "types": [event.kind]},
        }
    if event.node is not None or event.site is not None:
        found["device"] = {
            "type_id": 0,
            "name": event.node or event.site,
            "uid": event.node or event.site,
            "zone": event.site or "",
        }
    return found


def ocsf_line(event: EventView) -> bytes:
    """Return one event as one line of JSON, without a newline."""
    return msgspec.json.encode(ocsf(event))
