"""What is inside a package: the bill of materials (CycloneDX 1.5 JSON) and the licences, from what PyInstaller really took.

PyInstaller's own lists say which file came from where; each is traced to the Python distribution or the Debian package that brought
it. A file that nobody brought is an error: what cannot be named is not shipped.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.metadata
import json
import os
import re
import subprocess
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

_OWN = "ringfence"
# What a distribution says in place of an SPDX expression.
_SPDX = {
    "Apache 2.0": "Apache-2.0",
    "BSD": "BSD-2-Clause",
    "MIT License": "MIT",
    "GNU General Public License v2 (GPLv2)": "GPL-2.0-only",
}


@dataclass
class Part:
    """One thing that somebody else wrote: where it is from, under which licence, and which files of it are here."""

    name: str
    version: str
    purl: str
    licence: str
    texts: list[Path] = field(default_factory=list)
    files: set[str] = field(default_factory=set)

    @property
    def spdx(self) -> bool:
        """Whether `licence` is an SPDX expression and not a list of names."""
        return self.purl.startswith("pkg:pypi/")


def parts(work: Path, frozen: Path, tree: Path) -> list[Part]:
    """Return what is in a frozen folder, by name.

    `work` is PyInstaller's working folder of the program. Raises RuntimeError for a file that comes from nowhere known.
    """
    owners = _distributions()
    found: dict[str, Part] = {}
    debian: dict[str, str] = {}
    for target, source in _sources(work):
        real = os.path.realpath(source)
        if real in owners:
            part = owners[real]
        elif Path(real).is_relative_to(tree.resolve()) and ".venv" not in Path(real).parts:
            continue  # ours
        else:
            debian[real] = target
            continue
        kept = found.setdefault(part.purl, part)
        if (frozen / "_internal" / target).is_file():
            kept.files.add(f"_internal/{target}")
    for part, files in _packages(debian):
        kept = found.setdefault(part.purl, part)
        kept.files |= {f"_internal/{name}" for name in files if (frozen / "_internal" / name).is_file()}
    return sorted(found.values(), key=lambda part: part.purl)


def cyclonedx(program: str, version: str, taken: list[Part], frozen: Path, when: str) -> str:
    """Return the bill as text: components with licences, and every native file with its digest and where it is from."""
    components: list[dict[str, object]] = []
    for part in taken:
        licence = {"expression": part.licence} if part.spdx else {"license": {"name": part.licence}}
        components.append(
            {
                "type": "library",
                "bom-ref": part.purl,
                "name": part.name,
                "version": part.version,
                "purl": part.purl,
                "licenses": [licence],
            }
        )
    owner = {name: part.purl for part in taken for name in part.files}
    for path in sorted(frozen.rglob("*.so*")):
        name = str(path.relative_to(frozen))
        components.append(
            {
                "type": "file",
                "bom-ref": f"file:{name}",
                "name": name,
                "hashes": [{"alg": "SHA-256", "content": hashlib.sha256(path.read_bytes()).hexdigest()}],
                "properties": [{"name": "ringfence:from", "value": owner.get(name, _OWN)}],
            }
        )
    itself = f"pkg:generic/{program}@{version}"
    bill: dict[str, object] = {
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "version": 1,
        "metadata": {
            "timestamp": when,
            "component": {
                "type": "application",
                "bom-ref": itself,
                "name": program,
                "version": version,
                "purl": itself,
            },
        },
        "components": components,
        "dependencies": [{"ref": itself, "dependsOn": [part.purl for part in taken]}],
    }
    bill["serialNumber"] = f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_URL, json.dumps(bill, sort_keys=True))}"
    return json.dumps(bill, indent=1, sort_keys=True) + "\n"


def licences(program: str, taken: list[Part]) -> str:
    """Return the text that travels with the package: who wrote what under which licence, and the licences themselves."""
    lines = [f"What {program} contains that others wrote, and under which licences.", ""]
    lines += [f"{part.name} {part.version}: {part.licence}" for part in taken]
    for part in taken:
        for path in part.texts:
            text = path.read_text(errors="replace").strip()
            lines += ["", "=" * 78, f"{part.name} {part.version} ({path.name})", "=" * 78, "", text]
    return "\n".join(lines) + "\n"


def _sources(work: Path) -> Iterator[tuple[str, str]]:
    for name in ("PYZ-00.toc", "COLLECT-00.toc"):
        yield from _entries(ast.literal_eval((work / name).read_text()))
    # Modules inside base_library.zip, and what else is in Python itself.
    yield "base_library.zip", os.__file__


def _entries(value: object) -> Iterator[tuple[str, str]]:
    """Every (name, path, kind) in a list of PyInstaller's, at whatever depth; made files have no source outside."""
    if isinstance(value, tuple) and len(value) == 3 and all(isinstance(each, str) for each in value):
        name, path, kind = value
        if path.startswith("/") and kind not in ("EXECUTABLE", "PKG", "PYZ", "SYMLINK"):
            yield name, path
    elif isinstance(value, tuple | list):
        for each in value:
            yield from _entries(each)


def _distributions() -> dict[str, Part]:
    owners = {}
    for distribution in importlib.metadata.distributions():
        name, version = distribution.name, distribution.version
        if name == _OWN:
            continue
        files = distribution.files or []
        texts = [
            Path(str(distribution.locate_file(path)))
            for path in files
            if re.match(r"(LICEN[CS]E|COPYING|NOTICE)", path.name, re.I) and ".dist-info" in str(path)
        ]
        # Names are compared as the index does: PEP 503.
        purl = f"pkg:pypi/{re.sub('[-_.]+', '-', name).lower()}@{version}"
        part = Part(name, version, purl, _licence(distribution.metadata), sorted(texts))
        owners.update({os.path.realpath(str(distribution.locate_file(path))): part for path in files})
    return owners


def _licence(metadata: importlib.metadata.PackageMetadata) -> str:
    said = metadata.get("License-Expression") or metadata.get("License") or ""
    if not said or len(said) > 40:
        classifiers = [each for each in metadata.get_all("Classifier") or [] if each.startswith("License ::")]
        said = classifiers[0].rpartition(" :: ")[2] if classifiers else said
    return _SPDX.get(said, said) or "NOASSERTION"


def _packages(files: dict[str, str]) -> Iterator[tuple[Part, list[str]]]:
    """The Debian packages that brought some files. Raises RuntimeError for a file that none brought."""
    by_package: dict[str, list[str]] = {}
    owners = _owners(sorted(files))
    for path, target in sorted(files.items()):
        by_package.setdefault(owners[path], []).append(target)
    for package, targets in sorted(by_package.items()):
        told = subprocess.run(
            ["dpkg-query", "-W", "-f", "${Package}\t${Version}\t${Architecture}", package],
            check=True, capture_output=True, text=True,
        )  # fmt: skip
        name, version, architecture = told.stdout.split("\t")
        text = Path(f"/usr/share/doc/{name}/copyright")
        named = sorted(set(re.findall(r"^License:[ \t]*(\S.*)$", text.read_text(errors="replace"), re.M)))
        licence = ", ".join(named) or "see the text"
        purl = f"pkg:deb/debian/{name}@{quote(version, safe='.-~')}?arch={architecture}"
        yield Part(name, version, purl, licence, [text]), targets


def _owners(paths: list[str]) -> dict[str, str]:
    """Which package brought each path. Raises RuntimeError for one that none brought."""
    # Debian 12 has /lib and /usr/lib as one folder, and its database names some files by the old path.
    spelt = {name: path for path in paths for name in (path, path.removeprefix("/usr"), f"/usr{path}")}
    told = subprocess.run(["dpkg-query", "-S", *spelt], check=False, capture_output=True, text=True).stdout
    found = {}
    for line in told.splitlines():
        package, _, name = line.partition(": ")
        if name in spelt:
            found[spelt[name]] = package.split(",")[0]
    missing = [path for path in paths if path not in found]
    if missing:
        raise RuntimeError(f"neither a pinned distribution nor a Debian package brought {missing}")
    return found
