"""Which counter each service has."""

from collections.abc import Mapping

from ebpf import layout


class Numbers:
    """Given one after the other, and again only when all have been: flows of a service that is gone may count yet."""

    def __init__(self, size: int, names: Mapping[bytes, bytes]) -> None:
        """``size``: of the map counters; ``names``: what that map holds from before, so that services keep theirs."""
        self._size = size
        numbers = ((name, layout.read_number(key)) for key, name in names.items())
        self._known = {name: number for name, number in numbers if layout.COUNTER_FIRST <= number < size}
        self._kept = set(self._known.values())
        self._next = max(self._known.values(), default=layout.COUNTER_FIRST - 1) + 1
        self._taken: set[int] = set()
        self._anew: set[int] = set()

    def take(self, name: bytes) -> int:
        """Its own from before, else any; COUNTER_OTHERS if none is left."""
        number = self._known.pop(name, None)
        if number is None:
            if len(self._taken) + len(self._kept) >= self._size - layout.COUNTER_FIRST:
                return layout.COUNTER_OTHERS
            number = self._next
            while number >= self._size or number in self._taken or number in self._kept:
                number = number + 1 if number < self._size else layout.COUNTER_FIRST
            self._next = number + 1
            self._anew.add(number)
        self._kept.discard(number)
        self._taken.add(number)
        return number

    def give_back(self, number: int) -> None:
        self._taken.discard(number)

    def settle(self) -> set[int]:
        """All that are there have theirs. Returns which were given since, and may have been another's before."""
        self._known.clear()
        self._kept.clear()
        anew, self._anew = self._anew, set()
        return anew
