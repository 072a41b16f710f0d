"""What a web process makes of its questions to the database."""

import threading
from types import SimpleNamespace

import psycopg
import pytest

from web import pulse
from web.pulse import LOOK, PATIENCE, Pulse


def test_a_process_without_a_file_to_spare_goes_on_asking_and_refuses_nobody(monkeypatch: pytest.MonkeyPatch):
    asked = threading.Semaphore(0)

    class Line:
        def fileno(self) -> int:
            asked.release()
            return 1 << 20  # of no file: it cannot be named twice

    monkeypatch.setattr(pulse, "settings", lambda: SimpleNamespace(database_url="postgresql://nowhere"))
    monkeypatch.setattr(psycopg, "connect", lambda *_, **__: Line())
    watched = Pulse()
    for what in (watched.ask, watched.judge):
        threading.Thread(target=what, daemon=True).start()
    for _ in range(round(2 * PATIENCE * LOOK / pulse.ASK_SECONDS)):
        assert asked.acquire(timeout=5), "it asks no more"
    assert not watched.silent
    watched.stop()
