"""`pyproxy cleanup` removes all that pyproxy wrote, or kube-proxy did, and nothing else."""

import re
import tempfile

import pytest

from bench.demo import EXAMPLES
from bench.lab import Lab
from bench.subject import Subject, pyproxy_run
from tests.conformance.cluster import until
from tests.faults.commands import is_one_sentence, pyproxy

OTHERS = "add table ip kubelet; add chain ip kubelet mine; add table inet pyproxy-friend"
KUBE_PROXY_NFT = "add table ip kube-proxy; add chain ip kube-proxy services; add table ip6 kube-proxy"
# What kube-proxy 1.36 leaves of one service, what kubelet keeps there, and a rule of somebody else.
KUBE_PROXY_IPTABLES = """*nat
:KUBE-SERVICES - [0:0]
:KUBE-SVC-TCOU7JCQXEZGVUNU - [0:0]
:KUBE-SEP-LZFWGNFCVJUSTLZH - [0:0]
:KUBE-POSTROUTING - [0:0]
:KUBE-MARK-MASQ - [0:0]
:KUBE-KUBELET-CANARY - [0:0]
:OURS - [0:0]
-A PREROUTING -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A OUTPUT -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A POSTROUTING -m comment --comment "kubernetes postrouting rules" -j KUBE-POSTROUTING
-A PREROUTING -d 192.0.2.1/32 -j OURS
-A KUBE-SERVICES -d 10.96.0.10/32 -p udp -m comment --comment "a -j KUBE-SVC" -j KUBE-SVC-TCOU7JCQXEZGVUNU
-A KUBE-SVC-TCOU7JCQXEZGVUNU -j KUBE-SEP-LZFWGNFCVJUSTLZH
-A KUBE-SEP-LZFWGNFCVJUSTLZH -p udp -j DNAT --to-destination 10.244.0.3:53
-A OURS -j RETURN
COMMIT
*filter
:KUBE-FORWARD - [0:0]
:KUBE-FIREWALL - [0:0]
-A FORWARD -m comment --comment "kubernetes forwarding rules" -j KUBE-FORWARD
-A INPUT -j KUBE-FIREWALL
COMMIT
"""


def test_everything_of_pyproxy_goes_and_nothing_else(lab: Lab) -> None:
    node = lab.node.namespace
    node.run(["nft", OTHERS])
    with tempfile.TemporaryFile() as log:
        subject = Subject(lab, pyproxy_run("nftables", *lab.flags, "--manifests", EXAMPLES), log)
        until(lambda: b"comment" in _ruleset(lab), lambda: "nothing was written")
        subject.stop()
    done = pyproxy(lab, "cleanup")
    assert done.returncode == 0
    assert done.stdout == "removed nftables table ip pyproxy\nremoved nftables table ip6 pyproxy\n"
    assert node.run(["nft", "list", "tables"]).stdout == b"table ip kubelet\ntable inet pyproxy-friend\n"
    assert pyproxy(lab, "cleanup").stdout == "nothing to remove\n"


def test_tables_of_another_version_go_too(lab: Lab) -> None:
    lab.node.namespace.run(["nft", "add table ip pyproxy; add chain ip pyproxy version-of-long-ago"])
    assert "table ip pyproxy" in pyproxy(lab, "cleanup").stdout
    assert _ruleset(lab) == b""


@pytest.mark.parametrize("flavour", ["iptables-legacy", "iptables-nft", "ip6tables-nft"])
def test_a_departed_kube_proxy_is_cleaned_up_after(lab: Lab, flavour: str) -> None:
    node = lab.node.namespace
    node.run(["nft", KUBE_PROXY_NFT])
    rules = KUBE_PROXY_IPTABLES
    if flavour.startswith("ip6"):
        rules = rules.replace("192.0.2.1/32", "2001:db8::1/128").replace("10.96.0.10/32", "fd00::10/128")
        rules = rules.replace("10.244.0.3:53", "[fd00::3]:53")
    node.run([f"{flavour}-restore"], input=rules.encode())
    assert pyproxy(lab, "cleanup").stdout == "nothing to remove\n"
    done = pyproxy(lab, "cleanup", "--kube-proxy")
    assert done.returncode == 0, done.stderr
    assert "table ip kube-proxy" in done.stdout
    left = node.run([f"{flavour}-save"]).stdout.decode()
    assert "KUBE-KUBELET-CANARY" in left
    assert "-A INPUT -j KUBE-FIREWALL" in left
    assert "-j OURS" in left
    assert not any(name in left for name in ("KUBE-S", "KUBE-POSTROUTING", "KUBE-MARK-MASQ", "KUBE-FORWARD"))
    assert b"kube-proxy" not in _ruleset(lab)
    assert pyproxy(lab, "cleanup", "--kube-proxy").stdout == "nothing to remove\n"


def test_what_kube_proxy_left_goes_while_pyproxy_runs(lab: Lab) -> None:
    lab.node.namespace.run(["nft", KUBE_PROXY_NFT])
    with tempfile.TemporaryFile() as log:
        subject = Subject(lab, pyproxy_run("nftables", *lab.flags, "--manifests", EXAMPLES), log)
        until(lambda: b"table ip pyproxy" in _ruleset(lab), lambda: "nothing was written")
        done = pyproxy(lab, "cleanup", "--kube-proxy-only")
        assert (done.returncode, done.stdout) == (
            0,
            "removed nftables table ip kube-proxy\nremoved nftables table ip6 kube-proxy\n",
        )
        assert b"table ip pyproxy" in _ruleset(lab)
        subject.stop()


def test_without_the_capability_it_says_so(lab: Lab) -> None:
    inside = ["setpriv", "--bounding-set", "-net_admin", "--inh-caps", "-net_admin"]
    done = pyproxy(lab, "cleanup", inside=inside)
    said = done.stderr.splitlines(keepends=True)
    assert (done.returncode, done.stdout) == (1, "")
    assert len(set(said)) == len(said) == 2  # iptables and ipvs mode ask the same, and local routes are no secret
    assert all(is_one_sentence(line) for line in said)
    assert all(re.search("Permission denied|not permitted", line) for line in said)


def _ruleset(lab: Lab) -> bytes:
    return lab.node.namespace.run(["nft", "list", "ruleset"]).stdout
