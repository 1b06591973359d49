"""One-use codes at the console of a node: real agent, real socket, real rules; wrong, used, restored and hammered."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from agent.breakglass import FREE_TRIES, opened, waiting_s
from agent.console import Console, ask
from agent.plan import Stance
from agent.probes.access import BreakGlass as Bound
from contract.errors import Rejected
from contract.grant import CODE_CHARS, hashed, matching, new_code, plain_code
from contract.messages import Posture
from tests.agent.grantrun import RULES
from tests.agent.rig import NODE, nft
from tests.agent.test_grants import FullStore, Held, in_own_namespace
from tests.agent.test_hold import until
from tests.parts.signing import minimal_baseline


class Door:
    """The console's socket of a running agent, on a thread of its own."""

    def __init__(self, made: Held) -> None:
        self.folder = Path(made.rig.config.state_dir)
        self._made = made
        self._ready = threading.Event()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        self._ready.wait(5)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        console = Console(NODE, self._made.rig.loop)
        self._server = self._loop.run_until_complete(console.serve(self.folder))
        self._ready.set()
        self._loop.run_forever()
        self._server.close()

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5)

    def refusal(self, code: str) -> str:
        """Try a code that must be refused; return why."""
        with pytest.raises(Rejected) as refused:
            ask(self.folder, code)
        return refused.value.code


def isolated() -> bool:
    return "cut_output" in nft("list", "ruleset")


def held(folder: Path, job: Callable[[Held], None], *, rules: str = RULES, store: type = FullStore) -> None:
    def inside() -> None:
        made = Held(folder, store=store)
        if rules != RULES:
            wanted = made.rig.publish(minimal_baseline("factory", 2, extra=rules), 2)
            made.direct()
            made.rig.direct(made.rig.signed(3, wanted=wanted))
            made.rig.fetch(wanted)
            made.rig.answer()
            made.wanted, made.number = wanted, 3
        try:
            job(made)
        finally:
            FullStore.full = False
            made.rig.stop()

    in_own_namespace(inside)


def test_a_code_releases_an_isolated_node_once_and_for_a_while(tmp_path: Path) -> None:
    code, other = new_code(), new_code()

    def job(made: Held) -> None:
        codes = [hashed(4, code, NODE), hashed(5, other, NODE)]
        made.direct(posture="isolated", break_glass=codes)
        assert isolated()
        door = Door(made)
        assert door.refusal(new_code()) == "break-glass.wrong"
        assert isolated()
        assert ask(door.folder, code.lower().replace("-", " ")) == 600.0
        until(lambda: not isolated())
        assert door.refusal(code) == "break-glass.wrong", "a code works once"
        (used,) = made.events("break-glass.used")
        assert used["code"] == "4"
        made.direct(posture="isolated", break_glass=codes)
        assert not isolated(), "the controller's next word does not end it"
        door.close()
        made.rig.stop()
        made.rig.start()
        assert not isolated(), "nor does a restart"
        assert 0 < made.rig.loop.hold.state.glass.left_s <= 600
        made.direct(posture="isolated", break_glass=codes[1:])
        assert isolated(), "withdrawing the code does"
        assert [each["why"] for each in made.events("break-glass.closed")] == ["withdrawn by the controller"]

    held(tmp_path, job)


def test_an_opened_node_closes_when_the_time_is_over(tmp_path: Path) -> None:
    code = new_code()

    def job(made: Held) -> None:
        made.direct(posture="isolated", break_glass=[hashed(4, code, NODE)])
        door = Door(made)
        assert ask(door.folder, code) == 2.0
        until(lambda: not isolated())
        until(isolated, 6)
        assert [each["why"] for each in made.events("break-glass.closed")] == ["its time is over"]
        door.close()

    held(tmp_path, job, rules=RULES.replace("max_s = 600", "max_s = 2"))


def test_wrong_codes_are_counted_over_restarts_and_must_wait(tmp_path: Path) -> None:
    code = new_code()

    def job(made: Held) -> None:
        made.direct(break_glass=[hashed(4, code, NODE)])
        door = Door(made)
        for _ in range(FREE_TRIES):
            assert door.refusal(new_code()) == "break-glass.wrong"
        assert door.refusal(code) == "break-glass.too-many", "not even the right one"
        door.close()
        made.rig.stop()
        made.rig.start()
        door = Door(made)
        assert door.refusal(code) == "break-glass.too-many", "a restart gains nothing"
        assert made.rig.kinds().count("break-glass.wrong") == FREE_TRIES
        door.close()

    held(tmp_path, job)


def test_a02_a_used_code_is_still_used_when_the_state_file_is_put_back(tmp_path: Path) -> None:
    code = new_code()

    def job(made: Held) -> None:
        made.direct(break_glass=[hashed(4, code, NODE)])
        folder = Path(made.rig.config.state_dir)
        shutil.copy(folder / "state", tmp_path / "kept")
        door = Door(made)
        assert ask(door.folder, code) == 600.0
        door.close()
        made.rig.stop()
        shutil.copy(tmp_path / "kept", folder / "state")
        made.rig.start()
        door = Door(made)
        assert door.refusal(code) == "break-glass.wrong"
        door.close()

    held(tmp_path, job)


def test_a03_nothing_opens_that_cannot_be_written_down(tmp_path: Path) -> None:
    code = new_code()

    def job(made: Held) -> None:
        made.direct(posture="isolated", break_glass=[hashed(4, code, NODE)])
        door = Door(made)
        FullStore.full = True
        assert door.refusal(code) == "break-glass.not-recorded"
        assert isolated()
        FullStore.full = False
        assert ask(door.folder, code) == 600.0, "a try that could not be counted spent nothing"
        door.close()

    held(tmp_path, job)


@pytest.mark.parametrize(
    ("rules", "posture", "code"),
    [
        (RULES.partition("[access.break_glass]")[0], "isolated", "break-glass.not-allowed"),
        (RULES.replace("releases_isolation = true", ""), "isolated", "break-glass.isolated"),
    ],
)
def test_a07_a_code_does_nothing_that_the_signed_baseline_does_not_name(
    tmp_path: Path, rules: str, posture: Posture, code: str
) -> None:
    right = new_code()

    def job(made: Held) -> None:
        made.direct(posture=posture, break_glass=[hashed(4, right, NODE)])
        door = Door(made)
        assert door.refusal(right) == code
        assert isolated() == (posture == "isolated")
        door.close()

    held(tmp_path, job, rules=rules)


def test_a_code_is_bound_to_its_node() -> None:
    code = new_code()
    mine = hashed(1, code, "press-1")
    assert matching([mine], code, "press-1") == mine
    assert matching([mine], code, "press-2") is None
    assert matching([mine], new_code(), "press-1") is None
    assert matching([], code, "press-1") is None


def test_codes_are_read_as_people_write_them() -> None:
    assert plain_code("o1il0-ABCDE fghjk mnpqr") == "01110ABCDEFGHJKMNPQR"
    assert plain_code("") is None
    assert plain_code("0" * (CODE_CHARS + 1)) is None
    assert plain_code("\u0660" * CODE_CHARS) is None
    assert plain_code("U" * CODE_CHARS) is None
    assert len({new_code() for _ in range(1000)}) == 1000


def test_waits_double_up_to_an_hour() -> None:
    assert [waiting_s(n) for n in (0, 4, 5, 6, 7)] == [0.0, 0.0, 60.0, 120.0, 240.0]
    assert waiting_s(10**6) == 3600.0


def test_what_a_code_makes_of_a_stance() -> None:
    bound = Bound(posture="maintenance", max_s=60, reason="test")
    cut = Stance("isolated", ("10.0.0.1",), "ordered")
    assert opened(cut, bound, 1) == cut
    assert opened(Stance("normal", (), ""), bound, 1).posture == "maintenance"
    releasing = Bound(posture="normal", max_s=60, releases_isolation=True, reason="test")
    assert opened(cut, releasing, 1) == Stance("normal", ("10.0.0.1",), "break-glass code 1")


def test_the_command_says_that_there_is_no_agent(tmp_path: Path) -> None:
    config = tmp_path / "agent.toml"
    config.write_text(
        f'node = "press-1"\nstate_dir = "{tmp_path}"\n[controller]\nurl = "https://192.0.2.1:8440"\nca = "/x"\n'
    )
    done = subprocess.run(
        [sys.executable, "-m", "agent.main", "break-glass", "--config", str(config)],
        input=new_code() + "\n",
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "the agent is not running" in done.stderr
