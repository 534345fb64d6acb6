"""SQLAlchemy is watched while a guard is installed, and is exactly as found afterwards.

Everything of SQLAlchemy that can be changed is compared by identity: the classes with all their
subclasses, and every event of classes, engines, pools and dialects that exist.
"""

from __future__ import annotations

import gc
import itertools
import random
import sys
import sysconfig
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, create_engine, event, text
from sqlalchemy.engine import Connection
from sqlalchemy.engine.interfaces import Dialect
from sqlalchemy.orm import Session, sessionmaker
from sqlalchemy.pool import Pool, PoolProxiedConnection, StaticPool, _ConnectionFairy  # pyright: ignore[reportPrivateUsage]  # no public name
from starlette.applications import Starlette

from leakguard import FindingKind, LeakGuard, LeakGuardMiddleware
from leakguard.sources.sqlalchemy import SQLALCHEMY
from tests.support import PATIENCE, Recorder, drain_watch, line_marked

QUERY = text("SELECT 1")
ROOTS: tuple[type[Any], ...] = (Session, Pool, Engine, Connection, Dialect)
WRAPPED = ("__init__", "_close_impl")
HERE = sys.modules[__name__]
Snapshot = dict[tuple[object, str], Any]


def family(root: type[Any]) -> list[type[Any]]:
    """List a class and all its subclasses, each once."""
    found: dict[type[Any], None] = {root: None}
    for child in root.__subclasses__():
        found.update(dict.fromkeys(family(child)))
    return list(found)


def listeners_of(cls: type[Any]) -> Iterator[tuple[str, list[object]]]:
    for name in cls.dispatch._event_names:  # noqa: SLF001  (no public way)
        on_class = getattr(cls.dispatch, name)._clslevel.get(cls, ())  # noqa: SLF001  (no public way)
        yield name, list(on_class)


def snapshot(*engines: Engine) -> Snapshot:
    """Take down all that listening and wrapping can change."""
    taken: Snapshot = {}
    for cls in (one for root in ROOTS for one in family(root)):
        taken.update(((cls, name), value) for name, value in vars(cls).items())
        taken.update(((cls, f"event {name}"), found) for name, found in listeners_of(cls))
    for engine in engines:
        for owner in (engine, engine.pool, engine.dialect):
            one: Any = owner
            taken[one, "flag"] = getattr(one, "_has_events", None)
            for name, _ in listeners_of(one.__class__):
                taken[one, f"event {name}"] = list(getattr(one.dispatch, name))
    return taken


def differences(before: Snapshot, after: Snapshot) -> set[tuple[object, str]]:
    """List what is not the very same any more: lists by what is in them, the rest by identity."""
    owners = {owner for owner, _ in before}  # others were made in between
    return {
        key
        for key in before.keys() | after.keys()
        if key[0] in owners and not same(before.get(key, MISSING), after.get(key, MISSING))
    }


def same(one: object, other: object) -> bool:
    return one == other if isinstance(one, list) else one is other


MISSING = object()


class Engines:
    """Engines that exist before the installation: of a queue, of one connection, with options."""

    def __init__(self, file: Engine) -> None:
        self.all = (
            file,
            create_engine("sqlite://", poolclass=StaticPool),
            file.execution_options(compiled_cache=None),
        )

    def use(self) -> None:
        """Go through everything that we listen to or wrap."""
        for engine in self.all:
            with Session(engine) as session:
                session.execute(QUERY)
                session.reset()
            unused = sessionmaker(engine)()
            unused.invalidate()
            connection = engine.raw_connection()
            connection.detach()
            connection.close()


@pytest.fixture
def engines(engine: Engine) -> Iterator[Engines]:
    """Compare SQLAlchemy before and after the test, which must take out whatever it put in."""
    engines = Engines(engine)
    engines.use()
    before = snapshot(*engines.all)
    yield engines
    engines.use()
    changed = differences(before, snapshot(*engines.all))
    for name in WRAPPED:  # so that a failure is this test's alone
        setattr(Session, name, before[Session, name])
    engines.all[1].dispose()
    assert changed == set()


class Foreign:
    """An installed package that wraps the same methods, and puts back what it found."""

    SOURCE = """
def around(original, count):
    def wrapper(*args, **kwargs):
        count()
        return original(*args, **kwargs)
    return wrapper
"""

    def __init__(self) -> None:
        self.calls = 0
        self.saved = {name: vars(Session)[name] for name in WRAPPED}
        package: dict[str, Any] = {}
        file = Path(sysconfig.get_path("purelib"), "foreign", "wrappers.py")
        exec(compile(self.SOURCE, file, "exec"), package)  # noqa: S102  (so that it lies in there)
        for name, original in self.saved.items():
            setattr(Session, name, package["around"](original, self.count))

    def count(self) -> None:
        """Count a call."""
        self.calls += 1

    def undo(self) -> None:
        """Put back what was there."""
        for name, original in self.saved.items():
            setattr(Session, name, original)


def find_a_leak(guard: LeakGuard, recorder: Recorder, engine: Engine) -> None:
    """See that a guard works: it finds a leak, and the line that constructed the session."""
    recorder.findings.clear()
    with guard.scope("job"):
        session = Session(engine)  # constructed
        session.execute(QUERY)
    (finding,) = recorder.findings
    assert finding.kind is FindingKind.LEAKED
    assert finding.hold is not None
    assert finding.hold.created_at is not None
    assert finding.hold.created_at.line == line_marked(HERE, "constructed")
    session.close()


def test_a_snapshot_sees_every_change(engine: Engine, recorder: Recorder) -> None:
    """The comparison that the tests of this file make would notice what a guard puts in."""
    before = snapshot(engine)
    with LeakGuard(mode="testing", observers=[recorder]):
        changed = differences(before, snapshot(engine))
    names = {name for _, name in changed}
    assert {*WRAPPED, "_has_events", "flag"} <= names
    assert {"event checkout", "event checkin", "event after_begin", "event do_execute"} <= names


ORDERS = sorted(set(itertools.permutations(["install"] * 2 + ["uninstall"] * 2)))


@pytest.mark.parametrize("mode", ["production", "development"])
@pytest.mark.parametrize("order", ORDERS, ids="-".join)
def test_install_and_uninstall_in_any_order(engines: Engines, order: list[str], mode: str) -> None:
    """However often and in whichever order they are called, nothing stays behind."""
    guard = LeakGuard(mode=mode, observers=[])
    for step in order:
        getattr(guard, step)()
        engines.use()
    guard.uninstall()


@pytest.mark.parametrize("first_out", [0, 1])
def test_two_guards_come_and_go(engines: Engines, first_out: int) -> None:
    """What one guard does not need any more stays while the other one needs it."""
    recorders = Recorder(), Recorder()
    guards = [
        LeakGuard(mode=mode, observers=[recorder]).install()
        for mode, recorder in zip(("production", "testing"), recorders, strict=True)
    ]
    guards[first_out].uninstall()
    stays = 1 - first_out
    find_a_leak(guards[stays], recorders[stays], engines.all[0])
    guards[stays].uninstall()


@pytest.mark.parametrize(
    "order",
    [
        ["wrap", "install", "uninstall", "undo"],
        ["wrap", "install", "undo", "uninstall"],
        ["install", "wrap", "undo", "uninstall"],
        ["install", "wrap", "uninstall", "undo"],
        ["install", "wrap", "uninstall", "install", "undo", "uninstall"],
        ["install", "wrap", "uninstall", "install", "uninstall", "undo"],
    ],
    ids="-".join,
)
def test_a_foreign_wrapper_comes_and_goes(engines: Engines, order: list[str]) -> None:
    """Somebody else's wrapper works throughout, and nothing of either stays behind."""
    guard = LeakGuard(mode="testing", observers=[])
    foreign: Foreign | None = None
    for step in order:
        if step == "wrap":
            foreign = Foreign()
        elif step == "undo":
            assert foreign is not None
            foreign.undo()
            foreign = None
        else:
            getattr(guard, step)()
        calls = 0 if foreign is None else foreign.calls
        engines.use()
        # A patch that somebody's undo took out of its place is out of theirs, too.
        assert foreign is None or foreign.calls > calls


@pytest.mark.parametrize("seed", range(30))
def test_any_order_of_guards_and_a_foreign_wrapper(engines: Engines, seed: int) -> None:
    """Guards and a foreign wrapper come and go as the dice fall; all work, and nothing stays."""
    dice = random.Random(seed)  # noqa: S311  (a test's dice)
    modes = ["production", "development", "testing"]
    guards = [LeakGuard(mode=mode, observers=[]) for mode in modes]
    foreign: Foreign | None = None
    for _ in range(40):
        step = dice.choice(["install", "install", "uninstall", "uninstall", "wrap or undo"])
        if step != "wrap or undo":
            getattr(dice.choice(guards), step)()
        elif foreign is None:
            foreign = Foreign()
        else:
            foreign.undo()
            foreign = None
        calls = 0 if foreign is None else foreign.calls
        engines.use()
        assert foreign is None or foreign.calls > calls
    for guard in guards:
        guard.uninstall()
    if foreign is not None:
        foreign.undo()
    engines.use()
    recorder = Recorder()
    with LeakGuard(mode="testing", observers=[recorder]) as again:
        find_a_leak(again, recorder, engines.all[0])


def test_a_wrapper_that_a_foreign_undo_took_out_is_replaced(
    engines: Engines, recorder: Recorder
) -> None:
    """Their undo may bring back an old wrapper of ours, not the present one: it takes over."""
    guard = LeakGuard(mode="testing", observers=[recorder]).install()
    foreign = Foreign()
    guard.uninstall()
    guard.install()
    find_a_leak(guard, recorder, engines.all[0])
    foreign.undo()
    find_a_leak(guard, recorder, engines.all[0])
    assert recorder.holds_released.count(recorder.holds_acquired[-1]) == 1
    guard.uninstall()


def test_two_foreign_wrappers_around_ours(engines: Engines, recorder: Recorder) -> None:
    """Several wrappers on top of ours are taken off one by one, and ours is back in the end."""
    guard = LeakGuard(mode="testing", observers=[recorder]).install()
    first, second = Foreign(), Foreign()
    find_a_leak(guard, recorder, engines.all[0])
    guard.uninstall()
    guard.install()
    find_a_leak(guard, recorder, engines.all[0])
    second.undo()
    engines.use()
    first.undo()
    find_a_leak(guard, recorder, engines.all[0])
    guard.uninstall()


def test_listeners_of_others_stay_where_they_were(engines: Engines) -> None:
    """Foreign listeners from before and from meanwhile survive, in their order."""
    heard: list[str] = []

    def listen(when: str) -> Callable[..., None]:
        def listener(*_: object) -> None:
            heard.append(when)

        event.listen(Pool, "checkin", listener)
        return listener

    before = listen("before")
    guard = LeakGuard(mode="testing", observers=[]).install()
    meanwhile = listen("meanwhile")
    guard.uninstall()
    engines.all[0].connect().close()
    assert heard == ["before", "meanwhile"]
    event.remove(Pool, "checkin", before)
    event.remove(Pool, "checkin", meanwhile)


def test_the_flag_of_dialects_stays_where_somebody_else_needs_it(engines: Engines) -> None:
    """A foreign listener to statements that came meanwhile goes on to hear them."""
    heard: list[str] = []

    def executes(_: object, statement: str, *__: object) -> None:
        heard.append(statement)

    with LeakGuard(mode="testing", observers=[]):
        event.listen(Engine, "do_execute", executes)
    with engines.all[0].connect() as connection:
        connection.execute(QUERY)
    event.remove(Engine, "do_execute", executes)
    assert heard == ["SELECT 1"]
    Dialect._has_events = False  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]  # theirs to leave


def test_the_flag_of_dialects_stays_where_it_was_set(engines: Engines) -> None:
    """Where somebody listens to statements already, the flag is not ours to clear."""

    def executes(*_: object) -> None:
        pass

    event.listen(Engine, "do_execute", executes)
    with LeakGuard(mode="testing", observers=[]):
        engines.use()
    assert Dialect._has_events  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]  # no public way
    event.remove(Engine, "do_execute", executes)
    Dialect._has_events = False  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]  # theirs to leave


def test_what_was_open_is_forgotten(engines: Engines, recorder: Recorder) -> None:
    """A connection that outlives the guard is closed later without a word."""
    guard = LeakGuard(mode="testing", observers=[recorder]).install()
    with guard.scope("job"):
        session = Session(engines.all[0])
        session.execute(QUERY)
        guard.uninstall()
    assert guard.open_holds() == ()
    session.close()
    assert recorder.findings == []
    assert recorder.holds_released == []


def test_mode_off_touches_nothing(engine: Engine) -> None:
    """In mode "off" an installation changes nothing at all."""
    before = snapshot(engine)
    guard = LeakGuard(mode="off").install()
    assert differences(before, snapshot(engine)) == set()
    assert not guard.installed


def test_an_application_that_goes_during_a_checkout(engines: Engines) -> None:
    """Its guard watches no more; nothing that others go through at that moment is changed.

    What the guard had put in goes with the next one.
    """
    applications = [LeakGuardMiddleware(Starlette(), mode="production")]

    def checked_out(*_: object) -> None:
        applications.clear()
        gc.collect()
        drain_watch()

    event.listen(Pool, "checkout", checked_out)
    engines.all[0].connect().close()
    event.remove(Pool, "checkout", checked_out)
    assert SQLALCHEMY.guards == ()
    engines.use()
    LeakGuard(mode="production").install().uninstall()


def test_a_checkout_through_a_wrapper_that_is_not_in_use(engines: Engines) -> None:
    """It stays while somebody else's is around it, does nothing, and goes when that is gone."""
    original = vars(Pool)["connect"]
    guard = LeakGuard(mode="testing", observers=[]).install()
    ours = vars(Pool)["connect"]
    assert ours is not original

    def foreign(pool: Pool) -> PoolProxiedConnection:
        connection: PoolProxiedConnection = ours(pool)
        return connection

    setattr(Pool, "connect", foreign)  # noqa: B010  (as they do)
    guard.uninstall()
    engines.use()
    setattr(Pool, "connect", ours)  # noqa: B010  (they are gone)
    engines.use()
    assert vars(Pool)["connect"] is original


def test_what_notices_the_end_of_detached_connections_goes_too(engines: Engines) -> None:
    """It comes with the first one, and where somebody wraps it, stays and does nothing."""
    original = vars(_ConnectionFairy)["_checkin"]
    guard = LeakGuard(mode="testing", observers=[]).install()
    assert vars(_ConnectionFairy)["_checkin"] is original
    connection = engines.all[0].connect()
    connection.detach()
    ours = vars(_ConnectionFairy)["_checkin"]
    assert ours is not original

    def foreign(proxy: Any, *args: Any, **kwargs: Any) -> Any:
        return ours(proxy, *args, **kwargs)

    setattr(_ConnectionFairy, "_checkin", foreign)  # noqa: B010  (as they do)
    guard.uninstall()
    engines.use()
    setattr(_ConnectionFairy, "_checkin", ours)  # noqa: B010  (they are gone)
    connection.close()
    assert vars(_ConnectionFairy)["_checkin"] is original


def test_somebody_may_have_removed_our_listeners(engines: Engines) -> None:
    """A tool that clears all listeners of an event does not make the uninstallation fail."""
    guard = LeakGuard(mode="testing", observers=[]).install()
    for listener in list(engines.all[0].pool.dispatch.checkout):
        event.remove(Pool, "checkout", listener)
    guard.uninstall()


def test_classes_that_are_made_meanwhile_are_given_back(
    engines: Engines, recorder: Recorder
) -> None:
    """A subclass of a session or pool that is defined under a guard works as ever afterwards."""
    with LeakGuard(mode="testing", observers=[recorder]) as guard:
        factory = sessionmaker(engines.all[0])

        class OwnPool(StaticPool):
            """A pool class of somebody's."""

        own = create_engine("sqlite://", poolclass=OwnPool)
        with guard.scope("job"), factory() as session, own.connect():
            session.execute(QUERY)
        acquired = len(recorder.holds_acquired)
        assert acquired == 3
    assert not any(found for cls in (OwnPool, factory.class_) for _, found in listeners_of(cls))
    with factory() as session, own.connect():
        session.execute(QUERY)
    assert len(recorder.holds_acquired) == acquired
    own.dispose()


def test_guards_of_several_threads_come_and_go_at_once(engines: Engines) -> None:
    """However installations of many threads interleave, all is out in the end."""
    together = threading.Barrier(4)

    def come_and_go() -> None:
        guard = LeakGuard(mode="testing", observers=[])
        together.wait(PATIENCE)
        for _ in range(50):
            with guard:
                pass

    threads = [threading.Thread(target=come_and_go) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
        assert not thread.is_alive()
    engines.use()
