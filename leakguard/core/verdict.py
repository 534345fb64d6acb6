"""Verdicts: from what is known of a hold when its scope has ended to a kind of finding.

Pure functions over plain data: no clock, no loop, no database. docs/how-it-works.md tells
the rules ("When a verdict falls").
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto
from typing import Final

from leakguard.core.finding import FindingKind


class Fate(Enum):
    """What became of a connection by the end of its scope."""

    OUT = auto()
    """Nobody had given it back when the scope ended."""
    RETURNED = auto()
    """It was given back."""
    COLLECTED = auto()
    """The garbage collector took it before the scope ended."""


@dataclass(frozen=True, slots=True)
class Standing:
    """All that the verdict on a connection depends on."""

    fate: Fate
    holder_running: bool = False
    """The task or thread that acquired it still runs, and is not the one that opened the scope."""
    others_running: bool = False
    """Other work that the scope started still runs, or code around it that made the session."""
    waited: bool = False
    """That other work has had `late_after` seconds since the scope and the holder ended."""
    late: bool = False
    """It came back more than `late_after` seconds after the last byte of the response."""
    nested: bool = False
    """Its scope held another connection of the pool when it was checked out."""
    sync_in_async: bool = False
    """It is synchronous and was checked out on a thread that runs an event loop."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a standing comes to."""

    kind: FindingKind | None = None
    """`None`: nothing to say, or not yet."""
    also: tuple[FindingKind, ...] = ()
    """The other kinds that fit."""
    wait: bool = False
    """To be judged again when the work that it waits for has ended."""


CLEAN: Final = Verdict()
WAIT: Final = Verdict(wait=True)


def verdict_on(standing: Standing) -> Verdict:
    """Return the verdict on a connection whose scope has ended."""
    if standing.fate is Fate.OUT:
        return _verdict_on_out(standing)
    if standing.fate is Fate.COLLECTED:
        return _named(FindingKind.RECLAIMED, standing)
    return _named(None, standing)


def verdict_on_session(
    *, holder_running: bool, others_running: bool, with_connection: bool
) -> Verdict:
    """Return the verdict on a session that nobody had closed when its scope ended.

    The first two are those of a `Standing`; `with_connection` says that one of its connections is
    out, or has a finding of its own.
    """
    # Somebody may be about to close it; a mere notice is not worth the wait.
    if with_connection or holder_running or others_running:
        return CLEAN
    return Verdict(FindingKind.UNCLOSED_SESSION)


def _verdict_on_out(standing: Standing) -> Verdict:
    """Who may still give it back decides."""
    if standing.holder_running:
        return _named(FindingKind.OUTLIVES_SCOPE, standing, wait=True)
    if standing.others_running and not standing.waited:
        return WAIT
    return _named(FindingKind.LEAKED, standing)


def _named(kind: FindingKind | None, standing: Standing, *, wait: bool = False) -> Verdict:
    """The most severe kind names the finding, the others are facts in it."""
    fitting = [] if kind is None else [kind]
    if standing.late:
        fitting.append(FindingKind.RETURNED_LATE)
    if standing.nested:
        fitting.append(FindingKind.NESTED_CHECKOUT)
    if standing.sync_in_async:
        fitting.append(FindingKind.SYNC_IN_ASYNC)
    if not fitting:
        return CLEAN
    return Verdict(fitting[0], tuple(fitting[1:]), wait)
