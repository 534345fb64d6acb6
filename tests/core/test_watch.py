"""One daemon thread does what no request is there to do."""

from __future__ import annotations

import contextvars
import os
import sys
import threading
from functools import partial
from queue import SimpleQueue
from time import monotonic
from typing import Any

import pytest

from leakguard.core import watch as watch_module
from leakguard.core.faults import Faults
from leakguard.core.watch import Watch
from tests.support import PATIENCE


@pytest.fixture
def watch() -> Watch:
    watch = Watch(Faults())
    watch.add_user()
    return watch


def wait(done: threading.Event) -> None:
    assert done.wait(PATIENCE)


def test_what_is_posted_is_done_in_order(watch: Watch) -> None:
    """Jobs are done one after the other, those posted before the start included."""
    done: list[int] = []
    end = threading.Event()
    watch.post(lambda: done.append(1))
    watch.start()
    watch.start()
    watch.post(lambda: done.append(2))
    watch.post(end.set)
    wait(end)
    assert done == [1, 2]
    watch.remove_user()


def test_deadlines_are_met_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """The earlier of two deadlines comes first, by a clock that the test moves."""
    now = [0.0]
    monkeypatch.setattr(watch_module, "monotonic", lambda: now[0])
    watch = Watch(Faults())
    watch.add_user()
    watch.start()
    done: list[int] = []
    past, end = threading.Event(), threading.Event()
    watch.post_at(2.0, lambda: done.append(2))
    watch.post_at(1.0, lambda: done.append(1))
    watch.post_at(3.0, end.set)
    watch.post_at(-1.0, lambda: done.append(0))
    watch.post(past.set)
    assert past.wait(PATIENCE)
    assert done == [0]
    now[0] = 10.0
    watch.post(lambda: None)
    assert end.wait(PATIENCE)
    assert done == [0, 1, 2]
    watch.remove_user()


def test_it_sleeps_until_the_next_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither shorter nor longer; without one until something is posted, and never for ages."""
    sleeps: list[float | None] = []

    class Inbox(SimpleQueue[Any]):
        """A queue that notes for how long somebody waits for it."""

        def get(self, block: bool = True, timeout: float | None = None) -> Any:  # noqa: FBT002  (as it is)
            sleeps.append(timeout)
            return super().get(block, timeout)

    monkeypatch.setattr(watch_module, "SimpleQueue", Inbox)
    monkeypatch.setattr(watch_module, "monotonic", lambda: 100.0)
    watch = Watch(Faults())
    watch.add_user()
    end = threading.Event()
    watch.post_at(1e9, lambda: None)
    watch.post_at(110.25, lambda: None)
    watch.post_at(100.5, lambda: None)
    watch.post(end.set)
    watch.start()
    wait(end)
    assert sleeps[:4] == [None, 3600.0, 10.25, 0.5]
    watch.remove_user()


def test_who_waits_for_it_waits_no_longer_than_asked(watch: Watch) -> None:
    """A job may take long."""
    end = threading.Event()
    watch.post(lambda: wait(end))
    assert not watch.drain(0.0)
    end.set()
    assert watch.drain(PATIENCE)
    watch.remove_user()


def test_the_thread_has_a_name_and_ends_with_the_program(watch: Watch) -> None:
    """So that a list of threads tells whose it is, and nobody has to stop it."""
    threads: list[threading.Thread] = []
    end = threading.Event()
    watch.start()
    watch.post(lambda: threads.append(threading.current_thread()))
    watch.post(end.set)
    wait(end)
    assert [(thread.name, thread.daemon) for thread in threads] == [("leakguard", True)]
    watch.remove_user()


def test_a_job_that_raises_is_logged_once(watch: Watch, caplog: pytest.LogCaptureFixture) -> None:
    """The thread outlives any fault."""

    def fail() -> None:
        raise RuntimeError("a fault")

    end = threading.Event()
    watch.start()
    watch.post(fail)
    watch.post(fail)
    watch.post(end.set)
    wait(end)
    assert [record.getMessage() for record in caplog.records] == [
        "leakguard's watch raised RuntimeError; the application is not affected. Please report it."
    ]
    watch.remove_user()


def test_the_thread_goes_with_the_last_guard(watch: Watch) -> None:
    """What is posted until then is done; afterwards it can be started anew."""
    threads: list[threading.Thread] = []
    watch.add_user()
    watch.start()
    watch.remove_user()
    assert watch.started
    last = threading.Event()
    watch.post(lambda: threads.append(threading.current_thread()))
    watch.post(last.set)
    watch.remove_user()
    wait(last)
    assert not watch.started
    watch.add_user()
    end = threading.Event()
    watch.post(end.set)
    watch.start()
    wait(end)
    threads[0].join(PATIENCE)
    assert not threads[0].is_alive()
    watch.remove_user()


def test_a_start_within_a_start_is_one(watch: Watch, monkeypatch: pytest.MonkeyPatch) -> None:
    """The collector may run a `__del__` that opens a session anywhere, also while it starts."""
    started: list[threading.Thread] = []
    start = threading.Thread.start

    def interrupted(thread: threading.Thread) -> None:
        watch.start()
        other = threading.Thread(target=watch.start)  # as the new one may be interrupted, too
        start(other)
        other.join(PATIENCE)
        assert not other.is_alive()
        started.append(thread)
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", interrupted)
    watch.start()
    end = threading.Event()
    watch.post(end.set)
    wait(end)
    assert len(started) == 1
    watch.remove_user()


def test_leaving_without_a_start_is_nothing(watch: Watch) -> None:
    """A guard that never had anything to do leaves no thread."""
    watch.remove_user()
    assert not watch.started


def test_the_thread_keeps_no_context_alive(watch: Watch) -> None:
    """It is started by some request, and must not keep that request's variables."""
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable")
    variable.set("of the request")
    seen: list[str | None] = []
    end = threading.Event()
    watch.start()
    watch.post(lambda: seen.append(variable.get(None)))
    watch.post(end.set)
    wait(end)
    assert seen == [None]
    watch.remove_user()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="cannot run in CI: this system does not fork")
@pytest.mark.filterwarnings("ignore:This process.*is multi-threaded:DeprecationWarning")
def test_a_child_of_a_fork_has_a_thread_of_its_own(watch: Watch) -> None:
    """Threads do not survive a fork: the child starts its own when it needs one."""
    watch.start()
    child = os.fork()
    if child == 0:  # pragma: no cover - in the child, where nobody measures
        end = threading.Event()
        stopped = not watch.started
        watch.start()
        watch.post(end.set)
        os._exit(0 if stopped and end.wait(PATIENCE) else 1)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    watch.remove_user()


def test_what_is_due_is_done_however_much_is_posted(watch: Watch) -> None:
    """News that never ceases does not put off a deadline."""
    end = threading.Event()

    def again() -> None:
        if not end.is_set():
            watch.post(again)

    watch.start()
    watch.post(again)
    watch.post_at(monotonic() + 0.01, end.set)
    wait(end)
    watch.remove_user()


def test_what_is_due_at_the_same_time_is_done_in_order(watch: Watch) -> None:
    """And jobs themselves are never compared."""
    done: list[int] = []
    end = threading.Event()
    when = monotonic() + 0.01
    for number in range(5):
        watch.post_at(when, partial(done.append, number))
    watch.post_at(when, end.set)
    watch.start()
    wait(end)
    assert done == [0, 1, 2, 3, 4]
    watch.remove_user()


@pytest.mark.parametrize("seconds", [1e6, 1e12, float("inf")])
def test_a_deadline_in_the_far_future_does_no_harm(watch: Watch, seconds: float) -> None:
    """The system refuses to wait that long; `late_after` may be any number."""
    end = threading.Event()
    watch.start()
    watch.post_at(monotonic() + seconds, lambda: None)
    watch.post(end.set)
    wait(end)
    watch.remove_user()


def test_a_job_that_wants_to_end_the_program_is_a_fault_like_any_other(
    watch: Watch, caplog: pytest.LogCaptureFixture
) -> None:
    """There is no request to pass it to, and the thread is still needed."""
    end = threading.Event()
    watch.start()
    watch.post(sys.exit)
    watch.post(end.set)
    wait(end)
    assert "leakguard's watch raised SystemExit" in caplog.text
    watch.remove_user()


def test_a_thread_that_cannot_start_is_tried_again(
    watch: Watch, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process may have too many threads for a while; the request that asked does not notice."""

    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        watch.start()
    assert not watch.started
    assert [record.getMessage() for record in caplog.records] == [
        (
            "the start of leakguard's watch raised RuntimeError; the application is not affected. "
            "It is tried again."
        )
    ]
    end = threading.Event()
    watch.post(end.set)
    watch.start()
    wait(end)
    watch.remove_user()


def test_a_thread_that_somebody_has_replaced_is_not_waited_for(
    watch: Watch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a test does that starts none; the next one can."""

    def start(_: threading.Thread) -> None:
        """Do nothing."""

    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", start)
        assert not watch.drain(PATIENCE)
        assert not watch.started
    assert watch.drain(PATIENCE)


def test_after_a_fork_it_begins_anew(watch: Watch) -> None:
    """What the child of a fork does first: it has neither the thread nor what was posted."""
    watch.start()
    watch.post_at(monotonic() + PATIENCE, lambda: None)
    watch._forget()  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]  # as the fork's child does
    assert not watch.started
    end = threading.Event()
    watch.start()
    watch.post(end.set)
    wait(end)
    watch.remove_user()
