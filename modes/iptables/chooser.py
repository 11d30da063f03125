"""One of n endpoints at random, each as likely, in a number of rules that grows with the logarithm of n."""

from collections.abc import Callable

from modes.iptables.tree import Chains, Rules
from pyproxy.table import Backend

FEW = 8
"""So many endpoints, or branches, are chosen from one after the other. Two would walk fewer rules, but the kernel's
nftables allows no more than sixteen chains on a packet's way (NFT_JUMP_STACK_SIZE)."""
_LEVELS = 4
"""Of chains, for up to FEW ** (_LEVELS + 1) endpoints."""
_SIZES = tuple(int(FEW**level) for level in range(1, _LEVELS + 1))
"""How many endpoints a full chain of each level leads to."""


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
    size = max(size for size in _SIZES if size < count)
    made = []
    for at in range(0, count, size):
        branch = backends[at : at + size]
        target = name(_number(start + at, len(branch)))
        chains[target] = _rules(branch, start + at, translate, name, chains)
        chance = _chance(len(branch), count - at) if at + size < count else ""
        made.append(f"{chance} -g {target}".lstrip())
    return tuple(made)


def _chance(some: int, of: int) -> str:
    """As iptables-save writes it: the kernel keeps 31 bits of it."""
    kept = int(0x80000000 * (some / of) + 0.5)
    return f"-m statistic --mode random --probability {kept / 0x80000000:.11f}"


def _number(start: int, count: int) -> int:
    """Of the smallest branch that leads to ``count`` endpoints from ``start`` on, in a tree of _LEVELS levels."""
    below = 0
    for size in _SIZES:
        if count <= size:
            return below + start // size
        below += _SIZES[-1] * FEW // size
    raise ValueError(f"{count} endpoints are too many")
