"""`ringfence-agent learn models`: the `[models]` manifest of a folder, for a person to read, put into a baseline and sign.

It vouches for nothing: what is in the folder now is what the node will be held to. Kinds are guessed from names.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from typing import NamedTuple

from agent.host import Host
from agent.models.folder import files_below
from agent.models.hashing import Reading, identity_of
from agent.models.quiet import verity_of
from agent.models.section import CARRIED, MAX_CONTENT_BYTES, Classification, Kind, Section
from contract.baseline import parse_baseline, section

_HEAD = '[baseline]\nname = "x"\nversion = 1\nsummary = "x"\n'
_WORDS: dict[Kind, tuple[str, ...]] = {
    "guardrails": ("guardrail", "safety", "moderation", "policy"),
    "prompt": ("prompt", "chat_template", "system_message", ".jinja"),
    "tokenizer": ("tokenizer", "vocab", "merges", "spiece", "sentencepiece", "_tokens", ".tiktoken"),
}
_WEIGHTS = [
    ".safetensors",
    ".gguf",
    ".ggml",
    ".onnx",
    ".bin",
    ".pt",
    ".pth",
    ".ckpt",
    ".engine",
    ".plan",
    ".tflite",
    ".h5",
    ".pb",
    ".npz",
    ".hef",
    ".rknn",
]
_CHUNK_CHARS = 300
"""A line of a baseline has at most 2,048 characters; one may take six when it is escaped."""

Progress = Callable[[int], object]


class Learned(NamedTuple):
    """One file of the manifest."""

    path: str
    sha256: str
    size_bytes: int
    kind: Kind
    verity: str | None
    content: str | None


def guess_kind(path: str) -> Kind:
    """Return what a file most likely is, by its name."""
    name = path.rpartition("/")[2].lower()
    for kind, words in _WORDS.items():
        if any(word in name for word in words):
            return kind
    return "weights" if name.endswith(tuple(_WEIGHTS)) else "config"


def learn(
    host: Host, root: str, *, with_content: bool, progress: Progress = lambda count: None
) -> tuple[list[Learned], list[str]]:
    """Return the files below a folder, and why some are left out. `progress` is told of each slice's bytes. Raises OSError."""
    found: list[Learned] = []
    left_out: list[str] = []
    for path, regular in sorted(files_below(host, root).items()):
        if not regular:
            left_out.append(f"{path}: a link or a device; a manifest names plain files only")
            continue
        found.append(_learn_file(host, root, path, with_content=with_content, progress=progress))
    return found, left_out


def _learn_file(host: Host, root: str, path: str, *, with_content: bool, progress: Progress) -> Learned:
    at = f"{root}/{path}"
    descriptor = host.open_file(at)
    try:
        verity = verity_of(descriptor)
    finally:
        os.close(descriptor)
    reading, done, before = Reading(host, at), None, 0
    try:
        while done is None:
            done = reading.step()
            progress(reading.offset - before)
            before = reading.offset
    finally:
        reading.close()
    size, kind, content = done.identity[2], guess_kind(path), None
    if with_content and kind in CARRIED and size <= MAX_CONTENT_BYTES:
        try:
            content = host.read_file(at, max_bytes=MAX_CONTENT_BYTES).decode()
        except UnicodeDecodeError:
            pass  # no text: its digest must do
    return Learned(path, done.sha256, size, kind, verity, content)


def total_bytes(host: Host, root: str) -> int:
    """Return how much there is to read. Raises OSError."""
    total = 0
    for path, regular in files_below(host, root).items():
        if regular:
            descriptor = host.open_file(f"{root}/{path}")
            try:
                total += identity_of(descriptor)[2]
            finally:
                os.close(descriptor)
    return total


def toml_of(
    files: list[Learned], *, root: str, name: str, version: str, classification: Classification, reason: str
) -> str:
    """Return the `[models]` section. Raises Rejected `baseline.*` for what no baseline can hold."""
    lines = [
        "[models]",
        "",
        "[[models.model]]",
        f"name = {_text(name)}",
        f"version = {_text(version)}",
        f"root = {_text(root)}",
        f'classification = "{classification}"',
        "complete = true",
        f"reason = {_text(reason)}",
    ]
    for file in files:
        lines += ["", "[[models.model.file]]", f"path = {_text(file.path)}", f'sha256 = "{file.sha256}"']
        lines += [f"size_bytes = {file.size_bytes}", f'kind = "{file.kind}"']
        if file.verity:
            lines.append(f'verity = "{file.verity}"')
        if file.content is not None:
            lines.append(f"content = {_long_text(file.content)}")
    text = "\n".join(lines) + "\n"
    section(
        parse_baseline((_HEAD + text).encode("utf-8", "surrogateescape"), file="manifest"), "models", Section
    )
    return text


def _text(text: str) -> str:
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def _long_text(text: str) -> str:
    """Return a multi-line string. Long lines are broken by a backslash, which eats the white space that follows."""
    out = ['"""\n']
    for line in text.split("\n"):
        for place in range(0, len(line), _CHUNK_CHARS):
            chunk = line[place : place + _CHUNK_CHARS]
            if place:
                out.append("\\\n")
                if chunk[0] in " \t":
                    out.append(f"\\u{ord(chunk[0]):04x}")
                    chunk = chunk[1:]
            out.append("".join(map(_escaped, chunk)))
        out.append("\n")
    return "".join(out[:-1]) + '"""'


def _escaped(character: str) -> str:
    if character in '\\"':
        return "\\" + character
    if ord(character) < 0x20 or character == "\x7f":
        return f"\\u{ord(character):04x}"
    return character
