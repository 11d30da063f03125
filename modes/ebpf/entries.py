"""What the maps hold for one destination, in words."""

from collections.abc import Iterator, Mapping

from ebpf import layout, syscall
from ebpf.layout import MAPS, Pool, Service
from modes.ebpf.route import Key
from pyproxy.table import IP, Transport

_FLAGS = {
    layout.INSIDE_DROPS: "drops from inside",
    layout.OUTSIDE_DROPS: "drops from outside",
    layout.MASQUERADES_PODS: "masquerades pods",
    layout.MASQUERADES_OUTSIDE: "masquerades outside",
    layout.LETS_NODE_IN: "lets the node in",
}
_BITS = {
    layout.ADDRESS_FRONTEND: "frontend",
    layout.ADDRESS_CLUSTER_IP: "cluster-ip",
    layout.ADDRESS_NODE: "node",
}


def entries(maps: Mapping[str, int], address: IP, port: int, transport: Transport) -> Iterator[str]:
    """``maps``: file descriptors. Raises OSError."""
    if transport.value not in layout.PROTOCOLS:
        return
    packed = layout.address(address)
    known = syscall.lookup(maps["addresses"], packed, MAPS["addresses"].value)
    if known is None:
        return
    bits = layout.read_number(known)
    about = f"addresses {address}: {' '.join(name for bit, name in _BITS.items() if bits & bit)}"
    family = "IPv6" if ":" in address else "IPv4"
    wheres = {address: packed} if bits & layout.ADDRESS_FRONTEND else {}
    if bits & layout.ADDRESS_NODE:
        wheres[IP("*")] = layout.ANY_ADDRESS[family]
    for text, where in wheres.items():
        found = syscall.lookup(maps["services"], layout.place(where, port, transport.value), MAPS["services"].value)
        if found is not None:
            yield about
            yield from _service(maps, f"services {text} {port}/{transport.value}", layout.read_service(found))
            return
    if bits & layout.ADDRESS_CLUSTER_IP:
        yield f"{about}, refuses port {port}"


def spelled(key: Key) -> str:
    """A key in words."""
    if key.map == "addresses":
        return layout.spelled(key.key)
    if key.map == "services":
        address, port, protocol = layout.read_place(key.key)
        names = {number: name for name, number in layout.PROTOCOLS.items()}
        return f"{layout.spelled(address)} {port}/{names.get(protocol, protocol)}"
    if key.map == "backends":
        return "pool {} slot {}".format(*layout.read_slot(key.key))
    if key.map == "maglev":
        return "pool {} table {:08x} stretch {}".format(*layout.read_stretch(key.key))
    if key.map == "names":
        return f"of counter {layout.read_number(key.key)}"
    if key.map == "pods":
        return layout.read_prefix(key.key)
    if key.map == "sources":
        return "guard {} {}".format(*layout.read_source(key.key))
    return "pool {} {} {}".format(layout.read_number(key.key[:4]), *layout.read_backend(key.key[4:]))


def _service(maps: Mapping[str, int], name: str, service: Service) -> Iterator[str]:
    words = [f"inside pool {service.inside.id} of {service.inside.size}"]
    words.append(f"outside pool {service.outside.id} of {service.outside.size}")
    words += [f"guard {service.guard}"] if service.guard else []
    words += [f"affinity {service.affinity} s"] if service.affinity else []
    words += [f"by Maglev's table {service.table:08x} of {service.places}"] if service.places else []
    words += [what for flag, what in _FLAGS.items() if service.flags & flag]
    words.append(f"counter {service.counter}")
    yield f"{name}: {', '.join(words)}"
    for pool in dict.fromkeys((service.inside, service.outside)):
        yield from _pool(maps, pool)
    if service.guard:
        for key, _ in syscall.entries(maps["sources"]):
            guard, prefix = layout.read_source(key)
            if guard == service.guard:
                yield f"sources guard {guard} {prefix}"


def _pool(maps: Mapping[str, int], pool: Pool) -> Iterator[str]:
    for number in range(pool.size):
        packed = syscall.lookup(maps["backends"], layout.slot(pool.id, number), MAPS["backends"].value)
        if packed is not None:
            ip, port = layout.read_backend(packed)
            yield f"backends pool {pool.id} slot {number}: {ip} {port}"
