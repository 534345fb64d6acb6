"""The tables and the plot of docs/performance.md, from the figures of a run.

Run as `python -m benchmarks.page` it makes them anew from docs/performance.json.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

Content = Mapping[str, Any]
"""What a run has written down: of the machine, and of its sections."""

BARE = ("bare", "bare, SQLAlchemy 2.0")
MAIN = "sync, 1 statement, SQLite"
"""The workload that the plot shows."""
WATCHED = ("leakguard, production", "leakguard, development")


def write(docs: Path, content: Content) -> None:
    """Write the plot, and the tables into the page."""
    page = docs / "performance.md"
    page.write_text(filled(page.read_text(encoding="utf-8"), content), encoding="utf-8")
    plot(docs / "performance.svg", content)


def filled(text: str, content: Content) -> str:
    """Return the page with the tables between the marks that name them."""
    for name, lines in tables(content).items():
        before, mark, rest = text.partition(f"<!-- {name} -->\n")
        _, end, after = rest.partition("<!-- end -->")
        if not (mark and end):
            raise SystemExit(f"the page has no place for the table {name!r}")
        text = "".join([before, mark, *(f"{line}\n" for line in lines), end, after])
    return text


def tables(content: Content) -> dict[str, Iterable[str]]:
    """Return all tables by name."""
    sections = content["sections"]
    return {
        "machine": (f"- {name}: {what}" for name, what in content["machine"].items()),
        "requests": peers(sections["requests"]),
        "workloads": workloads(sections["requests"]),
        "server": servers(sections["server"]),
        "checkouts": checkouts(sections["checkouts"]),
        "memory": memory(sections["memory"]),
        "storm": storm(sections["storm"]),
        "pytest_plugin": suites(sections["pytest_plugin"]),
    }


def peers(results: Sequence[Content]) -> Iterator[str]:
    """Show what every way adds to a request, in the workloads of most applications."""
    shown = [one for one in results if one["title"] in (MAIN, *_ALSO)]
    yield from head("", *(one["title"] for one in shown))
    for way in shown[0]["ways"]:
        if way not in BARE:
            yield row(way, *(added(one["ways"].get(way)) for one in shown))


_ALSO = ("no database work", "async, 1 statement, SQLite", "sync, 1 statement, PostgreSQL")


def workloads(results: Sequence[Content]) -> Iterator[str]:
    """Show what leakguard adds in every workload."""
    yield from head("", "bare, us", "floor", *WATCHED)
    for one in results:
        ways = one["ways"]
        bare = f"{ways['bare']['value']:.0f}"
        yield row(one["title"], bare, *(added(ways[way]) for way in ("floor", *WATCHED)))


def servers(results: Sequence[Content]) -> Iterator[str]:
    """Show throughput and latencies of servers, relative to the bare one."""
    yield from head("", "server", "requests/s", "relative", "p50", "p99")
    for one in results:
        for way, per_second in one["per_second"].items():
            yield row(
                one["title"],
                way,
                f"{per_second['value']:.0f}",
                *(ratio(one[name][way]) for name in ("per_second", "p50", "p99")),
            )


def checkouts(results: Sequence[Content]) -> Iterator[str]:
    """Show what a checkout costs."""
    ways = list(results[0]["ways"])
    yield from head("", "bare, us", *ways[1:])
    for one in results:
        bare, *others = one["ways"].values()
        yield row(one["title"], f"{bare['value']:.1f}", *map(added, others))


def memory(results: Sequence[Content]) -> Iterator[str]:
    """Show how many bytes there are more."""
    yield from head("", "bytes that leakguard adds", "bytes without it")
    for one in results:
        yield row(one["title"], str(one["added"]), str(one["bare"]))


def storm(results: Sequence[Content]) -> Iterator[str]:
    """Show what requests cost that leak."""
    yield from head("", "", "us", "relative", "grew by")
    for one in results:
        for way, figures in one["ways"].items():
            grown = f"{one['grown_kib'][way]:.0f} KiB in {one['requests']} requests"
            yield row(one["title"], way, f"{figures['value']:.0f}", ratio(figures), grown)


def suites(results: Sequence[Content]) -> Iterator[str]:
    """Show what the plugin costs a suite."""
    ways = list(results[0]["ways"])
    yield from head("1,000 trivial tests", f"{ways[0]}, ms", *ways[1:])
    for one in results:
        base, *others = one["ways"].values()
        cells = [f"{way['ratio'] - 1:+.1%}" for way in others]
        yield row(one["title"], f"{base['value']:.0f}", *cells)


def head(*names: str) -> Iterator[str]:
    """Yield the first two lines of a table."""
    yield row(*names)
    yield row(*("---" if number < 1 else "---:" for number in range(len(names))))


def row(*cells: str) -> str:
    """Return a line of a table."""
    return f"| {' | '.join(cells)} |"


def added(figures: Mapping[str, float] | None) -> str:
    """Return what a way adds, with the quartiles; a dash for one that was left out."""
    if figures is None:
        return "-"
    return f"{figures['added']:+.1f} ({figures['added_low']:+.1f} to {figures['added_high']:+.1f})"


def ratio(figures: Mapping[str, float]) -> str:
    """Return how a way is relative to the bare one, with the quartiles."""
    return f"{figures['ratio']:.3f} ({figures['ratio_low']:.3f} to {figures['ratio_high']:.3f})"


def plot(path: Path, content: Content) -> None:
    """Draw what every way adds to a request."""
    results = content["sections"]["requests"]
    figures = next(one["ways"] for one in results if one["title"] == MAIN)
    ways = sorted((way for way in figures if way not in BARE), key=lambda w: figures[w]["added"])
    values = [figures[way]["added"] for way in ways]
    errors = [
        [figures[way]["added"] - figures[way]["added_low"] for way in ways],
        [figures[way]["added_high"] - figures[way]["added"] for way in ways],
    ]
    matplotlib: Any = import_module("matplotlib")
    matplotlib.use("svg")
    matplotlib.rcParams.update({"svg.hashsalt": "leakguard", "svg.fonttype": "none"})
    pyplot: Any = import_module("matplotlib.pyplot")
    figure, axes = pyplot.subplots(figsize=(8, 0.4 * len(ways) + 1), layout="constrained")
    colours = ["#c0392b" if way in WATCHED else "#7f8c8d" for way in ways]
    bars = axes.barh(ways, values, xerr=errors, color=colours, ecolor="#2c3e50")
    axes.bar_label(bars, fmt="%.0f", padding=6)
    axes.set_xlabel("microseconds of CPU added to a request (median, quartiles)")
    axes.set_title(f"FastAPI: {MAIN}", loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, metadata={"Date": None, "Creator": None})


if __name__ == "__main__":
    folder = Path(__file__).parent.parent / "docs"
    write(folder, json.loads((folder / "performance.json").read_text(encoding="utf-8")))
