"""The scenarios, by theme; importing this registers them all."""

from __future__ import annotations

import importlib
import pkgutil
from typing import Final

from tests.scenarios.suite import SCENARIOS as _REGISTERED
from tests.scenarios.suite import Scenario

for _module in sorted(module.name for module in pkgutil.iter_modules(__path__)):
    importlib.import_module(f"{__name__}.{_module}")

SCENARIOS: Final[list[Scenario]] = sorted(_REGISTERED, key=lambda one: one.name)
