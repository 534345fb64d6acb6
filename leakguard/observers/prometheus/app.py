"""The application that shows the metrics, of one process or of several."""

from __future__ import annotations

import os
import re
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import prometheus_client
from prometheus_client import REGISTRY, CollectorRegistry, multiprocess

from leakguard.exceptions import SettingsError
from leakguard.observers.prometheus.counting import check_registry, is_multiprocess

AsgiApp = Callable[[Any, Any, Any], Awaitable[None]]

_client: Final[Any] = prometheus_client
_multiprocess: Final[Any] = multiprocess
"""Like some of the client, these have no full types."""


def metrics_app(registry: CollectorRegistry = REGISTRY) -> AsgiApp:
    """Make an ASGI application that shows the metrics, to be mounted at `/metrics`.

    It shows those of `registry`. In the client's multiprocess mode it shows those of all
    processes, whichever of them answers, and gauges without the processes that have ended.

    Raises `SettingsError` for a bad registry, and where `PROMETHEUS_MULTIPROC_DIR` names no
    directory, or was set after the client was imported.
    """
    check_registry(registry)
    folder = os.environ.get(_FOLDER_VARIABLE)
    if not folder:
        return _app_of(registry)
    if not Path(folder).is_dir():
        raise SettingsError(_FOLDER_VARIABLE, folder, "must be a directory that exists")
    if not is_multiprocess():  # nothing would be counted there, and nothing shown
        allowed = "must be set before prometheus_client is imported"
        raise SettingsError(_FOLDER_VARIABLE, folder, allowed)

    async def app(scope: Any, receive: Any, send: Any) -> None:  # noqa: ANN401  (ASGI's)
        _forget_ended_processes(Path(folder))
        every = CollectorRegistry()
        _multiprocess.MultiProcessCollector(every, folder)
        await _app_of(every)(scope, receive, send)

    return app


def _app_of(registry: CollectorRegistry) -> AsgiApp:
    app: AsgiApp = _client.make_asgi_app(registry)
    return app


_FOLDER_VARIABLE: Final = "PROMETHEUS_MULTIPROC_DIR"
"""The environment variable that turns the client's multiprocess mode on."""
_LIVE_FILE: Final = re.compile(r"gauge_live[a-z]*_(\d+)\.db")


def _forget_ended_processes(folder: Path) -> None:
    """Take the gauges of a process away that was killed, so that nobody could do it then."""
    found = map(_LIVE_FILE.fullmatch, os.listdir(folder))
    for process in {int(match[1]) for match in found if match is not None}:
        if not _is_alive(process):
            with suppress(FileNotFoundError):  # another process does the same
                _multiprocess.mark_process_dead(process, str(folder))


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # somebody else's
        return True
    return True
