"""The processes of a benchmark, upstream and exporter, and what the kernel counts of them."""

import contextlib
import datetime
import gzip
import http.client
import io
import ipaddress
import os
import re
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import certifi
import requests
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

ROOT = Path(__file__).parents[1]
RELEASE = "84553600ab6d"  # the last state that called itself 0.1.0
Tls = tuple[str, str, str]  # paths of a CA bundle, of a certificate and of its key
PROMETHEUS = {
    "Accept": "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5,*/*;q=0.1",
    "Accept-Encoding": "gzip",
}


def cpu_seconds(pid: int) -> float:
    """User and system time of a process so far, to the nanosecond."""
    return time.clock_gettime((~pid << 3) | 2)  # CPUCLOCK_SCHED, see clock_getcpuclockid(3)


def peak_mib(pid: int) -> float:
    """The most memory the process ever had in use, MiB."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) / 1024  # type: ignore[index]


def certificate(directory: Path) -> Tls:
    """A certificate for 127.0.0.1; the bundle has certifi's and this one."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.datetime.now(datetime.UTC)
    built = (
        x509.CertificateBuilder(name, name, key.public_key(), 1, now, now + datetime.timedelta(days=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), False
        )
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), True)
        .sign(key, hashes.SHA256())
    )
    paths = [directory / name for name in ("bundle.pem", "cert.pem", "key.pem")]
    mine = built.public_bytes(serialization.Encoding.PEM)
    paths[0].write_bytes(mine + Path(certifi.where()).read_bytes())
    paths[1].write_bytes(mine)
    paths[2].write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    return str(paths[0]), str(paths[1]), str(paths[2])


class Api:
    """The upstream of one scenario, in its own process."""

    def __init__(
        self, latency: float, tls: Tls | None, zipped: bool, runs_a_day: int = 144, still: bool = False
    ) -> None:
        command = [sys.executable, "-m", "benchmarks.upstream", "--latency", str(latency)]
        command += ["--runs-a-day", str(runs_a_day)]
        command += ["--gzip"] if zipped else []
        command += ["--still"] if still else []
        command += ["--tls", *tls[1:]] if tls else []
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT
        )
        assert self._process.stdin
        assert self._process.stdout
        self.port = int(self._process.stdout.readline())
        self.url = f"{'https' if tls else 'http'}://127.0.0.1:{self.port}"
        self._cafile = tls[0] if tls else None

    def served(self) -> tuple[int, int]:
        """Requests and bytes so far."""
        answer = requests.get(f"{self.url}/stats", timeout=60, verify=self._cafile or True)
        asked, sent = answer.json()
        return asked, sent

    def close(self) -> None:
        """End it."""
        assert self._process.stdin
        self._process.stdin.close()
        self._process.wait(30)


@contextlib.contextmanager
def api(
    latency: float, tls: Tls | None, zipped: bool, runs_a_day: int = 144, still: bool = False
) -> Iterator[Api]:
    """An upstream for the block."""
    upstream = Api(latency, tls, zipped, runs_a_day, still)
    try:
        yield upstream
    finally:
        upstream.close()


def release(directory: Path) -> Path:
    """The source of 0.1.0, taken from the repository's history, and so only in a clone of it."""
    command = ["git", "archive", RELEASE, "exporter"]
    source = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE).stdout
    with tarfile.open(fileobj=io.BytesIO(source)) as archive:
        archive.extractall(directory)  # noqa: S202 - it is our own
    return directory


class Exporter:
    """`python -m exporter` for these agents; `root` has its source."""

    def __init__(
        self, url: str, agents: int, concurrency: int, directory: Path, cafile: str | None, root: Path
    ) -> None:
        config = directory / "config.yaml"
        config.write_text(
            f"modus: {{base_url: '{url}', token: bench, concurrency: {concurrency}}}\n"
            f"agents: {list(range(1, agents + 1))}\nstate: {{path: '{directory}/state.db'}}\n"
        )
        self._log = (directory / "log").open("w+")
        environment = os.environ | ({"REQUESTS_CA_BUNDLE": cafile} if cafile else {})
        self._process = subprocess.Popen(
            [sys.executable, "-m", "exporter", "--config.file", config, "--web.listen-address=127.0.0.1:0"],
            stdout=self._log, stderr=self._log, cwd=root, env=environment,
        )  # fmt: skip
        self.pid = self._process.pid
        while not (found := re.search(r"msg=listening address=127.0.0.1:(\d+)", self.said())):
            if self._process.poll() is not None:
                raise RuntimeError(self.said())
            time.sleep(0.02)
        self.port = int(found[1])
        self._connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=180)

    def said(self) -> str:
        """Its log so far."""
        return Path(self._log.name).read_text()

    def scrape(self, timeout: float = 120.0) -> bytes:
        """One exposition, compressed, as it is there within `timeout` seconds."""
        headers = PROMETHEUS | {"X-Prometheus-Scrape-Timeout-Seconds": f"{timeout:g}"}
        self._connection.request("GET", "/metrics", headers=headers)
        answer = self._connection.getresponse()
        body = answer.read()
        if answer.status != 200:
            raise RuntimeError(f"{answer.status}: {self.said()}")
        return body

    def close(self) -> None:
        """End it."""
        self._connection.close()
        self._process.terminate()
        self._process.wait(30)
        self._log.close()


@contextlib.contextmanager
def started(
    url: str, agents: int, concurrency: int, cafile: str | None, root: Path = ROOT
) -> Iterator[Exporter]:
    """An exporter that has not made a scrape yet."""
    with tempfile.TemporaryDirectory() as directory:
        running = Exporter(url, agents, concurrency, Path(directory), cafile, root)
        try:
            yield running
        finally:
            running.close()


@contextlib.contextmanager
def exporter(
    url: str, agents: int, concurrency: int, cafile: str | None, root: Path = ROOT
) -> Iterator[Exporter]:
    """An exporter that has made its first scrape, which reads the lookback, and the one behind it."""
    with started(url, agents, concurrency, cafile, root) as running:
        running.scrape()
        shown = running.scrape()  # the page size has settled now
        if b"\nmodus_exporter_scrape_complete 1.0\n" not in gzip.decompress(shown):
            raise RuntimeError(f"not every agent was read: {running.said()}")
        yield running
