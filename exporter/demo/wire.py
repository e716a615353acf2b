"""The JSON that the simulated API writes: times, runs, agents, errors, and items that nobody can decode."""

import json
from datetime import UTC, datetime
from typing import Any

from exporter.demo.index import DAY, OPEN, SimulatedAgent, SimulatedRun, stable_uuid

ABSENT = object()  # as a value of an `override`: leave the key out
ERRORS = {
    400: ("BAD_REQUEST", "INVALID_ARGUMENT"),
    401: ("UNAUTHORIZED", "UNAUTHENTICATED"),
    403: ("FORBIDDEN", "PERMISSION_DENIED"),
    404: ("NOT_FOUND", "NOT_FOUND"),
    409: ("CONFLICT", "ALREADY_EXISTS"),
    422: ("VALIDATION", "INVALID_ARGUMENT"),
    429: ("RATE_LIMITED", "RESOURCE_EXHAUSTED"),
    500: ("INTERNAL_ERROR", "INTERNAL"),
}


def iso(instant: float) -> str:
    """Unix seconds as the API writes them: ISO-8601, milliseconds, Z."""
    text = datetime.fromtimestamp(round(instant, 3), UTC).isoformat(timespec="milliseconds")
    return text.replace("+00:00", "Z")


def encode(body: object) -> bytes:
    """JSON in which `bytes` stand as they are, decodable or not."""
    raw: list[bytes] = []

    def mark(item: bytes) -> str:
        raw.append(item)
        return f"\0{len(raw)}\0"

    text = json.dumps(body, default=mark).encode()
    for number, item in enumerate(raw, 1):
        text = text.replace(json.dumps(f"\0{number}\0").encode(), item, 1)
    return text


def error_json(status: int, request_id: str, message: str, info: object) -> dict[str, Any]:
    """The API's error envelope; a status it does not document gets the codes of 400 or 500."""
    code, name = ERRORS.get(status) or ERRORS[500 if status >= 500 else 400]
    body = {"code": code, "status": name, "message": message, "requestId": request_id}
    return {"error": body | ({"info": info} if info else {})}


def run_json(run: SimulatedRun, agent: SimulatedAgent, status: str) -> dict[str, Any] | bytes:
    """A run in a list, in which it has this status."""
    if run.raw is not None:
        return run.raw
    # fmt: off
    body: dict[str, Any] = {
        "id": run.id, "workflowId": run.workflow_id, "temporalRunId": run.temporal_run_id,
        "agentId": run.agent_id, "agentName": run.agent_name, "agentType": agent.type,
        "status": status, "triggerType": ABSENT if run.trigger is None else run.trigger,
        "startedAt": iso(run.start), "summary": f"{run.agent_name}: {status}",
    }
    # fmt: on
    if status not in OPEN:
        body |= {"endedAt": iso(run.end), "durationMs": round((run.end - run.start) * 1000)}
    elif status == "awaiting_human":
        body["pendingApproval"] = {"requestedAt": iso(run.waits_from), "message": "Approve this step?"}
    return without_absent(body | run.override)


def single_run_json(run: SimulatedRun, agent: SimulatedAgent, status: str) -> dict[str, Any] | bytes:
    """A run on its own: more fields than in a list."""
    body = run_json(run, agent, status)
    if isinstance(body, bytes):
        return body
    body["source"] = "live-query" if status in OPEN else "history"
    body |= {"statusReason": run.reason} if run.reason and status not in OPEN else {}
    return body | ({"taskError": "Upstream answered 502."} if status == "error" and not run.reason else {})


def slug_of(agent: SimulatedAgent) -> str:
    """The agent's name in links."""
    return f"agent-{agent.id}"


def agent_json(
    agent: SimulatedAgent, now: float, born: float, seed: int, *, with_variation: bool
) -> dict[str, Any] | bytes:
    """An agent in the list of agents, with what is deployed of it if wanted."""
    if agent.raw is not None:
        return agent.raw
    deployed, deleted = agent.deployed <= now, agent.deleted_at <= now
    created = iso(born - 30 * DAY)
    # fmt: off
    body = {
        "id": agent.id, "slug": slug_of(agent), "name": agent.name, "type": agent.type,
        "status": "deleted" if deleted else "active" if deployed else "draft",
        "isEnabled": deployed and agent.enabled and not deleted, "hasUnpublishedChanges": not deployed,
        "createdAt": created, "updatedAt": created if agent.updated is None else iso(agent.updated),
        "deletedAt": iso(agent.deleted_at) if deleted else None, "orgUuid": stable_uuid(seed, "organisation"),
        "canUse": True, "canManage": False, "manageDenial": "not_owner",
        "accessConfig": {"visibility": "shared", "groupPermissions": {}, "sharedWith": []},
    }
    # fmt: on
    if with_variation:
        graph: dict[str, Any] | None = {"nodes": [], "edges": []} if agent.type == "workflow" else None
        body["variation"] = {"trigger": agent.trigger, "workflowStructure": graph, "agentSelection": None}
    return without_absent(body | agent.override)


def without_absent(body: dict[str, Any]) -> dict[str, Any]:
    """Without the keys whose value is `ABSENT`."""
    return {name: value for name, value in body.items() if value is not ABSENT}
