"""Memory over very many requests: `python -m tests.endurance --help`."""
