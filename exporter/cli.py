"""The command line: flags and exit codes."""

import argparse
import logging
import os
import platform
import re
import signal
import sys
from collections.abc import Callable
from contextlib import ExitStack, suppress
from typing import NoReturn

from exporter import __version__
from exporter import log as logs
from exporter.app import App, connect, demo, settings
from exporter.config import ConfigError, load
from exporter.modus.model import ApiError
from exporter.runs import audit, check
from exporter.runs.store import LedgerError
from exporter.web.pages import serve
from exporter.web.webconfig import WebConfigFile, WebError


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
    read_config = demo(stack) if args.demo else lambda: load(args.config_file, os.environ)
    shard = args.shard, args.total_shards
    if args.config_check or args.audit:
        config = read_config()
        chosen, client = settings(config, shard), connect(config)
        if args.audit:
            what = chosen.selection, chosen.limits, chosen.concurrency, config.state.path
            return audit.run(client, *what, sys.stdout)
        WebConfigFile(args.web_config_file)
        return check.run(client, chosen.selection, chosen.concurrency, chosen.limits.timeframe, sys.stdout)
    app = App(read_config, shard=shard, reset_histogram=args.state_reset_histogram)
    stack.callback(app.close)
    app.log_start()
    serve(
        listen_address=args.web_listen_address,
        scrape=app.metrics,
        ready=lambda: True,
        reload=app.reload,
        telemetry_path=args.web_telemetry_path,
        web_config_file=args.web_config_file,
        enable_lifecycle=args.web_enable_lifecycle,
    )
    return 0


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
