"""The same histories, crashes and faults as in test_counting, with state in PostgreSQL."""

from collections.abc import Iterable, Sequence
from unittest.mock import patch

import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test

from exporter.deadline import Deadline
from exporter.runs import fleet
from exporter.runs.database import Cursor
from exporter.runs.postgres import SharedStore
from exporter.runs.state import Meta
from exporter.runs.store import Change, StoreError, Tenant
from tests.postgres import Postgres
from tests.property.test_counting import Counting
from tests.simulation import Exporter

pytestmark = [pytest.mark.servers, pytest.mark.xdist_group("postgres")]


class InStep(fleet.Fleet):
    """Its leases change when it is asked for agents and at no other moment: a history goes one way only."""

    def want(self, agent_ids: frozenset[int], deadline: Deadline) -> None:
        super().want(agent_ids, Deadline(0.0))
        self._tick()
        assert not self.problem

    def close(self) -> None:
        self._end()
        self._connection.close()

    def _run(self) -> None:
        """Nothing happens beside the scrapes."""


class KilledStore(SharedStore):
    """A store that fails at one moment of the next commit, as when the process is killed there."""

    moment = ""

    def lease_for(self, tenant: Tenant) -> fleet.Fleet:
        self._fleet = InStep(self._database, tenant, self._buckets, self._written)
        return self._fleet

    def write(self, meta: Meta, changes: Iterable[Change], *, anew: bool) -> None:
        self.fail_at("before")
        super().write(meta, changes, anew=anew)
        self.fail_at("after")

    def _write(self, cursor: Cursor, changes: Sequence[Change], *, anew: bool) -> None:
        if self.moment == "torn":
            cursor.execute("SELECT pg_terminate_backend(pg_backend_pid())")
        super()._write(cursor, changes, anew=anew)
        self.fail_at("in")

    def fail_at(self, moment: str) -> None:
        if KilledStore.moment == moment:
            raise StoreError("it was told to fail")


class CountingShared(Counting):
    """Each kill leaves a member behind that is dead, and whose agents the new one takes over."""

    server: Postgres

    def __init__(self) -> None:
        super().__init__()
        self.server.renew()
        KilledStore.moment = ""

    def start(self) -> Exporter:
        with patch("exporter.runs.postgres.SharedStore", KilledStore):
            return Exporter(
                self.modus, self.server.database, self.settings, monotonic=self.clock, clock=self.clock
            )

    def kill(self, moment: str) -> None:
        KilledStore.moment = moment
        self.exporter.scrape()
        KilledStore.moment = "before"  # nothing comes after a kill
        leases = self.exporter.ledger.leases
        assert isinstance(leases, fleet.Fleet)
        leases._end = lambda: None  # type: ignore[method-assign]
        self.exporter.close()
        KilledStore.moment = ""
        self.server.do("DELETE FROM modus_member")  # its term is over
        self.exporter = self.start()


def test_every_run_is_counted_once_whatever_happens_with_shared_state(
    postgres: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fleet, "TERM", 3600.0)  # no membership ends because the machine is busy
    CountingShared.server = postgres
    run_state_machine_as_test(
        CountingShared,
        settings=settings(
            max_examples=25,
            stateful_step_count=40,
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
        ),
    )
