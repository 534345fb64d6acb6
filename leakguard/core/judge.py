"""The judge: applies the verdicts when a scope ends, and again when what it waited for ends."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING, Final

from leakguard.core.faults import FAULTS
from leakguard.core.hold import ConnectionHold, SessionHold, take_out
from leakguard.core.holder import AnyTask, loop_ref, on_done, running_tasks
from leakguard.core.verdict import Fate, Standing, Verdict, judge
from leakguard.core.watch import WATCH

if TYPE_CHECKING:
    from collections.abc import Callable

    from leakguard.core.callsite import CallSite
    from leakguard.core.hold import Hold
    from leakguard.core.holder import Holder, LoopRef
    from leakguard.core.scope import Scope

_UNTIDY_LIMIT: Final = 1000
_LOOK_AGAIN_AFTER: Final = 1.0
"""Seconds between looks at work whose end might pass unnoticed: a thread's, a closed loop's."""


@dataclass(slots=True, eq=False)
class _Wait:
    """A hold that was out when its scope ended and that somebody may yet return."""

    hold: ConnectionHold
    scope: Scope
    loop: LoopRef | None
    announced: bool = False
    """Whether the notice that it outlives its scope was given, or is not due."""
    until: float | None = None
    """When the wait for the other work of the scope ends, by the judge's clock."""
    look_at: float | None = None
    """When the next look is due, by the judge's clock."""


class Judge:
    """Decides on the holds of a guard's scopes, each exactly once."""

    def __init__(
        self,
        late_after: float,
        found: Callable[[Hold, Verdict], None],
        gone: Callable[[Hold], None],
        post_at: Callable[[float, Callable[[], None]], None] = WATCH.post_at,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        """Take what to do with a verdict, and with a hold that is closed without anybody's word.

        `post_at` has something done when the clock has reached a time.
        """
        self._late_after = late_after
        self._found = found
        self._gone = gone
        self._post_at = post_at
        self._clock = clock
        self._waits: dict[Hold, _Wait] = {}
        self._untidy: dict[CallSite | None, None] = {}
        """Where sessions are constructed that nobody closes, not even work that goes on. To look
        at every task of the loop for each of them again would cost every request a lot."""

    def close(self, scope: Scope) -> None:
        """Judge everything that `scope` still has; it has been marked closed."""
        holds = _take_all(scope)
        for hold in holds:
            if isinstance(hold, ConnectionHold):
                _apart(partial(self._close_connection, scope, hold))
        self.tell_notable(scope)
        # Last, because it depends on what became of their connections.
        for hold in holds:
            if isinstance(hold, SessionHold):
                _apart(partial(self._close_session, scope, hold))

    def tell_notable(self, scope: Scope) -> None:
        """Tell what there is to say about connections of the scope that came back."""
        notable, scope.notable = scope.notable, []
        for hold in notable:
            _apart(partial(self._found, hold, judge(_standing(hold, Fate.RETURNED))))

    def dismiss(self, hold: Hold) -> None:
        """Wait for a hold no more: it has come back, or belongs to another scope now."""
        if self._waits:
            self._waits.pop(hold, None)

    def outlived(self, scope: Scope, hold: ConnectionHold) -> None:
        """Follow a hold that was acquired by work that outlived its scope.

        It was not out when the scope ended, so there is nothing to say unless it is lost.
        """
        self._decide(_Wait(hold, scope, loop_ref(), announced=True))

    def collected(self, hold: ConnectionHold) -> None:
        """Decide on a hold that the garbage collector took while it was waited for."""
        self._again(hold)

    def forget(self) -> None:
        """Wait for nothing any more."""
        self._waits.clear()

    def _close_connection(self, scope: Scope, hold: ConnectionHold) -> None:
        session = hold.session
        if hold.collected:
            if session is not None:
                session.connection_lost = True
            self._found(hold, judge(_standing(hold, Fate.COLLECTED)))
        elif _came_back(hold) or not hold.open:
            self._gone(hold)
            self._found(hold, judge(_standing(hold, Fate.RETURNED)))
        else:
            if session is not None:
                session.connection_lost = True
            self._decide(_Wait(hold, scope, loop_ref()))

    def _close_session(self, scope: Scope, hold: SessionHold) -> None:
        if not hold.collected and not hold.open:
            return
        lost = hold.connection_lost
        holder_running = not lost and hold.holder is not None and hold.holder.running()
        # Asked last: it takes a look at every task of the loop.
        known = lost or holder_running or hold.collected or hold.site in self._untidy
        standing = Standing(
            "session",
            Fate.OUT,
            holder_running=holder_running,
            others_running=not known and bool(_running(scope, loop_ref())),
            with_connection=lost,
        )
        verdict = judge(standing)
        if verdict.kind is not None and len(self._untidy) < _UNTIDY_LIMIT:
            self._untidy[hold.site] = None
        self._found(hold, verdict)

    def _decide(self, wait: _Wait) -> None:
        """Judge a hold that was out when its scope ended."""
        hold = wait.hold
        running = None if hold.collected else _running_holder(hold)
        hold.outlived_by = hold.outlived_by if running is None else str(running)
        settled = running is not None or hold.collected
        others = [] if settled else _running(wait.scope, wait.loop)
        # Whoever constructed the session before the scope began may be around it, as an outer
        # middleware is, and be about to close it.
        expected = bool(others) or (hold.session_from_outside and not settled)
        now = self._clock()
        if expected and wait.until is None:
            wait.until = now + self._late_after
        waited = wait.until is not None and now >= wait.until
        if expected and waited:
            hold.waited = self._late_after
        verdict = judge(
            _standing(
                hold,
                Fate.OUT,
                holder_running=running is not None,
                others_running=expected,
                waited=waited,
            )
        )
        if not (verdict.wait and wait.announced):
            wait.announced = True
            self._found(hold, verdict)
        if verdict.wait:
            self._wait(wait, others)

    def _wait(self, wait: _Wait, others: list[AnyTask]) -> None:
        """Have the hold judged again when the work that may return it has ended."""
        hold = wait.hold
        self._waits[hold] = wait
        when = self._clock() + _LOOK_AGAIN_AFTER if wait.until is None else wait.until
        if wait.look_at is None or when < wait.look_at:
            wait.look_at = when
            self._post_at(when, partial(self._look, wait))
        for holder in hold.holders:
            holder.on_end(hold, self._again)
        for task in others:
            on_done(task, hold, self._again)

    def _look(self, wait: _Wait) -> None:
        wait.look_at = None
        self._again(wait.hold)

    def _again(self, hold: Hold) -> None:
        # Taking it out is atomic: where the loop and the watch come at once, one of them decides.
        wait = self._waits.pop(hold, None)
        if wait is None or _came_back(hold):
            return
        if hold.collected or hold.open:
            self._decide(wait)
        else:
            self._gone(hold)


def _apart(decide: Callable[[], None]) -> None:
    """Decide on one hold; a fault in it takes no other hold's verdict with it."""
    try:
        decide()
    except Exception as error:  # noqa: BLE001  (the other holds' verdicts are due all the same)
        FAULTS.report("leakguard's judge", error, "A verdict is lost. Please report it.")


def _running_holder(hold: ConnectionHold) -> Holder | None:
    return next((holder for holder in hold.holders if holder.running()), None)


def _came_back(hold: Hold) -> bool:
    return hold.released_monotonic is not None and not hold.collected


def _take_all(scope: Scope) -> list[Hold]:
    """Take the holds out of the scope, each unless somebody returns it at this moment."""
    holds = list(scope.open_holds.copy())
    return [hold for hold in holds if take_out(scope.open_holds, hold)]


def _running(scope: Scope, ref: LoopRef | None) -> list[AnyTask]:
    """List the tasks of a loop that `scope` started and that still run."""
    loop = None if ref is None else ref()
    return [] if loop is None else running_tasks(scope, loop)


def _standing(
    hold: ConnectionHold,
    fate: Fate,
    *,
    holder_running: bool = False,
    others_running: bool = False,
    waited: bool = False,
) -> Standing:
    return Standing(
        "connection",
        fate,
        holder_running=holder_running,
        others_running=others_running,
        waited=waited,
        late=hold.late_by is not None,
        nested=hold.nested,
        sync_in_async=hold.sync_in_async,
    )
