"""Keeping: whether a fixture has what a test has taken, and so may be the one to give it back.

As a `scoped_session` of a wider fixture's, from which the first test gets a session that the
fixture removes at its own end. Asked of what is out when a test ends, which is little.
"""

from __future__ import annotations

import asyncio
import dis
import gc
import sys
from collections import deque
from functools import partial
from types import (
    AsyncGeneratorType,
    CellType,
    CodeType,
    CoroutineType,
    FrameType,
    FunctionType,
    GeneratorType,
    MethodType,
    ModuleType,
    TracebackType,
)
from typing import TYPE_CHECKING, Any, Final, cast

import pytest

from leakguard.core.callsite import Place, classify, is_generator

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator


def kept(value: object, finalizers: Iterable[object], things: Iterable[object]) -> set[int]:
    """Return the `id()` of those `things` that a fixture refers to.

    By its value, or by what tears it down: its `finalizers`, a suspended generator among them, with
    the variables that are named by what is yet to run of it, and by the user's functions that it
    calls. Where that is too much to look through, those that are nearest: what it gives back it has
    at hand.
    """
    wanted = {id(thing): thing for thing in things}
    found: set[int] = set()
    # With the objects, so that no number is used twice; and of each whether it may be code that
    # tears the fixture down.
    seen: dict[tuple[int, bool], Any] = {}
    todo: deque[tuple[Any, bool]] = deque([(value, False)])
    todo.extend((finalizer, True) for finalizer in finalizers)
    while todo:
        if len(seen) >= _LIMIT:
            break
        one, tears_down = todo.popleft()
        if (id(one), tears_down) in seen:
            continue
        seen[id(one), tears_down] = one
        if id(one) in wanted:
            found.add(id(one))
        if _closes_all_sessions(one):
            found.update(number for number, thing in wanted.items() if _is_session(thing))
        if _is_a(one, list, tuple, set, frozenset, dict, deque) and len(one) > _LIMIT:
            continue
        referents = _referents(one, tears_down=tears_down)
        # The collector does not track what refers to nothing, as strings and numbers.
        todo.extend(pair for pair in referents if gc.is_tracked(pair[0]))
    return found


def _referents(one: Any, *, tears_down: bool) -> Iterator[tuple[object, bool]]:  # noqa: ANN401  (anything there is)
    if _is_a(one, GeneratorType, AsyncGeneratorType, CoroutineType):
        yield from _of_generator(one, tears_down=tears_down)
    elif _is_a(one, FunctionType):
        yield from _of_function(one, tears_down=tears_down)
    elif _is_a(one, MethodType) and _is_a(one.__self__, type):
        variables: dict[str, Any] = {**vars(one.__self__)}  # as of the class of a `tearDownClass`
        yield one.__func__, tears_down
        yield variables, False
    elif any(base.__module__ in _ROUTES for base in type(one).__mro__):
        yield cast("dict[str, object]", vars(one)).get("state"), False
    elif not (_is_a(one, *_PASSED_OVER) or _is_of_runner(one) or _is_of_schema(one)):
        on_the_way = tears_down and _is_a(one, *_BETWEEN)
        for referent in gc.get_referents(one):
            yield referent, on_the_way


def _of_generator(generator: Any, *, tears_down: bool) -> Iterator[tuple[object, bool]]:  # noqa: ANN401  (of any such type)
    code, frame = _suspended(generator)
    for referent in gc.get_referents(generator):
        if type(referent) is FunctionType and referent.__code__ is code:  # its own
            yield referent.__closure__, tears_down
        else:
            yield referent, tears_down
    if frame is not None:
        yield from _named(code, frame.f_lasti, frame.f_globals, frame.f_locals)


def _suspended(generator: Any) -> tuple[CodeType, FrameType | None]:  # noqa: ANN401  (of any such type)
    if isinstance(generator, AsyncGeneratorType):
        return generator.ag_code, generator.ag_frame
    if isinstance(generator, CoroutineType):
        return generator.cr_code, generator.cr_frame
    return generator.gi_code, generator.gi_frame


def _of_function(function: FunctionType, *, tears_down: bool) -> Iterator[tuple[object, bool]]:
    # Not all of its module, which has everything there is.
    for part in (function.__closure__, function.__defaults__, function.__kwdefaults__):
        yield part, tears_down
    yield function.__dict__, False
    if tears_down and not is_generator(function.__code__):
        yield from _named(function.__code__, -1, function.__globals__, {})


def _named(
    code: CodeType, after: int, variables: dict[str, Any], local: dict[str, Any]
) -> Iterator[tuple[object, bool]]:
    """Yield the variables that are named by the instructions of a code after an offset.

    Of a module among them, or that it imports, what is named of it; of a class of the user's, what
    it has; of an object of the user's, the methods that are named.
    """
    names = set(_names(code, after))
    values: list[Any] = [variables[name] for name in names & variables.keys()]
    values += local.values()
    modules = [value for value in values if type(value) is ModuleType]
    modules += [sys.modules[name] for name in names & sys.modules.keys()]
    for module in modules:
        values += [vars(module)[name] for name in names & vars(module).keys()]
    if _OF_REQUEST in names:
        values += [getattr(one, _OF_REQUEST) for one in values if _is_a(one, pytest.FixtureRequest)]
    for value in values:
        of_user = _is_of_user(value)
        if not of_user or not isinstance(value, type):
            yield value, of_user
        kind = value if isinstance(value, type) else type(value)
        for base in filter(_is_of_user, kind.__mro__):
            yield dict(vars(base)), False
            for name in names & vars(base).keys():
                yield vars(base)[name], True


def _is_of_user(value: object) -> bool:
    """Return whether it is a function or class of the user's."""
    if not isinstance(value, FunctionType | type):
        return False
    module = sys.modules.get(value.__module__)
    file = getattr(module, "__file__", None)
    return file is not None and classify(file, value.__module__) is Place.USER


def _names(code: CodeType, after: int) -> Iterator[str]:
    for instruction in dis.get_instructions(code):
        if instruction.offset <= after:
            continue
        if instruction.opname.startswith(_LOADS):
            yield instruction.argval
        elif instruction.opname.startswith("IMPORT_NAME"):
            yield from _prefixes(instruction.argval)
        elif isinstance(instruction.argval, CodeType):
            yield from _names(instruction.argval, -1)


def _prefixes(module: str) -> Iterator[str]:
    """Yield a module with those that it is in, which an import of it makes known, too."""
    parts = module.split(".")
    for number in range(len(parts)):
        yield ".".join(parts[: number + 1])


def _closes_all_sessions(function: object) -> bool:
    name = getattr(function, "__name__", None) if _is_a(function, FunctionType) else None
    return name == "close_all_sessions" and _package_of(function) == "sqlalchemy"


def _is_session(thing: object) -> bool:
    """Return whether it is a session of SQLAlchemy's, which is imported where there is one."""
    orm: Any = sys.modules["sqlalchemy.orm"]
    return isinstance(thing, orm.Session)


_BETWEEN: Final[tuple[type[Any], ...]] = (partial, MethodType, CellType, tuple)
"""What stands between a finalizer and the function that it calls in the end."""
_PASSED_OVER: Final[tuple[type[Any], ...]] = (
    type,
    ModuleType,
    CodeType,
    FrameType,
    TracebackType,
    asyncio.AbstractEventLoop,
    asyncio.Future,
)
"""Types of objects that refer to much that is not theirs."""
_RUNNERS: Final = frozenset(
    {"_pytest", "pytest", "pluggy", "xdist", "anyio", "pytest_asyncio", "leakguard"}
)
"""Packages whose objects know all of the run, the test itself included."""
_ROUTES: Final = frozenset(
    {
        *("starlette.applications", "starlette.routing"),
        *("fastapi.applications", "fastapi.routing"),
    }
)
"""Modules whose objects refer to a whole application, and to what a test has put into it, as by
`dependency_overrides`. They close nothing: what its code has is in their `state`."""
_SCHEMA: Final = (
    *("sqlalchemy.sql.", "sqlalchemy.event.", "sqlalchemy.dialects.", "sqlalchemy.orm.mapper"),
    *("sqlalchemy.orm.decl_", "sqlalchemy.orm.attributes", "sqlalchemy.orm.instrumentation"),
)
"""What the names of the modules begin with whose objects are of a schema, large and without any
session or connection."""
_LOADS: Final = ("LOAD_GLOBAL", "LOAD_NAME", "LOAD_ATTR", "LOAD_METHOD", "IMPORT_FROM")
_OF_REQUEST: Final = "cls"
"""What a fixture asks its request for, beside its module and other things that it does not have."""
_LIMIT: Final = 20_000
"""How many objects are looked at."""


def _is_a(one: object, *types: type[Any]) -> bool:
    return issubclass(type(one), types)  # and no `__class__` of the user's


def _is_of_runner(one: object) -> bool:
    return _package_of(type(one)) in _RUNNERS


def _is_of_schema(one: object) -> bool:
    return str(type(one).__module__).startswith(_SCHEMA)


def _package_of(one: object) -> str:
    return str(getattr(one, "__module__", "")).partition(".")[0]
