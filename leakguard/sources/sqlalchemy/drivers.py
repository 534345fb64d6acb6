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
    pids = (_asked(getter, connection) for getter in _PID_GETTERS)
    return next((pid for pid in pids if isinstance(pid, int)), None)


_PID_GETTERS: Final[tuple[Callable[[Any], Any], ...]] = (
    lambda connection: connection.info.backend_pid,  # psycopg
    lambda connection: connection.get_server_pid(),  # asyncpg
    lambda connection: connection.thread_id(),  # PyMySQL, aiomysql, asyncmy
    lambda connection: connection.get_backend_pid(),  # psycopg2
)


def is_active(connection: Any) -> bool:  # noqa: ANN401  (any driver's)
    """Return whether a command runs on the connection, as far as its driver says so."""
    statuses = (_asked(getter, connection) for getter in _STATUS_GETTERS)
    # aiomysql has a method of the same name, which says whether a transaction is open.
    return any(status == _ACTIVE and status is not True for status in statuses)


def listens(connection: Any) -> bool:  # noqa: ANN401  (any driver's)
    """Return whether it waits for notifications, as far as its driver says so."""
    return bool(_asked(lambda one: one._listeners, connection))  # noqa: SLF001  (asyncpg; no public way, tested)


def read_position(cursor: Any) -> object | None:  # noqa: ANN401  (any driver's)
    """Return what changes when rows are read by a cursor; `None` where the driver does not tell."""
    inner = getattr(cursor, "_cursor", None)  # of one that SQLAlchemy adapts for asyncio
    positions = (_asked(getter, one) for one in (cursor, inner) for getter in _POSITION_GETTERS)
    return next((position for position in positions if position is not None), None)


def is_closed(cursor: Any) -> bool:  # noqa: ANN401  (any driver's)
    """Return whether a cursor was closed, as far as its driver tells."""
    return any(_asked(getter, cursor) is True for getter in _CLOSED_GETTERS)


def _asked(getter: Callable[[Any], Any], subject: Any) -> object:  # noqa: ANN401  (any driver's)
    try:
        return getter(subject)
    except Exception:  # noqa: BLE001  (another driver's, or a dead connection)
        return None


_ACTIVE: Final = 1
"""What libpq calls `PQTRANS_ACTIVE`."""
_STATUS_GETTERS: Final[tuple[Callable[[Any], Any], ...]] = (
    lambda connection: connection.pgconn.transaction_status,  # psycopg
    lambda connection: connection.get_transaction_status(),  # psycopg2
)
_CLOSED_GETTERS: Final[tuple[Callable[[Any], Any], ...]] = (
    lambda cursor: cursor.closed,  # psycopg, psycopg2
    lambda cursor: cursor.connection is None,  # PyMySQL
    lambda cursor: cursor._cursor is None or cursor._cursor.closed,  # noqa: SLF001  (those that SQLAlchemy adapts; no public way, tested)
)
_POSITION_GETTERS: Final[tuple[Callable[[Any], Any], ...]] = (
    lambda cursor: cursor._pos,  # noqa: SLF001  (psycopg; no public way, tested)
    lambda cursor: cursor.rownumber,  # PyMySQL, aiomysql, asyncmy
)
