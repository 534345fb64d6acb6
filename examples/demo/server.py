"""A real uvicorn on a loopback port, and a client for it."""

from __future__ import annotations

import asyncio
import logging
import socket
import threading
from collections.abc import Generator
from contextlib import contextmanager
from http.client import HTTPConnection
from typing import Any, NamedTuple

import uvicorn

from examples.demo.interruption import heed

HOST = "127.0.0.1"
PATIENCE = 20.0
"""Seconds for what takes milliseconds: whoever waits that long waits in vain."""


class Answer(NamedTuple):
    """What the client saw."""

    status: int
    text: str


def get(port: int, path: str) -> Answer:
    """Send one request. Past every proxy: it is for this machine."""
    heed()
    connection = HTTPConnection(HOST, port, timeout=PATIENCE)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        return Answer(response.status, response.read().decode())
    finally:
        connection.close()


def bind(port: int) -> socket.socket:
    """Take a port; 0 is any free one. Raises `OSError` where it is taken."""
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((HOST, port))
    except OSError:
        listener.close()
        raise
    return listener


@contextmanager
def serving(app: Any, listener: socket.socket) -> Generator[None]:  # noqa: ANN401  (any ASGI application)
    """Serve `app` in a thread while the block runs."""
    config = uvicorn.Config(app, log_config=None, lifespan="off")
    # Here and not in the thread: with both of them importing when a signal came, it has hung once,
    # each at the import lock of CPython 3.11.
    config.load()
    # The errors of the applications are part of the plan: no traceback between the tables.
    logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=lambda: asyncio.run(server.serve([listener])), daemon=True)
    listener.listen(128)  # from here on requests wait until the server is there
    thread.start()
    try:
        yield
    finally:
        server.should_exit = True
        thread.join(PATIENCE)
