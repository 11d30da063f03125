"""What a departed kube-proxy leaves in the kernel, and its removal.

Its nftables mode leaves two tables, its iptables mode chains and jumps to them, in whichever flavour of iptables the
host had, and its ipvs mode also what `kube_proxy_ipvs` removes. Chains of kubelet (KUBE-FIREWALL, KUBE-KUBELET-CANARY,
KUBE-IPTABLES-HINT) stay: they are not kube-proxy's.
"""

import json
import re
import shlex

from pyproxy import kube_proxy_ipvs
from pyproxy.kernel import program
from pyproxy.table import ModeError

_OWN_CHAIN = re.compile(
    "KUBE-("
    "SERVICES|EXTERNAL-SERVICES|NODEPORTS|POSTROUTING|MARK-MASQ|FORWARD|PROXY-FIREWALL|PROXY-CANARY|"
    "LOAD-BALANCER|NODE-PORT|SOURCE-RANGES-FIREWALL|IPVS-FILTER|IPVS-OUT-FILTER|"
    r"(SVC|SVL|SEP|FW|EXT|XLB)-\S+)"
)
_FLAVOURS = ("iptables-legacy", "ip6tables-legacy", "iptables-nft", "ip6tables-nft")


def cleanup() -> list[str]:
    """Remove it all, and say what it was. What no program for is installed can't be there. Raises ModeError."""
    # Rules look into the sets of the ipvs mode.
    return [*_nftables(), *(what for flavour in _FLAVOURS for what in _iptables(flavour)), *kube_proxy_ipvs.cleanup()]


def _nftables() -> list[str]:
    if (nft := program.find("nft")) is None:
        return []
    listed = json.loads(_run([nft, "-j", "list", "tables"]))["nftables"]
    tables = [entry["table"]["family"] for entry in listed if entry.get("table", {}).get("name") == "kube-proxy"]
    for family in tables:
        _run([nft, "delete", "table", family, "kube-proxy"])
    return [f"nftables table {family} kube-proxy" for family in tables]


def _iptables(flavour: str) -> list[str]:
    save, restore = (program.find(f"{flavour}-{verb}") for verb in ("save", "restore"))
    if save is None or restore is None:
        return []
    removed = []
    for table, lines in _tables(_run([save])).items():
        chains = [line[1:].split()[0] for line in lines if line.startswith(":")]
        own = [chain for chain in chains if _OWN_CHAIN.fullmatch(chain)]
        jumps = [line for line in lines if line.startswith("-A ") and _jumps_from_elsewhere(line)]
        if own:
            # With --noflush, naming a chain of one's own empties it and leaves all others as they are.
            script = [f"*{table}", *(f":{chain} - [0:0]" for chain in own)]
            script += [f"-D{jump.removeprefix('-A')}" for jump in jumps]
            script += [*(f"-X {chain}" for chain in own), "COMMIT", ""]
            _run([restore, "--noflush", "--wait"], "\n".join(script))
            removed.append(f"{len(own)} chains of {flavour} table {table}")
    return removed


def _jumps_from_elsewhere(rule: str) -> bool:
    """Whether a chain of somebody else jumps to one of kube-proxy's here."""
    words = shlex.split(rule)  # a comment may hold anything
    target = next((words[index + 1] for index, word in enumerate(words[:-1]) if word in ("-j", "-g")), "")
    return bool(_OWN_CHAIN.fullmatch(target)) and not _OWN_CHAIN.fullmatch(words[1])


def _tables(saved: str) -> dict[str, list[str]]:
    """The lines of iptables-save's output, by table."""
    tables: dict[str, list[str]] = {}
    for line in saved.splitlines():
        if line.startswith("*"):
            current = tables[line[1:]] = []
        elif line.startswith((":", "-A ")):
            current.append(line)
    return tables


def _run(command: list[str], script: str = "") -> str:
    done = program.run(command, script)
    if done.status != 0:
        reason = (done.errors.strip().splitlines() or [f"status {done.status}"])[0]
        raise ModeError(f"{command[0]} failed: {reason}")
    return done.output
