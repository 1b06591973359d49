"""Section `[firewall]`: our nftables tables are as the signed baseline renders them, and nobody works around them.

Every observation compares the whole of our tables with a fresh load of the wanted text in a throw-away
namespace, unless the kernel's generation number says that no commit happened since the last one. Repair is
one atomic batch. Chains of other programs that accept, drop or rewrite are drift under the key
"foreign:<family> <table> <chain>"; repair deletes their table only with `foreign = "remove"`.

Refuses to take the fence down: `undo` leaves the rules, and the next baseline replaces them in one batch.
Relies on: `agent.netfilter`; the loop passing on culprits with `Netfilter.note`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from agent import probes
from agent.firewall import compare, nft
from agent.firewall.events import Culprit
from agent.firewall.section import Section
from agent.netfilter import Netfilter
from agent.probes import Difference, Notice, could_not_look
from contract.errors import Rejected
from contract.messages import Drift, never_more

__all__ = ["Probe", "Section"]

_FOREIGN = "foreign:"
_RULESET = "ruleset"
_FULL_LOOK_S = 60.0
_MAX_BLAMED = 4


class Probe(probes.Probe[Section]):
    """Observes and repairs the firewall."""

    def __init__(self, section: Section, around: probes.Surroundings) -> None:
        super().__init__(section, around)
        self._rendered: tuple[object, str, str] = (None, "", "")
        self._last: tuple[int, str, list[Difference]] | None = None
        self._looked_at = 0.0
        self._blame = ""
        self._foreign_blame: dict[tuple[str, ...], str] = {}
        self._notices: list[Notice] = []

    def text(self) -> str:
        """Return the batch that this section wants under the posture and fences of the moment."""
        return self._texts()[0]

    def _texts(self) -> tuple[str, str]:
        """Return the whole batch and the cut table alone."""
        around = self.around
        key = (around.posture, around.controller, around.fenced, around.grants)
        if self._rendered[0] != key:
            whole = nft.render(self.section, around.posture, around)
            self._rendered = (key, whole, nft.render_cut(self.section, around))
        return self._rendered[1:]

    def _to_load(self) -> str:
        """Return the batch with the time that is left of each grant, where `text` has a fixed one to compare."""
        around = self.around
        if not around.grants:
            return self.text()
        left = tuple(grant.at(around.host.uptime_s()) for grant in around.grants)
        return nft.render(self.section, around.posture, replace(around, grants=left))

    def observe(self, now: float) -> list[Drift]:
        """Return one drift for each object of our tables that differs, and for each foreign chain that matters."""
        netfilter = self.around.netfilter
        if netfilter is None:
            return self.drifts(
                [could_not_look(_RULESET, "our tables", OSError("no access to nftables"))], now
            )
        netfilter.prepared_cut = self._texts()[1]
        culprits = netfilter.noted()
        try:
            differences = self._differences(netfilter, now)
        except (OSError, Rejected, ValueError) as error:
            self._last = None
            differences = [could_not_look(_RULESET, "our tables", error)]
        return self.drifts(self._blamed(differences, culprits), now)

    def repair(self, drifts: Sequence[Drift], now: float) -> None:
        """Load the whole batch where anything of ours differs; delete foreign tables where the section says so.

        Where this brings isolation about, open flows are ended as well. Raises OSError, Rejected.
        """
        netfilter = self.around.netfilter
        if netfilter is None:
            return
        self._last = None
        keys = [drift.key for drift in drifts]
        if any(not key.startswith(_FOREIGN) for key in keys):
            netfilter.load(self._to_load())
            if self.around.posture == "isolated" and any(_is_cut(key) for key in keys):
                netfilter.flush_conntrack(self.around.controller)
                netfilter.kill_sockets(self.around.controller)
        if self.section.foreign == "remove":
            tables = {_foreign_table(key) for key in keys if key.startswith(_FOREIGN)}
            for family, table in sorted(tables):
                netfilter.remove_table(family, table)

    def notices(self, now: float) -> list[Notice]:
        """Return one notice for each commit on our tables that left no difference: changed and put back."""
        out, self._notices = self._notices, []
        return out

    def _differences(self, netfilter: Netfilter, now: float) -> list[Difference]:
        text = self.text()
        generation = netfilter.generation()
        if self._last is not None and self._last[:2] == (generation, text) and self._fresh(now):
            return self._last[2]
        differences = [
            Difference(change.key, change.wanted, change.found)
            for change in compare.changes(netfilter.canonical(text), netfilter.own())
        ]
        differences = [each for each in differences if not self._over(each.key)]
        known = {(each.family, each.table) for each in self.section.known}
        differences += [
            Difference(f"{_FOREIGN}{chain.family} {chain.table} {chain.chain}", "absent", chain.describe())
            for chain in netfilter.foreign()
            if (chain.family, chain.table) not in known
        ]
        # Only what was true at one generation may be remembered under it.
        self._last = (generation, text, differences) if netfilter.generation() == generation else None
        self._looked_at = now
        return differences

    def _over(self, key: str) -> bool:
        """Tell whether a set belongs to a grant whose time has just come: the kernel was faster than the next pass."""
        name = key.rpartition(" set ")[2]
        now_s = self.around.host.uptime_s() if self.around.grants else 0.0
        return any(
            name.startswith(f"grant{each.id}_") and each.ends_s <= now_s for each in self.around.grants
        )

    def _fresh(self, now: float) -> bool:
        return abs(now - self._looked_at) < _FULL_LOOK_S

    def _blamed(self, differences: list[Difference], culprits: list[Culprit]) -> list[Difference]:
        """Give each difference the processes that committed to its table; tell of those that left none."""
        touching = [each for each in culprits if any(each.touched(*table) for table in nft.OWN_TABLES)]
        ours = [each for each in differences if not each.key.startswith(_FOREIGN)]
        if not ours:
            self._blame = ""
            self._notices += [_touched(culprit) for culprit in touching[:_MAX_BLAMED]]
        elif touching:
            self._blame = "; ".join(culprit.describe() for culprit in touching[-_MAX_BLAMED:])
        tables = {each.key: _foreign_table(each.key) for each in differences if each.key.startswith(_FOREIGN)}
        fresh = {
            table: "; ".join(each.describe() for each in culprits if each.touched(table[0], table[1]))
            for table in set(tables.values())
        }
        # Kept while the difference stands, so that every report can name who made it.
        self._foreign_blame = {table: fresh[table] or self._foreign_blame.get(table, "") for table in fresh}
        out = []
        for each in differences:
            blame = self._foreign_blame[tables[each.key]] if each.key in tables else self._blame
            out.append(each._replace(culprit=blame) if blame else each)
        return out


def _foreign_table(key: str) -> tuple[str, ...]:
    """Return (family, table) of "foreign:<family> <table> <chain>"."""
    return tuple(key.removeprefix(_FOREIGN).split(" ")[:2])


def _is_cut(key: str) -> bool:
    return key == _RULESET or key.startswith(f"inet {nft.CUT_TABLE} ")


def _touched(culprit: Culprit) -> Notice:
    summary = f"our firewall tables were changed and put back by {culprit.describe()}"
    detail = {"pid": str(culprit.pid), "name": culprit.name, "command": culprit.command}
    return Notice("firewall.touched", "warning", never_more(summary, 2048), detail)
