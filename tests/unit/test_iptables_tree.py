"""The radix tree of chains, walked as the kernel walks it: what is found, at what cost, and what a change costs."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from ipaddress import ip_network
from math import ceil
from random import Random
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from modes.iptables.space import Addresses, Ports
from modes.iptables.tree import DEEPEST, INLINE, LEAF, STRIDE, Chains, Rules, Space, Tree
from pyproxy.kernel.iptables_dialect import DIALECTS, Dialect
from pyproxy.table import Family, Transport

STEADY = settings(deadline=None, max_examples=50)  # the time of one example says nothing on a busy machine
SPACES: dict[str, Space] = {
    "IPv4": Addresses(DIALECTS[Family.IPV4], "X"),
    "IPv6": Addresses(DIALECTS[Family.IPV6], "X"),
    "ports": Ports("tcp"),
}
ALL = pytest.mark.parametrize("space", SPACES.values(), ids=SPACES)
MOST_RULES = INLINE + 2
"""Of one key here: some have more than may stand in the chain above."""


def rules_of(space: Space, key: int, count: int) -> Rules:
    """What only a packet to ``key`` meets: all of them, in this order."""
    return tuple(f"{space.match(key, space.bits)} -j RULE-{key}-{number}" for number in range(count))


class Step(NamedTuple):
    """A rule, as the kernel has it."""

    first: int
    last: int
    verb: str
    target: str


@cache
def step_of(rule: str, bits: int) -> Step:
    """What it is not sure of, it refuses: an option it does not know, a prefix with bits beyond its length."""
    *words, verb, target = rule.split(" ")
    assert verb in ("-j", "-g")
    options = dict(zip(words[::2], words[1::2], strict=True))
    first, last = 0, (1 << bits) - 1
    if "-d" in options:
        network = ip_network(options.pop("-d"))
        assert network.max_prefixlen == bits
        first, last = int(network.network_address), int(network.broadcast_address)
    elif options:
        assert options.pop("-p") == "tcp"
        ends = options.pop("--dport").split(":")
        assert options.pop("-m") == "tcp"
        first, last = int(ends[0]), int(ends[-1])
        assert 0 <= first <= last < 1 << bits
    assert not options
    return Step(first, last, verb, target)


@dataclass
class Walk:
    """One packet that nothing accepts goes all the way."""

    chains: Chains
    bits: int
    number: int
    met: list[str] = field(default_factory=list)
    """Of rules of keys."""
    looked_at: int = 0
    """Rules, those that lead on included."""
    entered: list[str] = field(default_factory=list)

    def run(self, rules: Rules) -> "Walk":
        for rule in rules:
            self.looked_at += 1
            step = step_of(rule, self.bits)
            if not step.first <= self.number <= step.last:
                continue
            if step.target.startswith("RULE-"):
                self.met.append(step.target)
                continue
            self.entered.append(step.target)
            self.run(self.chains[step.target])
            if step.verb == "-g":  # whoever sent the packet here goes on where this chain was jumped to
                break
        return self


def filled(space: Space, rules: Mapping[int, Rules]) -> tuple[Tree, Chains]:
    tree = Tree(space)
    chains, gone = tree.change(rules)
    assert not gone
    return tree, chains


def walk(tree: Tree, chains: Chains, space: Space, number: int) -> Walk:
    return Walk(chains, space.bits, number).run(tree.entry("-j"))


def most_levels(span: int) -> int:
    """How many chains lead to a key, if all keys share what is above ``span`` bits.

    A chain of more than LEAF keys hands at least one of its bits on decided, and whatever it hands on begins at a
    multiple of STRIDE; below the last multiple there are too few numbers for more than a leaf.
    """
    assert LEAF >= 1 << STRIDE
    return max(1, ceil(span / STRIDE))


def most_rules(span: int, a_key: int = 1, leaf: int = LEAF) -> int:
    """How many rules a packet to any number looks at, if no key has more than ``a_key``.

    The rule of entry, then for each level all ways on, each of which is one rule or at most INLINE that stand there
    themselves; and the last chain may hold LEAF keys, or ``leaf``, if the tree would else be deeper than DEEPEST.
    """
    ways_on = (1 << STRIDE) * max(1, INLINE if a_key <= INLINE else 1)
    levels = most_levels(span) if leaf == LEAF else min(most_levels(span), DEEPEST)
    return 1 + (levels - 1) * ways_on + max(ways_on, leaf * a_key)


def keys_in(space: Space) -> SearchStrategy[int]:
    """Far apart, at the borders, and all over."""
    last = (1 << space.bits) - 1
    low, high = st.integers(0, 40), st.integers(last - 40, last)
    powers = st.integers(0, space.bits - 1).map(lambda bit: 1 << bit)
    return low | high | powers | st.integers(0, last)


def runs_in(space: Space) -> SearchStrategy[list[int]]:
    """Close together: some of those that follow a key, which may be few enough for a leaf, or just too many."""
    last, distances = (1 << space.bits) - 1, st.sampled_from((1, 1, 2, 7))
    starts = keys_in(space) | st.just((last >> 1) - LEAF // 2)
    return st.builds(
        lambda start, count, by: [key for key in range(start, start + count * by, by) if key <= last],
        *(starts, st.integers(LEAF - 2, 3 * LEAF), distances),
    )


def counts_in(space: Space) -> SearchStrategy[dict[int, int]]:
    """How many rules keys have from then on: none, and the key goes."""
    counts = st.sampled_from((0, 0, 1, 1, 1, 2, MOST_RULES))
    alike = st.tuples(runs_in(space), counts).map(lambda drawn: dict.fromkeys(drawn[0], drawn[1]))
    return (
        alike
        | st.dictionaries(keys_in(space), counts, max_size=30)
        | st.dictionaries(keys_in(space), counts, max_size=2)
    )


@ALL
@STEADY
@given(st.data())
def test_any_history_ends_in_the_chains_of_a_fresh_tree(space: Space, data: st.DataObject) -> None:
    tree, held = Tree(space), dict[int, Rules]()
    chains: Chains = {}
    for batch in data.draw(st.lists(counts_in(space), min_size=1, max_size=8)):
        going = data.draw(st.lists(st.sampled_from(list(held)), max_size=5)) if held else []
        change = {key: rules_of(space, key, count) for key, count in (batch | dict.fromkeys(going, 0)).items()}
        changed, gone = tree.change(change)
        assert gone <= chains.keys()
        assert not gone & changed.keys()
        assert all(chains.get(name) != rules for name, rules in changed.items())
        chains = {name: rules for name, rules in (chains | changed).items() if name not in gone}
        held = {key: rules for key, rules in (held | change).items() if rules}
        fresh, wanted = filled(space, dict(reversed(held.items())))
        assert chains == wanted
        assert tree.entry("-j") == fresh.entry("-j")
    order = data.draw(st.permutations(list(held)))
    one_by_one = Tree(space)
    grown: Chains = {}
    for key in order:
        changed, gone = one_by_one.change({key: held[key]})
        grown = {name: rules for name, rules in {**grown, **changed}.items() if name not in gone}
    assert grown == wanted


@ALL
@STEADY
@given(st.data())
def test_a_packet_meets_the_rules_of_its_key_and_no_others(space: Space, data: st.DataObject) -> None:
    drawn = data.draw(st.lists(counts_in(space), min_size=1, max_size=6))
    counts = {key: count for batch in drawn for key, count in batch.items() if count}
    tree, chains = filled(space, {key: rules_of(space, key, count) for key, count in counts.items()})
    span = (min(counts) ^ max(counts)).bit_length() if counts else 0
    entered: set[str] = set()
    for number in (*counts, *data.draw(st.lists(keys_in(space), max_size=10))):
        found = walk(tree, chains, space, number)
        assert found.met == [f"RULE-{number}-{index}" for index in range(counts.get(number, 0))]
        assert len(found.entered) <= most_levels(span)
        assert found.looked_at <= most_rules(span, MOST_RULES, tree._leaf)
        entered.update(found.entered)
    assert entered == chains.keys()  # nothing is there that no key needs
    assert all(chains.values())


@ALL
@pytest.mark.parametrize("length", [1, 5, LEAF, LEAF + 1, 64, 1000, 5000])
def test_to_find_one_of_many_in_a_row_takes_a_logarithm_of_how_many_there_are(space: Space, length: int) -> None:
    """As an allocator hands them out. Wherever they begin: a border between them is passed in one more level."""
    last = (1 << space.bits) - 1
    longest = (length - 1).bit_length()
    for start in (0, (1 << space.bits - 1) - length // 2, last - length + 1, 0x1234567890ABCDEF7777 & last >> 2):
        keys = range(start, start + length)
        tree, chains = filled(space, {key: rules_of(space, key, 1) for key in keys})
        for key in keys[:: max(1, length // 50)]:
            found = walk(tree, chains, space, key)
            assert len(found.entered) <= 1 + most_levels(longest)
            assert found.looked_at <= most_rules(longest) + (1 << STRIDE) * INLINE


@ALL
def test_to_find_one_of_many_anywhere_takes_a_logarithm_of_the_space(space: Space) -> None:
    """However keys lie: those that share the longest prefixes with others and still differ, here by powers of two."""
    random = Random(7)
    last = (1 << space.bits) - 1
    keys = {1 << bit for bit in range(space.bits)} | {last ^ 1 << bit for bit in range(space.bits)}
    keys |= {random.randint(0, last) for _ in range(3000)}
    tree, chains = filled(space, {key: rules_of(space, key, 1) for key in keys})
    walks = [walk(tree, chains, space, key) for key in keys]
    assert max(found.looked_at for found in walks) <= most_rules(space.bits)
    assert max(len(found.entered) for found in walks) <= most_levels(space.bits)
    # Those at random decide three bits a level, until few are left.
    assert sum(len(found.entered) for found in walks) / len(walks) <= most_levels(len(keys).bit_length()) + 2


@ALL
@pytest.mark.parametrize("count", [1, LEAF, LEAF + 1, 3 * LEAF, 200])
@pytest.mark.parametrize("far", ["below", "above"])
def test_a_key_far_from_all_others_makes_a_way_in_before_theirs(space: Space, count: int, far: str) -> None:
    last = (1 << space.bits) - 1
    start, other = (last - 1000, 0) if far == "below" else (1000, last)
    tree, chains = filled(space, {key: rules_of(space, key, 1) for key in range(start, start + count)})
    changed, gone = tree.change({other: rules_of(space, other, 1)})
    wider = {name: rules for name, rules in (chains | changed).items() if name not in gone}
    for key in (other, start, start + count - 1):
        assert walk(tree, wider, space, key).met == [f"RULE-{key}-0"]
    changed, gone = tree.change({other: ()})
    assert {name: rules for name, rules in (wider | changed).items() if name not in gone} == chains


def most_changed(a_key: int) -> int:
    """How many chains one key with ``a_key`` rules can change, coming or going: a chain's shape depends on its own keys
    alone, so it is one way down, and above the place where the key then stands nothing is other than it was.

    There the chain above may change, because the prefix that it sends on for does; the chain for that prefix, which
    then has another name; and, if it had LEAF keys, all that it splits into.
    """
    return 1 + 2 + min(1 << STRIDE, (LEAF + 1) // (INLINE // a_key + 1))


@ALL
@pytest.mark.parametrize("a_key", [1, MOST_RULES])
def test_one_key_changes_few_chains(space: Space, a_key: int) -> None:
    random, last = Random(3), (1 << space.bits) - 1
    some = [random.randint(0, last) for _ in range(100)]
    dense = [start + offset for start in some[:5] for offset in random.sample(range(200), 60)]
    keys = [key for key in dict.fromkeys(some + dense) if key <= last]
    random.shuffle(keys)
    tree = Tree(space)
    costs = []
    for count in (a_key, 0):
        for key in keys:
            changed, gone = tree.change({key: rules_of(space, key, count)})
            costs.append(len(changed) + len(gone))
    assert max(costs) <= most_changed(a_key)
    assert sum(costs) / len(costs) < 3


def depth_of(chains: Chains) -> int:
    """The most chains on a packet's way through a tree."""
    below = {name: [rule.split(" -g ")[1] for rule in rules if " -g " in rule] for name, rules in chains.items()}

    def depth(name: str) -> int:
        return 1 + max((depth(one) for one in below[name] if one in chains), default=0)

    return max((depth(name) for name in chains), default=0)


@ALL
def test_no_keys_make_it_deeper_than_the_kernel_allows(space: Space) -> None:
    """Keys of which each level parts one from all others, coming and going in any order."""
    crafted = [*range(9), *(9 + (1 << bit) for bit in range(4, space.bits))]
    random, tree = Random(9), Tree(space)
    chains: Chains = {}
    for _ in range(3):
        for count in (1, 0):
            random.shuffle(crafted)
            for number, key in enumerate(crafted):
                changed, gone = tree.change({key: rules_of(space, key, count)})
                chains = {name: rules for name, rules in (chains | changed).items() if name not in gone}
                here = crafted[: number + 1] if count else crafted[number + 1 :]
                assert depth_of(chains) <= DEEPEST
                assert chains == filled(space, {key: rules_of(space, key, 1) for key in here})[1]
    assert chains == {}


@ALL
def test_other_rules_for_a_key_change_the_chain_where_they_stand(space: Space) -> None:
    keys = range(100)
    tree, _ = filled(space, {key: rules_of(space, key, 1) for key in keys})
    for key in keys:
        changed, gone = tree.change({key: (f"{space.match(key, space.bits)} -j OTHER",)})
        assert len(changed) == 1
        assert not gone
        assert tree.change({key: (f"{space.match(key, space.bits)} -j OTHER",)}) == ({}, set())


@ALL
def test_a_key_that_was_not_there_goes_without_a_trace(space: Space) -> None:
    tree, chains = filled(space, {5: rules_of(space, 5, 1)})
    assert tree.change({4: (), 6: ()}) == ({}, set())
    assert tree.change({}) == ({}, set())
    assert tree.change({5: ()}) == ({}, set(chains))
    assert tree.change({5: ()}) == ({}, set())


@ALL
def test_names_are_short_and_unique(space: Space) -> None:
    """Of all prefixes of some numbers: the kernel takes 28 characters, and iptables none that begin like an option."""
    random, last = Random(5), (1 << space.bits) - 1
    numbers = [0, 1, last, last - 1, last >> 1, *(random.randint(0, last) for _ in range(50))]
    prefixes = {
        (n >> space.bits - length << space.bits - length, length) for n in numbers for length in range(space.bits + 1)
    }
    names = {space.chain(*prefix) for prefix in prefixes}
    assert len(names) == len(prefixes)
    assert max(map(len, names)) <= 28
    assert all(name.startswith("PYPROXY-") and " " not in name for name in names)


@pytest.mark.parametrize("d", DIALECTS.values(), ids=lambda d: d.family.value)
def test_trees_of_one_table_share_no_name(d: Dialect) -> None:
    spaces: list[Space] = [Addresses(d, letter) for letter in "XCH"]
    spaces += [Ports(transport.value) for transport in Transport]
    for first, length in ((0, 0), (0, 1), (1 << 15, 16)):
        assert len({space.chain(first, length) for space in spaces}) == len(spaces)


IPV4, IPV6, TCP = SPACES.values()


@pytest.mark.parametrize(
    ("space", "keys", "verb", "entry"),
    [
        (IPV4, [], "-j", ()),
        (IPV4, [0x0A600001], "-j", ("-d 10.96.0.1/32 -j PYPROXY-X-10.96.0.1/32",)),
        (IPV4, [0x0A600001, 0x0A600002], "-g", ("-d 10.96.0.0/29 -g PYPROXY-X-10.96.0.0/29",)),
        (IPV4, [0x0A600001, 0x0A600010], "-j", ("-d 10.96.0.0/26 -j PYPROXY-X-10.96.0.0/26",)),
        (IPV4, [0x0A600001, 0x0A600002], "-j LONGER-WAY", ("-d 10.96.0.0/29 -j LONGER-WAY",)),
        (IPV4, [0, 0x80000000], "-j", ("-j PYPROXY-X-0.0.0.0/0",)),
        (IPV4, [0, 0x80000000], "-g", ("-g PYPROXY-X-0.0.0.0/0",)),
        (IPV4, [0, 0x80000000], "-g LONGER-WAY", ("-g LONGER-WAY",)),
        (IPV6, [], "-g", ()),
        (IPV6, [0xFD96 << 112 | 1], "-j", ("-d fd96::1/128 -j PYPROXY-X-fd96::1/128",)),
        (
            IPV6,
            [0xFD96_0010_0020_0030 << 64 | 1, 0xFD96_0010_0020_0030 << 64 | 15],  # a name too long is hashed
            "-g",
            ("-d fd96:10:20:30::/122 -g PYPROXY-X-IOG74I5FQ7Q6EM/122",),
        ),
        (IPV6, [1, 1 << 127], "-j", ("-j PYPROXY-X-::/0",)),
        (TCP, [30080], "-j", ("-p tcp -m tcp --dport 30080 -j PYPROXY-TCP-30080",)),
        (TCP, [30080, 30081], "-j", ("-p tcp -m tcp --dport 30080:30087 -j PYPROXY-TCP-30080:30087",)),
        (TCP, [30000, 32767], "-g", ("-p tcp -m tcp --dport 28672:32767 -g PYPROXY-TCP-28672:32767",)),
        (TCP, [0, 65535], "-j", ("-j PYPROXY-TCP-0:65535",)),
        (TCP, [30000, 32767], "-j LONGER-WAY", ("-p tcp -m tcp --dport 28672:32767 -j LONGER-WAY",)),
    ],
)
def test_the_way_into_a_tree(space: Space, keys: list[int], verb: str, entry: Rules) -> None:
    tree, _ = filled(space, {key: rules_of(space, key, 1) for key in keys})
    assert tree.entry(verb) == entry
    tree.change(dict.fromkeys(keys, ()))
    assert tree.entry(verb) == ()


def test_a_chain_holds_so_many_keys_and_one_more_splits_it() -> None:
    keys = [*range(4), *range(32, 36), 36]
    sizes = []
    for count in (LEAF, LEAF + 1):
        _, chains = filled(IPV4, {key: rules_of(IPV4, key, 1) for key in keys[:count]})
        sizes.append([len(rules) for rules in chains.values()])
    assert sizes == [[LEAF], [4, 5, 2]]


def test_one_tree_in_full() -> None:
    """Ways on with few rules stand in the chain above, the others have chains of their own."""
    alone = dict.fromkeys((30000, 30001, 30003, 30004, 31000, 32765, 32766, 32767), 1)
    counts = alone | {30100: 2, 30700: 3, 31300: 4}
    _, chains = filled(TCP, {key: rules_of(TCP, key, count) for key, count in counts.items()})
    assert {name: [rule.removeprefix("-p tcp -m tcp --dport ") for rule in chains[name]] for name in chains} == {
        "PYPROXY-TCP-28672:32767": [
            "29696:30207 -g PYPROXY-TCP-29696:30207",
            *(f"30700 -j RULE-30700-{number}" for number in range(3)),
            "31000 -j RULE-31000-0",
            "31300 -g PYPROXY-TCP-31300",
            "32765 -j RULE-32765-0",
            "32766 -j RULE-32766-0",
            "32767 -j RULE-32767-0",
        ],
        "PYPROXY-TCP-29696:30207": [
            "30000 -j RULE-30000-0",
            "30001 -j RULE-30001-0",
            "30003 -j RULE-30003-0",
            "30004 -j RULE-30004-0",
            "30100 -j RULE-30100-0",
            "30100 -j RULE-30100-1",
        ],
        "PYPROXY-TCP-31300": [f"31300 -j RULE-31300-{number}" for number in range(4)],
    }
