"""What iptables mode finds out about a host: the flavour it uses, what it can't do; and that asking makes no table."""

import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from modes.iptables.mode import IptablesMode
from modes.iptables.ruleset import SHARE
from pyproxy.kernel import iptables
from pyproxy.kernel.iptables import Flavour
from pyproxy.kernel.iptables_dialect import DIALECTS
from pyproxy.table import Family, Host, ModeError, Table, Transport
from tests.unit.iptables_world import everything, fresh_host, run, use
from tests.unit.test_iptables_route import CLUSTER_IP, endpoints, route

LEGACY, NFT = Flavour
BOTH = pytest.mark.parametrize("flavour", Flavour)
RULE = "-A OUTPUT -j ACCEPT"
STICKY = route(CLUSTER_IP, internal=endpoints(1, 2), seconds=60)
PLAIN = route(CLUSTER_IP, internal=endpoints(1, 2))


@pytest.fixture(autouse=True)
def host() -> Iterator[None]:
    with fresh_host():
        yield


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """Puts a shell script of that name first on PATH."""

    def make(name: str, text: str) -> None:
        (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / name).chmod(0o755)

    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/sbin:/usr/bin:/sbin:/bin")
    return make


@pytest.mark.parametrize(
    ("there", "flavour"),
    [
        (["iptables-nft -t mangle -N KUBE-IPTABLES-HINT"], NFT),
        (["iptables-legacy -t mangle -N KUBE-IPTABLES-HINT"], LEGACY),
        (["ip6tables-legacy -t mangle -N KUBE-IPTABLES-HINT"], LEGACY),
        (["iptables-legacy -t nat -N KUBE-KUBELET-CANARY", f"iptables-nft {RULE}"], LEGACY),
        (["iptables-legacy -N KUBE-KUBELET-CANARY", f"iptables-nft {RULE}"], LEGACY),
        (["iptables-nft -t mangle -N KUBE-KUBELET-CANARY", f"iptables-legacy {RULE}"], NFT),
        # Where both say so, the newer one was there later.
        (["iptables-legacy -t nat -N KUBE-KUBELET-CANARY", "iptables-nft -t nat -N KUBE-KUBELET-CANARY"], NFT),
        # Nobody says so: where there are more rules.
        ([f"iptables-legacy {RULE}"], LEGACY),
        ([f"iptables-nft {RULE}"], NFT),
        ([f"ip6tables-legacy {RULE}", f"iptables-legacy -t mangle {RULE}", f"iptables-nft {RULE}"], LEGACY),
        ([f"ip6tables-nft {RULE}", f"iptables-nft -t nat {RULE}", f"iptables-legacy {RULE}"], NFT),
        # Chains alone, or one that has a like name, say nothing.
        (["iptables-legacy -N KUBE-IPTABLES-HINTS", "iptables-legacy -N OTHER", f"iptables-nft {RULE}"], NFT),
    ],
    ids=lambda value: "; ".join(value) if isinstance(value, list) else str(value),
)
def test_the_flavour_is_the_one_in_use(there: list[str], flavour: Flavour, program: Callable[[str, str], None]) -> None:
    """And not the host's default."""
    program("iptables", f"echo 'iptables v1.8.9 ({'legacy' if flavour is NFT else 'nf_tables'})'")
    for words in there:
        run(*words.split(" "))
    assert iptables.detect() is flavour


@pytest.mark.parametrize("rules", [[], [f"iptables-legacy {RULE}", f"iptables-nft {RULE}"]], ids=["none", "as many"])
@pytest.mark.parametrize(
    ("version", "flavour"),
    [("iptables v1.8.9 (legacy)", LEGACY), ("iptables v1.8.9 (nf_tables)", NFT), ("iptables v1.6.1", LEGACY)],
)
def test_where_rules_do_not_tell_it_is_the_hosts_default(
    rules: list[str], version: str, flavour: Flavour, program: Callable[[str, str], None]
) -> None:
    program("iptables", f"echo '{version}'")
    for words in rules:
        run(*words.split(" "))
    assert iptables.detect() is flavour
    assert IptablesMode().flavour is flavour


def test_the_flavour_stays_what_it_was(program: Callable[[str, str], None]) -> None:
    program("iptables", "echo 'iptables v1.8.9 (legacy)'")
    mode = IptablesMode()
    assert mode.flavour is LEGACY
    use(NFT)
    assert mode.flavour is LEGACY
    assert IptablesMode().flavour is NFT


def made() -> set[str]:
    return {name for version in ("ip", "ip6") for name in Path(f"/proc/net/{version}_tables_names").read_text().split()}


def test_asking_makes_no_legacy_table() -> None:
    """With its hooks, every connection would pay for it."""
    use(NFT)
    mode = IptablesMode()
    assert mode.flavour is NFT
    for d in DIALECTS.values():
        for flavour in Flavour:
            iptables.read(SHARE, d, flavour)
    assert mode.probe() is None
    mode.sync(Table({}, Host()), None)
    assert mode.verify() == []
    assert mode.cleanup()
    assert made() == set()
    assert IptablesMode().cleanup() == []
    assert made() == set()


def test_only_the_tables_that_are_there_are_asked() -> None:
    run("iptables-legacy", "-t", "filter", "-N", "PYPROXY-OLD")
    assert iptables.read(SHARE, DIALECTS[Family.IPV4], LEGACY)["filter"].chains == {"PYPROXY-OLD": ()}
    IptablesMode().cleanup()
    assert made() == {"filter"}


@BOTH
def test_probing_changes_nothing(flavour: Flavour) -> None:
    use(flavour)
    before = everything()
    assert IptablesMode().probe() is None
    assert everything() == before


def test_without_the_capability_it_says_so() -> None:
    code = "from modes.iptables.mode import IptablesMode; print(IptablesMode().probe())"
    use(NFT)
    said = run("setpriv", "--bounding-set", "-net_admin", "--inh-caps", "-net_admin", sys.executable, "-c", code)
    assert said == "it takes the capability CAP_NET_ADMIN (run as root)\n"


def test_without_the_programs_it_says_which(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert IptablesMode().probe() is None  # /usr/sbin is not on everybody's PATH
    monkeypatch.setattr("pyproxy.kernel.program._SBIN", str(tmp_path))
    mode = IptablesMode()
    assert mode.probe() == "the program iptables-nft-restore is not installed (Debian package iptables)"
    with pytest.raises(ModeError, match="the program iptables-nft-restore is not installed"):
        mode.sync(Table({}, Host()), None)
    assert mode.cleanup() == []


def test_a_program_that_does_not_run_is_told(program: Callable[[str, str], None], tmp_path: Path) -> None:
    use(NFT)
    program("iptables-nft-restore", "")
    (tmp_path / "iptables-nft-restore").write_text("#!/nowhere\n")
    assert IptablesMode().probe() == "iptables-nft-restore could not be run: No such file or directory"
    program("iptables-nft-restore", "echo '# a warning' >&2; echo 'no luck' >&2; exit 3")
    assert IptablesMode().probe() == "iptables-nft-restore: no luck"
    program("iptables-nft-restore", "exit 3")
    assert IptablesMode().probe() == "iptables-nft-restore: ended with status 3"
    program("iptables-nft-save", "echo 'no table' >&2; exit 1")
    with pytest.raises(ModeError, match="iptables-nft-save: no table"):
        IptablesMode().verify()


def test_without_ipv6_its_routes_are_objected_to_and_the_others_served() -> None:
    code = (
        "from dataclasses import replace; from modes.iptables.mode import IptablesMode; "
        "from tests.unit.test_iptables_kernel import PLAIN, Family, Host, Table; "
        "mode = IptablesMode(); mode.sync(Table({PLAIN.id: PLAIN}, Host()), None); print(mode.objection(PLAIN)); "
        "print(mode.objection(replace(PLAIN, id=PLAIN.id._replace(family=Family.IPV6))), len(mode.verify()))"
    )
    use(NFT)
    hide = 'mount -t tmpfs none /proc/$$/net && exec "$0" "$@"'
    said = run("unshare", "--mount", "sh", "-c", hide, sys.executable, "-c", code)
    assert said == "None\nthis kernel has no IPv6 0\n"
    assert "PYPROXY-SERVICES" in everything()["iptables-nft"]["nat"]
    assert "nat" not in everything()["ip6tables-nft"]


@BOTH
def test_affinity_is_objected_to_where_the_kernel_can_not_remember(
    flavour: Flavour, program: Callable[[str, str], None]
) -> None:
    use(flavour)
    restore = f"iptables-{flavour}-restore"
    passing_on = f'/usr/sbin/{restore} "$@"'
    program(restore, f'script=$(cat); case "$script" in *recent*) exit 2;; esac; echo "$script" | {passing_on}')
    mode = IptablesMode()
    told = "this kernel lacks the iptables match `recent` (module xt_recent)"
    six = replace(STICKY, id=STICKY.id._replace(family=Family.IPV6))
    assert mode.objection(PLAIN) is None
    assert mode.objection(STICKY) == told
    assert mode.objection(six) is None  # which another program writes
    program(restore, passing_on)
    assert mode.objection(STICKY) == told  # tried once
    assert IptablesMode().objection(STICKY) is None


def test_sctp_is_objected_to_where_the_kernel_has_no_match_for_it(program: Callable[[str, str], None]) -> None:
    use(NFT)
    program("iptables-nft-restore", "case $(cat) in *sctp*) exit 2;; esac")
    mode = IptablesMode()
    both = replace(STICKY, transport=Transport.SCTP)
    assert mode.objection(both) == "this kernel lacks the iptables match `sctp` (module xt_sctp)"
    assert mode.objection(STICKY) is None
    assert mode.objection(replace(PLAIN, transport=Transport.UDP)) is None


def test_a_kernel_that_takes_nothing_for_now_is_asked_again(program: Callable[[str, str], None]) -> None:
    use(NFT)
    program("iptables-nft-restore", "exit 4")
    mode = IptablesMode()
    assert mode.objection(STICKY) is None
    program("iptables-nft-restore", "case $(cat) in *recent*) exit 2;; esac")
    assert mode.objection(STICKY) is not None


@BOTH
def test_trying_whether_the_kernel_remembers_leaves_nothing(
    flavour: Flavour, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    use(flavour)
    before = everything()
    monkeypatch.setattr("modes.iptables.mode._RECENT_LIMIT", tmp_path / "no /sys")
    mode = IptablesMode()
    assert mode.objection(STICKY) is None
    assert everything() == before
    monkeypatch.setattr(iptables, "load", None)
    assert mode.objection(STICKY) is None  # tried once
    assert IptablesMode().objection(PLAIN) is None  # not tried for nothing
