"""Every route with requests that somebody else's program makes up from our document: no fault, and no answer that it does not name.

`make contract` asks far more than the suite does.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from controller.api.routes import ROUTES
from controller.config import Limits
from tests.controller.live import TOKENS, running
from tests.controller.twosites import OWN, place
from tests.parts import schemathesis

EXAMPLES = int(os.environ.get("RINGFENCE_SCHEMATHESIS_EXAMPLES", "2"))
SEED = int(os.environ.get("RINGFENCE_SCHEMATHESIS_SEED", "1"))


async def test_every_answer_is_as_documented(tmp_path: Path, database_url: str) -> None:
    # It asks without a token, too, and that is no attack of many tries here.
    limits = Limits(failures_per_minute=10**6, logins_per_minute=10**6, requests_per_minute=10**6)
    (tmp_path / "controller").mkdir()
    async with running(tmp_path / "controller", limits=limits, database=database_url) as live:
        world = await place(live, OWN)
        await world.node.close()  # nobody to wait for
        code, said = await schemathesis.run(
            tmp_path,
            live.admin_url,
            live.ca,
            TOKENS["admin"],
            world.names,
            examples=EXAMPLES,
            seed=SEED,
        )
    assert code == 0, said
    tested = re.search(r"Tested: (\d+)", said)
    assert tested is not None and int(tested[1]) == len(ROUTES), said
