"""What the code of a function tells of it: its kind, and whether it closes what it has."""

from __future__ import annotations

import dis
import inspect
from functools import lru_cache
from types import CodeType
from typing import Final, TypeGuard, cast

_HANDLER_BOUNDS: Final = frozenset({"PUSH_EXC_INFO", "POP_EXCEPT", "RERAISE"})
_ATTRIBUTES: Final = frozenset({"LOAD_ATTR", "LOAD_METHOD"})
_WRAPS_YIELDED: Final = frozenset({"ASYNC_GEN_WRAP", "CALL_INTRINSIC_1"})
"""What comes between the value and the `yield` of an asynchronous generator."""
_CLOSING_NAMES: Final = frozenset({"close", "aclose", "remove", "close_all"})


def is_generator(code: CodeType | None) -> TypeGuard[CodeType]:
    """Return whether calling the function makes a generator, sync or async: a dependency's form."""
    return code is not None and bool(
        code.co_flags & (inspect.CO_GENERATOR | inspect.CO_ASYNC_GENERATOR)
    )


def is_async(code: CodeType | None) -> bool:
    """Return whether the function is `async def`."""
    return code is not None and bool(
        code.co_flags & (inspect.CO_COROUTINE | inspect.CO_ASYNC_GENERATOR)
    )


def _calls_close(code: CodeType | None) -> bool:
    return code is not None and not _CLOSING_NAMES.isdisjoint(code.co_names)


def might_close(code: CodeType | None) -> bool:
    return _calls_close(code) or has_block(code)


@lru_cache(maxsize=1024)
def close_of_yielded(code: CodeType) -> str | None:
    """Name the method by which a generator closes what it yields; `None` where it does not.

    By the names of variables and attributes: a `close` or `remove` of something else is another
    matter.
    """
    yielded: set[str] = set()
    closed: dict[str, str] = {}
    loaded: str | None = None
    for instruction in dis.get_instructions(code):
        name, argument = instruction.opname, instruction.argval
        if name == "YIELD_VALUE" and loaded is not None:
            yielded.add(loaded)
        elif name in _ATTRIBUTES and argument in _CLOSING_NAMES and loaded is not None:
            closed[loaded] = argument
        if name not in _WRAPS_YIELDED:
            loaded = _name_loaded(name, argument)
    return next((closed[one] for one in closed if one in yielded), None)


def _name_loaded(operation: str, argument: object) -> str | None:
    """Name the variable or attribute whose value an instruction leaves on top of the stack."""
    loads = operation.startswith("LOAD_") or "_LOAD_" in operation
    if not loads or operation == "LOAD_CONST":
        return None
    # Two variables in one instruction, since Python 3.13.
    name = cast("tuple[object, ...]", argument)[-1] if isinstance(argument, tuple) else argument
    return name if isinstance(name, str) else None


@lru_cache(maxsize=1024)  # the same few functions come again and again, at the cost of a request
def has_block(code: CodeType | None) -> bool:
    """Return whether the function has a `with` or `try` block, which might be a clean-up."""
    # Coroutines and generators have an exception table of their own, for StopIteration; only
    # the handlers of blocks push an exception.
    return code is not None and any(
        instruction.opname == "PUSH_EXC_INFO" for instruction in dis.get_instructions(code)
    )


@lru_cache(maxsize=1024)
def closes_on_exception(code: CodeType) -> bool:
    """Return whether a handler of the function, of `with` or of `finally`, closes something."""
    handling = False
    for instruction in dis.get_instructions(code):
        if instruction.opname in _HANDLER_BOUNDS:
            handling = instruction.opname == "PUSH_EXC_INFO"
        elif handling and (
            instruction.opname == "WITH_EXCEPT_START" or instruction.argval in _CLOSING_NAMES
        ):
            return True
    return False
