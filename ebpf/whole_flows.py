"""Which entries of the map flows do not belong together: see flow.h for those that a flow has.

While flows move into a map of another size, programs go on in both. Where one flow has taken another's port over
meanwhile, what was copied before and after it would send answers to the wrong client for as long as datagrams come.
"""

import sys
from collections.abc import Callable, Iterator
from functools import partial

from ebpf import syscall
from ebpf.layout import FLOW_FROM_SERVICE, FLOW_OF_OTHERS, FLOW_TO_SERVICE, HOOK_EGRESS, HOOK_INGRESS, MAPS

_Get = Callable[[bytes], bytes | None]

# Where in a key, struct tuple, and in a value, struct flow, things are.
_SOURCE, _DESTINATION, _SOURCE_PORT, _DESTINATION_PORT = slice(0, 16), slice(16, 32), slice(32, 34), slice(34, 36)
_PROTOCOL, _HOOK = slice(36, 37), 37
_END, _PORT, _FLAGS, _CLIENT_PORT = slice(0, 18), slice(16, 18), slice(24, 26), slice(26, 28)
_INGRESS, _EGRESS = bytes([HOOK_INGRESS, 0, 0]), bytes([HOOK_EGRESS, 0, 0])


def torn(flows: int) -> list[bytes]:
    """The keys of entries without which each flow in that map is whole, or begins anew with its next packet. Raises
    OSError."""
    there = dict(syscall.entries(flows))
    suspects = [key for key, value in there.items() if not all(_agree(there.get, key, value))]
    found = []
    for key in suspects:
        # A flow that began meanwhile was read in part.
        value = _look_up(flows, key)
        if value is not None and not all(_agree(partial(_look_up, flows), key, value)):
            found.append(key)
    return found


def _look_up(flows: int, key: bytes) -> bytes | None:
    return syscall.lookup(flows, key, MAPS["flows"].value)


def _agree(get: _Get, key: bytes, value: bytes) -> Iterator[bool]:
    """Whether the others of its flow do."""
    protocol = key[_PROTOCOL]
    source, destination = key[_SOURCE] + key[_SOURCE_PORT], key[_DESTINATION] + key[_DESTINATION_PORT]
    to, flags = value[_END], int.from_bytes(value[_FLAGS], sys.byteorder)
    if key[_HOOK] == HOOK_INGRESS:
        if flags & FLOW_TO_SERVICE:  # from the client to the service: answers must come from there
            if value[_CLIENT_PORT] != bytes(2):
                source = source[:16] + value[_CLIENT_PORT]
            yield _to(get, to, source, protocol, _EGRESS) == destination
            out = _to(get, source, to, protocol, _EGRESS)
            if out is not None and out[_PORT] != bytes(2):  # masqueraded: answers must find back
                yield _to(get, to, out, protocol, _INGRESS) == source
        elif not flags & FLOW_OF_OTHERS:  # from the backend to a port of this node: it must be the client's
            yield _to(get, to, source, protocol, _EGRESS) == destination
    elif not flags & FLOW_FROM_SERVICE and to[_PORT] != bytes(2):  # from the client to the backend
        yield _to(get, destination, to, protocol, _INGRESS) == source


def _to(get: _Get, source: bytes, destination: bytes, protocol: bytes, hook: bytes) -> bytes | None:
    """Where packets on that way go, or come from."""
    key = source[:16] + destination[:16] + source[16:] + destination[16:] + protocol + hook
    value = get(key)
    return None if value is None else value[_END]
