"""TCP streams, as many bytes as go through, by iperf3."""

from contextlib import AbstractContextManager

import msgspec

from bench.lab import Host
from bench.measure import Target
from bench.traffic import Measure, Reading, find, run, serving

_IPERF3 = "iperf3"
_CONNECT_MS = 2000
_GIGABYTE = 1e9


class _Rate(msgspec.Struct):
    bits_per_second: float
    bytes: float
    seconds: float


class _Sent(msgspec.Struct):
    retransmits: int = 0


class _Cpu(msgspec.Struct):
    """In per cent of one, kernel included: of the client, and of the server."""

    host_total: float
    remote_total: float


class _End(msgspec.Struct):
    sum_sent: _Sent
    sum_received: _Rate
    cpu_utilization_percent: _Cpu


class _Done(msgspec.Struct):
    """What iperf3 says as JSON, as far as it is of use."""

    end: _End


class _Failed(msgspec.Struct):
    error: str


class Streams:
    """So many at once. All of a reading are to reach the same endpoint, since they belong to one session."""

    programs = (_IPERF3,)

    def __init__(self, name: str, number: int, port: int) -> None:
        self._number = number
        self.port = port
        words = "TCP, one stream" if number == 1 else f"TCP, {number} streams at once"
        self.measures = (
            Measure(name, words, "bit/s"),
            Measure(f"{name}-cpu", f"{words}: CPU time for a GB", "s", less_is_better=True),
            Measure(f"{name}-retransmits", f"{words}: retransmits", "1", less_is_better=True, is_compared=False),
        )

    def serving(self, host: Host, cpu: int) -> AbstractContextManager[None]:
        return serving(host, cpu, [find(_IPERF3) or _IPERF3, "-s", "-1", "-p", str(self.port)], [self.port])

    def read(self, host: Host, cpu: int, target: Target, seconds: int) -> Reading:
        """``seconds`` from the first byte; the bytes that count are those that arrived."""
        address, port = target
        options = ["-P", str(self._number), "-t", str(seconds), "--connect-timeout", str(_CONNECT_MS)]
        command = [find(_IPERF3) or _IPERF3, "-c", address, "-p", str(port), *options, "--json"]
        return self.parse(run(host, cpu, command, seconds)[0])

    def parse(self, text: str) -> Reading:
        """What iperf3 printed."""
        try:
            end = msgspec.json.decode(text, type=_Done).end
        except msgspec.DecodeError:
            return Reading({}, {_why(text): 1})
        got, cpu = end.sum_received, end.cpu_utilization_percent
        if not got.bytes:
            return Reading({}, {"nothing arrived": 1})
        spent_s = (cpu.host_total + cpu.remote_total) / 100 * got.seconds
        values = (got.bits_per_second, spent_s / (got.bytes / _GIGABYTE), float(end.sum_sent.retransmits))
        return Reading(dict(zip((one.name for one in self.measures), values, strict=True)), {})


def _why(text: str) -> str:
    try:
        return msgspec.json.decode(text, type=_Failed).error
    except msgspec.DecodeError:
        return text.strip() or "iperf3 did not end"
