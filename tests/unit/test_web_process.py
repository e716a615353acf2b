"""The server as a process: its end, its signals, where it listens, floods that it has to itself."""

import contextlib
import os
import re
import select
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from exporter.web import server
from tests.webserver import awaited, closed_by_peer, exchange, slow_reader, was_dropped

pytestmark = pytest.mark.servers

# --- the end ---

SCRIPT = """
import logging, os, resource, sys, time
size, gate, scarce, held = (int(os.environ["SIZE"]), os.environ["GATE"],
                            int(os.environ["DESCRIPTORS"]), int(os.environ["HELD"]))
if scarce:
    resource.setrlimit(resource.RLIMIT_NOFILE, (scarce, scarce))
others = [open("/dev/null") for _ in range(held)]
from exporter.modus.contact import Contact
from exporter.web.listeners import open_listeners, parse
from exporter.web.pages import serve
from exporter.web.site import Site
from exporter.web.errors import WebError
from exporter.web.webconfig import WebConfigFile
from tests.webserver import STATUS, in_threads
class Lines(logging.Formatter):
    def format(self, record):
        return f"{record.message if hasattr(record, 'message') else record.getMessage()} {record.fields}"
handler = logging.StreamHandler(sys.stdout)
handler.setFormatter(Lines())
logging.basicConfig(level=logging.INFO, handlers=[handler])
def scrape(timeout, form):
    os.write(1, b"scraping\\n")  # whole lines, also from several threads at once
    time.sleep(min(timeout, 60) if size and timeout < 900 else 0)
    for file in [open("/dev/null") for _ in range(scarce // 3)]:  # as connections to the API
        file.close()
    return [b"#" + b"x" * 999 + b"\\n"] * (size or 9_000)
def reload():
    print("reloading", flush=True)
    if gate:
        open(gate).close()  # a FIFO: waits for its other end
    raise ValueError("config.yaml: no")
try:
    opened = open_listeners(parse(sys.argv[1:]), systemd_socket="LISTEN_FDS" in os.environ)
    serve(opened, site=Site(), scrape=in_threads(scrape), default_timeout=lambda: 1000, reload=reload,
          contact=Contact, status=lambda: STATUS, web_config=WebConfigFile(None))
except WebError as exc:
    sys.exit(f"{exc}")
print("served", flush=True)
os._exit(0)  # as the command line does: nobody waits for a scrape that is still at work
"""


@contextlib.contextmanager
def process(*addresses, size=20_000, gate="", descriptors=0, held=0, command=(), **options):
    """The server as a process of its own; its exposition has `size` kB, or 9,000 at once if `size` is 0."""
    settings = {"SIZE": str(size), "GATE": str(gate), "DESCRIPTORS": str(descriptors), "HELD": str(held)}
    with subprocess.Popen(
        [*command, sys.executable, "-c", SCRIPT, *(addresses or ["127.0.0.1:0"])],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={"PYTHONPATH": str(Path(server.__file__).parents[2]), "PATH": os.defpath, **settings},
        **options,
    ) as child:
        try:
            yield child
        finally:
            child.kill()


def port_of(child):
    return int(re.search(r"listening .*'address': '127.0.0.1:(\d+)'", child.stdout.readline())[1])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_with_exit_code_0(number):
    with process() as child:
        assert exchange(port_of(child), b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        child.send_signal(number)
        out, err = child.communicate(timeout=20)
    assert (child.returncode, err) == (0, "")
    assert out.splitlines() == [f"stopping {{'signal': '{number.name}'}}", "served"]


def test_a_scrape_and_slow_clients_do_not_hold_up_the_end():
    with process() as child, contextlib.ExitStack() as stack:
        port = port_of(child)
        stack.enter_context(slow_reader(port))
        assert child.stdout.readline() == "scraping\n"
        slow = [stack.enter_context(socket.create_connection(("127.0.0.1", port))) for _ in range(20)]
        request = b"GET /metrics HTTP/1.1\r\nHost: x\r\nX-Prometheus-Scrape-Timeout-Seconds: 60\r\n\r\n"
        for sock in slow[:10]:
            sock.sendall(request)
        assert child.stdout.readline() == "scraping\n"
        child.send_signal(signal.SIGTERM)
        begin = time.monotonic()
        child.communicate(timeout=20)
        assert time.monotonic() - begin < 5  # what is promised to operators
    assert child.returncode == 0


def test_a_scrape_that_ends_in_time_is_answered_after_the_signal():
    with process() as child:
        with socket.create_connection(("127.0.0.1", port_of(child))) as sock:
            sock.sendall(
                b"GET /metrics HTTP/1.1\r\nHost: x\r\nX-Prometheus-Scrape-Timeout-Seconds: 1\r\n\r\n"
            )
            assert child.stdout.readline() == "scraping\n"
            child.send_signal(signal.SIGTERM)
            sock.settimeout(10)
            assert sock.recv(65536).startswith(b"HTTP/1.1 200 OK")
        child.communicate(timeout=20)
    assert child.returncode == 0


def test_sighup_reloads_and_a_failure_is_one_line():
    with process() as child:
        port_of(child)
        child.send_signal(signal.SIGHUP)
        assert child.stdout.readline() == "reloading\n"
        assert child.stdout.readline() == "reload failed {'error': 'ValueError: config.yaml: no'}\n"
        child.send_signal(signal.SIGTERM)
        child.communicate(timeout=20)
    assert child.returncode == 0


def test_an_address_in_use_ends_it_with_one_line():
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        process(f"127.0.0.1:{listener.getsockname()[1]}") as child,
    ):
        out, err = child.communicate(timeout=20)
    assert (child.returncode, out, err.count("\n")) == (1, "", 1)
    assert "the port is in use" in err


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("unshare"), reason="needs root and unshare")
def test_as_process_1_a_signal_ends_it():
    with process(command=["unshare", "--pid", "--fork", "--kill-child"]) as outer:
        if not (line := outer.stdout.readline()):
            pytest.skip("this machine does not allow a PID namespace")
        assert line.startswith("listening")
        with open(f"/proc/{outer.pid}/task/{outer.pid}/children") as file:
            inner = int(file.read())
        os.kill(inner, signal.SIGTERM)
        assert outer.wait(20) == 0


def test_signals_during_a_reload_ask_for_one_more(tmp_path):
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    with process(gate=gate) as child:
        port = port_of(child)
        child.send_signal(signal.SIGHUP)
        assert child.stdout.readline() == "reloading\n"
        for _ in range(8):
            child.send_signal(signal.SIGHUP)
            assert get(port, "/-/healthy").endswith(b"healthy.\n")  # the signal was taken
        open(gate, "w").close()
        assert child.stdout.readline().startswith("reload failed")
        assert child.stdout.readline() == "reloading\n"
        open(gate, "w").close()
        assert child.stdout.readline().startswith("reload failed")
        child.send_signal(signal.SIGTERM)
        out, _ = child.communicate(timeout=20)
    assert out.splitlines() == ["stopping {'signal': 'SIGTERM'}", "served"]


# --- where it listens ---


def get(port, path, seconds=10, host="127.0.0.1"):
    return exchange(
        port, f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode(), seconds, host
    )


def test_it_listens_on_several_addresses():
    with process("127.0.0.1:0", "127.0.0.2:0") as child:
        first = port_of(child)
        second = int(re.search(r"'127.0.0.2:(\d+)'", child.stdout.readline())[1])
        assert get(first, "/-/healthy").startswith(b"HTTP/1.1 200 ")
        assert get(second, "/-/healthy", host="127.0.0.2").startswith(b"HTTP/1.1 200 ")


def test_it_takes_the_sockets_that_systemd_passes():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        passed = f'exec 3<&{listener.fileno()}; LISTEN_PID=$$ LISTEN_FDS=1 exec "$@"'
        with process(
            "127.0.0.1:1", command=["bash", "-c", passed, "bash"], pass_fds=[listener.fileno()]
        ) as child:
            assert port_of(child) == port
            assert get(port, "/-/healthy").startswith(b"HTTP/1.1 200 ")


# --- scarce things ---


def test_more_idle_clients_than_descriptors_do_not_keep_the_scraper_out():
    with process(descriptors=64, size=0) as child, contextlib.ExitStack() as stack:
        port = port_of(child)
        for _ in range(80):
            stack.enter_context(socket.create_connection(("127.0.0.1", port)))
        assert len(get(port, "/metrics")) > 9_000_000  # which needs some descriptors, too


def test_when_others_have_taken_the_descriptors_idle_clients_make_room_and_one_line_says_so():
    with process(descriptors=64, held=46) as child, contextlib.ExitStack() as stack:
        port = port_of(child)
        idle = [stack.enter_context(socket.create_connection(("127.0.0.1", port))) for _ in range(40)]
        assert get(port, "/-/healthy").startswith(b"HTTP/1.1 200 ")
        assert not closed_by_peer(idle[-1], seconds=0.1)
        child.send_signal(signal.SIGTERM)
        out, _ = child.communicate(timeout=20)
    assert out.count("cannot accept a connection {'error': 'OSError: [Errno 24] Too many open files'}\n") == 1


def test_when_all_descriptors_serve_scrapes_the_next_client_is_refused_instead_of_left_hanging():
    with process(descriptors=64, held=46) as child, contextlib.ExitStack() as stack:
        port = port_of(child)
        for number in range(1, 16):
            sock = stack.enter_context(socket.create_connection(("127.0.0.1", port)))
            timeout = f"X-Prometheus-Scrape-Timeout-Seconds: {100 + number}"
            sock.sendall(f"GET /metrics HTTP/1.1\r\nHost: x\r\n{timeout}\r\n\r\n".encode())
            while sock not in select.select([child.stdout, sock], [], [], 10)[0]:
                if child.stdout.readline() == "scraping\n":
                    break
            else:
                break
        assert closed_by_peer(sock)
        assert number > 2


class SlowReaders(threading.Thread):
    """Clients that ask for the metrics, take next to nothing, and come again as soon as they are dropped."""

    def __init__(self, port, number):
        super().__init__()
        self.port, self.number = port, number
        self.over = threading.Event()
        self.came = 0

    def run(self):
        with contextlib.ExitStack() as stack:
            socks = [None] * self.number
            while not self.over.wait(0.01):
                for index, sock in enumerate(socks):
                    if sock is None or was_dropped(sock):
                        socks[index] = self._ask(stack)
            # the stack closes them

    def _ask(self, stack):
        self.came += 1
        sock = stack.enter_context(socket.socket())
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.connect(("127.0.0.1", self.port))
        sock.sendall(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
        return sock


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="needs /proc")
def test_slow_readers_who_come_again_and_again_neither_grow_it_nor_starve_the_scraper():
    with process(size=0) as child:
        port = port_of(child)
        output = threading.Thread(target=child.stdout.read)
        output.start()
        slow = SlowReaders(port, 200)
        slow.start()
        try:
            awaited(lambda: slow.came > 200)
            for _ in range(5):
                assert len(get(port, "/metrics")) > 9_000_000  # within the usual timeout of 10 s
                assert get(port, "/-/healthy").startswith(b"HTTP/1.1 200 ")
            with open(f"/proc/{child.pid}/status") as status:
                most = int(re.search(r"VmHWM:\s+(\d+)", status.read())[1])
        finally:
            slow.over.set()
            slow.join()
            child.kill()
            output.join()
    assert most < 250_000  # kB: some 50 for Python, 8 answers that are kept and 2 that are written, twice
