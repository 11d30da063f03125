"""The command line: which kernel, for how long, and what to run in it; or all modes in all kernels."""

import argparse
import os
import signal
import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from tests.kernels import matrix
from tests.kernels.guest import CHECKOUT, Guest, Machine, NoKernel
from tests.kernels.kept import Kept
from tests.kernels.qemu import Qemu
from tests.kernels.uml import Uml

_MACHINES: dict[str, tuple[Callable[[], Machine], str]] = {
    "uml": (Uml, "Debian's user-mode Linux, a 6.1 with IPVS"),
    "qemu": (Qemu, "Debian's stock kernel in an emulated machine"),
}
_EXAMPLE = "Example: python -m tests.kernels uml -- pytest tests/conformance --mode ipvs"


def main() -> int:
    options = _parser().parse_args()
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)
    try:
        return int(options.run(options))
    except (NoKernel, matrix.NoPlace) as error:
        print(error, file=sys.stderr)
        return 1
    except BrokenPipeError:  # whoever read what we say has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tests.kernels",
        description="Run a command of this checkout inside another Linux kernel. Its output comes as it is written; "
        "its exit status is ours, or 124 if it took too long, 125 if the kernel died.",
        epilog=_EXAMPLE,
    )
    limits = argparse.ArgumentParser(add_help=False)
    limits.add_argument("--memory", default="3G", metavar="SIZE", help="of the guest (default: 3G)")
    text = "for the kernel's command line, as `ipv6.disable=1` (repeatable)"
    limits.add_argument("--append", action="append", default=[], metavar="WORD", help=text)
    kernels = parser.add_subparsers(required=True, metavar="KERNEL")
    for name, (machine, text) in _MACHINES.items():
        kernel = kernels.add_parser(name, help=text, parents=[limits], description=text, epilog=_EXAMPLE)
        text = "a file or folder that the command makes, and where it is put here (default: the same place)"
        kernel.add_argument("--bring", type=_bring, action="append", default=[], metavar="PATH[=PATH]", help=text)
        kernel.add_argument("--timeout", type=float, default=3600, metavar="SECONDS", help="(default: 3600)")
        kernel.add_argument("command", nargs="+", metavar="COMMAND", help="after --")
        kernel.set_defaults(run=_one, machine=machine)
    text = (
        "the conformance suite in all modes, in all kernels: a table; status 1 if anything in it failed. What is not "
        "asked for this time stands in it as it was the last time"
    )
    table = kernels.add_parser("matrix", help=text, parents=[limits], description=text)
    table.add_argument("--kernel", choices=["host", *_MACHINES], action="append", help="this one only (repeatable)")
    text = "of one suite in one kernel (default: 10800)"  # that of iptables mode takes an hour in qemu
    table.add_argument("--timeout", type=float, default=10800, metavar="SECONDS", help=text)
    text = "this one only, as `ipvs` or `ipvs (nft)` (repeatable)"
    table.add_argument("--mode", action="append", default=[], help=text)
    table.add_argument(
        "--write",
        type=Path,
        metavar="FILE",
        help="put the table into this file, too, and what it is made of into one beside it that ends in .json",
    )
    table.add_argument("pytest", nargs="*", metavar="ARGUMENT", help="for pytest, after --")
    table.set_defaults(run=_matrix)
    return parser


def _bring(text: str) -> tuple[Path, Path]:
    there, _, here = text.partition("=")
    return Path(there).absolute(), Path(here or there).absolute()


def _one(options: argparse.Namespace) -> int:
    guest = Guest(options.machine(), options.memory, options.append)
    return guest.run(options.command, options.timeout, dict(options.bring))


def _matrix(options: argparse.Namespace) -> int:
    def ready(make: Callable[[], Machine]) -> matrix.Run:
        guest = Guest(make(), options.memory, options.append)

        def run(command: Sequence[str], made: Path) -> int:
            return guest.run(command, options.timeout, {made: made})

        return run

    known: dict[str, Callable[[], matrix.Run]] = {"host": lambda: matrix.host}
    known |= {name: partial(ready, make) for name, (make, _) in _MACHINES.items()}
    with tempfile.TemporaryDirectory(prefix="pyproxy-matrix-") as folder:
        here = options.write.with_suffix(".json") if options.write else CHECKOUT / ".cache" / "kernels.json"
        # A part of the suite does not stand for the whole.
        kept = Kept(Path(folder, "kernels.json") if options.pytest else here)
        matrix.run_all({name: known[name] for name in options.kernel or known}, options.mode, options.pytest, kept)
        done = kept.columns()
    shown = matrix.table(done)
    print(shown, end="")
    if options.write:
        matrix.write(options.write, shown)
    return 0 if all(column.is_green for column in done) else 1


if __name__ == "__main__":
    sys.exit(main())
