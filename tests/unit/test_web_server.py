"""The server: floods, slow readers, the end by signal."""

import contextlib
import os
import re
import select
import socket
import struct
import threading
import time

import pytest

from exporter.web import connection, places, scrapes
from tests.webfiles import TLS
from tests.webserver import DEFAULT_TIMEOUT, awaited, closed_by_peer, running, slow_reader, was_dropped


def long_pass(timeout, form):
    """A pass whose exposition is some 16 MB: more than the buffers of any socket."""
    return (b'modus_agent_runs{agent_name="%05d%s"} 1.0\n' % (n, b"x" * 4_000) for n in range(4_000))


@pytest.mark.parametrize("secure", [False, True])
def test_a_client_that_does_not_take_its_answer_is_dropped(ca, write, monkeypatch, secure):
    monkeypatch.setattr(connection, "ANSWER_SECONDS", 1.0)
    config = write(TLS % "") if secure else None
    with (
        running(scrape=long_pass, config=config) as site,
        slow_reader(site.port, ca.client() if secure else None) as sock,
    ):
        assert not was_dropped(sock)
        awaited(lambda: was_dropped(sock))


def test_a_client_that_trickles_its_answer_is_dropped_too(monkeypatch):
    monkeypatch.setattr(connection, "ANSWER_SECONDS", 2.0)
    with running(scrape=long_pass) as site, slow_reader(site.port) as sock:
        taken = 0
        with contextlib.suppress(ConnectionResetError):
            while piece := sock.recv(65536):  # never idle, but too slow
                taken += len(piece)
                time.sleep(0.002)
        assert 0 < taken < 16_000_000


@pytest.mark.parametrize("secure", [False, True])
def test_only_a_few_answers_wait_for_slow_readers(ca, write, monkeypatch, secure):
    monkeypatch.setattr(places, "MAX_UNREAD", 3)
    tls = ca.client() if secure else None
    with (
        running(scrape=long_pass, config=write(TLS % "") if secure else None) as site,
        contextlib.ExitStack() as stack,
    ):
        slow = [stack.enter_context(slow_reader(site.port, tls)) for _ in range(8)]
        awaited(lambda: sum(map(was_dropped, slow)) == 5)
        assert not any(map(was_dropped, slow[5:]))
        assert site.get("/metrics", tls=tls).data.count(b"\n") == 4_000


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="needs /proc")
def test_300_slow_clients_neither_starve_a_scrape_nor_grow_the_process(ca, write):
    def footprint():
        with open("/proc/self/status") as status:
            resident = int(re.search(r"VmRSS:\s+(\d+)", status.read())[1])
        return resident, threading.active_count(), len(os.listdir("/proc/self/fd"))

    for config in (None, write(TLS % "")):
        with running(config=config) as site, contextlib.ExitStack() as stack:
            tls = ca.client() if config else None
            assert site.get("/metrics", tls=tls).status == 200
            before = footprint()
            for number in range(300):
                sock = stack.enter_context(socket.create_connection(("127.0.0.1", site.port)))
                with contextlib.suppress(ConnectionError):
                    sock.sendall((b"", b"\x16\x03\x01", b"GET /metrics HT")[number % 3])
            assert site.get("/metrics", tls=tls).status == 200
            after = footprint()
            assert after[0] - before[0] < 100_000  # kB
            assert after[1] - before[1] <= 2
            assert after[2] - before[2] - 300 <= 256  # the server holds fewer than there are


@pytest.mark.parametrize("secure", [False, True])
def test_when_all_places_are_taken_the_longest_idle_makes_room(ca, write, monkeypatch, secure):
    monkeypatch.setattr(places, "MAX_CONNECTIONS", 5)
    with running(config=write(TLS % "") if secure else None) as site, contextlib.ExitStack() as stack:
        idle = [stack.enter_context(socket.create_connection(("127.0.0.1", site.port))) for _ in range(20)]
        assert site.get("/metrics", tls=ca.client() if secure else None).status == 200
        assert all(closed_by_peer(sock) for sock in idle[:15])
        assert not closed_by_peer(idle[-1], seconds=0.1)


def test_a_request_that_is_being_answered_never_makes_room(monkeypatch):
    monkeypatch.setattr(places, "MAX_CONNECTIONS", 3)
    entered, release = threading.Semaphore(0), threading.Event()
    with running(scrape=lambda timeout, form: entered.release() or (release.wait(20) and [])) as site:
        answers = []
        scrapers = [
            threading.Thread(target=lambda: answers.append(site.get("/metrics").status)) for _ in range(3)
        ]
        for scraper in scrapers:
            scraper.start()
            assert entered.acquire(timeout=10)
        with socket.create_connection(("127.0.0.1", site.port)) as sock:
            assert closed_by_peer(sock)
        release.set()
        for scraper in scrapers:
            scraper.join(10)
        assert answers == [200, 200, 200]


def asks(site, stack, number, source="127.0.0.1"):
    """A client that asks for a scrape that nobody else asks for, unless for the same number."""
    sock = stack.enter_context(site.connect(source))
    timeout = f"X-Prometheus-Scrape-Timeout-Seconds: {number}"
    sock.sendall(f"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{timeout}\r\n\r\n".encode())
    return sock


@pytest.fixture
def held():
    """A scrape that waits for `release`, and a list with an entry for each that has begun."""
    entered, release = [], threading.Event()

    def scrape(timeout, form):
        entered.append(timeout)
        release.wait(20)
        return [b"# %d\n" % len(entered)]

    yield scrape, entered, release
    release.set()


def test_scrapes_at_once_are_bounded_and_more_are_told_to_come_back(held):
    scrape, entered, release = held
    with running(scrape=scrape) as site, contextlib.ExitStack() as stack:
        flood = [asks(site, stack, 100 + number) for number in range(45)]
        awaited(lambda: len(select.select(flood, [], [], 1)[0]) == 13)  # 16 at work, 16 wait
        for sock in select.select(flood, [], [], 1)[0]:
            answer = sock.recv(1000)
            assert answer.startswith(b"HTTP/1.1 503 ")
            assert b"Retry-After: 1\r\n" in answer
        awaited(lambda: len(entered) == 16)
        assert site.get("/-/healthy").status == 200
        assert len(entered) == 16
        other = asks(site, stack, 99, source="127.0.0.2")  # one client address takes half at most
        awaited(lambda: len(entered) == 17)
        release.set()
        awaited(lambda: len(select.select([*flood, other], [], [], 1)[0]) == 46)
        assert other.recv(100).startswith(b"HTTP/1.1 200 ")


def test_a_crowd_that_asks_for_the_same_shares_a_scrape(held):
    scrape, entered, release = held
    with running(scrape=scrape) as site, contextlib.ExitStack() as stack:
        crowd = [asks(site, stack, 100) for _ in range(100)]
        awaited(lambda: len(entered) == 4)
        assert site.get("/-/healthy").status == 200
        release.set()
        answers = [b"".join(iter(lambda sock=sock: sock.recv(4096), b"")) for sock in crowd]
    assert all(answer.startswith(b"HTTP/1.1 200 ") for answer in answers)
    assert len(entered) == 5


@pytest.mark.parametrize(("same", "texts"), [(True, 1), (False, 2)])
def test_scrapes_that_are_the_same_share_the_text_and_its_compression(same, texts):
    read, written, release = [], [], threading.Event()

    def scrape(timeout, form):
        read.append(timeout)
        return pieces(timeout)

    def pieces(timeout):
        yield b"# first\n"
        written.append(timeout)
        release.wait(20)
        yield b"# second\n"

    with (
        running(scrape=scrape, key=lambda: "any" if same else object()) as site,
        contextlib.ExitStack() as stack,
    ):
        socks = [asks(site, stack, timeout) for timeout in (10, 25)]  # each has a time of its own
        awaited(lambda: len(read) == 2)
        for _ in range(3):
            assert site.get("/-/healthy").status == 200
        awaited(lambda: len(written) == texts)
        release.set()
        answers = [b"".join(iter(lambda sock=sock: sock.recv(4096), b"")) for sock in socks]
    assert all(answer.endswith(b"# first\n# second\n") for answer in answers)
    assert len(written) == texts


def test_who_leaves_while_he_waits_for_a_place_costs_no_scrape(held, monkeypatch):
    scrape, entered, release = held
    monkeypatch.setattr(scrapes, "MAX_ALIKE", 1)
    with running(scrape=scrape) as site, contextlib.ExitStack() as stack:
        first, second = asks(site, stack, 100), asks(site, stack, 100)
        assert site.get("/-/healthy").status == 200
        second.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        second.close()  # without it, that might only say that nothing more comes
        assert site.get("/-/healthy").status == 200
        release.set()
        assert closed_by_peer(first)
        assert len(entered) == 1


@pytest.mark.parametrize(("named", "allowed"), [(100, 100), ("none", DEFAULT_TIMEOUT)])
def test_the_time_that_a_scrape_waited_for_its_place_is_taken_off_its_timeout(
    held, monkeypatch, named, allowed
):
    scrape, entered, release = held
    monkeypatch.setattr(scrapes, "MAX_ALIKE", 1)
    with running(scrape=scrape) as site, contextlib.ExitStack() as stack:
        asks(site, stack, named)
        awaited(lambda: entered)
        waits = asks(site, stack, named)
        threading.Event().wait(0.1)
        release.set()
        assert closed_by_peer(waits)
    assert entered[1] < allowed - 0.05


def test_a_scrape_whose_time_is_over_before_it_begins_is_told_so(held, monkeypatch):
    scrape, entered, release = held
    monkeypatch.setattr(scrapes, "MAX_ALIKE", 1)
    with running(scrape=scrape) as site, contextlib.ExitStack() as stack:
        asks(site, stack, 0.01)
        awaited(lambda: entered)
        waits = asks(site, stack, 0.01)
        threading.Event().wait(0.1)
        release.set()
        answer = b"".join(iter(lambda: waits.recv(4096), b""))
    assert answer.startswith(b"HTTP/1.1 503 ")
    assert b"Retry-After: 1\r\n" in answer
    assert answer.endswith(b"\r\n\r\nthe time for the scrape was over before it began\n")


def test_health_is_answered_while_texts_are_written():
    """Nothing that takes long is done between two requests: not even the pieces are joined there."""
    release = threading.Event()

    def pieces(timeout, form):
        yield b"first"
        release.wait(20)

    with running(scrape=pieces) as site, contextlib.ExitStack() as stack:
        waiting = [asks(site, stack, 100 + number) for number in range(5)]
        assert [site.get("/-/healthy").status for _ in range(3)] == [200] * 3
        release.set()
        assert all(sock.recv(100).startswith(b"HTTP/1.1 200 ") for sock in waiting)


def test_slow_readers_push_out_their_own_kind_before_others(monkeypatch):
    monkeypatch.setattr(places, "MAX_UNREAD", 3)
    with running(scrape=long_pass) as site, contextlib.ExitStack() as stack:
        other = stack.enter_context(slow_reader(site.port, source="127.0.0.2"))
        slow = [stack.enter_context(slow_reader(site.port)) for _ in range(6)]
        awaited(lambda: sum(map(was_dropped, slow)) == 4)
        assert not was_dropped(other)


def test_idle_clients_push_out_their_own_kind_before_others(monkeypatch):
    monkeypatch.setattr(places, "MAX_CONNECTIONS", 5)
    with running() as site, contextlib.ExitStack() as stack:
        other = stack.enter_context(site.connect("127.0.0.2"))
        idle = [stack.enter_context(site.connect()) for _ in range(20)]
        assert all(closed_by_peer(sock) for sock in idle[:16])
        assert not closed_by_peer(other, seconds=0.1)


def test_an_answer_that_many_read_slowly_is_held_once(monkeypatch, held):
    """Those who share a scrape count as one: none of them has to give way."""
    monkeypatch.setattr(places, "MAX_UNREAD", 3)
    monkeypatch.setattr(scrapes, "MAX_ALIKE", 1)
    scrape, entered, release = held
    with (
        running(scrape=lambda *args: [*scrape(*args), b"x" * 9_000_000]) as site,
        contextlib.ExitStack() as stack,
    ):
        crowd = [asks(site, stack, 100) for _ in range(10)]
        awaited(lambda: entered)
        assert site.get("/-/healthy").status == 200  # all of the crowd have been heard
        release.set()
        assert all(sock.recv(100).startswith(b"HTTP/1.1 200 ") for sock in crowd)
        assert len(entered) == 2
        assert site.get("/metrics").data.endswith(b"x")
        assert not any(map(was_dropped, crowd))


def test_a_reader_has_his_time_before_he_gives_way_and_the_next_answer_waits_for_it(monkeypatch):
    monkeypatch.setattr(places, "MAX_UNREAD", 1)
    monkeypatch.setattr(places, "TAKING_SECONDS", 3600)
    with running(scrape=long_pass) as site, contextlib.ExitStack() as stack:
        first = stack.enter_context(slow_reader(site.port))
        second = asks(site, stack, 100)
        assert select.select([second], [], [], 0.5)[0] == []
        assert not was_dropped(first)
        first.close()
        assert second.recv(100).startswith(b"HTTP/1.1 200 ")


def test_who_takes_his_answer_gives_way_after_those_who_do_not(monkeypatch):
    monkeypatch.setattr(places, "MAX_UNREAD", 2)
    over = threading.Event()

    def take(sock):
        while not over.wait(0.02):
            sock.recv(20_000)

    with running(scrape=long_pass) as site, contextlib.ExitStack() as stack:
        taking = stack.enter_context(slow_reader(site.port))
        reader = threading.Thread(target=take, args=[taking])
        reader.start()
        try:
            slow = stack.enter_context(slow_reader(site.port))
            stack.enter_context(slow_reader(site.port))
            assert (was_dropped(taking), was_dropped(slow)) == (False, True)
        finally:
            over.set()
            reader.join()
