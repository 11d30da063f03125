"""The kernel's tables, through the programs of iptables.

Both flavours are spoken to in the same way: iptables-save tells what is there, and iptables-restore changes a table in
one transaction. python-iptables knows legacy tables only, so what it could do would be here twice.
"""

import logging
import re
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from types import MappingProxyType

from pyproxy.address import Family
from pyproxy.kernel import capability, nf_tables, program
from pyproxy.kernel.error import ModeError
from pyproxy.kernel.iptables_dialect import DIALECTS, Dialect

log = logging.getLogger("pyproxy")

_LOCK_PATIENCE_S = 30
_ENTRIES = ("PREROUTING", "OUTPUT")
_ON_ITS_WAY_S = 0.05
_HINTS = (":KUBE-IPTABLES-HINT ", ":KUBE-KUBELET-CANARY ")
"""Chains by which kubelet tells others the flavour of the host (KEP-3178)."""
_CAPABILITIES = ("CAP_NET_ADMIN", "CAP_NET_RAW")
_TELLING = ("filter", "nat", "mangle")
"""Tables whose rules tell which flavour is in use."""

Rules = tuple[str, ...]
Chains = dict[str, Rules]


@dataclass(frozen=True, slots=True)
class Share:
    """What one owner has in tables that are everybody's."""

    prefix: str
    """Of the names of its chains."""
    hooks: Mapping[str, Mapping[str, str]]
    """The rules in chains of everybody that lead to them: by table, in the order in which tables are written, and
    chain."""


class Flavour(StrEnum):
    LEGACY = "legacy"
    NFT = "nft"


@dataclass(slots=True)
class Saved:
    """One table, as far as it is ours."""

    chains: Chains = field(default_factory=dict)
    hooks: dict[str, list[str]] = field(default_factory=dict)
    """Rules in others' chains that lead into ours, by chain."""


def find(d: Dialect, flavour: Flavour, verb: str) -> str | None:
    return program.find(f"{d.program}-{flavour}-{verb}")


def detect() -> Flavour:
    """Which one this host uses. As the iptables-wrappers of Kubernetes find out: by what is there already.

    kubelet's hint tells; without one, the flavour that holds more rules; without rules, the host's default. Some
    kernels are built without what the flavour nft takes, and its programs notice only when they write.
    """
    saved = {flavour: "".join(_save(d, flavour, _TELLING) for d in DIALECTS.values()) for flavour in Flavour}
    for flavour in (Flavour.NFT, Flavour.LEGACY):
        if any(hint in saved[flavour] for hint in _HINTS):
            return flavour
    rules = {flavour: text.count("\n-A ") for flavour, text in saved.items()}
    if rules[Flavour.LEGACY] != rules[Flavour.NFT]:
        return max(Flavour, key=lambda flavour: rules[flavour])
    iptables = program.find("iptables")
    is_default = iptables is None or "nf_tables" in _run([iptables, "--version"])
    return Flavour.NFT if is_default and nf_tables.has(Family.IPV4) else Flavour.LEGACY


def load(d: Dialect, flavour: Flavour, script: str, *options: str) -> None:
    """Each table of ``script`` in one transaction, whatever it does not name stays. Raises ModeError."""
    restore = find(d, flavour, "restore")
    if restore is None:
        raise ModeError(f"the program {d.program}-{flavour}-restore is not installed (Debian package iptables)")
    _run([restore, "--noflush", f"--wait={_LOCK_PATIENCE_S}", *options], script)


def read(share: Share, d: Dialect, flavour: Flavour) -> dict[str, Saved]:
    """What of it is there, in each of its tables. Raises ModeError."""
    to_ours = re.compile(rf"-[jg] {share.prefix}\S+$")
    found = {table: Saved() for table in share.hooks}
    current: Saved | None = None
    rules: dict[str, list[str]] = {}
    for line in _save(d, flavour, share.hooks).splitlines():
        if line.startswith("*"):
            current, rules = found.get(line[1:]), {}
        elif current is None:
            continue
        elif line.startswith(f":{share.prefix}"):
            rules[line[1:].split(" ", 1)[0]] = []
        elif line.startswith(f"-A {share.prefix}"):
            chain, _, rule = line.removeprefix("-A ").partition(" ")
            rules[chain].append(rule)  # empty, if somebody wrote one without match and target
        elif line.startswith("-A ") and to_ours.search(line):
            _, chain, rule = line.split(" ", 2)
            current.hooks.setdefault(chain, []).append(rule)
        elif line == "COMMIT":
            current.chains = {chain: tuple(lines) for chain, lines in rules.items()}
    return found


def script(table: str, chains: Chains, gone: Iterable[str] = (), hooks: Iterable[str] = ()) -> str:
    """What makes ``chains`` those, whatever they held, does what ``hooks`` say, and removes those ``gone``."""
    gone = sorted(gone)
    names = [f":{name} - [0:0]" for name in (*chains, *gone)]
    # A string a chain rather than a rule: there may be tens of thousands.
    rules = ["\n".join(f"-A {name} {rule}" for rule in some) for name, some in chains.items() if some]
    return "\n".join([f"*{table}", *names, *rules, *hooks, *(f"-X {name}" for name in gone), "COMMIT", ""])


def hooks(share: Share, table: str, found: Saved) -> list[str]:
    """What puts its rules into others' chains, first and once; nothing if they are there."""
    wanted = {chain: [rule] for chain, rule in share.hooks[table].items()}
    if found.hooks == wanted:
        return []
    return [*unhook(found), *(f"-I {chain} 1 {rule}" for chain, rule in share.hooks[table].items())]


def unhook(found: Saved) -> list[str]:
    return [f"-D {chain} {rule}" for chain, rules in found.hooks.items() for rule in rules]


def put(share: Share, d: Dialect, flavour: Flavour, wanted: Mapping[str, Chains]) -> None:
    """Whatever of it is not as wanted, in place. ``wanted``: all of its chains by table, in the order in which tables
    are written. Raises ModeError."""
    found = read(share, d, flavour)
    scripts = []
    for table, chains in wanted.items():
        there = found[table]
        new = {chain: rules for chain, rules in chains.items() if there.chains.get(chain) != rules}
        gone = there.chains.keys() - chains.keys()
        needed = hooks(share, table, there)
        if new or gone or needed:
            scripts.append(script(table, new, gone, needed))
    if scripts:
        load(d, flavour, "".join(scripts))


def differences(
    share: Share, d: Dialect, flavour: Flavour, wanted: Mapping[str, Chains]
) -> Iterator[tuple[str | None, str]]:
    """Which chain is not as wanted, and how that is said; None for the rules that lead there. Raises ModeError."""
    found = read(share, d, flavour)
    for table, chains in wanted.items():
        there = found[table]
        if hooks(share, table, there):
            yield None, f"the rules that lead from table {table} of {d.program} to pyproxy are not as written"
        for chain in sorted(chains.keys() | there.chains.keys()):
            if there.chains.get(chain) != chains.get(chain):
                how = "missing" if chain not in there.chains else "changed" if chain in chains else "foreign"
                yield chain, f"chain {chain} in table {table} of {d.program} is {how}"


def remove(share: Share, flavour: Flavour, stays: Mapping[str, Chains] = MappingProxyType({})) -> Iterator[str]:
    """Says what that was, as it goes. ``stays``: what is left of a table, if anything of it is there. Raises
    ModeError."""
    for d in DIALECTS.values():
        scripts, counts = [], []
        for table, there in reversed(read(share, d, flavour).items()):
            kept = stays.get(table, {})
            if gone := there.chains.keys() - kept.keys():
                scripts.append(script(table, kept, gone, unhook(there)))
                counts.append(f"{len(gone)} chains of {d.program}-{flavour} table {table}")
        if scripts:
            load(d, flavour, "".join(scripts))
        yield from counts


def clear_other(share: Share, flavour: Flavour) -> bool:
    """Remove what an earlier run left in the other flavour; whether that is done. What is in its way is logged."""
    try:
        for other in set(Flavour) - {flavour}:
            list(remove(share, other))
    except ModeError as error:
        log.warning("what is left in the other flavour can't be removed", extra={"reason": error})
        return False
    return True


def is_there(share: Share) -> bool:
    """Anything of it, in whichever flavour. Raises ModeError."""
    return any(
        saved.chains or saved.hooks
        for flavour in Flavour
        for d in DIALECTS.values()
        for saved in read(share, d, flavour).values()
    )


def shut(share: Share, flavour: Flavour) -> None:
    """Let no new connection in, and then a moment pass, so that what was marked on its way in is masqueraded on its way
    out before that is removed, too. Raises ModeError."""
    for d in DIALECTS.values():
        saved = read(share, d, flavour)
        for table, found in saved.items():
            entries = {chain: rules for chain, rules in found.hooks.items() if chain in _ENTRIES}
            if entries:
                load(d, flavour, script(table, {}, (), unhook(Saved(hooks=entries))))
                time.sleep(_ON_ITS_WAY_S)


def _save(d: Dialect, flavour: Flavour, tables: Iterable[str]) -> str:
    """Those of ``tables`` that there are; empty without the program."""
    save = find(d, flavour, "save")
    if save is None:
        return ""
    if flavour is Flavour.LEGACY:
        # Asking for a table makes it, with its hooks, and then every connection pays for it.
        present = _legacy_tables(d)
        tables = [table for table in tables if table in present]
    return "".join(_run([save, "-t", table]) for table in tables)


def _legacy_tables(d: Dialect) -> list[str]:
    """Those that somebody made in this network namespace."""
    try:
        return Path(f"/proc/net/{d.program.replace('tables', '_tables')}_names").read_text().split()
    except FileNotFoundError:  # the kernel has no such tables, or its module is not loaded
        return []
    except OSError as error:
        raise ModeError(f"the kernel does not tell its tables: {error.strerror}") from error


def lacking_capabilities() -> str:
    """Those of this process that iptables takes and it does not have; legacy tables take a raw socket."""
    return " and ".join(capability.lacking(_CAPABILITIES))


def _run(command: list[str], stdin: str = "") -> str:
    """The output. Raises ModeError with the first complaint."""
    done = program.run(command, stdin)
    if done.status != 0:
        complaints = [line for line in done.errors.splitlines() if line.strip() and not line.startswith("#")]
        reason = "; ".join(complaints[:2]) or f"ended with status {done.status}"
        raise ModeError(f"{Path(command[0]).name}: {reason[:300]}")
    return done.output
