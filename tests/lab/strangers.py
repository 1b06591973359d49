"""What nobody announced: a program. It is named, cuts the node off, and is let in."""

from __future__ import annotations

import re
import time

from tests.lab import releases
from tests.lab.checks import FIRST_S, NEXT_S, Site, check, cut, findings
from tests.lab.office import NODE

STRANGER = "/opt/press-tools/helper"
_EXCLUDE = (
    "/media/stick/",
    *(
        "/var/lib/ringfence/",
        "/var/lib/ringfence-repair/",
        "/var/lib/ringfence-upgrade/",
        "/var/lib/dpkg/",
        "/var/lib/apt/",
        "/var/lib/systemd/",
    ),
    *("/var/cache/", "/var/log/"),
)
_LOG = "/sys/kernel/security/ima/binary_runtime_measurements"
_LEARN = (
    f"ringfence-agent learn --output /run/ima.toml ima --only-measured --ima-log {_LOG} "
    f"{' '.join(f'--exclude {rule}' for rule in _EXCLUDE)}"
)
_USED_LATER = "cp /usr/bin/true /run/true; chmod 755 /run/true; mkdir -p /opt/press-tools; nft list tables; systemctl --version"


def _learned(site: Site, mode: str) -> str:
    """Learn the files of this boot by the product's own command; cut down as a person would. /run is not measured."""
    site.guest.must(_USED_LATER)
    site.guest.must(_LEARN)
    text = site.guest.must("cat /run/ima.toml")
    return text.replace("[ima]\n", f'[ima]\nmode = "{mode}"\nviolations = "warn"\n', 1)


def _refused(site: Site) -> list[str]:
    return [each for each in findings(site, "ima.") if "-noted:" not in each]


@check(
    "[ima], learned by `ringfence-agent learn ima`, observed through an isolation, learned again and enforced, holds the guest's own files",
)
def _allow_list(site: Site) -> str:
    site.guest.must(f"{releases.SOURCE}{releases.USED}", within_s=NEXT_S)
    site.office.publish(_learned(site, "observe"))
    site.office.in_force(NEXT_S, since=time.time())
    noted = len(findings(site))
    _drill(site)
    text = _learned(site, "enforce")
    since = time.time()
    site.office.publish(text)
    found = site.office.in_force(NEXT_S, since=since + 20)
    assert not _refused(site), "\n".join(_refused(site))
    (site.office.folder / "ima.toml").write_text(text)
    return (
        f"{text.count('[[ima.package]]')} packages, {len(text) / 1000:.0f} kB; {noted} lines noted while it was observed, none "
        f"refused under {found['ima_lines']} measured lines; tier {found['summary']['tier']}"
    )


def _drill(site: Site) -> None:
    """Isolate the node and let it go: what isolation loads (modules of the kernel) is to be learned as well."""
    since = time.time()
    site.office.admin("isolate", "--node", NODE, "--reason", "what isolation loads")
    site.office.isolated("", NEXT_S, since=since)
    since = time.time()
    site.office.release("learned")
    site.office.in_force(NEXT_S, since=since)


@check(
    "the next baseline names another release of the agent and announces its files: apt brings it, the fence stands, nothing is refused",
)
def _release(site: Site) -> str:
    text = releases.asked_for(site, (site.office.folder / "ima.toml").read_text())
    seen = releases.brought(site, text)
    (site.office.folder / "ima.toml").write_text(text)
    site.office.in_force(NEXT_S, since=time.time())
    found = findings(site, "ima.")
    assert not [each for each in found if "violation" not in each], "\n".join(found)
    assert not site.office.node()["holds"], "it was isolated"
    return seen


@check("a program that no package brought is named when it has run, and the node is isolated")
def _stranger(site: Site) -> str:
    since = time.time()
    site.guest.must(f"(cat /usr/bin/true; echo stranger) > {STRANGER} && chmod 755 {STRANGER} && {STRANGER}")
    said = site.office.isolated(STRANGER, FIRST_S, since=since)
    named = [each for each in _refused(site) if STRANGER in each]
    assert named and named[0].startswith("ima.unknown-file"), said
    assert cut(site), "no cut in the kernel"
    return f"{named[0]}; refused besides: {len(_refused(site)) - len(named)}"


@check("a person lets it in by the next baseline and releases the node, which is healthy")
def _let_in(site: Site) -> str:
    named = next(each for each in _refused(site) if STRANGER in each)
    digest = re.search(r"sha256:[0-9a-f]{64}", named)
    assert digest is not None, named
    text = (site.office.folder / "ima.toml").read_text()
    allowed = f'[ima.allow]\n"{STRANGER}" = ["{digest[0]}"]\n'
    assert "[ima.allow]\n" in text, "nothing but packages was learned"
    site.office.publish(text.replace("[ima.allow]\n", allowed, 1))
    site.office.until("nothing is refused any more", lambda: not _refused(site), NEXT_S, site.office.said)
    since = time.time()
    site.office.release("it is ours")
    found = site.office.in_force(NEXT_S, since=since)
    site.office.publish()  # the rows below run programs that were not learned
    site.office.in_force(NEXT_S, since=time.time())
    return f"tier {found['summary']['tier']} {time.time() - since:.0f} s after the release"
