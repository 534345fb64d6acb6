"""A scan of all tasks of a loop is expensive where they are many, and knows it."""

from __future__ import annotations

import asyncio
import contextvars

from leakguard.core.task_scan import MANY, TaskScan
from tests.core.fakes import ended_scope, make_guard, start_within


def test_a_scan_finds_the_tasks_that_a_scope_started() -> None:
    """Those of one scope, or all scopes that have some."""

    async def main() -> None:
        guard = make_guard()
        scope, other, idle = (ended_scope(guard) for _ in range(3))
        tasks = [contextvars.copy_context().run(start_within, one) for one in (scope, other)]
        task_scan, loop = TaskScan(), asyncio.get_running_loop()
        assert task_scan.started(scope, loop) == tasks[:1]
        assert task_scan.started(idle, loop) == []
        assert task_scan.shared()(loop) == {scope, other}
        for task in tasks:
            task.cancel()

    asyncio.run(main())


def test_scans_of_many_tasks_take_a_twentieth_of_the_time() -> None:
    """While there are few, a scan costs next to nothing; the last one tells."""

    async def main() -> None:
        task_scan, loop = TaskScan(lambda: 100.0), asyncio.get_running_loop()
        scope = ended_scope(make_guard())
        tasks = [asyncio.create_task(asyncio.sleep(1000)) for _ in range(MANY)]
        assert (task_scan.expensive, task_scan.next_at) == (False, 100.0)
        task_scan.started(scope, loop)
        assert not task_scan.expensive
        tasks.append(asyncio.create_task(asyncio.sleep(1000)))
        task_scan.shared()(loop)
        assert task_scan.expensive
        assert task_scan.next_at == 100.0 + 101 * 20e-6
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        task_scan.shared()(loop)
        assert not task_scan.expensive

    asyncio.run(main())
