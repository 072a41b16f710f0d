"""Settings are what was given, in one form."""

import pytest

from shared.settings import Settings

GIVEN = {
    "DATABASE_URL": "postgresql://burnish@localhost/burnish",
    "REDIS_URL": "redis://localhost",
    "S3_ENDPOINT": "http://localhost:9000",
    "AWS_ACCESS_KEY_ID": "key",
    "AWS_SECRET_ACCESS_KEY": "secret",
    "SECRET_KEY": "k" * 32,
}


@pytest.mark.parametrize("given", ["https://burnish.example.com", "https://burnish.example.com/"])
def test_the_address_of_the_web_has_no_slash_at_its_end(given: str, monkeypatch: pytest.MonkeyPatch):
    for name, value in GIVEN.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PUBLIC_URL", given)
    assert Settings().public_url == "https://burnish.example.com"
