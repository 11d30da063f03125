"""Programs on a device's way in and out: filters of its clsact, which others may have filters in, too.

The layouts are those of linux/rtnetlink.h, linux/pkt_sched.h and linux/pkt_cls.h.
"""

import errno
import socket
import struct
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from pyproxy.kernel.netlink import CREATE, EXCLUSIVE, Message, Netlink, attribute, attributes, nested

_NEW_QDISC, _DELETE_QDISC, _GET_QDISC = 36, 37, 38  # RTM_*
_NEW_FILTER, _DELETE_FILTER, _GET_FILTER = 44, 45, 46
_ECHO = 0x8  # NLM_F_ECHO: or else those who watch are told, and who asks is not
_MESSAGE = struct.Struct("=BxxxiIII")  # tcmsg
_CLSACT, _CLSACT_HANDLE = 0xFFFFFFF1, 0xFFFF0000  # TC_H_CLSACT, TC_H_MAKE(TC_H_CLSACT, 0)
HOOKS = {"ingress": 0xFFFFFFF2, "egress": 0xFFFFFFF3}
"""The parents of filters, by the names of programs."""
_KIND, _OPTIONS = 1, 2  # TCA_*
_PROGRAM, _NAME, _FLAGS, _ID = 6, 7, 8, 11  # TCA_BPF_*
_DIRECT = 1  # TCA_BPF_FLAG_ACT_DIRECT
_OUR_NAME = b"pyproxy\0"
_PRIORITY = 10313
"""Of our filters: others may come before and after, or have the same."""
_ALL_PROTOCOLS = socket.htons(3)  # ETH_P_ALL
_GONE = (errno.ENODEV, errno.ENOENT, errno.EINVAL)  # EINVAL: the device or its qdisc went


def attach(netlink: Netlink, index: int, programs: Mapping[str, int]) -> bool:
    """In place of ours that are there; whether the device was stopped, to get its clsact. One that has just vanished is
    no failure.

    Raises OSError; EBUSY if it has somebody's qdisc ``ingress``, which knows no egress: programs for both would be in
    one place, and one of them lost.
    """
    was_stopped = True
    for failure in netlink.send([Message(_NEW_QDISC, _clsact(index), CREATE | EXCLUSIVE)]):
        was_stopped = False
        if failure.code == errno.EEXIST and (kind := _qdisc(netlink, index)) != "clsact":
            raise OSError(errno.EBUSY, f"it has a qdisc {kind} of another's, which should be clsact: that has egress")
        if failure.code not in (errno.EEXIST, *_GONE):
            raise OSError(failure.code, failure.reason)
    messages = []
    for hook, handle in programs.items():
        place = _handle(netlink, index, HOOKS[hook])
        options = attribute(_PROGRAM, struct.pack("=I", handle)) + attribute(_NAME, _OUR_NAME)
        options += attribute(_FLAGS, struct.pack("=I", _DIRECT))
        payload = _filter(index, hook, place) + attribute(_KIND, b"bpf\0") + nested(_OPTIONS, options)
        messages.append(Message(_NEW_FILTER, payload, CREATE))
    for failure in netlink.send(messages):
        if failure.code not in _GONE:
            raise OSError(failure.code, failure.reason)
    return was_stopped


def attached(netlink: Netlink, index: int) -> dict[str, int]:
    """The ids of our programs, by hook. Raises OSError."""
    return {
        hook: one.program for hook, parent in HOOKS.items() for one in _filters(netlink, index, parent) if one.is_ours
    }


def detach(netlink: Netlink, index: int) -> bool:
    """Ours, and the clsact if nobody else has anything in it; whether there was anything. Raises OSError."""
    mine = [
        _filter(index, hook, one.handle)
        for hook, parent in HOOKS.items()
        for one in _filters(netlink, index, parent)
        if one.is_ours
    ]
    if not mine:
        return False
    _tolerate(netlink.send(Message(_DELETE_FILTER, place) for place in mine))
    if not any(list(_filters(netlink, index, parent)) for parent in HOOKS.values()):
        _tolerate(netlink.send([Message(_DELETE_QDISC, _clsact(index))]))
    return True


def _qdisc(netlink: Netlink, index: int) -> str:
    """The kind of the one that is in clsact's place."""
    answer = netlink.ask(Message(_GET_QDISC, _MESSAGE.pack(0, index, 0, _CLSACT, 0), _ECHO))
    return dict(attributes(answer, _MESSAGE.size))[_KIND].rstrip(b"\0").decode()


def _clsact(index: int) -> bytes:
    return _MESSAGE.pack(0, index, _CLSACT_HANDLE, _CLSACT, 0) + attribute(_KIND, b"clsact\0")


def _filter(index: int, hook: str, handle: int) -> bytes:
    return _MESSAGE.pack(0, index, handle, HOOKS[hook], _PRIORITY << 16 | _ALL_PROTOCOLS)


def _handle(netlink: Netlink, index: int, parent: int) -> int:
    """Of ours that is there; or else one that nobody has, since a filter with the same one would be replaced."""
    there = [one for one in _filters(netlink, index, parent) if one.priority == _PRIORITY]
    mine = [one.handle for one in there if one.is_ours]
    taken = {one.handle for one in there}
    return mine[0] if mine else next(n for n in range(1, len(taken) + 2) if n not in taken)


class _Found(NamedTuple):
    """A filter, whoever's it is."""

    handle: int
    priority: int
    name: bytes
    program: int
    """Its id."""

    @property
    def is_ours(self) -> bool:
        return (self.priority, self.name) == (_PRIORITY, _OUR_NAME)


def _filters(netlink: Netlink, index: int, parent: int) -> Iterable[_Found]:
    asked = _MESSAGE.pack(0, index, 0, parent, 0)
    try:
        answers = netlink.snapshot(Message(_GET_FILTER, asked))
    except OSError as error:
        if error.errno in _GONE:
            return
        raise
    for answer in answers:
        _, _, handle, _, info = _MESSAGE.unpack_from(answer)
        options = dict(attributes(dict(attributes(answer, _MESSAGE.size)).get(_OPTIONS, b"")))
        if not handle:
            continue  # of all filters of a priority together
        (program,) = struct.unpack("=I", options.get(_ID, bytes(4)))
        yield _Found(handle, info >> 16, options.get(_NAME, b""), program)


def _tolerate(failures: Iterable[object]) -> None:
    """What is to go may have gone."""
    for failure in failures:
        code = getattr(failure, "code", 0)
        if code not in _GONE:
            raise OSError(code, "a program can't be taken from a device")
