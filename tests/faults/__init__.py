"""Cancellation at every await, the collector at every moment, forks, neighbours, lost servers."""
