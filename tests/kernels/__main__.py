"""The command line: which kernel, for how long, and what to run in it."""

import argparse
import signal
import sys
from pathlib import Path

from tests.kernels.uml import NoKernel, Uml

_KERNELS = {"uml": Uml}


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.kernels",
        description="Run a command of this checkout inside another Linux kernel. Its output comes as it is written; "
        "its exit status is ours, or 124 if it took too long, 125 if the kernel died.",
        epilog="Example: python -m tests.kernels uml -- pytest tests/conformance --mode ipvs",
    )
    parser.add_argument("kernel", choices=_KERNELS, help="uml: Debian's user-mode Linux, a 6.1 with IPVS")
    parser.add_argument("--timeout", type=float, default=3600, metavar="SECONDS", help="(default: 3600)")
    parser.add_argument("--memory", default="3G", metavar="SIZE", help="of the guest (default: 3G)")
    text = "a file or folder that the command makes: it is put to the same place here"
    parser.add_argument("--bring", type=Path, action="append", default=[], metavar="PATH", help=text)
    parser.add_argument("command", nargs="+", metavar="COMMAND", help="after --")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        bring = [path.absolute() for path in options.bring]
        return _KERNELS[options.kernel](options.memory).run(options.command, options.timeout, bring)
    except NoKernel as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
