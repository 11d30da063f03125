"""The command line: which kernel, for how long, and what to run in it."""

import argparse
import signal
import sys
from pathlib import Path

from tests.kernels.guest import Guest, NoKernel
from tests.kernels.qemu import Qemu
from tests.kernels.uml import Uml

_MACHINES = {"uml": Uml, "qemu": Qemu}


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.kernels",
        description="Run a command of this checkout inside another Linux kernel. Its output comes as it is written; "
        "its exit status is ours, or 124 if it took too long, 125 if the kernel died.",
        epilog="Example: python -m tests.kernels uml -- pytest tests/conformance --mode ipvs",
    )
    parser.add_argument("kernel", choices=_MACHINES, help="uml: Debian's user-mode Linux, a 6.1 with IPVS")
    parser.add_argument("--timeout", type=float, default=3600, metavar="SECONDS", help="(default: 3600)")
    parser.add_argument("--memory", default="3G", metavar="SIZE", help="of the guest (default: 3G)")
    text = "a file or folder that the command makes, and where it is put here (default: the same place)"
    parser.add_argument("--bring", type=_bring, action="append", default=[], metavar="PATH[=PATH]", help=text)
    parser.add_argument("command", nargs="+", metavar="COMMAND", help="after --")
    options = parser.parse_args()
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)
    try:
        guest = Guest(_MACHINES[options.kernel](), options.memory)
        return guest.run(options.command, options.timeout, dict(options.bring))
    except NoKernel as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def _bring(text: str) -> tuple[Path, Path]:
    there, _, here = text.partition("=")
    return Path(there).absolute(), Path(here or there).absolute()


if __name__ == "__main__":
    sys.exit(main())
