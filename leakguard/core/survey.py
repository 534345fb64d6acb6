"""The survey: who has the connections of a pool at the moment, and who waits for one."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping
from typing import TYPE_CHECKING, Final, NamedTuple

from leakguard.core.exhaustion import Exhaustion, Limits, PoolUsers, Use
from leakguard.core.stacks import first_site
from leakguard.core.words import name_of
from leakguard.core.workers import Workers

if TYPE_CHECKING:
    from collections.abc import Sequence

    from leakguard.core.callsite import CallSite
    from leakguard.core.hold import ConnectionHold
    from leakguard.core.scope import Scope
    from leakguard.core.stacks import Stack


class Waiter(NamedTuple):
    """A checkout that waits, or has waited in vain."""

    scope: Scope | None
    seconds: float
    """How long it has waited."""
    site: CallSite | None
    """Where; `None` where that is not known."""
    work: int | None = None
    """Who waits, as `current_work` says; `None` where that is not known."""
    has_one: bool = False
    """Whether the pool has a connection for it, which is being opened or looked at."""


class _Member(NamedTuple):
    """One of a group of users."""

    who: str
    site: CallSite | None
    use: Use | None
    seconds: float
    now_at: CallSite | None = None


_LOOKED_AT: Final = 200
"""For how many connections it is looked up where their owners are, at most."""
_LONG: Final = 1.0
"""Seconds without a statement after which a connection counts as idle, or a quarter of the time
that checkouts wait, where that is less."""


def survey(
    holds: Sequence[ConnectionHold],
    waiters: Iterable[Waiter],
    limits: Limits,
    out: int | None,
    workers: Workers,
) -> Exhaustion:
    """Find out who has the connections of a pool, of which `out` are out, and who waits for one.

    What is only known of the one that gave up is left for it to add.
    """
    under_way = list(waiters)
    waiting = [waiter for waiter in under_way if not waiter.has_one]
    works: defaultdict[Scope, set[int | None]] = defaultdict(set)
    for waiter in waiting:
        if waiter.scope is not None:
            works[waiter.scope].add(waiter.work)
    held: list[_Member] = []
    for number, hold in enumerate(holds):
        stacks = list(workers.stacks(hold)) if number < _LOOKED_AT else []
        held.append(_holder(hold, stacks, _use_of(hold, stacks, works, limits)))
    # Of the others those that have just got theirs are among the holds already.
    not_seen = max(0, (out or 0) - len(holds))
    opening = [waiter for waiter in under_way if waiter.has_one][:not_seen]
    held += [_Member(name_of(one.scope), one.site, Use.OPENING, one.seconds) for one in opening]
    wanted = [_Member(name_of(one.scope), one.site, None, one.seconds) for one in waiting]
    return Exhaustion(
        limits,
        max(out or 0, len(holds)),
        _groups(held),
        _groups(wanted),
        blocks_loop=False,
        threads=None,
    )


def _holder(hold: ConnectionHold, stacks: Sequence[Stack], use: Use) -> _Member:
    leaked = use is Use.LEAKED
    now_at = None if leaked else first_site(stacks, hold.guard.settings.frames)
    site = hold.origin
    return _Member(name_of(hold.scope), site, use, hold.held_for, now_at)


def _use_of(
    hold: ConnectionHold,
    stacks: Iterable[Stack],
    waiting: Mapping[Scope, Collection[int | None]],
    limits: Limits,
) -> Use:
    if hold.guard.has_leaked(hold):
        return Use.LEAKED
    if _is_kept(hold):
        return Use.KEPT
    if hold.executing:
        timeout = _LONG if limits.timeout is None else limits.timeout
        return Use.LONG_STATEMENT if hold.executing_for > timeout else Use.EXECUTING
    if _waits_for_more(hold, waiting):
        return Use.WAITING
    return _use_between_statements(hold, stacks, limits)


def _is_kept(hold: ConnectionHold) -> bool:
    ended = None if hold.scope is None else hold.scope.closed_at
    return ended is not None and hold.acquired_monotonic < ended


def _waits_for_more(hold: ConnectionHold, waiting: Mapping[Scope, Collection[int | None]]) -> bool:
    """Return whether who has it waits for another one, and not merely a task beside it."""
    works = None if hold.scope is None else waiting.get(hold.scope)
    if works is None:
        return False
    holder = hold.holder
    # The scope's own work may wait for all that it started. Of work that has ended, as of the
    # thread that ran a dependency, the scope has what it left.
    return holder is None or not holder.running() or holder.number in works


def _use_between_statements(hold: ConnectionHold, stacks: Iterable[Stack], limits: Limits) -> Use:
    if any(map(hold.occupied_by, stacks)):  # as in a commit
        return Use.EXECUTING
    if not hold.guard.settings.follow_statements:
        return Use.OUT
    long = _LONG if limits.timeout is None else min(_LONG, limits.timeout / 4)
    return Use.IDLE if hold.idle_for >= long else Use.IN_USE


def _groups(members: Iterable[_Member]) -> tuple[PoolUsers, ...]:
    alike: dict[tuple[str, CallSite | None, Use | None], list[_Member]] = {}
    for one in members:
        alike.setdefault((one.who, one.site, one.use), []).append(one)
    groups = [
        PoolUsers(
            *key,
            count=len(group),
            longest=max(one.seconds for one in group),
            now_at=Counter(one.now_at for one in group).most_common(1)[0][0],
        )
        for key, group in alike.items()
    ]
    return tuple(sorted(groups, key=lambda group: (-group.count, -group.longest)))
