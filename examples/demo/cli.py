"""The command: its options, and the order of the demonstration."""

from __future__ import annotations

import argparse
import logging
import os
import signal
import socket
import sys
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from examples.demo import claims, interruption, pages
from examples.demo.application import Example, both, mounted
from examples.demo.claims import Claim
from examples.demo.lifecycle import Life, live, variations
from examples.demo.observation import Watch
from examples.demo.screen import Screen
from examples.demo.server import bind, serving
from examples.demo.shortage import Shortage, run_dry

HIGHEST_PORT = 65535


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the demonstration. Gives the exit code: 1 if what was observed is not what it says."""
    options = parse(arguments)
    interruption.listen()
    try:
        with prepared():
            return demonstrate(Screen(), options.port, serve=options.serve)
    except KeyboardInterrupt as interrupt:
        return 128 + int(interrupt.args[0])
    except BrokenPipeError:  # whoever read the pages has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the options. Leaves with code 2 where they are wrong."""
    parser = argparse.ArgumentParser(
        prog="demo",
        description="Show where a database connection goes, with and without `finally`.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--serve",
        action="store_true",
        help="afterwards, leave the application running and print URLs to try",
    )
    parser.add_argument(
        "--port", type=_port, default=0, help="the port to listen on (default: any free one)"
    )
    options = parser.parse_args(arguments)
    try:
        bind(options.port).close()
    except OSError as error:
        parser.error(f"argument --port: cannot listen on {options.port}: {error.strerror}")
    return options


def _port(text: str) -> int:
    if not text.isdecimal() or not 0 <= int(text) <= HIGHEST_PORT:
        raise argparse.ArgumentTypeError(f"{text!r} is not a port: a number up to {HIGHEST_PORT}")
    return int(text)


@contextmanager
def prepared() -> Generator[None]:
    """Have the examples use a database of their own, and leakguard be talkative."""
    with TemporaryDirectory(prefix="leakguard-demo-") as folder:
        os.environ["EXAMPLES_DATABASE"] = str(Path(folder, "demo.db"))
        os.environ["LEAKGUARD_MODE"] = "development"
        # What is logged between the requests is told in the pages' own words.
        logging.getLogger("leakguard").addHandler(logging.NullHandler())
        yield


def demonstrate(screen: Screen, port: int, *, serve: bool) -> int:
    """Show all pages; then say whether they were true."""
    lives, checks = show_lives(screen, port)
    with_finally, without = show_shortage(screen, port)
    pages.summary(screen, lives, with_finally, without)
    checks += claims.of_shortages(with_finally, without)
    broken = [claim for claim in checks if not claim.holds]
    if broken:
        complain(broken)
        return 1
    pages.conclusion(screen, len(checks))
    if serve:
        leave_running(screen, port)
    return 0


def show_lives(screen: Screen, port: int) -> tuple[list[Life], list[Claim]]:
    """Watch a request for every variation."""
    watch = Watch()
    with both() as examples, running(examples, watch, port) as actual:
        pages.introduction(screen, examples, actual)
        lives = [
            live(variation, examples[not variation.with_finally], watch, actual)
            for variation in variations()
        ]
        pages.lives(screen, lives)
        return lives, [
            claim
            for life in lives
            for claim in claims.of_life(life, examples[not life.variation.with_finally])
        ]


def show_shortage(screen: Screen, port: int) -> tuple[Shortage, Shortage]:
    """Let a small pool run dry, and another one not."""
    watch = Watch()
    with both() as examples, running(examples, watch, port) as actual:
        with_finally, without = (run_dry(example, watch, actual) for example in examples)
        pages.shortage(screen, with_finally, without)
        return with_finally, without


@contextmanager
def running(examples: Sequence[Example], watch: Watch, port: int) -> Generator[int]:
    """Serve the examples under watch; gives the port."""
    listener = bind(port)
    with watch.in_threads(), serving(watch.around(mounted(*examples)), listener):
        yield port_of(listener)


def port_of(listener: socket.socket) -> int:
    """Return the port that was taken."""
    port: int = listener.getsockname()[1]
    return port


def leave_running(screen: Screen, port: int) -> None:
    """Serve the examples until Ctrl-C."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    listener = bind(port)
    try:
        with both() as examples, serving(mounted(*examples), listener):
            pages.urls(screen, port_of(listener))
            interruption.wait()
    except KeyboardInterrupt:
        screen.say("Stopped.")


def complain(broken: Sequence[Claim]) -> None:
    """Say what is not true, where it can be told from the pages."""
    print("The demonstration saw something else than it says:", file=sys.stderr)
    for claim in broken:
        print(f"  {claim}", file=sys.stderr)
