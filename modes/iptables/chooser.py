"""One of n endpoints at random, each as likely, in a number of rules that grows with the logarithm of n."""

from collections.abc import Callable

from modes.iptables.tree import Chains, Rules
from pyproxy.table import Backend

FEW = 8
"""So many endpoints are chosen from one after the other."""
_LEVELS = 12


def choose(
    backends: tuple[Backend, ...], translate: Callable[[str, Backend], str], name: Callable[[int], str]
) -> tuple[Rules, Chains]:
    """The rules that choose, and the chains that they go to.

    ``translate`` makes a rule of what gives an endpoint its chance, ``name`` that of a chain from its number, which
    is below 2 ** 15 for up to 2 ** 15 endpoints. A chain has the same number and content however many endpoints come
    after those in it, so that one more or less changes a few chains only.
    """
    chains: Chains = {}
    return _rules(backends, 0, translate, name, chains), chains


def _rules(
    backends: tuple[Backend, ...],
    start: int,
    translate: Callable[[str, Backend], str],
    name: Callable[[int], str],
    chains: Chains,
) -> Rules:
    """Of those ``backends`` that come after ``start`` others; what they go to is added to ``chains``."""
    count = len(backends)
    if count <= FEW:
        chances = [_chance(1, left) for left in range(count, 1, -1)] + [""]
        return tuple(map(translate, chances, backends))
    left = FEW
    while left * 2 < count:
        left *= 2
    targets = []
    for branch, first in ((backends[:left], start), (backends[left:], start + left)):
        targets.append(name(_number(first, first + len(branch))))
        chains[targets[-1]] = _rules(branch, first, translate, name, chains)
    return f"{_chance(left, count)} -g {targets[0]}", f"-g {targets[1]}"


def _chance(some: int, of: int) -> str:
    """As iptables-save writes it: the kernel keeps 31 bits of it."""
    kept = int(0x80000000 * (some / of) + 0.5)
    return f"-m statistic --mode random --probability {kept / 0x80000000:.11f}"


def _number(start: int, end: int) -> int:
    """Of the smallest branch that holds ``start`` to ``end``, in a tree of 2 ** _LEVELS leaves of FEW endpoints."""
    size, level = FEW, 0
    while start + size < end:
        size, level = size * 2, level + 1
    return (1 << _LEVELS - level) + start // size
