"""Prometheus exporter for Modus AI agents."""

__version__ = "0.1.0"
