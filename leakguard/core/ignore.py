"""Ready-made predicates for the `ignore` setting. Say in a comment why you use one."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from leakguard.exceptions import SettingsError

if TYPE_CHECKING:
    from leakguard.core.callsite import CallSite
    from leakguard.core.finding import Finding

Predicate = Callable[["Finding"], bool]


def ignore_route(template: str) -> Predicate:
    """Ignore the findings of one route, given as its full template: `"/items/{item_id}"`."""
    _check("template", template)
    return lambda finding: finding.scope is not None and finding.scope.route == template


def ignore_function(name: str) -> Predicate:
    """Ignore what a function itself constructed or checked out; `name` is its qualified name."""
    _check("name", name)

    def predicate(finding: Finding) -> bool:
        hold = finding.hold
        return hold is not None and any(
            _runs_in(site, name) for site in (hold.created_at, hold.acquired_at)
        )

    return predicate


def _runs_in(site: CallSite | None, name: str) -> bool:
    # The innermost of the user's frames only: production keeps no other.
    return site is not None and site.function == name


def _check(setting: str, value: object) -> None:
    if not isinstance(value, str) or not value:
        raise SettingsError(setting, value, "must be a string of at least one character")
