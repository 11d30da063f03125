"""The newest object of each name, and which services have to be looked at again."""

from collections.abc import Iterable, Mapping

from pyproxy.objects import (
    HEADLESS_LABEL,
    PROXY_NAME_LABEL,
    Delete,
    EndpointSlice,
    Event,
    Key,
    Node,
    Service,
)


class Store:
    """Knows no policy: only names, and that a slice belongs to the service its label names."""

    def __init__(self, node_name: str) -> None:
        self.node_name = node_name
        self.node: Node | None = None
        self.services: dict[Key, Service] = {}
        self._slices: dict[Key, EndpointSlice] = {}
        self._slices_of: dict[Key, dict[Key, EndpointSlice]] = {}
        self._dirty: set[Key] = set()
        self._node_is_dirty = False

    def apply(self, events: Iterable[Event]) -> None:
        for event in events:
            if isinstance(event, Delete):
                self._remove(event.kind, event.key)
            elif isinstance(event.object, Node):
                self._set_node(event.object)
            elif _is_for_others(event.object):
                self._remove(type(event.object), event.object.key)
            elif isinstance(event.object, Service):
                self._set_service(event.object)
            else:
                self._set_slice(event.object)

    def slices_of(self, service: Key) -> Iterable[EndpointSlice]:
        """In no particular order."""
        return self._slices_of.get(service, {}).values()

    @property
    def slices(self) -> Mapping[Key, EndpointSlice]:
        return self._slices

    def take_dirty(self) -> set[Key]:
        """Services that changed, themselves or by their slices, since the last call; all of them if the node did."""
        dirty, self._dirty = self._dirty, set()
        if self._node_is_dirty:
            self._node_is_dirty = False
            dirty.update(self.services)
        return dirty

    def touch(self) -> None:
        """Everything has to be looked at again."""
        self._node_is_dirty = True

    @property
    def is_dirty(self) -> bool:
        return bool(self._dirty) or self._node_is_dirty

    def _set_service(self, service: Service) -> None:
        if self.services.get(service.key) != service:
            self.services[service.key] = service
            self._dirty.add(service.key)

    def _set_slice(self, piece: EndpointSlice) -> None:
        key, old = piece.key, self._slices.get(piece.key)
        if old == piece:
            return
        if old is not None and old.service_key != piece.service_key:
            self._remove(EndpointSlice, key)
        self._slices[key] = piece
        self._slices_of.setdefault(piece.service_key, {})[key] = piece
        self._dirty.add(piece.service_key)

    def _set_node(self, node: Node) -> None:
        if node.metadata.name == self.node_name and node != self.node:
            self.node = node
            self._node_is_dirty = True

    def _remove(self, kind: type, key: Key) -> None:
        if kind is Service and self.services.pop(key, None) is not None:
            self._dirty.add(key)
        elif kind is EndpointSlice and (old := self._slices.pop(key, None)) is not None:
            pieces = self._slices_of[old.service_key]
            del pieces[key]
            if not pieces:
                del self._slices_of[old.service_key]
            self._dirty.add(old.service_key)
        # A Node that was deleted keeps its last state: the proxy on it serves until it is stopped.


def _is_for_others(thing: Service | EndpointSlice) -> bool:
    """Whether labels keep it from this proxy: KEP-2447 for both, headless services' slices by their own label."""
    labels = thing.metadata.labels or {}
    return PROXY_NAME_LABEL in labels or (isinstance(thing, EndpointSlice) and HEADLESS_LABEL in labels)
