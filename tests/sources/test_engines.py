"""Which engines are watched, what their pools are called, and what statements leave behind."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, create_engine, make_url, text
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine
from sqlalchemy.orm import Session, sessionmaker
from sqlalchemy.pool import Pool

from leakguard import FindingKind, LeakGuard, SettingsError, ignore_engine
from leakguard.core.hold import Hold
from leakguard.sources.sqlalchemy.pools import belongs_to, pool_facts, pool_fill
from tests.support import Recorder

QUERY = text("SELECT 1")


@pytest.fixture
def other(tmp_path: Path) -> Iterator[Engine]:
    engine = create_engine(f"sqlite:///{tmp_path / 'other.db'}", pool_logging_name="other")
    yield engine
    engine.dispose()


@pytest.fixture
def async_engine(tmp_path: Path) -> Iterator[AsyncEngine]:
    engine = create_async_engine(f"sqlite+aiosqlite:///{tmp_path / 'async.db'}")
    yield engine
    asyncio.run(engine.dispose())


def leak(engine: Engine) -> Session:
    session = Session(engine)
    session.execute(QUERY)
    return session


def test_only_the_engines_given_are_watched(
    recorder: Recorder, engine: Engine, other: Engine
) -> None:
    """With `engines=` the others' connections and sessions are nothing to the guard."""
    guard = LeakGuard(mode="testing", observers=[recorder], engines=[engine])
    with guard, guard.scope("job"):
        sessions = [leak(engine), leak(other), Session(other), Session()]
    assert [finding.pool for finding in recorder.findings] == ["main"]
    for session in sessions:
        session.close()


def test_of_many_engines_each_pool_is_looked_for_once(
    recorder: Recorder, engine: Engine, other: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An engine for each of a thousand tenants costs no request anything."""
    looked_for: list[Pool] = []

    def counted(pool: Pool, engines: tuple[object, ...]) -> bool:
        looked_for.append(pool)
        return belongs_to(pool, engines)

    monkeypatch.setattr("leakguard.sources.sqlalchemy.guards.belongs_to", counted)
    guard = LeakGuard(mode="testing", observers=[recorder], engines=[engine])
    with guard:
        for each in (engine, other, engine, other):
            with guard.scope("job"), Session(each) as session:
                session.execute(QUERY)
    assert looked_for == [engine.pool, other.pool]
    assert {hold.pool for hold in recorder.holds_acquired if hold.pool} == {"main"}


def test_an_engine_is_watched_after_dispose(recorder: Recorder, engine: Engine) -> None:
    """An engine with a new pool is the same engine."""
    guard = LeakGuard(mode="testing", observers=[recorder], engines=[engine])
    with guard, guard.scope("job"):
        engine.dispose()
        session = leak(engine)
    assert recorder.kinds == [FindingKind.LEAKED]
    session.close()


def test_async_engines_can_be_named(
    recorder: Recorder, async_engine: AsyncEngine, engine: Engine
) -> None:
    """`engines=` takes an `AsyncEngine` as it is."""

    async def main() -> None:
        async with guard.scope("job"):
            session = AsyncSession(async_engine)
            await session.execute(QUERY)
            other = leak(engine)
        await session.close()
        other.close()

    guard = LeakGuard(mode="testing", observers=[recorder], engines=[async_engine])
    with guard:
        asyncio.run(main())
    assert [finding.pool for finding in recorder.findings] == ["async.db"]


@pytest.mark.parametrize("value", ["engine", 7, sessionmaker(), AsyncSession()], ids=type)
def test_what_is_no_engine_is_refused(value: object) -> None:
    """The error names the setting, the value and what is allowed."""
    with pytest.raises(
        SettingsError, match=r"engines\[0\]=.* is not allowed: must be an Engine or an"
    ):
        LeakGuard(engines=[value])
    with pytest.raises(SettingsError, match=r"engine=.* is not allowed"):
        ignore_engine(value)


def test_each_leak_is_found_once_by_the_innermost_guard_that_watches(
    engine: Engine, other: Engine
) -> None:
    """Guards with engines of their own share the nested scopes of one job."""
    outer_recorder, inner_recorder = Recorder(), Recorder()
    outer = LeakGuard(mode="testing", observers=[outer_recorder])
    inner = LeakGuard(mode="testing", observers=[inner_recorder], engines=[engine])
    with outer, inner, outer.scope("outer"), inner.scope("inner"):
        sessions = [leak(engine), leak(other)]
    assert [(f.pool, f.scope and f.scope.name) for f in inner_recorder.findings] == [
        ("main", "inner")
    ]
    assert [(f.pool, f.scope and f.scope.name) for f in outer_recorder.findings] == [
        ("other", "outer")
    ]
    for session in sessions:
        session.close()


def test_a_session_of_an_outer_guard_s_scope_takes_its_connection_there(
    engine: Engine,
) -> None:
    """The connection goes to the guard of the scope of the session that checked it out."""
    outer_recorder, inner_recorder = Recorder(), Recorder()
    outer = LeakGuard(mode="testing", observers=[outer_recorder])
    inner = LeakGuard(mode="testing", observers=[inner_recorder])
    with outer, inner, outer.scope("outer"):
        session = Session(engine)
        with inner.scope("inner"):
            session.execute(QUERY)
        assert inner.open_holds() == ()
        assert len(outer.open_holds()) == 2
    assert inner_recorder.findings == []
    assert outer_recorder.kinds == [FindingKind.LEAKED]
    session.close()


def test_outside_of_scopes_the_first_guard_is_told(engine: Engine, other: Engine) -> None:
    """What has no scope goes to the guard that was installed first and watches the engine."""
    first = LeakGuard(mode="testing", observers=[], engines=[other])
    second = LeakGuard(mode="testing", observers=[])
    third = LeakGuard(mode="testing", observers=[])
    with first, second, third, engine.connect(), other.connect():
        assert [len(guard.open_holds()) for guard in (first, second, third)] == [1, 1, 0]


@pytest.mark.parametrize("ever", [True, False])
def test_the_scope_of_a_guard_that_is_not_installed_has_nothing(
    recorder: Recorder, engine: Engine, ever: bool
) -> None:
    """The guard that is installed is told, as of what is done in no scope."""
    idle = LeakGuard(mode="testing", observers=[])
    if ever:
        idle.install().uninstall()
    with LeakGuard(mode="testing", observers=[recorder]) as guard, idle.scope("job"):
        with engine.connect():
            assert [hold.scope for hold in guard.open_holds()] == [None]
        assert guard.open_holds() == ()
    assert len(recorder.holds_released) == 1


def test_an_engine_can_be_ignored(recorder: Recorder, engine: Engine, other: Engine) -> None:
    """`ignore_engine` drops what is found on an engine's connections, old pools included."""
    guard = LeakGuard(mode="testing", observers=[recorder], ignore=[ignore_engine(other)])
    with guard, guard.scope("job"):
        sessions = [leak(engine), leak(other)]
        other.dispose()
        sessions.append(leak(other))
    assert [finding.pool for finding in recorder.findings] == ["main"]
    for session in sessions:
        session.close()


def test_findings_without_a_connection_are_no_engine_s(recorder: Recorder, engine: Engine) -> None:
    """An unclosed session has no connection that could be the engine's."""
    guard = LeakGuard(mode="testing", observers=[recorder], ignore=[ignore_engine(engine)])
    with guard, guard.scope("job"):
        session = Session(engine)
    assert recorder.kinds == [FindingKind.UNCLOSED_SESSION]
    session.close()


NAMES: list[tuple[str, dict[str, Any], str]] = [
    ("sqlite://", {}, ":memory:"),
    ("sqlite:////srv/data/shop.db", {}, "shop.db"),
    ("postgresql://ann:pa55word@db.local:5433/shop", {}, "db.local:5433/shop"),
    ("postgresql://ann:pa55word@db.local/shop", {}, "db.local/shop"),
    ("postgresql:///shop", {}, "shop"),
    ("postgresql://", {}, "postgresql"),
    ("postgresql://ann:pa55word@db.local/shop", {"pool_logging_name": "main"}, "main"),
]


@pytest.mark.parametrize("url, options, name", NAMES, ids=[name for _, _, name in NAMES])
def test_a_pool_is_named_without_secrets(
    guard: LeakGuard, recorder: Recorder, url: str, options: dict[str, Any], name: str
) -> None:
    """The name says which database it is, and neither user nor password."""
    engine = create_engine("sqlite://", **options)
    engine.url = make_url(url)  # of a driver that need not be here
    with guard.scope("job"):
        connection = engine.raw_connection()
    (finding,) = recorder.findings
    assert finding.pool == name
    assert "pa55word" not in str(finding) + str(finding.to_dict())
    connection.close()
    engine.dispose()


def test_an_engine_whose_pool_is_first_used_directly_has_its_pool_s_name(engine: Engine) -> None:
    """Where no engine is on the stack, the pool's class must do."""
    other = create_engine("sqlite://")
    facts = pool_facts(other.pool, None, {})
    assert facts.name == type(other.pool).__name__
    assert not facts.belongs_to(engine)
    assert facts.belongs_to(other)
    assert pool_fill(other.pool) == (None, None)


def test_a_pool_that_is_warmed_up_directly_gets_its_engine_s_name(
    guard: LeakGuard, recorder: Recorder, tmp_path: Path
) -> None:
    """What comes first does not name a pool for good."""
    engine = create_engine(f"sqlite:///{tmp_path / 'orders.db'}")
    engine.pool.connect().close()
    with guard.scope("job"):
        connection = engine.connect()
    assert [hold.pool for hold in recorder.holds_acquired] == ["QueuePool", "orders.db"]
    assert recorder.findings[0].pool == "orders.db"
    connection.close()
    engine.dispose()


@pytest.mark.parametrize("mode, text_kept", [("production", False), ("development", True)])
def test_the_last_statement_is_kept_where_the_settings_say_so(
    engine: Engine,
    mode: str,
    text_kept: bool,
) -> None:
    """The SQL text of the last statement is in the report, and never a parameter."""
    recorder = Recorder()
    guard = LeakGuard(mode=mode, observers=[recorder])
    with guard, guard.scope("job"):
        session = Session(engine)
        session.execute(text("SELECT :first"), {"first": "hidden value"})
        session.execute(text("SELECT :last"), {"last": "hidden value"})
    (finding,) = recorder.findings
    hold = finding.hold
    assert isinstance(hold, Hold)
    assert (hold.statement == "SELECT ?") is text_kept
    assert (hold.statement is None) is not text_kept
    assert "hidden value" not in str(finding) + str(finding.to_dict())
    assert finding.evidence.idle_for is not None  # which `held` needs, too
    assert 0 <= hold.idle_for <= hold.held_for
    session.close()


def test_of_a_very_long_statement_the_beginning_is_kept(guard: LeakGuard, engine: Engine) -> None:
    """One with thousands of values in it takes no memory for as long as its finding is kept."""
    values = ",".join(map(str, range(10_000)))
    with engine.connect() as connection:
        connection.exec_driver_sql(f"SELECT 1 WHERE 1 IN ({values})")
        (hold,) = guard.open_holds()
        assert hold.statement == f"SELECT 1 WHERE 1 IN ({values}"[:4000] + "…"
        connection.exec_driver_sql("SELECT 1")
        assert hold.statement == "SELECT 1"


def test_every_way_to_execute_is_a_statement(guard: LeakGuard, engine: Engine) -> None:
    """With parameters, without, and many at once."""
    with guard.scope("job") as scope, engine.begin() as connection:
        connection.execute(text("CREATE TABLE t (id INTEGER)"))
        connection.execute(text("INSERT INTO t VALUES (:id)"), {"id": 1})
        connection.execute(text("INSERT INTO t VALUES (:id)"), [{"id": 2}, {"id": 3}])
        connection.exec_driver_sql("SELECT id FROM t")
        connection.execute(QUERY, execution_options={"no_parameters": True})
    statements = [event for event in scope.events if event.what == "statement executed"]
    assert len(statements) == 5


def test_statements_outside_of_a_scope_are_kept_with_the_hold(
    guard: LeakGuard, engine: Engine
) -> None:
    """What has no scope has its last statement all the same."""
    with engine.connect() as connection:
        connection.execute(QUERY)
        (hold,) = guard.open_holds()
        assert hold.statement == "SELECT 1"


def test_statements_of_another_guard_s_connection_are_not_kept(
    engine: Engine, other: Engine
) -> None:
    """A guard that wants no statements keeps none, though another one does."""
    wants = LeakGuard(mode="testing", observers=[], engines=[engine])
    wants_not = LeakGuard(mode="production", observers=[], engines=[other])
    with wants, wants_not, engine.connect() as one, other.connect() as two:
        one.execute(QUERY)
        two.execute(QUERY)
        assert [hold.statement for hold in wants.open_holds()] == ["SELECT 1"]
        assert [hold.statement for hold in wants_not.open_holds()] == [None]


def test_what_no_guard_watches_is_left_alone(engine: Engine, other: Engine) -> None:
    """A connection of an engine that nobody watches is nobody's."""
    guard = LeakGuard(mode="testing", observers=[], engines=[engine])
    with guard, other.connect() as connection:
        connection.execute(QUERY)
        assert guard.open_holds() == ()


def test_a_synchronous_checkout_on_a_loop_is_noticed(
    guard: LeakGuard, recorder: Recorder, engine: Engine, async_engine: AsyncEngine
) -> None:
    """Only a synchronous engine, only on the loop's own thread."""

    async def main() -> None:
        async with guard.scope("job"):
            async with async_engine.connect():
                pass
            await asyncio.to_thread(lambda: engine.connect().close())
            assert recorder.findings == []
            engine.connect().close()

    asyncio.run(main())
    assert recorder.kinds == [FindingKind.SYNC_IN_ASYNC]
