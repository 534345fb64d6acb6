"""The collector is kept from work while a stack is read, and goes on after it."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest

from leakguard.core.collector import CollectorPause


@pytest.fixture
def pause() -> CollectorPause:
    return CollectorPause(needed=True)


@pytest.fixture(autouse=True)
def _collector_as_before() -> Iterator[None]:
    yield
    gc.enable()


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
