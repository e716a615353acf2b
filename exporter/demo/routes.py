"""Which operation of the API a path asks for."""

import re
from typing import NamedTuple

_AGENTS = re.compile(r"/api/v1/(agents|workflows)(?:/([^/]+)/runs(?:/([^/]+))?)?")


class Route(NamedTuple):
    """What a path names; what it does not name is empty."""

    operation: str
    resource: str = ""
    agent: str = ""
    run: str = ""


def route_of(path: str) -> Route:
    """The operation is list_agents, list_runs, get_run, get_usage or unknown."""
    if path == "/api/v1/usage":
        return Route("get_usage", "usage")
    match = _AGENTS.fullmatch(path)
    if match is None:
        return Route("unknown")
    resource, agent, run = match.groups("")
    return Route("get_run" if run else "list_runs" if agent else "list_agents", resource, agent, run)
