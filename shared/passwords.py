"""Passwords: argon2id at rest, the same work for a person that does not exist, one-time ones."""

import secrets
import threading
from functools import lru_cache

from argon2 import PasswordHasher
from argon2.exceptions import Argon2Error, InvalidHashError

from shared.errors import Refused
from shared.ids import ALPHABET

SHORTEST, LONGEST = 12, 128
_hasher = PasswordHasher(time_cost=2, memory_cost=19 * 1024, parallelism=1)
_room = threading.BoundedSemaphore(4)  # each hash takes 19 MiB: a flood of sign-ins must not take all memory


def hashed(password: str) -> str:
    """The argon2id hash to store."""
    with _room:
        return _hasher.hash(password)


def matches(stored: str | None, password: str) -> bool:
    """Whether the password is the stored one. Without a stored hash it works as long and says no."""
    with _room:
        try:
            right = _hasher.verify(stored or _nobodys(), password)
        except (Argon2Error, InvalidHashError):
            return False
    return right and stored is not None


def outdated(stored: str) -> bool:
    """Whether the hash was made with weaker parameters than today's."""
    return _hasher.check_needs_rehash(stored)


def one_time() -> str:
    """A password to be handed over once and changed at the first sign-in; 100 random bits."""
    letters = "".join(secrets.choice(ALPHABET) for _ in range(20))
    return "-".join(letters[start : start + 5] for start in range(0, 20, 5))


def acceptable(password: str, email: str = "") -> str:
    """The password as it came. Raises Refused where it is too short, too long or too plain."""
    if not SHORTEST <= len(password) <= LONGEST:
        raise Refused(f"A password has {SHORTEST} to {LONGEST} characters.", param="password")
    if len(set(password)) < 5 or (email and password.lower() == email.lower()):
        raise Refused(
            "This password is too easy to guess. Take several words, or let the browser propose one.",
            param="password",
        )
    return password


@lru_cache(maxsize=1)
def _nobodys() -> str:
    return _hasher.hash(secrets.token_urlsafe())
