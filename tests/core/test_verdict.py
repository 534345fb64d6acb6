"""Every standing gets the verdict that the rules give it."""

from __future__ import annotations

import itertools

import pytest

from leakguard.core.finding import FindingKind
from leakguard.core.verdict import CLEAN, WAIT, Fate, Standing, Verdict, judge

FLAGS = [
    "holder_running",
    "others_running",
    "waited",
    "late",
    "nested",
    "sync_in_async",
    "with_connection",
]


def every_standing() -> list[Standing]:
    return [
        Standing(resource, fate, **dict(zip(FLAGS, flags, strict=True)))
        for resource in ("connection", "session")
        for fate in Fate
        for flags in itertools.product([False, True], repeat=len(FLAGS))
    ]


def main_kind(standing: Standing) -> FindingKind | None:
    """Say what the rules say about a connection, in other words than the code."""
    if standing.fate is Fate.COLLECTED:
        return FindingKind.RECLAIMED
    if standing.fate is Fate.RETURNED:
        return None
    if standing.holder_running:
        return FindingKind.OUTLIVES_SCOPE
    somebody_may_return_it = standing.others_running and not standing.waited
    return None if somebody_may_return_it else FindingKind.LEAKED


def expected(standing: Standing) -> Verdict:
    if standing.resource == "session":
        untidy = (
            standing.fate is not Fate.RETURNED
            and not standing.with_connection
            and not standing.holder_running
            and not standing.others_running
        )
        return Verdict(FindingKind.UNCLOSED_SESSION) if untidy else Verdict()
    kind = main_kind(standing)
    if standing.fate is Fate.OUT and kind is None:
        return Verdict(wait=True)
    notices = {
        FindingKind.RETURNED_LATE: standing.late,
        FindingKind.NESTED_CHECKOUT: standing.nested,
        FindingKind.SYNC_IN_ASYNC: standing.sync_in_async,
    }
    kinds = [k for k in [kind] if k] + [k for k, fits in notices.items() if fits]
    if not kinds:
        return Verdict()
    return Verdict(kinds[0], tuple(kinds[1:]), kind is FindingKind.OUTLIVES_SCOPE)


def test_every_standing_gets_its_verdict() -> None:
    """All combinations, against the rules written a second time."""
    standings = every_standing()
    assert len(standings) == 768
    assert [judge(standing) for standing in standings] == [expected(one) for one in standings]


@pytest.mark.parametrize("resource", ["connection", "session"])
def test_what_came_back_in_time_is_clean(resource: str) -> None:
    """The ordinary case has nothing to say."""
    assert judge(Standing(resource, Fate.RETURNED)) is CLEAN  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]  # one of the two


def test_what_nobody_says_is_not_so() -> None:
    """Without work that goes on there is no wait, and without a connection no excuse."""
    assert judge(Standing("connection", Fate.OUT)) == Verdict(FindingKind.LEAKED)
    assert judge(Standing("connection", Fate.OUT, others_running=True)) is WAIT
    assert judge(Standing("session", Fate.OUT)) == Verdict(FindingKind.UNCLOSED_SESSION)
    assert WAIT.wait
    assert not CLEAN.wait


def test_at_most_one_error_and_the_most_severe_names_it() -> None:
    """Rule 3: where several kinds fit, the most severe names it and the others are facts."""
    order = list(FindingKind)
    for standing in every_standing():
        verdict = judge(standing)
        kinds = [kind for kind in (verdict.kind, *verdict.also) if kind is not None]
        assert kinds == sorted(kinds, key=order.index)
        assert sum(kind.severity == "error" for kind in kinds) <= 1
