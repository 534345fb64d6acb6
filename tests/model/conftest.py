"""The collector, while random programs run."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest


@pytest.fixture
def quiet_collector() -> Iterator[None]:
    """Collect only when a program says so, and look only at what the programs made."""
    gc.collect()
    gc.freeze()
    gc.disable()
    yield
    gc.unfreeze()
    gc.collect()  # what the programs left would warn in another test, which is not about it
    gc.enable()
