"""What a stranger may do to userspace mode's relay: `python -m tests.conformance.meddle end`, or `take ENDPOINT`."""

import os
import signal
import sys
from itertools import filterfalse

import msgspec

from modes.userspace.relay_process import found, processes


def main() -> None:
    if sys.argv[1] == "end":
        for process in processes():
            os.kill(process, signal.SIGKILL)
        return
    (relay,) = found()
    gone = sys.argv[2].__eq__
    poorer = [
        msgspec.structs.replace(
            entry,
            outside=tuple(filterfalse(lambda one: gone(one[0]), entry.outside)),
            inside=tuple(filterfalse(lambda one: gone(one[0]), entry.inside)),
        )
        for entry in relay.entries.values()
    ]
    relay.change(poorer, [], {}, relay.site)


if __name__ == "__main__":
    main()
