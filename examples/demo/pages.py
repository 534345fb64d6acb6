"""The pages of the demonstration, in the order in which they are shown."""

from __future__ import annotations

import platform
from collections.abc import Iterable, Sequence
from importlib.metadata import version

from rich.console import Group
from rich.table import Table
from rich.text import Text

from examples.demo.application import HAS_FUNCTION_SCOPE, Example
from examples.demo.lifecycle import Life, rows, verdict
from examples.demo.observation import What
from examples.demo.screen import (
    BAD,
    GOOD,
    QUIET,
    STRONG,
    Screen,
    beside,
    quoted,
    source,
    table,
    titled,
)
from examples.demo.server import HOST
from examples.demo.shortage import POOL_SIZE, POOL_TIMEOUT, Shortage

PACKAGES = ("FastAPI", "Starlette", "SQLAlchemy", "uvicorn")


def introduction(screen: Screen, examples: Iterable[Example], port: int) -> None:
    """Show where the two examples differ, and what they run on."""
    screen.heading("Where did the connection go?")
    screen.say(
        "get_db() opens a session, lends it to the endpoint and closes it. These two differ in "
        "nothing but [bold]finally[/]:"
    )
    codes = (source(example.title, example.module.get_db) for example in examples)
    screen.show(beside(*codes, equal=True))
    versions = (f"{name} {version(name.lower())}" for name in PACKAGES)
    screen.say(
        f"Both now run under uvicorn on http://{HOST}:{port} with a SQLite file. All that follows "
        "was observed on live requests.",
        f"[{QUIET}]Python {platform.python_version()}, {', '.join(versions)}[/]",
    )


# --- the life of a request ------------------------------------------------------------------------


def lives(screen: Screen, seen: Sequence[Life]) -> None:
    """Show every request step by step, then in a line each, and what leakguard said."""
    screen.heading("The life of a request")
    screen.say(
        "In the order in which it was seen. [bold](n)[/]: connections out of the pool at that "
        "moment, by its own count. The value is what the variable db of get_db() named."
    )
    for one in seen:
        _steps(screen, one)
    _comparison(screen, seen)
    _report(screen, _find(seen, with_finally=False, raises=True))


def _find(seen: Iterable[Life], *, with_finally: bool, raises: bool) -> Life:
    wanted = (with_finally, raises)
    return next(one for one in seen if (one.variation.with_finally, one.variation.raises) == wanted)


def _steps(screen: Screen, seen: Life) -> None:
    steps = table("Step", "Action", "Connection State", "Yielded Value", "Notes")
    for number, row in enumerate(rows(seen), 1):
        steps.add_row(f"{number:>3}", *row[:4], style=_TURNS[row.turn])
    request = Text(f"GET {seen.variation.path}\n", QUIET)
    screen.show(Text(seen.variation.title, STRONG), request, steps)


_TURNS = {None: "", "returned": GOOD, "lost": BAD}


def _comparison(screen: Screen, seen: Sequence[Life]) -> None:
    endings = table("get_db", "Endpoint", "Scope", "Then, in this order", "Connection", "leakguard")
    for one in seen:
        endings.add_row(
            "with finally" if one.variation.with_finally else "without finally",
            "raises" if one.variation.raises else "returns",
            "function" if one.variation.function_scope else "default",
            ", ".join(_ENDINGS[what] for what in one.ending),
            "still out" if one.out else "returned",
            verdict(one),
            style=BAD if one.out else "",
        )
    screen.show(titled("Every variation", "what came after the endpoint"), endings)
    screen.say(_about_order([one for one in seen if one.variation.with_finally]))


_ENDINGS = {What.RESPONDED: "response", What.CLOSED: "close()"}


def _about_order(seen: Sequence[Life]) -> str:
    orders = [
        "after" if one.ending[:1] == (What.RESPONDED,) else "before"
        for one in seen
        if not one.variation.raises
    ]
    default = (
        f"When the endpoint returns, FastAPI {version('fastapi')} ends get_db() "
        f"[bold]{orders[0]}[/] the response"
    )
    if HAS_FUNCTION_SCOPE:
        return f'{default}, and [bold]{orders[1]}[/] it with Depends(get_db, scope="function").'
    return f'{default}. It has no Depends(get_db, scope="function") yet: that came with 0.121.'


def _report(screen: Screen, leaking: Life) -> None:
    screen.heading("What leakguard says, the moment the leaking request is over")
    screen.say(
        "The applications have it by one line: [bold]app.add_middleware(LeakGuardMiddleware)[/]. "
        "In development mode it speaks twice, here as the terminal had it:"
    )
    warning = quoted("the warning, as Python prints it", leaking.warning)
    screen.show(quoted("the log", leaking.log), warning)


# --- the shortage ---------------------------------------------------------------------------------


def shortage(screen: Screen, with_finally: Shortage, without: Shortage) -> None:
    """Show a small pool running dry, beside the report that came with the first leak."""
    screen.heading("What the leak does")
    screen.say(
        f"The same applications, started anew, each with a pool of {POOL_SIZE} connections. "
        f"{POOL_SIZE} requests ask for an item that does not exist, then one for an item that does."
    )
    _running_dry(screen, without)
    screen.say(
        f"Request {POOL_SIZE + 1} did nothing wrong, and SQLAlchemy's error does not say who did. "
        "leakguard adds that to it. It had named the line with request 1, before anybody noticed a "
        "thing."
    )
    screen.show(titled("with finally", "the same requests"), _requests(screen, with_finally))
    screen.say(*_about_collector(without))


def _running_dry(screen: Screen, without: Shortage) -> None:
    requests = Group(titled("without finally"), _requests(screen, without))
    guarded = quoted("leakguard, with request 1", without.failing[0].log)
    failed = quoted(f"the server's error, with request {POOL_SIZE + 1}", without.then.error)
    added = quoted("what leakguard adds to it", without.then.log)
    both = (beside(requests, guarded),) if screen.wide else (requests, "", guarded)
    screen.show(*both, failed, added)


def _requests(screen: Screen, seen: Shortage) -> Table:
    made = table("", "Item", "Connections out", "Took", "The client saw", "On the server")
    for number, request in enumerate((*seen.failing, seen.then), 1):
        made.add_row(
            str(number),
            request.item,
            f"{screen.dots(request.out, POOL_SIZE)} {request.out} of {POOL_SIZE}",
            f"{request.seconds * 1000:.0f} ms",
            Text(f"{request.answer.status} {request.answer.text}"),
            request.error.partition(":")[0],
            style=BAD if request.out else "",
        )
    return made


def _about_collector(without: Shortage) -> tuple[str, str]:
    resolution = without.resolutions[0] if without.resolutions else "nothing"
    paused = (
        "So that chance plays no part, Python's garbage collector was paused; and a request "
        f"waited {POOL_TIMEOUT} s for a connection, not 30."
    )
    afterwards = (
        "Then the collector ran. Connections out without finally: "
        f"{without.out_when_collected} of {POOL_SIZE}. "
        f"leakguard: {resolution}. The same request again: {without.afterwards.answer.status}."
    )
    return f"[{QUIET}]{paused}[/]\n", afterwards


# --- the end --------------------------------------------------------------------------------------


def summary(
    screen: Screen, seen: Sequence[Life], with_finally: Shortage, without: Shortage
) -> None:
    """Show it all in two columns."""
    screen.heading("Summary")
    good = _column(screen, [one for one in seen if one.variation.with_finally], with_finally)
    bad = _column(screen, [one for one in seen if not one.variation.with_finally], without)
    made = table("", "with finally", "without finally")
    for label, left in good.items():
        right = bad[label]
        made.add_row(label, Text(left, GOOD), Text(right, GOOD if left == right else BAD))
    screen.show(made)


def _column(screen: Screen, seen: Sequence[Life], small_pool: Shortage) -> dict[str, str]:
    returning = next(one for one in seen if not one.variation.raises)
    raising = next(one for one in seen if one.variation.raises)
    out, then = small_pool.failing[-1].out, small_pool.then
    return {
        "endpoint returns": _outcome(returning),
        "endpoint raises": _outcome(raising),
        "db, when it raises": ", ".join(raising.db),
        "close() was called": f"{sum(one.closed for one in seen)} of {len(seen)} times",
        f"pool of {POOL_SIZE}, {POOL_SIZE} errors": f"{screen.dots(out, POOL_SIZE)} {out} out",
        "the next request": f"{then.answer.status} after {then.seconds * 1000:.0f} ms",
        "leakguard": _said(raising),
    }


def _outcome(seen: Life) -> str:
    closed = "session closed" if seen.closed else "session not closed"
    return f"{closed}, {seen.out} out"


def _said(seen: Life) -> str:
    places = [finding.hold.created_at for finding in seen.findings if finding.hold]
    return ", ".join([verdict(seen), *(f"line {place.line}" for place in places if place)])


def conclusion(screen: Screen, claims: int) -> None:
    """Say that all of it is true."""
    screen.say(f"[{GOOD}]Checked: all {claims} claims made above agree with what was observed.[/]")


def urls(screen: Screen, port: int) -> None:
    """Show what to try."""
    screen.heading("Your turn")
    lines = table("Open, or curl", "leakguard")
    lines.columns[0].no_wrap = True  # to be copied
    for path, said in _URLS:
        lines.add_row(f"http://{HOST}:{port}{path}", said)
    screen.show(lines)
    screen.say("A leak is told in full the first time, and then counted, once a minute at most.")
    screen.say("The server runs until Ctrl-C.")


_URLS = (
    ("/with-finally/items/1", "nothing"),
    ("/with-finally/items/404", "nothing"),
    ("/without-finally/items/1", "nothing"),
    ("/without-finally/items/404", "leaked"),
)
