"""UDP sockets that are connected to a backend which is no longer one: the kernel ends them, so that nobody waits there.

To whom a socket is connected is decided once, when it connects, and such a socket may never do it again: a resolver
would ask an endpoint that is gone for ever. Ended, its next call fails with ECONNABORTED, and it connects anew.
Only sockets that came to the backend through its service are looked for, by the map udp_peers.

The layouts are those of linux/inet_diag.h.
"""

import errno
import logging
import socket
import struct
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import closing

from ebpf import layout, network_namespace, store, syscall
from pyproxy.kernel.netlink import Message, Netlink

log = logging.getLogger("pyproxy")

_SOCK_DIAG = 4  # NETLINK_SOCK_DIAG
_BY_FAMILY, _DESTROY = 20, 21  # SOCK_DIAG_BY_FAMILY, SOCK_DESTROY
_REQUEST = struct.Struct("=BBBxI")  # inet_diag_req_v2, up to id
_ID_AT, _ID_BYTES, _PORT_AT, _ADDRESS_AT, _COOKIE_AT = 4, 48, 2, 20, 40  # of inet_diag_msg.id, and in it
_ESTABLISHED = 1 << 1  # what a connected UDP socket is called
_SETTLES_S = 0.5


class UdpSockets:
    """A thread that works when it is woken: there may be many namespaces to look into."""

    def __init__(self, rest: Callable[[float], object] = time.sleep) -> None:
        """``rest``: for so many seconds."""
        self._rest = rest
        self._woken = threading.Event()
        self._thread: threading.Thread | None = None
        self._is_barred = False
        """Whether it was said that this process may not do all of it."""

    def check(self) -> None:
        """Backends went: end, soon, the sockets that are connected to any."""
        self._woken.set()
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="udp-sockets", daemon=True)
            self._thread.start()

    def _run(self) -> None:
        while self._woken.wait():
            # What is on its way is answered; and who was about to connect as the backend went has done it.
            self._rest(_SETTLES_S)
            self._woken.clear()
            try:
                with store.using_maps() as maps:
                    if maps:
                        _end_stale(maps)
            except PermissionError as error:
                if not self._is_barred:
                    reason = f"{error.strerror}: it takes CAP_SYS_ADMIN"
                    log.warning("UDP sockets of pods can't be ended when an endpoint goes", extra={"reason": reason})
                self._is_barred = True
            except OSError as error:
                log.warning("UDP sockets can't be ended", extra={"reason": error})


def _end_stale(maps: Mapping[str, int]) -> None:
    keys = {key: layout.read_peer(key, value) for key, value in syscall.entries(maps["udp_peers"])}
    usable: dict[tuple[bytes, bytes], bool] = {}
    stale: dict[int, dict[int, bytes]] = {}
    for peer in keys.values():
        pair = peer.place, peer.backend
        if pair not in usable:
            usable[pair] = _is_usable(maps, *pair)
        if not usable[pair]:
            stale.setdefault(peer.namespace, {})[peer.cookie] = peer.backend
    if not stale:
        return
    _end(stale)
    gone = [key for key, peer in keys.items() if not usable[peer.place, peer.backend]]
    syscall.delete(maps["udp_peers"], gone)


def _end(stale: dict[int, dict[int, bytes]]) -> None:
    """``stale``: sockets by network namespace, with the backends that they are connected to. Empties it.

    Raises PermissionError where a namespace may not be entered, which comes after the node's own.
    """
    ended = 0
    with closing(network_namespace.each()) as namespaces:
        try:
            for cookie in namespaces:
                ended += end_sockets(stale.pop(cookie, {}))
                if not stale:
                    return
        finally:
            if ended:
                log.info("UDP sockets ended", extra={"count": ended})


def _is_usable(maps: Mapping[str, int], place: bytes, backend: bytes) -> bool:
    """Whether who goes to ``place`` may get that backend."""
    address, number, _ = layout.read_place(place)
    family = "IPv6" if ":" in layout.spelled(address) else "IPv4"
    for where in (place, layout.place(layout.ANY_ADDRESS[family], number, "udp")):
        packed = syscall.lookup(maps["services"], where, layout.MAPS["services"].value)
        if packed is not None:
            member = layout.member(layout.read_service(packed).inside.id, backend)
            return syscall.lookup(maps["members"], member, layout.MAPS["members"].value) is not None
    return False


def end_sockets(wanted: dict[int, bytes]) -> int:
    """Those of this thread's network namespace, by their cookies, if connected to that backend; how many there were."""
    found: list[Message] = []
    if not wanted:
        return 0
    with Netlink(_SOCK_DIAG) as netlink:
        for family in (socket.AF_INET, socket.AF_INET6):
            head = _REQUEST.pack(family, socket.IPPROTO_UDP, 0, _ESTABLISHED)
            for answer in netlink.dump(Message(_BY_FAMILY, head + bytes(_ID_BYTES))):
                identity = answer[_ID_AT : _ID_AT + _ID_BYTES]
                (cookie,) = struct.unpack_from("=Q", identity, _COOKIE_AT)
                if cookie in wanted and _backend(family, identity) == wanted[cookie]:
                    found.append(Message(_DESTROY, head + identity))
        failures = netlink.send(found)
    for failure in failures:
        if failure.code == errno.EOPNOTSUPP:
            raise OSError(failure.code, "this kernel can't end sockets (CONFIG_INET_DIAG_DESTROY)")
    return len(found) - len(failures)


def _backend(family: int, identity: bytes) -> bytes:
    """Whom a socket is connected to, as the maps have it."""
    length = 4 if family == socket.AF_INET else 16
    ip = socket.inet_ntop(family, identity[_ADDRESS_AT : _ADDRESS_AT + length])
    packed = layout.address(ip)
    number = int.from_bytes(identity[_PORT_AT : _PORT_AT + 2], "big")
    return layout.backend(layout.spelled(packed), number)
