"""The warnings observer: a Python warning on the user's line."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Final

from leakguard.core.finding import Severity
from leakguard.core.observer import Observer
from leakguard.core.report import advice
from leakguard.exceptions import ConnectionLeakWarning

if TYPE_CHECKING:
    from leakguard.core.callsite import CallSite
    from leakguard.core.finding import Finding


class Warnings(Observer):
    """Warns once for every distinct leak.

    The warning points at the line that constructed the session, or else at the checkout. A filter
    that makes an error of it changes nothing: no code of the user's runs that it could be raised
    in, so that it is shown instead.
    """

    LIMIT: Final = 1000

    def __init__(self) -> None:
        self._warned: dict[str, None] = {}

    def found(self, finding: Finding) -> None:
        """Warn of the first finding of a mistake, if it is an error."""
        if finding.hold is None or finding.severity is not Severity.ERROR:
            return
        mistake = finding.mistake
        if mistake in self._warned or len(self._warned) >= self.LIMIT:
            return
        self._warned[mistake] = None
        if finding.site is not None:
            _warn(advice(finding), finding.site)


def _warn(message: str, site: CallSite) -> None:
    try:
        warnings.warn_explicit(message, ConnectionLeakWarning, site.file, site.line)
    except ConnectionLeakWarning as warning:
        warnings.showwarning(warning, ConnectionLeakWarning, site.file, site.line)
