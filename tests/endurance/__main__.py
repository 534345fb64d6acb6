"""`python -m tests.endurance --clean 200000 --leaking 20000`: nothing is kept, nothing grows."""

from __future__ import annotations

import argparse
import sys

from tests.endurance.run import Outcome, Plan, run

TOLERANCE = 16 * 1024
"""Bytes: dictionaries keep the room of their fullest moment, and counts become larger numbers."""


def main() -> int:
    """Run what the command line asks for; give the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.endurance", description=__doc__)
    parser.add_argument("--clean", type=int, default=200_000)
    parser.add_argument("--leaking", type=int, default=20_000)
    arguments = parser.parse_args()
    plan = Plan(arguments.clean, arguments.leaking)
    outcome = run(plan)
    show(plan, outcome)
    good = outcome.leaks == plan.leaking
    good &= outcome.grown <= TOLERANCE and not outcome.more_objects
    # The last engine and its pool are the application's own.
    return 0 if good and sum(outcome.alive.values()) == len(outcome.alive) == 2 else 1


def show(plan: Plan, outcome: Outcome) -> None:
    """Print what was counted."""
    before, after = outcome.before, outcome.after
    rate = (plan.clean + plan.leaking) / outcome.seconds
    sent = f"{plan.clean} clean and {plan.leaking} leaking requests, {outcome.leaks} leaks found"
    lines = [
        f"{sent} in {outcome.seconds:.1f} s: {rate:.0f}/s",
        f"held by leakguard: {before.size} bytes before, {after.size} after: {outcome.grown:+d}",
        f"its objects: {before.objects.total()} before, {after.objects.total()} after",
        f"more of: {dict(outcome.more_objects)}",
        f"died: {dict(outcome.died)}",
        f"alive: {dict(outcome.alive)} (the last engine and its pool are in use)",
    ]
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    sys.exit(main())
