"""From a stack to the user's own lines."""

from __future__ import annotations

import asyncio.events
import os
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from types import CodeType, FrameType, SimpleNamespace
from typing import Any

import pytest

from leakguard.core import callsite
from leakguard.core.callsite import (
    CallSite,
    Place,
    capture,
    classify,
    import_path,
    locate,
    mark_boundary,
    no_segments,
    relative_path,
)
from leakguard.core.scope import current_scope
from tests.core.fakes import here, make_guard, site_at

SITE_PACKAGES = sysconfig.get_path("purelib")


@pytest.fixture(autouse=True)
def places(monkeypatch: pytest.MonkeyPatch) -> dict[str, Place]:
    """Let no test see what another one has learned of a file."""
    places: dict[str, Place] = {}
    monkeypatch.setattr(callsite, "_places", places)
    return places


def frame(level: int = 0) -> FrameType:
    return sys._getframe(level + 1)  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]  # documented


def call_from(file: str, function: Any, **more: object) -> Any:
    """Call `function` from a frame whose code claims to be in `file`."""
    variables = {"function": function, "__name__": "somewhere", "__file__": file, **more}
    exec(compile("def caller(): return function()\nresult = caller()", file, "exec"), variables)  # noqa: S102  (text of the test)
    return variables["result"]


def captured(limit: int = 1) -> CallSite | None:
    return capture(frame(1), limit, no_segments)


def test_a_call_site_is_the_caller_s_line() -> None:
    """With file, line and function."""
    site, line = here(), frame().f_lineno
    assert (site.file, site.line) == (__file__, line)
    assert site.function == "test_a_call_site_is_the_caller_s_line"
    assert str(site) == f"{relative_path(__file__)}:{line} in {site.function}"
    assert repr(site) == f"<CallSite {site}>"


def test_frames_are_kept_up_to_the_limit_innermost_first() -> None:
    """As many as the settings say."""

    def inner() -> CallSite | None:
        return capture(frame(), 2, no_segments)

    def outer() -> CallSite | None:
        return inner()

    site = outer()
    assert site is not None
    prefix = "test_frames_are_kept_up_to_the_limit_innermost_first.<locals>."
    assert [one.function for one in site.frames] == [prefix + "inner", prefix + "outer"]
    assert site.frames[0].file == __file__


def several_lines(record: Any) -> None:
    """Call from every kind of line that an expression can be spread over."""
    record(
        1,
        2,
    )
    [record(number) for number in range(2)]
    value = {
        "a": record(),
        "b": (record()),
    }
    with record() or open(os.devnull) as file:  # noqa: PTH123  (some context manager)
        record(
            file,
            value,
        )


def test_lines_are_those_that_python_says() -> None:
    """Decoded late from the offset of an instruction, a line is what the frame itself said."""
    lines: list[tuple[int, int]] = []

    def record(*_: object) -> None:
        site = capture(frame(1), 1, no_segments)
        assert site is not None
        lines.append((site.line, frame(1).f_lineno))

    several_lines(record)
    assert len(lines) == 7
    assert [line for line, _ in lines] == [line for _, line in lines]


def test_a_line_that_no_instruction_names_is_the_function_s() -> None:
    """An offset outside of the code is no reason to fail."""
    code = here().code
    assert CallSite(((code, 10**6),)).line == code.co_firstlineno


def test_library_frames_are_passed_over() -> None:
    """The standard library, frameworks and drivers are never the user's line."""
    for file in (
        os.path.join(os.path.dirname(os.__file__), "made_up.py"),  # noqa: PTH118, PTH120  (a string, as in code objects)
        f"{SITE_PACKAGES}/sqlalchemy/orm/session.py",
        f"{SITE_PACKAGES}/fastapi/made_up.py",
        f"{SITE_PACKAGES}/sniffio.py",
    ):
        assert classify(file, "somewhere") is Place.LIBRARY
        site = call_from(file, captured)
        assert site.function == "call_from"
    assert classify(callsite.__file__, callsite.__name__) is Place.LIBRARY


@pytest.mark.parametrize(
    "file, module, place",
    [
        ("/opt/python/sqlalchemy/orm/session.py", "sqlalchemy.orm.session", Place.LIBRARY),
        ("/srv/app.zip/starlette/routing.py", "starlette.routing", Place.LIBRARY),
        ("external/pip_anyio/site-packages/anyio/to_thread.py", "anyio.to_thread", Place.LIBRARY),
        ("/other/lib/site-packages/anyio/to_thread.py", "renamed.anyio", Place.LIBRARY),
        ("/other/lib/site-packages/the_application/db.py", "the_application.db", Place.THIRD_PARTY),
        ("/usr/lib/python3/dist-packages/helper.py", "helper", Place.THIRD_PARTY),
        ("/srv/sqlalchemy/app/db.py", "app.db", Place.USER),
        ("/srv/app/sqlalchemy/session.py", "app.sqlalchemy.session", Place.USER),
        ("/srv/app/sqlalchemy_models.py", "sqlalchemy_models", Place.USER),
        ("/srv/alembic/env.py", "env_py", Place.USER),
        (f"{sysconfig.get_path('scripts')}/the_program", "__main__", Place.THIRD_PARTY),
    ],
)
def test_libraries_are_known_wherever_they_are(file: str, module: str, place: Place) -> None:
    """In a folder of PYTHONPATH, an archive or a layer; a folder of the user's has any name."""
    assert classify(file, module) is place


@pytest.mark.parametrize(
    "variables",
    [
        {"__name__": "sqlalchemy.orm.session", "__spec__": None},
        {"__name__": "__main__", "__spec__": SimpleNamespace(name="uvicorn.__main__")},
    ],
)
def test_a_frame_is_known_by_the_name_of_its_module(variables: dict[str, Any]) -> None:
    """By what it was imported as, where it is the one that was started."""
    assert call_from("/opt/python/module.py", captured, **variables).function == "call_from"


def test_a_library_that_is_started_is_known(tmp_path: Path) -> None:
    """By `python -m` its module is called `__main__`."""
    (tmp_path / "pytest").mkdir()
    (tmp_path / "pytest" / "__init__.py").touch()
    (tmp_path / "pytest" / "__main__.py").write_text(
        "import sys\n"
        "from leakguard.core.callsite import capture, no_segments\n"
        "print(capture(sys._getframe(), 1, no_segments))"
    )
    out = subprocess.run(
        [sys.executable, "-m", "pytest"],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
        env={"PYTHONPATH": str(Path(__file__).parents[2])},
    )
    assert out.stdout.strip() == "None"


def test_another_package_is_the_line_where_there_is_none_of_the_user_s() -> None:
    """An application that is itself installed is named by its innermost frame."""
    file = f"{SITE_PACKAGES}/the_application/db.py"
    assert classify(file, "the_application.db") is Place.THIRD_PARTY
    assert call_from(file, captured).function == "call_from"

    def ending_here() -> CallSite | None:
        return capture(only(frame(1), 1), 1, no_segments)

    site = call_from(file, ending_here)
    assert (site.file, site.function) == (file, "caller")


INSTALLED_JOB = """
def work():
    return function()

def job():
    with guard.scope("job"):
        return work()

async def async_job():
    async with guard.scope("job"):
        return work()
"""


def installed(file: str, **variables: object) -> dict[str, Any]:
    """Return what `INSTALLED_JOB` defines, as a module of an installed package."""
    path = f"{SITE_PACKAGES}/{file}"
    module = {"__name__": file.removesuffix(".py").replace("/", "."), **variables}
    exec(compile(INSTALLED_JOB, path, "exec"), module)  # noqa: S102  (text of the test)
    return module


def captured_in_scope() -> CallSite | None:
    scope = current_scope.get()
    assert scope is not None
    return capture(frame(1), 12, no_segments, scope.opener)


def test_an_installed_application_that_opens_the_scope_wins_over_its_launcher() -> None:
    """The script that starts it, here the test, is outside of the scope's block."""
    module = installed("app/jobs.py", function=captured_in_scope, guard=make_guard())
    with pytest.raises(StopIteration) as stopped:
        module["async_job"]().send(None)
    for site in (module["job"](), stopped.value.value):
        assert [one.function for one in site.frames] == ["work"]
        assert site.file == f"{SITE_PACKAGES}/app/jobs.py"


def test_a_helper_library_does_not_win_over_whose_code_opened_the_scope() -> None:
    """The user's own line is what they want, whatever it calls."""
    helper = installed("helper.py", function=captured_in_scope)
    with make_guard().scope("job"):
        site = helper["work"]()
    assert site.file == __file__


def test_a_helper_library_does_not_win_over_the_user_s_own_function() -> None:
    """An installed framework for jobs, say, opens the scope and calls the user's code."""
    helper = installed("helper.py", function=captured_in_scope)

    def own() -> Any:
        return helper["work"]()

    framework = installed("framework.py", function=own, guard=make_guard())
    assert framework["job"]().function.endswith("own")


def test_an_installed_application_is_named_inside_of_an_event_loop() -> None:
    """The walk ends at the loop, and what was passed on the way is what there is."""
    file = f"{SITE_PACKAGES}/the_application/db.py"
    variables: dict[str, Any] = {"captured": captured}
    exec(compile("def get_db(): return captured()", file, "exec"), variables)  # noqa: S102  (text of the test)
    site = call_from(asyncio.events.__file__, variables["get_db"])
    assert (site.file, site.function) == (file, "get_db")


def only(frame: FrameType, count: int) -> Any:
    """Return a stack of `count` frames, and no more."""

    class Shown:
        """A frame without those outside of it."""

        def __init__(self, shown: FrameType, left: int) -> None:
            self.f_code, self.f_lasti = shown.f_code, shown.f_lasti
            self.f_globals = shown.f_globals
            outer = shown.f_back
            self.f_back = None if outer is None or left < 2 else Shown(outer, left - 1)

    return Shown(frame, count)


def test_without_any_line_there_is_no_site() -> None:
    """Neither the user's nor another package's."""
    assert capture(None, 1, no_segments) is None

    def ending_here() -> CallSite | None:
        return capture(only(frame(1), 1), 1, no_segments)

    assert call_from(f"{SITE_PACKAGES}/sqlalchemy/engine/base.py", ending_here) is None


def test_a_walk_ends_at_a_boundary(tmp_path: Path) -> None:
    """What is outside of the event loop or the middleware is not part of the scope."""
    assert call_from(asyncio.events.__file__, captured) is None
    boundary = str(tmp_path / "server.py")
    assert call_from(boundary, captured).file == boundary
    mark_boundary(boundary)
    assert call_from(boundary, captured) is None
    unseen = str(tmp_path / "other_server.py")
    mark_boundary(unseen)
    assert call_from(unseen, captured) is None
    inner = str(tmp_path / "application.py")
    site = call_from(boundary, lambda: call_from(inner, lambda: captured(12)))
    assert [one.file for one in site.frames][-1] == __file__


@pytest.mark.parametrize("limit", [1, 12])
@pytest.mark.parametrize("bounded", [True, False])
def test_with_the_site_comes_the_frame_that_it_begins_in(limit: int, bounded: bool) -> None:
    """Wherever the walk ends: whoever looks further outwards begins there."""

    def inner() -> tuple[CallSite | None, FrameType | None]:
        start = frame() if bounded else only(frame(), 2)
        return locate(start, limit, no_segments)

    def outer() -> tuple[CallSite | None, FrameType | None]:
        return inner()

    site, nearest = call_from(asyncio.events.__file__, outer)
    assert len(site.frames) == min(limit, 2)
    assert site.function == inner.__qualname__
    assert nearest.f_code is inner.__code__


def test_a_walk_goes_on_at_the_parent_stacks() -> None:
    """A stack that runs in a greenlet hangs from the one that awaits it."""
    outside = frame()

    def segments() -> Iterator[FrameType]:
        yield only(outside, 1)

    site = capture(None, 12, segments)
    assert site is not None
    assert site.frames[0].function == "test_a_walk_goes_on_at_the_parent_stacks"


def test_generated_code_is_nobody_s() -> None:
    """Methods of dataclasses and the like are not the user's line."""
    assert call_from("<string>", captured).function == "call_from"


def test_what_stands_in_a_doctest_is_the_user_s() -> None:
    """Its name says which example it is."""
    assert call_from("<doctest app.db[0]>", captured).file == "<doctest app.db[0]>"


def test_a_template_is_passed_over() -> None:
    """Jinja's code has the template's file, and lines that the template does not have."""
    template = call_from("/srv/app/page.html", captured, __jinja_template__=object())
    assert template.function == "call_from"
    assert call_from("/srv/app/page.txt", captured).file == "/srv/app/page.txt"


@pytest.mark.parametrize("how", ["argument", "script"])
def test_what_is_typed_in_is_the_user_s(tmp_path: Path, how: str) -> None:
    """At a prompt or after `python -c`; what a script generates is not."""
    code = (
        "import sys\n"
        "from leakguard.core.callsite import capture, no_segments\n"
        "names = {'capture': capture, 'sys': sys, 'none': no_segments, **globals()}\n"
        "exec('def f(): return capture(sys._getframe(), 1, none)', names)\n"
        "print(names['f']().function)"
    )
    script = tmp_path / "script.py"
    script.write_text(code)
    arguments = ["-c", code] if how == "argument" else [str(script)]
    out = subprocess.run(  # noqa: S603  (our own code)
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[2],
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
    )
    assert out.stdout.strip() == ("f" if how == "argument" else "<module>")


def test_sites_are_equal_by_their_innermost_line() -> None:
    """By whatever way one got there; in another file it is another line."""
    one = site_at("app/db.py", 12, "get_db")
    caller = site_at("app/main.py", 1, "main")
    code = one.code
    same_code = CallSite(((code, 0), (caller.code, 0)))
    assert one == same_code
    assert hash(one) == hash(same_code)
    assert one != caller
    assert one != CallSite(((code, len(code.co_code) - 2),))  # another line of the function
    assert one != site_at("app/other.py", 12, "get_db")
    assert one != "app/db.py:12"
    assert hash(one) != hash(caller)
    assert isinstance(code, CodeType)


def test_a_file_is_looked_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its place is known from then on: a checkout passes many frames of the same few files."""
    looked_at: list[str] = []

    def look(file: str, module: str) -> Place:
        looked_at.append(file)
        return classify(file, module)

    monkeypatch.setattr(callsite, "classify", look)
    for _ in range(2):
        site = call_from("/made/up.py", captured)
        assert [one.file for one in site.frames][:1] == ["/made/up.py"]
    assert looked_at.count("/made/up.py") == 1


def test_the_memory_of_files_is_bounded(
    monkeypatch: pytest.MonkeyPatch, places: dict[str, Place]
) -> None:
    """However many files there are."""
    monkeypatch.setattr(callsite, "_PLACES_LIMIT", 3)
    for number in range(20):
        call_from(f"/made/up/{number}.py", captured)
        assert len(places) <= 3


def test_paths_are_relative_to_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Below it; elsewhere they are whole, and also where it has been removed."""
    directory = tmp_path / "project"
    directory.mkdir()
    monkeypatch.chdir(directory)
    assert relative_path(str(directory / "app" / "db.py")) == os.path.join("app", "db.py")  # noqa: PTH118  (a string)
    assert relative_path("/srv/db.py") == "/srv/db.py"
    monkeypatch.chdir(os.sep)
    assert relative_path(os.path.abspath("db.py")) == "db.py"  # noqa: PTH100  (a string)
    monkeypatch.chdir(directory)
    directory.rmdir()
    assert relative_path("/srv/db.py") == "/srv/db.py"
    assert classify("made_up.py", "made_up") is Place.USER
    monkeypatch.chdir(tmp_path)


def test_import_paths_are_relative_to_the_nearest_root(monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder that the module is imported from; without one, the file's name."""
    monkeypatch.setattr(sys, "path", ["/srv", "/srv/app", b"/odd", "relative"])
    assert import_path("/srv/app/db.py") == "db.py"
    assert import_path("/srv/other/db.py") == os.path.join("other", "db.py")  # noqa: PTH118  (a string)
    assert import_path("/elsewhere/db.py") == "db.py"
