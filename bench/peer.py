"""Another proxy that competes: a command of the user's, and the configuration file that it is given.

It is known by packets alone, and gets its objects from the API server's stand-in. The conformance suite starts proxies
with the same words and the same file.
"""

import json
import re
import shlex
import shutil
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from bench.feed import Feed, ViaApi
from bench.lab import CLUSTER_CIDRS, NODE_NAME, Lab

_PLACEHOLDERS = ("config", "kubeconfig", "node", "mode")
_SHAPE = "NAME='command {config}' or NAME:MODE='command {config}'"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(?::(?P<mode>[a-z0-9]+))?")
_SECTIONS = ("iptables", "ipvs", "nftables")
"""Modes that have a section in the configuration."""
_OPTIONS = {
    "detectLocalMode": "ClusterCIDR",
    "hostnameOverride": NODE_NAME,
    "healthzBindAddress": "127.0.0.1:10256",
    "metricsBindAddress": "127.0.0.1:10249",
    # A proxy that reads the kernel back meanwhile would be somebody else's p99.
    "syncPeriod": "1h",
    # nf_conntrack_max can't be written in any network namespace but the first, and 0 means: left alone.
    "conntrack": {"maxPerCore": 0, "min": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s"},
}


class UnusablePeer(Exception):
    """It can't be started. The message is one sentence for the user."""


@dataclass(frozen=True, slots=True)
class Peer:
    """A proxy that is not a mode of this pyproxy."""

    name: str
    words: tuple[str, ...]
    """Of the command of one process; see `filled`."""
    mode: str = ""
    """That its configuration asks for; empty: it chooses."""

    iptables = None
    via_api = True
    relays = False
    """Nothing is known of it, so what its connect() takes counts."""

    @classmethod
    def parse(cls, text: str) -> Self:
        """``NAME=command`` or ``NAME:MODE=command``, the latter as a shell would split it. Raises UnusablePeer."""
        name, separator, command = text.partition("=")
        match = _NAME.fullmatch(name)
        if not separator or not match:
            raise UnusablePeer(f"--peer {text!r}: it takes the form {_SHAPE}")
        try:
            words = tuple(shlex.split(command))
        except ValueError as error:
            raise UnusablePeer(f"--peer {name}: its command can't be split into words: {error}") from None
        mode = match["mode"] or ""
        used = set(re.findall(r"\{(\w+)\}", command))
        known = ", ".join(f"{{{word}}}" for word in _PLACEHOLDERS)
        if unknown := sorted(used.difference(_PLACEHOLDERS)):
            raise UnusablePeer(f"--peer {name}: its command has {{{unknown[0]}}}, and only {known} stand for something")
        if not used & {"config", "kubeconfig"}:
            raise UnusablePeer(
                f"--peer {name}: without {{config}} or {{kubeconfig}} in its command it finds no API server"
            )
        if "mode" in used and not mode:
            raise UnusablePeer(f"--peer {name}: its command has {{mode}}, so say which: --peer {name}:MODE='…'")
        if not shutil.which(words[0]):
            raise UnusablePeer(f"--peer {name}: there is no program {words[0]}")
        return cls(name, words, mode)

    def __str__(self) -> str:
        return self.name

    def feed(self, lab: Lab, folder: Path) -> ViaApi:
        """Where its objects are put; ``folder`` is empty."""
        return ViaApi(lab, folder)

    def command(self, _lab: Lab, feed: Feed, *_flags: str | Path) -> Sequence[str]:
        """To run on the lab's node."""
        assert isinstance(feed, ViaApi)
        kubeconfig = feed.kubeconfig
        config = kubeconfig.with_name("config.conf")
        config.write_text(json.dumps(configuration(self.mode, kubeconfig, **_OPTIONS)))
        return filled(self.words, config=config, kubeconfig=kubeconfig, node=NODE_NAME, mode=self.mode)


def peers(texts: Sequence[str], taken: Collection[str] = ()) -> list[Peer]:
    """Of each ``--peer``. ``taken``: names of other contestants. Raises UnusablePeer."""
    found = [Peer.parse(text) for text in texts]
    names = [peer.name for peer in found]
    for name in names:
        if name in taken:
            raise UnusablePeer(f"--peer {name}: another contestant has that name; give it one of its own")
        if names.count(name) > 1:
            raise UnusablePeer(f"--peer {name}: there are two of that name; give each one of its own")
    return found


def filled(words: Sequence[str], **values: str | Path) -> list[str]:
    """A command, with what ``{config}``, ``{kubeconfig}``, ``{node}`` and ``{mode}`` stand for in it."""
    filled = list(words)
    for name, value in values.items():
        filled = [word.replace(f"{{{name}}}", str(value)) for word in filled]
    return filled


def configuration(mode: str, kubeconfig: Path, **options: Any) -> dict[str, Any]:
    """A KubeProxyConfiguration. ``options`` are fields of it; those of a mode's section are put into each."""
    section = {name: options.pop(name) for name in ("syncPeriod", "minSyncPeriod", "masqueradeAll") if name in options}
    return {
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "mode": mode,
        # The stand-in has no protobuf.
        "clientConnection": {"kubeconfig": str(kubeconfig), "contentType": "application/json"},
        "clusterCIDR": CLUSTER_CIDRS,
        "logging": {"verbosity": 1},
        # kube-proxy reads masqueradeAll of ipvs mode from the section of iptables.
        **{name: {k: v for k, v in section.items() if (name, k) != ("ipvs", "masqueradeAll")} for name in _SECTIONS},
        **options,
    }
