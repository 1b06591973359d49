"""Manual pages and shell completions, from the commands themselves: what `--help` says, for every command and option.

python packaging/os/pages.py PROGRAM FOLDER ABOUT VERSION      (the programs' own modules must be importable)
"""

from __future__ import annotations

import gzip
import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

import click

SECTIONS = {"ringfence-agent": 8, "ringfence-controller": 8, "ringfence": 1}
_MODULES = {
    "ringfence-agent": "agent.main",
    "ringfence-controller": "controller.main",
    "ringfence": "controller.cli",
}
SHELLS = {
    "bash": "/usr/share/bash-completion/completions/{}",
    "zsh": "/usr/share/zsh/vendor-completions/_{}",
    "fish": "/usr/share/fish/vendor_completions.d/{}.fish",
}
_EXITS = {
    "ringfence-agent": "0 as asked; 1 no, or it did not work out; 2 the input was refused; 3 a fault of the program or the machine.",
    "ringfence-controller": "0 done; 1 refused, with reason and cure; 2 wrong usage; 70 a fault of the program.",
    "ringfence": "0 done; 1 refused; 2 wrong usage; 3 not logged in or not allowed; 4 controller not reachable; 70 a fault of the program; 130 interrupted.",
}
_SEE = {
    "ringfence-agent": r"\fBringfence\fP(1), \fBnft\fP(8), \fBsystemd\fP(1)",
    "ringfence-controller": r"\fBringfence\fP(1), \fBsystemd\fP(1)",
    "ringfence": r"\fBringfence\-controller\fP(8), \fBringfence\-agent\fP(8)",
}


def manual(program: str, about: str, version: str) -> str:
    """Return the manual page in roff: every command and every option of the program."""
    group = importlib.import_module(_MODULES[program]).cli
    context = click.Context(group, info_name=program)
    lines = [
        f'.TH {roff(program.upper())} {SECTIONS[program]} "" "Ringfence {version}" "Ringfence"',
        ".SH NAME",
        f"{roff(program)} \\- {roff(about[0].lower() + about[1:])}",
        ".SH SYNOPSIS",
        f".B {roff(program)}",
        "COMMAND [OPTIONS] [ARGUMENTS]",
        ".SH DESCRIPTION",
        *_text(group.help or about),
        ".SH COMMANDS",
    ]
    for path, command, inner in _commands(group, context):
        usage = " ".join(command.collect_usage_pieces(inner))
        lines += [f".SS {roff(path)} {roff(usage)}", *_text(command.help or "")]
        lines += _options(command, inner)
    lines += [".SH EXIT STATUS", _EXITS[program], ".SH FILES", f"/usr/share/doc/{program}/operate.md"]
    return "\n".join([*lines, ".SH SEE ALSO", _SEE[program]]) + "\n"


def completion(program: str, shell: str) -> str:
    """Return the completion script of a shell, as click writes it. Raises RuntimeError where it writes none."""
    variable = f"_{program.upper().replace('-', '_')}_COMPLETE"
    code = f"import sys; sys.argv = [{program!r}]; from {_MODULES[program]} import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, variable: f"{shell}_source"},
        capture_output=True,
        text=True,
        check=False,
    )
    if variable not in done.stdout:
        raise RuntimeError(f"{program}: no completion for {shell}: {done.stderr}")
    return done.stdout


def roff(text: str) -> str:
    """Return text as troff prints it: backslashes, hyphens, and points and quotes at the start of a line."""
    escaped = text.replace("\\", "\\e").replace("-", "\\-")
    return re.sub(r"^([.'])", r"\\&\1", escaped, flags=re.M)


def _commands(
    group: click.Group, context: click.Context, above: str = ""
) -> list[tuple[str, click.Command, click.Context]]:
    found = []
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        if command is None or command.hidden:
            continue
        inner = click.Context(command, info_name=name, parent=context)
        path = f"{above} {name}".strip()
        if isinstance(command, click.Group):
            found += _commands(command, inner, path)
        else:
            found.append((path, command, inner))
    return found


def _options(command: click.Command, context: click.Context) -> list[str]:
    lines = []
    for parameter in command.get_params(context):
        record = None if isinstance(parameter, click.Argument) else parameter.get_help_record(context)
        if record is not None and "--help" not in parameter.opts:
            lines += [".TP", f"\\fB{roff(record[0])}\\fP", roff(" ".join(record[1].split())) or "\\&"]
    return lines


def _text(text: str) -> list[str]:
    paragraphs = [" ".join(part.split()) for part in text.replace("\b", "").split("\n\n") if part.strip()]
    lines: list[str] = []
    for number, paragraph in enumerate(paragraphs):
        lines += ([".PP"] if number else []) + [roff(paragraph)]
    return lines


def main() -> int:
    """Write PROGRAM.SECTION.gz and PROGRAM.SHELL into the folder."""
    program, folder, about, version = sys.argv[1], Path(sys.argv[2]), sys.argv[3], sys.argv[4]
    with gzip.GzipFile(folder / f"{program}.{SECTIONS[program]}.gz", "wb", 9, mtime=0) as file:
        file.write(manual(program, about, version).encode())
    for shell in SHELLS:
        (folder / f"{program}.{shell}").write_text(completion(program, shell))
    return 0


if __name__ == "__main__":
    sys.exit(main())
