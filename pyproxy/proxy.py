"""One running proxy: sources, controller, kernel, and those who watch, put together."""

import gc
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Collection
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from pyproxy import __version__, conntrack, log
from pyproxy.config_file import ConfigFile
from pyproxy.configuration import Configuration
from pyproxy.conntrack import Reconciler
from pyproxy.controller import Controller, Pace, Settings
from pyproxy.explainer import Explainer
from pyproxy.health import Health
from pyproxy.health_ports import HealthPorts
from pyproxy.host import HostOptions
from pyproxy.http_server import Address, Handler, HttpServer
from pyproxy.metrics import Metrics
from pyproxy.metrics_port import MetricsPort
from pyproxy.observer import Observer, Sync
from pyproxy.planner import Planner
from pyproxy.problem import Problem
from pyproxy.status import Status
from pyproxy.store import Store
from pyproxy.table import Counts, Mode, ModeError, Route
from pyproxy.takeover import Takeover
from pyproxy.traffic_metrics import TrafficCollector

logger = logging.getLogger("pyproxy")

_TRY_PORT_AGAIN_S = 5.0
_RELOADABLE = (
    *("detect_local", "cluster_cidrs", "bridge_interface", "interface_name_prefix", "node_port_addresses"),
    *("masquerade_all", "ipvs", "userspace_workers", "sync_period", "min_sync_period", "verbosity", "ignored"),
)
"""Fields of Configuration that take effect without a restart."""


class NoSource(Exception):
    """The API server's address or credentials are not to be had. The message is for the user."""


class PortTaken(Exception):
    """An address that must be served can't be. The message is for the user."""


class Source(Protocol):
    """Where objects come from."""

    @property
    def problems(self) -> Collection[Problem]:
        """From any thread: what is wrong with those that it did not let in."""

    def run(self) -> None:
        """In a thread: deliver, until the process ends."""


class Proxy:
    def __init__(self, configuration: Configuration, node_name: str, mode: Mode) -> None:
        self._configuration = configuration
        self._node_name = node_name
        self._mode = mode
        self._server = HttpServer()
        self._metrics = Metrics(mode.name)
        if isinstance(mode, Counts):
            self._metrics.add(TrafficCollector(mode, per_service=configuration.metrics_per_service))
        self._status = Status(mode.name, node_name)
        self._explainer = Explainer(mode.name, relays=mode.ends_connections, connects_sockets=mode.connects_sockets)
        self._health = Health(self._status, configuration.sync_period, self._metrics.answered)
        self._reconciler = Reconciler(self._metrics.reconciled)
        self._listeners: list[Callable[[Problem], None]] = [self._status.note, self._metrics.note]
        store = Store(node_name)
        settings = self._settings(configuration)
        observers: list[Observer] = [self._metrics, self._status, self._explainer, _Collector(), Takeover(mode)]
        observers.append(HealthPorts(self._server, lambda: self._health.keeps_up, self.report))
        if mode.tracks_connections:
            observers.append(self._reconciler)
        self._controller = Controller(
            store, Planner(store, settings.host, self._objection), mode, settings.pace, tuple(observers), self.report
        )
        self._status.pending_since = lambda: self._controller.pending_since
        self._explainer.problems = lambda: self._controller.problems
        self.deliver = self._controller.deliver
        """For a source; see Controller.deliver."""

    def report(self, problem: Problem) -> None:
        """From any thread: something is not obeyed, and whoever runs this must hear of it."""
        logger.warning("not obeyed", extra={"object": f"{problem.kind} {problem.key}", "reason": problem})
        for note in self._listeners:
            note(problem)

    def use_api(self, kubeconfig: Path | None) -> Source:
        """The cluster as the source, which is also told what is not obeyed. Raises NoSource."""
        # Costs 0.4 s, which nobody should pay who reads manifests.
        from pyproxy.api import Api, NoCredentials
        from pyproxy.events import Events
        from pyproxy.kubernetes_source import KubernetesSource

        try:
            api = Api(kubeconfig)
        except NoCredentials as error:
            raise NoSource(f"{error} (without a cluster, use --manifests)") from None
        events = Events(api, self._node_name)
        self._listeners.append(events.note)
        self._start("events", events.run)
        source = KubernetesSource(api, self._node_name, self.deliver, self.report)
        self._status.connections = lambda: source.connections
        return source

    def run(self, source: Source, config_file: ConfigFile | None) -> int:
        """Until SIGTERM or Ctrl-C, or until the configuration needs a restart. Returns the exit status."""
        died: list[object] = []

        def give_up(what: threading.ExceptHookArgs) -> None:
            logger.critical(
                "thread died", exc_info=(what.exc_type, what.exc_value or what.exc_type(), what.exc_traceback)
            )
            died.append(what.thread)
            self._controller.stop()

        threading.excepthook = give_up  # a proxy that hears or cleans up no more must be started anew
        self._stop_on_signals()
        gc.disable()  # see _Collector
        # So that a sync gets the interpreter at once while another thread reads conntrack's flows or answers.
        sys.setswitchinterval(0.0005)
        extra = {"version": __version__, "mode": self._mode.name, "node": self._node_name}
        logger.info("starting", extra=extra)
        self._explainer.refused = lambda: source.problems
        self._serve()
        self._start("source", source.run)
        self._start("conntrack", self._reconciler.run)
        if config_file is not None:
            self._start("configuration", config_file.run)
        self._controller.run()
        self._server.stop()
        logger.info("stopped; the kernel keeps forwarding")
        return 1 if died else 0

    def _stop_on_signals(self) -> None:
        """Also if one comes as the main thread is about to wait: Python calls its handler only when that runs again,
        which may be a sync period later. What the interpreter itself does at once is to write into the descriptor."""
        ears, self._mouth = socket.socketpair()
        self._mouth.setblocking(False)
        signal.set_wakeup_fd(self._mouth.fileno())
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: self._controller.stop())

        def hear() -> None:
            ears.recv(1)
            self._controller.stop()

        self._start("signals", hear)

    def reconfigure(self, configuration: Configuration) -> None:
        """From any thread: apply what can be applied, or stop, so that whoever started this process starts it anew."""
        kept = {name: getattr(self._configuration, name) for name in _RELOADABLE}
        if replace(configuration, **kept) != self._configuration:
            logger.warning("the configuration changed in a way that takes a restart; stopping for it")
            self._controller.stop()
            return
        logger.info("the configuration changed; applying it")
        self._configuration = configuration
        self._health.patience = 2 * configuration.sync_period
        log.set_up(configuration.log_format, configuration.verbosity)
        self._controller.change(self._settings(configuration))

    def _objection(self, route: Route) -> str | None:
        """Why the kernel can't serve it."""
        objection = self._mode.objection(route)
        return conntrack.objection(route) if objection is None and self._mode.tracks_connections else objection

    def _settings(self, configuration: Configuration) -> Settings:
        host = HostOptions(
            node_name=self._node_name,
            detect_local=configuration.detect_local,
            cluster_cidrs=configuration.cluster_cidrs,
            bridge_interface=configuration.bridge_interface,
            interface_name_prefix=configuration.interface_name_prefix,
            node_port_addresses=configuration.node_port_addresses,
            masquerade_all=configuration.masquerade_all,
            ipvs=configuration.ipvs,
            userspace_workers=configuration.userspace_workers,
            cgroup=configuration.cgroup,
            ebpf_algorithm=configuration.ebpf_algorithm,
            devices=configuration.devices,
            map_sizes=configuration.map_sizes,
        )
        return Settings(host, Pace(configuration.sync_period, configuration.min_sync_period))

    def _serve(self) -> None:
        """Raises PortTaken."""
        self._server.start()
        page = MetricsPort(self._mode.name, self._metrics, self._status, self._explainer)
        self._listen("healthz", self._configuration.healthz_address, self._health.answer)
        self._listen("metrics", self._configuration.metrics_address, page.answer, slow=True)

    def _listen(self, name: str, address: Address | None, handler: Handler, slow: bool = False) -> None:
        """Now, or as soon as the port is free: kube-proxy may still hold it."""
        if address is None:
            return
        try:
            self._server.listen(_places(address), handler, slow=slow)
        except OSError as error:
            reason = f"the {name} address {address[0]} port {address[1]} can't be had: {os.strerror(error.errno or 0)}"
            if self._configuration.bind_address_hard_fail:
                raise PortTaken(f"{reason} (bindAddressHardFail)") from None
            logger.error("not served yet", extra={"reason": reason, "retry_in_s": _TRY_PORT_AGAIN_S})
            again = threading.Timer(_TRY_PORT_AGAIN_S, self._listen, (name, address, handler, slow))
            again.daemon = True
            again.start()

    @staticmethod
    def _start(name: str, work: Callable[[], None]) -> None:
        threading.Thread(target=work, name=name, daemon=True).start()


def _places(address: Address) -> list[Address]:
    """As in Go, where 0.0.0.0 and :: both mean every address of both families."""
    everywhere = ("0.0.0.0", "::")  # noqa: S104
    if address[0] in everywhere and socket.has_dualstack_ipv6():
        return [(host, address[1]) for host in everywhere]
    return [address]


class _Collector(Observer):
    """No garbage collection until the first sync: what is made by then is kept, and each pass would look at all of it
    in vain. A first sync that fails is tried again for as long as it takes, so then it is due all the same."""

    def failed(self, reason: ModeError) -> None:  # noqa: ARG002
        gc.collect()

    def synced(self, sync: Sync) -> None:  # noqa: ARG002
        if not gc.isenabled():
            gc.freeze()
            gc.enable()
