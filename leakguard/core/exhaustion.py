"""Exhaustion: who had the connections of a pool when a checkout timed out, and who waited."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Final

from leakguard.core.finding import Hint
from leakguard.core.stacks import first_site
from leakguard.core.words import seconds
from leakguard.core.workers import Workers

if TYPE_CHECKING:
    from collections.abc import Sequence

    from leakguard.core.callsite import CallSite
    from leakguard.core.hold import ConnectionHold
    from leakguard.core.scope import Scope


class Use(StrEnum):
    """What becomes of a connection that is out."""

    LEAKED = "leaked"
    """It was reported as leaked."""
    WAITING = "held while its scope waits for another one"
    EXECUTING = "running a statement"
    IDLE = "idle"
    """No statement runs, and none began for long, measured by how long others wait."""
    IN_USE = "in use"
    """Between statements that follow one another."""
    OPENING = "being opened"


@dataclass(frozen=True, slots=True)
class Limits:
    """What a pool allows."""

    size: int | None
    """Connections that it keeps; `None` where its class does not say."""
    overflow: int | None
    """Connections beyond those; `None` where there is no limit."""
    timeout: float | None
    """Seconds that a checkout waits; `None` where its class does not say."""


@dataclass(frozen=True, slots=True)
class Waiter:
    """A checkout that waits, or has waited in vain."""

    scope: Scope | None
    seconds: float
    """How long it has waited."""
    site: CallSite | None
    """Where; `None` where that is not known."""
    has_one: bool = False
    """Whether the pool has a connection for it, which is being opened or looked at."""


@dataclass(frozen=True, slots=True)
class PoolUsers:
    """Connections, or checkouts that wait, which are alike: their scope, line and use."""

    who: str
    """The name of the scope."""
    site: CallSite | None
    """Where the session was constructed, else the connection checked out; or where it waits."""
    use: Use | None
    """`None` for those that wait."""
    count: int
    longest: float
    """Seconds that the first of them is out, or waits."""
    now_at: CallSite | None = None
    """Where those who have it are, most of them."""


@dataclass(frozen=True, slots=True)
class Exhaustion:
    """A pool that has no connection left."""

    limits: Limits
    out: int
    """Connections out."""
    holders: tuple[PoolUsers, ...]
    """Who has them, as far as that is known; the most first."""
    waiters: tuple[PoolUsers, ...]
    """Who waits, the one that gave up included; the most first."""
    blocks_loop: bool
    """Whether the one that gave up waited on the thread of the event loop that those who have the
    connections need to go on."""
    threads: int | None
    """How many threads AnyIO lets work at once; `None` where nobody knows."""

    @property
    def waiting(self) -> int:
        """How many wait."""
        return sum(group.count for group in self.waiters)

    def count(self, *uses: Use) -> int:
        """Count the connections in these uses."""
        return sum(group.count for group in self.holders if group.use in uses)

    def largest(self, *uses: Use) -> PoolUsers | None:
        """Return the largest group of connections in these uses."""
        return next((group for group in self.holders if group.use in uses), None)


NOBODY: Final = "no request context"
"""Who has what was taken outside of any scope."""
_LOOKED_AT: Final = 200
"""Of how many connections it is found out at most where those are who have them."""
_LONG: Final = 1.0
"""Seconds without a statement after which a connection counts as idle, or a quarter of the time
that checkouts wait, where that is less."""


def survey(  # noqa: PLR0913  (the facts of a pool)
    holds: Sequence[ConnectionHold],
    waiters: Iterable[Waiter],
    limits: Limits,
    *,
    out: int | None,
    blocks_loop: bool,
    threads: int | None,
) -> Exhaustion:
    """Find out who has the connections of a pool, and who waits for one."""
    under_way = list(waiters)
    waiters = [waiter for waiter in under_way if not waiter.has_one]
    waiting = {waiter.scope for waiter in waiters if waiter.scope is not None}
    long = _LONG if limits.timeout is None else min(_LONG, limits.timeout / 4)
    workers = Workers()
    held: dict[tuple[str, CallSite | None, Use], list[tuple[float, CallSite | None]]] = {}
    for number, hold in enumerate(holds):
        use = _use_of(hold, waiting, long)
        look = number < _LOOKED_AT and use is not Use.LEAKED
        now_at = _now_at(hold, workers) if look else None
        key = (_name(hold.scope), hold.created_at or hold.acquired_at, use)
        held.setdefault(key, []).append((hold.held_for, now_at))
    # Of the others those that have just got theirs are among the holds already.
    unknown = (out or 0) - len(holds)
    for opening in [waiter for waiter in under_way if waiter.has_one][: max(0, unknown)]:
        opened = _name(opening.scope), opening.site, Use.OPENING
        held.setdefault(opened, []).append((opening.seconds, None))
    wanted: dict[tuple[str, CallSite | None, None], list[tuple[float, CallSite | None]]] = {}
    for waiter in waiters:
        wanted.setdefault((_name(waiter.scope), waiter.site, None), []).append(
            (waiter.seconds, None)
        )
    return Exhaustion(
        limits,
        max(out or 0, len(holds)),
        _groups(held.items()),
        _groups(wanted.items()),
        blocks_loop,
        threads,
    )


def _groups(
    members: Iterable[
        tuple[tuple[str, CallSite | None, Use | None], list[tuple[float, CallSite | None]]]
    ],
) -> tuple[PoolUsers, ...]:
    groups = [
        PoolUsers(
            *key,
            len(alike),
            max(seconds for seconds, _ in alike),
            Counter(now_at for _, now_at in alike).most_common(1)[0][0],
        )
        for key, alike in members
    ]
    return tuple(sorted(groups, key=lambda group: (-group.count, -group.longest)))


def _name(scope: Scope | None) -> str:
    return NOBODY if scope is None else scope.name


def _use_of(hold: ConnectionHold, waiting: set[Scope], long: float) -> Use:
    if hold.guard.has_leaked(hold):
        return Use.LEAKED
    if hold.scope in waiting:
        return Use.WAITING
    if hold.executing:
        return Use.EXECUTING
    return Use.IDLE if hold.idle_for >= long else Use.IN_USE


def _now_at(hold: ConnectionHold, workers: Workers) -> CallSite | None:
    return first_site(workers.stacks(hold), hold.guard.settings.frames)


# --- the conclusion -------------------------------------------------------------------------------


class Conclusion(StrEnum):
    """What most of the connections are out for."""

    LEAKS = "leaks"
    BLOCKED_LOOP = "blocked event loop"
    NESTED = "nested checkouts"
    IDLE = "idle connections"
    STATEMENTS = "long statements"
    CONCURRENCY = "more concurrency than connections"


def conclude(exhaustion: Exhaustion) -> Conclusion:
    """Say which of the causes explains the most connections."""
    busy = exhaustion.count(Use.EXECUTING, Use.IN_USE, Use.OPENING)
    counts = {
        Conclusion.LEAKS: exhaustion.count(Use.LEAKED),
        Conclusion.NESTED: exhaustion.count(Use.WAITING),
        Conclusion.IDLE: exhaustion.count(Use.IDLE),
        Conclusion.CONCURRENCY: busy,
    }
    conclusion = max(counts, key=lambda one: counts[one])  # the first of those that are equal
    if not counts[conclusion]:  # nothing is known of any of them
        return Conclusion.CONCURRENCY
    if exhaustion.blocks_loop and conclusion is not Conclusion.LEAKS:
        return Conclusion.BLOCKED_LOOP
    running = exhaustion.largest(Use.EXECUTING)
    long = exhaustion.limits.timeout or _LONG
    # Out since before the others began to wait: it is not that too many came at once.
    if conclusion is Conclusion.CONCURRENCY and running is not None and running.longest > long:
        return Conclusion.STATEMENTS
    return conclusion


def advise(exhaustion: Exhaustion, conclusion: Conclusion) -> Hint:
    """Say what the conclusion rests on, and what to do."""
    return _ADVICE[conclusion](exhaustion)


def main_group(exhaustion: Exhaustion, conclusion: Conclusion) -> PoolUsers | None:
    """Return the group that the conclusion is about."""
    return exhaustion.largest(*_ABOUT[conclusion])


_ABOUT: Final = {
    Conclusion.LEAKS: (Use.LEAKED,),
    Conclusion.BLOCKED_LOOP: (Use.WAITING, Use.EXECUTING, Use.IDLE, Use.IN_USE),
    Conclusion.NESTED: (Use.WAITING,),
    Conclusion.IDLE: (Use.IDLE,),
    Conclusion.STATEMENTS: (Use.EXECUTING,),
    Conclusion.CONCURRENCY: (Use.EXECUTING, Use.IN_USE, Use.OPENING),
}


# --- advice ---------------------------------------------------------------------------------------


def _on_leaks(exhaustion: Exhaustion) -> Hint:
    leaked = exhaustion.count(Use.LEAKED)
    return Hint(
        f"leaks: {leaked} of {exhaustion.out} connections were never given back, "
        f"most of them from {_line(exhaustion.largest(Use.LEAKED))}",
        "close what that line opens, as the report on the leak says; a larger pool only runs dry "
        "later",
    )


def _on_blocked_loop(exhaustion: Exhaustion) -> Hint:
    return Hint(
        f"{_no_leak(exhaustion)}: this synchronous checkout stopped the event loop, and with it "
        "the requests that have the connections and would have given them back",
        "make the function that waits def instead of async def, or use AsyncSession",
    )


def _on_nested(exhaustion: Exhaustion) -> Hint:
    nested = exhaustion.count(Use.WAITING)
    return Hint(
        f"{_no_leak(exhaustion)}: {nested} of {exhaustion.out} connections are held by work that "
        "waits for a second one of the same pool, so that none of it goes on",
        "pass the session on instead of opening another one, or give the inner work an engine of "
        "its own",
    )


def _on_idle(exhaustion: Exhaustion) -> Hint:
    idle, group = exhaustion.count(Use.IDLE), exhaustion.largest(Use.IDLE)
    now_at = group and group.now_at
    where = "" if now_at is None else f", most of them while their owners are at {now_at}"
    return Hint(
        f"{_no_leak(exhaustion)}: {idle} of {exhaustion.out} connections are out and idle{where}",
        "give the connection back before the slow part, by commit() or close(), and take it again "
        "afterwards",
    )


def _on_statements(exhaustion: Exhaustion) -> Hint:
    running, group = exhaustion.count(Use.EXECUTING), exhaustion.largest(Use.EXECUTING)
    longest = 0.0 if group is None else group.longest
    return Hint(
        f"{_no_leak(exhaustion)}: {running} of {exhaustion.out} connections are running "
        f"statements, and are out for up to {seconds(longest)}; {_demand(exhaustion)}",
        "make these statements faster, or give them an engine of their own, so that they do not "
        f"take the connections of all others; or {_more_or_fewer(exhaustion)}",
    )


def _on_concurrency(exhaustion: Exhaustion) -> Hint:
    return Hint(
        f"{_no_leak(exhaustion)}: more concurrency than connections: {_demand(exhaustion)}",
        _more_or_fewer(exhaustion),
    )


def _demand(exhaustion: Exhaustion) -> str:
    wanted = exhaustion.out + exhaustion.waiting
    return f"{wanted} wanted one at the same time, and the pool has {_capacity(exhaustion.limits)}"


def _more_or_fewer(exhaustion: Exhaustion) -> str:
    threads = exhaustion.threads
    if threads is None:
        fewer = "let fewer requests run at once, as with a semaphore or --limit-concurrency"
    else:
        fewer = (
            f"let fewer threads run at once: AnyIO's limiter allows {threads} "
            "(anyio.to_thread.current_default_thread_limiter().total_tokens)"
        )
    return f"raise pool_size or max_overflow, as far as the database allows, or {fewer}"


def _no_leak(exhaustion: Exhaustion) -> str:
    leaked = exhaustion.count(Use.LEAKED)
    return f"mainly no leak, besides {leaked} leaked" if leaked else "no leak"


def _capacity(limits: Limits) -> str:
    if limits.size is None:
        return "no more"
    if limits.overflow is None:
        return f"{limits.size}"
    return f"{limits.size + limits.overflow} (size {limits.size}, overflow {limits.overflow})"


def _line(group: PoolUsers | None) -> str:
    return "an unknown line" if group is None or group.site is None else str(group.site)


_ADVICE: Final[dict[Conclusion, Callable[[Exhaustion], Hint]]] = {
    Conclusion.LEAKS: _on_leaks,
    Conclusion.BLOCKED_LOOP: _on_blocked_loop,
    Conclusion.NESTED: _on_nested,
    Conclusion.IDLE: _on_idle,
    Conclusion.STATEMENTS: _on_statements,
    Conclusion.CONCURRENCY: _on_concurrency,
}
