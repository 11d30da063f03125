"""A radix tree of chains: leads a packet to the rules for its address, or its port, in a few rules a level.

Each chain stands for all numbers with a common prefix, and either holds the rules of the few keys in there or sends on
to the chains of longer prefixes. A chain's shape follows from the keys in its own range alone, so a key that comes or
goes touches the chains on its way and no others, and the same keys make the same chains in whatever order they came.

The kernel's nftables allows sixteen chains on a packet's way. Keys can be chosen so that each level parts one from the
rest; then more of them stand together in a chain, for all of the tree.
"""

from bisect import bisect_left, insort
from collections.abc import Iterator, Mapping
from typing import NamedTuple, Protocol

from pyproxy.kernel.iptables import Chains as Chains
from pyproxy.kernel.iptables import Rules as Rules

STRIDE = 3
"""Bits a level: up to eight ways on. More would walk more rules, fewer make more chains."""
LEAF = 8
"""The most keys whose rules stand together in a chain, unless the tree would be deeper than DEEPEST."""
DEEPEST = 7
"""Chains from the first to the last. Before it are at most two, after it three of a route and four of a chooser."""
INLINE = 3
"""A branch with no more rules than this stands in the chain above, which costs less than a chain of its own."""


class Space(Protocol):
    """What the numbers are: addresses, or ports."""

    @property
    def bits(self) -> int:
        """Of a number."""

    def chain(self, first: int, length: int) -> str:
        """The name of the chain for the numbers that share ``length`` bits with ``first``."""

    def match(self, first: int, length: int) -> str:
        """What tells a packet of those; never asked of all, whose ``length`` is 0."""


class _Range(NamedTuple):
    """The keys of one chain: where they begin and end among all sorted ones, and the prefix they share."""

    start: int
    end: int
    first: int
    length: int


class Tree:
    """Keys are numbers below 2 ** space.bits; each has rules."""

    def __init__(self, space: Space) -> None:
        self._space = space
        self._keys: list[int] = []
        self._rules: dict[int, Rules] = {}
        self._leaf = LEAF

    def change(self, rules: Mapping[int, Rules]) -> tuple[Chains, set[str]]:
        """Set the rules of some keys, empty ones to remove the key; returns the chains that differ and those gone."""
        keys = sorted(rules)
        old = {key: self._rules.get(key, ()) for key in keys}
        before = self._paths(keys)
        self._set(rules)
        after = self._paths(keys)
        leaf = LEAF if self._leaf == LEAF and before.keys() == after.keys() else self._fitting_leaf()
        if leaf != self._leaf:
            self._set(old)
            before = self._paths(self._keys)
            self._set(rules)
            self._leaf = leaf
            after = self._paths(self._keys)
        return {name: new for name, new in after.items() if before.get(name) != new}, before.keys() - after.keys()

    def _set(self, rules: Mapping[int, Rules]) -> None:
        for key, new in rules.items():
            if not new:
                if self._rules.pop(key, None):
                    del self._keys[bisect_left(self._keys, key)]
            else:
                if key not in self._rules:
                    insort(self._keys, key)
                self._rules[key] = new

    def _fitting_leaf(self) -> int:
        """How many keys must stand together."""
        leaf, whole = LEAF, self._whole
        while whole and self._is_deeper(whole, leaf, DEEPEST):
            leaf *= 2
        return leaf

    def _is_deeper(self, here: _Range, leaf: int, limit: int) -> bool:
        """Than ``limit`` chains, with so many keys in the last one."""
        if limit == 0:
            return True
        return here.end - here.start > leaf and any(
            self._is_deeper(branch, leaf, limit - 1) for branch in self._branches(here) if self._inline(branch) is None
        )

    def entry(self, verb: str) -> Rules:
        """The rule that leads to the tree, none if it is empty. ``verb``: -j to come back from it, -g not to; or all of
        the rule's end, if another chain lies between."""
        whole = self._whole
        if whole is None:
            return ()
        chain = [self._space.chain(whole.first, whole.length)] if " " not in verb else []
        match = [self._space.match(whole.first, whole.length)] if whole.length else []
        return (" ".join([*match, verb, *chain]),)

    def _paths(self, keys: list[int]) -> Chains:
        """The chains that may change when ``keys`` do."""
        whole = self._whole
        return dict(self._chains(whole, keys)) if whole and self._may_differ(whole, keys) else {}

    @property
    def _whole(self) -> _Range | None:
        """None without keys."""
        return self._range(0, len(self._keys)) if self._keys else None

    def _range(self, start: int, end: int) -> _Range:
        first, last = self._keys[start], self._keys[end - 1]
        free = (first ^ last).bit_length()
        free = min(free + -free % STRIDE, self._space.bits)
        return _Range(start, end, first >> free << free, self._space.bits - free)

    def _chains(self, here: _Range, touched: list[int]) -> Iterator[tuple[str, Rules]]:
        """The chain of a range and those below, as far as the keys ``touched`` can change them."""
        name = self._space.chain(here.first, here.length)
        if here.end - here.start <= self._leaf:
            yield name, tuple(rule for key in self._keys[here.start : here.end] for rule in self._rules[key])
            return
        rules: list[str] = []
        for branch in self._branches(here):
            inline = self._inline(branch)
            if inline is not None:
                rules += inline
                continue
            match, chain = (make(branch.first, branch.length) for make in (self._space.match, self._space.chain))
            rules.append(f"{match} -g {chain}")
            if self._may_differ(branch, touched):
                yield from self._chains(branch, touched)
        yield name, tuple(rules)

    def _branches(self, here: _Range) -> Iterator[_Range]:
        free = self._space.bits - here.length
        width = 1 << free - (free % STRIDE or STRIDE)
        start = here.start
        while start < here.end:
            border = (self._keys[start] // width + 1) * width
            end = bisect_left(self._keys, border, start, here.end)
            yield self._range(start, end)
            start = end

    def _inline(self, branch: _Range) -> Rules | None:
        if branch.end - branch.start > INLINE:
            return None
        rules = tuple(rule for key in self._keys[branch.start : branch.end] for rule in self._rules[key])
        return rules if len(rules) <= INLINE else None

    def _may_differ(self, branch: _Range, keys: list[int]) -> bool:
        """Whether one of ``keys``, which are sorted, has the branch's prefix; or the branch has few keys, and so may
        just have come from the chain above, or be about to go there."""
        if branch.end - branch.start <= self._leaf:
            return True
        at = bisect_left(keys, branch.first)
        return at < len(keys) and keys[at] < branch.first + (1 << self._space.bits - branch.length)
