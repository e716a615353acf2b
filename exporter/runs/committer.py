"""Commits of the ledger that hold nobody up longer than they can wait."""

import concurrent.futures
import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import TYPE_CHECKING

from exporter.log import described, fields
from exporter.runs.threads import KeptThreads

if TYPE_CHECKING:  # handed in
    from exporter.runs.ledger import Ledger

log = logging.getLogger(__name__)

SLOW = 1.0  # seconds after which a commit that is under way counts as one that hangs


class Committer:
    """Commits of the ledger, in a thread of their own."""

    def __init__(self, ledger: "Ledger", monotonic: Callable[[], float] = time.monotonic) -> None:
        self._ledger = ledger
        self._monotonic = monotonic
        self._thread = KeptThreads(1, "commit")
        self._lock = threading.Lock()
        self._asked: Future[None] | None = None  # the next commit, of what is recorded until it begins
        self._began: float | None = None  # of the piece that is under way
        self._failed = False  # the newest one, in a way that nobody foresaw
        self._told = False  # that commits hang
        self.took = 0.0  # seconds, the newest piece that was written

    def request(self) -> "Future[None]":
        """Have all that was recorded so far committed; what is returned is done when it was, well or not."""
        with self._lock:
            asked = self._asked = self._asked or Future()
            busy = self._began is not None
            if not busy:
                self._began = self._monotonic()
        if not busy and not self._thread.submit(self._commit):
            self._commit()
        return asked

    def tell_if_slow(self) -> None:
        """Say once that a commit hangs, if it does: somebody could not wait for it any longer."""
        with self._lock:
            if self._hangs and not self._told:
                self._told = True
                slow = "the state is written slowly: what is shown is as of the last commit that ended"
                log.error(slow, extra=fields(path=self._ledger.place))

    @property
    def up(self) -> bool:
        """Whether commits succeed, and no piece has been under way for longer than any should take."""
        with self._lock:
            return self._ledger.up and not self._failed and not self._hangs

    def close(self, patience: float) -> bool:
        """Commit the rest, and whether that was done in so many seconds; then the thread ends."""
        commit = self.request()
        concurrent.futures.wait([commit], patience)
        self._thread.close()
        return commit.done()

    @property
    def _hangs(self) -> bool:
        return self._began is not None and self._monotonic() - self._began > SLOW

    def _commit(self) -> None:
        while True:
            with self._lock:
                asked, self._asked = self._asked, None
                if asked is None:
                    self._began = None
                    return
            while self._commit_piece():
                pass
            asked.set_result(None)

    def _commit_piece(self) -> bool:
        """Commit a piece; returns whether there is more."""
        with self._lock:
            self._began = began = self._monotonic()
        more, failure = False, ""
        try:
            more = self._ledger.commit_piece()
        except Exception as error:  # who waits must not wait for ever
            failure = described(error)
            log.error("a commit failed", extra=fields(path=self._ledger.place, error=failure))
        with self._lock:
            self._failed = bool(failure)
            self.took = self._monotonic() - began if more or failure else self.took
            if self._told and self._monotonic() - began <= SLOW:
                self._told = False
                log.info("the state is written in time again", extra=fields(path=self._ledger.place))
        return more
