"""Log lines: one record is one line, and what it says can be read back."""

import io
import json
import logging
import os
import re
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exporter import log as log_module
from exporter.log import FORMATS, JsonFormatter, LogfmtFormatter, fields, setup

NASTY = 'a "quoted" \\ value\nlevel=error msg=forged\r\x1b[31m\u2028\u202e\x85\x00 Zürich 東京'


@pytest.fixture(autouse=True)
def _loggers_as_before():
    root, ours = logging.getLogger(), logging.getLogger("exporter")
    before = root.handlers[:], root.level, ours.level
    root.handlers = []  # so that setup() does not close pytest's own
    yield
    root.handlers, root.level, level = before
    ours.setLevel(level)


def record(message="hello", level=logging.INFO, exc_info=None, **fields):
    made = logging.LogRecord("exporter.test", level, "test.py", 1, message, (), exc_info)
    made.created = 1795550400.25
    made.fields = fields
    return made


def parse(line):
    """The pairs of a logfmt line, for a reader who knows nothing of the writer."""
    pair = re.compile(r'([^\s="]+)=(?:"((?:[^"\\]|\\.)*)"|([^\s="]*))(?: |\Z)')
    pairs, position = [], 0
    while position < len(line):
        match = pair.match(line, position)
        assert match, f"no pair at {line[position:]!r}"
        quoted, bare = match[2], match[3]
        pairs.append((match[1], bare if quoted is None else json.loads(f'"{quoted}"')))
        position = match.end()
    return pairs


def caught(error):
    try:
        raise error
    except type(error):
        return sys.exc_info()


def lines(level, log_format, write):
    stream = io.StringIO()
    setup(level, log_format, stream)
    write(logging.getLogger("exporter.test"))
    return stream.getvalue().splitlines()


def test_a_logfmt_line_has_time_level_message_and_fields_in_this_order():
    line = LogfmtFormatter().format(record("listening now", address="127.0.0.1:10371", agents=3))
    expected = 'time=2026-11-24T20:00:00.250Z level=info msg="listening now" address=127.0.0.1:10371 agents=3'
    assert line == expected


def test_a_json_line_has_the_same_keys_with_numbers_as_numbers():
    line = JsonFormatter().format(
        record("listening now", address="x", agents=3, took=0.5, ok=True, none=None)
    )
    assert list(json.loads(line).items()) == [
        ("time", "2026-11-24T20:00:00.250Z"),
        ("level", "info"),
        ("msg", "listening now"),
        ("address", "x"),
        ("agents", 3),
        ("took", 0.5),
        ("ok", True),
        ("none", None),
    ]


@pytest.mark.parametrize(
    ("value", "written"),
    [
        ("plain", "v=plain"),
        ("東京", "v=東京"),
        ("", 'v=""'),
        ("a b", 'v="a b"'),
        ("a=b", 'v="a=b"'),
        ('say "hi"', r'v="say \"hi\""'),
        ("back\\slash", r'v="back\\slash"'),
        ("two\nlines", r'v="two\nlines"'),
        ("\x1b[31m", r'v="\u001b[31m"'),
        ("\u2028\u202e\x85", r'v="\u2028\u202e\u0085"'),
        ("lone \ud800", r'v="lone \ud800"'),
        (True, "v=true"),
        (None, "v=null"),
        (1.5, "v=1.5"),
        (float("nan"), "v=nan"),
        ([1, "x y"], "v=\"[1, 'x y']\""),
    ],
)
def test_a_logfmt_value_is_quoted_and_escaped_where_it_must_be(value, written):
    assert LogfmtFormatter().format(record(v=value)).endswith(f" {written}")


@given(st.text(), st.text())
def test_any_text_in_a_logfmt_line_reads_back_as_itself(message, value):
    line = LogfmtFormatter().format(record(message, value=value))
    assert line.isprintable()
    assert parse(line)[1:] == [("level", "info"), ("msg", message), ("value", value)]


@given(st.text(), st.text())
def test_any_text_in_a_json_line_reads_back_as_itself(message, value):
    line = JsonFormatter().format(record(message, value=value))
    assert line.isascii()
    assert line.isprintable()
    assert json.loads(line)["msg"] == message
    assert json.loads(line)["value"] == value


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_json_has_no_number_that_json_does_not_know(value):
    def refuse(constant):
        pytest.fail(f"{constant} is not JSON")

    assert json.loads(JsonFormatter().format(record(value=value)), parse_constant=refuse)["value"] == str(
        value
    )


@pytest.mark.parametrize("log_format", FORMATS)
def test_one_record_is_one_line_whatever_it_holds(log_format):
    written = lines("info", log_format, lambda log: log.info(NASTY, extra=fields(name=NASTY)))
    assert len(written) == 1
    assert written[0].isprintable()


@pytest.mark.parametrize("log_format", FORMATS)
def test_text_that_cannot_be_encoded_is_written_all_the_same(log_format):
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, "utf-8", errors="strict")
    setup("info", log_format, stream)
    logging.getLogger("exporter.test").info("lone \ud800")
    stream.flush()
    assert b"lone \\ud800" in raw.getvalue()


@pytest.mark.parametrize(
    ("level", "word"),
    [
        (logging.DEBUG, "debug"),
        (logging.INFO, "info"),
        (logging.WARNING, "warn"),
        (logging.ERROR, "error"),
        (logging.CRITICAL, "error"),
    ],
)
def test_levels_have_the_words_of_prometheus(level, word):
    assert parse(LogfmtFormatter().format(record(level=level)))[1] == ("level", word)


@pytest.mark.parametrize(
    ("level", "heard"),
    [
        ("debug", ["debug", "info", "warn", "error"]),
        ("info", ["info", "warn", "error"]),
        ("warn", ["warn", "error"]),
        ("warning", ["warn", "error"]),
        ("error", ["error"]),
    ],
)
def test_the_level_says_from_where_on_this_package_is_heard(level, heard):
    def write(log):
        for method in (log.debug, log.info, log.warning, log.error):
            method("x")

    assert [dict(parse(line))["level"] for line in lines(level, "logfmt", write)] == heard


@pytest.mark.parametrize("name", ["urllib3.connectionpool", "requests", "asyncio"])
def test_libraries_are_heard_from_warning_on_only(name):
    logging.getLogger(name).setLevel(logging.NOTSET)  # whatever a server in another test has set

    def write(_):
        logging.getLogger(name).debug("request")
        logging.getLogger(name).info("started")
        logging.getLogger(name).warning("trouble")

    assert [dict(parse(line))["msg"] for line in lines("debug", "logfmt", write)] == ["trouble"]


def test_an_exception_is_a_field_and_no_traceback():
    line = LogfmtFormatter().format(record(exc_info=caught(ValueError("no\ngood"))))
    assert parse(line)[3:] == [("error", "ValueError: no\ngood")]


@pytest.mark.parametrize("log_format", FORMATS)
def test_the_stack_of_an_exception_is_a_field_at_debug_only(log_format):
    def write(log):
        log.error("failed", exc_info=caught(ValueError("bad")))

    (quiet,), (loud,) = lines("info", log_format, write), lines("debug", log_format, write)
    assert "ValueError: bad" in quiet
    assert "Traceback" not in quiet
    assert r"Traceback (most recent call last):\n  File" in loud


def test_no_exception_where_none_is_at_hand():
    assert "error" not in LogfmtFormatter().format(record(exc_info=(None, None, None)))


def test_standard_error_is_the_default(capsys):
    setup()
    logging.getLogger("exporter.test").info("hello")
    out, err = capsys.readouterr()
    assert out == ""
    assert err.endswith(" level=info msg=hello\n")


def test_a_second_setup_replaces_the_first():
    setup("info", "json", io.StringIO())
    assert len(lines("info", "logfmt", lambda log: log.info("once"))) == 1
    assert len(logging.getLogger().handlers) == 1


@pytest.mark.parametrize("arguments", [("loud", "logfmt"), ("info", "xml")])
def test_unknown_words_are_refused(arguments):
    with pytest.raises(KeyError):
        setup(*arguments)


def test_a_pipe_that_nobody_reads_holds_nobody_up_and_what_was_lost_is_said(monkeypatch):
    monkeypatch.setattr(log_module, "PATIENCE", 0.01)
    reader, writer = os.pipe()
    with open(reader, "rb", buffering=0) as read, open(writer, "w") as pipe:
        setup(stream=pipe)
        logger, text = logging.getLogger("exporter.test"), "x" * 1000
        for number in range(500):
            logger.info(text, extra=fields(number=number))
        os.set_blocking(reader, False)
        seen = b"".join(iter(lambda: read.read(65536), None)).decode().splitlines()
        assert 10 < len(seen) < 500
        assert [line.rpartition("number=")[2] for line in seen] == list(map(str, range(len(seen))))
        logger.info("goes on")
        lost, last = read.read(65536).decode().splitlines()
    assert lost.endswith(f'level=warn msg="nobody read the log" lines_lost={500 - len(seen)}')
    assert last.endswith('msg="goes on"')
