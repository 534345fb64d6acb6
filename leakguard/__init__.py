"""leakguard names the request, the line and the mistake that kept a database connection."""

from leakguard.core.allow import allow
from leakguard.core.callsite import CallSite, Frame
from leakguard.core.finding import Finding, FindingKind, Severity
from leakguard.core.hold import Hold
from leakguard.core.ignore import ignore_function, ignore_route
from leakguard.core.observer import Observer
from leakguard.core.scope import Scope
from leakguard.exceptions import (
    ConnectionLeakError,
    ConnectionLeakWarning,
    LeakGuardError,
    SettingsError,
)
from leakguard.observers.history import History
from leakguard.observers.log import Log
from leakguard.observers.warnings import Warnings
from leakguard.sources.sqlalchemy import ignore_engine
from leakguard.wiring import LeakGuard, LeakGuardMiddleware

__all__ = [
    "CallSite",
    "ConnectionLeakError",
    "ConnectionLeakWarning",
    "Finding",
    "FindingKind",
    "Frame",
    "History",
    "Hold",
    "LeakGuard",
    "LeakGuardError",
    "LeakGuardMiddleware",
    "Log",
    "Observer",
    "Scope",
    "SettingsError",
    "Severity",
    "Warnings",
    "allow",
    "ignore_engine",
    "ignore_function",
    "ignore_route",
]
