"""The faults that the chaos tests put between programs and servers, each on real sockets."""

import http.client
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from tests.chaos.proxy import Answer, Cut, Delay, Flip, Proxy, Refuse, Reset, Slow, Swallow

BODY = bytes(range(200)) * 100


class Serve(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Length", str(len(BODY)))
        self.end_headers()
        self.wfile.write(BODY)

    def log_message(self, format, *args):
        pass


@pytest.fixture(scope="module")
def proxy():
    running = Proxy()
    yield running
    running.close()


@pytest.fixture(scope="module")
def server():
    running = ThreadingHTTPServer(("127.0.0.1", 0), Serve)
    threading.Thread(target=running.serve_forever, daemon=True).start()
    yield running.server_port
    running.shutdown()
    running.server_close()


@pytest.fixture
def link(proxy, server):
    return proxy.link(server)


def get(link, path="/step-1", timeout=3.0):
    wire = http.client.HTTPConnection("127.0.0.1", link.port, timeout=timeout)
    try:
        wire.request("GET", path)
        answer = wire.getresponse()
        return answer.status, answer.read()
    finally:
        wire.close()


def test_without_a_fault_everything_passes_as_it_was(link):
    assert get(link) == (200, BODY)


def test_a_refusal_ends_when_it_is_healed(link):
    link.set(Refuse())
    with pytest.raises((OSError, http.client.HTTPException)):
        get(link)
    link.heal()
    assert get(link) == (200, BODY)


def test_a_reset_breaks_what_is_open_and_nothing_new(link):
    with socket.create_connection(("127.0.0.1", link.port), timeout=3) as wire:
        wire.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        assert wire.recv(10)
        link.set(Reset())
        with pytest.raises(ConnectionResetError):
            list(iter(lambda: wire.recv(65_536), b""))
    assert get(link) == (200, BODY)


def test_in_a_black_hole_nothing_comes_and_the_connection_is_reset_after_it(link):
    link.set(Swallow())
    with socket.create_connection(("127.0.0.1", link.port), timeout=0.3) as wire:
        wire.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        with pytest.raises(TimeoutError):
            wire.recv(1)
        link.heal()
        wire.settimeout(3)
        with pytest.raises(ConnectionResetError):
            wire.recv(1)


def test_an_answer_of_the_proxys_own_comes_at_the_rate_asked_for(link):
    link.set(Answer(503, rate=0.5))
    told = [get(link)[0] for _ in range(40)]
    assert set(told) == {200, 503}
    assert 8 < told.count(503) < 32


def test_a_cut_answer_is_seen_as_incomplete(link):
    link.set(Cut(after=1000))
    with pytest.raises((http.client.IncompleteRead, ConnectionError)):
        get(link)
    assert get(link, "/other") == (200, BODY)


def test_a_flipped_byte_is_one_byte(link):
    link.set(Flip())
    status, body = get(link)
    assert status == 200
    assert 1 <= sum(a != b for a, b in zip(body, BODY, strict=True)) <= 3


@pytest.mark.parametrize("fault", [Delay(0.2), Slow(60_000)])
def test_a_slow_link_is_slow(link, fault):
    link.set(fault)
    began = time.monotonic()
    assert get(link) == (200, BODY)
    assert time.monotonic() - began >= 0.2
