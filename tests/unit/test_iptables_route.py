"""Routes as rules: each kind in full.

What is long and always the same is abbreviated here: `[1/2]` is a chance, `[default/web:http]` a comment,
`[knows X 60]` and `[remembers X]` the memory of an endpoint's clients, `-> X` the translation. Chains are named without
their hash.
"""

import re
from base64 import b32encode
from hashlib import sha256

import pytest

from modes.iptables.route import part_of
from pyproxy.kernel.iptables_dialect import DIALECTS
from pyproxy.table import (
    IP,
    Backend,
    Family,
    Frontend,
    Host,
    OnEmpty,
    Pool,
    Prefix,
    Route,
    RouteId,
    Scope,
    Transport,
)

WEB = RouteId("default", "web", "http", Family.IPV4)
CLUSTER_IP = Frontend(IP("10.96.0.1"), 80, Scope.CLUSTER_IP)
EXTERNAL_IP = Frontend(IP("203.0.113.1"), 80, Scope.EXTERNAL_IP)
BALANCED = Frontend(IP("198.51.100.1"), 80, Scope.LOAD_BALANCER)
EMPTY, NOWHERE_NEAR = Pool(()), Pool((), OnEmpty.DROP)
BOTH_RANGES = (Prefix("192.0.2.0/24"), Prefix("2001:db8:7::/64"), Prefix("203.0.113.0/25"))


def endpoints(*numbers: int, start: str = "10.244.0.") -> Pool:
    return Pool(tuple(Backend(IP(f"{start}{number}"), 8080, is_local=number < 3) for number in numbers))


def route(
    *frontends: Frontend,
    internal: Pool = EMPTY,
    external: Pool | None = None,
    local: Pool | None = None,
    node_port: int | None = None,
    transport: Transport = Transport.TCP,
    seconds: int | None = None,
    ranges: tuple[Prefix, ...] | None = None,
    of: RouteId = WEB,
) -> Route:
    """``local``: the external policy is Local, and these are its endpoints. The others come to those of ``external``,
    or the internal ones."""
    others = internal if external is None else external
    outside = others if local is None else local
    masquerade = local is None
    return Route(*(of, transport, frontends, node_port, internal, outside, others, masquerade), seconds, ranges, None)


def hashed(of: RouteId, what: str, length: int) -> str:
    return b32encode(sha256(f"{of} {what}".encode()).digest()).decode()[:length]


def told(rules_of: dict[str, tuple[str, ...]], given: Route) -> str:
    """Chains, or places, with their rules below them, abbreviated."""
    text = "\n".join(line for name, rules in rules_of.items() for line in (name, *(f"  {rule}" for rule in rules)))
    for kind in ("SVC", "EXT", "IN", "FW"):
        text = text.replace(f"PYPROXY-{kind}-{hashed(given.id, kind, 16)}", kind)
    for pool in ("internal", "external", "short_circuit"):
        text = re.sub(f"PYPROXY-EP-{hashed(given.id, f'pool {pool}', 14)}([A-Z2-7]{{3}})", rf"EP-{pool}-\1", text)
    mask = "255.255.255.255" if given.id.family is Family.IPV4 else "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"
    for backend in {backend for pool in given.pools for backend in pool.backends}:
        memory = f"--name PYPROXY-{hashed(given.id, f'{backend.ip} {backend.port}', 16)} --mask {mask} --rsource"
        text = re.sub(f"-m recent --update --seconds (\\d+) --reap {memory}", rf"[knows {backend.ip} \1]", text)
        text = text.replace(f"-m recent --set {memory}", f"[remembers {backend.ip}]")
    text = text.replace("-j DNAT --to-destination", "->")
    text = re.sub(r'-m comment --comment "([^"]*)"', r"[\1]", text)
    return re.sub(r"-m statistic --mode random --probability (\S+)", lambda found: _chance(found[1]), text)


def _chance(text: str) -> str:
    known = {f"{round(0x80000000 / of) / 0x80000000:.11f}": f"[1/{of}]" for of in range(2, 9)}
    return known.get(text, f"[{text}]")


def lines(text: str) -> str:
    """A block of expected text, as it stands in this file."""
    return "\n".join(line.removeprefix(" " * 8) for line in text.strip("\n").rstrip().split("\n"))


PODS = Host(pod_prefixes=(Prefix("10.244.0.0/24"), Prefix("fd00:244::/64")))
ROUTES: dict[str, tuple[Route, Host, str]] = {
    "a ClusterIP without endpoints": (
        route(CLUSTER_IP),
        Host(),
        """
        cluster 10.96.0.1 tcp 80
          -d 10.96.0.1/32 -p tcp -m tcp --dport 80 [default/web:http] -g PYPROXY-REFUSE
        """,
    ),
    "a ClusterIP with endpoints elsewhere": (
        route(CLUSTER_IP, internal=NOWHERE_NEAR),
        Host(),
        """
        cluster 10.96.0.1 tcp 80
          -d 10.96.0.1/32 -p tcp -m tcp --dport 80 [default/web:http] -g PYPROXY-DROP
        """,
    ),
    "one endpoint": (
        route(CLUSTER_IP, internal=endpoints(1)),
        Host(),
        """
        cluster 10.96.0.1 tcp 80
          -d 10.96.0.1/32 -p tcp -m tcp --dport 80 [default/web:http] -> 10.244.0.1:8080
        """,
    ),
    "two endpoints": (
        route(CLUSTER_IP, internal=endpoints(1, 2), transport=Transport.UDP),
        Host(),
        """
        cluster 10.96.0.1 udp 80
          -d 10.96.0.1/32 -p udp -m udp --dport 80 [1/2] -> 10.244.0.1:8080
          -d 10.96.0.1/32 -p udp -m udp --dport 80 [default/web:http] -> 10.244.0.2:8080
        """,
    ),
    "three endpoints": (
        route(CLUSTER_IP, internal=endpoints(1, 2, 3), transport=Transport.SCTP),
        Host(),
        """
        cluster 10.96.0.1 sctp 80
          -d 10.96.0.1/32 -p sctp -m sctp --dport 80 [1/3] -> 10.244.0.1:8080
          -d 10.96.0.1/32 -p sctp -m sctp --dport 80 [1/2] -> 10.244.0.2:8080
          -d 10.96.0.1/32 -p sctp -m sctp --dport 80 [default/web:http] -> 10.244.0.3:8080
        """,
    ),
    "four endpoints": (
        route(CLUSTER_IP, internal=endpoints(1, 2, 3, 4)),
        Host(),
        """
        cluster 10.96.0.1 tcp 80
          -d 10.96.0.1/32 -p tcp -m tcp --dport 80 [default/web:http] -g SVC
        SVC
          -p tcp [1/4] -> 10.244.0.1:8080
          -p tcp [1/3] -> 10.244.0.2:8080
          -p tcp [1/2] -> 10.244.0.3:8080
          -p tcp -> 10.244.0.4:8080
        """,
    ),
    "nine endpoints for all": (
        route(CLUSTER_IP, internal=endpoints(*range(1, 10)), external=endpoints(*range(1, 10)), node_port=30080),
        Host(),
        """
        cluster 10.96.0.1 tcp 80
          -d 10.96.0.1/32 -p tcp -m tcp --dport 80 [default/web:http] -g SVC
        tcp 30080
          -p tcp -m tcp --dport 30080 [default/web:http] -g EXT
        EP-internal-AAA
          -p tcp [1/8] -> 10.244.0.1:8080
          -p tcp [1/7] -> 10.244.0.2:8080
          -p tcp [1/6] -> 10.244.0.3:8080
          -p tcp [1/5] -> 10.244.0.4:8080
          -p tcp [1/4] -> 10.244.0.5:8080
          -p tcp [1/3] -> 10.244.0.6:8080
          -p tcp [1/2] -> 10.244.0.7:8080
          -p tcp -> 10.244.0.8:8080
        EP-internal-AAB
          -p tcp -> 10.244.0.9:8080
        SVC
          [0.88888888899] -g EP-internal-AAA
          -g EP-internal-AAB
        EXT
          -j PYPROXY-MASQUERADE-MARK
          [0.88888888899] -g EP-internal-AAA
          -g EP-internal-AAB
        """,
    ),
    "affinity": (
        route(CLUSTER_IP, internal=endpoints(1, 2), seconds=60),
        Host(),
        """
        cluster 10.96.0.1 tcp 80
          -d 10.96.0.1/32 -p tcp -m tcp --dport 80 [default/web:http] -g SVC
        SVC
          -p tcp [knows 10.244.0.1 60] -> 10.244.0.1:8080
          -p tcp [knows 10.244.0.2 60] -> 10.244.0.2:8080
          -p tcp [1/2] [remembers 10.244.0.1] -> 10.244.0.1:8080
          -p tcp [remembers 10.244.0.2] -> 10.244.0.2:8080
        """,
    ),
    "affinity to nobody": (
        route(CLUSTER_IP, seconds=60),
        Host(),
        """
        cluster 10.96.0.1 tcp 80
          -d 10.96.0.1/32 -p tcp -m tcp --dport 80 [default/web:http] -g PYPROXY-REFUSE
        """,
    ),
    "a node port": (
        route(node_port=30080, internal=endpoints(1, 2), external=endpoints(2), transport=Transport.UDP),
        PODS,
        """
        udp 30080
          -p udp -m udp --dport 30080 [default/web:http] -g EXT
        EXT
          -j PYPROXY-MASQUERADE-MARK
          -p udp -> 10.244.0.2:8080
        """,
    ),
    "a node port without endpoints": (
        route(node_port=30080),
        PODS,
        """
        tcp 30080
          -p tcp -m tcp --dport 30080 [default/web:http] -g PYPROXY-REFUSE
        """,
    ),
    "a node port with endpoints elsewhere": (
        route(node_port=30080, internal=endpoints(1), external=NOWHERE_NEAR),
        PODS,
        """
        tcp 30080
          -p tcp -m tcp --dport 30080 [default/web:http] -g PYPROXY-DROP
        """,
    ),
    "a load balancer for everyone": (
        route(BALANCED, EXTERNAL_IP, internal=endpoints(1)),
        Host(),
        """
        external 198.51.100.1 tcp 80
          -d 198.51.100.1/32 -p tcp -m tcp --dport 80 [default/web:http] -g EXT
        external 203.0.113.1 tcp 80
          -d 203.0.113.1/32 -p tcp -m tcp --dport 80 [default/web:http] -g EXT
        EXT
          -j PYPROXY-MASQUERADE-MARK
          -p tcp -> 10.244.0.1:8080
        """,
    ),
    "a load balancer with ranges, which bind no external IP": (
        route(BALANCED, EXTERNAL_IP, internal=endpoints(1), ranges=BOTH_RANGES),
        Host(),
        """
        external 198.51.100.1 tcp 80
          -d 198.51.100.1/32 -p tcp -m tcp --dport 80 [default/web:http] -g FW
        external 203.0.113.1 tcp 80
          -d 203.0.113.1/32 -p tcp -m tcp --dport 80 [default/web:http] -g EXT
        EXT
          -j PYPROXY-MASQUERADE-MARK
          -p tcp -> 10.244.0.1:8080
        FW
          -s 192.0.2.0/24 -g EXT
          -s 203.0.113.0/25 -g EXT
          -g PYPROXY-DROP
        """,
    ),
    "a range that is everyone": (
        route(BALANCED, internal=endpoints(1), ranges=(Prefix("0.0.0.0/0"), *BOTH_RANGES)),
        Host(),
        """
        external 198.51.100.1 tcp 80
          -d 198.51.100.1/32 -p tcp -m tcp --dport 80 [default/web:http] -g FW
        EXT
          -j PYPROXY-MASQUERADE-MARK
          -p tcp -> 10.244.0.1:8080
        FW
          -g EXT
          -s 192.0.2.0/24 -g EXT
          -s 203.0.113.0/25 -g EXT
          -g PYPROXY-DROP
        """,
    ),
    "ranges of the other family alone": (
        route(BALANCED, internal=endpoints(1), ranges=(Prefix("2001:db8::/32"), Prefix("::/0"))),
        Host(),
        """
        external 198.51.100.1 tcp 80
          -d 198.51.100.1/32 -p tcp -m tcp --dport 80 [default/web:http] -g FW
        EXT
          -j PYPROXY-MASQUERADE-MARK
          -p tcp -> 10.244.0.1:8080
        FW
          -g PYPROXY-DROP
        """,
    ),
    "ranges, and nobody behind": (
        route(BALANCED, ranges=(Prefix("192.0.2.0/24"),)),
        Host(),
        """
        external 198.51.100.1 tcp 80
          -d 198.51.100.1/32 -p tcp -m tcp --dport 80 [default/web:http] -g FW
        FW
          -s 192.0.2.0/24 -g PYPROXY-REFUSE
          -g PYPROXY-DROP
        """,
    ),
    "the external policy Local": (
        route(EXTERNAL_IP, internal=endpoints(1, 3), local=endpoints(1)),
        PODS,
        """
        external 203.0.113.1 tcp 80
          -d 203.0.113.1/32 -p tcp -m tcp --dport 80 [default/web:http] -g EXT
        IN
          -m addrtype --src-type LOCAL -j PYPROXY-MASQUERADE-MARK
          -p tcp [1/2] -> 10.244.0.1:8080
          -p tcp -> 10.244.0.3:8080
        EXT
          -m addrtype --src-type LOCAL -g IN
          -s 10.244.0.0/24 -g IN
          -p tcp -> 10.244.0.1:8080
        """,
    ),
    "the external policy Local, without local endpoints": (
        route(node_port=30080, internal=endpoints(3), local=NOWHERE_NEAR),
        Host(pod_interfaces=("cni0", "veth*")),
        """
        tcp 30080
          -p tcp -m tcp --dport 30080 [default/web:http] -g EXT
        IN
          -m addrtype --src-type LOCAL -j PYPROXY-MASQUERADE-MARK
          -p tcp -> 10.244.0.3:8080
        EXT
          -m addrtype --src-type LOCAL -g IN
          -i cni0 -g IN
          -i veth+ -g IN
          -g PYPROXY-DROP
        """,
    ),
    "the external policy Local, without any": (
        route(node_port=30080, local=EMPTY),
        Host(),
        """
        tcp 30080
          -p tcp -m tcp --dport 30080 [default/web:http] -g EXT
        IN
          -m addrtype --src-type LOCAL -j PYPROXY-MASQUERADE-MARK
          -g PYPROXY-REFUSE
        EXT
          -m addrtype --src-type LOCAL -g IN
          -g PYPROXY-REFUSE
        """,
    ),
    "the external policy Local, where everybody is a pod": (
        route(node_port=30080, internal=endpoints(1), local=endpoints(1)),
        Host(pod_prefixes=(Prefix("0.0.0.0/0"),)),
        """
        tcp 30080
          -p tcp -m tcp --dport 30080 [default/web:http] -g EXT
        IN
          -m addrtype --src-type LOCAL -j PYPROXY-MASQUERADE-MARK
          -p tcp -> 10.244.0.1:8080
        EXT
          -m addrtype --src-type LOCAL -g IN
          -g IN
          -p tcp -> 10.244.0.1:8080
        """,
    ),
    "a pool for each": (
        route(
            CLUSTER_IP, BALANCED, internal=endpoints(1, 2, 3, 4), external=endpoints(*range(3, 12)), local=endpoints(1)
        ),
        Host(masquerade_all=True),
        """
        cluster 10.96.0.1 tcp 80
          -d 10.96.0.1/32 -p tcp -m tcp --dport 80 [default/web:http] -g SVC
        external 198.51.100.1 tcp 80
          -d 198.51.100.1/32 -p tcp -m tcp --dport 80 [default/web:http] -g EXT
        SVC
          -p tcp [1/4] -> 10.244.0.1:8080
          -p tcp [1/3] -> 10.244.0.2:8080
          -p tcp [1/2] -> 10.244.0.3:8080
          -p tcp -> 10.244.0.4:8080
        EP-short_circuit-AAA
          -p tcp [1/8] -> 10.244.0.3:8080
          -p tcp [1/7] -> 10.244.0.4:8080
          -p tcp [1/6] -> 10.244.0.5:8080
          -p tcp [1/5] -> 10.244.0.6:8080
          -p tcp [1/4] -> 10.244.0.7:8080
          -p tcp [1/3] -> 10.244.0.8:8080
          -p tcp [1/2] -> 10.244.0.9:8080
          -p tcp -> 10.244.0.10:8080
        EP-short_circuit-AAB
          -p tcp -> 10.244.0.11:8080
        IN
          -m addrtype --src-type LOCAL -j PYPROXY-MASQUERADE-MARK
          [0.88888888899] -g EP-short_circuit-AAA
          -g EP-short_circuit-AAB
        EXT
          -m addrtype --src-type LOCAL -g IN
          -p tcp -> 10.244.0.1:8080
        """,
    ),
    "IPv6": (
        route(
            Frontend(IP("fd00:96::1"), 80, Scope.CLUSTER_IP),
            Frontend(IP("2001:db8::1"), 80, Scope.LOAD_BALANCER),
            internal=endpoints(1, 2, start="fd00:244::"),
            local=endpoints(1, start="fd00:244::"),
            node_port=30080,
            seconds=60,
            ranges=BOTH_RANGES,
            of=WEB._replace(family=Family.IPV6),
        ),
        PODS,
        """
        cluster fd00:96::1 tcp 80
          -d fd00:96::1/128 -p tcp -m tcp --dport 80 [default/web:http] -g SVC
        external 2001:db8::1 tcp 80
          -d 2001:db8::1/128 -p tcp -m tcp --dport 80 [default/web:http] -g FW
        tcp 30080
          -p tcp -m tcp --dport 30080 [default/web:http] -g EXT
        SVC
          -p tcp [knows fd00:244::1 60] -> [fd00:244::1]:8080
          -p tcp [knows fd00:244::2 60] -> [fd00:244::2]:8080
          -p tcp [1/2] [remembers fd00:244::1] -> [fd00:244::1]:8080
          -p tcp [remembers fd00:244::2] -> [fd00:244::2]:8080
        IN
          -m addrtype --src-type LOCAL -j PYPROXY-MASQUERADE-MARK
          -p tcp [knows fd00:244::1 60] -> [fd00:244::1]:8080
          -p tcp [knows fd00:244::2 60] -> [fd00:244::2]:8080
          -p tcp [1/2] [remembers fd00:244::1] -> [fd00:244::1]:8080
          -p tcp [remembers fd00:244::2] -> [fd00:244::2]:8080
        EXT
          -m addrtype --src-type LOCAL -g IN
          -s fd00:244::/64 -g IN
          -p tcp [knows fd00:244::1 60] -> [fd00:244::1]:8080
          -p tcp [remembers fd00:244::1] -> [fd00:244::1]:8080
        FW
          -s 2001:db8:7::/64 -g EXT
          -g PYPROXY-DROP
        """,
    ),
}


@pytest.mark.parametrize(("given", "host", "expected"), ROUTES.values(), ids=ROUTES)
def test_a_route_as_rules(given: Route, host: Host, expected: str) -> None:
    d = DIALECTS[given.id.family]
    part = part_of(given, d, host)
    places = {}
    for place, rules in part.places.items():
        where = (d.address(place.key), place.transport, str(place.port)) if place.transport else (str(place.key),)
        places[" ".join((place.tree, *where))] = rules
    assert told(places | part.chains, given) == lines(expected)
    assert all(len(name) <= 28 for name in part.chains)


def test_without_abbreviations() -> None:
    """As iptables-save writes it."""
    given = route(CLUSTER_IP, internal=endpoints(1, 2), seconds=60)
    (first, *_, last) = part_of(given, DIALECTS[Family.IPV4], Host()).chains[f"PYPROXY-SVC-{hashed(WEB, 'SVC', 16)}"]
    assert first == (
        "-p tcp -m recent --update --seconds 60 --reap --name PYPROXY-2PDXDAVPMGRC76FZ --mask 255.255.255.255 "
        "--rsource -j DNAT --to-destination 10.244.0.1:8080"
    )
    assert last == (
        "-p tcp -m recent --set --name PYPROXY-RBCSLEY4SMQW7J3G --mask 255.255.255.255 --rsource "
        "-j DNAT --to-destination 10.244.0.2:8080"
    )
