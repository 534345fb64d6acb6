"""Over many requests leakguard's memory does not grow, and nothing of the user's is kept."""

from __future__ import annotations

from tests.endurance.__main__ import TOLERANCE
from tests.endurance.run import Plan, run


def test_nothing_grows_and_nothing_is_kept() -> None:
    """After thousands of requests, a tenth of them leaking, it holds what it held before."""
    outcome = run(Plan(clean=2000, leaking=400))
    assert outcome.leaks == 400
    assert outcome.grown <= TOLERANCE
    assert outcome.more_objects == {}
    assert dict(outcome.alive) == {"Engine": 1, "QueuePool": 1}
    assert outcome.died["Session"] >= 2000
    assert outcome.died["Task"] >= 2000
    assert outcome.died["Engine"] >= 4
