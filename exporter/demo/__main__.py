"""The simulated API by itself, for several exporters: `python -m exporter.demo [HOST:PORT]`."""

import signal
import sys

from exporter.demo.simulator import SimulatedModus

RETENTION = 7 * 86400.0  # seconds


def main() -> None:
    """Serve until SIGTERM or SIGINT. The token is `demo`."""
    host, _, port = (sys.argv[1:] or ["127.0.0.1:8080"])[0].rpartition(":")
    ends = {signal.SIGTERM, signal.SIGINT}
    signal.pthread_sigmask(signal.SIG_BLOCK, ends)
    modus = SimulatedModus(retention=RETENTION).start(int(port), host)
    sys.stderr.write(f"the simulated API serves on {host}:{modus.url.rpartition(':')[2]}\n")
    sys.stderr.flush()
    signal.sigwait(ends)
    modus.close()


if __name__ == "__main__":
    main()
