"""Pool diagnosis: an exhausted pool -> hint: what its connections are out for, and what to do."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from leakguard.core.diagnosis import MAKE_IT_ASYNCHRONOUS, SHARE_THE_SESSION
from leakguard.core.exhaustion import Conclusion, Use
from leakguard.core.finding import Hint

if TYPE_CHECKING:
    from leakguard.core.exhaustion import Exhaustion, Limits


def diagnose_pool(exhaustion: Exhaustion) -> Hint:
    """Say what the conclusion rests on, and what to do."""
    return _HINTS[exhaustion.conclusion](exhaustion)


def _leaks(exhaustion: Exhaustion) -> Hint:
    leaked = _of_all(exhaustion, Use.LEAKED, ("was", "were"))
    return Hint(
        f"leaks: {leaked} never given back, {_from(exhaustion, Use.LEAKED)}",
        "close what that line opens, as the report on the leak says; a larger pool only runs dry "
        "later",
    )


def _kept(exhaustion: Exhaustion) -> Hint:
    return Hint(
        f"{_of_all(exhaustion, Use.KEPT)} kept after the end of the scope that took "
        f"{_them(exhaustion, Use.KEPT)}, {_from(exhaustion, Use.KEPT)}",
        "let the work that goes on after a request open and close a session of its own, for as "
        "short as it needs it; what allow() or ignore= exempt takes connections from all others",
    )


def _blocked_loop(exhaustion: Exhaustion) -> Hint:
    return Hint(
        f"{_no_leak(exhaustion)}: this synchronous checkout stopped the event loop, and with it "
        "the requests that have the connections and would have given them back",
        MAKE_IT_ASYNCHRONOUS,
    )


def _nested(exhaustion: Exhaustion) -> Hint:
    return Hint(
        f"{_no_leak(exhaustion)}: {_of_all(exhaustion, Use.WAITING)} held by work that waits for a "
        "second one of the same pool, so none of it goes on",
        SHARE_THE_SESSION,
    )


def _idle(exhaustion: Exhaustion) -> Hint:
    group = exhaustion.largest(Use.IDLE)
    now_at = group and group.now_at
    where = "" if now_at is None else f", most of them while their owners are at {now_at}"
    return Hint(
        f"{_no_leak(exhaustion)}: {_of_all(exhaustion, Use.IDLE)} out and idle{where}",
        "give the connection back before the slow part, by commit() or close(), and take it again "
        "afterwards",
    )


def _statements(exhaustion: Exhaustion) -> Hint:
    return Hint(
        f"{_no_leak(exhaustion)}: {_of_all(exhaustion, Use.LONG_STATEMENT)} running a statement "
        f"that takes longer than others wait; {_demand(exhaustion)}",
        "make these statements faster, or give them an engine of their own, so that they do not "
        f"take the connections of all others; or {_more_or_fewer(exhaustion)}",
    )


def _concurrency(exhaustion: Exhaustion) -> Hint:
    fix = _more_or_fewer(exhaustion)
    if exhaustion.count(Use.OUT):
        fix += "; whether connections are idle meanwhile is known where held_after is set"
    return Hint(
        f"{_no_leak(exhaustion)}: more concurrency than connections: {_demand(exhaustion)}", fix
    )


def _unknown(exhaustion: Exhaustion) -> Hint:
    unknown = exhaustion.unknown
    of = f"{unknown} of {_connections(exhaustion.out)}" if unknown else "any connection"
    return Hint(
        f"not known: no checkout was seen of {of}",
        "install the guard before the first checkout of the process: add the middleware, or call "
        "install(), where the engine is made",
    )


def _of_all(exhaustion: Exhaustion, use: Use, verb: tuple[str, str] = ("is", "are")) -> str:
    count = exhaustion.count(use)
    return f"{count} of {_connections(exhaustion.out)} {verb[count != 1]}"


def _them(exhaustion: Exhaustion, use: Use) -> str:
    return "it" if exhaustion.count(use) == 1 else "them"


def _connections(number: int) -> str:
    return f"{number} connection" if number == 1 else f"{number} connections"


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
    leaked, unknown, out = exhaustion.count(Use.LEAKED), exhaustion.unknown, exhaustion.out
    if leaked:
        return f"mostly no leaks ({leaked} of {out} leaked)"
    return f"no leak that is known ({unknown} of {out} unknown)" if unknown else "no leak"


def _capacity(limits: Limits) -> str:
    if limits.size is None:
        return "no more"
    if limits.overflow is None:
        return f"{limits.size}"
    return f"{limits.size + limits.overflow} (size {limits.size}, overflow {limits.overflow})"


def _from(exhaustion: Exhaustion, use: Use) -> str:
    group = exhaustion.largest(use)
    line = "an unknown line" if group is None or group.site is None else str(group.site)
    return f"from {line}" if exhaustion.count(use) == 1 else f"most of them from {line}"


_HINTS: Final[dict[Conclusion, Callable[[Exhaustion], Hint]]] = {
    Conclusion.LEAKS: _leaks,
    Conclusion.KEPT: _kept,
    Conclusion.NESTED: _nested,
    Conclusion.BLOCKED_LOOP: _blocked_loop,
    Conclusion.IDLE: _idle,
    Conclusion.STATEMENTS: _statements,
    Conclusion.CONCURRENCY: _concurrency,
    Conclusion.UNKNOWN: _unknown,
}
