"""Where `ringfence-agent` begins: what boots and what stays is told apart before anything else is imported.

`early` must be quick, `run` small: neither loads the command line's library or another command's parts. `verify` is no
command for people: `run` starts it (`agent.signedfiles`); `repair` is systemd's.
Relies on: nothing; every other command is `agent.main`'s.
"""

from __future__ import annotations

import sys
from typing import NoReturn


def main() -> NoReturn:
    """Run the command line."""
    if sys.argv[1:2] == ["early"]:
        from agent.early import main as early

        early(sys.argv[2:])
    if sys.argv[1:2] == ["run"]:
        from agent.running import main as run

        run(sys.argv[2:])
    if sys.argv[1:2] == ["repair"]:
        from agent.repairing import main as repair

        repair(sys.argv[2:])
    if sys.argv[1:] == ["verify"]:
        from agent.signedfiles import main as verify

        verify()
    from agent.main import main as rest

    rest()


if __name__ == "__main__":
    main()
