"""Who we are to the API server, by kubeconfig and in-cluster, over real TLS; and that no secret is ever said."""

import json
import time
from base64 import b64encode
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from threading import Event, Thread
from typing import Any

import pytest
import trustme
from kubernetes.config import incluster_config

from bench.api_server import ApiServer
from pyproxy import api, reflector
from pyproxy.api import Api, ApiError, NoCredentials
from tests.unit.api_world import (
    ONE,
    PASSWORD,
    PATIENCE_S,
    SECRETS,
    SERVICES,
    TWO,
    Scripted,
    answered,
    at_once,
    ca,
    ca_file,
    discreet,
    fails,
    foreign,
    no_proxies,
    raw,
    server,
    statuses,
    wait_for,
    written,
)

__all__ = ["at_once", "ca", "ca_file", "discreet", "foreign", "no_proxies", "server"]  # fixtures

# Who we are.


@pytest.mark.parametrize("content", [ONE, f"{ONE}\n", f"  {ONE}\r\n\n"], ids=["bare", "newline", "white"])
@pytest.mark.parametrize("is_relative", [False, True])
def test_a_token_is_read_from_its_file(server: ApiServer, tmp_path: Path, content: str, is_relative: bool) -> None:
    (tmp_path / "token").write_text(content)
    name = "token" if is_relative else str(tmp_path / "token")
    Api(written(tmp_path, server.port, server.ca_file, {"tokenFile": name})).get(SERVICES, {})
    assert statuses(server) == [200]


def in_place(token_file: Path, token: str) -> None:
    token_file.write_text(token)


def by_symlink(token_file: Path, token: str) -> None:
    """As kubelet does it."""
    folder = token_file.parent / f"..{token}"
    folder.mkdir()
    (folder / "token").write_text(token)
    (token_file.parent / "..data_tmp").symlink_to(folder.name)
    (token_file.parent / "..data_tmp").rename(token_file.parent / "..data")
    if not token_file.is_symlink():
        token_file.symlink_to("..data/token")


@pytest.fixture(params=["kubeconfig", "in-cluster"])
def account(request: pytest.FixtureRequest, server: ApiServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The token file of a service account, and what Api takes to use it."""
    (tmp_path / "account").mkdir()
    token_file = tmp_path / "account" / "token"
    if request.param == "kubeconfig":
        return token_file, written(tmp_path, server.port, server.ca_file, {"tokenFile": str(token_file)})
    in_cluster(monkeypatch, server.port, token_file, server.ca_file)
    return token_file, None


def in_cluster(monkeypatch: pytest.MonkeyPatch, port: int | str, token_file: Path, ca_file: Path) -> None:
    monkeypatch.setattr(incluster_config, "SERVICE_TOKEN_FILENAME", str(token_file))
    monkeypatch.setattr(incluster_config, "SERVICE_CERT_FILENAME", str(ca_file))
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "127.0.0.1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", str(port))


@pytest.fixture(params=[in_place, by_symlink])
def rotated(request: pytest.FixtureRequest, server: ApiServer, account: tuple[Path, Path | None]) -> Api:
    """It has used a token that the server takes no longer; the file holds the next."""
    request.param(account[0], ONE)
    connection = Api(account[1])
    connection.get(SERVICES, {})
    server.fault({"tokens": [TWO]})
    request.param(account[0], TWO)
    return connection


def test_a_rotated_token_is_used_after_a_401_at_once(server: ApiServer, rotated: Api) -> None:
    with fails(ApiError, "^401: Unauthorized$"):
        rotated.get(SERVICES, {})
    rotated.get(SERVICES, {})
    assert statuses(server) == [200, 401, 200]


@pytest.mark.usefixtures("at_once")
def test_a_rotated_token_is_used_before_a_401_once_the_old_one_has_lasted(server: ApiServer, rotated: Api) -> None:
    rotated.get(SERVICES, {})
    assert statuses(server) == [200, 200]


def test_a_token_is_not_read_for_each_request(server: ApiServer, account: tuple[Path, Path | None]) -> None:
    in_place(account[0], ONE)
    connection = Api(account[1])
    in_place(account[0], TWO)
    connection.get(SERVICES, {})
    assert statuses(server) == [200]


@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize("content", ["", " \n", f"{ONE}\n{TWO}", f"{ONE}\x00", "s3cret-ż"], ids=repr)
def test_a_token_that_can_be_none_is_not_sent_and_the_next_good_one_is(
    server: ApiServer, account: tuple[Path, Path | None], content: str
) -> None:
    """As what is read between the truncation of a file and its writing."""
    in_place(account[0], ONE)
    connection = Api(account[1])
    in_place(account[0], content)
    with fails(NoCredentials, r"(?i)token.* empty"):
        connection.get(SERVICES, {})
    with fails(NoCredentials, r"(?i)token.* empty"):
        Api(account[1])
    in_place(account[0], ONE)
    connection.get(SERVICES, {})
    assert statuses(server) == [200]


def test_basic_authentication(foreign: Scripted, tmp_path: Path, ca_file: Path) -> None:
    Api(written(tmp_path, foreign.port, ca_file, {"username": "me", "password": PASSWORD})).get("/", {})
    assert f"authorization: basic {SECRETS[1]}\r\n".lower() in foreign.requests[0].lower()


def certificate(ca: trustme.CA, name: str) -> tuple[bytes, bytes]:
    """And its key."""
    made = ca.issue_cert("client.example", common_name=name)
    return b"".join(blob.bytes() for blob in made.cert_chain_pems), made.private_key_pem.bytes()


@pytest.mark.parametrize("is_inline", [False, True])
def test_a_client_certificate(ca: trustme.CA, ca_file: Path, tmp_path: Path, is_inline: bool) -> None:
    pems = dict(zip(("client-certificate", "client-key"), certificate(ca, "me"), strict=True))
    user = {f"{name}-data": b64encode(pem).decode() for name, pem in pems.items()}
    if not is_inline:
        user = {name: str(tmp_path / name) for name in pems}
        for name, pem in pems.items():
            (tmp_path / name).write_bytes(pem)
    with ApiServer(tmp_path, client_ca=ca_file) as server:
        Api(written(tmp_path, server.port, server.ca_file, user)).get(SERVICES, {})
        with fails(ApiError, "401"):
            Api(written(tmp_path, server.port, server.ca_file, {})).get(SERVICES, {})


@pytest.mark.parametrize("is_time", [True, False], ids=["by time", "after a 401"])
def test_a_certificate_renewed_in_place_is_used_from_then_on(
    foreign: Scripted, ca: trustme.CA, ca_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_time: bool
) -> None:
    files = tmp_path / "me.crt", tmp_path / "me.key"
    user = dict(zip(("client-certificate", "client-key"), map(str, files), strict=True))
    for path, pem in zip(files, certificate(ca, "first"), strict=True):
        path.write_bytes(pem)
    connection = Api(written(tmp_path, foreign.port, ca_file, user))
    connection.get("/", {})
    for path, pem in zip(files, certificate(ca, "second"), strict=True):
        path.write_bytes(pem)
    if is_time:
        monkeypatch.setattr(api, "_TOKEN_LASTS_S", -1.0)
    else:
        foreign.give(answered(b"", "401 no"))
        with fails(ApiError, "401: no"):
            connection.get("/", {})
    connection.get("/", {})
    connection.get("/", {})
    assert foreign.peers == (["first", "second", "second"] if is_time else ["first", "first", "second", "second"])
    assert foreign.connections == 2


# Exec plugins.


class Plugin:
    """A script that notes its calls and does as told."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._script = folder / "plugin"
        self.user = {
            "exec": {"apiVersion": "client.authentication.k8s.io/v1", "command": "./plugin", "args": ["a b"]}
            | {"env": [{"name": "KEY", "value": PASSWORD}], "interactiveMode": "Never"}
        }

    def does(self, text: str) -> None:
        self._script.write_text(f'#!/bin/sh\necho "$1 $KEY $KUBERNETES_EXEC_INFO" >>{self._folder}/calls\n{text}\n')
        self._script.chmod(0o755)

    def gives(self, **status: str) -> None:
        credential = {"apiVersion": "client.authentication.k8s.io/v1", "kind": "ExecCredential", "status": status}
        (self._folder / "credential").write_text(json.dumps(credential))
        self.does(f"cat {self._folder}/credential")

    @property
    def calls(self) -> list[str]:
        return (self._folder / "calls").read_text().splitlines()


@pytest.fixture
def plugin(tmp_path: Path) -> Plugin:
    return Plugin(tmp_path)


def test_an_exec_plugin_is_asked_again_after_a_401_and_not_before(
    server: ApiServer, plugin: Plugin, tmp_path: Path
) -> None:
    plugin.gives(token=ONE, expirationTimestamp=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + 120)))
    connection = Api(written(tmp_path, server.port, server.ca_file, plugin.user))
    connection.get(SERVICES, {})
    connection.get(SERVICES, {})
    (call,) = plugin.calls
    assert call.startswith(f"a b {PASSWORD} {{")
    assert json.loads(call[call.index("{") :])["kind"] == "ExecCredential"
    server.fault({"tokens": [TWO]})
    plugin.gives(token=TWO)
    with fails(ApiError, "401"):
        connection.get(SERVICES, {})
    connection.get(SERVICES, {})
    assert len(plugin.calls) == 2


@pytest.mark.usefixtures("at_once")
def test_an_exec_plugin_is_asked_again_when_a_token_has_lasted(
    server: ApiServer, plugin: Plugin, tmp_path: Path
) -> None:
    plugin.gives(token=ONE, expirationTimestamp="2001-01-01T00:00:00Z")
    connection = Api(written(tmp_path, server.port, server.ca_file, plugin.user))
    server.fault({"tokens": [TWO]})
    plugin.gives(token=TWO)
    connection.get(SERVICES, {})
    assert statuses(server) == [200]
    assert len(plugin.calls) == 2


def test_an_exec_plugin_is_asked_once_for_all_threads(server: ApiServer, plugin: Plugin, tmp_path: Path) -> None:
    plugin.gives(token=ONE)
    connection = Api(written(tmp_path, server.port, server.ca_file, plugin.user))
    server.fault({"tokens": [TWO]})
    plugin.gives(token=TWO)
    plugin.does(f"sleep 0.3; cat {tmp_path}/credential")
    with fails(ApiError, "401"):
        connection.get(SERVICES, {})
    threads = [Thread(target=connection.get, args=(SERVICES, {})) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert statuses(server) == [401, 200, 200, 200]
    assert len(plugin.calls) == 2


def test_an_exec_plugin_may_give_a_certificate(
    ca: trustme.CA, ca_file: Path, foreign: Scripted, plugin: Plugin, tmp_path: Path
) -> None:
    pem, key = certificate(ca, "by plugin")
    plugin.gives(clientCertificateData=pem.decode(), clientKeyData=key.decode())
    Api(written(tmp_path, foreign.port, ca_file, plugin.user)).get("/", {})
    assert foreign.peers == ["by plugin"]


BAD_PLUGINS = {
    "echo 'log in first' >&2; exit 3": "exec: process returned 3. log in first",
    "echo s3cret-nonsense": "exec: failed to decode process output",
    "echo '[]'": "exec: malformed response. missing key 'apiVersion'",
    "echo 7": "not iterable",
    """echo '{"apiVersion": "client.authentication.k8s.io/v1beta1", "kind": "x", "status": {}}'""": "does not match",
    """echo '{"apiVersion": "client.authentication.k8s.io/v1", "kind": "x", "status": {}}'""": "missing token",
    """echo '{"apiVersion": "client.authentication.k8s.io/v1", "kind": "x", "status": null}'""": "not iterable",
    "rm $0; exec $0": "process returned 127",
    "sleep 60 & echo $! >sleeper; wait": "taking over 0.5 s",
    "trap '' TERM; sleep 60 & echo $! >sleeper; wait": "taking over 0.5 s",
}


@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize("script", BAD_PLUGINS)
def test_an_exec_plugin_that_fails_is_an_error_until_it_works(
    server: ApiServer, plugin: Plugin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str
) -> None:
    """The package would log it, go on as nobody, and wait for ever for one that hangs."""
    plugin.gives(token=ONE)
    kubeconfig = written(tmp_path, server.port, server.ca_file, plugin.user)
    connection = Api(kubeconfig)
    plugin.does(script)
    with monkeypatch.context() as patch:
        patch.setattr(api, "_PLUGIN_S", 0.5)
        with fails(NoCredentials, BAD_PLUGINS[script]):
            connection.get(SERVICES, {})
        with fails(NoCredentials, f"from {kubeconfig}: "):
            Api(kubeconfig)
    if "sleeper" in script:
        sleeper = Path("/proc", (tmp_path / "sleeper").read_text().strip(), "cmdline")
        wait_for(lambda: not sleeper.exists() or not sleeper.read_bytes(), "what the plugin started still runs")
    plugin.gives(token=ONE)
    connection.get(SERVICES, {})
    assert statuses(server) == [200]


@pytest.mark.usefixtures("at_once")
def test_a_reflector_survives_credentials_that_come_and_go(
    server: ApiServer, plugin: Plugin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    over = Event()

    def sleep(_: float) -> None:
        if over.wait(0.02):
            raise SystemExit

    monkeypatch.setattr(reflector, "_sleep", sleep)
    plugin.gives(token=ONE)
    connection = Api(written(tmp_path, server.port, server.ca_file, plugin.user))
    plugin.does("exit 3")
    one = reflector.Reflector(connection, reflector.services(), lambda *_: None, lambda _: None)

    def run() -> None:
        with suppress(SystemExit):
            one.run()

    thread = Thread(target=run, daemon=True)
    thread.start()
    wait_for(lambda: "returned 3" in one.connection.error, "no word of it")
    plugin.gives(token=ONE)
    wait_for(lambda: one.connection.lists == 1, "never listed")
    over.set()
    server.fault({"cut": True})
    thread.join(PATIENCE_S)
    assert not thread.is_alive()


# What can't be read.

CLUSTER = {"server": "https://127.0.0.1:6443"}
EXEC = {"apiVersion": "v1", "command": "true", "env": [{"name": PASSWORD}]}
NO_URL = "server or proxy-url is no URL such as https://host:6443"
BAD_KUBECONFIGS: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (lambda folder: None, "No such file or directory"),
    "a folder": (lambda folder: (folder / "kubeconfig").mkdir(), "Is a directory"),
    "empty": (lambda folder: (folder / "kubeconfig").touch(), "is empty"),
    "no YAML": (lambda folder: (folder / "kubeconfig").write_text("a: 1\ntoken: s3cret\nb: ["), "no YAML .*line 3"),
    "a tab": (lambda folder: (folder / "kubeconfig").write_text("a:\n\t- s3cret"), "no YAML .*line 2"),
    "no text": (lambda folder: (folder / "kubeconfig").write_bytes(b"\xff\x00s3cret"), "makes no sense"),
    "words": (lambda folder: (folder / "kubeconfig").write_text("s3cret words"), "makes no sense"),
    "no context": (lambda folder: raw(folder, CLUSTER, {}, **{"current-context": None}), "key current-context"),
    "unknown context": (lambda folder: raw(folder, CLUSTER, {}, **{"current-context": "x"}), "with name x"),
    "no clusters": (lambda folder: raw(folder, CLUSTER, {}, clusters=[]), "with name it"),
    "no list": (lambda folder: raw(folder, CLUSTER, {}, users=["s3cret", "s3cret-two"]), "Expected key name$"),
    "no server": (lambda folder: raw(folder, {"certificate-authority": "/ca"}, {}), NO_URL),
    "a server of words": (lambda folder: raw(folder, {"server": "nonsense"}, {}), NO_URL),
    "a server without host": (lambda folder: raw(folder, {"server": "https://"}, {}), NO_URL),
    "a server of a strange port": (lambda folder: raw(folder, {"server": "https://host:99999"}, {}), NO_URL),
    "a server by ftp": (lambda folder: raw(folder, {"server": "ftp://host"}, {}), NO_URL),
    "a password in the server": (lambda folder: raw(folder, {"server": "https://me:s3cret@host"}, {}), NO_URL),
    "a number as server": (lambda folder: raw(folder, {"server": 7}, {}), "makes no sense"),
    "a proxy of words": (lambda folder: raw(folder, CLUSTER | {"proxy-url": "http://s3cret me"}, {}), NO_URL),
    "a proxy by ftp": (lambda folder: raw(folder, CLUSTER | {"proxy-url": "ftp://me:s3cret@x"}, {}), NO_URL),
    "no CA": (lambda folder: raw(folder, CLUSTER | {"certificate-authority": "/no/ca"}, {}), "exist: /no/ca"),
    "a CA of words": (lambda folder: raw(folder, CLUSTER | {"certificate-authority-data": "s3cret!"}, {}), "no sense"),
    "no token file": (lambda folder: raw(folder, CLUSTER, {"tokenFile": "/no/token"}), "No such file.*/no/token"),
    "a user without user": (lambda folder: raw(folder, CLUSTER, {}, users=[{"name": "me", "token": ONE}]), "key user"),
    "exec without command": (lambda folder: raw(folder, CLUSTER, {"exec": {"env": ONE}}), "makes no sense"),
    "exec with half an env": (lambda folder: raw(folder, CLUSTER, {"exec": EXEC, "token": ""}), "key value"),
    "a provider without token": (
        lambda folder: raw(folder, CLUSTER, {"auth-provider": {"name": "oidc", "config": {"client-secret": ONE}}}),
        "key id-token",
    ),
}


@pytest.mark.parametrize("name", BAD_KUBECONFIGS)
def test_a_kubeconfig_that_can_not_be_obeyed_is_named_with_a_reason(tmp_path: Path, name: str) -> None:
    make, reason = BAD_KUBECONFIGS[name]
    make(tmp_path)
    path = tmp_path / "kubeconfig"
    with fails(NoCredentials, f"^can't read the API server's address and credentials from {path}: .*{reason}"):
        Api(path)


@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize("name", BAD_KUBECONFIGS)
def test_a_kubeconfig_that_is_spoiled_later_is_an_error_until_it_is_mended(
    server: ApiServer, tmp_path: Path, name: str
) -> None:
    connection = Api(written(tmp_path, server.port, server.ca_file, {"token": ONE}))
    (tmp_path / "kubeconfig").rename(tmp_path / "good")
    BAD_KUBECONFIGS[name][0](tmp_path)
    with fails(NoCredentials):
        connection.get(SERVICES, {})
    if name != "a folder":
        (tmp_path / "good").rename(tmp_path / "kubeconfig")
        connection.get(SERVICES, {})
        assert statuses(server) == [200]


def test_a_kubeconfig_may_have_a_colon_in_its_name(server: ApiServer, tmp_path: Path) -> None:
    folder = tmp_path / "a:b"
    folder.mkdir()
    Api(written(folder, server.port, server.ca_file, {"token": ONE})).get(SERVICES, {})


@pytest.mark.parametrize(
    ("port", "spoil", "reason"),
    [
        ("", lambda token, ca: None, "Service host/port is set but empty"),
        ("tcp", lambda token, ca: None, NO_URL),
        ("6443", lambda token, ca: token.unlink(), "token file does not exist"),
        ("6443", lambda token, ca: ca.unlink(), "certification file does not exist"),
        ("6443", lambda token, ca: ca.write_text(""), "empty"),
    ],
)
def test_a_service_account_that_can_not_be_used_is_an_error_with_a_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, port: str, spoil: Callable[[Path, Path], object], reason: str
) -> None:
    token_file, ca_file = tmp_path / "token", tmp_path / "ca"
    token_file.write_text(ONE)
    ca_file.write_text("a CA")
    in_cluster(monkeypatch, port, token_file, ca_file)
    spoil(token_file, ca_file)
    with fails(NoCredentials, f"from the service account of this pod: .*{reason}"):
        Api(None)
