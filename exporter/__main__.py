"""`python -m exporter` is `modus-exporter`."""

import os
import signal
from typing import NoReturn


def run() -> NoReturn:
    """The entry point: a signal while the modules load is as one before it listens."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, frame: os._exit(0))  # nothing has begun that could be left half

    from exporter import cli  # now: it takes a quarter of a second

    cli.run()


if __name__ == "__main__":
    run()
