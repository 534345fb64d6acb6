"""Pools of every class that hands out connections, and the ways in which one of them ends."""

from __future__ import annotations

from pathlib import Path

from sqlalchemy import Engine, Pool, create_engine
from sqlalchemy.pool import (
    AssertionPool,
    NullPool,
    PoolProxiedConnection,
    QueuePool,
    SingletonThreadPool,
    StaticPool,
)

POOLS = [QueuePool, NullPool, StaticPool, SingletonThreadPool, AssertionPool]


def make_engine(folder: Path, pool: type[Pool]) -> Engine:
    """Make an engine on a SQLite file; threads may share its connections."""
    url = f"sqlite:///{folder / 'any.db'}"
    return create_engine(url, poolclass=pool, connect_args={"check_same_thread": False})


def closed(connection: PoolProxiedConnection) -> None:
    """Give it back."""
    connection.close()


def invalidated(connection: PoolProxiedConnection) -> None:
    """Have the pool make another one in its place."""
    connection.invalidate()


def softly_invalidated(connection: PoolProxiedConnection) -> None:
    """Give it back to a pool that makes another one in its place when it is taken next."""
    connection.invalidate(soft=True)
    connection.close()


def detached(connection: PoolProxiedConnection) -> None:
    """Take it out of the pool for good, and close it."""
    connection.detach()
    connection.close()


def dropped(_: PoolProxiedConnection) -> None:
    """Leave it to the garbage collector."""


ENDS = [closed, invalidated, softly_invalidated, detached, dropped]
