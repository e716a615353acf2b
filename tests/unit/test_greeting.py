"""The first request, and what is known of the API afterwards."""

import logging
from typing import Any

import pytest

from exporter.demo.simulator import SimulatedModus
from exporter.modus.client import ModusClient
from exporter.modus.contact import Contact, age
from exporter.modus.discovery import Selection, Target
from exporter.modus.errors import ApiError
from exporter.runs.greeting import greet
from tests.simulation import ILL, WELL

DISCOVERY = Selection([], ("*",))
LISTED = Selection([Target(ILL), Target(WELL)])


def greeted(
    url: str, selection: Selection, caplog: pytest.LogCaptureFixture, *, token: str
) -> tuple[ModusClient, str, dict[str, Any]]:
    """The client afterwards, and the one line of the log."""
    caplog.set_level(logging.INFO, "exporter.runs.greeting")
    client = ModusClient(url, lambda: token, resource="agents", sleep=lambda _: None)
    greet(client, selection)
    (record,) = [record for record in caplog.records if record.name == "exporter.runs.greeting"]
    return client, record.message, record.fields  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("selection", "operation"), [(DISCOVERY, "list_agents"), (LISTED, "list_runs")], ids=["all", "listed"]
)
def test_one_small_request_says_that_the_token_works(
    modus: SimulatedModus, caplog: pytest.LogCaptureFixture, selection: Selection, operation: str
) -> None:
    client, message, told = greeted(modus.url, selection, caplog, token=modus.token)
    assert (message, told) == ("the API takes the token", {"api": modus.url})
    assert [(request.operation, request.query["pageSize"]) for request in modus.requests] == [
        (operation, "1")
    ]
    assert client.contact.answered is not None
    assert client.contact.problem == ""


@pytest.mark.parametrize("selection", [DISCOVERY, LISTED], ids=["all", "listed"])
def test_a_token_that_is_refused_is_one_line_with_what_to_do(
    modus: SimulatedModus, caplog: pytest.LogCaptureFixture, selection: Selection
) -> None:
    client, message, told = greeted(modus.url, selection, caplog, token="modus_pat_wrong")  # noqa: S106
    assert message == "the first request to the API failed"
    assert told["reason"] == "unauthorized"
    assert told["hint"] == "check the token: MODUS_API_KEY, modus.token or modus.token_file"
    assert "wrong" not in str(told)
    assert client.contact.answered is not None  # a refusal is an answer
    assert client.contact.problem.endswith(told["hint"])


def test_an_api_that_is_not_there_is_one_line_with_what_to_do(
    modus: SimulatedModus, caplog: pytest.LogCaptureFixture
) -> None:
    url = modus.url
    modus.close()
    client, message, told = greeted(url, DISCOVERY, caplog, token=modus.token)
    assert message == "the first request to the API failed"
    assert told["error"].endswith("connection refused")
    assert told["hint"] == "check modus.base_url, the network and the proxy"
    assert client.contact.answered is None
    assert client.contact.problem == f"{told['error']}: {told['hint']}"


def test_what_is_known_of_the_api_is_as_of_the_newest_call() -> None:
    away = ApiError("connection", "GET /: connection refused")
    unknown = ApiError("not_found", "GET /: 404", status=404)
    refused = ApiError("unauthorized", "GET /: 401", status=401)
    contact = Contact().after(away, now=1.0)
    assert contact == Contact(None, away.line)
    contact = contact.after(unknown, now=2.0)  # one agent's trouble is none of the API
    assert contact == Contact(2.0, "")
    assert contact.after(away, now=3.0) == Contact(2.0, away.line)
    assert contact.after(refused, now=3.0) == Contact(3.0, refused.line)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-5.0, "0 s"),
        (0.4, "0 s"),
        (119.0, "119 s"),
        (120.0, "2 min"),
        (7199.0, "119 min"),
        (7200.0, "2 h"),
        (172_799.0, "47 h"),
        (172_800.0, "2 d"),
    ],
)
def test_an_age_is_told_in_its_largest_unit(seconds: float, text: str) -> None:
    assert age(seconds) == text


def test_a_success_clears_what_went_wrong(modus: SimulatedModus, caplog: pytest.LogCaptureFixture) -> None:
    modus.fault = lambda request: modus.error(401)
    client, _, _ = greeted(modus.url, DISCOVERY, caplog, token=modus.token)
    assert client.contact.problem
    modus.fault = None
    greet(client, DISCOVERY)
    assert client.contact.problem == ""
