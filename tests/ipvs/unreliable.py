"""A kernel that runs out of memory once, in the midst of a change."""

import errno
import os
from collections.abc import Iterable
from typing import Any

import pytest

from pyproxy.kernel import iptables
from pyproxy.kernel.netlink import Failure, Message, Netlink
from pyproxy.table import ModeError

REASON = os.strerror(errno.ENOMEM)


class Unreliable:
    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self._left = 0
        self._send, self._load = Netlink.send, iptables.load
        patch.setattr(Netlink, "send", lambda netlink, messages: self._send_or_fail(netlink, messages))
        patch.setattr(iptables, "load", self._load_or_fail)

    def fail(self, at: int) -> None:
        """At that one of the next changes, counted from 1; 0: at none."""
        self._left = at

    def _is_due(self) -> bool:
        self._left -= self._left > 0
        return self._left == 0

    def _send_or_fail(self, netlink: Netlink, messages: Iterable[Message]) -> list[Failure]:
        """Half of them are done then."""
        given = list(messages)
        if given and self._left and self._is_due():
            self._send(netlink, given[: len(given) // 2])
            raise OSError(errno.ENOMEM, REASON)
        return self._send(netlink, given)

    def _load_or_fail(self, *load: Any) -> None:
        if self._left and self._is_due():
            raise ModeError(f"iptables-restore: {REASON}")
        self._load(*load)
