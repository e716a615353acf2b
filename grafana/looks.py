"""Colours, limits and units that the dashboards have in common."""

import queries as q
from panels import (
    BLUE,
    COLOURED_TEXT,
    GREEN,
    GREY,
    ORANGE,
    PURPLE,
    RED,
    Json,
    mapping,
    override,
    thresholds,
)

STATUS_COLOURS = {"completed": GREEN, "error": RED, "cancelled": GREY}
TRIGGER_COLOURS = {
    "schedule": BLUE,
    "webhook": "light-blue",
    "api": PURPLE,
    "slack": "light-purple",
    "manual": GREY,
}
CODE_COLOURS = {"/^2/": GREEN, "/^[34]/": ORANGE, "/^5/": RED, "/^[^0-9]/": "dark-red", "429": "dark-orange"}
REASON_COLOURS = {
    "unauthorized": RED,
    "forbidden": "dark-red",
    "not_found": "light-red",
    "rate_limited": ORANGE,
    "server_error": "dark-orange",
    "timeout": "light-orange",
    "connection": PURPLE,
    "bad_response": "dark-purple",
    "deadline": BLUE,
    "internal": "dark-blue",
}
STATE_NAMES = mapping(*((code, name, colour) for code, name, colour, _ in q.STATES))
READ_NAMES = mapping((0, "failed", RED), (1, "ok", GREEN), (2, "catching up", ORANGE))
YES_NO = mapping((1, "yes", GREEN), (0, "no", RED))

NEUTRAL = thresholds((None, BLUE))
NONE_IS_FINE = thresholds((None, GREEN), (1, RED))
SOON = thresholds((None, GREEN), (1, ORANGE))
RATIO = thresholds((None, GREEN), (q.BUDGET, ORANGE), (q.FAILURE_LIMIT, RED))
WAITING_AGE = thresholds((None, BLUE), (q.WAITING_LONG, ORANGE))
READ_AGE = thresholds((None, GREEN), (q.STALE, ORANGE))
COMPARED_AGE = thresholds((None, GREEN), (q.RECONCILE_OVERDUE, ORANGE))
IN_A_ROW = thresholds((None, GREEN), (1, ORANGE), (3, RED))
FEW_RUNS = [override("of few runs", thresholds=NEUTRAL)]
NONE_ENDED = "No run is known to have ended in this time"
SECONDS: Json = {"unit": "s", "decimals": 1}
NUMBER: Json = {"unit": "none", "decimals": 0}  # in full: not 9 K


def in_colour(steps: Json, **more: object) -> Json:
    """Cells whose text has the colour of its threshold."""
    return {"custom__cellOptions": COLOURED_TEXT, "thresholds": steps, **more}
