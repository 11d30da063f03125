"""The kernel's nftables, written through nft(8) and read back as its JSON.

nft is a process a sync rather than libnftables inside this one: it takes 5 ms, the memory it works in goes back to the
system, and a failed assertion in it harms one sync instead of the proxy. Its own language rather than JSON: 40,000
elements are two thirds of the bytes and 10 to 20 % less time.
"""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import msgspec

from pyproxy.kernel import program
from pyproxy.kernel.error import ModeError


class Slot(NamedTuple):
    """Where an element stands: the set's name and the key in it, as nft writes it."""

    set: str
    key: str


Elements = dict[Slot, str]
"""What maps say for a key; empty for sets."""


def run(arguments: list[str], script: str = "") -> str:
    """nft's output. Raises ModeError with its first complaint."""
    return _finished(arguments, script).output


def _finished(arguments: list[str], script: str) -> program.Finished:
    nft = program.find("nft")
    if nft is None:
        raise ModeError("the program nft is not installed (Debian package nftables)")
    done = program.run([nft, *arguments], script)
    if done.status != 0:
        raise ModeError(f"nft: {_complaint(done)}")
    return done


def _complaint(done: program.Finished) -> str:
    lines = done.errors.splitlines()
    errors = [line for line in lines if "Error" in line or "Assertion" in line or "BUG" in line]
    return (errors or lines or [f"ended with status {done.status}"])[0][:300]


def load(script: str) -> int:
    """All of ``script`` in one transaction, or nothing of it. Returns the id of the process that did it."""
    return _finished(["-f", "-"], script).pid


def tables() -> set[tuple[str, str]]:
    """Family keyword and name of every table."""
    listed = _listing(run(["-j", "list", "tables"]))
    return {(entry["family"], entry["name"]) for entry in listed.get("table", ())}


def chains(ip: str, table: str) -> set[str]:
    """The names of the chains of one table, given by the keyword of its family; empty if there is no such table."""
    listed = _listing(run(["-j", "list", "chains"]))
    return {c["name"] for c in listed.get("chain", ()) if (c["family"], c["table"]) == (ip, table)}


def rules(ip: str, table: str) -> dict[str, list[str]]:
    """Of every chain of one table, in the words of nft. Raises ModeError, also if there is no table."""
    found: dict[str, list[str]] = {}
    block: list[str] = []  # what is in sets, which nft lists first, goes nowhere
    for line in run(["--terse", "list", "table", ip, table]).splitlines():
        if line.startswith("\tchain "):
            block = found.setdefault(line.split()[1], [])
        elif line.startswith("\t\t"):
            block.append(line.strip())
    return found


def elements(ip: str, table: str, set_names: Iterable[str], *, maps: bool) -> Elements:
    """What is in those sets or maps."""
    found: Elements = {}
    kind = "map" if maps else "set"
    for name in set_names:
        listed = _listing(run(["-j", "list", kind, ip, table, name]))
        for element in listed[kind][0].get("elem", ()):
            key, value = element if maps else (element, "")
            if isinstance(key, dict) and "elem" in key:
                key = key["elem"]["val"]
            found[Slot(name, _words(key))] = _words(value)
    return found


def _listing(output: str) -> dict[str, list[Any]]:
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
