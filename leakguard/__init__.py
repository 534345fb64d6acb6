"""leakguard names the request, the line and the mistake that kept a database connection."""

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
