"""Learning a policy: what is proposed parses, holds for the nodes it was learned from, and names what varies."""

from __future__ import annotations

import tomllib

import msgspec
import pytest

from contract.baseline import parse_baseline, section
from contract.boot import BootPolicy
from contract.claims import Claims
from contract.errors import Rejected
from contract.eventlog import parse_event_log
from contract.learn import Learned, learn, propose
from tests.contract.boots import COMMAND, INITRD, LINUX, Boot, kernel, secure, value
from tests.contract.forge import Case

HEAD = '[baseline]\nname = "x"\nversion = 1\nsummary = "x"\n'


@pytest.fixture(scope="module")
def boot() -> Boot:
    return secure()


def learned(boot: Boot) -> Learned:
    return Learned(reference=boot.reference, claims=boot.claims)


def policy_of(text: str) -> BootPolicy:
    return section(parse_baseline((HEAD + text).encode()), "boot", BootPolicy)


def test_a_policy_learned_from_a_node_holds_for_it_and_for_no_other_kernel(boot: Boot) -> None:
    text = propose({"press-1": learned(boot), "press-2": learned(boot)})
    policy = policy_of(text)
    assert policy.secure_boot == "required"
    assert policy.minimum_dbx_entries == 1
    assert policy.minimum_sbat == {"grub": 5, "sbat": 1, "shim": 4}
    assert policy.minimum_sbat_level == "2025021800"
    assert len(policy.allowed_signers or []) == 2
    assert "ima_policy=tcb" in policy.cmdline_required
    assert policy.cmdline_allowed == ["root="]
    assert boot.judged(policy, boot.reference) == []
    other = boot.changed(kernel("other"))
    assert "boot.stage" in [f.code for f in other.judged(policy, boot.reference)]
    evil = boot.changed(texts=dict.fromkeys((LINUX, COMMAND), ("quiet", "quiet init=/bin/sh")))
    assert "boot.cmdline" in [f.code for f in evil.judged(policy, boot.reference)]


def test_what_varies_is_listed_with_its_nodes_and_holds_for_each(boot: Boot) -> None:
    other = boot.changed({**kernel("new"), INITRD: value("its own")})
    third = boot.changed(texts=dict.fromkeys((LINUX, COMMAND), ("quiet", "loglevel=3")))
    boots = {"a": learned(boot), "b": learned(other), "c": learned(third)}
    text = propose(boots)
    policy = policy_of(text)
    for each in (boot, other, third):
        assert each.judged(policy, each.reference) == []
    assert f'"{value("its own").hex()}",  # /boot/initrd.img on b' in text
    assert '"loglevel=3",  # on c' in text
    assert '"quiet",  # on a, b' in text
    assert "# PCR 9 differs: " in text
    assert set(learn(boots).varies) == {"stages.kernel", "stages.initrd", "cmdline_allowed"}
    assert learn(boots).common["secure_boot"] == "required"


def test_nothing_is_proposed_that_one_node_does_not_prove(boot: Boot) -> None:
    case = Case("good-rsa")
    off = Boot(parse_event_log(case.read("eventlog.bin")), case)
    text = propose({"a": learned(boot), "b": learned(off)})
    policy = policy_of(text)
    assert policy.secure_boot == "any"
    assert policy.allowed_signers is None
    assert "# Not proposed: secure_boot: not on at b" in text
    for each in (boot, off):
        assert each.judged(policy, each.reference) == []


def test_a_boot_without_claims_teaches_nothing(boot: Boot) -> None:
    text = propose({"a": Learned(reference=boot.reference, claims=Claims())})
    assert set(tomllib.loads(text)["boot"]) == {"reference", "event_log", "pcrs"}


def test_no_name_on_a_node_writes_a_line_of_the_policy(boot: Boot) -> None:
    claims = msgspec.structs.replace(
        boot.claims,
        loaded=[
            msgspec.structs.replace(one, name='x"]\npcrs = []\n# ' if one.stage == "kernel" else one.name)
            for one in boot.claims.loaded
        ],
        authorities=[
            msgspec.structs.replace(one, subject="\u2028]\nsecure_boot = \u202e")
            for one in boot.claims.authorities
        ],
    )
    evil = Learned(reference=boot.reference, claims=claims)
    policy = policy_of(propose({"a": learned(boot), "\n]\npcrs = []": evil}))
    assert len(policy.pcrs) == 11
    assert policy.secure_boot == "required"


def test_no_boot_teaches_nothing_at_all() -> None:
    with pytest.raises(Rejected, match=r"learn\.none"):
        propose({})
