"""A route as rules: pure text, no kernel."""

from base64 import b32encode
from dataclasses import dataclass, field
from hashlib import sha256
from typing import NamedTuple

from modes.iptables import ruleset
from modes.iptables.chooser import choose
from modes.iptables.tree import Chains, Rules
from pyproxy.kernel.iptables_dialect import Dialect
from pyproxy.table import IP, Backend, Host, OnEmpty, Pool, Route, Scope

MOST_BACKENDS = 1 << 15
"""Of one pool; what is beyond gets no connections."""
_INLINE = 3
"""So many endpoints of a ClusterIP stand with the address in the tree instead of in a chain of their own."""
_DIGITS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567"
_LONGEST_COMMENT = 255  # XT_MAX_COMMENT_LEN less the end


class Place(NamedTuple):
    """Where rules for a frontend stand: a tree, a key in it, and what tells several frontends there apart."""

    tree: str
    """``external``, ``cluster``, or the protocol of node ports."""
    key: int
    transport: str = ""
    port: int = 0


@dataclass(slots=True)
class Part:
    """What one route needs."""

    places: dict[Place, Rules] = field(default_factory=dict)
    chains: Chains = field(default_factory=dict)

    def add(self, other: "Part") -> None:
        self.places |= other.places
        self.chains |= other.chains


def part_of(route: Route, d: Dialect, host: Host) -> Part:
    return _Writer(route, d, host).write()


def comment_of(route: Route) -> str:
    """The service port's name for those who read the rules. DNS labels, in quotes since they are parted by a slash."""
    return f'-m comment --comment "{str(route.id).rpartition(" ")[0][:_LONGEST_COMMENT]}"'


def local_endpoints(route: Route) -> set[IP]:
    """Addresses of pods on this node that may reach themselves through the route."""
    return {backend.ip for pool in route.pools for backend in pool.backends if backend.is_local}


class _Writer:
    def __init__(self, route: Route, d: Dialect, host: Host) -> None:
        self._route = route
        self._d = d
        self._host = host
        self._part = Part()
        self._comment = comment_of(route)

    def write(self) -> Part:
        route, d = self._route, self._d
        for frontend in route.frontends:
            match = f"-d {d.host(frontend.address)} {self._port(frontend.port)}"
            tree = "cluster" if frontend.scope is Scope.CLUSTER_IP else "external"
            place = Place(tree, d.number(frontend.address), route.transport.value, frontend.port)
            if frontend.scope is Scope.CLUSTER_IP:
                self._part.places[place] = self._cluster_ip(match)
            else:
                guarded = frontend.scope is Scope.LOAD_BALANCER and route.allowed_sources is not None
                target = self._guarded() if guarded else self._external()
                self._part.places[place] = (f"{match} {self._comment} {target}",)
        if route.node_port:
            place = Place(route.transport.value, route.node_port)
            self._part.places[place] = (f"{self._port(route.node_port)} {self._comment} {self._external()}",)
        return self._part

    def _port(self, number: int) -> str:
        protocol = self._route.transport.value
        return f"-p {protocol} -m {protocol} --dport {number}"

    def _cluster_ip(self, match: str) -> Rules:
        pool = self._route.internal
        if 0 < len(pool.backends) <= _INLINE and not self._route.affinity_seconds:
            # The comment only with the last one, which is left to no chance: the kernel checks and copies each match of
            # each rule whenever any rule changes.
            noted = f"{match} {self._comment}"
            return choose(
                pool.backends, lambda odds, backend: self._dnat(match if odds else noted, odds, backend), str
            )[0]
        if not pool.backends:
            return (f"{match} {self._comment} {_verdict(pool.on_empty)}",)
        return (f"{match} {self._comment} -g {self._chain('SVC', self._choose(pool))}",)

    def _external(self) -> str:
        """The end of a rule that is for traffic from anywhere."""
        route = self._route
        if route.masquerade_external:
            if not route.external.backends:
                return _verdict(route.external.on_empty)
            return f"-g {self._chain('EXT', (ruleset.MARK, *self._choose(route.external)))}"
        from_node = "-m addrtype --src-type LOCAL "
        inside = self._chain("IN", (f"{from_node}{ruleset.MARK}", *self._choose(route.short_circuit)))
        turns = [
            f"{match}-g {inside}"
            for match in (from_node, *self._d.sources(self._host.pod_prefixes, self._host.pod_interfaces))
        ]
        return f"-g {self._chain('EXT', (*turns, *self._choose(route.external)))}"

    def _guarded(self) -> str:
        ranges = self._d.own(self._route.allowed_sources or ())
        then = self._external()
        turns = (then if prefix.endswith("/0") else f"-s {prefix} {then}" for prefix in ranges)
        return f"-g {self._chain('FW', (*turns, ruleset.DROP))}"

    def _choose(self, pool: Pool) -> Rules:
        if not pool.backends:
            return (_verdict(pool.on_empty),)
        # Pools that are alike share their chains: a large one for internal and external traffic is there once.
        kind = next(name for name in ("internal", "external", "short_circuit") if getattr(self._route, name) == pool)
        family = self._hash(f"pool {kind}", 14)
        backends = pool.backends[:MOST_BACKENDS]
        protocol, seconds = f"-p {self._route.transport.value}", self._route.affinity_seconds
        rules, chains = choose(
            backends,
            lambda chance, backend: self._dnat(protocol, chance, backend),
            lambda number: f"PYPROXY-EP-{family}{_three_digits(number)}",
        )
        self._part.chains |= chains
        if not seconds:
            return rules
        # A client that came before; those whose endpoint went find no list of it, and choose anew.
        again = f"--update --seconds {seconds} --reap"
        known = (f"{protocol} {self._recent(backend, again)} {self._to(backend)}" for backend in backends)
        return *known, *rules

    def _dnat(self, match: str, chance: str, backend: Backend) -> str:
        remember = self._recent(backend, "--set") if self._route.affinity_seconds else ""
        return " ".join(filter(None, (match, chance, remember, self._to(backend))))

    def _to(self, backend: Backend) -> str:
        return f"-j DNAT --to-destination {self._d.endpoint(backend.ip, backend.port)}"

    def _recent(self, backend: Backend, verb: str) -> str:
        """Clients of one endpoint of this route, by their addresses."""
        name = self._hash(f"{backend.ip} {backend.port}", 16)
        return f"-m recent {verb} --name PYPROXY-{name} --mask {self._d.everyone} --rsource"

    def _chain(self, kind: str, rules: Rules) -> str:
        name = f"PYPROXY-{kind}-{self._hash(kind, 16)}"
        self._part.chains[name] = rules
        return name

    def _hash(self, what: str, length: int) -> str:
        """Five bits a character: long enough that nobody finds a service whose chains are another's."""
        return b32encode(sha256(f"{self._route.id} {what}".encode()).digest()).decode()[:length]


def _three_digits(number: int) -> str:
    """Of base 32."""
    return "".join(_DIGITS[number >> shift & 31] for shift in (10, 5, 0))


def _verdict(on_empty: OnEmpty) -> str:
    return ruleset.REFUSE if on_empty is OnEmpty.REJECT else ruleset.DROP
