"""Deliberate use is sayable, wherever the block is entered and left."""

from __future__ import annotations

import contextvars
from typing import Any

import pytest

from leakguard import LeakGuardError, SettingsError, allow
from tests.core.fakes import FakeConnection, installed, make_guard, take
from tests.support import Recorder, drain_watch


def test_the_block_s_end_is_its_end() -> None:
    """Also within another one, whose reason is in force again."""
    guard = installed()
    with allow("outer"):
        with allow("inner"):
            assert take(guard).allowed == "inner"
        assert take(guard).allowed == "outer"
    assert take(guard).allowed is None
    guard.uninstall()


def test_a_block_that_is_left_in_a_copy_of_its_context_ends_there() -> None:
    """In the copy nothing is allowed any more."""
    guard = installed()
    block = allow("streams the export")
    entered = contextvars.copy_context()
    entered.run(block.__enter__)
    copy = entered.copy()
    assert copy.run(take, guard).allowed == "streams the export"
    copy.run(block.__exit__, None, None, None)
    assert copy.run(take, guard).allowed is None
    guard.uninstall()


def test_a_block_that_is_left_elsewhere_changes_nothing_there() -> None:
    """What is in force in the other context is none of its business."""
    guard = installed()
    block = allow("streams the export")
    contextvars.copy_context().run(block.__enter__)
    with allow("something else"):
        block.__exit__(None, None, None)
        assert take(guard).allowed == "something else"
    guard.uninstall()


def test_blocks_may_end_in_the_order_in_which_they_began() -> None:
    """As in two generators that a task goes through by turns."""
    guard = installed()
    first, second = allow("first"), allow("second")
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert take(guard).allowed == "second"
    second.__exit__(None, None, None)
    assert take(guard).allowed is None
    guard.uninstall()


@pytest.mark.parametrize(
    "order, after", [((1, 2), "0"), ((0, 1, 2), None)], ids=["two of three", "all three"]
)
def test_a_block_that_ends_after_those_around_it_ends_their_reasons_too(
    order: tuple[int, ...], after: str | None
) -> None:
    """What is in force then is the reason of the nearest block that has not ended."""
    guard = installed()
    blocks = [allow(str(number)) for number in range(3)]
    for block in blocks:
        block.__enter__()
    for number in order:
        blocks[number].__exit__(None, None, None)
    assert take(guard).allowed == after
    blocks[0].__exit__(None, None, None)
    guard.uninstall()


def test_leaving_a_block_that_was_not_entered_is_nothing() -> None:
    """There is no reason to end."""
    guard = installed()
    with allow("streams the export"):
        allow("something else").__exit__(None, None, None)
        assert take(guard).allowed == "streams the export"
    guard.uninstall()


def test_a_block_is_entered_once() -> None:
    """A second entry would lose the block around it."""
    block = allow("streams the export")
    with block:
        pass
    with pytest.raises(LeakGuardError, match=r"'streams the export'.*call allow"), block:
        pass


def test_a_block_is_no_decorator() -> None:
    """It would exempt nothing of a coroutine function; the error says what to write."""
    decorate: Any = allow("streams the export")

    async def export() -> None: ...

    with pytest.raises(SettingsError) as raised:
        decorate(export)
    assert str(raised.value) == (
        f"function={export!r} is not allowed: allow('streams the export') is no decorator: "
        "write `with allow(...):` in the function"
    )
    assert raised.value.value is export


def test_work_that_was_started_in_a_block_stays_in_it() -> None:
    """Also when the block has ended, and after another one within that work."""
    guard = installed()
    with allow("streams the export"):
        started = contextvars.copy_context()

    def work() -> list[str | None]:
        with allow("something else"):
            inner = take(guard).allowed
        return [inner, take(guard).allowed]

    assert started.run(work) == ["something else", "streams the export"]
    guard.uninstall()


def test_what_is_allowed_is_exempt(recorder: Recorder) -> None:
    """Only what is acquired inside the block."""
    guard = installed(recorder)
    with guard.scope("job") as scope:
        with allow("streams the export"):
            exempt = take(guard, scope)
        accused = take(guard, scope)
    assert exempt.allowed == "streams the export"
    assert [finding.hold for finding in recorder.findings] == [accused]
    guard.uninstall()


@pytest.mark.parametrize("way", ["give_back", "collect"])
@pytest.mark.parametrize("scoped", [True, False])
def test_nothing_is_said_of_what_is_allowed_and_out_no_more(
    recorder: Recorder, way: str, scoped: bool
) -> None:
    """There is no notice, and whoever left it to the garbage collector meant to."""
    guard = installed(recorder)
    with guard.scope("job") as scope:
        with allow("streams the export"):
            exempt = take(guard, scope if scoped else None)
        exempt.nested = True
        getattr(exempt, way)()
        drain_watch()
    assert recorder.holds_released == [exempt]
    assert recorder.findings == []
    guard.uninstall()


@pytest.mark.parametrize("reason", ["", "  ", None, 7])
def test_allow_needs_a_reason(reason: object) -> None:
    """The next reader needs it."""
    with pytest.raises(SettingsError) as raised, allow(reason):  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]  # the mistake
        raise AssertionError
    assert str(raised.value) == (
        f"reason={reason!r} is not allowed: must say in a few words why the use is deliberate"
    )


def test_a_reason_that_a_source_gave_is_kept(recorder: Recorder) -> None:
    """A connection is exempt because its session is, wherever it is checked out."""
    guard = installed(recorder)
    with guard.scope("job") as scope:
        hold = FakeConnection(guard, scope)
        hold.allowed = "its session is exempt"
        with allow("another reason"):
            guard.acquired(hold)
    assert hold.allowed == "its session is exempt"
    assert recorder.findings == []
    guard.uninstall()


@pytest.mark.parametrize("knows", [True, False], ids=["a copy", "a strange one"])
def test_allow_may_end_in_another_context(knows: bool) -> None:
    """Frameworks run the halves of a synchronous dependency in copies of the context."""
    guard = make_guard()
    block = allow("streams the export")
    entered = contextvars.copy_context()
    entered.run(block.__enter__)
    left = entered.copy() if knows else contextvars.Context()
    left.run(block.__exit__, None, None, None)
    assert left.run(take, guard).allowed is None
