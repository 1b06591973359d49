"""What the rules need to know of this very node: numbers of users, cgroups of units, gateways.

Refuses to guess: who or what is not there is not in the answer, and the rules for it are left out (closed).
Relies on: `agent.host` for users and control groups, rtnetlink(7) for gateways.
"""

from __future__ import annotations

from agent.firewall import routes
from agent.firewall.model import Local, Unit
from agent.firewall.neighbours import by_zone
from agent.firewall.netlink import Talk
from agent.firewall.section import Section
from agent.host import Host
from agent.userdb import user_id


def resolved(section: Section, host: Host, gateways: tuple[tuple[str, str], ...] | None = None) -> Local:
    """Return what the section's owners are at this moment; `gateways` where they were just asked for."""
    users, units = owners(section)
    numbers: dict[str, int] = {}
    for name in users:
        try:
            numbers[name] = user_id(name)
        except OSError:
            continue
    groups: dict[str, Unit] = {}
    for name in units:
        found = host.cgroups.of_unit(name)
        if found is not None:
            groups[name] = Unit(path=found.path, level=found.level, number=found.number)
    if gateways is None and by_zone(section):
        gateways = _gateways()
    return Local(users=numbers, units=groups, gateways=gateways)


def _gateways() -> tuple[tuple[str, str], ...] | None:
    """Return the gateways of this thread's network namespace; None where the kernel does not say."""
    talk = Talk(routes.NETLINK_ROUTE)
    try:
        return routes.gateways(talk)
    except OSError:
        return None
    finally:
        talk.close()


def owners(section: Section) -> tuple[list[str], list[str]]:
    """Return every user and every unit that an outbound rule names."""
    rules = [*section.outbound, *section.maintenance.outbound]
    users = sorted({rule.user for rule in rules if rule.user is not None})
    units = sorted({rule.unit for rule in rules if rule.unit is not None})
    return users, units
