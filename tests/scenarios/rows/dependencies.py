"""Sessions of dependencies and endpoints: closed always, sometimes, or never."""

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from typing import Annotated

from fastapi import Depends, HTTPException
from sqlalchemy import select, text
from sqlalchemy.ext.asyncio import AsyncSession, async_scoped_session, async_sessionmaker
from sqlalchemy.orm import Session, scoped_session, sessionmaker

from leakguard import FindingKind
from tests.scenarios.lab import Lab
from tests.scenarios.models import Item
from tests.scenarios.suite import LEAKED, Expected, scenario

QUERY = text("SELECT 1")
LEAKED_500 = replace(LEAKED, status=500)
UNCLOSED = Expected(FindingKind.UNCLOSED_SESSION, "leak")

# --- 1 and 2: no finally --------------------------------------------------------------------------


@scenario(1, "`yield db; db.close()` without `finally`, the endpoint raises", LEAKED_500)
async def no_finally_raises_sync(lab: Lab) -> None:
    def get_db() -> Iterator[Session]:
        db = lab.keep(Session(lab.engine))  # leak
        yield db
        db.close()

    @lab.app.get("/leak")
    def leak(db: Annotated[Session, Depends(get_db)]) -> None:
        db.execute(QUERY)  # checkout
        raise ValueError

    await lab.get(status=500)


@scenario(1, "`yield db; db.close()` without `finally`, the endpoint raises", LEAKED_500)
async def no_finally_raises_async(lab: Lab) -> None:
    async def get_db() -> AsyncIterator[AsyncSession]:
        db = lab.keep(AsyncSession(lab.async_engine))  # leak
        yield db
        await db.close()

    @lab.app.get("/leak")
    async def leak(db: Annotated[AsyncSession, Depends(get_db)]) -> None:
        await db.execute(QUERY)  # checkout
        raise ValueError

    await lab.get(status=500)


@scenario(2, "`yield db; db.close()` without `finally`, the endpoint returns")
async def no_finally_returns_sync(lab: Lab) -> None:
    def get_db() -> Iterator[Session]:
        db = Session(lab.engine)
        yield db
        db.close()

    @lab.app.get("/")
    def clean(db: Annotated[Session, Depends(get_db)]) -> None:
        db.execute(QUERY)

    await lab.get("/")


@scenario(2, "`yield db; db.close()` without `finally`, the endpoint returns")
async def no_finally_returns_async(lab: Lab) -> None:
    async def get_db() -> AsyncIterator[AsyncSession]:
        db = AsyncSession(lab.async_engine)
        yield db
        await db.close()

    @lab.app.get("/")
    async def clean(db: Annotated[AsyncSession, Depends(get_db)]) -> None:
        await db.execute(QUERY)

    await lab.get("/")


# --- 3: never closed ------------------------------------------------------------------------------


@scenario(3, "a dependency opens a session and never closes it", LEAKED)
async def dependency_never_closes_sync(lab: Lab) -> None:
    def get_db() -> Session:
        return lab.keep(Session(lab.engine))  # leak

    @lab.app.get("/leak")
    def leak(db: Annotated[Session, Depends(get_db)]) -> None:
        db.execute(QUERY)  # checkout

    await lab.get()


@scenario(3, "a dependency opens a session and never closes it", LEAKED)
async def dependency_never_closes_async(lab: Lab) -> None:
    async def get_db() -> AsyncSession:
        return lab.keep(AsyncSession(lab.async_engine))  # leak

    @lab.app.get("/leak")
    async def leak(db: Annotated[AsyncSession, Depends(get_db)]) -> None:
        await db.execute(QUERY)  # checkout

    await lab.get()


@scenario(3, "an endpoint opens a session and never closes it", LEAKED)
async def endpoint_never_closes_sync(lab: Lab) -> None:
    @lab.app.get("/leak")
    def leak() -> None:
        db = lab.keep(Session(lab.engine))  # leak
        db.execute(QUERY)  # checkout

    await lab.get()


@scenario(3, "an endpoint opens a session and never closes it", LEAKED)
async def endpoint_never_closes_async(lab: Lab) -> None:
    @lab.app.get("/leak")
    async def leak() -> None:
        db = lab.keep(AsyncSession(lab.async_engine))  # leak
        await db.execute(QUERY)  # checkout

    await lab.get()


# --- 4: closed on the way to success only ---------------------------------------------------------


@scenario(4, "an early `return` before `close()`", LEAKED)
async def early_return_sync(lab: Lab) -> None:
    @lab.app.get("/leak")
    def leak(name: str | None = None) -> str:
        db = lab.keep(Session(lab.engine))  # leak
        db.execute(QUERY)  # checkout
        if name is None:
            return "nothing to do"
        db.close()
        return name

    await lab.get()


@scenario(4, "an early `return` before `close()`", LEAKED)
async def early_return_async(lab: Lab) -> None:
    @lab.app.get("/leak")
    async def leak(name: str | None = None) -> str:
        db = lab.keep(AsyncSession(lab.async_engine))  # leak
        await db.execute(QUERY)  # checkout
        if name is None:
            return "nothing to do"
        await db.close()
        return name

    await lab.get()


@scenario(4, "an exception before `close()`", LEAKED_500)
async def exception_sync(lab: Lab) -> None:
    @lab.app.get("/leak")
    def leak(number: str = "none") -> None:
        db = lab.keep(Session(lab.engine))  # leak
        db.execute(QUERY)  # checkout
        int(number)
        db.close()

    await lab.get(status=500)


@scenario(4, "an exception before `close()`", LEAKED_500)
async def exception_async(lab: Lab) -> None:
    @lab.app.get("/leak")
    async def leak(number: str = "none") -> None:
        db = lab.keep(AsyncSession(lab.async_engine))  # leak
        await db.execute(QUERY)  # checkout
        int(number)
        await db.close()

    await lab.get(status=500)


@scenario(4, "an `HTTPException` before `close()`", replace(LEAKED, status=404))
async def http_exception_sync(lab: Lab) -> None:
    @lab.app.get("/leak")
    def leak() -> None:
        db = lab.keep(Session(lab.engine))  # leak
        if db.get(Item, -1) is None:  # checkout
            raise HTTPException(404)
        db.close()

    await lab.get(status=404)


@scenario(4, "an `HTTPException` before `close()`", replace(LEAKED, status=404))
async def http_exception_async(lab: Lab) -> None:
    @lab.app.get("/leak")
    async def leak() -> None:
        db = lab.keep(AsyncSession(lab.async_engine))  # leak
        if await db.get(Item, -1) is None:  # checkout
            raise HTTPException(404)
        await db.close()

    await lab.get(status=404)


# --- 10: scoped sessions --------------------------------------------------------------------------


@scenario(10, "`scoped_session` without `remove()`", LEAKED)
async def scoped_session_sync(lab: Lab) -> None:
    registry = scoped_session(sessionmaker(lab.engine))

    @lab.app.get("/leak")
    def leak() -> None:
        db = lab.keep(registry())  # leak
        db.execute(QUERY)  # checkout

    await lab.get()


@scenario(10, "`scoped_session` without `remove()`", LEAKED)
async def scoped_session_async(lab: Lab) -> None:
    registry = async_scoped_session(async_sessionmaker(lab.async_engine), asyncio.current_task)

    @lab.app.get("/leak")
    async def leak() -> None:
        db = lab.keep(registry())  # leak
        await db.execute(QUERY)  # checkout

    await lab.get()


@scenario(10, "`remove()` on another thread or task than the one that used the session", LEAKED)
async def removed_elsewhere_sync(lab: Lab) -> None:
    registry = scoped_session(sessionmaker(lab.engine))

    async def get_db() -> AsyncIterator[scoped_session[Session]]:
        try:
            yield registry
        finally:
            registry.remove()  # this is the thread of the event loop

    @lab.app.get("/leak")
    def leak(db: Annotated[scoped_session[Session], Depends(get_db)]) -> None:
        lab.keep(db())  # leak
        db.execute(QUERY)  # checkout

    await lab.get()


@scenario(10, "`remove()` on another thread or task than the one that used the session", LEAKED)
async def removed_elsewhere_async(lab: Lab) -> None:
    registry = async_scoped_session(async_sessionmaker(lab.async_engine), asyncio.current_task)

    @lab.app.get("/leak")
    async def leak() -> None:
        lab.keep(registry())  # leak
        await registry.execute(QUERY)  # checkout
        await asyncio.create_task(registry.remove())

    await lab.get()


@scenario(10, "`scoped_session` with `remove()`")
async def scoped_session_removed_sync(lab: Lab) -> None:
    registry = scoped_session(sessionmaker(lab.engine), threading.get_ident)

    @lab.app.get("/")
    def clean() -> None:
        try:
            registry.execute(QUERY)
        finally:
            registry.remove()

    await lab.get("/")


@scenario(10, "`scoped_session` with `remove()`")
async def scoped_session_removed_async(lab: Lab) -> None:
    registry = async_scoped_session(async_sessionmaker(lab.async_engine), asyncio.current_task)

    @lab.app.get("/")
    async def clean() -> None:
        try:
            await registry.execute(QUERY)
        finally:
            await registry.remove()

    await lab.get("/")


# --- 11, 22, 23: what looks like a close ----------------------------------------------------------


@scenario(11, "`with Session(e).no_autoflush as s:`", LEAKED)
async def no_autoflush_sync(lab: Lab) -> None:
    @lab.app.get("/leak")
    def leak() -> None:
        with lab.keep(Session(lab.engine)).no_autoflush as db:  # leak
            db.execute(QUERY)  # checkout

    await lab.get()


@scenario(11, "`with Session(e).no_autoflush as s:`", LEAKED)
async def no_autoflush_async(lab: Lab) -> None:
    @lab.app.get("/leak")
    async def leak() -> None:
        db = lab.keep(AsyncSession(lab.async_engine))  # leak
        with db.no_autoflush:
            await db.execute(QUERY)  # checkout

    await lab.get()


@scenario(22, "`commit()`, then an expired attribute is read, no `close()`", LEAKED)
async def read_after_commit_sync(lab: Lab) -> None:
    @lab.app.get("/leak")
    def leak() -> str:
        db = lab.keep(Session(lab.engine))  # leak
        item = db.scalars(select(Item).limit(1)).one()
        db.commit()
        return item.name  # checkout

    await lab.get()


@scenario(22, "`commit()`, then `refresh()`, no `close()`", LEAKED)
async def refresh_after_commit_sync(lab: Lab) -> None:
    @lab.app.get("/leak")
    def leak() -> None:
        db = lab.keep(Session(lab.engine))  # leak
        item = db.scalars(select(Item).limit(1)).one()
        db.commit()
        db.refresh(item)  # checkout

    await lab.get()


@scenario(22, "`commit()`, then `refresh()`, no `close()`", LEAKED)
async def refresh_after_commit_async(lab: Lab) -> None:
    @lab.app.get("/leak")
    async def leak() -> None:
        db = lab.keep(AsyncSession(lab.async_engine))  # leak
        item = (await db.scalars(select(Item).limit(1))).one()
        await db.commit()
        await db.refresh(item)  # checkout

    await lab.get()


@scenario(23, "a session is committed and never closed", UNCLOSED)
async def committed_only_sync(lab: Lab) -> None:
    @lab.app.get("/leak")
    def leak() -> None:
        db = lab.keep(Session(lab.engine))  # leak
        db.execute(QUERY)
        db.commit()

    await lab.get()


@scenario(23, "a session is committed and never closed", UNCLOSED)
async def committed_only_async(lab: Lab) -> None:
    @lab.app.get("/leak")
    async def leak() -> None:
        db = lab.keep(AsyncSession(lab.async_engine))  # leak
        await db.execute(QUERY)
        await db.commit()

    await lab.get()
