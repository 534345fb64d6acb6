"""What happens seldom is done one at a time, also after a fork."""

from __future__ import annotations

import os
import threading

import pytest

from leakguard.core.guard import Guard
from leakguard.core.lock import LOCK
from tests.core.fakes import make_guard
from tests.support import PATIENCE


@pytest.mark.skipif(not hasattr(os, "fork"), reason="cannot run in CI: this system does not fork")
@pytest.mark.filterwarnings("ignore:This process.*is multi-threaded:DeprecationWarning")
def test_a_child_of_a_fork_does_not_wait_for_a_thread_of_its_parent() -> None:
    """A fork waits until the lock is free, so that the child does not inherit it taken."""
    taken, let_go = threading.Event(), threading.Event()

    def hold_it() -> None:
        with LOCK:
            taken.set()
            assert let_go.wait(PATIENCE)

    thread = threading.Thread(target=hold_it)
    thread.start()
    assert taken.wait(PATIENCE)
    threading.Timer(0.01, let_go.set).start()
    child = os.fork()
    if child == 0:  # pragma: no cover - in the child, where nobody measures
        free: list[bool] = []
        other = threading.Thread(target=lambda: free.append(LOCK.acquire(timeout=PATIENCE)))
        other.start()
        other.join()
        os._exit(0 if free == [True] else 1)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    thread.join()
    with LOCK:  # and the parent has let go of it, too
        pass


class SlowSource:
    """A source that takes its time to attach, and notes who came meanwhile."""

    def __init__(self) -> None:
        self.attaching = threading.Event()
        self.detached = threading.Event()
        self.disturbed: bool | None = None

    def attach(self, guard: Guard) -> None:
        """Attach, unless somebody detaches within a moment."""
        self.attaching.set()
        self.disturbed = self.detached.wait(0.05)

    def detach(self, guard: Guard) -> None:
        """Note it."""
        self.detached.set()

    def dismiss(self, guard: Guard) -> None:
        """Do nothing."""


def test_guards_come_and_go_one_at_a_time() -> None:
    """The watch takes out the guard of a middleware that is gone while another one goes in."""
    source = SlowSource()
    gone, new = make_guard(sources=[source]).install(), make_guard(sources=[source])
    source.attaching.clear()
    thread = threading.Thread(target=new.install)
    thread.start()
    assert source.attaching.wait(PATIENCE)
    gone.uninstall()
    thread.join()
    assert source.disturbed is False
    new.uninstall()
