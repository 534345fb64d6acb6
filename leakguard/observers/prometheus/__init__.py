"""The Prometheus observer: what is found, held, waited for and out, as metrics."""

from leakguard.observers.prometheus.app import metrics_app
from leakguard.observers.prometheus.observer import Prometheus

__all__ = ["Prometheus", "metrics_app"]
