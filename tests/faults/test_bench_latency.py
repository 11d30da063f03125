"""`pyproxy bench latency` for real: every mode of this kernel, who falls out, Ctrl-C, bad input. No time is judged."""

import os
import pty
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import pytest

from bench import run
from bench.contender import Contender, contenders
from bench.contestant import CONTROL, FLOOR, Contestant, NotServing
from bench.document import Document
from bench.echo import Echo
from bench.latency import LatencyBench, Plan
from bench.measure import MEASURES
from bench.measured import WAYS
from bench.place import place_of, processors
from bench.prober import Prober
from ebpf import store, syscall
from pyproxy import modes
from tests.faults.commands import is_one_sentence
from tests.faults.traces import traces

_PROXIES = Contender("nftables"), Contender("nonsense")


def _bench(*arguments: str | Path, inside: Sequence[str] = ()) -> subprocess.CompletedProcess[str]:
    """``inside``: a command that runs it."""
    command = [*inside, sys.executable, "-m", "pyproxy", "bench", "latency", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)


def test_every_mode_that_runs_here_is_measured(tmp_path: Path) -> None:
    file = tmp_path / "latency.json"
    done = _bench("--services", "3,12", "--rounds", "2", "--samples", "30", "--warm-up", "30", "--json", file)
    assert done.returncode == 0, done.stderr
    runnable = [name for name in modes.names() if modes.load(name).probe() is None]
    skipped = sorted(set(modes.names()) - set(runnable))
    expected = [FLOOR, CONTROL, *map(str, contenders(runnable)[0])]
    said = Document.read(file)
    assert said.complete
    assert sorted(said.skipped) == skipped
    for mode in skipped:
        assert f"{mode} is left out: it can't run here: " in done.stderr
    assert {"kernel", "cpu", "mitigations", "governor", "load", "load after"} <= said.environment.keys()
    assert [(size.services, size.endpoints, size.rounds) for size in said.outcomes] == [(3, 2, 2), (12, 2, 2)]
    for size in said.outcomes:
        assert (size.complete, size.failed) == (True, {})
        cells = {(cell.contestant, cell.way, cell.measure): cell for cell in size.figures}
        assert cells.keys() == {(one, way.name, measure) for one in expected for way in WAYS for measure in MEASURES}
        for cell in cells.values():
            assert [len(samples) for samples in cell.samples] == [30, 30]
            assert cell.failures == {}
            assert all(sample > 0 for samples in cell.samples for sample in samples)
        assert all(finding.fastest == [] for finding in size.findings)  # two rounds tell nothing
    for word in ("12 services x 2 endpoints", "p90", "bystander", "With 2 rounds nothing is told apart"):
        assert word in done.stdout


def test_only_the_modes_that_are_asked_for(tmp_path: Path) -> None:
    file = tmp_path / "latency.json"
    few = ("--services", "1", "--rounds", "1", "--samples", "5", "--warm-up", "5", "--json", file)
    done = _bench("--mode", "nftables,userspace", "--mode", "ipvs", "--mode", "nftables", *few)
    assert done.returncode == 0, done.stderr
    names = list(dict.fromkeys(cell.contestant for cell in Document.read(file).outcomes[0].figures))
    assert set(names) == {FLOOR, CONTROL, *(name for name in ("nftables", "userspace", "ipvs") if _runs(name))}


def test_a_mode_that_falls_out_is_told_and_the_others_go_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan = Plan(rounds=2, samples=5, warm_up=5, seed=1)
    bench = LatencyBench(_PROXIES, 2, 1, plan)
    file = tmp_path / "latency.json"
    assert run.run([bench], run.begin({}, {}, file, resume=False), file) == 1
    assert bench.result.contestants == [FLOOR, CONTROL, "nftables"]
    error = capsys.readouterr().err
    assert "pyproxy: latency, 2 x 1: nonsense fell out: the proxy ended; its log: " in error
    assert "there is no mode 'nonsense'" in error
    (size,) = Document.read(file).outcomes
    assert list(size.failed) == ["nonsense"]
    assert {cell.contestant for cell in size.figures} == {FLOOR, CONTROL, "nftables"}


def test_the_warm_up_fills_what_ebpf_mode_remembers_of_sockets_and_flows() -> None:
    found: dict[str, int] = {}

    class Warm(LatencyBench):
        def _round(self, prober: Prober, contestants: Sequence[Contestant]) -> None:
            with contestants[-1].lab.node.namespace.entered(), store.using_maps() as maps:
                found.update({name: len(list(syscall.entries(maps[name]))) for name in ("udp_peers", "flows")})
            super()._round(prober, contestants)

    few = Plan(rounds=1, samples=5, warm_up=50, seed=1)
    Warm([Contender("ebpf")], 2, 1, few).measure(lambda _: None)
    assert found["udp_peers"] >= 50
    assert found["flows"] >= 4 * 50


def test_who_answers_nobody_falls_out() -> None:
    """A proxy that serves, and a pod of whose endpoints one way is cut off."""

    class CutOff(LatencyBench):
        def _gather(self, stack: ExitStack, step: Callable[[str], None]) -> list[Contestant]:
            contestants = super()._gather(stack, step)
            with contestants[-1].lab.pods["pod-3"].namespace.links() as links:
                links.link("set", index=links.link_lookup(ifname="eth0")[0], state="down")
            return contestants

    bench = CutOff(_PROXIES[:1], 2, 1, Plan(rounds=1, samples=5, warm_up=5, seed=1))
    bench.measure(lambda _: None)
    assert bench.result.contestants == [FLOOR, CONTROL]
    assert bench.result.failed["nftables"].startswith("nobody answers: bystander, connect: E")
    assert {cell.contestant for cell in bench.result.samples} == {FLOOR, CONTROL}


@pytest.mark.parametrize("contender", [None, Contender("nftables")], ids=["floor", "nftables"])
def test_the_service_is_the_proxys_and_the_floor_has_none(contender: Contender | None) -> None:
    """So what is measured goes through the proxy: without one, nobody answers there."""
    bench = LatencyBench([], 1, 2, Plan(1, 1, 1, 1))
    client, server = processors()
    with Contestant("one", contender) as one:
        one.serve(bench.objects(one.host("pod-2").ipv4))
        with Echo(server, bench.listeners([one])), Prober(client) as prober:
            for way in WAYS[:2]:
                assert way.through is not None
                samples = prober.measure(place_of(one.host(way.who)), "request", [way.through], 20)
                assert (len(samples.ns), bool(samples.failures)) == ((20, False) if contender else (0, True))
                straight = [(one.host("pod-2").ipv4, port) for port in (9000, 9001)]
                assert bench.targets(one, way) == ([way.through] if contender else straight)
            assert bench.targets(one, WAYS[2]) == [(one.host("pod-3").ipv4, 9000)]


def test_a_proxy_that_ends_is_noticed() -> None:
    with Contestant("one", Contender("nftables")) as one:
        one.serve(LatencyBench([], 1, 1, Plan(1, 1, 1, 1)).objects(one.host("pod-2").ipv4))
        one.check()
        assert one._subject is not None
        one._subject.stop(signal.SIGKILL)
        with pytest.raises(NotServing, match=r"(?s)the proxy ended; its log: .*synced"):
            one.check()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["Ctrl-C", "SIGTERM"])
def test_an_interruption_keeps_what_was_measured_and_leaves_nothing_behind(
    number: signal.Signals, tmp_path: Path
) -> None:
    file = tmp_path / "latency.json"
    few = ["--mode", "nftables", "--mode", "ebpf", "--rounds", "100000", "--samples", "10", "--warm-up", "5"]
    command = [sys.executable, "-m", "pyproxy", "bench", "latency", "--services", "2", *few, "--json", str(file)]
    terminal, theirs = pty.openpty()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=theirs, text=True)
    os.close(theirs)
    for shown in _shown(terminal):
        if "round 3 of" in shown:
            process.send_signal(number)
            break
    out, _ = process.communicate(timeout=60)
    os.close(terminal)
    assert process.returncode == 130
    assert "p50, as a ratio to the floor's" in out
    said = Document.read(file)
    (size,) = said.outcomes
    assert (said.complete, size.complete) == (False, False)
    assert size.rounds >= 2
    assert all(len(cell.samples) == size.rounds for cell in size.figures)
    assert traces(process.pid) == set()


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (["--services", "1,x"], 2, "argument --services: 'x' is not a number of at least 1"),
        (["--services", "0"], 2, "argument --services: '0' is not a number of at least 1"),
        (["--services", ""], 2, "argument --services: '' is not a number of at least 1"),
        (["--endpoints", "2,101"], 1, "pyproxy: --endpoints 101: at most 100, since each of them answers\n"),
        (["--mode", "magic"], 1, "pyproxy: there is no mode 'magic'; installed: "),
        (["--rounds", "-1"], 2, "argument --rounds: '-1' is not a number of at least 1"),
        (["--json", "/nowhere/file"], 1, "pyproxy: there is no folder /nowhere\n"),
    ],
)
def test_a_mistake_is_told_in_a_sentence(arguments: list[str], status: int, said: str) -> None:
    done = _bench(*arguments)
    assert done.returncode == status
    assert said in done.stderr
    assert done.stdout == ""
    if status == 1:
        assert is_one_sentence(done.stderr)


def test_where_no_mode_runs_it_says_why() -> None:
    """On a host without nft."""
    hide = ("unshare", "--mount", "sh", "-c", 'mount --bind /dev/null /usr/sbin/nft && exec "$0" "$@"')
    done = _bench("--mode", "nftables", inside=hide)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("pyproxy: no mode is left to measure (nftables: ")
    assert is_one_sentence(done.stderr)


def test_a_full_disk_costs_the_file_and_not_the_tables() -> None:
    few = ("--services", "1", "--rounds", "1", "--samples", "10", "--warm-up", "5", "--json", "/dev/full")
    done = _bench("--mode", "nftables", *few)
    assert done.returncode == 1
    assert "p50, as a ratio to the floor's" in done.stdout
    assert done.stderr.endswith("pyproxy: /dev/full can't be written: No space left on device\n")


def _runs(mode: str) -> bool:
    return modes.load(mode).probe() is None


def _shown(terminal: int) -> Iterator[str]:
    """What a terminal shows until its end, each time with all that came before."""
    text = ""
    while True:
        try:
            piece = os.read(terminal, 4096)
        except OSError:
            return
        if not piece:
            return
        text += piece.decode(errors="replace")
        yield text
