"""The connection to the Kubernetes API server: who it is, who we are, and requests whose bodies stay bytes.

The kubernetes package knows where the server is and how to prove who we are; none of its models is imported, since
they would cost more than everything else here. It reads a token file once, or when it thinks that it must; service
account tokens rotate, so the configuration is read anew before a request if a minute has passed, and after a 401.
"""

import logging
import re
import threading
import time
from collections.abc import Iterator, Mapping
from email.utils import mktime_tz, parsedate_tz
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlencode

import msgspec
import urllib3
import yaml
from kubernetes import config
from kubernetes.client import Configuration
from kubernetes.client.rest import RESTClientObject
from kubernetes.config.kube_config import KubeConfigLoader, KubeConfigMerger

from pyproxy import __version__

_CONNECT_S = 10.0
_READ_S = 60.0
"""Without a byte from the server, a request has failed."""
_TOKEN_LASTS_S = 60.0
_PLUGIN_S = 30  # then an exec plugin is killed, for which all threads wait, and the package would for ever
_LONGEST_AFTER_S = 600.0  # however long a server asks us to stay away
_CHUNK = 1 << 16
_MOST_SAID = 300


class ApiError(Exception):
    """The server said no. ``status`` as in HTTP, ``retry_after`` in seconds if the server asked for it."""

    def __init__(self, status: int, message: str, retry_after: float | None = None) -> None:
        super().__init__(f"{status}: {message}")
        self.status = status
        self.retry_after = retry_after


class Unreachable(Exception):
    """No answer, or one that broke off."""


class Silent(Unreachable):
    """The connection stands, but nothing came for as long as was allowed."""


class NoCredentials(Unreachable):
    """Neither a kubeconfig nor a service account that can be read, or no more. The message says what is missing."""


class _Status(msgspec.Struct):
    """meta/v1 Status, as far as it is shown."""

    message: str = ""


_decode_status = msgspec.json.Decoder(_Status).decode  # here, as in wire.py


class Api:
    """Used by several threads at once."""

    def __init__(self, kubeconfig: Path | None) -> None:
        """In-cluster if there is no ``kubeconfig``. Raises NoCredentials."""
        self._kubeconfig = kubeconfig
        self._lock = threading.Lock()
        self._made_of: tuple[Any, ...] = ()
        self._read_at = float("-inf")
        self._current()

    @property
    def server(self) -> str:
        """Its URL."""
        return str(self._configuration.host)

    def get(self, path: str, query: Mapping[str, str]) -> bytes:
        """The whole body. Raises ApiError and Unreachable."""
        return b"".join(self.stream(path, query, _READ_S))

    def stream(self, path: str, query: Mapping[str, str], idle: float) -> Iterator[bytes]:
        """The body as it comes; raises ApiError, Unreachable, and Silent after ``idle`` seconds without a byte."""
        response = self._request("GET", f"{path}?{urlencode(query)}" if query else path, None, idle)
        try:
            yield from response.stream(_CHUNK, decode_content=True)
        except urllib3.exceptions.ReadTimeoutError:
            raise Silent(f"nothing came for {idle:.0f} s") from None
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise Unreachable(_plainly(error)) from None
        finally:
            response.close()  # of a watch that is given up the rest is never read

    def post(self, path: str, body: Mapping[str, Any]) -> None:
        """Raises ApiError and Unreachable."""
        self._request("POST", path, body, _READ_S).drain_conn()  # or the connection could not be used again

    def _request(self, method: str, path: str, body: Any, idle: float) -> urllib3.BaseHTTPResponse:
        transport, configuration = self._current()
        try:
            headers = {"Accept": "application/json", "User-Agent": f"pyproxy/{__version__}"}
            # May be "Basic", too. The package's own way to it, auth_settings, changes what other threads use.
            if proof := configuration.api_key.get("BearerToken"):
                headers["Authorization"] = proof
            response = transport.pool_manager.request(
                method,
                configuration.host + path,
                headers=headers,
                json=body,
                timeout=urllib3.Timeout(connect=_CONNECT_S, read=idle),
                preload_content=False,
                retries=False,  # when to try again is for those who ask to know
                redirect=False,
            )
            if response.status < 300:
                return response
            if response.status == 401:
                self._read_at = float("-inf")
            raise _refusal(response)
        except (urllib3.exceptions.HTTPError, OSError, ValueError) as error:
            raise Unreachable(_plainly(error)) from None

    def _current(self) -> tuple[RESTClientObject, Configuration]:
        """The transport with the credentials that hold now. Raises NoCredentials."""
        with self._lock:
            if time.monotonic() - self._read_at > _TOKEN_LASTS_S:
                try:
                    fresh = self._read()
                    if (made_of := _identity(fresh)) != self._made_of:
                        self._transport, self._made_of = RESTClientObject(fresh), made_of
                except Exception as error:  # the package lets through whatever a file makes its parsers say
                    where = f"from {self._kubeconfig or 'the service account of this pod'}: {_unquoted(error)}"
                    raise NoCredentials(f"can't read the API server's address and credentials {where}") from None
                self._configuration = fresh
                self._read_at = time.monotonic()
            return self._transport, self._configuration

    def _read(self) -> Configuration:
        configuration = Configuration()
        configuration.keep_alive = True  # so that a watch notices when its peer is gone without a word
        if self._kubeconfig is None:
            config.load_incluster_config(configuration)  # type: ignore[no-untyped-call]
        else:
            _load(self._kubeconfig, configuration)
        server = urllib3.util.parse_url(configuration.host)
        if server.scheme not in ("http", "https") or not server.host or server.auth:
            raise urllib3.exceptions.LocationParseError("")
        if configuration.proxy:
            configuration.proxy = re.sub(r"^(?!\w+://)", "http://", configuration.proxy)
            if auth := urllib3.util.parse_url(configuration.proxy).auth:
                configuration.proxy_headers = urllib3.make_headers(proxy_basic_auth=unquote(auth))
        configuration.api_key = {name: " ".join(proof.split()) for name, proof in configuration.api_key.items()}
        if not all(re.fullmatch("\\w+ [!-~]+", proof) for proof in configuration.api_key.values()):
            raise config.ConfigException("the token is empty, or has characters that no token has")
        return configuration


def _load(kubeconfig: Path, configuration: Any) -> None:
    """As config.load_kube_config, but where that would log what is wrong and go on as nobody, this fails."""
    files: Any = KubeConfigMerger("")  # type: ignore[no-untyped-call]
    files.load_config(str(kubeconfig))  # one file, though there be a colon in its name
    loader: Any = KubeConfigLoader(files.config, config_base_path=None)  # type: ignore[no-untyped-call]
    user = loader._user.value if loader._user else {}
    if plugin := user.get("exec"):
        plugin["args"] = ["-s", "KILL", str(_PLUGIN_S), plugin["command"], *(plugin.get("args") or ())]
        plugin["command"] = "timeout"

    def fail(record: logging.LogRecord) -> bool:
        said = record.getMessage().replace("process returned -9", f"killed, perhaps for taking over {_PLUGIN_S} s")
        raise config.ConfigException(said)

    logging.getLogger().addFilter(fail)  # of what is logged without a logger of one's own, as only the package does
    try:
        loader.load_and_set(configuration)
    finally:
        logging.getLogger().removeFilter(fail)
    if "tokenFile" in user and not configuration.api_key:
        raise config.ConfigException("the token is empty")


def _identity(of: Configuration) -> tuple[Any, ...]:
    """What a transport is made of: all but the token, with the content of files that may be renewed in place."""
    files = [(name, name and Path(name).read_bytes()) for name in (of.ssl_ca_cert, of.cert_file, of.key_file)]
    return (of.host, of.verify_ssl, of.proxy, of.tls_server_name, *files)


def _refusal(response: urllib3.BaseHTTPResponse) -> ApiError:
    body = response.read(1 << 16)
    response.close()
    try:
        said = _decode_status(body).message
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        said = body.decode(errors="replace")
    text = _shown(said) or _shown(response.reason or "") or "no reason given"
    return ApiError(response.status, text, _seconds(response.headers.get("Retry-After", "")))


def _seconds(retry_after: str) -> float | None:
    """RFC 9110, 10.2.3: a number of seconds, or a date."""
    try:
        date = parsedate_tz(retry_after)
        seconds = mktime_tz(date) - time.time() if date else int(retry_after)
    except (ValueError, OverflowError):
        return None
    return float(min(max(0, seconds), _LONGEST_AFTER_S))


def _shown(text: str) -> str:
    text = " ".join(text.split())[:_MOST_SAID]
    return text if text.isprintable() else ascii(text)


def _plainly(error: Exception) -> str:
    """urllib3's errors without the object they happened to."""
    return _shown(str(getattr(error, "reason", None) or error)) or type(error).__name__


def _unquoted(error: Exception) -> str:
    """Without what was read: the package calls a place by all that stands there, the token included."""
    if isinstance(error, yaml.MarkedYAMLError):
        return f"no YAML {_shown(str(error.problem_mark))}"
    if isinstance(error, urllib3.exceptions.HTTPError):
        return "server or proxy-url is no URL such as https://host:6443"
    if isinstance(error, config.ConfigException | OSError):
        return _shown(re.sub(r"(Expected key \S+) in .*", r"\1", str(error), flags=re.DOTALL))
    return f"it makes no sense ({type(error).__name__})"
