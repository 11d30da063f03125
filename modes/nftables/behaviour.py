"""What is done with connections to a frontend: one chain for all frontends that are alike."""

from dataclasses import dataclass, replace

from modes.nftables.family import Dialect
from modes.nftables.ruleset import CHOICE, MASQUERADE_MARK
from pyproxy.table import Host, OnEmpty, Pool

SHORT_CIRCUIT = 1 << 15
"""Where the slots of the short-circuit pool begin; the other pool of a frontend begins at 0."""

MOST_BACKENDS = SHORT_CIRCUIT
"""Of one pool; what is beyond gets no connections."""

Size = int | OnEmpty


def size_of(pool: Pool) -> Size:
    return min(len(pool.backends), MOST_BACKENDS) or pool.on_empty


@dataclass(frozen=True, slots=True)
class Behaviour:
    kind: str
    """``cluster-ip``; ``external`` for external policy Cluster; ``local`` for external policy Local, which sends
    pods and this node on to ``inside``."""
    size: Size
    """How many backends `kind` chooses from, or what happens since there are none."""
    inside: Size = OnEmpty.REJECT
    """For kind ``local``: the size of the short-circuit pool."""
    sticky_seconds: int | None = None
    node_port: bool = False
    guarded: bool = False
    """Whether source ranges are looked at first."""

    @property
    def verdict(self) -> str:
        """What a verdict map says for such a frontend."""
        if self.kind == "cluster-ip" and not isinstance(self.size, int):
            return self._verdict(self.size)
        return f"goto {self.chain}"

    @property
    def chain(self) -> str | None:
        """Its name, None if a shared chain serves."""
        if self.kind == "cluster-ip" and not isinstance(self.size, int):
            return None
        parts = ["guarded"] if self.guarded else []
        parts += [f"sticky-{self.sticky_seconds}"] if self.sticky_seconds else []
        parts += ["node-port"] if self.node_port else []
        parts += [self.kind, self._word(self.size)]
        parts += ["of", self._word(self.inside)] if self.kind == "local" else []
        return "-".join(parts)

    def chains(self, d: Dialect, host: Host) -> dict[str, list[str]]:
        """This behaviour's chain and those it goes to, a chain before the ones that name it."""
        if self.chain is None:
            return {}
        if self.guarded:
            inner = replace(self, guarded=False)
            guard = f"{d.ip} daddr . meta l4proto . th dport . {d.ip} saddr != @allowed-sources drop"
            return {**inner.chains(d, host), self.chain: [guard, f"goto {inner.chain}"]}
        if self.kind == "local":
            inside = replace(self, kind="inside", size=self.inside, inside=OnEmpty.REJECT)
            from_pods = [f"{subject} {value}" for subject, value in _pods(d, host)]
            turns = [f"{match} goto {inside.chain}" for match in ("fib saddr type local", *from_pods)]
            return {**inside.chains(d, host), self.chain: [*turns, *self._choose(d)]}
        return {self.chain: [*self._masquerade(d, host), *self._choose(d)]}

    def _masquerade(self, d: Dialect, host: Host) -> list[str]:
        mark = f"meta mark set meta mark | {MASQUERADE_MARK:#x}"
        if self.kind == "external" or (self.kind == "cluster-ip" and host.masquerade_all):
            return [mark]
        if self.kind == "inside":
            return [f"fib saddr type local {mark}"]
        # What is neither a pod's nor the node's must come back this way; the node's own gets the address that fits.
        # If pods can't be told from others, nobody is masqueraded.
        others = [f"{subject} != {value}" for subject, value in _pods(d, host)]
        return [" ".join((*others, mark))] if others else []

    def _choose(self, d: Dialect) -> list[str]:
        """The rules that choose a backend, or what is done without one."""
        if not isinstance(self.size, int):
            return [self._verdict(self.size)]
        key = "meta l4proto . th dport" if self.node_port else f"{d.ip} daddr . meta l4proto . th dport"
        prefix = "node-port-" if self.node_port else ""
        first = CHOICE + (SHORT_CIRCUIT if self.kind == "inside" else 0)
        slot = f"meta priority set numgen random mod {self.size} offset {first}"
        if not self.sticky_seconds:
            return [f"{slot} dnat {d.ip} to {key} . meta priority map @{prefix}endpoints"]
        remember = f"update @affinity {{ {d.affinity_key} timeout {self.sticky_seconds}s : meta priority }}"
        translate = f"dnat {d.ip} to {key} . meta priority map @{prefix}sticky-endpoints"
        return [
            # A client that came before; if its endpoint is gone, the last lookup fails and the next rule is tried.
            f"meta priority set {d.affinity_key} map @affinity {remember} {translate}",
            f"delete @affinity {{ {d.affinity_key} : meta priority }}",
            f"{slot} meta priority set {key} . meta priority map @{prefix}sticky-ids {remember} {translate}",
            # The map of clients is full, and the rule above ended there.
            f"{slot} meta priority set {key} . meta priority map @{prefix}sticky-ids {translate}",
        ]

    @staticmethod
    def _word(size: Size) -> str:
        return size.value if isinstance(size, OnEmpty) else str(size)

    @staticmethod
    def _verdict(size: OnEmpty) -> str:
        return "goto refuse" if size is OnEmpty.REJECT else "drop"


def _pods(d: Dialect, host: Host) -> list[tuple[str, str]]:
    """What tells traffic of pods on this node: what to look at, and what it then is."""
    by_address = [(f"{d.ip} saddr", "@pods")] if d.own(host.pod_prefixes) else []
    return by_address + [("iifname", f'"{name}"') for name in host.pod_interfaces]
