"""Every standing gets the verdict that the rules give it."""

from __future__ import annotations

import itertools

import pytest

from leakguard.core.finding import FindingKind
from leakguard.core.verdict import (
    CLEAN,
    WAIT,
    Fate,
    Standing,
    Verdict,
    verdict_on,
    verdict_on_session,
)

FLAGS = ["holder_running", "others_running", "waited", "late", "nested", "sync_in_async"]


def every_standing() -> list[Standing]:
    return [
        Standing(fate, **dict(zip(FLAGS, flags, strict=True)))
        for fate in Fate
        for flags in itertools.product([False, True], repeat=len(FLAGS))
    ]


def main_kind(standing: Standing) -> FindingKind | None:
    """Return what the rules say about a connection, in other words than the code."""
    if standing.fate is Fate.COLLECTED:
        return FindingKind.RECLAIMED
    if standing.fate is Fate.RETURNED:
        return None
    if standing.holder_running:
        return FindingKind.OUTLIVES_SCOPE
    somebody_may_return_it = standing.others_running and not standing.waited
    return None if somebody_may_return_it else FindingKind.LEAKED


def expected(standing: Standing) -> Verdict:
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
    assert len(standings) == 192
    assert [verdict_on(standing) for standing in standings] == [expected(one) for one in standings]


def test_what_came_back_in_time_is_clean() -> None:
    """The ordinary case has nothing to say."""
    assert verdict_on(Standing(Fate.RETURNED)) is CLEAN


def test_what_nobody_says_is_not_so() -> None:
    """Without work that goes on there is no wait."""
    assert verdict_on(Standing(Fate.OUT)) == Verdict(FindingKind.LEAKED)
    assert verdict_on(Standing(Fate.OUT, others_running=True)) is WAIT
    assert WAIT.wait
    assert not CLEAN.wait


@pytest.mark.parametrize("flags", list(itertools.product([False, True], repeat=3)))
def test_a_session_is_untidy_unless_something_accounts_for_it(flags: tuple[bool, ...]) -> None:
    """Running work may close it, and of a lost connection the connection's finding tells."""
    holder_running, others_running, with_connection = flags
    verdict = verdict_on_session(
        holder_running=holder_running,
        others_running=others_running,
        with_connection=with_connection,
    )
    assert verdict == (CLEAN if any(flags) else Verdict(FindingKind.UNCLOSED_SESSION))


def test_at_most_one_error_and_the_most_severe_names_it() -> None:
    """Rule 3: where several kinds fit, the most severe names it and the others are facts."""
    order = list(FindingKind)
    for standing in every_standing():
        verdict = verdict_on(standing)
        kinds = [kind for kind in (verdict.kind, *verdict.also) if kind is not None]
        assert kinds == sorted(kinds, key=order.index)
        assert sum(kind.severity == "error" for kind in kinds) <= 1
