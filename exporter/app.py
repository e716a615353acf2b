"""The running exporter: the only place where the parts are wired together, and where they are reloaded."""

import logging
import os
import tempfile
import threading
import time
from collections.abc import Callable, Hashable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import get_args

from prometheus_client import CollectorRegistry, PlatformCollector, ProcessCollector

from exporter import __version__
from exporter.config import (
    AgentBudget,
    AgentConfig,
    Budget,
    Config,
    ConfigError,
    Discovery,
    Modus,
    Runs,
    State,
    Usage,
)
from exporter.deadline import Deadline
from exporter.demo.simulator import SimulatedModus
from exporter.descriptors import for_the_api
from exporter.log import fields
from exporter.metrics import protobuf
from exporter.metrics.bound import BoundCollector
from exporter.metrics.collector import RunsCollector
from exporter.metrics.exposition import write
from exporter.metrics.kept import Kept
from exporter.metrics.settings import Settings
from exporter.metrics.status import Status
from exporter.modus.client import ModusClient
from exporter.modus.contact import Contact
from exporter.modus.discovery import Selection, Target
from exporter.modus.errors import FEWER_FILES, ApiError
from exporter.runs.greeting import greet
from exporter.runs.ledger import Ledger
from exporter.runs.reader import Limits
from exporter.runs.runlog import RunLog
from exporter.runs.store import Database, Place
from exporter.runs.usagereader import UsageSettings
from exporter.scalars import Amount, DatabaseUrl, Positive, Secret
from exporter.tokens import TokenError, token_source
from exporter.waits import Waits
from exporter.web.messages import HTTPError, text
from exporter.web.negotiation import Format

DEMO_RETENTION = 7 * 86400.0  # seconds
LAST_COMMIT = 2.0  # seconds that a slow disk may hold up the end

log = logging.getLogger(__name__)


class App:
    """Client, ledger and collector of one configuration; `read_config` gives the one of the moment.

    Raises LedgerError for a state file that cannot be used, ApiError for a client that cannot be made.
    """

    def __init__(
        self, read_config: Callable[[], Config], *, shard: tuple[int, int], reset_histogram: bool
    ) -> None:
        self._read_config = read_config
        self._shard = shard
        self._config = config = read_config()
        self._client = connect(config)
        self._reloaded = (True, time.time())
        self._ledger = Ledger(
            place(config),
            config.histogram.buckets,
            lookback=config.runs.lookback,
            shard=shard,
            reset_histogram=reset_histogram,
        )
        self.collector = RunsCollector(
            self._client, self._ledger, settings(config, shard), reload_state=lambda: self._reloaded
        )
        self._kept = {form: Kept() for form in get_args(Format)}
        self._others = ProcessCollector(registry=None), PlatformCollector(registry=None)

    def default_timeout(self) -> float:
        """Seconds that a scraper waits who does not say how long."""
        return self._config.scrape.default_timeout

    def metrics(self, timeout: float, form: Format) -> Waits[tuple[Hashable, Iterator[bytes]]]:
        """The exposition in pieces, for a caller who waits `timeout` seconds.

        Before it a key: callers who get the same one may share the exposition.
        """
        agents = self.collector.within(timeout)
        key = yield from agents.reading()
        return key, self._written(agents, form)

    def _written(self, agents: BoundCollector, form: Format) -> Iterator[bytes]:
        registry = CollectorRegistry()
        for collector in (agents, *self._others):
            registry.register(collector)
        kept, families = self._kept[form], registry.collect()
        if form == "protobuf":
            yield from protobuf.write(families, kept)
        else:
            yield from write(families, form == "openmetrics", kept)
        if not agents.holds():  # another exporter may show them by now
            raise HTTPError(text("leases ended while this was written\n", 503))

    def reload(self) -> None:
        """Read the configuration again; a bad one changes nothing. Raises ConfigError and ApiError."""
        try:
            config = self._use(self._read_config())
        except BaseException:
            self._reloaded = (False, self._reloaded[1])
            raise
        self._reloaded = (True, time.time())
        log.info("configuration loaded", extra=fields(agents=len(config.agents)))

    def log_start(self) -> None:
        """Say what is going to be read."""
        extra = fields(
            version=__version__,
            api=self._client.host,
            agents=len(self._config.agents),
            discovery=self._config.discovery.enabled,
            state=self._ledger.place or "in memory",
        )
        log.info("starting", extra=extra)
        wanted = self._config.modus.concurrency
        if (most := for_the_api(wanted)) < wanted:
            few = "too few file descriptors for modus.concurrency: fewer requests are under way at once"
            log.warning(few, extra=fields(concurrency=most, hint=FEWER_FILES))

    def greet(self) -> None:
        """Find out, beside all else, whether the API takes the token, and say it in the log."""
        work = partial(greet, self._client, settings(self._config, self._shard).selection)
        self.collector.beside.submit(work)

    def contact(self) -> Contact:
        """Whether the API answers; may be called in any thread, and waits for nothing."""
        return self._client.contact

    def status(self) -> Status:
        """What there is to see; may be called in any thread."""
        return Status(
            now=time.time(),
            api=self._client.host,
            contact=self._client.contact,
            newest=self.collector.newest,
            known=self._ledger.agents(),
            state_path=self._ledger.place,
            state_up=self.collector.committer.up,
            reload_successful=self._reloaded[0],
            reloaded=self._reloaded[1],
        )

    def close(self) -> None:
        """Cut a scrape short, make durable what was counted, and let go of file and connections."""
        deadline = Deadline(LAST_COMMIT)
        if self.collector.close(LAST_COMMIT):
            closing = threading.Thread(target=self._ledger.close, daemon=True)  # the disk holds that up too
            try:
                closing.start()
            except RuntimeError:  # the system has no thread for us
                self._ledger.close()
            else:
                closing.join(deadline.left())
        else:
            late = "the state cannot be written in time: what was counted last is not durable"
            log.error(late, extra=fields(path=self._ledger.place))
        self._ledger.leases.close()  # also while a commit waits: others go on from what is durable
        self._client.close()

    def _use(self, config: Config) -> Config:
        for path, now, then in (
            ("histogram.buckets", config.histogram, self._config.histogram),
            ("state.path", config.state.path, self._config.state.path),
            ("state", config.state, self._config.state),
        ):
            if now != then:
                raise ConfigError(f"{path}: cannot change while the exporter runs; restart it")
        before = self._client

        def connect_anew() -> ModusClient:
            if config.modus != self._config.modus:  # else the same: it knows of pauses the API asked for
                self._client = connect(config, before)
            return self._client

        self.collector.reload(connect_anew, settings(config, self._shard))
        self._config = config
        if self._client is not before:
            before.close()
            self.greet()
        return config


def connect(config: Config, before: ModusClient | None = None) -> ModusClient:
    """A client as configured; it counts on from the one `before` it. Raises ApiError."""
    read = token_source(config.modus)

    def token() -> str:
        try:
            return read()
        except TokenError as error:
            raise ApiError("unauthorized", str(error), hint="check modus.token_file") from None

    return ModusClient(
        config.modus.base_url,
        token,
        resource=config.modus.resource,
        timeout=config.modus.timeout,
        concurrency=for_the_api(config.modus.concurrency),
        ca_file=config.modus.ca_file,
        max_requests_per_second=config.modus.max_requests_per_second,
        requests_so_far=before.requests_so_far if before else None,
    )


def place(config: Config) -> Place | None:
    """Where the state is; None: in memory."""
    state = config.state
    return state.file if state.url is None else Database(state.url, state.password_file)


def place_at(text: str, config: Config) -> Place:
    """The place that a path or URL names; a database's password may be in the configured file.

    Raises ConfigError for another kind of URL, which is not quoted: it may hold a password.
    """
    if text.startswith(("postgresql://", "postgres://")):
        return Database(DatabaseUrl(text), config.state.password_file)
    if "://" in text:
        raise ConfigError("--state.import: expected the path of a state file or a postgresql:// URL")
    return text


def settings(config: Config, shard: tuple[int, int]) -> Settings:
    """What the collector is told of the configuration."""
    found, runs = config.discovery, config.runs
    return Settings(
        selection=Selection(
            [
                Target(
                    agent.id,
                    expected_interval=agent.expected_interval,
                    expected_duration=agent.expected_duration,
                )
                for agent in config.agents
            ],
            found.include if found.enabled else None,
            found.exclude,
            found.refresh_interval,
            shard,
        ),
        limits=Limits(runs.page_size, runs.max_pages, runs.lookback, runs.timeframe),
        concurrency=for_the_api(config.modus.concurrency),
        timeout_offset=config.scrape.timeout_offset,
        default_timeout=config.scrape.default_timeout,
        min_interval=config.scrape.min_interval,
        reconcile_interval=runs.reconcile_interval,
        run_log=RunLog(runs.log, with_task_error=runs.log_task_error),
        usage=UsageSettings(
            config.usage.enabled if shard[0] == 0 else "false",  # one of the shards asks for all agents
            config.usage.refresh_interval,
            config.usage.budget.total,
            {agent.id: agent.credits for agent in config.usage.budget.agents},
        ),
        show_created=config.exposition.created,
    )


def demo(stack: ExitStack) -> Callable[[], Config]:
    """Start the simulated API, with a state file that goes when the exporter ends. Raises ConfigError."""
    modus = SimulatedModus(retention=DEMO_RETENTION).start()
    stack.callback(modus.close)
    os.environ["no_proxy"] = "127.0.0.1"  # a proxy has no way to it, and nothing else is asked
    try:
        directory = stack.enter_context(tempfile.TemporaryDirectory(prefix="modus-exporter-demo-"))
    except OSError as error:
        raise ConfigError(f"--demo: no temporary directory: {error.strerror}; set TMPDIR") from None
    config = Config(
        modus=Modus(base_url=modus.url, token=Secret(modus.token)),
        agents=(AgentConfig(107, Positive(3600)), AgentConfig(102, expected_duration=Positive(30))),
        discovery=Discovery(enabled=True),
        runs=Runs(log="failed"),
        usage=Usage(
            budget=Budget(Amount(30_000), (AgentBudget(102, Amount(20_000)), AgentBudget(108, Amount(300))))
        ),
        state=State(path=str(Path(directory) / "state.db")),
    )
    return lambda: config
