"""A ready-made predicate for the `ignore` setting that needs to know engines."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from leakguard.exceptions import SettingsError
from leakguard.sources.sqlalchemy.checkout import Checkout
from leakguard.sources.sqlalchemy.pools import ENGINES_ALLOWED, sync_engine

if TYPE_CHECKING:
    from leakguard.core.finding import Finding


def ignore_engine(engine: object) -> Callable[[Finding], bool]:
    """Ignore the findings on the connections of one `Engine` or `AsyncEngine`.

    Raises `SettingsError` for anything else.
    """
    sync = sync_engine(engine)
    if sync is None:
        raise SettingsError("engine", engine, ENGINES_ALLOWED)

    def predicate(finding: Finding) -> bool:
        hold = finding.hold
        return isinstance(hold, Checkout) and hold.facts.belongs_to(sync)

    return predicate
