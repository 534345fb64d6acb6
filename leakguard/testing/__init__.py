"""Leaks fail tests: what the pytest plugin does once somebody wants it."""
