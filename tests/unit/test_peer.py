"""What `--peer` takes, and what the proxy it names is started with."""

from pathlib import Path

import pytest

from bench.peer import Peer, UnusablePeer, configuration, filled, peers
from tests.faults.commands import is_one_sentence


def test_a_name_and_a_command() -> None:
    (peer,) = peers(["other=env 'A=b c' {config} --node={node}"])
    assert (str(peer), peer.mode, peer.words) == ("other", "", ("env", "A=b c", "{config}", "--node={node}"))
    assert (peer.iptables, peer.via_api, peer.relays) == (None, True, False)


def test_a_mode_stands_behind_the_name() -> None:
    peer = Peer.parse("kube-proxy:ipvs=env {config} {mode}")
    assert (str(peer), peer.mode) == ("kube-proxy:ipvs", "ipvs")


def test_the_placeholders_are_filled_wherever_they_stand() -> None:
    words = ("x", "{mode}", "--a={config},{kubeconfig}", "{node}{node}", '{"kept": 1}')
    found = filled(words, config=Path("/c"), kubeconfig=Path("/k"), node="n", mode="m")
    assert found == ["x", "m", "--a=/c,/k", "nn", '{"kept": 1}']


@pytest.mark.parametrize(
    ("texts", "said"),
    [
        (["kube-proxy --config {config}"], "--peer 'kube-proxy --config {config}': it takes the form NAME='command"),
        (["=env {config}"], "--peer '=env {config}': it takes the form"),
        (["a b=env {config}"], "--peer 'a b=env {config}': it takes the form"),
        (["a:=env {config}"], "--peer 'a:=env {config}': it takes the form"),
        (["a=env 'x {config}"], "--peer a: its command can't be split into words: No closing quotation"),
        (["a=env {confg}"], "--peer a: its command has {confg}, and only {config}, {kubeconfig}, {node}, {mode} stand"),
        (["a="], "--peer a: without {config} or {kubeconfig} in its command it finds no API server"),
        (["a=env {node}"], "--peer a: without {config} or {kubeconfig} in its command it finds no API server"),
        (["a=env {config} {mode}"], "--peer a: its command has {mode}, so say which: --peer a:MODE='…'"),
        (["a=/no/such/proxy {config}"], "--peer a: there is no program /no/such/proxy"),
        (["a=env {config}", "b=env {config}", "a=env {kubeconfig}"], "--peer a: there are two of that name"),
        (["nftables=env {config}"], "--peer nftables: another contestant has that name; give it one of its own"),
    ],
)
def test_a_mistake_is_told_in_a_sentence(texts: list[str], said: str) -> None:
    with pytest.raises(UnusablePeer) as caught:
        peers(texts, taken=["nftables", "floor"])
    assert str(caught.value).startswith(said)
    assert is_one_sentence(f"pyproxy: {caught.value}\n")


def test_options_of_a_modes_section_are_put_into_each() -> None:
    written = configuration("ipvs", Path("/k"), masqueradeAll=True, syncPeriod="1h", nodePortAddresses=["primary"])
    assert written["iptables"] == written["nftables"] == {"masqueradeAll": True, "syncPeriod": "1h"}
    assert written["ipvs"] == {"syncPeriod": "1h"}
    assert (written["mode"], written["nodePortAddresses"]) == ("ipvs", ["primary"])
    assert not {"masqueradeAll", "syncPeriod"} & written.keys()
