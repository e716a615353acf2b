"""The first request, at the start: whether the API takes the token, in one line of the log."""

import logging
from typing import TYPE_CHECKING

from exporter.deadline import Deadline
from exporter.log import fields
from exporter.modus.discovery import Selection
from exporter.modus.errors import ApiError

if TYPE_CHECKING:  # handed in
    from exporter.modus.client import ModusClient

PATIENCE = 30.0  # seconds

log = logging.getLogger(__name__)


def greet(client: "ModusClient", selection: Selection) -> None:
    """Ask for one agent, or for one run of the first one listed, and log what came of it. Raises nothing."""
    deadline = Deadline(PATIENCE)
    try:
        if selection.discovers:
            client.agents(deadline=deadline, page_size=1)
        else:
            client.runs(selection.listed[0].id, deadline=deadline, page_size=1)
    except ApiError as error:
        log.error("the first request to the API failed", extra=fields(api=client.host, **error.told))
    else:
        log.info("the API takes the token", extra=fields(api=client.host))
