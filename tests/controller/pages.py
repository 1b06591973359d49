"""The tables in `docs/api.md` and `docs/roles.md`: `python -m tests.controller.pages` writes them anew."""

from __future__ import annotations

import re
from pathlib import Path
from typing import get_args

from controller.api.routes import ROUTES
from controller.permissions import MEANING, ROLES, Permission

DOCS = Path(__file__).resolve().parents[2] / "docs"
_TABLE = re.compile(r"(<!-- table:.*?-->\n).*(<!-- end of table -->)", re.DOTALL)


def routes() -> str:
    """Return the table of routes."""
    rows = [f"| {r.method} | `{r.path}` | `{r.needs}` | {r.about} | {r.summary} |" for r in ROUTES]
    return "\n".join(["| Method | Path | Needs | About | What |", "|---|---|---|---|---|", *rows])


def roles() -> str:
    """Return the table of permissions by role."""
    head = f"| permission | what it allows | {' | '.join(ROLES)} |"
    rows = [
        f"| `{permission}` | {MEANING[permission]} | "
        + " | ".join("yes" if permission in allowed else "" for allowed in ROLES.values())
        + " |"
        for permission in get_args(Permission)
    ]
    return "\n".join([head, "|---|---|" + "---|" * len(ROLES), *rows])


PAGES = {DOCS / "api.md": routes, DOCS / "roles.md": roles}


def with_table(path: Path) -> str:
    """Return a page with its table put in."""
    return _TABLE.sub(lambda found: f"{found[1]}{PAGES[path]()}\n{found[2]}", path.read_text())


if __name__ == "__main__":
    for page in PAGES:
        page.write_text(with_table(page))
