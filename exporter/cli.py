"""The command line, and the only place where the parts are wired together."""

import argparse
import logging
import os
import platform
import re
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import NoReturn

from prometheus_client import CollectorRegistry, PlatformCollector, ProcessCollector, generate_latest
from prometheus_client.openmetrics import exposition as openmetrics_exposition

from exporter import __version__
from exporter import log as logs
from exporter.config import (
    AgentConfig,
    Config,
    ConfigError,
    Modus,
    Positive,
    Secret,
    State,
    TokenError,
    load,
    token_source,
)
from exporter.config import (
    Discovery as DiscoveryConfig,
)
from exporter.demo.simulator import SimulatedModus
from exporter.metrics.collector import RunsCollector, Settings
from exporter.metrics.table import expose
from exporter.modus.client import ModusClient
from exporter.modus.discovery import Discovery, Target
from exporter.modus.errors import ApiError
from exporter.modus.requeststats import REQUEST_BUCKETS
from exporter.runs import audit, check
from exporter.runs.ledger import Ledger
from exporter.runs.reader import Limits
from exporter.runs.store import LedgerError
from exporter.web.pages import serve
from exporter.web.webconfig import WebConfigFile, WebError

DEMO_RETENTION = 7 * 86400.0  # seconds
log = logging.getLogger("exporter.cli")


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {' '.join(message.split())}; see {self.prog} --help\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="modus-exporter",
        description="Prometheus exporter for Modus AI agents: every run counted exactly once.",
        allow_abbrev=False,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--config.file", default="config.yaml", metavar="PATH", help="configuration file")
    add("--config.check", action="store_true", help="check the file and ask for each agent once")
    add("--audit", action="store_true", help="compare what was counted with the API, run by run")
    add("--demo", action="store_true", help="run against a simulated API; needs no configuration")
    add("--web.listen-address", default=":10371", metavar="HOST:PORT", help="where to serve")
    add("--web.telemetry-path", default="/metrics", metavar="PATH", help="where the metrics are")
    add("--web.config.file", metavar="PATH", help="TLS and basic auth, in exporter-toolkit's format")
    add("--web.enable-lifecycle", action="store_true", help="allow POST /-/reload")
    add("--state.reset-histogram", action="store_true", help="count the durations anew")
    add("--shard", type=_at_least(0), default=0, metavar="N", help="index of this shard, from 0")
    add("--total-shards", type=_at_least(1), default=1, metavar="N", help="exporters that share the agents")
    add("--log.level", choices=logs.LEVELS, default="info", help="the least severe lines to log")
    add("--log.format", choices=logs.FORMATS, default="logfmt", help="the form of the lines")
    version = f"modus-exporter {__version__} (python {platform.python_version()})"
    add("--version", action="version", version=version)
    return parser


def _at_least(least: int) -> Callable[[str], int]:
    def number(text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"expected a whole number from {least} on, got {text!r}")
        return int(text)

    return number


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit code: 2 for a mistake of use, 1 for what went wrong."""
    parser = _parser()
    options = vars(parser.parse_args(argv))
    args = argparse.Namespace(**{re.sub(r"[.-]", "_", name): value for name, value in options.items()})
    if args.shard >= args.total_shards:
        parser.error(f"--shard: expected less than --total-shards ({args.total_shards}), got {args.shard}")
    logs.setup(args.log_level, args.log_format)
    signal.signal(signal.SIGTERM, _leave_at_once)
    signal.signal(signal.SIGINT, _leave_at_once)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # until the web server reloads on it: it would end us
    try:
        with ExitStack() as stack:
            return _run(args, stack)
    except (ConfigError, WebError, LedgerError, ApiError) as error:
        sys.stderr.write(f"modus-exporter: {error}\n")
        return getattr(error, "exit_code", 1 if isinstance(error, (LedgerError, ApiError)) else 2)


def _leave_at_once(number: int, frame: object) -> NoReturn:
    """Before the web server has its own handlers, also as process 1, which has none by itself."""
    sys.exit(0)


def _run(args: argparse.Namespace, stack: ExitStack) -> int:
    read_config = _demo(stack) if args.demo else lambda: load(args.config_file, os.environ)
    config = read_config()
    client = _client(config)
    settings = _settings(config, (args.shard, args.total_shards))
    if args.config_check:
        WebConfigFile(args.web_config_file)
        return check.run(client, settings, sys.stdout)
    if args.audit:
        return audit.run(client, settings, config.state.path, sys.stdout)
    ledger = Ledger(
        config.state.path,
        config.histogram.buckets,
        lookback=config.runs.lookback,
        shard=(args.shard, args.total_shards),
        reset_histogram=args.state_reset_histogram,
    )
    stack.callback(ledger.close)
    exporter = _Exporter(args, read_config, config, client, ledger, settings)
    stack.callback(exporter.collector.close)
    log.info(
        "starting",
        extra={
            "fields": {
                "version": __version__,
                "api": client.host,
                "agents": len(config.agents),
                "discovery": config.discovery.enabled,
                "state": config.state.path or "in memory",
            }
        },
    )
    serve(
        listen_address=args.web_listen_address,
        scrape=exporter.scrape,
        ready=lambda: True,
        reload=exporter.reload,
        telemetry_path=args.web_telemetry_path,
        web_config_file=args.web_config_file,
        enable_lifecycle=args.web_enable_lifecycle,
    )
    return 0


class _Exporter:
    """The running parts: scrape and reload, as the web application calls them."""

    def __init__(
        self,
        args: argparse.Namespace,
        read_config: Callable[[], Config],
        config: Config,
        client: ModusClient,
        ledger: Ledger,
        settings: Settings,
    ) -> None:
        self._shard = (args.shard, args.total_shards)
        self._read_config = read_config
        self._config = config
        self._client = client
        self._ledger = ledger
        self._reloaded = (True, time.time())
        self._process = CollectorRegistry()
        ProcessCollector(registry=self._process)
        PlatformCollector(registry=self._process)
        self.collector = RunsCollector(client, ledger, settings, reload_state=lambda: self._reloaded)

    def scrape(self, timeout: float | None, openmetrics: bool) -> Iterator[bytes]:
        """The exposition in pieces, the process's own metrics last; `timeout` in seconds."""
        yield from expose(self.collector.scrape(timeout), openmetrics)
        encode = openmetrics_exposition.generate_latest if openmetrics else generate_latest
        yield encode(self._process)  # with the end mark of OpenMetrics

    def reload(self) -> None:
        """Read the configuration again; a bad one changes nothing. Raises ConfigError and ApiError."""
        try:
            config = self._use(self._read_config())
        except BaseException:
            self._reloaded = (False, self._reloaded[1])
            raise
        self._reloaded = (True, time.time())
        log.info("configuration loaded", extra={"fields": {"agents": len(config.agents)}})

    def _use(self, config: Config) -> Config:
        for path, now, then in (
            ("histogram.buckets", config.histogram, self._config.histogram),
            ("state.path", config.state, self._config.state),
        ):
            if now != then:
                raise ConfigError(f"{path}: cannot change while the exporter runs; restart it")
        before = self._client

        def connect() -> ModusClient:
            if config.modus != self._config.modus:  # else the same: it knows of pauses the API asked for
                self._client = _client(config, before)
            return self._client

        self.collector.reload(connect, _settings(config, self._shard))
        if self._client is not before:
            before.close()
        self._config = config
        return config


def _client(config: Config, before: ModusClient | None = None) -> ModusClient:
    read = token_source(config.modus)

    def token() -> str:
        try:
            return read()
        except TokenError as error:
            raise ApiError("unauthorized", str(error)) from None

    return ModusClient(
        config.modus.base_url,
        token,
        resource=config.modus.resource,
        timeout=config.modus.timeout,
        concurrency=config.modus.concurrency,
        requests_so_far=before.requests_so_far if before else None,
    )


def _settings(config: Config, shard: tuple[int, int]) -> Settings:
    found = config.discovery
    return Settings(
        targets=[Target(agent.id, expected_interval=agent.expected_interval) for agent in config.agents],
        discovery=Discovery(found.include, found.exclude, found.refresh_interval) if found.enabled else None,
        limits=Limits(
            config.runs.page_size, config.runs.max_pages, config.runs.lookback, config.runs.timeframe
        ),
        concurrency=config.modus.concurrency,
        timeout_offset=config.scrape.timeout_offset,
        default_timeout=config.scrape.default_timeout,
        min_interval=config.scrape.min_interval,
        request_bounds=REQUEST_BUCKETS,
        shard=shard,
    )


def _demo(stack: ExitStack) -> Callable[[], Config]:
    """Start the simulated API, with a state file that goes when the exporter ends."""
    modus = SimulatedModus(retention=DEMO_RETENTION).start()
    stack.callback(modus.close)
    os.environ["no_proxy"] = "127.0.0.1"  # a proxy has no way to it, and nothing else is asked
    try:
        directory = stack.enter_context(tempfile.TemporaryDirectory(prefix="modus-exporter-demo-"))
    except OSError as error:
        raise ConfigError(f"--demo: no temporary directory: {error.strerror}; set TMPDIR") from None
    config = Config(
        modus=Modus(base_url=modus.url, token=Secret(modus.token)),
        agents=(AgentConfig(107, Positive(3600)),),
        discovery=DiscoveryConfig(enabled=True),
        state=State(path=str(Path(directory) / "state.db")),
    )
    return lambda: config


def run() -> NoReturn:
    """The entry point: leaves without waiting for a request that is still under way."""
    code = 1
    with suppress(BrokenPipeError):
        try:
            code = main()
        except SystemExit as leaving:
            code = leaving.code if isinstance(leaving.code, int) else 1
        sys.stdout.flush()
        sys.stderr.flush()
    logging.shutdown()
    os._exit(code)
