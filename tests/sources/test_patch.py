"""A method of somebody else's class is wrapped and given back without a trace."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from leakguard.sources.patch import Patch, Placement, Wrap


class Door:
    """A class with a method to wrap."""

    def __init__(self) -> None:
        self.heard: list[str] = []

    def open(self, how: str) -> str:
        """Open the door."""
        return f"opened {how}"


ORIGINAL = vars(Door)["open"]


def listening(name: str) -> Wrap:
    """Return what makes a wrapper that notes `name` at each call."""

    def wrap(original: Callable[..., Any], placement: Placement) -> Callable[..., Any]:
        def wrapper(self: Door, *args: Any, **kwargs: Any) -> Any:
            if placement.active or placement.resume():
                self.heard.append(name)
            return original(self, *args, **kwargs)

        return wrapper

    return wrap


class Foreign:
    """Somebody else, who wraps the same method the usual way."""

    def __init__(self) -> None:
        self.saved = vars(Door)["open"]

        def wrapper(door: Door, *args: Any, **kwargs: Any) -> Any:
            door.heard.append("foreign")
            return self.saved(door, *args, **kwargs)

        setattr(Door, "open", wrapper)  # noqa: B010  (as they do)

    def undo(self) -> None:
        """Put back what was there before."""
        setattr(Door, "open", self.saved)  # noqa: B010  (as they do)


@pytest.fixture
def patch() -> Patch:
    return Patch(Door, "open", listening("ours"))


@pytest.fixture(autouse=True)
def door() -> Any:
    yield Door()
    setattr(Door, "open", ORIGINAL)  # noqa: B010  (whatever a failed test left)


def heard(door: Door) -> list[str]:
    door.heard.clear()
    assert door.open("slowly") == "opened slowly"
    return door.heard


def test_a_wrapper_is_placed_and_removed(patch: Patch, door: Door) -> None:
    """After removal the class has the very function that it had."""
    patch.place()
    assert heard(door) == ["ours"]
    assert Door.open.__doc__ == ORIGINAL.__doc__
    patch.remove()
    assert vars(Door)["open"] is ORIGINAL


def test_placing_twice_wraps_once(patch: Patch, door: Door) -> None:
    """A second placement does nothing."""
    patch.place()
    patch.place()
    assert heard(door) == ["ours"]
    patch.remove()
    assert vars(Door)["open"] is ORIGINAL


def test_the_instance_may_be_given_by_keyword(patch: Patch, door: Door) -> None:
    """As `functools.partial(Door.open, self=door)` does."""
    patch.place()
    assert Door.open(self=door, how="slowly") == "opened slowly"
    assert door.heard == ["ours"]


def test_removing_what_was_never_placed_does_nothing(patch: Patch) -> None:
    """Removal needs no placement."""
    patch.remove()
    assert vars(Door)["open"] is ORIGINAL


def test_a_wrapper_around_a_foreign_one_gives_that_back(patch: Patch, door: Door) -> None:
    """Somebody who wrapped before keeps their wrapper."""
    foreign = Foreign()
    theirs = vars(Door)["open"]
    patch.place()
    assert heard(door) == ["ours", "foreign"]
    patch.remove()
    assert vars(Door)["open"] is theirs
    foreign.undo()
    assert vars(Door)["open"] is ORIGINAL


def test_a_wrapper_inside_a_foreign_one_falls_silent(patch: Patch, door: Door) -> None:
    """Somebody who wrapped after keeps working; ours does nothing, and goes when it can."""
    patch.place()
    foreign = Foreign()
    assert heard(door) == ["foreign", "ours"]
    patch.remove()
    assert heard(door) == ["foreign"]
    foreign.undo()
    assert heard(door) == []
    assert vars(Door)["open"] is ORIGINAL


def test_a_wrapper_inside_a_foreign_one_is_not_doubled(patch: Patch, door: Door) -> None:
    """Placed again around a foreign wrapper, it notes each call once."""
    patch.place()
    foreign = Foreign()
    patch.remove()
    patch.place()
    assert heard(door) == ["ours", "foreign"]
    patch.remove()
    foreign.undo()
    heard(door)
    assert vars(Door)["open"] is ORIGINAL


def test_a_wrapper_that_somebody_took_out_is_placed_anew(patch: Patch, door: Door) -> None:
    """Somebody who restores what they once saved takes ours out; the next placement works."""
    foreign = Foreign()
    patch.place()
    foreign.undo()
    patch.remove()
    patch.place()
    assert heard(door) == ["ours"]
    patch.remove()
    assert vars(Door)["open"] is ORIGINAL
