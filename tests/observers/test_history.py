"""The last findings, grouped by mistake, up to a bound."""

from __future__ import annotations

import pytest

from leakguard import History, SettingsError
from tests.core.fakes import make_finding


def test_findings_are_kept_and_grouped() -> None:
    """In order, with how many there were and how many were resolved."""
    history = History()
    findings = [make_finding() for _ in range(3)]
    findings[2].fingerprint = "another"
    for finding in findings:
        history.found(finding)
    history.resolved(findings[1])
    assert history.findings == tuple(findings)
    group = history.groups[findings[0].fingerprint]
    assert (group.first, group.last) == (findings[0], findings[1])
    assert (group.count, group.resolved) == (2, 1)
    assert list(history.groups) == [findings[0].fingerprint, "another"]
    history.clear()
    assert history.findings == ()
    assert history.groups == {}


def test_the_oldest_are_forgotten() -> None:
    """Both the findings and the groups have a bound."""
    history = History(limit=2)
    findings = [make_finding() for _ in range(3)]
    for number, finding in enumerate(findings):
        finding.fingerprint = f"mistake {number}"
        history.found(finding)
    assert history.findings == tuple(findings[1:])
    assert list(history.groups) == ["mistake 1", "mistake 2"]
    history.resolved(findings[0])
    assert all(group.resolved == 0 for group in history.groups.values())


@pytest.mark.parametrize("limit", [0, -1, 1.5, "many", True])
def test_a_bad_limit_is_refused(limit: object) -> None:
    """The error names it."""
    with pytest.raises(SettingsError, match=r"limit=.* is not allowed: must be a whole number"):
        History(limit=limit)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]  # the mistake
