"""`--state.import`: what another store holds, into the one that is configured; totals stay what they are."""

from collections.abc import Iterator
from contextlib import closing
from typing import TextIO

import msgspec

from exporter.modus.discovery import shard_of
from exporter.runs.state import SCHEMA_VERSION, USAGE_ID, State
from exporter.runs.store import (
    Change,
    LedgerError,
    Place,
    StoreError,
    UnansweredError,
    open_store,
    read_state,
)


def run(source: Place, target: Place | None, out: TextIO) -> int:
    """Copy all agents and say so in one line; returns 0.

    Of a store that a shard wrote, that shard's agents; those of several shards can be imported one after the
    other. Nobody may use either store meanwhile. Raises LedgerError, also when the target has one of them.
    """
    if target is None:
        raise LedgerError("state.path is null: there is nothing to import into")
    state = read_state(source, alone=True)
    index, total = state.meta.shard
    agent_ids = [agent_id for agent_id in state.agents if shard_of(agent_id, total) == index]
    meta = msgspec.structs.replace(state.meta, shard=(0, 1), version=SCHEMA_VERSION)
    with closing(open_store(target, lambda: meta.written)) as store:
        found = store.load(meta, reset_histogram=False)
        if found.meta.bounds != meta.bounds:
            raise LedgerError(f"{store.place}: it counts in other buckets; nothing was imported")
        try:
            store.adopt(meta, list(_changes(state, agent_ids, with_usage=index == 0)))
        except UnansweredError as error:
            unknown = "it may have been imported all the same: look with --audit, or import again"
            raise LedgerError(f"{store.place}: {error}; {unknown}") from None
        except StoreError as error:
            raise LedgerError(f"{store.place}: {error}; nothing was imported") from None
    runs = sum(len(state.counted[agent_id]) for agent_id in agent_ids)
    out.write(f"imported {len(agent_ids)} agents, with the ids of {runs} runs, into {store.place}\n")
    return 0


def _changes(state: State, agent_ids: list[int], *, with_usage: bool) -> Iterator[Change]:
    if state.usage and with_usage:  # the first of several shards reads it for all
        yield Change(USAGE_ID, 0, msgspec.json.encode(state.usage), [], [])
    for agent_id in agent_ids:
        agent, ids = state.agents[agent_id], list(state.counted[agent_id].items())
        if read := state.read.get(agent_id):
            agent.last_read = max(agent.last_read or 0.0, read)
        yield Change(agent_id, 0, msgspec.json.encode(agent), ids, [])
