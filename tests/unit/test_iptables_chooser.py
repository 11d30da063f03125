"""One endpoint of many: each as likely, found in few rules, and with few chains that change."""

from collections.abc import Iterator
from fractions import Fraction
from functools import cache
from math import ceil, log2

import pytest

from modes.iptables.chooser import FEW, choose
from modes.iptables.ruleset import SHARE
from modes.iptables.tree import Chains, Rules
from pyproxy.address import IP
from pyproxy.kernel import iptables
from pyproxy.kernel.iptables import Flavour
from pyproxy.kernel.iptables_dialect import DIALECTS
from pyproxy.table import Backend
from tests.unit.iptables_world import fresh_host

MOST = 1 << 15
SIZES = (*range(1, 201), 1000, 1024, 1025, 5000, MOST)
BACKENDS = tuple(Backend(IP(f"10.{number >> 8}.{number & 255}.1"), 80, False) for number in range(MOST))
NUMBER_OF = {backend: number for number, backend in enumerate(BACKENDS)}
WHOLE = 0x80000000
"""xt_statistic keeps a probability as so many parts."""


@cache
def chosen(size: int) -> tuple[Rules, Chains]:
    """Rules end in ``-j`` and the number of an endpoint, or in ``-g`` and that of a chain."""
    return choose(BACKENDS[:size], lambda chance, backend: f"{chance} -j {NUMBER_OF[backend]}".strip(), str)


def chance_of(rule: str) -> Fraction:
    """As the kernel will have it: iptables rounds to what it keeps."""
    words = rule.split(" ")[:-2]
    if not words:
        return Fraction(1)
    assert words[:5] == ["-m", "statistic", "--mode", "random", "--probability"]
    assert len(words) == 6
    return Fraction(round(Fraction(words[5]) * WHOLE), WHOLE)


def endings(rules: Rules, chains: Chains, arriving: Fraction, walked: int) -> Iterator[tuple[int, Fraction, int]]:
    """Each endpoint with its probability, and how many rules are looked at until it is chosen."""
    for rule in rules:
        walked += 1
        here = arriving * chance_of(rule)
        verb, target = rule.split(" ")[-2:]
        if verb == "-g":
            yield from endings(chains[target], chains, here, walked)
        else:
            assert verb == "-j"
            yield int(target), here, walked
        arriving -= here
    assert "-m" not in rules[-1]
    assert arriving == 0  # whatever comes here is given an endpoint


def test_every_endpoint_is_as_likely_and_found_in_few_rules() -> None:
    for size in SIZES:
        found = list(endings(*chosen(size), Fraction(1), 0))
        assert [number for number, _, _ in found] == list(range(size)), size
        assert sum(chance for _, chance, _ in found) == 1, size
        assert all(abs(chance * size - 1) < 1e-6 for _, chance, _ in found), size
        # Eight rules a level tell eight branches apart, until few are left.
        levels = next(level for level in range(9) if size <= FEW ** (level + 1))
        assert max(walked for _, _, walked in found) <= FEW * (levels + 1), size


def test_each_chain_has_a_number_of_its_own_and_is_come_to_once() -> None:
    for size in SIZES:
        made: list[int] = []

        def name(number: int, made: list[int] = made) -> str:
            made.append(number)
            return str(number)

        rules, chains = choose(BACKENDS[:size], lambda chance, _: chance, name)
        assert len(set(made)) == len(made) == len(chains), size
        assert all(0 <= number < 1 << 15 for number in made), size
        targets = [rule.split(" ")[-1] for some in (rules, *chains.values()) for rule in some if "-g" in rule]
        assert sorted(targets) == sorted(chains), size


def test_one_endpoint_more_or_less_changes_the_chains_on_its_way() -> None:
    """The last endpoint is in one chain of each level; and where a chain is full, it splits."""
    for size in (size for size in SIZES if size < MOST):
        (_, fewer), (_, more) = chosen(size), chosen(size + 1)
        differing = [name for name in fewer.keys() | more.keys() if fewer.get(name) != more.get(name)]
        assert len(differing) <= 2 + ceil(log2(max(1, (size + 1) / FEW))), size
        assert fewer.keys() <= more.keys(), size


@pytest.mark.parametrize(
    ("size", "rules", "chains"),
    [
        (1, ("-j 0",), {}),
        (3, ("0.33333333349 -j 0", "0.50000000000 -j 1", "-j 2"), {}),
        (
            9,
            ("0.88888888899 -g 0", "-g 1"),
            {
                "0": (
                    "0.12500000000 -j 0",
                    "0.14285714272 -j 1",
                    "0.16666666651 -j 2",
                    "0.20000000019 -j 3",
                    "0.25000000000 -j 4",
                    "0.33333333349 -j 5",
                    "0.50000000000 -j 6",
                    "-j 7",
                ),
                "1": ("-j 8",),
            },
        ),
    ],
)
def test_the_rules_in_full(size: int, rules: Rules, chains: Chains) -> None:
    def short(some: Rules) -> Rules:
        return tuple(rule.removeprefix("-m statistic --mode random --probability ") for rule in some)

    given, made = chosen(size)
    assert short(given) == rules
    assert {name: short(some) for name, some in made.items()} == chains


@pytest.mark.parametrize(
    ("size", "ways"),
    [
        (16, {"": "0 1"}),
        (17, {"": "0 1 2"}),
        (65, {"": "4096 8", "4096": "0 1 2 3 4 5 6 7"}),
        (80, {"": "4096 4097", "4096": "0 1 2 3 4 5 6 7", "4097": "8 9"}),
    ],
)
def test_what_leads_where(size: int, ways: dict[str, str]) -> None:
    """Full branches first, so that they stay as they are when more come."""
    rules, chains = chosen(size)
    found = {
        name: " ".join(rule.split(" ")[-1] for rule in some if "-g" in rule)
        for name, some in ({"": rules} | chains).items()
    }
    assert {name: targets for name, targets in found.items() if targets} == ways


@pytest.mark.parametrize("flavour", Flavour)
def test_the_kernel_tells_probabilities_as_they_were_written(flavour: Flavour) -> None:
    """What reads other than it was written is drift, and would be repaired for ever."""
    made = [chosen(size) for size in range(1, 4000, 41)]
    texts = {rule.rpartition(" -")[0] for rules, chains in made for some in (rules, *chains.values()) for rule in some}
    rules = tuple(f"{text} -j ACCEPT".strip() for text in sorted(texts))
    assert len(rules) > 200
    with fresh_host():
        for d in DIALECTS.values():
            iptables.load(d, flavour, iptables.script("nat", {"PYPROXY-X": rules}))
            assert iptables.read(SHARE, d, flavour)["nat"].chains["PYPROXY-X"] == rules
