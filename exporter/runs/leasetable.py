"""The rows of members and leases in the shared database, as they are changed within a transaction.

A lease is free when its owner is no member (any more). Times are the database's. Leases that a commit has
locked are left as they are where that can wait: who waits here renews nothing meanwhile.
"""

from collections.abc import Collection, Mapping

from exporter.runs.database import Cursor
from exporter.runs.state import USAGE_ID


def renew(cursor: Cursor, member: int, term: float, agents: int, unread: float) -> bool:
    """Stay a member for `term` seconds; False for one that is none any more.

    `unread` is how long ago all of its agents were read, in seconds: what it has no clock in common for.
    """
    cursor.execute(
        "UPDATE modus_member SET expires = clock_timestamp() + %s * interval '1 s', agents = %s, "
        "read_until = extract(epoch FROM clock_timestamp())::float8 - %s WHERE id = %s",
        [term, agents, unread, member],
    )
    return bool(cursor.rowcount)


def join(cursor: Cursor, member: int, name: str, term: float) -> None:
    """Become a member, without a lease."""
    cursor.execute(
        "INSERT INTO modus_member VALUES (%s, %s, clock_timestamp() + %s * interval '1 s', 0, 0)",
        [member, name, term],
    )


def members(cursor: Cursor) -> list[tuple[int, int, str]]:
    """Number, agents and end of each membership, which is whatever somebody wrote there."""
    cursor.execute("SELECT id, agents, expires::text FROM modus_member")
    return cursor.fetchall()


def end_dead(cursor: Cursor, dead: Collection[int], term: float) -> set[int]:
    """End those of these memberships that are over, which frees their leases; returns which.

    So is one that ends later than it can: the clock was set back since it was renewed.
    """
    cursor.execute(
        "DELETE FROM modus_member WHERE id = ANY(%s) AND (expires < clock_timestamp() "
        "OR expires > clock_timestamp() + %s * interval '1 s') RETURNING id",
        [list(dead), term],
    )
    return {id_ for (id_,) in cursor}


def ours(cursor: Cursor, member: int) -> tuple[int, int, int | None]:
    """How many leases the member has, the sum of their epochs, and who has that of the usage."""
    cursor.execute(
        "SELECT count(*), coalesce(sum(epoch), 0)::bigint, "
        "(SELECT owner FROM modus_lease WHERE agent_id = %s) FROM modus_lease WHERE owner = %s",
        [USAGE_ID, member],
    )
    return cursor.fetchone() or (0, 0, None)


def held(cursor: Cursor, member: int) -> dict[int, int]:
    """The member's agents and the epochs of their leases."""
    cursor.execute("SELECT agent_id, epoch FROM modus_lease WHERE owner = %s", [member])
    return dict(cursor.fetchall())


def enter(cursor: Cursor, agent_ids: Collection[int]) -> None:
    """Make a lease for each agent that has none."""
    cursor.execute(
        "INSERT INTO modus_lease (agent_id) SELECT unnest(%s::bigint[]) ON CONFLICT DO NOTHING",
        [sorted(agent_ids)],
    )


def take(cursor: Cursor, member: int, agent_ids: Collection[int], number: int) -> dict[int, int]:
    """Take so many free leases of these agents; returns their new epochs. Others who take do not wait.

    Whether they are free is asked again once they are locked: a statement knows the members of its beginning
    only. An epoch is above all under which the agent was written, also where its lease was made anew.
    """
    cursor.execute(
        "SELECT agent_id FROM modus_lease WHERE agent_id = ANY(%s::bigint[]) "
        "AND coalesce(owner, 0) NOT IN (SELECT id FROM modus_member) LIMIT %s FOR UPDATE SKIP LOCKED",
        [list(agent_ids), number],
    )
    cursor.execute(
        "UPDATE modus_lease AS lease SET owner = %s, since = clock_timestamp(), epoch = 1 + greatest(epoch, "
        "(SELECT epoch FROM modus_agent WHERE agent_id = lease.agent_id)) WHERE agent_id = ANY(%s::bigint[]) "
        "AND coalesce(owner, 0) NOT IN (SELECT id FROM modus_member) RETURNING agent_id, epoch",
        [member, [agent_id for (agent_id,) in cursor.fetchall()]],
    )
    return dict(cursor.fetchall())


def free(cursor: Cursor, member: int, agent_ids: Collection[int]) -> set[int]:
    """Give leases back; returns those that a commit still holds, which are kept."""
    cursor.execute(
        "WITH free AS (SELECT agent_id FROM modus_lease WHERE owner = %s AND agent_id = ANY(%s::bigint[]) "
        "FOR UPDATE SKIP LOCKED) UPDATE modus_lease SET owner = NULL, since = clock_timestamp() FROM free "
        "WHERE modus_lease.agent_id = free.agent_id",
        [member, list(agent_ids)],
    )
    cursor.execute(
        "SELECT agent_id FROM modus_lease WHERE owner = %s AND agent_id = ANY(%s::bigint[])",
        [member, list(agent_ids)],
    )
    return {agent_id for (agent_id,) in cursor}


def end_all(cursor: Cursor, agent_ids: Collection[int]) -> None:
    """Free these leases whoever has them, when their commits are over."""
    cursor.execute(
        "UPDATE modus_lease SET owner = NULL, since = clock_timestamp() WHERE agent_id = ANY(%s::bigint[])",
        [list(agent_ids)],
    )


def note_said(cursor: Cursor, member: int, said: Mapping[int, int]) -> set[int]:
    """Have the next owners of agents know which of their lines the log has already.

    Returns those that a commit still holds: they are to be noted later.
    """
    if not said:
        return set()
    lines = [list(said), list(said.values()), member]
    cursor.execute(
        "WITH new AS (SELECT agent_id, new.said FROM modus_lease JOIN unnest(%s::bigint[], %s::bigint[]) "
        "AS new (agent_id, said) USING (agent_id) WHERE owner = %s FOR UPDATE OF modus_lease SKIP LOCKED) "
        "UPDATE modus_lease SET said = new.said FROM new WHERE modus_lease.agent_id = new.agent_id",
        lines,
    )
    cursor.execute(
        "SELECT agent_id FROM modus_lease JOIN unnest(%s::bigint[], %s::bigint[]) AS new (agent_id, said) "
        "USING (agent_id) WHERE modus_lease.said <> new.said AND owner = %s",
        lines,
    )
    return {agent_id for (agent_id,) in cursor}


def leave(cursor: Cursor, member: int) -> None:
    """Be no member any more."""
    cursor.execute("DELETE FROM modus_member WHERE id = %s", [member])


def sweep(cursor: Cursor, wanted: Collection[int], seconds: float) -> None:
    """Forget agents that have been free for so long, but for those that are wanted.

    Of one whose owner is no member any more nobody knows since when it is free: that counts from now on.
    """
    cursor.execute(
        "WITH freed AS (UPDATE modus_lease SET owner = NULL, since = clock_timestamp() "
        "WHERE agent_id <> ALL(%(wanted)s::bigint[]) AND owner NOT IN (SELECT id FROM modus_member) "
        "AND since < clock_timestamp() - %(seconds)s * interval '1 s'), "
        "old AS (DELETE FROM modus_lease WHERE agent_id <> ALL(%(wanted)s::bigint[]) AND owner IS NULL "
        "AND since < clock_timestamp() - %(seconds)s * interval '1 s' RETURNING agent_id), "
        "states AS (DELETE FROM modus_agent USING old WHERE modus_agent.agent_id = old.agent_id) "
        "DELETE FROM modus_counted USING old WHERE modus_counted.agent_id = old.agent_id",
        {"wanted": sorted(wanted), "seconds": seconds},
    )
