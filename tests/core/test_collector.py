"""Where the collector works is known, and it is kept from work while a stack is read."""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator

import pytest

from leakguard.core.collector import Collector, CollectorPause
from tests.support import PATIENCE


@pytest.fixture
def pause() -> CollectorPause:
    return CollectorPause(needed=True)


@pytest.fixture(autouse=True)
def _collector_as_before() -> Iterator[None]:
    yield
    gc.enable()


def test_it_is_listened_to_while_anybody_wants_to_know() -> None:
    """Once for all of them, and as often as somebody comes after the last has gone."""
    before = gc.callbacks.copy()
    collector = Collector()
    for _ in range(2):
        collector.add_user()
        collector.add_user()
        assert len(gc.callbacks) == len(before) + 1
        collector.remove_user()
        assert len(gc.callbacks) == len(before) + 1
        collector.remove_user()
        assert gc.callbacks == before


def test_it_is_known_in_which_thread_it_runs() -> None:
    """What it calls there may have interrupted anybody; what another thread does has not."""
    here, elsewhere = list[bool](), list[bool]()

    class Cycle:
        def __init__(self) -> None:
            self.cycle = self

        def __del__(self) -> None:
            here.append(collector.runs_here())
            thread = threading.Thread(target=lambda: elsewhere.append(collector.runs_here()))
            thread.start()
            thread.join(PATIENCE)

    collector = Collector()
    collector.add_user()
    Cycle()
    gc.collect()
    here.append(collector.runs_here())
    collector.remove_user()
    assert (here, elsewhere) == ([True, False], [False])


def test_it_is_off_in_the_outermost_block_and_all_within(pause: CollectorPause) -> None:
    """Blocks may be in one another, and in several threads."""
    with pause:
        with pause:
            assert not gc.isenabled()
        assert not gc.isenabled()
    assert gc.isenabled()


def test_a_collector_that_is_off_stays_so(pause: CollectorPause) -> None:
    """An application may have it off, or decide itself when it runs."""
    gc.disable()
    with pause:
        pass
    assert not gc.isenabled()


def test_nothing_is_done_where_python_needs_it_not() -> None:
    """From 3.12 on it does not start in the middle of anything."""
    with CollectorPause(needed=False):
        assert gc.isenabled()


def test_the_child_of_a_fork_has_its_collector(pause: CollectorPause) -> None:
    """Also where a thread that only the parent has read a stack at that moment."""
    pause.__enter__()
    pause.forget_parent()
    assert gc.isenabled()
    pause.forget_parent()  # another child, while nobody reads
    with pause:
        assert not gc.isenabled()
    assert gc.isenabled()
