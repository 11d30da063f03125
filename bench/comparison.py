"""What ratios of contestants to the floor, and to each other, say together: who differs, and who is the best."""

from collections.abc import Callable, Mapping, Sequence
from functools import cache

from bench.contestant import CONTROL, FLOOR
from bench.estimate import FEWEST_ROUNDS, Estimate, is_told_apart, resolution


class Comparison:
    """Of one way and measure."""

    def __init__(
        self, ratio: Callable[[str, str], Estimate | None], rounds: int, *, less_is_better: bool = True
    ) -> None:
        """``ratio``: of the p50 of one contestant to that of another; None if one of them has none."""
        self.ratio = cache(ratio)
        self._rounds = rounds
        self._less_is_better = less_is_better

    @property
    def resolution(self) -> float | None:
        """What chance does to a ratio, as a share; None if that is not known, or has no limit."""
        control = self.ratio(CONTROL, FLOOR)
        return None if control is None or not control.low or self._rounds < FEWEST_ROUNDS else resolution(control)

    def differs(self, name: str) -> bool | None:
        """Whether it is told apart from the floor; None if nothing can be said."""
        ratio, chance = None if name == FLOOR else self.ratio(name, FLOOR), self.resolution
        return None if ratio is None or chance is None else is_told_apart(ratio, chance)

    def fastest(self, names: Sequence[str]) -> list[str]:
        """The best of them, and after it those that are not told apart from it; none if nothing is told."""
        chance = self.resolution
        ratios = {name: ratio.value for name in names if (ratio := self.ratio(name, FLOOR))}
        if chance is None or not ratios:
            return []
        best, *others = sorted(ratios, key=ratios.__getitem__, reverse=not self._less_is_better)
        between = {name: self.ratio(name, best) for name in others}
        return [best, *(name for name, ratio in between.items() if not (ratio and is_told_apart(ratio, chance)))]


def visibility(comparisons: Mapping[str, Comparison], rounds: int) -> str:
    """How small a difference is seen, as a sentence. ``comparisons``: all of them, by their titles."""
    known = [(chance, title) for title, one in comparisons.items() if (chance := one.resolution) is not None]
    if not known:
        return f"With {rounds} rounds nothing is told apart: that takes {FEWEST_ROUNDS}, better 60."
    chance, title = max(known)
    return f"What is smaller than chance is not seen, and that is up to {chance:.1%} here ({title})."
