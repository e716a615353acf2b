"""The command line: flags and exit codes."""

import argparse
import difflib
import gc
import io
import logging
import os
import platform
import re
import signal
import sys
from collections.abc import Callable, Mapping
from contextlib import ExitStack, redirect_stdout, suppress
from functools import partial
from pathlib import Path
from typing import NoReturn

from exporter import __version__, descriptors
from exporter import log as logs
from exporter.app import App, connect, demo, place, place_at, settings
from exporter.config import Config, ConfigError, defaults, load, refuse_same_file
from exporter.modus.errors import ApiError
from exporter.runs import audit, check, importing
from exporter.runs.store import LedgerError
from exporter.web import listeners
from exporter.web.errors import WebError
from exporter.web.pages import serve
from exporter.web.site import Site
from exporter.web.webconfig import WebConfigFile

CONFIG_FILE = "config.yaml"
_SAMPLE = Path(__file__).with_name("config.yaml")  # in the wheel; in a checkout it is where the user is
# of new objects, and of the collections of those: each stops everything, also `/-/healthy`, one of all agents
# for 0.1 s and more, and finds next to nothing
GC_THRESHOLDS = 10_000, 3, 300


class _Parser(argparse.ArgumentParser):
    where = ""  # what is parsed, other than the command line

    def error(self, message: str) -> NoReturn:
        unknown = re.match("unrecognized arguments: (--[^ =]+)", message)
        near = difflib.get_close_matches(unknown[1], self._option_string_actions, 1) if unknown else []
        hint = f"did you mean {near[0]}?" if near else f"see {self.prog} --help"
        _complain(f"{self.where}{' '.join(message.split())}; {hint}")
        sys.exit(2)


def _parser() -> _Parser:
    parser = _Parser(
        prog="modus-exporter",
        description="Prometheus exporter for Modus AI agents: every run counted exactly once.",
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,  # a path stays in one piece
        epilog="Each flag has an environment variable: MODUS_EXPORTER_WEB_LISTEN_ADDRESS and the like."
        + (f"\nA configuration with every key: {_SAMPLE}" if _SAMPLE.exists() else ""),
    )
    add, add_one = parser.add_argument, parser.add_mutually_exclusive_group().add_argument
    add(
        "--config.file",
        metavar="PATH",
        help=f"configuration file (default: {CONFIG_FILE}, where there is one)",
    )
    add_one("--config.check", action="store_true", help="check the file and ask for each agent once")
    add_one("--audit", action="store_true", help="compare what was counted with the API, run by run")
    add("--demo", action="store_true", help="run against a simulated API; needs no configuration")
    where = "where to serve; may be given more than once (default: :10371)"
    add("--web.listen-address", action="append", metavar="HOST:PORT", help=where, default=argparse.SUPPRESS)
    add("--web.systemd-socket", action="store_true", help="serve on the sockets of the systemd socket unit")
    add(
        "--web.telemetry-path",
        default="/metrics",
        metavar="PATH",
        help="where the metrics are (default: %(default)s)",
    )
    add("--web.external-url", metavar="URL", help="where the pages are seen from outside, for links")
    add("--web.route-prefix", metavar="PATH", help="prefix of the pages (default: path of the external URL)")
    add("--web.config.file", metavar="PATH", help="TLS and basic auth, in exporter-toolkit's format")
    add("--web.enable-lifecycle", action="store_true", help="allow POST /-/reload")
    add("--state.reset-histogram", action="store_true", help="count the durations anew")
    source = "copy what this state file or postgresql:// URL holds into the configured state, and end"
    add_one("--state.import", metavar="PATH_OR_URL", help=source)
    add("--shard", type=_at_least(0), default=0, metavar="N", help="index of this shard, from 0 (default)")
    add("--total-shards", type=_at_least(1), default=1, metavar="N", help="exporters that share the agents")
    add(
        "--log.level",
        choices=logs.LEVELS,
        default="info",
        help="the least severe lines to log (default: info)",
    )
    add(
        "--log.format", choices=logs.FORMATS, default="logfmt", help="the form of the lines (default: logfmt)"
    )
    version = f"modus-exporter {__version__} (python {platform.python_version()})"
    add("--version", action="version", version=version)
    return parser


def _at_least(least: int) -> Callable[[str], int]:
    def number(text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"expected a whole number from {least} on, got {text!r}")
        return int(text)

    return number


def from_environment(parser: _Parser, given: list[str], environ: Mapping[str, str]) -> list[str]:
    """What variables like MODUS_EXPORTER_WEB_LISTEN_ADDRESS set, as flags; those that are given win."""
    flags: list[str] = []
    for action in parser._actions:
        if action.dest in ("help", "version"):  # they ask for something: nobody sets that for good
            continue
        flag = action.option_strings[-1]
        name = "MODUS_EXPORTER_" + re.sub("[.-]", "_", flag.lstrip("-")).upper()
        value = environ.get(name)
        if not value or _is_given(flag, given):
            continue
        if action.nargs != 0:
            parser.where = f"{name}: "
            parser.parse_args([f"{flag}={value}"])  # a mistake in it is said to be the variable's
            parser.where = ""
            flags.append(f"{flag}={value}")
        elif value not in ("true", "false"):
            parser.error(f"{name}: expected true or false, got {value!r}")
        elif value == "true":
            flags.append(flag)
    return flags


def _is_given(flag: str, given: list[str]) -> bool:
    return any(word.split("=")[0] == flag for word in given)


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit code: 2 for a mistake of use, 1 for what went wrong."""
    parser = _parser()
    given = sys.argv[1:] if argv is None else argv
    options = {"web.listen_address": [":10371"]} | vars(
        parser.parse_args([*from_environment(parser, given, os.environ), *given])
    )
    args = argparse.Namespace(**{re.sub(r"[.-]", "_", name): value for name, value in options.items()})
    if args.shard >= args.total_shards:
        parser.error(f"--shard: expected less than --total-shards ({args.total_shards}), got {args.shard}")
    if args.demo and args.audit:
        parser.error("--audit: the demo keeps nothing that could be compared")
    if args.demo and args.state_import:
        parser.error("--state.import: the demo's state goes when it ends")
    if args.demo and _is_given("--config.file", given):  # a variable may name it for good
        parser.error("--config.file: the demo has a configuration of its own")
    logs.setup(args.log_level, args.log_format)
    unfinished = bool(args.config_check or args.audit or args.state_import)  # then: no success for scripts
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, partial(_leave_at_once, 128 + number if unfinished else 0))
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # until the web server reloads on it: it would end us
    try:
        with ExitStack() as stack:
            return _run(args, stack)
    except (ConfigError, WebError, LedgerError, ApiError) as error:
        _complain(error.line if isinstance(error, ApiError) else str(error))
        return getattr(error, "exit_code", 1 if isinstance(error, (LedgerError, ApiError)) else 2)


def _leave_at_once(code: int, *_: object) -> NoReturn:
    """Before the web server has its own handlers, also as process 1, which has none by itself."""
    if code:  # nothing to be left in order; a table waits for requests under way, whoever raises what
        os._exit(code)
    sys.unraisablehook = lambda _: None  # the exit cuts off what is half made, and whose end then complains
    sys.exit(0)


def _read_config(path: str | None) -> Config:
    """The configuration file; where none is named and none is there, the defaults run. Raises ConfigError."""
    if path is None and not os.path.exists(CONFIG_FILE):
        return defaults(os.environ)
    return load(path or CONFIG_FILE, os.environ)


def _refuse_a_pipe(path: str) -> None:
    """Raise ConfigError for what a reload would wait for, perhaps for ever, and all later ones with it."""
    if os.path.exists(path) and not os.path.isfile(path):
        raise ConfigError(f"{path}: cannot read the file: it is not a regular file")


def _run(args: argparse.Namespace, stack: ExitStack) -> int:
    # what the flags say is judged before anything is opened
    site = Site.of(args.web_telemetry_path, args.web_external_url, args.web_route_prefix)
    addresses = listeners.parse(args.web_listen_address)
    refuse_same_file({"--config.file": args.config_file, "--web.config.file": args.web_config_file})
    web_config = WebConfigFile(args.web_config_file)
    read_config = demo(stack) if args.demo else lambda: _read_config(args.config_file)
    shard = args.shard, args.total_shards
    config = read_config()
    if config.state.url and args.total_shards > 1:  # a shard would leave alone what no other one may lease
        raise ConfigError(
            "--total-shards: with state.url exporters share the agents by themselves; leave it out"
        )
    if args.state_import:
        return importing.run(place_at(args.state_import, config), place(config), sys.stdout)
    if args.config_check or args.audit:
        chosen, client = settings(config, shard), connect(config)
        if args.audit:
            what = chosen.selection, chosen.limits, chosen.concurrency, place(config)
            return audit.run(client, *what, sys.stdout)
        return check.run(client, chosen.selection, chosen.concurrency, chosen.limits.timeframe, sys.stdout)
    opened = listeners.open_listeners(addresses, systemd_socket=args.web_systemd_socket)
    for listener in opened:
        stack.enter_context(listener)
    read = iter((config,))  # once is enough, and more than a pipe can give

    def current_config() -> Config:
        if (first := next(read, None)) is None and not args.demo:
            _refuse_a_pipe(args.config_file or CONFIG_FILE)
        return first or read_config()

    app = App(current_config, shard=shard, reset_histogram=args.state_reset_histogram)
    stack.callback(app.close)
    app.log_start()
    app.greet()
    gc.freeze()
    gc.set_threshold(*GC_THRESHOLDS)
    serve(
        opened,
        site=site,
        scrape=app.metrics,
        default_timeout=app.default_timeout,
        reload=app.reload,
        contact=app.contact,
        status=app.status,
        web_config=web_config,
        enable_lifecycle=args.web_enable_lifecycle,
    )
    return 0


def run() -> NoReturn:
    """The entry point: leaves without waiting for a request that is still under way.

    The exit code is that of the work, also when nobody reads what it says any more. What is lost in any
    other way, as on a full disk, is one line and exit code 1.
    """
    descriptors.take_all()
    sys.stdout, sys.stderr = (stream or open(os.devnull, "w") for stream in (sys.stdout, sys.stderr))  # noqa: SIM115
    printed = io.StringIO()
    try:
        with redirect_stdout(printed):
            code = main()
    except SystemExit as leaving:
        code = leaving.code if isinstance(leaving.code, int) else 1
    try:
        text = printed.getvalue().encode(sys.stdout.encoding, "backslashreplace")
        sys.stdout.write(text.decode(sys.stdout.encoding))
        sys.stdout.flush()
    except BrokenPipeError:
        pass  # as with `| head -1`
    except OSError as error:
        _complain(f"cannot write to standard output: {error.strerror}")
        code = code or 1
    logging.shutdown()
    os._exit(code)


def _complain(line: str) -> None:
    with suppress(OSError):  # nobody is there to be told
        sys.stderr.write(f"modus-exporter: {line}\n")
        sys.stderr.flush()
