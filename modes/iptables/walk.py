"""Which rules a packet to some destination meets, told from the rules that the kernel has."""

import re
from ipaddress import ip_address, ip_network

from modes.iptables.tree import Chains
from pyproxy.table import IP, Transport, is_own

_START = "PYPROXY-SERVICES"
_DESTINATION = re.compile(r"-d (\S+)")
_PROTOCOL = re.compile(r"-p (\S+)")
_PORTS = re.compile(r"--dport (\d+)(?::(\d+))?")
_TARGET = re.compile(r"-[jg] (\S+)")
_DEPENDS = re.compile(r"-[si] |-m (statistic|recent|mark) |--src-type|--tcp-flags")
"""On more than where the packet goes."""
_FINAL = ("DNAT", "ACCEPT")
_DECIDING = ("DNAT", "PYPROXY-REFUSE", "PYPROXY-DROP")


def rules_for(chains: Chains, address: IP, port: int, transport: Transport) -> list[str]:
    """As iptables-save writes them, in the order in which they are met; empty if none of them decides anything.

    What else rules look at (who sends, chance, memory, marks) may be either way: each way is followed.
    """
    rules: dict[str, None] = {}  # an ordered set: a large pool has thousands
    _follow(chains, _START, (address, port, transport), rules)
    targets = {_target(rule) for rule in rules}
    return list(rules) if targets.intersection(_DECIDING) else []


def _follow(chains: Chains, chain: str, to: tuple[IP, int, Transport], rules: dict[str, None]) -> bool:
    """Add what is met from there on to ``rules``; whether it ends there in any case."""
    for rule in chains.get(chain, ()):
        target, met = _target(rule), f"-A {chain} {rule}"
        if not _matches(rule, *to) or met in rules:  # from several rules one may come to the same chain
            continue
        is_sure = not _DEPENDS.search(rule)
        if target == "RETURN" and is_sure:
            return False
        rules[met] = None
        ends = _follow(chains, target, to, rules) or target in _FINAL
        if is_sure and (ends or "-g " in rule):
            return ends
    return False


def _matches(rule: str, address: IP, port: int, transport: Transport) -> bool:
    if (found := _DESTINATION.search(rule)) and ip_address(address) not in ip_network(found[1]):
        return False
    if "--dst-type LOCAL" in rule and not is_own(address):
        return False
    if (found := _PROTOCOL.search(rule)) and found[1] != transport.value:
        return False
    found = _PORTS.search(rule)
    return found is None or int(found[1]) <= port <= int(found[2] or found[1])


def _target(rule: str) -> str:
    found = _TARGET.search(rule)
    return found[1] if found else ""
