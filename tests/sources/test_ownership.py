"""Whose a connection is: the session's that checked it out, its scope's, its scope's guard's."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import sys
import threading
import weakref
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, Engine, Integer, create_engine, select, text
from sqlalchemy.ext.asyncio import (
    AsyncEngine,
    AsyncSession,
    async_scoped_session,
    async_sessionmaker,
    create_async_engine,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, scoped_session
from sqlalchemy.orm import sessionmaker as make_factory
from sqlalchemy.pool import QueuePool, SingletonThreadPool, _ConnectionFairy  # pyright: ignore[reportPrivateUsage]  # no public name

from leakguard import Finding, FindingKind, LeakGuard, Severity
from leakguard.core.scope import AMBIENT, Scope
from leakguard.core.watch import WATCH
from leakguard.sources.sqlalchemy.checkout import Checkout
from tests.support import PATIENCE, Recorder, core_of, line_marked

QUERY = text("SELECT 1")
HERE = sys.modules[__name__]
LEAKED = FindingKind.LEAKED


class Base(DeclarativeBase):
    """The models of this file."""


class Left(Base):
    """A table in one database."""

    __tablename__ = "left"
    id: Mapped[int] = mapped_column(Integer, primary_key=True)


class Right(Base):
    """A table in another one."""

    __tablename__ = "right"
    id: Mapped[int] = mapped_column(Integer, primary_key=True)


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    engine = make_engine(tmp_path, "main")
    yield engine
    engine.dispose()


@pytest.fixture
def other(tmp_path: Path) -> Iterator[Engine]:
    engine = make_engine(tmp_path, "other")
    yield engine
    engine.dispose()


def make_engine(folder: Path, name: str) -> Engine:
    engine = create_engine(
        f"sqlite:///{folder / name}.db",
        pool_logging_name=name,
        connect_args={"check_same_thread": False},
    )
    Base.metadata.create_all(engine)
    return engine


@pytest.fixture
def async_engine(tmp_path: Path) -> Iterator[AsyncEngine]:
    engine = create_async_engine(f"sqlite+aiosqlite:///{tmp_path / 'async.db'}")
    yield engine
    asyncio.run(engine.dispose())


def constructed_at(recorder: Recorder) -> list[int | None]:
    """Return the constructing lines of the leaks that were found."""
    lines: list[int | None] = []
    for finding in recorder.findings:
        if finding.kind is LEAKED and finding.hold is not None:
            site = finding.hold.created_at
            lines.append(None if site is None else site.line)
    return lines


def scopes(recorder: Recorder) -> list[str | None]:
    """Return the scopes of the findings."""
    return [finding.scope.name if finding.scope else None for finding in recorder.findings]


# --- several databases ----------------------------------------------------------------------------


def test_a_session_with_two_engines_has_two_connections(
    guard: LeakGuard, recorder: Recorder, engine: Engine, other: Engine
) -> None:
    """Both are the session's, and neither was taken again after a commit that never was."""
    with guard.scope("job"):
        session = Session(binds={Left: engine, Right: other})  # two engines
        session.execute(select(Left))
        session.execute(select(Right))
    assert [finding.pool for finding in recorder.findings] == ["main", "other"]
    assert constructed_at(recorder) == [line_marked(HERE, "two engines")] * 2
    causes = [finding.hint.cause or "" for finding in recorder.findings]
    assert not any("commit()" in cause for cause in causes)
    session.close()


def test_taken_again_means_that_one_came_back_before(
    guard: LeakGuard, recorder: Recorder, engine: Engine, other: Engine
) -> None:
    """After a commit both databases' connections were taken again; after a close, neither."""
    with guard.scope("committed"):
        session = Session(binds={Left: engine, Right: other})
        for model in (Left, Right):
            session.execute(select(model))
        session.commit()
        session.execute(select(Right))
    with guard.scope("reset"):
        fresh = Session(engine)
        fresh.execute(QUERY)
        fresh.reset()
        fresh.execute(QUERY)
    committed, fresh_again = [finding.hint.cause or "" for finding in recorder.findings]
    assert "commit() or rollback()" in committed
    assert "commit() or rollback()" not in fresh_again
    assert "close()" not in fresh_again
    session.close()
    fresh.close()


class Routing(Session):
    """A session that looks up its engine itself, as Flask-SQLAlchemy's does."""

    engine: Engine

    def get_bind(self, *_: Any, **__: Any) -> Engine:
        """Return the one engine."""
        return self.engine


@pytest.mark.parametrize("in_scope", [True, False])
def test_a_session_without_a_bind_under_a_guard_with_engines(
    recorder: Recorder, engine: Engine, other: Engine, in_scope: bool
) -> None:
    """It is not accused itself, but a leak of a watched engine names its construction."""
    guard = LeakGuard(mode="testing", observers=[recorder], engines=[engine])
    outer = LeakGuard(mode="testing", observers=[], engines=[other])
    with outer, guard:
        session, unused = construct_unbound(guard, engine, in_scope=in_scope)
        with guard.scope("job"):
            session.execute(QUERY)
        recorder.wait_for(lambda: recorder.findings)
        assert constructed_at(recorder) == [line_marked(HERE, "unbound")]
        assert recorder.kinds == [LEAKED]
        assert [hold.resource for hold in recorder.holds_acquired] == ["connection"]
        session.close()
        unused.close()
        assert guard.open_holds() == ()


def construct_unbound(
    guard: LeakGuard, engine: Engine, *, in_scope: bool
) -> tuple[Session, Session]:
    if in_scope:
        with guard.scope("construction"):
            return construct_unbound(guard, engine, in_scope=False)
    unused, session = Routing(), Routing()  # unbound
    session.engine = engine
    return session, unused


def test_a_session_of_another_engine_that_reaches_for_a_watched_one(
    recorder: Recorder, engine: Engine, other: Engine
) -> None:
    """Its construction is known, so that nobody says it was outside of the request."""
    guard = LeakGuard(mode="testing", observers=[recorder], engines=[other])
    with guard:
        with guard.scope("job"):
            session = Session(engine, binds={Right: other})  # watched for some models
            session.execute(select(Left))
            session.execute(select(Right))
        assert recorder.kinds == [LEAKED]  # at once
        assert constructed_at(recorder) == [line_marked(HERE, "watched for some models")]
        assert "outside" not in str(recorder.findings[0])
        session.close()
        with guard.scope("another job"):
            unclosed = Session(engine)
        assert guard.open_holds() == ()
    assert recorder.kinds == [LEAKED]
    unclosed.close()


def test_unbound_sessions_that_go_leave_nothing_to_do(engine: Engine) -> None:
    """A session that no guard is known to watch is no news when it is collected."""
    gc.collect()  # of other tests
    with LeakGuard(mode="testing", observers=[], engines=[engine]):
        waiting = WATCH._inbox.qsize()  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]  # to count
        for _ in range(100):
            Session()
        gc.collect()
        assert WATCH._inbox.qsize() <= waiting  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]  # to count


def test_a_session_s_guard_gets_no_connections_that_it_does_not_watch(
    engine: Engine, other: Engine
) -> None:
    """A session of one guard's engine that reaches for another's stays out of its business."""
    recorders = Recorder(), Recorder()
    mine = LeakGuard(mode="testing", observers=[recorders[0]], engines=[engine])
    theirs = LeakGuard(mode="testing", observers=[recorders[1]], engines=[other])
    with mine, theirs, mine.scope("mine"):
        session = Session(engine)  # mine
        with theirs.scope("theirs"):
            session.execute(QUERY, bind_arguments={"bind": other})
    assert recorders[0].kinds == []  # the session has a finding already: its connection's
    assert recorders[1].kinds == [LEAKED]
    assert scopes(recorders[1]) == ["theirs"]
    assert constructed_at(recorders[1]) == [line_marked(HERE, "mine")]
    session.close()


# --- several scopes -------------------------------------------------------------------------------


@pytest.mark.parametrize("same_guard", [True, False])
def test_what_moves_to_the_session_s_scope_is_told_evenly(engine: Engine, same_guard: bool) -> None:
    """Each observer is told of as many returns as checkouts, wherever a hold ends up."""
    recorders = Recorder(), Recorder()
    outer = LeakGuard(mode="testing", observers=[recorders[0]])
    inner = outer if same_guard else LeakGuard(mode="testing", observers=[recorders[1]])
    with outer, inner, outer.scope("outer"), Session(engine) as session:
        with inner.scope("inner"):
            session.execute(QUERY)
        assert sorted(hold.resource for hold in outer.open_holds()) == ["connection", "session"]
        assert same_guard or inner.open_holds() == ()
    for recorder in recorders:
        assert recorder.findings == []
        assert len(recorder.holds_acquired) == len(recorder.holds_released)
        assert set(recorder.holds_acquired) == set(recorder.holds_released)


def test_a_session_of_no_scope_burdens_the_one_that_uses_it(
    guard: LeakGuard, recorder: Recorder, engine: Engine
) -> None:
    """A global session belongs to nobody; a connection that it takes belongs to the request.

    Whoever made the session may be around the request, and gets some time to close it.
    """
    session = Session(engine)  # global
    with guard.scope("request"):
        session.execute(QUERY)
    assert recorder.findings == []
    recorder.wait_for(lambda: recorder.findings)
    assert scopes(recorder) == ["request"]
    assert constructed_at(recorder) == [line_marked(HERE, "global")]
    session.close()


def test_a_checkout_without_a_scope_by_a_session_that_has_one(
    guard: LeakGuard, recorder: Recorder, engine: Engine
) -> None:
    """A thread that knows no scope uses the request's session: the connection is the request's."""
    with guard.scope("request"):
        session = Session(engine)
        thread = threading.Thread(target=session.execute, args=(QUERY,))
        thread.start()
        thread.join(PATIENCE)
    recorder.wait_for(lambda: recorder.findings)
    assert recorder.kinds == [LEAKED]
    assert scopes(recorder) == ["request"]
    session.close()


def test_what_knows_no_scope_belongs_to_none(
    guard: LeakGuard, recorder: Recorder, engine: Engine
) -> None:
    """Nothing is guessed: not even the one scope there is, with a session and a connection out."""

    def without_scope() -> None:
        session = Session(engine)
        session.execute(QUERY)
        connections.append(engine.connect())
        session.close()

    connections: list[Connection] = []
    with guard.scope("request") as scope, Session(engine) as session:
        session.execute(QUERY)
        contextvars.Context().run(without_scope)
        session.close()
    told = [hold.scope for hold in recorder.holds_acquired[-5:]]  # the engine was made before
    assert told == [scope, scope, None, None, None]
    connections.clear()
    gc.collect()
    recorder.wait_for(lambda: recorder.findings)
    assert recorder.kinds == [FindingKind.RECLAIMED]
    assert "outside of any scope (no request context)" in str(recorder.findings[0])


def test_an_async_session_of_an_outer_scope(
    guard: LeakGuard, recorder: Recorder, async_engine: AsyncEngine
) -> None:
    """A fixture's `AsyncSession` that a request uses is the fixture's, in any task."""

    async def main() -> None:
        async with guard.scope("test", type="test"), AsyncSession(async_engine) as session:
            async with guard.scope("request"):
                await asyncio.create_task(use_async(session))
            assert recorder.findings == []
        assert recorder.findings == []
        async with guard.scope("leaking test", type="test"):
            leaking = AsyncSession(async_engine)
            async with guard.scope("request"):
                await leaking.execute(QUERY)
        await leaking.close()

    asyncio.run(main())
    assert scopes(recorder) == ["leaking test"]


async def use_async(session: AsyncSession) -> None:
    await session.execute(QUERY)


# --- sessions that share a connection -------------------------------------------------------------


@pytest.fixture
def one_per_thread(tmp_path: Path) -> Iterator[Engine]:
    """Return an engine whose checkouts within one another are one."""
    engine = create_engine(f"sqlite:///{tmp_path / 'one.db'}", poolclass=SingletonThreadPool)
    yield engine
    engine.dispose()


def lines(finding: Finding) -> tuple[int | None, int | None]:
    """Return the lines of the construction and of the checkout."""
    hold = finding.hold
    assert hold is not None
    created, acquired = hold.created_at, hold.acquired_at
    return created and created.line, acquired and acquired.line  # type: ignore[return-value]  # mypy: a site is true


@pytest.mark.parametrize("end", ["close", "commit", "rollback"])
def test_of_two_sessions_the_one_that_still_uses_it_leaks(
    guard: LeakGuard, recorder: Recorder, one_per_thread: Engine, end: str
) -> None:
    """A `SingletonThreadPool` gives the second what the first has; the first gave it back."""
    with guard.scope("job"):
        first = Session(one_per_thread)
        first.execute(QUERY)
        second = Session(one_per_thread)  # the second
        second.execute(QUERY)  # used by the second
        with second.begin_nested():
            second.execute(QUERY)
        getattr(first, end)()
        (open_hold,) = (hold for hold in guard.open_holds() if hold.resource == "connection")
        assert open_hold.created_at is not None
        assert open_hold.created_at.line == line_marked(HERE, "the second")
    leak = recorder.findings[0]
    assert leak.kind is LEAKED
    assert lines(leak) == (
        line_marked(HERE, "the second"),
        line_marked(HERE, "used by the second"),
    )
    unclosed = [FindingKind.UNCLOSED_SESSION] if end != "close" else []
    assert recorder.kinds[1:] == unclosed
    first.close()
    second.close()


def test_of_two_sessions_the_first_may_be_the_one_that_leaks(
    guard: LeakGuard, recorder: Recorder, one_per_thread: Engine
) -> None:
    """What the second did meanwhile does not matter."""
    with guard.scope("job"):
        first = Session(one_per_thread)  # the first
        first.execute(QUERY)  # used by the first
        for _ in range(3):
            with Session(one_per_thread) as second:
                second.execute(QUERY)
    (leak,) = recorder.findings
    assert lines(leak) == (line_marked(HERE, "the first"), line_marked(HERE, "used by the first"))
    first.close()


def overlapping(guard: LeakGuard, first: Iterator[None], second: Iterator[None]) -> None:
    """Run two scopes in one thread, as requests on an event loop: the first one ends first."""

    async def run(name: str, work: Iterator[None], *, go_on: asyncio.Event) -> None:
        with guard.scope(name):
            next(work)
            await go_on.wait()
            next(work, None)

    async def main() -> None:
        events = asyncio.Event(), asyncio.Event()
        tasks: list[asyncio.Task[None]] = []
        for name, work, go_on in zip(("first", "second"), (first, second), events, strict=True):
            tasks.append(asyncio.create_task(run(name, work, go_on=go_on)))
            await asyncio.sleep(0)
        for task, go_on in zip(tasks, events, strict=True):
            go_on.set()
            await task

    asyncio.run(main())


def used_by_session(engine: Engine, *, closes: bool = True) -> Iterator[None]:
    """Use a session in two steps."""
    session = Session(engine)
    session.execute(QUERY)
    yield
    if closes:
        session.close()
    else:
        KEPT.append(session)


def used_by_connection(engine: Engine, *, closes: bool = True) -> Iterator[None]:
    """Use a connection in two steps."""
    connection = engine.connect()
    yield
    if closes:
        connection.close()
    else:
        KEPT.append(connection)


KEPT: list[Session | Connection] = []


def give_back() -> None:
    """Give back what the test has left."""
    while KEPT:
        KEPT.pop().close()


def errors(recorder: Recorder) -> list[Finding]:
    """Return the findings that are no mere notices."""
    return [finding for finding in recorder.findings if finding.severity is Severity.ERROR]


class ThreadLocalPool(QueuePool):
    """A pool of the user's that gives a thread the connection that it has."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.local = threading.local()

    def connect(self) -> Any:
        """Give it again, or take one."""
        known = getattr(self.local, "proxy", lambda: None)()
        if known is not None and known.is_valid:
            return known._checkout_existing()  # noqa: SLF001
        proxy = super().connect()
        self.local.proxy = weakref.ref(proxy)
        return proxy


@pytest.fixture(params=[SingletonThreadPool, ThreadLocalPool])
def shared(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Engine]:
    """Return an engine that gives one connection to all who ask in a thread."""
    engine = create_engine(f"sqlite:///{tmp_path / 'one.db'}", poolclass=request.param)
    yield engine
    engine.dispose()


def test_nobody_knows_of_a_connection_outside_of_any_scope_either(
    guard: LeakGuard, recorder: Recorder, one_per_thread: Engine
) -> None:
    """As of work beside the requests, on the same event loop."""
    outside = contextvars.copy_context()
    with guard.scope("job"):
        own = one_per_thread.connect()
        other = outside.run(one_per_thread.connect)
        own.close()
    assert errors(recorder) == []
    other.close()


def test_what_was_out_before_is_given_again(recorder: Recorder, one_per_thread: Engine) -> None:
    """Nobody knows of it; what somebody wrapped around SQLAlchemy's method stays in use."""
    pools: Any = _ConnectionFairy

    def wrapped(self: Any) -> Any:
        return original(self)

    with one_per_thread.connect():
        with LeakGuard(mode="testing", observers=[recorder]) as guard:
            with guard.scope("job"), one_per_thread.connect():
                assert guard.open_holds() == ()
            original = pools._checkout_existing  # noqa: SLF001
            pools._checkout_existing = wrapped  # noqa: SLF001
        with one_per_thread.connect() as connection:  # by leakguard's wrapper, which is not in use
            connection.execute(QUERY)
        pools._checkout_existing = original  # noqa: SLF001
        one_per_thread.connect().close()
    assert recorder.findings == []


def test_two_scopes_that_share_a_connection_for_a_while(recorder: Recorder, shared: Engine) -> None:
    """The first one has given back its own; the second one goes on with it, and does so, too.

    It may go on for as long as it likes: that is not waited for.
    """
    with LeakGuard(mode="testing", observers=[recorder], late_after=0.0) as guard:
        overlapping(guard, used_by_session(shared), used_by_session(shared))
        assert errors(recorder) == []
        assert guard.open_holds() == ()


def test_of_two_such_scopes_the_one_that_leaks_is_named(
    guard: LeakGuard, recorder: Recorder, shared: Engine
) -> None:
    """Although it was the other one that took the connection."""
    overlapping(guard, used_by_session(shared), used_by_session(shared, closes=False))
    [leak] = errors(recorder)
    assert leak.scope is not None
    assert leak.scope.name == "second"
    give_back()


def test_the_one_that_leaks_may_be_outside_of_any_scope(
    recorder: Recorder, one_per_thread: Engine
) -> None:
    """It has no scope that could be judged instead."""
    with LeakGuard(mode="testing", observers=[recorder], late_after=0.0) as guard:
        outside = Session(one_per_thread)
        with guard.scope("job"), Session(one_per_thread) as inside:
            inside.execute(QUERY)
            outside.execute(QUERY)
        [leak] = errors(recorder)
        assert leak.scope is not None
        assert leak.scope.name == "job"
        outside.close()


def test_the_one_that_leaks_may_have_ended_before(
    guard: LeakGuard, recorder: Recorder, shared: Engine
) -> None:
    """It is found when the scope ends that had taken it."""
    with guard.scope("around"):
        outer = used_by_session(shared)
        next(outer)
        with guard.scope("within"):
            list(used_by_session(shared, closes=False))
        next(outer, None)
    [leak] = errors(recorder)
    assert leak.scope is not None
    assert leak.scope.name == "within"
    give_back()


@pytest.mark.parametrize("leaks", [(False, False), (True, False), (False, True)])
def test_of_connections_in_several_scopes_nobody_knows(
    guard: LeakGuard, recorder: Recorder, one_per_thread: Engine, leaks: tuple[bool, bool]
) -> None:
    """No session tells which of them has it still: nobody is accused."""
    first, second = (used_by_connection(one_per_thread, closes=not leak) for leak in leaks)
    overlapping(guard, first, second)
    assert errors(recorder) == []
    assert len(guard.open_holds()) == sum(leaks)
    give_back()


def test_a_connection_beside_sessions_that_are_closed(
    guard: LeakGuard, recorder: Recorder, one_per_thread: Engine
) -> None:
    """No session is accused, not even one that is older, and little is remembered of each."""
    with guard.scope("outer"):
        older = Session(one_per_thread)
        with guard.scope("job"):
            connection = one_per_thread.connect()  # used alone
            older.execute(QUERY)
            for _ in range(100):
                with Session(one_per_thread) as session:
                    session.execute(QUERY)
            (hold,) = (hold for hold in guard.open_holds() if isinstance(hold, Checkout))
            assert len(hold.uses) <= 3
            older.close()
    (leak,) = recorder.findings
    assert scopes(recorder) == ["job"]
    assert lines(leak) == (None, line_marked(HERE, "used alone"))
    connection.close()


def test_of_two_sessions_the_second_is_dropped(
    guard: LeakGuard, recorder: Recorder, one_per_thread: Engine
) -> None:
    """It is the one that left their connection to the garbage collector."""
    gc.collect()
    with guard.scope("job"):
        first = Session(one_per_thread)
        first.execute(QUERY)
        Session(one_per_thread).execute(QUERY)  # dropped
        first.close()
        del first
        gc.collect()
    assert recorder.kinds == [FindingKind.RECLAIMED]
    assert lines(recorder.findings[0])[0] == line_marked(HERE, "dropped")


def test_a_session_from_before_that_shares_a_connection(
    recorder: Recorder, one_per_thread: Engine
) -> None:
    """Nobody knows it, and it is no other one's."""
    before = Session(one_per_thread)
    guard = LeakGuard(mode="testing", observers=[recorder])
    with guard, guard.scope("job"), one_per_thread.connect():
        before.execute(QUERY)
        before.close()
    assert recorder.findings == []


# --- connections that were handed to a session ----------------------------------------------------


def test_a_connection_for_some_models_stays_whose_it_is(
    guard: LeakGuard, recorder: Recorder, engine: Engine
) -> None:
    """It is older than the session, which therefore did not check it out."""
    with guard.scope("job"):
        connection = engine.connect()
        with Session(binds={Left: connection}) as session:
            session.execute(select(Left))
    assert recorder.kinds == [LEAKED]
    assert constructed_at(recorder) == [None]
    connection.close()


def test_a_nested_checkout_names_the_line_of_the_other(
    guard: LeakGuard, recorder: Recorder, engine: Engine
) -> None:
    """One of the two has to go, and who fixes it needs both lines."""
    with guard.scope("job"):
        first = engine.connect()  # first of two
        second = engine.connect()
        second.close()
        first.close()
    (finding,) = recorder.findings
    line = line_marked(HERE, "first of two")
    assert f"  already held      tests/sources/test_ownership.py:{line} in " in str(finding)
    assert finding.to_dict()["already_held_at"]["line"] == line


def bound_at_construction(connection: Connection, session: Session) -> Session:
    session.close()
    return Session(bind=connection, join_transaction_mode="create_savepoint")


def bound_later(connection: Connection, session: Session) -> Session:
    session.bind = connection
    return session


@pytest.mark.parametrize("bind", [bound_at_construction, bound_later])
def test_a_connection_that_was_handed_over_is_not_the_session_s(
    guard: LeakGuard,
    recorder: Recorder,
    engine: Engine,
    bind: Callable[[Connection, Session], Session],
) -> None:
    """Whoever checked it out answers for it, also where the session is older."""
    with guard.scope("outer"):
        session = Session()
        with guard.scope("inner"):
            connection = engine.connect()  # handed over
            bound = bind(connection, session)
            bound.execute(QUERY)
            bound.close()
    assert recorder.kinds == [LEAKED]
    assert scopes(recorder) == ["inner"]
    assert constructed_at(recorder) == [None]
    connection.close()


class OpensItsBind(Session):
    """A session that opens a connection for itself, and closes it no more than SQLAlchemy does."""

    opened: Connection | None = None

    def get_bind(self, *_: object, **__: object) -> Connection:
        """Return a connection of its first bind."""
        if self.opened is None:
            assert isinstance(self.bind, Engine)
            self.opened = self.bind.connect()
        return self.opened


def opened_by_the_session(engine: Engine, session: Session) -> Connection:
    opening = OpensItsBind(engine)
    opening.execute(QUERY)
    opening.close()
    assert opening.opened is not None
    return opening.opened


def given_for_one_statement(engine: Engine, session: Session) -> Connection:
    connection = engine.connect()
    session.execute(QUERY, bind_arguments={"bind": connection})
    return connection


def given_in_a_savepoint(engine: Engine, session: Session) -> Connection:
    connection = engine.connect()
    session.bind = connection
    with session.begin_nested():
        session.execute(QUERY)
    return connection


@pytest.mark.parametrize(
    "hand", [opened_by_the_session, given_for_one_statement, given_in_a_savepoint]
)
def test_a_connection_that_is_younger_than_the_session_it_is_handed_to(
    guard: LeakGuard,
    recorder: Recorder,
    engine: Engine,
    hand: Callable[[Engine, Session], Connection],
) -> None:
    """The session, and its scope, are not accused of what it was only given."""
    with guard.scope("outer"), Session() as session:
        with guard.scope("inner"):
            connection = hand(engine, session)
        assert recorder.kinds == [LEAKED]
    assert scopes(recorder) == ["inner"]
    assert constructed_at(recorder) == [None]
    connection.close()


def test_a_connection_that_was_invalidated_in_its_transaction(
    guard: LeakGuard, recorder: Recorder, engine: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    """A session that joins its transaction is told of it by SQLAlchemy, and nothing by us."""
    with guard.scope("job"), engine.connect() as connection:
        connection.begin()
        connection.invalidate()
        with Session(connection, join_transaction_mode="rollback_only") as session:
            session.connection()
        connection.rollback()
    assert recorder.findings == []
    assert caplog.records == []


@contextmanager
def fixture(engine: Engine) -> Generator[Session, None, None]:
    """Return a session in a transaction that is rolled back after the test."""
    with engine.connect() as connection:
        transaction = connection.begin()
        factory = make_factory(bind=connection, join_transaction_mode="create_savepoint")
        with factory() as session:
            yield session
        transaction.rollback()


def test_a_fixture_that_holds_one_connection_for_a_whole_test(
    guard: LeakGuard, recorder: Recorder, engine: Engine
) -> None:
    """Requests that commit, roll back and nest in the fixture's transaction are clean."""
    recorder.holds_acquired.clear()
    with guard.scope("test", type="test"), fixture(engine) as session:
        for _ in range(3):
            with guard.scope("request"):
                session.add(Left())
                session.commit()
                with session.begin_nested():
                    session.execute(select(Left))
                session.rollback()
        assert recorder.findings == []
    assert recorder.findings == []
    assert len([hold for hold in recorder.holds_acquired if hold.resource == "connection"]) == 1


# --- registries -----------------------------------------------------------------------------------


def test_a_registry_that_is_not_removed(
    guard: LeakGuard, recorder: Recorder, engine: Engine
) -> None:
    """`scoped_session` without `remove()` keeps its session, and the session its connection."""
    registry = scoped_session(make_factory(engine))
    with guard.scope("removed"):
        registry.execute(QUERY)
        registry.remove()
    assert recorder.findings == []
    with guard.scope("kept"):
        registry.execute(QUERY)  # through the proxy
    assert scopes(recorder) == ["kept"]
    assert constructed_at(recorder) == [line_marked(HERE, "through the proxy")]
    registry.remove()


def test_a_registry_that_another_thread_removes(
    guard: LeakGuard, recorder: Recorder, engine: Engine
) -> None:
    """`remove()` on another thread removes that thread's session, and not the one in use."""
    registry = scoped_session(make_factory(engine))
    with guard.scope("job"):
        registry.execute(QUERY)
        thread = threading.Thread(target=registry.remove)
        thread.start()
        thread.join(PATIENCE)
    assert recorder.kinds == [LEAKED]
    registry.remove()


def test_an_async_registry(guard: LeakGuard, recorder: Recorder, async_engine: AsyncEngine) -> None:
    """`async_scoped_session` is clean with `await remove()`, and not without."""

    async def main() -> None:
        registry = async_scoped_session(
            async_sessionmaker(async_engine), scopefunc=asyncio.current_task
        )
        async with guard.scope("removed"):
            await registry.execute(QUERY)
            await registry.remove()
        assert recorder.findings == []
        async with guard.scope("kept"):
            await registry.execute(QUERY)  # through the async proxy
        await registry.remove()

    asyncio.run(main())
    assert scopes(recorder) == ["kept"]
    assert constructed_at(recorder) == [line_marked(HERE, "through the async proxy")]


# --- ends -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", ["close", "invalidate", "reset"])
def test_every_end_of_a_session(
    guard: LeakGuard, recorder: Recorder, engine: Engine, end: str
) -> None:
    """`close()`, `invalidate()` and `reset()` end a session, whatever it did."""
    with guard.scope("job"):
        for statements in range(3):
            session = Session(engine)
            for _ in range(statements):
                session.execute(QUERY)
            getattr(session, end)()
    assert recorder.findings == []
    assert guard.open_holds() == ()


@pytest.mark.parametrize("end", ["close", "invalidate", "reset", "aclose"])
def test_every_end_of_an_async_session(
    guard: LeakGuard, recorder: Recorder, async_engine: AsyncEngine, end: str
) -> None:
    """The same with `await`, in the task that used it and in another one."""

    async def main() -> None:
        async with guard.scope("job"):
            for other_task in (False, True):
                session = AsyncSession(async_engine)
                await session.execute(QUERY)
                ending = getattr(session, end)()
                await (asyncio.create_task(ending) if other_task else ending)

    asyncio.run(main())
    assert recorder.findings == []
    assert guard.open_holds() == ()


@pytest.mark.parametrize("end", ["close", "reset"])
def test_sessions_from_before_the_installation_end_as_ever(engine: Engine, end: str) -> None:
    """A session that no guard knows is ended without a word."""
    session = Session(engine)
    with LeakGuard(mode="testing", observers=[]) as guard:
        getattr(session, end)()
        assert guard.open_holds() == ()


class TwoBases(Session):
    """A class that initialises its base twice, as diamonds without `super()` do."""

    def __init__(self, engine: Engine) -> None:
        Session.__init__(self, engine)
        Session.__init__(self, engine)


class OwnClose(Session):
    """A class with a `close` of its own."""

    def close(self) -> None:
        """Close, and say so."""
        super().close()
        self.info["closed"] = True


def test_classes_with_methods_of_their_own(
    guard: LeakGuard, recorder: Recorder, engine: Engine
) -> None:
    """What a class does in `__init__` and `close` counts once."""
    with guard.scope("job"):
        with TwoBases(engine) as twice:
            twice.execute(QUERY)
        with OwnClose(engine) as own:
            own.execute(QUERY)
    assert own.info == {"closed": True}
    assert recorder.findings == []
    sessions = [hold for hold in recorder.holds_acquired if hold.resource == "session"]
    assert len(sessions) == 2
    with guard.scope("leak"):
        leaking = TwoBases(engine)  # twice initialised
        leaking.execute(QUERY)
    assert constructed_at(recorder) == [line_marked(HERE, "twice initialised")]
    leaking.close()


def test_a_guard_that_is_installed_again_in_a_scope(recorder: Recorder, engine: Engine) -> None:
    """What was forgotten stays forgotten; what is acquired afterwards is judged."""
    guard = LeakGuard(mode="testing", observers=[recorder]).install()
    with guard.scope("job"):
        forgotten = Session(engine)
        forgotten.execute(QUERY)
        guard.uninstall()
        forgotten.close()
        guard.install()
        session = Session(engine)  # after the second installation
        session.execute(QUERY)
    assert recorder.kinds == [LEAKED]
    assert constructed_at(recorder) == [line_marked(HERE, "after the second installation")]
    session.close()


def test_a_failing_construction_is_no_session(guard: LeakGuard) -> None:
    """An `__init__` that raises raises as ever, and leaves nothing open."""
    with guard.scope("job"), pytest.raises(TypeError, match="unexpected keyword"):
        Session(no_such_option=True)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]  # the mistake
    assert guard.open_holds() == ()


def test_what_was_handed_to_an_open_scope_is_not_judged_with_the_ended_one(
    guard: LeakGuard, recorder: Recorder, engine: Engine
) -> None:
    """A thread from an inner scope that has ended uses the outer scope's session, and ends."""
    with guard.scope("outer"):
        session = Session(engine)
        with guard.scope("inner"):
            context = contextvars.copy_context()
        thread = threading.Thread(target=context.run, args=(session.execute, QUERY))
        thread.start()
        thread.join(PATIENCE)
        del context, thread
        gc.collect()
        done = threading.Event()
        WATCH.post(done.set)
        assert done.wait(PATIENCE)
        assert recorder.findings == []
        session.close()
    assert recorder.findings == []


def test_what_its_scope_had_is_found_out_anew_for_one_that_is_handed_over(
    guard: LeakGuard, recorder: Recorder, engine: Engine
) -> None:
    """The inner scope has another one, the scope of the session has none."""
    with guard.scope("outer"), Session(engine) as session:
        with guard.scope("inner"), engine.connect():
            session.execute(QUERY)
        session.rollback()
    assert recorder.kinds == []


def test_what_is_taken_in_no_scope_is_taken_in_the_ambient_one(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a run of tests, by a thread that knows nothing of it."""
    with LeakGuard(mode="testing", observers=[]) as guard:
        ambient = Scope(core_of(guard), "a test", "test")
        monkeypatch.setattr(AMBIENT, "scope", ambient)
        kept: list[Connection] = []
        thread = threading.Thread(target=lambda: kept.append(engine.connect()))
        thread.start()
        thread.join()
        assert [hold.scope for hold in guard.open_holds()] == [ambient]
        kept.pop().close()


# --- generators -----------------------------------------------------------------------------------


def test_between_two_steps_of_a_generator_its_scope_is_not_at_work(
    guard: LeakGuard, recorder: Recorder, engine: Engine
) -> None:
    """What its reader takes meanwhile is the reader's."""

    def read() -> Iterator[int]:
        with guard.scope("read"), Session(engine) as session:
            for _ in range(2):
                session.execute(QUERY)
                yield 1

    with guard.scope("write"):
        numbers = read()
        next(numbers)
        with Session(engine) as writer:
            writer.execute(QUERY)
            assert scopes_out(guard) == ["read", "read", "write", "write"]
            assert list(numbers) == [1]
    next(read())  # and where there is no other scope
    with guard, engine.connect():
        pass
    assert recorder.kinds == []


def test_what_a_generator_has_started_works_in_its_scope(guard: LeakGuard, engine: Engine) -> None:
    """Also between two steps of it."""
    took, go_on = threading.Event(), threading.Event()

    def take() -> None:
        with engine.connect():
            took.set()
            assert go_on.wait(PATIENCE)

    def read() -> Iterator[threading.Thread]:
        with guard.scope("read"):
            thread = threading.Thread(target=contextvars.copy_context().run, args=(take,))
            yield thread

    generator = read()
    thread = next(generator)
    thread.start()
    assert took.wait(PATIENCE)
    assert scopes_out(guard) == ["read"]
    go_on.set()
    thread.join()
    assert list(generator) == []


def test_between_two_steps_of_an_asynchronous_generator(
    guard: LeakGuard, recorder: Recorder, async_engine: AsyncEngine
) -> None:
    """SQLAlchemy works for it in a greenlet, whose stack hangs from the generator's."""

    async def read() -> AsyncIterator[int]:
        async with guard.scope("read"), AsyncSession(async_engine) as session:
            for _ in range(2):
                await session.execute(QUERY)
                yield 1

    async def main() -> None:
        async with guard.scope("write"):
            numbers = read()
            await anext(numbers)
            async with AsyncSession(async_engine) as writer:
                await writer.execute(QUERY)
                assert scopes_out(guard) == ["read", "read", "write", "write"]
                assert [number async for number in numbers] == [1]

    asyncio.run(main())
    assert recorder.kinds == []


def test_within_a_context_manager_its_scope_is_at_work(
    guard: LeakGuard, recorder: Recorder, engine: Engine
) -> None:
    """Its generator is suspended, too, but the block is what the scope is for."""

    @contextmanager
    def job() -> Generator[None]:
        with guard.scope("job"):
            yield

    with job(), engine.connect():
        assert scopes_out(guard) == ["job"]
    assert recorder.kinds == []


def scopes_out(guard: LeakGuard) -> list[str]:
    """Return the scopes of what is out, in alphabetical order."""
    return sorted(hold.scope.name for hold in guard.open_holds() if hold.scope)


def test_a_task_whose_loop_was_closed_is_not_waited_for(
    guard: LeakGuard, recorder: Recorder, engine: Engine
) -> None:
    """It never goes on, block or not, and the report says what to do about it."""

    async def keep() -> None:
        with engine.connect():
            await asyncio.Event().wait()

    with guard.scope("job"):
        loop = asyncio.new_event_loop()
        task: Any = loop.create_task(keep())
        loop.run_until_complete(asyncio.sleep(0))
        loop.close()
    assert recorder.kinds == [FindingKind.LEAKED]
    assert "its event loop was closed before it was done" in str(recorder.findings[0])
    task._log_destroy_pending = False  # noqa: SLF001  (it is destroyed, as it is meant to be)
