"""Who has changed what: the processes that committed to a table are named with what differs of it, as long as it differs. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from agent.firewall.events import Culprit
from agent.firewall.foreigners import PREFIX, table_of
from agent.firewall.match import is_ours
from agent.probes import Difference, Notice
from contract.messages import never_more

_MAX_BLAMED = 4


class Blame:
    """Remembers who it was while a difference stands. `mends`: whether a difference's key is of our own tables."""

    def __init__(self, mends: Callable[[str], bool]) -> None:
        self._mends = mends
        self._ours = ""
        self._foreign: dict[tuple[str, str], str] = {}
        self._notices: list[Notice] = []

    def notices(self) -> list[Notice]:
        """Return and forget one notice for each commit on our tables that left no difference: changed and put back."""
        out, self._notices = self._notices, []
        return out

    def given(self, differences: Iterable[Difference], culprits: Sequence[Culprit]) -> list[Difference]:
        """Give each difference the processes that committed to its table."""
        found = list(differences)
        touching = [each for each in culprits if any(is_ours(name) for _, name in each.tables)]
        if not any(self._mends(each.key) for each in found):
            self._ours = ""
            self._notices += [_touched(culprit) for culprit in touching[:_MAX_BLAMED]]
        elif touching:
            self._ours = "; ".join(culprit.describe() for culprit in touching[-_MAX_BLAMED:])
        places = {each.key: table_of(each.key) for each in found if each.key.startswith(PREFIX)}
        fresh = {
            table: "; ".join(each.describe() for each in culprits if each.touched(*table))
            for table in set(places.values())
        }
        # Kept while the difference stands, so that every report can name who made it.
        self._foreign = {table: fresh[table] or self._foreign.get(table, "") for table in fresh}
        out = []
        for each in found:
            blame = self._foreign[places[each.key]] if each.key in places else self._ours
            out.append(each._replace(culprit=each.culprit or blame))
        return out


def _touched(culprit: Culprit) -> Notice:
    summary = f"our firewall tables were changed and put back by {culprit.describe()}"
    detail = {"pid": str(culprit.pid), "name": culprit.name, "command": culprit.command}
    return Notice("firewall.touched", "warning", never_more(summary, 2048), detail)
