"""Call sites: from a stack to the user's own lines, kept cheap and rendered late.

A call site stores code objects and instruction offsets only. Frames are never kept: they
would keep every local variable of the request alive.
"""

from __future__ import annotations

import asyncio
import inspect
import os
import re
import site
import sys
import sysconfig
from collections.abc import Callable, Iterable, Iterator
from enum import IntEnum
from functools import lru_cache
from types import CodeType, FrameType
from typing import Any, Final, NamedTuple

Segments = Callable[[], Iterable[FrameType]]
"""Returns the innermost frames of the further stacks that the current one hangs from.

A stack that runs inside a greenlet ends where the greenlet starts; the code that awaits it is
found on the stacks of its parents.
"""

Opener = tuple[int, CodeType]
"""The frame that opened a scope: its `id`, which it has to itself while it runs, and its code."""

_MACHINERY: Final = frozenset(
    (  # noqa: SIM905  (a list of words reads best as words)
        "aiomysql aiosqlite alembic anyio asyncmy asyncpg fastapi fastapi_cli flask_sqlalchemy "
        "gevent greenlet gunicorn h11 httptools hypercorn jinja2 leakguard pluggy "
        "prometheus_client psycopg psycopg_pool pydantic pymysql pytest _pytest sentry_sdk "
        "sniffio sqlalchemy sqlmodel starlette trio uvicorn uvloop"
    ).split()
)
"""Packages that stand between the user's line and leakguard, wherever they are installed."""


class Frame(NamedTuple):
    """One of the user's own frames."""

    file: str
    """The path as Python knows it."""
    line: int
    """The line number, from 1."""
    function: str
    """The qualified name of the function."""


class Place(IntEnum):
    """Whose a source file is."""

    LIBRARY = 0
    """The standard library or a package that is never the user's line."""
    THIRD_PARTY = 1
    """Another installed package: the user's line where no line of theirs is on the stack."""
    USER = 2
    BOUNDARY = 3
    """The event loop or leakguard's middleware: what lies outside is not part of the scope."""


_LIBRARY: Final = Place.LIBRARY
_USER: Final = Place.USER
_BOUNDARY: Final = Place.BOUNDARY
"""Looked up among the names of the module, because to ask the class takes longer than a frame."""


class CallSite:
    """Where something happened: the user's own frames, innermost first; at least one."""

    __slots__ = ("_raw",)

    def __init__(self, raw: tuple[tuple[CodeType, int], ...]) -> None:
        """Take pairs of code object and offset of the last instruction (`f_lasti`)."""
        self._raw = raw

    @property
    def frames(self) -> tuple[Frame, ...]:
        """The user's frames, innermost first, as many as the settings keep."""
        return tuple(
            Frame(code.co_filename, _line(code, offset), code.co_qualname)
            for code, offset in self._raw
        )

    @property
    def file(self) -> str:
        """The path of the innermost user frame's file."""
        return self.code.co_filename

    @property
    def line(self) -> int:
        """The line number in `file`."""
        return _line(*self._raw[0])

    @property
    def function(self) -> str:
        """The qualified name of the innermost user frame's function."""
        return self.code.co_qualname

    @property
    def code(self) -> CodeType:
        """The code object of the innermost user frame: what a diagnosis looks at."""
        return self._raw[0][0]

    def __str__(self) -> str:
        """Say `file:line in function`, the file relative to the working directory."""
        return f"{relative_path(self.file)}:{self.line} in {self.function}"

    def __repr__(self) -> str:
        return f"<CallSite {self}>"

    def __eq__(self, other: object) -> bool:
        """Compare the innermost lines: the same line is the same site by whatever way."""
        if not isinstance(other, CallSite):
            return False
        (code, offset), (others, at) = self._raw[0], other._raw[0]
        # With the file, because code objects compare equal whatever file they come from.
        return offset == at and (
            code is others or (code == others and code.co_filename == others.co_filename)
        )

    def __hash__(self) -> int:
        # Not the code object, of which Python hashes the whole each time.
        code, offset = self._raw[0]
        return hash((offset, code.co_filename))


def capture(
    frame: FrameType | None, limit: int, segments: Segments, opener: Opener | None = None
) -> CallSite | None:
    """Return the site that `locate` finds."""
    return locate(frame, limit, segments, opener)[0]


def locate(
    frame: FrameType | None, limit: int, segments: Segments, opener: Opener | None = None
) -> tuple[CallSite | None, FrameType | None]:
    """Walk outwards from `frame`, and find up to `limit` user frames and the innermost of them.

    If an installed package opened the scope (`opener`) and no user frame was seen since, that
    package is the application: the walk ends there, because whoever is further out merely starts
    it. `None` if neither the user nor another installed package has a line on the stack.
    """
    # It runs at every checkout: of by far the most, the first that is no library's is the one.
    places = _places
    try:
        while frame is not None and places[frame.f_code.co_filename] is _LIBRARY:
            frame = frame.f_back
        if limit == 1 and frame is not None and places[frame.f_code.co_filename] is _USER:
            site = _new_object(CallSite)
            site._raw = ((frame.f_code, frame.f_lasti),)  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]  # in half the time of a call
            return site, frame
    except KeyError:  # a file that was not seen before
        pass
    return _locate(frame, limit, segments, opener)


_new_object: Final = object.__new__


def _locate(  # noqa: C901, PLR0912  (one loop: a call costs as much as a frame)
    frame: FrameType | None, limit: int, segments: Segments, opener: Opener | None
) -> tuple[CallSite | None, FrameType | None]:
    """Do so for whatever there is on the stack."""
    found: list[tuple[CodeType, int]] = []
    nearest: FrameType | None = None
    third_party: FrameType | None = None
    places = _places
    further: Iterator[FrameType] | None = None
    while True:
        while frame is not None:
            code = frame.f_code
            try:
                place = places[code.co_filename]
            except KeyError:
                place = place_of(frame)
            if place is not _LIBRARY:  # by far the most frequent
                if place is _USER:
                    found.append((code, frame.f_lasti))
                    if nearest is None:
                        nearest = frame
                    if len(found) == limit:
                        return CallSite(tuple(found)), nearest
                elif place is _BOUNDARY:
                    return _located(found, nearest, third_party)
                else:
                    if third_party is None:
                        third_party = frame
                    if opener is not None and not found and opener == (id(frame), code):
                        return _located(found, nearest, third_party)
            frame = frame.f_back
        if further is None:
            further = iter(segments())
        frame = next(further, None)
        if frame is None:
            return _located(found, nearest, third_party)


def no_segments() -> Iterable[FrameType]:
    """Say that the stack hangs from no other one."""
    return ()


def relative_path(file: str) -> str:
    """Return `file` relative to the working directory where it lies below it."""
    try:
        directory = os.getcwd()
    except OSError:  # the working directory was removed
        return file
    return file.removeprefix(directory.rstrip(os.sep) + os.sep)


def import_path(file: str) -> str:
    """Return `file` relative to the folder it is imported from: the same on every host."""
    # Python itself passes over entries that are no strings.
    return _below(tuple(entry for entry in sys.path if isinstance(entry, str)), file)


@lru_cache(maxsize=1024)
def _below(entries: tuple[str, ...], file: str) -> str:
    roots = [_absolute(entry) for entry in entries]
    below = [root for root in roots if file.startswith(root + os.sep)]
    return os.path.relpath(file, max(below, key=len)) if below else os.path.basename(file)


def _located(
    found: list[tuple[CodeType, int]], nearest: FrameType | None, third_party: FrameType | None
) -> tuple[CallSite | None, FrameType | None]:
    if found:
        return CallSite(tuple(found)), nearest
    if third_party is None:
        return None, None
    return CallSite(((third_party.f_code, third_party.f_lasti),)), third_party


@lru_cache(maxsize=1024)
def _line(code: CodeType, offset: int) -> int:
    for start, end, line in code.co_lines():
        if start <= offset < end and line is not None:
            return line
    return code.co_firstlineno


_JINJA_TEMPLATE: Final = "__jinja_template__"
"""What Jinja calls the template among the variables of the code that it generates from it."""

_places: Final[dict[str, Place]] = {}
_PLACES_LIMIT: Final = 10_000


def place_of(frame: FrameType) -> Place:
    """Classify a frame by its file, and remember the answer."""
    file = frame.f_code.co_filename
    known = _places.get(file)
    if known is not None:
        return known
    if file.startswith("<"):
        return Place.USER if _is_typed_in(frame) else Place.LIBRARY
    if len(_places) >= _PLACES_LIMIT:
        _places.clear()
    variables = frame.f_globals
    # What Jinja makes of a template has the template's file and lines of its own. The line to
    # report is the one that renders it.
    template = _JINJA_TEMPLATE in variables
    place = Place.LIBRARY if template else classify(file, _module(variables))
    _places[file] = place
    return place


def is_generator(code: CodeType) -> bool:
    """Return whether to call a function with that code makes a generator, and runs nothing yet."""
    return bool(code.co_flags & (inspect.CO_GENERATOR | inspect.CO_ASYNC_GENERATOR))


def _module(variables: dict[str, Any]) -> str:
    """Name the module, also where it was started by `python -m` and so is the main one."""
    return str(getattr(variables.get("__spec__"), "name", None) or variables.get("__name__"))


def _is_typed_in(frame: FrameType) -> bool:
    """Return whether code without a file is the user's: at a prompt, in a doctest, or `python -c`.

    A script that is the main module has a file; what is generated in it, such as the methods
    of its dataclasses, is nobody's line.
    """
    if frame.f_code.co_filename.startswith("<doctest "):
        return True
    variables = frame.f_globals
    return variables.get("__name__") == "__main__" and "__file__" not in variables


def classify(file: str, module: str) -> Place:
    """Return whose `file` is, by where it lies and by the name of its module."""
    path = _absolute(file)
    if path in _BOUNDARIES:
        return Place.BOUNDARY
    package = _package(path)
    # By the module's name, because packages may be installed anywhere: in a folder of PYTHONPATH,
    # in an archive, in the layer of a function service. A folder of the user's has any name.
    if package in _MACHINERY or module.partition(".")[0] in _MACHINERY:
        return Place.LIBRARY
    if package is not None:
        return Place.THIRD_PARTY
    return Place.LIBRARY if path.startswith(_LIBRARY_FOLDERS) else Place.USER


def _package(path: str) -> str | None:
    """Name the installed package, or program of one, that a file belongs to; `None`: none."""
    folder = next(filter(path.startswith, _PACKAGE_FOLDERS), None)
    if folder is None:
        # In another environment, or one for each package, the folder has the same name.
        found = _ANY_PACKAGE_FOLDER.match(path)
        if found is None:
            return None
        folder = found.group()
    return path[len(folder) :].split(os.sep, 1)[0].removesuffix(".py")


def mark_boundary(file: str) -> None:
    """Make a walk end at frames of `file`: what lies outside is not part of the scope."""
    _BOUNDARIES.add(_absolute(file))
    _places.pop(file, None)


def _absolute(path: str) -> str:
    try:
        return os.path.abspath(path)
    except OSError:  # a relative path, and the working directory was removed
        return path


def _folder(path: str) -> str:
    return _absolute(path) + os.sep


_PACKAGE_FOLDERS: Final = tuple(
    {
        _folder(path)
        for path in (
            sysconfig.get_path("purelib"),
            sysconfig.get_path("platlib"),
            sysconfig.get_path("scripts"),  # the programs of installed packages
            site.getusersitepackages(),
            *site.getsitepackages(),
        )
    }
)
_ANY_PACKAGE_FOLDER: Final = re.compile(r".*[/\\](site|dist)-packages[/\\]")
_LIBRARY_FOLDERS: Final = tuple(
    {
        _folder(path)
        for path in (
            sysconfig.get_path("stdlib"),
            sysconfig.get_path("platstdlib"),
            # leakguard itself, also where it is installed in editable form
            os.path.dirname(os.path.dirname(__file__)),
        )
    }
)
_BOUNDARIES: Final = {
    _absolute(inspect.getfile(module))
    for module in (asyncio.base_events, asyncio.events, asyncio.runners)
}
