"""Which time servers are configured: chrony, ntpd and systemd-timesyncd, from their files.

Follows `include`, `confdir` and `sourcedir`, so that a server cannot be hidden behind one. What systemd-timesyncd was built
with (FallbackNTP) stands in no file and is not seen. Decides nothing; `agent.probes.time` does.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from fnmatch import fnmatchcase

from agent.host import Host, printable

_CHRONY = ("/etc/chrony/chrony.conf", "/etc/chrony.conf", "/etc/ntp.conf", "/etc/ntpsec/ntp.conf")
_TIMESYNCD = "systemd/timesyncd.conf"
_TIMESYNCD_FOLDERS = ("/usr/lib", "/usr/local/lib", "/run", "/etc")
_SOURCES = ("server", "pool", "peer", "refclock")
_MAX_BYTES = 65536
_MAX_FILES = 64
_MAX_SERVERS = 1024


def configured(host: Host) -> dict[str, str]:
    """Return every configured server in lower case, and the file that names it. Raises OSError.

    A reference clock of the machine is named by its driver, such as `pps`.
    """
    found: dict[str, str] = {}
    for file, name in [*_chrony(host), *_timesyncd(host)]:
        found.setdefault(printable(name.lower()), file)
        if len(found) > _MAX_SERVERS:
            raise OSError(errno.E2BIG, f"more than {_MAX_SERVERS} servers", file)
    return found


def _chrony(host: Host) -> Iterator[tuple[str, str]]:
    waiting, done = list(_CHRONY), set[str]()
    while waiting:
        file = waiting.pop(0)
        if file in done:
            continue
        done.add(file)
        if len(done) > _MAX_FILES:
            raise OSError(errno.E2BIG, f"more than {_MAX_FILES} files", file)
        for line in _lines(host, file):
            keyword, *words = line.split() or [""]
            keyword = keyword.lower()
            if not words:
                continue
            if keyword in _SOURCES:
                yield file, words[0]
            elif keyword in ("include", "includefile"):
                waiting += _matching(host, words[0])
            elif keyword == "confdir":
                waiting += [each for word in words for each in _matching(host, f"{word}/*.conf")]
            elif keyword == "sourcedir":
                waiting += [each for word in words for each in _matching(host, f"{word}/*.sources")]


def _timesyncd(host: Host) -> Iterator[tuple[str, str]]:
    files = {}
    for folder in _TIMESYNCD_FOLDERS:  # a later folder masks files of the same name in an earlier one
        for path in _matching(host, f"{folder}/{_TIMESYNCD}.d/*.conf"):
            files[path.rpartition("/")[2]] = path
    main = [f"{folder}/{_TIMESYNCD}" for folder in _TIMESYNCD_FOLDERS]
    main = [path for path in main if host.tree.entry(path) is not None][-1:]  # the same for the file itself
    named: dict[str, list[tuple[str, str]]] = {"NTP": [], "FallbackNTP": []}
    for file in [*main, *(files[name] for name in sorted(files))]:
        for line in _lines(host, file):
            key, separator, value = line.partition("=")
            if separator and (key := key.strip()) in named:
                # An empty value takes back what stood there before (systemd.syntax(7)).
                named[key] = named[key] + [(file, name) for name in value.split()] if value.strip() else []
    yield from named["NTP"] + named["FallbackNTP"]


def _lines(host: Host, file: str) -> list[str]:
    try:
        content = host.read_file(_absolute(file), max_bytes=_MAX_BYTES)
    except FileNotFoundError:
        return []
    lines = [line.strip() for line in content.decode("utf-8", "replace").splitlines()]
    return [line for line in lines if line and line[0] not in "#;!%["]


def _matching(host: Host, pattern: str) -> list[str]:
    folder, _, names = _absolute(pattern).rpartition("/")
    try:
        entries = host.tree.entries(folder or "/")
    except FileNotFoundError:
        return []
    return [f"{folder}/{entry.name}" for entry in entries if fnmatchcase(entry.name, names)]


def _absolute(path: str) -> str:
    if not path.startswith("/") or ".." in path.split("/"):
        raise OSError(errno.EINVAL, "no absolute path", path)
    return path
