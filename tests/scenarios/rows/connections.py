"""Connections without a session, and sessions that somebody keeps."""

import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache, partial
from typing import Any

from sqlalchemy import text
from sqlalchemy.exc import SAWarning
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session
from sqlalchemy.util import greenlet_spawn

from leakguard import FindingKind
from tests.scenarios.lab import Lab
from tests.scenarios.suite import CONNECTION_LEAKED, LEAKED, scenario

QUERY = text("SELECT 1")
RECLAIMED = replace(CONNECTION_LEAKED, kind=FindingKind.RECLAIMED)

# --- 8: the engine's own connections --------------------------------------------------------------


@scenario(8, "`engine.connect()` never closed", CONNECTION_LEAKED)
async def connect_sync(lab: Lab) -> None:
    @lab.app.get("/leak")
    def leak() -> None:
        connection = lab.keep(lab.engine.connect())  # checkout
        connection.execute(QUERY)

    await lab.get()


@scenario(8, "`AsyncEngine.connect()` never closed", CONNECTION_LEAKED)
async def connect_async(lab: Lab) -> None:
    @lab.app.get("/leak")
    async def leak() -> None:
        connection = lab.keep(await lab.async_engine.connect())  # checkout
        await connection.execute(QUERY)

    await lab.get()


@scenario(8, "`engine.raw_connection()` never closed", CONNECTION_LEAKED)
async def raw_connection_sync(lab: Lab) -> None:
    @lab.app.get("/leak")
    def leak() -> None:
        connection = lab.keep(lab.engine.raw_connection())  # checkout
        connection.cursor().execute("SELECT 1")

    await lab.get()


@scenario(8, "`AsyncEngine.raw_connection()` never closed", CONNECTION_LEAKED)
async def raw_connection_async(lab: Lab) -> None:
    @lab.app.get("/leak")
    async def leak() -> None:
        connection = await lab.async_engine.raw_connection()  # checkout
        lab.keep(connection, partial(greenlet_spawn, connection.close))

    await lab.get()


@scenario(8, "`engine.raw_connection()` dropped before the request ends", RECLAIMED)
async def raw_connection_dropped_sync(lab: Lab) -> None:
    @lab.app.get("/leak")
    def leak() -> None:
        lab.engine.raw_connection()  # checkout

    await lab.get()


@scenario(8, "`AsyncEngine.raw_connection()` dropped before the request ends", RECLAIMED)
async def raw_connection_dropped_async(lab: Lab) -> None:
    @lab.app.get("/leak")
    async def leak() -> None:
        connection = await lab.async_engine.raw_connection()  # checkout
        lab.keep_unterminated(connection.driver_connection)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SAWarning)  # SQLAlchemy's own, which names no line
            del connection

    await lab.get()


# --- 9: kept somewhere ----------------------------------------------------------------------------


@scenario(9, "a session is kept on `app.state`", LEAKED)
async def on_app_state_sync(lab: Lab) -> None:
    @lab.app.get("/leak")
    def leak() -> None:
        lab.app.state.db = lab.keep(Session(lab.engine))  # leak
        lab.app.state.db.execute(QUERY)  # checkout

    await lab.get()


@scenario(9, "a session is kept on `app.state`", LEAKED)
async def on_app_state_async(lab: Lab) -> None:
    @lab.app.get("/leak")
    async def leak() -> None:
        lab.app.state.db = lab.keep(AsyncSession(lab.async_engine))  # leak
        await lab.app.state.db.execute(QUERY)  # checkout

    await lab.get()


@scenario(9, "a session is kept in a cache", LEAKED)
async def in_cache_sync(lab: Lab) -> None:
    @lru_cache
    def get_db() -> Session:
        return lab.keep(Session(lab.engine))  # leak

    @lab.app.get("/leak")
    def leak() -> None:
        get_db().execute(QUERY)  # checkout

    await lab.get()
    await lab.get()


@scenario(9, "a session is kept in a cache", LEAKED)
async def in_cache_async(lab: Lab) -> None:
    @lru_cache
    def get_db() -> AsyncSession:
        return lab.keep(AsyncSession(lab.async_engine))  # leak

    @lab.app.get("/leak")
    async def leak() -> None:
        await get_db().execute(QUERY)  # checkout

    await lab.get()
    await lab.get()


@scenario(9, "a session of a module, made at its import", LEAKED, late_after=0.05)
async def of_module_sync(lab: Lab) -> None:
    db = lab.keep(Session(lab.engine))  # leak

    @lab.app.get("/leak")
    def leak() -> None:
        db.execute(QUERY)  # checkout

    await lab.get()


@scenario(9, "a session of a module, made at its import", LEAKED, late_after=0.05)
async def of_module_async(lab: Lab) -> None:
    db = lab.keep(AsyncSession(lab.async_engine))  # leak

    @lab.app.get("/leak")
    async def leak() -> None:
        await db.execute(QUERY)  # checkout

    await lab.get()


@scenario(9, "a session is kept by the traceback of a stored exception", LEAKED)
async def in_traceback_sync(lab: Lab) -> None:
    @lab.app.get("/leak")
    def leak() -> None:
        try:
            use()
        except ValueError as error:
            lab.keep(error, closer(error))

    def use() -> None:
        db = Session(lab.engine)  # leak
        db.execute(QUERY)  # checkout
        int("none")
        db.close()

    await lab.get()


@scenario(9, "a session is kept by the traceback of a stored exception", LEAKED)
async def in_traceback_async(lab: Lab) -> None:
    @lab.app.get("/leak")
    async def leak() -> None:
        try:
            await use()
        except ValueError as error:
            lab.keep(error, closer(error))

    async def use() -> None:
        db = AsyncSession(lab.async_engine)  # leak
        await db.execute(QUERY)  # checkout
        int("none")
        await db.close()

    await lab.get()


def closer(error: Exception) -> Callable[[], Any]:
    """Return what closes the session that only the exception's traceback refers to."""

    def close() -> Any:
        traceback = error.__traceback__
        assert traceback is not None
        assert traceback.tb_next is not None
        return traceback.tb_next.tb_frame.f_locals["db"].close()

    return close
