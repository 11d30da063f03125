"""A host with iptables, on which others have rules, too: what the tests of iptables mode share."""

import os
import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from bench.lab import PREFIX
from bench.namespace import Namespace
from modes.iptables.tree import Chains
from pyproxy.kernel.iptables import Flavour
from pyproxy.kernel.iptables_dialect import DIALECTS, Dialect
from pyproxy.table import Pool, Route

Tables = dict[str, Chains]

_OTHERS = """*nat
:STRANGER - [0:0]
-A PREROUTING -d {address} -j STRANGER
-A POSTROUTING -o lo -j MASQUERADE
-A STRANGER -m comment --comment "not -j PYPROXY-SERVICES but" -j RETURN
COMMIT
*filter
:MY-PYPROXY-FRIEND - [0:0]
-A INPUT -i lo -j ACCEPT
-A FORWARD -j MY-PYPROXY-FRIEND
COMMIT
"""
_HOOKS = {
    "filter": {"INPUT": "VERDICT", "FORWARD": "VERDICT", "OUTPUT": "VERDICT"},
    "nat": {"PREROUTING": "SERVICES", "OUTPUT": "SERVICES", "POSTROUTING": "POSTROUTING"},
}
_TO_OURS = re.compile(r"-[jg] PYPROXY-\S+$")


@contextmanager
def fresh_host() -> Iterator[None]:
    """The thread lives in a network namespace in which nobody ever used iptables."""
    namespace = Namespace(f"{PREFIX}{os.getpid()}-iptables")
    try:
        namespace.create()
        with namespace.entered():
            yield
    finally:
        namespace.remove()


def run(*command: str, stdin: str = "") -> str:
    return subprocess.run(command, input=stdin, check=True, capture_output=True, text=True).stdout


def use(flavour: Flavour) -> None:
    """As kubelet says which one the host uses."""
    run(f"iptables-{flavour}", "-t", "mangle", "-N", "KUBE-IPTABLES-HINT")


def plant_others(flavour: Flavour) -> None:
    """Rules that are none of pyproxy's."""
    for d, address in zip(DIALECTS.values(), ("192.0.2.1/32", "2001:db8::1/128"), strict=True):
        run(f"{d.program}-{flavour}-restore", "--noflush", stdin=_OTHERS.format(address=address))


def saved(d: Dialect, flavour: Flavour) -> Tables:
    """All that there is, as iptables-save tells it; a table that nobody made is not made by this."""
    tables: Tables = {}
    chains: Chains = {}
    for line in run(f"{d.program}-{flavour}-save").splitlines():
        if line.startswith("*"):
            chains = tables[line[1:]] = {}
        elif line.startswith(":"):
            chains[line[1:].split(" ")[0]] = ()
        elif line.startswith("-A "):
            _, chain, *rule = line.split(" ", 2)
            chains[chain] += (*rule,)
    return tables


def everything() -> dict[str, Tables]:
    """Of both flavours and families; tables without a rule or a chain of anybody are left out."""
    return {
        f"{d.program}-{flavour}": {
            name: chains
            for name, chains in saved(d, flavour).items()
            if any(rules or not chain.isupper() or "-" in chain for chain, rules in chains.items())
        }
        for d in DIALECTS.values()
        for flavour in Flavour
    }


def ours(tables: Tables, name: str) -> Chains:
    return {chain: rules for chain, rules in tables[name].items() if chain.startswith("PYPROXY-")}


def of_others(tables: Tables) -> Tables:
    """What is left without pyproxy's chains and the rules that lead there."""
    return {
        name: {
            chain: tuple(rule for rule in rules if not _TO_OURS.search(rule))
            for chain, rules in chains.items()
            if not chain.startswith("PYPROXY-")
        }
        for name, chains in tables.items()
    }


def is_hooked(tables: Tables) -> bool:
    """Whether each rule that leads to pyproxy's chains is the first of its chain, there once, and there is no other."""
    found = {
        (name, chain, at): rule.split(" ")[-1].removeprefix("PYPROXY-")
        for name, chains in tables.items()
        for chain, rules in chains.items()
        for at, rule in enumerate(rules)
        if not chain.startswith("PYPROXY-") and _TO_OURS.search(rule)
    }
    return found == {(name, chain, 0): target for name, hooks in _HOOKS.items() for chain, target in hooks.items()}


def in_order(one: Route) -> Route:
    """Which of a route's endpoints comes first is the mode's own affair."""

    def ordered(pool: Pool) -> Pool:
        return replace(pool, backends=tuple(sorted(pool.backends, key=lambda backend: (backend.ip, backend.port))))

    internal, external, short_circuit = map(ordered, one.pools)
    return replace(one, internal=internal, external=external, short_circuit=short_circuit)
