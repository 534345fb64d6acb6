"""Leaks hidden at random among many requests: `python -m tests.load --help`."""
