"""What happens around a request and after it: outer middleware, work that goes on, callbacks."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI, Request, Response
from sqlalchemy import Engine, text
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine
from sqlalchemy.orm import Session

from leakguard import FindingKind, LeakGuard, LeakGuardMiddleware
from tests.support import PATIENCE, Recorder, core_of, fetch, line_marked

QUERY = text("SELECT 1")
HERE = sys.modules[__name__]
LEAKED, OUTLIVES = FindingKind.LEAKED, FindingKind.OUTLIVES_SCOPE


class Application:
    """An application under a guard, and an asynchronous engine for it."""

    def __init__(self, folder: Path, guard: LeakGuard) -> None:
        self.engine: AsyncEngine = create_async_engine(f"sqlite+aiosqlite:///{folder / 'a.db'}")
        self.app = FastAPI()
        self.app.add_middleware(LeakGuardMiddleware, guard=guard)
        self.tasks: list[asyncio.Task[None]] = []

    def run(self, after: Callable[[], Coroutine[Any, Any, None]] | None = None) -> None:
        """Send one request; then do `after` in the same loop, and end what was started."""

        async def main() -> None:
            transport = httpx.ASGITransport(self.app)
            async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
                assert (await client.get("/")).status_code == 200
            if after is not None:
                await after()
            await asyncio.gather(*self.tasks)
            await self.engine.dispose()

        asyncio.run(asyncio.wait_for(main(), PATIENCE))


@pytest.mark.parametrize("closes", [True, False])
def test_the_handler_of_every_exception_may_close(
    recorder: Recorder, engine: Engine, closes: bool
) -> None:
    """Starlette calls it outside of every middleware: its scope has ended by then."""
    kept: list[Session] = []
    late_after = PATIENCE if closes else 0.05
    with LeakGuard(mode="testing", observers=[recorder], late_after=late_after) as guard:
        app = FastAPI()
        app.add_middleware(LeakGuardMiddleware, guard=guard)

        @app.get("/")
        def endpoint(request: Request) -> None:
            request.state.db = db = Session(engine)
            kept.append(db)
            db.execute(QUERY)
            raise KeyError("the endpoint's own")

        @app.exception_handler(Exception)
        async def answer(request: Request, _: Exception) -> Response:
            if closes:
                request.state.db.close()
            return Response(status_code=500)

        assert fetch(app, "/", raises=False).status_code == 500
        if closes:
            assert guard.open_holds() == ()
            core_of(guard).judge_pending()
            assert recorder.findings == []
        else:
            recorder.wait_for(lambda: recorder.kinds == [LEAKED])
            assert recorder.findings[0].evidence.waited_for_return == 0.05
            kept.pop().close()


def test_that_handler_may_close_a_session_without_a_connection(
    guard: LeakGuard, recorder: Recorder, engine: Engine
) -> None:
    """Nothing is said of it: a notice is not worth the wait."""
    app = FastAPI()
    app.add_middleware(LeakGuardMiddleware, guard=guard)

    @app.get("/")
    def endpoint(request: Request) -> None:
        request.state.db = Session(engine)
        raise KeyError("the endpoint's own")

    @app.exception_handler(500)
    async def answer(request: Request, _: Exception) -> Response:
        request.state.db.close()
        return Response(status_code=500)

    assert fetch(app, "/", raises=False).status_code == 500
    assert recorder.findings == []


def test_an_application_whose_handlers_cannot_be_read_is_judged_at_once(
    guard: LeakGuard, recorder: Recorder, engine: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    """Any framework may be there; its own exception is what the server gets."""
    kept: list[Session] = []

    class Odd:
        """An application that is not like Starlette's."""

        exception_handlers = None

    async def app(scope: Any, receive: Any, send: Any) -> None:
        scope["app"] = Odd()
        kept.append(session := Session(engine))
        session.execute(QUERY)
        raise KeyError("the application's own")

    with pytest.raises(KeyError, match="the application's own"):
        fetch(LeakGuardMiddleware(app, guard=guard), "/")
    assert recorder.kinds == [LEAKED]
    assert "leakguard's look at the error handlers raised TypeError" in caplog.text
    kept.pop().close()


def test_a_session_of_an_outer_middleware_is_clean(
    guard: LeakGuard, recorder: Recorder, tmp_path: Path
) -> None:
    """It constructed the session outside of any scope and closes it when all is done."""
    application = Application(tmp_path, guard)

    class Outer:
        """A middleware outside of leakguard's."""

        def __init__(self, app: Any) -> None:
            self.app = app

        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            async with AsyncSession(application.engine) as db:
                scope.setdefault("state", {})["db"] = db
                await self.app(scope, receive, send)

    @application.app.get("/")
    async def endpoint(request: Request) -> int:
        return int((await request.state.db.execute(QUERY)).scalar_one())

    application.app.add_middleware(Outer)
    application.run()
    assert recorder.findings == []
    assert guard.open_holds() == ()


def test_a_session_of_the_module_is_named(recorder: Recorder, engine: Engine) -> None:
    """It is older than the guard, so that its line is not known; that it is shared is."""
    db = Session(engine)
    app = FastAPI()

    @app.get("/")
    def endpoint() -> int:
        return int(db.execute(QUERY).scalar_one())  # checkout

    guard = LeakGuard(mode="testing", observers=[recorder], late_after=0.0)
    app.add_middleware(LeakGuardMiddleware, guard=guard)
    assert fetch(app, "/").json() == 1
    recorder.wait_for(lambda: recorder.findings)
    (finding,) = recorder.findings
    assert finding.kind is LEAKED
    assert finding.hold is not None
    assert finding.hold.created_at is None
    assert finding.hold.acquired_at is not None
    assert finding.hold.acquired_at.line == line_marked(HERE, "checkout")
    assert "constructed outside of the request" in str(finding.hint.cause)
    assert "with Session() as db:" in finding.hint.fix
    db.close()


def test_the_one_whose_session_it_is_has_it_in_hand(
    guard: LeakGuard, recorder: Recorder, tmp_path: Path
) -> None:
    """A connection that a short task took for a longer one's session is no leak of either."""
    application = Application(tmp_path, guard)
    took, go_on = asyncio.Event(), asyncio.Event()

    async def work() -> None:
        async with AsyncSession(application.engine) as db:
            await asyncio.gather(db.execute(QUERY))
            took.set()
            await go_on.wait()

    @application.app.get("/")
    async def endpoint() -> int:
        application.tasks.append(asyncio.create_task(work(), name="longer"))
        await took.wait()
        return 1

    async def after() -> None:
        assert recorder.kinds == [OUTLIVES]
        go_on.set()

    application.run(after)
    assert recorder.kinds == [OUTLIVES]
    assert "task 'longer'" in str(recorder.findings[0].evidence.outlived_by)
    recorder.wait_for(lambda: recorder.resolutions)


def test_a_leak_in_a_callback_of_the_loop_is_found(
    guard: LeakGuard, recorder: Recorder, tmp_path: Path, engine: Engine
) -> None:
    """Callbacks that call one another later are separate pieces of work, each with an end."""
    application = Application(tmp_path, guard)
    kept: list[Session] = []
    ended = asyncio.Event()

    def first() -> None:
        kept.append(Session(engine))  # callback
        kept[0].execute(QUERY)
        asyncio.get_running_loop().call_soon(second)

    def second() -> None:
        asyncio.get_running_loop().call_later(0, ended.set)

    @application.app.get("/")
    async def endpoint() -> int:
        asyncio.get_running_loop().call_later(0.05, first)
        return 1

    async def after() -> None:
        await ended.wait()
        await asyncio.to_thread(recorder.wait_for, lambda: LEAKED in recorder.kinds)

    application.run(after)
    (finding,) = [one for one in recorder.findings if one.kind is LEAKED]
    assert finding.hold is not None
    assert finding.hold.created_at is not None
    assert finding.hold.created_at.line == line_marked(HERE, "callback")
    assert str(finding).startswith("leaked: work started by GET / (200 in ")
    kept[0].close()


def test_what_nobody_may_return_any_more_says_for_how_long_somebody_might(
    recorder: Recorder, tmp_path: Path
) -> None:
    """A request that leaks and leaves an unrelated task running gets `late_after` seconds."""
    guard = LeakGuard(mode="testing", observers=[recorder], late_after=0.1)
    application = Application(tmp_path, guard)
    kept: list[AsyncSession] = []
    go_on = asyncio.Event()

    async def unrelated() -> None:
        await go_on.wait()

    @application.app.get("/")
    async def endpoint() -> int:
        kept.append(AsyncSession(application.engine))
        application.tasks.append(asyncio.create_task(unrelated()))
        return int((await kept[0].execute(QUERY)).scalar_one())

    async def after() -> None:
        await asyncio.to_thread(recorder.wait_for, lambda: LEAKED in recorder.kinds)
        go_on.set()
        await kept[0].close()

    application.run(after)
    assert recorder.kinds == [LEAKED]
    assert "waited 100 ms for somebody to give it back" in str(recorder.findings[0])
    assert recorder.findings[0].to_dict()["waited_for_return"] == 0.1
