"""Requests to addresses that users choose: they reach public machines and nothing behind our own walls.

The name is resolved once; every address that it leads to is checked, and the connection goes to the very
address that was checked, so that a name which changes its mind meanwhile (DNS rebinding) gains nothing. TLS
is asked for by the name. Redirects are not followed, no proxy is used, one deadline counts for everything,
and of the answer only the head is read. The operator may open single hosts by WEBHOOK_HOSTS.
"""

import re
import socket
import ssl
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta
from email.utils import parsedate_to_datetime
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from urllib.parse import SplitResult, urlsplit

from shared.columns import now
from shared.errors import Refused
from shared.settings import settings

SECONDS = 10.0  # for the name, the connection, the request and the answer together
MOST_HEAD = 8192  # bytes of an answer after which no more are read
MOST_ADDRESSES = 4  # of a name that are tried
LONGEST_URL = 2000
HOST = re.compile(r"[a-z0-9_]([a-z0-9_.-]{0,251}[a-z0-9_])?\.?|[0-9a-f:.]+")
RETRY_AFTER = re.compile(rb"(?im)^retry-after:[ \t]*([^\r\n]{1,64}?)[ \t]*\r?$")
STATUS = re.compile(rb"HTTP/1\.[01] (\d{3})[ \r\n]")
UNICAST = ip_network("2000::/3")  # without IPv4 inside IPv6 and NAT64: those stand for, or lead to, anything
SPECIAL = tuple(  # protocol assignments, relays, Teredo, 6to4, documentation
    ip_network(net) for net in ("192.0.0.0/24", "192.88.99.0/24", "2001::/23", "2002::/16", "3fff::/20")
)
Address = IPv4Address | IPv6Address


class Unreached(Exception):
    """Why a request had no answer, as a sentence."""


@dataclass(frozen=True)
class Answer:
    """What came back. `pause`: for how long it asks to be left alone."""

    status: int
    pause: timedelta | None = None


@dataclass(frozen=True)
class Target:
    """Where a URL leads. `open`: the operator has named its host, which may be a private one."""

    scheme: str
    host: str
    port: int
    path: str
    open: bool


def target(url: str) -> Target:
    """A URL by its rules, before its name is looked up. Raises Refused with what to change."""
    if len(url) > LONGEST_URL or not re.fullmatch(r"[!-~]+", url) or "\\" in url:
        raise wrong("The address has at most 2,000 characters, all of them plain ASCII without spaces.")
    try:
        parts = urlsplit(url)
        host, port = (parts.hostname or "").rstrip("."), parts.port
    except ValueError:
        raise wrong("This is no address. Example: https://hooks.example.com/burnish") from None
    if parts.scheme not in ("https", "http") or not HOST.fullmatch(host):
        raise wrong("The address begins with https:// and a host. Example: https://hooks.example.com/burnish")
    if "@" in parts.netloc:
        raise wrong("The address holds a user or password. Leave them out: the signature says who sends.")
    port = port or (443 if parts.scheme == "https" else 80)
    found = Target(parts.scheme, host, port, path(parts), opened(host, port))
    if not found.open:
        keep_to_the_rules(found)
    return found


def path(parts: SplitResult) -> str:
    """The path and query as they stand in a request line."""
    return (parts.path or "/") + (f"?{parts.query}" if parts.query else "")


def opened(host: str, port: int) -> bool:
    """Whether the operator has named this host: alone, for 80 and 443, or with this port."""
    named = {entry.strip().lower() for entry in settings().webhook_hosts.split(",")}
    literal = f"[{host}]" if ":" in host else host
    return f"{literal}:{port}" in named or (port in (80, 443) and literal in named)


def keep_to_the_rules(found: Target) -> None:
    """What holds for a host that the operator has not named. Raises Refused."""
    if found.scheme != "https":
        raise wrong("The address begins with http://, which anybody on the way can read. Use https://.")
    if found.port != 443 and found.port < 1024:
        raise wrong(f"Port {found.port} belongs to another service. Use 443, or one from 1024 up.")
    if is_literal(found.host) and not is_public(ip_address(found.host)):
        raise wrong(not_public(found.host))


def wrong(sentence: str) -> Refused:
    """The refusal of a URL."""
    return Refused(sentence, param="url")


def is_literal(host: str) -> bool:
    """Whether it is an address rather than a name."""
    try:
        ip_address(host)
    except ValueError:
        return False
    return True


def is_public(address: Address) -> bool:
    """Whether the address is one of the whole internet's: not private, local, shared, reserved or a tunnel."""
    if isinstance(address, IPv6Address) and (address.scope_id or address not in UNICAST):
        return False
    if any(address in net for net in SPECIAL):
        return False
    return address.is_global and not (address.is_multicast or address.is_reserved or address.is_unspecified)


def not_public(host: str) -> str:
    """The sentence for a host behind walls; which address it leads to is not told."""
    return (
        f"«{host}» leads to an address that is not public. Use a public one, or ask the operator to name the "
        "host in WEBHOOK_HOSTS."
    )


def post(url: str, body: bytes, headers: Mapping[str, str], seconds: float = SECONDS) -> Answer:
    """Sends the body and returns what the head of the answer says. Raises Refused and Unreached with a sentence."""
    ends = time.monotonic() + seconds
    where = target(url)
    try:
        with connected(where, addresses(where, ends), ends) as sock:
            sock.settimeout(left(ends))
            sock.sendall(head(where, len(body), headers) + body)
            return answer(sock, ends)
    except TimeoutError:
        raise Unreached(f"It did not answer within {seconds:g} seconds.") from None
    except ssl.SSLCertVerificationError as bad:
        raise Unreached(f"Its certificate is not accepted: {bad.verify_message}.") from None
    except OSError as broken:
        raise Unreached(f"The connection failed: {broken.strerror or broken}.") from None


def addresses(where: Target, ends: float) -> list[Address]:
    """What the name leads to, looked up once; each has been checked. Raises Refused and Unreached."""
    with_deadline = ThreadPoolExecutor(1, thread_name_prefix="resolve")
    try:
        asked = with_deadline.submit(
            socket.getaddrinfo, where.host, where.port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP
        )
        answers = asked.result(left(ends))
    except (socket.gaierror, UnicodeError):
        raise Unreached(f"There is no host «{where.host}».") from None
    finally:
        with_deadline.shutdown(wait=False)
    found = [ip_address(answer[4][0]) for answer in answers]
    if not where.open and not all(is_public(address) for address in found):
        raise Refused(not_public(where.host), param="url")
    return found[:MOST_ADDRESSES]


def connected(where: Target, found: list[Address], ends: float) -> socket.socket:
    """A connection to the first of these addresses that takes one, with TLS for the name. Raises OSError."""
    failed: OSError = OSError("there is no address")
    for address in found:
        sock = socket.socket(socket.AF_INET if address.version == 4 else socket.AF_INET6, socket.SOCK_STREAM)
        try:
            sock.settimeout(left(ends))
            sock.connect((str(address), where.port))
            if where.scheme == "https":
                return ssl.create_default_context().wrap_socket(sock, server_hostname=where.host)
        except OSError as broken:
            sock.close()
            failed = broken
        else:
            return sock
    raise failed


def head(where: Target, length: int, headers: Mapping[str, str]) -> bytes:
    """The head of the request."""
    literal = f"[{where.host}]" if ":" in where.host else where.host
    usual = 443 if where.scheme == "https" else 80
    host = literal if where.port == usual else f"{literal}:{where.port}"
    lines = [f"POST {where.path} HTTP/1.1", f"Host: {host}", "Connection: close", f"Content-Length: {length}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("ascii")


def answer(sock: socket.socket, ends: float) -> Answer:
    """The answer, whose head is read to its end or MOST_HEAD bytes. Raises Unreached."""
    received = b""
    while b"\r\n\r\n" not in received and len(received) < MOST_HEAD:
        sock.settimeout(left(ends))
        part = sock.recv(1024)
        if not part:
            break
        received += part
    status = STATUS.match(received)
    if status is None:
        raise Unreached("What it answered is not HTTP.")
    asked = RETRY_AFTER.search(received.partition(b"\r\n\r\n")[0])
    return Answer(int(status[1]), pause(asked[1].decode("ascii", "replace")) if asked else None)


def pause(asked: str) -> timedelta | None:
    """What a Retry-After asks for (RFC 9110, 10.2.3: seconds or a date); None where it cannot be read."""
    try:
        if re.fullmatch(r"[0-9]{1,9}", asked):
            return timedelta(seconds=int(asked))
        return max(timedelta(0), parsedate_to_datetime(asked) - now())
    except (ValueError, TypeError, OverflowError):  # TypeError: a date without a time zone
        return None


def left(ends: float) -> float:
    """The seconds until then. Raises TimeoutError where there are none."""
    remaining = ends - time.monotonic()
    if remaining <= 0:
        raise TimeoutError
    return remaining
