"""Which services are to be looked at again, after which event."""

import pytest

from pyproxy.objects import (
    HEADLESS_LABEL,
    PROXY_NAME_LABEL,
    Delete,
    EndpointSlice,
    Event,
    Key,
    Node,
    Object,
    Service,
    Upsert,
)
from pyproxy.store import Store
from tests.unit.samples import OTHER_NODE, THIS_NODE, admitted, endpoint, endpoint_slice, node, service

WEB, SHOP = Key("default", "web"), Key("default", "shop")
SLICE = Key("default", "web-1")


def holding(*things: Object) -> Store:
    """Clean, as after a plan."""
    store = Store(THIS_NODE)
    store.apply(Upsert(thing) for thing in things)
    store.take_dirty()
    return store


def names_of_slices(store: Store, key: Key) -> list[str]:
    return sorted(piece.metadata.name for piece in store.slices_of(key))


def dirty_after(store: Store, *events: Event) -> set[Key]:
    store.apply(events)
    return store.take_dirty()


def test_a_new_store_is_clean_and_empty() -> None:
    store = Store(THIS_NODE)
    assert (store.services, dict(store.slices), store.node, store.is_dirty) == ({}, {}, None, False)


def test_taking_what_is_dirty_cleans() -> None:
    store = Store(THIS_NODE)
    store.apply([Upsert(service())])
    assert store.is_dirty
    assert store.take_dirty() == {WEB}
    assert not store.is_dirty
    assert store.take_dirty() == set()


@pytest.mark.parametrize("thing", [service(), endpoint_slice(endpoint("10.244.1.1"))], ids=["service", "slice"])
def test_an_object_that_is_new_or_changed_or_gone_dirties_its_service(thing: Service | EndpointSlice) -> None:
    store = Store(THIS_NODE)
    assert dirty_after(store, Upsert(thing)) == {WEB}
    assert dirty_after(store, Delete(type(thing), thing.key)) == {WEB}


def test_a_change_within_an_object_dirties_its_service() -> None:
    store = holding(service(), endpoint_slice(endpoint("10.244.1.1")))
    assert dirty_after(store, Upsert(service(type="NodePort"))) == {WEB}
    assert dirty_after(store, Upsert(endpoint_slice(endpoint("10.244.1.2")))) == {WEB}


def test_an_object_that_comes_again_unchanged_dirties_nothing() -> None:
    things: list[Object] = [service(), endpoint_slice(endpoint("10.244.1.1")), node("192.0.2.1")]
    store = holding(*things)
    again: list[Object] = [service(), endpoint_slice(endpoint("10.244.1.1")), node("192.0.2.1")]
    assert dirty_after(store, *map(Upsert, again)) == set()
    assert not store.is_dirty


@pytest.mark.parametrize("kind", [Service, EndpointSlice, Node])
def test_deleting_what_is_not_there_does_nothing(kind: type[Service] | type[EndpointSlice] | type[Node]) -> None:
    store = holding(service("other"), endpoint_slice(of="other", name="other-1"))
    assert dirty_after(store, Delete(kind, WEB)) == set()


def test_a_slice_belongs_to_the_service_of_its_label_in_its_namespace() -> None:
    store = holding(
        endpoint_slice(name="web-1"),
        endpoint_slice(name="web-2"),
        endpoint_slice(name="shop-1", of="shop"),
        endpoint_slice(name="web-3", namespace="test"),
    )
    assert names_of_slices(store, WEB) == ["web-1", "web-2"]
    assert names_of_slices(store, SHOP) == ["shop-1"]
    assert names_of_slices(store, Key("test", "web")) == ["web-3"]
    assert names_of_slices(store, Key("test", "shop")) == []


def test_a_slice_that_moves_to_another_service_dirties_both() -> None:
    store = holding(endpoint_slice())
    assert dirty_after(store, Upsert(endpoint_slice(of="shop"))) == {WEB, SHOP}
    assert names_of_slices(store, WEB) == []
    assert names_of_slices(store, SHOP) == ["web-1"]
    assert list(store.slices) == [SLICE]


def test_slices_may_come_before_their_service_and_stay_after_it() -> None:
    store = holding(endpoint_slice())
    assert dirty_after(store, Upsert(service())) == {WEB}
    assert dirty_after(store, Delete(Service, WEB)) == {WEB}
    assert names_of_slices(store, WEB) == ["web-1"]


def test_a_deletion_and_an_addition_in_one_batch_leave_the_addition() -> None:
    store = holding(service())
    assert dirty_after(store, Delete(Service, WEB), Upsert(service())) == {WEB}
    assert store.services == {WEB: service()}


def test_a_service_and_a_slice_of_one_name_are_two_things() -> None:
    store = holding(service("web"), endpoint_slice(name="web"))
    assert dirty_after(store, Delete(Service, WEB)) == {WEB}
    assert list(store.slices) == [WEB]


@pytest.mark.parametrize("name", ["other-proxy", ""])
def test_what_is_labelled_for_another_proxy_is_not_kept(name: str) -> None:
    labels = {PROXY_NAME_LABEL: name}
    store = holding(admitted(service(labels=labels)), admitted(endpoint_slice(labels=labels)))
    assert store.services == {}
    assert dict(store.slices) == {}


def test_slices_of_headless_services_are_not_kept() -> None:
    store = holding(
        admitted(endpoint_slice(labels={HEADLESS_LABEL: ""})), admitted(service(labels={HEADLESS_LABEL: ""}))
    )
    assert dict(store.slices) == {}
    assert list(store.services) == [WEB]


def test_an_object_that_becomes_another_proxys_is_gone_and_can_come_back() -> None:
    labels = {PROXY_NAME_LABEL: "other"}
    store = holding(service(), endpoint_slice())
    assert dirty_after(store, Upsert(service(labels=labels))) == {WEB}
    assert dirty_after(store, Upsert(endpoint_slice(labels=labels))) == {WEB}
    assert (store.services, dict(store.slices)) == ({}, {})
    assert dirty_after(store, Upsert(service())) == {WEB}


def test_a_change_of_this_node_dirties_all_services() -> None:
    store = holding(service(), service("shop"))
    assert dirty_after(store, Upsert(node("192.0.2.1"))) == {WEB, SHOP}
    assert dirty_after(store, Upsert(node("192.0.2.2"))) == {WEB, SHOP}


def test_a_change_of_the_node_is_work_even_without_services() -> None:
    store = Store(THIS_NODE)
    store.apply([Upsert(node("192.0.2.1"))])
    assert store.is_dirty
    assert store.take_dirty() == set()


def test_other_nodes_do_not_matter() -> None:
    store = holding(service())
    assert dirty_after(store, Upsert(node("192.0.2.9", name=OTHER_NODE))) == set()
    assert store.node is None


def test_a_node_that_was_deleted_keeps_its_last_state() -> None:
    store = holding(service(), node("192.0.2.1"))
    assert dirty_after(store, Delete(Node, Key("", THIS_NODE))) == set()
    assert store.node == node("192.0.2.1")
