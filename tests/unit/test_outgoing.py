"""What leaves for an address that a user chose: it reaches what was checked, and nothing behind our walls."""

import ipaddress
import socket
import ssl
import time
from types import SimpleNamespace

import pytest

from shared import outgoing
from shared.errors import Refused
from shared.outgoing import Unreached
from tests.certificates import certificate
from tests.receiver import Receiver

PRIVATE = (
    "127.0.0.1", "127.9.9.9", "0.0.0.0", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1",
    "192.0.0.8", "198.18.0.1", "203.0.113.5", "224.0.0.1", "240.0.0.1", "255.255.255.255", "::", "::1", "fe80::1",
    "fe80::1%1", "fec0::1", "fc00::1", "fd12::1", "ff02::1", "2001:db8::1", "::ffff:127.0.0.1", "::ffff:8.8.8.8",
    "::8.8.8.8", "64:ff9b::7f00:1", "64:ff9b::808:808", "64:ff9b:1::1", "2002:7f00:1::", "2001::1", "100::1",
)  # fmt: skip
PUBLIC = ("8.8.8.8", "1.1.1.1", "2606:4700:4700::1111", "2a00:1450:4001::1")


@pytest.fixture(autouse=True)
def hosts(monkeypatch):
    """The operator's WEBHOOK_HOSTS, empty until a test says more."""
    named = SimpleNamespace(webhook_hosts="")
    monkeypatch.setattr(outgoing, "settings", lambda: named)
    return named


@pytest.fixture
def receiver():
    with Receiver() as listening:
        yield listening


@pytest.fixture
def names(monkeypatch):
    """{name: the answers that its look-ups give, in turn}; the last one stays."""
    known: dict[str, list[list[str]]] = {}
    real = socket.getaddrinfo

    def look_up(host, port, *args, **more):
        if host not in known:
            return real(host, port, *args, **more)
        now = known[host].pop(0) if len(known[host]) > 1 else known[host][0]
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in now]

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    return known


def post(url, seconds=5.0):
    return outgoing.post(url, b"{}", {"Content-Type": "application/json"}, seconds).status


@pytest.mark.parametrize("address", PRIVATE)
def test_what_is_not_public_is_known(address):
    assert not outgoing.is_public(ipaddress.ip_address(address))


@pytest.mark.parametrize("address", PUBLIC)
def test_what_is_public_is_known(address):
    assert outgoing.is_public(ipaddress.ip_address(address))


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("", "plain ASCII"),
        ("https://hooks.example.com/ x", "plain ASCII"),
        ("https://hooks.example.com/\r\nX-Evil: 1", "plain ASCII"),
        ("https://hööks.example.com/", "plain ASCII"),
        ("https://hooks.example.com\\@10.0.0.1/", "plain ASCII"),
        ("https://hooks.example.com/" + "x" * 2000, "2,000 characters"),
        ("hooks.example.com", "begins with https"),
        ("file:///etc/passwd", "begins with https"),
        ("gopher://hooks.example.com/", "begins with https"),
        ("https:///path", "begins with https"),
        ("https://hooks.example.com:99999/", "no address"),
        ("https://[::1/", "no address"),
        ("https://me:secret@hooks.example.com/", "user or password"),
        ("https://hooks.example.com@10.0.0.1/", "user or password"),
        ("http://hooks.example.com/", "Use https"),
        ("https://hooks.example.com:25/", "Port 25"),
        ("https://169.254.169.254/latest/meta-data", "not public"),
        ("https://[::ffff:169.254.169.254]/", "not public"),
        ("https://[::1]:8443/", "not public"),
    ],
)
def test_an_address_that_breaks_the_rules_is_refused_with_the_way_out(url, said):
    with pytest.raises(Refused, match=said) as refused:
        outgoing.target(url)
    assert refused.value.param == "url"


@pytest.mark.parametrize(
    "url", ["https://hooks.example.com", "https://hooks.example.com:8443/a?b=c", "https://8.8.8.8/"]
)
def test_an_address_that_keeps_them_is_taken(url):
    assert not outgoing.target(url).open


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "127.1", "2130706433", "0x7f000001", "0177.0.0.1", "localhost", "0"]
)
def test_no_spelling_of_a_local_address_is_reached(host):
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.setblocking(False)
        with pytest.raises(Refused, match="not public"):
            post(f"https://{host}:{listening.getsockname()[1]}/")
        with pytest.raises(BlockingIOError):
            listening.accept()  # nobody has come


def test_a_name_with_one_private_address_among_public_ones_is_refused(names, receiver):
    names["mixed.example"] = [["8.8.8.8", "127.0.0.1"]]
    with pytest.raises(Refused, match="not public"):
        post(f"https://mixed.example:{receiver.port}/")


def test_a_name_that_changes_its_mind_after_the_check_gains_nothing(names, receiver, hosts, monkeypatch):
    """DNS rebinding: public when it is checked, local when it is connected to."""
    public = ipaddress.ip_address("127.0.0.2")
    monkeypatch.setattr(outgoing, "is_public", lambda address: address == public)
    monkeypatch.setattr(outgoing, "keep_to_the_rules", lambda _: None)  # plain http, for this receiver
    names["rebound.example"] = [["127.0.0.2"], ["127.0.0.1"]]
    with Receiver("127.0.0.2", receiver.port) as checked:
        assert post(f"http://rebound.example:{receiver.port}/hook") == 204
        assert len(checked.received) == 1
    assert receiver.received == []
    assert names["rebound.example"] == [["127.0.0.1"]]  # one look-up


def test_a_host_that_the_operator_names_is_reached_at_that_port_alone(receiver, hosts):
    hosts.webhook_hosts = f"other.example, {receiver.at}"
    assert post(receiver.url) == 204
    assert receiver.received[0].path == "/hook"
    hosts.webhook_hosts = "127.0.0.1"
    with pytest.raises(Refused):
        post(receiver.url)
    assert outgoing.target("http://127.0.0.1/").open
    assert len(receiver.received) == 1


def test_an_address_of_ipv6_stands_in_brackets(hosts):
    hosts.webhook_hosts = "[::1]:8080"
    found = outgoing.target("http://[::1]:8080/a?b=c")
    assert (found.host, found.open) == ("::1", True)
    assert outgoing.head(found, 2, {}).startswith(b"POST /a?b=c HTTP/1.1\r\nHost: [::1]:8080\r\n")
    assert not outgoing.opened("::1", 80)


def test_a_redirect_is_an_answer_and_leads_nowhere(receiver, hosts):
    hosts.webhook_hosts = receiver.at
    receiver.answers = [302]
    assert post(receiver.url) == 302
    assert [one.path for one in receiver.received] == ["/hook"]


def test_a_receiver_that_drips_is_left_when_the_time_is_up(receiver, hosts):
    hosts.webhook_hosts = receiver.at

    def drip(handler):
        for byte in b"HTTP/1.1 200 OK\r\nX-Slow: " + b"x" * 400:
            handler.wfile.write(bytes([byte]))
            time.sleep(0.02)

    receiver.then = drip
    began = time.monotonic()
    with pytest.raises(Unreached, match=r"within 0\.5 seconds"):
        post(receiver.url, seconds=0.5)
    assert time.monotonic() - began < 2


def test_a_name_server_that_does_not_answer_costs_no_more_than_the_time(monkeypatch, hosts):
    hosts.webhook_hosts = "slow.example"
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: time.sleep(2))
    began = time.monotonic()
    with pytest.raises(Unreached, match="within"):
        post("http://slow.example/", seconds=0.3)
    assert time.monotonic() - began < 1.5


def test_of_an_endless_answer_only_the_beginning_is_read(receiver, hosts):
    hosts.webhook_hosts = receiver.at

    def endless(handler):
        handler.wfile.write(b"HTTP/1.1 200 OK\r\n")
        try:
            while True:
                handler.wfile.write(b"X-More: " + b"x" * 1000 + b"\r\n")
        except OSError:
            pass

    receiver.then = endless
    assert post(receiver.url, seconds=3) == 200


def test_what_is_no_http_and_what_is_not_there_are_said(receiver, hosts):
    hosts.webhook_hosts = f"{receiver.at},127.0.0.1:1,nowhere.invalid"
    receiver.then = lambda handler: handler.wfile.write(b"220 mail.example ESMTP\r\n")
    with pytest.raises(Unreached, match="not HTTP"):
        post(receiver.url)
    with pytest.raises(Unreached, match="Connection refused"):
        post("http://127.0.0.1:1/")
    with pytest.raises(Unreached, match=r"no host «nowhere\.invalid»"):
        post("http://nowhere.invalid/")


@pytest.fixture
def certified(receiver, tmp_path, monkeypatch):
    """The receiver speaks TLS as hooks.test, by a certificate that this process trusts; which name was asked for."""
    key, made = certificate(tmp_path, "DNS:hooks.test")
    monkeypatch.setenv("SSL_CERT_FILE", str(made))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(made, key)
    asked: list[str] = []
    context.sni_callback = lambda _sock, name, _context: asked.append(name)
    receiver.server.socket = context.wrap_socket(receiver.server.socket, server_side=True)
    return asked


def test_over_tls_the_name_is_asked_for_and_proved_at_the_address_that_was_checked(
    certified, receiver, names, hosts
):
    hosts.webhook_hosts = f"hooks.test:{receiver.port}"
    names["hooks.test"] = [["127.0.0.1"]]
    assert post(f"https://hooks.test:{receiver.port}/x") == 204
    assert certified == ["hooks.test"]
    assert receiver.received[0].headers["host"] == f"hooks.test:{receiver.port}"


def test_another_names_certificate_is_not_accepted(certified, receiver, names, hosts):
    hosts.webhook_hosts = f"other.test:{receiver.port}"
    names["other.test"] = [["127.0.0.1"]]
    with pytest.raises(Unreached, match="certificate is not accepted"):
        post(f"https://other.test:{receiver.port}/")
    assert receiver.received == []
