"""What to send, and which requests leak: the same for the same seed, in every process."""

from __future__ import annotations

import random
from dataclasses import dataclass

from tests.load.application import HEALTHY, leaking_paths
from tests.load.client import Request

SERVERS = ("uvicorn", "workers", "in-process")
"""A server in this process; one with several processes, uvloop and httptools; none at all."""


@dataclass(frozen=True)
class Plan:
    """What to send, and where to."""

    requests: int
    leaks: int
    clients: int = 32
    seed: int = 0
    server: str = SERVERS[0]
    workers: int = 2
    """How many processes, where the server has several."""
    mode: str = "production"

    def hide(self) -> tuple[list[Request], dict[int, str]]:
        """Choose at random which requests leak, and how; a few clients do not wait.

        Gives all requests, and the route of every leaking one by its number.
        """
        choice = random.Random(self.seed)  # noqa: S311  (no secret)
        numbers = range(self.requests)
        leaking = set(choice.sample(numbers, self.leaks))
        requests: list[Request] = []
        hidden: dict[int, str] = {}
        for number in numbers:
            name = choice.choice(leaking_paths() if number in leaking else HEALTHY)
            if number in leaking:
                hidden[number] = name
            hasty = number not in leaking and choice.random() < 0.01
            requests.append(Request(f"/{name}/{number}", hasty))
        return requests, hidden
