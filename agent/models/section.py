"""What may be written under `[models]` in a baseline, and its checks. Pure.

Refuses manifests that contradict themselves: the same file twice, a root inside another, a sharded file of which a
shard is missing, a `content` that is not what digest and size say.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from itertools import pairwise
from pathlib import PurePosixPath
from typing import Annotated, Literal

from msgspec import Meta, Struct, field

from contract.baseline import SectionBase
from contract.messages import Name

Classification = Literal["public", "internal", "confidential", "restricted"]
Kind = Literal["weights", "tokenizer", "prompt", "guardrails", "config"]
CARRIED: tuple[Kind, ...] = ("prompt", "guardrails")
"""Kinds of which a baseline may carry the text."""
MAX_CONTENT_BYTES = 64 * 1024
MAX_CARRIED = 16
MAX_FILES = 4096
MAX_MODELS = 64
Reason = Annotated[str, Meta(min_length=3, max_length=512)]
_SHARD = re.compile(r"(.*)-(\d{5})-of-(\d{5})(\.[^/]+)?", re.DOTALL)
"""`model-00002-of-00004.safetensors`: how safetensors, GGUF and others number the parts of one file."""
_PART = r"[^/\x00-\x1f\x7f]+"


class File(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[[models.model.file]]`: one file of the manifest. It must be there."""

    path: Annotated[str, Meta(max_length=512, pattern=rf"\A{_PART}(/{_PART})*\Z")]
    """Below the model's root."""
    sha256: Annotated[str, Meta(pattern=r"\A[0-9a-f]{64}\Z")]
    size_bytes: Annotated[int, Meta(ge=0, le=2**50)]
    kind: Kind
    verity: Annotated[str, Meta(pattern=r"\A(sha256:[0-9a-f]{64}|sha512:[0-9a-f]{128})\Z")] | None = None
    """fs-verity digest, as `fsverity measure` prints it; absent: not looked at."""
    content: str | None = None
    """The text itself, for `prompt` and `guardrails`: written again in mode `enforce`."""
    reason: Reason | None = None
    """Where it says more than the model's."""

    def __post_init__(self) -> None:
        if {".", ".."} & set(self.path.split("/")):
            raise ValueError("expected a path without '.' and '..'")
        if self.content is None:
            return
        if self.kind not in CARRIED:
            raise ValueError(f"expected `content` only for kind {' or '.join(CARRIED)}, got {self.kind}")
        raw = self.content.encode()
        if len(raw) > MAX_CONTENT_BYTES:
            raise ValueError(f"expected at most {MAX_CONTENT_BYTES} bytes of content, got {len(raw)}")
        if len(raw) != self.size_bytes:
            raise ValueError(f"size_bytes is {self.size_bytes}, but the content has {len(raw)} bytes")
        if (digest := hashlib.sha256(raw).hexdigest()) != self.sha256:
            raise ValueError(f"sha256 is not that of the content, which has {digest}")


class Model(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[[models.model]]`: one model, one folder."""

    name: Name
    version: Annotated[str, Meta(pattern=r"\A[A-Za-z0-9][A-Za-z0-9_.+-]{0,62}\Z")]
    root: Annotated[str, Meta(max_length=512, pattern=rf"\A(/{_PART})+\Z")]
    """Absolute, without symbolic links."""
    classification: Classification
    """Of the data that the model holds and sees."""
    complete: bool = True
    """Whether no other file may be below the root."""
    reason: Reason
    file: Annotated[list[File], Meta(min_length=1, max_length=MAX_FILES)]

    def __post_init__(self) -> None:
        if {".", ".."} & set(self.root.split("/")):
            raise ValueError("expected a root without '.' and '..'")
        paths = {file.path for file in self.file}
        if len(paths) != len(self.file):
            raise ValueError("expected each file once")
        for path in paths:
            for above in PurePosixPath(path).parents:
                if str(above) in paths:
                    raise ValueError(f"{str(above)!r} is listed as a file, and {path!r} is below it")
        _check_shards(paths)

    def at(self, file: File) -> str:
        """Return the absolute path of a file."""
        return f"{self.root}/{file.path}"


class Section(SectionBase, frozen=True, kw_only=True):
    """`[models]`."""

    verify_every_h: Annotated[float, Meta(ge=0.1, le=31 * 24)] = 24.0
    """Every file is read anew after so many hours even if nothing seems to have changed."""
    read_mb_s: Annotated[float, Meta(ge=1, le=4096)] = 32.0
    """So many megabytes a second are read at most."""
    restricted_zones: Annotated[list[Name], Meta(max_length=64)] = field(
        default_factory=lambda: ["enclave", "management"]
    )
    """The firewall zones that a node with a restricted model may begin traffic with."""
    model: Annotated[list[Model], Meta(max_length=MAX_MODELS)] = field(default_factory=list)

    def __post_init__(self) -> None:
        if len({(model.name, model.version) for model in self.model}) != len(self.model):
            raise ValueError("expected each name and version once")
        roots = sorted(f"{model.root}/" for model in self.model)
        for one, other in pairwise(roots):
            if other.startswith(one):
                raise ValueError(f"root {other[:-1]!r} is, or is inside, that of another model")
        if sum(file.content is not None for model in self.model for file in model.file) > MAX_CARRIED:
            raise ValueError(f"expected `content` for at most {MAX_CARRIED} files")


def _check_shards(paths: Iterable[str]) -> None:
    """Raise ValueError where a file is in parts, and not each part is listed."""
    parts: dict[tuple[str, int, str], set[int]] = {}
    for path in paths:
        if match := _SHARD.fullmatch(path):
            stem, number, count, suffix = match.groups()
            parts.setdefault((stem, int(count), suffix or ""), set()).add(int(number))
    for (stem, count, suffix), numbers in sorted(parts.items()):
        # Parts are numbered from 1 (safetensors, GGUF) or from 0 (PyTorch exports of some tools).
        begin = 0 if 0 in numbers else 1
        if len(numbers) != count or min(numbers) != begin or max(numbers) != begin + count - 1:
            raise ValueError(
                f"{stem}-*-of-{count:05}{suffix}: expected every shard, got {len(numbers)} of {count}"
            )
