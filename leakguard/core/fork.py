"""The child of a fork: no thread of its parent's is in it, and nothing that its parent had out.

What is asked for is done in the order in which the modules are imported: the lock is released and
the watch begins anew before anything is forgotten.
"""

from __future__ import annotations

import os
from collections.abc import Callable


def in_child(begin: Callable[[], None]) -> None:
    """Have `begin()` called in every child, before anything else of the program runs there."""
    if hasattr(os, "register_at_fork"):  # pragma: no branch - Windows has no fork
        os.register_at_fork(after_in_child=begin)
