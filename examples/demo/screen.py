"""The terminal, or the file that the output goes to, and what pages are made of."""

from __future__ import annotations

import os
import re
import sys
import textwrap
from collections.abc import Callable, Sequence
from inspect import getsource, getsourcelines

from rich import box
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.panel import Panel
from rich.rule import Rule
from rich.syntax import Syntax
from rich.table import Table
from rich.text import Text

from examples.demo.interruption import heed

NARROWEST, WIDEST = 60, 140
"""Columns that a table needs, and that the eye bears."""
PROSE = 100
SIDE_BY_SIDE = 130
"""Columns from which a table and a report fit abreast."""

GOOD, BAD, QUIET, STRONG = "green", "bold red", "dim", "bold"


class Screen:
    """Prints one thing below the other, with an empty line between them."""

    def __init__(self) -> None:
        # With NO_COLOR, rich alone leaves out the colours, but not bold and the like.
        plain = bool(os.environ.get("NO_COLOR"))
        console = Console(highlight=False, color_system=None if plain else "auto")
        console.width = max(NARROWEST, min(console.width, WIDEST))
        self._console = console
        self.wide = console.width >= SIDE_BY_SIDE

    def heading(self, text: str) -> None:
        """Begin a page."""
        self.show(Rule(Text(f" {text} ", STRONG), style=GOOD))

    def say(self, *texts: str) -> None:
        """Print sentences with rich's markup, each on lines of its own."""
        self.show(*(Text.from_markup(text) for text in texts), width=PROSE)

    def show(self, *things: RenderableType, width: int = WIDEST) -> None:
        """Print things, and an empty line."""
        heed()
        with self._console.capture() as captured:
            self._console.print(Group(*things), width=min(width, self._console.width))
        # Without the blanks that fill a line: they are a nuisance in a file.
        lines = (line.rstrip() for line in captured.get().rstrip("\n").split("\n"))
        text = "\n".join([*lines, "\n"])
        encoding = self._console.encoding  # which may lack a character of somebody's report
        sys.stdout.write(text.encode(encoding, "replace").decode(encoding))
        sys.stdout.flush()

    def dots(self, full: int, of: int) -> str:
        """Draw `full` of so many places."""
        utf8 = self._console.encoding.startswith("utf")
        on, off = ("●", "○") if utf8 else ("#", ".")
        return on * full + off * (of - full)


def table(*columns: str) -> Table:
    """Begin a table that is easy to read in a file, too."""
    made = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0), pad_edge=False)
    made.header_style = STRONG
    for column in columns:
        made.add_column(column, overflow="fold")
    return made


def titled(title: str, rest: str = "") -> Text:
    """Return the line above a table."""
    return Text.assemble((title, STRONG), (f"   {rest}" if rest else "", QUIET), "\n")


def beside(*things: RenderableType, equal: bool = False) -> Table:
    """Put things abreast: in columns of the same width, or the last one in what is left."""
    grid = Table.grid(padding=(0, 1, 0, 0), expand=True)
    for thing in things:
        grid.add_column(ratio=1 if equal or thing is things[-1] else None)
    grid.add_row(*things)
    return grid


def source(title: str, function: Callable[..., object]) -> RenderableType:
    """Show a function as it stands in its file."""
    code = Syntax(
        getsource(function).rstrip(),
        "python",
        theme="ansi_dark",
        line_numbers=True,
        start_line=getsourcelines(function)[1],
        background_color="default",
    )
    return Group(Text(title, STRONG), code)


def quoted(title: str, text: str) -> Panel:
    """Frame what somebody else printed, word for word."""
    lines = text.strip("\n").splitlines() or ["(nothing)"]
    return Panel(_Folded(lines), title=title, title_align="left")


class _Folded:
    """Lines that, where they are too long, go on below the place where their own text begins."""

    def __init__(self, lines: Sequence[str]) -> None:
        self._lines = lines

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        del console  # the protocol's
        yield from (Text(fold(line, options.max_width)) for line in self._lines)


def fold(line: str, width: int) -> str:
    """Break a line so that it goes on below its text, which may stand behind a label."""
    label = re.match(r"(?:\s+\S+(?: \S+)*)?\s{2,}(?=\S)", line)
    beginning = len(line) - len(line.lstrip())
    indent = label.end() if label and label.end() < width // 2 else beginning + 2
    return textwrap.fill(
        line,
        width,
        subsequent_indent=" " * indent,
        break_on_hyphens=False,
        replace_whitespace=False,
    )
