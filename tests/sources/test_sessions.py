"""Sessions of every kind are followed from construction to close, and linked to checkouts."""

from __future__ import annotations

import asyncio
import copy
import gc
import sys
import threading
from collections.abc import AsyncGenerator, Callable, Iterator
from pathlib import Path
from typing import Any, cast

import pytest
from sqlalchemy import Engine, create_engine, text
from sqlalchemy.ext.asyncio import (
    AsyncEngine,
    AsyncSession,
    async_scoped_session,
    async_sessionmaker,
    create_async_engine,
)
from sqlalchemy.orm import Session, scoped_session, sessionmaker
from sqlalchemy.pool import QueuePool
from sqlmodel import Session as SQLModelSession

from leakguard import Finding, FindingKind, LeakGuard, allow
from leakguard.sources.sqlalchemy import SQLALCHEMY
from leakguard.sources.sqlalchemy.sessions import TrackedSession
from tests.support import Recorder, core_of, drain_watch, line_marked

QUERY = text("SELECT 1")
HERE = sys.modules[__name__]


class OwnSession(Session):
    """A session class of the user's, with an `__init__` of its own."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.own = True


class OwnAsyncSession(AsyncSession):
    """An async session class of the user's, with an `__init__` of its own."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.own = True


class Repository:
    """A class of the user's that is no session and constructs one in its `__init__`."""

    def __init__(self, engine: Engine) -> None:
        self.session = Session(engine)  # in repository


@pytest.fixture
def async_engine(tmp_path: Path) -> Iterator[AsyncEngine]:
    engine = create_async_engine(f"sqlite+aiosqlite:///{tmp_path / 'async.db'}")
    yield engine
    asyncio.run(engine.dispose())


def sites(finding: Finding) -> tuple[int | None, int | None]:
    hold = finding.hold
    assert hold is not None
    created, acquired = hold.created_at, hold.acquired_at
    return created and created.line, acquired and acquired.line  # type: ignore[return-value]  # mypy: a site is true


def test_every_kind_of_session_names_its_construction(
    guard: LeakGuard, recorder: Recorder, engine: Engine
) -> None:
    """The line that constructs is the user's line, whatever class or factory they use."""
    factory = sessionmaker(engine)
    registry = scoped_session(factory)
    with guard.scope("job"):
        sessions: list[Any] = [
            Session(engine),  # plain
            factory(),  # factory
            registry(),  # registry
            SQLModelSession(engine),  # sqlmodel
            OwnSession(engine),  # own class
            Repository(engine).session,
        ]
        for session in sessions:
            session.execute(QUERY)  # checkout
    markers = ["plain", "factory", "registry", "sqlmodel", "own class", "in repository"]
    checkout = line_marked(HERE, "checkout")
    leaks = [finding for finding in recorder.findings if finding.kind is FindingKind.LEAKED]
    assert [sites(leak) for leak in leaks] == [
        (line_marked(HERE, marker), checkout) for marker in markers
    ]
    for session in sessions:
        session.close()
    registry.remove()


def test_every_kind_of_async_session_names_its_construction(
    guard: LeakGuard, recorder: Recorder, async_engine: AsyncEngine
) -> None:
    """Across the greenlet that SQLAlchemy works in, the user's awaiting line is found."""

    async def main() -> None:
        factory = async_sessionmaker(async_engine)
        registry = async_scoped_session(factory, scopefunc=asyncio.current_task)
        async with guard.scope("job"):
            sessions = [
                AsyncSession(async_engine),  # async plain
                factory(),  # async factory
                registry(),  # async registry
                OwnAsyncSession(async_engine),  # async own class
            ]
            for session in sessions:
                await session.execute(QUERY)  # async checkout
        for session in sessions:
            await session.close()
        await registry.remove()

    asyncio.run(main())
    markers = ["async plain", "async factory", "async registry", "async own class"]
    checkout = line_marked(HERE, "async checkout")
    leaks = [finding for finding in recorder.findings if finding.kind is FindingKind.LEAKED]
    assert [sites(leak) for leak in leaks] == [
        (line_marked(HERE, marker), checkout) for marker in markers
    ]


def tagging(initialise: Callable[..., None]) -> Callable[..., None]:
    """Wrap an `__init__`, as somebody does who marks every session."""

    def tagged(session: Any, *args: Any, **kwargs: Any) -> None:
        call_it(initialise, session, *args, **kwargs)
        session.tag = True

    return tagged


def call_it(initialise: Callable[..., None], *args: Any, **kwargs: Any) -> None:
    initialise(*args, **kwargs)


@pytest.mark.parametrize("cls", [Session, OwnSession])
def test_a_wrapped_initialiser_constructs_nothing(
    guard: LeakGuard,
    recorder: Recorder,
    engine: Engine,
    cls: type[Session],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whoever wraps the `__init__` of a session class after us is not who constructs sessions."""
    for one in {cls, Session}:
        monkeypatch.setattr(one, "__init__", tagging(vars(one)["__init__"]))
    with guard.scope("job"):
        session = cls(engine)  # tagged
        assert session.tag  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue, reportUnknownMemberType]  # by the wrapper
    (finding,) = recorder.findings
    assert sites(finding) == (line_marked(HERE, "tagged"), None)
    session.close()


@pytest.mark.parametrize("cls", [AsyncSession, OwnAsyncSession])
def test_a_wrapped_async_initialiser_constructs_nothing(
    guard: LeakGuard,
    recorder: Recorder,
    async_engine: AsyncEngine,
    cls: type[AsyncSession],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Nor is whoever wraps that of an asynchronous one."""
    for one in {cls, AsyncSession}:
        monkeypatch.setattr(one, "__init__", tagging(vars(one)["__init__"]))
    with guard.scope("job"):
        session = cls(async_engine)  # async tagged
    (finding,) = recorder.findings
    assert sites(finding) == (line_marked(HERE, "async tagged"), None)
    asyncio.run(session.close())


def test_a_session_whose_initialiser_is_called_by_hand(
    guard: LeakGuard, recorder: Recorder, engine: Engine
) -> None:
    """Whoever calls it for the object is who constructs it."""
    with guard.scope("job"):
        session = OwnSession.__new__(OwnSession)
        Session.__init__(session, engine)  # by hand
    (finding,) = recorder.findings
    assert sites(finding) == (line_marked(HERE, "by hand"), None)
    session.close()


def test_correct_use_of_every_kind_is_clean(
    guard: LeakGuard, recorder: Recorder, engine: Engine
) -> None:
    """Whatever closes its sessions is left in peace."""
    factory = sessionmaker(engine)
    registry = scoped_session(factory)
    with guard.scope("job"):
        with Session(engine) as session:
            session.execute(QUERY)
            with session.begin_nested():
                session.execute(QUERY)
        with factory.begin() as session:
            session.execute(QUERY)
        registry().execute(QUERY)
        registry.remove()
        with SQLModelSession(engine) as session, session.no_autoflush:
            session.connection().execute(QUERY)
        with OwnSession(engine) as session:
            session.execute(QUERY)
            session.commit()
            session.execute(QUERY)
            session.rollback()
            session.execute(QUERY)
    assert recorder.findings == []
    assert guard.open_holds() == ()


def test_correct_use_of_every_async_kind_is_clean(
    guard: LeakGuard, recorder: Recorder, async_engine: AsyncEngine
) -> None:
    """Asynchronous sessions and connections that are closed are left in peace."""

    async def main() -> None:
        async with guard.scope("job"):
            async with AsyncSession(async_engine) as session:
                await session.execute(QUERY)
                await session.run_sync(lambda sync: sync.execute(QUERY))
            async with async_sessionmaker(async_engine).begin() as session:
                await session.execute(QUERY)
            async with async_engine.begin() as connection:
                await connection.execute(QUERY)

    asyncio.run(main())
    assert recorder.findings == []
    assert guard.open_holds() == ()


def test_a_session_that_keeps_no_connection_is_unclosed(
    guard: LeakGuard, recorder: Recorder, engine: Engine
) -> None:
    """A committed session that nobody closed is untidy, and names its construction."""
    with guard.scope("job"):
        session = Session(engine)  # untidy
        session.execute(QUERY)
        session.commit()
    assert recorder.kinds == [FindingKind.UNCLOSED_SESSION]
    assert sites(recorder.findings[0]) == (line_marked(HERE, "untidy"), None)
    session.close()


def test_a_dropped_unclosed_session_is_the_same(
    guard: LeakGuard, recorder: Recorder, engine: Engine
) -> None:
    """That the garbage collector took the session meanwhile makes no difference."""
    with guard.scope("job"):
        Session(engine).commit()
        gc.collect()
    assert recorder.kinds == [FindingKind.UNCLOSED_SESSION]


def test_a_session_class_may_have_names_of_its_own(
    guard: LeakGuard, recorder: Recorder, engine: Engine
) -> None:
    """A bind that is looked up when it is used, or a flag where SQLAlchemy has a method."""

    class Odd(Session):
        """A session with an engine that is found later, and with a property."""

        @property
        def bind(self) -> Engine:
            raise LookupError("no tenant yet")

        @bind.setter
        def bind(self, _: object) -> None: ...  # pyright: ignore[reportIncompatibleVariableOverride]  # the point

        @property
        def in_transaction(self) -> bool:  # type: ignore[override]  # pyright: ignore[reportIncompatibleMethodOverride]  # the point
            return True

        def get_bind(self, *_: Any, **__: Any) -> Engine:
            return engine

    with guard.scope("job"):
        session = Odd()
        session.execute(QUERY)
    assert recorder.kinds == [FindingKind.LEAKED]
    assert recorder.findings[0].hold is not None
    assert recorder.findings[0].hold.created_at is not None
    session.close()


def test_a_session_of_which_nobody_knows_the_engine_yet(recorder: Recorder, engine: Engine) -> None:
    """It is watched where its first use shows an engine that is."""

    class Tenant(Session):
        """A session whose engine depends on what is done with it."""

        @property
        def bind(self) -> Engine:
            raise LookupError("no tenant yet")

        @bind.setter
        def bind(self, _: object) -> None: ...  # pyright: ignore[reportIncompatibleVariableOverride]  # the point

        def get_bind(self, *_: Any, **__: Any) -> Engine:
            return engine

    with (
        LeakGuard(mode="testing", observers=[recorder], engines=[engine]) as guard,
        guard.scope("job"),
    ):
        session = Tenant()  # not known yet
        session.execute(QUERY)
    (finding,) = recorder.findings
    assert finding.hold is not None
    assert finding.hold.created_at is not None
    assert finding.hold.created_at.line == line_marked(HERE, "not known yet")
    session.close()


def test_a_session_of_an_earlier_installation_is_nobody_s(
    recorder: Recorder, engine: Engine
) -> None:
    """As if it were older than the guard: whose it was has been forgotten."""
    guard = LeakGuard(mode="testing", observers=[recorder], late_after=0.0)
    with guard:
        session = Session(engine)
    with guard:
        with guard.scope("job"):
            session.execute(QUERY)
        recorder.wait_for(lambda: recorder.findings)
    (finding,) = recorder.findings
    assert finding.kind is FindingKind.LEAKED
    assert finding.hold is not None
    assert finding.hold.created_at is None
    session.close()


def test_leaving_no_autoflush_closes_nothing(
    guard: LeakGuard, recorder: Recorder, engine: Engine
) -> None:
    """`with Session(...).no_autoflush as session` looks like a close and is none."""
    with guard.scope("job"), Session(engine).no_autoflush as session:
        session.execute(QUERY)
    assert recorder.kinds == [FindingKind.LEAKED]
    session.close()


def test_a_session_may_be_used_again_after_close(
    guard: LeakGuard, recorder: Recorder, engine: Engine
) -> None:
    """Closed, used again and closed again is clean; left open then, the report says so."""
    with guard.scope("clean"):
        session = Session(engine)
        for _ in range(3):
            session.execute(QUERY)
            session.close()
    assert recorder.findings == []
    with guard.scope("leaking"):
        session = Session(engine)
        session.execute(QUERY)
        session.close()
        session.execute(QUERY)
    (finding,) = recorder.findings
    assert finding.kind is FindingKind.LEAKED
    assert finding.also == ()
    assert finding.hint.cause is not None
    assert "used again after close()" in finding.hint.cause
    session.close()


def generator_db(engine: Engine) -> Iterator[Session]:
    """Return a session the way a dependency does, quite correctly."""
    with Session(engine) as session:
        yield session


def test_next_of_a_generator_is_explained(
    guard: LeakGuard, recorder: Recorder, engine: Engine
) -> None:
    """`next(get_db())` closes at once, and the report says what happened."""
    with guard.scope("job"):
        session = next(generator_db(engine))
        session.execute(QUERY)
    (finding,) = recorder.findings
    assert finding.hint.cause is not None
    assert "next(generator_db())" in finding.hint.cause
    session.close()


def test_use_after_commit_is_explained(
    guard: LeakGuard, recorder: Recorder, engine: Engine
) -> None:
    """A connection that was taken again after `commit()` is told as such."""
    with guard.scope("job"):
        session = Session(engine)
        session.execute(QUERY)
        session.commit()
        session.execute(QUERY)
    (finding,) = recorder.findings
    assert finding.hint.cause is not None
    assert "commit() or rollback()" in finding.hint.cause
    session.close()


def test_a_connection_that_was_handed_to_a_session_is_not_the_session_s(
    guard: LeakGuard, recorder: Recorder, engine: Engine
) -> None:
    """The one who checked a connection out answers for it, not the session bound to it."""
    with guard.scope("job"):
        connection = engine.connect()  # handed over
        with Session(connection, join_transaction_mode="create_savepoint") as session:
            session.execute(QUERY)
            session.commit()
    (finding,) = recorder.findings
    assert sites(finding) == (None, line_marked(HERE, "handed over"))
    connection.close()


def test_the_scope_of_the_session_owns_the_connection(
    guard: LeakGuard, recorder: Recorder, engine: Engine
) -> None:
    """A session of an outer scope that is used in an inner one is judged with the outer one."""
    with guard.scope("test"):
        with Session(engine) as session:
            with guard.scope("request"):
                session.execute(QUERY)
            assert recorder.findings == []
        leaking = Session(engine)
        with guard.scope("another request"):
            leaking.execute(QUERY)
        assert recorder.findings == []
    (finding,) = recorder.findings
    assert finding.scope is not None
    assert finding.scope.name == "test"
    leaking.close()


def test_once_that_scope_has_ended_the_innermost_one_owns_it(
    guard: LeakGuard, recorder: Recorder, engine: Engine
) -> None:
    """A session that outlived its scope burdens the scope that uses it."""
    with guard.scope("first"):
        session = Session(engine)
    recorder.findings.clear()
    with guard.scope("second"):
        session.execute(QUERY)
    (finding,) = recorder.findings
    assert finding.kind is FindingKind.LEAKED
    assert finding.scope is not None
    assert finding.scope.name == "second"
    session.close()


def test_outside_of_a_scope_everything_is_open_and_nothing_is_found(
    guard: LeakGuard, recorder: Recorder, engine: Engine
) -> None:
    """What an application keeps for its life is listed, oldest first, and not accused."""
    session = Session(engine)
    session.execute(QUERY)
    assert [hold.resource for hold in guard.open_holds()] == ["session", "connection"]
    session.close()
    assert guard.open_holds() == ()
    assert recorder.findings == []


def test_outside_of_a_scope_the_collector_tells(
    guard: LeakGuard, recorder: Recorder, engine: Engine
) -> None:
    """A connection that is dropped outside of any scope is found when it is collected."""
    engine.raw_connection()
    recorder.wait_for(lambda: recorder.findings)
    (finding,) = recorder.findings
    assert finding.kind is FindingKind.RECLAIMED
    assert "no request context" in str(finding)


def test_a_session_may_be_closed_by_another_thread(
    guard: LeakGuard, recorder: Recorder, tmp_path: Path
) -> None:
    """Nothing is keyed on who acquired: whoever gives it back gives it back."""
    engine = create_engine(
        f"sqlite:///{tmp_path / 'threads.db'}", connect_args={"check_same_thread": False}
    )
    with guard.scope("job"):
        session = Session(engine)
        session.execute(QUERY)
        closer = threading.Thread(target=session.close)
        closer.start()
        closer.join()
    assert recorder.findings == []
    engine.dispose()


def test_a_close_that_fails_was_called_all_the_same(
    guard: LeakGuard, recorder: Recorder, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The exception of `close()` passes, and the session is not called unclosed."""
    with guard.scope("job"):
        session = Session(engine)

        def fail() -> None:
            raise OSError("connection lost")

        monkeypatch.setattr(session, "expunge_all", fail)
        with pytest.raises(OSError, match="connection lost"):
            session.close()
    assert recorder.findings == []


def test_what_is_allowed_is_exempt(guard: LeakGuard, recorder: Recorder, engine: Engine) -> None:
    """Holds acquired in an `allow` block, and those of sessions constructed there, are exempt."""
    with guard.scope("job"):
        with allow("kept for the whole export"):
            connection = engine.connect()
            session = Session(engine)
        session.execute(QUERY)
    assert [finding.kind for finding in recorder.findings if finding.kind.severity == "error"] == []
    connection.close()
    session.close()


def test_a_session_bound_to_nothing_is_followed(guard: LeakGuard, recorder: Recorder) -> None:
    """A session that gets its engines by mapper has no bind to ask."""
    with guard.scope("job"):
        Session().close()
    assert recorder.findings == []
    assert len(recorder.holds_released) == 1


def test_whether_a_transaction_is_open_is_the_session_s_to_say(
    guard: LeakGuard, recorder: Recorder, engine: Engine
) -> None:
    """While the session lives it is asked; afterwards nobody knows."""
    with guard.scope("job"):
        session = Session(engine)
        session.execute(QUERY)
    hold = recorder.findings[0].hold
    assert hold is not None
    assert hold.in_transaction is True
    assert recorder.holds_acquired[0].in_transaction is True
    session.close()
    assert hold.in_transaction is False
    del session
    gc.collect()
    assert hold.in_transaction is None


def test_sessions_from_before_the_installation_are_nothing_to_us(
    recorder: Recorder, engine: Engine
) -> None:
    """A session that was constructed earlier is used and closed as ever."""
    session = Session(engine)
    with LeakGuard(mode="testing", observers=[recorder]) as guard, guard.scope("job"):
        session.execute(QUERY)
        session.close()
    assert recorder.findings == []
    (connection,) = recorder.holds_acquired
    assert connection.created_at is None


def test_a_fault_of_ours_does_not_reach_the_user_of_a_session(
    guard: LeakGuard, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever goes wrong in our wrappers and listeners, the application goes on."""

    def fail(*_: object) -> None:
        raise RuntimeError("a fault")

    sessions = SQLALCHEMY._sessions  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]  # to break it
    with guard.scope("job"), Session(engine) as before:
        monkeypatch.setattr("leakguard.sources.sqlalchemy.sessions.locate", fail)
        monkeypatch.setattr(sessions, "_link", fail)
        assert before.execute(QUERY).scalar() == 1
        with Session(engine) as session:
            assert session.execute(QUERY).scalar() == 1


@pytest.mark.parametrize("end", ["close", "reset", "invalidate"])
def test_a_fault_of_ours_keeps_no_session_open(
    engine: Engine,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    end: str,
) -> None:
    """The session is closed, its own exception passes, and the fault is logged once."""

    def fail(*_: object) -> None:
        raise RuntimeError("a fault")

    def fail_closing() -> None:
        raise KeyError("of the application")

    with LeakGuard(mode="testing", observers=[]) as guard:
        monkeypatch.setattr(core_of(guard), "closed", fail)
        for _ in range(2):
            session = Session(engine)
            session.execute(QUERY)
            getattr(session, end)()
        assert cast("QueuePool", engine.pool).checkedout() == 0
        session = Session(engine)
        monkeypatch.setattr(session, "expunge_all", fail_closing)
        with pytest.raises(KeyError, match="of the application"):
            getattr(session, end)()
    assert len([one for one in caplog.records if "not affected" in one.getMessage()]) == 1


def test_an_asynchronous_generator_that_nobody_keeps_is_named(
    guard: LeakGuard, recorder: Recorder, tmp_path: Path
) -> None:
    """The event loop ends it, in a task of its own, before the session's first use."""
    engine = create_async_engine(f"sqlite+aiosqlite:///{tmp_path / 'dropped.db'}")

    async def main() -> None:
        closed = asyncio.Event()

        async def get_db() -> AsyncGenerator[AsyncSession, None]:
            db = AsyncSession(engine)
            try:
                yield db
            finally:
                await db.close()
                closed.set()

        async with guard.scope("job"):
            session = await anext(get_db())
            await closed.wait()
            await session.execute(QUERY)
        await session.close()
        await engine.dispose()

    asyncio.run(main())
    causes = [str(one.hint.cause) for one in recorder.findings if one.kind is FindingKind.LEAKED]
    assert len(causes) == 1
    assert "get_db had closed it" in causes[0]


def closed_by_a_generator(engine: Engine) -> Iterator[Session]:
    session = Session(engine)
    try:
        yield session
    finally:
        session.close()


def test_a_fault_as_a_generator_closes_keeps_no_session_open(
    guard: LeakGuard, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whose generator it was is evidence, and not worth an exception."""

    def fail(*_: object) -> None:
        raise RuntimeError("a fault")

    with guard.scope("job"):
        generator = closed_by_a_generator(engine)
        next(generator)
        monkeypatch.setattr("leakguard.sources.sqlalchemy.sessions.capture", fail)
        del generator
    assert guard.open_holds() == ()


def test_a_bind_that_is_no_engine_is_the_application_s_affair(
    guard: LeakGuard, caplog: pytest.LogCaptureFixture
) -> None:
    """We say nothing about it."""
    with guard.scope("job"):
        Session(cast("Any", object())).close()
    assert caplog.records == []


def use(session: Session, *, close: bool) -> None:
    """Use a session, and close it or not."""
    session.execute(QUERY)
    if close:
        session.close()
    else:
        session.rollback()


def test_nothing_is_remembered_of_sessions_that_are_gone(engine: Engine) -> None:
    """Of a thousand sessions no hold is there any more."""
    with LeakGuard(mode="production", observers=[]) as guard:
        with guard.scope("job"):
            for number in range(1000):
                use(Session(engine), close=bool(number % 2))
        drain_watch()
        gc.collect()
        holds = [one for one in gc.get_objects() if isinstance(one, TrackedSession)]
        assert not [hold for hold in holds if hold.guard is core_of(guard)]


@pytest.mark.parametrize("end", ["reset", "invalidate"])
def test_other_ends_of_a_session_count(
    guard: LeakGuard, recorder: Recorder, engine: Engine, end: str
) -> None:
    """`reset()` and `invalidate()` give everything back, as `close()` does."""
    before = Session(engine)
    with guard.scope("job"):
        session = Session(engine)
        session.execute(QUERY)
        getattr(session, end)()
    getattr(before, end)()
    assert recorder.findings == []


class ClosesUnderAnotherName(Session):
    """A session class with another name for a method, which it took before any installation."""

    dispose = Session.close


KEPT: dict[str, Callable[[Any], None]] = {
    "close": Session.close,
    "another name": ClosesUnderAnotherName.dispose,
    "invalidate": Session.invalidate,
    "reset": Session.reset,
}
"""Ways to end a session that were taken before any installation."""


@pytest.mark.parametrize("end", KEPT.values(), ids=KEPT)
def test_a_close_that_was_kept_from_before_counts(
    guard: LeakGuard, recorder: Recorder, engine: Engine, end: Callable[[Any], None]
) -> None:
    """Whatever leads to the end of a session ends it."""
    with guard.scope("job"):
        session = ClosesUnderAnotherName(engine)
        session.execute(QUERY)
        end(session)
    assert recorder.findings == []
    assert guard.open_holds() == ()


def test_a_session_from_before_may_be_reset(engine: Engine) -> None:
    """A session that nobody follows is none of our business."""
    session = Session(engine)
    with LeakGuard(mode="testing", observers=[]):
        session.reset()


def test_an_initialiser_that_runs_twice_makes_one_session(
    guard: LeakGuard, recorder: Recorder, engine: Engine
) -> None:
    """A class may call the `__init__` of its base twice."""
    with guard.scope("job"):
        session = Session(engine)
        Session.__init__(session, engine)
        session.close()
    assert len(recorder.holds_acquired) == 1


def test_an_unbound_session_belongs_to_whoever_is_around(
    recorder: Recorder, engine: Engine, tmp_path: Path
) -> None:
    """It may turn out to use an engine that is watched, or not."""
    other = create_engine(f"sqlite:///{tmp_path / 'other.db'}")
    gone = LeakGuard(mode="testing", observers=[])
    outer = LeakGuard(mode="testing", observers=[], engines=[other])
    inner = LeakGuard(mode="testing", observers=[recorder], engines=[engine])
    with outer, inner, gone.scope("of a guard that is not installed"):
        Session().close()
        with outer.scope("outer"):
            session = Session()
            with inner.scope("inner"):
                session.execute(QUERY, bind_arguments={"bind": engine})
    assert [finding.scope and finding.scope.name for finding in recorder.findings] == ["inner"]
    session.close()
    other.dispose()


def test_a_session_may_be_all_that_a_greenlet_runs(
    guard: LeakGuard, recorder: Recorder, tmp_path: Path
) -> None:
    """Its constructor has no caller then."""
    engine = create_async_engine(f"sqlite+aiosqlite:///{tmp_path / 'test.db'}")

    async def main() -> None:
        async with engine.connect() as connection:
            session = await connection.run_sync(Session)
            await connection.run_sync(lambda _: use(session, close=True))
        await engine.dispose()

    with guard.scope("job"):
        asyncio.run(main())
    assert recorder.findings == []


def test_a_session_class_may_refuse_names_that_it_does_not_know(
    guard: LeakGuard, recorder: Recorder, engine: Engine
) -> None:
    """Or have an answer to every name."""

    class Strict(Session):
        """One whose attributes are all there from the beginning."""

        def __setattr__(self, name: str, value: object) -> None:
            if name.startswith("_leakguard"):
                raise AttributeError(name)
            super().__setattr__(name, value)

        def __getattr__(self, name: str) -> str:
            return name

    with guard.scope("job"):
        session = Strict(engine)  # strictly
        session.execute(QUERY)
    (finding,) = recorder.findings
    assert sites(finding)[0] == line_marked(HERE, "strictly")
    session.close()


def test_a_copy_of_a_session_is_another_session(
    guard: LeakGuard, recorder: Recorder, engine: Engine
) -> None:
    """To close it closes nothing of the one that it was made of."""
    with guard.scope("job"):
        session = Session(engine)
        copy.copy(session).close()
    assert recorder.kinds == [FindingKind.UNCLOSED_SESSION]
    session.close()


def test_the_first_argument_of_a_constructor_has_a_name(guard: LeakGuard, engine: Engine) -> None:
    """Somebody may use it."""
    session = Session.__new__(Session)
    Session.__init__(self=session, bind=engine)
    session.close()
    assert guard.open_holds() == ()


def test_a_session_can_be_copied(guard: LeakGuard, recorder: Recorder) -> None:
    """As deeply as without leakguard; the copy is nobody's."""
    with guard.scope("job"):
        session = Session()
        copy.deepcopy(session).close()
        assert len(guard.open_holds()) == 1
        session.close()
    assert recorder.kinds == []
