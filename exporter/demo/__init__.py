"""A simulated Modus API, for trying things out and for tests; it imports nothing of the exporter."""
