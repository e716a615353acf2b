"""Who should hold which agents: decisions, and a fleet on paper."""

import math
import random

from hypothesis import given
from hypothesis import strategies as st

from exporter.runs.leases import MARGIN, TERM, TICK, Watch, boot_clock, quota, surplus

LOAD = 1_000  # agents of 100 runs that a member loads in a second: `python -m benchmarks.shared` has more


@given(st.lists(st.integers(0, 50), min_size=1, max_size=12), st.integers(0, 200))
def test_shares_are_even_to_within_one_agent_and_add_up(held: list[int], agents: int) -> None:
    members = dict(enumerate(held))
    shares = [quota(member, members, agents) for member in members]
    assert sum(shares) == agents
    assert max(shares) - min(shares) <= 1


@given(st.lists(st.integers(0, 50), min_size=2, max_size=12))
def test_no_more_agents_move_than_have_to(held: list[int]) -> None:
    members, agents = dict(enumerate(held)), sum(held)
    moved = sum(max(0, number - quota(member, members, agents)) for member, number in members.items())
    even, left = divmod(agents, len(held))
    most_first = sorted(held, reverse=True)
    fewest = sum(max(0, n - even - (i < left)) for i, n in enumerate(most_first))
    assert moved == fewest


def test_what_is_not_in_use_goes_first_and_then_the_newest_leases() -> None:
    assert surplus([5, 3, 9, 1], {5, 9, 1}, 2) == [3, 1]
    assert surplus([5, 3], {5, 3, 1}, 2) == []


def test_a_member_is_dead_when_it_was_seen_without_a_renewal_for_a_whole_term() -> None:
    watch = Watch()
    assert watch.dead({1: "a", 2: "a"}, 0.0) == set()
    assert watch.dead({1: "b", 2: "a"}, TERM - 1) == set()
    assert watch.dead({1: "c", 2: "a"}, TERM) == {2}


def test_who_could_not_look_begins_to_watch_anew() -> None:
    """In an outage nobody can renew: who is back first must not take over from all others."""
    watch = Watch()
    watch.dead({1: "a"}, 0.0)
    watch.forget()
    assert watch.dead({1: "a"}, 100.0) == set()
    assert watch.dead({1: "a"}, 100.0 + TERM) == {1}


def test_a_member_that_comes_back_under_watch_is_alive() -> None:
    watch = Watch()
    watch.dead({1: "a"}, 0.0)
    watch.dead({}, 1.0)
    assert watch.dead({1: "a"}, TERM) == set()


def test_the_clock_of_a_lease_does_not_go_back() -> None:
    before = boot_clock()
    assert boot_clock() >= before


def test_others_wait_longer_than_an_owner_shows() -> None:
    """An owner shows for TERM - MARGIN from when it asked on; others wait TERM after they saw it renewed."""
    assert MARGIN > 0
    assert TERM - MARGIN > 2 * TICK  # one renewal may fail


class Fleet:
    """Members that tick at their own times, leases as the database keeps them; seconds, nothing else."""

    def __init__(self, agents: int, rng: random.Random) -> None:
        self.agents = agents
        self.rng = rng
        self.now = 0.0
        self.held: dict[int, set[int]] = {}
        self.leaving: dict[int, list[int]] = {}
        self.free = set(range(agents))
        self.renewed: dict[int, float] = {}
        self.watches: dict[int, Watch] = {}
        self.next: dict[int, float] = {}
        self.requests = self.moves = 0

    def join(self, member: int) -> None:
        self.held[member], self.leaving[member], self.watches[member] = set(), [], Watch()
        self.next[member] = self.now + self.rng.random() * TICK
        self.renewed[member] = self.now

    def stop(self, member: int) -> None:
        self.free |= self.held[member] | set(self.leaving[member])
        self.forget(member)

    def forget(self, member: int) -> None:
        for by_member in (self.held, self.leaving, self.renewed, self.watches, self.next):
            by_member.pop(member)

    def kill(self, member: int) -> None:
        self.next[member] = math.inf

    def run(self, seconds: float) -> None:
        end = self.now + seconds
        while (at := min(self.next.values())) <= end:
            self.now = at
            self.tick(min(self.next, key=self.next.__getitem__))
        self.now = end

    def tick(self, member: int) -> None:
        self.renewed[member] = self.now
        self.next[member] = self.now + TICK
        self.requests += 2
        for dead in self.watches[member].dead(self.renewed, self.now) - {member}:
            self.stop(dead)
        self.free |= set(self.leaving[member])
        counts = {other: len(held) for other, held in self.held.items()}
        share = quota(member, counts, self.agents)
        beyond = surplus(sorted(self.held[member]), range(self.agents), share)
        self.leaving[member] = beyond
        self.held[member] -= set(beyond)
        short = max(share - len(self.held[member]), 0)
        taken = set(sorted(self.free)[:short])
        self.free -= taken
        self.held[member] |= taken
        self.moves += len(taken)
        self.next[member] += len(taken) / LOAD


def even(fleet: Fleet) -> bool:
    numbers = [len(held) for held in fleet.held.values()]
    return sum(numbers) == fleet.agents and max(numbers) - min(numbers) <= 1


def test_a_fleet_of_12_with_100_000_agents_on_paper() -> None:
    """Rows, moves and the time of a handover; what they cost a database is measured by benchmarks.shared."""
    agents, members = 100_000, 12
    fleet = Fleet(agents, random.Random(1))  # noqa: S311
    for member in range(members):
        fleet.join(member)
    fleet.run(60)
    assert even(fleet)

    fleet.moves = fleet.requests = 0
    fleet.run(60)
    assert fleet.moves == 0, "agents move though nobody comes or goes"
    assert fleet.requests <= members * 2 * (60 / TICK + 1)

    fleet.stop(3)  # it gives its agents back at once
    began, fleet.moves = fleet.now, 0
    fleet.run(3 * TICK)
    assert not fleet.free, f"agents wait {fleet.now - began} s after a member has left"
    assert fleet.moves <= agents / members + 1

    fleet.kill(4)
    fleet.moves = 0
    fleet.run(TERM + 3 * TICK)
    assert 4 not in fleet.held
    assert not fleet.free, "agents of a dead member are not taken over within half a minute"
    assert even(fleet)
    assert fleet.moves <= agents / (members - 1) + members

    fleet.join(12)
    fleet.moves = 0
    fleet.run(30)
    assert even(fleet)
    assert fleet.moves <= agents / (members - 1) + members
