"""The kernel's nftables, written through nft(8) and read back as its JSON.

nft is a process a sync rather than libnftables inside this one: it takes 5 ms, the memory it works in goes back to the
system, and a failed assertion in it harms one sync instead of the proxy. Its own language rather than JSON: 40,000
elements are two thirds of the bytes and 10 to 20 % less time.
"""

import shutil
import subprocess
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from modes.nftables.elements import Elements, Slot
from modes.nftables.ruleset import TABLE
from pyproxy.table import ModeError

_SBIN = "/usr/sbin:/sbin:/usr/local/sbin"


def find_nft() -> str | None:
    return shutil.which("nft") or shutil.which("nft", path=_SBIN)


def run_nft(arguments: list[str], script: str = "") -> bytes:
    """nft's output. Raises ModeError with its first complaint."""
    return _run(arguments, script)[0]


def _run(arguments: list[str], script: str) -> tuple[bytes, int]:
    """The output and the id of the process. Raises ModeError."""
    nft = find_nft()
    if nft is None:
        raise ModeError("the program nft is not installed (Debian package nftables)")
    pipe = subprocess.PIPE
    try:
        with subprocess.Popen([nft, *arguments], stdin=pipe, stdout=pipe, stderr=pipe) as process:
            output, errors = process.communicate(script.encode())
    except OSError as error:  # no memory or no process left, for instance
        raise ModeError(f"nft could not be run: {error.strerror}") from error
    if process.returncode != 0:
        raise ModeError(f"nft: {_complaint(errors, process.returncode)}")
    return output, process.pid


def _complaint(stderr: bytes, status: int) -> str:
    lines = stderr.decode(errors="replace").splitlines()
    errors = [line for line in lines if "Error" in line or "Assertion" in line or "BUG" in line]
    return (errors or lines or [f"ended with status {status}"])[0][:300]


def load(script: str) -> int:
    """All of ``script`` in one transaction, or nothing of it. Returns the id of the process that did it."""
    return _run(["-f", "-"], script)[1]


def tables() -> set[tuple[str, str]]:
    """Family keyword and name of every table."""
    listed = _listing(run_nft(["-j", "list", "tables"]))
    return {(entry["family"], entry["name"]) for entry in listed.get("table", ())}


def chains(ip: str) -> set[str]:
    """The names of this mode's chains in one family; empty if it has no table there."""
    listed = _listing(run_nft(["-j", "list", "chains"]))
    return {c["name"] for c in listed.get("chain", ()) if (c["family"], c["table"]) == (ip, TABLE)}


def rules(ip: str) -> dict[str, list[str]]:
    """Of every chain of one family, in the words of nft. Raises ModeError, also if there is no table."""
    found: dict[str, list[str]] = {}
    block: list[str] = []  # what is in sets, which nft lists first, goes nowhere
    for line in run_nft(["--terse", "list", "table", ip, TABLE]).decode().splitlines():
        if line.startswith("\tchain "):
            block = found.setdefault(line.split()[1], [])
        elif line.startswith("\t\t"):
            block.append(line.strip())
    return found


def elements(ip: str, set_names: Iterable[str], *, maps: bool) -> Elements:
    """What is in those sets, in the words of `modes.nftables.elements`."""
    found: Elements = {}
    kind = "map" if maps else "set"
    for name in set_names:
        listed = _listing(run_nft(["-j", "list", kind, ip, TABLE, name]))
        for element in listed[kind][0].get("elem", ()):
            key, value = element if maps else (element, "")
            if isinstance(key, dict) and "elem" in key:
                key = key["elem"]["val"]
            found[Slot(name, _words(key))] = _words(value)
    return found


def _listing(output: bytes) -> dict[str, list[Any]]:
    """nft's JSON, by kind of object."""
    found: dict[str, list[Any]] = {}
    for entry in msgspec.json.decode(output)["nftables"]:
        for kind, body in entry.items():
            found.setdefault(kind, []).append(body)
    return found


def _words(value: Any) -> str:
    """One key or value as nft's language writes it."""
    if not isinstance(value, Mapping):
        return str(value)
    if "concat" in value:
        return " . ".join(map(_words, value["concat"]))
    if "prefix" in value:
        return f"{value['prefix']['addr']}/{value['prefix']['len']}"
    if "goto" in value:
        return f"goto {value['goto']['target']}"
    return str(next(iter(value)))  # drop, accept, …: {"drop": null}
