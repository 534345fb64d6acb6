"""A look at all tasks of a loop is dear where they are many, and knows it."""

from __future__ import annotations

import asyncio
import contextvars

from leakguard import Scope
from leakguard.core.looks import MANY, Looks
from leakguard.core.scope import current_scope
from tests.core.fakes import ended_scope, make_guard


def start_within(scope: Scope) -> asyncio.Task[object]:
    """Start a task that never ends in the context of a scope."""

    def start() -> asyncio.Task[object]:
        current_scope.set(scope)
        return asyncio.create_task(asyncio.Event().wait())

    return contextvars.copy_context().run(start)


def test_a_look_finds_the_tasks_that_a_scope_started() -> None:
    """Those of one scope, or all scopes that have some."""

    async def main() -> None:
        guard = make_guard()
        scope, other, idle = (ended_scope(guard) for _ in range(3))
        tasks = [start_within(one) for one in (scope, other)]
        looks, loop = Looks(), asyncio.get_running_loop()
        assert looks.started(scope, loop) == tasks[:1]
        assert looks.started(idle, loop) == []
        assert looks.for_all()(loop) == {scope, other}
        for task in tasks:
            task.cancel()

    asyncio.run(main())


def test_looks_at_many_tasks_take_a_twentieth_of_the_time() -> None:
    """While there are few, a look costs next to nothing; the last one tells."""

    async def main() -> None:
        looks, loop = Looks(lambda: 100.0), asyncio.get_running_loop()
        scope = ended_scope(make_guard())
        tasks = [asyncio.create_task(asyncio.sleep(1000)) for _ in range(MANY)]
        assert (looks.dear, looks.next_at) == (False, 100.0)
        looks.started(scope, loop)
        assert not looks.dear
        tasks.append(asyncio.create_task(asyncio.sleep(1000)))
        looks.for_all()(loop)
        assert looks.dear
        assert looks.next_at == 100.0 + 101 * 20e-6
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        looks.for_all()(loop)
        assert not looks.dear

    asyncio.run(main())
