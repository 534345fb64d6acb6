"""SQLAlchemy is watched while a guard is installed, and is exactly as found afterwards."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from sqlalchemy import Engine, create_engine, event, text
from sqlalchemy.engine.interfaces import Dialect
from sqlalchemy.orm import Session
from sqlalchemy.pool import NullPool, Pool, QueuePool, SingletonThreadPool, StaticPool

from leakguard import FindingKind, LeakGuard
from tests.support import Recorder

CLASSES: tuple[type[Any], ...] = (
    Session,
    Pool,
    QueuePool,
    NullPool,
    StaticPool,
    SingletonThreadPool,
    Engine,
    Dialect,
)
EVENTS: list[tuple[Any, str]] = [
    *((Pool, name) for name in ("checkout", "checkin", "detach", "reset")),
    (StaticPool, "reset"),
    (StaticPool, "invalidate"),
    (Session, "after_begin"),
    *((Dialect, name) for name in ("do_execute", "do_executemany", "do_execute_no_params")),
]


def attributes() -> list[dict[str, object]]:
    return [dict(vars(cls)) for cls in CLASSES]


def listeners(engine: Engine) -> list[list[object]]:
    """List the listeners on the classes, and on a pool and dialect that exist already."""
    on_classes = [
        list(getattr(target.dispatch, name)._clslevel.get(target, ()))  # noqa: SLF001  (no public way)
        for target, name in EVENTS
    ]
    on_pool = [list(getattr(engine.pool.dispatch, name)) for _, name in EVENTS[:5]]
    on_dialect = [list(getattr(engine.dialect.dispatch, name)) for _, name in EVENTS[-3:]]
    return on_classes + on_pool + on_dialect


def same(before: list[dict[str, object]], after: list[dict[str, object]]) -> bool:
    return all(
        one.keys() == other.keys() and all(one[name] is other[name] for name in one)
        for one, other in zip(before, after, strict=True)
    )


def use(engine: Engine) -> None:
    with Session(engine) as session:
        session.execute(text("SELECT 1"))


@pytest.fixture
def untouched(engine: Engine) -> Iterator[None]:
    """Compare SQLAlchemy before and after the test."""
    use(engine)
    before = attributes(), listeners(engine)
    yield
    use(engine)
    assert same(before[0], attributes())
    assert before[1] == listeners(engine)


ORDERS = sorted(set(itertools.permutations(["install"] * 2 + ["uninstall"] * 2)))


@pytest.mark.usefixtures("untouched")
@pytest.mark.parametrize("mode", ["production", "development"])
@pytest.mark.parametrize("order", ORDERS, ids="-".join)
def test_install_and_uninstall_in_any_order(engine: Engine, order: list[str], mode: str) -> None:
    """However often and in whichever order they are called, nothing stays behind."""
    guard = LeakGuard(mode=mode, observers=[])
    for step in order:
        getattr(guard, step)()
        use(engine)
    guard.uninstall()


@pytest.mark.usefixtures("untouched")
@pytest.mark.parametrize("first_out", [0, 1])
def test_two_guards_come_and_go(engine: Engine, first_out: int) -> None:
    """What one guard does not need any more stays while the other one needs it."""
    recorders = Recorder(), Recorder()
    guards = [
        LeakGuard(mode=mode, observers=[recorder])
        for mode, recorder in zip(("production", "testing"), recorders, strict=True)
    ]
    for guard in guards:
        guard.install()
    guards[first_out].uninstall()
    stays = 1 - first_out
    with guards[stays].scope("job"):
        session = Session(engine)
        session.execute(text("SELECT 1"))
    assert recorders[stays].kinds == [FindingKind.LEAKED]
    session.close()
    guards[stays].uninstall()


class ForeignWrapper:
    """Somebody else who wraps the two methods, too."""

    def __init__(self) -> None:
        self.calls = 0
        self.saved = {name: vars(Session)[name] for name in ("__init__", "close")}
        for name, original in self.saved.items():
            setattr(Session, name, self.around(original))

    def around(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            self.calls += 1
            return original(*args, **kwargs)

        return wrapper

    def undo(self) -> None:
        """Put back what was there."""
        for name, original in self.saved.items():
            setattr(Session, name, original)


@pytest.mark.usefixtures("untouched")
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
def test_a_foreign_wrapper_comes_and_goes(engine: Engine, order: list[str]) -> None:
    """Somebody else's wrapper works throughout, and nothing of either stays behind."""
    guard = LeakGuard(mode="testing", observers=[])
    foreign: ForeignWrapper | None = None
    for step in order:
        if step == "wrap":
            foreign = ForeignWrapper()
        elif step == "undo":
            assert foreign is not None
            foreign.undo()
            foreign = None
        else:
            getattr(guard, step)()
        before = 0 if foreign is None else foreign.calls
        use(engine)
        # A patch that somebody's undo took out of its place is out of theirs, too.
        assert foreign is None or foreign.calls == before + 2


@pytest.mark.usefixtures("untouched")
def test_listeners_of_others_survive(engine: Engine) -> None:
    """Taking out our listeners leaves those of others on the same events in place."""
    heard: list[str] = []

    def checked_out(*_: object) -> None:
        heard.append("checkout")

    def executes(*_: object) -> None:
        heard.append("execute")

    guard = LeakGuard(mode="development", observers=[])
    guard.install()
    event.listen(Pool, "checkout", checked_out)
    event.listen(Engine, "do_execute", executes)
    guard.uninstall()
    use(engine)
    assert heard == ["checkout", "execute"]
    event.remove(Pool, "checkout", checked_out)
    event.remove(Engine, "do_execute", executes)
    Dialect._has_events = False  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]  # their listener set it


def test_what_was_open_is_forgotten(engine: Engine, recorder: Recorder) -> None:
    """A connection that outlives the guard is closed later without a word."""
    guard = LeakGuard(mode="testing", observers=[recorder]).install()
    with guard.scope("job"):
        session = Session(engine)
        session.execute(text("SELECT 1"))
        guard.uninstall()
    assert guard.open_holds() == ()
    session.close()
    assert recorder.findings == []
    assert recorder.holds_released == []


def test_mode_off_touches_nothing(engine: Engine) -> None:
    """In mode "off" an installation changes nothing at all."""
    before = attributes(), listeners(engine)
    guard = LeakGuard(mode="off").install()
    assert same(before[0], attributes())
    assert before[1] == listeners(engine)
    assert not guard.installed


def test_engines_that_exist_already_are_watched(recorder: Recorder) -> None:
    """Engines and sessions factories made before the installation are watched, too."""
    engine = create_engine("sqlite://")
    with LeakGuard(mode="testing", observers=[recorder]), engine.connect():
        pass
    assert len(recorder.holds_acquired) == 1
    engine.dispose()
