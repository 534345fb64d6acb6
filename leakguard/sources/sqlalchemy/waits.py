"""Waits: how long checkouts take, and which time out.

No event precedes a checkout, and none follows one that times out: `Pool.connect` is wrapped
while a guard is installed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.pool import Pool

from leakguard.core.clock import monotonic
from leakguard.core.pool import Wait
from leakguard.sources.patch import Patch
from leakguard.sources.sqlalchemy.checkouts import Checkouts
from leakguard.sources.sqlalchemy.listeners import report_fault

if TYPE_CHECKING:
    from sqlalchemy.pool import PoolProxiedConnection


class Waits:
    """Takes the time of every checkout."""

    def __init__(self, checkouts: Checkouts) -> None:
        self._checkouts = checkouts
        self.patches = (Patch(Pool, "connect", self._wrap_connect),)

    def _wrap_connect(
        self, original: Callable[[Pool], PoolProxiedConnection]
    ) -> Callable[[Pool], PoolProxiedConnection]:
        def connect(pool: Pool) -> PoolProxiedConnection:
            began = monotonic()
            try:
                proxy = original(pool)
            except PoolTimeoutError:
                self._tell(pool, None, began)
                raise
            self._tell(pool, proxy, began)
            return proxy

        return connect

    def _tell(self, pool: Pool, proxy: PoolProxiedConnection | None, began: float) -> None:
        try:
            told = self._checkouts.told_of(pool, proxy)
            if told is not None:
                guard, name = told
                guard.waited(Wait(name, monotonic() - began, proxy is None))
        except Exception as error:  # noqa: BLE001  (the caller must not notice)
            report_fault(error)
