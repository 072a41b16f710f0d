"""Names that the server makes: a prefix that says what it is, and 26 characters that sort by age."""

import secrets
import threading
import time

ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"
_lock = threading.Lock()
_newest = [0]


def new_id(prefix: str) -> str:
    """`prefix` + 26 characters of base 32: 48 bits of milliseconds, then 82 random bits (as in ULID).

    Two made by one process never tie or go back, so sorting by id is sorting by age.
    """
    fresh = (time.time_ns() // 1_000_000) << 82 | secrets.randbits(82)
    with _lock:
        _newest[0] = value = max(fresh, _newest[0] + 1)
    return prefix + "".join(ALPHABET[value >> shift & 31] for shift in range(125, -1, -5))
