"""Clients: of a real server over keep-alive connections, or of the application itself."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

_SERVER_ERROR = 500


@dataclass(frozen=True)
class Request:
    """One GET request; `hasty` ones are given up by the client before the response is read."""

    path: str
    hasty: bool = False


@dataclass
class Tally:
    """What came back: how many of each status."""

    statuses: Counter[int] = field(default_factory=Counter[int])
    broken: int = 0
    """How many responses ended in the middle."""


class Server:
    """A client of a server on a loopback port."""

    def __init__(self, port: int) -> None:
        self._port = port

    async def run(self, requests: Iterator[Request], clients: int) -> Tally:
        """Send all requests from so many clients at once."""
        tally = Tally()
        await asyncio.gather(*(self._client(requests, tally) for _ in range(clients)))
        return tally

    async def _client(self, requests: Iterator[Request], tally: Tally) -> None:
        streams = None
        for request in requests:
            reader, writer = streams or await asyncio.open_connection("127.0.0.1", self._port)
            writer.write(f"GET {request.path} HTTP/1.1\r\nhost: localhost\r\n\r\n".encode())
            if request.hasty:
                await writer.drain()
                await reader.read(1)
                writer.transport.abort()
                streams = None
                continue
            try:
                status, keep = await _read_response(reader)
            except (asyncio.IncompleteReadError, ConnectionError):  # it raised after it had begun
                tally.broken += 1
                keep = False
            else:
                tally.statuses[status] += 1
            streams = (reader, writer) if keep else None
            if not keep:
                writer.close()
        if streams is not None:
            streams[1].close()


class InProcess:
    """A client that calls the application directly, on the loop that it is run on."""

    def __init__(self, app: Any) -> None:
        self._app = app

    async def run(self, requests: Iterator[Request], clients: int) -> Tally:
        """Send all requests from so many tasks at once."""
        tally = Tally()
        await asyncio.gather(*(self._client(requests, tally) for _ in range(clients)))
        return tally

    async def _client(self, requests: Iterator[Request], tally: Tally) -> None:
        for request in requests:
            # A task of its own for each, as a server has.
            tally.statuses[await asyncio.create_task(self._call(request))] += 1

    async def _call(self, request: Request) -> int:
        return await call(self._app, request.path)


async def call(app: Any, path: str, method: str = "GET") -> int:
    """Call an ASGI application; give the status."""
    statuses: list[int] = []
    ended = asyncio.Event()
    body = [{"type": "http.request", "body": b"", "more_body": False}]

    async def receive() -> dict[str, Any]:
        if body:
            return body.pop()
        await ended.wait()
        return {"type": "http.disconnect"}

    async def send(message: dict[str, Any]) -> None:
        if message["type"] == "http.response.start":
            statuses.append(message["status"])

    scope: dict[str, Any] = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "root_path": "",
        "query_string": b"",
        "headers": [],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 80),
    }
    with contextlib.suppress(KeyError):  # the endpoints' own
        await app(scope, receive, send)
    ended.set()
    return statuses[0] if statuses else _SERVER_ERROR


async def _read_response(reader: asyncio.StreamReader) -> tuple[int, bool]:
    """Read a response; give its status, and whether the connection can be used again."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
    status = int(head.split(" ", 2)[1])
    fields = dict(line.split(": ", 1) for line in head.split("\r\n")[1:] if ": " in line)
    if fields.get("transfer-encoding") == "chunked":
        await reader.readuntil(b"0\r\n\r\n")
    else:
        await reader.readexactly(int(fields.get("content-length", "0")))
    # uvicorn closes the connection after an application that raised, without saying so.
    return status, status < _SERVER_ERROR and fields.get("connection") != "close"
