"""Pools and engines: which of them a guard watches, what they are called, how full they are."""

from __future__ import annotations

import sys
import weakref
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from types import FrameType
from typing import TYPE_CHECKING, Any, Final, cast

from sqlalchemy.engine import Engine
from sqlalchemy.pool import NullPool, Pool, SingletonThreadPool, StaticPool

from leakguard.core.exhaustion import Limits
from leakguard.exceptions import SettingsError
from leakguard.sources.sqlalchemy.census import Census
from leakguard.sources.sqlalchemy.ledger import Ledger

if TYPE_CHECKING:
    from leakguard.core.guard import Guard
    from leakguard.sources.sqlalchemy.checkout import Checkout

ENGINES_ALLOWED: Final = "must be an Engine or an AsyncEngine"


@dataclass(eq=False, slots=True)
class PoolFacts:
    """What is known of a pool, found out at its first event; its engine, perhaps, later."""

    ref: weakref.ref[Pool]
    name: str
    is_async: bool
    is_sqlite: bool
    shares: bool
    """Whether all its checkouts are one and the same connection (`StaticPool`)."""
    nests: bool
    """Whether checkouts within one another are one and the same (`SingletonThreadPool`)."""
    waits: bool
    """Whether a checkout may have to wait for another one to end."""
    engine: weakref.ref[Engine] | None
    """The engine that made it; `None` while the pool is used without one."""
    ledger: Ledger
    """Its connections."""
    out: dict[int, Checkout]
    """All checkouts of the process, of every pool, by the `id()` of their proxies."""
    census: Census = field(default_factory=Census)
    """How many of them are out, and from which lines."""

    def belongs_to(self, engine: Engine) -> bool:
        """Return whether `engine` has this pool, or had it before a `dispose()`."""
        own = None if self.engine is None else self.engine()
        return own is engine or engine.pool is self.ref()

    def look_for_engine(self, frame: FrameType | None) -> None:
        """Find the engine, and with it the name, on the stack of a checkout."""
        pool = self.ref()
        engine = None if pool is None else _engine_of(pool, frame)
        if pool is not None and engine is not None:
            self.engine = weakref.ref(engine)
            self.name = _pool_name(pool, engine)
            self.ledger.rename(self.name)


def pool_facts(
    pool: Pool,
    frame: FrameType | None,
    out: dict[int, Checkout],
    idle: Iterable[int] = (),
    guard: Guard | None = None,
) -> PoolFacts:
    """Find out what is known of `pool`; `frame` is one of its first event.

    `out` has the checkouts of the process. Its ledger begins with the entries in `idle`, and tells
    `guard`.
    """
    engine = _engine_of(pool, frame)
    name = _pool_name(pool, engine)
    return PoolFacts(
        ref=weakref.ref(pool),
        name=name,
        is_async=is_async(pool),
        is_sqlite=getattr(pool._dialect, "name", None) == "sqlite",  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]  # no public way; tested
        shares=isinstance(pool, StaticPool),
        nests=isinstance(pool, SingletonThreadPool),
        waits=_may_wait(pool),
        engine=None if engine is None else weakref.ref(engine),
        ledger=Ledger(guard, name, pool_fill(pool)[1], idle),
        out=out,
    )


def _may_wait(pool: Pool) -> bool:
    overflow: object = getattr(pool, "_max_overflow", None)  # of a class of the user's, anything
    unlimited = isinstance(overflow, int) and overflow < 0
    return not (unlimited or isinstance(pool, NullPool | SingletonThreadPool))


def is_async(pool: Pool) -> bool:
    """Return whether a pool is that of an `AsyncEngine`."""
    return pool._dialect.is_async  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]  # no public way; tested


def pool_of(record: Any) -> Pool:  # noqa: ANN401  (its class does not say that it knows)
    """Return the pool that an entry belongs to."""
    pool: Pool = record._ConnectionRecord__pool  # noqa: SLF001  (no public way; tested)
    return pool


def idle_entries(pool: Pool) -> list[int]:
    """List the numbers of the entries that are in the pool's queue and have a connection.

    Pools of other classes say nothing of that.
    """
    queue: Any = vars(pool).get("_pool")
    inside = cast("dict[str, Any]", {} if queue is None else vars(queue))
    # SQLAlchemy's own has a deque; the one around asyncio's makes that when it is first used.
    entries: Any = inside.get("queue") or getattr(inside.get("_queue"), "_queue", ())
    return [id(entry) for entry in tuple(entries) if entry.dbapi_connection is not None]


def pool_fill(pool: Pool) -> tuple[int | None, int | None]:
    """Count the connections out, and say how many may be; `None` for what a pool does not know."""
    counting = cast("Any", pool)  # only some classes of pools count
    try:
        overflow: int = counting._max_overflow  # noqa: SLF001  (no public way; tested)
        out: int = counting.checkedout()
        size: int = counting.size()
        return out, None if overflow < 0 else size + overflow
    except Exception:  # noqa: BLE001  (a class of the user's may count in a way of its own)
        return None, None


def pool_limits(pool: Pool) -> Limits:
    """Return what a pool allows, as far as its class says so."""
    asked = cast("Any", pool)
    try:
        overflow: int = asked._max_overflow  # noqa: SLF001  (no public way; tested)
        timeout = float(asked._timeout)  # noqa: SLF001  (no public way; tested)
        return Limits(int(asked.size()), None if overflow < 0 else overflow, timeout)
    except Exception:  # noqa: BLE001  (a class of the user's may do it in a way of its own)
        return Limits(None, None, None)


def check_engines(engines: tuple[object, ...] | None) -> None:
    """Raise `SettingsError` for anything that is neither an `Engine` nor an `AsyncEngine`."""
    for number, engine in enumerate(engines or ()):
        if sync_engine(engine) is None:
            raise SettingsError(f"engines[{number}]", engine, ENGINES_ALLOWED)


def belongs_to(pool: Pool, engines: tuple[object, ...]) -> bool:
    """Return whether `pool` is the present pool of one of `engines`: `dispose()` makes another."""
    return any(engine is not None and engine.pool is pool for engine in map(sync_engine, engines))


def sync_engine(engine: object) -> Engine | None:
    """Return the `Engine` that an `Engine` or `AsyncEngine` is or has; `None` for anything else."""
    if isinstance(engine, Engine):
        return engine
    # An AsyncEngine cannot exist where its module was never imported.
    asyncio = sys.modules.get("sqlalchemy.ext.asyncio")
    if asyncio is not None and isinstance(engine, asyncio.AsyncEngine):
        return cast("Engine", cast("Any", engine).sync_engine)
    return None


def _pool_name(pool: Pool, engine: Engine | None) -> str:
    """Name a pool as in logs and metrics; never a user name or password."""
    name = pool.logging_name
    if name:
        return name
    if engine is None:
        return type(pool).__name__
    url = engine.url
    if url.get_backend_name() == "sqlite":
        return _file_name(url.database)
    place = f"{url.host}:{url.port}" if url.port else url.host
    return "/".join(part for part in (place, url.database) if part) or url.get_backend_name()


def _file_name(database: str | None) -> str:
    return (database or ":memory:").replace("\\", "/").rsplit("/", 1)[-1]


def _engine_of(pool: Pool, frame: FrameType | None) -> Engine | None:
    """Find the engine of a pool on the stack of a checkout.

    Neither the pool nor its events know the engine; the method that checks out is the engine's.
    """
    for one in at_work(frame):
        if isinstance(one, Engine) and one.pool is pool:
            return one
    return None


def at_work(frame: FrameType | None) -> Iterator[object]:
    """Return the objects whose methods are nearest on the stack, SQLAlchemy's own, innermost first.

    Other frames are not looked into: asking a frame for its variables keeps what they refer to
    alive until it ends.
    """
    left = _NEAR
    while frame is not None and left:
        if str(frame.f_globals.get("__name__")).startswith("sqlalchemy."):
            yield frame.f_locals.get("self")
            left -= 1
        frame = frame.f_back


_NEAR: Final = 12
"""How many of SQLAlchemy's frames to look at, of which there are six between a checkout and its
engine; those of whoever wraps its methods, or derives from its pools, do not count."""
