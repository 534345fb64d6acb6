"""`python -m tests.load --requests 50000 --leaks 500`: every planted leak once, nothing else."""

from __future__ import annotations

import argparse
import sys

from tests.load.plan import SERVERS, Plan
from tests.load.run import Outcome, run

SHOWN = 10


def main() -> int:
    """Run what the command line asks for; give the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.load", description=__doc__)
    parser.add_argument("--requests", type=int, default=50_000)
    parser.add_argument("--leaks", type=int, default=500)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--server", choices=SERVERS, default=SERVERS[0])
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--mode", choices=["production", "development"], default="production")
    plan = Plan(**vars(parser.parse_args()))
    outcome = run(plan)
    show(plan, outcome)
    return 1 if outcome.wrong else 0


def show(plan: Plan, outcome: Outcome) -> None:
    """Print the summary, and the first disagreements."""
    rate = plan.requests / outcome.seconds
    sent = f"{plan.requests} requests of {plan.clients} clients"
    how = f"{plan.server}, {plan.mode}, seed {plan.seed}"
    lines = [
        f"{sent} ({how}) in {outcome.seconds:.1f} s: {rate:.0f}/s",
        f"statuses   {dict(sorted(outcome.statuses.items()))}, the rest given up by the client",
        f"leaks      {plan.leaks} hidden, {outcome.found} findings: {dict(outcome.kinds)}",
        f"open holds {outcome.open_then} connections, after the clean-up {outcome.open_now} holds",
        f"resolved   {outcome.resolved}",
        *outcome.wrong[:SHOWN],
        f"{len(outcome.wrong)} disagreements" if outcome.wrong else "all as it must be",
    ]
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    sys.exit(main())
