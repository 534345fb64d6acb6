"""leakguard names the request, the line and the mistake that kept a database connection."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from leakguard.core.allow import allow
    from leakguard.core.callsite import CallSite, Frame
    from leakguard.core.exhaustion import Conclusion, Exhaustion, Limits, PoolUsers, Use
    from leakguard.core.finding import Evidence, Finding, FindingKind, Hint, PoolUsage, Severity
    from leakguard.core.hold import Hold
    from leakguard.core.ignore import ignore_function, ignore_route
    from leakguard.core.observer import Observer
    from leakguard.core.pool import PoolChange, Wait
    from leakguard.core.scope import Event, Scope
    from leakguard.core.settings import Mode, Settings
    from leakguard.core.table import OpenHolds
    from leakguard.exceptions import (
        ConnectionLeakError,
        ConnectionLeakWarning,
        LeakGuardError,
        SettingsError,
    )
    from leakguard.observers.history import Group, History
    from leakguard.observers.log import Log
    from leakguard.observers.prometheus import Prometheus, metrics_app
    from leakguard.observers.warnings import Warnings
    from leakguard.sources.sqlalchemy import ignore_engine
    from leakguard.testing.fixture import LeakGuardFixture
    from leakguard.wiring import LeakGuard, LeakGuardMiddleware

__all__ = [
    "CallSite",
    "Conclusion",
    "ConnectionLeakError",
    "ConnectionLeakWarning",
    "Event",
    "Evidence",
    "Exhaustion",
    "Finding",
    "FindingKind",
    "Frame",
    "Group",
    "Hint",
    "History",
    "Hold",
    "LeakGuard",
    "LeakGuardError",
    "LeakGuardFixture",
    "LeakGuardMiddleware",
    "Limits",
    "Log",
    "Mode",
    "Observer",
    "OpenHolds",
    "PoolChange",
    "PoolUsage",
    "PoolUsers",
    "Prometheus",
    "Scope",
    "Settings",
    "SettingsError",
    "Severity",
    "Use",
    "Wait",
    "Warnings",
    "allow",
    "ignore_engine",
    "ignore_function",
    "ignore_route",
    "metrics_app",
]

_HOMES = {
    "CallSite": "leakguard.core.callsite",
    "Conclusion": "leakguard.core.exhaustion",
    "ConnectionLeakError": "leakguard.exceptions",
    "ConnectionLeakWarning": "leakguard.exceptions",
    "Event": "leakguard.core.scope",
    "Evidence": "leakguard.core.finding",
    "Exhaustion": "leakguard.core.exhaustion",
    "Finding": "leakguard.core.finding",
    "FindingKind": "leakguard.core.finding",
    "Frame": "leakguard.core.callsite",
    "Group": "leakguard.observers.history",
    "Hint": "leakguard.core.finding",
    "History": "leakguard.observers.history",
    "Hold": "leakguard.core.hold",
    "LeakGuard": "leakguard.wiring",
    "LeakGuardError": "leakguard.exceptions",
    "LeakGuardFixture": "leakguard.testing.fixture",
    "LeakGuardMiddleware": "leakguard.wiring",
    "Limits": "leakguard.core.exhaustion",
    "Log": "leakguard.observers.log",
    "Mode": "leakguard.core.settings",
    "Observer": "leakguard.core.observer",
    "OpenHolds": "leakguard.core.table",
    "PoolChange": "leakguard.core.pool",
    "PoolUsage": "leakguard.core.finding",
    "PoolUsers": "leakguard.core.exhaustion",
    "Prometheus": "leakguard.observers.prometheus",
    "Scope": "leakguard.core.scope",
    "Settings": "leakguard.core.settings",
    "SettingsError": "leakguard.exceptions",
    "Severity": "leakguard.core.finding",
    "Use": "leakguard.core.exhaustion",
    "Wait": "leakguard.core.pool",
    "Warnings": "leakguard.observers.warnings",
    "allow": "leakguard.core.allow",
    "ignore_engine": "leakguard.sources.sqlalchemy",
    "ignore_function": "leakguard.core.ignore",
    "ignore_route": "leakguard.core.ignore",
    "metrics_app": "leakguard.observers.prometheus",
}
"""The module of each, imported when it is asked for first: pytest imports the package for its
plugin wherever it is installed, and must not import SQLAlchemy for that."""


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_HOMES[name]), name)
    return value


def __dir__() -> list[str]:
    return [*globals(), *__all__]
