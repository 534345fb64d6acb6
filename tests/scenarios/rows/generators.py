"""Dependencies that are generators, resumed by somebody who does not finish them."""

import asyncio
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing
from dataclasses import replace
from typing import Annotated

from fastapi import Depends
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session

from tests.scenarios.lab import Lab
from tests.scenarios.suite import LEAKED, scenario

QUERY = text("SELECT 1")
USED_AFTER_CLOSE = replace(LEAKED, says="generator that nobody keeps")
RESOLVED = replace(LEAKED, resolved=True)


@scenario(5, "`db = next(get_db())`", USED_AFTER_CLOSE)
async def next_of_generator_sync(lab: Lab) -> None:
    def get_db() -> Iterator[Session]:
        db = lab.keep(Session(lab.engine))  # leak
        try:
            yield db
        finally:
            db.close()

    @lab.app.get("/leak")
    def leak() -> None:
        db = next(get_db())
        db.execute(QUERY)  # checkout

    await lab.get()


@scenario(5, "`db = await anext(get_db())`", USED_AFTER_CLOSE)
async def next_of_generator_async(lab: Lab) -> None:
    closed = asyncio.Event()

    async def get_db() -> AsyncGenerator[AsyncSession, None]:
        db = lab.keep(AsyncSession(lab.async_engine))  # leak
        try:
            yield db
        finally:
            await db.close()
            closed.set()

    @lab.app.get("/leak")
    async def leak() -> None:
        db = await anext(get_db())
        await closed.wait()  # whatever is awaited first: the loop ends the generator
        await db.execute(QUERY)  # checkout

    await lab.get()


@scenario(6, "`async for db in get_db(): break`, no `finally`", LEAKED)
async def break_without_finally_async(lab: Lab) -> None:
    async def get_db() -> AsyncGenerator[AsyncSession, None]:
        db = lab.keep(AsyncSession(lab.async_engine))  # leak
        yield db
        await db.close()

    @lab.app.get("/leak")
    async def leak() -> None:
        async for db in get_db():
            await db.execute(QUERY)  # checkout
            break

    await lab.get()


@scenario(6, "`async for db in get_db(): break`, and something keeps the generator", LEAKED)
async def break_kept_async(lab: Lab) -> None:
    async def get_db() -> AsyncGenerator[AsyncSession, None]:
        async with AsyncSession(lab.async_engine) as db:  # leak
            yield db

    @lab.app.get("/leak")
    async def leak() -> None:
        sessions = get_db()
        lab.keep(sessions, sessions.aclose)
        async for db in sessions:
            await db.execute(QUERY)  # checkout
            break

    await lab.get()


@scenario(
    6,
    "re-yielding inside such a loop, no `finally`, the endpoint raises",
    replace(LEAKED, status=500),
)
async def re_yield_without_finally_async(lab: Lab) -> None:
    async def get_db() -> AsyncGenerator[AsyncSession, None]:
        db = lab.keep(AsyncSession(lab.async_engine))  # leak
        yield db
        await db.close()

    async def dependency() -> AsyncGenerator[AsyncSession, None]:
        async for db in get_db():
            yield db

    @lab.app.get("/leak")
    async def leak(db: Annotated[AsyncSession, Depends(dependency)]) -> None:
        await db.execute(QUERY)  # checkout
        raise ValueError

    await lab.get(status=500)


@scenario(
    6, "`async for db in get_db(): break`, closed by the event loop after the request", RESOLVED
)
async def break_closed_by_loop_async(lab: Lab) -> None:
    async def get_db() -> AsyncGenerator[AsyncSession, None]:
        async with AsyncSession(lab.async_engine) as db:  # leak
            yield db

    @lab.app.get("/leak")
    async def leak() -> None:
        async for db in get_db():
            await db.execute(QUERY)  # checkout
            break

    await lab.get()
    await lab.until(lambda: lab.recorder.resolutions)


@scenario(
    6,
    "re-yielding inside such a loop, closed by the event loop after the request",
    replace(RESOLVED, status=500),
)
async def re_yield_closed_by_loop_async(lab: Lab) -> None:
    async def get_db() -> AsyncGenerator[AsyncSession, None]:
        async with AsyncSession(lab.async_engine) as db:  # leak
            yield db

    async def dependency() -> AsyncGenerator[AsyncSession, None]:
        async for db in get_db():
            yield db

    @lab.app.get("/leak")
    async def leak(db: Annotated[AsyncSession, Depends(dependency)]) -> None:
        await db.execute(QUERY)  # checkout
        raise ValueError

    await lab.get(status=500)
    await lab.until(lambda: lab.recorder.resolutions)


@scenario(6, "the loop inside `aclosing`, the endpoint raises")
async def aclosing_async(lab: Lab) -> None:
    async def get_db() -> AsyncGenerator[AsyncSession, None]:
        async with AsyncSession(lab.async_engine) as db:
            yield db

    async def dependency() -> AsyncGenerator[AsyncSession, None]:
        async with aclosing(get_db()) as sessions:
            async for db in sessions:
                yield db

    @lab.app.get("/")
    async def clean(db: Annotated[AsyncSession, Depends(dependency)]) -> None:
        await db.execute(QUERY)
        raise ValueError

    await lab.get("/", status=500)
