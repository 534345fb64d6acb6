"""What watches many instances: the rules, alerts and dashboard of `examples/observability`."""
