"""Maglev's consistent hashing: nodes that know the same backends choose the same one for the same flow.

Eisenbud et al., "Maglev: A Fast and Reliable Software Network Load Balancer", NSDI 2016, section 3.4. Each backend has
a permutation of the places of a table, made of two hashes of its name; in turn each takes the first place of its own
that is free yet, until there is none. So all have as many places as the others, give or take one; and when one backend
goes, most of the others' places stay theirs.
"""

import hashlib
from collections.abc import Sequence

SIZES = (251, 2039, 16381, 65521)
"""Primes: so every skip leads through all of a table.

The larger a table, the more even it is, and the fewer flows move that need not; the paper has one size, 65,537. But a
table of that size costs 128 KiB for each service, and tens of milliseconds to make. So a service gets the smallest with
ten places for each backend at least, where one more or less is a tenth: up to 25 backends have the first, which is
1 KiB in the kernel, 10 MiB for 10,000 services. A service that grows beyond a size is hashed anew.
"""
_PLACES_EACH = 10


def size_for(backends: int) -> int:
    """How many places a table of so many has; 0: there are too many for any, or no choice."""
    if not 1 < backends <= SIZES[-1]:
        return 0
    return next((size for size in SIZES if size >= _PLACES_EACH * backends), SIZES[-1])


def table(names: Sequence[bytes]) -> list[int]:
    """For each place the index in ``names`` of who has it; empty if `size_for` says 0.

    The names are all different. In which order they come makes no difference to who has which place.
    """
    if not (size := size_for(len(names))):
        return []
    places = [0] * size
    turns = []
    for name, index in sorted((name, index) for index, name in enumerate(names)):
        hashed = hashlib.blake2b(name, digest_size=16).digest()
        offset, skip = (int.from_bytes(half, "big") for half in (hashed[:8], hashed[8:]))
        turns.append((index, offset % size, skip % (size - 1) + 1))
    is_free = bytearray(b"\1" * size)
    left = size
    while left:
        following = []
        for index, place, skip in turns[:left]:
            while not is_free[place]:
                place = (place + skip) % size
            is_free[place] = 0
            places[place] = index
            following.append((index, (place + skip) % size, skip))
        left -= len(following)
        turns = following
    return places
