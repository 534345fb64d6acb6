"""Observers are told, and isolated from the application and from one another."""

from __future__ import annotations

import gc
import threading
from asyncio import CancelledError

import pytest

from leakguard import Finding, Hold, Observer
from leakguard.core.collector import COLLECTOR
from leakguard.core.faults import Faults
from leakguard.core.observer import METHODS, Observers
from leakguard.core.process import observe_everywhere, observe_no_more
from leakguard.core.watch import WATCH
from tests.core.fakes import installed, make_finding, make_guard, take
from tests.support import PATIENCE, Recorder, drain_watch


class Broken(Observer):
    """An observer that raises."""

    def __init__(self, error: BaseException) -> None:
        self.error = error
        self.calls = 0

    def acquired(self, hold: object) -> None:
        self.calls += 1
        raise self.error


def test_every_method_of_the_base_does_nothing() -> None:
    """One overrides what one wants to be told."""
    observer = Observer()
    finding = make_finding()
    assert finding.hold is not None
    assert finding.scope is not None
    observer.scope_opened(finding.scope)
    observer.scope_closed(finding.scope)
    observer.acquired(finding.hold)
    observer.released(finding.hold)
    observer.found(finding)
    observer.resolved(finding)


def test_what_nobody_overrides_is_not_called(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would do nothing, for every request."""
    told: list[Finding] = []

    def found(_: Observer, finding: Finding) -> None:
        told.append(finding)

    monkeypatch.setattr(Observer, "found", found)
    Observers([Observer(), Broken(KeyError())], Faults()).found(make_finding())
    assert told == []


@pytest.mark.parametrize("error", [KeyError("lost"), CancelledError(), pytest.fail.Exception("x")])
def test_an_observer_that_raises_is_logged_once_and_disabled(
    caplog: pytest.LogCaptureFixture, error: BaseException
) -> None:
    """The others go on, and so does the application."""
    before, broken, after = Recorder(), Broken(error), Recorder()
    guard = installed(before, broken, after)
    for _ in range(3):
        take(guard)
    assert broken.calls == 1
    assert len(before.holds_acquired) == len(after.holds_acquired) == 3
    messages = [record.getMessage() for record in caplog.records]
    assert messages == [
        (
            f"leakguard's observer Broken raised {type(error).__name__}; the application is not "
            "affected. The observer is not called again."
        )
    ]
    assert guard.observers.find(Broken) is None
    assert guard.observers.find(Recorder) is before
    assert list(guard.observers) == [before, after]
    guard.uninstall()


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_what_ends_the_process_passes(error: type[BaseException]) -> None:
    """A signal may arrive in the middle of an observer, too."""
    guard = installed(Broken(error()))
    with pytest.raises(error):
        take(guard)
    guard.uninstall()


def test_a_function_in_place_of_a_method_is_called() -> None:
    """An observer may get a method as an attribute of the object."""
    told: list[object] = []

    def keep(hold: Hold) -> None:
        told.append(hold)

    observer = Observer()
    observer.acquired = keep  # type: ignore[method-assign]  # as users do
    guard = installed(observer)
    hold = take(guard)
    assert told == [hold]
    guard.uninstall()


def test_such_a_function_that_raises_is_disabled_too(caplog: pytest.LogCaptureFixture) -> None:
    """It has no observer that could be named, and must not be called for ever."""
    calls: list[object] = []

    def fail(hold: Hold) -> None:
        calls.append(hold)
        raise KeyError

    observer = Observer()
    observer.acquired = fail  # type: ignore[method-assign]  # as users do
    guard = installed(observer)
    take(guard)
    take(guard)
    assert len(calls) == 1
    assert len(caplog.records) == 1
    guard.uninstall()


def test_every_observer_that_is_disabled_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    """Two of a class are two that are not told any more."""
    guard = installed(Broken(KeyError("one")), Broken(KeyError("other")))
    take(guard)
    take(guard)
    assert len(caplog.records) == 2
    guard.uninstall()


def test_an_observer_that_raises_in_two_threads_at_once_is_logged_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Both threads were calling it when the first of them failed."""
    both = threading.Barrier(2)

    class Failing(Observer):
        """An observer that fails in two threads at the same time."""

        def acquired(self, hold: object) -> None:
            both.wait(PATIENCE)
            raise KeyError

    recorder = Recorder()
    guard = installed(Failing(), recorder)
    threads = [threading.Thread(target=take, args=(guard,)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(caplog.records) == 1
    assert len(recorder.holds_acquired) == 2
    guard.uninstall()


def test_who_hears_of_every_guard_hears_once() -> None:
    """Of those that are installed before and after; and no more when it wants no more."""
    recorder = Recorder()
    before, after = make_guard(recorder), make_guard()
    with before:
        observe_everywhere(recorder)
        try:
            with after:
                for guard in (before, after):
                    with guard.scope("job"):
                        pass
            assert list(after.observers) == []
        finally:
            observe_no_more(recorder)
        with before.scope("job"):
            pass
    assert [scope.guard for scope in recorder.scopes_closed] == [before, after]


def test_the_methods_are_listed() -> None:
    """The settings look at every one of them."""
    assert set(METHODS) == {name for name in vars(Observer) if not name.startswith("_")}


class Where(Observer):
    """An observer that keeps what it is told, and in which thread."""

    def __init__(self) -> None:
        self.told: list[tuple[Finding, str]] = []

    def found(self, finding: Finding) -> None:
        self.told.append((finding, threading.current_thread().name))


@pytest.mark.parametrize("where", ["a thread", "the watch"])
def test_what_the_watch_is_given_to_tell_it_tells(where: str) -> None:
    """Also where nobody heard of the collector's end in its own thread."""
    recorder, finding = Recorder(), make_finding()
    guard = installed(recorder)

    def tell() -> None:
        COLLECTOR.thread = threading.get_ident()
        guard.observers.found(finding)

    WATCH.start()
    if where == "the watch":
        WATCH.post(tell)
    else:
        tell()
    for _ in range(2):  # what it gives itself to do it does after the rest
        drain_watch()
    told = recorder.findings.copy()
    COLLECTOR.thread = 0
    guard.uninstall()
    assert told == [finding]


def test_while_the_collector_is_at_work_in_another_thread_all_is_told_at_once() -> None:
    """It has interrupted nobody here."""
    where, finding = Where(), make_finding()
    guard = installed(where)
    COLLECTOR.thread = -1
    guard.observers.found(finding)
    drain_watch()
    COLLECTOR.thread = 0
    guard.uninstall()
    assert where.told == [(finding, threading.current_thread().name)]


def test_what_the_collector_sets_off_is_told_by_the_watch() -> None:
    """It may have interrupted somebody who has the lock that an observer needs."""

    class Cycle:
        def __init__(self) -> None:
            self.cycle = self

        def __del__(self) -> None:
            guard.observers.found(finding)

    where, finding = Where(), make_finding()
    guard = installed(where)
    guard.observers.found(finding)
    Cycle()
    gc.collect()
    drain_watch()
    guard.uninstall()
    assert where.told == [(finding, threading.current_thread().name), (finding, "leakguard")]
