"""`ringfence`: the admin command, over the admin API and nothing else (offline signing needs no controller).

Exit codes: 0 done, 1 refused, 2 wrong usage, 3 not logged in or not allowed, 4 controller not reachable,
70 a fault of this program, 130 interrupted.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import NoReturn

import click

from contract.errors import Rejected
from controller.cli.access import completion, events, whoami
from controller.cli.apply import apply
from controller.cli.attest import attest
from controller.cli.audit import audit
from controller.cli.baseline import baseline
from controller.cli.client import Refused, Unreachable
from controller.cli.enrolments import enrolments
from controller.cli.escrow import key
from controller.cli.evidence import evidence
from controller.cli.fleet import accept_boot, incidents, isolate, node, release, site, sites, status
from controller.cli.grants import breakglass, grant
from controller.cli.inventory import inventory
from controller.cli.keys import keys
from controller.cli.login import login, logout, password
from controller.cli.nodes import label, nodes, relabel
from controller.cli.outlets import outlets
from controller.cli.references import reference
from controller.cli.responses import drill, response, suppress, suppressions
from controller.cli.restore import restore
from controller.cli.rollouts import plan, rollout
from controller.cli.show import harmless
from controller.cli.tokens import tokens
from controller.cli.users import users
from controller.faults import log_fault

REFUSED, USAGE, NOT_ALLOWED, UNREACHABLE, FAULT, INTERRUPTED = 1, 2, 3, 4, 70, 130


@click.group(context_settings={"help_option_names": ["-h", "--help"]}, epilog=__doc__)
@click.version_option(package_name="ringfence", prog_name="ringfence")
def cli() -> None:
    """Ringfence: see, hold and isolate a fleet of inference sites."""


for command in (
    *(
        login,
        logout,
        password,
        whoami,
        status,
        nodes,
        node,
        inventory,
        label,
        relabel,
        sites,
        site,
        enrolments,
        baseline,
        keys,
        attest,
    ),
    *(
        incidents,
        isolate,
        release,
        response,
        suppress,
        suppressions,
        drill,
        accept_boot,
        plan,
        rollout,
        apply,
        reference,
        evidence,
        key,
        grant,
        breakglass,
        events,
        outlets,
        restore,
        audit,
        users,
        tokens,
        completion,
    ),
):
    cli.add_command(command)


def main() -> NoReturn:
    """Entry point."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: Sequence[str]) -> int:
    """Run one command and return its exit code."""
    try:
        # A command that leaves by `context.exit(code)` makes it the value returned here; all others return None.
        code = cli(list(arguments), prog_name="ringfence", standalone_mode=False)
    except click.exceptions.Abort:
        return INTERRUPTED
    except click.exceptions.Exit as leave:
        return leave.exit_code
    except click.ClickException as error:
        error.show()
        return USAGE
    except Rejected as rejected:
        _complain(str(rejected))
        return NOT_ALLOWED if rejected.code.startswith("login.") else REFUSED
    except Refused as refused:
        _complain(str(refused))
        return NOT_ALLOWED if refused.status in (401, 403) else REFUSED
    except Unreachable as error:
        _complain(str(error))
        return UNREACHABLE
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        _complain(f"{error.strerror}: {error.filename or ''}")
        return REFUSED
    except Exception as fault:  # outermost place of the program
        log_fault("ringfence", fault)
        return FAULT
    return code if isinstance(code, int) else 0


def _complain(text: str) -> None:
    click.echo(f"ringfence: {harmless(text)}", err=True)
