"""State that several exporters share, in a real PostgreSQL: what holds for a file too, leases, and faults."""

import io
import logging
import os
import re
import shutil
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, nullcontext, suppress
from pathlib import Path
from unittest.mock import patch

import psycopg
import pytest

from exporter.app import App
from exporter.config import AgentConfig, Config, Modus, State
from exporter.deadline import Deadline
from exporter.demo.simulator import SimulatedModus, SimulatedUse
from exporter.metrics.snapshot import AgentSnapshot
from exporter.modus.discovery import shard_of
from exporter.modus.model import Agent
from exporter.runs import audit, database, fleet, importing, leases, leasetable, postgres, tables, usagereader
from exporter.runs.database import Connection, Cursor
from exporter.runs.forgetting import KEEP
from exporter.runs.ledger import Ledger
from exporter.runs.postgres import SharedStore
from exporter.runs.reader import Memory, Reading
from exporter.runs.runlog import RunLog
from exporter.runs.state import SCHEMA_VERSION, USAGE_ID, Meta, Watermark
from exporter.runs.state import State as Stored
from exporter.runs.store import Change, Database, Leases, LedgerError, Place, StoreError, Taken, read_state
from exporter.scalars import DatabaseUrl, Secret
from exporter.waits import waited
from exporter.web.messages import HTTPError
from tests.e2e.harness import wait_for
from tests.e2e.scarce import no_room, small_disk
from tests.postgres import NOBODY, PASSWORD, Postgres, running
from tests.simulation import BOUNDS, DAY, START, Clock, DirectApi, Exporter, finished, settings
from tests.unit.test_ledger import a_run
from tests.webfiles import Authority

pytestmark = [pytest.mark.servers, pytest.mark.xdist_group("postgres")]
AGENT = 7
TERM = 600.0  # seconds: longer than any test, so that none ends because the machine is busy


class BootClock:
    """The clock of the leases, which a test can put forward."""

    ahead = 0.0

    def __call__(self) -> float:
        return leases.boot_clock() + self.ahead


@pytest.fixture(autouse=True)
def boot(monkeypatch: pytest.MonkeyPatch) -> BootClock:
    """Members renew often, and their terms end when a test puts this clock forward."""
    for module in (fleet, leases):
        monkeypatch.setattr(module, "TERM", TERM)
    monkeypatch.setattr(fleet, "IDLE", 10 * TERM)
    monkeypatch.setattr(fleet, "TICK", 0.1)
    boot = BootClock()
    monkeypatch.setattr(fleet, "boot_clock", boot)
    return boot


@pytest.fixture
def all_terms_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the database's clock each membership is over at once: only what members see of each other counts."""
    renew, join = leasetable.renew, leasetable.join
    monkeypatch.setattr(leasetable, "renew", lambda cursor, id_, _, *more: renew(cursor, id_, 0.0, *more))
    monkeypatch.setattr(leasetable, "join", lambda cursor, id_, name, _: join(cursor, id_, name, 0.0))


@pytest.fixture
def server(postgres: Postgres) -> Postgres:
    postgres.renew()
    return postgres


@pytest.fixture(params=["file", "database"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    if request.param == "file":
        return str(tmp_path / "state.db")
    server: Postgres = request.getfixturevalue("server")
    return server.database


@pytest.fixture
def clock() -> Clock:
    return Clock()


def open_ledger(place: Place, clock: Clock, *agents: int, **more: object) -> Ledger:
    """A ledger that has what it can have of these agents."""
    book = Ledger(place, BOUNDS, lookback=DAY, clock=clock, **more)  # type: ignore[arg-type]
    if book.leases:
        book.leases.want(frozenset(agents or (AGENT,)), Deadline(20.0))
    return book


def record(book: Ledger, *runs: object, agent_id: int = AGENT) -> None:
    memory = Memory(epoch=book.known(agent_id).epoch)
    book.record(agent_id, Reading(Watermark(), memory, runs=list(runs), now=book.clock()))  # type: ignore[arg-type]


def counted(book: Ledger, agent_id: int = AGENT) -> int:
    totals = book.agents()[agent_id].totals
    return sum(n for by_trigger in totals.finished.values() for n in by_trigger.values())


# --- what holds for both stores ---


def test_a_restart_goes_on_where_the_last_commit_was(place: Place, clock: Clock) -> None:
    with closing(open_ledger(place, clock)) as book:
        record(book, a_run("wf:1"), a_run("wf:2", "running", end=None, duration_ms=None))
    with closing(open_ledger(place, clock)) as again:
        record(again, a_run("wf:1"), a_run("wf:2"), a_run("wf:3"))
        assert counted(again) == 3
        assert again.agents()[AGENT].totals.created == START - DAY


def test_ids_with_whatever_characters_are_kept(place: Place, clock: Clock) -> None:
    ids = ["wf:\x00", "wf:é☃", "wf:'; DROP TABLE modus_agent", "x" * 2000, ""]
    with closing(open_ledger(place, clock)) as book:
        record(book, *map(a_run, ids))
    with closing(open_ledger(place, clock)) as again:
        record(again, *map(a_run, ids))
        assert counted(again) == len(ids)
    assert read_state(place).counted[AGENT].keys() == set(ids)


def test_ids_that_were_forgotten_are_gone_from_the_store(place: Place, clock: Clock) -> None:
    with closing(open_ledger(place, clock)) as book:
        record(book, a_run("old"))
        for _ in range(4):  # they are kept while a step back of the API's clock may be unknown
            clock.advance(DAY + 2 * KEEP)
            record(book)
        record(book, a_run("new", start=clock() - 100, end=clock() - 50))
        book.commit()
        assert read_state(place).counted[AGENT].keys() == {"new"}
        assert counted(book) == 2


def test_other_buckets_are_refused_unless_the_histogram_is_reset(place: Place, clock: Clock) -> None:
    with closing(open_ledger(place, clock)) as book:
        record(book, a_run())
    with pytest.raises(LedgerError, match="reset-histogram"):
        Ledger(place, (1.0, 2.0), lookback=DAY, clock=clock)
    anew = Ledger(place, (1.0, 2.0), lookback=DAY, clock=clock, reset_histogram=True)
    with closing(anew):
        if anew.leases:
            anew.leases.want(frozenset({AGENT}), Deadline(20.0))
        totals = anew.agents()[AGENT].totals
        assert totals.durations.buckets == [0, 0, 0]
        assert counted(anew) == 1
        record(anew, a_run("wf:2"))
    Ledger(place, (1.0, 2.0), lookback=DAY, clock=clock).close()


def test_what_is_read_beside_the_exporter_is_what_it_has(place: Place, clock: Clock) -> None:
    with closing(open_ledger(place, clock)) as book:
        record(book, a_run())
        book.commit()
        found = read_state(place)
        assert found.counted == {AGENT: {"wf:1": START - 70}}
        assert found.agents[AGENT].totals == book.agents()[AGENT].totals


def test_what_is_read_beside_the_exporter_is_of_one_moment(server: Postgres, clock: Clock) -> None:
    decoded = tables._decoded
    with closing(open_ledger(server.database, clock)) as book:
        record(book, a_run("wf:1"))
        book.commit()

        def meanwhile(*row: object) -> object:
            record(book, a_run("wf:2"))
            book.commit()
            return decoded(*row)  # type: ignore[arg-type]

        with patch.object(tables, "_decoded", meanwhile):
            assert read_state(server.database).counted[AGENT].keys() == {"wf:1"}
        assert read_state(server.database).counted[AGENT].keys() == {"wf:1", "wf:2"}


@pytest.mark.parametrize("ahead", [3600.0, -3600.0], ids=["ahead", "behind"])
@pytest.mark.parametrize("alive", [True, False])
def test_the_audit_knows_until_when_a_member_read_whatever_its_clock_says(
    make_fleet: Callable[[int], "Fleet"], ahead: float, alive: bool
) -> None:
    """What ended since is not missing, and what ended before is."""
    team = make_fleet(1)
    member = team.join(clock=lambda: team.modus.clock() + ahead)
    team.scrape()
    if alive:
        seen = (
            "SELECT FROM modus_member WHERE to_timestamp(read_until) > (SELECT max(since) FROM modus_lease)"
        )
        wait_for("it is known", lambda: team.scrape() and team.server.ask(seen))
    else:
        abandon(member.ledger)
        team.server.do("DELETE FROM modus_member")

    def audited() -> str:
        out, chosen = io.StringIO(), settings(1)
        api = DirectApi(team.modus)
        audit.run(api, chosen.selection, chosen.limits, 1, team.server.database, out)  # type: ignore[arg-type]
        return out.getvalue().splitlines()[1].split()[4]

    team.end_run(1, ago=6.0)
    assert audited() == "0"
    team.end_run(1, ago=audit.FRESH + 30.0)
    assert audited() == "1"


# --- leases ---


class Fleet:
    """Exporters on one database and one simulated API."""

    def __init__(self, server: Postgres, agents: int) -> None:
        self.server = server
        self.agents = range(1, agents + 1)
        self.modus = SimulatedModus(fleet={})
        self.members: list[Exporter] = []
        self.totals: dict[int, dict[str, int]] = {}
        for agent_id in self.agents:
            self.modus.add_agent(agent_id, f"Agent {agent_id}")
            self.end_run(agent_id)

    def end_run(self, agent_id: int, ago: float = 60.0) -> None:
        self.modus.start_run(agent_id, at=self.modus.clock() - ago, lasts=5.0)

    def join(self, database: Database | None = None, clock: Callable[[], float] | None = None) -> Exporter:
        place = database or self.server.database
        member = Exporter(self.modus, place, settings(*self.agents), clock=clock)  # type: ignore[arg-type]
        self.members.append(member)
        return member

    def scrape(self) -> list[dict[int, AgentSnapshot]]:
        """What all show, one after the other: no agent by two at one moment, and nothing steps back.

        An agent may move between two looks: then who showed it first no longer holds that lease.
        """
        shown: list[dict[int, AgentSnapshot]] = []
        seen: dict[int, tuple[Leases, int | None]] = {}
        for member in self.members:
            shown.append(member.scrape())
            held = member.ledger.leases
            for agent_id in shown[-1]:
                earlier, epoch = seen.get(agent_id, (held, None))
                still = earlier is not held and earlier.holds(agent_id)
                assert not still or earlier.epoch(agent_id) != epoch, "two show the same agent"
                seen[agent_id] = held, held.epoch(agent_id)
        for agents in shown:
            for agent_id, agent in agents.items():
                if agent.totals:
                    totals = finished(agent)
                    before = self.totals.get(agent_id, {})
                    assert all(totals[status] >= n for status, n in before.items()), "a total stepped back"
                    self.totals[agent_id] = totals
        return shown

    def settle(self) -> list[int]:
        """Scrape until all agents are shown, in even shares; returns how many each has."""

        def even() -> list[int] | None:
            numbers = [len(agents) for agents in self.scrape()]
            done = sum(numbers) == len(self.agents) and max(numbers) - min(numbers) <= 1
            return numbers if done else None

        return wait_for("the shares are even", even)

    def counts(self, number: int) -> None:
        """Of each agent so many runs are shown soon, and never more."""
        wait_for(
            "all is counted",
            lambda: self.scrape() and {sum(totals.values()) for totals in self.totals.values()} == {number},
        )

    def close(self) -> None:
        for member in self.members:
            member.close()


@pytest.fixture
def make_fleet(server: Postgres) -> Iterator[Callable[[int], Fleet]]:
    made: list[Fleet] = []

    def make(agents: int) -> Fleet:
        made.append(Fleet(server, agents))
        return made[-1]

    yield make
    for each in made:
        each.close()


def abandon(ledger: Ledger) -> fleet.Fleet:
    """As after SIGKILL: it neither renews nor gives back."""
    leases = ledger.leases
    assert isinstance(leases, fleet.Fleet)
    leases._end = lambda: None  # type: ignore[method-assign]
    leases._closing = True
    leases._wake.set()
    leases._thread.join()
    return leases


def end_term(boot: BootClock, team: Fleet, dead: fleet.Fleet) -> None:
    """Put the clock forward until the one other member has seen nothing of the dead one for a term."""

    def over() -> bool:
        boot.ahead += TERM
        return not team.server.ask("SELECT FROM modus_member WHERE id = %s", dead.member)

    wait_for("the membership is over", over)


def test_the_first_scrape_shows_all_that_is_free(make_fleet: Callable[[int], Fleet]) -> None:
    fleet = make_fleet(5)
    fleet.join()
    assert len(fleet.scrape()[0]) == 5


def test_members_that_come_and_go_share_evenly_and_no_total_steps_back(
    make_fleet: Callable[[int], Fleet],
) -> None:
    fleet = make_fleet(20)
    for number in (1, 2, 3):
        fleet.join()
        assert len(fleet.settle()) == number
        for agent_id in fleet.agents:
            fleet.end_run(agent_id, ago=50.0 - number)
    fleet.members.pop(0).close()
    fleet.settle()
    fleet.counts(4)


def test_a_member_that_stops_gives_its_agents_back_at_once(make_fleet: Callable[[int], Fleet]) -> None:
    team = make_fleet(6)
    team.join()
    team.join()
    team.settle()
    team.members.pop().close()
    assert team.settle() == [6]


@pytest.mark.usefixtures("all_terms_over")
def test_a_member_that_dies_loses_its_agents_when_its_term_is_over(
    make_fleet: Callable[[int], Fleet], boot: BootClock
) -> None:
    team = make_fleet(6)
    team.join()
    team.join()
    team.settle()
    dead = team.members.pop()
    leases = abandon(dead.ledger)
    epochs = team.server.ask("SELECT agent_id, epoch FROM modus_lease WHERE owner = %s", leases.member)
    for agent_id in team.agents:
        team.end_run(agent_id)
    assert len(team.scrape()[0]) == 3, "the term is not over"
    end_term(boot, team, leases)
    assert team.settle() == [6]
    team.counts(2)
    assert dead.scrape() == {}, "it shows what another one has"
    dead.close()
    now = dict(team.server.ask("SELECT agent_id, epoch FROM modus_lease"))  # type: ignore[arg-type]
    assert {agent_id: now[agent_id] - epoch for agent_id, epoch in epochs} == dict.fromkeys(dict(epochs), 1)  # type: ignore[operator,call-overload]


@pytest.mark.usefixtures("all_terms_over")
def test_a_member_that_dies_loses_its_agents_also_after_the_clock_of_the_database_was_set_back(
    make_fleet: Callable[[int], Fleet], boot: BootClock
) -> None:
    team = make_fleet(4)
    team.join()
    team.join()
    team.settle()
    dead = team.members.pop()
    leases = abandon(dead.ledger)
    team.server.do(
        "UPDATE modus_member SET expires = clock_timestamp() + interval '1 day' WHERE id = %s", leases.member
    )
    end_term(boot, team, leases)
    assert team.settle() == [4]
    dead.close()


def test_no_agent_is_given_to_two_who_take_at_once(server: Postgres) -> None:
    """The one that came first is slow, and has not seen the other become a member."""
    Ledger(server.database, BOUNDS, lookback=DAY).close()
    server.do(
        "CREATE FUNCTION wait() RETURNS trigger LANGUAGE plpgsql AS $$ "
        "BEGIN IF NEW.owner = 1 THEN PERFORM pg_advisory_xact_lock(7); END IF; RETURN NEW; END $$"
    )
    server.do("CREATE TRIGGER slow BEFORE UPDATE ON modus_lease FOR EACH ROW EXECUTE FUNCTION wait()")
    server.do("INSERT INTO modus_lease (agent_id) SELECT generate_series(1, 20)")
    server.do("INSERT INTO modus_member VALUES (1, 'slow', now() + interval '1 hour', 0, 0)")

    def take(member: int) -> set[int]:
        with server.connect() as db, db.transaction(), db.cursor() as cursor:
            cursor.execute("SET LOCAL enable_hashjoin = off")  # row by row, as with many rows
            cursor.execute("SET LOCAL enable_mergejoin = off")
            return set(leasetable.take(cursor, member, range(1, 21), 15))  # type: ignore[arg-type]

    with ThreadPoolExecutor(1) as pool, server.connect() as held:
        held.execute("SELECT pg_advisory_lock(7)")
        slow = pool.submit(take, 1)
        waits = "SELECT FROM pg_locks WHERE locktype = 'advisory' AND NOT granted AND objid = 7"
        wait_for("the first one waits", lambda: server.ask(waits))
        server.do("INSERT INTO modus_member VALUES (2, 'fast', now() + interval '1 hour', 0, 0)")
        fast = take(2)
        held.execute("SELECT pg_advisory_unlock(7)")
        assert fast
        assert not fast & slow.result()


@pytest.mark.usefixtures("all_terms_over")
def test_who_lost_its_leases_without_noticing_can_write_nothing(
    make_fleet: Callable[[int], Fleet], boot: BootClock
) -> None:
    """As after a stop for longer than a term: whatever its clock says, the database refuses."""
    team = make_fleet(2)
    late = team.join()
    team.scrape()
    leases = abandon(late.ledger)
    leases._until = float("inf")
    team.members.clear()
    new = team.join()
    team.scrape()
    end_term(boot, team, leases)
    team.settle()  # the new owner has them, and has not yet written anything
    before = team.server.ask("SELECT * FROM modus_agent ORDER BY agent_id")
    team.end_run(1)
    team.end_run(2)
    late.scrape()
    assert not late.ledger.up
    assert team.server.ask("SELECT * FROM modus_agent ORDER BY agent_id") == before
    leases._until = 0.0
    late.close()
    assert new.ledger.up


def test_agents_are_given_back_a_tick_after_they_were_shown_last(
    make_fleet: Callable[[int], Fleet], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An answer that shows them may still be on its way."""
    team, shown = make_fleet(6), dict[int, set[int]]()
    renew, free = leasetable.renew, leasetable.free
    freed, early = set[int](), set[int]()

    def renewed(cursor: Cursor, member: int, *more: float) -> bool:
        for each in (other.ledger.leases for other in team.members):
            if isinstance(each, fleet.Fleet) and each.member == member:
                shown[member] = set(filter(each.holds, team.agents))
        return renew(cursor, member, *more)  # type: ignore[arg-type]

    def given_back(cursor: Cursor, member: int, agent_ids: Collection[int]) -> set[int]:
        early.update(shown[member].intersection(agent_ids))
        freed.update(agent_ids)
        return free(cursor, member, agent_ids)

    with monkeypatch.context() as watched:
        watched.setattr(leasetable, "renew", renewed)
        watched.setattr(leasetable, "free", given_back)
        team.join()
        team.scrape()
        team.join()
        team.settle()
    assert len(freed) == 3
    assert not early, "they are given back in the tick in which they were shown"


def test_agents_on_their_way_to_others_are_not_taken_back(
    make_fleet: Callable[[int], Fleet], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also when the leases are compared with the database's meanwhile."""
    monkeypatch.setattr(leasetable, "ours", lambda cursor, member: (-1, 0, None))
    team = make_fleet(6)
    first = team.join()
    team.scrape()
    team.join()
    team.settle()
    taken, given_back = 6 + 1, 3  # with the usage
    assert first.ledger.leases.changes == taken + given_back


def test_whose_clock_jumps_ends_no_membership(
    make_fleet: Callable[[int], Fleet], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The database's clock must say so too."""
    team = make_fleet(4)
    team.join()
    team.join()
    team.settle()
    before = team.server.ask("SELECT id FROM modus_member ORDER BY id")
    looks: list[int] = []
    monkeypatch.setattr(leases.Watch, "dead", lambda _, renewals, now: looks.append(0) or set(renewals))
    wait_for("both have looked", lambda: len(looks) > 6)
    assert team.server.ask("SELECT id FROM modus_member ORDER BY id") == before


def test_nobody_gives_back_or_marks_what_another_has(server: Postgres, clock: Clock) -> None:
    """As who stood still, and then stops."""
    with closing(open_ledger(server.database, clock)):
        before = server.ask("SELECT * FROM modus_lease")
        with server.connect() as db, db.cursor() as cursor:
            leasetable.free(cursor, 12345, [AGENT])  # type: ignore[arg-type]
            leasetable.note_said(cursor, 12345, {AGENT: 1})  # type: ignore[arg-type]
        assert server.ask("SELECT * FROM modus_lease") == before


def errors(caplog: pytest.LogCaptureFixture) -> str:
    """The errors that the log's lines name."""
    return "\n".join(getattr(line, "fields", {}).get("error", "") for line in caplog.records)


def test_who_counts_in_other_buckets_than_the_fleet_falls_silent_and_says_why(
    make_fleet: Callable[[int], Fleet], caplog: pytest.LogCaptureFixture
) -> None:
    team = make_fleet(2)
    old = team.join()
    team.scrape()
    Ledger(team.server.database, (1.0, 2.0), lookback=DAY, reset_histogram=True).close()
    wait_for("it is silent", lambda: not old.scrape())
    wait_for("it says why", lambda: "the fleet counts in other histogram.buckets" in errors(caplog))


def test_a_lease_counts_from_before_the_request_that_renewed_it(
    make_fleet: Callable[[int], Fleet], boot: BootClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The database may have renewed it at the beginning, and answer at last."""
    team = make_fleet(2)
    member = team.join()
    team.scrape()
    renew, renewed = leasetable.renew, []

    def slow(*given: object) -> bool:
        boot.ahead += TERM - leases.MARGIN
        renewed.append(boot())
        return renew(*given)  # type: ignore[arg-type]

    monkeypatch.setattr(leasetable, "renew", slow)
    wait_for("it was renewed", lambda: len(renewed) > 1)
    assert not any(member.scrape() for _ in range(5))


def test_a_new_membership_begins_without_the_agents_of_the_one_before(
    server: Postgres, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    with closing(open_ledger(server.database, clock)) as book:
        join, shown = leasetable.join, []

        def joined(cursor: Cursor, member: int, name: str, term: float) -> None:
            join(cursor, member, name, term)
            shown.append(book.leases.epoch(AGENT))

        monkeypatch.setattr(leasetable, "join", joined)
        server.do("DELETE FROM modus_member")
        wait_for("it is a member again", lambda: shown)
        assert shown == [None]


def test_a_membership_that_ends_while_agents_are_loaded_brings_none(
    server: Postgres, clock: Clock, boot: BootClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Others may have them by then."""
    read_rows, ended, owners = tables.read_rows, [], []

    def interrupted(*given: object) -> object:
        rows = read_rows(*given)  # type: ignore[arg-type]
        if not ended:
            ended.append(server.do("DELETE FROM modus_member"))
            boot.ahead += 1.0
        return rows

    monkeypatch.setattr(tables, "read_rows", interrupted)
    book = Ledger(server.database, BOUNDS, lookback=DAY, clock=clock)
    with closing(book):
        take = book.take

        def taken(agents: Iterable[Taken]) -> None:
            owners.append((server.ask("SELECT owner FROM modus_lease")[0][0], book.leases.member))  # type: ignore[attr-defined]
            take(agents)

        with patch.object(book, "take", taken):
            wait_for("it is ours", lambda: _wanted(book) and book.leases.holds(AGENT))
        assert all(owner == member for owner, member in owners)


def _wanted(book: Ledger) -> bool:
    book.leases.want(frozenset({AGENT}), Deadline(0.1))
    return True


def test_an_agent_that_was_taken_and_not_loaded_is_loaded_later(
    server: Postgres, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when the connection is cut right after it was leased: nobody else may take it."""
    load, cut = fleet.Fleet._load, []

    def interrupted(self: fleet.Fleet, epochs: dict[int, int]) -> None:
        if not cut:
            cut.append(epochs)
            raise StoreError("the connection was cut")
        load(self, epochs)

    monkeypatch.setattr(fleet.Fleet, "_load", interrupted)
    with closing(open_ledger(server.database, clock)) as book:
        wait_for("it is ours", lambda: book.leases.holds(AGENT))
        assert cut == [{AGENT: book.leases.epoch(AGENT)}], "it was taken anew"


def test_a_mistake_of_ours_ends_no_membership(
    server: Postgres, clock: Clock, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with closing(open_ledger(server.database, clock)) as book:
        member = server.ask("SELECT id FROM modus_member")
        with monkeypatch.context() as mistaken:
            mistaken.setattr(leasetable, "members", lambda cursor: [][0])
            wait_for("it is said", lambda: "cannot be renewed" in caplog.text)
        before = server.ask("SELECT expires FROM modus_member")
        wait_for("it is renewed", lambda: server.ask("SELECT expires FROM modus_member") != before)
        assert server.ask("SELECT id FROM modus_member") == member
        assert book.leases.holds(AGENT)


def test_a_member_renews_while_it_loads_many_agents(
    server: Postgres, clock: Clock, boot: BootClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    agents = range(1, 6)
    with closing(open_ledger(server.database, clock, *agents)) as book:
        for agent_id in agents:
            record(book, a_run(f"wf:{agent_id}"), agent_id=agent_id)
    said: list[str] = []
    renew, read = leasetable.renew, tables.read_counted

    def renewed(*given: object) -> bool:
        said.append("renewed")
        return renew(*given)  # type: ignore[arg-type]

    def slow(*given: object) -> None:
        said.append("loaded")
        boot.ahead += 1.0
        read(*given)  # type: ignore[arg-type]

    monkeypatch.setattr(tables, "IDS_AT_ONCE", 1)
    monkeypatch.setattr(leasetable, "renew", renewed)
    monkeypatch.setattr(tables, "read_counted", slow)
    with closing(open_ledger(server.database, clock, *agents)) as book:
        assert all(map(book.leases.holds, agents))
    assert said.count("loaded") == 5
    assert "loaded loaded" not in " ".join(said)


def an_app(server: Postgres) -> tuple[SimulatedModus, App]:
    modus = SimulatedModus(fleet={}).start()
    modus.add_agent(AGENT, "Any agent")
    config = Config(
        modus=Modus(base_url=modus.url, token=Secret(modus.token)),
        agents=(AgentConfig(AGENT),),
        state=State(url=DatabaseUrl(server.url)),
    )
    return modus, App(lambda: config, shard=(0, 1), reset_histogram=False)


def test_leases_are_given_back_at_the_end_also_while_a_commit_waits(
    server: Postgres, caplog: pytest.LogCaptureFixture
) -> None:
    modus, app = an_app(server)
    with closing(modus):
        list(waited(app.metrics(10.0, "text"))[1])
        modus.start_run(AGENT, at=modus.clock() - 60.0, lasts=5.0)
        with server.connect() as slow, slow.transaction():
            slow.execute("LOCK TABLE modus_agent IN EXCLUSIVE MODE")
            list(waited(app.metrics(2.0, "text"))[1])
            assert server.ask("SELECT FROM modus_member")
            app.close()
            assert not server.ask("SELECT FROM modus_member")
        app._ledger.close()  # as the end of the process
    assert "the state cannot be written in time" in caplog.text
    assert "given back" not in caplog.text


def test_leases_that_cannot_be_given_back_at_the_end_are_one_line(
    server: Postgres, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fleet, "END", 1.0)
    modus, app = an_app(server)
    with closing(modus):
        list(waited(app.metrics(10.0, "text"))[1])
        server.pause()
        try:
            app.close()
        finally:
            server.go_on()
        app._ledger.leases._thread.join()  # type: ignore[attr-defined]
        app._ledger.close()
    said = [line for line in caplog.messages if "given back" in line]
    assert said == ["the leases cannot be given back in time: they run out"]


def test_an_answer_whose_leases_ended_while_it_was_written_is_refused(server: Postgres) -> None:
    """As after a stop in the middle of it: another one may show these agents by now."""
    modus, app = an_app(server)
    with closing(modus), closing(app):
        _, pieces = waited(app.metrics(10.0, "text"))
        assert b'modus_agent_up{agent_id="7"} 1' in b"".join(pieces)
        _, pieces = waited(app.metrics(10.0, "text"))
        next(pieces)
        leases = abandon(app._ledger)
        leases._until = 0.0
        with pytest.raises(HTTPError) as caught:
            list(pieces)
        assert caught.value.response.status == 503


def test_a_reading_that_outlives_its_lease_is_thrown_away(server: Postgres, clock: Clock) -> None:
    with closing(open_ledger(server.database, clock)) as book:
        record(book)
        old = Memory(epoch=book.known(AGENT).epoch)
        server.do("UPDATE modus_lease SET owner = NULL, epoch = epoch + 1")
        wait_for("it is ours anew", lambda: book.known(AGENT).epoch not in (None, old.epoch))
        book.record(AGENT, Reading(Watermark(), old, runs=[a_run()], now=clock()))
        assert AGENT not in book.agents() or not counted(book)


def test_a_reading_without_a_lease_is_thrown_away(server: Postgres, clock: Clock) -> None:
    """As of an agent that was given back between its turn and its reading: nothing of it would be written."""
    with closing(open_ledger(server.database, clock)) as book:
        record(book, a_run("wf:1"), agent_id=8)
        assert 8 not in book.agents()
        book.commit()
        book.leases.want(frozenset({AGENT, 8}), Deadline(20.0))
        wait_for("it is ours", lambda: book.leases.holds(8))
        record(book, a_run("wf:1"), a_run("wf:2"), agent_id=8)
    assert read_state(server.database).counted[8].keys() == {"wf:1", "wf:2"}


def test_a_usage_report_that_outlives_its_lease_holds_up_no_commit(
    server: Postgres, clock: Clock, boot: BootClock
) -> None:
    with closing(open_ledger(server.database, clock, AGENT, USAGE_ID)) as book:
        wait_for("it is ours", lambda: book.leases.holds(USAGE_ID))
        boot.ahead += fleet.IDLE
        wait_for("it has left the fleet", lambda: not server.ask("SELECT FROM modus_member"))
        with book.usage() as account:
            account.close_hours("agent", int(START), lambda name: True)
        book.commit()
        assert book.up
        assert not server.ask("SELECT FROM modus_agent")


def test_a_usage_report_is_counted_for_the_lease_that_it_was_begun_under(
    server: Postgres, boot: BootClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another member has the usage while the report is read: half of a report is not a whole one."""
    monkeypatch.setattr(usagereader, "LONGEST", 12)
    modus = SimulatedModus(fleet={})
    modus.add_agent(AGENT, "Any agent")
    for hours in (2, 60):
        modus.uses.append(SimulatedUse(AGENT, "large", modus.clock() - hours * 3600))
    member = Exporter(modus, server.database, settings(AGENT, lookback=3 * DAY))  # type: ignore[arg-type]
    with closing(member):
        book, reader, asked = member.ledger, member.collector._usage, modus.requests
        book.leases.want(frozenset({USAGE_ID}), Deadline(20.0))
        wait_for("it is ours", lambda: book.leases.holds(USAGE_ID))

        def interrupt() -> None:
            if len(asked) == 3:
                member.api.before = lambda: None
                boot.ahead += fleet.IDLE
                wait_for("it has left the fleet", lambda: not server.ask("SELECT FROM modus_member"))
                book.leases.want(frozenset({USAGE_ID}), Deadline(20.0))
                wait_for("it is ours again", lambda: book.leases.holds(USAGE_ID))

        member.api.before = interrupt
        for _ in range(2):
            reader.read(modus.clock(), [Agent(AGENT, "Any agent")], Deadline())
        book.commit()
        assert book.up
        with book.usage() as account:
            assert account.shown is not None
            assert account.shown.totals["agent"][str(AGENT)].calls == 2


def test_nothing_but_what_is_durable_is_shown(make_fleet: Callable[[int], Fleet]) -> None:
    """Another exporter may have to go on from there."""
    team = make_fleet(1)
    member = team.join()
    team.scrape()
    with team.server.connect() as other:
        other.execute("BEGIN")
        other.execute("LOCK TABLE modus_agent IN EXCLUSIVE MODE")
        team.end_run(1)
        member.api.before = lambda: None
        snapshot = member.collector.scrape(2.0)
        assert sum(finished(snapshot.agents[0]).values()) == 1
        other.execute("ROLLBACK")
    wait_for("it is durable", lambda: sum(finished(member.scrape()[1]).values()) == 2)


def test_who_is_not_scraped_for_long_leaves_the_fleet_and_comes_back_with_a_scrape(
    make_fleet: Callable[[int], Fleet], boot: BootClock
) -> None:
    team = make_fleet(4)
    idle = team.join()
    team.scrape()
    team.members.remove(idle)
    boot.ahead += fleet.IDLE
    team.join()
    assert team.settle() == [4]
    assert not idle.ledger.agents(), "it keeps what another one has"
    team.members.append(idle)
    assert team.settle() == [2, 2]


def test_agents_that_nobody_wants_any_more_are_forgotten(
    server: Postgres, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    with closing(open_ledger(server.database, clock, AGENT, 8)) as book:
        record(book, a_run())
        record(book, a_run(), agent_id=8)
    server.do("UPDATE modus_lease SET since = since - interval '2 days'")
    monkeypatch.setattr(fleet, "SWEEP", 0.0)
    with closing(open_ledger(server.database, clock, AGENT)) as book:
        wait_for("it is forgotten", lambda: read_state(server.database).agents.keys() == {AGENT})
        assert read_state(server.database).counted.keys() == {AGENT}
        assert counted(book) == 1


def test_an_agent_that_was_leased_in_the_middle_of_a_scrape_is_not_forgotten_with_it(
    server: Postgres, clock: Clock
) -> None:
    """Nor is one that nobody has read for longer than the lookback."""
    with closing(open_ledger(server.database, clock)) as book:
        record(book, a_run())
    clock.advance(2 * DAY)
    with closing(open_ledger(server.database, clock)) as book:
        book.end_scrape(())
        book.commit()
        assert book.up
        assert counted(book) == 1
    assert ids_of(read_state(server.database)) == {AGENT: {"wf:1"}}


def test_only_what_nobody_wants_or_has_for_long_is_forgotten(server: Postgres, clock: Clock) -> None:
    Ledger(server.database, BOUNDS, lookback=DAY, clock=clock).close()
    server.do("INSERT INTO modus_member VALUES (1, 'any', now() + interval '1 hour', 0, 0)")
    wanted, leased, young = range(1, 4)
    server.do("INSERT INTO modus_lease (agent_id, since) SELECT n, '-infinity' FROM generate_series(1, 4) n")
    server.do("UPDATE modus_lease SET owner = 1 WHERE agent_id = %s", leased)
    server.do("UPDATE modus_lease SET since = now() WHERE agent_id = %s", young)
    with server.connect() as db, db.cursor() as cursor:
        leasetable.sweep(cursor, {wanted}, 3600.0)  # type: ignore[arg-type]
    assert {id_ for (id_,) in server.ask("SELECT agent_id FROM modus_lease")} == {wanted, leased, young}


def test_what_a_dead_member_had_is_kept_for_a_while_however_long_it_had_it(
    server: Postgres, clock: Clock
) -> None:
    with closing(open_ledger(server.database, clock)) as book:
        record(book, a_run())
        book.commit()
        abandon(book)
    server.do("UPDATE modus_lease SET since = '-infinity'")
    server.do("DELETE FROM modus_member")

    def sweep() -> list[tuple[object, ...]]:
        with server.connect() as db, db.cursor() as cursor:
            leasetable.sweep(cursor, {8}, 3600.0)  # type: ignore[arg-type]
        return server.ask("SELECT agent_id FROM modus_lease")

    assert sweep() == [(AGENT,)]
    server.do("UPDATE modus_lease SET since = since - interval '59 minutes'")
    assert sweep() == [(AGENT,)]
    assert ids_of(read_state(server.database)) == {AGENT: {"wf:1"}}
    server.do("UPDATE modus_lease SET since = since - interval '1 minute'")
    assert sweep() == []
    assert ids_of(read_state(server.database)) == {}


@pytest.mark.parametrize("dies", [True, False], ids=["dies", "stops"])
def test_a_line_for_the_log_is_not_said_again_by_the_next_member(
    server: Postgres, clock: Clock, caplog: pytest.LogCaptureFixture, dies: bool
) -> None:
    caplog.set_level(logging.INFO)
    with closing(open_ledger(server.database, clock)) as book:
        book.run_log = RunLog("all")
        record(book)
        record(book, a_run())
        book.commit()
        if dies:
            wait_for("it is marked", lambda: server.ask("SELECT FROM modus_lease WHERE said > 0"))
            abandon(book)
            server.do("DELETE FROM modus_member")
    with closing(open_ledger(server.database, clock)) as book:
        book.commit()
    assert caplog.messages.count("run ended") == 1


def test_a_line_that_was_committed_and_not_said_is_said_once_by_the_next_member(
    server: Postgres, clock: Clock, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO)
    with monkeypatch.context() as killed, closing(open_ledger(server.database, clock)) as book:
        killed.setattr("exporter.runs.runlog.Outbox.say", lambda self, store: None)
        book.run_log = RunLog("all")
        record(book)
        record(book, a_run("wf:1"))
        book.commit()
        abandon(book)
    server.do("DELETE FROM modus_member")
    with closing(open_ledger(server.database, clock)) as book:
        book.run_log = RunLog("all")
        record(book, a_run("wf:2"))  # before its first commit
        book.commit()
        book.commit()
    said = [each.__dict__["fields"]["run_id"] for each in caplog.records if each.message == "run ended"]
    assert said == ["wf:1", "wf:2"]


# --- the database fails ---


def test_while_the_database_is_away_all_is_shown_until_the_lease_ends_and_then_nothing(
    make_fleet: Callable[[int], Fleet], boot: BootClock
) -> None:
    team = make_fleet(3)
    member = team.join()
    team.scrape()
    team.server.stop()
    try:
        snapshot = member.collector.scrape(None)
        assert len(snapshot.agents) == 3
        for agent_id in team.agents:
            team.end_run(agent_id)
        wait_for("it says so", lambda: not member.collector.scrape(None).ledger_up)
        agents = member.collector.scrape(None).agents
        assert {sum(finished(agent).values()) for agent in agents} <= {1}, "it shows what is not durable"
        assert len(agents) == 3
        boot.ahead += TERM - leases.MARGIN
        assert not member.scrape()
        assert not member.collector.scrape(None).ledger_up
    finally:
        team.server.start()
    team.settle()
    wait_for(
        "all is counted", lambda: team.scrape() and {sum(t.values()) for t in team.totals.values()} == {2}
    )
    assert member.collector.scrape(None).ledger_up


def test_a_database_that_hangs_costs_no_more_than_one_that_is_away(
    make_fleet: Callable[[int], Fleet], boot: BootClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fleet, "REQUEST", 1.0)
    team = make_fleet(3)
    member = team.join()
    team.scrape()
    team.server.pause()
    try:
        boot.ahead += TERM
        assert not member.scrape()
        wait_for("it says so", lambda: not member.collector.scrape(None).ledger_up)
    finally:
        team.server.go_on()
    team.settle()


def test_a_slow_database_costs_time_and_nothing_else(make_fleet: Callable[[int], Fleet]) -> None:
    team = make_fleet(4)
    team.join()
    team.scrape()
    team.server.do(
        "CREATE FUNCTION wait() RETURNS trigger LANGUAGE plpgsql AS $$ "
        "BEGIN PERFORM pg_sleep(0.3); RETURN NEW; END $$"
    )
    for table in ("member", "lease", "agent", "counted"):
        team.server.do(
            f"CREATE TRIGGER slow BEFORE INSERT OR UPDATE ON modus_{table} EXECUTE FUNCTION wait()"
        )
    team.join()
    assert team.settle() == [2, 2]
    for agent_id in team.agents:
        team.end_run(agent_id)
    team.counts(2)
    assert all(member.collector.scrape(None).ledger_up for member in team.members)


@pytest.mark.root
def test_a_database_without_room_costs_nothing_and_goes_on_when_it_has_some(
    boot: BootClock, caplog: pytest.LogCaptureFixture
) -> None:
    """Leases are renewed in place, which needs no room; what was counted is written once there is some."""
    caplog.set_level(logging.INFO)
    with running() as server, small_disk(server.directory / "small", NOBODY) as disk:
        with server.connect("postgres") as db:
            db.execute(f"CREATE TABLESPACE small LOCATION '{disk}'")
            db.execute("GRANT CREATE ON TABLESPACE small TO modus")
            db.execute("ALTER ROLE modus SET default_tablespace = small")
        team = Fleet(server, 3)
        member = team.join()
        team.counts(1)
        with no_room(disk):
            for agent_id in team.agents:
                for _ in range(300):
                    team.end_run(agent_id)
            wait_for("it says so", lambda: not member.collector.scrape(None).ledger_up)
            boot.ahead += TERM
            wait_for("the leases are renewed", lambda: len(member.scrape()) == 3)
            assert not member.collector.scrape(None).ledger_up
            team.counts(1)
            assert {counted(member.ledger, agent_id) for agent_id in team.agents} == {301}
        team.counts(301)
        assert member.collector.scrape(None).ledger_up
        team.close()
        assert {len(ids) for ids in read_state(server.database).counted.values()} == {301}
    said = [line for line in caplog.messages if line.startswith("the state can")]
    assert said == [
        "the state cannot be written: counting goes on in memory",
        "the state can be written again",
    ]
    assert not any(line.exc_info for line in caplog.records)


@pytest.mark.usefixtures("all_terms_over")
def test_an_outage_for_all_costs_nobody_its_agents(
    make_fleet: Callable[[int], Fleet], boot: BootClock
) -> None:
    """Who is back first does not take over from those who could not renew either."""
    team = make_fleet(9)
    for _ in range(3):
        team.join()
    team.settle()
    before = team.server.ask("SELECT agent_id, owner, epoch FROM modus_lease ORDER BY agent_id")
    team.server.stop()
    try:
        wait_for("all have noticed", lambda: all(member.ledger.leases.problem for member in team.members))
        boot.ahead += TERM  # an outage for longer than any lease
        assert not any(team.scrape())
    finally:
        team.server.start()
    team.settle()
    assert team.server.ask("SELECT agent_id, owner, epoch FROM modus_lease ORDER BY agent_id") == before


def test_exporters_that_start_at_once_on_an_empty_database_make_its_tables_once(server: Postgres) -> None:
    with ThreadPoolExecutor(6) as pool:
        books = list(pool.map(lambda _: Ledger(server.database, BOUNDS, lookback=DAY), range(6)))
    for book in books:
        book.close()
    assert server.ask("SELECT count(*) FROM modus_meta") == [(1,)]


@pytest.mark.parametrize(("given", "used"), [("off", "on"), ("remote_apply", "remote_apply")])
def test_what_is_committed_is_on_the_disk_whatever_the_database_is_set_to(
    server: Postgres, given: str, used: str
) -> None:
    server.url_options = f"%20-csynchronous_commit%3D{given}"
    connection = Connection(server.database, "test")
    with closing(connection), connection.transaction(5.0) as cursor:
        assert cursor.execute("SHOW synchronous_commit").fetchall() == [(used,)]


@pytest.mark.parametrize(
    "damage",
    [
        "DELETE FROM modus_lease WHERE agent_id = 7",
        "TRUNCATE modus_lease",
        "UPDATE modus_lease SET epoch = 0, owner = NULL WHERE agent_id = 7",
    ],
)
def test_an_agent_whose_lease_is_not_what_it_was_gets_a_new_one_and_is_written(
    server: Postgres, clock: Clock, damage: str
) -> None:
    """As in an older copy of the database. Its new lease is newer than all under which it was written."""
    for number in range(3):
        with closing(open_ledger(server.database, clock, AGENT, 8)) as book:
            record(book, a_run(f"wf:{number}"))
    with closing(open_ledger(server.database, clock, AGENT, 8)) as book:
        before = book.leases.changes
        server.do(damage)
        wait_for("it was lost", lambda: book.leases.changes > before)
        wait_for("it is ours anew", lambda: book.leases.holds(AGENT))
        record(book, a_run("wf:3"))
        book.commit()
        assert book.up
    assert read_state(server.database).counted[AGENT].keys() == {f"wf:{number}" for number in range(4)}


def test_members_share_the_agents_again_after_all_tables_were_made_anew(
    make_fleet: Callable[[int], Fleet],
) -> None:
    """As after a failover to an empty server, which somebody else has made ready."""
    team = make_fleet(4)
    team.join()
    team.join()
    team.settle()
    names = ("meta", "member", "lease", "agent", "counted", "aside")
    team.server.do(f"DROP TABLE {', '.join(f'modus_{name}' for name in names)}")
    wait_for("both notice", lambda: all(member.ledger.leases.problem for member in team.members))
    Ledger(team.server.database, BOUNDS, lookback=DAY).close()
    wait_for("both are back", lambda: not any(member.ledger.leases.problem for member in team.members))
    team.totals.clear()
    team.settle()
    assert team.server.ask("SELECT count(*) FROM modus_lease WHERE agent_id > 0") == [(4,)]


def test_a_swap_of_leases_that_changes_no_number_is_noticed_with_the_next_write(
    server: Postgres, clock: Clock
) -> None:
    """As an older copy of the database may have them."""
    with closing(open_ledger(server.database, clock, AGENT, 8)) as book:
        server.do("INSERT INTO modus_member VALUES (1, 'any', now() + interval '1 hour', 1, 0)")
        wait_for("one is given back", lambda: server.ask("SELECT FROM modus_lease WHERE owner IS NULL"))
        ((theirs,),) = server.ask("SELECT agent_id FROM modus_lease WHERE owner IS NULL")
        server.do("UPDATE modus_lease SET owner = 1 WHERE owner IS NULL")
        server.do("UPDATE modus_lease SET epoch = 5")
        ours = 7 + 8 - int(str(theirs))
        wait_for("it knows", lambda: book.leases.epoch(ours) == 5)
        member = book.leases.member  # type: ignore[attr-defined]
        swapped = "UPDATE modus_lease SET owner = CASE WHEN owner = 1 THEN %s ELSE 1 END"
        server.do(swapped, member)
        record(book, a_run(), agent_id=ours)
        book.commit()
        assert not book.up
        wait_for("it has the other one", lambda: book.leases.holds(int(str(theirs))))
        assert not book.leases.holds(ours)
        book.commit()
        assert book.up


def test_leases_are_renewed_while_a_commit_keeps_what_is_to_be_given_back_or_marked(
    server: Postgres, clock: Clock
) -> None:
    """Who waits for a slow commit of its own would lose all that it has."""
    with closing(open_ledger(server.database, clock, AGENT, 8)) as book:
        fleet = book.leases
        with server.connect() as slow, slow.transaction():
            slow.execute("SELECT FROM modus_lease FOR SHARE")
            fleet.said.update({8: 5})  # type: ignore[attr-defined]
            fleet.want(frozenset({8}), Deadline(20.0))
            wait_for("one is let go", lambda: not fleet.holds(AGENT))
            seen = set[object]()
            renewed = "SELECT expires FROM modus_member"
            wait_for("it renews", lambda: seen.update(server.ask(renewed)) or len(seen) > 3)
            assert not fleet.problems  # type: ignore[attr-defined]
            assert server.ask("SELECT owner IS NULL, said FROM modus_lease") == [(False, 0)] * 2
        wait_for("one is given back", lambda: server.ask("SELECT FROM modus_lease WHERE owner IS NULL"))
        wait_for("the other one is marked", lambda: server.ask("SELECT FROM modus_lease WHERE said = 5"))
        assert not fleet.said  # type: ignore[attr-defined]


def test_a_transaction_that_waits_for_too_long_is_ended_by_the_server_too(
    server: Postgres, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its locks would keep others from the leases."""
    monkeypatch.setattr(postgres, "WRITE", 1.0)
    with closing(open_ledger(server.database, clock)) as book:
        record(book, a_run())
        with server.connect() as other:
            other.execute("BEGIN")
            other.execute("LOCK TABLE modus_agent IN EXCLUSIVE MODE")
            book.commit()
            assert not book.up
            wait_for("no lock is left", lambda: _may_take(server))


def test_a_transaction_in_which_the_exporter_stands_still_is_ended_by_the_server(
    server: Postgres, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It cannot cut its own connection then. However long it may take: others wait for the leases."""
    monkeypatch.setattr(database, "STILL", 1)

    def stand_still() -> None:
        connection = Connection(server.database, "test")
        with closing(connection), connection.transaction(600.0) as cursor:
            cursor.execute("SELECT FROM modus_lease FOR SHARE")
            assert not _may_take(server)
            wait_for("no lock is left", lambda: _may_take(server))

    open_ledger(server.database, clock).close()
    with patch.object(database, "_cut_off", lambda *given: nullcontext()), pytest.raises(StoreError):
        stand_still()


def test_what_is_written_of_many_agents_is_made_piece_by_piece_in_one_transaction(
    server: Postgres, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the server waits for it for so long that it takes the exporter for one that stands still."""
    monkeypatch.setattr(postgres, "IDS_AT_ONCE", 2)
    agents, pieces = range(1, 8), []
    write = SharedStore._write_piece

    def written(self: SharedStore, cursor: Cursor, changes: Sequence[Change], *, anew: bool) -> None:
        pieces.append([change.agent_id for change in changes])
        assert not _found(server)
        write(self, cursor, changes, anew=anew)

    with closing(open_ledger(server.database, clock, *agents)) as book:
        for agent_id in agents:
            record(book, *map(a_run, map(str, range(agent_id % 3))), agent_id=agent_id)
        with monkeypatch.context() as watched:
            watched.setattr(SharedStore, "_write_piece", written)
            book.commit()
        assert pieces == [[1], [2], [3, 4], [5], [6, 7]]
    assert {id_: len(ids) for id_, ids in ids_of(read_state(server.database)).items()} == {
        agent_id: agent_id % 3 for agent_id in agents
    }


def _may_take(server: Postgres) -> bool:
    """Whether no transaction keeps others from the leases."""
    return bool(server.ask("SELECT FROM modus_lease FOR UPDATE SKIP LOCKED"))


def test_cut_connections_lose_and_repeat_nothing(
    make_fleet: Callable[[int], Fleet], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    team = make_fleet(4)
    team.join()
    for _ in range(10):
        team.end_run(1)
        team.server.cut_connections()
        team.scrape()
    wait_for("all is counted", lambda: team.scrape() and sum(team.totals.get(1, {}).values()) == 11)
    assert not [line for line in caplog.records if line.name.startswith("psycopg")], "it is told twice"


def test_connections_that_the_server_closes_while_nobody_asks_anything_cost_no_scrape(
    make_fleet: Callable[[int], Fleet], caplog: pytest.LogCaptureFixture
) -> None:
    """As with `idle_session_timeout`: what ended in a scrape is shown in the same one."""
    team = make_fleet(1)
    team.server.url_options = "%20-cidle_session_timeout%3D300ms"
    member = team.join()
    team.scrape()
    pids = "SELECT pid FROM pg_stat_activity WHERE application_name = 'modus-exporter ledger'"
    for number in range(2, 4):
        team.end_run(1)
        wait_for("it was closed", lambda: not team.server.ask(pids))
        member.api.before = lambda: None
        snapshot = member.collector.scrape(None)
        assert sum(finished(snapshot.agents[0]).values()) == number
        assert snapshot.ledger_up
    assert not caplog.records


@pytest.mark.parametrize("pooled", [False, True], ids=["", "behind a pooler that keeps our connections"])
def test_a_failover_that_lost_the_last_transactions_is_written_again(
    server: Postgres, clock: Clock, pooled: bool
) -> None:
    with closing(open_ledger(server.database, clock)) as book:
        record(book, a_run("wf:1"))
        book.commit()
        server.do("CREATE TABLE modus_then_agent AS TABLE modus_agent")
        server.do("CREATE TABLE modus_then_counted AS TABLE modus_counted")
        record(book, a_run("wf:2"))
        book.commit()
        server.do("DELETE FROM modus_agent")
        server.do("DELETE FROM modus_counted")
        server.do("INSERT INTO modus_agent TABLE modus_then_agent")
        server.do("INSERT INTO modus_counted TABLE modus_then_counted")
        server.do("INSERT INTO modus_counted VALUES (%s, 'forgotten since', 0)", AGENT)
        if not pooled:
            server.cut_connections()
        record(book, a_run("wf:3"))
        wait_for(
            "it is written again", lambda: book.commit() or _found(server) == {b"wf:1", b"wf:2", b"wf:3"}
        )
        assert book.up
    with closing(open_ledger(server.database, clock)) as again:
        record(again, a_run("wf:1"), a_run("wf:2"), a_run("wf:3"))
        assert counted(again) == 3


def test_an_agent_whose_row_is_gone_is_written_again(server: Postgres, clock: Clock) -> None:
    with closing(open_ledger(server.database, clock)) as book:
        record(book, a_run("wf:1"))
        book.commit()
        server.do("DELETE FROM modus_agent")
        server.do("DELETE FROM modus_counted")
        record(book, a_run("wf:2"))
        wait_for("it is written again", lambda: book.commit() or _found(server) == {b"wf:1", b"wf:2"})
        assert book.up
    assert ids_of(read_state(server.database)) == {AGENT: {"wf:1", "wf:2"}}


def _found(server: Postgres) -> set[object]:
    return {row[0] for row in server.ask("SELECT run_id FROM modus_counted")}


def lost_for_a_while(server: Postgres, book: Ledger, boot: BootClock, *runs: object) -> None:
    """Another member has the agent, counts these runs and gives it back; then it is the book's again."""
    boot.ahead += fleet.IDLE
    wait_for("it has left the fleet", lambda: not server.ask("SELECT FROM modus_member"))
    with closing(open_ledger(server.database, book.clock)) as other:  # type: ignore[arg-type]
        record(other, *runs)
    book.leases.want(frozenset({AGENT}), Deadline(20.0))
    wait_for("it is ours again", lambda: book.leases.holds(AGENT))


@contextmanager
def before_it_is_written(book: Ledger, happen: Callable[[], object]) -> Iterator[None]:
    """What happens between what a commit takes from the accounts, and its write."""
    store = book._store
    assert store is not None
    write = store.write

    def interrupted(meta: Meta, changes: Iterable[Change], *, anew: bool) -> None:
        made = list(changes)
        happen()
        write(meta, made, anew=anew)

    with patch.object(store, "write", interrupted):
        yield


def test_what_was_read_before_a_lease_was_lost_is_not_written_after_it_was_regained(
    server: Postgres, clock: Clock, boot: BootClock
) -> None:
    """All within one commit: the account is of the old lease, and the lease is ours."""
    with closing(open_ledger(server.database, clock)) as book:
        record(book, a_run("wf:1"))
        with before_it_is_written(
            book, lambda: lost_for_a_while(server, book, boot, a_run("wf:1"), a_run("wf:2"))
        ):
            book.commit()
        assert read_state(server.database).counted[AGENT].keys() == {"wf:1", "wf:2"}
        record(book, a_run("wf:1"), a_run("wf:2"), a_run("wf:3"))
        book.commit()
        assert book.up
    assert read_state(server.database).counted[AGENT].keys() == {"wf:1", "wf:2", "wf:3"}


@pytest.mark.parametrize(
    "change",
    ["UPDATE modus_lease SET epoch = epoch + 1", "UPDATE modus_lease SET owner = owner + 1"],
    ids=["it was lost and regained, and nobody wrote", "after a failover another has it with the same epoch"],
)
def test_nothing_is_written_under_another_lease_than_the_account_was_loaded_under(
    server: Postgres, clock: Clock, change: str
) -> None:
    with closing(open_ledger(server.database, clock)) as book:
        record(book, a_run("wf:1"))
        with before_it_is_written(book, lambda: server.do(change)):
            book.commit()
        assert not server.ask("SELECT FROM modus_agent")
        assert not _found(server)


def test_who_was_taken_over_by_other_tables_or_buckets_writes_nothing_any_more(
    server: Postgres, clock: Clock
) -> None:
    with closing(open_ledger(server.database, clock)) as book:
        record(book, a_run("wf:1"))
        with before_it_is_written(
            book, lambda: Ledger(server.database, (1.0, 2.0), lookback=DAY, reset_histogram=True).close()
        ):
            book.commit()
        assert not server.ask("SELECT FROM modus_agent")


def test_nobody_takes_an_agent_over_while_it_is_being_written(server: Postgres, clock: Clock) -> None:
    with closing(open_ledger(server.database, clock)) as book:
        record(book, a_run("wf:1"))
        store = book._store
        assert isinstance(store, SharedStore)
        write, taken = store._write, []

        def interrupted(cursor: Cursor, changes: Sequence[Change], *, anew: bool) -> None:
            server.do("DELETE FROM modus_member")
            with server.connect() as other, other.cursor() as theirs:
                taken.append(leasetable.take(theirs, 12345, [AGENT], 1))  # type: ignore[arg-type]
            write(cursor, changes, anew=anew)

        with patch.object(store, "_write", interrupted):
            book.commit()
        assert taken == [{}]


def test_a_new_owner_writes_at_once_however_often_the_one_before_did(server: Postgres, clock: Clock) -> None:
    for first in (1, 4):
        with closing(open_ledger(server.database, clock)) as book:
            for number in range(first, first + 3):
                record(book, a_run(f"wf:{number}"))
                book.commit()
                assert book.up


def test_a_failover_is_over_for_who_lost_its_agents_in_it(
    server: Postgres, clock: Clock, boot: BootClock
) -> None:
    """There is nothing that it could write again."""
    with closing(open_ledger(server.database, clock)) as book:
        record(book, a_run("wf:1"))
        book.commit()
        server.do("DELETE FROM modus_agent")
        server.cut_connections()
        wait_for("it is found out", lambda: _missing(book))
        boot.ahead += fleet.IDLE
        wait_for("it has left the fleet", lambda: not server.ask("SELECT FROM modus_member"))
        assert not book.commit_piece()
        assert book.up


def _missing(book: Ledger) -> Collection[int] | None:
    """What its store would have written again."""
    assert book._store is not None
    with suppress(StoreError):  # its connection was cut
        return book._store.open_again(lambda: [AGENT])
    return None


def test_what_a_failover_lost_is_written_again_as_the_newest_lease_has_it(
    server: Postgres, clock: Clock, boot: BootClock
) -> None:
    """The agent moves to another member and back while it is found out what is missing."""
    with closing(open_ledger(server.database, clock)) as book:
        record(book, a_run("wf:1"))
        book.commit()
        server.do("DELETE FROM modus_agent")
        server.do("DELETE FROM modus_counted")
        server.cut_connections()
        store = book._store
        assert store is not None
        open_again = store.open_again

        def interrupted(agent_ids: Callable[[], Collection[int]]) -> Collection[int] | None:
            if missing := open_again(agent_ids):
                lost_for_a_while(server, book, boot, a_run("wf:1"), a_run("wf:2"))
            return missing

        with patch.object(store, "open_again", interrupted):
            wait_for("it is written again", lambda: book.commit() or len(_found(server)) == 2)
        book.commit()
        assert read_state(server.database).counted[AGENT].keys() == {"wf:1", "wf:2"}


def test_a_write_that_gets_through_after_a_newer_one_changes_nothing(server: Postgres, clock: Clock) -> None:
    """A cut connection may leave one behind, under the very same lease."""
    with closing(open_ledger(server.database, clock)) as book:
        record(book, a_run("wf:1"))
        book.commit()
        record(book, a_run("wf:2"))
        book.commit()
        store = book._store
        store._serial -= 1  # type: ignore[union-attr]
        record(book, a_run("wf:3"))
        book.commit()
        assert not book.up
        assert len(_found(server)) == 2
        book.commit()
        assert book.up
        assert len(_found(server)) == 3


@pytest.mark.parametrize(
    "damage",
    [
        "UPDATE modus_agent SET state = '\\x7b7d'",
        "UPDATE modus_agent SET checksum = '\\x00'",
        "UPDATE modus_counted SET over = over + 1",
        "DELETE FROM modus_counted WHERE run_id = 'wf:1'",
        "UPDATE modus_counted SET run_id = '\\xff' WHERE run_id = 'wf:1'",
        "UPDATE modus_counted SET run_id = '\\xeda080' WHERE run_id = 'wf:1'",
        "UPDATE modus_counted SET over = 'NaN'",
    ],
)
def test_an_agent_that_somebody_edited_is_set_aside_and_begins_anew(
    server: Postgres, clock: Clock, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    with closing(open_ledger(server.database, clock, AGENT, 8)) as book:
        record(book, a_run("wf:1"), a_run("wf:2"))
        record(book, a_run("wf:1"), agent_id=8)
    server.do(damage + (" AND" if "WHERE" in damage else " WHERE") + f" agent_id = {AGENT}")
    with pytest.raises(LedgerError, match="cannot be read"):
        read_state(server.database)
    with closing(open_ledger(server.database, clock, AGENT, 8)) as again:
        assert again.agents().keys() == {8}
        record(again, a_run("wf:2"), a_run("wf:3"))
    assert read_state(server.database).counted[AGENT].keys() == {"wf:2", "wf:3"}
    assert [agent_id for (agent_id,) in server.ask("SELECT agent_id FROM modus_aside")] == [AGENT]
    assert "was set aside" in caplog.text


@pytest.mark.parametrize("damage", ["DELETE FROM modus_meta", "UPDATE modus_meta SET state = '\\xff'"])
def test_a_database_that_does_not_say_what_it_is_any_more_is_one_line(
    server: Postgres, clock: Clock, tmp_path: Path, damage: str
) -> None:
    with closing(open_ledger(server.database, clock)) as book:
        record(book, a_run())
    server.do(damage)
    for use in (
        lambda: Ledger(server.database, BOUNDS, lookback=DAY),
        lambda: read_state(server.database),
        lambda: importing.run(server.database, str(tmp_path / "state.db"), io.StringIO()),
    ):
        with pytest.raises(
            LedgerError, match=r"modus_meta is not what was written.* drop all tables"
        ) as caught:
            use()
        assert "\n" not in str(caught.value)


def test_a_membership_that_somebody_edited_costs_nobody_else_anything(
    make_fleet: Callable[[int], Fleet], boot: BootClock
) -> None:
    team = make_fleet(2)
    member = team.join()
    team.scrape()
    team.server.do("INSERT INTO modus_member VALUES (1, 'any', 'infinity', 0, 0)")

    def ended() -> bool:
        boot.ahead += 0.1 * TERM
        member.scrape()  # else its leases end while the clock moves
        return not team.server.ask("SELECT FROM modus_member WHERE id = 1")

    wait_for("it is ended", ended)
    wait_for("its own go on", lambda: len(member.scrape()) == 2)
    assert not member.ledger.leases.problems  # type: ignore[attr-defined]


def test_a_newer_version_takes_over_and_the_older_one_falls_silent_and_says_why(
    make_fleet: Callable[[int], Fleet], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    team = make_fleet(2)
    old = team.join()
    team.scrape()
    with monkeypatch.context() as newer:
        newer.setattr(tables, "SCHEMA_VERSION", SCHEMA_VERSION + 1)
        newer.setattr(
            tables, "MIGRATIONS", {SCHEMA_VERSION + 1: ("ALTER TABLE modus_agent ADD COLUMN more integer",)}
        )
        Ledger(team.server.database, BOUNDS, lookback=DAY).close()
    team.server.do("DELETE FROM modus_member")  # what the older one saw of that was a patched one
    wait_for("the older one is silent", lambda: not old.scrape())
    wait_for("it says why", lambda: "a newer modus-exporter has taken it over" in errors(caplog))
    wait_for("it counts no more", lambda: not old.collector.scrape(None).ledger_up)
    assert team.server.ask("SELECT more FROM modus_agent")
    with pytest.raises(LedgerError, match="upgrade this one"):
        team.join()


def test_a_wrong_password_is_one_line_without_it(server: Postgres, tmp_path: Path) -> None:
    wrong = Database(DatabaseUrl(server.url.replace(PASSWORD, "hunter2-hunter2")))
    with pytest.raises(LedgerError, match="password authentication failed") as caught:
        Ledger(wrong, BOUNDS, lookback=DAY)
    assert "hunter2" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_password_may_be_in_a_file_that_is_read_for_each_connection(
    server: Postgres, tmp_path: Path, clock: Clock
) -> None:
    file = tmp_path / "password"
    file.write_text(PASSWORD + "\n")
    database = Database(DatabaseUrl(server.url.replace(f":{PASSWORD}", "")), str(file))
    with closing(open_ledger(database, clock)) as book:
        record(book, a_run())
        assert PASSWORD not in str(book.place)
        file.unlink()
        server.cut_connections()
        wait_for("it cannot connect", lambda: book.commit() or not book.up)
        file.write_text(PASSWORD)
        wait_for("it is back", lambda: book.commit() or book.up)


def test_the_password_may_be_in_the_environment(
    server: Postgres, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PGPASSWORD", PASSWORD)
    with closing(open_ledger(Database(DatabaseUrl(server.url.replace(f":{PASSWORD}", ""))), clock)) as book:
        record(book, a_run())
        book.commit()
        assert book.up


def test_tls_is_as_the_url_says_and_another_authority_is_one_line(clock: Clock) -> None:
    with running() as server:
        authority, other = Authority(server.directory), Authority(server.directory, "other")
        authority.issue("database")
        key = server.directory / "database.key"
        key.chmod(0o600)
        if os.geteuid() == 0:
            shutil.chown(key, NOBODY)
        with server.connect("postgres") as db:
            db.execute("ALTER SYSTEM SET ssl = on")
            db.execute(f"ALTER SYSTEM SET ssl_cert_file = '{server.directory / 'database.crt'}'")
            db.execute(f"ALTER SYSTEM SET ssl_key_file = '{key}'")
            db.execute("SELECT pg_reload_conf()")

        def url(ca: Authority) -> Database:
            return Database(DatabaseUrl(f"{server.url}&sslmode=verify-full&sslrootcert={ca.file}"))

        wait_for("the server speaks TLS", lambda: server.ask("SHOW ssl") == [("on",)])
        with closing(open_ledger(url(authority), clock)) as book:
            record(book, a_run())
            book.commit()
            used = "SELECT application_name, ssl FROM pg_stat_ssl JOIN pg_stat_activity USING (pid)"
            ours = {name: ssl for name, ssl in server.ask(used) if str(name).startswith("modus-exporter")}
            assert ours == {"modus-exporter ledger": True, "modus-exporter leases": True}
        with pytest.raises(LedgerError, match="certificate verify failed") as caught:
            Ledger(url(other), BOUNDS, lookback=DAY)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("url", ["postgresql://a:b@[::1/x", "postgresql://u:secret-word@[h/d"])
def test_a_url_that_libpq_does_not_understand_is_one_line_that_quotes_nothing(url: str) -> None:
    with pytest.raises(LedgerError, match="expected postgresql:") as caught:
        Ledger(Database(DatabaseUrl(url)), BOUNDS, lookback=DAY)
    assert "secret-word" not in str(caught.value)


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://modus:sec/ret@127.0.0.1:5/db",
        "postgresql://modus:5/ret@127.0.0.1:5/db",
        "postgresql://modus:sec@ret@127.0.0.1:5/db",
        "postgresql://modus:sec@ret/ret@127.0.0.1/db",
        "postgresql://modus:sec/?user=ret@127.0.0.1:5/db",
        "postgres://modus:sec/ret",
        "postgresql://h1:1,h2:sec/ret@127.0.0.1/db",
    ],
)
def test_a_password_that_is_not_percent_encoded_is_not_shown(url: str) -> None:
    with pytest.raises(LedgerError) as caught:
        Ledger(Database(DatabaseUrl(url)), BOUNDS, lookback=DAY)
    line = str(caught.value)
    assert "percent-encoded (%40 for @, %2F for /), or state.password_file" in line
    assert not re.search(r"\bsec\b|\bret\b", line)


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://u:a%40b%2Fc@[::1]:1/d",
        "postgresql://u@127.0.0.1:1,127.0.0.2:1/d?options=-cx%3Da@b",
        "postgresql://%2Fno%2Fsuch:1/d",
        "postgresql:///d?host=/no/such",
        "postgresql://u:a:b?c=d@127.0.0.1:1/d",
    ],
)
def test_a_url_as_libpq_reads_it_is_taken(url: str) -> None:
    with pytest.raises(LedgerError, match=r"check state\.url"):  # nobody answers there
        Ledger(Database(DatabaseUrl(url)), BOUNDS, lookback=DAY)


def test_a_database_that_is_away_at_the_start_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(LedgerError, match=r"check state\.url") as caught:
        Ledger(Database(DatabaseUrl("postgresql://u@127.0.0.1:1/d")), BOUNDS, lookback=DAY)
    assert "\n" not in str(caught.value)


def test_without_psycopg_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "exporter.runs.postgres", None)
    with pytest.raises(LedgerError, match=r"pip install 'modus-exporter\[postgres\]'"):
        Ledger(Database(DatabaseUrl("postgresql://u@127.0.0.1:1/d")), BOUNDS, lookback=DAY)


def test_no_password_is_in_any_line_of_the_log(
    make_fleet: Callable[[int], Fleet], boot: BootClock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    team = make_fleet(1)
    member = team.join()
    team.scrape()
    team.server.stop()
    try:
        boot.ahead += TERM
        assert not member.scrape()
        wait_for("it says so", lambda: "cannot be renewed" in caplog.text)
    finally:
        team.server.start()
    team.settle()
    assert "cannot be renewed" in caplog.text
    assert PASSWORD not in caplog.text


def test_an_error_of_the_database_that_quotes_the_password_is_told_without_it(
    server: Postgres, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    with closing(open_ledger(server.database, clock)) as book:
        server.do(
            "CREATE FUNCTION quote() RETURNS trigger LANGUAGE plpgsql AS "
            f"$$ BEGIN RAISE EXCEPTION 'no {PASSWORD} here'; END $$"
        )
        server.do("CREATE TRIGGER quote BEFORE INSERT ON modus_agent EXECUTE FUNCTION quote()")
        record(book, a_run())
        book.commit()
    assert "no *** here" in errors(caplog)
    assert PASSWORD not in errors(caplog)


# --- from one store to another ---


def ids_of(state: Stored) -> dict[int, set[str]]:
    return {agent_id: set(ids) for agent_id, ids in state.counted.items()}


def test_from_a_file_to_the_database_and_back_nothing_changes(
    server: Postgres, tmp_path: Path, clock: Clock
) -> None:
    here, back = str(tmp_path / "here.db"), str(tmp_path / "back.db")
    with closing(open_ledger(here, clock)) as book:
        record(book, a_run("wf:1"), a_run("wf:2", "running", end=None, duration_ms=None))
        record(book, a_run("wf:\x00", "error"), agent_id=8)
    before, out = read_state(here), io.StringIO()
    assert importing.run(here, server.database, out) == 0
    assert importing.run(server.database, back, out) == 0
    assert out.getvalue().count("imported 2 agents, with the ids of 2 runs, into ") == 2
    for place in (server.database, back):
        found = read_state(place)
        assert ids_of(found) == ids_of(before)
        for agent_id, agent in found.agents.items():
            assert agent.totals == before.agents[agent_id].totals
            assert agent.open == before.agents[agent_id].open
            assert agent.watermark == before.agents[agent_id].watermark
    with closing(open_ledger(server.database, clock)) as book:
        record(book, a_run("wf:1"), a_run("wf:2"))
        assert counted(book) == 2


def test_an_import_over_an_agent_that_is_there_changes_nothing(
    place: Place, tmp_path: Path, clock: Clock
) -> None:
    source = str(tmp_path / "source.db")
    for where, run in ((source, "wf:1"), (place, "wf:2")):
        with closing(open_ledger(where, clock)) as book:
            record(book, a_run(run))
    with pytest.raises(LedgerError, match="1 of these agents already, such as 7; nothing was imported"):
        importing.run(source, place, io.StringIO())
    assert ids_of(read_state(place)) == {AGENT: {"wf:2"}}


def test_files_of_shards_are_imported_one_after_the_other_each_with_its_own_agents(
    server: Postgres, tmp_path: Path, clock: Clock
) -> None:
    agents = range(1, 9)
    for index in (0, 1):
        path = str(tmp_path / f"{index}.db")
        with closing(open_ledger(path, clock, shard=(index, 2))) as book:
            for agent_id in agents:  # also such as came from the other shard once
                record(book, agent_id=agent_id)
                record(book, a_run(f"{index}", end=clock() + 1), agent_id=agent_id)
        importing.run(path, server.database, io.StringIO())
    assert ids_of(read_state(server.database)) == {id_: {str(shard_of(id_, 2))} for id_ in agents}


def test_nothing_is_imported_from_or_into_a_store_in_use(
    server: Postgres, tmp_path: Path, clock: Clock
) -> None:
    path = str(tmp_path / "state.db")
    with closing(open_ledger(server.database, clock)) as book:
        record(book, a_run())
        book.commit()
        with pytest.raises(LedgerError, match="1 exporters use it"):
            importing.run(server.database, path, io.StringIO())
        with closing(open_ledger(path, clock, 8)) as other:
            record(other, a_run(), agent_id=8)
            other.commit()
            with pytest.raises(LedgerError, match="in use by another process"):
                importing.run(path, server.database, io.StringIO())
        with pytest.raises(LedgerError, match="stop them first"):
            importing.run(path, server.database, io.StringIO())


def test_an_import_whose_last_answer_is_lost_says_that_nobody_knows(
    server: Postgres, tmp_path: Path, clock: Clock
) -> None:
    source = str(tmp_path / "source.db")
    with closing(open_ledger(source, clock)) as book:
        record(book, a_run())
    Ledger(server.database, BOUNDS, lookback=DAY, clock=clock).close()
    server.do(
        "CREATE FUNCTION cut() RETURNS trigger LANGUAGE plpgsql AS "
        "$$ BEGIN PERFORM pg_terminate_backend(pg_backend_pid()); RETURN NULL; END $$"
    )
    server.do(
        "CREATE CONSTRAINT TRIGGER cut AFTER INSERT ON modus_agent DEFERRABLE INITIALLY DEFERRED "
        "FOR EACH ROW EXECUTE FUNCTION cut()"
    )
    with pytest.raises(LedgerError, match="it may have been imported all the same") as caught:
        importing.run(source, server.database, io.StringIO())
    assert "nothing was imported" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_who_comes_in_the_middle_of_an_import_waits_for_its_end(
    server: Postgres, tmp_path: Path, clock: Clock
) -> None:
    """Else it would write over what is imported."""
    source = str(tmp_path / "source.db")
    with closing(open_ledger(source, clock)) as book:
        record(book, a_run("wf:1"))
    write, came = SharedStore._write, []

    def interrupted(self: SharedStore, cursor: Cursor, changes: Sequence[Change], *, anew: bool) -> None:
        with server.connect() as db, db.cursor() as theirs:
            theirs.execute("SET lock_timeout = '300ms'")
            with pytest.raises(psycopg.errors.LockNotAvailable):
                leasetable.join(theirs, 12345, "any", TERM)  # type: ignore[arg-type]
        came.append(1)
        write(self, cursor, changes, anew=anew)

    with patch.object(SharedStore, "_write", interrupted):
        importing.run(source, server.database, io.StringIO())
    assert came
    assert ids_of(read_state(server.database)) == {AGENT: {"wf:1"}}


def test_who_stood_still_before_an_import_writes_nothing_into_it(
    server: Postgres, tmp_path: Path, clock: Clock
) -> None:
    source = str(tmp_path / "source.db")
    with closing(open_ledger(source, clock)) as book:
        record(book, a_run("wf:1"))
    with closing(open_ledger(server.database, clock)) as late:
        abandon(late)._until = float("inf")
        server.do("UPDATE modus_member SET expires = '-infinity'")
        importing.run(source, server.database, io.StringIO())
        record(late, a_run("wf:2"))
        late.commit()
        assert not late.up
    assert ids_of(read_state(server.database)) == {AGENT: {"wf:1"}}


def test_who_died_before_the_clock_of_the_database_was_set_back_keeps_nobody_from_an_import(
    server: Postgres, tmp_path: Path, clock: Clock
) -> None:
    with closing(open_ledger(server.database, clock)) as book:
        record(book, a_run())
        book.commit()
        abandon(book)
    server.do("UPDATE modus_member SET expires = clock_timestamp() + interval '1 day'")
    assert importing.run(server.database, str(tmp_path / "state.db"), io.StringIO()) == 0


def test_what_is_not_there_cannot_be_imported_and_leaves_no_file(server: Postgres, tmp_path: Path) -> None:
    missing = tmp_path / "missing.db"
    with pytest.raises(LedgerError, match="there is no state file"):
        importing.run(str(missing), server.database, io.StringIO())
    with pytest.raises(LedgerError, match="there is no state yet"):
        importing.run(server.database, str(tmp_path / "new.db"), io.StringIO())
    assert not list(tmp_path.iterdir())
