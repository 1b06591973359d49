"""`ringfence-agent learn`: a draft baseline of this node, or single sections of one, for a person to cut down.

Without a section: a whole baseline in mode `observe`, that `ringfence-agent check` takes and under which this node shows
no drift but that firewall and USB guard are not up. With sections: those alone, to put into a baseline. What has to be told more
(ima, models) is learned only by name. Writes nothing but what `--output` names.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path

import click

from agent.config import DEFAULT_PATH, load_config
from agent.host import Host
from agent.learning import Draft, ima, learners, models
from agent.models.section import Classification
from agent.packages import PackageDatabase
from agent.probes import ControllerEndpoint, Surroundings, parse_sections
from contract.baseline import parse_baseline
from contract.toml import MAX_TOML_BYTES

_HEAD = """\
# A draft, written by `ringfence-agent learn` from what this node is NOW. If it was broken into, so is the draft.
# Go through every `# DECIDE`, give each rule its reason or strike it out, then `ringfence-agent check`, and sign it.
# Not in here: [boot] (`ringfence attest learn`), [ima] and [models] (`ringfence-agent learn ima`, `learn models FOLDER`).

# DECIDE: name and summary; "enforce", section by section, once its rules are judged
[baseline]
name = "draft"
version = 1
summary = "Learned, not judged"
mode = "observe"
"""


@dataclass
class _Asked:
    """What the options before the sections say, and what has been learned so far."""

    around: Surroundings
    root: Path
    output: Path | None
    whole: bool
    sections: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)

    def take(self, draft: Draft) -> None:
        if draft.text:
            self.sections.append(draft.text)
        self.left_out += draft.left_out


@click.group(chain=True, invoke_without_command=True)
@click.option(
    "--config", "config_path", type=click.Path(path_type=Path), default=DEFAULT_PATH, show_default=True
)
@click.option(
    "--root", type=click.Path(exists=True, file_okay=False, path_type=Path), help="Where the files are."
)
@click.option("--output", type=click.Path(dir_okay=False, path_type=Path), help="Where to write; else shown.")
@click.pass_context
def learn(context: click.Context, config_path: Path, root: Path | None, output: Path | None) -> None:
    """Write a draft baseline from this node, or the sections named, for a person to cut down."""
    context.obj = asked = _asked(config_path, root, output, whole=context.invoked_subcommand is None)
    if asked.whole:
        for name in learners():
            _learn(asked, name)
        _write(asked)


@learn.result_callback()
def _finish(results: object, **_: object) -> None:
    """Write what the sections named have brought, after the last of them."""
    asked: _Asked = click.get_current_context().obj
    if not asked.whole:
        _write(asked)


def _asked(config_path: Path, root: Path | None, output: Path | None, *, whole: bool) -> _Asked:
    endpoints: tuple[ControllerEndpoint, ...] = ()
    if config_path.exists():
        config = load_config(config_path)
        roots, where = config.roots, config.controller
        host = Host(root=root or Path(roots.root), sysfs_root=Path(roots.sysfs), proc_root=Path(roots.proc))
        endpoints = tuple(ControllerEndpoint(each, where.port) for each in where.literal_addresses())
        root = root or Path(roots.root)
    else:
        root = root or Path("/")
        host = Host(root=root)
    return _Asked(Surroundings(host=host, controller=endpoints), root, output, whole)


def _learn(asked: _Asked, name: str) -> None:
    try:
        asked.take(learners()[name].draft(asked.around))
    except OSError as error:
        asked.left_out.append(f"{name}: could not look: {error.strerror or error}")


def _write(asked: _Asked) -> None:
    text = "\n".join([*([_HEAD] if asked.whole else []), *asked.sections])
    if asked.whole:
        parse_sections(parse_baseline(text.encode("utf-8", "surrogateescape"), file="draft"))
    if asked.output is None:
        click.echo(text, nl=False)
    else:
        asked.output.write_text(text)
    for line in asked.left_out:
        click.echo(f"left out: {line}", err=True)
    if len(text) > MAX_TOML_BYTES:
        click.echo(f"more than a baseline holds ({MAX_TOML_BYTES} bytes): leave something out", err=True)


def _section_command(name: str) -> click.Command:
    @click.pass_obj
    def run(asked: _Asked) -> None:
        _learn(asked, name)

    said = (getattr(learners()[name], "__doc__", None) or "").partition("\n")[0].replace("`", "")
    return click.Command(name, callback=run, help=said)


for _name in learners():
    learn.add_command(_section_command(_name))


@learn.command("ima")
@click.option(
    "--exclude", multiple=True, help="A rule of `exclude`: left out here, not judged there. Repeatable."
)
@click.option(
    "--ima-log", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="Of a good boot."
)
@click.option(
    "--only-measured",
    is_flag=True,
    help="Of the packages' files only those that the log names, the fence's kernel modules, and packages that an upgrade of the agent runs.",
)
@click.option(
    "--package",
    "whole",
    multiple=True,
    help="With --only-measured: all files of this package, measured or not. Repeatable.",
)
@click.pass_obj
def learn_ima(
    asked: _Asked,
    *,
    exclude: tuple[str, ...],
    ima_log: Path | None,
    only_measured: bool,
    whole: tuple[str, ...],
) -> None:
    """[ima]: every file of this machine that is as its package brought it."""
    if only_measured and ima_log is None:
        raise click.UsageError("--only-measured needs --ima-log")
    if whole and not only_measured:
        raise click.UsageError(
            "--package goes with --only-measured: without it all packages are learned whole"
        )
    log = ima_log.read_bytes() if ima_log else None
    try:
        learned = ima.learn(
            PackageDatabase(asked.root),
            exclude=exclude,
            untrusted_log=log,
            only_measured=only_measured,
            whole=whole,
        )
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    asked.take(Draft(ima.toml_of(learned), learned.left_out))
    files = sum(len(package.sha256_bytes()) // 32 for package in learned.packages)
    click.echo(f"{files} files of {len(learned.packages)} packages, {len(learned.allow)} others", err=True)


@learn.command("models")
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--name", required=True, help="Of the model: a-z, 0-9 and '-'.")
@click.option("--version", required=True, help="Of the model.")
@click.option(
    "--classification",
    required=True,
    type=click.Choice(["public", "internal", "confidential", "restricted"]),
    help="Of the data that the model holds and sees.",
)
@click.option("--reason", default="learned, not judged: say why this model is here", show_default=True)
@click.option(
    "--with-content", is_flag=True, help="Carry the text of prompts and guardrails, so that it is restored."
)
@click.pass_obj
def learn_models(
    asked: _Asked,
    *,
    folder: Path,
    name: str,
    version: str,
    classification: Classification,
    reason: str,
    with_content: bool,
) -> None:
    """[models]: the manifest of a folder: path, size and digest of every file in it."""
    host, root = Host(), str(folder.resolve())
    with click.progressbar(length=models.total_bytes(host, root), label=root, file=sys.stderr) as bar:
        files, left_out = models.learn(host, root, with_content=with_content, progress=bar.update)
    text = models.toml_of(
        files, root=root, name=name, version=version, classification=classification, reason=reason
    )
    asked.take(Draft(text, left_out))
    gb = sum(file.size_bytes for file in files) / 1e9
    click.echo(f"{len(files)} files, {gb:.2f} GB; the kinds are guessed from names: read them", err=True)
