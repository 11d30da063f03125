"""The node's devices, with the packet programs on each of them; those that come later, too.

Those that the operator names; or all but loopback, and those that are part of another device, such as ports of a
bridge: the other one has their packets.
"""

import errno
import fnmatch
import logging
import os
import socket
import struct
import threading
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from ipaddress import ip_address

from ebpf import layout, syscall
from modes.ebpf import device_links, traffic_control
from modes.ebpf.sizes import enlarge
from pyproxy.kernel import own_address
from pyproxy.kernel.netlink import ROUTE, Message, Netlink, attributes
from pyproxy.table import IP, Family, family_of

log = logging.getLogger("pyproxy")

_GET_LINK = 18  # RTM_GETLINK
_LINK = struct.Struct("=BxHiII")  # ifinfomsg
_IFLA_NAME, _IFLA_MASTER = 3, 10
_ETHERNET, _LOOPBACK = 1, 772  # ARPHRD_*
_GROUPS = 0x1 | 0x10 | 0x100  # RTMGRP_LINK, RTMGRP_IPV4_IFADDR, RTMGRP_IPV6_IFADDR
_SETTLES_S = 0.02


@dataclass(frozen=True, slots=True)
class Device:
    name: str
    has_ethernet: bool
    ipv4: IP | None
    ipv6: IP | None
    """The first global address of each family: what masqueraded packets get."""

    def packed(self, of_pods: tuple[str, ...]) -> bytes:
        flags = 0 if self.has_ethernet else layout.DEVICE_NO_ETHERNET
        if any(fnmatch.fnmatchcase(self.name, pattern) for pattern in of_pods):
            flags |= layout.DEVICE_OF_PODS
        return layout.device(self.ipv4, self.ipv6, flags)


class Devices:
    """Every call raises OSError."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._programs: dict[str, int] = {}
        self._names: tuple[str, ...] = ()
        self._absent: frozenset[str] = frozenset()
        """Of these names, those that no device has."""
        self._refused: dict[int, str] = {}
        """Why, by index, of devices that take no programs."""
        self._of_pods: tuple[str, ...] = ()
        self._map = -1
        self._watch: threading.Thread | None = None

    def serve(
        self, programs: Mapping[str, int], map_of_devices: int, names: tuple[str, ...], of_pods: tuple[str, ...]
    ) -> bool:
        """``programs`` by hook, and the map ``devices``.

        ``names``: as Host.devices; ``of_pods``: names of those where pods come in. Returns whether packets may have
        been lost, as devices were stopped for it.
        """
        with self._lock:
            for handle in (*self._programs.values(), *([self._map] if self._map >= 0 else [])):
                os.close(handle)
            # Of the watching thread's own: who calls may close its.
            self._programs = {hook: os.dup(handle) for hook, handle in programs.items()}
            self._map, self._names, self._of_pods = os.dup(map_of_devices), names, of_pods
        if self._watch is None:  # before devices are read, so that none comes unseen in between
            watched = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, ROUTE)
            watched.bind((0, _GROUPS))
            self._watch = threading.Thread(target=self._run, args=(watched,), name="devices", daemon=True)
            self._watch.start()
        were_stopped = self._refresh()
        self._leave_others()
        return were_stopped

    def differences(self) -> Iterator[str]:
        """What is not as `serve` left it."""
        with self._lock, Netlink(ROUTE) as netlink:
            there = dict(syscall.entries(self._map))
            for index, device in listed(netlink, self._names).items():
                if there.get(layout.number(index)) != device.packed(self._of_pods):
                    yield f"the entry of {device.name} in the map devices is not as written"
                if index not in self._refused and device_links.attached(netlink, index) != self._ids():
                    yield f"the programs on {device.name} are not attached any more"

    def _refresh(self) -> bool:
        with self._lock, Netlink(ROUTE) as netlink:
            here = listed(netlink, self._names)
            wanted = {layout.number(index): device.packed(self._of_pods) for index, device in here.items()}
            there = dict(syscall.entries(self._map))
            self._make_sure_of_room(len(wanted.keys() | there.keys()))
            syscall.update(self._map, {key: value for key, value in wanted.items() if there.get(key) != value})
            ids, were_stopped = self._ids(), False
            refused: dict[int, str] = {}
            for index, device in here.items():
                if device_links.attached(netlink, index) == ids:
                    continue
                try:
                    were_stopped |= device_links.attach(netlink, index, self._programs)
                except OSError as error:
                    if error.errno == errno.EPERM:
                        raise
                    # No reason to leave others alone.
                    why = refused[index] = error.strerror or str(error)
                    if self._refused.get(index) != why:
                        log.warning("a device is not served", extra={"device": device.name, "reason": why})
            self._refused = refused
            for key in there.keys() - wanted.keys():
                device_links.detach(netlink, layout.read_number(key))
            syscall.delete(self._map, there.keys() - wanted.keys())
            self._tell_absent({device.name for device in here.values()})
        return were_stopped

    def _make_sure_of_room(self, count: int) -> None:
        size = syscall.map_spec(self._map).entries
        if count > size:
            raise OSError(
                errno.E2BIG, f"the map devices holds {size} entries, and it takes {count}; {enlarge('devices', count)}"
            )

    def _leave_others(self) -> None:
        """A proxy before this one, with other options, may have served more."""
        with self._lock, Netlink(ROUTE) as netlink:
            mine = listed(netlink, self._names)
            for index, _ in socket.if_nameindex():
                if index not in mine:
                    device_links.detach(netlink, index)

    def _tell_absent(self, here: Collection[str]) -> None:
        absent = frozenset(name for name in self._names if not fnmatch.filter(here, name))
        for name in sorted(absent - self._absent):
            log.warning("no such device; it is served when it comes", extra={"device": name})
        for name in sorted(self._absent - absent):
            log.info("a device has come and is served", extra={"device": name})
        self._absent = absent

    def _ids(self) -> dict[str, int]:
        return {hook: syscall.program_id(handle) for hook, handle in self._programs.items()}

    def _run(self, watched: socket.socket) -> None:
        while True:
            try:
                watched.recv(1 << 16)
                # One device makes many messages.
                watched.settimeout(_SETTLES_S)
                while watched.recv(1 << 16):
                    continue
            except TimeoutError:
                pass
            except OSError:
                pass  # more was announced than the socket holds
            watched.settimeout(None)
            try:
                self._refresh()
            except OSError as error:
                log.warning("devices are not served", extra={"reason": error})


def listed(netlink: Netlink, names: tuple[str, ...] = ()) -> dict[int, Device]:
    """By index; ``names``: as Host.devices. Raises OSError."""
    addresses: dict[tuple[int, Family], IP] = {}
    for one in own_address.listed(netlink):
        if not one.is_secondary and not ip_address(one.ip).is_link_local:
            addresses.setdefault((one.device, family_of(one.ip)), one.ip)
    found = {}
    for answer in netlink.snapshot(Message(_GET_LINK, _LINK.pack(*[0] * 5))):
        _, kind, index, _, _ = _LINK.unpack_from(answer)
        fields = dict(attributes(answer, _LINK.size))
        name = fields[_IFLA_NAME].rstrip(b"\0").decode(errors="replace")
        is_wanted = any(fnmatch.fnmatchcase(name, one) for one in names) if names else _IFLA_MASTER not in fields
        if kind != _LOOPBACK and is_wanted:
            ipv4, ipv6 = (addresses.get((index, family)) for family in (Family.IPV4, Family.IPV6))
            found[index] = Device(name, kind == _ETHERNET, ipv4, ipv6)
    return found


def are_any_served() -> bool:
    """Whether programs are on any device that are ours, of any version, or may be. Raises OSError.

    Netlink is asked first, of all of them: it answers those, too, who may not call bpf(2).
    """
    indices = [index for index, _ in socket.if_nameindex()]
    with Netlink(ROUTE) as netlink:
        return any(traffic_control.attached(netlink, index) for index in indices) or device_links.are_any(indices)


def detach_all() -> int:
    """Our programs from all devices that there are; how many had any. Raises OSError."""
    with Netlink(ROUTE) as netlink:
        indices = [index for index, _ in socket.if_nameindex()]
        return sum(device_links.detach(netlink, index) for index in indices)
