"""What `pyproxy explain` says, against what then happens to packets and what is in the kernel."""

import json
import shlex
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from bench.ask import ask
from tests.conformance.cluster import DROPPED_AFTER_S, Candidate, Cluster
from tests.conformance.known import known
from tests.conformance.manifests import PODS, addresses, node_port, service, slices, target
from tests.conformance.test_drift import MEDDLE_EBPF, flavoured
from tests.faults.commands import is_one_sentence, pyproxy
from tests.faults.test_start import WITHOUT_NET_ADMIN

pytestmark = pytest.mark.own

PLAIN, GUARDED, REMOTE, EMPTY, HEADLESS, OLDER, YOUNGER, REFUSED = range(1, 9)
ASKERS = {"pod": "pod-1", "node": "node", "outside": "client"}
CLIENT = "172.18.0.100/32"
SHARED = addresses(OLDER)["ExternalIP"]["IPv4"]

MEDDLE = [sys.executable, "-m", "tests.conformance.meddle"]
# An entry that sends to one of several endpoints, by how it begins and what it holds, and how the kernel loses it.
DAMAGE: dict[str, tuple[str, str, Callable[[str], list[str]]]] = {
    "nftables": ("element ip pyproxy endpoints", "", lambda entry: ["nft", "delete", entry]),
    "iptables": ("-A ", "-j DNAT", lambda entry: ["iptables", "-t", "nat", "-D", *shlex.split(entry)[1:]]),
    "userspace": ("relay ", "", lambda entry: [*MEDDLE, "take", entry.split()[-2]]),
    "ebpf": ("backends ", "", lambda entry: [*MEDDLE_EBPF.split(), "lose", *entry.partition(":")[0].split()[2:5:2]]),
    "ipvs": ("-a ", "", lambda entry: ["ipvsadm", "-d", *entry.split()[1:5]]),
}


@pytest.fixture(scope="module")
def explained(candidate: Candidate) -> Iterator[Cluster]:
    """It verifies nothing, so that what is damaged stays so."""
    older, younger = service(OLDER), service(YOUNGER, externalIPs=[SHARED])
    older["metadata"]["creationTimestamp"] = "2026-01-01T00:00:00Z"
    younger["metadata"]["creationTimestamp"] = "2026-01-02T00:00:00Z"
    both = ["pod-2", "pod-4"]
    wide = ["172.18.0.0/16", "fd00:172:18::/48"]  # with other nodes' addresses in it
    with Cluster(candidate, syncPeriod="1h", minSyncPeriod="5ms", nodePortAddresses=wide) as cluster:
        cluster.apply(
            "explained",
            *(service(PLAIN, sessionAffinity="None"), *slices(PLAIN, both)),
            *(service(GUARDED, loadBalancerSourceRanges=[CLIENT]), *slices(GUARDED, both)),
            *(service(REMOTE, externalTrafficPolicy="Local"), *slices(REMOTE, ["pod-4"])),
            service(EMPTY),
            service(HEADLESS, clusterIP="None", clusterIPs=["None"], type="ClusterIP"),
            *(older, *slices(OLDER, ["pod-2"])),
            *(younger, *slices(YOUNGER, ["pod-4"])),
            service(REFUSED, clusterIP="127.0.0.9", clusterIPs=["127.0.0.9"]),
        )
        yield cluster


def explain(cluster: Cluster, to: str) -> dict[str, Any]:
    """All that it says, and its exit status."""
    done = pyproxy(cluster.lab, "explain", to, "--json")
    assert done.stderr == ""
    told: dict[str, Any] = json.loads(done.stdout)
    return told | {"status": done.returncode}


def happens(cluster: Cluster, who: str, address: str, port: int, protocol: str) -> set[tuple[str, str]] | str:
    """Which endpoints answer and what they see, or how it fails."""
    answers = set()
    for _ in range(25):
        try:
            answer = ask(cluster.host(who), address, port, protocol, timeout=DROPPED_AFTER_S)
        except ConnectionRefusedError:
            return "refused"
        except TimeoutError:
            return "dropped"
        family = "IPv6" if ":" in address else "IPv4"
        kept = answer.source == cluster.host(who).address(family)
        answers.add((PODS[answer.pod][family == "IPv6"], "kept" if kept else "masqueraded"))
    return answers


@pytest.mark.parametrize(
    ("number", "kind", "family", "protocol", "status"),
    [
        (PLAIN, "ClusterIP", "IPv4", "UDP", 0),
        (PLAIN, "ClusterIP", "IPv6", "TCP", 0),
        (PLAIN, "NodePort", "IPv4", "TCP", 0),
        (GUARDED, "LoadBalancer", "IPv4", "TCP", 0),
        (REMOTE, "NodePort", "IPv6", "UDP", 0),
        (REMOTE, "ExternalIP", "IPv4", "TCP", 0),
        (EMPTY, "ClusterIP", "IPv4", "TCP", 1),
        (OLDER, "ExternalIP", "IPv4", "TCP", 0),
    ],
)
def test_it_says_what_happens_to_packets(
    explained: Cluster, number: int, kind: str, family: str, protocol: str, status: int
) -> None:
    address, port = target(number, kind, family, protocol)
    host = f"[{address}]" if ":" in address else address
    told = explain(explained, f"{host}:{port}/{protocol.lower()}")
    assert told["route"] == f"conformance/svc-{number}:{protocol.lower()} {family}"
    for outcome in told["outcomes"]:
        found = happens(explained, ASKERS[outcome["asker"]], address, port, protocol)
        if outcome["verdict"] == "translated" and found == "dropped":
            assert f"{CLIENT}, all others are dropped" in outcome["why"]
        elif outcome["verdict"] == "translated":
            # The node's own address is the one that it would be masqueraded by.
            source = "kept" if outcome["asker"] == "node" else outcome["source"]
            assert found == {(one["address"], source) for one in outcome["endpoints"]}
            local = {pod for pod, (*_, node) in PODS.items() if node == "node-1"}
            here = {PODS[pod][family == "IPv6"] for pod in local}
            assert all(one["local"] == (one["address"] in here) for one in outcome["endpoints"])
        else:
            assert found == outcome["verdict"]
    assert told["status"] == status
    assert told["entriesMissing"] is None
    # Each endpoint that somebody reaches is in the kernel's entries, and they are of that destination.
    entries = "\n".join(told["entries"])
    reached = {one["address"] for outcome in told["outcomes"] for one in outcome["endpoints"]}
    assert {ip for pod in PODS.values() for ip in pod[:2] if ip in entries} == reached
    assert str(port) in entries
    if {outcome["verdict"] for outcome in told["outcomes"]} == {"translated"} and number != GUARDED:
        assert "PYPROXY-REFUSE" not in entries
    assert kind == "NodePort" or address in entries


@pytest.mark.parametrize(
    ("to", "verdict", "said"),
    [
        (
            f"{addresses(PLAIN)['ClusterIP']['IPv4']}:4711",
            "refused",
            f"conformance/svc-{PLAIN}, which serves 80/tcp, 53/u",
        ),
        (f"{addresses(HEADLESS)['ExternalIP']['IPv4']}:80", "not handled", "skipped: it is headless (clusterIP None)"),
        (
            *("10.9.9.9:80", "not handled"),
            "no such address: no service has 10.9.9.9, and node ports don't answer there\nnot obeyed, so what it wants "
            f"is not known: Service conformance/svc-{REFUSED}: spec.clusterIPs[0]: 127.0.0.9 is a loopback address",
        ),
        (f"127.0.0.1:{node_port(PLAIN, 'TCP')}", "not handled", "never on loopback"),
        (f"172.18.0.3:{node_port(PLAIN, 'TCP')}", "not handled", "this node's own addresses within 172.18.0.0/16"),
        ("10.244.0.12:8080", "not handled", f"is an endpoint of conformance/svc-{PLAIN}:tcp IPv4"),
    ],
)
def test_it_says_why_not(explained: Cluster, to: str, verdict: str, said: str) -> None:
    told = explain(explained, to)
    assert {outcome["verdict"] for outcome in told["outcomes"]} == {verdict}
    assert said in "\n".join(told["notes"])
    assert (told["status"], told["entriesMissing"]) == (1, None)
    assert bool(told["entries"]) == (verdict == "refused")


def test_it_says_who_keeps_an_address(explained: Cluster) -> None:
    told = explain(explained, f"{SHARED}:80")
    assert told["route"] == f"conformance/svc-{OLDER}:tcp IPv4"
    assert told["notes"][0].startswith(
        f"conformance/svc-{YOUNGER} wants it, too; conformance/svc-{OLDER}:tcp IPv4 goes"
    )


def test_its_entries_are_the_kernels(explained: Cluster, mode: str) -> None:
    """One that is deleted there is missing here, and nothing else is."""
    address = addresses(PLAIN)["ClusterIP"]["IPv4"]
    before = explain(explained, f"{address}:80")
    start, holds, undone = DAMAGE[mode]
    victim = next(entry for entry in before["entries"] if entry.startswith(start) and holds in entry)
    program, *words = undone(victim)
    explained.lab.node.namespace.run([flavoured(explained.lab, program), *words])
    after = explain(explained, f"{address}:80")
    assert set(before["entries"]) - set(after["entries"]) == {victim}
    assert sum(ip in victim for ip, *_ in PODS.values()) == 1
    assert len(after["entries"]) == len(before["entries"]) - 1
    assert after["outcomes"] == before["outcomes"]  # that is what should be


def test_it_says_it_in_words(explained: Cluster) -> None:
    done = pyproxy(explained.lab, "explain", f"{addresses(PLAIN)['ClusterIP']['IPv4']}:53/udp")
    assert (done.returncode, done.stderr) == (0, "")
    assert f"is the ClusterIP of conformance/svc-{PLAIN}:udp IPv4" in done.stdout
    assert "from outside: to one of 2 endpoints, which sees an address of this node (masqueraded)\n" in done.stdout
    assert "    10.244.0.12:8080 on this node\n    10.244.1.14:8080\n" in done.stdout
    assert f"\nin the kernel, {explained.mode} mode:\n    " in done.stdout


def test_without_the_right_to_read_the_kernel_it_explains_all_the_same(explained: Cluster) -> None:
    to = f"{addresses(PLAIN)['ClusterIP']['IPv4']}:53/udp"
    done = pyproxy(explained.lab, "explain", to, inside=WITHOUT_NET_ADMIN)
    assert (done.returncode, done.stderr) == (0, "")
    what_is_known = known(explained.mode)
    # Local routes are no secret, and the relay obeys its own user; maps of BPF are read by who has CAP_BPF.
    is_read = what_is_known.relays or what_is_known.connects_sockets
    assert done.stdout.splitlines()[-1].startswith("the kernel's entries could not be read: ") != is_read


def test_without_a_proxy_it_says_what_to_do(explained: Cluster) -> None:
    explained.kill()
    done = pyproxy(explained.lab, "explain", "10.9.9.9:80")
    assert (done.returncode, done.stdout) == (1, "")
    assert is_one_sentence(done.stderr)
    assert "no proxy answers at 127.0.0.1 port 10249" in done.stderr
