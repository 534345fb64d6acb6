"""From a finding to a leak of a run of tests. Imported when there is one: it needs the core."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any, TypedDict

from leakguard.core.facts import to_dict
from leakguard.core.finding import FindingKind, fingerprint
from leakguard.core.report import advice
from leakguard.exceptions import ConnectionLeakWarning

if TYPE_CHECKING:
    from leakguard.core.finding import Finding


class Leak(TypedDict):
    """A finding as it goes from a worker of pytest-xdist to the run: plain values only."""

    fingerprint: str
    known: bool
    """Whether the baseline has it."""
    fails: bool
    """Whether it is reason to fail."""
    report: str
    headline: str
    """Its first line."""
    file: str | None
    line: int | None
    function: str | None
    """The line to look at."""
    fix: str
    facts: dict[str, Any]
    """What `Finding.to_dict()` says."""


def identity_of(finding: Finding) -> str:
    """Return the fingerprint of a leak, which is the same whether the collector came first or not.

    When the collector comes is chance, and must not make a leak that is known a new one.
    """
    hold = finding.hold
    if hold is None or finding.kind is not FindingKind.RECLAIMED:
        return finding.fingerprint
    return fingerprint(FindingKind.LEAKED, hold.created_at, hold.acquired_at)


def leak_of(finding: Finding, *, known: bool, fails: bool) -> Leak:
    """Write down a finding."""
    site = finding.site
    facts = to_dict(finding)
    return Leak(
        fingerprint=identity_of(finding),
        known=known,
        fails=fails,
        report=str(finding),
        headline=facts["message"],
        file=None if site is None else site.file,
        line=None if site is None else site.line,
        function=None if site is None else site.function,
        fix=finding.hint.fix,
        facts=facts,
    )


def warn_of(finding: Finding) -> bool:
    """Warn on the line to look at; `False` where a filter makes an error of that."""
    site = finding.site
    file, line = ("unknown", 0) if site is None else (site.file, site.line)
    try:
        warnings.warn_explicit(advice(finding), ConnectionLeakWarning, file, line)
    except ConnectionLeakWarning:
        return False
    return True
