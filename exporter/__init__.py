"""Prometheus exporter for Modus AI agents."""

__version__ = "0.2.0"
