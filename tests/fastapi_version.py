"""What the installed FastAPI does with dependencies, which differs between versions."""

import inspect
from typing import Any, Final

import fastapi
from fastapi import Depends

_VERSION: Final = tuple(map(int, fastapi.__version__.split(".")[:2]))

EXITS_BEFORE_RESPONSE: Final = (0, 106) <= _VERSION < (0, 118)
"""Whether dependencies exit before the response, so that background tasks use what is closed."""
FUNCTION_SCOPE: Final[dict[str, Any]] = (
    {"scope": "function"} if "scope" in inspect.signature(Depends).parameters else {}
)
"""Arguments of `Depends` for a dependency that exits before the response, from FastAPI 0.121 on."""
