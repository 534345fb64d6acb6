"""Activity: whether a connection that is out is in use at a moment.

An event tells that a statement begins, and none that it ends. While it runs, the function of
SQLAlchemy's that executes it is on the stack of its thread or of its greenlet.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from functools import lru_cache
from threading import get_ident
from types import CodeType, FrameType
from typing import TYPE_CHECKING, Any, Final, NamedTuple
from weakref import ref

from sqlalchemy.engine import Connection, CursorResult
from sqlalchemy.pool import PoolProxiedConnection

from leakguard.core.callsite import Place, place_of
from leakguard.core.clock import monotonic
from leakguard.core.collector import PAUSE
from leakguard.core.quick import new_tuple
from leakguard.core.scope import scopes_around
from leakguard.core.stacks import (
    frames_of,
    greenlet_stack,
    is_on_stack,
    task_stack,
    thread_stack,
    thread_stacks,
)
from leakguard.sources.sqlalchemy.drivers import is_closed, read_position
from leakguard.sources.sqlalchemy.greenlets import current_greenlet

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop

    from leakguard.core.stacks import Stack


class Execution(NamedTuple):
    """The execution of a statement, known by the frame that it runs in.

    There is one for every statement: a tuple, because that is made in a third of the time.
    """

    began: float
    """When it began; seconds of `time.monotonic()`."""
    frame: int
    """The `id()` of the frame of SQLAlchemy's that calls the event."""
    code: CodeType
    greenlet: ref[Any]
    thread: int
    """The thread that it runs in."""

    def runs_in(self, frame: FrameType) -> bool:
        """Return whether that is the frame that executes it, or one that has its place by now."""
        return id(frame) == self.frame and frame.f_code is self.code

    @property
    def running(self) -> bool:
        """Whether it runs: the frame is on the stack, and is not that of a later one."""
        greenlet = self.greenlet()
        if greenlet is None or greenlet.dead:
            return False
        thread = thread_stack(self.thread)
        if greenlet.parent is not None:
            return is_on_stack(self.frame, self.code, greenlet_stack(greenlet) or thread)
        # The frame of the next statement of the thread may well get the same address.
        latest = _latest.get(self.thread)
        if latest is not self and latest is not None and latest.frame == self.frame:
            return False
        return is_on_stack(self.frame, self.code, thread)


def begin_execution(frame: FrameType) -> Execution:
    """Note that a statement begins in a frame of SQLAlchemy's, in this thread."""
    thread = get_ident()
    if thread not in _latest and len(_latest) >= _LATEST_LIMIT:
        _latest.clear()  # threads that have ended are never taken out one by one
    execution = _latest[thread] = new_tuple(
        Execution, (monotonic(), id(frame), frame.f_code, ref(current_greenlet()), thread)
    )
    return execution


class Stream:
    """A statement whose rows the database hands out as they are read, and not all at once."""

    _position: object = None
    """How far its rows were read when this was last asked."""

    def __init__(self, context: Any) -> None:  # noqa: ANN401  (of any dialect)
        """Take SQLAlchemy's execution context."""
        self._context = ref(context)

    @property
    def may_be_read(self) -> bool:
        """Whether somebody may still read rows of it."""
        return self._context() is not None

    def follow_result(self) -> None:
        """Know where SQLAlchemy buffers its rows, too, of which no event tells.

        Its context keeps that, as it keeps the cursor; to a result there are no weak references.
        """

        def set_up() -> Any:  # noqa: ANN401  (of any dialect)
            context: Any = self._context()
            delattr(context, _SET_UP)
            result = getattr(context, _SET_UP)()
            setattr(context, _ROWS, getattr(result, "cursor_strategy", None))
            return result

        setattr(self._context(), _SET_UP, set_up)  # of this one alone, and for once

    @property
    def tells(self) -> bool:
        """Whether it can be noticed that rows are read, or none can be."""
        context = self._context()
        if context is None:
            return True
        buffer = _buffer_of(context)
        if buffer is None:
            return read_position(context.cursor) is not None
        # A batch that was taken out of it, as by `partitions()`, is read by somebody unseen.
        return bool(buffer) or is_closed(context.cursor)

    def has_moved(self) -> bool:
        """Return whether rows were read since this was last asked."""
        context = self._context()
        if context is None:
            return False
        buffer = _buffer_of(context)
        position = read_position(context.cursor), None if buffer is None else len(buffer)
        before, self._position = self._position, position
        return before != position


def _buffer_of(context: Any) -> Any:  # noqa: ANN401  (of any dialect)
    """Return the rows that were read from the database and not by the program, if that is known."""
    return getattr(getattr(context, _ROWS, None), "_rowbuffer", None)


_ROWS: Final = "_leakguard_rows"
"""The attribute of an execution's context that has what its result gets rows from."""
_SET_UP: Final = "_setup_result_proxy"
"""The method of an execution's context that makes its result. No public way; tested."""
STREAMING: Final = frozenset({"yield_per", "stream_results"})
"""The execution options by which a program says that it reads rows as it goes."""


_latest: Final[dict[int, Execution]] = {}
"""By thread, the execution that began last in it."""
_LATEST_LIMIT: Final = 10_000


def is_in_database(stack: Stack, own: Execution | None) -> bool:
    """Return whether work that is there is inside of SQLAlchemy or a driver.

    Not so where it waits for a connection of a pool, where SQLAlchemy merely lets it wait or calls
    the user's code, or where it executes another statement than the connection's `own` one.
    """
    others = [one for one in tuple(_latest.values()) if one is not own]
    inside = False
    for frame in frames_of(stack):
        if _is_of_pool(frame, _GETS) or any(one.runs_in(frame) for one in others):
            return False
        if inside:
            continue
        if place_of(frame) is Place.USER:
            return False
        inside = _is_of_database(_module(frame))
    return inside


def worked_on_in_threads() -> frozenset[int]:
    """List the connections with which a thread ends a transaction or reads rows at this moment.

    By the `id()` of their proxies: no event tells of that, and it need not be the thread that took
    the connection. `ANY` is among them where somebody does it with nobody knows which.
    """
    return _worked_on(thread_stacks().values())


def worked_on_in_tasks(loop: AbstractEventLoop) -> frozenset[int]:
    """List those with which a task of a loop does the same that is outside of any scope.

    As the one that `asyncio.wait_for()`, `shield()` or `gather()` makes for a `commit()`.
    """
    tasks = (task for task in asyncio.all_tasks(loop) if next(scopes_around(task), None) is None)
    return _worked_on(map(task_stack, tasks))


def _worked_on(stacks: Iterable[Stack]) -> frozenset[int]:
    numbers = (_worked_on_at(stack) for stack in stacks)
    return frozenset(number for number in numbers if number is not None)


def _worked_on_at(stack: Stack) -> int | None:
    frames = frames_of(stack)
    for number, frame in enumerate(frames):
        if frame.f_code.co_name in _ENDS_OR_READS and _is_of_engine(frame):
            # Or a caller of it does: not every function of SQLAlchemy's is given the connection.
            found = (_proxy_among(one) for one in frames[number:] if _is_of_engine(one))
            return next((id(proxy) for proxy in found if proxy is not None), ANY)
    return None


def _is_of_engine(frame: FrameType) -> bool:
    return _module(frame).startswith(("sqlalchemy.engine.", "sqlalchemy.pool."))


def _proxy_among(frame: FrameType) -> object | None:
    """Find the proxy of the connection that a function of SQLAlchemy's works with."""
    with PAUSE:
        values = list(frame.f_locals.values())
    return next((proxy for proxy in map(_proxy_behind, values) if proxy is not None), None)


def _proxy_behind(value: Any) -> object | None:  # noqa: ANN401  (whatever a variable has)
    if isinstance(value, _RESULT):
        value = value.connection
    if isinstance(value, _CONNECTION):
        value = value._dbapi_connection  # noqa: SLF001  (no public way; tested)
    return value if isinstance(value, PoolProxiedConnection) else None


_RESULT: Final[type[Any]] = CursorResult
_CONNECTION: Final[type[Any]] = Connection
ANY: Final = 0
"""Stands for a connection of which it is not known which one it is; no object has that `id()`."""
_ENDS_OR_READS: Final = frozenset(
    {"do_commit", "do_rollback", "fetchone", "fetchmany", "fetchall", "_fetchall_impl"}
)
"""The functions in which SQLAlchemy waits for the database besides executing a statement."""


def waits_for_pool(stack: Stack) -> bool:
    """Return whether work that is there waits until a pool has a connection for it."""
    for frame in frames_of(stack):
        if _is_of_pool(frame, _OPENS):
            return False
        if _is_of_pool(frame, _GETS):
            return True
    return False


def _is_of_pool(frame: FrameType, function: str) -> bool:
    return frame.f_code.co_name == function and _module(frame).startswith("sqlalchemy.pool.")


def _module(frame: FrameType) -> str:
    return str(frame.f_globals.get("__name__"))


@lru_cache(maxsize=1024)
def _is_of_database(module: str) -> bool:
    return module.partition(".")[0] in _DATABASE_PACKAGES and not module.startswith(_LETS_WAIT)


_GETS: Final = "_do_get"
"""The method of a pool that gets a connection from its queue, or has one opened."""
_OPENS: Final = "_create_connection"
"""The method of a pool that opens one."""
_LETS_WAIT: Final = ("sqlalchemy.util", "sqlalchemy.ext.asyncio")
"""Modules that run what is given to them, such as the function of `run_sync`."""
_DATABASE_PACKAGES: Final = frozenset(
    (  # noqa: SIM905  (a list of words reads best as words)
        "sqlalchemy psycopg psycopg2 asyncpg pg8000 pymysql aiomysql asyncmy MySQLdb mysql "
        "aiosqlite oracledb pymssql pyodbc aioodbc"
    ).split()
)
