"""Correct code of every usual kind."""

from collections.abc import AsyncGenerator, AsyncIterator, Generator, Iterator
from contextlib import aclosing, asynccontextmanager, contextmanager
from typing import Annotated

from fastapi import BackgroundTasks, Depends, HTTPException
from fastapi.responses import StreamingResponse
from sqlalchemy import select, text
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker
from sqlalchemy.orm import Session, sessionmaker
from sqlmodel import Session as ModelSession
from sqlmodel import select as model_select
from sqlmodel.ext.asyncio.session import AsyncSession as AsyncModelSession

from tests.fastapi_version import FUNCTION_SCOPE
from tests.scenarios.lab import Lab
from tests.scenarios.models import ROWS, Item
from tests.scenarios.suite import scenario

QUERY = text("SELECT 1")

# --- 36: sessions that are used again -------------------------------------------------------------


@scenario(36, "a session that is closed, used again and closed again")
async def closed_twice_sync(lab: Lab) -> None:
    @lab.app.get("/")
    def clean() -> None:
        db = Session(lab.engine)
        db.execute(QUERY)
        db.close()
        db.execute(QUERY)
        db.close()

    await lab.get("/")


@scenario(36, "a session that is closed, used again and closed again")
async def closed_twice_async(lab: Lab) -> None:
    @lab.app.get("/")
    async def clean() -> None:
        db = AsyncSession(lab.async_engine)
        await db.execute(QUERY)
        await db.close()
        await db.execute(QUERY)
        await db.close()

    await lab.get("/")


@scenario(36, "a session that is used after `commit()` over and over, and closed at the end")
async def committed_often_sync(lab: Lab) -> None:
    @lab.app.get("/")
    def clean() -> None:
        db = Session(lab.engine)
        for _ in range(5):
            db.execute(QUERY)
            db.commit()
        db.execute(QUERY)
        db.close()

    await lab.get("/")


@scenario(36, "a session that is used after `commit()` over and over, and closed at the end")
async def committed_often_async(lab: Lab) -> None:
    @lab.app.get("/")
    async def clean() -> None:
        db = AsyncSession(lab.async_engine)
        for _ in range(5):
            await db.execute(QUERY)
            await db.commit()
        await db.execute(QUERY)
        await db.close()

    await lab.get("/")


# --- 39: dependencies -----------------------------------------------------------------------------


@scenario(
    39, "`with Session() as db: yield db`, the endpoint returns, fails, raises `HTTPException`"
)
async def with_dependency_sync(lab: Lab) -> None:
    def get_db() -> Iterator[Session]:
        with Session(lab.engine) as db:
            yield db

    @lab.app.get("/{number}")
    def clean(number: int, db: Annotated[Session, Depends(get_db)]) -> int:
        db.execute(QUERY)
        if number == 404:
            raise HTTPException(number)
        return 1 // number

    await lab.get("/1")
    await lab.get("/0", status=500)
    await lab.get("/404", status=404)


@scenario(
    39, "`with Session() as db: yield db`, the endpoint returns, fails, raises `HTTPException`"
)
async def with_dependency_async(lab: Lab) -> None:
    async def get_db() -> AsyncIterator[AsyncSession]:
        async with AsyncSession(lab.async_engine) as db:
            yield db

    @lab.app.get("/{number}")
    async def clean(number: int, db: Annotated[AsyncSession, Depends(get_db)]) -> int:
        await db.execute(QUERY)
        if number == 404:
            raise HTTPException(number)
        return 1 // number

    await lab.get("/1")
    await lab.get("/0", status=500)
    await lab.get("/404", status=404)


@scenario(39, "`try: yield db / finally: db.close()`, the endpoint raises")
async def finally_dependency_sync(lab: Lab) -> None:
    def get_db() -> Iterator[Session]:
        db = Session(lab.engine)
        try:
            yield db
        finally:
            db.close()

    @lab.app.get("/")
    def clean(db: Annotated[Session, Depends(get_db)]) -> None:
        db.execute(QUERY)
        raise ValueError

    await lab.get("/", status=500)


@scenario(39, "`try: yield db / finally: db.close()`, the endpoint raises")
async def finally_dependency_async(lab: Lab) -> None:
    async def get_db() -> AsyncIterator[AsyncSession]:
        db = AsyncSession(lab.async_engine)
        try:
            yield db
        finally:
            await db.close()

    @lab.app.get("/")
    async def clean(db: Annotated[AsyncSession, Depends(get_db)]) -> None:
        await db.execute(QUERY)
        raise ValueError

    await lab.get("/", status=500)


@scenario(39, "a dependency that closes before the response: `Depends(..., scope='function')`")
async def function_scope_sync(lab: Lab) -> None:
    def get_db() -> Iterator[Session]:
        with Session(lab.engine) as db:
            yield db

    @lab.app.get("/")
    def clean(db: Annotated[Session, Depends(get_db, **FUNCTION_SCOPE)]) -> None:
        db.execute(QUERY)

    await lab.get("/")


@scenario(39, "a dependency that closes before the response: `Depends(..., scope='function')`")
async def function_scope_async(lab: Lab) -> None:
    async def get_db() -> AsyncIterator[AsyncSession]:
        async with AsyncSession(lab.async_engine) as db:
            yield db

    @lab.app.get("/")
    async def clean(db: Annotated[AsyncSession, Depends(get_db, **FUNCTION_SCOPE)]) -> None:
        await db.execute(QUERY)

    await lab.get("/")


@scenario(39, "one session for a dependency and the endpoint, in `with session.begin()`")
async def shared_dependency_sync(lab: Lab) -> None:
    make_session = sessionmaker(lab.engine)

    def get_db() -> Iterator[Session]:
        with make_session() as db, db.begin():
            yield db

    def user(db: Annotated[Session, Depends(get_db)]) -> Session:
        db.execute(QUERY)
        return db

    @lab.app.get("/")
    def clean(
        db: Annotated[Session, Depends(get_db)], same: Annotated[Session, Depends(user)]
    ) -> None:
        assert db is same
        db.execute(QUERY)

    await lab.get("/")


@scenario(39, "one session for a dependency and the endpoint, in `with session.begin()`")
async def shared_dependency_async(lab: Lab) -> None:
    make_session = async_sessionmaker(lab.async_engine)

    async def get_db() -> AsyncIterator[AsyncSession]:
        async with make_session() as db, db.begin():
            yield db

    async def user(db: Annotated[AsyncSession, Depends(get_db)]) -> AsyncSession:
        await db.execute(QUERY)
        return db

    @lab.app.get("/")
    async def clean(
        db: Annotated[AsyncSession, Depends(get_db)], same: Annotated[AsyncSession, Depends(user)]
    ) -> None:
        assert db is same
        await db.execute(QUERY)

    await lab.get("/")


# --- 39: blocks -----------------------------------------------------------------------------------


@scenario(39, "`with sessionmaker.begin() as db:`, something is written")
async def sessionmaker_begin_sync(lab: Lab) -> None:
    make_session = sessionmaker(lab.engine)

    @lab.app.get("/")
    def clean() -> None:
        with make_session.begin() as db:
            db.add(Item(name="new"))

    await lab.get("/")


@scenario(39, "`with sessionmaker.begin() as db:`, something is written")
async def sessionmaker_begin_async(lab: Lab) -> None:
    make_session = async_sessionmaker(lab.async_engine)

    @lab.app.get("/")
    async def clean() -> None:
        async with make_session.begin() as db:
            db.add(Item(name="new"))

    await lab.get("/")


@scenario(39, "`with engine.begin() as connection:`")
async def engine_begin_sync(lab: Lab) -> None:
    @lab.app.get("/")
    def clean() -> None:
        with lab.engine.begin() as connection:
            connection.execute(QUERY)

    await lab.get("/")


@scenario(39, "`with engine.begin() as connection:`")
async def engine_begin_async(lab: Lab) -> None:
    @lab.app.get("/")
    async def clean() -> None:
        async with lab.async_engine.begin() as connection:
            await connection.execute(QUERY)

    await lab.get("/")


@scenario(39, "a context manager of one's own, `commit()` and `rollback()` in it")
async def context_manager_sync(lab: Lab) -> None:
    @contextmanager
    def unit_of_work() -> Generator[Session, None, None]:
        db = Session(lab.engine)
        try:
            yield db
            db.commit()
        except ValueError:
            db.rollback()
            raise
        finally:
            db.close()

    @lab.app.get("/{number}")
    def clean(number: str) -> int:
        with unit_of_work() as db:
            db.execute(QUERY)
            return int(number)

    await lab.get("/1")
    await lab.get("/one", status=500)


@scenario(39, "a context manager of one's own, `commit()` and `rollback()` in it")
async def context_manager_async(lab: Lab) -> None:
    @asynccontextmanager
    async def unit_of_work() -> AsyncGenerator[AsyncSession, None]:
        db = AsyncSession(lab.async_engine)
        try:
            yield db
            await db.commit()
        except ValueError:
            await db.rollback()
            raise
        finally:
            await db.close()

    @lab.app.get("/{number}")
    async def clean(number: str) -> int:
        async with unit_of_work() as db:
            await db.execute(QUERY)
            return int(number)

    await lab.get("/1")
    await lab.get("/one", status=500)


@scenario(39, "SQLModel's `Session`")
async def sqlmodel_sync(lab: Lab) -> None:
    def get_db() -> Iterator[ModelSession]:
        with ModelSession(lab.engine) as db:
            yield db

    @lab.app.get("/")
    def clean(db: Annotated[ModelSession, Depends(get_db)]) -> int:
        return len(db.exec(model_select(Item).limit(3)).all())

    assert (await lab.get("/")).json() == 3


@scenario(39, "SQLModel's `Session`")
async def sqlmodel_async(lab: Lab) -> None:
    async def get_db() -> AsyncIterator[AsyncModelSession]:
        async with AsyncModelSession(lab.async_engine) as db:
            yield db

    @lab.app.get("/")
    async def clean(db: Annotated[AsyncModelSession, Depends(get_db)]) -> int:
        return len((await db.exec(model_select(Item).limit(3))).all())

    assert (await lab.get("/")).json() == 3


@scenario(39, "an asynchronous generator in `aclosing`, left early")
async def aclosing_generator_async(lab: Lab) -> None:
    async def items() -> AsyncGenerator[int, None]:
        async with AsyncSession(lab.async_engine) as db:
            for number in await db.scalars(select(Item.id).limit(10)):
                yield number

    @lab.app.get("/")
    async def clean() -> None:
        async with aclosing(items()) as numbers:
            async for _ in numbers:
                break

    await lab.get("/")


@scenario(39, "`run_sync`")
async def run_sync_async(lab: Lab) -> None:
    def work(db: Session) -> int:
        return len(db.scalars(select(Item.id).limit(3)).all())

    @lab.app.get("/")
    async def clean() -> int:
        async with AsyncSession(lab.async_engine) as db:
            return await db.run_sync(work)

    assert (await lab.get("/")).json() == 3


@scenario(39, "a background task with a session of its own")
async def background_task_sync(lab: Lab) -> None:
    def work() -> None:
        with Session(lab.engine) as db:
            db.execute(QUERY)

    @lab.app.get("/")
    def clean(tasks: BackgroundTasks) -> None:
        tasks.add_task(work)

    await lab.get("/")


@scenario(39, "a background task with a session of its own")
async def background_task_async(lab: Lab) -> None:
    async def work() -> None:
        async with AsyncSession(lab.async_engine) as db:
            await db.execute(QUERY)

    @lab.app.get("/")
    async def clean(tasks: BackgroundTasks) -> None:
        tasks.add_task(work)

    await lab.get("/")


# --- 39: streams ----------------------------------------------------------------------------------


@scenario(39, "`yield_per`, read to the end")
async def yield_per_sync(lab: Lab) -> None:
    @lab.app.get("/")
    def clean() -> int:
        with Session(lab.engine) as db:
            items = select(Item.id).limit(ROWS).execution_options(yield_per=7)
            return len(list(db.scalars(items)))

    assert (await lab.get("/")).json() == ROWS


@scenario(39, "`yield_per`, read to the end")
async def yield_per_async(lab: Lab) -> None:
    @lab.app.get("/")
    async def clean() -> int:
        async with AsyncSession(lab.async_engine) as db:
            items = select(Item.id).limit(ROWS).execution_options(yield_per=7)
            return len([item async for item in await db.stream_scalars(items)])

    assert (await lab.get("/")).json() == ROWS


@scenario(39, "a server-side cursor, closed before its end")
async def server_side_cursor_sync(lab: Lab) -> None:
    @lab.app.get("/")
    def clean() -> None:
        with lab.engine.connect() as connection:
            streaming = connection.execution_options(stream_results=True, max_row_buffer=5)
            with streaming.execute(select(Item.id)) as rows:
                rows.fetchone()

    await lab.get("/")


@scenario(39, "a server-side cursor, closed before its end")
async def server_side_cursor_async(lab: Lab) -> None:
    @lab.app.get("/")
    async def clean() -> None:
        async with (
            lab.async_engine.connect() as connection,
            connection.stream(select(Item.id)) as rows,
        ):
            await rows.fetchone()

    await lab.get("/")


@scenario(39, "a streaming response that reads in its own `with` block", served=True)
async def streaming_response_sync(lab: Lab) -> None:
    def lines() -> Iterator[str]:
        with Session(lab.engine) as db:
            items = select(Item.id).limit(ROWS).execution_options(yield_per=7)
            for number in db.scalars(items):
                yield f"{number}\n"

    @lab.app.get("/")
    def clean() -> StreamingResponse:
        return StreamingResponse(lines())

    assert len((await lab.get("/")).text.splitlines()) == ROWS


@scenario(39, "a streaming response that reads in its own `with` block", served=True)
async def streaming_response_async(lab: Lab) -> None:
    async def lines() -> AsyncIterator[str]:
        async with AsyncSession(lab.async_engine) as db:
            items = select(Item.id).limit(ROWS).execution_options(yield_per=7)
            async for number in await db.stream_scalars(items):
                yield f"{number}\n"

    @lab.app.get("/")
    async def clean() -> StreamingResponse:
        return StreamingResponse(lines())

    assert len((await lab.get("/")).text.splitlines()) == ROWS
