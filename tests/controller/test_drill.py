"""Drills over real sockets: everything but the last step, and the command for rules and suppressions."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path

from contract.messages import Answer, Challenge, Message
from controller import cli as admin
from controller.permissions import EVERYWHERE
from tests.controller.live import answer_to, next_message, running
from tests.controller.test_commands import Running
from tests.parts.simulator import Node

REASON = ("--reason", "test")
RULES = """[[rule]]
name = "late"
when = { finding = "boot.*", nodes = 3, within_s = 600 }
then = ["isolate-site"]
stage = "act"
"""


async def _answer_challenge(node: Node) -> list[Message]:
    """Answer the next challenge; return everything that came over the socket meanwhile."""
    got: list[Message] = [await next_message(node)]
    while not isinstance(got[-1], Challenge):
        got.append(await next_message(node))
    got.append(await answer_to(node, node.report()))
    return got


async def test_a_drill_says_all_and_changes_nothing(tmp_path: Path) -> None:
    async with running(tmp_path) as live:
        here, silent = await live.node("press-1"), await live.node("press-2")
        await live.node("press-3", connect=False)
        for node in (here, silent):
            await answer_to(node, node.report())
        before = await live.fleet.list_nodes(scope=EVERYWHERE)
        numbers = [(await live.fleet.node(n.node)).directive_number for n in before.items]
        answering = asyncio.create_task(_answer_challenge(here))
        status, found = await live.call(
            "POST", "/api/v1/sites/factory/drill", {"reason": "monthly", "wait_s": 3.0}
        )
        assert status == 200, found
        got = await answering
        plan = found["plan"]
        assert isinstance(plan, dict)
        assert (plan["would_isolate"], plan["isolated_already"]) == (["press-1", "press-2", "press-3"], [])
        assert (plan["orders"], plan["breaker"]) == (3, "")
        assert (plan["baselines"], len(plan["without_baseline"])) == ([], 3)
        assert (found["connected"], found["silent"], found["away"]) == (
            ["press-1", "press-2"],
            ["press-2"],
            ["press-3"],
        )
        assert len(found["answered_ms"]) == 1  # type: ignore[arg-type]
        # Nothing was told but the challenge, and nothing is held.
        got += [await next_message(silent), await answer_to(silent, silent.report())]
        assert [type(message) for message in got] == [Challenge, Answer] * 2
        for message in got:
            if isinstance(message, Answer):
                assert message.directive is None
        assert (await live.fleet.list_holds(scope=EVERYWHERE, active=False)).items == []
        after = await live.fleet.list_nodes(scope=EVERYWHERE)
        assert [n.wanted_posture for n in after.items] == ["normal"] * 3
        assert [(await live.fleet.node(n.node)).directive_number for n in after.items] == numbers
        events = [
            e for e in await live.fleet.list_events(scope=EVERYWHERE, limit=500) if e.kind == "site.drilled"
        ]
        assert len(events) == 1
        assert [a.reason for a in await live.fleet.list_audit(limit=500) if a.act == "site.drilled"] == [
            "monthly"
        ]
        assert (await live.call("POST", "/api/v1/sites/nowhere/drill", {"reason": "x"}))[0] == 404


def test_rules_and_suppressions_by_command(tmp_path: Path) -> None:
    controller = Running(tmp_path)
    ask, file = controller.ringfence, tmp_path / "rules.toml"
    try:
        controller.login()
        assert ask("site", "create", "factory").returncode == 0
        file.write_text(RULES)
        checked = ask("response", "check", file)
        assert checked.returncode == 0, checked.stderr
        assert "the policy of site factory would isolate the site at the first" in checked.stderr
        assert json.loads(ask("response", "show", "--json").stdout)["version"] == 0
        assert ask("response", "set", file, *REASON).returncode == 0
        assert "version 1" in ask("response", "show").stdout
        file.write_text(RULES.replace("isolate-site", "isolate-all"))
        refused = ask("response", "set", file, *REASON)
        assert (refused.returncode, f"{file}:4: rule[0].then[0]" in refused.stderr) == (admin.REFUSED, True)
        undone = ask("response", "undo", *REASON)
        assert (undone.returncode, "version 2" in undone.stdout) == (0, True)
        assert [v["version"] for v in json.loads(ask("response", "history", "--json").stdout)] == [2, 1]

        tomorrow = time.strftime("%Y-%m-%dT%H:%M", time.localtime(time.time() + 86400))
        suppress = ("suppress", "--kind", "drift.usb", "--until", tomorrow, *REASON)
        made = ask(*suppress, "--selector", "site=factory")
        assert made.returncode == 0, made.stderr
        assert ask(*suppress, "--selector", "").returncode == admin.REFUSED
        assert (
            ask("suppress", "-l", "all", "--kind", "drift", "--until", "2099-01-01", *REASON).returncode
            == admin.REFUSED
        )
        [listed] = json.loads(ask("suppressions", "list", "--json").stdout)
        assert (listed["selector"], listed["kind"], listed["acts"]) == ("site=factory", "drift.usb", False)
        assert ask("suppressions", "end", listed["id"], *REASON).returncode == 0
        assert json.loads(ask("suppressions", "list", "--json").stdout) == []

        drilled = ask("drill", "isolate", "factory", *REASON)
        assert drilled.returncode == 0, drilled.stderr
        assert "the breaker would allow it now" in drilled.stdout
    finally:
        controller.stop()
