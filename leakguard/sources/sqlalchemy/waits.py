"""Waits: how long checkouts take, which time out, and who had the connections then.

No event precedes a checkout, and none follows one that times out: `Pool.connect` is wrapped
while a guard is installed.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from sys import modules
from threading import get_ident
from types import FrameType
from typing import TYPE_CHECKING, Any, Final, NamedTuple
from weakref import WeakKeyDictionary, WeakSet, ref

from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.pool import Pool

from leakguard.core.callsite import capture
from leakguard.core.clock import monotonic
from leakguard.core.holder import current_work
from leakguard.core.lock import LOCK
from leakguard.core.pool import Wait
from leakguard.core.quick import new_tuple
from leakguard.core.scope import AMBIENT, current_scope
from leakguard.core.stacks import Stack, call_site, greenlet_stack, thread_stack
from leakguard.core.survey import Waiter, survey
from leakguard.core.tasks import running_loop
from leakguard.core.workers import Workers
from leakguard.sources.anyio import thread_limit
from leakguard.sources.patch import Patch, Placement
from leakguard.sources.sqlalchemy.activity import waits_for_pool
from leakguard.sources.sqlalchemy.checkouts import Attribution, Checkouts
from leakguard.sources.sqlalchemy.greenlets import current_greenlet, parent_stacks
from leakguard.sources.sqlalchemy.listeners import report_fault
from leakguard.sources.sqlalchemy.pools import is_async, pool_fill, pool_limits
from leakguard.sources.tracing import TRACING, note_span

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop

    from sqlalchemy.pool import PoolProxiedConnection

    from leakguard.core.exhaustion import Exhaustion
    from leakguard.core.guard import Guard
    from leakguard.core.scope import Scope


class _UnderWay(NamedTuple):
    """A checkout that is under way."""

    pool: int
    """The `id()` of the pool."""
    began: float
    scope: Scope | None
    thread: int
    greenlet: ref[Any]


class _Survey(NamedTuple):
    """What was found out of an exhausted pool.

    For all checkouts that time out at about the same time: they are many.
    """

    good_until: float
    exhaustion: Exhaustion


class Waits:
    """Takes the time of every checkout, and explains those that time out."""

    def __init__(self, checkouts: Checkouts) -> None:
        self._checkouts = checkouts
        self._under_way: dict[int, tuple[int, float, Scope | None, int, ref[Any]]] = {}
        self._surveys: WeakKeyDictionary[Pool, _Survey] = WeakKeyDictionary()
        self._explained: WeakSet[PoolTimeoutError] = WeakSet()
        patch = Patch(Pool, "connect", self._wrap_connect)
        self.place, self.remove = patch.place, patch.remove

    def _wrap_connect(
        self, original: Callable[[Pool], PoolProxiedConnection], placement: Placement
    ) -> Callable[[Pool], PoolProxiedConnection]:
        under_way, timed_out = self._under_way, self._timed_out
        out = self._checkouts.out

        def connect(self: Pool) -> PoolProxiedConnection:
            if not (placement.active or placement.resume()):
                return original(self)
            began = monotonic()
            # Not yet an `_UnderWay`, which takes as long to make as all the rest of this.
            waiting = (id(self), began, current_scope.get(), get_ident(), ref(current_greenlet()))
            number = id(waiting)
            under_way[number] = waiting
            try:
                proxy = original(self)
            except PoolTimeoutError as error:
                timed_out(self, error, began)
                raise
            finally:
                under_way.pop(number, None)
            hold = out.get(id(proxy))
            if hold is not None:
                wait = new_tuple(Wait, (hold.pool, monotonic() - began, False))
                hold.guard.observers.waited(wait)
            return proxy

        return connect

    def _timed_out(self, pool: Pool, error: PoolTimeoutError, began: float) -> None:
        # Not that of another pool, which somebody asked in order to connect.
        if error in self._explained:
            return
        self._explained.add(error)
        try:
            whose = self._checkouts.attribution_of(pool)
            if whose is not None:
                whose.guard.observers.waited(Wait(whose.pool, monotonic() - began, timed_out=True))
                self._explain(pool, whose, error, began)
        except Exception as fault:  # noqa: BLE001  (the caller must get its own error)
            report_fault(fault)

    def _explain(
        self, pool: Pool, whose: Attribution, error: PoolTimeoutError, began: float
    ) -> None:
        """Add to the error who has the connections, and tell the guard."""
        frame = sys._getframe(2)  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]  # documented
        waited = monotonic() - began
        if whose.scope is not None and TRACING in modules:
            note_span(whose.scope)
        loop = None if is_async(pool) else running_loop()
        exhaustion = replace(
            self._survey(pool, whose.guard, frame),
            blocks_loop=loop is not None and self._needs(pool, loop),
            threads=thread_limit(),
        )
        finding = whose.guard.exhausted(exhaustion, whose.scope, whose.pool, waited)
        error.add_note(str(finding))

    def _needs(self, pool: Pool, loop: AbstractEventLoop) -> bool:
        """Return whether somebody has a connection and needs the loop to go on."""
        return any(hold.needs(loop) for hold in self._checkouts.of_pool(pool))

    def _survey(self, pool: Pool, guard: Guard, frame: FrameType) -> Exhaustion:
        with LOCK:  # many time out at once: one makes it, and the others wait for that
            began = monotonic()
            known = self._surveys.get(pool)
            if known is not None and began < known.good_until:
                return known.exhaustion
            exhaustion = self._make_survey(pool, guard, frame)
            ended = monotonic()
            good_for = max(_SURVEY_AGE, _SURVEY_PAUSE * (ended - began))
            self._surveys[pool] = _Survey(ended + good_for, exhaustion)
            return exhaustion

    def _make_survey(self, pool: Pool, guard: Guard, frame: FrameType) -> Exhaustion:
        workers = Workers()
        waiters = self._waiters(pool, guard.settings.frames, frame, workers)
        return survey(
            self._checkouts.of_pool(pool), waiters, pool_limits(pool), pool_fill(pool)[0], workers
        )

    def forget(self) -> None:
        """Forget the checkouts of other threads: this is the child of a fork."""
        self._under_way.clear()
        self._surveys.clear()

    def _waiters(
        self, pool: Pool, frames: int, frame: FrameType, workers: Workers
    ) -> Iterator[Waiter]:
        now = monotonic()
        own = get_ident(), ref(current_greenlet())
        every = [_UnderWay(*one) for one in self._under_way.copy().values()]
        under_way = [one for one in every if one.pool == id(pool)]
        for number, one in enumerate(under_way):
            scope = one.scope or AMBIENT.scope
            if (one.thread, one.greenlet) == own:
                opener = None if scope is None else scope.opener
                site = capture(frame, frames, parent_stacks, opener)
                yield Waiter(scope, now - one.began, site, current_work())
            elif number >= _LOOKED_AT:
                yield Waiter(scope, now - one.began, None)
            else:
                work, stack = _work_of(one, workers)
                waits = not stack or waits_for_pool(stack)
                site = call_site(stack, frames)
                yield Waiter(scope, now - one.began, site, work, has_one=not waits)


def _work_of(waiting: _UnderWay, workers: Workers) -> tuple[int | None, Stack]:
    """Find who waits, as `current_work` would call it, and where it is."""
    greenlet = waiting.greenlet()
    if greenlet is None:  # it has ended by now
        return None, []
    if greenlet.parent is None:
        return waiting.thread, thread_stack(waiting.thread)
    stack = greenlet_stack(greenlet)
    if not stack or waiting.scope is None:  # it runs, or is nobody's
        return id(greenlet), stack
    task, stack = workers.task_through(waiting.scope, stack[0])
    return id(greenlet if task is None else task), stack


_SURVEY_AGE: Final = 0.1
"""Seconds for which a survey serves the further checkouts that time out, at least ..."""
_SURVEY_PAUSE: Final = 20
"""... and how many times as long as it took."""
_LOOKED_AT: Final = 200
"""Of how many checkouts it is found out at most where they wait."""
