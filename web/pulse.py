"""The database's pulse: each web process asks all the time whether the database answers, so that no request waits
for one that says nothing.

A server that is frozen, or behind a link that swallows everything, accepts and is silent. Its own limits are
frozen with it, and the kernel acknowledges what is sent, so no setting of a connection helps: the deadline must be
ours. One thread asks the database again and again, on a connection of its own; another looks every LOOK seconds
whether there was an answer. After PATIENCE looks without one the database counts as silent: the requests that wait
for it fail at once, as their connections are shut down under them, and new ones are told 503 before they ask for
anything. So a request takes about a second at most, whenever the silence began.

A busy machine is no silence. Looks are counted and not seconds: a process that was starved or stopped itself looks
less often too. A question that costs nothing waits for the database's share of the processors alone, of which it
gets some many times in so long. Were it wrong, a few requests would be told to come again, and the next answer ends
it. An error is an answer: requests meet the same one by themselves, at once.
"""

import logging
import os
import socket
import threading
import weakref
from contextlib import suppress
from typing import Any

import psycopg
from flask import Flask, request
from sqlalchemy import event

from shared.db import engine
from shared.deadline import within
from shared.settings import settings

log = logging.getLogger(__name__)

ASK_SECONDS = 0.2  # between an answer and the next question
LOOK = 0.1
PATIENCE = 9  # looks
CONNECT_SECONDS = 1.0
LOCK = " -c lock_timeout=1s"  # people wait less long than workers for what somebody else has locked
NEEDLESS = ("assets.file", "home.health")  # what is answered without the database, or tells of its silence


class Silent(psycopg.OperationalError):
    """The database accepts and does not answer."""


class Pulse:
    """What is known of it. `silent` is all that others need."""

    def __init__(self) -> None:
        self.silent = False
        self.looks = 0  # since the last answer
        self.over = threading.Event()
        self.lock = threading.Lock()
        self.lines: weakref.WeakKeyDictionary[psycopg.Connection, socket.socket] = weakref.WeakKeyDictionary()

    def start(self) -> None:
        """From now on it is watched, and this process's connections to it are cut when it is silent."""
        engine().dispose()  # what was connected before could not be cut
        event.listen(engine(), "do_connect", self.connect)
        event.listen(engine(), "connect", lambda connection, _: self.know(connection))
        for what in (self.ask, self.judge):
            threading.Thread(target=what, name=f"pulse-{what.__name__}", daemon=True).start()

    def stop(self) -> None:
        """It is no longer watched."""
        self.over.set()
        self.silent = False

    def ask(self) -> None:
        """Asks again and again. While it is silent, nothing but an answer counts."""
        address, line = settings().database_url.replace("+psycopg", ""), None
        while not self.over.wait(ASK_SECONDS):
            try:
                if line is None:
                    line = psycopg.connect(address, autocommit=True, connect_timeout=2)
                    self.know(line)
                line.execute("SELECT 1")
            except (psycopg.Error, OSError) as wrong:
                log.debug("The database was asked in vain: %s", wrong)
                line = None
                if self.silent:
                    continue
            self.looks = 0
            if self.silent:
                log.warning("The database answers again")
            self.silent = False

    def judge(self) -> None:
        """Counts the looks without an answer. While it is silent, whatever has just been connected is cut too."""
        while not self.over.wait(LOOK):
            self.looks += 1
            if self.looks < PATIENCE:
                continue
            if not self.silent:
                log.error("The database does not answer: requests are refused until it does")
            self.silent = True
            self.cut()

    def know(self, connection: psycopg.Connection) -> None:
        """A connection that is cut in a silence. What is kept is a second name of its socket, which no other
        file takes over when the connection is closed.
        """
        with self.lock:
            self.lines[connection] = socket.socket(fileno=os.dup(connection.fileno()))

    def cut(self) -> None:
        """Every read that waits for the database fails now."""
        with self.lock:
            lines = list(self.lines.values())
        for line in lines:
            with suppress(OSError):  # it is cut already
                line.shutdown(socket.SHUT_RDWR)

    def connect(self, dialect: Any, _: Any, args: tuple, options: dict[str, Any]) -> psycopg.Connection:
        """A new connection for the pool, in a second or not at all: the driver itself would wait for longer.
        Raises Silent.
        """
        options = options | {"options": options["options"] + LOCK}
        try:
            return within(CONNECT_SECONDS, lambda: dialect.connect(*args, **options), lambda: not self.silent)
        except TimeoutError:
            raise Silent("It accepts connections and does not answer.") from None


def guard(app: Flask, pulse: Pulse) -> None:
    """Refuse what needs the database while it is silent. Raises Silent."""
    app.extensions["pulse"] = pulse

    @app.before_request
    def check() -> None:
        if pulse.silent and request.endpoint not in NEEDLESS:
            raise Silent("It has been silent for a while.")
