"""What a run of tests, and a test, want to be done about leaks: ini, options and markers.

pytest imports this wherever leakguard is installed: no dataclasses, each of which would take as
long to make as two tests.
"""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple, cast

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from leakguard.core.finding import Finding

    Ignored = str | Callable[[Finding], bool]


class Reaction(StrEnum):
    """What is done about a leak."""

    OFF = "off"
    """Nothing."""
    WARN = "warn"
    """A `ConnectionLeakWarning` on the line that made it."""
    ERROR = "error"
    """The test fails."""


KINDS: Final = ("leaked", "reclaimed", "held", "pool_exhausted")
"""The kinds of findings that are of severity warning or error: those that a test can fail by."""

_MARKER: Final = "leakguard"
_SAME: Final = ("leaked", "reclaimed")
"""One mistake: whether the garbage collector came before the end of the test is chance."""
_REACTIONS: Final = ", ".join(repr(reaction.value) for reaction in Reaction)


class Run(NamedTuple):
    """What the run wants."""

    reaction: Reaction
    baseline: Path | None
    """The file of the leaks that are known."""
    update_baseline: bool
    """Whether to write that file, and not to fail by what goes into it."""
    report: Path | None
    """The file to write all findings to."""
    distributed: bool
    """Whether tests run in workers of pytest-xdist, and none in this process."""


class Wish(NamedTuple):
    """What a test wants."""

    reaction: Reaction
    ignore: tuple[Ignored, ...] = ()
    """Kinds, and predicates on findings, of what is nothing to it."""

    def ignores(self, finding: Finding) -> bool:
        """Return whether one of them says so."""
        kinds = _SAME if finding.kind.value in _SAME else (finding.kind.value,)
        return any(
            one in kinds if isinstance(one, str) else _says(one, finding) for one in self.ignore
        )


def _says(predicate: Callable[[Finding], bool], finding: Finding) -> bool:
    try:
        return predicate(finding)
    except Exception as error:
        name = getattr(predicate, "__qualname__", type(predicate).__name__)
        error.add_note(
            f"raised by {name}, of @pytest.mark.leakguard(ignore=[...]), when it was asked about:\n"
            f"{finding}"
        )
        raise


def add_options(parser: pytest.Parser) -> None:
    """Add the options and the ini setting to pytest's."""
    parser.addini("leakguard", f"What to do about connection leaks: {_REACTIONS}.", default="off")
    parser.addini(
        "leakguard_baseline",
        "A file of leaks that are known, relative to the ini file: only new ones count.",
        default="",
    )
    group = parser.getgroup("leakguard", "leaks of database connections")
    group.addoption(
        "--leakguard",
        choices=[reaction.value for reaction in Reaction],
        help="what to do about leaks, in place of the ini setting of that name",
    )
    group.addoption(
        "--leakguard-baseline",
        metavar="FILE",
        help="a file of leaks that are known, in place of the ini setting leakguard_baseline: only "
        "new ones count",
    )
    group.addoption(
        "--leakguard-update-baseline",
        action="store_true",
        help="write that file: the leaks of the tests that run are known from now on",
    )
    group.addoption("--leakguard-report", metavar="FILE", help="write all leaks to a file, as JSON")


def read_run(config: pytest.Config) -> Run:
    """Read what the run wants.

    Raises `pytest.UsageError` for what is not allowed, and for options that would have no effect.
    """
    option: str | None = config.getoption("leakguard")
    ini: str = config.getini("leakguard")
    reaction = _reaction("the ini setting leakguard", ini) if option is None else Reaction(option)
    baseline, report = _file(config, "baseline"), _file(config, "report")
    has_effect = baseline or report
    baseline = baseline or _file_of_ini(config)
    update = bool(config.getoption("leakguard_update_baseline"))
    if update and baseline is None:
        raise pytest.UsageError(
            "--leakguard-update-baseline writes the file that --leakguard-baseline or the ini "
            "setting leakguard_baseline names: add --leakguard-baseline=FILE"
        )
    if update and config.getoption("collectonly"):
        raise pytest.UsageError(
            "--leakguard-update-baseline writes down the leaks of the tests that run: leave out "
            "--collect-only"
        )
    if baseline is not None and report is not None and baseline.resolve() == report.resolve():
        raise pytest.UsageError(
            f"--leakguard-report={report} would overwrite the baseline: name another file"
        )
    if reaction is Reaction.OFF and option is None and has_effect:
        name = "--leakguard-report" if report else "--leakguard-baseline"
        raise pytest.UsageError(
            f"{name} has no effect while leaks are not looked for: add --leakguard=error (or "
            "warn), or set leakguard = error in the ini file"
        )
    # As pytest-xdist decides: --dist alone, without workers, has no effect.
    distributed = config.getoption("dist", "no") != "no" and bool(config.getoption("tx", None))
    return Run(reaction, baseline, update, report, distributed)


def marked(items: Iterable[pytest.Item]) -> Iterator[pytest.Item]:
    """Yield the tests that have a marker of leakguard's, on themselves or around them.

    As `iter_markers` would tell; but that takes its time, for tests that are many.
    """
    around: dict[int, bool] = {id(None): False}  # by `id()`: the hash of a node takes its time, too
    for item in items:
        if _is_marked(item, around):
            yield item


def _is_marked(node: pytest.Item | pytest.Collector, around: dict[int, bool]) -> bool:
    if node.own_markers and any(marker.name == _MARKER for marker in node.own_markers):
        return True
    parent: Any = node.parent
    if id(parent) not in around:
        around[id(parent)] = _is_marked(parent, around)
    return around[id(parent)]


def read_wish(node: pytest.Item | pytest.Collector, run: Run) -> Wish:
    """Read what a test, class or module wants: by its markers, those around it, and the run.

    The closest marker that says what to do wins; what they ignore adds up.
    Raises `pytest.UsageError` for a marker that is not allowed.
    """
    reaction: Reaction | None = None
    ignore: list[Ignored] = []
    for marker in node.iter_markers(_MARKER):
        try:
            wanted, ignored = _read_marker(marker)
        except ValueError as error:
            raise pytest.UsageError(f"{node.nodeid}: @pytest.mark.leakguard: {error}") from error
        reaction = reaction or wanted
        ignore += ignored
    return Wish(reaction or run.reaction, tuple(ignore))


def _read_marker(marker: pytest.Mark) -> tuple[Reaction | None, list[Ignored]]:
    arguments = dict(marker.kwargs)
    ignore = list(_ignored(arguments.pop("ignore", ())))
    if arguments:
        raise ValueError(f"there is no argument {next(iter(arguments))!r}; known is 'ignore'")
    if len(marker.args) > 1:
        raise ValueError(f"takes one of {_REACTIONS}, and ignore=[...], not {marker.args!r}")
    if not marker.args:
        return None, ignore
    return _reaction("its argument", marker.args[0], ValueError), ignore


def _ignored(value: object) -> Iterator[Ignored]:
    if not isinstance(value, list | tuple):
        raise ValueError(f"ignore={value!r} is not allowed: must be a list")  # noqa: TRY004
    for one in cast("list[Ignored]", value):
        if not callable(one) and one not in KINDS:
            kinds = ", ".join(map(repr, KINDS))
            raise ValueError(
                f"ignore=[{one!r}] is not allowed: must be of {kinds}, or a function that takes a "
                "finding, such as leakguard.ignore_route(...)"
            )
        yield one


def _reaction(what: str, value: object, error: type[Exception] = pytest.UsageError) -> Reaction:
    try:
        return Reaction(value)  # type: ignore[arg-type]
    except ValueError:
        raise error(f"{what} must be one of {_REACTIONS}, and is {value!r}") from None


def _file(config: pytest.Config, name: Literal["baseline", "report"]) -> Path | None:
    value: str | None = config.getoption(f"leakguard_{name}")
    if value is None:
        return None
    if not value:
        raise pytest.UsageError(f"--leakguard-{name} must name a file")
    return _checked(f"--leakguard-{name}={value}", config.invocation_params.dir / value)


def _file_of_ini(config: pytest.Config) -> Path | None:
    value: str = config.getini("leakguard_baseline")
    if not value:
        return None
    folder = config.rootpath if config.inipath is None else config.inipath.parent
    return _checked(f"the ini setting leakguard_baseline={value}", folder / value)


def _checked(setting: str, path: Path) -> Path:
    if path.is_dir() or not path.parent.is_dir():
        what = "is a folder" if path.is_dir() else f"cannot be in {path.parent}, which is no folder"
        raise pytest.UsageError(f"{setting}: {path.name} {what}")
    return path
