"""Another proxy in the lab: this pyproxy, as if it were a stranger, and some that fail."""

import json
import shlex
import signal
import sys
import tempfile
from pathlib import Path

import pytest

from bench import synthetic
from bench.ask import ask
from bench.contestant import CONTROL, FLOOR, Contestant, NotServing
from bench.feed import CANARY
from bench.lab import Lab
from bench.latency import LatencyBench, Plan
from bench.peer import Peer
from bench.subject import Subject, logged
from pyproxy.configuration import parse
from tests.conformance.cluster import OURS, until


def _peer(name: str, *words: str) -> Peer:
    return Peer.parse(f"{name}={shlex.join(words)}")


def _python(code: str) -> Peer:
    return _peer("peer", sys.executable, "-c", code, "{config}")


def test_a_peer_serves_all_that_it_was_given_and_what_changes() -> None:
    with Contestant("one", _peer("ours:nftables", *OURS)) as one:
        pod = one.host("pod-2")
        one.serve([*synthetic.load(40, 2), synthetic.service(*CANARY), _slice(pod.ipv4)])
        assert ask(one.host("pod-1"), CANARY[1], 80).pod == "pod-2"
        rules = one.host("node").namespace.run(["nft", "list", "ruleset"]).stdout.decode()
        assert all(f"10.96.1.{number} " in rules for number in range(40))
        one.put("slice", [_slice(one.host("pod-4").ipv4)])
        one.settle()
        assert ask(one.host("pod-1"), CANARY[1], 80).pod == "pod-4"


def test_its_configuration_is_one_that_starts_in_a_network_namespace(tmp_path: Path) -> None:
    peer = _peer("ours:ipvs", "env", "{config}", "{kubeconfig}", "{node}", "{mode}")
    with Lab() as lab, peer.feed(lab, tmp_path) as feed:
        program, config, kubeconfig, *others = peer.command(lab, feed)
        assert (program, others) == ("env", ["node-1", "ipvs"])
        text = Path(config).read_bytes()
    read = parse(text)
    assert (read.mode, str(read.kubeconfig)) == ("ipvs", kubeconfig)
    assert [one.field for one in read.ignored if "conntrack" in one.field] == []  # left alone, as pyproxy does
    assert read.healthz_address == ("127.0.0.1", 10256)
    assert json.loads(text)["conntrack"].keys() == {"maxPerCore", "min", "tcpEstablishedTimeout", "tcpCloseWaitTimeout"}


def test_a_peer_that_dies_is_told_with_its_last_words() -> None:
    with (
        Contestant("one", _python("raise SystemExit('no such thing as a kernel')"), patience_s=10) as one,
        pytest.raises(NotServing, match="the proxy ended; its log: no such thing as a kernel"),
    ):
        one.serve([])


def test_a_peer_that_never_serves_is_told_with_its_last_words() -> None:
    code = "import time; print('thinking', flush=True); time.sleep(1000)"
    with (
        Contestant("one", _python(code), patience_s=1) as one,
        pytest.raises(NotServing, match="the proxy did not get there in 1 s; its log: thinking"),
    ):
        one.serve([])


def test_a_peer_that_falls_out_leaves_the_others_in() -> None:
    bench = LatencyBench([_peer("bad", "false", "{config}"), _peer("good:nftables", *OURS)], 2, 1, Plan(1, 5, 5, 1))
    bench.measure(lambda _: None)
    assert bench.result.contestants == [FLOOR, CONTROL, "good:nftables"]
    assert list(bench.result.failed) == ["bad"]
    assert {cell.contestant for cell in bench.result.samples} == {FLOOR, CONTROL, "good:nftables"}


def test_a_proxy_that_ignores_sigterm_is_killed() -> None:
    code = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf', flush=True)"
    with Lab() as lab, tempfile.TemporaryFile() as log:
        subject = Subject(lab, [sys.executable, "-c", f"{code}; time.sleep(1000)"], log)
        until(lambda: "deaf" in logged(log), lambda: "it did not start")
        assert subject.stop(patience_s=0.2) == -signal.SIGKILL
        assert not subject.is_alive


def test_the_sentinel_is_not_served_before_its_last_move_is() -> None:
    with Contestant("one", _peer("ours:nftables", *OURS)) as one:
        one.serve([])
        sentinel = one._sentinel
        assert sentinel is not None and sentinel.is_served()
        one.stop()
        sentinel.move()
        assert not sentinel.is_served()


def _slice(address: str) -> dict[str, object]:
    return synthetic.endpoint_slice(CANARY[0], [(address, "node-1")])
