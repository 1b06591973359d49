"""How every command ends: the exit codes, and what becomes of an error that nobody has caught.

0 as asked; 1 it did not work out (differences found, not enrolled, controller away); 2 the input was refused
(configuration, baseline, usage); 3 a fault of the program or the machine.
"""

from __future__ import annotations

import contextlib
import sys
import traceback
from collections.abc import Iterator
from typing import NoReturn

from contract.errors import Rejected

EXIT_NO, EXIT_REFUSED, EXIT_FAULT = 1, 2, 3


def fail(code: int, text: str) -> NoReturn:
    """Say why and end."""
    print(f"ringfence-agent: {text}", file=sys.stderr)
    sys.exit(code)


@contextlib.contextmanager
def outermost() -> Iterator[None]:
    """Make an exit code of whatever error comes this far."""
    try:
        yield
    except Rejected as error:
        fail(EXIT_REFUSED, error.detail or error.code)
    except OSError as error:
        fail(EXIT_FAULT, str(error))
    except Exception:  # the outermost place: a fault of ours, shown whole
        traceback.print_exc()
        sys.exit(EXIT_FAULT)
