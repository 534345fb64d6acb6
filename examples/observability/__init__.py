"""Metrics, rules, alerts and a dashboard, and an application to see them at work: `README.md`."""
