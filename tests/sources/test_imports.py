"""Something is done when a module is imported, and the module does not notice."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from leakguard.sources.imports import when_imported

NAME = "imported_later"


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Return the file of a module that can be imported as soon as it is written."""
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    before = sys.meta_path.copy()
    yield tmp_path / f"{NAME}.py"
    sys.modules.pop(NAME, None)
    sys.meta_path[:] = before


def test_it_is_done_when_the_module_s_own_code_has_run(place: Path) -> None:
    """Once, and nothing is left of how."""
    place.write_text("done = ['own code']")
    finders = sys.meta_path.copy()

    def job() -> None:
        sys.modules[NAME].done.append("job")

    when_imported(NAME, job)
    module = importlib.import_module(NAME)
    assert module.done == ["own code", "job"]
    assert sys.meta_path == finders
    assert module.__spec__ is not None
    assert module.__loader__ is module.__spec__.loader
    assert type(module.__loader__).__module__.startswith("_frozen_importlib")
    importlib.reload(module)
    assert module.done == ["own code"]


def test_nobody_waits_for_ever(place: Path) -> None:
    """Whoever waits may give up, before and after."""
    place.write_text("")
    finders = sys.meta_path.copy()
    done: list[str] = []
    give_up = when_imported(NAME, lambda: done.append("job"))
    for _ in range(2):
        give_up()
        assert sys.meta_path == finders
    importlib.import_module(NAME)
    assert done == []


def test_it_is_done_at_once_where_the_module_is_there() -> None:
    """Nobody will import it again."""
    done: list[str] = []
    when_imported("sys", lambda: done.append("job"))
    assert done == ["job"]


def test_a_module_that_is_not_there_yet(place: Path) -> None:
    """Whoever asks is told as ever, and the job is done when it has come."""
    done: list[str] = []
    when_imported(NAME, lambda: done.append("job"))
    with pytest.raises(ModuleNotFoundError, match=NAME):
        importlib.import_module(NAME)
    assert done == []
    place.write_text("")
    importlib.invalidate_caches()
    importlib.import_module(NAME)
    assert done == ["job"]


def test_a_module_whose_code_fails(place: Path) -> None:
    """Its error is everybody's to see, and nothing is done."""
    place.write_text("raise LookupError('broken')")
    done: list[str] = []
    when_imported(NAME, lambda: done.append("job"))
    with pytest.raises(LookupError, match="broken"):
        importlib.import_module(NAME)
    assert done == []


def test_to_look_for_a_module_is_not_to_import_it(place: Path) -> None:
    """As those do who ask whether it is installed."""
    place.write_text("")
    done: list[str] = []
    when_imported(NAME, lambda: done.append("job"))
    assert find_spec(NAME) is not None
    assert done == []
    importlib.import_module(NAME)
    assert done == ["job"]
