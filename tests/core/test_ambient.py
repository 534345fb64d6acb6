"""Whatever is done in no scope of its own is done in the ambient one, where there is one."""

from __future__ import annotations

import asyncio
from contextvars import Context

import pytest

from leakguard.core.process import forget_parent
from leakguard.core.scope import AMBIENT, Scope, scopes_around
from tests.core.fakes import installed, make_guard, take


@pytest.fixture
def ambient(monkeypatch: pytest.MonkeyPatch) -> Scope:
    """Return the ambient scope."""
    scope = Scope(make_guard(), "a test", "test")
    monkeypatch.setattr(AMBIENT, "scope", scope)
    return scope


def test_a_task_of_another_context_belongs_to_it(ambient: Scope) -> None:
    """It may be about to give back what was taken there."""

    async def find() -> list[Scope]:
        task = asyncio.get_running_loop().create_task(asyncio.sleep(0), context=Context())
        found = list(scopes_around(task))
        await task
        return found

    assert asyncio.run(find()) == [ambient]


def test_a_scope_that_begins_in_no_other_one_begins_in_it(ambient: Scope) -> None:
    """As the request of a server that was there before the test."""
    guard = installed()
    with guard.scope("request") as scope, guard.scope("job") as inner:
        assert inner.parent is scope
    assert scope.parent is ambient
    guard.uninstall()


def test_the_child_of_a_fork_has_nothing_of_it(ambient: Scope) -> None:
    """What was out is the parent's to give back."""
    hold = take(ambient.guard, ambient)
    ambient.open_connections[hold] = None
    forget_parent()
    assert not ambient.open_connections
