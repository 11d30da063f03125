"""Addresses that a mode claims for this node by local routes, and keeps for as long as a connection needs them."""

from collections.abc import Iterable, Iterator
from collections.abc import Set as AbstractSet

from pyproxy.address import IP
from pyproxy.kernel.error import as_mode_error
from pyproxy.kernel.local_route import LocalRoutes


class ClaimedAddresses:
    """Every call raises ModeError if the kernel does not do as asked."""

    def __init__(self, owner: int) -> None:
        """``owner``: see LocalRoutes."""
        self._routes = LocalRoutes(owner)
        self.claimed: AbstractSet[IP] = frozenset()
        """What local routes there are, as far as we know."""
        self.leaving: AbstractSet[IP] = frozenset()
        """Those of them that no service has any more."""

    def adopt(self, wanted: AbstractSet[IP]) -> None:
        """What an earlier run left; of which only ``wanted`` is to stay."""
        self.claimed = self.listed()
        self.leaving = self.claimed - wanted

    def claim(self, addresses: AbstractSet[IP]) -> None:
        with as_mode_error("addresses can't be claimed"):
            self._routes.add(addresses - self.claimed)
        self.claimed |= addresses
        self.leaving -= addresses

    def leave(self, addresses: AbstractSet[IP]) -> None:
        """No service has them any more."""
        self.leaving |= addresses & self.claimed

    def let_go(self, busy: AbstractSet[IP]) -> AbstractSet[IP]:
        """Of those that are leaving, unless a connection needs them. Returns which that were."""
        free = self.leaving - busy
        with as_mode_error("addresses can't be let go"):
            self._routes.remove(free)
        self.claimed -= free
        self.leaving -= free
        return free

    def listed(self) -> AbstractSet[IP]:
        """As the kernel has them."""
        with as_mode_error("local routes can't be read"):
            return self._routes.listed()

    def differences(self) -> Iterator[str]:
        """Between what is claimed and what the kernel has."""
        for ip in sorted(self.listed() ^ self.claimed):
            yield f"the local route of {ip} is {'missing' if ip in self.claimed else 'foreign'}"

    def release(self, addresses: Iterable[IP] | None = None) -> list[str]:
        """Without them, all that there are. Says what that was."""
        gone = self.listed() if addresses is None else set(addresses)
        with as_mode_error("local routes can't be removed"):
            self._routes.remove(gone)
        return [f"{len(gone)} local routes"] if gone else []
