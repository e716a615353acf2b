"""Which of the API's two routes answers: it was renamed, and deployments of both ages are out there."""

import logging
import threading
from collections.abc import Callable
from typing import TypeVar

from exporter.modus.errors import ApiError

ROUTES = ("agents", "workflows")  # of resource auto, in the order they are tried
LOOK_AGAIN = 300.0  # seconds between two looks at the other route while the known one answers

log = logging.getLogger(__name__)

T = TypeVar("T")


class Routes:
    """The route that is known to work, or is found to. `resource` is agents, workflows or auto."""

    def __init__(self, resource: str, monotonic: Callable[[], float]) -> None:
        self._routes = ROUTES if resource == "auto" else (resource,)
        self._known = None if resource == "auto" else resource
        self._monotonic = monotonic
        self._answered = False  # the known one, since the last look at the other
        self._looked = -float("inf")
        self._lock = threading.Lock()

    def ask(self, once: Callable[[str], T]) -> T:
        """What `once` brings by the route that works; a 404 of one leads to a look at the other.

        Not so once the known route has answered since the last look: then the 404 is about what was asked
        for, and the other route is looked at now and then only. Raises ApiError: that of the known route.
        """
        known = self._known
        first = known or self._routes[0]
        try:
            return self._learned(first, once(first))
        except ApiError as exc:
            error = exc
        other = next((route for route in self._routes if route != first), None)
        if error.status != 404 or other is None or not self._may_look(known):
            if error.missing:
                self._learn(first)  # a route that names its scopes is there
            raise error
        try:
            return self._learned(other, once(other))
        except ApiError as exc:
            if exc.missing:
                self._learn(other)
            if known is None:
                error = exc
        raise error

    def _may_look(self, known: str | None) -> bool:
        if known is None:
            return True
        with self._lock:
            now = self._monotonic()
            if self._answered and now < self._looked + LOOK_AGAIN:
                return False
            self._looked, self._answered = now, False
            return True

    def _learned(self, route: str, answer: T) -> T:
        if route == self._known and self._answered:
            return answer
        self._learn(route)
        return answer

    def _learn(self, route: str) -> None:
        with self._lock:
            if route == self._known:
                self._answered = True
                return
            self._known, self._answered, self._looked = route, True, self._monotonic()
        log.info("the API answers on /api/v1/%s", route)
