"""A fault proxy: a TCP link between one program and one server, on which things go wrong as asked.

One thread runs every link of a cluster. What goes wrong is an object that sees each piece of bytes
before it is passed on; it may be changed at any time from any thread.
"""

import asyncio
import random
import socket
import struct
import threading
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Literal

PIECE = 65_536
METHODS = (b"GET ", b"PUT ", b"POST ", b"HEAD ", b"DELETE ")
Direction = Literal["up", "down"]  # to the server, to the program


class Broken(Exception):
    """The connection is to be torn down now."""


@dataclass(eq=False)
class Wire:
    """One connection: the program's end, the server's end, and what has passed."""

    program: asyncio.StreamWriter
    server: asyncio.StreamWriter
    request: bytes = b""  # the first line of the last HTTP request
    passed: dict[str, int] = field(default_factory=lambda: {"up": 0, "down": 0})
    spoilt: bool = False  # bytes of it were swallowed: it cannot go on when the fault is over

    def reset(self) -> None:
        """Both ends see «connection reset by peer»."""
        for end in (self.program, self.server):
            raw = end.get_extra_info("socket")
            with suppress(OSError, AttributeError):  # it is closed already
                raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            end.transport.abort()


class Fault:
    """Nothing goes wrong. Others say what becomes of a piece of bytes."""

    breaks_what_is_open = False

    def accepts(self) -> bool:
        """Whether a new connection is let in."""
        return True

    async def passed(self, wire: Wire, piece: bytes, direction: Direction) -> bytes:
        """The bytes that go on. Raises Broken."""
        return piece


@dataclass
class Delay(Fault):
    """Every piece comes late."""

    seconds: float

    async def passed(self, wire: Wire, piece: bytes, direction: Direction) -> bytes:
        await asyncio.sleep(self.seconds)
        return piece


@dataclass
class Slow(Fault):
    """So many bytes a second and connection."""

    rate: float

    async def passed(self, wire: Wire, piece: bytes, direction: Direction) -> bytes:
        await asyncio.sleep(len(piece) / self.rate)
        return piece


class Refuse(Fault):
    """Nobody listens; what is open is reset."""

    breaks_what_is_open = True

    def accepts(self) -> bool:
        return False

    async def passed(self, wire: Wire, piece: bytes, direction: Direction) -> bytes:
        raise Broken


class Reset(Fault):
    """What is open is reset once; new connections work."""

    breaks_what_is_open = True


@dataclass
class Swallow(Fault):
    """Connections stay open and bytes vanish: in one direction, or in both (a black hole)."""

    direction: Direction | None = None

    async def passed(self, wire: Wire, piece: bytes, direction: Direction) -> bytes:
        if self.direction in (None, direction):
            wire.spoilt = True
            return b""
        return piece


@dataclass
class Answer(Fault):
    """An HTTP status of the proxy's own for a share of the requests; the connection is closed after it."""

    status: int
    rate: float = 1.0
    code: str = "InternalError"
    message: str = "injected"
    chance: random.Random = field(default_factory=lambda: random.Random(0))

    async def passed(self, wire: Wire, piece: bytes, direction: Direction) -> bytes:
        if direction == "down" or not piece.startswith(METHODS) or self.chance.random() >= self.rate:
            return piece
        body = f"<Error><Code>{self.code}</Code><Message>{self.message}</Message></Error>".encode()
        head = (
            f"HTTP/1.1 {self.status} Injected\r\nContent-Type: application/xml\r\n"
            f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        )
        wire.program.write(head.encode() + (b"" if piece.startswith(b"HEAD") else body))
        await wire.program.drain()
        wire.spoilt = True
        wire.server.transport.abort()
        return b""


@dataclass
class Cut(Fault):
    """The answer to a matching request ends after so many bytes."""

    after: int
    method: bytes = b"GET"
    within: bytes = b"step-"

    async def passed(self, wire: Wire, piece: bytes, direction: Direction) -> bytes:
        if direction == "up":
            wire.passed["down"] = 0
        elif matches(wire, self.method, self.within) and wire.passed["down"] + len(piece) > self.after:
            wire.program.write(piece[: max(0, self.after - wire.passed["down"])])
            await wire.program.drain()
            raise Broken
        return piece


@dataclass
class Flip(Fault):
    """The last byte of every piece of a matching answer is another."""

    method: bytes = b"GET"
    within: bytes = b"step-"

    async def passed(self, wire: Wire, piece: bytes, direction: Direction) -> bytes:
        only_headers = piece.startswith(b"HTTP/") and piece.endswith(b"\r\n\r\n")
        if direction == "down" and matches(wire, self.method, self.within) and not only_headers:
            return piece[:-1] + bytes([piece[-1] ^ 1])
        return piece


def matches(wire: Wire, method: bytes, within: bytes) -> bool:
    """Whether the answer under way is to such a request."""
    return wire.request.startswith(method) and within in wire.request


class Link:
    """A listening port in front of one server, for one program."""

    def __init__(self, loop: asyncio.AbstractEventLoop, upstream: int) -> None:
        self.loop, self.upstream = loop, upstream
        self.fault = Fault()
        self.wires: set[Wire] = set()
        self.server: asyncio.Server | None = None
        self.port = 0

    async def open(self) -> None:
        self.server = await asyncio.start_server(self.serve, "127.0.0.1", 0)
        self.port = self.server.sockets[0].getsockname()[1]

    def set(self, fault: Fault) -> None:
        """From now on this goes wrong. What was spoilt by the fault before is reset."""
        earlier, self.fault = self.fault, fault
        done = threading.Event()

        def tidy() -> None:
            for wire in list(self.wires):
                if fault.breaks_what_is_open or (wire.spoilt and type(fault) is not type(earlier)):
                    wire.reset()
            done.set()

        self.loop.call_soon_threadsafe(tidy)
        done.wait(5)

    def heal(self) -> None:
        """Nothing goes wrong any more."""
        self.set(Fault())

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection, to its end."""
        if not self.fault.accepts():
            writer.transport.abort()
            return
        try:
            from_server, to_server = await asyncio.open_connection("127.0.0.1", self.upstream)
        except OSError:
            writer.transport.abort()
            return
        wire = Wire(writer, to_server)
        self.wires.add(wire)
        try:
            await asyncio.gather(
                self.pump(wire, reader, to_server, "up"), self.pump(wire, from_server, writer, "down")
            )
        except (Broken, OSError):
            wire.reset()
        finally:
            self.wires.discard(wire)
            for end in (writer, to_server):
                end.close()

    async def pump(
        self, wire: Wire, source: asyncio.StreamReader, sink: asyncio.StreamWriter, direction: Direction
    ) -> None:
        """Pieces in one direction, until its end."""
        while piece := await source.read(PIECE):
            if direction == "up" and piece.startswith(METHODS):
                wire.request = piece.split(b"\r\n", 1)[0]
            fate = await self.fault.passed(wire, piece, direction)
            wire.passed[direction] += len(fate)
            if fate:
                sink.write(fate)
                await sink.drain()
        if not wire.spoilt and sink.can_write_eof():
            sink.write_eof()
        elif direction == "down":
            wire.program.close()


class Proxy:
    """The links of a cluster, and the thread that runs them."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever, name="proxy", daemon=True)
        self.thread.start()

    def link(self, upstream: int) -> Link:
        """A new link to the server at that port of this machine."""
        link = Link(self.loop, upstream)
        asyncio.run_coroutine_threadsafe(link.open(), self.loop).result(10)
        return link

    def close(self) -> None:
        """Nothing is passed on any more."""
        asyncio.run_coroutine_threadsafe(self.hang_up(), self.loop).result(10)
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join(5)
        self.loop.close()

    async def hang_up(self) -> None:
        """Every connection ends."""
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
