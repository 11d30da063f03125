"""The ports that people, kubelets, load balancers and Prometheus ask: one thread for all of them.

asyncio holds the connections, so that a hundred slow clients cost no thread. Most answers are a glance at what is known
and are given at once; those that take long are made in threads, few at a time, so that they keep no probe waiting. HTTP
itself is h11's.
"""

import asyncio
import logging
import socket
import threading
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from urllib.parse import parse_qs, urlsplit

import h11

log = logging.getLogger("pyproxy.http")

Address = tuple[str, int]
"""Host, as a literal IP address, and port."""

_PATIENCE_S = 10.0
"""For a whole exchange, however slow the client."""
_MOST_CLIENTS = 200
_MOST_SLOW_ANSWERS = 2
_LARGEST_HEAD = 16_384
_BACKLOG = 128


@dataclass(frozen=True, slots=True)
class Response:
    status: HTTPStatus
    body: bytes
    content_type: str = "application/json"
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Request:
    path: str
    query: Mapping[str, str]
    """The last value of each name."""


Handler = Callable[[Request, Address], Response]
"""Called with the address that the client connected to."""


_Answering = Callable[[Request, Address], Awaitable[Response]]
_Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class Listener:
    """Some sockets that share a handler. Made by HttpServer.listen."""

    def __init__(self, loop: asyncio.AbstractEventLoop, sockets: list[socket.socket], serve: _Serve) -> None:
        self._loop = loop
        self._servers = asyncio.run_coroutine_threadsafe(_servers(sockets, serve), loop)

    def close(self) -> None:
        """From any thread but the server's: the ports are free when this returns."""
        asyncio.run_coroutine_threadsafe(self._stop(), self._loop).result()

    async def _stop(self) -> None:
        for server in await asyncio.wrap_future(self._servers):
            server.close()


async def _servers(sockets: list[socket.socket], serve: _Serve) -> list[asyncio.Server]:
    return [await asyncio.start_server(serve, sock=one, limit=_LARGEST_HEAD) for one in sockets]


class HttpServer:
    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._clients: dict[asyncio.StreamWriter, str] = {}  # with the address of each, the oldest first
        self._slow_ones = asyncio.Semaphore(_MOST_SLOW_ANSWERS)

    def start(self) -> None:
        threading.Thread(target=self._loop.run_forever, name="http", daemon=True).start()

    def stop(self) -> None:
        """From any thread, before the process ends: nothing is answered any more."""
        self._loop.call_soon_threadsafe(self._loop.stop)

    def listen(self, addresses: list[Address], handler: Handler, *, slow: bool = False) -> Listener:
        """From any thread: answer on all ``addresses``; :: means IPv6 alone.

        A ``slow`` handler is called in a thread of its own. Raises OSError if one of the addresses can't be had.
        """
        sockets: list[socket.socket] = []
        try:
            for host, port in addresses:
                sockets.append(_bound(host, port))
        except OSError:
            for one in sockets:
                one.close()
            raise

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await self._serve(reader, writer, self._in_thread(handler) if slow else _at_once(handler))

        return Listener(self._loop, sockets, serve)

    def _in_thread(self, handler: Handler) -> _Answering:
        async def answer(request: Request, local: Address) -> Response:
            async with self._slow_ones:
                return await asyncio.to_thread(handler, request, local)

        return answer

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, handler: _Answering) -> None:
        self._welcome(writer)
        try:
            async with asyncio.timeout(_PATIENCE_S):
                await _exchange(reader, writer, handler)
        except (TimeoutError, OSError, h11.RemoteProtocolError):
            pass  # a client that is slow, gone, or speaks no HTTP gets no answer
        except Exception:
            log.exception("an answer failed")
        finally:
            self._clients.pop(writer, None)
            writer.transport.abort()  # what it did not read by now is dropped, or it would be kept for ever

    def _welcome(self, writer: asyncio.StreamWriter) -> None:
        """Past the limit, whoever holds most connections loses the oldest of them: nobody can keep kubelet out."""
        self._clients[writer] = (writer.get_extra_info("peername") or ("",))[0]
        if len(self._clients) > _MOST_CLIENTS:
            held = Counter(self._clients.values())
            loser = max(self._clients, key=lambda one: held[self._clients[one]])
            del self._clients[loser]
            loser.transport.abort()


def _at_once(handler: Handler) -> _Answering:
    async def answer(request: Request, local: Address) -> Response:
        return handler(request, local)

    return answer


def _bound(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return socket.create_server((host, port), family=family, backlog=_BACKLOG)


async def _exchange(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, handler: _Answering) -> None:
    """One request and its answer; then the connection is closed."""
    connection = h11.Connection(h11.SERVER, max_incomplete_event_size=_LARGEST_HEAD)
    while (event := connection.next_event()) is h11.NEED_DATA:
        connection.receive_data(await reader.read(_LARGEST_HEAD))
    if not isinstance(event, h11.Request):
        return
    response = await _answer(event, writer.get_extra_info("sockname")[:2], handler)
    headers = {"Content-Type": response.content_type, "Content-Length": str(len(response.body)), "Connection": "close"}
    # Nothing of ours may be framed, sniffed as something else, or fetch anything from elsewhere.
    headers |= {"X-Content-Type-Options": "nosniff", "X-Frame-Options": "DENY", "Cache-Control": "no-store"}
    head = h11.Response(
        status_code=response.status,
        reason=response.status.phrase,
        headers=list({**headers, **response.headers}.items()),
    )
    body = b"" if event.method == b"HEAD" else response.body
    writer.transport.set_write_buffer_limits(0)  # so that drain waits until all of it is the kernel's
    for part in (head, h11.Data(data=body), h11.EndOfMessage()):
        writer.write(connection.send(part) or b"")
    await writer.drain()


async def _answer(request: h11.Request, local: Address, handler: _Answering) -> Response:
    if request.method not in (b"GET", b"HEAD"):
        return Response(HTTPStatus.METHOD_NOT_ALLOWED, b"only GET here\n", "text/plain")
    try:
        target = urlsplit(request.target.decode("ascii"))
    except ValueError:
        return Response(HTTPStatus.BAD_REQUEST, b"this is no path\n", "text/plain")
    query = {name: values[-1] for name, values in parse_qs(target.query).items()}
    try:
        return await handler(Request(target.path, query), local)
    except Exception:
        log.exception("an answer failed")
        return Response(HTTPStatus.INTERNAL_SERVER_ERROR, b"the answer failed; the log says why\n", "text/plain")
