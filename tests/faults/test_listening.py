"""A connection that waits for notifications is in use, though no statement runs on it."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from sqlalchemy.ext.asyncio import create_async_engine

from leakguard import LeakGuard
from leakguard.core.hold import ConnectionHold
from tests.scenarios.conftest import databases as databases  # noqa: PLC0414  (a fixture)
from tests.scenarios.databases import DRIVERS, Databases, Unavailable

ASYNCPG = next(driver for driver in DRIVERS if driver.name == "asyncpg")


def test_a_connection_that_listens_is_not_called_idle(databases: Databases) -> None:
    """With asyncpg, whose listeners are functions that are called when something comes."""
    try:
        database = databases.of(ASYNCPG)
    except Unavailable as reason:
        pytest.skip(str(reason))

    async def main() -> None:
        engine = create_async_engine(database.url(ASYNCPG))
        told: asyncio.Queue[str] = asyncio.Queue()

        def hear(*arguments: Any) -> None:
            told.put_nowait(arguments[-1])

        async with engine.connect() as connection:
            [hold] = [one for one in guard.open_holds() if isinstance(one, ConnectionHold)]
            assert hold.tells_idleness
            raw: Any = (await connection.get_raw_connection()).driver_connection
            await raw.add_listener("orders", hear)
            assert not hold.tells_idleness
            await raw.execute("NOTIFY orders, 'paid'")
            assert await told.get() == "paid"
            await raw.remove_listener("orders", hear)
            assert hold.tells_idleness
        await engine.dispose()

    with LeakGuard(mode="testing", observers=[], held_after=3600.0) as guard:
        asyncio.run(main())
