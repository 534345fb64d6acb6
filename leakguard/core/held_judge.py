"""The judge of connections that are out and idle: looks at what is out while it is out."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from math import inf
from typing import TYPE_CHECKING, Final

from leakguard.core.clock import monotonic
from leakguard.core.faults import apart
from leakguard.core.finding import FindingKind
from leakguard.core.hold import ConnectionHold
from leakguard.core.stacks import first_site
from leakguard.core.verdict import Verdict
from leakguard.core.watch import WATCH
from leakguard.core.workers import Workers

if TYPE_CHECKING:
    from leakguard.core.hold import Hold

_LOOKS: Final = 8
"""How often a connection is looked at before it has been idle for too long."""
_SHORTEST_PAUSE: Final = 0.01
_LONGEST_PAUSE: Final = 5.0
"""Seconds from one look to the next."""


class HeldJudge:
    """Reports each connection that is out and idle for longer than `held_after` seconds, once.

    Nothing tells when a statement ends, so that one that runs is seen by the stack it runs on. A
    connection counts as idle from the first look that finds it so: a report may come an eighth of
    the time late, and never early. While nothing is out, there are no looks.
    """

    def __init__(
        self,
        held_after: float,
        holds: Callable[[], Iterable[Hold]],
        found: Callable[[Hold, Verdict], None],
        post_at: Callable[[float, Callable[[], None]], None] = WATCH.post_at,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        """Take what gives a snapshot of the open holds, and what to do with a verdict."""
        self._held_after = held_after
        self._holds = holds
        self._found = found
        self._post_at = post_at
        self._clock = clock
        self._pause = min(max(held_after / _LOOKS, _SHORTEST_PAUSE), _LONGEST_PAUSE)
        self._next = inf
        self.planned = False
        """Whether there will be a look, so that nobody has to ask for one."""

    def plan(self) -> None:
        """Look after a while, and from then on for as long as a connection is out."""
        self.planned = True
        # Where two plan at once, the later look finds that it is not the one.
        self._next = when = self._clock() + self._pause
        self._post_at(when, partial(self._look, when))

    def forget(self) -> None:
        """Look no more until somebody plans it."""
        self.planned = False
        self._next = inf

    def _look(self, planned_for: float) -> None:
        if planned_for != self._next:
            return
        self.planned = False  # first: whoever takes a connection from now on plans the next look
        out = [hold for hold in self._holds() if isinstance(hold, ConnectionHold)]
        if out:
            self.plan()
        workers = Workers()
        for hold in out:
            if _may_be_judged(hold):
                apart(partial(self._look_at, hold, workers))

    def _look_at(self, hold: ConnectionHold, workers: Workers) -> None:
        now = self._clock()
        used = hold.last_used
        if now - used < self._pause:  # by far the most
            return
        if hold.executing:
            hold.used_monotonic = now
            return
        if hold.idle_since is None or hold.idle_since < used:
            hold.idle_since = used if hold.used_monotonic is None else now
        idle = now - hold.idle_since
        # Whoever works on it may be in the database's code without a statement, as in a commit.
        # It takes longer to see, so that only those are asked that are idle for long.
        if idle < self._held_after / 2:
            return
        stacks = list(workers.stacks(hold))
        if not hold.tells_idleness or hold.used_elsewhere(workers):
            hold.idle_since = now
        elif any(map(hold.occupied_by, stacks)):
            hold.used_monotonic = now
        elif idle >= self._held_after:
            hold.held_reported = True
            hold.now_at = first_site(stacks, hold.guard.settings.frames)
            self._found(hold, Verdict(FindingKind.HELD))


def _may_be_judged(hold: ConnectionHold) -> bool:
    if hold.held_reported or hold.lifelong or hold.allowed is not None:
        return False
    if hold.released_monotonic is not None:
        return False
    # What was out at the end of its scope has a verdict of its own; work that goes on may have
    # taken it since.
    ended = None if hold.scope is None else hold.scope.closed_at
    return ended is None or hold.acquired_monotonic > ended
