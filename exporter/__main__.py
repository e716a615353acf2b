"""`python -m exporter` is `modus-exporter`."""

from exporter.cli import run

if __name__ == "__main__":
    run()
