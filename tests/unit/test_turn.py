"""One reading thread computes at a time; none waits for one that waits itself."""

import threading

import pytest

from exporter import turn
from exporter.turn import Turn

HANG = 60.0  # seconds after which a test gives up


def most_at_once(number: int, turns: int, seconds: float) -> int:
    """How many of so many threads, each of which computes `turns` times for `seconds`, did so at once."""
    it, inside, most = Turn(), 0, 0

    def compute() -> None:
        nonlocal inside, most
        for _ in range(turns):
            with it:
                inside += 1
                most = max(most, inside)
                threading.Event().wait(seconds)
                inside -= 1

    threads = [threading.Thread(target=compute) for _ in range(number)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(HANG)
    return most


def test_one_thread_computes_at_a_time() -> None:
    assert most_at_once(8, turns=200, seconds=0) == 1


def test_a_thread_that_waits_lets_others_compute(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turn, "PATIENCE", HANG)
    it, arrived, release, computed = Turn(), threading.Event(), threading.Event(), threading.Event()

    def wait() -> None:
        with it:
            it.wait(lambda: arrived.set() or release.wait(HANG))  # type: ignore[func-returns-value]

    def compute() -> None:
        with it:
            computed.set()

    threads = [threading.Thread(target=wait), threading.Thread(target=compute)]
    threads[0].start()
    assert arrived.wait(HANG)
    threads[1].start()
    assert computed.wait(HANG / 2)
    release.set()
    for thread in threads:
        thread.join(HANG)


def test_a_thread_that_hangs_holds_nobody_up_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turn, "PATIENCE", 0.01)
    it, arrived, release, computed = Turn(), threading.Event(), threading.Event(), threading.Event()

    def hang() -> None:
        with it:
            arrived.set()
            release.wait(HANG)

    def compute() -> None:
        with it:
            computed.set()

    threads = [threading.Thread(target=hang), threading.Thread(target=compute)]
    threads[0].start()
    assert arrived.wait(HANG)
    threads[1].start()
    assert computed.wait(HANG)
    release.set()
    for thread in threads:
        thread.join(HANG)


def test_nobody_computes_out_of_turn_while_turns_are_taken_however_long_he_waits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(turn, "PATIENCE", 0.5)
    assert most_at_once(20, turns=2, seconds=0.05) == 1  # each waits 1 s for its turn


def test_a_thread_that_computes_out_of_turn_takes_turns_again_once_it_has_waited(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    it, order = Turn(), list[str]()
    hangs, goes_on, waited, ends = (threading.Event() for _ in range(4))

    def hang() -> None:
        with it:
            hangs.set()
            goes_on.wait(HANG)

    def compute_out_of_turn() -> None:
        with it:
            goes_on.set()
            hanging.join(HANG)
            monkeypatch.setattr(turn, "PATIENCE", HANG)
            it.wait(lambda: None)
            waited.set()
            ends.wait(HANG)
            order.append("first")

    def compute() -> None:
        with it:
            order.append("second")

    monkeypatch.setattr(turn, "PATIENCE", 0.01)
    hanging, first, second = (threading.Thread(target=work) for work in (hang, compute_out_of_turn, compute))
    hanging.start()
    assert hangs.wait(HANG)
    first.start()
    assert waited.wait(HANG)
    second.start()
    second.join(0.1)
    ends.set()
    for thread in (first, second):
        thread.join(HANG)
    assert order == ["first", "second"]
