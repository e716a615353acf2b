"""What agents and models used: each bucket of the usage report counted once, beside the scrapes."""

import io
import logging
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from exporter.deadline import Deadline
from exporter.demo.simulator import Answer, Request, SimulatedModus, SimulatedUse
from exporter.metrics.usage import UsageSnapshot
from exporter.modus.discovery import Selection
from exporter.modus.usage import Used
from exporter.runs.usageaudit import compare_usage
from exporter.runs.usagereader import UsageSettings
from tests.simulation import Clock, Exporter, settings
from tests.webserver import awaited

HOUR = 3600.0
NOON = 1_790_078_400.0  # 2026-09-22T12:00:00Z
Start = Callable[..., Exporter]


@pytest.fixture
def clock() -> Clock:
    return Clock(NOON + 600)


@pytest.fixture
def modus(clock: Clock) -> SimulatedModus:
    modus = SimulatedModus(fleet={}, clock=clock)
    for agent_id, name in ((7, "Seven"), (8, "Eight")):
        modus.add_agent(agent_id, name)
    return modus


@pytest.fixture
def start(modus: SimulatedModus, tmp_path: Path) -> Iterator[Start]:
    """Starts an exporter on the same state file as the one before, which may have been killed."""
    started: list[Exporter] = []

    def start(
        *agents: int, enabled: str = "auto", path: str | None = "state.db", ahead: float = 0.0, **more: Any
    ) -> Exporter:
        usage = UsageSettings(enabled, refresh_interval=0.0, **more)
        chosen = replace(settings(*agents), usage=usage)
        if not agents:
            chosen = replace(chosen, selection=Selection([], ["*"]))
        ours = lambda: modus.clock() + ahead  # noqa: E731
        started.append(Exporter(modus, path and str(tmp_path / path), chosen, clock=ours))
        return started[-1]

    yield start
    for exporter in started:
        exporter.close()


def use(modus: SimulatedModus, agent_id: int = 7, at: float = NOON, **more: Any) -> None:
    amounts = {"calls": 1, "input_tokens": 100, "output_tokens": 10, "credits": 0.5}
    modus.uses.append(SimulatedUse(agent_id, "large", at, **amounts | more))


def asked(modus: SimulatedModus) -> list[Request]:
    return [request for request in modus.requests if request.operation == "get_usage"]


def shown(exporter: Exporter) -> UsageSnapshot:
    """What a scrape shows once all that is reported by now was read, committed, and shown at 0 if new."""
    modus = exporter.api.modus
    exporter.scrape()
    for _ in range(3):
        number = len(asked(modus))
        awaited(lambda: exporter.scrape() and len(asked(modus)) >= number + 2)  # noqa: B023
        awaited(lambda: not exporter.collector._usage._periodic.is_busy)
        exporter.scrape()
    return exporter.collector.scrape(None).usage


def test_the_first_report_is_the_base_and_later_ones_add_what_is_more(
    start: Start, modus: SimulatedModus, clock: Clock
) -> None:
    use(modus, at=NOON - 5 * HOUR)
    use(modus, 8, at=NOON)
    exporter = start()
    first = shown(exporter)
    assert first.agents == {"7": Used(1, 100, 10, 0.5), "8": Used(1, 100, 10, 0.5)}
    assert first.models == {"large": Used(2, 200, 20, 1.0)}
    use(modus, at=NOON + 60, credits=2.0)
    clock.advance(60)
    assert shown(exporter).agents["7"] == Used(2, 200, 20, 2.5)


def test_there_is_no_total_before_all_of_the_first_report_was_read(
    start: Start, modus: SimulatedModus
) -> None:
    use(modus)
    modus.fault = lambda request: modus.error(500) if request.query.get("group_by") == "model" else None
    exporter = start()
    used = shown(exporter)
    assert (used.agents, used.up) == ({}, False)
    modus.fault = None
    assert shown(exporter).agents["7"].calls == 1


def test_agents_that_used_nothing_are_there_at_zero(start: Start, modus: SimulatedModus) -> None:
    use(modus)
    assert shown(start()).agents["8"] == Used()


def test_a_late_bucket_is_counted_in_the_hour_that_it_is_of(
    start: Start, modus: SimulatedModus, clock: Clock
) -> None:
    use(modus, at=NOON - HOUR, known_from=NOON + 3 * HOUR)
    exporter = start()
    assert shown(exporter).agents["7"] == Used()
    clock.advance(3 * HOUR)
    assert shown(exporter).agents["7"].calls == 1


def test_a_bucket_that_shrinks_takes_nothing_back_and_is_said_once(
    start: Start, modus: SimulatedModus, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    use(modus, input_tokens=100)
    exporter = start()
    assert shown(exporter).agents["7"].input_tokens == 100
    use(modus, known_from=NOON + 700, calls=0, output_tokens=0, credits=0, input_tokens=-40)
    clock.advance(200)
    assert shown(exporter).agents["7"].input_tokens == 100
    assert caplog.text.count("usage of one agent shrank") == 1
    use(modus, known_from=NOON + 900, calls=0, output_tokens=0, credits=0, input_tokens=50)
    clock.advance(200)
    assert shown(exporter).agents["7"].input_tokens == 110


def test_a_restart_counts_on_and_a_downtime_is_caught_up(
    start: Start, modus: SimulatedModus, clock: Clock
) -> None:
    use(modus)
    before = start()
    assert shown(before).agents["7"].calls == 1
    before.close()
    for hours in range(1, 60):
        use(modus, at=NOON + hours * HOUR)
    clock.advance(59 * HOUR)
    assert shown(start()).agents["7"].calls == 60


def test_a_clock_that_steps_back_counts_nothing_again(
    start: Start, modus: SimulatedModus, clock: Clock
) -> None:
    use(modus, at=NOON)
    exporter = start()
    assert shown(exporter).agents["7"].calls == 1
    clock.advance(30 * HOUR)
    assert shown(exporter).agents["7"].calls == 1
    clock.advance(-30 * HOUR)
    assert shown(exporter).agents["7"].calls == 1


@pytest.mark.parametrize("days", [3, -3], ids=["ahead", "behind"])
@pytest.mark.parametrize("agents", [(), (7,)], ids=["discovery", "one agent"])
def test_a_clock_of_ours_that_is_days_off_loses_nothing(
    start: Start, modus: SimulatedModus, clock: Clock, days: int, agents: tuple[int, ...]
) -> None:
    """As of another machine's exporter, with shared state. The very first answer is not believed."""
    for number, off in enumerate((0, days, 0), 1):
        use(modus, at=NOON + 60 * number)
        clock.advance(60)
        exporter = start(*agents, ahead=off * 24 * HOUR)
        assert shown(exporter).agents["7"].calls == number
        exporter.close()


def test_without_a_state_file_only_what_is_used_from_now_on_counts(
    start: Start, modus: SimulatedModus, clock: Clock
) -> None:
    use(modus)
    exporter = start(path=None)
    assert shown(exporter).agents["7"] == Used()
    use(modus, at=NOON + 700)
    clock.advance(200)
    assert shown(exporter).agents["7"] == Used(1, 100, 10, 0.5)


@pytest.mark.parametrize("kind", ["id", "slug", "name"])
def test_the_report_may_call_an_agent_by_id_slug_or_name(
    start: Start, modus: SimulatedModus, kind: str
) -> None:
    modus.usage_names = kind
    use(modus)
    assert shown(start()).agents["7"].calls == 1


def test_who_is_not_listed_is_counted_under_its_own_name_and_said_once(
    start: Start, modus: SimulatedModus, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    use(modus, group="agent_abc")
    exporter = start()
    assert shown(exporter).agents["agent_abc"].calls == 1
    assert caplog.text.count("usage of an agent that is not listed") == 1
    modus.add_agent(9, "agent_abc")  # the series stays what it was: else it would be counted twice
    exporter.collector._targets._discovery._refreshed = -math.inf  # the list is due
    use(modus, at=NOON + 610, group="agent_abc")
    clock.advance(600)
    assert shown(exporter).agents["agent_abc"].calls == 2


def test_a_renamed_agent_stays_one_series(start: Start, modus: SimulatedModus, clock: Clock) -> None:
    modus.usage_names = "name"
    use(modus)
    exporter = start()
    assert shown(exporter).agents["7"].calls == 1
    modus.rename(7, "Sept")
    use(modus, at=NOON + 610, group="Sept")
    assert "Sept" not in shown(exporter).agents  # it is in the report before the list of agents is read again
    exporter.collector._targets._discovery._refreshed = -math.inf  # now it is
    used = shown(exporter)
    assert "Sept" not in used.agents
    assert used.agents["7"].calls == 2


def test_a_group_that_is_new_is_at_zero_in_one_scrape(
    start: Start, modus: SimulatedModus, clock: Clock
) -> None:
    exporter = start()
    shown(exporter)
    use(modus, at=NOON + 610, group="99")
    clock.advance(60)
    values: list[float] = []

    def risen() -> bool:
        used = exporter.collector.scrape(None).usage.agents.get("99")
        values.extend([] if used is None else [used.calls])
        return bool(values and values[-1])

    awaited(risen)
    assert values[0] == 0


def test_without_the_scope_it_is_off_in_one_line(
    start: Start, modus: SimulatedModus, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    modus.scopes = ("agents:read", "agents:invoke")
    exporter = start()
    awaited(lambda: exporter.scrape() and "no usage is read" in caplog.text)
    for _ in range(3):
        assert exporter.scrape()[7].up
    used = exporter.collector.scrape(None).usage
    assert (used.up, used.last_read, used.agents) == (None, None, {})
    assert len(asked(modus)) == 1
    (said,) = [record for record in caplog.records if "no usage is read" in record.message]
    assert "usage:read" in str(said.__dict__)


def test_without_the_scope_it_is_down_when_it_is_wanted(start: Start, modus: SimulatedModus) -> None:
    modus.scopes = ("agents:read", "agents:invoke")
    exporter = start(enabled="true")
    awaited(lambda: exporter.collector.scrape(None).usage.up is False)


def test_an_api_without_the_report_is_asked_again_after_an_hour(start: Start, modus: SimulatedModus) -> None:
    modus.usage_report = False
    exporter = start()
    awaited(lambda: exporter.scrape() and asked(modus))
    exporter.scrape()
    assert len(asked(modus)) == 1


def test_switched_off_nothing_is_asked(start: Start, modus: SimulatedModus) -> None:
    exporter = start(enabled="false")
    exporter.scrape()
    exporter.scrape()
    assert asked(modus) == []
    assert exporter.collector.scrape(None).usage.up is None


FAULTS: dict[str, Callable[[SimulatedModus], Answer]] = {
    "401": lambda modus: modus.error(401),
    "429": lambda modus: modus.error(429, **{"Retry-After": "1"}),
    "500": lambda modus: modus.error(500),
    "html": lambda modus: Answer(200, {}, b"<html>"),
    "brackets": lambda modus: Answer(200, {}, b"[" * 100_000),
    "a list": lambda modus: Answer(200, {}, b"[]"),
    "no buckets": lambda modus: Answer(200, {}, b"{}"),
    "buckets are text": lambda modus: Answer(200, {}, b'{"buckets": "none"}'),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_whatever_is_wrong_with_the_report_the_runs_do_not_notice(
    start: Start, modus: SimulatedModus, clock: Clock, fault: str
) -> None:
    modus.start_run(7, at=NOON, lasts=5.0)
    use(modus)
    exporter = start()
    assert shown(exporter).up is True
    modus.fault = lambda request: FAULTS[fault](modus) if request.operation == "get_usage" else None
    awaited(lambda: exporter.collector.scrape(None).usage.up is False)
    modus.start_run(7, at=NOON + 600, lasts=5.0)
    clock.advance(60)
    snapshot = exporter.collector.scrape(None)
    assert (snapshot.complete, snapshot.up) == (True, True)
    assert snapshot.agents[0].totals is not None
    assert sum(snapshot.agents[0].totals.finished["completed"].values()) == 2
    assert snapshot.usage.agents["7"].calls == 1  # what was counted stays
    modus.fault = None
    use(modus, at=NOON + 650)
    assert shown(exporter).agents["7"].calls == 2


def test_an_odd_bucket_costs_only_itself(start: Start, modus: SimulatedModus) -> None:
    sound = (
        b'{"bucket":"2026-09-22T12:00:00Z","group_value":"7","call_count":1,"input_tokens":2,'
        b'"output_tokens":3,"credits":4}'
    )
    odd = [
        b"null", b"7", b"{}", b'{"bucket":"yesterday","group_value":"7"}', sound.replace(b"1,", b"-1,"),
        sound.replace(b"4}", b"NaN}"), sound.replace(b"4}", b"1e400}"), sound.replace(b'"7"', b'""'),
        sound.replace(b"4}", b'"4"}'),
    ]  # fmt: skip
    body = b'{"buckets":[' + b",".join([*odd, sound]) + b'],"totals":{}}'
    modus.fault = lambda request: Answer(200, {}, body) if request.operation == "get_usage" else None
    assert shown(start()).agents["7"] == Used(1, 2, 3, 4)


def test_a_report_that_is_too_large_is_asked_for_in_shorter_windows(
    start: Start, modus: SimulatedModus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("exporter.modus.usage.MOST_BUCKETS", 5)
    for hours in range(24):
        use(modus, at=NOON - hours * HOUR)
    start_again = start()
    real = start_again.api.usage

    def usage(*args: Any, **more: Any) -> Any:
        from exporter.modus.errors import ApiError, BodyTooLargeError

        try:
            return real(*args, **more)
        except BodyTooLargeError as error:
            raise ApiError("bad_response", str(error), too_large=True) from None

    monkeypatch.setattr(start_again.api, "usage", usage)
    assert shown(start_again).agents["7"].calls == 24


def test_more_models_than_there_can_be_count_as_other(
    start: Start, modus: SimulatedModus, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("exporter.runs.usage.MOST_GROUPS", {"agent": 100, "model": 3})
    modus.uses += [SimulatedUse(7, f"model-{n}", NOON, calls=1) for n in range(10)]
    exporter = start()
    models = shown(exporter).models
    assert models["other"].calls == 7
    assert len(models) == 4
    modus.uses += [SimulatedUse(7, f"model-{n}", NOON, NOON + 700, calls=1) for n in range(10)]
    clock.advance(200)
    assert sum(used.calls for used in shown(exporter).models.values()) == 20


def test_in_the_normal_course_there_is_one_request_for_each_grouping(
    start: Start, modus: SimulatedModus, clock: Clock
) -> None:
    exporter = start()
    shown(exporter)
    windows = {(request.query["group_by"], request.query["since"]) for request in asked(modus)}
    assert ("agent", "2026-09-21T12:00:00.000Z") in windows  # at first a day, which may be revised
    assert asked(modus)[-1].query["since"] == "2026-09-22T10:00:00.000Z"
    assert asked(modus)[-1].query["until"] == "2026-09-22T13:00:00.000Z"
    clock.advance(HOUR)
    number = len(asked(modus))
    whole = "2026-09-21T12:00:00.000Z"  # and once an hour
    awaited(lambda: exporter.scrape() and whole in {each.query["since"] for each in asked(modus)[number:]})


def test_what_is_final_leaves_memory_and_what_is_gone_for_long_too(
    start: Start, modus: SimulatedModus, clock: Clock
) -> None:
    exporter = start()
    use(modus, group="gone")
    shown(exporter)
    for _ in range(40):
        clock.advance(24 * HOUR)
        use(modus, at=clock.now)
        assert shown(exporter).agents["7"].calls > 0
    with exporter.ledger.usage() as account:
        assert len(account.state.groups["agent"]["7"].hours) <= 2
    assert "gone" not in shown(exporter).agents


def test_credits_of_the_month_and_budgets_are_shown(
    start: Start, modus: SimulatedModus, clock: Clock
) -> None:
    use(modus, credits=3.0)
    exporter = start(budget=100.0, budgets={7: 40.0})
    used = shown(exporter)
    assert (used.budget, used.budgets, used.month_credits["7"]) == (100.0, {"7": 40.0}, 3.0)
    clock.advance(9 * 24 * HOUR)  # October
    used = exporter.collector.scrape(None).usage
    assert (used.agents["7"].credits, used.month_credits["7"]) == (3.0, 0.0)
    use(modus, at=clock.now, credits=1.5)
    assert shown(exporter).month_credits["7"] == 1.5


def audited(exporter: Exporter) -> tuple[bool, str]:
    out = io.StringIO()
    with exporter.ledger.usage() as account:
        sound = compare_usage(exporter.api, account.state, Deadline(10), out)  # type: ignore[arg-type]
    return sound, out.getvalue()


def test_the_audit_holds_what_was_counted_against_the_totals_of_the_api(
    start: Start, modus: SimulatedModus
) -> None:
    use(modus, at=NOON - 5 * HOUR, credits=0.1)
    use(modus, 8, at=NOON - 5 * HOUR, credits=0.2)
    exporter = start()
    shown(exporter)
    sound, text = audited(exporter)
    assert sound
    assert ["agent", "2026-09-21T12:00:00Z", "credits", "0.3", "0.3", "0", "0"] in map(
        str.split, text.splitlines()
    )
    use(modus, at=NOON - 4 * HOUR, input_tokens=7)
    sound, text = audited(exporter)
    assert not sound
    assert "model 2026-09-21T12:00:00Z calls 3 2 1 0" in " ".join(text.split())


def test_the_audit_names_what_was_taken_back_and_is_content(start: Start, modus: SimulatedModus) -> None:
    use(modus, at=NOON - 5 * HOUR, input_tokens=100)
    exporter = start()
    shown(exporter)
    use(modus, at=NOON - 5 * HOUR, calls=0, input_tokens=-30, output_tokens=0, credits=0)
    sound, text = audited(exporter)
    assert sound
    assert "agent 2026-09-21T12:00:00Z input tokens 70 100 0 30" in " ".join(text.split())
    modus.scopes = ()
    sound, text = audited(exporter)
    assert not sound
    assert "usage by agent: cannot be read" in text
