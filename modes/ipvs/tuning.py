"""What IPVS must be told once: sysctls of its network namespace, and time-outs.

They are written only where they are not so already, since /proc/sys is read-only in a pod that is not privileged: there
they belong into the node's /etc/sysctl.d.
"""

from pathlib import Path

from pyproxy.kernel.ipvs import Ipvs
from pyproxy.table import Ipvs as Options
from pyproxy.table import ModeError

_SYSCTLS = Path("/proc/sys/net/ipv4")
_NEEDED = {
    "vs/conntrack": 1,  # so that what it translates can be masqueraded
    "vs/expire_nodest_conn": 1,  # a flow to an endpoint that is gone ends at once and is not dropped until it times out
    "vs/expire_quiescent_template": 1,  # a client that sticks to an endpoint of weight 0 moves
    "vs/conn_reuse_mode": 1,  # a client's port that comes again is a new connection; the default
}
_STRICT_ARP = {"conf/all/arp_ignore": 1, "conf/all/arp_announce": 2}
_LONGEST_S = (2**31 - 1) // 1000
"""The kernel takes no longer time-out where it ticks a thousand times a second (ip_vs_set_timeout): 24 days."""


def objection() -> str | None:
    """Which sysctl is not as it must be and can't be written: one sentence, or None."""
    for name, value in _NEEDED.items():
        path = _SYSCTLS / name
        try:
            if _read(path) == value:
                continue
            with path.open("r+"):
                pass
        except OSError as error:
            return f"{_spelled(name)} must be {value}, and can't be set ({error.strerror}); {_advice(name, value)}"
    return None


def tune(ipvs: Ipvs, options: Options) -> None:
    """Raises ModeError."""
    for name, value in _wanted(options).items():
        path = _SYSCTLS / name
        try:
            if _read(path) != value:
                path.write_text(str(value))
        except OSError as error:
            raise ModeError(f"{_spelled(name)} can't be set ({error.strerror}); {_advice(name, value)}") from error
    given = (options.tcp_timeout, options.tcp_fin_timeout, options.udp_timeout)
    ipvs.set_timeouts(*(min(round(seconds), _LONGEST_S) for seconds in given))


def drift(options: Options) -> str | None:
    """What somebody else changed of what is needed."""
    for name, value in _wanted(options).items():
        if _read(_SYSCTLS / name) != value:
            return f"{_spelled(name)} is not {value}"
    return None


def _wanted(options: Options) -> dict[str, int]:
    return _NEEDED | (_STRICT_ARP if options.strict_arp else {})


def _read(path: Path) -> int:
    return int(path.read_text())


def _spelled(name: str) -> str:
    return f"net.ipv4.{name.replace('/', '.')}"


def _advice(name: str, value: int) -> str:
    return f"write {_spelled(name)}={value} into /etc/sysctl.d of the node"
