"""One lock for all that happens seldom: installing a guard, counting a finding."""

from __future__ import annotations

import os
from threading import RLock
from typing import Final

LOCK: Final = RLock()
"""Shared by the whole process, because a lock must be looked after at every fork: the child of one
would wait for ever for a thread that held it in the parent."""

if hasattr(os, "register_at_fork"):  # pragma: no branch - Windows has no fork
    os.register_at_fork(
        before=LOCK.acquire, after_in_parent=LOCK.release, after_in_child=LOCK.release
    )
