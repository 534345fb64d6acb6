"""Stacks across greenlets, with greenlet and without."""

from __future__ import annotations

import sys
from types import FrameType

import pytest
from greenlet import greenlet

from leakguard.sources.sqlalchemy import greenlets
from leakguard.sources.sqlalchemy.greenlets import parent_stacks


def test_the_stacks_of_all_parents_are_given() -> None:
    """Innermost first; one that has not begun has none."""

    def innermost() -> list[FrameType]:
        return list(parent_stacks())

    assert list(parent_stacks()) == []
    frames = greenlet(lambda: greenlet(innermost).switch()).switch()
    assert [frame.f_code.co_name for frame in frames][-1] == (
        "test_the_stacks_of_all_parents_are_given"
    )

    def given(frames: list[FrameType]) -> list[FrameType]:
        return frames

    unstarted = greenlet(given)
    frames = greenlet(innermost, unstarted).switch()
    assert [frame.f_code.co_name for frame in frames][:1] == (
        ["test_the_stacks_of_all_parents_are_given"]
    )


def test_without_greenlet_there_are_no_other_stacks(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is optional, as it is for SQLAlchemy."""
    monkeypatch.setitem(sys.modules, "greenlet", None)
    assert greenlets._greenlet_module() is None  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]  # to do without it
    monkeypatch.setattr(greenlets, "current_greenlet", greenlets.current_greenlet_of(None))
    assert list(parent_stacks()) == []
    assert greenlets.current_greenlet().parent is None
