"""UDP sockets that are connected to a backend which is no longer one, in a lab of real sockets."""

from collections.abc import Iterator
from dataclasses import replace
from threading import Event

import pytest

from bench.ask import open_socket
from bench.lab import Lab
from ebpf import store, syscall
from modes.ebpf.mode import EbpfMode
from modes.ebpf.udp_sockets import UdpSockets
from pyproxy.objects import ServicePort, SlicePort
from pyproxy.table import Host
from tests.conformance.cluster import is_ended, until
from tests.unit.samples import endpoint, endpoint_slice, service
from tests.unit.samples import table as table_of

FRONTEND = "10.96.0.1", 53


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Lab() as lab:
        yield lab


def test_who_is_about_to_be_answered_is_answered_before_its_socket_ends(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert lab.cgroup is not None
    pod = lab.host("pod-2")
    with open_socket(pod, pod.ipv4, "UDP") as server, open_socket(lab.node, FRONTEND[0], "UDP") as client:
        server.bind((pod.ipv4, 0))
        for one in (server, client):
            one.settimeout(5)
        objects = (
            service("dns", ServicePort(53, protocol="UDP"), cluster_ips=FRONTEND[:1]),
            endpoint_slice(endpoint(pod.ipv4), of="dns", ports=(SlicePort("", "UDP", server.getsockname()[1]),)),
        )
        rests, may_go_on = Event(), Event()

        def rest(seconds: float) -> None:
            assert seconds > 0
            rests.set()
            may_go_on.wait()

        with lab.node.namespace.entered():
            mode = EbpfMode()
            with monkeypatch.context() as patch:
                patch.setattr(UdpSockets, "check", lambda _: None)  # the mode's own would come first
                mode.sync(replace(table_of(*objects), host=Host(cgroup=str(lab.cgroup.path))), None)
            client.connect(FRONTEND)
            client.send(b"?")
            _, asking = server.recvfrom(100)
            with store.using_maps() as maps:
                syscall.delete(maps["members"], [key for key, _ in syscall.entries(maps["members"])])
            UdpSockets(rest).check()
            assert rests.wait(5)
            server.sendto(b"!", asking)
            assert client.recv(100) == b"!"
            may_go_on.set()
            until(lambda: is_ended(client), lambda: "the socket is connected yet")
            assert mode.cleanup()
