"""What database drivers tell of a connection without a round trip."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final


def driver_in_transaction(connection: Any) -> bool | None:  # noqa: ANN401  (any driver's)
    """Say that a transaction is open; `None` where the driver does not know of one.

    SQLite's begins one only before it writes, when SQLAlchemy's has begun long ago.
    """
    try:
        state: object = connection.in_transaction  # sqlite3, aiosqlite
    except Exception:  # noqa: BLE001  (any driver's own)
        return None
    return True if state is True else None


def backend_pid(connection: Any) -> int | None:  # noqa: ANN401  (any driver's)
    """Return the number of the server's process or thread, where the driver knows."""
    for getter in _PID_GETTERS:
        try:
            pid: object = getter(connection)
        except Exception:  # noqa: BLE001, S112  (another driver's, or a dead connection)
            continue
        if isinstance(pid, int):
            return pid
    return None


_PID_GETTERS: Final[tuple[Callable[[Any], Any], ...]] = (
    lambda connection: connection.info.backend_pid,  # psycopg
    lambda connection: connection.get_server_pid(),  # asyncpg
    lambda connection: connection.thread_id(),  # PyMySQL, aiomysql, asyncmy
    lambda connection: connection.get_backend_pid(),  # psycopg2
)
