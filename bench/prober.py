"""The client of measurements: a process that does nothing else, pinned to a CPU. `python -m bench.prober CPU`

Each place that it asks from is a thread which lives there, and all but one of them are asleep.
"""

import gc
import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Self

import msgspec

from bench.measure import Caller, Samples, Target
from bench.place import Place


class Order(msgspec.Struct, frozen=True):
    """One line to the process; a line of Samples comes back."""

    place: Place
    measure: str
    targets: list[Target]
    count: int


class Prober:
    """The process, for who orders measurements. Use as a context manager, inside of that of its places."""

    def __init__(self, cpu: int) -> None:
        self._cpu = cpu

    def __enter__(self) -> Self:
        command = [sys.executable, "-m", "bench.prober", str(self._cpu)]
        # In a process group of its own, so that Ctrl-C reaches only the one who cleans up.
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, process_group=0)
        return self

    @property
    def pid(self) -> int:
        return self._process.pid

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            pipe.close()

    def measure(self, place: Place, name: str, targets: Sequence[Target], count: int) -> Samples:
        """As `Caller.measure` does, from ``place``. Raises OSError if the process has ended."""
        assert self._process.stdin is not None and self._process.stdout is not None
        order = Order(place, name, list(targets), count)
        self._process.stdin.write(msgspec.json.encode(order) + b"\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            raise ChildProcessError("the measuring client has ended; what it said is above")
        return msgspec.json.decode(answer, type=Samples)


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
