"""What in the kernel serves one destination, in the words of the tools that show it."""

from collections.abc import Iterator, Mapping

from modes.ipvs.ruleset import MASQUERADE, is_own, set_name
from pyproxy.kernel.ipset import Elements
from pyproxy.kernel.ipvs import Key, VirtualServer, spell
from pyproxy.table import IP, Family, Transport, family_of


def entries(
    address: IP,
    port: int,
    transport: Transport,
    servers: Mapping[Key, VirtualServer],
    elements: Elements,
    is_claimed: bool,
) -> Iterator[str]:
    """In the order in which a packet meets them."""
    family = family_of(address)
    place = f"{address},{transport.value}:{port}"
    here = {slot: mark for slot, mark in elements.items() if f"{slot.key},".startswith(f"{place},")}
    if is_claimed:
        yield f"local {address} dev lo table local"
    for slot, mark in here.items():
        yield f"add {slot.set} {slot.key}{f' skbmark {mark:#x}' if mark else ''}"
    if not here and any(is_own(slot.set) and slot.key == address for slot in elements):
        yield f"add {set_name('CLAIMED', family)} {address}"
    keys = [Key(family, transport.value, address, port)]
    for mark in filter(None, here.values()):
        keys += [Key(family, "", None, 0, mark), Key(family, "", None, 0, mark | MASQUERADE)]
    for key in keys:
        if (server := servers.get(key)) and server.service.is_ours:
            sticky = f" -p {server.service.sticky_seconds}" if server.service.sticky_seconds else ""
            yield f"-A {spell(key)} -s {server.service.scheduler}{sticky}"
            for real, load in sorted(server.reals.items()):
                host = f"[{real.address}]" if family is Family.IPV6 else real.address
                yield f"-a {spell(key)} -r {host}:{real.port} -m -w {load.weight}"
