"""A headless Chromium, driven through a pipe by the DevTools protocol: no driver and no library is needed."""

import itertools
import json
import os
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.harness import ended

NAMES = ("chromium", "chromium-headless-shell", "google-chrome", "chrome")
SECONDS = 60.0
START = """
import fcntl, os, sys
commands, events = (fcntl.fcntl(int(number), fcntl.F_DUPFD, 10) for number in sys.argv[1:3])
os.dup2(commands, 3)  # Chromium reads from 3 and writes to 4
os.dup2(events, 4)
os.execv(sys.argv[3], sys.argv[3:])
"""


class Browser:
    """One page. Raises AssertionError for an error of the browser, or when it does not answer in time."""

    def __init__(self, commands: int, events: int) -> None:
        self._commands, self._events = commands, events
        self._numbers = itertools.count(1)
        self._rest = b""
        self.console: list[str] = []  # what the page was refused, as by its Content-Security-Policy
        target = self._ask("Target.createTarget", url="about:blank")["targetId"]
        self._session = self._ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Log", "Runtime"):
            self.ask(f"{domain}.enable")

    def open(self, url: str, width: int = 1366) -> None:
        """Load a page in a window so wide, and wait until it is there."""
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
        self.ask("Emulation.setDeviceMetricsOverride", **size)
        assert "errorText" not in (went := self.ask("Page.navigate", url=url)), went
        self._await_load()

    def click(self, text: str) -> str:
        """Follow the link with this text; returns what the page behind it shows."""
        self.evaluate(f"[...document.links].find(link => link.textContent == {json.dumps(text)}).click()")
        self._await_load()
        return str(self.evaluate("document.body.innerText"))

    def evaluate(self, expression: str) -> Any:
        """The value of an expression of JavaScript, whatever the page's own policy is."""
        answer = self.ask("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def ask(self, method: str, **parameters: Any) -> Any:
        return self._ask(method, session=self._session, **parameters)

    def _ask(self, method: str, session: str | None = None, **parameters: Any) -> Any:
        number = next(self._numbers)
        command = {"id": number, "method": method, "params": parameters}
        if session:
            command["sessionId"] = session
        os.write(self._commands, json.dumps(command).encode() + b"\0")
        while (message := self._next()).get("id") != number:
            self._note(message)
        assert "error" not in message, message
        return message["result"]

    def _await_load(self) -> None:
        while (message := self._next()).get("method") != "Page.loadEventFired":
            self._note(message)

    def _note(self, message: dict[str, Any]) -> None:
        if message.get("method") == "Log.entryAdded":
            self.console.append(message["params"]["entry"]["text"])

    def _next(self) -> dict[str, Any]:
        deadline = time.monotonic() + SECONDS
        while b"\0" not in self._rest:
            assert select.select([self._events], [], [], max(deadline - time.monotonic(), 0))[0], "no answer"
            piece = os.read(self._events, 1 << 20)
            assert piece, "the browser has ended"
            self._rest += piece
        message, _, self._rest = self._rest.partition(b"\0")
        found: dict[str, Any] = json.loads(message)
        return found


@contextmanager
def browser(directory: Path) -> Iterator[Browser]:
    """A browser with a profile of its own; without one on this machine the test is skipped, in one line."""
    program = next(filter(None, map(shutil.which, NAMES)), None)
    if program is None:
        pytest.skip("no browser is installed: apt-get install chromium")
    commands, to_browser = os.pipe()
    from_browser, events = os.pipe()
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--no-proxy-server", "--disable-dev-shm-usage"]
    flags += ["--remote-debugging-pipe", f"--user-data-dir={directory / 'profile'}"]
    start = [sys.executable, "-c", START, str(commands), str(events), program, *flags]
    env = {**os.environ, "HOME": str(directory)}
    with (directory / "browser.log").open("wb") as log:
        popen = subprocess.Popen(start, stdout=log, stderr=log, pass_fds=(commands, events), env=env)
    with ended(popen):
        os.close(commands)
        os.close(events)
        try:
            yield Browser(to_browser, from_browser)
        finally:
            os.close(to_browser)
            os.close(from_browser)
