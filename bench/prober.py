"""The client of measurements: a process that does nothing else, pinned to a CPU. `python -m bench.prober CPU`

Each place that it asks from is a thread which lives there, and all but one of them are asleep.
"""

import gc
import os
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import msgspec

from bench.helper import Helper
from bench.measure import Caller, Samples, Target
from bench.place import Place


class Order(msgspec.Struct, frozen=True):
    """One line to the process; a line of Samples comes back."""

    place: Place
    measure: str
    targets: list[Target]
    count: int


class Prober(Helper):
    """The process, for who orders measurements. Use as a context manager, inside of that of its places."""

    def __init__(self, cpu: int) -> None:
        super().__init__("bench.prober", str(cpu))

    def measure(self, place: Place, name: str, targets: Sequence[Target], count: int) -> Samples:
        """As `Caller.measure` does, from ``place``. Raises ChildProcessError if the process has ended."""
        order = Order(place, name, list(targets), count)
        return msgspec.json.decode(self.exchange(msgspec.json.encode(order)), type=Samples)


def main() -> None:
    os.sched_setaffinity(0, {int(sys.argv[1])})
    gc.freeze()
    gc.disable()  # sockets end with their last reference, and a collection would be somebody's p99
    decoder = msgspec.json.Decoder(Order)
    threads: dict[Place, tuple[ThreadPoolExecutor, Caller]] = {}
    for line in sys.stdin.buffer:
        order = decoder.decode(line)
        if order.place not in threads:
            threads[order.place] = ThreadPoolExecutor(1, initializer=order.place.enter), Caller()
        thread, caller = threads[order.place]
        samples = thread.submit(caller.measure, order.measure, order.targets, order.count).result()
        sys.stdout.buffer.write(msgspec.json.encode(samples) + b"\n")
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
