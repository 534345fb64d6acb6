"""Scopes, sessions and guards that are shared, nested, or older than the request."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Annotated, Any

from fastapi import Depends, FastAPI, Request
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError, InvalidRequestError
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session
from starlette.middleware.base import BaseHTTPMiddleware, RequestResponseEndpoint
from starlette.responses import Response

from leakguard import FindingKind, LeakGuard, LeakGuardMiddleware
from tests.scenarios.lab import AsgiApp, AsgiScope, Lab, Receive, Send
from tests.scenarios.suite import LEAKED, scenario

QUERY = text("SELECT 1")
NESTED = replace(LEAKED, kind=FindingKind.NESTED_CHECKOUT)
IN_TEST = replace(LEAKED, scope="test_item", status=None)

# --- 18: two connections at once ------------------------------------------------------------------


@scenario(18, "two dependencies take a connection each", NESTED)
async def two_dependencies_sync(lab: Lab) -> None:
    def get_db() -> Iterator[Session]:
        with Session(lab.engine) as db:
            db.execute(QUERY)
            yield db

    def get_other_db() -> Iterator[Session]:
        with Session(lab.engine) as db:  # leak
            yield db

    @lab.app.get("/leak")
    def leak(
        db: Annotated[Session, Depends(get_db)], other: Annotated[Session, Depends(get_other_db)]
    ) -> None:
        other.execute(QUERY)  # checkout

    await lab.get()


@scenario(18, "two dependencies take a connection each", NESTED)
async def two_dependencies_async(lab: Lab) -> None:
    async def get_db() -> AsyncIterator[AsyncSession]:
        async with AsyncSession(lab.async_engine) as db:
            await db.execute(QUERY)
            yield db

    async def get_other_db() -> AsyncIterator[AsyncSession]:
        async with AsyncSession(lab.async_engine) as db:  # leak
            yield db

    @lab.app.get("/leak")
    async def leak(
        db: Annotated[AsyncSession, Depends(get_db)],
        other: Annotated[AsyncSession, Depends(get_other_db)],
    ) -> None:
        await other.execute(QUERY)  # checkout

    await lab.get()


@scenario(18, "a nested session for an audit log", NESTED)
async def audit_sync(lab: Lab) -> None:
    def audit() -> None:
        with Session(lab.engine) as log:  # leak
            log.execute(QUERY)  # checkout

    @lab.app.get("/leak")
    def leak() -> None:
        with Session(lab.engine) as db:
            db.execute(QUERY)
            audit()

    await lab.get()


@scenario(18, "a nested session for an audit log", NESTED)
async def audit_async(lab: Lab) -> None:
    async def audit() -> None:
        async with AsyncSession(lab.async_engine) as log:  # leak
            await log.execute(QUERY)  # checkout

    @lab.app.get("/leak")
    async def leak() -> None:
        async with AsyncSession(lab.async_engine) as db:
            await db.execute(QUERY)
            await audit()

    await lab.get()


# --- 21: synchronous on the event loop ------------------------------------------------------------


@scenario(
    21,
    "a synchronous `Session` inside `async def`",
    replace(LEAKED, kind=FindingKind.SYNC_IN_ASYNC),
)
async def in_coroutine_sync(lab: Lab) -> None:
    @lab.app.get("/leak")
    async def leak() -> None:
        with Session(lab.engine) as db:  # leak
            db.execute(QUERY)  # checkout

    await lab.get()


# --- 27: sessions of middleware -------------------------------------------------------------------


class SessionOf:
    """A middleware that opens a session, lends it to the request, and closes it."""

    def __init__(self, app: AsgiApp, make: Callable[[], Any]) -> None:
        self.app = app
        self.make = make

    async def __call__(self, scope: AsgiScope, receive: Receive, send: Send) -> None:
        """Run the application with a session in the state of the request."""
        db = self.make()
        scope.setdefault("state", {})["db"] = db
        try:
            await self.app(scope, receive, send)
        finally:
            closing = db.close()
            if closing is not None:
                await closing


def lent_session(request: Request) -> Any:
    """Return the session that a middleware lends."""
    return request.state.db


@scenario(27, "a middleware outside of leakguard opens a session and closes it")
async def outer_middleware_sync(lab: Lab) -> None:
    lab.outside(SessionOf, make=lambda: Session(lab.engine))

    @lab.app.get("/")
    def clean(db: Annotated[Session, Depends(lent_session)]) -> None:
        db.execute(QUERY)

    await lab.get("/")


@scenario(27, "a middleware outside of leakguard opens a session and closes it")
async def outer_middleware_async(lab: Lab) -> None:
    lab.outside(SessionOf, make=lambda: AsyncSession(lab.async_engine))

    @lab.app.get("/")
    async def clean(db: Annotated[AsyncSession, Depends(lent_session)]) -> None:
        await db.execute(QUERY)

    await lab.get("/")


@scenario(27, "a middleware inside of leakguard opens a session and closes it")
async def inner_middleware_sync(lab: Lab) -> None:
    async def dispatch(request: Request, call_next: RequestResponseEndpoint) -> Response:
        with Session(lab.engine) as db:
            request.state.db = db
            return await call_next(request)

    lab.inside(BaseHTTPMiddleware, dispatch=dispatch)

    @lab.app.get("/")
    def clean(db: Annotated[Session, Depends(lent_session)]) -> None:
        db.execute(QUERY)

    await lab.get("/")


@scenario(27, "a middleware inside of leakguard opens a session and closes it")
async def inner_middleware_async(lab: Lab) -> None:
    async def dispatch(request: Request, call_next: RequestResponseEndpoint) -> Response:
        async with AsyncSession(lab.async_engine) as db:
            request.state.db = db
            return await call_next(request)

    lab.inside(BaseHTTPMiddleware, dispatch=dispatch)

    @lab.app.get("/")
    async def clean(db: Annotated[AsyncSession, Depends(lent_session)]) -> None:
        await db.execute(QUERY)

    await lab.get("/")


# --- 28: the application's own life ---------------------------------------------------------------


@scenario(28, "a session of `lifespan` that the application keeps", served=False)
async def lifespan_sync(lab: Lab) -> None:
    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncGenerator[None, None]:
        with Session(lab.engine) as db:
            await asyncio.to_thread(db.execute, QUERY)
            app.state.db = db
            yield

    lab.app = FastAPI(lifespan=lifespan)

    @lab.app.get("/")
    def clean() -> None:
        lab.app.state.db.execute(QUERY)

    await see_lifespan(lab)


@scenario(28, "a session of `lifespan` that the application keeps", served=False)
async def lifespan_async(lab: Lab) -> None:
    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncGenerator[None, None]:
        async with AsyncSession(lab.async_engine) as db:
            await db.execute(QUERY)
            app.state.db = db
            yield

    lab.app = FastAPI(lifespan=lifespan)

    @lab.app.get("/")
    async def clean() -> None:
        await lab.app.state.db.execute(QUERY)

    await see_lifespan(lab)


async def see_lifespan(lab: Lab) -> None:
    """Start the application, make a request, and end it; its session is listed all the while."""
    end = await lab.lifespan()
    await lab.get("/")
    holds = lab.guard.open_holds()
    assert {hold.resource for hold in holds} == {"session", "connection"}
    assert {hold.scope for hold in holds} == {None}
    await end()


@scenario(28, "a connection of a migration at start-up", served=False)
async def migration_sync(lab: Lab) -> None:
    def migrate() -> None:
        with lab.engine.begin() as connection:
            connection.execute(QUERY)
            assert [hold.scope for hold in lab.guard.open_holds()][:1] == [None]

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncGenerator[None, None]:
        await asyncio.to_thread(migrate)
        yield

    lab.app = FastAPI(lifespan=lifespan)
    await (await lab.lifespan())()


@scenario(28, "a connection of a migration at start-up", served=False)
async def migration_async(lab: Lab) -> None:
    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncGenerator[None, None]:
        async with lab.async_engine.begin() as connection:
            await connection.execute(QUERY)
            assert [hold.scope for hold in lab.guard.open_holds()][:1] == [None]
        yield

    lab.app = FastAPI(lifespan=lifespan)
    await (await lab.lifespan())()


# --- 29: one connection for a whole test ----------------------------------------------------------


@scenario(29, "a test's fixture holds one connection, requests work in SAVEPOINTs of it")
async def savepoints_sync(lab: Lab) -> None:
    def get_db() -> Session:
        raise NotImplementedError

    @lab.app.get("/")
    def clean(db: Annotated[Session, Depends(get_db)]) -> None:
        db.execute(QUERY)
        with db.begin_nested():
            db.execute(QUERY)
        db.commit()

    with lab.guard.scope("test_item", type="test"):
        connection = await asyncio.to_thread(lab.engine.connect)
        transaction = await asyncio.to_thread(connection.begin)
        db = Session(connection, join_transaction_mode="create_savepoint")
        lab.app.dependency_overrides[get_db] = lambda: db
        await lab.get("/")
        await lab.get("/")
        db.close()
        transaction.rollback()
        connection.close()


@scenario(29, "a test's fixture holds one connection, requests work in SAVEPOINTs of it")
async def savepoints_async(lab: Lab) -> None:
    def get_db() -> AsyncSession:
        raise NotImplementedError

    @lab.app.get("/")
    async def clean(db: Annotated[AsyncSession, Depends(get_db)]) -> None:
        await db.execute(QUERY)
        async with db.begin_nested():
            await db.execute(QUERY)
        await db.commit()

    async with (
        lab.guard.scope("test_item", type="test"),
        lab.async_engine.connect() as connection,
        connection.begin() as transaction,
        AsyncSession(connection, join_transaction_mode="create_savepoint") as db,
    ):
        lab.app.dependency_overrides[get_db] = lambda: db
        await lab.get("/")
        await lab.get("/")
        await db.close()
        await transaction.rollback()


# --- 31: one session, two tasks -------------------------------------------------------------------


@scenario(31, "one session used by two tasks at once: the error passes unchanged")
async def gathered_async(lab: Lab) -> None:
    errors: list[BaseException] = []

    @lab.app.get("/")
    async def clean() -> None:
        async with AsyncSession(lab.async_engine) as db:
            both = await asyncio.gather(
                db.execute(QUERY), db.execute(QUERY), return_exceptions=True
            )
            errors.extend(one for one in both if isinstance(one, BaseException))
            raise errors[0]

    async def note(request: object, error: Exception) -> Any:
        assert error is errors[0]
        raise error

    for kind in (DBAPIError, InvalidRequestError):
        lab.app.add_exception_handler(kind, note)
    await lab.get("/", status=500)
    assert errors


# --- 32: applications in applications -------------------------------------------------------------

MOUNTED = replace(LEAKED, scope="GET /tenants/{tenant}/items/{item_id}")


def mount(lab: Lab, **options: Any) -> FastAPI:
    """Mount an application below a path with a parameter; with options, under a guard, too."""
    sub = FastAPI()
    if options:
        sub.add_middleware(LeakGuardMiddleware, **options)
    lab.app.mount("/tenants/{tenant}", sub)
    return sub


@scenario(32, "a mounted application leaks", MOUNTED)
async def mounted_sync(lab: Lab) -> None:
    @mount(lab).get("/items/{item_id}")
    def leak(item_id: int) -> None:
        db = lab.keep(Session(lab.engine))  # leak
        db.execute(QUERY)  # checkout

    await lab.get("/tenants/acme/items/7")


@scenario(32, "a mounted application leaks", MOUNTED)
async def mounted_async(lab: Lab) -> None:
    @mount(lab).get("/items/{item_id}")
    async def leak(item_id: int) -> None:
        db = lab.keep(AsyncSession(lab.async_engine))  # leak
        await db.execute(QUERY)  # checkout

    await lab.get("/tenants/acme/items/7")


@scenario(32, "a mounted application with a middleware of the same guard leaks", MOUNTED)
async def mounted_same_guard_sync(lab: Lab) -> None:
    @mount(lab, guard=lab.guard).get("/items/{item_id}")
    def leak(item_id: int) -> None:
        db = lab.keep(Session(lab.engine))  # leak
        db.execute(QUERY)  # checkout

    await lab.get("/tenants/acme/items/7")
    see_innermost(lab)


@scenario(32, "a mounted application with a middleware of the same guard leaks", MOUNTED)
async def mounted_same_guard_async(lab: Lab) -> None:
    @mount(lab, guard=lab.guard).get("/items/{item_id}")
    async def leak(item_id: int) -> None:
        db = lab.keep(AsyncSession(lab.async_engine))  # leak
        await db.execute(QUERY)  # checkout

    await lab.get("/tenants/acme/items/7")
    see_innermost(lab)


@scenario(32, "a mounted application with a guard of its own leaks", MOUNTED)
async def mounted_own_guard_sync(lab: Lab) -> None:
    guard = LeakGuard(mode="testing", observers=[lab.recorder])
    lab.keep(guard, guard.uninstall)

    @mount(lab, guard=guard).get("/items/{item_id}")
    def leak(item_id: int) -> None:
        db = lab.keep(Session(lab.engine))  # leak
        db.execute(QUERY)  # checkout

    await lab.get("/tenants/acme/items/7")
    see_innermost(lab)


@scenario(32, "a mounted application with a guard of its own leaks", MOUNTED)
async def mounted_own_guard_async(lab: Lab) -> None:
    guard = LeakGuard(mode="testing", observers=[lab.recorder])
    lab.keep(guard, guard.uninstall)

    @mount(lab, guard=guard).get("/items/{item_id}")
    async def leak(item_id: int) -> None:
        db = lab.keep(AsyncSession(lab.async_engine))  # leak
        await db.execute(QUERY)  # checkout

    await lab.get("/tenants/acme/items/7")
    see_innermost(lab)


def see_innermost(lab: Lab) -> None:
    """See that the finding is the inner scope's, the one that ends first."""
    scopes = lab.recorder.scopes_closed
    assert len(scopes) == 2
    assert [finding.scope for finding in lab.recorder.findings] == scopes[:1]


# --- 35: sessions that are older than the request -------------------------------------------------


@scenario(35, "a test's session through a dependency override, closed by the test")
async def override_sync(lab: Lab) -> None:
    def get_db() -> Session:
        raise NotImplementedError

    @lab.app.get("/")
    def clean(db: Annotated[Session, Depends(get_db)]) -> None:
        db.execute(QUERY)

    with lab.guard.scope("test_item", type="test"), Session(lab.engine) as db:
        lab.app.dependency_overrides[get_db] = lambda: db
        await lab.get("/")
        await lab.get("/")


@scenario(35, "a test's session through a dependency override, closed by the test")
async def override_async(lab: Lab) -> None:
    def get_db() -> AsyncSession:
        raise NotImplementedError

    @lab.app.get("/")
    async def clean(db: Annotated[AsyncSession, Depends(get_db)]) -> None:
        await db.execute(QUERY)

    async with lab.guard.scope("test_item", type="test"), AsyncSession(lab.async_engine) as db:
        lab.app.dependency_overrides[get_db] = lambda: db
        await lab.get("/")
        await lab.get("/")


@scenario(35, "a test's session through a dependency override, never closed", IN_TEST)
async def leaky_override_sync(lab: Lab) -> None:
    def get_db() -> Session:
        raise NotImplementedError

    @lab.app.get("/leak")
    def leak(db: Annotated[Session, Depends(get_db)]) -> None:
        db.execute(QUERY)  # checkout

    with lab.guard.scope("test_item", type="test"):
        db = lab.keep(Session(lab.engine))  # leak
        lab.app.dependency_overrides[get_db] = lambda: db
        await lab.get()
        assert lab.recorder.findings == []


@scenario(35, "a test's session through a dependency override, never closed", IN_TEST)
async def leaky_override_async(lab: Lab) -> None:
    def get_db() -> AsyncSession:
        raise NotImplementedError

    @lab.app.get("/leak")
    async def leak(db: Annotated[AsyncSession, Depends(get_db)]) -> None:
        await db.execute(QUERY)  # checkout

    with lab.guard.scope("test_item", type="test"):
        db = lab.keep(AsyncSession(lab.async_engine))  # leak
        lab.app.dependency_overrides[get_db] = lambda: db
        await lab.get()
        assert lab.recorder.findings == []


class OuterScope(SessionOf):
    """The same middleware, with a scope of its own around it."""

    def __init__(self, app: AsgiApp, make: Callable[[], Any], guard: LeakGuard) -> None:
        super().__init__(app, make)
        self.guard = guard

    async def __call__(self, scope: AsgiScope, receive: Receive, send: Send) -> None:
        """Open the scope around all of it."""
        with self.guard.scope("outer"):
            await super().__call__(scope, receive, send)


@scenario(35, "the session of an outer middleware's scope, through `request.state`")
async def outer_scope_sync(lab: Lab) -> None:
    lab.outside(OuterScope, make=lambda: Session(lab.engine), guard=lab.guard)

    @lab.app.get("/")
    def clean(db: Annotated[Session, Depends(lent_session)]) -> None:
        db.execute(QUERY)

    await lab.get("/")


@scenario(35, "the session of an outer middleware's scope, through `request.state`")
async def outer_scope_async(lab: Lab) -> None:
    lab.outside(OuterScope, make=lambda: AsyncSession(lab.async_engine), guard=lab.guard)

    @lab.app.get("/")
    async def clean(db: Annotated[AsyncSession, Depends(lent_session)]) -> None:
        await db.execute(QUERY)

    await lab.get("/")
