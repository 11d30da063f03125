"""The forwarding table as entries of BPF maps, and the programs that look into them."""

import errno
import logging
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from collections.abc import Set as AbstractSet
from contextlib import contextmanager
from pathlib import Path

from ebpf import layout, pins, store, syscall
from ebpf.hook import PACKET
from ebpf.store import BadProgram, Store
from modes.ebpf.devices import Devices, are_any_served, detach_all
from modes.ebpf.entries import entries, spelled
from modes.ebpf.flows import of_others, open_ones, ports_of
from modes.ebpf.plan import ByMap, Change, Plan
from modes.ebpf.requirement import missing
from modes.ebpf.route import Entries, Key
from modes.ebpf.site import Site, site_of
from modes.ebpf.sizes import Pressure, capacity, check, specs_of
from modes.ebpf.traffic import begin_anew, traffic
from modes.ebpf.udp_sockets import UdpSockets
from pyproxy.kernel import masquerade
from pyproxy.table import IP, Drift, Fill, InUse, Mode, ModeError, Route, RouteId, Table, Traffic, Transport

log = logging.getLogger("pyproxy")

_HIDDEN_ORDER = ("names", "pods", "sources", "backends", "members", "maglev", "services")
"""Whoever finds an entry finds what it leads to."""
_PLANNED = (*_HIDDEN_ORDER, "addresses")
_COMES_AGAIN_S = 1.2
"""TCP sends a SYN again after a second (RFC 6298)."""
_LATE = frozenset({"backends", "maglev"})
"""Who has read a service looks into these."""
_RESERVED_S = 120
"""Who retires is asked again before that is over."""
_NOBODY_READS_S = 1.0
"""After that long no program is at work any more that read an entry which is gone."""


class EbpfMode:
    name = "ebpf"
    tracks_connections = False
    ends_connections = False
    connects_sockets = True
    map_sizes = layout.SIZES

    def __init__(self) -> None:
        self._store: Store | None = None
        self._maps: dict[str, int] = {}
        self._group = Path()
        self._site = Site()
        self._plan = Plan(self._site)
        self._pressure = Pressure()
        self._late: dict[Key, float] = {}
        """What no service leads to any more, and since when: a program may still look for it."""
        self._sockets = UdpSockets()
        self._devices = Devices()
        self._in_order = False

    def probe(self) -> str | None:
        return missing()

    def objection(self, route: Route) -> str | None:
        if route.transport is Transport.SCTP:
            return "ebpf mode forwards TCP and UDP, not SCTP"
        return None

    def shortfalls(self) -> Mapping[RouteId, str]:
        return {}

    def sync(self, table: Table, changed: AbstractSet[RouteId] | None) -> None:
        everything = changed is None or not self._in_order
        self._in_order = False
        with _said():
            if everything:
                self._rebuild(table)
            else:
                change = self._plan.change(table, changed or frozenset())
                self._write(change)
                if any(key.map == "members" for key in change.gone):
                    self._sockets.check()
        self._in_order = True
        if self._store is not None:
            self._pressure.note(self._store.specs, self._plan.sizes)

    def _rebuild(self, table: Table) -> None:
        """Whatever is not as it must be, in place; programs come last, when there is something to find."""
        group = Path(table.host.cgroup) if table.host.cgroup else store.default_group()
        if group is None:
            raise ModeError("cgroup v2 is not mounted")
        self._group = group
        self._store = self._store or Store(specs_of(table.host.map_sizes))
        self._store.open()
        self._maps = self._store.maps
        self._site = site_of(table.host)
        found = self._read()
        self._late = {}
        self._plan = Plan(self._site, found, self._store.specs["counters"].entries)
        change = self._plan.change(table, table.routes.keys())
        wanted = change.put
        wanted.update(self._plan.of_host())
        there = {Key(name, key): value for name, some in found.items() for key, value in some.items()}
        self._plan.sizes.clear()
        self._plan.sizes.update(key.map for key in wanted)
        put = {key: value for key, value in wanted.items() if there.get(key) != value} if there else wanted
        self._write(Change(put, there.keys() - wanted.keys(), put.keys() & there.keys(), change.counted))
        # Packet programs take on what is new as soon as those at sockets do, and no sooner: packets of a socket that is
        # connected itself must find no flow.
        self._write_config(0 if self._store.is_attached else layout.DRAINING)
        packet_programs = {hook: self._store.programs[hook] for hook in PACKET}
        self._store.catch_up()
        were_stopped = self._devices.serve(
            packet_programs, self._maps["devices"], table.host.devices, table.host.pod_interfaces
        )
        self._store.fill_in()
        if were_stopped and not self._store.is_attached:
            # Another mode may serve yet. What was lost comes again, and must find it doing so: the second SYN of a
            # connection whose first one reached an endpoint.
            time.sleep(_COMES_AGAIN_S)
        if not self._store.is_attached:
            self._leave_ports(wanted)
        self._store.attach(self._group)
        self._write_config(0)
        self._sockets.check()

    def _leave_ports(self, wanted: Entries) -> None:
        """What another mode masquerades goes on under its ports: none of them may be given to others."""
        handle = self._maps["flows"]
        before = {
            key for key, value in syscall.entries(handle) if layout.read_flow(value).flags & layout.FLOW_OF_OTHERS
        }
        try:
            uses = [use for use in masquerade.in_use() if use.port in self._site.ports]
        except OSError as error:
            log.info("conntrack can't be read, if there is any", extra={"reason": error})
            return
        # Of what goes elsewhere, to the world for one, none could become ours by mistake.
        backends = {key.key[len(layout.ONE) :] for key in wanted if key.map == "members"} if uses else set()
        now = of_others(use for use in uses if layout.backend(use.endpoint, use.endpoint_port) in backends)
        syscall.update(handle, now)
        syscall.delete(handle, before - now.keys())

    def _write_config(self, flags: int) -> None:
        syscall.update(self._maps["config"], {layout.number(0): self._config(flags)})

    def _config(self, flags: int = 0) -> bytes:
        site = self._site
        return layout.Config(site.namespace, site.ipv4, site.ipv6, site.ports.start, len(site.ports), flags).packed()

    def _read(self) -> dict[str, dict[bytes, bytes]]:
        return {name: dict(syscall.entries(self._maps[name])) for name in _PLANNED}

    def _write(self, change: Change) -> None:
        self._remove_late()
        leaving = Counter(key.map for key in (*change.gone, *(key for key in self._late if key not in change.put)))
        if self._store is not None:
            check(self._store.specs, self._plan.sizes, leaving)
        begin_anew(self._maps["counters"], change.counted)
        hidden, known, new = change.steps()
        self._put(hidden, _HIDDEN_ORDER)
        self._delete(change.gone, ("addresses", "services"))
        self._put(known, ("services", "backends"))
        self._delete(change.gone, ("members", "sources", "pods", "names"))
        self._put(new, ("addresses", "services"))
        self._late = {key: since for key, since in self._late.items() if key not in change.put}
        # Now that nobody counts them.
        self._late.update(dict.fromkeys((key for key in change.gone if key.map in _LATE), time.monotonic()))

    def _put(self, entries: ByMap, order: tuple[str, ...]) -> None:
        for name in order:
            syscall.update(self._maps[name], entries.get(name, {}))

    def _delete(self, gone: AbstractSet[Key], order: tuple[str, ...]) -> None:
        for name in order:
            syscall.delete(self._maps[name], [key.key for key in gone if key.map == name])

    def _remove_late(self) -> None:
        now = time.monotonic()
        due = [key for key, since in self._late.items() if now - since > _NOBODY_READS_S]
        for key in due:
            syscall.delete(self._maps[key.map], [key.key])
            del self._late[key]

    def verify(self) -> list[Drift]:
        """All of it is read."""
        with _said():
            if self._store is None:
                return [Drift(None, "nothing is loaded")]
            if not self._in_order:
                return [Drift(None, "the last sync failed")]
            self._remove_late()
            return list(self._compare(self._store))

    def _compare(self, loaded: Store) -> Iterator[Drift]:
        for what in loaded.differences(self._group):
            yield Drift(None, what)
        if site_of(self._plan.host) != self._site:
            yield Drift(None, "the addresses of this node are others now")
        wanted = self._plan.entries()
        differ = {}
        for name in _PLANNED:
            for one, value in syscall.entries(self._maps[name]):
                expected = wanted.pop(key := Key(name, one), None)
                if value != expected and key not in self._late:
                    differ[key] = "foreign" if expected is None else "changed"
        differ.update(dict.fromkeys(wanted, "missing"))
        owners = self._plan.owners() if differ else {}
        for key, how in differ.items():
            yield Drift(owners.get(key), f"the entry {spelled(key)} of the map {key.map} is {how}")
        node = syscall.lookup(self._maps["config"], layout.number(0), layout.MAPS["config"].value)
        if node != self._config():
            yield Drift(None, "the map config is changed")
        for what in self._devices.differences():
            yield Drift(None, what)

    def cleanup(self) -> list[str]:
        """Of any version."""
        _see_pins()
        return _remove()

    def retire(self, successor: Mode) -> Iterator[str]:
        """What sockets are connected to stays so without any of it; what is translated packet by packet stays until it
        is over, and nothing is added to it. Meanwhile netfilter may give nobody else a port that any of it has."""
        _see_pins()
        with _said():
            with store.using_maps() as maps:
                if maps:
                    _drain(maps)
                if store.detach():
                    yield "programs of eBPF at sockets"
                flows = _flows(maps["flows"]) if maps else {}
                left = len(open_ones(flows))
                if left and successor.tracks_connections:
                    masquerade.reserve(ports_of(flows), _RESERVED_S)
            if left:
                raise InUse(f"{left} connections are translated by eBPF yet")
        yield from _remove()

    def entries(self, address: IP, port: int, transport: Transport) -> list[str]:
        """As `bpftool map dump` would, if it knew what the bytes mean."""
        with _said(), store.using_maps() as maps:
            return list(entries(maps, address, port, transport)) if maps else []

    def traffic(self) -> dict[RouteId | None, Traffic] | None:
        with _said(), store.using_maps() as maps:
            return traffic(maps) if maps else None

    def fills(self) -> list[Fill]:
        """What this object wrote is known; of the rest a part is counted."""
        if self._store is None:
            return []
        specs, written = self._store.specs, self._plan.sizes
        fills = []
        with _said(), store.using_maps() as maps:
            for name in layout.SIZES:
                planned = "names" if name == "counters" else name
                if planned in _PLANNED:
                    count = written[planned]
                elif name in maps:
                    count = syscall.estimated(maps[name])
                else:
                    continue
                fills.append(Fill(name, count, capacity(specs, name), specs[name].kind == syscall.LRU_HASH))
        return fills


def _remove() -> list[str]:
    with _said():
        count = detach_all()
        removed = [f"programs of eBPF on {count} devices"] if count else []
        return removed + (["maps and programs of eBPF"] if store.remove_all() else [])


def _see_pins() -> None:
    """Raises ModeError if something may be ours and can't be found: a container sees no pins of the host by itself."""
    with _said():
        if pins.is_mounted():
            return
        try:
            are_any = are_any_served()
        except PermissionError:  # as in most pods, by the runtime's seccomp profile or kernel.unprivileged_bpf_disabled
            log.info("whether ebpf mode left anything can't be seen: it takes CAP_BPF", extra={"or": pins.FILE_SYSTEM})
            return
        if are_any:
            raise ModeError(
                f"programs of eBPF are on devices, and their pins are not seen: mount the host's {pins.FILE_SYSTEM}"
            )


def _flows(handle: int) -> dict[layout.Way, layout.Flow]:
    return {layout.read_tuple(key): layout.read_flow(value) for key, value in syscall.entries(handle)}


def _drain(maps: Mapping[str, int]) -> None:
    """Let packet programs take nothing new on."""
    key = layout.number(0)
    node = syscall.lookup(maps["config"], key, layout.MAPS["config"].value)
    if node is not None:
        syscall.update(maps["config"], {key: layout.with_flags(node, layout.DRAINING)})


@contextmanager
def _said() -> Iterator[None]:
    """What goes wrong inside is a ModeError."""
    try:
        yield
    except BadProgram as error:
        raise ModeError(f"a program of eBPF was not taken: {error}") from error
    except OSError as error:
        is_forbidden = error.errno in (errno.EPERM, errno.EACCES)
        where = f" ({error.filename})" if error.filename else ""
        reason = (missing() if is_forbidden else None) or f"{error.strerror or error}{where}"
        raise ModeError(f"eBPF can't be used: {reason}") from error
