"""The packaged lock-down, made by the agent's own code: python packaging/os/lockdown.py FILE"""

from __future__ import annotations

import sys
from pathlib import Path

from agent.earlyfile import packaged

if __name__ == "__main__":
    Path(sys.argv[1]).write_text(packaged())
